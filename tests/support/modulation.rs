//! The three maps from rows to a modulation table, in f64 and as the operations take them.

use flowprior::ops::modulation::{Modulation, ModulationGrad};
use flowprior::{FloatX, Result, Tensor};

use super::oracle::{Gradient, fresh};
use super::random::Random;
use super::values::{Inputs, Tensors, Values};

/// How rows find their modulation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Map {
    /// Every row has a table row of its own.
    Direct,
    /// So many consecutive rows share a table row.
    Groups(usize),
    /// Rows interpolate between so many table rows.
    Nodes(usize),
}

impl Map {
    /// Lists one map of each kind that fits `n` rows.
    pub fn all(n: usize) -> Vec<Self> {
        let groups = n.is_multiple_of(3).then_some(Self::Groups(3));
        let nodes = if n > 15 { 19 } else { 5 }; // more than the kernels take at a time, and fewer
        [Self::Direct, Self::Nodes(nodes)].into_iter().chain(groups).collect()
    }

    /// Adds `table` and, for nodes, `weights` to the inputs.
    pub fn inputs(self, inputs: Inputs, n: usize, columns: usize) -> Inputs {
        match self {
            Self::Direct => inputs.stored("table", [n, columns]),
            Self::Groups(rows) => inputs.stored("table", [n / rows, columns]),
            Self::Nodes(r) => {
                let weights = Random::new("weights").normals(n * r);
                inputs.single("table", [r, columns]).constant("weights", [n, r], weights)
            }
        }
    }

    /// Returns the modulation of every row, (N, columns).
    pub fn rows(self, x: &Values, columns: usize) -> Vec<f64> {
        let table = &x["table"];
        match self {
            Self::Direct => table.into(),
            Self::Groups(rows) => table.chunks_exact(columns).flat_map(|row| row.repeat(rows)).collect(),
            Self::Nodes(r) => x["weights"].chunks_exact(r).flat_map(|w| combine(w, table, columns)).collect(),
        }
    }

    /// Returns what an operation takes.
    pub fn modulation<X: FloatX>(self, x: &Tensors<X>) -> Modulation<'_, X> {
        match self {
            Self::Direct => Modulation::Index { table: x.stored("table"), rows: 1 },
            Self::Groups(rows) => Modulation::Index { table: x.stored("table"), rows },
            Self::Nodes(_) => {
                Modulation::Interpolate { table: x.single("table"), weights: x.single("weights") }
            }
        }
    }

    /// Returns a table gradient of which columns `offset .. offset + width` are still to be written: they hold NaN,
    /// the others 0, which they must keep.
    pub fn gradient<X: FloatX>(
        self,
        x: &Tensors<X>,
        offset: usize,
        width: usize,
    ) -> Result<TableGradient<X>> {
        Ok(match self {
            Self::Direct | Self::Groups(_) => TableGradient::Stored(blank(x.stored("table"), offset, width)?),
            Self::Nodes(_) => TableGradient::Single(blank(x.single("table"), offset, width)?),
        })
    }
}

/// Returns Σⱼ w[j]·table[j].
fn combine(w: &[f64], table: &[f64], columns: usize) -> Vec<f64> {
    let mut sum = vec![0.0; columns];
    for (w, row) in w.iter().zip(table.chunks_exact(columns)) {
        for (sum, v) in sum.iter_mut().zip(row) {
            *sum += w * v;
        }
    }
    sum
}

fn blank<Y: FloatX>(table: &Tensor<Y>, offset: usize, width: usize) -> Result<Tensor<Y>> {
    let columns = table.rows_cols().1;
    let read = |i: usize| (offset..offset + width).contains(&(i % columns));
    let values: Vec<f32> = (0..table.len()).map(|i| if read(i) { f32::NAN } else { 0.0 }).collect();
    Tensor::from_f32(table.device(), table.shape(), &values)
}

/// The gradient of a table, of either kind.
pub enum TableGradient<X: FloatX> {
    /// Of `Modulation::Index`.
    Stored(Tensor<X>),
    /// Of `Modulation::Interpolate`.
    Single(Tensor<f32>),
}

impl<X: FloatX> TableGradient<X> {
    /// Lends it to a backward.
    pub fn lend(&mut self) -> ModulationGrad<'_, X> {
        match self {
            Self::Stored(table) => ModulationGrad::Index(table),
            Self::Single(table) => ModulationGrad::Interpolate(table),
        }
    }

    /// Reads it.
    pub fn read(&self) -> Gradient {
        match self {
            Self::Stored(table) => fresh("table", table),
            Self::Single(table) => fresh("table", table),
        }
    }
}

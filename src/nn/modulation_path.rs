//! The modulation path of the velocity network: from t (and a condition) to the shift, scale and gate of every block.
//!
//! ```text
//! c = W2·silu(W1·e(t) + b1) + b2 (+ Wc·z + bc)      table_k = Wa_k·silu(c) + ba_k, k over blocks and the final layer
//! ```
//! Without a condition this is a function of the scalar t alone, and 60 % of the network's arithmetic (PERFORMANCE
//! section 5). So it is evaluated in one of three forms:
//! - `direct`: one table row for each row of the batch: the parity form, and the oracle of the others;
//! - `nodes`: at r Chebyshev nodes, in f32; each row interpolates at its own t, and gradients return by the exact
//!   transpose. Equal to `direct` to rounding while the last Chebyshev coefficients are small ([`Mlp::node_error`]);
//! - `groups`: G table rows, each serving N/G consecutive rows, which share one t.
//!
//! [`Mlp::node_error`]: crate::nn::Mlp::node_error

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::nn::linear::Linear;
use crate::nn::params::{Grads, Params};
use crate::ops::chebyshev::{chebyshev_coefficients, chebyshev_nodes, chebyshev_weights};
use crate::ops::linear::Activation;
use crate::ops::modulation::{Modulation, ModulationGrad};
use crate::ops::timestep_embedding::timestep_embedding;
use crate::tensor::Tensor;

/// Width of the sinusoidal embedding (FEATURES 1.7).
pub const EMBEDDING: usize = 256;

/// The form in which modulation is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A table row for each row of the batch.
    Direct,
    /// This many Chebyshev nodes, and interpolation.
    Nodes(usize),
    /// This many table rows in the whole batch.
    Groups(usize),
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Nodes(r) => write!(f, "nodes={r}"),
            Self::Groups(g) => write!(f, "groups={g}"),
        }
    }
}

impl FromStr for Form {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let count = |digits: &str| digits.parse::<usize>().ok().filter(|n| *n >= 2);
        match s.split_once('=') {
            None if s == "direct" => Ok(Self::Direct),
            None if s == "nodes" => Ok(Self::Nodes(16)),
            Some(("nodes", r)) if count(r).is_some_and(|r| r <= 64) => {
                Ok(Self::Nodes(count(r).unwrap_or(16)))
            }
            Some(("groups", g)) if count(g).is_some() => Ok(Self::Groups(count(g).unwrap_or(2))),
            _ => Err(Error::Usage(format!(
                "unknown modulation `{s}`: expected `direct`, `nodes`, `nodes=R` (2 to 64) or `groups=G` (2 or more)"
            ))),
        }
    }
}

/// The layers of the path.
#[derive(Clone, Debug)]
pub(crate) struct ModulationPath {
    pub time1: Linear,
    pub time2: Linear,
    pub cond: Option<Linear>,
    /// One head for each block, then the final layer's.
    pub heads: Vec<Linear>,
    pub time_scale: f32,
}

/// Tables at the nodes: for a frozen network they are computed once and used in every step.
#[derive(Clone, Debug)]
pub struct NodeTables(Arc<Vec<Tensor<f32>>>);

/// The modulation of one batch: a table for each head, the row map, and what the backward needs.
#[derive(Debug)]
pub struct Modulations<X: FloatX>(Inner<X>);

#[derive(Debug)]
enum Inner<X: FloatX> {
    Index { tables: Vec<Tensor<X>>, rows: usize, saved: Saved<X> },
    Interpolate { tables: NodeTables, weights: Tensor<f32>, saved: Option<Saved<f32>> },
}

/// Activations of the path, T the type they are computed in.
#[derive(Debug)]
pub(crate) struct Saved<T: FloatX> {
    embedding: Tensor<T>,  // (G, 256)
    z1: Option<Tensor<T>>, // (G, D)
    a1: Tensor<T>,
    c: Option<Tensor<T>>,
    /// silu(c), which all heads take.
    pub(crate) s: Tensor<T>,
    cond: Option<Tensor<T>>, // (G, z)
}

impl<X: FloatX> Modulations<X> {
    /// Returns the modulation of head k.
    pub(crate) fn head(&self, k: usize) -> Modulation<'_, X> {
        match &self.0 {
            Inner::Index { tables, rows, .. } => Modulation::Index { table: &tables[k], rows: *rows },
            Inner::Interpolate { tables, weights, .. } => {
                Modulation::Interpolate { table: &tables.0[k], weights }
            }
        }
    }

    /// Returns gradients of all tables, to be written head by head.
    pub(crate) fn gradients(&self) -> TableGrads<X> {
        match &self.0 {
            Inner::Index { tables, .. } => TableGrads::Index(tables.iter().map(Tensor::like).collect()),
            Inner::Interpolate { tables, .. } => {
                TableGrads::Interpolate(tables.0.iter().map(Tensor::like).collect())
            }
        }
    }
}

/// Gradients of all tables.
#[derive(Debug)]
pub(crate) enum TableGrads<X: FloatX> {
    Index(Vec<Tensor<X>>),
    Interpolate(Vec<Tensor<f32>>),
}

impl<X: FloatX> TableGrads<X> {
    /// Returns the gradients of tables at nodes, head by head; none of any others.
    pub(crate) fn at_nodes(self) -> Vec<Tensor<f32>> {
        match self {
            Self::Index(_) => Vec::new(),
            Self::Interpolate(tables) => tables,
        }
    }

    /// Returns the gradient of head k's table.
    pub(crate) fn head(&mut self, k: usize) -> ModulationGrad<'_, X> {
        match self {
            Self::Index(tables) => ModulationGrad::Index(&mut tables[k]),
            Self::Interpolate(tables) => ModulationGrad::Interpolate(&mut tables[k]),
        }
    }
}

impl ModulationPath {
    /// Evaluates every row's modulation; each of the `t: (G)` times serves `rows` consecutive rows. `cond: (G, z)`.
    pub(crate) fn by_rows<X: FloatX>(
        &self,
        params: &Params<X>,
        t: &Tensor<f32>,
        rows: usize,
        cond: Option<Tensor<X>>,
    ) -> Result<Modulations<X>> {
        let (tables, saved) = self.forward::<X, X>(params, t, cond)?;
        Ok(Modulations(Inner::Index { tables, rows, saved }))
    }

    /// Evaluates at r nodes and interpolates for each of the `t: (N)`.
    pub(crate) fn by_nodes<X: FloatX>(
        &self,
        params: &Params<X>,
        t: &Tensor<f32>,
        r: usize,
    ) -> Result<Modulations<X>> {
        let (tables, saved) = self.forward::<f32, X>(params, &nodes_tensor(t.device(), r)?, None)?;
        let (tables, weights) = (NodeTables(Arc::new(tables)), chebyshev_weights(t, r)?);
        Ok(Modulations(Inner::Interpolate { tables, weights, saved: Some(saved) }))
    }

    /// Evaluates the tables of a frozen network at r nodes.
    pub(crate) fn node_tables<X: FloatX>(&self, params: &Params<X>, r: usize) -> Result<NodeTables> {
        let nodes = nodes_tensor(params.flat().device(), r)?;
        Ok(NodeTables(Arc::new(self.forward::<f32, X>(params, &nodes, None)?.0)))
    }

    /// Interpolates tables that exist already for each of the `t: (N)`; such a modulation has no backward.
    pub(crate) fn from_tables<X: FloatX>(tables: &NodeTables, t: &Tensor<f32>) -> Result<Modulations<X>> {
        let r = tables.0.first().map_or(0, |table| table.rows_cols().0);
        let weights = chebyshev_weights(t, r)?;
        Ok(Modulations(Inner::Interpolate { tables: tables.clone(), weights, saved: None }))
    }

    fn forward<T: FloatX, X: FloatX>(
        &self,
        params: &Params<X>,
        t: &Tensor<f32>,
        cond: Option<Tensor<T>>,
    ) -> Result<(Vec<Tensor<T>>, Saved<T>)> {
        let embedding = timestep_embedding::<T>(t, EMBEDDING, self.time_scale)?;
        let condition = match (&self.cond, &cond) {
            (Some(layer), Some(z)) => Some(layer.forward(params, z, None, Activation::Identity)?.0),
            _ => None,
        };
        let (a1, z1) = self.time1.forward(params, &embedding, None, Activation::Silu)?;
        let (s, c) = self.time2.forward(params, &a1, condition.as_ref(), Activation::Silu)?;
        let tables: Result<Vec<_>> = self
            .heads
            .iter()
            .map(|head| Ok(head.forward(params, &s, None, Activation::Identity)?.0))
            .collect();
        Ok((tables?, Saved { embedding, z1, a1, c, s, cond }))
    }

    /// Evaluates the tables at r nodes, with what the backward needs.
    pub(crate) fn tables_at_nodes<X: FloatX>(
        &self,
        params: &Params<X>,
        r: usize,
    ) -> Result<(NodeTables, Saved<f32>)> {
        let (tables, saved) =
            self.forward::<f32, X>(params, &nodes_tensor(params.flat().device(), r)?, None)?;
        Ok((NodeTables(Arc::new(tables)), saved))
    }

    /// Accumulates the path's parameter gradients from those of its tables.
    pub(crate) fn backward<X: FloatX>(
        &self,
        params: &Params<X>,
        modulations: Modulations<X>,
        dtables: TableGrads<X>,
        grads: &mut Grads,
    ) -> Result<()> {
        match (modulations.0, dtables) {
            (Inner::Index { saved, .. }, TableGrads::Index(d)) => self.backward_in(params, saved, &d, grads),
            (Inner::Interpolate { saved: Some(saved), .. }, TableGrads::Interpolate(d)) => {
                self.backward_in(params, saved, &d, grads)
            }
            _ => Err(Error::argument(
                "modulation backward",
                "tables",
                "tables of this step",
                "tables of a frozen network",
            )),
        }
    }

    fn backward_in<T: FloatX, X: FloatX>(
        &self,
        params: &Params<X>,
        saved: Saved<T>,
        dtables: &[Tensor<T>],
        grads: &mut Grads,
    ) -> Result<()> {
        for (head, dtable) in self.heads.iter().zip(dtables) {
            head.backward_params(grads, dtable, &saved.s)?;
        }
        match self.backward_inputs(params, &saved, dtables)? {
            Some(inputs) => self.backward_embedding(&saved, &inputs, grads),
            None => Ok(()),
        }
    }

    /// Returns the gradients of c and of z1 from those of the tables; `None` without a head.
    pub(crate) fn backward_inputs<T: FloatX, X: FloatX>(
        &self,
        params: &Params<X>,
        saved: &Saved<T>,
        dtables: &[Tensor<T>],
    ) -> Result<Option<[Tensor<T>; 2]>> {
        let mut dc: Option<Tensor<T>> = None;
        for (head, dtable) in self.heads.iter().zip(dtables) {
            let through = saved.c.as_ref().map(|c| (Activation::Silu, c));
            match &mut dc {
                None => dc = Some(head.backward_input(params, dtable, through)?),
                Some(dc) => head.backward_input_add(dc, params, dtable, through)?,
            }
        }
        let Some(dc) = dc else { return Ok(None) };
        let dz1 = self.time2.backward_input(params, &dc, saved.z1.as_ref().map(|z| (Activation::Silu, z)))?;
        Ok(Some([dc, dz1]))
    }

    /// Accumulates the gradients of the layers before c.
    pub(crate) fn backward_embedding<T: FloatX>(
        &self,
        saved: &Saved<T>,
        [dc, dz1]: &[Tensor<T>; 2],
        grads: &mut Grads,
    ) -> Result<()> {
        if let (Some(layer), Some(z)) = (&self.cond, &saved.cond) {
            layer.backward_params(grads, dc, z)?;
        }
        self.time2.backward_params(grads, dc, &saved.a1)?;
        self.time1.backward_params(grads, dz1, &saved.embedding)
    }

    /// Bounds the interpolation error at r nodes: the largest of the last two Chebyshev coefficients of any table
    /// entry, relative to the largest entry of all tables, or the same of silu(c) if that is larger: gradients of the
    /// heads are sums of silu(c), also while training starts and all tables are zero. In f64, so that rounding does not
    /// hide it.
    ///
    /// Tables are linear in silu(c), so only its coefficients go through the heads: 2 rows instead of r.
    pub(crate) fn node_error<X: FloatX>(&self, params: &Params<X>, r: usize) -> Result<f64> {
        let s: Vec<Vec<f64>> =
            chebyshev_nodes(r).into_iter().map(|t| self.silu_c(params, t)).collect::<Result<_>>()?;
        let width = s.first().map_or(0, Vec::len);
        let mut tails = [vec![0.0; width], vec![0.0; width]];
        for i in 0..width {
            let coefficients = chebyshev_coefficients(&s.iter().map(|s| s[i]).collect::<Vec<_>>());
            (tails[0][i], tails[1][i]) = (coefficients[r - 1], coefficients[r - 2]);
        }
        let places = [&s[0], &s[r / 2], &s[r - 1]];
        let own = share(max_abs(tails.iter().flatten()), max_abs(places.into_iter().flatten()));
        let (mut largest, mut error) = (0f64, 0f64);
        for head in &self.heads {
            let (w, b) = (head.weight(params), head.bias(params));
            for tail in &tails {
                error = error.max(max_abs(&affine(&w.on_host()?, None, tail)));
            }
            for s in places {
                largest = largest.max(max_abs(&affine(&w.on_host()?, Some(&b.on_host()?), s)));
            }
        }
        Ok(own.max(share(error, largest)))
    }

    /// silu(c) at one t, in f64.
    fn silu_c<X: FloatX>(&self, params: &Params<X>, t: f64) -> Result<Vec<f64>> {
        let half = EMBEDDING / 2;
        let phase =
            |i: usize| self.time_scale as f64 * t * (-(10_000f64.ln()) * i as f64 / half as f64).exp();
        let e: Vec<f64> =
            (0..half).map(|i| phase(i).cos()).chain((0..half).map(|i| phase(i).sin())).collect();
        let layer = |layer: &Linear, x: &[f64]| -> Result<Vec<f64>> {
            let (w, b) = (layer.weight(params), layer.bias(params));
            Ok(affine(&w.on_host()?, Some(&b.on_host()?), x)
                .into_iter()
                .map(|z| z / (1.0 + (-z).exp()))
                .collect())
        };
        layer(&self.time2, &layer(&self.time1, &e)?)
    }
}

fn nodes_tensor(device: &Device, r: usize) -> Result<Tensor<f32>> {
    let nodes: Vec<f32> = chebyshev_nodes(r).into_iter().map(|t| t as f32).collect();
    Tensor::constant(device, [r], &nodes)
}

/// W·x (+ b), in f64.
fn affine<X: FloatX>(w: &[X], b: Option<&[X]>, x: &[f64]) -> Vec<f64> {
    let dot = |row: &[X]| -> f64 { row.iter().zip(x).map(|(w, x)| w.to_f32() as f64 * x).sum() };
    w.chunks_exact(x.len().max(1))
        .enumerate()
        .map(|(o, row)| dot(row) + b.map_or(0.0, |b| b[o].to_f32() as f64))
        .collect()
}

fn max_abs<'a>(xs: impl IntoIterator<Item = &'a f64>) -> f64 {
    xs.into_iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// error/range; nothing varies where the range is 0.
fn share(error: f64, range: f64) -> f64 {
    if range > 0.0 { error / range } else { 0.0 }
}

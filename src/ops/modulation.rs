//! Modulation tables: where layer norm takes shift and scale, and the gated residual its gate.
//!
//! A table has one row per distinct condition, `[shift | scale | gate]` or `[shift | scale]` in its columns, and a map
//! from rows of the batch to rows of the table. Both operations read tables only through `fetch` and write table
//! gradients only through `GradBlock`, so the two maps are implemented once.

use crate::device::combine::Combination;
use crate::device::cuda::{Grid, Read};
use crate::device::{Arch, Device};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::ops::{narrow, widen};
use crate::tensor::Tensor;

/// A table and its row map. Gradients are fresh: each operation writes the columns it read.
#[derive(Clone, Copy, Debug)]
pub enum Modulation<'a, X: FloatX> {
    /// Row i takes table row i / `rows`. One row each is the direct form.
    Index {
        /// (G, columns), G = N / rows.
        table: &'a Tensor<X>,
        /// Consecutive rows of the batch that share a table row.
        rows: usize,
    },
    /// Row i takes `Σⱼ weights[i, j] · table[j]`.
    Interpolate {
        /// (r, columns), in f32 whatever the storage type: it is small, and its rounding would be seen by every row.
        table: &'a Tensor<f32>,
        /// (N, r).
        weights: &'a Tensor<f32>,
    },
}

/// The gradient of a table: an operation writes the columns that its forward read.
#[derive(Debug)]
pub enum ModulationGrad<'a, X: FloatX> {
    /// (G, columns), for `Modulation::Index`.
    Index(&'a mut Tensor<X>),
    /// (r, columns), for `Modulation::Interpolate`.
    Interpolate(&'a mut Tensor<f32>),
}

impl<'a, X: FloatX> Modulation<'a, X> {
    /// Returns the number of columns.
    pub fn columns(&self) -> usize {
        match self {
            Self::Index { table, .. } => table.rows_cols().1,
            Self::Interpolate { table, .. } => table.rows_cols().1,
        }
    }

    /// Checks that the map serves `n` rows and that the table has columns `offset .. offset + width`.
    pub(crate) fn check(&self, op: &'static str, n: usize, offset: usize, width: usize) -> Result<()> {
        if offset + width > self.columns() {
            let expected = format!("at least {} columns", offset + width);
            return Err(Error::argument(op, "table", expected, format!("{} columns", self.columns())));
        }
        match self {
            Self::Index { table, rows } => {
                let served = table.rows_cols().0 * rows;
                if *rows == 0 || served != n {
                    let found = format!("{} rows serving {rows} each", table.rows_cols().0);
                    return Err(Error::argument(
                        op,
                        "table",
                        format!("rows for {n} rows of the batch"),
                        found,
                    ));
                }
                Ok(())
            }
            Self::Interpolate { table, weights } => weights.expect(op, "weights", [n, table.rows_cols().0]),
        }
    }

    /// Returns how many consecutive rows must stay in one block.
    pub(crate) fn unit(&self) -> usize {
        match self {
            Self::Index { rows, .. } => *rows,
            Self::Interpolate { .. } => 1,
        }
    }

    /// Returns what CUDA kernels read.
    pub(crate) fn on_device(&self) -> Result<DeviceModulation<'a, X>> {
        let columns = self.columns() as u32;
        Ok(match self {
            Self::Index { table, rows } => DeviceModulation {
                table: table.read()?,
                nodes: Read::none(),
                weights: Read::none(),
                columns,
                share: *rows as u32,
                r: 0,
            },
            Self::Interpolate { table, weights } => DeviceModulation {
                table: Read::none(),
                nodes: table.read()?,
                weights: weights.read()?,
                columns,
                share: 1,
                r: table.rows_cols().0 as u32,
            },
        })
    }

    /// Returns the host view that kernels read.
    pub(crate) fn host(&self) -> Result<HostModulation<'a, X>> {
        Ok(match self {
            Self::Index { table, rows } => {
                HostModulation::Index { table: table.host()?, columns: self.columns(), rows: *rows }
            }
            Self::Interpolate { table, weights } => HostModulation::Interpolate {
                table: table.host()?,
                columns: self.columns(),
                weights: weights.host()?,
                nodes: table.rows_cols().0,
            },
        })
    }
}

/// A modulation in device memory: the arguments of `struct Modulation` in `kernels/modulation.cuh`.
#[derive(Clone, Copy)]
pub(crate) struct DeviceModulation<'a, X> {
    pub(crate) table: Read<'a, X>,
    pub(crate) nodes: Read<'a, f32>,
    pub(crate) weights: Read<'a, f32>,
    pub(crate) columns: u32,
    pub(crate) share: u32,
    pub(crate) r: u32,
}

impl<X> DeviceModulation<'_, X> {
    /// Is no modulation: no columns.
    pub(crate) fn none() -> Self {
        let (table, nodes, weights) = (Read::none(), Read::none(), Read::none());
        Self { table, nodes, weights, columns: 0, share: 1, r: 0 }
    }
}

/// Rows that a block of a CUDA kernel covers where a warp covers `each`: `WARPS` in `kernels/modulation.cuh`.
pub(crate) fn block_rows(each: usize) -> usize {
    8 * each
}

/// Bytes of shared memory for the weights of a block's rows: `Weights` in `kernels/modulation.cuh`.
pub(crate) fn weights_shared(nodes: u32) -> usize {
    4 * 36 * nodes as usize
}

/// How a sum over N rows is cut on a CUDA device: `weighted_sums` in `kernels/modulation.cuh`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slices {
    /// Slices, whose sums are added in order: enough blocks for a large card, few enough to be added quickly.
    pub(crate) count: usize,
    /// Rows of a slice.
    pub(crate) rows: usize,
}

impl Slices {
    /// Rows that the kernel takes at a time.
    const TILE: usize = 8;
    const MOST: usize = 32;

    pub(crate) fn of(rows: usize) -> Self {
        let each = rows.div_ceil(Self::MOST).next_multiple_of(Self::TILE).max(Self::TILE);
        Self { count: rows.div_ceil(each), rows: each }
    }

    /// Covers `width` columns of `values` arrays, and `nodes` nodes, 16 in a block.
    pub(crate) fn grid(self, width: usize, values: usize, nodes: usize) -> Grid {
        let blocks = [width.div_ceil(128 / values), self.count, nodes.div_ceil(16).max(1)];
        Grid { blocks: blocks.map(|n| n as u32), threads: 64, shared: 0 }
    }
}

/// A modulation in host memory.
#[derive(Clone, Copy)]
pub(crate) enum HostModulation<'a, X> {
    Index { table: &'a [X], columns: usize, rows: usize },
    Interpolate { table: &'a [f32], columns: usize, weights: &'a [f32], nodes: usize },
}

impl<X: FloatX> HostModulation<'_, X> {
    /// Writes columns `offset .. offset + width` for the rows `first ..` of the batch to `out` (rows, width).
    #[inline(always)]
    pub(crate) fn fetch(&self, arch: Arch, out: &mut [f32], first: usize, offset: usize, width: usize) {
        match *self {
            Self::Index { table, columns, rows } => {
                for (i, out) in out.chunks_exact_mut(width).enumerate() {
                    let at = (first + i) / rows * columns + offset;
                    widen(out, &table[at..at + width]);
                }
            }
            Self::Interpolate { table, columns, weights, nodes } => {
                let (a, x) = (&weights[first * nodes..], &table[offset..]);
                let of = Combination { a, row: nodes, term: 1, x, stride: columns, terms: nodes };
                arch.combine(out, width, &of, true);
            }
        }
    }
}

/// Where one block of rows puts its share of a table's gradient.
pub(crate) enum GradBlock<'a, X> {
    /// The table rows of this block, whole: (groups of the block, columns).
    Index { dtable: &'a mut [X], columns: usize, rows: usize, sums: &'a mut [f32] },
    /// This block's partial sum (r, width).
    Interpolate { partial: &'a mut [f32], weights: &'a [f32], nodes: usize },
}

impl<X: FloatX> GradBlock<'_, X> {
    /// Adds the gradients `dmod` (rows, width) of consecutive rows; `at` is the first one's place in the block.
    #[inline(always)]
    pub(crate) fn add(&mut self, arch: Arch, dmod: &[f32], at: usize, offset: usize, width: usize) {
        match self {
            Self::Index { dtable, columns, rows, sums } => {
                for (i, dmod) in dmod.chunks_exact(width).enumerate() {
                    let (group, within) = ((at + i) / *rows, (at + i) % *rows);
                    if within == 0 {
                        sums.copy_from_slice(dmod);
                    } else {
                        for (s, d) in sums.iter_mut().zip(dmod) {
                            *s += d;
                        }
                    }
                    if within + 1 == *rows {
                        let to = group * *columns + offset;
                        narrow(&mut dtable[to..to + width], sums);
                    }
                }
            }
            Self::Interpolate { partial, weights, nodes } => {
                let (a, x, terms) = (&weights[at * *nodes..], dmod, dmod.len() / width);
                let of = Combination { a, row: 1, term: *nodes, x, stride: width, terms };
                arch.combine(&mut partial[..*nodes * width], width, &of, at == 0);
            }
        }
    }
}

/// Rows whose modulation is held in f32 at a time.
pub(crate) const MOD_ROWS: usize = 8;

/// Partial sums below which waking another thread costs more than it saves.
const SERIAL: usize = 1 << 16;

/// Partial sums of a table's gradient, one for each block of rows, so that blocks run in any order.
pub(crate) struct GradScratch {
    /// Interpolate: (blocks, r·width). Index: (blocks, width), the running sum of a group.
    partials: Tensor<f32>,
    width: usize,
}

impl GradScratch {
    /// Takes scratch for `blocks` blocks that write `width` columns.
    pub(crate) fn new<X: FloatX>(
        device: &Device,
        modulation: &Modulation<'_, X>,
        blocks: usize,
        width: usize,
    ) -> Self {
        let rows = match modulation {
            Modulation::Index { .. } => 1,
            Modulation::Interpolate { table, .. } => table.rows_cols().0,
        };
        Self { partials: Tensor::uninit(device, [blocks, rows * width]), width }
    }

    /// Splits scratch and gradient into what each block of `block_rows` rows writes.
    pub(crate) fn blocks<'s, X: FloatX>(
        &'s mut self,
        grad: &'s mut ModulationGrad<'_, X>,
        modulation: &Modulation<'s, X>,
        block_rows: usize,
    ) -> Result<Vec<GradBlock<'s, X>>> {
        let stride = self.partials.rows_cols().1.max(1);
        let partials = self.partials.host_mut()?.chunks_exact_mut(stride);
        Ok(match (grad, modulation) {
            (ModulationGrad::Index(dtable), Modulation::Index { rows, .. }) => {
                let columns = dtable.rows_cols().1;
                let tables = dtable.host_mut()?.chunks_mut(block_rows / rows * columns);
                let block = |(dtable, sums)| GradBlock::Index { dtable, columns, rows: *rows, sums };
                tables.zip(partials).map(block).collect()
            }
            (_, Modulation::Interpolate { weights, table }) => {
                let nodes = table.rows_cols().0;
                let weights = weights.host()?.chunks(block_rows * nodes);
                let block = |(weights, partial)| GradBlock::Interpolate { partial, weights, nodes };
                weights.zip(partials).map(block).collect()
            }
            _ => Vec::new(),
        })
    }

    /// Writes columns `offset .. offset + width` of an interpolated table's gradient: the partial sums, in order.
    pub(crate) fn finish<X: FloatX>(&self, grad: &mut ModulationGrad<'_, X>, offset: usize) -> Result<()> {
        let ModulationGrad::Interpolate(dtable) = grad else { return Ok(()) };
        let (columns, width) = (dtable.rows_cols().1, self.width);
        let partials = self.partials.host()?;
        let stride = self.partials.rows_cols().1;
        let sum = |(j, row): (usize, &mut [f32])| {
            let row = &mut row[offset..offset + width];
            row.fill(0.0);
            for block in partials.chunks_exact(stride) {
                for (y, p) in row.iter_mut().zip(&block[j * width..(j + 1) * width]) {
                    *y += p;
                }
            }
        };
        let device = dtable.device().clone();
        let rows = dtable.host_mut()?.chunks_exact_mut(columns).enumerate();
        match device {
            Device::Cpu(cpu) if partials.len() >= SERIAL => cpu.each(rows, sum),
            _ => rows.for_each(sum),
        }
        Ok(())
    }
}

impl<X: FloatX> ModulationGrad<'_, X> {
    /// Checks that the gradient has the shape of the modulation's table.
    pub(crate) fn check(&self, op: &'static str, modulation: &Modulation<'_, X>) -> Result<()> {
        match (self, modulation) {
            (Self::Index(d), Modulation::Index { table, .. }) => d.expect(op, "dtable", table.shape()),
            (Self::Interpolate(d), Modulation::Interpolate { table, .. }) => {
                d.expect(op, "dtable", table.shape())
            }
            _ => Err(Error::argument(op, "dtable", "the kind of the modulation", "the other kind")),
        }
    }
}

//! Row gather: `y[i] = (table[index[i]] − shift) · scale`, with a cast; the way a batch leaves a data set.
//!
//! Backward: `dtable[j] += scale · Σ_{i: index[i] = j} dy[i]`, rows in the order of i: no atomics, same bits always.

use crate::device::cuda::{Grid, Read};
use crate::device::{Device, Queue};
use crate::error::{Error, Result};
use crate::float::{DType, FloatX};
use crate::kernels;
use crate::ops::{pack, rows_per_block, warp_grid};
use crate::tensor::{Tensor, ViewMut};

/// An affine map applied while gathering.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Subtracted first.
    pub shift: f32,
    /// Multiplied next.
    pub scale: f32,
}

impl Affine {
    /// Changes nothing.
    pub const IDENTITY: Self = Self { shift: 0.0, scale: 1.0 };
}

/// `table: (V, D)`, `index: (N)` → `y: (N, D)`.
pub fn gather_forward<S: FloatX, X: FloatX>(
    table: &Tensor<S>,
    index: &[u32],
    affine: Affine,
) -> Result<Tensor<X>> {
    let (v, d) = table.rows_cols();
    check("gather_forward", index, v)?;
    let mut y = Tensor::uninit(table.device(), [index.len(), d]);
    match table.device() {
        Device::Cpu(cpu) => {
            let (y, table, isa) = (y.host_mut()?, table.host()?, cpu.isa());
            let rows = rows_per_block(d);
            cpu.each(y.chunks_mut((rows * d).max(1)).zip(index.chunks(rows)), |(y, index)| {
                isa.run(
                    #[inline(always)]
                    |_| {
                        for (y, j) in y.chunks_exact_mut(d.max(1)).zip(index) {
                            for (y, x) in y.iter_mut().zip(&table[*j as usize * d..]) {
                                *y = X::from_f32((x.to_f32() - affine.shift) * affine.scale);
                            }
                        }
                    },
                );
            });
        }
        Device::Cuda(queue) => forward_cuda(queue, &mut y, table, index, affine)?,
    }
    Ok(y)
}

/// `dy: (N, D)`, `index: (N)` → adds to `dtable: (V, D)`.
pub fn gather_backward<X: FloatX>(
    mut dtable: ViewMut<'_, f32>,
    dy: &Tensor<X>,
    index: &[u32],
    affine: Affine,
) -> Result<()> {
    const OP: &str = "gather_backward";
    let d = dy.rows_cols().1;
    dy.expect(OP, "dy", [index.len(), d])?;
    let v = dtable.shape().len() / d.max(1);
    dtable.as_view().expect(OP, "dtable", [v, d])?;
    check(OP, index, v)?;
    match dy.device() {
        Device::Cpu(cpu) => {
            let (dtable, dy, isa) = (dtable.host_mut()?, dy.host()?, cpu.isa());
            for (dy, j) in dy.chunks_exact(d.max(1)).zip(index) {
                isa.run(
                    #[inline(always)]
                    |arch| {
                        for (t, dy) in dtable[*j as usize * d..].iter_mut().zip(dy) {
                            *t = arch.fma(affine.scale, dy.to_f32(), *t);
                        }
                    },
                );
            }
        }
        Device::Cuda(queue) => {
            let place = queue.uploaded(index)?;
            let blocks = u32::try_from(index.len() * d.div_ceil(256)).unwrap_or(u32::MAX);
            let (grid, index_at) =
                (Grid { blocks: [blocks, 1, 1], threads: 256, shared: 0 }, Read::at(place.address()));
            let (n, d) = (index.len() as u32, d as u32);
            kernels::gather_backward(queue, grid, dtable.write()?, dy.read()?, index_at, n, d, affine.scale)?;
        }
    }
    Ok(())
}

fn forward_cuda<S: FloatX, X: FloatX>(
    queue: &Queue,
    y: &mut Tensor<X>,
    table: &Tensor<S>,
    index: &[u32],
    Affine { shift, scale }: Affine,
) -> Result<()> {
    let place = queue.uploaded(index)?;
    let (n, d) = y.rows_cols();
    // Packs are those of the narrower type, which is the kernel's.
    let grid = if pack::<S>() > pack::<X>() { warp_grid::<S>(n, d, 1) } else { warp_grid::<X>(n, d, 1) };
    let index = Read::at(place.address());
    let (n, d) = (n as u32, d as u32);
    let (y, table) = (y.write()?, table.read()?);
    match (S::DTYPE, X::DTYPE) {
        (from, to) if from == to => {
            kernels::gather_forward::<X>(queue, grid, y, table.retyped(), index, n, d, shift, scale)
        }
        (DType::F32, _) => {
            kernels::gather_from_f32(queue, grid, y, table.retyped(), index, n, d, shift, scale)
        }
        (_, DType::F32) => {
            kernels::gather_to_f32::<S>(queue, grid, y.retyped(), table, index, n, d, shift, scale)
        }
        (from, to) => Err(queue.lacks(&format!("gather of {from} rows as {to}"))),
    }
}

fn check(op: &'static str, index: &[u32], v: usize) -> Result<()> {
    match index.iter().find(|j| **j as usize >= v) {
        Some(j) => Err(Error::argument(op, "index", format!("numbers below {v}"), format!("{j}"))),
        None => Ok(()),
    }
}

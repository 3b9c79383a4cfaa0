//! Row gather: `y[i] = (table[index[i]] − shift) · scale`, with a cast; the way a batch leaves a data set.
//!
//! Backward: `dtable[j] += scale · Σ_{i: index[i] = j} dy[i]`, rows in the order of i: no atomics, same bits always.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::ops::rows_per_block;
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
    }
    Ok(())
}

fn check(op: &'static str, index: &[u32], v: usize) -> Result<()> {
    match index.iter().find(|j| **j as usize >= v) {
        Some(j) => Err(Error::argument(op, "index", format!("numbers below {v}"), format!("{j}"))),
        None => Ok(()),
    }
}

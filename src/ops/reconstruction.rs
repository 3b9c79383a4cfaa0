//! The autoencoder's reconstruction term, the distance to a constant target: loss and gradient in one pass.
//!
//! ```text
//! L2   ℓ_i = ‖x̂_i − x_i‖²      dx̂ = scale·2·(x̂ − x)
//! L1   ℓ_i = Σ|x̂_i − x_i|      dx̂ = scale·sign(x̂ − x), 0 where they are equal
//! ```
//! Row losses are f32; scale = 1/M for a mean over M elements.

use crate::device::Device;
use crate::device::cuda::{Grid, Read};
use crate::error::Result;
use crate::float::FloatX;
use crate::kernels;
use crate::ops::flow_loss::Scale;
use crate::ops::rows_per_block;
use crate::tensor::Tensor;

/// Residuals held on the stack at a time.
const TILE: usize = 1024;

/// How far a reconstruction is from its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    /// The square of each difference.
    L2,
    /// The magnitude of each difference.
    L1,
}

/// `x_hat: (N, D)`, `x: (N, D)` → row losses (N) and `dx_hat: (N, D)`.
///
/// # Errors
/// Another shape of `x`.
pub fn reconstruction<X: FloatX>(
    x_hat: &Tensor<X>,
    x: &Tensor<f32>,
    distance: Distance,
    scale: impl Into<Scale>,
) -> Result<(Tensor<f32>, Tensor<X>)> {
    let factor: Scale = scale.into();
    let scale = factor.number;
    let (n, d) = x_hat.rows_cols();
    x.expect("reconstruction", "x", x_hat.shape())?;
    let mut loss = Tensor::uninit(x.device(), [n]);
    let mut dx = Tensor::like(x_hat);
    match x.device() {
        Device::Cpu(cpu) => {
            let isa = cpu.isa();
            let rows = rows_per_block(d);
            let outputs = dx.host_mut()?.chunks_mut((rows * d).max(1)).zip(loss.host_mut()?.chunks_mut(rows));
            let inputs = x_hat.host()?.chunks((rows * d).max(1)).zip(x.host()?.chunks((rows * d).max(1)));
            cpu.each(outputs.zip(inputs), |((dx, loss), (x_hat, x))| {
                isa.run(
                    #[inline(always)]
                    |arch| {
                        let rows = dx.chunks_exact_mut(d.max(1)).zip(loss);
                        let rows = rows.zip(x_hat.chunks_exact(d.max(1))).zip(x.chunks_exact(d.max(1)));
                        for (((dx, loss), x_hat), x) in rows {
                            *loss = 0.0;
                            let mut r = [0.0f32; TILE];
                            let tiles = dx.chunks_mut(TILE).zip(x_hat.chunks(TILE)).zip(x.chunks(TILE));
                            for ((dx, x_hat), x) in tiles {
                                let r = &mut r[..dx.len()];
                                for ((r, x_hat), x) in r.iter_mut().zip(x_hat).zip(x) {
                                    *r = x_hat.to_f32() - x;
                                }
                                match distance {
                                    Distance::L2 => {
                                        *loss += arch.dot(r, r);
                                        for (dx, r) in dx.iter_mut().zip(r) {
                                            *dx = X::from_f32(2.0 * scale * *r);
                                        }
                                    }
                                    Distance::L1 => {
                                        for (dx, r) in dx.iter_mut().zip(r.iter_mut()) {
                                            let sign = sign(*r);
                                            *dx = X::from_f32(scale * sign);
                                            *r *= sign;
                                        }
                                        *loss += arch.sum(r);
                                    }
                                }
                            }
                        }
                    },
                );
            });
        }
        Device::Cuda(queue) => {
            let grid = Grid::covering(32 * n, 1, 256);
            let (loss, dx) = (loss.write()?, dx.write()?);
            let (factor, n, d) = (Read::at(factor.address()), n as u32, d as u32);
            let (x_hat, x, l1) = (x_hat.read()?, x.read()?, (distance == Distance::L1) as u32);
            kernels::reconstruction(queue, grid, loss, dx, x_hat, x, n, d, l1, scale, factor)?;
        }
    }
    Ok((loss, dx))
}

/// Returns −1, 0 or 1; NaN of NaN.
#[inline(always)]
fn sign(x: f32) -> f32 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        x
    }
}

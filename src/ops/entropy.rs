//! The entropy of a batch of rows, by the distances to their k-th neighbours, with its gradient.
//!
//! With n rows y_i in D dimensions and r_i the distance from y_i to its k-th nearest among the others, j(i) (Kozachenko and Leonenko 1987;
//! for any k Goria et al. 2005):
//!
//! ```text
//! H = ψ(n) − ψ(k) + ln V_D + (D/n)·Σ_i ln r_i          V_D = π^{D/2}/Γ(D/2 + 1), the volume of the unit ball; H in nats
//! ∂H/∂y_a = (D/n)·[ (y_a − y_j(a))/r_a² + Σ_{i: j(i) = a} (y_a − y_i)/r_i² ]
//! ```
//! The gradient is exact wherever H has one: which row is the k-th neighbour changes only where two distances are equal. Rows that
//! coincide with k others have no direction to move in: their r counts as 10⁻¹⁰ in H, and pushes nobody. Kernels:
//! `kernels/entropy.cu`.

use crate::device::cuda::{Grid, Read};
use crate::device::{Cpu, Device, Queue};
use crate::error::Result;
use crate::kernels;
use crate::ops::flow_loss::Scale;
use crate::ops::knn::{Neighbours, Own, knn};
use crate::tensor::Tensor;

/// The least distance that counts as one: its square is far from the end of f32's range.
const FLOOR: f32 = 1e-10;

/// What the estimate needs of each row.
#[derive(Debug)]
pub struct Entropy {
    /// Contributions (N): H is their mean.
    pub rows: Tensor<f32>,
    /// The number of the k-th neighbour, (N).
    kth: Tensor<f32>,
    /// 1/r², (N); 0 where r is no more than the floor.
    inverse: Tensor<f32>,
}

/// `y: (N, D)` → the estimate of the entropy that its rows are draws of; `ln_volume` is ln V_D + ψ(N) − ψ(k).
///
/// # Errors
/// `k` that is not below N, or one that [`knn`] refuses.
pub fn entropy_forward(y: &Tensor<f32>, k: usize, ln_volume: f64) -> Result<Entropy> {
    let (n, d) = y.rows_cols();
    let Neighbours { distances, numbers } = knn(y, y, k, Own::LeftOut)?;
    let one = || Tensor::uninit(y.device(), [n]);
    let mut found = Entropy { rows: one(), kth: one(), inverse: one() };
    let (constant, dimensions) = (ln_volume as f32, d as f32);
    match y.device() {
        Device::Cpu(_) => {
            let rows = found.rows.host_mut()?.iter_mut();
            let rows = rows.zip(found.kth.host_mut()?).zip(found.inverse.host_mut()?);
            let of = distances.host()?.chunks_exact(k).zip(numbers.host()?.chunks_exact(k));
            for (((row, kth), inverse), (distances, numbers)) in rows.zip(of) {
                let r = distances[k - 1];
                let near = r <= FLOOR;
                *row = (constant as f64 + d as f64 * (if near { FLOOR } else { r } as f64).ln()) as f32;
                *inverse = if near { 0.0 } else { 1.0 / (r * r) };
                *kth = numbers[k - 1];
            }
        }
        Device::Cuda(queue) => {
            let (grid, n, k) = (Grid::covering(n, 1, 256), n as u32, k as u32);
            let Entropy { rows, kth, inverse } = &mut found;
            let (rows, kth, inverse) = (rows.write()?, kth.write()?, inverse.write()?);
            let (distances, numbers) = (distances.read()?, numbers.read()?);
            kernels::entropy_rows(
                queue, grid, rows, kth, inverse, distances, numbers, n, k, dimensions, constant, FLOOR,
            )?;
        }
    }
    Ok(found)
}

/// `y: (N, D)` and what [`entropy_forward`] found of it: adds `scale`·∂H/∂y to `dy: (N, D)`.
///
/// # Errors
/// Another shape.
pub fn entropy_backward(
    dy: &mut Tensor<f32>,
    y: &Tensor<f32>,
    found: &Entropy,
    scale: impl Into<Scale>,
) -> Result<()> {
    const OP: &str = "entropy_backward";
    let (n, d) = y.rows_cols();
    dy.expect(OP, "dy", y.shape())?;
    found.rows.expect(OP, "found", [n])?;
    let scale = scale.into().times(d as f32 / n as f32);
    match y.device() {
        Device::Cpu(cpu) => backward_cpu(cpu, dy, y, found, scale.number),
        Device::Cuda(queue) => backward_cuda(queue, dy, y, found, scale),
    }
}

/// Adds pair by pair, in the order of the rows.
fn backward_cpu(cpu: &Cpu, dy: &mut Tensor<f32>, y: &Tensor<f32>, found: &Entropy, scale: f32) -> Result<()> {
    let ((_, d), y, isa) = (y.rows_cols(), y.host()?, cpu.isa());
    let (kth, inverse, dy) = (found.kth.host()?, found.inverse.host()?, dy.host_mut()?);
    isa.run(
        #[inline(always)]
        |arch| {
            for (i, (kth, inverse)) in kth.iter().zip(inverse).enumerate() {
                let (own, other, push) = (i * d, *kth as usize * d, scale * inverse);
                for c in 0..d {
                    let apart = y[own + c] - y[other + c];
                    dy[own + c] = arch.fma(push, apart, dy[own + c]);
                    dy[other + c] = arch.fma(-push, apart, dy[other + c]);
                }
            }
        },
    );
    Ok(())
}

fn backward_cuda(
    queue: &Queue,
    dy: &mut Tensor<f32>,
    y: &Tensor<f32>,
    found: &Entropy,
    scale: Scale,
) -> Result<()> {
    let (n, d) = y.rows_cols();
    let grid = Grid::covering(32 * n * d.div_ceil(32), 1, 256); // a lane has one column
    let (kth, inverse, factor) = (found.kth.read()?, found.inverse.read()?, Read::at(scale.address()));
    let (dy, y) = (dy.write()?, y.read()?);
    kernels::entropy_backward(queue, grid, dy, y, kth, inverse, n as u32, d as u32, scale.number, factor)
}

//! Dot products of rows: `y_i = Σ_j a_ij·b_ij`.
//!
//! With a probe `a` and `b = Jᵀa` it is a row's estimate of tr J; with `a = b` the squared norm that a normal density needs.
//! Both operands and the sum are f32. Kernels: `kernels/row_dot.cu`.

use crate::device::Device;
use crate::device::cuda::Grid;
use crate::error::Result;
use crate::kernels;
use crate::ops::rows_per_block;
use crate::tensor::Tensor;

/// `a, b: (N, D)` → `y: (N)`.
pub fn row_dot(a: &Tensor<f32>, b: &Tensor<f32>) -> Result<Tensor<f32>> {
    let (n, d) = a.rows_cols();
    b.expect("row_dot", "b", a.shape())?;
    let mut y = Tensor::uninit(a.device(), [n]);
    match a.device() {
        Device::Cpu(cpu) => {
            let (isa, rows, width) = (cpu.isa(), rows_per_block(d), d.max(1));
            let inputs = a.host()?.chunks(rows * width).zip(b.host()?.chunks(rows * width));
            cpu.each(y.host_mut()?.chunks_mut(rows).zip(inputs), |(y, (a, b))| {
                isa.run(
                    #[inline(always)]
                    |arch| {
                        for ((y, a), b) in y.iter_mut().zip(a.chunks_exact(width)).zip(b.chunks_exact(width))
                        {
                            *y = arch.dot(a, b);
                        }
                    },
                );
            });
        }
        Device::Cuda(queue) => {
            let grid = Grid::covering(32 * n, 1, 256);
            kernels::row_dot(queue, grid, y.write()?, a.read()?, b.read()?, n as u32, d as u32)?;
        }
    }
    Ok(y)
}

//! Global gradient norm ‖g‖₂ over a flat buffer, and the factor that clips it.
//!
//! Squares are added in f64 over fixed blocks, so the norm has the same bits on any number of threads; a NaN or ∞
//! anywhere makes it non-finite, which is how a bad step is found before it touches the weights. On CUDA they are added in
//! pairs of f32 (`kernels/pair.cuh`): norms from 1.8·10¹⁹ on are not finite there.

use crate::device::cuda::{DeviceBuf, Grid, Read, Write};
use crate::device::{Device, Queue};
use crate::error::Result;
use crate::float::join;
use crate::kernels;
use crate::tensor::Tensor;

/// Elements in one partial sum.
const BLOCK: usize = 1 << 16;

/// Elements that are added in f32 before f64 takes over: an error of a few units in the last place of f32.
const CHUNK: usize = 1024;

const PAIR: usize = size_of::<[f32; 2]>();

/// Returns ‖unscale · g‖₂.
pub fn grad_norm(g: &Tensor<f32>, unscale: f32) -> Result<f64> {
    match g.device() {
        Device::Cpu(cpu) => {
            let isa = cpu.isa();
            let g = g.host()?;
            let block = |xs: &[f32]| -> f64 {
                isa.run(
                    #[inline(always)]
                    |arch| xs.chunks(CHUNK).map(|xs| arch.dot(xs, xs) as f64).sum(),
                )
            };
            let mut partials =
                Tensor::<f32>::uninit(&Device::Cpu(cpu.clone()), [2 * g.len().div_ceil(BLOCK)]);
            let partials: &mut [f64] = bytemuck::cast_slice_mut(partials.host_mut()?);
            cpu.each(partials.iter_mut().zip(g.chunks(BLOCK)), |(p, xs)| *p = block(xs));
            Ok(partials.iter().sum::<f64>().sqrt() * unscale as f64)
        }
        Device::Cuda(queue) => Ok(sum_of_squares(queue, g)?.sqrt() * unscale as f64),
    }
}

fn sum_of_squares(queue: &Queue, g: &Tensor<f32>) -> Result<f64> {
    let (sums, blocks) = partial_squares(queue, g)?;
    let total = sums.address() + blocks as u64 * PAIR as u64;
    let one = Grid { blocks: [1, 1, 1], threads: 256, shared: 0 };
    kernels::finish(queue, one, Write::at(total), Read::at(sums.address()), blocks)?;
    let mut sum = [0.0; 2];
    queue.download(&mut sum, total)?;
    Ok(join(sum))
}

/// Returns the sums of squares of fixed blocks, pairs of f32 with room for one more behind them, and their number.
pub(crate) fn partial_squares(queue: &Queue, g: &Tensor<f32>) -> Result<(DeviceBuf, u32)> {
    let blocks = g.len().div_ceil(BLOCK);
    let sums = queue.block((blocks + 1) * PAIR)?;
    let grid = Grid { blocks: [blocks as u32, 1, 1], threads: 256, shared: 0 };
    kernels::squares(queue, grid, Write::at(sums.address()), g.read()?, g.len() as u64)?;
    Ok((sums, blocks as u32))
}

/// Returns min(1, max_norm / (norm + 1e-6)), PyTorch's clip factor; 1 when `max_norm` is 0 (no clipping). NaN for NaN.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    let factor = max_norm / (norm + 1e-6);
    if max_norm == 0.0 || factor > 1.0 { 1.0 } else { factor } // `min` would hide a NaN
}

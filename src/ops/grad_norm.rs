//! Global gradient norm ‖g‖₂ over a flat buffer, and the factor that clips it.
//!
//! Squares are added in f64 over fixed blocks, so the norm has the same bits on any number of threads; a NaN or ∞
//! anywhere makes it non-finite, which is how a bad step is found before it touches the weights.

use crate::device::Device;
use crate::error::Result;
use crate::tensor::Tensor;

/// Elements in one partial sum.
const BLOCK: usize = 1 << 16;

/// Elements that are added in f32 before f64 takes over: an error of a few units in the last place of f32.
const CHUNK: usize = 1024;

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
    }
}

/// Returns min(1, max_norm / (norm + 1e-6)), PyTorch's clip factor; 1 when `max_norm` is 0 (no clipping). NaN for NaN.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    let factor = max_norm / (norm + 1e-6);
    if max_norm == 0.0 || factor > 1.0 { 1.0 } else { factor } // `min` would hide a NaN
}

//! Sinusoidal timestep embedding (FEATURES 1.7): `e(t) = [cos(s·t·ω), sin(s·t·ω)]`, cosines first.
//!
//! `ω_i = 10000^(−i/half)`, half = H/2 (an odd H ends in a zero), `s` the time scale (1 in the reference). No
//! parameters; t is drawn, not learned, so there is no backward.

use crate::device::Device;
use crate::device::cuda::Grid;
use crate::error::Result;
use crate::float::FloatX;
use crate::kernels;
use crate::ops::pack;
use crate::tensor::Tensor;

/// Longest wavelength of the embedding, in units of t / 2π.
const MAX_PERIOD: f64 = 10_000.0;

/// Rows of a task: sines and cosines take some ten microseconds.
const ROWS: usize = 8;

/// `t: (G)` → `e: (G, H)`.
pub fn timestep_embedding<X: FloatX>(t: &Tensor<f32>, h: usize, time_scale: f32) -> Result<Tensor<X>> {
    let g = t.len();
    t.expect("timestep_embedding", "t", [g])?;
    let mut e = Tensor::uninit(t.device(), [g, h]);
    match t.device() {
        Device::Cpu(cpu) => {
            let frequencies = frequencies(h / 2);
            let (e, t) = (e.host_mut()?, t.host()?);
            cpu.each(e.chunks_mut((ROWS * h).max(1)).zip(t.chunks(ROWS)), |(e, t)| {
                let rows = e.chunks_exact_mut(h.max(1)).zip(t);
                rows.for_each(|(e, t)| embed(e, t * time_scale, &frequencies));
            });
        }
        Device::Cuda(queue) => {
            let frequencies = queue.constant(&frequencies(h / 2))?;
            // A half of whole packs is a row of whole packs; any other row goes one by one.
            let each = if h.is_multiple_of(2 * pack::<X>()) { pack::<X>() } else { 1 };
            let grid = Grid::covering(32 * g * h.div_ceil(2).div_ceil(32 * each), 1, 256);
            let (g, h) = (g as u32, h as u32);
            kernels::timestep_embedding(queue, grid, e.write()?, t.read()?, frequencies, g, h, time_scale)?;
        }
    }
    Ok(e)
}

fn frequencies(half: usize) -> Vec<f32> {
    (0..half).map(|i| (-(MAX_PERIOD.ln()) * i as f64 / half as f64).exp() as f32).collect()
}

fn embed<X: FloatX>(e: &mut [X], t: f32, frequencies: &[f32]) {
    let half = frequencies.len();
    for (i, w) in frequencies.iter().enumerate() {
        let (sin, cos) = (t * w).sin_cos();
        (e[i], e[half + i]) = (X::from_f32(cos), X::from_f32(sin));
    }
    e[2 * half..].fill(X::from_f32(0.0));
}

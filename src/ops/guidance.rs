//! The guided velocity: `v = s·v_weak + w·(v_strong − s·v_weak)`, row by row.
//!
//! Classifier-free guidance (v_strong with its condition, v_weak without one) and autoguidance (v_weak of a weaker network) have
//! s = 1. CFG-Zero* (arXiv 2503.18886) projects: `s = ⟨v_strong, v_weak⟩ / (‖v_weak‖² + 1e-8)`, a number for each row, which is a
//! sample. All columns are guided. The sum of a row is f32, in a fixed order. Kernels: `kernels/guidance.cu`.

use crate::device::cuda::Grid;
use crate::device::{Arch, Device};
use crate::error::Result;
use crate::float::FloatX;
use crate::kernels;
use crate::ops::{rows_per_block, widen};
use crate::tensor::Tensor;

/// What v_weak is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeakScale {
    /// Nothing: s = 1.
    One,
    /// Each row's least-squares factor, CFG-Zero*'s s*.
    Projected,
}

/// Added to ‖v_weak‖², so that a row of zeros has s = 0: the authors' number.
const EPS: f32 = 1e-8;

/// Numbers of a row that are widened at a time.
const TILE: usize = 1024;

/// `strong, weak: (N, D)` → `v: (N, D)` in f32, the type of a sampler's state.
pub fn guidance<X: FloatX>(
    strong: &Tensor<X>,
    weak: &Tensor<X>,
    w: f32,
    scale: WeakScale,
) -> Result<Tensor<f32>> {
    let (n, d) = strong.rows_cols();
    weak.expect("guidance", "weak", strong.shape())?;
    let mut v = Tensor::uninit(strong.device(), strong.shape());
    match strong.device() {
        Device::Cpu(cpu) => {
            let (isa, width) = (cpu.isa(), d.max(1));
            let block = rows_per_block(d) * width;
            let inputs = strong.host()?.chunks(block).zip(weak.host()?.chunks(block));
            cpu.each(v.host_mut()?.chunks_mut(block).zip(inputs), |(v, (strong, weak))| {
                isa.run(
                    #[inline(always)]
                    |arch| {
                        let rows = strong.chunks_exact(width).zip(weak.chunks_exact(width));
                        for (v, (strong, weak)) in v.chunks_exact_mut(width).zip(rows) {
                            guide_row(arch, v, strong, weak, w, scale);
                        }
                    },
                );
            });
        }
        Device::Cuda(queue) => {
            let grid = Grid::covering(32 * n, 1, 256);
            let (v, strong, weak) = (v.write()?, strong.read()?, weak.read()?);
            let projected = (scale == WeakScale::Projected) as u32;
            kernels::guidance(queue, grid, v, strong, weak, n as u32, d as u32, w, projected)?;
        }
    }
    Ok(v)
}

#[inline(always)]
fn guide_row<X: FloatX>(arch: Arch, v: &mut [f32], strong: &[X], weak: &[X], w: f32, scale: WeakScale) {
    let s = match scale {
        WeakScale::One => 1.0,
        WeakScale::Projected => projection(arch, strong, weak),
    };
    for ((v, strong), weak) in v.iter_mut().zip(strong).zip(weak) {
        let weak = s * weak.to_f32();
        *v = arch.fma(w, strong.to_f32() - weak, weak);
    }
}

/// Returns ⟨strong, weak⟩ / (‖weak‖² + eps).
#[inline(always)]
fn projection<X: FloatX>(arch: Arch, strong: &[X], weak: &[X]) -> f32 {
    let (mut product, mut square) = (0.0, 0.0);
    let (mut a, mut b) = ([0.0f32; TILE], [0.0f32; TILE]);
    for (strong, weak) in strong.chunks(TILE).zip(weak.chunks(TILE)) {
        let (a, b) = (&mut a[..strong.len()], &mut b[..weak.len()]);
        widen(a, strong);
        widen(b, weak);
        product += arch.dot(a, b);
        square += arch.dot(b, b);
    }
    product / (square + EPS)
}

//! One step of a stochastic sampler: `x ← a·x + b·v + c·noise`, all f32.
//!
//! The noise is drawn in place from the counter (step, sample, replica, element) and never stored, so a sample's path depends on
//! its number alone. With c = 0 nothing is drawn. Kernels: `kernels/sde_step.cu`.

use crate::device::cuda::Read;
use crate::device::{Cpu, Device};
use crate::error::Result;
use crate::kernels;
use crate::ops::flow_path::Rows;
use crate::ops::{rows_per_block, warp_grid};
use crate::rng::Draw;
use crate::tensor::Tensor;

/// What the state, the velocity and the noise are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// Of the state, a.
    pub x: f32,
    /// Of the velocity, b.
    pub v: f32,
    /// Of the noise, c.
    pub noise: f32,
}

/// `x, v: (N, D)`; row i has the noise of `rows.address(i)`.
pub fn sde_step(
    x: &mut Tensor<f32>,
    v: &Tensor<f32>,
    factors: Factors,
    noise: Draw,
    rows: Rows,
) -> Result<()> {
    const OP: &str = "sde_step";
    rows.check(OP)?;
    let d = x.rows_cols().1;
    x.expect(OP, "x", [rows.len(), d])?;
    v.expect(OP, "v", [rows.len(), d])?;
    match x.device().clone() {
        Device::Cpu(cpu) => step_cpu(&cpu, x.host_mut()?, v.host()?, d, factors, noise, rows),
        Device::Cuda(queue) => {
            let grid = warp_grid::<f32>(rows.len(), d, 4);
            let ([key0, key1], step, counter) = (noise.key(), noise.step(), Read::at(noise.added()));
            let (n, b, d) = (rows.len() as u32, rows.samples as u32, d as u32);
            let (x, v) = (x.write()?, v.read()?);
            let Factors { x: a, v: slope, noise: c } = factors;
            kernels::sde_step(
                &queue, grid, x, v, key0, key1, step, counter, rows.first, n, b, d, a, slope, c,
            )?;
        }
    }
    Ok(())
}

fn step_cpu(cpu: &Cpu, x: &mut [f32], v: &[f32], d: usize, factors: Factors, noise: Draw, rows: Rows) {
    let (isa, block, width) = (cpu.isa(), rows_per_block(d), d.max(1));
    let Factors { x: a, v: b, noise: c } = factors;
    cpu.each(x.chunks_mut(block * width).zip(v.chunks(block * width)).enumerate(), |(i, (x, v))| {
        isa.run(
            #[inline(always)]
            |arch| {
                for (x, v) in x.iter_mut().zip(v) {
                    *x = arch.fma(b, *v, a * *x);
                }
                if c == 0.0 {
                    return;
                }
                let range = i * block..i * block + x.len() / width;
                let first = range.start;
                noise.for_each_normal_row(
                    arch,
                    range,
                    d,
                    #[inline(always)]
                    |i| rows.address(i),
                    #[inline(always)]
                    |i, column, noise| {
                        let x = &mut x[(i - first) * d + column..][..noise.len()];
                        for (x, noise) in x.iter_mut().zip(noise) {
                            *x = arch.fma(c, *noise, *x);
                        }
                    },
                );
            },
        );
    });
}

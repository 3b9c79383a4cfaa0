//! The flow path: the one owner of the time convention. **Data at t = 1, noise at t = 0.**
//!
//! ```text
//! x_t = (1 − t)·noise + t·data          target velocity u = data − noise
//! ```
//! Noise is drawn inside the kernels from the counter (step, sample, replica, element) and is never stored: the loss
//! draws the same numbers again. `flow_mul` (FEATURES 1.1) is index arithmetic: row i of the N = samples · replicas
//! rows is sample `i mod samples`, replica `i div samples`, the reference's order of tiling.

use crate::device::cuda::{Grid, Read};
use crate::device::{Cpu, Device, Queue};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::kernels;
use crate::ops::{rows_per_block, warp_grid};
use crate::rng::{Draw, MAX_REPLICAS};
use crate::tensor::Tensor;

/// Returns x_t.
#[inline(always)]
pub fn interpolant(noise: f32, data: f32, t: f32) -> f32 {
    (1.0 - t) * noise + t * data
}

/// Returns the velocity that the network is fitted to.
#[inline(always)]
pub fn target_velocity(noise: f32, data: f32) -> f32 {
    data - noise
}

/// Says which rows of the global batch a tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Number of the first sample in the global batch.
    pub first: u64,
    /// Samples, B.
    pub samples: usize,
    /// Copies of each sample, each with a noise and a time of its own (`flow_mul`).
    pub replicas: usize,
    /// Consecutive rows that share one t; 1 unless modulation is grouped.
    pub share: usize,
}

impl Rows {
    /// Describes a batch of `samples` samples, one row each.
    pub fn plain(samples: usize) -> Self {
        Self { first: 0, samples, replicas: 1, share: 1 }
    }

    /// Returns the number of rows, N.
    pub fn len(&self) -> usize {
        self.samples * self.replicas
    }

    /// Says whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of times that are drawn, N / share.
    pub fn times(&self) -> usize {
        self.len() / self.share.max(1)
    }

    /// Returns (sample in the global batch, replica) of row i.
    #[inline(always)]
    pub fn address(&self, i: usize) -> (u64, u32) {
        (self.first + (i % self.samples) as u64, (i / self.samples) as u32)
    }

    /// Checks that rows can be addressed and shared.
    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        if self.replicas == 0 || self.replicas > MAX_REPLICAS {
            let expected = format!("1 to {MAX_REPLICAS} replicas");
            return Err(Error::argument(op, "rows", expected, format!("{} replicas", self.replicas)));
        }
        if self.share == 0 || !self.samples.is_multiple_of(self.share) {
            let expected = format!("a number of samples that {} rows of one t divide", self.share);
            return Err(Error::argument(op, "rows", expected, format!("{} samples", self.samples)));
        }
        Ok(())
    }
}

/// How the times of a batch are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TimeSampler {
    /// Independent, uniform.
    Uniform,
    /// One time in each of `total` equal strata of the global batch, under a rotation that is new in every step.
    Stratified {
        /// Times in the global batch; all micro-batches together.
        total: usize,
        /// Samples in the global batch.
        samples: usize,
    },
    /// t = σ(mean + std·normal).
    LogitNormal {
        /// Mean of the logit.
        mean: f32,
        /// Standard deviation of the logit.
        std: f32,
    },
}

/// Draws `t: (N / share)`, mapped to [range.0, range.1].
pub fn draw_times(
    device: &Device,
    draw: Draw,
    rows: Rows,
    sampler: TimeSampler,
    range: (f32, f32),
) -> Result<Tensor<f32>> {
    rows.check("draw_times")?;
    let mut t = Tensor::uninit(device, [rows.times()]);
    match device {
        Device::Cpu(cpu) => {
            let isa = cpu.isa();
            for (g, t) in t.host_mut()?.iter_mut().enumerate() {
                let (sample, replica) = rows.address(g * rows.share);
                let u = match sampler {
                    TimeSampler::Uniform => draw.uniform(sample, replica),
                    TimeSampler::Stratified { total, samples } => {
                        let stratum = (replica as usize * samples + sample as usize) / rows.share;
                        let rotation = draw.uniform(u32::MAX as u64, 0) as f64;
                        let u =
                            (stratum as f64 + draw.uniform(sample, replica) as f64) / total as f64 + rotation;
                        u.fract() as f32
                    }
                    TimeSampler::LogitNormal { mean, std } => {
                        let mut z = [0.0];
                        isa.run(
                            #[inline(always)]
                            |arch| {
                                draw.fill_normal(arch, &mut z, sample, replica);
                                arch.sigmoid(mean + std * z[0])
                            },
                        )
                    }
                };
                *t = range.0 + (range.1 - range.0) * u;
            }
        }
        Device::Cuda(queue) => draw_times_cuda(queue, &mut t, draw, rows, sampler, range)?,
    }
    Ok(t)
}

/// `data: (B, D)`, `t: (N / share)` → `x_t: (N, D)`; the noise is drawn in place.
///
/// The gradient with respect to data is in [`crate::ops::flow_loss::latent_gradient`], where it meets the target's.
pub fn interpolate<X: FloatX>(
    data: &Tensor<f32>,
    t: &Tensor<f32>,
    noise: Draw,
    rows: Rows,
) -> Result<Tensor<X>> {
    const OP: &str = "interpolate";
    rows.check(OP)?;
    let d = data.rows_cols().1;
    data.expect(OP, "data", [rows.samples, d])?;
    t.expect(OP, "t", [rows.times()])?;
    let mut x_t = Tensor::uninit(data.device(), [rows.len(), d]);
    match data.device() {
        Device::Cpu(cpu) => interpolate_cpu(cpu, x_t.host_mut()?, data.host()?, t.host()?, noise, rows),
        Device::Cuda(queue) => {
            let grid = warp_grid::<X>(rows.len(), d, 4);
            let ([key0, key1], step) = (noise.key(), noise.step());
            let (n, b, share) = (rows.len() as u32, rows.samples as u32, rows.share as u32);
            let (x_t, data, t) = (x_t.write()?, data.read()?, t.read()?);
            let counter = Read::at(noise.added());
            kernels::interpolate(
                queue, grid, x_t, data, t, key0, key1, step, counter, rows.first, n, b, share, d as u32,
            )?;
        }
    }
    Ok(x_t)
}

fn draw_times_cuda(
    queue: &Queue,
    t: &mut Tensor<f32>,
    draw: Draw,
    rows: Rows,
    sampler: TimeSampler,
    (low, high): (f32, f32),
) -> Result<()> {
    let (kind, total, global, mean, std) = match sampler {
        TimeSampler::Uniform => (0, 1, 0, 0.0, 0.0),
        TimeSampler::Stratified { total, samples } => (1, total, samples, 0.0, 0.0),
        TimeSampler::LogitNormal { mean, std } => (2, 1, 0, mean, std),
    };
    // Strata go round: whole turns of `total·share` rows are taken off, so that the kernel's numbers have 32 bits.
    let turn = total.saturating_mul(rows.share);
    let offset = (rows.first % turn as u64) as usize;
    let last = (rows.replicas - 1).saturating_mul(global).saturating_add(offset + rows.samples);
    if u32::try_from(last.max(turn)).is_err() {
        let expected = "at most 2³² rows in the global batch";
        return Err(Error::argument("draw_times", "sampler", expected, format!("{}", last.max(turn))));
    }
    let (total, global, offset) = (total as u32, global as u32, offset as u32);
    let ([key0, key1], step, counter) = (draw.key(), draw.step(), Read::at(draw.added()));
    let (times, b, share) = (rows.times() as u32, rows.samples as u32, rows.share as u32);
    let (grid, t, first) = (Grid::covering(rows.times(), 1, 256), t.write()?, rows.first);
    kernels::draw_times(
        queue, grid, t, key0, key1, step, counter, first, times, b, share, kind, total, global, offset, mean,
        std, low, high,
    )
}

fn interpolate_cpu<X: FloatX>(cpu: &Cpu, x_t: &mut [X], data: &[f32], t: &[f32], noise: Draw, rows: Rows) {
    let d = data.len() / rows.samples.max(1);
    let block = rows_per_block(d);
    let isa = cpu.isa();
    cpu.each(x_t.chunks_mut((block * d).max(1)).enumerate(), |(b, x_t)| {
        isa.run(
            #[inline(always)]
            |arch| {
                let range = b * block..b * block + x_t.len() / d;
                let first = range.start;
                noise.for_each_normal_row(
                    arch,
                    range,
                    d,
                    #[inline(always)]
                    |i| rows.address(i),
                    #[inline(always)]
                    |i, column, noise| {
                        let t = t[i / rows.share];
                        let data = &data[i % rows.samples * d + column..][..noise.len()];
                        let out = &mut x_t[(i - first) * d + column..][..noise.len()];
                        for ((x, n), y) in out.iter_mut().zip(noise).zip(data) {
                            *x = X::from_f32(interpolant(*n, *y, t));
                        }
                    },
                );
            },
        );
    });
}

//! The flow path: the one owner of the time convention. **Data at t = 1, noise at t = 0.**
//!
//! ```text
//! x_t = (1 − t)·noise + t·data          target velocity u = data − noise
//! ```
//! Noise is drawn inside the kernels from the counter (step, sample, replica, element) and is never stored: the loss
//! draws the same numbers again. `flow_mul` (FEATURES 1.1) is index arithmetic: row i of the N = samples · replicas
//! rows is sample `i mod samples`, replica `i div samples`, the reference's order of tiling.
//!
//! Times are uniform, stratified, logit-normal, or drawn by a density (importance sampling): t by p(t) = w(t)/∫w makes the mean of
//! f(t)·∫w what the mean of f(t)·w(t) is by uniform times.

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
#[derive(Clone, Copy, Debug)]
pub enum TimeSampler<'a> {
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
    /// In proportion to a density. Always one time in each of `total` strata of equal probability: that costs nothing, the time of each row
    /// has the same distribution as without, and what is spent on one stratum is not missing in another.
    Density {
        /// The density.
        density: &'a TimeDensity,
        /// As [`TimeSampler::Stratified`] has them.
        total: usize,
        /// As [`TimeSampler::Stratified`] has them.
        samples: usize,
    },
}

/// A piecewise linear density of times, with the exact inverse of its integral.
///
/// Between two knots the density is p + q·s, s the distance from the left one, and a share P of the times lies left of that: the share u
/// lies left of s = 2(u − P)/(p + √(p² + 2q(u − P))), which has no difference of like numbers.
#[derive(Debug)]
pub struct TimeDensity {
    /// For each knot: the share of the times below it, t, the density, twice its slope up to the next knot.
    cells: Vec<[f32; 4]>,
    /// The same (knots, 4), where kernels read it.
    on_device: Tensor<f32>,
    /// The mean of what the density is in proportion to.
    mean: f32,
}

impl TimeDensity {
    /// Makes the density in proportion to a function that is linear between `knots`, pairs of t and its value there, t ascending.
    ///
    /// # Errors
    /// Fewer than two knots; times that do not ascend within [0, 1]; values that are negative, not finite, or all 0.
    pub fn new(device: &Device, knots: &[(f32, f64)]) -> Result<Self> {
        const OP: &str = "time_density";
        let (Some(first), Some(last)) = (knots.first(), knots.last()) else {
            return Err(Error::argument(OP, "knots", "at least 2", "none"));
        };
        let ascends = knots.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if knots.len() < 2 || !ascends || first.0 < 0.0 || last.0 > 1.0 {
            let found = format!("{} from {} to {}", knots.len(), first.0, last.0);
            return Err(Error::argument(OP, "knots", "at least 2, t ascending from 0 to 1", found));
        }
        if let Some((t, value)) = knots.iter().find(|(_, value)| !value.is_finite() || *value < 0.0) {
            return Err(Error::argument(OP, "values", "finite numbers from 0 on", format!("{value} at {t}")));
        }
        let width = |pair: &[(f32, f64)]| pair[1].0 as f64 - pair[0].0 as f64;
        let mass: Vec<f64> =
            knots.windows(2).map(|pair| 0.5 * (pair[0].1 + pair[1].1) * width(pair)).collect();
        let total: f64 = mass.iter().sum();
        if total <= 0.0 {
            return Err(Error::argument(OP, "values", "one above 0", "only 0"));
        }
        let (mut cells, mut below) = (Vec::with_capacity(knots.len()), 0.0);
        for (pair, mass) in knots.windows(2).zip(&mass) {
            let slope = (pair[1].1 - pair[0].1) / width(pair);
            let numbers = [below / total, pair[0].0 as f64, pair[0].1 / total, 2.0 * slope / total];
            cells.push(numbers.map(|x| x as f32));
            below += mass;
        }
        cells.push([1.0, last.0, (last.1 / total) as f32, 0.0]);
        let on_device = Tensor::from_f32(device, [cells.len(), 4], cells.as_flattened())?;
        Ok(Self { cells, on_device, mean: (total / (last.0 as f64 - first.0 as f64)) as f32 })
    }

    /// Returns the mean over t of what the density is in proportion to: a mean of f by times of this density, times this, is the mean by
    /// uniform times of f times that.
    pub fn mean(&self) -> f32 {
        self.mean
    }

    /// Returns the smallest and the largest time.
    pub fn range(&self) -> (f32, f32) {
        let [first, .., last] = self.cells[..] else { return (0.0, 1.0) };
        (first[1], last[1])
    }

    /// Returns the time below which the share u of the times lies.
    fn quantile(&self, u: f32) -> f32 {
        let left = self.cells[1..self.cells.len() - 1].partition_point(|cell| cell[0] <= u);
        let [below, t, density, slope] = self.cells[left];
        let rest = u - below;
        if rest <= 0.0 {
            return t;
        }
        let root = (density * density + slope * rest).max(0.0).sqrt();
        (t + 2.0 * rest / (density + root)).min(self.cells[left + 1][1])
    }
}

/// Draws `t: (N / share)`, mapped to [range.0, range.1], which a density must span.
pub fn draw_times(
    device: &Device,
    draw: Draw,
    rows: Rows,
    sampler: TimeSampler<'_>,
    range: (f32, f32),
) -> Result<Tensor<f32>> {
    rows.check("draw_times")?;
    if let TimeSampler::Density { density, .. } = sampler
        && density.range() != range
    {
        return Err(Error::argument(
            "draw_times",
            "sampler",
            format!("times {range:?}"),
            format!("{:?}", density.range()),
        ));
    }
    let mut t = Tensor::uninit(device, [rows.times()]);
    match device {
        Device::Cpu(cpu) => {
            let isa = cpu.isa();
            for (g, t) in t.host_mut()?.iter_mut().enumerate() {
                let (sample, replica) = rows.address(g * rows.share);
                let stratified = |total: usize, samples: usize| {
                    let stratum = (replica as usize * samples + sample as usize) / rows.share;
                    let rotation = draw.uniform(u32::MAX as u64, 0) as f64;
                    let u = (stratum as f64 + draw.uniform(sample, replica) as f64) / total as f64 + rotation;
                    u.fract() as f32
                };
                let u = match sampler {
                    TimeSampler::Uniform => draw.uniform(sample, replica),
                    TimeSampler::Stratified { total, samples } => stratified(total, samples),
                    TimeSampler::Density { density, total, samples } => {
                        *t = density.quantile(stratified(total, samples));
                        continue;
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
    sampler: TimeSampler<'_>,
    (low, high): (f32, f32),
) -> Result<()> {
    let (kind, total, global, mean, std) = match sampler {
        TimeSampler::Uniform => (0, 1, 0, 0.0, 0.0),
        TimeSampler::Stratified { total, samples } => (1, total, samples, 0.0, 0.0),
        TimeSampler::LogitNormal { mean, std } => (2, 1, 0, mean, std),
        TimeSampler::Density { total, samples, .. } => (3, total, samples, 0.0, 0.0),
    };
    let (cells, count) = match sampler {
        TimeSampler::Density { density, .. } => (density.on_device.read()?, density.cells.len() - 1),
        _ => (Read::none(), 0),
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
        queue,
        grid,
        t,
        cells,
        key0,
        key1,
        step,
        counter,
        first,
        times,
        b,
        share,
        kind,
        total,
        global,
        offset,
        count as u32,
        mean,
        std,
        low,
        high,
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

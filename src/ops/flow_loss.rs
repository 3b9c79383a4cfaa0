//! The flow-matching loss of both stages, fused: residual, loss and gradient in one pass over v.
//!
//! ```text
//! r_i = v(x_t, t) − (data − noise)                     noise drawn again from its counter
//! row loss ℓ_i = w(t_i)·(‖r_i‖² − c_i)                 c_i: the control variate, 0 in training
//! dv_i = scale·w(t_i)·r_i                              scale = 2/M for a mean over M elements, times the loss scale
//!      = scale·w(t_i)·(r_i − a(t_i)·noise)             centred, a = t/((1−t)² + t²): for the detached gradient alone
//! dy_s = Σ_replicas (t·dx_t − dv)                      latent gradient: t·Jᵀ(dv) − dv; without x_t it is `detached`
//! ```
//! Weights (FEATURES 1.3, data at t = 1): `uniform` 1 is the paper's; `likelihood` t/(1−t) makes the loss the negative
//! log-likelihood of y up to a constant; `kl` t²/(1−t) is the one that the detached gradient needs. The last two are
//! clipped at t ≤ clip. Weights of the user are a table, linear between knots. Control variate of the likelihood estimate: `c = ‖noise‖² + D·(1/((1−t)² + t²) − 1)`.

//!
//! The centred gradient has the expectation of the detached one: t and the latent do not depend on the noise, whose mean is 0. a·noise is
//! what r has of the noise where data are N(0, I), v(x, t) = (2t − 1)/((1−t)² + t²)·x; near t = 1, where the weights are large, it is that
//! for any data.

use crate::device::cuda::{Grid, Read, Write};
use crate::device::{Arch, Cpu, Device, Queue};
use crate::error::Result;
use crate::float::FloatX;
use crate::kernels;
use crate::ops::flow_path::{Rows, target_velocity};
use crate::ops::{rows_per_block, warp_grid};
use crate::rng::{Draw, NORMAL_TILE};
use crate::tensor::Tensor;

mod weight;

pub use weight::{Weight, WeightTable};

/// What the loss compares v with.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// Data or latents, (B, D).
    pub data: &'a Tensor<f32>,
    /// Times, (N / share).
    pub t: &'a Tensor<f32>,
    /// The noise that x_t was made with.
    pub noise: Draw,
    /// The rows of the batch.
    pub rows: Rows,
    /// The weight of a row.
    pub weight: Weight,
    /// Subtracts the control variate: for likelihood estimates, not for training.
    pub control_variate: bool,
    /// Takes a part of the noise out of dv: for a gradient of latents through the target alone.
    pub centred: bool,
}

impl Target<'_> {
    /// Checks sizes; returns those of the velocities (N, D).
    pub(crate) fn check(&self, op: &'static str) -> Result<[usize; 2]> {
        self.rows.check(op)?;
        let d = self.data.rows_cols().1;
        self.data.expect(op, "data", [self.rows.samples, d])?;
        self.t.expect(op, "t", [self.rows.times()])?;
        Ok([self.rows.len(), d])
    }

    /// Returns what CUDA kernels read.
    pub(crate) fn on_device(&self) -> Result<DeviceTarget<'_>> {
        let (weight, number, table) = match &self.weight {
            Weight::Uniform => (0, 1.0, None),
            Weight::Constant(w) => (0, *w, None),
            Weight::Likelihood { clip } => (1, *clip, None),
            Weight::Kl { clip } => (2, *clip, None),
            Weight::Table(table) => (3, 0.0, Some(table.on_device())),
        };
        Ok(DeviceTarget {
            data: self.data.read()?,
            t: self.t.read()?,
            table: table.map_or(Ok(Read::none()), Tensor::read)?,
            key: self.noise.key(),
            step: self.noise.step(),
            counter: Read::at(self.noise.added()),
            first: self.rows.first,
            samples: self.rows.samples as u32,
            share: self.rows.share as u32,
            weight,
            number,
            knots: table.map_or(0, |table| table.len() as u32),
            variates: self.control_variate as u32 | (self.centred as u32) << 1,
        })
    }
}

/// A target in device memory: the arguments of `struct FlowTarget` in `kernels/flow_loss.cuh`.
#[derive(Clone, Copy)]
pub(crate) struct DeviceTarget<'a> {
    pub(crate) data: Read<'a, f32>,
    pub(crate) t: Read<'a, f32>,
    pub(crate) table: Read<'a, f32>,
    pub(crate) key: [u32; 2],
    pub(crate) step: u64,
    pub(crate) counter: Read<'a, u64>,
    pub(crate) first: u64,
    pub(crate) samples: u32,
    pub(crate) share: u32,
    pub(crate) weight: u32,
    pub(crate) number: f32,
    pub(crate) knots: u32,
    pub(crate) variates: u32,
}

/// `v: (N, D)` → row losses (N), f32.
pub fn flow_loss_forward<X: FloatX>(v: &Tensor<X>, target: &Target<'_>) -> Result<Tensor<f32>> {
    v.expect("flow_loss_forward", "v", target.check("flow_loss_forward")?)?;
    let mut loss = Tensor::uninit(v.device(), [target.rows.len()]);
    match v.device() {
        Device::Cpu(cpu) => loss_cpu::<X>(cpu, loss.host_mut()?, None, v.host()?, target, 0.0)?,
        Device::Cuda(queue) => loss_cuda(queue, &mut loss, Write::none(), v, target, 0.0.into())?,
    }
    Ok(loss)
}

/// A factor of gradients: a number, and on a CUDA device possibly one more that lies in its memory, as the loss scale does
/// there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// The number.
    pub number: f32,
    address: u64,
}

impl From<f32> for Scale {
    fn from(number: f32) -> Self {
        Self { number, address: 0 }
    }
}

impl Scale {
    /// The number at a device address.
    pub(crate) fn at(address: u64) -> Self {
        Self { number: 1.0, address }
    }

    /// Returns this, times `x`.
    pub fn times(self, x: f32) -> Self {
        Self { number: self.number * x, ..self }
    }

    /// Returns the address of the second factor, 0 for none.
    pub(crate) fn address(self) -> u64 {
        self.address
    }
}

/// `v: (N, D)` → row losses (N) and `dv: (N, D)` = scale·w·r, in one pass.
pub fn flow_loss_backward<X: FloatX>(
    v: &Tensor<X>,
    target: &Target<'_>,
    scale: impl Into<Scale>,
) -> Result<(Tensor<f32>, Tensor<X>)> {
    let scale = scale.into();
    v.expect("flow_loss_backward", "v", target.check("flow_loss_backward")?)?;
    let mut loss = Tensor::uninit(v.device(), [target.rows.len()]);
    let mut dv = Tensor::like(v);
    match v.device() {
        Device::Cpu(cpu) => {
            loss_cpu(cpu, loss.host_mut()?, Some(dv.host_mut()?), v.host()?, target, scale.number)?;
        }
        Device::Cuda(queue) => loss_cuda(queue, &mut loss, dv.write()?, v, target, scale)?,
    }
    Ok((loss, dv))
}

/// `dv: (N, D)` and, unless detached, `dx_t: (N, D)` → `dy: (B, D)` = unscale·Σ_replicas (t·dx_t − dv), in f32.
pub fn latent_gradient<X: FloatX>(
    dv: &Tensor<X>,
    dx_t: Option<&Tensor<X>>,
    t: &Tensor<f32>,
    rows: Rows,
    unscale: f32,
) -> Result<Tensor<f32>> {
    const OP: &str = "latent_gradient";
    rows.check(OP)?;
    let d = dv.rows_cols().1;
    dv.expect(OP, "dv", [rows.len(), d])?;
    t.expect(OP, "t", [rows.times()])?;
    if let Some(dx_t) = dx_t {
        dx_t.expect(OP, "dx_t", dv.shape())?;
    }
    let mut dy = Tensor::uninit(dv.device(), [rows.samples, d]);
    match dv.device() {
        Device::Cpu(cpu) => {
            let dx_t = dx_t.map(|x| x.host()).transpose()?;
            latents_cpu(cpu, dy.host_mut()?, dv.host()?, dx_t, t.host()?, rows, unscale);
        }
        Device::Cuda(queue) => {
            let grid = warp_grid::<X>(rows.samples, d, 1);
            let dx_t = dx_t.map_or(Ok(Read::none()), Tensor::read)?;
            let (b, k, share) = (rows.samples as u32, rows.replicas as u32, rows.share as u32);
            let (dy, dv, t) = (dy.write()?, dv.read()?, t.read()?);
            kernels::latent_gradient(queue, grid, dy, dv, dx_t, t, b, k, share, d as u32, unscale)?;
        }
    }
    Ok(dy)
}

fn loss_cuda<X: FloatX>(
    queue: &Queue,
    loss: &mut Tensor<f32>,
    dv: Write<'_, X>,
    v: &Tensor<X>,
    target: &Target<'_>,
    scale: Scale,
) -> Result<()> {
    let (rows, d) = (target.rows.len(), target.data.rows_cols().1 as u32);
    let grid = Grid::covering(32 * rows, 1, 256);
    let (loss, v, factor) = (loss.write()?, v.read()?, Read::at(scale.address()));
    let at = target.on_device()?;
    let DeviceTarget { data, t, table, key: [key0, key1], step, counter, first, samples, share, .. } = at;
    let DeviceTarget { weight, number, knots, variates, .. } = at;
    let (n, scale) = (rows as u32, scale.number);
    kernels::flow_loss(
        queue, grid, loss, dv, v, data, t, table, key0, key1, step, counter, first, n, samples, share, d,
        weight, number, knots, variates, scale, factor,
    )
}

fn loss_cpu<X: FloatX>(
    cpu: &Cpu,
    loss: &mut [f32],
    dv: Option<&mut [X]>,
    v: &[X],
    target: &Target<'_>,
    scale: f32,
) -> Result<()> {
    let d = target.data.rows_cols().1;
    if d == 0 {
        loss.fill(0.0);
        return Ok(());
    }
    let block = rows_per_block(d);
    let (data, t) = (target.data.host()?, target.t.host()?);
    let isa = cpu.isa();
    let run = |b: usize, loss: &mut [f32], dv: Option<&mut [X]>| {
        let block = LossBlock { first: b * block, d, v: &v[b * block * d..], data, t, target, scale };
        isa.run(
            #[inline(always)]
            |arch| block.run(arch, loss, dv),
        );
    };
    match dv {
        Some(dv) => {
            let work = loss.chunks_mut(block).zip(dv.chunks_mut(block * d)).enumerate();
            cpu.each(work, |(b, (loss, dv))| run(b, loss, Some(dv)));
        }
        None => cpu.each(loss.chunks_mut(block).enumerate(), |(b, loss)| run(b, loss, None)),
    }
    Ok(())
}

struct LossBlock<'a, X> {
    first: usize,
    d: usize,
    v: &'a [X],
    data: &'a [f32],
    t: &'a [f32],
    target: &'a Target<'a>,
    scale: f32,
}

impl<X: FloatX> LossBlock<'_, X> {
    #[inline(always)]
    fn run(&self, arch: Arch, loss: &mut [f32], mut dv: Option<&mut [X]>) {
        let (d, rows, first) = (self.d, self.target.rows, self.first);
        loss.fill(0.0);
        let mut tile = [0.0f32; NORMAL_TILE];
        self.target.noise.for_each_normal_row(
            arch,
            first..first + loss.len(),
            d,
            #[inline(always)]
            |i| rows.address(i),
            #[inline(always)]
            |i, column, noise| {
                let t = self.t[i / rows.share];
                let w = self.target.weight.at(t);
                let data = &self.data[i % rows.samples * d + column..][..noise.len()];
                let at = (i - first) * d + column;
                let v = &self.v[at..at + noise.len()];
                let r = &mut tile[..noise.len()];
                for (((r, v), noise), data) in r.iter_mut().zip(v).zip(noise).zip(data) {
                    *r = v.to_f32() - target_velocity(*noise, *data);
                }
                let mut sum = arch.dot(r, r);
                if self.target.control_variate {
                    sum -= control_variate(arch, noise, t);
                }
                loss[i - first] += w * sum;
                if let Some(dv) = &mut dv {
                    let scale = self.scale * w;
                    if self.target.centred {
                        let a = t * inverse_spread(t);
                        r.iter_mut().zip(noise).for_each(|(r, noise)| *r -= a * noise);
                    }
                    for (dv, r) in dv[at..at + noise.len()].iter_mut().zip(r) {
                        *dv = X::from_f32(scale * *r);
                    }
                }
            },
        );
    }
}

/// c = ‖noise‖² + D·(1/((1−t)² + t²) − 1), whose mean is what FEATURES 1.3 subtracts.
#[inline(always)]
fn control_variate(arch: Arch, noise: &[f32], t: f32) -> f32 {
    let norm = arch.dot(noise, noise);
    norm + noise.len() as f32 * (inverse_spread(t) - 1.0)
}

#[inline(always)]
fn inverse_spread(t: f32) -> f32 {
    1.0 / ((1.0 - t) * (1.0 - t) + t * t)
}

fn latents_cpu<X: FloatX>(
    cpu: &Cpu,
    dy: &mut [f32],
    dv: &[X],
    dx_t: Option<&[X]>,
    t: &[f32],
    rows: Rows,
    unscale: f32,
) {
    let d = dy.len() / rows.samples.max(1);
    let isa = cpu.isa();
    let block = rows_per_block(d);
    cpu.each(dy.chunks_mut((block * d).max(1)).enumerate(), |(b, dy)| {
        isa.run(
            #[inline(always)]
            |arch| {
                for (s, dy) in dy.chunks_exact_mut(d).enumerate() {
                    dy.fill(0.0);
                    for replica in 0..rows.replicas {
                        let i = replica * rows.samples + b * block + s;
                        let dv = &dv[i * d..(i + 1) * d];
                        add_row(
                            arch,
                            dy,
                            dv,
                            dx_t.map(|x| &x[i * d..(i + 1) * d]),
                            t[i / rows.share],
                            unscale,
                        );
                    }
                }
            },
        );
    });
}

#[inline(always)]
fn add_row<X: FloatX>(arch: Arch, dy: &mut [f32], dv: &[X], dx_t: Option<&[X]>, t: f32, unscale: f32) {
    match dx_t {
        Some(dx) => {
            for ((y, v), x) in dy.iter_mut().zip(dv).zip(dx) {
                *y = arch.fma(unscale, arch.fma(t, x.to_f32(), -v.to_f32()), *y);
            }
        }
        None => {
            for (y, v) in dy.iter_mut().zip(dv) {
                *y = arch.fma(-unscale, v.to_f32(), *y);
            }
        }
    }
}

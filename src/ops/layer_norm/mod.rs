//! Layer norm over the last dimension, fused with its affine map, adaLN modulation and a residual.
//!
//! ```text
//! x̂ = (x − mean) · rstd,  rstd = 1/√(var + 1e-6)          statistics in f32, saved
//! n = x̂ · gamma + beta                                     (gamma, beta optional)
//! y = [residual +] n · (1 + scale) + shift                  (shift, scale from a modulation table, optional)
//! ```
//! Backward: `dshift = dy`, `dscale = dy·n`, `dn = dy·(1 + scale)`, `dgamma = Σ dn·x̂`, `dbeta = Σ dn`,
//! `dx̂ = dn·gamma`, `dx = rstd·(dx̂ − mean(dx̂) − x̂·mean(dx̂·x̂)) [+ add]`. The residual's gradient is dy itself.
//! Forward reads x (and residual) once and writes y; backward reads x, dy (and add) once and writes dx: memory bound.

use crate::device::{Arch, Cpu, Device};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::ops::modulation::{GradBlock, GradScratch, HostModulation, MOD_ROWS, Modulation, ModulationGrad};
use crate::ops::{add_partials, narrow, rows_per_block, rows_per_partial, widen};
use crate::tensor::{Tensor, View, ViewMut};

mod cuda;

/// Added to the variance (FEATURES 1.7).
const EPS: f32 = 1e-6;

/// The optional parts of a layer norm.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a, X: FloatX> {
    /// gamma and beta, (C) each.
    pub affine: Option<(View<'a, X>, View<'a, X>)>,
    /// Table whose columns `offset .. offset + C` are shift and the next C are scale.
    pub modulation: Option<(Modulation<'a, X>, usize)>,
}

/// Where a backward puts gradients other than dx.
#[derive(Debug)]
pub struct LayerNormGrads<'g, 'm, X: FloatX> {
    /// dgamma and dbeta, (C) each: accumulated.
    pub affine: Option<(ViewMut<'g, f32>, ViewMut<'g, f32>)>,
    /// Gradient of the table: its shift and scale columns are written.
    pub modulation: Option<ModulationGrad<'m, X>>,
}

/// Mean and reciprocal standard deviation of each row, kept for the backward.
#[derive(Debug)]
pub struct RowStats {
    /// (N, 2): mean, rstd.
    stats: Tensor<f32>,
}

/// `x, residual: (N, C)` → `y: (N, C)` and the row statistics.
pub fn layer_norm_forward<X: FloatX>(
    x: &Tensor<X>,
    norm: &LayerNorm<'_, X>,
    residual: Option<&Tensor<X>>,
) -> Result<(Tensor<X>, RowStats)> {
    let (n, c) = check("layer_norm_forward", x, norm)?;
    if let Some(r) = residual {
        r.expect("layer_norm_forward", "residual", x.shape())?;
    }
    let mut y = Tensor::like(x);
    let mut stats = Tensor::uninit(x.device(), [n, 2]);
    match x.device() {
        Device::Cpu(cpu) => {
            let residual = residual.map(|r| r.host()).transpose()?;
            forward_cpu(
                cpu,
                y.host_mut()?,
                stats.host_mut()?,
                x.host()?,
                &HostNorm::new(norm, c)?,
                residual,
            )?;
        }
        Device::Cuda(queue) => cuda::forward(queue, &mut y, &mut stats, x, norm, residual)?,
    }
    Ok((y, RowStats { stats }))
}

/// `dy, x, add: (N, C)` → `dx: (N, C)`, plus `add` where the input also went past the norm.
pub fn layer_norm_backward<X: FloatX>(
    dy: &Tensor<X>,
    x: &Tensor<X>,
    saved: &RowStats,
    norm: &LayerNorm<'_, X>,
    add: Option<&Tensor<X>>,
    grads: LayerNormGrads<'_, '_, X>,
) -> Result<Tensor<X>> {
    const OP: &str = "layer_norm_backward";
    let (n, c) = check(OP, x, norm)?;
    dy.expect(OP, "dy", x.shape())?;
    saved.stats.expect(OP, "saved", [n, 2])?;
    if let Some(a) = add {
        a.expect(OP, "add", x.shape())?;
    }
    if let Some((dgamma, dbeta)) = &grads.affine {
        dgamma.as_view().expect(OP, "dgamma", [c])?;
        dbeta.as_view().expect(OP, "dbeta", [c])?;
    }
    if let (Some(grad), Some((modulation, _))) = (&grads.modulation, &norm.modulation) {
        grad.check(OP, modulation)?;
    }
    let mut dx = Tensor::like(x);
    match x.device() {
        Device::Cpu(cpu) => backward_cpu(cpu, &mut dx, dy, x, &saved.stats, norm, add, grads)?,
        Device::Cuda(queue) => cuda::backward(queue, &mut dx, dy, x, &saved.stats, norm, add, grads)?,
    }
    Ok(dx)
}

fn check<X: FloatX>(op: &'static str, x: &Tensor<X>, norm: &LayerNorm<'_, X>) -> Result<(usize, usize)> {
    let (n, c) = x.rows_cols();
    if c == 0 {
        return Err(Error::argument(op, "x", "at least one column", format!("shape {}", x.shape())));
    }
    if let Some((gamma, beta)) = &norm.affine {
        gamma.expect(op, "gamma", [c])?;
        beta.expect(op, "beta", [c])?;
    }
    if let Some((modulation, offset)) = &norm.modulation {
        modulation.check(op, n, *offset, 2 * c)?;
    }
    Ok((n, c))
}

/// The optional parts in host memory; gamma and beta widened once.
struct HostNorm<'a, X: FloatX> {
    c: usize,
    affine: Option<(Tensor<f32>, Tensor<f32>)>,
    modulation: Option<(HostModulation<'a, X>, usize)>,
}

impl<'a, X: FloatX> HostNorm<'a, X> {
    fn new(norm: &LayerNorm<'a, X>, c: usize) -> Result<Self> {
        let affine = match norm.affine {
            Some((gamma, beta)) => Some((widened(gamma)?, widened(beta)?)),
            None => None,
        };
        let modulation = match &norm.modulation {
            Some((modulation, offset)) => Some((modulation.host()?, *offset)),
            None => None,
        };
        Ok(Self { c, affine, modulation })
    }

    /// Fetches shift and scale of the rows `first ..` into `out` (rows, 2C).
    #[inline(always)]
    fn fetch(&self, arch: Arch, out: &mut [f32], first: usize) {
        if let Some((modulation, offset)) = &self.modulation {
            modulation.fetch(arch, out, first, *offset, 2 * self.c);
        }
    }

    /// n = x̂·gamma + beta, in place.
    #[inline(always)]
    fn apply_affine(&self, arch: Arch, n: &mut [f32]) {
        if let Some((gamma, beta)) = self.affine() {
            for ((n, g), b) in n.iter_mut().zip(gamma).zip(beta) {
                *n = arch.fma(*n, *g, *b);
            }
        }
    }

    #[inline(always)]
    fn affine(&self) -> Option<(&[f32], &[f32])> {
        let (gamma, beta) = self.affine.as_ref()?;
        Some((gamma.host().ok()?, beta.host().ok()?))
    }
}

fn widened<X: FloatX>(x: View<'_, X>) -> Result<Tensor<f32>> {
    let mut y = Tensor::uninit(x.device(), x.shape());
    widen(y.host_mut()?, x.host()?);
    Ok(y)
}

fn forward_cpu<X: FloatX>(
    cpu: &Cpu,
    y: &mut [X],
    stats: &mut [f32],
    x: &[X],
    norm: &HostNorm<'_, X>,
    residual: Option<&[X]>,
) -> Result<()> {
    let c = norm.c;
    let rows = rows_per_block(c).next_multiple_of(MOD_ROWS);
    let blocks = (x.len() / c).div_ceil(rows);
    // One row of f32 work space and MOD_ROWS rows of shift and scale for each block.
    let mut scratch = Tensor::<f32>::uninit(&Device::Cpu(cpu.clone()), [blocks, c * (1 + 2 * MOD_ROWS)]);
    let isa = cpu.isa();
    let work = y.chunks_mut(rows * c).zip(stats.chunks_mut(rows * 2));
    let work = work.zip(scratch.host_mut()?.chunks_mut(c * (1 + 2 * MOD_ROWS))).enumerate();
    cpu.each(work, |(block, ((y, stats), scratch))| {
        isa.run(
            #[inline(always)]
            |arch| {
                let first = block * rows;
                let block =
                    ForwardBlock { first, x: &x[first * c..], residual: residual.map(|r| &r[first * c..]) };
                block.run(arch, y, stats, norm, scratch);
            },
        );
    });
    Ok(())
}

struct ForwardBlock<'a, X> {
    first: usize,
    x: &'a [X],
    residual: Option<&'a [X]>,
}

impl<X: FloatX> ForwardBlock<'_, X> {
    #[inline(always)]
    fn run(&self, arch: Arch, y: &mut [X], stats: &mut [f32], norm: &HostNorm<'_, X>, scratch: &mut [f32]) {
        let c = norm.c;
        let (row, modulation) = scratch.split_at_mut(c);
        for (i, (y, stats)) in y.chunks_exact_mut(c).zip(stats.chunks_exact_mut(2)).enumerate() {
            let within = i % MOD_ROWS;
            if within == 0 {
                let left = self.x.len() / c - i;
                norm.fetch(arch, &mut modulation[..MOD_ROWS.min(left) * 2 * c], self.first + i);
            }
            widen(row, &self.x[i * c..(i + 1) * c]);
            normalise(arch, row, stats, EPS);
            norm.apply_affine(arch, row);
            if norm.modulation.is_some() {
                let (shift, scale) = modulation[within * 2 * c..(within + 1) * 2 * c].split_at(c);
                for ((n, shift), scale) in row.iter_mut().zip(shift).zip(scale) {
                    *n = arch.fma(*n, 1.0 + scale, *shift);
                }
            }
            if let Some(residual) = self.residual {
                for (n, r) in row.iter_mut().zip(&residual[i * c..(i + 1) * c]) {
                    *n += r.to_f32();
                }
            }
            narrow(y, row);
        }
    }
}

/// row ← (row − mean)·rstd, rstd = 1/√(var + eps); writes mean and rstd.
#[inline(always)]
pub(in crate::ops) fn normalise(arch: Arch, row: &mut [f32], stats: &mut [f32], eps: f32) {
    let c = row.len() as f32;
    let mean = arch.sum(row) / c;
    for x in row.iter_mut() {
        *x -= mean;
    }
    let variance = arch.dot(row, row) / c;
    let rstd = 1.0 / (variance + eps).sqrt();
    for x in row.iter_mut() {
        *x *= rstd;
    }
    stats.copy_from_slice(&[mean, rstd]);
}

/// Work space of one backward block, in rows of C: x̂, n, dn, MOD_ROWS rows of (shift, scale) and of (dshift, dscale),
/// then the partial sums of dgamma and dbeta.
const BACKWARD_ROWS: usize = 3 + 4 * MOD_ROWS + 2;

#[allow(clippy::too_many_arguments)] // the arguments of the public function, and the device
fn backward_cpu<X: FloatX>(
    cpu: &Cpu,
    dx: &mut Tensor<X>,
    dy: &Tensor<X>,
    x: &Tensor<X>,
    stats: &Tensor<f32>,
    norm: &LayerNorm<'_, X>,
    add: Option<&Tensor<X>>,
    mut grads: LayerNormGrads<'_, '_, X>,
) -> Result<()> {
    let (n, c) = x.rows_cols();
    let unit = norm.modulation.map_or(1, |(modulation, _)| modulation.unit());
    let rows = rows_per_partial(n, unit);
    let blocks = n.div_ceil(rows);
    let device = x.device();
    let mut scratch = Tensor::<f32>::uninit(device, [blocks, BACKWARD_ROWS * c]);
    let mut table_scratch = norm.modulation.map(|(m, _)| GradScratch::new(device, &m, blocks, 2 * c));
    let host = HostNorm::new(norm, c)?;
    let (x, dy, stats) = (x.host()?, dy.host()?, stats.host()?);
    let add = add.map(|a| a.host()).transpose()?;
    let mut tables: Vec<Option<GradBlock<'_, X>>> =
        match (&mut table_scratch, &mut grads.modulation, &norm.modulation) {
            (Some(scratch), Some(grad), Some((modulation, _))) => {
                scratch.blocks(grad, modulation, rows)?.into_iter().map(Some).collect()
            }
            _ => (0..blocks).map(|_| None).collect(),
        };
    let isa = cpu.isa();
    let work = dx.host_mut()?.chunks_mut(rows * c).zip(tables.iter_mut());
    let work = work.zip(scratch.host_mut()?.chunks_mut(BACKWARD_ROWS * c)).enumerate();
    cpu.each(work, |(block, ((dx, table), scratch))| {
        isa.run(
            #[inline(always)]
            |arch| {
                let first = block * rows;
                let at = first * c..first * c + dx.len();
                let input = BackwardBlock {
                    first,
                    x: &x[at.clone()],
                    dy: &dy[at.clone()],
                    add: add.map(|a| &a[at.clone()]),
                    stats: &stats[first * 2..],
                };
                input.run(arch, dx, table, &host, scratch);
            },
        );
    });
    drop(tables);
    if let (Some(scratch), Some(grad), Some((_, offset))) =
        (&table_scratch, &mut grads.modulation, &norm.modulation)
    {
        scratch.finish(grad, *offset)?;
    }
    if let Some((mut dgamma, mut dbeta)) = grads.affine {
        let sums = scratch.host()?;
        let (dgamma, dbeta) = (dgamma.host_mut()?, dbeta.host_mut()?);
        for block in sums.chunks_exact(BACKWARD_ROWS * c) {
            let sums = &block[(BACKWARD_ROWS - 2) * c..];
            isa.run(
                #[inline(always)]
                |arch| {
                    add_partials(arch, dgamma, &sums[..c]);
                    add_partials(arch, dbeta, &sums[c..]);
                },
            );
        }
    }
    Ok(())
}

struct BackwardBlock<'a, X> {
    first: usize,
    x: &'a [X],
    dy: &'a [X],
    add: Option<&'a [X]>,
    stats: &'a [f32],
}

impl<X: FloatX> BackwardBlock<'_, X> {
    #[inline(always)]
    fn run(
        &self,
        arch: Arch,
        dx: &mut [X],
        table: &mut Option<GradBlock<'_, X>>,
        norm: &HostNorm<'_, X>,
        scratch: &mut [f32],
    ) {
        let c = norm.c;
        let (x_hat, rest) = scratch.split_at_mut(c);
        let (n, rest) = rest.split_at_mut(c);
        let (dn, rest) = rest.split_at_mut(c);
        let (modulation, rest) = rest.split_at_mut(2 * MOD_ROWS * c);
        let (dmod, affine_sums) = rest.split_at_mut(2 * MOD_ROWS * c);
        affine_sums.fill(0.0);
        let offset = norm.modulation.as_ref().map_or(0, |(_, offset)| *offset);
        let total = dx.len() / c;
        for at in (0..total).step_by(MOD_ROWS) {
            let count = MOD_ROWS.min(total - at);
            norm.fetch(arch, &mut modulation[..count * 2 * c], self.first + at);
            for i in 0..count {
                let row = at + i;
                let span = row * c..(row + 1) * c;
                let rstd = self.stats[2 * row + 1];
                self.normalised(x_hat, row, c);
                widen(dn, &self.dy[span.clone()]);
                n.copy_from_slice(x_hat);
                norm.apply_affine(arch, n);
                if norm.modulation.is_some() {
                    let scale = &modulation[i * 2 * c + c..(i + 1) * 2 * c];
                    modulate_backward(dn, n, scale, &mut dmod[i * 2 * c..(i + 1) * 2 * c]);
                }
                if let Some((gamma, _)) = norm.affine() {
                    affine_backward(arch, dn, x_hat, gamma, affine_sums);
                }
                normalise_backward(arch, dn, x_hat, rstd);
                if let Some(add) = self.add {
                    for (d, a) in dn.iter_mut().zip(&add[span.clone()]) {
                        *d += a.to_f32();
                    }
                }
                narrow(&mut dx[span], dn);
            }
            if let Some(table) = table {
                table.add(arch, &dmod[..count * 2 * c], at, offset, 2 * c);
            }
        }
    }

    /// Writes x̂ of one row, from the saved statistics.
    #[inline(always)]
    fn normalised(&self, x_hat: &mut [f32], row: usize, c: usize) {
        let (mean, rstd) = (self.stats[2 * row], self.stats[2 * row + 1]);
        for (h, x) in x_hat.iter_mut().zip(&self.x[row * c..(row + 1) * c]) {
            *h = (x.to_f32() - mean) * rstd;
        }
    }
}

/// dshift = dy, dscale = dy·n, dn = dy·(1 + scale); `dn` holds dy on entry.
#[inline(always)]
fn modulate_backward(dn: &mut [f32], n: &[f32], scale: &[f32], dmod: &mut [f32]) {
    let (dshift, dscale) = dmod.split_at_mut(dn.len());
    for ((((d, n), scale), dshift), dscale) in dn.iter_mut().zip(n).zip(scale).zip(dshift).zip(dscale) {
        let dy = *d;
        *dshift = dy;
        *dscale = dy * n;
        *d = dy * (1.0 + scale);
    }
}

/// dgamma += dn·x̂, dbeta += dn, dx̂ = dn·gamma (in place of dn).
#[inline(always)]
fn affine_backward(arch: Arch, dn: &mut [f32], x_hat: &[f32], gamma: &[f32], sums: &mut [f32]) {
    let (dgamma, dbeta) = sums.split_at_mut(dn.len());
    for ((((d, h), gamma), dgamma), dbeta) in dn.iter_mut().zip(x_hat).zip(gamma).zip(dgamma).zip(dbeta) {
        *dgamma = arch.fma(*d, *h, *dgamma);
        *dbeta += *d;
        *d *= gamma;
    }
}

/// dx = rstd·(dx̂ − mean(dx̂) − x̂·mean(dx̂·x̂)), in place of dx̂.
#[inline(always)]
pub(in crate::ops) fn normalise_backward(arch: Arch, d: &mut [f32], x_hat: &[f32], rstd: f32) {
    let c = d.len() as f32;
    let mean = arch.sum(d) / c;
    let along = arch.dot(d, x_hat) / c;
    for (d, h) in d.iter_mut().zip(x_hat) {
        *d = rstd * (*d - mean - h * along);
    }
}

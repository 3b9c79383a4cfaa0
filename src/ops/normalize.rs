//! Normalisation of targets: to zero mean and unit standard deviation of the batch, or rows to unit norm.
//!
//! `standardize` (`norm_target`, FEATURES 1.4): `y = (x − mean)/(std + 1e-8)` with one mean and one unbiased standard
//! deviation of all elements, both detached, so `dx = dy/(std + 1e-8)`.
//! `unit_norm`: `y = x/max(‖x‖, 1e-12)` for each row; `dx = (dy − y·⟨y, dy⟩)/‖x‖`.

use crate::device::cuda::{Grid, Write};
use crate::device::{Cpu, Device, Queue};
use crate::error::{Error, Result};
use crate::float::{join, split};
use crate::kernels;
use crate::ops::rows_per_block;
use crate::tensor::Tensor;

/// Mean and reciprocal standard deviation of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchStats {
    /// Mean of all elements.
    pub mean: f32,
    /// 1/(std + 1e-8), std unbiased.
    pub inv_std: f32,
}

/// Returns the statistics of all elements of `x`, in f64 (CUDA: in pairs of f32).
///
/// # Errors
/// Fewer than two elements.
pub fn batch_stats(x: &Tensor<f32>) -> Result<BatchStats> {
    if x.len() < 2 {
        return Err(Error::argument(
            "batch_stats",
            "x",
            "at least two elements",
            format!("shape {}", x.shape()),
        ));
    }
    let (mean, variance) = match x.device() {
        Device::Cpu(_) => moments(x.host()?),
        Device::Cuda(queue) => moments_cuda(queue, x)?,
    };
    Ok(BatchStats { mean: mean as f32, inv_std: (1.0 / (variance.sqrt() + 1e-8)) as f32 })
}

/// Returns mean and unbiased variance.
fn moments(xs: &[f32]) -> (f64, f64) {
    let n = xs.len() as f64;
    let mean = xs.iter().map(|x| *x as f64).sum::<f64>() / n;
    (mean, xs.iter().map(|x| (*x as f64 - mean).powi(2)).sum::<f64>() / (n - 1.0))
}

fn moments_cuda(queue: &Queue, x: &Tensor<f32>) -> Result<(f64, f64)> {
    let mut found = [[0.0f32; 2]; 2];
    let block = queue.block(size_of_val(&found))?;
    let grid = Grid { blocks: [1, 1, 1], threads: 1024, shared: 0 };
    let [inverse, inverse_low] = split(1.0 / x.len() as f64);
    let out = Write::at(block.address());
    kernels::moments(queue, grid, out, x.read()?, inverse, inverse_low, x.len() as u64)?;
    queue.download(&mut found, block.address())?;
    let [mean, squares] = found.map(join);
    Ok((mean, squares / (x.len() - 1) as f64))
}

/// `x: (..)` → `(x − mean)·inv_std`.
pub fn standardize_forward(x: &Tensor<f32>, stats: BatchStats) -> Result<Tensor<f32>> {
    scale_shift(x, stats.mean, stats.inv_std)
}

/// `dy: (..)` → `dx = dy·inv_std`; the statistics are detached.
pub fn standardize_backward(dy: &Tensor<f32>, stats: BatchStats) -> Result<Tensor<f32>> {
    scale_shift(dy, 0.0, stats.inv_std)
}

/// `x: (B, D)` → rows of norm 1.
pub fn unit_norm_forward(x: &Tensor<f32>) -> Result<Tensor<f32>> {
    let mut y = Tensor::like(x);
    match x.device() {
        Device::Cpu(cpu) => by_rows(cpu, &mut y, x, x, |y, x, _| {
            let inv = 1.0 / norm(x);
            for (y, x) in y.iter_mut().zip(x) {
                *y = x * inv;
            }
        })?,
        Device::Cuda(queue) => {
            let ((n, d), grid) = (x.rows_cols(), warp_rows(x));
            kernels::unit_norm_forward(queue, grid, y.write()?, x.read()?, n as u32, d as u32)?;
        }
    }
    Ok(y)
}

/// `dy, x: (B, D)` → `dx: (B, D)`.
pub fn unit_norm_backward(dy: &Tensor<f32>, x: &Tensor<f32>) -> Result<Tensor<f32>> {
    dy.expect("unit_norm_backward", "dy", x.shape())?;
    let mut dx = Tensor::like(x);
    match x.device() {
        Device::Cpu(cpu) => by_rows(cpu, &mut dx, dy, x, |dx, dy, x| {
            let inv = 1.0 / norm(x);
            let along: f32 = dy.iter().zip(x).map(|(d, x)| d * x * inv).sum();
            for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
                *dx = (dy - x * inv * along) * inv;
            }
        })?,
        Device::Cuda(queue) => {
            let ((n, d), grid) = (x.rows_cols(), warp_rows(x));
            kernels::unit_norm_backward(queue, grid, dx.write()?, dy.read()?, x.read()?, n as u32, d as u32)?;
        }
    }
    Ok(dx)
}

/// A warp for each row.
fn warp_rows(x: &Tensor<f32>) -> Grid {
    Grid::covering(32 * x.rows_cols().0, 1, 256)
}

fn norm(x: &[f32]) -> f32 {
    let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm < 1e-12 { 1e-12 } else { norm } // `max` would hide a NaN
}

/// Returns (x − shift)·scale.
fn scale_shift(x: &Tensor<f32>, shift: f32, scale: f32) -> Result<Tensor<f32>> {
    let mut y = Tensor::like(x);
    match x.device() {
        Device::Cpu(cpu) => {
            let (y, x) = (y.host_mut()?, x.host()?);
            let block = rows_per_block(1);
            cpu.each(y.chunks_mut(block).zip(x.chunks(block)), |(y, x)| {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = (x - shift) * scale;
                }
            });
        }
        Device::Cuda(queue) => {
            let (grid, n) = (Grid::covering(x.len(), 4, 256), x.len() as u64);
            kernels::scale_shift(queue, grid, y.write()?, x.read()?, shift, scale, n)?;
        }
    }
    Ok(y)
}

fn by_rows(
    cpu: &Cpu,
    y: &mut Tensor<f32>,
    a: &Tensor<f32>,
    b: &Tensor<f32>,
    f: impl Fn(&mut [f32], &[f32], &[f32]) + Sync,
) -> Result<()> {
    let d = a.rows_cols().1.max(1);
    let (y, a, b) = (y.host_mut()?, a.host()?, b.host()?);
    let block = rows_per_block(d) * d;
    cpu.each(y.chunks_mut(block).zip(a.chunks(block)).zip(b.chunks(block)), |((y, a), b)| {
        let rows = y.chunks_exact_mut(d).zip(a.chunks_exact(d)).zip(b.chunks_exact(d));
        rows.for_each(|((y, a), b)| f(y, a, b));
    });
    Ok(())
}

/// Returns `(std(y) − 1)²` of all elements (unbiased) and adds `weight` times its gradient to `dy: (..)`: the
/// reference's `std_loss_weight` term. With n elements, `∂std/∂y = (y − mean)/((n − 1)·std)`.
///
/// # Errors
/// Fewer than two elements, or another shape of `dy`.
pub fn std_penalty(dy: &mut Tensor<f32>, y: &Tensor<f32>, weight: f32) -> Result<f64> {
    dy.expect("std_penalty", "dy", y.shape())?;
    let stats = batch_stats(y)?;
    let std = 1.0 / stats.inv_std as f64;
    let slope = weight as f64 * 2.0 * (std - 1.0) / ((y.len() - 1) as f64 * std);
    match y.device() {
        Device::Cpu(_) => {
            for (dy, y) in dy.host_mut()?.iter_mut().zip(y.host()?) {
                *dy += (slope * (*y as f64 - stats.mean as f64)) as f32;
            }
        }
        Device::Cuda(queue) => {
            let (grid, n) = (Grid::covering(y.len(), 4, 256), y.len() as u64);
            let slope = slope as f32; // the sum is f32
            kernels::add_deviation(queue, grid, dy.write()?, y.read()?, stats.mean, slope, n)?;
        }
    }
    Ok((std - 1.0).powi(2))
}

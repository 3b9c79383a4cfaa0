//! Patches: images (B, C·H·W) as rows of tokens, and back.
//!
//! ```text
//! patchify    tokens[b·T + ty·(W/p) + tx, (c·p + i)·p + j] = x[b, c, ty·p + i, tx·p + j]         T = (H/p)·(W/p)
//! unpatchify  x[b, c, ty·p + i, tx·p + j] = y[b·T + ty·(W/p) + tx, (i·p + j)·Cout + c]           c < C ≤ Cout
//! ```
//! The first has the columns of a convolution's weight [D, C, p, p], the second those of DiT's last layer (FEATURES 3.2). Both move
//! numbers and compute none: the backward of each is the other direction, with zeros for channels that were dropped. A
//! spatial condition is a second image, whose channels follow the first's. Kernels: `kernels/patchify.cu`.

use crate::device::cuda::{Grid, Read};
use crate::device::{Cpu, Device, Queue};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::kernels;
use crate::ops::{pack, rows_per_block};
use crate::tensor::Tensor;

/// How an image is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patches {
    /// Channels, C.
    pub channels: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Side of a patch, p.
    pub patch: usize,
}

impl Patches {
    /// Returns the tokens of a sample, T.
    pub fn tokens(&self) -> usize {
        self.side(self.height) * self.side(self.width)
    }

    /// Returns the numbers of a sample, C·H·W.
    pub fn sample(&self) -> usize {
        self.channels * self.area()
    }

    /// Returns the columns of a token, C·p·p.
    pub fn columns(&self) -> usize {
        self.channels * self.patch * self.patch
    }

    fn area(&self) -> usize {
        self.height * self.width
    }

    fn side(&self, pixels: usize) -> usize {
        pixels.checked_div(self.patch).unwrap_or(0)
    }

    /// Checks that patches cover the image, and that a sample of `channels` channels can be numbered.
    ///
    /// # Errors
    /// A side that the patch does not divide; no pixels; a sample of 2³² numbers.
    pub fn check(&self, op: &'static str, channels: usize) -> Result<()> {
        let Self { height, width, patch, .. } = *self;
        let divides = |side: usize| side > 0 && patch > 0 && side.is_multiple_of(patch);
        if !divides(height) || !divides(width) {
            let expected = format!("sides that a patch of {patch} divides");
            return Err(Error::argument(op, "patches", expected, format!("{height} × {width} pixels")));
        }
        let fits = channels.checked_mul(self.area()).is_some_and(|n| u32::try_from(n).is_ok());
        if self.channels == 0 || !fits {
            let expected = "between 1 and 2³² − 1 numbers in a sample";
            let found = format!("{channels} × {height} × {width}");
            return Err(Error::argument(op, "patches", expected, found));
        }
        Ok(())
    }

    /// Calls `f(token, first column, first pixel)` for each row of each patch of a channel, p pixels; the columns are
    /// those of an image with this channel alone.
    fn each_run(&self, mut f: impl FnMut(usize, usize, usize)) {
        let (p, across) = (self.patch, self.side(self.width));
        for token in 0..self.tokens() {
            let corner = token / across * p * self.width + token % across * p;
            for i in 0..p {
                f(token, i * p, corner + i * self.width);
            }
        }
    }
}

/// A second image beside the first: a spatial condition.
#[derive(Clone, Copy, Debug)]
pub struct Beside<'a, X: FloatX> {
    /// (B, channels·H·W).
    pub image: &'a Tensor<X>,
    /// Its channels.
    pub channels: usize,
}

/// Which of a token's channels belong to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// Channels in front of the image's.
    pub first: usize,
    /// Channels in all.
    pub of: usize,
}

/// `x: (B, C·H·W)` → `tokens: (B·T, C·p·p)`.
pub fn patchify<X: FloatX>(x: &Tensor<X>, patches: Patches) -> Result<Tensor<X>> {
    patchify_beside(x, None, patches)
}

/// `x: (B, C·H·W)`, `beside: (B, C'·H·W)` → `tokens: (B·T, (C + C')·p·p)`.
pub fn patchify_beside<X: FloatX>(
    x: &Tensor<X>,
    beside: Option<Beside<'_, X>>,
    patches: Patches,
) -> Result<Tensor<X>> {
    const OP: &str = "patchify";
    let more = beside.map_or(0, |beside| beside.channels);
    let all = Patches { channels: patches.channels + more, ..patches };
    patches.check(OP, all.channels)?;
    let samples = samples(OP, "x", x, patches.sample())?;
    if let Some(beside) = beside {
        beside.image.expect(OP, "beside", [samples, more * patches.area()])?;
    }
    let mut tokens = Tensor::uninit(x.device(), [samples * patches.tokens(), all.columns()]);
    match x.device() {
        Device::Cpu(cpu) => {
            let at = Channels { first: 0, of: all.channels };
            to_tokens_cpu(cpu, tokens.host_mut()?, x.host()?, patches, at);
            if let Some(Beside { image, channels }) = beside {
                let (at, patches) =
                    (Channels { first: patches.channels, ..at }, Patches { channels, ..patches });
                to_tokens_cpu(cpu, tokens.host_mut()?, image.host()?, patches, at);
            }
        }
        Device::Cuda(queue) => {
            let (grid, run) = lanes::<X>(samples, all.sample(), patch_run::<X>(all));
            let beside = beside.map_or(Ok(Read::none()), |beside| beside.image.read())?;
            let (tokens, x, [c, h, w, p]) = (tokens.write()?, x.read()?, sizes(patches));
            kernels::patchify(queue, grid, tokens, x, beside, run, c, more as u32, h, w, p)?;
        }
    }
    Ok(tokens)
}

/// `dtokens: (B·T, C·p·p)` → `dx: (B, C·H·W)`.
pub fn patchify_backward<X: FloatX>(dtokens: &Tensor<X>, patches: Patches) -> Result<Tensor<X>> {
    patchify_backward_of(dtokens, Channels { first: 0, of: patches.channels }, patches)
}

/// `dtokens: (B·T, C_all·p·p)` → `dx: (B, C·H·W)`, the gradient of the image whose channels were those `at`.
pub fn patchify_backward_of<X: FloatX>(
    dtokens: &Tensor<X>,
    at: Channels,
    patches: Patches,
) -> Result<Tensor<X>> {
    const OP: &str = "patchify_backward";
    patches.check(OP, at.of.max(patches.channels))?;
    if at.first + patches.channels > at.of {
        let expected = format!("{} channels of {}", patches.channels, at.of);
        return Err(Error::argument(OP, "at", expected, format!("the first at {}", at.first)));
    }
    let all = Patches { channels: at.of, ..patches };
    let samples = rows(OP, "dtokens", dtokens, all.columns(), patches.tokens())?;
    let mut dx = Tensor::uninit(dtokens.device(), [samples, patches.sample()]);
    match dtokens.device() {
        Device::Cpu(cpu) => to_image_cpu(cpu, dx.host_mut()?, dtokens.host()?, patches, at),
        Device::Cuda(queue) => to_image_cuda(queue, &mut dx, dtokens, patches, at)?,
    }
    Ok(dx)
}

/// `y: (B·T, p·p·Cout)` → `x: (B, C·H·W)`, the first C channels.
pub fn unpatchify<X: FloatX>(y: &Tensor<X>, patches: Patches, out_channels: usize) -> Result<Tensor<X>> {
    const OP: &str = "unpatchify";
    check_out(OP, patches, out_channels)?;
    let columns = Patches { channels: out_channels, ..patches }.columns();
    let samples = rows(OP, "y", y, columns, patches.tokens())?;
    let mut x = Tensor::uninit(y.device(), [samples, patches.sample()]);
    match y.device() {
        Device::Cpu(cpu) => to_planes_cpu(cpu, x.host_mut()?, y.host()?, patches, out_channels),
        // One channel: both orders are the same.
        Device::Cuda(queue) if out_channels == 1 => {
            to_image_cuda(queue, &mut x, y, patches, Channels { first: 0, of: 1 })?;
        }
        Device::Cuda(queue) => {
            let (grid, run) =
                lanes::<X>(samples, out_channels * patches.area(), plane_run::<X>(patches, out_channels));
            let (x, y, [c, h, w, p]) = (x.write()?, y.read()?, sizes(patches));
            kernels::unpatchify(queue, grid, x, y, run, c, out_channels as u32, h, w, p)?;
        }
    }
    Ok(x)
}

/// `dx: (B, C·H·W)` → `dy: (B·T, p·p·Cout)`, zero for channels that were dropped.
pub fn unpatchify_backward<X: FloatX>(
    dx: &Tensor<X>,
    patches: Patches,
    out_channels: usize,
) -> Result<Tensor<X>> {
    const OP: &str = "unpatchify_backward";
    check_out(OP, patches, out_channels)?;
    let samples = samples(OP, "dx", dx, patches.sample())?;
    if out_channels == 1 {
        return patchify(dx, patches);
    }
    let columns = Patches { channels: out_channels, ..patches }.columns();
    let mut dy = Tensor::uninit(dx.device(), [samples * patches.tokens(), columns]);
    match dx.device() {
        Device::Cpu(cpu) => from_planes_cpu(cpu, dy.host_mut()?, dx.host()?, patches, out_channels),
        Device::Cuda(queue) => {
            let (grid, run) =
                lanes::<X>(samples, out_channels * patches.area(), plane_run::<X>(patches, out_channels));
            let (dy, dx, [c, h, w, p]) = (dy.write()?, dx.read()?, sizes(patches));
            kernels::unpatchify_backward(queue, grid, dy, dx, run, c, out_channels as u32, h, w, p)?;
        }
    }
    Ok(dy)
}

/// Checks that the image has no more channels than a token gives.
fn check_out(op: &'static str, patches: Patches, out_channels: usize) -> Result<()> {
    patches.check(op, out_channels.max(patches.channels))?;
    if out_channels < patches.channels {
        let expected = format!("at least the image's {} channels", patches.channels);
        return Err(Error::argument(op, "out_channels", expected, format!("{out_channels}")));
    }
    Ok(())
}

/// Returns the samples of an image.
fn samples<X: FloatX>(op: &'static str, arg: &'static str, x: &Tensor<X>, sample: usize) -> Result<usize> {
    let (samples, _) = x.rows_cols();
    x.expect(op, arg, [samples, sample])?;
    Ok(samples)
}

/// Returns the samples of a tensor of tokens.
fn rows<X: FloatX>(
    op: &'static str,
    arg: &'static str,
    x: &Tensor<X>,
    columns: usize,
    tokens: usize,
) -> Result<usize> {
    let (rows, _) = x.rows_cols();
    let whole = rows / tokens * tokens;
    x.expect(op, arg, [whole, columns])?;
    Ok(rows / tokens)
}

fn sizes(patches: Patches) -> [u32; 4] {
    [patches.channels, patches.height, patches.width, patches.patch].map(|n| n as u32)
}

/// Threads of a block: a sample of 4 × 16 × 16 in bf16 is one.
const THREADS: usize = 128;

/// Covers `samples` samples of `n` numbers, a lane with a pack of them, or with one when `run` is 0.
fn lanes<X: FloatX>(samples: usize, n: usize, run: u32) -> (Grid, u32) {
    let each = if run == 0 { 1 } else { pack::<X>() };
    let blocks = samples * (n / each).div_ceil(THREADS);
    let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
    (Grid { blocks: [blocks, 1, 1], threads: THREADS as u32, shared: 0 }, run)
}

/// Returns the neighbouring pixels that one access moves: the largest power of two that divides patch and pack.
fn patch_run<X: FloatX>(image: Patches) -> u32 {
    let pack = pack::<X>();
    match image.sample().is_multiple_of(pack) {
        true => 1 << image.patch.trailing_zeros().min(pack.trailing_zeros()),
        false => 0,
    }
}

/// Returns how many pixels a pack of all channels holds: 1 when it holds a part of one pixel's channels.
fn plane_run<X: FloatX>(patches: Patches, out_channels: usize) -> u32 {
    let pack = pack::<X>();
    if out_channels.is_multiple_of(pack) {
        return 1;
    }
    let pixels = [pack / 2, pack / 4]
        .into_iter()
        .find(|pixels| pixels * out_channels == pack && patches.patch.is_multiple_of(*pixels));
    pixels.unwrap_or(0) as u32
}

fn to_image_cuda<X: FloatX>(
    queue: &Queue,
    dx: &mut Tensor<X>,
    dtokens: &Tensor<X>,
    patches: Patches,
    at: Channels,
) -> Result<()> {
    let (grid, run) = lanes::<X>(dx.rows_cols().0, patches.sample(), patch_run::<X>(patches));
    let (dx, dtokens, [c, h, w, p]) = (dx.write()?, dtokens.read()?, sizes(patches));
    let (first, of) = (at.first as u32, at.of as u32);
    kernels::patchify_backward(queue, grid, dx, dtokens, run, c, first, of, h, w, p)
}

/// Calls `f(written, read)` for each sample of both.
fn each_sample<X: FloatX>(
    cpu: &Cpu,
    (to, to_sample): (&mut [X], usize),
    (from, from_sample): (&[X], usize),
    f: impl Fn(&mut [X], &[X]) + Sync,
) {
    let block = rows_per_block(to_sample);
    let work = to.chunks_mut(block * to_sample).zip(from.chunks(block * from_sample));
    cpu.each(work, |(to, from)| {
        for (to, from) in to.chunks_exact_mut(to_sample).zip(from.chunks_exact(from_sample)) {
            f(to, from);
        }
    });
}

fn to_tokens_cpu<X: FloatX>(cpu: &Cpu, tokens: &mut [X], x: &[X], patches: Patches, at: Channels) {
    let (p, area, square) = (patches.patch, patches.area(), patches.patch * patches.patch);
    each_sample(cpu, (tokens, at.of * area), (x, patches.sample()), |tokens, x| {
        for (c, plane) in x.chunks_exact(area).enumerate() {
            patches.each_run(|token, column, pixel| {
                let to = &mut tokens[(token * at.of + at.first + c) * square + column..][..p];
                to.iter_mut().zip(&plane[pixel..]).for_each(|(to, from)| *to = *from);
            });
        }
    });
}

fn to_image_cpu<X: FloatX>(cpu: &Cpu, dx: &mut [X], dtokens: &[X], patches: Patches, at: Channels) {
    let (p, area, square) = (patches.patch, patches.area(), patches.patch * patches.patch);
    each_sample(cpu, (dx, patches.sample()), (dtokens, at.of * area), |dx, dtokens| {
        for (c, plane) in dx.chunks_exact_mut(area).enumerate() {
            patches.each_run(|token, column, pixel| {
                let from = &dtokens[(token * at.of + at.first + c) * square + column..];
                plane[pixel..][..p].iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            });
        }
    });
}

fn to_planes_cpu<X: FloatX>(cpu: &Cpu, x: &mut [X], y: &[X], patches: Patches, out: usize) {
    let (p, area, square) = (patches.patch, patches.area(), patches.patch * patches.patch);
    each_sample(cpu, (x, patches.sample()), (y, out * area), |x, y| {
        for (c, plane) in x.chunks_exact_mut(area).enumerate() {
            patches.each_run(|token, column, pixel| {
                let from = y[(token * square + column) * out + c..].iter().step_by(out);
                plane[pixel..][..p].iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            });
        }
    });
}

fn from_planes_cpu<X: FloatX>(cpu: &Cpu, dy: &mut [X], dx: &[X], patches: Patches, out: usize) {
    let (p, area, square) = (patches.patch, patches.area(), patches.patch * patches.patch);
    each_sample(cpu, (dy, out * area), (dx, patches.sample()), |dy, dx| {
        if out > patches.channels {
            dy.fill(X::from_f32(0.0));
        }
        for (c, plane) in dx.chunks_exact(area).enumerate() {
            patches.each_run(|token, column, pixel| {
                let to = dy[(token * square + column) * out + c..].iter_mut().step_by(out);
                to.zip(&plane[pixel..][..p]).for_each(|(to, from)| *to = *from);
            });
        }
    });
}

//! Layer norm of each head's query and key, before attention (QK-norm); values pass.
//!
//! ```text
//! x̂ = (x − mean) · rstd,  rstd = 1/√(var + 1e-5)           over the K columns of a head, statistics in f32, saved
//! y = x̂ · weight + bias                                     one weight and bias for all queries, one for all keys
//! ```
//! Backward: `dx̂ = dy·weight`, `dx = rstd·(dx̂ − mean(dx̂) − x̂·mean(dx̂·x̂))`, `dweight = Σ dy·x̂`, `dbias = Σ dy`.
//! 1e-5 is what timm's `Attention` gives its norms (`nn.LayerNorm`); the norms of a block have 1e-6. Reads and writes qkv once, and dy
//! backward: memory bound. Kernels: `kernels/qk_norm.cu`.

use crate::device::cuda::{Grid, Read};
use crate::device::{Arch, Cpu, Device, Queue};
use crate::error::Result;
use crate::float::FloatX;
use crate::kernels;
use crate::ops::attention::{Heads, Sizes, check};
use crate::ops::layer_norm::{normalise, normalise_backward};
use crate::ops::modulation::Slices;
use crate::ops::{add_partials, narrow, rows_per_block, rows_per_partial, widen};
use crate::tensor::{Tensor, View, ViewMut};

/// Added to the variance.
const EPS: f32 = 1e-5;

/// The affine maps behind the norms.
#[derive(Clone, Copy, Debug)]
pub struct QkNorm<'a, X: FloatX> {
    /// Weight and bias of queries, (K) each.
    pub q: (View<'a, X>, View<'a, X>),
    /// Weight and bias of keys, (K) each.
    pub k: (View<'a, X>, View<'a, X>),
}

/// Where a backward adds the gradients of the affine maps.
#[derive(Debug)]
pub struct QkNormGrads<'g> {
    /// Of weight and bias of queries, (K) each.
    pub q: (ViewMut<'g, f32>, ViewMut<'g, f32>),
    /// Of weight and bias of keys, (K) each.
    pub k: (ViewMut<'g, f32>, ViewMut<'g, f32>),
}

/// `qkv: (N, 3·H·K)` → y of the same shape, and mean and rstd of each head's query and key, `(N, 4·H)`.
///
/// # Errors
/// Rows or columns that do not divide, an odd head width, or a shape that does not fit.
pub fn qk_norm_forward<X: FloatX>(
    qkv: &Tensor<X>,
    norm: &QkNorm<'_, X>,
    heads: Heads,
) -> Result<(Tensor<X>, Tensor<f32>)> {
    const OP: &str = "qk_norm_forward";
    let sizes = check(OP, qkv, heads)?;
    norm.check(OP, sizes.width)?;
    let mut y = Tensor::like(qkv);
    let mut stats = Tensor::uninit(qkv.device(), [qkv.rows_cols().0, 4 * sizes.heads]);
    match qkv.device() {
        Device::Cpu(cpu) => {
            let affine = norm.widened(qkv.device(), sizes.width)?;
            forward_cpu(cpu, y.host_mut()?, stats.host_mut()?, qkv.host()?, affine.host()?, sizes);
        }
        Device::Cuda(queue) => {
            let ([q_weight, q_bias, k_weight, k_bias], (grid, vectors)) = (norm.read()?, sizes.vectors());
            let (y, stats, qkv) = (y.write()?, stats.write()?, qkv.read()?);
            let (heads, k) = (sizes.heads as u32, sizes.width as u32);
            kernels::qk_norm_forward(
                queue, grid, y, stats, qkv, q_weight, q_bias, k_weight, k_bias, vectors, heads, k,
            )?;
        }
    }
    Ok((y, stats))
}

/// `dy, qkv: (N, 3·H·K)` → dqkv of the same shape; `stats` are those of the forward.
///
/// # Errors
/// Those of the forward.
pub fn qk_norm_backward<X: FloatX>(
    dy: &Tensor<X>,
    qkv: &Tensor<X>,
    stats: &Tensor<f32>,
    norm: &QkNorm<'_, X>,
    heads: Heads,
    grads: Option<QkNormGrads<'_>>,
) -> Result<Tensor<X>> {
    const OP: &str = "qk_norm_backward";
    let sizes = check(OP, qkv, heads)?;
    norm.check(OP, sizes.width)?;
    dy.expect(OP, "dy", qkv.shape())?;
    stats.expect(OP, "stats", [qkv.rows_cols().0, 4 * sizes.heads])?;
    if let Some(grads) = &grads {
        grads.check(OP, sizes.width)?;
    }
    let mut dqkv = Tensor::like(qkv);
    match qkv.device() {
        Device::Cpu(cpu) => backward_cpu(cpu, &mut dqkv, dy, qkv, stats, norm, sizes, grads)?,
        Device::Cuda(queue) => {
            let ([q_weight, _, k_weight, _], (grid, vectors)) = (norm.read()?, sizes.vectors());
            let (dqkv, dy_read, x, saved) = (dqkv.write()?, dy.read()?, qkv.read()?, stats.read()?);
            let (heads, k) = (sizes.heads as u32, sizes.width as u32);
            kernels::qk_norm_backward(
                queue, grid, dqkv, dy_read, x, saved, q_weight, k_weight, vectors, heads, k,
            )?;
            if let Some(grads) = grads {
                gradients_cuda(queue, grads, dy, qkv, stats, sizes)?;
            }
        }
    }
    Ok(dqkv)
}

impl<'a, X: FloatX> QkNorm<'a, X> {
    fn check(&self, op: &'static str, k: usize) -> Result<()> {
        self.q.0.expect(op, "q weight", [k])?;
        self.q.1.expect(op, "q bias", [k])?;
        self.k.0.expect(op, "k weight", [k])?;
        self.k.1.expect(op, "k bias", [k])
    }

    /// Weight and bias of queries, then of keys, for kernels.
    fn read(&self) -> Result<[Read<'a, X>; 4]> {
        Ok([self.q.0.read()?, self.q.1.read()?, self.k.0.read()?, self.k.1.read()?])
    }

    /// The same as the rows of one f32 matrix.
    fn widened(&self, device: &Device, k: usize) -> Result<Tensor<f32>> {
        let mut affine = Tensor::uninit(device, [4, k]);
        let parts = [self.q.0, self.q.1, self.k.0, self.k.1];
        for (row, part) in affine.host_mut()?.chunks_exact_mut(k).zip(parts) {
            widen(row, part.host()?);
        }
        Ok(affine)
    }
}

impl QkNormGrads<'_> {
    fn check(&self, op: &'static str, k: usize) -> Result<()> {
        self.q.0.as_view().expect(op, "dq weight", [k])?;
        self.q.1.as_view().expect(op, "dq bias", [k])?;
        self.k.0.as_view().expect(op, "dk weight", [k])?;
        self.k.1.as_view().expect(op, "dk bias", [k])
    }
}

impl Sizes {
    /// Covers all heads' queries, keys and values with a warp each.
    fn vectors(&self) -> (Grid, u32) {
        let vectors = self.samples * self.tokens * 3 * self.heads;
        (Grid::covering(32 * vectors, 1, 256), vectors as u32)
    }
}

fn gradients_cuda<X: FloatX>(
    queue: &Queue,
    grads: QkNormGrads<'_>,
    dy: &Tensor<X>,
    qkv: &Tensor<X>,
    stats: &Tensor<f32>,
    sizes: Sizes,
) -> Result<()> {
    let (rows, k) = (sizes.samples * sizes.tokens, sizes.width);
    let slices = Slices::of(rows);
    let mut partials = Tensor::<f32>::uninit(qkv.device(), [slices.count, 4 * k]);
    let grid = Grid { blocks: [k.div_ceil(64) as u32, slices.count as u32, 2], threads: 256, shared: 0 };
    let (out, each, heads) = (partials.write()?, slices.rows as u32, sizes.heads as u32);
    let (dy, x, saved) = (dy.read()?, qkv.read()?, stats.read()?);
    kernels::qk_norm_sums(queue, grid, out, dy, x, saved, rows as u32, each, heads, k as u32)?;
    let (q_weight, q_bias) = (grads.q.0.into_write()?, grads.q.1.into_write()?);
    let (k_weight, k_bias) = (grads.k.0.into_write()?, grads.k.1.into_write()?);
    let (grid, partials, count) = (Grid::covering(4 * k, 1, 256), partials.read()?, slices.count as u32);
    kernels::qk_norm_gradients(queue, grid, q_weight, q_bias, k_weight, k_bias, partials, count, k as u32)
}

fn forward_cpu<X: FloatX>(
    cpu: &Cpu,
    y: &mut [X],
    stats: &mut [f32],
    qkv: &[X],
    affine: &[f32],
    sizes: Sizes,
) {
    let Sizes { heads, width: k, .. } = sizes;
    let columns = 3 * heads * k;
    let rows = rows_per_block(columns);
    let mut scratch = cpu.take(qkv.len().div_ceil(rows * columns) * k * 4);
    let work = y.chunks_mut(rows * columns).zip(stats.chunks_mut(rows * 4 * heads));
    let work = work.zip(qkv.chunks(rows * columns)).zip(scratch.as_mut_slice::<f32>().chunks_mut(k));
    cpu.each(work, |(((y, stats), qkv), vector)| {
        cpu.isa().run(
            #[inline(always)]
            |arch| {
                let rows = y.chunks_exact_mut(columns).zip(qkv.chunks_exact(columns));
                for ((y, x), stats) in rows.zip(stats.chunks_exact_mut(4 * heads)) {
                    let (y, values) = y.split_at_mut(2 * heads * k);
                    values.copy_from_slice(&x[2 * heads * k..]);
                    let vectors = y.chunks_exact_mut(k).zip(x.chunks_exact(k)).zip(stats.chunks_exact_mut(2));
                    for (j, ((y, x), stats)) in vectors.enumerate() {
                        let (weight, bias) = map_of(affine, j / heads, k);
                        widen(vector, x);
                        normalise(arch, vector, stats, EPS);
                        for ((v, w), b) in vector.iter_mut().zip(weight).zip(bias) {
                            *v = arch.fma(*v, *w, *b);
                        }
                        narrow(y, vector);
                    }
                }
            },
        );
    });
}

/// Returns weight and bias of queries (part 0) or keys (part 1).
#[inline(always)]
fn map_of(affine: &[f32], part: usize, k: usize) -> (&[f32], &[f32]) {
    affine[2 * part * k..][..2 * k].split_at(k)
}

#[allow(clippy::too_many_arguments)] // the arguments of the public function, and the device
fn backward_cpu<X: FloatX>(
    cpu: &Cpu,
    dqkv: &mut Tensor<X>,
    dy: &Tensor<X>,
    qkv: &Tensor<X>,
    stats: &Tensor<f32>,
    norm: &QkNorm<'_, X>,
    sizes: Sizes,
    grads: Option<QkNormGrads<'_>>,
) -> Result<()> {
    let Sizes { heads, width: k, .. } = sizes;
    let (n, columns) = qkv.rows_cols();
    let rows = rows_per_partial(n, 1);
    // Of each block: x̂ and d of a vector, then the sums of dweight and dbias of queries and of keys.
    let mut scratch = Tensor::<f32>::uninit(qkv.device(), [n.div_ceil(rows), 6 * k]);
    let affine = norm.widened(qkv.device(), k)?;
    let (affine, dy, qkv, stats) = (affine.host()?, dy.host()?, qkv.host()?, stats.host()?);
    let work = dqkv.host_mut()?.chunks_mut(rows * columns).zip(scratch.host_mut()?.chunks_mut(6 * k));
    cpu.each(work.enumerate(), |(block, (dqkv, scratch))| {
        let first = block * rows;
        let input = BackwardBlock {
            dy: &dy[first * columns..],
            qkv: &qkv[first * columns..],
            stats: &stats[first * 4 * heads..],
            affine,
            sizes,
        };
        cpu.isa().run(
            #[inline(always)]
            |arch| input.run(arch, dqkv, scratch),
        );
    });
    if let Some(QkNormGrads { q: (mut q_weight, mut q_bias), k: (mut k_weight, mut k_bias) }) = grads {
        let sums = [q_weight.host_mut()?, q_bias.host_mut()?, k_weight.host_mut()?, k_bias.host_mut()?];
        let scratch = scratch.host()?;
        cpu.isa().run(
            #[inline(always)]
            |arch| {
                for (i, sums) in sums.into_iter().enumerate() {
                    for block in scratch.chunks_exact(6 * k) {
                        add_partials(arch, sums, &block[(2 + i) * k..][..k]);
                    }
                }
            },
        );
    }
    Ok(())
}

struct BackwardBlock<'a, X> {
    dy: &'a [X],
    qkv: &'a [X],
    stats: &'a [f32],
    affine: &'a [f32],
    sizes: Sizes,
}

impl<X: FloatX> BackwardBlock<'_, X> {
    #[inline(always)]
    fn run(&self, arch: Arch, dqkv: &mut [X], scratch: &mut [f32]) {
        let Sizes { heads, width: k, .. } = self.sizes;
        let (x_hat, rest) = scratch.split_at_mut(k);
        let (d, sums) = rest.split_at_mut(k);
        sums.fill(0.0);
        for (i, dx) in dqkv.chunks_exact_mut(k).enumerate() {
            let (row, j) = (i / (3 * heads), i % (3 * heads));
            let dy = &self.dy[i * k..][..k];
            if j >= 2 * heads {
                dx.copy_from_slice(dy);
                continue;
            }
            let at = 2 * (row * 2 * heads + j);
            let (mean, rstd) = (self.stats[at], self.stats[at + 1]);
            for (h, x) in x_hat.iter_mut().zip(&self.qkv[i * k..]) {
                *h = (x.to_f32() - mean) * rstd;
            }
            widen(d, dy);
            let (weight, _) = map_of(self.affine, j / heads, k);
            let (dweight, dbias) = sums[j / heads * 2 * k..][..2 * k].split_at_mut(k);
            for ((((d, h), w), dweight), dbias) in
                d.iter_mut().zip(&*x_hat).zip(weight).zip(dweight).zip(dbias)
            {
                *dweight = arch.fma(*d, *h, *dweight);
                *dbias += *d;
                *d *= w;
            }
            normalise_backward(arch, d, x_hat, rstd);
            narrow(dx, d);
        }
    }
}

//! Layer norm's launches: `kernels/layer_norm.cu`.

use crate::device::Queue;
use crate::device::cuda::{Grid, Read, Write};
use crate::error::Result;
use crate::float::FloatX;
use crate::kernels;
use crate::ops::layer_norm::{LayerNorm, LayerNormGrads};
use crate::ops::modulation::{DeviceModulation, ModulationGrad, Slices, block_rows, weights_shared};
use crate::ops::{pack, warp_grid};
use crate::tensor::Tensor;

impl<'a, X: FloatX> LayerNorm<'a, X> {
    /// Returns the optional parts for CUDA kernels: modulation and its offset, gamma, beta.
    #[allow(clippy::type_complexity)] // four arguments of a kernel
    fn on_device(&self) -> Result<(DeviceModulation<'a, X>, u32, Read<'a, X>, Read<'a, X>)> {
        let (m, offset) = match &self.modulation {
            Some((modulation, offset)) => (modulation.on_device()?, *offset as u32),
            None => (DeviceModulation::none(), 0),
        };
        let (gamma, beta) = match &self.affine {
            Some((gamma, beta)) => (gamma.read()?, beta.read()?),
            None => (Read::none(), Read::none()),
        };
        Ok((m, offset, gamma, beta))
    }
}

pub(super) fn forward<X: FloatX>(
    queue: &Queue,
    y: &mut Tensor<X>,
    stats: &mut Tensor<f32>,
    x: &Tensor<X>,
    norm: &LayerNorm<'_, X>,
    residual: Option<&Tensor<X>>,
) -> Result<()> {
    let (n, c) = x.rows_cols();
    let (m, offset, gamma, beta) = norm.on_device()?;
    let residual = residual.map_or(Ok(Read::none()), Tensor::read)?;
    let affine = 2 * (gamma.address() != 0) as usize;
    let shared = Shared { rows: 4, nodes: m.r, affine, bytes: size_of::<X>() };
    let (y, stats, x, rows, width) = (y.write()?, stats.write()?, x.read()?, n as u32, c as u32);
    match shared.held(c, pack::<X>(), queue.shared_memory()) {
        Some((each, bytes)) => kernels::layer_norm_forward(
            queue,
            row_blocks(n, each, bytes),
            y,
            stats,
            x,
            gamma,
            beta,
            residual,
            m.table,
            m.nodes,
            m.weights,
            m.columns,
            m.share,
            m.r,
            offset,
            each as u32,
            rows,
            width,
        ),
        None => kernels::layer_norm_forward_any(
            queue,
            row_blocks(n, shared.rows, weights_shared(shared.nodes)),
            y,
            stats,
            x,
            gamma,
            beta,
            residual,
            m.table,
            m.nodes,
            m.weights,
            m.columns,
            m.share,
            m.r,
            offset,
            rows,
            width,
        ),
    }
}

/// What a block of 8 warps keeps in shared memory: weights of its rows, gamma and beta, and the rows. `Held` in `kernels/layer_norm.cu`.
struct Shared {
    /// Rows of a warp, at most.
    rows: usize,
    nodes: u32,
    /// Vectors of the affine map.
    affine: usize,
    /// Bytes of an element of a row: stored, and backward the f32 of dn·gamma beside it.
    bytes: usize,
}

/// Static shared memory of these kernels, at most: two stages of nodes, and moments.
const STATIC: usize = 9728;

impl Shared {
    /// Returns how many rows a warp takes so that they fit, and the bytes; nothing if none does, or rows have no whole packs.
    fn held(&self, c: usize, pack: usize, most: u32) -> Option<(usize, usize)> {
        let stored = 16 / pack;
        let bytes =
            |rows| weights_shared(self.nodes) + c * (self.affine * stored + block_rows(rows) * self.bytes);
        let mut halved = std::iter::successors(Some(self.rows), |rows| (rows / 2 > 0).then_some(rows / 2));
        let rows = halved.find(|rows| c.is_multiple_of(pack) && bytes(*rows) + STATIC <= most as usize)?;
        Some((rows, bytes(rows)))
    }
}

/// Covers N rows with blocks of 8 warps of `each` rows.
fn row_blocks(n: usize, each: usize, shared: usize) -> Grid {
    Grid { blocks: [n.div_ceil(block_rows(each)) as u32, 1, 1], threads: 256, shared: shared as u32 }
}

#[allow(clippy::too_many_arguments)] // those of `layer_norm_backward`, and where to write
pub(super) fn backward<X: FloatX>(
    queue: &Queue,
    dx: &mut Tensor<X>,
    dy: &Tensor<X>,
    x: &Tensor<X>,
    stats: &Tensor<f32>,
    norm: &LayerNorm<'_, X>,
    add: Option<&Tensor<X>>,
    grads: LayerNormGrads<'_, '_, X>,
) -> Result<()> {
    let (n, c) = x.rows_cols();
    let (m, offset, gamma, beta) = norm.on_device()?;
    let add = add.map_or(Ok(Read::none()), Tensor::read)?;
    let (rows, width) = (n as u32, c as u32);
    let (dx, dy, x_read, saved) = (dx.write()?, dy.read()?, x.read()?, stats.read()?);
    let affine = (gamma.address() != 0) as usize;
    let shared = Shared { rows: 2, nodes: m.r, affine, bytes: size_of::<X>() + 4 };
    match shared.held(c, pack::<X>(), queue.shared_memory()) {
        Some((each, bytes)) => {
            let grid = row_blocks(n, each, bytes);
            kernels::layer_norm_backward(
                queue,
                grid,
                dx,
                dy,
                x_read,
                saved,
                gamma,
                add,
                m.table,
                m.nodes,
                m.weights,
                m.columns,
                m.share,
                m.r,
                offset,
                each as u32,
                rows,
                width,
            )?;
        }
        None => {
            let grid = row_blocks(n, shared.rows, weights_shared(shared.nodes));
            kernels::layer_norm_backward_any(
                queue, grid, dx, dy, x_read, saved, gamma, add, m.table, m.nodes, m.weights, m.columns,
                m.share, m.r, offset, rows, width,
            )?;
        }
    }
    let mut dtable = Write::none();
    match grads.modulation {
        Some(ModulationGrad::Index(dtable)) => {
            let groups = n / m.share as usize;
            let (grid, dtable, groups) = (warp_grid::<X>(groups, c, 1), dtable.write()?, groups as u32);
            kernels::layer_norm_index(
                queue, grid, dtable, dy, x_read, saved, gamma, beta, groups, m.share, m.columns, offset,
                width,
            )?;
        }
        Some(ModulationGrad::Interpolate(table)) => dtable = table.write()?,
        None => {}
    }
    let interpolated = dtable.address() != 0;
    let (mut dgamma, mut dbeta) = (Write::none(), Write::none());
    if let Some((gamma, beta)) = grads.affine {
        (dgamma, dbeta) = (gamma.into_write()?, beta.into_write()?);
    }
    let plain = (dgamma.address() != 0) as u32;
    if !interpolated && plain == 0 {
        return Ok(());
    }
    // Without the nodes' sums the scale of each row would be missing from dgamma and dbeta: they are taken all the same.
    let r = m.r as usize;
    let slices = Slices::of(n);
    let mut partials = Tensor::<f32>::uninit(x.device(), [slices.count, 2 * (r + plain as usize) * c]);
    let (out, grid, each) = (partials.write()?, slices.grid(c, 2, r), slices.rows as u32);
    let indexed = if r == 0 { m.columns } else { 0 };
    kernels::layer_norm_sums(
        queue, grid, out, dy, x_read, saved, m.table, m.weights, indexed, m.share, m.r, plain, offset, rows,
        each, width,
    )?;
    let (partials, count) = (partials.read()?, slices.count as u32);
    let grid = Grid { blocks: [c.div_ceil(32) as u32, 1, 1], threads: 256, shared: 0 };
    kernels::layer_norm_gradients(
        queue, grid, dtable, dgamma, dbeta, partials, gamma, beta, m.nodes, count, m.r, m.columns, offset,
        width,
    )
}

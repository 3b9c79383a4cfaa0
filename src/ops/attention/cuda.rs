//! Attention's launches: `kernels/attention.cu` and `kernels/attention_backward.cu`.
//!
//! Heads of 16-bit floats are filled up to the next width that has a kernel; so are those of f32, to multiples of 32. Only rows and columns
//! that exist are read and written.

use crate::device::Queue;
use crate::device::cuda::{DeviceBuf, Grid, Read, Write};
use crate::error::Result;
use crate::float::{DType, FloatX};
use crate::kernels;
use crate::ops::attention::Sizes;
use crate::tensor::Tensor;

/// Widths on tensor cores. 72 becomes 80; 16 and 48 (112) would be a quarter (an eighth) faster by kernels of their own, and are rare.
const WIDTHS: [usize; 5] = [32, 64, 80, 96, 128];
/// The first of these have a forward of 128 rows a block. Wider ones would not keep 32 rows of sums, scores and queries a warp in registers.
const TALL: usize = 3;
/// Widths in f32.
const FLOAT_WIDTHS: [usize; 4] = [32, 64, 96, 128];
/// Threads of a block.
const THREADS: u32 = 128;
/// Rows of a block: on tensor cores, and in f32.
const ROWS: (usize, usize) = (64, 32);
/// Words of f32's shared memory: a row of a tile is so many longer than its width, and a product of 32 x 32 has rows of so many.
const FLOAT_ROW: (usize, usize) = (4, 36);

/// What all launches of a call share.
struct Launch {
    sizes: Sizes,
    /// K^-1/2.
    scale: f32,
    /// Index into the widths of the storage type.
    width: usize,
}

impl Launch {
    fn new<X: FloatX>(queue: &Queue, sizes: Sizes) -> Result<Self> {
        let k = sizes.width;
        let widths: &[usize] = if X::DTYPE == DType::F32 { &FLOAT_WIDTHS } else { &WIDTHS };
        let Some(width) = widths.iter().position(|width| k <= *width) else {
            return Err(queue.lacks(&format!("attention with heads of {k} columns, more than 128,")));
        };
        Ok(Self { sizes, scale: 1.0 / (k as f32).sqrt(), width })
    }

    /// T, H and K as kernels take them.
    fn numbers(&self) -> (u32, u32, u32) {
        (self.sizes.tokens as u32, self.sizes.heads as u32, self.sizes.width as u32)
    }

    /// Covers the rows of all heads with blocks of so many.
    fn grid(&self, rows: usize, shared: usize) -> Grid {
        let blocks = self.sizes.samples * self.sizes.heads * self.sizes.tokens.div_ceil(rows);
        Grid { blocks: [blocks as u32, 1, 1], threads: THREADS, shared: shared as u32 }
    }

    /// The same in f32, with so many tiles and products in shared memory.
    fn grid_f32(&self, tiles: usize, products: usize) -> Grid {
        let words = tiles * (FLOAT_WIDTHS[self.width] + FLOAT_ROW.0) + products * FLOAT_ROW.1;
        self.grid(ROWS.1, 4 * ROWS.1 * words)
    }

    /// T rounded up to whole blocks.
    fn padded(&self) -> usize {
        self.sizes.tokens.next_multiple_of(ROWS.0)
    }

    /// Says whether blocks of 128 rows take less time than those of 64: keys and values that they share cost half the shared memory, which
    /// is what takes longest with 64. Not if they are filled worse, or leave multiprocessors without a block.
    fn is_tall(&self, queue: &Queue) -> bool {
        let Sizes { samples, tokens, heads, .. } = self.sizes;
        let blocks = samples * heads * tokens.div_ceil(2 * ROWS.0);
        let filled = tokens.div_ceil(ROWS.0).is_multiple_of(2) || tokens > 16 * ROWS.0;
        self.width < TALL && filled && blocks >= queue.multiprocessors() as usize
    }
}

/// o (N, H·K) and lse (N, H) of qkv (N, 3·H·K).
pub(super) fn forward<X: FloatX>(
    queue: &Queue,
    o: &mut Tensor<X>,
    lse: &mut Tensor<f32>,
    qkv: &Tensor<X>,
    sizes: Sizes,
) -> Result<()> {
    let launch = Launch::new::<X>(queue, sizes)?;
    let (o, lse, qkv) = (o.write()?, lse.write()?, qkv.read()?);
    let (tokens, heads, k) = launch.numbers();
    if X::DTYPE == DType::F32 {
        let kernel = [
            kernels::attention_forward_f32_32,
            kernels::attention_forward_f32_64,
            kernels::attention_forward_f32_96,
            kernels::attention_forward_f32_128,
        ][launch.width];
        let grid = launch.grid_f32(3, 1);
        return kernel(queue, grid, o.retyped(), lse, qkv.retyped(), launch.scale, tokens, heads, k);
    }
    let (kernel, rows) = if launch.is_tall(queue) {
        let tall = [
            kernels::attention_forward_tall_32::<X>,
            kernels::attention_forward_tall_64::<X>,
            kernels::attention_forward_tall_80::<X>,
        ];
        (tall[launch.width], 2 * ROWS.0)
    } else {
        let low = [
            kernels::attention_forward_32::<X>,
            kernels::attention_forward_64::<X>,
            kernels::attention_forward_80::<X>,
            kernels::attention_forward_96::<X>,
            kernels::attention_forward_128::<X>,
        ];
        (low[launch.width], ROWS.0)
    };
    kernel(queue, launch.grid(rows, 0), o, lse, qkv, launch.scale, tokens, heads, k)
}

/// dqkv (N, 3·H·K) of do and o (N, H·K), lse (N, H) and qkv (N, 3·H·K).
pub(super) fn backward<X: FloatX>(
    queue: &Queue,
    dqkv: &mut Tensor<X>,
    d_o: &Tensor<X>,
    o: &Tensor<X>,
    lse: &Tensor<f32>,
    qkv: &Tensor<X>,
    sizes: Sizes,
) -> Result<()> {
    let launch = Launch::new::<X>(queue, sizes)?;
    let (dqkv, d_o, qkv) = (dqkv.write()?, d_o.read()?, qkv.read()?);
    let pairs = row_pairs(queue, &launch, d_o, o.read()?, lse.read()?)?;
    let rows = Read::at(pairs.address());
    let padded = launch.padded() as u32;
    let ((tokens, heads, k), scale) = (launch.numbers(), launch.scale);
    if X::DTYPE == DType::F32 {
        let keys = [
            kernels::attention_backward_keys_f32_32,
            kernels::attention_backward_keys_f32_64,
            kernels::attention_backward_keys_f32_96,
            kernels::attention_backward_keys_f32_128,
        ][launch.width];
        let queries = [
            kernels::attention_backward_queries_f32_32,
            kernels::attention_backward_queries_f32_64,
            kernels::attention_backward_queries_f32_96,
            kernels::attention_backward_queries_f32_128,
        ][launch.width];
        let (grid, d_o, qkv) = (launch.grid_f32(4, 2), d_o.retyped(), qkv.retyped());
        let dqkv_again = Write::at(dqkv.address());
        keys(queue, grid, dqkv.retyped(), d_o, qkv, rows, scale, tokens, padded, heads, k)?;
        return queries(queue, grid, dqkv_again, d_o, qkv, rows, scale, tokens, padded, heads, k);
    }
    let keys = [
        kernels::attention_backward_keys_32::<X>,
        kernels::attention_backward_keys_64::<X>,
        kernels::attention_backward_keys_80::<X>,
        kernels::attention_backward_keys_96::<X>,
        kernels::attention_backward_keys_128::<X>,
    ][launch.width];
    let queries = [
        kernels::attention_backward_queries_32::<X>,
        kernels::attention_backward_queries_64::<X>,
        kernels::attention_backward_queries_80::<X>,
        kernels::attention_backward_queries_96::<X>,
        kernels::attention_backward_queries_128::<X>,
    ][launch.width];
    let (grid, dqkv_again) = (launch.grid(ROWS.0, 0), Write::at(dqkv.address()));
    keys(queue, grid, dqkv, d_o, qkv, rows, scale, tokens, padded, heads, k)?;
    queries(queue, grid, dqkv_again, d_o, qkv, rows, scale, tokens, padded, heads, k)
}

/// −lse and delta of each row: (B, H, T rounded up, 2).
fn row_pairs<X: FloatX>(
    queue: &Queue,
    launch: &Launch,
    d_o: Read<'_, X>,
    o: Read<'_, X>,
    lse: Read<'_, f32>,
) -> Result<DeviceBuf> {
    let (sizes, padded) = (launch.sizes, launch.padded());
    let pairs = queue.block(sizes.samples * sizes.heads * padded * 8)?;
    let (tokens, heads, k) = launch.numbers();
    // A block: 32 rows of 8 heads.
    let blocks = sizes.samples * (padded / 32) * sizes.heads.div_ceil(8);
    let grid = Grid { blocks: [blocks as u32, 1, 1], threads: 256, shared: 0 };
    let rows = Write::at(pairs.address());
    kernels::attention_backward_rows(queue, grid, rows, d_o, o, lse, tokens, padded as u32, heads, k)?;
    Ok(pairs)
}

//! Fixed splits of rows into blocks, and casts between storage and f32 rows.

use crate::device::Arch;
use crate::device::cuda::Grid;
use crate::float::FloatX;

/// Elements that one block of a streaming operation covers: big enough to be worth a thread, small enough for L2.
const BLOCK: usize = 16 * 1024;

/// Returns how many rows of `width` a block of a streaming operation takes.
pub(crate) fn rows_per_block(width: usize) -> usize {
    (BLOCK / width.max(1)).max(1)
}

/// Returns how many rows a block takes in an operation that also sums over rows: at most 16 blocks, whose partial sums
/// are added in order, none of them with so few rows that the partial sums are most of the work. A multiple of `unit` (rows that
/// share something).
pub(crate) fn rows_per_partial(rows: usize, unit: usize) -> usize {
    rows.div_ceil(16).max(32).div_ceil(unit) * unit
}

/// Elements of X that one 16-byte access of a CUDA kernel moves.
pub(crate) fn pack<X: FloatX>() -> usize {
    16 / size_of::<X>()
}

/// Covers `rows` rows with a warp for every 32·each columns: `place` in `kernels/common.cuh`. A lane takes `each` columns:
/// a pack of X where rows are multiples of one, else `odd`.
pub(crate) fn warp_grid<X: FloatX>(rows: usize, width: usize, odd: usize) -> Grid {
    let each = if width.is_multiple_of(pack::<X>()) { pack::<X>() } else { odd };
    Grid::covering(32 * rows * width.div_ceil(32 * each), 1, 256)
}

/// Widens a row.
#[inline(always)]
pub(crate) fn widen<X: FloatX>(y: &mut [f32], x: &[X]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = x.to_f32();
    }
}

/// Rounds a row to storage.
#[inline(always)]
pub(crate) fn narrow<X: FloatX>(y: &mut [X], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = X::from_f32(*x);
    }
}

/// Adds the partial sums (P, W) into `y` (W), first to last.
#[inline(always)]
pub(crate) fn add_partials(_arch: Arch, y: &mut [f32], partials: &[f32]) {
    for partial in partials.chunks_exact(y.len()) {
        for (y, p) in y.iter_mut().zip(partial) {
            *y += p;
        }
    }
}

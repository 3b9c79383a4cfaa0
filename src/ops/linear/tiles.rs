//! Which tile a matrix product on a GPU takes, and into how many parts its depth is cut: one table, and arithmetic over it.
//!
//! The arithmetic is a bound by counted work, no measurement: clocks of tensor cores (or fused multiply-adds) and of shared memory,
//! times the tiles that one multiprocessor gets, plus what parts cost. It needs to be right about which choice is better.

use crate::device::cuda::Grid;

/// Kernels of `kernels/linear.cu`, by what a block covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocks {
    /// Tensor cores, 128 × 128.
    T128x128,
    /// Tensor cores, 128 × 64.
    T128x64,
    /// Tensor cores, 64 × 64.
    T64x64,
    /// Tensor cores, 64 × 64, rows of the operands anywhere.
    Any,
    /// f32, 128 × 128.
    F128,
    /// f32, 64 × 128.
    F64,
    /// f32, 32 × 128.
    F32,
}

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    /// bf16 or f16 on tensor cores.
    Half,
    /// f32 rounded to tf32, on tensor cores.
    Tf32,
    /// f32, fused multiply-adds.
    F32,
}

/// A row of the table.
#[derive(Debug)]
pub(super) struct Tile {
    pub blocks: Blocks,
    rows: u64,
    columns: u64,
    threads: u32,
    /// Bytes of depth in a step.
    step: u64,
    /// Wavefronts of shared memory in a step: copies in, and reads by all warps.
    wavefronts: u64,
    /// Needs operands whose rows begin at multiples of 16 bytes.
    aligned: bool,
}

/// The shapes there are, the one to prefer first.
///
/// On tensor cores a step is 64 bytes deep: (rows + columns)·64 bytes go in, and a warp of 64 × 64 (of 32 × 64) reads 128 (96) lines of it;
/// 128 bytes are a wavefront. In f32 a step is 8 deep, and 16 rows of a warp cost 8 wavefronts a depth.
static TILES: [Tile; 7] = [
    // A warp multiplies 64 × 64, the least shared memory for the work: 384 wavefronts against 512 clocks of an A100's tensor cores.
    tensor(Blocks::T128x128, 128, 128, 128, 128 + 4 * 64),
    // Half of it where that leaves multiprocessors idle, or columns are few; 288 against 256.
    tensor(Blocks::T128x64, 128, 64, 128, 96 + 4 * 48),
    // Small batches and layers: 160 against 128.
    tensor(Blocks::T64x64, 64, 64, 64, 64 + 2 * 48),
    // Odd widths: copies of 4 bytes, or 2.
    Tile { aligned: false, ..tensor(Blocks::Any, 64, 64, 64, 64 + 2 * 48) },
    // f32: 16 × 4 results a thread; more rows read less of B again.
    float(Blocks::F128, 128),
    float(Blocks::F64, 64),
    float(Blocks::F32, 32),
];

const fn tensor(blocks: Blocks, rows: u64, columns: u64, threads: u32, wavefronts: u64) -> Tile {
    Tile { blocks, rows, columns, threads, step: 64, wavefronts, aligned: true }
}

const fn float(blocks: Blocks, rows: u64) -> Tile {
    let wavefronts = (rows + 128) * 32 / 128 + rows / 16 * 64;
    Tile { blocks, rows, columns: 128, threads: rows as u32 * 2, step: 32, wavefronts, aligned: false }
}

/// Multiply-adds of a multiprocessor in a clock.
struct Rates {
    /// The first compute capability of the row.
    from: (i32, i32),
    /// Of 16-bit numbers; tf32 takes twice as long.
    half: u64,
    /// Of f32.
    float: u64,
}

/// By architecture, the newest first.
static RATES: [Rates; 5] = [
    // GeForce boards of Blackwell: sums in f32 at half rate.
    Rates { from: (12, 0), half: 256, float: 128 },
    // `mma.sync` gets about half of what `wgmma` and `tcgen05` do: 2048 and more.
    Rates { from: (9, 0), half: 1024, float: 128 },
    // GeForce boards of Ada and Ampere: as above.
    Rates { from: (8, 6), half: 256, float: 128 },
    // A100.
    Rates { from: (8, 0), half: 1024, float: 64 },
    Rates { from: (0, 0), half: 512, float: 64 },
];

/// How the parts of a depth are tried.
const PARTS: [u64; 10] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32];
/// Steps of a part, at least: one fills the pipeline, and a few must follow.
const LEAST_STEPS: u64 = 4;
/// Bytes of partial sums, at most.
const MOST_WORKSPACE: u64 = 64 << 20;
/// Clocks between one kernel and the next that needs it all: about 2 µs.
const NEXT_KERNEL: u64 = 3000;
/// Clocks of a block before its first product and behind its last.
const BLOCK: u64 = 1500;
/// Bytes of operands that a multiprocessor takes from the second-level cache in a clock, added to a step as if nothing hid them: of
/// tiles that take as long otherwise, the larger one reads less.
const OPERAND_BYTES: u64 = 64;
/// Bytes that a multiprocessor moves in a clock while sums are added: most are in the second-level cache.
const BYTES_PER_CLOCK: u64 = 24;

/// A GPU, as far as the choice depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gpu {
    pub capability: (i32, i32),
    pub multiprocessors: u32,
}

/// A product of (rows, depth) and (depth, columns).
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
    pub arithmetic: Arithmetic,
    /// Whether rows of both operands begin at multiples of 16 bytes.
    pub aligned: bool,
}

/// The choice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub tile: &'static Tile,
    pub grid: Grid,
    /// Parts of the depth, and how much of it each sums; with one part there is no workspace.
    pub parts: u32,
    pub each: u32,
}

impl Plan {
    /// Chooses what takes the fewest clocks.
    pub(super) fn of(product: &Product, gpu: Gpu) -> Self {
        let mut best: Option<(u64, Self)> = None;
        for tile in TILES.iter().filter(|tile| tile.fits(product)) {
            for parts in PARTS {
                let plan = Self::with(product, tile, parts);
                let small = product.workspace(plan.parts) <= MOST_WORKSPACE;
                if plan.parts > 1 && (plan.steps(product) < LEAST_STEPS || !small) {
                    break;
                }
                let clocks = plan.clocks(product, gpu);
                if best.is_none_or(|(least, _)| clocks < least) {
                    best = Some((clocks, plan));
                }
            }
        }
        // The table has a row for every product.
        best.map_or_else(|| Self::with(product, &TILES[3], 1), |(_, plan)| plan)
    }

    /// Cuts the depth into about `parts`, none of them empty.
    fn with(product: &Product, tile: &'static Tile, parts: u64) -> Self {
        let depth = tile.depth(product.arithmetic);
        let steps = (product.depth as u64).div_ceil(depth).max(1);
        let each = steps.div_ceil(parts);
        let parts = steps.div_ceil(each) as u32;
        let blocks =
            (product.rows as u64).div_ceil(tile.rows) * (product.columns as u64).div_ceil(tile.columns);
        let grid = Grid { blocks: [blocks as u32, parts, 1], threads: tile.threads, shared: 0 };
        Self { tile, grid, parts, each: (each * depth) as u32 }
    }

    /// Steps of a part.
    fn steps(&self, product: &Product) -> u64 {
        self.each as u64 / self.tile.depth(product.arithmetic)
    }

    fn clocks(&self, product: &Product, gpu: Gpu) -> u64 {
        let [tiles, parts, _] = self.grid.blocks.map(u64::from);
        let multiprocessors = u64::from(gpu.multiprocessors).max(1);
        let step = self.tile.clocks(product.arithmetic, gpu.capability);
        let work = (tiles * parts).div_ceil(multiprocessors) * (self.steps(product) * step + BLOCK);
        let sums = 2 * product.workspace(self.parts) / (multiprocessors * BYTES_PER_CLOCK);
        if parts > 1 { work + sums + NEXT_KERNEL } else { work }
    }
}

impl Product {
    /// Bytes of partial sums.
    pub(super) fn workspace(&self, parts: u32) -> u64 {
        4 * self.rows as u64 * self.columns as u64 * parts as u64
    }
}

impl Tile {
    /// Returns how many columns of a row one warp has.
    pub(super) fn group(&self) -> usize {
        if self.is_in_f32() { 128 } else { 64 }
    }

    fn is_in_f32(&self) -> bool {
        matches!(self.blocks, Blocks::F128 | Blocks::F64 | Blocks::F32)
    }

    fn fits(&self, product: &Product) -> bool {
        let in_f32 = self.is_in_f32();
        in_f32 == (product.arithmetic == Arithmetic::F32) && (in_f32 || self.aligned == product.aligned)
    }

    /// Elements of depth in a step.
    fn depth(&self, arithmetic: Arithmetic) -> u64 {
        self.step / if arithmetic == Arithmetic::Half { 2 } else { 4 }
    }

    /// Clocks of a step: the larger of products and shared memory, and the copies.
    fn clocks(&self, arithmetic: Arithmetic, capability: (i32, i32)) -> u64 {
        let rates = RATES.iter().find(|r| r.from <= capability).unwrap_or(&RATES[4]);
        let rate = match arithmetic {
            Arithmetic::Half => rates.half,
            Arithmetic::Tf32 => rates.half / 2,
            Arithmetic::F32 => rates.float,
        };
        let products = self.rows * self.columns * self.depth(arithmetic) / rate;
        products.max(self.wavefronts) + (self.rows + self.columns) * self.step / OPERAND_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A100: Gpu = Gpu { capability: (8, 0), multiprocessors: 108 };

    fn plan(rows: usize, columns: usize, depth: usize, arithmetic: Arithmetic, aligned: bool) -> Plan {
        Plan::of(&Product { rows, columns, depth, arithmetic, aligned }, A100)
    }

    #[test]
    fn large_products_take_large_tiles_whole() {
        let plan = plan(65_536, 512, 512, Arithmetic::Half, true);
        assert_eq!((plan.tile.blocks, plan.parts, plan.each), (Blocks::T128x128, 1, 512));
        assert_eq!(plan.grid.blocks, [512 * 4, 1, 1]);
    }

    #[test]
    fn weight_gradients_of_large_batches_are_cut_to_fill_the_device() {
        for arithmetic in [Arithmetic::Half, Arithmetic::Tf32, Arithmetic::F32] {
            let plan = plan(512, 512, 65_536, arithmetic, true);
            let blocks = plan.grid.blocks[0] * plan.parts;
            let slots = blocks.next_multiple_of(A100.multiprocessors);
            assert!(plan.parts > 1 && blocks * 100 >= slots * 85, "{plan:?}");
            assert!(plan.each as u64 * (plan.parts as u64 - 1) < 65_536, "{plan:?}");
        }
    }

    #[test]
    fn small_products_are_not_cut() {
        let plan = plan(64, 64, 256, Arithmetic::Half, true);
        assert_eq!((plan.tile.blocks, plan.parts), (Blocks::T64x64, 1));
    }

    #[test]
    fn odd_rows_and_f32_have_kernels_of_their_own() {
        assert_eq!(plan(4096, 4096, 333, Arithmetic::Half, false).tile.blocks, Blocks::Any);
        assert_eq!(plan(27 * 128, 8 * 128, 333, Arithmetic::F32, false).tile.blocks, Blocks::F128);
        assert_eq!(plan(1, 1, 1, Arithmetic::Tf32, false).tile.blocks, Blocks::Any);
        assert_eq!(plan(20, 100, 64, Arithmetic::F32, true).tile.blocks, Blocks::F32);
    }

    #[test]
    fn parts_cover_the_depth_and_none_is_empty() {
        for depth in [1, 31, 32, 33, 255, 4097, 100_003] {
            for tile in &TILES {
                for parts in PARTS {
                    let product =
                        Product { rows: 9, columns: 9, depth, arithmetic: Arithmetic::Tf32, aligned: true };
                    let plan = Plan::with(&product, tile, parts);
                    assert!(plan.each as usize * plan.parts as usize >= depth, "{plan:?}");
                    assert!(plan.each as usize * (plan.parts as usize - 1) < depth, "{plan:?}");
                }
            }
        }
    }
}

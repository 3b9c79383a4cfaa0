//! The product of few rows with a large matrix, the other way round: (a·b)ᵀ = bᵀ·aᵀ.
//!
//! Packing b, for a few rows to pass by, would take longer than the product. So b stands on the left, where a kernel reads it as it lies,
//! and the few rows on the right, packed. Each element is summed in the same order as in [`super::product`], with the same bits.

use std::ops::Range;

use crate::device::{Cpu, Isa};
use crate::float::FloatX;
use crate::ops::linear::finish::Finish;
use crate::ops::linear::kernel::{Begin, Block, COLS, Format, LANES, Panel, ROWS};
use crate::ops::linear::pack::{Operand, Side};
use crate::ops::linear::product::{ENOUGH_TILES, SERIAL, extent};
use crate::ops::linear::shared::{Grid, Split, Tile, Tiles};

/// A matrix read where it lies: its units, and those from one column of b to the next.
#[derive(Clone, Copy)]
pub(super) struct InPlace<'a> {
    data: &'a [u32],
    row: usize,
}

impl<'a> InPlace<'a> {
    /// Returns b as the left side of a product with `rows` rows on the right, if that is possible and pays.
    pub(super) fn of<B: FloatX>(b: &Operand<'a, B>, format: Format, rows: usize) -> Option<Self> {
        let pays = rows <= COLS && b.across >= COLS && b.depth > 0;
        b.in_place(format).filter(|_| pays).map(|(data, row)| Self { data, row })
    }
}

struct Job<'a, F: Finish> {
    isa: Isa,
    format: Format,
    finish: &'a F,
    b: InPlace<'a>,
    /// The rows of a, as one panel of columns: (blocks, block, width).
    panel: &'a [u32],
    width: usize,
    /// Depth in units, in all and of a block.
    units: usize,
    block: usize,
    grid: Grid,
    tiles: Tiles<'a, F::Out>,
}

/// Computes `a · b` and hands each row of each tile to `finish`.
pub(super) fn product_turned<A: FloatX, F: Finish>(
    cpu: &Cpu,
    a: Operand<A>,
    (b, cols): (InPlace<'_>, usize),
    format: Format,
    finish: &F,
    first: &mut [F::Out],
    second: Option<&mut [F::Out]>,
) {
    let (len, block, period) = extent(&a, format);
    let (units, width) = (format.units(a.depth), a.across.next_multiple_of(LANES));
    let mut memory = cpu.take(len * size_of::<u32>());
    let panel = &mut memory.as_mut_slice::<u32>()[..len];
    for (i, out) in panel.chunks_exact_mut(period).enumerate() {
        let here = i * block..units.min((i + 1) * block);
        a.pack(cpu.isa(), format, Side::B, 0..1, here, (out, block));
    }
    let count = cols.div_ceil(COLS);
    let across = Split { count, parts: count.min(ENOUGH_TILES) };
    let down = Split { count: a.across.div_ceil(ROWS), parts: 1 };
    let grid = Grid { rows: a.across, cols, panel_rows: ROWS, panel_cols: COLS, down, across };
    let threads = if a.across * cols * a.depth < SERIAL { 1 } else { cpu.threads().min(grid.tiles()) };
    let most = count.div_ceil(across.parts) * COLS;
    // The sums of a tile as they are found, and turned.
    let each = 2 * most * width;
    let mut private = cpu.take(threads * each * size_of::<f32>());
    let tiles = Tiles::new(first, second, grid, threads);
    let job = Job { isa: cpu.isa(), format, finish, b, panel, width, units, block, grid, tiles };
    let private = private.as_mut_slice::<f32>();
    if threads == 1 {
        return job.work(0, &mut private[..each]);
    }
    cpu.each(private.chunks_mut(each).take(threads).enumerate(), |(me, scratch)| job.work(me, scratch));
}

impl<F: Finish> Job<'_, F> {
    fn work(&self, me: usize, scratch: &mut [f32]) {
        let (sums, turned) = scratch.split_at_mut(scratch.len() / 2);
        while let Some(mut tile) = self.tiles.next(me) {
            self.multiply(tile.cols(), sums);
            self.finish_tile(&mut tile, sums, turned);
        }
    }

    /// Sums columns `cols` of the product: (cols, width).
    fn multiply(&self, cols: Range<usize>, sums: &mut [f32]) {
        for (i, panel) in self.panel.chunks_exact(self.block * self.width).enumerate() {
            let units = self.block.min(self.units - i * self.block);
            for (col, sums) in cols.clone().step_by(ROWS).zip(sums.chunks_exact_mut(ROWS * self.width)) {
                let a = self.left(col, i);
                let next = if col + ROWS < self.grid.cols { self.left(col + ROWS, i) } else { a };
                let (format, width, begin) = (self.format, self.width, Begin::new(i == 0));
                Block { format, a, next, b: panel, b_step: width, ahead: &[], width, units, begin }
                    .run(self.isa, sums, width);
            }
        }
    }

    /// Returns the columns of b from `col` on, in block `i` of depth.
    fn left(&self, col: usize, i: usize) -> Panel<'_> {
        let b = self.b;
        let data = &b.data[col * b.row + i * self.block..];
        Panel { data, rows: ROWS.min(self.grid.cols - col), row: b.row, step: 1 }
    }

    fn finish_tile(&self, tile: &mut Tile<F::Out>, sums: &[f32], turned: &mut [f32]) {
        let (rows, cols) = (tile.rows(), tile.cols());
        self.isa.run(
            #[inline(always)]
            |arch| {
                for row in rows {
                    let turned = &mut turned[..cols.len()];
                    for (turned, sums) in turned.iter_mut().zip(sums.chunks_exact(self.width)) {
                        *turned = sums[row];
                    }
                    let (first, second) = tile.row(row);
                    self.finish.row(arch, (row, cols.start), turned, first, second);
                }
            },
        );
    }
}

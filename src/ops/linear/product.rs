//! The product of two strided matrices, blocked for the caches, with a row-wise finish on every tile.
//!
//! C (M, N) = A (M, K) · B (K, N). Operands are packed once, by all threads together; then each tile of C is summed
//! block of depth by block of depth in a private f32 buffer and finished row by row while it is in the cache. An operand
//! that only one tile would read is packed by that tile, block by block; rows of A that need no conversion are read
//! where they lie, and so are small f32 operands whose sums run over their rows. Panels, blocks and tiles depend on the
//! shapes and the instruction set alone, and each element is summed in the order of depth: first within a block, then
//! block to block. So neither the number of threads, nor M, nor N changes a bit of it.

use std::marker::PhantomData;
use std::ops::Range;

use crate::device::{Arch, Cpu, Isa};
use crate::float::{DType, FloatX};
use crate::ops::linear::Start;
use crate::ops::linear::finish::{Add, Finish, Through};
use crate::ops::linear::kernel::{Begin, Block, CHUNK, COLS, Format, LANES, Panel, ROWS};
use crate::ops::linear::pack::{Operand, Side};
use crate::ops::linear::shared::{Chunks, Grid, Split, Tile, Tiles};
use crate::ops::linear::turned::{InPlace, product_turned};

/// Depth of a block in units. 512 × 48 × 4 bytes of B are 96 KiB, read 32 times from the second cache level while the next are
/// fetched, and 256 rows of A are 512 KiB of it; shorter blocks pay for loading the sums, longer ones leave no room for them.
const BLOCK: usize = 512;
/// Panels of a tile: 256 rows × 192 columns of sums are 192 KiB: with a block of A and two panels of B, less than a second level of 1 MiB.
const TILE_ROWS: usize = 32;
const TILE_COLS: usize = 4;
/// Multiply-adds below which one more tile costs more in overhead than it gains in balance (about 20 µs).
const SMALL_TILE: usize = 1 << 20;
/// Tiles that keep eight threads busy.
pub(super) const ENOUGH_TILES: usize = 16;
/// Groups of panels that keep eight threads busy.
const ENOUGH_CHUNKS: usize = 8;
/// Multiply-adds below which waking another thread (some µs) costs more than it saves.
pub(super) const SERIAL: usize = 1 << 19;

/// Units of an operand up to which it is read where it lies although it is summed over its rows, each on another cache line: what fits a
/// second cache level of 1 MiB loses nothing by that, and is spared the packing.
const NEAR: usize = 1 << 18;

/// Everything about a product that follows from its shape.
#[derive(Clone, Copy, Debug)]
struct Plan {
    grid: Grid,
    format: Format,
    /// Depth in units.
    units: usize,
    /// Depth of a block.
    block: usize,
    serial: bool,
}

impl Plan {
    fn new(m: usize, n: usize, k: usize, format: Format) -> Self {
        let units = format.units(k);
        let block = block_of(units);
        let (row_panels, col_panels) = (m.div_ceil(ROWS), n.div_ceil(COLS));
        let (mut tall, mut wide) = (TILE_ROWS, TILE_COLS);
        let tiles = |tall, wide| row_panels.div_ceil(tall) * col_panels.div_ceil(wide);
        while tiles(tall, wide) < ENOUGH_TILES && (tall > 1 || wide > 1) {
            let work = row_panels.min(tall) * ROWS * col_panels.min(wide) * COLS * k;
            if work < 2 * SMALL_TILE {
                break;
            }
            if wide > 1 && (col_panels.min(wide) * COLS > row_panels.min(tall) * ROWS || tall == 1) {
                wide /= 2;
            } else {
                tall /= 2;
            }
        }
        let down = Split { count: row_panels, parts: row_panels.div_ceil(tall) };
        let across = Split { count: col_panels, parts: col_panels.div_ceil(wide) };
        let grid = Grid { rows: m, cols: n, panel_rows: ROWS, panel_cols: COLS, down, across };
        Self { grid, format, units, block, serial: m * n * k < SERIAL }
    }

    /// Returns the length of one block of all panels of one side.
    fn period(&self, side: Side) -> usize {
        match side {
            Side::A => self.grid.down.count * ROWS * self.block,
            Side::B => self.grid.cols.next_multiple_of(LANES) * self.block,
        }
    }

    /// Returns the units of block `i`.
    fn units(&self, i: usize) -> Range<usize> {
        i * self.block..self.units.min((i + 1) * self.block)
    }

    /// Returns how many panels are packed in one go: fewer than is best for the memory, where several threads would wait for one.
    fn group(&self, side: Side) -> usize {
        let (split, most) =
            if side == Side::A { (self.grid.down, A_GROUP) } else { (self.grid.across, B_GROUP) };
        let blocks = self.units.div_ceil(self.block).max(1);
        (split.count * blocks / ENOUGH_CHUNKS).clamp(1, most)
    }

    /// Returns the panels of group `i`.
    fn panels(&self, side: Side, i: usize) -> Range<usize> {
        let split = if side == Side::A { self.grid.down } else { self.grid.across };
        let group = self.group(side);
        i * group..split.count.min((i + 1) * group)
    }

    /// Returns the most rows or columns of a tile, in whole panels.
    fn tile(&self, side: Side) -> usize {
        let split = if side == Side::A { self.grid.down } else { self.grid.across };
        split.count.div_ceil(split.parts) * side.panel()
    }
}

/// Returns the depth of a block, of `units` in all.
fn block_of(units: usize) -> usize {
    let blocks = units.div_ceil(BLOCK).max(1);
    units.div_ceil(blocks).next_multiple_of(CHUNK).max(CHUNK)
}

/// Returns the units that all panels of B take; the depth of their blocks; and the units of all panels of a block.
pub(super) fn extent<B: FloatX>(b: &Operand<B>, format: Format) -> (usize, usize, usize) {
    extent_of(b.across, b.depth, format)
}

/// Returns the same of sizes.
pub(super) fn extent_of(across: usize, depth: usize, format: Format) -> (usize, usize, usize) {
    let units = format.units(depth);
    let block = block_of(units);
    let period = across.next_multiple_of(LANES) * block;
    (units.div_ceil(block) * period, block, period)
}

/// Returns what the units of a product are.
pub(super) fn format_of<A: FloatX, B: FloatX>(cpu: &Cpu) -> Format {
    if A::DTYPE == B::DTYPE { Format::of(A::DTYPE, cpu.isa()) } else { Format::Single }
}

/// The right side of a product: where it lies, and its panels if it was packed before.
pub(super) struct Right<'a, B> {
    pub operand: Operand<'a, B>,
    pub panels: Option<&'a [u32]>,
}

impl<'a, B> From<Operand<'a, B>> for Right<'a, B> {
    fn from(operand: Operand<'a, B>) -> Self {
        Self { operand, panels: None }
    }
}

/// Units of A that are packed at a time (32 MiB): longer products go in several passes.
const PASS: usize = 1 << 23;

/// Computes `a · b` in passes over the rows of `a` (row-major, summed along its rows).
pub(super) fn by_rows<A: FloatX, B: FloatX, F: Finish>(
    cpu: &Cpu,
    a: Operand<A>,
    b: Right<B>,
    finish: &F,
    first: &mut [F::Out],
    mut second: Option<&mut [F::Out]>,
) {
    let across = b.operand.across;
    let passes = (a.across * a.depth).div_ceil(PASS).max(1);
    let rows = a.across.div_ceil(passes).next_multiple_of(TILE_ROWS * ROWS).max(1);
    for start in (0..a.across).step_by(rows) {
        let end = a.across.min(start + rows);
        let (data, out) = (&a.data[start * a.depth..end * a.depth], start * across..end * across);
        let second = second.as_deref_mut().map(|s| &mut s[out.clone()]);
        let part = Operand { data, across: end - start, ..a };
        product(cpu, part, &b, &Below { finish, row: start }, &mut first[out], second);
    }
}

/// Computes `dw = a · b` or `dw += a · b` in passes over the depth (both row-major, summed over their rows).
pub(super) fn by_depth<A: FloatX, B: FloatX>(
    cpu: &Cpu,
    start: Start,
    a: Operand<A>,
    b: Operand<B>,
    dw: &mut [f32],
) {
    let mut pass = |a: Operand<A>, b: Operand<B>, start| match start {
        Start::Zero => {
            product(cpu, a, &b.into(), &Through::<f32> { through: None, cols: 0, add: false }, dw, None);
        }
        Start::Value => product(cpu, a, &b.into(), &Add { out: PhantomData }, dw, None),
    };
    if a.parts.is_some() {
        // Parts are for small products: they are packed into one.
        return pass(a, b, start);
    }
    let passes = (a.depth * a.across.max(b.across)).div_ceil(PASS).max(1);
    let depth = a.depth.div_ceil(passes).next_multiple_of(BLOCK).max(1);
    for first in (0..a.depth.max(1)).step_by(depth) {
        let end = a.depth.min(first + depth);
        let a = Operand { data: &a.data[first * a.stride..end * a.stride], depth: end - first, ..a };
        let b = Operand { data: &b.data[first * b.stride..end * b.stride], depth: end - first, ..b };
        pass(a, b, if first == 0 { start } else { Start::Value });
    }
}

/// Finishes a pass whose first row is row `row` of the whole.
struct Below<'a, F> {
    finish: &'a F,
    row: usize,
}

impl<F: Finish> Finish for Below<'_, F> {
    type Out = F::Out;
    #[inline(always)]
    fn row(
        &self,
        arch: Arch,
        at: (usize, usize),
        sums: &mut [f32],
        out: &mut [F::Out],
        second: Option<&mut [F::Out]>,
    ) {
        self.finish.row(arch, (self.row + at.0, at.1), sums, out, second);
    }
}

/// Computes `a · b` and hands each row of each tile to `finish`, which writes `first` (and `second`), both (M, N).
fn product<A: FloatX, B: FloatX, F: Finish>(
    cpu: &Cpu,
    a: Operand<A>,
    right: &Right<B>,
    finish: &F,
    first: &mut [F::Out],
    second: Option<&mut [F::Out]>,
) {
    let b = right.operand;
    if a.across == 0 || b.across == 0 {
        return;
    }
    let format = format_of::<A, B>(cpu);
    if right.panels.is_none()
        && let Some(in_place) = InPlace::of(&b, format, a.across)
    {
        return product_turned(cpu, a, (in_place, b.across), format, finish, first, second);
    }
    let plan = Plan::new(a.across, b.across, a.depth, format);
    let threads = if plan.serial { 1 } else { cpu.threads().min(plan.grid.tiles().max(2)) };
    let in_place = a.in_place(format);
    let near = near(&plan, &a, right);
    let blocks = plan.units.div_ceil(plan.block);
    let (a_len, a_block) = match (in_place.is_some() || near.0, plan.grid.across.parts > 1) {
        (true, _) => (0, 0),
        (_, true) => (plan.period(Side::A) * blocks, 0),
        (_, false) => (0, plan.tile(Side::A) * plan.block),
    };
    let (b_len, b_block) = match (right.panels.is_some() || near.1, plan.grid.down.parts > 1) {
        (true, _) => (0, 0),
        (_, true) => (plan.period(Side::B) * blocks, 0),
        (_, false) => (0, plan.tile(Side::B) * plan.block),
    };
    let sums = plan.tile(Side::A) * plan.tile(Side::B);
    let each = sums + a_block + b_block;
    // Powers of two, so that products of many shapes share few blocks of the pool.
    let mut memory = cpu.take((a_len + b_len).next_multiple_of(1 << 12).next_power_of_two() * 4);
    let mut private = cpu.take((threads * each).next_power_of_two() * 4);
    let (a_panels, rest) = memory.as_mut_slice::<u32>().split_at_mut(a_len);
    let job = Job {
        isa: cpu.isa(),
        plan,
        a,
        b,
        packed: right.panels,
        finish,
        a_panels: Chunks::new(
            a_panels,
            plan.period(Side::A),
            plan.group(Side::A) * ROWS * plan.block,
            threads,
        ),
        b_panels: Chunks::new(
            &mut rest[..b_len],
            plan.period(Side::B),
            plan.group(Side::B) * COLS * plan.block,
            threads,
        ),
        tiles: Tiles::new(first, second, plan.grid, threads),
        in_place,
        near,
        scratch: (sums, a_block, b_block),
    };
    let private = private.as_mut_slice::<u32>();
    if threads == 1 {
        return job.work(0, &mut private[..each]);
    }
    cpu.each(private.chunks_mut(each).take(threads).enumerate(), |(me, scratch)| job.work(me, scratch));
}

/// Says which operands are read where they lie although they are summed over their rows: small ones of a single block of depth.
fn near<A: FloatX, B: FloatX>(plan: &Plan, a: &Operand<A>, b: &Right<B>) -> (bool, bool) {
    let fits = |across: usize, dtype: DType| {
        let plain = plan.format == Format::Single && dtype == DType::F32;
        plain && plan.units > 0 && plan.units <= plan.block && across * plan.units <= NEAR
    };
    let of_a = !a.along_depth && fits(a.across, A::DTYPE);
    let of_b = !b.operand.along_depth
        && b.panels.is_none()
        && b.operand.across.is_multiple_of(LANES)
        && fits(b.operand.across, B::DTYPE);
    // Parts are gone through together.
    if a.parts.is_some() || b.operand.parts.is_some() { (of_a && of_b, of_a && of_b) } else { (of_a, of_b) }
}

/// Panels packed in one go: 128 rows or 192 columns, so that a memory row gives some hundred bytes in sequence.
const A_GROUP: usize = 16;
const B_GROUP: usize = 4;

struct Job<'a, A, B, F: Finish> {
    isa: Isa,
    plan: Plan,
    a: Operand<'a, A>,
    b: Operand<'a, B>,
    /// All panels of B, if they were there before.
    packed: Option<&'a [u32]>,
    finish: &'a F,
    /// A where it lies, with its stride, if it needs no packing.
    in_place: Option<(&'a [u32], usize)>,
    /// Which operands are read where they lie although they are summed over their rows.
    near: (bool, bool),
    a_panels: Chunks<'a>,
    b_panels: Chunks<'a>,
    tiles: Tiles<'a, F::Out>,
    /// A thread's scratch: the sums of a tile, one block of its A panels and of its B panels (0 if packed for all).
    scratch: (usize, usize, usize),
}

impl<A: FloatX, B: FloatX, F: Finish> Job<'_, A, B, F> {
    /// Does what thread `me` can get of the work: packing, then tiles.
    fn work(&self, me: usize, scratch: &mut [u32]) {
        let (isa, plan) = (self.isa, &self.plan);
        while let Some((block, i, mut out)) = self.b_panels.next(me) {
            let panels = plan.panels(Side::B, i);
            self.b.pack(isa, plan.format, Side::B, panels, plan.units(block), (&mut out, plan.block));
        }
        while let Some((block, i, mut out)) = self.a_panels.next(me) {
            let panels = plan.panels(Side::A, i);
            self.a.pack(isa, plan.format, Side::A, panels, plan.units(block), (&mut out, plan.block));
        }
        let (a, b) = (self.a_panels.wait(), self.packed.unwrap_or_else(|| self.b_panels.wait()));
        while let Some(mut tile) = self.tiles.next(me) {
            self.tile(&mut tile, a, b, scratch);
        }
    }

    /// Sums and finishes one tile.
    fn tile(&self, tile: &mut Tile<F::Out>, a: &[u32], b: &[u32], scratch: &mut [u32]) {
        let plan = &self.plan;
        let (sums, scratch) = scratch.split_at_mut(self.scratch.0);
        let (a_block, b_block) = scratch.split_at_mut(self.scratch.1);
        let sums = bytemuck::cast_slice_mut::<u32, f32>(sums);
        let stride = tile.col_panels.len() * COLS;
        for i in 0..plan.units.div_ceil(plan.block) {
            let units = plan.units(i);
            if !a_block.is_empty() {
                let (panels, out) = (tile.row_panels.clone(), (&mut *a_block, plan.block));
                self.a.pack(self.isa, plan.format, Side::A, panels, units.clone(), out);
            }
            if !b_block.is_empty() {
                let (panels, out) = (tile.col_panels.clone(), (&mut *b_block, plan.block));
                self.b.pack(self.isa, plan.format, Side::B, panels, units.clone(), out);
            }
            let a = if a_block.is_empty() { a } else { &*a_block };
            if self.near.1 {
                self.multiply_near(tile, a, (&mut *sums, stride));
                continue;
            }
            let b = match b_block.is_empty() {
                true => &b[i * plan.period(Side::B) + tile.col_panels.start * COLS * plan.block..],
                false => &*b_block,
            };
            self.multiply(tile, i, (a, b), (sums, stride));
        }
        self.finish_tile(tile, sums, stride);
    }

    /// Adds the products of block `i` of depth to the sums: each B panel stays near while all A panels pass by.
    fn multiply(
        &self,
        tile: &Tile<F::Out>,
        i: usize,
        (a, b): (&[u32], &[u32]),
        (sums, stride): (&mut [f32], usize),
    ) {
        let (plan, units) = (&self.plan, self.plan.units(i));
        let (panel, cols) = (COLS * plan.block, tile.col_panels.len());
        for (j, q) in tile.col_panels.clone().enumerate() {
            let (width, b) = (Side::B.width(plan.grid.cols, q), &b[j * panel..]);
            // The panel after this one, or behind the last the first one of the next block. Each call fetches its share.
            let after = if j + 1 < cols { panel } else { plan.period(Side::B) - j * panel };
            let share = panel / tile.row_panels.len();
            for (k, p) in tile.row_panels.clone().enumerate() {
                let ahead = b.get(after + k * share..).unwrap_or_default();
                let below = (k + 1) % tile.row_panels.len();
                let next = self.a_panel(a, i, tile.row_panels.start + below, below);
                let a = self.a_panel(a, i, p, k);
                let (format, units, begin) = (plan.format, units.len(), Begin::new(i == 0));
                let block = Block { format, a, next, b, b_step: width, ahead, width, units, begin };
                block.run(self.isa, &mut sums[k * ROWS * stride + j * COLS..], stride);
            }
        }
    }

    /// Computes the sums of a product whose B is read where it lies, part by part of the depth.
    fn multiply_near(&self, tile: &Tile<F::Out>, a: &[u32], (sums, stride): (&mut [f32], usize)) {
        let plan = &self.plan;
        for (j, q) in tile.col_panels.clone().enumerate() {
            let (col, width) = (q * COLS, Side::B.width(plan.grid.cols, q));
            for (k, p) in tile.row_panels.clone().enumerate() {
                let mut begin = Begin::Zero;
                for part in 0..self.b.pieces() {
                    let Some((b, units)) = self.b.piece(part) else { continue };
                    let a = match self.near.0 {
                        true => self.near_panel(p, part),
                        false => self.a_panel(a, 0, p, k),
                    };
                    let (format, b) = (plan.format, &b[col..]);
                    let b_step = self.b.stride;
                    let block = Block { format, a, next: a, b, b_step, ahead: &[], width, units, begin };
                    block.run(self.isa, &mut sums[k * ROWS * stride + j * COLS..], stride);
                    begin = Begin::Continue;
                }
            }
        }
    }

    /// Returns A panel `p` where it lies, in a part of the depth.
    fn near_panel(&self, p: usize, part: usize) -> Panel<'_> {
        let data = self.a.piece(part).map_or(&[][..], |(data, _)| &data[p * ROWS..]);
        Panel { data, rows: ROWS.min(self.plan.grid.rows - p * ROWS), row: 1, step: self.a.stride }
    }

    /// Returns A panel `p` from block `i` on, the `k`-th of its tile.
    fn a_panel<'p>(&'p self, packed: &'p [u32], i: usize, p: usize, k: usize) -> Panel<'p> {
        let plan = &self.plan;
        if self.near.0 {
            return self.near_panel(p, 0);
        }
        if let Some((data, stride)) = self.in_place {
            let data = &data[p * ROWS * stride + i * plan.block..];
            return Panel { data, rows: ROWS.min(plan.grid.rows - p * ROWS), row: stride, step: 1 };
        }
        if self.scratch.1 > 0 {
            return self.a.panel(packed, k, plan.block);
        }
        self.a.panel(&packed[i * plan.period(Side::A)..], p, plan.block)
    }

    fn finish_tile(&self, tile: &mut Tile<F::Out>, sums: &mut [f32], stride: usize) {
        let (rows, cols) = (tile.rows(), tile.cols());
        if self.plan.units == 0 {
            sums.fill(0.0);
        }
        self.isa.run(
            #[inline(always)]
            |arch| {
                for (row, sums) in rows.zip(sums.chunks_mut(stride)) {
                    let (first, second) = tile.row(row);
                    self.finish.row(arch, (row, cols.start), &mut sums[..cols.len()], first, second);
                }
            },
        );
    }
}

//! Packing: copies strided operands of any storage type into panels of 32-bit units, padded with zeros.
//!
//! A panel holds 8 rows of A or 48 columns of B (the last one 16, 32 or 48) over the whole depth, so that a
//! micro-kernel reads both in sequence. Below, "across" counts rows of A or columns of B, "depth" the summed index.

use std::marker::PhantomData;
use std::ops::Range;

use crate::device::Isa;
use crate::ops::linear::kernel::{CHUNK, COLS, Format, LANES, Order, ROWS, transpose};
use crate::tensor::{DType, FloatX};

/// An operand where it lies: element (across, depth) is `data[across·stride + depth]` if `along_depth`, else
/// `data[depth·stride + across]`.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Elements from one row in memory to the next.
    pub stride: usize,
    /// Says whether neighbours in memory are neighbours in depth.
    pub along_depth: bool,
    /// Rows of A or columns of B.
    pub across: usize,
    /// Length of the sums.
    pub depth: usize,
}

/// Takes a row-major (rows, cols) matrix whose columns are summed over.
pub(super) fn rows_of<T>(data: &[T], rows: usize, cols: usize) -> Operand<'_, T> {
    Operand { data, stride: cols, along_depth: true, across: rows, depth: cols }
}

/// Takes a row-major (rows, cols) matrix whose rows are summed over.
pub(super) fn columns_of<T>(data: &[T], rows: usize, cols: usize) -> Operand<'_, T> {
    Operand { data, stride: cols, along_depth: false, across: cols, depth: rows }
}

/// Which side of the product an operand is on; decides its panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The left one: 8 rows.
    A,
    /// The right one: 48 columns.
    B,
}

impl Side {
    /// Returns rows or columns of a whole panel.
    pub(super) fn panel(self) -> usize {
        match self {
            Self::A => ROWS,
            Self::B => COLS,
        }
    }

    /// Returns the padded width of panel `p` of `across` rows or columns.
    pub(super) fn width(self, across: usize, p: usize) -> usize {
        match self {
            Self::A => ROWS,
            Self::B => (across - p * COLS).min(COLS).next_multiple_of(LANES),
        }
    }
}

/// How elements become units.
trait Units<T>: Copy + Send + Sync {
    /// Elements of depth in a unit.
    const DEPTH: usize;
    /// Joins neighbours in depth; a format with one element takes the first.
    fn unit(first: T, second: T) -> u32;
}

#[derive(Clone, Copy)]
struct Single;

impl<T: FloatX> Units<T> for Single {
    const DEPTH: usize = 1;
    #[inline(always)]
    fn unit(first: T, _: T) -> u32 {
        first.to_f32().to_bits()
    }
}

#[derive(Clone, Copy)]
struct Pair;

/// Takes the upper halves of the f32 values: exact for bf16, the only type that is packed so.
impl<T: FloatX> Units<T> for Pair {
    const DEPTH: usize = 2;
    #[inline(always)]
    fn unit(first: T, second: T) -> u32 {
        first.to_f32().to_bits() >> 16 | second.to_f32().to_bits() & 0xffff_0000
    }
}

impl Format {
    /// Returns the units that `depth` elements need.
    pub(super) fn units(self, depth: usize) -> usize {
        match self {
            Self::Single => depth,
            Self::Pair => depth.div_ceil(2),
        }
    }
}

impl<T: FloatX> Operand<'_, T> {
    /// Returns the order of the units in its A panels.
    pub(super) fn order(&self) -> Order {
        if self.along_depth { Order::Rows } else { Order::Units }
    }

    /// Packs units `units` of panels `panels` into `out`, one panel every panel width × `deep` elements.
    ///
    /// `units` starts at a multiple of a chunk; `deep` is a multiple of it, at least the number of units.
    pub(super) fn pack(
        &self,
        isa: Isa,
        format: Format,
        side: Side,
        panels: Range<usize>,
        units: Range<usize>,
        (out, deep): (&mut [u32], usize),
    ) {
        let job = Panels { side, panels, units, deep };
        match format {
            Format::Single => Packer::<T, Single> { operand: *self, isa, how: PhantomData }.run(job, out),
            Format::Pair => Packer::<T, Pair> { operand: *self, isa, how: PhantomData }.run(job, out),
        }
    }
}

/// What to pack: see [`Operand::pack`].
struct Panels {
    side: Side,
    panels: Range<usize>,
    units: Range<usize>,
    deep: usize,
}

struct Packer<'a, T, U> {
    operand: Operand<'a, T>,
    isa: Isa,
    how: PhantomData<U>,
}

/// Memory rows that are spread over the panels together: two panels share a cache line, and rows a power of two apart
/// share a set of the cache, of which there are eight.
const SPREAD: usize = 4;

impl<T: FloatX, U: Units<T>> Packer<'_, T, U> {
    fn run(&self, job: Panels, out: &mut [u32]) {
        if !self.operand.along_depth {
            return self.spread(&job, out);
        }
        let size = job.side.panel() * job.deep;
        for (p, panel) in job.panels.zip(out.chunks_mut(size)) {
            let width = job.side.width(self.operand.across, p);
            for unit in job.units.clone().step_by(CHUNK) {
                let at = unit - job.units.start;
                let steps = CHUNK.min(job.units.end - unit);
                match job.side {
                    Side::A => self.copy_chunk(p * ROWS, unit, &mut panel[at * ROWS..(at + CHUNK) * ROWS]),
                    Side::B => {
                        self.turn_chunk(p * COLS, unit, &mut panel[at * width..(at + steps) * width], width)
                    }
                }
            }
        }
    }

    /// Copies 16 units of 8 rows: `[row][unit]`.
    fn copy_chunk(&self, row: usize, unit: usize, out: &mut [u32]) {
        self.isa.run(
            #[inline(always)]
            |_| {
                for (i, out) in out.chunks_exact_mut(CHUNK).enumerate() {
                    self.units_of(row + i, unit, out);
                }
            },
        );
    }

    /// Transposes 16 units (or fewer, at the end) of up to 48 columns: `[unit][column]`.
    fn turn_chunk(&self, col: usize, unit: usize, out: &mut [u32], width: usize) {
        let whole = out.len() == CHUNK * width;
        for lane in (0..width).step_by(LANES) {
            if whole && let Some(rows) = self.rows_in_place(col + lane, unit) {
                transpose(self.isa, rows, &mut out[lane..], width);
                continue;
            }
            let mut block = [[0; LANES]; LANES];
            self.isa.run(
                #[inline(always)]
                |_| {
                    for (i, row) in block.iter_mut().enumerate() {
                        self.units_of(col + lane + i, unit, row);
                    }
                },
            );
            if whole {
                transpose(self.isa, block.each_ref(), &mut out[lane..], width);
                continue;
            }
            for (i, out) in out.chunks_exact_mut(width).enumerate() {
                for (out, row) in out[lane..lane + LANES].iter_mut().zip(&block) {
                    *out = row[i];
                }
            }
        }
    }

    /// Returns 16 units of 16 rows where they lie, if they are f32 and all there.
    fn rows_in_place(&self, across: usize, unit: usize) -> Option<[&[u32; LANES]; LANES]> {
        let operand = &self.operand;
        if T::DTYPE != DType::F32 || across + LANES > operand.across || unit + CHUNK > operand.depth {
            return None;
        }
        let data = bytemuck::cast_slice::<T, u32>(operand.data);
        let mut rows = [&[0; LANES]; LANES];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = data[(across + i) * operand.stride + unit..].first_chunk()?;
        }
        Some(rows)
    }

    /// Reads 16 units of a row that is contiguous in depth; zeros beyond its end and below the last row.
    #[inline(always)]
    fn units_of(&self, across: usize, unit: usize, out: &mut [u32]) {
        let operand = &self.operand;
        if across >= operand.across {
            return out.fill(0);
        }
        let start = unit * U::DEPTH;
        let row =
            &operand.data[across * operand.stride..][start..operand.depth.min(start + CHUNK * U::DEPTH)];
        if row.len() == CHUNK * U::DEPTH {
            for (out, pair) in out.iter_mut().zip(row.chunks_exact(U::DEPTH)) {
                *out = U::unit(pair[0], pair[U::DEPTH - 1]);
            }
            return;
        }
        out.fill(0);
        for (out, pair) in out.iter_mut().zip(row.chunks(U::DEPTH)) {
            *out = U::unit(pair[0], pair.get(1).copied().unwrap_or(T::from_f32(0.0)));
        }
    }

    /// Packs panels of an operand that is contiguous across: `[panel][unit][lane]`.
    fn spread(&self, job: &Panels, out: &mut [u32]) {
        self.isa.run(
            #[inline(always)]
            |_| {
                for start in job.units.clone().step_by(SPREAD) {
                    let units = start..job.units.end.min(start + SPREAD);
                    match job.side {
                        Side::A => self.spread_units::<ROWS>(job, units, out),
                        Side::B => self.spread_units::<COLS>(job, units, out),
                    }
                }
            },
        );
    }

    /// Packs a few units of all panels, which are `W` wide but for the last.
    #[inline(always)]
    fn spread_units<const W: usize>(&self, job: &Panels, units: Range<usize>, out: &mut [u32]) {
        let operand = &self.operand;
        for (p, panel) in job.panels.clone().zip(out.chunks_mut(W * job.deep)) {
            let (start, width) = (p * W, job.side.width(operand.across, p));
            for unit in units.clone() {
                let row = |d: usize| &operand.data[d * operand.stride + start..];
                let first = row(unit * U::DEPTH);
                let second = if U::DEPTH == 2 && unit * 2 + 1 < operand.depth {
                    Some(row(unit * 2 + 1))
                } else {
                    None
                };
                let out = &mut panel[(unit - job.units.start) * width..][..width];
                if start + W <= operand.across {
                    join::<T, U>(&first[..W], second.map(|s| &s[..W]), &mut out[..W]);
                    continue;
                }
                let there = operand.across - start;
                join::<T, U>(&first[..there], second.map(|s| &s[..there]), out);
                out[there..].fill(0);
            }
        }
    }
}

/// Joins two memory rows lane by lane.
#[inline(always)]
fn join<T: FloatX, U: Units<T>>(first: &[T], second: Option<&[T]>, out: &mut [u32]) {
    match second {
        Some(second) => {
            for ((out, a), b) in out.iter_mut().zip(first).zip(second) {
                *out = U::unit(*a, *b);
            }
        }
        None => {
            for (out, a) in out.iter_mut().zip(first) {
                *out = U::unit(*a, T::from_f32(0.0));
            }
        }
    }
}

//! Packing: copies strided operands of any storage type into panels of 32-bit units, padded with zeros.
//!
//! A panel holds 8 rows of A or 48 columns of B (the last one 16, 32 or 48) over the whole depth, so that a
//! micro-kernel reads both in sequence. Below, "across" counts rows of A or columns of B, "depth" the summed index.

use std::marker::PhantomData;
use std::ops::Range;

use crate::device::Isa;
use crate::ops::linear::kernel::{CHUNK, COLS, Format, LANES, Order, ROWS, transpose};
use crate::tensor::FloatX;

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

    /// Returns the padded depth of a panel of `units` units: whole chunks for A.
    pub(super) fn deep(self, units: usize) -> usize {
        match self {
            Self::A => units.next_multiple_of(CHUNK),
            Self::B => units,
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

    /// Packs units `units` of panels `panels`, one after the other, into `out`.
    ///
    /// `out` has, for each panel, its width × [`Side::deep`] of the number of units;
    /// `units` starts at a multiple of a chunk.
    pub(super) fn pack(
        &self,
        isa: Isa,
        format: Format,
        side: Side,
        panels: Range<usize>,
        units: Range<usize>,
        out: &mut [u32],
    ) {
        match format {
            Format::Single => {
                Packer::<T, Single> { operand: *self, isa, how: PhantomData }.run(side, panels, units, out)
            }
            Format::Pair => {
                Packer::<T, Pair> { operand: *self, isa, how: PhantomData }.run(side, panels, units, out)
            }
        }
    }
}

struct Packer<'a, T, U> {
    operand: Operand<'a, T>,
    isa: Isa,
    how: PhantomData<U>,
}

impl<T: FloatX, U: Units<T>> Packer<'_, T, U> {
    fn run(&self, side: Side, panels: Range<usize>, units: Range<usize>, out: &mut [u32]) {
        if !self.operand.along_depth {
            return self.across_panels(side, panels, units, out);
        }
        let mut out = out;
        for p in panels {
            let width = side.width(self.operand.across, p);
            let deep = side.deep(units.len());
            let (panel, rest) = out.split_at_mut(width * deep);
            out = rest;
            for u in units.clone().step_by(CHUNK) {
                let at = u - units.start;
                let steps = CHUNK.min(units.end - u);
                match side {
                    Side::A => self.chunk_of_a(p * ROWS, u, &mut panel[at * ROWS..(at + CHUNK) * ROWS]),
                    Side::B => {
                        self.chunk_of_b(p * COLS, u, &mut panel[at * width..(at + steps) * width], width)
                    }
                }
            }
        }
    }

    /// Copies 16 units of 8 rows: `[row][unit]`.
    fn chunk_of_a(&self, row: usize, unit: usize, out: &mut [u32]) {
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
    fn chunk_of_b(&self, col: usize, unit: usize, out: &mut [u32], width: usize) {
        for lane in (0..width).step_by(LANES) {
            let mut block = [[0; LANES]; LANES];
            self.isa.run(
                #[inline(always)]
                |_| {
                    for (i, row) in block.iter_mut().enumerate() {
                        self.units_of(col + lane + i, unit, row);
                    }
                },
            );
            if out.len() == CHUNK * width {
                transpose(self.isa, &block, &mut out[lane..], width);
                continue;
            }
            for (i, out) in out.chunks_exact_mut(width).enumerate() {
                for (out, row) in out[lane..lane + LANES].iter_mut().zip(&block) {
                    *out = row[i];
                }
            }
        }
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
    ///
    /// Goes down the depth once for all panels, so that each memory row is read in one go.
    fn across_panels(&self, side: Side, panels: Range<usize>, units: Range<usize>, out: &mut [u32]) {
        let (deep, operand) = (side.deep(units.len()), &self.operand);
        let start = panels.start * side.panel();
        let end = operand.across.min(panels.end * side.panel());
        self.isa.run(
            #[inline(always)]
            |_| {
                for (u, unit) in units.enumerate() {
                    let row = |d: usize| &operand.data[d * operand.stride..][start..end];
                    let first = row(unit * U::DEPTH);
                    let second = (unit * U::DEPTH + 1 < operand.depth && U::DEPTH == 2)
                        .then(|| row(unit * U::DEPTH + 1));
                    let mut out = &mut *out;
                    for p in panels.clone() {
                        let width = side.width(operand.across, p);
                        let (panel, rest) = out.split_at_mut(width * deep);
                        out = rest;
                        let from = p * side.panel() - start;
                        let to = (from + side.panel()).min(first.len());
                        let second = second.map(|s| &s[from..to]);
                        lanes::<T, U>(&first[from..to], second, &mut panel[u * width..(u + 1) * width]);
                    }
                }
            },
        );
    }
}

/// Joins two memory rows lane by lane; zeros beyond their end.
#[inline(always)]
fn lanes<T: FloatX, U: Units<T>>(first: &[T], second: Option<&[T]>, out: &mut [u32]) {
    let (body, tail) = out.split_at_mut(first.len());
    match second {
        Some(second) => {
            for ((out, a), b) in body.iter_mut().zip(first).zip(second) {
                *out = U::unit(*a, *b);
            }
        }
        None => {
            for (out, a) in body.iter_mut().zip(first) {
                *out = U::unit(*a, T::from_f32(0.0));
            }
        }
    }
    tail.fill(0);
}

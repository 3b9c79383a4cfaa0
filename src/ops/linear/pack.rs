//! Packing: copies strided operands of any storage type into panels of 32-bit units, padded with zeros.
//!
//! A panel holds 8 rows of A or 48 columns of B (the last one 16, 32 or 48) over the whole depth, so that a
//! micro-kernel reads both in sequence. Below, "across" counts rows of A or columns of B, "depth" the summed index.

use std::marker::PhantomData;
use std::ops::Range;

use crate::device::Isa;
use crate::float::{DType, FloatX};
use crate::ops::linear::kernel::{CHUNK, COLS, Format, LANES, Panel, ROWS, transpose};

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
    /// Where memory rows lie in several places: those of each place but the last, and the places. `data` is empty then.
    pub parts: Option<(usize, &'a [&'a [T]])>,
}

/// Takes a row-major (rows, cols) matrix whose columns are summed over.
pub(super) fn rows_of<T>(data: &[T], rows: usize, cols: usize) -> Operand<'_, T> {
    Operand { data, stride: cols, along_depth: true, across: rows, depth: cols, parts: None }
}

/// Takes a row-major (rows, cols) matrix whose rows are summed over.
pub(super) fn columns_of<T>(data: &[T], rows: usize, cols: usize) -> Operand<'_, T> {
    Operand { data, stride: cols, along_depth: false, across: cols, depth: rows, parts: None }
}

/// Takes several such matrices of `cols` columns, one below the other; all but the last have `each` rows, an even number.
pub(super) fn columns_of_parts<'a, T>(parts: &'a [&'a [T]], each: usize, cols: usize) -> Operand<'a, T> {
    let depth = parts.iter().map(|part| part.len()).sum::<usize>() / cols.max(1);
    Operand { data: &[], stride: cols, along_depth: false, across: cols, depth, parts: Some((each, parts)) }
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
    /// Reads as many units as `out` has, from neighbours in depth.
    fn read(row: &[T], out: &mut [u32]);
}

#[derive(Clone, Copy)]
struct Single;

impl<T: FloatX> Units<T> for Single {
    const DEPTH: usize = 1;
    #[inline(always)]
    fn unit(first: T, _: T) -> u32 {
        first.to_f32().to_bits()
    }
    #[inline(always)]
    fn read(row: &[T], out: &mut [u32]) {
        for (out, x) in out.iter_mut().zip(row) {
            *out = x.to_f32().to_bits();
        }
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
    #[inline(always)]
    fn read(row: &[T], out: &mut [u32]) {
        for (out, [a, b]) in out.iter_mut().zip(row.as_chunks::<2>().0) {
            *out = Self::unit(*a, *b);
        }
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

impl<'d, T: FloatX> Operand<'d, T> {
    /// Returns the operand as rows of units, if a kernel can read it as an A operand where it lies: f32 for single
    /// units, bf16 of an even depth for pairs, contiguous in depth.
    pub(super) fn in_place(&self, format: Format) -> Option<(&'d [u32], usize)> {
        let fits = match format {
            Format::Single => T::DTYPE == DType::F32,
            Format::Pair => T::DTYPE == DType::Bf16 && self.depth.is_multiple_of(2),
        };
        let units = bytemuck::try_cast_slice::<T, u32>(self.data).ok()?;
        (fits && self.along_depth).then_some((units, format.units(self.stride)))
    }

    /// Returns in how many places the memory rows of an operand that is summed over them lie.
    pub(super) fn pieces(&self) -> usize {
        self.parts.map_or(1, |(_, parts)| parts.len())
    }

    /// Returns piece `i` as units of one f32, and its rows; `None` for another storage type, or where it has none.
    pub(super) fn piece(&self, i: usize) -> Option<(&'d [u32], usize)> {
        let (data, rows) = match self.parts {
            Some((_, parts)) => {
                let part = *parts.get(i)?;
                (part, part.len() / self.stride.max(1))
            }
            None => (self.data, self.depth),
        };
        let units = bytemuck::try_cast_slice::<T, u32>(data).ok()?;
        (rows > 0 && T::DTYPE == DType::F32).then_some((units, rows))
    }

    /// Returns panel `i` of packed A panels that start at `data`.
    pub(super) fn panel<'a>(&self, data: &'a [u32], i: usize, deep: usize) -> Panel<'a> {
        let data = &data[i * ROWS * deep..];
        let (row, step) = if self.along_depth { (deep, 1) } else { (1, ROWS) };
        Panel { data, rows: ROWS, row, step }
    }

    /// Packs units `units` of panels `panels` into `out`, one panel every panel width × `deep` elements: A panels as
    /// `[row][deep]` if contiguous in depth, else `[unit][row]`; B panels as `[unit][column]`.
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
        let Some((each, parts)) = self.parts else {
            return self.pack_part(isa, format, Panels { side, panels, units, deep, at: 0 }, out);
        };
        let each = format.units(each);
        for (i, data) in parts.iter().enumerate() {
            let end = if i + 1 < parts.len() { (i + 1) * each } else { units.end };
            let here = units.start.max(i * each)..units.end.min(end);
            if !here.is_empty() {
                let part = Self { data, depth: data.len() / self.stride.max(1), parts: None, ..*self };
                let (at, first) = (here.start - units.start, i * each);
                let units = here.start - first..here.end - first;
                part.pack_part(isa, format, Panels { side, panels: panels.clone(), units, deep, at }, out);
            }
        }
    }

    fn pack_part(&self, isa: Isa, format: Format, job: Panels, out: &mut [u32]) {
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
    /// The place in the panels that the first of the units has, for an operand that is contiguous across.
    at: usize,
}

struct Packer<'a, T, U> {
    operand: Operand<'a, T>,
    isa: Isa,
    how: PhantomData<U>,
}

/// Units of 16 rows that are converted before they are transposed: 8 KiB, a quarter of the first cache level.
const STAGE: usize = 128;
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
            match job.side {
                Side::A => self.copy(p * ROWS, job.units.clone(), panel, job.deep),
                Side::B => self.turn(p * COLS, job.units.clone(), panel),
            }
        }
    }

    /// Copies 8 rows: `[row][unit]`.
    fn copy(&self, row: usize, units: Range<usize>, panel: &mut [u32], deep: usize) {
        self.isa.run(
            #[inline(always)]
            |_| {
                for (i, out) in panel.chunks_mut(deep).take(ROWS).enumerate() {
                    self.units_of(row + i, units.start, &mut out[..units.len()]);
                }
            },
        );
    }

    /// Transposes up to 48 columns: `[unit][column]`.
    fn turn(&self, col: usize, units: Range<usize>, panel: &mut [u32]) {
        let width = Side::B.width(self.operand.across, col / COLS);
        for lane in (0..width).step_by(LANES) {
            let mut done = 0;
            if let Some(rows) = self.rows_in_place(col + lane, units.clone()) {
                transpose(self.isa, &rows, &mut panel[lane..], width);
                done = units.len() / CHUNK * CHUNK;
            }
            for unit in (units.start + done..units.end).step_by(STAGE) {
                let steps = STAGE.min(units.end - unit);
                self.turn_stage(
                    col + lane,
                    unit,
                    steps,
                    (&mut panel[(unit - units.start) * width + lane..], width),
                );
            }
        }
    }

    /// Transposes `steps` units of 16 columns that need converting or padding first; whole chunks are written.
    fn turn_stage(&self, col: usize, unit: usize, steps: usize, (out, width): (&mut [u32], usize)) {
        let mut stage = [[0; STAGE]; LANES];
        self.isa.run(
            #[inline(always)]
            |_| {
                for (i, row) in stage.iter_mut().enumerate() {
                    self.units_of(col + i, unit, &mut row[..steps]);
                }
            },
        );
        let whole = steps.next_multiple_of(CHUNK);
        transpose(self.isa, &stage.each_ref().map(|row| &row[..whole]), out, width);
    }

    /// Returns units of 16 rows where they lie, if they are all there as they are to be packed.
    fn rows_in_place(&self, across: usize, units: Range<usize>) -> Option<[&[u32]; LANES]> {
        let format = if U::DEPTH == 1 { Format::Single } else { Format::Pair };
        let (data, stride) = self.operand.in_place(format)?;
        if across + LANES > self.operand.across {
            return None;
        }
        let mut rows = [&data[..0]; LANES];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = &data[(across + i) * stride..][units.clone()];
        }
        Some(rows)
    }

    /// Reads units of a row that is contiguous in depth; zeros beyond its end and below the last row.
    #[inline(always)]
    fn units_of(&self, across: usize, unit: usize, out: &mut [u32]) {
        let operand = &self.operand;
        if across >= operand.across {
            return out.fill(0);
        }
        let row = &operand.data[across * operand.stride..][..operand.depth];
        let row = &row[unit * U::DEPTH..row.len().min((unit + out.len()) * U::DEPTH)];
        let whole = row.len() / U::DEPTH;
        U::read(row, &mut out[..whole]);
        if let Some(out) = out.get_mut(whole..) {
            out.fill(0);
        }
        if row.len() > whole * U::DEPTH {
            out[whole] = U::unit(row[whole * U::DEPTH], T::from_f32(0.0));
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
        let (start, at) = (job.panels.start * W, job.at + units.start - job.units.start);
        let whole = job.panels.len().min((operand.across - start) / W);
        let (body, tail) = out.split_at_mut(whole * W * job.deep);
        if units.end * U::DEPTH <= operand.depth && units.len() == SPREAD {
            let row = |d: usize| &operand.data[d * operand.stride + start..][..whole * W];
            let rows: [_; SPREAD] = std::array::from_fn(|i| {
                let d = (units.start + i) * U::DEPTH;
                (row(d), row(d + U::DEPTH - 1))
            });
            for (i, panel) in body.chunks_exact_mut(W * job.deep).enumerate() {
                let out = &mut panel[at * W..(at + SPREAD) * W];
                for (out, (first, second)) in out.chunks_exact_mut(W).zip(rows) {
                    line::<T, U, W>(&first[i * W..], &second[i * W..], out);
                }
            }
        } else {
            for (i, panel) in body.chunks_exact_mut(W * job.deep).enumerate() {
                self.spread_part(start + i * W, W, units.clone(), &mut panel[at * W..]);
            }
        }
        if whole < job.panels.len() {
            let width = job.side.width(operand.across, job.panels.end - 1);
            self.spread_part(start + whole * W, width, units, &mut tail[at * width..]);
        }
    }

    /// Packs a few units of one panel, with zeros where the operand ends.
    #[inline(always)]
    fn spread_part(&self, start: usize, width: usize, units: Range<usize>, out: &mut [u32]) {
        let operand = &self.operand;
        let there = width.min(operand.across - start);
        for (unit, out) in units.zip(out.chunks_mut(width)) {
            let row = |d: usize| &operand.data[d * operand.stride + start..][..there];
            let second = unit * U::DEPTH + U::DEPTH - 1;
            let second = if second < operand.depth { Some(row(second)) } else { None };
            let (out, padding) = out.split_at_mut(there);
            match (second, there) {
                (Some(second), 32) => line::<T, U, 32>(row(unit * U::DEPTH), second, out),
                (Some(second), 16) => line::<T, U, 16>(row(unit * U::DEPTH), second, out),
                _ => join::<T, U>(row(unit * U::DEPTH), second, out),
            }
            padding.fill(0);
        }
    }
}

/// Joins parts of two memory rows, of a width that the compiler knows.
#[inline(always)]
fn line<T: FloatX, U: Units<T>, const W: usize>(first: &[T], second: &[T], out: &mut [u32]) {
    let (first, second, out) = (&first[..W], &second[..W], &mut out[..W]);
    if T::DTYPE == DType::F32 && U::DEPTH == 1 {
        return out.copy_from_slice(bytemuck::cast_slice(first));
    }
    // By way of registers: written straight to `out`, which might overlap for all the compiler knows, the unrolled
    // loop would stay scalar.
    let mut line = [0; W];
    for ((line, a), b) in line.iter_mut().zip(first).zip(second) {
        *line = U::unit(*a, *b);
    }
    out.copy_from_slice(&line);
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

//! Small products whose operands the caller packs and keeps: the blocks of attention.
//!
//! The right operand is cut into panels of at most 48 columns, as even as multiples of 16 can be, `[panel][unit][column]`; the left
//! one is units where they lie. Sums are f32 and are added in the order of depth, as in all products.

use std::ops::Range;

use crate::device::Isa;
use crate::float::FloatX;
use crate::ops::linear::kernel::{Begin, Block, CHUNK, COLS, Format, LANES, Panel, ROWS};
use crate::ops::linear::pack::{Operand, Side};
use crate::ops::linear::shared::Split;

/// Rows that are multiplied together: sums have a multiple of it.
pub(in crate::ops) const ROW_STEP: usize = ROWS;
/// Columns that are multiplied together: sums have a multiple of it.
pub(in crate::ops) const COLUMN_STEP: usize = LANES;

/// How to multiply numbers of one storage type on one processor.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Multiplier {
    isa: Isa,
    format: Format,
}

/// Part of a row-major matrix: `rows` rows of `columns`, `stride` elements apart.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Matrix<'a, X> {
    /// The elements, from the first of the part on.
    pub data: &'a [X],
    /// Rows of the part.
    pub rows: usize,
    /// Columns of the part.
    pub columns: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

/// The left operand: unit `u` of row `i` is `data[i·row + u·step]`.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Left<'a> {
    /// The units.
    pub data: &'a [u32],
    /// Rows.
    pub rows: usize,
    /// Units from one row to the next.
    pub row: usize,
    /// Units from one to the next in depth.
    pub step: usize,
}

/// The right operand, packed.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Right<'a> {
    data: &'a [u32],
    columns: usize,
    deep: usize,
}

/// Where the sums of a product go.
pub(in crate::ops) struct Sums<'a> {
    /// Row-major, whole steps of rows and columns.
    pub sums: &'a mut [f32],
    /// Sums from one row to the next.
    pub stride: usize,
    /// Says whether they are overwritten instead of added to.
    pub first: bool,
}

impl Multiplier {
    /// Takes pairs of bf16 where the processor multiplies them, else f32.
    pub(in crate::ops) fn of<X: FloatX>(isa: Isa) -> Self {
        Self { isa, format: Format::of(X::DTYPE, isa) }
    }

    /// Returns the instruction set.
    pub(in crate::ops) fn isa(self) -> Isa {
        self.isa
    }

    /// Says whether a unit is two bf16, neighbours in depth, instead of one f32.
    pub(in crate::ops) fn pairs(self) -> bool {
        self.format == Format::Pair
    }

    /// Returns the units of `depth` elements.
    pub(in crate::ops) fn units(self, depth: usize) -> usize {
        self.format.units(depth)
    }

    /// Returns the units of one row or column of a packed operand: whole chunks.
    pub(in crate::ops) fn deep(self, depth: usize) -> usize {
        self.units(depth).next_multiple_of(CHUNK)
    }

    /// Returns the length of a packed right operand of `columns` columns.
    pub(in crate::ops) fn space(self, columns: usize, depth: usize) -> usize {
        columns.next_multiple_of(LANES) * self.deep(depth)
    }

    /// Copies the rows of `matrix` as a left operand that sums over its columns: [`Multiplier::deep`] units a row, rows of zeros up to
    /// a whole step.
    pub(in crate::ops) fn copy<'a, X: FloatX>(self, out: &'a mut [u32], matrix: Matrix<'_, X>) -> Left<'a> {
        let Matrix { data, rows, columns, stride } = matrix;
        let (deep, panels) = (self.deep(columns), rows.div_ceil(ROWS));
        let operand = Operand { data, stride, along_depth: true, across: rows, depth: columns, parts: None };
        let (units, out) = (self.units(columns), &mut out[..panels * ROWS * deep]);
        if let Some((data, stride)) = operand.in_place(self.format) {
            for (i, out) in out.chunks_exact_mut(deep).enumerate() {
                match i < rows {
                    true => out[..units].copy_from_slice(&data[i * stride..][..units]),
                    false => out[..units].fill(0),
                }
            }
        } else {
            operand.pack(self.isa, self.format, Side::A, 0..panels, 0..units, (&mut *out, deep));
        }
        Left { data: out, rows: panels * ROWS, row: deep, step: 1 }
    }

    /// Packs the rows of `matrix` as columns of a right operand: its transpose, summed over its columns.
    pub(in crate::ops) fn pack_rows<X: FloatX>(self, out: &mut [u32], matrix: Matrix<'_, X>) {
        let Matrix { data, rows, columns, stride } = matrix;
        self.pack(
            out,
            Operand { data, stride, along_depth: true, across: rows, depth: columns, parts: None },
        );
    }

    /// Packs the columns of `matrix` as columns of a right operand, summed over its rows.
    pub(in crate::ops) fn pack_columns<X: FloatX>(self, out: &mut [u32], matrix: Matrix<'_, X>) {
        let Matrix { data, rows, columns, stride } = matrix;
        self.pack(
            out,
            Operand { data, stride, along_depth: false, across: columns, depth: rows, parts: None },
        );
    }

    /// Takes what was packed as `columns` columns of `depth` elements.
    pub(in crate::ops) fn right(self, packed: &[u32], columns: usize, depth: usize) -> Right<'_> {
        Right { data: &packed[..self.space(columns, depth)], columns, deep: self.deep(depth) }
    }

    fn pack<X: FloatX>(self, out: &mut [u32], operand: Operand<'_, X>) {
        let (deep, units) = (self.deep(operand.depth), self.units(operand.depth));
        let out = &mut out[..self.space(operand.across, operand.depth)];
        for columns in panels(operand.across) {
            let across = operand.across.min(columns.end) - columns.start;
            let first = columns.start * if operand.along_depth { operand.stride } else { 1 };
            let part = Operand { data: &operand.data[first..], across, ..operand };
            let panel = &mut out[columns.start * deep..columns.end * deep];
            part.pack(self.isa, self.format, Side::B, 0..1, 0..units, (panel, deep));
        }
    }

    /// Multiplies `a` by units `units` of `b`, of which `a` has those alone.
    pub(in crate::ops) fn multiply(self, out: Sums<'_>, a: Left<'_>, b: Right<'_>, units: Range<usize>) {
        let Sums { sums, stride, first } = out;
        let panel = |row: usize| {
            let row = if row < a.rows { row } else { 0 };
            let (data, rows) = (&a.data[row * a.row..], ROWS.min(a.rows - row));
            Panel { data, rows, row: a.row, step: a.step }
        };
        for columns in panels(b.columns) {
            let width = columns.len();
            let packed = &b.data[columns.start * b.deep..columns.end * b.deep];
            let packed = &packed[units.start * width..units.end * width];
            for row in (0..a.rows).step_by(ROWS) {
                let (a, next, units) = (panel(row), panel(row + ROWS), units.len());
                let (format, b, ahead, begin) = (self.format, packed, packed, Begin::new(first));
                let block = Block { format, a, next, b, b_step: width, ahead, width, units, begin };
                block.run(self.isa, &mut sums[row * stride + columns.start..], stride);
            }
        }
    }
}

impl<'a> Left<'a> {
    /// Takes `rows` rows from `first` on.
    pub(in crate::ops) fn part(self, first: usize, rows: usize) -> Left<'a> {
        Left { data: &self.data[first * self.row..], rows, ..self }
    }
}

/// Cuts columns into panels of 16, 32 or 48; the last may reach beyond the columns.
fn panels(columns: usize) -> impl Iterator<Item = Range<usize>> {
    let lanes = columns.div_ceil(LANES);
    let split = Split { count: lanes, parts: lanes.div_ceil(COLS / LANES) };
    (0..split.parts).map(move |i| split.part(i)).map(|lanes| lanes.start * LANES..lanes.end * LANES)
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// Small whole numbers: their sums are exact.
    fn filled<X: FloatX>(n: usize) -> Vec<X> {
        (0..n).map(|i| X::from_f32((i * 37 % 11) as f32 - 5.0)).collect()
    }

    fn check<X: FloatX>(isa: Isa, (m, n, k): (usize, usize, usize)) {
        let multiplier = Multiplier::of::<X>(isa);
        let (a, rows, columns) = (filled::<X>(m * k), filled::<X>(n * k), filled::<X>(k * n));
        let expected = |i: usize, j: usize, b: &dyn Fn(usize) -> X| -> f32 {
            (0..k).map(|d| a[i * k + d].to_f32() * b(d).to_f32()).sum::<f32>() + j as f32
        };
        let mut units = vec![u32::MAX; m.next_multiple_of(ROW_STEP) * multiplier.deep(k)];
        let left = multiplier.copy(&mut units, Matrix { data: &a, rows: m, columns: k, stride: k });
        let stride = n.next_multiple_of(COLUMN_STEP) + COLUMN_STEP;
        let mut packed = vec![u32::MAX; multiplier.space(n, k)];
        for by_rows in [true, false] {
            match by_rows {
                true => {
                    multiplier.pack_rows(&mut packed, Matrix { data: &rows, rows: n, columns: k, stride: k })
                }
                false => multiplier
                    .pack_columns(&mut packed, Matrix { data: &columns, rows: k, columns: n, stride: n }),
            }
            let mut sums: Vec<f32> = (0..left.rows * stride).map(|i| (i % stride) as f32).collect();
            let right = multiplier.right(&packed, n, k);
            let out = Sums { sums: &mut sums, stride, first: false };
            multiplier.multiply(out, left, right, 0..multiplier.units(k));
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let b = |d: usize| if by_rows { rows[j * k + d] } else { columns[d * n + j] };
                assert_eq!(sums[i * stride + j], expected(i, j, &b), "{isa:?} {m}x{n}x{k} at {i}, {j}");
            }
        }
    }

    #[test]
    fn kept_operands_multiply_as_plain_sums_do() {
        let isas = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];
        for isa in isas.into_iter().filter(|isa| *isa <= Isa::detect()) {
            for shape in [(1, 1, 2), (8, 16, 32), (9, 33, 30), (24, 64, 64), (17, 100, 72), (3, 257, 18)] {
                check::<f32>(isa, shape);
                check::<bf16>(isa, shape);
            }
            check::<f32>(isa, (5, 7, 9));
        }
    }

    #[test]
    fn panels_are_even() {
        let widths = |columns| panels(columns).map(|p| p.len()).collect::<Vec<_>>();
        assert_eq!(widths(1), [16]);
        assert_eq!(widths(64), [32, 32]);
        assert_eq!(widths(72), [32, 48]);
        assert_eq!(widths(256), [32, 48, 48, 32, 48, 48]);
    }
}

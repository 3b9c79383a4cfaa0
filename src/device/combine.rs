//! Linear combinations of rows, a block of sums at a time in registers: what modulation tables are interpolated by.

use crate::device::Arch;

/// The terms of [`Arch::combine`]: aᵢₖ is `a[i·row + k·term]`, xₖ begins at `x[k·stride]`.
pub(crate) struct Combination<'a> {
    pub a: &'a [f32],
    pub row: usize,
    pub term: usize,
    pub x: &'a [f32],
    pub stride: usize,
    pub terms: usize,
}

impl Arch {
    /// Computes the rows of `y`, `width` long: y[i] = or += Σₖ aᵢₖ·xₖ, k in order, with fused multiply-adds from 0 or y on.
    #[inline(always)]
    pub(crate) fn combine(self, y: &mut [f32], width: usize, of: &Combination<'_>, first: bool) {
        let rows = y.len().checked_div(width).unwrap_or(0);
        if rows == 0 || of.terms == 0 {
            return if first {
                y.fill(0.0)
            };
        }
        let last = (rows - 1) * of.row + (of.terms - 1) * of.term;
        assert!(of.a.len() > last && of.x.len() >= (of.terms - 1) * of.stride + width);
        #[allow(unused_mut)] // only x86-64 has columns done before
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if self.wide {
            // SAFETY: `wide` is set only by `run_avx512`; the assert, and `rows`, bound every access.
            done = unsafe { x86::combine(y, (rows, width), of, first) };
        }
        if done == width {
            return;
        }
        for (i, y) in y.chunks_exact_mut(width).enumerate() {
            let y = &mut y[done..];
            if first {
                y.fill(0.0);
            }
            self.add_combination(
                y,
                of.terms,
                #[inline(always)]
                |k| (of.a[i * of.row + k * of.term], &of.x[k * of.stride + done..]),
            );
        }
    }

    /// y += Σₖ aₖ·xₖ for k in 0..count, in order; `term(k)` is (aₖ, xₖ). Four terms at a time, so that y is loaded and
    /// stored once for four multiplications.
    #[inline(always)]
    fn add_combination<'t>(self, y: &mut [f32], count: usize, term: impl Fn(usize) -> (f32, &'t [f32])) {
        let n = y.len();
        let whole = count / 4 * 4;
        for k in (0..whole).step_by(4) {
            let [(a0, x0), (a1, x1), (a2, x2), (a3, x3)] = [term(k), term(k + 1), term(k + 2), term(k + 3)];
            let (x0, x1, x2, x3) = (&x0[..n], &x1[..n], &x2[..n], &x3[..n]);
            for i in 0..n {
                let sum = self.fma(a1, x1[i], self.fma(a0, x0[i], y[i]));
                y[i] = self.fma(a3, x3[i], self.fma(a2, x2[i], sum));
            }
        }
        for k in whole..count {
            let (a, x) = term(k);
            for (y, x) in y.iter_mut().zip(&x[..n]) {
                *y = self.fma(a, *x, *y);
            }
        }
    }
}

/// Sums in sixteen AVX-512 registers: written out, since arrays of sums do not stay in registers.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Combination;

    /// Rows and vectors of a block of `combine`: sixteen sums in registers, beside two of x.
    const COMBINED: (usize, usize) = (8, 2);

    /// Computes the whole blocks of columns of `Arch::combine` and returns how many columns that were.
    ///
    /// # Safety
    /// `y` has `rows`·`width` elements, and `of` all terms of that many rows and columns.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn combine(
        y: &mut [f32],
        (rows, width): (usize, usize),
        of: &Combination<'_>,
        first: bool,
    ) -> usize {
        const COLUMNS: usize = 16 * COMBINED.1;
        let whole = width / COLUMNS * COLUMNS;
        for row in (0..rows).step_by(COMBINED.0) {
            // The last rows are done again by the rows that a block lacks, which are not stored.
            let at = |i: usize| (row + i).min(rows - 1);
            for col in (0..whole).step_by(COLUMNS) {
                let mut acc = [[_mm512_setzero_ps(); COMBINED.1]; COMBINED.0];
                // SAFETY: rows below `rows`, columns below `whole`, terms below `of.terms`: the caller's bounds.
                unsafe {
                    if !first {
                        for (i, acc) in acc.iter_mut().enumerate() {
                            for (j, acc) in acc.iter_mut().enumerate() {
                                *acc = _mm512_loadu_ps(y.as_ptr().add(at(i) * width + col + 16 * j));
                            }
                        }
                    }
                    let a: [*const f32; COMBINED.0] =
                        std::array::from_fn(|i| of.a.as_ptr().wrapping_add(at(i) * of.row));
                    for k in 0..of.terms {
                        let x = of.x.as_ptr().add(k * of.stride + col);
                        let x = [_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16))];
                        for (acc, a) in acc.iter_mut().zip(a) {
                            let a = _mm512_set1_ps(*a.add(k * of.term));
                            for (acc, x) in acc.iter_mut().zip(x) {
                                *acc = _mm512_fmadd_ps(a, x, *acc);
                            }
                        }
                    }
                    for (i, acc) in acc.iter().enumerate().take(rows - row) {
                        for (j, acc) in acc.iter().enumerate() {
                            _mm512_storeu_ps(y.as_mut_ptr().add((row + i) * width + col + 16 * j), *acc);
                        }
                    }
                }
            }
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Isa;

    #[test]
    fn combinations_have_the_bits_of_sums_in_order() {
        let number = |i: usize| ((i * 7919) % 257) as f32 / 256.0 - 0.5;
        for (rows, width, terms) in [(1, 1, 1), (8, 64, 16), (9, 47, 8), (17, 100, 5), (3, 32, 0)] {
            let stride = width + 3;
            let x: Vec<f32> = (0..terms * stride).map(number).collect();
            let a: Vec<f32> = (0..rows * terms).map(|i| number(i + 11)).collect();
            for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| *isa <= Isa::detect())
            {
                for first in [true, false] {
                    let mut y: Vec<f32> = (0..rows * width).map(|i| number(i + 5)).collect();
                    let mut expected = y.clone();
                    isa.run(
                        #[inline(always)]
                        |arch| {
                            for (i, y) in expected.iter_mut().enumerate() {
                                let (row, col) = (i / width, i % width);
                                *y = (0..terms).fold(if first { 0.0 } else { *y }, |y, k| {
                                    arch.fma(a[row * terms + k], x[k * stride + col], y)
                                });
                            }
                            let of = Combination { a: &a, row: terms, term: 1, x: &x, stride, terms };
                            arch.combine(&mut y, width, &of, first);
                        },
                    );
                    assert_eq!(y, expected, "{isa:?} ({rows}, {width}, {terms}) first {first}");
                }
            }
        }
    }
}

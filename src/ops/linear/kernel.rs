//! Micro-kernels: an 8 × 16·V block of a product from two packed panels, and the transposition that packing needs.
//!
//! A packed operand is made of 32-bit units: one f32, or two bf16 neighbours in depth (the first in the low half) for
//! the dot-product instruction of AVX-512 BF16. For each row of A and column of B the kernel adds its products in the
//! order of depth with fused multiply-adds, whatever the block's place in the matrix; so AVX-512 and AVX2 agree in
//! every bit, and so do all rows. AVX-512 keeps 8 × 48 sums in 24 registers, beside three of B and a broadcast of A;
//! AVX2 goes over the same panels in blocks of 4 × 24 (12 + 3 + 1 registers).

use crate::device::Isa;

/// Rows of A in a panel.
pub(super) const ROWS: usize = 8;
/// Columns of B in a whole panel; the last panel of a matrix may have 16 or 32.
pub(super) const COLS: usize = 48;
/// Lanes of the widest vector; widths of B panels are multiples of it.
pub(super) const LANES: usize = 16;
/// Units of one row that lie together in a panel of [`Order::Rows`].
pub(super) const CHUNK: usize = 16;

/// Says what the units of a packed operand hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// One f32.
    Single,
    /// Two bf16.
    Pair,
}

/// Says in which order the units of an A panel lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// `[unit / 16][row][unit % 16]`: packing an operand that is contiguous in depth is a copy.
    Rows,
    /// `[unit][row]`: packing an operand that is contiguous across rows is a copy.
    Units,
}

/// One call of a micro-kernel: `sums (8, width) = or += a (8, units) · b (units, width)`.
pub(super) struct Block<'a> {
    /// What the units are.
    pub format: Format,
    /// The A panel, from the first unit of this block on.
    pub a: &'a [u32],
    /// Its order.
    pub order: Order,
    /// The B panel, `[units][width]`.
    pub b: &'a [u32],
    /// 16, 32 or 48.
    pub width: usize,
    /// Depth in units.
    pub units: usize,
    /// Says whether `sums` is overwritten instead of added to.
    pub first: bool,
}

impl Block<'_> {
    /// Computes the block into `sums`, whose rows are `stride` apart.
    ///
    /// Panics when a panel or `sums` is too short: that is what makes the kernels' pointers safe.
    #[inline]
    pub(super) fn run(&self, isa: Isa, sums: &mut [f32], stride: usize) {
        let (v, units) = (self.width / LANES, self.units);
        let a_len = match self.order {
            Order::Rows => units.next_multiple_of(CHUNK) * ROWS,
            Order::Units => units * ROWS,
        };
        assert!((1..=3).contains(&v) && self.width == v * LANES && self.a.len() >= a_len);
        assert!(self.b.len() >= units * self.width && sums.len() >= (ROWS - 1) * stride + self.width);
        let (a, b, c) = (self.a.as_ptr(), self.b.as_ptr(), sums.as_mut_ptr());
        let (order, format, first) = (self.order, self.format, self.first);
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 if format == Format::Pair => {
                let kernel = match (v, order) {
                    (1, Order::Rows) => x86::pair_avx512::<1, true>,
                    (2, Order::Rows) => x86::pair_avx512::<2, true>,
                    (_, Order::Rows) => x86::pair_avx512::<3, true>,
                    (1, Order::Units) => x86::pair_avx512::<1, false>,
                    (2, Order::Units) => x86::pair_avx512::<2, false>,
                    (_, Order::Units) => x86::pair_avx512::<3, false>,
                };
                // SAFETY: the asserts above are the kernels' bounds on a, b and c; the features are present, because
                // `Cpu::new` refuses an instruction set above the detected one.
                unsafe { kernel(a, b, units, c, stride, first) }
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => {
                let kernel = match (v, order) {
                    (1, Order::Rows) => x86::single_avx512::<1, true>,
                    (2, Order::Rows) => x86::single_avx512::<2, true>,
                    (_, Order::Rows) => x86::single_avx512::<3, true>,
                    (1, Order::Units) => x86::single_avx512::<1, false>,
                    (2, Order::Units) => x86::single_avx512::<2, false>,
                    (_, Order::Units) => x86::single_avx512::<3, false>,
                };
                // SAFETY: as above.
                unsafe { kernel(a, b, units, c, stride, first) }
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                // SAFETY: as above.
                unsafe { x86::single_avx2(a, b, units, c, stride, first, (v, order == Order::Rows)) }
            }
            _ => self.run_portable(sums, stride),
        }
    }

    /// Computes the block in 4 × 8 parts that fit sixteen registers of 128 bits.
    fn run_portable(&self, sums: &mut [f32], stride: usize) {
        for row in (0..ROWS).step_by(4) {
            for col in (0..self.width).step_by(8) {
                let mut acc = [[0.0f32; 8]; 4];
                for (u, b) in self.b.chunks_exact(self.width).take(self.units).enumerate() {
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let a = f32::from_bits(self.a[a_index(self.order, row + i, u)]);
                        for (acc, b) in acc.iter_mut().zip(&b[col..col + 8]) {
                            *acc += a * f32::from_bits(*b);
                        }
                    }
                }
                for (i, acc) in acc.iter().enumerate() {
                    let at = (row + i) * stride + col;
                    for (sum, acc) in sums[at..at + 8].iter_mut().zip(acc) {
                        *sum = if self.first { *acc } else { *sum + acc };
                    }
                }
            }
        }
    }
}

/// Returns where a panel of A holds a unit.
#[inline(always)]
fn a_index(order: Order, row: usize, unit: usize) -> usize {
    match order {
        Order::Rows => unit / CHUNK * (CHUNK * ROWS) + row * CHUNK + unit % CHUNK,
        Order::Units => unit * ROWS + row,
    }
}

/// Writes `out[i·stride + j] = block[j][i]` for a 16 × 16 block.
///
/// Panics when `out` is too short.
#[inline]
pub(super) fn transpose(isa: Isa, block: &[[u32; LANES]; LANES], out: &mut [u32], stride: usize) {
    assert!(out.len() >= (LANES - 1) * stride + LANES);
    match isa {
        // SAFETY: the assert bounds every write; the features are present, because `Cpu::new` refuses an instruction
        // set above the detected one.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => unsafe { x86::transpose_avx512(block, out.as_mut_ptr(), stride) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::transpose_avx2(block, out.as_mut_ptr(), stride) },
        _ => {
            for (i, out) in out.chunks_mut(stride).take(LANES).enumerate() {
                for (out, row) in out.iter_mut().zip(block) {
                    *out = row[i];
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{CHUNK, LANES, ROWS};

    /// Defines an AVX-512 kernel; `$step` multiplies a broadcast unit of A with a vector of B and adds.
    ///
    /// Bounds, kept by `Block::run`: `a` holds `units` units of 8 rows (whole chunks if `CHUNKED`), `b` `units` rows of
    /// 16·V units, `c` eight rows of 16·V sums, `stride` apart.
    macro_rules! avx512_kernel {
        ($name:ident, $features:literal, $step:expr) => {
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name<const V: usize, const CHUNKED: bool>(
                mut a: *const u32,
                mut b: *const u32,
                units: usize,
                c: *mut f32,
                stride: usize,
                first: bool,
            ) {
                let mut acc = [[_mm512_setzero_ps(); V]; ROWS];
                let (row, run) = if CHUNKED { (CHUNK, CHUNK) } else { (1, usize::MAX) };
                let mut left = units;
                while left > 0 {
                    let steps = left.min(run);
                    for _ in 0..steps {
                        // SAFETY: see the macro: within the panels, as `steps` adds up to `units`.
                        unsafe {
                            let mut bs = [_mm512_setzero_si512(); V];
                            for (j, bs) in bs.iter_mut().enumerate() {
                                *bs = _mm512_loadu_si512(b.add(j * LANES).cast());
                            }
                            for (i, acc) in acc.iter_mut().enumerate() {
                                let a = _mm512_set1_epi32(*a.add(i * row) as i32);
                                for (acc, b) in acc.iter_mut().zip(bs) {
                                    *acc = $step(*acc, a, b);
                                }
                            }
                            a = a.add(if CHUNKED { 1 } else { ROWS });
                            b = b.add(V * LANES);
                        }
                    }
                    if CHUNKED && steps == CHUNK {
                        // SAFETY: the next chunk starts there, or the panel ends.
                        a = unsafe { a.add(CHUNK * (ROWS - 1)) };
                    }
                    left -= steps;
                }
                for (i, acc) in acc.iter().enumerate() {
                    for (j, acc) in acc.iter().enumerate() {
                        // SAFETY: see the macro.
                        unsafe {
                            let c = c.add(i * stride + j * LANES);
                            let sum = if first { *acc } else { _mm512_add_ps(_mm512_loadu_ps(c), *acc) };
                            _mm512_storeu_ps(c, sum);
                        }
                    }
                }
            }
        };
    }

    avx512_kernel!(single_avx512, "avx512f", |c, a, b| _mm512_fmadd_ps(
        _mm512_castsi512_ps(a),
        _mm512_castsi512_ps(b),
        c
    ));
    avx512_kernel!(pair_avx512, "avx512f,avx512bf16", |c, a, b| _mm512_dpbf16_ps(
        c,
        std::mem::transmute::<__m512i, __m512bh>(a),
        std::mem::transmute::<__m512i, __m512bh>(b)
    ));

    /// Computes a block with V·16 columns (V = `shape.0`) by AVX2; `shape.1` says whether A lies in chunks.
    ///
    /// # Safety
    /// The bounds of the AVX-512 kernels; AVX2 and FMA present.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn single_avx2(
        a: *const u32,
        b: *const u32,
        units: usize,
        c: *mut f32,
        stride: usize,
        first: bool,
        shape: (usize, bool),
    ) {
        let (width, half) = (shape.0 * LANES, if shape.0 == 3 { 24 } else { 16 });
        let kernel = match shape {
            (3, true) => quarter_avx2::<3, true>,
            (3, false) => quarter_avx2::<3, false>,
            (_, true) => quarter_avx2::<2, true>,
            (_, false) => quarter_avx2::<2, false>,
        };
        for col in (0..width).step_by(half) {
            for row in (0..ROWS).step_by(4) {
                let at = if shape.1 { row * CHUNK } else { row };
                // SAFETY: rows `row..row+4` and columns `col..col+half` are inside the block of the caller's bounds.
                unsafe {
                    kernel(a.add(at), b.add(col), width, units, c.add(row * stride + col), stride, first)
                }
            }
        }
    }

    /// Computes 4 rows × 8·V columns of a block whose B panel has rows of `width` units.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn quarter_avx2<const V: usize, const CHUNKED: bool>(
        mut a: *const u32,
        mut b: *const u32,
        width: usize,
        units: usize,
        c: *mut f32,
        stride: usize,
        first: bool,
    ) {
        let mut acc = [[_mm256_setzero_ps(); V]; 4];
        let (row, run) = if CHUNKED { (CHUNK, CHUNK) } else { (1, usize::MAX) };
        let mut left = units;
        while left > 0 {
            let steps = left.min(run);
            for _ in 0..steps {
                // SAFETY: within the panels, as `steps` adds up to `units`.
                unsafe {
                    let mut bs = [_mm256_setzero_ps(); V];
                    for (j, bs) in bs.iter_mut().enumerate() {
                        *bs = _mm256_loadu_ps(b.add(j * 8).cast());
                    }
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let a = _mm256_set1_ps(f32::from_bits(*a.add(i * row)));
                        for (acc, b) in acc.iter_mut().zip(bs) {
                            *acc = _mm256_fmadd_ps(a, b, *acc);
                        }
                    }
                    a = a.add(if CHUNKED { 1 } else { ROWS });
                    b = b.add(width);
                }
            }
            if CHUNKED && steps == CHUNK {
                // SAFETY: the next chunk starts there, or one past the panel's end at most 4 rows on.
                a = unsafe { a.add(CHUNK * (ROWS - 1)) };
            }
            left -= steps;
        }
        for (i, acc) in acc.iter().enumerate() {
            for (j, acc) in acc.iter().enumerate() {
                // SAFETY: inside the block of the caller's bounds.
                unsafe {
                    let c = c.add(i * stride + j * 8);
                    let sum = if first { *acc } else { _mm256_add_ps(_mm256_loadu_ps(c), *acc) };
                    _mm256_storeu_ps(c, sum);
                }
            }
        }
    }

    /// Transposes in four stages of 16 shuffles: 32-bit and 64-bit interleaves, then two of 128-bit lanes.
    ///
    /// # Safety
    /// `out` has 15·stride + 16 elements; AVX-512 F present.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn transpose_avx512(block: &[[u32; 16]; 16], out: *mut u32, stride: usize) {
        let zero = _mm512_setzero_si512();
        let (mut r, mut s) = ([zero; 16], [zero; 16]);
        for (r, row) in r.iter_mut().zip(block) {
            // SAFETY: a row has 16 elements.
            *r = unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
        }
        for i in 0..8 {
            s[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            s[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        // Now s[4q + 0 | 2] hold columns 0, 1 of each 128-bit lane for rows 4q.., s[4q + 1 | 3] columns 2, 3.
        for q in 0..4 {
            for h in 0..2 {
                r[4 * q + 2 * h] = _mm512_unpacklo_epi64(s[4 * q + h], s[4 * q + 2 + h]);
                r[4 * q + 2 * h + 1] = _mm512_unpackhi_epi64(s[4 * q + h], s[4 * q + 2 + h]);
            }
        }
        // r[4q + i], lane l: column 4l + i of rows 4q..4q + 4. What is left is a 4 × 4 transposition of lanes.
        for i in 0..4 {
            let (a, b) =
                (_mm512_shuffle_i32x4::<0x44>(r[i], r[4 + i]), _mm512_shuffle_i32x4::<0xee>(r[i], r[4 + i]));
            let (c, d) = (
                _mm512_shuffle_i32x4::<0x44>(r[8 + i], r[12 + i]),
                _mm512_shuffle_i32x4::<0xee>(r[8 + i], r[12 + i]),
            );
            s[i] = _mm512_shuffle_i32x4::<0x88>(a, c);
            s[4 + i] = _mm512_shuffle_i32x4::<0xdd>(a, c);
            s[8 + i] = _mm512_shuffle_i32x4::<0x88>(b, d);
            s[12 + i] = _mm512_shuffle_i32x4::<0xdd>(b, d);
        }
        for (i, s) in s.iter().enumerate() {
            // SAFETY: the caller's bound on `out`.
            unsafe { _mm512_storeu_si512(out.add(i * stride).cast(), *s) };
        }
    }

    /// Transposes as four blocks of 8 × 8.
    ///
    /// # Safety
    /// `out` has 15·stride + 16 elements; AVX2 present.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn transpose_avx2(block: &[[u32; 16]; 16], out: *mut u32, stride: usize) {
        for (row, col) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            let zero = _mm256_setzero_si256();
            let (mut r, mut s) = ([zero; 8], [zero; 8]);
            for (r, row) in r.iter_mut().zip(&block[row..row + 8]) {
                // SAFETY: `col + 8` is at most 16, the length of a row.
                *r = unsafe { _mm256_loadu_si256(row.as_ptr().add(col).cast()) };
            }
            for i in 0..4 {
                s[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
                s[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
            }
            for q in 0..2 {
                for h in 0..2 {
                    r[4 * q + 2 * h] = _mm256_unpacklo_epi64(s[4 * q + h], s[4 * q + 2 + h]);
                    r[4 * q + 2 * h + 1] = _mm256_unpackhi_epi64(s[4 * q + h], s[4 * q + 2 + h]);
                }
            }
            for i in 0..4 {
                s[i] = _mm256_permute2x128_si256::<0x20>(r[i], r[4 + i]);
                s[4 + i] = _mm256_permute2x128_si256::<0x31>(r[i], r[4 + i]);
            }
            for (i, s) in s.iter().enumerate() {
                // SAFETY: the caller's bound on `out`.
                unsafe { _mm256_storeu_si256(out.add((col + i) * stride + row).cast(), *s) };
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Instant;

    use super::*;

    /// Prints GFLOP/s of the kernels on panels in the first cache level, the ceiling of a product on one thread.
    pub(in crate::ops::linear) fn print_peaks() {
        for (format, units) in [(Format::Single, 128), (Format::Pair, 128), (Format::Single, 256)] {
            for (order, width) in [(Order::Rows, 48), (Order::Units, 48), (Order::Rows, 16)] {
                let (a, b) = (vec![0x3f80_3f80; units * ROWS], vec![0x3f80_3f80; units * COLS]);
                let mut sums = vec![0.0; ROWS * COLS];
                let block = Block { format, a: &a, order, b: &b, width, units, first: true };
                let per_unit = if format == Format::Pair { 4.0 } else { 2.0 };
                let flops = per_unit * (units * width * ROWS) as f64 * 10_000.0;
                let rate = |_| {
                    let start = Instant::now();
                    for _ in 0..10_000 {
                        std::hint::black_box(&block).run(Isa::detect(), &mut sums, COLS);
                    }
                    flops / start.elapsed().as_secs_f64() / 1e9
                };
                let best = (0..5).map(rate).fold(0.0, f64::max);
                println!("kernel {format:?} {order:?} 8x{width} over {units} units: {best:.1} GFLOP/s");
            }
        }
    }
}

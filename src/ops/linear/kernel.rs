//! Micro-kernels: an 8 × 16·V block of a product from two packed panels, and the transposition that packing needs.
//!
//! A packed operand is made of 32-bit units: one f32, or two bf16 neighbours in depth (the first in the low half) for
//! the dot-product instruction of AVX-512 BF16. For each row of A and column of B the kernel adds its products in the
//! order of depth with fused multiply-adds, whatever the block's place in the matrix; so AVX-512 and AVX2 agree in
//! every bit, and so do all rows. AVX-512 keeps 8 × 48 sums in 24 registers, beside three of B and a broadcast of A;
//! AVX2 goes over the same panels in blocks of 4 × 24 (12 + 3 + 1 registers).

use crate::device::Isa;
use crate::float::DType;

/// Rows of A in a panel.
pub(super) const ROWS: usize = 8;
/// Columns of B in a whole panel; the last panel of a matrix may have 16 or 32.
pub(super) const COLS: usize = 48;
/// Lanes of the widest vector; widths of B panels are multiples of it.
pub(super) const LANES: usize = 16;
/// Units that a transposition moves at a time.
pub(super) const CHUNK: usize = 16;

/// Says what the units of a packed operand hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// One f32.
    Single,
    /// Two bf16.
    Pair,
}

impl Format {
    /// Returns what both operands of a product become that are stored in `dtype`: pairs where the processor multiplies them.
    pub(super) fn of(dtype: DType, isa: Isa) -> Self {
        if dtype == DType::Bf16 && isa == Isa::Avx512Bf16 { Self::Pair } else { Self::Single }
    }
}

/// Eight rows of A: unit `u` of row `i` is `data[i·row + u·step]`; rows from `rows` on repeat the last one.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    /// The units, from the first one of the block on.
    pub data: &'a [u32],
    /// Rows that exist.
    pub rows: usize,
    /// Units from one row to the next.
    pub row: usize,
    /// Units from one to the next in depth.
    pub step: usize,
}

impl Panel<'_> {
    /// Returns the first of the eight cache lines that hold sixteen units of all rows, the elements from one line to the next, and
    /// those from sixteen units to the next sixteen.
    fn lines(&self) -> (*const u32, usize, usize) {
        let (row, chunk) = if self.step == 1 { (self.row, CHUNK) } else { (CHUNK, CHUNK * self.step) };
        (self.data.as_ptr(), row, chunk)
    }
}

/// What sums are before a call of a micro-kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// Nothing: they are overwritten.
    Zero,
    /// Sums of an earlier block of depth, to which those of this one are added.
    Add,
    /// Sums of the units before: the chain of additions goes on, as if all were one call.
    Continue,
}

impl Begin {
    /// Takes whether the block is the first of its sums.
    pub(super) fn new(first: bool) -> Self {
        if first { Self::Zero } else { Self::Add }
    }
}

/// One call of a micro-kernel: `sums (8, width) = or += a (8, units) · b (units, width)`.
pub(super) struct Block<'a> {
    /// What the units are.
    pub format: Format,
    /// Rows of A.
    pub a: Panel<'a>,
    /// Rows of A of the call after this one, fetched into the first cache level meanwhile: a wrong guess costs little.
    pub next: Panel<'a>,
    /// The B panel: `width` columns of each unit.
    pub b: &'a [u32],
    /// From one unit of B to the next: `width`, where it is packed.
    pub b_step: usize,
    /// What is fetched into the second cache level meanwhile, two lines for every 16 units: this call's share of the B panel after
    /// this one.
    pub ahead: &'a [u32],
    /// 16, 32 or 48.
    pub width: usize,
    /// Depth in units.
    pub units: usize,
    /// What `sums` are before.
    pub begin: Begin,
}

impl Block<'_> {
    /// Computes the block into `sums`, whose rows are `stride` apart.
    ///
    /// Panics when an operand or `sums` is too short: that is what makes the kernels' pointers safe.
    #[inline]
    pub(super) fn run(&self, isa: Isa, sums: &mut [f32], stride: usize) {
        let (v, units, a) = (self.width / LANES, self.units, self.a);
        assert!((1..=3).contains(&v) && self.width == v * LANES && (1..=ROWS).contains(&a.rows) && units > 0);
        assert!(a.data.len() > (a.rows - 1) * a.row + (units - 1) * a.step);
        assert!(self.b_step >= self.width && self.b.len() >= (units - 1) * self.b_step + self.width);
        assert!(sums.len() >= (ROWS - 1) * stride + self.width);
        let rows: [&[u32]; ROWS] = std::array::from_fn(|i| &a.data[i.min(a.rows - 1) * a.row..]);
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Portable => self.run_portable(rows, sums, stride),
            #[cfg(target_arch = "x86_64")]
            _ => {
                let kernel = match (isa, self.format, v) {
                    (Isa::Avx512Bf16, Format::Pair, 1) => x86::pair_avx512::<1>,
                    (Isa::Avx512Bf16, Format::Pair, 2) => x86::pair_avx512::<2>,
                    (Isa::Avx512Bf16, Format::Pair, _) => x86::pair_avx512::<3>,
                    (Isa::Avx2, _, 1) => x86::single_avx2::<1>,
                    (Isa::Avx2, _, 2) => x86::single_avx2::<2>,
                    (Isa::Avx2, _, _) => x86::single_avx2::<3>,
                    (_, _, 1) => x86::single_avx512::<1>,
                    (_, _, 2) => x86::single_avx512::<2>,
                    (_, _, _) => x86::single_avx512::<3>,
                };
                let (rows, b, c) = (rows.map(<[u32]>::as_ptr), self.b.as_ptr(), sums.as_mut_ptr());
                let next = self.next.lines();
                // SAFETY: the asserts above are the kernels' bounds; the features are present, because `Cpu::new`
                // refuses an instruction set above the detected one.
                unsafe {
                    let b = (b, self.b_step, self.ahead.as_ptr());
                    kernel(&rows, a.step, b, units, (c, stride), next, self.begin)
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => self.run_portable(rows, sums, stride),
        }
    }

    /// Computes the block in 4 × 8 parts that fit sixteen registers of 128 bits.
    fn run_portable(&self, rows: [&[u32]; ROWS], sums: &mut [f32], stride: usize) {
        for row in (0..ROWS).step_by(4) {
            for col in (0..self.width).step_by(8) {
                let mut acc = [[0.0f32; 8]; 4];
                if self.begin == Begin::Continue {
                    for (i, acc) in acc.iter_mut().enumerate() {
                        acc.copy_from_slice(&sums[(row + i) * stride + col..][..8]);
                    }
                }
                for (u, b) in self.b.chunks(self.b_step).take(self.units).enumerate() {
                    for (acc, a) in acc.iter_mut().zip(&rows[row..]) {
                        let a = f32::from_bits(a[u * self.a.step]);
                        for (acc, b) in acc.iter_mut().zip(&b[col..col + 8]) {
                            *acc += a * f32::from_bits(*b);
                        }
                    }
                }
                for (i, acc) in acc.iter().enumerate() {
                    let at = (row + i) * stride + col;
                    for (sum, acc) in sums[at..at + 8].iter_mut().zip(acc) {
                        *sum = if self.begin == Begin::Add { *sum + acc } else { *acc };
                    }
                }
            }
        }
    }
}

/// Writes `out[i·stride + j] = rows[j][i]` for 16 rows and as many whole chunks of 16 units as they have.
///
/// Panics when a row is shorter than the first, or `out` is too short.
#[inline]
pub(super) fn transpose(isa: Isa, rows: &[&[u32]; LANES], out: &mut [u32], stride: usize) {
    let chunks = rows[0].len() / CHUNK;
    if chunks == 0 {
        return;
    }
    assert!(rows.iter().all(|r| r.len() >= chunks * CHUNK));
    assert!(stride >= LANES && out.len() >= (chunks * CHUNK - 1) * stride + LANES);
    match isa {
        // SAFETY: the asserts bound every read and write; the features are present, because `Cpu::new` refuses an
        // instruction set above the detected one.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => unsafe {
            x86::transpose_avx512(rows, chunks, out.as_mut_ptr(), stride)
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::transpose_avx2(rows, chunks, out.as_mut_ptr(), stride) },
        _ => {
            for (i, out) in out.chunks_mut(stride).take(chunks * CHUNK).enumerate() {
                for (out, row) in out.iter_mut().zip(rows) {
                    *out = row[i];
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Begin, CHUNK, LANES, ROWS};

    /// Defines an AVX-512 kernel; `$step` multiplies a broadcast unit of A with a vector of B and adds.
    ///
    /// Bounds, kept by `Block::run`: each of `rows` holds units up to `(units − 1)·step`, `b` `units` rows of 16·V
    /// units, `b_step` apart, `c` eight rows of 16·V sums, `stride` apart.
    macro_rules! avx512_kernel {
        ($name:ident, $features:literal, $step:expr) => {
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name<const V: usize>(
                rows: &[*const u32; ROWS],
                step: usize,
                (mut b, b_step, mut ahead): (*const u32, usize, *const u32),
                units: usize,
                (c, stride): (*mut f32, usize),
                (mut next, line, chunk): (*const u32, usize, usize),
                begin: Begin,
            ) {
                let mut acc = [[_mm512_setzero_ps(); V]; ROWS];
                if begin == Begin::Continue {
                    for (i, acc) in acc.iter_mut().enumerate() {
                        for (j, acc) in acc.iter_mut().enumerate() {
                            // SAFETY: see the macro.
                            *acc = unsafe { _mm512_loadu_ps(c.add(i * stride + j * LANES)) };
                        }
                    }
                }
                let rows = *rows;
                let mut at = 0;
                for u in 0..units {
                    if u.is_multiple_of(CHUNK) {
                        for i in 0..ROWS {
                            // A prefetch may name any address.
                            _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(i * line).cast());
                        }
                        next = next.wrapping_add(chunk);
                        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                        _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(LANES).cast());
                        ahead = ahead.wrapping_add(2 * LANES);
                    }
                    // SAFETY: see the macro: `at` is at most (units − 1)·step.
                    unsafe {
                        let mut bs = [_mm512_setzero_si512(); V];
                        for (j, bs) in bs.iter_mut().enumerate() {
                            *bs = _mm512_loadu_si512(b.add(j * LANES).cast());
                        }
                        for (acc, row) in acc.iter_mut().zip(rows) {
                            let a = _mm512_set1_epi32(*row.add(at) as i32);
                            for (acc, b) in acc.iter_mut().zip(bs) {
                                *acc = $step(*acc, a, b);
                            }
                        }
                    }
                    b = b.wrapping_add(b_step);
                    at += step;
                }
                for (i, acc) in acc.iter().enumerate() {
                    for (j, acc) in acc.iter().enumerate() {
                        // SAFETY: see the macro.
                        unsafe {
                            let c = c.add(i * stride + j * LANES);
                            let adds = begin == Begin::Add;
                            let sum = if adds { _mm512_add_ps(_mm512_loadu_ps(c), *acc) } else { *acc };
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

    /// Computes a block of 8 rows × 16·V columns with AVX2, in quarters (V = 3) or eighths.
    ///
    /// # Safety
    /// The bounds of the AVX-512 kernels; AVX2 and FMA present.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn single_avx2<const V: usize>(
        rows: &[*const u32; ROWS],
        step: usize,
        (b, b_step, _ahead): (*const u32, usize, *const u32),
        units: usize,
        (c, stride): (*mut f32, usize),
        _next: (*const u32, usize, usize),
        begin: Begin,
    ) {
        let (kernel, part): (unsafe fn(_, _, _, _, _, _), _) =
            if V == 3 { (part_avx2::<3>, 24) } else { (part_avx2::<2>, 16) };
        for col in (0..V * LANES).step_by(part) {
            for (i, rows) in rows.as_chunks::<4>().0.iter().enumerate() {
                // SAFETY: rows 4i.. and columns `col..col + part` are inside the block of the caller's bounds.
                unsafe {
                    let c = c.add(i * 4 * stride + col);
                    kernel(rows, step, (b.add(col), b_step), units, (c, stride), begin)
                }
            }
        }
    }

    /// Computes 4 rows × 8·V columns of a block whose B panel has rows `b.1` units apart.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn part_avx2<const V: usize>(
        rows: &[*const u32; 4],
        step: usize,
        (mut b, b_step): (*const u32, usize),
        units: usize,
        (c, stride): (*mut f32, usize),
        begin: Begin,
    ) {
        let mut acc = [[_mm256_setzero_ps(); V]; 4];
        if begin == Begin::Continue {
            for (i, acc) in acc.iter_mut().enumerate() {
                for (j, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: inside the block of the caller's bounds.
                    *acc = unsafe { _mm256_loadu_ps(c.add(i * stride + j * 8)) };
                }
            }
        }
        let rows = *rows;
        let mut at = 0;
        for _ in 0..units {
            // SAFETY: inside the block of the caller's bounds.
            unsafe {
                let mut bs = [_mm256_setzero_ps(); V];
                for (j, bs) in bs.iter_mut().enumerate() {
                    *bs = _mm256_loadu_ps(b.add(j * 8).cast());
                }
                for (acc, row) in acc.iter_mut().zip(rows) {
                    let a = _mm256_set1_ps(f32::from_bits(*row.add(at)));
                    for (acc, b) in acc.iter_mut().zip(bs) {
                        *acc = _mm256_fmadd_ps(a, b, *acc);
                    }
                }
            }
            b = b.wrapping_add(b_step);
            at += step;
        }
        for (i, acc) in acc.iter().enumerate() {
            for (j, acc) in acc.iter().enumerate() {
                // SAFETY: inside the block of the caller's bounds.
                unsafe {
                    let c = c.add(i * stride + j * 8);
                    let adds = begin == Begin::Add;
                    let sum = if adds { _mm256_add_ps(_mm256_loadu_ps(c), *acc) } else { *acc };
                    _mm256_storeu_ps(c, sum);
                }
            }
        }
    }

    /// Units ahead of the transposition that are asked for early: rows lie a page apart, which no prefetcher follows.
    const AHEAD: usize = 64;

    /// Transposes chunk by chunk in four stages of 16 shuffles: 32-bit and 64-bit interleaves, then 128-bit lanes.
    ///
    /// # Safety
    /// Each row has `chunks`·16 elements, `out` (`chunks`·16 − 1)·stride + 16; AVX-512 F present.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn transpose_avx512(
        rows: &[&[u32]; LANES],
        chunks: usize,
        out: *mut u32,
        stride: usize,
    ) {
        let zero = _mm512_setzero_si512();
        for chunk in 0..chunks {
            let (mut r, mut s) = ([zero; 16], [zero; 16]);
            for (r, row) in r.iter_mut().zip(rows) {
                let at = row.as_ptr().wrapping_add(chunk * CHUNK);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                // SAFETY: the caller's bound on the rows.
                *r = unsafe { _mm512_loadu_si512(at.cast()) };
            }
            for i in 0..8 {
                s[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
                s[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
            }
            for q in 0..4 {
                for h in 0..2 {
                    r[4 * q + 2 * h] = _mm512_unpacklo_epi64(s[4 * q + h], s[4 * q + 2 + h]);
                    r[4 * q + 2 * h + 1] = _mm512_unpackhi_epi64(s[4 * q + h], s[4 * q + 2 + h]);
                }
            }
            // r[4q + i], lane l: column 4l + i of rows 4q..4q + 4. What is left is a 4 × 4 transposition of lanes.
            for i in 0..4 {
                let (a, b) = (
                    _mm512_shuffle_i32x4::<0x44>(r[i], r[4 + i]),
                    _mm512_shuffle_i32x4::<0xee>(r[i], r[4 + i]),
                );
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
                unsafe { _mm512_storeu_si512(out.add((chunk * CHUNK + i) * stride).cast(), *s) };
            }
        }
    }

    /// Transposes in blocks of 8 × 8.
    ///
    /// # Safety
    /// Each row has `chunks`·16 elements, `out` (`chunks`·16 − 1)·stride + 16; AVX2 present.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn transpose_avx2(rows: &[&[u32]; LANES], chunks: usize, out: *mut u32, stride: usize) {
        let zero = _mm256_setzero_si256();
        for (half, col) in (0..chunks * 2).flat_map(|i| [(0, i * 8), (8, i * 8)]) {
            let (mut r, mut s) = ([zero; 8], [zero; 8]);
            for (r, row) in r.iter_mut().zip(&rows[half..half + 8]) {
                let at = row.as_ptr().wrapping_add(col);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                // SAFETY: the caller's bound on the rows.
                *r = unsafe { _mm256_loadu_si256(at.cast()) };
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
                unsafe { _mm256_storeu_si256(out.add((col + i) * stride + half).cast(), *s) };
            }
        }
    }
}

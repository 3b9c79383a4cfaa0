//! Rows of scores: to probabilities, and to gradients of scores.
//!
//! Exponents are base 2: `p = 2^(s·scale − most)` with `scale = log2(e)/√K`, so that a score costs one multiply-add. On AVX-512
//! 2ʸ is written out; elsewhere it is the exponential of [`Arch`]. Products take p as f32 or as bf16, see [`Multiplier`].

use crate::device::{Arch, Isa};
use crate::ops::linear::panels::Multiplier;

/// A block of products of queries (rows) and keys (columns), and how the products become exponents.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// Rows, an even number.
    pub rows: usize,
    /// Keys: columns that count.
    pub keys: usize,
    /// Columns from one row to the next: [`Block::columns`] at least.
    pub stride: usize,
    /// log2(e)/√K.
    pub scale: f32,
}

impl Block {
    /// Returns the columns that are written: keys, and zeros up to a whole vector.
    fn columns(self) -> usize {
        self.keys.next_multiple_of(16)
    }

    /// Panics unless a matrix of this block has that many elements, `per` columns in one.
    fn check(self, len: usize, rows: usize, per: usize) {
        assert!(self.columns() <= self.stride && self.stride.is_multiple_of(per));
        assert!(rows == 0 || len >= (rows - 1) * (self.stride / per) + self.columns() / per);
    }
}

/// What is known of each row after some blocks of keys.
pub(super) struct State<'a> {
    /// The largest exponent so far.
    pub most: &'a mut [f32],
    /// Σ 2^(exponent − most).
    pub total: &'a mut [f32],
    /// By what earlier sums are to be multiplied, after a further block.
    pub factor: &'a mut [f32],
}

/// Turns products into p = 2^(s·scale − most), as units of a left operand, and brings the state up to date. `first`: no keys came
/// before these.
pub(super) fn probabilities(
    multiplier: Multiplier,
    p: &mut [u32],
    s: &[f32],
    block: Block,
    state: State<'_>,
    first: bool,
) {
    block.check(s.len(), block.rows, 1);
    block.check(p.len(), block.rows, if multiplier.pairs() { 2 } else { 1 });
    let State { most, total, factor } = state;
    assert!(most.len() >= block.rows && total.len() >= block.rows && factor.len() >= block.rows);
    let state = State { most, total, factor };
    match (multiplier.isa(), multiplier.pairs()) {
        // SAFETY: the asserts are the bounds; the features are present, because `Cpu::new` refuses an instruction set above the
        // detected one.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, true) => unsafe { x86::probabilities_pairs(p, s, block, state, first) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Avx512Bf16, _) => unsafe { x86::probabilities(p, s, block, state, first) },
        (isa, _) => isa.run(
            #[inline(always)]
            |arch| probabilities_plain(arch, p, s, block, state, first),
        ),
    }
}

#[inline(always)]
fn probabilities_plain(arch: Arch, p: &mut [u32], s: &[f32], block: Block, state: State<'_>, first: bool) {
    for row in 0..block.rows {
        let s = &s[row * block.stride..][..block.keys];
        let p = &mut p[row * block.stride..][..block.columns()];
        let before = if first { f32::NEG_INFINITY } else { state.most[row] };
        let most = (largest(s) * block.scale).max(before);
        let mut total = [0.0; 16];
        let (p, padding) = p.split_at_mut(block.keys);
        for (p, s) in p.chunks_mut(16).zip(s.chunks(16)) {
            for ((p, s), total) in p.iter_mut().zip(s).zip(&mut total) {
                let e = power(arch, arch.fma(*s, block.scale, -most));
                *total += e;
                *p = e.to_bits();
            }
        }
        padding.fill(0);
        let factor = if first { 0.0 } else { power(arch, before - most) };
        state.factor[row] = factor;
        state.total[row] = if first { 0.0 } else { state.total[row] * factor } + total.iter().sum::<f32>();
        state.most[row] = most;
    }
}

/// 2ʸ, relative error at most 3e-7 and 6e-8 of |y|; NaN stays NaN.
#[inline(always)]
fn power(arch: Arch, y: f32) -> f32 {
    arch.exp(y * std::f32::consts::LN_2)
}

/// The largest of some numbers; NaN may be passed over.
#[inline(always)]
fn largest(xs: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; 16];
    for xs in xs.chunks(16) {
        for (most, x) in most.iter_mut().zip(xs) {
            *most = if *x > *most { *x } else { *most };
        }
    }
    most.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// What the backward knows of each row.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    /// log2(e)·lse; +∞ gives a row of zeros.
    pub lse: &'a [f32],
    /// ⟨do, o⟩.
    pub delta: &'a [f32],
}

/// Where pairs of bf16 go.
pub(super) struct Pairs<'a> {
    /// Rows 2u and 2u + 1 of p in row u, one column in a unit.
    pub p: &'a mut [u32],
    /// The same of ds.
    pub ds: &'a mut [u32],
    /// Rows of ds, two columns in a unit.
    pub ds_rows: &'a mut [u32],
}

/// Turns products `s` and `dp = ⟨do, v⟩` into p = 2^(s·scale − lse) and ds = p·(dp − delta): in place, or as pairs of bf16.
pub(super) fn gradients(
    multiplier: Multiplier,
    s: &mut [f32],
    dp: &mut [f32],
    pairs: Pairs<'_>,
    block: Block,
    known: Known<'_>,
) {
    assert!(block.rows.is_multiple_of(2) && known.lse.len() >= block.rows && known.delta.len() >= block.rows);
    block.check(s.len(), block.rows, 1);
    block.check(dp.len(), block.rows, 1);
    if multiplier.pairs() {
        block.check(pairs.p.len(), block.rows / 2, 1);
        block.check(pairs.ds.len(), block.rows / 2, 1);
        block.check(pairs.ds_rows.len(), block.rows, 2);
    }
    match (multiplier.isa(), multiplier.pairs()) {
        // SAFETY: the asserts are the bounds; the features are present, because `Cpu::new` refuses an instruction set above the
        // detected one.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, true) => unsafe { x86::gradients_pairs(pairs, s, dp, block, known) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Avx512Bf16, _) => unsafe { x86::gradients(s, dp, block, known) },
        (isa, _) => isa.run(
            #[inline(always)]
            |arch| gradients_plain(arch, s, dp, block, known),
        ),
    }
}

#[inline(always)]
fn gradients_plain(arch: Arch, s: &mut [f32], dp: &mut [f32], block: Block, known: Known<'_>) {
    for row in 0..block.rows {
        let (lse, delta) = (known.lse[row], known.delta[row]);
        let (s, s_padding) = s[row * block.stride..][..block.columns()].split_at_mut(block.keys);
        let (dp, dp_padding) = dp[row * block.stride..][..block.columns()].split_at_mut(block.keys);
        for (s, dp) in s.iter_mut().zip(dp) {
            *s = power(arch, arch.fma(*s, block.scale, -lse));
            *dp = *s * (*dp - delta);
        }
        s_padding.fill(0.0);
        dp_padding.fill(0.0);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Block, Known, Pairs, State};

    /// 2ʸ, relative error at most 2e-7; 0 below −200, NaN for NaN. 2ʸ = 2ⁿ·2ʳ with |r| ≤ ½; 2ʳ by the polynomial of degree 5 that is
    /// 1 at 0 and whose largest relative error is least (1.7e-7; Remez).
    #[target_feature(enable = "avx512f")]
    #[inline]
    #[allow(clippy::approx_constant)] // the polynomial's own coefficient, near ln 2
    fn power(y: __m512) -> __m512 {
        let y = _mm512_max_ps(_mm512_set1_ps(-200.0), y); // NaN is kept: the second operand is
        let n = _mm512_roundscale_ps::<0>(y);
        let r = _mm512_sub_ps(y, n);
        let mut p = _mm512_set1_ps(0.001_333_741_4);
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.009_668_167));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.055_504_903));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240_223_04));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693_147_1));
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0));
        _mm512_scalef_ps(p, n)
    }

    /// Bits of the lanes of vector `j` that hold one of `keys` columns.
    #[inline]
    fn lanes(keys: usize, j: usize) -> __mmask16 {
        (0xffffu32 >> (16 - (keys - 16 * j).min(16))) as u16
    }

    /// Defines the forward of rows; `$store` writes sixteen probabilities at a column of a row.
    ///
    /// Bounds, kept by `super::probabilities`: `s` and `p` have `block.rows` rows of whole vectors, the state as many.
    macro_rules! probabilities {
        ($name:ident, $features:literal, $store:expr) => {
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(
                p: &mut [u32],
                s: &[f32],
                block: Block,
                state: State<'_>,
                first: bool,
            ) {
                let (scale, lowest) = (_mm512_set1_ps(block.scale), _mm512_set1_ps(f32::NEG_INFINITY));
                for row in 0..block.rows {
                    let at = row * block.stride;
                    let s = s.as_ptr().wrapping_add(at);
                    let mut most = lowest;
                    for j in 0..block.keys.div_ceil(16) {
                        // SAFETY: see the macro; lanes behind the keys are not read.
                        let s = unsafe { _mm512_mask_loadu_ps(lowest, lanes(block.keys, j), s.add(16 * j)) };
                        most = _mm512_max_ps(most, s);
                    }
                    let before = if first { f32::NEG_INFINITY } else { state.most[row] };
                    let most = (_mm512_reduce_max_ps(most) * block.scale).max(before);
                    let (shift, mut total) = (_mm512_set1_ps(most), _mm512_setzero_ps());
                    for j in 0..block.keys.div_ceil(16) {
                        let lanes = lanes(block.keys, j);
                        // SAFETY: see the macro.
                        unsafe {
                            let s = _mm512_maskz_loadu_ps(lanes, s.add(16 * j));
                            let e = power(_mm512_fmsub_ps(s, scale, shift));
                            let e = _mm512_maskz_mov_ps(lanes, e);
                            total = _mm512_add_ps(total, e);
                            $store(p.as_mut_ptr(), at + 16 * j, e);
                        }
                    }
                    let total = _mm512_reduce_add_ps(total);
                    if first {
                        state.total[row] = total;
                    } else {
                        let factor = _mm512_cvtss_f32(power(_mm512_set1_ps(before - most)));
                        state.factor[row] = factor;
                        state.total[row] = state.total[row] * factor + total;
                    }
                    state.most[row] = most;
                }
            }
        };
    }

    probabilities!(probabilities, "avx512f", |p: *mut u32, at, e| { _mm512_storeu_ps(p.add(at).cast(), e) });
    probabilities!(probabilities_pairs, "avx512f,avx512vl,avx512bf16", |p: *mut u32, at, e| {
        let pairs = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(e));
        _mm256_storeu_si256(p.add(at / 2).cast(), pairs)
    });

    /// Returns p and ds of sixteen columns.
    ///
    /// # Safety
    /// The lanes are elements of both rows; AVX-512 F present.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn gradient(
        (s, dp): (*const f32, *const f32),
        lanes: __mmask16,
        scale: __m512,
        (lse, delta): (__m512, __m512),
    ) -> (__m512, __m512) {
        // SAFETY: the caller's.
        let (s, dp) = unsafe { (_mm512_maskz_loadu_ps(lanes, s), _mm512_maskz_loadu_ps(lanes, dp)) };
        let p = _mm512_maskz_mov_ps(lanes, power(_mm512_fmsub_ps(s, scale, lse)));
        (p, _mm512_maskz_mul_ps(lanes, p, _mm512_sub_ps(dp, delta)))
    }

    /// Writes p over `s` and ds over `dp`.
    ///
    /// # Safety
    /// `s` and `dp` have `block.rows` rows of whole vectors; AVX-512 F present.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn gradients(s: &mut [f32], dp: &mut [f32], block: Block, known: Known<'_>) {
        let scale = _mm512_set1_ps(block.scale);
        for row in 0..block.rows {
            let known = (_mm512_set1_ps(known.lse[row]), _mm512_set1_ps(known.delta[row]));
            for j in 0..block.keys.div_ceil(16) {
                let at = row * block.stride + 16 * j;
                // SAFETY: the caller's bounds.
                unsafe {
                    let (s, dp) = (s.as_mut_ptr().add(at), dp.as_mut_ptr().add(at));
                    let (p, ds) = gradient((s, dp), lanes(block.keys, j), scale, known);
                    _mm512_storeu_ps(s, p);
                    _mm512_storeu_ps(dp, ds);
                }
            }
        }
    }

    /// Writes p and ds as pairs, two rows at a time.
    ///
    /// # Safety
    /// The matrices of `pairs` have `block.rows` (half as many) rows of whole vectors, `s` and `dp` too; AVX-512 BW, VL and BF16
    /// present.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) unsafe fn gradients_pairs(
        pairs: Pairs<'_>,
        s: &[f32],
        dp: &[f32],
        block: Block,
        known: Known<'_>,
    ) {
        let scale = _mm512_set1_ps(block.scale);
        // Element 2i from lane i of the first row, 2i + 1 from that of the second.
        let halves: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as u16);
        // SAFETY: 64 bytes are read from as many.
        let halves = unsafe { _mm512_loadu_si512(halves.as_ptr().cast()) };
        for row in (0..block.rows).step_by(2) {
            let known =
                [row, row + 1].map(|row| (_mm512_set1_ps(known.lse[row]), _mm512_set1_ps(known.delta[row])));
            for j in 0..block.keys.div_ceil(16) {
                let (lanes, at) = (lanes(block.keys, j), row * block.stride + 16 * j);
                // SAFETY: the caller's bounds.
                unsafe {
                    let (s, dp) = (s.as_ptr().add(at), dp.as_ptr().add(at));
                    let (p0, ds0) = gradient((s, dp), lanes, scale, known[0]);
                    let (s, dp) = (s.add(block.stride), dp.add(block.stride));
                    let (p1, ds1) = gradient((s, dp), lanes, scale, known[1]);
                    let p = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(p1, p0));
                    let ds = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(ds1, ds0));
                    let by_pair = row / 2 * block.stride + 16 * j;
                    let to = |start: *mut u32| start.add(by_pair).cast();
                    _mm512_storeu_si512(to(pairs.p.as_mut_ptr()), _mm512_permutexvar_epi16(halves, p));
                    _mm512_storeu_si512(to(pairs.ds.as_mut_ptr()), _mm512_permutexvar_epi16(halves, ds));
                    let rows = pairs.ds_rows.as_mut_ptr().add(at / 2);
                    _mm256_storeu_si256(rows.cast(), _mm512_castsi512_si256(ds));
                    let below = rows.add(block.stride / 2);
                    _mm256_storeu_si256(below.cast(), _mm512_extracti64x4_epi64::<1>(ds));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: usize = 203;

    /// Returns p, most, total and factor of one row of exponents, on every instruction set.
    fn on_all(s: &[f32; KEYS], before: Option<(f32, f32)>) -> Vec<(Isa, Vec<f32>, [f32; 3])> {
        let isas = [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| *isa <= Isa::detect());
        let once = |isa| {
            let block = Block { rows: 1, keys: KEYS, stride: 208, scale: 1.0 };
            let (mut padded, mut p) = (vec![f32::NAN; 208], vec![u32::MAX; 208]);
            padded[..KEYS].copy_from_slice(s);
            let (most, total) = before.unwrap_or((f32::NAN, f32::NAN));
            let (mut most, mut total, mut factor) = ([most], [total], [f32::NAN]);
            let state = State { most: &mut most, total: &mut total, factor: &mut factor };
            probabilities(Multiplier::of::<f32>(isa), &mut p, &padded, block, state, before.is_none());
            let p: Vec<f32> = p.into_iter().map(f32::from_bits).collect();
            assert!(p[KEYS..].iter().all(|p| *p == 0.0), "{isa:?}: {:?}", &p[KEYS..]);
            (isa, p, [most[0], total[0], factor[0]])
        };
        isas.map(once).collect()
    }

    #[test]
    fn probabilities_stay_within_the_stated_error() {
        let s: [f32; KEYS] = std::array::from_fn(|i| -0.57 * i as f32 + 3.0);
        let expected = |i: usize| (s[i] as f64 - 3.0).exp2();
        for (isa, p, [most, total, _]) in on_all(&s, None) {
            for i in 0..KEYS {
                // That of 2ʸ, and that of y itself.
                let allowed = 3e-7 + 1e-7 * (s[i] as f64 - 3.0).abs();
                let off = (p[i] as f64 / expected(i) - 1.0).abs();
                assert!(off < allowed, "{isa:?}: 2^({} - 3) is off by {off:e}", s[i]);
            }
            let sum: f64 = (0..KEYS).map(expected).sum();
            assert!((total as f64 / sum - 1.0).abs() < 1e-6, "{isa:?}: {total}, expected {sum}");
            assert_eq!((most, p[0]), (3.0, 1.0), "{isa:?}");
        }
    }

    #[test]
    fn earlier_keys_are_scaled_to_the_new_maximum() {
        let s = [5.0; KEYS];
        for (isa, _, [most, total, factor]) in on_all(&s, Some((3.0, 8.0))) {
            assert_eq!((most, factor, total), (5.0, 0.25, 2.0 + KEYS as f32), "{isa:?}");
        }
        for (isa, p, [most, total, factor]) in on_all(&s, Some((6.0, 1.0))) {
            assert_eq!((most, factor, total, p[0]), (6.0, 1.0, 1.0 + 0.5 * KEYS as f32, 0.5), "{isa:?}");
        }
    }

    #[test]
    fn nan_is_not_hidden_and_vanishing_scores_are_nothing() {
        let mut s = [0.0; KEYS];
        (s[1], s[7]) = (f32::NEG_INFINITY, -1e30);
        for (isa, p, [_, total, _]) in on_all(&s, None) {
            assert_eq!((p[1], p[7], total), (0.0, 0.0, (KEYS - 2) as f32), "{isa:?}");
        }
        s[100] = f32::NAN;
        for (isa, p, [_, total, _]) in on_all(&s, None) {
            assert!(p[100].is_nan() && total.is_nan(), "{isa:?}");
        }
    }
}

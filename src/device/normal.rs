//! Standard normal numbers from counters: the ten rounds of Philox4x32 (Salmon et al., SC 2011), then Box and Muller.
//!
//! Sixteen counters are evaluated together. With AVX-512 they are spread over the 64-bit lanes of two registers, so that a
//! round is two products, two shifts and two three-way exclusive ors of each, and what comes out needs no other order than
//! the one that four unpacking instructions give. The bits are those of the plain loops with fused multiply-adds.

use crate::device::simd::Arch;

/// The multipliers of a round.
pub(crate) const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
/// What the key grows by from round to round.
pub(crate) const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
/// Counters that are evaluated together.
pub(crate) const LANES: usize = 16;
/// The numbers of so many counters.
pub(crate) const GROUP: usize = 4 * LANES;

/// The four words of [`LANES`] counters, word by word.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(crate) struct Counters(pub [[u32; LANES]; 4]);

impl Arch {
    /// Fills `out` with the four numbers of each counter, counter after counter.
    #[inline(always)]
    pub(crate) fn normals(self, out: &mut [f32; GROUP], counters: &Counters, key: [u32; 2]) {
        #[cfg(target_arch = "x86_64")]
        if self.wide {
            // SAFETY: `wide` is set only by `run_avx512`.
            return unsafe { x86::normals(out, counters, key) };
        }
        plain(self, out, counters.0, key);
    }

    /// Fills `out` with the numbers of consecutive counters: `counter` and those whose first word is larger by 1, 2, …
    #[inline(always)]
    pub(crate) fn normals_from(self, out: &mut [[f32; GROUP]], counter: [u32; 4], key: [u32; 2]) {
        #[cfg(target_arch = "x86_64")]
        if self.wide {
            // SAFETY: `wide` is set only by `run_avx512`.
            return unsafe { x86::normals_from(out, counter, key) };
        }
        for (group, out) in out.iter_mut().enumerate() {
            let mut counters = counter.map(|word| [word; LANES]);
            for (lane, word) in counters[0].iter_mut().enumerate() {
                *word = word.wrapping_add((group * LANES + lane) as u32);
            }
            plain(self, out, counters, key);
        }
    }
}

#[inline(always)]
fn plain(arch: Arch, out: &mut [f32; GROUP], mut c: [[u32; LANES]; 4], key: [u32; 2]) {
    let mut k = key;
    for _ in 0..10 {
        for lane in 0..LANES {
            let p0 = MULTIPLIERS[0] as u64 * c[0][lane] as u64;
            let p1 = MULTIPLIERS[1] as u64 * c[2][lane] as u64;
            c[0][lane] = (p1 >> 32) as u32 ^ c[1][lane] ^ k[0];
            c[1][lane] = p1 as u32;
            c[2][lane] = (p0 >> 32) as u32 ^ c[3][lane] ^ k[1];
            c[3][lane] = p0 as u32;
        }
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    for (lane, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let [x, y] = normal_pair(arch, c[0][lane], c[1][lane]);
        let [z, w] = normal_pair(arch, c[2][lane], c[3][lane]);
        *out = [x, y, z, w];
    }
}

/// Maps a word to [0, 1) with 24 bits.
#[inline(always)]
pub(crate) fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Maps two words to two independent standard normal numbers: √(−2 ln u)·(cos, sin)(2πw), u in (0, 1].
#[inline(always)]
fn normal_pair(arch: Arch, a: u32, b: u32) -> [f32; 2] {
    let u = ((a >> 8) + 1) as f32 * (1.0 / 16_777_216.0);
    let radius = (-2.0 * arch.ln(u)).max(0.0).sqrt();
    let (sin, cos) = arch.sin_cos_turns(unit(b));
    [radius * cos, radius * sin]
}

/// The same in AVX-512 registers.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Counters, GROUP, LANES, MULTIPLIERS, WEYL};

    /// Each word of sixteen counters in the low halves of the 64-bit lanes of two registers; the high halves hold anything.
    /// Lane 4j + i of 32 bits belongs to counter 4i + j: lanes with even numbers are in the first register, odd ones in the
    /// second.
    type Words = [[__m512i; 4]; 2];
    /// One number of each of two pairs.
    type Two = [__m512; 2];

    #[target_feature(enable = "avx512f,avx512dq")]
    #[inline]
    pub(super) fn normals(out: &mut [f32; GROUP], counters: &Counters, key: [u32; 2]) {
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let mut even = [_mm512_setzero_si512(); 4];
        for (even, words) in even.iter_mut().zip(&counters.0) {
            // SAFETY: sixteen words of 32 bits, aligned as `Counters` is.
            let words = unsafe { _mm512_load_si512(words.as_ptr().cast()) };
            *even = _mm512_permutexvar_epi32(order, words);
        }
        let odd = even.map(|words| _mm512_srli_epi64::<32>(words));
        write(out, box_muller(rounds([even, odd], key)));
    }

    #[target_feature(enable = "avx512f,avx512dq")]
    #[inline]
    pub(super) fn normals_from(out: &mut [[f32; GROUP]], counter: [u32; 4], key: [u32; 2]) {
        let [first, c1, c2, c3] = counter.map(|word| _mm512_set1_epi64(word as i64));
        let next = _mm512_set1_epi64(LANES as i64);
        let mut even = _mm512_add_epi64(first, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11));
        let mut odd = _mm512_add_epi64(first, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15));
        for out in out {
            write(out, box_muller(rounds([[even, c1, c2, c3], [odd, c1, c2, c3]], key)));
            (even, odd) = (_mm512_add_epi64(even, next), _mm512_add_epi64(odd, next));
        }
    }

    #[target_feature(enable = "avx512f,avx512dq")]
    #[inline]
    fn rounds(mut c: Words, key: [u32; 2]) -> Words {
        const XOR3: i32 = 0x96;
        let m = MULTIPLIERS.map(|m| _mm512_set1_epi64(m as i64));
        let mut k = key;
        for _ in 0..10 {
            let [k0, k1] = k.map(|k| _mm512_set1_epi32(k as i32));
            for c in &mut c {
                let (p0, p1) = (_mm512_mul_epu32(m[0], c[0]), _mm512_mul_epu32(m[1], c[2]));
                let (high0, high1) = (_mm512_srli_epi64::<32>(p0), _mm512_srli_epi64::<32>(p1));
                let c0 = _mm512_ternarylogic_epi32::<XOR3>(high1, c[1], k0);
                let c2 = _mm512_ternarylogic_epi32::<XOR3>(high0, c[3], k1);
                *c = [c0, p1, c2, p0];
            }
            k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        }
        c
    }

    /// Returns the first numbers of both pairs and the second ones.
    #[target_feature(enable = "avx512f,avx512dq")]
    #[inline]
    fn box_muller(c: Words) -> [Two; 2] {
        const XOR_AND: i32 = 0x78; // a ^ (b & c)
        let word = |k: usize| {
            let [even, odd] = c.map(|c| _mm512_castsi512_ps(c[k]));
            _mm512_castps_si512(_mm512_mask_moveldup_ps(even, 0xaaaa, odd))
        };
        let radius = radius([word(0), word(2)]);
        let turns = [word(1), word(3)]
            .map(|b| _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32::<8>(b)), splat(4.0 / 16_777_216.0)));
        let (sin, cos) = quarter(turns);
        // As in `Arch::sin_cos_turns`: the low bits of q say which of the two it is, and with which sign.
        let q = turns.map(|t| _mm512_castps_si512(_mm512_add_ps(t, splat(12_582_912.0))));
        let (mut x, mut y) = (radius, radius);
        for i in 0..2 {
            let odd = _mm512_test_epi32_mask(q[i], _mm512_set1_epi32(1));
            let s = _mm512_castps_si512(_mm512_mask_blend_ps(odd, sin[i], cos[i]));
            let c = _mm512_castps_si512(_mm512_mask_blend_ps(odd, cos[i], sin[i]));
            let (sign, top) = (_mm512_set1_epi32(i32::MIN), _mm512_slli_epi32::<30>(q[i]));
            let next = _mm512_add_epi32(top, _mm512_set1_epi32(1 << 30));
            let s = _mm512_ternarylogic_epi32::<XOR_AND>(s, top, sign);
            let c = _mm512_ternarylogic_epi32::<XOR_AND>(c, next, sign);
            x[i] = _mm512_mul_ps(radius[i], _mm512_castsi512_ps(c));
            y[i] = _mm512_mul_ps(radius[i], _mm512_castsi512_ps(s));
        }
        [x, y]
    }

    /// √(−2 ln u) for the words of u: `Arch::ln`, with the factor 2⁻²⁴ of u taken off the exponent.
    #[target_feature(enable = "avx512f,avx512dq")]
    #[inline]
    fn radius(a: [__m512i; 2]) -> Two {
        let int = |x: u32| _mm512_set1_epi32(x as i32);
        a.map(|a| {
            let n = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_srli_epi32::<8>(a), int(1)));
            let t = _mm512_sub_epi32(_mm512_castps_si512(n), int((24 << 23) + 0x3f35_04f3));
            let e = _mm512_cvtepi32_ps(_mm512_srai_epi32::<23>(t));
            let m = _mm512_add_epi32(_mm512_and_si512(t, int(0x7f_ffff)), int(0x3f35_04f3));
            let m = _mm512_castsi512_ps(m);
            let s = _mm512_div_ps(_mm512_sub_ps(m, splat(1.0)), _mm512_add_ps(m, splat(1.0)));
            let z = _mm512_mul_ps(s, s);
            let p = _mm512_fmadd_ps(splat(2.0 / 9.0), z, splat(2.0 / 7.0));
            let p = _mm512_fmadd_ps(p, z, splat(2.0 / 5.0));
            let p = _mm512_fmadd_ps(p, z, splat(2.0 / 3.0));
            let tail = _mm512_mul_ps(_mm512_mul_ps(p, z), s);
            let low = _mm512_fmadd_ps(e, splat(-2.121_944_4e-4), tail);
            let ln = _mm512_fmadd_ps(e, splat(0.693_359_4), _mm512_fmadd_ps(splat(2.0), s, low));
            _mm512_sqrt_ps(_mm512_max_ps(_mm512_mul_ps(ln, splat(-2.0)), _mm512_setzero_ps()))
        })
    }

    /// Sine and cosine of the rest of `turns` quarter turns, in [−π/4, π/4].
    #[target_feature(enable = "avx512f,avx512dq")]
    #[inline]
    fn quarter(turns: Two) -> (Two, Two) {
        // The difference to the nearest integer is exact.
        let a = turns.map(|t| _mm512_mul_ps(_mm512_reduce_ps::<0>(t), splat(std::f32::consts::FRAC_PI_2)));
        let sin = a.map(|a| {
            let z = _mm512_mul_ps(a, a);
            let s = _mm512_fmadd_ps(splat(1.0 / 362_880.0), z, splat(-1.0 / 5040.0));
            let s = _mm512_fmadd_ps(s, z, splat(1.0 / 120.0));
            let s = _mm512_fmadd_ps(s, z, splat(-1.0 / 6.0));
            _mm512_fmadd_ps(_mm512_mul_ps(s, z), a, a)
        });
        let cos = a.map(|a| {
            let z = _mm512_mul_ps(a, a);
            let c = _mm512_fmadd_ps(splat(1.0 / 40_320.0), z, splat(-1.0 / 720.0));
            let c = _mm512_fmadd_ps(c, z, splat(1.0 / 24.0));
            let c = _mm512_fmadd_ps(c, z, splat(-0.5));
            _mm512_fmadd_ps(c, z, splat(1.0))
        });
        (sin, cos)
    }

    /// Transposes four by four within 128 bits, and stores.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn write(out: &mut [f32; GROUP], [x, y]: [Two; 2]) {
        let pairs = |low: bool| {
            let halves = [0, 1].map(|i| {
                let both = if low { _mm512_unpacklo_ps(x[i], y[i]) } else { _mm512_unpackhi_ps(x[i], y[i]) };
                _mm512_castps_pd(both)
            });
            [_mm512_unpacklo_pd(halves[0], halves[1]), _mm512_unpackhi_pd(halves[0], halves[1])]
        };
        let (four, _) = out.as_chunks_mut::<LANES>();
        for (out, values) in four.iter_mut().zip([pairs(true), pairs(false)].as_flattened()) {
            // SAFETY: room for sixteen numbers.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_castpd_ps(*values)) };
        }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Isa;

    /// 2²⁰ numbers with AVX-512 equal those of the AVX2 loops bit for bit; without fused multiply-adds they are the same to
    /// 1.2e-6, some units in the last place of the largest.
    #[test]
    fn every_instruction_set_draws_the_same_numbers() {
        let draw = |isa: Isa| {
            let mut out = vec![[0.0; GROUP]; 1 << 14];
            isa.run(
                #[inline(always)]
                |arch| arch.normals_from(&mut out, [u32::MAX - 1000, 7, 3, 1 << 20], [5, 6]),
            );
            out
        };
        let best = Isa::detect();
        let (plain, avx2, wide) = (draw(Isa::Portable), draw(best.min(Isa::Avx2)), draw(best));
        for ((a, b), c) in plain.as_flattened().iter().zip(avx2.as_flattened()).zip(wide.as_flattened()) {
            assert_eq!(b.to_bits(), c.to_bits());
            assert!((a - b).abs() <= 1.2e-6, "{a} {b}");
        }
    }

    #[test]
    fn counters_one_by_one_draw_what_consecutive_counters_do() {
        let mut counters = Counters([[9; LANES]; 4]);
        for (lane, word) in counters.0[0].iter_mut().enumerate() {
            *word = 100 + lane as u32;
        }
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|i| *i <= Isa::detect()) {
            let (mut one, mut run) = ([0.0; GROUP], [[0.0; GROUP]]);
            isa.run(
                #[inline(always)]
                |arch| {
                    arch.normals(&mut one, &counters, [1, 2]);
                    arch.normals_from(&mut run, [100, 9, 9, 9], [1, 2]);
                },
            );
            assert_eq!(one, run[0], "{isa:?}");
        }
    }

    /// Both ends of the range of a word: u = 1 draws 0, the smallest u the largest number.
    #[test]
    fn every_radius_is_finite() {
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|i| *i <= Isa::detect()) {
            let [x, y] = isa.run(
                #[inline(always)]
                |arch| [normal_pair(arch, u32::MAX, 0)[0], normal_pair(arch, 0, 0)[0]],
            );
            assert_eq!(x, 0.0);
            assert!((y - 5.768).abs() < 1e-3, "{y}");
        }
    }
}

//! Run-time choice of the instruction set, and vector mathematics that the compiler turns into it.
//!
//! `isa.run(#[inline(always)] |arch| { … })` compiles the closure three times (AVX-512, AVX2 + FMA, portable) and
//! calls the one the processor has. Inside, write plain loops over slices: they are vectorised. `arch.fma` is a fused
//! multiply-add where the hardware has one. All functions of this file are branch-free and inline, so that they
//! vectorise too; their errors against f64 are stated and tested.

/// Names an instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the target triple guarantees (SSE2 on x86-64).
    Portable,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX-512 with BF16 dot products.
    Avx512Bf16,
}

impl Isa {
    /// Returns the name that reports use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
        }
    }

    /// Finds the best instruction set of this processor.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("bmi2");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 && is_x86_feature_detected!("avx512bf16") {
                return Self::Avx512Bf16;
            }
            if avx512 {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Runs `f`, compiled for this instruction set. Mark the closure `#[inline(always)]`, or it stays portable.
    #[inline]
    pub fn run<R>(self, f: impl FnOnce(Arch) -> R) -> R {
        match self {
            // SAFETY: `detect` is the only source of these values besides `Cpu::new`, which refuses an instruction
            // set above the detected one; so the features are present.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 => unsafe { run_avx512(f) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { run_avx2(f) },
            _ => f(Arch { fma: false, wide: false }),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
unsafe fn run_avx512<R>(f: impl FnOnce(Arch) -> R) -> R {
    f(Arch { fma: true, wide: true })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi2")]
unsafe fn run_avx2<R>(f: impl FnOnce(Arch) -> R) -> R {
    f(Arch { fma: true, wide: false })
}

/// Tells inlined code what the instruction set offers; a constant after inlining.
#[derive(Clone, Copy, Debug)]
pub struct Arch {
    fma: bool,
    pub(super) wide: bool,
}

impl Arch {
    /// Returns `a·b + c`, fused where the hardware can.
    #[inline(always)]
    pub fn fma(self, a: f32, b: f32, c: f32) -> f32 {
        if self.fma { a.mul_add(b, c) } else { a * b + c }
    }

    /// Returns eˣ; relative error at most 3e-7, 0 below −87.3, +∞ above 88.7, NaN for NaN.
    #[inline(always)]
    pub fn exp(self, x: f32) -> f32 {
        // eˣ = 2ⁿ·eʳ with |r| ≤ ln2/2, n·ln2 subtracted in two parts (Cody and Waite), eʳ by its Taylor polynomial
        // of degree 7 (next term below 2e-9). 2ⁿ is applied as two factors, so that n = 128 does not overflow early.
        const MAGIC: f32 = 12_582_912.0; // 1.5·2²³: adding it rounds to an integer
        let clamped = x.clamp(-87.4, 89.0);
        let shifted = self.fma(clamped, std::f32::consts::LOG2_E, MAGIC);
        let n = shifted - MAGIC;
        let r = self.fma(n, -0.693_359_4, clamped);
        let r = self.fma(n, 2.121_944_4e-4, r);
        let mut p = 1.0 / 5040.0;
        p = self.fma(p, r, 1.0 / 720.0);
        p = self.fma(p, r, 1.0 / 120.0);
        p = self.fma(p, r, 1.0 / 24.0);
        p = self.fma(p, r, 1.0 / 6.0);
        p = self.fma(p, r, 0.5);
        p = self.fma(p, r, 1.0);
        p = self.fma(p, r, 1.0);
        let n = shifted.to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
        let half = n >> 1;
        let y = p
            * f32::from_bits((half.wrapping_add(127) as u32) << 23)
            * f32::from_bits((n.wrapping_sub(half).wrapping_add(127) as u32) << 23);
        let y = if x < -87.3 { 0.0 } else { y };
        let y = if x > 88.722_84 { f32::INFINITY } else { y };
        if x.is_nan() { x } else { y }
    }

    /// Returns ln x for normal positive x; relative error at most 2e-7 away from 1, absolute 1e-7 near it.
    #[inline(always)]
    pub fn ln(self, x: f32) -> f32 {
        // x = 2ᵉ·m with m in [√½, √2); ln m = 2·artanh(s), s = (m−1)/(m+1), |s| ≤ 0.1716, odd series to s⁹.
        let bits = x.to_bits();
        let e = ((bits.wrapping_sub(0x3f35_04f3)) as i32) >> 23;
        let m = f32::from_bits(bits.wrapping_sub((e as u32) << 23));
        let s = (m - 1.0) / (m + 1.0);
        let z = s * s;
        let mut p = 2.0 / 9.0;
        p = self.fma(p, z, 2.0 / 7.0);
        p = self.fma(p, z, 2.0 / 5.0);
        p = self.fma(p, z, 2.0 / 3.0);
        let tail = p * z * s;
        let e = e as f32;
        let low = self.fma(e, -2.121_944_4e-4, tail);
        self.fma(e, 0.693_359_4, self.fma(2.0, s, low))
    }

    /// Returns (sin 2πu, cos 2πu) for u in [0, 1); absolute error at most 1.2e-7.
    #[inline(always)]
    pub fn sin_cos_turns(self, u: f32) -> (f32, f32) {
        // 4u = q + f with |f| ≤ ½, so the angle is q·π/2 + a, a = f·π/2 in [−π/4, π/4]: Taylor to a⁹ and a⁸.
        const MAGIC: f32 = 12_582_912.0;
        let turns = 4.0 * u;
        let shifted = turns + MAGIC;
        let q = shifted - MAGIC;
        let a = (turns - q) * std::f32::consts::FRAC_PI_2;
        let z = a * a;
        let mut s = 1.0 / 362_880.0;
        s = self.fma(s, z, -1.0 / 5040.0);
        s = self.fma(s, z, 1.0 / 120.0);
        s = self.fma(s, z, -1.0 / 6.0);
        let s = self.fma(s * z, a, a);
        let mut c = 1.0 / 40_320.0;
        c = self.fma(c, z, -1.0 / 720.0);
        c = self.fma(c, z, 1.0 / 24.0);
        c = self.fma(c, z, -0.5);
        let c = self.fma(c, z, 1.0);
        let q = shifted.to_bits().wrapping_sub(MAGIC.to_bits());
        let (sin, cos) = if q & 1 == 0 { (s, c) } else { (c, s) };
        let sin_sign = (q & 2) << 30;
        let cos_sign = (q.wrapping_add(1) & 2) << 30;
        (f32::from_bits(sin.to_bits() ^ sin_sign), f32::from_bits(cos.to_bits() ^ cos_sign))
    }

    /// Returns σ(x) = 1 / (1 + e⁻ˣ).
    #[inline(always)]
    pub fn sigmoid(self, x: f32) -> f32 {
        1.0 / (1.0 + self.exp(-x))
    }

    /// Returns tanh x; absolute error at most 2e-7.
    #[inline(always)]
    pub fn tanh(self, x: f32) -> f32 {
        1.0 - 2.0 / (self.exp(2.0 * x) + 1.0)
    }

    /// Returns Σ x, in an order that depends on the length and the instruction set alone.
    #[inline(always)]
    pub fn sum(self, xs: &[f32]) -> f32 {
        #[cfg(target_arch = "x86_64")]
        if self.wide {
            // SAFETY: `wide` is set only by `run_avx512`.
            return unsafe { x86::sum(xs) };
        }
        self.lanes(
            xs.len(),
            #[inline(always)]
            |i| (xs[i], 1.0),
        )
    }

    /// Returns Σ a·b of two slices of one length, in an order that depends on it and the instruction set alone.
    #[inline(always)]
    pub fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        debug_assert_eq!(a.len(), b.len());
        #[cfg(target_arch = "x86_64")]
        if self.wide {
            // SAFETY: `wide` is set only by `run_avx512`.
            return unsafe { x86::dot(a, b) };
        }
        let b = &b[..a.len()];
        self.lanes(
            a.len(),
            #[inline(always)]
            |i| (a[i], b[i]),
        )
    }

    /// Σ f(i).0·f(i).1 in sixteen interleaved partial sums.
    #[inline(always)]
    fn lanes(self, n: usize, f: impl Fn(usize) -> (f32, f32)) -> f32 {
        let mut acc = [0.0f32; 16];
        for i in 0..n {
            let (a, b) = f(i);
            acc[i % 16] = self.fma(a, b, acc[i % 16]);
        }
        let mut width = 8;
        while width > 0 {
            for lane in 0..width {
                acc[lane] += acc[lane + width];
            }
            width /= 2;
        }
        acc[0]
    }
}

/// Sums in four AVX-512 registers: written out, since arrays of partial sums do not stay in registers.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Returns Σ x.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn sum(xs: &[f32]) -> f32 {
        let mut acc = [_mm512_setzero_ps(); 4];
        let (whole, tail) = xs.as_chunks::<64>();
        for xs in whole {
            for (k, acc) in acc.iter_mut().enumerate() {
                // SAFETY: 16·k + 16 ≤ 64, the length of the chunk.
                *acc = _mm512_add_ps(*acc, unsafe { _mm512_loadu_ps(xs.as_ptr().add(16 * k)) });
            }
        }
        for xs in tail.chunks(16) {
            acc[0] = _mm512_add_ps(acc[0], load(xs));
        }
        total(acc)
    }

    /// Returns Σ a·b over the shorter length.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
        let n = a.len().min(b.len());
        let mut acc = [_mm512_setzero_ps(); 4];
        let ((a_whole, a_tail), (b_whole, b_tail)) = (a[..n].as_chunks::<64>(), b[..n].as_chunks::<64>());
        for (a, b) in a_whole.iter().zip(b_whole) {
            for (k, acc) in acc.iter_mut().enumerate() {
                // SAFETY: 16·k + 16 ≤ 64, the length of both chunks.
                let (a, b) = unsafe {
                    (_mm512_loadu_ps(a.as_ptr().add(16 * k)), _mm512_loadu_ps(b.as_ptr().add(16 * k)))
                };
                *acc = _mm512_fmadd_ps(a, b, *acc);
            }
        }
        for (a, b) in a_tail.chunks(16).zip(b_tail.chunks(16)) {
            acc[0] = _mm512_fmadd_ps(load(a), load(b), acc[0]);
        }
        total(acc)
    }

    /// Loads at most 16 numbers, zeros behind them.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn load(xs: &[f32]) -> __m512 {
        let mask = (0xffffu32 >> (16 - xs.len().min(16))) as u16;
        // SAFETY: the mask has one bit for each element of the slice, and masked-off elements are not read.
        unsafe { _mm512_maskz_loadu_ps(mask, xs.as_ptr()) }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn total(acc: [__m512; 4]) -> f32 {
        _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn isas() -> Vec<Isa> {
        [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|i| *i <= Isa::detect()).collect()
    }

    fn worst(
        isa: Isa,
        range: std::ops::Range<f32>,
        f: fn(Arch, f32) -> f32,
        exact: fn(f64) -> f64,
        floor: f64,
    ) -> f64 {
        let n = 200_001;
        (0..n)
            .map(|i| range.start + (range.end - range.start) * i as f32 / n as f32)
            .map(|x| {
                let y = isa.run(
                    #[inline(always)]
                    |a| f(a, x),
                );
                (y as f64 - exact(x as f64)).abs() / exact(x as f64).abs().max(floor)
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn vector_mathematics_stays_within_the_stated_errors() {
        for isa in isas() {
            assert!(worst(isa, -87.0..88.0, |a, x| a.exp(x), f64::exp, 0.0) < 3e-7, "{isa:?} exp");
            assert!(worst(isa, 1e-30..1.0, |a, x| a.ln(x), f64::ln, 0.5) < 2e-7, "{isa:?} ln");
            assert!(worst(isa, 1.0..1e30, |a, x| a.ln(x), f64::ln, 0.5) < 2e-7, "{isa:?} ln");
            assert!(worst(isa, -20.0..20.0, |a, x| a.tanh(x), f64::tanh, 1.0) < 2e-7, "{isa:?} tanh");
            let sin = worst(isa, 0.0..1.0, |a, x| a.sin_cos_turns(x).0, |x| turns(x).sin(), 1.0);
            let cos = worst(isa, 0.0..1.0, |a, x| a.sin_cos_turns(x).1, |x| turns(x).cos(), 1.0);
            assert!(sin < 1.2e-7 && cos < 1.2e-7, "{isa:?} sin {sin} cos {cos}");
        }
    }

    fn turns(x: f64) -> f64 {
        x * std::f64::consts::TAU
    }

    #[test]
    fn exp_keeps_its_edges() {
        for isa in isas() {
            let exp = |x| {
                isa.run(
                    #[inline(always)]
                    |a| a.exp(x),
                )
            };
            assert_eq!(exp(0.0), 1.0);
            assert_eq!(exp(f32::NEG_INFINITY), 0.0);
            assert_eq!(exp(f32::INFINITY), f32::INFINITY);
            assert!(exp(f32::NAN).is_nan());
            assert_eq!(exp(-200.0), 0.0);
            assert_eq!(exp(100.0), f32::INFINITY);
        }
    }
}

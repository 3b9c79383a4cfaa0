//! The storage types of tensors: `f32`, `bf16` and `f16`, with branch-free conversions.

use std::fmt;
use std::str::FromStr;

use bytemuck::Pod;
use half::{bf16, f16};

use crate::error::{Error, Result};

/// Names a storage type in files, configs and messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl DType {
    /// Returns the bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// Returns the name a user types.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        [Self::F32, Self::Bf16, Self::F16]
            .into_iter()
            .find(|d| d.name() == s)
            .ok_or_else(|| Error::Usage(format!("unknown dtype `{s}`: expected `f32`, `bf16` or `f16`")))
    }
}

/// Returns the nearest f32 and the nearest to what is left: 48 bits of `x`, what CUDA kernels take where f32 is too little
/// (`kernels/pair.cuh`). What overflows f32 is infinite.
pub(crate) fn split(x: f64) -> [f32; 2] {
    let high = x as f32;
    let low = if high.is_finite() { (x - high as f64) as f32 } else { 0.0 };
    [high, low]
}

/// Returns the number of such a pair.
pub(crate) fn join([high, low]: [f32; 2]) -> f64 {
    high as f64 + low as f64
}

/// A storage type of tensors. Conversions are branch-free, so that loops over them vectorise.
pub trait FloatX: Pod + Send + Sync + PartialEq + fmt::Debug + 'static {
    /// Names the type.
    const DTYPE: DType;
    /// Widens exactly.
    fn to_f32(self) -> f32;
    /// Rounds to nearest even; NaN stays NaN.
    fn from_f32(x: f32) -> Self;
    /// Rounds up or down at random: the discarded bits are compared with `random`'s. NaN and ∞ stay.
    fn from_f32_stochastic(x: f32, random: u32) -> Self;
}

impl FloatX for f32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn from_f32_stochastic(x: f32, _random: u32) -> Self {
        x
    }
}

impl FloatX for bf16 {
    const DTYPE: DType = DType::Bf16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16)
    }
    #[inline(always)]
    fn from_f32_stochastic(x: f32, random: u32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(random & 0xffff) >> 16;
        let kept = (bits >> 16) | if x.is_nan() { 0x40 } else { 0 };
        bf16::from_bits(if x.is_finite() { rounded } else { kept } as u16)
    }
}

impl FloatX for f16 {
    const DTYPE: DType = DType::F16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        // Shift exponent and mantissa into place; a multiplication by 2¹¹² re-biases the exponent and makes
        // subnormals normal. ∞ and NaN get the f32 exponent back by hand.
        let bits = self.to_bits() as u32;
        let magnitude = (bits & 0x7fff) << 13;
        let scaled = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
        let special = magnitude | 0x7f80_0000;
        let value = if bits & 0x7c00 == 0x7c00 { special } else { scaled.to_bits() };
        f32::from_bits(value | ((bits & 0x8000) << 16))
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let sign = (x.to_bits() >> 16) & 0x8000;
        let magnitude = x.to_bits() & 0x7fff_ffff;
        // Subnormal results: adding ½ lets the adder round at the right bit.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let normal = magnitude.wrapping_sub(0x3800_0000 - 0xfff).wrapping_add((magnitude >> 13) & 1) >> 13;
        let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
        let special = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
        f16::from_bits((sign | if magnitude >= 0x4780_0000 { special } else { finite }) as u16)
    }
    #[inline(always)]
    fn from_f32_stochastic(x: f32, random: u32) -> Self {
        // Truncate x ± a random part of one unit in the last place: exact for normal halves, which is where weights
        // live; smaller values fall back to nearest.
        let bits = x.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let bumped = magnitude.wrapping_add(random & 0x1fff) & !0x1fff;
        let usable = (0x3880_0000..0x4780_0000).contains(&magnitude);
        Self::from_f32(if usable { f32::from_bits(bumped | (bits & 0x8000_0000)) } else { x })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_agree_with_the_half_crate_on_every_value() {
        for bits in 0..=u16::MAX {
            let (h, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            if h.is_nan() {
                assert!(FloatX::to_f32(h).is_nan());
            } else {
                assert_eq!(FloatX::to_f32(h).to_bits(), h.to_f32().to_bits());
            }
            if b.is_nan() {
                assert!(FloatX::to_f32(b).is_nan() && <bf16 as FloatX>::from_f32(b.to_f32()).is_nan());
            } else {
                assert_eq!(FloatX::to_f32(b).to_bits(), b.to_f32().to_bits());
            }
        }
        for i in 0..3_000_000u32 {
            let x = f32::from_bits(i.wrapping_mul(1431)); // walks all signs, exponents and rounding cases
            if x.is_nan() {
                continue;
            }
            assert_eq!(<f16 as FloatX>::from_f32(x).to_bits(), f16::from_f32(x).to_bits(), "f16 of {x:e}");
            assert_eq!(<bf16 as FloatX>::from_f32(x).to_bits(), bf16::from_f32(x).to_bits(), "bf16 of {x:e}");
        }
        for x in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)] {
            assert!(<f16 as FloatX>::from_f32(x).is_nan() && <bf16 as FloatX>::from_f32(x).is_nan());
        }
    }

    #[test]
    fn stochastic_rounding_is_unbiased_and_keeps_exact_values() {
        let x = 1.0 + 0.3 / 128.0; // three tenths of the way to the next bf16
        let n = 1 << 16;
        let up = (0..n).filter(|i| bf16::from_f32_stochastic(x, *i).to_f32() > 1.0).count();
        assert!((up as f64 / n as f64 - 0.3).abs() < 1e-3, "{up}");
        for random in [0, 0x1fff, 0xffff, u32::MAX] {
            for exact in [1.0, -2.5, 0.0, f32::INFINITY] {
                assert_eq!(bf16::from_f32_stochastic(exact, random).to_f32(), exact);
                assert_eq!(f16::from_f32_stochastic(exact, random).to_f32(), exact);
            }
            assert!(bf16::from_f32_stochastic(f32::NAN, random).is_nan());
        }
    }
}

//! f16 and bf16 arithmetic, one value or two in a register.
//!
//! Computed as f64 rounded to odd (see `rounding`), then rounded once to the format.

use super::lanes::{binary, ternary, unary};
use super::rounding::{NAN_HALF, bf16_value, f16_value, round_to, sum};
use super::single::{maximum, minimum};
use super::{AluFn, flags_within, has};
use crate::isa::flag::{FTZ, NAN, RELU, SAT, XORSIGN};
use crate::isa::{Alu, AluOp, Round, Ty};

/// A 16-bit floating-point format.
pub(super) trait Format {
    /// The smallest normal number.
    const NORMAL: f32;
    /// Returns a value.
    fn value(bits: u16) -> f32;
    /// Rounds to nearest.
    fn round(x: f64) -> u16;
}

/// IEEE half precision.
pub(super) struct F16;
/// The upper half of an f32.
pub(super) struct Bf16;

impl Format for F16 {
    const NORMAL: f32 = 6.103_515_6e-5; // 2^-14
    #[inline(always)]
    fn value(bits: u16) -> f32 {
        f16_value(bits)
    }
    #[inline(always)]
    fn round(x: f64) -> u16 {
        round_to::<10, 5>(x, Round::Nearest) as u16
    }
}

impl Format for Bf16 {
    const NORMAL: f32 = f32::MIN_POSITIVE;
    #[inline(always)]
    fn value(bits: u16) -> f32 {
        bf16_value(bits)
    }
    #[inline(always)]
    fn round(x: f64) -> u16 {
        round_to::<7, 8>(x, Round::Nearest) as u16
    }
}

/// Chooses the format of an instruction.
macro_rules! by_format {
    ($ty:expr, $alias:ident => $body:expr) => {
        match $ty {
            Ty::F16 | Ty::F16x2 => {
                type $alias = F16;
                Some($body)
            }
            Ty::Bf16 | Ty::Bf16x2 => {
                type $alias = Bf16;
                Some($body)
            }
            _ => None,
        }
    };
}
pub(super) use by_format;

/// Returns the function of an f16 or bf16 instruction that is not approximate.
pub(super) fn select(i: &Alu) -> Option<AluFn> {
    let f16 = matches!(i.ty, Ty::F16 | Ty::F16x2);
    let ftz = if f16 { FTZ } else { 0 };
    let (flags, rounds) = match i.op {
        AluOp::Add | AluOp::Sub | AluOp::Mul if f16 => (FTZ | SAT, true),
        AluOp::Add | AluOp::Sub | AluOp::Mul => (0, true),
        AluOp::Fma if has(i, RELU) => (ftz | RELU, true),
        AluOp::Fma if f16 => (FTZ | SAT, true),
        AluOp::Fma => (0, true),
        AluOp::Min | AluOp::Max => (ftz | NAN | XORSIGN, false),
        AluOp::Abs | AluOp::Neg => (ftz, false),
        _ => return None,
    };
    let round = match i.round {
        Round::None => i.op != AluOp::Fma,
        Round::Nearest => rounds,
        _ => false,
    };
    if !round || !flags_within(i, flags) {
        return None;
    }
    match i.op {
        AluOp::Add => by_format!(i.ty, F => binary(|i, a: u32, b: u32| {
            pair(i, |n| finish::<F>(i, sum(part::<F>(i, a, n), part::<F>(i, b, n), Round::Nearest)))
        })),
        AluOp::Sub => by_format!(i.ty, F => binary(|i, a: u32, b: u32| {
            pair(i, |n| finish::<F>(i, sum(part::<F>(i, a, n), -part::<F>(i, b, n), Round::Nearest)))
        })),
        AluOp::Mul => by_format!(i.ty, F => binary(|i, a: u32, b: u32| {
            pair(i, |n| finish::<F>(i, part::<F>(i, a, n) * part::<F>(i, b, n)))
        })),
        AluOp::Fma => by_format!(i.ty, F => ternary(|i, a: u32, b: u32, c: u32| {
            pair(i, |n| {
                let product = part::<F>(i, a, n) * part::<F>(i, b, n);
                finish::<F>(i, sum(product, part::<F>(i, c, n), Round::Nearest))
            })
        })),
        AluOp::Min => by_format!(i.ty, F => binary(|i, a: u32, b: u32| {
            pair(i, |n| extremum::<F>(i, half(a, n), half(b, n), minimum))
        })),
        AluOp::Max => by_format!(i.ty, F => binary(|i, a: u32, b: u32| {
            pair(i, |n| extremum::<F>(i, half(a, n), half(b, n), maximum))
        })),
        AluOp::Abs => {
            by_format!(i.ty, F => unary(|i, a: u32| pair(i, |n| flush::<F>(i, half(a, n)) & 0x7fff)))
        }
        _ => by_format!(i.ty, F => unary(|i, a: u32| pair(i, |n| flush::<F>(i, half(a, n)) ^ 0x8000))),
    }
}

/// Computes the lower value and, for a type of two, the upper.
#[inline(always)]
pub(super) fn pair(i: &Alu, f: impl Fn(u32) -> u16) -> u32 {
    let upper = if matches!(i.ty, Ty::F16x2 | Ty::Bf16x2) { u32::from(f(1)) << 16 } else { 0 };
    u32::from(f(0)) | upper
}

/// Returns the lower (0) or the upper (1) half.
#[inline(always)]
pub(super) fn half(bits: u32, n: u32) -> u16 {
    (bits >> (16 * n)) as u16
}

/// Turns a subnormal number into zero, if the instruction says so.
#[inline(always)]
pub(super) fn flush<F: Format>(i: &Alu, bits: u16) -> u16 {
    let subnormal = F::value(bits & 0x7fff) < F::NORMAL;
    if has(i, FTZ) && subnormal { bits & 0x8000 } else { bits }
}

/// Returns the value of one half of an operand.
#[inline(always)]
pub(super) fn part<F: Format>(i: &Alu, bits: u32, n: u32) -> f64 {
    f64::from(F::value(flush::<F>(i, half(bits, n))))
}

/// Rounds a result and applies `.ftz`, `.sat` (NaN becomes 0) and `.relu` (NaN stays).
#[inline(always)]
fn finish<F: Format>(i: &Alu, x: f64) -> u16 {
    let x = if has(i, SAT) { if x > 0.0 { x.min(1.0) } else { 0.0 } } else { x };
    let x = if has(i, RELU) && x <= 0.0 { 0.0 } else { x };
    flush::<F>(i, F::round(x))
}

#[inline(always)]
fn extremum<F: Format>(i: &Alu, a: u16, b: u16, f: impl Fn(f32, f32) -> f32) -> u16 {
    let (a, b) = (flush::<F>(i, a), flush::<F>(i, b));
    let sign = (a ^ b) & 0x8000;
    let (a, b) = if has(i, XORSIGN) { (a & 0x7fff, b & 0x7fff) } else { (a, b) };
    let (x, y) = (F::value(a), F::value(b));
    let d = f(x, y);
    if d.is_nan() || has(i, NAN) && (x.is_nan() || y.is_nan()) {
        return NAN_HALF as u16;
    }
    // The result is one of the operands; of two zeros, `f` says which.
    let d = if d.to_bits() == x.to_bits() { a } else { b };
    if has(i, XORSIGN) { d | sign } else { d }
}

//! f16 and bf16 arithmetic, one value or two in a register.
//!
//! Computed as f64 rounded to odd (see `rounding`), then rounded once to the format.

use super::lanes::{binary_lane, lane, ternary_lane, unary_lane};
use super::rounding::{NAN_HALF, bf16_value, f16_value, nearest_bf16, nearest_f16, odd, sum};
use super::single::extreme;
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
        nearest_f16(x)
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
        nearest_bf16(x)
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

/// Computes the lower value and, for a type of two, the upper, with a function that is always inlined.
macro_rules! pair {
    ($i:expr, [$($x:ident),*], $f:expr) => {{
        let lower = u32::from($f($i, [$($x as u16),*]));
        let upper = u32::from($f($i, [$(($x >> 16) as u16),*])) << 16;
        if matches!($i.ty, Ty::F16x2 | Ty::Bf16x2) { lower | upper } else { lower }
    }};
}
pub(super) use pair;

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
        AluOp::Add => by_format!(i.ty, F => binary_lane(lane!(|i, a: u32, b: u32| -> u32 {
            pair!(i, [a, b], add::<F>)
        }))),
        AluOp::Sub => by_format!(i.ty, F => binary_lane(lane!(|i, a: u32, b: u32| -> u32 {
            pair!(i, [a, b], subtract::<F>)
        }))),
        AluOp::Mul => by_format!(i.ty, F => binary_lane(lane!(|i, a: u32, b: u32| -> u32 {
            pair!(i, [a, b], multiply::<F>)
        }))),
        AluOp::Fma => by_format!(i.ty, F => ternary_lane(lane!(|i, a: u32, b: u32, c: u32| -> u32 {
            pair!(i, [a, b, c], fma::<F>)
        }))),
        AluOp::Min => by_format!(i.ty, F => binary_lane(lane!(|i, a: u32, b: u32| -> u32 {
            pair!(i, [a, b], smaller::<F>)
        }))),
        AluOp::Max => by_format!(i.ty, F => binary_lane(lane!(|i, a: u32, b: u32| -> u32 {
            pair!(i, [a, b], larger::<F>)
        }))),
        AluOp::Abs => {
            by_format!(i.ty, F => unary_lane(lane!(|i, a: u32| -> u32 { pair!(i, [a], magnitude::<F>) })))
        }
        _ => by_format!(i.ty, F => unary_lane(lane!(|i, a: u32| -> u32 { pair!(i, [a], negated::<F>) }))),
    }
}

#[inline(always)]
fn add<F: Format>(i: &Alu, [a, b]: [u16; 2]) -> u16 {
    finish::<F>(i, odd_sum(value::<F>(i, a), value::<F>(i, b)))
}

#[inline(always)]
fn subtract<F: Format>(i: &Alu, [a, b]: [u16; 2]) -> u16 {
    finish::<F>(i, odd_sum(value::<F>(i, a), -value::<F>(i, b)))
}

#[inline(always)]
fn multiply<F: Format>(i: &Alu, [a, b]: [u16; 2]) -> u16 {
    finish::<F>(i, value::<F>(i, a) * value::<F>(i, b))
}

#[inline(always)]
fn fma<F: Format>(i: &Alu, [a, b, c]: [u16; 3]) -> u16 {
    finish::<F>(i, odd_sum(value::<F>(i, a) * value::<F>(i, b), value::<F>(i, c)))
}

#[inline(always)]
fn smaller<F: Format>(i: &Alu, [a, b]: [u16; 2]) -> u16 {
    extremum::<F, false>(i, a, b)
}

#[inline(always)]
fn larger<F: Format>(i: &Alu, [a, b]: [u16; 2]) -> u16 {
    extremum::<F, true>(i, a, b)
}

#[inline(always)]
fn magnitude<F: Format>(i: &Alu, [a]: [u16; 1]) -> u16 {
    flush::<F>(i, a) & 0x7fff
}

#[inline(always)]
fn negated<F: Format>(i: &Alu, [a]: [u16; 1]) -> u16 {
    flush::<F>(i, a) ^ 0x8000
}

/// Turns a subnormal number into zero, if the instruction says so.
#[inline(always)]
pub(super) fn flush<F: Format>(i: &Alu, bits: u16) -> u16 {
    let subnormal = F::value(bits & 0x7fff) < F::NORMAL;
    if has(i, FTZ) && subnormal { bits & 0x8000 } else { bits }
}

/// Returns the value of an operand.
#[inline(always)]
fn value<F: Format>(i: &Alu, bits: u16) -> f64 {
    f64::from(F::value(flush::<F>(i, bits)))
}

/// Returns a + b rounded to odd.
#[inline(always)]
fn odd_sum(a: f64, b: f64) -> f64 {
    let (s, e) = sum(a, b, Round::Nearest);
    odd(s, e)
}

/// Rounds a result and applies `.ftz`, `.sat` (NaN becomes 0) and `.relu` (NaN stays).
#[inline(always)]
fn finish<F: Format>(i: &Alu, x: f64) -> u16 {
    let x = if has(i, SAT) { if x > 0.0 { x.min(1.0) } else { 0.0 } } else { x };
    let x = if has(i, RELU) && x <= 0.0 { 0.0 } else { x };
    flush::<F>(i, F::round(x))
}

#[inline(always)]
fn extremum<F: Format, const LARGER: bool>(i: &Alu, a: u16, b: u16) -> u16 {
    let (a, b) = (flush::<F>(i, a), flush::<F>(i, b));
    let sign = (a ^ b) & 0x8000;
    let (a, b) = if has(i, XORSIGN) { (a & 0x7fff, b & 0x7fff) } else { (a, b) };
    let (x, y) = (F::value(a), F::value(b));
    let d = extreme::<LARGER>(x, y);
    if d.is_nan() || has(i, NAN) && (x.is_nan() || y.is_nan()) {
        return NAN_HALF as u16;
    }
    // The result is one of the operands; of two zeros, the sign says which.
    let d = if d.to_bits() == x.to_bits() { a } else { b };
    if has(i, XORSIGN) { d | sign } else { d }
}

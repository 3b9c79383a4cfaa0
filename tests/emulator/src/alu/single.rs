//! f32 arithmetic.
//!
//! Rounding to nearest is the CPU's own; the other directions go through f64 (see `rounding`).

use super::lanes::{binary, binary_lane, lane, ternary, ternary_lane, unary, unary_lane};
use super::rounding::{NAN_F32, directed, quotient, square_root, sum};
use super::{AluFn, flags_within, has};
use crate::isa::flag::{FTZ, NAN, SAT, XORSIGN};
use crate::isa::{Alu, AluOp, Round};

/// Returns the function of an f32 instruction that is not approximate.
pub(super) fn select(i: &Alu) -> Option<AluFn> {
    match i.op {
        AluOp::Add | AluOp::Sub | AluOp::Mul => match i.round {
            _ if !flags_within(i, FTZ | SAT) => None,
            Round::None | Round::Nearest => nearest(i),
            Round::Zero | Round::Down | Round::Up => directed_sum(i),
            _ => None,
        },
        AluOp::Fma | AluOp::Mad => match i.round {
            _ if !flags_within(i, FTZ | SAT) => None,
            Round::Nearest => nearest_fma(i),
            Round::Zero | Round::Down | Round::Up => directed_fma(i.round),
            _ => None,
        },
        AluOp::Div | AluOp::Rcp | AluOp::Sqrt => match i.round {
            _ if !flags_within(i, FTZ) => None,
            Round::Nearest => nearest_quotient(i),
            Round::Zero | Round::Down | Round::Up => directed_quotient(i),
            _ => None,
        },
        _ if i.round != Round::None => None,
        AluOp::Min | AluOp::Max => extremum(i),
        AluOp::Abs if flags_within(i, FTZ) => Some(unary(|i, a: f32| input(i, a).abs())),
        AluOp::Neg if flags_within(i, FTZ) => Some(unary(|i, a: f32| -input(i, a))),
        AluOp::Copysign if i.flags == 0 => Some(binary(|_, a: f32, b: f32| b.copysign(a))),
        _ => None,
    }
}

/// Turns a subnormal number into zero.
#[inline(always)]
pub(super) fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { f32::from_bits(x.to_bits() & 1 << 31) } else { x }
}

/// Returns an operand, flushed if the instruction says so.
#[inline(always)]
pub(super) fn input(i: &Alu, x: f32) -> f32 {
    if has(i, FTZ) { flush(x) } else { x }
}

/// Limits to [0, 1]; NaN becomes 0.
#[inline(always)]
pub(super) fn saturate(x: f32) -> f32 {
    let x = if x > 0.0 { x } else { 0.0 };
    if x < 1.0 { x } else { 1.0 }
}

/// Returns a result as the modifiers and the hardware's only NaN want it.
#[inline(always)]
pub(super) fn result<const FLUSH: bool, const SATURATE: bool>(x: f32) -> f32 {
    let x = if FLUSH { flush(x) } else { x };
    if SATURATE { saturate(x) } else { canonical(x) }
}

/// Makes every NaN the same. On bits: for floats the compiler may take one NaN for another, and drop the choice.
#[inline(always)]
pub(super) fn canonical(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { NAN_F32 } else { bits })
}

/// Like [`result`], by the instruction's flags.
#[inline(always)]
pub(super) fn output(i: &Alu, x: f32) -> f32 {
    let x = if has(i, FTZ) { flush(x) } else { x };
    if has(i, SAT) { saturate(x) } else { canonical(x) }
}

/// Compiles a computation for each combination of `.ftz` and `.sat`.
macro_rules! flagged {
    ($flags:expr, $family:ident |$($x:ident),*| $e:expr) => {
        match $flags {
            0 => Some($family(|_, $($x: f32),*| result::<false, false>($e))),
            SAT => Some($family(|_, $($x: f32),*| result::<false, true>($e))),
            FTZ => Some($family(|_, $($x: f32),*| {
                $(let $x = flush($x);)*
                result::<true, false>($e)
            })),
            _ => Some($family(|_, $($x: f32),*| {
                $(let $x = flush($x);)*
                result::<true, true>($e)
            })),
        }
    };
}

fn nearest(i: &Alu) -> Option<AluFn> {
    match i.op {
        AluOp::Add => flagged!(i.flags, binary | a, b | a + b),
        AluOp::Sub => flagged!(i.flags, binary | a, b | a - b),
        _ => flagged!(i.flags, binary | a, b | a * b),
    }
}

fn nearest_fma(i: &Alu) -> Option<AluFn> {
    flagged!(i.flags, ternary | a, b, c | a.mul_add(b, c))
}

fn nearest_quotient(i: &Alu) -> Option<AluFn> {
    match i.op {
        AluOp::Div => Some(binary(|i, a: f32, b: f32| output(i, input(i, a) / input(i, b)))),
        AluOp::Rcp => Some(unary(|i, a: f32| output(i, 1.0 / input(i, a)))),
        _ => Some(unary(|i, a: f32| output(i, input(i, a).sqrt()))),
    }
}

/// Compiles a computation for each direction of rounding.
macro_rules! each_direction {
    ($round:expr, $direction:ident => $function:expr) => {
        match $round {
            Round::Zero => {
                const $direction: Round = Round::Zero;
                Some($function)
            }
            Round::Down => {
                const $direction: Round = Round::Down;
                Some($function)
            }
            _ => {
                const $direction: Round = Round::Up;
                Some($function)
            }
        }
    };
}

fn directed_sum(i: &Alu) -> Option<AluFn> {
    match i.op {
        AluOp::Add => each_direction!(i.round, ROUND => binary_lane(lane!(|i, a: f32, b: f32| -> f32 {
            let exact = sum(f64::from(input(i, a)), f64::from(input(i, b)), ROUND);
            output(i, directed(exact, ROUND))
        }))),
        AluOp::Sub => each_direction!(i.round, ROUND => binary_lane(lane!(|i, a: f32, b: f32| -> f32 {
            let exact = sum(f64::from(input(i, a)), f64::from(-input(i, b)), ROUND);
            output(i, directed(exact, ROUND))
        }))),
        _ => each_direction!(i.round, ROUND => binary_lane(lane!(|i, a: f32, b: f32| -> f32 {
            let product = f64::from(input(i, a)) * f64::from(input(i, b));
            output(i, directed((product, 0.0), ROUND))
        }))),
    }
}

fn directed_fma(round: Round) -> Option<AluFn> {
    each_direction!(round, ROUND => ternary_lane(lane!(|i, a: f32, b: f32, c: f32| -> f32 {
        let product = f64::from(input(i, a)) * f64::from(input(i, b));
        output(i, directed(sum(product, f64::from(input(i, c)), ROUND), ROUND))
    })))
}

fn directed_quotient(i: &Alu) -> Option<AluFn> {
    Some(match i.op {
        AluOp::Div => binary_lane(lane!(|i, a: f32, b: f32| -> f32 {
            output(i, directed(quotient(f64::from(input(i, a)), f64::from(input(i, b))), i.round))
        })),
        AluOp::Rcp => unary_lane(lane!(|i, a: f32| -> f32 {
            output(i, directed(quotient(1.0, f64::from(input(i, a))), i.round))
        })),
        _ => unary_lane(lane!(|i, a: f32| -> f32 {
            output(i, directed(square_root(f64::from(input(i, a))), i.round))
        })),
    })
}

fn extremum(i: &Alu) -> Option<AluFn> {
    match (i.op, i.flags) {
        (AluOp::Min, 0) => Some(binary_lane(lane!(|_, a: f32, b: f32| -> f32 { extreme::<false>(a, b) }))),
        (AluOp::Max, 0) => Some(binary_lane(lane!(|_, a: f32, b: f32| -> f32 { extreme::<true>(a, b) }))),
        (AluOp::Min, _) if flags_within(i, FTZ | NAN | XORSIGN) => {
            Some(binary_lane(lane!(|i, a: f32, b: f32| -> f32 { modified::<false>(i, a, b) })))
        }
        (_, _) if flags_within(i, FTZ | NAN | XORSIGN) => {
            Some(binary_lane(lane!(|i, a: f32, b: f32| -> f32 { modified::<true>(i, a, b) })))
        }
        _ => None,
    }
}

/// The smaller or the larger one; -0 is smaller than +0, and a NaN is not counted.
#[inline(always)]
pub(super) fn extreme<const LARGER: bool>(a: f32, b: f32) -> f32 {
    let first = if LARGER { a > b } else { a < b };
    let d = if first || b.is_nan() { a } else { b };
    let zero = if LARGER { a.to_bits() & b.to_bits() } else { a.to_bits() | b.to_bits() };
    canonical(if a == b { f32::from_bits(zero) } else { d })
}

/// `min` and `max` with `.ftz`, `.NaN` (a NaN wins) and `.xorsign.abs` (of the magnitudes, with the product's sign).
#[inline(always)]
fn modified<const LARGER: bool>(i: &Alu, a: f32, b: f32) -> f32 {
    let (a, b) = (input(i, a), input(i, b));
    let sign = (a.to_bits() ^ b.to_bits()) & 1 << 31;
    let (a, b) = if has(i, XORSIGN) { (a.abs(), b.abs()) } else { (a, b) };
    let d = extreme::<LARGER>(a, b);
    if d.is_nan() || has(i, NAN) && (a.is_nan() || b.is_nan()) {
        return f32::from_bits(NAN_F32);
    }
    if has(i, XORSIGN) { f32::from_bits(d.to_bits() | sign) } else { d }
}

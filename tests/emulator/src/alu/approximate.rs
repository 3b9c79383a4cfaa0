//! Approximate functions: computed in f64 and rounded, or with an error up to the ISA's bound.
//!
//! The bounds are those of the notes to each instruction in the PTX ISA.

use super::half::{Bf16, F16, Format, by_format, flush, pair};
use super::lanes::{Binary, Lane, binary, collect, fast, lane, twice, unary, unary_lane};
use super::single::{input, output};
use super::{AluFn, Approx, elementary, flags_within, has};
use crate::isa::flag::{APPROX, FTZ, FULL};
use crate::isa::{Alu, AluOp, Round, Ty};
use crate::regs::{Regs, for_lanes};

/// Returns the function of an approximate instruction.
pub(super) fn select(i: &Alu, approx: Approx) -> Option<AluFn> {
    if i.round != Round::None {
        return None;
    }
    match i.ty {
        Ty::F32 if i.op == AluOp::Div => quotient(i, approx),
        Ty::F32 if flags_within(i, APPROX | FTZ) && has(i, APPROX) => single(i, approx),
        Ty::F64 => double(i),
        _ => halves(i, approx),
    }
}

/// Compiles a function of one f32 for each mode; `$bound` gives the ISA's bound for an argument and an exact result.
macro_rules! modes {
    ($approx:expr, $value:expr, $bound:expr) => {
        match $approx {
            Approx::Rounded => {
                unary_lane(lane!(|i, a: f32| -> f32 { output(i, $value(f64::from(input(i, a))) as f32) }))
            }
            Approx::Perturbed => unary(|i, a: f32| {
                let a = input(i, a);
                let exact = $value(f64::from(a));
                let bound: f64 = $bound(f64::from(a), exact);
                output(i, perturbed(exact, bound, a.to_bits()))
            }),
        }
    };
}

/// Like [`modes`], for functions whose fast computation holds only for angles that are not large.
macro_rules! circular {
    ($approx:expr, $fast:expr, $any:expr) => {
        match $approx {
            Approx::Rounded => guarded(lane!(|i, a: f32, large: bool| -> f32 {
                let a = f64::from(input(i, a));
                output(i, if large { $any(a) } else { $fast(a) } as f32)
            })),
            Approx::Perturbed => guarded(lane!(|i, a: f32, large: bool| -> f32 {
                let a = input(i, a);
                let exact: f64 = if large { $any(f64::from(a)) } else { $fast(f64::from(a)) };
                output(i, perturbed(exact, circular_bound(f64::from(a)), a.to_bits()))
            })),
        }
    };
}

twice! {
    /// d = f(a, false), and f(a, true) where a is a large angle
    guarded, guarded_plain, guarded_fast, <>, f: Binary<f32, f32, bool>, (regs, i, mask) {
        let a = f32::load(regs, i.a);
        let mut d = collect!(f32, lane => f.apply(i, f32::at(a, lane), false));
        let large = collect!(bool, lane => elementary::is_large_angle(f64::from(f32::at(a, lane))));
        for_lanes(large & mask, |lane| d.0[lane] = f.apply(i, f32::at(a, lane), true).to_bits());
        f32::store(regs, i.d, &d, mask);
    }
}

fn single(i: &Alu, approx: Approx) -> Option<AluFn> {
    Some(match i.op {
        AluOp::Rcp => modes!(approx, reciprocal, |_, y| ulp(y)),
        AluOp::Sqrt => modes!(approx, f64::sqrt, |_, y: f64| y * exp2(-23.0)),
        AluOp::Rsqrt => modes!(approx, reciprocal_root, |_, y: f64| y * exp2(-22.9)),
        AluOp::Ex2 => modes!(approx, elementary::exp2, |_, y| 2.0 * ulp(y)),
        AluOp::Lg2 => modes!(approx, elementary::log2, |a: f64, y: f64| {
            let scale = if a > 0.5 && a < 2.0 { 1.0 } else { y.abs() };
            scale * exp2(-22.0)
        }),
        AluOp::Sin => circular!(approx, elementary::sin, f64::sin),
        AluOp::Cos => circular!(approx, elementary::cos, f64::cos),
        AluOp::Tanh if i.flags == APPROX => {
            modes!(approx, elementary::tanh, |_, y: f64| y.abs() * exp2(-11.0))
        }
        _ => return None,
    })
}

#[inline(always)]
fn reciprocal(a: f64) -> f64 {
    1.0 / a
}

#[inline(always)]
fn reciprocal_root(a: f64) -> f64 {
    1.0 / a.sqrt()
}

/// Returns the bound of `sin` and `cos`: none is given beyond 100 pi.
fn circular_bound(a: f64) -> f64 {
    match a.abs() / std::f64::consts::PI {
        turns if turns <= 2.0 => exp2(-20.5),
        turns if turns <= 100.0 => exp2(-14.7),
        _ => 0.0,
    }
}

fn exp2(x: f64) -> f64 {
    x.exp2()
}

/// Returns the unit in the last place of an f32 of this size.
fn ulp(x: f64) -> f64 {
    let power = f64::from_bits(x.to_bits() & 0x7ff0_0000_0000_0000);
    (power * exp2(-23.0)).max(exp2(-149.0))
}

/// Rounds to f32 with an error that depends on the arguments' bits; zero, infinity and NaN are exact.
fn perturbed(exact: f64, bound: f64, bits: u32) -> f32 {
    let d = moved(exact, bound, bits) as f32;
    let within = (f64::from(d) - exact).abs() <= bound;
    // The last rounding may step over the bound.
    if within { d } else { exact as f32 }
}

/// Adds an error that depends on the arguments' bits.
fn moved(exact: f64, bound: f64, bits: u32) -> f64 {
    if exact == 0.0 || !exact.is_finite() { exact } else { exact + bound * noise(bits) }
}

/// Returns a number in [-1, 1): a hash.
fn noise(bits: u32) -> f64 {
    let mut h = bits.wrapping_add(0x9e37_79b9).wrapping_mul(0x85eb_ca6b);
    h = (h ^ h >> 13).wrapping_mul(0xc2b2_ae35);
    f64::from((h ^ h >> 16) as i32) / exp2(31.0)
}

/// `div.approx` is a · (1 / b): where 1 / b is subnormal, it is taken as zero. `div.full` scales its operands.
fn quotient(i: &Alu, approx: Approx) -> Option<AluFn> {
    let perturb = approx == Approx::Perturbed;
    match i.flags & !FTZ {
        APPROX if perturb => Some(binary(|i, a: f32, b: f32| divide(i, a, b, true))),
        APPROX => Some(binary(|i, a: f32, b: f32| divide(i, a, b, false))),
        FULL if perturb => Some(binary(|i, a: f32, b: f32| divide(i, a, b, true))),
        FULL => Some(binary(|i, a: f32, b: f32| divide(i, a, b, false))),
        _ => None,
    }
}

#[inline(always)]
fn divide(i: &Alu, a: f32, b: f32, perturb: bool) -> f32 {
    let (a, b) = (input(i, a), input(i, b));
    let tiny_reciprocal = b.abs() > exp2(126.0) as f32 && b.is_finite();
    let exact = if has(i, APPROX) && tiny_reciprocal {
        f64::from(a) * (0.0 * f64::from(b))
    } else {
        f64::from(a) / f64::from(b)
    };
    let bits = a.to_bits() ^ b.to_bits().rotate_left(16);
    output(i, if perturb { perturbed(exact, 2.0 * ulp(exact), bits) } else { exact as f32 })
}

/// `rcp.approx.ftz.f64` and `rsqrt.approx.ftz.f64` work on the upper 32 bits; `rsqrt.approx.f64` is a full one.
fn double(i: &Alu) -> Option<AluFn> {
    match (i.op, i.flags) {
        (AluOp::Rsqrt, APPROX) => Some(unary(|_, a: f64| super::double::canonical(1.0 / a.sqrt()))),
        (AluOp::Rsqrt, flags) if flags == APPROX | FTZ => {
            Some(unary(|_, a: f64| upper(1.0 / upper_input(a).sqrt())))
        }
        (AluOp::Rcp, flags) if flags == APPROX | FTZ => Some(unary(|_, a: f64| upper(1.0 / upper_input(a)))),
        _ => None,
    }
}

/// Drops the lower 32 bits; a subnormal number is zero.
fn upper_input(a: f64) -> f64 {
    let kept = if a.is_nan() { a } else { f64::from_bits(a.to_bits() & !0xffff_ffff) };
    if kept.is_subnormal() { f64::from_bits(a.to_bits() & 1 << 63) } else { kept }
}

/// Rounds to 20 bits of mantissa; a subnormal result is zero, NaN has its lower 32 bits clear too.
fn upper(d: f64) -> f64 {
    let (bits, last) = (d.to_bits(), d.to_bits() >> 32 & 1);
    if bits & !(1 << 63) > f64::INFINITY.to_bits() {
        return f64::from_bits(0x7fff_ffff_0000_0000);
    }
    let rounded = if d.is_finite() { bits + 0x7fff_ffff + last } else { bits };
    let d = f64::from_bits(rounded & !0xffff_ffff);
    if d.is_subnormal() { f64::from_bits(bits & 1 << 63) } else { d }
}

/// `ex2` and `tanh` of f16 and bf16; `ex2` of bf16 always has `.ftz`.
fn halves(i: &Alu, approx: Approx) -> Option<AluFn> {
    let bf16 = matches!(i.ty, Ty::Bf16 | Ty::Bf16x2);
    let flags = if i.op == AluOp::Ex2 && bf16 { APPROX | FTZ } else { APPROX };
    if i.flags != flags {
        return None;
    }
    match (i.op, approx) {
        (AluOp::Ex2, Approx::Rounded) => by_format!(i.ty, F => unary_lane(lane!(|i, a: u32| -> u32 {
            pair!(i, [a], ex2_half::<F, false>)
        }))),
        (AluOp::Ex2, _) => by_format!(i.ty, F => unary(|i, a: u32| pair!(i, [a], ex2_half::<F, true>))),
        (AluOp::Tanh, Approx::Rounded) => by_format!(i.ty, F => unary_lane(lane!(|i, a: u32| -> u32 {
            pair!(i, [a], tanh_half::<F, false>)
        }))),
        (AluOp::Tanh, _) => by_format!(i.ty, F => unary(|i, a: u32| pair!(i, [a], tanh_half::<F, true>))),
        _ => None,
    }
}

/// Relative error 2^-9.9 (f16) or 2^-7 (bf16).
#[inline(always)]
fn ex2_half<F: Format, const PERTURB: bool>(i: &Alu, [a]: [u16; 1]) -> u16 {
    let a = flush::<F>(i, a);
    let exact = elementary::exp2(f64::from(F::value(a)));
    let bound = exact * exp2(if F::NORMAL > 1e-30 { -9.9 } else { -7.0 });
    flush::<F>(i, if PERTURB { perturbed_half::<F>(exact, bound, a) } else { F::round(exact) })
}

/// Absolute error 2^-10.987 (f16) or 2^-8 (bf16).
#[inline(always)]
fn tanh_half<F: Format, const PERTURB: bool>(_: &Alu, [a]: [u16; 1]) -> u16 {
    let exact = elementary::tanh(f64::from(F::value(a)));
    let bound = exp2(if F::NORMAL > 1e-30 { -10.987 } else { -8.0 });
    if PERTURB { perturbed_half::<F>(exact, bound, a) } else { F::round(exact) }
}

/// Like [`perturbed`], for a half format.
fn perturbed_half<F: Format>(exact: f64, bound: f64, bits: u16) -> u16 {
    let d = F::round(moved(exact, bound, u32::from(bits)));
    let within = (f64::from(F::value(d)) - exact).abs() <= bound;
    if within { d } else { F::round(exact) }
}

//! Exact rounding in each direction.
//!
//! An f64 holds more than twice the bits of an f32. A result is first computed as an f64 `s` and the sign of what is
//! missing, `e`. [`odd`] makes both one f64 by rounding to odd: the last bit says that something is missing, so that a
//! second rounding to fewer bits, in any direction, gives what one rounding of the exact value gives (Boldo and
//! Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
//!
//! All intermediate values of f32 operands lie far inside the range of f64, so neither the sums nor the remainders below
//! overflow or underflow.

use crate::isa::Round;

/// The NaN of f32.
pub(super) const NAN_F32: u32 = 0x7fff_ffff;
/// The NaN of f64.
pub(super) const NAN_F64: u64 = 0xfff8_0000_0000_0000;
/// The NaN of f16 and bf16.
pub(super) const NAN_HALF: u32 = 0x7fff;

/// Rounds to a format with `M` stored bits of mantissa and `E` of exponent; returns its bits. A NaN becomes the positive
/// one with all bits set.
#[inline(always)]
pub(super) fn round_to<const M: u32, const E: u32>(x: f64, round: Round) -> u32 {
    let bits = x.to_bits();
    let (negative, magnitude) = (bits >> 63 != 0, bits & !(1 << 63));
    let bias = (1i64 << (E - 1)) - 1;
    let exponent = ((magnitude >> 52) as i64 - 1023).max(-1023);
    let significand = if magnitude == 0 { 0 } else { magnitude & ((1 << 52) - 1) | 1 << 52 };
    // Below the smallest normal number the last bit stays where it is.
    let scale = exponent.max(1 - bias);
    let shift = (i64::from(52 - M) + scale - exponent).min(63) as u32;
    let (kept, rest, half) = (significand >> shift, significand & ((1u64 << shift) - 1), 1u64 << (shift - 1));
    let up = match round {
        Round::Zero => false,
        Round::Down => negative && rest != 0,
        Round::Up => !negative && rest != 0,
        Round::NearestAway => rest >= half,
        _ => rest > half || rest == half && kept & 1 != 0,
    };
    // A carry out of the mantissa raises the exponent, and turns the largest subnormal number into a normal one.
    let finite = (((scale + bias - 1) as u64) << M) + kept + u64::from(up);
    let infinity = ((1u64 << E) - 1) << M;
    let towards_zero = match round {
        Round::Zero => true,
        Round::Down => !negative,
        Round::Up => negative,
        _ => false,
    };
    let overflow = if towards_zero && x.is_finite() { infinity - 1 } else { infinity };
    let result = if finite >= infinity { overflow } else { finite } as u32;
    let sign = u32::from(negative) << (M + E);
    if x.is_nan() { (1 << (M + E)) - 1 } else { sign | result }
}

/// Returns `s + e` rounded to odd, for `e` smaller than half of the last bit of `s`; only the sign of `e` matters.
#[inline(always)]
pub(super) fn odd(s: f64, e: f64) -> f64 {
    let bits = s.to_bits();
    let missing = s.is_finite() && e.abs() > 0.0 && bits & 1 == 0;
    let outwards = (e > 0.0) == (s > 0.0);
    let neighbour = if outwards { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    f64::from_bits(if missing { neighbour } else { bits })
}

/// Returns a + b and what is missing from it; an exact zero of opposite operands has the sign that the direction gives.
#[inline(always)]
pub(super) fn sum(a: f64, b: f64, round: Round) -> (f64, f64) {
    let s = a + b;
    let t = s - a;
    let e = (a - (s - t)) + (b - t);
    let opposite = s == 0.0 && a.is_sign_negative() != b.is_sign_negative();
    (if opposite && round == Round::Down { -0.0 } else { s }, e)
}

/// Returns a / b and the sign of what is missing from it.
#[inline(always)]
pub(super) fn quotient(a: f64, b: f64) -> (f64, f64) {
    let q = a / b;
    let remainder = (-q).mul_add(b, a);
    (q, if b < 0.0 { -remainder } else { remainder })
}

/// Returns the square root and the sign of what is missing from it.
#[inline(always)]
pub(super) fn square_root(a: f64) -> (f64, f64) {
    let s = a.sqrt();
    (s, (-s).mul_add(s, a))
}

/// Rounds `s + e` to f32 downwards, upwards or towards zero: takes the nearest f32 and steps back if it lies beyond.
#[inline(always)]
pub(super) fn directed((s, e): (f64, f64), round: Round) -> f32 {
    let nearest = s as f32;
    let wide = f64::from(nearest);
    let above = wide > s || wide == s && e < 0.0;
    let below = wide < s || wide == s && e > 0.0;
    let bits = nearest.to_bits();
    let (smaller, larger) = (bits.wrapping_sub(1), bits.wrapping_add(1));
    let negative = bits >> 31 != 0;
    f32::from_bits(match round {
        Round::Down if above => {
            if negative {
                larger
            } else {
                smaller
            }
        }
        Round::Up if below => {
            if negative {
                smaller
            } else {
                larger
            }
        }
        Round::Zero if if negative { below } else { above } => smaller,
        _ => bits,
    })
}

/// Returns an f64 as an f32 rounded to odd.
#[inline(always)]
fn odd_f32(x: f64) -> f32 {
    let nearest = x as f32;
    let (bits, wide) = (nearest.to_bits(), f64::from(nearest));
    let neighbour = if wide.abs() < x.abs() { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    let missing = x.is_finite() && wide != x && bits & 1 == 0;
    f32::from_bits(if missing { neighbour } else { bits })
}

/// Rounds an f64 to the nearest f16.
#[inline(always)]
pub(super) fn nearest_f16(x: f64) -> u16 {
    f32_to_f16(odd_f32(x))
}

/// Rounds an f64 to the nearest bf16.
#[inline(always)]
pub(super) fn nearest_bf16(x: f64) -> u16 {
    f32_to_bf16(odd_f32(x))
}

/// Rounds an f32 to the nearest f16.
#[inline(always)]
pub(super) fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    // The last place of 0.5 is that of the subnormal f16: the sum rounds there.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000;
    let normal = magnitude.wrapping_add(0xfff + (magnitude >> 13 & 1)).wrapping_sub(112 << 23) >> 13;
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let result = sign | if magnitude >= 0x477f_f000 { 0x7c00 } else { finite };
    (if magnitude > 0x7f80_0000 { NAN_HALF } else { result }) as u16
}

/// Rounds an f32 to the nearest bf16.
#[inline(always)]
pub(super) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { NAN_HALF } else { rounded }) as u16
}

/// Returns an integer, given as sign and magnitude, rounded to odd.
#[inline(always)]
pub(super) fn integer(negative: bool, magnitude: u64) -> f64 {
    let excess = 11u32.saturating_sub(magnitude.leading_zeros());
    let (kept, lost) = (magnitude >> excess, magnitude & ((1 << excess) - 1));
    let x = ((kept | u64::from(lost != 0)) << excess) as f64;
    if negative { -x } else { x }
}

/// Returns the value of an f16.
#[inline(always)]
pub(super) fn f16_value(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    // The exponent is moved by a product, so that subnormal numbers come out right.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    let special = f32::from_bits(if magnitude > 0x7c00 { NAN_F32 } else { 0x7f80_0000 });
    let value = if magnitude >= 0x7c00 { special } else { scaled };
    let sign = if magnitude > 0x7c00 { 0 } else { u32::from(bits & 0x8000) << 16 };
    f32::from_bits(value.to_bits() | sign)
}

/// Returns the value of a bf16.
#[inline(always)]
pub(super) fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to an integer.
#[inline(always)]
pub(super) fn to_integer(x: f64, round: Round) -> f64 {
    match round {
        Round::IntNearest => x.round_ties_even(),
        Round::IntZero => x.trunc(),
        Round::IntDown => x.floor(),
        Round::IntUp => x.ceil(),
        _ => x,
    }
}

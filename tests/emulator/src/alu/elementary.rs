//! Elementary functions of f64 without branches, so that loops over lanes become vector code.
//!
//! Arguments are f32 values. The relative error is a few units in the last place of f64, so rounding to f32 is right but
//! for an argument in many millions, where the exact value lies that close to the middle of two f32.

use std::f64::consts::{FRAC_2_PI, FRAC_PI_2, LN_2, LOG2_E, SQRT_2};

/// ln(2)^k / k!
const EXP2: [f64; 13] = {
    let mut c = [1.0; 13];
    let mut k = 1;
    while k < c.len() {
        c[k] = c[k - 1] * LN_2 / k as f64;
        k += 1;
    }
    c
};
/// 1 / (k + 1)!
const EXP_M1: [f64; 14] = {
    let mut c = [1.0; 14];
    let mut k = 1;
    while k < c.len() {
        c[k] = c[k - 1] / (k + 1) as f64;
        k += 1;
    }
    c
};
/// 2 / (ln(2) (2k + 1))
const LOG2: [f64; 11] = {
    let mut c = [0.0; 11];
    let mut k = 0;
    while k < c.len() {
        c[k] = 2.0 / (LN_2 * (2 * k + 1) as f64);
        k += 1;
    }
    c
};
/// (-1)^k / (2k + 1)!
const SIN: [f64; 9] = {
    let mut c = [1.0; 9];
    let mut k = 1;
    while k < c.len() {
        c[k] = -c[k - 1] / (2 * k * (2 * k + 1)) as f64;
        k += 1;
    }
    c
};
/// (-1)^k / (2k)!
const COS: [f64; 10] = {
    let mut c = [1.0; 10];
    let mut k = 1;
    while k < c.len() {
        c[k] = -c[k - 1] / (2 * k * (2 * k - 1)) as f64;
        k += 1;
    }
    c
};
/// What the f64 nearest to pi / 2 lacks.
const FRAC_PI_2_REST: f64 = 6.123_233_995_736_766e-17;
/// What the f64 nearest to ln(2) lacks.
const LN_2_REST: f64 = 2.319_046_813_846_299_6e-17;
/// Adding it rounds to an integer, which then stands in the lower bits.
const ROUNDER: f64 = 1.5 * (1u64 << 52) as f64;
/// Below, the reduction of an angle is exact enough.
const LARGEST_ANGLE: f64 = 1e5;

#[inline(always)]
fn polynomial<const N: usize>(c: &[f64; N], x: f64) -> f64 {
    let mut y = c[N - 1];
    for k in (0..N - 1).rev() {
        y = y.mul_add(x, c[k]);
    }
    y
}

/// Returns the nearest integer, as a float and as (wrapped) bits.
#[inline(always)]
fn nearest(x: f64) -> (f64, u64) {
    let shifted = x + ROUNDER;
    (shifted - ROUNDER, shifted.to_bits().wrapping_sub(ROUNDER.to_bits()))
}

/// Returns 2^n for n from -1022 to 1023.
#[inline(always)]
fn power_of_two(n: u64) -> f64 {
    f64::from_bits(n.wrapping_add(1023) << 52)
}

/// Returns 2^x.
#[inline(always)]
pub(super) fn exp2(x: f64) -> f64 {
    // Past these limits every f32 is infinite or zero. NaN passes both.
    let limited = if x > 200.0 { 200.0 } else { x };
    let limited = if limited < -200.0 { -200.0 } else { limited };
    let (whole, n) = nearest(limited);
    let d = polynomial(&EXP2, limited - whole) * power_of_two(n);
    if x < -200.0 { 0.0 } else { d }
}

/// Returns the base-2 logarithm; of both zeros it is -infinity.
#[inline(always)]
pub(super) fn log2(x: f64) -> f64 {
    // x = m 2^e with m between 1/sqrt(2) and sqrt(2), so that there is no cancellation near 1.
    let bits = x.to_bits();
    let m = f64::from_bits(bits & ((1 << 52) - 1) | 1f64.to_bits());
    let large = m > SQRT_2;
    let m = if large { 0.5 * m } else { m };
    let e = (bits >> 52 & 0x7ff) as i32 - 1023 + i32::from(large);
    let z = (m - 1.0) / (m + 1.0);
    let y = z.mul_add(polynomial(&LOG2, z * z), f64::from(e));
    let special = if x == 0.0 { f64::NEG_INFINITY } else { f64::NAN };
    let special = if x == f64::INFINITY { x } else { special };
    if x > 0.0 && x < f64::INFINITY { y } else { special }
}

/// Returns whether [`sin`] and [`cos`] do not hold for an angle.
#[inline(always)]
pub(super) fn is_large_angle(x: f64) -> bool {
    x.abs() > LARGEST_ANGLE
}

/// Returns sine and cosine of the angle less a multiple of pi / 2, and that multiple.
#[inline(always)]
fn quadrant(x: f64) -> (f64, f64, u64) {
    let (whole, n) = nearest(x * FRAC_2_PI);
    let r = (-whole).mul_add(FRAC_PI_2_REST, (-whole).mul_add(FRAC_PI_2, x));
    let square = r * r;
    (r * polynomial(&SIN, square), polynomial(&COS, square), n)
}

/// Returns the sine of an angle that is not large.
#[inline(always)]
pub(super) fn sin(x: f64) -> f64 {
    let (sin, cos, n) = quadrant(x);
    let d = if n & 1 == 0 { sin } else { cos };
    let d = f64::from_bits(d.to_bits() ^ (n & 2) << 62);
    if x == 0.0 { x } else { d }
}

/// Returns the cosine of an angle that is not large.
#[inline(always)]
pub(super) fn cos(x: f64) -> f64 {
    let (sin, cos, n) = quadrant(x);
    let d = if n & 1 == 0 { cos } else { sin };
    f64::from_bits(d.to_bits() ^ (n.wrapping_add(1) & 2) << 62)
}

/// Returns the hyperbolic tangent: (e^2x - 1) / (e^2x + 1), from e^2x - 1 without cancellation.
#[inline(always)]
pub(super) fn tanh(x: f64) -> f64 {
    let y = 2.0 * x.abs();
    let y = if y > 80.0 { 80.0 } else { y };
    let (whole, n) = nearest(y * LOG2_E);
    let r = (-whole).mul_add(LN_2_REST, (-whole).mul_add(LN_2, y));
    let scale = power_of_two(n);
    let minus_one = scale.mul_add(r * polynomial(&EXP_M1, r), scale - 1.0);
    (minus_one / (minus_one + 2.0)).copysign(x)
}

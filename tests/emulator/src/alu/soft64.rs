//! f64 arithmetic in each direction of rounding, with 128-bit integers.
//!
//! Infinite, NaN and zero operands go to the CPU: such results are exact, except for the sign of a zero sum.

use super::double::canonical;
use crate::isa::Round;

/// The mantissa's top bit after [`normalised`]: two bits of headroom for a sum.
const TOP: u32 = 125;

/// A finite number: ± mantissa · 2^exponent.
#[derive(Clone, Copy)]
struct Number {
    negative: bool,
    mantissa: u128,
    exponent: i32,
}

/// Returns a + b.
pub(super) fn add(a: f64, b: f64, round: Round) -> f64 {
    if !a.is_finite() || !b.is_finite() {
        return canonical(a + b);
    }
    sum(number(a), number(b), round)
}

/// Returns a · b.
pub(super) fn multiply(a: f64, b: f64, round: Round) -> f64 {
    let d = a * b;
    if !a.is_finite() || !b.is_finite() || a == 0.0 || b == 0.0 {
        return canonical(d);
    }
    rounded(product(a, b), round)
}

/// Returns a · b + c, rounded once.
pub(super) fn fma(a: f64, b: f64, c: f64, round: Round) -> f64 {
    if !a.is_finite() || !b.is_finite() || !c.is_finite() {
        return canonical(a.mul_add(b, c));
    }
    sum(product(a, b), number(c), round)
}

/// Returns a / b.
pub(super) fn divide(a: f64, b: f64, round: Round) -> f64 {
    if !a.is_finite() || !b.is_finite() || a == 0.0 || b == 0.0 {
        return canonical(a / b);
    }
    let (a, b) = (normalised(number(a)), number(b));
    let (quotient, remainder) = (a.mantissa / b.mantissa, a.mantissa % b.mantissa);
    rounded(
        Number {
            negative: a.negative != b.negative,
            mantissa: quotient << 1 | u128::from(remainder != 0),
            exponent: a.exponent - b.exponent - 1,
        },
        round,
    )
}

/// Returns the square root.
pub(super) fn square_root(a: f64, round: Round) -> f64 {
    if !a.is_finite() || a <= 0.0 {
        return canonical(a.sqrt());
    }
    let mut a = normalised(number(a));
    if a.exponent % 2 != 0 {
        a = Number { mantissa: a.mantissa >> 1, exponent: a.exponent + 1, ..a }; // the lowest bits are zero
    }
    let root = a.mantissa.isqrt();
    let inexact = root * root != a.mantissa;
    rounded(
        Number { negative: false, mantissa: root << 1 | u128::from(inexact), exponent: a.exponent / 2 - 1 },
        round,
    )
}

/// Rounds an integer, given as sign and magnitude.
pub(super) fn from_integer(negative: bool, magnitude: u64, round: Round) -> f64 {
    if magnitude == 0 {
        return 0.0;
    }
    rounded(Number { negative, mantissa: u128::from(magnitude), exponent: 0 }, round)
}

fn number(x: f64) -> Number {
    let bits = x.to_bits();
    let (field, fraction) = ((bits >> 52 & 0x7ff) as i32, bits & ((1 << 52) - 1));
    let mantissa = if field == 0 { fraction } else { fraction | 1 << 52 };
    Number { negative: bits >> 63 != 0, mantissa: u128::from(mantissa), exponent: field.max(1) - 1075 }
}

fn product(a: f64, b: f64) -> Number {
    let (a, b) = (number(a), number(b));
    Number {
        negative: a.negative != b.negative,
        mantissa: a.mantissa * b.mantissa,
        exponent: a.exponent + b.exponent,
    }
}

/// Moves the mantissa's top bit to [`TOP`]; not for zero.
fn normalised(x: Number) -> Number {
    let shift = x.mantissa.leading_zeros().saturating_sub(127 - TOP);
    Number { mantissa: x.mantissa << shift, exponent: x.exponent - shift as i32, ..x }
}

fn sum(a: Number, b: Number, round: Round) -> f64 {
    match (a.mantissa, b.mantissa) {
        (0, 0) => return zero(if a.negative == b.negative { a.negative } else { round == Round::Down }),
        (0, _) => return rounded(b, round),
        (_, 0) => return rounded(a, round),
        _ => {}
    }
    let (a, b) = (normalised(a), normalised(b));
    let (large, small) = if (a.exponent, a.mantissa) >= (b.exponent, b.mantissa) { (a, b) } else { (b, a) };
    // Bits that leave the word stay as a last bit that is set; it lies far below the rounding.
    let shift = (large.exponent - small.exponent) as u32;
    let aligned = match shift {
        0..=127 => small.mantissa >> shift | u128::from(small.mantissa & ((1 << shift) - 1) != 0),
        _ => 1,
    };
    let same = large.negative == small.negative;
    let mantissa = if same { large.mantissa + aligned } else { large.mantissa - aligned };
    if mantissa == 0 {
        return zero(round == Round::Down);
    }
    rounded(Number { mantissa, ..large }, round)
}

fn zero(negative: bool) -> f64 {
    if negative { -0.0 } else { 0.0 }
}

/// Rounds to f64; not for zero. A mantissa that stands for more bits than it has ends in a one.
fn rounded(x: Number, round: Round) -> f64 {
    let x = normalised(x);
    // A sum may have carried into the bit above.
    let top = 127 - x.mantissa.leading_zeros() as i32;
    let last = (x.exponent + top - 52).max(-1074);
    let shift = (last - x.exponent) as u32;
    let (kept, rest, half) = match shift {
        0..=127 => (x.mantissa >> shift, x.mantissa & ((1 << shift) - 1), 1u128 << (shift.max(1) - 1)),
        _ => (0, 1, 2),
    };
    let up = match round {
        Round::Zero => false,
        Round::Down => x.negative && rest != 0,
        Round::Up => !x.negative && rest != 0,
        _ => rest > half || rest == half && kept & 1 != 0,
    };
    let finite = (((last + 1074) as u64) << 52) + kept as u64 + u64::from(up);
    let infinity = f64::INFINITY.to_bits();
    let to_infinity = match round {
        Round::Zero => false,
        Round::Down => x.negative,
        Round::Up => !x.negative,
        _ => true,
    };
    let overflow = if to_infinity { infinity } else { infinity - 1 };
    let magnitude = if finite >= infinity { overflow } else { finite };
    f64::from_bits(magnitude | u64::from(x.negative) << 63)
}

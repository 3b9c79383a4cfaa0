//! Floating-point results by search: the neighbours of the exact value in the result's format are found by bisection, and
//! one of them is chosen. Exact values are fixed-point numbers wide enough for the product of any two f64.

use std::cmp::Ordering;

use cuda_emulator::isa::{Round, Ty};

const LIMBS: usize = 70;
/// The weight of the lowest bit: below half of the last place of any product of f64.
const LOWEST: i32 = -2200;

/// A signed fixed-point number, in two's complement.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fixed([u64; LIMBS]);

impl Fixed {
    /// Returns ± mantissa · 2^exponent.
    pub fn new(negative: bool, mantissa: u128, exponent: i32) -> Self {
        let shift = (exponent - LOWEST) as usize;
        let mut limbs = [0u64; LIMBS];
        for (n, half) in [mantissa as u64, (mantissa >> 64) as u64].into_iter().enumerate() {
            let placed = u128::from(half) << (shift % 64);
            limbs[shift / 64 + n] |= placed as u64;
            limbs[shift / 64 + n + 1] |= (placed >> 64) as u64;
        }
        let magnitude = Fixed(limbs);
        if negative { magnitude.negated() } else { magnitude }
    }

    pub fn negated(self) -> Self {
        let mut limbs = self.0.map(|limb| !limb);
        for limb in &mut limbs {
            *limb = limb.wrapping_add(1);
            if *limb != 0 {
                break;
            }
        }
        Fixed(limbs)
    }

    pub fn plus(self, other: Self) -> Self {
        let mut limbs = [0; LIMBS];
        let mut carry = 0u128;
        for (n, limb) in limbs.iter_mut().enumerate() {
            carry += u128::from(self.0[n]) + u128::from(other.0[n]);
            *limb = carry as u64;
            carry >>= 64;
        }
        Fixed(limbs)
    }

    pub fn is_negative(self) -> bool {
        self.0[LIMBS - 1] >> 63 != 0
    }

    pub fn magnitude(self) -> Self {
        if self.is_negative() { self.negated() } else { self }
    }

    pub fn is_zero(self) -> bool {
        self.0 == [0; LIMBS]
    }

    /// Compares two numbers that are not negative.
    fn compare(&self, other: &Self) -> Ordering {
        self.0.iter().rev().cmp(other.0.iter().rev())
    }
}

/// A floating-point format: stored bits of mantissa, bits of exponent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub mantissa: u32,
    pub exponent: u32,
}

/// A value of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    Nan,
    Infinite {
        negative: bool,
    },
    /// ± mantissa · 2^exponent
    Finite {
        negative: bool,
        mantissa: u64,
        exponent: i32,
    },
}

impl Value {
    pub fn fixed(self) -> Fixed {
        match self {
            Value::Finite { negative, mantissa, exponent } => {
                Fixed::new(negative, u128::from(mantissa), exponent)
            }
            _ => panic!("not finite"),
        }
    }

    pub fn is_negative(self) -> bool {
        matches!(self, Value::Infinite { negative: true } | Value::Finite { negative: true, .. })
    }

    pub fn is_zero(self) -> bool {
        matches!(self, Value::Finite { mantissa: 0, .. })
    }
}

impl Format {
    pub fn of(ty: Ty) -> Format {
        let (mantissa, exponent) = match ty {
            Ty::F16 | Ty::F16x2 => (10, 5),
            Ty::Bf16 | Ty::Bf16x2 => (7, 8),
            Ty::Tf32 => (10, 8),
            Ty::F32 => (23, 8),
            Ty::F64 => (52, 11),
            _ => panic!("{ty:?} is no float"),
        };
        Format { mantissa, exponent }
    }

    pub fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.mantissa
    }

    pub fn sign(self) -> u64 {
        1 << (self.mantissa + self.exponent)
    }

    /// The NaN that the hardware makes.
    pub fn nan(self) -> u64 {
        if self.mantissa == 52 { 0xfff8_0000_0000_0000 } else { self.sign() - 1 }
    }

    pub fn one(self) -> u64 {
        ((1 << (self.exponent - 1)) - 1) << self.mantissa
    }

    pub fn is_subnormal(self, bits: u64) -> bool {
        let magnitude = bits & !self.sign();
        magnitude != 0 && magnitude >> self.mantissa == 0
    }

    /// Returns zero, with its sign, for a subnormal number.
    pub fn flush(self, bits: u64) -> u64 {
        if self.is_subnormal(bits) { bits & self.sign() } else { bits }
    }

    pub fn is_nan(self, bits: u64) -> bool {
        bits & !self.sign() > self.infinity()
    }

    pub fn value(self, bits: u64) -> Value {
        let (magnitude, negative) = (bits & !self.sign(), bits & self.sign() != 0);
        if magnitude > self.infinity() {
            return Value::Nan;
        }
        if magnitude == self.infinity() {
            return Value::Infinite { negative };
        }
        let (mantissa, exponent) = self.parts(magnitude);
        Value::Finite { negative, mantissa, exponent }
    }

    fn parts(self, magnitude: u64) -> (u64, i32) {
        let (field, fraction) = (magnitude >> self.mantissa, magnitude & ((1 << self.mantissa) - 1));
        let bias = (1i32 << (self.exponent - 1)) - 1 + self.mantissa as i32;
        if field == 0 { (fraction, 1 - bias) } else { (fraction | 1 << self.mantissa, field as i32 - bias) }
    }

    /// Rounds a number that is not zero; `compare` orders a candidate's magnitude mantissa · 2^exponent against it.
    pub fn search(self, negative: bool, round: Round, compare: impl Fn(u128, i32) -> Ordering) -> u64 {
        let at = |bits: u64| {
            let (mantissa, exponent) = self.parts(bits);
            compare(u128::from(mantissa), exponent)
        };
        let (mut below, mut above) = (0, self.infinity());
        while above - below > 1 {
            let middle = below + (above - below) / 2;
            if at(middle) == Ordering::Greater { above = middle } else { below = middle }
        }
        let sign = if negative { self.sign() } else { 0 };
        if below != 0 && at(below) == Ordering::Equal {
            return sign | below;
        }
        let (mantissa, exponent) = self.parts(below);
        let tie = compare(2 * u128::from(mantissa) + 1, exponent - 1);
        let upwards = match (round, tie) {
            (Round::Zero, _) => false,
            (Round::Down, _) => negative,
            (Round::Up, _) => !negative,
            (_, Ordering::Less) => true,
            (_, Ordering::Greater) => false,
            (Round::NearestAway, Ordering::Equal) => true,
            (_, Ordering::Equal) => below & 1 != 0,
        };
        sign | if upwards { above } else { below }
    }

    /// Rounds a fixed-point number that is not zero.
    pub fn round(self, x: Fixed, round: Round) -> u64 {
        let magnitude = x.magnitude();
        self.search(x.is_negative(), round, |mantissa, exponent| {
            Fixed::new(false, mantissa, exponent).compare(&magnitude)
        })
    }
}

/// Rounds a / b of finite numbers, both not zero.
pub fn quotient(format: Format, a: Value, b: Value, round: Round) -> u64 {
    let (Value::Finite { mantissa: divisor, exponent: scale, .. }, dividend) = (b, a.fixed().magnitude())
    else {
        panic!("not finite")
    };
    format.search(a.is_negative() != b.is_negative(), round, |mantissa, exponent| {
        Fixed::new(false, mantissa * u128::from(divisor), exponent + scale).compare(&dividend)
    })
}

/// Rounds the square root of a positive number.
pub fn square_root(format: Format, a: Value, round: Round) -> u64 {
    let square = a.fixed();
    format.search(false, round, |mantissa, exponent| {
        Fixed::new(false, mantissa * mantissa, 2 * exponent).compare(&square)
    })
}

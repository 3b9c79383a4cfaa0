//! f32, f64, f16 and bf16 arithmetic.

use cuda_emulator::isa::{Alu, AluOp, Round, Ty, flag};

use crate::exact::{Fixed, Format, Value, quotient, square_root};
use crate::harness::{Form, check_all, form};

const DIRECTIONS: [Round; 4] = [Round::Nearest, Round::Zero, Round::Down, Round::Up];

pub fn is_pair(ty: Ty) -> bool {
    matches!(ty, Ty::F16x2 | Ty::Bf16x2)
}

/// Applies a model of one value to both halves of a register.
pub fn halves(i: &Alu, operands: &[u64], model: fn(&Alu, &[u64]) -> u64) -> u64 {
    if !is_pair(i.ty) {
        return model(i, operands);
    }
    let half = |n: u32| -> u64 {
        let parts: Vec<u64> = operands.iter().map(|x| x >> (16 * n) & 0xffff).collect();
        model(i, &parts)
    };
    half(0) | half(1) << 16
}

/// a + b of exact numbers and their signs (which count if they are zero).
fn rounded_sum(format: Format, a: (bool, Fixed), b: (bool, Fixed), round: Round) -> u64 {
    let sum = a.1.plus(b.1);
    if !sum.is_zero() {
        return format.round(sum, round);
    }
    let negative = if a.0 == b.0 { a.0 } else { round == Round::Down };
    if negative { format.sign() } else { 0 }
}

fn fused(format: Format, a: Value, b: Value, c: Value, round: Round) -> u64 {
    use Value::{Finite, Infinite, Nan};
    let negative = a.is_negative() != b.is_negative();
    let infinity = |negative: bool| format.infinity() | if negative { format.sign() } else { 0 };
    match (a, b, c) {
        (Nan, _, _) | (_, Nan, _) | (_, _, Nan) => format.nan(),
        (Infinite { .. }, b, _) if b.is_zero() => format.nan(),
        (a, Infinite { .. }, _) if a.is_zero() => format.nan(),
        (Infinite { .. }, _, Infinite { negative: other })
        | (_, Infinite { .. }, Infinite { negative: other })
            if other != negative =>
        {
            format.nan()
        }
        (Infinite { .. }, _, _) | (_, Infinite { .. }, _) => infinity(negative),
        (_, _, Infinite { negative }) => infinity(negative),
        (Finite { mantissa: x, exponent: e, .. }, Finite { mantissa: y, exponent: f, .. }, c) => {
            let product = Fixed::new(negative, u128::from(x) * u128::from(y), e + f);
            rounded_sum(format, (negative, product), (c.is_negative(), c.fixed()), round)
        }
    }
}

fn product(format: Format, a: Value, b: Value, round: Round) -> u64 {
    // Adding a zero of the product's sign changes nothing, not even a zero's sign.
    let zero = Value::Finite { negative: a.is_negative() != b.is_negative(), mantissa: 0, exponent: 0 };
    fused(format, a, b, zero, round)
}

pub fn divided(format: Format, a: Value, b: Value, round: Round) -> u64 {
    let sign = if a.is_negative() != b.is_negative() { format.sign() } else { 0 };
    match (a, b) {
        (Value::Nan, _) | (_, Value::Nan) | (Value::Infinite { .. }, Value::Infinite { .. }) => format.nan(),
        (a, b) if a.is_zero() && b.is_zero() => format.nan(),
        (Value::Infinite { .. }, _) => sign | format.infinity(),
        (_, Value::Infinite { .. }) => sign,
        (a, _) if a.is_zero() => sign,
        (_, b) if b.is_zero() => sign | format.infinity(),
        _ => quotient(format, a, b, round),
    }
}

fn rooted(format: Format, a: Value, round: Round) -> u64 {
    match a {
        Value::Nan => format.nan(),
        a if a.is_zero() => {
            if a.is_negative() {
                format.sign()
            } else {
                0
            }
        }
        a if a.is_negative() => format.nan(),
        Value::Infinite { .. } => format.infinity(),
        a => square_root(format, a, round),
    }
}

/// `.ftz`, `.sat` and `.relu` of a result.
pub fn finished(i: &Alu, format: Format, bits: u64) -> u64 {
    let bits = if i.flags & flag::FTZ != 0 { format.flush(bits) } else { bits };
    let negative = bits & format.sign() != 0;
    if i.flags & flag::SAT != 0 {
        return match format.is_nan(bits) || negative {
            true => 0,
            false => bits.min(format.one()),
        };
    }
    if i.flags & flag::RELU != 0 && negative && !format.is_nan(bits) { 0 } else { bits }
}

fn arithmetic_of_one(i: &Alu, operands: &[u64]) -> u64 {
    let format = Format::of(i.ty);
    let round = if i.round == Round::None { Round::Nearest } else { i.round };
    let values: Vec<Value> = operands
        .iter()
        .map(|bits| format.value(if i.flags & flag::FTZ != 0 { format.flush(*bits) } else { *bits }))
        .collect();
    let one = format.value(format.one());
    let negated = |bits: u64| format.value(format.flush_if(i, bits) ^ format.sign());
    let bits = match i.op {
        AluOp::Add => fused(format, values[0], one, values[1], round),
        AluOp::Sub => fused(format, values[0], one, negated(operands[1]), round),
        AluOp::Mul => product(format, values[0], values[1], round),
        AluOp::Fma | AluOp::Mad => fused(format, values[0], values[1], values[2], round),
        AluOp::Div => divided(format, values[0], values[1], round),
        AluOp::Rcp => divided(format, one, values[0], round),
        _ => rooted(format, values[0], round),
    };
    finished(i, format, bits)
}

impl Format {
    fn flush_if(self, i: &Alu, bits: u64) -> u64 {
        if i.flags & flag::FTZ != 0 { self.flush(bits) } else { bits }
    }
}

fn arithmetic(i: &Alu, operands: &[u64]) -> Vec<u64> {
    vec![halves(i, operands, arithmetic_of_one)]
}

/// The ISA's pseudo-code of `min` and `max`.
fn extremum_of_one(i: &Alu, operands: &[u64]) -> u64 {
    let format = Format::of(i.ty);
    let [mut a, mut b] = [0, 1].map(|n| format.flush_if(i, operands[n]));
    let xorsign = i.flags & flag::XORSIGN != 0;
    let sign = (a ^ b) & format.sign();
    if xorsign {
        (a, b) = (a & !format.sign(), b & !format.sign());
    }
    let (a_nan, b_nan) = (format.is_nan(a), format.is_nan(b));
    if a_nan && b_nan || i.flags & flag::NAN != 0 && (a_nan || b_nan) {
        return format.nan();
    }
    // In order of size, -0 before +0.
    let key = |x: u64| if x & format.sign() != 0 { -((x & !format.sign()) as i128) - 1 } else { x as i128 };
    let first = match i.op {
        AluOp::Min => key(a) < key(b),
        _ => key(a) > key(b),
    };
    let d = if b_nan || !a_nan && first { a } else { b };
    if xorsign { d | sign } else { d }
}

fn extremum(i: &Alu, operands: &[u64]) -> Vec<u64> {
    vec![halves(i, operands, extremum_of_one)]
}

fn sign_of_one(i: &Alu, operands: &[u64]) -> u64 {
    let format = Format::of(i.ty);
    let a = format.flush_if(i, operands[0]);
    match i.op {
        AluOp::Abs => a & !format.sign(),
        AluOp::Neg => a ^ format.sign(),
        _ => operands[1] & !format.sign() | a & format.sign(),
    }
}

fn sign(i: &Alu, operands: &[u64]) -> Vec<u64> {
    vec![halves(i, operands, sign_of_one)]
}

/// All subsets of some flags.
pub fn subsets(flags: &[u16]) -> Vec<u16> {
    (0..1 << flags.len())
        .map(|set: u32| (0..flags.len()).filter(|n| set >> n & 1 != 0).map(|n| flags[n]).sum())
        .collect()
}

fn full_precision(ty: Ty) -> Vec<Form> {
    let flags = |ftz: &[u16]| if ty == Ty::F32 { subsets(ftz) } else { vec![0] };
    let mut forms = Vec::new();
    for flags in flags(&[flag::FTZ, flag::SAT]) {
        for op in [AluOp::Add, AluOp::Sub, AluOp::Mul] {
            forms.push(form(op, ty, flags, &[ty, ty], ty, arithmetic));
            forms.extend(DIRECTIONS.map(|round| form(op, ty, flags, &[ty, ty], ty, arithmetic).round(round)));
        }
        for op in [AluOp::Fma, AluOp::Mad] {
            forms.extend(
                DIRECTIONS.map(|round| form(op, ty, flags, &[ty, ty, ty], ty, arithmetic).round(round)),
            );
        }
    }
    for flags in flags(&[flag::FTZ]) {
        for round in DIRECTIONS {
            forms.push(form(AluOp::Div, ty, flags, &[ty, ty], ty, arithmetic).round(round));
            forms.push(form(AluOp::Rcp, ty, flags, &[ty], ty, arithmetic).round(round));
            forms.push(form(AluOp::Sqrt, ty, flags, &[ty], ty, arithmetic).round(round));
        }
        forms.push(form(AluOp::Abs, ty, flags, &[ty], ty, sign));
        forms.push(form(AluOp::Neg, ty, flags, &[ty], ty, sign));
    }
    for flags in flags(&[flag::FTZ, flag::NAN, flag::XORSIGN]) {
        forms.push(form(AluOp::Min, ty, flags, &[ty, ty], ty, extremum));
        forms.push(form(AluOp::Max, ty, flags, &[ty, ty], ty, extremum));
    }
    forms.push(form(AluOp::Copysign, ty, 0, &[ty, ty], ty, sign));
    forms
}

fn half_precision(ty: Ty) -> Vec<Form> {
    let f16 = matches!(ty, Ty::F16 | Ty::F16x2);
    let ftz = if f16 { vec![flag::FTZ] } else { vec![] };
    let mut forms = Vec::new();
    for flags in if f16 { subsets(&[flag::FTZ, flag::SAT]) } else { vec![0] } {
        for op in [AluOp::Add, AluOp::Sub, AluOp::Mul] {
            forms.push(form(op, ty, flags, &[ty, ty], ty, arithmetic));
            forms.push(form(op, ty, flags, &[ty, ty], ty, arithmetic).round(Round::Nearest));
        }
        forms.push(form(AluOp::Fma, ty, flags, &[ty, ty, ty], ty, arithmetic).round(Round::Nearest));
    }
    for flags in subsets(&ftz) {
        let relu = form(AluOp::Fma, ty, flags | flag::RELU, &[ty, ty, ty], ty, arithmetic);
        forms.push(relu.round(Round::Nearest));
        forms.push(form(AluOp::Abs, ty, flags, &[ty], ty, sign));
        forms.push(form(AluOp::Neg, ty, flags, &[ty], ty, sign));
        for more in subsets(&[flag::NAN, flag::XORSIGN]) {
            forms.push(form(AluOp::Min, ty, flags | more, &[ty, ty], ty, extremum));
            forms.push(form(AluOp::Max, ty, flags | more, &[ty, ty], ty, extremum));
        }
    }
    forms
}

pub fn forms() -> Vec<Form> {
    let mut forms = full_precision(Ty::F32);
    forms.extend(full_precision(Ty::F64));
    for ty in [Ty::F16, Ty::F16x2, Ty::Bf16, Ty::Bf16x2] {
        forms.extend(half_precision(ty));
    }
    forms
}

#[test]
fn f32_arithmetic_is_exactly_rounded() {
    check_all(&full_precision(Ty::F32));
}

#[test]
fn f64_arithmetic_is_exactly_rounded() {
    check_all(&full_precision(Ty::F64));
}

#[test]
fn half_arithmetic_is_exactly_rounded() {
    for ty in [Ty::F16, Ty::F16x2, Ty::Bf16, Ty::Bf16x2] {
        check_all(&half_precision(ty));
    }
}

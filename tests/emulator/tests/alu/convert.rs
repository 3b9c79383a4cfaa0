//! Conversions.

use cuda_emulator::isa::{Alu, AluOp, Round, Ty, flag};

use crate::exact::{Fixed, Format, Value};
use crate::floats::subsets;
use crate::harness::{Form, bits_of, check_all, form};
use crate::integer::{value, wrapped};

pub const INTEGERS: [Ty; 8] = [Ty::U8, Ty::S8, Ty::U16, Ty::S16, Ty::U32, Ty::S32, Ty::U64, Ty::S64];
const FLOATS: [Ty; 4] = [Ty::F16, Ty::Bf16, Ty::F32, Ty::F64];
const DIRECTIONS: [Round; 4] = [Round::Nearest, Round::Zero, Round::Down, Round::Up];
const TO_INTEGER: [Round; 4] = [Round::IntNearest, Round::IntZero, Round::IntDown, Round::IntUp];

fn limits(ty: Ty) -> (i128, i128) {
    let states = 1i128 << bits_of(ty);
    if ty.is_signed() { (-states / 2, states / 2 - 1) } else { (0, states - 1) }
}

fn integer_to_integer(i: &Alu, x: &[u64]) -> Vec<u64> {
    let (low, high) = limits(i.ty);
    let exact = value(i.from, x[0]);
    vec![wrapped(i.ty, if i.flags & flag::SAT != 0 { exact.clamp(low, high) } else { exact })]
}

/// Limits, canonical NaN and flushing of a float result.
fn finished(i: &Alu, ty: Ty, bits: u64) -> u64 {
    let format = Format::of(ty);
    let (nan, negative) = (format.is_nan(bits), bits & format.sign() != 0);
    let flushed = if ty == Ty::F32 && i.flags & flag::FTZ != 0 { format.flush(bits) } else { bits };
    match () {
        () if i.flags & flag::SAT != 0 => {
            if nan || negative {
                0
            } else {
                flushed.min(format.one())
            }
        }
        () if nan => format.nan(),
        () if i.flags & flag::RELU != 0 && negative => 0,
        () if i.flags & flag::SATFINITE != 0 && bits & !format.sign() == format.infinity() => bits - 1,
        () => flushed,
    }
}

fn integer_to_float(i: &Alu, x: &[u64]) -> Vec<u64> {
    let exact = value(i.from, x[0]);
    let bits = match exact {
        0 => 0,
        _ => Format::of(i.ty).round(Fixed::new(exact < 0, exact.unsigned_abs(), 0), i.round),
    };
    vec![finished(i, i.ty, bits)]
}

/// Returns a finite number rounded to an integer, if it is below 2^70 or so in size.
fn rounded(value: Value, round: Round) -> Option<i128> {
    let Value::Finite { negative, mantissa, exponent } = value else { panic!() };
    let sign = if negative { -1 } else { 1 };
    if exponent >= 0 {
        return (exponent < 70).then(|| sign * (i128::from(mantissa) << exponent));
    }
    // In units of the last place, two bits below the point at least.
    let places = (-exponent).min(70) as u32;
    let scaled = if -exponent > 70 { i128::from(mantissa != 0) } else { i128::from(mantissa) } * sign;
    let floor = scaled >> places;
    let rest = scaled - (floor << places);
    let half = 1i128 << (places - 1);
    Some(match round {
        Round::IntDown => floor,
        Round::IntUp => floor + i128::from(rest > 0),
        Round::IntZero => floor + i128::from(rest > 0 && negative),
        _ => floor + i128::from(rest > half || rest == half && floor & 1 != 0),
    })
}

fn source(i: &Alu, bits: u64) -> Value {
    let format = Format::of(i.from);
    format.value(if i.from == Ty::F32 && i.flags & flag::FTZ != 0 { format.flush(bits) } else { bits })
}

fn float_to_integer(i: &Alu, x: &[u64]) -> Vec<u64> {
    let (low, high) = limits(i.ty);
    let exact = match source(i, x[0]) {
        Value::Nan if i.from == Ty::F64 || bits_of(i.ty) == 64 => return vec![1 << (bits_of(i.ty) - 1)],
        Value::Nan => 0,
        Value::Infinite { negative } => {
            if negative {
                low
            } else {
                high
            }
        }
        finite => rounded(finite, i.round).unwrap_or(if finite.is_negative() { low } else { high }),
    };
    vec![wrapped(i.ty, exact.clamp(low, high))]
}

fn float_to_float_of(i: &Alu, ty: Ty, bits: u64) -> u64 {
    let format = Format::of(ty);
    let value = source(i, bits);
    let sign = if value.is_negative() { format.sign() } else { 0 };
    let to_integer = TO_INTEGER.contains(&i.round);
    let result = match value {
        Value::Nan => format.nan(),
        Value::Infinite { .. } => sign | format.infinity(),
        _ if value.is_zero() => sign,
        _ if to_integer => match rounded(value, i.round) {
            Some(0) => sign,
            Some(n) => format.round(Fixed::new(n < 0, n.unsigned_abs(), 0), Round::Nearest),
            None => format.round(value.fixed(), Round::Nearest),
        },
        _ => format.round(value.fixed(), i.round),
    };
    finished(i, ty, result)
}

fn float_to_float(i: &Alu, x: &[u64]) -> Vec<u64> {
    vec![match i.ty {
        // The lower 13 bits of the register are zero.
        Ty::Tf32 => match float_to_float_of(i, i.ty, x[0]) {
            nan if Format::of(Ty::Tf32).is_nan(nan) => 0x7fff_ffff,
            bits => bits << 13,
        },
        Ty::F16x2 => float_to_float_of(i, Ty::F16, x[0]) << 16 | float_to_float_of(i, Ty::F16, x[1]),
        Ty::Bf16x2 => float_to_float_of(i, Ty::Bf16, x[0]) << 16 | float_to_float_of(i, Ty::Bf16, x[1]),
        // Widening is a shift: the NaN is unspecified.
        Ty::F32 if i.from == Ty::Bf16 && i.flags & flag::SAT == 0 => {
            let bits = x[0] << 16;
            if Format::of(Ty::F32).is_nan(bits) { 0x7fff_ffff } else { finished(i, Ty::F32, bits) }
        }
        _ => float_to_float_of(i, i.ty, x[0]),
    }]
}

fn cvt(to: Ty, from: Ty, round: Round, flags: u16, model: crate::harness::Model) -> Form {
    let operands = if matches!(to, Ty::F16x2 | Ty::Bf16x2) { vec![from, from] } else { vec![from] };
    let mut form = form(AluOp::Cvt, to, flags, &operands, to, model).from(from).round(round);
    form.dirty = from != Ty::Bf16;
    form
}

/// Flags that are always possible between two types.
fn common_flags(to: Ty, from: Ty) -> Vec<u16> {
    let mut flags = Vec::new();
    if to != Ty::Bf16 {
        flags.push(flag::SAT);
    }
    if to == Ty::F32 || from == Ty::F32 {
        flags.push(flag::FTZ);
    }
    subsets(&flags)
}

fn integer_forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for (to, from) in INTEGERS.into_iter().flat_map(|to| INTEGERS.map(|from| (to, from))) {
        forms.push(cvt(to, from, Round::None, 0, integer_to_integer));
        let ((low, high), (from_low, from_high)) = (limits(to), limits(from));
        if low > from_low || high < from_high {
            forms.push(cvt(to, from, Round::None, flag::SAT, integer_to_integer));
        }
    }
    forms
}

fn mixed_forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for (float, integer) in FLOATS.into_iter().flat_map(|float| INTEGERS.map(|integer| (float, integer))) {
        for round in DIRECTIONS {
            let flags = common_flags(float, integer);
            forms.extend(flags.into_iter().map(|flags| cvt(float, integer, round, flags, integer_to_float)));
        }
        for round in TO_INTEGER {
            let flags = common_flags(integer, float);
            forms.extend(flags.into_iter().map(|flags| cvt(integer, float, round, flags, float_to_integer)));
        }
    }
    forms
}

/// Returns whether every value of one format is one of the other.
fn is_wider(to: Ty, from: Ty) -> bool {
    let (to, from) = (Format::of(to), Format::of(from));
    to != from && to.mantissa >= from.mantissa && to.exponent >= from.exponent
}

fn float_forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for (to, from) in FLOATS.into_iter().flat_map(|to| FLOATS.map(|from| (to, from))) {
        let rounds = match () {
            () if to == from => [&[Round::None], &TO_INTEGER[..]].concat(),
            () if is_wider(to, from) => vec![Round::None],
            () => DIRECTIONS.to_vec(),
        };
        for round in rounds {
            let flags = common_flags(to, from);
            forms.extend(flags.into_iter().map(|flags| cvt(to, from, round, flags, float_to_float)));
        }
    }
    for to in [Ty::F16, Ty::Bf16, Ty::F16x2, Ty::Bf16x2, Ty::Tf32] {
        let plain = matches!(to, Ty::F16 | Ty::Bf16);
        for flags in subsets(&[flag::RELU, flag::SATFINITE]).into_iter().filter(|flags| !plain || *flags != 0)
        {
            forms.push(cvt(to, Ty::F32, Round::Nearest, flags, float_to_float));
            forms.push(cvt(to, Ty::F32, Round::Zero, flags, float_to_float));
        }
    }
    for flags in [0, flag::SATFINITE] {
        forms.push(cvt(Ty::Tf32, Ty::F32, Round::NearestAway, flags, float_to_float));
    }
    forms
}

pub fn forms() -> Vec<Form> {
    [integer_forms(), mixed_forms(), float_forms()].concat()
}

#[test]
fn integers_are_extended_cut_off_and_saturated() {
    check_all(&integer_forms());
}

#[test]
fn integers_and_floats_are_rounded_and_limited() {
    check_all(&mixed_forms());
}

#[test]
fn floats_are_rounded_to_other_formats() {
    check_all(&float_forms());
}

//! `cvt`: which conversions exist, and the common ones as loops; the others are in `convert_any`.

use super::convert_any::{any, any_pair};
use super::double::canonical;
use super::lanes::{binary, binary_lane, lane, unary, unary_lane};
use super::rounding::{NAN_F32, bf16_value, f16_value, f32_to_bf16, f32_to_f16};
use super::single::{flush, input, output};
use super::{AluFn, flags_within, has};
use crate::isa::flag::{FTZ, RELU, SAT, SATFINITE};
use crate::isa::{Alu, Round, Ty};

/// Returns the function of a conversion.
pub(super) fn select(i: &Alu) -> Option<AluFn> {
    if !is_legal(i) {
        return None;
    }
    integers(i)
        .or_else(|| from_integer(i))
        .or_else(|| to_integer(i))
        .or_else(|| floats(i))
        .or_else(|| rest(i))
}

fn is_integer(ty: Ty) -> bool {
    matches!(ty, Ty::U8 | Ty::S8 | Ty::U16 | Ty::S16 | Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64)
}

fn is_scalar_float(ty: Ty) -> bool {
    matches!(ty, Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64)
}

fn is_direction(round: Round) -> bool {
    matches!(round, Round::Nearest | Round::Zero | Round::Down | Round::Up)
}

fn is_to_integer(round: Round) -> bool {
    matches!(round, Round::IntNearest | Round::IntZero | Round::IntDown | Round::IntUp)
}

/// Returns whether the ISA has the conversion.
fn is_legal(i: &Alu) -> bool {
    let (to, from) = (i.ty, i.from);
    let ftz = if to == Ty::F32 || from == Ty::F32 { FTZ } else { 0 };
    let sat = if to == Ty::Bf16 { 0 } else { SAT };
    match (is_integer(to), is_integer(from)) {
        (true, true) => {
            let possible = if can_overflow(to, from) { SAT } else { 0 };
            i.round == Round::None && flags_within(i, possible)
        }
        (false, true) => is_scalar_float(to) && is_direction(i.round) && flags_within(i, ftz | sat),
        (true, false) => is_scalar_float(from) && is_to_integer(i.round) && flags_within(i, ftz | SAT),
        (false, false) => is_legal_between_floats(i, ftz, sat),
    }
}

fn is_legal_between_floats(i: &Alu, ftz: u16, sat: u16) -> bool {
    let packed = flags_within(i, RELU | SATFINITE);
    let nearest_or_zero = matches!(i.round, Round::Nearest | Round::Zero);
    match (i.ty, i.from) {
        (Ty::F16x2 | Ty::Bf16x2, Ty::F32) => nearest_or_zero && packed,
        (Ty::Tf32, Ty::F32) if i.round == Round::NearestAway => flags_within(i, SATFINITE),
        (Ty::Tf32, Ty::F32) => nearest_or_zero && packed,
        (to, from) if !is_scalar_float(to) || !is_scalar_float(from) => false,
        (to, from) if to == from => {
            (i.round == Round::None || is_to_integer(i.round)) && flags_within(i, ftz | sat)
        }
        (Ty::F16 | Ty::Bf16, Ty::F32) if i.flags & (RELU | SATFINITE) != 0 => nearest_or_zero && packed,
        (Ty::F64, _) | (Ty::F32, Ty::F16 | Ty::Bf16) => i.round == Round::None && flags_within(i, ftz | sat),
        _ => is_direction(i.round) && flags_within(i, ftz | sat),
    }
}

/// Returns whether some value of one integer type is none of the other.
fn can_overflow(to: Ty, from: Ty) -> bool {
    match (to.is_signed(), from.is_signed()) {
        (false, true) => true,
        (true, false) => to.bytes() <= from.bytes(),
        _ => to.bytes() < from.bytes(),
    }
}

/// Integers of other widths, without saturation: the source is extended by its own sign, the result cut off.
fn integers(i: &Alu) -> Option<AluFn> {
    if i.flags != 0 || !is_integer(i.ty) || !is_integer(i.from) {
        return None;
    }
    if i.ty.is_wide() {
        return Some(match i.from {
            Ty::U8 => unary(|_, a: u8| u64::from(a)),
            Ty::S8 => unary(|_, a: i8| i64::from(a)),
            Ty::U16 => unary(|_, a: u16| u64::from(a)),
            Ty::S16 => unary(|_, a: i16| i64::from(a)),
            Ty::U32 => unary(|_, a: u32| u64::from(a)),
            Ty::S32 => unary(|_, a: i32| i64::from(a)),
            _ => unary(|_, a: u64| a),
        });
    }
    Some(match i.from {
        Ty::U8 => unary(|_, a: u8| u32::from(a)),
        Ty::S8 => unary(|i, a: i8| i32::from(a) as u32 & mask(i.ty)),
        Ty::U16 => unary(|i, a: u16| u32::from(a) & mask(i.ty)),
        Ty::S16 => unary(|i, a: i16| i32::from(a) as u32 & mask(i.ty)),
        Ty::U32 | Ty::S32 => unary(|i, a: u32| a & mask(i.ty)),
        _ => unary(|i, a: u64| a as u32 & mask(i.ty)),
    })
}

/// Returns the bits of a type of at most 32.
#[inline(always)]
fn mask(ty: Ty) -> u32 {
    u32::MAX >> (32 - 8 * ty.bytes())
}

fn from_integer(i: &Alu) -> Option<AluFn> {
    if i.flags != 0 {
        return None;
    }
    match (i.ty, i.from, i.round) {
        (Ty::F32, Ty::S32, Round::Nearest) => Some(unary(|_, a: i32| a as f32)),
        (Ty::F32, Ty::U32, Round::Nearest) => Some(unary(|_, a: u32| a as f32)),
        (Ty::F32, Ty::S64, Round::Nearest) => Some(unary(|_, a: i64| a as f32)),
        (Ty::F32, Ty::U64, Round::Nearest) => Some(unary(|_, a: u64| a as f32)),
        (Ty::F64, Ty::S32, _) => Some(unary(|_, a: i32| f64::from(a))),
        (Ty::F64, Ty::U32, _) => Some(unary(|_, a: u32| f64::from(a))),
        (Ty::F64, Ty::S64, Round::Nearest) => Some(unary(|_, a: i64| a as f64)),
        (Ty::F64, Ty::U64, Round::Nearest) => Some(unary(|_, a: u64| a as f64)),
        _ => None,
    }
}

/// f32 to 32 bits; `.sat` is no change, and a Rust cast limits to the type and makes NaN zero, as the ISA does here.
fn to_integer(i: &Alu) -> Option<AluFn> {
    if i.from != Ty::F32 || has(i, FTZ) {
        return None;
    }
    match (i.ty, i.round) {
        (Ty::S32, Round::IntNearest) => Some(unary(|_, a: f32| a.round_ties_even() as i32)),
        (Ty::S32, Round::IntZero) => Some(unary(|_, a: f32| a as i32)),
        (Ty::S32, Round::IntDown) => Some(unary(|_, a: f32| a.floor() as i32)),
        (Ty::S32, Round::IntUp) => Some(unary(|_, a: f32| a.ceil() as i32)),
        (Ty::U32, Round::IntNearest) => Some(unary(|_, a: f32| a.round_ties_even() as u32)),
        (Ty::U32, Round::IntZero) => Some(unary(|_, a: f32| a as u32)),
        (Ty::U32, Round::IntDown) => Some(unary(|_, a: f32| a.floor() as u32)),
        (Ty::U32, Round::IntUp) => Some(unary(|_, a: f32| a.ceil() as u32)),
        _ => None,
    }
}

fn floats(i: &Alu) -> Option<AluFn> {
    match (i.ty, i.from, i.round) {
        (Ty::F32, Ty::F32, Round::None) => Some(unary(|i, a: f32| output(i, input(i, a)))),
        (Ty::F32, Ty::F32, Round::IntNearest) => {
            Some(unary(|i, a: f32| output(i, input(i, a).round_ties_even())))
        }
        (Ty::F32, Ty::F32, Round::IntZero) => Some(unary(|i, a: f32| output(i, input(i, a).trunc()))),
        (Ty::F32, Ty::F32, Round::IntDown) => Some(unary(|i, a: f32| output(i, input(i, a).floor()))),
        (Ty::F32, Ty::F32, Round::IntUp) => Some(unary(|i, a: f32| output(i, input(i, a).ceil()))),
        (Ty::F64, Ty::F32, _) if i.flags == 0 => Some(unary(|_, a: f32| canonical(f64::from(a)))),
        (Ty::F32, Ty::F64, Round::Nearest) => Some(unary(|i, a: f64| output(i, a as f32))),
        (Ty::F32, Ty::F16, _) => Some(unary_lane(lane!(|i, a: u16| -> f32 { output(i, f16_value(a)) }))),
        (Ty::F32, Ty::Bf16, _) => Some(unary(|i, a: u16| output(i, bf16_value(a)))),
        (Ty::Bf16, Ty::F32, Round::Nearest) if flags_within(i, RELU | FTZ) => {
            Some(unary_lane(lane!(|i, a: f32| -> u16 { to_bf16(i, a) })))
        }
        (Ty::Bf16x2, Ty::F32, Round::Nearest) if flags_within(i, RELU) => {
            Some(binary_lane(lane!(|i, a: f32, b: f32| -> u32 {
                u32::from(to_bf16(i, a)) << 16 | u32::from(to_bf16(i, b))
            })))
        }
        (Ty::F16, Ty::F32, Round::Nearest) if flags_within(i, RELU | FTZ) => {
            Some(unary_lane(lane!(|i, a: f32| -> u16 { to_f16(i, a) })))
        }
        (Ty::F16x2, Ty::F32, Round::Nearest) if flags_within(i, RELU) => {
            Some(binary_lane(lane!(|i, a: f32, b: f32| -> u32 {
                u32::from(to_f16(i, a)) << 16 | u32::from(to_f16(i, b))
            })))
        }
        (Ty::Tf32, Ty::F32, Round::NearestAway) if i.flags == 0 => Some(unary(|_, a: f32| to_tf32_away(a))),
        _ => None,
    }
}

/// Returns an operand with `.ftz` and `.relu` applied; NaN passes.
#[inline(always)]
fn relu(i: &Alu, a: f32) -> f32 {
    let a = if has(i, FTZ) { flush(a) } else { a };
    if has(i, RELU) && a <= 0.0 { 0.0 } else { a }
}

#[inline(always)]
fn to_bf16(i: &Alu, a: f32) -> u16 {
    f32_to_bf16(relu(i, a))
}

#[inline(always)]
fn to_f16(i: &Alu, a: f32) -> u16 {
    f32_to_f16(relu(i, a))
}

/// Half of the last place added to the magnitude rounds ties away; the lower 13 bits go.
#[inline(always)]
fn to_tf32_away(a: f32) -> u32 {
    let bits = a.to_bits();
    let rounded = bits.wrapping_add(0x1000) & !0x1fff;
    match a {
        a if a.is_nan() => NAN_F32,
        a if a.is_infinite() => bits,
        _ => rounded,
    }
}

/// The remaining forms, by files of operand and result.
fn rest(i: &Alu) -> Option<AluFn> {
    if matches!(i.ty, Ty::F16x2 | Ty::Bf16x2) {
        return Some(binary(any_pair));
    }
    Some(match (i.ty.is_wide(), i.from.is_wide()) {
        (false, false) => unary(|i, a: u32| any(i, u64::from(a)) as u32),
        (false, true) => unary(|i, a: u64| any(i, a) as u32),
        (true, false) => unary(|i, a: u32| any(i, u64::from(a))),
        (true, true) => unary(|i, a: u64| any(i, a)),
    })
}

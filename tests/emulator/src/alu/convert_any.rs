//! Any conversion of one value, as the instruction says: for the forms that have no loop of their own.

use super::has;
use super::rounding::{bf16_value, f16_value, integer, round_to, to_integer};
use super::single::flush;
use super::{double::canonical, soft64};
use crate::isa::flag::{FTZ, RELU, SAT, SATFINITE};
use crate::isa::{Alu, Ty};

/// Converts the bits of a value to those of another, zero-extended.
pub(super) fn any(i: &Alu, bits: u64) -> u64 {
    match (i.from.is_float(), i.ty.is_float()) {
        (true, true) => float_to_float(i, i.ty, float(i, bits)),
        (true, false) => float_to_integer(i, float(i, bits)),
        (false, true) => integer_to_float(i, integer_value(i.from, bits)),
        (false, false) => integer_to_integer(i, integer_value(i.from, bits)),
    }
}

/// Converts two f32: a into the upper half, b into the lower.
pub(super) fn any_pair(i: &Alu, a: f32, b: f32) -> u32 {
    let half = if i.ty == Ty::F16x2 { Ty::F16 } else { Ty::Bf16 };
    let [upper, lower] = [a, b].map(|x| float_to_float(i, half, f64::from(x)) as u32);
    upper << 16 | lower
}

/// Returns the largest and smallest values of an integer type.
fn limits(ty: Ty) -> (i128, i128) {
    let width = 8 * ty.bytes();
    if ty.is_signed() { (-(1 << (width - 1)), (1 << (width - 1)) - 1) } else { (0, (1 << width) - 1) }
}

/// Returns the bits of an integer in a type's width.
fn cut(ty: Ty, value: i128) -> u64 {
    (value as u128 & ((1 << (8 * ty.bytes())) - 1)) as u64
}

fn integer_value(ty: Ty, bits: u64) -> i128 {
    let unused = 128 - 8 * ty.bytes();
    if ty.is_signed() {
        i128::from(bits) << unused >> unused
    } else {
        (u128::from(bits) << unused >> unused) as i128
    }
}

fn integer_to_integer(i: &Alu, value: i128) -> u64 {
    let (smallest, largest) = limits(i.ty);
    cut(i.ty, if has(i, SAT) { value.clamp(smallest, largest) } else { value })
}

fn integer_to_float(i: &Alu, value: i128) -> u64 {
    let (negative, magnitude) = (value < 0, value.unsigned_abs() as u64);
    if i.ty == Ty::F64 && !has(i, SAT) {
        return soft64::from_integer(negative, magnitude, i.round).to_bits();
    }
    float_to_float(i, i.ty, integer(negative, magnitude))
}

/// Returns the value of a float; of an f32 flushed with `.ftz`.
fn float(i: &Alu, bits: u64) -> f64 {
    match i.from {
        Ty::F16 => f64::from(f16_value(bits as u16)),
        Ty::Bf16 => f64::from(bf16_value(bits as u16)),
        Ty::F32 if has(i, FTZ) => f64::from(flush(f32::from_bits(bits as u32))),
        Ty::F32 => f64::from(f32::from_bits(bits as u32)),
        _ => f64::from_bits(bits),
    }
}

/// Limits to the type. NaN is zero, but the upper bit alone where f64 or 64-bit integers take part.
fn float_to_integer(i: &Alu, x: f64) -> u64 {
    if x.is_nan() {
        let wide = i.from == Ty::F64 || i.ty.is_wide();
        return if wide { 1 << (8 * i.ty.bytes() - 1) } else { 0 };
    }
    let (smallest, largest) = limits(i.ty);
    cut(i.ty, (to_integer(x, i.round) as i128).clamp(smallest, largest))
}

fn float_to_float(i: &Alu, to: Ty, x: f64) -> u64 {
    let x = to_integer(x, i.round);
    let x = match () {
        () if has(i, SAT) => {
            if x > 0.0 {
                x.min(1.0)
            } else {
                0.0
            }
        }
        () if has(i, RELU) && x <= 0.0 => 0.0,
        () => x,
    };
    let (bits, infinity) = match to {
        Ty::F16 => (round_to::<10, 5>(x, i.round), 0x7c00),
        Ty::Bf16 => (round_to::<7, 8>(x, i.round), 0x7f80),
        Ty::Tf32 => (round_to::<10, 8>(x, i.round) << 13, 0x7f80_0000),
        Ty::F32 => (round_to::<23, 8>(x, i.round), 0x7f80_0000),
        _ => return canonical(x).to_bits(),
    };
    u64::from(finished(i, to, x, bits, infinity))
}

/// Applies `.satfinite` and, for an f32, `.ftz` to a rounded value.
fn finished(i: &Alu, to: Ty, x: f64, bits: u32, infinity: u32) -> u32 {
    let sign_bits = if matches!(to, Ty::F16 | Ty::Bf16) { 0x8000 } else { 1 << 31 };
    if x.is_nan() {
        return sign_bits - 1;
    }
    if has(i, SATFINITE) && bits & !sign_bits == infinity {
        let last = if to == Ty::Tf32 { 1 << 13 } else { 1 };
        return bits - last;
    }
    if to == Ty::F32 && has(i, FTZ) { flush(f32::from_bits(bits)).to_bits() } else { bits }
}

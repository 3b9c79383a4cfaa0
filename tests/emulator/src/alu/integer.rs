//! Integer arithmetic without carries: add, sub, mul, mad, 24-bit products, div, rem, min, max, abs, neg, sad.

use super::lanes::{binary, by_type, ternary, unary};
use super::{AluFn, flags_within};
use crate::isa::flag::{HI, RELU, SAT, WIDE};
use crate::isa::{Alu, AluOp, Round, Ty};

/// Returns the function of an integer instruction.
pub(super) fn select(i: &Alu) -> Option<AluFn> {
    if i.round != Round::None {
        return None;
    }
    match i.op {
        AluOp::Add | AluOp::Sub if i.flags == SAT => saturating(i),
        AluOp::Mul | AluOp::Mad if flags_within(i, HI | WIDE | SAT) => product(i),
        AluOp::Mul24 | AluOp::Mad24 => product24(i),
        AluOp::Min | AluOp::Max if i.flags == RELU => at_least_zero(i),
        _ if i.flags != 0 => None,
        AluOp::Add | AluOp::Sub | AluOp::Neg => sum(i),
        AluOp::Div | AluOp::Rem => quotient(i),
        AluOp::Min | AluOp::Max | AluOp::Abs | AluOp::Sad => ordered(i),
        _ => None,
    }
}

fn sum(i: &Alu) -> Option<AluFn> {
    match i.op {
        AluOp::Add => by_type!(i.ty, T in [U16 | S16 = u16, U32 | S32 = u32, U64 | S64 = u64]
            => binary(|_, a: T, b: T| a.wrapping_add(b))),
        AluOp::Sub => by_type!(i.ty, T in [U16 | S16 = u16, U32 | S32 = u32, U64 | S64 = u64]
            => binary(|_, a: T, b: T| a.wrapping_sub(b))),
        _ => by_type!(i.ty, T in [S16 = u16, S32 = u32, S64 = u64] => unary(|_, a: T| a.wrapping_neg())),
    }
}

fn saturating(i: &Alu) -> Option<AluFn> {
    match (i.op, i.ty) {
        (AluOp::Add, Ty::S32) => Some(binary(|_, a: i32, b: i32| a.saturating_add(b))),
        (AluOp::Sub, Ty::S32) => Some(binary(|_, a: i32, b: i32| a.saturating_sub(b))),
        _ => None,
    }
}

/// `mul` and `mad`: low half, high half, or all of the product.
fn product(i: &Alu) -> Option<AluFn> {
    match (i.op, i.flags) {
        (AluOp::Mul, 0) => by_type!(i.ty, T in [U16 | S16 = u16, U32 | S32 = u32, U64 | S64 = u64]
            => binary(|_, a: T, b: T| a.wrapping_mul(b))),
        (AluOp::Mad, 0) => by_type!(i.ty, T in [U16 | S16 = u16, U32 | S32 = u32, U64 | S64 = u64]
            => ternary(|_, a: T, b: T, c: T| a.wrapping_mul(b).wrapping_add(c))),
        (AluOp::Mul, HI) => high(i.ty),
        (AluOp::Mad, HI) => high_sum(i.ty),
        (AluOp::Mad, flags) if flags == HI | SAT && i.ty == Ty::S32 => {
            Some(ternary(|_, a: i32, b: i32, c: i32| high_s32(a, b).saturating_add(c)))
        }
        (AluOp::Mul, WIDE) => wide(i.ty),
        (AluOp::Mad, WIDE) => wide_sum(i.ty),
        _ => None,
    }
}

#[inline(always)]
fn high_s32(a: i32, b: i32) -> i32 {
    ((i64::from(a) * i64::from(b)) >> 32) as i32
}

fn high(ty: Ty) -> Option<AluFn> {
    match ty {
        Ty::U16 => Some(binary(|_, a: u16, b: u16| ((u32::from(a) * u32::from(b)) >> 16) as u16)),
        Ty::S16 => Some(binary(|_, a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16)),
        Ty::U32 => Some(binary(|_, a: u32, b: u32| ((u64::from(a) * u64::from(b)) >> 32) as u32)),
        Ty::S32 => Some(binary(|_, a: i32, b: i32| high_s32(a, b))),
        Ty::U64 => Some(binary(|_, a: u64, b: u64| ((u128::from(a) * u128::from(b)) >> 64) as u64)),
        Ty::S64 => Some(binary(|_, a: i64, b: i64| ((i128::from(a) * i128::from(b)) >> 64) as i64)),
        _ => None,
    }
}

fn high_sum(ty: Ty) -> Option<AluFn> {
    match ty {
        Ty::U16 => Some(ternary(|_, a: u16, b: u16, c: u16| {
            c.wrapping_add(((u32::from(a) * u32::from(b)) >> 16) as u16)
        })),
        Ty::S16 => Some(ternary(|_, a: i16, b: i16, c: i16| {
            c.wrapping_add(((i32::from(a) * i32::from(b)) >> 16) as i16)
        })),
        Ty::U32 => Some(ternary(|_, a: u32, b: u32, c: u32| {
            c.wrapping_add(((u64::from(a) * u64::from(b)) >> 32) as u32)
        })),
        Ty::S32 => Some(ternary(|_, a: i32, b: i32, c: i32| c.wrapping_add(high_s32(a, b)))),
        Ty::U64 => Some(ternary(|_, a: u64, b: u64, c: u64| {
            c.wrapping_add(((u128::from(a) * u128::from(b)) >> 64) as u64)
        })),
        Ty::S64 => Some(ternary(|_, a: i64, b: i64, c: i64| {
            c.wrapping_add(((i128::from(a) * i128::from(b)) >> 64) as i64)
        })),
        _ => None,
    }
}

fn wide(ty: Ty) -> Option<AluFn> {
    match ty {
        Ty::U16 => Some(binary(|_, a: u16, b: u16| u32::from(a) * u32::from(b))),
        Ty::S16 => Some(binary(|_, a: i16, b: i16| i32::from(a) * i32::from(b))),
        Ty::U32 => Some(binary(|_, a: u32, b: u32| u64::from(a) * u64::from(b))),
        Ty::S32 => Some(binary(|_, a: i32, b: i32| i64::from(a) * i64::from(b))),
        _ => None,
    }
}

fn wide_sum(ty: Ty) -> Option<AluFn> {
    match ty {
        Ty::U16 => Some(ternary(|_, a: u16, b: u16, c: u32| c.wrapping_add(u32::from(a) * u32::from(b)))),
        Ty::S16 => Some(ternary(|_, a: i16, b: i16, c: i32| c.wrapping_add(i32::from(a) * i32::from(b)))),
        Ty::U32 => Some(ternary(|_, a: u32, b: u32, c: u64| c.wrapping_add(u64::from(a) * u64::from(b)))),
        Ty::S32 => Some(ternary(|_, a: i32, b: i32, c: i64| c.wrapping_add(i64::from(a) * i64::from(b)))),
        _ => None,
    }
}

/// Products of 24-bit integers: bits 31 to 0 of the 48, or 47 to 16 with `.hi`.
fn product24(i: &Alu) -> Option<AluFn> {
    match (i.op, i.ty, i.flags) {
        (AluOp::Mul24, Ty::U32, 0 | HI) => Some(binary(|i, a: u32, b: u32| product24_u32(i, a, b))),
        (AluOp::Mul24, Ty::S32, 0 | HI) => Some(binary(|i, a: i32, b: i32| product24_s32(i, a, b))),
        (AluOp::Mad24, Ty::U32, 0 | HI) => {
            Some(ternary(|i, a: u32, b: u32, c: u32| product24_u32(i, a, b).wrapping_add(c)))
        }
        (AluOp::Mad24, Ty::S32, 0 | HI) => {
            Some(ternary(|i, a: i32, b: i32, c: i32| product24_s32(i, a, b).wrapping_add(c)))
        }
        (AluOp::Mad24, Ty::S32, flags) if flags == HI | SAT => {
            Some(ternary(|i, a: i32, b: i32, c: i32| product24_s32(i, a, b).saturating_add(c)))
        }
        _ => None,
    }
}

#[inline(always)]
fn product24_u32(i: &Alu, a: u32, b: u32) -> u32 {
    let product = u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff);
    (if i.flags & HI != 0 { product >> 16 } else { product }) as u32
}

#[inline(always)]
fn product24_s32(i: &Alu, a: i32, b: i32) -> i32 {
    let product = i64::from(a << 8 >> 8) * i64::from(b << 8 >> 8);
    (if i.flags & HI != 0 { product >> 16 } else { product }) as i32
}

/// Quotients. The ISA leaves a division by zero open; the devices' code gives all ones, for the remainder too.
fn quotient(i: &Alu) -> Option<AluFn> {
    match i.op {
        AluOp::Div => by_type!(i.ty, T in [U16 = u16, S16 = i16, U32 = u32, S32 = i32, U64 = u64, S64 = i64]
            => binary(|_, a: T, b: T| if b == 0 { !0 } else { a.wrapping_div(b) })),
        _ => by_type!(i.ty, T in [U16 = u16, S16 = i16, U32 = u32, S32 = i32, U64 = u64, S64 = i64]
            => binary(|_, a: T, b: T| if b == 0 { !0 } else { a.wrapping_rem(b) })),
    }
}

fn ordered(i: &Alu) -> Option<AluFn> {
    match i.op {
        AluOp::Min => by_type!(i.ty, T in [U16 = u16, S16 = i16, U32 = u32, S32 = i32, U64 = u64, S64 = i64]
            => binary(|_, a: T, b: T| a.min(b))),
        AluOp::Max => by_type!(i.ty, T in [U16 = u16, S16 = i16, U32 = u32, S32 = i32, U64 = u64, S64 = i64]
            => binary(|_, a: T, b: T| a.max(b))),
        AluOp::Abs => {
            by_type!(i.ty, T in [S16 = i16, S32 = i32, S64 = i64] => unary(|_, a: T| a.wrapping_abs()))
        }
        _ => by_type!(i.ty, T in [U16 = u16, S16 = i16, U32 = u32, S32 = i32, U64 = u64, S64 = i64]
        => ternary(|_, a: T, b: T, c: T| {
            c.wrapping_add(if a < b { b.wrapping_sub(a) } else { a.wrapping_sub(b) })
        })),
    }
}

/// `min.relu` and `max.relu`: negative results become zero.
fn at_least_zero(i: &Alu) -> Option<AluFn> {
    match (i.op, i.ty) {
        (AluOp::Min, Ty::S32) => Some(binary(|_, a: i32, b: i32| a.min(b).max(0))),
        (AluOp::Max, Ty::S32) => Some(binary(|_, a: i32, b: i32| a.max(b).max(0))),
        _ => None,
    }
}

//! Integer arithmetic that reads or writes the carry flag: `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`.
//!
//! After a subtraction the flag is the borrow: set if the true difference is negative.

use super::lanes::{by_type, carrying, carrying_product};
use super::{AluFn, flags_within, has};
use crate::isa::flag::{CARRY_IN, CARRY_OUT, HI};
use crate::isa::{Alu, AluOp, Round, Ty};

/// Returns the function of an instruction with carry.
pub(super) fn select(i: &Alu) -> Option<AluFn> {
    if i.round != Round::None || !flags_within(i, CARRY_IN | CARRY_OUT | HI) || i.flags & !HI == 0 {
        return None;
    }
    match i.op {
        AluOp::Add if !has(i, HI) => by_type!(i.ty, T in [U32 | S32 = u32, U64 | S64 = u64]
            => carrying(|_, a: T, b: T, carry| a.carrying_sum(b, carry))),
        AluOp::Sub if !has(i, HI) => by_type!(i.ty, T in [U32 | S32 = u32, U64 | S64 = u64]
        => carrying(|_, a: T, b: T, borrow| {
            let (d, first) = a.overflowing_sub(b);
            let (d, second) = d.overflowing_sub(T::from(borrow));
            (d, first | second)
        })),
        AluOp::Mad if has(i, HI) => high(i.ty),
        AluOp::Mad => by_type!(i.ty, T in [U32 | S32 = u32, U64 | S64 = u64]
            => carrying_product(|_, a: T, b: T, c: T, carry| a.wrapping_mul(b).carrying_sum(c, carry))),
        _ => None,
    }
}

fn high(ty: Ty) -> Option<AluFn> {
    match ty {
        Ty::U32 => Some(carrying_product(|_, a: u32, b: u32, c: u32, carry| {
            (((u64::from(a) * u64::from(b)) >> 32) as u32).carrying_sum(c, carry)
        })),
        Ty::S32 => Some(carrying_product(|_, a: u32, b: u32, c: u32, carry| {
            (((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32).carrying_sum(c, carry)
        })),
        Ty::U64 => Some(carrying_product(|_, a: u64, b: u64, c: u64, carry| {
            (((u128::from(a) * u128::from(b)) >> 64) as u64).carrying_sum(c, carry)
        })),
        Ty::S64 => Some(carrying_product(|_, a: u64, b: u64, c: u64, carry| {
            (((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64).carrying_sum(c, carry)
        })),
        _ => None,
    }
}

/// Addition with a carry in and out.
trait CarryingSum: Sized {
    fn carrying_sum(self, b: Self, carry: bool) -> (Self, bool);
}

impl CarryingSum for u32 {
    #[inline(always)]
    fn carrying_sum(self, b: u32, carry: bool) -> (u32, bool) {
        let sum = u64::from(self) + u64::from(b) + u64::from(carry);
        (sum as u32, sum >> 32 != 0)
    }
}

impl CarryingSum for u64 {
    #[inline(always)]
    fn carrying_sum(self, b: u64, carry: bool) -> (u64, bool) {
        let (d, first) = self.overflowing_add(b);
        let (d, second) = d.overflowing_add(u64::from(carry));
        (d, first | second)
    }
}

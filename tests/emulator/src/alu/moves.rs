//! Moves, packing moves and selection.

use super::AluFn;
use super::lanes::{Lane, binary, by_type, collect, ternary, unary};
use crate::isa::flag::FTZ;
use crate::isa::{Alu, AluOp, NONE, Round, Ty};
use crate::regs::{LANES, Lanes32, Regs, Slot};

/// Returns the function of a move or selection.
pub(super) fn select(i: &Alu) -> Option<AluFn> {
    let flags = if i.op == AluOp::Slct && i.from == Ty::F32 { FTZ } else { 0 };
    if i.round != Round::None || !super::flags_within(i, flags) {
        return None;
    }
    match i.op {
        AluOp::Mov if i.ty == Ty::Pred => Some(move_predicate as AluFn),
        AluOp::Mov => by_type!(i.ty, T in [
            B16 | U16 | S16 | F16 | Bf16 = u16,
            B32 | U32 | S32 | F32 | F16x2 | Bf16x2 = u32,
            B64 | U64 | S64 | F64 = u64,
        ] => unary(|_, a: T| a)),
        AluOp::Selp => by_type!(i.ty, T in [
            B16 | U16 | S16 | F16 | Bf16 = u16,
            B32 | U32 | S32 | F32 | F16x2 | Bf16x2 = u32,
            B64 | U64 | S64 | F64 = u64,
        ] => ternary(|_, a: T, b: T, c: bool| if c { a } else { b })),
        AluOp::Slct => slct(i),
        AluOp::Pack => pack(i.ty),
        AluOp::Unpack => unpack(i.ty),
        AluOp::Pack4 => match i.ty {
            Ty::B64 => Some(pack4_b64 as AluFn),
            Ty::B32 => Some(pack4_b32),
            _ => None,
        },
        AluOp::Unpack4 => match i.ty {
            Ty::B64 => Some(unpack4_b64 as AluFn),
            Ty::B32 => Some(unpack4_b32),
            _ => None,
        },
        _ => None,
    }
}

/// d = c >= 0 ? a : b; a NaN is not, and -0 is. With `.ftz` a subnormal c is zero.
fn slct(i: &Alu) -> Option<AluFn> {
    match i.from {
        Ty::S32 => by_type!(i.ty, T in [
            B16 | U16 | S16 = u16, B32 | U32 | S32 | F32 = u32, B64 | U64 | S64 | F64 = u64,
        ] => ternary(|_, a: T, b: T, c: i32| if c >= 0 { a } else { b })),
        Ty::F32 => by_type!(i.ty, T in [
            B16 | U16 | S16 = u16, B32 | U32 | S32 | F32 = u32, B64 | U64 | S64 | F64 = u64,
        ] => ternary(|i, a: T, b: T, c: f32| {
            let zero = i.flags & FTZ != 0 && c.abs() < f32::MIN_POSITIVE;
            if c >= 0.0 || zero { a } else { b }
        })),
        _ => None,
    }
}

fn pack(ty: Ty) -> Option<AluFn> {
    match ty {
        Ty::B16 => Some(binary(|_, a: u8, b: u8| u16::from(a) | u16::from(b) << 8)),
        Ty::B32 => Some(binary(|_, a: u16, b: u16| u32::from(a) | u32::from(b) << 16)),
        Ty::B64 => Some(binary(|_, a: u32, b: u32| u64::from(a) | u64::from(b) << 32)),
        _ => None,
    }
}

fn unpack(ty: Ty) -> Option<AluFn> {
    match ty {
        Ty::B16 => Some(unpack_b16 as AluFn),
        Ty::B32 => Some(unpack_b32),
        Ty::B64 => Some(unpack_b64),
        _ => None,
    }
}

// The following are `unsafe` only to have the type of the others.

/// # Safety
/// None needed.
unsafe fn move_predicate(regs: &mut Regs, i: &Alu, mask: u32) {
    let a = regs.pred[i.a as usize];
    bool::store(regs, i.d, &a, mask);
}

/// # Safety
/// None needed.
unsafe fn unpack_b16(regs: &mut Regs, i: &Alu, mask: u32) {
    let a = regs.r32[i.a as usize];
    store_parts(regs, [i.d, i.d2], mask, |lane, part| a.0[lane] >> (8 * part) & 0xff);
}

/// # Safety
/// None needed.
unsafe fn unpack_b32(regs: &mut Regs, i: &Alu, mask: u32) {
    let a = regs.r32[i.a as usize];
    store_parts(regs, [i.d, i.d2], mask, |lane, part| a.0[lane] >> (16 * part) & 0xffff);
}

/// # Safety
/// None needed.
unsafe fn unpack_b64(regs: &mut Regs, i: &Alu, mask: u32) {
    let a = regs.r64[i.a as usize];
    store_parts(regs, [i.d, i.d2], mask, |lane, part| (a.0[lane] >> (32 * part)) as u32);
}

/// # Safety
/// None needed.
unsafe fn unpack4_b32(regs: &mut Regs, i: &Alu, mask: u32) {
    let a = regs.r32[i.a as usize];
    store_parts(regs, [i.d, i.d2, i.b, i.c], mask, |lane, part| a.0[lane] >> (8 * part) & 0xff);
}

/// # Safety
/// None needed.
unsafe fn unpack4_b64(regs: &mut Regs, i: &Alu, mask: u32) {
    let a = regs.r64[i.a as usize];
    store_parts(regs, [i.d, i.d2, i.b, i.c], mask, |lane, part| (a.0[lane] >> (16 * part)) as u32 & 0xffff);
}

/// # Safety
/// None needed.
unsafe fn pack4_b32(regs: &mut Regs, i: &Alu, mask: u32) {
    let parts = [i.a, i.b, i.c, i.d2].map(|slot| u32::load(regs, slot));
    let part = |lane, n: usize| (parts[n].0[lane] & 0xff) << (8 * n);
    let d = collect!(u32, lane => (0..4).fold(0, |all, n| all | part(lane, n)));
    u32::store(regs, i.d, &d, mask);
}

/// # Safety
/// None needed.
unsafe fn pack4_b64(regs: &mut Regs, i: &Alu, mask: u32) {
    let parts = [i.a, i.b, i.c, i.d2].map(|slot| u32::load(regs, slot));
    let part = |lane, n: usize| u64::from(parts[n].0[lane] & 0xffff) << (16 * n);
    let d = collect!(u64, lane => (0..4).fold(0, |all, n| all | part(lane, n)));
    u64::store(regs, i.d, &d, mask);
}

/// Writes the parts of a value to the registers that are wanted.
#[inline(always)]
fn store_parts<const N: usize>(
    regs: &mut Regs,
    to: [Slot; N],
    mask: u32,
    part: impl Fn(usize, usize) -> u32,
) {
    for (n, slot) in to.into_iter().enumerate().filter(|(_, slot)| *slot != NONE) {
        let mut values = Lanes32([0; LANES]);
        for lane in 0..LANES {
            values.0[lane] = part(lane, n);
        }
        u32::store(regs, slot, &values, mask);
    }
}

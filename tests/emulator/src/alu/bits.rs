//! Bits: logic, shifts, bit fields, counts, permutations, and the packed products dp4a and dp2a.

use super::lanes::{Lane, binary, by_type, lane, quaternary, ternary, ternary_lane, unary};
use super::{AluFn, flags_within};
use crate::isa::flag::{HI, SHIFTAMT, WRAP};
use crate::isa::{Alu, AluOp, Round, Ty};
use crate::regs::Regs;

/// Returns the function of an instruction on bits.
pub(super) fn select(i: &Alu) -> Option<AluFn> {
    let flags = match i.op {
        AluOp::ShfL | AluOp::ShfR | AluOp::Szext | AluOp::Bmsk => WRAP,
        AluOp::Bfind => SHIFTAMT,
        AluOp::Dp2a(..) => HI,
        _ => 0,
    };
    if i.round != Round::None || !flags_within(i, flags) {
        return None;
    }
    match i.op {
        AluOp::And | AluOp::Or | AluOp::Xor | AluOp::Not | AluOp::Cnot => logic(i),
        AluOp::Shl | AluOp::Shr => shift(i),
        AluOp::Bfe | AluOp::Bfi | AluOp::Bfind => field(i),
        AluOp::Brev | AluOp::Clz | AluOp::Popc => count(i),
        AluOp::Szext if i.ty == Ty::U32 => Some(binary(|i, a: u32, b: u32| szext(i, a, b))),
        AluOp::Szext if i.ty == Ty::S32 => Some(binary(|i, a: u32, b: u32| szext(i, a, b))),
        AluOp::Dp4a(..) if matches!(i.ty, Ty::U32 | Ty::S32) => dp4a(i.op),
        AluOp::Dp2a(..) if matches!(i.ty, Ty::U32 | Ty::S32) => dp2a(i.op),
        _ if i.ty != Ty::B32 => None,
        AluOp::ShfL => Some(ternary(|i, a: u32, b: u32, c: u32| {
            let pair = u64::from(b) << 32 | u64::from(a);
            ((pair << funnel_amount(i, c)) >> 32) as u32
        })),
        AluOp::ShfR => Some(ternary(|i, a: u32, b: u32, c: u32| {
            let pair = u64::from(b) << 32 | u64::from(a);
            (pair >> funnel_amount(i, c)) as u32
        })),
        AluOp::Prmt(mode) => prmt(mode),
        AluOp::Lop3(_) => Some(ternary(|i, a: u32, b: u32, c: u32| lop3(i, a, b, c))),
        AluOp::Fns => Some(ternary(|_, a: u32, b: u32, c: i32| find_nth_set(a, b, c))),
        AluOp::Bmsk => Some(binary(|i, a: u32, b: u32| bmsk(i, a, b))),
        _ => None,
    }
}

fn logic(i: &Alu) -> Option<AluFn> {
    if i.ty == Ty::Pred {
        return match i.op {
            AluOp::And => Some(and_predicates as AluFn),
            AluOp::Or => Some(or_predicates),
            AluOp::Xor => Some(xor_predicates),
            AluOp::Not => Some(not_predicate),
            _ => None,
        };
    }
    match i.op {
        AluOp::And => by_type!(i.ty, T in [B16 = u16, B32 = u32, B64 = u64] => binary(|_, a: T, b: T| a & b)),
        AluOp::Or => by_type!(i.ty, T in [B16 = u16, B32 = u32, B64 = u64] => binary(|_, a: T, b: T| a | b)),
        AluOp::Xor => by_type!(i.ty, T in [B16 = u16, B32 = u32, B64 = u64] => binary(|_, a: T, b: T| a ^ b)),
        AluOp::Not => by_type!(i.ty, T in [B16 = u16, B32 = u32, B64 = u64] => unary(|_, a: T| !a)),
        _ => by_type!(i.ty, T in [B16 = u16, B32 = u32, B64 = u64] => unary(|_, a: T| T::from(a == 0))),
    }
}

// The functions on predicates are `unsafe` only to have the type of the others.

/// # Safety
/// None needed.
unsafe fn and_predicates(regs: &mut Regs, i: &Alu, mask: u32) {
    let d = bool::load(regs, i.a) & bool::load(regs, i.b);
    bool::store(regs, i.d, &d, mask);
}

/// # Safety
/// None needed.
unsafe fn or_predicates(regs: &mut Regs, i: &Alu, mask: u32) {
    let d = bool::load(regs, i.a) | bool::load(regs, i.b);
    bool::store(regs, i.d, &d, mask);
}

/// # Safety
/// None needed.
unsafe fn xor_predicates(regs: &mut Regs, i: &Alu, mask: u32) {
    let d = bool::load(regs, i.a) ^ bool::load(regs, i.b);
    bool::store(regs, i.d, &d, mask);
}

/// # Safety
/// None needed.
unsafe fn not_predicate(regs: &mut Regs, i: &Alu, mask: u32) {
    let d = !bool::load(regs, i.a);
    bool::store(regs, i.d, &d, mask);
}

/// Shifts: amounts past the width are the width.
fn shift(i: &Alu) -> Option<AluFn> {
    match i.op {
        AluOp::Shl => by_type!(i.ty, T in [B16 = u16, B32 = u32, B64 = u64]
            => binary(|_, a: T, b: u32| if b < T::BITS { a << b } else { 0 })),
        _ => by_type!(i.ty, T in [
            B16 | U16 = u16, B32 | U32 = u32, B64 | U64 = u64, S16 = i16, S32 = i32, S64 = i64,
        ] => binary(|_, a: T, b: u32| {
            let last = a >> b.min(T::BITS - 1);
            // The last bit goes out: nothing is left of an unsigned value, the sign of a signed one stays.
            if b < T::BITS || T::MIN != 0 { last } else { 0 }
        })),
    }
}

#[inline(always)]
fn funnel_amount(i: &Alu, c: u32) -> u32 {
    if i.flags & WRAP != 0 { c & 31 } else { c.min(32) }
}

fn field(i: &Alu) -> Option<AluFn> {
    match i.op {
        AluOp::Bfe => by_type!(i.ty, T in [U32 = u32, U64 = u64, S32 = i32, S64 = i64]
        => ternary(|_, a: T, b: u32, c: u32| {
            let (position, length) = (b & 0xff, (c & 0xff).min(T::BITS));
            if length == 0 {
                return 0;
            }
            // Bits past the end are zero, or the sign; then the field goes to the top and back.
            let rest = a >> position.min(T::BITS - 1);
            let rest = if position < T::BITS || T::MIN != 0 { rest } else { 0 };
            rest << (T::BITS - length) >> (T::BITS - length)
        })),
        AluOp::Bfi => by_type!(i.ty, T in [B32 = u32, B64 = u64]
        => quaternary(|_, a: T, b: T, c: u32, e: u32| {
            let (position, length) = (c & 0xff, e & 0xff);
            if position >= T::BITS || length == 0 {
                return b;
            }
            let ones = if length < T::BITS { !(T::MAX << length) } else { T::MAX };
            b & !(ones << position) | (a & ones) << position
        })),
        _ => by_type!(i.ty, T in [U32 = u32, U64 = u64, S32 = i32, S64 = i64]
        => unary(|i, a: T| {
            let a = if a < T::default() { !a } else { a };
            match (a == 0, i.flags & SHIFTAMT != 0) {
                (true, _) => u32::MAX,
                (false, true) => a.leading_zeros(),
                (false, false) => T::BITS - 1 - a.leading_zeros(),
            }
        })),
    }
}

fn count(i: &Alu) -> Option<AluFn> {
    match i.op {
        AluOp::Brev => by_type!(i.ty, T in [B32 = u32, B64 = u64] => unary(|_, a: T| a.reverse_bits())),
        AluOp::Clz => by_type!(i.ty, T in [B32 = u32, B64 = u64] => unary(|_, a: T| a.leading_zeros())),
        _ => by_type!(i.ty, T in [B32 = u32, B64 = u64] => unary(|_, a: T| a.count_ones())),
    }
}

/// Picks four of the eight bytes of {b, a}: by the nibbles of c, or as one of six fixed modes with c's lowest two bits.
fn prmt(mode: u8) -> Option<AluFn> {
    match mode {
        0 => Some(ternary_lane(lane!(|_, a: u32, b: u32, c: u32| -> u32 { permute(a, b, c) }))),
        1..=6 => Some(ternary(|i, a: u32, b: u32, c: u32| permute(a, b, prmt_selector(i.op, c & 3)))),
        _ => None,
    }
}

#[inline(always)]
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let mut d = 0;
    for n in 0..4 {
        let nibble = selector >> (4 * n);
        let byte = (bytes >> (8 * (nibble & 7))) as u8;
        let byte = if nibble & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte };
        d |= u32::from(byte) << (8 * n);
    }
    d
}

/// Returns the nibbles that a mode of `prmt` stands for (the ISA's table, most significant byte first).
fn prmt_selector(op: AluOp, c: u32) -> u32 {
    let table: [u32; 4] = match op {
        AluOp::Prmt(1) => [0x3210, 0x4321, 0x5432, 0x6543], // f4e: forward
        AluOp::Prmt(2) => [0x5670, 0x6701, 0x7012, 0x0123], // b4e: backward
        AluOp::Prmt(3) => [0x0000, 0x1111, 0x2222, 0x3333], // rc8: replicate a byte
        AluOp::Prmt(4) => [0x3210, 0x3211, 0x3222, 0x3333], // ecl: edge clamp left
        AluOp::Prmt(5) => [0x0000, 0x1110, 0x2210, 0x3210], // ecr: edge clamp right
        _ => [0x1010, 0x3232, 0x1010, 0x3232],              // rc16: replicate a half
    };
    table[c as usize & 3]
}

#[inline(always)]
fn lop3(i: &Alu, a: u32, b: u32, c: u32) -> u32 {
    let AluOp::Lop3(table) = i.op else { return 0 };
    let term = |n: u32, chosen: u32| (u32::from(table >> n & 1)).wrapping_neg() & chosen;
    term(0, !a & !b & !c)
        | term(1, !a & !b & c)
        | term(2, !a & b & !c)
        | term(3, !a & b & c)
        | term(4, a & !b & !c)
        | term(5, a & !b & c)
        | term(6, a & b & !c)
        | term(7, a & b & c)
}

fn dp4a(op: AluOp) -> Option<AluFn> {
    Some(match op {
        AluOp::Dp4a(true, true) => ternary(|_, a: u32, b: u32, c: u32| {
            let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
            (0..4).fold(c, |sum, n| sum.wrapping_add((i32::from(a[n] as i8) * i32::from(b[n] as i8)) as u32))
        }),
        AluOp::Dp4a(true, false) => ternary(|_, a: u32, b: u32, c: u32| {
            let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
            (0..4).fold(c, |sum, n| sum.wrapping_add((i32::from(a[n] as i8) * i32::from(b[n])) as u32))
        }),
        AluOp::Dp4a(false, true) => ternary(|_, a: u32, b: u32, c: u32| {
            let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
            (0..4).fold(c, |sum, n| sum.wrapping_add((i32::from(a[n]) * i32::from(b[n] as i8)) as u32))
        }),
        _ => ternary(|_, a: u32, b: u32, c: u32| {
            let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
            (0..4).fold(c, |sum, n| sum.wrapping_add(u32::from(a[n]) * u32::from(b[n])))
        }),
    })
}

/// Two 16-bit values of a times two bytes of b: the lower bytes, or the upper with `.hi`.
fn dp2a(op: AluOp) -> Option<AluFn> {
    matches!(op, AluOp::Dp2a(..)).then(|| {
        ternary(|i, a: u32, b: u32, c: u32| {
            let AluOp::Dp2a(signed_a, signed_b) = i.op else { return 0 };
            let b = if i.flags & HI != 0 { b >> 16 } else { b };
            (0..2).fold(c, |sum, n| {
                let (a, b) = ((a >> (16 * n)) as u16, (b >> (8 * n)) as u8);
                let a = if signed_a { i32::from(a as i16) } else { i32::from(a) };
                let b = if signed_b { i32::from(b as i8) } else { i32::from(b) };
                sum.wrapping_add((a * b) as u32)
            })
        })
    })
}

/// Finds the n-th set bit from a position, upwards or, for a negative n, downwards; the bit itself for n = 0.
fn find_nth_set(mask: u32, base: u32, n: i32) -> u32 {
    if base > 31 {
        return u32::MAX;
    }
    if n == 0 {
        return if mask >> base & 1 != 0 { base } else { u32::MAX };
    }
    let mut left = n.unsigned_abs();
    let mut position = base as i32;
    while (0..32).contains(&position) {
        left -= mask >> position & 1;
        if left == 0 {
            return position as u32;
        }
        position += n.signum();
    }
    u32::MAX
}

/// Extends the lowest b bits of a, with their sign for s32.
#[inline(always)]
fn szext(i: &Alu, a: u32, b: u32) -> u32 {
    let width = b & 31;
    if b > 31 && i.flags & WRAP == 0 {
        return a;
    }
    if width == 0 {
        return 0;
    }
    let top = a << (32 - width);
    if i.ty == Ty::S32 { (top as i32 >> (32 - width)) as u32 } else { top >> (32 - width) }
}

/// Returns b ones from bit a on.
#[inline(always)]
fn bmsk(i: &Alu, a: u32, b: u32) -> u32 {
    let (start, width) = if i.flags & WRAP != 0 { (a & 31, b & 31) } else { (a.min(32), b.min(32)) };
    (((1u64 << width) - 1) << start) as u32
}

//! Bits: logic, shifts, fields, counts, permutations; models bit by bit, after the ISA's pseudo-code.

use cuda_emulator::isa::{Alu, AluOp, Ty, flag};

use crate::harness::{Form, bits_of, check_all, form, low_bits};
use crate::integer::{value, wrapped};

fn bit(x: u64, n: u32) -> u64 {
    x >> n & 1
}

/// Makes a word from its bits.
fn bits(width: u32, f: impl Fn(u32) -> u64) -> u64 {
    (0..width).fold(0, |word, n| word | (f(n) & 1) << n)
}

fn logic(i: &Alu, x: &[u64]) -> Vec<u64> {
    let b = *x.get(1).unwrap_or(&0);
    vec![bits(bits_of(i.ty), |n| match i.op {
        AluOp::And => bit(x[0], n) * bit(b, n),
        AluOp::Or => (bit(x[0], n) + bit(b, n)).min(1),
        AluOp::Xor => bit(x[0], n) + bit(b, n),
        AluOp::Not => 1 - bit(x[0], n),
        _ => u64::from(n == 0 && x[0] == 0),
    })]
}

fn shift(i: &Alu, x: &[u64]) -> Vec<u64> {
    let width = bits_of(i.ty);
    let amount = x[1].min(u64::from(width)) as u32;
    let fill = if i.ty.is_signed() { bit(x[0], width - 1) } else { 0 };
    vec![bits(width, |n| match i.op {
        AluOp::Shl => {
            if n >= amount {
                bit(x[0], n - amount)
            } else {
                0
            }
        }
        _ => {
            if n + amount < width {
                bit(x[0], n + amount)
            } else {
                fill
            }
        }
    })]
}

fn funnel(i: &Alu, x: &[u64]) -> Vec<u64> {
    let amount = if i.flags & flag::WRAP != 0 { x[2] & 31 } else { x[2].min(32) } as u32;
    let pair = |n: u32| if n < 32 { bit(x[0], n) } else { bit(x[1], n - 32) };
    vec![bits(32, |n| match i.op {
        AluOp::ShfL => pair(32 + n - amount),
        _ => pair(n + amount),
    })]
}

fn extract(i: &Alu, x: &[u64]) -> Vec<u64> {
    let width = bits_of(i.ty);
    let (position, length) = ((x[1] & 0xff) as u32, (x[2] & 0xff) as u32);
    let sign =
        if !i.ty.is_signed() || length == 0 { 0 } else { bit(x[0], (position + length - 1).min(width - 1)) };
    vec![bits(width, |n| if n < length && position + n < width { bit(x[0], position + n) } else { sign })]
}

fn insert(i: &Alu, x: &[u64]) -> Vec<u64> {
    let (position, length) = ((x[2] & 0xff) as u32, (x[3] & 0xff) as u32);
    vec![bits(bits_of(i.ty), |n| match n.checked_sub(position) {
        Some(from) if from < length => bit(x[0], from),
        _ => bit(x[1], n),
    })]
}

fn find_leading(i: &Alu, x: &[u64]) -> Vec<u64> {
    let width = bits_of(i.ty);
    let negative = i.ty.is_signed() && bit(x[0], width - 1) != 0;
    let found = (0..width).rev().find(|n| (bit(x[0], *n) != 0) != negative);
    vec![match found {
        None => 0xffff_ffff,
        Some(n) if i.flags & flag::SHIFTAMT != 0 => u64::from(width - 1 - n),
        Some(n) => u64::from(n),
    }]
}

fn count(i: &Alu, x: &[u64]) -> Vec<u64> {
    let width = bits_of(i.ty);
    vec![match i.op {
        AluOp::Brev => bits(width, |n| bit(x[0], width - 1 - n)),
        AluOp::Clz => (0..width).rev().take_while(|n| bit(x[0], *n) == 0).count() as u64,
        _ => (0..width).filter(|n| bit(x[0], *n) != 0).count() as u64,
    }]
}

fn permute(i: &Alu, x: &[u64]) -> Vec<u64> {
    let AluOp::Prmt(mode) = i.op else { panic!() };
    let c = (x[2] & 3) as i32;
    // For each byte of the result, from the lowest: which byte of {b, a}.
    let source = |n: i32| match mode {
        1 => c + n,
        2 => (c - n) & 7,
        3 => c,
        4 => n.max(c),
        5 => n.min(c),
        _ => (c & 1) * 2 + (n & 1),
    };
    let byte = |n: i32| if n < 4 { x[0] >> (8 * n) & 0xff } else { x[1] >> (8 * (n - 4)) & 0xff };
    vec![(0..4).fold(0, |word, n| {
        let nibble = x[2] >> (4 * n) & 15;
        let value = match mode {
            0 if nibble < 8 => byte(nibble as i32),
            0 => {
                if byte(nibble as i32 - 8) > 127 {
                    0xff
                } else {
                    0
                }
            }
            _ => byte(source(n)),
        };
        word | value << (8 * n)
    })]
}

fn table(i: &Alu, x: &[u64]) -> Vec<u64> {
    let AluOp::Lop3(table) = i.op else { panic!() };
    vec![bits(32, |n| u64::from(table) >> (bit(x[0], n) * 4 + bit(x[1], n) * 2 + bit(x[2], n)))]
}

fn dot(i: &Alu, x: &[u64]) -> Vec<u64> {
    let element = |word: u64, width: u32, n: u32, signed: bool| {
        let ty = match (width, signed) {
            (8, true) => Ty::S8,
            (8, false) => Ty::U8,
            (_, true) => Ty::S16,
            _ => Ty::U16,
        };
        value(ty, word >> (width * n))
    };
    let sum: i128 = match i.op {
        AluOp::Dp4a(a, b) => (0..4).map(|n| element(x[0], 8, n, a) * element(x[1], 8, n, b)).sum(),
        AluOp::Dp2a(a, b) => {
            let first = if i.flags & flag::HI != 0 { 2 } else { 0 };
            (0..2).map(|n| element(x[0], 16, n, a) * element(x[1], 8, first + n, b)).sum()
        }
        _ => panic!(),
    };
    vec![wrapped(Ty::U32, sum + i128::from(x[2]))]
}

fn find_nth(_: &Alu, x: &[u64]) -> Vec<u64> {
    let (base, offset) = (x[1] as i64, i64::from(x[2] as u32 as i32));
    let none = vec![0xffff_ffff];
    if base > 31 {
        return none;
    }
    let set = |n: i64| x[0] >> n & 1 != 0;
    if offset == 0 {
        return if set(base) { vec![base as u64] } else { none };
    }
    let positions: Vec<i64> = if offset > 0 { (base..32).collect() } else { (0..=base).rev().collect() };
    let found: Vec<i64> = positions.into_iter().filter(|n| set(*n)).collect();
    found.get(offset.unsigned_abs() as usize - 1).map_or(none, |n| vec![*n as u64])
}

fn extend(i: &Alu, x: &[u64]) -> Vec<u64> {
    let (a, width) = (x[0], (x[1] & 31) as u32);
    if x[1] >= 32 && i.flags & flag::WRAP == 0 {
        return vec![a];
    }
    let sign = if i.ty == Ty::S32 && width > 0 { bit(a, width - 1) } else { 0 };
    vec![bits(32, |n| if n < width { bit(a, n) } else { sign })]
}

/// The ISA's pseudo-code: ones from bit a, without those from bit a + b.
fn mask(i: &Alu, x: &[u64]) -> Vec<u64> {
    let (start, width) = (x[0] & 31, x[1] & 31);
    let clamp = i.flags & flag::WRAP == 0;
    let first = if clamp && x[0] >= 32 { 0 } else { low_bits(u64::MAX << start, 32) };
    let overflow = start + width >= 32 || clamp && (x[0] >= 32 || x[1] >= 32);
    let second = if overflow { 0 } else { low_bits(u64::MAX << (start + width), 32) };
    vec![first & !second]
}

pub fn forms() -> Vec<Form> {
    let (b32, u32) = (Ty::B32, Ty::U32);
    let mut forms = Vec::new();
    for ty in [Ty::Pred, Ty::B16, Ty::B32, Ty::B64] {
        for op in [AluOp::And, AluOp::Or, AluOp::Xor] {
            forms.push(form(op, ty, 0, &[ty, ty], ty, logic));
        }
        forms.push(form(AluOp::Not, ty, 0, &[ty], ty, logic));
    }
    for ty in [Ty::B16, Ty::B32, Ty::B64] {
        forms.push(form(AluOp::Cnot, ty, 0, &[ty], ty, logic));
        forms.push(form(AluOp::Shl, ty, 0, &[ty, u32], ty, shift));
    }
    for ty in [Ty::B16, Ty::B32, Ty::B64, Ty::U16, Ty::U32, Ty::U64, Ty::S16, Ty::S32, Ty::S64] {
        forms.push(form(AluOp::Shr, ty, 0, &[ty, u32], ty, shift));
    }
    for flags in [0, flag::WRAP] {
        forms.push(form(AluOp::ShfL, b32, flags, &[b32, b32, u32], b32, funnel));
        forms.push(form(AluOp::ShfR, b32, flags, &[b32, b32, u32], b32, funnel));
        forms.push(form(AluOp::Szext, Ty::U32, flags, &[b32, u32], u32, extend));
        forms.push(form(AluOp::Szext, Ty::S32, flags, &[b32, u32], u32, extend));
        forms.push(form(AluOp::Bmsk, b32, flags, &[u32, u32], b32, mask));
    }
    for ty in [Ty::U32, Ty::S32, Ty::U64, Ty::S64] {
        forms.push(form(AluOp::Bfe, ty, 0, &[ty, u32, u32], ty, extract));
        forms.push(form(AluOp::Bfind, ty, 0, &[ty], u32, find_leading));
        forms.push(form(AluOp::Bfind, ty, flag::SHIFTAMT, &[ty], u32, find_leading));
    }
    for ty in [Ty::B32, Ty::B64] {
        forms.push(form(AluOp::Bfi, ty, 0, &[ty, ty, u32, u32], ty, insert));
        forms.push(form(AluOp::Brev, ty, 0, &[ty], ty, count));
        forms.push(form(AluOp::Clz, ty, 0, &[ty], u32, count));
        forms.push(form(AluOp::Popc, ty, 0, &[ty], u32, count));
    }
    forms.extend((0..7).map(|mode| form(AluOp::Prmt(mode), b32, 0, &[b32, b32, u32], b32, permute)));
    for lut in [0, 1, 0x80, 0x96, 0xe8, 0xca, 0xf0, 0xcc, 0xaa, 0x3c, 0xff] {
        forms.push(form(AluOp::Lop3(lut), b32, 0, &[b32, b32, b32], b32, table));
    }
    for (a, b) in [(false, false), (false, true), (true, false), (true, true)] {
        for ty in [Ty::S32, Ty::U32] {
            forms.push(form(AluOp::Dp4a(a, b), ty, 0, &[b32, b32, ty], ty, dot));
            forms.push(form(AluOp::Dp2a(a, b), ty, 0, &[b32, b32, ty], ty, dot));
            forms.push(form(AluOp::Dp2a(a, b), ty, flag::HI, &[b32, b32, ty], ty, dot));
        }
    }
    forms.push(form(AluOp::Fns, b32, 0, &[b32, u32, Ty::S32], b32, find_nth));
    forms
}

#[test]
fn bits_move_as_the_isa_says() {
    check_all(&forms());
}

//! Integer arithmetic, in 128 bits.

use cuda_emulator::isa::{Alu, AluOp, Ty, flag};

use crate::harness::{Form, bits_of, check_all, form, low_bits};

const ALL: [Ty; 6] = [Ty::U16, Ty::S16, Ty::U32, Ty::S32, Ty::U64, Ty::S64];
const SIGNED: [Ty; 3] = [Ty::S16, Ty::S32, Ty::S64];

/// Returns the integer that the bits stand for.
pub fn value(ty: Ty, bits: u64) -> i128 {
    let bits = low_bits(bits, bits_of(ty));
    let negative = ty.is_signed() && bits >> (bits_of(ty) - 1) != 0;
    if negative { i128::from(bits) - (1 << bits_of(ty)) } else { i128::from(bits) }
}

/// Returns an integer's lowest bits.
pub fn wrapped(ty: Ty, value: i128) -> u64 {
    low_bits(value as u64, bits_of(ty))
}

fn saturated(ty: Ty, value: i128) -> u64 {
    let width = bits_of(ty) as i32;
    let (low, high) = if ty.is_signed() {
        (-(1i128 << (width - 1)), (1i128 << (width - 1)) - 1)
    } else {
        (0, (1 << width) - 1)
    };
    wrapped(ty, value.max(low).min(high))
}

/// The product's part that `.lo`, `.hi` or `.wide` takes; unsigned 64-bit products need all 128 bits.
fn product(i: &Alu, a: u64, b: u64) -> i128 {
    let width = bits_of(i.ty);
    let full = value(i.ty, a).wrapping_mul(value(i.ty, b));
    match i.flags & flag::HI != 0 {
        true if i.ty.is_signed() => full >> width,
        true => (full as u128 >> width) as i128,
        false => full,
    }
}

fn arithmetic(i: &Alu, x: &[u64]) -> Vec<u64> {
    let (a, b) = (value(i.ty, x[0]), value(i.ty, *x.get(1).unwrap_or(&0)));
    let exact = match i.op {
        AluOp::Add => a + b,
        AluOp::Sub => a - b,
        AluOp::Neg => -a,
        AluOp::Abs => {
            if a < 0 {
                -a
            } else {
                a
            }
        }
        AluOp::Min => {
            if a < b {
                a
            } else {
                b
            }
        }
        AluOp::Max => {
            if a < b {
                b
            } else {
                a
            }
        }
        AluOp::Sad => value(i.ty, x[2]) + if a > b { a - b } else { b - a },
        // All ones by zero: what the devices' code gives.
        AluOp::Div | AluOp::Rem if b == 0 => -1,
        AluOp::Div => a / b,
        _ => a % b,
    };
    vec![match i.flags {
        flag::SAT => saturated(i.ty, exact),
        flag::RELU if exact < 0 => 0,
        _ => wrapped(i.ty, exact),
    }]
}

fn products(i: &Alu, x: &[u64]) -> Vec<u64> {
    let result = match (i.flags & flag::WIDE != 0, i.ty) {
        (true, Ty::U16) => Ty::U32,
        (true, Ty::S16) => Ty::S32,
        (true, Ty::U32) => Ty::U64,
        (true, Ty::S32) => Ty::S64,
        _ => i.ty,
    };
    let product = product(i, x[0], x[1]);
    let sum = if i.op == AluOp::Mad { value(result, x[2]).wrapping_add(product) } else { product };
    vec![if i.flags & flag::SAT != 0 { saturated(result, sum) } else { wrapped(result, sum) }]
}

fn products24(i: &Alu, x: &[u64]) -> Vec<u64> {
    let narrow = |bits: u64| {
        let low = i128::from(bits & 0xff_ffff);
        if i.ty == Ty::S32 && low >= 1 << 23 { low - (1 << 24) } else { low }
    };
    let full = narrow(x[0]) * narrow(x[1]);
    let part = wrapped(i.ty, if i.flags & flag::HI != 0 { full.div_euclid(1 << 16) } else { full });
    let sum = value(i.ty, part) + if i.op == AluOp::Mad24 { value(i.ty, x[2]) } else { 0 };
    vec![if i.flags & flag::SAT != 0 { saturated(i.ty, sum) } else { wrapped(i.ty, sum) }]
}

fn carries(i: &Alu, x: &[u64]) -> Vec<u64> {
    let width = bits_of(i.ty);
    let flag_in = x[x.len() - 1];
    let carry = if i.flags & flag::CARRY_IN != 0 { i128::from(flag_in) } else { 0 };
    let unsigned = |bits: u64| i128::from(low_bits(bits, width));
    let exact = match i.op {
        AluOp::Add => unsigned(x[0]) + unsigned(x[1]) + carry,
        AluOp::Sub => unsigned(x[0]) - unsigned(x[1]) - carry,
        _ => unsigned(wrapped(i.ty, product(i, x[0], x[1]))) + unsigned(x[2]) + carry,
    };
    let out = u64::from(!(0..1i128 << width).contains(&exact));
    vec![wrapped(i.ty, exact), if i.flags & flag::CARRY_OUT != 0 { out } else { flag_in }]
}

fn carry_forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for ty in [Ty::U32, Ty::S32, Ty::U64, Ty::S64] {
        for flags in [flag::CARRY_OUT, flag::CARRY_IN, flag::CARRY_IN | flag::CARRY_OUT] {
            forms.push(form(AluOp::Add, ty, flags, &[ty, ty], ty, carries));
            forms.push(form(AluOp::Sub, ty, flags, &[ty, ty], ty, carries));
            forms.push(form(AluOp::Mad, ty, flags, &[ty, ty, ty], ty, carries));
            forms.push(form(AluOp::Mad, ty, flags | flag::HI, &[ty, ty, ty], ty, carries));
        }
    }
    forms.iter_mut().for_each(|form| form.carry = true);
    forms
}

fn product_forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for ty in ALL {
        for flags in [0, flag::HI] {
            forms.push(form(AluOp::Mul, ty, flags, &[ty, ty], ty, products));
            forms.push(form(AluOp::Mad, ty, flags, &[ty, ty, ty], ty, products));
        }
    }
    for (ty, wide) in [(Ty::U16, Ty::U32), (Ty::S16, Ty::S32), (Ty::U32, Ty::U64), (Ty::S32, Ty::S64)] {
        forms.push(form(AluOp::Mul, ty, flag::WIDE, &[ty, ty], wide, products));
        forms.push(form(AluOp::Mad, ty, flag::WIDE, &[ty, ty, wide], wide, products));
    }
    let s32 = Ty::S32;
    forms.push(form(AluOp::Mad, s32, flag::HI | flag::SAT, &[s32, s32, s32], s32, products));
    forms.push(form(AluOp::Mad24, s32, flag::HI | flag::SAT, &[s32, s32, s32], s32, products24));
    for ty in [Ty::U32, Ty::S32] {
        for flags in [0, flag::HI] {
            forms.push(form(AluOp::Mul24, ty, flags, &[ty, ty], ty, products24));
            forms.push(form(AluOp::Mad24, ty, flags, &[ty, ty, ty], ty, products24));
        }
    }
    forms
}

fn sum_forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for ty in ALL {
        for op in [AluOp::Add, AluOp::Sub, AluOp::Min, AluOp::Max, AluOp::Div, AluOp::Rem] {
            forms.push(form(op, ty, 0, &[ty, ty], ty, arithmetic));
        }
        forms.push(form(AluOp::Sad, ty, 0, &[ty, ty, ty], ty, arithmetic));
    }
    for ty in SIGNED {
        forms.push(form(AluOp::Abs, ty, 0, &[ty], ty, arithmetic));
        forms.push(form(AluOp::Neg, ty, 0, &[ty], ty, arithmetic));
    }
    let s32 = Ty::S32;
    forms.push(form(AluOp::Add, s32, flag::SAT, &[s32, s32], s32, arithmetic));
    forms.push(form(AluOp::Sub, s32, flag::SAT, &[s32, s32], s32, arithmetic));
    forms.push(form(AluOp::Min, s32, flag::RELU, &[s32, s32], s32, arithmetic));
    forms.push(form(AluOp::Max, s32, flag::RELU, &[s32, s32], s32, arithmetic));
    forms
}

pub fn forms() -> Vec<Form> {
    [sum_forms(), product_forms(), carry_forms()].concat()
}

#[test]
fn sums_quotients_and_orders_of_integers() {
    check_all(&sum_forms());
}

#[test]
fn products_of_integers() {
    check_all(&product_forms());
}

#[test]
fn carry_chains() {
    check_all(&carry_forms());
}

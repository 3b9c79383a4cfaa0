//! Moves, packing moves, selection.

use cuda_emulator::isa::{Alu, AluOp, NONE, Ty, flag};
use cuda_emulator::regs::{FULL, Regs};

use crate::exact::{Format, Value};
use crate::harness::{Form, REGISTERS, bits_of, check_all, form, low_bits};

const VALUES: [Ty; 11] =
    [Ty::B16, Ty::U16, Ty::S16, Ty::B32, Ty::U32, Ty::S32, Ty::F32, Ty::B64, Ty::U64, Ty::S64, Ty::F64];
const HALVES: [Ty; 4] = [Ty::F16, Ty::Bf16, Ty::F16x2, Ty::Bf16x2];

fn copy(_: &Alu, x: &[u64]) -> Vec<u64> {
    vec![x[0]]
}

fn choose(_: &Alu, x: &[u64]) -> Vec<u64> {
    vec![if x[2] == 1 { x[0] } else { x[1] }]
}

fn choose_by_sign(i: &Alu, x: &[u64]) -> Vec<u64> {
    let at_least_zero = match i.from {
        Ty::S32 => x[2] < 1 << 31,
        _ => {
            let format = Format::of(Ty::F32);
            let c = if i.flags & flag::FTZ != 0 { format.flush(x[2]) } else { x[2] };
            match format.value(c) {
                Value::Nan => false,
                c => !c.is_negative() || c.is_zero(),
            }
        }
    };
    vec![x[if at_least_zero { 0 } else { 1 }]]
}

/// The first operand is the lowest part.
fn joined(i: &Alu, x: &[u64]) -> Vec<u64> {
    let part = bits_of(i.ty) / x.len() as u32;
    vec![x.iter().rev().fold(0, |word, value| word << part | value)]
}

fn split<const PARTS: u32>(i: &Alu, x: &[u64]) -> Vec<u64> {
    let part = bits_of(i.ty) / PARTS;
    (0..PARTS).map(|n| low_bits(x[0] >> (n * part), part)).collect()
}

pub fn forms() -> Vec<Form> {
    let mut forms = vec![form(AluOp::Mov, Ty::Pred, 0, &[Ty::Pred], Ty::Pred, copy)];
    for ty in VALUES.into_iter().chain(HALVES) {
        forms.push(form(AluOp::Mov, ty, 0, &[ty], ty, copy));
        forms.push(form(AluOp::Selp, ty, 0, &[ty, ty, Ty::Pred], ty, choose));
    }
    for ty in VALUES {
        let s32 = form(AluOp::Slct, ty, 0, &[ty, ty, Ty::S32], ty, choose_by_sign);
        forms.push(s32.from(Ty::S32));
        for flags in [0, flag::FTZ] {
            let f32 = form(AluOp::Slct, ty, flags, &[ty, ty, Ty::F32], ty, choose_by_sign);
            forms.push(f32.from(Ty::F32));
        }
    }
    for (whole, part) in [(Ty::B16, Ty::B8), (Ty::B32, Ty::B16), (Ty::B64, Ty::B32)] {
        forms.push(form(AluOp::Pack, whole, 0, &[part, part], whole, joined));
        forms.push(form(AluOp::Unpack, whole, 0, &[whole], part, split::<2>).results(&[part, part]));
    }
    for (whole, part) in [(Ty::B32, Ty::B8), (Ty::B64, Ty::B16)] {
        forms.push(form(AluOp::Pack4, whole, 0, &[part; 4], whole, joined));
        forms.push(form(AluOp::Unpack4, whole, 0, &[whole], part, split::<4>).results(&[part; 4]));
    }
    forms
}

#[test]
fn moves_and_selections() {
    check_all(&forms());
}

#[test]
fn results_that_nobody_wants_are_dropped() {
    for (op, ty) in [(AluOp::Unpack, Ty::B64), (AluOp::Unpack, Ty::B32)] {
        let i = Alu { d: NONE, d2: 1, ..form(op, ty, 0, &[ty], Ty::B32, copy).i };
        let mut regs = Regs::new(REGISTERS, REGISTERS, REGISTERS);
        regs.r32[0].0 = [0x1234_5678; 32];
        regs.r64[0].0 = [0x1234_5678_9abc_def0; 32];
        let f = cuda_emulator::alu::select(&i, Default::default()).expect("a legal form");
        // SAFETY: selected for this instruction on this machine.
        unsafe { f(&mut regs, &i, FULL) };
        let upper = if ty == Ty::B64 { 0x1234_5678 } else { 0x1234 };
        assert_eq!(regs.r32[1].0, [upper; 32]);
    }
}

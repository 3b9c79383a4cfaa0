//! Comparisons.

use std::cmp::Ordering;

use cuda_emulator::isa::{Alu, AluOp, Bool, Cmp, NONE, Ty, flag};

use crate::exact::{Format, Value};
use crate::harness::{Form, check_all, form};
use crate::integer::value;

const EQUALITY: [Cmp; 2] = [Cmp::Eq, Cmp::Ne];
const ORDER: [Cmp; 4] = [Cmp::Lt, Cmp::Le, Cmp::Gt, Cmp::Ge];
const UNSIGNED: [Cmp; 4] = [Cmp::Lo, Cmp::Ls, Cmp::Hi, Cmp::Hs];
const UNORDERED: [Cmp; 8] = [Cmp::Equ, Cmp::Neu, Cmp::Ltu, Cmp::Leu, Cmp::Gtu, Cmp::Geu, Cmp::Num, Cmp::Nan];
const TYPES: [Ty; 15] = [
    Ty::B16,
    Ty::B32,
    Ty::B64,
    Ty::U16,
    Ty::U32,
    Ty::U64,
    Ty::S16,
    Ty::S32,
    Ty::S64,
    Ty::F32,
    Ty::F64,
    Ty::F16,
    Ty::Bf16,
    Ty::F16x2,
    Ty::Bf16x2,
];
const COMBINED: [Option<Bool>; 4] = [None, Some(Bool::And), Some(Bool::Or), Some(Bool::Xor)];

/// Orders two values; nothing for a NaN.
fn order(i: &Alu, ty: Ty, a: u64, b: u64) -> Option<Ordering> {
    if !ty.is_float() {
        return Some(value(ty, a).cmp(&value(ty, b)));
    }
    let format = Format::of(ty);
    let [a, b] = [a, b]
        .map(|x| if i.flags & flag::FTZ != 0 { format.flush(x) } else { x })
        .map(|x| (format.value(x), x));
    // Sign and magnitude put all values in order; both zeros are one.
    let rank = |x: Value, bits: u64| {
        let magnitude = (bits & !format.sign()) as i64;
        if x.is_negative() { -i128::from(magnitude) } else { i128::from(magnitude) }
    };
    match (a.0, b.0) {
        (Value::Nan, _) | (_, Value::Nan) => None,
        (x, y) => Some(rank(x, a.1).cmp(&rank(y, b.1))),
    }
}

fn holds(cmp: Cmp, order: Option<Ordering>) -> bool {
    use Ordering::{Equal, Greater, Less};
    let Some(order) = order else {
        return matches!(cmp, Cmp::Equ | Cmp::Neu | Cmp::Ltu | Cmp::Leu | Cmp::Gtu | Cmp::Geu | Cmp::Nan);
    };
    match cmp {
        Cmp::Eq | Cmp::Equ => order == Equal,
        Cmp::Ne | Cmp::Neu => order != Equal,
        Cmp::Lt | Cmp::Ltu | Cmp::Lo => order == Less,
        Cmp::Le | Cmp::Leu | Cmp::Ls => order != Greater,
        Cmp::Gt | Cmp::Gtu | Cmp::Hi => order == Greater,
        Cmp::Ge | Cmp::Geu | Cmp::Hs => order != Less,
        Cmp::Num => true,
        Cmp::Nan => false,
    }
}

fn combined(i: &Alu, holds: bool, with: Option<Bool>, c: Option<&u64>) -> bool {
    let c = c.is_some_and(|c| (*c == 1) != (i.flags & flag::NOT_C != 0));
    match with {
        None => holds,
        Some(Bool::And) => holds && c,
        Some(Bool::Or) => holds || c,
        Some(Bool::Xor) => holds != c,
    }
}

/// Results of the comparison of single values: as it is, and of its negation.
fn both(i: &Alu, cmp: Cmp, with: Option<Bool>, ty: Ty, x: &[u64]) -> [bool; 2] {
    let result = holds(cmp, order(i, ty, x[0], x[1]));
    [result, !result].map(|result| combined(i, result, with, x.get(2)))
}

/// Results of the comparison of the lower and the upper halves.
fn both_halves(i: &Alu, cmp: Cmp, with: Option<Bool>, ty: Ty, x: &[u64]) -> [bool; 2] {
    [0, 16].map(|shift| {
        let [a, b] = [0, 1].map(|n| x[n] >> shift & 0xffff);
        combined(i, holds(cmp, order(i, ty, a, b)), with, x.get(2))
    })
}

fn predicates(i: &Alu, x: &[u64]) -> Vec<u64> {
    let AluOp::Setp(cmp, with) = i.op else { panic!() };
    let results = match i.ty {
        Ty::F16x2 | Ty::Bf16x2 => both_halves(i, cmp, with, i.ty, x),
        _ => both(i, cmp, with, i.ty, x),
    };
    results.map(u64::from).to_vec()
}

fn registers(i: &Alu, x: &[u64]) -> Vec<u64> {
    let AluOp::Set(cmp, with) = i.op else { panic!() };
    let one = match i.ty {
        Ty::F32 => 0x3f80_0000,
        Ty::F16 | Ty::F16x2 => 0x3c00,
        Ty::Bf16 | Ty::Bf16x2 => 0x3f80,
        Ty::U16 | Ty::S16 => 0xffff,
        _ => 0xffff_ffff,
    };
    match i.from {
        Ty::F16x2 | Ty::Bf16x2 => {
            let [lower, upper] = both_halves(i, cmp, with, i.from, x).map(u64::from);
            vec![(lower * one) | ((upper * one) << 16)]
        }
        _ => vec![u64::from(both(i, cmp, with, i.from, x)[0]) * one],
    }
}

fn properties(i: &Alu, x: &[u64]) -> Vec<u64> {
    let AluOp::Testp(test) = i.op else { panic!() };
    let format = Format::of(i.ty);
    let value = format.value(x[0]);
    let finite = matches!(value, Value::Finite { .. });
    vec![u64::from(match test {
        0 => finite,
        1 => matches!(value, Value::Infinite { .. }),
        2 => value != Value::Nan,
        3 => value == Value::Nan,
        4 => finite && !format.is_subnormal(x[0]),
        _ => format.is_subnormal(x[0]),
    })]
}

fn comparisons(ty: Ty) -> Vec<Cmp> {
    match ty {
        Ty::B16 | Ty::B32 | Ty::B64 => EQUALITY.to_vec(),
        Ty::S16 | Ty::S32 | Ty::S64 => [&EQUALITY[..], &ORDER].concat(),
        Ty::U16 | Ty::U32 | Ty::U64 => [&EQUALITY[..], &ORDER, &UNSIGNED].concat(),
        _ => [&EQUALITY[..], &ORDER, &UNORDERED].concat(),
    }
}

fn flags(ty: Ty, with: Option<Bool>) -> Vec<u16> {
    let ftz = matches!(ty, Ty::F32 | Ty::F16 | Ty::F16x2);
    crate::floats::subsets(match (ftz, with.is_some()) {
        (true, true) => &[flag::FTZ, flag::NOT_C],
        (true, false) => &[flag::FTZ],
        (false, true) => &[flag::NOT_C],
        _ => &[],
    })
}

fn results_of_set(ty: Ty) -> Vec<Ty> {
    match ty {
        Ty::F16 | Ty::Bf16 => vec![Ty::U16, Ty::S16, Ty::U32, Ty::S32, ty],
        Ty::F16x2 | Ty::Bf16x2 => vec![ty],
        _ => vec![Ty::U32, Ty::S32, Ty::F32],
    }
}

/// `setp` in all forms of a type.
fn setp(ty: Ty) -> Vec<Form> {
    let mut forms = Vec::new();
    for (cmp, with) in comparisons(ty).into_iter().flat_map(|cmp| COMBINED.map(|with| (cmp, with))) {
        let operands = [ty, ty, Ty::Pred];
        let operands = &operands[..if with.is_some() { 3 } else { 2 }];
        for flags in flags(ty, with) {
            let mut one = form(AluOp::Setp(cmp, with), ty, flags, operands, Ty::Pred, predicates);
            one.sparse = with.is_some();
            forms.push(one.clone());
            forms.push(one.results(&[Ty::Pred, Ty::Pred]));
        }
    }
    forms
}

/// `set` in all forms of a compared type.
fn set(ty: Ty) -> Vec<Form> {
    let mut forms = Vec::new();
    for (cmp, with) in comparisons(ty).into_iter().flat_map(|cmp| COMBINED.map(|with| (cmp, with))) {
        let operands = [ty, ty, Ty::Pred];
        let operands = &operands[..if with.is_some() { 3 } else { 2 }];
        for flags in flags(ty, with) {
            for result in results_of_set(ty) {
                let mut one = form(AluOp::Set(cmp, with), result, flags, operands, result, registers);
                one.sparse = true;
                forms.push(one.from(ty));
            }
        }
    }
    forms
}

fn testp() -> Vec<Form> {
    let of = |ty: Ty| (0..6).map(move |n| form(AluOp::Testp(n), ty, 0, &[ty], Ty::Pred, properties));
    of(Ty::F32).chain(of(Ty::F64)).collect()
}

pub fn forms() -> Vec<Form> {
    TYPES.into_iter().flat_map(|ty| [setp(ty), set(ty)].concat()).chain(testp()).collect()
}

#[test]
fn setp_compares_and_combines() {
    TYPES.iter().for_each(|ty| check_all(&setp(*ty)));
}

#[test]
fn set_writes_ones() {
    TYPES.iter().for_each(|ty| check_all(&set(*ty)));
}

#[test]
fn testp_classifies() {
    check_all(&testp());
}

#[test]
fn a_predicate_that_nobody_wants_is_dropped() {
    let mut forms = setp(Ty::S32);
    forms.retain(|form| form.results.len() == 1);
    assert!(forms.iter().all(|form| form.i.d2 == NONE));
    check_all(&forms[..4]);
}

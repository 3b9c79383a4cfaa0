//! Every form of the tables has a function, and nothing else has one.

use std::collections::HashSet;

use cuda_emulator::alu::{Approx, select};
use cuda_emulator::isa::{Alu, AluOp, Bool, Cmp, NONE, Round, Ty, flag};

use crate::harness::Form;

const TYPES: [Ty; 21] = [
    Ty::B8,
    Ty::B16,
    Ty::B32,
    Ty::B64,
    Ty::B128,
    Ty::U8,
    Ty::U16,
    Ty::U32,
    Ty::U64,
    Ty::S8,
    Ty::S16,
    Ty::S32,
    Ty::S64,
    Ty::F16,
    Ty::F16x2,
    Ty::Bf16,
    Ty::Bf16x2,
    Ty::F32,
    Ty::Tf32,
    Ty::F64,
    Ty::Pred,
];
const ROUNDS: [Round; 10] = [
    Round::None,
    Round::Nearest,
    Round::NearestAway,
    Round::Zero,
    Round::Down,
    Round::Up,
    Round::IntNearest,
    Round::IntZero,
    Round::IntDown,
    Round::IntUp,
];

fn forms() -> Vec<Form> {
    [
        crate::integer::forms(),
        crate::bits::forms(),
        crate::moves::forms(),
        crate::compare::forms(),
        crate::floats::forms(),
        crate::convert::forms(),
        crate::approximate::forms(),
    ]
    .concat()
}

/// Operations, those with parameters once for each kind of value; tables and sub-modes the tables do not list are left out.
fn operations() -> Vec<AluOp> {
    let mut all: Vec<AluOp> =
        forms().iter().map(|form| form.i.op).collect::<HashSet<_>>().into_iter().collect();
    all.extend([AluOp::Prmt(7), AluOp::Prmt(255), AluOp::Testp(6), AluOp::Testp(255)]);
    all
}

/// What decides whether a form is legal; the source type only where there is one.
fn key(i: &Alu) -> (AluOp, Ty, Option<Ty>, Round, u16) {
    (i.op, i.ty, has_source(i.op).then_some(i.from), i.round, i.flags)
}

fn has_source(op: AluOp) -> bool {
    matches!(op, AluOp::Cvt | AluOp::Set(..) | AluOp::Slct)
}

/// No flag, all sets of one or two of them, and those that some legal form has.
fn flag_sets() -> Vec<u16> {
    let legal: HashSet<u16> = forms().iter().map(|form| form.i.flags).collect();
    (0..1u16 << 15).filter(|flags| flags.count_ones() <= 2 || legal.contains(flags)).collect()
}

#[test]
fn every_legal_form_has_a_function_in_both_modes() {
    let forms = forms();
    assert!(forms.len() > 3000, "{} forms", forms.len());
    for form in &forms {
        for approx in [Approx::Rounded, Approx::Perturbed] {
            assert!(select(&form.i, approx).is_some(), "no function for {:?}", form.i);
        }
    }
}

#[test]
fn every_other_form_is_refused() {
    let legal: HashSet<_> = forms().iter().map(|form| key(&form.i)).collect();
    let flag_sets = flag_sets();
    let mut refused = 0u64;
    for op in operations() {
        for ty in TYPES {
            let sources = if has_source(op) { &TYPES[..] } else { &[Ty::B32][..] };
            for (from, round) in sources.iter().flat_map(|from| ROUNDS.map(|round| (*from, round))) {
                let mut i = Alu { op, ty, from, round, flags: 0, d: 0, d2: NONE, a: 0, b: 0, c: 0 };
                // With a source type there are many pairs: all sets of flags only where some form is legal.
                let none_legal =
                    !flag_sets.iter().any(|flags| legal.contains(&key(&Alu { flags: *flags, ..i })));
                let sets = if none_legal { &flag_sets[..16] } else { &flag_sets[..] };
                for flags in sets {
                    i.flags = *flags;
                    let found = select(&i, Approx::Rounded).is_some();
                    assert_eq!(found, legal.contains(&key(&i)), "{i:?}");
                    refused += u64::from(!found);
                }
            }
        }
    }
    assert!(refused > 100_000);
}

#[test]
fn forms_that_look_legal_but_are_not() {
    let of =
        |op, ty, from, round, flags| Alu { op, ty, from, round, flags, d: 0, d2: NONE, a: 0, b: 0, c: 0 };
    let illegal = [
        of(AluOp::Fma, Ty::F32, Ty::F32, Round::None, 0),
        of(AluOp::Add, Ty::U32, Ty::U32, Round::None, flag::SAT),
        of(AluOp::Add, Ty::F64, Ty::F64, Round::None, flag::FTZ),
        of(AluOp::Add, Ty::Bf16, Ty::Bf16, Round::None, flag::SAT),
        of(AluOp::Mul, Ty::U64, Ty::U64, Round::None, flag::WIDE),
        of(AluOp::Neg, Ty::U32, Ty::U32, Round::None, 0),
        of(AluOp::Div, Ty::F32, Ty::F32, Round::None, 0),
        of(AluOp::Cvt, Ty::F32, Ty::S32, Round::None, 0),
        of(AluOp::Cvt, Ty::S32, Ty::F32, Round::Nearest, 0),
        of(AluOp::Cvt, Ty::F64, Ty::F32, Round::Nearest, 0),
        of(AluOp::Cvt, Ty::S32, Ty::S16, Round::None, flag::SAT),
        of(AluOp::Cvt, Ty::F32, Ty::Tf32, Round::None, 0),
        of(AluOp::Setp(Cmp::Lt, None), Ty::B32, Ty::B32, Round::None, 0),
        of(AluOp::Setp(Cmp::Lo, None), Ty::S32, Ty::S32, Round::None, 0),
        of(AluOp::Setp(Cmp::Num, None), Ty::U32, Ty::U32, Round::None, 0),
        of(AluOp::Setp(Cmp::Eq, None), Ty::S32, Ty::S32, Round::None, flag::NOT_C),
        of(AluOp::Setp(Cmp::Eq, Some(Bool::And)), Ty::U8, Ty::U8, Round::None, 0),
        of(AluOp::Sin, Ty::F32, Ty::F32, Round::None, 0),
        of(AluOp::Tanh, Ty::F32, Ty::F32, Round::None, flag::APPROX | flag::FTZ),
        of(AluOp::Ex2, Ty::Bf16, Ty::Bf16, Round::None, flag::APPROX),
        of(AluOp::Shl, Ty::U32, Ty::U32, Round::None, 0),
        of(AluOp::Min, Ty::F64, Ty::F64, Round::None, flag::NAN),
    ];
    for i in illegal {
        assert!(select(&i, Approx::Rounded).is_none(), "{i:?}");
    }
}

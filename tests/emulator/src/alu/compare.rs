//! Comparisons: `setp`, `set`, `testp`.
//!
//! Half of the comparisons are the negation of another one, so only some are compiled: see [`Relation`].

use std::convert::identity;

use super::lanes::{Lane, by_type, collect, fast, twice};
use super::rounding::{bf16_value, f16_value};
use super::single::flush;
use super::{AluFn, flags_within, has};
use crate::isa::flag::{FTZ, NOT_C};
use crate::isa::{Alu, AluOp, Bool, Cmp, NONE, Round, Ty};
use crate::regs::{Lanes32, Regs};

/// A comparison that is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Equal,
    /// Ordered and not equal.
    Different,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    /// No operand is NaN.
    Ordered,
}

/// Returns the compiled comparison, and whether its result is negated.
fn relation(cmp: Cmp, float: bool) -> (Relation, bool) {
    match cmp {
        Cmp::Eq => (Relation::Equal, false),
        Cmp::Ne if float => (Relation::Different, false),
        Cmp::Ne | Cmp::Neu => (Relation::Equal, true),
        Cmp::Equ => (Relation::Different, true),
        Cmp::Lt | Cmp::Lo => (Relation::Less, false),
        Cmp::Le | Cmp::Ls => (Relation::LessEqual, false),
        Cmp::Gt if float => (Relation::Greater, false),
        Cmp::Ge if float => (Relation::GreaterEqual, false),
        Cmp::Gt | Cmp::Hi | Cmp::Gtu => (Relation::LessEqual, true),
        Cmp::Ge | Cmp::Hs | Cmp::Geu => (Relation::Less, true),
        Cmp::Ltu => (Relation::GreaterEqual, true),
        Cmp::Leu => (Relation::Greater, true),
        Cmp::Num => (Relation::Ordered, false),
        Cmp::Nan => (Relation::Ordered, true),
    }
}

/// Returns whether a type has a comparison.
fn is_legal(cmp: Cmp, ty: Ty) -> bool {
    match cmp {
        Cmp::Eq | Cmp::Ne => !matches!(ty, Ty::B8 | Ty::U8 | Ty::S8 | Ty::B128 | Ty::Pred | Ty::Tf32),
        Cmp::Lt | Cmp::Le | Cmp::Gt | Cmp::Ge => {
            matches!(ty, Ty::U16 | Ty::U32 | Ty::U64 | Ty::S16 | Ty::S32 | Ty::S64) || is_compared_float(ty)
        }
        Cmp::Lo | Cmp::Ls | Cmp::Hi | Cmp::Hs => matches!(ty, Ty::U16 | Ty::U32 | Ty::U64),
        _ => is_compared_float(ty),
    }
}

fn is_compared_float(ty: Ty) -> bool {
    ty.is_float() && ty != Ty::Tf32
}

/// Returns the function of a comparison.
pub(super) fn select(i: &Alu) -> Option<AluFn> {
    let (cmp, combined, compared) = match i.op {
        AluOp::Setp(cmp, combined) => (cmp, combined, i.ty),
        AluOp::Set(cmp, combined) => (cmp, combined, i.from),
        AluOp::Testp(test) => return testp(i, test),
        _ => return None,
    };
    let ftz = if matches!(compared, Ty::F32 | Ty::F16 | Ty::F16x2) { FTZ } else { 0 };
    let negated = if combined.is_some() { NOT_C } else { 0 };
    let legal = i.round == Round::None && flags_within(i, ftz | negated) && is_legal(cmp, compared);
    if !legal || matches!(i.op, AluOp::Set(..)) && !is_set_result(i.ty, compared) {
        return None;
    }
    let (relation, _) = relation(cmp, compared.is_float());
    match compared {
        Ty::F32 => single(relation, has(i, FTZ)),
        Ty::F64 => double(relation),
        Ty::F16 => Some(compare(|i, a: u16, b: u16| holds_half(i, f16(i, a), f16(i, b)))),
        Ty::Bf16 => Some(compare(|i, a: u16, b: u16| holds_half(i, bf16_value(a), bf16_value(b)))),
        Ty::F16x2 => Some(compare_pair(|i, a: u16, b: u16| holds_half(i, f16(i, a), f16(i, b)))),
        Ty::Bf16x2 => Some(compare_pair(|i, a: u16, b: u16| holds_half(i, bf16_value(a), bf16_value(b)))),
        _ => integer(relation, compared),
    }
}

/// Returns whether `set` has such a result for such operands.
fn is_set_result(ty: Ty, compared: Ty) -> bool {
    match compared {
        Ty::F16 | Ty::Bf16 => matches!(ty, Ty::U16 | Ty::S16 | Ty::U32 | Ty::S32) || ty == compared,
        Ty::F16x2 | Ty::Bf16x2 => ty == compared,
        _ => matches!(ty, Ty::U32 | Ty::S32 | Ty::F32),
    }
}

fn integer(relation: Relation, ty: Ty) -> Option<AluFn> {
    match relation {
        Relation::Equal => by_type!(ty, T in [
            B16 | U16 | S16 = u16, B32 | U32 | S32 = u32, B64 | U64 | S64 = u64,
        ] => compare(|_, a: T, b: T| a == b)),
        Relation::Less => {
            by_type!(ty, T in [U16 = u16, S16 = i16, U32 = u32, S32 = i32, U64 = u64, S64 = i64]
            => compare(|_, a: T, b: T| a < b))
        }
        Relation::LessEqual => by_type!(ty, T in [
            U16 = u16, S16 = i16, U32 = u32, S32 = i32, U64 = u64, S64 = i64,
        ] => compare(|_, a: T, b: T| a <= b)),
        _ => None,
    }
}

/// Compiles each relation of a float type, operands passing through a function first.
macro_rules! each_relation {
    ($relation:expr, $t:ty, $operand:expr) => {
        Some(match $relation {
            Relation::Equal => compare(|_, a: $t, b: $t| $operand(a) == $operand(b)),
            Relation::Different => {
                compare(|_, a: $t, b: $t| $operand(a) != $operand(b) && !a.is_nan() && !b.is_nan())
            }
            Relation::Less => compare(|_, a: $t, b: $t| $operand(a) < $operand(b)),
            Relation::LessEqual => compare(|_, a: $t, b: $t| $operand(a) <= $operand(b)),
            Relation::Greater => compare(|_, a: $t, b: $t| $operand(a) > $operand(b)),
            Relation::GreaterEqual => compare(|_, a: $t, b: $t| $operand(a) >= $operand(b)),
            Relation::Ordered => compare(|_, a: $t, b: $t| !a.is_nan() && !b.is_nan()),
        })
    };
}

fn single(relation: Relation, ftz: bool) -> Option<AluFn> {
    if ftz { each_relation!(relation, f32, flush) } else { each_relation!(relation, f32, identity) }
}

fn double(relation: Relation) -> Option<AluFn> {
    each_relation!(relation, f64, identity)
}

/// Returns the value of an f16, flushed if the instruction says so.
#[inline(always)]
fn f16(i: &Alu, bits: u16) -> f32 {
    let subnormal = has(i, FTZ) && bits & 0x7c00 == 0;
    f16_value(if subnormal { bits & 0x8000 } else { bits })
}

/// Compares as the instruction says, without its negation: once for all half formats.
fn holds_half(i: &Alu, a: f32, b: f32) -> bool {
    let (AluOp::Setp(cmp, _) | AluOp::Set(cmp, _)) = i.op else { return false };
    match relation(cmp, true).0 {
        Relation::Equal => a == b,
        Relation::Different => a != b && !a.is_nan() && !b.is_nan(),
        Relation::Less => a < b,
        Relation::LessEqual => a <= b,
        Relation::Greater => a > b,
        Relation::GreaterEqual => a >= b,
        Relation::Ordered => !a.is_nan() && !b.is_nan(),
    }
}

twice! {
    /// Compares, combines with a predicate, and writes predicates or a register.
    compare, compare_plain, compare_fast, <A: Lane>, f: Fn(&Alu, A, A) -> bool, (regs, i, mask) {
        let (a, b) = (A::load(regs, i.a), A::load(regs, i.b));
        let holds = collect!(bool, lane => f(i, A::at(a, lane), A::at(b, lane)));
        finish(regs, i, holds, mask);
    }
}

twice! {
    /// Compares the lower halves for the first predicate and the upper ones for the second.
    compare_pair, compare_pair_plain, compare_pair_fast, <>, f: Fn(&Alu, u16, u16) -> bool, (regs, i, mask) {
        let (a, b) = (u32::load(regs, i.a), u32::load(regs, i.b));
        let lower = collect!(bool, lane => f(i, a.0[lane] as u16, b.0[lane] as u16));
        let upper = collect!(bool, lane => f(i, (a.0[lane] >> 16) as u16, (b.0[lane] >> 16) as u16));
        finish_pair(regs, i, [lower, upper], mask);
    }
}

/// Returns a comparison's negation as a word to xor, how it is combined, and with what.
fn combination(regs: &Regs, i: &Alu) -> (u32, Option<Bool>, u32) {
    let (cmp, combined, compared) = match i.op {
        AluOp::Setp(cmp, combined) => (cmp, combined, i.ty),
        AluOp::Set(cmp, combined) => (cmp, combined, i.from),
        _ => return (0, None, 0),
    };
    let negation = if relation(cmp, compared.is_float()).1 { u32::MAX } else { 0 };
    let c = if combined.is_some() { regs.pred[i.c as usize] } else { 0 };
    (negation, combined, if has(i, NOT_C) { !c } else { c })
}

fn combine(holds: u32, combined: Option<Bool>, c: u32) -> u32 {
    match combined {
        None => holds,
        Some(Bool::And) => holds & c,
        Some(Bool::Or) => holds | c,
        Some(Bool::Xor) => holds ^ c,
    }
}

fn finish(regs: &mut Regs, i: &Alu, holds: u32, mask: u32) {
    let (negation, combined, c) = combination(regs, i);
    let holds = holds ^ negation;
    if let AluOp::Set(..) = i.op {
        let (one, all) = (set_value(i.ty), combine(holds, combined, c));
        let d = collect!(u32, lane => if all >> lane & 1 != 0 { one } else { 0 });
        return u32::store(regs, i.d, &d, mask);
    }
    bool::store(regs, i.d, &combine(holds, combined, c), mask);
    if i.d2 != NONE {
        bool::store(regs, i.d2, &combine(!holds, combined, c), mask);
    }
}

fn finish_pair(regs: &mut Regs, i: &Alu, holds: [u32; 2], mask: u32) {
    let (negation, combined, c) = combination(regs, i);
    let [lower, upper] = holds.map(|holds| combine(holds ^ negation, combined, c));
    if let AluOp::Set(..) = i.op {
        let one = set_value(i.ty);
        let half = |word: u32, lane: usize| if word >> lane & 1 != 0 { one } else { 0 };
        let d: Lanes32 = collect!(u32, lane => half(lower, lane) | half(upper, lane) << 16);
        return u32::store(regs, i.d, &d, mask);
    }
    bool::store(regs, i.d, &lower, mask);
    if i.d2 != NONE {
        bool::store(regs, i.d2, &upper, mask);
    }
}

/// Returns what `set` writes where the comparison holds: 1.0 or all ones.
fn set_value(ty: Ty) -> u32 {
    match ty {
        Ty::F32 => 1f32.to_bits(),
        Ty::F16 | Ty::F16x2 => 0x3c00,
        Ty::Bf16 | Ty::Bf16x2 => 0x3f80,
        Ty::U16 | Ty::S16 => 0xffff,
        _ => u32::MAX,
    }
}

/// `testp`: zero counts as a normal number.
fn testp(i: &Alu, test: u8) -> Option<AluFn> {
    if i.round != Round::None || i.flags != 0 || test > 5 {
        return None;
    }
    match i.ty {
        Ty::F32 => Some(super::lanes::unary(|i, a: f32| {
            let AluOp::Testp(test) = i.op else { return false };
            match test {
                0 => a.is_finite(),
                1 => a.is_infinite(),
                2 => !a.is_nan(),
                3 => a.is_nan(),
                4 => a.is_normal() || a == 0.0,
                _ => a.is_subnormal(),
            }
        })),
        Ty::F64 => Some(super::lanes::unary(|i, a: f64| {
            let AluOp::Testp(test) = i.op else { return false };
            match test {
                0 => a.is_finite(),
                1 => a.is_infinite(),
                2 => !a.is_nan(),
                3 => a.is_nan(),
                4 => a.is_normal() || a == 0.0,
                _ => a.is_subnormal(),
            }
        })),
        _ => None,
    }
}

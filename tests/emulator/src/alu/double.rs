//! f64 arithmetic. Rounding to nearest is the CPU's own; the other directions are done with integers (see `soft64`).

use super::lanes::{binary, ternary, unary};
use super::rounding::NAN_F64;
use super::{AluFn, soft64};
use crate::isa::{Alu, AluOp, Round};

/// Returns the function of an f64 instruction that is not approximate.
pub(super) fn select(i: &Alu) -> Option<AluFn> {
    if i.flags != 0 {
        return None;
    }
    match (i.op, i.round) {
        (AluOp::Add | AluOp::Sub | AluOp::Mul, Round::None | Round::Nearest) => nearest(i.op),
        (AluOp::Fma | AluOp::Mad | AluOp::Div | AluOp::Rcp | AluOp::Sqrt, Round::Nearest) => nearest(i.op),
        (_, Round::Zero | Round::Down | Round::Up) => directed(i.op),
        (_, Round::None) => exact(i.op),
        _ => None,
    }
}

/// Makes every NaN the same (on bits: see `single::canonical`).
#[inline(always)]
pub(super) fn canonical(x: f64) -> f64 {
    let bits = x.to_bits();
    f64::from_bits(if bits & !(1 << 63) > 0x7ff0_0000_0000_0000 { NAN_F64 } else { bits })
}

fn nearest(op: AluOp) -> Option<AluFn> {
    Some(match op {
        AluOp::Add => binary(|_, a: f64, b: f64| canonical(a + b)),
        AluOp::Sub => binary(|_, a: f64, b: f64| canonical(a - b)),
        AluOp::Mul => binary(|_, a: f64, b: f64| canonical(a * b)),
        AluOp::Fma | AluOp::Mad => ternary(|_, a: f64, b: f64, c: f64| canonical(a.mul_add(b, c))),
        AluOp::Div => binary(|_, a: f64, b: f64| canonical(a / b)),
        AluOp::Rcp => unary(|_, a: f64| canonical(1.0 / a)),
        AluOp::Sqrt => unary(|_, a: f64| canonical(a.sqrt())),
        _ => return None,
    })
}

fn directed(op: AluOp) -> Option<AluFn> {
    Some(match op {
        AluOp::Add => binary(|i, a: f64, b: f64| soft64::add(a, b, i.round)),
        AluOp::Sub => binary(|i, a: f64, b: f64| soft64::add(a, -b, i.round)),
        AluOp::Mul => binary(|i, a: f64, b: f64| soft64::multiply(a, b, i.round)),
        AluOp::Fma | AluOp::Mad => ternary(|i, a: f64, b: f64, c: f64| soft64::fma(a, b, c, i.round)),
        AluOp::Div => binary(|i, a: f64, b: f64| soft64::divide(a, b, i.round)),
        AluOp::Rcp => unary(|i, a: f64| soft64::divide(1.0, a, i.round)),
        AluOp::Sqrt => unary(|i, a: f64| soft64::square_root(a, i.round)),
        _ => return None,
    })
}

fn exact(op: AluOp) -> Option<AluFn> {
    Some(match op {
        AluOp::Min => binary(|_, a: f64, b: f64| {
            let d = if a < b || b.is_nan() { a } else { b };
            canonical(if a == b { f64::from_bits(a.to_bits() | b.to_bits()) } else { d })
        }),
        AluOp::Max => binary(|_, a: f64, b: f64| {
            let d = if a > b || b.is_nan() { a } else { b };
            canonical(if a == b { f64::from_bits(a.to_bits() & b.to_bits()) } else { d })
        }),
        AluOp::Abs => unary(|_, a: f64| a.abs()),
        AluOp::Neg => unary(|_, a: f64| -a),
        AluOp::Copysign => binary(|_, a: f64, b: f64| b.copysign(a)),
        _ => return None,
    })
}

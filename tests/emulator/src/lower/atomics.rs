//! `atom` and `red`.

use super::Outcome;
use super::builder::{Builder, Parts};
use super::modifiers::{BITS, HALVES, INT32, INT64, bit, name_of};
use crate::isa::{AtomOp, NONE, Op, Order, Scope, Space, Ty};

impl<'a> Builder<'_, 'a> {
    /// `atom.global.add.u32 d, [p], b` and `red.global.add.u32 [p], b`
    pub(super) fn atomic(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        if parts.modifiers.take("async") {
            return Err("asynchronous reductions (Hopper, sm_90) are not supported".into());
        }
        let order = parts.modifiers.order().unwrap_or(Order::Relaxed);
        if matches!(order, Order::Weak | Order::Volatile | Order::Sc) {
            return Err("the order must be `.relaxed`, `.acquire`, `.release` or `.acq_rel`".into());
        }
        let scope = parts.modifiers.scope().unwrap_or(Scope::Gpu);
        let space = parts.modifiers.space().unwrap_or(Space::Generic);
        if !matches!(space, Space::Generic | Space::Global | Space::Shared) {
            return Err("the state space must be `.global` or `.shared`".into());
        }
        let Some(op) = parts.modifiers.take_map(operation) else {
            return Err("the operation is missing".into());
        };
        parts.modifiers.take("noftz");
        let policy = parts.modifiers.cache_hints();
        if parts.modifiers.take("v2") || parts.modifiers.take("v4") || parts.modifiers.take("v8") {
            return Err("atomic operations of vectors (sm_90) are not supported".into());
        }
        let ty = parts.modifiers.ty()?;
        parts.modifiers.finish()?;
        if types(op) & bit(ty) == 0 {
            return Err(format!("this operation is not possible with `.{}`", name_of(ty)));
        }
        let result = parts.opcode == "atom";
        let fixed = usize::from(result) + 2 + usize::from(op == AtomOp::Cas);
        if !result && matches!(op, AtomOp::Cas | AtomOp::Exch) {
            return Err("`red` has no `.cas` and no `.exch`".into());
        }
        parts.count(fixed + usize::from(policy), fixed + usize::from(policy))?;
        self.cache_policy(parts, policy)?;
        let (at, operands) = (usize::from(result), parts.operands);
        let addr = self.address(&operands[at], space, ty.bytes())?;
        let b = self.source(&operands[at + 1], ty)?;
        let c = if op == AtomOp::Cas { self.source(&operands[at + 2], ty)? } else { NONE };
        let d = if result { self.dest_or_none(&operands[0], ty)? } else { NONE };
        let ty = match op {
            AtomOp::Exch | AtomOp::Cas => untyped(ty),
            _ => ty,
        };
        self.emit(Op::Atom { op, ty, space, order, scope, d, addr, b, c });
        Ok(())
    }
}

/// Exchanges move bits, whatever they are.
fn untyped(ty: Ty) -> Ty {
    match ty.bytes() {
        2 => Ty::B16,
        4 => Ty::B32,
        _ => Ty::B64,
    }
}

/// Reads the operation.
pub(super) fn operation(name: &str) -> Option<AtomOp> {
    Some(match name {
        "and" => AtomOp::And,
        "or" => AtomOp::Or,
        "xor" => AtomOp::Xor,
        "add" => AtomOp::Add,
        "min" => AtomOp::Min,
        "max" => AtomOp::Max,
        "inc" => AtomOp::Inc,
        "dec" => AtomOp::Dec,
        "exch" => AtomOp::Exch,
        "cas" => AtomOp::Cas,
        _ => return None,
    })
}

/// Returns the types of an operation.
fn types(op: AtomOp) -> u32 {
    let words = bit(Ty::B32) | bit(Ty::B64);
    match op {
        AtomOp::And | AtomOp::Or | AtomOp::Xor => words,
        AtomOp::Exch => words | INT32 | INT64 | bit(Ty::F32),
        AtomOp::Cas => BITS | INT32 | INT64,
        AtomOp::Add => INT32 | bit(Ty::U64) | bit(Ty::S64) | bit(Ty::F32) | bit(Ty::F64) | HALVES,
        AtomOp::Min | AtomOp::Max => INT32 | INT64 | HALVES,
        AtomOp::Inc | AtomOp::Dec => bit(Ty::U32),
    }
}

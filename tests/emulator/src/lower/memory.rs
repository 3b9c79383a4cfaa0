//! Loads, stores, hints, and addresses between spaces.

use super::Outcome;
use super::builder::{Builder, Parts};
use super::convert::unsigned;
use super::modifiers::{BITS, FLOATS, HALVES, INTS, bit};
use crate::isa::{Addr, AluOp, NONE, Op, Order, Scope, Space, Ty};
use crate::ptx::ast::Operand;
use crate::regs::Slot;

const DATA: u32 = BITS | INTS | FLOATS | HALVES | bit(Ty::B8) | bit(Ty::U8) | bit(Ty::S8) | bit(Ty::B128);

/// What `ld` and `st` say in their modifiers.
struct Access {
    space: Space,
    order: Order,
    scope: Scope,
    vector: usize,
    ty: Ty,
    policy: bool,
}

/// A bit of an address in the shared space that is 64 bits wide may also be given as 32 bits.
fn access(parts: &mut Parts<'_, '_>) -> Outcome<Access> {
    let modifiers = &mut parts.modifiers;
    let mmio = modifiers.take("mmio");
    let order = modifiers.order().unwrap_or(Order::Weak);
    let scope = modifiers.scope();
    modifiers.take("unified");
    let space = modifiers.space().unwrap_or(Space::Generic);
    let policy = modifiers.cache_hints();
    let vector = modifiers.take_map(|m| match m {
        "v2" => Some(2),
        "v4" => Some(4),
        "v8" => Some(8),
        _ => None,
    });
    let ty = modifiers.ty_of(DATA)?;
    modifiers.finish()?;
    if ty == Ty::B128 {
        return Err("the type `.b128` is not supported".into());
    }
    let strong = matches!(order, Order::Relaxed | Order::Acquire | Order::Release);
    if strong && scope.is_none() {
        return Err("a memory order needs a scope: `.cta`, `.cluster`, `.gpu` or `.sys`".into());
    }
    if scope.is_some() && !strong {
        return Err("a scope needs `.relaxed`, `.acquire` or `.release`".into());
    }
    if mmio && order != Order::Relaxed {
        return Err("`.mmio` needs `.relaxed`".into());
    }
    let vector = vector.unwrap_or(1);
    if vector as u32 * ty.bytes() > 32 || (vector == 8 && ty.bytes() != 4) {
        return Err("a vector access has at most 32 bytes".into());
    }
    Ok(Access { space, order, scope: scope.unwrap_or(Scope::Sys), vector, ty, policy })
}

impl<'a> Builder<'_, 'a> {
    /// `ld.global.v4.f32 {a, b, c, d}, [p]`
    pub(super) fn load(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let Access { space, order, scope, vector, ty, policy } = access(parts)?;
        if order == Order::Release {
            return Err("a load cannot be `.release`".into());
        }
        parts.count(2 + usize::from(policy), 2 + usize::from(policy))?;
        self.cache_policy(parts, policy)?;
        let addr = self.address(&parts.operands[1], space, vector as u32 * ty.bytes())?;
        let results = self.data(&parts.operands[0], vector)?;
        let mut slots = [NONE; 8];
        let mut wider = [(NONE, 0u32); 8];
        for (i, operand) in results.iter().enumerate() {
            if vector > 1 && *operand == Operand::Name("_") {
                continue;
            }
            let (d, width) = self.relaxed_dest(operand, ty)?;
            // In a 32-bit register, an unsigned value of 8 or 16 bits is already what the register must hold.
            if width == ty.bytes() || (width <= 4 && !ty.is_signed()) {
                slots[i] = d;
            } else {
                slots[i] = self.temporary(ty);
                wider[i] = (d, width);
            }
        }
        let dst = self.list(&slots[..vector]);
        let plain = if matches!(ty, Ty::S8 | Ty::S16) { unsigned(ty) } else { ty };
        self.emit(Op::Ld { ty: plain, space, order, scope, dst, addr });
        for (slot, (d, width)) in slots.into_iter().zip(wider).take(vector) {
            if width != 0 {
                self.widen(d, width, ty, slot);
            }
        }
        Ok(())
    }

    /// `st.global.v4.f32 [p], {a, b, c, d}`
    pub(super) fn store(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        if parts.modifiers.take("async") || parts.modifiers.take("bulk") {
            return Err("asynchronous stores (Hopper, sm_90) are not supported".into());
        }
        let Access { space, order, scope, vector, ty, policy } = access(parts)?;
        if order == Order::Acquire {
            return Err("a store cannot be `.acquire`".into());
        }
        match space {
            Space::Const => return Err("constant memory cannot be written".into()),
            Space::Param => return Err(super::unsupported::CALLS.into()),
            _ => {}
        }
        parts.count(2 + usize::from(policy), 2 + usize::from(policy))?;
        self.cache_policy(parts, policy)?;
        let addr = self.address(&parts.operands[0], space, vector as u32 * ty.bytes())?;
        let values = self.data(&parts.operands[1], vector)?;
        let mut slots = [NONE; 8];
        for (slot, operand) in slots.iter_mut().zip(&values) {
            *slot = self.relaxed_source(operand, ty)?;
        }
        let src = self.list(&slots[..vector]);
        let plain = if matches!(ty, Ty::S8 | Ty::S16) { unsigned(ty) } else { ty };
        self.emit(Op::St { ty: plain, space, order, scope, src, addr });
        Ok(())
    }

    /// Returns the elements of the data operand: a vector of the right length, where one element needs no braces.
    fn data(&self, operand: &Operand<'a>, vector: usize) -> Outcome<Vec<Operand<'a>>> {
        let elements = self.elements(operand);
        match elements.len() == vector && (vector == 1 || matches!(operand, Operand::Vector(_))) {
            true => Ok(elements),
            false => Err(format!("the vector has {} elements, {vector} are needed", elements.len())),
        }
    }

    /// Checks the operand of `.L2::cache_hint`: the last one, of 64 bits.
    pub(super) fn cache_policy(&mut self, parts: &Parts<'a, '_>, given: bool) -> Outcome {
        match parts.operands.last() {
            Some(policy) if given => self.source(policy, Ty::B64).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// `prefetch.global.L2 [p]` and other hints.
    pub(super) fn hint(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        if parts.modifiers.take("tensormap") {
            return Err("tensor maps (Hopper, sm_90) are not supported".into());
        }
        let space = parts.modifiers.space().unwrap_or(Space::Generic);
        let level = |m: &str| matches!(m, "L1" | "L2").then_some(());
        if parts.modifiers.take_map(level).is_none() {
            parts.modifiers.cache_hints();
        }
        parts.modifiers.finish()?;
        let sized = matches!(parts.opcode, "applypriority" | "discard");
        parts.count(1 + usize::from(sized), 1 + usize::from(sized))?;
        if sized && self.immediate(&parts.operands[1], 128)? != 128 {
            return Err("the size must be 128".into());
        }
        let addr = self.address(&parts.operands[0], space, 1)?;
        self.emit(Op::Hint { space, addr });
        Ok(())
    }

    /// `createpolicy`: what a policy says to the cache has no meaning here; the register gets a value all the same.
    pub(super) fn create_policy(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let fractional = parts.modifiers.take("fractional");
        if !fractional && !parts.modifiers.take("range") {
            return Err("only `createpolicy.fractional` and `createpolicy.range` are supported".into());
        }
        parts.modifiers.space();
        parts.modifiers.cache_hints();
        parts.modifiers.ty_of(bit(Ty::B64))?;
        parts.modifiers.finish()?;
        parts.count(1, 4)?;
        for operand in &parts.operands[1..] {
            match operand {
                Operand::Number(_) => {}
                Operand::Address(_) => drop(self.address(operand, Space::Generic, 0)?),
                _ => drop(self.source(operand, Ty::B32)?),
            }
        }
        let a = self.bits(true, 0);
        let d = self.dest(&parts.operands[0], Ty::B64)?;
        self.alu(AluOp::Mov, Ty::B64, d, a, NONE);
        Ok(())
    }

    /// `cvta.to.global.u64 d, a` and `isspacep.shared p, a`
    pub(super) fn address_space(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let to = parts.opcode == "cvta" && parts.modifiers.take("to");
        let Some(space) = parts.modifiers.space() else { return Err("the state space is missing".into()) };
        if parts.opcode == "isspacep" {
            parts.modifiers.finish()?;
            parts.count(2, 2)?;
            let a = self.source(&parts.operands[1], Ty::B64)?;
            let d = self.dest(&parts.operands[0], Ty::Pred)?;
            self.emit(Op::IsSpace { space, d, a });
            return Ok(());
        }
        let ty = parts.modifiers.ty_of(bit(Ty::U64) | bit(Ty::U32))?;
        parts.modifiers.finish()?;
        parts.count(2, 2)?;
        let a = self.source(&parts.operands[1], ty)?;
        let d = self.dest(&parts.operands[0], ty)?;
        self.emit(Op::Cvta { to, space, wide: ty.is_wide(), d, a });
        Ok(())
    }

    /// Returns an address in shared memory, also where the instruction names no space and the address is generic.
    pub(super) fn shared_address(
        &mut self,
        operand: &Operand<'a>,
        space: Option<Space>,
        bytes: u32,
    ) -> Outcome<Addr> {
        match space {
            Some(Space::Shared) => self.address(operand, Space::Shared, bytes),
            None => {
                let addr = self.address(operand, Space::Generic, bytes)?;
                if addr.base == NONE {
                    return Err("a generic address must be in a register".into());
                }
                let d: Slot = self.temporary(Ty::U64);
                self.emit(Op::Cvta { to: true, space: Space::Shared, wide: true, d, a: addr.base });
                Ok(Addr { base: d, ..addr })
            }
            Some(_) => Err("the address must be in shared memory".into()),
        }
    }
}

//! `cp.async` and mbarriers.

use super::Outcome;
use super::builder::{Builder, Parts};
use super::modifiers::bit;
use crate::isa::{Addr, AluOp, Count, MbarOp, NONE, Op, Order, Scope, Space, Ty};
use crate::ptx::ast::Operand;

impl<'a> Builder<'_, 'a> {
    /// Lowers all of `cp.async`; bulk copies are refused.
    pub(super) fn copy_async(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        if parts.modifiers.take("reduce") || parts.modifiers.take("bulk") {
            return Err("bulk and tensor copies (Hopper, sm_90) are not supported".into());
        }
        parts.modifiers.need("async")?;
        if parts.modifiers.take("bulk") {
            return Err("bulk and tensor copies (Hopper, sm_90) are not supported".into());
        }
        let simple = parts.modifiers.take_map(|m| {
            ["commit_group", "wait_group", "wait_all", "mbarrier"].into_iter().find(|&name| name == m)
        });
        match simple {
            None => self.copy(parts),
            Some("mbarrier") => self.copy_arrive(parts),
            Some(name) => {
                parts.modifiers.finish()?;
                let operands = usize::from(name == "wait_group");
                parts.count(operands, operands)?;
                let op = match name {
                    "commit_group" => Op::CpAsyncCommit,
                    "wait_all" => Op::CpAsyncWaitAll,
                    _ => Op::CpAsyncWait { left: self.immediate(&parts.operands[0], u32::MAX)? },
                };
                self.emit(op);
                Ok(())
            }
        }
    }

    /// `cp.async.cg.shared.global [d], [s], 16, size, policy`
    fn copy(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let all = parts.modifiers.take("ca");
        if !all {
            parts.modifiers.need("cg")?;
        }
        let shared = parts.modifiers.space();
        if shared != Some(Space::Shared) || parts.modifiers.space() != Some(Space::Global) {
            return Err("the spaces must be `.shared.global`".into());
        }
        let policy = parts.modifiers.cache_hints();
        parts.modifiers.finish()?;
        parts.count(3 + usize::from(policy), 4 + usize::from(policy))?;
        self.cache_policy(parts, policy)?;
        let operands = &parts.operands[..parts.operands.len() - usize::from(policy)];
        let size = self.immediate(&operands[2], 16)? as u8;
        if !(matches!(size, 4 | 8) && all || size == 16) {
            return Err(format!("{size} bytes cannot be copied: `.ca` takes 4, 8 or 16, `.cg` 16"));
        }
        let (mut src, mut ignore) = (None, NONE);
        if let Some(operand) = operands.get(3) {
            match self.ignore_predicate(operand)? {
                Some(predicate) => ignore = predicate,
                None => src = Some(self.counted(operand)?),
            }
        }
        if let Some(Count::Imm(bytes)) = src
            && bytes > u32::from(size)
        {
            return Err(format!("the source size {bytes} is above {size}"));
        }
        let dst = self.address(&operands[0], Space::Shared, u32::from(size))?;
        let from = self.address(&operands[1], Space::Global, u32::from(size))?;
        self.emit(Op::CpAsync { size, src, dst, from, ignore });
        Ok(())
    }

    /// The fourth operand of a copy is a size, or a predicate under which the source is ignored.
    fn ignore_predicate(&mut self, operand: &Operand<'a>) -> Outcome<Option<u32>> {
        match *operand {
            Operand::Not(_) => self.source(operand, Ty::Pred).map(Some),
            Operand::Name(name) => match self.named_register(name) {
                Ok(slot) if self.registers[slot as usize].bytes == 0 => Ok(Some(slot)),
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// `cp.async.mbarrier.arrive.noinc.shared.b64 [p]`
    fn copy_arrive(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        parts.modifiers.need("arrive")?;
        let no_inc = parts.modifiers.take("noinc");
        let space = parts.modifiers.space();
        parts.modifiers.ty_of(bit(Ty::B64))?;
        parts.modifiers.finish()?;
        parts.count(1, 1)?;
        let addr = self.shared_address(&parts.operands[0], space, 8)?;
        self.emit(Op::CpAsyncArrive { no_inc, addr });
        Ok(())
    }

    /// Lowers all mbarrier operations.
    pub(super) fn mbarrier(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        const NAMES: [&str; 9] = [
            "init",
            "inval",
            "arrive",
            "arrive_drop",
            "expect_tx",
            "complete_tx",
            "test_wait",
            "try_wait",
            "pending_count",
        ];
        let name = parts.modifiers.take_map(|m| NAMES.into_iter().find(|&name| name == m));
        let Some(name) = name else { return Err("the operation is missing".into()) };
        match name {
            "test_wait" | "try_wait" => return self.mbarrier_wait(parts, name == "try_wait"),
            "pending_count" => return self.pending_count(parts),
            _ => {}
        }
        let expect = name.starts_with("arrive") && parts.modifiers.take("expect_tx");
        let no_complete = name.starts_with("arrive") && parts.modifiers.take("noComplete");
        let op = match (name, expect, no_complete) {
            ("init", ..) => MbarOp::Init,
            ("inval", ..) => MbarOp::Inval,
            ("expect_tx", ..) => MbarOp::ExpectTx,
            ("complete_tx", ..) => MbarOp::CompleteTx,
            ("arrive", false, false) => MbarOp::Arrive,
            ("arrive", true, false) => MbarOp::ArriveExpectTx,
            ("arrive", false, true) => MbarOp::ArriveNoComplete,
            ("arrive_drop", false, false) => MbarOp::ArriveDrop,
            _ => return Err("this form of `mbarrier.arrive_drop` is not supported".into()),
        };
        let arrives = matches!(
            op,
            MbarOp::Arrive | MbarOp::ArriveExpectTx | MbarOp::ArriveNoComplete | MbarOp::ArriveDrop
        );
        let default = if arrives { Order::Release } else { Order::Relaxed };
        let order = parts.modifiers.order().unwrap_or(default);
        let scope = parts.modifiers.scope().unwrap_or(Scope::Cta);
        let space = parts.modifiers.space();
        parts.modifiers.ty_of(bit(Ty::B64))?;
        parts.modifiers.finish()?;
        let state = usize::from(arrives && !matches!(parts.operands.first(), Some(Operand::Address(_))));
        let counted = match op {
            MbarOp::Inval => 0..=0,
            MbarOp::Arrive | MbarOp::ArriveDrop => 0..=1,
            _ => 1..=1,
        };
        parts.count(state + 1 + counted.start(), state + 1 + counted.end())?;
        let d = if state == 1 { self.dest_or_none(&parts.operands[0], Ty::B64)? } else { NONE };
        let addr = self.shared_address(&parts.operands[state], space, 8)?;
        let count = match parts.operands.get(state + 1) {
            Some(operand) => Some(self.counted(operand)?),
            None => None,
        };
        self.emit(Op::Mbar { op, order, scope, d, addr, count });
        Ok(())
    }

    /// `mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [a], parity, hint`
    fn mbarrier_wait(&mut self, parts: &mut Parts<'a, '_>, try_wait: bool) -> Outcome {
        let parity = parts.modifiers.take("parity");
        let order = parts.modifiers.order().unwrap_or(Order::Acquire);
        if !matches!(order, Order::Acquire | Order::Relaxed) {
            return Err("the order must be `.acquire` or `.relaxed`".into());
        }
        parts.modifiers.scope();
        let space = parts.modifiers.space();
        parts.modifiers.ty_of(bit(Ty::B64))?;
        parts.modifiers.finish()?;
        parts.count(3, 3 + usize::from(try_wait))?;
        let addr = self.shared_address(&parts.operands[1], space, 8)?;
        let state = self.source(&parts.operands[2], if parity { Ty::B32 } else { Ty::B64 })?;
        if let Some(hint) = parts.operands.get(3) {
            self.source(hint, Ty::B32)?;
        }
        let d = self.dest(&parts.operands[0], Ty::Pred)?;
        self.emit(Op::MbarWait { try_wait, parity, d, addr, state });
        Ok(())
    }

    /// `mbarrier.pending_count.b64 count, state`
    fn pending_count(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        parts.modifiers.ty_of(bit(Ty::B64))?;
        parts.modifiers.finish()?;
        parts.count(2, 2)?;
        let state = self.temporary(Ty::B64);
        let a = self.source(&parts.operands[1], Ty::B64)?;
        self.alu(AluOp::Mov, Ty::B64, state, a, NONE);
        let d = self.dest(&parts.operands[0], Ty::U32)?;
        let addr = Addr { base: state, wide: true, offset: 0 };
        let (order, scope) = (Order::Relaxed, Scope::Cta);
        self.emit(Op::Mbar { op: MbarOp::PendingCount, order, scope, d, addr, count: None });
        Ok(())
    }
}

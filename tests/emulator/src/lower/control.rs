//! Control flow, barriers, fences and pauses.

use super::Outcome;
use super::builder::{Branch, Builder, Parts};
use super::modifiers::bit;
use crate::isa::{BarRed, Count, List, Op, Order, Scope, Ty};
use crate::ptx::ast::Operand;

/// Barriers of a block.
const BARRIERS: u32 = 16;

impl<'a> Builder<'_, 'a> {
    /// Lowers branches and ends.
    pub(super) fn control(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let uni = parts.modifiers.take("uni");
        let indexed = parts.opcode == "brx";
        if indexed {
            parts.modifiers.need("idx")?;
        }
        parts.modifiers.finish()?;
        let operands = match parts.opcode {
            "bra" => 1,
            "brx" => 2,
            _ => 0,
        };
        parts.count(operands, operands)?;
        let op = match parts.opcode {
            "bra" => Op::Bra { target: 0, uni },
            "brx" => {
                let index = self.source(&parts.operands[0], Ty::U32)?;
                Op::Brx { index, targets: List { start: 0, len: 0 } }
            }
            "trap" => Op::Trap,
            "brkpt" => Op::Brkpt,
            _ => Op::Exit,
        };
        if let Some(last) = parts.operands.last() {
            let Operand::Name(label) = *last else { return Err("a label is needed".into()) };
            let (inst, scope) = (self.code.len() as u32, self.labels.scope());
            self.branches.push(Branch { inst, scope, label, line: self.frame.line });
        }
        self.emit(op);
        Ok(())
    }

    /// Lowers `bar` and `barrier`.
    pub(super) fn barrier(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        if parts.modifiers.take("cluster") {
            return Err("clusters (Hopper, sm_90) are not supported".into());
        }
        parts.modifiers.take("cta");
        if parts.modifiers.take("warp") {
            parts.modifiers.need("sync")?;
            parts.modifiers.finish()?;
            parts.count(1, 1)?;
            let mask = self.source(&parts.operands[0], Ty::B32)?;
            self.emit(Op::BarWarp { mask });
            return Ok(());
        }
        let aligned = parts.modifiers.take("aligned") || parts.opcode == "bar";
        let kind =
            parts.modifiers.take_map(|m| ["sync", "arrive", "red"].into_iter().find(|&name| name == m));
        match kind {
            Some("sync") => {
                parts.modifiers.finish()?;
                parts.count(1, 2)?;
                let bar = self.barrier_number(&parts.operands[0])?;
                let count = parts.operands.get(1).map(|operand| self.threads(operand)).transpose()?;
                self.emit(Op::BarSync { bar, count, aligned });
                Ok(())
            }
            Some("arrive") => {
                parts.modifiers.finish()?;
                parts.count(2, 2)?;
                let bar = self.barrier_number(&parts.operands[0])?;
                let count = self.threads(&parts.operands[1])?;
                self.emit(Op::BarArrive { bar, count, aligned });
                Ok(())
            }
            Some(_) => self.barrier_reduction(parts, aligned),
            None => Err("`.sync`, `.arrive` or `.red` is missing".into()),
        }
    }

    fn barrier_number(&mut self, operand: &Operand<'a>) -> Outcome<Count> {
        match self.counted(operand)? {
            Count::Imm(number) if number >= BARRIERS => {
                Err(format!("a block has {BARRIERS} barriers, not {number}"))
            }
            count => Ok(count),
        }
    }

    fn threads(&mut self, operand: &Operand<'a>) -> Outcome<Count> {
        match self.counted(operand)? {
            Count::Imm(threads) if threads == 0 || threads % 32 != 0 => {
                Err(format!("{threads} threads are not a number of whole warps"))
            }
            count => Ok(count),
        }
    }

    /// `bar.red.popc.u32 d, bar, threads, !p`
    fn barrier_reduction(&mut self, parts: &mut Parts<'a, '_>, aligned: bool) -> Outcome {
        let op = parts.modifiers.take_map(|m| match m {
            "popc" => Some(BarRed::Popc),
            "and" => Some(BarRed::And),
            "or" => Some(BarRed::Or),
            _ => None,
        });
        let Some(op) = op else { return Err("the operation is missing".into()) };
        let ty = if op == BarRed::Popc { Ty::U32 } else { Ty::Pred };
        parts.modifiers.ty_of(bit(ty))?;
        parts.modifiers.finish()?;
        parts.count(3, 4)?;
        let bar = self.barrier_number(&parts.operands[1])?;
        let count = if parts.operands.len() == 4 { Some(self.threads(&parts.operands[2])?) } else { None };
        let (p, not) = self.predicate(&parts.operands[parts.operands.len() - 1])?;
        let d = self.dest(&parts.operands[0], ty)?;
        self.emit(Op::BarRed { op, bar, count, d, p, not, aligned });
        Ok(())
    }

    /// `membar.gl`, `fence.acq_rel.gpu`, `fence.proxy.async`
    pub(super) fn fence(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let modifiers = &mut parts.modifiers;
        if modifiers.take("mbarrier_init") {
            modifiers.need("release")?;
            modifiers.need("cluster")?;
            modifiers.finish()?;
            parts.count(0, 0)?;
            self.emit(Op::Fence { order: Order::Release, scope: Scope::Cluster, proxy: false });
            return Ok(());
        }
        if modifiers.take("proxy") {
            let kind = modifiers.take_map(|m| matches!(m, "async" | "async::generic" | "alias").then_some(m));
            let Some("async" | "alias") = kind else {
                return Err("this proxy fence (Hopper, sm_90) is not supported".into());
            };
            modifiers.space();
            modifiers.finish()?;
            parts.count(0, 0)?;
            self.emit(Op::Fence { order: Order::Weak, scope: Scope::Cta, proxy: true });
            return Ok(());
        }
        let order = match parts.opcode {
            "membar" => Some(Order::Sc),
            _ => Some(modifiers.order().unwrap_or(Order::AcqRel)),
        };
        let Some(order @ (Order::Sc | Order::AcqRel | Order::Acquire | Order::Release)) = order else {
            return Err("the order must be `.sc`, `.acq_rel`, `.acquire` or `.release`".into());
        };
        let Some(scope) = modifiers.scope() else { return Err("the scope is missing".into()) };
        modifiers.finish()?;
        parts.count(0, 0)?;
        self.emit(Op::Fence { order, scope, proxy: false });
        Ok(())
    }

    /// Instructions that only cost time: another warp may run.
    pub(super) fn pause(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let modifiers = &mut parts.modifiers;
        match parts.opcode {
            "nanosleep" => drop(modifiers.ty_of(bit(Ty::U32))?),
            "setmaxnreg" => {
                if !modifiers.take("inc") {
                    modifiers.need("dec")?;
                }
                modifiers.sync()?;
                modifiers.ty_of(bit(Ty::U32))?;
            }
            "griddepcontrol" => {
                if !modifiers.take("wait") {
                    modifiers.need("launch_dependents")?;
                }
            }
            _ => drop(modifiers.take("mask")),
        }
        modifiers.finish()?;
        let operands = usize::from(parts.opcode != "griddepcontrol");
        parts.count(operands, operands)?;
        if let Some(operand) = parts.operands.first() {
            self.source(operand, Ty::U32)?;
        }
        self.emit(Op::Yield);
        Ok(())
    }
}

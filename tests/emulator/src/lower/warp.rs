//! Operations of a whole warp: shuffles, votes, matches, reductions.

use super::Outcome;
use super::atomics::operation;
use super::builder::{Builder, Parts};
use super::modifiers::{INT32, bit};
use crate::isa::{AtomOp, NONE, Op, Shuffle, Ty, Vote};

impl<'a> Builder<'_, 'a> {
    /// Lowers an operation of a warp.
    pub(super) fn warp_wide(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        match parts.opcode {
            "shfl" => self.shuffle(parts),
            "vote" => self.vote(parts),
            "match" => self.find_equal(parts),
            "redux" => self.reduce(parts),
            "elect" => {
                parts.modifiers.need("sync")?;
                parts.modifiers.finish()?;
                parts.count(2, 2)?;
                let mask = self.source(&parts.operands[1], Ty::B32)?;
                let (d, p) = self.pair(&parts.operands[0], Ty::B32, Ty::Pred)?;
                self.emit(Op::Elect { d, p, mask });
                Ok(())
            }
            _ => {
                parts.modifiers.ty_of(bit(Ty::B32))?;
                parts.modifiers.finish()?;
                parts.count(1, 1)?;
                let d = self.dest(&parts.operands[0], Ty::B32)?;
                self.emit(Op::ActiveMask { d });
                Ok(())
            }
        }
    }

    /// `shfl.sync.bfly.b32 d|p, a, b, c, mask`
    fn shuffle(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        if !parts.modifiers.take("sync") {
            return Err("without `.sync` it is not available on sm_70 and later".into());
        }
        let mode = parts.modifiers.take_map(|m| match m {
            "up" => Some(Shuffle::Up),
            "down" => Some(Shuffle::Down),
            "bfly" => Some(Shuffle::Bfly),
            "idx" => Some(Shuffle::Idx),
            _ => None,
        });
        let Some(mode) = mode else { return Err("the mode is missing".into()) };
        parts.modifiers.ty_of(bit(Ty::B32))?;
        parts.modifiers.finish()?;
        parts.count(5, 5)?;
        let a = self.source(&parts.operands[1], Ty::B32)?;
        let b = self.source(&parts.operands[2], Ty::B32)?;
        let c = self.source(&parts.operands[3], Ty::B32)?;
        let mask = self.source(&parts.operands[4], Ty::B32)?;
        let (d, p) = self.pair(&parts.operands[0], Ty::B32, Ty::Pred)?;
        self.emit(Op::Shfl { mode, d, p, a, b, c, mask });
        Ok(())
    }

    /// `vote.sync.ballot.b32 d, p, mask`
    fn vote(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        if !parts.modifiers.take("sync") {
            return Err("without `.sync` it is not available on sm_70 and later".into());
        }
        let mode = parts.modifiers.take_map(|m| match m {
            "all" => Some(Vote::All),
            "any" => Some(Vote::Any),
            "uni" => Some(Vote::Uni),
            "ballot" => Some(Vote::Ballot),
            _ => None,
        });
        let Some(mode) = mode else { return Err("the mode is missing".into()) };
        let ty = if mode == Vote::Ballot { Ty::B32 } else { Ty::Pred };
        parts.modifiers.ty_of(bit(ty))?;
        parts.modifiers.finish()?;
        parts.count(3, 3)?;
        let (p, not) = self.predicate(&parts.operands[1])?;
        let mask = self.source(&parts.operands[2], Ty::B32)?;
        let d = self.dest(&parts.operands[0], ty)?;
        self.emit(Op::Vote { mode, d, p, not, mask });
        Ok(())
    }

    /// `match.all.sync.b32 d|p, a, mask`
    fn find_equal(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        let all = parts.modifiers.take("all");
        if !all {
            parts.modifiers.need("any")?;
        }
        parts.modifiers.need("sync")?;
        let ty = parts.modifiers.ty_of(bit(Ty::B32) | bit(Ty::B64))?;
        parts.modifiers.finish()?;
        parts.count(3, 3)?;
        let a = self.source(&parts.operands[1], ty)?;
        let mask = self.source(&parts.operands[2], Ty::B32)?;
        let (d, p) = self.pair(&parts.operands[0], Ty::B32, Ty::Pred)?;
        if !all && p != NONE {
            return Err("`match.any` has no second result".into());
        }
        self.emit(Op::Match { all, wide: ty.is_wide(), d, p, a, mask });
        Ok(())
    }

    /// `redux.sync.add.s32 d, a, mask`
    fn reduce(&mut self, parts: &mut Parts<'a, '_>) -> Outcome {
        parts.modifiers.need("sync")?;
        let Some(op) = parts.modifiers.take_map(operation) else {
            return Err("the operation is missing".into());
        };
        let types = match op {
            AtomOp::Add | AtomOp::Min | AtomOp::Max => INT32,
            AtomOp::And | AtomOp::Or | AtomOp::Xor => bit(Ty::B32),
            _ => return Err("the operation must be add, min, max, and, or, xor".into()),
        };
        let ty = parts.modifiers.ty_of(types)?;
        parts.modifiers.finish()?;
        parts.count(3, 3)?;
        let a = self.source(&parts.operands[1], ty)?;
        let mask = self.source(&parts.operands[2], Ty::B32)?;
        let d = self.dest(&parts.operands[0], ty)?;
        self.emit(Op::Redux { op, ty, d, a, mask });
        Ok(())
    }
}

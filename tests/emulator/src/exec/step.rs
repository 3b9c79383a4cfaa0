//! Runs a warp: chooses a group of threads, and executes one instruction after the other.

use super::block::BlockState;
use super::engine::{Engine, Halted, Who};
use super::program::Act;
use super::races;
use super::sync::Arrival;
use super::warp::{State, Warp};
use crate::isa::{NONE, Op};
use crate::regs::Slot;
use crate::report::Kind;

/// Why a warp's turn is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Its instructions are used up, or it gives way to others.
    Budget,
    /// None of its threads can continue.
    Waiting,
    /// Threads have arrived at a barrier.
    Barrier,
    /// All its threads have ended.
    Ended,
}

/// What happens after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The threads go on to the next instruction.
    Step,
    /// They go on, but other warps shall run first.
    Pause,
    /// The groups of threads have changed; choose again.
    Choose,
    /// They have arrived at a barrier.
    Barrier,
}

/// Instructions after which another group of the warp may run.
const GROUP_TURN: u64 = 256;

impl Engine<'_> {
    /// Lets a warp run for at most `budget` instructions.
    pub fn slice(&mut self, warp: &mut Warp, block: &mut BlockState, budget: u64) -> Result<Stop, Halted> {
        let mut left = budget;
        loop {
            if warp.live == 0 {
                return Ok(Stop::Ended);
            }
            warp.drop_empty();
            if warp.splits.len() > 1 {
                warp.merge();
            }
            let Some(chosen) = warp.choose(block.random.as_mut()) else { return Ok(Stop::Waiting) };
            warp.turn += 1;
            warp.splits[chosen].turn = warp.turn;
            let several = warp.splits.len() > 1;
            let given = if several { left.min(GROUP_TURN) } else { left };
            let (next, used) = self.run_group(warp, block, chosen, given)?;
            left -= used;
            block.clock += used;
            if several && (used == given || next == Next::Pause) {
                warp.favours += 1;
            }
            match next {
                Next::Barrier => return Ok(Stop::Barrier),
                Next::Pause => return Ok(Stop::Budget),
                _ => {}
            }
            if left == 0 {
                // Those who have just come to others that wait for them must not be left waiting too.
                warp.drop_empty();
                warp.merge();
                return Ok(if warp.live == 0 { Stop::Ended } else { Stop::Budget });
            }
            if self.findings.stopped() {
                return Err(Halted);
            }
        }
    }

    /// Executes instructions of one group until it meets or leaves others, or has used its share.
    fn run_group(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        chosen: usize,
        given: u64,
    ) -> Result<(Next, u64), Halted> {
        if self.vectors {
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { self.run_group_vectors(warp, block, chosen, given) };
        }
        self.run_group_plain(warp, block, chosen, given)
    }

    /// The same, compiled for wide vectors: addresses and copies of 32 lanes gain from them.
    #[target_feature(enable = "avx2,fma,bmi1,bmi2")]
    fn run_group_vectors(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        chosen: usize,
        given: u64,
    ) -> Result<(Next, u64), Halted> {
        self.run_group_plain(warp, block, chosen, given)
    }

    #[inline(always)]
    fn run_group_plain(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        chosen: usize,
        given: u64,
    ) -> Result<(Next, u64), Halted> {
        let program = self.program;
        let limit = warp.limit(chosen);
        let mask = warp.splits[chosen].mask;
        let mut pc = warp.splits[chosen].pc;
        let mut used = 0;
        while used < given {
            used += 1;
            let step = &program.steps[pc as usize];
            let active = mask & guard(&warp.regs.pred, step.guard, step.flip);
            self.tally.execute(pc, active);
            match &step.act {
                Act::Bra(target) => {
                    if step.guard != NONE {
                        self.tally.sums.branches += 1;
                    }
                    if active == mask {
                        pc = *target;
                    } else if active != 0 {
                        self.tally.sums.divergent_branches += 1;
                        warp.splits[chosen].pc = pc + 1;
                        warp.detach(chosen, active, *target, State::Ready);
                        return Ok((Next::Choose, used));
                    } else {
                        pc += 1;
                    }
                }
                _ if active == 0 => pc += 1,
                Act::Alu(function, alu) => {
                    // SAFETY: the function was selected for this instruction on this machine when the kernel was loaded.
                    unsafe { function(&mut warp.regs, alu, active) };
                    pc += 1;
                }
                Act::Op(op) => {
                    warp.splits[chosen].pc = pc;
                    let next = self.execute(warp, block, Arrival { chosen, pc, active }, op)?;
                    match next {
                        Next::Step => pc += 1,
                        Next::Pause => {
                            warp.splits[chosen].pc = pc + 1;
                            return Ok((next, used));
                        }
                        Next::Choose | Next::Barrier => return Ok((next, used)),
                    }
                }
            }
            if pc >= limit {
                break;
            }
        }
        warp.splits[chosen].pc = pc;
        Ok((Next::Choose, used))
    }

    #[inline(always)]
    fn execute(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        here: Arrival,
        op: &Op,
    ) -> Result<Next, Halted> {
        let at = (here.pc, here.active);
        match *op {
            Op::Ld { ty, space, order, dst, addr, .. } => {
                self.load(warp, block, at, (ty, space, order), dst, addr)?;
            }
            Op::St { ty, space, order, src, addr, .. } => {
                self.store(warp, block, at, (ty, space, order), src, addr)?;
            }
            Op::Mma { kind, d, a, b, c, satfinite } => {
                return self.mma(warp, block, here, (kind, satfinite), [d, a, b, c]);
            }
            Op::LdMatrix { trans, regs, addr } => {
                return self.load_matrix(warp, block, here, trans, regs, addr);
            }
            Op::CpAsync { .. } | Op::CpAsyncCommit | Op::CpAsyncWait { .. } | Op::CpAsyncWaitAll => {
                self.copy_operation(warp, block, at, op)?;
            }
            _ => return self.execute_other(warp, block, here, op),
        }
        Ok(Next::Step)
    }

    fn execute_other(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        here: Arrival,
        op: &Op,
    ) -> Result<Next, Halted> {
        let at = (here.pc, here.active);
        match *op {
            Op::Atom { .. } => self.atomic(warp, block, at, op)?,
            Op::StMatrix { trans, regs, addr } => {
                return self.store_matrix(warp, block, here, trans, regs, addr);
            }
            Op::Cvta { to, space, wide, d, a } => {
                self.convert_address(warp, block, at.1, (to, space, wide), d, a)
            }
            Op::IsSpace { space, d, a } => self.is_space(warp, block, at.1, space, d, a),
            Op::Hint { .. } | Op::Brkpt => {}
            Op::Fence { scope, proxy, .. } => {
                if !proxy {
                    races::fence(&mut block.races, warp, at.1, scope);
                }
            }
            Op::Yield => {
                block.polls += 1;
                return Ok(Next::Pause);
            }
            Op::ReadSpecial { special, d } => self.read_special(special, warp, block, d, at.1),
            Op::Exit => {
                warp.splits[here.chosen].pc = here.pc + 1;
                warp.end(here.chosen, here.active);
                races::exit(&mut block.races, warp, here.active);
                block.progress += 1;
                // Barriers may wait for those that remain.
                return Ok(Next::Barrier);
            }
            Op::Trap => {
                let who = Who::new(block, warp, here.pc);
                self.report(Kind::IllegalInstruction, who, at.1.trailing_zeros(), || {
                    "executes `trap`".to_owned()
                })?;
            }
            Op::Brx { index, targets } => return self.indexed_branch(warp, block, here, index, targets),
            Op::Mbar { .. } | Op::MbarWait { .. } | Op::CpAsyncArrive { .. } => {
                return self.mbarrier_operation(warp, block, here, op);
            }
            _ => return self.synchronise(warp, block, here, op),
        }
        Ok(Next::Step)
    }

    fn indexed_branch(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        here: Arrival,
        index: Slot,
        targets: crate::isa::List,
    ) -> Result<Next, Halted> {
        let Arrival { chosen, pc, active } = here;
        self.tally.sums.branches += 1;
        warp.splits[chosen].pc = pc + 1;
        let indices = warp.regs.r32[index as usize];
        let targets = self.program.list(targets);
        let (mut left, mut groups) = (active, 0);
        while left != 0 {
            let first = left.trailing_zeros();
            let value = indices.0[first as usize];
            let lanes =
                (0..32).filter(|&l| left >> l & 1 == 1 && indices.0[l] == value).fold(0, |m, l| m | 1 << l);
            let Some(&target) = targets.get(value as usize) else {
                let who = Who::new(block, warp, pc);
                self.report(Kind::IllegalInstruction, who, first, || {
                    format!("jumps to entry {value} of a list of {}", targets.len())
                })?;
                return Err(Halted);
            };
            warp.detach(chosen, lanes, target, State::Ready);
            left &= !lanes;
            groups += 1;
        }
        self.tally.sums.divergent_branches += u64::from(groups > 1);
        warp.drop_empty();
        Ok(Next::Choose)
    }
}

/// Returns the lanes in which a guard holds.
#[inline(always)]
fn guard(preds: &[u32], slot: Slot, flip: u32) -> u32 {
    if slot == NONE { u32::MAX } else { preds[slot as usize] ^ flip }
}

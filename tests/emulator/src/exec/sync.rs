//! Operations at which threads wait for each other: warp-wide ones and barriers of the block.

use super::block::BlockState;
use super::engine::{Engine, Halted, Who};
use super::races;
use super::step::Next;
use super::warp::{State, Warp};
use crate::isa::{Count, NONE, Op};
use crate::regs::Slot;
use crate::report::Kind;

/// A group of threads at an instruction.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Which split of the warp.
    pub chosen: usize,
    /// Index of the instruction.
    pub pc: u32,
    /// The lanes that execute it; not empty.
    pub active: u32,
}

/// A barrier instruction.
#[derive(Clone, Copy)]
struct BarrierUse {
    bar: Count,
    count: Option<Count>,
    aligned: bool,
    /// Predicate and whether it is negated.
    vote: Option<(Slot, bool)>,
    /// `bar.arrive`: goes on at once.
    arrive: bool,
}

impl Engine<'_> {
    /// Executes an operation that several threads take part in.
    pub fn synchronise(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        here: Arrival,
        op: &Op,
    ) -> Result<Next, Halted> {
        let sync = BarrierUse { bar: Count::Imm(0), count: None, aligned: false, vote: None, arrive: false };
        match *op {
            Op::BarSync { bar, count, aligned } => {
                self.barrier(warp, block, here, BarrierUse { bar, count, aligned, ..sync })
            }
            Op::BarArrive { bar, count, aligned } => {
                let use_ = BarrierUse { bar, count: Some(count), aligned, arrive: true, ..sync };
                self.barrier(warp, block, here, use_)
            }
            Op::BarRed { bar, count, p, not, aligned, .. } => {
                let use_ = BarrierUse { bar, count, aligned, vote: Some((p, not)), ..sync };
                self.barrier(warp, block, here, use_)
            }
            Op::BarWarp { mask } => self.warp_barrier(warp, block, here, mask),
            Op::ActiveMask { d } => {
                let register = &mut warp.regs.r32[d as usize].0;
                crate::regs::for_lanes(here.active, |lane| register[lane] = here.active);
                Ok(Next::Step)
            }
            _ => self.collective(warp, block, here, op),
        }
    }

    /// Waits until all lanes that a member mask names are at this instruction. Returns groups of lanes that are complete
    /// and continue behind it; the others wait.
    pub fn rendezvous(
        &mut self,
        warp: &mut Warp,
        block: &BlockState,
        here: Arrival,
        mask: Slot,
    ) -> Result<Vec<(u32, u32)>, Halted> {
        let members = warp.regs.r32[mask as usize];
        let (mut left, mut complete, mut waiting) = (here.active, Vec::new(), 0);
        while left != 0 {
            let wanted = members.0[left.trailing_zeros() as usize];
            let group =
                (0..32).filter(|&l| left >> l & 1 == 1 && members.0[l] == wanted).fold(0, |m, l| m | 1 << l);
            left &= !group;
            self.check_members(warp, block, here.pc, group, wanted)?;
            if wanted & warp.live & !group == 0 {
                complete.push((group, wanted));
            } else {
                waiting |= group;
            }
        }
        if waiting != 0 {
            warp.splits[here.chosen].pc = here.pc + 1;
            warp.detach(here.chosen, waiting, here.pc, State::Lanes);
        }
        Ok(complete)
    }

    /// Refuses a member mask that lacks an executing lane, or names one that has ended.
    fn check_members(
        &mut self,
        warp: &Warp,
        block: &BlockState,
        pc: u32,
        group: u32,
        wanted: u32,
    ) -> Result<(), Halted> {
        let who = Who::new(block, warp, pc);
        let strangers = group & !wanted;
        if strangers != 0 {
            self.report(Kind::IllegalWarpOperation, who, strangers.trailing_zeros(), || {
                format!("executes a warp-wide operation whose member mask {wanted:#010x} does not name it")
            })?;
        }
        let gone = wanted & warp.exists & !warp.live;
        if gone != 0 {
            self.report(Kind::IllegalWarpOperation, who, group.trailing_zeros(), || {
                format!("waits for lanes {gone:#010x} of member mask {wanted:#010x}, which have ended")
            })?;
        }
        Ok(())
    }

    /// Says where the lanes of a split go after [`Engine::rendezvous`].
    pub fn after_rendezvous(warp: &mut Warp, here: Arrival, complete: &[(u32, u32)]) -> Next {
        let done = complete.iter().fold(0, |mask, group| mask | group.0);
        if done == here.active { Next::Step } else { warp.leave(here) }
    }

    /// Waits until the whole warp is at an instruction that all its threads must execute together.
    pub fn whole_warp(&mut self, warp: &mut Warp, block: &BlockState, here: Arrival) -> Result<bool, Halted> {
        if here.active == u32::MAX {
            return Ok(true);
        }
        if warp.live != u32::MAX {
            let (who, live) = (Who::new(block, warp, here.pc), warp.live);
            self.report(Kind::IllegalWarpOperation, who, here.active.trailing_zeros(), || {
                format!("executes an operation of a whole warp, of which only lanes {live:#010x} run")
            })?;
        }
        warp.splits[here.chosen].pc = here.pc + 1;
        warp.detach(here.chosen, here.active, here.pc, State::Lanes);
        Ok(false)
    }

    /// `bar.warp.sync`: those who wait for each other may be at different instructions.
    fn warp_barrier(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        here: Arrival,
        mask: Slot,
    ) -> Result<Next, Halted> {
        let complete = self.rendezvous(warp, block, here, mask)?;
        for &(group, _) in &complete {
            races::warp_barrier(&mut block.races, warp, group);
        }
        for i in 0..warp.splits.len() {
            let split = warp.splits[i];
            let Some(wanted) = self.warp_barrier_mask(warp, split.pc, split) else { continue };
            let arrived = (0..warp.splits.len())
                .filter(|&j| self.warp_barrier_mask(warp, warp.splits[j].pc, warp.splits[j]) == Some(wanted))
                .fold(0, |lanes, j| lanes | warp.splits[j].mask);
            if wanted & warp.live & !arrived == 0 {
                races::warp_barrier(&mut block.races, warp, arrived);
                self.release_warp_barrier(warp, wanted);
            }
        }
        Ok(Self::after_rendezvous(warp, here, &complete))
    }

    /// Returns the member mask of a split that waits at a `bar.warp.sync`, if its lanes agree on one.
    fn warp_barrier_mask(&self, warp: &Warp, pc: u32, split: super::warp::Split) -> Option<u32> {
        let Op::BarWarp { mask } = self.program.kernel.code.get(pc as usize)?.op else { return None };
        if split.state != State::Lanes || split.mask == 0 {
            return None;
        }
        let members = &warp.regs.r32[mask as usize].0;
        let wanted = members[split.mask.trailing_zeros() as usize];
        (0..32).all(|l| split.mask >> l & 1 == 0 || members[l] == wanted).then_some(wanted)
    }

    fn release_warp_barrier(&self, warp: &mut Warp, wanted: u32) {
        for i in 0..warp.splits.len() {
            let split = warp.splits[i];
            if self.warp_barrier_mask(warp, split.pc, split) == Some(wanted) {
                warp.splits[i].pc += 1;
                warp.splits[i].state = State::Ready;
            }
        }
    }

    fn barrier(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        here: Arrival,
        sync: BarrierUse,
    ) -> Result<Next, Halted> {
        let Arrival { chosen, pc, active } = here;
        if sync.aligned && active != warp.live {
            warp.splits[chosen].pc = pc + 1;
            warp.detach(chosen, active, pc, State::Aligned);
            return Ok(warp.leave(here));
        }
        let number = self.count(&warp.regs, sync.bar, active);
        let count = sync.count.map(|count| self.count(&warp.regs, count, active));
        self.check_barrier(warp, block, here, number, count)?;
        self.tally.sums.barriers += 1;
        block.progress += 1;
        let warps = block.warps;
        let barrier = &mut block.barriers[number as usize];
        if barrier.idle() {
            (barrier.expected, barrier.pc) = (count, pc);
        }
        barrier.arrive(warp, active, warps);
        if let Some((p, not)) = sync.vote {
            barrier.yes += (predicate(warp, p, not) & active).count_ones();
            barrier.votes += active.count_ones();
        }
        warp.splits[chosen].pc = pc + 1;
        if sync.arrive {
            races::arrive(&mut block.races, warp, active, number);
        } else {
            warp.detach(chosen, active, pc, State::Barrier(number as u8));
        }
        warp.drop_empty();
        Ok(Next::Barrier)
    }

    /// Refuses a barrier or a number of threads that there is not, or that differs from what others at the barrier say.
    fn check_barrier(
        &mut self,
        warp: &Warp,
        block: &BlockState,
        here: Arrival,
        number: u32,
        count: Option<u32>,
    ) -> Result<(), Halted> {
        let (who, lane) = (Who::new(block, warp, here.pc), here.active.trailing_zeros());
        let Some(barrier) = block.barriers.get(number as usize) else {
            return self
                .report(Kind::IllegalInstruction, who, lane, || format!("barrier {number}: the last is 15"));
        };
        if let Some(n) = count.filter(|&n| n == 0 || !n.is_multiple_of(32)) {
            return self.report(Kind::IllegalInstruction, who, lane, || {
                format!("barrier {number} for {n} threads: not a positive multiple of 32")
            });
        }
        if !barrier.idle() && barrier.expected != count {
            let text = |count: Option<u32>| count.map_or("all".to_owned(), |n| n.to_string());
            let (here, there) = (text(count), text(barrier.expected));
            let line = self.program.line(barrier.pc);
            return self.report(Kind::DivergentBarrier, who, lane, || {
                format!("barrier {number} for {here} threads, where PTX line {line} waits for {there}")
            });
        }
        Ok(())
    }
}

/// Predicates of a reduction or a vote.
pub fn predicate(warp: &Warp, slot: Slot, not: bool) -> u32 {
    let value = if slot == NONE { u32::MAX } else { warp.regs.pred[slot as usize] };
    if not { !value } else { value }
}

impl Warp {
    /// Ends the work on a group whose lanes now belong to several.
    pub fn leave(&mut self, here: Arrival) -> Next {
        self.splits[here.chosen].pc = here.pc + 1;
        self.drop_empty();
        Next::Choose
    }
}

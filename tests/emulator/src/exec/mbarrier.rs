//! `mbarrier`: barriers in shared memory that count arrivals and bytes, phase after phase.

use std::fmt;

use super::access::{Access, Action, Own};
use super::address::Addresses;
use super::block::BlockState;
use super::copies::CopyArrival;
use super::engine::{Engine, Halted, Who};
use super::races::{self, Waited};
use super::step::Next;
use super::sync::Arrival;
use super::warp::Warp;
use crate::isa::{MbarOp, NONE, Op, Space};
use crate::regs::{Regs, Slot, for_lanes};
use crate::report::Kind;

/// Largest number of arrivals of a phase.
const MAX_COUNT: u32 = (1 << 20) - 1;
/// Bytes of an mbarrier.
const SIZE: u64 = 8;

/// An mbarrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mbarrier {
    /// Arrivals that each phase takes.
    pub count: u32,
    /// Arrivals that this phase still waits for.
    pub pending: u32,
    /// Bytes that this phase still waits for.
    pub bytes: i64,
    /// Phases that are complete.
    pub phase: u64,
}

impl fmt::Display for Mbarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, pending, bytes, phase } = self;
        write!(
            f,
            "phase {phase} (parity {}) waits for {pending} of {count} arrivals and {bytes} bytes",
            phase & 1
        )
    }
}

impl Mbarrier {
    /// Begins the next phase if nothing is missing in this one.
    pub fn settle(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.count;
        }
    }

    /// Returns the state that an arrival gives: phase, then pending arrivals.
    fn token(&self) -> u64 {
        self.phase << 20 | u64::from(self.pending)
    }
}

/// Reads the pending arrivals out of a state, which lies in a register.
fn pending_count(warp: &mut Warp, lanes: u32, d: Slot, state: Slot) {
    for_lanes(lanes, |lane| {
        let state = if state == NONE { 0 } else { warp.regs.r64[state as usize].0[lane] };
        warp.regs.r32[d as usize].0[lane] = state as u32 & MAX_COUNT;
    });
}

/// Returns the phase (or its parity) that a lane waits for, and whether it is complete, the current one being `phase`.
fn awaited_phase(regs: &Regs, parity: bool, state: Slot, lane: usize, phase: u64) -> (u64, bool) {
    if parity {
        let awaited = u64::from(regs.r32[state as usize].0[lane] & 1);
        (awaited, phase & 1 != awaited)
    } else {
        let awaited = regs.r64[state as usize].0[lane] >> 20;
        (awaited, phase != awaited)
    }
}

impl Engine<'_> {
    /// Executes an mbarrier operation, one lane after the other.
    pub fn mbarrier_operation(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        here: Arrival,
        op: &Op,
    ) -> Result<Next, Halted> {
        let (addr, counts) = match *op {
            Op::Mbar { op: MbarOp::PendingCount, d, addr, .. } => {
                pending_count(warp, here.active, d, addr.base);
                return Ok(Next::Step);
            }
            Op::Mbar { addr, count, .. } => (addr, count),
            Op::MbarWait { addr, .. } | Op::CpAsyncArrive { addr, .. } => (addr, None),
            _ => return Ok(Next::Step),
        };
        let mut at = self.shared_addresses(warp, block, addr);
        let who = Who::new(block, warp, here.pc);
        let access = Access { who, space: Space::Shared, size: SIZE, action: Action::Atomic };
        let own = Own { shared: &block.shared, local: &warp.local };
        let (window, span, _) = self.window(own, &access, &mut at, here.active)?;
        window.mark(&at, &span, here.active, SIZE);
        let init = matches!(op, Op::Mbar { op: MbarOp::Init | MbarOp::Inval, .. });
        races::use_mbarriers(&mut block.races, &access, &at, here.active, init);
        if let Op::CpAsyncArrive { no_inc, .. } = *op {
            return self.arrive_after_copies(warp, block, here, at, no_inc);
        }
        let (mut failed, mut waited) = (false, Waited::default());
        for lane in (0..32).filter(|lane| here.active >> lane & 1 == 1) {
            let count = counts.map(|count| self.count(&warp.regs, count, 1 << lane));
            let target = at.0[lane] as u32;
            match *op {
                Op::Mbar { op, d, order, .. } => {
                    races::arrive_mbarrier(&mut block.races, (warp.index, lane), target, op, order);
                    let token = self.change(block, who, lane as u32, target, op, count)?;
                    if d != NONE {
                        warp.regs.r64[d as usize].0[lane] = token;
                    }
                }
                Op::MbarWait { parity, d, state, .. } => {
                    let phase = self.mbarrier(block, who, lane as u32, target)?.phase;
                    let (awaited, complete) = awaited_phase(&warp.regs, parity, state, lane, phase);
                    if complete {
                        waited.add(target, awaited as u32 & 1, lane);
                    } else {
                        failed = true;
                    }
                    let predicate = &mut warp.regs.pred[d as usize];
                    *predicate = *predicate & !(1 << lane) | u32::from(complete) << lane;
                }
                _ => {}
            }
        }
        waited.tell(&mut block.races, warp.index);
        Ok(self.after_mbarrier(block, failed))
    }

    fn after_mbarrier(&self, block: &mut BlockState, failed: bool) -> Next {
        if !failed {
            return Next::Step;
        }
        block.polls += 1;
        Next::Pause
    }

    /// Finds an mbarrier that was initialised.
    fn mbarrier<'b>(
        &mut self,
        block: &'b mut BlockState,
        who: Who,
        lane: u32,
        at: u32,
    ) -> Result<&'b mut Mbarrier, Halted> {
        match block.mbarriers.get_mut(&at) {
            Some(mbarrier) => Ok(mbarrier),
            None => {
                self.report(Kind::AsyncMisuse, who, lane, || {
                    format!("uses an mbarrier at shared address {at:#x} that was not initialised")
                })?;
                Err(Halted)
            }
        }
    }

    /// Changes an mbarrier, and returns its state before.
    fn change(
        &mut self,
        block: &mut BlockState,
        who: Who,
        lane: u32,
        at: u32,
        op: MbarOp,
        count: Option<u32>,
    ) -> Result<u64, Halted> {
        block.progress += 1;
        let n = count.unwrap_or(1);
        if op == MbarOp::Init {
            if n == 0 || n > MAX_COUNT {
                self.report(Kind::AsyncMisuse, who, lane, || {
                    format!("initialises an mbarrier for {n} arrivals")
                })?;
            }
            block.mbarriers.insert(at, Mbarrier { count: n, pending: n, bytes: 0, phase: 0 });
            return Ok(0);
        }
        let mbarrier = self.mbarrier(block, who, lane, at)?;
        let token = mbarrier.token();
        let arrivals = match op {
            MbarOp::Arrive | MbarOp::ArriveDrop | MbarOp::ArriveNoComplete => n,
            MbarOp::ArriveExpectTx => 1,
            _ => 0,
        };
        let state = *mbarrier;
        if arrivals > state.pending || (op == MbarOp::ArriveNoComplete && arrivals == state.pending) {
            self.report(Kind::AsyncMisuse, who, lane, || {
                format!("{arrivals} arrivals at the mbarrier at shared address {at:#x}, which is in {state}")
            })?;
            return Err(Halted);
        }
        match op {
            MbarOp::ArriveExpectTx | MbarOp::ExpectTx => mbarrier.bytes += i64::from(n),
            MbarOp::CompleteTx => mbarrier.bytes -= i64::from(n),
            MbarOp::ArriveDrop => mbarrier.count = mbarrier.count.saturating_sub(n),
            _ => {}
        }
        mbarrier.pending -= arrivals;
        if op == MbarOp::Inval {
            block.mbarriers.remove(&at);
        } else if op != MbarOp::ExpectTx {
            mbarrier.settle();
            if mbarrier.phase != state.phase {
                races::complete_mbarrier(&mut block.races, at);
            }
        }
        Ok(token)
    }

    /// `cp.async.mbarrier.arrive`: notes arrivals that follow the copies issued so far.
    fn arrive_after_copies(
        &mut self,
        warp: &mut Warp,
        block: &mut BlockState,
        here: Arrival,
        at: Addresses,
        no_inc: bool,
    ) -> Result<Next, Halted> {
        let who = Who::new(block, warp, here.pc);
        for lane in (0..32).filter(|lane| here.active >> lane & 1 == 1) {
            let mbarrier = self.mbarrier(block, who, lane as u32, at.0[lane] as u32)?;
            if !no_inc {
                mbarrier.pending += 1;
            }
            races::arrive_copies(&mut block.races, (warp.index, lane), at.0[lane]);
        }
        warp.copies.arrivals.push(CopyArrival { mask: here.active, at, pc: here.pc });
        block.progress += 1;
        Ok(Next::Step)
    }

    /// Completes the copies that somebody asked to be told of at an mbarrier, and arrives there.
    pub fn finish_arrivals(&mut self, warp: &mut Warp, block: &mut BlockState) -> Result<(), Halted> {
        for arrival in std::mem::take(&mut warp.copies.arrivals) {
            self.land(warp, block, arrival.mask, |_, _| true);
            let who = Who::new(block, warp, arrival.pc);
            for lane in (0..32).filter(|lane| arrival.mask >> lane & 1 == 1) {
                self.change(block, who, lane as u32, arrival.at.0[lane] as u32, MbarOp::Arrive, Some(1))?;
            }
        }
        Ok(())
    }

    /// Turns addresses of a space into generic ones, or back.
    pub fn convert_address(
        &mut self,
        warp: &mut Warp,
        block: &BlockState,
        mask: u32,
        (to_space, space, wide): (bool, Space, bool),
        d: u32,
        a: u32,
    ) {
        let start = super::access::window_start(space, block);
        for_lanes(mask, |lane| {
            if wide {
                let value = warp.regs.r64[a as usize].0[lane];
                let moved = if to_space { value.wrapping_sub(start) } else { value.wrapping_add(start) };
                warp.regs.r64[d as usize].0[lane] = moved;
            } else {
                warp.regs.r32[d as usize].0[lane] = warp.regs.r32[a as usize].0[lane];
            }
        });
    }

    /// Says whether generic addresses lie in a space.
    pub fn is_space(&mut self, warp: &mut Warp, block: &BlockState, mask: u32, space: Space, d: u32, a: u32) {
        let mut at = Addresses(warp.regs.r64[a as usize].0);
        let shares = self.by_space(Space::Generic, &mut at, mask, block);
        let mut lanes = shares.iter().filter(|share| share.0 == space).fold(0, |m, share| m | share.1);
        if matches!(space, Space::Const | Space::Global) {
            let mut constant = 0;
            for_lanes(shares[0].1, |lane| {
                let region = self.view.find(at.0[lane]).and_then(|index| self.view.region(index));
                constant |= u32::from(region.is_some_and(|r| r.read_only())) << lane;
            });
            lanes = if space == Space::Const { constant } else { shares[0].1 };
        }
        let register = &mut warp.regs.pred[d as usize];
        *register = *register & !mask | lanes & mask;
    }
}

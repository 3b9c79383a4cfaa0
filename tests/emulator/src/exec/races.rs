//! Tells the race detector what the threads of a block do.

use std::sync::Arc;

use super::access::{Access, Action};
use super::address::Addresses;
use super::barrier::BARRIERS;
use super::copies::Copy;
use super::engine::Engine;
use super::launch::Launch;
use super::warp::{State, Warp};
use crate::detect::{self, Kind, Memory};
use crate::isa::{MbarOp, Op, Order, Scope, Space, Ty};
use crate::memory::View;
use crate::regs::{FULL, LANES, Regs, Slot, for_lanes};
use crate::report::Report;

/// The detector of a block, if there is one.
pub type Races = Option<Box<detect::Block>>;

/// Begins the detector of another block.
pub fn begin(races: &mut Races, engine: &Engine, number: u64) {
    let Some(launch) = &engine.races else { return };
    let (threads, shared) = (engine.launch.threads() as usize, engine.launch.shared_bytes() as usize);
    match races {
        Some(races) => races.begin(number as u32, threads, shared),
        None => {
            *races = Some(Box::new(detect::Block::new(Arc::clone(launch), number as u32, threads, shared)))
        }
    }
}

/// Describes the races of a launch, at most so many.
pub fn reports(
    races: &Option<Arc<detect::Launch>>,
    launch: &Launch,
    view: &View,
    most: usize,
) -> Vec<Report> {
    let Some(races) = races else { return Vec::new() };
    let place = |memory, address| match memory {
        Memory::Shared => None,
        Memory::Global => {
            let region = view.region(view.find(address)?)?;
            Some(format!("byte {} of {}", address.checked_sub(region.start())?, region.describe()))
        }
    };
    let program = launch.kernel;
    let sizes = (launch.grid, launch.block);
    races
        .races()
        .iter()
        .take(most)
        .map(|race| detect::report(race, &program.kernel, program.files(), sizes, place))
        .collect()
}

/// Returns which memory of interest an access goes to.
#[inline(always)]
fn memory(space: Space) -> Option<Memory> {
    match space {
        Space::Shared => Some(Memory::Shared),
        Space::Global | Space::Generic => Some(Memory::Global),
        _ => None,
    }
}

fn seen<'a>(access: &Access, kind: Kind, at: &'a Addresses, lanes: u32) -> detect::Access<'a> {
    let (warp, pc) = (access.who.warp as usize, access.who.pc);
    detect::Access { warp, lanes, kind, bytes: access.size as u32, pc, addresses: &at.0 }
}

/// Sees a weak load, or a weak store with the values that lanes store.
#[inline(always)]
pub fn weak(races: &mut Races, access: &Access, at: &Addresses, lanes: u32, value: impl Fn(usize) -> u128) {
    if let (Some(races), Some(memory)) = (races, memory(access.space)) {
        let kind = if access.action == Action::Read { Kind::Read } else { Kind::Write };
        match memory {
            Memory::Shared => races.shared(&seen(access, kind, at, lanes), value),
            Memory::Global => races.global(&seen(access, kind, at, lanes), value),
        }
    }
}

/// Sees a weak load or store of global memory by a whole warp side by side, the first lane at `first`.
#[inline(always)]
pub fn row(races: &mut Races, (warp, pc): (u32, u32), kind: Kind, size: u64, first: u64) {
    if let Some(races) = races {
        let (warp, bytes, addresses) = (warp as usize, size as u32, &[0; LANES]);
        races.global_row(&detect::Access { warp, lanes: FULL, kind, bytes, pc, addresses }, first);
    }
}

/// Executes a strong access by calling `execute` with lanes, and sees it. `execute` returns the lanes that wrote; in global
/// memory it is called for one lane at a time, so that a flag hands on what was released before it was read.
pub fn strong(
    races: &mut Races,
    access: &Access,
    (order, scope): (Order, Scope),
    at: &Addresses,
    lanes: u32,
    mut execute: impl FnMut(u32) -> u32,
) {
    let kind = match access.action {
        Action::Read => Kind::StrongRead(order, scope),
        Action::Write => Kind::StrongWrite(order, scope),
        Action::Atomic => Kind::Atomic(order, scope),
    };
    let (Some(races), Some(memory)) = (races, memory(access.space)) else {
        execute(lanes);
        return;
    };
    let access = seen(access, kind, at, lanes);
    match memory {
        Memory::Shared => {
            let wrote = execute(lanes);
            races.shared_flag(&access, wrote);
        }
        Memory::Global => {
            for_lanes(lanes, |lane| races.global_flag(&access, lane, || ((), execute(1 << lane) != 0)));
        }
    }
}

/// Sees rows of a matrix that a whole warp loads or stores.
pub fn rows(races: &mut Races, access: &Access, at: &Addresses, rows: u32) {
    if let Some(races) = races {
        let kind = if access.action == Action::Read { Kind::Read } else { Kind::Write };
        races.shared_rows(&seen(access, kind, at, u32::MAX), &at.0[..rows.count_ones() as usize]);
    }
}

/// Sees that a copy was issued.
pub fn copy(races: &mut Races, to: &Access, from: &Access, copy: &Copy) {
    let Some(races) = races else { return };
    let mut whole = 0;
    let mut parts = Vec::new();
    for_lanes(copy.mask, |lane| match copy.read[lane] {
        read if u64::from(read) == copy.size => whole |= 1 << lane,
        read => parts.extend((0..u64::from(read)).map(|byte| {
            let mut at = copy.from;
            at.0[lane] += byte;
            (lane, at)
        })),
    });
    let byte = Access { size: 1, ..*from };
    let mut sources = vec![seen(from, Kind::CopyRead, &copy.from, whole)];
    sources.extend(parts.iter().map(|(lane, at)| seen(&byte, Kind::CopyRead, at, 1 << lane)));
    races.copy(&seen(to, Kind::CopyWrite, &copy.to, copy.mask), &sources);
}

/// Sees that lanes use mbarriers: they do not race with each other, but with loads and stores of the same bytes.
pub fn use_mbarriers(races: &mut Races, access: &Access, at: &Addresses, lanes: u32, init: bool) {
    if let Some(races) = races {
        let strong = Kind::StrongWrite(Order::Relaxed, Scope::Cta);
        races.record(&seen(access, if init { Kind::Write } else { strong }, at, lanes));
    }
}

/// Sees what a lane does to an mbarrier, before it does it.
pub fn arrive_mbarrier(races: &mut Races, (warp, lane): (u32, usize), at: u32, op: MbarOp, order: Order) {
    let Some(races) = races else { return };
    match op {
        MbarOp::Init | MbarOp::Inval => races.mbarrier_reset(at.into()),
        MbarOp::Arrive | MbarOp::ArriveDrop | MbarOp::ArriveExpectTx | MbarOp::ArriveNoComplete => {
            races.mbarrier_arrive(warp as usize, 1 << lane, at.into(), order != Order::Relaxed);
        }
        MbarOp::ExpectTx | MbarOp::CompleteTx | MbarOp::PendingCount => {}
    }
}

/// Sees that an mbarrier is to hear of a lane's copies.
pub fn arrive_copies(races: &mut Races, (warp, lane): (u32, usize), at: u64) {
    if let Some(races) = races {
        races.mbarrier_copies_arrive(warp as usize, lane, at);
    }
}

/// Sees that a phase is complete.
pub fn complete_mbarrier(races: &mut Races, at: u32) {
    if let Some(races) = races {
        races.mbarrier_complete(at.into());
    }
}

/// Lanes that have seen a phase complete: mbarrier, parity, who.
#[derive(Default)]
pub struct Waited(Vec<(u32, u32, u32)>);

impl Waited {
    /// Adds a lane.
    pub fn add(&mut self, at: u32, parity: u32, lane: usize) {
        match self.0.iter_mut().find(|w| (w.0, w.1) == (at, parity)) {
            Some(waited) => waited.2 |= 1 << lane,
            None => self.0.push((at, parity, 1 << lane)),
        }
    }

    /// Tells the detector.
    pub fn tell(self, races: &mut Races, warp: u32) {
        let Some(races) = races else { return };
        for (at, parity, lanes) in self.0 {
            races.mbarrier_wait(warp as usize, lanes, at.into(), parity);
        }
    }
}

/// Sees that a barrier opens; those that wait at it are about to go on.
pub fn open_barrier(races: &mut Races, warps: &[Warp], number: usize) {
    let Some(races) = races.as_mut().filter(|_| number < BARRIERS) else { return };
    let mut waiting = Vec::with_capacity(warps.len());
    let mut whole = true;
    for warp in warps {
        let here = warp.splits.iter().filter(|s| s.state == State::Barrier(number as u8));
        let lanes = here.fold(0, |lanes, split| lanes | split.mask);
        whole &= lanes == warp.live;
        if lanes != 0 {
            waiting.push((warp.index as usize, lanes));
        }
    }
    races.barrier(number as u32, &waiting, whole);
}

impl Engine<'_> {
    /// Returns order and scope of a load, a store or an atomic operation.
    pub fn strength(&self, pc: u32) -> (Order, Scope) {
        match self.program.kernel.code.get(pc as usize).map(|inst| inst.op) {
            Some(Op::Ld { order: Order::Volatile, .. } | Op::St { order: Order::Volatile, .. }) => {
                (Order::Volatile, Scope::Sys)
            }
            Some(Op::Ld { order, scope, .. } | Op::St { order, scope, .. }) => (order, scope),
            Some(Op::Atom { order: Order::Weak, scope, .. }) => (Order::Relaxed, scope),
            Some(Op::Atom { order, scope, .. }) => (order, scope),
            _ => (Order::Weak, Scope::Cta),
        }
    }
}

/// Sees a fence.
pub fn fence(races: &mut Races, warp: &Warp, lanes: u32, scope: Scope) {
    if let Some(races) = races {
        races.fence(warp.index as usize, lanes, scope);
    }
}

/// Sees that lanes end.
pub fn exit(races: &mut Races, warp: &Warp, lanes: u32) {
    if let Some(races) = races {
        races.exit(warp.index as usize, lanes);
    }
}

/// Sees that lanes have met at a `bar.warp.sync`.
pub fn warp_barrier(races: &mut Races, warp: &Warp, lanes: u32) {
    if let Some(races) = races {
        races.warp_barrier(warp.index as usize, lanes);
    }
}

/// Sees a `bar.arrive`.
pub fn arrive(races: &mut Races, warp: &Warp, lanes: u32, number: u32) {
    if let Some(races) = races {
        races.barrier_arrive(number, warp.index as usize, lanes);
    }
}

/// Sees the end of a group of copies.
pub fn commit(races: &mut Races, warp: &Warp, lanes: u32) {
    if let Some(races) = races {
        races.commit_copies(warp.index as usize, lanes);
    }
}

/// Sees a wait for copies.
pub fn wait(races: &mut Races, warp: &Warp, lanes: u32, left: Option<u32>) {
    if let Some(races) = races {
        races.wait_copies(warp.index as usize, lanes, left);
    }
}

/// Returns the bytes that a lane stores.
pub fn stored(regs: &Regs, ty: Ty, slots: &[Slot], lane: usize) -> u128 {
    debug_assert!(lane < LANES);
    let bits = 8 * ty.bytes();
    slots.iter().rev().fold(0, |value, &slot| {
        let one = if ty.is_wide() {
            regs.r64[slot as usize].0[lane]
        } else {
            regs.r32[slot as usize].0[lane].into()
        };
        let one = if bits < 64 { one & ((1 << bits) - 1) } else { one };
        value.checked_shl(bits).unwrap_or(0) | u128::from(one)
    })
}

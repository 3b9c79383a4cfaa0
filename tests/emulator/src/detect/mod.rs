//! Races: two accesses of the same bytes, at least one of them a write, that nothing orders.
//!
//! ```text
//! threads of a warp     bar.warp.sync (not: shuffles and votes, which order no memory accesses, and not: lockstep)
//! warps of a block      bar.sync, bar.red; bar.arrive -> bar.sync; mbarrier arrive -> wait; flags with fences
//! blocks of a launch    flags of scope gpu: release -> acquire, or fence + relaxed write -> relaxed read + fence
//! launches              one after the other: each has a history of its own
//! asynchronous copies   from their issue to the wait of the issuing thread; after it, as if that thread had written
//! ```
//! A flag is any memory that is accessed by atomic, volatile or relaxed operations; these do not race with each other (within
//! their scope). What a relaxed read of a flag has found counts after the next fence *or barrier* of that thread, since the
//! usual "thread 0 spins, then all meet at a barrier" has no fence there; a fence of each thread before a barrier serves
//! whoever sets the flag after it. An exited thread counts as one that has arrived at every barrier.
//!
//! An access that comes after an atomic operation comes after all that this one has seen at the same place: so the last
//! block may reset a counter.
//!
//! Lanes that store *different* values to one address in one instruction race; equal values are harmless, and are not reported.
//!
//! The verdict follows from these rules alone, not from the order in which the emulator happened to run the accesses: see
//! `shared` and `global` for what is remembered and what may be forgotten.
//!
//! Room for other memory proxies (TMA, wgmma): their accesses are asynchronous copies with another actor, and "written by the
//! generic proxy, not fenced" is one more bit of `kind::What`.

mod clock;
mod global;
mod kind;
mod pages;
mod part;
mod pieces;
mod report;
mod shared;
mod sync;
#[cfg(test)]
mod tests;
mod threads;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use crate::isa::Scope;
use crate::regs::{FULL, LANES, for_lanes};

use global::{Entry, LINE};
use kind::{COPY, What};
use pages::{Pages, Recent, lock};
use part::{Part, Row};
use pieces::{all_differ, are_side_by_side, cut, for_groups};
use shared::{CHUNK, COPY_NUMBER, Cells, Clash, Record};
use sync::{Flags, Meetings};
use threads::Threads;

pub use kind::Kind;
pub use pages::Spare;
pub use report::report;

/// Which memory an access goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Memory {
    /// Of the block.
    Shared,
    /// Of the device.
    Global,
}

/// One instruction's access, by lanes of one warp.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// The warp's number in its block.
    pub warp: usize,
    /// Lanes that take part.
    pub lanes: u32,
    /// What they do.
    pub kind: Kind,
    /// Bytes of each lane: 1, 2, 4, 8 or 16.
    pub bytes: u32,
    /// Index of the instruction in its kernel.
    pub pc: u32,
    /// A multiple of `bytes` for each lane: in shared memory from its start, in global memory the device address.
    pub addresses: &'a [u64; LANES],
}

/// One side of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    /// Number of the block in its grid.
    pub block: u32,
    /// Number of the thread in its block.
    pub thread: usize,
    /// Index of the instruction in its kernel.
    pub pc: u32,
    /// It writes.
    pub writes: bool,
    /// It is an atomic operation.
    pub atomic: bool,
    /// It is an asynchronous copy.
    pub copy: bool,
}

/// Two accesses that nothing orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Race {
    /// Where.
    pub memory: Memory,
    /// Of the first granule of four bytes that was found, as in [`Access::addresses`].
    pub address: u64,
    /// The access that the emulator happened to execute first.
    pub first: Party,
    /// The other one.
    pub second: Party,
    /// The two are lanes of one instruction that stored different values.
    pub same_instruction: bool,
    /// How often these two instructions were found to race.
    pub count: u64,
}

/// The races of one launch, and what its blocks share.
pub struct Launch {
    pages: Pages,
    flags: Flags,
    races: Mutex<HashMap<(u32, u32, bool), Race>>,
}

impl Default for Launch {
    fn default() -> Self {
        Self::new()
    }
}

impl Launch {
    /// Begins a launch: everything before is ordered before it.
    pub fn new() -> Self {
        Self::reusing(Spare::default())
    }

    /// The same, with memory of an earlier launch.
    pub fn reusing(spare: Spare) -> Self {
        Self { pages: Pages::new(spare), flags: Flags::new(), races: Mutex::default() }
    }

    /// Ends the launch, and leaves its memory to another.
    pub fn into_spare(self) -> Spare {
        self.pages.into_spare()
    }

    /// Returns the races found so far, one for each pair of instructions, in the order of the code.
    pub fn races(&self) -> Vec<Race> {
        let mut races: Vec<_> = lock(&self.races).values().copied().collect();
        races.sort_by_key(|r| (r.second.pc, r.first.pc));
        races
    }

    fn add(&self, race: Race) {
        let (a, b) = (race.first.pc, race.second.pc);
        let key = (a.min(b), a.max(b), race.same_instruction);
        lock(&self.races).entry(key).and_modify(|r| r.count += 1).or_insert(race);
    }
}

/// The detector of one block. Warps and threads are numbered from 0 in the block.
pub struct Block {
    launch: Arc<Launch>,
    threads: Threads,
    cells: Cells,
    meetings: Meetings,
    /// The pages that were used last, by this block or an earlier one.
    recent: Recent,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("number", &self.threads.block).finish_non_exhaustive()
    }
}

impl Block {
    /// Begins a block of so many threads and bytes of shared memory.
    pub fn new(launch: Arc<Launch>, block: u32, threads: usize, shared_bytes: usize) -> Self {
        let (mut cells, threads) = (Cells::default(), Threads::new(block, threads));
        cells.begin(shared_bytes, 0, None);
        Self { launch, threads, cells, meetings: Meetings::default(), recent: Recent::default() }
    }

    /// Ends the block and begins another one of the same launch, with as many threads.
    pub fn begin(&mut self, block: u32, threads: usize, shared_bytes: usize) {
        if self.threads.tick() > u32::MAX / 4 {
            self.cells = Cells::default();
            self.threads.forget();
        }
        self.cells.begin(shared_bytes, self.threads.tick(), self.threads.copied());
        self.threads.begin(block, threads);
        self.meetings.clear();
    }

    /// Records weak accesses to shared memory. `value` gives what a lane stores, if lanes store to one address.
    pub fn shared(&mut self, access: &Access<'_>, value: impl Fn(usize) -> u128) {
        self.check_instruction(Memory::Shared, access, value);
        self.record_shared(access, None);
    }

    /// Records weak accesses to global memory. `value` gives what a lane stores, if lanes store to one address.
    pub fn global(&mut self, access: &Access<'_>, value: impl Fn(usize) -> u128) {
        self.check_instruction(Memory::Global, access, value);
        self.record_global(access, None);
    }

    /// The same of a whole warp that accesses global memory side by side, the first lane at `first`; of `access` the
    /// addresses do not count.
    #[inline(always)]
    pub fn global_row(&mut self, access: &Access<'_>, first: u64) {
        let Self { launch, threads, recent, .. } = self;
        let (who, epoch) = ((threads.block, access.warp), threads.warp(access.warp).epoch);
        let what = What::new(access.kind.flags(), 15, access.pc);
        let end = first.saturating_add(LANES as u64 * u64::from(access.bytes));
        for line in first / LINE..end.div_ceil(LINE) {
            let start = first.wrapping_sub(line * LINE) as i64;
            let new = Row::new(who, epoch, what, (start, access.bytes.trailing_zeros()));
            let mut part = recent.part(&launch.pages, line);
            if !part.touch_row(line, &new) {
                record_slowly(&mut part, line, &new.entry(), threads, (access, launch));
            }
        }
    }

    /// Records that every lane of a warp reads, or writes, rows of 16 bytes together (`ldmatrix`, `stmatrix`).
    pub fn shared_rows(&mut self, access: &Access<'_>, rows: &[u64]) {
        let Self { launch, threads, cells, .. } = self;
        let epoch = threads.warp(access.warp).epoch;
        let what = What::new(access.kind.flags(), 15, access.pc);
        let new = Record { epoch, warps: 1 << access.warp, lanes: access.lanes, what };
        for &row in rows {
            let first = row as usize / 4;
            if access.kind == Kind::Read && cells.read_chunk(first / CHUNK, &new) {
                continue;
            }
            cells.touch(first..first + 4, &new, threads, &mut |clash| {
                launch.add(race(Memory::Shared, threads.block, access, what, clash));
            });
        }
    }

    /// Records accesses to shared memory that hand nothing on, and of which no two in one instruction conflict.
    pub fn record(&mut self, access: &Access<'_>) {
        self.record_shared(access, None);
    }

    fn record_shared(&mut self, access: &Access<'_>, copies: Option<&[u32; LANES]>) {
        let Self { launch, threads, cells, .. } = self;
        let epoch = threads.warp(access.warp).epoch;
        let (flags, granules) = (access.kind.flags(), access.bytes.div_ceil(4) as usize);
        let what = What::new(flags, 15, access.pc);
        let mut new = Record { epoch, warps: 1 << access.warp, lanes: 0, what };
        let wide = access.kind == Kind::Read && access.bytes == 16;
        let mut clash = |clash: Clash| launch.add(race(Memory::Shared, threads.block, access, what, clash));
        if let Some(first) = side_by_side_words(access).filter(|_| access.kind == Kind::Read) {
            return cells.read_words(threads, first, new, &mut clash);
        }
        for_groups(access.lanes, access.addresses, |address, lanes| {
            let first = (address / 4) as usize;
            if access.bytes < 4 {
                new.what = What::new(flags, ((1 << access.bytes) - 1) << (address % 4) & 15, access.pc);
            }
            let Some(copies) = copies else {
                new.lanes = lanes;
                if wide && cells.read_chunk(first / CHUNK, &new) {
                    return;
                }
                return cells.touch(first..first + granules, &new, threads, &mut clash);
            };
            for_lanes(lanes, |lane| {
                new = Record { lanes: 1 << lane, epoch: copies[lane] | COPY_NUMBER, ..new };
                cells.touch(first..first + granules, &new, threads, &mut clash);
            });
        });
    }

    fn record_global(&mut self, access: &Access<'_>, copies: Option<&[u32; LANES]>) {
        let epoch = self.threads.warp(access.warp).epoch;
        let Some(copies) = copies else { return self.record_pieces(access, epoch) };
        let mut left = access.lanes;
        while left != 0 {
            let copy = copies[left.trailing_zeros() as usize];
            let mut lanes = 0;
            for_lanes(left, |lane| lanes |= u32::from(copies[lane] == copy) << lane);
            self.record_pieces(&Access { lanes, ..*access }, copy);
            left &= !lanes;
        }
    }

    fn record_pieces(&mut self, access: &Access<'_>, epoch: u32) {
        let Self { launch, threads, recent, .. } = self;
        let flags = access.kind.flags();
        cut(access.lanes, access.bytes, access.addresses, |(line, piece, bytes)| {
            let what = What::new(flags, bytes, access.pc);
            let new = Entry { piece, block: threads.block, epoch, what, warp: access.warp as u8 };
            let mut part = recent.part(&launch.pages, line);
            record_slowly(&mut part, line, &new, threads, (access, launch));
        });
    }

    /// Reports lanes that store different values to one address.
    fn check_instruction(&self, memory: Memory, access: &Access<'_>, value: impl Fn(usize) -> u128) {
        if access.kind != Kind::Write || all_differ(access.lanes, access.addresses) {
            return;
        }
        for_groups(access.lanes, access.addresses, |address, lanes| {
            let lane = lanes.trailing_zeros() as usize;
            let others = lanes & lanes.wrapping_sub(1);
            if others == 0 {
                return;
            }
            let mut other = None;
            for_lanes(others, |l| other = other.or((value(l) != value(lane)).then_some(l)));
            let Some(other) = other else { return };
            let what = What::new(access.kind.flags(), 15, access.pc);
            let (block, thread) = (self.threads.block, access.warp * LANES + lane);
            let clash = Clash { old: what, block, thread, lane: other, address };
            let race = race(memory, block, access, what, clash);
            self.launch.add(Race { same_instruction: true, ..race });
        });
    }
}

/// Asynchronous copies (`cp.async`).
impl Block {
    /// Lanes issue copies: `to` in shared memory is written, all of `from` in global memory is read.
    pub fn copy(&mut self, to: &Access<'_>, from: &[Access<'_>]) {
        let mut numbers = [0; LANES];
        for_lanes(to.lanes, |lane| numbers[lane] = self.threads.issue_copy(to.warp, lane));
        self.check_copies(to);
        self.record_shared(&Access { kind: Kind::CopyWrite, ..*to }, Some(&numbers));
        for from in from {
            self.record_global(&Access { kind: Kind::CopyRead, ..*from }, Some(&numbers));
        }
    }

    /// Lanes of one instruction that copy to the same address race, whatever they copy.
    fn check_copies(&self, to: &Access<'_>) {
        self.check_instruction(Memory::Shared, &Access { kind: Kind::Write, ..*to }, |lane| lane as u128);
    }

    /// `cp.async.commit_group`
    pub fn commit_copies(&mut self, warp: usize, lanes: u32) {
        self.threads.commit_copies(warp, lanes);
    }

    /// `cp.async.wait_group`, or `cp.async.wait_all` (`left` is none).
    pub fn wait_copies(&mut self, warp: usize, lanes: u32, left: Option<u32>) {
        self.threads.wait_copies(warp, lanes, left);
    }

    /// `cp.async.mbarrier.arrive`: who waits for this phase knows the copies that the lane has issued so far.
    pub fn mbarrier_copies_arrive(&mut self, warp: usize, lane: usize, mbarrier: u64) {
        let mbarrier = self.meetings.mbarrier(mbarrier);
        self.threads.bring_copies(warp, 1 << lane, &mut mbarrier.coming);
    }
}

/// Flags: strong accesses. Each records the access, and hands knowledge on.
impl Block {
    /// Records strong accesses to shared memory, after they were executed; `wrote` has the lanes that changed, or may have
    /// changed, the memory (not: those whose comparison failed).
    pub fn shared_flag(&mut self, access: &Access<'_>, wrote: u32) {
        self.record_shared(access, None);
        let flag = sync::Flag::of(access.kind);
        for_lanes(access.lanes, |lane| {
            let address = access.addresses[lane];
            self.meetings.flag(&mut self.threads, (access.warp, lane), address, flag, wrote >> lane & 1 != 0);
        });
        if flag.releases() {
            self.threads.advance(access.warp);
        }
    }

    /// Executes and records a strong access of one lane to global memory: `execute` does it, and returns whether it changed
    /// the memory. No other block accesses the flag in between, so that it hands on just what was released before.
    pub fn global_flag<T>(
        &mut self,
        access: &Access<'_>,
        lane: usize,
        execute: impl FnOnce() -> (T, bool),
    ) -> T {
        let flag = sync::Flag::of(access.kind);
        let launch = Arc::clone(&self.launch);
        let mut flags = launch.flags.hold(access.addresses[lane]);
        let (result, wrote) = execute();
        // Recorded in the order in which they were executed: it says who has seen what.
        self.record_global(&Access { lanes: 1 << lane, ..*access }, None);
        flags.pass(&mut self.threads, (access.warp, lane), access.addresses[lane], flag, wrote);
        drop(flags);
        if flag.releases() {
            self.threads.advance(access.warp);
        }
        result
    }

    /// `fence`, `membar`
    pub fn fence(&mut self, warp: usize, lanes: u32, scope: Scope) {
        self.threads.fence(warp, lanes, scope);
    }
}

/// Meetings: barriers of warps and blocks, and mbarriers.
impl Block {
    /// Lanes exit.
    pub fn exit(&mut self, warp: usize, lanes: u32) {
        self.threads.exit(warp, lanes);
    }

    /// `bar.warp.sync`: these lanes have met.
    pub fn warp_barrier(&mut self, warp: usize, lanes: u32) {
        self.threads.meet(&[(warp, lanes)], Default::default(), false);
    }

    /// `bar.arrive`
    pub fn barrier_arrive(&mut self, barrier: u32, warp: usize, lanes: u32) {
        let meeting = self.meetings.barrier(barrier);
        self.threads.bring(warp, lanes, meeting);
        self.threads.advance(warp);
    }

    /// A barrier is complete: `waiting` are the warps and lanes that go on now; `whole` if no thread that has not exited is
    /// missing.
    pub fn barrier(&mut self, barrier: u32, waiting: &[(usize, u32)], whole: bool) {
        let meeting = std::mem::take(self.meetings.barrier(barrier));
        self.threads.meet(waiting, meeting, whole);
        let Some(view) = waiting.first().filter(|_| whole).and_then(|w| self.threads.common_view(w.0)) else {
            return;
        };
        self.cells.forget(view.own.floor, view.own.copies());
    }

    /// Lanes arrive on an mbarrier; unless `releases`, they hand on nothing.
    pub fn mbarrier_arrive(&mut self, warp: usize, lanes: u32, mbarrier: u64, releases: bool) {
        if releases {
            let mbarrier = self.meetings.mbarrier(mbarrier);
            self.threads.bring(warp, lanes, &mut mbarrier.coming);
            self.threads.advance(warp);
        }
    }

    /// A phase of an mbarrier is complete.
    pub fn mbarrier_complete(&mut self, mbarrier: u64) {
        self.meetings.mbarrier(mbarrier).complete();
    }

    /// An mbarrier is new, or is no longer one.
    pub fn mbarrier_reset(&mut self, mbarrier: u64) {
        self.meetings.reset(mbarrier);
    }

    /// Lanes have seen, with an operation that acquires, that the latest phase of this parity (from 0, counted since
    /// the mbarrier was initialised) is complete.
    pub fn mbarrier_wait(&mut self, warp: usize, lanes: u32, mbarrier: u64, parity: u32) {
        let mbarrier = self.meetings.mbarrier(mbarrier);
        self.threads.learn(warp, lanes, mbarrier.completed(parity));
    }
}

#[inline(never)]
fn record_slowly(
    part: &mut Part,
    line: u64,
    new: &Entry,
    threads: &Threads,
    (access, launch): (&Access<'_>, &Launch),
) {
    part.touch(line, new, threads, &mut |clash| {
        launch.add(race(Memory::Global, threads.block, access, new.what, clash));
    });
}

/// Returns the first granule if a whole warp accesses 32 words side by side that make up whole chunks.
fn side_by_side_words(access: &Access<'_>) -> Option<usize> {
    let first = access.addresses[0];
    if access.lanes != FULL || access.bytes != 4 || !first.is_multiple_of(16) {
        return None;
    }
    are_side_by_side(4, access.addresses).then_some((first / 4) as usize)
}

fn race(memory: Memory, block: u32, access: &Access<'_>, what: What, clash: Clash) -> Race {
    let party = |block, thread, what: What| Party {
        block,
        thread,
        pc: what.pc(),
        writes: what.is(kind::WRITES),
        atomic: what.is(kind::ATOMIC),
        copy: what.is(COPY),
    };
    let first = party(clash.block, clash.thread, clash.old);
    let second = party(block, access.warp * LANES + clash.lane, what);
    Race { memory, address: clash.address, first, second, same_instruction: false, count: 1 }
}

//! The history of global memory: for each line of 128 bytes the accesses that a later one may race with.
//!
//! Most accesses are those of a whole warp to consecutive addresses, and most data is read by many blocks and written by
//! none. So a line keeps a list of *pieces*, each the part of one warp's access that lies in it, and reads look only at
//! writes. Where lines lie, and a shorter form of them for the usual case: see `part` and `pages`.

use std::collections::HashSet;

use super::clock::Seen;
use super::kind::{ATOMIC, COPY, NARROW, STRONG, WRITES, What, conflict, replaces};
use super::shared::Clash;
use super::threads::Threads;
use crate::regs::{LANES, for_lanes};

/// Bytes of a line.
pub(super) const LINE: u64 = 128;
/// A list is tidied when it is as long as this.
const LONG: usize = 64;
/// Only so many of the latest pieces are looked at to find one that a new one makes superfluous.
const RECENT: usize = 4;
/// `shift` of a piece of which each lane touches all bytes.
pub(super) const ALL: u8 = u8::MAX;

/// The part of a warp's access that lies in one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    /// Granules of which at least a byte is touched.
    pub(super) granules: u32,
    /// Lanes that touch them.
    pub(super) lanes: u32,
    /// Where lane 0 would be, in bytes from the line's start, if lanes lie side by side.
    pub(super) start: i16,
    /// Lanes lie side by side, each with `1 << shift` bytes; or [`ALL`].
    pub(super) shift: u8,
}

impl Piece {
    /// Makes the part in a line of lanes side by side, from the first to the last of those of `1 << shift` bytes; nothing
    /// if none touches the line. Lane 0 would be at `start`, counted from the line's begin.
    #[inline(always)]
    pub(super) fn of_row(start: i64, shift: u32, (first, last): (u32, u32)) -> Option<Self> {
        let from = ((-start).max(0) >> shift).max(i64::from(first)) as u32;
        let below = ((LINE as i64 - start) >> shift).min(i64::from(last) + 1) as u32;
        if from >= below {
            return None;
        }
        let lanes = (u32::MAX >> (32 - (below - from))) << from;
        let byte = |lane: u32| (start + (i64::from(lane) << shift)) as u32;
        let (low, high) = (byte(from) / 4, (byte(below) - 1) / 4);
        let granules = (u32::MAX >> (31 - (high - low))) << low;
        Some(Self { granules, lanes, start: start as i16, shift: shift as u8 })
    }

    /// Returns the lanes that touch a byte; `bytes` is the mask within a granule, for [`ALL`].
    fn lanes_at(&self, byte: u32, bytes: u32) -> u32 {
        if self.granules >> (byte / 4) & 1 == 0 {
            return 0;
        }
        if self.shift == ALL {
            return if bytes >> (byte % 4) & 1 != 0 { self.lanes } else { 0 };
        }
        let lane = (byte as i32 - i32::from(self.start)) >> self.shift;
        if (0..LANES as i32).contains(&lane) { self.lanes & 1 << lane } else { 0 }
    }

    /// Returns whether all bytes of the granules are touched.
    fn is_full(&self, bytes: u32) -> bool {
        match self.shift {
            ALL => bytes == 15,
            2.. => true,
            shift => self.granules.count_ones() * 4 == self.lanes.count_ones() << shift,
        }
    }
}

/// A recorded access.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    pub(super) piece: Piece,
    pub(super) block: u32,
    /// The epoch of the warp; for an asynchronous copy its number, the same in all lanes.
    pub(super) epoch: u32,
    pub(super) what: What,
    pub(super) warp: u8,
}

impl Entry {
    fn is_of_same_threads(&self, other: &Entry) -> bool {
        self.block == other.block
            && self.warp == other.warp
            && self.piece == other.piece
            && self.what.bytes() == other.what.bytes()
    }

    /// Returns whether each byte that both touch is touched by one and the same thread.
    fn is_in_program_order(&self, other: &Entry) -> bool {
        let (a, b) = (&self.piece, &other.piece);
        let linear = a.shift != ALL && a.shift == b.shift && a.start == b.start;
        let single = a.lanes == b.lanes && a.lanes.is_power_of_two();
        self.block == other.block && self.warp == other.warp && (linear || single)
    }

    /// Adds the lanes or granules of another access of the same instruction, if the result says the truth.
    fn merge(&mut self, new: &Entry) -> bool {
        let same = self.block == new.block && self.warp == new.warp && self.epoch == new.epoch;
        if same && self.what.is_like(new.what) && self.piece == new.piece {
            return true;
        }
        if !same || self.what != new.what || self.piece.shift != ALL || new.piece.shift != ALL {
            return false;
        }
        if self.piece.granules == new.piece.granules {
            self.piece.lanes |= new.piece.lanes;
        } else if self.piece.lanes == new.piece.lanes {
            self.piece.granules |= new.piece.granules;
        } else {
            return false;
        }
        true
    }
}

/// The accesses to a line: at most a write and a read, neither of them strong; or lists.
#[derive(Default)]
pub(super) struct Line {
    pub(super) write: Entry,
    pub(super) read: Entry,
    pub(super) lists: Option<Box<Lists>>,
}

/// The accesses to a line of which more is to be remembered.
#[derive(Default)]
pub(super) struct Lists {
    writes: Vec<Entry>,
    reads: Vec<Entry>,
    /// Atomic and other strong accesses, in the order in which they were done last.
    strong: Vec<Entry>,
    /// Whether a strong access does not reach beyond its block.
    narrow: bool,
}

impl Line {
    /// Records an access to a line; `clash` is called for each recorded access that it races with.
    pub(super) fn touch(&mut self, line: u64, new: &Entry, threads: &Threads, clash: &mut impl FnMut(Clash)) {
        let at = self;
        let mut keep = |old: &Entry| keep(old, new, line, threads, clash);
        if at.lists.is_none() {
            if !keep(&at.write) {
                at.write = Entry::default();
            }
            if new.what.is(WRITES) && !keep(&at.read) {
                at.read = Entry::default();
            }
            if at.add(new, threads) {
                return;
            }
            at.spill();
        } else if let Some(lists) = &mut at.lists {
            lists.writes.retain(&mut keep);
            if !new.what.is(STRONG) || new.what.is(NARROW) || lists.narrow {
                let observer = observer(&lists.strong, new, threads);
                let mut index = 0;
                lists.strong.retain(|old| {
                    index += 1;
                    observer.is_some_and(|(at, by)| index <= at && is_observed(old, &by, new)) || keep(old)
                });
            }
            if new.what.is(WRITES) {
                lists.reads.retain(&mut keep);
            }
        }
        if let Some(lists) = &mut at.lists {
            lists.add(new, threads);
        }
    }
}

/// Returns whether a recorded access must be remembered when a new one comes; tells whether the two race.
fn keep(old: &Entry, new: &Entry, line: u64, threads: &Threads, clash: &mut impl FnMut(Clash)) -> bool {
    if old.piece.granules & new.piece.granules == 0 {
        return old.piece.granules != 0;
    }
    let (flags, old_flags) = (new.what.flags(), old.what.flags());
    if conflict(old_flags, flags, old.block == new.block)
        && let Some((thread, lane, byte)) = unordered(old, new, threads)
    {
        let address = line * LINE + u64::from(byte & !3);
        clash(Clash { old: old.what, block: old.block, thread, lane, address });
        return !(covers(new, old) && replaces(flags, old_flags));
    }
    !is_superseded(old, new, threads)
}

/// Returns the latest strong access that read all that a new weak access touches, and that the new one comes after.
fn observer(strong: &[Entry], new: &Entry, threads: &Threads) -> Option<(usize, Entry)> {
    let observes = |e: &Entry| {
        let reads = e.what.is(ATOMIC) || !e.what.is(WRITES);
        reads && new.piece.granules & !e.piece.granules == 0 && unordered(e, new, threads).is_none()
    };
    let at = strong.iter().rposition(observes).filter(|_| !new.what.is(STRONG))?;
    Some((at, strong[at]))
}

/// Returns whether an earlier strong access comes before a new weak one since `by` read what it wrote: atomic operations at
/// one place have one order, so that the last block may reset the counter of arrivals.
fn is_observed(old: &Entry, by: &Entry, new: &Entry) -> bool {
    let strong = !conflict(old.what.flags(), by.what.flags(), old.block == by.block);
    strong && old.piece.granules & new.piece.granules & !by.piece.granules == 0
}

impl Line {
    /// Adds an access if there is a place for it.
    fn add(&mut self, new: &Entry, threads: &Threads) -> bool {
        let place = if new.what.is(WRITES) { &mut self.write } else { &mut self.read };
        if new.what.is(STRONG) {
            return false;
        }
        if place.piece.granules == 0 || is_superseded(place, new, threads) {
            *place = *new;
            return true;
        }
        !new.what.is(COPY) && place.merge(new)
    }

    /// Makes room.
    fn spill(&mut self) {
        let lists = self.lists.get_or_insert_default();
        let (write, read) = (std::mem::take(&mut self.write), std::mem::take(&mut self.read));
        lists.writes.extend(Some(write).filter(|e| e.piece.granules != 0));
        lists.reads.extend(Some(read).filter(|e| e.piece.granules != 0));
    }
}

impl Lists {
    fn add(&mut self, new: &Entry, threads: &Threads) {
        self.narrow |= new.what.is(NARROW);
        let list = match (new.what.is(STRONG), new.what.is(WRITES)) {
            (true, _) => &mut self.strong,
            (false, true) => &mut self.writes,
            (false, false) => &mut self.reads,
        };
        let recent = list.len().saturating_sub(RECENT);
        for at in (recent..list.len()).rev() {
            let old = &mut list[at];
            let merged = !new.what.is(COPY) && old.merge(new);
            if merged || is_superseded(old, new, threads) {
                if !merged {
                    *old = *new;
                }
                list[at..].rotate_left(1);
                return;
            }
        }
        if list.len() >= LONG && list.len() == list.capacity() {
            tidy(list);
        }
        list.push(*new);
    }
}

/// Removes accesses that the same threads have repeated.
fn tidy(list: &mut Vec<Entry>) {
    let mut met = HashSet::new();
    list.reverse();
    list.retain(|e| {
        let piece = (e.piece.granules, e.piece.lanes, e.piece.start, e.piece.shift);
        e.what.is(COPY) || met.insert((e.block, e.warp, piece, e.what.bytes(), e.what.flags()))
    });
    list.reverse();
}

/// Returns whether the later access makes the earlier one superfluous.
fn is_superseded(old: &Entry, new: &Entry, threads: &Threads) -> bool {
    if !replaces(new.what.flags(), old.what.flags()) || old.what.is(COPY) {
        return false;
    }
    if old.is_of_same_threads(new) {
        return true;
    }
    if !covers(new, old) {
        return false;
    }
    if old.piece.lanes.is_power_of_two() && new.piece.lanes.is_power_of_two() {
        let thread = thread_of(old, old.piece.lanes.trailing_zeros());
        return knows(old, thread, new, new.piece.lanes.trailing_zeros() as usize, threads);
    }
    is_known_to_warp(old, new, threads)
}

/// Returns whether `new` touches all bytes that `old` touches.
fn covers(new: &Entry, old: &Entry) -> bool {
    old.piece.granules & !new.piece.granules == 0 && new.piece.is_full(new.what.bytes())
}

/// Returns whether all lanes of the new access's warp know the old one by the numbers for whole warps.
fn is_known_to_warp(old: &Entry, new: &Entry, threads: &Threads) -> bool {
    let covers = |seen: &Seen| old.epoch <= seen.floor.max(seen.warps[old.warp as usize]);
    if old.what.is(COPY) {
        return false;
    }
    if old.block == threads.block && old.epoch <= threads.warp(new.warp.into()).floor {
        return true;
    }
    let Some(view) = threads.common_view(new.warp.into()) else { return false };
    if old.block == threads.block { covers(&view.own) } else { view.of_block(old.block).is_some_and(covers) }
}

/// Returns a thread of the old access, a lane of the new one and a byte of the line that both touch in no order.
fn unordered(old: &Entry, new: &Entry, threads: &Threads) -> Option<(usize, usize, u32)> {
    if is_known_to_warp(old, new, threads) || (!old.what.is(COPY) && old.is_in_program_order(new)) {
        return None;
    }
    let mut found = None;
    for_lanes(old.piece.granules & new.piece.granules, |granule| {
        for byte in granule as u32 * 4..granule as u32 * 4 + 4 {
            for_lanes(old.piece.lanes_at(byte, old.what.bytes()), |old_lane| {
                for_lanes(new.piece.lanes_at(byte, new.what.bytes()), |lane| {
                    let thread = thread_of(old, old_lane as u32);
                    if found.is_none() && !knows(old, thread, new, lane, threads) {
                        found = Some((thread, lane, byte));
                    }
                });
            });
        }
    });
    found
}

fn thread_of(entry: &Entry, lane: u32) -> usize {
    usize::from(entry.warp) * LANES + lane as usize
}

fn knows(old: &Entry, thread: usize, new: &Entry, lane: usize, threads: &Threads) -> bool {
    let viewer = (usize::from(new.warp), lane);
    match (old.block == threads.block, old.what.is(COPY)) {
        (true, false) => threads.knows(viewer, thread, old.epoch),
        (true, true) => threads.knows_copy(viewer, thread, old.epoch),
        (false, copy) => {
            let seen = threads.view(viewer.0, viewer.1).of_block(old.block);
            seen.is_some_and(|s| {
                if copy { s.covers_copy(thread, old.epoch) } else { s.covers(thread, old.epoch) }
            })
        }
    }
}

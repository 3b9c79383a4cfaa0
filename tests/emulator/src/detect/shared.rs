//! The history of shared memory: for each granule of four bytes the accesses that a later one may race with.
//!
//! A granule forgets an access once everything that could race with it would race with a newer one too, or once all threads
//! of the block have met at a barrier. So the verdict for a granule depends on what is ordered with what alone, and not on
//! the order in which the accesses came.

use std::ops::Range;
use std::sync::Arc;

use super::clock::View;
use super::kind::{COPY, STRONG, WRITES, What, conflict, replaces};
use super::threads::Threads;
use crate::regs::{LANES, for_lanes};

/// Accesses of the same kind at the same epoch by every lane of `lanes` in every warp of `warps`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Record {
    /// The epoch; for an asynchronous copy its number plus [`COPY_NUMBER`], and there is one thread.
    pub(super) epoch: u32,
    pub(super) warps: u32,
    pub(super) lanes: u32,
    pub(super) what: What,
}

/// Added to the numbers of copies, so that they lie above all epochs: those of a block end far below.
pub(super) const COPY_NUMBER: u32 = 1 << 31;

impl Record {
    /// Returns the number of a copy.
    fn copy(&self) -> u32 {
        self.epoch & !COPY_NUMBER
    }

    /// Returns the first thread.
    pub(super) fn thread(&self) -> usize {
        self.warps.trailing_zeros() as usize * LANES + self.lanes.trailing_zeros() as usize
    }

    /// Adds the threads of another record of the same instruction, if the result says the truth.
    #[inline(always)]
    fn merge(&mut self, new: &Record) -> bool {
        if self.epoch != new.epoch || new.what.is(COPY) {
            return false;
        }
        if self.what == new.what && self.lanes == new.lanes {
            self.warps |= new.warps;
            return true;
        }
        if self.what == new.what && self.warps == new.warps {
            self.lanes |= new.lanes;
            return true;
        }
        let contained = self.warps & new.warps == new.warps && self.lanes & new.lanes == new.lanes;
        contained && self.what.is_like(new.what)
    }
}

/// What a granule remembers: a write and another access; or, if there is more, a list.
#[derive(Clone, Copy, Default)]
#[repr(align(32))]
struct Cell {
    write: Record,
    other: Record,
}

/// Granules of a chunk.
pub(super) const CHUNK: usize = 4;

/// Epoch of `Cell::write` if the cell is a list, whose index is in `lanes`.
const LIST: u32 = u32::MAX;

/// Two accesses that nothing orders.
pub(super) struct Clash {
    /// The one that was recorded.
    pub(super) old: What,
    /// Its block.
    pub(super) block: u32,
    /// Its thread in the block.
    pub(super) thread: usize,
    /// Lane of the new access.
    pub(super) lane: usize,
    /// Address of the granule.
    pub(super) address: u64,
}

/// The history of the shared memory of one block.
#[derive(Default)]
pub(super) struct Cells {
    cells: Vec<Cell>,
    /// Weak reads of whole chunks of four granules, which are most accesses: by all of `lanes`, or if `bytes` is 0 of each
    /// granule by the next of four lanes. What a chunk has here is not in its cells; writes put it there first.
    chunks: Vec<Record>,
    lists: Vec<Vec<Record>>,
    free: Vec<u32>,
    scratch: Vec<Record>,
    /// Up to here all accesses are known to all threads.
    dead: u32,
    /// The same for copies, by thread.
    dead_copies: Option<Arc<[u32]>>,
}

impl Cells {
    /// Begins a new block: what was recorded up to epoch `dead` and with these copies belongs to others.
    pub(super) fn begin(&mut self, bytes: usize, dead: u32, dead_copies: Option<Arc<[u32]>>) {
        let cells = bytes.div_ceil(4);
        if self.cells.len() < cells {
            self.cells.resize(cells.next_multiple_of(CHUNK), Cell::default());
            self.chunks.resize(cells.div_ceil(CHUNK), Record::default());
        }
        self.forget(dead, dead_copies);
    }

    /// All threads of the block know all accesses up to this epoch, and these copies.
    pub(super) fn forget(&mut self, dead: u32, dead_copies: Option<Arc<[u32]>>) {
        self.dead = dead;
        if dead_copies.is_some() {
            self.dead_copies = dead_copies;
        }
    }

    #[inline]
    fn is_dead(&self, record: &Record) -> bool {
        if !record.what.is(COPY) {
            return record.epoch <= self.dead;
        }
        let copies = self.dead_copies.as_ref();
        copies.and_then(|c| c.get(record.thread())).is_some_and(|&c| record.copy() <= c)
    }

    /// Records an access of one warp to some granules side by side; `clash` is called for each recorded access that it
    /// races with.
    #[inline(always)]
    pub(super) fn touch(
        &mut self,
        granules: Range<usize>,
        new: &Record,
        threads: &Threads,
        clash: &mut impl FnMut(Clash),
    ) {
        if new.what.flags() != 0 {
            for chunk in granules.start / CHUNK..granules.end.div_ceil(CHUNK) {
                self.unfold(chunk);
            }
        }
        for granule in granules {
            if !self.touch_quickly(granule, new) {
                self.touch_slowly(granule, new, threads, clash);
            }
        }
    }

    /// Records a weak read of a chunk if nothing is alive there but weak reads.
    #[inline(always)]
    pub(super) fn read_chunk(&mut self, chunk: usize, new: &Record) -> bool {
        let dead = self.dead;
        let Some(seen) = self.chunks.get_mut(chunk) else { return true };
        if seen.epoch == new.epoch && seen.what == new.what && seen.lanes == new.lanes {
            seen.warps |= new.warps;
            return true;
        }
        if seen.epoch > dead {
            return false;
        }
        for granule in chunk * CHUNK..(chunk + 1) * CHUNK {
            let Cell { write, other } = self.cells[granule];
            if write.epoch > dead {
                if write.epoch == LIST || !self.is_dead(&write) {
                    return false;
                }
                self.cells[granule].write = Record::default();
            }
            if other.epoch > dead && other.what.flags() != 0 {
                return false;
            }
        }
        self.chunks[chunk] = *new;
        true
    }

    /// Records a weak read of words side by side by a whole warp.
    pub(super) fn read_words(
        &mut self,
        threads: &Threads,
        first: usize,
        new: Record,
        clash: &mut impl FnMut(Clash),
    ) {
        for chunk in 0..LANES / CHUNK {
            let quad = Record { lanes: 15 << (chunk * CHUNK), what: new.what.of_bytes(0), ..new };
            if self.read_chunk(first / CHUNK + chunk, &quad) {
                continue;
            }
            for lane in chunk * CHUNK..(chunk + 1) * CHUNK {
                let granule = first + lane;
                self.touch(granule..granule + 1, &Record { lanes: 1 << lane, ..new }, threads, clash);
            }
        }
    }

    /// Moves what is known of a chunk into its cells.
    #[inline(always)]
    fn unfold(&mut self, chunk: usize) {
        if self.chunks.get(chunk).is_some_and(|seen| seen.epoch > self.dead) {
            let seen = std::mem::take(&mut self.chunks[chunk]);
            for granule in 0..CHUNK {
                let lanes = match seen.what.bytes() {
                    0 => 1 << (seen.lanes.trailing_zeros() as usize + granule),
                    _ => seen.lanes,
                };
                self.add(chunk * CHUNK + granule, &Record { lanes, what: seen.what.of_bytes(15), ..seen });
            }
        }
    }

    /// Adds a weak read of the past, which was checked when it was done.
    fn add(&mut self, granule: usize, read: &Record) {
        let Cell { write, other } = &mut self.cells[granule];
        if write.epoch != LIST && other.epoch <= self.dead {
            *other = *read;
            return;
        }
        if write.epoch != LIST && other.merge(read) {
            return;
        }
        let mut kept = self.take(granule);
        kept.retain(|old| !self.is_dead(old));
        if !kept.iter_mut().any(|old| old.merge(read)) {
            kept.push(*read);
        }
        self.put(granule, kept);
    }

    /// Takes all that a granule remembers.
    fn take(&mut self, granule: usize) -> Vec<Record> {
        let Cell { write, other } = self.cells[granule];
        if write.epoch == LIST {
            self.free.push(write.lanes);
            return std::mem::take(&mut self.lists[write.lanes as usize]);
        }
        let mut kept = std::mem::take(&mut self.scratch);
        kept.extend([write, other]);
        kept
    }

    /// Records an access if all that was recorded is dead, or is the same access by other threads.
    #[inline(always)]
    fn touch_quickly(&mut self, granule: usize, new: &Record) -> bool {
        let dead = self.dead;
        let Some(cell) = self.cells.get_mut(granule) else { return true };
        if cell.write.epoch > dead {
            if cell.write.epoch == LIST || !self.is_dead(&self.cells[granule].write) {
                return false;
            }
            self.cells[granule].write = Record::default();
        }
        let Cell { write, other } = &mut self.cells[granule];
        let plain_write = new.what.flags() & (WRITES | STRONG) == WRITES;
        if other.epoch <= dead {
            *(if plain_write { write } else { other }) = *new;
            return true;
        }
        // Accesses of the same kind do not conflict, except for plain writes.
        !plain_write && other.merge(new)
    }

    #[inline(never)]
    fn touch_slowly(
        &mut self,
        granule: usize,
        new: &Record,
        threads: &Threads,
        clash: &mut impl FnMut(Clash),
    ) {
        let mut kept = self.take(granule);
        let mut merged = false;
        kept.retain_mut(|old| {
            if self.is_dead(old) {
                return false;
            }
            let (flags, old_flags) = (new.what.flags(), old.what.flags());
            if old.what.bytes() & new.what.bytes() != 0
                && conflict(old_flags, flags, true)
                && let Some((thread, lane)) = unordered(old, new, threads)
            {
                let (old, block) = (old.what, threads.block);
                clash(Clash { old, block, thread, lane, address: granule as u64 * 4 });
                return flags & WRITES == 0;
            }
            let covered = old.what.bytes() & !new.what.bytes() == 0;
            if covered && replaces(flags, old_flags) && is_superseded(old, new, threads) {
                return false;
            }
            merged |= !merged && old.merge(new);
            true
        });
        if !merged {
            kept.push(*new);
        }
        self.put(granule, kept);
    }

    /// Stores what a granule remembers.
    fn put(&mut self, granule: usize, mut kept: Vec<Record>) {
        let is_plain_write = |r: &Record| r.what.flags() & (WRITES | STRONG) == WRITES;
        let writes = kept.iter().filter(|r| is_plain_write(r)).count();
        if writes <= 1 && kept.len() - writes <= 1 {
            let mut cell = Cell::default();
            for record in kept.drain(..) {
                *(if is_plain_write(&record) { &mut cell.write } else { &mut cell.other }) = record;
            }
            self.cells[granule] = cell;
            self.scratch = kept; // keeps its capacity
            return;
        }
        let list = self.free.pop().unwrap_or_else(|| {
            self.lists.push(Vec::new());
            self.lists.len() as u32 - 1
        });
        let unused = std::mem::replace(&mut self.lists[list as usize], kept);
        if self.scratch.capacity() == 0 {
            self.scratch = unused;
        }
        let write = Record { epoch: LIST, lanes: list, ..Record::default() };
        self.cells[granule] = Cell { write, other: Record::default() };
    }
}

/// Returns a thread of `old` and a lane of `new` that nothing orders.
fn unordered(old: &Record, new: &Record, threads: &Threads) -> Option<(usize, usize)> {
    let warp = new.warps.trailing_zeros() as usize;
    find_thread(old, new, threads, |thread| {
        let mut found = None;
        for_lanes(new.lanes, |lane| {
            if found.is_none() && !is_known(old, thread, (warp, lane), threads) {
                found = Some((thread, lane));
            }
        });
        found
    })
}

/// Returns whether all threads of `old` come before some lane of `new`.
fn is_superseded(old: &Record, new: &Record, threads: &Threads) -> bool {
    let warp = new.warps.trailing_zeros() as usize;
    let missing = find_thread(old, new, threads, |thread| {
        let mut known = false;
        for_lanes(new.lanes, |lane| known = known || is_known(old, thread, (warp, lane), threads));
        (!known).then_some(())
    });
    missing.is_none()
}

fn is_known(old: &Record, thread: usize, viewer: (usize, usize), threads: &Threads) -> bool {
    match old.what.is(COPY) {
        true => threads.knows_copy(viewer, thread, old.copy()),
        false => threads.knows(viewer, thread, old.epoch),
    }
}

/// Calls `test` for each thread of a record, but not for warps that all of the other record's warp knows.
fn find_thread<T>(
    old: &Record,
    new: &Record,
    threads: &Threads,
    mut test: impl FnMut(usize) -> Option<T>,
) -> Option<T> {
    let common = threads.common_view(new.warps.trailing_zeros() as usize);
    let mut found = None;
    for_lanes(old.warps, |warp| {
        let known = |view: &View| old.epoch <= view.own.floor.max(view.own.warps[warp]);
        let all_known = !old.what.is(COPY) && common.is_some_and(known);
        if found.is_none() && !all_known {
            for_lanes(old.lanes, |lane| {
                if found.is_none() {
                    found = test(warp * LANES + lane);
                }
            });
        }
    });
    found
}

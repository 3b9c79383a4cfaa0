//! Where the history of global memory lies: pages, found by their number.
//!
//! Blocks run on several host threads: each part of a page has a lock. Memory that the host gives out for the first time is slow, so a
//! launch leaves its pages to the next one.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::part::{LINES, Part};

const SHARDS: u64 = 64;
/// Parts of a page, of 4 KiB each.
const PARTS: u64 = 16;
/// Pages that a block remembers: those of some arrays.
const RECENT: usize = 64;
/// Pages that are kept for the next launch at most: some 70 MiB.
const SPARE: usize = 1 << 12;

/// The history of 64 KiB of global memory.
#[derive(Default)]
pub(super) struct Page([Mutex<Part>; PARTS as usize]);

/// The history of global memory in one launch.
pub(super) struct Pages {
    shards: Vec<Mutex<Shard>>,
    spare: Mutex<Spare>,
}

type Shard = HashMap<u64, Arc<Page>, BuildHasherDefault<PageHasher>>;

/// Memory for the history of a launch, left over from an earlier one.
#[derive(Default)]
pub struct Spare(Vec<Arc<Page>>);

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Spare({})", self.0.len())
    }
}

/// Spreads the numbers of pages.
#[derive(Default)]
struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = spread(self.0 ^ n).rotate_left(29);
    }
}

fn spread(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Pages {
    /// Begins without any history.
    pub(super) fn new(spare: Spare) -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), spare: Mutex::new(spare) }
    }

    /// Returns the page of a number.
    fn page(&self, number: u64) -> Arc<Page> {
        let mut shard = lock(&self.shards[(number % SHARDS) as usize]);
        Arc::clone(shard.entry(number).or_insert_with(|| self.empty()))
    }

    fn empty(&self) -> Arc<Page> {
        let Some(page) = lock(&self.spare).0.pop() else { return Arc::default() };
        page.0.iter().for_each(|part| lock(part).clear());
        page
    }

    /// Leaves the memory to another launch.
    pub(super) fn into_spare(self) -> Spare {
        let mut spare = self.spare.into_inner().unwrap_or_else(PoisonError::into_inner);
        for shard in self.shards {
            let shard = shard.into_inner().unwrap_or_else(PoisonError::into_inner);
            spare.0.extend(shard.into_values().filter(|page| Arc::strong_count(page) == 1));
        }
        spare.0.truncate(SPARE);
        spare
    }
}

/// The pages that a block used last, so that they need not be looked up again.
#[derive(Default)]
pub(super) struct Recent(Vec<Option<(u64, Arc<Page>)>>);

impl Recent {
    /// Returns the part of a line, and remembers its page.
    #[inline]
    pub(super) fn part(&mut self, pages: &Pages, line: u64) -> MutexGuard<'_, Part> {
        let part = line / LINES as u64;
        let number = part / PARTS;
        // The upper bits: arrays that begin at multiples of a power of two do not meet in one place.
        let at = (spread(number) >> 32) as usize % RECENT;
        if self.0.is_empty() {
            self.0.resize(RECENT, None);
        }
        let slot = &mut self.0[at];
        if slot.as_ref().is_some_and(|s| s.0 != number) {
            *slot = None;
        }
        let page = &slot.get_or_insert_with(|| (number, pages.page(number))).1;
        lock(&page.0[(part % PARTS) as usize])
    }
}

/// Locks; a panic of another thread has not left the data in a state that matters.
#[inline]
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

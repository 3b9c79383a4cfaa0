//! What hands knowledge from thread to thread through memory: flags, named barriers, mbarriers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::clock::{Blocks, View};
use super::kind::Kind;
use super::pages::lock;
use super::threads::{Meeting, Released, Threads};
use crate::isa::{Order, Scope};

const SHARDS: u64 = 64;

/// How a flag is accessed.
#[derive(Clone, Copy)]
pub(super) struct Flag {
    order: Order,
    scope: Scope,
    reads: bool,
    writes: bool,
}

impl Flag {
    pub(super) fn of(kind: Kind) -> Self {
        let (order, scope, reads, writes) = match kind {
            Kind::StrongRead(order, scope) => (order, scope, true, false),
            Kind::StrongWrite(order, scope) => (order, scope, false, true),
            Kind::Atomic(order, scope) => (order, scope, true, true),
            Kind::Read | Kind::CopyRead => (Order::Weak, Scope::Cta, true, false),
            Kind::Write | Kind::CopyWrite => (Order::Weak, Scope::Cta, false, true),
        };
        Self { order, scope, reads, writes }
    }

    /// Returns whether a write by it gives away what the thread knows.
    pub(super) fn releases(self) -> bool {
        self.writes && matches!(self.order, Order::Release | Order::AcqRel | Order::Sc)
    }

    fn is_wide(self) -> bool {
        matches!(self.scope, Scope::Gpu | Scope::Sys)
    }
}

/// An mbarrier.
#[derive(Default)]
pub(super) struct Mbarrier {
    /// Of those who have arrived in the phase under way, and in all phases before.
    pub(super) coming: Meeting,
    done: [Meeting; 2],
    phase: usize,
}

impl Mbarrier {
    pub(super) fn complete(&mut self) {
        self.done[self.phase & 1] = self.coming.clone();
        self.phase += 1;
    }

    pub(super) fn completed(&self, parity: u32) -> &Meeting {
        &self.done[parity as usize & 1]
    }
}

/// The barriers, mbarriers and flags of a block.
#[derive(Default)]
pub(super) struct Meetings {
    /// As many as were used so far.
    barriers: Vec<Meeting>,
    mbarriers: HashMap<u64, Mbarrier>,
    flags: HashMap<u64, View>,
}

impl Meetings {
    pub(super) fn barrier(&mut self, barrier: u32) -> &mut Meeting {
        let barrier = barrier as usize % 16;
        if self.barriers.len() <= barrier {
            self.barriers.resize_with(barrier + 1, Meeting::default);
        }
        &mut self.barriers[barrier]
    }

    /// Forgets everything, for the next block.
    pub(super) fn clear(&mut self) {
        self.barriers.clear();
        self.mbarriers.clear();
        self.flags.clear();
    }

    pub(super) fn mbarrier(&mut self, address: u64) -> &mut Mbarrier {
        self.mbarriers.entry(address).or_default()
    }

    pub(super) fn reset(&mut self, address: u64) {
        self.mbarriers.remove(&address);
    }

    /// Hands knowledge on through a flag in shared memory.
    pub(super) fn flag(
        &mut self,
        threads: &mut Threads,
        (warp, lane): (usize, usize),
        address: u64,
        flag: Flag,
        wrote: bool,
    ) {
        let key = address & !3;
        if wrote && flag.writes {
            // Within a block, fences and operations of every scope are wide enough.
            let given = threads.released(warp, lane, flag.order, flag.scope).narrow;
            if !flag.reads {
                self.flags.remove(&key);
            }
            if let Some(given) = given {
                given.add_to(self.flags.entry(key).or_default());
            }
        }
        if flag.reads
            && let Some(found) = self.flags.get(&key)
        {
            threads.found(warp, lane, flag.order, found);
        }
    }
}

/// A flag in global memory.
#[derive(Default)]
struct Location {
    /// For threads of all blocks.
    wide: Option<Arc<Blocks>>,
    /// For threads of one block: fences or operations of a smaller scope.
    narrow: Vec<(u32, View)>,
}

/// The flags in global memory.
pub(super) struct Flags {
    shards: Vec<Mutex<HashMap<u64, Location>>>,
}

/// Keeps others from the flags around an address.
pub(super) struct Held<'a>(MutexGuard<'a, HashMap<u64, Location>>);

impl Flags {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    pub(super) fn hold(&self, address: u64) -> Held<'_> {
        Held(lock(&self.shards[(address / 16 % SHARDS) as usize]))
    }
}

impl Held<'_> {
    /// Hands knowledge on through a flag.
    pub(super) fn pass(
        &mut self,
        threads: &mut Threads,
        (warp, lane): (usize, usize),
        address: u64,
        flag: Flag,
        wrote: bool,
    ) {
        let key = address & !3;
        if wrote && flag.writes {
            let given = threads.released(warp, lane, flag.order, flag.scope);
            self.give(threads.block, key, flag, given);
        }
        let Some(location) = self.0.get(&key).filter(|_| flag.reads) else { return };
        if let Some((_, narrow)) = location.narrow.iter().find(|(block, _)| *block == threads.block) {
            threads.found(warp, lane, flag.order, narrow);
        }
        match &location.wide {
            Some(wide) if flag.is_wide() => threads.found_published(warp, lane, flag.order, wide),
            Some(wide) => threads.found_of_block(warp, lane, flag.order, wide),
            None => {}
        }
    }

    fn give(&mut self, block: u32, key: u64, flag: Flag, given: Released) {
        if !flag.reads {
            self.0.remove(&key); // what was released through the value before is lost with it
        }
        if let Some(wide) = &given.wide {
            let location = self.0.entry(key).or_default();
            wide.to_view().publish(block, location.wide.get_or_insert_default());
        }
        let Some(narrow) =
            given.narrow.filter(|narrow| given.wide.as_ref().is_none_or(|wide| wide.own != narrow.own))
        else {
            return;
        };
        let location = self.0.entry(key).or_default();
        match location.narrow.iter_mut().find(|(b, _)| *b == block) {
            Some((_, view)) => narrow.add_to(view),
            None => location.narrow.push((block, narrow.to_view())),
        }
    }
}

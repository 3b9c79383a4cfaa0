//! What a thread knows of the past: vector clocks, packed in the way in which blocks synchronise.
//!
//! Each access bears the *epoch* of its warp: a number from the clock of its block that rises whenever the warp releases.
//! A thread knows an access of thread u with epoch e if its clock has at least e for u. Most of a clock is the same number
//! (everybody passed the last barrier of the block), so a clock is a floor for all threads, one number for each warp, and
//! only where single threads synchronise one for each thread.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::regs::LANES;

/// Warps of the largest block.
pub(super) const WARPS: usize = 32;

/// What is known of the past of one block.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Of all threads, accesses up to this epoch.
    pub(super) floor: u32,
    /// Of all threads of a warp.
    pub(super) warps: [u32; WARPS],
    /// Of a thread, if any is known better than its warp.
    lanes: Option<Arc<[u32]>>,
    /// Of a thread, its asynchronous copies up to this number.
    copies: Option<Arc<[u32]>>,
}

impl Seen {
    /// Makes the knowledge of a thread that has just begun: nothing is left of what came before.
    pub(super) fn from(floor: u32, copies: Option<Arc<[u32]>>) -> Self {
        Self { floor, copies, ..Self::default() }
    }

    /// Returns whether accesses of a thread with this epoch are known.
    pub(super) fn covers(&self, thread: usize, epoch: u32) -> bool {
        epoch <= self.floor || epoch <= self.warps[thread / LANES] || epoch <= number(&self.lanes, thread)
    }

    /// Returns whether the asynchronous copies of a thread up to this number are known to be complete.
    pub(super) fn covers_copy(&self, thread: usize, copy: u32) -> bool {
        copy <= number(&self.copies, thread)
    }

    /// Adds accesses of one thread.
    pub(super) fn raise(&mut self, thread: usize, epoch: u32) {
        if !self.covers(thread, epoch) {
            set(&mut self.lanes, thread, epoch);
        }
    }

    /// Adds asynchronous copies of one thread.
    pub(super) fn raise_copy(&mut self, thread: usize, copy: u32) {
        if !self.covers_copy(thread, copy) {
            set(&mut self.copies, thread, copy);
        }
    }

    /// Adds all that another thread knows.
    pub(super) fn join(&mut self, other: &Seen) {
        self.floor = self.floor.max(other.floor);
        for (mine, theirs) in self.warps.iter_mut().zip(&other.warps) {
            *mine = (*mine).max(*theirs);
        }
        join_numbers(&mut self.lanes, &other.lanes);
        join_numbers(&mut self.copies, &other.copies);
    }

    /// Raises the floor, below which single numbers say nothing.
    pub(super) fn raise_floor(&mut self, floor: u32) {
        self.floor = self.floor.max(floor);
        self.warps = [0; WARPS];
        self.lanes = None;
    }

    /// Returns the copies that are known to be complete.
    pub(super) fn copies(&self) -> Option<Arc<[u32]>> {
        self.copies.clone()
    }
}

fn number(numbers: &Option<Arc<[u32]>>, thread: usize) -> u32 {
    numbers.as_ref().and_then(|n| n.get(thread)).copied().unwrap_or(0)
}

fn set(numbers: &mut Option<Arc<[u32]>>, thread: usize, value: u32) {
    let numbers = numbers.get_or_insert_with(|| vec![0; WARPS * LANES].into());
    Arc::make_mut(numbers)[thread] = value;
}

fn join_numbers(mine: &mut Option<Arc<[u32]>>, theirs: &Option<Arc<[u32]>>) {
    match (mine, theirs) {
        (_, None) => {}
        (mine @ None, theirs) => *mine = theirs.clone(),
        (Some(mine), Some(theirs)) if Arc::ptr_eq(mine, theirs) => {}
        (Some(mine), Some(theirs)) => {
            for (mine, theirs) in Arc::make_mut(mine).iter_mut().zip(theirs.iter()) {
                *mine = (*mine).max(*theirs);
            }
        }
    }
}

/// What is known of several blocks, by their number.
pub(super) type Blocks = BTreeMap<u32, Arc<Seen>>;

/// What a thread knows.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// Of its own block.
    pub(super) own: Seen,
    /// Of other blocks.
    pub(super) others: Option<Arc<Blocks>>,
}

impl View {
    /// Adds all that another thread of the same block knows.
    pub(super) fn join(&mut self, other: &View) {
        self.own.join(&other.own);
        match (&mut self.others, &other.others) {
            (_, None) => {}
            (mine @ None, theirs) => *mine = theirs.clone(),
            (Some(mine), Some(theirs)) if Arc::ptr_eq(mine, theirs) => {}
            (Some(mine), Some(theirs)) => join_blocks(Arc::make_mut(mine), theirs),
        }
    }

    /// Adds what was published by threads of any block, for a thread of block `block`.
    pub(super) fn absorb(&mut self, block: u32, published: &Arc<Blocks>) {
        if let Some(seen) = published.get(&block) {
            self.own.join(seen);
        }
        match &mut self.others {
            None => self.others = Some(Arc::clone(published)),
            Some(mine) if Arc::ptr_eq(mine, published) => {}
            Some(mine) => join_blocks(Arc::make_mut(mine), published),
        }
    }

    /// Adds all that this thread of block `block` knows to what is published.
    pub(super) fn publish(&self, block: u32, to: &mut Arc<Blocks>) {
        let to = Arc::make_mut(to);
        if let Some(others) = &self.others {
            join_blocks(to, others);
        }
        Arc::make_mut(to.entry(block).or_default()).join(&self.own);
    }

    /// Returns whether an access of a thread of another block is known.
    pub(super) fn of_block(&self, block: u32) -> Option<&Seen> {
        self.others.as_ref()?.get(&block).map(Arc::as_ref)
    }
}

fn join_blocks(mine: &mut Blocks, theirs: &Blocks) {
    for (block, seen) in theirs {
        match mine.get_mut(block) {
            None => _ = mine.insert(*block, Arc::clone(seen)),
            Some(mine) if Arc::ptr_eq(mine, seen) => {}
            Some(mine) => Arc::make_mut(mine).join(seen),
        }
    }
}

/// What a thread knew, and what it had done itself, at one moment: what a release gives to those who acquire it.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    /// What it knew.
    pub(super) view: Arc<View>,
    /// The thread, the epoch of its accesses, and the number of its copies that were complete; none if `view` has it all.
    pub(super) own: Option<(usize, u32, u32)>,
}

impl Snapshot {
    /// Adds this to a view of the same block.
    pub(super) fn add_to(&self, view: &mut View) {
        view.join(&self.view);
        self.raise_in(view);
    }

    /// Returns it as a view.
    pub(super) fn to_view(&self) -> View {
        let mut view = View::clone(&self.view);
        self.raise_in(&mut view);
        view
    }

    fn raise_in(&self, view: &mut View) {
        if let Some((thread, epoch, copy)) = self.own {
            view.own.raise(thread, epoch);
            view.own.raise_copy(thread, copy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_known_by_floor_warp_or_itself() {
        let mut seen = Seen::from(3, None);
        assert!(seen.covers(40, 3) && !seen.covers(40, 4));
        seen.warps[1] = 5;
        assert!(seen.covers(40, 5) && !seen.covers(20, 5));
        seen.raise(40, 9);
        assert!(seen.covers(40, 9) && !seen.covers(41, 9));
        seen.raise_copy(7, 2);
        assert!(seen.covers_copy(7, 2) && !seen.covers_copy(7, 3) && !seen.covers_copy(8, 1));
        seen.raise_floor(10);
        assert!(seen.covers(0, 10) && !seen.covers(40, 11) && seen.covers_copy(7, 2));
    }

    #[test]
    fn published_knowledge_crosses_blocks_transitively() {
        let mut first = View::default();
        first.own.raise(3, 7);
        let mut published = Arc::new(Blocks::new());
        first.publish(0, &mut published);
        let mut second = View::default();
        second.absorb(1, &published);
        assert!(second.of_block(0).is_some_and(|s| s.covers(3, 7) && !s.covers(4, 7)));
        let mut later = Arc::new(Blocks::new());
        second.own.raise(5, 2);
        second.publish(1, &mut later);
        let mut third = View::default();
        third.absorb(2, &later);
        assert!(third.of_block(0).is_some_and(|s| s.covers(3, 7)));
        assert!(third.of_block(1).is_some_and(|s| s.covers(5, 2)));
    }
}

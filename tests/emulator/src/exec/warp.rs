//! A warp: registers, and threads grouped by where they are.
//!
//! Threads that are at the same instruction form a split (an instruction and a mask). A branch that they do not take
//! together makes two splits of one; splits that meet at an instruction become one again.

use super::copies::Copies;
use super::local::OwnMemory;
use super::random::Random;
use crate::regs::Regs;

/// What a split is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It can run.
    Ready,
    /// It waits at a warp-wide operation for other threads of its warp.
    Lanes,
    /// It waits at an aligned barrier for the rest of its warp.
    Aligned,
    /// It waits at a barrier of this number for other warps.
    Barrier(u8),
}

/// Threads of a warp that are at the same instruction.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    /// Index of the next instruction.
    pub pc: u32,
    /// Who.
    pub mask: u32,
    /// What they are doing.
    pub state: State,
    /// When it ran last, in turns of the warp.
    pub turn: u64,
}

/// A warp.
#[derive(Debug)]
pub struct Warp {
    /// Number in the block.
    pub index: u32,
    /// Registers of all lanes.
    pub regs: Regs,
    /// Groups of threads; their masks are disjoint and make up `live`.
    pub splits: Vec<Split>,
    /// Lanes that have a thread.
    pub exists: u32,
    /// Lanes whose thread has not ended.
    pub live: u32,
    /// Local memory of all lanes, one after the other.
    pub local: OwnMemory,
    /// Asynchronous copies of its threads.
    pub copies: Copies,
    /// Counts turns.
    pub turn: u64,
    /// Turns in which the same split ran although others could have.
    pub favours: u32,
    /// Instructions since it last looked at what others do.
    pub unasked: u64,
    /// Its registers hold the special registers of its threads.
    pub filled: bool,
    /// Instructions and addresses of the last strong accesses.
    recent: [(u32, u64); RECENT],
}

/// Turns after which a split that could run is preferred, however far ahead it is: a thread that spins must not keep the
/// one it waits for from running.
const PATIENCE: u32 = 2;

/// Strong accesses that a warp remembers: a loop that looks at no more of them polls.
const RECENT: usize = 4;

impl Warp {
    /// Makes a warp whose threads all begin.
    pub fn new(index: u32, exists: u32, regs: Regs, local: OwnMemory) -> Self {
        let splits = Vec::with_capacity(4);
        let mut warp = Self {
            index,
            regs,
            splits,
            exists,
            live: 0,
            local,
            copies: Copies::default(),
            turn: 0,
            favours: 0,
            unasked: 0,
            filled: false,
            recent: [(u32::MAX, 0); RECENT],
        };
        warp.begin(exists);
        warp
    }

    /// Puts the threads of a new block at the first instruction.
    pub fn begin(&mut self, exists: u32) {
        self.exists = exists;
        self.live = exists;
        self.splits.clear();
        self.splits.push(Split { pc: 0, mask: exists, state: State::Ready, turn: 0 });
        self.copies.clear();
        self.local.forget();
        self.turn = 0;
        self.favours = 0;
        self.unasked = 0;
    }

    /// Returns whether a split can run.
    pub fn runnable(&self) -> bool {
        self.splits.iter().any(|s| s.state == State::Ready)
    }

    /// Makes one split of those at the same instruction; whoever waits there looks again.
    pub fn merge(&mut self) {
        let mut i = 0;
        while i < self.splits.len() {
            let mut j = i + 1;
            while j < self.splits.len() {
                let (a, b) = (self.splits[i], self.splits[j]);
                let fixed = |state| matches!(state, State::Barrier(_));
                if a.pc == b.pc && !fixed(a.state) && !fixed(b.state) {
                    self.splits[i].mask |= b.mask;
                    // Those who waited for each other look again: they may be complete now.
                    self.splits[i].state = State::Ready;
                    self.splits[i].turn = a.turn.min(b.turn);
                    self.splits.swap_remove(j);
                } else {
                    j += 1;
                }
            }
            i += 1;
        }
    }

    /// Chooses the split to run: the one that lags behind, or a random one.
    pub fn choose(&mut self, random: Option<&mut Random>) -> Option<usize> {
        if let [only] = self.splits.as_slice() {
            return (only.state == State::Ready).then_some(0);
        }
        let ready = || self.splits.iter().enumerate().filter(|(_, s)| s.state == State::Ready);
        let count = ready().count();
        if count == 0 {
            return None;
        }
        let chosen = match random {
            Some(random) => ready().nth(random.below(count as u64) as usize),
            None if self.favours >= PATIENCE => ready().min_by_key(|(_, s)| s.turn),
            None => ready().min_by_key(|(_, s)| s.pc),
        };
        if self.favours >= PATIENCE {
            self.favours = 0;
        }
        chosen.map(|(i, _)| i)
    }

    /// Returns the instruction at which a running split must stop since others are there: the first one ahead of it.
    pub fn limit(&self, running: usize) -> u32 {
        let pc = self.splits[running].pc;
        let others = self.splits.iter().enumerate().filter(|(i, s)| *i != running && s.pc > pc);
        others.map(|(_, s)| s.pc).min().unwrap_or(u32::MAX)
    }

    /// Lets all that wait for lanes of this warp look again, since one has ended.
    pub fn wake(&mut self) {
        for split in &mut self.splits {
            if matches!(split.state, State::Lanes | State::Aligned) {
                split.state = State::Ready;
            }
        }
    }

    /// Takes lanes out of a split, which continue as a split of their own. The remaining split is not removed if empty.
    pub fn detach(&mut self, from: usize, lanes: u32, pc: u32, state: State) {
        self.splits[from].mask &= !lanes;
        if lanes != 0 {
            self.splits.push(Split { pc, mask: lanes, state, turn: self.turn });
        }
    }

    /// Ends the threads of some lanes of a split.
    pub fn end(&mut self, split: usize, lanes: u32) {
        self.live &= !lanes;
        self.splits[split].mask &= !lanes;
        self.drop_empty();
        self.wake();
    }

    /// Notes a strong access that has changed nothing; says whether the same one was made just before.
    pub fn looks_again(&mut self, pc: u32, address: u64) -> bool {
        if self.recent.contains(&(pc, address)) {
            return true;
        }
        self.recent.rotate_right(1);
        self.recent[0] = (pc, address);
        false
    }

    /// Removes splits without threads.
    pub fn drop_empty(&mut self) {
        self.splits.retain(|s| s.mask != 0);
    }
}

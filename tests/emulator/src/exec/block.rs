//! A block: its warps, run in turns until all have ended.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::barrier::{BARRIERS, Barrier, release, write_lanes};
use super::engine::{Engine, Halted, Who};
use super::local::OwnMemory;
use super::mbarrier::Mbarrier;
use super::races::{self, Races};
use super::random::Random;
use super::step::Stop;
use super::warp::{State, Warp};
use crate::isa::{BarRed, Op};
use crate::memory::{Bits, Sharing};
use crate::regs::LANES;
use crate::report::Kind;

/// What the warps of a block share.
#[derive(Debug)]
pub struct BlockState {
    /// blockIdx.
    pub index: [u32; 3],
    /// Rank in the cluster.
    pub cluster_rank: u32,
    /// Shared memory.
    pub shared: OwnMemory,
    /// Bytes of it that an asynchronous copy will write.
    pub in_flight: Bits,
    /// `bar`.
    pub barriers: Vec<Barrier>,
    /// By their offset in shared memory.
    pub mbarriers: BTreeMap<u32, Mbarrier>,
    /// Finds races, if that is wanted.
    pub races: Races,
    /// For random schedules.
    pub random: Option<Random>,
    /// Counts what other threads could see: stores, arrivals, ends.
    pub progress: u64,
    /// Counts instructions that look whether something has changed.
    pub polls: u64,
    /// Counts instructions.
    pub clock: u64,
    /// Number of warps.
    pub warps: usize,
}

impl BlockState {
    /// Says whether an asynchronous copy into these bytes is under way.
    pub fn pending_copy(&self, address: u64, size: u64) -> Option<&'static str> {
        (self.in_flight.get(address, size) != 0)
            .then_some("which an asynchronous copy is about to write: nobody has waited for it")
    }
}

/// A block.
#[derive(Debug)]
pub struct Block {
    state: BlockState,
    warps: Vec<Warp>,
    /// Progress when it was last looked at, of the block and of the grid.
    seen: (u64, u64),
    /// Instructions since then.
    silent: u64,
    /// Those in which every warp only polled.
    polling: u64,
    /// When they began.
    since: Instant,
}

/// How a turn of a block ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// All its threads have ended.
    Ended,
    /// It continues.
    Goes,
    /// It continues, but waits for others.
    Polls,
}

/// Instructions of a warp's turn when warps run in order.
const ORDERED_TURN: u64 = 4096;
/// Instructions of a warp's turn at most when they run by chance.
const SEEDED_TURN: u64 = 96;
/// Instructions without a look at what others do, after which a warp counts as computing.
const COMPUTING: u64 = 4096;
/// How long a block polls at least, if other host threads run blocks too.
const PATIENCE: Duration = Duration::from_secs(1);

impl Block {
    /// Makes the block of a number, or nothing if the host has no room.
    pub fn new(engine: &Engine, number: u64) -> Option<Self> {
        let shared = engine.launch.shared_bytes();
        let warps = engine.launch.threads().div_ceil(LANES as u64) as u32;
        let each = u64::from(engine.program.kernel.local_bytes).next_multiple_of(16);
        let mut made = Vec::new();
        for index in 0..warps {
            let local = OwnMemory::new(each * LANES as u64)?;
            made.push(Warp::new(index, 0, engine.program.template.clone(), local));
        }
        let state = BlockState {
            index: [0; 3],
            cluster_rank: 0,
            shared: OwnMemory::new(shared)?,
            in_flight: Bits::new(shared, Sharing::OneThread)?,
            barriers: vec![Barrier::default(); BARRIERS],
            mbarriers: BTreeMap::new(),
            races: None,
            random: None,
            progress: 0,
            polls: 0,
            clock: 0,
            warps: warps as usize,
        };
        let mut block =
            Self { state, warps: made, seen: (0, 0), silent: 0, polling: 0, since: Instant::now() };
        block.begin(engine, number);
        Some(block)
    }

    /// Puts all threads at the beginning of the block of another number.
    pub fn begin(&mut self, engine: &Engine, number: u64) {
        let state = &mut self.state;
        state.index = engine.block_index(number);
        state.cluster_rank = engine.cluster_rank(state.index);
        state.shared.forget();
        state.in_flight.clear(0, state.shared.bytes());
        state.barriers.iter_mut().for_each(Barrier::reset);
        state.mbarriers.clear();
        races::begin(&mut state.races, engine, number);
        state.random = engine.random(number);
        (state.progress, state.polls, state.clock) = (1, 0, 0);
        (self.seen, self.silent, self.polling) = ((0, 0), 0, 0);
        let mut left = engine.launch.threads();
        for warp in &mut self.warps {
            let exists = left.min(LANES as u64);
            left -= exists;
            warp.begin(u32::MAX >> (LANES as u64 - exists));
            engine.fill_specials(warp, state);
        }
    }

    /// Lets each warp run for a while.
    pub fn turn(&mut self, engine: &mut Engine, grid_progress: &AtomicU64) -> Result<Turn, Halted> {
        let (clock, mut computed) = (self.state.clock, false);
        let mut ran = self.finish_arrivals(engine)?;
        for i in 0..self.warps.len() {
            let (index, budget) = match &mut self.state.random {
                Some(random) => {
                    (random.below(self.warps.len() as u64) as usize, 1 + random.below(SEEDED_TURN))
                }
                None => (i, ORDERED_TURN),
            };
            let index = self.next_runnable(index);
            let Some(index) = index else { break };
            let before = (self.state.polls, self.state.clock);
            engine.move_some(&mut self.warps[index], &mut self.state);
            let stop = engine.slice(&mut self.warps[index], &mut self.state, budget)?;
            ran = true;
            computed |= self.computes(index, before);
            if matches!(stop, Stop::Barrier | Stop::Ended) {
                self.open_barriers(engine);
            }
        }
        if self.warps.iter().all(|warp| warp.live == 0) {
            grid_progress.fetch_add(1, Relaxed);
            return Ok(Turn::Ended);
        }
        if !ran {
            self.stuck(engine)?;
            return Err(Halted);
        }
        self.watch(engine, grid_progress, computed, self.state.clock - clock)
    }

    /// Says whether a warp has computed for a while without looking at what others do.
    fn computes(&mut self, index: usize, (polls, clock): (u64, u64)) -> bool {
        let warp = &mut self.warps[index];
        warp.unasked = if self.state.polls == polls { warp.unasked + self.state.clock - clock } else { 0 };
        warp.unasked >= COMPUTING
    }

    /// Completes copies that an mbarrier is to be told of, sooner or later; says whether there were any.
    fn finish_arrivals(&mut self, engine: &mut Engine) -> Result<bool, Halted> {
        let mut any = false;
        for warp in self.warps.iter_mut().filter(|warp| !warp.copies.arrivals.is_empty()) {
            any = true;
            let later = self.state.random.as_mut().is_some_and(|random| random.below(2) == 0);
            if !later {
                engine.finish_arrivals(warp, &mut self.state)?;
            }
        }
        Ok(any)
    }

    fn next_runnable(&self, from: usize) -> Option<usize> {
        let n = self.warps.len();
        (0..n).map(|i| (from + i) % n).find(|&i| self.warps[i].runnable())
    }

    fn open_barriers(&mut self, engine: &Engine) {
        for number in 0..BARRIERS {
            if !self.state.barriers[number].complete(&self.warps) {
                continue;
            }
            self.state.progress += 1;
            races::open_barrier(&mut self.state.races, &self.warps, number);
            let barrier = &self.state.barriers[number];
            release(&mut self.warps, number as u8, |warp, pc, mask| {
                let Some(inst) = engine.program.kernel.code.get(pc as usize) else { return };
                let Op::BarRed { op, d, .. } = inst.op else { return };
                let value = barrier.result(op);
                match op {
                    BarRed::Popc => write_lanes(&mut warp.regs.r32[d as usize].0, mask, value),
                    _ => {
                        let old = warp.regs.pred[d as usize] & !mask;
                        warp.regs.pred[d as usize] = old | if value != 0 { mask } else { 0 };
                    }
                }
            });
            self.state.barriers[number].reset();
        }
    }

    /// Looks whether anything has changed lately; reports a livelock if not.
    fn watch(
        &mut self,
        engine: &mut Engine,
        grid_progress: &AtomicU64,
        computed: bool,
        instructions: u64,
    ) -> Result<Turn, Halted> {
        let own = self.state.progress != self.seen.0;
        if own || computed {
            grid_progress.fetch_add(1, Relaxed);
        }
        let grid = grid_progress.load(Relaxed);
        let moved = grid != self.seen.1;
        self.seen = (self.state.progress, grid);
        self.silent = if own { 0 } else { self.silent + instructions };
        self.polling = if own || computed || moved { 0 } else { self.polling + instructions };
        let limits = &engine.config.limits;
        if self.polling == 0 {
            self.since = Instant::now();
        } else if self.polling > limits.polling {
            let alone = engine.config.threads <= 1 || engine.launch.blocks() <= 1;
            if alone || self.since.elapsed() >= PATIENCE {
                return self.livelock(
                    engine,
                    self.polling,
                    "have only looked for a change that nobody makes",
                );
            }
        }
        if self.silent > limits.silent {
            return self.livelock(engine, self.silent, "have changed nothing that another thread can see");
        }
        if self.state.clock > limits.total {
            return self.livelock(engine, self.state.clock, "are the most that a block may execute");
        }
        Ok(if own || computed { Turn::Goes } else { Turn::Polls })
    }

    fn livelock(&self, engine: &mut Engine, instructions: u64, what: &str) -> Result<Turn, Halted> {
        let splits = || self.warps.iter().flat_map(|warp| warp.splits.iter().map(move |split| (warp, split)));
        let first = splits().find(|(_, split)| split.state == State::Ready).or_else(|| splits().next());
        if let Some((warp, split)) = first {
            let who = Who::new(&self.state, warp, split.pc);
            let state = self.describe();
            engine.report(Kind::Livelock, who, split.mask.trailing_zeros(), || {
                format!("{instructions} instructions of this block {what}; {state}")
            })?;
        }
        Err(Halted)
    }

    /// Reports why no thread can continue.
    fn stuck(&self, engine: &mut Engine) -> Result<(), Halted> {
        let waiting = |state: State| {
            self.warps.iter().find_map(|w| Some((w, w.splits.iter().find(|s| s.state == state)?)))
        };
        let state = self.describe();
        if let Some((warp, split)) = waiting(State::Aligned) {
            let (here, live) = (split.mask, warp.live);
            let who = Who::new(&self.state, warp, split.pc);
            return engine.report(Kind::DivergentBarrier, who, here.trailing_zeros(), || {
                format!("lanes {here:#010x} of a warp wait at an aligned barrier that lanes {:#010x} do not reach; {state}", live & !here)
            });
        }
        let any = |w: &&Warp| !w.splits.is_empty();
        let lanes = waiting(State::Lanes);
        let first = lanes.or_else(|| self.warps.iter().find(any).map(|w| (w, &w.splits[0])));
        let Some((warp, split)) = first else { return Ok(()) };
        let who = Who::new(&self.state, warp, split.pc);
        let what = if lanes.is_some() { "a warp-wide operation" } else { "a barrier" };
        engine.report(Kind::Deadlock, who, split.mask.trailing_zeros(), || {
            format!("waits at {what} for ever, and no thread of the block can continue; {state}")
        })
    }

    /// Describes what all are waiting for.
    fn describe(&self) -> String {
        let mut parts = Vec::new();
        for (number, barrier) in self.state.barriers.iter().enumerate().filter(|(_, b)| !b.idle()) {
            parts.push(barrier.describe(number, &self.warps));
        }
        for (at, mbarrier) in &self.state.mbarriers {
            parts.push(format!("mbarrier at shared {at:#x}: {mbarrier}"));
        }
        for warp in &self.warps {
            for split in warp.splits.iter().filter(|s| matches!(s.state, State::Lanes | State::Aligned)) {
                parts.push(format!(
                    "warp {} lanes {:#010x} wait for the rest of their warp",
                    warp.index, split.mask
                ));
            }
        }
        parts.truncate(12);
        if parts.is_empty() { "no barrier is in use".to_owned() } else { parts.join("; ") }
    }
}

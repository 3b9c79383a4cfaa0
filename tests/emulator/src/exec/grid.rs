//! A launch: blocks over host threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use super::block::{Block, Turn};
use super::engine::{Engine, Halted};
use super::findings::Findings;
use super::launch::{Launch, LaunchError, Outcome};
use super::local::OwnMemory;
use super::races;
use super::random::Random;
use super::{Config, Schedule};
use crate::counters::Tally;
use crate::detect;
use crate::memory::DeviceMemory;

/// Blocks that a host thread interleaves when they run by chance.
const SEEDED_BLOCKS: usize = 3;

/// Runs a kernel.
pub fn run(launch: &Launch, memory: &DeviceMemory, config: &Config) -> Result<Outcome, LaunchError> {
    launch.check(config)?;
    let view = memory.view();
    let params = OwnMemory::holding(launch.params).ok_or(LaunchError::NoHostMemory)?;
    let findings = Findings::new(config.limits.reports);
    let queue = Queue::new(launch, config);
    let workers = (config.threads.max(1) as u64).min(launch.blocks());
    let detector = config.checks.races.then(|| Arc::new(detect::Launch::reusing(memory.take_history())));
    let work = || {
        let mut engine = Engine::new(launch, (memory, &view, &params), config, &findings);
        engine.races = detector.clone();
        work(&mut engine, &queue).map(|()| engine.tally)
    };
    let mut tallies = Vec::new();
    thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
        tallies.push(work());
        // A worker that panicked would be a bug here; it must not look like success.
        tallies.extend(others.into_iter().map(|o| o.join().unwrap_or_else(|p| std::panic::resume_unwind(p))));
    });
    let mut total = Tally::new(launch.kernel.steps.len(), config.footprints);
    for tally in tallies {
        total.add(&tally?);
    }
    let mut counters = total.finish(&launch.kernel.classes);
    counters.kernel = launch.kernel.kernel.name.clone();
    (counters.grid, counters.block) = (launch.grid, launch.block);
    counters.shared_bytes = launch.shared_bytes() as u32;
    let mut reports = findings.into_reports();
    let room = config.limits.reports.saturating_sub(reports.len());
    reports.extend(races::reports(&detector, launch, &view, room));
    if let Some(detector) = detector.and_then(Arc::into_inner) {
        memory.keep_history(detector.into_spare());
    }
    Ok(Outcome { counters, reports })
}

/// Blocks that nobody has begun.
struct Queue {
    next: AtomicU64,
    blocks: u64,
    /// The second half of them is at the end of the grid, so many further on.
    gap: u64,
    /// Order of blocks: the i-th is number `i · step + offset`, modulo their number.
    step: u64,
    offset: u64,
    /// Counts what threads of other blocks could see, and computing as such.
    progress: AtomicU64,
}

impl Queue {
    fn new(launch: &Launch, config: &Config) -> Self {
        let all = launch.blocks();
        let blocks = config.ends.map_or(all, |ends| all.min(2 * ends));
        let (mut step, mut offset) = (1, 0);
        if config.schedule == Schedule::Seeded {
            let mut random = Random::new(config.seed, u64::MAX);
            offset = random.below(blocks);
            step = 1 + random.below(blocks);
            while greatest_common_divisor(step, blocks) != 1 {
                step = step % blocks + 1;
            }
        }
        Self { next: AtomicU64::new(0), blocks, gap: all - blocks, step, offset, progress: AtomicU64::new(0) }
    }

    fn next(&self) -> Option<u64> {
        let i = self.next.fetch_add(1, Relaxed);
        if i >= self.blocks {
            // Stay there: a counter that runs on could come round in theory.
            self.next.store(self.blocks, Relaxed);
            return None;
        }
        let number = u128::from(i) * u128::from(self.step) + u128::from(self.offset);
        let number = (number % u128::from(self.blocks)) as u64;
        Some(if number < self.blocks.div_ceil(2) { number } else { number + self.gap })
    }
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl Engine<'_> {
    /// Returns the random numbers of a block, if the schedule needs any.
    pub fn random(&self, block: u64) -> Option<Random> {
        (self.config.schedule == Schedule::Seeded).then(|| Random::new(self.config.seed, block))
    }

    /// Returns how many blocks a host thread may have begun at a time.
    fn most_resident(&self) -> usize {
        let kernel = &self.program.kernel;
        let registers = u64::from(kernel.r32) * 128 + u64::from(kernel.r64) * 256;
        let warps = self.launch.threads().div_ceil(32);
        let block =
            warps * (registers + 32 * u64::from(kernel.local_bytes)) + self.launch.shared_bytes() + 4096;
        (self.config.limits.resident_bytes / block).clamp(1, 4096) as usize
    }
}

/// Runs blocks until there are none left, or the launch has failed.
fn work(engine: &mut Engine, queue: &Queue) -> Result<(), LaunchError> {
    let most = engine.most_resident();
    let mut random = engine.random(u64::MAX - 1);
    let mut wanted = if random.is_some() { SEEDED_BLOCKS.min(most) } else { 1 };
    let (mut resident, mut spare): (Vec<Block>, Vec<Block>) = (Vec::new(), Vec::new());
    let mut turn = 0usize;
    while !engine.findings.stopped() {
        while resident.len() < wanted {
            let Some(number) = queue.next() else { break };
            queue.progress.fetch_add(1, Relaxed);
            let block = match spare.pop() {
                Some(mut block) => {
                    block.begin(engine, number);
                    block
                }
                None => Block::new(engine, number).ok_or(LaunchError::NoHostMemory)?,
            };
            resident.push(block);
        }
        if resident.is_empty() {
            break;
        }
        turn += 1;
        let pick = match &mut random {
            Some(random) => random.below(resident.len() as u64) as usize,
            None => turn % resident.len(),
        };
        match resident[pick].turn(engine, &queue.progress) {
            Ok(Turn::Ended) => spare.push(resident.swap_remove(pick)),
            Ok(Turn::Goes) => {}
            // It waits for a block that may not have begun.
            Ok(Turn::Polls) => wanted = (wanted + 1).min(most),
            Err(Halted) => break,
        }
    }
    Ok(())
}

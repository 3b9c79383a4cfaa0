//! The CPU device: a team of threads with a fixed split of work, and a pool of memory whose blocks are used again.
//!
//! A training step asks for the same sizes in the same order every time, so from the second step on each request finds
//! a block of exactly its size: no system allocation, no page fault ([`Cpu::allocations`] counts the misses).

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};

use crate::device::simd::Isa;
use crate::device::team::Team;
use crate::error::{Error, Result};

/// One cache line; the unit and the alignment of all tensor memory.
#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
pub struct Line([u8; 64]);

/// Bytes in a [`Line`].
pub const LINE: usize = 64;

/// Fills guard lines; no float of any width that a kernel would write by chance.
const GUARD: Line = Line([0xa5; LINE]);

/// Says how to build a CPU device.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Worker threads; 0 takes all cores.
    pub threads: usize,
    /// Instruction set; `None` takes the best there is.
    pub isa: Option<Isa>,
    /// Surrounds each buffer with checked sentinels and fills fresh memory with NaN. For tests.
    pub guard: bool,
}

/// A handle to the CPU device; clones share threads and memory.
#[derive(Clone)]
pub struct Cpu(Arc<Inner>);

struct Inner {
    team: Team,
    /// For long work that is not an operation (metrics, evaluations): rayon's iterators. A step runs on one of its
    /// threads, the others sleep.
    pool: rayon::ThreadPool,
    isa: Isa,
    memory: Arc<Memory>,
    /// Pools of the items of [`Cpu::each_apart`], by number.
    apart: Mutex<Vec<Arc<Memory>>>,
}

thread_local! {
    /// The pool that this thread takes tensor memory from, and the device it is of; `None` for the device's own.
    static POOL: RefCell<Option<(usize, Arc<Memory>)>> = const { RefCell::new(None) };
}

/// Takes a thread's pool back when dropped, by unwinding too.
struct Back(Option<(usize, Arc<Memory>)>);

impl Drop for Back {
    fn drop(&mut self) {
        POOL.replace(self.0.take());
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cpu({} threads, {:?})", self.threads(), self.isa())
    }
}

impl Cpu {
    /// Starts the threads.
    ///
    /// # Errors
    /// An instruction set that this processor lacks, or threads that the system refuses.
    pub fn new(options: CpuOptions) -> Result<Self> {
        let best = Isa::detect();
        let isa = options.isa.unwrap_or(best);
        if isa > best {
            return Err(Error::Device(format!(
                "instruction set {isa:?} was asked for; this processor has {best:?}"
            )));
        }
        let refused =
            |e: &dyn fmt::Display| Error::Device(format!("cannot start {} threads: {e}", options.threads));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .thread_name(|i| format!("flowprior-pool-{i}"))
            .build()
            .map_err(|e| refused(&e))?;
        let team = Team::new(pool.current_num_threads()).map_err(|e| refused(&e))?;
        let memory = Arc::new(Memory { guard: options.guard, ..Memory::default() });
        Ok(Self(Arc::new(Inner { team, pool, isa, memory, apart: Mutex::default() })))
    }

    /// Returns the number of worker threads.
    pub fn threads(&self) -> usize {
        self.0.team.threads()
    }

    /// Returns the instruction set that kernels run with.
    pub fn isa(&self) -> Isa {
        self.0.isa
    }

    /// Runs `f` on a thread of the pool, whose threads rayon's parallel iterators then use.
    pub fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.0.pool.install(f)
    }

    /// Calls `f` for each item, by all threads of the team together: the form of every operation. An item is worth some
    /// microseconds. Items of an operation that is called inside another's item are done by the calling thread.
    pub(crate) fn each<T: Send>(&self, items: impl Iterator<Item = T>, f: impl Fn(T) + Sync) {
        let items: Vec<_> = items.map(|item| Mutex::new(Some(item))).collect();
        self.0.team.run(items.len(), |i| {
            let item = items[i].lock().unwrap_or_else(PoisonError::into_inner).take();
            item.into_iter().for_each(&f);
        });
    }

    /// Does the same where items are long and take tensor memory themselves: item i takes it from a pool of its own, the same
    /// in every call, so that what is held does not depend on which items happen to run at the same time.
    pub(crate) fn each_apart<T: Send>(&self, items: impl Iterator<Item = T>, f: impl Fn(T) + Sync) {
        let items: Vec<T> = items.collect();
        let pools: Vec<_> = {
            let mut pools = self.0.apart.lock().unwrap_or_else(PoisonError::into_inner);
            let guard = self.0.memory.guard;
            while pools.len() < items.len() {
                pools.push(Arc::new(Memory { guard, ..Memory::default() }));
            }
            pools[..items.len()].to_vec()
        };
        self.each(items.into_iter().zip(pools), |(item, pool)| {
            let _back = Back(POOL.replace(Some((self.number(), pool))));
            f(item);
        });
    }

    /// Tells devices of one process apart.
    fn number(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// Returns how many blocks of tensor memory were taken from the system so far.
    pub fn allocations(&self) -> u64 {
        self.of_all_pools(|memory| &memory.allocations)
    }

    /// Returns the bytes of tensor memory held, in use or waiting to be used again.
    pub fn bytes_held(&self) -> u64 {
        self.of_all_pools(|memory| &memory.bytes)
    }

    fn of_all_pools(&self, count: impl Fn(&Memory) -> &AtomicU64) -> u64 {
        let apart = self.0.apart.lock().unwrap_or_else(PoisonError::into_inner);
        let pools = apart.iter().chain([&self.0.memory]);
        pools.map(|memory| count(memory).load(Ordering::Relaxed)).sum()
    }

    /// Takes a block of at least `bytes` bytes; its content is whatever it held last.
    pub(crate) fn take(&self, bytes: usize) -> HostBuf {
        let memory = POOL.with_borrow(|pool| match pool {
            Some((number, pool)) if *number == self.number() => pool.clone(),
            _ => self.0.memory.clone(),
        });
        let lines = bytes.div_ceil(LINE) + 2 * memory.guard as usize;
        let found =
            memory.free.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&lines).and_then(Vec::pop);
        let mut lines = found.unwrap_or_else(|| {
            memory.allocations.fetch_add(1, Ordering::Relaxed);
            memory.bytes.fetch_add((lines * LINE) as u64, Ordering::Relaxed);
            let lines = bytemuck::zeroed_vec(lines);
            ask_for_huge_pages(&lines);
            lines
        });
        if memory.guard {
            lines.fill(Line([0xff; LINE])); // all-ones is NaN in f32, bf16 and f16
            let last = lines.len() - 1;
            (lines[0], lines[last]) = (GUARD, GUARD);
        }
        HostBuf { lines, home: memory }
    }
}

/// A huge page on x86-64 and most of aarch64.
const HUGE_PAGE: usize = 2 << 20;

/// Asks the system for huge pages under a fresh block: a matrix product walks many rows at once, and each would take a
/// page of its own in the processor's small table of pages. A system that has none goes on as before.
fn ask_for_huge_pages(block: &[Line]) {
    let bytes = size_of_val(block);
    let start = block.as_ptr() as usize;
    let first = start.next_multiple_of(HUGE_PAGE);
    let end = (start + bytes) / HUGE_PAGE * HUGE_PAGE;
    if bytes < 2 * HUGE_PAGE || end <= first {
        return;
    }
    let pages = block.as_ptr().wrapping_byte_add(first - start).cast_mut().cast();
    // SAFETY: `first .. end` lies inside the block, which is alive; the advice changes neither content nor protection.
    let _advice = unsafe { rustix::mm::madvise(pages, end - first, rustix::mm::Advice::LinuxHugepage) };
}

/// The free blocks, by size in lines.
#[derive(Default)]
struct Memory {
    free: Mutex<HashMap<usize, Vec<Vec<Line>>>>,
    allocations: AtomicU64,
    bytes: AtomicU64,
    guard: bool,
}

/// A block of memory that goes back to its pool when dropped.
pub(crate) struct HostBuf {
    lines: Vec<Line>,
    home: Arc<Memory>,
}

impl HostBuf {
    /// Views the block as numbers.
    pub(crate) fn as_slice<T: Pod>(&self) -> &[T] {
        let guard = self.home.guard as usize;
        bytemuck::cast_slice(&self.lines[guard..self.lines.len() - guard])
    }

    /// Views the block as numbers, to write.
    pub(crate) fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        let guard = self.home.guard as usize;
        let end = self.lines.len() - guard;
        bytemuck::cast_slice_mut(&mut self.lines[guard..end])
    }
}

impl Drop for HostBuf {
    fn drop(&mut self) {
        if self.home.guard && !std::thread::panicking() {
            let intact = |line: &Line| line.0 == GUARD.0;
            let whole = self.lines.first().is_some_and(intact) && self.lines.last().is_some_and(intact);
            assert!(whole, "a kernel wrote outside its buffer of {} lines", self.lines.len() - 2);
        }
        let lines = std::mem::take(&mut self.lines);
        self.home
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(lines.len())
            .or_default()
            .push(lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_block_is_used_again() -> Result<()> {
        let cpu = Cpu::new(CpuOptions { threads: 1, ..Default::default() })?;
        drop(cpu.take(1000));
        drop(cpu.take(1000));
        let _two = (cpu.take(1000), cpu.take(1000));
        assert_eq!(cpu.allocations(), 2);
        Ok(())
    }

    #[test]
    fn items_apart_take_memory_from_pools_of_their_own() -> Result<()> {
        let cpu = Cpu::new(CpuOptions { threads: 2, ..Default::default() })?;
        for _ in 0..50 {
            cpu.each_apart(0..3, |i| {
                let _two = (cpu.take(100), cpu.take(1000 * (i + 1)));
                drop(cpu.take(100));
            });
            assert_eq!(cpu.allocations(), 3 * 3);
        }
        drop(cpu.take(100));
        assert_eq!(cpu.allocations(), 3 * 3 + 1);
        Ok(())
    }

    #[test]
    #[should_panic(expected = "outside its buffer")]
    fn a_write_past_the_end_is_caught() {
        let cpu = Cpu::new(CpuOptions { threads: 1, guard: true, ..Default::default() }).unwrap();
        let mut block = cpu.take(64);
        block.lines[2].0[0] = 0;
    }
}

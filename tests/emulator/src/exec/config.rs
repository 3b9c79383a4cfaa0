//! How a kernel is run: schedule, checks, numbers, limits.

use crate::alu::Approx;

/// Settings of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// From which all random choices come.
    pub seed: u64,
    /// Host threads that run blocks.
    pub threads: usize,
    /// Who runs next.
    pub schedule: Schedule,
    /// Which checks run besides those that cost nothing.
    pub checks: Checks,
    /// How approximate functions are computed.
    pub approx: Approx,
    /// How matrix instructions add.
    pub tensor: Tensor,
    /// When to give up.
    pub limits: Limits,
    /// Compute capability of the emulated device, e.g. (8, 0).
    pub capability: (u32, u32),
    /// Counts which memory a launch touches at all.
    pub footprints: bool,
    /// Of a launch with more than twice as many blocks, only so many at either end are run: for kernels over more memory
    /// than the host has.
    pub ends: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            threads: 1,
            schedule: Schedule::Ordered,
            checks: Checks::default(),
            approx: Approx::Rounded,
            tensor: Tensor::Ordered,
            limits: Limits::default(),
            capability: (8, 0),
            footprints: false,
            ends: None,
        }
    }
}

/// Who runs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Blocks and warps in order, each until it waits; within a warp the threads that lag behind.
    Ordered,
    /// Blocks, warps and diverged threads by chance, in short turns.
    Seeded,
}

/// Checks that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Report accesses that nothing orders.
    pub races: bool,
    /// Report reads of bytes that were never written.
    pub uninitialised: bool,
}

impl Default for Checks {
    fn default() -> Self {
        Self { races: true, uninitialised: true }
    }
}

/// How matrix instructions add their products, which are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tensor {
    /// One f32 addition after the other, in the order of k.
    Ordered,
    /// As tensor cores do: groups of products are aligned to the largest exponent, cut off, and added.
    Truncated {
        /// Bits that are kept below those of an f32: one on A100, two on H100.
        extra_bits: u32,
        /// Products that are added at once: 8 of 16 bits on A100, 16 on H100.
        group: u32,
    },
}

/// When to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Warp instructions of a block that only polls, while nothing changes in the whole grid. If several host threads run
    /// blocks, that must also have taken a second, since one of them may have had no processor.
    pub polling: u64,
    /// Warp instructions of a block that changes nothing that another thread could see.
    pub silent: u64,
    /// Warp instructions of a block, whatever they do.
    pub total: u64,
    /// Findings that are kept.
    pub reports: usize,
    /// Bytes that the blocks may take that one host thread runs at the same time.
    pub resident_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { polling: 1 << 18, silent: 1 << 30, total: 1 << 33, reports: 200, resident_bytes: 1 << 30 }
    }
}

impl Config {
    /// Returns the shared memory that a block can have at most, with the opt-in, in bytes.
    pub fn shared_limit(&self) -> u32 {
        match self.capability {
            (7, 5) => 65_536,
            (8, 0 | 7) => 166_912,
            (8, _) | (12.., _) => 101_376,
            _ => 232_448,
        }
    }
}

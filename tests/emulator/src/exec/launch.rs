//! What is launched, and which launches are refused.

use super::{Config, Program};
use crate::counters::Counters;
use crate::report::Report;

/// A launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'a Program,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster; ones if there are none.
    pub cluster: [u32; 3],
    /// Bytes of shared memory behind what the kernel declares.
    pub dynamic_shared: u32,
    /// The arguments, as the kernel's parameters lie in memory.
    pub params: &'a [u8],
}

/// What a launch did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Counters.
    pub counters: Counters,
    /// Findings. One whose kind has a CUDA error is the last that matters: the launch ended there.
    pub reports: Vec<Report>,
}

impl Outcome {
    /// Returns the finding that made the launch fail, if one did.
    pub fn failure(&self) -> Option<&Report> {
        self.reports.iter().find(|report| report.kind.cuda_error().is_some())
    }
}

/// A launch that a driver refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// A dimension of zero, or one that is too large.
    #[error("the {what} of {size:?} is empty or too large")]
    Size {
        /// Grid, block or cluster.
        what: &'static str,
        /// As given.
        size: [u32; 3],
    },
    /// More threads than the kernel was compiled for.
    #[error("a block of {block:?} threads, the kernel was compiled for {limit:?}")]
    Threads {
        /// As given.
        block: [u32; 3],
        /// `.maxntid` or `.reqntid`.
        limit: [u32; 3],
    },
    /// Too much shared memory.
    #[error("{bytes} bytes of shared memory, {limit} are the most")]
    Shared {
        /// Static and dynamic.
        bytes: u64,
        /// Of the device.
        limit: u32,
    },
    /// Not as many argument bytes as the kernel's parameters take.
    #[error("{given} bytes of arguments, the kernel takes {expected}")]
    Arguments {
        /// As given.
        given: usize,
        /// As declared.
        expected: usize,
    },
    /// The host has no memory left to run it.
    #[error("the host has no memory for the launch")]
    NoHostMemory,
}

/// Threads of a block at most.
const MAX_THREADS: u64 = 1024;
/// Threads of a block at most, by direction.
const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
/// Blocks at most, by direction.
const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
/// Blocks of a cluster at most.
const MAX_CLUSTER: u64 = 16;

impl Launch<'_> {
    /// Checks sizes against the device and the kernel.
    pub fn check(&self, config: &Config) -> Result<(), LaunchError> {
        let within = |size: [u32; 3], limit: [u32; 3]| (0..3).all(|i| size[i] > 0 && size[i] <= limit[i]);
        if !within(self.grid, MAX_GRID) {
            return Err(LaunchError::Size { what: "grid", size: self.grid });
        }
        if !within(self.block, MAX_BLOCK) || self.threads() > MAX_THREADS {
            return Err(LaunchError::Size { what: "block", size: self.block });
        }
        let fits = (0..3).all(|i| self.cluster[i] > 0 && self.grid[i].is_multiple_of(self.cluster[i]));
        if !fits || volume(self.cluster) > MAX_CLUSTER {
            return Err(LaunchError::Size { what: "cluster", size: self.cluster });
        }
        let (limit, exact) = (self.kernel.kernel.max_threads, self.kernel.kernel.exact_threads);
        let declared = limit != [0; 3];
        if declared
            && (exact && self.block != limit.map(|n| n.max(1))
                || self.threads() > volume(limit.map(|n| n.max(1))))
        {
            return Err(LaunchError::Threads { block: self.block, limit });
        }
        let (bytes, limit) = (self.shared_bytes(), config.shared_limit());
        if bytes > u64::from(limit) {
            return Err(LaunchError::Shared { bytes, limit });
        }
        let params = &self.kernel.kernel.params;
        let expected = params.iter().map(|p| p.offset as usize + p.size as usize).max().unwrap_or(0);
        if self.params.len() < expected {
            return Err(LaunchError::Arguments { given: self.params.len(), expected });
        }
        Ok(())
    }

    /// Returns the number of threads of a block.
    pub fn threads(&self) -> u64 {
        volume(self.block)
    }

    /// Returns the number of blocks.
    pub fn blocks(&self) -> u64 {
        volume(self.grid)
    }

    /// Returns the shared memory of a block: static, then dynamic at its alignment.
    pub fn shared_bytes(&self) -> u64 {
        let kernel = &self.kernel.kernel;
        let align = u64::from(kernel.dynamic_shared_align.max(1));
        u64::from(kernel.shared_bytes).next_multiple_of(align) + u64::from(self.dynamic_shared)
    }
}

/// Returns the product of three sizes.
pub fn volume(size: [u32; 3]) -> u64 {
    size.iter().map(|&n| u64::from(n)).fold(1, u64::saturating_mul)
}

/// Returns the place of a number in a box of this size, x first.
pub fn position(number: u64, size: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = size.map(|n| u64::from(n.max(1)));
    [(number % x) as u32, (number / x % y) as u32, (number / x / y) as u32]
}

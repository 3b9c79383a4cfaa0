//! Counts what a launch does.
//!
//! While a kernel runs, a [`Tally`] for each host thread counts how often each instruction was executed and what its
//! accesses touched; at the end they become [`Counters`], which can be written as JSON.

mod banks;
mod class;
mod footprint;
mod tally;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use banks::{Wavefronts, wavefronts};
pub use class::Class;
pub use footprint::Footprint;
pub use tally::{Direction, Tally, Traffic};

/// Instructions of warps, and of the threads that took part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    /// Each warp counts once.
    pub warps: u64,
    /// Each active thread counts.
    pub lanes: u64,
}

/// Loads or stores of global memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalAccess {
    /// Warp instructions.
    pub requests: u64,
    /// Bytes that threads asked for.
    pub bytes: u64,
    /// Pieces of 32 bytes that each warp instruction touched.
    pub sectors: u64,
    /// Pieces of 32 bytes that the launch touched at all; 0 where they are not counted.
    #[serde(default)]
    pub footprint: u64,
    /// Bytes that were asked for 16 bytes (or more) at a time.
    pub bytes_in_wide_accesses: u64,
}

/// Loads or stores of shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedAccess {
    /// Warp instructions.
    pub requests: u64,
    /// Bytes that threads asked for.
    pub bytes: u64,
    /// Passes through the 32 banks of 4 bytes that it took.
    pub wavefronts: u64,
    /// Passes that it would take without conflicts.
    pub ideal_wavefronts: u64,
}

/// What a launch did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// The kernel's name.
    pub kernel: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Shared memory of a block, static and dynamic, in bytes.
    pub shared_bytes: u32,
    /// All instructions.
    pub instructions: Executed,
    /// By what they do.
    pub classes: BTreeMap<Class, Executed>,
    /// Global loads.
    pub global_loads: GlobalAccess,
    /// Global stores.
    pub global_stores: GlobalAccess,
    /// Shared loads, `ldmatrix` included.
    pub shared_loads: SharedAccess,
    /// Shared stores, `stmatrix` and asynchronous copies included.
    pub shared_stores: SharedAccess,
    /// Bytes loaded from local memory.
    pub local_load_bytes: u64,
    /// Bytes stored to local memory.
    pub local_store_bytes: u64,
    /// Jumps with a condition.
    pub branches: u64,
    /// Those that a warp's threads did not take together.
    pub divergent_branches: u64,
    /// Atomic operations of threads.
    pub atomics: u64,
    /// Arrivals of warps at barriers of the block.
    pub barriers: u64,
    /// Additions and multiplications of matrix instructions.
    pub tensor_operations: u64,
    /// Bytes of asynchronous copies into shared memory, zero fill included.
    pub asynchronous_copy_bytes: u64,
}

impl Counters {
    /// Returns asked-for bytes as a share of the bytes of all sectors touched; 1 is best, more means reuse in a warp.
    pub fn global_efficiency(&self) -> f64 {
        let sectors = self.global_loads.sectors + self.global_stores.sectors;
        (self.global_loads.bytes + self.global_stores.bytes) as f64 / (32 * sectors.max(1)) as f64
    }

    /// Returns how many times as many passes through shared memory were needed as without bank conflicts; 1 is best.
    pub fn shared_conflict_factor(&self) -> f64 {
        let real = self.shared_loads.wavefronts + self.shared_stores.wavefronts;
        let ideal = self.shared_loads.ideal_wavefronts + self.shared_stores.ideal_wavefronts;
        if ideal == 0 { 1.0 } else { real as f64 / ideal as f64 }
    }
}

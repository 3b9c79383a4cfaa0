//! What the emulator counted of a kernel, over all of its launches.

use serde::Serialize;

/// Sums over a kernel's launches.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Launches.
    pub launches: u64,
    /// Instructions of warps. PTX instructions, as a stand-in for those of the machine.
    pub warp_instructions: u64,
    /// Bytes that threads asked of global memory.
    pub global_bytes: u64,
    /// 32-byte sectors that these lie in, warp by warp.
    pub global_sectors: u64,
    /// Wavefronts of shared memory.
    pub shared_wavefronts: u64,
    /// Wavefronts that would do without bank conflicts.
    pub ideal_wavefronts: u64,
}

impl Measured {
    /// Returns wavefronts for each that is needed; none if shared memory is not used.
    pub fn wavefront_ratio(&self) -> Option<f64> {
        ratio(self.shared_wavefronts, self.ideal_wavefronts)
    }

    /// Returns bytes asked for as a share of the sectors' bytes; none if global memory is not used.
    pub fn sector_efficiency(&self) -> Option<f64> {
        ratio(self.global_bytes, 32 * self.global_sectors)
    }

    /// Returns bytes of global memory for each instruction of a warp; none if nothing was executed.
    pub fn bytes_per_instruction(&self) -> Option<f64> {
        ratio(self.global_bytes, self.warp_instructions)
    }

    /// Returns bytes of the sectors of one launch, on average.
    pub fn sector_bytes_per_launch(&self) -> f64 {
        ratio(32 * self.global_sectors, self.launches).unwrap_or(0.0)
    }
}

fn ratio(numerator: u64, denominator: u64) -> Option<f64> {
    (denominator > 0).then(|| numerator as f64 / denominator as f64)
}

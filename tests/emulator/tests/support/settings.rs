//! The settings under which a correct kernel must be right and silent.

use cuda_emulator::alu::Approx;
use cuda_emulator::exec::{Checks, Config, Schedule, Tensor};

/// All checks on, the n-th schedule: 0 is in order, the others are seeded; blocks run on one or two threads.
pub fn schedule(n: u64, capability: (u32, u32)) -> Config {
    let schedule = if n == 0 { Schedule::Ordered } else { Schedule::Seeded };
    Config { seed: n, schedule, threads: 1 + n as usize % 2, capability, ..Config::default() }
}

/// The checks that can be on and off.
pub const CHECKS: [Checks; 4] = [
    Checks { races: true, uninitialised: true },
    Checks { races: true, uninitialised: false },
    Checks { races: false, uninitialised: true },
    Checks { races: false, uninitialised: false },
];

/// Approximate functions with errors, and sums of matrix instructions that are cut off as on A100.
pub fn coarse(mut config: Config) -> Config {
    config.approx = Approx::Perturbed;
    config.tensor = Tensor::Truncated { extra_bits: 1, group: 8 };
    config
}

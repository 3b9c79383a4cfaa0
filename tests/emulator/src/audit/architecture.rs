//! What an architecture can do at most, and how many of a kernel's blocks a multiprocessor holds.
//!
//! Limits, clocks and memory are those of the emulated devices ([`crate::driver::architecture`]); here is what a driver does
//! not tell of a device: the rate of its tensor cores.

use serde::{Deserialize, Serialize};

use super::Error;
use crate::driver::architecture::Architecture as Device;
use crate::driver::occupancy::{self, Need};

/// Parts of a multiprocessor, each with a scheduler, registers and tensor core of its own.
pub const PARTITIONS: u32 = 4;

/// Multiply-adds of 16-bit numbers with f32 sums, dense, per clock of a multiprocessor's tensor cores: TFLOP/s of the data
/// sheet / (2 · multiprocessors · boost clock). sm_86, 89 and 120 are those of GeForce boards; the professional ones of the same
/// architecture have twice the rate with f32 sums. sm_100 is that of `tcgen05`; `mma.sync` reaches less there and on sm_90.
const TENSOR_RATES: [((u32, u32), u32); 6] = [
    ((8, 0), 1024),  // A100: 312 TFLOP/s, 108 at 1.41 GHz
    ((8, 6), 256),   // RTX 3090: 71, 82 at 1.695
    ((8, 9), 256),   // RTX 4090: 165, 128 at 2.52
    ((9, 0), 2048),  // H100 SXM: 989, 132 at 1.83
    ((10, 0), 4096), // B200: 2250, 148 at 1.85
    ((12, 0), 256),  // RTX 5090: 209.5, 170 at 2.407
];

/// An architecture, with a common device of it.
#[derive(Clone, Copy, Debug)]
pub struct Architecture {
    /// The device.
    pub device: &'static Device,
    /// Multiply-adds of 16-bit numbers per clock of a multiprocessor.
    pub tensor_rate: u32,
}

/// How much of a multiprocessor a kernel's blocks fill.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Occupancy {
    /// Blocks that are on a multiprocessor at a time; 0 if not even one fits.
    pub blocks: u32,
    /// Their warps.
    pub warps: u32,
    /// Warps as a share of those the multiprocessor has room for.
    pub share: f64,
    /// What there is too little of for one more block.
    pub limit: Limit,
}

/// What bounds the number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Registers.
    Registers,
    /// Shared memory.
    Shared,
    /// Room for warps.
    Warps,
    /// Room for blocks.
    Blocks,
}

impl Architecture {
    /// Finds an architecture by its name; `sm_90a` and `sm_100f` are sm_90 and sm_100.
    pub fn named(name: &str) -> Result<Architecture, Error> {
        let digits = name.strip_prefix("sm_").map(|rest| rest.strip_suffix(['a', 'f']).unwrap_or(rest));
        let rates = TENSOR_RATES.iter();
        let mut known = rates.map(|((major, minor), rate)| (format!("{major}{minor}"), *rate));
        let found = known.find(|(known, _)| Some(known.as_str()) == digits);
        let device = found.and_then(|(number, rate)| Some((Device::named(&number).ok()?, rate)));
        device.map(|(device, tensor_rate)| Architecture { device, tensor_rate }).ok_or_else(|| {
            let known = TENSOR_RATES.map(|((major, minor), _)| format!("sm_{major}{minor}")).join(", ");
            Error::Architecture { name: name.to_string(), known }
        })
    }

    /// Returns how many bytes the device's memory moves in a clock of its multiprocessors.
    pub fn bytes_per_clock(&self) -> f64 {
        // Two transfers in each clock of the memory.
        2.0 * f64::from(self.device.memory_clock) * f64::from(self.device.bus / 8)
            / f64::from(self.device.clock)
    }

    /// Returns how many blocks of `threads` threads fit, each thread with `registers` registers, each block with `shared`
    /// bytes of static and dynamic shared memory.
    pub fn occupancy(&self, threads: u32, registers: u32, shared: u32) -> Occupancy {
        let fit = |registers, static_shared| {
            let need = Need { registers, static_shared, max_threads: u32::MAX, carveout: -1 };
            occupancy::blocks(self.device, &need, threads, 0)
        };
        let (blocks, of_registers, room) = (fit(registers, shared), fit(registers, 0), fit(0, 0));
        let warps = threads.div_ceil(32).max(1);
        let all_warps = self.device.threads / 32;
        let limit = match blocks {
            fewer if fewer < room && fewer == of_registers => Limit::Registers,
            fewer if fewer < room => Limit::Shared,
            _ if all_warps / warps <= self.device.blocks => Limit::Warps,
            _ => Limit::Blocks,
        };
        let share = f64::from(blocks * warps) / f64::from(all_warps);
        Occupancy { blocks, warps: blocks * warps, share, limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(architecture: &str, threads: u32, registers: u32, shared: u32) -> (u32, Limit) {
        let found = Architecture::named(architecture).unwrap().occupancy(threads, registers, shared);
        (found.blocks, found.limit)
    }

    #[test]
    fn occupancy_by_hand() {
        // 128·32 = 4096 registers a warp; 16384 / 4096 = 4 warps a partition, 16 in all, 8 a block.
        assert_eq!(blocks("sm_80", 256, 128, 0), (2, Limit::Registers));
        // One register more costs a whole unit: 129·32 -> 4352; 3 warps a partition, 12 in all, 1 block.
        assert_eq!(blocks("sm_80", 256, 129, 0), (1, Limit::Registers));
        // 24 registers: 768 a warp, 21 warps a partition, 84 in all; but only 64 have room: 8 blocks of 8.
        assert_eq!(blocks("sm_80", 256, 24, 0), (8, Limit::Warps));
        assert_eq!(blocks("sm_86", 256, 24, 0), (6, Limit::Warps)); // room for 48
        // One warp a block: 32, 16, 24 blocks.
        assert_eq!(blocks("sm_90", 32, 16, 0), (32, Limit::Blocks));
        assert_eq!(blocks("sm_86", 32, 16, 0), (16, Limit::Blocks));
        assert_eq!(blocks("sm_120", 32, 16, 0), (24, Limit::Blocks));
        // 20480 + 1024 = 21504 bytes: 167936 / 21504 = 7.8; 102400 / 21504 = 4.8; 233472 / 21504 = 10.9.
        assert_eq!(blocks("sm_80", 128, 32, 20480), (7, Limit::Shared));
        assert_eq!(blocks("sm_89", 128, 32, 20480), (4, Limit::Shared));
        assert_eq!(blocks("sm_90a", 128, 32, 20480), (10, Limit::Shared));
        // The most that a block may ask for, and one byte more.
        assert_eq!(blocks("sm_80", 128, 32, 163 * 1024), (1, Limit::Shared));
        assert_eq!(blocks("sm_80", 128, 32, 163 * 1024 + 1), (0, Limit::Shared));
        // 168·32 = 5376: 3 warps a partition, 12 in all: one block of 12 warps (the Hopper product's shape).
        assert_eq!(blocks("sm_90a", 384, 168, 0), (1, Limit::Registers));
        // 255 registers in 512 threads: 16 warps of 8192 do not fit into 65536.
        assert_eq!(blocks("sm_100", 512, 255, 0), (0, Limit::Registers));
        // 5 warps, 255 registers: 2 warps a partition, 8 in all.
        assert_eq!(blocks("sm_80", 160, 255, 0), (1, Limit::Registers));
    }

    #[test]
    fn tensor_rate_is_the_data_sheets() {
        for (name, teraflops, multiprocessors, clock) in [
            ("sm_80", 312.0, 108.0, 1.41),
            ("sm_86", 71.0, 82.0, 1.695),
            ("sm_89", 165.2, 128.0, 2.52),
            ("sm_90", 989.4, 132.0, 1.83),
            ("sm_100", 2250.0, 148.0, 1.85),
            ("sm_120", 209.5, 170.0, 2.407),
        ] {
            let rate = f64::from(Architecture::named(name).unwrap().tensor_rate);
            let published = teraflops * 1e3 / (2.0 * multiprocessors * clock);
            assert!((rate / published - 1.0).abs() < 0.01, "{name}: {rate} instead of {published}");
        }
    }

    #[test]
    fn memory_rate_is_the_data_sheets() {
        for (name, gigabytes) in [("sm_80", 2039.0), ("sm_86", 936.0), ("sm_89", 1008.0), ("sm_90", 3350.0)] {
            let architecture = Architecture::named(name).unwrap();
            let rate = architecture.bytes_per_clock() * f64::from(architecture.device.clock) / 1e6;
            assert!((rate / gigabytes - 1.0).abs() < 0.01, "{name}: {rate} instead of {gigabytes}");
        }
    }

    #[test]
    fn unknown_architecture_is_named() {
        for name in ["sm_75", "80", "compute_80", "sm_", "sm_80x", "sm_8 0"] {
            let error = Architecture::named(name).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("sm_120"), "{error}");
        }
    }
}

//! What a multiprocessor has, by architecture, and how many blocks fit into it.
//!
//! Limits: CUDA C++ Programming Guide, "Compute Capabilities", table "Technical Specifications per Compute Capability".
//! Granularities and the formula: `cuda_occupancy.h` of the CUDA runtime.

use serde::Serialize;

use super::Error;

/// Registers are given out by warp in multiples of this.
const REGISTER_GRANULARITY: u32 = 256;
/// Shared memory is given out by block in multiples of this.
const SHARED_GRANULARITY: u32 = 128;
/// Bytes of shared memory that the driver keeps for itself in each block, since sm_80.
const SHARED_RESERVED: u32 = 1024;
/// Parts of a multiprocessor, each with a scheduler, registers and tensor core of its own.
pub const PARTITIONS: u32 = 4;

/// A multiprocessor, and the board whose peak rates stand for the architecture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Architecture {
    /// `sm_80` and the like.
    pub name: &'static str,
    /// Warps of a multiprocessor.
    pub warps: u32,
    /// Blocks of a multiprocessor.
    pub blocks: u32,
    /// Registers of a multiprocessor.
    pub registers: u32,
    /// Bytes of shared memory of a multiprocessor, at the largest share of the L1 cache.
    pub shared: u32,
    /// Bytes of shared memory that one block may ask for.
    pub shared_per_block: u32,
    /// Multiply-adds of 16-bit numbers with f32 sums, dense, per clock of a multiprocessor's tensor cores.
    pub tensor_rate: u32,
    /// The board.
    pub board: &'static str,
    /// Its multiprocessors.
    pub multiprocessors: u32,
    /// Its boost clock in GHz.
    pub clock: f64,
    /// Its memory bandwidth in GB/s.
    pub bandwidth: f64,
}

/// Peak rates: tensor TFLOP/s / (multiprocessors · clock · 2), from the NVIDIA white papers and data sheets of the boards:
/// A100 312, RTX A6000 155 (GeForce boards of sm_86, 89 and 120 halve the rate with f32 sums), L40S 362, H100 SXM 989,
/// B200 2250 (in tensor memory, `tcgen05`), RTX PRO 6000 504. `mma.sync` reaches less than that on sm_90 and sm_100.
pub const ARCHITECTURES: [Architecture; 6] = [
    Architecture {
        name: "sm_80",
        warps: 64,
        blocks: 32,
        registers: 65536,
        shared: 164 * 1024,
        shared_per_block: 163 * 1024,
        tensor_rate: 1024,
        board: "A100 SXM 80 GB",
        multiprocessors: 108,
        clock: 1.41,
        bandwidth: 2039.0,
    },
    Architecture {
        name: "sm_86",
        warps: 48,
        blocks: 16,
        registers: 65536,
        shared: 100 * 1024,
        shared_per_block: 99 * 1024,
        tensor_rate: 512,
        board: "RTX A6000",
        multiprocessors: 84,
        clock: 1.8,
        bandwidth: 768.0,
    },
    Architecture {
        name: "sm_89",
        warps: 48,
        blocks: 24,
        registers: 65536,
        shared: 100 * 1024,
        shared_per_block: 99 * 1024,
        tensor_rate: 512,
        board: "L40S",
        multiprocessors: 142,
        clock: 2.52,
        bandwidth: 864.0,
    },
    Architecture {
        name: "sm_90",
        warps: 64,
        blocks: 32,
        registers: 65536,
        shared: 228 * 1024,
        shared_per_block: 227 * 1024,
        tensor_rate: 2048,
        board: "H100 SXM",
        multiprocessors: 132,
        clock: 1.83,
        bandwidth: 3350.0,
    },
    Architecture {
        name: "sm_100",
        warps: 64,
        blocks: 32,
        registers: 65536,
        shared: 228 * 1024,
        shared_per_block: 227 * 1024,
        tensor_rate: 4096,
        board: "B200",
        multiprocessors: 148,
        clock: 1.85,
        bandwidth: 8000.0,
    },
    Architecture {
        name: "sm_120",
        warps: 48,
        blocks: 24,
        registers: 65536,
        shared: 100 * 1024,
        shared_per_block: 99 * 1024,
        tensor_rate: 512,
        board: "RTX PRO 6000 Blackwell",
        multiprocessors: 188,
        clock: 2.617,
        bandwidth: 1792.0,
    },
];

/// How much of a multiprocessor a kernel's blocks fill.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
    pub fn named(name: &str) -> Result<&'static Architecture, Error> {
        let plain = name.strip_suffix(['a', 'f']).unwrap_or(name);
        let found = ARCHITECTURES.iter().find(|a| a.name == plain);
        found.ok_or_else(|| {
            let known = ARCHITECTURES.map(|a| a.name).join(", ");
            Error::Architecture { name: name.to_string(), known }
        })
    }

    /// Returns how many blocks of `threads` threads fit, each thread with `registers` registers, each block with `shared`
    /// bytes of static and dynamic shared memory.
    pub fn occupancy(&self, threads: u32, registers: u32, shared: u32) -> Occupancy {
        let warps = threads.div_ceil(32).max(1);
        let of_registers = match (registers * 32).next_multiple_of(REGISTER_GRANULARITY) {
            0 => u32::MAX,
            // A block whose registers do not fit at once in warps by fours does not start (cuda_occupancy.h).
            each if each * warps.next_multiple_of(PARTITIONS) > self.registers => 0,
            each => self.registers / PARTITIONS / each * PARTITIONS / warps,
        };
        let of_shared = match shared {
            too_much if too_much > self.shared_per_block => 0,
            fits => self.shared / (fits + SHARED_RESERVED).next_multiple_of(SHARED_GRANULARITY),
        };
        let limits = [
            (of_registers, Limit::Registers),
            (of_shared, Limit::Shared),
            (self.warps / warps, Limit::Warps),
            (self.blocks, Limit::Blocks),
        ];
        // Of equal limits the first is named: it is the one the kernel's author can do something about.
        let (blocks, limit) =
            limits.into_iter().min_by_key(|(blocks, _)| *blocks).unwrap_or((0, Limit::Blocks));
        let share = f64::from(blocks * warps) / f64::from(self.warps);
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
        // 5 warps, 255 registers: 2 warps a partition, 8 in all; but the check takes 8 warps for 5: they just fit.
        assert_eq!(blocks("sm_80", 160, 255, 0), (1, Limit::Registers));
    }

    #[test]
    fn tensor_rate_is_the_data_sheets() {
        let teraflops =
            [("sm_80", 312.0), ("sm_86", 155.0), ("sm_89", 362.0), ("sm_90", 989.0), ("sm_120", 504.0)];
        for (name, published) in teraflops.into_iter().chain([("sm_100", 2250.0)]) {
            let a = Architecture::named(name).unwrap();
            let rate = 2.0 * f64::from(a.tensor_rate) * f64::from(a.multiprocessors) * a.clock / 1000.0;
            assert!((rate / published - 1.0).abs() < 0.02, "{name}: {rate} instead of {published}");
        }
    }

    #[test]
    fn unknown_architecture_is_named() {
        let error = Architecture::named("sm_75").unwrap_err().to_string();
        assert!(error.contains("sm_75") && error.contains("sm_120"), "{error}");
    }
}

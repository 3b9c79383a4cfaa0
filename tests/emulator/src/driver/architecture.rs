//! The emulated devices: limits of each compute capability, and the parts that the counts of multiprocessors are taken from.
//!
//! Limits: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".

use super::codes::{Code, Result};

/// A compute capability with the limits of a common part.
#[derive(Debug, PartialEq, Eq)]
pub struct Architecture {
    /// Compute capability: major, minor.
    pub capability: (u32, u32),
    /// Multiprocessors of the part.
    pub multiprocessors: u32,
    /// Threads of a multiprocessor.
    pub threads: u32,
    /// Blocks of a multiprocessor.
    pub blocks: u32,
    /// Bytes of shared memory of a multiprocessor.
    pub shared: u32,
    /// Sizes that the shared memory can be set to, in KiB.
    pub carveouts: &'static [u32],
    /// Bytes of second level cache.
    pub l2: u32,
    /// Width of the memory bus in bits.
    pub bus: u32,
    /// Clock of the multiprocessors in kHz.
    pub clock: u32,
    /// Clock of the memory in kHz.
    pub memory_clock: u32,
}

const TURING: &[u32] = &[32, 64];
const SMALL: &[u32] = &[0, 8, 16, 32, 64, 100];
const AMPERE: &[u32] = &[0, 8, 16, 32, 64, 100, 132, 164];
const HOPPER: &[u32] = &[0, 8, 16, 32, 64, 100, 132, 164, 196, 228];

macro_rules! device {
    ($cc:expr, $sms:literal, $threads:literal, $blocks:literal, $shared:literal, $carveouts:ident, $l2:literal, $bus:literal,
     $clock:literal, $memory:literal) => {
        Architecture {
            capability: $cc,
            multiprocessors: $sms,
            threads: $threads,
            blocks: $blocks,
            shared: $shared << 10,
            carveouts: $carveouts,
            l2: $l2 << 20,
            bus: $bus,
            clock: $clock,
            memory_clock: $memory,
        }
    };
}

// After: A100 SXM, RTX 3090, Orin, RTX 4090, H100 SXM, B200, B300, RTX 5090, GB10. Then what programs may meet and refuse: an older
// card (T4), and one that no compiler of ours knows, with the limits of sm_120.
static DEVICES: &[Architecture] = &[
    device!((8, 0), 108, 2048, 32, 164, AMPERE, 40, 5120, 1_410_000, 1_593_000),
    device!((8, 6), 82, 1536, 16, 100, SMALL, 6, 384, 1_695_000, 9_751_000),
    device!((8, 7), 16, 1536, 16, 164, AMPERE, 4, 256, 1_300_000, 3_200_000),
    device!((8, 9), 128, 1536, 24, 100, SMALL, 72, 384, 2_520_000, 10_501_000),
    device!((9, 0), 132, 2048, 32, 228, HOPPER, 50, 5120, 1_980_000, 2_619_000),
    device!((10, 0), 148, 2048, 32, 228, HOPPER, 126, 8192, 1_965_000, 3_996_000),
    device!((10, 3), 148, 2048, 32, 228, HOPPER, 126, 8192, 2_032_000, 3_996_000),
    device!((12, 0), 170, 1536, 24, 100, SMALL, 96, 512, 2_407_000, 14_001_000),
    device!((12, 1), 48, 1536, 24, 100, SMALL, 24, 256, 2_418_000, 8_533_000),
    device!((7, 5), 40, 1024, 16, 64, TURING, 4, 256, 1_590_000, 5_001_000),
    device!((13, 0), 170, 1536, 24, 100, SMALL, 96, 512, 2_407_000, 14_001_000),
];

/// Registers of a multiprocessor, and the most that a block can have.
pub const REGISTERS: u32 = 65536;
/// Threads of a block.
pub const BLOCK_THREADS: u32 = 1024;
/// Bytes of shared memory of a block without opt-in.
pub const SHARED_PLAIN: u32 = 48 << 10;
/// Bytes of shared memory that the system takes in each block.
pub const SHARED_RESERVED: u32 = 1024;
/// Blocks of a cluster without opt-in.
pub const CLUSTER_PORTABLE: u32 = 8;
/// Blocks of a cluster.
pub const CLUSTER_LARGEST: u32 = 16;

impl Architecture {
    /// Returns the device that is emulated where nothing is set: the baseline of the sm_80 family.
    pub fn baseline() -> &'static Self {
        &DEVICES[0]
    }

    /// Finds one by a name: `sm_80`, `80` or `8.0`; the letter of `sm_90a` is accepted.
    pub fn named(name: &str) -> Result<&'static Self> {
        let digits: String = name.trim().chars().filter(char::is_ascii_digit).collect();
        let capability = |a: &Architecture| format!("{}{}", a.capability.0, a.capability.1);
        DEVICES.iter().find(|a| capability(a) == digits).ok_or_else(|| {
            let known: Vec<String> = DEVICES.iter().map(|a| format!("sm_{}", capability(a))).collect();
            Code::INVALID_VALUE.because(format!("no device `{name}`; there are {}", known.join(", ")))
        })
    }

    /// Returns the name that the device answers with.
    pub fn name(&self) -> String {
        format!("CUDA emulator sm_{}{}", self.capability.0, self.capability.1)
    }

    /// Returns the most shared memory that a block can have after opt-in.
    pub fn shared_opt_in(&self) -> u32 {
        self.shared - if self.capability.0 >= 8 { SHARED_RESERVED } else { 0 }
    }

    /// Returns whether there are clusters of blocks.
    pub fn has_clusters(&self) -> bool {
        self.capability.0 >= 9
    }

    /// Decides whether code for a `.target` runs here: `sm_80` on this and all later ones, `sm_90a` on exactly this one,
    /// `sm_100f` on its family (same major number, not older).
    pub fn runs(&self, target: &str) -> bool {
        let Some(rest) = target.strip_prefix("sm_") else { return false };
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let Ok(number) = digits.parse::<u32>() else { return false };
        let (own, wanted) = (self.capability, (number / 10, number % 10));
        match &rest[digits.len()..] {
            "" => own >= wanted,
            "a" => own == wanted,
            "f" => own.0 == wanted.0 && own.1 >= wanted.1,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_run_where_the_isa_says() {
        let hopper = Architecture::named("sm_90").unwrap();
        for (target, runs) in [
            ("sm_52", true),
            ("sm_80", true),
            ("sm_90", true),
            ("sm_90a", true),
            ("sm_89", true),
            ("sm_100", false),
            ("sm_100f", false),
            ("sm_80a", false),
            ("compute_80", false),
            ("sm_", false),
            ("sm_99999999999", false),
        ] {
            assert_eq!(hopper.runs(target), runs, "{target}");
        }
        let blackwell = Architecture::named("10.3").unwrap();
        assert!(blackwell.runs("sm_100f") && !blackwell.runs("sm_100a") && !blackwell.runs("sm_90a"));
    }

    #[test]
    fn opt_in_limits_are_those_of_the_programming_guide() {
        for (name, bytes) in [
            ("75", 65_536),
            ("80", 166_912),
            ("86", 101_376),
            ("89", 101_376),
            ("90", 232_448),
            ("100", 232_448),
        ] {
            assert_eq!(Architecture::named(name).unwrap().shared_opt_in(), bytes, "{name}");
        }
    }
}

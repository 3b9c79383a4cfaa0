//! What the emulator counted of a kernel, over all of its launches.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Error;
use super::architecture::{Architecture, PARTITIONS};
use super::model::Bound;
use crate::counters::Counters;

/// Bytes of a sector: the piece in which global memory is moved.
const SECTOR: u64 = 32;

/// Sums over a kernel's launches.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Launches.
    pub launches: u64,
    /// Threads of a block, the most of all launches.
    pub threads: u32,
    /// Dynamic shared memory of a block, the most of all launches.
    pub dynamic_shared: u32,
    /// Instructions of warps. PTX instructions, as a stand-in for those of the machine.
    pub warp_instructions: u64,
    /// Bytes that threads asked of global memory.
    pub global_bytes: u64,
    /// 32-byte sectors that these lie in, warp by warp.
    pub global_sectors: u64,
    /// Of the bytes, those asked for 16 or more at a time.
    pub wide_bytes: u64,
    /// Wavefronts of shared memory.
    pub shared_wavefronts: u64,
    /// Wavefronts that would do without bank conflicts.
    pub ideal_wavefronts: u64,
    /// Additions and multiplications of matrix instructions.
    pub tensor_operations: u64,
}

/// The least clocks of all launches on a whole board.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LaunchClocks {
    /// Tensor cores, as if all products were of 16-bit numbers.
    pub tensor: f64,
    /// Shared memory.
    pub shared: f64,
    /// Issue.
    pub issue: f64,
    /// Memory of the device, as if no sector were read from a cache.
    pub dram: f64,
}

/// A launch in the driver's file of counters; what the audit does not use is left out.
#[derive(Deserialize)]
struct Line {
    dynamic_shared: u32,
    counters: Counters,
}

/// A copy or a fill, which the audit passes over.
#[derive(Deserialize)]
struct Moved {
    #[serde(rename = "moved")]
    _what: String,
}

/// Reads the file of counters that the driver writes, a line of JSON for each launch, and adds the launches of each kernel.
/// `file` is what messages call it.
pub fn parse(text: &str, file: &str) -> Result<BTreeMap<String, Measured>, Error> {
    let mut kernels: BTreeMap<String, Measured> = BTreeMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        if serde_json::from_str::<Moved>(line).is_ok() {
            continue;
        }
        let line: Line = serde_json::from_str(line).map_err(|e| Error::Counters {
            file: file.to_string(),
            line: number + 1,
            message: e.to_string(),
        })?;
        kernels.entry(line.counters.kernel.clone()).or_default().add(&line.counters, line.dynamic_shared);
    }
    Ok(kernels)
}

impl Measured {
    /// Adds a launch.
    pub fn add(&mut self, counters: &Counters, dynamic_shared: u32) {
        let threads = counters.block.iter().fold(1u32, |product, n| product.saturating_mul(*n));
        self.launches += 1;
        self.threads = self.threads.max(threads);
        self.dynamic_shared = self.dynamic_shared.max(dynamic_shared);
        self.tensor_operations += counters.tensor_operations;
        self.warp_instructions += counters.instructions.warps;
        for access in [&counters.global_loads, &counters.global_stores] {
            self.global_bytes += access.bytes;
            self.global_sectors += access.sectors;
            self.wide_bytes += access.bytes_in_wide_accesses;
        }
        for access in [&counters.shared_loads, &counters.shared_stores] {
            self.shared_wavefronts += access.wavefronts;
            self.ideal_wavefronts += access.ideal_wavefronts;
        }
    }

    /// Returns wavefronts for each that is needed; none if shared memory is not used.
    pub fn wavefront_ratio(&self) -> Option<f64> {
        ratio(self.shared_wavefronts, self.ideal_wavefronts)
    }

    /// Returns bytes asked for as a share of the sectors' bytes; none if global memory is not used.
    pub fn sector_efficiency(&self) -> Option<f64> {
        ratio(self.global_bytes, SECTOR * self.global_sectors)
    }

    /// Returns the share of the bytes that were asked for 16 or more at a time; none if global memory is not used.
    pub fn wide_share(&self) -> Option<f64> {
        ratio(self.wide_bytes, self.global_bytes)
    }

    /// Returns bytes of global memory for each instruction of a warp; none if nothing was executed.
    pub fn bytes_per_instruction(&self) -> Option<f64> {
        ratio(self.global_bytes, self.warp_instructions)
    }

    /// Returns bytes of the sectors of one launch, on average.
    pub fn sector_bytes_per_launch(&self) -> f64 {
        ratio(SECTOR * self.global_sectors, self.launches).unwrap_or(0.0)
    }

    /// Returns the least clocks of all launches on the architecture's board.
    pub fn clocks(&self, architecture: Architecture) -> LaunchClocks {
        let multiprocessors = f64::from(architecture.device.multiprocessors);
        let per_multiprocessor = |count: u64, rate: u32| count as f64 / (multiprocessors * f64::from(rate));
        LaunchClocks {
            tensor: per_multiprocessor(self.tensor_operations, 2 * architecture.tensor_rate),
            shared: per_multiprocessor(self.shared_wavefronts, 1),
            issue: per_multiprocessor(self.warp_instructions, PARTITIONS),
            dram: (SECTOR * self.global_sectors) as f64 / architecture.bytes_per_clock(),
        }
    }
}

impl LaunchClocks {
    /// Returns what takes longest, and its clocks.
    pub fn bound(&self) -> (Bound, f64) {
        let others = [(Bound::Shared, self.shared), (Bound::Issue, self.issue), (Bound::Dram, self.dram)];
        others
            .into_iter()
            .fold((Bound::Tensor, self.tensor), |most, each| if each.1 > most.1 { each } else { most })
    }
}

fn ratio(numerator: u64, denominator: u64) -> Option<f64> {
    (denominator > 0).then(|| numerator as f64 / denominator as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kernel: &str, block: [u32; 3], sectors: u64) -> String {
        let mut counters =
            Counters { kernel: kernel.to_string(), block, tensor_operations: 8192, ..Counters::default() };
        counters.instructions.warps = 1000;
        counters.global_loads.bytes = 3200;
        counters.global_loads.bytes_in_wide_accesses = 800;
        counters.global_loads.sectors = sectors;
        for shared in [&mut counters.shared_loads, &mut counters.shared_stores] {
            (shared.wavefronts, shared.ideal_wavefronts) = (13, 4);
        }
        serde_json::json!({ "launch": 3, "dynamic_shared": 2048, "counters": counters }).to_string()
    }

    #[test]
    fn launches_of_a_kernel_are_added() {
        let text = format!(
            "{}\n\n{}\n{}\n",
            line("f", [64, 2, 1], 100),
            line("g", [1, 1, 1], 7),
            line("f", [32, 1, 1], 300)
        );
        let kernels = parse(&text, "counters.jsonl").unwrap();
        assert_eq!(kernels.keys().collect::<Vec<_>>(), ["f", "g"]);
        let f = &kernels["f"];
        assert_eq!((f.launches, f.threads, f.dynamic_shared, f.warp_instructions), (2, 128, 2048, 2000));
        assert_eq!(f.sector_efficiency(), Some(0.5)); // 6400 bytes in 400 sectors
        assert_eq!(f.wide_share(), Some(0.25));
        assert_eq!(f.wavefront_ratio(), Some(3.25));
        assert_eq!(f.bytes_per_instruction(), Some(3.2));
        assert_eq!(f.sector_bytes_per_launch(), 6400.0);
    }

    #[test]
    fn line_that_is_none_is_named() {
        let text = format!("{}\n{{\"kernel\":\"f\"}}\n", line("f", [1, 1, 1], 1));
        let message = parse(&text, "counters.jsonl").unwrap_err().to_string();
        assert!(
            message.contains("counters.jsonl")
                && message.contains("line 2")
                && message.contains("dynamic_shared"),
            "{message}"
        );
    }

    #[test]
    fn bounds_by_hand() {
        let a100 = Architecture::named("sm_80").unwrap();
        let mut measured = Measured { warp_instructions: 432_000, ..Measured::default() };
        assert_eq!(measured.clocks(a100).bound(), (Bound::Issue, 1000.0)); // 4 a clock on each of 108
        measured.shared_wavefronts = 216_000;
        assert_eq!(measured.clocks(a100).bound(), (Bound::Shared, 2000.0));
        measured.tensor_operations = 108 * 2048 * 3000; // 1024 multiply-adds a clock
        assert_eq!(measured.clocks(a100).bound(), (Bound::Tensor, 3000.0));
        measured.global_sectors = 2_000_000; // 64 MB at 2039 GB/s and 1.41 GHz: 1446 bytes a clock
        let (bound, clocks) = measured.clocks(a100).bound();
        assert!(bound == Bound::Dram && (44_000.0..44_500.0).contains(&clocks), "{clocks}");
    }

    #[test]
    fn nothing_counted_has_no_ratios() {
        let nothing = Measured::default();
        assert_eq!(
            nothing.sector_efficiency().or(nothing.wavefront_ratio()).or(nothing.bytes_per_instruction()),
            None
        );
        assert_eq!(nothing.sector_bytes_per_launch(), 0.0);
    }
}

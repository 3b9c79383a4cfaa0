//! The counters of one host thread while a kernel runs.

use std::collections::BTreeMap;

use super::banks::wavefronts;
use super::{Class, Counters, Executed, Footprint, GlobalAccess, SharedAccess};
use crate::regs::{LANES, for_lanes};

/// Whether an access loads or stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Direction {
    Load,
    Store,
}

/// An access of a warp.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Load or store.
    pub direction: Direction,
    /// Bytes of each lane.
    pub size: u64,
    /// Lanes that take part; not empty.
    pub mask: u32,
    /// All lanes, each behind the one before.
    pub contiguous: bool,
    /// The smallest address.
    pub low: u64,
}

/// The counters of one host thread while a kernel runs.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Executions of each instruction.
    pub executed: Vec<Executed>,
    /// Sums of everything else.
    pub sums: Counters,
    /// What was loaded and stored, if that is wanted.
    pub footprints: Option<Box<[Footprint; 2]>>,
}

impl Tally {
    /// Begins with zeros, for a kernel of so many instructions.
    pub fn new(instructions: usize, footprints: bool) -> Self {
        let footprints = footprints.then(Box::default);
        Self { executed: vec![Executed::default(); instructions], sums: Counters::default(), footprints }
    }

    /// Counts an instruction.
    #[inline(always)]
    pub fn execute(&mut self, pc: u32, mask: u32) {
        if let Some(executed) = self.executed.get_mut(pc as usize) {
            executed.warps += 1;
            executed.lanes += u64::from(mask.count_ones());
        }
    }

    /// Counts an access to global memory.
    #[inline(always)]
    pub fn global(&mut self, traffic: &Traffic, at: &[u64; LANES]) {
        let bytes = traffic.size * u64::from(traffic.mask.count_ones());
        let sectors = if traffic.contiguous {
            (traffic.low + bytes - 1) / 32 - traffic.low / 32 + 1
        } else {
            sectors(at, traffic.size, traffic.mask)
        };
        if let Some(footprints) = &mut self.footprints {
            let footprint = &mut footprints[traffic.direction as usize];
            if traffic.contiguous {
                footprint.add(traffic.low / 32, sectors);
            } else {
                for_lanes(traffic.mask, |lane| footprint.add(at[lane] / 32, 1));
            }
        }
        let access = match traffic.direction {
            Direction::Load => &mut self.sums.global_loads,
            Direction::Store => &mut self.sums.global_stores,
        };
        access.requests += 1;
        access.bytes += bytes;
        access.sectors += sectors;
        access.bytes_in_wide_accesses += if traffic.size >= 16 { bytes } else { 0 };
    }

    /// Counts an access to shared memory.
    #[inline(always)]
    pub fn shared(&mut self, traffic: &Traffic, at: &[u64; LANES]) {
        let bytes = traffic.size * u64::from(traffic.mask.count_ones());
        let (real, ideal) = if traffic.contiguous && traffic.low.is_multiple_of(traffic.size.max(4)) {
            (bytes.div_ceil(128), bytes.div_ceil(128))
        } else {
            let passes = wavefronts(at, traffic.size, traffic.mask);
            (passes.real, passes.ideal)
        };
        let access = match traffic.direction {
            Direction::Load => &mut self.sums.shared_loads,
            Direction::Store => &mut self.sums.shared_stores,
        };
        access.requests += 1;
        access.bytes += bytes;
        access.wavefronts += real;
        access.ideal_wavefronts += ideal;
    }

    /// Counts an access to local memory.
    pub fn local(&mut self, traffic: &Traffic) {
        let bytes = traffic.size * u64::from(traffic.mask.count_ones());
        match traffic.direction {
            Direction::Load => self.sums.local_load_bytes += bytes,
            Direction::Store => self.sums.local_store_bytes += bytes,
        }
    }

    /// Adds the counts of another host thread.
    pub fn add(&mut self, other: &Tally) {
        for (sum, part) in self.executed.iter_mut().zip(&other.executed) {
            sum.warps += part.warps;
            sum.lanes += part.lanes;
        }
        if let (Some(all), Some(some)) = (&mut self.footprints, &other.footprints) {
            all.iter_mut().zip(some.iter()).for_each(|(all, some)| all.join(some));
        }
        let (sums, parts) = (&mut self.sums, &other.sums);
        add_global(&mut sums.global_loads, &parts.global_loads);
        add_global(&mut sums.global_stores, &parts.global_stores);
        add_shared(&mut sums.shared_loads, &parts.shared_loads);
        add_shared(&mut sums.shared_stores, &parts.shared_stores);
        sums.local_load_bytes += parts.local_load_bytes;
        sums.local_store_bytes += parts.local_store_bytes;
        sums.branches += parts.branches;
        sums.divergent_branches += parts.divergent_branches;
        sums.atomics += parts.atomics;
        sums.barriers += parts.barriers;
        sums.tensor_operations += parts.tensor_operations;
        sums.asynchronous_copy_bytes += parts.asynchronous_copy_bytes;
    }

    /// Returns the counters, given what each instruction counts as.
    pub fn finish(self, classes: &[Class]) -> Counters {
        let mut counters = self.sums;
        let mut by_class: BTreeMap<Class, Executed> = BTreeMap::new();
        for (executed, class) in self.executed.iter().zip(classes).filter(|(e, _)| e.warps != 0) {
            for sum in [by_class.entry(*class).or_default(), &mut counters.instructions] {
                sum.warps += executed.warps;
                sum.lanes += executed.lanes;
            }
        }
        counters.classes = by_class;
        if let Some(footprints) = self.footprints {
            counters.global_loads.footprint = footprints[0].len();
            counters.global_stores.footprint = footprints[1].len();
        }
        counters
    }
}

fn add_global(sum: &mut GlobalAccess, part: &GlobalAccess) {
    sum.requests += part.requests;
    sum.bytes += part.bytes;
    sum.sectors += part.sectors;
    sum.bytes_in_wide_accesses += part.bytes_in_wide_accesses;
}

fn add_shared(sum: &mut SharedAccess, part: &SharedAccess) {
    sum.requests += part.requests;
    sum.bytes += part.bytes;
    sum.wavefronts += part.wavefronts;
    sum.ideal_wavefronts += part.ideal_wavefronts;
}

/// Counts the different pieces of 32 bytes that a warp touches; an access of a power of two lies in one of them.
fn sectors(at: &[u64; LANES], size: u64, mask: u32) -> u64 {
    debug_assert!(size <= 32);
    let mut seen = [0; LANES];
    let mut count = 0;
    for_lanes(mask, |lane| {
        let sector = at[lane] / 32;
        // The last one is the likeliest.
        if (count == 0 || seen[count - 1] != sector) && !seen[..count].contains(&sector) {
            seen[count] = sector;
            count += 1;
        }
    });
    count as u64
}

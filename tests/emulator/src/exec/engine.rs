//! What one host thread needs to run blocks: the program, the memory it sees, counters, findings.

use std::collections::HashSet;
use std::sync::Arc;

use super::block::BlockState;
use super::findings::{Findings, Place};
use super::local::OwnMemory;
use super::program::Program;
use super::warp::Warp;
use super::{Config, Launch};
use crate::counters::Tally;
use crate::detect;
use crate::isa::Count;
use crate::memory::{DeviceMemory, View};
use crate::regs::Regs;
use crate::report::Kind;

/// The launch has failed: whoever sees this stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Halted;

/// What one host thread needs to run blocks of a launch.
pub struct Engine<'a> {
    /// The kernel.
    pub program: &'a Program,
    /// Grid and arguments.
    pub launch: &'a Launch<'a>,
    /// Settings.
    pub config: &'a Config,
    /// All device memory, to explain faults.
    pub memory: &'a DeviceMemory,
    /// The allocations that the kernel sees.
    pub view: &'a View,
    /// The arguments.
    pub params: &'a OwnMemory,
    /// Of all host threads together.
    pub findings: &'a Findings,
    /// Of this host thread.
    pub tally: Tally,
    /// For each instruction the region that it accessed last.
    pub regions: Vec<u32>,
    /// The processor has AVX2 and its companions.
    pub vectors: bool,
    /// Findings that cost nobody an error and need not be made again.
    noted: HashSet<(Kind, u32)>,
    /// The race detector, if it is on.
    pub races: Option<Arc<detect::Launch>>,
}

/// A warp's instruction, for reports.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    /// blockIdx.
    pub block: [u32; 3],
    /// Number of the warp in the block.
    pub warp: u32,
    /// Index of the instruction.
    pub pc: u32,
}

impl Who {
    /// Names the instruction of a warp.
    #[inline(always)]
    pub fn new(block: &BlockState, warp: &Warp, pc: u32) -> Self {
        Self { block: block.index, warp: warp.index, pc }
    }
}

impl<'a> Engine<'a> {
    /// Begins with zero counters.
    pub fn new(
        launch: &'a Launch<'a>,
        (memory, view, params): (&'a DeviceMemory, &'a View, &'a OwnMemory),
        config: &'a Config,
        findings: &'a Findings,
    ) -> Self {
        let program = launch.kernel;
        let regions = vec![0; program.steps.len()];
        let tally = Tally::new(program.steps.len(), config.footprints);
        let vectors = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2");
        Self {
            program,
            launch,
            config,
            memory,
            view,
            params,
            findings,
            tally,
            regions,
            vectors,
            noted: HashSet::new(),
            races: None,
        }
    }

    /// Reports a finding about a thread. It is an error if the launch must end.
    pub fn report(
        &mut self,
        kind: Kind,
        who: Who,
        lane: u32,
        message: impl FnOnce() -> String,
    ) -> Result<(), Halted> {
        let fatal = kind.cuda_error().is_some();
        if !fatal && !self.noted.insert((kind, who.pc)) {
            return Ok(());
        }
        let place = Place { block: who.block, thread: self.thread(who.warp, lane), pc: who.pc };
        self.findings.add(self.program, kind, place, message);
        if fatal { Err(Halted) } else { Ok(()) }
    }

    /// Returns threadIdx of a lane.
    pub fn thread(&self, warp: u32, lane: u32) -> [u32; 3] {
        let linear = warp * 32 + lane;
        let [x, y, _] = self.launch.block.map(|n| n.max(1));
        [linear % x, linear / x % y, linear / x / y]
    }

    /// Returns the value of a count; registers are read in the first of some lanes.
    #[inline(always)]
    pub fn count(&self, regs: &Regs, count: Count, lanes: u32) -> u32 {
        match count {
            Count::Imm(n) => n,
            Count::Reg(slot) => regs.r32[slot as usize].0[(lanes.trailing_zeros() & 31) as usize],
        }
    }
}

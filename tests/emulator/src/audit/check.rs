//! Compares an audit with its limits.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::budget::{CounterLimits, Limits, LoopLimits, StepLimits};
use super::measured::Measured;
use super::sass::{Class, Mix};
use super::{KernelAudit, MainLoop};

/// How one limit is kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The kernel.
    pub kernel: String,
    /// The architecture.
    pub architecture: String,
    /// The limit's key in the file.
    pub limit: String,
    /// Its value.
    pub allowed: f64,
    /// What was found.
    pub found: Option<f64>,
    /// Whether it is kept.
    pub status: Status,
    /// Why there is nothing to compare with.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: &'static str,
}

/// Whether a limit is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It is.
    Kept,
    /// It is not.
    Exceeded,
    /// Nobody knows: the emulator's counters are not there.
    NotChecked,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { kernel, architecture, limit, allowed, .. } = self;
        let allowed = (allowed * 1e4).round() / 1e4;
        match self.found {
            Some(found) => {
                let found = (found * 1e4).round() / 1e4;
                write!(f, "{kernel} on {architecture}: {limit} = {allowed}, found {found}")
            }
            None => write!(f, "{kernel} on {architecture}: {limit} = {allowed}, but {}", self.reason),
        }
    }
}

/// Compares a kernel with its limits.
pub(super) fn kernel(audit: &KernelAudit, limits: &Limits, measured: Option<&Measured>) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let resources = &audit.resources;
    let mut compare = Comparison {
        kernel: &resources.kernel,
        architecture: &resources.architecture,
        verdicts: &mut verdicts,
    };
    whole(&mut compare, audit, limits);
    main_loop(&mut compare, audit.main_loop.as_ref(), &limits.main_loop);
    counters(&mut compare, measured, &limits.counters);
    verdicts
}

/// Compares all launches together with their limits.
pub(super) fn step(limits: &StepLimits, measured: &BTreeMap<String, Measured>) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut compare =
        Comparison { kernel: "all launches", architecture: "the emulator", verdicts: &mut verdicts };
    let sum = |of: fn(&Measured) -> f64| match measured.is_empty() {
        true => Found::NotCounted,
        false => Found::Value(measured.values().map(of).sum()),
    };
    compare.most("step.max_launches", limits.max_launches, sum(|m| m.launches as f64));
    let bytes = sum(|m| m.sector_bytes_per_launch() * m.launches as f64);
    compare.most("step.max_global_bytes", limits.max_global_bytes, bytes);
    verdicts
}

/// What is found for a limit.
enum Found {
    Value(f64),
    /// There is nothing to measure, which is itself a failure.
    Nothing(&'static str),
    NotCounted,
}

impl From<u32> for Found {
    fn from(value: u32) -> Found {
        Found::Value(f64::from(value))
    }
}

/// Where verdicts go.
struct Comparison<'a> {
    kernel: &'a str,
    architecture: &'a str,
    verdicts: &'a mut Vec<Verdict>,
}

impl Comparison<'_> {
    fn mix(
        &mut self,
        name: &str,
        limits: &Mix,
        mix: Option<&Mix>,
        compare: fn(&mut Self, &str, Option<u32>, Found),
    ) {
        for (class, limit) in limits {
            let count = |mix: &Mix| mix.get(class).copied().unwrap_or(0).into();
            let found = mix.map_or(Found::Nothing("there is no loop"), count);
            compare(self, &format!("{name}.{}", class.name()), Some(*limit), found);
        }
    }

    fn most<T: Into<f64>>(&mut self, name: &str, limit: Option<T>, found: Found) {
        self.compare(name, limit.map(T::into), found, |found, limit| found <= limit);
    }

    fn least<T: Into<f64>>(&mut self, name: &str, limit: Option<T>, found: Found) {
        self.compare(name, limit.map(T::into), found, |found, limit| found >= limit);
    }

    fn compare(&mut self, name: &str, limit: Option<f64>, found: Found, keeps: fn(f64, f64) -> bool) {
        let Some(allowed) = limit else { return };
        let (found, status, reason) = match found {
            Found::Value(found) if keeps(found, allowed) => (Some(found), Status::Kept, ""),
            Found::Value(found) => (Some(found), Status::Exceeded, ""),
            Found::Nothing(reason) => (None, Status::Exceeded, reason),
            Found::NotCounted => (None, Status::NotChecked, "the emulator's counters are not given"),
        };
        self.verdicts.push(Verdict {
            kernel: self.kernel.to_string(),
            architecture: self.architecture.to_string(),
            limit: name.to_string(),
            allowed,
            found,
            status,
            reason,
        });
    }
}

fn whole(compare: &mut Comparison, audit: &KernelAudit, limits: &Limits) {
    let resources = &audit.resources;
    let spills = resources.spill_stores + resources.spill_loads;
    compare.most("max_registers", limits.max_registers, resources.registers.into());
    compare.most("max_spill_bytes", limits.max_spill_bytes, spills.into());
    compare.most("max_stack_bytes", limits.max_stack_bytes, resources.stack.into());
    compare.most("max_static_shared", limits.max_static_shared, resources.static_shared.into());
    for (name, limit, classes) in [
        ("max_local", limits.max_local, &[Class::Ldl, Class::Stl][..]),
        ("max_calls", limits.max_calls, &[Class::Call]),
        ("max_fchk", limits.max_fchk, &[Class::Fchk]),
        ("max_f64", limits.max_f64, &[Class::F64]),
    ] {
        compare.most(name, limit, audit.count(classes).into());
    }
    let unknown = Found::Nothing("the block's size is unknown: set `threads`");
    let blocks = audit.occupancy.map_or(unknown, |o| o.blocks.into());
    compare.least("min_blocks_per_sm", limits.min_blocks_per_sm, blocks);
    let unknown = Found::Nothing("the block's size is unknown: set `threads`");
    let share = audit.occupancy.map_or(unknown, |o| Found::Value(o.share));
    compare.least("min_occupancy", limits.min_occupancy, share);
    let none = Found::Nothing("there are no loads and stores of global memory");
    compare.least("min_wide_share", limits.min_wide_share, audit.wide_share.map_or(none, Found::Value));
    compare.least("min_loads_in_flight", limits.min_loads_in_flight, audit.loads_in_flight.into());
    compare.mix("max_instructions", &limits.max_instructions, Some(&audit.mix), Comparison::most);
    compare.mix("min_instructions", &limits.min_instructions, Some(&audit.mix), Comparison::least);
}

fn main_loop(compare: &mut Comparison, main_loop: Option<&MainLoop>, limits: &LoopLimits) {
    let value = |of: &dyn Fn(&MainLoop) -> Option<f64>| match main_loop {
        None => Found::Nothing("there is no loop"),
        Some(l) => {
            of(l).map_or(Found::Nothing("there are no tensor instructions of known shape"), Found::Value)
        }
    };
    let tensor = |l: &MainLoop| Some(f64::from(l.tensor())).filter(|count| *count > 0.0);
    let clocks = |l: &MainLoop| l.clocks.tensor.filter(|clocks| *clocks > 0.0);
    let length = |l: &MainLoop| f64::from(l.instructions);
    compare.most("main_loop.max_length", limits.max_length, value(&|l| Some(length(l))));
    let share = value(&|l| Some(f64::from(l.tensor()) / length(l)));
    compare.least("main_loop.min_tensor_share", limits.min_tensor_share, share);
    let other = value(&|l| tensor(l).map(|count| (length(l) - count) / count));
    compare.most("main_loop.max_other_per_tensor", limits.max_other_per_tensor, other);
    let issue = value(&|l| clocks(l).map(|tensor| l.clocks.issue / tensor));
    compare.most("main_loop.max_issue_per_tensor_clock", limits.max_issue_per_tensor_clock, issue);
    let shared = value(&|l| clocks(l).map(|tensor| l.clocks.shared / tensor));
    compare.most("main_loop.max_shared_per_tensor_clock", limits.max_shared_per_tensor_clock, shared);
    let mix = main_loop.map(|l| &l.mix);
    compare.mix("main_loop.max", &limits.max, mix, Comparison::most);
    compare.mix("main_loop.min", &limits.min, mix, Comparison::least);
}

fn counters(compare: &mut Comparison, measured: Option<&Measured>, limits: &CounterLimits) {
    let value = |of: &dyn Fn(&Measured) -> Option<f64>, none: &'static str| match measured {
        None => Found::NotCounted,
        Some(m) => of(m).map_or(Found::Nothing(none), Found::Value),
    };
    let conflicts = value(&Measured::wavefront_ratio, "the kernel does not use shared memory");
    compare.most("counters.max_wavefront_ratio", limits.max_wavefront_ratio, conflicts);
    let sectors = value(&Measured::sector_efficiency, "the kernel does not use global memory");
    compare.least("counters.min_sector_efficiency", limits.min_sector_efficiency, sectors);
    let wide = value(&Measured::wide_share, "the kernel does not use global memory");
    compare.least("counters.min_wide_share", limits.min_wide_share, wide);
    let minimal = limits.minimal_bytes.filter(|bytes| *bytes > 0);
    let ratio = |m: &Measured| minimal.map(|bytes| m.sector_bytes_per_launch() / bytes as f64);
    let bytes = value(&ratio, "`minimal_bytes` is not given");
    compare.most("counters.max_bytes_ratio", limits.max_bytes_ratio, bytes);
    let each = value(&Measured::bytes_per_instruction, "nothing was executed");
    compare.least("counters.min_bytes_per_instruction", limits.min_bytes_per_instruction, each);
}

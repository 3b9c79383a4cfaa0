//! Budgets: limits in a TOML file, for all kernels, for one kernel, for one on an architecture.
//!
//! ```toml
//! [default]                            # every kernel
//! max_spill_bytes = 0
//! max_calls = 0
//!
//! [default.architecture.sm_90]         # every kernel on sm_90
//! max_registers = 168
//!
//! [kernel.matmul]                      # one kernel; goes before [default]
//! threads = 128                        # facts of the launch, for the occupancy
//! dynamic_shared = 0
//! min_blocks_per_sm = 4
//! max_instructions = { F64 = 0 }       # by class
//! main_loop = { min_tensor_share = 0.24, max = { MOV = 40 } }
//! counters = { max_wavefront_ratio = 1.02 }
//!
//! [kernel.matmul.architecture.sm_90a]  # goes before all others
//! min_blocks_per_sm = 2
//! ```

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::architecture::Architecture;
use super::measured::Measured;
use super::sass::{Class, Mix};
use super::{Error, KernelAudit, MainLoop};

/// A budget file.
#[derive(Clone, Debug)]
pub struct Budgets {
    file: String,
    tables: Table,
    kernels: Vec<String>,
}

/// The file's shape. Only read to find mistakes: the tables themselves are what is merged.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    #[serde(default)]
    default: Limits,
    #[serde(default)]
    kernel: BTreeMap<String, Limits>,
}

/// The limits of a kernel. `max_` is the most that passes, `min_` the least.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Threads of a block: a fact, not a limit. Without it, those that the emulator counted; else the launch bounds.
    pub threads: Option<u32>,
    /// Dynamic shared memory of a block: a fact, not a limit.
    pub dynamic_shared: Option<u32>,
    /// Registers of a thread.
    pub max_registers: Option<u32>,
    /// Bytes of spill stores and loads of a thread.
    pub max_spill_bytes: Option<u32>,
    /// Bytes of local memory of a thread.
    pub max_stack_bytes: Option<u32>,
    /// Bytes of static shared memory of a block.
    pub max_static_shared: Option<u32>,
    /// Loads and stores of local memory.
    pub max_local: Option<u32>,
    /// Calls.
    pub max_calls: Option<u32>,
    /// Tests before the slow path of a division.
    pub max_fchk: Option<u32>,
    /// f64 instructions.
    pub max_f64: Option<u32>,
    /// Blocks on a multiprocessor.
    pub min_blocks_per_sm: Option<u32>,
    /// Warps on a multiprocessor, as a share of its room.
    pub min_occupancy: Option<f64>,
    /// Share of the global loads and stores that move 16 bytes or more.
    pub min_wide_share: Option<f64>,
    /// Instructions of a class.
    pub max_instructions: Mix,
    /// Instructions of a class.
    pub min_instructions: Mix,
    /// Limits of the main loop.
    pub main_loop: LoopLimits,
    /// Limits on what the emulator counts.
    pub counters: CounterLimits,
    /// Other limits on some architectures, by name (`sm_90a`).
    pub architecture: BTreeMap<String, Limits>,
}

/// Limits of the main loop.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoopLimits {
    /// Instructions of a pass.
    pub max_length: Option<u32>,
    /// Tensor instructions as a share of all.
    pub min_tensor_share: Option<f64>,
    /// Other instructions for each tensor instruction.
    pub max_other_per_tensor: Option<f64>,
    /// Issue clocks for each tensor clock.
    pub max_issue_per_tensor_clock: Option<f64>,
    /// Clocks of shared memory for each tensor clock.
    pub max_shared_per_tensor_clock: Option<f64>,
    /// Instructions of a class.
    pub max: Mix,
    /// Instructions of a class.
    pub min: Mix,
}

/// Limits on what the emulator counts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CounterLimits {
    /// Wavefronts of shared memory for each one that is needed: 1 is free of bank conflicts.
    pub max_wavefront_ratio: Option<f64>,
    /// Bytes asked of global memory as a share of the 32-byte sectors that they lie in.
    pub min_sector_efficiency: Option<f64>,
    /// Bytes that one launch must move: a fact, for `max_bytes_ratio`.
    pub minimal_bytes: Option<u64>,
    /// Bytes of the sectors moved for each of `minimal_bytes`.
    pub max_bytes_ratio: Option<f64>,
    /// Bytes of global memory for each instruction of a warp.
    pub min_bytes_per_instruction: Option<f64>,
}

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

impl Budgets {
    /// Reads a budget file; `file` is what messages call it. Keys that are none, and values out of place, are errors.
    pub fn parse(text: &str, file: &str) -> Result<Budgets, Error> {
        let error = |message: String| Error::Budget { file: file.to_string(), message };
        let shape: Shape = toml::from_str(text).map_err(|e| error(e.to_string()))?;
        for (name, limits) in shape.kernel.iter().chain([(&"default".to_string(), &shape.default)]) {
            for (architecture, inner) in &limits.architecture {
                Architecture::named(architecture).map_err(|e| error(e.to_string()))?;
                if !inner.architecture.is_empty() {
                    return Err(error(format!(
                        "{name}.architecture.{architecture} has architectures within it"
                    )));
                }
            }
        }
        let tables: Table = toml::from_str(text).map_err(|e| error(e.to_string()))?;
        Ok(Budgets { file: file.to_string(), tables, kernels: shape.kernel.into_keys().collect() })
    }

    /// Returns an error if a kernel of the file is not among those audited.
    pub fn check_names(&self, audits: &[KernelAudit]) -> Result<(), Error> {
        let unknown = self.kernels.iter().find(|name| audits.iter().all(|a| a.resources.kernel != **name));
        let Some(unknown) = unknown else { return Ok(()) };
        let mut known: Vec<&str> = audits.iter().map(|a| a.resources.kernel.as_str()).collect();
        known.sort_unstable();
        known.dedup();
        let message = format!("there is no kernel {unknown}; the kernels are {}", known.join(", "));
        Err(Error::Budget { file: self.file.clone(), message })
    }

    /// Returns the limits of a kernel on an architecture: the most special first, then what is more general.
    pub fn limits(&self, kernel: &str, architecture: &str) -> Result<Limits, Error> {
        let at = |path: &[&str]| {
            let mut table = Some(&self.tables);
            for key in path {
                table = table.and_then(|t| t.get(*key)).and_then(Value::as_table);
            }
            table
        };
        let mut merged = Table::new();
        for path in [
            &["default"][..],
            &["default", "architecture", architecture],
            &["kernel", kernel],
            &["kernel", kernel, "architecture", architecture],
        ] {
            overlay(&mut merged, at(path).unwrap_or(&Table::new()));
        }
        merged.remove("architecture");
        let limits = Value::Table(merged).try_into();
        limits.map_err(|e| Error::Budget { file: self.file.clone(), message: e.to_string() })
    }

    /// Sets the launches' facts in the audits, and compares each with its limits. `measured` has what the emulator counted,
    /// by kernel.
    pub fn check(
        &self,
        audits: &mut [KernelAudit],
        measured: &BTreeMap<String, Measured>,
    ) -> Result<Vec<Verdict>, Error> {
        self.check_names(audits)?;
        let mut verdicts = Vec::new();
        for audit in audits {
            let limits = self.limits(&audit.resources.kernel, &audit.resources.architecture)?;
            let counted = measured.get(&audit.resources.kernel);
            if let Some(threads) = limits.threads.or(counted.map(|m| m.threads)).or(audit.threads) {
                let dynamic_shared = limits.dynamic_shared.or(counted.map(|m| m.dynamic_shared));
                audit.launched_with(threads, dynamic_shared.unwrap_or(audit.dynamic_shared))?;
            }
            let mut checks = Checks { audit, verdicts: &mut verdicts };
            checks.whole(&limits);
            checks.main_loop(&limits.main_loop);
            checks.counters(&limits.counters, counted);
        }
        Ok(verdicts)
    }
}

/// Puts the keys of `upper` over those of `lower`, within tables too.
fn overlay(lower: &mut Table, upper: &Table) {
    for (key, value) in upper {
        match (lower.get_mut(key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            _ => {
                lower.insert(key.clone(), value.clone());
            }
        }
    }
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

struct Checks<'a> {
    audit: &'a KernelAudit,
    verdicts: &'a mut Vec<Verdict>,
}

impl Checks<'_> {
    fn whole(&mut self, limits: &Limits) {
        let resources = &self.audit.resources;
        let spills = resources.spill_stores + resources.spill_loads;
        self.most("max_registers", limits.max_registers, resources.registers.into());
        self.most("max_spill_bytes", limits.max_spill_bytes, spills.into());
        self.most("max_stack_bytes", limits.max_stack_bytes, resources.stack.into());
        self.most("max_static_shared", limits.max_static_shared, resources.static_shared.into());
        for (name, limit, classes) in [
            ("max_local", limits.max_local, &[Class::Ldl, Class::Stl][..]),
            ("max_calls", limits.max_calls, &[Class::Call]),
            ("max_fchk", limits.max_fchk, &[Class::Fchk]),
            ("max_f64", limits.max_f64, &[Class::F64]),
        ] {
            self.most(name, limit, self.audit.count(classes).into());
        }
        let unknown = Found::Nothing("the block's size is unknown: set `threads`");
        let blocks = self.audit.occupancy.map_or(unknown, |o| o.blocks.into());
        self.least("min_blocks_per_sm", limits.min_blocks_per_sm, blocks);
        let unknown = Found::Nothing("the block's size is unknown: set `threads`");
        let share = self.audit.occupancy.map_or(unknown, |o| Found::Value(o.share));
        self.least("min_occupancy", limits.min_occupancy, share);
        let none = Found::Nothing("there are no loads and stores of global memory");
        self.least("min_wide_share", limits.min_wide_share, self.audit.wide_share.map_or(none, Found::Value));
        self.mix("max_instructions", &limits.max_instructions, Some(&self.audit.mix), Checks::most);
        self.mix("min_instructions", &limits.min_instructions, Some(&self.audit.mix), Checks::least);
    }

    fn main_loop(&mut self, limits: &LoopLimits) {
        let main_loop = self.audit.main_loop.as_ref();
        let value = |of: &dyn Fn(&MainLoop) -> Option<f64>| match main_loop {
            None => Found::Nothing("there is no loop"),
            Some(l) => {
                of(l).map_or(Found::Nothing("there are no tensor instructions of known shape"), Found::Value)
            }
        };
        let tensor = |l: &MainLoop| Some(f64::from(l.tensor())).filter(|count| *count > 0.0);
        let clocks = |l: &MainLoop| l.clocks.tensor.filter(|clocks| *clocks > 0.0);
        let length = |l: &MainLoop| f64::from(l.instructions);
        self.most("main_loop.max_length", limits.max_length, value(&|l| Some(length(l))));
        let share = value(&|l| Some(f64::from(l.tensor()) / length(l)));
        self.least("main_loop.min_tensor_share", limits.min_tensor_share, share);
        let other = value(&|l| tensor(l).map(|count| (length(l) - count) / count));
        self.most("main_loop.max_other_per_tensor", limits.max_other_per_tensor, other);
        let issue = value(&|l| clocks(l).map(|tensor| l.clocks.issue / tensor));
        self.most("main_loop.max_issue_per_tensor_clock", limits.max_issue_per_tensor_clock, issue);
        let shared = value(&|l| clocks(l).map(|tensor| l.clocks.shared / tensor));
        self.most("main_loop.max_shared_per_tensor_clock", limits.max_shared_per_tensor_clock, shared);
        let mix = main_loop.map(|l| &l.mix);
        self.mix("main_loop.max", &limits.max, mix, Checks::most);
        self.mix("main_loop.min", &limits.min, mix, Checks::least);
    }

    fn counters(&mut self, limits: &CounterLimits, measured: Option<&Measured>) {
        let value = |of: &dyn Fn(&Measured) -> Option<f64>, none: &'static str| match measured {
            None => Found::NotCounted,
            Some(m) => of(m).map_or(Found::Nothing(none), Found::Value),
        };
        let conflicts = value(&Measured::wavefront_ratio, "the kernel does not use shared memory");
        self.most("counters.max_wavefront_ratio", limits.max_wavefront_ratio, conflicts);
        let sectors = value(&Measured::sector_efficiency, "the kernel does not use global memory");
        self.least("counters.min_sector_efficiency", limits.min_sector_efficiency, sectors);
        let minimal = limits.minimal_bytes.filter(|bytes| *bytes > 0);
        let ratio = |m: &Measured| minimal.map(|bytes| m.sector_bytes_per_launch() / bytes as f64);
        let bytes = value(&ratio, "`minimal_bytes` is not given");
        self.most("counters.max_bytes_ratio", limits.max_bytes_ratio, bytes);
        let each = value(&Measured::bytes_per_instruction, "nothing was executed");
        self.least("counters.min_bytes_per_instruction", limits.min_bytes_per_instruction, each);
    }

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
            kernel: self.audit.resources.kernel.clone(),
            architecture: self.audit.resources.architecture.clone(),
            limit: name.to_string(),
            allowed,
            found,
            status,
            reason,
        });
    }
}

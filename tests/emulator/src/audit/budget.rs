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
//!
//! [step]                               # all launches in the file of counters
//! max_launches = 200
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::{Table, Value};

use super::architecture::Architecture;
use super::check::{self, Verdict};
use super::measured::Measured;
use super::sass::Mix;
use super::{Error, KernelAudit};

/// A budget file.
#[derive(Clone, Debug)]
pub struct Budgets {
    file: String,
    tables: Table,
    kernels: Vec<String>,
    step: StepLimits,
}

/// The file's shape. Only read to find mistakes: the tables themselves are what is merged.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    #[serde(default)]
    default: Limits,
    #[serde(default)]
    kernel: BTreeMap<String, Limits>,
    #[serde(default)]
    step: StepLimits,
}

/// Limits of all launches in the file of counters together: of one training step, say.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepLimits {
    /// Launches.
    pub max_launches: Option<u32>,
    /// Bytes of the sectors of global memory.
    pub max_global_bytes: Option<f64>,
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
    /// Global loads that a thread has under way at once.
    pub min_loads_in_flight: Option<u32>,
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
    /// Share of the bytes of global memory that are asked for 16 or more at a time.
    pub min_wide_share: Option<f64>,
    /// Bytes that one launch must move: a fact, for `max_bytes_ratio`.
    pub minimal_bytes: Option<u64>,
    /// Bytes of the sectors moved for each of `minimal_bytes`.
    pub max_bytes_ratio: Option<f64>,
    /// Bytes of global memory for each instruction of a warp.
    pub min_bytes_per_instruction: Option<f64>,
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
        let kernels = shape.kernel.into_keys().collect();
        Ok(Budgets { file: file.to_string(), tables, kernels, step: shape.step })
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
            verdicts.extend(check::kernel(audit, &limits, counted));
        }
        verdicts.extend(check::step(&self.step, measured));
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

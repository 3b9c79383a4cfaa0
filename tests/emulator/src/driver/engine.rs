//! The device below the API: memory, modules, and the execution of kernels.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::codes::{Code, Failure, Result};
use super::journal;
use super::settings::{Findings, Settings};
use crate::alu::Approx;
use crate::exec::{self, Checks, Config, LaunchError, LoadError, LoadedModule, Program, Schedule, Tensor};
use crate::lower;
use crate::memory::{DeviceMemory, Error};

/// The emulated device.
#[derive(Debug)]
pub struct Engine {
    /// Its memory.
    pub memory: DeviceMemory,
    /// How kernels run.
    pub config: Config,
    findings: Findings,
    launches: AtomicU64,
}

/// A launch, ready to run.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel.
    pub program: Arc<Program>,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Bytes.
    pub dynamic_shared: u32,
    /// The parameter buffer.
    pub params: Vec<u8>,
}

impl Launch {
    fn for_device(&self) -> exec::Launch<'_> {
        exec::Launch {
            kernel: &self.program,
            grid: self.grid,
            block: self.block,
            cluster: self.cluster,
            dynamic_shared: self.dynamic_shared,
            params: &self.params,
        }
    }

    /// Lets the device check what the driver has accepted: alignment of dynamic shared memory behind the static.
    pub fn check(&self, engine: &Engine) -> Result<()> {
        self.for_device()
            .check(&engine.config)
            .map_err(|error| Code::INVALID_VALUE.because(error.to_string()))
    }
}

impl Engine {
    /// Makes a device after the settings.
    pub fn new(settings: &Settings) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let checked = |name: &str| settings.checks.iter().any(|check| check == name);
        let (extra_bits, group) = if settings.device.capability.0 >= 9 { (2, 16) } else { (1, 8) };
        let config = Config {
            seed: settings.seed,
            threads: if settings.threads == 0 { cores } else { settings.threads },
            schedule: if settings.ordered { Schedule::Ordered } else { Schedule::Seeded },
            checks: Checks { races: checked("races"), uninitialised: checked("uninitialised") },
            approx: if settings.perturbed { Approx::Perturbed } else { Approx::Rounded },
            tensor: if settings.truncating {
                Tensor::Truncated { extra_bits, group }
            } else {
                Tensor::Ordered
            },
            capability: settings.device.capability,
            footprints: !settings.counters.is_empty(),
            ends: settings.ends,
            ..Config::default()
        };
        Self {
            memory: DeviceMemory::new(settings.memory),
            config,
            findings: settings.findings,
            launches: AtomicU64::new(0),
        }
    }

    /// Translates and loads a module from PTX; the text of an error is what the JIT log gets.
    pub fn load(&self, text: &str) -> std::result::Result<LoadedModule, (Code, String)> {
        let module = lower::module(text).map_err(|error| (Code::INVALID_PTX, error.to_string()))?;
        exec::load(module, &self.memory, &self.config).map_err(|error| {
            let code = match error {
                LoadError::Memory { error: Error::OutOfMemory { .. }, .. } => Code::OUT_OF_MEMORY,
                _ => Code::INVALID_PTX,
            };
            (code, error.to_string())
        })
    }

    /// Runs a kernel, tells its findings and writes its counters.
    pub fn run(&self, launch: &Launch) -> Result<()> {
        let number = self.launches.fetch_add(1, Relaxed);
        // Another order on each launch, the same order in each run of the program.
        let seed = self.config.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let config = Config { seed, ..self.config.clone() };
        let outcome =
            exec::run(&launch.for_device(), &self.memory, &config).map_err(|error| match error {
                LaunchError::NoHostMemory => Code::LAUNCH_OUT_OF_RESOURCES.because(error.to_string()),
                error => Code::LAUNCH_FAILED.because(error.to_string()),
            })?;
        if journal::wants_counters() {
            journal::counters(&serde_json::json!({
                "launch": number,
                "cluster": launch.cluster,
                "static_shared": launch.program.kernel.shared_bytes,
                "dynamic_shared": launch.dynamic_shared,
                "findings": outcome.reports.len(),
                "counters": outcome.counters,
            }));
        }
        outcome.reports.iter().for_each(journal::finding);
        let fault = outcome.failure().and_then(|report| report.kind.cuda_error());
        let silent = self.findings == Findings::Fail && !outcome.reports.is_empty();
        match fault {
            Some(code) => Err(Code(code).into()),
            None if silent => Err(Code::LAUNCH_FAILED.into()),
            None => Ok(()),
        }
    }
}

/// Translates an error of the memory where an API call meets it.
pub fn refused(error: Error) -> Failure {
    let code = match error {
        Error::OutOfMemory { .. } => Code::OUT_OF_MEMORY,
        _ => Code::INVALID_VALUE,
    };
    code.because(error.to_string())
}

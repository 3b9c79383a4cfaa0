//! Where tensors live and operations run, chosen at run time.

pub mod cpu;
pub mod simd;
pub mod survey;
mod team;

pub use cpu::{Cpu, CpuOptions};
pub use simd::{Arch, Isa};

use crate::error::{Error, Result};

/// A device. Operations match on it; nothing moves to another one silently.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Device {
    /// The processor, with SIMD kernels over a thread pool.
    Cpu(Cpu),
}

impl Device {
    /// Opens a device by the name a user types: `cpu` or `auto`.
    ///
    /// # Errors
    /// `Error::Device` for `cuda[:n]`, naming what was looked for; `Error::Usage` for any other word.
    pub fn open(name: &str, options: CpuOptions) -> Result<Self> {
        match name {
            "cpu" | "auto" => Ok(Self::Cpu(Cpu::new(options)?)),
            _ if name == "cuda" || name.starts_with("cuda:") => Err(Error::Device(format!(
                "device `{name}` was asked for, but this build has no CUDA back end yet; use `--device cpu`"
            ))),
            _ => Err(Error::Usage(format!("unknown device `{name}`: expected `cpu`, `cuda[:n]` or `auto`"))),
        }
    }

    /// Returns the CPU with all its cores.
    pub fn cpu() -> Result<Self> {
        Ok(Self::Cpu(Cpu::new(CpuOptions::default())?))
    }

    /// Returns the CPU with `threads` worker threads.
    pub fn cpu_with_threads(threads: usize) -> Result<Self> {
        Ok(Self::Cpu(Cpu::new(CpuOptions { threads, ..Default::default() })?))
    }

    /// Runs `f` where the device's work is cheapest to start: a training step calls this once around itself.
    pub fn scope<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match self {
            Self::Cpu(cpu) => cpu.install(f),
        }
    }
}

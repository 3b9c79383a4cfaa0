//! Where tensors live and operations run, chosen at run time.

pub(crate) mod combine;
pub mod cpu;
pub mod cuda;
pub(crate) mod normal;
pub mod simd;
pub mod survey;
mod team;

use std::sync::Arc;

pub use cpu::{Cpu, CpuOptions};
pub use cuda::{CudaOptions, Queue};
pub use simd::{Arch, Isa};

use crate::error::{Error, Result};

/// A device. Operations match on it; nothing moves to another one silently.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Device {
    /// The processor, with SIMD kernels over a thread pool.
    Cpu(Cpu),
    /// An NVIDIA card, with kernels of `kernels/*.cu`.
    Cuda(Arc<Queue>),
}

impl Device {
    /// Opens a device by the name a user types: `cpu`, `cuda[:n]`, or `auto`, which is `cuda` where the system has a driver with a
    /// device, else `cpu`. Libraries and the kernel cache are those of [`CudaOptions::from_env`].
    ///
    /// # Errors
    /// `Error::Device` for a device that is not there or cannot be used, naming what was looked for; `Error::Usage` for any other
    /// word.
    pub fn open(name: &str, options: CpuOptions) -> Result<Self> {
        Self::open_either(name, options, CudaOptions::from_env())
    }

    /// Does the same with options for either device.
    ///
    /// # Errors
    /// Those of [`Device::open`]; `Error::Usage` for tf32 on a CPU, which has no such matrix products.
    pub fn open_either(name: &str, options: CpuOptions, cuda: CudaOptions) -> Result<Self> {
        match name {
            "auto" if Queue::is_present(&cuda) => Self::cuda(&cuda),
            "cpu" | "auto" if cuda.tf32 => Err(Error::Usage(
                "tf32 = true: only CUDA devices multiply in tf32; leave it out on a CPU".into(),
            )),
            "cpu" | "auto" => Ok(Self::Cpu(Cpu::new(options)?)),
            "cuda" => Self::cuda(&cuda),
            _ => match name.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(ordinal)) => Self::cuda(&CudaOptions { ordinal, ..cuda }),
                _ => Err(Error::Usage(format!(
                    "unknown device `{name}`: expected `cpu`, `cuda[:n]` or `auto`"
                ))),
            },
        }
    }

    /// Returns the CPU with all its cores.
    pub fn cpu() -> Result<Self> {
        Ok(Self::Cpu(Cpu::new(CpuOptions::default())?))
    }

    /// Opens a CUDA device.
    ///
    /// # Errors
    /// What [`Queue::open`] says.
    pub fn cuda(options: &CudaOptions) -> Result<Self> {
        Ok(Self::Cuda(Arc::new(Queue::open(options)?)))
    }

    /// Returns the CPU with `threads` worker threads.
    pub fn cpu_with_threads(threads: usize) -> Result<Self> {
        Ok(Self::Cpu(Cpu::new(CpuOptions { threads, ..Default::default() })?))
    }

    /// Returns what a person wants to know of it: `cpu, 8 threads, avx512` or `cuda, NVIDIA H100, sm_90`.
    pub fn describe(&self) -> String {
        match self {
            Self::Cpu(cpu) => format!("cpu, {} threads, {}", cpu.threads(), cpu.isa().name()),
            Self::Cuda(queue) => {
                let (major, minor) = queue.capability();
                format!("cuda, {}, sm_{major}{minor}", queue.name())
            }
        }
    }

    /// Runs `f` where the device's work is cheapest to start: a training step calls this once around itself.
    pub fn scope<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match self {
            Self::Cpu(cpu) => cpu.install(f),
            Self::Cuda(_) => f(),
        }
    }
}

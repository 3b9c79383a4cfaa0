//! The CUDA device: driver, compiler, memory, launches. It knows no operation.
//!
//! ```text
//! library  finds and opens the driver and NVRTC
//! nvrtc    compiles a kernel file, with a cache on disk
//! memory   the pool of device memory: addresses repeat from step to step
//! argument what launchers take
//! queue    one context with its stream: modules, launches, copies
//! staging  copies of a step's data that the host does not wait for
//! graph    a captured step
//! event    moments of the stream, for timing
//! ```

mod argument;
mod event;
mod graph;
mod library;
mod memory;
pub mod nvrtc;
pub mod queue;
mod staging;

pub use argument::{Argument, Read, Write};
pub use event::Event;
pub(crate) use graph::Graph;
pub(crate) use memory::DeviceBuf;
pub use nvrtc::{Nvrtc, Source};
pub use queue::{Grid, Kernel, Queue};

use std::path::PathBuf;

/// Says how to open a CUDA device.
#[derive(Clone, Debug, Default)]
pub struct CudaOptions {
    /// Which of the driver's devices.
    pub ordinal: usize,
    /// The driver library; `None` takes the system's.
    pub driver: Option<PathBuf>,
    /// The run-time compiler; `None` takes the first that is found.
    pub compiler: Option<PathBuf>,
    /// Folder of compiled kernels; `None` compiles every time.
    pub cache: Option<PathBuf>,
    /// Surrounds each buffer with checked sentinels and fills fresh memory with NaN. For tests.
    pub guard: bool,
    /// Multiplies matrices of f32 on tensor cores, rounded to tf32: 10 bits of mantissa, sums in f32.
    pub tf32: bool,
}

impl CudaOptions {
    /// Takes what the environment says: `FLOWPRIOR_CUDA_DRIVER` and `FLOWPRIOR_NVRTC` are files, to open instead of those that are
    /// found; `FLOWPRIOR_KERNEL_CACHE` is a folder, instead of `flowprior/kernels` in the user's cache. Paths of a machine
    /// are no part of a run's configuration, which moves between machines.
    pub fn from_env() -> Self {
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let user = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
        Self {
            driver: path("FLOWPRIOR_CUDA_DRIVER"),
            compiler: path("FLOWPRIOR_NVRTC"),
            cache: path("FLOWPRIOR_KERNEL_CACHE")
                .or_else(|| user.map(|cache| cache.join("flowprior/kernels"))),
            ..Self::default()
        }
    }
}

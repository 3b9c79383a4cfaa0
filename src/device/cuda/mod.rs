//! The CUDA device: driver, compiler, memory, launches. It knows no operation.
//!
//! ```text
//! library  finds and opens the driver and NVRTC
//! nvrtc    compiles a kernel file, with a cache on disk
//! memory   the pool of device memory: addresses repeat from step to step
//! queue    one context with its stream: modules, launches, copies
//! ```

mod library;
mod memory;
pub mod nvrtc;
pub mod queue;

pub(crate) use memory::DeviceBuf;
pub use nvrtc::{Nvrtc, Source};
pub use queue::{Argument, Grid, Kernel, Queue, Read, Write};

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

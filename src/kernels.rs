//! The CUDA kernels: their sources and a typed launcher of each, which `build.rs` makes from `kernels/*.cu`.

use crate::device::cuda::{Argument, Grid, Kernel, Queue, Read, Source, Write};
use crate::error::Result;
use crate::float::{DType, FloatX};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Returns the name and the text of each kernel file, headers inlined: what is compiled for a device.
pub fn sources() -> impl Iterator<Item = (&'static str, &'static str)> {
    SOURCES.iter().map(|source| (source.name, source.text))
}

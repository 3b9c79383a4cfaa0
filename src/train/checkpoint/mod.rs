//! Checkpoints that survive a kill, a full disk and a flipped bit.
//!
//! A checkpoint is a folder `checkpoints/{step:07}/` of safetensors files and one `checkpoint.json`, the manifest, with
//! everything that continues the run to the same bits. Protocol of [`save`]:
//!
//! 1. write all files into `.tmp-{step}`, the manifest last, each followed by fsync; fsync the folder;
//! 2. rename it to `{step:07}` (atomic), fsync `checkpoints/`;
//! 3. remove the oldest ones beyond `keep`, each renamed to `.tmp-…` first, so that half of one is never taken for one.
//!
//! So a folder named by its step is complete or, after damage from outside, detected: [`load`] checks the manifest's own
//! CRC-32C, then length and CRC-32C of each file, before it hands out a byte. [`latest`] takes the newest one that passes
//! and names those that do not; a checkpoint asked for by its path must pass itself.
//!
//! Numbers are little-endian, as safetensors has them; so is every machine that we run on.

mod disk;
mod load;
mod save;

pub use disk::Disk;
pub use load::{Latest, Loaded, find, latest, list, load};
pub use save::{save, save_on};

use std::borrow::Cow;
use std::path::{Path, PathBuf};

pub use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::Stage;
use super::skips::Skips;
use crate::float::{DType, FloatX};
use crate::optim::scaler::Scaler;

/// The version of the format that this program writes, and the only one it reads.
pub const FORMAT: u32 = 1;
/// The time convention of every network here: noise at t = 0, data at t = 1.
pub const TIME_CONVENTION: &str = "data_at_one";
/// The name of the manifest in a checkpoint.
pub const MANIFEST: &str = "checkpoint.json";
/// What names of unfinished and dropped folders begin with; [`save`] removes them.
const TEMPORARY: &str = ".tmp-";

/// Everything but tensors that a run needs to continue exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the format.
    pub format: u32,
    /// The stage.
    pub stage: Stage,
    /// Finished steps.
    pub step: u64,
    /// Sizes and variants of the networks, as their builders describe them.
    pub architecture: Value,
    /// Where data are on the time axis: `data_at_one`.
    pub time_convention: String,
    /// The key of all random numbers; with the step, all their state.
    pub seed: u64,
    /// Samples drawn from the data so far.
    pub position: u64,
    /// The loss scale, with dtype f16.
    pub scaler: Option<Scaler>,
    /// Steps skipped so far.
    pub skipped: Skips,
    /// What the data were: name, rows, checksum, statistics, projection; whatever the stage needs to know again.
    pub data: Value,
    /// The resolved configuration, as TOML.
    pub config: String,
    /// The files with their lengths and checksums; filled in by [`save`].
    pub files: Vec<FileEntry>,
}

impl Manifest {
    /// Describes a run after `step` steps; the fields that not every run has are empty, to be set.
    pub fn new(stage: Stage, step: u64, seed: u64, architecture: Value, config: String) -> Self {
        Self {
            format: FORMAT,
            stage,
            step,
            architecture,
            time_convention: TIME_CONVENTION.to_owned(),
            seed,
            position: 0,
            scaler: None,
            skipped: Skips::default(),
            data: Value::Null,
            config,
            files: Vec::new(),
        }
    }
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name in the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// The CRC-32C of its content.
    pub crc32c: u32,
}

/// One tensor to save.
#[derive(Clone, Debug)]
pub struct TensorRef<'a> {
    name: Cow<'a, str>,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> TensorRef<'a> {
    /// Borrows the elements of a tensor.
    pub fn new<X: FloatX>(name: impl Into<Cow<'a, str>>, shape: &[usize], elements: &'a [X]) -> Self {
        Self::from_bytes(name, dtype_of::<X>(), shape, bytemuck::cast_slice(elements))
    }

    /// Takes little-endian bytes of any type that safetensors knows.
    pub fn from_bytes(
        name: impl Into<Cow<'a, str>>,
        dtype: Dtype,
        shape: &[usize],
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Self {
        Self { name: name.into(), dtype, shape: shape.to_vec(), bytes: bytes.into() }
    }
}

/// The tensors of one file.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// The name of the file without its ending: `model`, `ema-0.999`, `moments`.
    pub file: &'a str,
    /// Its tensors, in any order.
    pub tensors: Vec<TensorRef<'a>>,
}

/// Returns safetensors' name of a storage type.
pub fn dtype_of<X: FloatX>() -> Dtype {
    match X::DTYPE {
        DType::F32 => Dtype::F32,
        DType::Bf16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
    }
}

/// Returns the folder of the checkpoint of `step`.
pub fn folder(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(format!("{step:07}"))
}

/// Returns the name of a group's file.
fn file_name(group: &str) -> String {
    format!("{group}.safetensors")
}

/// A tensor of a loaded checkpoint: `dtype()`, `shape()` and `data()`, its bytes.
pub type LoadedTensor<'a> = TensorView<'a>;

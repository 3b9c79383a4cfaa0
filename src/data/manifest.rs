//! `dataset.json`: what a data set folder holds, and what each file must look like.
//!
//! ```json
//! {"format": "flowprior-dataset", "version": 1, "dtype": "bf16", "width": 16, "shape": null, "rows": 30522,
//!  "shards": [{"file": "part-00000.safetensors", "rows": 30522, "bytes": 976792, "crc32c": "89abcdef"}],
//!  "stats": {…}, "labels": {"classes": 10, "names": []}, "latents": {"moments": false, "scale": 1.0},
//!  "projection": {"kind": "random", "seed": 0, "input_width": 384, "scale": 17.978, "shift": 0.0,
//!                 "file": "projection.safetensors", "bytes": 26256, "crc32c": "01234567"}}
//! ```

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::map::Map;
use crate::data::projection::Kind;
use crate::data::stats::Stats;
use crate::error::{Error, Result};
use crate::float::DType;

/// The name of the manifest in a data set folder.
pub const FILE: &str = "dataset.json";
const FORMAT: &str = "flowprior-dataset";
const VERSION: u32 = 1;
/// The longest manifest read: a hundred thousand shards of width 4096 take about 13 MB.
const MAX_BYTES: usize = 64 << 20;

/// The content of `dataset.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    version: u32,
    /// The storage type: `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// Values that are stored of a row: with moments, twice those of a sample.
    pub width: usize,
    /// Channels, height and width of a sample that is an image or a feature map.
    #[serde(default)]
    pub shape: Option<[usize; 3]>,
    /// Rows in all shards.
    pub rows: u64,
    /// The shards, in order.
    pub shards: Vec<ShardInfo>,
    /// Statistics of the stored values.
    pub stats: Stats,
    /// Classes, if rows have labels.
    #[serde(default)]
    pub labels: Option<Classes>,
    /// How the rows were made from wider features.
    #[serde(default)]
    pub projection: Option<ProjectionInfo>,
    /// How an encoder's latents become samples.
    #[serde(default)]
    pub latents: Option<Latents>,
}

/// Latents of an encoder, stored in its units: a sample is `scale · x`, or `scale · (mean + exp(½·logvar)·ε)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latents {
    /// A row is a mean and the logarithms of the variances around it, (mean, logvar).
    #[serde(default)]
    pub moments: bool,
    /// What samples are multiplied by, so that they have about unit variance: 0.18215 for the first Stable Diffusion.
    pub scale: f32,
}

impl Latents {
    /// The largest log-variance that is accepted: where diffusers clamps, a deviation of 22,026.
    pub const MOST: f32 = 20.0;

    /// Returns the values of a sample whose row has `width`.
    pub fn sample_width(latents: Option<Self>, width: usize) -> usize {
        if latents.is_some_and(|latents| latents.moments) { width / 2 } else { width }
    }

    /// Finds the first log-variance of `rows` (.., width) that is NaN or too large.
    pub fn bad_log_variance(&self, rows: &[f32], width: usize) -> Option<(usize, usize)> {
        let half = width / 2;
        let rows = rows.chunks_exact(width.max(1)).filter(|_| self.moments).enumerate();
        let bad = |(i, row): (usize, &[f32])| {
            row[half..].iter().position(|x| x.is_nan() || *x > Self::MOST).map(|at| (i, at))
        };
        rows.map(bad).find_map(|found| found)
    }
}

/// One shard: a safetensors file with `features` (rows, width) and, with labels, `labels` (rows).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardInfo {
    /// The file's name in the folder.
    pub file: String,
    /// Its rows.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// CRC-32C of the whole file, eight hexadecimal digits.
    pub crc32c: String,
}

/// The classes that labels name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classes {
    /// Labels are below this number.
    pub classes: u32,
    /// One name per class, or none at all.
    #[serde(default)]
    pub names: Vec<String>,
}

/// The projection's parameters; its matrix is in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectionInfo {
    /// What sort of map it is.
    pub kind: Kind,
    /// The seed of a random one.
    pub seed: Option<u64>,
    /// Values in a row before the projection.
    pub input_width: usize,
    /// What inputs are multiplied by, after the shift.
    pub scale: f32,
    /// The mean of what is subtracted from inputs; the file has it per dimension.
    pub shift: f64,
    /// The file with `shift` (input width) and, unless the kind is `identity`, `weight` (width, input width).
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// CRC-32C of the whole file, eight hexadecimal digits.
    pub crc32c: String,
}

impl Manifest {
    /// Starts a manifest without shards.
    pub fn new(dtype: DType, width: usize, stats: Stats) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            dtype: dtype.name().to_owned(),
            width,
            shape: None,
            rows: 0,
            shards: Vec::new(),
            stats,
            labels: None,
            projection: None,
            latents: None,
        }
    }

    /// Reads and checks the manifest of `folder`; the shards themselves are not opened.
    ///
    /// # Errors
    /// No manifest, another format or version, fields that contradict each other, file names that leave the folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let map = Map::open(&path)?;
        let length = map.bytes().len();
        if length > MAX_BYTES {
            return Err(Error::data(&path, "length", format!("at most {MAX_BYTES} bytes"), length));
        }
        let manifest: Self = serde_json::from_slice(map.bytes()).map_err(|e| {
            let field = format!("line {}, column {}", e.line(), e.column());
            Error::data(&path, field, "a data set manifest", e)
        })?;
        manifest.check(&path)?;
        Ok(manifest)
    }

    /// Returns the storage type.
    ///
    /// # Errors
    /// A name that is none, which `read` has ruled out.
    pub fn dtype(&self, path: &Path) -> Result<DType> {
        self.dtype.parse().map_err(|_| Error::data(path, "dtype", "f32, bf16 or f16", &self.dtype))
    }

    fn check(&self, path: &Path) -> Result<()> {
        let bad =
            |field: &str, expected: String, found: String| Err(Error::data(path, field, expected, found));
        if self.format != FORMAT {
            return bad("format", FORMAT.into(), self.format.clone());
        }
        if self.version != VERSION {
            return bad("version", VERSION.to_string(), self.version.to_string());
        }
        self.dtype(path)?;
        if self.width == 0 || self.rows == 0 {
            let found = format!("{} rows of {} values", self.rows, self.width);
            return bad("rows", "at least one row of one value".into(), found);
        }
        if let Some(Latents { moments, scale }) = self.latents {
            if !scale.is_finite() || scale == 0.0 {
                return bad("latents.scale", "a finite number other than 0".into(), scale.to_string());
            }
            if moments && !self.width.is_multiple_of(2) {
                let expected = "an even number: as many log-variances as means";
                return bad("width", expected.into(), self.width.to_string());
            }
        }
        if let Some(shape) = self.shape {
            let product = shape.iter().try_fold(1usize, |p, n| p.checked_mul(*n));
            let width = Latents::sample_width(self.latents, self.width);
            if product != Some(width) {
                return bad("shape", format!("a product of {width}"), format!("{shape:?}"));
            }
        }
        for (field, n) in
            [("mean_per_dim", self.stats.mean_per_dim.len()), ("std_per_dim", self.stats.std_per_dim.len())]
        {
            if n != self.width {
                return bad(&format!("stats.{field}"), format!("{} values", self.width), n.to_string());
            }
        }
        if let Some(labels) = &self.labels
            && (labels.classes == 0 || ![0, labels.classes as usize].contains(&labels.names.len()))
        {
            let found = format!("{} classes, {} names", labels.classes, labels.names.len());
            return bad("labels", "at least one class, and a name for all or none".into(), found);
        }
        self.check_shards(path)
    }

    fn check_shards(&self, path: &Path) -> Result<()> {
        let mut seen = HashSet::new();
        let mut rows = 0u64;
        for (i, shard) in self.shards.iter().enumerate() {
            let field = format!("shards[{i}].file");
            check_name(path, &field, &shard.file)?;
            if !seen.insert(shard.file.as_str()) {
                let found = format!("`{}` a second time", shard.file);
                return Err(Error::data(path, field, "a file that is listed once", found));
            }
            if shard.rows == 0 {
                return Err(Error::data(path, format!("shards[{i}].rows"), "at least 1", 0));
            }
            rows = rows.saturating_add(shard.rows);
        }
        if rows != self.rows {
            let expected = format!("{}, the rows of all shards", rows);
            return Err(Error::data(path, "rows", expected, self.rows));
        }
        match &self.projection {
            Some(projection) => check_name(path, "projection.file", &projection.file),
            None => Ok(()),
        }
    }
}

/// Checks that a name stays in its folder.
fn check_name(path: &Path, field: &str, name: &str) -> Result<()> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(std::path::Component::Normal(part)), None) if part == name => Ok(()),
        _ => {
            Err(Error::data(path, field, "the plain name of a file in the same folder", format!("`{name}`")))
        }
    }
}

/// Returns the CRC-32C of `bytes` as the manifest writes it.
pub fn checksum(bytes: &[u8]) -> String {
    format!("{:08x}", crc32c::crc32c(bytes))
}

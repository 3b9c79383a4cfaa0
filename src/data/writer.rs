//! Writes a data set: rows stream in, shards come out, the folder appears complete or not at all.
//!
//! Everything goes to a hidden folder beside the target, each file is synced, and one rename makes it the data set. A
//! failure leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};

use crate::data::dataset::Dataset;
use crate::data::manifest::{Classes, FILE, Latents, Manifest, ShardInfo, checksum};
use crate::data::projection::Projection;
use crate::data::stats::Moments;
use crate::error::{Error, Result};
use crate::float::{DType, FloatX};

/// The size of a shard's features unless told otherwise: large to read, small to hold in memory while writing.
pub const SHARD_BYTES: usize = 64 << 20;

/// Says what a data set is to look like.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Values that are stored of a row: with moments, twice those of a sample.
    pub width: usize,
    /// Channels, height, width, where a sample is an image; their product is its width.
    pub shape: Option<[usize; 3]>,
    /// The storage type.
    pub dtype: DType,
    /// Rows in a shard, the last one excepted; `None` takes about 64 MiB of them.
    pub shard_rows: Option<usize>,
    /// What is known of labels.
    pub labels: Labels,
    /// Whether NaN and ∞ are refused or counted.
    pub non_finite: NonFinite,
    /// How the rows were made.
    pub projection: Option<Projection>,
    /// How stored latents become samples.
    pub latents: Option<Latents>,
}

impl Spec {
    /// Describes f32 rows without labels.
    pub fn new(width: usize) -> Self {
        let (dtype, labels, non_finite) = (DType::F32, Labels::None, NonFinite::Refuse);
        let (shape, shard_rows, projection, latents) = (None, None, None, None);
        Self { width, shape, dtype, shard_rows, labels, non_finite, projection, latents }
    }
}

/// What is known of the labels before the first one is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Labels {
    /// There are none.
    None,
    /// As many classes as the largest label, plus one.
    Count,
    /// These classes.
    Classes(Classes),
}

/// What happens to values that are NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonFinite {
    /// They are an error.
    Refuse,
    /// They are stored and counted.
    Allow,
}

/// A data set that is being written.
pub struct DatasetWriter {
    out: PathBuf,
    folder: PathBuf,
    spec: Spec,
    shard_rows: usize,
    features: Vec<u8>,
    labels: Vec<i32>,
    rounded: Vec<f32>,
    pending: usize,
    moments: Moments,
    largest_label: u32,
    rows: u64,
    shards: Vec<ShardInfo>,
}

impl DatasetWriter {
    /// Starts a data set that will appear at `out`.
    ///
    /// # Errors
    /// A width or shard size of 0, an `out` that exists, a folder that cannot be made.
    pub fn create(out: impl AsRef<Path>, spec: Spec) -> Result<Self> {
        let out = out.as_ref();
        let moments = spec.latents.is_some_and(|latents| latents.moments);
        let sample = Latents::sample_width(spec.latents, spec.width);
        let odd = moments && !spec.width.is_multiple_of(2);
        if sample == 0 || odd || spec.shape.is_some_and(|s| s.iter().product::<usize>() != sample) {
            let expected = match moments {
                false => "at least 1, the product of the shape",
                true => "means and as many log-variances, each the product of the shape",
            };
            let found = format!("width {}, shape {:?}", spec.width, spec.shape);
            return Err(Error::argument("data set", "width", expected, found));
        }
        let row_bytes = spec.width * spec.dtype.bytes();
        let shard_rows = spec.shard_rows.unwrap_or((SHARD_BYTES / row_bytes).max(1));
        if shard_rows == 0 {
            return Err(Error::argument("data set", "shard rows", "at least 1", 0));
        }
        if fs::symlink_metadata(out).is_ok() {
            return Err(Error::data(
                out,
                "path",
                "a new folder",
                "one that exists (remove it or choose another)",
            ));
        }
        let name = out.file_name().ok_or_else(|| Error::data(out, "path", "a folder name", "none"))?;
        let hidden = format!(".{}.partial-{}", name.to_string_lossy(), std::process::id());
        let folder = out.with_file_name(hidden);
        fs::create_dir_all(&folder).map_err(Error::io(&folder, "create the folder"))?;
        Ok(Self {
            out: out.to_owned(),
            folder,
            moments: Moments::new(spec.width),
            spec,
            shard_rows,
            features: Vec::new(),
            labels: Vec::new(),
            rounded: Vec::new(),
            pending: 0,
            largest_label: 0,
            rows: 0,
            shards: Vec::new(),
        })
    }

    /// Returns the rows written so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds `rows` (N, width) and, where the data set has labels, `labels` (N).
    ///
    /// # Errors
    /// Buffers that do not fit, values that are not finite in the storage type, labels out of range, a full disk.
    pub fn push(&mut self, rows: &[f32], labels: Option<&[u32]>) -> Result<()> {
        let width = self.spec.width;
        let count = rows.len() / width;
        if !rows.len().is_multiple_of(width) || labels.is_some_and(|l| l.len() != count) {
            let expected = format!("whole rows of {width} values and a label for each");
            return Err(Error::argument("data set", "rows", expected, format!("{} values", rows.len())));
        }
        if labels.is_some() == matches!(self.spec.labels, Labels::None) {
            let found = if labels.is_some() { "some" } else { "none" };
            return Err(Error::argument("data set", "labels", "what the data set was started with", found));
        }
        labels.unwrap_or(&[]).iter().enumerate().try_for_each(|(i, label)| self.check_label(i, *label))?;
        for (i, row) in rows.chunks_exact(width).enumerate() {
            self.push_row(row)?;
            if let Some(labels) = labels {
                self.labels.push(labels[i] as i32);
            }
            self.pending += 1;
            self.rows += 1;
            if self.pending == self.shard_rows {
                self.write_shard()?;
            }
        }
        Ok(())
    }

    fn check_label(&mut self, index: usize, label: u32) -> Result<()> {
        let most = match &self.spec.labels {
            Labels::Classes(c) => c.classes,
            _ => i32::MAX as u32,
        };
        if label >= most {
            let field = format!("label of row {}", self.rows + index as u64);
            return Err(Error::data(&self.out, field, format!("a label below {most}"), label));
        }
        self.largest_label = self.largest_label.max(label);
        Ok(())
    }

    /// Rounds one row to the storage type and adds its bytes to the shard.
    fn push_row(&mut self, row: &[f32]) -> Result<()> {
        self.rounded.clear();
        match self.spec.dtype {
            DType::F32 => store::<f32, 4>(row, &mut self.features, &mut self.rounded, f32::to_le_bytes),
            DType::Bf16 => store::<bf16, 2>(row, &mut self.features, &mut self.rounded, bf16::to_le_bytes),
            DType::F16 => store::<f16, 2>(row, &mut self.features, &mut self.rounded, f16::to_le_bytes),
        }
        if self.spec.non_finite == NonFinite::Refuse
            && let Some(column) = self.rounded.iter().position(|x| !x.is_finite())
        {
            let field = format!("row {}, column {column}", self.rows);
            let expected = format!("a number that is finite in {}", self.spec.dtype);
            return Err(Error::data(&self.out, field, expected, row[column]));
        }
        let bad = self.spec.latents.and_then(|latents| latents.bad_log_variance(&self.rounded, row.len()));
        if let Some((_, at)) = bad {
            let field = format!("row {}, log-variance {at}", self.rows);
            let found = row[row.len() / 2 + at];
            return Err(Error::data(&self.out, field, format!("at most {}", Latents::MOST), found));
        }
        self.moments.push(&self.rounded);
        Ok(())
    }

    fn write_shard(&mut self) -> Result<()> {
        let file = format!("part-{:05}.safetensors", self.shards.len());
        let path = self.folder.join(&file);
        let refused = |e| Error::data(&path, "tensors", "features and labels", e);
        let dtype = match self.spec.dtype {
            DType::F32 => Dtype::F32,
            DType::Bf16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
        };
        let features = TensorView::new(dtype, vec![self.pending, self.spec.width], &self.features);
        let mut tensors = vec![("features", features.map_err(refused)?)];
        let labels: Vec<u8> = self.labels.iter().flat_map(|l| l.to_le_bytes()).collect();
        if self.spec.labels != Labels::None {
            let view = TensorView::new(Dtype::I32, vec![self.pending], &labels);
            tensors.push(("labels", view.map_err(refused)?));
        }
        let bytes = safetensors::serialize(tensors, None).map_err(refused)?;
        write_synced(&path, &bytes)?;
        let (rows, length) = (self.pending as u64, bytes.len() as u64);
        self.shards.push(ShardInfo { file, rows, bytes: length, crc32c: checksum(&bytes) });
        self.features.clear();
        self.labels.clear();
        self.pending = 0;
        Ok(())
    }

    /// Writes the rest and the manifest, moves the folder into place and opens it.
    ///
    /// # Errors
    /// No rows at all, a full disk, an `out` that has appeared meanwhile.
    pub fn finish(mut self) -> Result<Dataset> {
        if self.pending > 0 {
            self.write_shard()?;
        }
        if self.rows == 0 {
            return Err(Error::data(&self.out, "rows", "at least one row", "none"));
        }
        let mut manifest = Manifest::new(self.spec.dtype, self.spec.width, self.moments.stats());
        manifest.shape = self.spec.shape;
        manifest.latents = self.spec.latents;
        manifest.rows = self.rows;
        manifest.shards = std::mem::take(&mut self.shards);
        manifest.labels = match &self.spec.labels {
            Labels::None => None,
            Labels::Count => Some(Classes { classes: self.largest_label + 1, names: Vec::new() }),
            Labels::Classes(classes) => Some(classes.clone()),
        };
        if let Some(projection) = &self.spec.projection {
            let (bytes, info) = projection.serialize()?;
            write_synced(&self.folder.join(&info.file), &bytes)?;
            manifest.projection = Some(info);
        }
        let path = self.folder.join(FILE);
        let mut json = serde_json::to_vec_pretty(&manifest)
            .map_err(|e| Error::data(&path, "manifest", "values that JSON can hold", e))?;
        json.push(b'\n');
        write_synced(&path, &json)?;
        sync_folder(&self.folder)?;
        fs::rename(&self.folder, &self.out).map_err(Error::io(&self.out, "rename the finished folder to"))?;
        sync_folder(self.out.parent().unwrap_or(Path::new(".")))?;
        Dataset::open(&self.out)
    }
}

impl Drop for DatasetWriter {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder); // already renamed after `finish`
    }
}

fn store<X: FloatX, const N: usize>(
    row: &[f32],
    bytes: &mut Vec<u8>,
    rounded: &mut Vec<f32>,
    encode: fn(X) -> [u8; N],
) {
    for x in row {
        let stored = X::from_f32(*x);
        bytes.extend_from_slice(&encode(stored));
        rounded.push(stored.to_f32());
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let mut file = fs::File::create_new(path).map_err(Error::io(path, "create"))?;
    file.write_all(bytes).map_err(Error::io(path, "write"))?;
    file.sync_all().map_err(Error::io(path, "sync"))
}

fn sync_folder(path: &Path) -> Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    fs::File::open(path).and_then(|f| f.sync_all()).map_err(Error::io(path, "sync the folder"))
}

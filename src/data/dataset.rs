//! A stored data set: a folder with a manifest and mapped shards, or one lone array file.
//!
//! Opening checks every length, header, type and shape, and that labels are below the number of classes, so that reading rows
//! later cannot fail or leave the mapping. It reads no features: [`Dataset::verify`] reads them all and compares checksums
//! and statistics.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::data::array::Array;
use crate::data::formats::safetensors::File;
use crate::data::formats::{self, Format};
use crate::data::manifest::{Classes, FILE, Latents, Manifest, ShardInfo, checksum};
use crate::data::map::Map;
use crate::data::projection::Projection;
use crate::data::stats::{Moments, Stats};
use crate::error::{Error, Result};
use crate::float::{DType, FloatX};

/// Values that are read at a time, about, where a pass over everything is made.
const BLOCK: usize = 1 << 18;

/// Mapped feature rows, ready to be read in any order.
#[derive(Clone, Debug)]
pub struct Dataset {
    path: PathBuf,
    manifest: Option<Manifest>,
    dtype: DType,
    width: usize,
    rows: u64,
    shards: Vec<Shard>,
}

/// One mapped file of a data set.
#[derive(Clone, Debug)]
pub struct Shard {
    first: u64,
    map: Arc<Map>,
    features: Array,
    labels: Option<Array>,
}

impl Shard {
    /// Returns the number of its first row in the data set.
    pub fn first_row(&self) -> u64 {
        self.first
    }

    /// Returns its number of rows.
    pub fn rows(&self) -> usize {
        self.features.rows()
    }

    /// Views its features (rows, width) without a copy.
    ///
    /// # Errors
    /// Another storage type, or a file by someone else whose numbers are not aligned.
    pub fn features<X: FloatX>(&self) -> Result<&[X]> {
        self.features.view()
    }

    /// Maps a shard of a folder and checks it against its entry in the manifest.
    fn open(folder: &Path, info: &ShardInfo, manifest: &Manifest, first: u64) -> Result<Self> {
        let path = folder.join(&info.file);
        let map = Arc::new(Map::open(&path)?);
        let length = map.bytes().len() as u64;
        if length != info.bytes {
            return Err(Error::data(
                &path,
                "length",
                format!("{} bytes", info.bytes),
                format!("{length} bytes"),
            ));
        }
        let file = File::parse(map.clone())?;
        let features = file.array("features")?;
        let shape = [info.rows as usize, manifest.width];
        if features.element().dtype().map(DType::name) != Some(manifest.dtype.as_str()) {
            return Err(features.error("dtype", &manifest.dtype, features.element()));
        }
        if features.shape() != shape {
            return Err(features.error("shape", format!("{shape:?}"), format!("{:?}", features.shape())));
        }
        let has_labels = file.names().iter().any(|(name, _)| name == "labels");
        let labels = (manifest.labels.is_some() || has_labels).then(|| file.array("labels")).transpose()?;
        if let Some(labels) = &labels {
            labels.expect_labels(shape[0])?;
            if manifest.labels.is_none() {
                return Err(labels.error("tensor", "none: the manifest has no `labels`", "one"));
            }
        }
        Ok(Self { first, map, features, labels })
    }

    fn label(&self, row: usize, classes: Option<&Classes>) -> Result<Option<u32>> {
        let Some(labels) = &self.labels else { return Ok(None) };
        let label = labels.label(row)?;
        match classes {
            Some(c) if label >= c.classes => {
                Err(labels.error(format!("row {row}"), format!("a label below {}", c.classes), label))
            }
            _ => Ok(Some(label)),
        }
    }
}

/// What [`Dataset::verify`] has looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// Files whose checksum was compared; 0 for a lone array file, which has none.
    pub files: usize,
    /// Bytes of shards.
    pub bytes: u64,
    /// Statistics of the values found.
    pub stats: Stats,
}

impl Dataset {
    /// Opens a data set folder, or a lone `.npy` or `.safetensors` file with f32, bf16 or f16 rows.
    ///
    /// # Errors
    /// A missing, truncated, padded or contradicting file; the message names it, the field, expected and found.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let meta = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        if meta.is_dir() { Self::open_folder(path) } else { Self::open_file(path) }
    }

    fn open_folder(path: &Path) -> Result<Self> {
        let manifest = Manifest::read(path)?;
        let mut shards = Vec::with_capacity(manifest.shards.len());
        let mut first = 0;
        for info in &manifest.shards {
            shards.push(Shard::open(path, info, &manifest, first)?);
            first += info.rows;
        }
        let dtype = manifest.dtype(&path.join(FILE))?;
        let (width, rows) = (manifest.width, manifest.rows);
        let dataset = Self { path: path.to_owned(), manifest: Some(manifest), dtype, width, rows, shards };
        dataset.check_labels()?;
        Ok(dataset)
    }

    fn open_file(path: &Path) -> Result<Self> {
        let map = Arc::new(Map::open(path)?);
        let features = formats::read(map.clone(), None)?;
        let dtype = features.element().dtype().ok_or_else(|| {
            let expected = "f32, bf16 or f16 (`flowprior data import` converts other types)";
            features.error("dtype", expected, features.element())
        })?;
        if features.shape().len() != 2 || features.rows() == 0 || features.width() == 0 {
            let found = format!("{:?}", features.shape());
            return Err(features.error("shape", "[rows, width], neither of them 0", found));
        }
        let labels = match Format::of(&map)? {
            Format::Safetensors => lone_labels(&map, features.rows())?,
            _ => None,
        };
        let (width, rows) = (features.width(), features.rows() as u64);
        let shards = vec![Shard { first: 0, map, features, labels }];
        let dataset = Self { path: path.to_owned(), manifest: None, dtype, width, rows, shards };
        dataset.check_labels()?;
        Ok(dataset)
    }

    /// Returns the path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Returns the number of values in a sample.
    pub fn width(&self) -> usize {
        Latents::sample_width(self.latents(), self.width)
    }

    /// Returns the number of values that are stored of a row: with moments, twice those of a sample.
    pub fn stored_width(&self) -> usize {
        self.width
    }

    /// Returns how stored latents become samples, where rows are latents.
    pub fn latents(&self) -> Option<Latents> {
        self.manifest.as_ref().and_then(|m| m.latents)
    }

    /// Returns channels, height and width, where rows are images or feature maps.
    pub fn image_shape(&self) -> Option<[usize; 3]> {
        self.manifest.as_ref().and_then(|m| m.shape)
    }

    /// Returns the storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the shards, in order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Returns the manifest; a lone file has none.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// Returns the recorded statistics of the stored values; a lone file has none.
    pub fn stats(&self) -> Option<&Stats> {
        self.manifest.as_ref().map(|m| &m.stats)
    }

    /// Says whether rows have labels.
    pub fn has_labels(&self) -> bool {
        self.shards.iter().all(|s| s.labels.is_some())
    }

    /// Returns the classes of the labels, where the manifest names them.
    pub fn classes(&self) -> Option<&Classes> {
        self.manifest.as_ref().and_then(|m| m.labels.as_ref())
    }

    /// Reads the stored projection that the rows were made with, if there is one.
    ///
    /// # Errors
    /// A missing or changed file.
    pub fn projection(&self) -> Result<Option<Projection>> {
        let info = self.manifest.as_ref().and_then(|m| m.projection.as_ref());
        info.map(|info| Projection::read(&self.path, info, self.width)).transpose()
    }

    /// Copies the samples `ids` as f32 to `out` (ids, width): of moments the means, of latents multiplied by their scale factor.
    ///
    /// # Errors
    /// A row that is not there, a buffer of the wrong size.
    pub fn gather(&self, ids: &[u64], out: &mut [f32]) -> Result<()> {
        let Some(Latents { moments, scale }) = self.latents() else { return self.gather_stored(ids, out) };
        let width = self.width();
        if moments {
            self.check_out(ids, out, width)?;
            let mut stored = vec![0.0; ids.len() * self.width];
            self.gather_stored(ids, &mut stored)?;
            for (mean, row) in out.chunks_exact_mut(width).zip(stored.chunks_exact(self.width)) {
                mean.copy_from_slice(&row[..width]);
            }
        } else {
            self.gather_stored(ids, out)?;
        }
        out.iter_mut().for_each(|x| *x *= scale);
        Ok(())
    }

    fn check_out(&self, ids: &[u64], out: &[f32], width: usize) -> Result<()> {
        if out.len() == ids.len() * width {
            return Ok(());
        }
        let expected = format!("{} rows of {width} values", ids.len());
        Err(Error::argument("gather", "out", expected, format!("{} values", out.len())))
    }

    /// Copies the rows `ids` as they are stored, as f32, to `out` (ids, stored width).
    ///
    /// # Errors
    /// A row that is not there, a buffer of the wrong size.
    pub fn gather_stored(&self, ids: &[u64], out: &mut [f32]) -> Result<()> {
        self.check_out(ids, out, self.width)?;
        for (id, out) in ids.iter().zip(out.chunks_exact_mut(self.width)) {
            let (shard, row) = self.locate(*id)?;
            shard.features.read_row(row, out);
        }
        Ok(())
    }

    /// Copies the labels of the rows `ids` to `out`.
    ///
    /// # Errors
    /// No labels, a row that is not there, a stored label outside the classes.
    pub fn gather_labels(&self, ids: &[u64], out: &mut [u32]) -> Result<()> {
        for (id, out) in ids.iter().zip(out) {
            let (shard, row) = self.locate(*id)?;
            *out = shard
                .label(row, self.classes())?
                .ok_or_else(|| Error::data(&self.path, "labels", "a data set with labels", "none"))?;
        }
        Ok(())
    }

    /// Reads all labels, (rows); `None` where there are none.
    ///
    /// # Errors
    /// A stored label outside the classes.
    pub fn labels(&self) -> Result<Option<Vec<u32>>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            for row in 0..shard.rows() {
                let Some(label) = shard.label(row, self.classes())? else { return Ok(None) };
                all.push(label);
            }
        }
        Ok(Some(all))
    }

    /// Checks that every label is one, and below the number of classes.
    fn check_labels(&self) -> Result<()> {
        for shard in &self.shards {
            (0..shard.rows()).try_for_each(|row| shard.label(row, self.classes()).map(|_| ()))?;
        }
        Ok(())
    }

    /// Reads everything: checksums, finite values, statistics, labels, projection.
    ///
    /// # Errors
    /// The first thing that is not as recorded. A lone file is only searched for values that are not finite.
    pub fn verify(&self) -> Result<Verified> {
        let infos = self.manifest.as_ref().map_or(&[][..], |m| &m.shards);
        for (shard, info) in self.shards.iter().zip(infos) {
            let found = checksum(shard.map.bytes());
            if found != info.crc32c {
                return Err(Error::data(shard.map.path(), "checksum (CRC-32C)", &info.crc32c, found));
            }
        }
        let allowed = self.stats().is_some_and(|s| s.non_finite > 0);
        let mut moments = Moments::new(self.width);
        for shard in &self.shards {
            shard.scan(self.width, |first, rows| {
                if let Some(at) = rows.iter().position(|x| !x.is_finite()).filter(|_| !allowed) {
                    let field = format!("row {}, column {}", first + at / self.width, at % self.width);
                    return Err(shard.features.error(field, "a finite number", rows[at]));
                }
                let bad = self.latents().and_then(|latents| latents.bad_log_variance(rows, self.width));
                if let Some((row, at)) = bad {
                    let field = format!("row {}, log-variance {at}", first + row);
                    let found = rows[row * self.width + self.width / 2 + at];
                    return Err(shard.features.error(field, format!("at most {}", Latents::MOST), found));
                }
                moments.push(rows);
                Ok(())
            })?;
        }
        let stats = moments.stats();
        self.compare_stats(&stats)?;
        self.check_labels()?;
        let projection = self.projection()?;
        let bytes = self.shards.iter().map(|s| s.map.bytes().len() as u64).sum();
        Ok(Verified { files: infos.len() + projection.is_some() as usize, bytes, stats })
    }

    /// Compares statistics up to the rounding of whoever wrote them.
    fn compare_stats(&self, found: &Stats) -> Result<()> {
        let Some(recorded) = self.stats() else { return Ok(()) };
        let path = self.path.join(FILE);
        if recorded.non_finite != found.non_finite {
            return Err(Error::data(path, "stats.non_finite", found.non_finite, recorded.non_finite));
        }
        let scale = found.min.abs().max(found.max.abs()).max(f64::MIN_POSITIVE);
        let scalars = [
            ("mean", recorded.mean, found.mean),
            ("std", recorded.std, found.std),
            ("min", recorded.min, found.min),
            ("max", recorded.max, found.max),
        ];
        let means =
            recorded.mean_per_dim.iter().zip(&found.mean_per_dim).map(|(r, f)| ("mean_per_dim", *r, *f));
        let stds = recorded.std_per_dim.iter().zip(&found.std_per_dim).map(|(r, f)| ("std_per_dim", *r, *f));
        for (name, recorded, found) in scalars.into_iter().chain(means).chain(stds) {
            if (recorded - found).abs() > 1e-6 * scale {
                return Err(Error::data(
                    path,
                    format!("stats.{name}"),
                    format!("{found} as in the shards"),
                    recorded,
                ));
            }
        }
        Ok(())
    }

    /// Returns the shard of row `id` and the row's number in it.
    fn locate(&self, id: u64) -> Result<(&Shard, usize)> {
        if id >= self.rows {
            let expected = format!("rows below {}", self.rows);
            return Err(Error::argument("gather", "ids", expected, format!("row {id}")));
        }
        let shard = &self.shards[self.shards.partition_point(|s| s.first <= id) - 1];
        Ok((shard, (id - shard.first) as usize))
    }
}

impl Shard {
    /// Calls `f` with blocks of rows as f32 and the number of their first row in the shard.
    fn scan(&self, width: usize, mut f: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        let step = (BLOCK / width).max(1);
        let mut block = vec![0.0; step.min(self.rows()) * width];
        for first in (0..self.rows()).step_by(step) {
            let count = step.min(self.rows() - first);
            for (i, row) in block.chunks_exact_mut(width).enumerate().take(count) {
                self.features.read_row(first + i, row);
            }
            f(first, &block[..count * width])?;
        }
        Ok(())
    }
}

fn lone_labels(map: &Arc<Map>, rows: usize) -> Result<Option<Array>> {
    let file = File::parse(map.clone())?;
    if !file.names().iter().any(|(name, _)| name == "labels") {
        return Ok(None);
    }
    let labels = file.array("labels")?;
    labels.expect_labels(rows)?;
    Ok(Some(labels))
}

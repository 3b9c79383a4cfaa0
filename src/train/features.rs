//! Feature rows as a training step takes them: from the configured source, prefetched, standardised if asked for.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::data::dataset::Dataset;
use crate::data::loader::{Batch, Loader};
use crate::data::manifest::Latents;
use crate::data::source::Source;
use crate::data::stats::{Moments, Stats};
use crate::data::{builtin, toy};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::ops::gather::{Index, Mirror, Sampling, Stored, gather_samples_to};
use crate::rng::{Draw, Stream};
use crate::tensor::Tensor;
use crate::train::config::{Builtin, Config, DataSource, OnDevice};
use crate::train::resident::Resident;

/// Subtracts a mean from each column and divides by its standard deviation; kept in checkpoints, so that samples come
/// back in the units of the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standardise {
    /// Mean of each column.
    pub mean: Vec<f32>,
    /// Standard deviation of each column (unbiased), never zero.
    pub std: Vec<f32>,
}

impl Standardise {
    /// Returns the statistics of the rows (N, D).
    pub fn of(rows: &[f32], width: usize) -> Self {
        let mut moments = Moments::new(width);
        moments.push(rows);
        Self::from_stats(&moments.stats())
    }

    fn from_stats(stats: &Stats) -> Self {
        let std = stats.std_per_dim.iter().map(|s| if *s > 0.0 { *s as f32 } else { 1.0 }).collect();
        Self { mean: stats.mean_per_dim.iter().map(|m| *m as f32).collect(), std }
    }

    /// Describes latents that are multiplied by a scale factor when they are read.
    fn of_latents(latents: Latents, width: usize) -> Self {
        Self { mean: vec![0.0; width], std: vec![1.0 / latents.scale; width] }
    }

    /// Returns the statistics of the first columns, where rows have others behind them that are no part of a sample.
    pub fn first(&self, columns: usize) -> Self {
        let of = |values: &[f32]| values[..columns.min(values.len())].to_vec();
        Self { mean: of(&self.mean), std: of(&self.std) }
    }

    /// Standardises rows in place.
    pub fn apply(&self, rows: &mut [f32]) {
        for row in rows.chunks_exact_mut(self.mean.len().max(1)) {
            for ((x, mean), std) in row.iter_mut().zip(&self.mean).zip(&self.std) {
                *x = (*x - mean) / std;
            }
        }
    }

    /// Brings rows back to the units of the data, in place.
    pub fn invert(&self, rows: &mut [f32]) {
        for row in rows.chunks_exact_mut(self.mean.len().max(1)) {
            for ((x, mean), std) in row.iter_mut().zip(&self.mean).zip(&self.std) {
                *x = *x * std + mean;
            }
        }
    }
}

/// What a row of data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowShape {
    /// Values.
    pub width: usize,
    /// Channels, height and width of a row that is an image, where the data set says so.
    pub image: Option<[usize; 3]>,
}

impl RowShape {
    /// Returns that of a source.
    pub fn of(source: &Source) -> Self {
        Self { width: source.width(), image: source.image_shape() }
    }

    /// Describes rows of which only the width is known.
    pub fn vectors(width: usize) -> Self {
        Self { width, image: None }
    }
}

/// The features of a run.
pub struct Features {
    source: Arc<Source>,
    /// How rows are standardised, if they are; of latents, by the scale factor that reading multiplies them by.
    pub standardise: Option<Standardise>,
    seed: u64,
    /// Pixels across an image, where images are mirrored.
    mirrored: Option<usize>,
    /// Whether samples are drawn from moments; else means are taken.
    drawn: bool,
    batch: usize,
    prefetch: usize,
    loader: Option<(u64, Loader)>,
    on_device: OnDevice,
    /// Rows on the device; `None` until the first batch is asked for.
    resident: Option<Option<Resident>>,
    /// The rows of a staged batch, in order.
    in_order: Option<Index>,
    note: Option<String>,
}

impl Features {
    /// Opens the configured source.
    ///
    /// # Errors
    /// No source or several; a data set that is missing or damaged.
    pub fn open(config: &Config) -> Result<Self> {
        Self::from_source(config, open_source(config)?)
    }

    /// Takes rows from a source that the configuration does not name.
    ///
    /// # Errors
    /// Statistics that the source cannot have.
    pub fn from_source(config: &Config, source: Source) -> Result<Self> {
        let standardise = match (config.data.standardise, source.latents()) {
            (true, _) => Some(statistics(&source)?),
            (false, latents) => latents.map(|latents| Standardise::of_latents(latents, source.width())),
        };
        let mirrored = match (config.data.flip, source.image_shape()) {
            (false, _) => None,
            (true, Some([_, _, width])) => Some(width),
            (true, None) => {
                let why = "data.flip = true mirrors images, but the data set does not say that its rows are images: import it \
                           with `--shape C,H,W`, or leave it out";
                return Err(Error::Usage(why.to_owned()));
            }
        };
        Ok(Self {
            source: Arc::new(source),
            standardise,
            seed: config.seed,
            mirrored,
            drawn: config.data.sample_moments,
            batch: config.train.batch,
            prefetch: config.data.prefetch,
            loader: None,
            on_device: config.data.on_device,
            resident: None,
            in_order: None,
            note: None,
        })
    }

    /// Returns the number of columns.
    pub fn width(&self) -> usize {
        self.source.width()
    }

    /// Returns what a row is.
    pub fn rows(&self) -> RowShape {
        RowShape::of(&self.source)
    }

    /// Returns the source.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Returns what becomes of the stored rows of a step, unless they are samples already.
    fn sampling(&self, step: u64) -> Option<Sampling> {
        let latents = self.source.latents();
        if latents.is_none() && self.mirrored.is_none() {
            return None;
        }
        let draw = |stream| Draw::new(self.seed, stream, step);
        let stored = match latents.is_some_and(|latents| latents.moments) {
            true if self.drawn => Stored::Drawn(draw(Stream::Moments)),
            true => Stored::Mean,
            false => Stored::Values,
        };
        let mirror = self.mirrored.map(|width| Mirror { draw: draw(Stream::Flip), width });
        Some(Sampling { stored, mirror, scale: latents.map_or(1.0, |latents| latents.scale) })
    }

    /// Brings the batch of a step to `staged` on `device`, which is not waited for: from the rows that are kept there, or
    /// from the host, where steps in order are read ahead. Returns the labels, where rows have them.
    ///
    /// # Errors
    /// Data that cannot be read, or cannot be kept on the device as was asked; a device that failed.
    pub fn stage(&mut self, step: u64, device: &Device, staged: &mut Staged) -> Result<Option<Vec<u32>>> {
        let (sampling, width) = (self.sampling(step), self.source.width());
        let standardise = still_to_apply(&self.standardise, &self.source);
        let resident = match &mut self.resident {
            Some(known) => known,
            new => {
                let found = Resident::of(&self.source, standardise, self.batch, self.on_device, device)?;
                self.note = found.as_ref().map(|resident| {
                    format!(
                        "the device keeps all rows: {:.1} MiB",
                        resident.bytes() as f64 / (1 << 20) as f64
                    )
                });
                new.insert(found)
            }
        };
        if let Some(resident) = resident {
            let ids = self.source.ids(self.seed, step, self.batch)?;
            resident.gather(&ids, sampling.as_ref(), staged.room(device, [ids.len(), width]))?;
            return self.source.labels(&ids);
        }
        let mut loader = match self.loader.take() {
            Some((next, loader)) if next == step => loader,
            _ => Loader::start(self.source.clone(), self.seed, self.batch, step, self.prefetch)?,
        };
        let mut batch = loader.next_batch()?;
        if let Some(standardise) = standardise {
            standardise.apply(&mut batch.features);
        }
        let room = staged.room(device, [self.batch, width]);
        match &sampling {
            None => room.view_mut().stage(&batch.features)?,
            Some(sampling) => {
                let mut stored = Tensor::<f32>::uninit(device, [self.batch, self.source.stored_width()]);
                stored.view_mut().stage(&batch.features)?;
                let in_order = match &mut self.in_order {
                    Some(index) => index,
                    none => none.insert(Index::new(device, &(0..self.batch as u32).collect::<Vec<_>>())?),
                };
                gather_samples_to(room, &stored, in_order, sampling)?;
            }
        }
        let labels = batch.labels.clone();
        loader.recycle(batch);
        self.loader = Some((step + 1, loader));
        Ok(labels)
    }

    /// Returns what there is to say about where the rows are, once.
    pub fn take_note(&mut self) -> Option<String> {
        self.note.take()
    }

    /// Returns the toy distribution that the rows are drawn from.
    pub fn toy(&self) -> Option<toy::Toy> {
        match self.source() {
            Source::Toy(toy) => Some(*toy),
            _ => None,
        }
    }

    /// Returns `count` rows that training order never starts with: batch `index` of a seed of its own. They are not mirrored,
    /// and of moments they are the means.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub fn fresh(&self, seed: u64, index: u64, count: usize) -> Result<Vec<f32>> {
        Ok(self.fresh_batch(seed, index, count)?.features)
    }

    /// Returns such rows with their labels, where the source has them.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub fn fresh_batch(&self, seed: u64, index: u64, count: usize) -> Result<Batch> {
        let mut features = vec![0.0; count * self.width()];
        let mut labels = self.source.has_labels().then(|| vec![0; count]);
        self.source.fill(seed ^ EVALUATION, index, count, &mut features, labels.as_deref_mut())?;
        if let Some(standardise) = still_to_apply(&self.standardise, &self.source) {
            standardise.apply(&mut features);
        }
        Ok(Batch { index, features, labels })
    }
}

/// Returns how rows are standardised that were read: latents are by then.
fn still_to_apply<'a>(standardise: &'a Option<Standardise>, source: &Source) -> Option<&'a Standardise> {
    standardise.as_ref().filter(|_| source.latents().is_none())
}

/// Sets the order of evaluation batches apart from that of training: the digits of √2.
const EVALUATION: u64 = 0x6a09_e667_f3bc_c908;

/// Opens the configured source.
///
/// # Errors
/// No source or several; a data set that is missing or damaged.
pub fn open_source(config: &Config) -> Result<Source> {
    match config.data.source()? {
        DataSource::Toy(toy) => Ok(Source::Toy(toy.name().parse::<toy::Toy>()?)),
        DataSource::Builtin(Builtin::Digits) => Ok(Source::Memory(builtin::digits()?)),
        DataSource::Builtin(Builtin::Tokens) => Ok(Source::Memory(builtin::tokens()?)),
        DataSource::Path(path) => Ok(Source::Dataset(Arc::new(Dataset::open(path)?))),
    }
}

fn statistics(source: &Source) -> Result<Standardise> {
    if source.latents().is_some() {
        return Err(Error::Usage(
            "data.standardise: the data set has a latent scale, which its samples are multiplied by; leave it out".into(),
        ));
    }
    match source {
        Source::Toy(_) => Err(Error::Usage(
            "data.standardise: toys are divided by their standard deviation already; leave it out".into(),
        )),
        Source::Memory(memory) => Ok(Standardise::of(&memory.rows, memory.width)),
        Source::Dataset(dataset) => match dataset.stats() {
            Some(stats) => Ok(Standardise::from_stats(stats)),
            None => measured(dataset),
        },
    }
}

/// Statistics of a lone file, which carries none: one pass over it.
fn measured(dataset: &Dataset) -> Result<Standardise> {
    let mut moments = Moments::new(dataset.width());
    let mut rows = Vec::new();
    for first in (0..dataset.rows()).step_by(1024) {
        let ids: Vec<u64> = (first..(first + 1024).min(dataset.rows())).collect();
        rows.resize(ids.len() * dataset.width(), 0.0);
        dataset.gather(&ids, &mut rows)?;
        moments.push(&rows);
    }
    Ok(Standardise::from_stats(&moments.stats()))
}

/// Copies rows `range` of a batch (B, D) to the device.
pub fn rows_to_device<X: FloatX>(
    device: &Device,
    rows: &[f32],
    width: usize,
    range: std::ops::Range<usize>,
) -> Result<Tensor<X>> {
    Tensor::from_f32(device, [range.len(), width], &rows[range.start * width..range.end * width])
}

/// The rows of a step's batch on the device, in memory that stays where it is.
#[derive(Debug, Default)]
pub struct Staged {
    rows: Option<Tensor<f32>>,
}

impl Staged {
    /// Returns where the batch goes.
    fn room(&mut self, device: &Device, shape: [usize; 2]) -> &mut Tensor<f32> {
        self.rows.get_or_insert_with(|| Tensor::uninit(device, shape))
    }

    /// Returns the whole batch.
    ///
    /// # Errors
    /// Nothing was put here before.
    pub fn all(&self) -> Result<&Tensor<f32>> {
        self.rows.as_ref().ok_or_else(not_prepared)
    }

    /// Hands the batch to `f` in parts of `rows` rows, each with the number of its first row.
    ///
    /// # Errors
    /// Nothing was put here before; a device that failed; what `f` reports.
    pub fn each(&self, rows: usize, mut f: impl FnMut(usize, &Tensor<f32>) -> Result<()>) -> Result<()> {
        let all = self.all()?;
        let (count, width) = all.rows_cols();
        if rows >= count {
            return f(0, all);
        }
        for first in (0..count).step_by(rows) {
            let mut part = Tensor::uninit(all.device(), [rows, width]);
            part.view_mut().copy_from(all.view().part(first * width, [rows, width]))?;
            f(first, &part)?;
        }
        Ok(())
    }
}

/// A step was computed before its data were read: a mistake in the program.
pub fn not_prepared() -> Error {
    Error::argument("a training step", "batch", "the data of a step that was prepared", "none")
}

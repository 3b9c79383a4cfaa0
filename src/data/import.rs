//! Turns other people's files into a data set: read, check, shift, scale, project, round, write.
//!
//! One pass writes; before it, one pass collects what depends on all rows (the mean, the deviation, the covariance), if
//! anything asks for that. No input is held in memory unless it is compressed.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::data::array::Array;
use crate::data::class_map::ClassMap;
pub use crate::data::class_map::Maps;
use crate::data::dataset::Dataset;
use crate::data::formats;
use crate::data::manifest::{Classes, Latents};
use crate::data::pca::Covariance;
use crate::data::projection::{Kind, Projection};
use crate::data::stats::Moments;
use crate::data::writer::{DatasetWriter, Labels, NonFinite, Spec};
use crate::error::{Error, Result};
use crate::float::DType;

/// Values that are read at a time, about.
const BLOCK: usize = 1 << 20;

/// What is subtracted from every row first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shift {
    /// One number.
    Value(f32),
    /// The mean of each dimension.
    Mean,
}

/// What every row is multiplied by after the shift.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// One number.
    Value(f32),
    /// One over the standard deviation of all values, so that they have about unit variance.
    UnitVariance,
}

/// Where labels come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelSource {
    /// There are none.
    None,
    /// The array of this name in each input.
    Key(String),
    /// One file per input.
    Files(Vec<PathBuf>),
}

/// Says how to import.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of the features in npz, safetensors and .pt files; not needed where they hold one array.
    pub key: Option<String>,
    /// Where labels come from.
    pub labels: LabelSource,
    /// The number of classes; `None` takes the number of names or the largest label plus one.
    pub classes: Option<u32>,
    /// A name for each class, or none at all.
    pub class_names: Vec<String>,
    /// Channels, height and width of a row; `None` takes those of inputs that have them.
    pub shape: Option<[usize; 3]>,
    /// Height and width that images are padded to, on all sides alike.
    pub pad: Option<[usize; 2]>,
    /// What they are padded with, before shift and scale.
    pub background: f32,
    /// Semantic maps, whose shares of each class become channels behind those of the images.
    pub maps: Option<Maps>,
    /// A row is a mean and its log-variances.
    pub moments: bool,
    /// What samples are multiplied by when they are read; rows are stored as they are.
    pub latent_scale: Option<f32>,
    /// The storage type; `None` keeps the input's where nothing is computed, else f32.
    pub dtype: Option<DType>,
    /// Rows in a shard; `None` takes about 64 MiB of them.
    pub shard_rows: Option<usize>,
    /// What is subtracted.
    pub shift: Shift,
    /// What is multiplied.
    pub scale: Scale,
    /// The projection and its width.
    pub projection: Option<(Kind, usize)>,
    /// The seed of a random projection.
    pub seed: u64,
    /// Whether NaN and ∞ are refused.
    pub non_finite: NonFinite,
    /// Rows to take, from the first; `None` takes all.
    pub max_rows: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            key: None,
            labels: LabelSource::None,
            classes: None,
            class_names: Vec::new(),
            shape: None,
            pad: None,
            background: 0.0,
            maps: None,
            moments: false,
            latent_scale: None,
            dtype: None,
            shard_rows: None,
            shift: Shift::Value(0.0),
            scale: Scale::Value(1.0),
            projection: None,
            seed: 0,
            non_finite: NonFinite::Refuse,
            max_rows: None,
        }
    }
}

/// Imports the rows of all `inputs`, in that order, to a new folder `out`.
///
/// # Errors
/// An input that cannot be read or is damaged, inputs of different widths, no rows, values that are not finite, labels
/// that do not fit, a projection that is impossible, an `out` that exists.
pub fn import(inputs: &[PathBuf], options: &Options, out: &Path) -> Result<Dataset> {
    let table = Table::open(inputs, options)?;
    let projection = fit(&table, options)?;
    let kept = table.parts[0].features.element().dtype();
    let dtype = options.dtype.or(kept.filter(|_| projection.is_none())).unwrap_or(DType::F32);
    let spec = Spec {
        width: projection.as_ref().map_or(table.width, Projection::width),
        shape: table.shape.filter(|_| projection.as_ref().is_none_or(|p| p.weight.is_none())),
        dtype,
        shard_rows: options.shard_rows,
        labels: labels(options)?,
        non_finite: options.non_finite,
        projection: projection.clone(),
        latents: options.latents(),
    };
    let width = spec.width;
    let mut writer = DatasetWriter::create(out, spec)?;
    let mut projected = Vec::new();
    table.for_each_block(options.non_finite, |rows, labels| match &projection {
        None => writer.push(rows, labels),
        Some(projection) => {
            projected.resize(rows.len() / table.width * width, 0.0);
            projection.apply(rows, &mut projected)?;
            writer.push(&projected, labels)
        }
    })?;
    writer.finish()
}

impl Options {
    /// Returns what turns rows into samples, where they are latents.
    fn latents(&self) -> Option<Latents> {
        let scale = self.latent_scale.unwrap_or(1.0);
        (self.moments || self.latent_scale.is_some()).then_some(Latents { moments: self.moments, scale })
    }

    /// Checks what does not depend on the inputs.
    fn check(&self) -> Result<()> {
        let computed = self.shift != Shift::Value(0.0)
            || self.scale != Scale::Value(1.0)
            || self.projection.is_some()
            || self.pad.is_some();
        if self.moments && computed {
            let why = "means and log-variances are stored as they are: shift, scale, projection and padding would change \
                       the variances too (a latent scale multiplies samples)";
            return Err(Error::Usage(why.to_owned()));
        }
        if self.maps.is_some() && (computed || self.moments) {
            let why = "maps become channels of their images as they are: shift, scale, projection, padding and moments \
                       would change them too (prepare the images, then add the maps)";
            return Err(Error::Usage(why.to_owned()));
        }
        match self.latent_scale {
            Some(scale) if !scale.is_finite() || scale == 0.0 => Err(Error::Usage(format!(
                "the latent scale must be a finite number other than 0, not {scale}"
            ))),
            _ => Ok(()),
        }
    }
}

/// Returns what the options say about labels.
fn labels(options: &Options) -> Result<Labels> {
    let (names, unlabelled) = (options.class_names.clone(), options.labels == LabelSource::None);
    match options.classes.or((!names.is_empty()).then_some(names.len() as u32)) {
        _ if unlabelled && names.is_empty() => Ok(Labels::None),
        _ if unlabelled => {
            Err(Error::Usage("class names need labels: give label files or their key".to_owned()))
        }
        None => Ok(Labels::Count),
        Some(classes) if ![0, classes as usize].contains(&names.len()) => {
            let names = names.len();
            Err(Error::Usage(format!("{names} class names for {classes} classes: give one for each")))
        }
        Some(classes) => Ok(Labels::Classes(Classes { classes, names })),
    }
}

/// Measures what the options leave to the data, and builds the map from input rows to stored rows.
fn fit(table: &Table, options: &Options) -> Result<Option<Projection>> {
    let plain = options.shift == Shift::Value(0.0) && options.scale == Scale::Value(1.0);
    if plain && options.projection.is_none() {
        return Ok(None);
    }
    let needs_pca = matches!(options.projection, Some((Kind::Pca | Kind::Whiten, _)));
    let needs_moments = options.shift == Shift::Mean || options.scale == Scale::UnitVariance;
    let mut moments = Moments::new(table.width);
    let mut covariance = Covariance::new(if needs_pca { table.width } else { 0 });
    if needs_pca || needs_moments {
        table.for_each_block(options.non_finite, |rows, _| {
            if needs_moments {
                moments.push(rows);
            }
            if needs_pca {
                covariance.push(rows);
            }
            Ok(())
        })?;
    }
    let stats = moments.stats();
    let shift = match options.shift {
        Shift::Value(value) => vec![value; table.width],
        Shift::Mean => stats.mean_per_dim.iter().map(|m| *m as f32).collect(),
    };
    let scale = match options.scale {
        Scale::Value(value) => value,
        Scale::UnitVariance if stats.std > 0.0 => (1.0 / stats.std) as f32,
        Scale::UnitVariance => {
            let path = table.parts[0].features.path();
            return Err(Error::data(path, "standard deviation", "more than 0, to scale by it", stats.std));
        }
    };
    let parts_finite = scale.is_finite() && scale != 0.0 && shift.iter().all(|s| s.is_finite());
    if !parts_finite {
        return Err(Error::Usage(format!(
            "scale and shift must be finite and the scale not 0: scale is {scale}"
        )));
    }
    let identity = Projection::identity(shift, scale);
    match options.projection {
        None | Some((Kind::Identity, _)) => Ok(identity),
        Some((Kind::Random, width)) => identity.random(width, options.seed),
        Some((Kind::Pool, width)) => identity.pool(width),
        Some((Kind::Pca, width)) => identity.pca(width, &covariance, false),
        Some((Kind::Whiten, width)) => identity.pca(width, &covariance, true),
    }
    .map(Some)
}

/// The rows of several arrays, one after the other.
struct Table {
    parts: Vec<Part>,
    /// Values in a row, padding included.
    width: usize,
    /// Channels, height and width of a sample, padding included.
    shape: Option<[usize; 3]>,
    padding: Option<Padding>,
}

/// Puts images in the middle of larger ones.
struct Padding {
    image: [usize; 3],
    to: [usize; 2],
    background: f32,
}

struct Part {
    features: Array,
    labels: Option<Array>,
    classes: Option<u32>,
    map: Option<ClassMap>,
    rows: usize,
}

impl Table {
    fn open(inputs: &[PathBuf], options: &Options) -> Result<Self> {
        options.check()?;
        if let LabelSource::Files(files) = &options.labels
            && files.len() != inputs.len()
        {
            let (labels, inputs) = (files.len(), inputs.len());
            return Err(Error::Usage(format!("{labels} label files for {inputs} inputs: give one for each")));
        }
        if let Some(maps) = &options.maps {
            maps.check(inputs.len())?;
        }
        let mut left = options.max_rows.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let mut parts: Vec<Part> = Vec::new();
        for (i, input) in inputs.iter().enumerate() {
            let mut part = Part::open(input, i, options)?;
            let width = parts.first().map_or(part.features.width(), |p| p.features.width());
            if part.features.width() != width {
                let first = inputs[0].display();
                let expected = format!("{width} values per row as in {first}");
                return Err(part.features.error("width", expected, part.features.width()));
            }
            part.rows = part.rows.min(left);
            left -= part.rows;
            parts.push(part);
        }
        let (rows, width) =
            (parts.iter().map(|p| p.rows).sum::<usize>(), parts.first().map(|p| p.features.width()));
        match width {
            None => Err(Error::Usage("no input files were given".to_owned())),
            Some(0) => Err(parts[0].features.error("width", "at least one value per row", 0)),
            Some(_) if rows == 0 => Err(parts[0].features.error("rows", "at least one row", 0)),
            Some(width) => Self { parts, width, shape: None, padding: None }.shaped(options),
        }
    }

    /// Finds the shape of a sample, and pads it as asked.
    fn shaped(mut self, options: &Options) -> Result<Self> {
        let features = &self.parts[0].features;
        if options.moments && !self.width.is_multiple_of(2) {
            let expected = "an even number: as many log-variances as means";
            return Err(features.error("width", expected, self.width));
        }
        let sample = Latents::sample_width(options.latents(), self.width);
        self.shape = match options.shape {
            Some(shape) if shape.iter().try_fold(1usize, |p, n| p.checked_mul(*n)) != Some(sample) => {
                let [c, h, w] = shape;
                return Err(features.error("width", format!("{c} × {h} × {w} values"), sample));
            }
            Some(shape) => Some(shape),
            None => self.image_shape(options.moments),
        };
        if let Some(maps) = &options.maps {
            return self.mapped(maps);
        }
        let Some(to) = options.pad else { return Ok(self) };
        let Some(image @ [channels, height, width]) = self.shape else {
            let found = format!("{:?}", features.shape());
            return Err(features.error("shape", "images, to be padded (`--shape C,H,W` says which)", found));
        };
        if to[0] < height || to[1] < width {
            let expected = format!("at least {height} × {width} pixels to pad to");
            return Err(features.error("padding", expected, format!("{} × {}", to[0], to[1])));
        }
        self.shape = Some([channels, to[0], to[1]]);
        self.width = channels * to[0] * to[1];
        self.padding = Some(Padding { image, to, background: options.background });
        Ok(self)
    }

    /// Puts maps behind the images.
    fn mapped(mut self, maps: &Maps) -> Result<Self> {
        let Some([channels, height, width]) = self.shape else {
            let features = &self.parts[0].features;
            let found = format!("{:?}", features.shape());
            return Err(features.error(
                "shape",
                "images, to put maps behind (`--shape C,H,W` says which)",
                found,
            ));
        };
        for (part, path) in self.parts.iter_mut().zip(&maps.files) {
            let rows = part.features.rows();
            part.map = Some(ClassMap::open(path, maps.classes, rows, [height, width])?);
        }
        self.shape = Some([channels + maps.classes, height, width]);
        self.width += maps.classes * height * width;
        Ok(self)
    }

    /// Returns (C, H, W) where every input has the same: rows of shape (H, W) have one channel, moments half as many as rows.
    fn image_shape(&self, moments: bool) -> Option<[usize; 3]> {
        let shape = |part: &Part| match part.features.shape() {
            [_, h, w] if !moments => Some([1, *h, *w]),
            [_, c, h, w] if !moments => Some([*c, *h, *w]),
            [_, c, h, w] if c.is_multiple_of(2) => Some([c / 2, *h, *w]),
            _ => None,
        };
        let first = shape(self.parts.first()?)?;
        self.parts.iter().all(|p| shape(p) == Some(first)).then_some(first)
    }

    /// Calls `f` with blocks of rows, which it may change, and their labels.
    fn for_each_block(
        &self,
        non_finite: NonFinite,
        mut f: impl FnMut(&mut [f32], Option<&[u32]>) -> Result<()>,
    ) -> Result<()> {
        let step = (BLOCK / self.width).max(1);
        let mut block = Vec::new();
        for part in &self.parts {
            for first in (0..part.rows).step_by(step) {
                let count = step.min(part.rows - first);
                block.resize(count * self.width, 0.0);
                block
                    .par_chunks_exact_mut(self.width)
                    .enumerate()
                    .try_for_each(|(i, row)| part.read_row(first + i, row, self.padding.as_ref()))?;
                if non_finite == NonFinite::Refuse {
                    part.check_finite(first, &block, self.padding.as_ref())?;
                }
                f(&mut block, part.labels(first, count)?.as_deref())?;
            }
        }
        Ok(())
    }
}

impl Part {
    fn open(input: &Path, index: usize, options: &Options) -> Result<Self> {
        let features = formats::open(input, options.key.as_deref())?;
        if features.shape().len() < 2 {
            let found = format!("{:?}", features.shape());
            return Err(features.error("shape", "rows and columns, at least two dimensions", found));
        }
        let labels = match &options.labels {
            LabelSource::None => None,
            LabelSource::Key(key) => Some(formats::open(input, Some(key))?),
            LabelSource::Files(files) => Some(formats::open_labels(&files[index])?),
        };
        let rows = features.rows();
        if let Some(labels) = &labels {
            labels.expect_labels(rows)?;
        }
        Ok(Self { features, labels, classes: options.classes, map: None, rows })
    }

    fn read_row(&self, row: usize, out: &mut [f32], padding: Option<&Padding>) -> Result<()> {
        if let Some(map) = &self.map {
            let (own, shares) = out.split_at_mut(self.features.width());
            self.features.read_row(row, own);
            return map.shares(row, shares);
        }
        let Some(Padding { image: [_, height, width], to: [to_height, to_width], background }) = padding
        else {
            self.features.read_row(row, out);
            return Ok(());
        };
        let mut image = vec![0.0; self.features.width()];
        self.features.read_row(row, &mut image);
        out.fill(*background);
        let corner = (to_height - height) / 2 * to_width + (to_width - width) / 2;
        for (plane, out) in image.chunks_exact(height * width).zip(out.chunks_exact_mut(to_height * to_width))
        {
            for (y, pixels) in plane.chunks_exact(*width).enumerate() {
                out[corner + y * to_width..][..*width].copy_from_slice(pixels);
            }
        }
        Ok(())
    }

    /// Returns the values of a row, unless it is padded.
    fn width(&self) -> usize {
        self.features.width() + self.map.as_ref().map_or(0, ClassMap::width)
    }

    fn check_finite(&self, first: usize, rows: &[f32], padding: Option<&Padding>) -> Result<()> {
        let Some(at) = rows.iter().position(|x| !x.is_finite()) else { return Ok(()) };
        let (width, of) = match padding {
            None => (self.width(), ""),
            Some(Padding { image: [channels, ..], to: [height, width], .. }) => {
                (channels * height * width, " of the padded image")
            }
        };
        let field = format!("row {}, column {}{of}", first + at / width, at % width);
        let expected = "a number that is finite in f32 (`--allow-non-finite` takes others too)";
        Err(self.features.error(field, expected, rows[at]))
    }

    fn labels(&self, first: usize, count: usize) -> Result<Option<Vec<u32>>> {
        let Some(labels) = &self.labels else { return Ok(None) };
        let most = self.classes.unwrap_or(u32::MAX);
        let checked = |row| match labels.label(row)? {
            label if label >= most => {
                Err(labels.error(format!("row {row}"), format!("a label below {most}"), label))
            }
            label => Ok(label),
        };
        (first..first + count).map(checked).collect::<Result<_>>().map(Some)
    }
}

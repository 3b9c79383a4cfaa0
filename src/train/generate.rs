//! What `flowprior sample` writes: samples of a prior, the latents of a run, or decoded samples of an autoencoder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use serde::Serialize;

use crate::device::{CpuOptions, Device};
use crate::error::{Error, Result};
use crate::float::{DType, FloatX};
use crate::flow::sampler::Cost;
use crate::nn::dit::DitInput;
use crate::nn::{VelocityConfig, VelocityNet};
use crate::plot::{ClassGrid, Group, ImageGrid, Layout, class_grid, image_grid, scatter_2d};
use crate::train::beside::{Beside, Original};
use crate::train::config::{Stage, Target};
use crate::train::export::{check_ending, write_rows};
use crate::train::features::Standardise;
use crate::train::prior::{Prior, open_prior};
use crate::train::reference::{Reference, mean};
use crate::train::report::image_shape;
use crate::train::restore::Restored;
use crate::train::sampling::{Sampling, draw_samples, points};

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generated {
    /// `samples` of a prior, `latents` of a run, or `decoded` samples of an autoencoder's prior.
    pub what: &'static str,
    /// Rows written.
    pub count: usize,
    /// Values in a row.
    pub width: usize,
    /// The file.
    pub out: PathBuf,
    /// A picture of them, where they are two-dimensional or square images.
    pub figure: Option<PathBuf>,
    /// Mean −ln p of the rows, where the prior's data are a toy.
    pub nll: Option<f64>,
    /// Mean log of the distance of a row to its fifth nearest data row, where the prior's data are known.
    pub log_rk: Option<f64>,
    /// Evaluations of the velocity for each sample; rows that were not drawn, latents, have none. A guided one takes two networks'.
    pub evaluations: Option<usize>,
    /// Steps that an adaptive solver rejected, of those.
    pub rejected: Option<usize>,
}

/// Rows, with what is known about them.
struct Rows {
    what: &'static str,
    /// In the space of the network.
    values: Vec<f32>,
    width: usize,
    /// Brings them to the units of the data.
    standardise: Option<Standardise>,
    reference: Option<Reference>,
    images: Option<Images>,
    /// What was filled in.
    original: Option<Original>,
    cost: Option<Cost>,
}

/// What samples are drawn with, beside the prior.
#[derive(Clone, Copy, Debug, Default)]
pub struct With<'a> {
    /// The prior of autoguidance.
    pub weak: Option<&'a Path>,
    /// What a network with a spatial condition is shown.
    pub beside: Option<&'a Beside>,
}

/// What rows that are images look like.
struct Images {
    /// Channels, height, width.
    shape: [usize; 3],
    /// The class that each was asked to be of.
    labels: Option<Vec<u32>>,
}

/// Draws what `sampling` asks for from a run, one of its checkpoints or a network's file, and writes it to `out`, with a
/// PNG of the same name beside it. Samples of a prior come in the units of its data; latents as they are, all of them
/// unless fewer are asked for. Images that were inpainted keep every bit of what was known of them.
///
/// # Errors
/// A path that is nothing of this; a name that ends in neither `.npy` nor `.safetensors`; a disk that is full; a weaker network where
/// there is nothing to guide, or something shown to a network that takes nothing.
pub fn generate(
    path: &Path,
    sampling: &Sampling,
    with: With<'_>,
    count: Option<usize>,
    out: &Path,
) -> Result<Generated> {
    check_ending(out)?;
    let sampling = Sampling { count: count.unwrap_or(sampling.count), ..sampling.clone() };
    let mut rows = draw(path, &sampling, with, count)?;
    let (mut nll, mut log_rk) = (None, None);
    if let Some(reference) = &rows.reference {
        nll = reference.nll(&rows.values)?.map(|nll| mean(&nll));
        log_rk = Some(reference.log_rk(&rows.values)?);
    }
    let picture = out.with_extension("png");
    let cloud = draw_cloud(&rows, &picture)?;
    if let Some(standardise) = &rows.standardise {
        standardise.invert(&mut rows.values);
    }
    if let Some(original) = &rows.original {
        original.paste(&mut rows.values);
    }
    let figure = (cloud || draw_images(&rows, &picture)?).then_some(picture);
    write_rows(out, "features", &rows.values, rows.width)?;
    let (what, width, out) = (rows.what, rows.width, out.to_owned());
    let (count, cost) = (rows.values.len() / width, rows.cost);
    let (evaluations, rejected) = (cost.map(|cost| cost.evaluations), cost.map(|cost| cost.rejected));
    Ok(Generated { what, count, width, out, figure, nll, log_rk, evaluations, rejected })
}

fn draw(path: &Path, sampling: &Sampling, with: With<'_>, count: Option<usize>) -> Result<Rows> {
    let open = |device: &Device| -> Result<Rows> {
        let weak = with.weak.map(|weak| open_prior(device, weak, true)).transpose()?;
        samples(open_prior(device, path, true)?, weak, sampling, (with.beside, count))
    };
    if path.is_file() {
        let device = Device::open("auto", CpuOptions::default())?;
        return device.scope(|| open(&device));
    }
    let run = Restored::open(path)?;
    let device = run.device()?;
    if run.config.stage == Stage::Align && (with.weak.is_some() || with.beside.is_some()) {
        let only = if with.weak.is_some() { "a weaker network guides" } else { "a condition is shown to" };
        return Err(Error::Usage(format!("{} is no run of `pretrain`: {only} a prior only", path.display())));
    }
    device.scope(|| match (run.config.stage, run.config.align.target) {
        (Stage::Pretrain, _) => open(&device),
        (Stage::Align, Target::Latents) => latents(&run, &device, count),
        (Stage::Align, Target::Autoencoder) => match run.config.dtype {
            DType::F32 => decoded::<f32>(&run, &device, sampling),
            DType::Bf16 => decoded::<bf16>(&run, &device, sampling),
            DType::F16 => decoded::<f16>(&run, &device, sampling),
        },
    })
}

fn samples(
    prior: Prior<f32>,
    weak: Option<Prior<f32>>,
    sampling: &Sampling,
    (beside, count): (Option<&Beside>, Option<usize>),
) -> Result<Rows> {
    let weak = weak.as_ref().map(|weak| (&weak.net, &weak.params));
    let (mut sampling, mut original) = (sampling.clone(), None);
    if let Some(beside) = beside {
        let (shown, images) = beside.show(&prior.net, prior.standardise.as_ref(), count)?;
        sampling.count = shown.count;
        (sampling.beside, original) = (Some(Arc::new(shown)), images);
    }
    let (values, cost) = draw_samples((&prior.net, &prior.params), weak, &sampling)?;
    let width = prior.net.data_width();
    // Samples are as good without the data that they could be compared with, or where those have a condition behind them.
    let open = |data| Reference::open(data, prior.standardise.as_ref(), sampling.seed).ok();
    let reference = prior.data.as_ref().and_then(open).filter(|reference| reference.width() == width);
    let images = images_of(&prior.net, &sampling);
    let (standardise, cost) = (prior.standardise.map(|all| all.first(width)), Some(cost));
    Ok(Rows { what: "samples", values, width, standardise, reference, images, original, cost })
}

/// Describes the samples of a DiT whose rows are grey images or have the three channels of colours.
fn images_of(net: &VelocityNet, sampling: &Sampling) -> Option<Images> {
    let VelocityConfig::Dit { dit } = net.config() else { return None };
    let DitInput::Image { channels: channels @ (1 | 3), height, width, .. } = dit.input else { return None };
    let known = sampling.beside.as_deref().and_then(|shown| shown.classes.as_deref());
    let own = |i: usize| known.map_or(i % dit.classes.max(1), |classes| classes[i]);
    let class = |i: usize| sampling.class.unwrap_or_else(|| own(i)) as u32;
    let labels = (dit.classes > 0).then(|| (0..sampling.count).map(class).collect());
    Some(Images { shape: [channels, height, width], labels })
}

fn latents(run: &Restored, device: &Device, count: Option<usize>) -> Result<Rows> {
    let (task, engine) = run.latents::<f32>(device)?;
    let y = task.latents(&engine.optimizer.params)?;
    let width = y.rows_cols().1;
    let mut values = y.to_f32_vec()?;
    values.truncate(count.unwrap_or(usize::MAX).saturating_mul(width));
    let reference = task.alignment.reference;
    Ok(Rows {
        what: "latents",
        values,
        width,
        standardise: None,
        reference,
        images: None,
        original: None,
        cost: None,
    })
}

fn decoded<X: FloatX>(run: &Restored, device: &Device, sampling: &Sampling) -> Result<Rows> {
    let (mut task, engine) = run.autoencoder::<X>(device)?;
    if task.trained.is_projected() {
        return Err(Error::Usage(format!(
            "{} has a projection between latents and prior (align.projection): samples of the prior are no latents that the decoder knows",
            run.folder().display()
        )));
    }
    task.follow(&engine.optimizer.averaged()?)?;
    let prior = &task.alignment.prior;
    let per_sample = task.net.config().latents() / prior.net.data_width();
    let sampling = Sampling { count: sampling.count * per_sample, ..sampling.clone() };
    let (latents, cost) = draw_samples((&prior.net, &prior.params), None, &sampling)?;
    let values = task.decode(&engine.optimizer.averaged()?, &latents)?;
    let images = image_shape(task.features.source());
    let images = images.map(|[height, width]| Images { shape: [1, height, width], labels: None });
    let width = task.features.width();
    let standardise = task.features.standardise;
    Ok(Rows {
        what: "decoded",
        values,
        width,
        standardise,
        reference: None,
        images,
        original: None,
        cost: Some(cost),
    })
}

/// Points of a picture: a cloud of more is a blot.
const CLOUD: usize = 2000;

fn draw_cloud(rows: &Rows, path: &Path) -> Result<bool> {
    if rows.width != 2 {
        return Ok(false);
    }
    let first = |rows: &[f32]| points(&rows[..rows.len().min(2 * CLOUD)]);
    let own = first(&rows.values);
    let data = rows.reference.as_ref().map(|reference| first(reference.rows()));
    let mut groups = Vec::new();
    groups.extend(data.as_ref().map(|points| Group { label: "data", points }));
    groups.push(Group { label: rows.what, points: &own });
    scatter_2d(path, "", &groups, Layout::SideBySide).map(|()| true)
}

/// Images of a grid without classes, and columns of any grid.
const GRID: (usize, usize) = (144, 12);

/// Returns the values that are black and white: all but the outermost hundredth at either end, which few pixels decide.
fn range(values: &[f32]) -> (f32, f32) {
    let mut sorted: Vec<f32> = values.iter().copied().filter(|x| x.is_finite()).collect();
    sorted.sort_unstable_by(f32::total_cmp);
    let at = |share: usize| sorted.get(sorted.len() * share / 100).copied().unwrap_or_default();
    (at(1), at(99).max(at(1) + 1e-3))
}

fn draw_images(rows: &Rows, path: &Path) -> Result<bool> {
    let Some(Images { shape, labels }) = &rows.images else { return Ok(false) };
    let [channels, height, width] = *shape;
    let range = range(&rows.values);
    if let Some(original) = &rows.original {
        return draw_filled(rows, original, *shape, range, path).map(|()| true);
    }
    if let Some(labels) = labels {
        let names = rows.reference.as_ref().map_or(&[][..], Reference::class_names);
        let (images, columns) = (&rows.values[..], GRID.1);
        let figure = ClassGrid { title: "", images, shape: *shape, labels, names, columns, range };
        return class_grid(path, &figure).map(|()| true);
    }
    let images: Vec<&[f32]> = rows.values.chunks_exact(rows.width).take(GRID.0).collect();
    let (images, columns, captions) = (&images[..], GRID.1, &[][..]);
    let figure = ImageGrid { title: "", images, channels, width, height, columns, captions, range };
    image_grid(path, &figure).map(|()| true)
}

/// Blocks of three rows: what is known, filled, and as it was.
fn draw_filled(
    rows: &Rows,
    original: &Original,
    [channels, height, width]: [usize; 3],
    range: (f32, f32),
    path: &Path,
) -> Result<()> {
    let known = original.known();
    let (each, columns) = (channels * height * width, GRID.1);
    let (mut images, mut captions): (Vec<&[f32]>, _) = (Vec::new(), Vec::new());
    for first in (0..(rows.values.len() / each).min(GRID.0 / 3)).step_by(columns) {
        for (caption, of) in [("known", &known), ("filled", &rows.values), ("data", &original.rows)] {
            let row = of[first * each..].chunks_exact(each).map(Some).chain(std::iter::repeat(None));
            images.extend(row.take(columns).map(Option::unwrap_or_default));
            captions.push(caption);
        }
    }
    let (images, captions) = (&images[..], &captions[..]);
    image_grid(path, &ImageGrid { title: "", images, channels, width, height, columns, captions, range })
}

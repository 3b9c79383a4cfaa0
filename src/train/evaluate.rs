//! The metrics of a run, from its newest checkpoint: what `flowprior eval` prints.
//!
//! Everything is drawn anew from one seed, so the numbers repeat and no training step has seen them.

use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use serde::Serialize;

use crate::error::Result;
use crate::float::{DType, FloatX};
use crate::flow::{Estimate, Objective};
use crate::metrics::{self, Comparison, MOST_DECOMPOSED, Search, W2Bound};
use crate::nn::{Conditioning, Params};
use crate::train::align::{AutoencoderTask, Passed};
use crate::train::config::{Reconstruction, Stage, Target};
use crate::train::pretrain::Pretrain;
use crate::train::prior::Prior;
use crate::train::reference::{Reference, mean, standard_error};
use crate::train::restore::Restored;
use crate::train::sampling::{Sampling, points, sample_rows};
use crate::train::setup;
use crate::train::toy_map::{TRUNCATION, ToyMap};
use crate::train::w2;

/// What an evaluation draws.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides all draws.
    pub seed: u64,
    /// Draws of (t, noise) of the landscapes, common to all points of the grid.
    pub draws: usize,
    /// Largest t of the likelihood's landscape.
    pub truncation: f64,
    /// Samples of a prior.
    pub samples: usize,
    /// Batches (stage 2: draws for all latents) of a loss, at most; fewer where they are precise enough.
    pub most: u64,
}

impl Default for Options {
    /// 128 draws: more do not raise the correlation of a trained prior's landscape any further.
    fn default() -> Self {
        Self { seed: 0, draws: 128, truncation: TRUNCATION, samples: 4096, most: 1024 }
    }
}

/// How points spread over the modes of a toy that is a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ModeOccupancy {
    /// Modes.
    pub modes: usize,
    /// Points at the least occupied mode.
    pub min: usize,
    /// Points at the most occupied mode.
    pub max: usize,
    /// Share of the points within three standard deviations of a mode.
    pub within_three_sigma: f64,
}

/// The metrics of a run. What does not apply to it is `None`, and null in JSON. "Points" are samples of a prior, free
/// latents, or the latents of an autoencoder's data, in the space of the prior; "data" are what the prior was trained on.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Evaluation {
    /// `pretrain` or `align`.
    pub stage: &'static str,
    /// What was trained: `prior`, `latents` or `autoencoder`.
    pub target: &'static str,
    /// The data that the run names.
    pub source: String,
    /// Finished steps.
    pub step: u64,
    /// The seed of all draws.
    pub seed: u64,
    /// The loss that the run minimises, alignment for stage 2: averaged (EMA) weights, fresh data and draws.
    pub loss: f64,
    /// Its standard error: below 0.3 % of it, unless that takes more than [`Options::most`] batches.
    pub loss_stderr: f64,
    /// −ln p in nats of a row under the prior, which the loss says with `flow.control_variate`: of fresh data (`prior`), of the latents.
    pub nll_prior: Option<f64>,
    /// The same with the weights of the last step (`prior`).
    pub loss_weights: Option<f64>,
    /// The smallest loss that any network can reach, where it is known (`prior` on a toy that is a mixture).
    pub loss_floor: Option<f64>,
    /// Mean squared error of fresh data (`autoencoder`).
    pub reconstruction: Option<f64>,
    /// Peak signal-to-noise ratio of fresh data in their own units, the peak being their range (`autoencoder`).
    pub psnr: Option<f64>,
    /// The bound on the W₂ distance of data and (decoded) samples, as the networks see them: estimates of its terms.
    pub w2_bound: Option<W2Bound>,
    /// Mean −ln p of the points under the toy's density in normalised units: exact for mixtures, else by kernels.
    pub nll: Option<f64>,
    /// Its standard error.
    pub nll_stderr: Option<f64>,
    /// Mean −ln p of draws of the toy itself: the entropy.
    pub nll_data: Option<f64>,
    /// Spearman's correlation of the loss landscape, uniform weight, with the true −ln p on the 50 × 50 grid (`prior`).
    pub spearman_uniform: Option<f64>,
    /// The same for the weight t/(1 − t) (`prior`).
    pub spearman_likelihood: Option<f64>,
    /// Points at the modes of a mixture.
    pub occupancy: Option<ModeOccupancy>,
    /// Root mean square distance of a point to its mode, in standard deviations: 1 for data, below 1 after collapse.
    pub spread: Option<f64>,
    /// The points against the data.
    #[serde(flatten)]
    pub set: Comparison,
}

/// Evaluates a run folder, or one checkpoint of it.
///
/// # Errors
/// A path that is no run; a damaged checkpoint; data or a prior that are not there any more.
pub fn evaluate(path: &Path, options: &Options) -> Result<Evaluation> {
    let run = Restored::open(path)?;
    match run.config.dtype {
        DType::F32 => evaluate_in::<f32>(&run, options),
        DType::Bf16 => evaluate_in::<bf16>(&run, options),
        DType::F16 => evaluate_in::<f16>(&run, options),
    }
}

fn evaluate_in<X: FloatX>(run: &Restored, options: &Options) -> Result<Evaluation> {
    let mut found = Evaluation {
        stage: run.config.stage.name(),
        source: setup::source_name(&run.config),
        step: run.loaded.manifest().step,
        seed: options.seed,
        ..Default::default()
    };
    let device = run.device()?;
    device.scope(|| match (run.config.stage, run.config.align.target) {
        (Stage::Pretrain, _) => prior::<X>(run, options, &mut found),
        (Stage::Align, Target::Latents) => latents::<X>(run, options, &mut found),
        (Stage::Align, Target::Autoencoder) => autoencoder::<X>(run, options, &mut found),
    })?;
    Ok(found)
}

fn prior<X: FloatX>(run: &Restored, options: &Options, found: &mut Evaluation) -> Result<()> {
    found.target = "prior";
    let (mut task, engine) = run.pretrain::<X>(&run.device()?)?;
    let averaged = engine.optimizer.averaged()?;
    let losses = precise(options.most, |batches| task.fresh_losses(&averaged, options.seed, batches))?;
    let batches = 0..losses.len() as u64;
    let last = task.fresh_losses(&engine.optimizer.params, options.seed, batches)?;
    found.set_loss(&losses, &task.objective, task.net.data_width());
    found.loss_weights = Some(mean(&last));
    let known = task.features.toy().and_then(|toy| toy.loss_floor());
    found.loss_floor = known.filter(|_| w2::is_plain(&task.objective) && !run.config.flow.norm_target);
    if task.reference()?.is_none() {
        return Ok(());
    }
    let sampling = Sampling { count: options.samples, seed: options.seed, ..Default::default() };
    let samples = sample_rows(&task.net, &averaged, &sampling)?;
    let Some(reference) = task.reference()? else { return Ok(()) };
    found.compare(&samples, reference, Search::of(averaged.flat().device()))?;
    found.w2_bound = prior_bound(&mut task, &averaged, run, options, found.loss)?;
    let Some(reference) = task.reference()? else { return Ok(()) };
    let data = &reference.rows()[..reference.rows().len().min(EXTENT_ROWS * 2)];
    let Some(map) = ToyMap::new(reference, &[&points(data)])? else { return Ok(()) };
    let frozen = Prior::freeze(task.net.clone(), averaged, None, run.loaded.path().to_owned())?;
    let velocity = frozen.velocity(frozen.net.default_form());
    let correlation = |estimate| {
        let landscape = map.landscape(velocity, estimate, options.draws, options.truncation, options.seed)?;
        Ok::<_, crate::Error>(Some(map.spearman(&landscape)))
    };
    found.spearman_uniform = correlation(Estimate::UniformLoss)?;
    found.spearman_likelihood = correlation(Estimate::NegativeLogLikelihood)?;
    Ok(())
}

/// The bound on samples of a prior that nothing is told: the loss, less its floor where that is known, is the velocity's error.
fn prior_bound<X: FloatX>(
    task: &mut Pretrain,
    params: &Params<X>,
    run: &Restored,
    options: &Options,
    loss: f64,
) -> Result<Option<W2Bound>> {
    let rows = task.features.fresh(options.seed, 0, w2::POINTS)?;
    let plain = !run.config.flow.norm_target && !run.config.flow.unit_norm;
    if !plain || task.net.conditioning() != Conditioning::Nothing || !all_finite(&rows) {
        return Ok(None);
    }
    let velocity = w2::velocity_lipschitz(&task.net, params, &rows, options.seed)?;
    let loss = match w2::is_plain(&task.objective) {
        true => loss,
        false => {
            task.objective = w2::plain(&task.objective);
            mean(&precise(options.most, |batches| task.fresh_losses(params, options.seed, batches))?)
        }
    };
    let floor = task.features.toy().and_then(|toy| toy.loss_floor()).unwrap_or(0.0);
    let error = (loss - floor).max(0.0) * task.net.data_width() as f64;
    Ok(metrics::w2_bound(None, velocity, error).ok())
}

/// Data that the range of a heat map covers: the reference's number.
pub const EXTENT_ROWS: usize = 5000;

fn latents<X: FloatX>(run: &Restored, options: &Options, found: &mut Evaluation) -> Result<()> {
    found.target = "latents";
    let (task, engine) = run.latents::<X>(&run.device()?)?;
    let y = task.latents(&engine.optimizer.params)?;
    let losses = precise(options.most, |draws| task.alignment.fresh_losses(&y, options.seed, draws))?;
    found.set_loss(&losses, &task.alignment.objective, y.rows_cols().1);
    let search = Search::of(y.device());
    let reference = task.alignment.reference.as_ref();
    reference.map_or(Ok(()), |reference| found.compare(&y.on_host()?, reference, search))
}

fn autoencoder<X: FloatX>(run: &Restored, options: &Options, found: &mut Evaluation) -> Result<()> {
    found.target = "autoencoder";
    let (mut task, engine) = run.autoencoder::<X>(&run.device()?)?;
    let averaged = engine.optimizer.averaged()?;
    task.follow(&averaged)?;
    let passed = task.fresh(&averaged, options.seed, BATCHES)?;
    found.reconstruction = Some(mean(&passed.reconstruction));
    let losses = precise(options.most, |rounds| {
        let rounds = rounds.start / BATCHES..rounds.end / BATCHES;
        task.alignment_losses(&passed.latents, options.seed, rounds)
    })?;
    found.set_loss(&losses, &task.alignment.objective, task.alignment.prior.net.data_width());
    found.psnr = decibels(&passed, &task);
    if let Some(reference) = &task.alignment.reference {
        found.compare(&passed.latents, reference, Search::of(averaged.flat().device()))?;
    }
    // The bound is of squared distances, and of one space that prior and decoder share.
    let (flow, align) = (&run.config.flow, &run.config.align);
    let squared = align.reconstruction == Reconstruction::L2;
    let shared = !flow.norm_target && !flow.unit_norm && !align.projection;
    if squared && shared && all_finite(&passed.latents) {
        found.w2_bound = bound(&mut task, &averaged, &passed, options, found.reconstruction)?;
    }
    Ok(())
}

/// The PSNR in the units of the data; `None` where it is none or infinite.
fn decibels<X: FloatX>(passed: &Passed, task: &AutoencoderTask<X>) -> Option<f64> {
    let (mut data, mut reconstructed) = (passed.data.clone(), passed.reconstructed.clone());
    if let Some(standardise) = &task.features.standardise {
        standardise.invert(&mut data);
        standardise.invert(&mut reconstructed);
    }
    let (least, most) = data.iter().fold((f32::MAX, f32::MIN), |(a, b), x| (a.min(*x), b.max(*x)));
    let peak = most as f64 - least as f64;
    metrics::psnr(&reconstructed, &data, task.features.width(), peak).ok().filter(|x| x.is_finite())
}

/// The bound on decoded samples: a sample is all tokens of a row, each of which adds its error.
fn bound<X: FloatX>(
    task: &mut AutoencoderTask<X>,
    params: &Params<X>,
    passed: &Passed,
    options: &Options,
    reconstruction: Option<f64>,
) -> Result<Option<W2Bound>> {
    let prior = &task.alignment.prior;
    let velocity = w2::velocity_lipschitz(&prior.net, &prior.params, &passed.latents, options.seed)?;
    let decoder = w2::decoder_lipschitz(task, params, &passed.decoded, options.seed)?;
    task.alignment.objective = w2::plain(&task.alignment.objective);
    let losses = precise(options.most, |rounds| {
        let rounds = rounds.start / BATCHES..rounds.end / BATCHES;
        task.alignment_losses(&passed.latents, options.seed, rounds)
    })?;
    let error = mean(&losses) * task.net.config().latents() as f64;
    let reconstruction = reconstruction.unwrap_or(0.0) * task.features.width() as f64;
    Ok(metrics::w2_bound(Some((reconstruction, decoder)), velocity, error).ok())
}

fn all_finite(values: &[f32]) -> bool {
    values.iter().all(|x| x.is_finite())
}

/// Batches that pass through an autoencoder; a power of two, as the numbers of draws are.
const BATCHES: u64 = 8;
/// The first batches (or draws) of a loss.
const FIRST: u64 = 16;
/// The standard error that is aimed at, as a share of the mean.
const PRECISION: f64 = 0.0025;

/// Doubles the number of draws until the standard error is small enough.
fn precise(most: u64, losses: impl Fn(Range<u64>) -> Result<Vec<f64>>) -> Result<Vec<f64>> {
    let mut count = FIRST;
    let mut all = losses(0..count)?;
    while count < most && standard_error(&all) > PRECISION * mean(&all).abs() {
        all.extend(losses(count..2 * count)?);
        count *= 2;
    }
    Ok(all)
}

impl Evaluation {
    fn set_loss(&mut self, losses: &[f64], objective: &Objective, width: usize) {
        (self.loss, self.loss_stderr) = (mean(losses), standard_error(losses));
        self.nll_prior = objective.negative_log_likelihood(self.loss, width);
    }

    /// Measures points (N, D) against the data.
    fn compare(&mut self, points: &[f32], reference: &Reference, search: Search<'_>) -> Result<()> {
        if !all_finite(points) || points.is_empty() {
            return Ok(());
        }
        let (d, rows) = (reference.width(), reference.rows());
        if let Some(nll) = reference.nll(points)? {
            (self.nll, self.nll_stderr) = (Some(mean(&nll)), Some(standard_error(&nll)));
            let data = reference.nll(&rows[..rows.len().min(DATA_POINTS * d)])?;
            self.nll_data = data.map(|nll| mean(&nll));
        }
        // Data with non-finite rows train (their steps are skipped), but have no distances.
        if all_finite(rows) {
            self.set = metrics::compare_by(search, points, rows, d, MOST_DECOMPOSED, self.seed)?;
        }
        if let Some(mixture) = reference.toy().and_then(|toy| toy.mixture()) {
            let modes: Vec<f32> = mixture.means.iter().flatten().map(|x| *x as f32).collect();
            let o = metrics::mode_occupancy(points, &modes, d, mixture.std)?;
            let (min, max, within_three_sigma) = (o.min, o.max, o.within_three_sigma);
            let modes = mixture.means.len();
            self.occupancy = Some(ModeOccupancy { modes, min, max, within_three_sigma });
            self.spread = Some(o.spread);
        }
        Ok(())
    }
}

/// Draws of a toy that its entropy is measured on.
const DATA_POINTS: usize = 10_000;

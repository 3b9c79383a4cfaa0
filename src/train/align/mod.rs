//! Stage 2: moves latents, free ones or an autoencoder's, to where the frozen prior's alignment loss is small.
//!
//! ```text
//! free latents   L(y) = alignment(y) (+ matching(y)) (+ std_weight·(std(y) − 1)²)
//! autoencoder    L = reconstruction + λ_step·a·[alignment(z) (+ matching(z))] (+ std_weight·(std(y) − 1)²),  z = P·y, y = encoder(x)
//! ```
//! What matches distributions, and not latents one by one: [`matching`].
//! λ_step is 0 before `flow_start`, then warms up; a is 1, or with `adaptive` the ratio of gradient norms
//! ‖∂rec/∂W‖/(‖∂alignment/∂W‖ + 1e-4) at one weight W of the encoder, its last if none is named, clamped to [0, 1e4] and held
//! constant. P is the identity, or with `projection` a learned matrix. With `joint` the prior is not frozen: the gradient of
//! alignment, without λ, also moves its parameters, which is stage 1 on the latents of the moment.

mod autoencoder;
mod latents;
pub mod matching;
mod trained;

use std::ops::Range;

pub use autoencoder::{AutoencoderTask, Passed};
pub use latents::LatentTask;
use matching::Matching;
pub use trained::Trained;

use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::flow::{Batch, Draws, LatentGradient, Objective, Outcome, Want};
use crate::nn::{Condition, Conditioning, Form, Grads, Spatial};
use crate::ops::embedding::Labels;
use crate::ops::normalize::{
    BatchStats, batch_stats, standardize_backward, standardize_forward, unit_norm_backward, unit_norm_forward,
};
use crate::tensor::Tensor;
use crate::train::config::{Config, Gradient, Target};
use crate::train::guard::Guard;
use crate::train::prior::Prior;
use crate::train::reference::{Reference, mean};
use crate::train::setup;
use crate::train::task::{Meter, StepAt};

/// The name of the one parameter of free latents.
pub const LATENTS: &str = "latents";

/// Rows up to which the CPU keeps a frozen prior's weights packed, which takes the memory of two more copies of them: packed in each
/// product, they took 5 % of a step of 2,048 rows in f32 and 3 % in bf16.
const PACKED_ROWS: usize = 4096;

/// Says whether the CPU packs the weights of a frozen prior once, for products of so many rows.
pub(crate) fn keeps_panels(rows: usize) -> bool {
    rows <= PACKED_ROWS
}

/// The alignment loss of a batch of latents under a frozen prior.
#[derive(Debug)]
pub struct Alignment<X: FloatX> {
    /// The frozen prior.
    pub prior: Prior<X>,
    /// The objective.
    pub objective: Objective,
    /// What latents are measured against; `None` where the prior's training data are not known or targets are
    /// normalised batch by batch.
    pub reference: Option<Reference>,
    /// What there is to tell about it.
    pub notes: Vec<String>,
    /// What is added to the loss of the whole batch, if anything is.
    pub matching: Option<Matching>,
    gradient: LatentGradient,
    norm_target: bool,
    unit_norm: bool,
    seed: u64,
    /// "No class" for each row of a micro-batch, under a prior with classes.
    null: Option<Labels>,
}

impl<X: FloatX> Alignment<X> {
    /// Prepares the loss for `samples` rows of latents.
    ///
    /// # Errors
    /// Sizes that do not fit together; a conditional prior.
    pub fn new(config: &Config, mut prior: Prior<X>, samples: usize) -> Result<Self> {
        let refused =
            || Err(Error::Usage("stage 2 aligns to unconditional priors; this one takes a condition".into()));
        if prior.net.spatial() != Spatial::Nothing {
            return refused();
        }
        let null = match prior.net.conditioning() {
            Conditioning::Nothing => None,
            // A network that also knows "no class" is an unconditional one, too.
            Conditioning::Classes { classes, null: true } => {
                let micro = samples / config.train.micro_batches.max(1);
                Some(Labels::none(prior.params.flat().device(), micro, classes)?)
            }
            _ => return refused(),
        };
        let device = prior.params.flat().device().clone();
        let mut objective = setup::objective(config, &prior.net, samples, &device)?;
        objective.label_dropout = 0.0;
        if config.align.joint {
            // Tables are made once, and nodes watched, for networks that stay or train alone.
            (objective.form, prior.tables) = (Form::Direct, None);
        }
        let (form, note) = Guard::check(&prior.net, &prior.params, objective.form)?;
        objective.form = form;
        if let Form::Nodes(r) = form {
            prior.tables = prior.net.node_tables(&prior.params, r)?;
        }
        let rows = samples * config.flow.flow_mul / config.train.micro_batches.max(1);
        if !config.align.joint && keeps_panels(rows * prior.net.tokens()) {
            prior.net.pack(&prior.params)?;
        }
        let gradient = match config.align.gradient {
            Gradient::Full => LatentGradient::Full,
            Gradient::Detached => LatentGradient::Detached,
            Gradient::Centred => LatentGradient::Centred,
        };
        let (norm_target, unit_norm) = (config.flow.norm_target, config.flow.unit_norm);
        let (reference, mut notes) = match reference(config, &prior) {
            Ok(reference) => (reference, Vec::new()),
            // Training does not need it, so it goes on without.
            Err(e) => (None, vec![format!("log_rk is not measured, the prior's data are out of reach: {e}")]),
        };
        let (seed, missing) = (config.seed, notes.first().map(String::as_str));
        let matching = Matching::new(config, &prior, reference.as_ref(), missing, samples)?;
        notes.extend(note);
        Ok(Self {
            prior,
            objective,
            reference,
            notes,
            matching,
            gradient,
            norm_target,
            unit_norm,
            seed,
            null,
        })
    }

    /// Returns the row losses of the latents `y: (B, D)`, numbers `first ..` of the global batch, with their divisor, and the gradient
    /// times the loss scale. `stats` are those of the global batch, where targets are normalised. A prior that is trained too has its
    /// gradients added to `own`.
    ///
    /// # Errors
    /// Another width than the prior's.
    pub fn gradients(
        &self,
        y: &Tensor<f32>,
        first: u64,
        stats: Option<BatchStats>,
        at: StepAt,
        own: Option<&mut Grads>,
    ) -> Result<(Outcome, Tensor<f32>)> {
        let standard = stats.map(|stats| standardize_forward(y, stats)).transpose()?;
        let before_unit = standard.as_ref().unwrap_or(y);
        let unit = if self.unit_norm { Some(unit_norm_forward(before_unit)?) } else { None };
        let cond = Condition { labels: self.null.as_ref(), ..Condition::default() };
        let batch = Batch { data: unit.as_ref().unwrap_or(before_unit), cond, first };
        let velocity = self.prior.velocity(self.objective.form);
        let want = own.map_or(Want::Latents(self.gradient), Want::Joint);
        let mut outcome =
            self.objective.evaluate(velocity, batch, at.draws(self.seed), at.loss_scale, want)?;
        let dy = outcome.dy.take().ok_or_else(|| Error::argument("alignment", "dy", "a gradient", "none"))?;
        let dy = if self.unit_norm { unit_norm_backward(&dy, before_unit)? } else { dy };
        let dy = match stats {
            Some(stats) => standardize_backward(&dy, stats)?,
            None => dy,
        };
        Ok((outcome, dy))
    }

    /// Adds `factor` times the terms that match distributions, if there are any: their gradients, times the loss scale, to `dy`, the
    /// gradient of the latents `y` of the whole batch of `step`, and their values to the meter.
    ///
    /// # Errors
    /// See [`Matching::add`].
    pub fn match_distribution(
        &self,
        latents: (&mut Tensor<f32>, &Tensor<f32>),
        factor: f64,
        at: (u64, StepAt),
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        let Some(matching) = &self.matching else { return Ok(()) };
        matching.add(latents, (&self.prior, self.objective.form), factor, at, meter)
    }

    /// Returns what a captured step holds fast of those terms.
    fn fixed(&self, step: u64) -> String {
        self.matching.as_ref().map_or_else(String::new, |matching| matching.fixed(step))
    }

    /// Returns the losses of the latents `y: (B, D)`, B the samples of the objective, under fresh draws of noise and
    /// time: one loss for each of `draws`, the same for every call with one seed.
    ///
    /// # Errors
    /// Another shape.
    pub fn fresh_losses(&self, y: &Tensor<f32>, seed: u64, draws: Range<u64>) -> Result<Vec<f64>> {
        let standard = self.stats(y)?.map(|stats| standardize_forward(y, stats)).transpose()?;
        let y = standard.as_ref().unwrap_or(y);
        let unit = if self.unit_norm { Some(unit_norm_forward(y)?) } else { None };
        let device = y.device();
        let null = self.null.as_ref().map(|null| Labels::none(device, y.rows_cols().0, null.classes()));
        let null = null.transpose()?;
        let cond = Condition { labels: null.as_ref(), ..Condition::default() };
        let batch = Batch { data: unit.as_ref().unwrap_or(y), cond, first: 0 };
        let velocity = self.prior.velocity(self.objective.form);
        let loss = |draw| {
            let draws = Draws::evaluation(seed, draw);
            self.objective.evaluate(velocity, batch, draws, 1.0, Want::Loss)?.loss()
        };
        draws.map(loss).collect()
    }

    /// Says what fresh losses say, for the log of a run: `alignment`, their mean, and `nll_prior` where that is a log-likelihood.
    fn of_losses(&self, losses: &[f64]) -> Vec<(&'static str, f64)> {
        let loss = mean(losses);
        let nll = self.objective.negative_log_likelihood(loss, self.prior.net.data_width());
        [Some(("alignment", loss)), nll.map(|nll| ("nll_prior", nll))].into_iter().flatten().collect()
    }

    /// Measures latents for the log of a run: see [`Reference::measure`].
    ///
    /// # Errors
    /// Another width.
    fn measure(&self, latents: &[f32]) -> Result<Vec<(&'static str, f64)>> {
        self.reference.as_ref().map_or(Ok(Vec::new()), |reference| reference.measure(latents))
    }

    /// Names the option for which a step has to wait for numbers from the device.
    fn waits(&self) -> Option<&'static str> {
        self.norm_target.then_some("flow.norm_target")
    }

    fn stats(&self, y: &Tensor<f32>) -> Result<Option<BatchStats>> {
        if self.norm_target { Ok(Some(batch_stats(y)?)) } else { Ok(None) }
    }
}

/// Opens the data that the prior was trained on. A prior that does not name them is taken to be trained on those that
/// the run of free latents names.
fn reference<X: FloatX>(config: &Config, prior: &Prior<X>) -> Result<Option<Reference>> {
    if config.flow.norm_target {
        return Ok(None);
    }
    let own = config.align.target == Target::Latents && config.data.source().is_ok();
    let data = prior.data.as_ref().or(own.then_some(&config.data));
    let Some(data) = data else { return Ok(None) };
    let reference = Reference::open(data, prior.standardise.as_ref(), config.seed)?;
    match reference.width() == prior.net.data_width() {
        true => Ok(Some(reference)),
        false => Err(Error::data(&prior.source, "data", prior.net.data_width(), reference.width())),
    }
}

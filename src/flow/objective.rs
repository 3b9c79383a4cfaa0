//! The flow-matching objective, one implementation for both stages.
//!
//! ```text
//! stage 1:  L(θ) = 1/M Σ_rows w(t)·‖v_θ(x_t, t) − (data − noise)‖²            gradient to the parameters
//! stage 2:  L(y) = the same with data = y and θ frozen                          gradient to the latents:
//!           dL/dy = 2/M Σ_replicas w(t)·(t·Jᵀr − r)      full
//!           dL/dy = 2/M Σ_replicas w(t)·(−r)             detached: x_t is a constant to the network (FEATURES 1.3)
//!           dL/dy = 2/M Σ_replicas w(t)·(a·noise − r)    centred: the same in expectation, with less noise
//! ```
//! Stage 2 may report ‖r‖² less a control variate that does not depend on y ([`crate::ops::flow_loss`]): gradients are the same, and with
//! w = t/(1−t) the loss is −log p of the latents, up to a known constant ([`Objective::negative_log_likelihood`]).
//!
//! The paper's loss is the uniform weight. With w = t/(1−t) the loss of latents is their negative log-likelihood under
//! the target distribution, up to a constant; with the uniform weight it is not, and is no bound either.

use std::f64::consts::{E, TAU};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::nn::Keep;
use crate::nn::modulation_path::{Form, NodeTables};
use crate::nn::params::{Grads, Params};
use crate::nn::velocity::{Condition, Input, VelocityNet, tiled};
use crate::ops::embedding::LabelDrop;
use crate::ops::flow_loss::{Scale, Target, Weight, latent_gradient};
use crate::ops::flow_path::{Rows, TimeDensity, TimeSampler, draw_times, interpolate};
use crate::rng::{Draw, Stream};
use crate::tensor::Tensor;

/// How times are drawn, apart from sizes.
#[derive(Clone, Debug)]
pub enum Times {
    /// Independent and uniform.
    Uniform,
    /// One in each of N equal strata.
    Stratified,
    /// σ(mean + std·normal).
    LogitNormal {
        /// Mean of the logit.
        mean: f32,
        /// Standard deviation of the logit.
        std: f32,
    },
    /// By the density of the weight, stratified: rows then have its mean as a weight, all the same.
    Importance(Arc<TimeDensity>),
}

/// What M, the divisor of the loss, counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Rows times dimensions: the reference's code.
    MeanAll,
    /// Rows: the paper's notation, D times larger.
    SumDimsMeanRows,
}

/// The objective, for batches of one size.
#[derive(Clone, Debug)]
pub struct Objective {
    /// Samples in the global batch.
    pub samples: usize,
    /// Copies of each sample, each with noise and time of its own.
    pub flow_mul: usize,
    /// How times are drawn.
    pub times: Times,
    /// Range that times are mapped to, within [0, 1].
    pub time_range: (f32, f32),
    /// The weight as a function of t.
    pub weight: Weight,
    /// Subtracts the control variate from the loss.
    pub control_variate: bool,
    /// The divisor.
    pub reduction: Reduction,
    /// The form in which modulation is computed.
    pub form: Form,
    /// Probability that a row's label is dropped in training.
    pub label_dropout: f32,
    /// Keeps the input of each block alone and computes the rest again: less memory, more time, the same bits.
    pub recompute: bool,
}

/// A micro-batch: some consecutive samples of the global batch.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a, X: FloatX> {
    /// (B, D): data, or latents.
    pub data: &'a Tensor<f32>,
    /// What the network is told about each sample.
    pub cond: Condition<'a, X>,
    /// Number of the first sample in the global batch.
    pub first: u64,
}

/// The random numbers of one step.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    pub(super) noise: Draw,
    pub(super) time: Draw,
    /// Which labels are dropped; none are in an evaluation.
    labels: Option<Draw>,
    /// Where images that are inpainted have holes.
    pub(crate) masks: Draw,
}

impl Draws {
    /// Returns those of a training step.
    pub fn training(seed: u64, step: u64) -> Self {
        let [noise, time, labels, masks] = [Stream::Noise, Stream::Time, Stream::LabelDrop, Stream::Mask]
            .map(|stream| Draw::new(seed, stream, step));
        Self { noise, time, labels: Some(labels), masks }
    }

    /// Returns the same for kernels that add the number at the device address `counter` to the step; 0 for none.
    pub(crate) fn counted(self, counter: u64) -> Self {
        let counted = |draw: Draw| draw.counted(counter);
        let Self { noise, time, labels, masks } = self;
        let labels = labels.map(counted);
        Self { noise: counted(noise), time: counted(time), labels, masks: counted(masks) }
    }

    /// Returns those of an evaluation: never those of any training step.
    pub fn evaluation(seed: u64, step: u64) -> Self {
        let draw = |step| Draw::new(seed, Stream::Evaluation, step);
        let masks = Draw::new(seed, Stream::EvaluationMask, step);
        Self { noise: draw(2 * step), time: draw(2 * step + 1), labels: None, masks }
    }
}

/// Where the gradient of the latents flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatentGradient {
    /// Through x_t and the target.
    Full,
    /// Through the target alone: a forward pass is enough.
    Detached,
    /// The same in expectation, less a part of the noise ([`crate::ops::flow_loss`]).
    Centred,
}

/// What an evaluation is for.
#[derive(Debug)]
pub enum Want<'g> {
    /// The loss alone.
    Loss,
    /// Stage 1: parameter gradients, accumulated.
    Params(&'g mut Grads),
    /// Stage 2: the gradient of the latents.
    Latents(LatentGradient),
    /// Both at once: the gradient of the latents, and parameter gradients, accumulated.
    Joint(&'g mut Grads),
}

/// The result of one micro-batch.
#[derive(Debug)]
pub struct Outcome {
    /// The loss of each row, weighted.
    pub rows: Tensor<f32>,
    /// What their sum is divided by: this micro-batch's share of the loss of the global batch, without the loss scale.
    pub divisor: f64,
    /// dL/dy: (B, D), for `Want::Latents` and `Want::Joint`, times the loss scale.
    pub dy: Option<Tensor<f32>>,
}

impl Outcome {
    /// Adds the row losses up on the host.
    ///
    /// # Errors
    /// A device that failed.
    pub fn loss(&self) -> Result<f64> {
        Ok(total(&self.rows)? / self.divisor)
    }
}

/// The network that an objective is evaluated on.
#[derive(Debug)]
pub struct Velocity<'a, X: FloatX> {
    /// Layers.
    pub net: &'a VelocityNet,
    /// Parameters.
    pub params: &'a Params<X>,
    /// Modulation tables that stay valid: the network is frozen.
    pub tables: Option<&'a NodeTables>,
}

impl<X: FloatX> Clone for Velocity<'_, X> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<X: FloatX> Copy for Velocity<'_, X> {}

impl Objective {
    /// Returns N, the rows of the global batch.
    pub fn total_rows(&self) -> usize {
        self.samples * self.flow_mul
    }

    /// Returns consecutive rows that share one t.
    pub fn share(&self) -> usize {
        match self.form {
            Form::Groups(g) => (self.total_rows() / g).max(1),
            _ => 1,
        }
    }

    /// Checks sizes against the network, once before a run.
    ///
    /// # Errors
    /// Micro-batches that do not divide the batch, groups that do not divide a micro-batch, a form the network refuses.
    pub fn check(&self, net: &VelocityNet, micro_batches: usize) -> Result<()> {
        if micro_batches == 0 || !self.samples.is_multiple_of(micro_batches) {
            let why = format!(
                "train.micro_batches = {micro_batches} does not divide the batch of {}",
                self.samples
            );
            return Err(Error::Usage(why));
        }
        net.check_form(self.form, self.total_rows())?;
        let (micro, share) = (self.samples / micro_batches, self.share());
        if !micro.is_multiple_of(share) {
            let form = self.form;
            return Err(Error::Usage(format!(
                "modulation `{form}`: its {share} rows of one t do not divide a micro-batch of {micro} samples"
            )));
        }
        Ok(())
    }

    /// Evaluates one micro-batch. Gradients carry `loss_scale`, the loss does not.
    pub fn evaluate<X: FloatX>(
        &self,
        velocity: Velocity<'_, X>,
        batch: Batch<'_, X>,
        draws: Draws,
        loss_scale: impl Into<Scale>,
        want: Want<'_>,
    ) -> Result<Outcome> {
        let Velocity { net, params, .. } = velocity;
        let (samples, d) = batch.data.rows_cols();
        let scale = loss_scale.into().times((2.0 / self.divisor(d)) as f32);
        if let Some(strips) = self.strips(&velocity, &batch, &want) {
            return self.evaluate_in(strips, velocity, batch, draws, scale, want);
        }
        let rows = Rows { first: batch.first, samples, replicas: self.flow_mul, share: self.share() };
        let t = draw_times(batch.data.device(), draws.time, rows, self.sampler(), self.time_range)?;
        let x_t: Tensor<X> = interpolate(batch.data, &t, draws.noise, rows)?;
        let target = Target {
            data: batch.data,
            t: &t,
            noise: draws.noise,
            rows,
            weight: self.row_weight(),
            control_variate: self.control_variate,
            centred: matches!(want, Want::Latents(LatentGradient::Centred)),
        };
        let keep = match &want {
            Want::Loss | Want::Latents(LatentGradient::Detached | LatentGradient::Centred) => Keep::Nothing,
            Want::Params(_) | Want::Joint(_) if self.recompute => Keep::BlockInputs,
            Want::Params(_) | Want::Joint(_) => Keep::All,
            Want::Latents(LatentGradient::Full) => Keep::Inputs,
        };
        let modulations = match velocity.tables {
            Some(tables) => net.modulations_from(tables, &t)?,
            None => {
                let drop = draws.labels.map(|draw| LabelDrop { probability: self.label_dropout, draw });
                net.modulations(params, self.form, &t, rows, batch.cond, drop)?
            }
        };
        let image = batch.cond.image.map(|image| tiled(image, self.flow_mul)).transpose()?;
        let to_head = net.forward_to_head(params, Input { x_t, image }, modulations, keep)?;
        let divisor = self.divisor(d);
        if matches!(want, Want::Loss) {
            return Ok(Outcome { rows: net.loss(params, &to_head, &target)?, divisor, dy: None });
        }
        let (rows_loss, dv) = net.loss_and_gradient(params, &to_head, &target, scale)?;
        let dy = match (want, to_head.into_saved()) {
            (Want::Params(grads), Some(saved)) => {
                net.backward(params, saved, &dv, Some(grads))?;
                None
            }
            (Want::Joint(grads), Some(saved)) => {
                let dx_t = net.backward(params, saved, &dv, Some(grads))?;
                Some(latent_gradient(&dv, Some(&dx_t), &t, rows, 1.0)?)
            }
            (Want::Latents(_), saved) => {
                let dx_t = saved.map(|s| net.backward(params, s, &dv, None)).transpose()?;
                Some(latent_gradient(&dv, dx_t.as_ref(), &t, rows, 1.0)?)
            }
            _ => None,
        };
        Ok(Outcome { rows: rows_loss, divisor, dy })
    }

    pub(super) fn divisor(&self, d: usize) -> f64 {
        match self.reduction {
            Reduction::MeanAll => (self.total_rows() * d) as f64,
            Reduction::SumDimsMeanRows => self.total_rows() as f64,
        }
    }

    pub(super) fn sampler(&self) -> TimeSampler<'_> {
        let (total, samples) = (self.total_rows() / self.share(), self.samples);
        match &self.times {
            Times::Uniform => TimeSampler::Uniform,
            Times::Stratified => TimeSampler::Stratified { total, samples },
            Times::LogitNormal { mean, std } => TimeSampler::LogitNormal { mean: *mean, std: *std },
            Times::Importance(density) => TimeSampler::Density { density, total, samples },
        }
    }

    /// Returns the weight that is left for a row when its time is drawn.
    pub(super) fn row_weight(&self) -> Weight {
        match &self.times {
            Times::Importance(density) => Weight::Constant(density.mean()),
            _ => self.weight.clone(),
        }
    }

    /// Returns the negative log-likelihood in nats of a row of width d that a loss of this objective says; `None` for an objective that
    /// says nothing about it. Times outside the range of the objective, and weights above the clip, are what it lacks.
    pub fn negative_log_likelihood(&self, loss: f64, d: usize) -> Option<f64> {
        let by_likelihood = matches!(self.weight, Weight::Likelihood { .. });
        if !self.control_variate || !by_likelihood || matches!(self.times, Times::LogitNormal { .. }) {
            return None;
        }
        let rows = match self.reduction {
            Reduction::MeanAll => d as f64 * loss,
            Reduction::SumDimsMeanRows => loss,
        };
        let span = self.time_range.1 as f64 - self.time_range.0 as f64;
        Some(0.5 * d as f64 * (TAU * E).ln() + span * rows)
    }
}

/// Adds row losses in order, in f64.
pub(crate) fn total(rows: &Tensor<f32>) -> Result<f64> {
    Ok(rows.on_host()?.iter().map(|x| *x as f64).sum())
}

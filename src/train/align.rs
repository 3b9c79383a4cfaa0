//! Stage 2: moves latents, free ones or an autoencoder's, to where the frozen prior's alignment loss is small.
//!
//! ```text
//! free latents   L(y) = alignment(y) (+ std_weight·(std(y) − 1)²)
//! autoencoder    L = reconstruction + λ_step·a·alignment(encoder(x)) (+ std_weight·(std(y) − 1)²)
//! ```
//! λ_step is 0 before `flow_start`, then warms up; a is 1, or with `adaptive` the ratio of gradient norms
//! ‖∂rec/∂W‖/(‖∂alignment/∂W‖ + 1e-4) at the encoder's last weight, clamped to [0, 1e4] and held constant.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::flow::objective::total;
use crate::flow::{Batch, Draws, LatentGradient, Objective, Want};
use crate::nn::{Autoencoder, AutoencoderConfig, Form, Grads, Init, Layout, Params};
use crate::ops::elementwise::{axpy, cast};
use crate::ops::linear::Activation;
use crate::ops::mse::mse;
use crate::ops::normalize::{
    BatchStats, batch_stats, standardize_backward, standardize_forward, std_penalty, unit_norm_backward,
    unit_norm_forward,
};
use crate::rng::{Draw, Stream};
use crate::tensor::{FloatX, Tensor};
use crate::train::config::{self, AlignConfig, Config, Gradient, Stage};
use crate::train::engine::{Engine, Losses, Task};
use crate::train::features::{Features, rows_to_device};
use crate::train::prior::Prior;
use crate::train::run::Trainee;
use crate::train::setup;

/// The name of the one parameter of free latents.
pub const LATENTS: &str = "latents";

/// The alignment loss of a batch of latents under a frozen prior.
#[derive(Debug)]
pub struct Alignment<X: FloatX> {
    /// The frozen prior.
    pub prior: Prior<X>,
    /// The objective.
    pub objective: Objective,
    gradient: LatentGradient,
    norm_target: bool,
    unit_norm: bool,
    seed: u64,
}

impl<X: FloatX> Alignment<X> {
    /// Prepares the loss for `samples` rows of latents.
    ///
    /// # Errors
    /// Sizes that do not fit together; a conditional prior.
    pub fn new(config: &Config, prior: Prior<X>, samples: usize) -> Result<Self> {
        if prior.net.config().cond > 0 {
            return Err(Error::Usage(
                "stage 2 aligns to unconditional priors; this one takes a condition".into(),
            ));
        }
        let mut objective = setup::objective(config, &prior.net, samples)?;
        if prior.tables.is_none() && matches!(objective.form, Form::Nodes(_)) {
            objective.form = Form::Direct;
        }
        let gradient = match config.align.gradient {
            Gradient::Full => LatentGradient::Full,
            Gradient::Detached => LatentGradient::Detached,
        };
        let (norm_target, unit_norm) = (config.flow.norm_target, config.flow.unit_norm);
        Ok(Self { prior, objective, gradient, norm_target, unit_norm, seed: config.seed })
    }

    /// Returns the loss of the latents `y: (B, D)`, numbers `first ..` of the global batch, and its gradient times
    /// `loss_scale`. `stats` are those of the global batch, where targets are normalised.
    ///
    /// # Errors
    /// Another width than the prior's.
    pub fn gradients(
        &self,
        y: &Tensor<f32>,
        first: u64,
        stats: Option<BatchStats>,
        step: u64,
        loss_scale: f32,
    ) -> Result<(f64, Tensor<f32>)> {
        let standard = stats.map(|stats| standardize_forward(y, stats)).transpose()?;
        let before_unit = standard.as_ref().unwrap_or(y);
        let unit = if self.unit_norm { Some(unit_norm_forward(before_unit)?) } else { None };
        let batch = Batch { data: unit.as_ref().unwrap_or(before_unit), cond: None, first };
        let velocity = self.prior.velocity(self.objective.form);
        let want = Want::Latents(self.gradient);
        let outcome =
            self.objective.evaluate(velocity, batch, Draws::training(self.seed, step), loss_scale, want)?;
        let dy = outcome.dy.ok_or_else(|| Error::argument("alignment", "dy", "a gradient", "none"))?;
        let dy = if self.unit_norm { unit_norm_backward(&dy, before_unit)? } else { dy };
        let dy = match stats {
            Some(stats) => standardize_backward(&dy, stats)?,
            None => dy,
        };
        Ok((outcome.loss, dy))
    }

    /// Returns the loss of the latents `y: (B, D)`, B the samples of the objective, under fresh draws.
    ///
    /// # Errors
    /// Another shape.
    pub fn evaluate(&self, y: &Tensor<f32>) -> Result<f64> {
        let standard = self.stats(y)?.map(|stats| standardize_forward(y, stats)).transpose()?;
        let y = standard.as_ref().unwrap_or(y);
        let unit = if self.unit_norm { Some(unit_norm_forward(y)?) } else { None };
        let batch = Batch { data: unit.as_ref().unwrap_or(y), cond: None, first: 0 };
        let velocity = self.prior.velocity(self.objective.form);
        Ok(self.objective.evaluate(velocity, batch, Draws::evaluation(self.seed, 0), 1.0, Want::Loss)?.loss)
    }

    fn stats(&self, y: &Tensor<f32>) -> Result<Option<BatchStats>> {
        if self.norm_target { Ok(Some(batch_stats(y)?)) } else { Ok(None) }
    }
}

/// The task of free latents; their one parameter is `latents` (L, D), in f32.
pub struct LatentTask<X: FloatX> {
    /// The loss.
    pub alignment: Alignment<X>,
    std_weight: f32,
    micro_batches: usize,
    device: Device,
}

impl<X: FloatX> LatentTask<X> {
    /// Prepares the task and normal latents.
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub fn new(config: &Config, device: &Device, prior: Prior<X>) -> Result<(Self, Engine<f32>)> {
        let (count, width) = (config.align.latents, prior.net.config().channels);
        let mut layout = Layout::default();
        layout.add(LATENTS, [count, width], Init::Zeros);
        let layout = Arc::new(layout);
        let mut values = vec![0.0; layout.len()];
        let draw = Draw::new(config.seed, Stream::Latents, 0);
        for (i, row) in values[..count * width].chunks_exact_mut(width).enumerate() {
            crate::device::Isa::detect().run(
                #[inline(always)]
                |arch| draw.fill_normal(arch, row, i as u64, 0),
            );
            row.iter_mut().for_each(|x| *x *= config.align.init_std as f32);
        }
        let params = Params::from_flat(device, layout, &values)?;
        let engine = Engine::new(config, params, Tensor::from_f32(device, [values.len()], &values)?)?;
        let alignment = Alignment::new(config, prior, count)?;
        let (std_weight, micro_batches) = (config.align.std_weight as f32, config.train.micro_batches);
        Ok((Self { alignment, std_weight, micro_batches, device: device.clone() }, engine))
    }
}

impl<X: FloatX> Task<f32> for LatentTask<X> {
    fn gradients(
        &mut self,
        params: &Params<f32>,
        step: u64,
        loss_scale: f32,
        grads: &mut Grads,
    ) -> Result<Losses> {
        let latents = params.named(LATENTS)?;
        let (count, width) = (self.alignment.objective.samples, self.alignment.prior.net.config().channels);
        let mut y = Tensor::<f32>::uninit(&self.device, [count, width]);
        y.host_mut()?.copy_from_slice(latents.host()?);
        let stats = self.alignment.stats(&y)?;
        let mut dy = Tensor::<f32>::zeros(&self.device, [count, width]);
        let mut alignment = 0.0;
        let micro = count / self.micro_batches;
        for first in (0..count).step_by(micro) {
            let span = first * width..(first + micro) * width;
            let part = Tensor::from_f32(&self.device, [micro, width], &y.host()?[span.clone()])?;
            let (loss, d) = self.alignment.gradients(&part, first as u64, stats, step, loss_scale)?;
            dy.host_mut()?[span].copy_from_slice(d.host()?);
            alignment += loss;
        }
        let mut losses = Losses { loss: alignment, parts: Vec::new() };
        if self.std_weight > 0.0 {
            let penalty = std_penalty(&mut dy, &y, self.std_weight * loss_scale)?;
            losses.loss += self.std_weight as f64 * penalty;
            losses.parts = vec![("alignment", alignment), ("std", penalty)];
        }
        grads.add_named(LATENTS, &dy)?;
        Ok(losses)
    }
}

impl<X: FloatX> Trainee<f32> for LatentTask<X> {
    const STAGE: Stage = Stage::Align;

    fn architecture(&self) -> Value {
        let (count, width) = (self.alignment.objective.samples, self.alignment.prior.net.config().channels);
        json!({ "latents": [count, width], "prior": self.alignment.prior.net.config() })
    }

    fn memory(&self) -> Value {
        json!({ "standardise": self.alignment.prior.standardise })
    }

    fn recall(&mut self, _memory: &Value) -> Result<()> {
        Ok(())
    }

    fn samples(&self) -> usize {
        self.alignment.objective.samples
    }

    fn notes(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn evaluate(&mut self, engine: &Engine<f32>) -> Result<Vec<(&'static str, f64)>> {
        let latents = engine.optimizer.params.named(LATENTS)?;
        let mut y = Tensor::<f32>::uninit(&self.device, latents.shape());
        y.host_mut()?.copy_from_slice(latents.host()?);
        Ok(vec![("alignment", self.alignment.evaluate(&y)?)])
    }
}

/// The task of an autoencoder.
pub struct AutoencoderTask<X: FloatX> {
    /// The autoencoder.
    pub net: Autoencoder,
    /// The loss of its latents.
    pub alignment: Alignment<X>,
    /// The data.
    pub features: Features,
    config: AlignConfig,
    tokens: usize,
    micro_batches: usize,
    device: Device,
}

impl<X: FloatX> AutoencoderTask<X> {
    /// Prepares the task and a freshly initialised autoencoder.
    ///
    /// # Errors
    /// A latent width that is not the prior's; micro-batches where the loss looks at a whole batch.
    pub fn new(config: &Config, device: &Device, prior: Prior<X>) -> Result<(Self, Engine<X>)> {
        let a = &config.align;
        let width = prior.net.config().channels;
        if a.autoencoder.latent != width {
            return Err(Error::data(
                &prior.source,
                "width",
                format!("{} (align.autoencoder.latent)", a.autoencoder.latent),
                format!("a prior of width {width}"),
            ));
        }
        let whole = [
            ("align.adaptive", a.adaptive),
            ("align.std_latents", a.std_latents),
            ("align.std_weight", a.std_weight > 0.0),
            ("flow.norm_target", config.flow.norm_target),
        ];
        if let Some((key, _)) = whole.iter().find(|(_, on)| *on && config.train.micro_batches > 1) {
            let why = format!("{key} looks at a whole batch of latents: it needs train.micro_batches = 1");
            return Err(Error::Usage(why));
        }
        let features = Features::open(config)?;
        let net = Autoencoder::new(AutoencoderConfig {
            data: features.width(),
            hidden: a.autoencoder.hidden.clone(),
            latent: a.autoencoder.latent * a.autoencoder.tokens,
            activation: match a.autoencoder.activation {
                config::Activation::Silu => Activation::Silu,
                config::Activation::Gelu => Activation::GeluTanh,
            },
        })?;
        let values = net.layout().initial_values(config.seed);
        let params = Params::from_flat(device, net.layout().clone(), &values)?;
        let engine = Engine::new(config, params, Tensor::from_f32(device, [values.len()], &values)?)?;
        let alignment = Alignment::new(config, prior, config.train.batch * a.autoencoder.tokens)?;
        let task = Self {
            net,
            alignment,
            features,
            config: a.clone(),
            tokens: a.autoencoder.tokens,
            micro_batches: config.train.micro_batches,
            device: device.clone(),
        };
        Ok((task, engine))
    }

    /// Adds one micro-batch: samples `first ..` of the step's batch, `x: (B, data)`.
    fn micro_batch(
        &self,
        params: &Params<X>,
        x: &Tensor<f32>,
        first: usize,
        step: Step,
        grads: &mut Grads,
    ) -> Result<Parts> {
        let (b, d) = x.rows_cols();
        let (y, encoded) = self.net.encode(params, cast(x)?)?;
        let rows = [b * self.tokens, y.rows_cols().1 / self.tokens];
        let raw = cast::<X, f32>(&y)?.reshaped(rows)?;
        let standard = if self.config.std_latents { Some(batch_stats(&raw)?) } else { None };
        let (latents, y) = match standard {
            Some(stats) => {
                let latents = standardize_forward(&raw, stats)?;
                let y = cast(&latents)?.reshaped(y.shape().dims())?;
                (latents, y)
            }
            None => (raw, y),
        };
        let (x_hat, decoded) = self.net.decode(params, y)?;
        let divisor = (self.features_per_step() * d) as f64;
        let (row_loss, dx_hat) = mse(&x_hat, x, (2.0 / divisor) as f32 * step.loss_scale)?;
        let dy = self.net.decode_backward(params, decoded, dx_hat, grads)?;
        let mut parts = Parts { reconstruction: total(&row_loss)? / divisor, ..Parts::default() };
        let mut total_dy = cast::<X, f32>(&dy)?.reshaped(rows)?;
        let weight = self.config.weight_at(step.number);
        if weight > 0.0 {
            let stats = self.alignment.stats(&latents)?;
            let at = (first * self.tokens) as u64;
            let (loss, dalign) =
                self.alignment.gradients(&latents, at, stats, step.number, step.loss_scale)?;
            let ratio = self.adaptive_ratio(&encoded, &dy, &dalign, step.loss_scale)?;
            axpy(&mut total_dy, (weight * ratio) as f32, &dalign)?;
            (parts.alignment, parts.weight) = (loss, weight * ratio);
        }
        if self.config.std_weight > 0.0 {
            let weight = self.config.std_weight as f32 * step.loss_scale;
            parts.std = std_penalty(&mut total_dy, &latents, weight)?;
        }
        let total_dy = match standard {
            Some(stats) => standardize_backward(&total_dy, stats)?,
            None => total_dy,
        };
        let dy = cast(&total_dy)?.reshaped(dy.shape().dims())?;
        self.net.encode_backward(params, encoded, dy, grads)?;
        Ok(parts)
    }

    fn adaptive_ratio(
        &self,
        encoded: &crate::nn::autoencoder::ChainSaved<X>,
        dy: &Tensor<X>,
        dalign: &Tensor<f32>,
        loss_scale: f32,
    ) -> Result<f64> {
        if !self.config.adaptive {
            return Ok(1.0);
        }
        let dalign: Tensor<X> = cast(dalign)?;
        let norm = |dy: &Tensor<X>| {
            Ok::<_, Error>(self.net.last_weight_gradient_norm(encoded, dy)? / loss_scale as f64)
        };
        let (reconstruction, alignment) = (norm(dy)?, norm(&dalign.reshaped(dy.shape().dims())?)?);
        if !reconstruction.is_finite() || !alignment.is_finite() {
            // Clamped, an overflow in f16 would be a weight of 0 or 10⁴; like this the step is skipped.
            return Ok(f64::NAN);
        }
        Ok((reconstruction / (alignment + 1e-4)).clamp(0.0, 1e4))
    }

    /// Samples of a step, all micro-batches together.
    fn features_per_step(&self) -> usize {
        self.alignment.objective.samples / self.tokens
    }
}

/// The numbers of a step that micro-batches need.
#[derive(Clone, Copy)]
struct Step {
    number: u64,
    loss_scale: f32,
}

/// The parts of the loss.
#[derive(Clone, Copy, Default)]
struct Parts {
    reconstruction: f64,
    alignment: f64,
    weight: f64,
    std: f64,
}

impl<X: FloatX> Task<X> for AutoencoderTask<X> {
    fn gradients(
        &mut self,
        params: &Params<X>,
        step: u64,
        loss_scale: f32,
        grads: &mut Grads,
    ) -> Result<Losses> {
        let batch = self.features.batch(step)?;
        let samples = self.features_per_step();
        let micro = samples / self.micro_batches;
        let mut sum = Parts::default();
        for first in (0..samples).step_by(micro) {
            let x =
                rows_to_device(&self.device, &batch.features, self.features.width(), first..first + micro)?;
            let parts = self.micro_batch(params, &x, first, Step { number: step, loss_scale }, grads)?;
            sum.reconstruction += parts.reconstruction;
            sum.alignment += parts.alignment;
            sum.std += parts.std;
            sum.weight = parts.weight;
        }
        self.features.recycle(batch);
        let std_weight = self.config.std_weight;
        let loss = sum.reconstruction + sum.weight * sum.alignment + std_weight * sum.std;
        let mut parts = vec![
            ("reconstruction", sum.reconstruction),
            ("alignment", sum.alignment),
            ("alignment_weight", sum.weight),
        ];
        if std_weight > 0.0 {
            parts.push(("std", sum.std));
        }
        Ok(Losses { loss, parts })
    }
}

impl<X: FloatX> Trainee<X> for AutoencoderTask<X> {
    const STAGE: Stage = Stage::Align;

    fn architecture(&self) -> Value {
        let c = self.net.config();
        let autoencoder = json!({ "data": c.data, "hidden": c.hidden, "latent": c.latent });
        json!({ "autoencoder": autoencoder, "prior": self.alignment.prior.net.config() })
    }

    fn memory(&self) -> Value {
        json!({ "standardise": self.alignment.prior.standardise, "features": self.features.standardise })
    }

    fn recall(&mut self, _memory: &Value) -> Result<()> {
        Ok(())
    }

    fn samples(&self) -> usize {
        self.features_per_step()
    }

    fn notes(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn evaluate(&mut self, engine: &Engine<X>) -> Result<Vec<(&'static str, f64)>> {
        let params = engine.optimizer.averaged()?;
        let samples = self.features_per_step();
        let rows = self.features.fresh(self.alignment.seed, 0, samples)?;
        let x = rows_to_device(&self.device, &rows, self.features.width(), 0..samples)?;
        let (y, _) = self.net.encode(&params, cast::<f32, X>(&x)?)?;
        let latents = cast::<X, f32>(&y)?.reshaped([samples * self.tokens, y.rows_cols().1 / self.tokens])?;
        let (x_hat, _) = self.net.decode(&params, y)?;
        let (row_loss, _) = mse(&x_hat, &x, 0.0)?;
        let reconstruction = total(&row_loss)? / x.len() as f64;
        Ok(vec![("reconstruction", reconstruction), ("alignment", self.alignment.evaluate(&latents)?)])
    }
}

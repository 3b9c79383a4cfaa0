//! An autoencoder, aligned through its latents.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::flow::objective::total;
use crate::nn::autoencoder::Saved;
use crate::nn::{Autoencoder, Grads, Keep, Layers, Params};
use crate::ops::elementwise::{axpy, cast};
use crate::ops::normalize::{
    BatchStats, batch_stats, standardize_backward, standardize_forward, std_penalty,
};
use crate::ops::reconstruction::{Distance, reconstruction};
use crate::tensor::Tensor;
use crate::train::align::{Alignment, Trained};
use crate::train::config::{AlignConfig, Config, Reconstruction, Stage};
use crate::train::engine::Engine;
use crate::train::features::{Features, RowShape, Staged, rows_to_device};
use crate::train::prior::Prior;
use crate::train::reference::mean;
use crate::train::run::Trainee;
use crate::train::setup;
use crate::train::task::{Meter, StepAt, Task};

/// The task of an autoencoder.
pub struct AutoencoderTask<X: FloatX> {
    /// The autoencoder.
    pub net: Autoencoder,
    /// The loss of its latents.
    pub alignment: Alignment<X>,
    /// The data.
    pub features: Features,
    /// What is trained.
    pub trained: Trained,
    config: AlignConfig,
    /// The weight at which the adaptive weight compares gradients.
    compared: String,
    distance: Distance,
    keep: Keep,
    micro_batches: usize,
    device: Device,
    staged: Staged,
    /// Gradients of a prior that is trained too.
    own: Option<Grads>,
    /// The step that was prepared.
    step: u64,
}

impl<X: FloatX> AutoencoderTask<X> {
    /// Prepares the task and a freshly initialised autoencoder.
    ///
    /// # Errors
    /// Latents whose width or number is not the prior's; micro-batches where the loss looks at a whole batch; a weight to compare
    /// gradients at that the encoder does not have.
    pub fn new(config: &Config, device: &Device, prior: Prior<X>) -> Result<(Self, Engine<X>)> {
        let a = &config.align;
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
        let row = latents_in_a_row(config, &prior)?;
        let features = Features::open(config)?;
        let net = Autoencoder::new(setup::autoencoder(config, RowShape::of(features.source()))?)?;
        let compared = compared(&a.adaptive_at, &net)?;
        let trained = Trained::new(&net, &prior.net, a);
        let values = trained.initial_values(config.seed, &prior.params)?;
        let params = Params::from_flat(device, Arc::new(trained.layout.clone()), &values)?;
        let own = trained.prior_gradients(&params);
        let engine = Engine::new(config, params, Tensor::from_f32(device, [values.len()], &values)?)?;
        let alignment = Alignment::new(config, prior, config.train.batch * a.autoencoder.tokens / row)?;
        let task = Self {
            net,
            alignment,
            features,
            trained,
            config: a.clone(),
            compared,
            distance: match a.reconstruction {
                Reconstruction::L2 => Distance::L2,
                Reconstruction::L1 => Distance::L1,
            },
            keep: if config.train.recompute { Keep::BlockInputs } else { Keep::All },
            micro_batches: config.train.micro_batches,
            device: device.clone(),
            staged: Staged::default(),
            own,
            step: 0,
        };
        Ok((task, engine))
    }

    /// `x: (B, data)` → latents, normalised by their batch if so configured.
    fn encode(&self, params: &Params<X>, x: &Tensor<f32>, keep: Keep) -> Result<Encoded<X>> {
        let (y, saved) = self.net.encode(params, cast(x)?, keep)?;
        let raw = cast::<X, f32>(&y)?;
        if !self.config.std_latents {
            return Ok(Encoded { y, latents: raw, standard: None, saved });
        }
        let stats = batch_stats(&raw)?;
        let latents = standardize_forward(&raw, stats)?;
        Ok(Encoded { y: cast(&latents)?, latents, standard: Some(stats), saved })
    }

    /// `latents: (B·tokens, latent)` → rows as the prior takes them, each of one latent or of all in a sequence.
    fn to_prior(&self, params: &Params<X>, latents: &Tensor<f32>) -> Result<Tensor<f32>> {
        let rows = match self.trained.project(params, latents)? {
            Some(projected) => projected,
            None => latents.duplicate()?,
        };
        let width = self.alignment.prior.net.data_width();
        let count = rows.len() / width;
        rows.reshaped([count, width])
    }

    /// `x: (N, data)` on the host → latents as the decoder takes them, (N·tokens, latent). Latents that are normalised by their batch
    /// are so by the whole of these.
    ///
    /// # Errors
    /// Values that are no whole rows.
    pub fn encode_rows(&self, params: &Params<X>, x: &[f32]) -> Result<Vec<f32>> {
        let width = self.features.width();
        let x = Tensor::from_f32(&self.device, [x.len() / width, width], x)?;
        Ok(self.encode(params, &x, Keep::Nothing)?.latents.on_host()?.into_owned())
    }

    /// Runs `batches` batches of fresh data through the autoencoder.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub fn fresh(&self, params: &Params<X>, seed: u64, batches: u64) -> Result<Passed> {
        let samples = self.features_per_step();
        let mut passed = Passed::default();
        for index in 0..batches {
            let rows = self.features.fresh(seed, index, samples)?;
            let x = rows_to_device(&self.device, &rows, self.features.width(), 0..samples)?;
            let encoded = self.encode(params, &x, Keep::Nothing)?;
            let (x_hat, _) = self.net.decode(params, encoded.y, Keep::Nothing)?;
            let (row_loss, _) = reconstruction(&x_hat, &x, self.distance, 0.0)?;
            passed.reconstruction.push(total(&row_loss)? / x.len() as f64);
            passed.data.extend_from_slice(&rows);
            passed.reconstructed.extend(x_hat.to_f32_vec()?);
            passed.latents.extend_from_slice(&self.to_prior(params, &encoded.latents)?.on_host()?);
            passed.decoded.extend_from_slice(&encoded.latents.on_host()?);
        }
        Ok(passed)
    }

    /// Has the loss take the prior's parameters from those that are trained, if they are among them: before it is evaluated apart
    /// from a step.
    ///
    /// # Errors
    /// Parameters of another layout.
    pub fn follow(&mut self, params: &Params<X>) -> Result<()> {
        self.trained.copy_prior(params, &mut self.alignment.prior.params)
    }

    /// Returns the alignment losses of latents, as the prior takes them, in batches, in order: each batch under its own draws.
    ///
    /// # Errors
    /// Latents that are no whole batches.
    pub fn alignment_losses(
        &self,
        latents: &[f32],
        seed: u64,
        rounds: std::ops::Range<u64>,
    ) -> Result<Vec<f64>> {
        let (rows, width) = (self.alignment.objective.samples, self.alignment.prior.net.data_width());
        let batches = (latents.len() / (rows * width)) as u64;
        let mut losses = Vec::new();
        for (i, batch) in latents.chunks(rows * width).enumerate() {
            let y = Tensor::from_f32(&self.device, [rows, width], batch)?;
            for round in rounds.clone() {
                let draw = round * batches + i as u64;
                losses.extend(self.alignment.fresh_losses(&y, seed, draw..draw + 1)?);
            }
        }
        Ok(losses)
    }

    /// `latents: (N·tokens, latent)` as the encoder gives them → data (N, data).
    ///
    /// # Errors
    /// Values that are no whole samples.
    pub fn decode(&self, params: &Params<X>, latents: &[f32]) -> Result<Vec<f32>> {
        self.net.decode(params, self.rows(latents)?, Keep::Nothing)?.0.to_f32_vec()
    }

    /// `latents: (N·tokens, latent)`, `u: (N, data)` → uᵀ·∂x̂/∂y, as the latents.
    ///
    /// # Errors
    /// Values that are no whole samples.
    pub fn decoder_vjp(&self, params: &Params<X>, latents: &[f32], u: &[f32]) -> Result<Vec<f32>> {
        let (x_hat, saved) = self.net.decode(params, self.rows(latents)?, Keep::All)?;
        let u = Tensor::from_f32(&self.device, x_hat.shape(), u)?;
        let mut unused = Grads::zeros(&self.device, params.layout().clone());
        self.net.decode_backward(params, saved, u, &mut unused)?.to_f32_vec()
    }

    fn rows(&self, latents: &[f32]) -> Result<Tensor<X>> {
        let width = self.net.config().latent;
        Tensor::from_f32(&self.device, [latents.len() / width, width], latents)
    }

    /// Adds one micro-batch: samples `first ..` of the step's batch, `x: (B, data)`. Gradients of a prior that is trained too go to
    /// `own`.
    fn micro_batch(
        &self,
        params: &Params<X>,
        (x, first): (&Tensor<f32>, usize),
        (step, at): (u64, StepAt),
        (grads, own): (&mut Grads, Option<&mut Grads>),
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        let Encoded { y, latents, standard, saved: encoded } = self.encode(params, x, self.keep)?;
        let (x_hat, decoded) = self.net.decode(params, y, self.keep)?;
        let (samples, d) = x.rows_cols();
        let divisor = (self.features_per_step() * d) as f64;
        let scale = at.loss_scale.times((1.0 / divisor) as f32);
        let (row_loss, dx_hat) = reconstruction(&x_hat, x, self.distance, scale)?;
        drop(x_hat);
        let dy = self.net.decode_backward(params, decoded, dx_hat, grads)?;
        meter.add_part("reconstruction", &row_loss, divisor, 1.0)?;
        let mut total_dy = cast::<X, f32>(&dy)?;
        let weight = self.config.weight_at(step);
        if weight > 0.0 {
            let rows = self.to_prior(params, &latents)?;
            let stats = self.alignment.stats(&rows)?;
            let place = (first * rows.rows_cols().0 / samples) as u64;
            let (losses, dz) = self.alignment.gradients(&rows, place, stats, at, own)?;
            let ratio = self.adaptive_ratio(params, &encoded, (&dy, &dz), at.loss_scale.number)?;
            let weight = weight * ratio;
            let mut total_dz = Tensor::<f32>::zeros(&self.device, rows.shape());
            axpy(total_dz.view_mut(), weight as f32, &dz)?;
            self.alignment.match_distribution((&mut total_dz, &rows), weight, (step, at), meter)?;
            let tokens = latents.rows_cols().0;
            let total_dz = total_dz.reshaped([tokens, rows.len() / tokens])?;
            let projected = self.trained.project_backward_input(params, &total_dz)?;
            axpy(total_dy.view_mut(), 1.0, projected.as_ref().unwrap_or(&total_dz))?;
            self.trained.project_backward_weight::<X>(grads, &total_dz, &latents)?;
            meter.add_part("alignment", &losses.rows, losses.divisor, weight)?;
            if first == 0 {
                meter.add_value("alignment_weight", weight, 0.0)?;
            }
        } else {
            meter.add_value("alignment", 0.0, 0.0)?;
            meter.add_value("alignment_weight", 0.0, 0.0)?;
        }
        if self.config.std_weight > 0.0 {
            let weight = self.config.std_weight as f32 * at.loss_scale.number;
            let penalty = std_penalty(&mut total_dy, &latents, weight)?;
            meter.add_value("std", penalty, self.config.std_weight)?;
        }
        let total_dy = match standard {
            Some(stats) => standardize_backward(&total_dy, stats)?,
            None => total_dy,
        };
        self.net.encode_backward(params, encoded, cast(&total_dy)?, grads)
    }

    /// Returns ‖∂rec/∂W‖/(‖∂alignment/∂W‖ + 1e-4) for the gradient of the latents by reconstruction, and that of the prior's rows by
    /// alignment.
    fn adaptive_ratio(
        &self,
        params: &Params<X>,
        encoded: &Saved<X>,
        (dy, dz): (&Tensor<X>, &Tensor<f32>),
        loss_scale: f32,
    ) -> Result<f64> {
        if !self.config.adaptive {
            return Ok(1.0);
        }
        let tokens = dy.rows_cols().0;
        let dz = dz.duplicate()?.reshaped([tokens, dz.len() / tokens])?;
        let dalign = cast(&self.trained.project_backward_input(params, &dz)?.unwrap_or(dz))?;
        let norm = |dy: &Tensor<X>| {
            let norm = self.net.gradient_norm(params, encoded, dy, &self.compared)?;
            Ok::<_, Error>(norm / loss_scale as f64)
        };
        let (reconstruction, alignment) = (norm(dy)?, norm(&dalign)?);
        if !reconstruction.is_finite() || !alignment.is_finite() {
            // Clamped, an overflow in f16 would be a weight of 0 or 10⁴; like this the step is skipped.
            return Ok(f64::NAN);
        }
        Ok((reconstruction / (alignment + 1e-4)).clamp(0.0, 1e4))
    }

    /// Samples of a step, all micro-batches together.
    fn features_per_step(&self) -> usize {
        let latents = self.alignment.objective.samples * setup::latents_of(&self.alignment.prior.net).1;
        latents / self.net.config().tokens
    }
}

/// Returns how many latents a row of the prior's has, after checking that the autoencoder's fit.
fn latents_in_a_row<X: FloatX>(config: &Config, prior: &Prior<X>) -> Result<usize> {
    let a = &config.align;
    let (width, row) = setup::latents_of(&prior.net);
    let refused = |field: &str, ours, theirs| Err(Error::data(&prior.source, field, ours, theirs));
    if !a.projection && a.autoencoder.latent != width {
        let ours = format!("{} (align.autoencoder.latent)", a.autoencoder.latent);
        return refused("width", ours, format!("a prior of width {width}"));
    }
    if !a.autoencoder.tokens.is_multiple_of(row) {
        let ours = format!("a divisor of {} (align.autoencoder.tokens)", a.autoencoder.tokens);
        return refused("tokens", ours, format!("a prior of sequences of {row} tokens"));
    }
    Ok(row)
}

/// Returns the weight at which gradients are compared: the named one, or the encoder's last.
fn compared(named: &str, net: &Autoencoder) -> Result<String> {
    let known = net.compared();
    if named.is_empty() {
        return Ok(known.first().cloned().unwrap_or_default());
    }
    match known.iter().any(|name| name == named) {
        true => Ok(named.to_owned()),
        false => Err(Error::Usage(format!(
            "align.adaptive_at must be one of {}, but is {named}",
            known.join(", ")
        ))),
    }
}

/// What the encoder gives.
struct Encoded<X: FloatX> {
    /// (B·tokens, latent), as the decoder takes it.
    y: Tensor<X>,
    /// The same in f32, as losses take it.
    latents: Tensor<f32>,
    /// The statistics that both are normalised by.
    standard: Option<BatchStats>,
    saved: Saved<X>,
}

/// What came out of the autoencoder for some fresh data.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    /// What went in, (N, data).
    pub data: Vec<f32>,
    /// What came out, (N, data).
    pub reconstructed: Vec<f32>,
    /// In between, as the prior takes it: rows of its data.
    pub latents: Vec<f32>,
    /// The same as the decoder takes it, (N·tokens, latent).
    pub decoded: Vec<f32>,
    /// The mean distance of each batch.
    pub reconstruction: Vec<f64>,
}

impl<X: FloatX> Task<X> for AutoencoderTask<X> {
    fn prepare(&mut self, _params: &Params<X>, step: u64) -> Result<()> {
        self.features.stage(step, &self.device, &mut self.staged)?;
        self.step = step;
        Ok(())
    }

    fn gradients(
        &mut self,
        params: &Params<X>,
        at: StepAt,
        grads: &mut Grads,
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        self.follow(params)?;
        let micro = self.features_per_step() / self.micro_batches;
        let mut own = self.own.take();
        if let Some(own) = &mut own {
            own.clear()?;
        }
        let done = self.staged.each(micro, |first, x| {
            self.micro_batch(params, (x, first), (self.step, at), (&mut *grads, own.as_mut()), meter)
        });
        self.own = own;
        done?;
        self.own.as_ref().map_or(Ok(()), |own| grads.add_appended(own))
    }

    fn waits(&self) -> Option<&'static str> {
        let c = &self.config;
        let own = [
            ("align.adaptive", c.adaptive),
            ("align.std_latents", c.std_latents),
            ("align.std_weight", c.std_weight > 0.0),
        ];
        let own = own.into_iter().find(|(_, on)| *on).map(|(key, _)| key);
        own.or(self.alignment.waits())
    }

    fn fixed(&self, step: u64) -> String {
        self.config.weight_at(step).to_string() + &self.alignment.fixed(step)
    }
}

impl<X: FloatX> Trainee<X> for AutoencoderTask<X> {
    const STAGE: Stage = Stage::Align;

    fn architecture(&self) -> Value {
        let c = self.net.config();
        let layers = match &c.layers {
            Layers::Mlp { hidden, .. } => json!({ "hidden": hidden }),
            Layers::Vit(vit) => json!(vit),
        };
        let autoencoder = json!({ "data": c.data, "tokens": c.tokens, "latent": c.latent, "layers": layers });
        let (projection, joint) = (self.trained.is_projected(), self.trained.is_joint());
        let prior = self.alignment.prior.net.config();
        json!({ "autoencoder": autoencoder, "projection": projection, "prior": prior, "joint": joint })
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
        self.alignment.notes.extend(self.features.take_note());
        std::mem::take(&mut self.alignment.notes)
    }

    fn evaluate(&mut self, engine: &Engine<X>) -> Result<Vec<(&'static str, f64)>> {
        let (params, seed) = (engine.optimizer.averaged()?, self.alignment.seed);
        self.follow(&params)?;
        let passed = self.fresh(&params, seed, EVALUATION_BATCHES)?;
        let losses = self.alignment_losses(&passed.latents, seed, 0..EVALUATION_DRAWS)?;
        let mut values = vec![("reconstruction", mean(&passed.reconstruction))];
        values.extend(self.alignment.of_losses(&losses));
        values.extend(self.alignment.measure(&passed.latents)?);
        Ok(values)
    }
}

/// Batches of an evaluation during a run.
const EVALUATION_BATCHES: u64 = 4;
/// Draws of noise and time for each latent of these.
const EVALUATION_DRAWS: u64 = 4;

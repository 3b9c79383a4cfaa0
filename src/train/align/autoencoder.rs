//! An autoencoder, aligned through its latents.

use serde_json::{Value, json};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::flow::objective::total;
use crate::nn::autoencoder::ChainSaved;
use crate::nn::{Autoencoder, AutoencoderConfig, Grads, Params};
use crate::ops::elementwise::{axpy, cast};
use crate::ops::linear::Activation;
use crate::ops::mse::mse;
use crate::ops::normalize::{
    BatchStats, batch_stats, standardize_backward, standardize_forward, std_penalty,
};
use crate::tensor::Tensor;
use crate::train::align::Alignment;
use crate::train::config::{self, AlignConfig, Config, Stage};
use crate::train::engine::Engine;
use crate::train::features::{Features, Staged, rows_to_device};
use crate::train::prior::Prior;
use crate::train::reference::mean;
use crate::train::run::Trainee;
use crate::train::task::{Meter, StepAt, Task};

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
    staged: Staged,
    /// The step that was prepared.
    step: u64,
}

impl<X: FloatX> AutoencoderTask<X> {
    /// Prepares the task and a freshly initialised autoencoder.
    ///
    /// # Errors
    /// A latent width that is not the prior's; micro-batches where the loss looks at a whole batch.
    pub fn new(config: &Config, device: &Device, prior: Prior<X>) -> Result<(Self, Engine<X>)> {
        let a = &config.align;
        let width = prior.net.data_width();
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
            staged: Staged::default(),
            step: 0,
        };
        Ok((task, engine))
    }

    /// `x: (B, data)` → latents, normalised by their batch if so configured.
    fn encode(&self, params: &Params<X>, x: &Tensor<f32>) -> Result<Encoded<X>> {
        let (y, saved) = self.net.encode(params, cast(x)?)?;
        let (b, width) = y.rows_cols();
        let raw = cast::<X, f32>(&y)?.reshaped([b * self.tokens, width / self.tokens])?;
        if !self.config.std_latents {
            return Ok(Encoded { y, latents: raw, standard: None, saved });
        }
        let stats = batch_stats(&raw)?;
        let latents = standardize_forward(&raw, stats)?;
        let y = cast(&latents)?.reshaped([b, width])?;
        Ok(Encoded { y, latents, standard: Some(stats), saved })
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
            let encoded = self.encode(params, &x)?;
            let (x_hat, _) = self.net.decode(params, encoded.y)?;
            let (row_loss, _) = mse(&x_hat, &x, 0.0)?;
            passed.reconstruction.push(total(&row_loss)? / x.len() as f64);
            passed.data.extend_from_slice(&rows);
            passed.reconstructed.extend(x_hat.to_f32_vec()?);
            passed.latents.extend_from_slice(&encoded.latents.on_host()?);
        }
        Ok(passed)
    }

    /// Returns the alignment losses of latents in batches, in order: each batch under its own draws.
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

    /// `latents: (N·tokens, D)`, in the prior's space, row by row → data (N, data).
    ///
    /// # Errors
    /// Values that are no whole samples.
    pub fn decode(&self, params: &Params<X>, latents: &[f32]) -> Result<Vec<f32>> {
        let width = self.net.config().latent;
        let y = Tensor::from_f32(&self.device, [latents.len() / width, width], latents)?;
        self.net.decode(params, y)?.0.to_f32_vec()
    }

    /// `latents: (N·tokens, D)`, `u: (N, data)` → uᵀ·∂x̂/∂y, as the latents.
    ///
    /// # Errors
    /// Values that are no whole samples.
    pub fn decoder_vjp(&self, params: &Params<X>, latents: &[f32], u: &[f32]) -> Result<Vec<f32>> {
        let config = self.net.config();
        let y = Tensor::from_f32(&self.device, [latents.len() / config.latent, config.latent], latents)?;
        let (x_hat, saved) = self.net.decode(params, y)?;
        let u = Tensor::from_f32(&self.device, x_hat.shape(), u)?;
        let mut unused = Grads::zeros(&self.device, self.net.layout().clone());
        self.net.decode_backward(params, saved, u, &mut unused)?.to_f32_vec()
    }

    /// Adds one micro-batch: samples `first ..` of the step's batch, `x: (B, data)`.
    fn micro_batch(
        &self,
        params: &Params<X>,
        x: &Tensor<f32>,
        first: usize,
        (step, at): (u64, StepAt),
        grads: &mut Grads,
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        let d = x.rows_cols().1;
        let Encoded { y, latents, standard, saved: encoded } = self.encode(params, x)?;
        let (x_hat, decoded) = self.net.decode(params, y)?;
        let divisor = (self.features_per_step() * d) as f64;
        let (row_loss, dx_hat) = mse(&x_hat, x, at.loss_scale.times((2.0 / divisor) as f32))?;
        let dy = self.net.decode_backward(params, decoded, dx_hat, grads)?;
        meter.add_part("reconstruction", &row_loss, divisor, 1.0)?;
        let mut total_dy = cast::<X, f32>(&dy)?.reshaped(latents.shape().dims())?;
        let weight = self.config.weight_at(step);
        if weight > 0.0 {
            let stats = self.alignment.stats(&latents)?;
            let place = (first * self.tokens) as u64;
            let (losses, dalign) = self.alignment.gradients(&latents, place, stats, at)?;
            let ratio = self.adaptive_ratio(&encoded, &dy, &dalign, at.loss_scale.number)?;
            axpy(total_dy.view_mut(), (weight * ratio) as f32, &dalign)?;
            meter.add_part("alignment", &losses.rows, losses.divisor, weight * ratio)?;
            let both = (&mut total_dy, &latents);
            self.alignment.match_distribution(both, weight * ratio, (step, at), meter)?;
            if first == 0 {
                meter.add_value("alignment_weight", weight * ratio, 0.0)?;
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
        let dy = cast(&total_dy)?.reshaped(dy.shape().dims())?;
        self.net.encode_backward(params, encoded, dy, grads)?;
        Ok(())
    }

    fn adaptive_ratio(
        &self,
        encoded: &ChainSaved<X>,
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

/// What the encoder gives.
struct Encoded<X: FloatX> {
    /// (B, tokens·D), as the decoder takes it.
    y: Tensor<X>,
    /// (B·tokens, D), as the alignment loss takes it.
    latents: Tensor<f32>,
    /// The statistics that both are normalised by.
    standard: Option<BatchStats>,
    saved: ChainSaved<X>,
}

/// What came out of the autoencoder for some fresh data.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    /// What went in, (N, data).
    pub data: Vec<f32>,
    /// What came out, (N, data).
    pub reconstructed: Vec<f32>,
    /// In between, (N·tokens, D).
    pub latents: Vec<f32>,
    /// The mean squared error of each batch.
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
        let micro = self.features_per_step() / self.micro_batches;
        self.staged
            .each(micro, |first, x| self.micro_batch(params, x, first, (self.step, at), &mut *grads, meter))
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
        self.alignment.notes.extend(self.features.take_note());
        std::mem::take(&mut self.alignment.notes)
    }

    fn evaluate(&mut self, engine: &Engine<X>) -> Result<Vec<(&'static str, f64)>> {
        let (params, seed) = (engine.optimizer.averaged()?, self.alignment.seed);
        let passed = self.fresh(&params, seed, EVALUATION_BATCHES)?;
        let losses = self.alignment_losses(&passed.latents, seed, 0..EVALUATION_DRAWS)?;
        let mut values = vec![("reconstruction", mean(&passed.reconstruction)), ("alignment", mean(&losses))];
        values.extend(self.alignment.measure(&passed.latents)?);
        Ok(values)
    }
}

/// Batches of an evaluation during a run.
const EVALUATION_BATCHES: u64 = 4;
/// Draws of noise and time for each latent of these.
const EVALUATION_DRAWS: u64 = 4;

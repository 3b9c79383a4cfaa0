//! The variance of gradients, by weight and by how times are drawn: what `flowprior bench variance` prints.
//!
//! ```text
//! stage 2   g_ir: the gradient of latent i in repeat r (a step: fresh times, fresh noise), the prior frozen, latents held still
//! stage 1   g_r:  the gradient of all parameters in repeat r (a step of fresh data, too), parameters held still; one "latent"
//! variance  V = mean_i 1/(R−1)·Σ_r ‖g_ir − ḡ_i‖²           signal  S = mean_i ‖ḡ_i‖² − V/R, unbiased; 0 where that is negative
//! noise     V/S: the steps that have to be averaged until the error of the mean is as large as the mean
//! ```
//! Gradients are those of the mean loss of one latent (stage 2), of the batch (stage 1). Uniform, stratified and importance have the same
//! expectation, so their signals agree; logit-normal times make another objective, of which only the ratio can be compared.

use std::path::Path;

use half::{bf16, f16};
use serde::Serialize;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::{DType, FloatX};
use crate::flow::objective::Velocity;
use crate::flow::{Batch, Draws, LatentGradient, Objective, Want, Weight};
use crate::nn::{Condition, Conditioning, Grads, Params, Spatial};
use crate::rng::{Draw, Stream};
use crate::tensor::Tensor;
use crate::train::config::{self, Config, FlowConfig, Stage, TimeSampling, TrainConfig};
use crate::train::engine::Task;
use crate::train::pretrain::Pretrain;
use crate::train::prior::{Prior, open_prior};
use crate::train::reference::Reference;
use crate::train::restore::Restored;
use crate::train::setup;

/// Where latents lie while their gradients are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latents {
    /// At rows of the prior's data: where alignment ends.
    Data,
    /// Drawn from N(0, I): where alignment starts.
    Normal,
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub enum Subject {
    /// Gradients of latents, stage 2.
    Latents {
        /// Where they lie.
        at: Latents,
        /// How many.
        count: usize,
    },
    /// Gradients of the prior's parameters, stage 1, in batches of the run's size.
    Params,
}

/// How it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What.
    pub subject: Subject,
    /// Steps, R.
    pub repeats: u64,
    /// Copies of each row in a step, each with a time and noise of its own; the run's where not given.
    pub flow_mul: Option<usize>,
    /// Decides all draws.
    pub seed: u64,
}

/// One combination.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The weight: `uniform`, `likelihood`, `kl` or `table`.
    pub weight: &'static str,
    /// How times are drawn: `uniform`, `stratified`, `logit-normal` or `importance`.
    pub time: &'static str,
    /// The gradient: `full`, `detached` or `centred` of latents, `params`.
    pub gradient: &'static str,
    /// Mean loss.
    pub loss: f64,
    /// Standard deviation of the loss of a step.
    pub loss_std: f64,
    /// √S, the norm of the mean gradient.
    pub signal: f64,
    /// √V, the deviation of a step's gradient.
    pub deviation: f64,
    /// V/S; `None` where no signal was found.
    pub noise: Option<f64>,
}

/// Measures all combinations on the prior of a run of `pretrain`.
///
/// # Errors
/// A path that is no such run; a prior that is told something; data that cannot be read.
pub fn measure(run: &Path, options: &Options) -> Result<Vec<Measured>> {
    let run = Restored::open(run)?;
    let device = run.device()?;
    device.scope(|| match run.config.dtype {
        DType::F32 => measure_in::<f32>(&run, &device, options),
        DType::Bf16 => measure_in::<bf16>(&run, &device, options),
        DType::F16 => measure_in::<f16>(&run, &device, options),
    })
}

fn measure_in<X: FloatX>(run: &Restored, device: &Device, options: &Options) -> Result<Vec<Measured>> {
    run.loaded.expect_stage(Stage::Pretrain)?;
    let mut config = run.config.clone();
    config.flow.flow_mul = options.flow_mul.unwrap_or(config.flow.flow_mul);
    match options.subject {
        Subject::Latents { at, count } => {
            let prior = open_prior::<X>(device, run.loaded.path(), true)?;
            Still::new(config, prior, at, count, options.seed)?.measure(options)
        }
        Subject::Params => {
            let (task, engine) = run.pretrain::<X>(device)?;
            parameters(&config.flow, task, &engine.optimizer.averaged()?, options)
        }
    }
}

/// The weights that are looked at: all that need no table, and the run's where it has one.
fn weights(flow: &FlowConfig) -> impl Iterator<Item = (&'static str, config::Weight)> {
    use config::Weight::{Kl, Likelihood, Table, Uniform};
    let table = !flow.weight_table.is_empty();
    [("uniform", Uniform), ("likelihood", Likelihood), ("kl", Kl), ("table", Table)]
        .into_iter()
        .filter(move |(_, weight)| *weight != Table || table)
}

const TIMES: [(&str, TimeSampling); 4] = [
    ("uniform", TimeSampling::Uniform),
    ("stratified", TimeSampling::Stratified),
    ("logit-normal", TimeSampling::LogitNormal),
    ("importance", TimeSampling::Importance),
];

const GRADIENTS: [(&str, LatentGradient); 3] = [
    ("full", LatentGradient::Full),
    ("detached", LatentGradient::Detached),
    ("centred", LatentGradient::Centred),
];

/// Calls `each` with every weight, every way to draw times, and `base` changed to them.
fn combinations(
    flow: &FlowConfig,
    device: &Device,
    base: &Objective,
    mut each: impl FnMut(&'static str, &'static str, Objective) -> Result<()>,
) -> Result<()> {
    for (weight_name, kind) in weights(flow) {
        let weight: Weight = setup::weight(&FlowConfig { weight: kind, ..flow.clone() }, device)?;
        for (time_name, sampling) in TIMES {
            let times = setup::times(flow, sampling, &weight, device)?;
            let (weight, control_variate) = (weight.clone(), false);
            each(weight_name, time_name, Objective { times, weight, control_variate, ..base.clone() })?;
        }
    }
    Ok(())
}

/// Latents that do not move, under a frozen prior.
struct Still<X: FloatX> {
    prior: Prior<X>,
    config: Config,
    objective: Objective,
    latents: Tensor<f32>, // (B, D)
}

impl<X: FloatX> Still<X> {
    fn new(config: Config, prior: Prior<X>, at: Latents, count: usize, seed: u64) -> Result<Self> {
        if prior.net.conditioning() != Conditioning::Nothing || prior.net.spatial() != Spatial::Nothing {
            return Err(Error::Usage(
                "bench variance measures unconditional priors; this one takes a condition".into(),
            ));
        }
        if config.flow.norm_target {
            return Err(Error::Usage(
                "bench variance holds latents still, but flow.norm_target of this run normalises them by their batch".into(),
            ));
        }
        let (device, width) = (prior.params.flat().device().clone(), prior.net.data_width());
        let mut y = vec![0.0; count * width];
        match at {
            Latents::Normal => crate::device::Isa::detect().run(
                #[inline(always)]
                |arch| {
                    let draw = Draw::new(seed, Stream::Latents, 0);
                    draw.fill_normal_rows(arch, &mut y, width, 0, |row| (row as u64, 0));
                },
            ),
            Latents::Data => {
                let data = Reference::open(&config.data, prior.standardise.as_ref(), seed)?;
                let rows = data.rows();
                if rows.len() < y.len() || data.width() != width {
                    let found = format!("{} of width {}", rows.len() / data.width().max(1), data.width());
                    let expected = format!("{count} of width {width}");
                    return Err(Error::data(setup::source_name(&config), "rows", expected, found));
                }
                y.copy_from_slice(&rows[..count * width]);
            }
        }
        let latents = Tensor::from_f32(&device, [count, width], &y)?;
        let plain =
            Config { train: TrainConfig { micro_batches: 1, ..config.train.clone() }, ..config.clone() };
        let objective = setup::objective(&plain, &prior.net, count, &device)?;
        Ok(Self { prior, config, objective, latents })
    }

    fn measure(&self, options: &Options) -> Result<Vec<Measured>> {
        let mut found = Vec::new();
        let device = self.latents.device();
        combinations(&self.config.flow, device, &self.objective, |weight, time, objective| {
            for (gradient, kind) in GRADIENTS {
                let moments = self.moments(&objective, kind, options)?;
                found.push(moments.measured(weight, time, gradient));
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn moments(&self, objective: &Objective, kind: LatentGradient, options: &Options) -> Result<Moments> {
        let (count, width) = self.latents.rows_cols();
        let mut moments = Moments::new(count, width);
        let velocity: Velocity<'_, X> = self.prior.velocity(objective.form);
        for repeat in 0..options.repeats {
            let batch = Batch { data: &self.latents, cond: Condition::default(), first: 0 };
            let draws = Draws::evaluation(options.seed, repeat);
            let outcome = objective.evaluate(velocity, batch, draws, 1.0, Want::Latents(kind))?;
            let loss = outcome.loss()?;
            let dy = outcome.dy.ok_or_else(|| Error::argument("variance", "dy", "a gradient", "none"))?;
            // Of the loss of one latent, not of the mean over all.
            moments.add(loss, &dy.to_f32_vec()?, count as f64);
        }
        Ok(moments)
    }
}

/// Measures the gradients of parameters, in steps that no training run has made.
fn parameters<X: FloatX>(
    flow: &FlowConfig,
    mut task: Pretrain,
    params: &Params<X>,
    options: &Options,
) -> Result<Vec<Measured>> {
    let device = params.flat().device().clone();
    let base = Objective { flow_mul: flow.flow_mul, ..task.objective.clone() };
    let mut found = Vec::new();
    combinations(flow, &device, &base, |weight, time, objective| {
        task.objective = objective;
        let mut moments = Moments::new(1, params.layout().len());
        let mut grads = Grads::zeros(&device, params.layout().clone());
        for repeat in 0..options.repeats {
            grads.clear()?;
            let step = BEYOND + options.seed.wrapping_mul(options.repeats) % BEYOND + repeat;
            let losses = task.losses(params, step, 1.0, &mut grads)?;
            moments.add(losses.loss, &grads.flat().to_f32_vec()?, 1.0);
        }
        found.push(moments.measured(weight, time, "params"));
        Ok(())
    })?;
    Ok(found)
}

/// Steps from here on are beyond those of any run.
const BEYOND: u64 = 1 << 40;

/// Running means and sums of squares (Welford) of the gradients of some latents, and of the loss.
struct Moments {
    count: f64,
    loss: (f64, f64),
    mean: Vec<f64>,    // (latents, width)
    squares: Vec<f64>, // (latents)
    width: usize,
}

impl Moments {
    fn new(latents: usize, width: usize) -> Self {
        let (mean, squares) = (vec![0.0; latents * width], vec![0.0; latents]);
        Self { count: 0.0, loss: (0.0, 0.0), mean, squares, width }
    }

    /// Adds one step: its loss and its gradients, times `scale`.
    fn add(&mut self, loss: f64, gradients: &[f32], scale: f64) {
        self.count += 1.0;
        let change = loss - self.loss.0;
        self.loss.0 += change / self.count;
        self.loss.1 += change * (loss - self.loss.0);
        let rows = gradients.chunks_exact(self.width).zip(self.mean.chunks_exact_mut(self.width));
        for ((gradient, mean), squares) in rows.zip(&mut self.squares) {
            for (g, mean) in gradient.iter().zip(mean) {
                let g = *g as f64 * scale;
                let change = g - *mean;
                *mean += change / self.count;
                *squares += change * (g - *mean);
            }
        }
    }

    fn measured(&self, weight: &'static str, time: &'static str, gradient: &'static str) -> Measured {
        let latents = self.squares.len() as f64;
        let variance = self.squares.iter().sum::<f64>() / latents / (self.count - 1.0);
        let square = self.mean.iter().map(|g| g * g).sum::<f64>() / latents;
        let signal = (square - variance / self.count).max(0.0);
        Measured {
            weight,
            time,
            gradient,
            loss: self.loss.0,
            loss_std: (self.loss.1 / (self.count - 1.0)).sqrt(),
            signal: signal.sqrt(),
            deviation: variance.sqrt(),
            noise: (signal > 0.0).then(|| variance / signal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two latents with known means and deviations: V is the mean of their variances, S of their squared means.
    #[test]
    fn moments_part_signal_and_noise() {
        let mut moments = Moments::new(2, 2);
        let draw = Draw::new(3, Stream::Evaluation, 0);
        let steps = 20_000;
        for step in 0..steps {
            let mut z = [0.0; 5];
            crate::device::Isa::detect().run(
                #[inline(always)]
                |arch| draw.fill_normal(arch, &mut z, step, 0),
            );
            let gradients = [3.0 + z[0], 4.0 + 2.0 * z[1], z[2], 3.0 * z[3]];
            moments.add(7.0 + 0.5 * z[4] as f64, &gradients.map(|g| 0.5 * g), 2.0);
        }
        let found = moments.measured("uniform", "uniform", "full");
        let near = |a: f64, b: f64, tolerance: f64| assert!((a - b).abs() <= tolerance * b, "{a}, not {b}");
        near(found.deviation.powi(2), (1.0 + 4.0 + 1.0 + 9.0) / 2.0, 0.03);
        near(found.signal.powi(2), 25.0 / 2.0, 0.03);
        near(found.noise.unwrap(), 15.0 / 25.0, 0.05);
        near(found.loss, 7.0, 0.002);
        near(found.loss_std, 0.5, 0.02);
    }

    #[test]
    fn noise_without_signal_is_not_taken_for_one() {
        let mut moments = Moments::new(1, 1);
        [1.0, -1.0, 1.0, -1.0].iter().for_each(|g| moments.add(0.0, &[*g], 1.0));
        let found = moments.measured("uniform", "uniform", "full");
        assert_eq!((found.signal, found.noise), (0.0, None));
    }
}

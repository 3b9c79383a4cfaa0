//! One training step, the same for both stages: gradients, norm, clip, update, loss scale.
//!
//! A step whose loss or gradient is not finite never touches the weights: it is skipped, counted and named. Everything
//! that decides the next step is in [`Engine`] and in the step number, so saving it is enough to continue bit for bit.

use crate::error::{Error, Result};
use crate::float::{DType, FloatX};
use crate::nn::params::{Grads, Params};
use crate::ops::grad_norm::{clip_factor, grad_norm};
use crate::ops::optimizer::Rounding;
use crate::optim::scaler::{Scaler, ScalerConfig};
use crate::optim::schedule::Schedule;
use crate::optim::{self, Optimizer, OptimizerConfig};
use crate::rng::{Draw, Stream};
use crate::tensor::Tensor;
use crate::train::config::Config;
use crate::train::skips::Skips;

/// What a stage adds to the common step.
pub trait Task<P: FloatX> {
    /// Adds the gradients of `step`, times `loss_scale`, to `grads`.
    ///
    /// # Errors
    /// Data that cannot be read, or sizes that do not fit.
    fn gradients(
        &mut self,
        params: &Params<P>,
        step: u64,
        loss_scale: f32,
        grads: &mut Grads,
    ) -> Result<Losses>;
}

/// The losses of one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// What is minimised.
    pub loss: f64,
    /// Its parts, by name, for the log.
    pub parts: Vec<(&'static str, f64)>,
}

/// What one step did.
#[derive(Debug)]
pub struct Report {
    /// The step, from 0.
    pub step: u64,
    /// The losses before the update.
    pub losses: Losses,
    /// ‖gradient‖ before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Loss scale, for f16.
    pub loss_scale: f32,
    /// What was not finite, when the step was skipped.
    pub skipped: Option<String>,
    /// The error that ends the run, after too many skipped steps in a row.
    pub verdict: Option<Error>,
}

/// Parameters under training, with everything that the next step depends on.
#[derive(Debug)]
pub struct Engine<P: FloatX> {
    /// Parameters, moments, averages.
    pub optimizer: Optimizer<P>,
    /// Loss scale, for f16.
    pub scaler: Option<Scaler>,
    /// The next step.
    pub step: u64,
    /// Steps that were skipped so far, and in a row.
    pub skips: Skips,
    grads: Grads,
    rules: Rules,
}

/// The constants of a run.
#[derive(Clone, Debug)]
struct Rules {
    lr: f64,
    steps: u64,
    schedule: Schedule,
    clip: f64,
    scaler: ScalerConfig,
    rounding: optim::Rounding,
    seed: u64,
    max_skipped: u64,
}

impl<P: FloatX> Engine<P> {
    /// Starts at step 0 with the parameters `initial`, the values of a flat buffer in f32.
    ///
    /// # Errors
    /// A buffer that does not fit the layout.
    pub fn new(config: &Config, params: Params<P>, initial: Tensor<f32>) -> Result<Self> {
        let device = params.flat().device().clone();
        let grads = Grads::zeros(&device, params.layout().clone());
        let optimizer = Optimizer::new(optimizer_config(config), params, initial)?;
        let rules = Rules {
            lr: config.optim.lr,
            steps: config.train.steps,
            schedule: config.optim.schedule.clone(),
            clip: config.optim.clip,
            scaler: config.scaler.clone(),
            rounding: config.optim.rounding,
            seed: config.seed,
            max_skipped: config.train.max_skipped,
        };
        let scaler = (config.dtype == DType::F16).then(|| Scaler::new(&config.scaler));
        Ok(Self { optimizer, scaler, step: 0, skips: Skips::default(), grads, rules })
    }

    /// Makes one step.
    ///
    /// # Errors
    /// Whatever the task reports. A step that is skipped is no error by itself; see [`Report::verdict`].
    pub fn advance(&mut self, task: &mut impl Task<P>) -> Result<Report> {
        let loss_scale = self.scaler.as_ref().map_or(1.0, Scaler::scale);
        self.grads.clear();
        let losses = task.gradients(&self.optimizer.params, self.step, loss_scale, &mut self.grads)?;
        let unscale = 1.0 / loss_scale;
        let norm = grad_norm(self.grads.flat(), unscale)?;
        let lr = self.rules.schedule.rate(self.rules.lr, self.rules.steps, self.step);
        let skipped = self.trouble(&losses, norm)?;
        if skipped.is_none() {
            let factor = clip_factor(norm, self.rules.clip);
            let rounding = match self.rules.rounding {
                optim::Rounding::Nearest => Rounding::Nearest,
                optim::Rounding::Stochastic => {
                    Rounding::Stochastic(Draw::new(self.rules.seed, Stream::Rounding, self.step))
                }
            };
            self.optimizer.step(&self.grads, lr as f32, (factor / loss_scale as f64) as f32, rounding)?;
        }
        if let Some(scaler) = &mut self.scaler {
            scaler.update(&self.rules.scaler, skipped.is_none());
        }
        let verdict = self.count(skipped.as_deref());
        self.step += 1;
        Ok(Report { step: self.step - 1, losses, grad_norm: norm, lr, loss_scale, skipped, verdict })
    }

    /// Names what is not finite, if anything is.
    fn trouble(&self, losses: &Losses, norm: f64) -> Result<Option<String>> {
        if !losses.loss.is_finite() {
            return Ok(Some("loss".to_owned()));
        }
        if norm.is_finite() {
            return Ok(None);
        }
        let name = self.grads.layout().first_where(&self.grads.flat().on_host()?, |g| !g.is_finite());
        Ok(Some(match name {
            Some(name) => format!("gradient of `{name}`"),
            None => "gradient norm".to_owned(),
        }))
    }

    /// Counts the step; returns the error that ends the run if it was one too many to be skipped in a row.
    ///
    /// An f16 run finds its loss scale by skipping; only at the smallest scale does a skip mean trouble.
    fn count(&mut self, skipped: Option<&str>) -> Option<Error> {
        let Some(what) = skipped else {
            self.skips.good();
            return None;
        };
        let searching = self.scaler.as_ref().is_some_and(|s| s.scale() as f64 > self.rules.scaler.min);
        let max = if searching { u64::MAX } else { self.rules.max_skipped };
        self.skips.bad(self.step, what, max).err()
    }

    /// Returns the gradients of the last step.
    pub fn grads(&self) -> &Grads {
        &self.grads
    }
}

fn optimizer_config(config: &Config) -> OptimizerConfig {
    use crate::ops::optimizer::{Betas, Rule};
    let o = &config.optim;
    let (beta1, beta2) = (o.beta1 as f32, o.beta2 as f32);
    let betas = Betas { beta1, beta2, eps: o.eps as f32 };
    let rule = match o.kind {
        optim::OptimKind::Adam => Rule::Adam(betas),
        optim::OptimKind::Adamw => Rule::AdamW(betas),
        optim::OptimKind::Sgd => Rule::Sgd { momentum: o.momentum as f32, nesterov: o.nesterov },
        optim::OptimKind::Lion => Rule::Lion { beta1, beta2 },
    };
    let ema = o.ema.iter().map(|d| *d as f32).collect();
    OptimizerConfig { rule, weight_decay: o.weight_decay as f32, ema }
}

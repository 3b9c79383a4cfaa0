//! One training step, the same for both stages: gradients, norm, clip, update, loss scale.
//!
//! A step whose loss or gradient is not finite never touches the weights: it is skipped, counted and named. Everything
//! that decides the next step is in [`Engine`] and in the step number, so saving it is enough to continue bit for bit.

use crate::device::Device;
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
use crate::train::steps_on_device::OnDevice;
pub use crate::train::task::{Losses, Task};

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
    pub(super) grads: Grads,
    pub(super) rules: Rules,
    /// On a CUDA device: what decides there, once the first step was asked for.
    pub(super) on_device: Option<OnDevice>,
}

/// The constants of a run.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    lr: f64,
    pub(super) steps: u64,
    schedule: Schedule,
    pub(super) clip: f64,
    pub(super) scaler: ScalerConfig,
    pub(super) rounding: optim::Rounding,
    pub(super) seed: u64,
    max_skipped: u64,
    pub(super) graph: bool,
}

impl Rules {
    /// Returns the learning rate of a step.
    pub(super) fn rate(&self, step: u64) -> f64 {
        self.schedule.rate(self.lr, self.steps, step)
    }
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
            graph: config.train.graph,
        };
        let scaler = (config.dtype == DType::F16).then(|| Scaler::new(&config.scaler));
        Ok(Self { optimizer, scaler, step: 0, skips: Skips::default(), grads, rules, on_device: None })
    }

    /// Makes one step. On a CUDA device it is queued, and `None` is returned unless a number of it was waited for anyway:
    /// [`Engine::look`] tells how it ended.
    ///
    /// # Errors
    /// Whatever the task reports. A step that is skipped is no error by itself; see [`Report::verdict`].
    pub fn advance(&mut self, task: &mut impl Task<P>) -> Result<Option<Report>> {
        match self.grads.flat().device() {
            Device::Cpu(_) => self.advance_here(task).map(Some),
            Device::Cuda(_) => self.advance_on_device(task),
        }
    }

    /// Makes one step and tells how it ended.
    ///
    /// # Errors
    /// See [`Engine::advance`].
    pub fn advance_and_look(&mut self, task: &mut impl Task<P>) -> Result<Report> {
        match self.advance(task)? {
            Some(report) => Ok(report),
            None => self.look(),
        }
    }

    fn advance_here(&mut self, task: &mut impl Task<P>) -> Result<Report> {
        let loss_scale = self.scaler.as_ref().map_or(1.0, Scaler::scale);
        self.grads.forget()?;
        let losses = task.losses(&self.optimizer.params, self.step, loss_scale, &mut self.grads)?;
        self.grads.settle();
        let unscale = 1.0 / loss_scale;
        let norm = grad_norm(self.grads.flat(), unscale)?;
        let lr = self.rules.rate(self.step);
        let skipped = self.trouble(&losses, norm)?;
        if skipped.is_none() {
            let factor = clip_factor(norm, self.rules.clip);
            let rounding = self.rounding(Draw::new(self.rules.seed, Stream::Rounding, self.step));
            self.optimizer.step(&self.grads, lr as f32, (factor / loss_scale as f64) as f32, rounding)?;
        }
        if let Some(scaler) = &mut self.scaler {
            scaler.update(&self.rules.scaler, skipped.is_none());
        }
        let verdict = self.count(skipped.as_deref());
        self.step += 1;
        Ok(Report { step: self.step - 1, losses, grad_norm: norm, lr, loss_scale, skipped, verdict })
    }

    /// Returns how weights are rounded, by `draw` if at random.
    pub(super) fn rounding(&self, draw: Draw) -> Rounding {
        match self.rules.rounding {
            optim::Rounding::Nearest => Rounding::Nearest,
            optim::Rounding::Stochastic => Rounding::Stochastic(draw),
        }
    }

    /// Names what is not finite, if anything is.
    pub(super) fn trouble(&self, losses: &Losses, norm: f64) -> Result<Option<String>> {
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
    fn count(&mut self, skipped: Option<&str>) -> Option<Error> {
        let Some(what) = skipped else {
            self.skips.good();
            return None;
        };
        let max = self.most_skipped();
        self.skips.bad(self.step, what, max).err()
    }

    /// Returns how many steps in a row may be skipped: an f16 run finds its loss scale by skipping, and only at the smallest scale
    /// does a skip mean trouble.
    pub(super) fn most_skipped(&self) -> u64 {
        let searching = self.scaler.as_ref().is_some_and(|s| s.scale() as f64 > self.rules.scaler.min);
        if searching { u64::MAX } else { self.rules.max_skipped }
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

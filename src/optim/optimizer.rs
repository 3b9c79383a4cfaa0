//! Parameters under an optimizer: master weights, moments and averages in buffers of the parameters' layout.

use std::ops::Range;

use crate::error::Result;
use crate::float::FloatX;
use crate::nn::params::{Grads, Params};
use crate::ops::elementwise::cast;
use crate::ops::optimizer::{Rounding, Rule, State, Step, optimizer_step, optimizer_step_by};
use crate::ops::step_control::StepControl;
use crate::tensor::Tensor;

/// The constants of an optimizer.
#[derive(Clone, Debug)]
pub struct OptimizerConfig {
    /// Update rule.
    pub rule: Rule,
    /// Weight decay, on matrices only.
    pub weight_decay: f32,
    /// Decays of the averages; each starts as a hard copy of the parameters.
    pub ema: Vec<f32>,
}

/// Parameters and everything that an optimizer keeps about them.
#[derive(Debug)]
pub struct Optimizer<X: FloatX> {
    config: OptimizerConfig,
    decayed: Vec<Range<usize>>,
    /// The parameters that the network is evaluated with.
    pub params: Params<X>,
    /// f32 weights, where X is narrower.
    pub master: Option<Tensor<f32>>,
    /// First moment.
    pub m: Tensor<f32>,
    /// Second moment, for Adam.
    pub v: Option<Tensor<f32>>,
    /// Averages with their decays.
    pub emas: Vec<(f32, Tensor<f32>)>,
    /// Updates made.
    pub count: u64,
}

impl<X: FloatX> Optimizer<X> {
    /// Starts from `params`, with zero moments; `master` are their f32 values.
    pub fn new(config: OptimizerConfig, params: Params<X>, master: Tensor<f32>) -> Result<Self> {
        let device = params.flat().device().clone();
        let shape = params.flat().shape();
        let emas = config.ema.iter().map(|d| Ok((*d, master.duplicate()?))).collect::<Result<_>>()?;
        let narrow = X::DTYPE != f32::DTYPE;
        Ok(Self {
            decayed: params.layout().decayed(),
            master: narrow.then_some(master),
            m: Tensor::zeros(&device, shape),
            v: config.rule.has_second_moment().then(|| Tensor::zeros(&device, shape)),
            emas,
            count: 0,
            config,
            params,
        })
    }

    /// Updates the parameters. `grad_scale` multiplies the gradients: 1/loss scale times the clip factor.
    pub fn step(&mut self, grads: &Grads, lr: f32, grad_scale: f32, rounding: Rounding) -> Result<()> {
        self.count += 1;
        let step = Step {
            rule: self.config.rule,
            lr,
            weight_decay: self.config.weight_decay,
            count: self.count,
            grad_scale,
            rounding,
        };
        let state =
            State { master: self.master.as_mut(), m: &mut self.m, v: self.v.as_mut(), emas: &mut self.emas };
        optimizer_step(self.params.flat_mut(), state, grads.flat(), &self.decayed, &step)
    }

    /// Updates the parameters by the numbers that `control` has decided on, if the step counts. [`Optimizer::count`] stays as it is: the
    /// device counts.
    pub fn step_by(&mut self, grads: &Grads, rounding: Rounding, control: &StepControl) -> Result<()> {
        let state =
            State { master: self.master.as_mut(), m: &mut self.m, v: self.v.as_mut(), emas: &mut self.emas };
        let (flat, rule) = (self.params.flat_mut(), (self.config.rule, rounding));
        optimizer_step_by(flat, state, grads.flat(), &self.decayed, rule, control)
    }

    /// Returns the constants.
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Returns the parameters that evaluations use: the first average, or the weights themselves.
    pub fn averaged(&self) -> Result<Params<X>> {
        let flat = match (self.emas.first(), &self.master) {
            (Some((_, ema)), _) => cast(ema)?,
            (None, Some(master)) => cast(master)?,
            (None, None) => self.params.flat().duplicate()?,
        };
        Params::from_tensor(self.params.layout().clone(), flat)
    }
}

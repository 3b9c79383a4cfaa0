//! What a step decides without the host: its losses, gradient norm, whether it counts, clip factor, loss scale, learning rate.
//!
//! On the CPU the engine decides in place. On a CUDA device waiting for a number would leave the card idle, and a captured
//! step cannot take new arguments: there the state lives in device memory, kernels advance it, and the host looks at it when
//! it wants a record. The rules are the engine's; `kernels/step_control.cu` states them.

use std::mem::offset_of;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::device::cuda::{DeviceBuf, Grid, Read, Write};
use crate::device::{Device, Queue};
use crate::error::{Error, Result};
use crate::float::{join, split};
use crate::kernels;
use crate::ops::flow_loss::Scale;
use crate::ops::grad_norm::partial_squares;
use crate::ops::optimizer::{Betas, Rule};
use crate::tensor::Tensor;

/// Losses that a step keeps apart: the total, and its parts.
pub const LOSSES: usize = 8;

/// The state, as it lies in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct StepState {
    /// The running step, or the last one.
    pub step: u64,
    /// The next step.
    pub next: u64,
    /// Updates made.
    pub updates: u64,
    /// Steps that were skipped since the state was made.
    pub skipped: u64,
    /// Skipped steps since the last good one.
    pub in_a_row: u64,
    /// Good steps in a row since the loss scale moved.
    pub good_steps: u64,
    /// The loss scale of the next step.
    pub loss_scale: f32,
    inverse_scale: f32,
    /// The loss scale of the last step.
    pub used_scale: f32,
    /// The learning rate of the last step.
    pub lr: f32,
    /// What was not finite in the last step: 0 nothing, 1 the loss, 2 the gradient.
    pub trouble: u32,
    unused: u32,
    norm: [f32; 2],
    losses: [[f32; 2]; LOSSES],
    numbers: [f32; 16],
}

impl StepState {
    /// Returns the gradient norm of the last step, before clipping.
    pub fn norm(&self) -> f64 {
        join(self.norm)
    }

    /// Returns the loss of the last step, and its parts.
    pub fn losses(&self) -> [f64; LOSSES] {
        self.losses.map(join)
    }
}

/// The rules of a run.
#[derive(Clone, Debug)]
pub struct StepRules {
    /// The update rule.
    pub rule: Rule,
    /// Weight decay.
    pub weight_decay: f32,
    /// Largest gradient norm; 0 does not clip.
    pub clip: f32,
    /// The learning rate of each step.
    pub rates: Vec<f32>,
    /// How the loss scale moves; `None` leaves it at 1.
    pub scaling: Option<Scaling>,
}

/// How the loss scale moves.
#[derive(Clone, Copy, Debug)]
pub struct Scaling {
    /// Multiplies it after `interval` good steps in a row.
    pub growth: f32,
    /// Multiplies it after a step that was not finite.
    pub backoff: f32,
    /// The smallest scale.
    pub smallest: f32,
    /// Good steps in a row before it grows.
    pub interval: u32,
}

/// The state of a run's steps on a CUDA device.
pub struct StepControl {
    queue: Arc<Queue>,
    state: DeviceBuf,
    rates: Tensor<f32>,
    corrections: Tensor<f32>,
    rules: StepRules,
}

impl std::fmt::Debug for StepControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepControl").finish_non_exhaustive()
    }
}

const ONE_WARP: Grid = Grid { blocks: [1, 1, 1], threads: 32, shared: 0 };
const ONE_BLOCK: Grid = Grid { blocks: [1, 1, 1], threads: 256, shared: 0 };

impl StepControl {
    /// Makes the state of a run whose next step is `step`, after `updates` updates.
    ///
    /// # Errors
    /// The CPU; a run without steps; a device that failed.
    pub fn new(device: &Device, rules: StepRules, step: u64, updates: u64) -> Result<Self> {
        let Device::Cuda(queue) = device else {
            let found = device.describe();
            return Err(Error::argument("step_control", "device", "a CUDA device", found));
        };
        if rules.rates.is_empty() {
            return Err(Error::argument("step_control", "rates", "a rate for each step", "none"));
        }
        let corrections = corrections(rules.rule, rules.rates.len());
        let mut state = StepState::zeroed();
        (state.step, state.next, state.updates) = (step, step, updates);
        (state.loss_scale, state.inverse_scale, state.used_scale) = (1.0, 1.0, 1.0);
        Ok(Self {
            queue: queue.clone(),
            state: queue.uploaded(&[state])?,
            rates: Tensor::from_f32(device, [rules.rates.len()], &rules.rates)?,
            corrections: Tensor::from_f32(device, [corrections.len()], &corrections)?,
            rules,
        })
    }

    /// Sets the loss scale, and the good steps since it moved.
    ///
    /// # Errors
    /// A device that failed.
    pub fn set_scale(&mut self, scale: f32, good_steps: u64) -> Result<()> {
        let mut state = self.look()?;
        (state.loss_scale, state.inverse_scale, state.good_steps) = (scale, 1.0 / scale, good_steps);
        self.queue.upload(self.state.address(), &[state])
    }

    /// Counts skipped steps on from those of an earlier part of the run.
    ///
    /// # Errors
    /// A device that failed.
    pub fn set_skipped(&mut self, skipped: u64, in_a_row: u64) -> Result<()> {
        let mut state = self.look()?;
        (state.skipped, state.in_a_row) = (skipped, in_a_row);
        self.queue.upload(self.state.address(), &[state])
    }

    /// Returns the state, when everything that was queued is done.
    ///
    /// # Errors
    /// A device that failed.
    pub fn look(&self) -> Result<StepState> {
        let mut state = [StepState::zeroed()];
        self.queue.download(&mut state, self.state.address())?;
        Ok(state[0])
    }

    /// Begins the next step.
    ///
    /// # Errors
    /// A device that failed, here and below.
    pub fn begin(&self) -> Result<()> {
        kernels::step_begin(&self.queue, ONE_WARP, self.words())
    }

    /// Adds `factor`·Σ `rows` to the loss of `slot`, and `weight` times that to the total, slot 0.
    pub fn add_loss(&self, slot: usize, rows: &Tensor<f32>, factor: f64, weight: f64) -> Result<()> {
        let (slot, n) = (check(slot)?, rows.len() as u32);
        let ([factor, factor_low], [weight, weight_low]) = (split(factor), split(weight));
        let (rows, words) = (rows.read()?, self.words());
        kernels::step_add_loss(
            &self.queue,
            ONE_BLOCK,
            words,
            rows,
            n,
            slot,
            factor,
            factor_low,
            weight,
            weight_low,
        )
    }

    /// Adds a number that the host knows to the loss of `slot`, and `weight` times it to the total.
    pub fn add_value(&self, slot: usize, value: f64, weight: f64) -> Result<()> {
        let (slot, words) = (check(slot)?, self.words());
        let ([value, value_low], [weight, weight_low]) = (split(value), split(weight));
        kernels::step_add_value(&self.queue, ONE_WARP, words, slot, value, value_low, weight, weight_low)
    }

    /// Decides what becomes of the step whose gradients, times the loss scale, are `g`.
    pub fn decide(&self, g: &Tensor<f32>) -> Result<()> {
        let (partials, blocks) = partial_squares(&self.queue, g)?;
        let rules = &self.rules;
        let (beta1, beta2, eps) = constants(rules.rule);
        let none = Scaling { growth: 1.0, backoff: 1.0, smallest: 1.0, interval: 0 };
        let scaling = rules.scaling.unwrap_or(none);
        kernels::step_decide(
            &self.queue,
            ONE_BLOCK,
            self.words(),
            Read::at(partials.address()),
            blocks,
            self.rates.read()?,
            self.rates.len() as u64,
            self.corrections.read()?,
            self.corrections.len() as u64 / 2,
            rules.clip,
            rules.weight_decay,
            beta1,
            beta2,
            eps,
            scaling.growth,
            scaling.backoff,
            scaling.smallest,
            scaling.interval,
        )
    }

    /// Returns where the optimizer finds its numbers.
    pub(crate) fn numbers(&self) -> Read<'_, f32> {
        Read::at(self.state.address() + offset_of!(StepState, numbers) as u64)
    }

    /// Returns the address of the number of the running step.
    pub(crate) fn counter(&self) -> u64 {
        self.state.address() + offset_of!(StepState, step) as u64
    }

    /// Returns the loss scale where it lies: what gradients of the device are multiplied by, whatever it is when they are computed.
    pub fn loss_scale(&self) -> Scale {
        Scale::at(self.state.address() + offset_of!(StepState, loss_scale) as u64)
    }

    fn words(&self) -> Write<'_, u64> {
        Write::at(self.state.address())
    }
}

fn check(slot: usize) -> Result<u32> {
    match slot < LOSSES {
        true => Ok(slot as u32),
        false => Err(Error::argument("step_control", "slot", format!("below {LOSSES}"), slot)),
    }
}

/// Returns β1, β2 and eps, or what the rule has instead.
pub(crate) fn constants(rule: Rule) -> (f32, f32, f32) {
    match rule {
        Rule::Adam(b) | Rule::AdamW(b) => (b.beta1, b.beta2, b.eps),
        Rule::Sgd { momentum, .. } => (momentum, 0.0, 0.0),
        Rule::Lion { beta1, beta2 } => (beta1, beta2, 0.0),
    }
}

/// Returns 1/(1 − β1ᵗ) and 1/√(1 − β2ᵗ) for each update t from 1, until both are 1 or the run is over.
fn corrections(rule: Rule, steps: usize) -> Vec<f32> {
    let Betas { beta1, beta2, .. } = match rule {
        Rule::Adam(b) | Rule::AdamW(b) => b,
        _ => return vec![1.0, 1.0],
    };
    let rest = |beta: f32, t: usize| 1.0 - (beta as f64).powf(t as f64);
    let mut all = Vec::new();
    for t in 1..=steps {
        let pair = [(1.0 / rest(beta1, t)) as f32, (1.0 / rest(beta2, t).sqrt()) as f32];
        all.extend(pair);
        if pair == [1.0, 1.0] {
            break;
        }
    }
    all
}

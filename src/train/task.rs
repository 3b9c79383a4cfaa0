//! What a stage adds to the common step: its gradients and its losses.

use crate::error::Result;
use crate::float::FloatX;
use crate::flow::Draws;
use crate::flow::objective::total;
use crate::nn::params::{Grads, Params};
use crate::ops::flow_loss::Scale;
use crate::ops::step_control::StepControl;
use crate::tensor::Tensor;

/// What a stage adds to the common step.
pub trait Task<P: FloatX> {
    /// Does what a step needs of the host, before anything of it is computed: reads its batch, looks after the network.
    ///
    /// # Errors
    /// Data that cannot be read.
    fn prepare(&mut self, params: &Params<P>, step: u64) -> Result<()>;

    /// Adds the gradients of the step that was prepared, times the loss scale, to `grads`, and its losses to `meter`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    fn gradients(
        &mut self,
        params: &Params<P>,
        at: StepAt,
        grads: &mut Grads,
        meter: &mut Meter<'_>,
    ) -> Result<()>;

    /// Names the option for which a step has to wait for numbers from the device, if there is one. Such a step cannot be captured.
    fn waits(&self) -> Option<&'static str>;

    /// Returns what a captured step of this task holds fast beside addresses: it is captured again when this changes.
    fn fixed(&self, step: u64) -> String;

    /// Prepares `step` and adds its gradients, times `loss_scale`, to `grads`.
    ///
    /// # Errors
    /// Data that cannot be read; sizes that do not fit.
    fn losses(
        &mut self,
        params: &Params<P>,
        step: u64,
        loss_scale: f32,
        grads: &mut Grads,
    ) -> Result<Losses> {
        self.prepare(params, step)?;
        let mut meter = Meter::default();
        self.gradients(
            params,
            StepAt { step, loss_scale: loss_scale.into(), counter: 0 },
            grads,
            &mut meter,
        )?;
        Ok(meter.losses)
    }
}

/// Which step is computed, and by which loss scale.
#[derive(Clone, Copy, Debug)]
pub struct StepAt {
    /// The step; with a counter, what is added to it.
    pub step: u64,
    /// The loss scale; a number of the host wherever [`Task::waits`] names an option.
    pub loss_scale: Scale,
    /// The device address of the number of the step, 0 for none.
    pub counter: u64,
}

impl StepAt {
    /// Returns the random numbers of this step.
    pub fn draws(self, seed: u64) -> Draws {
        Draws::training(seed, self.step).counted(self.counter)
    }
}

/// The losses of one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// What is minimised.
    pub loss: f64,
    /// Its parts, by name, for the log.
    pub parts: Vec<(&'static str, f64)>,
}

/// Where a task puts its losses: added up on the host at once, or by the device.
#[derive(Debug, Default)]
pub struct Meter<'a> {
    /// The losses; of those that the device adds up, the names alone.
    pub losses: Losses,
    device: Option<&'a StepControl>,
}

impl<'a> Meter<'a> {
    /// Has the device add losses up.
    pub fn on(device: &'a StepControl) -> Self {
        Self { losses: Losses::default(), device: Some(device) }
    }

    /// Adds Σ `rows` / `divisor` to the loss.
    ///
    /// # Errors
    /// A device that failed, here and below.
    pub fn add(&mut self, rows: &Tensor<f32>, divisor: f64) -> Result<()> {
        match self.device {
            Some(device) => device.add_loss(0, rows, 1.0 / divisor, 1.0)?,
            None => self.losses.loss += total(rows)? / divisor,
        }
        Ok(())
    }

    /// Adds Σ `rows` / `divisor` to the part `name`, and `weight` times that to the loss.
    pub fn add_part(
        &mut self,
        name: &'static str,
        rows: &Tensor<f32>,
        divisor: f64,
        weight: f64,
    ) -> Result<()> {
        let slot = self.slot(name);
        match self.device {
            Some(device) => device.add_loss(slot + 1, rows, 1.0 / divisor, weight)?,
            None => {
                let value = total(rows)? / divisor;
                self.losses.parts[slot].1 += value;
                self.losses.loss += weight * value;
            }
        }
        Ok(())
    }

    /// Adds a number to the part `name`, and `weight` times it to the loss.
    pub fn add_value(&mut self, name: &'static str, value: f64, weight: f64) -> Result<()> {
        let slot = self.slot(name);
        match self.device {
            Some(device) => device.add_value(slot + 1, value, weight)?,
            None => {
                self.losses.parts[slot].1 += value;
                self.losses.loss += weight * value;
            }
        }
        Ok(())
    }

    fn slot(&mut self, name: &'static str) -> usize {
        let parts = &mut self.losses.parts;
        parts.iter().position(|(n, _)| *n == name).unwrap_or_else(|| {
            parts.push((name, 0.0));
            parts.len() - 1
        })
    }
}

//! Training steps that a CUDA device makes without waiting for the host.
//!
//! The device adds up its losses, decides whether the step counts, and moves learning rate, loss scale and random numbers on;
//! the host queues work and looks at the state when it wants a record. The first step of a kind is launched kernel by
//! kernel; from the second on it is one CUDA graph, with the same kernels, addresses and bits. A task that has to wait for a
//! number in the middle of a step (see [`Task::waits`]) is launched kernel by kernel throughout.

use crate::device::cuda::Graph;
use crate::device::{Device, Queue};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::ops::step_control::{Scaling, StepControl, StepRules};
use crate::optim::scaler::Scaler;
use crate::rng::{Draw, Stream};
use crate::train::engine::{Engine, Losses, Report};
use crate::train::task::{Meter, StepAt, Task};

/// What decides on the device.
pub(super) struct OnDevice {
    control: StepControl,
    /// What the last step held fast, and the graph of such steps.
    fixed: Option<String>,
    graph: Option<Graph>,
    /// Names of the parts of the loss.
    parts: Vec<&'static str>,
}

impl std::fmt::Debug for OnDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OnDevice(captured: {})", self.graph.is_some())
    }
}

impl<P: FloatX> Engine<P> {
    /// Queues one step.
    pub(super) fn advance_on_device(&mut self, task: &mut impl Task<P>) -> Result<Option<Report>> {
        let device = self.grads.flat().device().clone();
        let Device::Cuda(queue) = &device else {
            return Err(Error::argument("step", "device", "a CUDA device", device.describe()));
        };
        let mut on = match self.on_device.take() {
            Some(on) => on,
            None => self.on_device(&device)?,
        };
        let result = self.queue_step(queue, &mut on, task);
        self.on_device = Some(on);
        result?;
        self.step += 1;
        if task.waits().is_some() { self.look().map(Some) } else { Ok(None) }
    }

    fn queue_step(&mut self, queue: &Queue, on: &mut OnDevice, task: &mut impl Task<P>) -> Result<()> {
        task.prepare(&self.optimizer.params, self.step)?;
        if task.waits().is_some() || !self.rules.graph {
            return self.launch_step(on, task);
        }
        let fixed = task.fixed(self.step);
        if on.fixed.as_ref() != Some(&fixed) {
            (on.fixed, on.graph) = (Some(fixed), None);
            return queue.reserved(|| self.launch_step(on, task));
        }
        let graph = match on.graph.take() {
            Some(graph) => graph,
            None => queue.capture(|| self.launch_step(on, task))?,
        };
        let replayed = queue.replay(&graph);
        on.graph = Some(graph);
        replayed
    }

    /// Launches the kernels of one step.
    fn launch_step(&mut self, on: &mut OnDevice, task: &mut impl Task<P>) -> Result<()> {
        let control = &on.control;
        control.begin()?;
        self.grads.clear()?;
        let loss_scale = match &self.scaler {
            None => 1.0.into(),
            // The step before was looked at: the host knows the scale.
            Some(scaler) if task.waits().is_some() => scaler.scale().into(),
            Some(_) => control.loss_scale(),
        };
        let at = StepAt { step: 0, loss_scale, counter: control.counter() };
        let mut meter = Meter::on(control);
        task.gradients(&self.optimizer.params, at, &mut self.grads, &mut meter)?;
        on.parts = meter.losses.parts.iter().map(|(name, _)| *name).collect();
        control.decide(self.grads.flat())?;
        let draw = Draw::new(self.rules.seed, Stream::Rounding, 0).counted(control.counter());
        let rounding = self.rounding(draw);
        self.optimizer.step_by(&self.grads, rounding, control)
    }

    fn on_device(&self, device: &Device) -> Result<OnDevice> {
        let config = &self.rules.scaler;
        let rules = StepRules {
            rule: self.optimizer.config().rule,
            weight_decay: self.optimizer.config().weight_decay,
            clip: self.rules.clip as f32,
            rates: (0..self.rules.steps.max(self.step + 1)).map(|s| self.rules.rate(s) as f32).collect(),
            scaling: self.scaler.as_ref().map(|_| Scaling {
                growth: config.growth as f32,
                backoff: config.backoff as f32,
                smallest: config.min as f32,
                interval: u32::try_from(config.interval).unwrap_or(u32::MAX),
            }),
        };
        let mut control = StepControl::new(device, rules, self.step, self.optimizer.count)?;
        control.set_skipped(self.skips.total, self.skips.in_a_row)?;
        if let Some(scaler) = &self.scaler {
            control.set_scale(scaler.scale(), scaler.good_steps())?;
        }
        Ok(OnDevice { control, fixed: None, graph: None, parts: Vec::new() })
    }

    /// Tells how the last step ended, when everything that was queued is done.
    ///
    /// # Errors
    /// A device that failed; no step was made.
    pub fn look(&mut self) -> Result<Report> {
        let on = self.on_device.as_ref();
        let on = on.ok_or_else(|| Error::argument("look", "step", "a step made on a CUDA device", "none"))?;
        let state = on.control.look()?;
        let losses = state.losses();
        let parts = on.parts.iter().zip(&losses[1..]).map(|(name, value)| (*name, *value)).collect();
        let losses = Losses { loss: losses[0], parts };
        self.optimizer.count = state.updates;
        (self.skips.total, self.skips.in_a_row) = (state.skipped, state.in_a_row);
        if let Some(scaler) = &mut self.scaler {
            *scaler = Scaler::at(state.loss_scale, state.good_steps);
        }
        let skipped = match state.trouble {
            0 => None,
            1 => Some("loss".to_owned()),
            _ => self.trouble(&losses, f64::NAN)?,
        };
        let what = skipped.as_deref().unwrap_or("gradient");
        let verdict = self.skips.verdict(state.step, what, self.most_skipped()).err();
        let (lr, loss_scale) = (state.lr as f64, state.used_scale);
        Ok(Report { step: state.step, losses, grad_norm: state.norm(), lr, loss_scale, skipped, verdict })
    }
}

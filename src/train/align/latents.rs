//! Free latents, each a parameter of its own.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::device::Device;
use crate::error::Result;
use crate::float::FloatX;
use crate::nn::{Grads, Init, Layout, Params};
use crate::ops::normalize::std_penalty;
use crate::rng::{Draw, Stream};
use crate::tensor::{Shape, Tensor};
use crate::train::align::{Alignment, LATENTS};
use crate::train::config::{Config, Stage};
use crate::train::engine::Engine;
use crate::train::prior::Prior;
use crate::train::run::Trainee;
use crate::train::task::{Meter, StepAt, Task};

/// The task of free latents; their one parameter is `latents` (L, D), in f32.
pub struct LatentTask<X: FloatX> {
    /// The loss.
    pub alignment: Alignment<X>,
    std_weight: f32,
    micro_batches: usize,
    device: Device,
    /// The step that was prepared.
    step: u64,
}

impl<X: FloatX> LatentTask<X> {
    /// Prepares the task and normal latents.
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub fn new(config: &Config, device: &Device, prior: Prior<X>) -> Result<(Self, Engine<f32>)> {
        let (count, width) = (config.align.latents, prior.net.data_width());
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
        Ok((Self { alignment, std_weight, micro_batches, device: device.clone(), step: 0 }, engine))
    }

    /// Returns a copy of the latents (L, D).
    ///
    /// # Errors
    /// Parameters that are not those of this task.
    pub fn latents(&self, params: &Params<f32>) -> Result<Tensor<f32>> {
        let latents = params.named(LATENTS)?;
        let mut y = Tensor::<f32>::uninit(&self.device, latents.shape());
        y.view_mut().copy_from(latents)?;
        Ok(y)
    }
}

impl<X: FloatX> Task<f32> for LatentTask<X> {
    fn prepare(&mut self, _params: &Params<f32>, step: u64) -> Result<()> {
        self.step = step;
        Ok(())
    }

    fn gradients(
        &mut self,
        params: &Params<f32>,
        at: StepAt,
        grads: &mut Grads,
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        let y = self.latents(params)?;
        let (count, width) = y.rows_cols();
        let stats = self.alignment.stats(&y)?;
        let mut dy = Tensor::<f32>::zeros(&self.device, [count, width]);
        let micro = count / self.micro_batches;
        let parts = self.std_weight > 0.0 || self.alignment.matching.is_some();
        for first in (0..count).step_by(micro) {
            let place = (first * width, Shape::from([micro, width]));
            let mut part = Tensor::uninit(&self.device, place.1);
            part.view_mut().copy_from(y.view().part(place.0, place.1))?;
            let (losses, d) = self.alignment.gradients(&part, first as u64, stats, at, None)?;
            let [mut rows] = dy.view_mut().parts([place]);
            rows.copy_from(d.view())?;
            match parts {
                true => meter.add_part("alignment", &losses.rows, losses.divisor, 1.0)?,
                false => meter.add(&losses.rows, losses.divisor)?,
            }
        }
        self.alignment.match_distribution((&mut dy, &y), 1.0, (self.step, at), meter)?;
        if self.std_weight > 0.0 {
            let penalty = std_penalty(&mut dy, &y, self.std_weight * at.loss_scale.number)?;
            meter.add_value("std", penalty, self.std_weight as f64)?;
        }
        grads.add_named(LATENTS, &dy)
    }

    fn waits(&self) -> Option<&'static str> {
        self.alignment.waits().or((self.std_weight > 0.0).then_some("align.std_weight"))
    }

    fn fixed(&self, step: u64) -> String {
        self.alignment.fixed(step)
    }
}

impl<X: FloatX> Trainee<f32> for LatentTask<X> {
    const STAGE: Stage = Stage::Align;

    fn architecture(&self) -> Value {
        let (count, width) = (self.alignment.objective.samples, self.alignment.prior.net.data_width());
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
        std::mem::take(&mut self.alignment.notes)
    }

    fn evaluate(&mut self, engine: &Engine<f32>) -> Result<Vec<(&'static str, f64)>> {
        let y = self.latents(&engine.optimizer.params)?;
        let losses = self.alignment.fresh_losses(&y, self.alignment.seed, 0..EVALUATION_DRAWS)?;
        let mut values = self.alignment.of_losses(&losses);
        values.extend(self.alignment.measure(&y.on_host()?)?);
        Ok(values)
    }

    fn snapshot(&mut self, engine: &Engine<f32>) -> Result<Option<Tensor<f32>>> {
        self.latents(&engine.optimizer.params).map(Some)
    }
}

/// Draws of an evaluation during a run, for each latent.
const EVALUATION_DRAWS: u64 = 4;

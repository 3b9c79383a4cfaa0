//! The objective of a small batch, evaluated strip by strip: each strip of samples goes through everything on one thread.
//!
//! Noise and times are numbered by sample, so strips see those of the whole batch, and a row's results have the same bits as in one
//! piece. Which batches are cut, and where, follows from sizes alone: so do the sums over rows, on any number of threads.

use std::ops::Range;

use crate::device::{Cpu, Device};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::flow::objective::{Batch, Draws, LatentGradient, Objective, Outcome, Velocity, Want};
use crate::nn::modulation_path::Form;
use crate::nn::strips::StripGrads;
use crate::nn::velocity::{Saved, VelocityNet};
use crate::nn::{Keep, Mlp};
use crate::ops::flow_loss::{Scale, Target, latent_gradient};
use crate::ops::flow_path::{Rows, draw_times, interpolate};
use crate::tensor::Tensor;

/// Rows of a strip: enough to use packed weights well, few enough for four threads at the toys' 256.
const ROWS: usize = 64;
/// Strips of a batch, at most: each keeps the memory that it needed.
const MOST: usize = 64;
/// Samples of a strip are a multiple of it, so that its rows are an even number.
const UNIT: usize = 16;
/// Multiply-adds of one layer and the whole batch above which one operation after the other is as fast: with parameter gradients, whose
/// terms no longer lie in a near cache when they are summed, and without.
const SMALL: [usize; 2] = [1 << 23, 1 << 26];

/// How a batch is cut.
#[derive(Clone, Copy)]
pub(super) struct Strips<'a> {
    cpu: &'a Cpu,
    /// The network: no other is cut.
    mlp: &'a Mlp,
    /// Nodes of the modulation tables.
    nodes: usize,
    /// Samples of a strip; the last one may have fewer.
    each: usize,
}

/// What a strip is for.
#[derive(Clone, Copy)]
enum Purpose {
    Loss,
    Params,
    Latents(LatentGradient),
}

/// The results of a strip.
struct Strip<X: FloatX> {
    losses: Tensor<f32>,
    dy: Option<Tensor<f32>>,
    grads: Option<StripGrads<X>>,
}

impl Objective {
    /// Returns how the batch is cut into strips; `None` for one that is not.
    pub(super) fn strips<'a, X: FloatX>(
        &self,
        velocity: &Velocity<'a, X>,
        batch: &Batch<'a, X>,
        want: &Want<'_>,
    ) -> Option<Strips<'a>> {
        let (Device::Cpu(cpu), Form::Nodes(nodes)) = (batch.data.device(), self.form) else { return None };
        let VelocityNet::Mlp(mlp) = velocity.net else { return None };
        let (samples, width) = (batch.data.rows_cols().0, mlp.config().width);
        let rows = ROWS.max((samples * self.flow_mul).div_ceil(MOST));
        let each = (rows / self.flow_mul.max(1)).next_multiple_of(UNIT).max(UNIT);
        let small = match want {
            Want::Params(_) => SMALL[0],
            Want::Loss | Want::Latents(_) => SMALL[1],
            Want::Joint(_) => return None, // strips put parameter gradients aside, or return the latents'
        };
        let is_small = samples * self.flow_mul * width * width <= small;
        (is_small && each < samples && batch.cond.vectors.is_none()).then_some(Strips {
            cpu,
            mlp,
            nodes,
            each,
        })
    }

    /// Does what [`Objective::evaluate`] does, in strips.
    pub(super) fn evaluate_in<X: FloatX>(
        &self,
        strips: Strips<'_>,
        velocity: Velocity<'_, X>,
        batch: Batch<'_, X>,
        draws: Draws,
        scale: Scale,
        want: Want<'_>,
    ) -> Result<Outcome> {
        let (samples, d) = batch.data.rows_cols();
        velocity.net.pack(velocity.params)?;
        let (tables, path) = match velocity.tables {
            Some(tables) => (tables.clone(), None),
            None => {
                let (tables, path) = strips.mlp.tables_at_nodes(velocity.params, strips.nodes)?;
                (tables, Some(path))
            }
        };
        let velocity = Velocity { tables: Some(&tables), ..velocity };
        let purpose = match &want {
            Want::Loss => Purpose::Loss,
            Want::Params(_) => Purpose::Params,
            Want::Latents(gradient) => Purpose::Latents(*gradient),
            Want::Joint(_) => {
                return Err(Error::argument("evaluate", "want", "one kind of gradient", "both"));
            }
        };
        let mut results: Vec<_> = (0..samples.div_ceil(strips.each)).map(|_| None).collect();
        strips.cpu.each_apart(results.iter_mut().enumerate(), |(i, result)| {
            let range = i * strips.each..samples.min((i + 1) * strips.each);
            *result = Some(self.strip(strips.mlp, velocity, batch, range, draws, scale, purpose));
        });
        let results = results.into_iter().flatten().collect::<Result<Vec<_>>>()?;
        let outcome = self.joined(&batch, strips.each, &results, self.divisor(d))?;
        if let (Want::Params(grads), Some(path)) = (want, path) {
            let parts: Vec<_> = results.into_iter().filter_map(|strip| strip.grads).collect();
            strips.mlp.add_strips(strips.cpu, velocity.params, &path, &parts, grads)?;
        }
        Ok(outcome)
    }

    /// Evaluates samples `range` of the batch.
    #[allow(clippy::too_many_arguments)] // those of `evaluate`, and which samples
    fn strip<X: FloatX>(
        &self,
        mlp: &Mlp,
        velocity: Velocity<'_, X>,
        batch: Batch<'_, X>,
        range: Range<usize>,
        draws: Draws,
        scale: Scale,
        purpose: Purpose,
    ) -> Result<Strip<X>> {
        let Velocity { net, params, tables: Some(tables) } = velocity else {
            return Err(Error::argument("a strip", "tables", "tables at nodes", "none"));
        };
        let (device, d) = (batch.data.device(), batch.data.rows_cols().1);
        let mut data = Tensor::uninit(device, [range.len(), d]);
        data.view_mut().copy_from(batch.data.view().part(range.start * d, [range.len(), d]))?;
        let first = batch.first + range.start as u64;
        let rows = Rows { first, samples: range.len(), replicas: self.flow_mul, share: 1 };
        let t = draw_times(device, draws.time, rows, self.sampler(), self.time_range)?;
        let x_t = interpolate::<X>(&data, &t, draws.noise, rows)?;
        let keep = match purpose {
            Purpose::Loss | Purpose::Latents(LatentGradient::Detached | LatentGradient::Centred) => {
                Keep::Nothing
            }
            Purpose::Latents(LatentGradient::Full) => Keep::Inputs,
            Purpose::Params => Keep::All,
        };
        let to_head = net.forward_to_head(params, x_t, net.modulations_from(tables, &t)?, keep)?;
        let (data, t) = (&data, &t);
        let (noise, weight, control_variate) = (draws.noise, self.row_weight(), self.control_variate);
        let centred = matches!(purpose, Purpose::Latents(LatentGradient::Centred));
        let target = Target { data, t, noise, rows, weight, control_variate, centred };
        if let Purpose::Loss = purpose {
            return Ok(Strip { losses: net.loss(params, &to_head, &target)?, dy: None, grads: None });
        }
        let (losses, dv) = net.loss_and_gradient(params, &to_head, &target, scale)?;
        let (mut dy, mut grads) = (None, None);
        match (purpose, to_head.into_saved()) {
            (Purpose::Params, Some(Saved::Mlp(saved))) => {
                grads = Some(mlp.backward_strip(params, saved, &dv)?)
            }
            (_, saved) => {
                let dx_t = saved.map(|saved| net.backward(params, saved, &dv, None)).transpose()?;
                dy = Some(latent_gradient(&dv, dx_t.as_ref(), t, rows, 1.0)?);
            }
        }
        Ok(Strip { losses, dy, grads })
    }

    /// Puts the strips' losses and latent gradients side by side.
    fn joined<X: FloatX>(
        &self,
        batch: &Batch<'_, X>,
        each: usize,
        strips: &[Strip<X>],
        divisor: f64,
    ) -> Result<Outcome> {
        let (device, (samples, d)) = (batch.data.device(), batch.data.rows_cols());
        let mut rows = Tensor::uninit(device, [samples * self.flow_mul]);
        let is_for_latents = strips.iter().any(|strip| strip.dy.is_some());
        let mut dy = is_for_latents.then(|| Tensor::uninit(device, [samples, d]));
        for (i, strip) in strips.iter().enumerate() {
            let (first, losses) = (i * each, strip.losses.host()?);
            let count = losses.len() / self.flow_mul;
            for (replica, losses) in losses.chunks_exact(count).enumerate() {
                rows.host_mut()?[replica * samples + first..][..count].copy_from_slice(losses);
            }
            if let (Some(dy), Some(part)) = (&mut dy, &strip.dy) {
                dy.host_mut()?[first * d..(first + count) * d].copy_from_slice(part.host()?);
            }
        }
        Ok(Outcome { rows, divisor, dy })
    }
}

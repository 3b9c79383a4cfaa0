//! What keeps latents from collapsing onto modes: terms beside the alignment loss that look at the whole batch, or at the flow's divergence.
//!
//! The alignment loss judges each latent alone, so its minimum is a collapse onto the modes of the data, whatever the weight (FEATURES 1.3).
//!
//! ```text
//! L = alignment + c·[ ρ·(−H(y)) + σ·D·SW²(y, data) + δ·E tr ∂v/∂z ]
//!
//! repulsion           H     the entropy of the batch by nearest neighbours ([`crate::ops::entropy`]), in nats a row
//! sliced_wasserstein  SW²   the sliced distance from rows of the prior's training data, drawn anew in every step
//!                           ([`crate::ops::sliced_wasserstein`]); D·SW² is ‖m‖² for a shift by m
//! divergence          −C(y) = E tr ∂v/∂z on straight paths z = (1 − s)·noise + s·y, s uniform ([`crate::ops::divergence`])
//! ```
//!
//! **The natural weight.** For latents with density q and data with density p,
//! KL(q‖p) = E_q[−ln p(y)] − H(q). Under the weight t/(1 − t), summed over dimensions and averaged over uniform t, the alignment loss of y is
//! −ln p(y) + const, so alignment − H is KL(q‖p) + const: ρ = 1. The loss that is configured is a multiple of that one. A mean over
//! dimensions as well (`flow.reduction = "mean_all"`) makes it 1/D of it, and times that are uniform on [a, b] alone make the mean of a
//! row the integral over [a, b] divided by b − a. So
//!
//! ```text
//! c = 1/(b − a)·(1/D for mean_all, 1 for sum_dims_mean_rows)
//! ```
//! and `align.repulsion = 1` is KL's own proportion under either reduction. (With [a, b] inside of [0, 1], or a weight that is clipped, the KL
//! divergence lacks what lies outside: for data of deviation q and [0, b], about D·(1 − b)²/q² nats at a mode. Under other weights
//! than t/(1 − t), and for logit-normal times, no ρ is natural.) H is estimated with the batch's own rows, so its gradient is KL's up to the
//! estimate's bias, which shrinks with the batch.
//!
//! With an autoencoder everything in L is multiplied by λ_step·a, as the alignment loss is.
//!
//! **What each can do.** Repulsion acts between neighbours: it sets how wide a mode is filled, not how many latents it has, which
//! gaps that no latent crosses keep as they were at the start. Only k-th neighbours push each other: with k = 5 latents gathered in groups
//! of five that coincide (`benches/experiments/variants.md`), so k is 1 unless it is asked for; an estimate of H by the same k is too
//! large for what it was the loss of. Cooling it (`align.repulsion_start`, `align.repulsion_cooling`) opens the gaps first:
//! under the weight ρ latents settle on p^{1/ρ}, whose gaps are shallower. ρ_step = ρ·(ρ_start/ρ)^{1 − step/cooling}. The sliced distance
//! acts at any distance and moves latents between modes too. The divergence judges each latent alone, as alignment does. The
//! proposition of the paper that alignment and divergence together bound ln p is false as stated (FEATURES 1.3), and no sum here
//! is a bound.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::metrics::entropy_constant;
use crate::nn::velocity::tiled;
use crate::nn::{Condition, Conditioning, Form, Keep};
use crate::ops::divergence::{STEP, probe_gradient, probe_points, probe_products};
use crate::ops::elementwise::cast;
use crate::ops::embedding::Labels;
use crate::ops::entropy::{entropy_backward, entropy_forward};
use crate::ops::flow_path::{Rows, TimeSampler, draw_times, interpolate};
use crate::ops::sliced_wasserstein::{directions, draw_rows, sliced_wasserstein};
use crate::rng::{Draw, Stream};
use crate::tensor::Tensor;
use crate::train::config::{AlignConfig, Config, Reduction};
use crate::train::prior::Prior;
use crate::train::reference::Reference;
use crate::train::task::{Meter, StepAt};

/// The terms beside the alignment loss.
#[derive(Debug)]
pub struct Matching {
    config: AlignConfig,
    /// c.
    natural: f64,
    /// ψ(n) − ψ(k) + ln V_D.
    constant: f64,
    /// Rows of the prior's training data, for the sliced distance.
    data: Option<Tensor<f32>>,
    /// "No class" for each row, under a prior with classes.
    null: Option<Labels>,
    seed: u64,
}

impl Matching {
    /// Prepares the terms that are configured for batches of `rows` latents; `None` if there are none. `missing` says why there is
    /// no `reference`.
    ///
    /// # Errors
    /// A sliced distance from data that are out of reach; a device that failed.
    pub fn new<X: FloatX>(
        config: &Config,
        prior: &Prior<X>,
        reference: Option<&Reference>,
        missing: Option<&str>,
        rows: usize,
    ) -> Result<Option<Self>> {
        let (a, flow, d) = (&config.align, &config.flow, prior.net.data_width());
        if !a.matches() {
            return Ok(None);
        }
        let device = prior.params.flat().device();
        let data = match (a.sliced_wasserstein > 0.0, reference) {
            (false, _) => None,
            (true, Some(reference)) => Some(finite_rows(device, reference)?),
            (true, None) => {
                let why = missing
                    .unwrap_or("its file does not name them (set data.path, data.toy or data.builtin)");
                return Err(Error::Usage(format!(
                    "align.sliced_wasserstein compares latents with the data that the prior was trained on: {why}"
                )));
            }
        };
        let null = match prior.net.conditioning() {
            Conditioning::Classes { classes, .. } => Some(Labels::none(device, rows, classes)?),
            _ => None,
        };
        let of_dims = if flow.reduction == Reduction::MeanAll { 1.0 / d as f64 } else { 1.0 };
        Ok(Some(Self {
            config: a.clone(),
            natural: of_dims / (flow.time_max - flow.time_min),
            constant: entropy_constant(rows, d, a.repulsion_k),
            data,
            null,
            seed: config.seed,
        }))
    }

    /// Returns what a captured step holds fast of these terms.
    pub fn fixed(&self, step: u64) -> String {
        self.config.repulsion_at(step).to_string()
    }

    /// Adds `factor` times the terms' gradients, times the loss scale, to `dy: (n, D)`, the gradient of the latents `y: (n, D)` of the whole
    /// batch of `step`, and their values to the meter.
    ///
    /// # Errors
    /// Another number of rows than it was prepared for; a device that failed.
    pub fn add<X: FloatX>(
        &self,
        (dy, y): (&mut Tensor<f32>, &Tensor<f32>),
        (prior, form): (&Prior<X>, Form),
        factor: f64,
        (step, at): (u64, StepAt),
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        let ((n, d), a, c) = (y.rows_cols(), &self.config, factor * self.natural);
        let draw = |stream| Draw::new(self.seed, stream, at.step).counted(at.counter);
        let repulsion = a.repulsion_at(step);
        if repulsion > 0.0 {
            let weight = -c * repulsion;
            let found = entropy_forward(y, a.repulsion_k, self.constant)?;
            entropy_backward(dy, y, &found, at.loss_scale.times(weight as f32))?;
            meter.add_part("entropy", &found.rows, n as f64, weight)?;
        }
        if let Some(data) = &self.data {
            let weight = c * a.sliced_wasserstein * d as f64;
            let theta = directions(y.device(), draw(Stream::Slices), a.projections, d)?;
            let targets = draw_rows(data, draw(Stream::Targets), n * a.targets)?;
            let squares = sliced_wasserstein(dy, y, &targets, &theta, at.loss_scale.times(weight as f32))?;
            meter.add_part("sliced_w2", &squares, a.projections as f64, weight)?;
        }
        if a.divergence > 0.0 {
            let weight = c * a.divergence;
            let values = self.add_divergence((dy, y), (prior, form), weight / n as f64, at)?;
            meter.add_part("divergence", &values, n as f64, weight)?;
        }
        Ok(())
    }

    /// Adds `weight` times the gradient of the rows' divergences; returns those.
    fn add_divergence<X: FloatX>(
        &self,
        (dy, y): (&mut Tensor<f32>, &Tensor<f32>),
        (prior, form): (&Prior<X>, Form),
        weight: f64,
        at: StepAt,
    ) -> Result<Tensor<f32>> {
        let (n, draw) = (y.rows_cols().0, |stream| Draw::new(self.seed, stream, at.step).counted(at.counter));
        let (rows, sampler) = (Rows::plain(n), TimeSampler::Stratified { total: n, samples: n });
        let t = draw_times(y.device(), draw(Stream::PathTime), rows, sampler, (0.0, 1.0))?;
        let z = interpolate::<f32>(y, &t, draw(Stream::PathNoise), rows)?;
        let signs = draw(Stream::PathProbe);
        let points = cast::<f32, X>(&probe_points(&z, signs, STEP)?)?;
        let (twice, both) = (tiled(&t, 2)?.reshaped([2 * n])?, Rows { replicas: 2, ..rows });
        let (net, params) = (&prior.net, &prior.params);
        let modulations = match prior.velocity(form).tables {
            Some(tables) => net.modulations_from(tables, &twice)?,
            None => {
                let cond = Condition { labels: self.null.as_ref(), ..Condition::default() };
                net.modulations(params, Form::Direct, &twice, both, cond, None)?
            }
        };
        let (v, saved) = net.forward(params, points, modulations, Keep::Inputs)?;
        let saved = saved
            .ok_or_else(|| Error::argument("divergence", "saved", "what a backward needs", "nothing"))?;
        let scale = at.loss_scale.times(weight as f32);
        let (values, dv) = probe_products(&cast(&v)?, signs, STEP, scale)?;
        let dx = net.backward(params, saved, &cast(&dv)?, None)?;
        probe_gradient(dy, &cast(&dx)?, &t)?;
        Ok(values)
    }
}

/// Copies the rows to the device; a row that is not finite has no place among them.
fn finite_rows(device: &Device, reference: &Reference) -> Result<Tensor<f32>> {
    let width = reference.width();
    let finite = reference.rows().chunks_exact(width).filter(|row| row.iter().all(|x| x.is_finite()));
    let rows: Vec<f32> = finite.flatten().copied().collect();
    if rows.is_empty() {
        return Err(Error::Usage("align.sliced_wasserstein: no row of the prior's data is finite".into()));
    }
    Tensor::from_f32(device, [rows.len() / width, width], &rows)
}

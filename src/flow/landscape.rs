//! The alignment loss as a function of the point: heat maps, and likelihood estimates without an ODE.
//!
//! Every point sees the same K draws of (t, noise), so differences between points are not noise. With the weight
//! t/(1−t) and its control variate, K stratified times up to the truncation T give (FEATURES 1.3)
//! ```text
//! −log p(y) ≈ D/2·log(2πe) + T·mean_k[ w(t_k)·(‖r_k‖² − ‖noise_k‖² − D·(1/((1−t)²+t²) − 1)) ]
//! ```

use rayon::prelude::*;

use crate::error::Result;
use crate::float::FloatX;
use crate::flow::objective::{Velocity, total};
use crate::nn::mlp::Keep;
use crate::ops::flow_loss::{Target, Weight, flow_loss_forward};
use crate::ops::flow_path::{Rows, interpolate};
use crate::rng::{Draw, Stream};
use crate::tensor::Tensor;

/// What is estimated at each point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Estimate {
    /// The mean loss with the uniform weight, summed over dimensions.
    UniformLoss,
    /// The negative log-likelihood, from the weight t/(1−t).
    NegativeLogLikelihood,
}

/// How a landscape is computed.
#[derive(Clone, Copy, Debug)]
pub struct Landscape {
    /// What is estimated.
    pub estimate: Estimate,
    /// Draws of (t, noise), K.
    pub draws: usize,
    /// Largest t of the likelihood estimate.
    pub truncation: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Landscape {
    /// Returns the estimate at each of the points (P, D), P·D values row by row.
    ///
    /// # Errors
    /// Points of another width than the network's.
    pub fn evaluate<X: FloatX>(&self, velocity: Velocity<'_, X>, points: &[f32]) -> Result<Vec<f64>> {
        let d = velocity.net.config().channels;
        let device = velocity.params.flat().device();
        let span = match self.estimate {
            Estimate::UniformLoss => 1.0,
            Estimate::NegativeLogLikelihood => self.truncation,
        };
        let t: Vec<f32> =
            (0..self.draws).map(|k| ((k as f64 + 0.5) / self.draws as f64 * span) as f32).collect();
        let t = Tensor::from_f32(device, [self.draws], &t)?;
        let noise = Draw::new(self.seed, Stream::Evaluation, u32::MAX as u64);
        // One task a thread: a worker that waits inside an operation takes up other tasks, on top of its stack.
        let share = (points.len() / d).div_ceil(rayon::current_num_threads()).max(1);
        let at = |point| self.at(velocity, point, &t, noise, span);
        let parts = points.par_chunks(share * d).map(|part| part.chunks_exact(d).map(at).collect());
        Ok(parts.collect::<Result<Vec<Vec<f64>>>>()?.concat())
    }

    fn at<X: FloatX>(
        &self,
        velocity: Velocity<'_, X>,
        point: &[f32],
        t: &Tensor<f32>,
        noise: Draw,
        span: f64,
    ) -> Result<f64> {
        let (k, d) = (self.draws, point.len());
        let rows = Rows::plain(k);
        let data = Tensor::from_f32(t.device(), [k, d], &point.repeat(k))?;
        let x_t = interpolate(&data, t, noise, rows)?;
        let modulations = match velocity.tables {
            Some(tables) => velocity.net.modulations_from(tables, t)?,
            None => velocity.net.modulations(velocity.params, velocity.net.default_form(), t, 1, None)?,
        };
        let (v, _) = velocity.net.forward(velocity.params, x_t, modulations, Keep::Nothing)?;
        let (weight, control_variate) = match self.estimate {
            Estimate::UniformLoss => (Weight::Uniform, false),
            Estimate::NegativeLogLikelihood => (Weight::Likelihood { clip: 1.0 }, true),
        };
        let target = Target { data: &data, t, noise, rows, weight, control_variate };
        let mean = total(&flow_loss_forward(&v, &target)?)? / k as f64;
        Ok(match self.estimate {
            Estimate::UniformLoss => mean,
            Estimate::NegativeLogLikelihood => {
                let entropy = 0.5 * d as f64 * (2.0 * std::f64::consts::PI * std::f64::consts::E).ln();
                entropy + span * mean
            }
        })
    }
}

//! The alignment loss as a function of the point: heat maps, and likelihood estimates without an ODE.
//!
//! Every point sees the same K draws of (t, noise), so differences between points are not noise. With the weight
//! t/(1−t) and its control variate, K stratified times up to the truncation T give (FEATURES 1.3)
//! ```text
//! −log p(y) ≈ D/2·log(2πe) + T·mean_k[ w(t_k)·(‖r_k‖² − ‖noise_k‖² − D·(1/((1−t)²+t²) − 1)) ]
//! ```
//! What lies beyond T is the tail of ∫ ½·f(γ) dγ, γ = t²/(1−t)² the signal-to-noise ratio and f(γ) = E‖y − m‖² − D/(1 + γ), m the mean
//! of data given x_t, for r = (y − m)/(1 − t). With m = z + ∇ln p_γ(z)/γ, z = x_t/t (Tweedie) and Stein's identity, a density that is
//! smooth on the scale 1/√γ of the noise that is left has f = c(y)/γ² + O(γ⁻³), c = D + 2Δln p + ‖∇ln p‖²: the tail is ½·γ·f(γ) at T,
//! ```text
//! tail ≈ T²/2·( E‖r_T‖² − D/((1−T)²+T²) )
//! ```
//! an estimate from draws at t = T alone, with the same control variate. Without it the estimate is too high by J/(2γ) on average over
//! data, J the Fisher information (D/q² for modes of deviation q): 0.05 nats for the sixteen Gaussians at T = 0.98.
//!
//! In few dimensions the noise fills space evenly: time and noise together are a shifted lattice of low discrepancy
//! (Roberts' generalised golden ratios, <https://extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences/>),
//! turned normal by Box and Muller. On the plane 128 such draws rank points as 1,024 independent ones do.

use std::f64::consts::{E, TAU};

use crate::device::{Device, Isa};
use crate::error::Result;
use crate::float::FloatX;
use crate::flow::objective::Velocity;
use crate::nn::Keep;
use crate::nn::velocity::Condition;
use crate::ops::flow_path::Rows;
use crate::rng::{Draw, Stream};
use crate::tensor::Tensor;

/// Widest data whose noise is a lattice; in more dimensions lattices of this kind are no better than chance.
const LATTICE: usize = 6;
/// Rows of a batch, draws times points: enough for all threads, small enough for the caches.
const ROWS: usize = 4096;

/// What is estimated at each point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Estimate {
    /// The mean loss with the uniform weight, summed over dimensions.
    UniformLoss,
    /// The same as the reference's figures have it: K times evenly from 0.1 to 0.9, and noise of its own at each point.
    ReferenceLoss,
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
    /// Further draws of noise at that t, from which the likelihood estimate gets its tail; 0 leaves the tail out.
    pub tail: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Landscape {
    /// Returns the estimate at each of the points (P, D), P·D values row by row.
    ///
    /// # Errors
    /// Points of another width than the network's.
    pub fn evaluate<X: FloatX>(&self, velocity: Velocity<'_, X>, points: &[f32]) -> Result<Vec<f64>> {
        let Velocity { net, params, tables } = velocity;
        let (device, d) = (params.flat().device(), net.data_width());
        self.evaluate_by(device, d, points, |x_t, t| {
            let modulations = match tables {
                Some(tables) => net.modulations_from(tables, t)?,
                None => {
                    let rows = Rows::plain(t.len());
                    net.modulations(params, net.default_form(), t, rows, Condition::default(), None)?
                }
            };
            Ok(net.forward(params, x_t, modulations, Keep::Nothing)?.0)
        })
    }

    /// The same of any velocity: `velocity(x_t, t)`, (N, D) and (N) → (N, D).
    ///
    /// # Errors
    /// Those of the velocity.
    pub fn evaluate_by<X: FloatX>(
        &self,
        device: &Device,
        d: usize,
        points: &[f32],
        mut velocity: impl FnMut(Tensor<X>, &Tensor<f32>) -> Result<Tensor<X>>,
    ) -> Result<Vec<f64>> {
        let shared = self.shared(device, d)?;
        let at_once = (ROWS / shared.times.len()).max(1);
        let batches = points.chunks(at_once * d).enumerate();
        let batches = batches.map(|(i, points)| shared.at(&mut velocity, points, i * at_once));
        Ok(batches.collect::<Result<Vec<_>>>()?.concat())
    }

    /// Draws what all points share.
    fn shared(&self, device: &Device, d: usize) -> Result<Shared> {
        let k = self.draws;
        let evenly =
            |from: f64, to: f64| (0..k).map(move |i| from + (to - from) * (i as f64 + 0.5) / k as f64);
        let noise = noise(self.seed, k + self.tail, d);
        let uniform = |times: Vec<f64>, noise| Shared {
            device: device.clone(),
            times: times.iter().map(|t| *t as f32).collect(),
            noise,
            weights: vec![1.0 / k as f64; k],
            constant: 0.0,
            d,
        };
        Ok(match self.estimate {
            Estimate::UniformLoss => uniform(evenly(0.0, 1.0).collect(), Noise::Common(noise)),
            Estimate::ReferenceLoss => {
                let [first, last] = REFERENCE_TIMES;
                let step = (last - first) / (k.max(2) - 1) as f64;
                let times = (0..k).map(|i| first + step * i as f64).collect();
                uniform(times, Noise::Own(Draw::new(self.seed, Stream::Evaluation, OWN_NOISE)))
            }
            Estimate::NegativeLogLikelihood => {
                let end = self.truncation;
                let main = evenly(0.0, end).map(|t| (t, end / k as f64 * t / (1.0 - t)));
                let tail = (0..self.tail).map(|_| (end, 0.5 * end * end / self.tail as f64));
                Shared::likelihood(device, d, main.chain(tail).collect(), noise)
            }
        })
    }
}

/// First and last time of the reference's figures (its `linspace`).
const REFERENCE_TIMES: [f64; 2] = [0.1, 0.9];
/// The steps of the stream of evaluations, beyond those that losses are measured with, that noise comes from: common to all points, and
/// of each point.
const COMMON_NOISE: u64 = u32::MAX as u64;
const OWN_NOISE: u64 = COMMON_NOISE + 1;

/// The draws that all points share, and what becomes of their squared residuals: Σ_k weight_k·‖r_k‖² + constant.
struct Shared {
    device: Device,
    times: Vec<f32>,
    noise: Noise,
    weights: Vec<f64>,
    constant: f64,
    d: usize,
}

/// Noise for K times.
enum Noise {
    /// The same at all points, (K, D).
    Common(Vec<f32>),
    /// Drawn for each point.
    Own(Draw),
}

impl Shared {
    /// Takes times with their weights; the control variate is in the constant.
    fn likelihood(device: &Device, d: usize, times: Vec<(f64, f64)>, noise: Vec<f32>) -> Self {
        let mut constant = 0.5 * d as f64 * (TAU * E).ln();
        for ((t, weight), noise) in times.iter().zip(noise.chunks_exact(d)) {
            let square: f64 = noise.iter().map(|e| (*e as f64).powi(2)).sum();
            let spread = (1.0 - t) * (1.0 - t) + t * t;
            constant -= weight * (square + d as f64 * (1.0 / spread - 1.0));
        }
        let (times, weights) = times.into_iter().map(|(t, weight)| (t as f32, weight)).unzip();
        Self { device: device.clone(), times, noise: Noise::Common(noise), weights, constant, d }
    }

    /// Returns the estimate at each of the points (P, D), number `first` and on, all draws of all points in one batch.
    fn at<X: FloatX>(
        &self,
        velocity: &mut impl FnMut(Tensor<X>, &Tensor<f32>) -> Result<Tensor<X>>,
        points: &[f32],
        first: usize,
    ) -> Result<Vec<f64>> {
        let (k, d) = (self.times.len(), self.d);
        let count = points.len() / d;
        let noise = self.noise.at(first, count, k, d);
        let mut x_t = Vec::with_capacity(noise.len());
        for (point, noise) in points.chunks_exact(d).zip(noise.chunks_exact(k * d)) {
            for (t, noise) in self.times.iter().zip(noise.chunks_exact(d)) {
                x_t.extend(noise.iter().zip(point).map(|(e, y)| (1.0 - t) * e + t * y));
            }
        }
        let x_t = Tensor::from_f32(&self.device, [count * k, d], &x_t)?;
        let t = Tensor::from_f32(&self.device, [count * k], &self.times.repeat(count))?;
        let v = velocity(x_t, &t)?;
        let v = v.on_host()?;
        let of_points = v.chunks_exact(k * d).zip(noise.chunks_exact(k * d)).zip(points.chunks_exact(d));
        Ok(of_points.map(|((v, noise), point)| self.constant + self.weighted(v, noise, point)).collect())
    }

    /// Returns Σ_k weight_k·‖v_k − (y − noise_k)‖² of one point.
    fn weighted<X: FloatX>(&self, v: &[X], noise: &[f32], point: &[f32]) -> f64 {
        let residual =
            |((v, e), y): ((&X, &f32), &f32)| (v.to_f32() as f64 - (*y as f64 - *e as f64)).powi(2);
        let square = |v: &[X], noise: &[f32]| v.iter().zip(noise).zip(point).map(residual).sum::<f64>();
        let draws = v.chunks_exact(self.d).zip(noise.chunks_exact(self.d)).zip(&self.weights);
        draws.map(|((v, noise), weight)| weight * square(v, noise)).sum()
    }
}

impl Noise {
    /// Returns the noise of `count` points from number `first` on, (count, K, D).
    fn at(&self, first: usize, count: usize, k: usize, d: usize) -> Vec<f32> {
        match self {
            Self::Common(noise) => noise.repeat(count),
            Self::Own(draw) => independent(*draw, (first * k) as u64, count * k, d),
        }
    }
}

/// Draws independent standard normal rows (N, D), number `first` and on.
fn independent(draw: Draw, first: u64, rows: usize, d: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * d];
    Isa::detect().run(
        #[inline(always)]
        |arch| draw.fill_normal_rows(arch, &mut out, d, 0, |k| (first + k as u64, 0)),
    );
    out
}

/// Draws standard normal noise (K, D): a lattice that is even together with K ascending times, or independent numbers.
fn noise(seed: u64, draws: usize, d: usize) -> Vec<f32> {
    let draw = Draw::new(seed, Stream::Evaluation, COMMON_NOISE);
    if d > LATTICE {
        return independent(draw, 0, draws, d);
    }
    let mut out = vec![0.0; draws * d];
    let pairs = d.div_ceil(2);
    let steps = golden_steps(2 * pairs);
    let mut shift = vec![0.0; 2 * pairs];
    draw.fill_uniform(&mut shift, 0, 0);
    for (k, row) in out.chunks_exact_mut(d).enumerate() {
        let u = |i: usize| (shift[i] as f64 + (k + 1) as f64 * steps[i]).fract();
        for (pair, values) in row.chunks_mut(2).enumerate() {
            let (radius, angle) = ((-2.0 * (1.0 - u(2 * pair)).ln()).sqrt(), TAU * u(2 * pair + 1));
            values.iter_mut().zip([angle.cos(), angle.sin()]).for_each(|(e, c)| *e = (radius * c) as f32);
        }
    }
    out
}

/// Returns 1/g, 1/g², …, 1/gⁿ, g the root above 1 of gⁿ⁺¹ = g + 1: the golden ratio for n = 1.
fn golden_steps(n: usize) -> Vec<f64> {
    // The map contracts: 64 rounds leave less than rounding.
    let g = (0..64).fold(2.0f64, |g, _| (1.0 + g).powf(1.0 / (n as f64 + 1.0)));
    (1..=n as i32).map(|i| g.powi(-i)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_of_one_dimension_are_the_golden_ratio() {
        assert!((golden_steps(1)[0] - 0.5 * (5f64.sqrt() - 1.0)).abs() < 1e-14);
        // Two dimensions: the plastic number.
        assert!((golden_steps(2)[0] - 1.0 / 1.324_717_957_244_746).abs() < 1e-14);
    }

    #[test]
    fn noise_is_standard_normal_in_few_and_many_dimensions() {
        for (d, tolerance) in [(1, 0.02), (2, 0.02), (3, 0.02), (9, 0.2)] {
            let noise = noise(5, 1024, d);
            assert_eq!(noise.len(), 1024 * d);
            for i in 0..d {
                let column = || noise.iter().skip(i).step_by(d).map(|e| *e as f64);
                let mean = column().sum::<f64>() / 1024.0;
                let square = column().map(|e| e * e).sum::<f64>() / 1024.0;
                assert!(
                    mean.abs() < tolerance && (square - 1.0).abs() < 2.0 * tolerance,
                    "{d}: {mean} {square}"
                );
            }
        }
    }

    /// The untrained network is zero, so the loss of y is E‖y − noise‖² = ‖y‖² + D, and −log p(y) of the flow that
    /// stands still has a closed form too: r = noise − y at every t.
    #[test]
    fn a_network_that_is_zero_has_the_loss_of_its_residual() {
        let device = Device::cpu_with_threads(2).unwrap();
        let config = crate::nn::MlpConfig {
            channels: 2,
            width: 8,
            depth: 1,
            cond: 0,
            post_norm: false,
            time_scale: 1.0,
        };
        let net = crate::nn::VelocityNet::from(crate::nn::Mlp::new(config).unwrap());
        let params = net.init::<f32>(&device, 0).unwrap();
        let velocity = Velocity { net: &net, params: &params, tables: None };
        let landscape =
            Landscape { estimate: Estimate::UniformLoss, draws: 512, truncation: 0.95, tail: 0, seed: 0 };
        let points = [0.0, 0.0, 1.0, -2.0, 0.5, 0.25];
        let found = landscape.evaluate(velocity, &points).unwrap();
        for (value, y) in found.iter().zip(points.chunks_exact(2)) {
            let expected = (y[0] * y[0] + y[1] * y[1] + 2.0) as f64;
            assert!((value - expected).abs() < 0.05, "{value} {expected}");
        }
        // The reference's map: other noise at every point, about the same mean.
        let reference = Landscape { estimate: Estimate::ReferenceLoss, draws: 20, ..landscape };
        let found = reference.evaluate(velocity, &[1.0, -2.0].repeat(300)).unwrap();
        let mean = found.iter().sum::<f64>() / 300.0;
        // Variance of a value: (4·‖y‖² + 2·D) / 20.
        assert!(found[0] != found[1] && (mean - 7.0).abs() < 4.0 * (1.2f64 / 300.0).sqrt(), "{mean}");
        // Differences between points: ∫ t/(1−t) dt = −T − log(1−T), times ‖y‖².
        let likelihood = Landscape { estimate: Estimate::NegativeLogLikelihood, ..landscape };
        let found = likelihood.evaluate(velocity, &points).unwrap();
        let weight = -0.95 - 0.05f64.ln();
        let difference = found[1] - found[0];
        assert!((difference - 5.0 * weight).abs() < 0.3, "{difference} {}", 5.0 * weight);
    }
}

//! The log-density of a toy distribution in normalised units: exact for mixtures, a kernel estimate for the others.
//!
//! The estimate is `ln p(y) = ln Σ exp(−‖y − x_i‖² / 2h²) − ln n − ln 2πh²` over n = 100,000 draws with h = 0.1, the
//! reference's settings, summed by log-sum-exp, so that far points keep their order where the reference's added
//! 1e-10 flattens them.

use std::f64::consts::TAU;

use rayon::prelude::*;

use crate::data::toy::{Mixture, Toy};
use crate::device::{Arch, Isa};
use crate::error::{Error, Result};
use crate::rng::{Draw, Stream};

/// The number of draws behind a kernel estimate.
pub const KDE_DRAWS: usize = 100_000;
/// The bandwidth h of a kernel estimate, in normalised units.
pub const KDE_BANDWIDTH: f64 = 0.1;
/// Draws that are looked at side by side in vector registers.
const LANES: usize = 16;
/// Terms that each lane adds in f32 before the sum goes on in f64.
const BLOCK: usize = 32;

/// Evaluates the log-density of one toy distribution.
#[derive(Clone, Debug)]
pub struct Density(Form);

#[derive(Clone, Debug)]
enum Form {
    Exact(Mixture),
    Kernel { xs: Vec<f32>, ys: Vec<f32> },
}

impl Density {
    /// Prepares the density of `toy`; the draws of a kernel estimate are always the same ones.
    pub fn new(toy: Toy) -> Self {
        if let Some(mixture) = toy.mixture() {
            return Self(Form::Exact(mixture));
        }
        let draw = Draw::new(0, Stream::Evaluation, 0);
        let (xs, ys) = (0..KDE_DRAWS as u64)
            .map(|i| {
                let [x, y] = toy.sample(draw, i);
                (x, y)
            })
            .unzip();
        Self(Form::Kernel { xs, ys })
    }

    /// Says whether the values are exact, not estimated.
    pub fn is_exact(&self) -> bool {
        matches!(self.0, Form::Exact(_))
    }

    /// Returns ln p of each row of `points` (N, 2), in nats; rows are shared out over the calling thread pool.
    ///
    /// # Errors
    /// A number of values that is odd.
    pub fn log_density(&self, points: &[f32]) -> Result<Vec<f64>> {
        if !points.len().is_multiple_of(2) {
            let found = format!("{} values", points.len());
            return Err(Error::argument("log_density", "points", "rows of 2 values", found));
        }
        let isa = Isa::detect();
        let rows = points.par_chunks_exact(2);
        Ok(match &self.0 {
            Form::Exact(mixture) => rows.map(|y| mixture.log_density([y[0] as f64, y[1] as f64])).collect(),
            Form::Kernel { xs, ys } => rows
                .map(|y| {
                    isa.run(
                        #[inline(always)]
                        |arch| kernel_estimate(arch, xs, ys, [y[0], y[1]]),
                    )
                })
                .collect(),
        })
    }
}

#[inline(always)]
fn square(arch: Arch, dx: f32, dy: f32) -> f32 {
    arch.fma(dx, dx, dy * dy)
}

/// Returns the estimate at `y`: one pass for the nearest draw, one for the sum relative to it.
#[inline(always)]
fn kernel_estimate(arch: Arch, xs: &[f32], ys: &[f32], y: [f32; 2]) -> f64 {
    // KDE_DRAWS is a multiple of LANES, so that nothing is left over.
    let (xs, ys) = (xs.as_chunks::<LANES>().0, ys.as_chunks::<LANES>().0);
    let mut nearest = [f32::INFINITY; LANES];
    for (x1, x2) in xs.iter().zip(ys) {
        for lane in 0..LANES {
            let d = square(arch, x1[lane] - y[0], x2[lane] - y[1]);
            nearest[lane] = if d < nearest[lane] { d } else { nearest[lane] };
        }
    }
    let nearest = nearest.into_iter().fold(f32::INFINITY, f32::min);
    let scale = (-0.5 / (KDE_BANDWIDTH * KDE_BANDWIDTH)) as f32;
    let mut sum = 0.0f64;
    for (xs, ys) in xs.chunks(BLOCK).zip(ys.chunks(BLOCK)) {
        let mut terms = [0.0f32; LANES];
        for (x1, x2) in xs.iter().zip(ys) {
            for lane in 0..LANES {
                let d = square(arch, x1[lane] - y[0], x2[lane] - y[1]);
                terms[lane] += arch.exp(scale * (d - nearest));
            }
        }
        sum += arch.sum(&terms) as f64;
    }
    let log_n = ((xs.len() * LANES) as f64).ln();
    scale as f64 * nearest as f64 + sum.ln() - log_n - (TAU * KDE_BANDWIDTH * KDE_BANDWIDTH).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_estimate_matches_its_formula_in_f64() {
        let density = Density::new(Toy::Moons);
        let Form::Kernel { xs, ys } = &density.0 else { panic!("moons are no mixture") };
        let points = [0.1f32, 0.5, 1.0, -0.2, -4.0, 3.0, 30.0, 30.0];
        let found = density.log_density(&points).unwrap();
        for (y, found) in points.chunks_exact(2).zip(found) {
            let exponents: Vec<f64> = xs
                .iter()
                .zip(ys)
                .map(|(a, b)| -((*a as f64 - y[0] as f64).powi(2) + (*b as f64 - y[1] as f64).powi(2)) / 0.02)
                .collect();
            let largest = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = exponents.iter().map(|e| (e - largest).exp()).sum();
            let expected = largest + sum.ln() - (100_000.0f64).ln() - (TAU * 0.01).ln();
            assert!((found - expected).abs() < 2e-6 * expected.abs().max(1.0), "{y:?}: {found} {expected}");
        }
    }

    #[test]
    fn far_points_keep_their_order() {
        let density = Density::new(Toy::Spiral);
        let nll = density.log_density(&[5.0, 5.0, 6.0, 6.0, 50.0, 50.0]).unwrap();
        assert!(nll[0] > nll[1] && nll[1] > nll[2] && nll[2].is_finite(), "{nll:?}");
        assert!(nll[0] < -20.26, "the reference's floor is gone: {nll:?}");
    }

    #[test]
    fn a_kernel_estimate_integrates_to_one() {
        let density = Density::new(Toy::Rings);
        let axis = || (-40..40).map(|i| (i as f32 + 0.5) * 0.08);
        let points: Vec<f32> = axis().flat_map(|x| axis().flat_map(move |y| [x, y])).collect();
        let mass: f64 = density.log_density(&points).unwrap().iter().map(|l| l.exp()).sum();
        assert!((mass * 0.08 * 0.08 - 1.0).abs() < 1e-3, "{}", mass * 0.08 * 0.08);
    }

    #[test]
    fn half_a_point_is_refused() {
        let message = Density::new(Toy::Grid).log_density(&[1.0, 2.0, 3.0]).unwrap_err().to_string();
        assert_eq!(message, "log_density: `points` has 3 values, expected rows of 2 values");
    }
}

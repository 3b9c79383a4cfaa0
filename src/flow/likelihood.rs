//! Log-densities of a flow: by its ODE, exactly, and without one, by an estimate.
//!
//! ```text
//! ODE        ln p(x) = ln N(x_0; 0, I) − ∫₀¹ tr(∂v/∂x)(x_t, t) dt          x_t the path that ends in x; state and integral together
//! trace      exact: D products eᵢᵀ(∂v/∂x);  Hutchinson: εᵀ(∂v/∂x)ε, ε = ±1, one ε for each row and the whole solve
//! ODE-free   −ln p(x) ≈ the loss with weight t/(1 − t) and its control variate: see `flow::landscape`
//! ```
//! A new ε in every evaluation would make the integrand noise, and error control meaningless (FEATURES 6.3). Hutchinson's estimate of
//! ln p is unbiased; its exponential is not. The ODE-free estimate is of the density whose exact velocity v is; for a trained network the
//! two differ by the network's error.
//!
//! Velocities are closures, so that networks and closed forms both fit: `vjp(x, t, e)` → `(v, eᵀ·∂v/∂x)`, both (N, D).

use std::f64::consts::{LN_2, TAU};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::flow::landscape::{Estimate, Landscape};
use crate::flow::sampler::{Cost, Direction, Solver, State, Time, integrate};
use crate::ops::elementwise::axpy;
use crate::ops::row_dot::row_dot;
use crate::rng::{Draw, Stream, philox};
use crate::tensor::Tensor;

/// How tr(∂v/∂x) is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// D vector-Jacobian products.
    Exact,
    /// One product with a random probe, an unbiased estimate.
    Hutchinson {
        /// Decides the probes.
        seed: u64,
        /// Number of the first row: row i has the probe of number first + i.
        first: u64,
    },
}

/// Points at one end of the flow, and the log-densities of those at the data's end.
#[derive(Debug)]
pub struct Carried {
    /// Where the points went, (N, D).
    pub x: Tensor<f32>,
    /// ln p of each row's point at t = 1, in nats.
    pub log_p: Vec<f64>,
    /// What it cost.
    pub cost: Cost,
}

/// Carries `x: (N, D)` through the flow with its log-density: data to noise ([`Direction::ToNoise`], which is how the density of given
/// points is found) or noise to data, which draws samples whose density is known.
///
/// # Errors
/// See [`integrate`]; a product of another shape.
pub fn log_density(
    x: Tensor<f32>,
    solver: &Solver,
    direction: Direction,
    trace: Trace,
    mut vjp: impl FnMut(&Tensor<f32>, Time<'_>, &Tensor<f32>) -> Result<(Tensor<f32>, Tensor<f32>)>,
) -> Result<Carried> {
    let (n, d) = x.rows_cols();
    let probes = probes(&x, trace)?;
    let start = (direction == Direction::ToData).then(|| row_dot(&x, &x)).transpose()?;
    let state = State { log_det: Some(Tensor::zeros(x.device(), [n])), x };
    let (state, cost) = integrate(state, solver, direction, |state, time| {
        let mut divergence = Tensor::zeros(state.x.device(), [n]);
        let mut velocity = None;
        for probe in &probes {
            let (v, product) = vjp(&state.x, time, probe)?;
            product.expect("log_density", "vjp", [n, d])?;
            axpy(divergence.view_mut(), 1.0, &row_dot(probe, &product)?)?;
            velocity = Some(v);
        }
        let x = velocity.ok_or_else(|| Error::argument("log_density", "x", "at least 1 column", "none"))?;
        Ok(State { x, log_det: Some(divergence) })
    })?;
    // ∫ from 0 to 1, whichever way it was followed.
    let sign = if direction == Direction::ToData { 1.0 } else { -1.0 };
    let squares = match start {
        Some(squares) => squares,
        None => row_dot(&state.x, &state.x)?,
    };
    let integrals = state.log_det.as_ref().map_or(Ok(vec![0.0; n]), Tensor::to_f32_vec)?;
    let normal = |square: f32| -0.5 * (square as f64 + d as f64 * TAU.ln());
    let log_p =
        squares.to_f32_vec()?.into_iter().zip(integrals).map(|(s, l)| normal(s) - sign * l as f64).collect();
    Ok(Carried { x: state.x, log_p, cost })
}

/// Returns what the Jacobian is multiplied by, each (N, D): all unit vectors, or signs.
fn probes(x: &Tensor<f32>, trace: Trace) -> Result<Vec<Tensor<f32>>> {
    let (n, d) = x.rows_cols();
    match trace {
        Trace::Exact => (0..d)
            .map(|i| {
                let mut unit = vec![0.0; n * d];
                unit.iter_mut().skip(i).step_by(d).for_each(|e| *e = 1.0);
                Tensor::from_f32(x.device(), [n, d], &unit)
            })
            .collect(),
        Trace::Hutchinson { seed, first } => {
            let mut signs = vec![0.0; n * d];
            for (i, row) in signs.chunks_exact_mut(d.max(1)).enumerate() {
                rademacher(row, seed, first + i as u64);
            }
            Ok(vec![Tensor::from_f32(x.device(), [n, d], &signs)?])
        }
    }
}

/// Draws ±1, from one random bit each.
fn rademacher(row: &mut [f32], seed: u64, number: u64) {
    let draw = Draw::new(seed, Stream::Probe, 0);
    for (block, signs) in row.chunks_mut(128).enumerate() {
        let words = draw.words(number, 0, block as u32);
        for (j, sign) in signs.iter_mut().enumerate() {
            *sign = if words[j / 32] >> (j % 32) & 1 == 0 { 1.0 } else { -1.0 };
        }
    }
}

/// The ODE-free estimate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OdeFree {
    /// Draws of (t, noise) for each point, one t in each of as many strata.
    pub draws: usize,
    /// Largest t: beyond it the weight t/(1 − t) multiplies a network's own error.
    pub truncation: f64,
    /// Further draws of noise for each point, at that t, from which what lies beyond it is told; 0 leaves it out.
    pub tail: usize,
    /// Decides the draws.
    pub seed: u64,
}

impl Default for OdeFree {
    /// Where the tail is as small as an error of order (D·(1 − t)²/q²)² for data with a deviation of q, and the error of a trained network
    /// is not yet multiplied by more than 50. On data of the six toys the mean differs by less than 0.05 nats from that of the ODE
    /// (`benches/experiments/toys.md`).
    fn default() -> Self {
        Self { draws: 512, truncation: 0.98, tail: 64, seed: 0 }
    }
}

/// Points that share their draws: few, so that the errors of a mean over many are independent.
const SHARING: usize = 8;

/// Estimates ln p of the points (P, D), row by row. `velocity(x_t, t)`: (N, D), (N) → (N, D).
///
/// # Errors
/// No draws, a truncation outside of 0 to 1, points that are no rows of `d`; an error of the velocity.
pub fn log_density_ode_free<X: FloatX>(
    device: &Device,
    d: usize,
    points: &[f32],
    how: &OdeFree,
    mut velocity: impl FnMut(Tensor<X>, &Tensor<f32>) -> Result<Tensor<X>>,
) -> Result<Vec<f64>> {
    const OP: &str = "log_density_ode_free";
    let OdeFree { draws, truncation, tail, seed } = *how;
    if draws == 0 || !(0.0 < truncation && truncation < 1.0) {
        let found = format!("{draws} draws up to t = {truncation}");
        return Err(Error::argument(OP, "how", "at least 1 draw, and a truncation between 0 and 1", found));
    }
    if d == 0 || !points.len().is_multiple_of(d) {
        return Err(Error::argument(
            OP,
            "points",
            format!("rows of {d}"),
            format!("{} numbers", points.len()),
        ));
    }
    let mut log_p = Vec::with_capacity(points.len() / d);
    for (i, points) in points.chunks(SHARING * d).enumerate() {
        let seed = of_part(seed, i as u64);
        let landscape =
            Landscape { estimate: Estimate::NegativeLogLikelihood, draws, truncation, tail, seed };
        log_p.extend(landscape.evaluate_by(device, d, points, &mut velocity)?.into_iter().map(|nll| -nll));
    }
    Ok(log_p)
}

/// Returns a seed for part i of a draw.
fn of_part(seed: u64, i: u64) -> u64 {
    let [a, b, ..] = philox([i as u32, (i >> 32) as u32, 1, 0], [seed as u32, (seed >> 32) as u32]);
    (b as u64) << 32 | a as u64
}

/// Returns bits per dimension of a mean negative log-density in nats.
pub fn bits_per_dim(nll: f64, d: usize) -> f64 {
    nll / (d as f64 * LN_2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toy::{Mixture, Toy};
    use crate::flow::mixture::mixture_velocity;
    use crate::flow::sampler::{Grid, Method, Tolerance};

    fn device() -> Device {
        Device::cpu_with_threads(2).unwrap()
    }

    fn solver(method: Method, steps: usize) -> Solver {
        let tolerance = Tolerance { rtol: 1e-6, atol: 1e-6, ..Default::default() };
        Solver { method, grid: Grid::Uniform(steps), tolerance }
    }

    /// v and eᵀ·∂v/∂x.
    type Product = (Tensor<f32>, Tensor<f32>);

    /// The exact velocity of a mixture and its vector-Jacobian product, by central differences in f64.
    fn exact(mixture: &Mixture) -> impl Fn(&Tensor<f32>, Time<'_>, &Tensor<f32>) -> Result<Product> {
        move |x, time, e| {
            let t = time.value()?;
            let (mut v, mut product) = (Vec::new(), Vec::new());
            for (x, e) in x.host()?.chunks_exact(2).zip(e.host()?.chunks_exact(2)) {
                let x = [x[0] as f64, x[1] as f64];
                let at = |k: usize, h: f64| {
                    let mut moved = x;
                    moved[k] += h;
                    let v = mixture_velocity(mixture, moved, t);
                    v[0] * e[0] as f64 + v[1] * e[1] as f64
                };
                v.extend(mixture_velocity(mixture, x, t).map(|v| v as f32));
                product.extend([0, 1].map(|k| ((at(k, 1e-5) - at(k, -1e-5)) / 2e-5) as f32));
            }
            let shape = x.shape();
            Ok((Tensor::from_f32(x.device(), shape, &v)?, Tensor::from_f32(x.device(), shape, &product)?))
        }
    }

    /// The exact velocity at rows with a time each.
    fn velocity(mixture: &Mixture) -> impl Fn(Tensor<f32>, &Tensor<f32>) -> Result<Tensor<f32>> {
        move |x_t, t| {
            let rows = x_t.host()?.chunks_exact(2).zip(t.host()?);
            let v = rows.flat_map(|(x, t)| mixture_velocity(mixture, [x[0] as f64, x[1] as f64], *t as f64));
            Tensor::from_f32(x_t.device(), x_t.shape(), &v.map(|v| v as f32).collect::<Vec<_>>())
        }
    }

    fn mixtures() -> [(&'static str, Mixture); 3] {
        let gaussian = Mixture { means: vec![[0.5, -1.0]], std: 0.6, weights: vec![1.0] };
        let unequal = Mixture { means: vec![[1.0, 0.5], [-1.0, 0.0]], std: 0.35, weights: vec![0.75, 0.25] };
        let toy = Toy::Gaussians.mixture();
        [("gaussian", gaussian), ("two modes", unequal), ("toy", toy.unwrap())]
    }

    /// Points in modes, between them and outside.
    fn points(mixture: &Mixture) -> Vec<f32> {
        let [first, last] = [mixture.means[0], mixture.means[mixture.means.len() - 1]];
        let middle = [0.5 * (first[0] + last[0]) + 0.1, 0.5 * (first[1] + last[1])];
        let q = mixture.std;
        let all = [first, [first[0] + q, first[1]], [last[0] - 0.5 * q, last[1] + 1.5 * q], middle];
        all.into_iter().flatten().map(|x| x as f32).collect()
    }

    fn truth(mixture: &Mixture, points: &[f32]) -> Vec<f64> {
        points.chunks_exact(2).map(|y| mixture.log_density([y[0] as f64, y[1] as f64])).collect()
    }

    fn largest_error(found: &[f64], expected: &[f64]) -> f64 {
        found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn densities_of_exact_velocities_are_those_of_the_mixture() {
        for (name, mixture) in mixtures() {
            let points = points(&mixture);
            let expected = truth(&mixture, &points);
            for (method, steps) in [(Method::Rk4, 200), (Method::Dopri5, 0)] {
                let x = Tensor::from_f32(&device(), [4, 2], &points).unwrap();
                let solver = solver(method, steps);
                let found =
                    log_density(x, &solver, Direction::ToNoise, Trace::Exact, exact(&mixture)).unwrap();
                let error = largest_error(&found.log_p, &expected);
                assert!(error < 1e-3, "{name}, {method:?}: {error:e}, {:?}", found.cost);
            }
        }
    }

    #[test]
    fn there_and_back_agree() {
        for (name, mixture) in mixtures() {
            // The last point lies between modes, where paths to the data part and f32 is too little to find back.
            let points = &points(&mixture)[..6];
            let x = Tensor::from_f32(&device(), [3, 2], points).unwrap();
            let carry = |x, direction| {
                log_density(x, &solver(Method::Dopri5, 0), direction, Trace::Exact, exact(&mixture)).unwrap()
            };
            let there = carry(x, Direction::ToNoise);
            let back = carry(there.x, Direction::ToData);
            let error = largest_error(&there.log_p, &back.log_p);
            assert!(error < 1e-3, "{name}: {error:e}");
            let moved = back.x.to_f32_vec().unwrap();
            let distance = moved.iter().zip(points).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(distance < 1e-3, "{name}: {distance:e}");
        }
    }

    #[test]
    fn hutchinsons_estimate_is_unbiased_and_exact_for_one_gaussian() {
        let [(_, gaussian), _, (_, toy)] = mixtures();
        let estimate = |mixture: &Mixture, seed, copies: usize| {
            let points = points(mixture)[4..6].repeat(copies);
            let x = Tensor::from_f32(&device(), [copies, 2], &points).unwrap();
            let trace = Trace::Hutchinson { seed, first: 0 };
            let found = log_density(x, &solver(Method::Rk4, 40), Direction::ToNoise, trace, exact(mixture));
            (found.unwrap().log_p, truth(mixture, &points[..2])[0])
        };
        // Its Jacobian is a multiple of the identity, whose trace every probe finds.
        let (found, expected) = estimate(&gaussian, 0, 3);
        assert!(largest_error(&found, &[expected; 3]) < 1e-3, "{found:?} {expected}");
        let (found, expected) = estimate(&toy, 7, 400);
        let mean = found.iter().sum::<f64>() / 400.0;
        let spread = (found.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 400.0).sqrt();
        assert!((mean - expected).abs() < 4.0 * spread / 20.0 + 1e-3, "{mean} {expected} {spread}");
        assert_eq!(estimate(&toy, 7, 3).0, found[..3], "a row's probe is its own");
    }

    #[test]
    fn the_ode_free_estimate_is_near() {
        for (name, mixture) in mixtures() {
            // 64 points at the modes, as data lie.
            let noise =
                |i: usize| [(1.7 * i as f64).sin(), (2.9 * i as f64).cos()].map(|e| 1.4 * mixture.std * e);
            let at = |i: usize| {
                let (mean, noise) = (mixture.means[i % mixture.means.len()], noise(i));
                [mean[0] + noise[0], mean[1] + noise[1]].map(|x| x as f32)
            };
            let points: Vec<f32> = (0..64).flat_map(at).collect();
            let how = OdeFree { draws: 1024, truncation: 0.998, tail: 0, seed: 3 };
            let found = log_density_ode_free(&device(), 2, &points, &how, velocity(&mixture)).unwrap();
            let expected = truth(&mixture, &points);
            let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
            let error = (mean(&found) - mean(&expected)).abs();
            assert!(error < 0.02, "{name}: {error:e}");
            assert!(largest_error(&found, &expected) < 0.3, "{name}: single points");
        }
    }

    #[test]
    fn the_tail_makes_up_for_the_truncation() {
        let mixture = Toy::Grid.mixture().unwrap();
        let draw = Draw::new(4, Stream::Evaluation, 0);
        let points: Vec<f32> = (0..256).flat_map(|i| Toy::Grid.sample(draw, i)).collect();
        let expected = truth(&mixture, &points);
        let error = |tail| {
            let how = OdeFree { draws: 512, truncation: 0.98, tail, seed: 1 };
            let found = log_density_ode_free(&device(), 2, &points, &how, velocity(&mixture)).unwrap();
            let difference: f64 = expected.iter().zip(&found).map(|(a, b)| a - b).sum();
            difference / found.len() as f64
        };
        // J/(2γ) = 2/q² / (2·49²) = 0.0524 nats.
        let (cut, whole) = (error(0), error(64));
        assert!((0.035..0.07).contains(&cut), "cut off at 0.98: {cut}");
        assert!(whole.abs() < 0.012, "with the tail: {whole}");
    }

    #[test]
    fn bits_are_nats_by_the_logarithm_of_two() {
        assert!((bits_per_dim(2.0 * LN_2 * 8.0, 8) - 2.0).abs() < 1e-15);
    }

    #[test]
    fn draws_that_make_no_sense_are_refused() {
        for how in [
            OdeFree { draws: 0, ..Default::default() },
            OdeFree { truncation: 1.0, ..Default::default() },
            OdeFree { truncation: 0.0, ..Default::default() },
        ] {
            let message = log_density_ode_free::<f32>(&device(), 2, &[0.0; 2], &how, |x, _| Ok(x))
                .unwrap_err()
                .to_string();
            assert!(message.contains("at least 1 draw, and a truncation between 0 and 1"), "{message}");
        }
    }
}

//! Distances between distributions given by samples: Wasserstein-2 on the line, sliced and exact, and the energy distance.

use rayon::prelude::*;

use crate::device::Isa;
use crate::error::{Error, Result};
use crate::metrics::assignment::assignment;
use crate::metrics::pairs::{Panels, scan};
use crate::metrics::rows;
use crate::rng::{Draw, Stream};

/// The step that numbers the directions' random draws: beyond any step that training evaluates at.
const DIRECTIONS: u64 = 1 << 41;
/// Rows that are assigned exactly, at most: a few seconds, and 32 MiB of costs.
const MOST_ASSIGNED: usize = 2048;

/// Returns the exact Wasserstein-2 distance of two lists of numbers, each value of a list with the same mass.
///
/// W₂² = ∫₀¹ (F⁻¹(q) − G⁻¹(q))² dq; the lists may differ in length. Not squared: shifting a list by m gives |m|.
///
/// # Errors
/// An empty list or a value that is not finite.
pub fn wasserstein2_1d(a: &[f32], b: &[f32]) -> Result<f64> {
    rows("wasserstein2_1d", "a", a, 1)?;
    rows("wasserstein2_1d", "b", b, 1)?;
    Ok(squared_on_the_line(a.to_vec(), b.to_vec()).sqrt())
}

/// Returns the sliced Wasserstein-2 distance of `a: (N, D)` and `b: (M, D)`: the root of the mean, over `projections`
/// random directions, of the squared distance of the projected points (Bonneel et al. 2015).
///
/// The directions depend on `seed` only, so two calls with the same seed can be compared. Not scaled by the width:
/// a shift by the vector m gives about ‖m‖/√D. In one dimension it is [`wasserstein2_1d`].
///
/// # Errors
/// An empty or ragged set, a value that is not finite, or no projection.
pub fn sliced_wasserstein2(a: &[f32], b: &[f32], dim: usize, projections: usize, seed: u64) -> Result<f64> {
    const OP: &str = "sliced_wasserstein2";
    rows(OP, "a", a, dim)?;
    rows(OP, "b", b, dim)?;
    if projections == 0 {
        return Err(Error::argument(OP, "projections", "at least 1", projections));
    }
    let squares: Vec<f64> = (0..projections)
        .into_par_iter()
        .map(|i| {
            let direction = direction(seed, i as u64, dim);
            squared_on_the_line(project(a, &direction), project(b, &direction))
        })
        .collect();
    Ok((squares.iter().sum::<f64>() / projections as f64).sqrt())
}

/// Returns the exact Wasserstein-2 distance of `a, b: (N, D)`: the root of the mean squared distance under the best
/// one-to-one assignment, which is an optimal plan for equal masses (Birkhoff). Not squared.
///
/// Two samples of one distribution are about N^(−1/D) apart: compare with the distance of the data among themselves.
///
/// # Errors
/// An empty or ragged set, values that are not finite, different numbers of rows, or more than 2,048.
pub fn wasserstein2(a: &[f32], b: &[f32], dim: usize) -> Result<f64> {
    const OP: &str = "wasserstein2";
    let (n, m) = (rows(OP, "a", a, dim)?, rows(OP, "b", b, dim)?);
    if n != m {
        return Err(Error::argument(OP, "b", format!("as many rows as `a`, {n}"), m));
    }
    if n > MOST_ASSIGNED {
        let expected = format!("{MOST_ASSIGNED} rows at most (`sliced_wasserstein2` takes more)");
        return Err(Error::argument(OP, "a", expected, n));
    }
    let square =
        |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| (*x as f64 - *y as f64).powi(2)).sum::<f64>();
    let mut cost = vec![0.0; n * n];
    cost.par_chunks_mut(n).zip(a.par_chunks(dim)).for_each(|(line, x)| {
        line.iter_mut().zip(b.chunks_exact(dim)).for_each(|(cost, y)| *cost = square(x, y));
    });
    let pairs = assignment(&cost, n)?;
    let total: f64 = pairs.iter().enumerate().map(|(row, column)| cost[row * n + column]).sum();
    Ok((total / n as f64).sqrt())
}

/// Returns the squared energy distance 2·E‖X−Y‖ − E‖X−X′‖ − E‖Y−Y′‖ of `a: (N, D)` and `b: (M, D)`.
///
/// The expectations run over all pairs, a point with itself included (V-statistic: never negative but for rounding,
/// zero exactly for equal sets). Costs (N + M)² distances: 2 × 5,000 points take well under a second
/// (Székely and Rizzo 2013).
///
/// # Errors
/// An empty or ragged set, or a value that is not finite.
pub fn energy_distance(a: &[f32], b: &[f32], dim: usize) -> Result<f64> {
    rows("energy_distance", "a", a, dim)?;
    rows("energy_distance", "b", b, dim)?;
    let (in_a, in_b) = (Panels::new(a, dim), Panels::new(b, dim));
    Ok(2.0 * mean_distance(a, &in_b, dim, b.len() / dim)
        - mean_distance(a, &in_a, dim, a.len() / dim)
        - mean_distance(b, &in_b, dim, b.len() / dim))
}

fn mean_distance(queries: &[f32], targets: &Panels, dim: usize, count: usize) -> f64 {
    let sums = scan(
        targets,
        queries,
        || 0.0f64,
        #[inline(always)]
        |sum: &mut f64, _, distances| {
            let mut lanes = *distances;
            // Lanes past the last target are infinite.
            lanes.iter_mut().for_each(|r| *r = if *r < f32::INFINITY { r.sqrt() } else { 0.0 });
            *sum += lanes.iter().map(|r| *r as f64).sum::<f64>();
        },
    );
    sums.iter().sum::<f64>() / ((queries.len() / dim) as f64 * count as f64)
}

/// Walks the merged breakpoints i/n and j/m of the two quantile functions, in integers: mass is counted in 1/(n·m).
fn squared_on_the_line(mut a: Vec<f32>, mut b: Vec<f32>) -> f64 {
    a.sort_unstable_by(f32::total_cmp);
    b.sort_unstable_by(f32::total_cmp);
    let (n, m) = (a.len() as u64, b.len() as u64);
    let (mut i, mut j, mut done, mut sum) = (0, 0, 0, 0.0);
    while i < n && j < m {
        let next = ((i + 1) * m).min((j + 1) * n);
        let difference = a[i as usize] as f64 - b[j as usize] as f64;
        sum += (next - done) as f64 * difference * difference;
        done = next;
        i += ((i + 1) * m == next) as u64;
        j += ((j + 1) * n == next) as u64;
    }
    sum / (n as f64 * m as f64)
}

/// Draws a direction uniformly from the unit sphere.
fn direction(seed: u64, number: u64, dim: usize) -> Vec<f32> {
    let draw = Draw::new(seed, Stream::Evaluation, DIRECTIONS);
    let mut direction = vec![0.0; dim];
    Isa::detect().run(
        #[inline(always)]
        |arch| draw.fill_normal(arch, &mut direction, number, 0),
    );
    let norm = direction.iter().map(|v| *v as f64 * *v as f64).sum::<f64>().sqrt();
    if norm == 0.0 {
        direction[0] = 1.0; // possible in one dimension only, with probability 2⁻²⁴
    } else {
        direction.iter_mut().for_each(|v| *v = (*v as f64 / norm) as f32);
    }
    direction
}

fn project(points: &[f32], direction: &[f32]) -> Vec<f32> {
    let dim = direction.len();
    Isa::detect().run(
        #[inline(always)]
        |arch| {
            let product = |row: &[f32]| arch.dot(row, direction);
            let mut products = Vec::with_capacity(points.len() / dim);
            for row in points.chunks_exact(dim) {
                products.push(product(row));
            }
            products
        },
    )
}

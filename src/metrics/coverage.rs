//! Diagnostics of collapse: which modes are occupied, how wide the latents spread, what part of the targets they reach.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::metrics::knn::{Search, nearest};
use crate::metrics::rows;

/// How points spread over the modes of a mixture of isotropic Gaussians.
#[derive(Clone, Debug, PartialEq)]
pub struct Occupancy {
    /// Points whose nearest mode is this one, near or far.
    pub counts: Vec<usize>,
    /// The smallest count.
    pub min: usize,
    /// The largest count.
    pub max: usize,
    /// Share of the points within 3σ of their nearest mode (Euclidean distance).
    pub within_three_sigma: f64,
    /// Root mean square over points and dimensions of (point − nearest mode)/σ: 1 for samples of a mixture with
    /// well-separated modes, below 1 for points that collapse to the modes, above for points that miss them.
    pub spread: f64,
}

/// Assigns points `(N, D)` to the nearest of the modes `(K, D)`, each of standard deviation `sigma` per dimension.
///
/// # Errors
/// An empty or ragged set, values that are not finite, or a `sigma` that is not positive.
pub fn mode_occupancy(points: &[f32], modes: &[f32], dim: usize, sigma: f64) -> Result<Occupancy> {
    const OP: &str = "mode_occupancy";
    let n = rows(OP, "points", points, dim)?;
    let mut counts = vec![0; rows(OP, "modes", modes, dim)?];
    if !(sigma > 0.0 && sigma.is_finite()) {
        return Err(Error::argument(OP, "sigma", "a positive number", sigma));
    }
    let (mut near, mut squares) = (0, 0.0);
    for (point, mode) in points.chunks_exact(dim).zip(nearest(points, modes, dim)?) {
        let centre = &modes[mode * dim..(mode + 1) * dim];
        let square: f64 = point.iter().zip(centre).map(|(x, m)| (*x as f64 - *m as f64).powi(2)).sum();
        counts[mode] += 1;
        near += (square <= (3.0 * sigma).powi(2)) as usize;
        squares += square;
    }
    let (min, max) = counts.iter().fold((n, 0), |(min, max), c| (min.min(*c), max.max(*c)));
    let spread = (squares / (n * dim) as f64).sqrt() / sigma;
    Ok(Occupancy { counts, min, max, within_three_sigma: near as f64 / n as f64, spread })
}

/// Returns √(tr Σ_queries / tr Σ_targets), the ratio of the total standard deviations of `(N, D)` and `(M, D)`.
///
/// # Errors
/// An empty or ragged set, values that are not finite, or targets that are all equal.
pub fn std_ratio(queries: &[f32], targets: &[f32], dim: usize) -> Result<f64> {
    const OP: &str = "std_ratio";
    rows(OP, "queries", queries, dim)?;
    rows(OP, "targets", targets, dim)?;
    let variance = |points: &[f32]| -> f64 {
        let means = means(points, dim);
        let squares = points.chunks_exact(dim).flat_map(|row| row.iter().zip(&means));
        squares.map(|(x, m)| (*x as f64 - m).powi(2)).sum::<f64>() / (points.len() / dim) as f64
    };
    let below = variance(targets);
    if below == 0.0 {
        return Err(Error::argument(OP, "targets", "rows that differ", "equal rows"));
    }
    Ok((variance(queries) / below).sqrt())
}

/// How the queries share their nearest targets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reuse {
    /// Different targets that are nearest to some query.
    pub distinct: usize,
    /// `distinct` over the number of queries, at most 1; low values mean many latents at the same few samples.
    pub share: f64,
    /// Queries that share the most popular target.
    pub most: usize,
}

/// Counts how many different targets `(M, D)` are nearest to the queries `(N, D)`.
///
/// # Errors
/// An empty or ragged set, or values that are not finite.
pub fn nearest_reuse(queries: &[f32], targets: &[f32], dim: usize) -> Result<Reuse> {
    nearest_reuse_by(Search::Here, queries, targets, dim)
}

/// Does the same by the neighbours that `search` finds.
///
/// # Errors
/// The same; a device that failed.
pub fn nearest_reuse_by(search: Search<'_>, queries: &[f32], targets: &[f32], dim: usize) -> Result<Reuse> {
    let mut uses = HashMap::new();
    let found = search.nearest(queries, targets, dim)?;
    found.iter().for_each(|target| *uses.entry(*target).or_insert(0) += 1);
    let most = uses.values().copied().max().unwrap_or(0);
    Ok(Reuse { distinct: uses.len(), share: uses.len() as f64 / found.len() as f64, most })
}

fn means(points: &[f32], dim: usize) -> Vec<f64> {
    let mut means = vec![0.0; dim];
    for row in points.chunks_exact(dim) {
        means.iter_mut().zip(row).for_each(|(m, x)| *m += *x as f64);
    }
    let n = (points.len() / dim) as f64;
    means.iter_mut().for_each(|m| *m /= n);
    means
}

//! Exact nearest neighbours by brute force, and the k-NN estimate of the negative log-likelihood.
//!
//! With n samples of the target in D dimensions and r_k(y) the distance of y to its k-th nearest sample,
//! −log p(y) ≈ log n + log V_D + D·log r_k(y) − ψ(k), where V_D = π^{D/2}/Γ(D/2 + 1) is the volume of the unit ball
//! (Loftsgaarden and Quesenberry 1965, with the bias correction ψ(k) of Kozachenko and Leonenko 1987). The paper's
//! figure 4 shows mean log r_k without D; its k is not stated.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::metrics::pairs::{Distances, LANES, Panels, scan};
use crate::metrics::special::{digamma, ln_gamma};
use crate::metrics::{neighbour, rows};
use crate::ops::knn::{Neighbours, Own, knn};
use crate::tensor::Tensor;

/// The neighbour that `eval` reports; our choice, the paper names none.
pub const DEFAULT_K: usize = 5;

/// What the k-NN metric says about a set of latents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KnnReport {
    /// Mean over the queries of log r_k, r_k the Euclidean distance to the k-th nearest target.
    pub mean_log_rk: f64,
    /// The estimate of the mean negative log-likelihood, in nats.
    pub nll: f64,
    /// Which neighbour.
    pub k: usize,
    /// How many target samples.
    pub targets: usize,
    /// How many queries coincide with k targets; see [`mean_log_rk`].
    pub zeros: usize,
}

/// Returns the Euclidean distance of each query to its `k`-th nearest target: `(N, D), (M, D)` → `(N)`.
///
/// If the queries are the targets themselves, each is its own first neighbour: ask for k + 1.
///
/// # Errors
/// An empty or ragged set, values that are not finite, `k` outside 1..=M.
pub fn kth_distances(queries: &[f32], targets: &[f32], dim: usize, k: usize) -> Result<Vec<f32>> {
    const OP: &str = "kth_distances";
    rows(OP, "queries", queries, dim)?;
    neighbour(OP, k, rows(OP, "targets", targets, dim)?)?;
    let mut distances = kth_squared(queries, &Panels::new(targets, dim), k);
    distances.iter_mut().for_each(|r| *r = r.sqrt());
    Ok(distances)
}

/// Who looks for neighbours.
#[derive(Clone, Copy, Debug)]
pub enum Search<'a> {
    /// The processor, on the current rayon pool.
    Here,
    /// A device, by [`crate::ops::knn::knn`], up to its largest k.
    On(&'a Device),
}

impl<'a> Search<'a> {
    /// Chooses what is faster where `device` is at hand: a CUDA device itself, else the processor.
    pub fn of(device: &'a Device) -> Self {
        match device {
            Device::Cuda(_) => Self::On(device),
            _ => Self::Here,
        }
    }

    /// Does what [`kth_distances`] does.
    ///
    /// # Errors
    /// The same; a device that failed.
    pub fn kth_distances(self, queries: &[f32], targets: &[f32], dim: usize, k: usize) -> Result<Vec<f32>> {
        let Self::On(device) = self else { return kth_distances(queries, targets, dim, k) };
        const OP: &str = "kth_distances";
        rows(OP, "queries", queries, dim)?;
        neighbour(OP, k, rows(OP, "targets", targets, dim)?)?;
        let found = neighbours(device, queries, targets, dim, k)?.distances.to_f32_vec()?;
        Ok(found.into_iter().skip(k - 1).step_by(k).collect())
    }

    /// Does what [`nearest`] does.
    ///
    /// # Errors
    /// The same; a device that failed.
    pub fn nearest(self, queries: &[f32], targets: &[f32], dim: usize) -> Result<Vec<usize>> {
        let Self::On(device) = self else { return nearest(queries, targets, dim) };
        const OP: &str = "nearest";
        rows(OP, "queries", queries, dim)?;
        rows(OP, "targets", targets, dim)?;
        let found = neighbours(device, queries, targets, dim, 1)?.numbers.to_f32_vec()?;
        Ok(found.into_iter().map(|number| number as usize).collect())
    }
}

/// Asks a device; the sets are checked by the caller.
fn neighbours(device: &Device, queries: &[f32], targets: &[f32], dim: usize, k: usize) -> Result<Neighbours> {
    let rows = |values: &[f32]| Tensor::from_f32(device, [values.len() / dim, dim], values);
    knn(&rows(queries)?, &rows(targets)?, k, Own::Counted)
}

/// Returns the number of the nearest target of each query, the first of equals: `(N, D), (M, D)` → `(N)`.
///
/// # Errors
/// An empty or ragged set, or values that are not finite.
pub fn nearest(queries: &[f32], targets: &[f32], dim: usize) -> Result<Vec<usize>> {
    const OP: &str = "nearest";
    rows(OP, "queries", queries, dim)?;
    rows(OP, "targets", targets, dim)?;
    let found = scan(
        &Panels::new(targets, dim),
        queries,
        || (f32::INFINITY, 0),
        #[inline(always)]
        |best: &mut (f32, usize), panel, distances| {
            if any_below(distances, best.0) {
                for (lane, r) in distances.iter().enumerate() {
                    if *r < best.0 {
                        *best = (*r, panel * LANES + lane);
                    }
                }
            }
        },
    );
    Ok(found.into_iter().map(|best| best.1).collect())
}

/// Returns the mean of log r over distances, and how many were zero.
///
/// log 0 would make the mean −∞ for a single latent that sits exactly on k targets, so a zero counts as the smallest
/// positive distance of the list: the mean stays finite and errs towards "less likely". Look at the zeros: many of
/// them mean that latents have collapsed onto samples, or that the targets hold duplicates.
///
/// # Errors
/// An empty list, a distance that is negative or not finite, or no positive one.
pub fn mean_log_rk(distances: &[f32]) -> Result<(f64, usize)> {
    const OP: &str = "mean_log_rk";
    if let Some(i) = distances.iter().position(|r| !(*r >= 0.0 && r.is_finite())) {
        let found = format!("{} at {i}", distances[i]);
        return Err(Error::argument(OP, "distances", "finite values from 0", found));
    }
    let smallest = distances.iter().copied().filter(|r| *r > 0.0).fold(f32::INFINITY, f32::min);
    if smallest == f32::INFINITY {
        let found = format!("{} of them", distances.len());
        return Err(Error::argument(OP, "distances", "at least one positive distance", found));
    }
    let sum: f64 = distances.iter().map(|r| (r.max(smallest) as f64).ln()).sum();
    Ok((sum / distances.len() as f64, distances.iter().filter(|r| **r == 0.0).count()))
}

/// Returns the estimate log n + log V_D + D·log r_k − ψ(k) of −log p, in nats, for n = `targets` samples.
pub fn nll_knn(log_rk: f64, targets: usize, dim: usize, k: usize) -> f64 {
    (targets as f64).ln() + log_volume(dim) + dim as f64 * log_rk - digamma(k as f64)
}

/// Returns ψ(n) − ψ(k) + ln V_D: what the entropy estimate of Kozachenko and Leonenko adds to D times the mean log distance to the k-th
/// neighbour, for `n` rows in `dim` dimensions.
pub fn entropy_constant(n: usize, dim: usize, k: usize) -> f64 {
    digamma(n as f64) - digamma(k as f64) + log_volume(dim)
}

/// Returns ln V_D.
fn log_volume(dim: usize) -> f64 {
    let d = dim as f64;
    0.5 * d * std::f64::consts::PI.ln() - ln_gamma(0.5 * d + 1.0)
}

/// Measures queries `(N, D)` against targets `(M, D)`: mean log r_k and the likelihood estimate.
///
/// # Errors
/// Those of [`kth_distances`] and [`mean_log_rk`].
pub fn knn_report(queries: &[f32], targets: &[f32], dim: usize, k: usize) -> Result<KnnReport> {
    knn_report_by(Search::Here, queries, targets, dim, k)
}

/// Does the same by the neighbours that `search` finds.
///
/// # Errors
/// The same; a device that failed.
pub fn knn_report_by(
    search: Search<'_>,
    queries: &[f32],
    targets: &[f32],
    dim: usize,
    k: usize,
) -> Result<KnnReport> {
    let (mean_log_rk, zeros) = mean_log_rk(&search.kth_distances(queries, targets, dim, k)?)?;
    let targets = targets.len() / dim;
    Ok(KnnReport { mean_log_rk, nll: nll_knn(mean_log_rk, targets, dim, k), k, targets, zeros })
}

/// Squared distance of each query to its k-th nearest target; sizes are checked by the caller.
pub(super) fn kth_squared(queries: &[f32], targets: &Panels, k: usize) -> Vec<f32> {
    let found = scan(
        targets,
        queries,
        || vec![f32::INFINITY; k],
        #[inline(always)]
        |best: &mut Vec<f32>, _, distances| {
            if any_below(distances, best[k - 1]) {
                distances.iter().for_each(|r| insert(best, *r));
            }
        },
    );
    found.into_iter().map(|best| best[k - 1]).collect()
}

/// Says whether any lane is below `limit`, without a branch per lane.
#[inline(always)]
fn any_below(distances: &Distances, limit: f32) -> bool {
    distances.iter().fold(false, |any, r| any | (*r < limit))
}

/// Puts `r` in its place in the ascending list, whose largest falls out.
fn insert(best: &mut [f32], r: f32) {
    let last = best.len() - 1;
    if r >= best[last] {
        return;
    }
    let place = best.partition_point(|b| *b <= r);
    best.copy_within(place..last, place + 1);
    best[place] = r;
}

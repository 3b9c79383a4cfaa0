//! All measures of points against data at once: what `flowprior eval` prints of two sets.

use serde::Serialize;

use crate::error::Result;
use crate::metrics::*;

/// Points whose neighbours are looked for: the paper takes 10,000 latents.
const MOST_POINTS: usize = 10_000;
/// Data rows whose neighbours among the others are looked for.
const MOST_OWN: usize = 2048;
/// Rows of each set for coverage and density.
const MOST_COVERED: usize = 4096;
/// Rows of each set for the MMD, the most that its median distance takes of two sets.
const MOST_KERNELS: usize = 2048;
/// Rows of each set that are assigned: below a second.
const MOST_ASSIGNED: usize = 1024;
/// Directions of the sliced distance.
const PROJECTIONS: usize = 128;
/// Columns up to which covariances are decomposed unasked: four decompositions of two seconds each.
pub const MOST_DECOMPOSED: usize = 400;

/// Measures of points `(N, D)` against data `(M, D)`; `None` is what some sets do not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Mean log of the distance from a point to its fifth nearest data row, exact.
    pub log_rk: Option<f64>,
    /// The same of data rows among themselves: what perfect samples would have.
    pub log_rk_data: Option<f64>,
    /// The k-NN estimate of mean −ln p of the points, in nats per row; see [`nll_knn`].
    pub nll_knn: Option<f64>,
    /// The same of data rows among the others: an estimate of the entropy.
    pub nll_knn_data: Option<f64>,
    /// Share of the data whose k-NN ball holds a point, of as many points as data; see [`coverage()`].
    pub coverage: Option<f64>,
    /// Data balls around a point over k.
    pub density: Option<f64>,
    /// Total standard deviation of the points over that of the data.
    pub std_ratio: Option<f64>,
    /// Participation rank of the points' covariance: how many dimensions they fill.
    pub rank: Option<f64>,
    /// Effective rank of the points, which counts thin directions for more.
    pub effective_rank: Option<f64>,
    /// The same of the data.
    pub effective_rank_data: Option<f64>,
    /// Different data rows that are nearest to some point, over the number of points.
    pub nearest_share: Option<f64>,
    /// Sliced Wasserstein-2 distance.
    pub sliced_w2: Option<f64>,
    /// Exact Wasserstein-2 distance of the first rows, at most 1,024 of each.
    pub w2: Option<f64>,
    /// The same of as many data rows and the ones that follow.
    pub w2_data: Option<f64>,
    /// Unbiased squared MMD with a Gaussian kernel of the median distance.
    pub mmd2: Option<f64>,
    /// Fréchet distance, squared.
    pub frechet: Option<f64>,
}

/// Measures points `(N, D)` against data `(M, D)`; large sets by their first rows, where a measure costs all pairs.
///
/// Decompositions, for the effective ranks and the Fréchet distance, are left out where D is above `most_decomposed`.
///
/// # Errors
/// An empty or ragged set, values that are not finite, fewer than six data rows.
pub fn compare(
    points: &[f32],
    data: &[f32],
    dim: usize,
    most_decomposed: usize,
    seed: u64,
) -> Result<Comparison> {
    compare_by(Search::Here, points, data, dim, most_decomposed, seed)
}

/// Does the same, log r_k and the nearest rows by the neighbours that `search` finds.
///
/// # Errors
/// The same; a device that failed.
pub fn compare_by(
    search: Search<'_>,
    points: &[f32],
    data: &[f32],
    dim: usize,
    most_decomposed: usize,
    seed: u64,
) -> Result<Comparison> {
    const OP: &str = "compare";
    let n = rows(OP, "points", points, dim)?;
    let m = rows(OP, "data", data, dim)?;
    neighbour(OP, DEFAULT_K, m - 1)?;
    let first = |set: &'_ [f32], count: usize| set.len().min(count * dim);
    let some = &points[..first(points, MOST_POINTS)];
    let mut found = Comparison {
        std_ratio: std_ratio(points, data, dim).ok(),
        rank: participation_rank(points, dim).ok(),
        nearest_share: Some(nearest_reuse_by(search, some, data, dim)?.share),
        sliced_w2: Some(sliced_wasserstein2(points, data, dim, PROJECTIONS, seed)?),
        ..Default::default()
    };
    // Distances that are all 0 have no logarithm.
    if let Ok(report) = knn_report_by(search, some, data, dim, DEFAULT_K) {
        (found.log_rk, found.nll_knn) = (Some(report.mean_log_rk), Some(report.nll));
    }
    // Each row is its own first neighbour.
    if let Ok(report) = knn_report_by(search, &data[..first(data, MOST_OWN)], data, dim, DEFAULT_K + 1) {
        found.log_rk_data = Some(report.mean_log_rk);
        found.nll_knn_data = Some(nll_knn(report.mean_log_rk, m - 1, dim, DEFAULT_K));
    }
    let equal = |most: usize| n.min(m).min(most);
    found.pairs(points, data, dim, equal)?;
    if dim <= most_decomposed {
        found.effective_rank = effective_rank(points, dim).ok();
        found.effective_rank_data = effective_rank(data, dim).ok();
        if n > 1 {
            found.frechet = Some(frechet_distance(points, data, dim)?);
        }
    }
    Ok(found)
}

impl Comparison {
    /// Measures as many points as data; `equal` says how many there are of at most so many.
    fn pairs(
        &mut self,
        points: &[f32],
        data: &[f32],
        dim: usize,
        equal: impl Fn(usize) -> usize,
    ) -> Result<()> {
        let both = |most| (&points[..equal(most) * dim], &data[..equal(most) * dim]);
        if equal(MOST_COVERED) > DEFAULT_K {
            let (points, data) = both(MOST_COVERED);
            let found = coverage(points, data, dim, DEFAULT_K)?;
            (self.coverage, self.density) = (Some(found.coverage), Some(found.density));
        }
        let (some, rows) = both(MOST_ASSIGNED);
        self.w2 = Some(wasserstein2(some, rows, dim)?);
        let next = data.get(rows.len()..2 * rows.len());
        self.w2_data = next.map(|next| wasserstein2(next, rows, dim)).transpose()?;
        let (some, rows) = both(MOST_KERNELS);
        if let (true, Ok(median)) = (some.len() > dim, median_distance(some, rows, dim)) {
            self.mmd2 = Some(mmd_squared(some, rows, dim, &[median])?);
        }
        Ok(())
    }
}

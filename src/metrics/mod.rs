//! Measures of how latents sit with respect to target features: neighbours, transport, coverage, correlation.
//!
//! All take row-major slices `(N, D)` with the width as an argument, refuse empty and non-finite input, run on the
//! current rayon pool and return the same bits for any number of threads: each row (or projection) is computed by one
//! task in a fixed order, and the rows are added up in order.

mod assignment;
mod balls;
mod bound;
mod compare;
mod correlation;
mod coverage;
mod frechet;
mod knn;
mod lipschitz;
mod mmd;
mod pairs;
mod psnr;
mod rank;
mod special;
mod transport;

pub use assignment::assignment;
pub use balls::{
    ClassCoverage, Coverage, Labelled, PrecisionRecall, coverage, coverage_by_class, precision_recall,
};
pub use bound::{W2Bound, w2_bound};
pub use compare::{Comparison, MOST_DECOMPOSED, compare, compare_by};
pub use correlation::{pearson, spearman};
pub use coverage::{Occupancy, Reuse, mode_occupancy, nearest_reuse, nearest_reuse_by, std_ratio};
pub use frechet::frechet_distance;
pub use knn::{
    DEFAULT_K, KnnReport, Search, entropy_constant, knn_report, knn_report_by, kth_distances, mean_log_rk,
    nearest, nll_knn,
};
pub use lipschitz::{PowerIteration, spectral_norms};
pub use mmd::{median_distance, mmd_squared};
pub use psnr::psnr;
pub use rank::{effective_rank, participation_rank};
pub use special::{digamma, ln_gamma};
pub use transport::{energy_distance, sliced_wasserstein2, wasserstein2, wasserstein2_1d};

use crate::data::pca::Covariance;
use crate::error::{Error, Result};

/// Largest magnitude of a coordinate: the squares of differences stay finite in f32, up to 2¹⁶ dimensions.
const LARGEST: f32 = 1e16;

/// Checks that `values` holds at least one row of `dim` finite numbers and nothing else; returns the rows.
fn rows(op: &'static str, arg: &'static str, values: &[f32], dim: usize) -> Result<usize> {
    if dim == 0 || dim > 1 << 16 {
        return Err(Error::argument(op, "dim", "a width from 1 to 65536", dim));
    }
    if values.is_empty() || !values.len().is_multiple_of(dim) {
        let expected = format!("one or more rows of {dim} values");
        return Err(Error::argument(op, arg, expected, format!("{} values", values.len())));
    }
    if let Some(i) = values.iter().position(|v| !(-LARGEST..=LARGEST).contains(v)) {
        let found = format!("{} in row {}, column {}", values[i], i / dim, i % dim);
        return Err(Error::argument(op, arg, format!("finite values up to {LARGEST:e}"), found));
    }
    Ok(values.len() / dim)
}

/// Collects mean and covariance of points `(N, D)`.
fn covariance(points: &[f32], dim: usize) -> Covariance {
    /// Rows that are added at a time, so that their f64 copy stays in the cache.
    const BLOCK: usize = 512;
    let mut covariance = Covariance::new(dim);
    points.chunks(BLOCK * dim).for_each(|rows| covariance.push(rows));
    covariance
}

/// Checks that a neighbour number is one that `rows` targets can answer.
fn neighbour(op: &'static str, k: usize, rows: usize) -> Result<()> {
    if k == 0 || k > rows {
        return Err(Error::argument(op, "k", format!("a number from 1 to {rows}, the targets"), k));
    }
    Ok(())
}

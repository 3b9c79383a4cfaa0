//! Measures of how latents sit with respect to target features: neighbours, transport, coverage, correlation.
//!
//! All take row-major slices `(N, D)` with the width as an argument, refuse empty and non-finite input, run on the
//! current rayon pool and return the same bits for any number of threads: each row (or projection) is computed by one
//! task in a fixed order, and the rows are added up in order.

mod correlation;
mod coverage;
mod knn;
mod pairs;
mod special;
mod transport;

pub use correlation::{pearson, spearman};
pub use coverage::{
    Occupancy, PrecisionRecall, Reuse, mode_occupancy, nearest_reuse, participation_rank, precision_recall,
    std_ratio,
};
pub use knn::{DEFAULT_K, KnnReport, knn_report, kth_distances, mean_log_rk, nearest, nll_knn};
pub use special::{digamma, ln_gamma};
pub use transport::{energy_distance, sliced_wasserstein2, wasserstein2_1d};

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

/// Checks that a neighbour number is one that `rows` targets can answer.
fn neighbour(op: &'static str, k: usize, rows: usize) -> Result<()> {
    if k == 0 || k > rows {
        return Err(Error::argument(op, "k", format!("a number from 1 to {rows}, the targets"), k));
    }
    Ok(())
}

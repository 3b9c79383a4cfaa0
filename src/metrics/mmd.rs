//! Maximum mean discrepancy of two samples with Gaussian kernels (Gretton et al. 2012).

use crate::error::{Error, Result};
use crate::metrics::pairs::{Panels, scan};
use crate::metrics::rows;

/// Rows of both sets together, at most, of which [`median_distance`] keeps all distances: 256 MiB.
const MOST_POOLED: usize = 8192;

/// Returns the unbiased estimate of the squared MMD of `a: (N, D)` and `b: (M, D)` (their equation 3),
/// E k(x, x′) + E k(y, y′) − 2·E k(x, y), without the pairs of a point with itself.
///
/// k(x, y) is the mean over `bandwidths` σ of exp(−‖x − y‖²/2σ²). For equal distributions the estimate is 0 on average,
/// and as often negative as not. Costs (N + M)² distances.
///
/// # Errors
/// An empty or ragged set, values that are not finite, fewer than two rows, no bandwidth or one that is not positive.
pub fn mmd_squared(a: &[f32], b: &[f32], dim: usize, bandwidths: &[f64]) -> Result<f64> {
    const OP: &str = "mmd_squared";
    let counts = [("a", rows(OP, "a", a, dim)?), ("b", rows(OP, "b", b, dim)?)];
    if let Some((arg, n)) = counts.into_iter().find(|(_, n)| *n < 2) {
        return Err(Error::argument(OP, arg, "at least 2 rows", n));
    }
    if bandwidths.is_empty() || bandwidths.iter().any(|s| !(*s > 0.0 && s.is_finite())) {
        return Err(Error::argument(
            OP,
            "bandwidths",
            "one or more positive numbers",
            format!("{bandwidths:?}"),
        ));
    }
    let [(_, n), (_, m)] = counts;
    let (in_a, in_b) = (Panels::new(a, dim), Panels::new(b, dim));
    // k(x, x) = 1 exactly: equal rows have the distance 0.
    let own = |points, panels, n: f64| (kernel_sum(points, panels, bandwidths) - n) / (n * (n - 1.0));
    let between = kernel_sum(a, &in_b, bandwidths) / (n as f64 * m as f64);
    Ok(own(a, &in_a, n as f64) + own(b, &in_b, m as f64) - 2.0 * between)
}

/// Returns the median distance of the pairs of points of both sets together: the usual bandwidth (their section 8); of
/// an even number of pairs the lower one.
///
/// # Errors
/// An empty or ragged set, values that are not finite, more than 8,192 rows together, or more than half of the pairs equal.
pub fn median_distance(a: &[f32], b: &[f32], dim: usize) -> Result<f64> {
    const OP: &str = "median_distance";
    let n = rows(OP, "a", a, dim)? + rows(OP, "b", b, dim)?;
    if n > MOST_POOLED {
        return Err(Error::argument(OP, "a and b", format!("{MOST_POOLED} rows together, at most"), n));
    }
    let pooled = [a, b].concat();
    let rows = scan(
        &Panels::new(&pooled, dim),
        &pooled,
        Vec::new,
        #[inline(always)]
        |row: &mut Vec<f32>, _, distances| row.extend(distances.iter().filter(|r| **r < f32::INFINITY)),
    );
    let mut squares = rows.concat();
    // Each pair is there twice, after the n zeros of points with themselves.
    let (_, median, _) = squares.select_nth_unstable_by(n + (n * (n - 1) - 1) / 2, f32::total_cmp);
    match *median > 0.0 {
        true => Ok((*median as f64).sqrt()),
        false => Err(Error::argument(OP, "a and b", "rows that differ", "the median distance 0")),
    }
}

/// Σ over all pairs of the mean kernel.
fn kernel_sum(queries: &[f32], targets: &Panels, bandwidths: &[f64]) -> f64 {
    let rates: Vec<f64> = bandwidths.iter().map(|s| -0.5 / (s * s)).collect();
    let sums = scan(
        targets,
        queries,
        || 0.0f64,
        #[inline(always)]
        |sum: &mut f64, _, distances| {
            for rate in &rates {
                // Lanes past the last target are infinite and add exp(−∞) = 0.
                *sum += distances.iter().map(|r| (rate * *r as f64).exp()).sum::<f64>();
            }
        },
    );
    sums.iter().sum::<f64>() / rates.len() as f64
}

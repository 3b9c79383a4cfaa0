//! Peak signal-to-noise ratio of reconstructions.

use crate::error::{Error, Result};
use crate::metrics::rows;

/// Returns the mean over the rows of 10·log₁₀(peak²/MSE), in dB, of `reconstructed: (N, D)` for `data: (N, D)`; +∞ if a
/// row is exact. `peak` is the range of the values: 1 for pictures in [0, 1], 2 for [−1, 1].
///
/// # Errors
/// An empty or ragged set, values that are not finite, different sizes, or a `peak` that is not positive.
pub fn psnr(reconstructed: &[f32], data: &[f32], dim: usize, peak: f64) -> Result<f64> {
    const OP: &str = "psnr";
    let (found, n) = (rows(OP, "reconstructed", reconstructed, dim)?, rows(OP, "data", data, dim)?);
    if found != n {
        return Err(Error::argument(OP, "reconstructed", format!("as many rows as `data`, {n}"), found));
    }
    if !(peak > 0.0 && peak.is_finite()) {
        return Err(Error::argument(OP, "peak", "a positive number", peak));
    }
    let of_row = |(x, y): (&[f32], &[f32])| {
        let squares: f64 = x.iter().zip(y).map(|(x, y)| (*x as f64 - *y as f64).powi(2)).sum();
        10.0 * (peak * peak * dim as f64 / squares).log10()
    };
    let decibels = reconstructed.chunks_exact(dim).zip(data.chunks_exact(dim)).map(of_row);
    Ok(decibels.sum::<f64>() / n as f64)
}

//! Mean, deviation and range of features, over all values and per dimension, in one pass.
//!
//! Per dimension Welford's update in f64: `d = x − m; m += d/n; M₂ += d·(x − m)`. The scalar deviation pools the
//! dimensions: `M₂ = Σ_j M₂_j + n_j (m_j − m)²`, and is unbiased. Values that are not finite are counted apart.

use serde::{Deserialize, Serialize};

/// Statistics of a data set, as written to its manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stats {
    /// The mean of all values.
    pub mean: f64,
    /// The unbiased standard deviation of all values around their one mean; 0 for a single value.
    pub std: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
    /// The number of values that are NaN or infinite; they count nowhere else.
    pub non_finite: u64,
    /// The mean of each dimension, (width).
    pub mean_per_dim: Vec<f64>,
    /// The unbiased standard deviation of each dimension, (width).
    pub std_per_dim: Vec<f64>,
}

/// Collects statistics row by row.
#[derive(Clone, Debug)]
pub struct Moments {
    dims: Vec<Moment>,
    min: f64,
    max: f64,
    non_finite: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Moment {
    n: f64,
    mean: f64,
    square: f64,
}

impl Moments {
    /// Starts over rows of `width` values.
    pub fn new(width: usize) -> Self {
        let dims = vec![Moment::default(); width];
        Self { dims, min: f64::INFINITY, max: f64::NEG_INFINITY, non_finite: 0 }
    }

    /// Adds `rows` (.., width).
    pub fn push(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.dims.len().max(1)) {
            for (dim, x) in self.dims.iter_mut().zip(row) {
                if !x.is_finite() {
                    self.non_finite += 1;
                    continue;
                }
                let x = *x as f64;
                dim.n += 1.0;
                let d = x - dim.mean;
                dim.mean += d / dim.n;
                dim.square += d * (x - dim.mean);
                self.min = self.min.min(x);
                self.max = self.max.max(x);
            }
        }
    }

    /// Returns the statistics so far; zeros where there was no finite value.
    pub fn stats(&self) -> Stats {
        let n: f64 = self.dims.iter().map(|d| d.n).sum();
        let mean = self.dims.iter().map(|d| d.n * d.mean).sum::<f64>() / n.max(1.0);
        let square: f64 = self.dims.iter().map(|d| d.square + d.n * (d.mean - mean).powi(2)).sum();
        let std = |square: f64, n: f64| if n > 1.0 { (square / (n - 1.0)).max(0.0).sqrt() } else { 0.0 };
        let any = |x: f64| if n > 0.0 { x } else { 0.0 };
        Stats {
            mean,
            std: std(square, n),
            min: any(self.min),
            max: any(self.max),
            non_finite: self.non_finite,
            mean_per_dim: self.dims.iter().map(|d| d.mean).collect(),
            std_per_dim: self.dims.iter().map(|d| std(d.square, d.n)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pass_matches_two_passes_far_from_zero() {
        let rows: Vec<f32> = (0..999).map(|i| 1e4 + ((i * 37) % 101) as f32).collect();
        let mut moments = Moments::new(3);
        rows.chunks(30).for_each(|chunk| moments.push(chunk));
        let stats = moments.stats();
        let two_passes = |xs: &[f64]| {
            let mean = xs.iter().sum::<f64>() / xs.len() as f64;
            let square: f64 = xs.iter().map(|x| (x - mean).powi(2)).sum();
            (mean, (square / (xs.len() - 1) as f64).sqrt())
        };
        let all: Vec<f64> = rows.iter().map(|x| *x as f64).collect();
        let (mean, std) = two_passes(&all);
        assert!((stats.mean - mean).abs() < 1e-9 && (stats.std - std).abs() < 1e-9, "{stats:?}");
        for j in 0..3 {
            let column: Vec<f64> = all.iter().skip(j).step_by(3).copied().collect();
            let (mean, std) = two_passes(&column);
            assert!((stats.mean_per_dim[j] - mean).abs() < 1e-9 && (stats.std_per_dim[j] - std).abs() < 1e-9);
        }
        assert_eq!((stats.min, stats.max), (1e4, 1e4 + 100.0));
    }

    #[test]
    fn values_that_are_not_finite_are_only_counted() {
        let mut moments = Moments::new(2);
        moments.push(&[1.0, f32::NAN, 3.0, f32::INFINITY]);
        let stats = moments.stats();
        assert_eq!((stats.non_finite, stats.mean, stats.max), (2, 2.0, 3.0));
        assert_eq!(stats.std_per_dim[1], 0.0);
    }
}

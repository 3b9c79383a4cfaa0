//! What samples and latents are measured against: rows of the data that a prior was trained on, and their density where
//! it is known.
//!
//! Both are in the space of the network: rows are standardised as its training data were, and a toy's density is that of
//! its normalised samples. Points that are not finite, of a run that went wrong, measure as NaN instead of ending it.

use crate::data::density::Density;
use crate::data::toy::Toy;
use crate::error::Result;
use crate::metrics::{self, DEFAULT_K};
use crate::train::config::{Config, DataConfig};
use crate::train::features::{Features, Standardise};

/// Rows of a stored data set that distances are measured to, at most; a larger one is represented by as many at random.
const MOST_ROWS: u64 = 1 << 16;
/// Rows drawn from a toy.
const TOY_ROWS: u64 = 20_000;
/// The number of the batch that these are: beyond those that losses are measured on.
const TOY_BATCH: u64 = 1 << 40;
/// Points whose distances are measured during a run, at most: the cost grows with points times rows.
pub const MOST_POINTS: usize = 2048;

/// Rows of a prior's training data, and their density.
#[derive(Debug)]
pub struct Reference {
    rows: Vec<f32>,
    width: usize,
    toy: Option<(Toy, Density)>,
    names: Vec<String>,
}

impl Reference {
    /// Takes rows of `features`, the same ones for one seed.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub fn of(features: &Features, seed: u64) -> Result<Self> {
        let count = features.source().rows().map_or(TOY_ROWS, |rows| rows.min(MOST_ROWS)) as usize;
        let batch = if features.toy().is_some() { TOY_BATCH } else { 0 };
        let rows = features.fresh(seed, batch, count)?;
        let toy = features.toy().map(|toy| (toy, Density::new(toy)));
        let names = features.source().class_names().to_vec();
        Ok(Self { rows, width: features.width(), toy, names })
    }

    /// Opens the data that a prior was trained on.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub fn open(data: &DataConfig, standardise: Option<&Standardise>, seed: u64) -> Result<Self> {
        // Statistics are not measured again: those of the training run count.
        let data = DataConfig { standardise: false, ..data.clone() };
        let mut features = Features::open(&Config { data, seed, ..Default::default() })?;
        features.standardise = standardise.cloned();
        Self::of(&features, seed)
    }

    /// Returns the rows (M, D).
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// Returns their width, D.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the names of the classes, or none.
    pub fn class_names(&self) -> &[String] {
        &self.names
    }

    /// Returns the toy distribution that the rows are draws from.
    pub fn toy(&self) -> Option<Toy> {
        self.toy.as_ref().map(|(toy, _)| *toy)
    }

    /// Returns the mean over `points` (N, D) of log r_k, r_k the distance to the k-th nearest row, k = 5.
    ///
    /// # Errors
    /// Another width.
    pub fn log_rk(&self, points: &[f32]) -> Result<f64> {
        self.log_rk_of(points, DEFAULT_K)
    }

    fn log_rk_of(&self, points: &[f32], k: usize) -> Result<f64> {
        // Data with non-finite rows train (their steps are skipped), but have no distances.
        if points.iter().chain(&self.rows).any(|x| !x.is_finite()) {
            return Ok(f64::NAN);
        }
        let distances = metrics::kth_distances(points, &self.rows, self.width, k)?;
        if distances.iter().all(|r| *r == 0.0) {
            return Ok(f64::NAN);
        }
        Ok(metrics::mean_log_rk(&distances)?.0)
    }

    /// Returns −ln p of each of the `points` (N, 2) under the toy's density, in nats; `None` where none is known.
    ///
    /// # Errors
    /// Another width.
    pub fn nll(&self, points: &[f32]) -> Result<Option<Vec<f64>>> {
        let Some((_, density)) = &self.toy else { return Ok(None) };
        Ok(Some(density.log_density(points)?.into_iter().map(|x| -x).collect()))
    }

    /// Measures `points` for the log of a run: `nll` where the density is known, and `log_rk` of the first 2,048.
    ///
    /// # Errors
    /// Another width.
    pub fn measure(&self, points: &[f32]) -> Result<Vec<(&'static str, f64)>> {
        let mut values = Vec::new();
        if let Some(nll) = self.nll(points)? {
            values.push(("nll", mean(&nll)));
        }
        let most = points.len().min(MOST_POINTS * self.width);
        values.push(("log_rk", self.log_rk(&points[..most])?));
        Ok(values)
    }
}

/// Returns the mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Returns the standard error of the mean of independent values; infinite for fewer than two.
pub fn standard_error(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return f64::INFINITY;
    }
    let (n, mean) = (values.len() as f64, mean(values));
    (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::config;

    fn gaussians() -> Reference {
        let data = DataConfig { toy: Some(config::Toy::Gaussians), ..Default::default() };
        Reference::open(&data, None, 3).unwrap()
    }

    #[test]
    fn rows_measure_like_themselves_and_noise_does_not() {
        let reference = gaussians();
        let own = reference.log_rk_of(&reference.rows()[..4000], DEFAULT_K + 1).unwrap();
        let values = reference.measure(&reference.rows()[..4000]).unwrap();
        assert_eq!(values.iter().map(|v| v.0).collect::<Vec<_>>(), ["nll", "log_rk"]);
        assert!((values[0].1 - 0.5155).abs() < 0.1, "{values:?}"); // the entropy, 1/√2000 = 0.02 off
        assert!((values[1].1 - own).abs() < 0.2, "{values:?} {own}"); // k counts the row itself
        assert!(reference.log_rk(&[0.0, 0.0]).unwrap() > own + 1.0);
    }

    #[test]
    fn builtin_rows_are_all_there_and_have_no_density() {
        let data = DataConfig { builtin: Some(config::Builtin::Digits), ..Default::default() };
        let reference = Reference::open(&data, None, 0).unwrap();
        assert_eq!((reference.rows().len(), reference.toy()), (1797 * 64, None));
        assert!(reference.nll(&[0.0; 64]).unwrap().is_none());
    }

    #[test]
    fn points_that_are_not_finite_measure_as_nan() {
        assert!(gaussians().log_rk(&[f32::NAN, 0.0]).unwrap().is_nan());
    }

    #[test]
    fn the_standard_error_is_that_of_the_mean() {
        assert_eq!(standard_error(&[1.0]), f64::INFINITY);
        assert!((standard_error(&[1.0, 2.0, 3.0, 4.0]) - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
    }
}

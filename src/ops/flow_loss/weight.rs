//! The weight w(t) of a row, and the density of times that takes its place.
//!
//! With times drawn by p(t) = w(t)/∫w the factor of every row is the same, ∫w: the mean of loss and gradient stays, their variance loses
//! what the weight contributed (importance sampling). A density is piecewise linear ([`TimeDensity`]). That is exactly w for a constant or
//! a table; t/(1 − t) and t²/(1 − t) are taken at knots whose distances shrink in proportion to 1 − t, so that the density is w to
//! 10⁻⁶ of 1/(1 − t) for a clip of 0.98.

use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::flow_path::TimeDensity;
use crate::tensor::Tensor;

/// The weight w(t) of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Weight {
    /// 1.
    Uniform,
    /// The same for each row: what is left of a weight that times are drawn by.
    Constant(f32),
    /// t/(1−t), t clipped from above.
    Likelihood {
        /// Largest t that is not clipped.
        clip: f32,
    },
    /// t²/(1−t), t clipped from above.
    Kl {
        /// Largest t that is not clipped.
        clip: f32,
    },
    /// The user's.
    Table(WeightTable),
}

/// Values of a weight at equal distances from t = 0 to t = 1, linear in between.
#[derive(Clone, Debug)]
pub struct WeightTable(Arc<Values>);

#[derive(Debug)]
struct Values {
    values: Vec<f32>,
    /// The same (knots), where kernels read it.
    on_device: Tensor<f32>,
}

impl PartialEq for WeightTable {
    fn eq(&self, other: &Self) -> bool {
        self.0.values == other.0.values
    }
}

/// Cells of the density of a weight that has a formula.
const CELLS: usize = 2048;

impl WeightTable {
    /// Brings a table to a device.
    ///
    /// # Errors
    /// Fewer than two values; one that is negative or not finite.
    pub fn new(device: &Device, values: &[f32]) -> Result<Self> {
        const OP: &str = "weight_table";
        if values.len() < 2 || u32::try_from(values.len()).is_err() {
            return Err(Error::argument(OP, "values", "2 to 2³² − 1", values.len()));
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite() || **value < 0.0) {
            return Err(Error::argument(OP, "values", "finite numbers from 0 on", value));
        }
        let on_device = Tensor::from_f32(device, [values.len()], values)?;
        Ok(Self(Arc::new(Values { values: values.to_vec(), on_device })))
    }

    /// Returns w(t), with the bits of the kernels.
    #[inline(always)]
    pub fn at(&self, t: f32) -> f32 {
        let values = &self.0.values[..];
        let place = t * (values.len() - 1) as f32;
        let left = (place as usize).min(values.len() - 2);
        values[left] + (place - left as f32) * (values[left + 1] - values[left])
    }

    pub(super) fn on_device(&self) -> &Tensor<f32> {
        &self.0.on_device
    }

    /// Returns t and w(t) at both ends of a range and at the knots within.
    fn knots(&self, (low, high): (f32, f32)) -> Vec<(f32, f64)> {
        let values = &self.0.values;
        let last = values.len() - 1;
        let inner = (0..=last).map(|i| ((i as f64 / last as f64) as f32, values[i] as f64));
        let mut knots = vec![(low, self.at(low) as f64)];
        knots.extend(inner.filter(|(t, _)| low < *t && *t < high));
        knots.push((high, self.at(high) as f64));
        knots
    }
}

impl Weight {
    /// Returns w(t).
    #[inline(always)]
    pub fn at(&self, t: f32) -> f32 {
        match self {
            Self::Uniform => 1.0,
            Self::Constant(w) => *w,
            Self::Likelihood { clip } => {
                let t = clipped(t, *clip);
                t / (1.0 - t)
            }
            Self::Kl { clip } => {
                let t = clipped(t, *clip);
                t * t / (1.0 - t)
            }
            Self::Table(table) => table.at(t),
        }
    }

    /// Makes the density of times in [low, high] that is in proportion to this weight.
    ///
    /// # Errors
    /// A range in which the weight is 0; an empty range.
    pub fn density(&self, device: &Device, range: (f32, f32)) -> Result<TimeDensity> {
        let (low, high) = range;
        let formula = |clip: f32, at: &dyn Fn(f64) -> f64| {
            let mut knots = shrinking(low, high.min(clip)).map(|t| (t, at(t as f64))).collect::<Vec<_>>();
            if clip < high {
                knots.push((high, at(clip as f64)));
            }
            knots.dedup_by(|next, knot| next.0 <= knot.0); // a short range has fewer f32 numbers than cells
            knots
        };
        let knots = match self {
            Self::Uniform => vec![(low, 1.0), (high, 1.0)],
            Self::Constant(w) => vec![(low, *w as f64), (high, *w as f64)],
            Self::Likelihood { clip } => formula(*clip, &|t| t / (1.0 - t)),
            Self::Kl { clip } => formula(*clip, &|t| t * t / (1.0 - t)),
            Self::Table(table) => table.knots(range),
        };
        TimeDensity::new(device, &knots)
    }
}

/// Lists [`CELLS`] + 1 times from `low` to `high`, 1 − t in equal ratios.
fn shrinking(low: f32, high: f32) -> impl Iterator<Item = f32> {
    let (from, to) = (1.0 - low as f64, 1.0 - high as f64);
    (0..=CELLS).map(move |i| match i {
        0 => low,
        CELLS => high,
        i => (1.0 - from * (to / from).powf(i as f64 / CELLS as f64)) as f32,
    })
}

/// Returns the smaller number; NaN for a t of NaN, which `f32::min` would hide.
#[inline(always)]
fn clipped(t: f32, clip: f32) -> f32 {
    if t > clip { clip } else { t }
}

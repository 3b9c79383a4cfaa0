//! Step grids: N steps are N + 1 times, from noise at 0 to data at 1 or back.

use crate::error::{Error, Result};

/// Which way the flow is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From t = 0 to t = 1.
    ToData,
    /// From t = 1 to t = 0.
    ToNoise,
}

impl Direction {
    /// Returns the first and the last time.
    pub(super) fn span(self) -> (f32, f32) {
        match self {
            Self::ToData => (0.0, 1.0),
            Self::ToNoise => (1.0, 0.0),
        }
    }
}

/// Where the steps lie.
#[derive(Clone, Debug, PartialEq)]
pub enum Grid {
    /// This many equal steps.
    Uniform(usize),
    /// Equal steps of u, at t = a·u / (1 + (a − 1)·u). a < 1 spends more of them near noise; the shift s of models that count noise
    /// at 1 (SD3) is a = 1/s here.
    Shifted {
        /// Steps.
        steps: usize,
        /// a.
        shift: f64,
    },
    /// These times, ascending from 0 to 1.
    Listed(Vec<f64>),
}

impl Grid {
    /// Returns the times in the order in which they are passed.
    ///
    /// # Errors
    /// No steps, a shift that is no positive number, a list that does not ascend from 0 to 1.
    pub fn times(&self, direction: Direction) -> Result<Vec<f64>> {
        let mut times = match self {
            Self::Uniform(steps) => spread(*steps, |u| u)?,
            Self::Shifted { shift, .. } if !(*shift > 0.0 && shift.is_finite()) => {
                return Err(Error::Usage(format!("a grid's shift must be a positive number, not {shift}")));
            }
            Self::Shifted { steps, shift } => spread(*steps, |u| shift * u / (1.0 + (shift - 1.0) * u))?,
            Self::Listed(times) => {
                check(times)?;
                times.clone()
            }
        };
        if direction == Direction::ToNoise {
            times.reverse();
        }
        Ok(times)
    }

    /// Reads times that are separated by commas.
    ///
    /// # Errors
    /// Something that is no number, or a list that does not ascend from 0 to 1.
    pub fn listed(text: &str) -> Result<Self> {
        let number = |part: &str| {
            let part = part.trim();
            part.parse::<f64>()
                .map_err(|_| Error::Usage(format!("a grid lists times from 0 to 1; `{part}` is no number")))
        };
        let times: Vec<f64> = text.split(',').map(number).collect::<Result<_>>()?;
        check(&times)?;
        Ok(Self::Listed(times))
    }
}

/// Places N + 1 times; the ends are exact.
fn spread(steps: usize, place: impl Fn(f64) -> f64) -> Result<Vec<f64>> {
    if steps == 0 {
        return Err(Error::Usage("sampling needs at least 1 step, 0 were asked for".into()));
    }
    let mut times: Vec<f64> = (0..=steps).map(|i| place(i as f64 / steps as f64)).collect();
    times[steps] = 1.0;
    Ok(times)
}

fn check(times: &[f64]) -> Result<()> {
    let refused = |why: String| Err(Error::Usage(format!("a grid's times must ascend from 0 to 1: {why}")));
    if times.len() < 2 || times[0] != 0.0 || times[times.len() - 1] != 1.0 {
        let ends = times.first().zip(times.last());
        return refused(ends.map_or("there are none".into(), |(a, b)| format!("they go from {a} to {b}")));
    }
    match times.windows(2).find(|pair| pair[0].partial_cmp(&pair[1]) != Some(std::cmp::Ordering::Less)) {
        Some(pair) => refused(format!("{} follows {}", pair[1], pair[0])),
        None => Ok(()),
    }
}

//! Stochastic samplers: paths with noise on the way, and the same distribution at every t.
//!
//! For the linear path the score is a function of the velocity (FEATURES 4.2), so any w(t) ≥ 0 gives
//! ```text
//! score(x, t) = −(x − t·v)/(1 − t)               dx = (v + w·score) dt + √(2w) dW
//! Euler and Maruyama:  x ← (1 − h·w/(1−t))·x + h·(1 + w·t/(1−t))·v + √(2·w·h)·noise
//! ```
//! w = 0 is the ODE. At t = 1 the score diverges, so the last step, of size 0.04 unless the grid lists another, is taken without
//! noise (SiT, arXiv 2401.08740). The forms of w with 1/t (`sbdm`, `flow-grpo`) take the end of the step for t where t = 0, as
//! Flow-GRPO (arXiv 2505.05470) does.

use std::f64::consts::PI;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::flow::sampler::{Cost, Direction, Grid, Time, named};
use crate::ops::flow_path::Rows;
use crate::ops::sde_step::{Factors, sde_step};
use crate::rng::Draw;
use crate::tensor::Tensor;

/// The form of w(t); each is multiplied by [`Sde::scale`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diffusion {
    /// 1.
    Constant,
    /// (1 − t)/t: what makes the SDE that of score-based models.
    Sbdm,
    /// σ(t) = 1 − t.
    Sigma,
    /// 1 − t: on the linear path the same as σ(t).
    Linear,
    /// ¼·(cos πt + 1)², with the scale before the cosine, as SiT has it.
    Decreasing,
    /// sin² πt.
    IncreasingDecreasing,
    /// (1 − t)/2t with the scale squared: g = scale·√((1 − t)/t), w = g²/2.
    FlowGrpo,
}

impl Diffusion {
    /// Lists all forms with the names that a user types.
    pub const ALL: [(&str, Self); 7] = [
        ("constant", Self::Constant),
        ("sbdm", Self::Sbdm),
        ("sigma", Self::Sigma),
        ("linear", Self::Linear),
        ("decreasing", Self::Decreasing),
        ("increasing-decreasing", Self::IncreasingDecreasing),
        ("flow-grpo", Self::FlowGrpo),
    ];

    /// Returns w(t) for the step of size h.
    pub fn w(self, scale: f64, t: f64, h: f64) -> f64 {
        let not_zero = if t > 0.0 { t } else { h };
        match self {
            Self::Constant => scale,
            Self::Sbdm => scale * (1.0 - t) / not_zero,
            Self::Sigma | Self::Linear => scale * (1.0 - t),
            Self::Decreasing => 0.25 * (scale * (PI * t).cos() + 1.0).powi(2),
            Self::IncreasingDecreasing => scale * (PI * t).sin().powi(2),
            Self::FlowGrpo => 0.5 * scale * scale * (1.0 - t) / not_zero,
        }
    }
}

impl FromStr for Diffusion {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        named("diffusion", s, &Self::ALL)
    }
}

/// What the last step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastStep {
    /// A step of the SDE without its noise. Where w is not small there it takes away much of the spread.
    Mean,
    /// E[data | x_t] = x + (1 − t)·v.
    Tweedie,
    /// A step of the ODE, x + h·v: on the linear path, where it ends at t = 1, the same number as Tweedie's.
    Euler,
}

impl LastStep {
    /// Lists all of them with the names that a user types.
    pub const ALL: [(&str, Self); 3] =
        [("mean", Self::Mean), ("tweedie", Self::Tweedie), ("euler", Self::Euler)];
}

impl FromStr for LastStep {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        named("last step", s, &Self::ALL)
    }
}

/// A stochastic sampler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sde {
    /// The form of w(t).
    pub diffusion: Diffusion,
    /// What it is multiplied by.
    pub scale: f64,
    /// What the last step is.
    pub last: LastStep,
}

/// The size of the last step: SiT's.
const LAST_SIZE: f64 = 0.04;

/// Carries `x: (N, D)` from noise to data on a random path: as many evaluations as steps. Row i draws the noise of
/// `rows.address(i)` in stream `noise`, step by step.
///
/// # Errors
/// A scale that is negative or not finite; a grid without steps, or with times out of order; an error of the velocity.
pub fn sample_sde(
    mut x: Tensor<f32>,
    sde: &Sde,
    grid: &Grid,
    (noise, rows): (Draw, Rows),
    mut velocity: impl FnMut(&Tensor<f32>, Time<'_>) -> Result<Tensor<f32>>,
) -> Result<(Tensor<f32>, Cost)> {
    if !(sde.scale >= 0.0 && sde.scale.is_finite()) {
        return Err(Error::Usage(format!(
            "the scale of a diffusion must be 0 or a positive number, not {}",
            sde.scale
        )));
    }
    let times = times(grid)?;
    let steps = times.len() - 1;
    for (step, pair) in times.windows(2).enumerate() {
        let (t, h) = (pair[0], pair[1] - pair[0]);
        let v = velocity(&x, Time::Known { t, step })?;
        let factors = if step + 1 < steps { sde.factors(t, h) } else { sde.last_factors(t, h) };
        sde_step(&mut x, &v, factors, noise.at(step as u64), rows)?;
    }
    Ok((x, Cost { evaluations: steps, accepted: steps, rejected: 0 }))
}

/// Returns the times of the steps: a grid of N − 1 steps squeezed in front of the last one, or those that are listed.
fn times(grid: &Grid) -> Result<Vec<f64>> {
    let squeezed = match grid {
        Grid::Uniform(steps) if *steps > 1 => Grid::Uniform(steps - 1),
        Grid::Shifted { steps, shift } if *steps > 1 => Grid::Shifted { steps: steps - 1, shift: *shift },
        _ => return grid.times(Direction::ToData),
    };
    let before = squeezed.times(Direction::ToData)?;
    Ok(before.into_iter().map(|t| t * (1.0 - LAST_SIZE)).chain([1.0]).collect())
}

impl Sde {
    fn factors(&self, t: f64, h: f64) -> Factors {
        let w = self.diffusion.w(self.scale, t, h);
        Factors { noise: (2.0 * w * h).sqrt() as f32, ..drift(w, t, h) }
    }

    fn last_factors(&self, t: f64, h: f64) -> Factors {
        match self.last {
            LastStep::Mean => drift(self.diffusion.w(self.scale, t, h), t, h),
            LastStep::Tweedie => Factors { x: 1.0, v: (1.0 - t) as f32, noise: 0.0 },
            LastStep::Euler => Factors { x: 1.0, v: h as f32, noise: 0.0 },
        }
    }
}

/// x + h·(v + w·score), without noise.
fn drift(w: f64, t: f64, h: f64) -> Factors {
    let pull = h * w / (1.0 - t);
    Factors { x: (1.0 - pull) as f32, v: (h + pull * t) as f32, noise: 0.0 }
}

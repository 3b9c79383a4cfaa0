//! ODE samplers: dx/dt = v(x, t) between noise at t = 0 and data at t = 1, in either direction.
//!
//! Fixed grids of N steps, per step of size h at (x, t), with v1 = v(x, t):
//! ```text
//! euler     x + h·v1                                                   N evaluations, order 1
//! midpoint  x + h·v(x + h/2·v1, t + h/2)                               2N, order 2
//! heun      x + h/2·(v1 + v(x + h·v1, t + h))                          2N − 1, order 2: the last step takes no second slope
//! rk4       x + h/6·(v1 + 2·v2 + 2·v3 + v4)                            4N, order 4 (the classic rule)
//! ab2       x + h·((1 + r/2)·v1 − r/2·v0), r = h/h0                    N + 1, order 2: v0, h0 of the step before, the first Heun's
//! ```
//! The last step of `heun` is ab2's, from the slopes that are there (with a single step it is Euler's). `dopri5` chooses its steps
//! itself ([`crate::ops::dopri5`]); stochastic samplers are in [`sde`].

mod adaptive;
mod fixed;
mod grid;
pub mod sde;

use std::str::FromStr;

pub use adaptive::Tolerance;
pub use grid::{Direction, Grid};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::elementwise::axpy;
use crate::tensor::Tensor;

/// A solver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Order 1.
    Euler,
    /// Order 2, slope at the middle.
    Midpoint,
    /// Order 2, mean of the slopes at both ends.
    Heun,
    /// Order 4.
    Rk4,
    /// Order 2, slopes of this step and the one before (Adams and Bashforth).
    Ab2,
    /// Order 5, steps chosen by an error estimate (Dormand and Prince); it has no grid.
    Dopri5,
}

impl Method {
    /// Lists all of them with the names that a user types.
    pub const ALL: [(&str, Self); 6] = [
        ("euler", Self::Euler),
        ("midpoint", Self::Midpoint),
        ("heun", Self::Heun),
        ("rk4", Self::Rk4),
        ("ab2", Self::Ab2),
        ("dopri5", Self::Dopri5),
    ];
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        named("method", s, &Self::ALL)
    }
}

/// Finds the value of a name.
pub(super) fn named<T: Copy>(what: &str, name: &str, all: &[(&str, T)]) -> Result<T> {
    all.iter().find(|(known, _)| *known == name).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(known, _)| *known).collect();
        Error::Usage(format!("unknown {what} `{name}`: expected `{}`", names.join("`, `")))
    })
}

/// The time of an evaluation, the same for all rows.
#[derive(Clone, Copy, Debug)]
pub enum Time<'a> {
    /// A time of a grid, and the number of its step.
    Known {
        /// The time.
        t: f64,
        /// The step.
        step: usize,
    },
    /// A time that an adaptive solve has chosen on the device, (1).
    OnDevice(&'a Tensor<f32>),
}

impl Time<'_> {
    /// Returns the time; one on the device is waited for.
    ///
    /// # Errors
    /// A device that failed.
    pub fn value(self) -> Result<f64> {
        match self {
            Self::Known { t, .. } => Ok(t),
            Self::OnDevice(t) => Ok(t.to_f32_vec()?.first().map_or(f64::NAN, |t| *t as f64)),
        }
    }

    /// Returns the time on the device, (1).
    ///
    /// # Errors
    /// A device that failed.
    pub fn tensor(self, device: &Device) -> Result<Tensor<f32>> {
        match self {
            Self::Known { t, .. } => Tensor::from_f32(device, [1], &[t as f32]),
            Self::OnDevice(t) => t.duplicate(),
        }
    }
}

/// What is integrated; slopes have the same parts.
#[derive(Debug)]
pub struct State {
    /// (N, D).
    pub x: Tensor<f32>,
    /// (N): ∫ tr(∂v/∂x) dt along each path, where a likelihood is wanted.
    pub log_det: Option<Tensor<f32>>,
}

impl State {
    /// Returns the parts, in order.
    fn parts(&self) -> impl Iterator<Item = &Tensor<f32>> {
        std::iter::once(&self.x).chain(&self.log_det)
    }

    /// Returns part k.
    fn part(&self, k: usize) -> &Tensor<f32> {
        match &self.log_det {
            Some(log_det) if k > 0 => log_det,
            _ => &self.x,
        }
    }

    /// Puts together what `f` makes of each part.
    fn build(&self, mut f: impl FnMut(usize) -> Result<Tensor<f32>>) -> Result<Self> {
        Ok(Self { x: f(0)?, log_det: self.log_det.as_ref().map(|_| f(1)).transpose()? })
    }

    /// self += a·slope.
    fn advance(&mut self, a: f64, slope: &Self) -> Result<()> {
        axpy(self.x.view_mut(), a as f32, &slope.x)?;
        match (&mut self.log_det, &slope.log_det) {
            (Some(log_det), Some(slope)) => axpy(log_det.view_mut(), a as f32, slope),
            _ => Ok(()),
        }
    }

    /// Returns self + a·slope.
    fn moved(&self, a: f64, slope: &Self) -> Result<Self> {
        let mut moved = self.build(|k| self.part(k).duplicate())?;
        moved.advance(a, slope)?;
        Ok(moved)
    }
}

/// How an ODE is solved.
#[derive(Clone, Debug, PartialEq)]
pub struct Solver {
    /// The solver.
    pub method: Method,
    /// Its steps; `dopri5` needs none.
    pub grid: Grid,
    /// What `dopri5` is held to.
    pub tolerance: Tolerance,
}

/// What a solve came to, and cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Evaluations of the velocity, those of rejected steps included.
    pub evaluations: usize,
    /// Steps taken.
    pub accepted: usize,
    /// Steps that `dopri5` rejected.
    pub rejected: usize,
}

/// Carries `state` from one end of the flow to the other. `slope(state, t)` returns a slope for each part.
///
/// # Errors
/// A grid without steps, or with times out of order; an adaptive solve whose state is not finite or that its tolerance leads
/// nowhere; an error of the slope.
pub fn integrate(
    state: State,
    solver: &Solver,
    direction: Direction,
    mut slope: impl FnMut(&State, Time<'_>) -> Result<State>,
) -> Result<(State, Cost)> {
    let mut evaluations = 0;
    let counted = |state: &State, time: Time<'_>| {
        evaluations += 1;
        slope(state, time)
    };
    let (state, accepted, rejected) = match solver.method {
        Method::Dopri5 => adaptive::dopri5(state, &solver.tolerance, direction, counted)?,
        method => {
            let times = solver.grid.times(direction)?;
            (fixed::fixed(state, method, &times, counted)?, times.len() - 1, 0)
        }
    };
    Ok((state, Cost { evaluations, accepted, rejected }))
}

/// Carries `x: (N, D)` from noise to data. `velocity(x, t)` → `(N, D)`.
///
/// # Errors
/// See [`integrate`].
pub fn sample(
    x: Tensor<f32>,
    solver: &Solver,
    mut velocity: impl FnMut(&Tensor<f32>, Time<'_>) -> Result<Tensor<f32>>,
) -> Result<(Tensor<f32>, Cost)> {
    let state = State { x, log_det: None };
    let slope = |state: &State, time: Time<'_>| Ok(State { x: velocity(&state.x, time)?, log_det: None });
    let (state, cost) = integrate(state, solver, Direction::ToData, slope)?;
    Ok((state.x, cost))
}

#[cfg(test)]
mod tests;

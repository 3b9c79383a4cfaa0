//! Adaptive steps: what drives the controller of [`crate::ops::dopri5`], which lives on the device.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::flow::sampler::{Direction, State, Time};
use crate::ops::dopri5::{
    Control, Limits, Report, SLOPES, Status, dopri5_accept, dopri5_decide, dopri5_error, dopri5_partials,
    dopri5_stage,
};
use crate::tensor::Tensor;

/// What an adaptive solve is held to. The error of a step is a root mean square over the whole batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Error of a step allowed for large numbers, relative to them.
    pub rtol: f64,
    /// Error of a step allowed for small numbers.
    pub atol: f64,
    /// The smallest step.
    pub smallest: f64,
    /// The most tries, accepted and rejected.
    pub tries: u32,
}

impl Default for Tolerance {
    /// 1e-5, what latent flow matching samples with (FEATURES 3); f32 states carry little more. A step below 1e-6 is twenty units of
    /// a time near 1.
    fn default() -> Self {
        Self { rtol: 1e-5, atol: 1e-5, smallest: 1e-6, tries: 1000 }
    }
}

/// The first step: a hundredth of the way, which grows tenfold where that is too careful.
const FIRST: f32 = 0.01;
/// Tries that a card makes before the host looks: looking waits. Tries after the end do nothing but cost their evaluations.
const LOOK_EVERY: u32 = 4;

/// Carries `state` to the other end; also returns the steps accepted and rejected.
pub(super) fn dopri5(
    mut state: State,
    tolerance: &Tolerance,
    direction: Direction,
    mut slope: impl FnMut(&State, Time<'_>) -> Result<State>,
) -> Result<(State, usize, usize)> {
    let limits = limits(tolerance)?;
    let (device, span) = (state.x.device().clone(), direction.span());
    let mut control = Control::new(&device, span, FIRST * (span.1 - span.0))?;
    let mut first = slope(&state, Time::Known { t: span.0 as f64, step: 0 })?;
    let look_every = if matches!(device, Device::Cuda(_)) { LOOK_EVERY } else { 1 };
    for tried in 1..=tolerance.tries.saturating_add(look_every) {
        step(&mut state, &mut first, &mut control, &limits, &mut slope)?;
        if tried % look_every == 0 {
            let report = control.look()?;
            match report.status {
                Status::Running => {}
                Status::Done => return Ok((state, report.accepted, report.rejected)),
                status => return Err(failed(status, &report, tolerance)),
            }
        }
    }
    Err(failed(Status::TooMany, &control.look()?, tolerance))
}

fn limits(tolerance: &Tolerance) -> Result<Limits> {
    let Tolerance { rtol, atol, smallest, tries } = *tolerance;
    let positive = |x: f64| x > 0.0 && x.is_finite();
    if !positive(atol) || !(rtol == 0.0 || positive(rtol)) || !positive(smallest) || tries == 0 {
        return Err(Error::Usage(format!(
            "dopri5 needs a positive absolute tolerance, a relative one that is not negative, a positive smallest step and at least \
             1 try, not {atol:e}, {rtol:e}, {smallest:e} and {tries}"
        )));
    }
    Ok(Limits { rtol: rtol as f32, atol: atol as f32, smallest: smallest as f32, tries })
}

/// Tries one step; `first` is the slope at `state`.
fn step(
    state: &mut State,
    first: &mut State,
    control: &mut Control,
    limits: &Limits,
    slope: &mut impl FnMut(&State, Time<'_>) -> Result<State>,
) -> Result<()> {
    let mut later: Vec<State> = Vec::with_capacity(SLOPES - 1);
    let mut solution = None;
    for _ in 1..SLOPES {
        let mut time = None;
        let stage = state.build(|k| {
            let slopes: Vec<&Tensor<f32>> =
                std::iter::once(&*first).chain(&later).map(|slope| slope.part(k)).collect();
            let (y, t) = dopri5_stage(state.part(k), &slopes, control)?;
            time = Some(t);
            Ok(y)
        })?;
        if let Some(t) = &time {
            later.push(slope(&stage, Time::OnDevice(t))?);
        }
        solution = Some(stage);
    }
    let (Some(solution), Some(last)) = (solution, later.last()) else { return Ok(()) };
    let counts: Vec<usize> = state.parts().map(|part| dopri5_partials(part.len())).collect();
    let mut partials = Tensor::uninit(state.x.device(), [counts.iter().sum()]);
    let mut offset = 0;
    for (k, count) in counts.into_iter().enumerate() {
        let [of_part] = partials.view_mut().parts([(offset, [count].into())]);
        let slopes = std::array::from_fn(|j| if j == 0 { first.part(k) } else { later[j - 1].part(k) });
        dopri5_error(of_part, (state.part(k), solution.part(k)), &slopes, control, limits)?;
        offset += count;
    }
    dopri5_decide(control, &partials, state.parts().map(Tensor::len).sum(), limits)?;
    dopri5_accept((&mut state.x, &solution.x), (&mut first.x, &last.x), control)?;
    match (&mut state.log_det, &solution.log_det, &mut first.log_det, &last.log_det) {
        (Some(x), Some(y), Some(first), Some(last)) => dopri5_accept((x, y), (first, last), control),
        _ => Ok(()),
    }
}

fn failed(status: Status, report: &Report, tolerance: &Tolerance) -> Error {
    let Report { t, accepted, rejected, .. } = report;
    let Tolerance { rtol, atol, smallest, tries } = tolerance;
    Error::Diverged(match status {
        Status::NotFinite => format!(
            "dopri5: the state or the velocity is not finite after t = {t} ({accepted} steps accepted, {rejected} rejected); the \
             network may have diverged, or its input is far from anything it was trained on"
        ),
        Status::TooSmall => format!(
            "dopri5: a tolerance of {rtol:e} (relative) and {atol:e} (absolute) asks for steps below {smallest:e} at t = {t}; allow \
             a larger error"
        ),
        _ => format!(
            "dopri5: the end is not reached after {tries} tries ({accepted} steps accepted, {rejected} rejected, t = {t}); allow a \
             larger error or take a fixed grid"
        ),
    })
}

//! Solvers on a fixed grid: see the formulas in the module above.

use crate::error::Result;
use crate::flow::sampler::{Method, State, Time};

/// Carries `state` over the times (N + 1).
pub(super) fn fixed(
    mut state: State,
    method: Method,
    times: &[f64],
    mut slope: impl FnMut(&State, Time<'_>) -> Result<State>,
) -> Result<State> {
    let mut before: Option<(f64, State)> = None;
    for (step, pair) in times.windows(2).enumerate() {
        let (t, end) = (pair[0], pair[1]);
        let (h, middle, last) = (end - t, 0.5 * (t + end), step + 2 == times.len());
        let mut at = |state: &State, t: f64| slope(state, Time::Known { t, step });
        let v1 = at(&state, t)?;
        match (method, &before) {
            (Method::Ab2, Some((h0, v0))) => extrapolate(&mut state, h, &v1, *h0, v0)?,
            (Method::Heun, Some((h0, v0))) if last => extrapolate(&mut state, h, &v1, *h0, v0)?,
            (Method::Heun, None) if last => state.advance(h, &v1)?,
            (Method::Heun | Method::Ab2, _) => {
                let v2 = at(&state.moved(h, &v1)?, end)?;
                state.advance(0.5 * h, &v1)?;
                state.advance(0.5 * h, &v2)?;
            }
            (Method::Midpoint, _) => {
                let v2 = at(&state.moved(0.5 * h, &v1)?, middle)?;
                state.advance(h, &v2)?;
            }
            (Method::Rk4, _) => {
                let v2 = at(&state.moved(0.5 * h, &v1)?, middle)?;
                let v3 = at(&state.moved(0.5 * h, &v2)?, middle)?;
                let v4 = at(&state.moved(h, &v3)?, end)?;
                for (weight, v) in [(1.0, &v1), (2.0, &v2), (2.0, &v3), (1.0, &v4)] {
                    state.advance(h * weight / 6.0, v)?;
                }
            }
            (Method::Euler | Method::Dopri5, _) => state.advance(h, &v1)?,
        }
        before = Some((h, v1));
    }
    Ok(state)
}

/// The step of Adams and Bashforth, of order 2, after one of another size.
fn extrapolate(state: &mut State, h: f64, v1: &State, h0: f64, v0: &State) -> Result<()> {
    let ratio = h / h0;
    state.advance(h * (1.0 + 0.5 * ratio), v1)?;
    state.advance(-0.5 * h * ratio, v0)
}

//! Spectral norms of Jacobians at given points, by power iteration: Lipschitz constants, estimated from below.
//!
//! For rows x of a function f that treats rows apart, with J = ∂f/∂x at the row and a direction e of its own for each:
//!
//! ```text
//! u = J·e / ‖J·e‖     J·e ≈ (f(x + h·e) − f(x − h·e)) / 2h
//! e = Jᵀu / ‖Jᵀu‖     Jᵀu by the backward pass; ‖Jᵀu‖ is the estimate
//! ```
//! ‖u‖ = 1, so ‖Jᵀu‖ never exceeds the spectral norm ‖J‖ (but for the rounding of the backward pass), however coarse the
//! difference: the difference only chooses u. The largest of all rounds counts. The Lipschitz constant is the supremum of
//! ‖J‖ over the whole space, and the largest norm at some points is a lower bound of it.

use crate::device::Isa;
use crate::error::{Error, Result};
use crate::metrics::rows;
use crate::rng::{Draw, Stream};

/// The step that numbers the first directions' draws: beyond any step that training evaluates at, and the sliced directions'.
const DIRECTIONS: u64 = (1 << 41) + 1;

/// How the power iteration goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PowerIteration {
    /// Rounds; twenty find the norm to a percent where the two largest singular values differ by a tenth.
    pub rounds: usize,
    /// The h of the differences: about the cube root of the rounding error of f.
    pub step: f32,
    /// Decides the first directions.
    pub seed: u64,
}

/// Returns ‖∂f/∂x‖ at each of the points `(N, D)`: `(N)`.
///
/// `f` takes `(N, D)` and gives `(N, E)`; `vjp` takes the points and a `u: (N, E)` and gives uᵀ·∂f/∂x, `(N, D)`.
///
/// # Errors
/// An empty or ragged set, values that are not finite, no round, a step that is not positive; what `f` and `vjp` report.
pub fn spectral_norms(
    points: &[f32],
    dim: usize,
    how: PowerIteration,
    f: impl Fn(&[f32]) -> Result<Vec<f32>>,
    vjp: impl Fn(&[f32], &[f32]) -> Result<Vec<f32>>,
) -> Result<Vec<f64>> {
    const OP: &str = "spectral_norms";
    let n = rows(OP, "points", points, dim)?;
    if how.rounds == 0 {
        return Err(Error::argument(OP, "rounds", "at least 1", how.rounds));
    }
    if !(how.step > 0.0 && how.step.is_finite()) {
        return Err(Error::argument(OP, "step", "a positive number", how.step));
    }
    let mut e = vec![0.0; points.len()];
    let draw = Draw::new(how.seed, Stream::Evaluation, DIRECTIONS);
    Isa::detect().run(
        #[inline(always)]
        |arch| draw.fill_normal_rows(arch, &mut e, dim, 0, |row| (row as u64, 0)),
    );
    normalise(&mut e, dim);
    let moved = |by: f32, e: &[f32]| f(&points.iter().zip(e).map(|(x, e)| x + by * e).collect::<Vec<_>>());
    let mut norms = vec![0.0f64; n];
    for _ in 0..how.rounds {
        let (ahead, behind) = (moved(how.step, &e)?, moved(-how.step, &e)?);
        let mut u: Vec<f32> = ahead.iter().zip(&behind).map(|(a, b)| a - b).collect();
        let width = u.len() / n;
        normalise(&mut u, width);
        e = vjp(points, &u)?;
        let found = normalise(&mut e, dim);
        norms.iter_mut().zip(found).for_each(|(most, norm)| *most = most.max(norm));
    }
    Ok(norms)
}

/// Divides each row by its norm and returns the norms; rows of zeros stay.
fn normalise(values: &mut [f32], width: usize) -> Vec<f64> {
    let of_row = |row: &mut [f32]| {
        let norm = row.iter().map(|x| (*x as f64).powi(2)).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|x| *x = (*x as f64 / norm) as f32);
        }
        norm
    };
    values.chunks_exact_mut(width).map(of_row).collect()
}

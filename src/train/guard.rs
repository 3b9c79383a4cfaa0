//! Watches that interpolated modulation stays equal to the direct form while the network trains.
//!
//! Every [`Guard::EVERY`] steps the last two Chebyshev coefficients of the tables are computed in f64. Past 1e-7 of the
//! tables' range (f32 rounding) the next larger number of nodes takes over, and past 64 the direct form; the run says so.

use crate::error::Result;
use crate::float::FloatX;
use crate::nn::{Form, Params, VelocityNet};

/// Largest error that hides in f32 rounding (PERFORMANCE section 5).
const TOLERANCE: f64 = 1e-7;

/// Numbers of nodes to try, in order; from 64 nodes on the direct form is cheaper for small batches.
const LADDER: [usize; 4] = [24, 32, 48, 64];

/// The watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard;

impl Guard {
    /// Steps between two looks: the f64 evaluation then costs about one part in a thousand.
    pub const EVERY: u64 = 100;

    /// Returns the form to go on with, and what to tell the user when it is another one.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn check<X: FloatX>(
        net: &VelocityNet,
        params: &Params<X>,
        form: Form,
    ) -> Result<(Form, Option<String>)> {
        let Form::Nodes(nodes) = form else { return Ok((form, None)) };
        let error = net.node_error(params, nodes)?;
        if error <= TOLERANCE {
            return Ok((form, None));
        }
        for more in LADDER.into_iter().filter(|r| *r > nodes) {
            if net.node_error(params, more)? <= TOLERANCE {
                let note = format!(
                    "modulation: error {error:.1e} of the range at {nodes} nodes, going on with {more}"
                );
                return Ok((Form::Nodes(more), Some(note)));
            }
        }
        let note =
            format!("modulation: error {error:.1e} of the range at {nodes} nodes, going on with `direct`");
        Ok((Form::Direct, Some(note)))
    }
}

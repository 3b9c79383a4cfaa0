//! The bound of latent flow matching on the Wasserstein-2 distance of data and decoded samples, with its terms.
//!
//! Data x with latents z = E(x); samples ẑ of an ODE with the velocity v̂, decoded to D(ẑ). With L_D a Lipschitz constant of
//! D, L one of v̂(·, t) for all t, and v the exact velocity between noise and latents:
//!
//! ```text
//! W₂²(x, D(ẑ)) ≤ 2·E‖x − D(E(x))‖² + 2·L_D²·e^(1+2L)·∫₀¹ E‖v(z_t, t) − v̂(z_t, t)‖² dt
//! ```
//! Proof: W₂(x, D(ẑ)) ≤ W₂(x, D(z)) + W₂(D(z), D(ẑ)) ≤ a + b, the first by pairing x with D(E(x)), the second at most
//! L_D·W₂(z, ẑ); and (a + b)² ≤ 2a² + 2b². Two paths from one noise, Δ apart, have d‖Δ‖²/dt ≤ ‖v − v̂‖² + (1 + 2L)·‖Δ‖², so
//! by Grönwall W₂²(z, ẑ) ≤ e^(1+2L)·∫E‖v − v̂‖². Without a decoder there is no a, nor the factor 2. With a decoder and
//! without the 2 (so we remember the bound of LFM, Dao et al. 2023; unchecked) it is false: (a + b)² exceeds a² + b², and a
//! test has a case where the distance does.
//!
//! ‖·‖² sums over dimensions. E‖v − v̂‖² is the flow-matching loss less its floor, the variance of data − noise given z_t;
//! where the floor is unknown the loss itself is above it, and the bound still one.

use serde::Serialize;

use crate::error::{Error, Result};

/// The bound and what it is made of. With Lipschitz constants that are estimates from below ([`spectral_norms`]), it is an
/// estimate itself; e^(1+2L) makes it large wherever the velocity turns quickly.
///
/// [`spectral_norms`]: crate::metrics::spectral_norms
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct W2Bound {
    /// E‖x − D(E(x))‖²; `None` without a decoder.
    pub reconstruction: Option<f64>,
    /// L_D; `None` without a decoder.
    pub decoder_lipschitz: Option<f64>,
    /// L.
    pub velocity_lipschitz: f64,
    /// ∫E‖v − v̂‖² dt, or what is above it.
    pub velocity_error: f64,
    /// The natural logarithm of the bound on W₂², which itself may be beyond f64.
    pub ln_bound: f64,
}

/// Returns the bound of `decoder`, the reconstruction error and L_D, and of a velocity with its Lipschitz constant and error.
///
/// # Errors
/// A term that is negative or not finite.
pub fn w2_bound(
    decoder: Option<(f64, f64)>,
    velocity_lipschitz: f64,
    velocity_error: f64,
) -> Result<W2Bound> {
    let (reconstruction, lipschitz) = decoder.unzip();
    let terms = [
        ("reconstruction", reconstruction.unwrap_or(0.0)),
        ("decoder_lipschitz", lipschitz.unwrap_or(0.0)),
        ("velocity_lipschitz", velocity_lipschitz),
        ("velocity_error", velocity_error),
    ];
    if let Some((name, term)) = terms.into_iter().find(|(_, term)| !(*term >= 0.0 && term.is_finite())) {
        return Err(Error::argument("w2_bound", name, "a finite number from 0", term));
    }
    let flow = 1.0 + 2.0 * velocity_lipschitz + velocity_error.ln();
    let ln_bound = match decoder {
        None => flow,
        Some((reconstruction, lipschitz)) => {
            2f64.ln() + ln_of_sum(reconstruction.ln(), 2.0 * lipschitz.ln() + flow)
        }
    };
    Ok(W2Bound { reconstruction, decoder_lipschitz: lipschitz, velocity_lipschitz, velocity_error, ln_bound })
}

/// ln(eˣ + eʸ), also of −∞.
fn ln_of_sum(x: f64, y: f64) -> f64 {
    let (most, least) = (x.max(y), x.min(y));
    if most == f64::NEG_INFINITY { most } else { most + (least - most).exp().ln_1p() }
}

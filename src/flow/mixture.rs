//! The exact marginal velocity of a Gaussian mixture: the oracle that networks and estimators are tested against.
//!
//! For means m_k, common standard deviation q and weights π_k, with V = (1−t)² + t²q² and
//! w_k ∝ π_k·exp(−‖x − t·m_k‖²/(2V)) (FEATURES 2):
//! ```text
//! v(x, t) = Σ_k w_k·[ m_k + (t·q² − (1−t))/V · (x − t·m_k) ]
//! ```

use crate::data::toy::Mixture;

/// Returns v(x, t) in f64.
pub fn mixture_velocity(mixture: &Mixture, x: [f64; 2], t: f64) -> [f64; 2] {
    let q2 = mixture.std * mixture.std;
    let variance = (1.0 - t) * (1.0 - t) + t * t * q2;
    let slope = (t * q2 - (1.0 - t)) / variance;
    let offset = |m: &[f64; 2]| [x[0] - t * m[0], x[1] - t * m[1]];
    let log_weights: Vec<f64> = mixture
        .means
        .iter()
        .zip(&mixture.weights)
        .map(|(m, weight)| {
            let d = offset(m);
            weight.ln() - (d[0] * d[0] + d[1] * d[1]) / (2.0 * variance)
        })
        .collect();
    let largest = log_weights.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let (mut v, mut sum) = ([0.0; 2], 0.0);
    for (m, log_weight) in mixture.means.iter().zip(&log_weights) {
        let (w, d) = ((log_weight - largest).exp(), offset(m));
        sum += w;
        for i in 0..2 {
            v[i] += w * (m[i] + slope * d[i]);
        }
    }
    v.map(|v| v / sum)
}

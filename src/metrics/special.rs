//! The logarithm of Γ and its derivative ψ, for positive arguments.
//!
//! Both shift the argument to at least 10 with Γ(x+1) = x·Γ(x) and then use Stirling's asymptotic series
//! (Abramowitz and Stegun 6.1.41 and 6.3.18), whose first neglected term is below 1e-16 there.

const SHIFT: f64 = 10.0;

/// Returns ln Γ(x) for x > 0, absolute error about 1e-14; NaN for x ≤ 0.
pub fn ln_gamma(x: f64) -> f64 {
    if x.is_nan() || x <= 0.0 {
        return f64::NAN;
    }
    let (mut x, mut product) = (x, 1.0);
    while x < SHIFT {
        product *= x;
        x += 1.0;
    }
    let z = 1.0 / (x * x);
    // Coefficients B₂ₙ / (2n (2n − 1)).
    let series = [1.0 / 12.0, -1.0 / 360.0, 1.0 / 1260.0, -1.0 / 1680.0, 1.0 / 1188.0, -691.0 / 360_360.0];
    let tail = series.iter().rev().fold(1.0 / 156.0 * z, |sum, c| (sum + c) * z) / z / x;
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + tail - product.ln()
}

/// Returns the digamma function ψ(x) = Γ′(x)/Γ(x) for x > 0, absolute error about 1e-14; NaN for x ≤ 0.
pub fn digamma(x: f64) -> f64 {
    if x.is_nan() || x <= 0.0 {
        return f64::NAN;
    }
    let (mut x, mut below) = (x, 0.0);
    while x < SHIFT {
        below += 1.0 / x;
        x += 1.0;
    }
    let z = 1.0 / (x * x);
    // Coefficients B₂ₙ / (2n).
    let series = [1.0 / 12.0, -1.0 / 120.0, 1.0 / 252.0, -1.0 / 240.0, 1.0 / 132.0, -691.0 / 32_760.0];
    let tail = series.iter().rev().fold(1.0 / 12.0 * z, |sum, c| (sum + c) * z);
    x.ln() - 0.5 / x - tail - below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln_gamma_of_integers_is_the_log_of_factorials() {
        let mut factorial = 1.0f64;
        for n in 1..30 {
            let error = (ln_gamma(n as f64) - factorial.ln()).abs();
            assert!(error < 1e-13 * factorial.ln().max(1.0), "Γ({n}) is off by {error:e}");
            factorial *= n as f64;
        }
    }

    #[test]
    fn ln_gamma_of_halves_matches_the_closed_form() {
        // Γ(n + ½) = Γ(½) · ½ · 3/2 · … · (n − ½), Γ(½) = √π.
        let mut value = 0.5 * std::f64::consts::PI.ln();
        for n in 0..40 {
            let x = n as f64 + 0.5;
            assert!((ln_gamma(x) - value).abs() < 1e-13 * value.abs().max(1.0), "Γ({x})");
            value += x.ln();
        }
        assert!(ln_gamma(0.0).is_nan() && ln_gamma(-1.5).is_nan());
    }

    #[test]
    fn digamma_matches_harmonic_numbers_and_the_value_at_one_half() {
        const EULER: f64 = 0.577_215_664_901_532_9;
        let mut harmonic = 0.0;
        for n in 1..60 {
            assert!((digamma(n as f64) - (harmonic - EULER)).abs() < 1e-13, "ψ({n})");
            harmonic += 1.0 / n as f64;
        }
        assert!((digamma(0.5) - (-EULER - 2.0 * 2f64.ln())).abs() < 1e-13);
        assert!(digamma(0.0).is_nan());
    }
}

//! PSNR, spectral norms of Jacobians, and the bound on W₂ that is made of them.

use flowprior::Result;
use flowprior::metrics::*;

use crate::{close, in_pool, normals};

const HOW: PowerIteration = PowerIteration { rounds: 40, step: 1e-3, seed: 5 };

#[test]
fn psnr_is_the_mean_of_the_rows_decibels() {
    let data = [0.0f32, 0.5, 1.0, 0.25];
    // Mean squared errors 1/64 and 1/4: 18.06 and 6.02 dB.
    let found = psnr(&[0.125f32, 0.375, 0.5, 0.75], &data, 2, 1.0).unwrap();
    close(found, (10.0 * 64f64.log10() + 10.0 * 4f64.log10()) / 2.0, 1e-9);
    // Twice the range, as of pictures in [−1, 1], are 6.02 dB.
    let twice = psnr(&[0.125f32, 0.375, 0.5, 0.75], &data, 2, 2.0).unwrap();
    close(twice - found, 10.0 * 4f64.log10(), 1e-9);
    assert_eq!(psnr(&data, &data, 2, 1.0).unwrap(), f64::INFINITY);
    let text = psnr(&data[..2], &data, 2, 1.0).unwrap_err().to_string();
    assert_eq!(text, "psnr: `reconstructed` has 1, expected as many rows as `data`, 2");
    assert!(psnr(&data, &data, 2, 0.0).is_err() && psnr(&data, &data, 2, f64::NAN).is_err());
}

/// Rows times a matrix (E, D).
fn product(rows: &[f32], matrix: &[f32], dim: usize) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    rows.chunks(dim).flat_map(|row| matrix.chunks(dim).map(move |line| dot(row, line))).collect()
}

#[test]
fn the_norm_of_a_linear_map_is_its_largest_singular_value() {
    // Singular values 5 and 3: A·Aᵀ = [[17, 8], [8, 17]].
    let (a, transposed) = ([3.0f32, 2.0, 2.0, 2.0, 3.0, -2.0], [3.0f32, 2.0, 2.0, 3.0, 2.0, -2.0]);
    let f = |x: &[f32]| Ok(product(x, &a, 3));
    let vjp = |_: &[f32], u: &[f32]| Ok(product(u, &transposed, 2));
    for norm in spectral_norms(&normals(7, 3, 1), 3, HOW, f, vjp).unwrap() {
        close(norm, 5.0, 1e-5);
    }
}

#[test]
fn the_norm_is_that_of_each_point_and_never_above_it() {
    // f = x²/2 by entries: the Jacobian is diag(x).
    let points = normals(50, 4, 1);
    let f = |x: &[f32]| -> Result<Vec<f32>> { Ok(x.iter().map(|x| x * x / 2.0).collect()) };
    let vjp = |x: &[f32], u: &[f32]| Ok(x.iter().zip(u).map(|(x, u)| x * u).collect());
    let norms = |how| spectral_norms(&points, 4, how, f, vjp).unwrap();
    let largest = |row: &[f32]| row.iter().fold(0.0f32, |m, x| m.max(x.abs())) as f64;
    for (norm, row) in norms(HOW).iter().zip(points.chunks(4)) {
        close(*norm, largest(row), 0.02);
    }
    // One round with a useless difference is an estimate from below all the same.
    for (norm, row) in norms(PowerIteration { rounds: 1, step: 50.0, ..HOW }).iter().zip(points.chunks(4)) {
        assert!(*norm > 0.0 && *norm <= largest(row) * (1.0 + 1e-6), "{norm}");
    }
    let one = in_pool(1, || norms(HOW));
    assert!([2, 3].into_iter().all(|threads| in_pool(threads, || norms(HOW)) == one));
}

#[test]
fn constants_have_norm_zero_and_bad_iterations_are_refused() {
    let (f, vjp) = (|_: &[f32]| Ok(vec![1.0; 2]), |_: &[f32], _: &[f32]| Ok(vec![0.0; 4]));
    assert_eq!(spectral_norms(&[1.0, 2.0, 3.0, 4.0], 2, HOW, f, vjp).unwrap(), [0.0, 0.0]);
    // The largest of all rounds counts: 6, 3, 2.
    let calls = std::cell::Cell::new(0.0);
    let falling = |_: &[f32], _: &[f32]| {
        calls.set(calls.get() + 1.0);
        Ok(vec![6.0 / calls.get(), 0.0])
    };
    let how = PowerIteration { rounds: 3, ..HOW };
    assert_eq!(spectral_norms(&[1.0, 2.0], 2, how, |x| Ok(x.to_vec()), falling).unwrap(), [6.0]);
    for how in [PowerIteration { rounds: 0, ..HOW }, PowerIteration { step: 0.0, ..HOW }] {
        assert!(spectral_norms(&[1.0, 2.0], 2, how, f, vjp).is_err());
    }
    let broken = |_: &[f32]| Err(flowprior::Error::Usage("no forward".into()));
    assert!(spectral_norms(&[1.0, 2.0], 2, HOW, broken, vjp).is_err());
}

#[test]
fn the_bound_holds_where_the_form_without_the_factor_two_does_not() {
    // Data 0, E(0) = 0, D(z) = z + 1; v = 0 and v̂ = 1, so ẑ = z + 1: samples end at 2, W₂² = 4.
    let found = w2_bound(Some((1.0, 1.0)), 0.0, 1.0).unwrap();
    close(found.ln_bound.exp(), 2.0 + 2.0 * 1f64.exp(), 1e-12);
    assert!(found.ln_bound.exp() >= 4.0 && found.ln_bound.exp() / 2.0 < 4.0, "{found:?}");
}

#[test]
fn the_bound_holds_for_a_velocity_that_is_off_by_a_multiple() {
    // Noise and data N(0, 1): v = g(t)·x, g = (2t − 1)/V, V = (1 − t)² + t². With v̂ = (g + a)·x samples have the
    // deviation eᵃ, so W₂ = eᵃ − 1; |g| ≤ 1, and ∫E‖v − v̂‖² = a²·∫V = 2a²/3.
    for a in [0.01f64, 0.3, 1.0] {
        let found = w2_bound(None, 1.0 + a, 2.0 / 3.0 * a * a).unwrap();
        assert!(found.ln_bound.exp() >= (a.exp() - 1.0).powi(2), "{a}: {found:?}");
        close(found.ln_bound, 3.0 + 2.0 * a + (2.0 / 3.0 * a * a).ln(), 1e-12);
        assert_eq!((found.reconstruction, found.decoder_lipschitz), (None, None));
    }
}

#[test]
fn the_bound_may_be_far_beyond_f64_or_zero_but_its_terms_may_not() {
    let far = w2_bound(Some((1.0, 2.0)), 1e4, 1.0).unwrap();
    close(far.ln_bound, 2.0 * 2f64.ln() + 2f64.ln() + 1.0 + 2e4, 1e-9);
    assert_eq!(w2_bound(None, 3.0, 0.0).unwrap().ln_bound, f64::NEG_INFINITY);
    close(w2_bound(Some((0.5, 2.0)), 3.0, 0.0).unwrap().ln_bound, 0.0, 1e-15);
    let text = w2_bound(None, f64::INFINITY, 1.0).unwrap_err().to_string();
    assert_eq!(text, "w2_bound: `velocity_lipschitz` has inf, expected a finite number from 0");
    assert!(w2_bound(None, 1.0, -1.0).is_err() && w2_bound(Some((f64::NAN, 1.0)), 1.0, 1.0).is_err());
}

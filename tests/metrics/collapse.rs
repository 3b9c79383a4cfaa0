//! Modes, deviations and ranks of points that collapse, and of points that do not.

use flowprior::metrics::*;

use crate::{close, normals};

#[test]
fn mode_occupancy_counts_hand_placed_points() {
    let modes = [0.0f32, 0.0, 10.0, 0.0, 0.0, 10.0];
    let points = [0.1f32, 0.0, 9.9, 0.0, 10.0, 0.1, 2.0, 0.0];
    let found = mode_occupancy(&points, &modes, 2, 0.1).unwrap();
    assert_eq!((found.counts, found.min, found.max), (vec![2, 2, 0], 0, 2));
    assert_eq!(found.within_three_sigma, 0.75);
    // Squares 0.01 + 0.01 + 0.01 + 4 over 4 points and 2 dimensions.
    close(found.spread, (4.03f64 / 8.0).sqrt() / 0.1, 1e-5);
}

#[test]
fn samples_of_a_mixture_have_spread_one() {
    let (modes, sigma) = ([-5.0f32, 0.0, 5.0, 0.0], 0.3f32);
    let noise = normals(4000, 2, 1);
    let points: Vec<f32> = noise.iter().enumerate().map(|(i, z)| modes[i % 4] + sigma * z).collect();
    let found = mode_occupancy(&points, &modes, 2, sigma as f64).unwrap();
    assert_eq!(found.counts, [2000, 2000]);
    close(found.spread, 1.0, 0.03);
    // P(χ²₂ ≤ 9) = 1 − e^(−4.5).
    close(found.within_three_sigma, 1.0 - (-4.5f64).exp(), 0.005);
}

#[test]
fn std_ratio_measures_a_scaled_copy() {
    let a = normals(100, 3, 1);
    let scaled: Vec<f32> = a.iter().map(|x| 7.0 + 0.25 * x).collect();
    close(std_ratio(&scaled, &a, 3).unwrap(), 0.25, 1e-6);
    assert!(
        std_ratio(&a, &[1.0, 2.0, 3.0, 1.0, 2.0, 3.0], 3).unwrap_err().to_string().contains("equal rows")
    );
}

#[test]
fn nearest_reuse_counts_shared_targets() {
    let found = nearest_reuse(&[0.1f32, 0.2, -0.1, 4.0], &[0.0, 5.0, 100.0], 1).unwrap();
    assert_eq!(found, Reuse { distinct: 2, share: 0.5, most: 3 });
}

#[test]
fn participation_rank_counts_the_directions_in_use() {
    // Corners of a square in a plane of R³: eigenvalues 1, 1, 0.
    let square = [1.0f32, 1.0, 5.0, 1.0, -1.0, 5.0, -1.0, 1.0, 5.0, -1.0, -1.0, 5.0];
    close(participation_rank(&square, 3).unwrap(), 2.0, 1e-12);
    // A diagonal line; then eigenvalues 4 and 1: 25/17.
    close(participation_rank(&[0.0f32, 0.0, 1.0, 1.0, 2.0, 2.0], 2).unwrap(), 1.0, 1e-12);
    close(
        participation_rank(&[2.0f32, 1.0, 2.0, -1.0, -2.0, 1.0, -2.0, -1.0], 2).unwrap(),
        25.0 / 17.0,
        1e-12,
    );
    assert!(participation_rank(&[0.1f32, 0.2, 0.1, 0.2, 0.1, 0.2], 2).is_err());
}

/// Rows ±s_i·e_i around `centre`: singular values √2·s_i.
fn cross(spectrum: &[f32], centre: f32) -> Vec<f32> {
    let dim = spectrum.len();
    let mut rows = vec![centre; 2 * dim * dim];
    for (i, s) in spectrum.iter().enumerate() {
        rows[2 * i * dim + i] += s;
        rows[(2 * i + 1) * dim + i] -= s;
    }
    rows
}

#[test]
fn effective_rank_of_a_known_spectrum_is_the_exponential_of_its_entropy() {
    close(effective_rank(&cross(&[2.0; 4], 0.0), 4).unwrap(), 4.0, 1e-6);
    // Shares 3/4 and 1/4, wherever the centre is.
    let expected = (-(0.75 * 0.75f64.ln() + 0.25 * 0.25f64.ln())).exp();
    close(effective_rank(&cross(&[3.0, 1.0], 0.0), 2).unwrap(), expected, 1e-9);
    close(effective_rank(&cross(&[3.0, 1.0], 64.0), 2).unwrap(), expected, 1e-9);
    // A diagonal line has one direction; fewer rows than columns have no more than rows.
    close(effective_rank(&[0.0f32, 0.0, 1.0, 1.0, 2.0, 2.0], 2).unwrap(), 1.0, 1e-6);
    assert!(effective_rank(&normals(5, 40, 1), 40).unwrap() < 4.0 + 1e-4);
    // Thin directions count for more than in the participation rank.
    let thin = cross(&[1.0, 0.1], 0.0);
    close(effective_rank(&thin, 2).unwrap(), 1.356, 1e-3);
    close(participation_rank(&thin, 2).unwrap(), 1.020, 1e-3);
}

#[test]
fn effective_rank_of_a_round_cloud_is_its_width_and_equal_rows_have_none() {
    close(effective_rank(&normals(4000, 8, 1), 8).unwrap(), 8.0, 0.01);
    let text = effective_rank(&[0.1f32, 0.2, 0.1, 0.2], 2).unwrap_err().to_string();
    assert_eq!(text, "effective_rank: `points` has equal rows, expected rows that differ");
    assert!(effective_rank(&[1.0f32, 2.0], 2).is_err());
}

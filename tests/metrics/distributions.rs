//! Distances of distributions against closed forms: Fréchet, exact Wasserstein-2 and the assignment behind it, MMD.

use flowprior::metrics::*;

use crate::{close, in_pool, normals};

/// Rows ±s_i·v_i around `mean` for orthonormal rows v_i: their unbiased covariance is Σ 2·s_i²/(2D − 1)·v_i·v_iᵀ.
fn spread(deviations: &[f64], directions: &[Vec<f64>], mean: &[f64]) -> Vec<f32> {
    let rows = deviations.iter().zip(directions).flat_map(|(s, v)| [(*s, v), (-s, v)]);
    rows.flat_map(|(s, v)| v.iter().zip(mean).map(move |(v, m)| (m + s * v) as f32)).collect()
}

#[test]
fn frechet_distance_of_axis_aligned_sets_has_its_closed_form() {
    let axes: Vec<Vec<f64>> = (0..3).map(|i| (0..3).map(|j| (i == j) as u8 as f64).collect()).collect();
    let a = spread(&[1.0, 2.0, 3.0], &axes, &[0.0, 0.0, 0.0]);
    let b = spread(&[2.0, 2.0, 0.5], &axes, &[1.0, -2.0, 0.5]);
    // Σ (σ_a − σ_b)² with σ² = 2s²/5, and the shift 1 + 4 + 1/4.
    let expected = 5.25 + 0.4 * (1.0 + 0.0 + 6.25);
    close(frechet_distance(&a, &b, 3).unwrap(), expected, 1e-6);
    close(frechet_distance(&b, &a, 3).unwrap(), expected, 1e-6);
}

#[test]
fn frechet_distance_of_covariances_that_do_not_commute_has_its_closed_form() {
    let (r, axes) = (0.5f64.sqrt(), vec![vec![1.0, 0.0], vec![0.0, 1.0]]);
    let a = spread(&[2.0, 1.0], &axes, &[0.0, 0.0]);
    let b = spread(&[3f64.sqrt(), 1.0], &[vec![r, r], vec![r, -r]], &[0.0, 0.0]);
    // Times 3/2: Σ_a = diag(4, 1), Σ_b = [[2, 1], [1, 2]]. For 2 × 2 matrices tr √M = √(tr M + 2√det M), M = Σ_a·Σ_b:
    // trace 10, determinant 12.
    let root = (10.0 + 2.0 * 12f64.sqrt()).sqrt();
    close(frechet_distance(&a, &b, 2).unwrap(), 2.0 / 3.0 * (5.0 + 4.0 - 2.0 * root), 1e-6);
}

#[test]
fn frechet_distance_of_normal_samples_approaches_that_of_the_normals() {
    let a = normals(20_000, 1, 1);
    let b: Vec<f32> = normals(20_000, 1, 2).iter().map(|x| 2.0 + 3.0 * x).collect();
    close(frechet_distance(&a, &b, 1).unwrap(), 4.0 + 4.0, 0.2); // 3 deviations of the mean, 3/√20000, times 2·2
}

#[test]
fn frechet_distance_of_a_set_with_itself_is_zero_though_rows_are_few() {
    for (n, dim) in [(500, 6), (8, 20), (2, 3)] {
        let a = normals(n, dim, 1);
        close(frechet_distance(&a, &a, dim).unwrap(), 0.0, 1e-6 * dim as f64);
    }
    assert_eq!(frechet_distance(&[1.0; 6], &[1.0; 4], 2).unwrap(), 0.0);
    close(frechet_distance(&[1.0; 6], &[4.0; 4], 2).unwrap(), 18.0, 1e-12);
    let text = frechet_distance(&[1.0, 2.0], &[1.0; 4], 2).unwrap_err().to_string();
    assert_eq!(text, "frechet_distance: `a` has 1, expected at least 2 rows");
}

/// The least cost over all permutations.
fn least(cost: &[f64], n: usize, row: usize, free: &mut Vec<usize>) -> f64 {
    if free.is_empty() {
        return 0.0;
    }
    (0..free.len()).fold(f64::INFINITY, |best, i| {
        let column = free.remove(i);
        let total = cost[row * n + column] + least(cost, n, row + 1, free);
        free.insert(i, column);
        best.min(total)
    })
}

#[test]
fn assignments_are_the_best_of_all_permutations() {
    for (n, sample) in [(1, 1), (2, 2), (5, 3), (6, 4), (7, 5), (7, 6)] {
        let cost: Vec<f64> = normals(n, n, sample).iter().map(|x| *x as f64).collect();
        let found = assignment(&cost, n).unwrap();
        let mut columns = found.clone();
        columns.sort_unstable();
        assert_eq!(columns, (0..n).collect::<Vec<_>>());
        let total: f64 = found.iter().enumerate().map(|(row, column)| cost[row * n + column]).sum();
        close(total, least(&cost, n, 0, &mut (0..n).collect()), 1e-12);
    }
    // Ties have some answer; a greedy one would pay 1 + 100 here.
    assert_eq!(assignment(&[1.0; 9], 3).unwrap().len(), 3);
    assert_eq!(assignment(&[1.0, 2.0, 2.0, 100.0], 2).unwrap(), [1, 0]);
    assert!(assignment(&[1.0; 3], 2).is_err() && assignment(&[f64::NAN], 1).is_err());
}

#[test]
fn exact_wasserstein_of_a_shift_is_its_length_and_of_a_shuffle_zero() {
    let (n, dim) = (200, 5);
    let a = normals(n, dim, 1);
    let shuffled: Vec<f32> = (0..n).rev().flat_map(|i| a[i * dim..(i + 1) * dim].to_vec()).collect();
    assert_eq!(wasserstein2(&a, &shuffled, dim).unwrap(), 0.0);
    let shifted: Vec<f32> =
        shuffled.iter().enumerate().map(|(i, x)| x + [3.0, 0.0, -4.0, 0.0, 0.0][i % 5]).collect();
    close(wasserstein2(&a, &shifted, dim).unwrap(), 5.0, 1e-6);
    let (x, y) = (normals(300, 1, 1), normals(300, 1, 2));
    close(wasserstein2(&x, &y, 1).unwrap(), wasserstein2_1d(&x, &y).unwrap(), 1e-9);
}

#[test]
fn exact_wasserstein_of_normals_approaches_its_closed_form_and_bounds_the_sliced_one() {
    let a = normals(1000, 2, 1);
    let b: Vec<f32> =
        normals(1000, 2, 2).iter().enumerate().map(|(i, x)| [2.0, 0.0][i % 2] + 1.5 * x).collect();
    // 2² + 2·(1.5 − 1)²; a thousand points are some 0.1 apart from another thousand.
    let exact = wasserstein2(&a, &b, 2).unwrap();
    close(exact, 4.5f64.sqrt(), 0.15);
    let sliced = sliced_wasserstein2(&a, &b, 2, 500, 1).unwrap();
    close(sliced, (4.5f64 / 2.0).sqrt(), 0.15);
    assert!(sliced * 2f64.sqrt() <= exact * 1.05, "{sliced} {exact}");
}

#[test]
fn exact_wasserstein_refuses_sets_that_it_cannot_assign() {
    let text = wasserstein2(&[0.0; 4], &[0.0; 6], 2).unwrap_err().to_string();
    assert_eq!(text, "wasserstein2: `b` has 3, expected as many rows as `a`, 2");
    let text = wasserstein2(&[0.0; 2049], &[0.0; 2049], 1).unwrap_err().to_string();
    assert!(text.contains("`a` has 2049, expected 2048 rows at most"), "{text}");
}

#[test]
fn mmd_of_hand_placed_points() {
    let k = |r: f64, s: f64| (-r * r / (2.0 * s * s)).exp();
    let by_hand = |s| k(1.0, s) + k(2.0, s) - 2.0 * (1.0 + k(2.0, s) + 2.0 * k(1.0, s)) / 4.0;
    let found = |s: &[f64]| mmd_squared(&[0.0, 1.0], &[0.0, 2.0], 1, s).unwrap();
    close(found(&[1.0]), by_hand(1.0), 1e-15);
    close(found(&[0.5, 3.0]), (by_hand(0.5) + by_hand(3.0)) / 2.0, 1e-15);
    assert_eq!(median_distance(&[0.0, 1.0], &[3.0], 1).unwrap(), 2.0);
    assert_eq!(median_distance(&[0.0, 1.0], &[3.0, 7.0], 1).unwrap(), 3.0); // of 1 2 3 4 6 7
}

#[test]
fn mmd_of_shifted_normals_approaches_its_closed_form() {
    let (n, dim, s) = (2000, 3, 1.5f64);
    let b: Vec<f32> =
        normals(n, dim, 2).iter().enumerate().map(|(i, x)| x + [1.2, 0.0, 0.0][i % 3]).collect();
    // x − x′ ~ N(0, 2I), x − y ~ N(m, 2I).
    let same = (s * s / (s * s + 2.0)).powf(1.5);
    let expected = 2.0 * same * (1.0 - (-1.44 / (2.0 * (s * s + 2.0))).exp());
    close(mmd_squared(&normals(n, dim, 1), &b, dim, &[s]).unwrap(), expected, 0.01);
}

#[test]
fn mmd_of_one_distribution_is_zero_on_average_and_of_either_sign() {
    let found: Vec<f64> = (0..200)
        .map(|i| mmd_squared(&normals(30, 2, 1000 * i), &normals(30, 2, 1000 * i + 500), 2, &[1.0]).unwrap())
        .collect();
    let mean = found.iter().sum::<f64>() / 200.0;
    let std = (found.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 199.0).sqrt();
    assert!(mean.abs() < 4.0 * std / 200f64.sqrt(), "{mean} ± {std}/√200");
    let negative = found.iter().filter(|x| **x < 0.0).count();
    assert!((40..180).contains(&negative), "{negative} of 200 are negative");
}

#[test]
fn mmd_refuses_what_has_none() {
    let text = |a: &[f32], b: &[f32], s: &[f64]| mmd_squared(a, b, 1, s).unwrap_err().to_string();
    assert_eq!(text(&[1.0], &[1.0, 2.0], &[1.0]), "mmd_squared: `a` has 1, expected at least 2 rows");
    let few = text(&[1.0, 2.0], &[1.0, 2.0], &[]);
    assert_eq!(few, "mmd_squared: `bandwidths` has [], expected one or more positive numbers");
    assert!(text(&[1.0, 2.0], &[1.0, 2.0], &[1.0, 0.0]).contains("[1.0, 0.0]"));
    let text = median_distance(&[1.0; 3], &[1.0; 3], 1).unwrap_err().to_string();
    assert!(text.contains("the median distance 0"), "{text}");
    let text = median_distance(&[0.0; 8000], &[0.0; 193], 1).unwrap_err().to_string();
    assert_eq!(text, "median_distance: `a and b` has 8193, expected 8192 rows together, at most");
}

#[test]
fn distances_have_the_same_bits_for_any_number_of_threads() {
    let (a, b) = (normals(210, 33, 1), normals(210, 33, 2));
    let all = || {
        let median = median_distance(&a, &b, 33).unwrap();
        let mmd = mmd_squared(&a, &b, 33, &[median, 2.0]).unwrap();
        let frechet = frechet_distance(&a, &b, 33).unwrap();
        [median, mmd, frechet, wasserstein2(&a, &b, 33).unwrap()].map(f64::to_bits)
    };
    let one = in_pool(1, all);
    assert!([2, 3].into_iter().all(|threads| in_pool(threads, all) == one));
}

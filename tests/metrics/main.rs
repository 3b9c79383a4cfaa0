//! The metrics against closed forms, hand-computed cases and plain loops.

use flowprior::device::{Arch, Isa};
use flowprior::metrics::*;
use flowprior::rng::{Draw, Stream};

mod balls;
mod bound;
mod collapse;
mod compare;
mod distributions;

fn normals(rows: usize, dim: usize, sample: u64) -> Vec<f32> {
    let mut x = vec![0.0; rows * dim];
    let draw = Draw::new(11, Stream::Toy, 0);
    Isa::detect().run(
        #[inline(always)]
        |arch: Arch| draw.fill_normal(arch, &mut x, sample, 0),
    );
    x
}

fn in_pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

fn plain_distances(queries: &[f32], targets: &[f32], dim: usize) -> Vec<Vec<f64>> {
    let square = |q: &[f32], t: &[f32]| q.iter().zip(t).map(|(q, t)| (*q as f64 - *t as f64).powi(2)).sum();
    queries
        .chunks(dim)
        .map(|q| targets.chunks(dim).map(|t| -> f64 { square(q, t) }).map(f64::sqrt).collect())
        .collect()
}

#[track_caller]
fn close(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "found {found}, expected {expected} ± {tolerance}");
}

// ---- neighbours ------------------------------------------------------------------------------------------------

#[test]
fn kth_distances_equal_a_sorted_plain_loop_for_awkward_sizes() {
    for (n, m, dim) in [(1, 1, 1), (3, 2, 5), (65, 17, 3), (7, 129, 16), (70, 3001, 33), (5, 40, 2000)] {
        let (queries, targets) = (normals(n, dim, 1), normals(m, dim, 2));
        let mut expected = plain_distances(&queries, &targets, dim);
        expected.iter_mut().for_each(|row| row.sort_by(f64::total_cmp));
        for k in [1, 2, 5, m].into_iter().filter(|k| *k <= m) {
            let found = kth_distances(&queries, &targets, dim, k).unwrap();
            assert_eq!(found.len(), n);
            for (found, expected) in found.iter().zip(&expected) {
                close(*found as f64, expected[k - 1], 2e-6 * expected[k - 1].max(1.0));
            }
        }
    }
}

#[test]
fn near_neighbours_far_from_the_origin_keep_their_digits() {
    // ‖q‖² + ‖t‖² − 2q·t in f32 would return 0 or noise here.
    let (queries, targets) = ([4096.0f32, 4096.0], [4096.0f32, 4096.001, 4100.0, 4096.0]);
    let r = kth_distances(&queries, &targets, 2, 1).unwrap()[0];
    close(r as f64, (4096.001f32 - 4096.0f32) as f64, 1e-9);
}

#[test]
fn nearest_takes_the_first_of_equals() {
    let targets = [5.0f32, 1.0, 1.0, -1.0, 5.0];
    assert_eq!(nearest(&[0.9f32, 0.0, 5.0, -9.0], &targets, 1).unwrap(), [1, 1, 0, 3]);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (a, b) = (normals(333, 7, 1), normals(517, 7, 2));
    let all = || {
        let distances = kth_distances(&a, &b, 7, 3).unwrap();
        let sliced = sliced_wasserstein2(&a, &b, 7, 13, 5).unwrap();
        let energy = energy_distance(&a, &b, 7).unwrap();
        let all = compare::all_numbers(&a, &b, 7);
        (distances, sliced.to_bits(), energy.to_bits(), all, nearest(&a, &b, 7).unwrap())
    };
    let one = in_pool(1, all);
    for threads in [2, 3] {
        assert!(in_pool(threads, all) == one, "{threads} threads");
    }
}

#[test]
fn the_likelihood_estimate_has_its_closed_forms() {
    // D = 2, k = 1: log n + log π + 2 log r − ψ(1), ψ(1) = −γ.
    let expected = 100f64.ln() + std::f64::consts::PI.ln() + 2.0 * 0.3 + 0.577_215_664_901_532_9;
    close(nll_knn(0.3, 100, 2, 1), expected, 1e-12);
    // D = 1, k = 5: V₁ = 2, ψ(5) = 1 + 1/2 + 1/3 + 1/4 − γ. D = 3: V₃ = 4π/3.
    let psi = 25.0 / 12.0 - 0.577_215_664_901_532_9;
    close(nll_knn(-1.0, 7, 1, 5), 7f64.ln() + 2f64.ln() - 1.0 - psi, 1e-12);
    let v3 = (4.0 * std::f64::consts::PI / 3.0).ln();
    close(nll_knn(0.5, 1, 3, 5), v3 + 1.5 - psi, 1e-12);
}

#[test]
fn the_estimate_of_a_normal_target_approaches_its_entropy() {
    // Queries from N(0, I) itself, so the mean NLL is the entropy (D/2)·log 2πe; the spread of the mean over 2,000
    // queries is about √(D/2 + 1/k)/√2000 = 0.025, the bias of k-NN at this n about as large.
    let dim = 2;
    let report = knn_report(&normals(2000, dim, 1), &normals(20_000, dim, 2), dim, DEFAULT_K).unwrap();
    close(report.nll, 1.0 + std::f64::consts::TAU.ln(), 0.08);
    assert_eq!((report.k, report.targets, report.zeros), (5, 20_000, 0));
}

#[test]
fn zero_distances_count_as_the_smallest_positive_one() {
    let (mean, zeros) = mean_log_rk(&[0.0, 1.0, 0.5, 0.0]).unwrap();
    close(mean, 3.0 * 0.5f64.ln() / 4.0, 1e-15);
    assert_eq!(zeros, 2);
    let text = mean_log_rk(&[0.0, 0.0]).unwrap_err().to_string();
    assert_eq!(text, "mean_log_rk: `distances` has 2 of them, expected at least one positive distance");
    assert!(
        mean_log_rk(&[]).is_err() && mean_log_rk(&[1.0, f32::NAN]).is_err() && mean_log_rk(&[-1.0]).is_err()
    );
}

// ---- correlation -----------------------------------------------------------------------------------------------

#[test]
fn correlations_match_hand_computed_values() {
    let (x, y) = ([1.0f64, 2.0, 3.0, 4.0, 5.0], [2.0f64, 1.0, 4.0, 3.0, 7.0]);
    // Σxy/n − means: cov = 2.4, var x = 2, var y = 4.24.
    close(pearson(&x, &y).unwrap(), 2.4 / (2.0f64 * 4.24).sqrt(), 1e-15);
    // Ranks of y are 2 1 4 3 5; Σd² = 4, so 1 − 6·4/(5·24) = 0.8.
    close(spearman(&x, &y).unwrap(), 0.8, 1e-15);
    // One tie: ranks of [1, 2, 2, 3] are 1, 2.5, 2.5, 4 against 1 2 3 4: cov 4.5, variances 4.5 and 5.
    close(spearman(&[1.0f32, 2.0, 2.0, 3.0], &[1.0f64, 2.0, 3.0, 4.0]).unwrap(), 4.5 / 22.5f64.sqrt(), 1e-15);
}

#[test]
fn spearman_sees_order_only_and_pearson_sees_lines() {
    let x: Vec<f32> = normals(500, 1, 3);
    let cubes: Vec<f32> = x.iter().map(|v| v * v * v).collect();
    let down: Vec<f64> = x.iter().map(|v| 1e9 - 2.0 * *v as f64).collect();
    assert_eq!(spearman(&x, &cubes).unwrap(), 1.0);
    close(pearson(&x, &down).unwrap(), -1.0, 1e-12);
    assert!(pearson(&x, &cubes).unwrap() < 0.9);
    // An infinite NLL still has a rank; a huge one must not overflow.
    close(spearman(&[1.0, 2.0, f64::INFINITY], &[0.0f32, 5.0, 9.0]).unwrap(), 1.0, 1e-15);
    close(pearson(&[1e300, 2e300, 3e300], &[1.0f32, 2.0, 3.0]).unwrap(), 1.0, 1e-15);
}

#[test]
fn correlations_refuse_what_has_none() {
    let text = spearman(&[1.0f32, 2.0], &[1.0f32]).unwrap_err().to_string();
    assert_eq!(text, "spearman: `y` has 1 values, expected as many values as `x`, 2");
    let text = pearson(&[1.0f32, f32::NAN], &[1.0f32, 2.0]).unwrap_err().to_string();
    assert_eq!(text, "pearson: `x` has NaN at 1, expected finite values");
    assert!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]).is_err());
    assert!(pearson::<f64, f64>(&[], &[]).is_err() && spearman(&[1.0], &[1.0]).is_err());
    assert!(spearman(&[1.0, 1.0], &[1.0, 2.0]).unwrap_err().to_string().contains("all equal"));
}

// ---- transport -------------------------------------------------------------------------------------------------

#[test]
fn wasserstein_on_the_line_is_exact_for_equal_and_unequal_lengths() {
    close(wasserstein2_1d(&[3.0, 1.0, 2.0], &[2.0, 4.0, 3.0]).unwrap(), 1.0, 1e-15);
    // {0, 1} against {0, 0, 1}: on (1/2, 2/3) the quantiles differ by 1.
    close(wasserstein2_1d(&[1.0, 0.0], &[0.0, 1.0, 0.0]).unwrap(), (1f64 / 6.0).sqrt(), 1e-15);
    // A point against two at distances 3 and 4.
    close(wasserstein2_1d(&[0.0], &[3.0, -4.0]).unwrap(), 12.5f64.sqrt(), 1e-15);
}

#[test]
fn sliced_wasserstein_of_a_shift_is_its_length_over_root_d() {
    let dim = 8;
    let a = normals(400, dim, 1);
    let shifted: Vec<f32> =
        a.iter().enumerate().map(|(i, x)| x + if i % dim == 0 { 3.0 } else { 0.0 }).collect();
    close(sliced_wasserstein2(&a, &shifted, dim, 4000, 1).unwrap(), 3.0 / 8f64.sqrt(), 0.02);
    assert_eq!(sliced_wasserstein2(&a, &a, dim, 10, 1).unwrap(), 0.0);
    let one = (normals(50, 1, 1), normals(60, 1, 2));
    let sliced = sliced_wasserstein2(&one.0, &one.1, 1, 3, 9).unwrap();
    close(sliced, wasserstein2_1d(&one.0, &one.1).unwrap(), 1e-6);
}

#[test]
fn sliced_wasserstein_depends_on_the_seed_alone() {
    let (a, b) = (normals(100, 4, 1), normals(100, 4, 2));
    let of = |seed| sliced_wasserstein2(&a, &b, 4, 5, seed).unwrap();
    assert_eq!(of(3), of(3));
    assert_ne!(of(3), of(4));
}

#[test]
fn energy_distance_matches_hand_computed_values() {
    // {0, 2} against {1}: 2·1 − (0 + 2 + 2 + 0)/4 − 0 = 1.
    close(energy_distance(&[0.0, 2.0], &[1.0], 1).unwrap(), 1.0, 1e-12);
    // Two points of the plane, 5 apart: 2·5.
    close(energy_distance(&[0.0, 0.0], &[3.0, 4.0], 2).unwrap(), 10.0, 1e-12);
    let a = normals(130, 3, 1);
    close(energy_distance(&a, &a, 3).unwrap(), 0.0, 1e-12);
    let far: Vec<f32> = a.iter().map(|x| x + 1.0).collect();
    assert!(energy_distance(&a, &far, 3).unwrap() > 0.5);
}

// ---- bad input -------------------------------------------------------------------------------------------------

#[test]
fn every_metric_refuses_empty_ragged_and_non_finite_sets() {
    let good = normals(8, 2, 1);
    let mut nan = good.clone();
    nan[5] = f32::NAN;
    let mut infinite = good.clone();
    infinite[2] = f32::INFINITY;
    for bad in [vec![], good[..5].to_vec(), nan, infinite] {
        for (a, b) in [(&bad, &good), (&good, &bad)] {
            assert!(kth_distances(a, b, 2, 1).is_err());
            assert!(knn_report(a, b, 2, 1).is_err());
            assert!(nearest(a, b, 2).is_err());
            assert!(sliced_wasserstein2(a, b, 2, 3, 0).is_err());
            assert!(energy_distance(a, b, 2).is_err());
            assert!(mode_occupancy(a, b, 2, 1.0).is_err());
            assert!(std_ratio(a, b, 2).is_err());
            assert!(nearest_reuse(a, b, 2).is_err());
            assert!(precision_recall(a, b, 2, 1).is_err());
            assert!(coverage(a, b, 2, 1).is_err());
            assert!(mmd_squared(a, b, 2, &[1.0]).is_err());
            assert!(median_distance(a, b, 2).is_err());
            assert!(frechet_distance(a, b, 2).is_err());
            assert!(wasserstein2(a, b, 2).is_err());
            assert!(psnr(a, b, 2, 1.0).is_err());
            assert!(flowprior::metrics::compare(a, b, 2, 9, 0).is_err());
        }
        assert!(participation_rank(&bad, 2).is_err() && effective_rank(&bad, 2).is_err());
    }
    assert!(wasserstein2_1d(&[], &[1.0]).is_err() && wasserstein2_1d(&[1.0], &[f32::NAN]).is_err());
}

#[test]
fn messages_name_the_set_the_row_and_the_range() {
    let text = |result: flowprior::Result<Vec<f32>>| result.unwrap_err().to_string();
    let (a, nan) = ([1.0f32, 2.0, 3.0, 4.0], [1.0f32, 2.0, 3.0, f32::NAN]);
    assert_eq!(
        text(kth_distances(&a, &nan, 2, 1)),
        "kth_distances: `targets` has NaN in row 1, column 1, expected finite values up to 1e16"
    );
    assert_eq!(
        text(kth_distances(&a, &a, 2, 3)),
        "kth_distances: `k` has 3, expected a number from 1 to 2, the targets"
    );
    assert!(kth_distances(&a, &a, 2, 0).is_err() && kth_distances(&a, &a, 0, 1).is_err());
    assert!(sliced_wasserstein2(&a, &a, 2, 0, 1).is_err());
    assert!(mode_occupancy(&a, &a, 2, 0.0).is_err() && mode_occupancy(&a, &a, 2, f64::NAN).is_err());
    assert!(precision_recall(&a, &a, 2, 2).is_err(), "each point needs k neighbours besides itself");
}

/// Prints the time of the size that `align` reports on; run with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn measure_kth_distances() {
    for dim in [16, 32] {
        let (queries, targets) = (normals(10_000, dim, 1), normals(30_000, dim, 2));
        for threads in [1, 2] {
            let once = || {
                let start = std::time::Instant::now();
                in_pool(threads, || kth_distances(&queries, &targets, dim, 5)).unwrap();
                start.elapsed().as_secs_f64()
            };
            let best = (0..5).map(|_| once()).fold(f64::INFINITY, f64::min);
            let rate = 3e8 * dim as f64 * 3.0 / best / 1e9;
            eprintln!("10,000 × 30,000 × {dim}, {threads} threads: {best:.3} s, {rate:.0} GFLOP/s");
        }
    }
    let (a, b) = (normals(5000, 32, 1), normals(5000, 32, 2));
    let time = |name: &str, f: &dyn Fn()| {
        let start = std::time::Instant::now();
        f();
        eprintln!("{name}, 2 × 5,000 × 32: {:.3} s", start.elapsed().as_secs_f64());
    };
    time("energy distance", &|| drop(energy_distance(&a, &b, 32)));
    time("sliced W2, 128 projections", &|| drop(sliced_wasserstein2(&a, &b, 32, 128, 1)));
    time("precision and recall", &|| drop(precision_recall(&a, &b, 32, 5)));
    time("coverage", &|| drop(coverage(&a, &b, 32, 5)));
    time("effective rank", &|| drop(effective_rank(&a, 32)));
    time("Fréchet distance", &|| drop(frechet_distance(&a, &b, 32)));
    time("exact W2 of 1,024", &|| drop(wasserstein2(&a[..32 * 1024], &b[..32 * 1024], 32)));
    time("MMD", &|| drop(mmd_squared(&a, &b, 32, &[8.0])));
    let (a, b) = (normals(3000, 384, 1), normals(3000, 384, 2));
    time("Fréchet distance, but 3,000 × 384", &|| drop(frechet_distance(&a, &b, 384)));
}

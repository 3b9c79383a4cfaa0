//! All measures of two sets at once.

use flowprior::metrics::*;

use crate::{close, normals};

fn values(found: &Comparison) -> [Option<f64>; 16] {
    let c = *found;
    [
        c.log_rk,
        c.log_rk_data,
        c.nll_knn,
        c.nll_knn_data,
        c.coverage,
        c.density,
        c.std_ratio,
        c.rank,
        c.effective_rank,
        c.effective_rank_data,
        c.nearest_share,
        c.sliced_w2,
        c.w2,
        c.w2_data,
        c.mmd2,
        c.frechet,
    ]
}

/// The bits of all measures, for the test of threads.
pub fn all_numbers(a: &[f32], b: &[f32], dim: usize) -> Vec<u64> {
    let found = compare(a, b, dim, dim, 5).unwrap();
    values(&found).map(|x| x.unwrap_or(f64::NAN).to_bits()).to_vec()
}

#[test]
fn samples_of_the_data_measure_as_the_data_do() {
    let (dim, a, b) = (2, normals(3000, 2, 1), normals(6000, 2, 2));
    let found = compare(&a, &b, dim, 16, 1).unwrap();
    let [
        log_rk,
        log_rk_data,
        nll,
        nll_data,
        coverage,
        density,
        ratio,
        rank,
        effective,
        effective_data,
        _,
        sliced,
        w2,
        w2_data,
        mmd2,
        frechet,
    ] = values(&found).map(Option::unwrap);
    close(log_rk, log_rk_data, 0.05);
    let entropy = 1.0 + std::f64::consts::TAU.ln();
    close(nll, entropy, 0.1);
    close(nll_data, entropy, 0.1);
    close(coverage, 31.0 / 32.0, 0.02);
    close(density, 1.0, 0.08);
    close(ratio, 1.0, 0.03);
    assert!(rank > 1.99 && effective > 1.99 && effective_data > 1.99);
    assert!(sliced < 0.1 && frechet < 0.01 && mmd2.abs() < 2e-3, "{found:?}");
    close(w2, w2_data, 0.05);
}

#[test]
fn collapsed_points_are_told_from_the_data() {
    let b = normals(3000, 2, 2);
    let a: Vec<f32> = normals(3000, 2, 1).iter().map(|x| 0.2 * x).collect();
    let found = compare(&a, &b, 2, 16, 1).unwrap();
    assert!(found.coverage < Some(0.5) && found.nll_knn < found.nll_knn_data, "{found:?}");
    assert!(found.mmd2 > Some(0.05) && found.w2 > Some(0.8), "{found:?}");
    close(found.std_ratio.unwrap(), 0.2, 0.01);
    close(found.frechet.unwrap(), 2.0 * 0.64, 0.1);
}

#[test]
fn measures_that_sets_do_not_have_are_none() {
    let data = normals(40, 3, 1);
    let of_one = compare(&data[..3], &data, 3, 3, 1).unwrap();
    let none =
        [of_one.coverage, of_one.density, of_one.rank, of_one.effective_rank, of_one.mmd2, of_one.frechet];
    assert_eq!(none, [None; 6]);
    assert_eq!((of_one.log_rk.is_some(), of_one.w2), (true, Some(0.0)));
    let wide = compare(&data, &data, 3, 2, 1).unwrap();
    assert_eq!((wide.effective_rank, wide.effective_rank_data, wide.frechet), (None, None, None));
    assert!(wide.rank.is_some() && wide.w2_data.is_none(), "there are no further 40 rows");
    let equal = compare(&[1.0; 60], &[1.0; 60], 3, 3, 1).unwrap();
    assert_eq!((equal.log_rk, equal.nll_knn, equal.mmd2, equal.frechet), (None, None, None, Some(0.0)));
    let text = compare(&data, &data[..15], 3, 3, 1).unwrap_err().to_string();
    assert_eq!(text, "compare: `k` has 5, expected a number from 1 to 4, the targets");
}

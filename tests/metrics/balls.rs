//! Precision, recall, density and coverage, and coverage by class.

use flowprior::metrics::*;

use crate::{close, normals};

#[test]
fn precision_and_recall_of_hand_placed_points() {
    // Targets 0 1 2 10: radii (k = 1) 1 1 1 8. Queries 0.5 1.5 30: radii 1 1 28.5.
    let found = precision_recall(&[0.5f32, 1.5, 30.0], &[0.0, 1.0, 2.0, 10.0], 1, 1).unwrap();
    close(found.precision, 2.0 / 3.0, 1e-15);
    close(found.recall, 1.0, 1e-15); // the outlier's ball holds the target at 10
}

#[test]
fn collapsed_queries_keep_precision_and_lose_recall() {
    let targets = normals(500, 2, 1);
    let fresh = precision_recall(&normals(500, 2, 2), &targets, 2, 5).unwrap();
    assert!(fresh.precision > 0.9 && fresh.recall > 0.9, "{fresh:?}");
    let shrunk: Vec<f32> = normals(500, 2, 2).iter().map(|x| 0.05 * x).collect();
    let found = precision_recall(&shrunk, &targets, 2, 5).unwrap();
    assert!(found.precision > 0.99 && found.recall < 0.1, "{found:?}");
    let found = coverage(&shrunk, &targets, 2, 5).unwrap();
    assert!(found.coverage < 0.1 && (0.5..2.0).contains(&found.density), "{found:?}");
    let far: Vec<f32> = shrunk.iter().map(|x| x + 20.0).collect();
    assert_eq!(coverage(&far, &targets, 2, 5).unwrap(), Coverage { coverage: 0.0, density: 0.0 });
}

#[test]
fn coverage_and_density_of_hand_placed_points() {
    // Targets 0 1 2 10: radii (k = 1) 1 1 1 8. Of the queries 0.5 lies in the balls of 0 and 1, 1.5 in those of 1 and 2,
    // 30 in none; 1.5 is outside the 8 around 10.
    let found = coverage(&[0.5f32, 1.5, 30.0], &[0.0, 1.0, 2.0, 10.0], 1, 1).unwrap();
    close(found.coverage, 3.0 / 4.0, 1e-15);
    close(found.density, 4.0 / 3.0, 1e-15);
    // k = 2: radii 2 1 2 9, and balls around the queries 3 (all but that of 10), 4 and 0.
    let found = coverage(&[0.5f32, 1.5, 30.0], &[0.0, 1.0, 2.0, 10.0], 1, 2).unwrap();
    close(found.coverage, 1.0, 1e-15);
    close(found.density, 7.0 / 6.0, 1e-15);
}

#[test]
fn a_set_covers_itself() {
    let (a, k) = (normals(300, 3, 1), 5);
    let found = coverage(&a, &a, 3, k).unwrap();
    // Each closed ball holds its centre and k others.
    assert_eq!(found, Coverage { coverage: 1.0, density: (k + 1) as f64 / k as f64 });
    // Rows that are all equal have balls of radius 0, which hold the row itself.
    assert_eq!(coverage(&[1.0f32; 20], &[1.0; 20], 2, 5).unwrap().coverage, 1.0);
}

#[test]
fn equal_distributions_have_density_one_and_coverage_by_chance_alone() {
    let found = coverage(&normals(2000, 4, 1), &normals(2000, 4, 2), 4, 5).unwrap();
    // A ball of k of 2N − 1 others misses all N queries with probability 2⁻ᵏ.
    close(found.coverage, 1.0 - 2f64.powi(-5), 0.02);
    close(found.density, 1.0, 0.08);
    let fewer = coverage(&normals(20, 4, 1), &normals(2000, 4, 2), 4, 5).unwrap();
    assert!(fewer.coverage < 0.2, "{fewer:?}: it depends on the sizes");
}

fn labelled<'a>(points: &'a [f32], labels: &'a [u32]) -> Labelled<'a> {
    Labelled { points, labels }
}

#[test]
fn coverage_by_class_is_that_of_each_class_alone() {
    let (queries, targets) = (normals(60, 2, 1), normals(90, 2, 2));
    let of_queries: Vec<u32> = (0..60).map(|i| [4, 9][i % 2]).collect();
    let of_targets: Vec<u32> = (0..90).map(|i| [9, 4, 2][i % 3]).collect();
    let found =
        coverage_by_class(labelled(&queries, &of_queries), labelled(&targets, &of_targets), 2, 5).unwrap();
    let of = |points: &[f32], labels: &[u32], class: u32| -> Vec<f32> {
        points.chunks(2).zip(labels).filter(|(_, l)| **l == class).flat_map(|(row, _)| row.to_vec()).collect()
    };
    assert_eq!(
        found.iter().map(|c| (c.class, c.queries, c.targets)).collect::<Vec<_>>(),
        [(2, 0, 30), (4, 30, 30), (9, 30, 30)]
    );
    assert_eq!((found[0].coverage, found[0].density), (0.0, None));
    for class in &found[1..] {
        let (queries, targets) =
            (of(&queries, &of_queries, class.class), of(&targets, &of_targets, class.class));
        let alone = coverage(&queries, &targets, 2, 5).unwrap();
        assert_eq!((class.coverage, class.density), (alone.coverage, Some(alone.density)));
    }
}

#[test]
fn classes_that_cannot_be_covered_are_refused_with_a_sentence() {
    let rows = [0.0f32, 1.0, 2.0, 3.0];
    let text = |queries: &[u32], targets: &[u32], k| {
        coverage_by_class(labelled(&rows, queries), labelled(&rows, targets), 1, k).unwrap_err().to_string()
    };
    assert_eq!(
        text(&[0, 0, 1], &[0; 4], 1),
        "coverage_by_class: `query labels` has 3 labels, expected one for each of the 4 queries"
    );
    assert!(
        text(&[0; 4], &[], 1)
            .contains("`target labels` has 0 labels, expected one for each of the 4 targets")
    );
    assert_eq!(
        text(&[0, 0, 7, 0], &[0; 4], 1),
        "coverage_by_class: `query labels` has class 7, expected classes that targets have"
    );
    assert_eq!(
        text(&[0; 4], &[0, 0, 3, 3], 2),
        "coverage_by_class: `targets` has 2 of class 0, expected more than k = 2 targets of each class"
    );
    let text = coverage(&rows, &rows, 1, 4).unwrap_err().to_string();
    assert_eq!(text, "coverage: `k` has 4, expected a number from 1 to 3, the targets");
    assert!(coverage(&rows, &rows, 1, 0).is_err() && coverage(&rows, &[1.0], 1, 1).is_err());
}

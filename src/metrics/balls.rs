//! Shares of points inside k-NN balls: precision and recall, density and coverage, the latter two also class by class.
//!
//! A point's ball is closed and reaches to its `k`-th nearest neighbour in its own set, itself excluded. Targets are the
//! data, queries what is judged by them. All shares depend on the sizes of the sets: compare figures of equal sizes.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::metrics::knn::kth_squared;
use crate::metrics::pairs::{LANES, Panels, scan};
use crate::metrics::{neighbour, rows};

/// Precision and recall, each in [0, 1] and about 1 for equal distributions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrecisionRecall {
    /// Share of the queries inside the ball of some target: quality.
    pub precision: f64,
    /// Share of the targets inside the ball of some query: diversity (outlying queries inflate it).
    pub recall: f64,
}

/// Compares queries `(N, D)` with targets `(M, D)` (Kynkäänniemi et al. 2019).
///
/// Costs (N + M)² distances: take a few thousand of each.
///
/// # Errors
/// An empty or ragged set, values that are not finite, or `k` not below the rows of both sets.
pub fn precision_recall(queries: &[f32], targets: &[f32], dim: usize, k: usize) -> Result<PrecisionRecall> {
    const OP: &str = "precision_recall";
    let n = rows(OP, "queries", queries, dim)?;
    let m = rows(OP, "targets", targets, dim)?;
    neighbour(OP, k, n.min(m) - 1)?;
    let share = |points, centres, count: usize| {
        let balls = Balls::new(centres, dim, k);
        balls.around(points).iter().filter(|balls| **balls > 0).count() as f64 / count as f64
    };
    Ok(PrecisionRecall { precision: share(queries, targets, n), recall: share(targets, queries, m) })
}

/// How queries lie in the balls of the targets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coverage {
    /// Share of the targets whose ball holds a query: diversity, robust to outlying queries. In [0, 1]; for as many
    /// queries as targets of one distribution 1 − 2⁻ᵏ.
    pub coverage: f64,
    /// Balls around a query over k, mean of the queries: quality, robust to outlying targets. 1 for equal distributions, and
    /// for queries anywhere among the targets; 0 far from them; a query where many balls meet has more than 1.
    pub density: f64,
}

/// Returns density and coverage of queries `(N, D)` among targets `(M, D)` (Naeem et al. 2020, equations 3 and 4).
///
/// Costs M·(M + 2N) distances.
///
/// # Errors
/// An empty or ragged set, values that are not finite, or `k` not below the targets.
pub fn coverage(queries: &[f32], targets: &[f32], dim: usize, k: usize) -> Result<Coverage> {
    const OP: &str = "coverage";
    let n = rows(OP, "queries", queries, dim)?;
    let m = rows(OP, "targets", targets, dim)?;
    neighbour(OP, k, m - 1)?;
    let balls = Balls::new(targets, dim, k);
    let covered = kth_squared(targets, &Panels::new(queries, dim), 1);
    let covered = covered.iter().zip(&balls.radii).filter(|(r, radius)| r <= radius).count();
    let around: u64 = balls.around(queries).iter().map(|balls| *balls as u64).sum();
    Ok(Coverage { coverage: covered as f64 / m as f64, density: around as f64 / (k * n) as f64 })
}

/// Points `(N, D)` with a class for each.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a> {
    /// The points, row by row.
    pub points: &'a [f32],
    /// Their classes (N).
    pub labels: &'a [u32],
}

/// Coverage of one class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClassCoverage {
    /// The class.
    pub class: u32,
    /// Queries of it.
    pub queries: usize,
    /// Targets of it.
    pub targets: usize,
    /// Coverage of these queries among these targets.
    pub coverage: f64,
    /// Their density; `None` for a class without queries.
    pub density: Option<f64>,
}

/// Returns [`coverage`] of each class that targets have, in order: of its queries among its targets.
///
/// # Errors
/// Those of [`coverage`]; labels that are not one for each point; a class with `k` targets or fewer; queries of a class
/// that no target has.
pub fn coverage_by_class(
    queries: Labelled,
    targets: Labelled,
    dim: usize,
    k: usize,
) -> Result<Vec<ClassCoverage>> {
    const OP: &str = "coverage_by_class";
    let mut in_queries = by_class(OP, ["queries", "query labels"], queries, dim)?;
    let in_targets = by_class(OP, ["targets", "target labels"], targets, dim)?;
    if let Some(class) = in_queries.keys().find(|class| !in_targets.contains_key(class)) {
        return Err(Error::argument(
            OP,
            "query labels",
            "classes that targets have",
            format!("class {class}"),
        ));
    }
    let of_class = |(class, targets): (u32, Vec<f32>)| {
        let count = targets.len() / dim;
        if count <= k {
            let expected = format!("more than k = {k} targets of each class");
            return Err(Error::argument(OP, "targets", expected, format!("{count} of class {class}")));
        }
        let queries = in_queries.remove(&class).unwrap_or_default();
        let counts = ClassCoverage {
            class,
            queries: queries.len() / dim,
            targets: count,
            coverage: 0.0,
            density: None,
        };
        if queries.is_empty() {
            return Ok(counts);
        }
        let Coverage { coverage, density } = coverage(&queries, &targets, dim, k)?;
        Ok(ClassCoverage { coverage, density: Some(density), ..counts })
    };
    in_targets.into_iter().map(of_class).collect()
}

/// The points of each class; `names` are those of points and labels in messages.
fn by_class(
    op: &'static str,
    names: [&'static str; 2],
    set: Labelled,
    dim: usize,
) -> Result<BTreeMap<u32, Vec<f32>>> {
    let n = rows(op, names[0], set.points, dim)?;
    if set.labels.len() != n {
        let expected = format!("one for each of the {n} {}", names[0]);
        return Err(Error::argument(op, names[1], expected, format!("{} labels", set.labels.len())));
    }
    let mut classes: BTreeMap<u32, Vec<f32>> = BTreeMap::new();
    for (row, label) in set.points.chunks_exact(dim).zip(set.labels) {
        classes.entry(*label).or_default().extend_from_slice(row);
    }
    Ok(classes)
}

/// The balls of a set.
struct Balls {
    centres: Panels,
    /// Squared radii, of lanes past the last centre one that no distance is inside of.
    radii: Vec<f32>,
}

impl Balls {
    fn new(centres: &[f32], dim: usize, k: usize) -> Self {
        let panels = Panels::new(centres, dim);
        // Each point is its own first neighbour.
        let mut radii = kth_squared(centres, &panels, k + 1);
        radii.resize(radii.len().next_multiple_of(LANES), -1.0);
        Self { centres: panels, radii }
    }

    /// Counts the balls around each of the points.
    fn around(&self, points: &[f32]) -> Vec<u32> {
        scan(
            &self.centres,
            points,
            || 0,
            #[inline(always)]
            |count: &mut u32, panel, distances| {
                let radii = &self.radii[panel * LANES..(panel + 1) * LANES];
                *count += distances.iter().zip(radii).map(|(r, radius)| (r <= radius) as u32).sum::<u32>();
            },
        )
    }
}

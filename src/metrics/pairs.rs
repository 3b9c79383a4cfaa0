//! Squared distances of all pairs of two point sets, the queries shared out over the current rayon pool.

use rayon::prelude::*;

use crate::device::Isa;
use crate::ops::knn::pairs::TASK;
pub(super) use crate::ops::knn::pairs::{Distances, LANES, Panels};

/// Visits each query's distances to every panel, in order of the panels, and returns the queries' states.
///
/// `visit(state, panel, distances)` belongs to one query, whose state starts as `start()`.
pub(super) fn scan<S: Send>(
    targets: &Panels,
    queries: &[f32],
    start: impl Fn() -> S + Sync,
    visit: impl Fn(&mut S, usize, &Distances) + Sync,
) -> Vec<S> {
    let dim = targets.dim();
    let mut states: Vec<S> = (0..queries.len() / dim).map(|_| start()).collect();
    let isa = Isa::detect();
    states.par_chunks_mut(TASK).zip(queries.par_chunks(TASK * dim)).for_each(|(states, queries)| {
        isa.run(
            #[inline(always)]
            |arch| targets.scan_task(arch, states, queries, &visit),
        );
    });
    states
}

//! Squared distances of all pairs of two point sets, 4 queries × 16 targets at a time.
//!
//! Targets are transposed into panels of 16 so that the inner loop is a broadcast, a subtraction and a multiply-add
//! over 16 lanes. The differences are squared themselves (not ‖q‖² + ‖t‖² − 2q·t), so nothing cancels: near
//! neighbours, which are what counts, keep all their digits. Four chains of multiply-adds hide its latency on AVX-512
//! and fill the registers on AVX2.

use rayon::prelude::*;

use crate::device::{Arch, Isa};

/// Targets of a panel.
pub(super) const LANES: usize = 16;
/// Queries that share the loads of a panel.
const ROWS: usize = 4;
/// Queries of one task: a multiple of ROWS, large enough that a block of panels is read often from the L2 cache.
const TASK: usize = 64;
/// Floats of a block of panels: 256 KiB.
const BLOCK: usize = 65_536;

/// Squared distances of one query to the targets of one panel. Lanes past the last target hold +∞.
pub(super) type Distances = [f32; LANES];

/// Targets, transposed: panel by panel `(D, LANES)`.
pub(super) struct Panels {
    dim: usize,
    values: Vec<f32>,
}

impl Panels {
    /// Transposes `targets: (N, D)`; lanes past the last row are infinitely far from everything.
    pub fn new(targets: &[f32], dim: usize) -> Self {
        let count = (targets.len() / dim).div_ceil(LANES);
        let mut values = vec![f32::INFINITY; count * LANES * dim];
        values.par_chunks_mut(LANES * dim).zip(targets.par_chunks(LANES * dim)).for_each(|(panel, rows)| {
            for (lane, row) in rows.chunks_exact(dim).enumerate() {
                for (d, value) in row.iter().enumerate() {
                    panel[d * LANES + lane] = *value;
                }
            }
        });
        Self { dim, values }
    }

    /// Visits each query's distances to every panel, in order of the panels, and returns the queries' states.
    ///
    /// `visit(state, panel, distances)` belongs to one query, whose state starts as `start()`.
    pub fn scan<S: Send>(
        &self,
        queries: &[f32],
        start: impl Fn() -> S + Sync,
        visit: impl Fn(&mut S, usize, &Distances) + Sync,
    ) -> Vec<S> {
        let mut states: Vec<S> = (0..queries.len() / self.dim).map(|_| start()).collect();
        let isa = Isa::detect();
        states.par_chunks_mut(TASK).zip(queries.par_chunks(TASK * self.dim)).for_each(|(states, queries)| {
            isa.run(
                #[inline(always)]
                |arch| self.scan_task(arch, states, queries, &visit),
            );
        });
        states
    }

    #[inline(always)]
    fn scan_task<S>(
        &self,
        arch: Arch,
        states: &mut [S],
        queries: &[f32],
        visit: &impl Fn(&mut S, usize, &Distances),
    ) {
        let dim = self.dim;
        let panels_in_block = (BLOCK / (LANES * dim)).max(1);
        for (block, panels) in self.values.chunks(panels_in_block * LANES * dim).enumerate() {
            for (states, queries) in states.chunks_mut(ROWS).zip(queries.chunks(ROWS * dim)) {
                // A short group repeats its last query; the copies are not visited.
                let last = states.len() - 1;
                let rows: [&[f32]; ROWS] =
                    std::array::from_fn(|i| &queries[i.min(last) * dim..(i.min(last) + 1) * dim]);
                for (i, panel) in panels.chunks_exact(LANES * dim).enumerate() {
                    let distances = squared_distances(arch, panel, rows);
                    for (state, distances) in states.iter_mut().zip(&distances) {
                        visit(state, block * panels_in_block + i, distances);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn squared_distances(arch: Arch, panel: &[f32], queries: [&[f32]; ROWS]) -> [Distances; ROWS] {
    let mut sums = [[0.0f32; LANES]; ROWS];
    let [a, b, c, d] = queries;
    let columns = panel.chunks_exact(LANES).zip(a).zip(b).zip(c).zip(d);
    for ((((targets, a), b), c), d) in columns {
        for (sums, query) in sums.iter_mut().zip([a, b, c, d]) {
            for (sum, target) in sums.iter_mut().zip(targets) {
                let difference = query - target;
                *sum = arch.fma(difference, difference, *sum);
            }
        }
    }
    sums
}

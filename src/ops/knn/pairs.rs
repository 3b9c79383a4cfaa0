//! Squared distances of all pairs of two point sets, 4 queries × 16 targets at a time.
//!
//! Targets are transposed into panels of 16 so that the inner loop is a broadcast, a subtraction and a multiply-add
//! over 16 lanes. The differences are squared themselves (not ‖q‖² + ‖t‖² − 2q·t), so nothing cancels: near
//! neighbours, which are what counts, keep all their digits. Four chains of multiply-adds hide its latency on AVX-512
//! and fill the registers on AVX2.

use crate::device::Arch;

/// Targets of a panel.
pub(crate) const LANES: usize = 16;
/// Queries that share the loads of a panel.
const ROWS: usize = 4;
/// Queries of one task: a multiple of ROWS, large enough that a block of panels is read often from the L2 cache.
pub(crate) const TASK: usize = 64;
/// Floats of a block of panels: 256 KiB.
const BLOCK: usize = 65_536;

/// Squared distances of one query to the targets of one panel. Lanes past the last target hold +∞.
pub(crate) type Distances = [f32; LANES];

/// Targets, transposed: panel by panel `(D, LANES)`.
pub(crate) struct Panels {
    dim: usize,
    values: Vec<f32>,
}

impl Panels {
    /// Transposes `targets: (N, D)`; lanes past the last row are infinitely far from everything.
    pub fn new(targets: &[f32], dim: usize) -> Self {
        let count = (targets.len() / dim).div_ceil(LANES);
        let mut values = vec![f32::INFINITY; count * LANES * dim];
        for (panel, rows) in values.chunks_mut(LANES * dim).zip(targets.chunks(LANES * dim)) {
            for (lane, row) in rows.chunks_exact(dim).enumerate() {
                for (d, value) in row.iter().enumerate() {
                    panel[d * LANES + lane] = *value;
                }
            }
        }
        Self { dim, values }
    }

    /// Returns D.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Visits the distances of some queries to every panel, in order of the panels: `visit(state, panel, distances)` belongs to one
    /// query and its state. At most [`TASK`] queries are a good number, and run it inside of `Isa::run`.
    #[inline(always)]
    pub fn scan_task<S>(
        &self,
        arch: Arch,
        states: &mut [S],
        queries: &[f32],
        visit: impl Fn(&mut S, usize, &Distances),
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

//! The nearest neighbours of rows, exactly, by brute force.
//!
//! ```text
//! queries (Q, D), points (N, D)  →  distances (Q, k) ascending, ‖q − p‖;  numbers (Q, k) of those points
//! ```
//! Distances are of f32 squares of the differences themselves, so nothing cancels; equal ones are in the order of their numbers.
//!
//! CPU: differences throughout, 16 points at a time. CUDA: candidates by ‖q − p‖² = ‖q‖² + ‖p‖² − 2⟨q, p⟩, blocks of points through
//! our matrix product, whose bias is −‖p‖²/2; a selection merges each block into a list of 32 (or 128) candidates for each query, whose
//! distances are then computed again from differences. Where cancellation could have left a neighbour out of the list, which a bound on
//! the product's rounding decides query by query, all points are measured from differences instead: `kernels/knn.cu`.
//!
//! Neighbours are held fixed where distances are differentiated: see [`crate::ops::entropy`].

pub(crate) mod pairs;

use crate::device::cuda::{Grid, Read, Write};
use crate::device::{Cpu, Device, Queue};
use crate::error::{Error, Result};
use crate::kernels;
use crate::ops::elementwise::axpy;
use crate::ops::knn::pairs::{Distances, LANES, Panels, TASK};
use crate::ops::linear::{Activation, linear_forward};
use crate::ops::row_dot::row_dot;
use crate::tensor::Tensor;

/// The largest k: a list of candidates on a CUDA device has 128 entries, and needs some to spare.
pub const MOST_NEIGHBOURS: usize = 100;
/// Points, at most: their numbers are kept as f32.
const MOST_POINTS: usize = 1 << 24;
/// Neighbours up to which a list of 32 candidates leaves some to spare.
const FEW: usize = 24;
/// Scores that are in memory at a time, where nothing else is said: 16 MiB.
const SCORES: usize = 1 << 22;

/// Whether a query's own point is a neighbour of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// All points are.
    Counted,
    /// Query i is point i, which is left out.
    LeftOut,
}

/// The nearest neighbours of some queries, nearest first.
#[derive(Debug)]
pub struct Neighbours {
    /// Distances (Q, k); NaN where a query has no k points at finite distances.
    pub distances: Tensor<f32>,
    /// The points' numbers (Q, k), exact; 0 where the distance is NaN.
    pub numbers: Tensor<f32>,
}

/// Finds the `k` nearest of `points: (N, D)` to each of `queries: (Q, D)`.
///
/// # Errors
/// Another width or, with [`Own::LeftOut`], another number of points; `k` that is 0, above [`MOST_NEIGHBOURS`] or more than there are
/// points to choose from; 2²⁴ points.
pub fn knn(queries: &Tensor<f32>, points: &Tensor<f32>, k: usize, own: Own) -> Result<Neighbours> {
    knn_within(queries, points, k, own, SCORES)
}

/// Does what [`knn`] does with about `scores` f32 of scratch memory at most, and 128 for each query at least; the CPU needs none.
///
/// # Errors
/// See [`knn`].
pub fn knn_within(
    queries: &Tensor<f32>,
    points: &Tensor<f32>,
    k: usize,
    own: Own,
    scores: usize,
) -> Result<Neighbours> {
    const OP: &str = "knn";
    let ((q, d), (n, _)) = (queries.rows_cols(), points.rows_cols());
    points.expect(OP, "points", [n, d])?;
    if own == Own::LeftOut {
        queries.expect(OP, "queries", [n, d])?;
    }
    let choice = n.saturating_sub((own == Own::LeftOut) as usize);
    if k == 0 || k > choice.min(MOST_NEIGHBOURS) {
        let most = choice.min(MOST_NEIGHBOURS);
        let expected = format!("from 1 to {most}, with {choice} points to choose from");
        return Err(Error::argument(OP, "k", expected, k));
    }
    if n >= MOST_POINTS {
        return Err(Error::argument(OP, "points", format!("fewer than {MOST_POINTS}"), n));
    }
    let mut found = Neighbours {
        distances: Tensor::uninit(queries.device(), [q, k]),
        numbers: Tensor::uninit(queries.device(), [q, k]),
    };
    match queries.device() {
        Device::Cpu(cpu) => on_cpu(cpu, &mut found, queries.host()?, points.host()?, d, own)?,
        Device::Cuda(queue) => on_cuda(queue, &mut found, (queries, points), own, scores)?,
    }
    Ok(found)
}

/// The nearest points of one query so far, squared distances ascending.
struct List<'a> {
    query: usize,
    squares: &'a mut [f32],
    numbers: &'a mut [f32],
}

impl List<'_> {
    /// Looks at the points of one panel.
    #[inline(always)]
    fn look(&mut self, panel: usize, squares: &Distances, own: Own) {
        let last = self.squares.len() - 1;
        let near = |square: &f32, worst: f32| *square < worst;
        if !squares.iter().fold(false, |any, square| any | near(square, self.squares[last])) {
            return;
        }
        for (lane, square) in squares.iter().enumerate() {
            let number = panel * LANES + lane;
            if near(square, self.squares[last]) && !(own == Own::LeftOut && number == self.query) {
                // Numbers ascend: an equal distance goes behind those that are there.
                let place = self.squares.partition_point(|other| other <= square);
                self.squares.copy_within(place..last, place + 1);
                self.numbers.copy_within(place..last, place + 1);
                (self.squares[place], self.numbers[place]) = (*square, number as f32);
            }
        }
    }

    fn finish(self) {
        for (square, number) in self.squares.iter_mut().zip(self.numbers) {
            (*square, *number) = if square.is_finite() { (square.sqrt(), *number) } else { (f32::NAN, 0.0) };
        }
    }
}

fn on_cpu(
    cpu: &Cpu,
    found: &mut Neighbours,
    queries: &[f32],
    points: &[f32],
    d: usize,
    own: Own,
) -> Result<()> {
    let (k, isa, panels) = (found.distances.rows_cols().1, cpu.isa(), Panels::new(points, d));
    let lists = found.distances.host_mut()?.chunks_mut(TASK * k);
    let lists = lists.zip(found.numbers.host_mut()?.chunks_mut(TASK * k));
    let work = lists.zip(queries.chunks(TASK * d)).enumerate();
    cpu.each(work, |(task, ((squares, numbers), queries))| {
        squares.fill(f32::INFINITY);
        let rows = squares.chunks_exact_mut(k).zip(numbers.chunks_exact_mut(k)).enumerate();
        let list = |(i, (squares, numbers))| List { query: task * TASK + i, squares, numbers };
        let mut lists: Vec<List<'_>> = rows.map(list).collect();
        isa.run(
            #[inline(always)]
            |arch| {
                panels.scan_task(
                    arch,
                    &mut lists,
                    queries,
                    #[inline(always)]
                    |list: &mut List<'_>, panel, squares| list.look(panel, squares, own),
                );
            },
        );
        lists.into_iter().for_each(List::finish);
    });
    Ok(())
}

fn on_cuda(
    queue: &Queue,
    found: &mut Neighbours,
    (queries, points): (&Tensor<f32>, &Tensor<f32>),
    own: Own,
    scores: usize,
) -> Result<()> {
    let ((q, d), n, k) = (queries.rows_cols(), points.rows_cols().0, found.distances.rows_cols().1);
    let (few, own) = (k <= FEW, (own == Own::LeftOut) as u32);
    let entries = q * if few { 32 } else { 128 };
    let (keys, numbers) = (queue.block(4 * entries)?, queue.block(4 * entries)?);
    let mut bias = Tensor::zeros(points.device(), [n]);
    axpy(bias.view_mut(), -0.5, &row_dot(points, points)?)?;
    let grid = Grid::covering(32 * q, 1, 256);
    let block = (scores / q.max(1) / 128 * 128).clamp(128, n.next_multiple_of(128));
    for first in (0..n).step_by(block) {
        let count = block.min(n - first);
        let part = points.view().part(first * d, [count, d]);
        let bias = bias.view().part(first, [count]);
        let (scores, _) = linear_forward(queries, part, Some(bias), None, Activation::Identity)?;
        let select = if few { kernels::knn_select_32 } else { kernels::knn_select_128 };
        let (to, of) = (Write::at(keys.address()), Write::at(numbers.address()));
        select(queue, grid, to, of, scores.read()?, q as u32, count as u32, first as u32, own)?;
    }
    let refine = if few { kernels::knn_refine_32 } else { kernels::knn_refine_128 };
    let (keys, numbers) = (Read::at(keys.address()), Read::at(numbers.address()));
    refine(
        queue,
        grid,
        found.distances.write()?,
        found.numbers.write()?,
        keys,
        numbers,
        queries.read()?,
        points.read()?,
        q as u32,
        n as u32,
        d as u32,
        k as u32,
        own,
        rounding(queue, d),
    )
}

/// Bounds the relative error of a score: a sum of d + 1 products in f32, in whatever order, of factors that tf32 rounds to 11 bits.
fn rounding(queue: &Queue, d: usize) -> f32 {
    const UNIT: f32 = f32::EPSILON / 2.0;
    let factors = if queue.tf32() { 2.0 * 2.0f32.powi(-11) } else { 0.0 };
    factors + (d as f32 + 8.0) * UNIT
}

//! Label embedding `y[i] = table[chosen[i]]`, with labels dropped at random, and rows of positions added to tokens.
//!
//! ```text
//! chosen[i] = K, the null row, if u(sample, replica) < p, else labels[i mod B]           u uniform in [0, 1), FEATURES 4.3
//! dtable[k] += Σ_{i: chosen[i] = k} dy[i]                                                  in a fixed order
//! h[i] += rows[i mod T]                                                                    rows are fixed: dh = dy
//! ```
//! Which labels are dropped is a pure function of (seed, step, sample, replica): the same on every device, in every
//! micro-batch, and in a step that is captured once and launched many times. Kernels: `kernels/embedding.cu`.

use crate::device::Device;
use crate::device::cuda::{Grid, Read};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::kernels;
use crate::ops::flow_path::Rows;
use crate::ops::gather::Index;
use crate::ops::{pack, rows_per_block, warp_grid};
use crate::rng::Draw;
use crate::tensor::{Tensor, View, ViewMut};

/// The classes of a batch, in the memory of its device: (B), each below K, or K for none.
///
/// Made once for a run and filled anew for each batch, so that a captured step finds them at the same address.
#[derive(Debug)]
pub struct Labels {
    numbers: Index,
    classes: usize,
}

impl Labels {
    /// The most classes: row numbers are kept as f32, too.
    pub const MOST: usize = (1 << 24) - 1;

    /// Copies the classes of a batch to a device; `classes` is K.
    ///
    /// # Errors
    /// A number above K; no memory there, or a device that failed.
    pub fn new(device: &Device, numbers: &[u32], classes: usize) -> Result<Self> {
        if classes == 0 || classes > Self::MOST {
            let expected = format!("1 to {}", Self::MOST);
            return Err(Error::argument("Labels::new", "classes", expected, format!("{classes}")));
        }
        check_labels("Labels::new", numbers, classes)?;
        Ok(Self { numbers: Index::new(device, numbers)?, classes })
    }

    /// Labels none of `samples` samples: the unconditional half of a guided velocity.
    ///
    /// # Errors
    /// No memory on the device, or a device that failed.
    pub fn none(device: &Device, samples: usize, classes: usize) -> Result<Self> {
        Self::new(device, &vec![classes as u32; samples], classes)
    }

    /// Replaces the classes by those of another batch of the same size; a CUDA device is not waited for.
    ///
    /// # Errors
    /// A number above K, another count of numbers; a device that failed.
    pub fn put(&mut self, numbers: &[u32]) -> Result<()> {
        check_labels("Labels::put", numbers, self.classes)?;
        self.numbers.put(numbers)
    }

    /// Returns the number of samples, B.
    pub fn len(&self) -> usize {
        self.numbers.numbers().len()
    }

    /// Says whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of classes, K.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Returns the classes.
    pub fn numbers(&self) -> &[u32] {
        self.numbers.numbers()
    }
}

fn check_labels(op: &'static str, numbers: &[u32], classes: usize) -> Result<()> {
    match numbers.iter().position(|label| *label as usize > classes) {
        Some(at) => {
            let expected = format!("classes below {classes}, or {classes} for none");
            Err(Error::argument(op, "numbers", expected, format!("{} in place {at}", numbers[at])))
        }
        None => Ok(()),
    }
}

/// How labels are dropped in training, for classifier-free guidance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelDrop {
    /// Probability of each row of the batch.
    pub probability: f32,
    /// Where the random numbers come from: [`crate::rng::Stream::LabelDrop`].
    pub draw: Draw,
}

/// `table: (K + 1, C)`, or (K, C) for a network that knows no null row, `labels: (B)` → `y: (N, C)` and the rows that were
/// taken, `chosen: (N)`, for the backward.
///
/// Row i of the N = B · replicas rows is sample `i mod B` of `rows`.
pub fn embedding_forward<X: FloatX>(
    table: View<'_, X>,
    labels: &Labels,
    rows: Rows,
    drop: Option<LabelDrop>,
) -> Result<(Tensor<X>, Tensor<f32>)> {
    const OP: &str = "embedding_forward";
    check_table(OP, table, labels, drop)?;
    rows.check(OP)?;
    if labels.len() != rows.samples {
        let expected = format!("{} numbers, one a sample", rows.samples);
        return Err(Error::argument(OP, "labels", expected, format!("{} numbers", labels.len())));
    }
    let (n, c) = (rows.len(), columns(table));
    let (mut y, mut chosen) = (Tensor::uninit(table.device(), [n, c]), Tensor::uninit(table.device(), [n]));
    match table.device() {
        Device::Cpu(cpu) => {
            let chosen = chosen.host_mut()?;
            choose(chosen, labels, rows, drop);
            let (y, table, block) = (y.host_mut()?, table.host()?, rows_per_block(c));
            cpu.each(y.chunks_mut((block * c).max(1)).zip(chosen.chunks(block)), |(y, chosen)| {
                for (y, k) in y.chunks_exact_mut(c.max(1)).zip(chosen) {
                    y.copy_from_slice(&table[*k as usize * c..][..c]);
                }
            });
        }
        Device::Cuda(queue) => {
            let drop = drop.filter(|drop| drop.probability > 0.0);
            let ([key0, key1], step, counter) = drop
                .map_or(([0; 2], 0, Read::none()), |LabelDrop { draw, .. }| {
                    (draw.key(), draw.step(), Read::at(draw.added()))
                });
            let probability = drop.map_or(0.0, |drop| drop.probability);
            let (grid, first, none) = (warp_grid::<X>(n, c, 1), rows.first, labels.classes as u32);
            let (n, b, c) = (n as u32, rows.samples as u32, c as u32);
            let (y, chosen, table, labels) =
                (y.write()?, chosen.write()?, table.read()?, labels.numbers.read());
            kernels::embedding_forward(
                queue,
                grid,
                y,
                chosen,
                table,
                labels,
                key0,
                key1,
                step,
                counter,
                first,
                probability,
                none,
                n,
                b,
                c,
            )?;
        }
    }
    Ok((y, chosen))
}

/// `dy: (N, C)`, `chosen: (N)` → adds to `dtable: (K + 1, C)`.
pub fn embedding_backward<X: FloatX>(
    mut dtable: ViewMut<'_, f32>,
    dy: &Tensor<X>,
    chosen: &Tensor<f32>,
) -> Result<()> {
    const OP: &str = "embedding_backward";
    let (n, c) = dy.rows_cols();
    chosen.expect(OP, "chosen", [n])?;
    let table_rows = dtable.shape().len().checked_div(c).unwrap_or(0);
    dtable.as_view().expect(OP, "dtable", [table_rows, c])?;
    match dy.device() {
        Device::Cpu(cpu) => {
            let (dtable, dy, chosen, isa) = (dtable.host_mut()?, dy.host()?, chosen.host()?, cpu.isa());
            let block = rows_per_block(c);
            cpu.each(dtable.chunks_mut((block * c).max(1)).enumerate(), |(at, dtable)| {
                isa.run(
                    #[inline(always)]
                    |_| {
                        for (dy, k) in dy.chunks_exact(c.max(1)).zip(chosen) {
                            let row = (*k as usize).checked_sub(at * block);
                            let own = row.and_then(|row| dtable.chunks_exact_mut(c.max(1)).nth(row));
                            for (t, dy) in own.into_iter().flatten().zip(dy) {
                                *t += dy.to_f32();
                            }
                        }
                    },
                );
            });
        }
        Device::Cuda(queue) => {
            let blocks = table_rows * c.div_ceil(32 * pack::<X>());
            let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
            let grid = Grid { blocks: [blocks, 1, 1], threads: 256, shared: 0 };
            let (dtable, dy, chosen) = (dtable.write()?, dy.read()?, chosen.read()?);
            kernels::embedding_backward(queue, grid, dtable, dy, chosen, n as u32, c as u32)?;
        }
    }
    Ok(())
}

/// `h: (N, C)` += `rows: (T, C)`, N a multiple of T: row i gets row `i mod T`.
pub fn add_rows<X: FloatX>(h: &mut Tensor<X>, rows: View<'_, X>) -> Result<()> {
    const OP: &str = "add_rows";
    let ((n, c), t) = (h.rows_cols(), rows.shape().len() / columns(rows).max(1));
    rows.expect(OP, "rows", [t, c])?;
    if t == 0 || !n.is_multiple_of(t) {
        let expected = format!("a number of rows that {t} divides");
        return Err(Error::argument(OP, "h", expected, format!("{n} rows")));
    }
    match h.device().clone() {
        Device::Cpu(cpu) => {
            let (h, rows, isa) = (h.host_mut()?, rows.host()?, cpu.isa());
            let block = rows_per_block(c);
            cpu.each(h.chunks_mut((block * c).max(1)).enumerate(), |(at, h)| {
                isa.run(
                    #[inline(always)]
                    |_| {
                        for (i, h) in h.chunks_exact_mut(c.max(1)).enumerate() {
                            for (h, x) in h.iter_mut().zip(&rows[(at * block + i) % t * c..]) {
                                *h = X::from_f32(h.to_f32() + x.to_f32());
                            }
                        }
                    },
                );
            });
        }
        Device::Cuda(queue) => {
            let grid = warp_grid::<X>(n, c, 1);
            let (h, rows) = (h.write()?, rows.read()?);
            kernels::add_rows(&queue, grid, h, rows, n as u32, t as u32, c as u32)?;
        }
    }
    Ok(())
}

fn columns<X: FloatX>(table: View<'_, X>) -> usize {
    table.shape().dims().last().copied().unwrap_or(1)
}

/// Checks that the table has a row for each label, and a null row if one is needed.
fn check_table<X: FloatX>(
    op: &'static str,
    table: View<'_, X>,
    labels: &Labels,
    drop: Option<LabelDrop>,
) -> Result<()> {
    if let Some(LabelDrop { probability, .. }) = drop
        && !(0.0..=1.0).contains(&probability)
    {
        return Err(Error::argument(op, "drop", "a probability", format!("{probability}")));
    }
    let drops = drop.is_some_and(|drop| drop.probability > 0.0);
    let null = drops || labels.numbers().iter().any(|label| *label as usize == labels.classes);
    let (c, found) = (columns(table), table.shape().len() / columns(table).max(1));
    if !null && found == labels.classes {
        return table.expect(op, "table", [found, c]);
    }
    table.expect(op, "table", [labels.classes + 1, c])
}

/// Decides on the host which row each row of the batch takes.
fn choose(chosen: &mut [f32], labels: &Labels, rows: Rows, drop: Option<LabelDrop>) {
    for (i, chosen) in chosen.iter_mut().enumerate() {
        let (sample, replica) = rows.address(i);
        let dropped = drop.is_some_and(|drop| drop.draw.uniform(sample, replica) < drop.probability);
        let label = if dropped { labels.classes as u32 } else { labels.numbers()[i % rows.samples] };
        *chosen = label as f32; // exact: at most 2^24
    }
}

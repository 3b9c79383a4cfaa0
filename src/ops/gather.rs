//! Row gather: `y[i] = (table[index[i]] − shift) · scale`, with a cast; the way a batch leaves a data set.
//!
//! Backward: `dtable[j] += scale · Σ_{i: index[i] = j} dy[i]`, rows in the order of i: no atomics, same bits always.
//!
//! Images and latents may be drawn on the way, `y[i] = scale · (mean + exp(½·logvar)·ε)` from rows [mean | logvar] of 2·D
//! numbers, and mirrored left to right with probability ½ (FEATURES 4.3; nothing to differentiate). Both are pure functions of
//! (seed, step, place in the batch): ε belongs to a pixel of the row that is stored, so a mirrored row has mirrored noise.

use std::sync::Arc;

use crate::device::cuda::{DeviceBuf, Grid, Read};
use crate::device::{Arch, Device, Queue};
use crate::error::{Error, Result};
use crate::float::{DType, FloatX};
use crate::kernels;
use crate::ops::{pack, rows_per_block, warp_grid};
use crate::rng::Draw;
use crate::tensor::{Tensor, ViewMut};

/// An affine map applied while gathering.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Subtracted first.
    pub shift: f32,
    /// Multiplied next.
    pub scale: f32,
}

impl Affine {
    /// Changes nothing.
    pub const IDENTITY: Self = Self { shift: 0.0, scale: 1.0 };
}

/// How the rows of a table are stored, and what is taken of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stored {
    /// The D numbers of a row.
    Values,
    /// D means and D log-variances: the means are taken.
    Mean,
    /// The same: a sample of the normal distribution is drawn, with [`crate::rng::Stream::Moments`].
    Drawn(Draw),
}

/// Mirrors images left to right with probability ½.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mirror {
    /// Where the random numbers come from: [`crate::rng::Stream::Flip`].
    pub draw: Draw,
    /// Pixels across an image; D is a multiple.
    pub width: usize,
}

/// What becomes of the rows of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What is taken of a row.
    pub stored: Stored,
    /// Whether rows are mirrored.
    pub mirror: Option<Mirror>,
    /// Multiplied last.
    pub scale: f32,
}

/// Row numbers, in the memory of the device that gathers by them.
#[derive(Debug)]
pub struct Index {
    numbers: Vec<u32>,
    place: Option<(Arc<Queue>, DeviceBuf)>,
}

impl Index {
    /// Copies row numbers to a device.
    ///
    /// # Errors
    /// No memory there, or a device that failed.
    pub fn new(device: &Device, numbers: &[u32]) -> Result<Self> {
        let place = match device {
            Device::Cpu(_) => None,
            Device::Cuda(queue) => Some((queue.clone(), queue.block(size_of_val(numbers))?)),
        };
        let mut index = Self { numbers: vec![0; numbers.len()], place };
        index.put(numbers)?;
        Ok(index)
    }

    /// Replaces the numbers by as many others; a CUDA device is not waited for.
    ///
    /// # Errors
    /// Another count of numbers; a device that failed.
    pub fn put(&mut self, numbers: &[u32]) -> Result<()> {
        let (expected, found) = (self.numbers.len(), numbers.len());
        if found != expected {
            let found = format!("{found} numbers");
            return Err(Error::argument("Index::put", "numbers", format!("{expected} numbers"), found));
        }
        self.numbers.copy_from_slice(numbers);
        match &self.place {
            None => Ok(()),
            Some((queue, place)) => queue.stage(place.address(), numbers),
        }
    }

    /// Returns the numbers.
    pub(crate) fn numbers(&self) -> &[u32] {
        &self.numbers
    }

    /// Returns the numbers for a kernel to read.
    pub(crate) fn read(&self) -> Read<'_, u32> {
        Read::at(self.place.as_ref().map_or(0, |(_, place)| place.address()))
    }

    /// Checks that every number is below `v`.
    fn expect_below(&self, op: &'static str, v: usize) -> Result<()> {
        match self.numbers.iter().find(|j| **j as usize >= v) {
            Some(j) => Err(Error::argument(op, "index", format!("numbers below {v}"), format!("{j}"))),
            None => Ok(()),
        }
    }
}

/// `table: (V, D)`, `index: (N)` → `y: (N, D)`.
pub fn gather_forward<S: FloatX, X: FloatX>(
    table: &Tensor<S>,
    index: &Index,
    affine: Affine,
) -> Result<Tensor<X>> {
    let mut y = Tensor::uninit(table.device(), [index.numbers.len(), table.rows_cols().1]);
    gather_forward_to(&mut y, table, index, affine)?;
    Ok(y)
}

/// The same, to a `y: (N, D)` that is there.
pub fn gather_forward_to<S: FloatX, X: FloatX>(
    y: &mut Tensor<X>,
    table: &Tensor<S>,
    index: &Index,
    affine: Affine,
) -> Result<()> {
    const OP: &str = "gather_forward";
    let (v, d) = table.rows_cols();
    index.expect_below(OP, v)?;
    y.expect(OP, "y", [index.numbers.len(), d])?;
    match table.device() {
        Device::Cpu(cpu) => {
            let (y, table, isa) = (y.host_mut()?, table.host()?, cpu.isa());
            let rows = rows_per_block(d);
            cpu.each(y.chunks_mut((rows * d).max(1)).zip(index.numbers.chunks(rows)), |(y, index)| {
                isa.run(
                    #[inline(always)]
                    |_| {
                        for (y, j) in y.chunks_exact_mut(d.max(1)).zip(index) {
                            for (y, x) in y.iter_mut().zip(&table[*j as usize * d..]) {
                                *y = X::from_f32((x.to_f32() - affine.shift) * affine.scale);
                            }
                        }
                    },
                );
            });
        }
        Device::Cuda(queue) => forward_cuda(queue, y, table, index, affine)?,
    }
    Ok(())
}

/// `table: (V, D)`, or (V, 2·D) with moments, `index: (N)` → `y: (N, D)`, drawn and mirrored; row i is sample i of the
/// batch.
pub fn gather_samples_to<S: FloatX>(
    y: &mut Tensor<f32>,
    table: &Tensor<S>,
    index: &Index,
    sampling: &Sampling,
) -> Result<()> {
    const OP: &str = "gather_samples";
    let ((v, stride), d) = (table.rows_cols(), y.rows_cols().1);
    index.expect_below(OP, v)?;
    y.expect(OP, "y", [index.numbers.len(), d])?;
    table.expect(OP, "table", [v, if sampling.stored == Stored::Values { d } else { 2 * d }])?;
    if let Some(Mirror { width, .. }) = sampling.mirror
        && (width == 0 || !d.is_multiple_of(width))
    {
        let expected = format!("a width that divides {d}");
        return Err(Error::argument(OP, "mirror", expected, format!("{width}")));
    }
    match table.device() {
        Device::Cpu(cpu) => {
            let (y, table, isa, rows) = (y.host_mut()?, table.host()?, cpu.isa(), rows_per_block(d));
            let work = y.chunks_mut((rows * d).max(1)).zip(index.numbers.chunks(rows)).enumerate();
            cpu.each(work, |(block, (y, index))| {
                isa.run(
                    #[inline(always)]
                    |arch| {
                        let row = |i: usize| &table[index[i] as usize * stride..][..stride];
                        sampling.draw_rows(arch, y, d, block * rows, row);
                        sampling.mirror_rows(y, d, block * rows);
                    },
                );
            });
        }
        Device::Cuda(queue) => {
            let (kind, [key0, key1], step) = match sampling.stored {
                Stored::Values => (0, [0; 2], 0),
                Stored::Mean => (1, [0; 2], 0),
                Stored::Drawn(draw) => (2, draw.key(), draw.step()),
            };
            let mirror =
                sampling.mirror.map(|Mirror { draw, width }| (draw.key(), draw.step(), width as u32));
            let ([flip0, flip1], flip_step, width) = mirror.unwrap_or_default();
            let (n, grid) = (index.numbers.len(), warp_grid::<S>(index.numbers.len(), d, 4));
            let (y, table, index) = (y.write()?, table.read()?, index.read());
            let (n, d, scale) = (n as u32, d as u32, sampling.scale);
            kernels::gather_samples(
                queue, grid, y, table, index, key0, key1, step, flip0, flip1, flip_step, kind, width, n, d,
                scale,
            )?;
        }
    }
    Ok(())
}

impl Sampling {
    /// Takes or draws rows `first ..` of the batch from stored ones.
    #[inline(always)]
    fn draw_rows<'a, S: FloatX>(
        &self,
        arch: Arch,
        y: &mut [f32],
        d: usize,
        first: usize,
        row: impl Fn(usize) -> &'a [S],
    ) {
        let Stored::Drawn(draw) = self.stored else {
            for (i, y) in y.chunks_exact_mut(d.max(1)).enumerate() {
                for (y, x) in y.iter_mut().zip(row(i)) {
                    *y = x.to_f32() * self.scale;
                }
            }
            return;
        };
        let rows = 0..y.len() / d.max(1);
        draw.for_each_normal_row(
            arch,
            rows,
            d,
            #[inline(always)]
            |i| ((first + i) as u64, 0),
            #[inline(always)]
            |i, column, noise| {
                let (mean, log_variance) = row(i).split_at(d);
                let y = &mut y[i * d + column..][..noise.len()];
                let moments = mean[column..].iter().zip(&log_variance[column..]);
                for ((y, noise), (mean, log_variance)) in y.iter_mut().zip(noise).zip(moments) {
                    let deviation = arch.exp(0.5 * log_variance.to_f32());
                    *y = arch.fma(deviation, *noise, mean.to_f32()) * self.scale;
                }
            },
        );
    }

    /// Mirrors those of the rows `first ..` whose draw says so.
    fn mirror_rows(&self, y: &mut [f32], d: usize, first: usize) {
        let Some(Mirror { draw, width }) = self.mirror else { return };
        for (i, y) in y.chunks_exact_mut(d.max(1)).enumerate() {
            if draw.uniform((first + i) as u64, 0) < 0.5 {
                y.chunks_exact_mut(width).for_each(<[f32]>::reverse);
            }
        }
    }
}

/// `dy: (N, D)`, `index: (N)` → adds to `dtable: (V, D)`.
pub fn gather_backward<X: FloatX>(
    mut dtable: ViewMut<'_, f32>,
    dy: &Tensor<X>,
    index: &Index,
    affine: Affine,
) -> Result<()> {
    const OP: &str = "gather_backward";
    let (n, d) = (index.numbers.len(), dy.rows_cols().1);
    dy.expect(OP, "dy", [n, d])?;
    let v = dtable.shape().len() / d.max(1);
    dtable.as_view().expect(OP, "dtable", [v, d])?;
    index.expect_below(OP, v)?;
    match dy.device() {
        Device::Cpu(cpu) => {
            let (dtable, dy, isa) = (dtable.host_mut()?, dy.host()?, cpu.isa());
            for (dy, j) in dy.chunks_exact(d.max(1)).zip(&index.numbers) {
                isa.run(
                    #[inline(always)]
                    |arch| {
                        for (t, dy) in dtable[*j as usize * d..].iter_mut().zip(dy) {
                            *t = arch.fma(affine.scale, dy.to_f32(), *t);
                        }
                    },
                );
            }
        }
        Device::Cuda(queue) => {
            let blocks = u32::try_from(n * d.div_ceil(256)).unwrap_or(u32::MAX);
            let grid = Grid { blocks: [blocks, 1, 1], threads: 256, shared: 0 };
            let (dtable, dy, index) = (dtable.write()?, dy.read()?, index.read());
            kernels::gather_backward(queue, grid, dtable, dy, index, n as u32, d as u32, affine.scale)?;
        }
    }
    Ok(())
}

fn forward_cuda<S: FloatX, X: FloatX>(
    queue: &Queue,
    y: &mut Tensor<X>,
    table: &Tensor<S>,
    index: &Index,
    Affine { shift, scale }: Affine,
) -> Result<()> {
    let (n, d) = y.rows_cols();
    // Packs are those of the narrower type, which is the kernel's.
    let grid = if pack::<S>() > pack::<X>() { warp_grid::<S>(n, d, 1) } else { warp_grid::<X>(n, d, 1) };
    let index = index.read();
    let (n, d) = (n as u32, d as u32);
    let (y, table) = (y.write()?, table.read()?);
    match (S::DTYPE, X::DTYPE) {
        (from, to) if from == to => {
            kernels::gather_forward::<X>(queue, grid, y, table.retyped(), index, n, d, shift, scale)
        }
        (DType::F32, _) => {
            kernels::gather_from_f32(queue, grid, y, table.retyped(), index, n, d, shift, scale)
        }
        (_, DType::F32) => {
            kernels::gather_to_f32::<S>(queue, grid, y.retyped(), table, index, n, d, shift, scale)
        }
        (from, to) => Err(queue.lacks(&format!("gather of {from} rows as {to}"))),
    }
}

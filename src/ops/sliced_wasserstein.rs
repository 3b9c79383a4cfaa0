//! The sliced Wasserstein-2 distance of rows from targets, a multiple of them, with its gradient (Bonneel et al. 2015).
//!
//! ```text
//! SW² = 1/P·Σ_p 1/(n·m)·Σ_i Σ_j (a_p(i) − b_p(i, j))²
//! ∂SW²/∂y = 2/(P·n)·Σ_p (⟨θ_p, y⟩ − b̄_p(rank of y))·θ_p
//! ```
//! a_p(1) ≤ … ≤ a_p(n) are ⟨θ_p, y⟩ of all rows, b_p(1, 1) ≤ … ≤ b_p(1, m) ≤ b_p(2, 1) ≤ … the same of m·n targets, and b̄_p(i) is the mean
//! over j: on the line the best plan joins equal ranks. More targets a row make the gradient less noisy. The directions θ_p are uniform on the sphere, drawn anew for each step from its
//! counter. The gradient is exact wherever there is one: ranks change only where two values are equal, which keep the order of their
//! rows. A shift of all rows by m gives SW² = ‖m‖²/D on average. Kernels: `kernels/sliced_wasserstein.cu`.

use crate::device::cuda::{DeviceBuf, Grid, Read, Write};
use crate::device::{Cpu, Device, Queue};
use crate::error::{Error, Result};
use crate::kernels;
use crate::ops::flow_loss::Scale;
use crate::ops::linear::{Activation, linear_backward_weight, linear_forward};
use crate::rng::Draw;
use crate::tensor::Tensor;

/// Keys that a block sorts in shared memory: `CHUNK` in the kernels.
const CHUNK: usize = 2048;

/// Draws `count` directions: `(count, d)`, rows of norm 1.
pub fn directions(device: &Device, draw: Draw, count: usize, d: usize) -> Result<Tensor<f32>> {
    let mut theta = Tensor::uninit(device, [count, d]);
    match device {
        Device::Cpu(cpu) => {
            let isa = cpu.isa();
            for (number, row) in theta.host_mut()?.chunks_exact_mut(d.max(1)).enumerate() {
                isa.run(
                    #[inline(always)]
                    |arch| {
                        draw.fill_normal(arch, row, number as u64, 0);
                        let square = arch.dot(row, row);
                        if square > 0.0 {
                            let inverse = 1.0 / square.sqrt();
                            row.iter_mut().for_each(|x| *x *= inverse);
                        } else {
                            row[0] = 1.0; // possible in one dimension only, with probability 2⁻²⁴
                        }
                    },
                );
            }
        }
        Device::Cuda(queue) => {
            let (grid, [key0, key1]) = (Grid::covering(32 * count, 1, 256), draw.key());
            let (step, counter) = (draw.step(), Read::at(draw.added()));
            let theta = theta.write()?;
            kernels::slice_directions(queue, grid, theta, key0, key1, step, counter, count as u32, d as u32)?;
        }
    }
    Ok(theta)
}

/// Draws `count` rows of `table: (M, D)`, with replacement: `(count, D)`.
///
/// # Errors
/// A table without rows.
pub fn draw_rows(table: &Tensor<f32>, draw: Draw, count: usize) -> Result<Tensor<f32>> {
    let (m, d) = table.rows_cols();
    if m == 0 || u32::try_from(m).is_err() {
        return Err(Error::argument("draw_rows", "table", "1 to 2³² − 1 rows", m));
    }
    let mut x = Tensor::uninit(table.device(), [count, d]);
    match table.device() {
        Device::Cpu(_) => {
            let table = table.host()?;
            for (i, row) in x.host_mut()?.chunks_exact_mut(d.max(1)).enumerate() {
                let from = ((draw.words(i as u64, 0, 0)[0] as u64 * m as u64) >> 32) as usize;
                row.copy_from_slice(&table[from * d..(from + 1) * d]);
            }
        }
        Device::Cuda(queue) => {
            let grid = Grid::covering(32 * count * d.div_ceil(32), 1, 256); // a lane has one column
            let ([key0, key1], step, counter) = (draw.key(), draw.step(), Read::at(draw.added()));
            let (x, table, count) = (x.write()?, table.read()?, count as u32);
            kernels::draw_rows(queue, grid, x, table, key0, key1, step, counter, count, m as u32, d as u32)?;
        }
    }
    Ok(x)
}

/// `y: (n, D)`, `targets: (m·n, D)`, `theta: (P, D)` → the squared distances along each direction, (P), whose mean is SW²; adds `scale`·∂SW²/∂y to
/// `dy: (n, D)`.
///
/// # Errors
/// Targets that are no multiple of the rows; no rows, no directions, or more than 2³⁰ targets.
pub fn sliced_wasserstein(
    dy: &mut Tensor<f32>,
    y: &Tensor<f32>,
    targets: &Tensor<f32>,
    theta: &Tensor<f32>,
    scale: impl Into<Scale>,
) -> Result<Tensor<f32>> {
    const OP: &str = "sliced_wasserstein";
    let ((n, d), p) = (y.rows_cols(), theta.rows_cols().0);
    dy.expect(OP, "dy", y.shape())?;
    let of_targets = targets.rows_cols().0;
    targets.expect(OP, "targets", [of_targets, d])?;
    theta.expect(OP, "theta", [p, d])?;
    if n == 0 || p == 0 {
        let found = format!("{n} rows and {p} directions");
        return Err(Error::argument(OP, "y", "at least 1 row and 1 direction", found));
    }
    if of_targets == 0 || !of_targets.is_multiple_of(n) || of_targets > 1 << 30 {
        let expected = format!("a multiple of the {n} rows, at most 2³⁰");
        return Err(Error::argument(OP, "targets", expected, of_targets));
    }
    let scale = scale.into().times(2.0 / (p as f32 * n as f32));
    let project = |rows: &Tensor<f32>| {
        Ok::<_, Error>(linear_forward(theta, rows.view(), None, None, Activation::Identity)?.0)
    };
    let (a, b) = (project(y)?, project(targets)?); // (P, n)
    let mut means = Tensor::uninit(y.device(), [p]);
    let mut delta = Tensor::like(&a);
    match y.device() {
        Device::Cpu(cpu) => residuals_cpu(cpu, (&mut delta, &mut means), &a, &b, scale.number)?,
        Device::Cuda(queue) => residuals_cuda(queue, (&mut delta, &mut means), &a, &b, scale)?,
    }
    linear_backward_weight(dy.view_mut(), None, &delta, theta)?;
    Ok(means)
}

type Residuals<'a> = (&'a mut Tensor<f32>, &'a mut Tensor<f32>);

fn residuals_cpu(
    cpu: &Cpu,
    (delta, means): Residuals<'_>,
    a: &Tensor<f32>,
    b: &Tensor<f32>,
    scale: f32,
) -> Result<()> {
    let (n, of_targets) = (a.rows_cols().1, b.rows_cols().1);
    let each = of_targets / n;
    let rows = delta.host_mut()?.chunks_exact_mut(n).zip(means.host_mut()?);
    let work = rows.zip(a.host()?.chunks_exact(n).zip(b.host()?.chunks_exact(of_targets)));
    cpu.each(work, |((delta, mean), (a, b))| {
        let mut ranks: Vec<u32> = (0..n as u32).collect();
        ranks.sort_unstable_by(|i, j| a[*i as usize].total_cmp(&a[*j as usize]).then(i.cmp(j)));
        let mut targets = b.to_vec();
        targets.sort_unstable_by(f32::total_cmp);
        let mut squares = 0.0f64;
        for (i, targets) in ranks.into_iter().zip(targets.chunks_exact(each)) {
            let apart = |target: &f32| a[i as usize] - target;
            delta[i as usize] = scale * (targets.iter().map(apart).sum::<f32>() / each as f32);
            squares += targets.iter().map(|target| (apart(target) as f64).powi(2)).sum::<f64>();
        }
        *mean = (squares / of_targets as f64) as f32;
    });
    Ok(())
}

fn residuals_cuda(
    queue: &Queue,
    (delta, means): Residuals<'_>,
    a: &Tensor<f32>,
    b: &Tensor<f32>,
    scale: Scale,
) -> Result<()> {
    let ((p, n), of_targets) = (a.rows_cols(), b.rows_cols().1);
    let (a, width) = sorted(queue, a)?;
    let (b, target_width) = sorted(queue, b)?;
    let grid = Grid { blocks: [p as u32, 1, 1], threads: 256, shared: 0 };
    let (a, b, factor) = (Read::at(a.address()), Read::at(b.address()), Read::at(scale.address()));
    let (delta, means) = (delta.write()?, means.write()?);
    let (widths, each) = ((width as u32, target_width as u32), (of_targets / n) as u32);
    kernels::slice_residuals(
        queue,
        grid,
        delta,
        means,
        a,
        b,
        n as u32,
        widths.0,
        widths.1,
        each,
        scale.number,
        factor,
    )
}

/// Sorts each row of `values: (P, n)`: keys (P, width), and the width, a power of two.
fn sorted(queue: &Queue, values: &Tensor<f32>) -> Result<(DeviceBuf, usize)> {
    let (p, n) = values.rows_cols();
    let width = n.next_power_of_two().max(2);
    let keys = queue.block(p * width * size_of::<u64>())?;
    let at = || Write::at(keys.address());
    let chunks = Grid { blocks: [(p * width.div_ceil(CHUNK)) as u32, 1, 1], threads: 1024, shared: 0 };
    kernels::sort_chunks(queue, chunks, at(), values.read()?, n as u32, width as u32)?;
    let pairs = p * width / 2;
    let mut stage = 2 * CHUNK;
    while stage <= width {
        let mut stride = stage / 2;
        while stride >= CHUNK {
            let (grid, sizes) = (Grid::covering(pairs, 1, 256), (width as u32, stage as u32));
            kernels::sort_across(queue, grid, at(), pairs as u64, sizes.0, sizes.1, stride as u32)?;
            stride /= 2;
        }
        kernels::sort_within(queue, chunks, at(), width as u32, stage as u32)?;
        stage *= 2;
    }
    Ok((keys, width))
}

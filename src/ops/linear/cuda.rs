//! The launches of `kernels/linear.cu`, `kernels/linear_gated.cu` and `kernels/linear_loss.cu`.
//!
//! Activations have the type of the weights, or f32 beside narrower weights (the path of modulation tables): a kernel
//! each. Other pairs have none. Where [`tiles`](super::tiles) cuts the depth into parts, a second kernel adds their sums in order.

use crate::device::Queue;
use crate::device::cuda::{DeviceBuf, Grid, Read, Write};
use crate::error::Result;
use crate::float::{DType, FloatX};
use crate::kernels;
use crate::ops::flow_loss::{DeviceTarget, Scale, Target};
use crate::ops::linear::Activation;
use crate::ops::linear::tiles::{Arithmetic, Gpu, Plan, Product};
use crate::ops::modulation::DeviceModulation;
use crate::tensor::{Tensor, View, ViewMut};

/// Rows and columns of a block's tile, where f32 activations meet narrower weights.
const WIDE_TILE: usize = 64;
/// Threads of a block that adds partial sums, and how many neighbours a thread adds where it can.
const SUM: (u32, usize) = (256, 4);

/// A product with its plan and the memory of its partial sums.
struct Work {
    plan: Plan,
    results: usize,
    workspace: Option<DeviceBuf>,
}

impl Work {
    /// Plans the product of operands at two addresses, whose rows are `steps` elements apart; `more` floats of workspace for each part.
    fn new<X: FloatX>(
        queue: &Queue,
        (rows, columns, depth): (usize, usize, usize),
        operands: [(u64, usize); 2],
        more: usize,
    ) -> Result<Self> {
        let arithmetic = match X::DTYPE {
            DType::F32 if queue.tf32() => Arithmetic::Tf32,
            DType::F32 => Arithmetic::F32,
            DType::Bf16 | DType::F16 => Arithmetic::Half,
        };
        let aligned =
            operands.iter().all(|(at, step)| at % 16 == 0 && (step * size_of::<X>()).is_multiple_of(16));
        let product = Product { rows, columns, depth, arithmetic, aligned };
        let gpu = Gpu { capability: queue.capability(), multiprocessors: queue.multiprocessors() };
        let plan = Plan::of(&product, gpu);
        let bytes = product.workspace(plan.parts) as usize + 4 * more * plan.parts as usize;
        let workspace = if plan.parts > 1 { Some(queue.block(bytes)?) } else { None };
        Ok(Self { plan, results: rows * columns, workspace })
    }

    /// Where parts put their sums; null if there is one part.
    fn partial(&self) -> u64 {
        self.workspace.as_ref().map_or(0, DeviceBuf::address)
    }

    /// Behind the partial sums: where parts put what they sum beside the product.
    fn beside(&self) -> u64 {
        self.partial() + 4 * (self.results * self.plan.parts as usize) as u64
    }

    fn sum_grid(&self) -> Grid {
        Grid::covering(self.results, SUM.1, SUM.0)
    }
}

/// Picks the kernel of a tile and launches it: those of tensor cores take tensors of `floatX`, the others f32; all take those in the
/// last brackets in f32.
macro_rules! launch {
    (
        $work:ident, [$($tensor:path),+], [$($float:path),+], $([$($single:expr),+],)?
        ($queue:expr, $($tensors:expr),+; $($numbers:expr),+)
    ) => {{
        let (grid, each) = ($work.plan.grid, $work.plan.each);
        let at = $work.plan.tile.blocks as usize;
        let tensor = [$($tensor),+];
        match tensor.get(at) {
            Some(kernel) => kernel(
                $queue, grid, $($($single,)+)? $($tensors),+, Write::at($work.partial()), each, $($numbers),+
            ),
            None => [$($float),+][at - tensor.len()](
                $queue, grid, $($($single,)+)? $($tensors.retyped()),+, Write::at($work.partial()), each,
                $($numbers),+
            ),
        }
    }};
}

/// As kernels number activations.
fn kind(act: Activation) -> u32 {
    match act {
        Activation::Identity => 0,
        Activation::Silu => 1,
        Activation::GeluTanh => 2,
    }
}

fn optional<'a, X: FloatX>(tensor: Option<&'a Tensor<X>>) -> Result<Read<'a, X>> {
    tensor.map_or(Ok(Read::none()), Tensor::read)
}

/// y, z (N, O) of x (N, C), w (O, C), b (O), add (N, O).
pub(super) fn forward<A: FloatX, W: FloatX>(
    queue: &Queue,
    (y, z): (&mut Tensor<A>, Option<&mut Tensor<A>>),
    x: &Tensor<A>,
    w: View<'_, W>,
    b: Option<View<'_, W>>,
    add: Option<&Tensor<A>>,
    act: Activation,
) -> Result<()> {
    let ((n, c), o) = (x.rows_cols(), y.rows_cols().1);
    let act = kind(act);
    let (y, z) = (y.write()?, z.map_or(Ok(Write::none()), Tensor::write)?);
    let (x, w, add) = (x.read()?, w.read()?, optional(add)?);
    let b = b.map_or(Ok(Read::none()), |b| b.read())?;
    let (rows, outputs, columns) = (n as u32, o as u32, c as u32);
    match (A::DTYPE, W::DTYPE) {
        (a, weights) if a == weights => {
            let work = Work::new::<W>(queue, (n, o, c), [(x.address(), c), (w.address(), c)], 0)?;
            let (y, z, x, add) = (y.retyped(), z.retyped(), x.retyped(), add.retyped());
            let (y_again, z_again) = (Write::at(y.address()), Write::at(z.address()));
            launch!(
                work,
                [
                    kernels::linear_forward_128x128::<W>,
                    kernels::linear_forward_128x64::<W>,
                    kernels::linear_forward_64x64::<W>,
                    kernels::linear_forward_any::<W>
                ],
                [
                    kernels::linear_forward_f32_128,
                    kernels::linear_forward_f32_64,
                    kernels::linear_forward_f32_32
                ],
                (queue, y, z, x, w, b, add; act, rows, outputs, columns)
            )?;
            if work.workspace.is_none() {
                return Ok(());
            }
            let (grid, partial, parts) = (work.sum_grid(), Read::at(work.partial()), work.plan.parts);
            kernels::linear_forward_sum::<W>(
                queue, grid, y_again, z_again, b, add, partial, parts, act, rows, outputs,
            )
        }
        (DType::F32, _) => {
            let (y, z, x, add) = (y.retyped(), z.retyped(), x.retyped(), add.retyped());
            let grid = wide_tiles(n, o);
            kernels::linear_forward_wide(queue, grid, y, z, x, w, b, add, act, rows, outputs, columns)
        }
        (a, weights) => Err(queue.lacks(&format!("linear with {a} activations and {weights} weights"))),
    }
}

/// y = h + gate·u and, if wanted, u = x·wᵀ + b, (N, O), of x (N, C), w (O, C), b (O), h (N, O).
pub(super) fn gated<X: FloatX>(
    queue: &Queue,
    (y, u): (&mut Tensor<X>, Option<&mut Tensor<X>>),
    x: &Tensor<X>,
    w: View<'_, X>,
    b: View<'_, X>,
    h: &Tensor<X>,
    (gate, offset): (DeviceModulation<'_, X>, usize),
) -> Result<()> {
    let ((n, c), o) = (x.rows_cols(), y.rows_cols().1);
    let (y, u) = (y.write()?, u.map_or(Ok(Write::none()), Tensor::write)?);
    let (x, w, b, h) = (x.read()?, w.read()?, b.read()?, h.read()?);
    let (y_again, u_again) = (Write::at(y.address()), Write::at(u.address()));
    let work = Work::new::<X>(queue, (n, o, c), [(x.address(), c), (w.address(), c)], 0)?;
    let (n, o, c, offset) = (n as u32, o as u32, c as u32, offset as u32);
    let DeviceModulation { table, nodes, weights, columns, share, r } = gate;
    let at = work.plan.tile.blocks as usize;
    let (grid, each, partial) = (work.plan.grid, work.plan.each, Write::at(work.partial()));
    let tensor = [
        kernels::linear_gated_128x128::<X>,
        kernels::linear_gated_128x64::<X>,
        kernels::linear_gated_64x64::<X>,
        kernels::linear_gated_any::<X>,
    ];
    let float = [kernels::linear_gated_f32_128, kernels::linear_gated_f32_64, kernels::linear_gated_f32_32];
    match tensor.get(at) {
        Some(kernel) => kernel(
            queue, grid, y, u, x, w, b, h, table, nodes, weights, partial, each, columns, share, r, offset,
            n, o, c,
        )?,
        None => {
            let (y, u, x, w) = (y.retyped(), u.retyped(), x.retyped(), w.retyped());
            let (b, h, table) = (b.retyped(), h.retyped(), table.retyped());
            float[at - tensor.len()](
                queue, grid, y, u, x, w, b, h, table, nodes, weights, partial, each, columns, share, r,
                offset, n, o, c,
            )?;
        }
    }
    if work.workspace.is_none() {
        return Ok(());
    }
    let (grid, partial, parts) = (work.sum_grid(), Read::at(work.partial()), work.plan.parts);
    kernels::linear_gated_sum::<X>(
        queue, grid, y_again, u_again, b, h, table, nodes, weights, partial, parts, columns, share, r,
        offset, n, o,
    )
}

/// The losses (N) of v = x·wᵀ + b and, if wanted, dv (N, O), of x (N, C), w (O, C), b (O).
pub(super) fn loss<X: FloatX>(
    queue: &Queue,
    (loss, dv): (&mut Tensor<f32>, Option<&mut Tensor<X>>),
    x: &Tensor<X>,
    w: View<'_, X>,
    b: View<'_, X>,
    target: &Target<'_>,
    scale: Scale,
) -> Result<()> {
    let ((n, c), o) = (x.rows_cols(), target.data.rows_cols().1);
    let (loss, dv) = (loss.write()?, dv.map_or(Ok(Write::none()), Tensor::write)?);
    let (x, w, b, factor) = (x.read()?, w.read()?, b.read()?, Read::at(scale.address()));
    let (loss_again, dv_again) = (Write::at(loss.address()), Write::at(dv.address()));
    let work = Work::new::<X>(queue, (n, o, c), [(x.address(), c), (w.address(), c)], 0)?;
    let groups = o.div_ceil(work.plan.tile.group());
    // Where a row's squares are added up in parts. Cut into parts of the depth, losses come from the kernel that adds these.
    let sums = if groups > 1 && work.workspace.is_none() { Some(queue.block(8 * n * groups)?) } else { None };
    let at = sums.as_ref().map_or(0, DeviceBuf::address);
    let (loss, sums) = if at == 0 { (loss, Write::none()) } else { (Write::none(), Write::at(at)) };
    let device = target.on_device()?;
    let DeviceTarget { data, t, table, key: [key0, key1], step, counter, first, samples, share, .. } = device;
    let DeviceTarget { weight, number, knots, variates, .. } = device;
    let (rows, outputs, columns, scale) = (n as u32, o as u32, c as u32, scale.number);
    launch!(
        work,
        [
            kernels::linear_loss_128x128::<X>,
            kernels::linear_loss_128x64::<X>,
            kernels::linear_loss_64x64::<X>,
            kernels::linear_loss_any::<X>
        ],
        [kernels::linear_loss_f32_128, kernels::linear_loss_f32_64, kernels::linear_loss_f32_32],
        [loss, sums],
        (queue, dv, x, w, b;
         data, t, table, key0, key1, step, counter, first, samples, share, weight, number, knots, variates, scale, factor,
         groups as u32, rows, outputs, columns)
    )?;
    if work.workspace.is_some() {
        let lanes = o.div_ceil(4).next_power_of_two().min(32);
        let grid = Grid::covering(n * lanes, 1, SUM.0);
        let (partial, parts) = (Read::at(work.partial()), work.plan.parts);
        return kernels::linear_loss_sum(
            queue,
            grid,
            loss_again,
            dv_again,
            b,
            partial,
            data,
            t,
            table,
            key0,
            key1,
            step,
            counter,
            first,
            samples,
            share,
            weight,
            number,
            knots,
            variates,
            scale,
            factor,
            parts,
            lanes as u32,
            rows,
            outputs,
        );
    }
    if at == 0 {
        return Ok(());
    }
    let (grid, groups) = (Grid::covering(n, 1, SUM.0), groups as u32);
    kernels::linear_loss_rows(
        queue,
        grid,
        loss_again,
        Read::at(at),
        t,
        table,
        share,
        weight,
        number,
        knots,
        variates,
        groups,
        rows,
        outputs,
    )
}

/// dx (N, C), written or added to, of dy (N, O) and w (O, C).
pub(super) fn backward_input<A: FloatX, W: FloatX>(
    queue: &Queue,
    dx: &mut Tensor<A>,
    dy: &Tensor<A>,
    w: View<'_, W>,
    through: Option<(Activation, &Tensor<A>)>,
    accumulate: bool,
) -> Result<()> {
    let ((n, o), c) = (dy.rows_cols(), dx.rows_cols().1);
    let (act, z) = match through {
        Some((act, z)) => (kind(act), z.read()?),
        None => (0, Read::none()),
    };
    let accumulate = accumulate as u32;
    let (dx, dy, w) = (dx.write()?, dy.read()?, w.read()?);
    let (rows, outputs, columns) = (n as u32, o as u32, c as u32);
    match (A::DTYPE, W::DTYPE) {
        (a, weights) if a == weights => {
            let work = Work::new::<W>(queue, (n, c, o), [(dy.address(), o), (w.address(), c)], 0)?;
            let (dx, dy, z) = (dx.retyped(), dy.retyped(), z.retyped());
            let dx_again = Write::at(dx.address());
            launch!(
                work,
                [
                    kernels::linear_backward_input_128x128::<W>,
                    kernels::linear_backward_input_128x64::<W>,
                    kernels::linear_backward_input_64x64::<W>,
                    kernels::linear_backward_input_any::<W>
                ],
                [
                    kernels::linear_backward_input_f32_128,
                    kernels::linear_backward_input_f32_64,
                    kernels::linear_backward_input_f32_32
                ],
                (queue, dx, dy, w, z; act, accumulate, rows, outputs, columns)
            )?;
            if work.workspace.is_none() {
                return Ok(());
            }
            let (grid, partial, parts) = (work.sum_grid(), Read::at(work.partial()), work.plan.parts);
            kernels::linear_backward_input_sum::<W>(
                queue, grid, dx_again, z, partial, parts, act, accumulate, rows, columns,
            )
        }
        (DType::F32, _) => {
            let (dx, dy, z) = (dx.retyped(), dy.retyped(), z.retyped());
            let grid = wide_tiles(n, c);
            kernels::linear_backward_input_wide(
                queue, grid, dx, dy, w, z, act, accumulate, rows, outputs, columns,
            )
        }
        (a, weights) => Err(queue.lacks(&format!("linear with {a} activations and {weights} weights"))),
    }
}

/// dw (O, C) and db (O), added to, of dy (N, O) and x (N, C).
pub(super) fn backward_weight<A: FloatX>(
    queue: &Queue,
    dw: &mut ViewMut<'_, f32>,
    db: Option<ViewMut<'_, f32>>,
    dy: &Tensor<A>,
    x: &Tensor<A>,
) -> Result<()> {
    let ((n, o), c) = (dy.rows_cols(), x.rows_cols().1);
    let (dw, dy, x) = (dw.write()?, dy.read()?, x.read()?);
    let mut db = db;
    let db = db.as_mut().map_or(Ok(Write::none()), |db| db.write())?;
    let work = Work::new::<A>(queue, (o, c, n), [(dy.address(), o), (x.address(), c)], o)?;
    let (rows, outputs, columns) = (n as u32, o as u32, c as u32);
    // Parts put their sums of rows into the workspace.
    let with_bias = db.address() != 0;
    let (cut, beside) = (work.workspace.is_some(), work.beside());
    let rows_to = Write::at(if with_bias && cut { beside } else { db.address() });
    let dw_again = Write::at(dw.address());
    launch!(
        work,
        [
            kernels::linear_backward_weight_128x128::<A>,
            kernels::linear_backward_weight_128x64::<A>,
            kernels::linear_backward_weight_64x64::<A>,
            kernels::linear_backward_weight_any::<A>
        ],
        [
            kernels::linear_backward_weight_f32_128,
            kernels::linear_backward_weight_f32_64,
            kernels::linear_backward_weight_f32_32
        ],
        (queue, dw, rows_to, dy, x; rows, outputs, columns)
    )?;
    if !cut {
        return Ok(());
    }
    let (grid, partial, parts) = (work.sum_grid(), Read::at(work.partial()), work.plan.parts);
    let sums = Read::at(if with_bias { beside } else { 0 });
    kernels::linear_backward_weight_sum(queue, grid, dw_again, db, partial, sums, parts, outputs, columns)
}

/// The grid of f32 activations with narrower weights.
fn wide_tiles(rows: usize, columns: usize) -> Grid {
    let tiles = |n: usize| n.div_ceil(WIDE_TILE) as u32;
    Grid { blocks: [tiles(columns), tiles(rows), 1], threads: 256, shared: 0 }
}

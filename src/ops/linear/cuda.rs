//! The launches of `kernels/linear.cu`.
//!
//! Activations have the type of the weights, or f32 beside narrower weights (the path of modulation tables): a kernel
//! each. Other pairs have none.

use crate::device::Queue;
use crate::device::cuda::{Grid, Read, Write};
use crate::error::Result;
use crate::float::{DType, FloatX};
use crate::kernels;
use crate::ops::linear::Activation;
use crate::tensor::{Tensor, View, ViewMut};

/// Rows and columns of a block's tile.
const TILE: usize = 64;

fn tiles(rows: usize, columns: usize) -> Grid {
    Grid { blocks: [columns.div_ceil(TILE) as u32, rows.div_ceil(TILE) as u32, 1], threads: 256, shared: 0 }
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
    let (grid, act) = (tiles(n, o), kind(act));
    let (y, z) = (y.write()?, z.map_or(Ok(Write::none()), Tensor::write)?);
    let (x, w, add) = (x.read()?, w.read()?, optional(add)?);
    let b = b.map_or(Ok(Read::none()), |b| b.read())?;
    let (n, o, c) = (n as u32, o as u32, c as u32);
    match (A::DTYPE, W::DTYPE) {
        (a, weights) if a == weights => {
            let (y, z, x, add) = (y.retyped(), z.retyped(), x.retyped(), add.retyped());
            kernels::linear_forward::<W>(queue, grid, y, z, x, w, b, add, act, n, o, c)
        }
        (DType::F32, _) => {
            let (y, z, x, add) = (y.retyped(), z.retyped(), x.retyped(), add.retyped());
            kernels::linear_forward_wide(queue, grid, y, z, x, w, b, add, act, n, o, c)
        }
        (a, weights) => Err(queue.lacks(&format!("linear with {a} activations and {weights} weights"))),
    }
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
    let (grid, accumulate) = (tiles(n, c), accumulate as u32);
    let (dx, dy, w) = (dx.write()?, dy.read()?, w.read()?);
    let (n, o, c) = (n as u32, o as u32, c as u32);
    match (A::DTYPE, W::DTYPE) {
        (a, weights) if a == weights => {
            let (dx, dy, z) = (dx.retyped(), dy.retyped(), z.retyped());
            kernels::linear_backward_input::<W>(queue, grid, dx, dy, w, z, act, accumulate, n, o, c)
        }
        (DType::F32, _) => {
            let (dx, dy, z) = (dx.retyped(), dy.retyped(), z.retyped());
            kernels::linear_backward_input_wide(queue, grid, dx, dy, w, z, act, accumulate, n, o, c)
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
    let grid = tiles(o, c);
    let (rows, outputs, columns) = (n as u32, o as u32, c as u32);
    kernels::linear_backward_weight(queue, grid, dw.write()?, dy.read()?, x.read()?, rows, outputs, columns)?;
    match db {
        Some(mut db) => {
            let grid = Grid::covering(o, 1, 32);
            kernels::linear_backward_bias(queue, grid, db.write()?, dy.read()?, rows, outputs)
        }
        None => Ok(()),
    }
}

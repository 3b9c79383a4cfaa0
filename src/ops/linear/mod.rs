//! The linear layer: z = x·wᵀ + b (+ add), y = act(z), and its gradients.
//!
//! - forward: z = x·wᵀ + b (+ add), y = act(z); x (N, C), w (O, C), b (O), add (N, O).
//! - input gradient: dx = dy·w, times act'(z) of the activation that produced x; dy (N, O).
//! - weight gradient: dw += dyᵀ·x, db += Σ_rows dy.
//!
//! Storage is f32, bf16 or f16; every sum is f32.

mod activation;
mod cuda;
mod finish;
mod gated;
mod kernel;
mod loss;
mod pack;
pub(in crate::ops) mod panels;
mod product;
mod shared;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;
mod tiles;
mod turned;
mod weight;

pub use activation::Activation;
pub use gated::{Branch, linear_gated_forward};
pub use loss::{linear_loss_backward, linear_loss_forward};
pub use weight::Weight;
pub(crate) use weight::{Panels, panel_bytes};

use std::marker::PhantomData;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::ops::linear::finish::{Forward, Through, column_sums};
use crate::ops::linear::pack::{columns_of, columns_of_parts, rows_of};
use crate::ops::linear::product::{by_depth, by_rows};
use crate::tensor::{Shape, Tensor, View, ViewMut};

/// Computes z = x·wᵀ + b (+ add) and y = act(z).
///
/// x: (N, C), w: (O, C), b: (O), add: (N, O). Returns (y, z), both (N, O); z is `None` when `act` is `Identity`, where
/// y is z. The activation is applied to the f32 sum, before z is rounded to its storage type.
///
/// # Errors
/// A shape that does not fit.
pub fn linear_forward<'w, A: FloatX, W: FloatX>(
    x: &Tensor<A>,
    w: impl Into<Weight<'w, W>>,
    b: Option<View<W>>,
    add: Option<&Tensor<A>>,
    act: Activation,
) -> Result<(Tensor<A>, Option<Tensor<A>>)> {
    const OP: &str = "linear_forward";
    let weight = w.into();
    let w = weight.view;
    let (n, c) = sizes(x.shape());
    let (o, _) = sizes(w.shape());
    x.expect(OP, "x", [n, c])?;
    w.expect(OP, "w", [o, c])?;
    if let Some(b) = b {
        b.expect(OP, "b", [o])?;
    }
    if let Some(add) = add {
        add.expect(OP, "add", [n, o])?;
    }
    let mut y = Tensor::uninit(x.device(), [n, o]);
    let mut z = (act != Activation::Identity).then(|| Tensor::like(&y));
    match x.device() {
        Device::Cpu(cpu) => {
            let finish = Forward {
                act,
                bias: b.map(|b| b.host()).transpose()?,
                add: add.map(|a| a.host()).transpose()?,
                cols: o,
                out: PhantomData,
            };
            let (x, w) = (rows_of(x.host()?, n, c), weight.forward::<A>(cpu, o, c)?);
            let second = z.as_mut().map(|z| z.host_mut()).transpose()?;
            by_rows(cpu, x, w, &finish, y.host_mut()?, second);
        }
        Device::Cuda(queue) => cuda::forward(queue, (&mut y, z.as_mut()), x, w, b, add, act)?,
    }
    Ok((y, z))
}

/// Computes dx = dy·w, times act'(z) when `through` is `Some((act, z))` with z (N, C) the pre-activation behind x.
///
/// dy: (N, O), w: (O, C). Returns dx: (N, C).
///
/// # Errors
/// A shape that does not fit.
pub fn linear_backward_input<'w, A: FloatX, W: FloatX>(
    dy: &Tensor<A>,
    w: impl Into<Weight<'w, W>>,
    through: Option<(Activation, &Tensor<A>)>,
) -> Result<Tensor<A>> {
    const OP: &str = "linear_backward_input";
    let weight = w.into();
    let w = weight.view;
    let (n, o) = sizes(dy.shape());
    let (_, c) = sizes(w.shape());
    dy.expect(OP, "dy", [n, o])?;
    w.expect(OP, "w", [o, c])?;
    if let Some((_, z)) = through {
        z.expect(OP, "z", [n, c])?;
    }
    let mut dx = Tensor::uninit(dy.device(), [n, c]);
    match dy.device() {
        Device::Cpu(cpu) => {
            let through = through.map(|(act, z)| z.host().map(|z| (act, z))).transpose()?;
            let finish = Through { through, cols: c, add: false };
            let (dy, w) = (rows_of(dy.host()?, n, o), weight.backward::<A>(cpu, o, c)?);
            by_rows(cpu, dy, w, &finish, dx.host_mut()?, None);
        }
        Device::Cuda(queue) => cuda::backward_input(queue, &mut dx, dy, w, through, false)?,
    }
    Ok(dx)
}

/// Computes dx += dy·w, times act'(z) as in [`linear_backward_input`]; summed in f32 and then stored, for inputs with
/// several consumers.
///
/// dx: (N, C), dy: (N, O), w: (O, C).
///
/// # Errors
/// A shape that does not fit.
pub fn linear_backward_input_add<'w, A: FloatX, W: FloatX>(
    dx: &mut Tensor<A>,
    dy: &Tensor<A>,
    w: impl Into<Weight<'w, W>>,
    through: Option<(Activation, &Tensor<A>)>,
) -> Result<()> {
    const OP: &str = "linear_backward_input_add";
    let weight = w.into();
    let w = weight.view;
    let (n, o) = sizes(dy.shape());
    let (_, c) = sizes(w.shape());
    dy.expect(OP, "dy", [n, o])?;
    w.expect(OP, "w", [o, c])?;
    dx.expect(OP, "dx", [n, c])?;
    if let Some((_, z)) = through {
        z.expect(OP, "z", [n, c])?;
    }
    match dy.device() {
        Device::Cpu(cpu) => {
            let through = through.map(|(act, z)| z.host().map(|z| (act, z))).transpose()?;
            let finish = Through { through, cols: c, add: true };
            let (dy, w) = (rows_of(dy.host()?, n, o), weight.backward::<A>(cpu, o, c)?);
            by_rows(cpu, dy, w, &finish, dx.host_mut()?, None);
        }
        Device::Cuda(queue) => cuda::backward_input(queue, dx, dy, w, through, true)?,
    }
    Ok(())
}

/// Computes dw += dyᵀ·x and db += Σ_rows dy.
///
/// dw: (O, C) f32, db: (O) f32, dy: (N, O), x: (N, C).
///
/// # Errors
/// A shape that does not fit.
pub fn linear_backward_weight<A: FloatX>(
    mut dw: ViewMut<f32>,
    db: Option<ViewMut<f32>>,
    dy: &Tensor<A>,
    x: &Tensor<A>,
) -> Result<()> {
    const OP: &str = "linear_backward_weight";
    let ((n, o), (_, c)) = (sizes(dy.shape()), sizes(x.shape()));
    dy.expect(OP, "dy", [n, o])?;
    x.expect(OP, "x", [n, c])?;
    dw.as_view().expect(OP, "dw", [o, c])?;
    if let Some(db) = &db {
        db.as_view().expect(OP, "db", [o])?;
    }
    match dy.device() {
        Device::Cpu(cpu) => {
            let (dy, x) = (dy.host()?, x.host()?);
            by_depth(cpu, Start::Value, columns_of(dy, n, o), columns_of(x, n, c), dw.host_mut()?);
            if let Some(mut db) = db {
                column_sums(cpu, db.host_mut()?, dy);
            }
        }
        Device::Cuda(queue) => cuda::backward_weight(queue, &mut dw, db, dy, x)?,
    }
    Ok(())
}

/// What a sum starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Zero: what is there is written over, and not read.
    Zero,
    /// What is there.
    Value,
}

/// Does the same with dw from `start` on, for rows that may lie in several tensors: the pairs (dy, x) one below the other, with the
/// bits that one pair of tensors would give.
///
/// # Errors
/// A shape that does not fit; pairs other than the last whose rows are not a common, even number.
pub fn linear_backward_weight_parts<A: FloatX>(
    start: Start,
    mut dw: ViewMut<f32>,
    mut db: Option<ViewMut<f32>>,
    parts: &[(&Tensor<A>, &Tensor<A>)],
) -> Result<()> {
    const OP: &str = "linear_backward_weight_parts";
    let Some((dy, x)) = parts.first() else { return Ok(()) };
    let ((each, o), (_, c)) = (sizes(dy.shape()), sizes(x.shape()));
    dw.as_view().expect(OP, "dw", [o, c])?;
    if let Some(db) = &db {
        db.as_view().expect(OP, "db", [o])?;
    }
    for (i, (dy, x)) in parts.iter().enumerate() {
        let (n, is_last) = (sizes(dy.shape()).0, i + 1 == parts.len());
        if !is_last && (n != each || !n.is_multiple_of(2)) {
            let expected = "the same even number of rows in all parts but the last";
            return Err(Error::argument(OP, "parts", expected, format!("{n} rows in part {i}")));
        }
        dy.expect(OP, "dy", [n, o])?;
        x.expect(OP, "x", [n, c])?;
    }
    let Device::Cpu(cpu) = dy.device() else {
        if start == Start::Zero {
            dw.fill_zero();
        }
        let mut add =
            |dy, x| linear_backward_weight(dw.reborrow(), db.as_mut().map(ViewMut::reborrow), dy, x);
        return parts.iter().try_for_each(|(dy, x)| add(dy, x));
    };
    let dys = parts.iter().map(|(dy, _)| dy.host()).collect::<Result<Vec<_>>>()?;
    let xs = parts.iter().map(|(_, x)| x.host()).collect::<Result<Vec<_>>>()?;
    let (a, b) = match (&dys[..], &xs[..]) {
        ([dy], [x]) => (columns_of(dy, each, o), columns_of(x, each, c)),
        _ => (columns_of_parts(&dys, each, o), columns_of_parts(&xs, each, c)),
    };
    by_depth(cpu, start, a, b, dw.host_mut()?);
    match db {
        Some(mut db) => dys.iter().try_for_each(|dy| db.host_mut().map(|db| column_sums(cpu, db, dy))),
        None => Ok(()),
    }
}

/// Returns the first and last size; `expect` then refuses what is not a matrix.
fn sizes(shape: Shape) -> (usize, usize) {
    let dims = shape.dims();
    (dims.first().copied().unwrap_or(1), dims.last().copied().unwrap_or(1))
}

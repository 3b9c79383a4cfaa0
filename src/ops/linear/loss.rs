//! A linear layer and the flow-matching loss of its results: of v = x·wᵀ + b, row losses and dv, in one pass.
//!
//! The plain twin is `linear_forward` followed by `flow_loss_forward` or `flow_loss_backward`, which state the formulas. On a CUDA device
//! the residual takes the place of v where the product ends (`kernels/linear_loss.cu`), so that v is never stored. It is not rounded to its
//! storage type there, as it is by the twin: in f32 dv has the twin's bits, in 16 bits it is off by the rounding of dv alone. Squares of a
//! row are added in another order. The CPU runs the twin.

use crate::device::Device;
use crate::error::Result;
use crate::float::FloatX;
use crate::ops::flow_loss::{Scale, Target, flow_loss_backward, flow_loss_forward};
use crate::ops::linear::{Activation, Weight, cuda, linear_forward, sizes};
use crate::tensor::{Tensor, View};

/// Computes the row losses of v = x·wᵀ + b.
///
/// x: (N, C), w: (D, C), b: (D). Returns (N), f32.
///
/// # Errors
/// A shape that does not fit.
pub fn linear_loss_forward<'w, X: FloatX>(
    x: &Tensor<X>,
    w: impl Into<Weight<'w, X>>,
    b: View<X>,
    target: &Target<'_>,
) -> Result<Tensor<f32>> {
    let weight = w.into();
    let w = weight.view;
    let [n, _] = check("linear_loss_forward", x, w, b, target)?;
    match x.device() {
        Device::Cpu(_) => {
            flow_loss_forward(&linear_forward(x, weight, Some(b), None, Activation::Identity)?.0, target)
        }
        Device::Cuda(queue) => {
            let mut loss = Tensor::uninit(x.device(), [n]);
            cuda::loss(queue, (&mut loss, None), x, w, b, target, 0.0.into())?;
            Ok(loss)
        }
    }
}

/// Computes the row losses of v = x·wᵀ + b and dv = scale·w(t)·r.
///
/// x: (N, C), w: (D, C), b: (D). Returns (N), f32, and (N, D).
///
/// # Errors
/// A shape that does not fit.
pub fn linear_loss_backward<'w, X: FloatX>(
    x: &Tensor<X>,
    w: impl Into<Weight<'w, X>>,
    b: View<X>,
    target: &Target<'_>,
    scale: impl Into<Scale>,
) -> Result<(Tensor<f32>, Tensor<X>)> {
    let weight = w.into();
    let w = weight.view;
    let [n, d] = check("linear_loss_backward", x, w, b, target)?;
    match x.device() {
        Device::Cpu(_) => {
            let (v, _) = linear_forward(x, weight, Some(b), None, Activation::Identity)?;
            flow_loss_backward(&v, target, scale)
        }
        Device::Cuda(queue) => {
            let (mut loss, mut dv) = (Tensor::uninit(x.device(), [n]), Tensor::uninit(x.device(), [n, d]));
            cuda::loss(queue, (&mut loss, Some(&mut dv)), x, w, b, target, scale.into())?;
            Ok((loss, dv))
        }
    }
}

fn check<X: FloatX>(
    op: &'static str,
    x: &Tensor<X>,
    w: View<X>,
    b: View<X>,
    target: &Target<'_>,
) -> Result<[usize; 2]> {
    let [n, d] = target.check(op)?;
    let (_, c) = sizes(x.shape());
    x.expect(op, "x", [n, c])?;
    w.expect(op, "w", [d, c])?;
    b.expect(op, "b", [d])?;
    Ok([n, d])
}

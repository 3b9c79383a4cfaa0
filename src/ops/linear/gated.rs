//! A linear layer with the gated residual behind it: y = h + gate·(x·wᵀ + b).
//!
//! The plain twin is `linear_forward` followed by `gated_residual_forward`, which rounds u = x·wᵀ + b to its storage type before the gate
//! multiplies it. On a CUDA device the gate takes the f32 sum where the product ends (`kernels/linear_gated.cu`): in f32 both give
//! the same bits. The CPU runs the twin: with the gate at the end of each tile the same usually took 3 to 25 % longer.

use crate::device::Device;
use crate::error::Result;
use crate::float::FloatX;
use crate::ops::gated_residual::gated_residual_forward;
use crate::ops::linear::{Activation, Weight, cuda, linear_forward, sizes};
use crate::ops::modulation::Modulation;
use crate::tensor::{Tensor, View};

/// What becomes of u = x·wᵀ + b, which the gate's gradient needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// It is written, too.
    Keep,
    /// It is not returned.
    Drop,
}

/// Computes y = h + gate·u with u = x·wᵀ + b.
///
/// x: (N, C), w: (O, C), b: (O), h: (N, O); the gate is the table's columns `offset .. offset + O`. Returns (y, u), both (N, O); u is
/// `None` unless it is kept.
///
/// # Errors
/// A shape that does not fit.
pub fn linear_gated_forward<'w, X: FloatX>(
    x: &Tensor<X>,
    w: impl Into<Weight<'w, X>>,
    b: View<X>,
    h: &Tensor<X>,
    (gate, offset): (&Modulation<'_, X>, usize),
    branch: Branch,
) -> Result<(Tensor<X>, Option<Tensor<X>>)> {
    const OP: &str = "linear_gated_forward";
    let weight = w.into();
    let w = weight.view;
    let ((n, c), (o, _)) = (sizes(x.shape()), sizes(w.shape()));
    x.expect(OP, "x", [n, c])?;
    w.expect(OP, "w", [o, c])?;
    b.expect(OP, "b", [o])?;
    h.expect(OP, "h", [n, o])?;
    gate.check(OP, n, offset, o)?;
    match x.device() {
        Device::Cpu(_) => {
            let (u, _) = linear_forward(x, weight, Some(b), None, Activation::Identity)?;
            let y = gated_residual_forward(&u, Some(h), gate, offset)?;
            Ok((y, (branch == Branch::Keep).then_some(u)))
        }
        Device::Cuda(queue) => {
            let mut y = Tensor::uninit(x.device(), [n, o]);
            let mut u = (branch == Branch::Keep).then(|| Tensor::like(&y));
            cuda::gated(queue, (&mut y, u.as_mut()), x, w, b, h, (gate.on_device()?, offset))?;
            Ok((y, u))
        }
    }
}

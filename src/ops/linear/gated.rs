//! A linear layer with the gated residual behind it: y = h + gate·(x·wᵀ + b).
//!
//! The plain twin is `linear_forward` followed by `gated_residual_forward`, which rounds u = x·wᵀ + b to its storage type before the gate
//! multiplies it; here the gate takes the f32 sum. In f32 both give the same bits. Kernels: `kernels/linear_gated.cu`.

use crate::device::Arch;
use crate::device::Device;
use crate::error::Result;
use crate::float::FloatX;
use crate::ops::linear::cuda;
use crate::ops::linear::finish::{Finish, add_to, store};
use crate::ops::linear::pack::rows_of;
use crate::ops::linear::product::by_rows;
use crate::ops::linear::sizes;
use crate::ops::modulation::{HostModulation, Modulation};
use crate::tensor::{Tensor, View};

/// What becomes of u = x·wᵀ + b, which the gate's gradient needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// It is written, too.
    Keep,
    /// It is never in memory.
    Drop,
}

/// Computes y = h + gate·u with u = x·wᵀ + b.
///
/// x: (N, C), w: (O, C), b: (O), h: (N, O); the gate is the table's columns `offset .. offset + O`. Returns (y, u), both (N, O); u is
/// `None` unless it is kept.
///
/// # Errors
/// A shape that does not fit.
pub fn linear_gated_forward<X: FloatX>(
    x: &Tensor<X>,
    w: View<X>,
    b: View<X>,
    h: &Tensor<X>,
    (gate, offset): (&Modulation<'_, X>, usize),
    branch: Branch,
) -> Result<(Tensor<X>, Option<Tensor<X>>)> {
    const OP: &str = "linear_gated_forward";
    let ((n, c), (o, _)) = (sizes(x.shape()), sizes(w.shape()));
    x.expect(OP, "x", [n, c])?;
    w.expect(OP, "w", [o, c])?;
    b.expect(OP, "b", [o])?;
    h.expect(OP, "h", [n, o])?;
    gate.check(OP, n, offset, o)?;
    let mut y = Tensor::uninit(x.device(), [n, o]);
    let mut u = (branch == Branch::Keep).then(|| Tensor::like(&y));
    match x.device() {
        Device::Cpu(cpu) => {
            let finish = Gated { bias: b.host()?, h: h.host()?, gate: gate.host()?, offset, cols: o };
            let (x, w) = (rows_of(x.host()?, n, c), rows_of(w.host()?, o, c));
            let u = u.as_mut().map(|u| u.host_mut()).transpose()?;
            by_rows(cpu, x, w, &finish, y.host_mut()?, u);
        }
        Device::Cuda(queue) => {
            cuda::gated(queue, (&mut y, u.as_mut()), x, w, b, h, (gate.on_device()?, offset))?
        }
    }
    Ok((y, u))
}

/// u = sums + bias, y = h + gate·u: writes y and, if there is a second output, u.
struct Gated<'a, X> {
    /// (O).
    bias: &'a [X],
    /// (N, O).
    h: &'a [X],
    gate: HostModulation<'a, X>,
    /// First of the table's columns that is a gate.
    offset: usize,
    /// O.
    cols: usize,
}

/// Gates that are evaluated at a time: a tile's columns (192), in the first-level cache.
const GATES: usize = 192;

impl<X: FloatX> Finish for Gated<'_, X> {
    type Out = X;
    #[inline(always)]
    fn row(
        &self,
        arch: Arch,
        (row, col): (usize, usize),
        sums: &mut [f32],
        y: &mut [X],
        u: Option<&mut [X]>,
    ) {
        add_to(sums, &self.bias[col..]);
        if let Some(u) = u {
            store(u, sums);
        }
        let mut gates = [0.0; GATES];
        let h = &self.h[row * self.cols + col..];
        for (i, sums) in sums.chunks(GATES).enumerate() {
            let (at, gates) = (i * GATES, &mut gates[..sums.len()]);
            self.gate.fetch(arch, gates, row, self.offset + col + at, sums.len());
            for (((y, sum), h), gate) in y[at..].iter_mut().zip(sums).zip(&h[at..]).zip(gates) {
                *y = X::from_f32(arch.fma(*gate, *sum, h.to_f32()));
            }
        }
    }
}

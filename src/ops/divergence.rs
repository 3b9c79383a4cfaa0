//! The divergence of a velocity along straight paths, by Hutchinson's estimate as a central difference, with its gradient.
//!
//! ```text
//! z = (1 − t)·noise + t·y,  ε = ±1 in every column,  d_i = εᵀ(v(z + h·ε, t) − v(z − h·ε, t))/(2h)          E d_i = tr ∂v/∂z + O(h²)
//! ∂d_i/∂y = t·(J₊ᵀε − J₋ᵀε)/(2h),   J± = ∂v/∂z at z ± h·ε
//! ```
//! The gradient is that of d itself, not an approximation of it: it takes two vector-Jacobian products of the frozen network, and no
//! second derivatives. Against tr ∂v/∂z, d is off by (h²/6)·D³v(ε, ε, ε)·ε, and by rounding of about 2⁻²⁴·‖v‖·√D/h: see [`STEP`].
//! The two points of a row lie in one batch of 2N rows, first all with +, then all with −. Kernels: `kernels/divergence.cu`.

use crate::device::Device;
use crate::device::cuda::{Grid, Read};
use crate::error::{Error, Result};
use crate::kernels;
use crate::ops::flow_loss::Scale;
use crate::rng::Draw;
use crate::tensor::Tensor;

/// h. A mixture with modes of deviation q bends its velocity on lengths of q near t = 1, so the difference is off by about (h/q)²/6 of
/// the trace: 2·10⁻⁴ for the narrowest toy, q = 0.089. Rounding adds 2⁻²⁴·‖v‖/h: some 10⁻⁵ for velocities of a few units.
pub const STEP: f32 = 1.0 / 256.0;

/// `z: (N, D)` → `z ± h·ε: (2N, D)`.
///
/// # Errors
/// A step that is not positive.
pub fn probe_points(z: &Tensor<f32>, draw: Draw, h: f32) -> Result<Tensor<f32>> {
    let (n, d) = z.rows_cols();
    if !(h > 0.0 && h.is_finite()) {
        return Err(Error::argument("probe_points", "h", "a positive number", format!("{h}")));
    }
    let mut points = Tensor::uninit(z.device(), [2 * n, d]);
    match z.device() {
        Device::Cpu(_) => {
            let (plus, minus) = points.host_mut()?.split_at_mut(n * d);
            let rows = plus.chunks_exact_mut(d.max(1)).zip(minus.chunks_exact_mut(d.max(1)));
            for (i, ((plus, minus), z)) in rows.zip(z.host()?.chunks_exact(d.max(1))).enumerate() {
                for_each_sign(draw, i, d, |c, sign| {
                    (plus[c], minus[c]) = (z[c] + h * sign, z[c] - h * sign);
                });
            }
        }
        Device::Cuda(queue) => {
            let ([key0, key1], step, counter) = (draw.key(), draw.step(), Read::at(draw.added()));
            let (points, z) = (points.write()?, z.read()?);
            kernels::probe_points(
                queue,
                columns(n, d),
                points,
                z,
                key0,
                key1,
                step,
                counter,
                n as u32,
                d as u32,
                h,
            )?;
        }
    }
    Ok(points)
}

/// `v: (2N, D)` at [`probe_points`] → d (N), and the gradient `dv: (2N, D)` of `scale`·Σd.
///
/// # Errors
/// An odd number of rows.
pub fn probe_products(
    v: &Tensor<f32>,
    draw: Draw,
    h: f32,
    scale: impl Into<Scale>,
) -> Result<(Tensor<f32>, Tensor<f32>)> {
    let (rows, d) = v.rows_cols();
    let n = rows / 2;
    v.expect("probe_products", "v", [2 * n, d])?;
    let (scale, weight) = (scale.into(), 0.5 / h);
    let (mut values, mut dv) = (Tensor::uninit(v.device(), [n]), Tensor::like(v));
    match v.device() {
        Device::Cpu(_) => {
            let (plus, minus) = v.host()?.split_at(n * d);
            let (dplus, dminus) = dv.host_mut()?.split_at_mut(n * d);
            for (i, value) in values.host_mut()?.iter_mut().enumerate() {
                let mut sum = 0.0;
                for_each_sign(draw, i, d, |c, sign| {
                    let at = i * d + c;
                    sum += sign * (plus[at] - minus[at]);
                    dplus[at] = scale.number * weight * sign;
                    dminus[at] = -dplus[at];
                });
                *value = sum * weight;
            }
        }
        Device::Cuda(queue) => {
            let ([key0, key1], step, counter) = (draw.key(), draw.step(), Read::at(draw.added()));
            let (grid, factor) = (Grid::covering(32 * n, 1, 256), Read::at(scale.address()));
            kernels::probe_products(
                queue,
                grid,
                values.write()?,
                dv.write()?,
                v.read()?,
                key0,
                key1,
                step,
                counter,
                n as u32,
                d as u32,
                weight,
                scale.number,
                factor,
            )?;
        }
    }
    Ok((values, dv))
}

/// `dx: (2N, D)`, the products of `dv` with the Jacobian, and `t` (N, or more, of which the first N count): adds t·(dx₊ + dx₋) to
/// `dy: (N, D)`.
///
/// # Errors
/// Another shape.
pub fn probe_gradient(dy: &mut Tensor<f32>, dx: &Tensor<f32>, t: &Tensor<f32>) -> Result<()> {
    const OP: &str = "probe_gradient";
    let (n, d) = dy.rows_cols();
    dx.expect(OP, "dx", [2 * n, d])?;
    if t.len() < n {
        return Err(Error::argument(OP, "t", format!("a time for each of {n} rows"), t.len()));
    }
    match dx.device() {
        Device::Cpu(_) => {
            let (plus, minus) = dx.host()?.split_at(n * d);
            let (t, dy) = (t.host()?, dy.host_mut()?);
            for (i, (dy, (plus, minus))) in dy.iter_mut().zip(plus.iter().zip(minus)).enumerate() {
                *dy += t[i / d] * (plus + minus);
            }
        }
        Device::Cuda(queue) => {
            let (dy, dx, t) = (dy.write()?, dx.read()?, t.read()?);
            kernels::probe_gradient(queue, columns(n, d), dy, dx, t, n as u32, d as u32)?;
        }
    }
    Ok(())
}

/// A lane for each column of each row.
fn columns(rows: usize, d: usize) -> Grid {
    Grid::covering(32 * rows * d.div_ceil(32), 1, 256)
}

/// Calls `f` with the sign of each column of row i.
fn for_each_sign(draw: Draw, i: usize, d: usize, mut f: impl FnMut(usize, f32)) {
    for block in 0..d.div_ceil(128) {
        let words = draw.words(i as u64, 0, block as u32);
        for j in 0..128.min(d - block * 128) {
            f(block * 128 + j, if words[j / 32] >> (j % 32) & 1 == 0 { 1.0 } else { -1.0 });
        }
    }
}

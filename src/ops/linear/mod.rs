//! The linear layer: z = x·wᵀ + b (+ add), y = act(z), and its gradients.
//!
//! - forward: z = x·wᵀ + b (+ add), y = act(z); x (N, C), w (O, C), b (O), add (N, O).
//! - input gradient: dx = dy·w, times act'(z) of the activation that produced x; dy (N, O).
//! - weight gradient: dw += dyᵀ·x, db += Σ_rows dy.
//!
//! Storage is f32, bf16 or f16; every sum is f32.

mod activation;

pub use activation::Activation;

use rayon::prelude::*;

use crate::device::{Cpu, Device};
use crate::error::Result;
use crate::tensor::{FloatX, Tensor, View, ViewMut};

/// Computes z = x·wᵀ + b (+ add) and y = act(z).
///
/// x: (N, C), w: (O, C), b: (O), add: (N, O). Returns (y, z), both (N, O); z is `None` when `act` is `Identity`, where
/// y is z. The activation is applied to the f32 sum, before z is rounded to its storage type.
///
/// # Errors
/// A shape that does not fit.
pub fn linear_forward<A: FloatX, W: FloatX>(
    x: &Tensor<A>,
    w: View<W>,
    b: Option<View<W>>,
    add: Option<&Tensor<A>>,
    act: Activation,
) -> Result<(Tensor<A>, Option<Tensor<A>>)> {
    const OP: &str = "linear_forward";
    let (n, c) = x.rows_cols();
    let o = w.shape().dims().first().copied().unwrap_or(1);
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
            let cpu = cpu.clone();
            let product = naive(&cpu, x.host()?, (c, 1), w.host()?, (1, c), (n, o, c));
            let (bias, add) = (b.map(|b| b.host()).transpose()?, add.map(|a| a.host()).transpose()?);
            let mut out = z.as_mut().map(|z| z.host_mut()).transpose()?;
            let y = y.host_mut()?;
            cpu.isa().run(
                #[inline(always)]
                |arch| {
                    for (i, sum) in product.iter().enumerate() {
                        let b = bias.map_or(0.0, |b| b[i % o].to_f32());
                        let sum = sum + b + add.map_or(0.0, |a| a[i].to_f32());
                        y[i] = A::from_f32(act.apply(arch, sum));
                        if let Some(out) = &mut out {
                            out[i] = A::from_f32(sum);
                        }
                    }
                },
            );
        }
    }
    Ok((y, z))
}

/// Computes dx = dy·w, times act'(z) when `through` is `Some((act, z))` with z (N, C) the pre-activation behind x.
///
/// dy: (N, O), w: (O, C). Returns dx: (N, C).
///
/// # Errors
/// A shape that does not fit.
pub fn linear_backward_input<A: FloatX, W: FloatX>(
    dy: &Tensor<A>,
    w: View<W>,
    through: Option<(Activation, &Tensor<A>)>,
) -> Result<Tensor<A>> {
    const OP: &str = "linear_backward_input";
    let (n, o) = dy.rows_cols();
    let c = w.shape().dims().last().copied().unwrap_or(1);
    dy.expect(OP, "dy", [n, o])?;
    w.expect(OP, "w", [o, c])?;
    if let Some((_, z)) = through {
        z.expect(OP, "z", [n, c])?;
    }
    let mut dx = Tensor::uninit(dy.device(), [n, c]);
    match dy.device() {
        Device::Cpu(cpu) => {
            let product = naive(cpu, dy.host()?, (o, 1), w.host()?, (c, 1), (n, c, o));
            let z = through.map(|(act, z)| z.host().map(|z| (act, z))).transpose()?;
            let dx = dx.host_mut()?;
            cpu.isa().run(
                #[inline(always)]
                |arch| {
                    for (i, sum) in product.iter().enumerate() {
                        let slope = z.map_or(1.0, |(act, z)| act.derivative(arch, z[i].to_f32()));
                        dx[i] = A::from_f32(sum * slope);
                    }
                },
            );
        }
    }
    Ok(dx)
}

/// Computes dx += dy·w, summed in f32 and then stored, for inputs with several consumers.
///
/// dx: (N, C), dy: (N, O), w: (O, C).
///
/// # Errors
/// A shape that does not fit.
pub fn linear_backward_input_add<A: FloatX, W: FloatX>(
    dx: &mut Tensor<A>,
    dy: &Tensor<A>,
    w: View<W>,
) -> Result<()> {
    const OP: &str = "linear_backward_input_add";
    let (n, o) = dy.rows_cols();
    let c = w.shape().dims().last().copied().unwrap_or(1);
    dy.expect(OP, "dy", [n, o])?;
    w.expect(OP, "w", [o, c])?;
    dx.expect(OP, "dx", [n, c])?;
    match dy.device() {
        Device::Cpu(cpu) => {
            let product = naive(cpu, dy.host()?, (o, 1), w.host()?, (c, 1), (n, c, o));
            for (dx, sum) in dx.host_mut()?.iter_mut().zip(product) {
                *dx = A::from_f32(dx.to_f32() + sum);
            }
        }
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
    let ((n, o), (_, c)) = (dy.rows_cols(), x.rows_cols());
    dy.expect(OP, "dy", [n, o])?;
    x.expect(OP, "x", [n, c])?;
    dw.as_view().expect(OP, "dw", [o, c])?;
    if let Some(db) = &db {
        db.as_view().expect(OP, "db", [o])?;
    }
    match dy.device() {
        Device::Cpu(cpu) => {
            let product = naive(cpu, dy.host()?, (1, o), x.host()?, (c, 1), (o, c, n));
            for (dw, sum) in dw.host_mut()?.iter_mut().zip(product) {
                *dw += sum;
            }
            if let Some(mut db) = db {
                let db = db.host_mut()?;
                for (i, dy) in dy.host()?.iter().enumerate() {
                    db[i % o] += dy.to_f32();
                }
            }
        }
    }
    Ok(())
}

/// Returns the (m, n) product of strided operands, slowly.
fn naive<A: FloatX, B: FloatX>(
    cpu: &Cpu,
    a: &[A],
    (ar, ac): (usize, usize),
    b: &[B],
    (br, bc): (usize, usize),
    (m, n, k): (usize, usize, usize),
) -> Vec<f32> {
    let mut out = vec![0.0f32; m * n];
    let isa = cpu.isa();
    cpu.install(|| {
        out.par_chunks_mut(n.max(1)).enumerate().for_each(|(i, row)| {
            isa.run(
                #[inline(always)]
                |arch| {
                    for p in 0..k {
                        let a = a[i * ar + p * ac].to_f32();
                        for (j, out) in row.iter_mut().enumerate() {
                            *out = arch.fma(a, b[p * br + j * bc].to_f32(), *out);
                        }
                    }
                },
            );
        });
    });
    out
}

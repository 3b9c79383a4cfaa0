//! Multi-head self-attention over the tokens of each sample (FEATURES 1.8).
//!
//! ```text
//! s_ij = ⟨q_i, k_j⟩ / √K,  lse_i = ln Σ_j exp(s_ij),  p_ij = exp(s_ij − lse_i),  o_i = Σ_j p_ij·v_j
//! ```
//! for the T tokens i, j of one sample and one head. Backward, with p made again from q, k and lse:
//! `δ_i = ⟨do_i, o_i⟩`, `ds_ij = p_ij·(⟨do_i, v_j⟩ − δ_i)`, `dq_i = Σ_j ds_ij·k_j/√K`, `dk_j = Σ_i ds_ij·q_i/√K`,
//! `dv_j = Σ_i p_ij·do_i`.
//! Scores are never kept: memory grows with T, not with T². 4·B·H·T²·K FLOPs forward, 2.5 times that backward.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::tensor::Tensor;

mod cpu;
mod cpu_backward;
mod cpu_forward;
mod cpu_parts;
mod cpu_rows;
mod cuda;

/// Says how the columns and rows of `qkv` divide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// T: rows of one sample.
    pub tokens: usize,
    /// H.
    pub heads: usize,
}

/// The sizes of a checked call.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Sizes {
    /// B.
    pub samples: usize,
    /// T.
    pub tokens: usize,
    /// H.
    pub heads: usize,
    /// K, even.
    pub width: usize,
}

/// Computes attention and the log-sum-exp of each row's scores, which the backward needs.
///
/// qkv: (N, 3·H·K), columns (q of all heads | k | v); K even; N a multiple of T. Returns o: (N, H·K) and lse: (N, H).
///
/// # Errors
/// Rows or columns that do not divide, or an odd head width.
pub fn attention_forward<X: FloatX>(qkv: &Tensor<X>, heads: Heads) -> Result<(Tensor<X>, Tensor<f32>)> {
    let sizes = check("attention_forward", qkv, heads)?;
    let mut o = Tensor::uninit(qkv.device(), sizes.o());
    let mut lse = Tensor::uninit(qkv.device(), sizes.lse());
    match qkv.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, o.host_mut()?, lse.host_mut()?, qkv.host()?, sizes),
        Device::Cuda(queue) => cuda::forward(queue, &mut o, &mut lse, qkv, sizes)?,
    }
    Ok((o, lse))
}

/// Computes the gradient of the input of [`attention_forward`], which returned `o` and `lse`.
///
/// d_o, o: (N, H·K), lse: (N, H), qkv: (N, 3·H·K). Returns dqkv: (N, 3·H·K).
///
/// # Errors
/// Those of the forward, or a shape that does not fit.
pub fn attention_backward<X: FloatX>(
    d_o: &Tensor<X>,
    o: &Tensor<X>,
    lse: &Tensor<f32>,
    qkv: &Tensor<X>,
    heads: Heads,
) -> Result<Tensor<X>> {
    const OP: &str = "attention_backward";
    let sizes = check(OP, qkv, heads)?;
    d_o.expect(OP, "d_o", sizes.o())?;
    o.expect(OP, "o", sizes.o())?;
    lse.expect(OP, "lse", sizes.lse())?;
    let mut dqkv = Tensor::like(qkv);
    match qkv.device() {
        Device::Cpu(cpu) => {
            let given = cpu::Given { d_o: d_o.host()?, o: o.host()?, lse: lse.host()?, qkv: qkv.host()? };
            cpu::backward(cpu, dqkv.host_mut()?, given, sizes);
        }
        Device::Cuda(queue) => cuda::backward(queue, &mut dqkv, d_o, o, lse, qkv, sizes)?,
    }
    Ok(dqkv)
}

/// Divides rows and columns, or says what does not divide.
pub(in crate::ops) fn check<X: FloatX>(op: &'static str, qkv: &Tensor<X>, heads: Heads) -> Result<Sizes> {
    let Heads { tokens, heads } = heads;
    let (n, c) = qkv.rows_cols();
    qkv.expect(op, "qkv", [n, c])?;
    if tokens == 0 || heads == 0 {
        let found = format!("{tokens} tokens and {heads} heads");
        return Err(Error::argument(op, "heads", "at least one of each", found));
    }
    if !n.is_multiple_of(tokens) {
        let expected = format!("whole samples of {tokens} tokens");
        return Err(Error::argument(op, "qkv", expected, format!("{n} rows")));
    }
    if c == 0 || !c.is_multiple_of(3 * heads) {
        let expected = format!("queries, keys and values of {heads} heads: a multiple of {}", 3 * heads);
        return Err(Error::argument(op, "qkv", expected, format!("{c} columns")));
    }
    let width = c / (3 * heads);
    if !width.is_multiple_of(2) {
        let found = format!("heads of width {width} ({c} columns for {heads} heads)");
        return Err(Error::argument(op, "qkv", "an even width", found));
    }
    Ok(Sizes { samples: n / tokens, tokens, heads, width })
}

impl Sizes {
    /// The shape of o.
    fn o(self) -> [usize; 2] {
        [self.samples * self.tokens, self.heads * self.width]
    }

    /// The shape of lse.
    fn lse(self) -> [usize; 2] {
        [self.samples * self.tokens, self.heads]
    }
}

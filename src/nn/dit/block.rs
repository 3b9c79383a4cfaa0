//! One block of a DiT: attention and MLP, each under adaLN modulation and a gate (FEATURES 1.8).
//!
//! ```text
//! [shift_a | scale_a | gate_a | shift_m | scale_m | gate_m] = the table row of the sample
//! h += gate_a·(Wp·attention(qkv) + bp),  qkv = Wqkv·(LN(h)·(1 + scale_a) + shift_a) + bqkv
//! h += gate_m·(W2·gelu(W1·(LN(h)·(1 + scale_m) + shift_m) + b1) + b2)
//! ```
//! Layer norms have no weights. With qk-norm, q and k of each head are layer-normalised before attention.

use crate::error::Result;
use crate::float::FloatX;
use crate::nn::Keep;
use crate::nn::dit::config::{DitConfig, MLP_RATIO};
use crate::nn::linear::Linear;
use crate::nn::modulation_path::TableGrads;
use crate::nn::params::{Grads, Init, Layout, ParamId, Params};
use crate::ops::attention::{Heads, attention_backward, attention_forward};
use crate::ops::gated_residual::gated_residual_backward;
use crate::ops::layer_norm::{LayerNorm, LayerNormGrads, RowStats, layer_norm_backward, layer_norm_forward};
use crate::ops::linear::{Activation, Branch};
use crate::ops::modulation::Modulation;
use crate::ops::qk_norm::{QkNorm, QkNormGrads, qk_norm_backward, qk_norm_forward};
use crate::tensor::Tensor;

/// The layers of a block.
#[derive(Clone, Debug)]
pub(super) struct Block {
    heads: Heads,
    qkv: Linear,
    /// Weight and bias of q's norm, then of k's.
    qk_norm: Option<[ParamId; 4]>,
    proj: Linear,
    fc1: Linear,
    fc2: Linear,
}

/// What the backward of a block needs beside its input.
#[derive(Debug)]
pub(super) struct Inner<X: FloatX> {
    stats1: RowStats,
    qkv: Tensor<X>, // (N, 3·C), as attention takes it
    /// qkv before its norm, and the statistics of that.
    raw: Option<(Tensor<X>, Tensor<f32>)>,
    o: Tensor<X>,     // (N, C)
    lse: Tensor<f32>, // (N, H)
    h: Tensor<X>,     // (N, C), between attention and MLP
    stats2: RowStats,
    z: Tensor<X>, // (N, 4·C)
    params: Option<ForParams<X>>,
}

/// What only parameter gradients need.
#[derive(Debug)]
struct ForParams<X: FloatX> {
    m1: Tensor<X>,
    u1: Tensor<X>,
    m2: Tensor<X>,
    a: Tensor<X>, // (N, 4·C)
    u2: Tensor<X>,
}

impl Block {
    /// Adds block `name` to the layout; its adaLN head is the caller's to add.
    pub(super) fn new(layout: &mut Layout, name: &str, config: &DitConfig) -> Self {
        let (c, xavier, k) = (config.width, Init::XavierUniform, config.head_width());
        let mut norm = |name: &str| {
            let weight = layout.add(format!("{name}.weight"), [k], Init::Ones);
            [weight, layout.add(format!("{name}.bias"), [k], Init::Zeros)]
        };
        let qk_norm = config.qk_norm.then(|| {
            let ([qw, qb], [kw, kb]) =
                (norm(&format!("{name}.attn.q_norm")), norm(&format!("{name}.attn.k_norm")));
            [qw, qb, kw, kb]
        });
        Self {
            heads: Heads { tokens: config.tokens(), heads: config.heads },
            qkv: Linear::new(layout, &format!("{name}.attn.qkv"), c, 3 * c, xavier),
            qk_norm,
            proj: Linear::new(layout, &format!("{name}.attn.proj"), c, c, xavier),
            fc1: Linear::new(layout, &format!("{name}.mlp.fc1"), c, MLP_RATIO * c, xavier),
            fc2: Linear::new(layout, &format!("{name}.mlp.fc2"), MLP_RATIO * c, c, xavier),
        }
    }

    /// `h: (N, C)` → the next h and, for `Keep::All` and `Keep::Inputs`, what the backward needs.
    pub(super) fn forward<X: FloatX>(
        &self,
        params: &Params<X>,
        h: &Tensor<X>,
        table: &Modulation<'_, X>,
        keep: Keep,
    ) -> Result<(Tensor<X>, Option<Inner<X>>)> {
        let c = h.rows_cols().1;
        let branch = if keep == Keep::All { Branch::Keep } else { Branch::Drop };
        let (m1, stats1) = layer_norm_forward(h, &modulated(table, 0), None)?;
        let (qkv, _) = self.qkv.forward(params, &m1, None, Activation::Identity)?;
        let m1 = (keep == Keep::All).then_some(m1);
        let (qkv, raw) = match self.norm(params) {
            Some(norm) => {
                let (normed, stats) = qk_norm_forward(&qkv, &norm, self.heads)?;
                (normed, Some((qkv, stats)))
            }
            None => (qkv, None),
        };
        let (o, lse) = attention_forward(&qkv, self.heads)?;
        let kept = (keep != Keep::Nothing && keep != Keep::BlockInputs).then_some((qkv, raw));
        let (h, u1) = self.proj.gated_forward(params, &o, h, (table, 2 * c), branch)?;
        let (m2, stats2) = layer_norm_forward(&h, &modulated(table, 3 * c), None)?;
        let (a, z) = self.fc1.forward(params, &m2, None, Activation::GeluTanh)?;
        let m2 = (keep == Keep::All).then_some(m2);
        let z = z.filter(|_| kept.is_some());
        let (next, u2) = self.fc2.gated_forward(params, &a, &h, (table, 5 * c), branch)?;
        let inner = match (kept, z) {
            (Some((qkv, raw)), Some(z)) => {
                let params = match (m1, u1, m2, u2) {
                    (Some(m1), Some(u1), Some(m2), Some(u2)) => Some(ForParams { m1, u1, m2, a, u2 }),
                    _ => None,
                };
                Some(Inner { stats1, qkv, raw, o, lse, h, stats2, z, params })
            }
            _ => None,
        };
        Ok((next, inner))
    }

    /// `dh: (N, C)` of the block's output → that of its input `h`. Gradients of parameters and of table k where they are taken.
    #[allow(clippy::too_many_arguments)] // the backward of a block: what came in, what was kept, what goes out
    pub(super) fn backward<X: FloatX>(
        &self,
        params: &Params<X>,
        h: &Tensor<X>,
        kept: Inner<X>,
        table: &Modulation<'_, X>,
        dh: Tensor<X>,
        mut grads: Option<&mut Grads>,
        mut dtable: Option<(&mut TableGrads<X>, usize)>,
    ) -> Result<Tensor<X>> {
        let Inner { stats1, qkv, raw, o, lse, h: between, stats2, z, params: own } = kept;
        let (m1, u1, m2a, u2) = match own {
            Some(ForParams { m1, u1, m2, a, u2 }) => (Some(m1), Some(u1), Some((m2, a)), Some(u2)),
            None => (None, None, None, None),
        };
        let dh = {
            let du = gate_backward(&dh, u2, table, 5, &mut dtable)?;
            if let (Some(grads), Some((_, a))) = (&mut grads, &m2a) {
                self.fc2.backward_params(grads, &du, a)?;
            }
            let dz = self.fc2.backward_input(params, &du, Some((Activation::GeluTanh, &z)))?;
            drop((du, z));
            if let (Some(grads), Some((m2, _))) = (&mut grads, &m2a) {
                self.fc1.backward_params(grads, &dz, m2)?;
            }
            drop(m2a);
            let dm = self.fc1.backward_input(params, &dz, None)?;
            drop(dz);
            norm_backward(&dm, &between, &stats2, table, 3, &dh, &mut dtable)?
        };
        drop((between, stats2));
        let du = gate_backward(&dh, u1, table, 2, &mut dtable)?;
        if let Some(grads) = &mut grads {
            self.proj.backward_params(grads, &du, &o)?;
        }
        let d_o = self.proj.backward_input(params, &du, None)?;
        drop(du);
        let dqkv = attention_backward(&d_o, &o, &lse, &qkv, self.heads)?;
        drop((d_o, o, lse, qkv));
        let dqkv = match (self.norm(params), &raw) {
            (Some(norm), Some((raw, stats))) => {
                let own = grads.as_deref_mut().zip(self.qk_norm).map(|(grads, ids)| {
                    let [qw, qb, kw, kb] = grads.views_mut(ids);
                    QkNormGrads { q: (qw, qb), k: (kw, kb) }
                });
                qk_norm_backward(&dqkv, raw, stats, &norm, self.heads, own)?
            }
            _ => dqkv,
        };
        drop(raw);
        if let (Some(grads), Some(m1)) = (&mut grads, &m1) {
            self.qkv.backward_params(grads, &dqkv, m1)?;
        }
        let dm = self.qkv.backward_input(params, &dqkv, None)?;
        drop(dqkv);
        norm_backward(&dm, h, &stats1, table, 0, &dh, &mut dtable)
    }

    fn norm<'p, X: FloatX>(&self, params: &'p Params<X>) -> Option<QkNorm<'p, X>> {
        let [qw, qb, kw, kb] = self.qk_norm?.map(|id| params.view(id));
        Some(QkNorm { q: (qw, qb), k: (kw, kb) })
    }
}

/// Is the layer norm whose shift and scale begin at column `offset` of the table.
fn modulated<'m, X: FloatX>(table: &Modulation<'m, X>, offset: usize) -> LayerNorm<'m, X> {
    LayerNorm { affine: None, modulation: Some((*table, offset)) }
}

/// `dh` of `h + gate·u` → du; the gate is part `part` of the table, and has a gradient where u was kept.
fn gate_backward<X: FloatX>(
    dh: &Tensor<X>,
    u: Option<Tensor<X>>,
    table: &Modulation<'_, X>,
    part: usize,
    dtable: &mut Option<(&mut TableGrads<X>, usize)>,
) -> Result<Tensor<X>> {
    let c = dh.rows_cols().1;
    let dgate = u.as_ref().zip(dtable.as_mut()).map(|(u, (d, k))| (u, d.head(*k)));
    gated_residual_backward(dh, table, part * c, dgate)
}

/// `dm` of a norm of `h`, whose shift is part `part` of the table, and `dh` of what h goes to beside it → the sum.
fn norm_backward<X: FloatX>(
    dm: &Tensor<X>,
    h: &Tensor<X>,
    stats: &RowStats,
    table: &Modulation<'_, X>,
    part: usize,
    dh: &Tensor<X>,
    dtable: &mut Option<(&mut TableGrads<X>, usize)>,
) -> Result<Tensor<X>> {
    let modulation = dtable.as_mut().map(|(d, k)| d.head(*k));
    let grads = LayerNormGrads { affine: None, modulation };
    layer_norm_backward(dm, h, stats, &modulated(table, part * h.rows_cols().1), Some(dh), grads)
}

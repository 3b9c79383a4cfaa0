//! One pre-norm transformer block, attention and MLP: of a DiT under adaLN modulation and gates (FEATURES 1.8), of a vision
//! transformer with the norms' own weights and without gates.
//!
//! ```text
//! DiT   [shift_a | scale_a | gate_a | shift_m | scale_m | gate_m] = the table row of the sample
//!       h += gate_a·(Wp·attention(qkv) + bp),  qkv = Wqkv·(LN(h)·(1 + scale_a) + shift_a) + bqkv
//!       h += gate_m·(W2·gelu(W1·(LN(h)·(1 + scale_m) + shift_m) + b1) + b2)
//! ViT   h += Wp·attention(qkv) + bp,           qkv = Wqkv·(LN(h)·gamma_1 + beta_1) + bqkv
//!       h += W2·gelu(W1·(LN(h)·gamma_2 + beta_2) + b1) + b2
//! ```
//! With qk-norm, q and k of each head are layer-normalised before attention.

use crate::error::Result;
use crate::float::FloatX;
use crate::nn::Keep;
use crate::nn::linear::Linear;
use crate::nn::modulation_path::{Modulations, TableGrads};
use crate::nn::params::{Grads, Init, Layout, ParamId, Params};
use crate::ops::attention::{Heads, attention_backward, attention_forward};
use crate::ops::gated_residual::gated_residual_backward;
use crate::ops::layer_norm::{LayerNorm, LayerNormGrads, RowStats, layer_norm_backward, layer_norm_forward};
use crate::ops::linear::{Activation, Branch};
use crate::ops::modulation::Modulation;
use crate::ops::qk_norm::{QkNorm, QkNormGrads, qk_norm_backward, qk_norm_forward};
use crate::tensor::Tensor;

/// Width of the MLP of a block over that of the residual stream.
pub const MLP_RATIO: usize = 4;

/// Sizes and variants of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockConfig {
    /// Width C of the residual stream.
    pub(super) width: usize,
    /// Tokens of a sample, and heads.
    pub(super) heads: Heads,
    /// Normalises queries and keys of each head.
    pub(super) qk_norm: bool,
    /// Gives the layer norms weights of their own; else they are modulated.
    pub(super) affine: bool,
}

/// The layers of a block.
#[derive(Clone, Debug)]
pub(super) struct Block {
    width: usize,
    heads: Heads,
    /// Weight and bias of the layer norms; `None` where a table modulates them.
    norms: Option<[[ParamId; 2]; 2]>,
    qkv: Linear,
    /// Weight and bias of q's norm, then of k's.
    qk_norm: Option<[ParamId; 4]>,
    proj: Linear,
    fc1: Linear,
    fc2: Linear,
}

/// What the backward of a block needs beside its input.
#[derive(Debug)]
struct Inner<X: FloatX> {
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
    m2: Tensor<X>,
    a: Tensor<X>, // (N, 4·C)
    /// What the gates multiply, after attention and after the MLP.
    u: Option<[Tensor<X>; 2]>,
}

impl Block {
    /// Adds block `name` to the layout; an adaLN head is the caller's to add.
    pub(super) fn new(layout: &mut Layout, name: &str, config: BlockConfig) -> Self {
        let BlockConfig { width: c, heads, qk_norm, affine } = config;
        let (xavier, k) = (Init::XavierUniform, c / heads.heads.max(1));
        let norm = |layout: &mut Layout, part: &str, width: usize| {
            let weight = layout.add(format!("{name}.{part}.weight"), [width], Init::Ones);
            [weight, layout.add(format!("{name}.{part}.bias"), [width], Init::Zeros)]
        };
        let norm1 = affine.then(|| norm(layout, "norm1", c));
        let qk_norm = qk_norm.then(|| {
            let [qw, qb] = norm(layout, "attn.q_norm", k);
            let [kw, kb] = norm(layout, "attn.k_norm", k);
            [qw, qb, kw, kb]
        });
        let qkv = Linear::new(layout, &format!("{name}.attn.qkv"), c, 3 * c, xavier);
        let proj = Linear::new(layout, &format!("{name}.attn.proj"), c, c, xavier);
        let norms = norm1.map(|norm1| [norm1, norm(layout, "norm2", c)]);
        let fc1 = Linear::new(layout, &format!("{name}.mlp.fc1"), c, MLP_RATIO * c, xavier);
        let fc2 = Linear::new(layout, &format!("{name}.mlp.fc2"), MLP_RATIO * c, c, xavier);
        Self { width: c, heads, norms, qkv, qk_norm, proj, fc1, fc2 }
    }

    /// `h: (N, C)` → the next h and, for `Keep::All` and `Keep::Inputs`, what the backward needs. `table` is that of a block whose
    /// norms have no weights.
    fn forward<X: FloatX>(
        &self,
        params: &Params<X>,
        h: &Tensor<X>,
        table: Option<&Modulation<'_, X>>,
        keep: Keep,
    ) -> Result<(Tensor<X>, Option<Inner<X>>)> {
        let branch = if keep == Keep::All { Branch::Keep } else { Branch::Drop };
        let (m1, stats1) = layer_norm_forward(h, &self.layer_norm(params, table, Part::Attention), None)?;
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
        let (h, u1) = residual(&self.proj, params, &o, h, (table, Part::Attention), branch)?;
        let (m2, stats2) = layer_norm_forward(&h, &self.layer_norm(params, table, Part::Mlp), None)?;
        let (a, z) = self.fc1.forward(params, &m2, None, Activation::GeluTanh)?;
        let m2 = (keep == Keep::All).then_some(m2);
        let z = z.filter(|_| kept.is_some());
        let (next, u2) = residual(&self.fc2, params, &a, &h, (table, Part::Mlp), branch)?;
        let inner = match (kept, z) {
            (Some((qkv, raw)), Some(z)) => {
                let u = u1.zip(u2).map(|(u1, u2)| [u1, u2]);
                let params = m1.zip(m2).map(|(m1, m2)| ForParams { m1, m2, a, u });
                Some(Inner { stats1, qkv, raw, o, lse, h, stats2, z, params })
            }
            _ => None,
        };
        Ok((next, inner))
    }

    /// `dh: (N, C)` of the block's output → that of its input `h`. Gradients of parameters and of table k where they are taken.
    #[allow(clippy::too_many_arguments)] // the backward of a block: what came in, what was kept, what goes out
    fn backward<X: FloatX>(
        &self,
        params: &Params<X>,
        h: &Tensor<X>,
        kept: Inner<X>,
        table: Option<&Modulation<'_, X>>,
        dh: Tensor<X>,
        mut grads: Option<&mut Grads>,
        mut dtable: Option<(&mut TableGrads<X>, usize)>,
    ) -> Result<Tensor<X>> {
        let Inner { stats1, qkv, raw, o, lse, h: between, stats2, z, params: own } = kept;
        let (m1, m2a, u) = match own {
            Some(ForParams { m1, m2, a, u }) => (Some(m1), Some((m2, a)), u),
            None => (None, None, None),
        };
        let [u1, u2] = u.map_or([None, None], |u| u.map(Some));
        let dh = {
            let du = gate_backward(&dh, u2, table, Part::Mlp, &mut dtable)?;
            let du = du.as_ref().unwrap_or(&dh);
            if let (Some(grads), Some((_, a))) = (&mut grads, &m2a) {
                self.fc2.backward_params(grads, du, a)?;
            }
            let dz = self.fc2.backward_input(params, du, Some((Activation::GeluTanh, &z)))?;
            drop(z);
            if let (Some(grads), Some((m2, _))) = (&mut grads, &m2a) {
                self.fc1.backward_params(grads, &dz, m2)?;
            }
            drop(m2a);
            let dm = self.fc1.backward_input(params, &dz, None)?;
            drop(dz);
            let at = (&between, &stats2, Part::Mlp);
            self.norm_backward(params, &dm, at, table, &dh, grads.as_deref_mut(), &mut dtable)?
        };
        drop((between, stats2));
        let du = gate_backward(&dh, u1, table, Part::Attention, &mut dtable)?;
        let d_o = {
            let du = du.as_ref().unwrap_or(&dh);
            if let Some(grads) = &mut grads {
                self.proj.backward_params(grads, du, &o)?;
            }
            self.proj.backward_input(params, du, None)?
        };
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
        let at = (h, &stats1, Part::Attention);
        self.norm_backward(params, &dm, at, table, &dh, grads, &mut dtable)
    }

    /// Is the layer norm in front of a part.
    fn layer_norm<'m, X: FloatX>(
        &self,
        params: &'m Params<X>,
        table: Option<&Modulation<'m, X>>,
        part: Part,
    ) -> LayerNorm<'m, X> {
        let own = self.norms.map(|norms| norms[part as usize].map(|id| params.view(id)));
        let offset = |table: &Modulation<'m, X>| (*table, part.shift() * self.width);
        LayerNorm { affine: own.map(|[weight, bias]| (weight, bias)), modulation: table.map(offset) }
    }

    /// `dm` of the norm in front of a part, which took `h`, and `dh` of what h goes to beside it → the sum.
    #[allow(clippy::too_many_arguments)] // a backward: what came in, what was kept, where it is, what goes out
    fn norm_backward<X: FloatX>(
        &self,
        params: &Params<X>,
        dm: &Tensor<X>,
        (h, stats, part): (&Tensor<X>, &RowStats, Part),
        table: Option<&Modulation<'_, X>>,
        dh: &Tensor<X>,
        grads: Option<&mut Grads>,
        dtable: &mut Option<(&mut TableGrads<X>, usize)>,
    ) -> Result<Tensor<X>> {
        let modulation = dtable.as_mut().map(|(d, k)| d.head(*k));
        let affine = grads.zip(self.norms).map(|(grads, norms)| grads.views_mut(norms[part as usize]).into());
        let grads = LayerNormGrads { affine, modulation };
        layer_norm_backward(dm, h, stats, &self.layer_norm(params, table, part), Some(dh), grads)
    }

    fn norm<'p, X: FloatX>(&self, params: &'p Params<X>) -> Option<QkNorm<'p, X>> {
        let [qw, qb, kw, kb] = self.qk_norm?.map(|id| params.view(id));
        Some(QkNorm { q: (qw, qb), k: (kw, kb) })
    }
}

/// The blocks of a network, first to last.
#[derive(Clone, Debug)]
pub(super) struct Blocks(pub(super) Vec<Block>);

/// What the backward of one block needs.
#[derive(Debug)]
pub(super) struct BlockSaved<X: FloatX> {
    h: Tensor<X>,
    inner: Option<Inner<X>>,
}

impl Blocks {
    /// `h: (N, C)` → the last h, and what the backward needs; block k is modulated by head k of `tables`, if there are any.
    pub(super) fn forward<X: FloatX>(
        &self,
        params: &Params<X>,
        mut h: Tensor<X>,
        tables: Option<&Modulations<X>>,
        keep: Keep,
    ) -> Result<(Tensor<X>, Vec<BlockSaved<X>>)> {
        let mut saved = Vec::with_capacity(self.0.len());
        for (k, block) in self.0.iter().enumerate() {
            let table = tables.map(|tables| tables.head(k));
            let (next, inner) = block.forward(params, &h, table.as_ref(), keep)?;
            if keep != Keep::Nothing {
                saved.push(BlockSaved { h, inner });
            }
            h = next;
        }
        Ok((h, saved))
    }

    /// `dh: (N, C)` of the last h → that of the first. Blocks of which only the input was kept are computed again.
    pub(super) fn backward<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: Vec<BlockSaved<X>>,
        (tables, mut dtables): (Option<&Modulations<X>>, Option<&mut TableGrads<X>>),
        mut dh: Tensor<X>,
        mut grads: Option<&mut Grads>,
    ) -> Result<Tensor<X>> {
        let again = if grads.is_some() { Keep::All } else { Keep::Inputs };
        for (k, (block, kept)) in self.0.iter().zip(saved).enumerate().rev() {
            let table = tables.map(|tables| tables.head(k));
            let inner = match kept.inner {
                Some(inner) => Some(inner),
                None => block.forward(params, &kept.h, table.as_ref(), again)?.1,
            };
            let Some(inner) = inner else { continue };
            let dtable = dtables.as_deref_mut().map(|d| (d, k));
            dh = block.backward(params, &kept.h, inner, table.as_ref(), dh, grads.as_deref_mut(), dtable)?;
        }
        Ok(dh)
    }

    /// Returns the layers of all blocks.
    pub(super) fn layers(&self) -> impl Iterator<Item = &Linear> {
        self.0.iter().flat_map(|block| [&block.qkv, &block.proj, &block.fc1, &block.fc2])
    }
}

/// A half of a block, by the place of its norm.
#[derive(Clone, Copy)]
enum Part {
    Attention,
    Mlp,
}

impl Part {
    /// Returns the place of its shift among the six parts of a table row; its scale follows.
    fn shift(self) -> usize {
        3 * self as usize
    }

    /// Returns the place of its gate.
    fn gate(self) -> usize {
        3 * self as usize + 2
    }
}

/// `x` → `h + layer(x)`, or `h + gate·layer(x)` under a table, then with `layer(x)` where it is kept.
fn residual<X: FloatX>(
    layer: &Linear,
    params: &Params<X>,
    x: &Tensor<X>,
    h: &Tensor<X>,
    (table, part): (Option<&Modulation<'_, X>>, Part),
    branch: Branch,
) -> Result<(Tensor<X>, Option<Tensor<X>>)> {
    match table {
        Some(table) => layer.gated_forward(params, x, h, (table, part.gate() * h.rows_cols().1), branch),
        None => Ok((layer.forward(params, x, Some(h), Activation::Identity)?.0, None)),
    }
}

/// `dh` of `h + gate·u` → du, `None` without a gate; the gate has a gradient where u was kept.
fn gate_backward<X: FloatX>(
    dh: &Tensor<X>,
    u: Option<Tensor<X>>,
    table: Option<&Modulation<'_, X>>,
    part: Part,
    dtable: &mut Option<(&mut TableGrads<X>, usize)>,
) -> Result<Option<Tensor<X>>> {
    let Some(table) = table else { return Ok(None) };
    let c = dh.rows_cols().1;
    let dgate = u.as_ref().zip(dtable.as_mut()).map(|(u, (d, k))| (u, d.head(*k)));
    gated_residual_backward(dh, table, part.gate() * c, dgate).map(Some)
}

//! SimpleMLPAdaLN, the velocity network of the paper (FEATURES 1.7): residual MLP blocks under adaLN modulation.
//!
//! ```text
//! h = Win·x + bin
//! block: m = LN(h; gamma, beta)·(1 + scale) + shift;  h += gate·(W2·silu(W1·m + b1) + b2)
//!        (post-norm variant: h += LN(gate·(…); gamma', beta'))
//! final: out = Wo·(LN(h)·(1 + scale) + shift) + bo
//! ```
//! shift, scale and gate come from the modulation path. Parameter names are the reference's state-dict keys.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::nn::linear::Linear;
use crate::nn::modulation_path::{EMBEDDING, Form, ModulationPath, Modulations, NodeTables, TableGrads};
use crate::nn::params::{Grads, Init, Layout, ParamId, Params};
use crate::nn::sink::Sink;
use crate::ops::gated_residual::{gated_residual_backward, gated_residual_forward};
use crate::ops::layer_norm::{LayerNorm, LayerNormGrads, RowStats, layer_norm_backward, layer_norm_forward};
use crate::ops::linear::{Activation, Branch};
use crate::ops::modulation::Modulation;
use crate::tensor::Tensor;

/// Sizes and variants of the network.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlpConfig {
    /// Input and output width, D of the data.
    pub channels: usize,
    /// Width C of the residual stream.
    pub width: usize,
    /// Residual blocks.
    pub depth: usize,
    /// Width of the condition, 0 without one.
    pub cond: usize,
    /// Normalises the gated branch instead of leaving it as it is.
    pub post_norm: bool,
    /// Multiplies t before the embedding.
    pub time_scale: f32,
}

/// The network: layers and layout, without parameters.
#[derive(Clone, Debug)]
pub struct Mlp {
    config: MlpConfig,
    layout: Arc<Layout>,
    pub(super) path: ModulationPath,
    input: Linear,
    blocks: Vec<Block>,
    output: Linear,
}

#[derive(Clone, Debug)]
struct Block {
    in_ln: (ParamId, ParamId),
    mlp0: Linear,
    mlp2: Linear,
    post_norm: Option<(ParamId, ParamId)>,
}

/// What a forward keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: no backward follows.
    Nothing,
    /// What input gradients need: the network is frozen.
    Inputs,
    /// All activations.
    All,
    /// The input of each block; the backward computes the block again (`grad_checkpointing`).
    BlockInputs,
}

/// What the backward of one forward needs.
#[derive(Debug)]
pub struct Saved<X: FloatX> {
    x_t: Tensor<X>,
    blocks: Vec<BlockSaved<X>>,
    h: Tensor<X>,
    stats: RowStats,
    m: Option<Tensor<X>>,
    modulations: Modulations<X>,
}

#[derive(Debug)]
struct BlockSaved<X: FloatX> {
    h: Tensor<X>,
    inner: Option<BlockInner<X>>,
}

#[derive(Debug)]
struct BlockInner<X: FloatX> {
    stats: RowStats,
    z: Tensor<X>,
    /// m, silu(z) and the branch output u: only parameter gradients need them.
    params: Option<(Tensor<X>, Tensor<X>, Tensor<X>)>,
    post: Option<(Tensor<X>, RowStats)>,
}

/// A forward up to the head, the last linear layer.
#[derive(Debug)]
pub struct ToHead<X: FloatX> {
    /// What the head takes, (N, C).
    pub m: Tensor<X>,
    saved: Option<Saved<X>>,
    keeps_m: bool,
}

impl<X: FloatX> ToHead<X> {
    /// Returns what the backward needs, if anything was kept.
    pub fn into_saved(self) -> Option<Saved<X>> {
        let m = self.keeps_m.then_some(self.m);
        self.saved.map(|saved| Saved { m, ..saved })
    }
}

impl Mlp {
    /// Lays the network out.
    ///
    /// # Errors
    /// A size of zero, or a time scale that is not a positive number.
    pub fn new(config: MlpConfig) -> Result<Self> {
        for (arg, size) in [("channels", config.channels), ("width", config.width), ("depth", config.depth)] {
            if size == 0 {
                return Err(Error::argument("Mlp::new", arg, "at least 1", "0"));
            }
        }
        if !(config.time_scale > 0.0 && config.time_scale.is_finite()) {
            return Err(Error::argument("Mlp::new", "time_scale", "a positive number", config.time_scale));
        }
        let (c, xavier) = (config.width, Init::XavierUniform);
        let mut layout = Layout::default();
        let l = &mut layout;
        let time1 = Linear::new(l, "time_embed.mlp.0", EMBEDDING, c, Init::Normal(0.02));
        let time2 = Linear::new(l, "time_embed.mlp.2", c, c, Init::Normal(0.02));
        let cond = (config.cond > 0).then(|| Linear::new(l, "cond_embed", config.cond, c, xavier));
        let input = Linear::new(l, "input_proj", config.channels, c, xavier);
        let mut heads = Vec::new();
        let mut blocks = Vec::new();
        for i in 0..config.depth {
            let name = format!("res_blocks.{i}");
            let in_ln = norm(l, &format!("{name}.in_ln"), c);
            let mlp0 = Linear::new(l, &format!("{name}.mlp.0"), c, c, xavier);
            let mlp2 = Linear::new(l, &format!("{name}.mlp.2"), c, c, xavier);
            heads.push(Linear::new(l, &format!("{name}.adaLN_modulation.1"), c, 3 * c, Init::Zeros));
            let post_norm = config.post_norm.then(|| norm(l, &format!("{name}.post_norm"), c));
            blocks.push(Block { in_ln, mlp0, mlp2, post_norm });
        }
        heads.push(Linear::new(l, "final_layer.adaLN_modulation.1", c, 2 * c, Init::Zeros));
        let output = Linear::new(l, "final_layer.linear", c, config.channels, Init::Zeros);
        let path = ModulationPath { time1, time2, cond, heads, time_scale: config.time_scale };
        Ok(Self { config, layout: Arc::new(layout), path, input, blocks, output })
    }

    /// Returns the sizes.
    pub fn config(&self) -> &MlpConfig {
        &self.config
    }

    /// Returns the parameters' names, shapes and places.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Returns freshly initialised parameters: the output is exactly 0 until the head has learned.
    pub fn init<X: FloatX>(&self, device: &Device, seed: u64) -> Result<Params<X>> {
        Params::init(device, self.layout.clone(), seed)
    }

    /// Returns the form that serves this network best: nodes where t alone decides, else a row each.
    pub fn default_form(&self) -> Form {
        if self.config.cond == 0 && self.config.time_scale <= 4.0 { Form::Nodes(16) } else { Form::Direct }
    }

    /// Checks that the network can be evaluated in `form` on `rows` rows.
    ///
    /// # Errors
    /// `nodes` of a conditional network, or groups that do not divide the rows.
    pub fn check_form(&self, form: Form, rows: usize) -> Result<()> {
        let refused = |why: String| Err(Error::Usage(format!("modulation `{form}`: {why}")));
        match form {
            Form::Nodes(_) if self.config.cond > 0 => refused(
                "the network is conditional, so modulation is no function of t alone; use `direct`".into(),
            ),
            Form::Groups(_) if self.config.cond > 0 => {
                refused("rows of one group would share a condition; use `direct`".into())
            }
            Form::Groups(g) if !rows.is_multiple_of(g) => {
                refused(format!("{g} groups do not divide {rows} rows"))
            }
            _ => Ok(()),
        }
    }

    /// Evaluates the modulation path. `t: (N / share)`: each time serves `share` consecutive rows; `cond: (N, z)`.
    ///
    /// # Errors
    /// A condition that is missing, not wanted, or of the wrong shape; a form that does not fit.
    pub fn modulations<X: FloatX>(
        &self,
        params: &Params<X>,
        form: Form,
        t: &Tensor<f32>,
        share: usize,
        cond: Option<Tensor<X>>,
    ) -> Result<Modulations<X>> {
        match (&cond, self.config.cond) {
            (None, 0) => {}
            (Some(cond), z) if z > 0 => cond.expect("modulations", "cond", [t.len(), z])?,
            (None, z) => {
                return Err(Error::argument(
                    "modulations",
                    "cond",
                    format!("a condition of width {z}"),
                    "none",
                ));
            }
            (Some(_), _) => {
                return Err(Error::argument(
                    "modulations",
                    "cond",
                    "none (the network takes no condition)",
                    "one",
                ));
            }
        }
        self.check_form(form, t.len() * share)?;
        match form {
            Form::Nodes(r) if share == 1 => self.path.by_nodes(params, t, r),
            _ => self.path.by_rows(params, t, share, cond),
        }
    }

    /// Evaluates the tables of a frozen network at r nodes, once for all steps.
    pub fn node_tables<X: FloatX>(&self, params: &Params<X>, r: usize) -> Result<NodeTables> {
        self.path.node_tables(params, r)
    }

    /// Interpolates the tables of a frozen network for each of the `t: (N)`.
    pub fn modulations_from<X: FloatX>(
        &self,
        tables: &NodeTables,
        t: &Tensor<f32>,
    ) -> Result<Modulations<X>> {
        ModulationPath::from_tables(tables, t)
    }

    /// Bounds the error of interpolation at r nodes, relative to the range of the tables.
    pub fn node_error<X: FloatX>(&self, params: &Params<X>, r: usize) -> Result<f64> {
        self.path.node_error(params, r)
    }

    /// `x_t: (N, D)` → `v: (N, D)`.
    ///
    /// # Errors
    /// A width that is not the network's, or modulations for another number of rows.
    pub fn forward<X: FloatX>(
        &self,
        params: &Params<X>,
        x_t: Tensor<X>,
        modulations: Modulations<X>,
        keep: Keep,
    ) -> Result<(Tensor<X>, Option<Saved<X>>)> {
        let to_head = self.forward_to_head(params, x_t, modulations, keep)?;
        let (v, _) = self.output.forward(params, &to_head.m, None, Activation::Identity)?;
        Ok((v, to_head.into_saved()))
    }

    /// Returns the layers that every row goes through.
    pub(super) fn row_layers(&self) -> impl Iterator<Item = &Linear> {
        let blocks = self.blocks.iter().flat_map(|block| [&block.mlp0, &block.mlp2]);
        blocks.chain([&self.input, &self.output])
    }

    /// Returns the last layer, whose output is v.
    pub fn head(&self) -> &Linear {
        &self.output
    }

    /// `x_t: (N, D)` → what the head takes: v, or the loss where that is all that is wanted of v, is the head's.
    ///
    /// # Errors
    /// See [`Mlp::forward`].
    pub fn forward_to_head<X: FloatX>(
        &self,
        params: &Params<X>,
        x_t: Tensor<X>,
        modulations: Modulations<X>,
        keep: Keep,
    ) -> Result<ToHead<X>> {
        let n = x_t.rows_cols().0;
        x_t.expect("Mlp::forward", "x_t", [n, self.config.channels])?;
        let (mut h, _) = self.input.forward(params, &x_t, None, Activation::Identity)?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (k, block) in self.blocks.iter().enumerate() {
            let (next, inner) = block.forward(params, &h, &modulations.head(k), keep)?;
            if keep != Keep::Nothing {
                blocks.push(BlockSaved { h, inner });
            }
            h = next;
        }
        let (m, stats) = layer_norm_forward(&h, &self.final_norm(&modulations), None)?;
        let saved = (keep != Keep::Nothing).then_some(Saved { x_t, blocks, h, stats, m: None, modulations });
        Ok(ToHead { m, saved, keeps_m: matches!(keep, Keep::All | Keep::BlockInputs) })
    }

    /// `dv: (N, D)` → `dx_t: (N, D)`, and the parameter gradients where `grads` takes them.
    ///
    /// # Errors
    /// Parameter gradients wanted of a forward that kept only what input gradients need.
    pub fn backward<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: Saved<X>,
        dv: &Tensor<X>,
        mut grads: Option<&mut Grads>,
    ) -> Result<Tensor<X>> {
        let mut sink = grads.as_deref_mut().map_or(Sink::Nowhere, Sink::Sums);
        let (dx, modulations, dtables) = self.backward_rows(params, saved, dv, &mut sink)?;
        if let (Some(grads), Some(dtables)) = (grads, dtables) {
            self.path.backward(params, modulations, dtables, grads)?;
        }
        Ok(dx)
    }

    /// Does the same but for the modulation path, whose gradients it returns with what they need.
    #[allow(clippy::type_complexity)] // what the backward of the path takes
    pub(super) fn backward_rows<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: Saved<X>,
        dv: &Tensor<X>,
        sink: &mut Sink<'_, X>,
    ) -> Result<(Tensor<X>, Modulations<X>, Option<TableGrads<X>>)> {
        if sink.is_open() && saved.m.is_none() {
            return Err(Error::argument(
                "Mlp::backward",
                "saved",
                "all activations",
                "those for input gradients only",
            ));
        }
        let modulations = saved.modulations;
        let mut dtables = sink.is_open().then(|| modulations.gradients());
        let last = self.blocks.len();
        let dm = self.output.backward_input(params, dv, None)?;
        if let Some(m) = saved.m {
            sink.output(&self.output, dv, m)?;
        }
        let norm = self.final_norm(&modulations);
        let norm_grads = LayerNormGrads { affine: None, modulation: dtables.as_mut().map(|d| d.head(last)) };
        let mut dh = layer_norm_backward(&dm, &saved.h, &saved.stats, &norm, None, norm_grads)?;
        drop((dm, saved.h));
        for (k, (block, kept)) in self.blocks.iter().zip(saved.blocks).enumerate().rev() {
            let table = modulations.head(k);
            let inner = match kept.inner {
                Some(inner) => Some(inner),
                None => {
                    let keep = if sink.is_open() { Keep::All } else { Keep::Inputs };
                    block.forward(params, &kept.h, &table, keep)?.1
                }
            };
            let Some(inner) = inner else { continue };
            let dtable = dtables.as_mut().map(|d| (d, k));
            dh = block.backward(params, &kept.h, inner, &table, dh, sink, dtable)?;
        }
        let dx = self.input.backward_input(params, &dh, None)?;
        sink.linear(&self.input, dh, saved.x_t)?;
        Ok((dx, modulations, dtables))
    }

    fn final_norm<'m, X: FloatX>(&self, modulations: &'m Modulations<X>) -> LayerNorm<'m, X> {
        LayerNorm { affine: None, modulation: Some((modulations.head(self.blocks.len()), 0)) }
    }
}

fn norm(layout: &mut Layout, name: &str, width: usize) -> (ParamId, ParamId) {
    let gamma = layout.add(format!("{name}.weight"), [width], Init::Ones);
    (gamma, layout.add(format!("{name}.bias"), [width], Init::Zeros))
}

impl Block {
    /// `h: (N, C)` → the next h and, unless nothing or only inputs are kept, what the backward needs.
    fn forward<X: FloatX>(
        &self,
        params: &Params<X>,
        h: &Tensor<X>,
        table: &Modulation<'_, X>,
        keep: Keep,
    ) -> Result<(Tensor<X>, Option<BlockInner<X>>)> {
        let c = h.rows_cols().1;
        let (m, stats) = layer_norm_forward(h, &self.in_norm(params, table), None)?;
        let (a, z) = self.mlp0.forward(params, &m, None, Activation::Silu)?;
        let (next, u, post) = match self.post_norm {
            None => {
                let branch = if keep == Keep::All { Branch::Keep } else { Branch::Drop };
                let (next, u) = self.mlp2.gated_forward(params, &a, h, (table, 2 * c), branch)?;
                (next, u, None)
            }
            Some(ids) => {
                let (u, _) = self.mlp2.forward(params, &a, None, Activation::Identity)?;
                let gated = gated_residual_forward(&u, None, table, 2 * c)?;
                let (next, stats) = layer_norm_forward(&gated, &affine(params, ids), Some(h))?;
                (next, Some(u), Some((gated, stats)))
            }
        };
        let inner = match (keep, z) {
            (Keep::All, Some(z)) => Some(BlockInner { stats, z, params: u.map(|u| (m, a, u)), post }),
            (Keep::Inputs, Some(z)) => Some(BlockInner { stats, z, params: None, post }),
            _ => None,
        };
        Ok((next, inner))
    }

    #[allow(clippy::too_many_arguments)] // the backward of a block: what came in, what was kept, what goes out
    fn backward<X: FloatX>(
        &self,
        params: &Params<X>,
        h: &Tensor<X>,
        kept: BlockInner<X>,
        table: &Modulation<'_, X>,
        dh: Tensor<X>,
        sink: &mut Sink<'_, X>,
        mut dtable: Option<(&mut TableGrads<X>, usize)>,
    ) -> Result<Tensor<X>> {
        let c = h.rows_cols().1;
        let (inputs, u) = kept.params.map_or((None, None), |(m, a, u)| (Some((m, a)), Some(u)));
        let dgated = match (self.post_norm, &kept.post) {
            (Some(ids), Some((gated, stats))) => {
                let norm_grads = LayerNormGrads { affine: sink.norm(ids, h), modulation: None };
                Some(layer_norm_backward(&dh, gated, stats, &affine(params, ids), None, norm_grads)?)
            }
            _ => None,
        };
        let dbranch = dgated.as_ref().unwrap_or(&dh);
        let dgate = u.as_ref().zip(dtable.as_mut()).map(|(u, (d, k))| (u, d.head(*k)));
        let du = gated_residual_backward(dbranch, table, 2 * c, dgate)?;
        drop((u, dgated));
        let dz = self.mlp2.backward_input(params, &du, Some((Activation::Silu, &kept.z)))?;
        let dm = match inputs {
            Some((m, a)) => {
                sink.linear(&self.mlp2, du, a)?;
                let dm = self.mlp0.backward_input(params, &dz, None)?;
                sink.linear(&self.mlp0, dz, m)?;
                dm
            }
            None => self.mlp0.backward_input(params, &dz, None)?,
        };
        let norm_grads = LayerNormGrads {
            affine: sink.norm(self.in_ln, h),
            modulation: dtable.as_mut().map(|(d, k)| d.head(*k)),
        };
        layer_norm_backward(&dm, h, &kept.stats, &self.in_norm(params, table), Some(&dh), norm_grads)
    }

    fn in_norm<'a, X: FloatX>(&self, params: &'a Params<X>, table: &Modulation<'a, X>) -> LayerNorm<'a, X> {
        LayerNorm { modulation: Some((*table, 0)), ..affine(params, self.in_ln) }
    }
}

fn affine<X: FloatX>(params: &Params<X>, ids: (ParamId, ParamId)) -> LayerNorm<'_, X> {
    LayerNorm { affine: Some((params.view(ids.0), params.view(ids.1))), modulation: None }
}

//! DiT, the transformer velocity network of DiT, SiT and latent flow matching (FEATURES 1.8).
//!
//! ```text
//! h = patches·Wxᵀ + bx + position            one token for each patch, row by row
//! c = time embedding(t) (+ row of the label table), one for each sample: the modulation path
//! blocks (see `nn::block`)
//! v = unpatchify(Wo·(LN(h)·(1 + scale) + shift) + bo)
//! ```
//! A row of data is a sample, (C, H, W) or (tokens, channels); blocks see N·T rows. Parameter names are the reference's
//! state-dict keys. Position embeddings are fixed, and no parameters.

mod config;
mod rescaler;
mod state;

use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::nn::Keep;
use crate::nn::block::{Block, BlockConfig, BlockSaved, Blocks};
pub use crate::nn::dit::config::{DitConfig, DitInput, Size};
use crate::nn::dit::rescaler::Rescaler;
pub use crate::nn::dit::state::{POSITION, SIZES};
use crate::nn::linear::Linear;
use crate::nn::modulation_path::{Conditioner, EMBEDDING, Form, Given, ModulationPath, Modulations};
use crate::nn::params::{Grads, Init, Layout, Params};
use crate::nn::position;
use crate::ops::attention::Heads;
use crate::ops::embedding::{LabelDrop, Labels, add_rows};
use crate::ops::flow_path::Rows;
use crate::ops::layer_norm::{LayerNorm, LayerNormGrads, RowStats, layer_norm_backward, layer_norm_forward};
use crate::ops::linear::Activation;
use crate::ops::patchify::{
    Beside, Channels, Patches, patchify_backward_of, patchify_beside, unpatchify, unpatchify_backward,
};
use crate::tensor::Tensor;

/// The network: layers and layout, without parameters.
#[derive(Clone, Debug)]
pub struct Dit {
    config: DitConfig,
    layout: Arc<Layout>,
    path: ModulationPath,
    rescaler: Option<Rescaler>,
    embed: Linear,
    /// (T, C).
    position: Arc<Vec<f32>>,
    blocks: Blocks,
    output: Linear,
}

/// What the backward of one forward needs.
#[derive(Debug)]
pub struct Saved<X: FloatX> {
    /// (N·H·W, K): of the map that the rescaler took.
    map: Option<Tensor<X>>,
    tokens: Tensor<X>, // (N·T, inputs of a token)
    blocks: Vec<BlockSaved<X>>,
    h: Tensor<X>, // (N·T, C)
    stats: RowStats,
    m: Option<Tensor<X>>,
    modulations: Modulations<X>,
}

impl Dit {
    /// Lays the network out.
    ///
    /// # Errors
    /// Sizes that do not fit together: see [`DitConfig::check`].
    pub fn new(config: DitConfig) -> Result<Self> {
        config.check()?;
        let (c, xavier, inputs) = (config.width, Init::XavierUniform, config.token_inputs());
        let mut layout = Layout::default();
        let l = &mut layout;
        let rescaler = (config.cond_rescale > 0)
            .then(|| Rescaler::new(l, config.cond_channels, config.cond_rescale, config.input.patches()));
        let (embed, position) = match config.input {
            DitInput::Image { channels, height, width, patch } => (
                Linear::patches(l, "x_embedder.proj", [channels + config.beside(), patch], c, xavier),
                position::grid(height / patch, width / patch, c),
            ),
            DitInput::Tokens { tokens, .. } => {
                (Linear::new(l, "x_embedder", inputs, c, xavier), position::sequence(tokens, c))
            }
        };
        let time1 = Linear::new(l, "t_embedder.mlp.0", EMBEDDING, c, Init::Normal(0.02));
        let time2 = Linear::new(l, "t_embedder.mlp.2", c, c, Init::Normal(0.02));
        let condition = match config.label_rows() {
            0 => Conditioner::Nothing,
            rows => {
                let name = "y_embedder.embedding_table.weight";
                Conditioner::Labels(l.add(name, [rows, c], Init::Normal(0.02)))
            }
        };
        let (mut heads, mut blocks) = (Vec::new(), Vec::new());
        for i in 0..config.depth {
            let name = format!("blocks.{i}");
            let own = Heads { tokens: config.tokens(), heads: config.heads };
            let sizes = BlockConfig { width: c, heads: own, qk_norm: config.qk_norm, affine: false };
            blocks.push(Block::new(l, &name, sizes));
            heads.push(Linear::new(l, &format!("{name}.adaLN_modulation.1"), c, 6 * c, Init::Zeros));
        }
        heads.push(Linear::new(l, "final_layer.adaLN_modulation.1", c, 2 * c, Init::Zeros));
        let output = Linear::new(l, "final_layer.linear", c, config.token_outputs(), Init::Zeros);
        let path = ModulationPath { time1, time2, condition, heads, time_scale: config.time_scale };
        let (layout, position, blocks) = (Arc::new(layout), Arc::new(position), Blocks(blocks));
        Ok(Self { config, layout, path, rescaler, embed, position, blocks, output })
    }

    /// Returns the sizes.
    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    /// Returns the parameters' names, shapes and places.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Returns the layers that every token goes through.
    pub(super) fn row_layers(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.layers().chain([&self.embed, &self.output])
    }

    /// Returns the position embedding, (T, C).
    pub fn position(&self) -> &[f32] {
        &self.position
    }

    /// Returns freshly initialised parameters: the output is exactly 0 until the head has learned.
    pub fn init<X: FloatX>(&self, device: &Device, seed: u64) -> Result<Params<X>> {
        Params::init(device, self.layout.clone(), seed)
    }

    /// Checks that the network can be evaluated in `form` on `rows` samples.
    ///
    /// # Errors
    /// `nodes`, groups of a network with labels, or groups that do not divide the samples.
    pub fn check_form(&self, form: Form, rows: usize) -> Result<()> {
        let refused = |why: String| Err(Error::Usage(format!("modulation `{form}`: {why}")));
        match form {
            Form::Nodes(_) => {
                refused("a DiT evaluates its modulation once a sample, not once a row; use `direct`".into())
            }
            Form::Groups(_) if self.config.classes > 0 => {
                refused("samples of one group would share a label; use `direct`".into())
            }
            Form::Groups(g) if !rows.is_multiple_of(g) => {
                refused(format!("{g} groups do not divide {rows} samples"))
            }
            _ => Ok(()),
        }
    }

    /// Evaluates the modulation path. `t: (N / share)`, a time for so many consecutive rows of `rows`; labels are dropped as asked.
    ///
    /// # Errors
    /// Labels that are missing, not wanted, or too few or many; a form that does not fit.
    pub fn modulations<X: FloatX>(
        &self,
        params: &Params<X>,
        form: Form,
        t: &Tensor<f32>,
        rows: Rows,
        labels: Option<(&Labels, Option<LabelDrop>)>,
    ) -> Result<Modulations<X>> {
        let refused =
            |expected: String, found: String| Err(Error::argument("modulations", "labels", expected, found));
        let given = match (labels, self.config.classes) {
            (None, 0) => Given::Nothing,
            (Some((labels, drop)), classes) if classes > 0 && labels.classes() == classes => {
                Given::Labels(labels, rows, drop)
            }
            (None, classes) => {
                return refused(format!("one of {classes} classes for each sample"), "none".into());
            }
            (Some((labels, _)), classes) => {
                return refused(
                    format!("those of {classes} classes"),
                    format!("those of {}", labels.classes()),
                );
            }
        };
        self.check_form(form, rows.len())?;
        t.expect("modulations", "t", [rows.times()])?;
        self.path.by_rows(params, t, rows.share * self.config.tokens(), given)
    }

    /// `x_t: (N, D)`, `image: (N, channels·H·W)` → what the head takes, (N·T, C), and what the backward needs, apart from that.
    ///
    /// # Errors
    /// A width that is not the network's, or modulations for another number of rows.
    pub(super) fn forward_to_head<X: FloatX>(
        &self,
        params: &Params<X>,
        x_t: Tensor<X>,
        image: Option<&Tensor<X>>,
        modulations: Modulations<X>,
        keep: Keep,
    ) -> Result<(Tensor<X>, Option<Saved<X>>)> {
        let (tokens, map) = self.tokens_of(params, x_t, image)?;
        let (mut h, _) = self.embed.forward(params, &tokens, None, Activation::Identity)?;
        add_rows(&mut h, self.position_on(params.flat().device())?.view())?;
        let (h, blocks) = self.blocks.forward(params, h, Some(&modulations), keep)?;
        let (m, stats) = layer_norm_forward(&h, &self.final_norm(&modulations), None)?;
        let saved =
            (keep != Keep::Nothing).then_some(Saved { map, tokens, blocks, h, stats, m: None, modulations });
        Ok((m, saved))
    }

    /// `m: (N·T, C)`, what the head takes → `v: (N, D)`.
    pub(super) fn head<X: FloatX>(&self, params: &Params<X>, m: &Tensor<X>) -> Result<Tensor<X>> {
        let (y, _) = self.output.forward(params, m, None, Activation::Identity)?;
        let input = self.config.input;
        self.as_samples(unpatchify(&y, input.patches(), self.config.out_channels())?)
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
        if grads.is_some() && saved.m.is_none() {
            let expected = "all activations";
            let found = "those for input gradients only";
            return Err(Error::argument("Dit::backward", "saved", expected, found));
        }
        let modulations = saved.modulations;
        let mut dtables = grads.is_some().then(|| modulations.gradients());
        let dy = self.head_backward(dv)?;
        let dm = self.output.backward_input(params, &dy, None)?;
        if let (Some(grads), Some(m)) = (&mut grads, &saved.m) {
            self.output.backward_params(grads, &dy, m)?;
        }
        drop(dy);
        let norm = self.final_norm(&modulations);
        let last = self.blocks.0.len();
        let norm_grads = LayerNormGrads { affine: None, modulation: dtables.as_mut().map(|d| d.head(last)) };
        let dh = layer_norm_backward(&dm, &saved.h, &saved.stats, &norm, None, norm_grads)?;
        drop((dm, saved.h, saved.m));
        let tables = (Some(&modulations), dtables.as_mut());
        let dh = self.blocks.backward(params, saved.blocks, tables, dh, grads.as_deref_mut())?;
        if let Some(grads) = &mut grads {
            self.embed.backward_params(grads, &dh, &saved.tokens)?;
        }
        let dtokens = self.embed.backward_input(params, &dh, None)?;
        let patches = self.config.input.patches();
        let at = Channels { first: 0, of: patches.channels + self.config.beside() };
        if let (Some(rescaler), Some(map), Some(grads)) = (&self.rescaler, &saved.map, &mut grads) {
            let own = Patches { channels: self.config.cond_rescale, ..patches };
            let beside = Channels { first: patches.channels, ..at };
            rescaler.backward(grads, &patchify_backward_of(&dtokens, beside, own)?, map)?;
        }
        if let (Some(grads), Some(dtables)) = (grads, dtables) {
            self.path.backward(params, modulations, dtables, grads)?;
        }
        self.as_samples(patchify_backward_of(&dtokens, at, patches)?)
    }

    /// Returns the tokens, and the pixels of a map that was rescaled.
    fn tokens_of<X: FloatX>(
        &self,
        params: &Params<X>,
        x_t: Tensor<X>,
        image: Option<&Tensor<X>>,
    ) -> Result<(Tensor<X>, Option<Tensor<X>>)> {
        const OP: &str = "Dit::forward";
        let n = x_t.rows_cols().0;
        x_t.expect(OP, "x_t", [n, self.config.input.data_width()])?;
        match (image, self.config.cond_channels) {
            (Some(_), 0) => return Err(Error::argument(OP, "image", "none (no channels are for it)", "one")),
            (None, channels) if channels > 0 => {
                return Err(Error::argument(OP, "image", format!("one of {channels} channels"), "none"));
            }
            _ => {}
        }
        match self.config.input {
            DitInput::Image { .. } => {
                let rescaled = match (&self.rescaler, image) {
                    (Some(rescaler), Some(map)) => Some(rescaler.forward(params, map)?),
                    _ => None,
                };
                let image = rescaled.as_ref().map(|(rescaled, _)| rescaled).or(image);
                let beside = image.map(|image| Beside { image, channels: self.config.beside() });
                let tokens = patchify_beside(&x_t, beside, self.config.input.patches())?;
                Ok((tokens, rescaled.map(|(_, pixels)| pixels)))
            }
            DitInput::Tokens { tokens, channels } => Ok((x_t.reshaped([n * tokens, channels])?, None)),
        }
    }

    /// `dv: (N, D)` → that of the head's output, (N·T, outputs of a token).
    fn head_backward<X: FloatX>(&self, dv: &Tensor<X>) -> Result<Tensor<X>> {
        let (n, input) = (dv.rows_cols().0, self.config.input);
        dv.expect("Dit::backward", "dv", [n, input.data_width()])?;
        let (patches, out) = (input.patches(), self.config.out_channels());
        match input.pictures() {
            1 => unpatchify_backward(dv, patches, out),
            more => {
                let pixels = dv.duplicate()?.reshaped([n * more, input.channels()])?;
                unpatchify_backward(&pixels, patches, out)
            }
        }
    }

    /// Joins what are several pictures of one sample to a row.
    fn as_samples<X: FloatX>(&self, x: Tensor<X>) -> Result<Tensor<X>> {
        let rows = x.rows_cols().0 / self.config.input.pictures();
        x.reshaped([rows, self.config.input.data_width()])
    }

    fn position_on<X: FloatX>(&self, device: &Device) -> Result<Tensor<X>> {
        let values: Vec<X> = self.position.iter().map(|x| X::from_f32(*x)).collect();
        Tensor::constant(device, [self.config.tokens(), self.config.width], &values)
    }

    fn final_norm<'m, X: FloatX>(&self, modulations: &'m Modulations<X>) -> LayerNorm<'m, X> {
        LayerNorm { affine: None, modulation: Some((modulations.head(self.blocks.0.len()), 0)) }
    }
}

impl<X: FloatX> Saved<X> {
    /// Adds what the head took, for its gradient.
    pub(super) fn with_head_input(self, m: Tensor<X>) -> Self {
        Self { m: Some(m), ..self }
    }
}

//! A vision transformer as an autoencoder: latent tokens beside the patches (FEATURES 1.6; the reference's tokenizer).
//!
//! ```text
//! encoder   h = [patches·Wxᵀ + bx + position | latent_tokens]      T rows and L rows a sample
//!           h = blocks(h);  y = LN(h of the L)·Wlᵀ + bl            (B·L, D)
//! decoder   h = [mask_token + position | y·Wyᵀ + by + latent_position]
//!           h = blocks(h);  x̂ = unpatchify(LN(h of the T)·Wpᵀ + bp)
//! ```
//! Blocks are pre-norm, with weights in the layer norms (`nn::block`). Positions of patches are the fixed sines and cosines of a
//! DiT; latent tokens, their positions in the decoder and the mask token are learned. GELU in its tanh form.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::nn::Keep;
use crate::nn::block::{Block, BlockConfig, BlockSaved, Blocks};
use crate::nn::linear::Linear;
use crate::nn::params::{Grads, Init, Layout, ParamId, Params};
use crate::nn::position;
use crate::ops::attention::Heads;
use crate::ops::embedding::add_rows;
use crate::ops::grad_norm::grad_norm;
use crate::ops::layer_norm::{LayerNorm, LayerNormGrads, RowStats, layer_norm_backward, layer_norm_forward};
use crate::ops::linear::{Activation, linear_backward_weight};
use crate::ops::patchify::{Patches, patchify, unpatchify, unpatchify_backward};
use crate::ops::tokens::{Part, Span, join_tokens, put_tokens, sum_tokens, take_tokens};
use crate::tensor::Tensor;

/// Sizes of encoder and decoder, each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VitConfig {
    /// Channels, height and width of an image.
    pub image: [usize; 3],
    /// Side of a patch.
    pub patch: usize,
    /// Width C of the residual stream.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
}

/// Encoder and decoder.
#[derive(Clone, Debug)]
pub(super) struct Vit {
    config: VitConfig,
    latents: usize,
    /// (T, C).
    position: Arc<Vec<f32>>,
    encoder: Half,
    latent_tokens: ParamId,
    decoder: Half,
    latent_position: ParamId,
    mask_token: ParamId,
}

/// What encoder and decoder have alike: `input` makes tokens of what comes in, `output` what goes out.
#[derive(Clone, Debug)]
struct Half {
    input: Linear,
    blocks: Blocks,
    norm: [ParamId; 2],
    output: Linear,
}

/// What the backward of a half needs.
#[derive(Debug)]
pub(super) struct VitSaved<X: FloatX> {
    /// What `input` took.
    tokens: Tensor<X>,
    blocks: Vec<BlockSaved<X>>,
    /// Of the tokens that go out: before their norm, its statistics, and after it.
    h: Tensor<X>,
    stats: RowStats,
    m: Tensor<X>,
}

impl VitConfig {
    /// Returns how images are cut.
    pub fn patches(&self) -> Patches {
        let [channels, height, width] = self.image;
        Patches { channels, height, width, patch: self.patch }
    }

    /// Checks sizes against each other.
    ///
    /// # Errors
    /// A size of zero; a side that the patch does not divide; heads that do not cut the width into even parts.
    pub fn check(&self) -> Result<()> {
        let refuse = |arg, expected: String, found: String| {
            Err(Error::argument("a vision transformer", arg, expected, found))
        };
        let sizes = [("width", self.width), ("depth", self.depth), ("heads", self.heads)];
        if let Some((arg, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return refuse(arg, "at least 1".into(), "0".into());
        }
        self.patches().check("a vision transformer", self.image[0])?;
        if !self.width.is_multiple_of(4) {
            let expected = "a multiple of 4, for the position embedding".into();
            return refuse("width", expected, self.width.to_string());
        }
        if !self.width.is_multiple_of(2 * self.heads) {
            let expected = format!("heads of an even width (width {} / heads)", self.width);
            return refuse("heads", expected, format!("{} heads", self.heads));
        }
        Ok(())
    }
}

impl Vit {
    /// Adds both halves to the layout, for `latents` latents of width `latent`.
    pub(super) fn new(layout: &mut Layout, config: VitConfig, latents: usize, latent: usize) -> Result<Self> {
        config.check()?;
        let (c, patches, xavier) = (config.width, config.patches(), Init::XavierUniform);
        let (tokens, small) = (patches.tokens(), Init::Normal(0.02));
        let blocks = |layout: &mut Layout, name: &str| {
            let heads = Heads { tokens: tokens + latents, heads: config.heads };
            let sizes = BlockConfig { width: c, heads, qk_norm: false, affine: true };
            let all = (0..config.depth).map(|i| Block::new(layout, &format!("{name}.blocks.{i}"), sizes));
            let blocks = Blocks(all.collect());
            let weight = layout.add(format!("{name}.norm.weight"), [c], Init::Ones);
            (blocks, [weight, layout.add(format!("{name}.norm.bias"), [c], Init::Zeros)])
        };
        let input =
            Linear::patches(layout, "encoder.patch_embed.proj", [patches.channels, patches.patch], c, xavier);
        let latent_tokens = layout.add("encoder.latent_tokens", [latents, c], small);
        let (of_encoder, norm) = blocks(layout, "encoder");
        let output = Linear::new(layout, "encoder.to_latent", c, latent, xavier);
        let encoder = Half { input, blocks: of_encoder, norm, output };
        let input = Linear::new(layout, "decoder.from_latent", latent, c, xavier);
        let latent_position = layout.add("decoder.latent_position", [latents, c], small);
        let mask_token = layout.add("decoder.mask_token", [1, c], small);
        let (of_decoder, norm) = blocks(layout, "decoder");
        let output = Linear::new(layout, "decoder.to_pixels", c, patches.columns(), xavier);
        let decoder = Half { input, blocks: of_decoder, norm, output };
        let side = |pixels: usize| pixels / config.patch;
        let position = Arc::new(position::grid(side(patches.height), side(patches.width), c));
        Ok(Self { config, latents, position, encoder, latent_tokens, decoder, latent_position, mask_token })
    }

    /// `x: (B, C·H·W)` → `y: (B·L, D)`.
    pub(super) fn encode<X: FloatX>(
        &self,
        params: &Params<X>,
        x: &Tensor<X>,
        keep: Keep,
    ) -> Result<(Tensor<X>, VitSaved<X>)> {
        let tokens = patchify(x, self.config.patches())?;
        let (mut patches, _) = self.encoder.input.forward(params, &tokens, None, Activation::Identity)?;
        add_rows(&mut patches, self.position(x.device())?.view())?;
        let shared = params.view(self.latent_tokens);
        let h = self.join(x.rows_cols().0, [Part::Own(&patches), Part::Shared(shared)], x.device())?;
        drop(patches);
        self.encoder.forward(params, (tokens, h), &self.of_latents(), keep)
    }

    /// `dy: (B·L, D)` → adds the encoder's gradients.
    pub(super) fn encode_backward<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: VitSaved<X>,
        dy: &Tensor<X>,
        grads: &mut Grads,
    ) -> Result<()> {
        let (dh, tokens) = self.encoder.backward(params, saved, dy, &self.of_latents(), grads)?;
        let [dlatents] = grads.views_mut([self.latent_tokens]);
        sum_tokens(dlatents, &dh, &self.of_latents())?;
        self.encoder.input.backward_params(grads, &take_tokens(&dh, &self.of_patches())?, &tokens)
    }

    /// `y: (B·L, D)` → `x̂: (B, C·H·W)`.
    pub(super) fn decode<X: FloatX>(
        &self,
        params: &Params<X>,
        y: Tensor<X>,
        keep: Keep,
    ) -> Result<(Tensor<X>, VitSaved<X>)> {
        let device = y.device().clone();
        let (mut latents, _) = self.decoder.input.forward(params, &y, None, Activation::Identity)?;
        add_rows(&mut latents, params.view(self.latent_position))?;
        let mut masked = self.position(&device)?.duplicate()?;
        add_rows(&mut masked, params.view(self.mask_token))?;
        let samples = y.rows_cols().0 / self.latents;
        let h = self.join(samples, [Part::Shared(masked.view()), Part::Own(&latents)], &device)?;
        drop((masked, latents));
        let (pixels, saved) = self.decoder.forward(params, (y, h), &self.of_patches(), keep)?;
        let patches = self.config.patches();
        Ok((unpatchify(&pixels, patches, patches.channels)?, saved))
    }

    /// `dx_hat: (B, C·H·W)` → `dy: (B·L, D)`, adds the decoder's gradients.
    pub(super) fn decode_backward<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: VitSaved<X>,
        dx_hat: &Tensor<X>,
        grads: &mut Grads,
    ) -> Result<Tensor<X>> {
        let patches = self.config.patches();
        let dpixels = unpatchify_backward(dx_hat, patches, patches.channels)?;
        let (dh, y) = self.decoder.backward(params, saved, &dpixels, &self.of_patches(), grads)?;
        let mut dmasked = Tensor::<f32>::zeros(dh.device(), [patches.tokens(), self.config.width]);
        sum_tokens(dmasked.view_mut(), &dh, &self.of_patches())?;
        let [dmask, dposition] = grads.views_mut([self.mask_token, self.latent_position]);
        sum_tokens(dmask, &dmasked, &Span { of: 1, taken: 0..1 })?;
        sum_tokens(dposition, &dh, &self.of_latents())?;
        let dlatents = take_tokens(&dh, &self.of_latents())?;
        self.decoder.input.backward_params(grads, &dlatents, &y)?;
        self.decoder.input.backward_input(params, &dlatents, None)
    }

    /// Names the weights whose gradients can be compared, last first.
    pub(super) fn weights() -> Vec<String> {
        ["encoder.to_latent.weight", "encoder.norm.weight"].map(str::to_owned).to_vec()
    }

    /// Returns ‖∂L/∂W‖ of one of [`Vit::weights`] for `dy: (B·L, D)`.
    pub(super) fn gradient_norm<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: &VitSaved<X>,
        dy: &Tensor<X>,
        weight: &str,
    ) -> Result<f64> {
        let (device, encoder) = (dy.device(), &self.encoder);
        let [to_latent, norm] = &Self::weights()[..] else { return Ok(0.0) };
        if weight == to_latent {
            let mut dw = Tensor::zeros(device, [dy.rows_cols().1, self.config.width]);
            linear_backward_weight(dw.view_mut(), None, dy, &saved.m)?;
            return grad_norm(&dw, 1.0);
        }
        if weight != norm {
            let expected = format!("{to_latent} or {norm}");
            return Err(Error::argument("gradient_norm", "weight", expected, weight));
        }
        let dm = encoder.output.backward_input(params, dy, None)?;
        let [mut dgamma, mut dbeta] = [0, 1].map(|_| Tensor::<f32>::zeros(device, [self.config.width]));
        let affine = Some((dgamma.view_mut(), dbeta.view_mut()));
        let own = LayerNormGrads { affine, modulation: None };
        layer_norm_backward(&dm, &saved.h, &saved.stats, &encoder.layer_norm(params), None, own)?;
        grad_norm(&dgamma, 1.0)
    }

    fn join<X: FloatX>(&self, samples: usize, parts: [Part<'_, X>; 2], device: &Device) -> Result<Tensor<X>> {
        join_tokens(device, samples, self.config.width, parts)
    }

    fn position<X: FloatX>(&self, device: &Device) -> Result<Tensor<X>> {
        let values: Vec<X> = self.position.iter().map(|x| X::from_f32(*x)).collect();
        Tensor::constant(device, [self.config.patches().tokens(), self.config.width], &values)
    }

    /// The tokens of patches, in front.
    fn of_patches(&self) -> Span {
        let tokens = self.config.patches().tokens();
        Span { of: tokens + self.latents, taken: 0..tokens }
    }

    /// The latent tokens, behind them.
    fn of_latents(&self) -> Span {
        let Span { of, taken } = self.of_patches();
        Span { of, taken: taken.end..of }
    }
}

impl Half {
    /// `h: (B·(T + L), C)` → what goes out for the tokens of the span; `tokens` is what h was made of, for the backward.
    fn forward<X: FloatX>(
        &self,
        params: &Params<X>,
        (tokens, h): (Tensor<X>, Tensor<X>),
        out: &Span,
        keep: Keep,
    ) -> Result<(Tensor<X>, VitSaved<X>)> {
        let (h, blocks) = self.blocks.forward(params, h, None, keep)?;
        let h = take_tokens(&h, out)?;
        let (m, stats) = layer_norm_forward(&h, &self.layer_norm(params), None)?;
        let (y, _) = self.output.forward(params, &m, None, Activation::Identity)?;
        Ok((y, VitSaved { tokens, blocks, h, stats, m }))
    }

    /// The gradient of what went out → dh of what came in, with `tokens` back; adds the gradients of all but `input`.
    fn backward<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: VitSaved<X>,
        dy: &Tensor<X>,
        out: &Span,
        grads: &mut Grads,
    ) -> Result<(Tensor<X>, Tensor<X>)> {
        let VitSaved { tokens, blocks, h, stats, m } = saved;
        self.output.backward_params(grads, dy, &m)?;
        let dm = self.output.backward_input(params, dy, None)?;
        drop(m);
        let affine = Some(grads.views_mut(self.norm).into());
        let own = LayerNormGrads { affine, modulation: None };
        let dh = layer_norm_backward(&dm, &h, &stats, &self.layer_norm(params), None, own)?;
        drop((dm, h));
        let dh = put_tokens(&dh, out)?;
        Ok((self.blocks.backward(params, blocks, (None, None), dh, Some(grads))?, tokens))
    }

    fn layer_norm<'p, X: FloatX>(&self, params: &'p Params<X>) -> LayerNorm<'p, X> {
        let [weight, bias] = self.norm.map(|id| params.view(id));
        LayerNorm { affine: Some((weight, bias)), modulation: None }
    }
}

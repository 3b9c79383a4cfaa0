//! The learned rescaler of a semantic map (latent flow matching, FEATURES 3): every pixel's K numbers to a few channels, a 1×1 convolution
//! without bias, trained with the network.
//!
//! A map has one class a pixel of the picture. Halving it three times by bilinear interpolation averages the one-hot planes over squares
//! of 8×8 pixels, which commutes with a 1×1 convolution and has nothing to learn, so the data hold those averages already: the share of
//! each class in the square that a pixel of the latents covers (`data import --map`).

use crate::error::Result;
use crate::float::FloatX;
use crate::nn::params::{Grads, Init, Layout, ParamId, Params};
use crate::ops::linear::{Activation, linear_backward_weight_parts, linear_forward};
use crate::ops::patchify::{Patches, patchify, patchify_backward};
use crate::tensor::Tensor;

/// The convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rescaler {
    weight: ParamId,
    from: Patches,
    to: Patches,
}

impl Rescaler {
    /// Adds the weight, (channels, K, 1, 1), to the layout.
    pub(super) fn new(layout: &mut Layout, classes: usize, channels: usize, image: Patches) -> Self {
        let name = "cond_rescaler.channel_mapper.weight";
        let weight = layout.add(name, [channels, classes, 1, 1], Init::XavierUniform);
        let pixels = |channels| Patches { channels, patch: 1, ..image };
        Self { weight, from: pixels(classes), to: pixels(channels) }
    }

    /// `map: (N, K·H·W)` → its channels, (N, channels·H·W), and its pixels, (N·H·W, K), for the gradient.
    pub(super) fn forward<X: FloatX>(
        &self,
        params: &Params<X>,
        map: &Tensor<X>,
    ) -> Result<(Tensor<X>, Tensor<X>)> {
        let pixels = patchify(map, self.from)?;
        let (y, _) = linear_forward(&pixels, params.weight(self.weight), None, None, Activation::Identity)?;
        Ok((patchify_backward(&y, self.to)?, pixels))
    }

    /// Adds the weight's gradient; `d: (N, channels·H·W)`, `pixels: (N·H·W, K)`.
    pub(super) fn backward<X: FloatX>(
        &self,
        grads: &mut Grads,
        d: &Tensor<X>,
        pixels: &Tensor<X>,
    ) -> Result<()> {
        let dy = patchify(d, self.to)?;
        let (dw, start) = grads.weight_mut(self.weight);
        linear_backward_weight_parts(start, dw.matrix(), None, &[(&dy, pixels)])
    }
}

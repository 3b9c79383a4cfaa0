//! The keys of the autoencoder of stage 2.

use serde::{Deserialize, Serialize};

use crate::nn::dit::Size;

/// What an autoencoder is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coder {
    /// Fully connected layers, for features.
    Mlp,
    /// Vision transformers with latent tokens, for images.
    Vit,
}

/// The activation of the hidden layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// x·σ(x).
    Silu,
    /// GELU, tanh form.
    Gelu,
}

/// How far a reconstruction is from the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reconstruction {
    /// The mean squared difference.
    L2,
    /// The mean absolute difference.
    L1,
}

/// An autoencoder: data → `tokens` latents of width `latent` → data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoencoderConfig {
    /// What it is made of: `mlp` or `vit`.
    pub kind: Coder,
    /// Width of a latent: the width of the prior's data, unless `align.projection` is on.
    pub latent: usize,
    /// Latents per sample.
    pub tokens: usize,
    /// MLP: widths of the encoder's hidden layers; the decoder has them in reverse.
    pub hidden: Vec<usize>,
    /// MLP: activation of the hidden layers: `silu` or `gelu`.
    pub activation: Activation,
    /// ViT: a published size, `S`, `B`, `L` or `XL`, of encoder and decoder each; without it, the next three keys decide.
    pub size: Option<Size>,
    /// ViT: width of the residual stream.
    pub width: usize,
    /// ViT: blocks of the encoder, and of the decoder.
    pub depth: usize,
    /// ViT: attention heads; 0 for heads of 64 columns.
    pub heads: usize,
    /// ViT: side of a patch.
    pub patch: usize,
    /// ViT: channels, height and width of a row; without it, the data set says them.
    pub image: Option<[usize; 3]>,
}

impl AutoencoderConfig {
    /// Returns the heads of a vision transformer.
    pub fn heads(&self) -> usize {
        if self.heads == 0 { (self.width / 64).max(1) } else { self.heads }
    }
}

impl Default for AutoencoderConfig {
    fn default() -> Self {
        Self {
            kind: Coder::Mlp,
            latent: 16,
            tokens: 1,
            hidden: vec![256, 256],
            activation: Activation::Silu,
            size: None,
            width: 192,
            depth: 4,
            heads: 0,
            patch: 4,
            image: None,
        }
    }
}

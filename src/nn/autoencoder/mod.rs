//! Autoencoders: `y = encoder(x)`, `x̂ = decoder(y)`, of features by fully connected layers, of images by vision transformers.
//!
//! A sample has `tokens` latents of width `latent`, without an activation: (B·tokens, latent). Of fully connected layers they are
//! parts of one last layer; hidden widths are those of the encoder, the decoder mirrors them.

mod chain;
mod vit;

use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::nn::Keep;
use crate::nn::autoencoder::chain::{Chain, ChainSaved};
pub use crate::nn::autoencoder::vit::VitConfig;
use crate::nn::autoencoder::vit::{Vit, VitSaved};
use crate::nn::params::{Grads, Layout, Params};
use crate::ops::linear::Activation;
use crate::tensor::Tensor;

/// Sizes of an autoencoder.
#[derive(Clone, Debug, PartialEq)]
pub struct AutoencoderConfig {
    /// Width of the data.
    pub data: usize,
    /// Latents of a sample.
    pub tokens: usize,
    /// Width of a latent.
    pub latent: usize,
    /// The layers.
    pub layers: Layers,
}

impl AutoencoderConfig {
    /// Returns the values of all latents of a sample.
    pub fn latents(&self) -> usize {
        self.tokens * self.latent
    }
}

/// What an autoencoder is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Layers {
    /// Fully connected layers.
    Mlp {
        /// Hidden widths of the encoder, first to last.
        hidden: Vec<usize>,
        /// The activation between layers.
        activation: Activation,
    },
    /// Vision transformers.
    Vit(VitConfig),
}

/// The autoencoder: layers and layout, without parameters.
#[derive(Clone, Debug)]
pub struct Autoencoder {
    config: AutoencoderConfig,
    layout: Arc<Layout>,
    halves: Halves,
}

#[derive(Clone, Debug)]
enum Halves {
    Mlp { encoder: Chain, decoder: Chain },
    Vit(Box<Vit>),
}

/// What the backward of encoder or decoder needs.
#[derive(Debug)]
pub struct Saved<X: FloatX>(Kept<X>);

#[derive(Debug)]
enum Kept<X: FloatX> {
    Mlp(ChainSaved<X>),
    Vit(Box<VitSaved<X>>),
}

impl Autoencoder {
    /// Lays the network out.
    ///
    /// # Errors
    /// A width of zero, no activation, or the sizes of a vision transformer that do not fit together.
    pub fn new(config: AutoencoderConfig) -> Result<Self> {
        const OP: &str = "Autoencoder::new";
        let mut layout = Layout::default();
        let (data, latents) = (config.data, config.latents());
        let halves = match &config.layers {
            Layers::Mlp { hidden, activation } => {
                let widths: Vec<usize> = [data].iter().chain(hidden).chain([&latents]).copied().collect();
                if widths.contains(&0) {
                    return Err(Error::argument(OP, "widths", "at least 1 each", format!("{widths:?}")));
                }
                if *activation == Activation::Identity && !hidden.is_empty() {
                    return Err(Error::argument(OP, "activation", "SiLU or GELU", "the identity"));
                }
                let encoder = Chain::new(&mut layout, "encoder", &widths, *activation);
                let mirrored: Vec<usize> = widths.into_iter().rev().collect();
                let decoder = Chain::new(&mut layout, "decoder", &mirrored, *activation);
                Halves::Mlp { encoder, decoder }
            }
            Layers::Vit(vit) => {
                let image: usize = vit.image.iter().product();
                if image != data || latents == 0 {
                    let expected =
                        format!("{:?} of a row of {data} values, and at least one latent", vit.image);
                    return Err(Error::argument(
                        OP,
                        "image",
                        expected,
                        format!("{image} values, {latents} latents"),
                    ));
                }
                Halves::Vit(Box::new(Vit::new(&mut layout, *vit, config.tokens, config.latent)?))
            }
        };
        Ok(Self { config, layout: Arc::new(layout), halves })
    }

    /// Returns the sizes.
    pub fn config(&self) -> &AutoencoderConfig {
        &self.config
    }

    /// Returns the parameters' names, shapes and places.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Returns freshly initialised parameters.
    pub fn init<X: FloatX>(&self, device: &Device, seed: u64) -> Result<Params<X>> {
        Params::init(device, self.layout.clone(), seed)
    }

    /// Names the encoder's weights that the adaptive weight may compare gradients at, last first.
    pub fn compared(&self) -> Vec<String> {
        match &self.halves {
            Halves::Mlp { encoder, .. } => encoder.weights(),
            Halves::Vit(_) => Vit::weights(),
        }
    }

    /// Returns ‖∂L/∂W‖ of one of [`Autoencoder::compared`] for `dy: (B·tokens, latent)`.
    ///
    /// # Errors
    /// Another name, or a shape that does not fit.
    pub fn gradient_norm<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: &Saved<X>,
        dy: &Tensor<X>,
        weight: &str,
    ) -> Result<f64> {
        match (&self.halves, &saved.0) {
            (Halves::Mlp { encoder, .. }, Kept::Mlp(saved)) => {
                encoder.gradient_norm(params, saved, &self.rows(dy.duplicate()?)?, weight)
            }
            (Halves::Vit(vit), Kept::Vit(saved)) => vit.gradient_norm(params, saved, dy, weight),
            _ => Err(another("gradient_norm")),
        }
    }

    /// `x: (B, data)` → `y: (B·tokens, latent)`; a backward may follow unless nothing is kept.
    ///
    /// # Errors
    /// A width that is not the data's.
    pub fn encode<X: FloatX>(
        &self,
        params: &Params<X>,
        x: Tensor<X>,
        keep: Keep,
    ) -> Result<(Tensor<X>, Saved<X>)> {
        match &self.halves {
            Halves::Mlp { encoder, .. } => {
                let (y, saved) = encoder.forward(params, x)?;
                Ok((self.tokens(y)?, Saved(Kept::Mlp(saved))))
            }
            Halves::Vit(vit) => {
                let (y, saved) = vit.encode(params, &x, keep)?;
                Ok((y, Saved(Kept::Vit(Box::new(saved)))))
            }
        }
    }

    /// `y: (B·tokens, latent)` → `x̂: (B, data)`.
    ///
    /// # Errors
    /// Rows that are no whole samples.
    pub fn decode<X: FloatX>(
        &self,
        params: &Params<X>,
        y: Tensor<X>,
        keep: Keep,
    ) -> Result<(Tensor<X>, Saved<X>)> {
        let y = self.tokens(self.rows(y)?)?;
        match &self.halves {
            Halves::Mlp { decoder, .. } => {
                let (x, saved) = decoder.forward(params, self.rows(y)?)?;
                Ok((x, Saved(Kept::Mlp(saved))))
            }
            Halves::Vit(vit) => {
                let (x, saved) = vit.decode(params, y, keep)?;
                Ok((x, Saved(Kept::Vit(Box::new(saved)))))
            }
        }
    }

    /// `dy: (B·tokens, latent)` → accumulates the encoder's gradients.
    ///
    /// # Errors
    /// What a decoder kept.
    pub fn encode_backward<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: Saved<X>,
        dy: Tensor<X>,
        grads: &mut Grads,
    ) -> Result<()> {
        match (&self.halves, saved.0) {
            (Halves::Mlp { encoder, .. }, Kept::Mlp(saved)) => {
                encoder.backward(params, saved, self.rows(dy)?, grads, false).map(|_| ())
            }
            (Halves::Vit(vit), Kept::Vit(saved)) => vit.encode_backward(params, *saved, &dy, grads),
            _ => Err(another("encode_backward")),
        }
    }

    /// `dx_hat: (B, data)` → `dy: (B·tokens, latent)`, accumulates the decoder's gradients.
    ///
    /// # Errors
    /// What an encoder kept.
    pub fn decode_backward<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: Saved<X>,
        dx_hat: Tensor<X>,
        grads: &mut Grads,
    ) -> Result<Tensor<X>> {
        match (&self.halves, saved.0) {
            (Halves::Mlp { decoder, .. }, Kept::Mlp(saved)) => {
                let dy = decoder.backward(params, saved, dx_hat, grads, true)?;
                self.tokens(dy.ok_or_else(|| another("decode_backward"))?)
            }
            (Halves::Vit(vit), Kept::Vit(saved)) => vit.decode_backward(params, *saved, &dx_hat, grads),
            _ => Err(another("decode_backward")),
        }
    }

    /// (B, tokens·latent) → (B·tokens, latent).
    fn tokens<X: FloatX>(&self, y: Tensor<X>) -> Result<Tensor<X>> {
        let rows = y.len() / self.config.latent;
        y.reshaped([rows, self.config.latent])
    }

    /// (B·tokens, latent) → (B, tokens·latent).
    fn rows<X: FloatX>(&self, y: Tensor<X>) -> Result<Tensor<X>> {
        let width = self.config.latents();
        let rows = y.len() / width;
        y.reshaped([rows, width])
    }
}

fn another(op: &'static str) -> Error {
    Error::argument(op, "saved", "what this network's forward returned", "that of another")
}

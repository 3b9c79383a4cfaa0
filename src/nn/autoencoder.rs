//! An MLP autoencoder: `y = encoder(x)`, `x̂ = decoder(y)`, each a chain of linear layers with an activation between.
//!
//! Hidden widths are those of the encoder; the decoder mirrors them. Latents y have no activation.

use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::nn::linear::Linear;
use crate::nn::params::{Grads, Init, Layout, Params};
use crate::ops::grad_norm::grad_norm;
use crate::ops::linear::{Activation, linear_backward_weight};
use crate::tensor::Tensor;

/// Sizes of an autoencoder.
#[derive(Clone, Debug, PartialEq)]
pub struct AutoencoderConfig {
    /// Width of the data.
    pub data: usize,
    /// Hidden widths of the encoder, first to last.
    pub hidden: Vec<usize>,
    /// Width of a row of latents as the encoder gives them.
    pub latent: usize,
    /// The activation between layers.
    pub activation: Activation,
}

/// The autoencoder: layers and layout, without parameters.
#[derive(Clone, Debug)]
pub struct Autoencoder {
    config: AutoencoderConfig,
    layout: Arc<Layout>,
    encoder: Chain,
    decoder: Chain,
}

#[derive(Clone, Debug)]
struct Chain {
    layers: Vec<Linear>,
    activation: Activation,
}

/// Inputs and pre-activations of each layer.
#[derive(Debug)]
pub struct ChainSaved<X: FloatX> {
    inputs: Vec<Tensor<X>>,
    z: Vec<Tensor<X>>,
}

impl Autoencoder {
    /// Lays the network out; layer i is `encoder.{2i}` (`decoder.{2i}`), as in a torch Sequential
    /// with its activations between.
    ///
    /// # Errors
    /// A width of zero, or no activation.
    pub fn new(config: AutoencoderConfig) -> Result<Self> {
        let widths: Vec<usize> =
            [config.data].iter().chain(&config.hidden).chain([&config.latent]).copied().collect();
        if widths.contains(&0) {
            return Err(Error::argument(
                "Autoencoder::new",
                "widths",
                "at least 1 each",
                format!("{widths:?}"),
            ));
        }
        if config.activation == Activation::Identity && !config.hidden.is_empty() {
            return Err(Error::argument("Autoencoder::new", "activation", "SiLU or GELU", "the identity"));
        }
        let mut layout = Layout::default();
        let mut chain = |name: &str, widths: &[usize]| Chain {
            layers: (0..widths.len() - 1)
                .map(|i| {
                    let name = format!("{name}.{}", 2 * i);
                    Linear::new(&mut layout, &name, widths[i], widths[i + 1], Init::XavierUniform)
                })
                .collect(),
            activation: config.activation,
        };
        let encoder = chain("encoder", &widths);
        let decoder = chain("decoder", &widths.iter().rev().copied().collect::<Vec<_>>());
        Ok(Self { config, layout: Arc::new(layout), encoder, decoder })
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

    /// Returns ‖∂L/∂W‖ of the encoder's last weight for `dy: (B, latent)`, which the adaptive weight compares.
    ///
    /// # Errors
    /// A shape that does not fit.
    pub fn last_weight_gradient_norm<X: FloatX>(&self, saved: &ChainSaved<X>, dy: &Tensor<X>) -> Result<f64> {
        let Some(input) = saved.inputs.last() else { return Ok(0.0) };
        let mut dw = Tensor::zeros(dy.device(), [dy.rows_cols().1, input.rows_cols().1]);
        linear_backward_weight(dw.view_mut(), None, dy, input)?;
        grad_norm(&dw, 1.0)
    }

    /// `x: (B, data)` → `y: (B, latent)`.
    pub fn encode<X: FloatX>(&self, params: &Params<X>, x: Tensor<X>) -> Result<(Tensor<X>, ChainSaved<X>)> {
        self.encoder.forward(params, x)
    }

    /// `y: (B, latent)` → `x̂: (B, data)`.
    pub fn decode<X: FloatX>(&self, params: &Params<X>, y: Tensor<X>) -> Result<(Tensor<X>, ChainSaved<X>)> {
        self.decoder.forward(params, y)
    }

    /// `dy: (B, latent)` → accumulates the encoder's gradients.
    pub fn encode_backward<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: ChainSaved<X>,
        dy: Tensor<X>,
        grads: &mut Grads,
    ) -> Result<()> {
        self.encoder.backward(params, saved, dy, grads, false).map(|_| ())
    }

    /// `dx_hat: (B, data)` → `dy: (B, latent)`, accumulates the decoder's gradients.
    pub fn decode_backward<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: ChainSaved<X>,
        dx_hat: Tensor<X>,
        grads: &mut Grads,
    ) -> Result<Tensor<X>> {
        let dy = self.decoder.backward(params, saved, dx_hat, grads, true)?;
        dy.ok_or_else(|| Error::argument("decode_backward", "saved", "at least one layer", "none"))
    }
}

impl Chain {
    fn forward<X: FloatX>(&self, params: &Params<X>, x: Tensor<X>) -> Result<(Tensor<X>, ChainSaved<X>)> {
        let mut saved = ChainSaved { inputs: Vec::new(), z: Vec::new() };
        let mut x = x;
        for (i, layer) in self.layers.iter().enumerate() {
            let last = i + 1 == self.layers.len();
            let (y, z) =
                layer.forward(params, &x, None, if last { Activation::Identity } else { self.activation })?;
            saved.inputs.push(x);
            saved.z.extend(z);
            x = y;
        }
        Ok((x, saved))
    }

    fn backward<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: ChainSaved<X>,
        dy: Tensor<X>,
        grads: &mut Grads,
        input: bool,
    ) -> Result<Option<Tensor<X>>> {
        let mut dz = dy;
        for (i, layer) in self.layers.iter().enumerate().rev() {
            layer.backward_params(grads, &dz, &saved.inputs[i])?;
            match i {
                0 if !input => return Ok(None),
                0 => dz = layer.backward_input(params, &dz, None)?,
                _ => dz = layer.backward_input(params, &dz, Some((self.activation, &saved.z[i - 1])))?,
            }
        }
        Ok(Some(dz))
    }
}

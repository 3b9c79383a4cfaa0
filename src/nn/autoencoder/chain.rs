//! Fully connected layers in a chain, with an activation between: the encoder and decoder of features.

use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::nn::linear::Linear;
use crate::nn::params::{Grads, Init, Layout, Params};
use crate::ops::grad_norm::grad_norm;
use crate::ops::linear::{Activation, linear_backward_weight};
use crate::tensor::Tensor;

/// Layers `name.0`, `name.2`, …, as in a torch Sequential with its activations between.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    name: &'static str,
    layers: Vec<Linear>,
    activation: Activation,
}

/// Inputs and pre-activations of each layer.
#[derive(Debug)]
pub(super) struct ChainSaved<X: FloatX> {
    inputs: Vec<Tensor<X>>,
    z: Vec<Tensor<X>>,
}

impl Chain {
    /// Adds layers between these widths to the layout.
    pub(super) fn new(
        layout: &mut Layout,
        name: &'static str,
        widths: &[usize],
        activation: Activation,
    ) -> Self {
        let pairs = widths.iter().zip(&widths[1..]).enumerate();
        let layers = pairs
            .map(|(i, (inputs, outputs))| {
                Linear::new(layout, &format!("{name}.{}", 2 * i), *inputs, *outputs, Init::XavierUniform)
            })
            .collect();
        Self { name, layers, activation }
    }

    /// `x: (B, first width)` → y `(B, last width)`.
    pub(super) fn forward<X: FloatX>(
        &self,
        params: &Params<X>,
        x: Tensor<X>,
    ) -> Result<(Tensor<X>, ChainSaved<X>)> {
        let mut saved = ChainSaved { inputs: Vec::new(), z: Vec::new() };
        let mut x = x;
        for (i, layer) in self.layers.iter().enumerate() {
            let last = i + 1 == self.layers.len();
            let act = if last { Activation::Identity } else { self.activation };
            let (y, z) = layer.forward(params, &x, None, act)?;
            saved.inputs.push(x);
            saved.z.extend(z);
            x = y;
        }
        Ok((x, saved))
    }

    /// `dy: (B, last width)` → adds the layers' gradients; returns dx where it is asked for.
    pub(super) fn backward<X: FloatX>(
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
            if i == 0 && !input {
                return Ok(None);
            }
            dz = self.backward_input(params, &saved, i, &dz)?;
        }
        Ok(Some(dz))
    }

    /// Names the weights whose gradients can be compared, last first.
    pub(super) fn weights(&self) -> Vec<String> {
        (0..self.layers.len()).rev().map(|i| format!("{}.{}.weight", self.name, 2 * i)).collect()
    }

    /// Returns ‖∂L/∂W‖ of the named weight for `dy: (B, last width)`.
    pub(super) fn gradient_norm<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: &ChainSaved<X>,
        dy: &Tensor<X>,
        weight: &str,
    ) -> Result<f64> {
        let wanted = self.weights().iter().rev().position(|name| name == weight).ok_or_else(|| {
            Error::argument(
                "gradient_norm",
                "weight",
                format!("one of {}", self.weights().join(", ")),
                weight,
            )
        })?;
        let mut dz = dy.duplicate()?;
        for i in (wanted + 1..self.layers.len()).rev() {
            dz = self.backward_input(params, saved, i, &dz)?;
        }
        let input = &saved.inputs[wanted];
        let mut dw = Tensor::zeros(dz.device(), [dz.rows_cols().1, input.rows_cols().1]);
        linear_backward_weight(dw.view_mut(), None, &dz, input)?;
        grad_norm(&dw, 1.0)
    }

    /// `dz` of layer i → that of layer i − 1, or dx of the chain for the first.
    fn backward_input<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: &ChainSaved<X>,
        i: usize,
        dz: &Tensor<X>,
    ) -> Result<Tensor<X>> {
        let through = i.checked_sub(1).map(|before| (self.activation, &saved.z[before]));
        self.layers[i].backward_input(params, dz, through)
    }
}

//! A linear layer with named weight and bias: `y = act(x·Wᵀ + b)`.

use crate::error::Result;
use crate::float::FloatX;
use crate::nn::params::{Grads, Init, Layout, ParamId, Params};
use crate::ops::flow_loss::{Scale, Target};
use crate::ops::linear::{
    Activation, Branch, linear_backward_input, linear_backward_input_add, linear_backward_weight_parts,
    linear_forward, linear_gated_forward, linear_loss_backward, linear_loss_forward,
};
use crate::ops::modulation::Modulation;
use crate::tensor::{Tensor, View};

/// Weight (out, in) and bias (out).
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    weight: ParamId,
    bias: ParamId,
}

impl Linear {
    /// Adds `name.weight` and `name.bias` (zero) to the layout.
    pub fn new(layout: &mut Layout, name: &str, inputs: usize, outputs: usize, init: Init) -> Self {
        let weight = layout.add(format!("{name}.weight"), [outputs, inputs], init);
        let bias = layout.add(format!("{name}.bias"), [outputs], Init::Zeros);
        Self { weight, bias }
    }

    /// Returns the weight.
    pub fn weight<'p, X: FloatX>(&self, params: &'p Params<X>) -> View<'p, X> {
        params.view(self.weight)
    }

    /// Returns the places of weight and bias in the layout.
    pub(crate) fn ids(&self) -> [ParamId; 2] {
        [self.weight, self.bias]
    }

    /// Returns the bias.
    pub fn bias<'p, X: FloatX>(&self, params: &'p Params<X>) -> View<'p, X> {
        params.view(self.bias)
    }

    /// `x: (N, in)`, `add: (N, out)` → y and the pre-activation z, `(N, out)`; z is `None` for the identity.
    pub fn forward<A: FloatX, W: FloatX>(
        &self,
        params: &Params<W>,
        x: &Tensor<A>,
        add: Option<&Tensor<A>>,
        act: Activation,
    ) -> Result<(Tensor<A>, Option<Tensor<A>>)> {
        linear_forward(x, params.weight(self.weight), Some(params.view(self.bias)), add, act)
    }

    /// `x: (N, in)`, `h: (N, out)` → `h + gate·u` with `u = x·Wᵀ + b`, and u if it is kept; gates begin at column `offset` of the table.
    pub fn gated_forward<X: FloatX>(
        &self,
        params: &Params<X>,
        x: &Tensor<X>,
        h: &Tensor<X>,
        (table, offset): (&Modulation<'_, X>, usize),
        branch: Branch,
    ) -> Result<(Tensor<X>, Option<Tensor<X>>)> {
        linear_gated_forward(
            x,
            params.weight(self.weight),
            params.view(self.bias),
            h,
            (table, offset),
            branch,
        )
    }

    /// `x: (N, in)` → the row losses (N) of `v = x·Wᵀ + b`.
    pub fn loss<X: FloatX>(
        &self,
        params: &Params<X>,
        x: &Tensor<X>,
        target: &Target<'_>,
    ) -> Result<Tensor<f32>> {
        linear_loss_forward(x, params.weight(self.weight), params.view(self.bias), target)
    }

    /// `x: (N, in)` → the row losses (N) of `v = x·Wᵀ + b`, and `dv: (N, out)`, times `scale`.
    pub fn loss_and_gradient<X: FloatX>(
        &self,
        params: &Params<X>,
        x: &Tensor<X>,
        target: &Target<'_>,
        scale: Scale,
    ) -> Result<(Tensor<f32>, Tensor<X>)> {
        linear_loss_backward(x, params.weight(self.weight), params.view(self.bias), target, scale)
    }

    /// `dz: (N, out)` → dx `(N, in)`, through the activation that produced x when given with its pre-activation.
    pub fn backward_input<A: FloatX, W: FloatX>(
        &self,
        params: &Params<W>,
        dz: &Tensor<A>,
        through: Option<(Activation, &Tensor<A>)>,
    ) -> Result<Tensor<A>> {
        linear_backward_input(dz, params.weight(self.weight), through)
    }

    /// Adds the gradient of the input to `dx: (N, in)`.
    pub(crate) fn backward_input_add<A: FloatX, W: FloatX>(
        &self,
        dx: &mut Tensor<A>,
        params: &Params<W>,
        dz: &Tensor<A>,
        through: Option<(Activation, &Tensor<A>)>,
    ) -> Result<()> {
        linear_backward_input_add(dx, dz, params.weight(self.weight), through)
    }

    /// Accumulates the gradients of weight and bias from `dz: (N, out)` and `x: (N, in)`.
    pub fn backward_params<A: FloatX>(&self, grads: &mut Grads, dz: &Tensor<A>, x: &Tensor<A>) -> Result<()> {
        let ([dw, db], start) = grads.layer_mut([self.weight, self.bias]);
        linear_backward_weight_parts(start, dw, Some(db), &[(dz, x)])
    }
}

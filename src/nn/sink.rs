//! Where a backward puts the gradients of parameters: into their sums at once, or aside, to be summed with those of other rows.

use crate::error::Result;
use crate::float::FloatX;
use crate::nn::linear::Linear;
use crate::nn::params::{Grads, ParamId};
use crate::tensor::{Tensor, ViewMut};

/// Where parameter gradients go.
#[derive(Debug)]
pub(super) enum Sink<'g, X: FloatX> {
    /// Nowhere: the network is frozen.
    Nowhere,
    /// Into their sums.
    Sums(&'g mut Grads),
    /// Aside.
    Aside(Aside<X>),
}

/// What the gradients of some rows are made from, layer by layer, in the order of the backward.
#[derive(Debug)]
pub(super) struct Aside<X: FloatX> {
    /// The gradient of a layer's output, and its input.
    pub(super) linears: Vec<(Linear, Tensor<X>, Tensor<X>)>,
    /// The gradients of gamma and beta.
    pub(super) norms: Vec<([ParamId; 2], [Tensor<f32>; 2])>,
}

impl<X: FloatX> Default for Aside<X> {
    fn default() -> Self {
        Self { linears: Vec::new(), norms: Vec::new() }
    }
}

impl<X: FloatX> Sink<'_, X> {
    /// Says whether gradients are wanted.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self, Self::Nowhere)
    }

    /// Takes the gradient of a layer's output and its input.
    pub(super) fn linear(&mut self, layer: &Linear, dz: Tensor<X>, x: Tensor<X>) -> Result<()> {
        match self {
            Self::Nowhere => Ok(()),
            Self::Sums(grads) => layer.backward_params(grads, &dz, &x),
            Self::Aside(aside) => {
                aside.linears.push((*layer, dz, x));
                Ok(())
            }
        }
    }

    /// Does so for the last layer, whose gradient the caller keeps.
    pub(super) fn output(&mut self, layer: &Linear, dz: &Tensor<X>, x: Tensor<X>) -> Result<()> {
        match self {
            Self::Sums(grads) => layer.backward_params(grads, dz, &x),
            Self::Aside(_) => self.linear(layer, dz.duplicate()?, x),
            Self::Nowhere => Ok(()),
        }
    }

    /// Returns where the gradients of gamma and beta are added to.
    pub(super) fn norm(
        &mut self,
        ids: (ParamId, ParamId),
        like: &Tensor<X>,
    ) -> Option<(ViewMut<'_, f32>, ViewMut<'_, f32>)> {
        match self {
            Self::Nowhere => None,
            Self::Sums(grads) => Some(grads.views_mut([ids.0, ids.1]).into()),
            Self::Aside(aside) => {
                let zeros = || Tensor::zeros(like.device(), [like.rows_cols().1]);
                aside.norms.push(([ids.0, ids.1], [zeros(), zeros()]));
                let (_, [gamma, beta]) = aside.norms.last_mut()?;
                Some((gamma.view_mut(), beta.view_mut()))
            }
        }
    }
}

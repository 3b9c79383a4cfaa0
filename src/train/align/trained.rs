//! What a run of an autoencoder trains, in one flat buffer: the autoencoder, then the projection, then the prior, if they are trained.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::float::FloatX;
use crate::nn::{Autoencoder, Grads, Init, Layout, ParamId, Params, VelocityNet};
use crate::ops::elementwise::cast;
use crate::ops::linear::{Activation, linear_backward_input, linear_backward_weight_parts, linear_forward};
use crate::tensor::Tensor;
use crate::train::config::AlignConfig;
use crate::train::setup;

/// The projection's name in state dicts, the reference's.
pub const PROJECTION: &str = "flow_target_proj.weight";
/// What stands before the names of the prior's parameters.
pub const PRIOR: &str = "prior.";

/// Where parameters lie; the autoencoder's own are the first, so its layout fits this one.
#[derive(Clone, Debug)]
pub struct Trained {
    /// All of them.
    pub layout: Layout,
    projection: Option<ParamId>,
    prior: Option<(Arc<Layout>, Range<usize>)>,
}

impl Trained {
    /// Lays them out.
    pub fn new(net: &Autoencoder, prior: &VelocityNet, config: &AlignConfig) -> Self {
        let mut layout = Layout::clone(net.layout());
        let shape = [setup::latents_of(prior).0, net.config().latent];
        let projection = config.projection.then(|| layout.add(PROJECTION, shape, Init::XavierUniform));
        let prior = config.joint.then(|| (prior.layout().clone(), layout.append(PRIOR, prior.layout())));
        Self { layout, projection, prior }
    }

    /// Returns the initial values, those of a prior that was trained before included.
    ///
    /// # Errors
    /// A device that failed.
    pub fn initial_values<X: FloatX>(&self, seed: u64, prior: &Params<X>) -> Result<Vec<f32>> {
        let mut values = self.layout.initial_values(seed);
        if let Some((_, range)) = &self.prior {
            values[range.clone()].copy_from_slice(&prior.flat().to_f32_vec()?);
        }
        Ok(values)
    }

    /// Says whether the prior is trained too.
    pub fn is_joint(&self) -> bool {
        self.prior.is_some()
    }

    /// Copies the prior out of all parameters, where it is one of them.
    ///
    /// # Errors
    /// Parameters of another layout.
    pub fn copy_prior<X: FloatX>(&self, from: &Params<X>, to: &mut Params<X>) -> Result<()> {
        let Some((_, range)) = &self.prior else { return Ok(()) };
        to.flat_mut().view_mut().copy_from(from.flat().view().part(range.start, [range.len()]))
    }

    /// Returns zero gradients of a prior that is trained.
    pub fn prior_gradients<X: FloatX>(&self, params: &Params<X>) -> Option<Grads> {
        self.prior.as_ref().map(|(layout, _)| Grads::zeros(params.flat().device(), layout.clone()))
    }

    /// `y: (N, latent)` → what the prior takes, (N, its width); `None` where nothing is projected.
    ///
    /// # Errors
    /// Another width.
    pub fn project<X: FloatX>(&self, params: &Params<X>, y: &Tensor<f32>) -> Result<Option<Tensor<f32>>> {
        let Some(weight) = self.projection else { return Ok(None) };
        let (z, _) =
            linear_forward(&cast::<f32, X>(y)?, params.weight(weight), None, None, Activation::Identity)?;
        cast(&z).map(Some)
    }

    /// `dz` of [`Trained::project`] → dy, `None` where nothing is projected.
    ///
    /// # Errors
    /// Another width.
    pub fn project_backward_input<X: FloatX>(
        &self,
        params: &Params<X>,
        dz: &Tensor<f32>,
    ) -> Result<Option<Tensor<f32>>> {
        let Some(weight) = self.projection else { return Ok(None) };
        let dy = linear_backward_input(&cast::<f32, X>(dz)?, params.weight(weight), None)?;
        cast(&dy).map(Some)
    }

    /// Adds the gradient of the projection, for `dz: (N, width)` and `y: (N, latent)`.
    ///
    /// # Errors
    /// Another width.
    pub fn project_backward_weight<X: FloatX>(
        &self,
        grads: &mut Grads,
        dz: &Tensor<f32>,
        y: &Tensor<f32>,
    ) -> Result<()> {
        let Some(weight) = self.projection else { return Ok(()) };
        let (dz, y): (Tensor<X>, Tensor<X>) = (cast(dz)?, cast(y)?);
        let (dw, start) = grads.weight_mut(weight);
        linear_backward_weight_parts(start, dw.matrix(), None, &[(&dz, &y)])
    }

    /// Says whether latents are projected.
    pub fn is_projected(&self) -> bool {
        self.projection.is_some()
    }
}

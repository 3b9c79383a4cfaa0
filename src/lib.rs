//! flowprior trains flow priors and aligns latent spaces to them.
//!
//! Stage 1 fits a velocity network v(x_t, t) to data by flow matching; stage 2 freezes it and moves latents, or an
//! autoencoder, to where its alignment loss is small. See the README for a tour and `flow` for the formulas.

pub mod data;
pub mod device;
pub mod error;
pub mod float;
pub mod flow;
pub mod kernels;
pub mod metrics;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod plot;
pub mod rng;
pub mod tensor;
pub mod train;

pub use device::Device;
pub use error::{Error, Result};
pub use float::{DType, FloatX};
pub use tensor::{Tensor, View, ViewMut};

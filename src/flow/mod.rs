//! Flow matching: the objective of both stages, samplers, loss landscapes and the closed-form oracle.
//!
//! The time convention is that of [`crate::ops::flow_path`], everywhere: **data at t = 1**,
//! `x_t = (1 − t)·noise + t·data`, `u = data − noise`.

pub mod landscape;
pub mod mixture;
pub mod objective;
pub mod sampler;
mod strips;

pub use crate::ops::flow_loss::Weight;
pub use landscape::{Estimate, Landscape};
pub use objective::{Batch, Draws, LatentGradient, Objective, Outcome, Reduction, Times, Want};
pub use sampler::{Method, sample};

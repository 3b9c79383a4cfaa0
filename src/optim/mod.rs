//! Optimizers, learning-rate schedules, clipping, averages and loss scaling.

use serde::{Deserialize, Serialize};

pub mod optimizer;
pub mod scaler;
pub mod schedule;

pub use optimizer::{Optimizer, OptimizerConfig};

/// The rule that turns gradients into updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimKind {
    /// Adam; weight decay is added to the gradient (L2), as in PyTorch.
    Adam,
    /// AdamW; weight decay shrinks the weights directly.
    Adamw,
    /// Stochastic gradient descent with momentum; weight decay is added to the gradient (L2).
    Sgd,
    /// Lion (Chen et al., 2023); weight decay shrinks the weights directly.
    Lion,
}

/// How the f32 master weights become the low-precision copy that the network computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// To the nearest, ties to even.
    Nearest,
    /// Up or down at random, right on average.
    Stochastic,
}

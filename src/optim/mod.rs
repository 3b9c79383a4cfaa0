//! Optimizers, schedules and loss scaling.

pub mod optimizer;

pub use optimizer::{Optimizer, OptimizerConfig};

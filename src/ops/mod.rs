//! The operations: one file each, with maths, checks, forward, backward and the CPU code.
//!
//! Shapes use one legend: N rows, B samples of the batch, D feature width, C width, O output width, G modulation rows,
//! r interpolation nodes. Parameter gradients accumulate, activation gradients are fresh. Outputs come first, then
//! inputs, then sizes. Sums have a fixed order that depends on shapes alone, never on the number of threads.

pub mod attention;
pub mod chebyshev;
pub mod divergence;
pub mod dopri5;
pub mod elementwise;
pub mod embedding;
pub mod entropy;
pub mod flow_loss;
pub mod flow_path;
pub mod gated_residual;
pub mod gather;
pub mod grad_norm;
pub mod guidance;
pub mod inpaint;
pub mod knn;
pub mod layer_norm;
pub mod linear;
pub mod modulation;
pub mod normalize;
pub mod optimizer;
pub mod patchify;
pub mod qk_norm;
pub mod reconstruction;
pub mod row_dot;
pub mod sde_step;
pub mod sliced_wasserstein;
pub mod step_control;
pub mod timestep_embedding;
pub mod tokens;

pub(crate) use rows::*;

mod rows;

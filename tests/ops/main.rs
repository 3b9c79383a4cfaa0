//! Every operation against its definition: one file each, with the same name as in `src/ops`.
//!
//! A file states the forward in f64 and the shapes that hurt; `support/case.rs` derives the checks.

#[path = "../support/mod.rs"]
mod support;

mod attention;
mod chebyshev;
mod divergence;
mod dopri5;
mod elementwise;
mod embedding;
mod entropy;
mod flow_loss;
mod flow_path;
mod gated_residual;
mod gather;
mod grad_norm;
mod guidance;
mod inpaint;
mod knn;
mod layer_norm;
mod linear;
mod normalize;
mod optimizer;
mod patchify;
mod qk_norm;
mod reconstruction;
mod row_dot;
mod sde_step;
mod sliced_wasserstein;
mod step_control;
mod timestep_embedding;
mod tokens;

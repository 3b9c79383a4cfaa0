//! Every operation against its definition: one file each, with the same name as in `src/ops`.
//!
//! A file states the forward in f64 and the shapes that hurt; `support/case.rs` derives the checks.

#[path = "../support/mod.rs"]
mod support;

mod gated_residual;
mod layer_norm;

//! Runs: configuration, the run folder, checkpoints, logs and the two training stages.

pub mod config;
pub mod preset;

pub use config::{Config, Sources, Stage};

//! Runs: configuration, the run folder, checkpoints, logs and the two training stages.

pub mod checkpoint;
pub mod config;
pub mod log;
pub mod preset;
pub mod run_dir;
pub mod signal;
pub mod skips;
pub mod tensorboard;

pub use checkpoint::Manifest;
pub use config::{Config, Sources, Stage};
pub use log::Logger;
pub use run_dir::{Resume, RunDir};
pub use signal::StopFlag;
pub use skips::Skips;

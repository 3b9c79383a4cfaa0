//! Runs: configuration, the run folder, checkpoints, logs and the two training stages.

pub mod align;
pub mod atomic;
pub mod checkpoint;
pub mod config;
pub mod cost;
pub mod demo;
pub mod engine;
pub mod evaluate;
pub mod export;
pub mod features;
pub mod generate;
pub mod guard;
pub mod log;
pub mod plan;
pub mod preset;
pub mod pretrain;
pub mod prior;
pub mod records;
pub mod reference;
pub mod report;
pub mod restore;
pub mod run;
pub mod run_dir;
pub mod sampling;
pub mod setup;
pub mod signal;
pub mod skips;
pub mod start;
pub mod state;
pub mod tensorboard;
pub mod timing;
pub mod toy_map;

pub use config::{Config, Sources, Stage};
pub use run_dir::{Resume, RunDir};
pub use signal::StopFlag;
pub use skips::Skips;

//! `flowprior align`: stage 2.

use std::path::PathBuf;

use clap::Args;
use flowprior::Result;
use flowprior::train::config::Stage;
use flowprior::train::start;

use crate::cli::pretrain::prepare;
use crate::cli::{ConfigArgs, RunArgs};

/// Arguments of `align`.
#[derive(Debug, Args)]
pub struct AlignArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The trained prior: a run folder of `pretrain`, one of its checkpoints, or a safetensors file
    #[arg(long, value_name = "PATH")]
    prior: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

/// Aligns latents or an autoencoder to a prior.
pub fn run(args: AlignArgs) -> Result<()> {
    let prior: Vec<String> = args.prior.iter().map(|p| format!("align.prior='{}'", p.display())).collect();
    let (config, options) = prepare(Stage::Align, &args.config, &args.run, &prior)?;
    start::align(&config, &options)
}

//! `flowprior pretrain`: stage 1.

use clap::Args;
use flowprior::Result;
use flowprior::train::config::{Config, Stage};
use flowprior::train::run::RunOptions;
use flowprior::train::run_dir::{Resume, RunDir};
use flowprior::train::signal::StopFlag;
use flowprior::train::start;

use crate::cli::{ConfigArgs, RunArgs};

/// Arguments of `pretrain`.
#[derive(Debug, Args)]
pub struct PretrainArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Trains a prior.
pub fn run(args: PretrainArgs) -> Result<()> {
    let (config, options) = prepare(Stage::Pretrain, &args.config, &args.run, &[])?;
    start::pretrain(&config, &options)
}

/// Loads the configuration and the options of a training run. A run that continues and is given no configuration takes
/// the one in its folder.
pub(super) fn prepare(
    stage: Stage,
    config: &ConfigArgs,
    run: &RunArgs,
    more: &[String],
) -> Result<(Config, RunOptions)> {
    let resume: Resume = run.resume.parse().unwrap_or_default();
    let own = resume != Resume::Never
        && config.is_empty()
        && more.is_empty()
        && run.run.join("config.toml").exists();
    let loaded = if own { RunDir::open(&run.run)?.read_config()? } else { config.load(stage, more)? };
    let options = RunOptions {
        dir: run.run.clone(),
        resume,
        console: run.console(),
        title: format!("{} {}", stage.name(), config.name()).trim_end().to_owned(),
        stop: StopFlag::listen()?,
    };
    Ok((loaded, options))
}

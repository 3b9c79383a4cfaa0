//! Parts of a larger whole that are ordinary runs: each in a folder of its own, as `pretrain` and `align` make them.
//!
//! A part that is there already is not trained again, and one that was interrupted goes on, so the whole does, too. One that was
//! trained under another configuration is refused, not mixed in.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::train::checkpoint;
use crate::train::config::{Config, Sources, Stage};
use crate::train::log::Console;
use crate::train::report;
use crate::train::run::RunOptions;
use crate::train::run_dir::Resume;
use crate::train::signal::StopFlag;
use crate::train::start;

/// What `--quick` changes of every run.
pub const QUICK: [&str; 6] = [
    "model.width=32",
    "model.depth=2",
    "train.steps=60",
    "train.eval_every=20",
    "train.checkpoint_every=0",
    "optim.schedule.warmup_steps=0",
];

/// One run.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its folder.
    pub name: String,
    /// The stage.
    pub stage: Stage,
    /// Its preset.
    pub preset: String,
    /// The part whose prior it is aligned to.
    pub prior: Option<String>,
    /// What it changes of the preset.
    pub sets: Vec<String>,
}

/// Where parts are, and how they are run.
#[derive(Clone, Debug)]
pub struct Workshop {
    /// The folder of their folders.
    pub root: PathBuf,
    /// Where progress is shown.
    pub console: Console,
    /// Asks them to stop.
    pub stop: StopFlag,
}

/// Keys that may differ between a part that is there and one that is asked for: results do not depend on them, or a path to the same
/// prior has another beginning.
const FREE: [&str; 3] = ["threads", "device", "align.prior"];

impl Workshop {
    /// Returns the folder of a part.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Trains a part to its end, unless it is there; says whether there was anything to train.
    ///
    /// # Errors
    /// `Error::Stopped` after a signal; a folder that holds something else; a disk that is full.
    pub fn train(&self, part: &Part) -> Result<bool> {
        let dir = self.folder(&part.name);
        let mut sets = part.sets.clone();
        let prior = part.prior.as_ref().map(|prior| self.folder(prior));
        sets.extend(prior.map(|prior| format!("align.prior='{}'", prior.display())));
        let sources = Sources { stage: Some(part.stage), preset: Some(part.preset.clone()), file: None };
        let config = Config::load(&sources, &sets)?;
        if is_finished(&dir, &config)? {
            // Interrupted after the last step, it has no figures yet.
            if config.train.figures
                && !dir.join("figures").read_dir().is_ok_and(|mut files| files.next().is_some())
            {
                report::draw(&dir)?;
            }
            return Ok(false);
        }
        let options = RunOptions {
            dir,
            resume: Resume::Auto,
            console: self.console,
            title: part.stage.name().to_owned(),
            stop: self.stop.clone(),
        };
        match part.stage {
            Stage::Pretrain => start::pretrain(&config, &options)?,
            Stage::Align => start::align(&config, &options)?,
        }
        Ok(true)
    }
}

/// Says whether a run folder holds the last step of `config`.
fn is_finished(dir: &Path, config: &Config) -> Result<bool> {
    let Some(loaded) = checkpoint::latest(&dir.join("checkpoints"))?.loaded else { return Ok(false) };
    let differences = loaded.config()?.differences(config)?;
    let other = differences.iter().find(|line| !FREE.iter().any(|key| line.starts_with(&format!("{key}:"))));
    match other {
        Some(other) => Err(Error::Usage(format!(
            "{}: holds a run with another {other}; choose another folder with --out, or remove this one",
            dir.display()
        ))),
        None => Ok(loaded.manifest().step >= config.train.steps),
    }
}

//! A run from start to end: steps, records, checkpoints, signals; the same for both stages.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::tensor::Tensor;
use crate::train::checkpoint::{self, Loaded, Manifest};
use crate::train::config::{Config, Stage};
use crate::train::engine::{Engine, Report, Task};
use crate::train::log::{Console, LogOptions, Logger};
use crate::train::run_dir::{Resume, RunDir};
use crate::train::signal::StopFlag;
use crate::train::{snapshots, state};

/// How a run is started.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The run folder.
    pub dir: PathBuf,
    /// Whether to continue.
    pub resume: Resume,
    /// Where progress is shown.
    pub console: Console,
    /// What is running, for a person.
    pub title: String,
    /// Asks the run to stop.
    pub stop: StopFlag,
}

/// What a stage adds to the loop, beside its gradients.
pub trait Trainee<P: FloatX>: Task<P> + Send {
    /// Names the stage.
    const STAGE: Stage;
    /// Describes the networks; a checkpoint of another description is refused.
    fn architecture(&self) -> Value;
    /// Returns what else has to be known again: statistics of the data, the form of modulation.
    fn memory(&self) -> Value;
    /// Takes back what [`Trainee::memory`] returned.
    ///
    /// # Errors
    /// Something else.
    fn recall(&mut self, memory: &Value) -> Result<()>;
    /// Returns samples of a step, for rates and the position in the data.
    fn samples(&self) -> usize;
    /// Returns what there is to tell since the last call.
    fn notes(&mut self) -> Vec<String>;
    /// Measures the averaged parameters.
    ///
    /// # Errors
    /// Data that cannot be read.
    fn evaluate(&mut self, engine: &Engine<P>) -> Result<Vec<(&'static str, f64)>>;
    /// Returns what a snapshot keeps, the free latents (L, D); `None` for a task that has none.
    ///
    /// # Errors
    /// A device that failed.
    fn snapshot(&mut self, _engine: &Engine<P>) -> Result<Option<Tensor<f32>>> {
        Ok(None)
    }
}

/// Trains until the last step, a signal or divergence, and leaves the run folder complete.
///
/// # Errors
/// `Error::Stopped` after a signal, `Error::Diverged`, and whatever opening, reading or saving report.
pub fn train<P: FloatX, T: Trainee<P>>(
    config: &Config,
    options: &RunOptions,
    run: &RunDir,
    from: Option<Loaded>,
    task: &mut T,
    engine: &mut Engine<P>,
) -> Result<()> {
    let mut changes = Vec::new();
    if let Some(from) = &from {
        from.expect_stage(T::STAGE)?;
        from.expect_architecture(&task.architecture())?;
        state::restore(engine, from)?;
        task.recall(&from.manifest().data)?;
        changes = from.config()?.differences(config)?;
    }
    drop(from);
    run.write_config(config)?;
    let log = LogOptions {
        title: options.title.clone(),
        steps: config.train.steps,
        samples_per_step: task.samples() as u64,
        console: options.console,
    };
    let mut logger = Logger::resume(run, log, engine.step)?;
    for change in changes {
        logger.note(&format!("resumed at step {} with another {change}", engine.step));
    }
    let result = steps(config, options, run, task, engine, &mut logger);
    if matches!(result, Ok(()) | Err(Error::Stopped { .. })) {
        logger.finish()?;
    }
    result
}

fn steps<P: FloatX, T: Trainee<P>>(
    config: &Config,
    options: &RunOptions,
    run: &RunDir,
    task: &mut T,
    engine: &mut Engine<P>,
    logger: &mut Logger,
) -> Result<()> {
    let t = &config.train;
    let due = |every: u64, step: u64| (every > 0 && step.is_multiple_of(every)) || step == t.steps;
    let device = engine.optimizer.params.flat().device().clone();
    snapshots::remove_after(run.root(), engine.step)?;
    if engine.step == 0 && t.snapshots_every > 0 {
        keep_snapshot(run, task, engine)?;
    }
    if engine.step == 0 && t.eval_every > 0 {
        let measured = device.scope(|| task.evaluate(engine))?;
        logger.record("eval", 0, &measured)?;
    }
    while engine.step < t.steps {
        let skipped_before = engine.skips.total;
        let mut report = device.scope(|| engine.advance(task))?;
        let step = engine.step;
        let stop = options.stop.requested() && step < t.steps;
        let wanted = stop || [t.log_every, t.eval_every, t.checkpoint_every].iter().any(|n| due(*n, step));
        if report.is_none() && wanted {
            report = Some(engine.look()?);
        }
        for note in task.notes() {
            logger.note(&format!("step {step}: {note}"));
        }
        if let Some(report) = &mut report {
            if engine.skips.total > skipped_before {
                let what = report.skipped.as_deref().unwrap_or("loss or gradient of an earlier step");
                logger.skipped(step, what, engine.skips.total)?;
            }
            if let Some(diverged) = report.verdict.take() {
                logger.sync()?;
                save(config, run, task, engine)?;
                return Err(diverged);
            }
            if due(t.log_every, step) {
                logger.record("train", step, &values(report))?;
            }
        }
        logger.progress(step);
        if due(t.eval_every, step) {
            let measured = device.scope(|| task.evaluate(engine))?;
            logger.record("eval", step, &measured)?;
        }
        if t.snapshots_every > 0 && due(t.snapshots_every, step) {
            keep_snapshot(run, task, engine)?;
        }
        if due(t.checkpoint_every, step) || stop {
            logger.sync()?;
            let checkpoint = save(config, run, task, engine)?;
            if stop {
                return Err(Error::Stopped { step, checkpoint });
            }
        }
    }
    Ok(())
}

fn keep_snapshot<P: FloatX, T: Trainee<P>>(run: &RunDir, task: &mut T, engine: &Engine<P>) -> Result<()> {
    match engine.optimizer.params.flat().device().scope(|| task.snapshot(engine))? {
        Some(latents) => snapshots::write(run.root(), engine.step, &latents),
        None => Ok(()),
    }
}

fn values(report: &Report) -> Vec<(&'static str, f64)> {
    let mut values = vec![("loss", report.losses.loss)];
    values.extend(report.losses.parts.iter().copied());
    values.push(("grad_norm", report.grad_norm));
    values.push(("lr", report.lr));
    if report.loss_scale != 1.0 {
        values.push(("loss_scale", report.loss_scale as f64));
    }
    values
}

fn save<P: FloatX, T: Trainee<P>>(
    config: &Config,
    run: &RunDir,
    task: &T,
    engine: &Engine<P>,
) -> Result<PathBuf> {
    let mut manifest =
        Manifest::new(T::STAGE, engine.step, config.seed, task.architecture(), config.to_toml()?);
    manifest.position = engine.step * task.samples() as u64;
    manifest.scaler = engine.scaler.clone();
    manifest.skipped = engine.skips;
    manifest.data = task.memory();
    let buffers = state::Buffers::of(engine)?;
    checkpoint::save(&run.checkpoints(), &manifest, &buffers.groups(), config.train.keep)
}

/// Returns a field of what a task remembered.
///
/// # Errors
/// A field that is not there or is of another type.
pub fn recalled<T: serde::de::DeserializeOwned>(memory: &Value, field: &str) -> Result<T> {
    let value = memory.get(field).cloned().unwrap_or(json!(null));
    serde_json::from_value(value)
        .map_err(|e| Error::data("checkpoint.json", format!("data.{field}"), "a saved value", e))
}

//! The two commands that train: from a configuration and a run folder to a finished run.

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::float::{DType, FloatX};
use crate::nn::Import;
use crate::ops::elementwise::cast;
use crate::tensor::Tensor;
use crate::train::align::{AutoencoderTask, LatentTask};
use crate::train::checkpoint::Loaded;
use crate::train::config::{Config, Target};
use crate::train::pretrain::Pretrain;
use crate::train::prior::{About, Prior, write_network};
pub use crate::train::prior::{NETWORK, open_prior};
use crate::train::report;
use crate::train::run::{RunOptions, train};
use crate::train::run_dir::RunDir;
use crate::train::setup;

/// Runs stage 1 in the folder of `options`.
///
/// # Errors
/// See [`train`]; whatever the configuration, the data or the device report.
pub fn pretrain(config: &Config, options: &RunOptions) -> Result<()> {
    match config.dtype {
        DType::F32 => pretrain_in::<f32>(config, options),
        DType::Bf16 => pretrain_in::<bf16>(config, options),
        DType::F16 => pretrain_in::<f16>(config, options),
    }
}

/// Runs stage 2 in the folder of `options`.
///
/// # Errors
/// See [`train`]; whatever the configuration, the prior, the data or the device report.
pub fn align(config: &Config, options: &RunOptions) -> Result<()> {
    match config.dtype {
        DType::F32 => align_in::<f32>(config, options),
        DType::Bf16 => align_in::<bf16>(config, options),
        DType::F16 => align_in::<f16>(config, options),
    }
}

fn pretrain_in<X: FloatX>(config: &Config, options: &RunOptions) -> Result<()> {
    let device = setup::device(config)?;
    let (mut task, mut engine) = Pretrain::new::<X>(config, &device)?;
    let (run, from) = begin(options)?;
    let result = train(config, options, &run, from, &mut task, &mut engine);
    if matches!(result, Ok(()) | Err(Error::Stopped { .. })) {
        let flat: Tensor<f32> = cast(engine.optimizer.averaged()?.flat())?;
        write_network(
            &run.root().join(NETWORK),
            &task.net,
            &flat.on_host()?,
            Some(About { standardise: task.features.standardise.as_ref(), data: Some(&config.data) }),
        )?;
    }
    result?;
    draw_figures(config, options)
}

fn align_in<X: FloatX>(config: &Config, options: &RunOptions) -> Result<()> {
    let device = setup::device(config)?;
    // The prior is read before the run folder is touched: a wrong path leaves nothing behind. A run that continues
    // takes the copy in its folder, so it does not matter what became of the original.
    let copy = options.dir.join(NETWORK);
    let prior: Prior<X> = if copy.exists() {
        Prior::read(&device, &copy, Import::default())?
    } else {
        open_prior(&device, config.align.prior()?, config.align.use_ema)?
    };
    let keep_copy = |run: &RunDir, prior: &Prior<X>| match copy.exists() {
        true => Ok(()),
        false => prior.write(&run.root().join(NETWORK)),
    };
    match config.align.target {
        Target::Latents => {
            let (mut task, mut engine) = LatentTask::new(config, &device, prior)?;
            let (run, from) = begin(options)?;
            keep_copy(&run, &task.alignment.prior)?;
            train(config, options, &run, from, &mut task, &mut engine)?;
        }
        Target::Autoencoder => {
            let (mut task, mut engine) = AutoencoderTask::new(config, &device, prior)?;
            let (run, from) = begin(options)?;
            keep_copy(&run, &task.alignment.prior)?;
            train(config, options, &run, from, &mut task, &mut engine)?;
            if task.trained.is_joint() {
                task.follow(&engine.optimizer.averaged()?)?;
                task.alignment.prior.write(&run.root().join(JOINT))?;
            }
        }
    }
    draw_figures(config, options)
}

/// The averaged prior that a run with `align.joint` ends with; the one that it began with stays beside it.
pub const JOINT: &str = "joint.safetensors";

/// Fills the figures of a finished run. One that cannot be drawn is named; the run is as good without it.
fn draw_figures(config: &Config, options: &RunOptions) -> Result<()> {
    if config.train.figures
        && let Err(e) = report::draw(&options.dir)
    {
        crate::train::log::warn(&format!("figures: {e}"), options.console);
    }
    Ok(())
}

fn begin(options: &RunOptions) -> Result<(RunDir, Option<Loaded>)> {
    let (run, start) = RunDir::start(&options.dir, &options.resume)?;
    for note in start.notes {
        crate::train::log::warn(&note, options.console);
    }
    Ok((run, start.checkpoint))
}

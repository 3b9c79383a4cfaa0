//! Times whole training steps: data, forward, backward, clip, optimizer and averages, by the engine that trains.
//!
//! Where the configuration names no data, features are standard normal rows of the network's width; where stage 2 has no
//! prior, it is a freshly initialised one. Neither changes what a step computes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use half::{bf16, f16};

use crate::data::source::{Memory, Source};
use crate::device::{Device, Isa, Queue};
use crate::error::{Error, Result};
use crate::float::{DType, FloatX};
use crate::rng::{Draw, Stream};
use crate::train::align::{AutoencoderTask, LatentTask};
use crate::train::config::{Config, Stage, Target};
use crate::train::cost::{Work, latent_width};
use crate::train::engine::{Engine, Report};
use crate::train::features::{Features, RowShape};
use crate::train::pretrain::Pretrain;
use crate::train::prior::Prior;
use crate::train::run::Trainee;
use crate::train::setup;
use crate::train::start::open_prior;

/// Rows of made-up features: 2 MiB at the reference's width, more than a batch and less than the caches' neighbours.
const SYNTHETIC_ROWS: usize = 16_384;
/// Numbers of all of them, at most: images need not be so many.
const SYNTHETIC_VALUES: usize = SYNTHETIC_ROWS * 512;
/// Steps that are timed at least, whatever the clock says.
const FEWEST: usize = 5;
/// Steps that are timed at most, unless a number was asked for.
const MOST: usize = 1000;
/// Steps that a CUDA device may have before it while it is timed.
const AHEAD: usize = 16;
/// How long steps are timed when no number was asked for.
const LONG_ENOUGH: Duration = Duration::from_secs(10);

/// An engine and its task, ready to make steps.
pub struct Steps {
    /// Where the steps are computed.
    pub device: Device,
    /// The sizes of a step.
    pub work: Work,
    runner: Box<dyn Runner + Send>,
}

/// An engine with its task.
trait Runner {
    fn advance(&mut self) -> Result<Option<Report>>;
    fn look(&mut self) -> Result<Report>;
    fn skipped(&self) -> u64;
}

struct Pair<P: FloatX, T> {
    device: Device,
    task: T,
    engine: Engine<P>,
}

impl<P: FloatX, T: Trainee<P>> Runner for Pair<P, T> {
    fn advance(&mut self) -> Result<Option<Report>> {
        let Self { device, task, engine } = self;
        device.scope(|| engine.advance(task))
    }

    fn look(&mut self) -> Result<Report> {
        self.engine.look()
    }

    fn skipped(&self) -> u64 {
        self.engine.skips.total
    }
}

/// The times of some steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// Milliseconds of each step, the fastest first.
    pub ms: Vec<f64>,
    /// Steps whose loss or gradient was not finite, so that the optimizer did not run (f16 looking for its scale).
    pub skipped: usize,
}

/// Makes a configuration complete for timing. Stage 2 without data has no autoencoder to feed: as many free latents take
/// its place as its batch has, as they do when `target` asks for it.
pub fn completed(mut config: Config, target: Option<Target>) -> Config {
    let has_data = config.data.source().is_ok();
    let was = config.align.target;
    config.align.target = target.unwrap_or(if has_data { was } else { Target::Latents });
    if config.stage == Stage::Align && was != config.align.target && was == Target::Autoencoder {
        config.align.latents = config.train.batch * config.align.autoencoder.tokens;
    }
    config
}

impl Steps {
    /// Prepares the steps that a configuration describes.
    ///
    /// # Errors
    /// A configuration whose parts do not fit together, without data and without a width, or data that cannot be read.
    pub fn prepare(config: &Config) -> Result<Self> {
        match config.dtype {
            DType::F32 => Self::prepare_in::<f32>(config),
            DType::Bf16 => Self::prepare_in::<bf16>(config),
            DType::F16 => Self::prepare_in::<f16>(config),
        }
    }

    fn prepare_in<X: FloatX>(config: &Config) -> Result<Self> {
        let device = setup::device(config)?;
        if config.stage == Stage::Pretrain {
            let features = features(config)?;
            let work = Work::of(config, features.rows(), None)?;
            let (task, engine) = Pretrain::with_features::<X>(config, &device, features)?;
            return Ok(Self { runner: boxed(&device, task, engine), device, work });
        }
        let prior = prior::<X>(config, &device)?;
        let net = prior.net.config();
        match config.align.target {
            Target::Latents => {
                let work = Work::of(config, RowShape::vectors(net.data_width()), Some(net))?;
                let (task, engine) = LatentTask::new(config, &device, prior)?;
                Ok(Self { runner: boxed(&device, task, engine), device, work })
            }
            Target::Autoencoder => {
                let (task, engine) = AutoencoderTask::new(config, &device, prior)?;
                let work = Work::of(config, task.features.rows(), Some(net))?;
                Ok(Self { runner: boxed(&device, task, engine), device, work })
            }
        }
    }

    /// Makes one step and waits for its end.
    ///
    /// # Errors
    /// Data that cannot be read; a device that failed.
    pub fn advance(&mut self) -> Result<Report> {
        match self.runner.advance()? {
            Some(report) => Ok(report),
            None => self.runner.look(),
        }
    }

    /// Makes one step; on a CUDA device it is queued and not waited for.
    ///
    /// # Errors
    /// See [`Steps::advance`].
    pub fn queue(&mut self) -> Result<()> {
        self.runner.advance().map(drop)
    }

    /// Makes `warmup` steps, then times `steps`, or without a number as many as fill ten seconds (5 to 1,000): on the CPU by
    /// its clock, each to its end; on a CUDA device by events between steps that follow each other without a wait.
    ///
    /// # Errors
    /// See [`Steps::advance`].
    pub fn time(&mut self, warmup: usize, steps: Option<usize>) -> Result<Timing> {
        for _ in 0..warmup {
            self.advance()?;
        }
        let begin = Instant::now();
        let enough = |done: usize| match steps {
            Some(steps) => done >= steps,
            None => done >= MOST || done >= FEWEST && begin.elapsed() >= LONG_ENOUGH,
        };
        let mut timing = match self.device.clone() {
            Device::Cpu(_) => self.time_here(enough)?,
            Device::Cuda(queue) => self.time_on(&queue, enough)?,
        };
        timing.ms.sort_by(f64::total_cmp);
        Ok(timing)
    }

    fn time_here(&mut self, enough: impl Fn(usize) -> bool) -> Result<Timing> {
        let mut timing = Timing { ms: Vec::new(), skipped: 0 };
        while !enough(timing.ms.len()) {
            let start = Instant::now();
            let report = self.advance()?;
            timing.ms.push(start.elapsed().as_secs_f64() * 1e3);
            timing.skipped += report.skipped.is_some() as usize;
        }
        Ok(timing)
    }

    fn time_on(&mut self, queue: &Queue, enough: impl Fn(usize) -> bool) -> Result<Timing> {
        let before = self.runner.skipped();
        let mut moments = vec![queue.event()?];
        while !enough(moments.len() - 1) {
            self.runner.advance()?;
            moments.push(queue.event()?);
            // The host stays this far ahead at most: ten seconds of queued steps would be no ten seconds of steps.
            if let Some(last) = moments.len().checked_sub(AHEAD) {
                moments[last].ms_since(&moments[0])?;
            }
        }
        let ms: Result<Vec<f64>> = moments.windows(2).map(|pair| pair[1].ms_since(&pair[0])).collect();
        self.runner.look()?;
        Ok(Timing { ms: ms?, skipped: (self.runner.skipped() - before) as usize })
    }
}

impl Timing {
    /// Returns the time that a share of the steps stays below, by nearest rank; 0 without steps.
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.ms.len().saturating_sub(1);
        self.ms.get((share * last as f64).round() as usize).copied().unwrap_or(0.0)
    }
}

fn boxed<P: FloatX, T: Trainee<P> + Send + 'static>(
    device: &Device,
    task: T,
    engine: Engine<P>,
) -> Box<dyn Runner + Send> {
    Box::new(Pair { device: device.clone(), task, engine })
}

/// Describes the rows that are made up where no data are configured; of width 0 where the configuration does not say it.
pub fn made_up(config: &Config) -> RowShape {
    let model = &config.model;
    match model.image {
        Some(image) => RowShape { width: image.iter().product(), image: Some(image) },
        None => RowShape::vectors(model.channels),
    }
}

/// Opens the configured data, or makes rows up.
fn features(config: &Config) -> Result<Features> {
    if config.data.source().is_ok() {
        return Features::open(config);
    }
    let (model, rows) = (&config.model, made_up(config));
    let width = rows.width;
    if width == 0 {
        let why = "no data and no width to make some up: set `model.channels` or `model.image`, `data.path` or a preset";
        return Err(Error::Usage(why.into()));
    }
    let count = (SYNTHETIC_VALUES / width).clamp(config.train.batch.min(SYNTHETIC_ROWS), SYNTHETIC_ROWS);
    let mut rows = vec![0.0; count * width];
    let draw = Draw::new(config.seed, Stream::Toy, 0);
    for (i, row) in rows.chunks_exact_mut(width).enumerate() {
        Isa::detect().run(
            #[inline(always)]
            |arch| draw.fill_normal(arch, row, i as u64, 0),
        );
    }
    let classes = model.cond.max(model.classes);
    let labels = (classes > 0).then(|| (0..count).map(|i| (i % classes) as u32).collect());
    Features::from_source(config, Source::Memory(Memory::new(rows, width, labels)?))
}

/// Opens the configured prior, or initialises one.
fn prior<X: FloatX>(config: &Config, device: &Device) -> Result<Prior<X>> {
    if let Some(path) = &config.align.prior {
        return open_prior(device, path, config.align.use_ema);
    }
    let net = setup::network(config, RowShape::vectors(latent_width(config)))?;
    let params = net.init(device, config.seed)?;
    Prior::freeze(net, params, None, PathBuf::from("a fresh prior"))
}

/// Returns the most memory that this process has had at once, in bytes; `None` where the system does not tell.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_taken_by_rank() {
        let timing = Timing { ms: (1..=11).map(f64::from).collect(), skipped: 0 };
        assert_eq!([0.0, 0.2, 0.5, 0.8, 1.0].map(|q| timing.quantile(q)), [1.0, 3.0, 6.0, 9.0, 11.0]);
        assert_eq!(Timing { ms: Vec::new(), skipped: 0 }.quantile(0.5), 0.0);
    }
}

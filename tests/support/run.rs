//! Small training runs: configurations, priors, data sets, and the comparison of what two runs left behind.

#![allow(dead_code)] // each test program takes what it needs

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use flowprior::data::writer::{DatasetWriter, NonFinite, Spec};
use flowprior::device::Isa;
use flowprior::nn::{Grads, MlpConfig, Params, VelocityConfig, VelocityNet};
use flowprior::rng::{Draw, Stream};
use flowprior::train::align::{AutoencoderTask, LatentTask};
use flowprior::train::config::Target;
use flowprior::train::engine::Engine;
use flowprior::train::log::{Console, WALL_CLOCK};
use flowprior::train::pretrain::Pretrain;
use flowprior::train::prior::{Prior, write_network};
use flowprior::train::run::{RunOptions, Trainee, train};
use flowprior::train::signal::StopFlag;
use flowprior::train::task::{Meter, StepAt, Task};
use flowprior::train::{Config, Resume, RunDir, Sources, Stage, checkpoint, setup, start};
use flowprior::{DType, FloatX, Tensor};
use half::{bf16, f16};
use serde_json::Value;

pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The two stages, the second with both of its targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Pretrain,
    Latents,
    Autoencoder,
}

pub const KINDS: [Kind; 3] = [Kind::Pretrain, Kind::Latents, Kind::Autoencoder];

/// What all runs here share: every step is recorded, and nothing is at its first value for long.
const COMMON: &[&str] = &[
    "device=cpu",
    "threads=2",
    "train.steps=24",
    "train.batch=64",
    "train.log_every=1",
    "train.checkpoint_every=1000",
    "train.figures=false",
    "model.width=32",
    "model.depth=2",
    "optim.lr=2e-3",
    "optim.weight_decay=1e-3",
    "optim.ema=[0.9, 0.99]",
    "optim.schedule.warmup_steps=4",
    "optim.schedule.warmup_lr=1e-4",
];

/// Makes the network of a small run a DiT on handwritten digits, which it is told.
pub const DIT: &[&str] = &[
    "data.builtin=digits",
    "model.kind=dit",
    "model.image=[1, 8, 8]",
    "model.patch=4",
    "model.heads=4",
    "model.classes=10",
    "model.label_dropout=0.3",
    "train.batch=16",
];

/// Makes the autoencoder of a small run vision transformers.
pub const VIT: &[&str] = &[
    "align.autoencoder.kind=vit",
    "align.autoencoder.image=[1, 8, 8]",
    "align.autoencoder.width=16",
    "align.autoencoder.depth=2",
    "align.autoencoder.heads=2",
    "train.batch=16",
];

impl Kind {
    pub fn stage(self) -> Stage {
        if self == Self::Pretrain { Stage::Pretrain } else { Stage::Align }
    }

    /// Returns the `--set` values of a small run; stage 2 still needs its prior.
    pub fn sets(self) -> Vec<String> {
        let own: &[&str] = match self {
            Self::Pretrain => &["data.toy=gaussians", "flow.flow_mul=2"],
            Self::Latents => &["align.target=latents", "align.latents=64", "optim.lr=2e-2"],
            Self::Autoencoder => &[
                "align.target=autoencoder",
                "data.builtin=digits",
                "align.autoencoder.hidden=[48]",
                "align.autoencoder.latent=2",
                "align.autoencoder.tokens=3",
                "align.lambda=0.1",
                "flow.flow_mul=2",
            ],
        };
        COMMON.iter().chain(own).map(|s| (*s).to_owned()).collect()
    }

    /// Loads the configuration of a small run, `more` over it.
    pub fn config(self, prior: Option<&Path>, more: &[&str]) -> Outcome<Config> {
        let mut sets = self.sets();
        // Another source takes the place of the own one.
        sets.retain(|set| {
            !set.starts_with("data.toy") || !more.iter().any(|m| m.starts_with("data.builtin"))
        });
        sets.extend(prior.map(|p| format!("align.prior='{}'", p.display())));
        sets.extend(more.iter().map(|s| (*s).to_owned()));
        Ok(Config::load(&Sources { stage: Some(self.stage()), ..Default::default() }, &sets)?)
    }

    /// Runs to the end, or to the error that ends it.
    pub fn run(self, config: &Config, dir: &Path, resume: Resume) -> flowprior::Result<()> {
        self.run_with(config, &options(dir, resume, StopFlag::default()))
    }

    pub fn run_with(self, config: &Config, options: &RunOptions) -> flowprior::Result<()> {
        match self.stage() {
            Stage::Pretrain => start::pretrain(config, options),
            Stage::Align => start::align(config, options),
        }
    }
}

pub fn kind_of(config: &Config) -> Kind {
    match (config.stage, config.align.target) {
        (Stage::Pretrain, _) => Kind::Pretrain,
        (Stage::Align, Target::Latents) => Kind::Latents,
        (Stage::Align, Target::Autoencoder) => Kind::Autoencoder,
    }
}

pub fn options(dir: &Path, resume: Resume, stop: StopFlag) -> RunOptions {
    RunOptions { dir: dir.to_owned(), resume, console: Console::Quiet, title: "test".to_owned(), stop }
}

/// Writes a network whose every parameter is random, so that each of them matters: a fresh one gives v = 0 and passes no
/// gradient. `noise` of 0.05 keeps it smooth in t.
pub fn random_prior(path: &Path, channels: usize, noise: f32) -> Outcome<PathBuf> {
    let config = MlpConfig { channels, width: 32, depth: 2, cond: 0, post_norm: false, time_scale: 1.0 };
    let net = VelocityNet::new(VelocityConfig::Mlp(config))?;
    let mut flat = net.layout().initial_values(7);
    let mut shake = vec![0.0; flat.len()];
    normals(&mut shake, 7);
    flat.iter_mut().zip(&shake).for_each(|(w, s)| *w += noise * s);
    write_network(path, &net, &flat, None)?;
    Ok(path.to_owned())
}

/// Fills `out` with normal numbers.
pub fn normals(out: &mut [f32], seed: u64) {
    let draw = Draw::new(seed, Stream::Evaluation, 1 << 40);
    Isa::detect().run(
        #[inline(always)]
        |arch| draw.fill_normal(arch, out, 0, 0),
    );
}

/// Writes rows of `width` as a data set folder with `shard_rows` rows in a shard.
pub fn write_rows(dir: &Path, rows: &[f32], width: usize, shard_rows: usize) -> Outcome<PathBuf> {
    let spec = Spec { shard_rows: Some(shard_rows), non_finite: NonFinite::Allow, ..Spec::new(width) };
    let mut writer = DatasetWriter::create(dir, spec)?;
    writer.push(rows, None)?;
    writer.finish()?;
    Ok(dir.to_owned())
}

/// All files of a folder but those whose names `skip` says to leave out.
pub fn files(dir: &Path, skip: impl Fn(&str) -> bool) -> Outcome<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !skip(&name) {
            files.insert(name, fs::read(path)?);
        }
    }
    Ok(files)
}

/// The tensors of a checkpoint, file by file, as bytes.
pub fn tensors(run: &Path, step: u64) -> Outcome<BTreeMap<String, Vec<u8>>> {
    let found = files(&checkpoint::folder(&run.join("checkpoints"), step), |name| name.ends_with(".json"))?;
    assert!(found.len() >= 2, "weights and moments, at least: {:?}", found.keys());
    Ok(found)
}

/// Panics with the first file in which two sets of files differ.
pub fn assert_same(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert!(a.keys().eq(b.keys()), "{what}: {:?} against {:?}", a.keys(), b.keys());
    for (name, bytes) in a {
        let other = &b[name];
        let at = bytes.iter().zip(other).position(|(x, y)| x != y);
        let same = bytes.len() == other.len() && at.is_none();
        assert!(
            same,
            "{what}: {name} differs from byte {at:?} on ({} and {} bytes)",
            bytes.len(),
            other.len()
        );
    }
}

/// The records of a run without their wall-clock fields, which must be there.
pub fn records(run: &Path) -> Outcome<Vec<Value>> {
    let mut all = Vec::new();
    for line in fs::read_to_string(run.join("metrics.jsonl"))?.lines() {
        let mut record: Value = serde_json::from_str(line)?;
        let fields = record.as_object_mut().ok_or("a record is no object")?;
        assert!(WALL_CLOCK.iter().all(|name| fields.remove(*name).is_some()), "{line}");
        all.push(record);
    }
    Ok(all)
}

/// The values of one field of the records of a kind, with their steps.
pub fn series(run: &Path, kind: &str, field: &str) -> Outcome<Vec<(u64, f64)>> {
    let of = |r: &Value| Some((r["step"].as_u64()?, r[field].as_f64()?));
    Ok(records(run)?.iter().filter(|r| r["kind"] == kind).filter_map(of).collect())
}

/// A task that calls `before` with the step, ahead of each: to stop a run, or to look at it, from inside.
pub struct Hooked<T, F> {
    pub inner: T,
    pub before: F,
}

impl<P: FloatX, T: Task<P>, F: FnMut(u64)> Task<P> for Hooked<T, F> {
    fn prepare(&mut self, params: &Params<P>, step: u64) -> flowprior::Result<()> {
        (self.before)(step);
        self.inner.prepare(params, step)
    }

    fn gradients(
        &mut self,
        params: &Params<P>,
        at: StepAt,
        grads: &mut Grads,
        meter: &mut Meter<'_>,
    ) -> flowprior::Result<()> {
        self.inner.gradients(params, at, grads, meter)
    }

    fn waits(&self) -> Option<&'static str> {
        self.inner.waits()
    }

    fn fixed(&self, step: u64) -> String {
        self.inner.fixed(step)
    }
}

impl<P: FloatX, T: Trainee<P>, F: FnMut(u64) + Send> Trainee<P> for Hooked<T, F> {
    const STAGE: Stage = T::STAGE;

    fn architecture(&self) -> Value {
        self.inner.architecture()
    }

    fn memory(&self) -> Value {
        self.inner.memory()
    }

    fn recall(&mut self, memory: &Value) -> flowprior::Result<()> {
        self.inner.recall(memory)
    }

    fn samples(&self) -> usize {
        self.inner.samples()
    }

    fn notes(&mut self) -> Vec<String> {
        self.inner.notes()
    }

    fn evaluate(&mut self, engine: &Engine<P>) -> flowprior::Result<Vec<(&'static str, f64)>> {
        self.inner.evaluate(engine)
    }

    fn snapshot(&mut self, engine: &Engine<P>) -> flowprior::Result<Option<Tensor<f32>>> {
        self.inner.snapshot(engine)
    }
}

/// One process's part of a run: continues where the folder is, and is asked to stop during step `stop` (from 1; 0 for never).
pub fn session(kind: Kind, config: &Config, dir: &Path, stop: u64) -> flowprior::Result<()> {
    match config.dtype {
        DType::F32 => session_in::<f32>(kind, config, dir, stop),
        DType::Bf16 => session_in::<bf16>(kind, config, dir, stop),
        DType::F16 => session_in::<f16>(kind, config, dir, stop),
    }
}

fn session_in<X: FloatX>(kind: Kind, config: &Config, dir: &Path, stop: u64) -> flowprior::Result<()> {
    let flag = StopFlag::default();
    let options = options(dir, Resume::Auto, flag.clone());
    let before = move |step| {
        if step + 1 == stop {
            flag.request();
        }
    };
    let device = setup::device(config)?;
    let (run, start) = RunDir::start(dir, &Resume::Auto)?;
    let from = start.checkpoint;
    let prior = || Prior::<X>::read(&device, config.align.prior()?, None);
    match kind {
        Kind::Pretrain => {
            let (inner, mut engine) = Pretrain::new::<X>(config, &device)?;
            train(config, &options, &run, from, &mut Hooked { inner, before }, &mut engine)
        }
        Kind::Latents => {
            let (inner, mut engine) = LatentTask::new(config, &device, prior()?)?;
            train(config, &options, &run, from, &mut Hooked { inner, before }, &mut engine)
        }
        Kind::Autoencoder => {
            let (inner, mut engine) = AutoencoderTask::new(config, &device, prior()?)?;
            train(config, &options, &run, from, &mut Hooked { inner, before }, &mut engine)
        }
    }
}

//! The sections and keys of the configuration, with their defaults.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::align::AlignConfig;
use super::model::ModelConfig;
use crate::error::{Error, Result};
use crate::float::DType;
use crate::optim::scaler::ScalerConfig;
use crate::optim::schedule::Schedule;
use crate::optim::{OptimKind, Rounding};

/// The two stages of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Fits the velocity network to data.
    Pretrain,
    /// Moves latents, or an autoencoder, to where the frozen network's loss is small.
    Align,
}

impl Stage {
    /// Returns the name a user types.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Align => "align",
        }
    }
}

/// Everything that decides the result of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The stage: `pretrain` or `align`.
    pub stage: Stage,
    /// Decides all random numbers of the run.
    pub seed: u64,
    /// Where to compute: `auto`, `cpu` or `cuda[:n]`.
    pub device: String,
    /// Worker threads of the CPU; 0 for one per core. Results do not depend on it.
    pub threads: usize,
    /// Storage type of weights and activations: `f32`, `bf16` or `f16`. Arithmetic is always f32.
    #[serde(with = "dtype")]
    pub dtype: DType,
    /// CUDA, dtype `f32`: multiplies matrices on tensor cores, rounded to tf32 (10 bits of mantissa, sums in f32).
    pub tf32: bool,
    /// What to train on.
    pub data: DataConfig,
    /// The velocity network.
    pub model: ModelConfig,
    /// The flow-matching loss.
    pub flow: FlowConfig,
    /// The optimizer.
    pub optim: OptimConfig,
    /// Dynamic loss scaling; used with dtype `f16` only.
    pub scaler: ScalerConfig,
    /// Steps, batch, and how often things happen.
    pub train: TrainConfig,
    /// Stage 2.
    pub align: AlignConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            stage: Stage::Pretrain,
            seed: 42,
            device: "auto".to_owned(),
            threads: 0,
            dtype: DType::F32,
            tf32: false,
            data: DataConfig::default(),
            model: ModelConfig::default(),
            flow: FlowConfig::default(),
            optim: OptimConfig::default(),
            scaler: ScalerConfig::default(),
            train: TrainConfig::default(),
            align: AlignConfig::default(),
        }
    }
}

/// The six toy distributions (FEATURES 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Toy {
    /// Five Gaussians on a ring.
    Gaussians,
    /// Sixteen Gaussians on a 4 × 4 grid.
    Grid,
    /// Two half moons.
    Moons,
    /// Three rings.
    Rings,
    /// A single-arm spiral.
    Spiral,
    /// A Swiss roll seen from the side.
    Swissroll,
}

impl Toy {
    /// Returns the name a user types.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gaussians => "gaussians",
            Self::Grid => "grid",
            Self::Moons => "moons",
            Self::Rings => "rings",
            Self::Spiral => "spiral",
            Self::Swissroll => "swissroll",
        }
    }
}

/// The data sets that the program carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Builtin {
    /// Handwritten digits, 1,797 × 64.
    Digits,
    /// Token embeddings of a language model, projected.
    Tokens,
}

impl Builtin {
    /// Returns the name a user types.
    pub fn name(self) -> &'static str {
        match self {
            Self::Digits => "digits",
            Self::Tokens => "tokens",
        }
    }
}

/// What to train on: exactly one of `toy`, `path` and `builtin`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A toy distribution: `gaussians`, `grid`, `moons`, `rings`, `spiral` or `swissroll`.
    pub toy: Option<Toy>,
    /// A dataset folder, or a lone `.npy` or `.safetensors` file.
    pub path: Option<PathBuf>,
    /// A data set that the program carries: `digits` or `tokens`.
    pub builtin: Option<Builtin>,
    /// Subtracts the mean and divides by the standard deviation of each column, from the dataset's statistics.
    pub standardise: bool,
    /// Mirrors images left to right with probability ½, anew in every step; the data set must say that its rows are images.
    pub flip: bool,
    /// Whether rows that are stored as means and log-variances are drawn anew in every step; else their means are taken.
    pub sample_moments: bool,
    /// Batches that the loader reads ahead; 0 reads each when it is asked for. Never changes their order.
    pub prefetch: usize,
    /// Whether a CUDA device keeps all rows and gathers batches itself: `auto` (if they take at most half of its free memory),
    /// `yes` or `no`. The bits of a batch are the same.
    pub on_device: OnDevice,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            toy: None,
            path: None,
            builtin: None,
            standardise: false,
            flip: false,
            sample_moments: true,
            prefetch: 2,
            on_device: OnDevice::Auto,
        }
    }
}

/// Where a run keeps the rows of its data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDevice {
    /// On the device if they fit.
    Auto,
    /// On the device, or not at all.
    Yes,
    /// In host memory.
    No,
}

/// The one data source that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataSource<'a> {
    /// Draws from a toy distribution.
    Toy(Toy),
    /// A dataset folder or file.
    Path(&'a Path),
    /// A data set that the program carries.
    Builtin(Builtin),
}

impl DataConfig {
    /// Returns the one source.
    ///
    /// # Errors
    /// `Error::Usage` when there is none, or more than one.
    pub fn source(&self) -> Result<DataSource<'_>> {
        match (self.toy, &self.path, self.builtin) {
            (Some(toy), None, None) => Ok(DataSource::Toy(toy)),
            (None, Some(path), None) => Ok(DataSource::Path(path)),
            (None, None, Some(builtin)) => Ok(DataSource::Builtin(builtin)),
            (None, None, None) => Err(Error::Usage(
                "no data: set one of `data.toy`, `data.path` and `data.builtin` (for example `--set data.path=features.npy`)"
                    .to_owned(),
            )),
            _ => Err(Error::Usage(
                "data: only one of `data.toy`, `data.path` and `data.builtin` may be set".to_owned(),
            )),
        }
    }
}

/// How the time of each row is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeSampling {
    /// Independent and uniform.
    Uniform,
    /// Uniform, one row per equal slice of the interval: less variance.
    Stratified,
    /// σ(m + s·z), z normal, with `flow.logit_mean` and `flow.logit_std`.
    LogitNormal,
    /// In proportion to the weight, which rows then no longer have: the same expectation. Stratified, since that costs nothing.
    Importance,
}

/// The weight of a row's loss as a function of its time t (data at t = 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// w = 1: the paper's.
    Uniform,
    /// w = t/(1 − t): the alignment loss is the negative log-likelihood up to a constant (FEATURES 1.3).
    Likelihood,
    /// w = t²/(1 − t): what the detached gradient needs to descend a uniformly weighted KL divergence.
    Kl,
    /// The user's, `flow.weight_table`.
    Table,
}

/// How squared residuals become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Mean over rows and dimensions: the reference's code.
    MeanAll,
    /// Sum over dimensions, mean over rows: the paper's notation.
    SumDimsMeanRows,
}

/// The flow-matching loss, of both stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowConfig {
    /// Copies of each row, each with a time and noise of its own.
    pub flow_mul: usize,
    /// How times are drawn: `uniform`, `stratified`, `logit-normal` or `importance` (in proportion to the weight; stratified too).
    pub time: TimeSampling,
    /// Mean of the logit of t, for `logit-normal`.
    pub logit_mean: f64,
    /// Standard deviation of the logit of t, for `logit-normal`.
    pub logit_std: f64,
    /// Smallest time.
    pub time_min: f64,
    /// Largest time.
    pub time_max: f64,
    /// Weight of a row by its time: `uniform`, `likelihood`, `kl` or `table`.
    pub weight: Weight,
    /// Time from which on the weights `likelihood` and `kl` stay as they are there: they diverge at t = 1.
    pub weight_clip: f64,
    /// The weight `table`: its values at equal distances from t = 0 to t = 1, two at least, linear in between.
    pub weight_table: Vec<f64>,
    /// Reports the loss less a number that does not depend on the data's position, so that with weight `likelihood` it says −ln p, with less
    /// noise; gradients are the same.
    pub control_variate: bool,
    /// Brings the batch to mean 0 and standard deviation 1 first, with statistics of the batch.
    pub norm_target: bool,
    /// Brings each row to norm 1 first; needs `norm_target`.
    pub unit_norm: bool,
    /// How squared residuals become one number: `mean_all` or `sum_dims_mean_rows`.
    pub reduction: Reduction,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            flow_mul: 1,
            time: TimeSampling::Uniform,
            logit_mean: 0.0,
            logit_std: 1.0,
            time_min: 0.0,
            time_max: 1.0,
            weight: Weight::Uniform,
            weight_clip: 0.98,
            weight_table: Vec::new(),
            control_variate: false,
            norm_target: false,
            unit_norm: false,
            reduction: Reduction::MeanAll,
        }
    }
}

/// The optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// The rule: `adam`, `adamw`, `sgd` or `lion`.
    pub kind: OptimKind,
    /// The peak learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay, of weights with two dimensions or more; `adam` and `sgd` add it to the gradient, `adamw` and
    /// `lion` shrink the weights.
    pub weight_decay: f64,
    /// Momentum of `sgd`.
    pub momentum: f64,
    /// Nesterov's momentum, for `sgd`.
    pub nesterov: bool,
    /// Largest global norm of the gradient; 0 does not clip.
    pub clip: f64,
    /// How master weights become low-precision ones: `nearest` or `stochastic`.
    pub rounding: Rounding,
    /// Decay of each exponential moving average of the weights.
    pub ema: Vec<f64>,
    /// The learning rate as a function of the step.
    pub schedule: Schedule,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            kind: OptimKind::Adamw,
            lr: 2e-4,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            momentum: 0.9,
            nesterov: false,
            clip: 1.0,
            rounding: Rounding::Nearest,
            ema: vec![0.9999],
            schedule: Schedule::default(),
        }
    }
}

/// Steps, batch, and how often things happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Steps of the run.
    pub steps: u64,
    /// Samples of a step, before `flow.flow_mul`; with an autoencoder each gives `align.autoencoder.tokens` rows. Not
    /// used with free latents: all of them move in every step.
    pub batch: usize,
    /// Parts that the batch is computed in, one after the other, to save memory. The result does not depend on it.
    pub micro_batches: usize,
    /// Steps from one record of the log to the next.
    pub log_every: u64,
    /// Steps from one checkpoint to the next; 0 saves only at the end.
    pub checkpoint_every: u64,
    /// Checkpoints to keep, the newest.
    pub keep: usize,
    /// Steps in a row that may be not finite, and are skipped, before the run ends with exit code 5.
    pub max_skipped: u64,
    /// Steps from one evaluation to the next; 0 evaluates only at the end.
    pub eval_every: u64,
    /// Steps from one snapshot of free latents to the next, kept in the run folder for animations; 0 keeps none.
    pub snapshots_every: u64,
    /// Draws the figures of the run when it is finished.
    pub figures: bool,
    /// Keeps the input of each block alone, and computes the rest of it again in the backward pass: less memory, more time, the
    /// same results.
    pub recompute: bool,
    /// CUDA: makes a step by one graph, not kernel by kernel; the results are the same.
    pub graph: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 1_000_000,
            batch: 512,
            micro_batches: 1,
            log_every: 100,
            checkpoint_every: 5000,
            keep: 2,
            max_skipped: 20,
            eval_every: 0,
            snapshots_every: 0,
            figures: true,
            recompute: false,
            graph: true,
        }
    }
}

mod dtype {
    //! Reads and writes `DType` by the name a user types.

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::float::DType;

    pub fn serialize<S: Serializer>(dtype: &DType, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(dtype.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DType, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

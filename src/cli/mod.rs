//! The command line: one file per subcommand. Exit codes: 0 done, 2 usage, 3 bad data or checkpoint, 4 device or
//! toolkit, 5 diverged, 75 stopped but resumable.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use flowprior::train::config::{Config, Sources, Stage};
use flowprior::train::log::Console;
use flowprior::{Error, Result};

mod align;
mod bench;
mod data;
mod demo;
mod doctor;
mod eval;
mod figures;
mod likelihood;
mod plan;
mod pretrain;
mod recode;
mod sample;
mod variance;
mod weights;

/// Trains flow priors and aligns latent spaces to them.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stage 1: fit a velocity network to features.
    Pretrain(pretrain::PretrainArgs),
    /// Stage 2: freeze that network and move latents, or an autoencoder, to where its loss is small.
    Align(align::AlignArgs),
    /// Train both stages on toy and real data and draw the figures, in three minutes.
    Demo(demo::DemoArgs),
    /// Draw the figures of the paper, and train what they need.
    Figures(figures::FiguresArgs),
    /// Draw samples from a trained prior.
    Sample(sample::SampleArgs),
    /// Encode a data set by an aligned autoencoder.
    Encode(recode::EncodeArgs),
    /// Decode latents by an aligned autoencoder.
    Decode(recode::DecodeArgs),
    /// Find how likely a trained prior thinks rows are.
    Likelihood(likelihood::LikelihoodArgs),
    /// Measure a run.
    Eval(eval::EvalArgs),
    /// Say what a run will take, before it is run: parameters, arithmetic, memory, data, time.
    Plan(plan::PlanArgs),
    /// Time training steps on this machine; measure the variance of gradients.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Say what this machine has and what this build can use of it.
    Doctor(doctor::DoctorArgs),
    /// Make a prior of published weights.
    Weights(weights::WeightsArgs),
    /// Make, describe and check data sets.
    #[command(subcommand)]
    Data(data::DataCommand),
}

/// Says whether a CUDA device of this name is a driver that executes kernels on the processor: such a driver says so in the name.
fn is_emulated(name: &str) -> bool {
    name.contains("emulator")
}

/// Parses the command line, runs the command, and turns an error into one sentence and an exit code.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Pretrain(args) => pretrain::run(args),
        Command::Align(args) => align::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Figures(args) => figures::run(args),
        Command::Sample(args) => sample::run(args),
        Command::Encode(args) => recode::encode(args),
        Command::Decode(args) => recode::decode(args),
        Command::Likelihood(args) => likelihood::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Bench(command) => bench::run(command),
        Command::Doctor(args) => doctor::run(args),
        Command::Weights(args) => weights::run(args),
        Command::Data(command) => data::run(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let word = if matches!(error, Error::Stopped { .. }) { "stopped" } else { "error" };
            eprintln!("{word}: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Where a configuration comes from: a preset, a file, single keys, and flags for the most common keys.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// A named configuration: toy-gaussians, toy-grid, toy-moons, toy-rings, toy-spiral, toy-swissroll,
    /// reference-prior, reference-align, reference-dit, fashion, demo
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// A TOML file, laid over the preset
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, e.g. `train.steps=1000`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Where to compute: auto, cpu or cuda[:n]
    #[arg(long)]
    device: Option<String>,
    /// Storage type of weights and activations: f32, bf16 or f16
    #[arg(long)]
    dtype: Option<String>,
    /// Worker threads of the CPU, 0 for one per core; results do not depend on it
    #[arg(long)]
    threads: Option<usize>,
    /// Decides all random numbers
    #[arg(long)]
    seed: Option<u64>,
    /// Steps of the run
    #[arg(long)]
    steps: Option<u64>,
    /// How modulation is computed: auto, direct, nodes, nodes=R or groups=G
    #[arg(long)]
    modulation: Option<String>,
}

impl ConfigArgs {
    /// Says whether no source was named, so that a run that continues may take its own configuration.
    fn is_empty(&self) -> bool {
        self.preset.is_none() && self.config.is_none() && self.all_sets(&[]).is_empty()
    }

    /// Names the configuration, for titles.
    fn name(&self) -> String {
        match (&self.preset, &self.config) {
            (Some(preset), None) => preset.clone(),
            (_, Some(file)) => file.display().to_string(),
            (None, None) => String::new(),
        }
    }

    /// Loads the configuration for a stage; `more` are further settings, `a.b=c`.
    fn load(&self, stage: Stage, more: &[String]) -> Result<Config> {
        let sources = Sources { stage: Some(stage), preset: self.preset.clone(), file: self.config.clone() };
        Config::load(&sources, &self.all_sets(more))
    }

    fn all_sets(&self, more: &[String]) -> Vec<String> {
        let mut sets = self.sets.clone();
        let quoted = |key: &str, value: &Option<String>| value.as_ref().map(|v| format!("{key}='{v}'"));
        sets.extend(quoted("device", &self.device));
        sets.extend(quoted("dtype", &self.dtype));
        sets.extend(self.threads.map(|n| format!("threads={n}")));
        sets.extend(self.seed.map(|n| format!("seed={n}")));
        sets.extend(self.steps.map(|n| format!("train.steps={n}")));
        sets.extend(quoted("model.modulation", &self.modulation));
        sets.extend_from_slice(more);
        sets
    }
}

/// The run folder and how to start in it.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The run folder
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Continue: `auto` from the newest valid checkpoint (or start), `never`, or the path of a checkpoint
    #[arg(long, value_name = "auto|never|PATH", num_args = 0..=1, default_value = "never", default_missing_value = "auto")]
    resume: String,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

impl RunArgs {
    fn console(&self) -> Console {
        if self.quiet { Console::Quiet } else { Console::Auto }
    }
}

//! `flowprior bench step`: times whole training steps on this machine.
//!
//! With `--json` it prints one object:
//!
//! | key | |
//! | --- | --- |
//! | `ms_median`, `ms_min`, `ms_p20`, `ms_p80` | milliseconds of a step: data, forward, backward, clip, optimizer, averages |
//! | `samples_per_s` | samples of a step (before `flow_mul`) by the median time |
//! | `gflop_per_step`, `gflop_per_s` | matrix products of a step, by formula (`train::cost`), and by the median time |
//! | `peak_rss_bytes` | the most memory the process had at once, null where the system does not tell |
//! | `bytes_held` | tensor memory that the device holds |
//! | `preset`, `stage`, `target`, `dtype`, `modulation`, `threads`, `isa`, `device` | what was timed, as resolved |
//! | `samples_per_step`, `rows_per_step` | sizes of a step |
//! | `steps`, `warmup`, `skipped` | steps timed, made before, and those in which the optimizer did not run |

use clap::{Args, Subcommand, ValueEnum};
use flowprior::train::config::{Config, Sources, Stage, Target};
use flowprior::train::cost::Purpose;
use flowprior::train::timing::{self, Steps, Timing};
use flowprior::{Device, Error, Result};
use serde_json::{Value, json};

use crate::cli::ConfigArgs;
use crate::cli::variance::{VarianceArgs, variance};

/// What to time.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Time whole training steps
    Step(StepArgs),
    /// Measure the variance of gradients under a trained prior, by weight and by how times are drawn
    Variance(VarianceArgs),
}

/// Arguments of `bench step`. `--steps` says how many steps are timed.
#[derive(Args, Debug)]
pub struct StepArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The stage to time [default: the one of the configuration]
    #[arg(long)]
    stage: Option<StageArg>,
    /// What stage 2 moves [default: the configuration's; free latents where it names no data]
    #[arg(long)]
    target: Option<TargetArg>,
    /// Steps before the first that is timed
    #[arg(long, value_name = "N", default_value_t = 3)]
    warmup: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A stage, as an argument.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum StageArg {
    /// Stage 1
    Pretrain,
    /// Stage 2
    Align,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TargetArg {
    /// Free latents
    Latents,
    /// An autoencoder
    Autoencoder,
}

impl From<StageArg> for Stage {
    fn from(stage: StageArg) -> Self {
        match stage {
            StageArg::Pretrain => Self::Pretrain,
            StageArg::Align => Self::Align,
        }
    }
}

/// Times what was asked for and prints it.
///
/// # Errors
/// A configuration that cannot be timed (exit code 2) or data that cannot be read (3).
pub fn run(command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Step(args) => step(args),
        BenchCommand::Variance(args) => variance(args),
    }
}

fn step(args: StepArgs) -> Result<()> {
    if args.config.steps == Some(0) {
        return Err(Error::Usage("--steps must be at least 1, but is 0".into()));
    }
    let config = load(&args.config, args.stage.map(Stage::from))?;
    let target = args.target.map(|target| match target {
        TargetArg::Latents => Target::Latents,
        TargetArg::Autoencoder => Target::Autoencoder,
    });
    let config = timing::completed(config, target);
    let mut steps = Steps::prepare(&config)?;
    let timing = steps.time(args.warmup, args.config.steps.map(|n| n as usize))?;
    let report = report(&args, &config, &steps, &timing);
    if args.json {
        println!("{report}");
    } else {
        print_text(&report);
    }
    Ok(())
}

/// Loads the configuration of a command that needs no run: without one, the reference's of the stage.
pub(super) fn load(args: &ConfigArgs, stage: Option<Stage>) -> Result<Config> {
    let preset = match (&args.preset, &args.config, stage) {
        (None, None, Some(Stage::Align)) => Some("reference-align".to_owned()),
        (None, None, _) => Some("reference-prior".to_owned()),
        (preset, ..) => preset.clone(),
    };
    Config::load(&Sources { stage, preset, file: args.config.clone() }, &args.all_sets(&[]))
}

fn report(args: &StepArgs, config: &Config, steps: &Steps, timing: &Timing) -> Value {
    let work = &steps.work;
    let median = timing.quantile(0.5);
    let gflop = work.cost().total() as f64 / 1e9;
    let (device, threads, isa, held) = match &steps.device {
        Device::Cpu(cpu) => ("cpu", Some(cpu.threads()), Some(cpu.isa().name()), cpu.bytes_held()),
        Device::Cuda(queue) => ("cuda", None, None, queue.bytes_held()),
        _ => ("another", None, None, 0),
    };
    json!({
        "preset": args.config.name(),
        "stage": config.stage.name(),
        "target": match (work.purpose, &work.autoencoder) {
            (Purpose::Params, _) => "prior",
            (_, None) => "latents",
            (_, Some(_)) => "autoencoder",
        },
        "dtype": config.dtype.name(),
        "modulation": work.form.to_string(),
        "threads": threads,
        "isa": isa,
        "device": device,
        "device_name": steps.device.describe(),
        "samples_per_step": work.counted_samples(),
        "rows_per_step": work.rows(),
        "ms_median": median,
        "ms_min": timing.quantile(0.0),
        "ms_p20": timing.quantile(0.2),
        "ms_p80": timing.quantile(0.8),
        "samples_per_s": work.counted_samples() as f64 / median * 1e3,
        "gflop_per_step": gflop,
        "gflop_per_s": gflop / median * 1e3,
        "peak_rss_bytes": timing::peak_memory(),
        "bytes_held": held,
        "steps": timing.ms.len(),
        "warmup": args.warmup,
        "skipped": timing.skipped,
    })
}

fn print_text(report: &Value) {
    let text = |key: &str| report[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| report[key].as_f64().unwrap_or(f64::NAN);
    let mib = |key: &str| number(key) / (1u64 << 20) as f64;
    println!(
        "{} {} ({}), {}, modulation {}; {}",
        text("stage"),
        text("preset"),
        text("target"),
        text("dtype"),
        text("modulation"),
        text("device_name")
    );
    println!(
        "step     {} samples, {} rows, {:.4} GFLOP",
        number("samples_per_step"),
        number("rows_per_step"),
        number("gflop_per_step")
    );
    println!(
        "time     median {:.3} ms, least {:.3}, 20 to 80 % {:.3} to {:.3} ({} steps after {})",
        number("ms_median"),
        number("ms_min"),
        number("ms_p20"),
        number("ms_p80"),
        number("steps"),
        number("warmup")
    );
    println!("rate     {:.1} samples/s, {:.1} GFLOP/s", number("samples_per_s"), number("gflop_per_s"));
    println!("memory   {:.0} MiB at most, {:.0} MiB of it tensors", mib("peak_rss_bytes"), mib("bytes_held"));
    if crate::cli::is_emulated(&text("device_name")) {
        println!("note     this device is an emulator: its times say nothing about a GPU");
    }
    if number("skipped") > 0.0 {
        println!("skipped  {} steps were not finite: the optimizer did not run in them", number("skipped"));
    }
}

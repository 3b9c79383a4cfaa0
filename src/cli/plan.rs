//! `flowprior plan`: what a run will take, before it is run.
//!
//! With `--json` it prints one object: `stage`, `dtype`, `modulation`, `samples_per_step`, `rows_per_step`, `steps`;
//! `parameters` with `total`, `frozen` and `groups`; `flop` with `forward`, `input_gradient`, `weight_gradient`,
//! `attention`, `interpolation`, `per_step` and `total`; `bytes` with `weights`, `gradients`, `moments`, `averages`, `master`,
//! `prior`, `activations`, `scratch` and `total`; `data_bytes_per_step`; `seconds`, null without `--gflops`.

use std::path::PathBuf;

use clap::Args;
use flowprior::train::plan::Plan;
use flowprior::train::start::open_prior;
use flowprior::{Device, Error, Result};
use serde_json::{Value, json};

use crate::cli::ConfigArgs;
use crate::cli::bench::{StageArg, load};

/// Arguments of `plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The stage to plan [default: the one of the configuration]
    #[arg(long)]
    stage: Option<StageArg>,
    /// The prior that stage 2 will align to [default: one of the configured sizes]
    #[arg(long, value_name = "PATH")]
    prior: Option<PathBuf>,
    /// The rate to reckon the time with, in GFLOP/s; `bench step` measures it
    #[arg(long, value_name = "RATE")]
    gflops: Option<f64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Plans a run and prints it.
///
/// # Errors
/// A configuration that makes no sense (exit code 2); data or a prior that cannot be read (3).
pub fn run(args: PlanArgs) -> Result<()> {
    if let Some(rate) = args.gflops.filter(|rate| !(*rate > 0.0 && rate.is_finite())) {
        return Err(Error::Usage(format!("--gflops must be a positive number, but is {rate}")));
    }
    let config = load(&args.config, args.stage.map(Into::into))?;
    let path = args.prior.as_ref().or(config.align.prior.as_ref());
    let prior = path
        .map(|path| Ok::<_, Error>(open_prior::<f32>(&Device::cpu()?, path, true)?.net.config()))
        .transpose()?;
    let plan = Plan::new(&config, prior)?;
    let seconds = args.gflops.map(|rate| plan.seconds(rate));
    if args.json {
        println!("{}", report(config.stage.name(), config.dtype.name(), &plan, seconds));
    } else {
        print_text(&plan, seconds);
    }
    Ok(())
}

fn report(stage: &str, dtype: &str, plan: &Plan, seconds: Option<f64>) -> Value {
    let mut bytes = json!(plan.memory);
    bytes["total"] = json!(plan.memory.total());
    let groups: serde_json::Map<String, Value> =
        plan.parameters.iter().map(|(name, count)| (name.clone(), json!(count))).collect();
    json!({
        "stage": stage,
        "dtype": dtype,
        "modulation": plan.work.form.to_string(),
        "samples_per_step": plan.work.counted_samples(),
        "rows_per_step": plan.work.rows(),
        "steps": plan.steps,
        "parameters": { "total": plan.total_parameters(), "frozen": plan.frozen, "groups": groups },
        "flop": {
            "forward": plan.cost.forward,
            "input_gradient": plan.cost.input_gradient,
            "weight_gradient": plan.cost.weight_gradient,
            "attention": plan.cost.attention,
            "interpolation": plan.cost.interpolation,
            "per_step": plan.cost.total(),
            "total": plan.total_flop(),
        },
        "bytes": bytes,
        "data_bytes_per_step": plan.data_bytes,
        "seconds": seconds,
    })
}

fn print_text(plan: &Plan, seconds: Option<f64>) {
    println!("parameters   {:>12} trained", plan.total_parameters());
    for (name, count) in &plan.parameters {
        println!("             {count:>12} {name}");
    }
    if plan.frozen > 0 {
        println!("             {:>12} frozen, in the prior", plan.frozen);
    }
    let gflop = |flop: u64| flop as f64 / 1e9;
    println!(
        "a step       {} samples, {} rows, modulation {}",
        plan.work.counted_samples(),
        plan.work.rows(),
        plan.work.form
    );
    println!("arithmetic   {:>12.4} GFLOP a step", gflop(plan.cost.total()));
    let cost = &plan.cost;
    let parts = [
        (cost.forward, "forward"),
        (cost.input_gradient, "input gradients"),
        (cost.weight_gradient, "weight gradients"),
        (cost.attention, "attention"),
        (cost.interpolation, "interpolation of modulation"),
    ];
    parts.iter().for_each(|(flop, name)| println!("             {:>12.4} {name}", gflop(*flop)));
    println!("             {:>12.4e} FLOP in {} steps", plan.total_flop(), plan.steps);
    let mib = |bytes: u64| bytes as f64 / (1u64 << 20) as f64;
    let m = &plan.memory;
    println!("memory       {:>12.2} MiB of tensors", mib(m.total()));
    let parts = [
        (m.weights, "weights"),
        (m.gradients, "gradients"),
        (m.moments, "moments"),
        (m.averages, "averages"),
        (m.master, "f32 master weights"),
        (m.prior, "frozen prior"),
        (m.activations, "activations"),
        (m.scratch, "scratch"),
    ];
    let parts = parts.iter().filter(|(bytes, _)| *bytes > 0);
    parts.for_each(|(bytes, name)| println!("             {:>12.2} {name}", mib(*bytes)));
    println!("data         {:>12} bytes a step", plan.data_bytes);
    match seconds {
        Some(seconds) => println!("time         {seconds:>12.0} s ({:.2} hours)", seconds / 3600.0),
        None => println!("time         unknown: give the rate that `bench step` measures with --gflops"),
    }
}

//! `flowprior bench variance`: how noisy gradients are, by weight and by how times are drawn.
//!
//! With `--json` it prints one object: `run`, `of` (`latents` or `params`), `latents` and `at` (where they lie), `flow_mul` (null:
//! the run's), `repeats`, `seed`, and `rows`, one for each combination, of [`flowprior::train::variance::Measured`].

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use flowprior::rng::MAX_REPLICAS;
use flowprior::train::variance::{Latents, Measured, Options, Subject, measure};
use flowprior::{Error, Result};
use serde_json::json;

/// Arguments of `bench variance`.
#[derive(Args, Debug)]
pub struct VarianceArgs {
    /// Run folder of `pretrain`, or one of its checkpoints
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Whose gradients: latents under the frozen prior (stage 2), or the prior's own parameters (stage 1)
    #[arg(long, value_enum, default_value_t = Of::Latents)]
    of: Of,
    /// Where latents lie: at rows of the data, where alignment ends, or normal, where it starts
    #[arg(long, value_enum, default_value_t = At::Data)]
    at: At,
    /// Latents
    #[arg(long, default_value_t = 256, value_name = "N")]
    latents: usize,
    /// Steps of each combination
    #[arg(long, default_value_t = 256, value_name = "R")]
    repeats: u64,
    /// Copies of each row in a step, each with a time and noise of its own [default: the run's]
    #[arg(long, value_name = "K")]
    flow_mul: Option<usize>,
    /// Decides all draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Of {
    /// Latents
    Latents,
    /// Parameters
    Params,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum At {
    /// Rows of the data
    Data,
    /// Standard normal
    Normal,
}

/// Measures and prints.
pub(super) fn variance(args: VarianceArgs) -> Result<()> {
    let refused = |what: &str| Err(Error::Usage(format!("bench variance: {what}")));
    if args.repeats < 2 || args.latents == 0 {
        return refused("--repeats needs at least 2, --latents at least 1");
    }
    if args.flow_mul.is_some_and(|k| k == 0 || k > MAX_REPLICAS) {
        return refused(&format!("--flow-mul needs 1 to {MAX_REPLICAS}"));
    }
    let at = if args.at == At::Data { Latents::Data } else { Latents::Normal };
    let subject = match args.of {
        Of::Latents => Subject::Latents { at, count: args.latents },
        Of::Params => Subject::Params,
    };
    let VarianceArgs { repeats, flow_mul, seed, .. } = args;
    let rows = measure(&args.run, &Options { subject, repeats, flow_mul, seed })?;
    if !args.json {
        print(&rows);
        return Ok(());
    }
    let of_latents = args.of == Of::Latents;
    let name = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
    let report = json!({
        "run": args.run,
        "of": name(&args.of),
        "latents": of_latents.then_some(args.latents),
        "at": of_latents.then(|| name(&args.at)),
        "flow_mul": flow_mul,
        "repeats": repeats,
        "seed": seed,
        "rows": rows,
    });
    println!("{report}");
    Ok(())
}

fn print(rows: &[Measured]) {
    println!(
        "{:10}  {:12}  {:8}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}",
        "weight", "time", "gradient", "loss", "std", "signal", "deviation", "noise"
    );
    for row in rows {
        let noise = row.noise.map_or("-".to_owned(), |noise| format!("{noise:.2}"));
        println!(
            "{:10}  {:12}  {:8}  {:9.4}  {:9.4}  {:9.4}  {:9.4}  {noise:>9}",
            row.weight, row.time, row.gradient, row.loss, row.loss_std, row.signal, row.deviation
        );
    }
}

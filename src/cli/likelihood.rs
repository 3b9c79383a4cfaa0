//! `flowprior likelihood`: log-densities of rows under a trained prior.

use std::path::PathBuf;

use clap::Args;
use flowprior::flow::sampler::Tolerance;
use flowprior::train::likelihood::{Options, TraceBy, likelihood};
use flowprior::{Error, Result};

/// Arguments of `likelihood`.
#[derive(Debug, Args)]
pub struct LikelihoodArgs {
    /// A run folder of `pretrain`, one of its checkpoints, or the safetensors file of a velocity network
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Rows to measure: a data set in the units of the prior's data [default: the prior's own]
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// How many rows, at most
    #[arg(long, value_name = "N", default_value_t = Options::default().count)]
    count: usize,
    /// ode: the integral along each row's path, exact; ode-free: the loss with weight t/(1-t), an estimate
    #[arg(long, value_name = "NAME", default_value = "ode")]
    method: String,
    /// The Jacobian's trace: exact, a product for each column, or hutchinson, one random product [default: exact up to 16 columns]
    #[arg(long, value_name = "NAME")]
    trace: Option<String>,
    /// The solver of the ODE: euler, midpoint, heun, rk4, ab2, or dopri5, which chooses its steps
    #[arg(long, value_name = "NAME", default_value = "rk4")]
    solver: String,
    /// Steps of the solver
    #[arg(long, value_name = "K", default_value_t = Options::default().steps)]
    steps: usize,
    /// Error of a step that dopri5 allows, relative and absolute
    #[arg(long, value_name = "E", default_value_t = Tolerance::default().rtol)]
    tolerance: f64,
    /// ode-free: draws of noise and time for each row
    #[arg(long, value_name = "K", default_value_t = Options::default().draws)]
    draws: usize,
    /// ode-free: the largest t
    #[arg(long, value_name = "T", default_value_t = Options::default().truncation)]
    truncation: f64,
    /// ode-free: further draws for each row at that t, from which what lies beyond it is estimated; 0 leaves it out
    #[arg(long, value_name = "K", default_value_t = Options::default().tail)]
    tail: usize,
    /// The class of all rows, for a network with classes
    #[arg(long, value_name = "CLASS")]
    class: Option<usize>,
    /// Decides rows, probes and draws
    #[arg(long, default_value_t = Options::default().seed)]
    seed: u64,
    /// Print one JSON object: count, width, method, trace, nll, nll_std, nll_stderr, bits_per_dim, nll_in_units, nll_true,
    /// evaluations, rejected
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
pub fn run(args: LikelihoodArgs) -> Result<()> {
    let options = Options {
        data: args.data,
        count: args.count,
        by: args.method.parse()?,
        trace: args.trace.as_deref().map(str::parse::<TraceBy>).transpose()?,
        solver: args.solver.parse()?,
        steps: args.steps,
        tolerance: Tolerance { rtol: args.tolerance, atol: args.tolerance, ..Default::default() },
        draws: args.draws,
        truncation: args.truncation,
        tail: args.tail,
        seed: args.seed,
        class: args.class,
    };
    let found = likelihood(&args.run, &options)?;
    if args.json {
        let json = serde_json::to_string(&found);
        println!("{}", json.map_err(|e| Error::data(&args.run, "json", "values that JSON can hold", e))?);
        return Ok(());
    }
    let how = found.trace.map_or(String::new(), |trace| format!(", {trace} trace"));
    println!("{} rows of width {} by {}{how}", found.count, found.width, found.method);
    println!(
        "mean -ln p        {:.4} ± {:.4} nats, spread {:.4}",
        found.nll, found.nll_stderr, found.nll_std
    );
    println!("bits per dim      {:.4}", found.bits_per_dim);
    if let Some(nll) = found.nll_in_units {
        println!("in data units     {nll:.4} nats");
    }
    if let Some(nll) = found.nll_true {
        println!("true density      {nll:.4} nats");
    }
    if let Some(evaluations) = found.evaluations {
        println!("evaluations       {evaluations}");
    }
    Ok(())
}

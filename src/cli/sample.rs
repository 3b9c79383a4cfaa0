//! `flowprior sample`: samples of a trained prior, as a file and a picture.

use std::path::{Path, PathBuf};

use clap::Args;
use flowprior::flow::Method;
use flowprior::train::generate::generate;
use flowprior::train::sampling::Sampling;
use flowprior::{Error, Result};

/// Arguments of `sample`.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// A run folder, one of its checkpoints, or the safetensors file of a velocity network
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// How many samples [default: 1000; all latents of a run that aligned latents]
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Steps of the solver from noise to data
    #[arg(long, value_name = "K", default_value_t = Sampling::default().steps)]
    steps: usize,
    /// The solver: euler, midpoint, heun or rk4
    #[arg(long, default_value = "heun")]
    method: String,
    /// Decides the noise; the first n samples do not depend on how many are drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The class of all samples of a conditional network [default: each in turn]
    #[arg(long, value_name = "CLASS")]
    class: Option<usize>,
    /// File to write, .npy or .safetensors, with a .png beside it for 2-D samples and images [default: samples.npy in
    /// the run folder, or beside the network's file]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print one JSON object: what, count, width, out, figure, nll, log_rk
    #[arg(long)]
    json: bool,
}

/// Samples and says where the samples are.
pub fn run(args: SampleArgs) -> Result<()> {
    let sampling = Sampling {
        steps: args.steps,
        method: args.method.parse::<Method>()?,
        seed: args.seed,
        class: args.class,
        ..Default::default()
    };
    let out = args.out.unwrap_or_else(|| beside(&args.run));
    let made = generate(&args.run, &sampling, args.count, &out)?;
    if args.json {
        let json = serde_json::to_string(&made);
        println!("{}", json.map_err(|e| Error::data(&out, "json", "values that JSON can hold", e))?);
        return Ok(());
    }
    println!("{} {} of width {} in {}", made.count, made.what, made.width, made.out.display());
    if let Some(figure) = &made.figure {
        println!("figure {}", figure.display());
    }
    if let Some(nll) = made.nll {
        println!("mean -ln p under the true density {nll:.4}");
    }
    if let Some(log_rk) = made.log_rk {
        println!("mean log distance to the fifth nearest data row {log_rk:.4}");
    }
    Ok(())
}

fn beside(run: &Path) -> PathBuf {
    match run.is_dir() {
        true => run.join("samples.npy"),
        false => run.with_file_name("samples.npy"),
    }
}

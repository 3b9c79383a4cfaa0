//! `flowprior sample`: samples of a trained prior, as a file and a picture.

use std::path::{Path, PathBuf};

use clap::Args;
use flowprior::flow::Grid;
use flowprior::flow::guidance::Guidance;
use flowprior::flow::sampler::sde::Sde;
use flowprior::flow::sampler::{Method, Tolerance};
use flowprior::train::beside::Beside;
use flowprior::train::generate::{With, generate};
use flowprior::train::sampling::Sampling;
use flowprior::{Error, Result};

/// Arguments of `sample`.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// A run folder, one of its checkpoints, or the safetensors file of a velocity network
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// How many samples [default: 1000; all latents of a run that aligned latents; one for each row of --beside]
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Steps of the solver from noise to data
    #[arg(long, value_name = "K", default_value_t = Sampling::default().steps)]
    steps: usize,
    /// The solver: euler, midpoint, heun, rk4, ab2, or dopri5, which chooses its steps [default: heun; euler with --sde]
    #[arg(long, value_name = "NAME")]
    method: Option<String>,
    /// The times of the steps, `0,…,1`, instead of --steps equal ones
    #[arg(long, value_name = "T,T,…", conflicts_with = "shift")]
    grid: Option<String>,
    /// Moves the steps: t = a·u/(1 + (a-1)·u) for equal steps of u; a below 1 spends more of them near noise
    #[arg(allow_negative_numbers = true, long, value_name = "A")]
    shift: Option<f64>,
    /// Error of a step that dopri5 allows, relative and absolute
    #[arg(allow_negative_numbers = true, long, value_name = "E", default_value_t = Tolerance::default().rtol)]
    tolerance: f64,
    /// Random paths with this diffusion: constant, sbdm, sigma, linear, decreasing, increasing-decreasing or flow-grpo
    #[arg(long, value_name = "FORM")]
    sde: Option<String>,
    /// What the diffusion is multiplied by; the a of flow-grpo
    #[arg(allow_negative_numbers = true, long, value_name = "W", default_value_t = 1.0, requires = "sde")]
    sde_scale: f64,
    /// The last step of a random path, which has no noise: tweedie, euler or mean
    #[arg(long, value_name = "NAME", default_value = "tweedie", requires = "sde")]
    sde_last: String,
    /// Guides by this weight: a network with classes by itself without one, or any by --weak
    #[arg(allow_negative_numbers = true, long, value_name = "W")]
    guidance: Option<f64>,
    /// What the weight means: `w`, weak + w·(strong - weak), or `1+w`, (1+w)·strong - w·weak
    #[arg(long, value_name = "FORM", default_value = "w", requires = "guidance")]
    guidance_form: String,
    /// The times that are guided
    #[arg(long, value_name = "LO,HI", default_value = "0,1", requires = "guidance")]
    guidance_interval: String,
    /// CFG-Zero*: scales the weak velocity of each sample to the strong one, and stands still for the first K steps
    #[arg(long, value_name = "K", num_args = 0..=1, default_missing_value = "1", requires = "guidance")]
    cfg_zero: Option<usize>,
    /// Autoguidance: the weak velocity is that of this prior, smaller or less trained
    #[arg(long, value_name = "RUN", requires = "guidance")]
    weak: Option<PathBuf>,
    /// Decides the noise; the first n samples do not depend on how many are drawn (but for the steps of dopri5)
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The class of all samples of a conditional network [default: each in turn]
    #[arg(long, value_name = "CLASS")]
    class: Option<usize>,
    /// What a network with a spatial condition is shown: a data set, row by row. Its labels are the classes of the samples
    #[arg(long, value_name = "DATA")]
    beside: Option<PathBuf>,
    /// The hole in those images that a network trained by model.inpaint fills: upper, lower, left, right, centre, or an array (H, W)
    /// that is not 0 there
    #[arg(long, value_name = "HOLE", requires = "beside")]
    mask: Option<String>,
    /// File to write, .npy or .safetensors, with a .png beside it for 2-D samples and images [default: samples.npy in
    /// the run folder, or beside the network's file]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print one JSON object: what, count, width, out, figure, nll, log_rk, evaluations, rejected
    #[arg(long)]
    json: bool,
}

/// Samples and says where the samples are.
pub fn run(args: SampleArgs) -> Result<()> {
    let sampling = sampling(&args)?;
    let out = args.out.unwrap_or_else(|| samples_of(&args.run));
    let mask = args.mask.as_deref().map(str::parse).transpose()?;
    let beside = args.beside.map(|data| Beside { data, mask });
    let with = With { weak: args.weak.as_deref(), beside: beside.as_ref() };
    let made = generate(&args.run, &sampling, with, args.count, &out)?;
    if args.json {
        let json = serde_json::to_string(&made);
        println!("{}", json.map_err(|e| Error::data(&out, "json", "values that JSON can hold", e))?);
        return Ok(());
    }
    println!("{} {} of width {} in {}", made.count, made.what, made.width, made.out.display());
    if let Some(figure) = &made.figure {
        println!("figure {}", figure.display());
    }
    if let Some(evaluations) = made.evaluations {
        println!("{evaluations} evaluations of the velocity for each");
    }
    if let Some(nll) = made.nll {
        println!("mean -ln p under the true density {nll:.4}");
    }
    if let Some(log_rk) = made.log_rk {
        println!("mean log distance to the fifth nearest data row {log_rk:.4}");
    }
    Ok(())
}

fn sampling(args: &SampleArgs) -> Result<Sampling> {
    let sde = args.sde.as_ref().map(|form| {
        Ok::<_, Error>(Sde { diffusion: form.parse()?, scale: args.sde_scale, last: args.sde_last.parse()? })
    });
    let guidance = args.guidance.map(|scale| {
        let interval = interval(&args.guidance_interval)?;
        Ok::<_, Error>(Guidance { scale, form: args.guidance_form.parse()?, interval, zero: args.cfg_zero })
    });
    let times = match args.grid.as_deref().map(Grid::listed).transpose()? {
        Some(Grid::Listed(times)) => Some(times),
        _ => None,
    };
    let method = match &args.method {
        Some(name) => name.parse()?,
        None if args.sde.is_some() => Method::Euler,
        None => Sampling::default().method,
    };
    Ok(Sampling {
        steps: args.steps,
        method,
        shift: args.shift,
        times,
        tolerance: Tolerance { rtol: args.tolerance, atol: args.tolerance, ..Default::default() },
        sde: sde.transpose()?,
        guidance: guidance.transpose()?,
        seed: args.seed,
        class: args.class,
        ..Default::default()
    })
}

fn interval(text: &str) -> Result<(f64, f64)> {
    let numbers =
        text.split_once(',').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    numbers
        .ok_or_else(|| Error::Usage(format!("--guidance-interval takes two times, `0.1,0.8`, not `{text}`")))
}

fn samples_of(run: &Path) -> PathBuf {
    match run.is_dir() {
        true => run.join("samples.npy"),
        false => run.with_file_name("samples.npy"),
    }
}

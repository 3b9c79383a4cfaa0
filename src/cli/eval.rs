//! `flowprior eval`: the metrics of a run.

use std::path::PathBuf;

use clap::Args;
use flowprior::train::evaluate::{Evaluation, Options, evaluate};
use flowprior::{Error, Result};

/// Arguments of `eval`.
#[derive(Debug, Args)]
#[command(after_long_help = keys_help())]
pub struct EvalArgs {
    /// Run folder of `pretrain` or `align`, or one of its checkpoints
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Print one JSON object; its keys are below
    #[arg(long)]
    json: bool,
    /// Decides all draws: the same seed gives the same numbers
    #[arg(long, default_value_t = Options::default().seed)]
    seed: u64,
    /// Draws of noise and time for each of the 2,500 points of a loss landscape
    #[arg(long, default_value_t = Options::default().draws, value_name = "K")]
    draws: usize,
    /// Largest t of the landscape with weight t/(1-t): beyond it the weight multiplies the network's own error
    #[arg(long, default_value_t = Options::default().truncation, value_name = "T")]
    truncation: f64,
    /// Samples of a prior
    #[arg(long, default_value_t = Options::default().samples, value_name = "N")]
    samples: usize,
}

/// The keys of the JSON object and what they mean.
const KEYS: [(&str, &str); 23] = [
    ("stage", "`pretrain` or `align`"),
    ("target", "what was trained: `prior`, `latents` or `autoencoder`"),
    ("source", "the data that the run names"),
    ("step", "finished steps"),
    ("seed", "the seed of all draws"),
    ("loss", "what the run minimises (alignment in stage 2): averaged weights, fresh data and draws"),
    ("loss_stderr", "its standard error, below 0.3 % of it but for extreme variance"),
    ("loss_weights", "prior: the same with the weights of the last step"),
    ("loss_floor", "prior of a toy that is a mixture: the smallest loss that any network can reach"),
    ("reconstruction", "autoencoder: mean squared error of fresh data"),
    ("nll", "toys: mean -ln p of the points under the true density of normalised data"),
    ("nll_stderr", "its standard error"),
    ("nll_data", "the same of data, which is the entropy"),
    (
        "spearman_uniform",
        "prior of a toy: Spearman's correlation of the alignment loss with the true -ln p, 50 x 50 grid",
    ),
    ("spearman_likelihood", "the same for the weight t/(1-t), t up to --truncation"),
    ("log_rk", "mean log of the distance of a point to its fifth nearest data row, exact"),
    ("log_rk_data", "the same of data among themselves"),
    ("sliced_w2", "sliced Wasserstein-2 distance of points and data"),
    ("occupancy", "mixtures: modes, min and max points at one, share within three standard deviations"),
    ("spread", "mixtures: rms distance to the nearest mode in standard deviations; 1 for data"),
    ("std_ratio", "total standard deviation of the points over that of the data"),
    ("rank", "participation rank of the points' covariance: the dimensions they fill"),
    ("nearest_share", "different data rows that are nearest to a point, over the points"),
];

fn keys_help() -> String {
    let mut help = "Keys of --json, null where one does not apply. 'Points' are samples of a prior, free latents, or the \
                    latents of an autoencoder's data, in the space of the prior; 'data' are what the prior was trained on.\n"
        .to_owned();
    KEYS.iter().for_each(|(key, meaning)| help.push_str(&format!("  {key:20} {meaning}\n")));
    help
}

/// Evaluates a run and prints what was found.
pub fn run(args: EvalArgs) -> Result<()> {
    if args.draws < 2 || args.samples == 0 {
        return Err(Error::Usage("eval: --draws needs at least 2, --samples at least 1".into()));
    }
    if !(args.truncation > 0.0 && args.truncation < 1.0) {
        return Err(Error::Usage(format!("eval: --truncation needs 0 to 1, found {}", args.truncation)));
    }
    let EvalArgs { seed, draws, truncation, samples, .. } = args;
    let options = Options { seed, draws, truncation, samples, ..Default::default() };
    let found = evaluate(&args.run, &options)?;
    match args.json {
        true => println!("{}", in_order(&found)?),
        false => print_text(&found)?,
    }
    Ok(())
}

/// The object with its keys in the order above.
fn in_order(found: &Evaluation) -> Result<String> {
    serde_json::to_string(found).map_err(|e| Error::data("eval", "json", "values that JSON can hold", e))
}

fn to_json(found: &Evaluation) -> Result<serde_json::Value> {
    serde_json::to_value(found).map_err(|e| Error::data("eval", "json", "values that JSON can hold", e))
}

fn print_text(found: &Evaluation) -> Result<()> {
    let values = to_json(found)?;
    for (key, _) in KEYS {
        match &values[key] {
            serde_json::Value::Null => {}
            serde_json::Value::String(text) => println!("{key:20} {text}"),
            value if value.is_f64() => println!("{key:20} {:.4}", value.as_f64().unwrap_or(f64::NAN)),
            value => println!("{key:20} {value}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_key_of_the_json_object_and_no_other() {
        let values = to_json(&Evaluation::default()).unwrap();
        let mut documented: Vec<&str> = KEYS.iter().map(|k| k.0).collect();
        documented.sort_unstable();
        assert!(values.as_object().unwrap().keys().eq(documented), "{values}");
    }
}

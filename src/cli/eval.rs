//! `flowprior eval`: the metrics of a run, or of two files of features.

use std::path::PathBuf;

use clap::Args;
use flowprior::train::compare::compare_files;
use flowprior::train::evaluate::{Options, evaluate};
use flowprior::{Error, Result};
use serde::Serialize;
use serde_json::Value;

/// Arguments of `eval`.
#[derive(Debug, Args)]
#[command(after_long_help = keys_help())]
pub struct EvalArgs {
    /// Run folder of `pretrain` or `align`, or one of its checkpoints; with --against a file of features, or a data set
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Data that the features RUN are compared with: a file of any format that `data import` reads, or a data set
    #[arg(long, value_name = "FILE", conflicts_with_all = ["draws", "truncation", "samples"])]
    against: Option<PathBuf>,
    /// With --against: files with the labels of RUN and of its data, in that order, for coverage by class
    #[arg(long, value_name = "FILE", num_args = 1..=2, requires = "against")]
    labels: Vec<PathBuf>,
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

/// The keys of a run's JSON object, before those of [`SET_KEYS`], and what they mean.
const RUN_KEYS: [(&str, &str); 20] = [
    ("stage", "`pretrain` or `align`"),
    ("target", "what was trained: `prior`, `latents` or `autoencoder`"),
    ("source", "the data that the run names"),
    ("step", "finished steps"),
    ("seed", "the seed of all draws"),
    ("loss", "what the run minimises: averaged weights, fresh data and draws"),
    ("loss_stderr", "its standard error, below 0.3 % of it but for extreme variance"),
    ("nll_prior", "with flow.control_variate: -ln p of a row under the prior, in nats, from the loss"),
    ("loss_weights", "prior: the same with the weights of the last step"),
    ("loss_floor", "prior of a mixture: the smallest loss that any network can reach"),
    ("reconstruction", "autoencoder: mean squared error of fresh data"),
    ("psnr", "autoencoder: PSNR of fresh data in dB, the peak being their range"),
    ("w2_bound", "bound on W2^2 to data: estimated terms, and the bound's logarithm"),
    ("nll", "toys: mean -ln p of the points under the true density"),
    ("nll_stderr", "its standard error"),
    ("nll_data", "the same of data, which is the entropy"),
    ("spearman_uniform", "prior of a toy: Spearman of loss and true -ln p on a 50 x 50 grid"),
    ("spearman_likelihood", "the same for the weight t/(1-t), t up to --truncation"),
    ("occupancy", "mixtures: modes, min and max points at one, share within 3 sigma"),
    ("spread", "mixtures: rms distance to the nearest mode over sigma; 1 for data"),
];

/// The keys of a comparison's JSON object, before those of [`SET_KEYS`], and what they mean.
const FILE_KEYS: [(&str, &str); 7] = [
    ("points", "the file of the points"),
    ("data", "the file of the data"),
    ("rows", "points"),
    ("rows_data", "rows of the data"),
    ("width", "columns"),
    ("seed", "the seed of the rows' order and of sliced_w2"),
    ("classes", "labels: coverage and density of each class, all rows"),
];

/// The keys of points against data, in both objects.
const SET_KEYS: [(&str, &str); 16] = [
    ("log_rk", "mean log of the distance of a point to its fifth nearest data row"),
    ("log_rk_data", "the same of data among themselves"),
    ("nll_knn", "estimate of mean -ln p from log_rk, nats a row (a token)"),
    ("nll_knn_data", "the same of data among themselves: their entropy"),
    ("coverage", "share of data with a point among their 5 nearest; 0.97 for fresh data"),
    ("density", "data that a point is among the 5 nearest of, over 5; 1 for fresh data"),
    ("std_ratio", "total standard deviation of the points over that of the data"),
    ("rank", "participation rank of the points' covariance: the dimensions they fill"),
    ("effective_rank", "exp of the entropy of the points' singular values; up to 400 columns"),
    ("effective_rank_data", "the same of the data"),
    ("nearest_share", "different data rows that are nearest to a point, over the points"),
    ("sliced_w2", "sliced Wasserstein-2 distance of points and data"),
    ("w2", "exact Wasserstein-2 distance of some points and data, at most 1,024 each"),
    ("w2_data", "the same of those data and as many others"),
    ("mmd2", "unbiased squared MMD, Gaussian kernel of the median distance"),
    ("frechet", "squared Frechet distance; of runs up to 400 columns"),
];

fn keys_help() -> String {
    let runs = "Keys of --json, null where one does not apply. 'Points' are samples of a prior, free latents, or the latents of \
                an autoencoder's data, in the space of the prior; 'data' are what the prior was trained on.\n";
    let lines = |keys: &[(&str, &str)]| -> String {
        keys.iter().map(|(key, meaning)| format!("  {key:20} {meaning}\n")).collect()
    };
    let (of_runs, of_files, of_sets) = (lines(&RUN_KEYS), lines(&FILE_KEYS), lines(&SET_KEYS));
    format!(
        "{runs}{of_runs}Instead of these, with --against:\n{of_files}In both, points against data:\n{of_sets}"
    )
}

/// Evaluates a run, or compares two files, and prints what was found.
pub fn run(args: EvalArgs) -> Result<()> {
    if args.draws < 2 || args.samples == 0 {
        return Err(Error::Usage("eval: --draws needs at least 2, --samples at least 1".into()));
    }
    if !(args.truncation > 0.0 && args.truncation < 1.0) {
        return Err(Error::Usage(format!("eval: --truncation needs 0 to 1, found {}", args.truncation)));
    }
    let EvalArgs { seed, draws, truncation, samples, json, .. } = args;
    if let Some(data) = &args.against {
        return print(&compare_files(&args.run, data, &args.labels, seed)?, &FILE_KEYS, json);
    }
    let options = Options { seed, draws, truncation, samples, ..Default::default() };
    print(&evaluate(&args.run, &options)?, &RUN_KEYS, json)
}

/// Prints all keys of an object, those of `keys` first.
fn print(found: &impl Serialize, keys: &[(&str, &str)], json: bool) -> Result<()> {
    let unwritable = |e| Error::data("eval", "json", "values that JSON can hold", e);
    if json {
        println!("{}", serde_json::to_string(found).map_err(unwritable)?);
        return Ok(());
    }
    let values = serde_json::to_value(found).map_err(unwritable)?;
    for (key, _) in keys.iter().chain(&SET_KEYS) {
        match &values[key] {
            Value::Null => {}
            Value::Array(classes) => classes.iter().for_each(print_class),
            value => println!("{key:20} {}", text(value)),
        }
    }
    Ok(())
}

/// Writes numbers to four digits, and the entries of an object but for null ones.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Object(entries) => {
            let known = entries.iter().filter(|(_, value)| !value.is_null());
            known.map(|(key, value)| format!("{key} {}", text(value))).collect::<Vec<_>>().join(", ")
        }
        value if value.is_f64() => match value.as_f64().unwrap_or(f64::NAN) {
            x if x != 0.0 && x.abs() < 1e-2 => format!("{x:.3e}"),
            x => format!("{x:.4}"),
        },
        value => value.to_string(),
    }
}

fn print_class(class: &Value) {
    let [number, coverage, density, queries, targets] =
        ["class", "coverage", "density", "queries", "targets"].map(|key| text(&class[key]));
    let name = format!("class {number}");
    println!("{name:20} coverage {coverage}, density {density}, {queries} points, {targets} data rows");
}

#[cfg(test)]
mod tests {
    use flowprior::train::compare::FeatureComparison;
    use flowprior::train::evaluate::Evaluation;

    use super::*;

    fn documented(found: &impl Serialize, keys: &[(&str, &str)]) {
        let values = serde_json::to_value(found).unwrap();
        let mut documented: Vec<&str> = keys.iter().chain(&SET_KEYS).map(|k| k.0).collect();
        documented.sort_unstable();
        assert!(values.as_object().unwrap().keys().eq(documented), "{values}");
    }

    #[test]
    fn help_names_every_key_of_the_json_objects_and_no_other() {
        documented(&Evaluation::default(), &RUN_KEYS);
        documented(&FeatureComparison::default(), &FILE_KEYS);
    }

    #[test]
    fn small_numbers_keep_their_digits() {
        let texts = [0.25, 0.00123, -0.00123, 0.0].map(|x| text(&Value::from(x)));
        assert_eq!(texts, ["0.2500", "1.230e-3", "-1.230e-3", "0.0000"]);
        let object = serde_json::json!({ "a": 1.5, "b": null, "c": 2 });
        assert_eq!(text(&object), "a 1.5000, c 2");
        assert_eq!((text(&Value::from(3)), text(&Value::from("a"))), ("3".into(), "a".into()));
    }
}

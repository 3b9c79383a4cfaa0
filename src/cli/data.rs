//! `flowprior data import | info | verify`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use flowprior::data::Dataset;
use flowprior::data::import::{self, LabelSource, Maps, Options, Scale, Shift};
use flowprior::data::projection::Kind;
use flowprior::data::stats::Stats;
use flowprior::data::writer::NonFinite;
use flowprior::{DType, Error, Result};
use serde_json::{Value, json};

/// What users import most.
const EXAMPLES: &str = "\
Examples:
  Features, projected to 32 dimensions of unit variance:
    flowprior data import features.npy --out features --centre --scale auto --project random:32
  Fashion-MNIST of Debian's package dataset-fashion-mnist, 60,000 images padded to 32 x 32, values from -1 to 1:
    D=/usr/share/datasets/fashion-mnist
    flowprior data import $D/train-images-idx3-ubyte.gz --labels $D/train-labels-idx1-ubyte.gz --out fashion \\
      --pad 32,32 --shift 127.5 --scale 0.007843137 \\
      --class-names T-shirt,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Boot
  Means and log-variances of a VAE, (N, 8, 32, 32), whose samples are multiplied by 0.18215:
    flowprior data import moments.npy --out latents --moments --latent-scale 0.18215";

/// Makes, describes and checks data sets.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Turn npy, npz, safetensors, IDX(.gz) or .pt files into a data set folder
    #[command(after_help = EXAMPLES)]
    Import(Box<ImportArgs>),
    /// Describe a data set folder, or a lone .npy or .safetensors file
    Info(DatasetArgs),
    /// Read everything and compare checksums, statistics and labels
    Verify(DatasetArgs),
}

/// Says what to import and how.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// Files with feature rows, in order; the first dimension counts rows
    #[arg(required = true, value_name = "FILE")]
    inputs: Vec<PathBuf>,
    /// Folder to make
    #[arg(short, long, value_name = "FOLDER")]
    out: PathBuf,
    /// Name of the features in npz, safetensors and .pt files
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// Files with labels, one for each input
    #[arg(long, value_name = "FILE", conflicts_with = "labels_key")]
    labels: Vec<PathBuf>,
    /// Name of the labels in the inputs themselves
    #[arg(long, value_name = "NAME")]
    labels_key: Option<String>,
    /// Number of classes; labels must be below it [default: the largest label plus one]
    #[arg(long, value_name = "N")]
    classes: Option<u32>,
    /// Names of the classes, in order
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    class_names: Vec<String>,
    /// Channels, height and width of a row [default: the input's, where it has more than two dimensions]
    #[arg(long, value_name = "C,H,W")]
    shape: Option<String>,
    /// Pad images to this height and width, on all sides alike
    #[arg(long, value_name = "H,W")]
    pad: Option<String>,
    /// Pad with this value, before shift and scale
    #[arg(long, value_name = "X", allow_hyphen_values = true, default_value_t = 0.0, requires = "pad")]
    background: f32,
    /// Semantic maps, one file for each input: arrays (rows, H·f, W·f) with a class for each pixel. The share of each class in the
    /// f × f pixels of an image's pixel becomes a channel behind the image's: see model.cond_channels, model.cond_rescale
    #[arg(long, value_name = "FILE", requires = "map_classes")]
    map: Vec<PathBuf>,
    /// Classes of the maps
    #[arg(long, value_name = "K", requires = "map")]
    map_classes: Option<usize>,
    /// Rows are means and their log-variances, (2·C, H, W): samples are drawn when they are read
    #[arg(long)]
    moments: bool,
    /// Multiply samples by this number when they are read, and divide by it when they are written; rows are stored as they are
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    latent_scale: Option<f32>,
    /// Storage type: f32, bf16 or f16 [default: the input's, or f32 when anything is computed]
    #[arg(long)]
    dtype: Option<String>,
    /// Rows in a shard [default: about 64 MiB]
    #[arg(long, value_name = "N")]
    shard_rows: Option<usize>,
    /// Subtract this number
    #[arg(long, value_name = "X", allow_hyphen_values = true, conflicts_with = "centre")]
    shift: Option<f32>,
    /// Subtract the mean of each dimension
    #[arg(long)]
    centre: bool,
    /// Multiply by this number after the shift, or `auto` for unit variance
    #[arg(long, value_name = "X|auto", allow_hyphen_values = true)]
    scale: Option<String>,
    /// Project to N dimensions: random:N, pool:N, pca:N or whiten:N
    #[arg(long, value_name = "KIND:N")]
    project: Option<String>,
    /// Seed of a random projection
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Store NaN and infinite values instead of refusing them
    #[arg(long)]
    allow_non_finite: bool,
    /// Take only the first N rows
    #[arg(long, value_name = "N")]
    max_rows: Option<u64>,
}

/// Names a data set.
#[derive(Args, Debug)]
pub struct DatasetArgs {
    /// Data set folder, .npy or .safetensors file
    path: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs one of the three commands and prints what it found.
///
/// # Errors
/// Whatever is wrong with the arguments (exit code 2) or the files (3).
pub fn run(command: DataCommand) -> Result<()> {
    match command {
        DataCommand::Import(args) => import(*args),
        DataCommand::Info(args) => info(args),
        DataCommand::Verify(args) => verify(args),
    }
}

fn import(args: ImportArgs) -> Result<()> {
    let options = Options {
        key: args.key,
        labels: match args.labels_key {
            Some(key) => LabelSource::Key(key),
            None if args.labels.is_empty() => LabelSource::None,
            None => LabelSource::Files(args.labels),
        },
        classes: args.classes,
        class_names: args.class_names,
        shape: args.shape.as_deref().map(|text| parse_sizes("--shape", "C,H,W", text)).transpose()?,
        pad: args.pad.as_deref().map(|text| parse_sizes("--pad", "H,W", text)).transpose()?,
        background: args.background,
        maps: args.map_classes.map(|classes| Maps { files: args.map, classes }),
        moments: args.moments,
        latent_scale: args.latent_scale,
        dtype: args.dtype.map(|d| d.parse::<DType>()).transpose()?,
        shard_rows: args.shard_rows,
        shift: if args.centre { Shift::Mean } else { Shift::Value(args.shift.unwrap_or(0.0)) },
        scale: args.scale.as_deref().map_or(Ok(Scale::Value(1.0)), parse_scale)?,
        projection: args.project.as_deref().map(parse_projection).transpose()?,
        seed: args.seed,
        non_finite: if args.allow_non_finite { NonFinite::Allow } else { NonFinite::Refuse },
        max_rows: args.max_rows,
    };
    let dataset = import::import(&args.inputs, &options, &args.out)?;
    print_text(&dataset, dataset.stats());
    Ok(())
}

/// Reads `S` sizes, none of them 0.
pub fn parse_sizes<const S: usize>(option: &str, form: &str, text: &str) -> Result<[usize; S]> {
    let expected = || Error::Usage(format!("{option} `{text}`: expected {form}, whole numbers above 0"));
    let sizes: Vec<usize> =
        text.split(',').filter_map(|n| n.trim().parse().ok()).filter(|n| *n > 0).collect();
    match text.split(',').count() {
        count if count == S => sizes.try_into().map_err(|_| expected()),
        _ => Err(expected()),
    }
}

fn parse_scale(text: &str) -> Result<Scale> {
    match text {
        "auto" => Ok(Scale::UnitVariance),
        _ => text
            .parse()
            .map(Scale::Value)
            .map_err(|_| Error::Usage(format!("--scale `{text}`: expected a number or `auto`"))),
    }
}

fn parse_projection(text: &str) -> Result<(Kind, usize)> {
    let expected = || Error::Usage(format!("--project `{text}`: expected KIND:N, as in `random:32`"));
    let (kind, width) = text.split_once(':').ok_or_else(expected)?;
    Ok((kind.parse()?, width.parse().map_err(|_| expected())?))
}

fn info(args: DatasetArgs) -> Result<()> {
    let dataset = Dataset::open(&args.path)?;
    if args.json {
        println!("{}", describe(&dataset, dataset.stats()));
    } else {
        print_text(&dataset, dataset.stats());
    }
    Ok(())
}

fn verify(args: DatasetArgs) -> Result<()> {
    let dataset = Dataset::open(&args.path)?;
    let verified = dataset.verify()?;
    if args.json {
        let mut object = describe(&dataset, Some(&verified.stats));
        object["verified"] = json!(true);
        object["checksums"] = json!(verified.files);
        println!("{object}");
        return Ok(());
    }
    print_text(&dataset, Some(&verified.stats));
    match verified.files {
        0 => println!("verified    all values read; a lone file has no checksum"),
        n => println!("verified    {n} checksums, all values, statistics and labels"),
    }
    Ok(())
}

fn describe(dataset: &Dataset, stats: Option<&Stats>) -> Value {
    let projection = dataset.manifest().and_then(|m| m.projection.as_ref());
    json!({
        "path": dataset.path(),
        "rows": dataset.rows(),
        "width": dataset.width(),
        "shape": dataset.image_shape(),
        "latents": dataset.latents(),
        "dtype": dataset.dtype().name(),
        "shards": dataset.shards().len(),
        "bytes": dataset.rows() * (dataset.stored_width() * dataset.dtype().bytes()) as u64,
        "has_labels": dataset.has_labels(),
        "classes": dataset.classes().map(|c| c.classes),
        "class_names": dataset.classes().map(|c| &c.names),
        "projection": projection,
        "stats": stats,
    })
}

fn print_text(dataset: &Dataset, stats: Option<&Stats>) {
    let shape = dataset.image_shape().map_or(String::new(), |[c, h, w]| format!(" ({c} × {h} × {w})"));
    println!("data set    {}", dataset.path().display());
    println!("rows        {} of {}{shape} {} values", dataset.rows(), dataset.width(), dataset.dtype());
    println!("shards      {}", dataset.shards().len());
    match dataset.classes() {
        Some(classes) => {
            let colon = if classes.names.is_empty() { "" } else { ": " };
            println!("labels      {} classes{colon}{}", classes.classes, classes.names.join(", "));
        }
        None if dataset.has_labels() => println!("labels      yes"),
        None => println!("labels      none"),
    }
    if let Some(p) = dataset.manifest().and_then(|m| m.projection.as_ref()) {
        let seed = p.seed.map_or(String::new(), |seed| format!(", seed {seed}"));
        println!(
            "projection  {} from {}, scale {}, mean shift {}{seed}",
            p.kind, p.input_width, p.scale, p.shift
        );
    }
    if let Some(latents) = dataset.latents() {
        let moments = if latents.moments { ", stored as means and log-variances" } else { "" };
        println!("latents     scale {}{moments}", latents.scale);
    }
    match stats {
        Some(s) => println!(
            "values      mean {:.6}, deviation {:.6}, from {} to {}, {} not finite",
            s.mean, s.std, s.min, s.max, s.non_finite
        ),
        None => println!("values      not measured (`data verify` reads them)"),
    }
}

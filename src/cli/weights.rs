//! `flowprior weights`: makes a prior of weights that others have published.
//!
//! With `--json` it prints one object: `kind`, `dit` or `mlp`; `sizes`, as the file's metadata has them; `parameters`; `time_convention`,
//! that of the weights before they were turned into ours; `out`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use flowprior::nn::dit::DitInput;
use flowprior::nn::{Import, StateDict, TimeConvention, VelocityConfig};
use flowprior::train::prior::Prior;
use flowprior::{Device, Error, Result};
use serde_json::json;

use crate::cli::data::parse_sizes;

const NAMES: &str = "FILE holds the state dict of DiT, SiT, LFM or the reference's MLP. Averaged weights are taken where there are some \
under `ema.`; `module.`, `_orig_mod.`, `flow_loss.`, `diffloss.`, `net.` and `model.` before a name are passed over. The file that is written \
names its sizes and its time convention: `sample`, `likelihood`, `align` and `plan` take it as it is.";

/// Arguments of `weights`.
#[derive(Args, Debug)]
#[command(after_long_help = NAMES)]
pub struct WeightsArgs {
    /// A safetensors file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where the weights have the data on the time axis: a network that is taken for the other computes something else [default:
    /// what the file says]
    #[arg(long, value_name = "NAME")]
    time_convention: Option<ConventionArg>,
    /// Classes in the label table, whose last row may be "no class" beside them
    #[arg(long, value_name = "N")]
    classes: Option<usize>,
    /// Attention heads, where the sizes are none of S, B, L and XL
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Height and width of images, where the file has no position embedding of a square; `1,T` for T tokens in a row
    #[arg(long, value_name = "H,W")]
    image: Option<String>,
    /// What t is multiplied by before its embedding [default: what the file says, or 1]
    #[arg(allow_negative_numbers = true, long, value_name = "S")]
    time_scale: Option<f32>,
    /// Take the tensors whose names begin like this, without it: `generator.`, or `model.` for weights beside their average
    #[arg(long, value_name = "START", default_value = "", hide_default_value = true)]
    prefix: String,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print one JSON object: kind, sizes, parameters, time_convention, out
    #[arg(long)]
    json: bool,
}

/// A time convention, as an argument.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ConventionArg {
    /// x_t = (1 - t)·noise + t·data: SiT
    #[value(name = "data-at-1", alias = "data_at_one")]
    DataAtOne,
    /// x_t = (1 - t)·data + t·noise: LFM
    #[value(name = "noise-at-1", alias = "noise_at_one")]
    NoiseAtOne,
}

/// Reads the weights, writes them as a prior and says what they are.
///
/// # Errors
/// What the file leaves open and no argument says (exit code 2); a file that is no velocity network, or contradicts an argument (3).
pub fn run(args: WeightsArgs) -> Result<()> {
    let import = import(&args)?;
    let dict = StateDict::read_under(&args.file, &args.prefix)?;
    let convention = dict.known_convention(&args.file, import.convention).map_err(named)?.name();
    let prior = Prior::<f32>::from_state(&Device::cpu()?, &args.file, dict, &import).map_err(named)?;
    prior.write(&args.out)?;
    let (config, parameters) = (prior.net.config(), prior.net.layout().count());
    if args.json {
        let (kind, sizes) = match config {
            VelocityConfig::Mlp(mlp) => ("mlp", json!(mlp)),
            VelocityConfig::Dit { dit } => ("dit", json!(dit)),
        };
        let found = json!({
            "kind": kind, "sizes": sizes, "parameters": parameters, "time_convention": convention, "out": args.out,
        });
        println!("{found}");
        return Ok(());
    }
    println!("network     {}", described(&config));
    println!("parameters  {parameters}");
    println!("time        {convention} in the file, scale {}", config.time_scale());
    println!("prior       {}", args.out.display());
    Ok(())
}

fn import(args: &WeightsArgs) -> Result<Import> {
    if let Some(scale) = args.time_scale.filter(|scale| !(*scale > 0.0 && scale.is_finite())) {
        return Err(Error::Usage(format!("--time-scale must be a positive number, but is {scale}")));
    }
    let convention = args.time_convention.map(|convention| match convention {
        ConventionArg::DataAtOne => TimeConvention::DataAtOne,
        ConventionArg::NoiseAtOne => TimeConvention::NoiseAtOne,
    });
    let image = args.image.as_deref().map(|text| parse_sizes("--image", "H,W", text)).transpose()?;
    let WeightsArgs { time_scale, heads, classes, .. } = *args;
    Ok(Import { convention, time_scale, heads, classes, image })
}

/// Names the argument that tells what a file leaves open.
fn named(error: Error) -> Error {
    match error {
        Error::NotGiven { field, .. } => {
            Error::Usage(format!("{error}; give it with --{}", field.replace('_', "-")))
        }
        other => other,
    }
}

fn described(config: &VelocityConfig) -> String {
    let also = |count: usize, what: &str| if count > 0 { format!(", {count} {what}") } else { String::new() };
    match config {
        VelocityConfig::Mlp(mlp) => {
            let (rows, cond) = (mlp.channels, also(mlp.cond, "numbers of a condition"));
            format!("MLP, {} blocks of width {}, rows of {rows}{cond}", mlp.depth, mlp.width)
        }
        VelocityConfig::Dit { dit } => {
            let rows = match dit.input {
                DitInput::Image { channels, height, width, patch } => {
                    format!("{channels} × {height} × {width} in patches of {patch}")
                }
                DitInput::Tokens { tokens, channels } => format!("{tokens} tokens of {channels}"),
            };
            let null = if dit.null_label { " and none" } else { "" };
            let (classes, beside) =
                (also(dit.classes, "classes"), also(dit.cond_channels, "channels of a spatial condition"));
            let (depth, width, heads) = (dit.depth, dit.width, dit.heads);
            format!("DiT, {depth} blocks of width {width}, {heads} heads, {rows}{classes}{null}{beside}")
        }
    }
}

//! `flowprior encode` and `flowprior decode`: an autoencoder of `align` at work.

use std::path::PathBuf;

use clap::Args;
use flowprior::train::recode;
use flowprior::{Error, Result};

/// Arguments of `encode`.
#[derive(Debug, Args)]
pub struct EncodeArgs {
    /// A run of `align` with an autoencoder, or one of its checkpoints
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The data set to encode: a folder, .npy or .safetensors file
    #[arg(long, value_name = "DATA")]
    data: PathBuf,
    /// The data set folder to make: a row has all latents of a sample, and its label
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print one JSON object: out, count, tokens, width
    #[arg(long)]
    json: bool,
}

/// Arguments of `decode`.
#[derive(Debug, Args)]
pub struct DecodeArgs {
    /// A run of `align` with an autoencoder, or one of its checkpoints
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The latents: a data set folder, .npy or .safetensors file with all latents of a sample in a row
    #[arg(value_name = "LATENTS")]
    latents: PathBuf,
    /// File to write, .npy or .safetensors, in the units of the data
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print one JSON object: out, count, tokens, width
    #[arg(long)]
    json: bool,
}

/// Writes the latents of a data set.
pub fn encode(args: EncodeArgs) -> Result<()> {
    say(&recode::encode(&args.run, &args.data, &args.out)?, args.json)
}

/// Writes the data that latents stand for.
pub fn decode(args: DecodeArgs) -> Result<()> {
    say(&recode::decode(&args.run, &args.latents, &args.out)?, args.json)
}

fn say(done: &recode::Recoded, json: bool) -> Result<()> {
    if json {
        let line = serde_json::to_string(done);
        println!("{}", line.map_err(|e| Error::data(&done.out, "json", "values that JSON can hold", e))?);
        return Ok(());
    }
    let (count, width, tokens) = (done.count, done.width, done.tokens);
    println!("{count} rows of width {width} in {}; {tokens} latents a sample", done.out.display());
    Ok(())
}

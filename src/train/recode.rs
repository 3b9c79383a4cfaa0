//! A trained autoencoder at work: data to latents, as a data set that a second network can be trained on, and latents to data.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde::Serialize;

use crate::data::dataset::Dataset;
use crate::data::writer::{DatasetWriter, Labels, Spec};
use crate::error::{Error, Result};
use crate::float::{DType, FloatX};
use crate::nn::Params;
use crate::train::align::AutoencoderTask;
use crate::train::config::{Stage, Target};
use crate::train::export::{check_ending, write_rows};
use crate::train::restore::Restored;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recoded {
    /// The data set folder, or the file.
    pub out: PathBuf,
    /// Samples.
    pub count: u64,
    /// Latents of a sample.
    pub tokens: usize,
    /// Values of a row: of all latents of a sample, or of its data.
    pub width: usize,
}

/// Which way.
#[derive(Clone, Copy, Debug)]
enum Way<'a> {
    Encode { data: &'a Path },
    Decode { latents: &'a Path },
}

/// Encodes the data set `data` by the averaged weights of a run, in order, to the data set folder `out`: rows (tokens·latent), with the
/// labels of the data. Data are standardised as the run's were.
///
/// Latents that are normalised by their batch (`align.std_latents`) are so by batches of `train.batch` rows.
///
/// # Errors
/// A run of something else; data of another width; a folder that exists.
pub fn encode(run: &Path, data: &Path, out: &Path) -> Result<Recoded> {
    recode(run, Way::Encode { data }, out)
}

/// Decodes rows (N, tokens·latent) of the file or data set `latents`, to a `.npy` or `.safetensors` file in the units of the data.
///
/// # Errors
/// A run of something else; latents of another width; a name with another ending.
pub fn decode(run: &Path, latents: &Path, out: &Path) -> Result<Recoded> {
    check_ending(out)?;
    recode(run, Way::Decode { latents }, out)
}

fn recode(path: &Path, way: Way<'_>, out: &Path) -> Result<Recoded> {
    let run = Restored::open(path)?;
    if (run.config.stage, run.config.align.target) != (Stage::Align, Target::Autoencoder) {
        let found = format!("{} has none", path.display());
        return Err(Error::Usage(format!(
            "only a run of `align` with an autoencoder encodes and decodes: {found}"
        )));
    }
    let device = run.device()?;
    device.scope(|| match run.config.dtype {
        DType::F32 => {
            let (task, engine) = run.autoencoder::<f32>(&device)?;
            by(&task, &engine.optimizer.averaged()?, &run, way, out)
        }
        DType::Bf16 => {
            let (task, engine) = run.autoencoder::<bf16>(&device)?;
            by(&task, &engine.optimizer.averaged()?, &run, way, out)
        }
        DType::F16 => {
            let (task, engine) = run.autoencoder::<f16>(&device)?;
            by(&task, &engine.optimizer.averaged()?, &run, way, out)
        }
    })
}

fn by<X: FloatX>(
    task: &AutoencoderTask<X>,
    params: &Params<X>,
    run: &Restored,
    way: Way<'_>,
    out: &Path,
) -> Result<Recoded> {
    let (latents, width) = (task.net.config().latents(), task.features.width());
    let standardise = task.features.standardise.as_ref();
    let (tokens, out) = (task.net.config().tokens, out.to_owned());
    match way {
        Way::Encode { data } => {
            let data = of_width(data, width)?;
            let labels = match (data.has_labels(), data.classes()) {
                (false, _) => Labels::None,
                (true, Some(classes)) => Labels::Classes(classes.clone()),
                (true, None) => Labels::Count,
            };
            let labelled = labels != Labels::None;
            let mut writer = DatasetWriter::create(&out, Spec { labels, ..Spec::new(latents) })?;
            each_batch(&data, run.config.train.batch, |ids, mut rows| {
                if let Some(standardise) = standardise {
                    standardise.apply(&mut rows);
                }
                let mut numbers = vec![0; ids.len()];
                if labelled {
                    data.gather_labels(ids, &mut numbers)?;
                }
                writer.push(&task.encode_rows(params, &rows)?, labelled.then_some(&numbers[..]))
            })?;
            let count = writer.finish()?.rows();
            Ok(Recoded { out, count, tokens, width: latents })
        }
        Way::Decode { latents: path } => {
            let rows = of_width(path, latents)?;
            let mut decoded = Vec::new();
            each_batch(&rows, run.config.train.batch, |_, rows| {
                decoded.extend(task.decode(params, &rows)?);
                Ok(())
            })?;
            if let Some(standardise) = standardise {
                standardise.invert(&mut decoded);
            }
            write_rows(&out, "features", &decoded, width)?;
            Ok(Recoded { out, count: rows.rows(), tokens, width })
        }
    }
}

/// Opens a data set whose rows have this width.
fn of_width(path: &Path, width: usize) -> Result<Dataset> {
    let data = Dataset::open(path)?;
    match data.width() == width {
        true => Ok(data),
        false => Err(Error::data(path, "width", width, data.width())),
    }
}

fn each_batch(data: &Dataset, batch: usize, mut f: impl FnMut(&[u64], Vec<f32>) -> Result<()>) -> Result<()> {
    let all: Vec<u64> = (0..data.rows()).collect();
    for ids in all.chunks(batch) {
        let mut rows = vec![0.0; ids.len() * data.width()];
        data.gather(ids, &mut rows)?;
        f(ids, rows)?;
    }
    Ok(())
}

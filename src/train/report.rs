//! The figures of a run, drawn from its records and its newest checkpoint into RUN/figures.
//!
//! ```text
//! prior         training.png   loss of batches and of fresh data, its floor; log r_k of samples
//!               samples.png    2-D: data and samples
//! latents       alignment.png  toys: the reference's three panels;  else training.png
//! autoencoder   training.png   reconstruction and alignment
//!               log-rk.png     alignment against log r_k, a point for each evaluation
//!               neighbours.png both over the steps
//!               images.png     data, reconstructions and decoded samples of the prior, where data are square images
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};

use crate::data::source::Source;
use crate::error::{Error, Result};
use crate::float::{DType, FloatX};
use crate::flow::{Estimate, Weight};
use crate::metrics::spearman;
use crate::plot::{
    Curves, Group, ImageGrid, Join, Layout, Relation, Scale, Series, ToyPanels, ValueAxis, curves,
    image_grid, scatter_2d, scatter_xy, toy_panels,
};
use crate::train::align::{AutoencoderTask, LatentTask};
use crate::train::config::{DataConfig, Stage, Target};
use crate::train::engine::Engine;
use crate::train::evaluate::EXTENT_ROWS;
use crate::train::records::{Records, Track};
use crate::train::restore::Restored;
use crate::train::sampling::{Sampling, points, sample_rows};
use crate::train::toy_map::{SIDE, TRUNCATION, ToyMap};

/// Width of the moving average over noisy curves: the reference's.
const SMOOTH: usize = 17;
/// Points of a cloud of samples.
const CLOUD: usize = 2000;
/// Draws of (t, noise) for each node of a heat map.
const DRAWS: usize = 64;
/// Images in a row.
const COLUMNS: usize = 12;

/// Draws all figures of a run and returns their paths.
///
/// # Errors
/// A path that is no run; data that are not there any more; a disk that is full or read-only.
pub fn draw(run: &Path) -> Result<Vec<PathBuf>> {
    let run = Restored::open(run)?;
    let records = Records::read(&run.folder().join("metrics.jsonl"))?;
    let folder = run.folder().join("figures");
    fs::create_dir_all(&folder).map_err(Error::io(&folder, "create folder"))?;
    let mut page = Page { run: &run, records: &records, folder, drawn: Vec::new() };
    run.device()?.scope(|| match run.config.dtype {
        DType::F32 => page.draw::<f32>(),
        DType::Bf16 => page.draw::<bf16>(),
        DType::F16 => page.draw::<f16>(),
    })?;
    Ok(page.drawn)
}

struct Page<'a> {
    run: &'a Restored,
    records: &'a Records,
    folder: PathBuf,
    drawn: Vec<PathBuf>,
}

impl Page<'_> {
    fn draw<X: FloatX>(&mut self) -> Result<()> {
        let device = self.run.device()?;
        match (self.run.config.stage, self.run.config.align.target) {
            (Stage::Pretrain, _) => self.prior::<X>(),
            (Stage::Align, Target::Latents) => {
                let (task, engine) = self.run.latents::<X>(&device)?;
                self.latents(&task, &engine)
            }
            (Stage::Align, Target::Autoencoder) => {
                let (mut task, engine) = self.run.autoencoder::<X>(&device)?;
                task.follow(&engine.optimizer.averaged()?)?;
                self.aligned()?;
                self.images(&task, &engine)
            }
        }
    }

    fn source(&self) -> String {
        title_of(&self.run.config.data)
    }

    /// Names a figure of this run.
    fn path(&mut self, name: &str) -> PathBuf {
        let path = self.folder.join(name);
        self.drawn.push(path.clone());
        path
    }

    fn prior<X: FloatX>(&mut self) -> Result<()> {
        let device = self.run.device()?;
        let (mut task, engine) = self.run.pretrain::<X>(&device)?;
        let floor = task.features.toy().and_then(|toy| toy.loss_floor());
        self.prior_training(floor)?;
        if task.net.data_width() != 2 {
            return Ok(());
        }
        let sampling = Sampling { count: CLOUD, seed: self.run.config.seed, ..Default::default() };
        let params = engine.optimizer.averaged()?;
        let samples = points(&sample_rows(&task.net, &params, &sampling)?);
        let Some(reference) = task.reference()? else { return Ok(()) };
        let data = first_points(reference.rows(), CLOUD);
        let groups = [Group { label: "data", points: &data }, Group { label: "samples", points: &samples }];
        let title = format!("Prior of {}", self.source());
        scatter_2d(self.path("samples.png"), &title, &groups, Layout::SideBySide)
    }

    fn prior_training(&mut self, floor: Option<f64>) -> Result<()> {
        let train = self.records.track("train", "loss").from_one();
        let fresh = self.records.track("eval", "loss").from_one();
        let log_rk = self.records.track("eval", "log_rk").from_one();
        if train.is_empty() {
            return Ok(());
        }
        let floor = floor.map(|floor| Track { values: vec![floor; train.steps.len()], ..train.clone() });
        let mut left =
            vec![series("batches", &train, SMOOTH), series("fresh data, averaged weights", &fresh, 0)];
        left.extend(floor.as_ref().map(|floor| series("smallest possible", floor, 0)));
        let right = [series("log r_k of samples", &log_rk, 0)];
        let title = format!("Flow matching on {}", self.source());
        let figure = Curves {
            title: &title,
            x_label: "step",
            x_scale: Scale::Linear,
            left: ValueAxis { label: "flow-matching loss", scale: Scale::Linear, series: &left },
            right: ValueAxis {
                label: "mean log r_k of samples to data",
                scale: Scale::Linear,
                series: if log_rk.steps.len() > 1 { &right } else { &[] },
            },
        };
        curves(self.path("training.png"), &figure)
    }

    fn latents<X: FloatX>(&mut self, task: &LatentTask<X>, engine: &Engine<f32>) -> Result<()> {
        let alignment = &task.alignment;
        let latents = points(&task.latents(&engine.optimizer.params)?.on_host()?);
        let Some(reference) = alignment.reference.as_ref() else { return self.alignment_training() };
        let data = first_points(reference.rows(), EXTENT_ROWS);
        let Some(map) = ToyMap::new(reference, &[&data, &latents])? else { return self.alignment_training() };
        let likelihood = matches!(alignment.objective.weight, Weight::Likelihood { .. });
        let (estimate, name) = match likelihood {
            true => (Estimate::NegativeLogLikelihood, "weight t/(1 − t)"),
            false => (Estimate::UniformLoss, "uniform weight"),
        };
        let velocity = alignment.prior.velocity(alignment.objective.form);
        let loss = map.landscape(velocity, estimate, DRAWS, TRUNCATION, self.run.config.seed)?;
        let curve = self.records.track("train", "loss").from_one();
        let nll = self.records.track("eval", "nll").from_one();
        let title = format!(
            "{} latents aligned to the prior of {}, {name}; Spearman's correlation of the maps (a) and (b): {:.3}",
            latents.len(),
            self.source(),
            map.spearman(&loss)
        );
        let narrow = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<_>>();
        let panels = ToyPanels {
            title: &title,
            extent: map.extent,
            side: SIDE,
            nll: &narrow(&map.nll),
            loss: &narrow(&loss),
            loss_title: &format!("Alignment loss, {name}"),
            loss_label: if likelihood { "−log p(y), estimated" } else { "alignment loss" },
            data: &data,
            latents: &latents,
            steps: &curve.steps,
            loss_curve: &curve.values,
            nll_steps: &nll.steps,
            nll_curve: &nll.values,
        };
        toy_panels(self.path("alignment.png"), &panels)
    }

    /// The curves of latents without a map: alignment and distance to the data.
    fn alignment_training(&mut self) -> Result<()> {
        let alignment = self.records.track("eval", "alignment").from_one();
        let log_rk = self.records.track("eval", "log_rk").from_one();
        self.pair(
            "training.png",
            "Alignment",
            &["alignment loss", "mean log r_k to data"],
            &alignment,
            &log_rk,
        )
    }

    /// The curves of an autoencoder.
    fn aligned(&mut self) -> Result<()> {
        let track = |name| self.records.track("eval", name).from_one();
        let (reconstruction, alignment, log_rk) =
            (track("reconstruction"), track("alignment"), track("log_rk"));
        let labels = ["reconstruction, mean squared error", "alignment loss"];
        self.pair("training.png", "Reconstruction and alignment", &labels, &reconstruction, &alignment)?;
        if log_rk.steps.len() < 2 {
            return Ok(());
        }
        let labels = ["alignment loss", "mean log r_k to data"];
        self.pair("neighbours.png", "Alignment and distance to the data", &labels, &alignment, &log_rk)?;
        let correlation = spearman(&alignment.values, &log_rk.values);
        let note = match (correlation, log_rk.ends()) {
            (Ok(rho), Some((first, last))) => {
                format!("Spearman's correlation {rho:.2}; log r_k from {first:.3} to {last:.3}")
            }
            _ => String::new(),
        };
        let figure = Relation {
            title: "Does the distance to the data fall with the alignment loss?",
            note: &note,
            x_label: "alignment loss, fresh draws",
            y_label: "mean log r_k of latents to data, k = 5",
            x: &alignment.values,
            y: &log_rk.values,
            colour: &alignment.steps,
            colour_label: "step",
            colour_scale: Scale::Log,
            join: Join::Path,
            ..Default::default()
        };
        scatter_xy(self.path("log-rk.png"), &figure)
    }

    /// Two quantities over the steps, each with an axis of its own.
    fn pair(
        &mut self,
        name: &str,
        title: &str,
        labels: &[&str; 2],
        left: &Track,
        right: &Track,
    ) -> Result<()> {
        if left.is_empty() {
            return Ok(());
        }
        let (a, b) = ([series(labels[0], left, 0)], [series(labels[1], right, 0)]);
        let figure = Curves {
            title,
            x_label: "step",
            x_scale: Scale::Log,
            left: ValueAxis { label: labels[0], scale: Scale::Linear, series: &a },
            right: ValueAxis { label: labels[1], scale: Scale::Linear, series: &b },
        };
        curves(self.path(name), &figure)
    }

    fn images<X: FloatX>(&mut self, task: &AutoencoderTask<X>, engine: &Engine<X>) -> Result<()> {
        let Some([height, width]) = image_shape(task.features.source()) else { return Ok(()) };
        let (params, seed) = (engine.optimizer.averaged()?, self.run.config.seed);
        let prior = &task.alignment.prior;
        // Samples of the prior are latents, unless a projection lies between.
        let decoded = match task.trained.is_projected() {
            true => Vec::new(),
            false => {
                let per_sample = task.net.config().latents() / prior.net.data_width();
                let sampling = Sampling { count: 2 * COLUMNS * per_sample, seed, ..Default::default() };
                task.decode(&params, &sample_rows(&prior.net, &prior.params, &sampling)?)?
            }
        };
        let (mut passed, mut decoded) = (task.fresh(&params, seed, 1)?, decoded);
        if let Some(standardise) = &task.features.standardise {
            [&mut passed.data, &mut passed.reconstructed, &mut decoded]
                .into_iter()
                .for_each(|rows| standardise.invert(rows));
        }
        let pixels = height * width;
        let columns = COLUMNS.min(passed.data.len() / pixels);
        let mut image_rows = vec![&passed.data[..], &passed.reconstructed];
        if !decoded.is_empty() {
            image_rows.extend([&decoded[..], &decoded[columns * pixels..]]);
        }
        let images: Vec<&[f32]> =
            image_rows.iter().flat_map(|rows| rows.chunks_exact(pixels).take(columns)).collect();
        let (low, high) =
            passed.data.iter().fold((f32::MAX, f32::MIN), |(lo, hi), x| (lo.min(*x), hi.max(*x)));
        let figure = ImageGrid {
            title: &format!("Autoencoder of {}, aligned to its prior", self.source()),
            images: &images,
            channels: 1,
            width,
            height,
            columns,
            captions: &["data", "reconstructed", "decoded samples", "of the prior"],
            range: (low, high.max(low + 1e-3)),
        };
        image_grid(self.path("images.png"), &figure)
    }
}

/// Names data as a figure's title does.
pub fn title_of(data: &DataConfig) -> String {
    match (&data.path, data.toy, data.builtin) {
        (Some(path), _, _) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        (_, Some(toy), _) => toy.name().to_owned(),
        (_, _, Some(builtin)) => builtin.name().to_owned(),
        _ => "data".to_owned(),
    }
}

fn series<'a>(label: &'a str, track: &'a Track, smooth: usize) -> Series<'a> {
    Series { label, x: &track.steps, y: &track.values, smooth }
}

fn first_points(rows: &[f32], count: usize) -> Vec<[f32; 2]> {
    points(&rows[..rows.len().min(2 * count)])
}

/// Returns height and width of grey images: as the data set says, or a square.
pub fn image_shape(source: &Source) -> Option<[usize; 2]> {
    if let Source::Dataset(dataset) = source
        && let Some([1, height, width]) = dataset.image_shape()
    {
        return Some([height, width]);
    }
    let side = source.width().isqrt();
    (side > 1 && side * side == source.width()).then_some([side, side])
}

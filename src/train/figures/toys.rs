//! The toys' runs, and figures 3 and 5: where data are likely, where the loss is low, and where latents end, for both weights.

use std::path::Path;

use super::{Figure, Figures, measure};
use crate::data::Toy;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::flow::Estimate;
use crate::plot::{ToyPanels, toy_columns};
use crate::train::align::LatentTask;
use crate::train::config::Stage;
use crate::train::evaluate::{EXTENT_ROWS, Options};
use crate::train::parts::Part;
use crate::train::records::{Records, Track};
use crate::train::reference::{Reference, mean};
use crate::train::restore::Restored;
use crate::train::sampling::points;
use crate::train::toy_map::{SIDE, TRUNCATION, ToyMap};

/// The weights: the name in the configuration, and what a figure calls it.
pub(super) const WEIGHTS: [(&str, &str); 2] =
    [("uniform", "uniform weight (the paper's)"), ("likelihood", "weight t/(1 − t)")];
/// Times of the reference's map of the loss.
const REFERENCE_TIMES: usize = 20;

/// Free latents of a toy at the end of their run.
pub(super) struct Aligned {
    pub task: LatentTask<f32>,
    pub latents: Vec<[f32; 2]>,
}

impl Aligned {
    pub fn open(device: &Device, run: &Path) -> Result<Self> {
        let (task, engine) = Restored::open(run)?.latents::<f32>(device)?;
        if task.alignment.prior.net.data_width() != 2 {
            let width = task.alignment.prior.net.data_width();
            return Err(Error::data(run, "latents", "2 dimensions, to be drawn on a plane", width));
        }
        let latents = points(&task.latents(&engine.optimizer.params)?.on_host()?);
        Ok(Self { task, latents })
    }

    pub fn reference(&self, run: &Path) -> Result<&Reference> {
        let reference = self.task.alignment.reference.as_ref().filter(|r| r.toy().is_some());
        reference.ok_or_else(|| Error::data(run, "data", "a toy, whose density is known", "another source"))
    }
}

impl Figures {
    /// Trains the runs of a toy: its prior, and latents with both weights.
    pub(super) fn train_toy(&self, toy: Toy) -> Result<()> {
        let (workshop, preset, prior) = (self.workshop(), format!("toy-{toy}"), format!("{toy}-prior"));
        let part = |name: &str, stage, prior, sets: &[&str]| Part {
            name: name.to_owned(),
            stage,
            preset: preset.clone(),
            prior,
            sets: sets.iter().map(|set| (*set).to_owned()).chain(self.common_sets()).collect(),
        };
        workshop.train(&part(&prior, Stage::Pretrain, None, &[]))?;
        let snapshots = format!("train.snapshots_every={}", if self.quick { 20 } else { 250 });
        for (weight, _) in WEIGHTS {
            let weighted = format!("flow.weight='{weight}'");
            let sets = ["train.log_every=1", "train.eval_every=20", &snapshots, &weighted];
            workshop.train(&part(&format!("{toy}-{weight}"), Stage::Align, Some(prior.clone()), &sets))?;
        }
        Ok(())
    }

    pub(super) fn triptychs(
        &self,
        figure: Figure,
        usual: impl Fn(&Toy) -> bool,
        mut say: impl FnMut(&str),
    ) -> Result<Vec<String>> {
        let (mut rows, mut files) = (Vec::new(), Vec::new());
        for toy in self.chosen(usual) {
            say(&format!("{toy}: prior, and latents with both weights"));
            self.train_toy(toy)?;
            say(&format!("{toy}: figure {}", figure.name()));
            let path = self.path(&format!("{}-{toy}.png", figure.name()))?;
            let device = self.device()?;
            let found = device.scope(|| self.triptych(&device, toy, &path))?;
            rows.push(measure::Row { nll: self.prior_nll(toy)?, ..found });
            files.push(path);
        }
        Ok(measure::table(&rows).into_iter().chain(files.iter().map(|f| f.display().to_string())).collect())
    }

    /// Draws both columns of a toy.
    fn triptych(&self, device: &Device, toy: Toy, path: &Path) -> Result<measure::Row> {
        let dirs = WEIGHTS.map(|(weight, _)| self.workshop().folder(&format!("{toy}-{weight}")));
        let [uniform, likelihood] = [Aligned::open(device, &dirs[0])?, Aligned::open(device, &dirs[1])?];
        let reference = uniform.reference(&dirs[0])?;
        let data = points(&reference.rows()[..reference.rows().len().min(2 * EXTENT_ROWS)]);
        let Some(map) = ToyMap::new(reference, &[&data, &uniform.latents, &likelihood.latents])? else {
            return Err(Error::data(&dirs[0], "data", "a toy", "no density"));
        };
        let alignment = &uniform.task.alignment;
        let velocity = alignment.prior.velocity(alignment.objective.form);
        let draws = if self.quick { 16 } else { Options::default().draws };
        let landscape = |estimate, draws| map.landscape(velocity, estimate, draws, TRUNCATION, 0);
        let maps = [
            landscape(Estimate::ReferenceLoss, REFERENCE_TIMES)?,
            landscape(Estimate::NegativeLogLikelihood, draws)?,
        ];
        let [of_paper, of_likelihood] = [0, 1].map(|i| map.spearman(&maps[i]));
        let heads = [
            format!("{}: Spearman of (c) and (a) {of_paper:.3}", WEIGHTS[0].1),
            format!("{}: Spearman of (d) and (b) {of_likelihood:.3}", WEIGHTS[1].1),
        ];
        let narrow = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<f32>>();
        let (nll, losses) = (narrow(&map.nll), maps.each_ref().map(|map| narrow(map)));
        let records =
            [Records::read(&dirs[0].join("metrics.jsonl"))?, Records::read(&dirs[1].join("metrics.jsonl"))?];
        let curves: [(Track, Track); 2] = records
            .each_ref()
            .map(|records| (records.track("train", "loss"), records.track("eval", "nll").from_one()));
        let titles = ["Alignment loss: 20 times, 0.1 to 0.9", "Alignment loss with weight t/(1 − t)"];
        let labels = ["alignment loss, summed over dimensions", "−log p(y), estimated, nats"];
        let column = |i: usize, latents| ToyPanels {
            title: &heads[i],
            extent: map.extent,
            side: SIDE,
            nll: &nll,
            loss: &losses[i],
            loss_title: titles[i],
            loss_label: labels[i],
            data: &data,
            latents,
            steps: &curves[i].0.steps,
            loss_curve: &curves[i].0.values,
            nll_steps: &curves[i].1.steps,
            nll_curve: &curves[i].1.values,
        };
        let title = format!("{toy}: {} latents, aligned to a flow prior", uniform.latents.len());
        toy_columns(path, &title, &[column(0, &uniform.latents[..]), column(1, &likelihood.latents[..])])?;
        let end = |latents: &[[f32; 2]]| {
            let nll = reference.nll(latents.as_flattened())?;
            Ok::<_, Error>(nll.map_or(f64::NAN, |nll| mean(&nll)))
        };
        Ok(measure::Row {
            toy,
            spearman: [of_paper, map.spearman(&landscape(Estimate::UniformLoss, draws)?), of_likelihood],
            latents: [end(&uniform.latents)?, end(&likelihood.latents)?],
            nll: measure::PriorNll::default(),
        })
    }
}

//! Figure 4: whether an autoencoder's latents come near the features of its prior as the alignment loss falls.

use std::path::Path;

use super::Figures;
use crate::error::{Error, Result};
use crate::metrics::{DEFAULT_K, pearson, spearman};
use crate::plot::{Curves, Join, Relation, Scale, Series, ValueAxis, curves_and_relation};
use crate::train::config::Stage;
use crate::train::parts::Part;
use crate::train::records::{Records, Track};
use crate::train::report::title_of;
use crate::train::restore::Restored;

impl Figures {
    /// Draws figure 4 of a run, or of handwritten digits that are aligned to token embeddings.
    pub(super) fn neighbours(&self, mut say: impl FnMut(&str)) -> Result<Vec<String>> {
        let workshop = self.workshop();
        let run = match &self.run {
            Some(run) => run.clone(),
            None => {
                let [prior, digits] = ["tokens-prior", "digits"].map(str::to_owned);
                say("token embeddings: prior");
                let part = |name: &String, stage, prior| Part {
                    name: name.clone(),
                    stage,
                    preset: "demo".to_owned(),
                    prior,
                    sets: self.common_sets(),
                };
                workshop.train(&part(&prior, Stage::Pretrain, None))?;
                say("digits: autoencoder, aligned to the tokens");
                workshop.train(&part(&digits, Stage::Align, Some(prior)))?;
                workshop.folder(&digits)
            }
        };
        let path = self.path("4.png")?;
        let line = draw(&run, &path)?;
        Ok(vec![line, path.display().to_string()])
    }
}

fn draw(run: &Path, path: &Path) -> Result<String> {
    let restored = Restored::open(run)?;
    restored.loaded.expect_stage(Stage::Align)?;
    let records = Records::read(&restored.folder().join("metrics.jsonl"))?;
    let [alignment, log_rk] = ["alignment", "log_rk"].map(|name| records.track("eval", name).from_one());
    if alignment.steps.len() < 2 || alignment.steps != log_rk.steps {
        let found = format!("{} and {}", alignment.steps.len(), log_rk.steps.len());
        let expected =
            "at least 2 evaluations with both (train.eval_every > 0, a prior whose data are known)";
        return Err(Error::data(run, "alignment and log_rk in metrics.jsonl", expected, found));
    }
    let correlations =
        [pearson(&alignment.values, &log_rk.values), spearman(&alignment.values, &log_rk.values)];
    let [pearson, spearman] = correlations.map(|found| found.unwrap_or(f64::NAN));
    let ((a0, a1), (r0, r1)) = (ends(&alignment), ends(&log_rk));
    let note = format!("Pearson's correlation {pearson:.3}, Spearman's {spearman:.3}");
    let of_k = format!("mean log r_k of latents to the prior's data, k = {DEFAULT_K}");
    let left = [Series { label: "alignment loss", x: &alignment.steps, y: &alignment.values, smooth: 0 }];
    let right = [Series { label: "mean log r_k", x: &log_rk.steps, y: &log_rk.values, smooth: 0 }];
    let curves = Curves {
        title: "(a) Over training",
        x_label: "step",
        x_scale: Scale::Log,
        left: ValueAxis { label: "alignment loss, fresh draws", scale: Scale::Linear, series: &left },
        right: ValueAxis { label: &of_k, scale: Scale::Linear, series: &right },
    };
    let relation = Relation {
        title: "(b) One against the other",
        note: &note,
        x_label: "alignment loss, fresh draws",
        y_label: &of_k,
        x: &alignment.values,
        y: &log_rk.values,
        colour: &alignment.steps,
        colour_label: "step",
        colour_scale: Scale::Log,
        join: Join::Path,
        ..Default::default()
    };
    let title = format!("Latents of {}, aligned to a flow prior", title_of(&restored.config.data));
    curves_and_relation(path, &title, &curves, &relation)?;
    Ok(format!("alignment {a0:.3} -> {a1:.3}, mean log r_k {r0:.3} -> {r1:.3}; {note}"))
}

fn ends(track: &Track) -> (f64, f64) {
    track.ends().unwrap_or((f64::NAN, f64::NAN))
}

//! The demonstration: both stages on a toy whose density is known, and on real data that the program carries.
//!
//! Every part is a run of its own (see `parts`), so an interrupted demonstration goes on where it was.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::metrics::spearman;
use crate::train::config::Stage;
use crate::train::evaluate::{Evaluation, Options, evaluate};
use crate::train::log::Console;
use crate::train::parts::{self, QUICK, Workshop};
use crate::train::records::{Records, Track};
use crate::train::signal::StopFlag;

/// What the demonstration is run with.
#[derive(Clone, Debug)]
pub struct Demo {
    /// The folder of all runs and figures.
    pub out: PathBuf,
    /// Trains for a moment only, to see that everything works.
    pub quick: bool,
    /// Where progress is shown.
    pub console: Console,
    /// Asks it to stop.
    pub stop: StopFlag,
}

/// One run.
struct Part {
    /// Its folder.
    name: &'static str,
    title: &'static str,
    stage: Stage,
    preset: &'static str,
    prior: Option<&'static str>,
    sets: &'static [&'static str],
    /// Its figures: the name in the run, and the one in the demonstration.
    figures: &'static [(&'static str, &'static str)],
}

const PARTS: [Part; 5] = [
    Part {
        name: "toy-prior",
        title: "five Gaussians: prior",
        stage: Stage::Pretrain,
        preset: "toy-gaussians",
        prior: None,
        sets: &["train.steps=3000", "train.eval_every=250", "optim.ema=[0.995]"],
        figures: &[("samples.png", "1-toy-samples.png")],
    },
    Part {
        name: "toy-latents-uniform",
        title: "five Gaussians: latents, uniform weight",
        stage: Stage::Align,
        preset: "toy-gaussians",
        prior: Some("toy-prior"),
        sets: &TOY_LATENTS,
        figures: &[("alignment.png", "2-toy-alignment-uniform.png")],
    },
    Part {
        name: "toy-latents-likelihood",
        title: "five Gaussians: latents, weight t/(1-t)",
        stage: Stage::Align,
        preset: "toy-gaussians",
        prior: Some("toy-prior"),
        sets: &TOY_LATENTS_LIKELIHOOD,
        figures: &[("alignment.png", "3-toy-alignment-likelihood.png")],
    },
    Part {
        name: "tokens-prior",
        title: "token embeddings: prior",
        stage: Stage::Pretrain,
        preset: "demo",
        prior: None,
        sets: &[],
        figures: &[("training.png", "4-tokens-training.png")],
    },
    Part {
        name: "digits",
        title: "digits: autoencoder, aligned to the tokens",
        stage: Stage::Align,
        preset: "demo",
        prior: Some("tokens-prior"),
        sets: &[],
        figures: &[
            ("log-rk.png", "5-digits-log-rk.png"),
            ("neighbours.png", "6-digits-neighbours.png"),
            ("images.png", "7-digits-images.png"),
        ],
    },
];

/// Fewer steps than the reference's 5,000 at a constant rate, which then sinks instead: the figures end as quietly.
const TOY_LATENTS: [&str; 4] = [
    "train.steps=1500",
    "train.eval_every=20",
    "train.log_every=5",
    "optim.schedule={ kind = 'cosine', warmup_steps = 0, min_lr_ratio = 0.02 }",
];

const TOY_LATENTS_LIKELIHOOD: [&str; 5] =
    [TOY_LATENTS[0], TOY_LATENTS[1], TOY_LATENTS[2], TOY_LATENTS[3], "flow.weight='likelihood'"];

/// Runs all parts, saying what begins and how long it took, and returns the closing summary, line by line.
///
/// # Errors
/// `Error::Stopped` after a signal; a folder that holds something else; a disk that is full.
pub fn run(demo: &Demo, mut say: impl FnMut(&str)) -> Result<Vec<String>> {
    let figures = demo.out.join("figures");
    fs::create_dir_all(&figures).map_err(Error::io(&figures, "create folder"))?;
    for (i, part) in PARTS.iter().enumerate() {
        say(&format!("[{}/{}] {}", i + 1, PARTS.len(), part.title));
        let begun = Instant::now();
        demo.train(part)?;
        for (from, to) in part.figures {
            let (from, to) = (demo.out.join(part.name).join("figures").join(from), figures.join(to));
            fs::copy(&from, &to).map_err(Error::io(&from, "copy"))?;
        }
        say(&format!("      done in {:.1} s", begun.elapsed().as_secs_f64()));
    }
    say("measuring all runs");
    demo.summary()
}

impl Demo {
    fn train(&self, part: &Part) -> Result<()> {
        let mut sets: Vec<String> = part.sets.iter().map(|s| (*s).to_owned()).collect();
        if self.quick {
            sets.extend(QUICK.map(str::to_owned));
        }
        let workshop = Workshop { root: self.out.clone(), console: self.console, stop: self.stop.clone() };
        let (name, preset) = (part.name.to_owned(), part.preset.to_owned());
        let prior = part.prior.map(str::to_owned);
        workshop.train(&parts::Part { name, stage: part.stage, preset, prior, sets })?;
        Ok(())
    }

    fn evaluate(&self, run: &str) -> Result<Evaluation> {
        let (draws, samples) = if self.quick { (8, 256) } else { (128, 2048) };
        evaluate(&self.out.join(run), &Options { draws, samples, most: 64, ..Default::default() })
    }

    fn track(&self, run: &str, name: &str) -> Result<Track> {
        Ok(Records::read(&self.out.join(run).join("metrics.jsonl"))?.track("eval", name))
    }

    fn summary(&self) -> Result<Vec<String>> {
        let mut lines = vec!["Five Gaussians, where the density is known".to_owned()];
        let prior = self.evaluate("toy-prior")?;
        lines.push(format!(
            "  prior        loss {:.4}, smallest possible {}; samples have mean -ln p {}, data {}",
            prior.loss,
            number(prior.loss_floor),
            number(prior.nll),
            number(prior.nll_data)
        ));
        lines.push(format!(
            "  landscape    Spearman's correlation of loss and true -ln p: {} uniform weight, {} weight t/(1-t)",
            number(prior.spearman_uniform),
            number(prior.spearman_likelihood)
        ));
        for (run, weight) in
            [("toy-latents-uniform", "uniform weight"), ("toy-latents-likelihood", "weight t/(1-t)")]
        {
            let (first, last) = self.track(run, "nll")?.ends().unwrap_or((f64::NAN, f64::NAN));
            let spread = self.evaluate(run)?.spread;
            lines.push(format!(
                "  latents      -ln p {first:.2} -> {last:.2} with {weight}; spread {} of the data's",
                number(spread)
            ));
        }
        lines.push("Handwritten digits, aligned to a language model's token embeddings".to_owned());
        let tokens = self.evaluate("tokens-prior")?;
        lines.push(format!(
            "  prior        loss {:.4}; mean log r_k of samples to tokens {}, of tokens among themselves {}",
            tokens.loss,
            number(tokens.set.log_rk),
            number(tokens.set.log_rk_data)
        ));
        lines.extend(self.digits()?);
        lines.push(format!("Figures in {}:", self.out.join("figures").display()));
        lines.extend(PARTS.iter().flat_map(|p| p.figures).map(|(_, name)| format!("  {name}")));
        Ok(lines)
    }

    /// Says whether log r_k fell with the alignment loss, whichever way it came out.
    fn digits(&self) -> Result<Vec<String>> {
        let found = self.evaluate("digits")?;
        let (alignment, log_rk) = (self.track("digits", "alignment")?, self.track("digits", "log_rk")?);
        let ends = |track: &Track| track.ends().unwrap_or((f64::NAN, f64::NAN));
        let ((a0, a1), (r0, r1)) = (ends(&alignment), ends(&log_rk));
        let rho = spearman(&alignment.values, &log_rk.values).unwrap_or(f64::NAN);
        let verdict = match (r1 < r0, rho > 0.5) {
            (true, true) => "log r_k falls as the alignment loss falls",
            (true, false) => "log r_k fell in the end, but not in step with the alignment loss",
            _ => "log r_k did not fall",
        };
        Ok(vec![
            format!(
                "  autoencoder  alignment {a0:.3} -> {a1:.3}, mean log r_k to tokens {r0:.3} -> {r1:.3}, rank correlation {rho:.2}"
            ),
            format!("               {verdict}"),
            format!(
                "               reconstruction, mean squared error {}; latents fill {} of {} dimensions",
                number(found.reconstruction),
                found.set.rank.map_or("?".to_owned(), |rank| format!("{rank:.1}")),
                LATENT
            ),
        ])
    }
}

/// Width of the token features, and so of the digits' latents.
const LATENT: usize = 16;

fn number(value: Option<f64>) -> String {
    value.map_or("?".to_owned(), |x| format!("{x:.3}"))
}

/// Returns the names of the figures in `out`/figures.
pub fn figure_names() -> impl Iterator<Item = &'static str> {
    PARTS.iter().flat_map(|p| p.figures).map(|(_, name)| *name)
}

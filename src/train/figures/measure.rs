//! What figures 3 and 5 print: how well each loss ranks points, and how near the likelihood without an ODE is to that with one.

use super::Figures;
use crate::data::Toy;
use crate::error::Result;
use crate::train::likelihood::{By, Options, likelihood};

/// The numbers of one toy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub toy: Toy,
    /// Spearman's correlation with the true −ln p over the 50 × 50 nodes: the reference's map, uniform weight, weight t/(1 − t).
    pub spearman: [f64; 3],
    /// Mean −ln p of data under the prior.
    pub nll: PriorNll,
    /// Mean true −ln p of the latents at the end, uniform weight and t/(1 − t).
    pub latents: [f64; 2],
}

/// Mean −ln p of the same data.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PriorNll {
    /// Of the prior, by its ODE.
    pub ode: f64,
    /// Of the prior, without one.
    pub ode_free: f64,
    /// Of the toy itself.
    pub truth: f64,
}

impl Figures {
    /// Measures a toy's prior on data.
    pub(super) fn prior_nll(&self, toy: Toy) -> Result<PriorNll> {
        let run = self.workshop().folder(&format!("{toy}-prior"));
        let few = if self.quick { 64 } else { Options::default().count };
        let of = |by| likelihood(&run, &Options { by, count: few, ..Default::default() });
        let (ode, free) = (of(By::Ode)?, of(By::OdeFree)?);
        Ok(PriorNll { ode: ode.nll, ode_free: free.nll, truth: ode.nll_true.unwrap_or(f64::NAN) })
    }
}

/// Writes rows as a table in Markdown.
pub(super) fn table(rows: &[Row]) -> Vec<String> {
    let head = [
        "Spearman's correlation of loss and true -ln p on a 50 x 50 grid; mean -ln p in nats, of data by the prior and of aligned latents",
        "",
        "| toy | paper's map | w = 1 | w = t/(1-t) | data: ODE | ODE-free | difference | true | latents, w = 1 | latents, w = t/(1-t) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ];
    let line = |row: &Row| {
        let [paper, uniform, likelihood] = row.spearman;
        let PriorNll { ode, ode_free, truth } = row.nll;
        let [first, second] = row.latents;
        format!(
            "| {} | {paper:.3} | {uniform:.3} | {likelihood:.3} | {ode:.3} | {ode_free:.3} | {:+.3} | {truth:.3} | {first:.3} | {second:.3} |",
            row.toy,
            ode_free - ode
        )
    };
    let head = head.iter().map(|line| (*line).to_owned());
    head.chain(rows.iter().map(line)).chain([String::new()]).collect()
}

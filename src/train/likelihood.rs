//! Log-densities of rows under a prior: what `flowprior likelihood` prints.
//!
//! Densities are those of the rows as the network sees them: standardised, where its training data were. In the units of the data a
//! row's −ln p is larger by Σ ln std.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;

use crate::device::{CpuOptions, Device};
use crate::error::{Error, Result};
use crate::flow::likelihood::{OdeFree, Trace, bits_per_dim, log_density, log_density_ode_free};
use crate::flow::sampler::{Cost, Direction, Grid, Method, Solver, Tolerance};
use crate::tensor::Tensor;
use crate::train::config::DataConfig;
use crate::train::field::{Field, Label, no_class};
use crate::train::prior::{Prior, open_prior};
use crate::train::reference::{Reference, mean, standard_error};
use crate::train::restore::Restored;

/// Rows that go through the network together.
const CHUNK: usize = 1024;
/// Widest rows whose trace is exact unless the user says otherwise: an evaluation costs a product for each column.
const EXACT: usize = 16;

/// How densities are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// By integrating along paths.
    Ode,
    /// By the weighted loss.
    OdeFree,
}

impl FromStr for By {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "ode" => Ok(Self::Ode),
            "ode-free" => Ok(Self::OdeFree),
            _ => Err(Error::Usage(format!("unknown method `{s}`: expected `ode` or `ode-free`"))),
        }
    }
}

/// How the trace along a path is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceBy {
    /// One product for each column.
    Exact,
    /// One product with a random probe.
    Hutchinson,
}

impl FromStr for TraceBy {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "exact" => Ok(Self::Exact),
            "hutchinson" => Ok(Self::Hutchinson),
            _ => Err(Error::Usage(format!("unknown trace `{s}`: expected `exact` or `hutchinson`"))),
        }
    }
}

/// What is measured, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// A data set; `None` takes what the prior was trained on, in an order of its own.
    pub data: Option<PathBuf>,
    /// Rows, at most.
    pub count: usize,
    /// How densities are found.
    pub by: By,
    /// How the trace is found; `None` takes the exact one up to 16 columns.
    pub trace: Option<TraceBy>,
    /// The solver of the ODE.
    pub solver: Method,
    /// Its steps.
    pub steps: usize,
    /// What `dopri5` is held to.
    pub tolerance: Tolerance,
    /// Draws of (t, noise) for each row without an ODE.
    pub draws: usize,
    /// Their largest t.
    pub truncation: f64,
    /// Further draws for each row at that t, for what lies beyond it.
    pub tail: usize,
    /// Decides rows, probes and draws.
    pub seed: u64,
    /// The class of all rows, for a conditional network.
    pub class: Option<usize>,
}

impl Default for Options {
    /// 64 steps of Runge and Kutta find the density of an exact mixture within 1e-3 nats; a trained network is smoother.
    fn default() -> Self {
        let OdeFree { draws, truncation, tail, seed } = OdeFree::default();
        Self {
            data: None,
            count: 1000,
            by: By::Ode,
            trace: None,
            solver: Method::Rk4,
            steps: 64,
            tolerance: Tolerance::default(),
            draws,
            truncation,
            tail,
            seed,
            class: None,
        }
    }
}

/// Densities of some rows. What does not apply is `None`, and null in JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Likelihood {
    /// Rows.
    pub count: usize,
    /// Columns.
    pub width: usize,
    /// `ode` or `ode-free`.
    pub method: &'static str,
    /// `exact` or `hutchinson` (`ode`).
    pub trace: Option<&'static str>,
    /// Mean −ln p, in nats.
    pub nll: f64,
    /// Standard deviation of −ln p from row to row.
    pub nll_std: f64,
    /// Standard error of the mean.
    pub nll_stderr: f64,
    /// The mean over columns and ln 2.
    pub bits_per_dim: f64,
    /// Mean −ln p in the units of the data, where the prior standardises them.
    pub nll_in_units: Option<f64>,
    /// Mean −ln p of the same rows under the true density, where it is known.
    pub nll_true: Option<f64>,
    /// Evaluations of the velocity (`ode`); where chunks of rows differ, the most.
    pub evaluations: Option<usize>,
    /// Steps that `dopri5` rejected.
    pub rejected: Option<usize>,
}

/// Measures rows under a prior: a run folder of `pretrain`, one of its checkpoints, or a network's file.
///
/// # Errors
/// A path that is nothing of this; data of another width, or that cannot be read; a class that is missing or not wanted; a solve that
/// leads nowhere.
pub fn likelihood(path: &Path, options: &Options) -> Result<Likelihood> {
    let device = match path.is_file() {
        true => Device::open("auto", CpuOptions::default())?,
        false => Restored::open(path)?.device()?,
    };
    device.scope(|| measure(&device, &open_prior(&device, path, true)?, options))
}

fn measure(device: &Device, prior: &Prior<f32>, options: &Options) -> Result<Likelihood> {
    let width = prior.net.data_width();
    let labels = [label(prior, options.class)?];
    if options.count == 0 {
        return Err(Error::Usage("likelihood: 0 rows were asked for; ask for at least 1".into()));
    }
    let reference = open_reference(prior, options)?;
    if reference.width() != width {
        let path = options.data.as_ref().unwrap_or(&prior.source);
        return Err(Error::data(
            path,
            "width",
            format!("rows of {width}"),
            format!("rows of {}", reference.width()),
        ));
    }
    let rows = &reference.rows()[..reference.rows().len().min(options.count * width)];
    let trace = options.trace.unwrap_or(if width <= EXACT { TraceBy::Exact } else { TraceBy::Hutchinson });
    let (log_p, cost) = match options.by {
        By::Ode => by_ode(device, prior, rows, &labels, trace, options)?,
        By::OdeFree => {
            let field = Field::new(&prior.net, &prior.params, &labels, 1, None)?;
            let Options { draws, truncation, tail, seed, .. } = *options;
            let how = OdeFree { draws, truncation, tail, seed };
            let velocity =
                |x_t: Tensor<f32>, t: &Tensor<f32>| field.velocity_at(x_t, t, prior.tables.as_ref());
            (log_density_ode_free(device, width, rows, &how, velocity)?, Cost::default())
        }
    };
    let nll: Vec<f64> = log_p.into_iter().map(|log_p| -log_p).collect();
    let ode = options.by == By::Ode;
    let of_trace = if trace == TraceBy::Exact { "exact" } else { "hutchinson" };
    let (average, stderr) = (mean(&nll), standard_error(&nll));
    let logs = |std: &Vec<f32>| std.iter().map(|std| (*std as f64).ln()).sum::<f64>();
    Ok(Likelihood {
        count: nll.len(),
        width,
        method: if ode { "ode" } else { "ode-free" },
        trace: ode.then_some(of_trace),
        nll: average,
        nll_std: stderr * (nll.len() as f64).sqrt(),
        nll_stderr: stderr,
        bits_per_dim: bits_per_dim(average, width),
        nll_in_units: prior.standardise.as_ref().map(|standardise| average + logs(&standardise.std)),
        nll_true: reference.nll(rows)?.map(|nll| mean(&nll)),
        evaluations: ode.then_some(cost.evaluations),
        rejected: (ode && options.solver == Method::Dopri5).then_some(cost.rejected),
    })
}

fn label(prior: &Prior<f32>, class: Option<usize>) -> Result<Label> {
    match (class, prior.net.conditioning().classes()) {
        (None, 0) => Ok(Label::Null),
        (None, classes) => Err(Error::Usage(format!(
            "the network has {classes} classes: name one with --class, the class of all rows"
        ))),
        (Some(class), classes) if class >= classes => Err(no_class(class, classes)),
        (Some(class), _) => Ok(Label::Class(class)),
    }
}

fn open_reference(prior: &Prior<f32>, options: &Options) -> Result<Reference> {
    let data = match (&options.data, &prior.data) {
        (Some(path), _) => DataConfig { path: Some(path.clone()), ..Default::default() },
        (None, Some(data)) => data.clone(),
        (None, None) => {
            return Err(Error::Usage(format!(
                "{} does not say what it was trained on: name a data set with --data",
                prior.source.display()
            )));
        }
    };
    Reference::open(&data, prior.standardise.as_ref(), options.seed)
}

fn by_ode(
    device: &Device,
    prior: &Prior<f32>,
    rows: &[f32],
    labels: &[Label],
    trace: TraceBy,
    options: &Options,
) -> Result<(Vec<f64>, Cost)> {
    let width = prior.net.data_width();
    let grid = Grid::Uniform(options.steps);
    let solver = Solver { method: options.solver, grid, tolerance: options.tolerance };
    let (mut log_p, mut cost) = (Vec::with_capacity(rows.len() / width), Cost::default());
    for (i, rows) in rows.chunks(CHUNK * width).enumerate() {
        let count = rows.len() / width;
        let field = Field::new(&prior.net, &prior.params, labels, count, None)?;
        let trace = match trace {
            TraceBy::Exact => Trace::Exact,
            TraceBy::Hutchinson => Trace::Hutchinson { seed: options.seed, first: (i * CHUNK) as u64 },
        };
        let x = Tensor::from_f32(device, [count, width], rows)?;
        let carried = log_density(x, &solver, Direction::ToNoise, trace, |x, time, e| {
            field.vjp(x, time.tensor(device)?, e)
        })?;
        log_p.extend(carried.log_p);
        if carried.cost.evaluations > cost.evaluations {
            cost = carried.cost;
        }
    }
    Ok((log_p, cost))
}

//! From a configuration to the objects of a run.

use crate::device::{CpuOptions, CudaOptions, Device};
use crate::error::{Error, Result};
use crate::flow::{Objective, Reduction, Times};
use crate::nn::{Form, Mlp, MlpConfig};
use crate::ops::flow_loss::Weight;
use crate::train::config::{self, Config, Modulation, TimeSampling};

/// Opens the configured device.
///
/// # Errors
/// A device that is not there.
pub fn device(config: &Config) -> Result<Device> {
    let cpu = CpuOptions { threads: config.threads, ..Default::default() };
    Device::open_either(&config.device, cpu, CudaOptions { tf32: config.tf32, ..CudaOptions::from_env() })
}

/// Lays out the velocity network for data of `width` columns.
///
/// # Errors
/// A configured width that is not the data's.
pub fn network(config: &Config, width: usize) -> Result<Mlp> {
    let m = &config.model;
    if m.channels != 0 && m.channels != width {
        return Err(Error::data(
            source_name(config),
            "width",
            format!("{} columns (model.channels)", m.channels),
            format!("{width} columns"),
        ));
    }
    Mlp::new(MlpConfig {
        channels: width,
        width: m.width,
        depth: m.depth,
        cond: m.cond,
        post_norm: m.post_norm,
        time_scale: m.time_scale as f32,
    })
}

/// Says where the configured data come from, for messages.
pub fn source_name(config: &Config) -> String {
    match (&config.data.path, config.data.toy, config.data.builtin) {
        (Some(path), _, _) => path.display().to_string(),
        (_, Some(toy), _) => format!("toy `{}`", toy.name()),
        (_, _, Some(builtin)) => format!("builtin `{}`", builtin.name()),
        _ => "data".into(),
    }
}

/// Returns the form of modulation that the configuration asks for.
pub fn form(modulation: Modulation, net: &Mlp) -> Form {
    match modulation {
        Modulation::Auto => net.default_form(),
        Modulation::Direct => Form::Direct,
        Modulation::Nodes(r) => Form::Nodes(r),
        Modulation::Groups(g) => Form::Groups(g),
    }
}

/// Returns the objective for a global batch of `samples`.
///
/// # Errors
/// Sizes that do not fit together.
pub fn objective(config: &Config, net: &Mlp, samples: usize) -> Result<Objective> {
    let f = &config.flow;
    let clip = f.weight_clip as f32;
    let objective = Objective {
        samples,
        flow_mul: f.flow_mul,
        times: match f.time {
            TimeSampling::Uniform => Times::Uniform,
            TimeSampling::Stratified => Times::Stratified,
            TimeSampling::LogitNormal => {
                Times::LogitNormal { mean: f.logit_mean as f32, std: f.logit_std as f32 }
            }
        },
        time_range: (f.time_min as f32, f.time_max as f32),
        weight: match f.weight {
            config::Weight::Uniform => Weight::Uniform,
            config::Weight::Likelihood => Weight::Likelihood { clip },
            config::Weight::Kl => Weight::Kl { clip },
        },
        reduction: match f.reduction {
            config::Reduction::MeanAll => Reduction::MeanAll,
            config::Reduction::SumDimsMeanRows => Reduction::SumDimsMeanRows,
        },
        form: form(config.model.modulation, net),
    };
    objective.check(net, config.train.micro_batches)?;
    Ok(objective)
}

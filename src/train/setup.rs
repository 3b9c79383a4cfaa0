//! From a configuration to the objects of a run.

use crate::device::{CpuOptions, CudaOptions, Device};
use crate::error::{Error, Result};
use crate::flow::{Objective, Reduction, Times};
use crate::nn::dit::DitInput;
use crate::nn::{
    AutoencoderConfig, DitConfig, Form, Layers, MlpConfig, VelocityConfig, VelocityNet, VitConfig,
};
use crate::ops::flow_loss::{Weight, WeightTable};
use crate::ops::linear::Activation;
use crate::train::config::{self, Coder, Config, FlowConfig, Kind, Modulation, TimeSampling};
use crate::train::features::RowShape;

/// Opens the configured device.
///
/// # Errors
/// A device that is not there.
pub fn device(config: &Config) -> Result<Device> {
    let cpu = CpuOptions { threads: config.threads, ..Default::default() };
    Device::open_either(&config.device, cpu, CudaOptions { tf32: config.tf32, ..CudaOptions::from_env() })
}

/// Lays out the velocity network for rows of data.
///
/// # Errors
/// A configured width or image that is not the data's; images that the patch does not divide.
pub fn network(config: &Config, rows: RowShape) -> Result<VelocityNet> {
    let (m, width) = (&config.model, rows.width);
    if m.channels != 0 && m.channels != width {
        return Err(Error::data(
            source_name(config),
            "width",
            format!("{} columns (model.channels)", m.channels),
            format!("{width} columns"),
        ));
    }
    let time_scale = m.time_scale as f32;
    let dit_config = || {
        let input = dit_input(config, rows)?;
        Ok::<_, Error>(DitConfig {
            input,
            width: m.width,
            depth: m.depth,
            heads: m.heads(),
            classes: m.classes,
            null_label: m.classes > 0 && m.label_dropout > 0.0,
            qk_norm: m.qk_norm,
            learn_sigma: m.learn_sigma,
            cond_channels: if m.inpaint { input.channels() + 1 } else { m.cond_channels },
            cond_rescale: m.cond_rescale,
            inpaint: m.inpaint,
            time_scale,
        })
    };
    VelocityNet::new(match m.kind {
        Kind::Mlp => VelocityConfig::Mlp(MlpConfig {
            channels: width,
            width: m.width,
            depth: m.depth,
            cond: m.cond,
            post_norm: m.post_norm,
            time_scale,
        }),
        Kind::Dit => VelocityConfig::Dit { dit: dit_config()? },
    })
}

/// Says how a DiT takes a row: as the data set does, unless the configuration says more.
fn dit_input(config: &Config, rows: RowShape) -> Result<DitInput> {
    let (m, width) = (&config.model, rows.width);
    let refused = |field: &str, expected: String, found: String| {
        Err(Error::data(source_name(config), field, expected, found))
    };
    if m.tokens > 0 {
        return match width.is_multiple_of(m.tokens) {
            true => Ok(DitInput::Tokens { tokens: m.tokens, channels: width / m.tokens }),
            false => refused(
                "width",
                format!("a multiple of {} (model.tokens)", m.tokens),
                format!("{width} columns"),
            ),
        };
    }
    let [channels, height, wide] = image("model", m.image, rows, config)?;
    if channels <= m.cond_channels {
        let expected =
            format!("more channels than those {} of the condition (model.cond_channels)", m.cond_channels);
        return refused("shape", expected, format!("{channels} channels"));
    }
    covered([channels, height, wide], m.patch, "model", config)?;
    Ok(DitInput::Image { channels: channels - m.cond_channels, height, width: wide, patch: m.patch })
}

/// Returns the sizes of the autoencoder for rows of data.
///
/// # Errors
/// A vision transformer for rows of which nobody says that they are images, or that its patches do not cover.
pub fn autoencoder(config: &Config, rows: RowShape) -> Result<AutoencoderConfig> {
    let a = &config.align.autoencoder;
    let layers = match a.kind {
        Coder::Mlp => Layers::Mlp {
            hidden: a.hidden.clone(),
            activation: match a.activation {
                config::Activation::Silu => Activation::Silu,
                config::Activation::Gelu => Activation::GeluTanh,
            },
        },
        Coder::Vit => {
            let image = image("align.autoencoder", a.image, rows, config)?;
            covered(image, a.patch, "align.autoencoder", config)?;
            let (patch, width, depth, heads) = (a.patch, a.width, a.depth, a.heads());
            Layers::Vit(VitConfig { image, patch, width, depth, heads })
        }
    };
    Ok(AutoencoderConfig { data: rows.width, tokens: a.tokens, latent: a.latent, layers })
}

/// Returns the width of what a prior takes as one latent, and how many of them it takes in a row: the tokens of a sequence.
pub fn latents_of(net: &VelocityNet) -> (usize, usize) {
    match net.config() {
        VelocityConfig::Dit { dit: DitConfig { input: DitInput::Tokens { tokens, channels }, .. } } => {
            (channels, tokens)
        }
        _ => (net.data_width(), 1),
    }
}

/// Returns channels, height and width of a row: as the table of the configuration says, which must not contradict the data set.
fn image(table: &str, said: Option<[usize; 3]>, rows: RowShape, config: &Config) -> Result<[usize; 3]> {
    let refused = |field: &str, expected: String, found: String| {
        Err(Error::data(source_name(config), field, expected, found))
    };
    let [channels, height, width] = match (said, rows.image) {
        (Some(said), Some(found)) if said != found => {
            return refused("shape", format!("{said:?} ({table}.image)"), format!("{found:?}"));
        }
        (Some(image), _) | (None, Some(image)) => image,
        (None, None) => {
            let or = if table == "model" { ", or model.tokens" } else { "" };
            let expected = format!("channels, height and width of images (set {table}.image{or})");
            return refused("shape", expected, format!("rows of {} values", rows.width));
        }
    };
    if channels * height * width != rows.width {
        let found = format!("{} columns", rows.width);
        return refused("width", format!("{channels} × {height} × {width} ({table}.image)"), found);
    }
    Ok([channels, height, width])
}

/// Checks that patches cover an image.
fn covered([_, height, width]: [usize; 3], patch: usize, table: &str, config: &Config) -> Result<()> {
    if height.is_multiple_of(patch) && width.is_multiple_of(patch) {
        return Ok(());
    }
    let expected = format!("sides that a patch of {patch} divides ({table}.patch)");
    Err(Error::data(source_name(config), "shape", expected, format!("{height} × {width}")))
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
pub fn form(modulation: Modulation, net: &VelocityNet) -> Form {
    match modulation {
        Modulation::Auto => net.default_form(),
        Modulation::Direct => Form::Direct,
        Modulation::Nodes(r) => Form::Nodes(r),
        Modulation::Groups(g) => Form::Groups(g),
    }
}

/// Returns the weight that the configuration asks for.
///
/// # Errors
/// A table of fewer than two values, or of such that no weight can have.
pub fn weight(flow: &FlowConfig, device: &Device) -> Result<Weight> {
    let clip = flow.weight_clip as f32;
    Ok(match flow.weight {
        config::Weight::Uniform => Weight::Uniform,
        config::Weight::Likelihood => Weight::Likelihood { clip },
        config::Weight::Kl => Weight::Kl { clip },
        config::Weight::Table => {
            let values: Vec<f32> = flow.weight_table.iter().map(|w| *w as f32).collect();
            Weight::Table(WeightTable::new(device, &values)?)
        }
    })
}

/// Returns how times are drawn under a weight.
///
/// # Errors
/// A weight that is 0 wherever times may lie, where times are drawn by it.
pub fn times(flow: &FlowConfig, sampling: TimeSampling, weight: &Weight, device: &Device) -> Result<Times> {
    Ok(match sampling {
        TimeSampling::Uniform => Times::Uniform,
        TimeSampling::Stratified => Times::Stratified,
        TimeSampling::LogitNormal => {
            Times::LogitNormal { mean: flow.logit_mean as f32, std: flow.logit_std as f32 }
        }
        TimeSampling::Importance => Times::Importance(weight.density(device, time_range(flow))?.into()),
    })
}

/// Returns the range of times.
pub fn time_range(flow: &FlowConfig) -> (f32, f32) {
    (flow.time_min as f32, flow.time_max as f32)
}

/// Returns the objective for a global batch of `samples`.
///
/// # Errors
/// Sizes that do not fit together.
pub fn objective(config: &Config, net: &VelocityNet, samples: usize, device: &Device) -> Result<Objective> {
    let f = &config.flow;
    let weight = weight(f, device)?;
    let objective = Objective {
        samples,
        flow_mul: f.flow_mul,
        times: times(f, f.time, &weight, device)?,
        time_range: time_range(f),
        weight,
        control_variate: f.control_variate,
        reduction: match f.reduction {
            config::Reduction::MeanAll => Reduction::MeanAll,
            config::Reduction::SumDimsMeanRows => Reduction::SumDimsMeanRows,
        },
        form: form(config.model.modulation, net),
        label_dropout: config.model.label_dropout as f32,
        recompute: config.train.recompute,
    };
    objective.check(net, config.train.micro_batches)?;
    Ok(objective)
}

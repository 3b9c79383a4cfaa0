//! What one training step computes: its matrix products, from sizes alone (FEATURES 1.10). A multiply-add is 2 FLOP.
//!
//! ```text
//! rows N:  input D·C, each block 2·C², output C·D
//! rows P:  time embedding 256·C + C², condition z·C, heads 3·C² a block and 2·C² for the final layer
//!          P = N (direct), r a micro-batch (nodes), G (groups); 0 for a frozen network whose table is known
//! nodes:   N·r·(3·C a block + 2·C) to interpolate, once forward, once backward, once for the table's gradient
//! ```
//! A DiT has T tokens a sample: each block C·3·C, C², 2·4·C² a token and 2·T²·C a sample for attention, whose backward is twice that;
//! P is a row a sample, with heads of 6·C a block.
//!
//! Stage 1 takes every product three times (forward, input gradient, weight gradient), without the input gradients of
//! the two first layers. Stage 2 takes no weight gradient of the prior and needs none of the path backward. Element-wise
//! work and the optimizer are not counted: they are bound by memory.

use crate::error::Result;
use crate::nn::block::MLP_RATIO;
use crate::nn::modulation_path::EMBEDDING;
use crate::nn::{AutoencoderConfig, Conditioning, Form, Layers, VelocityConfig, VelocityNet};
use crate::train::config::{Config, Gradient, Kind, Stage, Target};
use crate::train::features::RowShape;
use crate::train::setup;

/// What the gradients of a step are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Stage 1: the network's parameters.
    Params,
    /// Stage 2: the latents, through a frozen network.
    Latents,
    /// Stage 2 without the network's Jacobian: forward passes only.
    Detached,
}

/// An autoencoder under alignment.
#[derive(Clone, Debug, PartialEq)]
pub struct Coding {
    /// Samples in a step.
    pub samples: usize,
    /// Its sizes.
    pub net: AutoencoderConfig,
}

/// The sizes that decide what a step costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// The velocity network.
    pub net: VelocityConfig,
    /// The form of modulation.
    pub form: Form,
    /// What gradients are for.
    pub purpose: Purpose,
    /// Rows of data or latents in a step.
    pub samples: usize,
    /// Copies of each, with a time and noise of its own.
    pub flow_mul: usize,
    /// Parts that a step is computed in.
    pub micro_batches: usize,
    /// The autoencoder that the latents come from, if any.
    pub autoencoder: Option<Coding>,
}

/// FLOP of one step, by what they compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Products of the forward pass.
    pub forward: u64,
    /// Products that give the gradients of inputs.
    pub input_gradient: u64,
    /// Products that give the gradients of weights.
    pub weight_gradient: u64,
    /// Attention, forward and backward.
    pub attention: u64,
    /// Interpolation of modulation tables, and its transpose.
    pub interpolation: u64,
}

/// One linear layer on some rows.
struct Layer {
    rows: usize,
    inputs: usize,
    outputs: usize,
    input_gradient: bool,
    weight_gradient: bool,
}

impl Coding {
    /// Returns (rows, inputs, outputs) of all layers, those of the encoder first.
    pub fn layers(&self) -> Vec<[usize; 3]> {
        let (b, net) = (self.samples, &self.net);
        match &net.layers {
            Layers::Mlp { hidden, .. } => {
                let latents = net.latents();
                let widths: Vec<usize> =
                    [&net.data].into_iter().chain(hidden).chain([&latents]).copied().collect();
                let back: Vec<usize> = widths.iter().rev().copied().collect();
                widths.windows(2).chain(back.windows(2)).map(|pair| [b, pair[0], pair[1]]).collect()
            }
            Layers::Vit(vit) => {
                let (c, patches, latents) = (vit.width, vit.patches(), b * net.tokens);
                let (cut, all) = (b * patches.tokens(), b * patches.tokens() + latents);
                let block = [[all, c, 3 * c], [all, c, c], [all, c, MLP_RATIO * c], [all, MLP_RATIO * c, c]];
                let blocks = || (0..vit.depth).flat_map(|_| block);
                let encoder = [[cut, patches.columns(), c]]
                    .into_iter()
                    .chain(blocks())
                    .chain([[latents, c, net.latent]]);
                let decoder = [[latents, net.latent, c]].into_iter().chain(blocks()).chain([[
                    cut,
                    c,
                    patches.columns(),
                ]]);
                encoder.chain(decoder).collect()
            }
        }
    }
}

impl Work {
    /// Takes the sizes from a configuration and what its data are.
    ///
    /// `prior` is the network that stage 2 aligns to; without it, it is the one that the configuration describes.
    ///
    /// # Errors
    /// Widths that contradict each other, or a network without a block.
    pub fn of(config: &Config, data: RowShape, prior: Option<VelocityConfig>) -> Result<Self> {
        let a = &config.align;
        let latents = config.stage == Stage::Align;
        let rows = if latents { RowShape::vectors(latent_width(config)) } else { data };
        let net = match prior.filter(|_| latents) {
            Some(prior) => VelocityNet::new(prior)?,
            None => setup::network(config, rows)?,
        };
        let form = match (latents, setup::form(config.model.modulation, &net)) {
            (true, _) if a.joint => Form::Direct,
            (true, Form::Nodes(_)) => net.default_form(), // a frozen table is made once, with the default nodes
            (_, form) => form,
        };
        let through_autoencoder = latents && a.target == Target::Autoencoder;
        let autoencoder = match through_autoencoder {
            true => Some(Coding { samples: config.train.batch, net: setup::autoencoder(config, data)? }),
            false => None,
        };
        Ok(Self {
            net: net.config(),
            form,
            purpose: match (latents, a.gradient) {
                (false, _) => Purpose::Params,
                (true, _) if a.joint => Purpose::Params,
                (true, Gradient::Full) => Purpose::Latents,
                (true, Gradient::Detached | Gradient::Centred) => Purpose::Detached,
            },
            samples: match (latents, a.target) {
                (false, _) => config.train.batch,
                (true, Target::Latents) => a.latents,
                (true, Target::Autoencoder) => {
                    (config.train.batch * a.autoencoder.tokens / setup::latents_of(&net).1).max(1)
                }
            },
            flow_mul: config.flow.flow_mul,
            micro_batches: config.train.micro_batches,
            autoencoder,
        })
    }

    /// Returns N, the rows that the network sees in a step.
    pub fn rows(&self) -> usize {
        self.samples * self.flow_mul
    }

    /// Returns the samples that rates count: those of the autoencoder, where there is one.
    pub fn counted_samples(&self) -> usize {
        self.autoencoder.as_ref().map_or(self.samples, |coding| coding.samples)
    }

    /// Returns the rows of the modulation path in a step.
    pub fn path_rows(&self) -> usize {
        match self.form {
            Form::Direct => self.rows(),
            Form::Groups(groups) => groups,
            Form::Nodes(_) if self.purpose != Purpose::Params => 0,
            Form::Nodes(nodes) => nodes * self.micro_batches,
        }
    }

    /// Counts the FLOP of a step.
    pub fn cost(&self) -> Cost {
        let (interpolation, attention) = (self.interpolation(), self.attention());
        let mut cost = Cost { interpolation, attention, ..Cost::default() };
        for layer in self.trunk().into_iter().chain(self.path()).chain(self.autoencoder()) {
            let flop = 2 * layer.rows as u64 * layer.inputs as u64 * layer.outputs as u64;
            cost.forward += flop;
            cost.input_gradient += if layer.input_gradient { flop } else { 0 };
            cost.weight_gradient += if layer.weight_gradient { flop } else { 0 };
        }
        cost
    }

    fn trunk(&self) -> Vec<Layer> {
        let (rows, c, depth) = (self.rows() * self.tokens(), self.width(), self.depth());
        let weight_gradient = self.purpose == Purpose::Params;
        let input_gradient = self.purpose != Purpose::Detached;
        let layer = |inputs, outputs| Layer { rows, inputs, outputs, input_gradient, weight_gradient };
        let (inputs, block, outputs) = match &self.net {
            VelocityConfig::Mlp(net) => (net.channels, vec![(c, c); 2], net.channels),
            VelocityConfig::Dit { dit } => {
                let block = vec![(c, 3 * c), (c, c), (c, MLP_RATIO * c), (MLP_RATIO * c, c)];
                (dit.token_inputs(), block, dit.token_outputs())
            }
        };
        let mut layers = vec![Layer { input_gradient: self.purpose == Purpose::Latents, ..layer(inputs, c) }];
        layers.extend((0..depth).flat_map(|_| block.iter().map(|(i, o)| layer(*i, *o))));
        layers.push(layer(c, outputs));
        layers
    }

    /// Scores and mixture, each T·C a token, are products; either has two in the backward.
    fn attention(&self) -> u64 {
        let products = |samples: usize, tokens: usize, width: usize, depth: usize| {
            4 * (samples * tokens * tokens) as u64 * (width * depth) as u64
        };
        let of_network = match &self.net {
            VelocityConfig::Dit { dit } => products(self.rows(), dit.tokens(), dit.width, dit.depth),
            VelocityConfig::Mlp(_) => 0,
        };
        let of_autoencoder = match &self.autoencoder {
            Some(Coding { samples, net: net @ AutoencoderConfig { layers: Layers::Vit(vit), .. } }) => {
                2 * products(*samples, vit.patches().tokens() + net.tokens, vit.width, vit.depth)
            }
            _ => 0,
        };
        let times = if self.purpose == Purpose::Detached { 1 } else { 3 };
        times * of_network + 3 * of_autoencoder
    }

    fn path(&self) -> Vec<Layer> {
        let c = self.width();
        let trained = self.purpose == Purpose::Params;
        let rows = self.path_rows();
        let layer = |inputs, outputs| Layer {
            rows,
            inputs,
            outputs,
            input_gradient: trained,
            weight_gradient: trained,
        };
        let first = |inputs| Layer { input_gradient: false, ..layer(inputs, c) };
        let cond = if let Conditioning::Vectors(width) = self.net.conditioning() { width } else { 0 };
        let mut layers = vec![first(EMBEDDING), layer(c, c), first(cond)];
        layers.extend((0..self.depth()).map(|_| layer(c, self.table_parts() * c)));
        layers.push(layer(c, 2 * c));
        layers
    }

    fn autoencoder(&self) -> Vec<Layer> {
        let layers = self.autoencoder.iter().flat_map(Coding::layers);
        layers
            .enumerate()
            .map(|(i, [rows, inputs, outputs])| Layer {
                rows,
                inputs,
                outputs,
                input_gradient: i > 0,
                weight_gradient: true,
            })
            .collect()
    }

    fn interpolation(&self) -> u64 {
        let Form::Nodes(nodes) = self.form else { return 0 };
        let columns = self.table_columns() as u64;
        let times = match self.purpose {
            Purpose::Params => 3,
            Purpose::Latents => 2,
            Purpose::Detached => 1,
        };
        times * 2 * self.rows() as u64 * nodes as u64 * columns
    }

    /// Returns the columns of all modulation tables together.
    pub fn table_columns(&self) -> usize {
        (self.table_parts() * self.depth() + 2) * self.width()
    }

    /// Returns what a block takes of its table, in widths: shift, scale and gate of each branch.
    pub fn table_parts(&self) -> usize {
        if matches!(self.net, VelocityConfig::Mlp(_)) { 3 } else { 6 }
    }

    /// Returns the width of the residual stream.
    pub fn width(&self) -> usize {
        match &self.net {
            VelocityConfig::Mlp(net) => net.width,
            VelocityConfig::Dit { dit } => dit.width,
        }
    }

    /// Returns the blocks.
    pub fn depth(&self) -> usize {
        match &self.net {
            VelocityConfig::Mlp(net) => net.depth,
            VelocityConfig::Dit { dit } => dit.depth,
        }
    }

    /// Returns the tokens of a row of data.
    pub fn tokens(&self) -> usize {
        self.net.tokens()
    }
}

/// Returns the width of the latents that stage 2 moves, as the configuration has it.
pub fn latent_width(config: &Config) -> usize {
    let model = &config.model;
    match (config.align.target, model.image) {
        (Target::Latents, Some(image)) if model.kind == Kind::Dit => image.iter().product(),
        (Target::Latents, _) if model.channels > 0 => model.channels,
        _ => config.align.autoencoder.latent,
    }
}

impl Cost {
    /// Returns the FLOP of a step.
    pub fn total(&self) -> u64 {
        self.forward + self.input_gradient + self.weight_gradient + self.attention + self.interpolation
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::MlpConfig;

    fn reference(form: Form, purpose: Purpose, samples: usize) -> f64 {
        let net =
            MlpConfig { channels: 32, width: 1024, depth: 6, cond: 0, post_norm: false, time_scale: 1.0 };
        let net = VelocityConfig::Mlp(net);
        let work = Work { net, form, purpose, samples, flow_mul: 4, micro_batches: 1, autoencoder: None };
        work.cost().total() as f64 / 1e9
    }

    fn near(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 0.01, "{found}, expected {expected}");
    }

    #[test]
    fn reference_steps_cost_what_was_counted_by_hand() {
        // FEATURES 1.10 and PERFORMANCE sections 3 and 5.
        near(reference(Form::Direct, Purpose::Params, 512), 428.0);
        near(reference(Form::Nodes(16), Purpose::Params, 512), 161.0);
        near(reference(Form::Direct, Purpose::Latents, 512), 195.0);
        near(reference(Form::Nodes(16), Purpose::Latents, 512), 106.0);
        near(reference(Form::Direct, Purpose::Params, 32_768), 27_400.0);
        near(reference(Form::Groups(2048), Purpose::Params, 32_768), 10_200.0);
        near(reference(Form::Direct, Purpose::Detached, 16_384), 4_600.0);
    }

    #[test]
    fn an_autoencoder_adds_its_layers_once_forward_and_twice_backward() {
        let config = Config::load(
            &crate::train::Sources { stage: Some(Stage::Align), preset: Some("demo".into()), file: None },
            &[],
        )
        .unwrap();
        let with = Work::of(&config, RowShape::vectors(64), None).unwrap();
        let without = Work { autoencoder: None, ..with.clone() };
        let (with, without) = (with.cost(), without.cost());
        let layer = |a: u64, b: u64| 2 * 256 * a * b;
        let chain = 2 * (layer(64, 256) + layer(256, 256) + layer(256, 16));
        assert_eq!(with.forward - without.forward, chain);
        assert_eq!(with.weight_gradient - without.weight_gradient, chain);
        assert_eq!(with.input_gradient - without.input_gradient, chain - layer(64, 256));
    }
}

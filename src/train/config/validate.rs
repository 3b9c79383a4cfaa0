//! Ranges and contradictions, each refused with one sentence that names the key.

use std::fmt::Display;

use super::align::{AlignConfig, Gradient, Target};
use super::autoencoder::{AutoencoderConfig, Coder};
use super::model::{Kind, ModelConfig, Modulation};
use super::sections::{Config, DataConfig, FlowConfig, OptimConfig, Stage, TimeSampling, Weight};
use crate::error::{Error, Result};
use crate::float::DType;
use crate::ops::knn::MOST_NEIGHBOURS;
use crate::optim::schedule::ScheduleKind;
use crate::optim::{OptimKind, Rounding};
use crate::rng::MAX_REPLICAS;

/// Chebyshev nodes that make sense: below 2 there is nothing to interpolate, above 64 `direct` is cheaper.
const NODES: std::ops::RangeInclusive<usize> = 2..=64;
/// Values of a table of weights: two have a line between them; times are multiples of about 2⁻²⁴, so that thousands lie between two knots
/// of the longest table.
const KNOTS: std::ops::RangeInclusive<usize> = 2..=4096;
/// The largest weight of a table: its multiples by residuals and a loss scale stay far below the largest f32.
const LARGEST_WEIGHT: f64 = 1e12;
/// Threads of the CPU; more are a slip of the keyboard, and starting them would stall the machine.
const MAX_THREADS: usize = 4096;
/// Averages of the weights in one run, each as large as the network.
const MAX_AVERAGES: usize = 8;

impl Config {
    /// Checks ranges and contradictions. Data and prior may still be missing: `data.source()` and `align.prior()` ask
    /// for them where they are needed.
    ///
    /// # Errors
    /// `Error::Usage` with one sentence that names the key, what it must be and what it is.
    pub fn validate(&self) -> Result<()> {
        device(&self.device)?;
        if self.threads > MAX_THREADS {
            return must("threads", format!("from 0 to {MAX_THREADS}"), self.threads);
        }
        if self.tf32 && (self.dtype != DType::F32 || self.device == "cpu") {
            return refuse(format!(
                "tf32 = true is for dtype f32 on a CUDA device, but dtype is {} and device `{}`",
                self.dtype, self.device
            ));
        }
        data(&self.data)?;
        model(&self.model)?;
        flow(&self.flow)?;
        spatial(&self.model, &self.flow)?;
        optim(&self.optim)?;
        self.schedule()?;
        self.scaler()?;
        self.train()?;
        self.rounding()?;
        if self.stage == Stage::Align {
            align(&self.align, &self.flow)?;
            self.matching()?;
        }
        self.groups()
    }

    fn schedule(&self) -> Result<()> {
        let s = &self.optim.schedule;
        at_least("optim.schedule.warmup_lr", s.warmup_lr, 0.0)?;
        within("optim.schedule.min_lr_ratio", s.min_lr_ratio, 0.0, 1.0)?;
        let (decay, steps) = (s.decay_length(self.train.steps), self.train.steps);
        if s.kind == ScheduleKind::Wsd && s.warmup_steps.saturating_add(decay) > steps {
            return refuse(format!(
                "optim.schedule: warm-up and decay take {} + {decay} steps, more than the {steps} of train.steps",
                s.warmup_steps
            ));
        }
        Ok(())
    }

    fn scaler(&self) -> Result<()> {
        let s = &self.scaler;
        above("scaler.min", s.min, 0.0)?;
        above("scaler.growth", s.growth, 1.0)?;
        open("scaler.backoff", s.backoff, 0.0, 1.0)?;
        count("scaler.interval", s.interval)?;
        // The scale is an f32; a first scale near its end would make every loss infinite.
        within("scaler.init", s.init, s.min, f64::from(f32::MAX))
    }

    fn train(&self) -> Result<()> {
        let t = &self.train;
        count("train.steps", t.steps)?;
        count("train.batch", t.batch as u64)?;
        count("train.micro_batches", t.micro_batches as u64)?;
        count("train.log_every", t.log_every)?;
        count("train.keep", t.keep as u64)?;
        count("train.max_skipped", t.max_skipped)?;
        if t.snapshots_every > 0 && (self.stage, self.align.target) != (Stage::Align, Target::Latents) {
            return refuse(format!(
                "train.snapshots_every = {} keeps free latents: it needs stage 2 with align.target = \"latents\"",
                t.snapshots_every
            ));
        }
        let (name, samples) = self.samples();
        if !samples.is_multiple_of(t.micro_batches) {
            return refuse(format!(
                "train.micro_batches must divide {name} = {samples}, but is {}",
                t.micro_batches
            ));
        }
        Ok(())
    }

    fn rounding(&self) -> Result<()> {
        if self.optim.rounding == Rounding::Stochastic && self.dtype == DType::F32 {
            return refuse(
                "optim.rounding = \"stochastic\" needs dtype bf16 or f16: f32 weights are not rounded",
            );
        }
        Ok(())
    }

    /// Checks that modulation groups share out the rows of a micro-batch evenly.
    fn groups(&self) -> Result<()> {
        let Modulation::Groups(groups) = self.model.modulation else { return Ok(()) };
        let (_, samples) = self.samples();
        let tokens = match (self.stage, self.align.target) {
            (Stage::Align, Target::Autoencoder) => self.align.autoencoder.tokens,
            _ => 1,
        };
        let rows = samples / self.train.micro_batches * tokens * self.flow.flow_mul;
        if groups == 0 || !rows.is_multiple_of(groups) {
            return refuse(format!(
                "model.modulation = \"groups={groups}\": the number of groups must divide the {rows} rows of a micro-batch"
            ));
        }
        Ok(())
    }

    /// Checks the terms that match distributions against what they look at.
    fn matching(&self) -> Result<()> {
        let a = &self.align;
        let terms = [
            ("repulsion", a.repulsion),
            ("sliced_wasserstein", a.sliced_wasserstein),
            ("divergence", a.divergence),
        ];
        for (key, weight) in terms {
            at_least(&format!("align.{key}"), weight, 0.0)?;
        }
        count("align.projections", a.projections as u64)?;
        count("align.targets", a.targets as u64)?;
        let Some((term, _)) = terms.into_iter().find(|(_, weight)| *weight > 0.0) else { return Ok(()) };
        if self.flow.norm_target {
            return refuse(format!(
                "align.{term} looks at latents as the prior sees them: it needs flow.norm_target = false"
            ));
        }
        if a.divergence > 0.0 && self.dtype != DType::F32 {
            return refuse(format!(
                "align.divergence takes differences of velocities that are lost in {}: it needs dtype f32",
                self.dtype
            ));
        }
        let (key, samples) = self.samples();
        if a.target == Target::Autoencoder && self.train.micro_batches > 1 {
            return refuse(format!(
                "align.{term} looks at a whole batch of latents: it needs train.micro_batches = 1"
            ));
        }
        let tokens = if a.target == Target::Autoencoder { a.autoencoder.tokens } else { 1 };
        let most = (samples * tokens).saturating_sub(1).min(MOST_NEIGHBOURS);
        if a.repulsion > 0.0 && !(1..=most).contains(&a.repulsion_k) {
            let rule = format!("from 1 to {most}, for the {} latents of a batch ({key})", samples * tokens);
            return must("align.repulsion_k", rule, a.repulsion_k);
        }
        Ok(())
    }

    /// Returns the key and value that say how many samples a step takes.
    fn samples(&self) -> (&'static str, usize) {
        match (self.stage, self.align.target) {
            (Stage::Align, Target::Latents) => ("align.latents", self.align.latents),
            _ => ("train.batch", self.train.batch),
        }
    }
}

fn device(device: &str) -> Result<()> {
    let numbered = device.strip_prefix("cuda:").is_some_and(|n| n.parse::<u32>().is_ok());
    if numbered || ["auto", "cpu", "cuda"].contains(&device) {
        return Ok(());
    }
    refuse(format!("device must be `auto`, `cpu` or `cuda[:n]`, but is `{device}`"))
}

fn data(data: &DataConfig) -> Result<()> {
    let given = [data.toy.is_some(), data.path.is_some(), data.builtin.is_some()];
    if given.into_iter().filter(|g| *g).count() > 1 {
        data.source()?;
    }
    Ok(())
}

fn model(m: &ModelConfig) -> Result<()> {
    count("model.width", m.width as u64)?;
    count("model.depth", m.depth as u64)?;
    above("model.time_scale", m.time_scale, 0.0)?;
    match m.kind {
        Kind::Mlp => mlp(m),
        Kind::Dit => dit(m),
    }
}

fn mlp(m: &ModelConfig) -> Result<()> {
    let of_dit = [
        ("size", m.size.is_some()),
        ("heads", m.heads > 0),
        ("image", m.image.is_some()),
        ("tokens", m.tokens > 0),
        ("classes", m.classes > 0),
        ("qk_norm", m.qk_norm),
        ("learn_sigma", m.learn_sigma),
        ("cond_channels", m.cond_channels > 0),
        ("cond_rescale", m.cond_rescale > 0),
        ("inpaint", m.inpaint),
    ];
    if let Some((key, _)) = of_dit.iter().find(|(_, set)| *set) {
        let instead =
            if *key == "classes" { "; labels of an MLP are a condition: set model.cond" } else { "" };
        return refuse(format!("model.{key} is for model.kind = \"dit\"{instead}"));
    }
    let Modulation::Nodes(nodes) = m.modulation else { return Ok(()) };
    if m.cond > 0 {
        return refuse(format!(
            "model.modulation = \"nodes={nodes}\" needs model.cond = 0: with a condition the modulation is not a function of t alone"
        ));
    }
    if !NODES.contains(&nodes) {
        return refuse(format!(
            "model.modulation = \"nodes=R\" must have R from {} to {}, but has {nodes}",
            NODES.start(),
            NODES.end()
        ));
    }
    Ok(())
}

fn dit(m: &ModelConfig) -> Result<()> {
    if m.cond > 0 {
        return refuse("model.cond is for model.kind = \"mlp\"; a DiT takes labels: set model.classes");
    }
    if m.post_norm {
        return refuse("model.post_norm is for model.kind = \"mlp\"");
    }
    if let Modulation::Nodes(nodes) = m.modulation {
        return refuse(format!(
            "model.modulation = \"nodes={nodes}\" is for model.kind = \"mlp\": a DiT evaluates its modulation once a sample"
        ));
    }
    if let (Modulation::Groups(_), true) = (m.modulation, m.classes > 0) {
        return refuse(
            "model.modulation = \"groups=G\" needs model.classes = 0: samples of one group would share a label",
        );
    }
    let heads = m.heads();
    if !m.width.is_multiple_of(2 * heads) {
        return refuse(format!(
            "model.heads = {heads} must cut model.width = {} into heads of an even width",
            m.width
        ));
    }
    within("model.label_dropout", m.label_dropout, 0.0, 0.999)?;
    let of_images =
        [("image", m.image.is_some()), ("cond_channels", m.cond_channels > 0), ("inpaint", m.inpaint)];
    if let (true, Some((other, _))) = (m.tokens > 0, of_images.iter().find(|(_, set)| *set)) {
        return refuse(format!(
            "model.tokens takes rows as sequences, model.{other} as images: set one of them"
        ));
    }
    count("model.patch", m.patch as u64)?;
    let Some([channels, height, width]) = m.image else { return Ok(()) };
    if channels == 0 || height * width == 0 || height % m.patch != 0 || width % m.patch != 0 {
        return refuse(format!(
            "model.image = [{channels}, {height}, {width}] must have sides that model.patch = {} divides",
            m.patch
        ));
    }
    Ok(())
}

/// Checks what a DiT has beside each image.
fn spatial(m: &ModelConfig, f: &FlowConfig) -> Result<()> {
    within("model.inpaint_whole", m.inpaint_whole, 0.0, 1.0)?;
    if m.inpaint && m.cond_channels > 0 {
        return refuse(
            "model.inpaint makes the condition of each image itself, model.cond_channels takes it from the data: set one of them",
        );
    }
    if m.cond_rescale > 0 && m.cond_channels == 0 {
        return refuse(
            "model.cond_rescale makes fewer channels of those of a condition: set model.cond_channels",
        );
    }
    let key = if m.inpaint { "inpaint" } else { "cond_channels" };
    if f.norm_target && (m.inpaint || m.cond_channels > 0) {
        return refuse(format!(
            "flow.norm_target normalises rows as a whole, a spatial condition (model.{key}) with them: leave one of them out"
        ));
    }
    Ok(())
}

fn flow(f: &FlowConfig) -> Result<()> {
    count("flow.flow_mul", f.flow_mul as u64)?;
    if f.flow_mul > MAX_REPLICAS {
        return refuse(format!("flow.flow_mul must be at most {MAX_REPLICAS}, but is {}", f.flow_mul));
    }
    within("flow.time_min", f.time_min, 0.0, 1.0)?;
    within("flow.time_max", f.time_max, 0.0, 1.0)?;
    if f.time_min >= f.time_max {
        return refuse(format!(
            "flow.time_min must be less than flow.time_max, but they are {} and {}",
            f.time_min, f.time_max
        ));
    }
    finite("flow.logit_mean", f.logit_mean)?;
    above("flow.logit_std", f.logit_std, 0.0)?;
    open("flow.weight_clip", f.weight_clip, 0.0, 1.0)?;
    table(f)?;
    if f.control_variate && (f.weight != Weight::Likelihood || f.time == TimeSampling::LogitNormal) {
        return refuse(
            "flow.control_variate needs flow.weight = \"likelihood\" and times that are not logit-normal: no other loss is a log-likelihood",
        );
    }
    let has_clip = matches!(f.weight, Weight::Likelihood | Weight::Kl);
    if has_clip && f.weight_clip <= f.time_min {
        return refuse(format!(
            "flow.weight_clip must be greater than flow.time_min, or no time has a weight; they are {} and {}",
            f.weight_clip, f.time_min
        ));
    }
    if f.unit_norm && !f.norm_target {
        return refuse(
            "flow.unit_norm needs flow.norm_target = true: the reference silently ignores it otherwise",
        );
    }
    Ok(())
}

/// Checks the user's weights.
fn table(f: &FlowConfig) -> Result<()> {
    let (table, key) = (&f.weight_table, "flow.weight_table");
    if f.weight != Weight::Table {
        return match table.is_empty() {
            true => Ok(()),
            false => refuse(format!("{key} is for flow.weight = \"table\"; leave one of them out")),
        };
    }
    if !KNOTS.contains(&table.len()) {
        let (least, most) = (KNOTS.start(), KNOTS.end());
        return refuse(format!("{key} must have {least} to {most} values, but has {}", table.len()));
    }
    for (i, w) in table.iter().enumerate() {
        within(&format!("{key}[{i}]"), *w, 0.0, LARGEST_WEIGHT)?;
    }
    // Knots to the left of a time and to its right: w is 0 between two that are.
    let last = (table.len() - 1) as f64;
    let (from, to) = ((f.time_min * last).floor() as usize, (f.time_max * last).ceil() as usize);
    if table[from..=to].iter().all(|w| *w == 0.0) {
        return refuse(format!("{key} is 0 from flow.time_min to flow.time_max, so no time has a weight"));
    }
    Ok(())
}

fn optim(o: &OptimConfig) -> Result<()> {
    above("optim.lr", o.lr, 0.0)?;
    half_open("optim.beta1", o.beta1)?;
    half_open("optim.beta2", o.beta2)?;
    above("optim.eps", o.eps, 0.0)?;
    at_least("optim.weight_decay", o.weight_decay, 0.0)?;
    half_open("optim.momentum", o.momentum)?;
    at_least("optim.clip", o.clip, 0.0)?;
    if o.nesterov && (o.kind != OptimKind::Sgd || o.momentum == 0.0) {
        return refuse("optim.nesterov needs optim.kind = \"sgd\" and optim.momentum greater than 0");
    }
    for (i, decay) in o.ema.iter().enumerate() {
        half_open("optim.ema", *decay)?;
        if o.ema[..i].contains(decay) {
            return refuse(format!("optim.ema names the decay {decay} twice"));
        }
    }
    if o.ema.len() > MAX_AVERAGES {
        return refuse(format!(
            "optim.ema may name {MAX_AVERAGES} decays at most, but names {}",
            o.ema.len()
        ));
    }
    Ok(())
}

fn align(a: &AlignConfig, f: &FlowConfig) -> Result<()> {
    count("align.latents", a.latents as u64)?;
    above("align.init_std", a.init_std, 0.0)?;
    at_least("align.lambda", a.lambda, 0.0)?;
    at_least("align.std_weight", a.std_weight, 0.0)?;
    at_least("align.repulsion_start", a.repulsion_start, 0.0)?;
    if a.repulsion_start > 0.0 && (a.repulsion == 0.0 || a.repulsion_cooling == 0) {
        return refuse(
            "align.repulsion_start cools down to align.repulsion over align.repulsion_cooling steps: both must be greater than 0",
        );
    }
    let vanishes = f.weight == Weight::Kl || f.weight == Weight::Table && f.weight_table[0] == 0.0;
    if a.gradient != Gradient::Full && !vanishes && !a.unsound {
        let name = if a.gradient == Gradient::Detached { "detached" } else { "centred" };
        return refuse(format!(
            "align.gradient = \"{name}\" needs flow.weight = \"kl\", or a table that is 0 at t = 0: without the Jacobian, only the weight \
             t²/(1 − t) follows a KL divergence whose weight is the same at all t, and with the uniform one latents collapse away from the \
             data (align.unsound = true shows it)"
        ));
    }
    let of_autoencoders = [("adaptive", a.adaptive), ("projection", a.projection), ("joint", a.joint)];
    if let (Target::Latents, Some((key, _))) = (a.target, of_autoencoders.iter().find(|(_, on)| *on)) {
        return refuse(format!(
            "align.{key} needs align.target = \"autoencoder\": free latents have no encoder and no reconstruction loss"
        ));
    }
    if !a.adaptive_at.is_empty() && !a.adaptive {
        return refuse("align.adaptive_at names the weight for align.adaptive = true, which is off");
    }
    if a.joint && a.gradient != Gradient::Full {
        return refuse(
            "align.joint needs align.gradient = \"full\": the prior's gradients go through its layers, which the others leave out",
        );
    }
    autoencoder(&a.autoencoder)
}

fn autoencoder(a: &AutoencoderConfig) -> Result<()> {
    count("align.autoencoder.latent", a.latent as u64)?;
    count("align.autoencoder.tokens", a.tokens as u64)?;
    for width in &a.hidden {
        count("align.autoencoder.hidden", *width as u64)?;
    }
    if a.kind == Coder::Mlp {
        let of_vit = [("size", a.size.is_some()), ("image", a.image.is_some()), ("heads", a.heads > 0)];
        return match of_vit.iter().find(|(_, set)| *set) {
            Some((key, _)) => {
                refuse(format!("align.autoencoder.{key} is for align.autoencoder.kind = \"vit\""))
            }
            None => Ok(()),
        };
    }
    count("align.autoencoder.width", a.width as u64)?;
    count("align.autoencoder.depth", a.depth as u64)?;
    count("align.autoencoder.patch", a.patch as u64)?;
    let heads = a.heads();
    if !a.width.is_multiple_of(2 * heads) || !a.width.is_multiple_of(4) {
        return refuse(format!(
            "align.autoencoder.heads = {heads} must cut align.autoencoder.width = {}, a multiple of 4, into heads of an even width",
            a.width
        ));
    }
    Ok(())
}

fn refuse<T>(sentence: impl Into<String>) -> Result<T> {
    Err(Error::Usage(sentence.into()))
}

fn must<T>(key: &str, rule: impl Display, found: impl Display) -> Result<T> {
    refuse(format!("{key} must be {rule}, but is {found}"))
}

fn count(key: &str, n: u64) -> Result<()> {
    if n == 0 { must(key, "at least 1", n) } else { Ok(()) }
}

fn finite(key: &str, x: f64) -> Result<()> {
    if x.is_finite() { Ok(()) } else { must(key, "finite", x) }
}

fn above(key: &str, x: f64, floor: f64) -> Result<()> {
    if x.is_finite() && x > floor { Ok(()) } else { must(key, format!("greater than {floor}"), x) }
}

fn at_least(key: &str, x: f64, floor: f64) -> Result<()> {
    if x.is_finite() && x >= floor { Ok(()) } else { must(key, format!("at least {floor}"), x) }
}

fn within(key: &str, x: f64, low: f64, high: f64) -> Result<()> {
    if (low..=high).contains(&x) { Ok(()) } else { must(key, format!("from {low} to {high}"), x) }
}

fn open(key: &str, x: f64, low: f64, high: f64) -> Result<()> {
    if x > low && x < high { Ok(()) } else { must(key, format!("between {low} and {high}"), x) }
}

fn half_open(key: &str, x: f64) -> Result<()> {
    if (0.0..1.0).contains(&x) { Ok(()) } else { must(key, "at least 0 and less than 1", x) }
}

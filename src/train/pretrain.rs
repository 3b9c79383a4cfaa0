//! Stage 1: fits the velocity network to features by flow matching.

use std::ops::Range;

use serde_json::{Value, json};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::flow::objective::Velocity;
use crate::flow::{Batch, Draws, Objective, Want};
use crate::nn::{Condition, Conditioning, Grads, Params, Spatial, VelocityNet};
use crate::ops::elementwise::cast;
use crate::ops::embedding::Labels;
use crate::ops::inpaint::{Holes, inpaint};
use crate::ops::normalize::{BatchStats, batch_stats, standardize_forward, unit_norm_forward};
use crate::ops::patchify::{Channels, Patches, patchify_backward_of};
use crate::tensor::Tensor;
use crate::train::config::{Config, Stage};
use crate::train::engine::Engine;
use crate::train::features::{Features, Staged, rows_to_device};
use crate::train::guard::Guard;
use crate::train::reference::{Reference, mean};
use crate::train::run::{Trainee, recalled};
use crate::train::sampling::{Sampling, sample_rows};
use crate::train::setup;
use crate::train::task::{Meter, StepAt, Task};

/// Rows as the network takes them, where they are not those of the data as they are, and what it has beside each.
struct Parts<X: FloatX> {
    data: Option<Tensor<f32>>,
    image: Option<Tensor<X>>,
}

/// The task of stage 1.
pub struct Pretrain {
    /// The network.
    pub net: VelocityNet,
    /// The objective; its form of modulation may change under the guard.
    pub objective: Objective,
    /// The data.
    pub features: Features,
    /// What the guard has to say since it was last asked.
    pub notes: Vec<String>,
    source: String,
    device: Device,
    seed: u64,
    micro_batches: usize,
    norm_target: bool,
    unit_norm: bool,
    /// Probability that nothing is known of an image that is inpainted.
    whole: f32,
    reference: Option<Reference>,
    labels: Option<Vec<u32>>,
    /// The labels of each micro-batch where a network with classes takes them, in memory that stays where it is.
    classes: Vec<Labels>,
    staged: Staged,
}

impl Pretrain {
    /// Prepares the task and freshly initialised parameters.
    ///
    /// # Errors
    /// A configuration whose parts do not fit together, or data that cannot be opened.
    pub fn new<X: FloatX>(config: &Config, device: &Device) -> Result<(Self, Engine<X>)> {
        Self::with_features(config, device, Features::open(config)?)
    }

    /// Does the same with features that the configuration does not name.
    ///
    /// # Errors
    /// A configuration that does not fit the features.
    pub fn with_features<X: FloatX>(
        config: &Config,
        device: &Device,
        features: Features,
    ) -> Result<(Self, Engine<X>)> {
        let net = setup::network(config, features.rows())?;
        let key = match net.conditioning() {
            Conditioning::Nothing => None,
            Conditioning::Vectors(_) => Some("model.cond"),
            Conditioning::Classes { .. } => Some("model.classes"),
        };
        if let Some(key) = key {
            let (classes, name) = (net.conditioning().classes(), setup::source_name(config));
            features.source().expect_classes(classes, key, &name)?;
        }
        let objective = setup::objective(config, &net, config.train.batch, device)?;
        let values = net.layout().initial_values(config.seed);
        let params = Params::from_flat(device, net.layout().clone(), &values)?;
        let engine = Engine::new(config, params, Tensor::from_f32(device, [values.len()], &values)?)?;
        let task = Self {
            net,
            objective,
            features,
            notes: Vec::new(),
            source: setup::source_name(config),
            device: device.clone(),
            seed: config.seed,
            micro_batches: config.train.micro_batches,
            norm_target: config.flow.norm_target,
            unit_norm: config.flow.unit_norm,
            whole: config.model.inpaint_whole as f32,
            reference: None,
            labels: None,
            classes: Vec::new(),
            staged: Staged::default(),
        };
        Ok((task, engine))
    }

    /// Returns the losses of fresh batches under fresh draws, the same for every call with one seed.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub fn fresh_losses<X: FloatX>(
        &self,
        params: &Params<X>,
        seed: u64,
        batches: Range<u64>,
    ) -> Result<Vec<f64>> {
        let velocity = Velocity { net: &self.net, params, tables: None };
        let samples = self.objective.samples;
        let loss = |index| {
            let batch = self.features.fresh_batch(seed, index, samples)?;
            let rows = rows_to_device(&self.device, &batch.features, self.features.width(), 0..samples)?;
            let draws = Draws::evaluation(seed, index);
            let stats = self.stats(&rows)?;
            let Parts { data, image } = self.parts(&rows, stats, draws, 0)?;
            let vectors = self.vectors(batch.labels.as_deref(), 0..samples)?;
            let classes = self.classes_of(batch.labels.as_deref(), 0..samples)?;
            let cond =
                Condition { vectors: vectors.as_ref(), labels: classes.as_ref(), image: image.as_ref() };
            let part = Batch { data: data.as_ref().unwrap_or(&rows), cond, first: 0 };
            self.objective.evaluate(velocity, part, draws, 1.0, Want::Loss)?.loss()
        };
        batches.map(loss).collect()
    }

    /// Returns what samples are measured against, from the first call on; `None` where targets are normalised batch by
    /// batch, or where samples need an image beside them.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub fn reference(&mut self) -> Result<Option<&Reference>> {
        if self.reference.is_none() && !self.norm_target && self.net.data_width() == self.features.width() {
            self.reference = Some(Reference::of(&self.features, self.seed)?);
        }
        Ok(self.reference.as_ref())
    }

    /// The statistics that the whole batch is normalised by, if so configured.
    fn stats(&self, rows: &Tensor<f32>) -> Result<Option<BatchStats>> {
        if self.norm_target { batch_stats(rows).map(Some) } else { Ok(None) }
    }

    /// Normalises rows of the batch as configured; `None` where they stay as they are.
    fn normalised(&self, rows: &Tensor<f32>, stats: Option<BatchStats>) -> Result<Option<Tensor<f32>>> {
        let standard = stats.map(|stats| standardize_forward(rows, stats)).transpose()?;
        match self.unit_norm {
            true => unit_norm_forward(standard.as_ref().unwrap_or(rows)).map(Some),
            false => Ok(standard),
        }
    }

    /// One-hot rows of the labels, for an MLP with a condition.
    fn vectors<X: FloatX>(&self, labels: Option<&[u32]>, range: Range<usize>) -> Result<Option<Tensor<X>>> {
        let (Some(labels), Conditioning::Vectors(classes)) = (labels, self.net.conditioning()) else {
            return Ok(None);
        };
        let mut z = vec![0.0; range.len() * classes];
        for (row, label) in z.chunks_exact_mut(classes).zip(&labels[range.clone()]) {
            let Some(one) = row.get_mut(*label as usize) else {
                let expected = format!("labels below {classes} (model.cond)");
                return Err(Error::data(&self.source, "labels", expected, label));
            };
            *one = 1.0;
        }
        Ok(Some(Tensor::from_f32(&self.device, [range.len(), classes], &z)?))
    }

    /// Normalises the samples `first ..` of a batch as configured, and parts them from a spatial condition behind them, or makes it.
    fn parts<X: FloatX>(
        &self,
        rows: &Tensor<f32>,
        stats: Option<BatchStats>,
        draws: Draws,
        first: usize,
    ) -> Result<Parts<X>> {
        let (width, of) = (self.net.data_width(), rows.rows_cols().1);
        match self.net.spatial() {
            Spatial::Nothing => Ok(Parts { data: self.normalised(rows, stats)?, image: None }),
            Spatial::Given { .. } => {
                // Columns of a row are channels of a picture of one pixel.
                let columns = |first, channels| {
                    let pixel = Patches { channels, height: 1, width: 1, patch: 1 };
                    patchify_backward_of(rows, Channels { first, of }, pixel)
                };
                let own = columns(0, width)?;
                let data = self.normalised(&own, stats)?.unwrap_or(own);
                Ok(Parts { data: Some(data), image: Some(cast(&columns(width, of - width)?)?) })
            }
            Spatial::Inpaint { image } => {
                let data = self.normalised(rows, stats)?;
                let holes = Holes { whole: self.whole, draw: draws.masks };
                let image = inpaint(data.as_ref().unwrap_or(rows), image, holes, first as u64)?;
                Ok(Parts { data, image: Some(image) })
            }
        }
    }

    /// The labels on the device, for a network with classes.
    fn classes_of(&self, labels: Option<&[u32]>, range: Range<usize>) -> Result<Option<Labels>> {
        let Some(labels) = self.checked(labels)? else { return Ok(None) };
        let Conditioning::Classes { classes, .. } = self.net.conditioning() else { return Ok(None) };
        Labels::new(&self.device, &labels[range], classes).map(Some)
    }

    /// Returns the labels that a network with classes is told, if each is one of them.
    fn checked<'l>(&self, labels: Option<&'l [u32]>) -> Result<Option<&'l [u32]>> {
        let (Some(labels), Conditioning::Classes { classes, .. }) = (labels, self.net.conditioning()) else {
            return Ok(None);
        };
        match labels.iter().find(|label| **label as usize >= classes) {
            None => Ok(Some(labels)),
            Some(label) => {
                let expected = format!("labels below {classes} (model.classes)");
                Err(Error::data(&self.source, "labels", expected, label))
            }
        }
    }

    /// Brings the labels of the step to the device, where the network takes them.
    fn put_labels(&mut self) -> Result<()> {
        let Some(labels) = self.checked(self.labels.as_deref())? else { return Ok(()) };
        let micro = self.objective.samples / self.micro_batches;
        for (i, part) in labels.chunks(micro).enumerate() {
            match self.classes.get_mut(i) {
                Some(classes) => classes.put(part)?,
                None => {
                    let first = i * micro;
                    let made = self.classes_of(self.labels.as_deref(), first..first + part.len())?;
                    self.classes.extend(made);
                }
            }
        }
        Ok(())
    }
}

impl<X: FloatX> Task<X> for Pretrain {
    fn prepare(&mut self, params: &Params<X>, step: u64) -> Result<()> {
        if step.is_multiple_of(Guard::EVERY) {
            let (form, note) = Guard::check(&self.net, params, self.objective.form)?;
            self.objective.form = form;
            self.notes.extend(note);
        }
        self.labels = self.features.stage(step, &self.device, &mut self.staged)?;
        self.put_labels()
    }

    fn gradients(
        &mut self,
        params: &Params<X>,
        at: StepAt,
        grads: &mut Grads,
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        let stats = self.stats(self.staged.all()?)?;
        let velocity = Velocity { net: &self.net, params, tables: None };
        let micro = self.objective.samples / self.micro_batches;
        let draws = at.draws(self.seed);
        self.staged.each(micro, |first, rows| {
            let Parts { data, image } = self.parts(rows, stats, draws, first)?;
            let vectors = self.vectors(self.labels.as_deref(), first..first + micro)?;
            let labels = self.classes.get(first / micro);
            let cond = Condition { vectors: vectors.as_ref(), labels, image: image.as_ref() };
            let part = Batch { data: data.as_ref().unwrap_or(rows), cond, first: first as u64 };
            let want = Want::Params(&mut *grads);
            let outcome = self.objective.evaluate(velocity, part, draws, at.loss_scale, want)?;
            meter.add(&outcome.rows, outcome.divisor)
        })
    }

    fn waits(&self) -> Option<&'static str> {
        let vectors = matches!(self.net.conditioning(), Conditioning::Vectors(_));
        let reasons = [("flow.norm_target", self.norm_target), ("model.cond", vectors)];
        reasons.into_iter().find(|(_, on)| *on).map(|(key, _)| key)
    }

    fn fixed(&self, _step: u64) -> String {
        self.objective.form.to_string()
    }
}

impl<X: FloatX> Trainee<X> for Pretrain {
    const STAGE: Stage = Stage::Pretrain;

    fn architecture(&self) -> Value {
        json!({ "velocity": self.net.config() })
    }

    fn memory(&self) -> Value {
        json!({
            "source": self.source,
            "width": self.features.width(),
            "standardise": self.features.standardise,
            "modulation": self.objective.form.to_string(),
        })
    }

    fn recall(&mut self, memory: &Value) -> Result<()> {
        self.objective.form = recalled::<String>(memory, "modulation")?.parse()?;
        Ok(())
    }

    fn samples(&self) -> usize {
        self.objective.samples
    }

    fn notes(&mut self) -> Vec<String> {
        self.notes.extend(self.features.take_note());
        std::mem::take(&mut self.notes)
    }

    fn evaluate(&mut self, engine: &Engine<X>) -> Result<Vec<(&'static str, f64)>> {
        let params = engine.optimizer.averaged()?;
        let mut values = vec![("loss", mean(&self.fresh_losses(&params, self.seed, 0..EVALUATION_BATCHES)?))];
        let count =
            (EVALUATION_TOKENS / self.net.tokens()).clamp(EVALUATION_SAMPLES.start, EVALUATION_SAMPLES.end);
        let sampling = Sampling { count, steps: 16, seed: self.seed, ..Default::default() };
        if self.reference()?.is_none() {
            return Ok(values);
        }
        let samples = sample_rows(&self.net, &params, &sampling)?;
        if let Some(reference) = self.reference()? {
            values.extend(reference.measure(&samples)?);
        }
        Ok(values)
    }
}

/// Batches of an evaluation during a run.
const EVALUATION_BATCHES: u64 = 16;
/// Samples of an evaluation during a run, at least and at most.
const EVALUATION_SAMPLES: Range<usize> = 16..512;
/// Tokens of all of them, about.
const EVALUATION_TOKENS: usize = 8192;

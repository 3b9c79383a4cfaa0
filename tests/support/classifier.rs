//! A small classifier of images, trained where it is needed: linear, SiLU, linear, softmax with cross entropy, by AdamW, on the
//! engine's own operations. It judges samples, so it never sees any.

use std::sync::Arc;

use flowprior::data::permutation::Permutation;
use flowprior::nn::{Grads, Init, Layout, Linear, Params};
use flowprior::ops::linear::Activation;
use flowprior::ops::optimizer::{Betas, Rounding, Rule};
use flowprior::optim::{Optimizer, OptimizerConfig};
use flowprior::{Device, Result, Tensor};

/// Rows of one step, and of one evaluation.
const BATCH: usize = 256;
/// The peak learning rate; it falls to 0 along half a cosine.
const LR: f64 = 2e-3;

/// A trained classifier.
pub struct Classifier {
    device: Device,
    width: usize,
    classes: usize,
    hidden: Linear,
    output: Linear,
    optimizer: Optimizer<f32>,
}

impl Classifier {
    /// Trains on `images: (N, width)` and `labels: (N)`, each below `classes`, for some `epochs`.
    pub fn train(
        device: &Device,
        images: &[f32],
        labels: &[u32],
        classes: usize,
        epochs: u64,
    ) -> Result<Self> {
        let (rows, width) = (labels.len(), images.len() / labels.len());
        let mut layout = Layout::default();
        let hidden = Linear::new(&mut layout, "hidden", width, 256, Init::XavierUniform);
        let output = Linear::new(&mut layout, "output", 256, classes, Init::XavierUniform);
        let layout = Arc::new(layout);
        let rule = Rule::AdamW(Betas { beta1: 0.9, beta2: 0.999, eps: 1e-8 });
        let config = OptimizerConfig { rule, weight_decay: 0.05, ema: vec![0.995] };
        let params = Params::init(device, layout.clone(), 7)?;
        let master = params.flat().duplicate()?;
        let optimizer = Optimizer::new(config, params, master)?;
        let mut net = Self { device: device.clone(), width, classes, hidden, output, optimizer };
        let mut grads = Grads::zeros(device, layout);
        let steps = rows as u64 / BATCH as u64;
        for epoch in 0..epochs {
            let order = Permutation::new(7, epoch, rows as u64)?;
            for step in 0..steps {
                let ids: Vec<usize> =
                    (0..BATCH as u64).map(|i| order.row(step * BATCH as u64 + i) as usize).collect();
                grads.clear()?;
                net.gradients(images, labels, &ids, &mut grads)?;
                let done = (epoch * steps + step) as f64 / (epochs * steps) as f64;
                let lr = LR * 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
                net.optimizer.step(&grads, lr as f32, 1.0, Rounding::Nearest)?;
            }
        }
        Ok(net)
    }

    /// Adds the gradients of the mean cross entropy of some rows.
    fn gradients(&self, images: &[f32], labels: &[u32], ids: &[usize], grads: &mut Grads) -> Result<()> {
        let rows: Vec<f32> =
            ids.iter().flat_map(|i| &images[i * self.width..(i + 1) * self.width]).copied().collect();
        let x = Tensor::from_f32(&self.device, [ids.len(), self.width], &rows)?;
        let params = &self.optimizer.params;
        let (a, z) = self.hidden.forward(params, &x, None, Activation::Silu)?;
        let z = z.expect("SiLU keeps its pre-activation");
        let (logits, _) = self.output.forward(params, &a, None, Activation::Identity)?;
        let mut p = softmax(logits.host()?, self.classes);
        for (row, i) in p.chunks_exact_mut(self.classes).zip(ids) {
            row[labels[*i] as usize] -= 1.0;
            row.iter_mut().for_each(|d| *d /= ids.len() as f32);
        }
        let dlogits = Tensor::from_f32(&self.device, [ids.len(), self.classes], &p)?;
        self.output.backward_params(grads, &dlogits, &a)?;
        let dz = self.output.backward_input(params, &dlogits, Some((Activation::Silu, &z)))?;
        self.hidden.backward_params(grads, &dz, &x)
    }

    /// Returns the class of each of `images: (N, width)`.
    pub fn classify(&self, images: &[f32]) -> Result<Vec<u32>> {
        let params = self.optimizer.averaged()?;
        let mut found = Vec::new();
        for chunk in images.chunks(BATCH * self.width) {
            let x = Tensor::from_f32(&self.device, [chunk.len() / self.width, self.width], chunk)?;
            let (a, _) = self.hidden.forward(&params, &x, None, Activation::Silu)?;
            let (logits, _) = self.output.forward(&params, &a, None, Activation::Identity)?;
            let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0);
            found.extend(logits.host()?.chunks_exact(self.classes).map(|row| best(row) as u32));
        }
        Ok(found)
    }

    /// Returns the share of `images` that are given their label.
    pub fn accuracy(&self, images: &[f32], labels: &[u32]) -> Result<f64> {
        let right = self.classify(images)?.iter().zip(labels).filter(|(a, b)| a == b).count();
        Ok(right as f64 / labels.len() as f64)
    }
}

/// Returns the softmax of each row of `logits: (N, classes)`.
fn softmax(logits: &[f32], classes: usize) -> Vec<f32> {
    let mut p = logits.to_vec();
    for row in p.chunks_exact_mut(classes) {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|x| *x = (*x - most).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= sum);
    }
    p
}

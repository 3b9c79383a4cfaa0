//! Optimizer step over flat buffers, in one pass: unscale, clip, update, master weights, low-precision copy, EMAs.
//!
//! With g = gradient · grad_scale (the product of 1/loss scale and the clip factor), p the f32 weights:
//! ```text
//! adam    g += wd·p;  m = β1·m + (1−β1)·g;  v = β2·v + (1−β2)·g²;  p −= lr/(1−β1ᵗ) · m/(√v/√(1−β2ᵗ) + eps)
//! adamw   p −= lr·wd·p, then adam without wd          (Loshchilov and Hutter, arXiv 1711.05101)
//! sgd     g += wd·p;  m = μ·m + g;  p −= lr·m          (nesterov: p −= lr·(g + μ·m))
//! lion    p −= lr·(sign(β1·m + (1−β1)·g) + wd·p);  m = β2·m + (1−β2)·g      (Chen et al., arXiv 2302.06675)
//! ema_k = d_k·ema_k + (1−d_k)·p
//! ```
//! The order of operations is PyTorch's. Weight decay acts on the ranges it is given (tensors with more than one
//! dimension that are no bias), nowhere else.

use std::ops::Range;

use crate::device::cuda::{Grid, Read, Write};
use crate::device::{Arch, Cpu, Device, Queue};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::kernels;
use crate::ops::step_control::{StepControl, constants};
use crate::rng::Draw;
use crate::tensor::Tensor;

/// Elements that one block covers: its seven streams fit L2.
const BLOCK: usize = 1 << 14;

/// The update rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Adam; weight decay is added to the gradient.
    Adam(Betas),
    /// Adam with decoupled weight decay.
    AdamW(Betas),
    /// Stochastic gradient descent with momentum.
    Sgd {
        /// Momentum μ.
        momentum: f32,
        /// Looks ahead.
        nesterov: bool,
    },
    /// Sign of an interpolated momentum.
    Lion {
        /// Weight of the momentum in the update.
        beta1: f32,
        /// Decay of the momentum.
        beta2: f32,
    },
}

/// Constants of Adam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Betas {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
}

impl Rule {
    /// Says whether the rule keeps a second moment.
    pub fn has_second_moment(self) -> bool {
        matches!(self, Self::Adam(_) | Self::AdamW(_))
    }
}

/// How f32 weights become the storage type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rounding {
    /// To nearest even.
    Nearest,
    /// Up or down at random, without bias; element e of the buffer uses word e mod 4 of block e / 4.
    Stochastic(Draw),
}

/// The numbers of one step.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The update rule.
    pub rule: Rule,
    /// Learning rate.
    pub lr: f32,
    /// Weight decay.
    pub weight_decay: f32,
    /// Steps done, this one included: 1 at first.
    pub count: u64,
    /// Multiplies every gradient: 1/loss scale, times the clip factor.
    pub grad_scale: f32,
    /// Rounding of the low-precision copy.
    pub rounding: Rounding,
}

/// The buffers of one step, all of the same length as the weights.
#[derive(Debug)]
pub struct State<'a> {
    /// f32 weights when the storage type is narrower; without them the storage itself is updated.
    pub master: Option<&'a mut Tensor<f32>>,
    /// First moment or momentum.
    pub m: &'a mut Tensor<f32>,
    /// Second moment, for Adam.
    pub v: Option<&'a mut Tensor<f32>>,
    /// Averages, with their decays.
    pub emas: &'a mut [(f32, Tensor<f32>)],
}

/// Updates `params` from `grads`; `decayed` are the ranges that weight decay acts on, in ascending order.
pub fn optimizer_step<X: FloatX>(
    params: &mut Tensor<X>,
    state: State<'_>,
    grads: &Tensor<f32>,
    decayed: &[Range<usize>],
    step: &Step,
) -> Result<()> {
    const OP: &str = "optimizer_step";
    let shape = params.shape();
    grads.expect(OP, "grads", shape)?;
    state.m.expect(OP, "m", shape)?;
    if let Some(master) = &state.master {
        master.expect(OP, "master", shape)?;
    }
    match (&state.v, step.rule.has_second_moment()) {
        (Some(v), true) => v.expect(OP, "v", shape)?,
        (None, false) => {}
        _ => {
            return Err(Error::argument(
                OP,
                "v",
                "a second moment exactly for Adam and AdamW",
                "the opposite",
            ));
        }
    }
    for (_, ema) in state.emas.iter() {
        ema.expect(OP, "ema", shape)?;
    }
    let device = params.device().clone();
    match &device {
        Device::Cpu(cpu) => step_cpu(cpu, params, state, grads, decayed, step),
        Device::Cuda(queue) => {
            let k = Scalars::new(step);
            let (beta1, beta2, eps) = constants(step.rule);
            let numbers = queue.uploaded(&[
                k.lr,
                k.weight_decay,
                k.grad_scale,
                k.step_size,
                k.inv_root2,
                beta1,
                beta2,
                eps,
                0.0,
            ])?;
            let numbers = Read::at(numbers.address());
            step_cuda(queue, params, state, grads, decayed, (step.rule, step.rounding), numbers)
        }
    }
}

/// Does the same with the numbers that `control` has decided on; a step that does not count changes nothing.
pub fn optimizer_step_by<X: FloatX>(
    params: &mut Tensor<X>,
    state: State<'_>,
    grads: &Tensor<f32>,
    decayed: &[Range<usize>],
    (rule, rounding): (Rule, Rounding),
    control: &StepControl,
) -> Result<()> {
    match params.device().clone() {
        Device::Cuda(queue) => {
            step_cuda(&queue, params, state, grads, decayed, (rule, rounding), control.numbers())
        }
        device => {
            let found = device.describe();
            Err(Error::argument("optimizer_step_by", "params", "parameters on a CUDA device", found))
        }
    }
}

/// One block's part of every buffer.
struct Block<'a, X> {
    first: usize,
    params: &'a mut [X],
    master: Option<&'a mut [f32]>,
    m: &'a mut [f32],
    v: Option<&'a mut [f32]>,
    grads: &'a [f32],
}

fn step_cuda<X: FloatX>(
    queue: &Queue,
    params: &mut Tensor<X>,
    mut state: State<'_>,
    grads: &Tensor<f32>,
    decayed: &[Range<usize>],
    (rule, rounding): (Rule, Rounding),
    numbers: Read<'_, f32>,
) -> Result<()> {
    let n = params.len();
    let rule = match rule {
        Rule::Adam(_) => 0,
        Rule::AdamW(_) => 1,
        Rule::Sgd { nesterov, .. } => 2 + nesterov as u32,
        Rule::Lion { .. } => 4,
    };
    let ranges: Vec<u64> = decayed.iter().flat_map(|r| [r.start as u64, r.end as u64]).collect();
    let ranges = queue.constant(&ranges)?;
    let (stochastic, [key0, key1], at, counter) = match rounding {
        Rounding::Nearest => (0, [0, 0], 0, 0),
        Rounding::Stochastic(draw) => (1, draw.key(), draw.step(), draw.added()),
    };
    let (fused, others) = state.emas.split_at_mut(state.emas.len().min(2));
    let mut fused = fused.iter_mut().map(|(decay, ema)| Ok((*decay, ema.write()?)));
    let mut next = || fused.next().unwrap_or(Ok((0.0, Write::none())));
    let ((decay0, ema0), (decay1, ema1)) = (next()?, next()?);
    let master = state.master.as_mut().map_or(Ok(Write::none()), |t| t.write())?;
    let v = state.v.map_or(Ok(Write::none()), Tensor::write)?;
    let grid = Grid::covering(n, 4, 256);
    kernels::optimizer_step(
        queue,
        grid,
        params.write()?,
        master,
        state.m.write()?,
        v,
        ema0,
        ema1,
        grads.read()?,
        ranges,
        decayed.len() as u32,
        numbers,
        rule,
        decay0,
        decay1,
        stochastic,
        key0,
        key1,
        at,
        Read::at(counter),
        n as u64,
    )?;
    for (decay, ema) in others {
        let master = state.master.as_ref().map_or(Ok(Read::none()), |t| t.read())?;
        let grid = Grid::covering(n, 4, 256);
        kernels::average(queue, grid, ema.write()?, master, params.read()?, numbers, *decay, n as u64)?;
    }
    Ok(())
}

fn step_cpu<X: FloatX>(
    cpu: &Cpu,
    params: &mut Tensor<X>,
    state: State<'_>,
    grads: &Tensor<f32>,
    decayed: &[Range<usize>],
    step: &Step,
) -> Result<()> {
    let n = params.len();
    let rule = Scalars::new(step);
    let isa = cpu.isa();
    let blocks = n.div_ceil(BLOCK);
    let mut master = chunks(state.master)?;
    let mut v = chunks(state.v)?;
    let mut emas: Vec<Vec<(f32, &mut [f32])>> = (0..blocks).map(|_| Vec::new()).collect();
    for (decay, ema) in state.emas.iter_mut() {
        for (list, chunk) in emas.iter_mut().zip(ema.host_mut()?.chunks_mut(BLOCK)) {
            list.push((*decay, chunk));
        }
    }
    let parts = params.host_mut()?.chunks_mut(BLOCK).zip(state.m.host_mut()?.chunks_mut(BLOCK));
    let parts = parts.zip(grads.host()?.chunks(BLOCK)).zip(emas).enumerate();
    let work: Vec<_> = parts
        .map(|(b, (((params, m), grads), emas))| {
            let (master, v) = (master.next(), v.next());
            (Block { first: b * BLOCK, params, master, m, v, grads }, emas)
        })
        .collect();
    cpu.each(work.into_iter(), |(mut block, mut emas)| {
        isa.run(
            #[inline(always)]
            |arch| block.run(arch, &rule, &mut emas, decayed, step.rounding),
        );
    });
    Ok(())
}

fn chunks<'a>(buffer: Option<&'a mut Tensor<f32>>) -> Result<std::slice::ChunksMut<'a, f32>> {
    let empty: &mut [f32] = &mut [];
    Ok(match buffer {
        Some(tensor) => tensor.host_mut()?.chunks_mut(BLOCK),
        None => empty.chunks_mut(BLOCK),
    })
}

impl<X: FloatX> Block<'_, X> {
    #[inline(always)]
    fn run(
        &mut self,
        arch: Arch,
        rule: &Scalars,
        emas: &mut [(f32, &mut [f32])],
        decayed: &[Range<usize>],
        rounding: Rounding,
    ) {
        let end = self.first + self.params.len();
        let mut at = self.first;
        // The block falls into stretches with and without weight decay.
        let start = decayed.partition_point(|r| r.end <= self.first);
        for range in decayed[start..].iter().take_while(|r| r.start < end) {
            let (from, to) = (range.start.max(self.first), range.end.min(end));
            self.stretch(arch, rule, at..from, 0.0);
            self.stretch(arch, rule, from..to, rule.weight_decay);
            at = to;
        }
        self.stretch(arch, rule, at..end, 0.0);
        self.copy_out(rounding);
        for (decay, ema) in emas {
            let (keep, take) = (*decay, 1.0 - *decay);
            match &self.master {
                Some(master) => {
                    for (e, p) in ema.iter_mut().zip(master.iter()) {
                        *e = arch.fma(keep, *e, take * p);
                    }
                }
                None => {
                    for (e, p) in ema.iter_mut().zip(self.params.iter()) {
                        *e = arch.fma(keep, *e, take * p.to_f32());
                    }
                }
            }
        }
    }

    /// Updates elements `range` of the buffer: the master weights, or the parameters themselves.
    #[inline(always)]
    fn stretch(&mut self, arch: Arch, rule: &Scalars, range: Range<usize>, weight_decay: f32) {
        const LANES: usize = 256;
        let range = range.start - self.first..range.end - self.first;
        let mut at = range.start;
        while at < range.end {
            let to = (at + LANES).min(range.end);
            let mut work = [0.0f32; LANES];
            let p: &mut [f32] = match &mut self.master {
                Some(master) => &mut master[at..to],
                None => {
                    crate::ops::widen(&mut work[..to - at], &self.params[at..to]);
                    &mut work[..to - at]
                }
            };
            let m = &mut self.m[at..to];
            let v = self.v.as_mut().map(|v| &mut v[at..to]);
            rule.update(arch, p, m, v, &self.grads[at..to], weight_decay);
            if self.master.is_none() {
                self.put(&work[..to - at], at, rule.rounding);
            }
            at = to;
        }
    }

    /// Rounds the master weights into the parameters.
    #[inline(always)]
    fn copy_out(&mut self, rounding: Rounding) {
        let Some(master) = self.master.take() else { return };
        self.put(master, 0, rounding);
        self.master = Some(master);
    }

    #[inline(always)]
    fn put(&mut self, p: &[f32], at: usize, rounding: Rounding) {
        let out = &mut self.params[at..at + p.len()];
        match rounding {
            Rounding::Nearest => crate::ops::narrow(out, p),
            Rounding::Stochastic(draw) => {
                let mut words = [0u32; 4];
                for (i, (out, p)) in out.iter_mut().zip(p).enumerate() {
                    let e = self.first + at + i;
                    if i == 0 || e.is_multiple_of(4) {
                        words = draw.words((e >> 34) as u64, 0, (e / 4) as u32);
                    }
                    *out = X::from_f32_stochastic(*p, words[e % 4]);
                }
            }
        }
    }
}

/// The step with its constants worked out in f64.
struct Scalars {
    rule: Rule,
    lr: f32,
    weight_decay: f32,
    grad_scale: f32,
    /// lr / (1 − β1ᵗ).
    step_size: f32,
    /// 1 / √(1 − β2ᵗ).
    inv_root2: f32,
    rounding: Rounding,
}

impl Scalars {
    fn new(step: &Step) -> Self {
        let (beta1, beta2) = match step.rule {
            Rule::Adam(b) | Rule::AdamW(b) => (b.beta1, b.beta2),
            _ => (0.0, 0.0),
        };
        let correction = |beta: f32| 1.0 - (beta as f64).powf(step.count as f64);
        Self {
            rule: step.rule,
            lr: step.lr,
            weight_decay: step.weight_decay,
            grad_scale: step.grad_scale,
            step_size: (step.lr as f64 / correction(beta1)) as f32,
            inv_root2: (1.0 / correction(beta2).sqrt()) as f32,
            rounding: step.rounding,
        }
    }

    #[inline(always)]
    fn update(&self, arch: Arch, p: &mut [f32], m: &mut [f32], v: Option<&mut [f32]>, g: &[f32], decay: f32) {
        let n = p.len();
        let (m, g) = (&mut m[..n], &g[..n]);
        match (self.rule, v) {
            (Rule::Adam(b), Some(v)) => self.adam(arch, p, m, v, g, b, (decay, 1.0)),
            (Rule::AdamW(b), Some(v)) => self.adam(arch, p, m, v, g, b, (0.0, 1.0 - self.lr * decay)),
            (Rule::Sgd { momentum, nesterov }, _) => {
                for i in 0..n {
                    let g = arch.fma(decay, p[i], g[i] * self.grad_scale);
                    m[i] = arch.fma(momentum, m[i], g);
                    let d = if nesterov { arch.fma(momentum, m[i], g) } else { m[i] };
                    p[i] = arch.fma(-self.lr, d, p[i]);
                }
            }
            (Rule::Lion { beta1, beta2 }, _) => {
                for i in 0..n {
                    let g = g[i] * self.grad_scale;
                    let c = arch.fma(beta1, m[i], (1.0 - beta1) * g);
                    let sign = if c == 0.0 || c.is_nan() { c } else { 1f32.copysign(c) };
                    p[i] = arch.fma(-self.lr, arch.fma(decay, p[i], sign), p[i]);
                    m[i] = arch.fma(beta2, m[i], (1.0 - beta2) * g);
                }
            }
            (Rule::Adam(_) | Rule::AdamW(_), None) => {} // refused by `optimizer_step`
        }
    }

    /// `decay`: the coupled weight decay, and the factor of the decoupled one.
    #[allow(clippy::too_many_arguments)] // the buffers of Adam
    #[inline(always)]
    fn adam(
        &self,
        arch: Arch,
        p: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        g: &[f32],
        b: Betas,
        decay: (f32, f32),
    ) {
        let n = p.len();
        let (m, v, g) = (&mut m[..n], &mut v[..n], &g[..n]);
        for i in 0..n {
            let g = arch.fma(decay.0, p[i], g[i] * self.grad_scale);
            m[i] = arch.fma(1.0 - b.beta1, g - m[i], m[i]);
            v[i] = arch.fma(b.beta2, v[i], (1.0 - b.beta2) * g * g);
            let denominator = arch.fma(v[i].sqrt(), self.inv_root2, b.eps);
            p[i] = arch.fma(-self.step_size, m[i] / denominator, p[i] * decay.1);
        }
    }
}

//! The optimizer step: ten steps of each rule against its recurrence in f64, in every way that weights are kept.

use std::ops::Range;

use flowprior::ops::optimizer::{Betas, Rounding, Rule, State, Step, optimizer_step};
use flowprior::rng::{Draw, Stream};
use flowprior::{Device, FloatX, Result, Tensor};
use half::{bf16, f16};

use crate::support::answer;
use crate::support::devices::{Family, any_device, devices, families};
use crate::support::oracle::same_bits;
use crate::support::random::Random;

const BETAS: Betas = Betas { beta1: 0.9, beta2: 0.95, eps: 1e-8 };

const RULES: [Rule; 6] = [
    Rule::Adam(BETAS),
    Rule::AdamW(BETAS),
    Rule::Sgd { momentum: 0.0, nesterov: false },
    Rule::Sgd { momentum: 0.9, nesterov: false },
    Rule::Sgd { momentum: 0.9, nesterov: true },
    Rule::Lion { beta1: 0.9, beta2: 0.99 },
];

/// Around the stretches of 256 and the blocks of 16,384 elements.
const LENGTHS: [usize; 7] = [1, 2, 5, 257, 16_383, 16_384, 40_001];

const EMA_DECAYS: [f32; 2] = [0.9, 0.999];
const STEPS: u64 = 10;

/// Ranges with weight decay: at the start, inside a block, across a block's end, over a whole block, at the end.
fn decayed(n: usize) -> Vec<Range<usize>> {
    let ranges = [0..1, 3..200, 300..301, 16_000..16_390, 16_390..32_800, 40_000..40_001];
    ranges.into_iter().map(|r| r.start.min(n)..r.end.min(n)).filter(|r| !r.is_empty()).collect()
}

fn step(rule: Rule, count: u64) -> Step {
    let lr = if matches!(rule, Rule::Sgd { .. }) { 0.05 } else { 0.01 };
    Step { rule, lr, weight_decay: 0.1, count, grad_scale: 0.25, rounding: Rounding::Nearest }
}

fn gradient(n: usize, count: u64) -> Vec<f32> {
    Random::new(&format!("gradient {count}")).normals(n).into_iter().map(|v| v as f32).collect()
}

fn weights(n: usize) -> Vec<f32> {
    Random::new("weights").normals(n).into_iter().map(|v| v as f32).collect()
}

/// One weight and its moments in f64.
#[derive(Clone, Copy)]
struct Weight {
    p: f64,
    m: f64,
    v: f64,
    emas: [f64; 2],
}

impl Weight {
    fn new(p: f64) -> Self {
        Self { p, m: 0.0, v: 0.0, emas: [p; 2] }
    }

    /// Takes one step, as the head of `src/ops/optimizer.rs` and FEATURES write it.
    fn step(&mut self, g: f32, decay: bool, step: &Step) {
        let (lr, wd) = (step.lr as f64, if decay { step.weight_decay as f64 } else { 0.0 });
        let g = g as f64 * step.grad_scale as f64;
        match step.rule {
            Rule::Adam(b) => self.adam(g + wd * self.p, lr, b, step.count),
            Rule::AdamW(b) => {
                self.p -= lr * wd * self.p;
                self.adam(g, lr, b, step.count);
            }
            Rule::Sgd { momentum, nesterov } => {
                let (g, momentum) = (g + wd * self.p, momentum as f64);
                self.m = momentum * self.m + g;
                self.p -= lr * if nesterov { g + momentum * self.m } else { self.m };
            }
            Rule::Lion { beta1, beta2 } => {
                let (beta1, beta2) = (beta1 as f64, beta2 as f64);
                let direction = beta1 * self.m + (1.0 - beta1) * g;
                self.p -= lr * (if direction == 0.0 { 0.0 } else { direction.signum() } + wd * self.p);
                self.m = beta2 * self.m + (1.0 - beta2) * g;
            }
        }
        for (ema, decay) in self.emas.iter_mut().zip(EMA_DECAYS) {
            *ema = decay as f64 * *ema + (1.0 - decay as f64) * self.p;
        }
    }

    fn adam(&mut self, g: f64, lr: f64, b: Betas, count: u64) {
        let (beta1, beta2) = (b.beta1 as f64, b.beta2 as f64);
        self.m = beta1 * self.m + (1.0 - beta1) * g;
        self.v = beta2 * self.v + (1.0 - beta2) * g * g;
        let (m, v) = (self.m / (1.0 - beta1.powi(count as i32)), self.v / (1.0 - beta2.powi(count as i32)));
        self.p -= lr * m / (v.sqrt() + b.eps as f64);
    }
}

/// Returns the weights after ten steps in f64.
fn recurrence(rule: Rule, n: usize) -> Vec<Weight> {
    let mut weights: Vec<Weight> = weights(n).into_iter().map(|p| Weight::new(p as f64)).collect();
    let ranges = decayed(n);
    for count in 1..=STEPS {
        for (e, (weight, g)) in weights.iter_mut().zip(gradient(n, count)).enumerate() {
            weight.step(g, ranges.iter().any(|r| r.contains(&e)), &step(rule, count));
        }
    }
    weights
}

/// All buffers of an optimizer.
struct Buffers<X: FloatX> {
    params: Tensor<X>,
    master: Option<Tensor<f32>>,
    m: Tensor<f32>,
    v: Option<Tensor<f32>>,
    emas: Vec<(f32, Tensor<f32>)>,
}

impl<X: FloatX> Buffers<X> {
    fn new(device: &Device, rule: Rule, weights: &[f32], with_master: bool) -> Result<Self> {
        let shape = [weights.len()];
        let tensor = || Tensor::from_f32(device, shape, weights);
        let emas: Result<Vec<_>> = EMA_DECAYS.iter().map(|decay| Ok((*decay, tensor()?))).collect();
        Ok(Self {
            params: Tensor::from_f32(device, shape, weights)?,
            master: if with_master { Some(tensor()?) } else { None },
            m: Tensor::zeros(device, shape),
            v: rule.has_second_moment().then(|| Tensor::zeros(device, shape)),
            emas: emas?,
        })
    }

    fn step(&mut self, grads: &[f32], step: &Step) -> Result<()> {
        let n = self.params.len();
        let state =
            State { master: self.master.as_mut(), m: &mut self.m, v: self.v.as_mut(), emas: &mut self.emas };
        let grads = Tensor::from_f32(self.params.device(), [n], grads)?;
        optimizer_step(&mut self.params, state, &grads, &decayed(n), step)
    }

    /// Takes ten steps and returns the buffers.
    fn run(device: &Device, rule: Rule, n: usize, with_master: bool) -> Result<Self> {
        let mut buffers = Self::new(device, rule, &weights(n), with_master)?;
        for count in 1..=STEPS {
            buffers.step(&gradient(n, count), &step(rule, count))?;
        }
        Ok(buffers)
    }

    /// Returns the f32 buffers by name: weights, moments, averages.
    fn named(&self) -> Vec<(&'static str, &Tensor<f32>)> {
        let weights = self.master.as_ref().map(|master| ("master", master));
        let v = self.v.as_ref().map(|v| ("v", v));
        let emas = ["first ema", "second ema"].into_iter().zip(self.emas.iter().map(|(_, ema)| ema));
        [weights, Some(("m", &self.m)), v].into_iter().flatten().chain(emas).collect()
    }

    fn check(&self, expected: &[Weight], what: &str) {
        for (name, buffer) in self.named() {
            let of = |w: &Weight| match name {
                "master" => w.p,
                "m" => w.m,
                "v" => w.v,
                "first ema" => w.emas[0],
                _ => w.emas[1],
            };
            let expected: Vec<f64> = expected.iter().map(of).collect();
            answer(buffer).check(&expected, &format!("{what}: {name}"));
        }
    }
}

fn check_threads<X: FloatX>(family: &Family, rule: Rule, n: usize, with_master: bool) -> Result<()> {
    let first = Buffers::<X>::run(&family.devices[0].1, rule, n, with_master)?;
    for (name, device) in &family.devices[1..] {
        let other = Buffers::<X>::run(device, rule, n, with_master)?;
        let what = format!("{rule:?}, {n} elements, {name}");
        same_bits(&first.params.to_f32_vec().unwrap(), &other.params.to_f32_vec().unwrap(), &what);
        for ((buffer, a), (_, b)) in first.named().into_iter().zip(other.named()) {
            same_bits(&a.to_f32_vec().unwrap(), &b.to_f32_vec().unwrap(), &format!("{what}: {buffer}"));
        }
    }
    Ok(())
}

#[test]
fn ten_steps_of_every_rule_follow_the_recurrence() -> Result<()> {
    for rule in RULES {
        for n in LENGTHS {
            let expected = recurrence(rule, n);
            for family in families() {
                let (name, device) = &family.devices[0];
                let what = format!("{rule:?}, {n} elements, {name}");
                let buffers = Buffers::<f32>::run(device, rule, n, false)?;
                buffers.check(&expected, &what);
                let p: Vec<f64> = expected.iter().map(|w| w.p).collect();
                answer(&buffers.params).check(&p, &what);
            }
        }
    }
    Ok(())
}

#[test]
fn any_number_of_threads_gives_the_same_bits() -> Result<()> {
    for family in families() {
        for rule in [Rule::AdamW(BETAS), Rule::Lion { beta1: 0.9, beta2: 0.99 }] {
            check_threads::<f32>(family, rule, 40_001, false)?;
            check_threads::<bf16>(family, rule, 40_001, true)?;
        }
    }
    Ok(())
}

#[test]
fn low_precision_weights_are_the_rounded_master() -> Result<()> {
    fn check<X: FloatX>(device: &Device, rule: Rule, n: usize, what: &str) -> Result<()> {
        let buffers = Buffers::<X>::run(device, rule, n, true)?;
        buffers.check(&recurrence(rule, n), what);
        let master = buffers.master.as_ref().map(|m| m.to_f32_vec().unwrap()).unwrap_or_default();
        let rounded: Vec<f32> = master.into_iter().map(|v| X::from_f32(v).to_f32()).collect();
        same_bits(&buffers.params.to_f32_vec().unwrap(), &rounded, what);
        Ok(())
    }
    for family in families() {
        let (name, device) = &family.devices[0];
        for rule in RULES {
            for n in [1, 257, 16_385] {
                let what = format!("{rule:?}, {n} elements, {name}");
                check::<bf16>(device, rule, n, &format!("{what}, bf16"))?;
                check::<f16>(device, rule, n, &format!("{what}, f16"))?;
            }
        }
    }
    Ok(())
}

/// Lets 20,000 bf16 weights of 1 take 100 steps of 1e-4, each a fortieth of the distance to the next bf16 below.
fn drift(device: &Device, stochastic: bool) -> Result<Vec<f32>> {
    let n = 20_000;
    let rule = Rule::Sgd { momentum: 0.0, nesterov: false };
    let mut buffers = Buffers::<bf16>::new(device, rule, &vec![1.0; n], false)?;
    for count in 1..=100 {
        let rounding = match stochastic {
            true => Rounding::Stochastic(Draw::new(5, Stream::Rounding, count)),
            false => Rounding::Nearest,
        };
        let step = Step { rule, lr: 1e-4, weight_decay: 0.0, count, grad_scale: 1.0, rounding };
        buffers.step(&vec![1.0; n], &step)?;
    }
    Ok(buffers.params.to_f32_vec().unwrap())
}

#[test]
fn stochastic_rounding_keeps_small_steps_on_average() -> Result<()> {
    let mean = |p: &[f32]| p.iter().map(|v| *v as f64).sum::<f64>() / p.len() as f64;
    for family in families() {
        let (name, device) = &family.devices[0];
        let weights = drift(device, true)?;
        // One weight spreads by √(100 · 1e-4 · 2⁻⁸) = 6e-3, the mean of 20,000 by 4.4e-5.
        assert!((mean(&weights) - 0.99).abs() < 2e-4, "{name}: mean {}", mean(&weights));
        assert_eq!(mean(&drift(device, false)?), 1.0, "{name}: rounding to nearest loses every step");
        for (name, device) in &family.devices[1..] {
            same_bits(&weights, &drift(device, true)?, name);
        }
    }
    Ok(())
}

#[test]
fn without_a_master_low_precision_weights_are_stepped_and_rounded() -> Result<()> {
    for (name, device) in devices() {
        let rule = Rule::AdamW(BETAS);
        let start: Vec<f32> = weights(300).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect();
        let mut buffers = Buffers::<bf16>::new(device, rule, &start, false)?;
        buffers.step(&gradient(300, 1), &step(rule, 1))?;
        let mut exact = Buffers::<f32>::new(device, rule, &start, false)?;
        exact.step(&gradient(300, 1), &step(rule, 1))?;
        let rounded: Vec<f32> =
            exact.params.to_f32_vec().unwrap().into_iter().map(|v| bf16::from_f32(v).to_f32()).collect();
        same_bits(&buffers.params.to_f32_vec().unwrap(), &rounded, name);
    }
    Ok(())
}

#[test]
fn a_nan_gradient_reaches_its_own_weight_and_no_other() -> Result<()> {
    let at = 16_400;
    for rule in RULES {
        for (name, device) in devices() {
            let mut buffers = Buffers::<f32>::new(device, rule, &weights(20_000), false)?;
            let mut grads = gradient(20_000, 1);
            grads[at] = f32::NAN;
            buffers.step(&grads, &step(rule, 1))?;
            buffers.step(&gradient(20_000, 2), &step(rule, 2))?;
            let only = |e: usize| e == at;
            answer(&buffers.params).check_nan((0..20_000).map(only), &format!("{rule:?}, {name}"));
        }
    }
    Ok(())
}

#[test]
fn a_second_moment_is_asked_for_by_adam_alone() -> Result<()> {
    for (rule, other) in [(RULES[0], RULES[5]), (RULES[5], RULES[0])] {
        let mut buffers = Buffers::<f32>::new(any_device(), rule, &[1.0], false)?;
        let error = buffers.step(&[1.0], &step(other, 1)).unwrap_err().to_string();
        assert!(error.contains("optimizer_step: `v`"), "{error}");
    }
    Ok(())
}

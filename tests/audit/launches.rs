//! One launch of each kernel at a shape as a training step has, and what the emulator counts of it.

use std::collections::{BTreeMap, BTreeSet};

use cuda_emulator::audit::measured::{self, Measured};
use flowprior::ops::chebyshev::chebyshev_weights;
use flowprior::ops::dopri5::{
    Control, Limits, dopri5_accept, dopri5_decide, dopri5_error, dopri5_partials, dopri5_stage,
};
use flowprior::ops::elementwise::{axpy, cast};
use flowprior::ops::flow_loss::{Target, Weight, flow_loss_backward, latent_gradient};
use flowprior::ops::flow_path::{Rows, TimeSampler, draw_times, interpolate};
use flowprior::ops::gated_residual::{gated_residual_backward, gated_residual_forward};
use flowprior::ops::gather::{Affine, Index, gather_backward, gather_forward};
use flowprior::ops::grad_norm::grad_norm;
use flowprior::ops::guidance::{WeakScale, guidance};
use flowprior::ops::layer_norm::{LayerNorm, LayerNormGrads, layer_norm_backward, layer_norm_forward};
use flowprior::ops::linear::{
    Activation, Branch, linear_backward_input, linear_backward_weight, linear_forward, linear_gated_forward,
    linear_loss_backward,
};
use flowprior::ops::modulation::{Modulation, ModulationGrad};
use flowprior::ops::mse::mse;
use flowprior::ops::normalize::{
    batch_stats, standardize_forward, std_penalty, unit_norm_backward, unit_norm_forward,
};
use flowprior::ops::optimizer::{Betas, Rounding, Rule, State, Step, optimizer_step};
use flowprior::ops::row_dot::row_dot;
use flowprior::ops::sde_step::{Factors, sde_step};
use flowprior::ops::step_control::{StepControl, StepRules};
use flowprior::ops::timestep_embedding::timestep_embedding;
use flowprior::rng::{Draw, Stream};
use flowprior::{Device, FloatX, Result, Tensor};
use half::bf16;

use crate::emulator;

/// Rows, columns, nodes.
const N: usize = 256;
const C: usize = 512;
const R: usize = 16;

/// Runs every operation and returns what was counted of the first launch of each kernel.
pub fn counted() -> BTreeMap<String, Measured> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("counters.jsonl");
    let device = Device::cuda(&emulator::counting(&file)).unwrap_or_else(|e| panic!("{e}"));
    launch(&device).unwrap_or_else(|e| panic!("{e}"));
    let text = std::fs::read_to_string(&file).unwrap();
    let mut seen = BTreeSet::new();
    let first = text.lines().filter(|line| kernel(line).is_some_and(|kernel| seen.insert(kernel)));
    measured::parse(&first.collect::<Vec<_>>().join("\n"), "counters").unwrap_or_else(|e| panic!("{e}"))
}

/// Returns the kernel of a launch; copies and fills have lines of their own.
fn kernel(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    line["counters"]["kernel"].as_str().map(str::to_owned)
}

fn filled<X: FloatX>(device: &Device, rows: usize, columns: usize) -> Result<Tensor<X>> {
    let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
    Tensor::from_f32(device, [rows, columns], &values)
}

fn launch(device: &Device) -> Result<()> {
    rows(device)?;
    flow(device)?;
    elements(device)?;
    optimizer(device)?;
    sampler(device)?;
    products(device)?;
    step(device)?;
    match device {
        Device::Cuda(queue) => queue.synchronize(),
        _ => Ok(()),
    }
}

/// Layer norm and gated residual: first interpolated between nodes, then with an index.
fn rows(device: &Device) -> Result<()> {
    let [x, dy] = [filled::<bf16>(device, N, C)?, filled(device, N, C)?];
    let t = filled::<f32>(device, 1, N)?.reshaped([N])?;
    let (nodes, weights) = (filled::<f32>(device, R, 3 * C)?, chebyshev_weights(&t, R)?);
    let (gamma, beta) =
        (filled::<bf16>(device, 1, C)?.reshaped([C])?, filled::<bf16>(device, 1, C)?.reshaped([C])?);
    let mut dnodes = Tensor::<f32>::zeros(device, [R, 3 * C]);
    let (mut dgamma, mut dbeta) = (Tensor::<f32>::zeros(device, [C]), Tensor::<f32>::zeros(device, [C]));
    let interpolated = Modulation::Interpolate { table: &nodes, weights: &weights };
    let affine = Some((gamma.view(), beta.view()));
    let norm = LayerNorm { affine, modulation: Some((interpolated, 0)) };
    let (_, saved) = layer_norm_forward(&x, &norm, None)?;
    let grads = LayerNormGrads {
        affine: Some((dgamma.view_mut(), dbeta.view_mut())),
        modulation: Some(ModulationGrad::Interpolate(&mut dnodes)),
    };
    layer_norm_backward(&dy, &x, &saved, &norm, None, grads)?;
    gated_residual_forward(&x, Some(&dy), &interpolated, 2 * C)?;
    let grad = ModulationGrad::Interpolate(&mut dnodes);
    gated_residual_backward(&dy, &interpolated, 2 * C, Some((&x, grad)))?;

    let table = filled::<bf16>(device, N, 3 * C)?;
    let mut dtable = Tensor::<bf16>::zeros(device, [N, 3 * C]);
    let direct = Modulation::Index { table: &table, rows: 1 };
    let norm = LayerNorm { affine: None, modulation: Some((direct, 0)) };
    let grads = LayerNormGrads { affine: None, modulation: Some(ModulationGrad::Index(&mut dtable)) };
    layer_norm_backward(&dy, &x, &saved, &norm, None, grads)?;
    gated_residual_backward(&dy, &direct, 2 * C, Some((&x, ModulationGrad::Index(&mut dtable))))?;
    Ok(())
}

fn flow(device: &Device) -> Result<()> {
    let rows = Rows::plain(N);
    let (data, noise) = (filled::<f32>(device, N, C)?, Draw::new(1, Stream::Noise, 2));
    let sampler = TimeSampler::Stratified { total: N, samples: N };
    let t = draw_times(device, Draw::new(1, Stream::Time, 2), rows, sampler, (0.0, 1.0))?;
    let x_t = interpolate::<bf16>(&data, &t, noise, rows)?;
    let (control_variate, weight) = (false, Weight::Uniform);
    let target = Target { data: &data, t: &t, noise, rows, weight, control_variate };
    let (_, dv) = flow_loss_backward(&x_t, &target, 0.5)?;
    latent_gradient(&dv, Some(&x_t), &t, rows, 1.0)?;
    mse(&x_t, &data, 0.5)?;
    timestep_embedding::<bf16>(&t, 256, 1000.0)?;
    Ok(())
}

fn elements(device: &Device) -> Result<()> {
    let wide = filled::<f32>(device, N, C)?;
    let narrow: Tensor<bf16> = cast(&wide)?;
    let mut back: Tensor<f32> = cast(&narrow)?;
    axpy(back.view_mut(), 0.5, &narrow)?;
    let index = Index::new(device, &(0..N as u32).rev().collect::<Vec<_>>())?;
    gather_forward::<bf16, bf16>(&narrow, &index, Affine::IDENTITY)?;
    gather_forward::<f32, bf16>(&wide, &index, Affine::IDENTITY)?;
    gather_forward::<bf16, f32>(&narrow, &index, Affine::IDENTITY)?;
    gather_backward(back.view_mut(), &narrow, &index, Affine::IDENTITY)?;
    standardize_forward(&wide, batch_stats(&wide)?)?;
    std_penalty(&mut back, &wide, 1.0)?;
    unit_norm_forward(&wide)?;
    unit_norm_backward(&back, &wide)?;
    grad_norm(&wide, 1.0)?;
    Ok(())
}

fn optimizer(device: &Device) -> Result<()> {
    let mut params = filled::<bf16>(device, N, C)?;
    let [mut master, mut m, mut v] =
        [filled::<f32>(device, N, C)?, filled(device, N, C)?, Tensor::zeros(device, [N, C])];
    let [a, b, c] = [filled::<f32>(device, N, C)?, filled(device, N, C)?, filled(device, N, C)?];
    let mut emas = [(0.9, a), (0.99, b), (0.999, c)];
    let betas = Betas { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
    let (rule, rounding) = (Rule::AdamW(betas), Rounding::Nearest);
    let step = Step { rule, lr: 1e-3, weight_decay: 0.1, count: 1, grad_scale: 1.0, rounding };
    let state = State { master: Some(&mut master), m: &mut m, v: Some(&mut v), emas: &mut emas };
    let decayed = [0..N * C / 4, N * C / 2..N * C];
    optimizer_step(&mut params, state, &filled(device, N, C)?, &decayed, &step)
}

/// What samplers and likelihoods add: an adaptive step that is accepted, a random one, guidance, a trace.
fn sampler(device: &Device) -> Result<()> {
    let mut slopes = Vec::new();
    for _ in 0..7 {
        slopes.push(filled::<f32>(device, N, C)?);
    }
    let (mut x, y) = (filled::<f32>(device, N, C)?, filled::<f32>(device, N, C)?);
    let mut control = Control::new(device, (0.0, 1.0), 0.01)?;
    let [k1, k2, k3, k4, k5, k6, k7] = std::array::from_fn(|i| &slopes[i]);
    dopri5_stage(&x, &[k1, k2, k3, k4, k5, k6], &control)?;
    let limits = Limits { rtol: 1.0, atol: 1.0, smallest: 1e-6, tries: 100 };
    let mut partials = Tensor::uninit(device, [dopri5_partials(N * C)]);
    dopri5_error(partials.view_mut(), (&x, &y), &[k1, k2, k3, k4, k5, k6, k7], &control, &limits)?;
    dopri5_decide(&mut control, &partials, N * C, &limits)?;
    let mut first = filled::<f32>(device, N, C)?;
    dopri5_accept((&mut x, &y), (&mut first, k7), &control)?;
    let factors = Factors { x: 0.5, v: 0.25, noise: 0.125 };
    sde_step(&mut x, &y, factors, Draw::new(1, Stream::SamplerNoise, 0), Rows::plain(N))?;
    let [strong, weak] = [filled::<bf16>(device, N, C)?, filled(device, N, C)?];
    guidance(&strong, &weak, 2.0, WeakScale::Projected)?;
    row_dot(&x, &y)?;
    Ok(())
}

/// The three products of a layer, large enough for the large tile, and of one that is not.
fn products(device: &Device) -> Result<()> {
    for (n, c, o) in [(2048, 256, 1024), (N, C, C)] {
        let (x, w, dy) =
            (filled::<bf16>(device, n, c)?, filled::<bf16>(device, o, c)?, filled(device, n, o)?);
        linear_forward(&x, w.view(), None, None, Activation::Silu)?;
        linear_backward_input(&dy, w.view(), None)?;
        let mut dw = Tensor::<f32>::zeros(device, [o, c]);
        linear_backward_weight(dw.view_mut(), None, &dy, &x)?;
        let t = filled::<f32>(device, 1, n)?.reshaped([n])?;
        let (table, weights) = (filled::<f32>(device, R, 3 * o)?, chebyshev_weights(&t, R)?);
        let gate = Modulation::Interpolate { table: &table, weights: &weights };
        let b = filled::<bf16>(device, 1, o)?.reshaped([o])?;
        linear_gated_forward(&x, w.view(), b.view(), &dy, (&gate, 2 * o), Branch::Keep)?;
        let (data, rows) = (filled::<f32>(device, n, o)?, Rows::plain(n));
        let (noise, weight, control_variate) = (Draw::new(1, Stream::Noise, 2), Weight::Uniform, false);
        let target = Target { data: &data, t: &t, noise, rows, weight, control_variate };
        linear_loss_backward(&x, w.view(), b.view(), &target, 0.5)?;
    }
    Ok(())
}

fn step(device: &Device) -> Result<()> {
    let (rates, rule) = (vec![1e-3; 4], Rule::Lion { beta1: 0.9, beta2: 0.99 });
    let rules = StepRules { rule, weight_decay: 0.0, clip: 1.0, rates, scaling: None };
    let control = StepControl::new(device, rules, 0, 0)?;
    control.begin()?;
    control.add_loss(0, &filled(device, 1, N)?, 1.0, 1.0)?;
    control.add_value(1, 1.0, 0.0)?;
    control.decide(&filled(device, N, C)?)
}

//! One launch of each kernel at a shape as a training step has, and what the emulator counts of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cuda_emulator::audit::measured::{self, Measured};
use flowprior::ops::attention::{Heads, attention_backward, attention_forward};
use flowprior::ops::chebyshev::chebyshev_weights;
use flowprior::ops::divergence::{STEP, probe_gradient, probe_points, probe_products};
use flowprior::ops::dopri5::{
    Control, Limits, dopri5_accept, dopri5_decide, dopri5_error, dopri5_partials, dopri5_stage,
};
use flowprior::ops::elementwise::{axpy, cast};
use flowprior::ops::embedding::{LabelDrop, Labels, add_rows, embedding_backward, embedding_forward};
use flowprior::ops::entropy::{entropy_backward, entropy_forward};
use flowprior::ops::flow_loss::{Target, Weight, flow_loss_backward, latent_gradient};
use flowprior::ops::flow_path::{Rows, TimeSampler, draw_times, interpolate};
use flowprior::ops::gated_residual::{gated_residual_backward, gated_residual_forward};
use flowprior::ops::gather::{
    Affine, Index, Mirror, Sampling, Stored, gather_backward, gather_forward, gather_samples_to,
};
use flowprior::ops::grad_norm::grad_norm;
use flowprior::ops::guidance::{WeakScale, guidance};
use flowprior::ops::inpaint::{Holes, inpaint};
use flowprior::ops::knn::{Own, knn};
use flowprior::ops::layer_norm::{LayerNorm, LayerNormGrads, layer_norm_backward, layer_norm_forward};
use flowprior::ops::linear::{
    Activation, Branch, linear_backward_input, linear_backward_weight, linear_forward, linear_gated_forward,
    linear_loss_backward,
};
use flowprior::ops::modulation::{Modulation, ModulationGrad};
use flowprior::ops::normalize::{
    batch_stats, standardize_forward, std_penalty, unit_norm_backward, unit_norm_forward,
};
use flowprior::ops::optimizer::{Betas, Rounding, Rule, State, Step, optimizer_step};
use flowprior::ops::patchify::{Patches, patchify, patchify_backward, unpatchify, unpatchify_backward};
use flowprior::ops::qk_norm::{QkNorm, QkNormGrads, qk_norm_backward, qk_norm_forward};
use flowprior::ops::reconstruction::{Distance, reconstruction};
use flowprior::ops::row_dot::row_dot;
use flowprior::ops::sde_step::{Factors, sde_step};
use flowprior::ops::sliced_wasserstein::{directions, draw_rows, sliced_wasserstein};
use flowprior::ops::step_control::{StepControl, StepRules};
use flowprior::ops::timestep_embedding::timestep_embedding;
use flowprior::ops::tokens::{Part, Span, join_tokens, sum_tokens, take_tokens};
use flowprior::rng::{Draw, Stream};
use flowprior::{Device, FloatX, Result, Tensor};
use half::bf16;

use crate::emulator;

/// Rows, columns, nodes.
const N: usize = 256;
const C: usize = 512;
const R: usize = 16;

/// What was counted.
pub struct Counted {
    /// Of the first launch of each kernel.
    pub kernels: BTreeMap<String, Measured>,
    /// Tokens, and the bytes of device memory that attention touches with so many, forward and backward.
    pub attention: Vec<(usize, u64, u64)>,
}

/// Runs every operation.
pub fn counted() -> Counted {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("counters.jsonl");
    let device = Device::cuda(&emulator::counting(&file)).unwrap_or_else(|e| panic!("{e}"));
    launch(&device).unwrap_or_else(|e| panic!("{e}"));
    let attention = attention_bytes(&device, &file).unwrap_or_else(|e| panic!("{e}"));
    let text = std::fs::read_to_string(&file).unwrap();
    let mut seen = BTreeSet::new();
    let first = text.lines().filter(|line| kernel(line).is_some_and(|kernel| seen.insert(kernel)));
    let kernels = measured::parse(&first.collect::<Vec<_>>().join("\n"), "counters");
    Counted { kernels: kernels.unwrap_or_else(|e| panic!("{e}")), attention }
}

/// Returns the kernel of a launch; copies and fills have lines of their own.
fn kernel(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    line["counters"]["kernel"].as_str().map(str::to_owned)
}

/// Counts each sector that a launch of attention touches once a launch, for growing numbers of tokens.
fn attention_bytes(device: &Device, file: &Path) -> Result<Vec<(usize, u64, u64)>> {
    let bytes_since = |before: usize| -> u64 {
        let text = std::fs::read_to_string(file).unwrap();
        let lines = text.lines().skip(before).filter(|line| kernel(line).is_some());
        let lines = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let sectors =
            |line: &serde_json::Value, access: &str| line["counters"][access]["footprint"].as_u64().unwrap();
        lines.map(|line| 32 * (sectors(&line, "global_loads") + sectors(&line, "global_stores"))).sum()
    };
    let lines = || std::fs::read_to_string(file).unwrap().lines().count();
    let mut counted = Vec::new();
    for tokens in [64, 128, 256, 512] {
        let (heads, k) = (Heads { tokens, heads: 2 }, 64);
        let qkv = filled::<bf16>(device, tokens, 3 * heads.heads * k)?;
        let d_o = filled(device, tokens, heads.heads * k)?;
        let before = lines();
        let (o, lse) = attention_forward(&qkv, heads)?;
        o.to_f32_vec()?;
        let (forward, between) = (bytes_since(before), lines());
        attention_backward(&d_o, &o, &lse, &qkv, heads)?.to_f32_vec()?;
        counted.push((tokens, forward, bytes_since(between)));
    }
    Ok(counted)
}

fn filled<X: FloatX>(device: &Device, rows: usize, columns: usize) -> Result<Tensor<X>> {
    let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
    Tensor::from_f32(device, [rows, columns], &values)
}

fn launch(device: &Device) -> Result<()> {
    rows(device)?;
    flow(device)?;
    elements(device)?;
    images(device)?;
    optimizer(device)?;
    sampler(device)?;
    products(device)?;
    heads(device)?;
    attention(device)?;
    matching(device)?;
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
    let target = Target { data: &data, t: &t, noise, rows, weight, control_variate, centred: false };
    let (_, dv) = flow_loss_backward(&x_t, &target, 0.5)?;
    latent_gradient(&dv, Some(&x_t), &t, rows, 1.0)?;
    reconstruction(&x_t, &data, Distance::L2, 0.5)?;
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
    let mirror = Some(Mirror { draw: Draw::new(1, Stream::Flip, 2), width: 32 });
    let sampling =
        Sampling { stored: Stored::Drawn(Draw::new(1, Stream::Moments, 2)), mirror, scale: 0.18215 };
    gather_samples_to(&mut back, &filled::<bf16>(device, N, 2 * C)?, &index, &sampling)?;
    standardize_forward(&wide, batch_stats(&wide)?)?;
    std_penalty(&mut back, &wide, 1.0)?;
    unit_norm_forward(&wide)?;
    unit_norm_backward(&back, &wide)?;
    grad_norm(&wide, 1.0)?;
    Ok(())
}

/// Latents of 4 × 64 × 64 in patches of 2 × 2, and rows of ten classes.
fn images(device: &Device) -> Result<()> {
    let patches = Patches { channels: 4, height: 64, width: 64, patch: 2 };
    let x = filled::<bf16>(device, N * C / patches.sample(), patches.sample())?;
    let tokens = patchify(&x, patches)?;
    patchify_backward(&tokens, patches)?;
    unpatchify(&tokens, patches, 4)?;
    unpatchify_backward(&x, patches, 4)?;
    let holes = Holes { whole: 0.1, draw: Draw::new(1, Stream::Mask, 2) };
    inpaint::<bf16>(&filled(device, N * C / patches.sample(), patches.sample())?, [4, 64, 64], holes, 0)?;

    let classes: Vec<u32> = (0..N as u32).map(|i| i * i % 10).collect();
    let labels = Labels::new(device, &classes, 10)?;
    let drop = LabelDrop { probability: 0.1, draw: Draw::new(1, Stream::LabelDrop, 2) };
    let table = filled::<bf16>(device, 11, C)?;
    let (mut y, chosen) = embedding_forward(table.view(), &labels, Rows::plain(N), Some(drop))?;
    let mut dtable = Tensor::<f32>::zeros(device, [11, C]);
    embedding_backward(dtable.view_mut(), &y, &chosen)?;
    let table = filled::<bf16>(device, 64, C)?;
    let both = join_tokens(device, N / 64, C, [Part::Own(&y), Part::Shared(table.view())])?;
    let span = Span { of: 128, taken: 64..128 };
    take_tokens(&both, &span)?;
    sum_tokens(Tensor::<f32>::zeros(device, [64, C]).view_mut(), &both, &span)?;
    add_rows(&mut y, filled(device, 64, C)?.view())
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
        let target = Target { data: &data, t: &t, noise, rows, weight, control_variate, centred: false };
        linear_loss_backward(&x, w.view(), b.view(), &target, 0.5)?;
    }
    Ok(())
}

/// The norms of queries and keys: 8 heads of 64.
fn heads(device: &Device) -> Result<()> {
    let [qkv, dy] = [filled::<bf16>(device, N, 3 * C)?, filled(device, N, 3 * C)?];
    let affine = filled::<bf16>(device, 1, C / 8)?.reshaped([C / 8])?;
    let norm = QkNorm { q: (affine.view(), affine.view()), k: (affine.view(), affine.view()) };
    let of = Heads { tokens: N, heads: 8 };
    let (_, stats) = qk_norm_forward(&qkv, &norm, of)?;
    let mut sums = Tensor::<f32>::zeros(device, [4, C / 8]);
    let places: [usize; 4] = std::array::from_fn(|i| i * C / 8);
    let parts = sums.view_mut().parts(places.map(|at| (at, [C / 8].into())));
    let [q_weight, q_bias, k_weight, k_bias] = parts;
    let grads = QkNormGrads { q: (q_weight, q_bias), k: (k_weight, k_bias) };
    qk_norm_backward(&dy, &qkv, &stats, &norm, of, Some(grads))?;
    Ok(())
}

/// Each width, in blocks of 64 rows; those of 128 rows need more heads than a card has multiprocessors.
fn attention(device: &Device) -> Result<()> {
    for (samples, tokens, heads, k) in
        [(2, 192, 8, 32), (2, 192, 8, 64), (2, 192, 8, 72), (2, 192, 8, 96), (2, 192, 8, 128)]
    {
        let (n, heads) = (samples * tokens, Heads { tokens, heads });
        let qkv = filled::<bf16>(device, n, 3 * heads.heads * k)?;
        let (o, lse) = attention_forward(&qkv, heads)?;
        attention_backward(&filled(device, n, heads.heads * k)?, &o, &lse, &qkv, heads)?;
    }
    for k in [32, 64, 80] {
        let heads = Heads { tokens: 128, heads: 8 };
        attention_forward(&filled::<bf16>(device, 18 * heads.tokens, 3 * heads.heads * k)?, heads)?;
    }
    Ok(())
}

/// What matches distributions: 256 rows of 512 columns among themselves, rows of 4,096 projections, and probes of a velocity.
fn matching(device: &Device) -> Result<()> {
    let y = filled::<f32>(device, N, C)?;
    let mut dy = Tensor::<f32>::zeros(device, [N, C]);
    knn(&y, &y, 64, Own::LeftOut)?;
    let found = entropy_forward(&y, 5, 0.0)?;
    entropy_backward(&mut dy, &y, &found, 1.0)?;
    let theta = directions(device, Draw::new(1, Stream::Slices, 2), 4, 8)?;
    let y = filled::<f32>(device, 4096, 8)?;
    let targets = draw_rows(&y, Draw::new(1, Stream::Targets, 2), 4096)?;
    sliced_wasserstein(&mut Tensor::zeros(device, [4096, 8]), &y, &targets, &theta, 1.0)?;
    let (z, signs) = (filled::<f32>(device, N, C)?, Draw::new(1, Stream::PathProbe, 2));
    let points = probe_points(&z, signs, STEP)?;
    let (t, dv) = probe_products(&points, signs, STEP, 1.0)?;
    probe_gradient(&mut dy, &dv, &t)
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

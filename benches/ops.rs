//! Speed of every operation at the sizes of the reference: GB/s of the least bytes that must move, or FLOP/s.
//!
//! `cargo bench --bench ops -- layer_norm` runs one. Compare GB/s with `memory/copy` of the same run. All cores are used.
//! `FLOWPRIOR_BENCH_DEVICE=cuda` times the kernels of a card, `emulator` counts what they do: see `support/place.rs`.

#[path = "support/card.rs"]
mod card;
#[path = "../tests/support/emulator.rs"]
mod emulator;
#[path = "support/place.rs"]
mod place;
#[path = "support/units.rs"]
mod units;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use rayon::prelude::*;

use flowprior::ops::attention::{Heads, attention_backward, attention_forward};
use flowprior::ops::chebyshev::chebyshev_weights;
use flowprior::ops::flow_loss::{Target, Weight, flow_loss_backward, flow_loss_forward, latent_gradient};
use flowprior::ops::flow_path::{Rows, TimeSampler, draw_times, interpolate};
use flowprior::ops::gated_residual::{gated_residual_backward, gated_residual_forward};
use flowprior::ops::gather::{Affine, Index, gather_backward, gather_forward};
use flowprior::ops::grad_norm::grad_norm;
use flowprior::ops::layer_norm::{LayerNorm, LayerNormGrads, layer_norm_backward, layer_norm_forward};
use flowprior::ops::linear::{
    Activation, linear_backward_input, linear_backward_weight, linear_forward, linear_loss_backward,
};
use flowprior::ops::modulation::{Modulation, ModulationGrad};
use flowprior::ops::normalize::{batch_stats, standardize_forward, unit_norm_backward, unit_norm_forward};
use flowprior::ops::optimizer::{Betas, Rounding, Rule, State, Step, optimizer_step};
use flowprior::ops::timestep_embedding::timestep_embedding;
use flowprior::rng::{Draw, Stream};
use flowprior::{Device, FloatX, Tensor};
use place::{Group, Place, device, group, place, time};
use units::Timed;

/// Rows of the reference's stage 1: 512 latents, four times each.
const N: usize = 2048;
/// Its width.
const C: usize = 1024;
/// Interpolation nodes of the modulation path.
const NODES: usize = 16;
/// Rows and width of the loss part of PERFORMANCE.
const LOSS: (usize, usize) = (65_536, 768);

fn bytes(count: usize) -> Throughput {
    Throughput::BytesDecimal(count as u64)
}

/// Returns standard normal numbers.
fn normal<X: FloatX>(device: &Device, rows: usize, cols: usize) -> Tensor<X> {
    let draw = Draw::new(1, Stream::Latents, cols as u64);
    let data = Tensor::zeros(device, [rows, cols]);
    let t = Tensor::zeros(device, [rows]);
    interpolate(&data, &t, draw, Rows::plain(rows)).unwrap()
}

fn memory(c: &mut Criterion<Timed>) {
    let device = device();
    let n = LOSS.0 * LOSS.1;
    let (from, mut to) = (Tensor::<f32>::zeros(device, [n]), Tensor::<f32>::zeros(device, [n]));
    let mut group = group(c, "memory");
    time(&mut group, "copy", bytes(8 * n), || {
        if !matches!(place(), Place::Cpu(_)) {
            return to.copy_from(&from);
        }
        let (from, to) = (from.host()?, to.host_mut()?);
        device.scope(|| {
            let chunks = to.par_chunks_mut(1 << 16).zip(from.par_chunks(1 << 16));
            chunks.for_each(|(to, from)| to.copy_from_slice(from));
        });
        Ok(())
    });
}

fn linear(c: &mut Criterion<Timed>) {
    let device = device();
    let mut group = group(c, "linear");
    // (N, O, C) as in the table of PERFORMANCE, section 1.
    for shape in [(2048, 1024, 1024), (2048, 3072, 1024), (2048, 1536, 384), (4096, 4096, 4096)] {
        let emulated = matches!(place(), Place::Emulated { .. });
        if emulated && shape.0 > N {
            continue; // minutes, for counts that a smaller one has too
        }
        products::<f32>(&mut group, device, shape);
        products::<bf16>(&mut group, device, shape);
        if let Place::Card(card) = place() {
            card.compare(shape).unwrap();
        }
    }
}

fn products<X: FloatX>(group: &mut Group, device: &Device, (n, o, c): (usize, usize, usize)) {
    let (x, w, dy) = (normal::<X>(device, n, c), normal::<X>(device, o, c), normal::<X>(device, n, o));
    let flop = Throughput::Elements((2 * n * o * c) as u64);
    let name = |what: &str| format!("{what} {} {n}x{o}x{c}", X::DTYPE);
    time(group, name("forward"), flop.clone(), || {
        linear_forward(&x, w.view(), None, None, Activation::Identity)
    });
    if (o, c) != (C, C) {
        return;
    }
    let mut dw = Tensor::<f32>::zeros(device, [o, c]);
    time(group, name("forward silu"), flop.clone(), || {
        linear_forward(&x, w.view(), None, None, Activation::Silu)
    });
    let (data, b) = (normal::<f32>(device, n, o), normal::<X>(device, 1, o).reshaped([o]).unwrap());
    let (rows, noise) = (Rows::plain(n), Draw::new(1, Stream::Noise, 0));
    let t = draw_times(device, noise, rows, TimeSampler::Uniform, (0.0, 1.0)).unwrap();
    let target = Target {
        data: &data,
        t: &t,
        noise,
        rows,
        weight: Weight::Uniform,
        control_variate: false,
        centred: false,
    };
    time(group, name("forward loss"), flop.clone(), || {
        linear_loss_backward(&x, w.view(), b.view(), &target, 1.0)
    });
    time(group, name("backward input"), flop.clone(), || linear_backward_input(&dy, w.view(), None));
    time(group, name("backward weight"), flop, || linear_backward_weight(dw.view_mut(), None, &dy, &x));
}

fn attention(c: &mut Criterion<Timed>) {
    let device = device();
    let mut group = group(c, "attention");
    attention_of::<f32>(&mut group, device);
    attention_of::<bf16>(&mut group, device);
}

/// A DiT-S/2 of batch 8 on latents of 32 × 32: 256 tokens, 6 heads of 64.
fn attention_of<X: FloatX>(group: &mut Group, device: &Device) {
    let (b, t, h, k) = (8, 256, 6, 64);
    let (qkv, d_o) = (normal::<X>(device, b * t, 3 * h * k), normal::<X>(device, b * t, h * k));
    let heads = Heads { tokens: t, heads: h };
    let (o, lse) = attention_forward(&qkv, heads).unwrap();
    let flop = 4 * b * h * t * t * k;
    let name = |what: &str| format!("{what} {} {b}x{t}x{h}x{k}", X::DTYPE);
    time(group, name("forward"), Throughput::Elements(flop as u64), || attention_forward(&qkv, heads));
    time(group, name("backward"), Throughput::Elements(flop as u64 * 5 / 2), || {
        attention_backward(&d_o, &o, &lse, &qkv, heads)
    });
}

fn layer_norm(c: &mut Criterion<Timed>) {
    let device = device();
    let mut group = group(c, "layer_norm");
    norms::<f32>(&mut group, device);
    norms::<bf16>(&mut group, device);
}

fn norms<X: FloatX>(group: &mut Group, device: &Device) {
    let (x, dy) = (normal::<X>(device, N, C), normal::<X>(device, N, C));
    let tables = Tables::<X>::new(device);
    let tensor = N * C * size_of::<X>();
    let plain = LayerNorm::<X> { affine: None, modulation: None };
    let direct = LayerNorm { modulation: Some((tables.direct(), 0)), ..plain };
    let nodes = LayerNorm { modulation: Some((tables.nodes(), 0)), ..plain };
    for (name, norm, table) in [("plain", plain, 0), ("direct", direct, 2), ("nodes", nodes, 0)] {
        let name = |what: &str| format!("{what} {name} {}", X::DTYPE);
        let (_, saved) = layer_norm_forward(&x, &norm, None).unwrap();
        time(group, name("forward"), bytes((2 + table) * tensor), || layer_norm_forward(&x, &norm, None));
        let (mut stored, mut single) = tables.gradients();
        time(group, name("backward"), bytes((3 + 2 * table) * tensor), || {
            let modulation = norm.modulation.map(|(m, _)| gradient_of(m, &mut stored, &mut single));
            let grads = LayerNormGrads { affine: None, modulation };
            layer_norm_backward(&dy, &x, &saved, &norm, None, grads)
        });
    }
}

fn gated_residual(c: &mut Criterion<Timed>) {
    let device = device();
    let mut group = group(c, "gated_residual");
    gates::<f32>(&mut group, device);
    gates::<bf16>(&mut group, device);
}

fn gates<X: FloatX>(group: &mut Group, device: &Device) {
    let (u, h, dy) = (normal::<X>(device, N, C), normal::<X>(device, N, C), normal::<X>(device, N, C));
    let tables = Tables::<X>::new(device);
    let tensor = N * C * size_of::<X>();
    for (name, gate, table) in [("direct", tables.direct(), 1), ("nodes", tables.nodes(), 0)] {
        let name = |what: &str| format!("{what} {name} {}", X::DTYPE);
        time(group, name("forward"), bytes((3 + table) * tensor), || {
            gated_residual_forward(&u, Some(&h), &gate, 2 * C)
        });
        let (mut stored, mut single) = tables.gradients();
        time(group, name("backward"), bytes((3 + 2 * table) * tensor), || {
            let dtable = gradient_of(gate, &mut stored, &mut single);
            gated_residual_backward(&dy, &gate, 2 * C, Some((&u, dtable)))
        });
    }
}

/// Modulation tables of shift, scale and gate: a row for each row of the batch, or for each node.
struct Tables<X: FloatX> {
    rows: Tensor<X>,
    nodes: Tensor<f32>,
    weights: Tensor<f32>,
}

impl<X: FloatX> Tables<X> {
    fn new(device: &Device) -> Self {
        let t: Vec<f32> = (0..N).map(|i| i as f32 / N as f32).collect();
        let t = Tensor::from_f32(device, [N], &t).unwrap();
        let weights = chebyshev_weights(&t, NODES).unwrap();
        Self { rows: normal(device, N, 3 * C), nodes: normal(device, NODES, 3 * C), weights }
    }

    fn direct(&self) -> Modulation<'_, X> {
        Modulation::Index { table: &self.rows, rows: 1 }
    }

    fn nodes(&self) -> Modulation<'_, X> {
        Modulation::Interpolate { table: &self.nodes, weights: &self.weights }
    }

    fn gradients(&self) -> (Tensor<X>, Tensor<f32>) {
        (Tensor::like(&self.rows), Tensor::like(&self.nodes))
    }
}

fn gradient_of<'a, X: FloatX>(
    modulation: Modulation<'_, X>,
    stored: &'a mut Tensor<X>,
    single: &'a mut Tensor<f32>,
) -> ModulationGrad<'a, X> {
    match modulation {
        Modulation::Index { .. } => ModulationGrad::Index(stored),
        Modulation::Interpolate { .. } => ModulationGrad::Interpolate(single),
    }
}

fn time_path(c: &mut Criterion<Timed>) {
    let device = device();
    let rows = Rows::plain(N);
    let draw = Draw::new(1, Stream::Time, 0);
    let sampler = TimeSampler::Stratified { total: N, samples: N };
    let t = draw_times(device, draw, rows, sampler, (0.0, 1.0)).unwrap();
    let mut group = group(c, "time");
    time(&mut group, "draw_times", bytes(4 * N), || draw_times(device, draw, rows, sampler, (0.0, 1.0)));
    time(&mut group, "timestep_embedding", bytes(4 * N * 256), || timestep_embedding::<f32>(&t, 256, 1.0));
    time(&mut group, "chebyshev_weights", bytes(4 * N * NODES), || chebyshev_weights(&t, NODES));
}

fn flow(c: &mut Criterion<Timed>) {
    let device = device();
    let mut group = group(c, "flow");
    flow_of::<f32>(&mut group, device);
    flow_of::<bf16>(&mut group, device);
}

fn flow_of<X: FloatX>(group: &mut Group, device: &Device) {
    let (n, d) = LOSS;
    let (rows, noise) = (Rows::plain(n), Draw::new(1, Stream::Noise, 0));
    let (data, v) = (normal::<f32>(device, n, d), normal::<X>(device, n, d));
    let t = draw_times(device, noise, rows, TimeSampler::Uniform, (0.0, 1.0)).unwrap();
    let target = Target {
        data: &data,
        t: &t,
        noise,
        rows,
        weight: Weight::Uniform,
        control_variate: false,
        centred: false,
    };
    let (single, stored) = (4 * n * d, size_of::<X>() * n * d);
    let name = |what: &str| format!("{what} {}", X::DTYPE);
    time(group, name("interpolate"), bytes(single + stored), || interpolate::<X>(&data, &t, noise, rows));
    time(group, name("loss forward"), bytes(single + stored), || flow_loss_forward(&v, &target));
    time(group, name("loss backward"), bytes(single + 2 * stored), || flow_loss_backward(&v, &target, 1.0));
    time(group, name("latent gradient"), bytes(single + 2 * stored), || {
        latent_gradient(&v, Some(&v), &t, rows, 1.0)
    });
}

fn optimizer(c: &mut Criterion<Timed>) {
    let device = device();
    let mut group = group(c, "optimizer");
    for n in [10_000_000, 35_000_000] {
        // f32: reads p, m, v, g, ema and writes all but g. bf16: the same of the master weights, and writes the copy.
        adamw::<f32>(&mut group, device, n, 36 * n, false);
        adamw::<bf16>(&mut group, device, n, 38 * n, true);
    }
    let g = normal::<f32>(device, 35_000, 1000);
    time(&mut group, "grad_norm 35000000", bytes(4 * g.len()), || grad_norm(&g, 1.0));
}

fn adamw<X: FloatX>(group: &mut Group, device: &Device, n: usize, moved: usize, with_master: bool) {
    let zeros = || Tensor::<f32>::zeros(device, [n]);
    let mut params = Tensor::<X>::zeros(device, [n]);
    let mut master = with_master.then(zeros);
    let (mut m, mut v, mut emas) = (zeros(), zeros(), [(0.9999, zeros())]);
    let g = normal::<f32>(device, n / 1000, 1000).reshaped([n]).unwrap();
    let decayed = [0..n / 3, n / 2..n];
    let rule = Rule::AdamW(Betas { beta1: 0.9, beta2: 0.95, eps: 1e-8 });
    let step =
        Step { rule, lr: 1e-4, weight_decay: 0.01, count: 5, grad_scale: 1.0, rounding: Rounding::Nearest };
    time(group, format!("adamw with ema {} {n}", X::DTYPE), bytes(moved), || {
        let state = State { master: master.as_mut(), m: &mut m, v: Some(&mut v), emas: &mut emas };
        optimizer_step(&mut params, state, &g, &decayed, &step)
    });
}

fn data(c: &mut Criterion<Timed>) {
    let device = device();
    let (n, d) = LOSS;
    let x = normal::<f32>(device, n, d);
    let index: Vec<u32> = (0..n).map(|i| (i * 40_503 % n) as u32).collect();
    let index = Index::new(device, &index).unwrap();
    let affine = Affine { shift: 0.1, scale: 2.0 };
    let stats = batch_stats(&x).unwrap();
    let mut dtable = Tensor::zeros(device, [n, d]);
    let tensor = 4 * n * d;
    let mut group = group(c, "data");
    time(&mut group, "gather forward", bytes(2 * tensor), || gather_forward::<f32, f32>(&x, &index, affine));
    time(&mut group, "gather backward", bytes(3 * tensor), || {
        gather_backward(dtable.view_mut(), &x, &index, affine)
    });
    time(&mut group, "batch_stats", bytes(tensor), || batch_stats(&x));
    time(&mut group, "standardize forward", bytes(2 * tensor), || standardize_forward(&x, stats));
    time(&mut group, "unit_norm forward", bytes(2 * tensor), || unit_norm_forward(&x));
    time(&mut group, "unit_norm backward", bytes(3 * tensor), || unit_norm_backward(&x, &x));
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(Timed::rated("GFLOP/s", 1e9));
    targets = memory, linear, attention, layer_norm, gated_residual, time_path, flow, optimizer, data
}
criterion_main!(benches);

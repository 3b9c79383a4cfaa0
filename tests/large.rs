//! Tensors of more than 2^32 elements on the CUDA device: what kernels compute at their far ends has the bits of a small tensor
//! that holds the same rows.
//!
//! The emulator gives memory only where it is touched, and runs no more than [`BLOCKS`] blocks at either end of a grid: what lies
//! between is never computed. Sums over all rows can therefore not be looked at here; their indices are those of the rows.

#[path = "support/emulator.rs"]
mod emulator;

use flowprior::ops::elementwise::{axpy, cast};
use flowprior::ops::flow_loss::{Target, Weight, flow_loss_backward, latent_gradient};
use flowprior::ops::flow_path::{Rows, interpolate};
use flowprior::ops::gated_residual::{gated_residual_backward, gated_residual_forward};
use flowprior::ops::gather::{Affine, Index, gather_backward, gather_forward};
use flowprior::ops::layer_norm::{LayerNorm, LayerNormGrads, layer_norm_backward, layer_norm_forward};
use flowprior::ops::linear::{
    Activation, linear_backward_input, linear_backward_weight, linear_forward, linear_loss_backward,
};
use flowprior::ops::modulation::{Modulation, ModulationGrad};
use flowprior::ops::normalize::{unit_norm_backward, unit_norm_forward};
use flowprior::ops::optimizer::{Betas, Rounding, Rule, State, Step, optimizer_step};
use flowprior::ops::reconstruction::{Distance, reconstruction};
use flowprior::ops::timestep_embedding::timestep_embedding;
use flowprior::rng::{Draw, Stream};
use flowprior::tensor::Shape;
use flowprior::{Device, FloatX, Result, Tensor};
use half::bf16;

/// Blocks at either end of a grid that are run.
const BLOCKS: &str = "300";
/// Rows at either end that are looked at.
const ENDS: usize = 128;
/// Columns.
const C: usize = 1024;
/// Rows: more elements than 32 bits can count, and no power of two.
const N: usize = (1 << 22) + 1000;
/// What products sum over.
const K: usize = 64;

/// A matrix with numbers in its first and last rows, and those rows as matrices of their own.
struct Big<X: FloatX> {
    all: Tensor<X>,
    ends: [Tensor<X>; 2],
}

fn big<X: FloatX>(device: &Device, rows: usize, columns: usize, seed: usize) -> Result<Big<X>> {
    let mut all = Tensor::uninit(device, [rows, columns]);
    let values = |end: usize| -> Vec<f32> {
        (0..ENDS * columns).map(|i| ((i * 37 + seed * 11 + end * 29) % 1009) as f32 / 512.0 - 1.0).collect()
    };
    let ends = [
        Tensor::from_f32(device, [ENDS, columns], &values(0))?,
        Tensor::from_f32(device, [ENDS, columns], &values(1))?,
    ];
    let shape = Shape::from([ENDS, columns]);
    let [mut first, mut last] = all.view_mut().parts([(0, shape), ((rows - ENDS) * columns, shape)]);
    first.copy_from(ends[0].view())?;
    last.copy_from(ends[1].view())?;
    Ok(Big { all, ends })
}

/// Computes with the big tensors and with both of their ends, and compares.
fn same<X: FloatX>(
    what: &str,
    results: Vec<Tensor<X>>,
    of_end: impl Fn(usize) -> Result<Vec<Tensor<X>>>,
) -> Result<()> {
    for end in 0..2 {
        let expected = of_end(end)?;
        assert_eq!(results.len(), expected.len(), "{what}");
        for (k, (all, small)) in results.iter().zip(&expected).enumerate() {
            let (rows, columns) = all.rows_cols();
            assert_eq!(small.rows_cols(), (ENDS, columns), "{what}");
            let offset = if end == 0 { 0 } else { (rows - ENDS) * columns };
            let (a, b) = (all.view().part(offset, [ENDS, columns]).to_f32_vec()?, small.to_f32_vec()?);
            let differs = a.iter().zip(&b).position(|(a, b)| a.to_bits() != b.to_bits());
            let place = differs.map(|i| (i / columns, i % columns, a[i], b[i]));
            assert!(
                place.is_none(),
                "{what}, result {k}, end {end}: row, column, found, expected: {place:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn indices_past_32_bits_reach_the_right_elements() -> Result<()> {
    let settings = [("memory", "1000G"), ("checks", "races"), ("blocks", BLOCKS)];
    let device = Device::cuda(&emulator::options_with(&settings))?;
    const { assert!(N * C > 1 << 32) };
    elements(&device)?;
    rows(&device)?;
    flow(&device)?;
    gathers(&device)?;
    products(&device)?;
    optimizer(&device)
}

fn elements(device: &Device) -> Result<()> {
    let x = big::<f32>(device, N, C, 1)?;
    let narrow = |x: &Tensor<f32>| cast::<f32, bf16>(x).map(|y| vec![y]);
    same("cast", narrow(&x.all)?, |end| narrow(&x.ends[end]))?;
    let added = |x: &Tensor<f32>, mut y: Tensor<f32>| axpy(y.view_mut(), 0.5, x).map(|()| vec![y]);
    same("axpy", added(&x.all, big(device, N, C, 2)?.all)?, |end| {
        added(&x.ends[end], {
            let [a, b] = big(device, 2 * ENDS, C, 2)?.ends;
            if end == 0 { a } else { b }
        })
    })
}

fn rows(device: &Device) -> Result<()> {
    const R: usize = 16;
    // The table's rows are three times as wide: half as many, or the host refuses to promise so much memory at once.
    let n = N / 2;
    let (x, dy, h) =
        (big::<bf16>(device, n, C, 1)?, big::<bf16>(device, n, C, 2)?, big::<bf16>(device, n, C, 3)?);
    let (each, weights) = (big::<bf16>(device, n, 3 * C, 4)?, big::<f32>(device, n, R, 5)?);
    let table = big::<f32>(device, 2 * ENDS, 3 * C, 6)?.ends[0].view().part(0, [R, 3 * C]).to_f32_vec()?;
    let table = Tensor::from_f32(device, [R, 3 * C], &table)?;
    for nodes in [false, true] {
        let pass = |x: &Tensor<bf16>,
                    dy: &Tensor<bf16>,
                    h: &Tensor<bf16>,
                    each: &Tensor<bf16>,
                    weights: &Tensor<f32>| {
            let modulation = match nodes {
                true => Modulation::Interpolate { table: &table, weights },
                false => Modulation::Index { table: each, rows: 1 },
            };
            let norm = LayerNorm { affine: None, modulation: Some((modulation, 0)) };
            let (y, stats) = layer_norm_forward(x, &norm, None)?;
            let mut dtable = Tensor::<bf16>::uninit(device, [x.rows_cols().0, 3 * C]);
            let grad = (!nodes).then_some(ModulationGrad::Index(&mut dtable));
            let grads = LayerNormGrads { affine: None, modulation: grad };
            let dx = layer_norm_backward(dy, x, &stats, &norm, Some(h), grads)?;
            let gated = gated_residual_forward(x, Some(h), &modulation, 2 * C)?;
            let grad = (!nodes).then_some((x, ModulationGrad::Index(&mut dtable)));
            let du = gated_residual_backward(dy, &modulation, 2 * C, grad)?;
            let mut results = vec![y, dx, gated, du];
            results.extend((!nodes).then_some(dtable));
            Ok(results)
        };
        let all = pass(&x.all, &dy.all, &h.all, &each.all, &weights.all)?;
        same(&format!("rows, nodes: {nodes}"), all, |e| {
            pass(&x.ends[e], &dy.ends[e], &h.ends[e], &each.ends[e], &weights.ends[e])
        })?;
    }
    let (x, dy) = (big::<f32>(device, N, C, 1)?, big::<f32>(device, N, C, 2)?);
    let pass =
        |x: &Tensor<f32>, dy: &Tensor<f32>| Ok(vec![unit_norm_forward(x)?, unit_norm_backward(dy, x)?]);
    same("unit norm", pass(&x.all, &dy.all)?, |e| pass(&x.ends[e], &dy.ends[e]))
}

fn flow(device: &Device) -> Result<()> {
    let (data, v, t) =
        (big::<f32>(device, N, C, 1)?, big::<bf16>(device, N, C, 2)?, big::<f32>(device, N, 1, 3)?);
    let (noise, x) = (Draw::new(1, Stream::Noise, 3), big::<bf16>(device, N, K, 4)?);
    let [w, b] = [[C, K], [1, C]].map(|[n, c]| Tensor::<bf16>::from_f32(device, [n, c], &values(n * c)));
    let (w, b) = (w?, b?.reshaped([C])?);
    let pass = |data: &Tensor<f32>, v: &Tensor<bf16>, t: &Tensor<f32>, x: &Tensor<bf16>, first: usize| {
        let n = data.rows_cols().0;
        let t = t.duplicate()?.reshaped([n])?;
        let rows = Rows { first: first as u64, ..Rows::plain(n) };
        let x_t: Tensor<bf16> = interpolate(data, &t, noise, rows)?;
        let target = Target {
            data,
            t: &t,
            noise,
            rows,
            weight: Weight::Uniform,
            control_variate: false,
            centred: false,
        };
        let (losses, dv) = flow_loss_backward(v, &target, 1.0)?;
        let (head_losses, head_dv) = linear_loss_backward(x, w.view(), b.view(), &target, 1.0)?;
        let (errors, dx) = reconstruction(v, data, Distance::L2, 0.5)?;
        let dy = latent_gradient(v, Some(&dv), &t, rows, 1.0)?;
        let [losses, head_losses, errors] = [losses, head_losses, errors].map(|rows| rows.reshaped([n, 1]));
        Ok((vec![x_t, dv, head_dv, dx], vec![dy, losses?, head_losses?, errors?]))
    };
    let (stored, single) = pass(&data.all, &v.all, &t.all, &x.all, 0)?;
    let end = |e: usize| pass(&data.ends[e], &v.ends[e], &t.ends[e], &x.ends[e], e * (N - ENDS));
    same("flow, stored", stored, |e| Ok(end(e)?.0))?;
    same("flow, f32", single, |e| Ok(end(e)?.1))?;
    let embed = |t: &Tensor<f32>| {
        let n = t.rows_cols().0;
        timestep_embedding::<bf16>(&t.duplicate()?.reshaped([n])?, 2 * C, 1.0).map(|y| vec![y])
    };
    same("timestep embedding", embed(&t.all)?, |e| embed(&t.ends[e]))
}

fn gathers(device: &Device) -> Result<()> {
    let (table, dy) = (big::<bf16>(device, N, C, 1)?, big::<f32>(device, 2 * ENDS, C, 2)?.ends);
    let far: Vec<u32> = (0..ENDS).map(|i| (N - ENDS + i * 7 % ENDS) as u32).collect();
    let near: Vec<u32> = far.iter().map(|i| i - (N - ENDS) as u32).collect();
    let (far, near) = (Index::new(device, &far)?, Index::new(device, &near)?);
    let found: Tensor<f32> = gather_forward(&table.all, &far, Affine::IDENTITY)?;
    let expected: Tensor<f32> = gather_forward(&table.ends[1], &near, Affine::IDENTITY)?;
    assert_eq!(found.to_f32_vec()?, expected.to_f32_vec()?, "gather");
    let mut dtable = big::<f32>(device, N, C, 3)?;
    gather_backward(dtable.all.view_mut(), &dy[0], &far, Affine::IDENTITY)?;
    gather_backward(dtable.ends[1].view_mut(), &dy[0], &near, Affine::IDENTITY)?;
    same("gather backward", vec![dtable.all], |e| Ok(vec![dtable.ends[e].duplicate()?]))
}

/// Many rows of the forward's result, of its input, of the input's gradient; many elements of a weight's gradient.
fn products(device: &Device) -> Result<()> {
    let x = big::<bf16>(device, N, K, 1)?;
    let w = Tensor::<bf16>::from_f32(device, [C, K], &values(C * K))?;
    let forward = |x: &Tensor<bf16>| {
        let (y, z) = linear_forward(x, w.view(), None, None, Activation::Silu)?;
        Ok(vec![y, z.expect("an activation keeps its argument")])
    };
    same("linear forward", forward(&x.all)?, |e| forward(&x.ends[e]))?;
    let across = Tensor::<bf16>::from_f32(device, [K, C], &values(C * K))?;
    let input = |dy: &Tensor<bf16>| Ok(vec![linear_backward_input(dy, across.view(), None)?]);
    same("linear backward input", input(&x.all)?, |e| input(&x.ends[e]))?;
    let y = big::<bf16>(device, N, C, 2)?;
    let back = |y: &Tensor<bf16>| {
        let (narrow, _) = linear_forward(y, across.view(), None, None, Activation::Identity)?;
        Ok(vec![narrow, linear_backward_input(y, w.view(), None)?])
    };
    same("linear of a large matrix", back(&y.all)?, |e| back(&y.ends[e]))?;
    // dw (O, C) with more than 2^32 elements: rows of dw come from columns of dy.
    let (o, c) = (65_664, 65_600);
    assert!(o * c > 1 << 32);
    let (dy, x) = (
        Tensor::<bf16>::from_f32(device, [K, o], &values(K * o))?,
        Tensor::<bf16>::from_f32(device, [K, c], &values(K * c))?,
    );
    let mut dw = Tensor::<f32>::uninit(device, [o, c]);
    dw.view_mut().parts([((o - 1) * c, Shape::from([c]))])[0].fill_zero();
    linear_backward_weight(dw.view_mut(), None, &dy, &x)?;
    let found = dw.view().part(o * c - 64, [64]).to_f32_vec()?;
    let (dy, x) = (dy.to_f32_vec()?, x.to_f32_vec()?);
    for (i, found) in found.iter().enumerate() {
        let expected: f64 = (0..K).map(|k| dy[k * o + o - 1] as f64 * x[k * c + c - 64 + i] as f64).sum();
        assert!((*found as f64 - expected).abs() < 1e-4, "dw: {found}, expected {expected}");
    }
    Ok(())
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 53 % 1021) as f32 / 512.0 - 1.0).collect()
}

fn optimizer(device: &Device) -> Result<()> {
    let rule = Rule::AdamW(Betas { beta1: 0.9, beta2: 0.999, eps: 1e-8 });
    let rounding = Rounding::Nearest;
    let step = Step { rule, lr: 1e-3, weight_decay: 0.1, count: 1, grad_scale: 1.0, rounding };
    let tensors = |seed| big::<f32>(device, N, C, seed);
    let (g, all) = (tensors(1)?, [tensors(2)?, tensors(3)?, tensors(4)?, tensors(5)?]);
    let (mut parts, mut whole) = ([Vec::new(), Vec::new()], Vec::new());
    for Big { all, ends } in all {
        whole.push(all);
        parts.iter_mut().zip(ends).for_each(|(part, end)| part.push(end));
    }
    let update = |tensors: Vec<Tensor<f32>>, g: &Tensor<f32>| {
        let [mut master, mut m, mut v, ema] = <[Tensor<f32>; 4]>::try_from(tensors).expect("four");
        let mut params = Tensor::<bf16>::uninit(device, master.shape());
        let mut emas = [(0.9, ema)];
        let state = State { master: Some(&mut master), m: &mut m, v: Some(&mut v), emas: &mut emas };
        let half = g.len() / 2;
        optimizer_step(&mut params, state, g, &[0..half, half..g.len()], &step)?;
        let [(_, ema)] = emas;
        Ok((vec![params], vec![master, m, v, ema]))
    };
    let (stored, single) = update(whole, &g.all)?;
    let [first, last] = parts;
    let ends = [update(first, &g.ends[0])?, update(last, &g.ends[1])?];
    let copies = |tensors: &Vec<Tensor<f32>>| tensors.iter().map(Tensor::duplicate).collect();
    same("optimizer, f32", single, |e| copies(&ends[e].1))?;
    same("optimizer, stored", stored, |e| Ok(vec![ends[e].0[0].duplicate()?]))
}

//! The parts of a step beside what this machine can do, for `benches/peers/compare.py`: one JSON object of times and rates.
//!
//! `cargo bench --bench parts -- loss optimizer product attention peaks` runs the parts named (all of them without names), each a few times, and
//! prints milliseconds; peaks are multiply-adds on registers alone, in GFLOP/s of all threads, and attention is in GFLOP/s too.

use std::hint::black_box;
use std::time::Instant;

use half::bf16;

use flowprior::ops::attention::{Heads, attention_backward, attention_forward};
use flowprior::ops::flow_loss::{Target, Weight, flow_loss_backward};
use flowprior::ops::flow_path::{Rows, TimeSampler, draw_times, interpolate};
use flowprior::ops::grad_norm::{clip_factor, grad_norm};
use flowprior::ops::linear::{Activation, linear_backward_input, linear_backward_weight, linear_forward};
use flowprior::ops::optimizer::{Betas, Rounding, Rule, State, Step, optimizer_step};
use flowprior::rng::{Draw, Stream};
use flowprior::{Device, FloatX, Result, Tensor};

/// Runs of a part; the first ones warm up.
const RUNS: usize = 7;
const WARM_UP: usize = 2;
/// Rows and width of the loss part.
const LOSS: (usize, usize) = (65_536, 768);
/// Parameters of the optimizer part.
const PARAMETERS: usize = 100_000_000;
/// Rows N, outputs O and inputs C of the layer whose three products are timed: x·Wᵀ (nt), dy·W (nn) and dyᵀ·x (tn), all of 2·N·O·C FLOPs.
const PRODUCT: (usize, usize, usize) = (2048, 3072, 1024);
/// Samples, tokens, heads and head width of attention: a DiT-S/2 of batch 8 on latents of 32 × 32.
const ATTENTION: (usize, usize, usize, usize) = (8, 256, 6, 64);

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|w| w == part);
    let device = Device::cpu()?;
    let mut found = Vec::new();
    if is_wanted("peaks") {
        found.extend(peaks());
    }
    if is_wanted("product") {
        let names = ["product_nt_f32_ms", "product_nn_f32_ms", "product_tn_f32_ms"];
        found.extend(names.into_iter().zip(products::<f32>(&device)?));
        let names = ["product_nt_bf16_ms", "product_nn_bf16_ms", "product_tn_bf16_ms"];
        found.extend(names.into_iter().zip(products::<bf16>(&device)?));
        let names = ["product_nt_gemm_ms", "product_nn_gemm_ms", "product_tn_gemm_ms"];
        found.extend(names.into_iter().zip(products_of_the_crate()?));
    }
    if is_wanted("attention") {
        let [forward, backward] = attention::<f32>(&device)?;
        found
            .extend([("attention_forward_f32_gflops", forward), ("attention_backward_f32_gflops", backward)]);
        let [forward, backward] = attention::<bf16>(&device)?;
        found.extend([
            ("attention_forward_bf16_gflops", forward),
            ("attention_backward_bf16_gflops", backward),
        ]);
    }
    if is_wanted("loss") {
        found.push(("copy_ms", copy(&device)?));
        found.push(("loss_ms", loss(&device)?));
    }
    if is_wanted("optimizer") {
        found.push(("optimizer_ms", optimizer(&device)?));
    }
    let fields: Vec<String> = found.iter().map(|(name, number)| format!("\"{name}\": {number:.3}")).collect();
    println!("{{{}}}", fields.join(", "));
    Ok(())
}

/// Returns the median milliseconds of `f`.
fn median(mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(RUNS);
    for run in 0..RUNS {
        let start = Instant::now();
        f()?;
        if run >= WARM_UP {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Returns standard normal numbers.
fn normal<X: FloatX>(device: &Device, rows: usize, cols: usize) -> Result<Tensor<X>> {
    let (data, t) = (Tensor::zeros(device, [rows, cols]), Tensor::zeros(device, [rows]));
    interpolate(&data, &t, Draw::new(1, Stream::Latents, cols as u64), Rows::plain(rows))
}

fn products<X: FloatX>(device: &Device) -> Result<[f64; 3]> {
    let (n, o, c) = PRODUCT;
    let (x, w, dy) = (normal::<X>(device, n, c)?, normal::<X>(device, o, c)?, normal::<X>(device, n, o)?);
    let mut dw = Tensor::<f32>::zeros(device, [o, c]);
    let forward =
        || linear_forward(&x, w.view(), None, None, Activation::Identity).map(|y| drop(black_box(y)));
    let input = || linear_backward_input(&dy, w.view(), None).map(|dx| drop(black_box(dx)));
    let mut weight = || linear_backward_weight(dw.view_mut(), None, &dy, &x);
    Ok([
        median(|| device.scope(forward))?,
        median(|| device.scope(input))?,
        median(|| device.scope(&mut weight))?,
    ])
}

/// Returns GFLOP/s of attention, forward and backward: 4·B·H·T²·K FLOPs, and 2.5 times that.
fn attention<X: FloatX>(device: &Device) -> Result<[f64; 2]> {
    let (b, t, h, k) = ATTENTION;
    let (qkv, d_o) = (normal::<X>(device, b * t, 3 * h * k)?, normal::<X>(device, b * t, h * k)?);
    let heads = Heads { tokens: t, heads: h };
    let (o, lse) = attention_forward(&qkv, heads)?;
    let forward = median(|| device.scope(|| attention_forward(&qkv, heads).map(|y| drop(black_box(y)))))?;
    let backward = median(|| {
        device.scope(|| attention_backward(&d_o, &o, &lse, &qkv, heads).map(|y| drop(black_box(y))))
    })?;
    let gflop = 4e-9 * (b * h * t * t * k) as f64;
    Ok([gflop / (forward * 1e-3), 2.5 * gflop / (backward * 1e-3)])
}

/// The same products by the crate `gemm` with its AVX-512 kernels.
fn products_of_the_crate() -> Result<[f64; 3]> {
    let (n, o, c) = PRODUCT;
    let (x, w, dy) = (vec![0.5f32; n * c], vec![0.25f32; o * c], vec![0.5f32; n * o]);
    let (mut y, mut dx, mut dw) = (vec![0f32; n * o], vec![0f32; n * c], vec![0f32; o * c]);
    Ok([
        by_the_crate([n, o, c], &mut y, (&x, [1, c]), (&w, [c, 1]))?,
        by_the_crate([n, c, o], &mut dx, (&dy, [1, o]), (&w, [1, c]))?,
        by_the_crate([o, c, n], &mut dw, (&dy, [o, 1]), (&x, [1, c]))?,
    ])
}

/// Returns the milliseconds of `out (m, n) = a (m, k) · b (k, n)`; operands with elements to the next column and the next row.
fn by_the_crate(
    [m, n, k]: [usize; 3],
    out: &mut [f32],
    (a, [a_column, a_row]): (&[f32], [usize; 2]),
    (b, [b_column, b_row]): (&[f32], [usize; 2]),
) -> Result<f64> {
    assert!(out.len() == m * n && a.len() == m * k && b.len() == k * n);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let parallel = gemm::Parallelism::Rayon(threads);
    median(|| {
        // SAFETY: dense matrices of the sizes that are asserted above.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                out.as_mut_ptr(),
                1,
                n as isize,
                false,
                a.as_ptr(),
                a_column as isize,
                a_row as isize,
                b.as_ptr(),
                b_column as isize,
                b_row as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                parallel,
            );
        }
        black_box(&mut *out);
        Ok(())
    })
}

/// One tensor of the loss part, cast to its own type: read and written once.
fn copy(device: &Device) -> Result<f64> {
    let x = normal::<f32>(device, LOSS.0, LOSS.1)?;
    median(|| device.scope(|| flowprior::ops::elementwise::cast::<f32, f32>(&x).map(|y| drop(black_box(y)))))
}

fn loss(device: &Device) -> Result<f64> {
    let (n, d) = LOSS;
    let (data, v) = (normal::<f32>(device, n, d)?, normal::<f32>(device, n, d)?);
    let (rows, noise) = (Rows::plain(n), Draw::new(1, Stream::Noise, 0));
    median(|| {
        device.scope(|| {
            let t = draw_times(device, noise, rows, TimeSampler::Uniform, (0.0, 1.0))?;
            black_box(interpolate::<f32>(&data, &t, noise, rows)?);
            let (weight, control_variate) = (Weight::Uniform, false);
            let target = Target { data: &data, t: &t, noise, rows, weight, control_variate, centred: false };
            black_box(flow_loss_backward(&v, &target, 1.0)?);
            Ok(())
        })
    })
}

fn optimizer(device: &Device) -> Result<f64> {
    let n = PARAMETERS;
    let zeros = || Tensor::<f32>::zeros(device, [n]);
    let (mut params, mut m, mut v, mut emas) = (zeros(), zeros(), zeros(), [(0.9999, zeros())]);
    let g = normal::<f32>(device, n / 1000, 1000)?.reshaped([n])?;
    let rule = Rule::AdamW(Betas { beta1: 0.9, beta2: 0.95, eps: 1e-8 });
    let mut count = 0;
    median(|| {
        device.scope(|| {
            count += 1;
            let grad_scale = clip_factor(grad_norm(&g, 1.0)?, 1.0) as f32;
            let (lr, weight_decay, rounding) = (1e-4, 1e-4, Rounding::Nearest);
            let step = Step { rule, lr, weight_decay, count, grad_scale, rounding };
            let state = State { master: None, m: &mut m, v: Some(&mut v), emas: &mut emas };
            let decayed = [0..n / 2, n / 2..n];
            optimizer_step(&mut params, state, &g, &decayed, &step)
        })
    })
}

/// Multiply-adds of all threads on registers alone, in f32 and by the dot product of bf16.
#[cfg(target_arch = "x86_64")]
fn peaks() -> Vec<(&'static str, f64)> {
    const TIMES: usize = 20_000;
    const ROUNDS: usize = 200;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let rate = |chains: unsafe fn(usize), flop: f64| -> f64 {
        let one = || {
            let mut seconds: Vec<f64> = (0..ROUNDS)
                .map(|_| {
                    let start = Instant::now();
                    // SAFETY: called only where the instructions were detected.
                    unsafe { chains(TIMES) };
                    start.elapsed().as_secs_f64()
                })
                .collect();
            seconds.sort_by(f64::total_cmp);
            flop * TIMES as f64 / seconds[ROUNDS / 2] / 1e9
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
            all.into_iter().filter_map(|thread| thread.join().ok()).sum()
        })
    };
    let mut found = Vec::new();
    if is_x86_feature_detected!("avx512f") {
        found.push(("peak_f32_gflops", rate(chains_f32, 24.0 * 32.0)));
    }
    if is_x86_feature_detected!("avx512bf16") {
        found.push(("peak_bf16_gflops", rate(chains_bf16, 24.0 * 64.0)));
    }
    found
}

#[cfg(not(target_arch = "x86_64"))]
fn peaks() -> Vec<(&'static str, f64)> {
    Vec::new()
}

/// 24 independent chains of f32 multiply-adds, as many as hide the latency.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn chains_f32(times: usize) {
    use std::arch::x86_64::*;
    let (x, mut acc) = (_mm512_set1_ps(0.5), [_mm512_setzero_ps(); 24]);
    for _ in 0..times {
        for acc in &mut acc {
            *acc = _mm512_fmadd_ps(*acc, x, x);
        }
    }
    black_box(acc);
}

/// 24 independent chains of `vdpbf16ps`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn chains_bf16(times: usize) {
    use std::arch::x86_64::*;
    let mut acc = [_mm512_setzero_ps(); 24];
    let x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5), _mm512_set1_ps(0.5));
    for _ in 0..times {
        for acc in &mut acc {
            *acc = _mm512_dpbf16_ps(*acc, x, x);
        }
    }
    black_box(acc);
}

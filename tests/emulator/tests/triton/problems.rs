//! Inputs and references of the kernels in `kernels.py`.

use crate::attention;
use crate::manifest::Entry;
use crate::support::case::Case;
use crate::support::numbers::{Element, Inputs, Random};
use crate::support::philox::philox;

/// Makes the cases of a snapshot, of sizes that do and that do not fill its tiles.
pub fn cases(entry: &Entry, inputs: Inputs) -> Vec<Case> {
    let random = &mut Random(7 + entry.target as u64);
    match entry.kernel.as_str() {
        "matmul" => matmul_sizes(entry).map(|size| matmul(entry, inputs, random, size)).into(),
        "softmax" => [(3, 250), (2, 64)].map(|size| softmax(entry, inputs, random, size)).into(),
        "layer_norm" => [(3, 256), (2, 400)].map(|size| layer_norm(entry, inputs, random, size)).into(),
        "attention_forward" => vec![attention::forward(entry, inputs, random)],
        "attention_backward_delta" => vec![attention::backward_delta(entry, inputs, random)],
        "attention_backward_kv" => vec![attention::backward_kv(entry, inputs, random)],
        "attention_backward_q" => vec![attention::backward_q(entry, inputs, random)],
        "dropout" => vec![dropout(entry, inputs, random)],
        "noise" => vec![noise(entry)],
        "reduce_atomic" => vec![reduce_atomic(entry, random)],
        "accumulate_locked" => vec![accumulate_locked(entry, random)],
        "cumulate" => vec![cumulate(entry, random)],
        other => panic!("no reference for {other}"),
    }
}

/// One size with many slices along K, and one with fewer than the kernel has stages.
fn matmul_sizes(entry: &Entry) -> [(usize, usize, usize); 2] {
    if entry.is_aligned("M") { [(80, 96, 176), (16, 144, 16)] } else { [(37, 75, 150), (65, 33, 31)] }
}

fn matmul(entry: &Entry, inputs: Inputs, random: &mut Random, (m, n, k): (usize, usize, usize)) -> Case {
    let (element, out) = (entry.element("a"), entry.element("c"));
    let (a, b) = match inputs {
        Inputs::Random => (random.normals(m * k), random.normals(k * n)),
        // Each row of a picks a row of b, whose elements tell their place: c is exact.
        Inputs::Coded => {
            let picked = |row: usize| (row * 7 + 3) % k;
            let a = (0..m * k).map(|i| f64::from(u8::from(i % k == picked(i / k)))).collect();
            (a, (0..k * n).map(|i| ((i / n * 31 + i % n * 17) % 251) as f64 - 125.0).collect())
        }
    };
    let transposed = entry.constants.contains_key("stride_am");
    let mut case = entry.case(&[("M", m), ("N", n)]);
    let stored = |x: &[f64], rows, columns| if transposed { transpose(x, rows, columns) } else { x.to_vec() };
    case.input("a", element, &stored(&a, m, k));
    case.input("b", element, &stored(&b, k, n));
    case.output("c", out, m * n);
    [m, n, k].iter().for_each(|&size| case.int(size as i32));
    let strides = if transposed { [m, k] } else { [k, n] };
    strides.iter().for_each(|&stride| case.int(stride as i32));
    let (a, b) = (element.round(&a), element.round(&b));
    let (mut values, mut tolerances) = (vec![0.0; m * n], vec![0.0; m * n]);
    // tf32 keeps 10 bits behind the point of each factor, and cuts off the rest.
    let tf32 = element == Element::F32 && entry.constant("BLOCK_M") > 16;
    let factor = if tf32 { 2f64.powi(-9) } else { 1e-5 };
    for i in 0..m * n {
        let products = (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]);
        values[i] = products.clone().sum();
        let size: f64 = products.map(f64::abs).sum();
        tolerances[i] =
            if inputs == Inputs::Coded { 0.0 } else { factor * size + out.rounding() * values[i].abs() };
    }
    case.expect("c", values, tolerances);
    case
}

fn transpose(x: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
}

fn softmax(entry: &Entry, inputs: Inputs, random: &mut Random, (rows, c): (usize, usize)) -> Case {
    let element = entry.element("x");
    // A snapshot for aligned columns takes no other number of them.
    let c = if entry.is_aligned("C") { c.next_multiple_of(16).min(entry.constant("BLOCK")) } else { c };
    let mut case = entry.case(&[("rows", rows)]);
    case.output("y", element, rows * c);
    let x = case.input("x", element, &inputs.numbers(random, rows * c));
    case.int(c as i32);
    let mut values = Vec::new();
    for row in x.chunks(c) {
        let top = row.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = row.iter().map(|v| (v - top).exp()).sum();
        values.extend(row.iter().map(|v| (v - top).exp() / sum));
    }
    let tolerances = values.iter().map(|v| (1e-5 + element.rounding()) * v).collect();
    case.expect("y", values, tolerances);
    case
}

fn layer_norm(entry: &Entry, inputs: Inputs, random: &mut Random, (rows, c): (usize, usize)) -> Case {
    let (element, epsilon) = (entry.element("x"), 1e-5);
    let mut case = entry.case(&[("rows", rows)]);
    case.output("y", element, rows * c);
    case.output("mean", Element::F32, rows);
    case.output("rstd", Element::F32, rows);
    let x = case.input("x", element, &inputs.numbers(random, rows * c));
    let weight = case.input("weight", Element::F32, &inputs.numbers(random, c));
    let bias = case.input("bias", Element::F32, &inputs.numbers(random, c));
    case.int(c as i32);
    case.float(epsilon);
    let (mut values, mut means, mut rstds) = (Vec::new(), Vec::new(), Vec::new());
    for row in x.chunks(c) {
        let mean = row.iter().sum::<f64>() / c as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / c as f64;
        let rstd = 1.0 / (variance + epsilon as f64).sqrt();
        values.extend(row.iter().enumerate().map(|(i, v)| (v - mean) * rstd * weight[i] + bias[i]));
        means.push(mean);
        rstds.push(rstd);
    }
    let tolerances = values.iter().map(|v| 2e-5 + (1e-5 + element.rounding()) * v.abs()).collect();
    case.expect("y", values, tolerances);
    case.expect("mean", means, vec![1e-5; rows]);
    let tolerances = rstds.iter().map(|v| v * 1e-5).collect();
    case.expect("rstd", rstds, tolerances);
    case
}

const SEED: i32 = 20_231;

/// The first Philox word of element i, as Triton's documentation defines it: counter (i, 0, 0, 0), the seed as key.
fn word(i: usize, which: usize) -> u32 {
    philox([i as u32, 0, 0, 0], [SEED as u32, 0])[which]
}

/// A number in [0, 1) of a random word: negative numbers are mirrored, then scaled to just below 1.
fn uniform(bits: u32) -> f64 {
    let signed = bits as i32;
    let positive = if signed < 0 { -(signed + 1) } else { signed };
    positive as f64 * f64::from(4.656_612_7e-10_f32)
}

fn dropout(entry: &Entry, inputs: Inputs, random: &mut Random) -> Case {
    let (n, p) = (1000, 0.3f32);
    let mut case = entry.case(&[("n", n)]);
    case.output("y", Element::F32, n);
    let x = case.input("x", Element::F32, &inputs.numbers(random, n));
    case.int(n as i32);
    case.float(p);
    case.int(SEED);
    let kept: Vec<f64> = (0..n).map(|i| if uniform(word(i, 0)) > p as f64 { x[i] } else { 0.0 }).collect();
    let share = kept.iter().filter(|v| **v != 0.0).count() as f64 / n as f64;
    assert!((share - 0.7).abs() < 0.06, "{share} are kept");
    let values: Vec<f64> = kept.iter().map(|v| v / (1.0 - p as f64)).collect();
    let tolerances = values.iter().map(|v| v.abs() * 1e-6).collect();
    case.expect("y", values, tolerances);
    case
}

fn noise(entry: &Entry) -> Case {
    let n = 700;
    let mut case = entry.case(&[("n", n)]);
    case.output("y", Element::F32, n);
    case.int(n as i32);
    case.int(SEED);
    let normal = |i| {
        let radius = (-2.0 * uniform(word(i, 0)).max(1e-7).ln()).sqrt();
        radius * (std::f64::consts::TAU * uniform(word(i, 1))).cos()
    };
    case.expect("y", (0..n).map(normal).collect(), vec![1e-5; n]);
    case
}

fn reduce_atomic(entry: &Entry, random: &mut Random) -> Case {
    let n = 2000;
    let mut case = entry.case(&[("n", n)]);
    case.input("total", Element::F32, &[1.5]);
    case.input("counts", Element::I32, &[0.0; 16]);
    case.input("top", Element::I32, &[-5.0]);
    let x = case.input("x", Element::F32, &(0..n).map(|_| random.normal() * 100.0).collect::<Vec<_>>());
    case.int(n as i32);
    let mut counts = vec![0.0; 16];
    x.iter().for_each(|v| counts[(v.trunc() as i32 & 15) as usize] += 1.0);
    let size: f64 = x.iter().map(|v| v.abs()).sum();
    case.expect("total", vec![1.5 + x.iter().sum::<f64>()], vec![size * 1e-6]);
    case.expect_exactly("counts", counts);
    case.expect_exactly("top", vec![x.iter().map(|v| v.trunc()).fold(-5.0, f64::max)]);
    case
}

fn accumulate_locked(entry: &Entry, random: &mut Random) -> Case {
    let (rows, c) = (45, 100);
    let mut case = entry.case(&[("ROWS", rows)]);
    case.input("sums", Element::F32, &vec![0.0; c]);
    case.input("lock", Element::I32, &[0.0]);
    // Whole numbers: the sum is exact in any order.
    let x: Vec<f64> = (0..rows * c).map(|_| random.below(2000) as f64 - 1000.0).collect();
    case.input("x", Element::F32, &x);
    case.int(rows as i32);
    case.int(c as i32);
    case.expect_exactly("sums", (0..c).map(|i| (0..rows).map(|r| x[r * c + i]).sum()).collect());
    case.expect_exactly("lock", vec![0.0]);
    case
}

fn cumulate(entry: &Entry, random: &mut Random) -> Case {
    let (rows, c) = (3, entry.constant("BLOCK"));
    let mut case = entry.case(&[("rows", rows)]);
    case.output("y", Element::F32, rows * c);
    case.output("order", Element::F32, rows * c);
    let x: Vec<f64> = (0..rows * c).map(|_| random.below(1000) as f64 - 500.0).collect();
    case.input("x", Element::F32, &x);
    case.int(c as i32);
    let (mut sums, mut order) = (Vec::new(), Vec::new());
    for row in x.chunks(c) {
        let mut sorted = row.to_vec();
        sorted.sort_by(f64::total_cmp);
        order.extend(sorted);
        sums.extend(row.iter().scan(0.0, |sum, v| {
            *sum += v;
            Some(*sum)
        }));
    }
    case.expect_exactly("y", sums);
    case.expect_exactly("order", order);
    case
}

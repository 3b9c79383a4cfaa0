//! What the kernels of this folder must compute, in f64 from the formulas in their first lines.

use crate::support::case::Case;
use crate::support::numbers::{Element, Inputs, Random};
use crate::support::philox::philox;

/// The kernels: `STEM.cu` has one entry, STEM.
pub const STEMS: [&str; 12] = [
    "adamw",
    "flash",
    "gather",
    "histogram",
    "layer_norm",
    "matmul",
    "noise",
    "reduce",
    "scan",
    "softmax",
    "split_k",
    "transpose",
];

/// Makes the cases of a kernel. The first is the one that bugs are planted for: its sizes fill no tile.
pub fn cases(stem: &str, inputs: Inputs) -> Vec<Case> {
    let r = &mut Random(11);
    match stem {
        "adamw" => vec![adamw(inputs, r, 700)],
        "flash" => vec![flash(inputs, r, 100), flash(inputs, r, 64)],
        "gather" => vec![gather(r, 9, 72)],
        "histogram" => vec![histogram(r, 3001)],
        "layer_norm" => vec![layer_norm(inputs, r, 3, 516), layer_norm(inputs, r, 2, 4)],
        "matmul" => vec![
            matmul(inputs, r, [100, 72, 136]),
            matmul(inputs, r, [64, 128, 8]),
            matmul(inputs, r, [1, 8, 64]),
        ],
        "noise" => vec![noise(inputs, r, 700, 28)],
        "reduce" => vec![reduce(inputs, r, 5000, 6), reduce(inputs, r, 3, 1)],
        "scan" => vec![scan(r, 2000), scan(r, 17)],
        "softmax" => vec![softmax(inputs, r, 6, 77), softmax(inputs, r, 5, 20)],
        "split_k" => vec![split_k(inputs, r, [20, 35, 70], 3), split_k(inputs, r, [16, 16, 16], 1)],
        "transpose" => vec![transpose(inputs, r, 45, 70)],
        other => panic!("no reference for {other}"),
    }
}

fn adamw(inputs: Inputs, r: &mut Random, n: usize) -> Case {
    let mut case = Case::new("adamw", [n.div_ceil(256) as u32, 1, 1], [256, 1, 1]);
    let rates = [1e-3f32, 0.9, 0.95, 1e-8, 0.1, 1.0 / (1.0 - 0.9), 1.0 / (1.0 - 0.95)];
    let w = case.input("weight", Element::F32, &inputs.numbers(r, n));
    case.output("copy", Element::Bf16, n);
    let m = case.input("first", Element::F32, &inputs.numbers(r, n));
    let squares: Vec<f64> = inputs.numbers(r, n).iter().map(|v| v * v + 0.01).collect();
    let v = case.input("second", Element::F32, &squares);
    let g = case.input("grad", Element::F32, &inputs.numbers(r, n));
    case.arguments
        .push(crate::support::case::Argument::Bytes(rates.iter().flat_map(|v| v.to_le_bytes()).collect()));
    case.int(n as i32);
    let [rate, beta1, beta2, epsilon, decay, correction1, correction2] = rates.map(f64::from);
    let m: Vec<f64> = (0..n).map(|i| beta1 * m[i] + (1.0 - beta1) * g[i]).collect();
    let v: Vec<f64> = (0..n).map(|i| beta2 * v[i] + (1.0 - beta2) * g[i] * g[i]).collect();
    let step = |i: usize| m[i] * correction1 / ((v[i] * correction2).sqrt() + epsilon) + decay * w[i];
    let w: Vec<f64> = (0..n).map(|i| w[i] - rate * step(i)).collect();
    case.expect("copy", w.clone(), w.iter().map(|v| v.abs() * Element::Bf16.rounding() + 1e-6).collect());
    for (name, values) in [("weight", w), ("first", m), ("second", v)] {
        let tolerances = values.iter().map(|v| v.abs() * 1e-6 + 1e-6).collect();
        case.expect(name, values, tolerances);
    }
    case
}

fn flash(inputs: Inputs, r: &mut Random, length: usize) -> Case {
    let (heads, width) = (2, 64);
    let mut case = Case::new("flash", [length.div_ceil(64) as u32, heads as u32, 1], [128, 1, 1]);
    let n = heads * length * width;
    case.output("o", Element::Bf16, n);
    case.output("lse", Element::F32, heads * length);
    let [q, k, v] = ["q", "k", "v"].map(|name| case.input(name, Element::Bf16, &inputs.numbers(r, n)));
    case.int(length as i32);
    let (mut o, mut tolerances, mut lse) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..heads * length {
        let keys = row / length * length..(row / length + 1) * length;
        let score =
            |key: usize| (0..width).map(|d| q[row * width + d] * k[key * width + d]).sum::<f64>() / 8.0;
        let scores: Vec<f64> = keys.clone().map(score).collect();
        let top = scores.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        lse.push(top + sum.ln());
        for d in 0..width {
            let terms = keys.clone().zip(&scores).map(|(key, s)| (s - top).exp() / sum * v[key * width + d]);
            let value: f64 = terms.clone().sum();
            let size: f64 = terms.map(f64::abs).sum();
            tolerances.push(Element::Bf16.rounding() * (value.abs() + 2.0 * size) + 1e-5);
            o.push(value);
        }
    }
    case.expect("o", o, tolerances);
    case.expect("lse", lse, vec![2e-5; heads * length]);
    case
}

fn gather(r: &mut Random, rows: usize, c: usize) -> Case {
    let mut case = Case::new("gather", [rows.div_ceil(4) as u32, 1, 1], [128, 1, 1]);
    case.output("y", Element::Bf16, rows * c);
    let table = case.input("table", Element::Bf16, &Inputs::Coded.numbers(r, 20 * c));
    let index =
        case.input("index", Element::I32, &(0..rows).map(|i| (i * 7 % 20) as f64).collect::<Vec<_>>());
    case.int(rows as i32);
    case.int(c as i32);
    case.expect_exactly("y", (0..rows * c).map(|i| table[index[i / c] as usize * c + i % c]).collect());
    case
}

fn histogram(r: &mut Random, n: usize) -> Case {
    let mut case = Case::new("histogram", [4, 1, 1], [256, 1, 1]);
    case.input("counts", Element::U32, &[5.0; 256]);
    // The values of a narrow range meet often.
    let x = case.input("x", Element::U8, &(0..n).map(|_| (100 + r.below(20)) as f64).collect::<Vec<_>>());
    case.int(n as i32);
    let mut counts = vec![5.0; 256];
    x.iter().for_each(|v| counts[*v as usize] += 1.0);
    case.expect_exactly("counts", counts);
    case
}

fn layer_norm(inputs: Inputs, r: &mut Random, rows: usize, c: usize) -> Case {
    let mut case = Case::new("layer_norm", [rows as u32, 1, 1], [128, 1, 1]);
    case.output("y", Element::F32, rows * c);
    case.output("mean", Element::F32, rows);
    case.output("rstd", Element::F32, rows);
    let x = case.input("x", Element::F32, &inputs.numbers(r, rows * c));
    let weight = case.input("weight", Element::F32, &inputs.numbers(r, c));
    let bias = case.input("bias", Element::F32, &inputs.numbers(r, c));
    case.int(c as i32);
    let (mut y, mut means, mut rstds) = (Vec::new(), Vec::new(), Vec::new());
    for row in x.chunks(c) {
        let mean = row.iter().sum::<f64>() / c as f64;
        let rstd = 1.0 / (row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / c as f64 + 1e-5).sqrt();
        y.extend(row.iter().enumerate().map(|(i, v)| (v - mean) * rstd * weight[i] + bias[i]));
        means.push(mean);
        rstds.push(rstd);
    }
    case.expect("y", y, vec![1e-4; rows * c]);
    case.expect("mean", means, vec![1e-5; rows]);
    let tolerances = rstds.iter().map(|v| v * 1e-5).collect();
    case.expect("rstd", rstds, tolerances);
    case
}

pub fn matmul(inputs: Inputs, r: &mut Random, [m, n, k]: [usize; 3]) -> Case {
    let mut case = Case::new("matmul", [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1], [128, 1, 1]);
    case.output("c", Element::F32, m * n);
    let (a, b) = match inputs {
        Inputs::Random => (r.normals(m * k), r.normals(k * n)),
        // Each row of a picks a row of b, whose elements tell their place.
        Inputs::Coded => (
            (0..m * k).map(|i| f64::from(u8::from(i % k == (i / k * 7 + 3) % k))).collect(),
            (0..k * n).map(|i| ((i / n * 31 + i % n * 17) % 251) as f64 - 125.0).collect(),
        ),
    };
    let (a, b) = (case.input("a", Element::Bf16, &a), case.input("b", Element::Bf16, &b));
    [m, n, k].iter().for_each(|&size| case.int(size as i32));
    expect_product(&mut case, &a, &b, [m, n, k], if inputs == Inputs::Coded { 0.0 } else { 1e-5 });
    case
}

/// Expects c = a b within a share of the sum of the products' sizes.
fn expect_product(case: &mut Case, a: &[f64], b: &[f64], [m, n, k]: [usize; 3], share: f64) {
    let products = |i: usize| (0..k).map(move |l| a[i / n * k + l] * b[l * n + i % n]);
    let values = (0..m * n).map(|i| products(i).sum()).collect();
    case.expect("c", values, (0..m * n).map(|i| share * products(i).map(f64::abs).sum::<f64>()).collect());
}

fn noise(inputs: Inputs, r: &mut Random, n: usize, width: usize) -> Case {
    let (seed, step) = (77, 5);
    let mut case = Case::new("noise", [n.div_ceil(512) as u32, 1, 1], [128, 1, 1]);
    case.output("xt", Element::F32, n);
    case.output("velocity", Element::F32, n);
    let data = case.input("data", Element::F32, &inputs.numbers(r, n));
    let times = case.input("times", Element::F32, &(0..n / width).map(|_| r.uniform()).collect::<Vec<_>>());
    [n as i32, width as i32, seed, step].iter().for_each(|&v| case.int(v));
    let normal = |i: usize| {
        let bits = philox([i as u32 / 4, 0, step as u32, 0], [seed as u32, 0]);
        let pair = &bits[i % 4 / 2 * 2..];
        let radius = (-2.0 * ((pair[0] as f64 + 0.5) / 2f64.powi(32)).ln()).sqrt();
        let angle = std::f64::consts::TAU * (pair[1] as f64 / 2f64.powi(32));
        radius * if i.is_multiple_of(2) { angle.cos() } else { angle.sin() }
    };
    let noise: Vec<f64> = (0..n).map(normal).collect();
    let xt = (0..n).map(|i| (1.0 - times[i / width]) * data[i] + times[i / width] * noise[i]).collect();
    case.expect("xt", xt, vec![1e-5; n]);
    case.expect("velocity", (0..n).map(|i| noise[i] - data[i]).collect(), vec![1e-5; n]);
    case
}

fn reduce(inputs: Inputs, r: &mut Random, n: usize, blocks: usize) -> Case {
    let mut case = Case::new("reduce", [blocks as u32, 1, 1], [256, 1, 1]);
    case.output("total", Element::F32, 1);
    case.output("parts", Element::F32, blocks);
    case.input("done", Element::U32, &[0.0]);
    let x = case.input("x", Element::F32, &inputs.numbers(r, n));
    case.int(n as i32);
    let size: f64 = x.iter().map(|v| v.abs()).sum();
    case.expect("total", vec![x.iter().sum()], vec![size * 1e-6]);
    case.expect_exactly("done", vec![0.0]);
    case
}

fn scan(r: &mut Random, n: usize) -> Case {
    let blocks = n.div_ceil(256);
    let mut case = Case::new("scan", [blocks as u32, 1, 1], [256, 1, 1]);
    case.output("y", Element::U32, n);
    case.input("state", Element::U32, &vec![0.0; 1 + 3 * blocks]);
    let x = case.input("x", Element::U32, &(0..n).map(|_| r.below(1000) as f64).collect::<Vec<_>>());
    case.int(n as i32);
    let mut sum = 0.0;
    let add = |v: &f64| {
        sum += v;
        sum
    };
    case.expect_exactly("y", x.iter().map(add).collect());
    case
}

fn softmax(inputs: Inputs, r: &mut Random, rows: usize, c: usize) -> Case {
    let mut case = Case::new("softmax", [rows.div_ceil(4) as u32, 1, 1], [128, 1, 1]);
    case.output("y", Element::F32, rows * c);
    let x = case.input("x", Element::F32, &inputs.numbers(r, rows * c));
    case.int(rows as i32);
    case.int(c as i32);
    let mut y = Vec::new();
    for row in x.chunks(c) {
        let sum: f64 = row.iter().map(|v| v.exp()).sum();
        y.extend(row.iter().map(|v| v.exp() / sum));
    }
    let tolerances = y.iter().map(|v| v * 1e-5).collect();
    case.expect("y", y, tolerances);
    case
}

fn split_k(inputs: Inputs, r: &mut Random, [m, n, k]: [usize; 3], parts: usize) -> Case {
    let tiles = [n.div_ceil(16), m.div_ceil(16)];
    let mut case = Case::new("split_k", [tiles[0] as u32, tiles[1] as u32, parts as u32], [256, 1, 1]);
    case.output("c", Element::F32, m * n);
    case.output("parts", Element::F32, parts * m * n);
    case.input("arrivals", Element::U32, &vec![0.0; tiles[0] * tiles[1]]);
    let a = case.input("a", Element::F32, &inputs.numbers(r, m * k));
    let b = case.input("b", Element::F32, &inputs.numbers(r, k * n));
    [m, n, k].iter().for_each(|&size| case.int(size as i32));
    expect_product(&mut case, &a, &b, [m, n, k], 1e-6);
    case.expect_exactly("arrivals", vec![0.0; tiles[0] * tiles[1]]);
    case
}

fn transpose(inputs: Inputs, r: &mut Random, rows: usize, columns: usize) -> Case {
    let grid = [columns.div_ceil(32) as u32, rows.div_ceil(32) as u32, 1];
    let mut case = Case::new("transpose", grid, [32, 8, 1]);
    case.output("y", Element::F32, rows * columns);
    let x = case.input("x", Element::F32, &inputs.numbers(r, rows * columns));
    case.int(rows as i32);
    case.int(columns as i32);
    case.expect_exactly("y", (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect());
    case
}

//! Attention and its derivatives in f64, from the definition.
//!
//! P = softmax(scale q kT), o = P v. With dP = do vT and delta = the sum of o do over each row:
//! dv = PT do, dS = scale P (dP - delta), dq = dS k, dk = dST q.

use crate::manifest::Entry;
use crate::support::case::Case;
use crate::support::numbers::{Element, Inputs, Random};

const HEADS: usize = 2;

/// The inputs of one head, and what follows from them; matrices are (length, width).
struct Head {
    length: usize,
    width: usize,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    d_o: Vec<f64>,
    /// (length, length)
    p: Vec<f64>,
    o: Vec<f64>,
    lse: Vec<f64>,
    scale: f64,
}

/// All inputs, as rounded to the type.
struct Tensors {
    length: usize,
    width: usize,
    scale: f32,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    d_o: Vec<f64>,
}

impl Tensors {
    fn new(entry: &Entry, element: Element, inputs: Inputs, random: &mut Random) -> Tensors {
        let (length, width) =
            if entry.is_aligned("L") { (112, entry.constant("D")) } else { (77, entry.constant("D")) };
        let mut draw = || element.round(&inputs.numbers(random, HEADS * length * width));
        let (q, k, v, d_o) = (draw(), draw(), draw(), draw());
        Tensors { length, width, scale: 1.0 / (width as f32).sqrt(), q, k, v, d_o }
    }

    fn heads(&self, causal: bool) -> Vec<Head> {
        let part = |x: &[f64], h| x[h * self.length * self.width..][..self.length * self.width].to_vec();
        let head = |h| {
            let (q, k, v) = (part(&self.q, h), part(&self.k, h), part(&self.v, h));
            Head::new(q, k, v, part(&self.d_o, h), self.width, self.scale as f64, causal)
        };
        (0..HEADS).map(head).collect()
    }
}

impl Head {
    fn new(
        q: Vec<f64>,
        k: Vec<f64>,
        v: Vec<f64>,
        d_o: Vec<f64>,
        width: usize,
        scale: f64,
        causal: bool,
    ) -> Head {
        let length = q.len() / width;
        let (mut p, mut lse) = (vec![0.0; length * length], Vec::new());
        for i in 0..length {
            let last = if causal { i + 1 } else { length };
            let scores: Vec<f64> =
                (0..last).map(|j| scale * dot(row(&q, i, width), row(&k, j, width))).collect();
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            lse.push(top + sum.ln());
            (0..last).for_each(|j| p[i * length + j] = (scores[j] - top).exp() / sum);
        }
        let o = product(&p, &v, length, width);
        Head { length, width, q, k, v, d_o, p, o, lse, scale }
    }

    fn delta(&self) -> Vec<f64> {
        (0..self.length).map(|i| dot(row(&self.o, i, self.width), row(&self.d_o, i, self.width))).collect()
    }

    /// (length, length)
    fn slopes(&self) -> Vec<f64> {
        let delta = self.delta();
        let slope = |n: usize| {
            let (i, j) = (n / self.length, n % self.length);
            let dp = dot(row(&self.d_o, i, self.width), row(&self.v, j, self.width));
            self.scale * self.p[n] * (dp - delta[i])
        };
        (0..self.length * self.length).map(slope).collect()
    }
}

fn row(x: &[f64], i: usize, width: usize) -> &[f64] {
    &x[i * width..][..width]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// a (length, length) times b (length, width).
fn product(a: &[f64], b: &[f64], length: usize, width: usize) -> Vec<f64> {
    let sum = |n: usize| (0..length).map(|j| a[n / width * length + j] * b[j * width + n % width]).sum();
    (0..length * width).map(sum).collect()
}

fn transposed(a: &[f64], length: usize) -> Vec<f64> {
    (0..length * length).map(|n| a[n % length * length + n / length]).collect()
}

fn absolute(a: &[f64]) -> Vec<f64> {
    a.iter().map(|v| v.abs()).collect()
}

/// Adds the expectation weights x rows, where the weights are rounded to the type before the product.
fn expect_product(
    case: &mut Case,
    name: &'static str,
    element: Element,
    heads: &[Head],
    parts: impl Fn(&Head) -> (Vec<f64>, &[f64]),
) {
    let (mut values, mut tolerances) = (Vec::new(), Vec::new());
    for head in heads {
        let (weights, rows) = parts(head);
        let value = product(&weights, rows, head.length, head.width);
        let size = product(&absolute(&weights), &absolute(rows), head.length, head.width);
        let bound = |(v, s): (&f64, &f64)| element.rounding() * (v.abs() + 2.0 * s) + 1e-5;
        tolerances.extend(value.iter().zip(&size).map(bound));
        values.extend(value);
    }
    case.expect(name, values, tolerances);
}

fn concat(heads: &[Head], part: impl Fn(&Head) -> Vec<f64>) -> Vec<f64> {
    heads.iter().flat_map(part).collect()
}

fn start(entry: &Entry, t: &Tensors) -> Case {
    entry.case(&[("L", t.length), ("heads", HEADS)])
}

pub fn forward(entry: &Entry, inputs: Inputs, random: &mut Random) -> Case {
    let element = entry.element("q");
    let t = Tensors::new(entry, element, inputs, random);
    let heads = t.heads(entry.constants["CAUSAL"] != 0);
    let mut case = start(entry, &t);
    case.output("o", element, t.q.len());
    case.output("lse", Element::F32, HEADS * t.length);
    case.input("q", element, &t.q);
    case.input("k", element, &t.k);
    case.input("v", element, &t.v);
    case.int(t.length as i32);
    case.float(t.scale);
    expect_product(&mut case, "o", element, &heads, |h| (h.p.clone(), &h.v));
    case.expect("lse", concat(&heads, |h| h.lse.clone()), vec![2e-5; HEADS * t.length]);
    case
}

pub fn backward_delta(entry: &Entry, inputs: Inputs, random: &mut Random) -> Case {
    let element = entry.element("o");
    let t = Tensors::new(entry, element, inputs, random);
    let mut case = start(entry, &t);
    case.output("delta", Element::F32, HEADS * t.length);
    // Any o will do.
    case.input("o", element, &t.q);
    case.input("do", element, &t.d_o);
    case.int(t.length as i32);
    let rows = t.q.chunks(t.width).zip(t.d_o.chunks(t.width));
    case.expect("delta", rows.map(|(a, b)| dot(a, b)).collect(), vec![1e-4; HEADS * t.length]);
    case
}

fn backward_inputs(case: &mut Case, t: &Tensors, heads: &[Head], element: Element) {
    case.input("q", element, &t.q);
    case.input("k", element, &t.k);
    case.input("v", element, &t.v);
    case.input("do", element, &t.d_o);
    case.input("lse", Element::F32, &concat(heads, |h| h.lse.clone()));
    case.input("delta", Element::F32, &concat(heads, Head::delta));
    case.int(t.length as i32);
    case.float(t.scale);
}

pub fn backward_kv(entry: &Entry, inputs: Inputs, random: &mut Random) -> Case {
    let element = entry.element("q");
    let t = Tensors::new(entry, element, inputs, random);
    let heads = t.heads(false);
    let mut case = start(entry, &t);
    case.output("dk", element, t.q.len());
    case.output("dv", element, t.q.len());
    backward_inputs(&mut case, &t, &heads, element);
    expect_product(&mut case, "dk", element, &heads, |h| (transposed(&h.slopes(), h.length), &h.q));
    expect_product(&mut case, "dv", element, &heads, |h| (transposed(&h.p, h.length), &h.d_o));
    case
}

pub fn backward_q(entry: &Entry, inputs: Inputs, random: &mut Random) -> Case {
    let element = entry.element("q");
    let t = Tensors::new(entry, element, inputs, random);
    let heads = t.heads(false);
    let mut case = start(entry, &t);
    case.output("dq", element, t.q.len());
    backward_inputs(&mut case, &t, &heads, element);
    expect_product(&mut case, "dq", element, &heads, |h| (h.slopes(), &h.k));
    case
}

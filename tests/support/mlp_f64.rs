//! The MLP velocity network in plain f64 loops: what `nn::velocity::mlp` must compute, forward and backward.
//!
//! With s = time_scale, ω_i = 10000^(−i/128), rows n, width D:
//!   τ = W₂ silu(W₁ [cos(s t ω), sin(s t ω)] + b₁) + b₂,  c = τ (+ W_c z + b_c)
//!   block: [shift|scale|gate] = W_a silu(c) + b_a,  h += gate·mlp(LN(h)·(1+scale) + shift)   (post-norm: h += LN(·))
//!   final: [shift|scale] = W_f silu(c) + b_f,  v = W_o(LN(h)·(1+scale) + shift) + b_o, this LN not affine
//!
//! The modulation is evaluated at every row's t (`Direct`) or at r Chebyshev nodes of the first kind on [0, 1], from
//! which each row interpolates by the barycentric formula (`Nodes`; Berrut & Trefethen, SIAM Review 2004); the backward
//! is the exact transpose. Checked against PyTorch by `tests/oracle.rs`.

#![allow(dead_code)] // each test program uses its own part

use std::collections::BTreeMap;
use std::f64::consts::PI;

/// Holds tensors by name: shape and values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f64>)>;

const TIME_CHANNELS: usize = 256;
const EPS: f64 = 1e-6;
const FINAL_ADALN: &str = "final_layer.adaLN_modulation.1";

/// Describes a network.
#[derive(Clone, Debug)]
pub struct Config {
    /// Columns of x_t and of v.
    pub channels: usize,
    /// Columns of the hidden state.
    pub width: usize,
    /// Number of residual blocks.
    pub depth: usize,
    /// Columns of the condition z; 0 without one.
    pub cond: usize,
    /// Normalises the gated branch before it is added.
    pub post_norm: bool,
    /// Factor of t in the embedding.
    pub time_scale: f64,
}

/// Says where the modulation is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modulation {
    /// At the t of every row.
    Direct,
    /// At so many Chebyshev nodes; only without a condition.
    Nodes(usize),
}

/// Holds a network: its parameters under the reference's state-dict names.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// Shape of the network.
    pub config: Config,
    /// Every parameter.
    pub params: Tensors,
}

/// Holds what `backward` gives.
pub struct Gradients {
    /// Gradient with respect to x_t, (n, channels).
    pub dx: Vec<f64>,
    /// Gradient with respect to z, (n, cond); empty without a condition.
    pub dz: Vec<f64>,
    /// Gradients with respect to the parameters, by name.
    pub params: Tensors,
}

/// Holds what `backward` needs of `forward`.
pub struct Saved {
    time: TimeSaved,
    x_t: Vec<f64>,
    blocks: Vec<BlockSaved>,
    last: FinalSaved,
}

// g is the number of rows on which the modulation was evaluated: n or r.
struct TimeSaved {
    embedding: Vec<f64>,      // (g, 256)
    hidden: Vec<f64>,         // (g, D), before the activation
    c: Vec<f64>,              // (g, D)
    z: Vec<f64>,              // (n, cond)
    matrix: Option<Vec<f64>>, // (n, r)
}

struct BlockSaved {
    norm: Norm,
    affine: Vec<f64>, // (n, D)
    modulated: Vec<f64>,
    hidden: Vec<f64>,
    branch: Vec<f64>,
    modulation: Vec<f64>, // (n, 3 D)
    post: Option<Norm>,
}

struct FinalSaved {
    norm: Norm,
    modulated: Vec<f64>,
    modulation: Vec<f64>, // (n, 2 D)
}

struct Norm {
    normal: Vec<f64>, // (n, D)
    rstd: Vec<f64>,   // (n)
}

impl Config {
    /// Returns name and shape of every parameter.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (c, d) = (self.channels, self.width);
        let mut shapes = Vec::new();
        let mut layer = |name: &str, weight: &[usize]| {
            shapes.push((format!("{name}.weight"), weight.to_vec()));
            shapes.push((format!("{name}.bias"), vec![weight[0]]));
        };
        layer("time_embed.mlp.0", &[d, TIME_CHANNELS]);
        layer("time_embed.mlp.2", &[d, d]);
        if self.cond > 0 {
            layer("cond_embed", &[d, self.cond]);
        }
        layer("input_proj", &[d, c]);
        for i in 0..self.depth {
            layer(&format!("res_blocks.{i}.in_ln"), &[d]);
            layer(&format!("res_blocks.{i}.mlp.0"), &[d, d]);
            layer(&format!("res_blocks.{i}.mlp.2"), &[d, d]);
            layer(&format!("res_blocks.{i}.adaLN_modulation.1"), &[3 * d, d]);
            if self.post_norm {
                layer(&format!("res_blocks.{i}.post_norm"), &[d]);
            }
        }
        layer("final_layer.linear", &[c, d]);
        layer(FINAL_ADALN, &[2 * d, d]);
        shapes
    }
}

impl Mlp {
    /// Returns the network as training starts it: Xavier-uniform, time MLP N(0, 0.02²), adaLN and output zero.
    pub fn initial(config: Config, seed: u64) -> Self {
        let mut random = Random(seed);
        let params = config.shapes().into_iter().map(|(name, shape)| {
            let n = shape.iter().product();
            let values = if shape.len() == 1 {
                vec![if name.ends_with("weight") { 1.0 } else { 0.0 }; n] // norms; all biases are 0
            } else if name.contains("adaLN") || name.starts_with("final_layer") {
                vec![0.0; n]
            } else if name.starts_with("time_embed") {
                (0..n).map(|_| 0.02 * random.normal()).collect()
            } else {
                let bound = (6.0 / (shape[0] + shape[1]) as f64).sqrt();
                (0..n).map(|_| bound * (2.0 * random.uniform() - 1.0)).collect()
            };
            (name, (shape, values))
        });
        let params = params.collect();
        Self { config, params }
    }

    /// Returns a network without a zero in it: weights N(0, 1/fan-in), biases N(0, 0.1²), norms about 1.
    pub fn randomised(config: Config, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut net = Self::initial(config, seed);
        for (name, (shape, values)) in &mut net.params {
            let std = if shape.len() == 2 { (shape[1] as f64).sqrt().recip() } else { 0.1 };
            let mean = if shape.len() == 1 && name.ends_with("weight") { 1.0 } else { 0.0 };
            values.fill_with(|| mean + std * random.normal());
        }
        net
    }

    /// Computes v (n, channels) from x_t (n, channels), t (n) and z (n, cond), which is empty without a condition.
    pub fn forward(&self, x_t: &[f64], t: &[f64], z: &[f64], modulation: Modulation) -> (Vec<f64>, Saved) {
        assert_eq!(x_t.len(), t.len() * self.config.channels, "x_t has another number of rows than t");
        assert_eq!(z.len(), t.len() * self.config.cond, "z has another number of rows than t");
        let time = self.time_forward(t, z, modulation);
        let mut h = self.linear("input_proj", x_t);
        let mut blocks = Vec::new();
        for i in 0..self.config.depth {
            let name = format!("res_blocks.{i}");
            let rows = self.modulate(&format!("{name}.adaLN_modulation.1"), &time);
            blocks.push(self.block_forward(&name, &mut h, rows));
        }
        let modulation = self.modulate(FINAL_ADALN, &time);
        let norm = self.layer_norm(&h);
        let modulated = self.shift_and_scale(&norm.normal, &modulation);
        let v = self.linear("final_layer.linear", &modulated);
        (v, Saved { time, x_t: x_t.to_vec(), blocks, last: FinalSaved { norm, modulated, modulation } })
    }

    /// Computes the gradients of Σ v·dv.
    pub fn backward(&self, saved: &Saved, dv: &[f64]) -> Gradients {
        let mut grads = self.params.clone();
        grads.values_mut().for_each(|(_, x)| x.fill(0.0));
        let last = &saved.last;
        let dm = self.linear_backward(&mut grads, "final_layer.linear", &last.modulated, dv);
        let (dnormal, drows) = self.shift_and_scale_backward(&last.norm.normal, &last.modulation, &dm);
        let mut dc = self.modulate_backward(&mut grads, FINAL_ADALN, &saved.time, &drows);
        let mut dh = self.layer_norm_backward(&last.norm, &dnormal);
        for (i, block) in saved.blocks.iter().enumerate().rev() {
            let name = format!("res_blocks.{i}");
            let drows = self.block_backward(&mut grads, &name, block, &mut dh);
            let adaln = format!("{name}.adaLN_modulation.1");
            add(&mut dc, &self.modulate_backward(&mut grads, &adaln, &saved.time, &drows));
        }
        let dx = self.linear_backward(&mut grads, "input_proj", &saved.x_t, &dh);
        let dz = self.time_backward(&mut grads, &saved.time, &dc);
        Gradients { dx, dz, params: grads }
    }

    fn time_forward(&self, t: &[f64], z: &[f64], modulation: Modulation) -> TimeSaved {
        let (points, matrix) = match modulation {
            Modulation::Direct => (t.to_vec(), None),
            Modulation::Nodes(r) => {
                assert_eq!(self.config.cond, 0, "with a condition the modulation is no function of t alone");
                (nodes(r), Some(interpolation(t, r)))
            }
        };
        let embedding: Vec<f64> = points.iter().flat_map(|t| embed(self.config.time_scale * t)).collect();
        let hidden = self.linear("time_embed.mlp.0", &embedding);
        let mut c = self.linear("time_embed.mlp.2", &map(&hidden, silu));
        if self.config.cond > 0 {
            add(&mut c, &self.linear("cond_embed", z));
        }
        TimeSaved { embedding, hidden, c, z: z.to_vec(), matrix }
    }

    fn time_backward(&self, grads: &mut Tensors, saved: &TimeSaved, dc: &[f64]) -> Vec<f64> {
        let active = map(&saved.hidden, silu);
        let dhidden =
            times(&self.linear_backward(grads, "time_embed.mlp.2", &active, dc), &saved.hidden, silu_slope);
        self.linear_backward(grads, "time_embed.mlp.0", &saved.embedding, &dhidden);
        if self.config.cond == 0 {
            Vec::new()
        } else {
            self.linear_backward(grads, "cond_embed", &saved.z, dc)
        }
    }

    /// Returns the modulation of every row, (n, k D).
    fn modulate(&self, adaln: &str, time: &TimeSaved) -> Vec<f64> {
        let table = self.linear(adaln, &map(&time.c, silu));
        let Some(matrix) = &time.matrix else { return table };
        let r = time.c.len() / self.config.width;
        let columns = table.len() / r;
        let mut rows = vec![0.0; matrix.len() / r * columns];
        for (weights, row) in matrix.chunks(r).zip(rows.chunks_mut(columns)) {
            weights.iter().zip(table.chunks(columns)).for_each(|(w, node)| add_scaled(row, *w, node));
        }
        rows
    }

    /// Carries the gradient of the rows' modulation to the parameters of `adaln`; returns its part of dc, (g, D).
    fn modulate_backward(
        &self,
        grads: &mut Tensors,
        adaln: &str,
        time: &TimeSaved,
        drows: &[f64],
    ) -> Vec<f64> {
        let mut dtable = drows.to_vec();
        if let Some(matrix) = &time.matrix {
            let r = time.c.len() / self.config.width;
            let columns = drows.len() / (matrix.len() / r);
            dtable = vec![0.0; r * columns];
            for (weights, drow) in matrix.chunks(r).zip(drows.chunks(columns)) {
                let nodes = weights.iter().zip(dtable.chunks_mut(columns));
                nodes.for_each(|(w, dnode)| add_scaled(dnode, *w, drow));
            }
        }
        let dactive = self.linear_backward(grads, adaln, &map(&time.c, silu), &dtable);
        times(&dactive, &time.c, silu_slope)
    }

    fn block_forward(&self, name: &str, h: &mut [f64], modulation: Vec<f64>) -> BlockSaved {
        let norm = self.layer_norm(h);
        let affine = self.affine(&format!("{name}.in_ln"), &norm.normal);
        let modulated = self.shift_and_scale(&affine, &modulation);
        let hidden = self.linear(&format!("{name}.mlp.0"), &modulated);
        let branch = self.linear(&format!("{name}.mlp.2"), &map(&hidden, silu));
        let gated = self.gated(&branch, &modulation);
        let mut post = None;
        if self.config.post_norm {
            let norm = self.layer_norm(&gated);
            add(h, &self.affine(&format!("{name}.post_norm"), &norm.normal));
            post = Some(norm);
        } else {
            add(h, &gated);
        }
        BlockSaved { norm, affine, modulated, hidden, branch, modulation, post }
    }

    /// Turns the gradient of the block's output into that of its input; returns the modulation's, (n, 3 D).
    fn block_backward(
        &self,
        grads: &mut Tensors,
        name: &str,
        saved: &BlockSaved,
        dh: &mut [f64],
    ) -> Vec<f64> {
        let d = self.config.width;
        let dgated = match &saved.post {
            None => dh.to_vec(),
            Some(norm) => {
                let dnormal = self.affine_backward(grads, &format!("{name}.post_norm"), &norm.normal, dh);
                self.layer_norm_backward(norm, &dnormal)
            }
        };
        let dbranch = self.gated(&dgated, &saved.modulation);
        let active = map(&saved.hidden, silu);
        let dactive = self.linear_backward(grads, &format!("{name}.mlp.2"), &active, &dbranch);
        let dhidden = times(&dactive, &saved.hidden, silu_slope);
        let dm = self.linear_backward(grads, &format!("{name}.mlp.0"), &saved.modulated, &dhidden);
        let (daffine, mut drows) = self.shift_and_scale_backward(&saved.affine, &saved.modulation, &dm);
        for (i, drow) in drows.chunks_mut(3 * d).enumerate() {
            (0..d).for_each(|j| drow[2 * d + j] = dgated[i * d + j] * saved.branch[i * d + j]);
        }
        let dnormal = self.affine_backward(grads, &format!("{name}.in_ln"), &saved.norm.normal, &daffine);
        add(dh, &self.layer_norm_backward(&saved.norm, &dnormal));
        drows
    }

    fn gated(&self, x: &[f64], modulation: &[f64]) -> Vec<f64> {
        let d = self.config.width;
        let rows = x.chunks(d).zip(modulation.chunks(3 * d));
        rows.flat_map(|(x, row)| x.iter().zip(&row[2 * d..]).map(|(x, gate)| x * gate)).collect()
    }

    /// x·(1 + scale) + shift, row by row; the modulation has 2 or 3 parts of D columns.
    fn shift_and_scale(&self, x: &[f64], modulation: &[f64]) -> Vec<f64> {
        let d = self.config.width;
        let rows = x.chunks(d).zip(modulation.chunks(modulation.len() / x.len() * d));
        rows.flat_map(|(x, row)| (0..d).map(|j| x[j] * (1.0 + row[d + j]) + row[j])).collect()
    }

    /// Returns dx and the modulation's gradient, a gate's part still zero.
    fn shift_and_scale_backward(&self, x: &[f64], modulation: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let d = self.config.width;
        let columns = modulation.len() / x.len() * d;
        let (mut dx, mut drows) = (vec![0.0; x.len()], vec![0.0; modulation.len()]);
        for (i, dy) in dy.chunks(d).enumerate() {
            let (x, dx) = (&x[i * d..], &mut dx[i * d..]);
            let (row, drow) = (&modulation[i * columns..], &mut drows[i * columns..]);
            for (j, dy) in dy.iter().enumerate() {
                dx[j] = dy * (1.0 + row[d + j]);
                drow[j] = *dy;
                drow[d + j] = dy * x[j];
            }
        }
        (dx, drows)
    }

    fn layer_norm(&self, x: &[f64]) -> Norm {
        let d = self.config.width;
        let (mut normal, mut rstd) = (Vec::new(), Vec::new());
        for x in x.chunks(d) {
            let mean = x.iter().sum::<f64>() / d as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
            let r = (variance + EPS).sqrt().recip();
            normal.extend(x.iter().map(|x| (x - mean) * r));
            rstd.push(r);
        }
        Norm { normal, rstd }
    }

    /// dx = rstd·(dy − mean(dy) − x̂·mean(dy·x̂)), y = x̂.
    fn layer_norm_backward(&self, norm: &Norm, dy: &[f64]) -> Vec<f64> {
        let d = self.config.width;
        let mut dx = Vec::new();
        for ((dy, x), r) in dy.chunks(d).zip(norm.normal.chunks(d)).zip(&norm.rstd) {
            let mean = dy.iter().sum::<f64>() / d as f64;
            let along = dot(dy, x) / d as f64;
            dx.extend(dy.iter().zip(x).map(|(dy, x)| r * (dy - mean - x * along)));
        }
        dx
    }

    fn affine(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (w, b) = (self.param(name, "weight"), self.param(name, "bias"));
        x.chunks(w.len()).flat_map(|x| x.iter().zip(w).zip(b).map(|((x, w), b)| x * w + b)).collect()
    }

    fn affine_backward(&self, grads: &mut Tensors, name: &str, x: &[f64], dy: &[f64]) -> Vec<f64> {
        let w = self.param(name, "weight");
        for (x, dy) in x.chunks(w.len()).zip(dy.chunks(w.len())) {
            let product: Vec<f64> = x.iter().zip(dy).map(|(x, dy)| x * dy).collect();
            add(gradient(grads, name, "weight"), &product);
            add(gradient(grads, name, "bias"), dy);
        }
        dy.chunks(w.len()).flat_map(|dy| dy.iter().zip(w).map(|(dy, w)| dy * w)).collect()
    }

    /// y = x Wᵀ + b with W (out, in).
    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (w, b) = (self.param(name, "weight"), self.param(name, "bias"));
        let inputs = w.len() / b.len();
        x.chunks(inputs).flat_map(|x| w.chunks(inputs).zip(b).map(move |(w, b)| dot(x, w) + b)).collect()
    }

    /// dW += dyᵀ x, db += Σ dy, and returns dx = dy W.
    fn linear_backward(&self, grads: &mut Tensors, name: &str, x: &[f64], dy: &[f64]) -> Vec<f64> {
        let (w, outputs) = (self.param(name, "weight"), self.param(name, "bias").len());
        let inputs = w.len() / outputs;
        let mut dx = vec![0.0; dy.len() / outputs * inputs];
        for ((dx, x), dy) in dx.chunks_mut(inputs).zip(x.chunks(inputs)).zip(dy.chunks(outputs)) {
            w.chunks(inputs).zip(dy).for_each(|(w, dy)| add_scaled(dx, *dy, w));
            let dw = gradient(grads, name, "weight").chunks_mut(inputs);
            dw.zip(dy).for_each(|(dw, dy)| add_scaled(dw, *dy, x));
            add(gradient(grads, name, "bias"), dy);
        }
        dx
    }

    fn param(&self, name: &str, part: &str) -> &[f64] {
        let name = format!("{name}.{part}");
        &self.params.get(&name).unwrap_or_else(|| panic!("the network has no {name}")).1
    }
}

/// Returns the r Chebyshev nodes of the first kind on [0, 1], the largest first.
pub fn nodes(r: usize) -> Vec<f64> {
    (0..r).map(|k| (1.0 + angle(k, r).cos()) / 2.0).collect()
}

/// Returns the (n, r) matrix that takes values at the nodes to values at t: w_k/(t − t_k), normalised.
pub fn interpolation(t: &[f64], r: usize) -> Vec<f64> {
    let points = nodes(r);
    let weight = |k: usize| angle(k, r).sin() * if k.is_multiple_of(2) { 1.0 } else { -1.0 };
    let row = |t: &f64| -> Vec<f64> {
        if points.contains(t) {
            return points.iter().map(|p| if p == t { 1.0 } else { 0.0 }).collect();
        }
        let terms: Vec<f64> = (0..r).map(|k| weight(k) / (t - points[k])).collect();
        let sum: f64 = terms.iter().sum();
        terms.iter().map(|term| term / sum).collect()
    };
    t.iter().flat_map(row).collect()
}

fn angle(k: usize, r: usize) -> f64 {
    (2 * k + 1) as f64 * PI / (2 * r) as f64
}

fn embed(t: f64) -> Vec<f64> {
    let half = TIME_CHANNELS / 2;
    let phases: Vec<f64> = (0..half).map(|i| t * 10000f64.powf(-(i as f64) / half as f64)).collect();
    phases.iter().map(|p| p.cos()).chain(phases.iter().map(|p| p.sin())).collect()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn silu_slope(x: f64) -> f64 {
    let s = 1.0 / (1.0 + (-x).exp());
    s * (1.0 + x * (1.0 - s))
}

fn map(x: &[f64], f: fn(f64) -> f64) -> Vec<f64> {
    x.iter().map(|x| f(*x)).collect()
}

/// dy·f(x), element by element.
fn times(dy: &[f64], x: &[f64], f: fn(f64) -> f64) -> Vec<f64> {
    dy.iter().zip(x).map(|(dy, x)| dy * f(*x)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(y: &mut [f64], x: &[f64]) {
    add_scaled(y, 1.0, x);
}

fn add_scaled(y: &mut [f64], factor: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
}

fn gradient<'a>(grads: &'a mut Tensors, name: &str, part: &str) -> &'a mut [f64] {
    &mut grads.get_mut(&format!("{name}.{part}")).unwrap().1
}

/// SplitMix64 (Steele, Lea, Flood 2014): random weights without the engine under test.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (2.0 * PI * self.uniform()).cos()
    }
}

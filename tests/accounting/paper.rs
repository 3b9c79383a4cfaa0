//! Bytes of device memory that a step must move, and those that PyTorch's eager kernels move, counted on paper.
//!
//! Both by the same rule: each kernel reads its operands once and writes its results once. Activations and products are
//! in bf16, optimizer and data in f32. PyTorch's network is the published one (modulation `direct`), and it gets a bf16 model:
//! autocast, which it would be trained with, casts activations between kernels as well.

use flowprior::train::config::Stage;
use flowprior::train::cost::Work;

/// The two counts.
pub struct Paper {
    /// Bytes that the fused sequence must move.
    pub least: u64,
    pub eager: Eager,
}

/// PyTorch's eager sequence.
pub struct Eager {
    pub kernels: u64,
    pub bytes: u64,
}

/// What a kernel moves: rows of width C (N·C in bf16), square weights (C·C in bf16).
type Kernel = (&'static str, f64, f64);

/// A block forward.
const BLOCK: [Kernel; 11] = [
    ("silu(c)", 2.0, 0.0),
    ("linear C to 3C", 4.0, 3.0),
    ("layer norm", 2.0, 0.0),
    ("1 + scale", 2.0, 0.0),
    ("times that", 3.0, 0.0),
    ("plus shift", 3.0, 0.0),
    ("linear", 2.0, 1.0),
    ("silu", 2.0, 0.0),
    ("linear", 2.0, 1.0),
    ("times gate", 3.0, 0.0),
    ("plus h", 3.0, 0.0),
];

/// Its backward to the block's input.
const BLOCK_INPUT: [Kernel; 7] = [
    ("gate: du", 3.0, 0.0),
    ("linear: dx", 2.0, 1.0),
    ("silu'", 3.0, 0.0),
    ("linear: dx", 2.0, 1.0),
    ("times 1 + scale", 3.0, 0.0),
    ("layer norm: dx", 3.0, 0.0),
    ("sum of both branches", 3.0, 0.0),
];

/// Its backward to parameters.
const BLOCK_PARAMS: [Kernel; 13] = [
    ("gate: dgate", 3.0, 0.0),
    ("linear: dw", 2.0, 1.0),
    ("linear: db", 1.0, 0.0),
    ("linear: dw", 2.0, 1.0),
    ("linear: db", 1.0, 0.0),
    ("dscale", 3.0, 0.0),
    ("layer norm: dgamma, dbeta", 2.0, 0.0),
    ("cat of the three", 6.0, 0.0),
    ("linear C to 3C: dx", 4.0, 3.0),
    ("linear C to 3C: dw", 4.0, 3.0),
    ("linear C to 3C: db", 3.0, 0.0),
    ("silu'", 3.0, 0.0),
    ("sum into dc", 3.0, 0.0),
];

/// Time embedding (256 columns), input and final layer forward, without what is D wide.
const ENDS: [Kernel; 15] = [
    ("t times frequencies", 0.25, 0.0),
    ("cos", 0.5, 0.0),
    ("sin", 0.5, 0.0),
    ("cat", 1.0, 0.0),
    ("cast", 0.75, 0.0),
    ("linear 256 to C", 1.25, 0.25),
    ("silu", 2.0, 0.0),
    ("linear", 2.0, 1.0),
    ("input linear", 1.0, 0.0),
    ("final silu(c)", 2.0, 0.0),
    ("final linear C to 2C", 3.0, 2.0),
    ("final layer norm", 2.0, 0.0),
    ("final 1 + scale", 2.0, 0.0),
    ("final times that, plus shift", 6.0, 0.0),
    ("final linear", 1.0, 0.0),
];

/// The final layer backward to its input.
const ENDS_INPUT: [Kernel; 4] = [
    ("final linear: dx", 1.0, 0.0),
    ("final times 1 + scale", 3.0, 0.0),
    ("final layer norm: dx", 3.0, 0.0),
    ("input linear: dx", 1.0, 0.0),
];

/// Both ends backward to parameters.
const ENDS_PARAMS: [Kernel; 15] = [
    ("final linear: dw", 1.0, 0.0),
    ("final linear: db", 0.0, 0.0),
    ("final dscale", 3.0, 0.0),
    ("final cat", 4.0, 0.0),
    ("final linear C to 2C: dx", 3.0, 2.0),
    ("final linear C to 2C: dw", 3.0, 2.0),
    ("final linear C to 2C: db", 2.0, 0.0),
    ("final silu'", 3.0, 0.0),
    ("input linear: dw", 1.0, 0.0),
    ("input linear: db", 1.0, 0.0),
    ("time linear: dx", 2.0, 1.0),
    ("time linear: dw", 2.0, 1.0),
    ("time linear: db", 1.0, 0.0),
    ("time silu'", 3.0, 0.0),
    ("time linear 256 to C: dw, db", 2.25, 0.25),
];

/// Rows of width D in f32: the data's copies, noise, x_t and its cast, v's cast, the target, the loss and its gradient, cast.
const LOSS: [f64; 9] = [1.25, 1.0, 3.0, 1.5, 1.5, 3.0, 2.0, 3.0, 1.5];
/// Stage 2: the gradient through x_t (cast, times t) and through the target (negative), their sum, and the sum of copies.
const LATENTS: [f64; 5] = [1.5, 2.0, 2.0, 3.0, 1.25];

/// Bytes per parameter: norm, clip, fused AdamW, the average by lerp; weights cast to bf16 and gradients back.
const OPTIMIZER: [f64; 6] = [4.0, 8.0, 28.0, 12.0, 6.0, 6.0];

impl Paper {
    /// Counts a step.
    pub fn of(work: &Work, stage: Stage) -> Self {
        let (n, c, d) = (work.samples * work.flow_mul, work.width(), work.net.data_width());
        let (n, c, d, depth) = (n as f64, c as f64, d as f64, work.depth() as f64);
        let (row, weight, narrow) = (2.0 * n * c, 2.0 * c * c, 4.0 * n * d);
        let trains = stage == Stage::Pretrain;
        let parameters = (2.0 * depth + 3.0 * depth + 2.0 + 1.0) * c * c + (256.0 + 2.0 * d) * c;
        let mut eager = Eager { kernels: 0, bytes: 0 };
        let mut add = |kernels: &[Kernel], times: f64| {
            eager.kernels += kernels.len() as u64 * times as u64;
            let bytes = kernels.iter().map(|(_, rows, weights)| rows * row + weights * weight).sum::<f64>();
            eager.bytes += (times * bytes) as u64;
        };
        add(&BLOCK, depth);
        add(&BLOCK_INPUT, depth);
        add(&ENDS, 1.0);
        add(&ENDS_INPUT, 1.0);
        if trains {
            add(&BLOCK_PARAMS, depth);
            add(&ENDS_PARAMS, 1.0);
        }
        let mut add_bytes = |kernels: &[f64], unit: f64| {
            eager.kernels += kernels.len() as u64;
            eager.bytes += (kernels.iter().sum::<f64>() * unit) as u64;
        };
        add_bytes(&LOSS, narrow);
        match trains {
            true => add_bytes(&OPTIMIZER, parameters),
            false => add_bytes(&LATENTS, narrow),
        }
        Self { least: least(trains, depth, row, weight, narrow, parameters) as u64, eager }
    }
}

/// Modulation at nodes. Forward of a block: layer norm with modulation (2 rows), linear with SiLU (m, z, silu(z)), linear
/// with gate and residual (silu(z), h, h', and u where the gate is trained). Backward: du of the gate (2), dz (du, z, dz), dm (2),
/// layer norm with the residual's gradient (dm, h, dh, dh'); dw reads both factors of each product, and writes f32 gradients.
/// The optimizer reads gradients twice (norm, update), reads and writes master, moments and average, and writes bf16 weights.
fn least(trains: bool, depth: f64, row: f64, weight: f64, narrow: f64, parameters: f64) -> f64 {
    let (forward, backward) = (2.0 + 3.0 + 3.0, 2.0 + 3.0 + 2.0 + 4.0);
    let mut block = (forward + backward) * row + 4.0 * weight;
    if trains {
        block += (1.0 + 1.0 + 4.0) * row + 2.0 * 2.0 * weight; // u, again for dgate, the factors of both dw; dw in f32
    }
    let ends = (1.0 + 2.0 + 1.0 + 1.0 + 3.0 + 1.0) * row + if trains { 2.0 * row } else { 0.0 };
    let loss = (0.25 + 0.5 + 0.25 + 0.5) * narrow; // data, x_t; data, dv: v is never stored
    let optimizer = if trains { (4.0 + 4.0 + 8.0 + 8.0 + 8.0 + 8.0 + 2.0) * parameters } else { 0.0 };
    depth * block + ends + loss + optimizer
}

//! The terms of the bound on W₂ ([`crate::metrics::w2_bound`]) of trained networks.
//!
//! Lipschitz constants are the largest spectral norms of Jacobians at some points: of the decoder at latents, of the velocity
//! at x_t = (1 − t)·noise + t·latent, t in the middle of each of eight equal parts of [0, 1]. Both are from below: the true
//! constants are suprema over all points.

use crate::error::Result;
use crate::float::{DType, FloatX};
use crate::flow::{Objective, Reduction, Times, Weight};
use crate::metrics::{PowerIteration, spectral_norms};
use crate::nn::{Params, VelocityNet};
use crate::rng::{Draw, Stream};
use crate::tensor::Tensor;
use crate::train::align::AutoencoderTask;
use crate::train::field::{Field, Label};

/// Points at which Jacobians are looked at.
pub const POINTS: usize = 64;
/// Times at which the velocity is.
const TIMES: usize = 8;
/// Rounds of the power iteration.
const ROUNDS: usize = 10;
/// The sample that numbers the noise: beyond those of losses.
const NOISE: u64 = 1 << 20;

/// Says whether an objective is the plain mean squared error over t uniform in [0, 1].
pub fn is_plain(objective: &Objective) -> bool {
    objective.weight == Weight::Uniform
        && objective.reduction == Reduction::MeanAll
        && objective.time_range == (0.0, 1.0)
        && !objective.control_variate
        && !matches!(objective.times, Times::LogitNormal { .. })
}

/// Returns the same objective as the plain mean squared error.
pub fn plain(objective: &Objective) -> Objective {
    Objective {
        weight: Weight::Uniform,
        control_variate: false,
        reduction: Reduction::MeanAll,
        time_range: (0.0, 1.0),
        times: Times::Stratified,
        ..objective.clone()
    }
}

/// Estimates the Lipschitz constant of a velocity in x_t, between noise and the first `rows` (N, D).
///
/// # Errors
/// Another width, values that are not finite; a network that has to be told a condition.
pub fn velocity_lipschitz<X: FloatX>(
    net: &VelocityNet,
    params: &Params<X>,
    rows: &[f32],
    seed: u64,
) -> Result<f64> {
    let (width, device) = (net.data_width(), params.flat().device());
    let rows = &rows[..rows.len().min(POINTS * width)];
    let count = rows.len() / width;
    let field = Field::new(net, params, &[Label::Null], count, None)?;
    let tensor = |x: &[f32]| Tensor::from_f32(device, [count, width], x);
    let mut noise = vec![0.0; rows.len()];
    let mut largest = 0.0f64;
    for i in 0..TIMES {
        let t = (i as f32 + 0.5) / TIMES as f32;
        let draw = Draw::new(seed, Stream::Evaluation, i as u64);
        crate::device::Isa::detect().run(
            #[inline(always)]
            |arch| draw.fill_normal_rows(arch, &mut noise, width, 0, |row| (NOISE + row as u64, 0)),
        );
        let x_t: Vec<f32> = rows.iter().zip(&noise).map(|(y, e)| (1.0 - t) * e + t * y).collect();
        let time = || Tensor::from_f32(device, [1], &[t]);
        let velocity = |x: &[f32]| field.velocity(&tensor(x)?, time()?)?.to_f32_vec();
        let vjp = |x: &[f32], u: &[f32]| field.vjp(&tensor(x)?, time()?, &tensor(u)?)?.1.to_f32_vec();
        let norms = spectral_norms(&x_t, width, iteration::<X>(seed), velocity, vjp)?;
        largest = norms.into_iter().fold(largest, f64::max);
    }
    Ok(largest)
}

/// Estimates the Lipschitz constant of an autoencoder's decoder at the first samples of `latents` (N·tokens, latent).
///
/// # Errors
/// Values that are no whole samples, or not finite.
pub fn decoder_lipschitz<X: FloatX>(
    task: &AutoencoderTask<X>,
    params: &Params<X>,
    latents: &[f32],
    seed: u64,
) -> Result<f64> {
    let width = task.net.config().latents();
    let latents = &latents[..latents.len().min(POINTS * width)];
    let decode = |y: &[f32]| task.decode(params, y);
    let vjp = |y: &[f32], u: &[f32]| task.decoder_vjp(params, y, u);
    let norms = spectral_norms(latents, width, iteration::<X>(seed), decode, vjp)?;
    Ok(norms.into_iter().fold(0.0, f64::max))
}

/// The differences step by about the cube root of half a unit in the last place, where rounding and curvature cost alike.
fn iteration<X: FloatX>(seed: u64) -> PowerIteration {
    let step = match X::DTYPE {
        DType::F32 => 4e-3,
        DType::Bf16 => 0.125,
        DType::F16 => 0.06,
    };
    PowerIteration { rounds: ROUNDS, step, seed }
}

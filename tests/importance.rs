//! Objectives whose times are drawn by the weight: the same loss and the same gradients in expectation, with less variance.

#[path = "support/run.rs"]
mod run;

use std::f64::consts::{E, TAU};

use flowprior::flow::objective::Velocity;
use flowprior::flow::{Batch, Draws, LatentGradient, Objective, Reduction, Times, Want, Weight};
use flowprior::nn::{Condition, Form, Mlp, MlpConfig, Params, VelocityNet};
use flowprior::ops::flow_loss::WeightTable;
use flowprior::train::prior::Prior;
use flowprior::{Device, Tensor};
use run::{Outcome, normals, random_prior};

const D: usize = 2;
const RANGE: (f32, f32) = (0.1, 0.95);
const TABLE: [f32; 5] = [0.0, 2.0, 0.5, 0.25, 3.0];

fn weights(device: &Device) -> Outcome<[Weight; 4]> {
    let table = Weight::Table(WeightTable::new(device, &TABLE)?);
    Ok([Weight::Uniform, Weight::Likelihood { clip: 0.9 }, Weight::Kl { clip: 0.9 }, table])
}

/// w(t) by definition, in f64.
fn weight_at(weight: &Weight, t: f64) -> f64 {
    let clipped = t.min(0.9f32 as f64);
    match weight {
        Weight::Likelihood { .. } => clipped / (1.0 - clipped),
        Weight::Kl { .. } => clipped * clipped / (1.0 - clipped),
        Weight::Table(_) => {
            let tent = |i: usize| (1.0 - (t * 4.0 - i as f64).abs()).max(0.0);
            (0..5).map(|i| TABLE[i] as f64 * tent(i)).sum()
        }
        _ => 1.0,
    }
}

fn objective(samples: usize, flow_mul: usize, weight: Weight, times: Times) -> Objective {
    Objective {
        samples,
        flow_mul,
        times,
        time_range: RANGE,
        weight,
        control_variate: false,
        reduction: Reduction::MeanAll,
        form: Form::Nodes(16),
        label_dropout: 0.0,
        recompute: false,
    }
}

fn ways(weight: &Weight, device: &Device) -> Outcome<[(&'static str, Times); 3]> {
    let density = weight.density(device, RANGE)?;
    Ok([
        ("uniform", Times::Uniform),
        ("stratified", Times::Stratified),
        ("importance", Times::Importance(density.into())),
    ])
}

fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

/// A network that is 0 leaves r = noise − y, of which E‖r‖² = ‖y‖² + D is the same at all t; less the control variate it is not, so that
/// times from a wrong density would be seen, and a factor that is not the mean weight, too.
#[test]
fn the_loss_is_the_closed_form_whatever_draws_the_times() -> Outcome {
    let device = Device::cpu_with_threads(2)?;
    let config = MlpConfig { channels: D, width: 8, depth: 1, cond: 0, post_norm: false, time_scale: 1.0 };
    let net = VelocityNet::from(Mlp::new(config)?);
    let params: Params<f32> = net.init(&device, 0)?;
    let velocity = Velocity { net: &net, params: &params, tables: None };
    let (samples, flow_mul, steps) = (4, 512, 40);
    let y = [0.5f32, -1.0, 2.0, 0.0, 0.0, 0.0, 1.0, 1.0];
    let data = Tensor::from_f32(&device, [samples, D], &y)?;
    let square = y.iter().map(|y| (*y as f64).powi(2)).sum::<f64>() / samples as f64;
    for weight in weights(&device)? {
        let cells = 200_000;
        let span = RANGE.1 as f64 - RANGE.0 as f64;
        let of_time = |i: usize| {
            let t = RANGE.0 as f64 + span * (i as f64 + 0.5) / cells as f64;
            let spread = (1.0 - t).powi(2) + t * t;
            let d = D as f64;
            weight_at(&weight, t) * (square + d - d / spread) / d / cells as f64
        };
        let expected = (0..cells).map(of_time).sum::<f64>();
        let mut errors = Vec::new();
        for (name, times) in ways(&weight, &device)? {
            let plain = objective(samples, flow_mul, weight.clone(), times);
            let objective = Objective { control_variate: true, ..plain };
            let loss = |step| -> Outcome<f64> {
                let batch = Batch { data: &data, cond: Condition::default(), first: 0 };
                Ok(objective.evaluate(velocity, batch, Draws::training(5, step), 1.0, Want::Loss)?.loss()?)
            };
            let losses = (0..steps).map(loss).collect::<Outcome<Vec<f64>>>()?;
            let (mean, error) = mean_and_error(&losses);
            let what = format!("{weight:?}, {name}: {mean} ± {error}, expected {expected}");
            assert!((mean - expected).abs() <= 4.0 * error && error <= 0.05, "{what}");
            errors.push(error);
            let in_nats = 0.5 * D as f64 * (TAU * E).ln() + span * (D as f64 * mean);
            let likelihood = matches!(weight, Weight::Likelihood { .. });
            assert_eq!(objective.negative_log_likelihood(mean, D), likelihood.then_some(in_nats));
            let plain = Objective { control_variate: false, ..objective };
            assert_eq!(plain.negative_log_likelihood(mean, D), None);
        }
        assert!(errors[1] < errors[0], "{weight:?}: strata help a mean over rows: {errors:?}");
    }
    Ok(())
}

/// Gradients of latents under a network whose every parameter is random.
#[test]
fn gradients_agree_in_expectation_and_centred_ones_with_detached_ones() -> Outcome {
    let dir = tempfile::tempdir()?;
    let device = Device::cpu_with_threads(2)?;
    let prior: Prior<f32> =
        Prior::read(&device, &random_prior(&dir.path().join("prior.safetensors"), D, 0.05)?, None)?;
    let (samples, flow_mul, steps) = (8, 64, 120);
    let mut y = vec![0.0; samples * D];
    normals(&mut y, 4);
    let data = Tensor::from_f32(&device, [samples, D], &y)?;
    for weight in weights(&device)? {
        let mut found: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
        for (name, times) in ways(&weight, &device)? {
            let objective = objective(samples, flow_mul, weight.clone(), times);
            for kind in [LatentGradient::Full, LatentGradient::Detached, LatentGradient::Centred] {
                let mut all = vec![Vec::new(); samples * D];
                for step in 0..steps {
                    let batch = Batch { data: &data, cond: Condition::default(), first: 0 };
                    let velocity = prior.velocity(objective.form);
                    let draws = Draws::training(9, step);
                    let outcome = objective.evaluate(velocity, batch, draws, 1.0, Want::Latents(kind))?;
                    let dy = outcome.dy.ok_or("no gradient")?.to_f32_vec()?;
                    all.iter_mut().zip(dy).for_each(|(all, g)| all.push(g as f64));
                }
                found.push((format!("{name} {kind:?}"), all.iter().map(|g| mean_and_error(g)).collect()));
            }
        }
        let compare = |a: usize, b: usize| {
            let ((one, a), (other, b)) = (&found[a], &found[b]);
            let pairs = || a.iter().zip(b);
            let worst = pairs().map(|(a, b)| (a.0 - b.0).abs() / a.1.hypot(b.1)).fold(0.0, f64::max);
            assert!(worst <= 4.5, "{weight:?}: {one} and {other} are {worst} standard errors apart");
            let size = a.iter().map(|a| a.0.powi(2)).sum::<f64>().sqrt();
            let error = pairs().map(|(a, b)| a.1.hypot(b.1).powi(2)).sum::<f64>().sqrt();
            assert!(
                error <= 0.15 * size,
                "{weight:?}: {one} and {other}: an error of {error} in {size} tells little"
            );
        };
        for kind in 0..3 {
            compare(kind, 3 + kind);
            compare(kind, 6 + kind);
        }
        for way in 0..3 {
            compare(3 * way + 1, 3 * way + 2);
            let noise = |i: usize| found[i].1.iter().map(|g| g.1.powi(2)).sum::<f64>();
            let (detached, centred) = (noise(3 * way + 1), noise(3 * way + 2));
            assert!(centred < detached, "{weight:?}: {}: {centred} against {detached}", found[3 * way].0);
        }
    }
    Ok(())
}

//! The parts of the loss of stage 2: when each takes effect, and by how much.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flowprior::nn::Grads;
use flowprior::tensor::Tensor;
use flowprior::train::Resume;
use flowprior::train::align::{AutoencoderTask, LATENTS, LatentTask};
use flowprior::train::engine::{Losses, Task};
use flowprior::train::run::Trainee;
use half::f16;

use super::run::{Kind, Outcome, assert_same, normals, random_prior, series, tensors, write_rows};
use super::{device, frozen};

/// Losses and gradients of one step of an autoencoder at its first weights.
fn autoencoder_step(prior: &Path, step: u64, sets: &[&str]) -> Outcome<(Losses, Grads)> {
    let config = Kind::Autoencoder.config(Some(prior), sets)?;
    let (mut task, engine) = AutoencoderTask::new(&config, &device()?, frozen::<f32>(&config)?)?;
    let mut grads = Grads::zeros(&device()?, task.net.layout().clone());
    let losses = task.losses(&engine.optimizer.params, step, 1.0, &mut grads)?;
    Ok((losses, grads))
}

fn part(losses: &Losses, name: &str) -> f64 {
    losses.parts.iter().find(|(n, _)| *n == name).map_or(f64::NAN, |(_, x)| *x)
}

#[test]
fn alignment_begins_at_flow_start_and_warms_up_from_there() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let run = |name: &str, sets: &[&str]| -> Outcome<PathBuf> {
        let run = dir.path().join(name);
        let sets = [&["train.checkpoint_every=1", "train.keep=100", "train.steps=12"], sets].concat();
        Kind::Autoencoder.run(&Kind::Autoencoder.config(Some(&prior), &sets)?, &run, Resume::Never)?;
        Ok(run)
    };
    let none = run("none", &["align.lambda=0"])?;
    let sudden = run("sudden", &["align.lambda=0.5", "align.flow_start=5"])?;
    let slow = run("slow", &["align.lambda=0.5", "align.flow_start=5", "align.flow_warmup=4"])?;
    // The record after step s + 1 tells of step s.
    let weights = |run: &Path| -> Outcome<Vec<f64>> {
        Ok(series(run, "train", "alignment_weight")?.into_iter().map(|(_, w)| w).collect())
    };
    assert_eq!(weights(&none)?, [0.0; 12]);
    assert_eq!(weights(&sudden)?, [[0.0; 5].as_slice(), &[0.5; 7]].concat());
    assert_eq!(weights(&slow)?, [[0.0; 6].as_slice(), &[0.125, 0.25, 0.375], &[0.5; 3]].concat());
    // And the gradient obeys: weights part with those of a run without alignment in exactly that step.
    for (run, last_same) in [(&sudden, 5), (&slow, 6)] {
        assert_same(&tensors(&none, last_same)?, &tensors(run, last_same)?, "before the alignment");
        let next = last_same + 1;
        assert_ne!(tensors(&none, next)?["model.safetensors"], tensors(run, next)?["model.safetensors"]);
    }
    Ok(())
}

#[test]
fn the_adaptive_weight_is_the_ratio_of_the_gradients_at_the_last_encoder_weight() -> Outcome {
    const LAST: &str = "encoder.2.weight";
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    for step in [0, 7] {
        let (_, reconstruction) = autoencoder_step(&prior, step, &["align.lambda=0"])?;
        let (_, both) = autoencoder_step(&prior, step, &["align.lambda=1"])?;
        let (rec, both) =
            (reconstruction.named(LAST)?.to_f32_vec().unwrap(), both.named(LAST)?.to_f32_vec().unwrap());
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| (x as f64).powi(2)).sum::<f64>().sqrt();
        let align = norm(&mut both.iter().zip(&rec).map(|(b, r)| b - r));
        let expected = norm(&mut rec.iter().copied()) / (align + 1e-4);
        assert!((expected - 1.0).abs() > 0.05, "a ratio of {expected} tests nothing");
        let sets = ["align.lambda=0.3", "align.adaptive=true"];
        let (losses, _) = autoencoder_step(&prior, step, &sets)?;
        let weight = part(&losses, "alignment_weight");
        assert!((weight - 0.3 * expected).abs() < 1e-3 * weight, "{weight} against 0.3 × {expected}");
        let sum = part(&losses, "reconstruction") + weight * part(&losses, "alignment");
        assert!((losses.loss - sum).abs() < 1e-9 * sum, "{losses:?}");
    }
    let before = autoencoder_step(&prior, 3, &["align.adaptive=true", "align.flow_start=4"])?.0;
    assert_eq!(part(&before, "alignment_weight"), 0.0);
    Ok(())
}

#[test]
fn an_adaptive_weight_that_overflows_f16_skips_the_step_instead_of_dropping_the_alignment() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let sets = [
        "dtype=f16",
        "align.adaptive=true",
        "scaler.init=17179869184",
        "scaler.interval=4",
        "train.steps=80",
    ];
    let config = Kind::Autoencoder.config(Some(&prior), &sets)?;
    let (mut task, mut engine) = AutoencoderTask::new(&config, &device()?, frozen::<f16>(&config)?)?;
    let mut good = 0;
    for step in 0..80 {
        let report = engine.advance_and_look(&mut task)?;
        if report.skipped.is_none() {
            good += 1;
            let weight = part(&report.losses, "alignment_weight");
            assert!(weight > 0.0, "step {step}, scale {}: weight {weight}", report.loss_scale);
        }
    }
    assert!((20..80).contains(&good), "{good} good steps");
    Ok(())
}

/// Sample standard deviation and mean.
fn spread(y: &[f32]) -> (f64, f64) {
    let n = y.len() as f64;
    let mean = y.iter().map(|y| *y as f64).sum::<f64>() / n;
    let square = y.iter().map(|y| (*y as f64 - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (square.sqrt(), mean)
}

#[test]
fn the_std_penalty_adds_its_value_and_its_gradient() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let of = |weight: &str| -> Outcome<(Losses, Vec<f32>, Vec<f32>)> {
        let config = Kind::Latents.config(Some(&prior), &[weight, "align.init_std=3"])?;
        let (mut task, engine) = LatentTask::new(&config, &device()?, frozen::<f32>(&config)?)?;
        let params = &engine.optimizer.params;
        let mut grads = Grads::zeros(&device()?, params.layout().clone());
        let losses = task.losses(params, 0, 1.0, &mut grads)?;
        Ok((
            losses,
            grads.named(LATENTS)?.to_f32_vec().unwrap(),
            params.named(LATENTS)?.to_f32_vec().unwrap(),
        ))
    };
    let (plain, plain_grad, y) = of("align.std_weight=0")?;
    let (losses, grad, _) = of("align.std_weight=0.7")?;
    let (std, mean) = spread(&y);
    let penalty = (std - 1.0).powi(2);
    assert!((part(&losses, "std") - penalty).abs() < 1e-5 * penalty, "{losses:?}, {penalty}");
    assert_eq!(part(&losses, "alignment"), plain.loss);
    assert!((losses.loss - plain.loss - 0.7 * penalty).abs() < 1e-5, "{losses:?}");
    let n = y.len() as f64;
    for ((g, p), y) in grad.iter().zip(&plain_grad).zip(&y) {
        let expected = 0.7 * 2.0 * (std - 1.0) * (*y as f64 - mean) / ((n - 1.0) * std);
        assert!(
            ((g - p) as f64 - expected).abs() < 1e-5 * (1.0 + expected.abs()),
            "{g} - {p} against {expected}"
        );
    }
    // An autoencoder has it from the first step on, whatever `flow_start` says of the alignment.
    let sets = ["align.std_weight=0.7", "align.flow_start=100"];
    let (losses, grads) = autoencoder_step(&prior, 0, &sets)?;
    let (_, without) = autoencoder_step(&prior, 0, &["align.flow_start=100"])?;
    let expected = part(&losses, "reconstruction") + 0.7 * part(&losses, "std");
    assert!((losses.loss - expected).abs() < 1e-9, "{losses:?}");
    assert_ne!(
        grads.named("encoder.0.weight")?.to_f32_vec().unwrap(),
        without.named("encoder.0.weight")?.to_f32_vec().unwrap()
    );
    assert_eq!(
        grads.named("decoder.0.weight")?.to_f32_vec().unwrap(),
        without.named("decoder.0.weight")?.to_f32_vec().unwrap()
    );
    Ok(())
}

#[test]
fn evaluation_measures_standardised_latents_as_training_does() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let mut values = vec![0.0; 64 * 4];
    normals(&mut values, 2);
    let data = write_rows(&dir.path().join("data"), &values, 4, 64)?;
    // One batch is all the data: the order alone differs between training and evaluation.
    let source = format!("data.path='{}'", data.display());
    for std_latents in ["align.std_latents=false", "align.std_latents=true"] {
        let config = Kind::Autoencoder.config(Some(&prior), &[&source, "optim.ema=[]", std_latents])?;
        let (mut task, engine) = AutoencoderTask::new(&config, &device()?, frozen::<f32>(&config)?)?;
        let mut grads = Grads::zeros(&device()?, task.net.layout().clone());
        let losses = task.losses(&engine.optimizer.params, 0, 1.0, &mut grads)?;
        let measured = BTreeMap::from_iter(Trainee::<f32>::evaluate(&mut task, &engine)?);
        let trained = part(&losses, "reconstruction");
        assert!(
            (measured["reconstruction"] - trained).abs() < 1e-5 * trained,
            "{std_latents}: {measured:?}, {losses:?}"
        );
    }
    Ok(())
}

#[test]
fn normalised_targets_do_not_depend_on_the_scale_of_latents() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let loss = |std: &str, norm: &str| -> Outcome<f64> {
        let config = Kind::Latents.config(Some(&prior), &[std, norm])?;
        let (task, engine) = LatentTask::new(&config, &device()?, frozen::<f32>(&config)?)?;
        let latents = engine.optimizer.params.named(LATENTS)?;
        let y = Tensor::from_f32(&device()?, latents.shape(), &latents.to_f32_vec().unwrap())?;
        Ok(task.alignment.fresh_losses(&y, 1, 0..1)?[0])
    };
    let (small, large) = ("align.init_std=1", "align.init_std=10");
    let (a, b) = (loss(small, "flow.norm_target=true")?, loss(large, "flow.norm_target=true")?);
    assert!((a - b).abs() < 1e-4 * a, "{a} {b}");
    let (a, b) = (loss(small, "flow.norm_target=false")?, loss(large, "flow.norm_target=false")?);
    assert!(b > 10.0 * a, "{a} {b}");
    Ok(())
}

#[test]
fn a_detached_gradient_with_the_uniform_weight_is_refused() -> Outcome {
    let prior = Path::new("anywhere");
    let error = Kind::Latents.config(Some(prior), &["align.gradient=detached"]).unwrap_err().to_string();
    assert!(error.starts_with("align.gradient = \"detached\" needs flow.weight = \"kl\""), "{error}");
    assert!(error.contains("collapse"), "{error}");
    Ok(())
}

//! The terms that match distributions: gradients, natural weight, what they do to latents, and whom they refuse.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use flowprior::data::toy::Toy;
use flowprior::metrics::{mode_occupancy, sliced_wasserstein2};
use flowprior::nn::{Grads, Params};
use flowprior::train::align::{AutoencoderTask, LATENTS, LatentTask};
use flowprior::train::engine::{Losses, Task};
use flowprior::train::{Resume, checkpoint};
use flowprior::{Device, Result};

use super::run::{Kind, Outcome, assert_same, random_prior, series, tensors};
use super::{device, frozen, trained_prior};

const TERMS: [&str; 3] = ["align.repulsion=1", "align.sliced_wasserstein=1", "align.divergence=1"];

/// Losses and gradient of one step of free latents: those they start with, moved by `moved`.
fn latent_step(prior: &Path, sets: &[&str], moved: &[f32]) -> Outcome<(Losses, Vec<f32>)> {
    let config = Kind::Latents.config(Some(prior), sets)?;
    let (mut task, engine) = LatentTask::new(&config, &device()?, frozen::<f32>(&config)?)?;
    let layout = engine.optimizer.params.layout().clone();
    let mut values = engine.optimizer.params.flat().to_f32_vec()?;
    values.iter_mut().zip(moved).for_each(|(y, by)| *y += by);
    let params = Params::from_flat(&device()?, layout.clone(), &values)?;
    let mut grads = Grads::zeros(&device()?, layout);
    let losses = task.losses(&params, 3, 1.0, &mut grads)?;
    Ok((losses, grads.named(LATENTS)?.to_f32_vec()?))
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|x| (*x as f64).powi(2)).sum::<f64>().sqrt()
}

/// A prior that is no constant: its head has weights of 0.3.
fn prior_in(dir: &Path) -> Outcome<std::path::PathBuf> {
    random_prior(&dir.join("prior.safetensors"), 2, 0.3)
}

#[test]
fn each_gradient_is_the_slope_of_the_loss_that_is_reported() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = prior_in(dir.path())?;
    for term in TERMS {
        let sets =
            ["data.toy=gaussians", "flow.weight=likelihood", "flow.reduction=sum_dims_mean_rows", term];
        let (_, gradient) = latent_step(&prior, &sets, &[])?;
        let (_, alone) = latent_step(&prior, &sets[..3], &[])?;
        let of_term: Vec<f32> = gradient.iter().zip(&alone).map(|(a, b)| a - b).collect();
        // Along the term's own gradient, by 10⁻³: neighbours and ranks stay but for a few.
        let step = 1e-3 / norm(&of_term);
        let loss = |sign: f64, sets: &[&str]| -> Outcome<f64> {
            let moved: Vec<f32> = of_term.iter().map(|g| (sign * step * *g as f64) as f32).collect();
            Ok(latent_step(&prior, sets, &moved)?.0.loss)
        };
        let slope =
            |sets: &[&str]| -> Outcome<f64> { Ok((loss(1.0, sets)? - loss(-1.0, sets)?) / (2.0 * step)) };
        let (found, expected) = (slope(&sets)? - slope(&sets[..3])?, norm(&of_term).powi(2));
        assert!(norm(&of_term) > 1e-3, "{term} has no gradient");
        assert!((found / expected - 1.0).abs() < 0.03, "{term}: slope {found}, gradient {expected}");
    }
    Ok(())
}

/// Under a mean over dimensions the loss is 1/D of that under a sum, all terms alike; and half the range of times, twice the weight of the terms.
#[test]
fn weights_mean_the_same_under_both_reductions() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = prior_in(dir.path())?;
    let all = [&["data.toy=gaussians", "flow.weight=likelihood"], &TERMS[..]].concat();
    let with = |more: &[&str]| latent_step(&prior, &[&all, more].concat(), &[]);
    let (summed, sum) = with(&["flow.reduction=sum_dims_mean_rows"])?;
    let (averaged, mean) = with(&["flow.reduction=mean_all"])?;
    assert!((summed.loss / averaged.loss - 2.0).abs() < 1e-5, "{summed:?} {averaged:?}");
    let error: Vec<f32> = sum.iter().zip(&mean).map(|(a, b)| a - 2.0 * b).collect();
    assert!(norm(&error) < 1e-5 * norm(&sum));
    let parts = BTreeMap::from_iter(summed.parts.clone());
    let expected = parts["alignment"] - parts["entropy"] + 2.0 * parts["sliced_w2"] + parts["divergence"];
    assert!((summed.loss - expected).abs() < 1e-9, "{summed:?}");
    assert_eq!(parts.get("entropy"), BTreeMap::from_iter(averaged.parts).get("entropy"));
    let half = with(&["flow.reduction=sum_dims_mean_rows", "flow.time_max=0.5"])?.0;
    let parts = BTreeMap::from_iter(half.parts.clone());
    let terms = -parts["entropy"] + 2.0 * parts["sliced_w2"] + parts["divergence"];
    assert!((half.loss - parts["alignment"] - 2.0 * terms).abs() < 1e-9, "{half:?}");
    Ok(())
}

/// Spread over sigma of latents aligned to five Gaussians, and their sliced distance from the data.
fn aligned(prior: &Path, more: &[&str]) -> Outcome<(f64, f64)> {
    let sets = ["data.toy=gaussians", "align.latents=300", "flow.weight=likelihood", "optim.clip=0"];
    let constant = ["optim.lr=1e-2", "optim.schedule.kind=constant", "train.steps=800"];
    let config = Kind::Latents.config(Some(prior), &[&sets[..], &constant, more].concat())?;
    let (mut task, mut engine) = LatentTask::new(&config, &device()?, frozen::<f32>(&config)?)?;
    for _ in 0..config.train.steps {
        engine.advance(&mut task)?;
    }
    let latents = task.latents(&engine.optimizer.params)?.to_f32_vec()?;
    let mixture = Toy::Gaussians.mixture().ok_or("no mixture")?;
    let modes: Vec<f32> = mixture.means.iter().flatten().map(|x| *x as f32).collect();
    let spread = mode_occupancy(&latents, &modes, 2, mixture.std)?.spread;
    let data = task.alignment.reference.as_ref().ok_or("no data")?;
    let distance = sliced_wasserstein2(&latents, data.rows(), 2, 64, 1)?;
    println!("{more:?}: spread {spread:.3}, sliced distance {distance:.4}");
    Ok((spread, distance))
}

#[test]
fn repulsion_raises_the_spread_and_the_sliced_term_brings_latents_to_the_data() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = trained_prior(&dir.path().join("prior"), &["train.steps=1500"])?.join("prior.safetensors");
    let alone = aligned(&prior, &[])?;
    // By the fifth neighbour: few latents and a rough prior, whose stragglers between modes decide the spread at k = 1.
    let repelled = aligned(&prior, &["align.repulsion=1", "align.repulsion_k=5"])?;
    assert!(repelled.0 > 1.08 * alone.0, "{repelled:?} {alone:?}");
    let matched = aligned(&prior, &["align.sliced_wasserstein=100"])?;
    assert!(matched.1 < 0.8 * alone.1, "{matched:?} {alone:?}");
    Ok(())
}

#[test]
fn runs_have_the_same_bits_on_any_number_of_threads() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = prior_in(dir.path())?;
    let run = |threads: usize| -> Outcome<Vec<u32>> {
        let own = [
            "data.toy=gaussians",
            "align.latents=300",
            "align.repulsion_start=4",
            "align.repulsion_cooling=5",
        ];
        let config = Kind::Latents.config(Some(&prior), &[&own, &TERMS[..]].concat())?;
        let device = Device::cpu_with_threads(threads)?;
        let read = flowprior::train::prior::Prior::<f32>::read(&device, &prior, None)?;
        let (mut task, mut engine) = LatentTask::new(&config, &device, read)?;
        for _ in 0..10 {
            engine.advance(&mut task)?;
        }
        Ok(engine.optimizer.params.flat().to_f32_vec()?.into_iter().map(f32::to_bits).collect())
    };
    let one = run(1)?;
    assert_eq!(one, run(3)?);
    assert_eq!(one, run(8)?);
    Ok(())
}

#[test]
fn an_autoencoder_is_matched_with_the_weight_of_its_alignment() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = trained_prior(&dir.path().join("prior"), &["train.steps=20"])?.join("prior.safetensors");
    let sets = [
        "align.lambda=0.25",
        "align.flow_start=4",
        "align.repulsion=2",
        "align.sliced_wasserstein=3",
        "align.divergence=1",
    ];
    let config = Kind::Autoencoder.config(Some(&prior), &sets)?;
    let (mut task, engine) = AutoencoderTask::new(&config, &device()?, frozen::<f32>(&config)?)?;
    let mut losses = |step| -> Result<Losses> {
        let mut grads = Grads::zeros(&device()?, task.net.layout().clone());
        task.losses(&engine.optimizer.params, step, 1.0, &mut grads)
    };
    let before = losses(3)?;
    assert!(before.parts.iter().all(|(name, _)| *name != "entropy"), "{before:?}");
    let found = losses(4)?;
    let parts = BTreeMap::from_iter(found.parts.clone());
    let terms = (-2.0 * parts["entropy"] + 3.0 * 2.0 * parts["sliced_w2"] + parts["divergence"]) / 2.0;
    let expected = parts["reconstruction"] + 0.25 * (parts["alignment"] + terms);
    assert!((found.loss - expected).abs() < 1e-9, "{found:?}");
    Ok(())
}

#[test]
fn parts_are_in_the_records_of_a_run_that_resumes_exactly() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = prior_in(dir.path())?;
    let sets = [&["data.toy=gaussians", "train.checkpoint_every=12", "train.keep=2"], &TERMS[..]].concat();
    let config = Kind::Latents.config(Some(&prior), &sets)?;
    let whole = dir.path().join("whole");
    Kind::Latents.run(&config, &whole, Resume::Never)?;
    for part in ["alignment", "entropy", "sliced_w2", "divergence"] {
        assert_eq!(series(&whole, "train", part)?.len(), 24, "{part}");
    }
    let (finished, records) = (tensors(&whole, 24)?, series(&whole, "train", "loss")?);
    fs::remove_dir_all(checkpoint::folder(&whole.join("checkpoints"), 24))?;
    Kind::Latents.run(&config, &whole, Resume::Auto)?;
    assert_same(&finished, &tensors(&whole, 24)?, "resumed at step 12");
    assert_eq!(records, series(&whole, "train", "loss")?);
    Ok(())
}

#[test]
fn a_sliced_distance_without_data_is_refused_with_a_sentence() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = prior_in(dir.path())?;
    let refused = |kind: Kind, sets: &[&str]| -> Outcome<String> {
        let config = kind.config(Some(&prior), sets)?;
        Ok(kind.run(&config, &dir.path().join(format!("{kind:?}")), Resume::Never).unwrap_err().to_string())
    };
    let message = refused(Kind::Latents, &["align.sliced_wasserstein=1"])?;
    assert_eq!(
        message,
        "align.sliced_wasserstein compares latents with the data that the prior was trained on: its file does not name them (set \
         data.path, data.toy or data.builtin)"
    );
    let message = refused(Kind::Latents, &["align.sliced_wasserstein=1", "data.builtin=digits"])?;
    assert!(message.contains("width") || message.contains("data"), "{message}");
    Ok(())
}

//! Five steps of transformers, in this process: on the CUDA device they follow the CPU, captured or not.

use std::path::Path;

use flowprior::train::align::AutoencoderTask;
use flowprior::train::engine::{Engine, Task};
use flowprior::train::pretrain::Pretrain;
use flowprior::train::prior::Prior;
use flowprior::{Device, FloatX};
use half::bf16;

use crate::run::{DIT, Kind, Outcome, VIT, random_prior};
use crate::{SMALL, emulator};

/// Makes five steps of a DiT with labels that fills holes.
fn dit_steps<X: FloatX>(device: &Device, sets: &[&str]) -> Outcome<Seen> {
    let own =
        ["model.inpaint=true", "train.steps=5", "train.batch=8", "train.micro_batches=2", "optim.lr=2e-3"];
    let dtype = format!("dtype={}", X::DTYPE);
    let config = Kind::Pretrain.config(None, &[SMALL, DIT, &own, &[&dtype], sets].concat())?;
    let (task, engine) = Pretrain::new::<X>(&config, device)?;
    five_steps(task, engine)
}

/// Does the same with vision transformers, a projection and the prior, all of them trained.
fn vit_steps<X: FloatX>(device: &Device, prior: &Path, sets: &[&str]) -> Outcome<Seen> {
    let own = [
        "align.joint=true",
        "align.projection=true",
        "align.autoencoder.latent=4",
        "align.reconstruction=l1",
        "train.steps=5",
        "train.batch=8",
        "train.micro_batches=2",
    ];
    let dtype = format!("dtype={}", X::DTYPE);
    let config = Kind::Autoencoder.config(Some(prior), &[SMALL, VIT, &own, &[&dtype], sets].concat())?;
    let (task, engine) = AutoencoderTask::new(&config, device, Prior::<X>::read(device, prior, None)?)?;
    five_steps(task, engine)
}

/// Losses, norms of gradients, and what was trained.
type Seen = ([Vec<f64>; 2], Vec<f32>);

fn five_steps<X: FloatX>(mut task: impl Task<X>, mut engine: Engine<X>) -> Outcome<Seen> {
    let mut seen = [Vec::new(), Vec::new()];
    for _ in 0..5 {
        let report = engine.advance_and_look(&mut task)?;
        seen[0].push(report.losses.loss);
        seen[1].push(report.grad_norm);
    }
    Ok((seen, engine.optimizer.params.flat().to_f32_vec()?))
}

/// Panics where losses or norms differ by more than a share of them.
fn assert_near(a: &Seen, b: &Seen, most: f64) {
    let all = a.0.iter().flatten().zip(b.0.iter().flatten());
    let furthest = all.map(|(a, b)| (a - b).abs() / a).fold(0.0, f64::max);
    assert!(furthest <= most, "{furthest} of a loss or a norm apart: {:?}, {:?}", a.0, b.0);
}

#[test]
fn transformers_that_train_with_their_prior_follow_the_cpu_and_are_captured() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let (cpu, device) = (Device::cpu_with_threads(1)?, Device::cuda(&emulator::options())?);
    let captured = vit_steps::<f32>(&device, &prior, &["device=cuda"])?;
    let host = vit_steps::<f32>(&cpu, &prior, &["device=cpu"])?;
    assert_near(&host, &captured, 1e-4);
    // A width of 16 averages little of what bf16 rounds.
    assert_near(&host, &vit_steps::<bf16>(&device, &prior, &["device=cuda"])?, 0.06);
    let launched = vit_steps::<f32>(&device, &prior, &["device=cuda", "train.graph=false"])?;
    assert_eq!(captured.0, launched.0);
    assert!(captured.1.iter().zip(&launched.1).all(|(a, b)| a.to_bits() == b.to_bits()), "kernel by kernel");
    Ok(())
}

/// Labels come from the host, or belong to rows that the device keeps; a captured step finds those of each batch, and draws the holes of
/// its step.
#[test]
fn a_dit_with_labels_and_holes_follows_the_cpu_and_is_captured() -> Outcome {
    let (cpu, device) = (Device::cpu_with_threads(1)?, Device::cuda(&emulator::options())?);
    let kept = dit_steps::<f32>(&device, &["device=cuda", "data.on_device=yes"])?;
    let host = dit_steps::<f32>(&cpu, &["device=cpu"])?;
    let narrow = dit_steps::<bf16>(&device, &["device=cuda"])?;
    assert_near(&host, &kept, 1e-4);
    assert_near(&host, &narrow, 0.02);
    let read = dit_steps::<f32>(&device, &["device=cuda", "data.on_device=no", "train.graph=false"])?;
    assert_eq!(kept.0, read.0);
    assert!(kept.1.iter().zip(&read.1).all(|(a, b)| a.to_bits() == b.to_bits()), "read, kernel by kernel");
    Ok(())
}

//! What the two stages promise: frozen priors, first losses, skipped steps, loss scales, weights of the parts.

mod coders;
mod matching;
mod parts;
mod precision;
#[path = "../support/run.rs"]
mod run;
mod skips;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use flowprior::FloatX;
use flowprior::Result;
use flowprior::device::Device;
use flowprior::nn::{Form, Grads};
use flowprior::train::align::{AutoencoderTask, LATENTS};
use flowprior::train::engine::{Engine, Task};
use flowprior::train::pretrain::Pretrain;
use flowprior::train::prior::Prior;
use flowprior::train::run::Trainee;
use flowprior::train::{Config, Resume, checkpoint};
use run::{Kind, Outcome, normals, random_prior, series, write_rows};

fn device() -> Result<Device> {
    Device::cpu_with_threads(2)
}

fn frozen<X: FloatX>(config: &Config) -> Result<Prior<X>> {
    Prior::read(&device()?, config.align.prior()?, None)
}

/// Every bit that a step may change.
fn state<P: FloatX>(engine: &Engine<P>) -> Vec<u32> {
    let o = &engine.optimizer;
    let mut bits: Vec<u32> = o.params.flat().to_f32_vec().unwrap().into_iter().map(f32::to_bits).collect();
    let buffers = [Some(&o.m), o.master.as_ref(), o.v.as_ref()];
    for buffer in buffers.into_iter().flatten().chain(o.emas.iter().map(|(_, ema)| ema)) {
        bits.extend(buffer.to_f32_vec().unwrap().into_iter().map(f32::to_bits));
    }
    bits.push(o.count as u32);
    bits
}

fn mean(values: &[(u64, f64)]) -> f64 {
    values.iter().map(|(_, x)| x).sum::<f64>() / values.len() as f64
}

#[test]
fn a_frozen_prior_gets_no_gradient_and_its_bytes_never_change() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let original = fs::read(&prior)?;
    for kind in [Kind::Latents, Kind::Autoencoder] {
        let config = kind.config(Some(&prior), &[])?;
        let run = dir.path().join(format!("{kind:?}"));
        kind.run(&config, &run, Resume::Never)?;
        assert_eq!(fs::read(&prior)?, original, "{kind:?}");
        assert_eq!(
            fs::read(run.join("prior.safetensors"))?,
            original,
            "{kind:?}: the copy in the run folder"
        );
        let saved = checkpoint::load(&checkpoint::folder(&run.join("checkpoints"), 24))?;
        for group in saved.groups() {
            for name in saved.names(group)? {
                let own = name == LATENTS || name.starts_with("encoder.") || name.starts_with("decoder.");
                assert!(own, "{kind:?}: {group} holds `{name}`, which is not what stage 2 trains");
            }
        }
    }
    Ok(())
}

#[test]
fn no_gradient_of_a_frozen_prior_exists_in_memory() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let config = Kind::Autoencoder.config(Some(&prior), &[])?;
    let (mut task, mut engine) = AutoencoderTask::new(&config, &device()?, frozen::<f32>(&config)?)?;
    let before = task.alignment.prior.params.flat().to_f32_vec().unwrap();
    let first = state(&engine);
    for _ in 0..5 {
        engine.advance(&mut task)?;
    }
    assert_ne!(state(&engine), first, "nothing was trained");
    assert_eq!(task.alignment.prior.params.flat().to_f32_vec().unwrap(), before);
    let theirs: Vec<_> = engine.grads().layout().entries().iter().map(|e| e.name.as_str()).collect();
    for entry in task.alignment.prior.net.layout().entries() {
        assert!(!theirs.contains(&entry.name.as_str()), "{} has a gradient", entry.name);
    }
    Ok(())
}

#[test]
fn the_loss_at_initialisation_is_two_for_unit_variance_data() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (rows, width) = (8192, 8);
    let mut values = vec![0.0; rows * width];
    normals(&mut values, 11);
    values.iter_mut().for_each(|x| *x = 3.0 + 5.0 * *x);
    let data = write_rows(&dir.path().join("data"), &values, width, rows)?;
    let path = format!("data.path='{}'", data.display());
    for (source, more) in [
        (path.as_str(), "data.standardise=true"),
        (path.as_str(), "flow.norm_target=true"),
        ("data.builtin=tokens", "data.standardise=true"),
    ] {
        let sets =
            [source, more, "train.batch=8192", "flow.time=stratified", "model.width=16", "model.depth=1"];
        let config = Kind::Pretrain.config(None, &sets)?;
        let (mut task, engine) = Pretrain::new::<f32>(&config, &device()?)?;
        let mut loss = 0.0;
        for step in 0..4 {
            let mut grads = Grads::zeros(&device()?, task.net.layout().clone());
            loss +=
                Task::<f32>::losses(&mut task, &engine.optimizer.params, step, 1.0, &mut grads)?.loss / 4.0;
        }
        assert!((loss - 2.0).abs() <= 0.02, "{source} {more}: {loss}");
    }
    Ok(())
}

#[test]
fn evaluation_normalises_targets_as_training_does() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut values = vec![0.0; 4096 * 8];
    normals(&mut values, 11);
    values.iter_mut().for_each(|x| *x = 3.0 + 5.0 * *x);
    let data = write_rows(&dir.path().join("data"), &values, 8, 4096)?;
    let source = format!("data.path='{}'", data.display());
    let config = Kind::Pretrain.config(None, &[&source, "flow.norm_target=true", "train.batch=4096"])?;
    let (mut task, engine) = Pretrain::new::<f32>(&config, &device()?)?;
    let measured = BTreeMap::from_iter(Trainee::<f32>::evaluate(&mut task, &engine)?);
    assert!((measured["loss"] - 2.0).abs() <= 0.02, "{measured:?}");
    Ok(())
}

/// A prior that has learned five Gaussians, roughly.
fn trained_prior(dir: &Path, more: &[&str]) -> Outcome<PathBuf> {
    let sets = [
        &["train.steps=400", "train.batch=256", "flow.flow_mul=1", "optim.ema=[0.98]", "optim.lr=4e-3"],
        more,
    ]
    .concat();
    let config = Kind::Pretrain.config(None, &sets)?;
    Kind::Pretrain.run(&config, dir, Resume::Never)?;
    Ok(dir.to_owned())
}

#[test]
fn aligning_latents_lowers_their_loss_with_the_full_and_the_detached_gradient() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = trained_prior(&dir.path().join("prior"), &[])?;
    for (name, sets) in [
        ("paper", ["flow.weight=uniform", "align.gradient=full", "flow.time=uniform"]),
        ("likelihood", ["flow.weight=likelihood", "align.gradient=full", "flow.time=importance"]),
        ("detached", ["flow.weight=kl", "align.gradient=detached", "flow.time=stratified"]),
        ("centred", ["flow.weight=kl", "align.gradient=centred", "flow.time=importance"]),
    ] {
        let more = ["align.latents=500", "train.steps=300", "train.eval_every=300", "align.init_std=2"];
        let config = Kind::Latents.config(Some(&prior), &[&sets[..], &more[..]].concat())?;
        let run = dir.path().join(name);
        Kind::Latents.run(&config, &run, Resume::Never)?;
        let losses = series(&run, "eval", "alignment")?;
        assert_eq!((losses[0].0, losses[1].0), (0, 300));
        let (first, last) = (losses[0].1, losses[1].1);
        println!("{name}: {first:.3} -> {last:.3}");
        assert!(last < 0.9 * first, "{name}: {first} -> {last}");
    }
    Ok(())
}

/// Of latents that no training has moved to where the network is wrong.
#[test]
fn with_the_control_variate_the_loss_is_logged_as_a_likelihood() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = trained_prior(&dir.path().join("prior"), &[])?;
    let sets = ["flow.weight=likelihood", "flow.time=importance", "flow.control_variate=true"];
    let more = ["align.latents=500", "train.steps=5", "train.eval_every=5"];
    let run = dir.path().join("run");
    let config = Kind::Latents.config(Some(&prior), &[&sets[..], &more].concat())?;
    Kind::Latents.run(&config, &run, Resume::Never)?;
    let [estimate, truth, loss] = ["nll_prior", "nll", "alignment"].map(|name| series(&run, "eval", name));
    let (estimate, truth, loss) = (estimate?, truth?, loss?);
    assert_eq!((estimate.len(), truth.len()), (2, 2));
    println!("estimated {estimate:?}, true {truth:?}");
    assert!((estimate[0].1 / truth[0].1 - 1.0).abs() < 0.05, "{estimate:?} {truth:?}");
    // D/2·log(2πe) + D·loss, D = 2, t in [0, 1].
    assert!((estimate[1].1 - (2.837_877_066 + 2.0 * loss[1].1)).abs() < 1e-6, "{estimate:?} {loss:?}");
    Ok(())
}

#[test]
fn a_conditional_prior_is_evaluated_with_its_labels() -> Outcome {
    let dir = tempfile::tempdir()?;
    let sets = ["data.builtin=digits", "model.cond=10", "train.eval_every=12"];
    let run = dir.path().join("run");
    Kind::Pretrain.run(&Kind::Pretrain.config(None, &sets)?, &run, Resume::Never)?;
    assert!(series(&run, "eval", "loss")?.len() >= 2);
    Ok(())
}

#[test]
fn a_conditional_prior_learns_from_its_labels_and_refuses_others() -> Outcome {
    let dir = tempfile::tempdir()?;
    let config = Kind::Pretrain.config(None, &["data.builtin=digits", "model.cond=10", "train.steps=50"])?;
    let (mut task, mut engine) = Pretrain::new::<f32>(&config, &device()?)?;
    assert_eq!(task.objective.form, Form::Direct, "modulation is no function of t alone");
    for _ in 0..50 {
        engine.advance(&mut task)?;
    }
    let of_labels = engine.grads().named("cond_embed.weight")?.to_f32_vec().unwrap();
    assert!(of_labels.iter().any(|g| *g != 0.0), "the labels reach the network");
    let few = Kind::Pretrain.config(None, &["data.builtin=digits", "model.cond=4"])?;
    let error = Kind::Pretrain.run(&few, &dir.path().join("few"), Resume::Never).unwrap_err();
    let message = error.to_string();
    assert_eq!(error.exit_code(), 3, "{message}");
    assert!(
        message.starts_with("builtin `digits`: labels: expected labels below 4 (model.cond), found "),
        "{message}"
    );
    let none = Kind::Pretrain.config(None, &["model.cond=4"])?;
    let error = Kind::Pretrain.run(&none, &dir.path().join("none"), Resume::Never).unwrap_err().to_string();
    assert_eq!(error, "toy `gaussians`: labels: expected a label for each row (model.cond > 0), found none");
    Ok(())
}

//! Training with a DiT: labels reach it, runs resume and repeat bit for bit, and it serves as the frozen prior of stage 2.

#[path = "support/run.rs"]
mod run;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flowprior::data::Dataset;
use flowprior::flow::guidance::{Form, Guidance};
use flowprior::flow::objective::Velocity;
use flowprior::flow::{Batch, Draws, Want};
use flowprior::nn::{Condition, Import, Params, VelocityConfig, VelocityNet};
use flowprior::ops::embedding::Labels;
use flowprior::train::align::LatentTask;
use flowprior::train::beside::{Beside, Mask};
use flowprior::train::cost::Work;
use flowprior::train::export::write_rows as write_npy;
use flowprior::train::features::RowShape;
use flowprior::train::generate::{With, generate};
use flowprior::train::pretrain::Pretrain;
use flowprior::train::prior::{Prior, open_prior, write_network};
use flowprior::train::sampling::{Sampling, Shown, sample_rows};
use flowprior::train::{Config, Resume, setup};
use flowprior::{Device, Error, Result, Tensor};
use run::{DIT, Kind, Outcome, assert_same, normals, records, series, session, tensors, write_rows};

fn config(more: &[&str]) -> Outcome<Config> {
    Kind::Pretrain.config(None, &[DIT, more].concat())
}

#[test]
fn a_run_with_labels_that_is_stopped_and_resumed_ends_like_the_unbroken_one() -> Outcome {
    let dir = tempfile::tempdir()?;
    let config = config(&["train.micro_batches=2", "train.eval_every=6", "model.qk_norm=true"])?;
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    session(Kind::Pretrain, &config, &whole, 0)?;
    for stop in [1, 7, 13, 23] {
        match session(Kind::Pretrain, &config, &broken, stop) {
            Err(Error::Stopped { step, .. }) if step == stop => {}
            other => panic!("asked to stop at {stop}, but: {other:?}"),
        }
    }
    session(Kind::Pretrain, &config, &broken, 0)?;
    assert_same(&tensors(&whole, 24)?, &tensors(&broken, 24)?, "stopped and resumed");
    assert_eq!(records(&whole)?, records(&broken)?);
    Ok(())
}

#[test]
fn the_last_channels_of_a_row_are_a_condition_if_asked_for() -> Outcome {
    let dir = tempfile::tempdir()?;
    // Rows that are no images yet, and have no labels.
    let mut rows = vec![0.0; 96 * 64];
    normals(&mut rows, 5);
    let data = format!("data.path='{}'", write_rows(&dir.path().join("rows"), &rows, 64, 96)?.display());
    let others = ["model.image", "model.classes", "data."];
    let mut sets: Vec<&str> =
        DIT.iter().copied().filter(|set| !others.iter().any(|o| set.starts_with(o))).collect();
    sets.push(&data);
    let own =
        ["model.image=[2, 4, 8]", "model.cond_channels=1", "train.micro_batches=2", "train.eval_every=12"];
    let config = Kind::Pretrain.config(None, &[&sets[..], &own].concat())?;
    let (mut task, mut engine) = Pretrain::new::<f32>(&config, &setup::device(&config)?)?;
    assert_eq!((task.features.width(), task.net.data_width()), (64, 32));
    for _ in 0..4 {
        engine.advance_and_look(&mut task)?; // only then does the head pass a gradient on
    }
    let gradient = engine.grads().named("x_embedder.proj.weight")?;
    assert_eq!(gradient.shape().dims(), [32, 2, 4, 4]);
    let of_condition = gradient.to_f32_vec()?.chunks(16).skip(1).step_by(2).flatten().any(|g| *g != 0.0);
    assert!(of_condition, "the condition reaches the network");
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    session(Kind::Pretrain, &config, &whole, 0)?;
    assert!(matches!(session(Kind::Pretrain, &config, &broken, 9), Err(Error::Stopped { step: 9, .. })));
    session(Kind::Pretrain, &config, &broken, 0)?;
    assert_same(&tensors(&whole, 24)?, &tensors(&broken, 24)?, "stopped and resumed");
    let none = [&sets[..], &["model.image=[1, 8, 8]", "model.cond_channels=1"]].concat();
    let none = Kind::Pretrain.config(None, &none)?;
    let message = Kind::Pretrain.run(&none, &dir.path().join("none"), Resume::Never).unwrap_err().to_string();
    assert!(message.contains("expected more channels than those 1 of the condition"), "{message}");
    Ok(())
}

/// Writes images of 8 × 8.
fn images(path: &Path, count: usize) -> Outcome<PathBuf> {
    let mut rows = vec![0.0; count * 64];
    normals(&mut rows, 11);
    write_rows(path, &rows, 64, count)
}

#[test]
fn inpainting_with_labels_resumes_bit_for_bit_and_keeps_what_is_known() -> Outcome {
    let dir = tempfile::tempdir()?;
    let data = images(&dir.path().join("rows"), 8)?;
    let config = config(&["model.inpaint=true", "train.micro_batches=2", "train.eval_every=12"])?;
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    session(Kind::Pretrain, &config, &whole, 0)?;
    assert!(matches!(session(Kind::Pretrain, &config, &broken, 9), Err(Error::Stopped { step: 9, .. })));
    session(Kind::Pretrain, &config, &broken, 0)?;
    assert_same(&tensors(&whole, 24)?, &tensors(&broken, 24)?, "stopped and resumed");
    // Through a checkpoint and through a network's file: what is known is kept, what is not varies with the seed.
    let mut known = vec![0.0; 5 * 64];
    Dataset::open(&data)?.gather(&[0, 1, 2, 3, 4], &mut known)?;
    let device = Device::cpu()?;
    let exported = dir.path().join("prior.safetensors");
    open_prior::<f32>(&device, &whole, true)?.write(&exported)?;
    for source in [whole.clone(), exported] {
        let filled = |seed, mask: Mask| -> Outcome<Vec<f32>> {
            let out = dir.path().join("filled.npy");
            let sampling = Sampling { steps: 2, seed, ..Default::default() };
            let beside = Beside { data: data.clone(), mask: Some(mask) };
            let with = With { beside: Some(&beside), ..With::default() };
            let made = generate(&source, &sampling, with, Some(5), &out)?;
            assert_eq!((made.count, made.width), (5, 64));
            assert!(made.figure.is_some_and(|figure| figure.exists()));
            let mut rows = vec![0.0; 5 * 64];
            Dataset::open(&out)?.gather(&[0, 1, 2, 3, 4], &mut rows)?;
            Ok(rows)
        };
        let (one, two) = (filled(1, Mask::Lower)?, filled(2, Mask::Lower)?);
        for ((one, two), known) in one.chunks(64).zip(two.chunks(64)).zip(known.chunks(64)) {
            assert_eq!((&one[..32], &two[..32]), (&known[..32], &known[..32]), "the upper half");
            assert!(one[32..].iter().zip(&two[32..]).all(|(a, b)| a != b), "the lower half");
        }
        assert_eq!(filled(1, Mask::Left)?[4..8], known[4..8]);
    }
    let prior: Prior<f32> = open_prior(&device, &whole, true)?;
    // Without an image nothing is known, which is what a hole everywhere says.
    let plain = Sampling { count: 3, steps: 2, ..Default::default() };
    let hole = [vec![0.0; 64], vec![1.0; 64]].concat().repeat(3);
    let shown = Shown { count: 3, images: hole, classes: None };
    let told = Sampling { beside: Some(Arc::new(shown)), ..plain.clone() };
    let unknown = sample_rows(&prior.net, &prior.params, &plain)?;
    assert_eq!(unknown, sample_rows(&prior.net, &prior.params, &told)?);
    Ok(())
}

#[test]
fn what_is_shown_has_to_fit_the_network() -> Outcome {
    let dir = tempfile::tempdir()?;
    let data = images(&dir.path().join("rows"), 8)?;
    let refused = |sets: &[&str], beside: Beside| -> Outcome<String> {
        let (_, path) = random(&dir.path().join("net.safetensors"), &config(sets)?)?;
        let with = With { beside: Some(&beside), ..With::default() };
        let out = dir.path().join("out.npy");
        Ok(generate(&path, &Sampling::default(), with, Some(2), &out).unwrap_err().to_string())
    };
    let shown = |mask| Beside { data: data.clone(), mask };
    let message = refused(&[], shown(None))?;
    assert!(message.contains("takes no spatial condition"), "{message}");
    let message = refused(&["model.inpaint=true"], shown(None))?;
    assert!(message.contains("--mask"), "{message}");
    let given = ["model.image=[2, 4, 8]", "model.cond_channels=1"];
    let message = refused(&given, shown(Some(Mask::Lower)))?;
    assert!(message.contains("a mask is for a network that inpaints"), "{message}");
    let narrow = ["model.inpaint=true", "model.image=[1, 4, 16]"];
    let mask = dir.path().join("mask.npy");
    write_npy(&mask, "mask", &[1.0; 64], 8)?;
    let message = refused(&narrow, shown(Some(Mask::File(mask.clone()))))?;
    assert!(message.contains("expected [4, 16]") && message.contains("[8, 8]"), "{message}");
    write_npy(&mask, "mask", &[0.0; 64], 8)?;
    let message = refused(&["model.inpaint=true"], shown(Some(Mask::File(mask))))?;
    assert!(message.contains("no hole"), "{message}");
    Ok(())
}

#[test]
fn a_rescaled_map_reaches_the_network_and_is_trained() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut rows = vec![0.0; 96 * 96];
    normals(&mut rows, 6);
    let data = format!("data.path='{}'", write_rows(&dir.path().join("rows"), &rows, 96, 96)?.display());
    let others = ["model.image", "model.classes", "data."];
    let mut sets: Vec<&str> =
        DIT.iter().copied().filter(|set| !others.iter().any(|o| set.starts_with(o))).collect();
    sets.extend([&data, "model.image=[3, 4, 8]", "model.cond_channels=2", "model.cond_rescale=1"]);
    let config = Kind::Pretrain.config(None, &sets)?;
    let run = dir.path().join("run");
    Kind::Pretrain.run(&config, &run, Resume::Never)?;
    let name = "cond_rescaler.channel_mapper.weight";
    let net = setup::network(&config, RowShape { width: 96, image: None })?;
    let before = Params::<f32>::from_flat(
        &Device::cpu()?,
        net.layout().clone(),
        &net.layout().initial_values(config.seed),
    )?;
    let after: Prior<f32> = open_prior(&Device::cpu()?, &run, false)?;
    let (before, after) = (before.named(name)?.to_f32_vec()?, after.params.named(name)?.to_f32_vec()?);
    assert_eq!(before.len(), 2);
    assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() > 1e-5), "{before:?} {after:?}");
    // Samples are drawn beside the maps of other rows.
    let out = dir.path().join("samples.npy");
    let beside = Beside { data: dir.path().join("rows"), mask: None };
    let with = With { beside: Some(&beside), ..With::default() };
    let made = generate(&run, &Sampling { steps: 2, ..Default::default() }, with, Some(7), &out)?;
    assert_eq!((made.count, made.width), (7, 32));
    let alone = generate(&run, &Sampling::default(), With::default(), Some(7), &out).unwrap_err();
    assert!(alone.to_string().contains("2 channels of a spatial condition"), "{alone}");
    Ok(())
}

#[test]
fn threads_micro_batches_and_recomputing_do_not_change_the_bits() -> Outcome {
    let dir = tempfile::tempdir()?;
    for dtype in ["dtype=f32", "dtype=bf16"] {
        let of = |name: &str, sets: &[&str]| -> Outcome<_> {
            let place = dir.path().join(format!("{dtype}-{name}"));
            let config = config(&[&[dtype, "train.steps=4"], sets].concat())?;
            Kind::Pretrain.run(&config, &place, Resume::Never)?;
            tensors(&place, 4)
        };
        let one = of("one", &["threads=1"])?;
        for threads in ["threads=2", "threads=3"] {
            assert_same(&one, &of(threads, &[threads])?, &format!("{dtype} {threads}"));
        }
        assert_same(&one, &of("again", &["train.recompute=true"])?, &format!("{dtype}, recomputed"));
    }
    // Sums over a batch are added in another order: what a micro-batch sees is the same, labels included.
    let losses = |name: &str, sets: &[&str]| -> Outcome<Vec<(u64, f64)>> {
        let place = dir.path().join(name);
        Kind::Pretrain.run(
            &config(&[&["train.steps=4", "flow.flow_mul=2"], sets].concat())?,
            &place,
            Resume::Never,
        )?;
        series(&place, "train", "loss")
    };
    let (whole, parts) = (losses("whole", &[])?, losses("parts", &["train.micro_batches=4"])?);
    for ((_, a), (_, b)) in whole.iter().zip(&parts) {
        assert!((a - b).abs() < 1e-4 * a, "{a} {b}");
    }
    Ok(())
}

/// Writes a network whose every parameter matters.
fn random(path: &Path, config: &Config) -> Outcome<(VelocityNet, PathBuf)> {
    let net = setup::network(config, RowShape::vectors(64))?;
    let mut flat = net.layout().initial_values(7);
    let mut shake = vec![0.0; flat.len()];
    normals(&mut shake, 7);
    flat.iter_mut().zip(&shake).for_each(|(w, s)| *w += 0.05 * s);
    write_network(path, &net, &flat, None)?;
    Ok((net, path.to_owned()))
}

#[test]
fn a_run_can_be_opened_sampled_by_class_and_exported() -> Outcome {
    let dir = tempfile::tempdir()?;
    let config = config(&["train.steps=4"])?;
    let run = dir.path().join("run");
    Kind::Pretrain.run(&config, &run, Resume::Never)?;
    let device = Device::cpu()?;
    let of_run: Prior<f32> = open_prior(&device, &run, true)?;
    let exported = Prior::<f32>::read(&device, &run.join("prior.safetensors"), Import::default())?;
    assert_eq!(of_run.net.config(), exported.net.config());
    assert!(
        matches!(exported.net.config(), VelocityConfig::Dit { dit } if dit.classes == 10 && dit.null_label)
    );
    assert_eq!(of_run.params.flat().host()?, exported.params.flat().host()?);
    let (net, path) = random(&dir.path().join("random.safetensors"), &config)?;
    let prior = Prior::<f32>::read(&device, &path, Import::default())?;
    let draw = |count, class| {
        let how = Sampling { count, steps: 3, class, ..Default::default() };
        sample_rows(&net, &prior.params, &how)
    };
    let (turns, twos) = (draw(70, None)?, draw(70, Some(2))?);
    assert_ne!(turns, twos);
    assert_eq!(turns[2 * 64..3 * 64], twos[2 * 64..3 * 64], "sample 2 is of class 2");
    assert_eq!(draw(5, None)?, turns[..5 * 64]);
    assert!(draw(1, Some(10)).unwrap_err().to_string().contains("has 10 classes"));
    Ok(())
}

#[test]
fn a_network_that_knows_no_sample_without_a_class_is_sampled_and_not_guided() -> Outcome {
    let dir = tempfile::tempdir()?;
    let config = config(&["train.steps=2", "model.label_dropout=0"])?;
    // A run samples itself when it ends.
    Kind::Pretrain.run(&config, &dir.path().join("run"), Resume::Never)?;
    let (net, path) = random(&dir.path().join("random.safetensors"), &config)?;
    let prior = Prior::<f32>::read(&Device::cpu()?, &path, Import::default())?;
    let plain = Sampling { count: 20, steps: 2, ..Default::default() };
    assert!(sample_rows(&net, &prior.params, &plain)?.iter().all(|x| x.is_finite()));
    let guided = Sampling { guidance: Some(Guidance::plain(2.0, Form::W)), ..plain };
    let message = sample_rows(&net, &prior.params, &guided).unwrap_err().to_string();
    assert!(message.contains("model.label_dropout = 0"), "{message}");
    Ok(())
}

#[test]
fn labels_change_the_velocity_and_dropped_ones_do_not() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (net, path) = random(&dir.path().join("prior.safetensors"), &config(&[])?)?;
    let device = Device::cpu()?;
    let prior = Prior::<f32>::read(&device, &path, Import::default())?;
    let mut values = vec![0.0; 4 * 64];
    normals(&mut values, 1);
    let t = Tensor::from_f32(&device, [1], &[0.4])?;
    let of = |labels: &[Option<u32>; 4]| -> Result<Vec<f32>> {
        let labels = net.labels(&device, labels)?;
        let x = Tensor::from_f32(&device, [4, 64], &values)?;
        let cond = Condition { labels: Some(&labels), ..Condition::default() };
        net.velocity_at(&prior.params, x, &t, cond)?.to_f32_vec()
    };
    let (mixed, none) = (of(&[Some(1), None, Some(9), None])?, of(&[None; 4])?);
    for (i, (a, b)) in mixed.chunks(64).zip(none.chunks(64)).enumerate() {
        assert_eq!(a == b, i % 2 == 1, "sample {i}");
    }
    Ok(())
}

#[test]
fn a_frozen_dit_aligns_latents_and_gets_no_gradient() -> Outcome {
    let dir = tempfile::tempdir()?;
    // With labels it is asked for no class; tokens in a row have no labels at all.
    for (name, sets) in
        [("labels", vec![]), ("tokens", vec!["model.classes=0", "model.image=[1,1,64]", "model.patch=1"])]
    {
        let mut all: Vec<&str> = [DIT, &sets].concat();
        if name == "tokens" {
            all.retain(|set| !set.starts_with("model.image"));
            all.push("model.tokens=16");
        }
        let config = Kind::Pretrain.config(None, &all)?;
        let (_, path) = random(&dir.path().join(format!("{name}.safetensors")), &config)?;
        let before = std::fs::read(&path)?;
        let sets = ["align.latents=24", "train.steps=12", "train.micro_batches=2", "train.eval_every=6"];
        let config = Kind::Latents.config(Some(&path), &sets)?;
        let device = setup::device(&config)?;
        let prior = Prior::<f32>::read(&device, &path, Import::default())?;
        let weights = prior.params.flat().to_f32_vec()?;
        let (mut task, mut engine) = LatentTask::new(&config, &device, prior)?;
        let first = engine.advance_and_look(&mut task)?;
        assert!(first.losses.loss.is_finite() && first.grad_norm > 0.0, "{name}");
        assert_eq!(engine.grads().layout().entries().len(), 1, "gradients of the latents alone");
        assert_eq!(task.alignment.prior.params.flat().to_f32_vec()?, weights, "{name}: the prior moved");
        let run = dir.path().join(name);
        Kind::Latents.run(&config, &run, Resume::Never)?;
        assert_eq!(series(&run, "eval", "alignment")?.len(), 3);
        assert_eq!(std::fs::read(run.join("prior.safetensors"))?, before, "the copy is the network");
    }
    Ok(())
}

/// A gradient of latents is that of finite differences.
#[test]
fn the_gradient_of_latents_is_the_slope_of_their_loss() -> Outcome {
    let dir = tempfile::tempdir()?;
    let config = config(&["model.qk_norm=true"])?;
    let (net, path) = random(&dir.path().join("prior.safetensors"), &config)?;
    let device = Device::cpu()?;
    let prior = Prior::<f32>::read(&device, &path, Import::default())?;
    let mut objective = setup::objective(&config, &net, 16, &device)?;
    objective.label_dropout = 0.0;
    let labels = Labels::new(&device, &[3; 16], 10)?;
    let velocity = Velocity { net: &net, params: &prior.params, tables: None };
    let mut y = vec![0.0; 16 * 64];
    normals(&mut y, 2);
    let at = |y: &[f32], want: Want<'_>| -> Result<_> {
        let data = Tensor::from_f32(&device, [16, 64], y)?;
        let cond = Condition { labels: Some(&labels), ..Condition::default() };
        let batch = Batch { data: &data, cond, first: 0 };
        let outcome = objective.evaluate(velocity, batch, Draws::training(3, 1), 1.0, want)?;
        Ok((outcome.loss()?, outcome.dy))
    };
    let (_, dy) = at(&y, Want::Latents(flowprior::flow::LatentGradient::Full))?;
    let dy = dy.ok_or("no gradient")?.to_f32_vec()?;
    let mut direction = vec![0.0; y.len()];
    normals(&mut direction, 3);
    let moved = |h: f32| -> Vec<f32> { y.iter().zip(&direction).map(|(y, d)| y + h * d).collect() };
    let h = 1e-2;
    let slope = (at(&moved(h), Want::Loss)?.0 - at(&moved(-h), Want::Loss)?.0) / (2.0 * h as f64);
    let expected: f64 = dy.iter().zip(&direction).map(|(a, b)| f64::from(a * b)).sum();
    assert!((slope - expected).abs() < 1e-3 * expected.abs().max(1e-2), "{slope} instead of {expected}");
    Ok(())
}

#[test]
fn labels_and_images_that_do_not_fit_are_refused() -> Outcome {
    let dir = tempfile::tempdir()?;
    let refused = |more: &[&str]| -> Outcome<String> {
        let sets: Vec<&str> = DIT.iter().copied().filter(|s| !more.iter().any(|m| same_key(m, s))).collect();
        let config = Kind::Pretrain.config(None, &[&sets[..], more].concat())?;
        Ok(Kind::Pretrain.run(&config, &dir.path().join("run"), Resume::Never).unwrap_err().to_string())
    };
    let few = refused(&["model.classes=4"])?;
    assert!(
        few.starts_with("builtin `digits`: labels: expected labels below 4 (model.classes), found "),
        "{few}"
    );
    let none = refused(&["data.toy=gaussians", "model.image=[2, 1, 1]", "model.patch=1"])?;
    assert_eq!(
        none,
        "toy `gaussians`: labels: expected a label for each row (model.classes > 0), found none"
    );
    let wide = refused(&["model.image=[1, 4, 8]"])?;
    assert_eq!(wide, "builtin `digits`: shape: expected [1, 4, 8] (model.image), found [1, 8, 8]");
    let ragged = refused(&["model.image=[1, 2, 32]", "model.patch=4"]);
    assert!(ragged.is_err(), "the configuration says so already");
    Ok(())
}

fn same_key(a: &str, b: &str) -> bool {
    let section = |set: &str| set.split('=').next().unwrap_or_default().to_owned();
    section(a) == section(b) || (section(a) == "data.toy" && section(b) == "data.builtin")
}

#[test]
fn a_step_costs_what_the_network_multiplies() -> Outcome {
    let config = Config::load(
        &flowprior::train::Sources::default(),
        &["model.kind=dit", "model.size=S", "model.image=[4, 32, 32]", "model.classes=1000", "train.batch=8"]
            .map(str::to_owned),
    )?;
    let shape = RowShape { width: 4096, image: Some([4, 32, 32]) };
    let cost = Work::of(&config, shape, None)?.cost();
    // DiT-S/2: 6.06 GMACs a forward pass (DiT, table 1), attention included.
    let forward = (cost.forward + cost.attention / 3) as f64 / 8.0 / 2e9;
    assert!((forward / 6.06 - 1.0).abs() < 0.02, "{forward} GMAC");
    Ok(())
}

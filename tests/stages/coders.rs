//! Autoencoders of vision transformers, with a projection and a prior that is trained too, as runs.

use std::fs;
use std::path::Path;

use flowprior::data::Dataset;
use flowprior::nn::dit::DitInput;
use flowprior::nn::{DitConfig, VelocityConfig, VelocityNet};
use flowprior::train::align::AutoencoderTask;
use flowprior::train::prior::{Prior, write_network};
use flowprior::train::recode::{decode, encode};
use flowprior::train::restore::Restored;
use flowprior::train::start::JOINT;
use flowprior::train::{Resume, checkpoint};

use crate::run::{Kind, Outcome, VIT, assert_same, random_prior, series, session, tensors, write_rows};
use crate::{device, frozen};

/// Everything that a run of an autoencoder may train.
const ALL: [&str; 4] =
    ["align.joint=true", "align.projection=true", "align.autoencoder.latent=4", "align.reconstruction=l1"];

fn prior(dir: &Path) -> Outcome<std::path::PathBuf> {
    random_prior(&dir.join("prior.safetensors"), 2, 0.05)
}

#[test]
fn a_transformer_resumes_bit_for_bit_with_all_that_is_trained() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = prior(dir.path())?;
    for dtype in ["dtype=f32", "dtype=bf16"] {
        let sets = [VIT, &ALL, &[dtype, "train.checkpoint_every=5"]].concat();
        let config = Kind::Autoencoder.config(Some(&prior), &sets)?;
        let (whole, broken) =
            (dir.path().join(format!("{dtype}-whole")), dir.path().join(format!("{dtype}-broken")));
        session(Kind::Autoencoder, &config, &whole, 0)?;
        for stop in [7, 16] {
            let stopped = session(Kind::Autoencoder, &config, &broken, stop);
            assert!(stopped.is_err(), "{dtype}: step {stop} was to be the last");
        }
        session(Kind::Autoencoder, &config, &broken, 0)?;
        assert_same(&tensors(&whole, 24)?, &tensors(&broken, 24)?, dtype);
    }
    Ok(())
}

#[test]
fn a_transformer_has_the_same_bits_for_any_number_of_threads() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = prior(dir.path())?;
    let of = |threads: usize| -> Outcome<_> {
        let threads = format!("threads={threads}");
        let sets = [VIT, &ALL, &[&threads, "train.steps=6"]].concat();
        let run = dir.path().join(&threads);
        Kind::Autoencoder.run(&Kind::Autoencoder.config(Some(&prior), &sets)?, &run, Resume::Never)?;
        tensors(&run, 6)
    };
    let one = of(1)?;
    for threads in [2, 5] {
        assert_same(&one, &of(threads)?, &format!("{threads} threads"));
    }
    Ok(())
}

#[test]
fn parts_of_a_batch_and_blocks_computed_again_have_the_losses_of_the_whole() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = prior(dir.path())?;
    let of = |name: &str, more: &[&str]| -> Outcome<_> {
        let sets = [VIT, &ALL, &["train.steps=6", "align.flow_start=2"], more].concat();
        let run = dir.path().join(name);
        Kind::Autoencoder.run(&Kind::Autoencoder.config(Some(&prior), &sets)?, &run, Resume::Never)?;
        Ok((series(&run, "train", "loss")?, tensors(&run, 6)?))
    };
    let (losses, bits) = of("whole", &[])?;
    assert_same(&bits, &of("again", &["train.recompute=true"])?.1, "recompute");
    let parts = of("parts", &["train.micro_batches=4"])?.0;
    assert_eq!(losses.len(), 6);
    for ((step, whole), (_, parts)) in losses.iter().zip(&parts) {
        assert!((whole - parts).abs() <= 1e-5 * whole.abs(), "step {step}: {whole} and {parts}");
    }
    Ok(())
}

#[test]
fn a_prior_trained_too_moves_and_is_the_one_that_is_evaluated() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = prior(dir.path())?;
    let of = |name: &str, joint: &str| -> Outcome<_> {
        let own =
            ["align.autoencoder.latent=2", joint, "align.lambda=1e-6", "train.steps=60", "optim.ema=[]"];
        let run = dir.path().join(name);
        let config = Kind::Autoencoder.config(Some(&prior), &[VIT, &own].concat())?;
        Kind::Autoencoder.run(&config, &run, Resume::Never)?;
        Ok((run.clone(), series(&run, "train", "alignment")?))
    };
    let (frozen, fixed) = of("frozen", "align.joint=false")?;
    let (run, followed) = of("joint", "align.joint=true")?;
    // With next to no pull on the latents, only a prior that learns can find them likelier.
    let end = |losses: &[(u64, f64)]| losses[50..].iter().map(|(_, x)| x).sum::<f64>() / 10.0;
    assert!(end(&followed) < 0.9 * end(&fixed), "{} and {}", end(&followed), end(&fixed));
    assert_eq!(fs::read(run.join("prior.safetensors"))?, fs::read(&prior)?, "what training began with");
    let names = |run: &Path| -> Outcome<Vec<String>> {
        let saved = checkpoint::load(&checkpoint::folder(&run.join("checkpoints"), 60))?;
        let group = saved.groups().next().ok_or("no group")?.to_owned();
        Ok(saved.names(&group)?.into_iter().map(|name| name.to_string()).collect())
    };
    assert!(names(&run)?.iter().any(|name| name == "prior.input_proj.weight"));
    assert!(names(&frozen)?.iter().all(|name| !name.starts_with("prior.")));
    let restored = Restored::open(&run)?;
    let (mut task, engine) = restored.autoencoder::<f32>(&device()?)?;
    let began = task.alignment.prior.params.flat().to_f32_vec()?;
    task.follow(&engine.optimizer.params)?;
    let now = task.alignment.prior.params.flat().to_f32_vec()?;
    assert_ne!(began, now);
    let all = engine.optimizer.params.named("prior.input_proj.weight")?.to_f32_vec()?;
    assert_eq!(task.alignment.prior.params.named("input_proj.weight")?.to_f32_vec()?, all);
    let written = Prior::<f32>::read(&device()?, &run.join(JOINT), None)?;
    assert_eq!(written.params.flat().to_f32_vec()?, now);
    assert!(!frozen.join(JOINT).exists());
    Ok(())
}

#[test]
fn data_become_latents_and_latents_data_again() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = prior(dir.path())?;
    for (name, sets) in
        [("mlp", &["data.standardise=true"][..]), ("vit", &[VIT, &["align.autoencoder.latent=2"]].concat())]
    {
        let run = dir.path().join(name);
        Kind::Autoencoder.run(&Kind::Autoencoder.config(Some(&prior), sets)?, &run, Resume::Never)?;
        let rows = flowprior::data::builtin::digits()?.rows[..37 * 64].to_vec();
        let data = write_rows(&dir.path().join(format!("{name}-data")), &rows, 64, 10)?;
        let (latents, images) =
            (dir.path().join(format!("{name}-latents")), dir.path().join(format!("{name}.npy")));
        let encoded = encode(&run, &data, &latents)?;
        assert_eq!((encoded.count, encoded.tokens, encoded.width), (37, 3, 6), "{name}");
        let decoded = decode(&run, &latents, &images)?;
        assert_eq!((decoded.count, decoded.width), (37, 64), "{name}");

        let restored = Restored::open(&run)?;
        let (task, engine) = restored.autoencoder::<f32>(&device()?)?;
        let params = engine.optimizer.averaged()?;
        let mut own = rows.clone();
        if let Some(standardise) = &task.features.standardise {
            standardise.apply(&mut own);
        }
        let y = task.encode_rows(&params, &own)?;
        let mut x_hat = task.decode(&params, &y)?;
        if let Some(standardise) = &task.features.standardise {
            standardise.invert(&mut x_hat);
        }
        let read = |path: &Path, width: usize| -> Outcome<Vec<f32>> {
            let mut all = vec![0.0; 37 * width];
            Dataset::open(path)?.gather(&(0..37).collect::<Vec<_>>(), &mut all)?;
            Ok(all)
        };
        assert_eq!(read(&latents, 6)?, y, "{name}");
        assert_eq!(read(&images, 64)?, x_hat, "{name}");
        let wrong = decode(&run, &images, &dir.path().join("wrong.npy")).unwrap_err().to_string();
        assert!(wrong.contains("width") && wrong.contains('6') && wrong.contains("64"), "{wrong}");
    }
    Ok(())
}

/// A prior of sequences looks at all latents of a sample together.
#[test]
fn latents_align_to_a_prior_of_sequences_of_as_many_tokens() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dit = DitConfig {
        input: DitInput::Tokens { tokens: 3, channels: 2 },
        width: 16,
        depth: 1,
        heads: 2,
        classes: 0,
        null_label: false,
        qk_norm: false,
        learn_sigma: false,
        cond_channels: 0,
        cond_rescale: 0,
        inpaint: false,
        time_scale: 1.0,
    };
    let net = VelocityNet::new(VelocityConfig::Dit { dit })?;
    let mut flat = net.layout().initial_values(3);
    flat.iter_mut().enumerate().for_each(|(i, w)| *w += 0.05 * ((i * 37 % 101) as f32 / 50.0 - 1.0));
    let path = dir.path().join("prior.safetensors");
    write_network(&path, &net, &flat, None)?;
    let config = Kind::Autoencoder.config(Some(&path), &["align.lambda=1.0"])?;
    let (task, _) = AutoencoderTask::new(&config, &device()?, frozen::<f32>(&config)?)?;
    assert_eq!(task.alignment.objective.samples, 64, "a row of the prior for each sample");
    let run = dir.path().join("run");
    Kind::Autoencoder.run(&config, &run, Resume::Never)?;
    let losses = series(&run, "train", "alignment")?;
    let last: f64 = losses[20..].iter().map(|(_, x)| x / 4.0).sum();
    assert!(last < losses[0].1, "{losses:?}");

    let config = Kind::Autoencoder.config(Some(&path), &["align.autoencoder.tokens=4"])?;
    let error = AutoencoderTask::new(&config, &device()?, Prior::<f32>::read(&device()?, &path, None)?).err();
    let error = error.ok_or("four tokens fit three")?.to_string();
    assert!(error.contains("tokens") && error.contains('4') && error.contains("3 tokens"), "{error}");
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_with_a_sentence() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = prior(dir.path())?;
    let new = |more: &[&str]| -> Outcome<String> {
        let config = match Kind::Autoencoder.config(Some(&prior), more) {
            Ok(config) => config,
            Err(error) => return Ok(error.to_string()),
        };
        match AutoencoderTask::new(&config, &device()?, frozen::<f32>(&config)?) {
            Ok(_) => Err("it was taken".into()),
            Err(error) => Ok(error.to_string()),
        }
    };
    let cases: [(&[&str], &[&str]); 9] = [
        (&["align.lambda=-0.1"], &["align.lambda", "at least 0"]),
        (&["align.autoencoder.latent=5"], &["width", "5 (align.autoencoder.latent)", "a prior of width 2"]),
        (&["align.autoencoder.heads=2"], &["align.autoencoder.heads", "kind = \"vit\""]),
        (
            &["align.autoencoder.kind=vit", "align.autoencoder.image=[1, 8, 8]", "align.autoencoder.heads=5"],
            &["heads = 5", "192"],
        ),
        (
            &["align.autoencoder.kind=vit", "align.autoencoder.image=[1, 8, 8]", "align.autoencoder.patch=3"],
            &["patch of 3", "8 × 8"],
        ),
        (
            &["align.autoencoder.kind=vit", "align.autoencoder.image=[1, 7, 8]", "align.autoencoder.patch=1"],
            &["[1, 7, 8] (align.autoencoder.image)", "[1, 8, 8]"],
        ),
        (
            &["align.adaptive=true", "align.adaptive_at=encoder.1.weight"],
            &["align.adaptive_at", "encoder.2.weight", "encoder.1.weight"],
        ),
        (&["align.adaptive_at=encoder.2.weight"], &["align.adaptive = true"]),
        (
            &["align.joint=true", "align.gradient=detached", "flow.weight=kl"],
            &["align.joint", "align.gradient = \"full\""],
        ),
    ];
    for (sets, words) in cases {
        let error = new(sets)?;
        assert!(words.iter().all(|word| error.contains(word)), "{sets:?}: {error}");
    }
    let latents = Kind::Latents.config(Some(&prior), &["align.projection=true"]).unwrap_err().to_string();
    assert!(latents.contains("align.projection needs align.target = \"autoencoder\""), "{latents}");
    let run = dir.path().join("latents");
    Kind::Latents.run(&Kind::Latents.config(Some(&prior), &[])?, &run, Resume::Never)?;
    let error = encode(&run, &run, &dir.path().join("out")).unwrap_err().to_string();
    assert!(error.contains("only a run of `align` with an autoencoder"), "{error}");
    Ok(())
}

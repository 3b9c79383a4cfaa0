//! A step whose loss or gradient is not finite touches no weight; too many in a row end the run.

use std::fs;
use std::path::{Path, PathBuf};

use flowprior::FloatX;
use flowprior::Result;
use flowprior::train::align::AutoencoderTask;
use flowprior::train::engine::Report;
use flowprior::train::pretrain::Pretrain;
use flowprior::train::{Config, Resume, checkpoint};
use half::{bf16, f16};

use super::run::{Kind, Outcome, assert_same, normals, random_prior, records, tensors, write_rows};
use super::{device, frozen, state};

const BAD_ROW: usize = 41;

/// 64 rows of which one is not finite: each epoch of four batches of 16 has one bad batch.
fn poisoned(dir: &Path, with: f32) -> Outcome<PathBuf> {
    let mut values = vec![0.0; 64 * 4];
    normals(&mut values, 2);
    values[BAD_ROW * 4 + 1] = with;
    write_rows(dir, &values, 4, 64)
}

/// Steps from 0 whose batch has the bad row.
fn bad_steps(task: &Pretrain, config: &Config) -> Result<Vec<u64>> {
    let bad =
        |step: &u64| Ok(task.features.source().ids(config.seed, *step, 16)?.contains(&(BAD_ROW as u64)));
    let mut steps = Vec::new();
    for step in 0..config.train.steps {
        if bad(&step)? {
            steps.push(step);
        }
    }
    Ok(steps)
}

fn expect_skips<X: FloatX>(config: &Config) -> Outcome<Vec<u64>> {
    let (mut task, mut engine) = Pretrain::new::<X>(config, &device()?)?;
    let bad = bad_steps(&task, config)?;
    assert_eq!(bad.len() as u64, config.train.steps / 4);
    for step in 0..config.train.steps {
        let before = state(&engine);
        let report: Report = engine.advance_and_look(&mut task)?;
        assert_eq!(report.skipped.is_some(), bad.contains(&step), "step {step}: {report:?}");
        if let Some(what) = report.skipped {
            assert_eq!(what, "loss");
            assert_eq!(before, state(&engine), "step {step} touched something");
        } else {
            assert_ne!(before, state(&engine), "step {step} did nothing");
        }
    }
    assert_eq!(engine.skips.total, bad.len() as u64);
    assert!(state(&engine).into_iter().all(|bits| f32::from_bits(bits).is_finite()));
    Ok(bad)
}

#[test]
fn a_step_whose_loss_is_not_finite_changes_no_bit_and_is_counted_and_named() -> Outcome {
    let dir = tempfile::tempdir()?;
    for (name, with) in [("nan", f32::NAN), ("inf", f32::INFINITY)] {
        let data = poisoned(&dir.path().join(name), with)?;
        let source = format!("data.path='{}'", data.display());
        for dtype in ["f32", "bf16", "f16"] {
            let dtype_set = format!("dtype={dtype}");
            let config = Kind::Pretrain.config(None, &[&source, &dtype_set, "train.batch=16"])?;
            let bad = match dtype {
                "f32" => expect_skips::<f32>(&config)?,
                "bf16" => expect_skips::<bf16>(&config)?,
                _ => expect_skips::<f16>(&config)?,
            };
            let run = dir.path().join(format!("{name}-{dtype}"));
            Kind::Pretrain.run(&config, &run, Resume::Never)?;
            let skipped: Vec<_> = records(&run)?.into_iter().filter(|r| r["kind"] == "skipped").collect();
            assert_eq!(skipped.len(), bad.len());
            for (i, (record, step)) in skipped.iter().zip(&bad).enumerate() {
                let expected = serde_json::json!(
                    { "step": step + 1, "kind": "skipped", "what": "loss", "skipped": (i + 1) as f64 }
                );
                assert_eq!(*record, expected, "{name} {dtype}");
            }
            let last = checkpoint::load(&checkpoint::folder(&run.join("checkpoints"), 24))?;
            assert_eq!(last.manifest().skipped.total, bad.len() as u64);
        }
    }
    Ok(())
}

#[test]
fn an_autoencoder_skips_its_bad_batches_too() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let data = poisoned(&dir.path().join("data"), f32::NAN)?;
    let source = format!("data.path='{}'", data.display());
    let config = Kind::Autoencoder.config(Some(&prior), &[&source, "train.batch=16"])?;
    let (mut task, mut engine) = AutoencoderTask::new(&config, &device()?, frozen::<f32>(&config)?)?;
    for step in 0..24 {
        let bad = task.features.source().ids(config.seed, step, 16)?.contains(&(BAD_ROW as u64));
        let before = state(&engine);
        let report = engine.advance_and_look(&mut task)?;
        assert_eq!(
            (report.skipped.is_some(), before == state(&engine)),
            (bad, bad),
            "step {step}: {report:?}"
        );
    }
    assert_eq!(engine.skips.total, 6);
    Ok(())
}

#[test]
fn a_gradient_that_is_not_finite_is_named_by_its_parameter() -> Outcome {
    let dir = tempfile::tempdir()?;
    let config = Kind::Pretrain.config(None, &["dtype=f16", "scaler.init=1e30", "train.steps=3"])?;
    Kind::Pretrain.run(&config, &dir.path().join("run"), Resume::Never)?;
    let skipped: Vec<_> =
        records(&dir.path().join("run"))?.into_iter().filter(|r| r["kind"] == "skipped").collect();
    assert_eq!(skipped.len(), 3);
    let what = skipped[0]["what"].as_str().unwrap_or_default();
    let (task, _) = Pretrain::new::<f16>(&config, &device()?)?;
    let named = |name: &str| what == format!("gradient of `{name}`");
    assert!(task.net.layout().entries().iter().any(|e| named(&e.name)), "{what}");
    Ok(())
}

#[test]
fn too_many_bad_steps_in_a_row_end_the_run_with_five_and_the_good_weights() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut values = vec![0.0; 64 * 4];
    normals(&mut values, 2);
    let good = write_rows(&dir.path().join("good"), &values, 4, 64)?;
    let bad = write_rows(&dir.path().join("bad"), &vec![f32::NAN; 64 * 4], 4, 64)?;
    let source = |path: &Path| format!("data.path='{}'", path.display());
    for dtype in ["dtype=f32", "dtype=f16"] {
        let run = dir.path().join(dtype);
        let common =
            [dtype, "train.max_skipped=7", "train.checkpoint_every=3", "train.batch=16", "scaler.min=4096"];
        let of =
            |data: &str, steps: &str| Kind::Pretrain.config(None, &[&common[..], &[data, steps]].concat());
        Kind::Pretrain.run(&of(&source(&good), "train.steps=10")?, &run, Resume::Never)?;
        let last_good = tensors(&run, 10)?;
        let network = fs::read(run.join("prior.safetensors"))?;

        let error =
            Kind::Pretrain.run(&of(&source(&bad), "train.steps=60")?, &run, Resume::Auto).unwrap_err();
        assert_eq!(error.exit_code(), 5, "{error}");
        let message = error.to_string();
        assert!(
            message.contains("the loss is not finite, the 7th step in a row that had to be skipped"),
            "{message}"
        );
        assert!(message.contains("train.max_skipped"), "{message}");
        // The newest checkpoint is valid, and its weights are the last good ones, bit for bit.
        let latest = checkpoint::latest(&run.join("checkpoints"))?;
        let newest = latest.loaded.ok_or("no checkpoint")?.manifest().clone();
        assert!(latest.broken.is_empty() && newest.step == 17, "{} {:?}", newest.step, latest.broken);
        assert_eq!((newest.skipped.total, newest.skipped.in_a_row), (7, 7));
        assert_same(&last_good, &tensors(&run, 17)?, "weights after seven bad steps");
        assert_eq!(network, fs::read(run.join("prior.safetensors"))?);
        let skipped = records(&run)?.into_iter().filter(|r| r["kind"] == "skipped").count();
        assert_eq!(skipped, 7, "each is in the log");

        // With good data the run goes on from there.
        Kind::Pretrain.run(&of(&source(&good), "train.steps=20")?, &run, Resume::Auto)?;
        assert_ne!(tensors(&run, 20)?["model.safetensors"], last_good["model.safetensors"]);
    }
    Ok(())
}

//! bf16 and f16 beside f32, and the loss scale of f16.

use std::collections::BTreeMap;
use std::path::Path;

use flowprior::train::{Resume, checkpoint};

use super::mean;
use super::run::{KINDS, Kind, Outcome, random_prior, series};

/// The mean loss of the last 100 of 300 steps, and the run's folder.
fn final_loss(kind: Kind, prior: &Path, dir: &Path, sets: &[&str]) -> Outcome<f64> {
    let more = ["train.steps=300", "train.batch=128", "align.latents=128", "model.width=64"];
    let config = kind.config(Some(prior), &[&more[..], sets].concat())?;
    kind.run(&config, dir, Resume::Never)?;
    let losses = series(dir, "train", "loss")?;
    Ok(mean(&losses[200..]))
}

#[test]
fn low_precision_follows_f32_within_a_few_per_cent() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    for kind in KINDS {
        let of = |name: &str, sets: &[&str]| {
            final_loss(kind, &prior, &dir.path().join(format!("{kind:?}-{name}")), sets)
        };
        let exact = of("f32", &[])?;
        let mut losses = BTreeMap::from([
            ("bf16", of("bf16", &["dtype=bf16"])?),
            ("f16", of("f16", &["dtype=f16", "scaler.interval=40"])?),
        ]);
        if kind != Kind::Latents {
            losses.insert("bf16, stochastic", of("sr", &["dtype=bf16", "optim.rounding=stochastic"])?);
        }
        println!("{kind:?}: f32 {exact:.4}, {losses:.4?}");
        for (name, loss) in losses {
            assert!((loss - exact).abs() <= 0.02 * exact, "{kind:?} {name}: {loss} against {exact}");
        }
    }
    Ok(())
}

#[test]
fn the_loss_scale_backs_off_after_an_overflow_and_grows_after_good_steps() -> Outcome {
    let dir = tempfile::tempdir()?;
    let sets = ["dtype=f16", "scaler.init=1073741824", "scaler.interval=8", "train.steps=120"];
    let run = dir.path().join("run");
    Kind::Pretrain.run(&Kind::Pretrain.config(None, &sets)?, &run, Resume::Never)?;
    let scales = series(&run, "train", "loss_scale")?;
    assert_eq!((scales.len(), scales[0]), (120, (1, 1_073_741_824.0)));
    let skipped: Vec<u64> = series(&run, "skipped", "skipped")?.into_iter().map(|(step, _)| step).collect();
    assert!(skipped.contains(&1), "2^30 must overflow: {skipped:?}");
    let (mut good, mut grown) = (0, 0);
    for pair in scales.windows(2) {
        let (step, scale) = pair[0];
        good = if skipped.contains(&step) { 0 } else { good + 1 };
        let expected = match good {
            0 => 0.5 * scale,
            8 => 2.0 * scale,
            _ => scale,
        };
        assert_eq!(pair[1].1, expected, "after step {step}");
        if good == 8 {
            (good, grown) = (0, grown + 1);
        }
    }
    assert!(grown >= 3, "it grew {grown} times");
    let last = checkpoint::load(&checkpoint::folder(&run.join("checkpoints"), 120))?;
    assert_eq!(last.manifest().skipped.total, skipped.len() as u64);
    Ok(())
}

//! Autoencoders of both kinds with every term of their loss: losses, gradients, ten AdamW steps.

use std::path::Path;

use flowprior::nn::{Grads, Keep, Params};
use flowprior::train::align::AutoencoderTask;
use flowprior::train::engine::Task;
use flowprior::train::{Config, Stage};
use flowprior::{Result, Tensor};
use serde_json::Value;

use super::align::{part_of, prior, train};
use super::dit::{constants, without_constants};
use super::engine::{device, matrix, outputs_of, wide};
use super::fixture::{Fixture, assert_close};
use super::{F32, assert_all_close, config, engine_from, integer, named, unshuffled};

const CASES: [&str; 5] = ["vit", "vit_adaptive", "vit_projected", "vit_joint", "mlp_all"];

fn configuration(dir: &Path, fixture: &Fixture) -> Result<Config> {
    let (c, case) = (fixture.config(), &fixture.config()["case"]);
    let on = |key: &str| case[key] == Value::Bool(true);
    let mut sets = vec![
        unshuffled(dir, integer(fixture, "seed") as u64, &fixture.values("x"), integer(fixture, "steps"))?,
        "align.target=autoencoder".to_owned(),
        "flow.weight=likelihood".to_owned(),
        "model.modulation=direct".to_owned(),
        format!("align.lambda={}", c["lambda"]),
        format!("align.autoencoder.tokens={}", case["tokens"]),
        format!("align.autoencoder.latent={}", case["latent"]),
        format!("align.projection={}", on("projection")),
        format!("align.joint={}", on("joint")),
        format!("align.std_latents={}", on("std_latents")),
        format!("align.reconstruction={}", if on("l1") { "l1" } else { "l2" }),
        format!("align.std_weight={:?}", case["std_weight"].as_f64().unwrap_or(0.0)),
    ];
    if let Some(at) = case["adaptive"].as_str() {
        sets.extend(["align.adaptive=true".into(), format!("align.adaptive_at={at}")]);
    }
    let layers: &[&str] = match on("vit") {
        true => &["kind=vit", "image=[2, 4, 6]", "patch=2", "width=8", "depth=2", "heads=2"],
        false => &["hidden=[16, 16]"],
    };
    sets.extend(layers.iter().map(|set| format!("align.autoencoder.{set}")));
    config(Stage::Align, fixture, "adamw", &sets)
}

#[test]
fn losses_gradients_and_steps_are_pytorchs() -> Result<()> {
    for case in CASES {
        let fixture = Fixture::open(&format!("coder_{case}"));
        let dir = tempfile::tempdir().unwrap();
        let config = configuration(dir.path(), &fixture)?;
        let device = device(None)?;
        let (mut task, fresh) = AutoencoderTask::new(&config, &device, prior(dir.path(), &fixture)?)?;
        let mut engine = engine_from(&config, &fresh.optimizer.params, &fixture.prefixed("initial."))?;

        let mut grads = Grads::zeros(&device, engine.optimizer.params.layout().clone());
        let losses = task.losses(&engine.optimizer.params, 0, 1.0, &mut grads)?;
        assert_close(case, &[losses.loss], &[fixture.scalar("loss")], F32);
        for (part, name) in [("reconstruction", "rec_loss"), ("alignment", "align_loss")] {
            assert_close(case, &[part_of(&losses, part)], &[fixture.scalar(name)], F32);
        }
        let weight = part_of(&losses, "alignment_weight") / config.align.lambda;
        assert_close(case, &[weight], &[fixture.scalar("ratio")], F32);
        let expected = fixture.prefixed("grad.");
        assert_all_close(case, &without_constants(&outputs_of(&grads)?, &expected, F32), &expected, F32);

        let curves = train(&mut engine, &mut task, integer(&fixture, "steps"))?;
        for (name, curve) in ["losses", "grad_norms"].iter().zip(&curves) {
            assert_close(&format!("{case}: {name}"), curve, &fixture.values(&format!("adamw.{name}")), F32);
        }
        let params = &engine.optimizer.params;
        let (mut found, expected) =
            (named(params.layout(), params.flat())?, fixture.prefixed("adamw.param."));
        let most = config.train.steps as f64 * config.optim.lr;
        for (name, values) in &mut found {
            for i in constants(&expected, name) {
                // Adam makes steps even of rounding.
                assert!((values[i] - expected[name].1[i]).abs() <= most, "{case}: {name}");
                values[i] = expected[name].1[i];
            }
        }
        // Ten steps add up rounding. Slopes of L1 are all of one size: where as many go up as down their sum is 0, or rounding, of which Adam makes steps.
        let l1 = fixture.config()["case"]["l1"] == Value::Bool(true);
        assert_all_close(case, &found, &expected, if l1 { 1e-3 } else { 2.0 * F32 });
    }
    Ok(())
}

#[test]
fn latents_and_reconstructions_are_pytorchs() -> Result<()> {
    for case in CASES {
        let fixture = Fixture::open(&format!("coder_{case}"));
        let dir = tempfile::tempdir().unwrap();
        let config = configuration(dir.path(), &fixture)?;
        let device = device(None)?;
        let (task, fresh) = AutoencoderTask::new(&config, &device, prior(dir.path(), &fixture)?)?;
        let layout = fresh.optimizer.params.layout().clone();
        let flat = super::engine::flat(&layout, &fixture.prefixed("initial."));
        let params = Params::<f32>::from_flat(&device, layout, &flat)?;
        let x: Vec<f32> = fixture.values("x").iter().map(|x| *x as f32).collect();
        let y = task.encode_rows(&params, &x)?;
        assert_close(case, &wide(&y), &fixture.values("y"), F32);
        assert_close(case, &wide(&task.decode(&params, &y)?), &fixture.values("reconstruction"), F32);
    }
    Ok(())
}

#[test]
fn blocks_that_are_computed_again_give_the_same_bits() -> Result<()> {
    let fixture = Fixture::open("coder_vit");
    let dir = tempfile::tempdir().unwrap();
    let config = configuration(dir.path(), &fixture)?;
    let device = device(None)?;
    let (task, fresh) = AutoencoderTask::new(&config, &device, prior(dir.path(), &fixture)?)?;
    let (net, params) = (&task.net, &fresh.optimizer.params);
    let gradients = |keep: Keep| -> Result<Vec<f32>> {
        let x: Tensor<f32> = matrix(&device, net.config().data, &fixture.values("x"))?;
        let mut grads = Grads::zeros(&device, params.layout().clone());
        let (y, encoded) = net.encode(params, x.duplicate()?, keep)?;
        let (x_hat, decoded) = net.decode(params, y, keep)?;
        let dy = net.decode_backward(params, decoded, x_hat, &mut grads)?;
        net.encode_backward(params, encoded, dy, &mut grads)?;
        grads.flat().to_f32_vec()
    };
    let all = gradients(Keep::All)?;
    assert!(all.iter().filter(|x| **x != 0.0).count() > all.len() / 2);
    assert_eq!(gradients(Keep::BlockInputs)?, all);
    Ok(())
}

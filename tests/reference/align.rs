//! Stage 2: free latents under all three weights, and an autoencoder: losses, gradients, ten steps.

use std::path::Path;

use flowprior::flow::objective::Velocity;
use flowprior::flow::{Batch, Draws, LatentGradient, Objective, Reduction, Times, Want, Weight};
use flowprior::nn::{Autoencoder, AutoencoderConfig, Condition, Form, Grads, Keep, Layers, Layout, Params};
use flowprior::ops::grad_norm::grad_norm;
use flowprior::ops::linear::Activation;
use flowprior::ops::optimizer::{Betas, Rounding, Rule};
use flowprior::ops::reconstruction::{Distance, reconstruction};
use flowprior::optim::{Optimizer, OptimizerConfig};
use flowprior::train::align::{Alignment, AutoencoderTask, LATENTS, LatentTask};
use flowprior::train::engine::{Engine, Losses, Task};
use flowprior::train::prior::Prior;
use flowprior::train::task::StepAt;
use flowprior::train::{Config, Stage};
use flowprior::{Result, Tensor};

use super::engine::{device, matrix, outputs_of, wide};
use super::fixture::{Fixture, Tensors, assert_close};
use super::{
    F32, ROWS, assert_all_close, config, engine_from, integer, named, network, network_file, unshuffled,
};

const WEIGHTS: [&str; 3] = ["uniform", "likelihood", "kl"];

pub fn prior(dir: &Path, case: &Fixture) -> Result<Prior<f32>> {
    Prior::read(&device(None)?, &network_file(dir, case), None)
}

/// Makes all steps; returns losses and gradient norms.
pub fn train(engine: &mut Engine<f32>, task: &mut impl Task<f32>, steps: usize) -> Result<[Vec<f64>; 2]> {
    let mut curves = [Vec::new(), Vec::new()];
    for _ in 0..steps {
        let report = engine.advance_and_look(task)?;
        curves[0].push(report.losses.loss);
        curves[1].push(report.grad_norm);
    }
    Ok(curves)
}

#[track_caller]
fn assert_curves(what: &str, curves: &[Vec<f64>; 2], case: &Fixture, prefix: &str) {
    for (name, curve) in ["losses", "grad_norms"].iter().zip(curves) {
        assert_close(&format!("{what}: {name}"), curve, &case.values(&format!("{prefix}{name}")), F32);
    }
}

/// Aligns free latents as `flowprior align` does.
fn latents(case: &str, weight: &str, modulation: &str) -> Result<()> {
    let fixture = Fixture::open(&format!("align_{case}"));
    let what = format!("{case}, {weight}, {modulation}");
    let gradient = if weight == "kl" { "detached" } else { "full" };
    let more = [
        format!("align.latents={ROWS}"),
        format!("align.gradient={gradient}"),
        format!("flow.weight={weight}"),
        format!("flow.weight_clip={}", fixture.config()["clip_t"]),
        format!("model.modulation={modulation}"),
    ];
    let config = config(Stage::Align, &fixture, "adam", &more)?;
    let dir = tempfile::tempdir().unwrap();
    let (mut task, fresh) = LatentTask::new(&config, &device(None)?, prior(dir.path(), &fixture)?)?;
    assert_eq!(task.alignment.objective.form.to_string(), modulation);
    let initial = Tensors::from([(LATENTS.to_owned(), fixture.tensor("latents"))]);
    let mut engine = engine_from(&config, &fresh.optimizer.params, &initial)?;

    let first = train(&mut engine, &mut task, 1)?;
    assert_close(&what, &first[0], &[fixture.scalar(&format!("{weight}.loss"))], F32);
    let gradient = wide(&engine.grads().named(LATENTS)?.to_f32_vec().unwrap());
    assert_close(&what, &gradient, &fixture.values(&format!("{weight}.dlatents")), F32);

    let rest = train(&mut engine, &mut task, integer(&fixture, "steps") - 1)?;
    let curves = [0, 1].map(|i| [&first[i][..], &rest[i]].concat());
    assert_curves(&what, &curves, &fixture, &format!("{weight}.adam."));
    let moved = wide(&engine.optimizer.params.named(LATENTS)?.to_f32_vec().unwrap());
    assert_close(&what, &moved, &fixture.values(&format!("{weight}.adam.latents")), F32);
    Ok(())
}

#[test]
fn free_latents_move_as_pytorchs_under_every_weight() -> Result<()> {
    for case in ["plain", "flow_mul"] {
        for weight in WEIGHTS {
            latents(case, weight, "direct")?;
            latents(case, weight, "nodes=16")?;
        }
    }
    Ok(())
}

fn weight_of(name: &str) -> Weight {
    match name {
        "uniform" => Weight::Uniform,
        "likelihood" => Weight::Likelihood { clip: 0.98 },
        _ => Weight::Kl { clip: 0.98 },
    }
}

/// `align` refuses conditional priors, so this one is put together by hand.
#[test]
fn latents_under_a_conditional_prior_move_as_pytorchs() -> Result<()> {
    let fixture = Fixture::open("align_cond");
    let device = device(None)?;
    let (net, prior) = network::<f32>(&device, &fixture)?;
    let (d, seed) = (net.config().channels, integer(&fixture, "seed") as u64);
    let z = matrix(&device, net.config().cond, &fixture.values("z"))?;
    for weight in WEIGHTS {
        let objective = Objective {
            samples: ROWS,
            flow_mul: integer(&fixture, "flow_mul"),
            times: Times::Uniform,
            time_range: (0.0, 1.0),
            weight: weight_of(weight),
            control_variate: false,
            reduction: Reduction::MeanAll,
            form: Form::Direct,
            label_dropout: 0.0,
            recompute: false,
        };
        let gradient = if weight == "kl" { LatentGradient::Detached } else { LatentGradient::Full };
        let mut optimizer = latents_under_adam(&fixture)?;
        let mut curves = [Vec::new(), Vec::new()];
        for step in 0..integer(&fixture, "steps") {
            let y = wide(&optimizer.params.named(LATENTS)?.to_f32_vec().unwrap());
            let y = matrix(&device, d, &y)?;
            let velocity = Velocity { net: &net.clone().into(), params: &prior, tables: None };
            let cond = Condition { vectors: Some(&z), ..Condition::default() };
            let batch = Batch { data: &y, cond, first: 0 };
            let draws = Draws::training(seed, step as u64);
            let outcome = objective.evaluate(velocity, batch, draws, 1.0, Want::Latents(gradient))?;
            curves[0].push(outcome.loss()?);
            let dy = outcome.dy.unwrap();
            if step == 0 {
                let expected = fixture.values(&format!("{weight}.dlatents"));
                assert_close(weight, &wide(dy.host()?), &expected, F32);
            }
            let mut grads = Grads::zeros(&device, optimizer.params.layout().clone());
            grads.add_named(LATENTS, &dy)?;
            curves[1].push(grad_norm(grads.flat(), 1.0)?);
            optimizer.step(&grads, 1e-2, 1.0, Rounding::Nearest)?;
        }
        assert_curves(weight, &curves, &fixture, &format!("{weight}.adam."));
        let moved = wide(&optimizer.params.named(LATENTS)?.to_f32_vec().unwrap());
        assert_close(weight, &moved, &fixture.values(&format!("{weight}.adam.latents")), F32);
    }
    Ok(())
}

fn latents_under_adam(fixture: &Fixture) -> Result<Optimizer<f32>> {
    let device = device(None)?;
    let (shape, values) = fixture.tensor("latents");
    let mut layout = Layout::default();
    layout.add(LATENTS, &shape[..], flowprior::nn::Init::Zeros);
    let flat = super::engine::flat(&layout, &Tensors::from([(LATENTS.to_owned(), (shape, values))]));
    let params = Params::from_flat(&device, layout.into(), &flat)?;
    let rule = Rule::Adam(Betas { beta1: 0.9, beta2: 0.999, eps: 1e-8 });
    let config = OptimizerConfig { rule, weight_decay: 0.0, ema: Vec::new() };
    Optimizer::new(config, params, Tensor::from_f32(&device, [flat.len()], &flat)?)
}

#[test]
fn weights_of_rows_are_pytorchs() {
    for case in ["plain", "flow_mul", "cond"] {
        let fixture = Fixture::open(&format!("align_{case}"));
        for weight in WEIGHTS {
            let at = |t: f32| f64::from(weight_of(weight).at(t));
            let found: Vec<f64> = fixture.f32("t").into_iter().map(at).collect();
            // 2e-6: of 1 − t at the clip 0.02 is left, with the rounding of 0.98.
            assert_close(weight, &found, &fixture.values(&format!("{weight}.w")), 2e-6);
        }
    }
}

fn autoencoder_config(
    dir: &Path,
    case: &Fixture,
    kind: &str,
    modulation: &str,
    more: &[&str],
) -> Result<Config> {
    let c = case.config();
    let seed = integer(case, "seed") as u64;
    let mut sets = vec![
        unshuffled(dir, seed, &case.values("x"), integer(case, "steps"))?,
        "align.target=autoencoder".to_owned(),
        format!("align.lambda={}", c["lambda"]),
        "align.autoencoder.hidden=[16, 16]".to_owned(),
        format!("align.autoencoder.latent={}", c["channels"]),
        format!("flow.weight={}", c["weight"].as_str().unwrap()),
        format!("model.modulation={modulation}"),
    ];
    sets.extend(more.iter().map(|set| set.to_string()));
    config(Stage::Align, case, kind, &sets)
}

/// Aligns an autoencoder as `flowprior align` does.
fn autoencoder(case: &str, kind: &str, modulation: &str) -> Result<()> {
    let fixture = Fixture::open(&format!("autoencoder_{case}"));
    let what = format!("{case}, {kind}, {modulation}");
    let dir = tempfile::tempdir().unwrap();
    let config = autoencoder_config(dir.path(), &fixture, kind, modulation, &[])?;
    let (mut task, fresh) = AutoencoderTask::new(&config, &device(None)?, prior(dir.path(), &fixture)?)?;
    assert_eq!(task.alignment.objective.form.to_string(), modulation);
    let mut engine = engine_from(&config, &fresh.optimizer.params, &fixture.prefixed("initial."))?;

    let mut grads = Grads::zeros(&device(None)?, engine.optimizer.params.layout().clone());
    let losses = task.losses(&engine.optimizer.params, 0, 1.0, &mut grads)?;
    assert_close(&what, &[losses.loss], &[fixture.scalar("loss")], F32);
    for (part, name) in [("reconstruction", "rec_loss"), ("alignment", "align_loss")] {
        assert_close(&what, &[part_of(&losses, part)], &[fixture.scalar(name)], F32);
    }
    assert_all_close(&what, &outputs_of(&grads)?, &fixture.prefixed("grad."), F32);

    let curves = train(&mut engine, &mut task, integer(&fixture, "steps"))?;
    assert_curves(&what, &curves, &fixture, &format!("{kind}."));
    let params = &engine.optimizer.params;
    let found = named(params.layout(), params.flat())?;
    assert_all_close(&what, &found, &fixture.prefixed(&format!("{kind}.param.")), F32);
    Ok(())
}

pub fn part_of(losses: &Losses, name: &str) -> f64 {
    losses.parts.iter().find(|(part, _)| *part == name).unwrap().1
}

#[test]
fn an_autoencoder_trains_as_pytorchs() -> Result<()> {
    for case in ["uniform", "likelihood"] {
        for kind in ["adam", "adamw"] {
            autoencoder(case, kind, "direct")?;
            autoencoder(case, kind, "nodes=16")?;
        }
    }
    Ok(())
}

#[test]
fn the_adaptive_weight_is_pytorchs() -> Result<()> {
    for case in ["uniform", "likelihood"] {
        let fixture = Fixture::open(&format!("autoencoder_{case}"));
        let dir = tempfile::tempdir().unwrap();
        let more = ["align.adaptive=true"];
        let config = autoencoder_config(dir.path(), &fixture, "adam", "direct", &more)?;
        let (mut task, fresh) = AutoencoderTask::new(&config, &device(None)?, prior(dir.path(), &fixture)?)?;
        let engine = engine_from(&config, &fresh.optimizer.params, &fixture.prefixed("initial."))?;
        let mut grads = Grads::zeros(&device(None)?, engine.optimizer.params.layout().clone());
        let losses = task.losses(&engine.optimizer.params, 0, 1.0, &mut grads)?;
        let adaptive = fixture.scalar("adaptive_weight");
        let found = part_of(&losses, "alignment_weight") / config.align.lambda;
        assert_close(case, &[found], &[adaptive], F32);
        let loss = fixture.scalar("rec_loss") + 0.3 * adaptive * fixture.scalar("align_loss");
        assert_close(case, &[losses.loss], &[loss], F32);
    }
    Ok(())
}

#[test]
fn latents_reconstruction_and_the_gradient_between_are_pytorchs() -> Result<()> {
    for case in ["uniform", "likelihood"] {
        let fixture = Fixture::open(&format!("autoencoder_{case}"));
        let dir = tempfile::tempdir().unwrap();
        let config = autoencoder_config(dir.path(), &fixture, "adam", "direct", &[])?;
        let alignment = Alignment::new(&config, prior(dir.path(), &fixture)?, ROWS)?;
        let net = Autoencoder::new(AutoencoderConfig {
            data: 12,
            tokens: 1,
            latent: 5,
            layers: Layers::Mlp { hidden: vec![16, 16], activation: Activation::Silu },
        })?;
        let device = device(None)?;
        let flat = super::engine::flat(net.layout(), &fixture.prefixed("initial."));
        let params = Params::<f32>::from_flat(&device, net.layout().clone(), &flat)?;
        let x = matrix::<f32>(&device, 12, &fixture.values("x"))?;
        let (y, _) = net.encode(&params, x.duplicate()?, Keep::All)?;
        assert_close(case, &wide(y.host()?), &fixture.values("y"), F32);
        let (x_hat, decoded) = net.decode(&params, y.duplicate()?, Keep::All)?;
        assert_close(case, &wide(x_hat.host()?), &fixture.values("reconstruction"), F32);
        let (_, dx_hat) = reconstruction(&x_hat, &x, Distance::L2, 1.0 / x.len() as f32)?;
        let mut grads = Grads::zeros(&device, net.layout().clone());
        let through_decoder = net.decode_backward(&params, decoded, dx_hat, &mut grads)?;
        let (_, through_prior) =
            alignment.gradients(&y, 0, None, StepAt { step: 0, loss_scale: 1.0.into(), counter: 0 }, None)?;
        let both = wide(through_decoder.host()?).into_iter().zip(wide(through_prior.host()?));
        let dy: Vec<f64> = both.map(|(rec, align)| rec + 0.3 * align).collect();
        assert_close(case, &dy, &fixture.values("dy"), F32);
    }
    Ok(())
}

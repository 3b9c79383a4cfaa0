//! Stage 1: loss and gradients of a step, ten steps of Adam and AdamW, clipping, averages, and the schedule.

use flowprior::flow::objective::Velocity;
use flowprior::flow::{Batch, Draws, Objective, Reduction, Times, Want, Weight};
use flowprior::nn::{Condition, Form, Grads};
use flowprior::ops::flow_path::{Rows, TimeSampler, draw_times, interpolate};
use flowprior::optim::schedule::{Schedule, ScheduleKind};
use flowprior::rng::{Draw, Stream};
use flowprior::train::Stage;
use flowprior::train::pretrain::Pretrain;
use flowprior::{FloatX, Result, Tensor};
use half::{bf16, f16};

use super::engine::{device, isas, matrix, outputs_of, wide};
use super::fixture::{Fixture, assert_close};
use super::{
    F32, ROWS, assert_all_close, config, engine_from, forms, integer, named, network, optional, unshuffled,
};

const CASES: [&str; 5] = ["plain", "cond", "post_norm", "time_scale", "flow_mul"];

fn objective(case: &Fixture, form: Form) -> Objective {
    Objective {
        samples: ROWS,
        flow_mul: integer(case, "flow_mul"),
        times: Times::Uniform,
        time_range: (0.0, 1.0),
        weight: Weight::Uniform,
        control_variate: false,
        reduction: Reduction::MeanAll,
        form,
        label_dropout: 0.0,
        recompute: false,
    }
}

fn check<X: FloatX>(tolerance: f64) -> Result<()> {
    for case in CASES {
        let fixture = Fixture::open(&format!("prior_{case}"));
        let seed = integer(&fixture, "seed") as u64;
        for isa in isas() {
            let device = device(Some(isa))?;
            let (net, params) = network::<X>(&device, &fixture)?;
            let width = net.config().cond;
            let cond = (width > 0).then(|| matrix(&device, width, &optional(&fixture, "z"))).transpose()?;
            let data = matrix(&device, net.config().channels, &fixture.values("data"))?;
            for form in forms(&fixture) {
                let what = format!("{case}, {}, {isa:?}, {form}", X::DTYPE);
                let mut grads = Grads::zeros(&device, net.layout().clone());
                let velocity = Velocity { net: &net.clone().into(), params: &params, tables: None };
                let cond = Condition { vectors: cond.as_ref(), ..Condition::default() };
                let batch = Batch { data: &data, cond, first: 0 };
                let draws = Draws::training(seed, 0);
                let want = Want::Params(&mut grads);
                let loss = objective(&fixture, form).evaluate(velocity, batch, draws, 1.0, want)?.loss()?;
                assert_close(&what, &[loss], &[fixture.scalar("loss")], tolerance);
                let without = objective(&fixture, form).evaluate(velocity, batch, draws, 1.0, Want::Loss)?;
                assert_eq!(without.loss()?, loss, "{what}: the loss alone is another one");
                assert_all_close(&what, &outputs_of(&grads)?, &fixture.prefixed("grad."), tolerance);
            }
        }
    }
    Ok(())
}

#[test]
fn loss_and_every_gradient_are_pytorchs_on_every_instruction_set() -> Result<()> {
    check::<f32>(F32)
}

#[test]
fn loss_and_every_gradient_are_pytorchs_to_the_precision_of_bf16() -> Result<()> {
    // 3e-2, not the 2e-2 of network.rs: layer-norm parameters reach 2.1e-2 (post_norm) and 2.7e-2 (time_scale). No one
    // step is to blame: PyTorch's own dv in the place of ours brings the second to 1.3e-2, but the first to 2.7e-2. f16,
    // eight times finer, stays below 3.3e-3: it is the rounding of storage.
    check::<bf16>(3e-2)
}

#[test]
fn loss_and_every_gradient_are_pytorchs_to_the_precision_of_f16() -> Result<()> {
    check::<f16>(5e-3)
}

#[test]
fn times_and_interpolated_data_are_pytorchs() -> Result<()> {
    for case in CASES {
        let fixture = Fixture::open(&format!("prior_{case}"));
        let seed = integer(&fixture, "seed") as u64;
        let replicas = integer(&fixture, "flow_mul");
        let rows = Rows { first: 0, samples: ROWS, replicas, share: 1 };
        for isa in isas() {
            let device = device(Some(isa))?;
            let draw = |stream| Draw::new(seed, stream, 0);
            let t = draw_times(&device, draw(Stream::Time), rows, TimeSampler::Uniform, (0.0, 1.0))?;
            assert_eq!(wide(t.host()?), fixture.values("t"), "{case}");
            let data = matrix(&device, integer(&fixture, "channels"), &fixture.values("data"))?;
            let x_t: Tensor<f32> = interpolate(&data, &t, draw(Stream::Noise), rows)?;
            // 1e-6: logarithm, root, sine and cosine of the noise in f32.
            assert_close(case, &wide(x_t.host()?), &fixture.values("x_t"), 1e-6);
        }
    }
    Ok(())
}

/// Trains ten steps as `flowprior pretrain` does; `kind` is adam or adamw.
fn ten_steps(case: &str, kind: &str, modulation: &str) -> Result<()> {
    let fixture = Fixture::open(&format!("prior_{case}"));
    let settings = fixture.config();
    let dir = tempfile::tempdir().unwrap();
    let steps = integer(&fixture, "steps");
    let seed = integer(&fixture, "seed") as u64;
    let mut more = vec![
        unshuffled(dir.path(), seed, &fixture.values("data"), steps)?,
        format!("model.modulation={modulation}"),
    ];
    more.extend(settings["clip"].as_f64().map(|clip| format!("optim.clip={clip:?}")));
    more.extend(settings["ema_decay"].as_f64().map(|decay| format!("optim.ema=[{decay:?}]")));
    let config = config(Stage::Pretrain, &fixture, kind, &more)?;
    let (mut task, fresh) = Pretrain::new::<f32>(&config, &device(None)?)?;
    let initial = Fixture::open("weights_plain").prefixed("");
    let mut engine = engine_from(&config, &fresh.optimizer.params, &initial)?;
    let mut curves = [Vec::new(), Vec::new()];
    for _ in 0..steps {
        let report = engine.advance_and_look(&mut task)?;
        curves[0].push(report.losses.loss);
        curves[1].push(report.grad_norm);
    }
    let what = format!("{case}, {modulation}");
    for (name, curve) in ["losses", "grad_norms"].iter().zip(&curves) {
        assert_close(&format!("{what}: {name}"), curve, &fixture.values(name), F32);
    }
    let optimizer = &engine.optimizer;
    let layout = optimizer.params.layout();
    let found = named(layout, optimizer.params.flat())?;
    assert_all_close(&what, &found, &fixture.prefixed("param."), F32);
    if settings["ema_decay"].is_number() {
        let found = named(layout, optimizer.averaged()?.flat())?;
        assert_all_close(&format!("{what}, EMA"), &found, &fixture.prefixed("ema."), F32);
    }
    Ok(())
}

#[test]
fn ten_adam_steps_end_at_pytorchs_parameters() -> Result<()> {
    ten_steps("adam", "adam", "direct")?;
    ten_steps("adam", "adam", "nodes=16")
}

#[test]
fn ten_adamw_steps_end_at_pytorchs_parameters() -> Result<()> {
    ten_steps("adamw", "adamw", "direct")?;
    ten_steps("adamw", "adamw", "nodes=16")
}

#[test]
fn ten_clipped_adamw_steps_end_at_pytorchs_parameters_and_average() -> Result<()> {
    ten_steps("adamw_clip", "adamw", "direct")?;
    ten_steps("adamw_clip", "adamw", "nodes=16")
}

#[test]
fn the_cosine_schedule_is_timms() {
    let fixture = Fixture::open("schedule");
    for (name, settings) in fixture.config().as_object().unwrap() {
        let number = |key: &str| settings[key].as_f64().unwrap();
        let schedule = Schedule {
            kind: ScheduleKind::Cosine,
            warmup_steps: settings["warmup"].as_u64().unwrap(),
            warmup_lr: number("warmup_lr"),
            min_lr_ratio: number("lr_min") / number("lr"),
            decay_steps: 0,
        };
        let steps = settings["total"].as_u64().unwrap();
        let rates = fixture.values(&format!("{name}.step")).into_iter();
        let found: Vec<f64> = rates.map(|s| schedule.rate(number("lr"), steps, s as u64)).collect();
        assert_close(name, &found, &fixture.values(&format!("{name}.lr")), 1e-12);
    }
}

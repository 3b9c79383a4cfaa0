//! What the device decides, step by step, against the rules on the host: norm, clip factor, loss scale, corrections, skipped steps.

use flowprior::ops::divergence::probe_products;
use flowprior::ops::entropy::{entropy_backward, entropy_forward};
use flowprior::ops::flow_loss::{Scale, Target, Weight, flow_loss_backward};
use flowprior::ops::flow_path::Rows;
use flowprior::ops::grad_norm::clip_factor;
use flowprior::ops::linear::linear_loss_backward;
use flowprior::ops::optimizer::{Betas, Rounding, Rule, State, Step, optimizer_step, optimizer_step_by};
use flowprior::ops::reconstruction::{Distance, reconstruction};
use flowprior::ops::sliced_wasserstein::{directions, sliced_wasserstein};
use flowprior::ops::step_control::{Scaling, StepControl, StepRules};
use flowprior::optim::scaler::{Scaler, ScalerConfig};
use flowprior::rng::{Draw, Stream};
use flowprior::{Device, Result, Tensor};

use crate::support::devices::devices;
use crate::support::oracle::same_bits;
use crate::support::random::Random;

const N: usize = 70_000;
const STEPS: usize = 24;
const CLIP: f64 = 0.5;
/// Weight decay acts on two parts.
const DECAYED: [std::ops::Range<usize>; 2] = [0..N / 4, N / 2..N - 3];

fn scaler() -> ScalerConfig {
    ScalerConfig { init: 1024.0, growth: 2.0, backoff: 0.25, interval: 3, min: 64.0 }
}

fn rules(rule: Rule) -> StepRules {
    let config = scaler();
    StepRules {
        rule,
        weight_decay: 0.01,
        clip: CLIP as f32,
        rates: (0..STEPS).map(|s| 1e-3 * (1.0 + s as f32)).collect(),
        scaling: Some(Scaling {
            growth: config.growth as f32,
            backoff: config.backoff as f32,
            smallest: config.min as f32,
            interval: config.interval as u32,
        }),
    }
}

/// Parameters and moments.
struct Weights {
    params: Tensor<f32>,
    m: Tensor<f32>,
    v: Option<Tensor<f32>>,
    emas: Vec<(f32, Tensor<f32>)>,
}

impl Weights {
    fn new(device: &Device, rule: Rule) -> Result<Self> {
        let values: Vec<f32> = Random::new("weights").normals(N).into_iter().map(|v| v as f32).collect();
        let params = Tensor::from_f32(device, [N], &values)?;
        let emas = [0.9, 0.99, 0.5].map(|decay| Ok((decay, params.duplicate()?)));
        Ok(Self {
            m: Tensor::zeros(device, [N]),
            v: rule.has_second_moment().then(|| Tensor::zeros(device, [N])),
            emas: emas.into_iter().collect::<Result<_>>()?,
            params,
        })
    }

    fn split(&mut self) -> (&mut Tensor<f32>, State<'_>) {
        let state = State { master: None, m: &mut self.m, v: self.v.as_mut(), emas: &mut self.emas };
        (&mut self.params, state)
    }
}

#[test]
fn the_device_decides_as_the_host_does() -> Result<()> {
    let betas = Betas { beta1: 0.9, beta2: 0.95, eps: 1e-8 };
    for (_, device) in devices().filter(|(_, device)| matches!(device, Device::Cuda(_))) {
        for rule in [Rule::AdamW(betas), Rule::Sgd { momentum: 0.9, nesterov: true }] {
            follow(device, rule)?;
        }
    }
    Ok(())
}

/// The loss scale is a power of two, so gradients times it are those times a number, bit for bit.
#[test]
fn gradients_take_the_loss_scale_where_it_lies() -> Result<()> {
    let (n, d) = (37, 24);
    for (_, device) in devices().filter(|(_, device)| matches!(device, Device::Cuda(_))) {
        let mut control =
            StepControl::new(device, rules(Rule::Sgd { momentum: 0.0, nesterov: false }), 0, 0)?;
        control.set_scale(64.0, 0)?;
        let there = control.loss_scale().times(0.5);
        let of = |name: &str, rows: usize, columns: usize| {
            let values: Vec<f32> =
                Random::new(name).normals(rows * columns).iter().map(|v| *v as f32).collect();
            Tensor::from_f32(device, [rows, columns], &values)
        };
        let (x, y, w) = (of("x", n, d)?, of("y", n, d)?, of("w", d, d)?);
        let (t, draw) = (Tensor::from_f32(device, [n], &vec![0.25; n])?, Draw::new(3, Stream::Noise, 1));
        let (weight, centred) = (Weight::Constant(1.5), false);
        let target = Target {
            data: &y,
            t: &t,
            noise: draw,
            rows: Rows::plain(n),
            weight,
            control_variate: false,
            centred,
        };
        let bias = Tensor::<f32>::zeros(device, [d]);
        let found = entropy_forward(&y, 1, 0.0)?;
        let gradients = |scale: Scale| -> Result<[(&str, Tensor<f32>); 7]> {
            let (mut entropy, mut sliced) = (Tensor::zeros(device, [n, d]), Tensor::zeros(device, [n, d]));
            entropy_backward(&mut entropy, &y, &found, scale)?;
            sliced_wasserstein(&mut sliced, &y, &x, &directions(device, draw, 5, d)?, scale)?;
            Ok([
                ("flow loss", flow_loss_backward(&x, &target, scale)?.1),
                ("layer with the loss", linear_loss_backward(&x, w.view(), bias.view(), &target, scale)?.1),
                ("L1", reconstruction(&x, &y, Distance::L1, scale)?.1),
                ("L2", reconstruction(&x, &y, Distance::L2, scale)?.1),
                ("probes", probe_products(&of("v", 2 * n, d)?, draw, 0.125, scale)?.1),
                ("entropy", entropy),
                ("sliced", sliced),
            ])
        };
        for ((name, found), (_, expected)) in gradients(there)?.iter().zip(&gradients(32.0.into())?) {
            same_bits(&found.to_f32_vec()?, &expected.to_f32_vec()?, name);
            assert!(expected.to_f32_vec()?.iter().any(|x| *x != 0.0), "{name}");
        }
    }
    Ok(())
}

fn follow(device: &Device, rule: Rule) -> Result<()> {
    let mut control = StepControl::new(device, rules(rule), 0, 0)?;
    let (mut there, mut here) = (Weights::new(device, rule)?, Weights::new(device, rule)?);
    let mut scale = Scaler::new(&scaler());
    control.set_scale(scale.scale(), 0)?;
    let (mut updates, mut skipped, mut in_a_row) = (0, 0, 0);
    for step in 0..STEPS {
        // Large and small gradients, some that overflow, and one step with a loss that is no number.
        let size =
            [1e-4, 1.0, 3e-3, f64::INFINITY][[0, 1, 2, 0, 3, 1, 2, 1][step % 8]] * scale.scale() as f64;
        let mut g: Vec<f32> =
            Random::new("g").normals(N).into_iter().map(|v| (v * 1e-2 * size.min(1e9)) as f32).collect();
        g[N - 1] = if size.is_finite() { g[N - 1] } else { f32::INFINITY };
        let loss = if step == 11 { f32::NAN } else { 0.25 };
        let rows = Tensor::from_f32(device, [300], &vec![loss; 300])?;
        let grads = Tensor::from_f32(device, [N], &g)?;
        control.begin()?;
        control.add_loss(2, &rows, 0.5, 3.0)?;
        control.add_value(1, 7.0, 2.0)?;
        control.add_loss(0, &rows, 1.0, 1.0)?;
        control.decide(&grads)?;
        let (params, state) = there.split();
        optimizer_step_by(params, state, &grads, &DECAYED, (rule, Rounding::Nearest), &control)?;
        let found = control.look()?;

        let norm = g.iter().map(|v| (*v as f64).powi(2)).sum::<f64>().sqrt() / scale.scale() as f64;
        let trouble = if loss.is_nan() { 1 } else { 2 * !norm.is_finite() as u32 };
        assert_eq!((found.step, found.trouble), (step as u64, trouble), "step {step}");
        if norm.is_finite() {
            assert!((found.norm() - norm).abs() <= 1e-6 * norm, "step {step}: {} and {norm}", found.norm());
        }
        if !loss.is_nan() {
            assert_eq!(found.losses()[..4], [14.0 + 112.5 + 75.0, 7.0, 37.5, 0.0], "step {step}");
        }
        assert_eq!(found.used_scale, scale.scale(), "step {step}");
        if trouble == 0 {
            (updates, in_a_row) = (updates + 1, 0);
            let lr = 1e-3 * (1.0 + step as f32);
            let grad_scale = (clip_factor(norm, CLIP) / scale.scale() as f64) as f32;
            let numbers = Step {
                rule,
                lr,
                weight_decay: 0.01,
                count: updates,
                grad_scale,
                rounding: Rounding::Nearest,
            };
            let (params, state) = here.split();
            optimizer_step(params, state, &grads, &DECAYED, &numbers)?;
        } else {
            (skipped, in_a_row) = (skipped + 1, in_a_row + 1);
        }
        scale.update(&scaler(), trouble == 0);
        assert_eq!((found.loss_scale, found.good_steps), (scale.scale(), scale.good_steps()), "step {step}");
        assert_eq!(
            (found.updates, found.skipped, found.in_a_row),
            (updates, skipped, in_a_row),
            "step {step}"
        );
        let buffers = |w: &Weights| -> Result<Vec<f32>> {
            let mut all = w.params.to_f32_vec()?;
            w.emas.iter().try_for_each(|(_, ema)| ema.to_f32_vec().map(|x| all.extend(x)))?;
            Ok(all)
        };
        for (i, (a, b)) in buffers(&there)?.iter().zip(buffers(&here)?).enumerate() {
            assert!((a - b).abs() <= 2e-5 * b.abs().max(1e-2), "step {step}, element {i}: {a} and {b}");
        }
    }
    assert!(skipped > 3 && updates > 12, "{skipped} skipped, {updates} made");
    Ok(())
}

#[test]
fn the_cpu_and_a_run_without_steps_are_refused() -> Result<()> {
    let rule = Rule::Lion { beta1: 0.9, beta2: 0.99 };
    for (name, device) in devices() {
        let none = StepControl::new(device, StepRules { rates: Vec::new(), ..rules(rule) }, 0, 0);
        let on_cpu = matches!(device, Device::Cpu(_));
        let message = none.unwrap_err().to_string();
        assert!(
            message.contains(if on_cpu { "a CUDA device" } else { "a rate for each step" }),
            "{name}: {message}"
        );
    }
    Ok(())
}

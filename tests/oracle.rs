//! The f64 oracle against PyTorch's numbers, against finite differences, and its two forms against each other.

#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/mlp_f64.rs"]
mod mlp_f64;

use fixture::{Fixture, assert_close, relative_error};
use flowprior::device::Isa;
use flowprior::rng::{Draw, Stream};
use mlp_f64::{Config, Gradients, Mlp, Modulation};

const CASES: [&str; 4] = ["plain", "cond", "post_norm", "time_scale"];

fn config_of(fixture: &Fixture) -> Config {
    let config = fixture.config();
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    Config {
        channels: size("channels"),
        width: size("width"),
        depth: size("depth"),
        cond: size("cond"),
        post_norm: config["post_norm"].as_bool().unwrap(),
        time_scale: config["time_scale"].as_f64().unwrap(),
    }
}

fn network_of(fixture: &Fixture) -> Mlp {
    let weights = Fixture::open(&format!("weights_{}", fixture.config()["weights"].as_str().unwrap()));
    Mlp { config: config_of(fixture), params: weights.prefixed("") }
}

fn optional(fixture: &Fixture, name: &str) -> Vec<f64> {
    if fixture.names().iter().any(|n| n == name) { fixture.values(name) } else { Vec::new() }
}

/// Repeats the rows of `x`, which may be empty, block by block.
fn tiled(x: &[f64], copies: usize) -> Vec<f64> {
    x.repeat(copies)
}

/// Returns v and gradients of a network on fixed inputs, t spread over [0, 1] with both ends.
fn run(net: &Mlp, rows: usize, modulation: Modulation) -> (Vec<f64>, Gradients) {
    let wave = |i: usize, f: f64| (f * (i as f64 + 1.0)).sin() * 1.5;
    let x_t: Vec<f64> = (0..rows * net.config.channels).map(|i| wave(i, 1.7)).collect();
    let dv: Vec<f64> = (0..rows * net.config.channels).map(|i| wave(i, 2.3)).collect();
    let t: Vec<f64> = (0..rows).map(|i| i as f64 / (rows - 1) as f64).collect();
    let (v, saved) = net.forward(&x_t, &t, &[], modulation);
    (v, net.backward(&saved, &dv))
}

/// Returns the largest error of v, dx and every gradient, relative to each tensor's range.
fn nodes_against_direct(net: &Mlp, r: usize) -> f64 {
    let (v, exact) = run(net, 57, Modulation::Direct);
    let (w, nodes) = run(net, 57, Modulation::Nodes(r));
    let mut worst = relative_error(&w, &v).max(relative_error(&nodes.dx, &exact.dx));
    for (name, (_, expected)) in &exact.params {
        worst = worst.max(relative_error(&nodes.params[name].1, expected));
    }
    worst
}

fn small() -> Config {
    Config { channels: 3, width: 32, depth: 3, cond: 0, post_norm: false, time_scale: 1.0 }
}

#[test]
fn velocity_and_every_gradient_are_pytorchs() {
    for case in CASES {
        let fixture = Fixture::open(&format!("network_{case}"));
        let net = network_of(&fixture);
        let z = optional(&fixture, "z");
        let (v, saved) = net.forward(&fixture.values("x_t"), &fixture.values("t"), &z, Modulation::Direct);
        assert_close(&format!("{case}: v"), &v, &fixture.values("v"), 1e-12);
        let grads = net.backward(&saved, &fixture.values("dv"));
        assert_close(&format!("{case}: dx"), &grads.dx, &fixture.values("dx"), 1e-12);
        assert_close(&format!("{case}: dz"), &grads.dz, &optional(&fixture, "dz"), 1e-12);
        let expected = fixture.prefixed("grad.");
        assert!(expected.keys().eq(grads.params.keys()), "{case}: other parameters than PyTorch's");
        for (name, (shape, values)) in expected {
            assert_eq!(grads.params[&name].0, shape, "{case}: {name}");
            assert_close(&format!("{case}: {name}"), &grads.params[&name].1, &values, 1e-12);
        }
    }
}

#[test]
fn nodes_give_pytorchs_gradients_too() {
    let fixture = Fixture::open("network_plain");
    let net = network_of(&fixture);
    let (v, saved) = net.forward(&fixture.values("x_t"), &fixture.values("t"), &[], Modulation::Nodes(16));
    assert_close("v", &v, &fixture.values("v"), 1e-12);
    let grads = net.backward(&saved, &fixture.values("dv"));
    for (name, (_, values)) in fixture.prefixed("grad.") {
        assert_close(&name, &grads.params[&name].1, &values, 1e-12);
    }
}

#[test]
fn matching_loss_and_its_gradients_are_pytorchs() {
    for case in ["plain", "cond", "post_norm", "time_scale", "flow_mul"] {
        let fixture = Fixture::open(&format!("prior_{case}"));
        let net = network_of(&fixture);
        let copies = fixture.config()["flow_mul"].as_u64().unwrap() as usize;
        let (t, noise) = (fixture.values("t"), fixture.values("noise"));
        let data = tiled(&fixture.values("data"), copies);
        let channels = net.config.channels;
        let x_t: Vec<f64> =
            (0..data.len()).map(|i| (1.0 - t[i / channels]) * noise[i] + t[i / channels] * data[i]).collect();
        assert_close(&format!("{case}: x_t"), &x_t, &fixture.values("x_t"), 1e-15);
        let (v, saved) = net.forward(&x_t, &t, &tiled(&optional(&fixture, "z"), copies), Modulation::Direct);
        let r: Vec<f64> = (0..v.len()).map(|i| v[i] - (data[i] - noise[i])).collect();
        let loss = r.iter().map(|r| r * r).sum::<f64>() / r.len() as f64;
        assert_close(&format!("{case}: loss"), &[loss], &[fixture.scalar("loss")], 1e-13);
        let dv: Vec<f64> = r.iter().map(|r| 2.0 * r / v.len() as f64).collect();
        let grads = net.backward(&saved, &dv);
        for (name, (_, values)) in fixture.prefixed("grad.") {
            // 1e-7: these gradients are stored in f32.
            assert_close(&format!("{case}: {name}"), &grads.params[&name].1, &values, 1e-7);
        }
    }
}

/// dL/dy = (2/M) w(t) [t Jᵀr − r], summed over the copies of a latent; `kl` drops the Jᵀ term.
#[test]
fn alignment_gradient_is_pytorchs_for_every_weight() {
    for case in ["plain", "flow_mul", "cond"] {
        let fixture = Fixture::open(&format!("align_{case}"));
        let net = network_of(&fixture);
        let channels = net.config.channels;
        let (t, noise, latents) = (fixture.values("t"), fixture.values("noise"), fixture.values("latents"));
        let copies = noise.len() / latents.len();
        let y = tiled(&latents, copies);
        let time = |i: usize| t[i / channels];
        let x_t: Vec<f64> = (0..y.len()).map(|i| (1.0 - time(i)) * noise[i] + time(i) * y[i]).collect();
        let (v, saved) = net.forward(&x_t, &t, &tiled(&optional(&fixture, "z"), copies), Modulation::Direct);
        for weight in ["uniform", "likelihood", "kl"] {
            let w = |i: usize| {
                let t = time(i).min(0.98);
                match weight {
                    "uniform" => 1.0,
                    "likelihood" => t / (1.0 - t),
                    _ => t * t / (1.0 - t),
                }
            };
            let dr: Vec<f64> =
                (0..v.len()).map(|i| 2.0 / v.len() as f64 * w(i) * (v[i] - (y[i] - noise[i]))).collect();
            let through_x = if weight == "kl" { vec![0.0; y.len()] } else { net.backward(&saved, &dr).dx };
            let mut dlatents = vec![0.0; latents.len()];
            for i in 0..y.len() {
                dlatents[i % latents.len()] += time(i) * through_x[i] - dr[i];
            }
            let expected = fixture.values(&format!("{weight}.dlatents"));
            assert_close(&format!("{case}: {weight}"), &dlatents, &expected, 1e-12);
        }
    }
}

#[test]
fn fixtures_and_engine_draw_the_same_times_and_noise() {
    for name in ["prior_plain", "prior_flow_mul", "align_plain", "align_flow_mul"] {
        let fixture = Fixture::open(name);
        let seed = fixture.config()["seed"].as_u64().unwrap();
        let channels = fixture.config()["channels"].as_u64().unwrap() as usize;
        let (t, noise) = (fixture.values("t"), fixture.values("noise"));
        let samples = t.len() / fixture.config()["flow_mul"].as_u64().unwrap() as usize;
        let mut drawn = vec![0.0f32; noise.len()];
        for (i, row) in drawn.chunks_mut(channels).enumerate() {
            let (sample, replica) = ((i % samples) as u64, (i / samples) as u32);
            assert_eq!(
                f64::from(Draw::new(seed, Stream::Time, 0).uniform(sample, replica)),
                t[i],
                "{name}: t {i}"
            );
            let draw = Draw::new(seed, Stream::Noise, 0);
            Isa::detect().run(
                #[inline(always)]
                |arch| draw.fill_normal(arch, row, sample, replica),
            );
        }
        let drawn: Vec<f64> = drawn.into_iter().map(f64::from).collect();
        // 1e-6: the engine takes logarithm, root, sine and cosine in f32.
        assert_close(name, &drawn, &noise, 1e-6);
    }
}

#[test]
fn every_gradient_agrees_with_finite_differences() {
    let config = Config { channels: 2, width: 6, depth: 2, cond: 3, post_norm: true, time_scale: 2.0 };
    let net = Mlp::randomised(config, 5);
    let x_t = [0.3, -1.2, 0.8, 0.1, -0.4, 2.0];
    let z = [0.5, -0.2, 1.0, 0.7, 0.1, -1.4, 0.0, 0.6, -0.9];
    let (t, dv) = ([0.1, 0.55, 0.97], [1.0, -0.3, 0.2, 0.9, -1.1, 0.4]);
    let value = |net: &Mlp, x_t: &[f64]| {
        let (v, _) = net.forward(x_t, &t, &z, Modulation::Direct);
        v.iter().zip(dv).map(|(v, dv)| v * dv).sum::<f64>()
    };
    let (_, saved) = net.forward(&x_t, &t, &z, Modulation::Direct);
    let grads = net.backward(&saved, &dv);
    let step = 1e-5;
    for (name, (_, expected)) in &grads.params {
        let stride = expected.len().div_ceil(12);
        let picked: Vec<usize> = (0..expected.len()).step_by(stride).collect();
        let slope_at = |i: usize| {
            let moved = |by: f64| {
                let mut other = net.clone();
                other.params.get_mut(name).unwrap().1[i] += by;
                value(&other, &x_t)
            };
            (moved(step) - moved(-step)) / (2.0 * step)
        };
        let slopes: Vec<f64> = picked.iter().map(|i| slope_at(*i)).collect();
        let expected: Vec<f64> = picked.iter().map(|i| expected[*i]).collect();
        // 1e-7: rounding of the values over the step, 1e-16/1e-5, and cancellation where a gradient is small.
        assert_close(name, &slopes, &expected, 1e-7);
    }
    let slopes: Vec<f64> = (0..x_t.len())
        .map(|i| {
            let moved = |by: f64| {
                let mut x_t = x_t;
                x_t[i] += by;
                value(&net, &x_t)
            };
            (moved(step) - moved(-step)) / (2.0 * step)
        })
        .collect();
    assert_close("dx", &slopes, &grads.dx, 1e-7);
}

#[test]
fn nodes_equal_direct_on_initial_and_randomised_networks() {
    let initial = Mlp::initial(small(), 1);
    // Like a network early in training: nothing is zero, the time MLP is as it began.
    let mut opened = Mlp::randomised(small(), 2);
    for part in ["0.weight", "0.bias", "2.weight", "2.bias"] {
        let name = format!("time_embed.mlp.{part}");
        opened.params.insert(name.clone(), initial.params[&name].clone());
    }
    let post_norm = Config { post_norm: true, ..small() };
    let nets = [initial, opened, Mlp::randomised(small(), 3), Mlp::randomised(post_norm, 4)];
    for (i, net) in nets.iter().enumerate() {
        let error = nodes_against_direct(net, 16);
        assert!(error <= 1e-12, "network {i}: {error:.3e}");
    }
}

#[test]
fn too_few_nodes_for_a_rough_network_are_noticed() {
    let mut net = Mlp::randomised(small(), 3);
    net.config.time_scale = 6.0;
    assert!(nodes_against_direct(&net, 16) > 1e-6);
    assert!(nodes_against_direct(&net, 48) <= 1e-12);
}

#[test]
fn a_row_on_a_node_takes_the_nodes_value() {
    let points = mlp_f64::nodes(7);
    let matrix = mlp_f64::interpolation(&points, 7);
    assert!(matrix.iter().enumerate().all(|(i, m)| *m == if i % 8 == 0 { 1.0 } else { 0.0 }));
}

#[test]
fn a_wrong_gradient_is_noticed() {
    assert_eq!(relative_error(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
    assert_eq!(relative_error(&[1.0, 2.0], &[1.0, 4.0]), 0.5);
    assert_eq!(relative_error(&[1.0], &[1.0, 2.0]), f64::INFINITY);
    assert_eq!(relative_error(&[f64::NAN], &[1.0]), f64::INFINITY);
    assert_eq!(relative_error(&[1e-9], &[0.0]), f64::INFINITY);
}

//! Small batches go through the network in strips of rows: the same results as operation by operation, whatever the threads.

use flowprior::flow::objective::Velocity;
use flowprior::flow::{Batch, Draws, LatentGradient, Objective, Reduction, Times, Want, Weight};
use flowprior::nn::{Condition, Form, Grads, Keep, Mlp, MlpConfig, Params, VelocityNet};
use flowprior::ops::flow_loss::{Target, WeightTable, flow_loss_backward, latent_gradient};
use flowprior::ops::flow_path::{Rows, TimeSampler, draw_times, interpolate};
use flowprior::rng::{Draw, Stream};
use flowprior::{Device, FloatX, Tensor};
use half::bf16;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const SEED: u64 = 11;
const STEP: u64 = 3;
/// Samples: several strips, the last of them with an odd number.
const SAMPLES: usize = 155;
const CHANNELS: usize = 3;

fn objective(flow_mul: usize, weight: Weight) -> Objective {
    Objective {
        samples: SAMPLES,
        flow_mul,
        times: Times::Uniform,
        time_range: (0.0, 1.0),
        control_variate: weight != Weight::Uniform,
        weight,
        reduction: Reduction::MeanAll,
        form: Form::Nodes(16),
        label_dropout: 0.0,
        recompute: false,
    }
}

fn network(post_norm: bool) -> Outcome<Mlp> {
    let config = MlpConfig { channels: CHANNELS, width: 50, depth: 2, cond: 0, post_norm, time_scale: 1.0 };
    Ok(Mlp::new(config)?)
}

/// Returns numbers of no particular kind in [-0.2, 0.2).
fn numbers(len: usize) -> Vec<f32> {
    (0..len as u64).map(|i| Draw::new(SEED, Stream::Toy, 0).uniform(i, 0) * 0.4 - 0.2).collect()
}

/// Losses, parameter gradients and latent gradients, full and centred.
type Found = [Vec<f32>; 4];

fn in_strips<X: FloatX>(device: &Device, net: &Mlp, objective: &Objective) -> Outcome<Found> {
    let params = Params::<X>::from_flat(device, net.layout().clone(), &numbers(net.layout().len()))?;
    let data = Tensor::from_f32(device, [SAMPLES, CHANNELS], &numbers(SAMPLES * CHANNELS))?;
    let velocity = Velocity { net: &VelocityNet::Mlp(net.clone()), params: &params, tables: None };
    let batch = Batch { data: &data, cond: Condition::default(), first: 0 };
    let mut grads = Grads::zeros(device, net.layout().clone());
    let evaluate =
        |want: Want<'_>| objective.evaluate(velocity, batch, Draws::training(SEED, STEP), 1.0, want);
    let losses = evaluate(Want::Params(&mut grads))?.rows.to_f32_vec()?;
    assert_eq!(losses, evaluate(Want::Loss)?.rows.to_f32_vec()?);
    let latents = |kind| -> Outcome<Vec<f32>> {
        Ok(evaluate(Want::Latents(kind))?.dy.ok_or("no gradient of latents")?.to_f32_vec()?)
    };
    let (full, centred) = (latents(LatentGradient::Full)?, latents(LatentGradient::Centred)?);
    Ok([losses, grads.flat().to_f32_vec()?, full, centred])
}

fn operation_by_operation<X: FloatX>(device: &Device, net: &Mlp, objective: &Objective) -> Outcome<Found> {
    let params = Params::<X>::from_flat(device, net.layout().clone(), &numbers(net.layout().len()))?;
    let data = Tensor::from_f32(device, [SAMPLES, CHANNELS], &numbers(SAMPLES * CHANNELS))?;
    let rows = Rows { first: 0, samples: SAMPLES, replicas: objective.flow_mul, share: 1 };
    let [noise, time] = [Stream::Noise, Stream::Time].map(|stream| Draw::new(SEED, stream, STEP));
    let t = draw_times(device, time, rows, TimeSampler::Uniform, objective.time_range)?;
    let x_t = interpolate::<X>(&data, &t, noise, rows)?;
    let modulations = net.modulations(&params, objective.form, &t, 1, None)?;
    let (v, saved) = net.forward(&params, x_t, modulations, Keep::All)?;
    let (weight, control_variate) = (objective.weight.clone(), objective.control_variate);
    let target = Target { data: &data, t: &t, noise, rows, weight, control_variate, centred: false };
    let scale = 2.0 / (rows.len() * CHANNELS) as f32;
    let (losses, dv) = flow_loss_backward(&v, &target, scale)?;
    let (_, of_centred) = flow_loss_backward(&v, &Target { centred: true, ..target.clone() }, scale)?;
    let centred = latent_gradient(&of_centred, None, &t, rows, 1.0)?;
    let mut grads = Grads::zeros(device, net.layout().clone());
    let dx_t = net.backward(&params, saved.ok_or("nothing was kept")?, &dv, Some(&mut grads))?;
    let dy = latent_gradient(&dv, Some(&dx_t), &t, rows, 1.0)?;
    Ok([losses.to_f32_vec()?, grads.flat().to_f32_vec()?, dy.to_f32_vec()?, centred.to_f32_vec()?])
}

fn assert_same<X: FloatX>() -> Outcome {
    let device = Device::cpu_with_threads(2)?;
    let table = Weight::Table(WeightTable::new(&device, &[0.0, 2.0, 0.5])?);
    for (post_norm, flow_mul, weight) in
        [(false, 1, Weight::Uniform), (true, 1, table), (false, 3, Weight::Likelihood { clip: 0.9 })]
    {
        let (net, objective) = (network(post_norm)?, objective(flow_mul, weight));
        let found = in_strips::<X>(&device, &net, &objective)?;
        let plain = operation_by_operation::<X>(&device, &net, &objective)?;
        assert!(found[0] == plain[0] && found[2..] == plain[2..], "rows have other bits");
        let largest = plain[1].iter().fold(0f32, |m, x| m.max(x.abs()));
        let apart = found[1].iter().zip(&plain[1]).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        // Sums over rows are grouped by strips.
        assert!(apart <= 1e-6 * largest, "{}: gradients {apart} of {largest} apart", X::DTYPE);
        for threads in [1, 3, 5] {
            let others = in_strips::<X>(&Device::cpu_with_threads(threads)?, &net, &objective)?;
            assert!(found == others, "{threads} threads give other bits");
        }
    }
    Ok(())
}

#[test]
fn strips_give_what_one_operation_after_the_other_gives() -> Outcome {
    assert_same::<f32>()
}

#[test]
fn strips_in_bf16_give_what_one_operation_after_the_other_gives() -> Outcome {
    assert_same::<bf16>()
}

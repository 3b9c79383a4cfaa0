//! Samplers, guidance and likelihoods on the CUDA device, which decides on adaptive steps by itself: they follow the CPU.

#[path = "support/emulator.rs"]
mod emulator;

use flowprior::device::Isa;
use flowprior::flow::guidance::{Form, Guidance};
use flowprior::flow::likelihood::{Trace, log_density};
use flowprior::flow::sampler::sde::{Diffusion, LastStep, Sde};
use flowprior::flow::sampler::{Direction, Grid, Method, Solver, Tolerance};
use flowprior::nn::{MlpConfig, Params, VelocityConfig, VelocityNet};
use flowprior::rng::{Draw, Stream};
use flowprior::train::field::{Field, Label};
use flowprior::train::sampling::{Sampling, draw_samples};
use flowprior::{Device, Result, Tensor};

/// A network with classes whose weights are all random.
fn network(device: &Device, classes: usize) -> Result<(VelocityNet, Params<f32>)> {
    let net = VelocityNet::new(VelocityConfig::Mlp(MlpConfig {
        channels: 3,
        width: 16,
        depth: 2,
        cond: classes,
        post_norm: false,
        time_scale: 1.0,
    }))?;
    let mut values = net.layout().initial_values(1);
    let mut noise = vec![0.0; values.len()];
    Isa::detect().run(|arch| Draw::new(1, Stream::Init, 9).fill_normal(arch, &mut noise, 0, 0));
    values.iter_mut().zip(&noise).for_each(|(x, n)| *x += 0.1 * n);
    let params = Params::from_flat(device, net.layout().clone(), &values)?;
    Ok((net, params))
}

fn devices() -> Result<[Device; 2]> {
    Ok([Device::cpu_with_threads(1)?, Device::cuda(&emulator::options())?])
}

#[test]
fn every_way_to_sample_follows_the_cpu() -> Result<()> {
    let plain = || Sampling { count: 37, steps: 4, ..Default::default() };
    let guided = Guidance { interval: (0.2, 1.0), zero: Some(1), ..Guidance::plain(2.0, Form::W) };
    let sde = Sde { diffusion: Diffusion::Sigma, scale: 1.0, last: LastStep::Tweedie };
    let tolerance = Tolerance { rtol: 1e-3, atol: 1e-3, ..Default::default() };
    let ways = [
        Sampling { method: Method::Ab2, shift: Some(0.5), ..plain() },
        Sampling { method: Method::Dopri5, tolerance, ..plain() },
        Sampling { method: Method::Euler, sde: Some(sde), ..plain() },
        Sampling { method: Method::Heun, guidance: Some(guided), ..plain() },
        Sampling {
            method: Method::Dopri5,
            tolerance,
            guidance: Some(Guidance::plain(1.0, Form::OnePlusW)),
            ..plain()
        },
    ];
    let [cpu, cuda] = devices()?;
    for how in ways {
        let drawn = |device: &Device| {
            let (net, params) = network(device, 3)?;
            draw_samples((&net, &params), None, &how)
        };
        let ((here, cost), (there, cost_there)) = (drawn(&cpu)?, drawn(&cuda)?);
        for (i, (a, b)) in here.iter().zip(&there).enumerate() {
            // Noise and slopes are equal up to rounding; four steps hardly spread it. dopri5 chooses steps by differences of nearly
            // equal slopes, which are mostly rounding, so its steps differ a little: results are two solves to one tolerance.
            let most = if how.method == Method::Dopri5 { tolerance.rtol as f32 } else { 2e-5 };
            assert!((a - b).abs() < most * a.abs().max(1.0), "{how:?}, element {i}: {a} and {b}");
        }
        assert_eq!((cost.accepted, cost.rejected), (cost_there.accepted, cost_there.rejected), "{how:?}");
        // The host looks at an adaptive solve every fourth try: at most three more are made for nothing.
        let more = cost_there.evaluations - cost.evaluations;
        let most = if how.method == Method::Dopri5 { 18 } else { 0 };
        assert!(more <= most && more % 6 == 0, "{how:?}: {cost:?}, {cost_there:?}");
    }
    Ok(())
}

#[test]
fn likelihoods_follow_the_cpu() -> Result<()> {
    let tolerance = Tolerance { rtol: 1e-3, atol: 1e-3, ..Default::default() };
    let solver = Solver { method: Method::Dopri5, grid: Grid::Uniform(0), tolerance };
    let points: Vec<f32> = (0..15).map(|i| (1.3 * i as f32).sin()).collect();
    for trace in [Trace::Exact, Trace::Hutchinson { seed: 1, first: 0 }] {
        let mut all = Vec::new();
        for device in devices()? {
            let (net, params) = network(&device, 0)?;
            let field = Field::new(&net, &params, &[Label::Null], 5, None)?;
            let x = Tensor::from_f32(&device, [5, 3], &points)?;
            let carried = log_density(x, &solver, Direction::ToNoise, trace, |x, time, e| {
                field.vjp(x, time.tensor(&device)?, e)
            })?;
            all.push(carried.log_p);
        }
        for (a, b) in all[0].iter().zip(&all[1]) {
            assert!((a - b).abs() < 1e-4, "{trace:?}: {a} and {b}");
        }
    }
    Ok(())
}

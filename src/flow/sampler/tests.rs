//! Orders and evaluations of the solvers, grids, adaptive solves that end, and random paths with the right distribution.

use super::sde::{Diffusion, LastStep, Sde, sample_sde};
use super::*;
use crate::data::toy::Mixture;
use crate::flow::mixture::mixture_velocity;
use crate::ops::flow_path::Rows;
use crate::rng::{Draw, Stream};

fn device() -> Device {
    Device::cpu_with_threads(1).unwrap()
}

fn solver(method: Method, grid: Grid) -> Solver {
    Solver { method, grid, tolerance: Tolerance::default() }
}

/// x' = x·cos t has x(1) = x(0)·e^{sin 1}: the error, and the cost.
fn solve(solver: &Solver) -> Result<(f64, Cost)> {
    let device = device();
    let x = Tensor::from_f32(&device, [1, 1], &[1.0])?;
    let mut calls = 0;
    let (x, cost) = sample(x, solver, |x, time| {
        calls += 1;
        let mut v = Tensor::zeros(&device, [1, 1]);
        axpy(v.view_mut(), time.value()?.cos() as f32, x)?;
        Ok(v)
    })?;
    assert_eq!(cost.evaluations, calls);
    Ok(((x.to_f32_vec()?[0] as f64 - 1f64.sin().exp()).abs(), cost))
}

#[test]
fn each_method_has_its_order_and_its_number_of_evaluations() {
    type Count = fn(usize) -> usize;
    let methods: [(Method, i32, usize, Count); 5] = [
        (Method::Euler, 1, 16, |n| n),
        (Method::Midpoint, 2, 16, |n| 2 * n),
        (Method::Heun, 2, 16, |n| 2 * n - 1),
        (Method::Ab2, 2, 16, |n| n + 1),
        (Method::Rk4, 4, 2, |n| 4 * n),
    ];
    let shifted = |steps| Grid::Shifted { steps, shift: 1.5 };
    for (method, order, steps, evaluations) in methods {
        for grid in [Grid::Uniform as fn(usize) -> Grid, shifted] {
            let (coarse, cost) = solve(&solver(method, grid(steps))).unwrap();
            let (fine, fine_cost) = solve(&solver(method, grid(2 * steps))).unwrap();
            let orders = (coarse / fine).log2();
            assert!(
                (orders - order as f64).abs() < 0.65,
                "{method:?}: {coarse:e} / {fine:e}, order {orders}"
            );
            let expected = Cost { evaluations: evaluations(steps), accepted: steps, rejected: 0 };
            assert_eq!(cost, expected, "{method:?}");
            assert_eq!(fine_cost.evaluations, evaluations(2 * steps), "{method:?}");
        }
        let one = solve(&solver(method, Grid::Uniform(1))).unwrap().1;
        let expected = if method == Method::Ab2 { 2 } else { evaluations(1) };
        assert_eq!(one.evaluations, expected, "{method:?}: a single step");
    }
}

#[test]
fn grids_have_as_many_steps_as_they_say() {
    let times = |grid: Grid, direction| grid.times(direction).unwrap();
    assert_eq!(times(Grid::Uniform(4), Direction::ToData), [0.0, 0.25, 0.5, 0.75, 1.0]);
    assert_eq!(times(Grid::Uniform(2), Direction::ToNoise), [1.0, 0.5, 0.0]);
    let shifted = Grid::Shifted { steps: 2, shift: 1.0 / 3.0 };
    assert!((times(shifted, Direction::ToData)[1] - 0.25).abs() < 1e-15); // ⅓·½ / (1 − ⅔·½)
    let listed = Grid::listed("0, 0.125,0.5, 1").unwrap();
    assert_eq!(times(listed, Direction::ToNoise), [1.0, 0.5, 0.125, 0.0]);
}

#[test]
fn grids_that_make_no_sense_are_refused() {
    let refused = |grid: Grid| grid.times(Direction::ToData).unwrap_err().to_string();
    assert_eq!(refused(Grid::Uniform(0)), "sampling needs at least 1 step, 0 were asked for");
    assert!(refused(Grid::Shifted { steps: 0, shift: 2.0 }).contains("at least 1 step"));
    assert!(refused(Grid::Shifted { steps: 4, shift: 0.0 }).contains("positive number, not 0"));
    for (text, words) in [
        ("0,1,x", "`x` is no number"),
        ("0.5,1", "from 0.5 to 1"),
        ("0,0.5,0.5,1", "0.5 follows 0.5"),
        ("0,NaN,1", "NaN follows 0"),
        ("", "is no number"),
    ] {
        let message = Grid::listed(text).unwrap_err().to_string();
        assert!(message.contains(words), "{text}: {message}");
    }
    let message = "rk5".parse::<Method>().unwrap_err().to_string();
    assert!(message.contains("`rk5`") && message.contains("`dopri5`"), "{message}");
}

fn adaptive(rtol: f64, tries: u32) -> Solver {
    let tolerance = Tolerance { rtol, atol: rtol, tries, ..Default::default() };
    Solver { tolerance, ..solver(Method::Dopri5, Grid::Uniform(0)) }
}

#[test]
fn dopri5_keeps_its_tolerance_and_counts_its_evaluations() {
    let mut evaluations = 0;
    for rtol in [1e-2, 1e-4, 1e-6] {
        let (error, cost) = solve(&adaptive(rtol, 1000)).unwrap();
        assert!(error < 10.0 * rtol, "{rtol:e}: {error:e}");
        assert_eq!(cost.evaluations, 1 + 6 * (cost.accepted + cost.rejected));
        assert!(cost.evaluations > evaluations && cost.evaluations < 100, "{rtol:e}: {cost:?}");
        evaluations = cost.evaluations;
    }
}

/// x' = f(x, t) by dopri5.
fn adaptively(solver: &Solver, f: impl Fn(f32, f64) -> f32) -> Result<(f32, Cost)> {
    let device = device();
    let x = Tensor::from_f32(&device, [1, 1], &[0.5])?;
    let (x, cost) = sample(x, solver, |x, time| {
        let t = time.value()?;
        Tensor::from_f32(&device, [1, 1], &[f(x.to_f32_vec()?[0], t)])
    })?;
    Ok((x.to_f32_vec()?[0], cost))
}

#[test]
fn a_kink_is_passed_by_rejecting_steps() {
    // The slope jumps at ⅓ from 0 to 9: x(1) = ½ + 6.
    let (x, cost) = adaptively(&adaptive(1e-4, 1000), |_, t| if t < 1.0 / 3.0 { 0.0 } else { 9.0 }).unwrap();
    assert!((x - 6.5).abs() < 1e-2, "{x}");
    assert!(cost.rejected > 2 && cost.accepted < 100, "{cost:?}");
}

#[test]
fn dopri5_never_loops_without_end() {
    let failed = |solver: &Solver, f: fn(f32, f64) -> f32| {
        let error = adaptively(solver, f).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        error.to_string()
    };
    // A singularity that no step gets over, one that no state gets over, and a network that is broken from the start.
    let message = failed(&adaptive(1e-5, 1000), |_, t| 1e4 / (t as f32 - 0.7).abs().powf(1.5));
    assert!(message.contains("asks for steps below 1e-6 at t = 0.69"), "{message}");
    let message = failed(&adaptive(1e-5, 1000), |x, _| 1e38 * x);
    assert!(message.contains("not finite"), "{message}");
    let message = failed(&adaptive(1e-5, 1000), |_, _| f32::NAN);
    assert!(message.contains("not finite after t = 0 (0 steps accepted"), "{message}");
    let message = failed(&adaptive(1e-6, 5), |x, t| x * (40.0 * t).sin() as f32);
    assert!(message.contains("not reached after 5 tries"), "{message}");
    for tolerance in [
        Tolerance { atol: 0.0, ..Default::default() },
        Tolerance { rtol: -1.0, ..Default::default() },
        Tolerance { smallest: 0.0, ..Default::default() },
        Tolerance { tries: 0, ..Default::default() },
    ] {
        let message =
            adaptively(&Solver { tolerance, ..adaptive(1e-5, 9) }, |x, _| x).unwrap_err().to_string();
        assert!(message.starts_with("dopri5 needs a positive absolute tolerance"), "{message}");
    }
}

/// Two modes of unequal weight, apart along x.
fn two_modes() -> Mixture {
    Mixture { means: vec![[1.0, 0.5], [-1.0, 0.5]], std: 0.3, weights: vec![0.7, 0.3] }
}

/// Samples of the mixture by an SDE with the exact velocity: the share near the first mode, and deviations along x and y there.
fn random_paths(sde: &Sde, steps: usize) -> (f64, [f64; 2]) {
    const COUNT: usize = 4000;
    let (device, mixture) = (Device::cpu_with_threads(2).unwrap(), two_modes());
    let mut noise = vec![0.0; 2 * COUNT];
    let draw = Draw::new(1, Stream::Sampling, 0);
    crate::device::Isa::detect().run(
        #[inline(always)]
        |arch| draw.fill_normal_rows(arch, &mut noise, 2, 0, |i| (i as u64, 0)),
    );
    let x = Tensor::from_f32(&device, [COUNT, 2], &noise).unwrap();
    let draws = (Draw::new(1, Stream::SamplerNoise, 0), Rows::plain(COUNT));
    let (x, cost) = sample_sde(x, sde, &Grid::Uniform(steps), draws, |x, time| {
        let t = time.value()?;
        let velocity =
            |x: &[f32]| mixture_velocity(&mixture, [x[0] as f64, x[1] as f64], t).map(|v| v as f32);
        let v: Vec<f32> = x.host()?.chunks_exact(2).flat_map(velocity).collect();
        Tensor::from_f32(&device, [COUNT, 2], &v)
    })
    .unwrap();
    assert_eq!((cost.evaluations, cost.accepted), (steps, steps));
    let x = x.to_f32_vec().unwrap();
    let near: Vec<&[f32]> = x.chunks_exact(2).filter(|x| x[0] > 0.0).collect();
    let deviation = |k: usize| {
        let square = |x: &&[f32]| (x[k] as f64 - mixture.means[0][k]).powi(2);
        (near.iter().map(square).sum::<f64>() / near.len() as f64).sqrt()
    };
    (near.len() as f64 / COUNT as f64, [deviation(0), deviation(1)])
}

#[test]
fn random_paths_end_in_the_distribution_of_the_data() {
    for (name, diffusion) in Diffusion::ALL {
        let scale = if diffusion == Diffusion::FlowGrpo { 0.7 } else { 1.0 };
        let mut lasts = vec![LastStep::Tweedie];
        // Where w is not small at the end, a last step without its noise takes much of the spread away.
        lasts.extend((diffusion != Diffusion::Constant).then_some(LastStep::Mean));
        for last in lasts {
            let (share, deviations) = random_paths(&Sde { diffusion, scale, last }, 250);
            // 4 standard errors of a share, and of a deviation together with the error of the steps.
            assert!((share - 0.7).abs() < 4.0 * (0.21f64 / 4000.0).sqrt(), "{name}, {last:?}: {share}");
            assert!(deviations.iter().all(|d| (d - 0.3).abs() < 0.03), "{name}, {last:?}: {deviations:?}");
        }
    }
}

#[test]
fn a_path_without_diffusion_is_the_odes() {
    let sde = Sde { diffusion: Diffusion::Constant, scale: 0.0, last: LastStep::Euler };
    let device = device();
    let x = || Tensor::from_f32(&device, [2, 2], &[0.3, -1.0, 1.5, 0.2]).unwrap();
    let velocity = |x: &Tensor<f32>, time: Time<'_>| {
        let t = time.value()?;
        let at = |x: &[f32]| mixture_velocity(&two_modes(), [x[0] as f64, x[1] as f64], t).map(|v| v as f32);
        Tensor::from_f32(&device, [2, 2], &x.host()?.chunks_exact(2).flat_map(at).collect::<Vec<_>>())
    };
    let grid = Grid::listed("0,0.2,0.5,0.9,1").unwrap();
    let draws = (Draw::new(0, Stream::SamplerNoise, 0), Rows::plain(2));
    let (random, _) = sample_sde(x(), &sde, &grid, draws, velocity).unwrap();
    let (ode, _) = sample(x(), &solver(Method::Euler, grid), velocity).unwrap();
    for (a, b) in random.to_f32_vec().unwrap().iter().zip(ode.to_f32_vec().unwrap()) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
    let message = |scale| {
        let sde = Sde { scale, ..sde };
        sample_sde(x(), &sde, &Grid::Uniform(2), draws, velocity).unwrap_err().to_string()
    };
    assert!(message(-1.0).contains("0 or a positive number, not -1"));
}

//! The flow path: times, the interpolant, and the rows that they belong to.

use flowprior::device::{Arch, Isa};
use flowprior::ops::flow_loss::{Weight, WeightTable, latent_gradient};
use flowprior::ops::flow_path::{Rows, TimeDensity, TimeSampler, draw_times, interpolant, interpolate};
use flowprior::rng::{Draw, Stream};
use flowprior::{Device, FloatX, Result, Tensor};

use crate::support::devices::{any_device, devices};
use crate::support::noise::rows_of_noise;
use crate::support::random::Random;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, fresh};

/// `x_t = (1 − t)·noise + t·data`.
#[derive(Debug)]
struct Interpolate {
    rows: Rows,
    d: usize,
}

const NOISE: u64 = 11;

fn noise() -> Draw {
    Draw::new(NOISE, Stream::Noise, 5)
}

impl Case for Interpolate {
    fn inputs(&self) -> Inputs {
        let mut random = Random::new("t");
        let t = (0..self.rows.times()).map(|_| random.uniform()).collect();
        let inputs = Inputs::default().single("data", [self.rows.samples, self.d]);
        inputs.constant("t", [self.rows.times()], t)
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let (data, t) = (&x["data"], &x["t"]);
        let at = |(e, noise)| {
            let t = t[e / self.d / self.rows.share];
            (1.0 - t) * noise + t * data[e % data.len()] // replicas: the whole batch again
        };
        vec![rows_of_noise(noise(), self.rows, self.d).into_iter().enumerate().map(at).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        Ok(vec![answer(&interpolate::<X>(x.single("data"), x.single("t"), noise(), self.rows)?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        // Σ_replicas t·dx_t is the part of the latent gradient that does not come from the target.
        let dx_t = x.stored("dy");
        let dv = Tensor::zeros(&x.device, dx_t.shape());
        Ok([fresh("data", &latent_gradient(&dv, Some(dx_t), x.single("t"), self.rows, 1.0)?)].into())
    }
}

fn rows(first: u64, samples: usize, replicas: usize, share: usize) -> Rows {
    Rows { first, samples, replicas, share }
}

#[test]
fn data_and_noise_are_interpolated() {
    let widths = [1, 2, 31, 32, 768, 1030];
    let plain = widths.map(|d| Interpolate { rows: rows(0, 7, 1, 1), d });
    let replicated = widths.map(|d| Interpolate { rows: rows(40, 6, 3, 2), d });
    let huge = [Interpolate { rows: rows((1 << 32) - 3, 530, 1, 1), d: 33 }];
    check_all(plain.into_iter().chain(replicated).chain(huge));
}

#[test]
fn flow_mul_rows_equal_rows_tiled_by_hand() -> Result<()> {
    let (rows, d) = (rows(3, 5, 4, 1), 37);
    let data: Vec<f32> = Random::new("data").normals(5 * d).into_iter().map(|v| v as f32).collect();
    let t: Vec<f32> = (0..20).map(|i| i as f32 / 19.0).collect();
    let mut tiled = Vec::new();
    for (i, t) in t.iter().enumerate() {
        let mut noise_row = vec![0.0; d];
        best(|arch| noise().fill_normal(arch, &mut noise_row, 3 + (i % 5) as u64, (i / 5) as u32));
        let data = &data[i % 5 * d..][..d];
        tiled.extend(noise_row.iter().zip(data).map(|(noise, data)| interpolant(*noise, *data, *t)));
    }
    for (name, device) in devices().filter(|(name, _)| name.contains(&format!("{:?}", Isa::detect()))) {
        let data = Tensor::from_f32(device, [5, d], &data)?;
        let x_t = interpolate::<f32>(&data, &Tensor::from_f32(device, [20], &t)?, noise(), rows)?;
        assert_eq!(x_t.to_f32_vec().unwrap(), tiled, "{name}");
    }
    Ok(())
}

fn best<R>(f: impl FnOnce(Arch) -> R) -> R {
    Isa::detect().run(f)
}

#[test]
fn micro_batches_see_the_times_and_the_noise_of_the_whole_batch() -> Result<()> {
    let (samples, replicas, d) = (12, 2, 19);
    let numbers: Vec<f32> = Random::new("data").normals(samples * d).into_iter().map(|v| v as f32).collect();
    let total = samples * replicas;
    for (name, device) in devices() {
        let density = Weight::Likelihood { clip: CLIP }.density(device, (0.0, 1.0))?;
        for sampler in [
            TimeSampler::Stratified { total, samples },
            TimeSampler::Density { density: &density, total, samples },
        ] {
            let run = |first: usize, count: usize| -> Result<(Vec<f32>, Vec<f32>)> {
                let rows = rows(100 + first as u64, count, replicas, 1);
                let data = Tensor::from_f32(device, [count, d], &numbers[first * d..][..count * d])?;
                let t = draw_times(device, Draw::new(1, Stream::Time, 9), rows, sampler, (0.0, 1.0))?;
                Ok((
                    t.to_f32_vec().unwrap(),
                    interpolate::<f32>(&data, &t, noise(), rows)?.to_f32_vec().unwrap(),
                ))
            };
            let (t, x_t) = run(0, samples)?;
            for micro in [1, 2, 4] {
                let count = samples / micro;
                for first in (0..samples).step_by(count) {
                    let (part_t, part_x_t) = run(first, count)?;
                    for replica in 0..replicas {
                        let (whole, part) = (replica * samples + first, replica * count);
                        assert_eq!(t[whole..][..count], part_t[part..][..count], "{name}, {micro}");
                        let part = &part_x_t[part * d..][..count * d];
                        assert_eq!(&x_t[whole * d..][..count * d], part, "{name}, {micro}");
                    }
                }
            }
        }
    }
    Ok(())
}

fn times(step: u64, rows: Rows, sampler: TimeSampler<'_>, range: (f32, f32)) -> Vec<f64> {
    let draw = Draw::new(2, Stream::Time, step);
    let t = draw_times(any_device(), draw, rows, sampler, range).map(|t| t.to_f32_vec().unwrap());
    t.unwrap_or_else(|e| panic!("{e}")).into_iter().map(f64::from).collect()
}

/// Asserts that the share of `values` below `at` is `expected`, up to four standard deviations.
fn assert_share_below(values: &[f64], at: f64, expected: f64) {
    let share = values.iter().filter(|v| **v < at).count() as f64 / values.len() as f64;
    let deviation = (expected * (1.0 - expected) / values.len() as f64).sqrt();
    assert!((share - expected).abs() <= 4.0 * deviation, "{share} below {at}, expected {expected}");
}

#[test]
fn uniform_times_fill_their_range() {
    let t = times(0, Rows::plain(20_000), TimeSampler::Uniform, (0.1, 0.9));
    assert!(t.iter().all(|t| (0.1..=0.9).contains(&(*t as f32))));
    (1..8).for_each(|q| assert_share_below(&t, 0.1 + 0.1 * q as f64, q as f64 / 8.0));
}

#[test]
fn rows_that_share_a_time_draw_it_once() {
    let shared = times(0, rows(6, 12, 2, 3), TimeSampler::Uniform, (0.0, 1.0));
    let single = times(0, rows(6, 12, 2, 1), TimeSampler::Uniform, (0.0, 1.0));
    assert_eq!(shared, single.iter().copied().step_by(3).collect::<Vec<_>>());
}

#[test]
fn stratified_times_cover_each_stratum_once() {
    for (samples, replicas, share) in [(1, 1, 1), (7, 1, 1), (24, 4, 1), (24, 4, 3)] {
        let n = samples * replicas / share;
        let sampler = TimeSampler::Stratified { total: n, samples };
        for step in 0..20 {
            let mut t = times(step, rows(0, samples, replicas, share), sampler, (0.0, 1.0));
            t.sort_by(f64::total_cmp);
            // Whatever the rotation, m strata further on the circle is m/n further on, give or take one stratum.
            for i in 0..n {
                for m in 1..n {
                    let ahead = (t[(i + m) % n] - t[i]).rem_euclid(1.0) * n as f64;
                    assert!((ahead - m as f64).abs() < 1.0 + 1e-4, "{samples} × {replicas} / {share}");
                }
            }
        }
    }
}

#[test]
fn each_row_of_a_stratified_batch_is_uniform_over_the_steps() {
    let sampler = TimeSampler::Stratified { total: 8, samples: 8 };
    let third: Vec<f64> = (0..4000).map(|step| times(step, Rows::plain(8), sampler, (0.0, 1.0))[2]).collect();
    (1..8).for_each(|q| assert_share_below(&third, q as f64 / 8.0, q as f64 / 8.0));
}

#[test]
fn logit_normal_times_have_the_right_quantiles() {
    let sampler = TimeSampler::LogitNormal { mean: -0.5, std: 1.5 };
    let t = times(0, Rows::plain(20_000), sampler, (0.0, 1.0));
    // Quantiles of the standard normal distribution.
    for (z, below) in
        [(-1.281_551_6, 0.1), (-0.674_489_8, 0.25), (0.0, 0.5), (0.674_489_8, 0.75), (1.281_551_6, 0.9)]
    {
        assert_share_below(&t, 1.0 / (1.0 + f64::exp(0.5 - 1.5 * z)), below);
    }
}

/// A weight, the range of times, and the integral of the weight from the start of the range.
type Law = (Weight, (f32, f32), Box<dyn Fn(f64) -> f64>);

const CLIP: f32 = 0.98;
const TABLE: [f32; 6] = [0.0, 2.0, 0.5, 0.0, 0.0, 3.0];

fn laws(device: &Device) -> Vec<Law> {
    let clip = CLIP as f64;
    // Integrals by hand; beyond the clip the weight stays.
    let likelihood = move |t: f64| {
        let s = t.min(clip);
        -s - (1.0 - s).ln() + clip / (1.0 - clip) * (t - s)
    };
    let kl = move |t: f64| {
        let s = t.min(clip);
        -s * s / 2.0 - s - (1.0 - s).ln() + clip * clip / (1.0 - clip) * (t - s)
    };
    let table = |t: f64| {
        let cells = (TABLE.len() - 1) as f64;
        let cell = |(k, pair): (usize, &[f32])| {
            let (s, [a, b]) = ((t * cells - k as f64).clamp(0.0, 1.0), [pair[0] as f64, pair[1] as f64]);
            (a * s + (b - a) * s * s / 2.0) / cells
        };
        TABLE.windows(2).enumerate().map(cell).sum::<f64>()
    };
    let from =
        |low: f32, integral: fn(f64) -> f64| Box::new(move |t: f64| integral(t) - integral(low as f64));
    let table_weight = || Weight::Table(WeightTable::new(device, &TABLE).unwrap());
    vec![
        (Weight::Uniform, (0.0, 1.0), from(0.0, |t| t)),
        (Weight::Uniform, (0.1, 0.9), from(0.1, |t| t)),
        (Weight::Likelihood { clip: CLIP }, (0.0, 1.0), Box::new(likelihood)),
        (
            Weight::Likelihood { clip: CLIP },
            (0.25, 0.95),
            Box::new(move |t| likelihood(t) - likelihood(0.25)),
        ),
        (Weight::Kl { clip: CLIP }, (0.0, 1.0), Box::new(kl)),
        (table_weight(), (0.0, 1.0), Box::new(table)),
        (table_weight(), (0.15, 0.9), Box::new(move |t| table(t) - table(0.15f32 as f64))),
    ]
}

#[test]
fn times_of_a_density_lie_where_its_integral_says() -> Result<()> {
    let (samples, replicas) = (512, 4);
    let n = samples * replicas;
    for (name, device) in devices() {
        for (weight, range, integral) in laws(device) {
            let what = format!("{weight:?} in {range:?} on {name}");
            let density = weight.density(device, range)?;
            let whole = integral(range.1 as f64);
            let mean = whole / (range.1 as f64 - range.0 as f64);
            assert!((density.mean() as f64 - mean).abs() <= 3e-6 * mean, "{what}: {} {mean}", density.mean());
            assert_eq!(density.range(), range);
            let draw = |step| Draw::new(2, Stream::Time, step);
            let rows = rows(0, samples, replicas, 1);
            for step in 0..3 {
                let uniform = TimeSampler::Stratified { total: n, samples };
                let u = draw_times(device, draw(step), rows, uniform, (0.0, 1.0))?.to_f32_vec()?;
                let sampler = TimeSampler::Density { density: &density, total: n, samples };
                let t = draw_times(device, draw(step), rows, sampler, range)?.to_f32_vec()?;
                let mut sum = 0.0;
                for (t, u) in t.iter().zip(&u) {
                    assert!((range.0..=range.1).contains(t), "{what}: {t}");
                    let share = integral(*t as f64) / whole;
                    assert!(
                        (share - *u as f64).abs() <= 3e-6,
                        "{what}: {share} of the weight below {t}, not {u}"
                    );
                    sum += f64::cos(3.0 * *t as f64);
                }
                // A mean under the density, times the mean of the weight, is the mean of the weighted by uniform times.
                let span = range.1 as f64 - range.0 as f64;
                let at = |i: usize| range.0 as f64 + span * (i as f64 + 0.5) / 1e5;
                let weighted = |i| f64::cos(3.0 * at(i)) * weight.at(at(i) as f32) as f64 / 1e5;
                let expected = (0..100_000).map(weighted).sum::<f64>();
                let found = sum / n as f64 * density.mean() as f64;
                assert!((found - expected).abs() <= 2e-3 * mean, "{what}: {found}, expected {expected}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_constant_density_draws_stratified_times() -> Result<()> {
    for (name, device) in devices() {
        let (rows, range) = (rows(0, 24, 4, 3), (0.25, 0.75));
        let density = Weight::Constant(3.0).density(device, range)?;
        assert_eq!(density.mean(), 3.0);
        let (total, samples) = (32, 24);
        let draw = Draw::new(2, Stream::Time, 7);
        let of = |sampler| draw_times(device, draw, rows, sampler, range)?.to_f32_vec();
        let plain = of(TimeSampler::Stratified { total, samples })?;
        let drawn = of(TimeSampler::Density { density: &density, total, samples })?;
        let apart = plain.iter().zip(&drawn).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(apart <= 2e-7, "{name}: {apart}");
    }
    Ok(())
}

#[test]
fn densities_that_are_none_are_refused() {
    let message = |knots: &[(f32, f64)]| TimeDensity::new(any_device(), knots).unwrap_err().to_string();
    assert!(message(&[]).contains("`knots` has none"));
    assert!(message(&[(0.5, 1.0)]).contains("`knots` has 1 from 0.5 to 0.5"));
    assert!(message(&[(0.5, 1.0), (0.5, 1.0)]).contains("t ascending"));
    assert!(message(&[(0.0, 1.0), (1.5, 1.0)]).contains("from 0 to 1.5"));
    assert!(message(&[(0.0, 1.0), (0.5, -2.0), (1.0, 1.0)]).contains("`values` has -2 at 0.5"));
    assert!(message(&[(0.0, 1.0), (1.0, f64::NAN)]).contains("`values` has NaN at 1"));
    assert!(message(&[(0.0, 0.0), (1.0, 0.0)]).contains("`values` has only 0"));
    let density = Weight::Uniform.density(any_device(), (0.0, 1.0)).unwrap();
    let sampler = TimeSampler::Density { density: &density, total: 4, samples: 4 };
    let t = draw_times(any_device(), noise(), Rows::plain(4), sampler, (0.0, 0.5));
    let message = t.unwrap_err().to_string();
    assert_eq!(message, "draw_times: `sampler` has (0.0, 1.0), expected times (0.0, 0.5)");
}

#[test]
fn rows_that_cannot_be_addressed_are_refused() {
    let message = |rows: Rows| {
        let t = draw_times(any_device(), noise(), rows, TimeSampler::Uniform, (0.0, 1.0));
        t.unwrap_err().to_string()
    };
    let expected =
        "draw_times: `rows` has 7 samples, expected a number of samples that 3 rows of one t divide";
    assert_eq!(message(rows(0, 7, 1, 3)), expected);
    assert!(message(rows(0, 7, 0, 1)).contains("0 replicas"));
    assert!(message(rows(0, 7, 4097, 1)).contains("4097 replicas"));
}

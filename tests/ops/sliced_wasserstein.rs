//! The sliced Wasserstein-2 distance: values, gradients, sorting of any size, directions and targets that repeat.

use flowprior::ops::sliced_wasserstein::{directions, draw_rows, sliced_wasserstein};
use flowprior::rng::{Draw, Stream};
use flowprior::{DType, Device, FloatX, Result, Tensor};

use crate::support::devices::{any_device, devices};
use crate::support::noise::normals;
use crate::support::oracle::same_bits;
use crate::support::random::Random;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, added, answer, check_all};

#[derive(Debug)]
struct Sliced {
    n: usize,
    d: usize,
    p: usize,
    /// Targets for each row.
    m: usize,
}

const SCALE: f32 = 2.5;

/// Projections on a direction, with their rows, in order.
fn sorted(rows: &[f64], theta: &[f64]) -> Vec<(f64, usize)> {
    let d = theta.len();
    let along = |row: &[f64]| row.iter().zip(theta).map(|(a, b)| a * b).sum::<f64>();
    let mut all: Vec<_> = rows.chunks_exact(d).map(along).zip(0..).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    all
}

impl Case for Sliced {
    fn inputs(&self) -> Inputs {
        let mut random = Random::new("theta");
        let mut theta: Vec<f64> = (0..self.p * self.d).map(|_| random.normal()).collect();
        for row in theta.chunks_exact_mut(self.d) {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= norm);
        }
        let targets = (0..self.m * self.n * self.d).map(|_| 1.0 + 2.0 * random.normal()).collect();
        Inputs::default()
            .single("y", [self.n, self.d])
            .constant("targets", [self.m * self.n, self.d], targets)
            .constant("theta", [self.p, self.d], theta)
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let of = |theta: &[f64]| {
            let (rows, targets) = (sorted(&x["y"], theta), sorted(&x["targets"], theta));
            let pairs = targets.iter().enumerate().map(|(j, b)| (rows[j / self.m].0 - b.0).powi(2));
            pairs.sum::<f64>() / (self.m * self.n) as f64
        };
        let means: Vec<f64> = x["theta"].chunks_exact(self.d).map(of).collect();
        vec![vec![SCALE as f64 * means.iter().sum::<f64>() / self.p as f64]]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let mut dy = x.accumulator("y")?;
        let (y, targets, theta) = (x.single("y"), x.single("targets"), x.single("theta"));
        let means = sliced_wasserstein(&mut dy, y, targets, theta, SCALE)?.to_f32_vec()?;
        let mean = means.iter().map(|x| *x as f64).sum::<f64>() / self.p as f64;
        Ok(vec![answer(&Tensor::<f32>::from_f32(&x.device, [1], &[SCALE * mean as f32])?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let mut dy = x.accumulator("y")?;
        sliced_wasserstein(&mut dy, x.single("y"), x.single("targets"), x.single("theta"), SCALE)?;
        Ok([added("y", &dy)].into())
    }

    fn types(&self) -> &'static [DType] {
        &[DType::F32]
    }

    fn sums_its_output(&self) -> bool {
        true
    }
}

#[test]
fn distances_and_gradients_are_those_of_the_definition() {
    let sizes = [(1, 1, 1, 1), (2, 3, 1, 1), (5, 2, 3, 1), (9, 7, 2, 3), (16, 2, 5, 2), (17, 33, 3, 1)];
    check_all(sizes.map(|(n, d, p, m)| Sliced { n, d, p, m }));
}

/// Rows that fill a chunk of the sort exactly, by one more or less, and several; against the gradient's formula in f64.
#[test]
fn sets_of_any_size_are_sorted() -> Result<()> {
    let (d, p) = (2, 2);
    for n in [257, 2047, 2048, 2049, 5000] {
        let mut random = Random::new(&format!("sorted{n}"));
        // Multiples of 2⁻¹⁰ and directions with short coordinates: projections are exact, and many are equal.
        let mut draw = |scale: f64| -> Vec<f32> {
            (0..n * d).map(|_| (scale * random.normal() * 1024.0).round() as f32 / 1024.0).collect()
        };
        let (y, targets, theta) = (draw(1.0), draw(2.0), [0.75, -0.5, 0.25, 1.0f32]);
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|x| *x as f64).collect() };
        let (mut expected, mut means) = (vec![0.0; n * d], Vec::new());
        for theta in wide(&theta).chunks_exact(d) {
            let mut sum = 0.0;
            for ((a, i), (b, _)) in sorted(&wide(&y), theta).into_iter().zip(sorted(&wide(&targets), theta)) {
                sum += (a - b).powi(2);
                (0..d).for_each(|c| expected[i * d + c] += 2.0 / (p * n) as f64 * (a - b) * theta[c]);
            }
            means.push(sum / n as f64);
        }
        let largest = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        for (name, device) in devices().filter(|(name, _)| !name.contains("threads: 8")) {
            let of = |values: &[f32], rows: usize| Tensor::from_f32(device, [rows, d], values);
            let mut dy = Tensor::zeros(device, [n, d]);
            let (y, targets, theta) = (of(&y, n)?, of(&targets, n)?, of(&theta, p)?);
            let found = sliced_wasserstein(&mut dy, &y, &targets, &theta, 1.0)?.to_f32_vec()?;
            for (found, expected) in found.iter().zip(&means) {
                assert!(
                    (*found as f64 - expected).abs() <= 1e-5 * expected,
                    "{name}, {n}: {found} {expected}"
                );
            }
            for (i, (found, expected)) in dy.to_f32_vec()?.iter().zip(&expected).enumerate() {
                let error = (*found as f64 - expected).abs();
                assert!(error <= 1e-5 * largest, "{name}, {n}: element {i} is {found}, expected {expected}");
            }
        }
    }
    Ok(())
}

fn draw(stream: Stream, step: u64) -> Draw {
    Draw::new(7, stream, step)
}

#[test]
fn directions_are_unit_vectors_that_every_step_draws_anew() -> Result<()> {
    for (count, d) in [(1, 1), (5, 2), (33, 7), (3, 130), (2, 512)] {
        for (name, device) in devices() {
            let found = directions(device, draw(Stream::Slices, 3), count, d)?.to_f32_vec()?;
            for (i, row) in found.chunks_exact(d).enumerate() {
                let expected = normals(draw(Stream::Slices, 3), i as u64, 0, d);
                let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
                for (found, expected) in row.iter().zip(&expected) {
                    assert!((*found as f64 - expected / norm).abs() < 3e-6, "{name}: {row:?}");
                }
            }
            let next = directions(device, draw(Stream::Slices, 4), count, d)?.to_f32_vec()?;
            assert!(d == 1 || next != found, "{name}: the same in the next step");
        }
    }
    Ok(())
}

#[test]
fn targets_are_rows_of_the_table_and_the_same_everywhere() -> Result<()> {
    let (m, d, count) = (37, 3, 500);
    let table: Vec<f32> = (0..m * d).map(|i| i as f32).collect();
    let rows = |device: &Device, step| -> Result<Vec<f32>> {
        draw_rows(&Tensor::from_f32(device, [m, d], &table)?, draw(Stream::Targets, step), count)?
            .to_f32_vec()
    };
    let first = rows(any_device(), 1)?;
    let mut drawn = vec![0; m];
    for row in first.chunks_exact(d) {
        let number = row[0] as usize / d;
        assert_eq!(row, &table[number * d..(number + 1) * d]);
        drawn[number] += 1;
    }
    assert!(drawn.iter().all(|n| (1..40).contains(n)), "{drawn:?}");
    for (name, device) in devices() {
        same_bits(&rows(device, 1)?, &first, name);
        assert_ne!(rows(device, 2)?, first, "{name}");
    }
    let none = Tensor::<f32>::zeros(any_device(), [0, 3]);
    assert!(draw_rows(&none, draw(Stream::Targets, 0), 4).is_err());
    Ok(())
}

#[test]
fn targets_that_are_no_multiple_and_no_directions_are_refused() {
    let rows = |n| Tensor::<f32>::zeros(any_device(), [n, 2]);
    let error = sliced_wasserstein(&mut rows(4), &rows(4), &rows(5), &rows(1), 1.0).unwrap_err().to_string();
    assert_eq!(error, "sliced_wasserstein: `targets` has 5, expected a multiple of the 4 rows, at most 2³⁰");
    let error = sliced_wasserstein(&mut rows(4), &rows(4), &rows(4), &rows(0), 1.0).unwrap_err().to_string();
    assert!(error.ends_with("expected at least 1 row and 1 direction"), "{error}");
}

//! The entropy of a batch by its nearest neighbours: values, gradients, known entropies, rows that coincide.

use std::f64::consts::{E, PI, TAU};

use flowprior::ops::entropy::{entropy_backward, entropy_forward};
use flowprior::{DType, FloatX, Result, Tensor};

use crate::support::devices::{any_device, devices};
use crate::support::oracle::same_bits;
use crate::support::random::Random;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, added, answer, check_all};

#[derive(Debug)]
struct Entropy {
    n: usize,
    d: usize,
    k: usize,
}

const CONSTANT: f64 = 0.75;
const SCALE: f32 = 1.5;

/// The k-th neighbour of each row among the others, and its distance.
fn kth(y: &[f64], d: usize, k: usize) -> Vec<(f64, usize)> {
    let row = |i: usize| &y[i * d..(i + 1) * d];
    let n = y.len() / d;
    let of = |i: usize| {
        let distance = |j: usize| row(i).iter().zip(row(j)).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let mut all: Vec<_> = (0..n).filter(|j| *j != i).map(|j| (distance(j), j)).collect();
        all.retain(|(r, _)| !r.is_nan());
        all.sort_by(|a, b| a.partial_cmp(b).unwrap());
        all.get(k - 1).copied().unwrap_or((f64::NAN, 0))
    };
    (0..n).map(of).collect()
}

impl Case for Entropy {
    fn inputs(&self) -> Inputs {
        Inputs::default().single("y", [self.n, self.d])
    }

    /// SCALE times the mean contribution.
    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let rows = kth(&x["y"], self.d, self.k).into_iter().map(|(r, _)| CONSTANT + self.d as f64 * r.ln());
        vec![vec![SCALE as f64 * rows.sum::<f64>() / self.n as f64]]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let rows = entropy_forward(x.single("y"), self.k, CONSTANT)?.rows.to_f32_vec()?;
        let mean = rows.iter().map(|row| *row as f64).sum::<f64>() / self.n as f64;
        Ok(vec![answer(&Tensor::<f32>::from_f32(&x.device, [1], &[SCALE * mean as f32])?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let y = x.single("y");
        let mut dy = x.accumulator("y")?;
        entropy_backward(&mut dy, y, &entropy_forward(y, self.k, CONSTANT)?, SCALE)?;
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
fn contributions_and_gradients_are_those_of_the_definition() {
    let sizes = [(2, 1, 1), (3, 2, 2), (7, 3, 1), (20, 2, 4), (13, 33, 3), (11, 70, 5)];
    check_all(sizes.map(|(n, d, k)| Entropy { n, d, k }));
}

/// More rows than a block, a hub that many have as their neighbour, the gradient's formula in f64.
#[test]
fn a_neighbour_of_many_is_pushed_by_all_of_them() -> Result<()> {
    let (n, d, k) = (515, 5, 1);
    let mut random = Random::new("hub");
    let mut y: Vec<f32> = (0..n * d).map(|_| random.normal() as f32).collect();
    y.chunks_exact_mut(d).skip(1).for_each(|row| {
        // On a sphere, near the hub in its middle only.
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x *= 0.2 / norm);
    });
    y[..d].fill(0.0);
    let wide: Vec<f64> = y.iter().map(|x| *x as f64).collect();
    let found = kth(&wide, d, k);
    let mut expected = vec![0.0f64; n * d];
    for (i, (r, j)) in found.iter().enumerate() {
        for c in 0..d {
            let push = SCALE as f64 * d as f64 / n as f64 * (wide[i * d + c] - wide[j * d + c]) / (r * r);
            expected[i * d + c] += push;
            expected[j * d + c] -= push;
        }
    }
    let largest = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let mut first: Option<(String, Vec<f32>)> = None;
    for (name, device) in devices() {
        let y = Tensor::from_f32(device, [n, d], &y)?;
        let mut dy = Tensor::zeros(device, [n, d]);
        entropy_backward(&mut dy, &y, &entropy_forward(&y, k, 0.0)?, SCALE)?;
        let dy = dy.to_f32_vec()?;
        for (found, expected) in dy.iter().zip(&expected) {
            assert!((*found as f64 - expected).abs() <= 1e-5 * largest, "{name}: {found} {expected}");
        }
        let family = name.split("threads").next().unwrap_or(name).to_owned();
        match &first {
            Some((of, bits)) if *of == family => same_bits(bits, &dy, name),
            _ => first = Some((family, dy)),
        }
    }
    Ok(())
}

/// ψ(n) − ψ(k) + ln V_D.
fn constant(n: usize, k: usize, d: usize) -> f64 {
    let harmonic = |m: usize| (1..m).map(|i| 1.0 / i as f64).sum::<f64>();
    // V_D by V_D = V_{D−2}·2π/D.
    let volume = (1..=d).filter(|i| i % 2 == d % 2).fold(1.0, |v, i| match i {
        1 => 2.0,
        2 => PI,
        i => v * TAU / i as f64,
    });
    harmonic(n) - harmonic(k) + volume.ln()
}

#[test]
fn the_entropy_of_a_gaussian_is_found() -> Result<()> {
    // 4,000 draws of deviation s: D/2·ln(2πe·s²), to four standard errors (about √(D/2 + ψ′(k))/√n) and the bias in 8 dimensions.
    let n = 4000;
    for (d, k, s, allowed) in [(1, 1, 0.5, 0.09), (2, 5, 2.0, 0.07), (8, 4, 1.0, 0.35)] {
        let mut random = Random::new(&format!("gaussian{d}"));
        let y: Vec<f32> = (0..n * d).map(|_| (s * random.normal()) as f32).collect();
        let device = any_device();
        let rows = entropy_forward(&Tensor::from_f32(device, [n, d], &y)?, k, constant(n, k, d))?.rows;
        let h = rows.to_f32_vec()?.iter().map(|x| *x as f64).sum::<f64>() / n as f64;
        let expected = d as f64 / 2.0 * (TAU * E * s * s).ln();
        assert!((h - expected).abs() < allowed, "{d} dimensions, k = {k}: {h}, expected {expected}");
    }
    Ok(())
}

#[test]
fn rows_that_coincide_push_nobody_and_keep_everything_finite() -> Result<()> {
    for (name, device) in devices() {
        let y = Tensor::from_f32(device, [5, 2], &[1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 4.0, 6.0, 1.0, 2.0])?;
        let found = entropy_forward(&y, 1, 0.0)?;
        let mut dy = Tensor::zeros(device, [5, 2]);
        entropy_backward(&mut dy, &y, &found, 1.0)?;
        let rows = found.rows.to_f32_vec()?;
        assert!((rows[0] - 2.0 * 1e-10f32.ln()).abs() < 1e-3, "{name}: {rows:?}");
        assert!((rows[3] - 2.0 * 5.0f32.ln()).abs() < 1e-4, "{name}: {rows:?}");
        // (3, 4)/25 times D/n = 2/5, to row 3 and from row 0, the first of those that are as near.
        let expected = [-0.048, -0.064, 0.0, 0.0, 0.0, 0.0, 0.048, 0.064, 0.0, 0.0];
        for (found, expected) in dy.to_f32_vec()?.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{name}: {:?}", dy.to_f32_vec());
        }
    }
    Ok(())
}

#[test]
fn as_many_neighbours_as_rows_are_refused() {
    let y = Tensor::<f32>::zeros(any_device(), [4, 2]);
    let error = entropy_forward(&y, 4, 0.0).unwrap_err().to_string();
    assert_eq!(error, "knn: `k` has 4, expected from 1 to 3, with 3 points to choose from");
}

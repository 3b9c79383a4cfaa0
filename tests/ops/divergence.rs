//! The divergence by signs and a central difference: its parts, and the whole of a velocity in closed form.

use flowprior::ops::divergence::{STEP, probe_gradient, probe_points, probe_products};
use flowprior::rng::{Draw, Stream};
use flowprior::{DType, FloatX, Result, Tensor};

use crate::support::devices::{any_device, devices};
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, added, answer, check_all};

/// d_i = εᵀ(v(z + hε) − v(z − hε))/(2h) of v(z) = sin(z + the column to its left), at z = t·y, and its gradient in y through
/// [`probe_gradient`]; the network's own part, v and its products, is computed here.
#[derive(Debug)]
struct Divergence {
    n: usize,
    d: usize,
}

const H: f32 = 0.125;

impl Divergence {
    fn draw(&self) -> Draw {
        Draw::new(5, Stream::Probe, 9)
    }

    fn sign(&self, i: usize, c: usize) -> f64 {
        let words = self.draw().words(i as u64, 0, c as u32 / 128);
        if words[c % 128 / 32] >> (c % 32) & 1 == 0 { 1.0 } else { -1.0 }
    }

    fn time(i: usize) -> f64 {
        (i % 5) as f64 / 8.0 + 0.25
    }

    fn left(&self, c: usize) -> usize {
        (c + self.d - 1) % self.d
    }

    fn velocity(&self, z: &[f64]) -> Vec<f64> {
        let of = |row: &[f64], c: usize| (row[c] + 0.5 * row[self.left(c)]).sin();
        z.chunks_exact(self.d).flat_map(|row| (0..self.d).map(move |c| of(row, c))).collect()
    }

    /// Jᵀu of [`Self::velocity`].
    fn product(&self, z: &[f64], u: &[f64]) -> Vec<f64> {
        let mut product = vec![0.0; z.len()];
        for (i, row) in z.chunks_exact(self.d).enumerate() {
            for c in 0..self.d {
                let slope = u[i * self.d + c] * (row[c] + 0.5 * row[self.left(c)]).cos();
                product[i * self.d + c] += slope;
                product[i * self.d + self.left(c)] += 0.5 * slope;
            }
        }
        product
    }

    fn times<X: FloatX>(&self, x: &Tensors<X>) -> Result<Tensor<f32>> {
        let t: Vec<f32> = (0..self.n).map(|i| Self::time(i) as f32).collect();
        Tensor::from_f32(&x.device, [self.n], &t)
    }

    /// The points z ± hε, in f64 of what the operation made.
    fn points<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<f64>> {
        let y = x.single("y").to_f32_vec()?;
        let z: Vec<f32> = y.iter().enumerate().map(|(i, y)| Self::time(i / self.d) as f32 * y).collect();
        let points = probe_points(&Tensor::from_f32(&x.device, [self.n, self.d], &z)?, self.draw(), H)?;
        Ok(points.to_f32_vec()?.iter().map(|x| *x as f64).collect())
    }

    fn tensor<X: FloatX>(&self, x: &Tensors<X>, values: &[f64]) -> Result<Tensor<f32>> {
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        Tensor::from_f32(&x.device, [2 * self.n, self.d], &values)
    }
}

impl Case for Divergence {
    fn inputs(&self) -> Inputs {
        Inputs::default().single("y", [self.n, self.d])
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let h = H as f64;
        let moved = |sign: f64| -> Vec<f64> {
            let at = |i: usize, c: usize| Self::time(i) * x["y"][i * self.d + c] + sign * h * self.sign(i, c);
            (0..self.n).flat_map(|i| (0..self.d).map(move |c| at(i, c))).collect()
        };
        let (plus, minus) = (self.velocity(&moved(1.0)), self.velocity(&moved(-1.0)));
        let of = |i: usize| {
            let terms = (0..self.d).map(|c| i * self.d + c);
            terms.map(|j| self.sign(i, j % self.d) * (plus[j] - minus[j])).sum::<f64>() / (2.0 * h)
        };
        vec![vec![(0..self.n).map(of).sum()]]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let v = self.tensor(x, &self.velocity(&self.points(x)?))?;
        let (values, _) = probe_products(&v, self.draw(), H, 1.0)?;
        let sum = values.to_f32_vec()?.iter().map(|x| *x as f64).sum::<f64>();
        let found = answer(&Tensor::<f32>::from_f32(&x.device, [1], &[sum as f32])?);
        Ok(vec![found.within(1e-4, "differences of velocities near 1 that are rounded to f32")])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let points = self.points(x)?;
        let (_, dv) = probe_products(&self.tensor(x, &self.velocity(&points))?, self.draw(), H, 1.0)?;
        let dv: Vec<f64> = dv.to_f32_vec()?.iter().map(|x| *x as f64).collect();
        let dx = self.tensor(x, &self.product(&points, &dv))?;
        let mut dy = x.accumulator("y")?;
        probe_gradient(&mut dy, &dx, &self.times(x)?)?;
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
fn differences_and_gradients_are_those_of_the_definition() {
    check_all([(1, 1), (3, 2), (4, 31), (2, 33), (5, 130)].map(|(n, d)| Divergence { n, d }));
}

/// v = a·z, of which every probe finds the trace, and rows are as many as blocks have lanes and more.
#[test]
fn a_linear_velocity_has_its_trace_in_every_row() -> Result<()> {
    let (n, d, a) = (300, 6, -1.75f32);
    for (name, device) in devices() {
        let z: Vec<f32> = (0..n * d).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
        let draw = Draw::new(1, Stream::Probe, 0);
        let points = probe_points(&Tensor::from_f32(device, [n, d], &z)?, draw, STEP)?;
        let v: Vec<f32> = points.to_f32_vec()?.iter().map(|x| a * x).collect();
        let (values, dv) = probe_products(&Tensor::from_f32(device, [2 * n, d], &v)?, draw, STEP, 3.0)?;
        for value in values.to_f32_vec()? {
            assert!((value - a * d as f32).abs() < 1e-3, "{name}: {value}");
        }
        let dv = dv.to_f32_vec()?;
        let expected = 3.0 / (2.0 * STEP);
        let opposite = dv[..n * d].iter().zip(&dv[n * d..]).all(|(a, b)| *a == -b && a.abs() == expected);
        assert!(opposite, "{name}");
        let plus = dv[..n * d].iter().filter(|x| **x > 0.0).count();
        assert!((n * d / 2 - 200..n * d / 2 + 200).contains(&plus), "{name}: {plus} of {}", n * d);
    }
    Ok(())
}

#[test]
fn shapes_and_steps_that_make_no_sense_are_refused() {
    let rows = |n| Tensor::<f32>::zeros(any_device(), [n, 2]);
    let draw = Draw::new(1, Stream::Probe, 0);
    let error = probe_points(&rows(3), draw, 0.0).unwrap_err().to_string();
    assert_eq!(error, "probe_points: `h` has 0, expected a positive number");
    let error = probe_products(&rows(3), draw, 0.1, 1.0).unwrap_err().to_string();
    assert_eq!(error, "probe_products: `v` has shape [3, 2], expected shape [2, 2]");
    let t = Tensor::<f32>::zeros(any_device(), [4]);
    assert!(probe_gradient(&mut rows(4), &rows(6), &t).is_err());
}

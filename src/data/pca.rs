//! Principal components in f64: the covariance of all rows, and its eigenvectors by Jacobi's rotations.
//!
//! Cyclic Jacobi (Golub and Van Loan, Matrix Computations, 8.5) is slower than a tridiagonal method but short, and
//! accurate to rounding; 384 dimensions take about two seconds.

use rayon::prelude::*;

use crate::error::{Error, Result};

/// Sweeps over all pairs; convergence is quadratic and takes six to ten.
const MAX_SWEEPS: usize = 60;

/// Collects mean and covariance of rows.
#[derive(Clone, Debug)]
pub struct Covariance {
    width: usize,
    rows: f64,
    /// The first row: sums are of differences from it, so that a far-off mean costs no digits.
    origin: Vec<f64>,
    sum: Vec<f64>,
    products: Vec<f64>,
}

impl Covariance {
    /// Starts over rows of `width` values.
    pub fn new(width: usize) -> Self {
        let zeros = || vec![0.0; width];
        Self { width, rows: 0.0, origin: zeros(), sum: zeros(), products: vec![0.0; width * width] }
    }

    /// Adds `rows` (N, width).
    pub fn push(&mut self, rows: &[f32]) {
        let width = self.width;
        if self.rows == 0.0 {
            self.origin.iter_mut().zip(rows).for_each(|(o, x)| *o = *x as f64);
        }
        let centred: Vec<f64> = rows
            .chunks_exact(width)
            .flat_map(|row| row.iter().zip(&self.origin).map(|(x, o)| *x as f64 - o))
            .collect();
        for row in centred.chunks_exact(width) {
            self.sum.iter_mut().zip(row).for_each(|(s, x)| *s += x);
        }
        self.rows += (centred.len() / width) as f64;
        // Each line of the upper triangle sums the rows in their order, whichever thread has it.
        self.products.par_chunks_mut(width).enumerate().for_each(|(i, line)| {
            for row in centred.chunks_exact(width) {
                let x = row[i];
                line[i..].iter_mut().zip(&row[i..]).for_each(|(p, y)| *p += x * y);
            }
        });
    }

    /// Returns the mean, (width).
    pub fn mean(&self) -> Vec<f64> {
        self.origin.iter().zip(&self.sum).map(|(o, s)| o + s / self.rows.max(1.0)).collect()
    }

    /// Returns the eigenvalues and eigenvectors of the unbiased covariance; see [`symmetric_eigen`].
    ///
    /// # Errors
    /// Fewer than two rows, or values so large that the covariance is not finite.
    pub fn eigen(&self) -> Result<(Vec<f64>, Vec<f64>)> {
        Ok(symmetric_eigen(self.matrix()?, self.width))
    }

    /// Returns the unbiased covariance, (width, width).
    ///
    /// # Errors
    /// Fewer than two rows, or values so large that the covariance is not finite.
    pub fn matrix(&self) -> Result<Vec<f64>> {
        let n = self.width;
        if self.rows < 2.0 {
            return Err(Error::argument("pca", "rows", "at least two rows", self.rows));
        }
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            for j in i..n {
                let product = self.products[i * n + j] - self.sum[i] * self.sum[j] / self.rows;
                a[i * n + j] = product / (self.rows - 1.0);
                a[j * n + i] = a[i * n + j];
            }
        }
        if !a.iter().all(|x| x.is_finite()) {
            return Err(Error::argument("pca", "rows", "a finite covariance", "values that are too large"));
        }
        Ok(a)
    }
}

/// Returns the eigenvalues of a positive semi-definite matrix `a` (n, n), largest first, and its eigenvectors as rows, each
/// with its largest entry positive. Eigenvalues that rounding made negative are 0.
pub fn symmetric_eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let vectors = jacobi(&mut a, n);
    sorted(&a, &vectors, n)
}

/// Diagonalises the symmetric matrix `a` in place and returns its eigenvectors as rows.
fn jacobi(a: &mut [f64], n: usize) -> Vec<f64> {
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    let trace: f64 = (0..n).map(|i| a[i * n + i].abs()).sum();
    for _ in 0..MAX_SWEEPS {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                if a[p * n + q].abs() > 1e-15 * trace {
                    rotated = true;
                    rotate(a, &mut vectors, n, p, q);
                }
            }
        }
        if !rotated {
            break;
        }
    }
    vectors
}

/// Makes entry (p, q) zero: t = tan of the angle, the smaller root of t² + 2θt = 1, θ = (a_qq − a_pp) / 2a_pq.
fn rotate(a: &mut [f64], vectors: &mut [f64], n: usize, p: usize, q: usize) {
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * a[p * n + q]);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    rotate_rows(a, n, p, q, c, s);
    for k in 0..n {
        let (x, y) = (a[k * n + p], a[k * n + q]);
        (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
    }
    rotate_rows(vectors, n, p, q, c, s);
}

fn rotate_rows(a: &mut [f64], n: usize, p: usize, q: usize, c: f64, s: f64) {
    let (head, tail) = a.split_at_mut(q * n);
    for (x, y) in head[p * n..p * n + n].iter_mut().zip(&mut tail[..n]) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

fn sorted(a: &[f64], vectors: &[f64], n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|i, j| a[j * n + j].total_cmp(&a[i * n + i]));
    let values = order.iter().map(|i| a[i * n + i].max(0.0)).collect();
    let vectors = order.iter().flat_map(|i| {
        let vector = &vectors[i * n..(i + 1) * n];
        let largest = vector.iter().copied().fold(0.0f64, |m, x| if x.abs() > m.abs() { x } else { m });
        vector.iter().map(move |x| if largest < 0.0 { -x } else { *x })
    });
    (values, vectors.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Isa;
    use crate::rng::{Draw, Stream};

    #[test]
    fn eigenvectors_diagonalise_the_covariance() {
        let (n, rows) = (13, 400);
        let mut data = vec![0.0f32; n * rows];
        Isa::detect().run(|arch| Draw::new(1, Stream::Noise, 0).fill_normal(arch, &mut data, 0, 0));
        for row in data.chunks_exact_mut(n) {
            for j in 1..n {
                row[j] = 100.0 + row[j] * (j as f32) + 0.5 * (row[j - 1] - if j > 1 { 100.0 } else { 0.0 });
            }
        }
        let mut covariance = Covariance::new(n);
        data.chunks(n * 37).for_each(|chunk| covariance.push(chunk));
        let (values, vectors) = covariance.eigen().unwrap();
        let mean = covariance.mean();
        assert!(values.windows(2).all(|v| v[0] >= v[1]), "{values:?}");
        for i in 0..n {
            for j in 0..n {
                let projected = |k: usize, row: &[f32]| -> f64 {
                    (0..n).map(|d| vectors[k * n + d] * (row[d] as f64 - mean[d])).sum()
                };
                let product: f64 = data.chunks_exact(n).map(|r| projected(i, r) * projected(j, r)).sum();
                let expected = if i == j { values[i] } else { 0.0 };
                let found = product / (rows - 1) as f64;
                assert!((found - expected).abs() < 1e-9 * values[0], "({i}, {j}): {found} {expected}");
            }
        }
    }

    #[test]
    fn one_row_has_no_covariance() {
        let mut covariance = Covariance::new(2);
        covariance.push(&[1.0, 2.0]);
        assert!(covariance.eigen().unwrap_err().to_string().contains("at least two rows"));
    }
}

//! Normalisation of targets: by the batch's detached statistics, and rows to unit norm.

use flowprior::ops::normalize::{
    batch_stats, standardize_backward, standardize_forward, std_penalty, unit_norm_backward,
    unit_norm_forward,
};
use flowprior::{DType, FloatX, Result, Tensor};

use crate::support::devices::{any_device, devices};
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, added, answer, check_all, fresh};

const SHAPES: [(usize, usize); 7] = [(2, 1), (1, 2), (3, 5), (7, 31), (17, 33), (9, 1030), (520, 32)];

/// `(x − mean)/(std + 1e-8)`, the statistics those of another tensor, because they are detached.
#[derive(Debug)]
struct Standardize {
    n: usize,
    d: usize,
}

impl Case for Standardize {
    fn inputs(&self) -> Inputs {
        let of: Vec<f64> = (0..self.n * self.d).map(|i| 5.0 + (i as f64 * 0.7).sin() * 3.0).collect();
        Inputs::default().single("x", [self.n, self.d]).constant("of", [self.n, self.d], of)
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let (of, n) = (&x["of"], x["of"].len() as f64);
        let mean = of.iter().sum::<f64>() / n;
        let std = (of.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        vec![x["x"].iter().map(|v| (v - mean) / (std + 1e-8)).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        Ok(vec![answer(&standardize_forward(x.single("x"), batch_stats(x.single("of"))?)?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let dx = standardize_backward(x.single("dy"), batch_stats(x.single("of"))?)?;
        Ok([fresh("x", &dx)].into())
    }

    fn types(&self) -> &'static [DType] {
        &[DType::F32]
    }
}

/// `x/max(‖x‖, 1e-12)`, row by row.
#[derive(Debug)]
struct UnitNorm {
    n: usize,
    d: usize,
}

impl Case for UnitNorm {
    fn inputs(&self) -> Inputs {
        Inputs::default().single("x", [self.n, self.d])
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let unit = |row: &[f64]| -> Vec<f64> {
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            row.iter().map(|v| v / norm).collect()
        };
        vec![x["x"].chunks_exact(self.d).flat_map(unit).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        Ok(vec![answer(&unit_norm_forward(x.single("x"))?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let dx = fresh("x", &unit_norm_backward(x.single("dy"), x.single("x"))?);
        let cancels = "a row of one or two elements hardly moves: dx is what is left of terms of this size";
        Ok([dx.at_least(if self.d < 3 { 10.0 } else { 0.0 }, cancels)].into())
    }

    fn types(&self) -> &'static [DType] {
        &[DType::F32]
    }
}

/// `weight·(std(y) − 1)²`, std of all elements.
#[derive(Debug)]
struct StdPenalty {
    n: usize,
    d: usize,
}

const WEIGHT: f32 = 3.0;

impl Case for StdPenalty {
    fn inputs(&self) -> Inputs {
        Inputs::default().single("y", [self.n, self.d]).scaled(1.75)
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let (y, n) = (&x["y"], x["y"].len() as f64);
        let mean = y.iter().sum::<f64>() / n;
        let std = (y.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        vec![vec![WEIGHT as f64 * (std - 1.0).powi(2)]]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let value = std_penalty(&mut x.accumulator("y")?, x.single("y"), WEIGHT)?;
        Ok(vec![answer(&Tensor::<f32>::from_f32(&x.device, [1], &[WEIGHT * value as f32])?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let mut dy = x.accumulator("y")?;
        std_penalty(&mut dy, x.single("y"), WEIGHT)?;
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
fn a_deviation_other_than_one_is_penalised() {
    check_all(SHAPES.map(|(n, d)| StdPenalty { n, d }));
}

#[test]
fn batches_are_standardized() {
    check_all(SHAPES.map(|(n, d)| Standardize { n, d }));
}

#[test]
fn rows_get_unit_norm() {
    check_all(SHAPES.map(|(n, d)| UnitNorm { n, d }));
}

#[test]
fn a_row_of_zeros_stays_zero() -> Result<()> {
    for (name, device) in devices() {
        let x = Tensor::from_f32(device, [2, 3], &[0.0, 0.0, 0.0, 3.0, 0.0, 4.0])?;
        let y = unit_norm_forward(&x)?.to_f32_vec()?;
        assert_eq!((&y[..3], y[4]), (&[0.0; 3][..], 0.0), "{name}");
        assert!((y[3] - 0.6).abs() <= 5e-7 && (y[5] - 0.8).abs() <= 5e-7, "{name}: {y:?}");
    }
    Ok(())
}

#[test]
fn a_single_element_has_no_deviation() {
    let error = batch_stats(&Tensor::zeros(any_device(), [1, 1])).unwrap_err().to_string();
    assert_eq!(error, "batch_stats: `x` has shape [1, 1], expected at least two elements");
}

//! QK-norm: queries and keys of each head normalised and mapped, values as they were.

use flowprior::ops::attention::Heads;
use flowprior::ops::qk_norm::{QkNorm, QkNormGrads, qk_norm_backward, qk_norm_forward};
use flowprior::{FloatX, Result, Tensor};

use crate::support::devices::any_device;
use crate::support::oracle::same_bits;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, added, answer, check_all, fresh};

const AFFINE: [&str; 4] = ["q_weight", "q_bias", "k_weight", "k_bias"];

#[derive(Debug)]
struct Norm {
    n: usize,
    h: usize,
    k: usize,
}

impl Case for Norm {
    fn inputs(&self) -> Inputs {
        let inputs = Inputs::default().stored("qkv", [self.n, 3 * self.h * self.k]);
        AFFINE.iter().fold(inputs, |inputs, name| inputs.stored(name, [self.k]))
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let &Self { h, k, .. } = self;
        let mut y = Vec::new();
        for (i, vector) in x["qkv"].chunks_exact(k).enumerate() {
            let part = i % (3 * h) / h;
            let mean = vector.iter().sum::<f64>() / k as f64;
            let variance = vector.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / k as f64;
            for (j, v) in vector.iter().enumerate() {
                let mapped = |weight: &str, bias: &str| {
                    (v - mean) / (variance + 1e-5).sqrt() * x[weight][j] + x[bias][j]
                };
                y.push(match part {
                    0 => mapped("q_weight", "q_bias"),
                    1 => mapped("k_weight", "k_bias"),
                    _ => *v,
                });
            }
        }
        vec![y]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        Ok(vec![answer(&qk_norm_forward(x.stored("qkv"), &norm(x), self.heads())?.0)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let (qkv, norm, dy) = (x.stored("qkv"), norm(x), x.stored("dy"));
        let (_, stats) = qk_norm_forward(qkv, &norm, self.heads())?;
        let mut grads = Vec::new();
        for name in AFFINE {
            grads.push(x.accumulator(name)?);
        }
        let [q_weight, q_bias, k_weight, k_bias] = &mut grads[..] else { panic!("four gradients") };
        let into = QkNormGrads {
            q: (q_weight.view_mut(), q_bias.view_mut()),
            k: (k_weight.view_mut(), k_bias.view_mut()),
        };
        let dqkv = qk_norm_backward(dy, qkv, &stats, &norm, self.heads(), Some(into))?;
        let frozen = qk_norm_backward(dy, qkv, &stats, &norm, self.heads(), None)?;
        same_bits(&dqkv.to_f32_vec()?, &frozen.to_f32_vec()?, "dqkv of a frozen network");

        let cancels = "with few columns x̂ hardly depends on x: dx is what is left of terms of this size";
        let terms = if self.k < 5 { 30.0 } else { 0.0 };
        let mut gradients = vec![fresh("qkv", &dqkv).at_least(terms, cancels)];
        gradients.extend(AFFINE.into_iter().zip(&grads).map(|(name, grad)| added(name, grad)));
        Ok(Backward::Gradients(gradients))
    }
}

impl Norm {
    fn heads(&self) -> Heads {
        Heads { tokens: 1, heads: self.h }
    }
}

fn norm<X: FloatX>(x: &Tensors<X>) -> QkNorm<'_, X> {
    let [q_weight, q_bias, k_weight, k_bias] = AFFINE.map(|name| x.stored(name).view());
    QkNorm { q: (q_weight, q_bias), k: (k_weight, k_bias) }
}

fn check(shapes: &[(usize, usize, usize)]) {
    check_all(shapes.iter().map(|&(n, h, k)| Norm { n, h, k }));
}

#[test]
fn heads_of_few_columns_are_normalised() {
    check(&[(1, 1, 2), (2, 3, 4), (3, 2, 6)]);
}

#[test]
fn heads_of_a_model_are_normalised() {
    check(&[(5, 3, 32), (9, 2, 64), (3, 1, 72), (4, 3, 128), (2, 1, 130)]);
}

#[test]
fn more_rows_than_a_slice_holds_are_normalised() {
    check(&[(300, 1, 10), (67, 3, 34)]);
}

#[test]
fn a_weight_of_another_width_is_refused() {
    let device = any_device();
    let (qkv, narrow) = (Tensor::<f32>::zeros(device, [2, 24]), Tensor::<f32>::zeros(device, [3]));
    let right = Tensor::<f32>::zeros(device, [4]);
    let norm = QkNorm { q: (right.view(), right.view()), k: (right.view(), narrow.view()) };
    let message = qk_norm_forward(&qkv, &norm, Heads { tokens: 2, heads: 2 }).unwrap_err().to_string();
    assert_eq!(message, "qk_norm_forward: `k bias` has shape [3], expected shape [4]");
}

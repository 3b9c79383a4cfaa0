//! The flow-matching loss: residual, weights, control variate, and the gradients of both stages.

use flowprior::ops::flow_loss::{Target, Weight, flow_loss_backward, flow_loss_forward, latent_gradient};
use flowprior::ops::flow_path::{Rows, interpolate};
use flowprior::ops::linear::{Activation, linear_backward_input, linear_forward};
use flowprior::rng::{Draw, Stream};
use flowprior::{DType, FloatX, Result, Tensor};

use crate::support::noise::rows_of_noise;
use crate::support::oracle::tolerance;
use crate::support::random::Random;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, fresh};

const WEIGHTS: [Weight; 3] =
    [Weight::Uniform, Weight::Likelihood { clip: 0.875 }, Weight::Kl { clip: 0.875 }];

fn noise() -> Draw {
    Draw::new(11, Stream::Noise, 5)
}

/// Row losses of given velocities, `ℓ = w(t)·(‖v − (data − noise)‖² − c)`, and their sum's gradients.
#[derive(Debug)]
struct FlowLoss {
    rows: Rows,
    d: usize,
    weight: Weight,
    control_variate: bool,
}

impl Case for FlowLoss {
    fn inputs(&self) -> Inputs {
        let inputs = Inputs::default().stored("v", [self.rows.len(), self.d]);
        let inputs = inputs.single("data", [self.rows.samples, self.d]);
        inputs.constant("t", [self.rows.times()], times(self.rows))
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        vec![losses(self, &x["v"], &x["data"], &x["t"])]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        Ok(vec![answer(&flow_loss_forward(x.stored("v"), &self.target(x.single("data"), x.single("t")))?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let (v, t) = (x.stored("v"), x.single("t"));
        let target = self.target(x.single("data"), t);
        let (_, dv) = flow_loss_backward(v, &target, 2.0)?; // d(Σ ℓ)/dv = 2·w·r
        let ddata = latent_gradient(&dv, None, t, self.rows, 1.0)?;
        let ddata = fresh("data", &ddata).within(tolerance(X::DTYPE), "dv, which it sums, was rounded");
        Ok([fresh("v", &dv), ddata].into())
    }

    fn sums_its_output(&self) -> bool {
        true
    }
}

impl FlowLoss {
    fn target<'a>(&self, data: &'a Tensor<f32>, t: &'a Tensor<f32>) -> Target<'a> {
        let &Self { rows, weight, control_variate, .. } = self;
        Target { data, t, noise: noise(), rows, weight, control_variate }
    }
}

/// Stage 2 with the velocity v(x_t) = A·x_t: the total derivative of the loss with respect to the latents y.
#[derive(Debug)]
struct Alignment {
    loss: FlowLoss,
    /// x_t is made from other latents, so y is seen through the target alone.
    detached: bool,
}

/// A loss scale and its inverse, exact in binary.
const LOSS_SCALE: f32 = 1024.0;

impl Case for Alignment {
    fn inputs(&self) -> Inputs {
        let &FlowLoss { rows, d, .. } = &self.loss;
        let mut random = Random::new("A and others");
        let matrix = random.normals(d * d).into_iter().map(|v| v / (d as f64).sqrt()).collect();
        let inputs = Inputs::default().single("y", [rows.samples, d]).constant("A", [d, d], matrix);
        let inputs = inputs.constant("t", [rows.times()], times(rows));
        inputs.when(self.detached, |i| {
            i.constant("others", [rows.samples, d], random.normals(rows.samples * d))
        })
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let &FlowLoss { rows, d, .. } = &self.loss;
        let (from, t) = (x.get("others").unwrap_or(&x["y"]), &x["t"]);
        let noise = rows_of_noise(noise(), rows, d);
        let mut v = Vec::new();
        for (i, noise) in noise.chunks_exact(d).enumerate() {
            let (t, from) = (t[i / rows.share], &from[i % rows.samples * d..][..d]);
            let x_t: Vec<f64> = noise.iter().zip(from).map(|(n, y)| (1.0 - t) * n + t * y).collect();
            v.extend(x["A"].chunks_exact(d).map(|a| a.iter().zip(&x_t).map(|(a, x)| a * x).sum::<f64>()));
        }
        vec![losses(&self.loss, &v, &x["y"], t)]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let target = self.loss.target(x.single("y"), x.single("t"));
        Ok(vec![answer(&flow_loss_forward(&self.velocity(x)?, &target)?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let (t, rows) = (x.single("t"), self.loss.rows);
        let target = self.loss.target(x.single("y"), t);
        let (_, dv) = flow_loss_backward(&self.velocity(x)?, &target, 2.0 * LOSS_SCALE)?;
        let dx_t = match self.detached {
            true => None,
            false => Some(linear_backward_input(&dv, x.single("A").view(), None)?),
        };
        Ok([fresh("y", &latent_gradient(&dv, dx_t.as_ref(), t, rows, 1.0 / LOSS_SCALE)?)].into())
    }

    fn types(&self) -> &'static [DType] {
        &[DType::F32]
    }

    fn sums_its_output(&self) -> bool {
        true
    }
}

impl Alignment {
    fn velocity<X: FloatX>(&self, x: &Tensors<X>) -> Result<Tensor<X>> {
        let from = x.single(if self.detached { "others" } else { "y" });
        let x_t = interpolate::<X>(from, x.single("t"), noise(), self.loss.rows)?;
        Ok(linear_forward(&x_t, x.single("A").view(), None, None, Activation::Identity)?.0)
    }
}

/// Returns times in [0, 0.999], below and above the clip.
fn times(rows: Rows) -> Vec<f64> {
    let mut random = Random::new("t");
    (0..rows.times()).map(|_| 0.999 * random.uniform()).collect()
}

/// Returns the row losses, from their definition.
fn losses(case: &FlowLoss, v: &[f64], data: &[f64], t: &[f64]) -> Vec<f64> {
    let &FlowLoss { rows, d, weight, control_variate } = case;
    let noise = rows_of_noise(noise(), rows, d);
    let row = |(i, (v, noise)): (usize, (&[f64], &[f64]))| {
        let (t, data) = (t[i / rows.share], &data[i % rows.samples * d..][..d]);
        let residuals = v.iter().zip(noise).zip(data).map(|((v, noise), data)| v - (data - noise));
        let mut sum = residuals.map(|r| r * r).sum::<f64>();
        if control_variate {
            let variance = (1.0 - t).powi(2) + t.powi(2);
            sum -= noise.iter().map(|n| n * n).sum::<f64>() + d as f64 * (1.0 / variance - 1.0);
        }
        weight_at(weight, t) * sum
    };
    v.chunks_exact(d).zip(noise.chunks_exact(d)).enumerate().map(row).collect()
}

fn weight_at(weight: Weight, t: f64) -> f64 {
    let odds = |t: f64| t / (1.0 - t);
    let clipped = |clip: f32| if t > clip as f64 { clip as f64 } else { t };
    match weight {
        Weight::Uniform => 1.0,
        Weight::Likelihood { clip } => odds(clipped(clip)),
        Weight::Kl { clip } => clipped(clip) * odds(clipped(clip)),
    }
}

fn cases(list: &[(usize, usize, usize, usize)]) -> impl Iterator<Item = FlowLoss> {
    list.iter().flat_map(|&(samples, replicas, share, d)| {
        let rows = Rows { first: 9, samples, replicas, share };
        WEIGHTS.into_iter().flat_map(move |weight| {
            [false, true].map(|control_variate| FlowLoss { rows, d, weight, control_variate })
        })
    })
}

#[test]
fn losses_and_velocity_gradients_match() {
    check_all(cases(&[(1, 1, 1, 1), (7, 1, 1, 2), (5, 2, 1, 31), (6, 3, 2, 32), (3, 1, 3, 5)]));
}

#[test]
fn losses_of_wide_rows_and_many_blocks_match() {
    let large = cases(&[(24, 1, 1, 768), (6, 3, 3, 1030), (530, 1, 1, 33)]);
    check_all(large.filter(|case| case.control_variate == (case.weight != Weight::Uniform)));
}

#[test]
fn latents_get_the_total_derivative_or_the_detached_one() {
    let shapes = [(1, 1, 1, 1), (7, 1, 1, 2), (5, 2, 1, 31), (6, 3, 2, 32), (2, 4, 1, 5)];
    let cases = cases(&shapes).flat_map(|loss| {
        let FlowLoss { rows, d, weight, control_variate } = loss;
        [false, true].map(|detached| {
            let loss = FlowLoss { rows, d, weight, control_variate };
            Alignment { loss, detached }
        })
    });
    check_all(cases);
}

//! A stochastic step: the affine part, and the noise of each row's own counter.

use flowprior::ops::flow_path::Rows;
use flowprior::ops::sde_step::{Factors, sde_step};
use flowprior::rng::{Draw, Stream};
use flowprior::{DType, FloatX, Result};

use crate::support::noise::rows_of_noise;
use crate::support::random::Random;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, no_backward};

#[derive(Debug)]
struct Step {
    rows: Rows,
    d: usize,
    factors: Factors,
}

fn noise() -> Draw {
    Draw::new(3, Stream::SamplerNoise, 9)
}

impl Case for Step {
    fn inputs(&self) -> Inputs {
        let shape = [self.rows.len(), self.d];
        let numbers = |name| Random::new(name).normals(self.rows.len() * self.d);
        Inputs::default().constant("x", shape, numbers("x")).constant("v", shape, numbers("v"))
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let Factors { x: a, v: b, noise: c } = self.factors;
        let noise = rows_of_noise(noise(), self.rows, self.d);
        let moved = |((x, v), e)| a as f64 * x + b as f64 * v + c as f64 * e;
        vec![x["x"].iter().zip(&x["v"]).zip(noise).map(moved).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let mut y = x.single("x").duplicate()?;
        sde_step(&mut y, x.single("v"), self.factors, noise(), self.rows)?;
        Ok(vec![answer(&y)])
    }

    fn backward<X: FloatX>(&self, _x: &Tensors<X>) -> Result<Backward> {
        no_backward("samples are drawn, never descended")
    }

    fn types(&self) -> &'static [DType] {
        &[DType::F32]
    }
}

#[test]
fn states_drift_and_are_shaken() {
    let factors = [(0.75, -0.5, 1.25), (1.0, 0.125, 0.0)].map(|(x, v, noise)| Factors { x, v, noise });
    let widths = [1, 2, 4, 31, 64, 1030];
    let rows = Rows { first: 40, samples: 6, replicas: 3, share: 1 };
    let cases = widths.into_iter().flat_map(|d| factors.map(|factors| Step { rows, d, factors }));
    let huge = Rows { first: (1 << 32) - 3, samples: 530, replicas: 1, share: 1 };
    check_all(cases.chain([Step { rows: huge, d: 33, factors: factors[0] }]));
}

//! Mean squared error: row losses `‖x̂ − x‖²` and the gradient of their sum.

use flowprior::ops::mse::mse;
use flowprior::{FloatX, Result};

use crate::support::random::Random;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, fresh};

#[derive(Debug)]
struct Mse {
    n: usize,
    d: usize,
}

impl Case for Mse {
    fn inputs(&self) -> Inputs {
        let target = Random::new("target").normals(self.n * self.d);
        Inputs::default().stored("x_hat", [self.n, self.d]).constant("x", [self.n, self.d], target)
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let rows = x["x_hat"].chunks_exact(self.d).zip(x["x"].chunks_exact(self.d));
        vec![rows.map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        Ok(vec![answer(&mse(x.stored("x_hat"), x.single("x"), 2.0)?.0)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        Ok([fresh("x_hat", &mse(x.stored("x_hat"), x.single("x"), 2.0)?.1)].into())
    }

    fn sums_its_output(&self) -> bool {
        true
    }
}

#[test]
fn squared_errors_and_their_gradient_match() {
    let shapes = [(1, 1), (3, 1), (2, 3), (7, 31), (17, 33), (520, 64), (18, 1030)];
    check_all(shapes.map(|(n, d)| Mse { n, d }));
}

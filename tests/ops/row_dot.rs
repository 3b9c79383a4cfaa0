//! Dot products of rows.

use flowprior::ops::row_dot::row_dot;
use flowprior::{DType, FloatX, Result};

use crate::support::random::Random;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, no_backward};

#[derive(Debug)]
struct RowDot {
    n: usize,
    d: usize,
}

impl Case for RowDot {
    fn inputs(&self) -> Inputs {
        let numbers = |name| Random::new(name).normals(self.n * self.d);
        let shape = [self.n, self.d];
        Inputs::default().constant("a", shape, numbers("a")).constant("b", shape, numbers("b"))
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let rows = x["a"].chunks_exact(self.d).zip(x["b"].chunks_exact(self.d));
        vec![rows.map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum()).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        Ok(vec![answer(&row_dot(x.single("a"), x.single("b"))?)])
    }

    fn backward<X: FloatX>(&self, _x: &Tensors<X>) -> Result<Backward> {
        no_backward("likelihoods are evaluated, never descended")
    }

    fn types(&self) -> &'static [DType] {
        &[DType::F32]
    }
}

#[test]
fn rows_are_multiplied_and_added() {
    let shapes = [(1, 1), (3, 1), (2, 3), (7, 31), (17, 33), (9, 128), (520, 64), (18, 1030)];
    check_all(shapes.map(|(n, d)| RowDot { n, d }));
}

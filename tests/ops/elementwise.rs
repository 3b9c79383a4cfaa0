//! Casts between storage types, and scaled additions.

use flowprior::ops::elementwise::{axpy, cast};
use flowprior::{FloatX, Result, Tensor};

use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, fresh};

/// Around the block of 16,384 elements.
const LENGTHS: [usize; 6] = [1, 3, 17, 257, 16_385, 40_001];

/// From the storage type to f32, or back.
#[derive(Debug)]
struct Cast {
    n: usize,
    widens: bool,
}

impl Case for Cast {
    fn inputs(&self) -> Inputs {
        match self.widens {
            true => Inputs::default().stored("x", [self.n]),
            false => Inputs::default().single("x", [self.n]),
        }
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        vec![x["x"].to_vec()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        Ok(vec![match self.widens {
            true => answer(&cast::<X, f32>(x.stored("x"))?),
            false => answer(&cast::<f32, X>(x.single("x"))?),
        }])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        Ok(match self.widens {
            true => [fresh("x", &cast::<f32, X>(x.single("dy"))?)].into(),
            false => [fresh("x", &cast::<X, f32>(x.stored("dy"))?)].into(),
        })
    }
}

/// `y + a·x`.
#[derive(Debug)]
struct Axpy {
    n: usize,
}

const A: f32 = -0.75;

impl Case for Axpy {
    fn inputs(&self) -> Inputs {
        Inputs::default().single("y", [self.n]).stored("x", [self.n])
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        vec![x["y"].iter().zip(&x["x"]).map(|(y, x)| y + A as f64 * x).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let mut y = x.single("y").duplicate()?;
        axpy(y.view_mut(), A, x.stored("x"))?;
        Ok(vec![answer(&y)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let dy = x.single("dy");
        let mut dx = Tensor::zeros(&x.device, dy.shape());
        axpy(dx.view_mut(), A, dy)?;
        Ok([fresh("y", dy), fresh("x", &dx)].into())
    }
}

#[test]
fn numbers_are_cast_both_ways() {
    check_all(LENGTHS.into_iter().flat_map(|n| [true, false].map(|widens| Cast { n, widens })));
}

#[test]
fn scaled_tensors_are_added() {
    check_all(LENGTHS.map(|n| Axpy { n }));
}

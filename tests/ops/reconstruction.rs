//! Distances to a target: row losses `‖x̂ − x‖²` and `Σ|x̂ − x|`, and the gradient of their sum.

use flowprior::ops::reconstruction::{Distance, reconstruction};
use flowprior::{FloatX, Result, Tensor};

use crate::support::devices::devices;
use crate::support::random::Random;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, fresh};

#[derive(Debug)]
struct Reconstruction {
    n: usize,
    d: usize,
    distance: Distance,
}

impl Case for Reconstruction {
    fn inputs(&self) -> Inputs {
        let mut target = Random::new("target").normals(self.n * self.d);
        if self.distance == Distance::L1 {
            // Far enough from the reconstruction to either side that small steps change no sign.
            target.iter_mut().for_each(|x| *x = 0.1 * *x + 12.0_f64.copysign(*x));
        }
        Inputs::default().stored("x_hat", [self.n, self.d]).constant("x", [self.n, self.d], target)
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let rows = x["x_hat"].chunks_exact(self.d).zip(x["x"].chunks_exact(self.d));
        let of = |r: f64| if self.distance == Distance::L2 { r.powi(2) } else { r.abs() };
        vec![rows.map(|(a, b)| a.iter().zip(b).map(|(a, b)| of(a - b)).sum()).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        Ok(vec![answer(&reconstruction(x.stored("x_hat"), x.single("x"), self.distance, 1.0)?.0)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        Ok([fresh("x_hat", &reconstruction(x.stored("x_hat"), x.single("x"), self.distance, 1.0)?.1)].into())
    }

    fn sums_its_output(&self) -> bool {
        true
    }
}

#[test]
fn both_distances_and_their_gradients_match() {
    let shapes = [(1, 1), (3, 1), (2, 3), (7, 31), (17, 33), (520, 64), (18, 1030)];
    let both = [Distance::L2, Distance::L1];
    check_all(both.into_iter().flat_map(|distance| shapes.map(|(n, d)| Reconstruction { n, d, distance })));
}

#[test]
fn the_slope_of_l1_is_zero_where_both_are_equal() -> Result<()> {
    for (name, device) in devices() {
        let x = Tensor::<f32>::from_f32(device, [2, 4], &[1.0, 2.0, 3.0, 4.0, 0.0, -1.0, 2.0, -3.0])?;
        let (loss, dx) = reconstruction(&x.duplicate()?, &x, Distance::L1, 3.0)?;
        assert_eq!((loss.to_f32_vec()?, dx.to_f32_vec()?), (vec![0.0; 2], vec![0.0; 8]), "{name}");
    }
    Ok(())
}

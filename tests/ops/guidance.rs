//! The guided velocity: both scales of the weak one, weights on either side of 1.

use flowprior::ops::guidance::{WeakScale, guidance};
use flowprior::{FloatX, Result, Tensor};

use crate::support::devices::any_device;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, no_backward};

#[derive(Debug)]
struct Guided {
    n: usize,
    d: usize,
    w: f32,
    scale: WeakScale,
}

impl Case for Guided {
    fn inputs(&self) -> Inputs {
        Inputs::default().fixed("strong", [self.n, self.d]).fixed("weak", [self.n, self.d])
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let rows = x["strong"].chunks_exact(self.d).zip(x["weak"].chunks_exact(self.d));
        let guided = |(strong, weak): (&[f64], &[f64])| -> Vec<f64> {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let s = match self.scale {
                WeakScale::One => 1.0,
                WeakScale::Projected => dot(strong, weak) / (dot(weak, weak) + 1e-8),
            };
            strong.iter().zip(weak).map(|(c, n)| s * n + self.w as f64 * (c - s * n)).collect()
        };
        vec![rows.flat_map(guided).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let v = guidance(x.stored("strong"), x.stored("weak"), self.w, self.scale)?;
        let reason =
            "s is a quotient of two sums: of one or two columns it is as large as one over the smaller";
        Ok(vec![match self.scale {
            WeakScale::One => answer(&v),
            WeakScale::Projected => answer(&v).within(3e-5, reason),
        }])
    }

    fn backward<X: FloatX>(&self, _x: &Tensors<X>) -> Result<Backward> {
        no_backward("a guided flow is integrated, never descended")
    }
}

#[test]
fn pairs_of_velocities_are_combined() {
    let shapes = [(1, 1), (3, 1), (2, 3), (7, 31), (17, 33), (9, 128), (520, 64), (18, 1030), (3, 2056)];
    let cases = shapes.into_iter().flat_map(|(n, d)| {
        let ways = [(2.5, WeakScale::One), (0.25, WeakScale::Projected), (4.0, WeakScale::Projected)];
        ways.map(|(w, scale)| Guided { n, d, w, scale })
    });
    check_all(cases);
}

#[test]
fn a_weak_velocity_of_another_shape_is_refused() -> Result<()> {
    let device = any_device();
    let (strong, weak) = (Tensor::<f32>::zeros(device, [2, 3]), Tensor::zeros(device, [3, 2]));
    let message = guidance(&strong, &weak, 2.0, WeakScale::One).unwrap_err().to_string();
    assert_eq!(message, "guidance: `weak` has shape [3, 2], expected shape [2, 3]");
    Ok(())
}

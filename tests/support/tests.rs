//! The runner itself: each kind of wrong operation is found, by the check that is there for it.

use std::sync::atomic::{AtomicUsize, Ordering};

use flowprior::{FloatX, Result, Tensor};

use super::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, fresh, no_backward};

/// `y = 2·x + b` for x (2, 3) and b (3), done right or with one mistake.
#[derive(Debug, PartialEq)]
enum Affine {
    Right,
    ForgetsBias,
    LeavesLastUnwritten,
    HidesNan,
    SpreadsNan,
    CountsCalls,
    WrongGradient,
    MissingGradient,
    NoBackward,
    HidesNanInGradient,
    Fails,
}

impl Case for Affine {
    fn inputs(&self) -> Inputs {
        Inputs::default().stored("x", [2, 3]).stored("b", [3])
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        vec![x["x"].iter().enumerate().map(|(i, v)| 2.0 * v + x["b"][i % 3]).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        if *self == Self::Fails {
            x.stored("x").expect("affine", "x", [3, 2])?;
        }
        let (values, b) = (x.stored("x").to_f32_vec().unwrap(), x.stored("b").to_f32_vec().unwrap());
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let calls = CALLS.fetch_add(1, Ordering::Relaxed) % 5;
        let mut y = Tensor::<X>::like(x.stored("x"));
        let mut written = y.on_host()?.into_owned();
        for (i, (y, v)) in written.iter_mut().zip(&values).enumerate() {
            let right = 2.0 * v + b[i % 3];
            *y = X::from_f32(match self {
                Self::LeavesLastUnwritten if i == 5 => continue,
                Self::ForgetsBias => 2.0 * v,
                Self::HidesNan => right.max(-100.0),
                Self::SpreadsNan => right + 0.0 * values[0],
                Self::CountsCalls => right * (1.0 + 1e-6 * calls as f32),
                _ => right,
            });
        }
        y.view_mut().copy_from_host(&written)?;
        Ok(vec![answer(&y)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let slope = if *self == Self::WrongGradient { 2.1 } else { 2.0 };
        let dy = x.stored("dy").to_f32_vec().unwrap();
        let scaled = |v: &f32| match self {
            Self::HidesNanInGradient => (slope * v).max(-100.0),
            _ => slope * v,
        };
        let dx: Vec<f32> = dy.iter().map(scaled).collect();
        let db: Vec<f32> = (0..3).map(|j| dy[j] + dy[3 + j]).collect();
        let dx = fresh("x", &Tensor::<X>::from_f32(&x.device, [2, 3], &dx)?);
        let db = fresh("b", &Tensor::<f32>::from_f32(&x.device, [3], &db)?);
        match self {
            Self::MissingGradient => Ok([dx].into()),
            Self::NoBackward => no_backward("it was too much work"),
            _ => Ok([dx, db].into()),
        }
    }
}

#[test]
fn a_right_operation_passes() {
    check_all([Affine::Right]);
}

#[test]
#[should_panic(expected = "output 0: element 0 of [2, 3]")]
fn a_wrong_value_is_found() {
    check_all([Affine::ForgetsBias]);
}

#[test]
#[should_panic(expected = "output 0: element 5 of [2, 3] is NaN")]
fn an_unwritten_element_is_found() {
    check_all([Affine::LeavesLastUnwritten]);
}

#[test]
#[should_panic(expected = "NaN in x[0]: element 0 of [2, 3] is -100, expected NaN")]
fn a_hidden_nan_is_found() {
    check_all([Affine::HidesNan]);
}

#[test]
#[should_panic(expected = "NaN in x[0]: element 1 of [2, 3] is NaN, expected a number")]
fn a_nan_that_spreads_is_found() {
    check_all([Affine::SpreadsNan]);
}

#[test]
#[should_panic(expected = "not the same bits")]
fn a_result_that_differs_from_call_to_call_is_found() {
    check_all([Affine::CountsCalls]);
}

#[test]
#[should_panic(expected = "gradient of `x`: element 0")]
fn a_wrong_gradient_is_found() {
    check_all([Affine::WrongGradient]);
}

#[test]
#[should_panic(expected = "no gradient of `b`")]
fn a_missing_gradient_is_found() {
    check_all([Affine::MissingGradient]);
}

#[test]
#[should_panic(expected = "no backward (it was too much work)")]
fn a_missing_backward_is_found() {
    check_all([Affine::NoBackward]);
}

#[test]
#[should_panic(expected = "gradient of `x`: element")]
fn a_nan_hidden_in_a_gradient_is_found() {
    check_all([Affine::HidesNanInGradient]);
}

#[test]
#[should_panic(expected = "f32: affine: `x` has shape [2, 3], expected shape [3, 2]")]
fn an_error_is_reported() {
    check_all([Affine::Fails]);
}

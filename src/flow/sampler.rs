//! Fixed-step ODE samplers: dx/dt = v(x, t) from noise at t = 0 to data at t = 1. N steps are N steps.
//!
//! Per step of size h at (x, t), with v1 = v(x, t):
//! ```text
//! euler     x + h·v1                                                            1 evaluation, order 1
//! midpoint  x + h·v(x + h/2·v1, t + h/2)                                        2, order 2
//! heun      x + h/2·(v1 + v(x + h·v1, t + h))                                   2, order 2
//! rk4       x + h/6·(v1 + 2·v2 + 2·v3 + v4)                                     4, order 4 (the classic rule)
//! ```

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::ops::elementwise::axpy;
use crate::tensor::Tensor;

/// A solver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Order 1.
    Euler,
    /// Order 2, slope at the middle.
    Midpoint,
    /// Order 2, mean of the slopes at both ends.
    Heun,
    /// Order 4.
    Rk4,
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "euler" => Ok(Self::Euler),
            "midpoint" => Ok(Self::Midpoint),
            "heun" => Ok(Self::Heun),
            "rk4" => Ok(Self::Rk4),
            _ => Err(Error::Usage(format!(
                "unknown method `{s}`: expected `euler`, `midpoint`, `heun` or `rk4`"
            ))),
        }
    }
}

impl Method {
    /// Returns the evaluations of one step.
    pub fn evaluations(self) -> usize {
        match self {
            Self::Euler => 1,
            Self::Midpoint | Self::Heun => 2,
            Self::Rk4 => 4,
        }
    }
}

/// Carries `x: (N, D)` from t = `span.0` to t = `span.1` in `steps` equal steps; the second time is the smaller one when
/// the flow runs backwards. `velocity(x, t)` → `(N, D)`.
///
/// # Errors
/// No steps, or an error of the velocity.
pub fn sample(
    mut x: Tensor<f32>,
    method: Method,
    steps: usize,
    span: (f64, f64),
    mut velocity: impl FnMut(&Tensor<f32>, f64) -> Result<Tensor<f32>>,
) -> Result<Tensor<f32>> {
    if steps == 0 {
        return Err(Error::Usage("sampling needs at least 1 step, 0 were asked for".into()));
    }
    let h = (span.1 - span.0) / steps as f64;
    for i in 0..steps {
        let t = span.0 + h * i as f64;
        let v1 = velocity(&x, t)?;
        match method {
            Method::Euler => axpy(x.view_mut(), h as f32, &v1)?,
            Method::Midpoint => {
                let v2 = velocity(&moved(&x, 0.5 * h, &v1)?, t + 0.5 * h)?;
                axpy(x.view_mut(), h as f32, &v2)?;
            }
            Method::Heun => {
                let v2 = velocity(&moved(&x, h, &v1)?, t + h)?;
                axpy(x.view_mut(), (0.5 * h) as f32, &v1)?;
                axpy(x.view_mut(), (0.5 * h) as f32, &v2)?;
            }
            Method::Rk4 => {
                let v2 = velocity(&moved(&x, 0.5 * h, &v1)?, t + 0.5 * h)?;
                let v3 = velocity(&moved(&x, 0.5 * h, &v2)?, t + 0.5 * h)?;
                let v4 = velocity(&moved(&x, h, &v3)?, t + h)?;
                for (weight, v) in [(1.0, &v1), (2.0, &v2), (2.0, &v3), (1.0, &v4)] {
                    axpy(x.view_mut(), (h * weight / 6.0) as f32, v)?;
                }
            }
        }
    }
    Ok(x)
}

/// x + a·v, as a new tensor.
fn moved(x: &Tensor<f32>, a: f64, v: &Tensor<f32>) -> Result<Tensor<f32>> {
    let mut y = x.duplicate()?;
    axpy(y.view_mut(), a as f32, v)?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    /// x' = x·cos t has x(1) = x(0)·e^{sin 1}.
    fn error(method: Method, steps: usize) -> (f64, usize) {
        let device = Device::cpu_with_threads(1).unwrap();
        let x = Tensor::from_f32(&device, [1, 1], &[1.0]).unwrap();
        let mut calls = 0;
        let x = sample(x, method, steps, (0.0, 1.0), |x, t| {
            calls += 1;
            let mut v = Tensor::zeros(&device, [1, 1]);
            axpy(v.view_mut(), t.cos() as f32, x)?;
            Ok(v)
        });
        ((x.unwrap().to_f32_vec().unwrap()[0] as f64 - 1f64.sin().exp()).abs(), calls)
    }

    #[test]
    fn each_method_has_its_order_and_its_number_of_evaluations() {
        for (method, order) in [(Method::Euler, 1), (Method::Midpoint, 2), (Method::Heun, 2)] {
            let ((coarse, calls), (fine, _)) = (error(method, 16), error(method, 32));
            let ratio = coarse / fine;
            let expected = 2f64.powi(order);
            assert!((ratio / expected - 1.0).abs() < 0.15, "{method:?}: {coarse:e} / {fine:e} = {ratio}");
            assert_eq!(calls, 16 * method.evaluations());
        }
        let ((coarse, calls), (fine, _)) = (error(Method::Rk4, 2), error(Method::Rk4, 4));
        assert!((10.0..24.0).contains(&(coarse / fine)), "{coarse:e} {fine:e}");
        assert_eq!(calls, 8);
    }

    #[test]
    fn no_steps_are_refused() {
        let device = Device::cpu_with_threads(1).unwrap();
        let x = Tensor::<f32>::zeros(&device, [1, 1]);
        let result = sample(x, Method::Euler, 0, (0.0, 1.0), |x, _| x.duplicate());
        assert_eq!(result.unwrap_err().to_string(), "sampling needs at least 1 step, 0 were asked for");
    }
}

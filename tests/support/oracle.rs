//! Decides whether numbers are right: the table of tolerances, and comparisons in which NaN counts.

use flowprior::{DType, FloatX, Tensor};

use super::values::present;

/// Returns the allowed error of a result stored in `dtype`, relative to the largest magnitude of the reference.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-5,
        DType::Bf16 => 2e-2,
        DType::F16 => 2e-3,
    }
}

/// A result of an operation, copied to the host.
#[derive(Clone)]
pub struct Answer {
    /// Its elements.
    pub values: Vec<f32>,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// What it is stored in.
    pub dtype: DType,
    tolerance: f64,
    least_scale: f64,
}

/// Reads an output.
pub fn answer<Y: FloatX>(y: &Tensor<Y>) -> Answer {
    Answer {
        values: y.to_f32_vec().unwrap(),
        shape: y.shape().dims().into(),
        dtype: Y::DTYPE,
        tolerance: tolerance(Y::DTYPE),
        least_scale: 0.0,
    }
}

impl Answer {
    /// Allows a larger relative error, because of `reason`.
    pub fn within(mut self, tolerance: f64, reason: &str) -> Self {
        assert!(!reason.is_empty() && tolerance >= self.tolerance);
        self.tolerance = tolerance;
        self
    }

    /// Panics unless every element is right; NaN is right exactly where it is expected.
    pub fn check(&self, expected: &[f64], what: &str) {
        assert_eq!(self.values.len(), expected.len(), "{what}: number of elements");
        let scale = largest(expected.iter().copied()).max(self.least_scale);
        for (i, (found, expected)) in self.values.iter().zip(expected).enumerate() {
            self.check_element(i, *found as f64, *expected, scale, what);
        }
    }

    /// Panics unless NaN is exactly where it is expected.
    pub fn check_nan(&self, expected: impl Iterator<Item = bool>, what: &str) {
        for (i, (found, expected)) in self.values.iter().zip(expected).enumerate() {
            let is = |nan: bool| if nan { "NaN" } else { "a number" };
            assert!(
                found.is_nan() == expected,
                "{what}: element {i} of {:?} is {found}, expected {}",
                self.shape,
                is(expected)
            );
        }
    }

    fn check_element(&self, i: usize, found: f64, expected: f64, scale: f64, what: &str) {
        let allowed = self.tolerance * scale;
        let right = match expected.is_finite() {
            true => (found - expected).abs() <= allowed, // false for NaN
            false => found.is_nan() == expected.is_nan() && (found.is_nan() || found == expected),
        };
        assert!(
            right,
            "{what}: element {i} of {:?} is {found:e}, expected {expected:e}: off by {:.1e}, allowed {allowed:.1e}",
            self.shape,
            (found - expected).abs()
        );
    }
}

/// A gradient that a backward returned.
#[derive(Clone)]
pub struct Gradient {
    /// The input it belongs to.
    pub name: &'static str,
    /// Its numbers.
    pub answer: Answer,
    accumulated: bool,
}

/// Reads a gradient that was written afresh.
pub fn fresh<Y: FloatX>(name: &'static str, gradient: &Tensor<Y>) -> Gradient {
    Gradient { name, answer: answer(gradient), accumulated: false }
}

/// Reads a gradient that was added to what [`super::Tensors::accumulator`] held.
pub fn added(name: &'static str, gradient: &Tensor<f32>) -> Gradient {
    Gradient { name, answer: answer(gradient), accumulated: true }
}

impl Gradient {
    /// Allows a larger relative error, because of `reason`.
    pub fn within(mut self, tolerance: f64, reason: &str) -> Self {
        self.answer = self.answer.within(tolerance, reason);
        self
    }

    /// Measures errors against at least `scale`, because of `reason`: a sum that cancels keeps the errors of its terms.
    pub fn at_least(mut self, scale: f64, reason: &str) -> Self {
        assert!(!reason.is_empty());
        self.answer.least_scale = scale;
        self
    }

    /// Panics unless the gradient agrees with the slopes of the reference.
    pub fn check(&self, slopes: &Slopes, what: &str) {
        let what = format!("{what}: gradient of `{}`", self.name);
        assert_eq!(self.answer.values.len(), slopes.direction.len(), "{what}: number of elements");
        let before = |i: usize| if self.accumulated { present(i) } else { 0.0 };
        let expected = |(i, slope): &(usize, f64)| (*i, slope + before(*i));
        let typical = slopes.along.abs() / (slopes.direction.len() as f64).sqrt();
        let scale = largest(slopes.elements.iter().map(|e| expected(e).1));
        let scale = scale.max(typical).max(self.answer.least_scale);
        for (i, expected) in slopes.elements.iter().map(expected) {
            self.answer.check_element(i, self.answer.values[i] as f64, expected, scale, &what);
        }
        self.check_along(slopes, scale, &what);
    }

    /// Compares the slope along a random direction, to which every element contributes ±itself.
    fn check_along(&self, slopes: &Slopes, scale: f64, what: &str) {
        let terms = self.answer.values.iter().zip(&slopes.direction).enumerate();
        let before = |i: usize| if self.accumulated { present(i) } else { 0.0 };
        let along: f64 = terms.map(|(i, (g, sign))| (*g as f64 - before(i)) * sign).sum();
        // Errors of single elements are independent, so they add up like a random walk.
        let allowed = self.answer.tolerance * scale * (slopes.direction.len() as f64).sqrt();
        assert!(
            (along - slopes.along).abs() <= allowed,
            "{what}: along a random direction {along:e}, expected {:e}: off by {:.1e}, allowed {allowed:.1e}",
            slopes.along,
            (along - slopes.along).abs()
        );
    }
}

/// Slopes of ⟨dy, f⟩ with respect to one input.
pub struct Slopes {
    /// The input.
    pub name: &'static str,
    /// Its elements that were moved one at a time, and the slope of each.
    pub elements: Vec<(usize, f64)>,
    /// A direction of ±1 that moves all elements.
    pub direction: Vec<f64>,
    /// The slope along it.
    pub along: f64,
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.filter(|v| v.is_finite()).fold(0.0, |m, v| m.max(v.abs()))
}

/// Panics unless two results agree in every bit.
pub fn same_bits(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}: number of elements");
    let differ = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(i) = differ {
        panic!("{what}: element {i} is {:e} and {:e}: not the same bits", a[i], b[i]);
    }
}

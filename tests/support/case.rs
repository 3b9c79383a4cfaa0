//! A case is one operation at one shape; the runner derives every check from it.
//!
//! A case states its inputs, its forward in f64, and how to call the operation. From this the runner checks, in each
//! storage type and on each device:
//! - the forward against f64, on inputs that are first rounded to the storage type;
//! - the gradient of every input against central differences of the f64 forward, under a random cotangent;
//! - that all members of a device family (thread counts) agree in every bit;
//! - that a NaN in an input reaches the outputs that depend on it and no others, and a NaN in the cotangent the
//!   gradients that depend on it and no others;
//! - through the devices' guards, that nothing is written outside a buffer and nothing unwritten is returned.

use std::fmt::Debug;

use flowprior::{DType, Device, FloatX, Result};
use half::{bf16, f16};

use super::devices::{Family, families};
use super::oracle::{Answer, Gradient, Slopes, same_bits};
use super::random::Random;
use super::values::{ALL_TYPES, Input, Inputs, Tensors, Values, rounded};

/// An operation at one shape; `Debug` names it in messages.
pub trait Case: Debug {
    /// Lists the inputs.
    fn inputs(&self) -> Inputs;

    /// Computes the outputs in f64, from the definition. Gradients are those of the first output.
    fn reference(&self, x: &Values) -> Vec<Vec<f64>>;

    /// Calls the operation; returns the same outputs.
    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>>;

    /// Calls the backward with the cotangent `x.stored("dy")` (of an f32 output: `x.single("dy")`); returns the
    /// gradient of every input that is not constant, or, when all are, [`no_backward`].
    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward>;

    /// Lists the storage types it runs in.
    fn types(&self) -> &'static [DType] {
        ALL_TYPES
    }

    /// Says that the operation differentiates the sum of its output: the cotangent is 1 everywhere.
    fn sums_its_output(&self) -> bool {
        false
    }

    /// Says why a NaN in the cotangent may reach more than the gradients that depend on it, if it may.
    fn spreads_nan(&self) -> Option<&'static str> {
        None
    }
}

/// What a backward returns.
pub enum Backward {
    /// A gradient for each input that is not constant.
    Gradients(Vec<Gradient>),
    /// There is nothing to differentiate, because of a reason.
    Absent(&'static str),
}

impl<const G: usize> From<[Gradient; G]> for Backward {
    fn from(gradients: [Gradient; G]) -> Self {
        Self::Gradients(gradients.into())
    }
}

/// Says why an operation has no backward.
pub fn no_backward(why: &'static str) -> Result<Backward> {
    Ok(Backward::Absent(why))
}

/// Checks every case of a list.
pub fn check_all<C: Case>(cases: impl IntoIterator<Item = C>) {
    let mut count = 0;
    for case in cases {
        for dtype in case.types() {
            Run::new(&case, *dtype).check();
        }
        count += 1;
    }
    assert!(count > 0, "no case was run");
}

/// A case whose storage type is a value, so that the runner is compiled once and not for each case and type.
trait Erased: Debug {
    fn inputs(&self) -> Inputs;
    fn reference(&self, x: &Values) -> Vec<Vec<f64>>;
    fn sums_its_output(&self) -> bool;
    /// Says whether NaN may be planted in a cotangent of this type.
    fn takes_nan(&self, dtype: DType) -> bool;
    /// Runs the forward and, with a cotangent, the backward.
    fn call(&self, dtype: DType, device: &Device, x: &Values, dy: Option<&Cotangent>) -> Result<Results>;
}

impl<C: Case> Erased for C {
    fn inputs(&self) -> Inputs {
        Case::inputs(self)
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        Case::reference(self, x)
    }

    fn sums_its_output(&self) -> bool {
        Case::sums_its_output(self)
    }

    fn takes_nan(&self, dtype: DType) -> bool {
        dtype == self.types()[0] && !Case::sums_its_output(self) && self.spreads_nan().is_none()
    }

    fn call(&self, dtype: DType, device: &Device, x: &Values, dy: Option<&Cotangent>) -> Result<Results> {
        match dtype {
            DType::F32 => call_as::<f32, C>(self, device, x, dy),
            DType::Bf16 => call_as::<bf16, C>(self, device, x, dy),
            DType::F16 => call_as::<f16, C>(self, device, x, dy),
        }
    }
}

fn call_as<X: FloatX, C: Case>(
    case: &C,
    device: &Device,
    values: &Values,
    dy: Option<&Cotangent>,
) -> Result<Results> {
    let mut x = Tensors::<X>::new(device, &case.inputs(), values)?;
    let outputs = case.forward(&x)?;
    let backward = match dy {
        Some(dy) => {
            x.add_cotangent(dy)?;
            case.backward(&x)?
        }
        None => Backward::Absent("only the forward was asked for"),
    };
    Ok(Results { outputs, backward })
}

/// What a device returned.
struct Results {
    outputs: Vec<Answer>,
    backward: Backward,
}

/// Returns how often a GPU computes a case again to see the same bits: `FLOWPRIOR_TEST_REPEATS`, or 2 times.
fn repeats() -> usize {
    std::env::var("FLOWPRIOR_TEST_REPEATS").map_or(2, |count| count.parse().unwrap())
}

/// A case in one storage type, with everything that does not depend on the device.
struct Run<'a> {
    case: &'a dyn Erased,
    dtype: DType,
    inputs: Inputs,
    values: Values,
    expected: Vec<Vec<f64>>,
}

impl<'a> Run<'a> {
    fn new(case: &'a dyn Erased, dtype: DType) -> Self {
        let inputs = case.inputs();
        let values = inputs.rounded(dtype);
        let expected = case.reference(&values);
        Self { case, dtype, inputs, values, expected }
    }

    fn check(&self) {
        let mut slopes = None;
        for family in families() {
            let (name, device) = &family.devices[0];
            let what = format!("{:?}, {} on {name}", self.case, self.dtype);
            let dy = self.cotangent(&self.forward(device, &self.values)[0]);
            let results = self.results(device, &dy);
            self.check_outputs(&results.outputs, &what);
            if let Backward::Gradients(gradients) = &results.backward {
                let slopes = slopes.get_or_insert_with(|| self.slopes(&dy));
                check_gradients(gradients, slopes, &what);
            }
            self.check_absence(&results.backward);
            self.check_family(family, &results, &dy);
            self.check_nan_in_inputs(family);
            self.check_nan_in_cotangent(family, &dy);
        }
    }

    fn forward(&self, device: &Device, values: &Values) -> Vec<Answer> {
        self.call(device, values, None).outputs
    }

    fn results(&self, device: &Device, dy: &Cotangent) -> Results {
        self.call(device, &self.values, Some(dy))
    }

    fn call(&self, device: &Device, values: &Values, dy: Option<&Cotangent>) -> Results {
        let results = self.case.call(self.dtype, device, values, dy);
        results.unwrap_or_else(|e| panic!("{:?}, {}: {e}", self.case, self.dtype))
    }

    /// Draws dy, rounded to what the output is stored in.
    fn cotangent(&self, output: &Answer) -> Cotangent {
        let mut random = Random::new(&format!("dy{:?}", self.case));
        let mut draw = || if self.case.sums_its_output() { 1.0 } else { random.normal() as f32 };
        let numbers = output.values.iter().map(|_| rounded(draw(), output.dtype)).collect();
        Cotangent { shape: output.shape.clone(), dtype: output.dtype, numbers }
    }

    fn check_outputs(&self, outputs: &[Answer], what: &str) {
        assert_eq!(outputs.len(), self.expected.len(), "{what}: number of outputs");
        for (i, (output, expected)) in outputs.iter().zip(&self.expected).enumerate() {
            output.check(expected, &format!("{what}: output {i}"));
        }
    }

    /// A backward may be absent only for a reason, and only when there is nothing to differentiate.
    fn check_absence(&self, backward: &Backward) {
        let differentiable = self.inputs.0.iter().any(|i| i.differentiable);
        if let Backward::Absent(why) = backward {
            assert!(!why.is_empty() && !differentiable, "{:?}: no backward ({why})", self.case);
        }
    }

    fn check_family(&self, family: &Family, first: &Results, dy: &Cotangent) {
        // One device is asked again instead: a GPU runs blocks and warps in another order each time, and so does the emulator.
        let again =
            std::iter::repeat_n(&family.devices[0], if family.devices.len() == 1 { repeats() } else { 0 });
        for (name, device) in family.devices[1..].iter().chain(again) {
            let what = format!("{:?}, {} on {name} and {}", self.case, self.dtype, family.devices[0].0);
            let other = self.results(device, dy);
            for (a, b) in first.outputs.iter().zip(&other.outputs) {
                same_bits(&a.values, &b.values, &what);
            }
            let (Backward::Gradients(a), Backward::Gradients(b)) = (&first.backward, &other.backward) else {
                continue;
            };
            for (a, b) in a.iter().zip(b) {
                same_bits(&a.answer.values, &b.answer.values, &format!("{what}: gradient of `{}`", a.name));
            }
        }
    }

    /// Computes slopes of ⟨dy, reference⟩: of each element of a small input, of some of a large one, and along one
    /// direction that moves them all.
    fn slopes(&self, dy: &Cotangent) -> Vec<Slopes> {
        let mut random = Random::new(&format!("slopes{:?}", self.case));
        let inputs = self.inputs.0.iter().filter(|input| input.differentiable);
        inputs.map(|input| self.slopes_of(input, dy, &mut random)).collect()
    }

    fn slopes_of(&self, input: &Input, dy: &Cotangent, random: &mut Random) -> Slopes {
        const SOME: usize = 8;
        let n = input.numbers.len();
        let chosen: Vec<usize> = match n <= 64 {
            true => (0..n).collect(),
            false => [0, n - 1].into_iter().chain((2..SOME).map(|_| random.below(n))).collect(),
        };
        let elements = chosen.into_iter().map(|i| (i, self.slope(input.name, dy, |j| (i == j) as u8 as f64)));
        let direction: Vec<f64> = (0..n).map(|_| if random.bits() & 1 == 0 { 1.0 } else { -1.0 }).collect();
        Slopes {
            name: input.name,
            elements: elements.collect(),
            along: self.slope(input.name, dy, |j| direction[j]),
            direction,
        }
    }

    /// Returns the slope along a direction, by central differences in f64. Halving the step cancels the error of
    /// second order (Richardson), so the step can be large enough for rounding not to matter.
    fn slope(&self, name: &str, dy: &Cotangent, direction: impl Fn(usize) -> f64) -> f64 {
        let moved = |h: f64| {
            let mut values = self.values.clone();
            for (j, v) in values.get_mut(name).iter_mut().enumerate() {
                *v += h * direction(j);
            }
            let y = &self.case.reference(&values)[0];
            y.iter().zip(&dy.numbers).map(|(y, dy)| y * *dy as f64).sum::<f64>()
        };
        let central = |h: f64| (moved(h) - moved(-h)) / (2.0 * h);
        (4.0 * central(5e-5) - central(1e-4)) / 3.0
    }

    fn check_nan_in_inputs(&self, family: &Family) {
        let Some((name, device)) = family.devices.last() else { return };
        let mut random = Random::new(&format!("NaN{:?}", self.case));
        for input in &self.inputs.0 {
            for i in [0, random.below(input.numbers.len())] {
                let mut values = self.values.clone();
                values.get_mut(input.name)[i] = f64::NAN;
                let expected = self.case.reference(&values);
                for (output, expected) in self.forward(device, &values).iter().zip(&expected) {
                    let what =
                        format!("{:?}, {} on {name}, NaN in {}[{i}]", self.case, self.dtype, input.name);
                    output.check_nan(expected.iter().map(|v| v.is_nan()), &what);
                }
            }
        }
    }

    /// A NaN in dy must reach the gradients of exactly those elements whose own NaN would reach that element of y.
    fn check_nan_in_cotangent(&self, family: &Family, dy: &Cotangent) {
        const SMALL: usize = 400;
        let Some((name, device)) = family.devices.last() else { return };
        let size: usize = self.inputs.0.iter().map(|i| i.numbers.len()).sum();
        if size > SMALL || !self.case.takes_nan(self.dtype) {
            return;
        }
        let k = Random::new(&format!("k{:?}", self.case)).below(dy.numbers.len());
        let mut planted = dy.clone();
        planted.numbers[k] = f32::NAN;
        let Backward::Gradients(gradients) = self.results(device, &planted).backward else { return };
        for gradient in &gradients {
            let reaches = |i: usize| {
                let mut values = self.values.clone();
                values.get_mut(gradient.name)[i] = f64::NAN;
                self.case.reference(&values)[0][k].is_nan()
            };
            let what = format!("{:?} on {name}, NaN in dy[{k}]: gradient of `{}`", self.case, gradient.name);
            gradient.answer.check_nan((0..gradient.answer.values.len()).map(reaches), &what);
        }
    }
}

/// The cotangent of the first output.
#[derive(Clone)]
pub struct Cotangent {
    /// The output's sizes.
    pub shape: Vec<usize>,
    /// What the output is stored in.
    pub dtype: DType,
    /// Its numbers, rounded to that.
    pub numbers: Vec<f32>,
}

fn check_gradients(gradients: &[Gradient], slopes: &[Slopes], what: &str) {
    for slopes in slopes {
        let gradient = gradients.iter().find(|g| g.name == slopes.name);
        let gradient = gradient.unwrap_or_else(|| panic!("{what}: no gradient of `{}`", slopes.name));
        gradient.check(slopes, what);
    }
    assert_eq!(gradients.len(), slopes.len(), "{what}: number of gradients");
}

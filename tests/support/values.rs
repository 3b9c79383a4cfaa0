//! The inputs of a case: described once, then filled for the f64 reference and for a device, with equal numbers.

use std::ops::Index;

use flowprior::{DType, Device, FloatX, Result, Tensor};
use half::{bf16, f16};

use super::case::Cotangent;
use super::random::Random;

/// One input of a case.
#[derive(Clone)]
pub struct Input {
    /// Its name, also the name of its gradient.
    pub name: &'static str,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Says whether it is f32 whatever the storage type under test.
    pub single: bool,
    /// Says whether the operation must return its gradient.
    pub differentiable: bool,
    /// Its numbers, before rounding.
    pub numbers: Vec<f64>,
}

/// The inputs of a case, in order.
#[derive(Clone, Default)]
pub struct Inputs(pub Vec<Input>);

impl Inputs {
    /// Adds a tensor of the storage type under test, standard normal, whose gradient is checked.
    pub fn stored<const R: usize>(self, name: &'static str, shape: [usize; R]) -> Self {
        let numbers = normals(name, &shape);
        self.with(Input { name, shape: shape.into(), single: false, differentiable: true, numbers })
    }

    /// Adds an f32 tensor, standard normal, whose gradient is checked.
    pub fn single<const R: usize>(self, name: &'static str, shape: [usize; R]) -> Self {
        let numbers = normals(name, &shape);
        self.with(Input { name, shape: shape.into(), single: true, differentiable: true, numbers })
    }

    /// Adds a tensor of the storage type under test, standard normal, that has no gradient.
    pub fn fixed<const R: usize>(self, name: &'static str, shape: [usize; R]) -> Self {
        let numbers = normals(name, &shape);
        self.with(Input { name, shape: shape.into(), single: false, differentiable: false, numbers })
    }

    /// Adds f32 numbers that have no gradient.
    pub fn constant<const R: usize>(self, name: &'static str, shape: [usize; R], numbers: Vec<f64>) -> Self {
        assert_eq!(numbers.len(), shape.iter().product::<usize>(), "{name}");
        self.with(Input { name, shape: shape.into(), single: true, differentiable: false, numbers })
    }

    /// Multiplies the numbers of the input added last.
    pub fn scaled(mut self, factor: f64) -> Self {
        for v in self.0.last_mut().iter_mut().flat_map(|input| &mut input.numbers) {
            *v *= factor;
        }
        self
    }

    /// Applies `f` when `wanted`.
    pub fn when(self, wanted: bool, f: impl FnOnce(Self) -> Self) -> Self {
        if wanted { f(self) } else { self }
    }

    fn with(mut self, input: Input) -> Self {
        self.0.push(input);
        self
    }

    /// Returns the numbers as they are stored in `dtype`.
    pub fn rounded(&self, dtype: DType) -> Values {
        let round = |input: &Input| -> Vec<f64> {
            let dtype = if input.single { DType::F32 } else { dtype };
            input.numbers.iter().map(|v| rounded(*v as f32, dtype) as f64).collect()
        };
        Values(self.0.iter().map(|input| (input.name, round(input))).collect())
    }
}

/// Returns `v` as it is stored in `dtype`.
pub fn rounded(v: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F32 => v,
        DType::Bf16 => bf16::from_f32(v).to_f32(),
        DType::F16 => f16::from_f32(v).to_f32(),
    }
}

fn normals(name: &str, shape: &[usize]) -> Vec<f64> {
    Random::new(&format!("{name}{shape:?}")).normals(shape.iter().product())
}

/// The inputs in f64, for the reference: `x["gamma"]`.
#[derive(Clone)]
pub struct Values(pub Vec<(&'static str, Vec<f64>)>);

impl Values {
    /// Returns an input that a case may lack.
    pub fn get(&self, name: &str) -> Option<&[f64]> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_slice())
    }

    /// Returns an input to change it.
    pub fn get_mut(&mut self, name: &str) -> &mut [f64] {
        let found = self.0.iter_mut().find(|(n, _)| *n == name);
        &mut found.unwrap_or_else(|| panic!("no input `{name}`")).1
    }
}

impl Index<&str> for Values {
    type Output = [f64];

    fn index(&self, name: &str) -> &[f64] {
        self.get(name).unwrap_or_else(|| panic!("no input `{name}`"))
    }
}

/// The inputs on a device, for the operation.
pub struct Tensors<X: FloatX> {
    /// Where they are.
    pub device: Device,
    stored: Vec<(&'static str, Tensor<X>)>,
    single: Vec<(&'static str, Tensor<f32>)>,
}

impl<X: FloatX> Tensors<X> {
    /// Copies `values` to a device.
    pub fn new(device: &Device, inputs: &Inputs, values: &Values) -> Result<Self> {
        let mut tensors = Self { device: device.clone(), stored: Vec::new(), single: Vec::new() };
        for Input { name, shape, single, .. } in &inputs.0 {
            let numbers: Vec<f32> = values[*name].iter().map(|v| *v as f32).collect();
            match single {
                true => tensors.single.push((*name, Tensor::from_f32(device, &shape[..], &numbers)?)),
                false => tensors.stored.push((*name, Tensor::from_f32(device, &shape[..], &numbers)?)),
            }
        }
        Ok(tensors)
    }

    /// Returns an input of the storage type.
    pub fn stored(&self, name: &str) -> &Tensor<X> {
        self.get(name).unwrap_or_else(|| panic!("no stored input `{name}`"))
    }

    /// Returns an input of the storage type that a case may lack.
    pub fn get(&self, name: &str) -> Option<&Tensor<X>> {
        self.stored.iter().find(|(n, _)| *n == name).map(|(_, t)| t)
    }

    /// Returns an f32 input.
    pub fn single(&self, name: &str) -> &Tensor<f32> {
        let found = self.single.iter().find(|(n, _)| *n == name);
        found.map(|(_, t)| t).unwrap_or_else(|| panic!("no f32 input `{name}`"))
    }

    /// Adds the cotangent `dy`, as the type that the output is stored in.
    pub fn add_cotangent(&mut self, dy: &Cotangent) -> Result<()> {
        if dy.dtype == X::DTYPE {
            self.stored.push(("dy", Tensor::from_f32(&self.device, &dy.shape[..], &dy.numbers)?));
        }
        if dy.dtype == DType::F32 {
            self.single.push(("dy", Tensor::from_f32(&self.device, &dy.shape[..], &dy.numbers)?));
        }
        Ok(())
    }

    /// Returns the f32 buffer that the gradient of `name` is added to: what is in it must stay there.
    pub fn accumulator(&self, name: &str) -> Result<Tensor<f32>> {
        let shape = match self.get(name) {
            Some(tensor) => tensor.shape(),
            None => self.single(name).shape(),
        };
        let present: Vec<f32> = (0..shape.len()).map(|i| present(i) as f32).collect();
        Tensor::from_f32(&self.device, shape, &present)
    }
}

/// Returns what element i of an accumulated gradient holds before: a multiple of 1/8 in [−0.5, 0.5].
pub fn present(i: usize) -> f64 {
    (i % 9) as f64 / 8.0 - 0.5
}

/// Lists all storage types.
pub const ALL_TYPES: &[DType] = &[DType::F32, DType::Bf16, DType::F16];

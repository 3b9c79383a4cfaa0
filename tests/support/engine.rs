//! Between the engine and f64 numbers: devices, tensors, parameters, and one forward and backward pass.

#![allow(dead_code)] // each test program uses its own part

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use flowprior::device::{CpuOptions, Isa};
use flowprior::nn::{Form, Grads, Keep, Layout, Mlp, Params};
use flowprior::{Device, FloatX, Result, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Holds tensors by name: shape and values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f64>)>;

/// Returns the instruction sets of this processor.
pub fn isas() -> Vec<Isa> {
    let all = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];
    all.into_iter().filter(|isa| *isa <= Isa::detect()).collect()
}

/// Opens the CPU with two threads, sentinels around every buffer, and `isa` or the best there is.
pub fn device(isa: Option<Isa>) -> Result<Device> {
    Device::open("cpu", CpuOptions { threads: 2, isa, guard: true })
}

/// Returns a matrix of `columns` columns.
pub fn matrix<X: FloatX>(device: &Device, columns: usize, values: &[f64]) -> Result<Tensor<X>> {
    let narrow: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    Tensor::from_f32(device, [values.len() / columns, columns], &narrow)
}

/// Returns a vector.
pub fn vector(device: &Device, values: &[f64]) -> Result<Tensor<f32>> {
    matrix(device, values.len(), values)?.reshaped([values.len()])
}

/// Widens f32 numbers.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// Lays tensors out as the flat buffer of `layout`; every parameter must be there.
pub fn flat(layout: &Layout, tensors: &Tensors) -> Vec<f32> {
    let mut flat = vec![0.0; layout.len()];
    for entry in layout.entries() {
        let values = tensors[&entry.name].1.iter().map(|x| *x as f32);
        flat[entry.range()].iter_mut().zip(values).for_each(|(y, x)| *y = x);
    }
    flat
}

/// Cuts a flat buffer of `layout` into its tensors.
pub fn named(layout: &Layout, flat: &[f32]) -> Tensors {
    let tensor = |e: &flowprior::nn::params::Entry| (e.shape.dims().to_vec(), wide(&flat[e.range()]));
    layout.entries().iter().map(|e| (e.name.clone(), tensor(e))).collect()
}

/// Writes tensors as a safetensors file of f32, or of any other type by [`write_bytes`].
pub fn write(path: &Path, tensors: &Tensors, metadata: &[(&str, &str)]) {
    let bytes = |x: &Vec<f64>| x.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
    let tensors =
        tensors.iter().map(|(name, (shape, x))| (name.clone(), Dtype::F32, shape.clone(), bytes(x)));
    write_bytes(path, tensors.collect(), metadata);
}

/// Writes a safetensors file of (name, type, shape, little-endian bytes).
pub fn write_bytes(
    path: &Path,
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    metadata: &[(&str, &str)],
) {
    let view = |t: &(String, Dtype, Vec<usize>, Vec<u8>)| TensorView::new(t.1, t.2.clone(), &t.3).map(drop);
    tensors.iter().for_each(|t| view(t).unwrap());
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, b)| (name, TensorView::new(*dtype, shape.clone(), b).unwrap()))
        .collect();
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let bytes = safetensors::serialize(views, (!metadata.is_empty()).then_some(metadata)).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// What a forward and a backward pass start from.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// (N, D).
    pub x_t: Vec<f64>,
    /// (N), or one for every so many rows.
    pub t: Vec<f64>,
    /// (N, z); empty without a condition.
    pub z: Vec<f64>,
    /// (N, D).
    pub dv: Vec<f64>,
}

/// What they give, by name: `v`, `dx`, and the gradient of every parameter.
pub type Outputs = BTreeMap<String, Vec<f64>>;

/// Runs a network forward and backward on `inputs`.
pub fn pass<X: FloatX>(
    net: &Mlp,
    params: &Params<X>,
    form: Form,
    keep: Keep,
    inputs: &Inputs,
) -> Result<Outputs> {
    let device = params.flat().device();
    let (d, z) = (net.config().channels, net.config().cond);
    let cond = if z > 0 { Some(matrix(device, z, &inputs.z)?) } else { None };
    let share = inputs.x_t.len() / d / inputs.t.len();
    let modulations = net.modulations(params, form, &vector(device, &inputs.t)?, share, cond)?;
    let (v, saved) = net.forward(params, matrix(device, d, &inputs.x_t)?, modulations, keep)?;
    let saved = saved.expect("a forward that keeps something");
    let mut grads = Grads::zeros(device, net.layout().clone());
    let wanted = (keep != Keep::Inputs).then_some(&mut grads);
    let dx = net.backward(params, saved, &matrix(device, d, &inputs.dv)?, wanted)?;
    let mut outputs = outputs_of(&grads)?;
    if keep == Keep::Inputs {
        outputs.clear();
    }
    outputs.insert("v".into(), wide(&v.to_f32_vec().unwrap()));
    outputs.insert("dx".into(), wide(&dx.to_f32_vec().unwrap()));
    Ok(outputs)
}

/// Returns the gradients by name.
pub fn outputs_of(grads: &Grads) -> Result<Outputs> {
    let values = named(grads.layout(), grads.flat().host()?);
    Ok(values.into_iter().map(|(name, (_, x))| (name, x)).collect())
}

//! The linear layer: `y = act(x·wᵀ + b + add)` and its gradients, alone, in a chain and beside a skip connection.

use std::f64::consts::PI;

use flowprior::device::CudaOptions;
use flowprior::ops::gated_residual::{gated_residual_backward, gated_residual_forward};
use flowprior::ops::linear::{
    Activation, Branch, linear_backward_input, linear_backward_input_add, linear_backward_weight,
    linear_forward, linear_gated_forward,
};
use flowprior::{DType, Device, FloatX, Result, Tensor};
use half::{bf16, f16};

use crate::support::devices::devices;
use crate::support::emulator;
use crate::support::oracle::{same_bits, tolerance};
use crate::support::{Answer, Backward, Case, Inputs, Map, Tensors, Values, added, answer, check_all, fresh};

const ACTIVATIONS: [Activation; 3] = [Activation::Identity, Activation::Silu, Activation::GeluTanh];

/// Shapes (N, C, O) around the blocks of the matrix products: 8 × 48 sums, tiles of 128 × 192, 256 deep.
const ODD: [(usize, usize, usize); 7] =
    [(1, 1, 1), (2, 3, 5), (7, 13, 17), (8, 16, 48), (9, 17, 49), (31, 47, 65), (5, 257, 3)];
const LARGE: [(usize, usize, usize); 3] = [(130, 519, 97), (17, 35, 200), (257, 130, 129)];

/// Shapes (N, C, O) for the matrix products of a GPU: rows that begin at multiples of 16 bytes in all types, one tile and a part of
/// another; then sums so long that they are cut into parts, for each of the three products, aligned and not.
const LONG: [(usize, usize, usize); 7] = [
    (72, 136, 200),
    (9, 2000, 24),
    (9, 24, 2000),
    (2000, 24, 16),
    (9, 2003, 21),
    (5, 23, 2003),
    (2003, 13, 21),
];
/// As much result as makes the largest tiles worth it, for each of the three products.
const WIDE: [(usize, usize, usize); 3] = [(1001, 24, 1000), (1001, 1000, 24), (24, 1000, 1008)];

/// One layer: x (N, C) → y (N, O).
#[derive(Debug)]
struct Linear {
    shape: (usize, usize, usize),
    act: Activation,
    bias: bool,
    add: bool,
}

impl Case for Linear {
    fn inputs(&self) -> Inputs {
        let (n, c, o) = self.shape;
        let inputs =
            Inputs::default().stored("x", [n, c]).stored("w", [o, c]).scaled(1.0 / (c as f64).sqrt());
        inputs.when(self.bias, |i| i.stored("b", [o])).when(self.add, |i| i.stored("add", [n, o]))
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let (_, c, o) = self.shape;
        let mut z = product(&x["x"], &x["w"], c);
        for (e, z) in z.iter_mut().enumerate() {
            *z += x.get("b").map_or(0.0, |b| b[e % o]) + x.get("add").map_or(0.0, |add| add[e]);
        }
        let y = z.iter().map(|z| activate(self.act, *z)).collect();
        if self.act == Activation::Identity { vec![y] } else { vec![y, z] }
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let (y, z) = self.call(x)?;
        Ok([Some(y), z].iter().flatten().map(answer).collect())
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        // The layer behind this one applies act'(z) on its way: here that layer is the identity.
        let dz = match self.call(x)? {
            (_, Some(z)) => {
                let eye = identity::<X>(&x.device, self.shape.2)?;
                linear_backward_input(x.stored("dy"), eye.view(), Some((self.act, &z)))?
            }
            (_, None) => x.stored("dy").duplicate()?,
        };
        let dx = linear_backward_input(&dz, x.stored("w").view(), None)?;
        let mut dw = x.accumulator("w")?;
        let mut db = if self.bias { Some(x.accumulator("b")?) } else { None };
        linear_backward_weight(dw.view_mut(), db.as_mut().map(|b| b.view_mut()), &dz, x.stored("x"))?;

        let read = |name, sum: &Tensor<f32>| match self.act {
            Activation::Identity => added(name, sum),
            _ => added(name, sum).within(tolerance(X::DTYPE), "dz, which it sums, was rounded to storage"),
        };
        let mut gradients = vec![fresh("x", &dx), read("w", &dw)];
        gradients.extend(db.map(|db| read("b", &db)));
        if self.add {
            gradients.push(fresh("add", &dz));
        }
        Ok(Backward::Gradients(gradients))
    }

    fn spreads_nan(&self) -> Option<&'static str> {
        (self.act != Activation::Identity).then_some("the identity behind the layer multiplies it by zeros")
    }
}

impl Linear {
    fn call<X: FloatX>(&self, x: &Tensors<X>) -> Result<(Tensor<X>, Option<Tensor<X>>)> {
        let b = x.get("b").map(|b| b.view());
        linear_forward(x.stored("x"), x.stored("w").view(), b, x.get("add"), self.act)
    }
}

/// An activation and the layer behind it: z (N, C) → act(z)·wᵀ (N, O), whose backward goes `through` the activation.
#[derive(Debug)]
struct Through {
    shape: (usize, usize, usize),
    act: Activation,
}

impl Case for Through {
    fn inputs(&self) -> Inputs {
        let (n, c, o) = self.shape;
        Inputs::default().stored("z", [n, c]).stored("w", [o, c]).scaled(1.0 / (c as f64).sqrt())
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let h: Vec<f64> = x["z"].iter().map(|z| activate(self.act, *z)).collect();
        vec![product(&h, &x["w"], self.shape.1)]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let h = activated(self.act, x.stored("z"))?;
        Ok(vec![answer(&linear_forward(&h, x.stored("w").view(), None, None, Activation::Identity)?.0)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let (dy, w) = (x.stored("dy"), x.stored("w").view());
        let dz = linear_backward_input(dy, w, Some((self.act, x.stored("z"))))?;
        let mut dw = x.accumulator("w")?;
        linear_backward_weight(dw.view_mut(), None, dy, &activated(self.act, x.stored("z"))?)?;
        let dw = added("w", &dw).within(tolerance(X::DTYPE), "act(z), which it sums, was rounded to storage");
        Ok([fresh("z", &dz), dw].into())
    }
}

/// A layer with a skip connection, y = act(z)·wᵀ + z: z has two consumers, so its gradient is added to.
#[derive(Debug)]
struct Skip {
    n: usize,
    c: usize,
    act: Activation,
}

impl Case for Skip {
    fn inputs(&self) -> Inputs {
        let inputs = Inputs::default().stored("z", [self.n, self.c]);
        inputs.stored("w", [self.c, self.c]).scaled(1.0 / (self.c as f64).sqrt())
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let h: Vec<f64> = x["z"].iter().map(|z| activate(self.act, *z)).collect();
        vec![product(&h, &x["w"], self.c).iter().zip(&x["z"]).map(|(y, z)| y + z).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let (h, w) = (activated(self.act, x.stored("z"))?, x.stored("w").view());
        Ok(vec![answer(&linear_forward(&h, w, None, x.get("z"), Activation::Identity)?.0)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let (dy, z) = (x.stored("dy"), x.stored("z"));
        let mut dz = dy.duplicate()?;
        linear_backward_input_add(&mut dz, dy, x.stored("w").view(), Some((self.act, z)))?;
        let mut dw = x.accumulator("w")?;
        linear_backward_weight(dw.view_mut(), None, dy, &activated(self.act, z)?)?;
        let dw = added("w", &dw).within(tolerance(X::DTYPE), "act(z), which it sums, was rounded to storage");
        Ok([fresh("z", &dz), dw].into())
    }
}

/// f32 activations with weights of the storage type: nothing but the weights is rounded.
#[derive(Debug)]
struct Mixed {
    shape: (usize, usize, usize),
}

impl Case for Mixed {
    fn inputs(&self) -> Inputs {
        let (n, c, o) = self.shape;
        Inputs::default().single("x", [n, c]).stored("w", [o, c]).stored("b", [o])
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let mut y = product(&x["x"], &x["w"], self.shape.1);
        for (e, y) in y.iter_mut().enumerate() {
            *y += x["b"][e % self.shape.2];
        }
        vec![y]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let (w, b) = (x.stored("w").view(), x.stored("b").view());
        Ok(vec![answer(&linear_forward(x.single("x"), w, Some(b), None, Activation::Identity)?.0)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let dy = x.single("dy");
        let dx = linear_backward_input(dy, x.stored("w").view(), None)?;
        let (mut dw, mut db) = (x.accumulator("w")?, x.accumulator("b")?);
        linear_backward_weight(dw.view_mut(), Some(db.view_mut()), dy, x.single("x"))?;
        Ok([fresh("x", &dx), added("w", &dw), added("b", &db)].into())
    }

    fn types(&self) -> &'static [DType] {
        &[DType::Bf16, DType::F16]
    }
}

/// A layer and the gated residual behind it: y = h + gate·(x·wᵀ + b), with u = x·wᵀ + b kept.
#[derive(Debug)]
struct Gated {
    shape: (usize, usize, usize),
    map: Map,
}

impl Gated {
    /// First of the table's columns that is a gate, and how many there are: whole packs, and others.
    fn columns(&self) -> (usize, usize) {
        let (n, _, o) = self.shape;
        let offset = if n.is_multiple_of(2) { 2 * o } else { 0 };
        (offset, offset + o + if o.is_multiple_of(8) { 8 } else { 1 })
    }

    fn call<X: FloatX>(&self, x: &Tensors<X>, branch: Branch) -> Result<(Tensor<X>, Option<Tensor<X>>)> {
        let (w, b, gate) = (x.stored("w").view(), x.stored("b").view(), self.map.modulation(x));
        linear_gated_forward(x.stored("x"), w, b, x.stored("h"), (&gate, self.columns().0), branch)
    }

    fn plain<X: FloatX>(&self, x: &Tensors<X>) -> Result<(Tensor<X>, Tensor<X>)> {
        let (w, b) = (x.stored("w").view(), x.stored("b").view());
        let u = linear_forward(x.stored("x"), w, Some(b), None, Activation::Identity)?.0;
        let gate = self.map.modulation(x);
        Ok((gated_residual_forward(&u, Some(x.stored("h")), &gate, self.columns().0)?, u))
    }
}

impl Case for Gated {
    fn inputs(&self) -> Inputs {
        let (n, c, o) = self.shape;
        let inputs =
            Inputs::default().stored("x", [n, c]).stored("w", [o, c]).scaled(1.0 / (c as f64).sqrt());
        self.map.inputs(inputs.stored("b", [o]).stored("h", [n, o]), n, self.columns().1)
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let ((_, c, o), (offset, columns)) = (self.shape, self.columns());
        let gates = self.map.rows(x, columns);
        let mut u = product(&x["x"], &x["w"], c);
        u.iter_mut().enumerate().for_each(|(e, u)| *u += x["b"][e % o]);
        let y = u.iter().enumerate().map(|(e, u)| x["h"][e] + gates[e / o * columns + offset + e % o] * u);
        vec![y.collect(), u.clone()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let (y, u) = self.call(x, Branch::Keep)?;
        let dropped = self.call(x, Branch::Drop)?.0;
        same_bits(&y.to_f32_vec().unwrap(), &dropped.to_f32_vec().unwrap(), "y where u is not kept");
        let (plain_y, plain_u) = self.plain(x)?;
        let u = u.unwrap();
        same_bits(&u.to_f32_vec().unwrap(), &plain_u.to_f32_vec().unwrap(), "u and its plain twin");
        if X::DTYPE == DType::F32 {
            same_bits(&y.to_f32_vec().unwrap(), &plain_y.to_f32_vec().unwrap(), "y and its plain twin");
        } else {
            // The twin rounds u, once; both round y.
            let plain: Vec<f64> = plain_y.to_f32_vec().unwrap().iter().map(|y| f64::from(*y)).collect();
            answer(&y).check(&plain, "y and its plain twin");
        }
        Ok(vec![answer(&y), answer(&u)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let u = self.call(x, Branch::Keep)?.1.unwrap();
        let (dy, gate, (_, _, o)) = (x.stored("dy"), self.map.modulation(x), self.shape);
        let mut dtable = self.map.gradient(x, self.columns().0, o)?;
        let du = gated_residual_backward(dy, &gate, self.columns().0, Some((&u, dtable.lend())))?;
        let dx = linear_backward_input(&du, x.stored("w").view(), None)?;
        let (mut dw, mut db) = (x.accumulator("w")?, x.accumulator("b")?);
        linear_backward_weight(dw.view_mut(), Some(db.view_mut()), &du, x.stored("x"))?;
        let read = |name, sum: &Tensor<f32>| {
            added(name, sum).within(tolerance(X::DTYPE), "du, which it sums, was rounded to storage")
        };
        let of_table = dtable.read().within(tolerance(X::DTYPE), "u, which it sums, was rounded to storage");
        Ok([fresh("x", &dx), read("w", &dw), read("b", &db), fresh("h", dy), of_table].into())
    }
}

/// Returns a·bᵀ of a (N, C) and b (O, C).
fn product(a: &[f64], b: &[f64], c: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| -> f64 {
        let mut lanes = [0.0; 8];
        for (a, b) in a.chunks(8).zip(b.chunks(8)) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += a * b;
            }
        }
        lanes.iter().sum()
    };
    a.chunks_exact(c).flat_map(|a| b.chunks_exact(c).map(move |b| dot(a, b))).collect()
}

fn activate(act: Activation, z: f64) -> f64 {
    match act {
        Activation::Identity => z,
        Activation::Silu => z / (1.0 + (-z).exp()),
        Activation::GeluTanh => 0.5 * z * (1.0 + ((2.0 / PI).sqrt() * (z + 0.044715 * z.powi(3))).tanh()),
    }
}

/// Returns act(z), by a layer whose weights are the identity.
fn activated<X: FloatX>(act: Activation, z: &Tensor<X>) -> Result<Tensor<X>> {
    let eye = identity::<X>(z.device(), z.rows_cols().1)?;
    Ok(linear_forward(z, eye.view(), None, None, act)?.0)
}

fn identity<X: FloatX>(device: &Device, n: usize) -> Result<Tensor<X>> {
    let eye: Vec<f32> = (0..n * n).map(|e| if e % (n + 1) == 0 { 1.0 } else { 0.0 }).collect();
    Tensor::from_f32(device, [n, n], &eye)
}

#[test]
fn layers_with_every_epilogue_match() {
    let parts = [(false, false), (true, false), (true, true)];
    let cases = ODD.into_iter().flat_map(|shape| {
        let of_act = move |act| parts.map(|(bias, add)| Linear { shape, act, bias, add });
        ACTIVATIONS.into_iter().flat_map(of_act)
    });
    check_all(cases);
}

#[test]
fn layers_larger_than_a_tile_match() {
    check_all(LARGE.map(|shape| Linear { shape, act: Activation::GeluTanh, bias: true, add: true }));
}

#[test]
fn layers_with_long_sums_match() {
    // The identity: another activation would multiply by an O × O identity, see `backward`.
    check_all(LONG.map(|shape| Linear { shape, act: Activation::Identity, bias: true, add: true }));
    let shape = LONG[0];
    check_all(ACTIVATIONS.map(|act| Linear { shape, act, bias: true, add: true }));
    check_all(ACTIVATIONS.map(|act| Through { shape, act }));
}

#[test]
fn products_in_every_tile_of_a_gpu_match() -> Result<()> {
    let gpus = || devices().filter(|(_, device)| matches!(device, Device::Cuda(_)));
    assert!(gpus().count() > 0, "no CUDA device");
    for ((_, device), shape) in gpus().flat_map(|gpu| WIDE.map(|shape| (gpu, shape))) {
        products_match::<f32>(device, shape, check)?;
        products_match::<bf16>(device, shape, check)?;
        products_match::<f16>(device, shape, check)?;
    }
    Ok(())
}

#[test]
fn f32_on_tensor_cores_is_rounded_to_tf32_and_no_further() -> Result<()> {
    let device = Device::cuda(&CudaOptions { guard: true, tf32: true, ..emulator::options() })?;
    let mut shapes = LARGE.into_iter().chain(LONG).chain(WIDE);
    shapes.try_for_each(|shape| products_match::<f32>(&device, shape, check_tf32))
}

/// Compares the three products with f64.
fn products_match<X: FloatX>(
    device: &Device,
    (n, c, o): (usize, usize, usize),
    compare: impl Fn(Answer, &[f64], &str),
) -> Result<()> {
    let inputs = Inputs::default().stored("x", [n, c]).stored("w", [o, c]).stored("dy", [n, o]);
    let values = inputs.rounded(X::DTYPE);
    let tensors = Tensors::<X>::new(device, &inputs, &values)?;
    let (x, w, dy) = (tensors.stored("x"), tensors.stored("w"), tensors.stored("dy"));
    let y = linear_forward(x, w.view(), None, None, Activation::Identity)?.0;
    let dx = linear_backward_input(dy, w.view(), None)?;
    let (mut dw, mut db) = (Tensor::zeros(device, [o, c]), Tensor::zeros(device, [o]));
    linear_backward_weight(dw.view_mut(), Some(db.view_mut()), dy, x)?;

    let (x, w, dy) = (&values["x"], &values["w"], &values["dy"]);
    let (x_across, w_across, dy_across) = (transposed(x, c), transposed(w, c), transposed(dy, o));
    compare(answer(&y), &product(x, w, c), "y");
    compare(answer(&dx), &product(dy, &w_across, o), "dx");
    compare(answer(&dw), &product(&dy_across, &x_across, n), "dw");
    // Its sum is no matrix product: nothing is rounded.
    answer(&db).check(&product(&dy_across, &vec![1.0; n], n), "db");
    Ok(())
}

fn check(found: Answer, expected: &[f64], what: &str) {
    found.check(expected, what);
}

/// Each operand is off by at most 2⁻¹¹ of itself: 1e-3 of the largest result is enough for their sums, and an error below 1e-6
/// would mean that nothing was rounded.
fn check_tf32(found: Answer, expected: &[f64], what: &str) {
    let off = found.values.iter().zip(expected).map(|(f, e)| (*f as f64 - e).abs());
    let off = off.fold(0.0, f64::max) / expected.iter().fold(0.0, |largest: f64, e| largest.max(e.abs()));
    assert!(off > 1e-6, "{what} of {} results is off by {off:e} only", expected.len());
    found.within(1e-3, "tf32 has 10 bits of mantissa").check(expected, what);
}

/// Returns the transpose of a matrix of `columns` columns.
fn transposed(a: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|c| a.iter().skip(c).step_by(columns).copied()).collect()
}

#[test]
fn gradients_pass_through_the_activation_before_the_layer() {
    let cases = ODD.into_iter().flat_map(|shape| ACTIVATIONS.map(|act| Through { shape, act }));
    check_all(cases);
}

#[test]
fn gradients_of_two_consumers_are_added() {
    let shapes = [(1, 1), (3, 5), (9, 49), (17, 64), (131, 33)];
    check_all(shapes.into_iter().flat_map(|(n, c)| ACTIVATIONS.map(|act| Skip { n, c, act })));
}

#[test]
fn single_precision_activations_meet_low_precision_weights() {
    check_all(ODD.map(|shape| Mixed { shape }));
}

#[test]
fn layers_with_a_gated_residual_match() {
    // The last three: a tile and a part of one; sums cut into parts, aligned and not.
    let shapes = ODD.into_iter().chain([LARGE[1], LONG[0], LONG[1], LONG[4]]);
    check_all(shapes.flat_map(|shape| Map::all(shape.0).into_iter().map(move |map| Gated { shape, map })));
}

#[test]
fn gated_residuals_in_the_largest_tile_of_a_gpu_match() -> Result<()> {
    for (_, device) in devices().filter(|(_, device)| matches!(device, Device::Cuda(_))) {
        for map in [Map::Direct, Map::Nodes(19)] {
            gated_matches::<f32>(device, map)?;
            gated_matches::<bf16>(device, map)?;
            gated_matches::<f16>(device, map)?;
        }
    }
    Ok(())
}

/// Compares a layer that takes the largest tile with f64 and with its plain twin.
fn gated_matches<X: FloatX>(device: &Device, map: Map) -> Result<()> {
    let case = Gated { shape: WIDE[0], map };
    let inputs = case.inputs();
    let values = inputs.rounded(X::DTYPE);
    let found = case.forward(&Tensors::<X>::new(device, &inputs, &values)?)?;
    for (found, expected) in found.into_iter().zip(case.reference(&values)) {
        check(found, &expected, "y or u");
    }
    Ok(())
}

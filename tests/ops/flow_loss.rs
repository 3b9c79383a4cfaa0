//! The flow-matching loss: residual, weights, control variate, and the gradients of both stages.

use flowprior::device::CudaOptions;
use flowprior::ops::flow_loss::{
    Target, Weight, WeightTable, flow_loss_backward, flow_loss_forward, latent_gradient,
};
use flowprior::ops::flow_path::{Rows, interpolate};
use flowprior::ops::linear::{
    Activation, linear_backward_input, linear_backward_weight, linear_forward, linear_loss_backward,
    linear_loss_forward,
};
use flowprior::rng::{Draw, Stream};
use flowprior::{DType, Device, FloatX, Result, Tensor};
use half::{bf16, f16};

use crate::support::devices::{any_device, devices};
use crate::support::emulator;
use crate::support::noise::rows_of_noise;
use crate::support::oracle::{same_bits, tolerance};
use crate::support::random::Random;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, added, answer, check_all, fresh};

/// A weight, before it is brought to a device.
#[derive(Clone, Copy, Debug, PartialEq)]
enum W {
    Uniform,
    Constant(f32),
    Likelihood { clip: f32 },
    Kl { clip: f32 },
    Table(&'static [f32]),
}

impl W {
    fn on(self, device: &Device) -> Weight {
        match self {
            Self::Uniform => Weight::Uniform,
            Self::Constant(w) => Weight::Constant(w),
            Self::Likelihood { clip } => Weight::Likelihood { clip },
            Self::Kl { clip } => Weight::Kl { clip },
            Self::Table(values) => Weight::Table(WeightTable::new(device, values).unwrap()),
        }
    }
}

const WEIGHTS: [W; 4] = [
    W::Uniform,
    W::Likelihood { clip: 0.875 },
    W::Kl { clip: 0.875 },
    W::Table(&[0.0, 2.0, 0.5, 0.5, 3.0, 1.0, 0.25, 7.0]),
];

fn noise() -> Draw {
    Draw::new(11, Stream::Noise, 5)
}

/// Row losses of given velocities, `ℓ = w(t)·(‖v − (data − noise)‖² − c)`, and their sum's gradients.
#[derive(Debug)]
struct FlowLoss {
    rows: Rows,
    d: usize,
    weight: W,
    control_variate: bool,
}

impl Case for FlowLoss {
    fn inputs(&self) -> Inputs {
        let inputs = Inputs::default().stored("v", [self.rows.len(), self.d]);
        let inputs = inputs.single("data", [self.rows.samples, self.d]);
        inputs.constant("t", [self.rows.times()], times(self.rows))
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        vec![losses(self, &x["v"], &x["data"], &x["t"])]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        Ok(vec![answer(&flow_loss_forward(x.stored("v"), &self.target(x.single("data"), x.single("t")))?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let (v, t) = (x.stored("v"), x.single("t"));
        let target = self.target(x.single("data"), t);
        let (_, dv) = flow_loss_backward(v, &target, 2.0)?; // d(Σ ℓ)/dv = 2·w·r
        let ddata = latent_gradient(&dv, None, t, self.rows, 1.0)?;
        let ddata = fresh("data", &ddata).within(tolerance(X::DTYPE), "dv, which it sums, was rounded");
        Ok([fresh("v", &dv), ddata].into())
    }

    fn sums_its_output(&self) -> bool {
        true
    }
}

impl FlowLoss {
    fn target<'a>(&self, data: &'a Tensor<f32>, t: &'a Tensor<f32>) -> Target<'a> {
        let &Self { rows, control_variate, .. } = self;
        Target {
            data,
            t,
            noise: noise(),
            rows,
            weight: self.weight.on(data.device()),
            control_variate,
            centred: false,
        }
    }
}

/// Stage 2 with the velocity v(x_t) = A·x_t: the total derivative of the loss with respect to the latents y.
#[derive(Debug)]
struct Alignment {
    loss: FlowLoss,
    /// x_t is made from other latents, so y is seen through the target alone.
    detached: bool,
}

/// A loss scale and its inverse, exact in binary.
const LOSS_SCALE: f32 = 1024.0;

impl Case for Alignment {
    fn inputs(&self) -> Inputs {
        let &FlowLoss { rows, d, .. } = &self.loss;
        let mut random = Random::new("A and others");
        let matrix = random.normals(d * d).into_iter().map(|v| v / (d as f64).sqrt()).collect();
        let inputs = Inputs::default().single("y", [rows.samples, d]).constant("A", [d, d], matrix);
        let inputs = inputs.constant("t", [rows.times()], times(rows));
        inputs.when(self.detached, |i| {
            i.constant("others", [rows.samples, d], random.normals(rows.samples * d))
        })
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let &FlowLoss { rows, d, .. } = &self.loss;
        let (from, t) = (x.get("others").unwrap_or(&x["y"]), &x["t"]);
        let noise = rows_of_noise(noise(), rows, d);
        let mut v = Vec::new();
        for (i, noise) in noise.chunks_exact(d).enumerate() {
            let (t, from) = (t[i / rows.share], &from[i % rows.samples * d..][..d]);
            let x_t: Vec<f64> = noise.iter().zip(from).map(|(n, y)| (1.0 - t) * n + t * y).collect();
            v.extend(x["A"].chunks_exact(d).map(|a| a.iter().zip(&x_t).map(|(a, x)| a * x).sum::<f64>()));
        }
        vec![losses(&self.loss, &v, &x["y"], t)]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let target = self.loss.target(x.single("y"), x.single("t"));
        Ok(vec![answer(&flow_loss_forward(&self.velocity(x)?, &target)?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let (t, rows) = (x.single("t"), self.loss.rows);
        let target = self.loss.target(x.single("y"), t);
        let (_, dv) = flow_loss_backward(&self.velocity(x)?, &target, 2.0 * LOSS_SCALE)?;
        let dx_t = match self.detached {
            true => None,
            false => Some(linear_backward_input(&dv, x.single("A").view(), None)?),
        };
        Ok([fresh("y", &latent_gradient(&dv, dx_t.as_ref(), t, rows, 1.0 / LOSS_SCALE)?)].into())
    }

    fn types(&self) -> &'static [DType] {
        &[DType::F32]
    }

    fn sums_its_output(&self) -> bool {
        true
    }
}

impl Alignment {
    fn velocity<X: FloatX>(&self, x: &Tensors<X>) -> Result<Tensor<X>> {
        let from = x.single(if self.detached { "others" } else { "y" });
        let x_t = interpolate::<X>(from, x.single("t"), noise(), self.loss.rows)?;
        Ok(linear_forward(&x_t, x.single("A").view(), None, None, Activation::Identity)?.0)
    }
}

/// A linear layer, v = x·wᵀ + b with x (N, C), and the loss of its results.
#[derive(Debug)]
struct Head {
    loss: FlowLoss,
    c: usize,
}

impl Case for Head {
    fn inputs(&self) -> Inputs {
        let (&FlowLoss { rows, d, .. }, c) = (&self.loss, self.c);
        let inputs = Inputs::default().stored("x", [rows.len(), c]).stored("w", [d, c]);
        let inputs = inputs.scaled(1.0 / (c as f64).sqrt()).stored("b", [d]);
        inputs.single("data", [rows.samples, d]).constant("t", [rows.times()], times(rows))
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
        let row = |row| x["w"].chunks_exact(self.c).zip(&x["b"]).map(move |(w, b)| dot(row, w) + b);
        let v: Vec<f64> = x["x"].chunks_exact(self.c).flat_map(row).collect();
        vec![losses(&self.loss, &v, &x["data"], &x["t"])]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let target = self.loss.target(x.single("data"), x.single("t"));
        let (input, w, b) = (x.stored("x"), x.stored("w").view(), x.stored("b").view());
        let alone = linear_loss_forward(input, w, b, &target)?;
        let (loss, dv) = linear_loss_backward(input, w, b, &target, 2.0)?;
        same_bits(&alone.to_f32_vec().unwrap(), &loss.to_f32_vec().unwrap(), "losses with and without dv");
        let (plain_loss, plain_dv) = flow_loss_backward(&self.velocity(x)?, &target, 2.0)?;
        let f64s = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
        let plain_loss = f64s(plain_loss.to_f32_vec().unwrap());
        let found = answer(&loss);
        match X::DTYPE {
            DType::F32 => {
                let [dv, plain] = [dv, plain_dv].map(|dv| dv.to_f32_vec().unwrap());
                same_bits(&dv, &plain, "dv and its plain twin");
                found.clone().check(&plain_loss, "losses and their plain twin");
            }
            // The twin rounds v; both round dv.
            dtype => {
                answer(&dv).check(&f64s(plain_dv.to_f32_vec().unwrap()), "dv and its plain twin");
                let found = found.clone().within(tolerance(dtype), "the twin rounds v to storage");
                found.check(&plain_loss, "losses and their plain twin");
            }
        }
        // On a GPU v is not rounded, whatever it would be stored in.
        let rounds = matches!(x.device, Device::Cpu(_));
        let found = if rounds { found.within(tolerance(X::DTYPE), "v was rounded") } else { found };
        Ok(vec![found])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let t = x.single("t");
        let target = self.loss.target(x.single("data"), t);
        let (w, b) = (x.stored("w").view(), x.stored("b").view());
        let (_, dv) = linear_loss_backward(x.stored("x"), w, b, &target, 2.0)?;
        let dx = linear_backward_input(&dv, w, None)?;
        let (mut dw, mut db) = (x.accumulator("w")?, x.accumulator("b")?);
        linear_backward_weight(dw.view_mut(), Some(db.view_mut()), &dv, x.stored("x"))?;
        let ddata = latent_gradient(&dv, None, t, self.loss.rows, 1.0)?;
        const WHY: &str = "dv, which it sums, was rounded";
        let read = |name, sum: &Tensor<f32>| added(name, sum).within(tolerance(X::DTYPE), WHY);
        let ddata = fresh("data", &ddata).within(tolerance(X::DTYPE), WHY);
        Ok([fresh("x", &dx), read("w", &dw), read("b", &db), ddata].into())
    }

    fn sums_its_output(&self) -> bool {
        true
    }
}

impl Head {
    fn velocity<X: FloatX>(&self, x: &Tensors<X>) -> Result<Tensor<X>> {
        let (w, b) = (x.stored("w").view(), x.stored("b").view());
        Ok(linear_forward(x.stored("x"), w, Some(b), None, Activation::Identity)?.0)
    }

    /// Compares losses with f64, and allows another error where operands were rounded to tf32; losses and dv with their plain twin.
    fn matches<X: FloatX>(&self, device: &Device, of_tf32: Option<f64>) -> Result<()> {
        let inputs = self.inputs();
        let values = inputs.rounded(X::DTYPE);
        let found = self.forward(&Tensors::<X>::new(device, &inputs, &values)?)?.remove(0);
        let found = match of_tf32 {
            Some(error) => found.within(error, "tf32 has 10 bits of mantissa"),
            None => found,
        };
        found.check(&self.reference(&values)[0], &format!("{self:?}, {}", X::DTYPE));
        Ok(())
    }
}

/// Returns times in [0, 0.999], below and above the clip.
fn times(rows: Rows) -> Vec<f64> {
    let mut random = Random::new("t");
    (0..rows.times()).map(|_| 0.999 * random.uniform()).collect()
}

/// Returns the row losses, from their definition.
fn losses(case: &FlowLoss, v: &[f64], data: &[f64], t: &[f64]) -> Vec<f64> {
    let &FlowLoss { rows, d, weight, control_variate } = case;
    let noise = rows_of_noise(noise(), rows, d);
    let row = |(i, (v, noise)): (usize, (&[f64], &[f64]))| {
        let (t, data) = (t[i / rows.share], &data[i % rows.samples * d..][..d]);
        let residuals = v.iter().zip(noise).zip(data).map(|((v, noise), data)| v - (data - noise));
        let mut sum = residuals.map(|r| r * r).sum::<f64>();
        if control_variate {
            let variance = (1.0 - t).powi(2) + t.powi(2);
            sum -= noise.iter().map(|n| n * n).sum::<f64>() + d as f64 * (1.0 / variance - 1.0);
        }
        weight_at(weight, t) * sum
    };
    v.chunks_exact(d).zip(noise.chunks_exact(d)).enumerate().map(row).collect()
}

fn weight_at(weight: W, t: f64) -> f64 {
    let odds = |t: f64| t / (1.0 - t);
    let clipped = |clip: f32| if t > clip as f64 { clip as f64 } else { t };
    match weight {
        W::Uniform => 1.0,
        W::Constant(w) => w as f64,
        W::Likelihood { clip } => odds(clipped(clip)),
        W::Kl { clip } => clipped(clip) * odds(clipped(clip)),
        W::Table(values) => {
            // The sum of tents over the knots.
            let cells = (values.len() - 1) as f64;
            let tent = |(i, w): (usize, &f32)| {
                let height = 1.0 - (t * cells - i as f64).abs();
                *w as f64 * if height < 0.0 { 0.0 } else { height } // NaN stays
            };
            values.iter().enumerate().map(tent).sum()
        }
    }
}

fn cases(list: &[(usize, usize, usize, usize)]) -> impl Iterator<Item = FlowLoss> {
    list.iter().flat_map(|&(samples, replicas, share, d)| {
        let rows = Rows { first: 9, samples, replicas, share };
        WEIGHTS.into_iter().flat_map(move |weight| {
            [false, true].map(|control_variate| FlowLoss { rows, d, weight, control_variate })
        })
    })
}

#[test]
fn losses_and_velocity_gradients_match() {
    check_all(cases(&[(1, 1, 1, 1), (7, 1, 1, 2), (5, 2, 1, 31), (6, 3, 2, 32), (3, 1, 3, 5)]));
}

/// The gradient of latents that stays with the target, less a(t)·noise: on every device, of a loss that is as it was.
#[test]
fn centred_gradients_lose_a_part_of_the_noise_and_losses_nothing() -> Result<()> {
    let list = [(7, 1, 1, 2), (5, 2, 1, 31), (6, 3, 2, 32), (3, 1, 3, 130)];
    for case in cases(&list).filter(|case| case.control_variate == (case.weight == WEIGHTS[1])) {
        centred::<f32>(&case)?;
        centred::<bf16>(&case)?;
        centred::<f16>(&case)?;
    }
    Ok(())
}

fn centred<X: FloatX>(case: &FlowLoss) -> Result<()> {
    let &FlowLoss { rows, d, weight, .. } = case;
    let inputs = case.inputs();
    let values = inputs.rounded(X::DTYPE);
    let noise = rows_of_noise(noise(), rows, d);
    let expected: Vec<f64> = (0..rows.len() * d)
        .map(|i| {
            let (t, data) = (values["t"][i / d / rows.share], values["data"][i % (rows.samples * d)]);
            let a = t / ((1.0 - t).powi(2) + t.powi(2));
            2.0 * weight_at(weight, t) * (values["v"][i] - (data - noise[i]) - a * noise[i])
        })
        .collect();
    let mut one = vec![0.0; d * d];
    (0..d).for_each(|i| one[i * d + i] = 1.0);
    for (name, device) in devices() {
        let x = Tensors::<X>::new(device, &inputs, &values)?;
        let plain = case.target(x.single("data"), x.single("t"));
        let target = Target { centred: true, ..plain.clone() };
        let what = format!("{case:?}, {} on {name}", X::DTYPE);
        let (loss, dv) = flow_loss_backward(x.stored("v"), &target, 2.0)?;
        let (as_before, _) = flow_loss_backward(x.stored("v"), &plain, 2.0)?;
        same_bits(&loss.to_f32_vec()?, &as_before.to_f32_vec()?, &what);
        answer(&dv).check(&expected, &what);
        // The layer that ends in the loss: with v·I + 0 it is the same.
        let (w, b) = (Tensor::<X>::from_f32(device, [d, d], &one)?, Tensor::<X>::zeros(device, [d]));
        let (_, of_layer) = linear_loss_backward(x.stored("v"), w.view(), b.view(), &target, 2.0)?;
        answer(&of_layer).check(&expected, &format!("{what}, a layer"));
    }
    Ok(())
}

#[test]
fn tables_of_two_knots_and_weights_that_are_numbers_match() {
    let rows = Rows { first: 9, samples: 6, replicas: 2, share: 2 };
    let weights = [W::Table(&[0.5, 2.0]), W::Table(&[3.0, 0.0, 0.0]), W::Constant(2.5), W::Constant(0.0)];
    check_all(weights.map(|weight| FlowLoss { rows, d: 5, weight, control_variate: true }));
}

/// A residual of 2⁴⁰ swallows the noise, so that the loss of a row is its weight times 2⁸⁰ in every bit.
#[test]
fn weights_of_a_table_have_the_same_bits_on_every_device() -> Result<()> {
    let large = (1u64 << 40) as f32;
    for values in [&[0.5f32, 2.0][..], &[0.1, 3.7, 0.0, 0.0, 1.3, 11.0], &[1.0, 5.0, 1.0]] {
        let cells = (values.len() - 1) as f32;
        let knots = (0..values.len()).map(|i| i as f32 / cells);
        let near = knots.flat_map(|t| [t.next_down().max(0.0), t, t.next_up().min(1.0)]);
        let t: Vec<f32> = near.chain((0..200).map(|i| i as f32 / 199.0)).collect();
        for (name, device) in devices() {
            let table = WeightTable::new(device, values)?;
            let rows = Rows::plain(t.len());
            let [data, v] = [0.0, large].map(|x| Tensor::from_f32(device, [t.len(), 1], &vec![x; t.len()]));
            let (data, times) = (data?, Tensor::from_f32(device, [t.len()], &t)?);
            let weight = Weight::Table(table.clone());
            let target = Target {
                data: &data,
                t: &times,
                noise: noise(),
                rows,
                weight,
                control_variate: false,
                centred: false,
            };
            let losses = flow_loss_forward::<f32>(&v?, &target)?.to_f32_vec()?;
            let weights: Vec<f32> = losses.iter().map(|loss| loss / large / large).collect();
            let here: Vec<f32> = t.iter().map(|t| table.at(*t)).collect();
            same_bits(&weights, &here, name);
        }
        for (knot, w) in values.iter().enumerate() {
            let table = WeightTable::new(any_device(), values)?;
            assert!(
                (table.at(knot as f32 / cells) - w).abs() <= 2e-6 * (1.0 + w),
                "knot {knot} of {values:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn tables_that_are_no_weights_are_refused() {
    let message = |values: &[f32]| WeightTable::new(any_device(), values).unwrap_err().to_string();
    assert_eq!(message(&[1.0]), "weight_table: `values` has 1, expected 2 to 2³² − 1");
    for (bad, word) in [(-0.5, "-0.5"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let expected = format!("weight_table: `values` has {word}, expected finite numbers from 0 on");
        assert_eq!(message(&[1.0, bad, 2.0]), expected);
    }
}

#[test]
fn losses_of_wide_rows_and_many_blocks_match() {
    let large = cases(&[(24, 1, 1, 768), (6, 3, 3, 1030), (530, 1, 1, 33)]);
    check_all(large.filter(|case| case.control_variate == (case.weight != W::Uniform)));
}

#[test]
fn latents_get_the_total_derivative_or_the_detached_one() {
    let shapes = [(1, 1, 1, 1), (7, 1, 1, 2), (5, 2, 1, 31), (6, 3, 2, 32), (2, 4, 1, 5)];
    let cases = cases(&shapes).flat_map(|loss| {
        let FlowLoss { rows, d, weight, control_variate } = loss;
        [false, true].map(|detached| {
            let loss = FlowLoss { rows, d, weight, control_variate };
            Alignment { loss, detached }
        })
    });
    check_all(cases);
}

/// Lists layers of C columns: of each loss those that `cases` makes of (samples, replicas, share, D).
fn heads(c: usize, shapes: &[(usize, usize, usize, usize)]) -> Vec<Head> {
    cases(shapes).map(|loss| Head { loss, c }).collect()
}

#[test]
fn layers_that_end_in_the_loss_match() {
    let narrow = [(1, &[(1, 1, 1, 1)][..]), (13, &[(7, 1, 1, 2), (3, 1, 3, 5)])];
    let packs = [(47, &[(5, 2, 1, 31)][..]), (16, &[(6, 3, 2, 32)])];
    check_all(narrow.into_iter().chain(packs).flat_map(|(c, shapes)| heads(c, shapes)));
}

#[test]
fn layers_that_end_in_the_loss_match_in_every_tile_of_a_gpu() -> Result<()> {
    // Tiles of all sizes; rows of one group of columns and of several; sums cut into parts, aligned and not.
    let tiles = [(24, 1001, 1000), (11, 501, 1003), (24, 8000, 64), (32, 4000, 24), (8, 700, 120)];
    let tiles = tiles.into_iter().flat_map(|(c, n, d)| heads(c, &[(n, 1, 1, d)]));
    let wide = [heads(136, &[(24, 3, 1, 200)]), heads(35, &[(10, 2, 5, 131)])];
    let long = [heads(2000, &[(9, 1, 1, 24), (3, 1, 1, 300)]), heads(2003, &[(4, 2, 2, 21), (3, 1, 1, 133)])];
    let one = |head: &Head| head.loss.control_variate && head.loss.weight == WEIGHTS[2];
    let others = wide.into_iter().chain(long).flatten();
    let heads: Vec<Head> = tiles.filter(one).chain(others).collect();
    for (_, device) in devices().filter(|(_, device)| matches!(device, Device::Cuda(_))) {
        for head in &heads {
            head.matches::<f32>(device, None)?;
            head.matches::<bf16>(device, None)?;
            head.matches::<f16>(device, None)?;
        }
    }
    let device = Device::cuda(&CudaOptions { guard: true, tf32: true, ..emulator::options() })?;
    heads.iter().try_for_each(|head| head.matches::<f32>(&device, Some(5e-3)))
}

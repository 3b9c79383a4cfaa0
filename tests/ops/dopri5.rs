//! The adaptive step: every stage and the error against Dormand and Prince's table, every branch of the decision, and moving on.

use flowprior::ops::dopri5::{
    Control, Limits, SLOPES, Status, dopri5_accept, dopri5_decide, dopri5_error, dopri5_partials,
    dopri5_stage,
};
use flowprior::{DType, FloatX, Result, Tensor};

use crate::support::devices::devices;
use crate::support::random::Random;
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, no_backward};

/// Around the blocks of 4,096 and 16,384 elements.
const LENGTHS: [usize; 6] = [1, 3, 17, 257, 4097, 16_387];
const NAMES: [&str; SLOPES] = ["k1", "k2", "k3", "k4", "k5", "k6", "k7"];
const LIMITS: Limits = Limits { rtol: 0.25, atol: 0.125, smallest: 1e-3, tries: 40 };

/// The rows of the table, and what the slopes of the error are multiplied by.
const TABLE: [&[f64]; 6] = [
    &[0.2],
    &[0.075, 0.225],
    &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
    &[19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0],
    &[9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0],
    &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0],
];
/// The embedded solution of order 4.
const FOURTH: [f64; SLOPES] =
    [5179.0 / 57600.0, 0.0, 7571.0 / 16695.0, 393.0 / 640.0, -92097.0 / 339200.0, 187.0 / 2100.0, 0.025];

/// Numbers of a controller: t, h, end, norm, norm before, status, accept, accepted, rejected, last, was rejected.
fn numbers(first: [f64; 11]) -> Vec<f64> {
    first.into_iter().chain([0.0; 5]).collect()
}

fn control<X: FloatX>(x: &Tensors<X>) -> Result<Control> {
    Control::from_numbers(x.single("control").duplicate()?)
}

fn with_slopes(inputs: Inputs, n: usize, count: usize) -> Inputs {
    NAMES[..count]
        .iter()
        .fold(inputs, |inputs, name| inputs.constant(name, [n], Random::new(name).normals(n)))
}

#[derive(Debug)]
struct Stage {
    n: usize,
    slopes: usize,
}

impl Case for Stage {
    fn inputs(&self) -> Inputs {
        let inputs = Inputs::default().constant("x", [self.n], Random::new("x").normals(self.n));
        let state = numbers([0.25, 0.375, 1.0, 0.0, 1e-4, 0.0, 0.0, 2.0, 1.0, 0.0, 0.0]);
        with_slopes(inputs, self.n, self.slopes).constant("control", [16], state)
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let (t, h) = (x["control"][0], x["control"][1]);
        let row = TABLE[self.slopes - 1];
        let slope = |i: usize| row.iter().zip(NAMES).map(|(a, name)| a * x[name][i]).sum::<f64>();
        let c: f64 = row.iter().sum();
        vec![(0..self.n).map(|i| x["x"][i] + h * slope(i)).collect(), vec![t + c * h]]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let slopes: Vec<_> = NAMES[..self.slopes].iter().map(|name| x.single(name)).collect();
        let (y, t) = dopri5_stage(x.single("x"), &slopes, &control(x)?)?;
        Ok(vec![answer(&y), answer(&t)])
    }

    fn backward<X: FloatX>(&self, _x: &Tensors<X>) -> Result<Backward> {
        no_backward("adaptive solves are not descended")
    }

    fn types(&self) -> &'static [DType] {
        &[DType::F32]
    }
}

/// The partial sums, and what the controller decides on them.
#[derive(Debug)]
struct Error {
    n: usize,
    h: f64,
}

impl Case for Error {
    fn inputs(&self) -> Inputs {
        let numbers_of = |name| Random::new(name).normals(self.n);
        let inputs = Inputs::default().constant("x", [self.n], numbers_of("x")).constant(
            "y",
            [self.n],
            numbers_of("y"),
        );
        let state = numbers([0.0, self.h, 1.0, 0.0, 1e-4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        with_slopes(inputs, self.n, SLOPES).constant("control", [16], state)
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let fifth = TABLE[5].iter().copied().chain([0.0]);
        let e: Vec<f64> = fifth.zip(FOURTH).map(|(fifth, fourth)| fifth - fourth).collect();
        let square = |i: usize| {
            let slopes = e.iter().zip(NAMES).filter(|(_, name)| *name != "k2");
            let error: f64 = slopes.map(|(e, name)| e * x[name][i]).sum();
            let largest = if x["y"][i].is_nan() { f64::NAN } else { x["x"][i].abs().max(x["y"][i].abs()) };
            (x["control"][1] * error / (LIMITS.atol as f64 + LIMITS.rtol as f64 * largest)).powi(2)
        };
        let all: Vec<f64> = (0..self.n).map(square).collect();
        vec![all.chunks(4096).map(|block| block.iter().sum()).collect()]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let mut partials = Tensor::uninit(&x.device, [dopri5_partials(self.n)]);
        let slopes = NAMES.map(|name| x.single(name));
        let pair = (x.single("x"), x.single("y"));
        dopri5_error(partials.view_mut(), pair, &slopes, &control(x)?, &LIMITS)?;
        let cancels = "the coefficients of the error add up to nothing, so it is smaller than its terms";
        Ok(vec![answer(&partials).within(3e-5, cancels)])
    }

    fn backward<X: FloatX>(&self, _x: &Tensors<X>) -> Result<Backward> {
        no_backward("adaptive solves are not descended")
    }

    fn types(&self) -> &'static [DType] {
        &[DType::F32]
    }
}

#[test]
fn stages_and_errors_are_those_of_the_table() {
    check_all(LENGTHS.into_iter().flat_map(|n| (1..SLOPES).map(move |slopes| Stage { n, slopes })));
    check_all(LENGTHS.map(|n| Error { n, h: -0.5 }));
}

/// Decides on one controller and partial sums: the numbers afterwards.
fn decided(device: &flowprior::Device, before: [f64; 11], partials: &[f32]) -> Result<Vec<f32>> {
    let before: Vec<f32> = numbers(before).into_iter().map(|v| v as f32).collect();
    let mut control = Control::from_numbers(Tensor::from_f32(device, [16], &before)?)?;
    let partials = Tensor::from_f32(device, [partials.len()], partials)?;
    dopri5_decide(&mut control, &partials, 8, &LIMITS)?;
    control.numbers().to_f32_vec()
}

#[test]
fn every_branch_of_the_decision_is_the_same_everywhere() -> Result<()> {
    // From t = 0.25 with h = 0.125 to 1, an earlier norm of 0.5.
    let running = |accepted: f64, last: f64, rejected_before: f64| {
        [0.25, 0.125, 1.0, 9.0, 0.5, 0.0, 0.0, accepted, 3.0, last, rejected_before]
    };
    let before_factor = 0.5f64.powf(0.04);
    let grown = |norm: f64| 0.125 / (norm.powf(0.17) / before_factor / 0.9).clamp(0.1, 5.0);
    // Numbers before, partial sums of 8 elements, and t, h, status, accept, accepted, rejected, last afterwards.
    type Row = ([f64; 11], [f32; 2], [f64; 7]);
    let rows: [Row; 10] = [
        (running(2.0, 0.0, 0.0), [1.0, 1.0], [0.375, grown(0.5), 0.0, 1.0, 3.0, 3.0, 0.0]),
        // After a rejection a step does not grow.
        (running(2.0, 0.0, 1.0), [0.125, 0.0], [0.375, 0.125, 0.0, 1.0, 3.0, 3.0, 0.0]),
        // No error at all: ten times as large, which is all the rest.
        (running(2.0, 0.0, 0.0), [0.0, 0.0], [0.375, 0.625, 0.0, 1.0, 3.0, 3.0, 1.0]),
        (running(2.0, 1.0, 0.0), [1.0, 1.0], [1.0, 0.0, 1.0, 1.0, 3.0, 3.0, 1.0]),
        (
            running(2.0, 1.0, 0.0),
            [16.0, 16.0],
            [0.25, 0.125 / (2f64.powf(0.17) / 0.9), 0.0, 0.0, 2.0, 4.0, 0.0],
        ),
        (running(2.0, 0.0, 0.0), [1e30, 0.0], [0.25, 0.025, 0.0, 0.0, 2.0, 4.0, 0.0]),
        (running(2.0, 0.0, 0.0), [f32::NAN, 0.0], [0.25, 0.125, 2.0, 0.0, 2.0, 3.0, 0.0]),
        (running(2.0, 0.0, 0.0), [f32::INFINITY, 0.0], [0.25, 0.125, 2.0, 0.0, 2.0, 3.0, 0.0]),
        (running(36.0, 0.0, 0.0), [1.0, 1.0], [0.375, grown(0.5), 4.0, 1.0, 37.0, 3.0, 0.0]),
        (
            [0.25, 2e-3, 1.0, 9.0, 0.5, 0.0, 0.0, 2.0, 3.0, 0.0, 0.0],
            [1e30, 0.0],
            [0.25, 4e-4, 3.0, 0.0, 2.0, 4.0, 0.0],
        ),
    ];
    for (name, device) in devices() {
        for (i, (before, partials, expected)) in rows.iter().enumerate() {
            let found = decided(device, *before, partials)?;
            let found = [0, 1, 5, 6, 7, 8, 9].map(|at| found[at] as f64);
            for (found, expected) in found.iter().zip(expected) {
                let right = (found - expected).abs() <= 2e-6 * expected.abs().max(0.1);
                assert!(right, "{name}, row {i}: {found} and {expected}");
            }
        }
        // A solve that is over stays as it is; nothing is accepted any more.
        for status in 1..5 {
            let mut over = running(2.0, 0.0, 0.0);
            (over[5], over[6]) = (status as f64, 1.0);
            let found = decided(device, over, &[1.0, 1.0])?;
            over[6] = 0.0;
            let expected: Vec<f32> = numbers(over).into_iter().map(|v| v as f32).collect();
            assert_eq!(found, expected, "{name}, status {status}");
        }
    }
    Ok(())
}

#[test]
fn only_accepted_steps_move_on() -> Result<()> {
    for (name, device) in devices() {
        for n in LENGTHS {
            let filled = |value: f32| Tensor::<f32>::from_f32(device, [n], &vec![value; n]);
            for accept in [0.0, 1.0] {
                let state = numbers([0.0, 0.5, 1.0, 0.5, 0.5, 0.0, accept, 0.0, 0.0, 0.0, 0.0]);
                let state: Vec<f32> = state.into_iter().map(|v| v as f32).collect();
                let control = Control::from_numbers(Tensor::from_f32(device, [16], &state)?)?;
                let (mut x, mut first) = (filled(1.0)?, filled(2.0)?);
                dopri5_accept((&mut x, &filled(3.0)?), (&mut first, &filled(4.0)?), &control)?;
                let expected = if accept == 0.0 { (1.0, 2.0) } else { (3.0, 4.0) };
                assert_eq!(x.to_f32_vec()?, vec![expected.0; n], "{name}");
                assert_eq!(first.to_f32_vec()?, vec![expected.1; n], "{name}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_controller_starts_inside_its_span() -> Result<()> {
    for (name, device) in devices() {
        let report = Control::new(device, (1.0, 0.0), -0.25)?.look()?;
        assert_eq!((report.status, report.t, report.h), (Status::Running, 1.0, -0.25), "{name}");
        assert_eq!(Control::new(device, (0.0, 1.0), 7.0)?.look()?.h, 1.0, "{name}");
        for (span, first) in [((0.0, 1.0), -0.1), ((1.0, 1.0), 0.1), ((0.0, 1.0), f32::NAN)] {
            let message = Control::new(device, span, first).unwrap_err().to_string();
            assert!(message.contains("a span and a first step of the same sign"), "{name}: {message}");
        }
    }
    Ok(())
}

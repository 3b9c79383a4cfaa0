//! Samples of a velocity network: noise at t = 0, carried to t = 1.
//!
//! Sample i starts from element i of stream [`Stream::Sampling`], so the first n samples do not depend on how many are
//! drawn. All rows share one t, so the modulation path is evaluated once for a whole chunk of rows.

use crate::device::Isa;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::flow::sampler::{Method, sample};
use crate::nn::mlp::Keep;
use crate::nn::{Form, Mlp, Params};
use crate::ops::elementwise::cast;
use crate::rng::{Draw, Stream};
use crate::tensor::Tensor;

/// Rows that go through the network together: large enough to fill the products, small enough for the cache.
const CHUNK: usize = 1024;

/// How samples are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// How many.
    pub count: usize,
    /// Steps of the solver.
    pub steps: usize,
    /// The solver.
    pub method: Method,
    /// Decides the noise.
    pub seed: u64,
    /// The class of all samples of a conditional network; without it, sample i is of class i modulo their number.
    pub class: Option<usize>,
}

impl Default for Sampling {
    /// A thousand samples by 32 steps of Heun's method, whose error is far below that of any trained network.
    fn default() -> Self {
        Self { count: 1000, steps: 32, method: Method::Heun, seed: 0, class: None }
    }
}

/// Draws samples in the space of the network, row by row: (count, D).
///
/// # Errors
/// No sample, no step, a class that the network does not have.
pub fn sample_rows<X: FloatX>(net: &Mlp, params: &Params<X>, how: &Sampling) -> Result<Vec<f32>> {
    let (d, classes) = (net.config().channels, net.config().cond);
    if how.count == 0 {
        return Err(Error::Usage("sampling: 0 samples were asked for; ask for at least 1".into()));
    }
    if let Some(class) = how.class.filter(|class| *class >= classes) {
        return Err(Error::Usage(format!(
            "sampling: class {class} was asked for, but the network has {classes} classes"
        )));
    }
    let device = params.flat().device();
    let noise = Draw::new(how.seed, Stream::Sampling, 0);
    let mut samples = Vec::with_capacity(how.count * d);
    for first in (0..how.count).step_by(CHUNK) {
        let rows = CHUNK.min(how.count - first);
        let mut values = vec![0.0; rows * d];
        Isa::detect().run(
            #[inline(always)]
            |arch| noise.fill_normal_rows(arch, &mut values, d, 0, |i| ((first + i) as u64, 0)),
        );
        let x = Tensor::<f32>::from_f32(device, [rows, d], &values)?;
        let class = |i: usize| how.class.unwrap_or((first + i) % classes.max(1));
        let x = sample(x, how.method, how.steps, (0.0, 1.0), |x, t| {
            cast(&velocity(net, params, x, t as f32, class)?)
        })?;
        samples.extend_from_slice(&x.on_host()?);
    }
    Ok(samples)
}

/// `x: (N, D)`, one t for all rows → `v: (N, D)`.
fn velocity<X: FloatX>(
    net: &Mlp,
    params: &Params<X>,
    x: &Tensor<f32>,
    t: f32,
    class: impl Fn(usize) -> usize,
) -> Result<Tensor<X>> {
    let (device, rows, classes) = (x.device(), x.rows_cols().0, net.config().cond);
    let modulations = if classes == 0 {
        let t = Tensor::from_f32(device, [1], &[t])?;
        net.modulations(params, Form::Direct, &t, rows, None)?
    } else {
        let t = Tensor::from_f32(device, [rows], &vec![t; rows])?;
        let mut cond = vec![0.0; rows * classes];
        cond.chunks_exact_mut(classes).enumerate().for_each(|(i, row)| row[class(i)] = 1.0);
        let cond = Tensor::from_f32(device, [rows, classes], &cond)?;
        net.modulations(params, Form::Direct, &t, 1, Some(cond))?
    };
    Ok(net.forward(params, cast(x)?, modulations, Keep::Nothing)?.0)
}

/// Turns rows of two values into points; a last odd value is left out.
pub fn points(rows: &[f32]) -> Vec<[f32; 2]> {
    rows.chunks_exact(2).map(|row| [row[0], row[1]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::nn::MlpConfig;

    fn network(cond: usize) -> (Mlp, Params<f32>) {
        let net =
            Mlp::new(MlpConfig { channels: 3, width: 16, depth: 2, cond, post_norm: false, time_scale: 1.0 })
                .unwrap();
        // An untrained network is zero everywhere: shake all weights.
        let mut values = net.layout().initial_values(1);
        let mut noise = vec![0.0; values.len()];
        Isa::detect().run(|arch| Draw::new(1, Stream::Init, 9).fill_normal(arch, &mut noise, 0, 0));
        values.iter_mut().zip(&noise).for_each(|(x, n)| *x += 0.1 * n);
        let device = Device::cpu_with_threads(2).unwrap();
        let params = Params::from_flat(&device, net.layout().clone(), &values).unwrap();
        (net, params)
    }

    #[test]
    fn the_first_samples_do_not_depend_on_how_many_are_drawn() {
        let (net, params) = network(0);
        let draw = |count| {
            let how = Sampling { count, steps: 4, ..Default::default() };
            sample_rows(&net, &params, &how).unwrap()
        };
        let many = draw(CHUNK + 300);
        for count in [1, 7, CHUNK, CHUNK + 1] {
            assert_eq!(draw(count), many[..count * 3], "{count} samples");
        }
    }

    #[test]
    fn samples_move_and_converge_with_the_steps() {
        let (net, params) = network(0);
        let at = |method, steps| {
            let how = Sampling { count: 50, steps, method, ..Default::default() };
            sample_rows(&net, &params, &how).unwrap()
        };
        let exact = at(Method::Rk4, 64);
        let error = |x: Vec<f32>| x.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let (coarse, fine) = (error(at(Method::Euler, 8)), error(at(Method::Euler, 64)));
        assert!(coarse > 1e-3 && fine < 0.25 * coarse, "{coarse} {fine}");
        assert!(error(at(Method::Heun, 32)) < 1e-3);
    }

    #[test]
    fn classes_are_taken_in_turn_unless_one_is_named() {
        let (net, params) = network(2);
        let draw = |class| {
            let how = Sampling { count: 4, steps: 4, class, ..Default::default() };
            sample_rows(&net, &params, &how).unwrap()
        };
        let (turns, zeros, ones) = (draw(None), draw(Some(0)), draw(Some(1)));
        assert_ne!(zeros, ones);
        for (i, row) in turns.chunks_exact(3).enumerate() {
            let expected = if i % 2 == 0 { &zeros } else { &ones };
            assert_eq!(row, &expected[i * 3..i * 3 + 3]);
        }
        let how = Sampling { class: Some(2), ..Default::default() };
        assert!(sample_rows(&net, &params, &how).unwrap_err().to_string().contains("has 2 classes"));
    }
}

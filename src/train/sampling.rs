//! Samples of a velocity network: noise at t = 0, carried to t = 1.
//!
//! Sample i starts from element i of stream [`Stream::Sampling`], so the first n samples do not depend on how many are
//! drawn. All rows share one t, so the modulation path is evaluated once for a whole chunk of rows.

use crate::device::{Device, Isa};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::flow::sampler::{Method, sample};
use crate::nn::{Condition, Conditioning, Params, VelocityNet};
use crate::ops::elementwise::cast;
use crate::ops::embedding::Labels;
use crate::rng::{Draw, Stream};
use crate::tensor::Tensor;

/// Rows, or tokens of a DiT, that go through the network together: large enough to fill the products, small enough for the cache.
const CHUNK: usize = 1024;
/// Samples of a DiT that go through it together at least: the products of its modulation have a row for each.
const FEWEST: usize = 16;

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
pub fn sample_rows<X: FloatX>(net: &VelocityNet, params: &Params<X>, how: &Sampling) -> Result<Vec<f32>> {
    let d = net.data_width();
    let classes = match net.conditioning() {
        Conditioning::Nothing => 0,
        Conditioning::Vectors(classes) | Conditioning::Classes { classes, .. } => classes,
    };
    let chunk = (CHUNK / net.tokens()).max(FEWEST);
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
    for first in (0..how.count).step_by(chunk) {
        let rows = chunk.min(how.count - first);
        let mut values = vec![0.0; rows * d];
        Isa::detect().run(
            #[inline(always)]
            |arch| noise.fill_normal_rows(arch, &mut values, d, 0, |i| ((first + i) as u64, 0)),
        );
        let x = Tensor::<f32>::from_f32(device, [rows, d], &values)?;
        let class = |i: usize| how.class.unwrap_or((first + i) % classes.max(1));
        let classes: Vec<usize> = (0..rows).map(class).collect();
        let told = Told::new(net, device, &classes)?;
        let x = sample(x, how.method, how.steps, (0.0, 1.0), |x, t| {
            let t = Tensor::from_f32(device, [1], &[t as f32])?;
            cast(&net.velocity_at(params, cast(x)?, &t, told.condition())?)
        })?;
        samples.extend_from_slice(&x.on_host()?);
    }
    Ok(samples)
}

/// The classes of some samples as a network takes them.
struct Told<X: FloatX> {
    vectors: Option<Tensor<X>>,
    labels: Option<Labels>,
}

impl<X: FloatX> Told<X> {
    fn new(net: &VelocityNet, device: &Device, classes: &[usize]) -> Result<Self> {
        let (mut vectors, mut labels) = (None, None);
        match net.conditioning() {
            Conditioning::Nothing => {}
            Conditioning::Vectors(width) => {
                let mut one_hot = vec![0.0; classes.len() * width];
                one_hot.chunks_exact_mut(width).zip(classes).for_each(|(row, class)| row[*class] = 1.0);
                vectors = Some(Tensor::from_f32(device, [classes.len(), width], &one_hot)?);
            }
            Conditioning::Classes { .. } => {
                let numbers: Vec<_> = classes.iter().map(|class| Some(*class as u32)).collect();
                labels = Some(net.labels(device, &numbers)?);
            }
        }
        Ok(Self { vectors, labels })
    }

    fn condition(&self) -> Condition<'_, X> {
        Condition { vectors: self.vectors.as_ref(), labels: self.labels.as_ref(), image: None }
    }
}

/// Turns rows of two values into points; a last odd value is left out.
pub fn points(rows: &[f32]) -> Vec<[f32; 2]> {
    rows.chunks_exact(2).map(|row| [row[0], row[1]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{MlpConfig, VelocityConfig};

    fn network(cond: usize) -> (VelocityNet, Params<f32>) {
        let config = MlpConfig { channels: 3, width: 16, depth: 2, cond, post_norm: false, time_scale: 1.0 };
        let net = VelocityNet::new(VelocityConfig::Mlp(config)).unwrap();
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

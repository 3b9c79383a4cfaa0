//! Samples of a velocity network: noise at t = 0, carried to t = 1.
//!
//! Sample i starts from element i of stream [`Stream::Sampling`], so the first n samples do not depend on how many are drawn; only
//! `dopri5` chooses its steps for a thousand samples together. All rows share one t, so the modulation path is evaluated once for a
//! whole chunk of rows, or once for each class in it: rows of a chunk are in the order of their classes.

use std::sync::Arc;

use crate::device::{Device, Isa};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::flow::guidance::Guidance;
use crate::flow::sampler::sde::{Sde, sample_sde};
use crate::flow::sampler::{Cost, Grid, Method, Solver, Time, Tolerance, sample};
use crate::nn::{Params, VelocityNet};
use crate::ops::elementwise::cast;
use crate::ops::flow_path::Rows;
use crate::rng::{Draw, Stream};
use crate::tensor::Tensor;
use crate::train::field::{Field, Label, no_class};

/// Rows, or tokens of a DiT, that go through the network together: large enough to fill the products, small enough for the cache.
const CHUNK: usize = 1024;
/// Samples of a DiT that go through it together at least: the products of its modulation have a row for each.
const FEWEST: usize = 16;

/// How samples are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// How many.
    pub count: usize,
    /// Steps of the solver.
    pub steps: usize,
    /// The solver.
    pub method: Method,
    /// Moves the steps towards one end: see [`Grid::Shifted`].
    pub shift: Option<f64>,
    /// The times of the steps, instead of a number of them.
    pub times: Option<Vec<f64>>,
    /// What `dopri5` is held to.
    pub tolerance: Tolerance,
    /// Draws random paths instead of solving the ODE.
    pub sde: Option<Sde>,
    /// Guides by a second velocity: that without a class, or a weaker network's.
    pub guidance: Option<Guidance>,
    /// Decides the noise.
    pub seed: u64,
    /// The class of all samples of a conditional network; without it, sample i is of the class that `beside` has for it, or else of
    /// class i modulo their number.
    pub class: Option<usize>,
    /// What stands beside the samples, for a network with a spatial condition.
    pub beside: Option<Arc<Shown>>,
}

/// What a network with a spatial condition is shown beside each sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Samples.
    pub count: usize,
    /// (count, channels·H·W), in the space of the network.
    pub images: Vec<f32>,
    /// The class of each sample, where it is known.
    pub classes: Option<Vec<usize>>,
}

impl Default for Sampling {
    /// A thousand samples by 32 steps of Heun's method, whose error is far below that of any trained network.
    fn default() -> Self {
        Self {
            count: 1000,
            steps: 32,
            method: Method::Heun,
            shift: None,
            times: None,
            tolerance: Tolerance::default(),
            sde: None,
            guidance: None,
            seed: 0,
            class: None,
            beside: None,
        }
    }
}

impl Sampling {
    /// Returns the solver and its grid.
    fn solver(&self) -> Solver {
        let grid = match (&self.times, self.shift) {
            (Some(times), _) => Grid::Listed(times.clone()),
            (None, Some(shift)) => Grid::Shifted { steps: self.steps, shift },
            (None, None) => Grid::Uniform(self.steps),
        };
        Solver { method: self.method, grid, tolerance: self.tolerance }
    }
}

/// A network and its parameters.
pub type Network<'a, X> = (&'a VelocityNet, &'a Params<X>);

/// Draws samples in the space of the network, row by row: (count, D).
///
/// # Errors
/// See [`draw_samples`].
pub fn sample_rows<X: FloatX>(net: &VelocityNet, params: &Params<X>, how: &Sampling) -> Result<Vec<f32>> {
    Ok(draw_samples((net, params), None, how)?.0)
}

/// The same with what each sample cost; `weak` is the network of autoguidance. Where chunks of samples cost different numbers of
/// evaluations, it is the most.
///
/// # Errors
/// No sample, no step, a class that the network does not have, guidance of a network that has nothing to be guided by; an adaptive
/// solve that leads nowhere.
pub fn draw_samples<X: FloatX>(
    strong: Network<'_, X>,
    weak: Option<Network<'_, X>>,
    how: &Sampling,
) -> Result<(Vec<f32>, Cost)> {
    check(strong.0, weak.map(|weak| weak.0), how)?;
    let (d, classes) = (strong.0.data_width(), strong.0.conditioning().classes());
    let mut samples = vec![0.0; how.count * d];
    let chunk = (CHUNK / strong.0.tokens()).max(FEWEST);
    let (mut first, mut cost) = (0, Cost::default());
    while first < how.count {
        let chunk = Chunk::new(first, how.count - first, chunk, classes, how);
        let (x, of_chunk) = chunk.draw(strong, weak, how)?;
        for (row, values) in x.chunks_exact(d).enumerate() {
            samples[chunk.sample(row) * d..][..d].copy_from_slice(values);
        }
        if of_chunk.evaluations > cost.evaluations {
            cost = of_chunk;
        }
        first += chunk.rows();
    }
    Ok((samples, cost))
}

fn check(net: &VelocityNet, weak: Option<&VelocityNet>, how: &Sampling) -> Result<()> {
    let (d, classes) = (net.data_width(), net.conditioning().classes());
    let refused = |why: String| Err(Error::Usage(why));
    if how.count == 0 {
        return refused("sampling: 0 samples were asked for; ask for at least 1".into());
    }
    if let Some(class) = how.class.filter(|class| *class >= classes) {
        return Err(no_class(class, classes));
    }
    if how.sde.is_some() && how.method != Method::Euler {
        return refused(
            "a stochastic sampler takes steps of Euler and Maruyama: ask for method `euler`".into(),
        );
    }
    if let Some(Shown { count, images, classes: known }) = how.beside.as_deref() {
        let labelled = known.as_ref().map_or(how.count, Vec::len);
        if (*count, labelled) != (how.count, how.count) || images.len() % how.count != 0 {
            return Err(Error::argument(
                "sampling",
                "beside",
                format!("an image and at most one class for each of {} samples", how.count),
                format!("{count} images of {} values, and {labelled} classes", images.len()),
            ));
        }
        if let Some(class) = known.iter().flatten().find(|class| classes > 0 && **class >= classes) {
            return Err(no_class(*class, classes));
        }
    }
    match (&how.guidance, weak) {
        (Some(guidance), weak) => {
            guidance.check()?;
            if weak.is_none() && classes == 0 {
                return refused(
                    "guidance needs a network with classes, or a weaker network; this one was trained without conditions"
                        .into(),
                );
            }
        }
        (None, Some(_)) => return refused("a weaker network guides by a weight: name one".into()),
        (None, None) => {}
    }
    match weak.map(|weak| (weak.data_width(), weak.conditioning().classes())) {
        Some(found) if found != (d, classes) => refused(format!(
            "the weaker network has {} channels and {} classes, the one that it guides {d} and {classes}",
            found.0, found.1
        )),
        _ => Ok(()),
    }
}

/// Samples that go through the network together, in the order of their classes.
struct Chunk<'a> {
    /// Number of the first sample.
    first: usize,
    /// Classes, each of `share` rows; 1 where all rows have the same, or each its own.
    groups: usize,
    share: usize,
    /// Classes of the network that samples take in turn; 1 where they do not.
    turn: usize,
    classes: Classes<'a>,
}

/// Which classes the samples of a chunk are of.
#[derive(Clone, Copy)]
enum Classes<'a> {
    InTurn,
    All(usize),
    /// The class of each sample.
    Each(&'a [usize]),
}

impl<'a> Chunk<'a> {
    /// Takes some of the `rest` samples from `first` on: whole turns of classes, and at last what is no whole turn.
    fn new(first: usize, rest: usize, chunk: usize, classes: usize, how: &'a Sampling) -> Self {
        let known = how.beside.as_deref().and_then(|shown| shown.classes.as_deref());
        let (turn, of) = match (how.class, known) {
            (Some(class), _) => (1, Classes::All(class)),
            (None, Some(each)) if classes > 0 => (1, Classes::Each(each)),
            (None, _) => (classes.max(1), Classes::InTurn),
        };
        let most = rest.min(chunk.max(turn));
        let (groups, share) = if most < turn { (most, 1) } else { (turn, most / turn) };
        Self { first, groups, share, turn, classes: of }
    }

    fn rows(&self) -> usize {
        self.groups * self.share
    }

    /// Returns the number of a row's sample.
    fn sample(&self, row: usize) -> usize {
        self.first + row % self.share * self.groups + row / self.share
    }

    /// Returns how rows are numbered for their noise on the way: (turn, place in it), whatever the chunks.
    fn numbers(&self) -> Rows {
        let first = (self.first / self.turn) as u64;
        Rows { first, samples: self.share, replicas: self.groups, share: 1 }
    }

    /// Returns the labels, and how many rows have each.
    fn labels(&self) -> (Vec<Label>, usize) {
        match self.classes {
            Classes::InTurn => ((0..self.groups).map(Label::Class).collect(), self.share),
            Classes::All(class) => (vec![Label::Class(class)], self.share),
            Classes::Each(of) => {
                (of[self.first..][..self.share].iter().copied().map(Label::Class).collect(), 1)
            }
        }
    }

    /// Returns what stands beside the rows, on `device`.
    fn beside<X: FloatX>(&self, device: &Device, how: &Sampling) -> Result<Option<Tensor<X>>> {
        let Some(shown) = how.beside.as_deref() else { return Ok(None) };
        let width = shown.images.len() / how.count;
        let rows = (0..self.rows()).flat_map(|row| &shown.images[self.sample(row) * width..][..width]);
        let images: Vec<f32> = rows.copied().collect();
        Tensor::from_f32(device, [self.rows(), width], &images).map(Some)
    }

    fn draw<X: FloatX>(
        &self,
        strong: Network<'_, X>,
        weak: Option<Network<'_, X>>,
        how: &Sampling,
    ) -> Result<(Vec<f32>, Cost)> {
        let (device, d, (labels, share)) = (strong.1.flat().device(), strong.0.data_width(), self.labels());
        let mut noise = vec![0.0; self.rows() * d];
        let draw = Draw::new(how.seed, Stream::Sampling, 0);
        Isa::detect().run(
            #[inline(always)]
            |arch| draw.fill_normal_rows(arch, &mut noise, d, 0, |row| (self.sample(row) as u64, 0)),
        );
        let x = Tensor::<f32>::from_f32(device, [self.rows(), d], &noise)?;
        let field = Field::new(strong.0, strong.1, &labels, share, self.beside(device, how)?)?;
        // Only guidance asks for no class, which not every network knows.
        let guided = match (&how.guidance, weak) {
            (None, _) => None,
            (Some(guidance), Some((net, params))) => {
                Some((guidance, Field::new(net, params, &labels, share, self.beside(device, how)?)?))
            }
            (Some(guidance), None) => {
                let none = vec![Label::Null; labels.len()];
                Some((guidance, Field::new(strong.0, strong.1, &none, share, self.beside(device, how)?)?))
            }
        };
        let velocity = |x: &Tensor<f32>, time: Time<'_>| -> Result<Tensor<f32>> {
            let of = |field: &Field<'_, X>| field.velocity(x, time.tensor(device)?);
            match &guided {
                Some((guidance, other)) => {
                    guidance.velocity(device, [self.rows(), d], time, || of(&field), || of(other))
                }
                None => cast(&of(&field)?),
            }
        };
        let solver = how.solver();
        let (x, cost) = match &how.sde {
            Some(sde) => {
                let noise = Draw::new(how.seed, Stream::SamplerNoise, 0);
                sample_sde(x, sde, &solver.grid, (noise, self.numbers()), velocity)?
            }
            None => sample(x, &solver, velocity)?,
        };
        Ok((x.to_f32_vec()?, cost))
    }
}

/// Turns rows of two values into points; a last odd value is left out.
pub fn points(rows: &[f32]) -> Vec<[f32; 2]> {
    rows.chunks_exact(2).map(|row| [row[0], row[1]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::guidance::Form;
    use crate::flow::sampler::sde::{Diffusion, LastStep};
    use crate::nn::MlpConfig;
    use crate::nn::VelocityConfig;

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

    #[test]
    fn random_paths_do_not_depend_on_how_many_are_drawn_either() {
        let sde = Sde { diffusion: Diffusion::Sigma, scale: 1.0, last: LastStep::Tweedie };
        for classes in [0, 3] {
            let (net, params) = network(classes);
            let draw = |count| {
                let how =
                    Sampling { count, steps: 3, method: Method::Euler, sde: Some(sde), ..Default::default() };
                sample_rows(&net, &params, &how).unwrap()
            };
            let many = draw(CHUNK + 300);
            for count in [1, 2, 7, CHUNK - 1, CHUNK + 1] {
                assert_eq!(draw(count), many[..count * 3], "{count} samples, {classes} classes");
            }
        }
    }

    #[test]
    fn guidance_goes_from_no_class_through_the_class_and_beyond() {
        let (net, params) = network(2);
        let draw = |class, guidance| {
            let how = Sampling { count: 5, steps: 4, class: Some(class), guidance, ..Default::default() };
            sample_rows(&net, &params, &how).unwrap()
        };
        let by = |w| Some(Guidance::plain(w, Form::W));
        assert_eq!(draw(0, by(1.0)), draw(0, None));
        assert_eq!(draw(0, by(0.0)), draw(1, by(0.0)));
        assert_ne!(draw(0, by(2.0)), draw(0, None));
        let early = Guidance { interval: (0.9, 1.0), ..Guidance::plain(2.0, Form::W) };
        assert_ne!(draw(0, Some(early)), draw(0, by(2.0)));
        let still = Guidance { zero: Some(4), ..Guidance::plain(2.0, Form::W) };
        assert_eq!(draw(0, Some(still)), draw(1, Some(still)), "nothing moves");
    }

    #[test]
    fn guidance_needs_something_to_guide_by() {
        let refused = |classes, how: Sampling| {
            let (net, params) = network(classes);
            sample_rows(&net, &params, &how).unwrap_err().to_string()
        };
        let guidance = Some(Guidance::plain(2.0, Form::W));
        let message = refused(0, Sampling { guidance, ..Default::default() });
        assert!(message.contains("trained without conditions"), "{message}");
        let how = Sampling { method: Method::Dopri5, guidance, ..Default::default() };
        let zero = Some(Guidance { zero: Some(1), ..Guidance::plain(2.0, Form::W) });
        let message = refused(2, Sampling { guidance: zero, ..how });
        assert!(message.contains("needs a fixed grid"), "{message}");
        // Autoguidance: a weaker network of other channels, or without a weight.
        let ((net, params), (other, of_other)) = (network(0), network(2));
        let (strong, weak) = ((&net, &params), Some((&other, &of_other)));
        let how = Sampling { count: 1, ..Default::default() };
        let message = draw_samples(strong, Some(strong), &how).unwrap_err().to_string();
        assert!(message.contains("name one"), "{message}");
        let message =
            draw_samples(strong, weak, &Sampling { guidance, ..how.clone() }).unwrap_err().to_string();
        assert!(message.contains("3 channels and 2 classes"), "{message}");
        let itself = draw_samples(strong, Some(strong), &Sampling { guidance, ..how.clone() }).unwrap().0;
        let alone = sample_rows(&net, &params, &how).unwrap();
        assert!(itself.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-5), "{itself:?} {alone:?}");
    }
}

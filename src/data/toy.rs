//! Six two-dimensional distributions to learn on, and the closed form of those that are mixtures.
//!
//! Every sample is divided by one scalar, the standard deviation over all its entries with the pooled mean removed
//! from the deviation but not from the samples. That is the convention of the reference implementation of flow
//! priors (Aligning Latent Spaces with Flow Priors, 2506.05240), so moons and the spiral stay off-centre. The
//! reference measures the constant on ten million draws; here it is integrated exactly:
//! `std² = E[x² + y²]/2 − ((E[x] + E[y])/2)²`.

use std::f64::consts::{PI, TAU};
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::rng::Draw;

/// Names a toy distribution over the plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Toy {
    /// Five Gaussians of deviation 0.3 on a circle of radius 3.
    Gaussians,
    /// Sixteen Gaussians of deviation 0.1 on a square grid of spacing 1.
    Grid,
    /// Two interleaved half circles of radius 2.
    Moons,
    /// Three concentric circles with radial noise.
    Rings,
    /// One arm of one and a half turns.
    Spiral,
    /// An Archimedean spiral of three turns from the centre.
    SwissRoll,
}

/// The deviation of the Gaussian noise that all but `Gaussians` carry, in raw units.
const NOISE: f64 = 0.1;
const RING_RADII: [f64; 3] = [4.0 / 3.0, 8.0 / 3.0, 4.0];
const GRID: [f64; 4] = [-1.5, -0.5, 0.5, 1.5];

impl Toy {
    /// Lists all of them, in the order of the reference.
    pub const ALL: [Self; 6] =
        [Self::Gaussians, Self::Grid, Self::Moons, Self::Rings, Self::Spiral, Self::SwissRoll];

    /// Returns the name a user types.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gaussians => "gaussians",
            Self::Grid => "grid",
            Self::Moons => "moons",
            Self::Rings => "rings",
            Self::Spiral => "spiral",
            Self::SwissRoll => "swissroll",
        }
    }

    /// Returns the scalar that raw samples are divided by.
    pub fn std(self) -> f64 {
        let (second, mean) = match self {
            Self::Gaussians => (4.5 + 0.3 * 0.3, 0.0),
            Self::Grid => (1.25 + NOISE * NOISE, 0.0),
            // Upper half (2c, 2s), lower half (2c + 2, 2s − ½); E[s] = ±2/π.
            Self::Moons => (0.5 * (4.0 + 0.5 * (2.0 + 2.25 + 4.0 / PI)) + NOISE * NOISE, 0.5 * (1.0 - 0.25)),
            // Radial noise only: E[(r + n)²]/2.
            Self::Rings => (0.5 * (mean_square(RING_RADII) + NOISE * NOISE), 0.0),
            // r = ½ + 3u/2 and θ = 3πu: E[r²] = 7/4, E[x] = −1/(3π²), E[y] = 5/(6π).
            Self::Spiral => (0.5 * 1.75 + NOISE * NOISE, 0.5 * (5.0 / (6.0 * PI) - 1.0 / (3.0 * PI * PI))),
            // r = t/π and θ = t, t = 6πu: E[r²] = 12, E[x] = 0, E[y] = −1/π.
            Self::SwissRoll => (6.0 + NOISE * NOISE, -0.5 / PI),
        };
        (second - mean * mean).sqrt()
    }

    /// Draws number `sample` of the draw's step: a point (x, y) in normalised units.
    ///
    /// Which mode, moon or ring it belongs to is drawn too, so that a batch has no order and every sample the same
    /// distribution; the reference gives each part a fixed share of consecutive samples instead.
    pub fn sample(self, draw: Draw, sample: u64) -> [f32; 2] {
        let [angle, part, a, b] = draw.words(sample, 0, 0);
        let raw = self.raw(unit(angle), part, normal_pair(a, b));
        raw.map(|x| (x / self.std()) as f32)
    }

    /// Places u in [0, 1), a random word and two standard normal numbers in the plane.
    fn raw(self, u: f64, part: u32, [n1, n2]: [f64; 2]) -> [f64; 2] {
        let (at, noise) = match self {
            Self::Gaussians => (polar(3.0, TAU * pick(part, 5) as f64 / 5.0), 0.3),
            Self::Grid => {
                let cell = pick(part, 16);
                ([GRID[cell / 4], GRID[cell % 4]], NOISE)
            }
            Self::Moons if pick(part, 2) == 0 => (polar(2.0, PI * u), NOISE),
            Self::Moons => {
                let [x, y] = polar(2.0, PI + PI * u);
                ([x + 2.0, y - 0.5], NOISE)
            }
            Self::Rings => (polar(RING_RADII[pick(part, 3)] + NOISE * n1, TAU * u), 0.0),
            Self::Spiral => (polar(0.5 + 1.5 * u, 3.0 * PI * u), NOISE),
            Self::SwissRoll => (polar(6.0 * u, 6.0 * PI * u), NOISE),
        };
        [at[0] + noise * n1, at[1] + noise * n2]
    }

    /// Returns the distribution as a mixture of Gaussians in normalised units, where it is one.
    pub fn mixture(self) -> Option<Mixture> {
        let (means, noise): (Vec<[f64; 2]>, f64) = match self {
            Self::Gaussians => ((0..5).map(|k| polar(3.0, TAU * k as f64 / 5.0)).collect(), 0.3),
            Self::Grid => (GRID.iter().flat_map(|x| GRID.map(|y| [*x, y])).collect(), NOISE),
            _ => return None,
        };
        let std = self.std();
        let weights = vec![1.0 / means.len() as f64; means.len()];
        let means = means.iter().map(|m| m.map(|x| x / std)).collect();
        Some(Mixture { means, std: noise / std, weights })
    }

    /// Returns the smallest mean matching loss per dimension that any network can reach: the conditional variance
    /// of the target velocity given (x_t, t), integrated numerically with the exact velocity of the mixture.
    pub fn loss_floor(self) -> Option<f64> {
        match self {
            Self::Gaussians => Some(1.2749),
            Self::Grid => Some(1.4069),
            _ => None,
        }
    }
}

impl fmt::Display for Toy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Toy {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|t| t.name() == s).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join("`, `");
            Error::Usage(format!("unknown toy distribution `{s}`: expected `{names}`"))
        })
    }
}

/// A mixture of isotropic Gaussians in the plane, with one standard deviation.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// The centres.
    pub means: Vec<[f64; 2]>,
    /// The standard deviation of every component.
    pub std: f64,
    /// The share of each component; they sum to 1.
    pub weights: Vec<f64>,
}

impl Mixture {
    /// Returns ln p(y) = ln Σ w_k exp(−‖y − m_k‖² / 2σ²) − ln 2πσ², by log-sum-exp.
    pub fn log_density(&self, y: [f64; 2]) -> f64 {
        let scale = -0.5 / (self.std * self.std);
        let terms = self.means.iter().zip(&self.weights).map(|(m, w)| {
            let (dx, dy) = (y[0] - m[0], y[1] - m[1]);
            w.ln() + scale * (dx * dx + dy * dy)
        });
        let largest = terms.clone().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = terms.map(|t| (t - largest).exp()).sum();
        largest + sum.ln() - (TAU * self.std * self.std).ln()
    }
}

fn polar(radius: f64, angle: f64) -> [f64; 2] {
    [radius * angle.cos(), radius * angle.sin()]
}

fn mean_square(xs: [f64; 3]) -> f64 {
    xs.iter().map(|x| x * x).sum::<f64>() / xs.len() as f64
}

/// Maps a word to 0..n with the same chance for each, to 2⁻²⁸.
fn pick(word: u32, n: u64) -> usize {
    ((word as u64 * n) >> 32) as usize
}

/// Maps a word to [0, 1) with all its 32 bits.
fn unit(word: u32) -> f64 {
    word as f64 / 4_294_967_296.0
}

/// Maps two words to two independent standard normal numbers (Box and Muller, in f64; largest magnitude 6.7).
fn normal_pair(a: u32, b: u32) -> [f64; 2] {
    let radius = (-2.0 * (1.0 - unit(a)).ln()).sqrt();
    polar(radius, TAU * unit(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    const DRAWS: u64 = 1_000_000;

    fn points(toy: Toy) -> impl Iterator<Item = [f64; 2]> {
        let draw = Draw::new(11, Stream::Toy, 0);
        (0..DRAWS).map(move |i| toy.sample(draw, i).map(f64::from))
    }

    /// Measured by others on four million draws of each sampler; good to about 3e-4.
    #[test]
    fn each_scalar_std_agrees_with_the_published_table() {
        let table = [2.142429, 1.122497, 1.8034, 2.0379, 0.9334, 2.4467];
        for (toy, expected) in Toy::ALL.into_iter().zip(table) {
            assert!((toy.std() / expected - 1.0).abs() < 5e-4, "{toy}: {} against {expected}", toy.std());
        }
    }

    #[test]
    fn a_million_draws_have_unit_deviation() {
        for toy in Toy::ALL {
            let (mut sum, mut square) = (0.0, 0.0);
            points(toy).flatten().for_each(|x| {
                sum += x;
                square += x * x;
            });
            let n = 2.0 * DRAWS as f64;
            let std = (square / n - (sum / n) * (sum / n)).sqrt();
            // The deviation of a standard deviation from n draws is at most √(kurtosis − 1) / 2√n = 5e-4.
            assert!((std - 1.0).abs() < 1.5e-3, "{toy}: {std}");
        }
    }

    /// The modes are ten deviations apart, so the entropy is ln K + ln 2πeσ²: 0.5155 and 0.7744 nats.
    #[test]
    fn true_samples_have_the_entropy_as_mean_nll() {
        for (toy, expected) in [(Toy::Gaussians, 0.5155), (Toy::Grid, 0.7744)] {
            let mixture = toy.mixture().unwrap();
            let nll = -points(toy).map(|y| mixture.log_density(y)).sum::<f64>() / DRAWS as f64;
            assert!((nll - expected).abs() < 4e-3, "{toy}: {nll} against {expected}"); // 4 standard errors
        }
    }

    #[test]
    fn a_mixture_density_integrates_to_one() {
        for toy in [Toy::Gaussians, Toy::Grid] {
            let mixture = toy.mixture().unwrap();
            let h = 0.01;
            let axis = || (-300..300).map(move |i| (i as f64 + 0.5) * h);
            let mass: f64 =
                axis().flat_map(|x| axis().map(move |y| [x, y])).map(|y| mixture.log_density(y).exp()).sum();
            assert!((mass * h * h - 1.0).abs() < 1e-6, "{toy}: {}", mass * h * h);
        }
    }

    #[test]
    fn known_points_have_the_known_density() {
        let mixture = Toy::Gaussians.mixture().unwrap();
        let mode = mixture.means[0];
        assert!((mixture.log_density(mode) - 0.4845).abs() < 1e-4);
        assert!((mixture.log_density([1.5003, 0.1]) + 0.0255).abs() < 1e-4);
        assert!(mixture.log_density([1e3, 1e3]).is_finite());
    }

    #[test]
    fn parts_have_equal_shares_and_no_order() {
        let draw = Draw::new(3, Stream::Toy, 9);
        let outer = Toy::Rings.std().recip() as f32 * 10.0 / 3.0;
        let in_outer = |i: u64| {
            let [x, y] = Toy::Rings.sample(draw, i);
            x.hypot(y) > outer
        };
        let first = (0..3000).filter(|i| in_outer(*i)).count();
        let last = (27_000..30_000).filter(|i| in_outer(*i)).count();
        assert!((900..1100).contains(&first) && (900..1100).contains(&last), "{first} {last}");
    }

    #[test]
    fn names_read_back() {
        for toy in Toy::ALL {
            assert_eq!(toy.name().parse::<Toy>().unwrap(), toy);
        }
        let message = "circle".parse::<Toy>().unwrap_err().to_string();
        assert!(message.contains("`circle`") && message.contains("`swissroll`"), "{message}");
    }
}

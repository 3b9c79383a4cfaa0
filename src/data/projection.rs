//! Fixed maps from wide features to the width a prior is trained at: `y = W·(scale·(x − shift))`.
//!
//! * random: entries N(0, 1/d_in) from Philox, stream [`Stream::Projection`], so that inputs of unit variance give
//!   outputs of unit variance (2506.05240, section 4.1; the reference draws other numbers from its own generator);
//! * pool: averages of neighbouring dimensions, bin i covers ⌊i·d/D⌋ .. ⌈(i+1)·d/D⌉;
//! * pca, whiten: the leading eigenvectors of the covariance, for `whiten` divided by the square root of their
//!   eigenvalues.
//!
//! The matrix is stored with the data and never made again from a seed.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use crate::data::array::Array;
use crate::data::formats::safetensors::File;
use crate::data::manifest::{ProjectionInfo, checksum};
use crate::data::map::Map;
use crate::data::pca::Covariance;
use crate::device::Isa;
use crate::error::{Error, Result};
use crate::rng::{Draw, Stream};

/// The name of the matrix's file in a data set folder.
pub const FILE: &str = "projection.safetensors";

/// What sort of map a projection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Only shift and scale.
    Identity,
    /// A Gaussian matrix.
    Random,
    /// Averages of neighbours.
    Pool,
    /// Principal components.
    Pca,
    /// Principal components of unit variance.
    Whiten,
}

impl Kind {
    /// Returns the name a user types.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Random => "random",
            Self::Pool => "pool",
            Self::Pca => "pca",
            Self::Whiten => "whiten",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        [Self::Identity, Self::Random, Self::Pool, Self::Pca, Self::Whiten]
            .into_iter()
            .find(|k| k.name() == s)
            .ok_or_else(|| {
                Error::Usage(format!(
                    "unknown projection `{s}`: expected `random`, `pool`, `pca` or `whiten`"
                ))
            })
    }
}

/// A fixed affine map of feature rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    /// What sort of map it is.
    pub kind: Kind,
    /// The seed of a random one.
    pub seed: Option<u64>,
    /// What inputs are multiplied by, after the shift.
    pub scale: f32,
    /// What is subtracted from inputs, (input width).
    pub shift: Vec<f32>,
    /// The matrix W, (width, input width); `None` for the identity.
    pub weight: Option<Vec<f32>>,
}

impl Projection {
    /// Builds `y = scale·(x − shift)`.
    pub fn identity(shift: Vec<f32>, scale: f32) -> Self {
        Self { kind: Kind::Identity, seed: None, scale, shift, weight: None }
    }

    /// Puts a Gaussian matrix to `width` behind an identity.
    ///
    /// # Errors
    /// A width of 0.
    pub fn random(self, width: usize, seed: u64) -> Result<Self> {
        self.check_width(width, usize::MAX)?;
        let inputs = self.input_width();
        let draw = Draw::new(seed, Stream::Projection, 0);
        let mut weight = vec![0.0f32; width * inputs];
        let deviation = (1.0 / inputs as f64).sqrt() as f32;
        for (i, row) in weight.chunks_exact_mut(inputs).enumerate() {
            Isa::detect().run(
                #[inline(always)]
                |arch| draw.fill_normal(arch, row, i as u64, 0),
            );
            row.iter_mut().for_each(|w| *w *= deviation);
        }
        Ok(Self { kind: Kind::Random, seed: Some(seed), weight: Some(weight), ..self })
    }

    /// Puts averages of neighbours behind an identity.
    ///
    /// # Errors
    /// A width of 0 or above the input's.
    pub fn pool(self, width: usize) -> Result<Self> {
        let inputs = self.input_width();
        self.check_width(width, inputs)?;
        let mut weight = vec![0.0f32; width * inputs];
        for (i, row) in weight.chunks_exact_mut(inputs).enumerate() {
            let bin = i * inputs / width..((i + 1) * inputs).div_ceil(width);
            let share = 1.0 / bin.len() as f32;
            row[bin].fill(share);
        }
        Ok(Self { kind: Kind::Pool, weight: Some(weight), ..self })
    }

    /// Puts principal components behind a scale; the shift becomes the mean.
    ///
    /// # Errors
    /// A width of 0 or above the input's, fewer than two rows behind `covariance`, a component without variance that
    /// is to be whitened.
    pub fn pca(self, width: usize, covariance: &Covariance, whiten: bool) -> Result<Self> {
        let inputs = self.input_width();
        self.check_width(width, inputs)?;
        let (values, vectors) = covariance.eigen()?;
        let mut weight = Vec::with_capacity(width * inputs);
        for (i, (value, vector)) in values.iter().zip(vectors.chunks_exact(inputs)).take(width).enumerate() {
            if whiten && *value <= 1e-12 * values[0].max(f64::MIN_POSITIVE) {
                let found = format!("variance {value:.1e} in component {i}");
                return Err(Error::argument("whiten", "width", "only components with variance", found));
            }
            let factor = if whiten { 1.0 / (value.sqrt() * self.scale as f64) } else { 1.0 };
            weight.extend(vector.iter().map(|v| (v * factor) as f32));
        }
        let shift = covariance.mean().iter().map(|m| *m as f32).collect();
        let kind = if whiten { Kind::Whiten } else { Kind::Pca };
        Ok(Self { kind, shift, weight: Some(weight), ..self })
    }

    /// Returns the width of inputs.
    pub fn input_width(&self) -> usize {
        self.shift.len()
    }

    /// Returns the width of outputs.
    pub fn width(&self) -> usize {
        self.weight.as_ref().map_or(self.shift.len(), |w| w.len() / self.shift.len().max(1))
    }

    /// Maps `rows` (N, input width), which it shifts and scales in place, to `out` (N, width).
    ///
    /// # Errors
    /// Buffers that are not the same number of rows.
    pub fn apply(&self, rows: &mut [f32], out: &mut [f32]) -> Result<()> {
        let (inputs, width) = (self.input_width(), self.width());
        if !rows.len().is_multiple_of(inputs) || rows.len() / inputs * width != out.len() {
            let expected = format!("{width} values for each {inputs} of the {} given", rows.len());
            return Err(Error::argument("project", "out", expected, format!("{} values", out.len())));
        }
        let isa = Isa::detect();
        rows.par_chunks_mut(inputs).zip(out.par_chunks_mut(width)).for_each(|(x, y)| {
            x.iter_mut().zip(&self.shift).for_each(|(x, s)| *x = self.scale * (*x - s));
            let Some(weight) = &self.weight else { return y.copy_from_slice(x) };
            isa.run(
                #[inline(always)]
                |arch| {
                    for (y, w) in y.iter_mut().zip(weight.chunks_exact(inputs)) {
                        *y = arch.dot(w, x);
                    }
                },
            );
        });
        Ok(())
    }

    /// Returns the bytes of the matrix's file and its record for the manifest.
    ///
    /// # Errors
    /// Sizes beyond what the format holds.
    pub fn serialize(&self) -> Result<(Vec<u8>, ProjectionInfo)> {
        let refused = |e| Error::data(FILE, "tensors", "a matrix and a vector", e);
        let view =
            |shape: Vec<usize>, values| TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(values));
        let mut tensors = vec![("shift", view(vec![self.input_width()], &self.shift[..]).map_err(refused)?)];
        if let Some(weight) = &self.weight {
            let shape = vec![self.width(), self.input_width()];
            tensors.push(("weight", view(shape, weight).map_err(refused)?));
        }
        let bytes = safetensors::serialize(tensors, None).map_err(refused)?;
        let shift = self.shift.iter().map(|s| *s as f64).sum::<f64>() / self.shift.len().max(1) as f64;
        let info = ProjectionInfo {
            kind: self.kind,
            seed: self.seed,
            input_width: self.input_width(),
            scale: self.scale,
            shift,
            file: FILE.to_owned(),
            bytes: bytes.len() as u64,
            crc32c: checksum(&bytes),
        };
        Ok((bytes, info))
    }

    /// Reads the matrix that `info` describes from `folder` and checks it.
    ///
    /// # Errors
    /// A missing or changed file, or shapes other than those recorded.
    pub fn read(folder: &Path, info: &ProjectionInfo, width: usize) -> Result<Self> {
        let path = folder.join(&info.file);
        let map = Arc::new(Map::open(&path)?);
        if map.bytes().len() as u64 != info.bytes {
            let expected = format!("{} bytes", info.bytes);
            return Err(Error::data(&path, "length", expected, format!("{} bytes", map.bytes().len())));
        }
        let found = checksum(map.bytes());
        if found != info.crc32c {
            return Err(Error::data(&path, "checksum", &info.crc32c, found));
        }
        let file = File::parse(map)?;
        let shift = values(&file.array("shift")?, &[info.input_width])?;
        let weight = match info.kind {
            Kind::Identity => None,
            _ => Some(values(&file.array("weight")?, &[width, info.input_width])?),
        };
        let this = Self { kind: info.kind, seed: info.seed, scale: info.scale, shift, weight };
        if this.width() != width {
            return Err(Error::data(&path, "width", width, this.width()));
        }
        Ok(this)
    }

    fn check_width(&self, width: usize, most: usize) -> Result<()> {
        let inputs = self.input_width();
        if inputs == 0 || width == 0 || width > most {
            let most = if most == usize::MAX { "any".to_owned() } else { most.to_string() };
            let expected = format!("a width from 1 to {most} for inputs of width {inputs}");
            return Err(Error::argument("projection", "width", expected, width));
        }
        Ok(())
    }
}

/// Copies an f32 array of the given shape.
fn values(array: &Array, shape: &[usize]) -> Result<Vec<f32>> {
    if array.shape() != shape {
        return Err(array.error("shape", format!("{shape:?}"), format!("{:?}", array.shape())));
    }
    let mut out = vec![0.0; shape.iter().product()];
    for (i, row) in out.chunks_exact_mut(array.width()).enumerate() {
        array.read_row(i, row);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(width: usize) -> Projection {
        Projection::identity(vec![0.0; width], 1.0)
    }

    #[test]
    fn a_random_projection_keeps_unit_variance() {
        let projection = identity(384).random(16, 0).unwrap();
        let weight = projection.weight.as_ref().unwrap();
        let square: f64 = weight.iter().map(|w| (*w as f64).powi(2)).sum();
        assert!((square / 16.0 - 1.0).abs() < 0.06, "{}", square / 16.0);
        assert_ne!(identity(384).random(16, 1).unwrap().weight, projection.weight);
        // Rows are numbered by output, so that a wider projection begins with a narrower one.
        let wider = identity(384).random(17, 0).unwrap();
        assert_eq!(wider.weight.unwrap()[..weight.len()], weight[..]);
    }

    #[test]
    fn pooling_averages_neighbours() {
        let projection = identity(5).pool(2).unwrap();
        let mut out = [0.0; 2];
        projection.apply(&mut [1.0, 2.0, 3.0, 4.0, 5.0], &mut out).unwrap();
        assert_eq!(out, [2.0, 4.0]); // (1, 2, 3) and (3, 4, 5)
        assert!(identity(5).pool(6).unwrap_err().to_string().contains("from 1 to 5"));
    }

    #[test]
    fn shift_comes_before_scale() {
        let mut out = [0.0; 4];
        let projection = Projection::identity(vec![1.0, 2.0], 10.0);
        projection.apply(&mut [1.0, 3.0, 0.0, 2.0], &mut out).unwrap();
        assert_eq!(out, [0.0, 10.0, -10.0, 0.0]);
        assert!(projection.apply(&mut [0.0; 3], &mut out).is_err());
    }
}

//! Semantic maps beside images or latents: the share of each class in the square of pixels that a pixel of the image stands for.
//!
//! Latent flow matching halves one-hot maps three times by bilinear interpolation (FEATURES 3), which is this mean over squares of 8 × 8.

use std::path::{Path, PathBuf};

use crate::data::array::Array;
use crate::data::formats;
use crate::error::{Error, Result};

/// Maps of one input, a class for each pixel: (rows, H·f, W·f).
pub(super) struct ClassMap {
    array: Array,
    classes: usize,
    /// Height and width of the images.
    image: [usize; 2],
    /// Pixels of the map across one of the image.
    factor: usize,
}

impl ClassMap {
    /// Opens the maps of `rows` images of the size `image`.
    ///
    /// # Errors
    /// A file that cannot be read, another number of maps, sides that are no whole multiple of the image's.
    pub(super) fn open(path: &Path, classes: usize, rows: usize, image: [usize; 2]) -> Result<Self> {
        let array = formats::open(path, None)?;
        let ([height, width], shape) = (image, array.shape());
        let sides = match shape {
            [_, h, w] | [_, 1, h, w] => [*h, *w],
            _ => [0, 0],
        };
        let factor = sides[0] / height;
        if factor == 0 || sides != [height * factor, width * factor] {
            let expected =
                format!("(maps, H, W) with sides a whole multiple of the image's, {height} × {width}");
            return Err(array.error("shape", expected, format!("{shape:?}")));
        }
        if array.rows() != rows {
            return Err(array.error("rows", format!("{rows} maps, one for each row"), array.rows()));
        }
        Ok(Self { array, classes, image, factor })
    }

    /// Returns the values of a row's shares.
    pub(super) fn width(&self) -> usize {
        self.classes * self.image[0] * self.image[1]
    }

    /// Writes the shares of the classes in map `row`: `out` (classes, H, W).
    ///
    /// # Errors
    /// A pixel that is no class.
    pub(super) fn shares(&self, row: usize, out: &mut [f32]) -> Result<()> {
        let ([height, width], factor) = (self.image, self.factor);
        let mut pixels = vec![0.0; height * width * factor * factor];
        self.array.read_row(row, &mut pixels);
        let share = 1.0 / (factor * factor) as f32;
        out.fill(0.0);
        for (at, class) in pixels.iter().enumerate() {
            if !(*class >= 0.0 && *class < self.classes as f32 && class.fract() == 0.0) {
                let field =
                    format!("map {row}, pixel ({}, {})", at / (width * factor), at % (width * factor));
                return Err(self.array.error(field, format!("a class below {}", self.classes), class));
            }
            let (y, x) = (at / (width * factor) / factor, at % (width * factor) / factor);
            out[*class as usize * height * width + y * width + x] += share;
        }
        Ok(())
    }
}

/// Maps to be appended to images as channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maps {
    /// One file per input: an array (rows, H·f, W·f) of classes.
    pub files: Vec<PathBuf>,
    /// Classes, K: as many channels.
    pub classes: usize,
}

impl Maps {
    /// Checks that there is a file for each input, and a class.
    pub(super) fn check(&self, inputs: usize) -> Result<()> {
        if self.files.len() != inputs {
            let files = self.files.len();
            return Err(Error::Usage(format!(
                "{files} files of maps for {inputs} inputs: give one for each"
            )));
        }
        match self.classes {
            0 => Err(Error::Usage("maps have classes: say how many, at least 1".into())),
            _ => Ok(()),
        }
    }
}

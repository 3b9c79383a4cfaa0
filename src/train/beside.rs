//! What `flowprior sample` shows a network with a spatial condition: rows of a data set, with holes where it inpaints.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::data::{Dataset, Source, formats};
use crate::error::{Error, Result};
use crate::nn::{Spatial, VelocityNet};
use crate::ops::inpaint::given_holes;
use crate::train::features::Standardise;
use crate::train::sampling::Shown;

/// The part of an image that is a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mask {
    /// The upper half.
    Upper,
    /// The lower half.
    Lower,
    /// The left half.
    Left,
    /// The right half.
    Right,
    /// The middle half of rows and columns.
    Centre,
    /// Where an array (H, W) is not zero.
    File(PathBuf),
}

impl FromStr for Mask {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "upper" => Ok(Self::Upper),
            "lower" => Ok(Self::Lower),
            "left" => Ok(Self::Left),
            "right" => Ok(Self::Right),
            "centre" => Ok(Self::Centre),
            path if Path::new(path).extension().is_some() => Ok(Self::File(path.into())),
            _ => Err(Error::Usage(format!(
                "unknown mask `{s}`: expected `upper`, `lower`, `left`, `right`, `centre` or an array's file"
            ))),
        }
    }
}

impl Mask {
    /// Says of each pixel whether it is in the hole: (H·W).
    ///
    /// # Errors
    /// A file that is no array of these sizes; a hole of no pixel.
    pub fn hole(&self, [height, width]: [usize; 2]) -> Result<Vec<bool>> {
        let of = |inside: &dyn Fn(usize, usize) -> bool| {
            (0..height * width).map(|pixel| inside(pixel / width, pixel % width)).collect()
        };
        let hole: Vec<bool> = match self {
            Self::Upper => of(&|y, _| y < height / 2),
            Self::Lower => of(&|y, _| y >= height / 2),
            Self::Left => of(&|_, x| x < width / 2),
            Self::Right => of(&|_, x| x >= width / 2),
            Self::Centre => of(&|y, x| {
                let within = |at: usize, size: usize| (size / 4..size - size / 4).contains(&at);
                within(y, height) && within(x, width)
            }),
            Self::File(path) => read(path, [height, width])?,
        };
        match hole.contains(&true) {
            true => Ok(hole),
            false => Err(Error::Usage(format!(
                "the mask of {height} × {width} pixels has no hole: nothing to fill"
            ))),
        }
    }
}

fn read(path: &Path, [height, width]: [usize; 2]) -> Result<Vec<bool>> {
    let array = formats::open(path, None)?;
    if array.shape() != [height, width] {
        return Err(array.error("shape", format!("[{height}, {width}]"), format!("{:?}", array.shape())));
    }
    let mut row = vec![0.0; width];
    let mut hole = Vec::with_capacity(height * width);
    for y in 0..height {
        array.read_row(y, &mut row);
        if let Some(x) = row.iter().find(|x| !x.is_finite()) {
            return Err(array.error(format!("row {y}"), "finite numbers, 0 where the image is known", x));
        }
        hole.extend(row.iter().map(|x| *x != 0.0));
    }
    Ok(hole)
}

/// Rows of a data set to be shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Beside {
    /// The data set: images of a network that inpaints, else rows with the condition as their last channels.
    pub data: PathBuf,
    /// The hole, for a network that inpaints.
    pub mask: Option<Mask>,
}

/// Images that samples have been drawn beside.
#[derive(Clone, Debug)]
pub struct Original {
    /// (count, D), in the units of the data.
    pub rows: Vec<f32>,
    /// The hole: (H·W).
    pub hole: Vec<bool>,
}

impl Original {
    /// Puts what is known into `samples: (count, D)`, in the units of the data.
    pub fn paste(&self, samples: &mut [f32]) {
        // Planes are rows of pixels, and rows of data are planes.
        for (i, (to, from)) in samples.iter_mut().zip(&self.rows).enumerate() {
            if !self.hole[i % self.hole.len()] {
                *to = *from;
            }
        }
    }

    /// Returns the images with NaN in the hole, for a figure.
    pub fn known(&self) -> Vec<f32> {
        let holes = self.hole.iter().cycle();
        self.rows.iter().zip(holes).map(|(x, hole)| if *hole { f32::NAN } else { *x }).collect()
    }
}

impl Beside {
    /// Reads what `net` is shown beside the samples, `count` of them or one a row; sample i has row i, from the first again after the
    /// last. Returns the images of a network that inpaints, too.
    ///
    /// # Errors
    /// A network without a spatial condition, rows of another width, a mask that is missing or not wanted, data that cannot be read.
    pub fn show(
        &self,
        net: &VelocityNet,
        standardise: Option<&Standardise>,
        count: Option<usize>,
    ) -> Result<(Shown, Option<Original>)> {
        let source = Source::Dataset(Arc::new(Dataset::open(&self.data)?));
        let (width, own, rows) = (source.width(), net.data_width(), source.rows().unwrap_or(0));
        let count = count.unwrap_or(rows as usize);
        let ids: Vec<u64> = (0..count as u64).map(|i| i % rows.max(1)).collect();
        let expect = |expected: usize| match width == expected {
            true => Ok(()),
            false => Err(Error::data(
                &self.data,
                "width",
                format!("rows of {expected}, as the network was trained on"),
                format!("rows of {width}"),
            )),
        };
        let mut raw = vec![0.0; ids.len() * width];
        let classes = source.labels(&ids)?.map(|of| of.into_iter().map(|class| class as usize).collect());
        let standardised = |raw: &[f32]| {
            let mut rows = raw.to_vec();
            // Latents have been multiplied by their scale when they were read.
            if let Some(standardise) = standardise.filter(|_| source.latents().is_none()) {
                standardise.apply(&mut rows);
            }
            rows
        };
        match (net.spatial(), &self.mask) {
            (Spatial::Nothing, _) => Err(Error::Usage("the network takes no spatial condition to show it".into())),
            (Spatial::Given { .. }, Some(_)) => Err(Error::Usage(
                "a mask is for a network that inpaints (model.inpaint); this one takes the channels of its data".into(),
            )),
            (Spatial::Given { channels }, None) => {
                expect(own + channels * net.pixels())?;
                source.gather(&ids, &mut raw, None)?;
                let rows = standardised(&raw);
                let images = rows.chunks_exact(width).flat_map(|row| &row[own..]).copied().collect();
                Ok((Shown { count, images, classes }, None))
            }
            (Spatial::Inpaint { .. }, None) => {
                Err(Error::Usage("what is to be filled in of the images? Name the hole with --mask".into()))
            }
            (Spatial::Inpaint { image }, Some(mask)) => {
                expect(own)?;
                let hole = mask.hole([image[1], image[2]])?;
                source.gather(&ids, &mut raw, None)?;
                let images = given_holes(&standardised(&raw), image, &hole);
                if let Some(standardise) = standardise.filter(|_| source.latents().is_some()) {
                    standardise.invert(&mut raw);
                }
                Ok((Shown { count, images, classes }, Some(Original { rows: raw, hole })))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_cover_what_they_say() {
        let hole = |mask: &str, sizes| mask.parse::<Mask>().unwrap().hole(sizes).unwrap();
        let shown = |mask: &str| {
            hole(mask, [4, 4]).iter().map(|hole| if *hole { 'x' } else { '.' }).collect::<String>()
        };
        assert_eq!(shown("upper"), "xxxxxxxx........");
        assert_eq!(shown("lower"), "........xxxxxxxx");
        assert_eq!(shown("left"), "xx..xx..xx..xx..");
        assert_eq!(shown("right"), "..xx..xx..xx..xx");
        assert_eq!(shown("centre"), ".....xx..xx.....");
        assert_eq!(hole("lower", [1, 2]), [true, true], "of an odd height the larger half");
        assert!(Mask::Upper.hole([1, 2]).unwrap_err().to_string().contains("no hole"));
        assert!("below".parse::<Mask>().unwrap_err().to_string().contains("unknown mask `below`"));
        assert_eq!("a/b.npy".parse::<Mask>().unwrap(), Mask::File("a/b.npy".into()));
    }

    #[test]
    fn what_is_known_is_pasted_into_every_channel() {
        let original = Original { rows: (0..8).map(|i| i as f32).collect(), hole: vec![false, true] };
        let mut samples = vec![-1.0; 8];
        original.paste(&mut samples);
        assert_eq!(samples, [0.0, -1.0, 2.0, -1.0, 4.0, -1.0, 6.0, -1.0]);
        assert!(original.known().iter().enumerate().all(|(i, x)| x.is_nan() == (i % 2 == 1)));
    }
}

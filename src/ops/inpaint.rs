//! The condition of inpainting (latent flow matching, FEATURES 3): what is known of an image, and where that is.
//!
//! ```text
//! condition = [x where it is known, 0 in holes | mask],     mask = −1 where it is known, 1 in holes
//! ```
//! In training, holes are drawn anew for each sample: with probability `whole` all of it, else the union of one to four boxes, whose
//! sides are uniform up to 5/4 of the image's and whose middles lie anywhere in it, so that some reach over its edges. They are a pure
//! function of (seed, step, sample), in whole numbers: the same on every device, in every micro-batch, and in a step that is
//! captured once and launched many times. Nothing to differentiate: data are given. Kernel: `kernels/inpaint.cu`.

use crate::device::cuda::{Grid, Read};
use crate::device::{Device, Queue};
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::kernels;
use crate::ops::{pack, rows_per_block};
use crate::rng::Draw;
use crate::tensor::Tensor;

/// The most boxes in a sample.
const BOXES: u32 = 4;

/// How holes are drawn in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Holes {
    /// Probability that nothing of a sample is known.
    pub whole: f32,
    /// Where the random numbers come from: [`crate::rng::Stream::Mask`].
    pub draw: Draw,
}

/// Rows `top .. top + tall` of columns `left .. left + wide`; it may stand out of the image.
#[derive(Clone, Copy, Debug)]
struct Box {
    top: i64,
    left: i64,
    tall: i64,
    wide: i64,
}

impl Holes {
    /// Draws the boxes of a sample.
    fn boxes(&self, sample: u64, [height, width]: [usize; 2]) -> Vec<Box> {
        let below = |word: u32, n: usize| ((word as u64 * n as u64) >> 32) as i64;
        if self.draw.uniform(sample, 0) < self.whole {
            return vec![Box { top: 0, left: 0, tall: height as i64, wide: width as i64 }];
        }
        let count = 1 + below(self.draw.words(sample, 0, 0)[1], BOXES as usize) as u32;
        let drawn = |k| {
            let [tall, wide, middle, centre] = self.draw.words(sample, 0, 1 + k);
            let (tall, wide) = (1 + below(tall, height + height / 4), 1 + below(wide, width + width / 4));
            Box { top: below(middle, height) - tall / 2, left: below(centre, width) - wide / 2, tall, wide }
        };
        (0..count).map(drawn).collect()
    }
}

/// `x: (B, C·H·W)` of images `[C, H, W]` → the condition, (B, (C + 1)·H·W), with holes drawn for samples `first ..` of the batch.
///
/// # Errors
/// Another width; a `whole` that is no probability.
pub fn inpaint<X: FloatX>(x: &Tensor<f32>, image: [usize; 3], holes: Holes, first: u64) -> Result<Tensor<X>> {
    const OP: &str = "inpaint";
    let ([channels, height, width], n) = (image, x.rows_cols().0);
    let area = height * width;
    x.expect(OP, "x", [n, channels * area])?;
    if !(0.0..=1.0).contains(&holes.whole) {
        return Err(Error::argument(OP, "whole", "a probability", format!("{}", holes.whole)));
    }
    let mut condition = Tensor::uninit(x.device(), [n, (channels + 1) * area]);
    match x.device() {
        Device::Cpu(cpu) => {
            let (to, from) = (condition.host_mut()?, x.host()?);
            let (own, block) = ((channels + 1) * area, rows_per_block((channels + 1) * area));
            let work = to.chunks_mut((block * own).max(1)).zip(from.chunks((block * channels * area).max(1)));
            cpu.each(work.enumerate(), |(at, (to, from))| {
                let samples = to.chunks_exact_mut(own).zip(from.chunks_exact(channels * area));
                for (i, (to, from)) in samples.enumerate() {
                    let (known, mask) = to.split_at_mut(channels * area);
                    known.iter_mut().zip(from).for_each(|(to, from)| *to = X::from_f32(*from));
                    mask.fill(X::from_f32(-1.0));
                    for hole in holes.boxes(first + (at * block + i) as u64, [height, width]) {
                        known.chunks_exact_mut(area).for_each(|plane| hole.fill(plane, width, 0.0));
                        hole.fill(mask, width, 1.0);
                    }
                }
            });
        }
        Device::Cuda(queue) => on_cuda(queue, &mut condition, x, image, holes, first)?,
    }
    Ok(condition)
}

impl Box {
    /// Fills what of the box lies in a plane of rows of `width` pixels.
    fn fill<X: FloatX>(self, plane: &mut [X], width: usize, value: f32) {
        let within = |from: i64, count: i64, most: usize| {
            let most = most as i64;
            from.clamp(0, most) as usize..(from + count).clamp(0, most) as usize
        };
        let columns = within(self.left, self.wide, width);
        for row in within(self.top, self.tall, plane.len() / width) {
            plane[row * width..][columns.clone()].fill(X::from_f32(value));
        }
    }
}

fn on_cuda<X: FloatX>(
    queue: &Queue,
    condition: &mut Tensor<X>,
    x: &Tensor<f32>,
    [channels, height, width]: [usize; 3],
    holes: Holes,
    first: u64,
) -> Result<()> {
    let (n, area) = (x.rows_cols().0, height * width);
    let each = if area.is_multiple_of(pack::<X>()) { pack::<X>() } else { 1 };
    let blocks = n * ((channels + 1) * area / each).div_ceil(128);
    let grid = Grid { blocks: [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1], threads: 128, shared: 0 };
    let ([key0, key1], step, counter) = (holes.draw.key(), holes.draw.step(), Read::at(holes.draw.added()));
    let (condition, x, whole) = (condition.write()?, x.read()?, holes.whole);
    let (c, h, w) = (channels as u32, height as u32, width as u32);
    kernels::inpaint(queue, grid, condition, x, key0, key1, step, counter, first, whole, c, h, w)
}

/// Returns the condition of given holes, in host memory: (B, (C + 1)·H·W) of the rows `x: (B, C·H·W)`; `hole: (H·W)` is one mask
/// for all of them.
pub fn given_holes(x: &[f32], [channels, height, width]: [usize; 3], hole: &[bool]) -> Vec<f32> {
    let area = height * width;
    let mut condition = Vec::with_capacity(x.len() / channels.max(1) * (channels + 1));
    for image in x.chunks_exact((channels * area).max(1)) {
        condition.extend(image.iter().zip(hole.iter().cycle()).map(|(x, hole)| if *hole { 0.0 } else { *x }));
        condition.extend(hole.iter().map(|hole| if *hole { 1.0 } else { -1.0 }));
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn a_given_mask_keeps_what_is_known() {
        let x: Vec<f32> = (1..=8).map(|i| i as f32).collect();
        let found = given_holes(&x, [2, 1, 2], &[false, true]);
        assert_eq!(found, [1.0, 0.0, 3.0, 0.0, -1.0, 1.0, 5.0, 0.0, 7.0, 0.0, -1.0, 1.0]);
    }

    #[test]
    fn holes_are_of_every_size_and_place() {
        let device = Device::cpu_with_threads(2).unwrap();
        let (n, side) = (2000, 16);
        let holes = Holes { whole: 0.25, draw: Draw::new(1, Stream::Mask, 3) };
        let x = Tensor::<f32>::from_f32(&device, [n, side * side], &vec![1.0; n * side * side]).unwrap();
        let condition = inpaint::<f32>(&x, [1, side, side], holes, 0).unwrap().to_f32_vec().unwrap();
        let mut covered = vec![0u32; side * side];
        let (mut whole, mut lower) = (0, 0);
        for sample in condition.chunks_exact(2 * side * side) {
            let (known, mask) = sample.split_at(side * side);
            assert!(known.iter().zip(mask).all(|(x, m)| (*x, *m) == (1.0, -1.0) || (*x, *m) == (0.0, 1.0)));
            covered.iter_mut().zip(mask).for_each(|(n, m)| *n += (*m > 0.0) as u32);
            let share = |part: &[f32]| part.iter().filter(|m| **m > 0.0).count() as f64 / part.len() as f64;
            let (upper, under) = mask.split_at(side * side / 2);
            whole += (share(mask) == 1.0) as usize;
            lower += (share(under) > 0.8 && share(upper) < 0.2) as usize;
        }
        // A quarter by `whole`, and some by boxes.
        assert!((480..700).contains(&whole), "{whole} of {n} have nothing known");
        assert!(lower > 10, "{lower} of {n} lack about the lower half");
        // Corners are covered less than the middle, but often.
        let (least, most) = (covered.iter().min().unwrap(), covered.iter().max().unwrap());
        assert!(*least > 700 && *most < 1900, "{least} to {most}");
    }
}

//! The condition of inpainting: which boxes are holes is drawn the same on every device.

use flowprior::ops::inpaint::{Holes, inpaint};
use flowprior::rng::{Draw, Stream};
use flowprior::{FloatX, Result, Tensor};

use crate::support::devices::{any_device, devices};
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, no_backward};

#[derive(Debug)]
struct Inpaint {
    samples: usize,
    image: [usize; 3],
    whole: f32,
    first: u64,
}

impl Inpaint {
    fn holes(&self) -> Holes {
        Holes { whole: self.whole, draw: Draw::new(7, Stream::Mask, 5) }
    }

    /// Says whether pixel (y, x) of a sample is in a hole.
    fn hole(&self, sample: u64, y: usize, x: usize) -> bool {
        let (draw, [_, height, width]) = (self.holes().draw, self.image);
        let below = |word: u32, n: usize| (word as u128 * n as u128 / (1 << 32)) as i64;
        let [whole, count, ..] = draw.words(sample, 0, 0);
        if ((whole >> 8) as f32) / 16_777_216.0 < self.whole {
            return true;
        }
        (0..=below(count, 4)).any(|k| {
            let [tall, wide, middle, centre] = draw.words(sample, 0, 1 + k as u32);
            let inside = |at: usize, side: u32, middle: u32, size: usize| {
                let side = 1 + below(side, size + size / 4);
                let first = below(middle, size) - side / 2;
                (first..first + side).contains(&(at as i64))
            };
            inside(y, tall, middle, height) && inside(x, wide, centre, width)
        })
    }
}

impl Case for Inpaint {
    fn inputs(&self) -> Inputs {
        let values: usize = self.samples * self.image.iter().product::<usize>();
        let x = (0..values).map(|i| ((i * 37 % 101) as f64 - 50.0) / 16.0).collect();
        Inputs::default().constant("x", [self.samples, values / self.samples], x)
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let [channels, height, width] = self.image;
        let mut y = Vec::new();
        for (i, image) in x["x"].chunks(channels * height * width).enumerate() {
            let hole = |pixel: usize| self.hole(self.first + i as u64, pixel / width, pixel % width);
            y.extend(image.iter().enumerate().map(
                |(at, x)| {
                    if hole(at % (height * width)) { 0.0 } else { *x }
                },
            ));
            y.extend((0..height * width).map(|pixel| if hole(pixel) { 1.0 } else { -1.0 }));
        }
        vec![y]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        Ok(vec![answer(&inpaint::<X>(x.single("x"), self.image, self.holes(), self.first)?)])
    }

    fn backward<X: FloatX>(&self, _: &Tensors<X>) -> Result<Backward> {
        no_backward("data are given")
    }
}

#[test]
fn images_of_any_shape_get_holes() {
    // Planes of whole packs, of none, of an odd number of packs; rows that packs cross; more packs than a block has lanes.
    let images = [
        [1, 1, 1],
        [3, 5, 7],
        [1, 8, 8],
        [3, 2, 4],
        [4, 32, 32],
        [2, 6, 20],
        [1, 3, 8],
        [5, 16, 3],
        [1, 40, 64],
    ];
    let of = |(i, image)| {
        [0.0, 0.3, 1.0].map(|whole| Inpaint {
            samples: 1 + 4 * (i % 3),
            image,
            whole,
            first: (i as u64) << 31,
        })
    };
    check_all(images.into_iter().enumerate().flat_map(of));
}

#[test]
fn micro_batches_have_the_holes_of_the_whole_batch_and_steps_their_own() -> Result<()> {
    for (name, device) in devices() {
        let holes = |step| Holes { whole: 0.2, draw: Draw::new(1, Stream::Mask, step) };
        let of = |step, first: usize, count: usize| -> Result<Vec<f32>> {
            let x = Tensor::from_f32(device, [count, 64], &vec![2.0; count * 64])?;
            inpaint::<f32>(&x, [1, 8, 8], holes(step), first as u64)?.to_f32_vec()
        };
        let whole = of(3, 0, 24)?;
        let parts: Vec<Vec<f32>> = (0..4).map(|part| of(3, 6 * part, 6)).collect::<Result<_>>()?;
        assert_eq!(parts.concat(), whole, "{name}");
        assert_ne!(of(4, 0, 24)?, whole, "{name}");
    }
    Ok(())
}

#[test]
fn another_width_is_refused() {
    let x = Tensor::<f32>::zeros(any_device(), [2, 12]);
    let holes = |whole| Holes { whole, draw: Draw::new(1, Stream::Mask, 0) };
    let error = inpaint::<f32>(&x, [1, 4, 4], holes(0.1), 0).unwrap_err().to_string();
    assert_eq!(error, "inpaint: `x` has shape [2, 12], expected shape [2, 16]");
    let error = inpaint::<f32>(&x, [3, 2, 2], holes(1.5), 0).unwrap_err().to_string();
    assert_eq!(error, "inpaint: `whole` has 1.5, expected a probability");
}

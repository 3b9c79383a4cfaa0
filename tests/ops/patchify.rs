//! Images as rows of tokens and back: both are permutations, and each is the other's backward.

use flowprior::ops::patchify::{
    Beside, Channels, Patches, patchify, patchify_backward, patchify_backward_of, patchify_beside,
    unpatchify, unpatchify_backward,
};
use flowprior::{FloatX, Result, Tensor};

use crate::support::devices::{any_device, devices};
use crate::support::{Answer, Backward, Case, Inputs, Tensors, Values, answer, check_all, fresh};

/// x, and a second image with `more` channels beside it.
#[derive(Debug)]
struct Patchify {
    samples: usize,
    image: Patches,
    more: usize,
}

/// Returns the number of pixel (row, column) of a plane.
fn pixel(image: Patches, token: usize, i: usize, j: usize) -> usize {
    let (p, across) = (image.patch, image.width / image.patch);
    (token / across * p + i) * image.width + token % across * p + j
}

impl Case for Patchify {
    fn inputs(&self) -> Inputs {
        let area = self.image.height * self.image.width;
        let inputs = Inputs::default().stored("x", [self.samples, self.image.sample()]);
        inputs.when(self.more > 0, |i| i.stored("beside", [self.samples, self.more * area]))
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let (image, p) = (self.image, self.image.patch);
        let area = image.height * image.width;
        let mut tokens = Vec::new();
        for b in 0..self.samples {
            for token in 0..image.tokens() {
                for c in 0..image.channels + self.more {
                    let plane = match c.checked_sub(image.channels) {
                        None => &x["x"][(b * image.channels + c) * area..],
                        Some(c) => &x["beside"][(b * self.more + c) * area..],
                    };
                    tokens.extend((0..p * p).map(|at| plane[pixel(image, token, at / p, at % p)]));
                }
            }
        }
        vec![tokens]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        let beside = x.get("beside").map(|image| Beside { image, channels: self.more });
        Ok(vec![answer(&patchify_beside(x.stored("x"), beside, self.image)?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        let (dtokens, image) = (x.stored("dy"), self.image);
        if self.more == 0 {
            return Ok([fresh("x", &patchify_backward(dtokens, image)?)].into());
        }
        let of = image.channels + self.more;
        let dx = patchify_backward_of(dtokens, Channels { first: 0, of }, image)?;
        let second = Patches { channels: self.more, ..image };
        let at = Channels { first: image.channels, of };
        let dbeside = patchify_backward_of(dtokens, at, second)?;
        Ok([fresh("x", &dx), fresh("beside", &dbeside)].into())
    }
}

/// y, whose tokens have more channels than the image, perhaps.
#[derive(Debug)]
struct Unpatchify {
    samples: usize,
    image: Patches,
    out: usize,
}

impl Case for Unpatchify {
    fn inputs(&self) -> Inputs {
        let (image, p) = (self.image, self.image.patch);
        Inputs::default().stored("y", [self.samples * image.tokens(), p * p * self.out])
    }

    fn reference(&self, x: &Values) -> Vec<Vec<f64>> {
        let (image, p) = (self.image, self.image.patch);
        let area = image.height * image.width;
        let mut planes = vec![0.0; self.samples * image.sample()];
        for (row, y) in x["y"].chunks_exact(p * p * self.out).enumerate() {
            let (b, token) = (row / image.tokens(), row % image.tokens());
            for (at, y) in y.chunks_exact(self.out).enumerate() {
                for (c, y) in y[..image.channels].iter().enumerate() {
                    planes[(b * image.channels + c) * area + pixel(image, token, at / p, at % p)] = *y;
                }
            }
        }
        vec![planes]
    }

    fn forward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Vec<Answer>> {
        Ok(vec![answer(&unpatchify(x.stored("y"), self.image, self.out)?)])
    }

    fn backward<X: FloatX>(&self, x: &Tensors<X>) -> Result<Backward> {
        Ok([fresh("y", &unpatchify_backward(x.stored("dy"), self.image, self.out)?)].into())
    }
}

fn image(channels: usize, height: usize, width: usize, patch: usize) -> Patches {
    Patches { channels, height, width, patch }
}

/// Patches that are whole packs, halves and quarters of them, and others; more packs than a block has lanes; one pixel.
fn images() -> [Patches; 12] {
    [
        image(1, 1, 1, 1),
        image(1, 3, 3, 3),
        image(2, 3, 5, 1),
        image(3, 4, 6, 2),
        image(4, 8, 8, 2),
        image(4, 32, 32, 2),
        image(1, 32, 32, 4),
        image(1, 16, 8, 8),
        image(2, 32, 16, 16),
        image(5, 12, 18, 6),
        image(16, 4, 4, 1),
        image(3, 10, 15, 5),
    ]
}

#[test]
fn images_become_tokens() {
    let of = |(i, image)| [0, 1, 4].map(|more| Patchify { samples: 1 + i % 3, image, more });
    check_all(images().into_iter().enumerate().flat_map(of));
}

#[test]
fn tokens_become_images() {
    let of = |(i, image): (usize, Patches)| {
        let (samples, c) = (1 + i % 3, image.channels);
        [c, 2 * c, c + 1, c.next_multiple_of(8)].map(|out| Unpatchify { samples, image, out })
    };
    check_all(images().into_iter().enumerate().flat_map(of));
}

#[test]
fn one_channel_survives_the_way_there_and_back() -> Result<()> {
    let image = image(1, 6, 4, 2);
    let numbers: Vec<f32> = (0..48).map(|i| i as f32).collect();
    for (name, device) in devices() {
        let x = Tensor::<f32>::from_f32(device, [2, 24], &numbers)?;
        assert_eq!(unpatchify(&patchify(&x, image)?, image, 1)?.to_f32_vec()?, numbers, "{name}");
    }
    Ok(())
}

#[test]
fn images_that_patches_do_not_cover_are_refused() {
    let x = Tensor::<f32>::zeros(any_device(), [2, 30]);
    let message = |image| patchify(&x, image).unwrap_err().to_string();
    let expected = "patchify: `patches` has 5 × 6 pixels, expected sides that a patch of 2 divides";
    assert_eq!(message(image(1, 5, 6, 2)), expected);
    assert!(message(image(1, 5, 6, 0)).contains("a patch of 0"));
    assert!(message(image(1, 0, 6, 1)).contains("0 × 6 pixels"));
    assert!(message(image(0, 5, 6, 1)).contains("between 1 and 2³² − 1 numbers"));
    assert!(message(image(1, 1 << 20, 1 << 20, 1)).contains("between 1 and"));
    assert_eq!(message(image(2, 5, 6, 1)), "patchify: `x` has shape [2, 30], expected shape [2, 60]");
    let y = Tensor::<f32>::zeros(any_device(), [7, 3]);
    let message = unpatchify(&y, image(2, 2, 2, 1), 1).unwrap_err().to_string();
    assert_eq!(message, "unpatchify: `out_channels` has 1, expected at least the image's 2 channels");
    let message = unpatchify(&y, image(2, 2, 2, 1), 3).unwrap_err().to_string();
    assert_eq!(message, "unpatchify: `y` has shape [7, 3], expected shape [4, 3]");
    let at = Channels { first: 2, of: 3 };
    assert!(
        patchify_backward_of(&y, at, image(2, 2, 2, 1)).unwrap_err().to_string().contains("the first at 2")
    );
}

//! The two small real data sets in the binary; `assets/README.md` says where they come from and under which licence.

use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;

use crate::data::array::{Array, Bytes, Element, Layout};
use crate::data::source::Memory;
use crate::error::{Error, Result};

const DIGITS: &[u8] = include_bytes!("../../assets/digits.safetensors");
const TOKENS: &[u8] = include_bytes!("../../assets/tokens.safetensors");

/// The sides of a digit image.
pub const DIGIT_SIDE: usize = 8;
/// The number of digit classes.
pub const DIGIT_CLASSES: u32 = 10;

/// Returns 1,797 handwritten digits: rows of 8 × 8 pixels from 0 (paper) to 1 (ink), labels 0 to 9.
///
/// # Errors
/// A damaged binary.
pub fn digits() -> Result<Memory> {
    let features = tensor("digits", DIGITS, "features", Element::U8)?;
    let labels = tensor("digits", DIGITS, "labels", Element::U8)?;
    let labels = (0..labels.rows()).map(|row| labels.label(row)).collect::<Result<_>>()?;
    let mut rows = values(&features);
    rows.iter_mut().for_each(|x| *x /= 16.0);
    Memory::new(rows, features.width(), Some(labels))?.with_shape([1, DIGIT_SIDE, DIGIT_SIDE])
}

/// Returns 30,522 token embeddings of MiniLM, scaled to unit variance and projected to 16 dimensions; no labels.
///
/// # Errors
/// A damaged binary.
pub fn tokens() -> Result<Memory> {
    let features = tensor("tokens", TOKENS, "features", Element::Bf16)?;
    Memory::new(values(&features), features.width(), None)
}

/// Returns the fixed matrix (16, 384) that the token embeddings were projected with, after a factor of 17.978.
///
/// # Errors
/// A damaged binary.
pub fn token_projection() -> Result<Memory> {
    let weight = tensor("tokens", TOKENS, "projection", Element::F32)?;
    Memory::new(values(&weight), weight.width(), None)
}

fn tensor(asset: &str, bytes: &'static [u8], name: &str, element: Element) -> Result<Array> {
    let path = Path::new("assets").join(asset).with_extension("safetensors");
    let damaged = |e| Error::data(&path, name, "an intact tensor", e);
    let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
    let view = file.tensor(name).map_err(damaged)?;
    let layout = Layout::row_major(&path, element, view.shape().to_vec())?;
    Array::new(&path, name, Bytes::Owned(Arc::new(view.data().to_vec())), 0, layout)
}

fn values(array: &Array) -> Vec<f32> {
    let mut out = vec![0.0; array.rows() * array.width()];
    for (i, row) in out.chunks_exact_mut(array.width().max(1)).enumerate() {
        array.read_row(i, row);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::stats::Moments;

    #[test]
    fn digits_are_all_there() {
        let digits = digits().unwrap();
        assert_eq!((digits.rows.len(), digits.width), (1797 * 64, 64));
        assert!(digits.rows.iter().all(|x| (0.0..=1.0).contains(x)));
        let labels = digits.labels.unwrap();
        let counts =
            (0..DIGIT_CLASSES).map(|c| labels.iter().filter(|l| **l == c).count()).collect::<Vec<_>>();
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    }

    #[test]
    fn tokens_have_unit_variance() {
        let tokens = tokens().unwrap();
        assert_eq!((tokens.rows.len(), tokens.width), (30_522 * 16, 16));
        let mut moments = Moments::new(16);
        moments.push(&tokens.rows);
        let stats = moments.stats();
        assert!((stats.std - 1.0).abs() < 0.01 && stats.non_finite == 0, "{stats:?}");
        let projection = token_projection().unwrap();
        assert_eq!((projection.rows.len(), projection.width), (16 * 384, 384));
    }
}

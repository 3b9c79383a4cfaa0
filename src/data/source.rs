//! Where batches come from. A batch is a pure function of (seed, batch number): nothing here has a position.
//!
//! Stored rows are an endless sequence of epochs, each in its own order ([`Permutation`]); batch k of size B takes
//! positions k·B .. (k+1)·B of it, so an epoch may end inside a batch and no row is left out. A toy draws sample i of
//! batch k from Philox, stream [`Stream::Toy`], at step k.

use std::sync::Arc;

use crate::data::dataset::Dataset;
use crate::data::manifest::Latents;
use crate::data::permutation::Permutation;
use crate::data::toy::Toy;
use crate::error::{Error, Result};
use crate::rng::{Draw, Stream};

/// Rows that fit in memory, such as the data sets in the binary.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// The features, (rows, width).
    pub rows: Vec<f32>,
    /// Values in a row.
    pub width: usize,
    /// One label per row.
    pub labels: Option<Vec<u32>>,
    /// Channels, height and width, where rows are images.
    pub shape: Option<[usize; 3]>,
}

impl Memory {
    /// Checks that rows, width and labels fit together.
    ///
    /// # Errors
    /// No rows, a length that is no multiple of the width, another number of labels.
    pub fn new(rows: Vec<f32>, width: usize, labels: Option<Vec<u32>>) -> Result<Self> {
        if width == 0 || rows.is_empty() || !rows.len().is_multiple_of(width) {
            let expected = format!("a positive number of rows of {width} values");
            return Err(Error::argument("memory", "rows", expected, format!("{} values", rows.len())));
        }
        let count = rows.len() / width;
        if let Some(labels) = labels.as_ref().filter(|l| l.len() != count) {
            let found = format!("{} labels", labels.len());
            return Err(Error::argument("memory", "labels", format!("{count} labels"), found));
        }
        Ok(Self { rows, width, labels, shape: None })
    }

    /// Says that rows are images of this shape.
    ///
    /// # Errors
    /// A shape of another width.
    pub fn with_shape(self, shape: [usize; 3]) -> Result<Self> {
        if shape.iter().product::<usize>() != self.width {
            let expected = format!("a product of {}", self.width);
            return Err(Error::argument("memory", "shape", expected, format!("{shape:?}")));
        }
        Ok(Self { shape: Some(shape), ..self })
    }

    /// Copies the rows `ids` to `out` (ids, width).
    pub fn gather(&self, ids: &[u64], out: &mut [f32]) {
        for (id, out) in ids.iter().zip(out.chunks_exact_mut(self.width)) {
            let start = *id as usize * self.width;
            out.copy_from_slice(&self.rows[start..start + self.width]);
        }
    }
}

/// A source of feature rows.
#[derive(Clone, Debug)]
pub enum Source {
    /// Rows in mapped files.
    Dataset(Arc<Dataset>),
    /// An endless distribution over the plane.
    Toy(Toy),
    /// Rows in memory.
    Memory(Memory),
}

impl Source {
    /// Returns the number of values in a sample.
    pub fn width(&self) -> usize {
        match self {
            Self::Dataset(dataset) => dataset.width(),
            Self::Toy(_) => 2,
            Self::Memory(memory) => memory.width,
        }
    }

    /// Returns the number of values that are stored of a row: with moments, twice those of a sample.
    pub fn stored_width(&self) -> usize {
        match self {
            Self::Dataset(dataset) => dataset.stored_width(),
            _ => self.width(),
        }
    }

    /// Returns how stored latents become samples, where rows are latents.
    pub fn latents(&self) -> Option<Latents> {
        match self {
            Self::Dataset(dataset) => dataset.latents(),
            _ => None,
        }
    }

    /// Returns channels, height and width, where samples are known to be images or feature maps.
    pub fn image_shape(&self) -> Option<[usize; 3]> {
        match self {
            Self::Dataset(dataset) => dataset.image_shape(),
            Self::Toy(_) => None,
            Self::Memory(memory) => memory.shape,
        }
    }

    /// Returns the number of classes that labels are below, where rows have labels: as recorded, else one more than the largest
    /// label.
    pub fn classes(&self) -> Option<u32> {
        let all = match self {
            Self::Dataset(dataset) if dataset.classes().is_some() => {
                return dataset.classes().map(|c| c.classes);
            }
            Self::Dataset(dataset) => dataset.labels().ok().flatten()?, // checked when it was opened
            Self::Toy(_) => return None,
            Self::Memory(memory) => memory.labels.clone()?,
        };
        all.iter().max().map(|label| label.saturating_add(1))
    }

    /// Returns the names of the classes; none where they have none.
    pub fn class_names(&self) -> &[String] {
        match self {
            Self::Dataset(dataset) => dataset.classes().map_or(&[], |classes| &classes.names),
            _ => &[],
        }
    }

    /// Checks that rows have labels, all of them classes of a network that knows `classes`, by the configuration's `key`; `name` is
    /// the source's.
    ///
    /// # Errors
    /// No labels, or classes that the network lacks.
    pub fn expect_classes(&self, classes: usize, key: &str, name: &str) -> Result<()> {
        match self.classes() {
            None => {
                let expected = format!("a label for each row ({key} > 0)");
                Err(Error::data(name, "labels", expected, "none"))
            }
            Some(found) if found as usize > classes => {
                let expected = format!("labels below {classes} ({key})");
                Err(Error::data(name, "labels", expected, format!("{found} classes")))
            }
            Some(_) => Ok(()),
        }
    }

    /// Returns the number of rows, `None` for an endless source.
    pub fn rows(&self) -> Option<u64> {
        match self {
            Self::Dataset(dataset) => Some(dataset.rows()),
            Self::Toy(_) => None,
            Self::Memory(memory) => Some((memory.rows.len() / memory.width) as u64),
        }
    }

    /// Says whether rows have labels.
    pub fn has_labels(&self) -> bool {
        match self {
            Self::Dataset(dataset) => dataset.has_labels(),
            Self::Toy(_) => false,
            Self::Memory(memory) => memory.labels.is_some(),
        }
    }

    /// Returns the numbers of the rows that make up a batch, in order; empty for an endless source.
    pub fn ids(&self, seed: u64, batch_index: u64, batch: usize) -> Result<Vec<u64>> {
        let Some(rows) = self.rows() else { return Ok(Vec::new()) };
        Permutation::new(seed, 0, rows)?; // refuses an empty source before anything is divided by its rows
        let first = batch_index as u128 * batch as u128;
        let mut ids = Vec::with_capacity(batch);
        let mut order = None;
        for position in first..first + batch as u128 {
            let (epoch, position) = ((position / rows as u128) as u64, (position % rows as u128) as u64);
            let (_, permutation) = match order {
                Some(known @ (e, _)) if e == epoch => known,
                _ => *order.insert((epoch, Permutation::new(seed, epoch, rows)?)),
            };
            ids.push(permutation.row(position));
        }
        Ok(ids)
    }

    /// Fills `out` (batch, width), and `labels` (batch) where asked for, with batch number `batch_index`.
    ///
    /// # Errors
    /// Buffers of the wrong size, labels asked of a source without them, a stored label that cannot be one.
    pub fn fill(
        &self,
        seed: u64,
        batch_index: u64,
        batch: usize,
        out: &mut [f32],
        labels: Option<&mut [u32]>,
    ) -> Result<()> {
        self.check(batch, out.len(), self.width(), labels.as_deref())?;
        if let Self::Toy(toy) = self {
            let draw = Draw::new(seed, Stream::Toy, batch_index);
            for (i, row) in out.chunks_exact_mut(2).enumerate() {
                row.copy_from_slice(&toy.sample(draw, i as u64));
            }
            return Ok(());
        }
        let ids = self.ids(seed, batch_index, batch)?;
        self.gather(&ids, out, labels)
    }

    /// Does the same with rows as they are stored, `out` (batch, stored width).
    ///
    /// # Errors
    /// As [`Source::fill`].
    pub fn fill_stored(
        &self,
        seed: u64,
        batch_index: u64,
        batch: usize,
        out: &mut [f32],
        labels: Option<&mut [u32]>,
    ) -> Result<()> {
        if self.latents().is_none() {
            return self.fill(seed, batch_index, batch, out, labels);
        }
        self.check(batch, out.len(), self.stored_width(), labels.as_deref())?;
        let ids = self.ids(seed, batch_index, batch)?;
        self.gather_stored(&ids, out)?;
        labels.map_or(Ok(()), |labels| self.gather_labels(&ids, labels))
    }

    /// Copies rows by number as they are stored: `out` (ids, stored width).
    ///
    /// # Errors
    /// As [`Source::gather`].
    pub fn gather_stored(&self, ids: &[u64], out: &mut [f32]) -> Result<()> {
        match self {
            Self::Dataset(dataset) => dataset.gather_stored(ids, out),
            _ => self.gather(ids, out, None),
        }
    }

    /// Copies samples by number: `out` (ids, width), `labels` (ids); of moments the means.
    ///
    /// # Errors
    /// A toy, which has no stored rows; a row that is not there; buffers of the wrong size.
    pub fn gather(&self, ids: &[u64], out: &mut [f32], labels: Option<&mut [u32]>) -> Result<()> {
        self.check(ids.len(), out.len(), self.width(), labels.as_deref())?;
        self.check_ids(ids)?;
        match self {
            Self::Dataset(dataset) => dataset.gather(ids, out)?,
            Self::Toy(_) => {}
            Self::Memory(memory) => memory.gather(ids, out),
        }
        labels.map_or(Ok(()), |labels| self.gather_labels(ids, labels))
    }

    /// Copies the labels of rows that are there to `out` (ids); a toy has none.
    fn gather_labels(&self, ids: &[u64], out: &mut [u32]) -> Result<()> {
        match self {
            Self::Dataset(dataset) => dataset.gather_labels(ids, out)?,
            Self::Memory(Memory { labels: Some(all), .. }) => {
                out.iter_mut().zip(ids).for_each(|(y, id)| *y = all[*id as usize]);
            }
            Self::Memory(_) | Self::Toy(_) => {}
        }
        Ok(())
    }

    /// Returns the labels of stored rows, where the source has them.
    ///
    /// # Errors
    /// A row that is not there; a stored label that cannot be one.
    pub fn labels(&self, ids: &[u64]) -> Result<Option<Vec<u32>>> {
        self.check_ids(ids)?;
        let mut labels = self.has_labels().then(|| vec![0; ids.len()]);
        labels.as_deref_mut().map_or(Ok(()), |labels| self.gather_labels(ids, labels))?;
        Ok(labels)
    }

    fn check_ids(&self, ids: &[u64]) -> Result<()> {
        let rows = self.rows().unwrap_or(0);
        match ids.iter().find(|id| **id >= rows) {
            Some(id) => {
                Err(Error::argument("gather", "ids", format!("rows below {rows}"), format!("row {id}")))
            }
            None => Ok(()),
        }
    }

    fn check(&self, batch: usize, out: usize, width: usize, labels: Option<&[u32]>) -> Result<()> {
        if out != batch * width {
            let expected = format!("{batch} rows of {width} values");
            return Err(Error::argument("fill", "out", expected, format!("{out} values")));
        }
        match labels {
            Some(_) if !self.has_labels() => {
                Err(Error::argument("fill", "labels", "no label buffer: the source has none", "one"))
            }
            Some(labels) if labels.len() != batch => {
                let found = format!("{} labels", labels.len());
                Err(Error::argument("fill", "labels", format!("{batch} labels"), found))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(rows: usize, width: usize) -> Source {
        let values = (0..rows * width).map(|i| i as f32).collect();
        Source::Memory(Memory::new(values, width, Some((0..rows as u32).collect())).unwrap())
    }

    fn batch(source: &Source, index: u64, size: usize) -> (Vec<f32>, Vec<u32>) {
        let (mut out, mut labels) = (vec![0.0; size * source.width()], vec![0; size]);
        source.fill(7, index, size, &mut out, Some(&mut labels)).unwrap();
        (out, labels)
    }

    #[test]
    fn an_epoch_shows_every_row_once_even_when_it_ends_inside_a_batch() {
        let source = counting(10, 3);
        let mut ids: Vec<u32> = (0..5).flat_map(|k| batch(&source, k, 4).1).collect();
        let (first, second) = ids.split_at_mut(10);
        assert_ne!(first, second);
        first.sort_unstable();
        second.sort_unstable();
        assert!(first.iter().copied().eq(0..10) && second.iter().copied().eq(0..10));
    }

    #[test]
    fn features_and_labels_belong_together() {
        let source = counting(101, 3);
        let (features, labels) = batch(&source, 12, 17);
        for (row, label) in features.chunks_exact(3).zip(labels) {
            let first = label as f32 * 3.0;
            assert_eq!(row, [first, first + 1.0, first + 2.0]);
        }
    }

    #[test]
    fn the_sequence_of_rows_does_not_depend_on_the_batch_size() {
        let source = counting(23, 1);
        let long: Vec<f32> = (0..4).flat_map(|k| batch(&source, k, 30).0).collect();
        let short: Vec<f32> = (0..40).flat_map(|k| batch(&source, k, 3).0).collect();
        assert_eq!(long, short);
    }

    #[test]
    fn toys_are_fresh_in_every_batch_and_the_same_when_asked_again() {
        let source = Source::Toy(Toy::Spiral);
        let draw = |k| {
            let mut out = vec![0.0; 64];
            source.fill(1, k, 32, &mut out, None).unwrap();
            out
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        assert!(source.rows().is_none());
    }

    #[test]
    fn wrong_buffers_are_refused() {
        let source = Source::Toy(Toy::Grid);
        let short = source.fill(0, 0, 4, &mut [0.0; 7], None).unwrap_err().to_string();
        assert_eq!(short, "fill: `out` has 7 values, expected 4 rows of 2 values");
        let labels = source.fill(0, 0, 1, &mut [0.0; 2], Some(&mut [0])).unwrap_err().to_string();
        assert!(labels.contains("the source has none"), "{labels}");
        assert!(Memory::new(vec![1.0; 7], 3, None).is_err());
        assert!(Memory::new(vec![1.0; 6], 3, Some(vec![1])).is_err());
        let outside = counting(3, 1).gather(&[3], &mut [0.0], None).unwrap_err().to_string();
        assert_eq!(outside, "gather: `ids` has row 3, expected rows below 3");
    }
}

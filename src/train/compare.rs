//! Two files of features against each other: what `flowprior eval A --against B` prints.
//!
//! Files are often sorted, and some measures take the first rows: both are shuffled first, sets of one size alike.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::data::dataset::Dataset;
use crate::data::formats;
use crate::data::permutation::Permutation;
use crate::error::{Error, Result};
use crate::metrics::{self, ClassCoverage, Comparison, DEFAULT_K, Labelled};

/// The measures of points against data, both from files.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FeatureComparison {
    /// Where the points are from.
    pub points: PathBuf,
    /// Where the data are from.
    pub data: PathBuf,
    /// Points.
    pub rows: usize,
    /// Rows of the data.
    pub rows_data: usize,
    /// Columns of both.
    pub width: usize,
    /// Decides the order of the rows and the directions of the sliced distance.
    pub seed: u64,
    /// Density and coverage of each class of the data, all rows; `None` without labels.
    pub classes: Option<Vec<ClassCoverage>>,
    /// The points against the data.
    #[serde(flatten)]
    pub set: Comparison,
}

/// Compares the features of two data sets or files, of any type that `data import` reads. `labels` holds files with the labels
/// of the points and of the data, in that order; data sets may bring their own.
///
/// # Errors
/// Files that cannot be read, of different widths, with values that are not finite; data of fewer than six rows; labels that are
/// not one for each row; a set without labels where the other's are given; see [`metrics::coverage_by_class`].
pub fn compare_files(points: &Path, data: &Path, labels: &[PathBuf], seed: u64) -> Result<FeatureComparison> {
    let a = Features::read(points, labels.first(), seed)?;
    let b = Features::read(data, labels.get(1), seed)?;
    let width = a.width;
    if b.width != width {
        let (expected, found) =
            (format!("rows of {width} as in {}", points.display()), format!("rows of {}", b.width));
        return Err(Error::data(data, "width", expected, found));
    }
    let (rows, rows_data) = (a.rows.len() / width, b.rows.len() / width);
    if rows_data <= DEFAULT_K {
        let expected = format!("more than {DEFAULT_K}: the neighbours of each are measured");
        return Err(Error::data(data, "rows", expected, rows_data));
    }
    let classes = match (&a.labels, &b.labels) {
        (Some(of_a), Some(of_b)) => {
            let queries = Labelled { points: &a.rows, labels: of_a };
            let targets = Labelled { points: &b.rows, labels: of_b };
            Some(metrics::coverage_by_class(queries, targets, width, DEFAULT_K)?)
        }
        (None, _) if !labels.is_empty() => return Err(unlabelled(points)),
        (_, None) if !labels.is_empty() => return Err(unlabelled(data)),
        _ => None,
    };
    let set = metrics::compare(&a.rows, &b.rows, width, width, seed)?;
    Ok(FeatureComparison {
        points: points.to_owned(),
        data: data.to_owned(),
        rows,
        rows_data,
        width,
        seed,
        classes,
        set,
    })
}

fn unlabelled(path: &Path) -> Error {
    let expected = "a label for each row, for coverage by class: `--labels` takes a file for each set";
    Error::data(path, "labels", expected, "none")
}

/// The rows of a file or data set.
struct Features {
    rows: Vec<f32>,
    width: usize,
    labels: Option<Vec<u32>>,
}

impl Features {
    fn read(path: &Path, labels: Option<&PathBuf>, seed: u64) -> Result<Self> {
        let mut features = if path.is_dir() { Self::of_set(path)? } else { Self::of_file(path)? };
        let count = features.rows.len() / features.width.max(1);
        if count == 0 {
            return Err(Error::data(path, "rows", "at least one row of at least one value", "none"));
        }
        if let Some(i) = features.rows.iter().position(|x| !x.is_finite()) {
            let place = format!("row {}, column {}", i / features.width, i % features.width);
            return Err(Error::data(path, place, "a finite value", features.rows[i]));
        }
        if let Some(path) = labels {
            let labels = formats::open_labels(path)?;
            labels.expect_labels(count)?;
            features.labels = Some((0..count).map(|row| labels.label(row)).collect::<Result<_>>()?);
        }
        features.shuffled(seed)
    }

    fn shuffled(self, seed: u64) -> Result<Self> {
        let count = self.rows.len() / self.width;
        let order = Permutation::new(seed, 0, count as u64)?;
        let order: Vec<usize> = (0..count as u64).map(|i| order.row(i) as usize).collect();
        let row = |i: &usize| &self.rows[i * self.width..(i + 1) * self.width];
        Ok(Self {
            rows: order.iter().flat_map(row).copied().collect(),
            labels: self.labels.map(|labels| order.iter().map(|i| labels[*i]).collect()),
            width: self.width,
        })
    }

    fn of_set(path: &Path) -> Result<Self> {
        let set = Dataset::open(path)?;
        let mut rows = vec![0.0; set.rows() as usize * set.width()];
        set.gather(&(0..set.rows()).collect::<Vec<_>>(), &mut rows)?;
        Ok(Self { rows, width: set.width(), labels: set.labels()? })
    }

    fn of_file(path: &Path) -> Result<Self> {
        let array = formats::open(path, None)?;
        let width = array.width();
        let mut rows = vec![0.0; array.rows() * width];
        if width > 0 {
            rows.chunks_exact_mut(width).enumerate().for_each(|(row, out)| array.read_row(row, out));
        }
        Ok(Self { rows, width, labels: None })
    }
}

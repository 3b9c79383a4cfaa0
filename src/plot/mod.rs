//! Figures as PNG files: no system library, no display, the font inside the binary.
//!
//! Each function takes plain slices, draws, and writes the file atomically. tiny-skia fills and strokes with
//! anti-aliasing and round joins; axes, legends and colour bars are ours. Bad values do not stop a figure: a curve has
//! a gap and a heat map a grey cell where a value is not finite, because the figure of a run that went wrong is the
//! one that is needed most.

mod canvas;
mod chart;
mod colours;
mod curves;
mod file;
mod heat;
mod images;
mod scale;
mod scatter;
mod snapshots;
mod text;
mod toy;

use std::path::Path;

pub use curves::{Curves, Series, ValueAxis, curves};
pub use images::{ClassGrid, ImageGrid, class_grid, image_grid};
pub use scale::Scale;
pub use scatter::{Group, Join, Layout, Relation, curves_and_relation, scatter_2d, scatter_xy};
pub use snapshots::{Moment, Passage, Plane, snapshot_animation, snapshot_grid};
pub use toy::{ToyPanels, heat_grid, padded_extent, toy_columns, toy_panels};

use crate::error::{Error, Result};

/// Returns the mean over a window of `width` values around each: `width/2` before it, `(width−1)/2` after.
///
/// At the ends the window is cut off, so the result is as long as the input. Values that are not finite are left out
/// of the mean; a window without any finite value gives NaN.
pub fn moving_average(values: &[f64], width: usize) -> Vec<f64> {
    let width = width.max(1);
    let mean = |i: usize| {
        let window = &values[i.saturating_sub(width / 2)..values.len().min(i + width.div_ceil(2))];
        let finite = window.iter().filter(|v| v.is_finite());
        let (sum, count) = finite.fold((0.0, 0), |(sum, count), v| (sum + v, count + 1));
        if count == 0 { f64::NAN } else { sum / count as f64 }
    };
    (0..values.len()).map(mean).collect()
}

/// Checks that a list has the length of its companion.
fn same_length(path: &Path, field: &str, unit: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::data(path, field, format!("{expected} {unit}"), found))
}

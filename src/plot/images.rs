//! Grids of small images, grey or in colour: originals above reconstructions above samples, or a row for each class.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::plot::canvas::{Anchor, Area, Canvas, Ink, Style};
use crate::plot::chart::{LABEL, TITLE};
use crate::plot::colours::NO_VALUE;
use crate::plot::same_length;

/// Space between images, and around the figure, in points.
const GAP: f32 = 4.0;
const MARGIN: f32 = 16.0;
/// Least height of an image on the page.
const LEAST: f32 = 56.0;

/// What a grid of images shows.
#[derive(Clone, Copy, Debug)]
pub struct ImageGrid<'a> {
    /// The figure's title; may be empty.
    pub title: &'a str,
    /// The images, row by row of the grid, each `(channels, height, width)`; an empty one leaves its place free, and the last row
    /// may be short.
    pub images: &'a [&'a [f32]],
    /// 1 for grey images, 3 for red, green and blue.
    pub channels: usize,
    /// Pixels across an image.
    pub width: usize,
    /// Pixels down an image.
    pub height: usize,
    /// Images in a row of the grid.
    pub columns: usize,
    /// Words at the left of each row; may be empty or shorter than the grid.
    pub captions: &'a [&'a str],
    /// The values that are black and white; values beyond take the nearer one.
    pub range: (f32, f32),
}

/// Images by class: a row of the grid for each class, with its name.
#[derive(Clone, Copy, Debug)]
pub struct ClassGrid<'a> {
    /// The figure's title; may be empty.
    pub title: &'a str,
    /// The images, `(N, channels, height, width)`.
    pub images: &'a [f32],
    /// Channels (1 or 3), height and width of an image.
    pub shape: [usize; 3],
    /// The class of each image.
    pub labels: &'a [u32],
    /// The names of the classes; a class without one is shown by its number.
    pub names: &'a [String],
    /// Images in a row, at most: the first of each class.
    pub columns: usize,
    /// The values that are black and white.
    pub range: (f32, f32),
}

/// Draws images by class and writes them to a PNG file: rows are the classes that occur, in order.
///
/// # Errors
/// As [`image_grid`], and labels that are not as many as the images.
pub fn class_grid(path: impl AsRef<Path>, figure: &ClassGrid) -> Result<()> {
    let path = path.as_ref();
    let [channels, height, width] = figure.shape;
    let size = channels * height * width;
    let count = figure.images.len().checked_div(size).unwrap_or(0);
    same_length(path, "labels", "images", figure.labels.len(), count)?;
    let mut classes: BTreeMap<u32, Vec<&[f32]>> = BTreeMap::new();
    for (image, label) in figure.images.chunks_exact(size.max(1)).zip(figure.labels) {
        classes.entry(*label).or_default().push(image);
    }
    let most = classes.values().map(Vec::len).max().unwrap_or(0).min(figure.columns);
    let places = classes.values().flat_map(|of| (0..most).map(|i| of.get(i).copied().unwrap_or_default()));
    let images: Vec<&[f32]> = places.collect();
    let name = |class: &u32| figure.names.get(*class as usize).cloned().unwrap_or_else(|| class.to_string());
    let names: Vec<String> = classes.keys().map(name).collect();
    let captions: Vec<&str> = names.iter().map(String::as_str).collect();
    let (title, captions, range) = (figure.title, &captions[..], figure.range);
    image_grid(
        path,
        &ImageGrid { title, images: &images, channels, width, height, columns: most, captions, range },
    )
}

/// Draws a grid of images, each pixel a crisp square, and writes it to a PNG file.
///
/// # Errors
/// `Error::Data` if there is no image, one has not `channels · width · height` values, channels are neither 1 nor 3, or the range
/// is empty; `Error::Io` if the file cannot be written.
pub fn image_grid(path: impl AsRef<Path>, figure: &ImageGrid) -> Result<()> {
    let path = path.as_ref();
    check(path, figure)?;
    // Whole points per pixel, so that all squares are of one size.
    let zoom = (LEAST / figure.height as f32).ceil();
    let (w, h) = (zoom * figure.width as f32, zoom * figure.height as f32);
    let rows = figure.images.len().div_ceil(figure.columns);
    // Captions are measured on a page of their own, because the page's width depends on them.
    let ruler = Canvas::new(path, 1.0, 1.0)?;
    let widest = figure.captions.iter().map(|c| ruler.text_width(c, LABEL)).fold(0.0, f32::max);
    let left = MARGIN + if widest > 0.0 { widest.ceil() + 12.0 } else { 0.0 };
    let top = MARGIN + if figure.title.is_empty() { 0.0 } else { TITLE + 14.0 };
    let grid = figure.columns as f32 * (w + GAP) - GAP;
    let title_width = ruler.text_width(figure.title, TITLE) + 2.0 * MARGIN;
    let width = (left + grid + MARGIN).max(title_width).ceil();
    let mut canvas = Canvas::new(path, width, top + rows as f32 * (h + GAP) - GAP + MARGIN)?;
    let style = Style { size: TITLE, ink: Ink::TEXT, anchor: Anchor::Middle };
    canvas.text(width / 2.0, MARGIN + TITLE / 2.0, figure.title, style);
    for (i, caption) in figure.captions.iter().take(rows).enumerate() {
        let y = top + i as f32 * (h + GAP) + h / 2.0;
        canvas.text(left - 12.0, y, caption, Style { size: LABEL, anchor: Anchor::End, ..style });
    }
    for (i, image) in figure.images.iter().enumerate().filter(|(_, image)| !image.is_empty()) {
        let (row, column) = (i / figure.columns, i % figure.columns);
        let area = Area { x: left + column as f32 * (w + GAP), y: top + row as f32 * (h + GAP), w, h };
        draw_image(&mut canvas, area, figure, image);
    }
    canvas.save(path)
}

fn check(path: &Path, figure: &ImageGrid) -> Result<()> {
    let sizes = [("images", figure.images.len()), ("columns", figure.columns), ("width", figure.width)];
    for (field, size) in sizes.into_iter().chain([("height", figure.height)]) {
        if size == 0 {
            return Err(Error::data(path, field, "at least 1", size));
        }
    }
    let (black, white) = figure.range;
    if !(black < white && black.is_finite() && white.is_finite()) {
        return Err(Error::data(path, "range", "black below white", format!("{black} and {white}")));
    }
    if ![1, 3].contains(&figure.channels) {
        return Err(Error::data(path, "channels", "1 (grey) or 3 (red, green, blue)", figure.channels));
    }
    let size = figure.channels * figure.width * figure.height;
    for (i, image) in figure.images.iter().enumerate().filter(|(_, image)| !image.is_empty()) {
        same_length(path, &format!("image {i}"), "values", size, image.len())?;
    }
    Ok(())
}

fn draw_image(canvas: &mut Canvas, area: Area, figure: &ImageGrid, image: &[f32]) {
    let (black, white) = figure.range;
    canvas.shade(area, |u, v| {
        let x = ((u * figure.width as f32) as usize).min(figure.width - 1);
        let y = ((v * figure.height as f32) as usize).min(figure.height - 1);
        let area = figure.width * figure.height;
        let colours = [0, 1, 2].map(|c| image[c % figure.channels * area + y * figure.width + x]);
        if colours.iter().any(|value| value.is_nan()) {
            return NO_VALUE;
        }
        colours.map(|value| ((value - black) / (white - black) * 255.0).round().clamp(0.0, 255.0) as u8)
    });
    canvas.outline(area, 0.5, Ink::FRAME);
}

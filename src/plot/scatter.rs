//! Points: a relation of two measured quantities, alone or beside curves, and clouds of 2-D samples.

use std::path::Path;

use crate::error::{Error, Result};
use crate::plot::canvas::{Anchor, Area, Canvas, Ink, Marker, Style};
use crate::plot::chart::{Axis, Chart, Entry, LABEL, SUBTITLE, Sample, Side, TITLE};
use crate::plot::colours::{palette, viridis};
use crate::plot::curves::{Curves, draw_curves};
use crate::plot::same_length;
use crate::plot::scale::{Range, Scale};
use crate::plot::toy::padded_extent;

/// Whether points follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Join {
    /// The points are a set.
    #[default]
    Apart,
    /// The points are a trajectory: a thin line joins them in order.
    Path,
}

/// A figure of one quantity against another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Relation<'a> {
    /// The figure's title; may be empty.
    pub title: &'a str,
    /// A line under the title, such as the correlation; may be empty.
    pub note: &'a str,
    /// Names the x-axis.
    pub x_label: &'a str,
    /// Names the y-axis.
    pub y_label: &'a str,
    /// Spreads the x-axis.
    pub x_scale: Scale,
    /// Spreads the y-axis.
    pub y_scale: Scale,
    /// The points' x; points without a place on an axis are left out.
    pub x: &'a [f64],
    /// The points' y.
    pub y: &'a [f64],
    /// Colours the points, such as the step; empty for one colour.
    pub colour: &'a [f64],
    /// Names the colour bar.
    pub colour_label: &'a str,
    /// Spreads the colours.
    pub colour_scale: Scale,
    /// Whether the points are a trajectory.
    pub join: Join,
}

/// Draws a relation and writes it to a PNG file, 640 × 500 points.
///
/// # Errors
/// `Error::Data` if the lists differ in length or no point can be shown; `Error::Io` if the file cannot be written.
pub fn scatter_xy(path: impl AsRef<Path>, figure: &Relation) -> Result<()> {
    let path = path.as_ref();
    let mut canvas = Canvas::new(path, 640.0, 500.0)?;
    draw_relation(path, &mut canvas, Area { x: 16.0, y: 14.0, w: 608.0, h: 472.0 }, figure, TITLE)?;
    canvas.save(path)
}

/// Draws curves and, beside them, a relation, and writes both to a PNG file, 1100 × 440 points.
///
/// # Errors
/// Those of [`crate::plot::curves`] and [`scatter_xy`].
pub fn curves_and_relation(
    path: impl AsRef<Path>,
    title: &str,
    curves: &Curves,
    relation: &Relation,
) -> Result<()> {
    let path = path.as_ref();
    let mut canvas = Canvas::new(path, 1100.0, 440.0)?;
    canvas.text(550.0, 24.0, title, Style { size: TITLE, ink: Ink::TEXT, anchor: Anchor::Middle });
    let panel = |x, w| Area { x, y: 42.0, w, h: 386.0 };
    draw_curves(path, &mut canvas, panel(14.0, 550.0), curves, SUBTITLE)?;
    draw_relation(path, &mut canvas, panel(580.0, 506.0), relation, SUBTITLE)?;
    canvas.save(path)
}

/// Draws a relation into a part of a page.
fn draw_relation(
    path: &Path,
    canvas: &mut Canvas,
    outer: Area,
    figure: &Relation,
    title_size: f32,
) -> Result<()> {
    same_length(path, "y", "values", figure.x.len(), figure.y.len())?;
    if !figure.colour.is_empty() {
        same_length(path, "colour", "values", figure.x.len(), figure.colour.len())?;
    }
    let points = shown(figure);
    let x = Range::of(figure.x_scale, points.iter().map(|p| p.0), 0.04);
    let y = Range::of(figure.y_scale, points.iter().map(|p| p.1), 0.05);
    let (Some(x), Some(y)) = (x, y) else {
        return Err(Error::data(path, "points", "at least one that the axes can show", "none"));
    };
    let colours = Range::of(figure.colour_scale, figure.colour.iter().copied(), 0.0);
    let axis = |label, range| Axis { label, range, ink: Ink::TEXT };
    let bar = |range| Side::Bar { axis: axis(figure.colour_label, range), reversed: false, tip: false };
    let (middle, title) =
        (outer.middle().0, Style { size: title_size, ink: Ink::TEXT, anchor: Anchor::Middle });
    canvas.text(middle, outer.y + 12.0, figure.title, title);
    canvas.text(middle, outer.y + 33.0, figure.note, Style { size: LABEL, ink: Ink::SOFT, ..title });
    let chart = Chart {
        title: "",
        title_size,
        x: axis(figure.x_label, x),
        y: axis(figure.y_label, y),
        side: colours.map_or(Side::Nothing, bar),
        legend: &[],
        legend_rows: 0,
        equal: false,
        grid: true,
    };
    let head =
        if figure.title.is_empty() { 0.0 } else { 24.0 } + if figure.note.is_empty() { 0.0 } else { 16.0 };
    let placed = chart.place(canvas, Area { y: outer.y + head, h: outer.h - head, ..outer });
    let places: Vec<_> = points.iter().filter_map(|p| placed.at(p.0, p.1).map(|at| (at, p.2))).collect();
    if figure.join == Join::Path {
        let line: Vec<_> = places.iter().map(|p| p.0).collect();
        canvas.line(&line, 1.2, Ink::FRAME.with_alpha(0.8));
    }
    // Many points overlap: smaller and paler ones show where they crowd.
    let (radius, alpha) = if places.len() > 400 { (2.2, 0.55) } else { (4.0, 0.95) };
    for (place, colour) in places {
        let ink = colours.map_or(Ink::BLUE, |range| Ink::new(viridis(range.share(colour))));
        let edge = (radius > 3.0).then_some(Ink::WHITE);
        canvas.marker(place, radius, Marker::Disc, ink.with_alpha(alpha), edge);
    }
    placed.finish(canvas);
    Ok(())
}

/// The points with a place on both axes and, where colours are asked for, a colour: (x, y, colour).
fn shown(figure: &Relation) -> Vec<(f64, f64, f64)> {
    let plain = figure.colour.is_empty();
    let colour = |i: usize| if plain { 0.0 } else { figure.colour[i] };
    let all = figure.x.iter().zip(figure.y).enumerate().map(|(i, (x, y))| (*x, *y, colour(i)));
    all.filter(|p| figure.x_scale.shows(p.0) && figure.y_scale.shows(p.1))
        .filter(|p| plain || figure.colour_scale.shows(p.2))
        .collect()
}

/// A named cloud of points.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// Names the cloud.
    pub label: &'a str,
    /// Its points; those that are not finite are left out.
    pub points: &'a [[f32; 2]],
}

/// How clouds share a figure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// All in one frame, later groups over earlier ones.
    #[default]
    Overlay,
    /// Each in a frame of its own, side by side, with common axes.
    SideBySide,
}

/// Draws clouds of 2-D points, such as samples against data, on axes with equal units, and writes a PNG file.
///
/// # Errors
/// `Error::Data` if there is no finite point; `Error::Io` if the file cannot be written.
pub fn scatter_2d(path: impl AsRef<Path>, title: &str, groups: &[Group], layout: Layout) -> Result<()> {
    let path = path.as_ref();
    let finite = |p: &[f32; 2]| p[0].is_finite() && p[1].is_finite();
    if !groups.iter().any(|g| g.points.iter().any(finite)) {
        return Err(Error::data(path, "points", "at least one finite point", "none"));
    }
    let sets: Vec<_> = groups.iter().map(|g| g.points).collect();
    // A fifth of the padding that a heat map has: 4 %.
    let [x0, x1, y0, y1] = padded_extent(&sets).map(f64::from);
    let (dx, dy) = ((x1 - x0) * 0.16 / 1.4, (y1 - y0) * 0.16 / 1.4);
    let ranges = (Range::exactly(x0 + dx, x1 - dx), Range::exactly(y0 + dy, y1 - dy));
    let panels: Vec<&[Group]> = match layout {
        Layout::Overlay => vec![groups],
        Layout::SideBySide => groups.chunks(1).collect(),
    };
    let side = if panels.len() == 1 { 520.0 } else { 400.0 };
    let width = side * panels.len() as f32 + 20.0;
    let top = if title.is_empty() { 8.0 } else { 36.0 };
    // Around the frame: about 75 points for the y-axis, 72 for legend and x-axis.
    let shape = (ranges.1.length() / ranges.0.length()).clamp(0.35, 1.5) as f32;
    let height = (side - 75.0) * shape + 72.0;
    let mut canvas = Canvas::new(path, width, top + height + 10.0)?;
    let style = Style { size: TITLE, ink: Ink::TEXT, anchor: Anchor::Middle };
    canvas.text(width / 2.0, 24.0, title, style);
    for (i, panel) in panels.iter().enumerate() {
        let outer = Area { x: 10.0 + side * i as f32, y: top, w: side - 6.0, h: height };
        draw_clouds(&mut canvas, outer, panel, ranges, i);
    }
    canvas.save(path)
}

/// Draws groups into one frame; `first` is the colour of the first.
fn draw_clouds(canvas: &mut Canvas, outer: Area, groups: &[Group], ranges: (Range, Range), first: usize) {
    let entry =
        |(i, g): (usize, &Group)| (g.label.to_owned(), palette(first + i), Sample::Marker(Marker::Disc));
    let entries: Vec<_> = groups.iter().enumerate().map(entry).collect();
    let alone = groups.len() == 1;
    let legend: Vec<Entry> =
        entries.iter().map(|(label, ink, sample)| Entry { label, ink: *ink, sample: *sample }).collect();
    let axis = |label, range| Axis { label, range, ink: Ink::TEXT };
    let chart = Chart {
        title: if alone { groups[0].label } else { "" },
        title_size: SUBTITLE,
        x: axis("x₁", ranges.0),
        y: axis("x₂", ranges.1),
        side: Side::Nothing,
        legend: if alone { &[] } else { &legend },
        legend_rows: 0,
        equal: true,
        grid: true,
    };
    let placed = chart.place(canvas, outer);
    for (i, group) in groups.iter().enumerate() {
        let alpha = if group.points.len() > 500 { 0.35 } else { 0.7 };
        let ink = palette(first + i).with_alpha(alpha);
        for at in group.points.iter().filter_map(|p| placed.at(p[0] as f64, p[1] as f64)) {
            canvas.marker(at, 1.9, Marker::Disc, ink, None);
        }
    }
    placed.finish(canvas);
}

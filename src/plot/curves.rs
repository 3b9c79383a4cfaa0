//! Curves over steps: one or two y-axes, noisy curves smoothed.

use std::path::Path;

use crate::error::{Error, Result};
use crate::plot::canvas::{Area, Canvas, Ink, Marker};
use crate::plot::chart::{Axis, Chart, Entry, Placed, Sample, Side, TITLE};
use crate::plot::colours::palette;
use crate::plot::scale::{Range, Scale};
use crate::plot::{moving_average, same_length};

/// Curves with at most this many points get a marker at each.
const MARKED: usize = 60;

/// One curve.
#[derive(Clone, Copy, Debug)]
pub struct Series<'a> {
    /// Names the curve in the legend.
    pub label: &'a str,
    /// Where the values were taken, ascending: steps.
    pub x: &'a [f64],
    /// The values; a curve has a gap where one is not finite.
    pub y: &'a [f64],
    /// Width of the moving average that is drawn over the pale raw curve; 0 or 1 draws the raw curve alone.
    pub smooth: usize,
}

/// An axis of values: what it shows and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct ValueAxis<'a> {
    /// Names the axis, with the unit if there is one.
    pub label: &'a str,
    /// Spreads its values.
    pub scale: Scale,
    /// Its curves; an axis without any is not drawn.
    pub series: &'a [Series<'a>],
}

/// A figure of curves over a common x-axis.
#[derive(Clone, Copy, Debug, Default)]
pub struct Curves<'a> {
    /// The figure's title; may be empty.
    pub title: &'a str,
    /// Names the x-axis.
    pub x_label: &'a str,
    /// Spreads the x-axis; `Log` leaves out x ≤ 0, so number steps from 1.
    pub x_scale: Scale,
    /// The axis at the left.
    pub left: ValueAxis<'a>,
    /// The axis at the right.
    pub right: ValueAxis<'a>,
}

/// Draws curves and writes them to a PNG file, 760 × 470 points.
///
/// # Errors
/// `Error::Data` if a curve's x and y differ in length or no axis has a value to show; `Error::Io` if the file cannot
/// be written.
pub fn curves(path: impl AsRef<Path>, figure: &Curves) -> Result<()> {
    let path = path.as_ref();
    let mut canvas = Canvas::new(path, 760.0, 470.0)?;
    let outer = Area { x: 16.0, y: 14.0, w: 728.0, h: 442.0 };
    draw_curves(path, &mut canvas, outer, figure, TITLE)?;
    canvas.save(path)
}

/// Draws curves into a part of a page.
pub(super) fn draw_curves(
    path: &Path,
    canvas: &mut Canvas,
    outer: Area,
    figure: &Curves,
    title_size: f32,
) -> Result<()> {
    for series in figure.left.series.iter().chain(figure.right.series) {
        same_length(path, series.label, "values", series.x.len(), series.y.len())?;
    }
    let (left, right) = (value_range(figure, &figure.left), value_range(figure, &figure.right));
    let xs = figure.left.series.iter().chain(figure.right.series).flat_map(|s| s.x.iter().copied());
    let Some(x) = Range::of(figure.x_scale, xs, 0.01) else {
        return Err(Error::data(path, "curves", "at least one x to show", "none"));
    };
    // Right-hand curves go to the left axis if that has nothing to show.
    let (Some(left), right, figure) = (match left {
        Some(_) => (left, right, *figure),
        None => (right, None, Curves { left: figure.right, right: ValueAxis::default(), ..*figure }),
    }) else {
        return Err(Error::data(path, "curves", "at least one finite value to show", "none"));
    };
    let inks = axis_inks(&figure, right.is_some());
    let legend = legend(&figure, right.is_some());
    let side = right
        .map_or(Side::Nothing, |range| Side::Axis(Axis { label: figure.right.label, range, ink: inks.1 }));
    let chart = Chart {
        title: figure.title,
        title_size,
        x: Axis { label: figure.x_label, range: x, ink: Ink::TEXT },
        y: Axis { label: figure.left.label, range: left, ink: inks.0 },
        side,
        legend: &legend,
        legend_rows: 0,
        equal: false,
        grid: true,
    };
    let placed = chart.place(canvas, outer);
    let count = figure.left.series.len();
    for (i, series) in figure.left.series.iter().enumerate() {
        draw_series(canvas, &placed, series, palette(i), |x, y| placed.at(x, y));
    }
    for (i, series) in figure.right.series.iter().enumerate() {
        draw_series(canvas, &placed, series, palette(count + i), |x, y| placed.at_right(x, y));
    }
    placed.finish(canvas);
    Ok(())
}

/// The range of all values; where the rarest values of a smoothed curve (one in a hundred) would take more than half
/// of it, they leave the frame.
fn value_range(figure: &Curves, axis: &ValueAxis) -> Option<Range> {
    let shown = |s: &Series, values: &[f64]| -> Vec<f64> {
        let pairs =
            s.x.iter().zip(values).filter(|(x, y)| figure.x_scale.shows(**x) && axis.scale.shows(**y));
        pairs.map(|(_, y)| *y).collect()
    };
    let all = axis.series.iter().flat_map(|s| shown(s, s.y));
    let most = axis.series.iter().flat_map(|s| {
        let mut raw = shown(s, s.y);
        if s.smooth < 2 {
            return raw;
        }
        raw.sort_by(f64::total_cmp);
        let tail = raw.len() / 200;
        let mut values = shown(s, &smoothed(s));
        values.extend_from_slice(&raw[tail..raw.len() - tail]);
        values
    });
    let (all, most) = (Range::of(axis.scale, all, 0.05)?, Range::of(axis.scale, most, 0.05)?);
    Some(if all.length() > 2.0 * most.length() { most } else { all })
}

/// The moving average, with the gaps of the raw curve.
fn smoothed(series: &Series) -> Vec<f64> {
    let mut average = moving_average(series.y, series.smooth);
    let gaps = series.y.iter().zip(&mut average).filter(|(raw, _)| !raw.is_finite());
    gaps.for_each(|(_, average)| *average = f64::NAN);
    average
}

/// With one curve on each side, each axis takes its curve's colour.
fn axis_inks(figure: &Curves, two: bool) -> (Ink, Ink) {
    if two && figure.left.series.len() == 1 && figure.right.series.len() == 1 {
        return (palette(0), palette(1));
    }
    (Ink::TEXT, Ink::TEXT)
}

/// A lone curve without a name of its own needs no legend.
fn legend<'a>(figure: &Curves<'a>, two: bool) -> Vec<Entry<'a>> {
    let all = figure.left.series.iter().chain(figure.right.series);
    let entries =
        all.enumerate().map(|(i, s)| Entry { label: s.label, ink: palette(i), sample: Sample::Line });
    let entries: Vec<_> = entries.filter(|e| !e.label.is_empty()).collect();
    if entries.len() < 2 && !two { Vec::new() } else { entries }
}

fn draw_series(
    canvas: &mut Canvas,
    placed: &Placed,
    series: &Series,
    ink: Ink,
    at: impl Fn(f64, f64) -> Option<(f32, f32)>,
) {
    let place =
        |y: &[f64]| -> Vec<Option<(f32, f32)>> { series.x.iter().zip(y).map(|(x, y)| at(*x, *y)).collect() };
    // What leaves the frame (a raw curve's rarest outliers) stays at its edge.
    let clamp = |p: Option<(f32, f32)>| p.map(|(x, y)| (x, y.clamp(placed.frame.y, placed.frame.bottom())));
    let raw: Vec<_> = place(series.y).into_iter().map(clamp).collect();
    if series.smooth > 1 {
        draw_line(canvas, &raw, 0.8, ink.with_alpha(0.22));
        draw_line(canvas, &place(&smoothed(series)), 2.0, ink);
        return;
    }
    draw_line(canvas, &raw, 2.0, ink);
    if series.x.len() <= MARKED {
        raw.iter().flatten().for_each(|p| canvas.marker(*p, 2.8, Marker::Disc, ink, None));
    }
}

fn draw_line(canvas: &mut Canvas, points: &[Option<(f32, f32)>], width: f32, ink: Ink) {
    for piece in points.split(|p| p.is_none()) {
        let piece: Vec<(f32, f32)> = piece.iter().copied().flatten().collect();
        canvas.line(&thin_out(&piece), width, ink);
    }
}

/// Keeps the first, lowest, highest and last point of each half point of width: looks the same, and a curve of a
/// million steps costs what a curve of a thousand does.
fn thin_out(points: &[(f32, f32)]) -> Vec<(f32, f32)> {
    let column = |p: &(f32, f32)| (p.0 * 2.0).floor();
    let mut kept = Vec::new();
    for group in points.chunk_by(|a, b| column(a) == column(b)) {
        if group.len() <= 4 {
            kept.extend_from_slice(group);
            continue;
        }
        let by_y = |a: &usize, b: &usize| group[*a].1.total_cmp(&group[*b].1);
        let low = (0..group.len()).min_by(by_y).unwrap_or(0);
        let high = (0..group.len()).max_by(by_y).unwrap_or(0);
        let mut keep = [0, low, high, group.len() - 1];
        keep.sort_unstable();
        kept.extend(keep.into_iter().map(|i| group[i]));
    }
    kept
}

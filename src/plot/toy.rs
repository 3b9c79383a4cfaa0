//! The three-panel figure of a 2-D toy: where data is likely, where the alignment loss is low, and how stage 2 went.

use std::path::Path;

use crate::error::{Error, Result};
use crate::plot::canvas::{Anchor, Area, Canvas, Ink, Marker, Style};
use crate::plot::chart::{Axis, Chart, Entry, Placed, SUBTITLE, Sample, Side, TITLE};
use crate::plot::colours::{NO_VALUE, viridis};
use crate::plot::curves::{Curves, Series, ValueAxis, draw_curves};
use crate::plot::same_length;
use crate::plot::scale::{Range, Scale};

/// Width of the moving average of the loss curve: the reference's.
const SMOOTH: usize = 17;
/// Share of the heat map's values that its colours cover; the rest, far from all data, take the last colour.
const COVERED: f64 = 0.98;

/// What the three panels show.
#[derive(Clone, Copy, Debug)]
pub struct ToyPanels<'a> {
    /// The figure's title.
    pub title: &'a str,
    /// The part of the plane that the maps cover: x from, x to, y from, y to.
    pub extent: [f32; 4],
    /// Nodes per side of the maps, 50 in the reference.
    pub side: usize,
    /// Negative log-likelihood at the nodes of [`heat_grid`], row-major, row = y, ascending: `(side, side)`.
    pub nll: &'a [f32],
    /// Alignment loss at the same nodes.
    pub loss: &'a [f32],
    /// Titles the map of the loss: which weight it has.
    pub loss_title: &'a str,
    /// Names the values of that map.
    pub loss_label: &'a str,
    /// Samples of the target.
    pub data: &'a [[f32; 2]],
    /// Latents at the end of stage 2.
    pub latents: &'a [[f32; 2]],
    /// Steps of the loss curve, from 1.
    pub steps: &'a [f64],
    /// Alignment loss at these steps; drawn pale, with its moving average over 17 of them.
    pub loss_curve: &'a [f64],
    /// Steps of the likelihood curve, from 1.
    pub nll_steps: &'a [f64],
    /// Mean negative log-likelihood of the latents at these steps.
    pub nll_curve: &'a [f64],
}

/// Returns the extent of all points, padded by 20 % of its length on each side; the unit square if there are none.
pub fn padded_extent(sets: &[&[[f32; 2]]]) -> [f32; 4] {
    let finite =
        |axis: usize| sets.iter().flat_map(|s| s.iter()).map(move |p| p[axis]).filter(|v| v.is_finite());
    let side = |axis| {
        let (lo, hi) =
            finite(axis).fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
        if lo > hi {
            return (0.0, 1.0);
        }
        let pad = if hi > lo { 0.2 * (hi - lo) } else { 1.0 };
        (lo - pad, hi + pad)
    };
    let ((x0, x1), (y0, y1)) = (side(0), side(1));
    [x0, x1, y0, y1]
}

/// Returns the nodes at which a heat map wants its values: `(side, side)` points, row = y, both ascending, the first
/// and last on the extent's edges.
pub fn heat_grid(extent: [f32; 4], side: usize) -> Vec<[f32; 2]> {
    let [x0, x1, y0, y1] = extent;
    let share = |i: usize| i as f32 / (side.max(2) - 1) as f32;
    let row = |j: usize| (0..side).map(move |i| [x0 + (x1 - x0) * share(i), y0 + (y1 - y0) * share(j)]);
    (0..side).flat_map(row).collect()
}

/// Draws the three panels and writes them to a PNG file, 1330 × 440 points.
///
/// # Errors
/// `Error::Data` if a list has the wrong length, a map no finite value, or the extent no area; `Error::Io` if the
/// file cannot be written.
pub fn toy_panels(path: impl AsRef<Path>, figure: &ToyPanels) -> Result<()> {
    let path = path.as_ref();
    check(path, figure)?;
    let mut canvas = Canvas::new(path, 1330.0, 440.0)?;
    let title = Style { size: TITLE, ink: Ink::TEXT, anchor: Anchor::Middle };
    canvas.text(665.0, 24.0, figure.title, title);
    let panel = |x, w| Area { x, y: 42.0, w, h: 386.0 };
    draw_likelihood(path, &mut canvas, panel(14.0, 435.0), figure)?;
    draw_loss(path, &mut canvas, panel(455.0, 435.0), figure)?;
    draw_training(path, &mut canvas, panel(900.0, 418.0), figure)?;
    canvas.save(path)
}

fn check(path: &Path, figure: &ToyPanels) -> Result<()> {
    let [x0, x1, y0, y1] = figure.extent;
    if !(x0 < x1 && y0 < y1 && figure.extent.iter().all(|v| v.is_finite())) {
        let found = format!("{x0} to {x1}, {y0} to {y1}");
        return Err(Error::data(path, "extent", "ascending finite limits", found));
    }
    if figure.side < 2 {
        return Err(Error::data(path, "side", "at least 2 nodes", figure.side));
    }
    let nodes = figure.side * figure.side;
    same_length(path, "nll", "values", nodes, figure.nll.len())?;
    same_length(path, "loss", "values", nodes, figure.loss.len())?;
    same_length(path, "loss_curve", "values", figure.steps.len(), figure.loss_curve.len())?;
    same_length(path, "nll_curve", "values", figure.nll_steps.len(), figure.nll_curve.len())
}

fn draw_likelihood(path: &Path, canvas: &mut Canvas, outer: Area, figure: &ToyPanels) -> Result<()> {
    let legend = [
        Entry { label: "data", ink: Ink::BLUE, sample: Sample::Marker(Marker::Disc) },
        Entry { label: "latents", ink: Ink::RED, sample: Sample::Marker(Marker::Triangle) },
    ];
    let map = HeatMap {
        title: "(a) Negative log-likelihood",
        label: "−log p(y)",
        extent: figure.extent,
        side: figure.side,
        values: figure.nll,
    };
    map.draw(path, canvas, outer, &legend, |canvas, placed| {
        for point in figure.data {
            draw_point(canvas, placed, point, 1.5, Marker::Disc, Ink::BLUE.with_alpha(0.45), None);
        }
        let edge = Some(Ink::WHITE.with_alpha(0.6));
        for point in figure.latents {
            draw_point(canvas, placed, point, 2.7, Marker::Triangle, Ink::RED.with_alpha(0.85), edge);
        }
    })
}

fn draw_loss(path: &Path, canvas: &mut Canvas, outer: Area, figure: &ToyPanels) -> Result<()> {
    let map = HeatMap {
        title: figure.loss_title,
        label: figure.loss_label,
        extent: figure.extent,
        side: figure.side,
        values: figure.loss,
    };
    map.draw(path, canvas, outer, &[], |_, _| {})
}

fn draw_training(path: &Path, canvas: &mut Canvas, outer: Area, figure: &ToyPanels) -> Result<()> {
    let loss = Series { label: "alignment loss", x: figure.steps, y: figure.loss_curve, smooth: SMOOTH };
    let nll = Series { label: "−log p", x: figure.nll_steps, y: figure.nll_curve, smooth: 0 };
    let curves = Curves {
        title: "(c) Alignment",
        x_label: "step",
        x_scale: Scale::Log,
        left: ValueAxis { label: "alignment loss", scale: Scale::Linear, series: &[loss] },
        right: ValueAxis { label: "mean −log p(y)", scale: Scale::Linear, series: &[nll] },
    };
    draw_curves(path, canvas, outer, &curves, SUBTITLE)
}

/// Values over a part of the plane, as colours: light where they are low.
struct HeatMap<'a> {
    title: &'a str,
    label: &'a str,
    extent: [f32; 4],
    side: usize,
    values: &'a [f32],
}

impl HeatMap<'_> {
    fn draw(
        &self,
        path: &Path,
        canvas: &mut Canvas,
        outer: Area,
        legend: &[Entry],
        over: impl FnOnce(&mut Canvas, &Placed),
    ) -> Result<()> {
        let Some((low, high, beyond)) = colour_range(self.values) else {
            return Err(Error::data(path, self.title, "at least one finite value", "none"));
        };
        let [x0, x1, y0, y1] = self.extent.map(f64::from);
        let axis = |label, lo, hi| Axis { label, range: Range::exactly(lo, hi), ink: Ink::TEXT };
        let bar = Side::Bar { axis: axis(self.label, low, high), reversed: true, tip: beyond };
        let chart = Chart {
            title: self.title,
            title_size: SUBTITLE,
            x: axis("y₁", x0, x1),
            y: axis("y₂", y0, y1),
            side: bar,
            legend,
            legend_rows: 1,
            // Equal units, unless that would leave most of the panel empty.
            equal: (0.6..1.7).contains(&((x1 - x0) / (y1 - y0))),
            grid: false,
        };
        let placed = chart.place(canvas, outer);
        canvas.shade(placed.frame, |u, v| match self.between(u, 1.0 - v) {
            Some(value) => viridis(1.0 - ((value as f64 - low) / (high - low)) as f32),
            None => NO_VALUE,
        });
        over(canvas, &placed);
        placed.finish(canvas);
        Ok(())
    }

    /// Interpolates between the four nodes around (u, v) in [0, 1]²; `None` if one of them is not finite.
    fn between(&self, u: f32, v: f32) -> Option<f32> {
        let place = |share: f32| {
            let at = share * (self.side - 1) as f32;
            let node = (at as usize).min(self.side - 2);
            (node, at - node as f32)
        };
        let ((i, a), (j, b)) = (place(u), place(v));
        let at = |i, j| self.values[j * self.side + i];
        let low = at(i, j) * (1.0 - a) + at(i + 1, j) * a;
        let high = at(i, j + 1) * (1.0 - a) + at(i + 1, j + 1) * a;
        let value = low * (1.0 - b) + high * b;
        value.is_finite().then_some(value)
    }
}

/// The values that the first and last colour stand for, and whether some lie beyond the last.
fn colour_range(values: &[f32]) -> Option<(f64, f64, bool)> {
    let mut finite: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
    finite.sort_unstable_by(f32::total_cmp);
    let (low, top) = (*finite.first()? as f64, *finite.last()? as f64);
    let high = finite[((finite.len() - 1) as f64 * COVERED) as usize] as f64;
    if high > low {
        return Some((low, high, top > high));
    }
    Some((low, top.max(low + 1e-6 * low.abs().max(1.0)), false))
}

/// Draws a marker if its centre lies within the frame.
fn draw_point(
    canvas: &mut Canvas,
    placed: &Placed,
    point: &[f32; 2],
    radius: f32,
    marker: Marker,
    ink: Ink,
    edge: Option<Ink>,
) {
    let frame = placed.frame;
    let inside =
        |(x, y): &(f32, f32)| (frame.x..=frame.right()).contains(x) && (frame.y..=frame.bottom()).contains(y);
    if let Some(place) = placed.at(point[0] as f64, point[1] as f64).filter(inside) {
        canvas.marker(place, radius, marker, ink, edge);
    }
}

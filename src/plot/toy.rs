//! The three panels of a 2-D toy: where data is likely, where the alignment loss is low, and how stage 2 went; side by side for one
//! run, or a column for each of several.

use std::path::Path;

use crate::error::Result;
use crate::plot::canvas::{Anchor, Area, Canvas, Ink, Marker, Style};
use crate::plot::chart::{Entry, SUBTITLE, Sample, TITLE};
use crate::plot::curves::{Curves, Series, ValueAxis, draw_curves};
use crate::plot::heat::{HeatMap, Points};
use crate::plot::same_length;
use crate::plot::scale::Scale;

/// Width of the moving average of the loss curve: the reference's.
const SMOOTH: usize = 17;
/// Pixels per point of columns: their text reads well at full size, and the file stays small.
const SCALE: f32 = 1.5;
/// Sizes of a column's panels, in points.
const COLUMN: f32 = 450.0;
const MAP: f32 = 392.0;
const TRAINING: f32 = 320.0;

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

/// Draws the three panels side by side and writes them to a PNG file, 1330 × 440 points.
///
/// # Errors
/// `Error::Data` if a list has the wrong length, a map no finite value, or the extent no area; `Error::Io` if the
/// file cannot be written.
pub fn toy_panels(path: impl AsRef<Path>, figure: &ToyPanels) -> Result<()> {
    let path = path.as_ref();
    figure.check(path)?;
    let mut canvas = Canvas::new(path, 1330.0, 440.0)?;
    let title = Style { size: TITLE, ink: Ink::TEXT, anchor: Anchor::Middle };
    canvas.text(665.0, 24.0, figure.title, title);
    let panel = |x, w| Area { x, y: 42.0, w, h: 386.0 };
    let panels = Panels { path, figure, letters: ['a', 'b', 'c'], legend_rows: 1 };
    panels.likelihood(&mut canvas, panel(14.0, 435.0))?;
    panels.loss(&mut canvas, panel(455.0, 435.0))?;
    panels.training(&mut canvas, panel(900.0, 418.0))?;
    canvas.save(path)
}

/// Draws the panels of each figure in a column of its own, its title over it, and writes all to one PNG file, 450 points a column and
/// 1190 high, in 256 colours and one and a half pixels a point.
///
/// # Errors
/// See [`toy_panels`].
pub fn toy_columns(path: impl AsRef<Path>, title: &str, columns: &[ToyPanels]) -> Result<()> {
    let path = path.as_ref();
    columns.iter().try_for_each(|figure| figure.check(path))?;
    let (width, top) = (COLUMN * columns.len() as f32 + 20.0, 62.0);
    let mut canvas = Canvas::with_scale(path, width, top + 2.0 * MAP + TRAINING + 24.0, SCALE)?;
    let style = Style { size: TITLE, ink: Ink::TEXT, anchor: Anchor::Middle };
    canvas.text(width / 2.0, 22.0, title, style);
    for (i, figure) in columns.iter().enumerate() {
        let x = 10.0 + COLUMN * i as f32;
        canvas.text(x + COLUMN / 2.0, 48.0, figure.title, Style { size: SUBTITLE, ink: Ink::SOFT, ..style });
        let panel = |y, h| Area { x: x + 4.0, y, w: COLUMN - 8.0, h };
        let letter = |row: usize| (b'a' + (row * columns.len() + i) as u8) as char;
        let panels = Panels { path, figure, letters: [letter(0), letter(1), letter(2)], legend_rows: 0 };
        panels.likelihood(&mut canvas, panel(top, MAP))?;
        panels.loss(&mut canvas, panel(top + MAP, MAP))?;
        panels.training(&mut canvas, panel(top + 2.0 * MAP + 10.0, TRAINING))?;
    }
    canvas.save_indexed(path)
}

impl<'a> ToyPanels<'a> {
    fn check(&self, path: &Path) -> Result<()> {
        self.map("nll", "", self.nll).check(path)?;
        self.map("loss", "", self.loss).check(path)?;
        same_length(path, "loss_curve", "values", self.steps.len(), self.loss_curve.len())?;
        same_length(path, "nll_curve", "values", self.nll_steps.len(), self.nll_curve.len())
    }

    fn map(&self, title: &'a str, label: &'a str, values: &'a [f32]) -> HeatMap<'a> {
        HeatMap { title, label, extent: self.extent, side: self.side, values }
    }
}

/// The three panels with the letters that name them.
struct Panels<'a> {
    path: &'a Path,
    figure: &'a ToyPanels<'a>,
    letters: [char; 3],
    /// Rows of the legend that maps leave room for.
    legend_rows: usize,
}

impl Panels<'_> {
    fn likelihood(&self, canvas: &mut Canvas, outer: Area) -> Result<()> {
        let legend = [
            Entry { label: "data", ink: Ink::BLUE, sample: Sample::Marker(Marker::Disc) },
            Entry { label: "latents", ink: Ink::RED, sample: Sample::Marker(Marker::Triangle) },
        ];
        let title = format!("({}) Negative log-likelihood", self.letters[0]);
        let figure = self.figure;
        figure.map(&title, "−log p(y), nats", figure.nll).draw(
            self.path,
            canvas,
            outer,
            (&legend, self.legend_rows),
            |canvas, placed| {
                Points::data(figure.data).draw(canvas, placed.frame, figure.extent);
                Points::latents(figure.latents, 2.7).draw(canvas, placed.frame, figure.extent);
            },
        )
    }

    fn loss(&self, canvas: &mut Canvas, outer: Area) -> Result<()> {
        let title = format!("({}) {}", self.letters[1], self.figure.loss_title);
        let map = self.figure.map(&title, self.figure.loss_label, self.figure.loss);
        map.draw(self.path, canvas, outer, (&[], self.legend_rows), |_, _| {})
    }

    fn training(&self, canvas: &mut Canvas, outer: Area) -> Result<()> {
        let figure = self.figure;
        let loss = Series { label: "alignment loss", x: figure.steps, y: figure.loss_curve, smooth: SMOOTH };
        let nll = Series { label: "−log p", x: figure.nll_steps, y: figure.nll_curve, smooth: 0 };
        let curves = Curves {
            title: &format!("({}) Alignment", self.letters[2]),
            x_label: "step",
            x_scale: Scale::Log,
            left: ValueAxis { label: "alignment loss", scale: Scale::Linear, series: &[loss] },
            right: ValueAxis { label: "mean −log p(y), nats", scale: Scale::Linear, series: &[nll] },
        };
        draw_curves(self.path, canvas, outer, &curves, SUBTITLE)
    }
}

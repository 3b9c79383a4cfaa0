//! Values over a part of the plane as colours, light where they are low.

use std::path::Path;

use crate::error::{Error, Result};
use crate::plot::canvas::{Area, Canvas, Ink, Marker};
use crate::plot::chart::{Axis, Chart, Entry, Placed, SUBTITLE, Side};
use crate::plot::colours::{NO_VALUE, viridis};
use crate::plot::same_length;
use crate::plot::scale::Range;

/// Share of a map's values that its colours cover; the rest, far from all data, take the last colour.
const COVERED: f64 = 0.98;

/// Values at the nodes of a square grid.
#[derive(Clone, Copy)]
pub(super) struct HeatMap<'a> {
    pub title: &'a str,
    /// Names the values.
    pub label: &'a str,
    /// The part of the plane: x from, x to, y from, y to.
    pub extent: [f32; 4],
    /// Nodes per side.
    pub side: usize,
    /// `(side, side)`, row = y, ascending.
    pub values: &'a [f32],
}

/// What the first and the last colour stand for.
#[derive(Clone, Copy)]
pub(super) struct Colours {
    pub low: f64,
    pub high: f64,
    /// Whether some values lie beyond the last.
    pub beyond: bool,
}

impl Colours {
    /// Lets the colours end `length` above the first.
    pub fn up_to(self, length: f64) -> Self {
        let high = self.high.min(self.low + length);
        Self { high, beyond: self.beyond || high < self.high, ..self }
    }

    /// The bar beside a map.
    pub fn bar<'a>(self, label: &'a str) -> Side<'a> {
        let axis = Axis { label, range: Range::exactly(self.low, self.high), ink: Ink::TEXT };
        Side::Bar { axis, reversed: true, tip: self.beyond }
    }
}

impl HeatMap<'_> {
    /// Checks the extent and the number of values.
    pub fn check(&self, path: &Path) -> Result<()> {
        let [x0, x1, y0, y1] = self.extent;
        if !(x0 < x1 && y0 < y1 && self.extent.iter().all(|v| v.is_finite())) {
            let found = format!("{x0} to {x1}, {y0} to {y1}");
            return Err(Error::data(path, "extent", "ascending finite limits", found));
        }
        if self.side < 2 {
            return Err(Error::data(path, "side", "at least 2 nodes", self.side));
        }
        same_length(path, self.title, "values", self.side * self.side, self.values.len())
    }

    /// Returns the colours' range: all values but the highest few in a hundred.
    pub fn colours(&self, path: &Path) -> Result<Colours> {
        let mut finite: Vec<f32> = self.values.iter().copied().filter(|v| v.is_finite()).collect();
        finite.sort_unstable_by(f32::total_cmp);
        let (Some(low), Some(top)) = (finite.first(), finite.last()) else {
            return Err(Error::data(path, self.title, "at least one finite value", "none"));
        };
        let (low, top) = (*low as f64, *top as f64);
        let high = finite[((finite.len() - 1) as f64 * COVERED) as usize] as f64;
        Ok(match high > low {
            true => Colours { low, high, beyond: top > high },
            false => Colours { low, high: top.max(low + 1e-6 * low.abs().max(1.0)), beyond: false },
        })
    }

    /// Draws the map with axes and colour bar, the legend with the rows that it takes at least, and what `over` draws on it.
    pub fn draw(
        &self,
        path: &Path,
        canvas: &mut Canvas,
        outer: Area,
        (legend, legend_rows): (&[Entry], usize),
        over: impl FnOnce(&mut Canvas, &Placed),
    ) -> Result<()> {
        let colours = self.colours(path)?;
        let [x0, x1, y0, y1] = self.extent.map(f64::from);
        let axis = |label, lo, hi| Axis { label, range: Range::exactly(lo, hi), ink: Ink::TEXT };
        let chart = Chart {
            title: self.title,
            title_size: SUBTITLE,
            x: axis("y₁", x0, x1),
            y: axis("y₂", y0, y1),
            side: colours.bar(self.label),
            legend,
            legend_rows,
            // Equal units, unless that would leave most of the panel empty.
            equal: (0.6..1.7).contains(&((x1 - x0) / (y1 - y0))),
            grid: false,
        };
        let placed = chart.place(canvas, outer);
        self.shade(canvas, placed.frame, colours);
        over(canvas, &placed);
        placed.finish(canvas);
        Ok(())
    }

    /// Fills a frame with the map's colours.
    pub fn shade(&self, canvas: &mut Canvas, frame: Area, Colours { low, high, .. }: Colours) {
        canvas.shade(frame, |u, v| match self.between(u, 1.0 - v) {
            Some(value) => viridis(1.0 - ((value as f64 - low) / (high - low)) as f32),
            None => NO_VALUE,
        });
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

/// Points on a map, those that are not finite or outside of it left out.
#[derive(Clone, Copy)]
pub(super) struct Points<'a> {
    pub points: &'a [[f32; 2]],
    pub radius: f32,
    pub marker: Marker,
    pub ink: Ink,
    pub edge: Option<Ink>,
}

impl<'a> Points<'a> {
    /// Samples of the data.
    pub fn data(points: &'a [[f32; 2]]) -> Self {
        Self { points, radius: 1.5, marker: Marker::Disc, ink: Ink::BLUE.with_alpha(0.45), edge: None }
    }

    /// Latents, as markers of radius `radius`.
    pub fn latents(points: &'a [[f32; 2]], radius: f32) -> Self {
        let edge = Some(Ink::WHITE.with_alpha(0.6));
        Self { points, radius, marker: Marker::Triangle, ink: Ink::RED.with_alpha(0.85), edge }
    }

    /// Draws them over the map of a part of the plane.
    pub fn draw(&self, canvas: &mut Canvas, frame: Area, extent: [f32; 4]) {
        let [x0, x1, y0, y1] = extent;
        for [x, y] in self.points {
            let (u, v) = ((x - x0) / (x1 - x0), (y - y0) / (y1 - y0));
            if (0.0..=1.0).contains(&u) && (0.0..=1.0).contains(&v) {
                let place = (frame.x + frame.w * u, frame.bottom() - frame.h * v);
                canvas.marker(place, self.radius, self.marker, self.ink, self.edge);
            }
        }
    }
}

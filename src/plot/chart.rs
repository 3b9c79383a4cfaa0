//! One panel of a figure: title, legend, frame, axes, colour bar. Callers draw their data into the frame.
//!
//! From the outside in: the title and then the legend stand above the frame, never over data; tick labels and axis
//! labels take the width that they measure, so nothing is cut off.

use crate::plot::canvas::{Anchor, Area, Canvas, Ink, Marker, Style};
use crate::plot::colours::viridis;
use crate::plot::scale::{Range, Tick};

/// Font sizes in points, the same in all figures.
pub(super) const TITLE: f32 = 15.0;
pub(super) const SUBTITLE: f32 = 12.5;
pub(super) const LABEL: f32 = 12.0;
pub(super) const TICK: f32 = 10.5;

const TICK_LENGTH: f32 = 4.0;
const GAP: f32 = 5.0;
const BAR_WIDTH: f32 = 12.0;
const LEGEND_ROW: f32 = 19.0;
const LEGEND_SAMPLE: f32 = 20.0;

/// An axis with its words.
#[derive(Clone, Copy)]
pub(super) struct Axis<'a> {
    pub label: &'a str,
    pub range: Range,
    /// Colour of label and tick labels: that of the curve, where two axes share a frame.
    pub ink: Ink,
}

/// What stands at the right of the frame.
#[derive(Clone, Copy)]
pub(super) enum Side<'a> {
    Nothing,
    /// A second axis.
    Axis(Axis<'a>),
    /// The colours of values, light for low if `reversed`, with a tip if some values lie above.
    Bar {
        axis: Axis<'a>,
        reversed: bool,
        tip: bool,
    },
}

/// How an entry of the legend is drawn.
#[derive(Clone, Copy)]
pub(super) enum Sample {
    Line,
    Marker(Marker),
}

/// A line of the legend.
pub(super) struct Entry<'a> {
    pub label: &'a str,
    pub ink: Ink,
    pub sample: Sample,
}

/// A panel.
pub(super) struct Chart<'a> {
    pub title: &'a str,
    pub title_size: f32,
    pub x: Axis<'a>,
    pub y: Axis<'a>,
    pub side: Side<'a>,
    pub legend: &'a [Entry<'a>],
    /// Rows that the legend takes at least, so that panels side by side have their frames at one height.
    pub legend_rows: usize,
    /// Gives both axes the same unit length.
    pub equal: bool,
    /// Draws pale lines behind the data.
    pub grid: bool,
}

/// A panel that has found its place: maps values to the page.
pub(super) struct Placed<'a> {
    chart: &'a Chart<'a>,
    pub frame: Area,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    side_ticks: Vec<Tick>,
}

impl<'a> Chart<'a> {
    /// Finds the place of frame and ticks within `outer`, and draws what lies behind the data.
    pub fn place(&'a self, canvas: &mut Canvas, outer: Area) -> Placed<'a> {
        let title = if self.title.is_empty() { 0.0 } else { self.title_size + 12.0 };
        let legend = self.legend_height(canvas, outer);
        let top = outer.y + title + legend + if title + legend > 0.0 { 4.0 } else { TICK };
        let bottom = outer.bottom() - (TICK_LENGTH + TICK + LABEL + 3.0 * GAP);
        let wanted_y = ((bottom - top) / 60.0).round().max(2.0) as usize;
        let y_ticks = self.y.range.ticks(wanted_y);
        let side_ticks = self.side_axis().map(|a| a.range.ticks(wanted_y)).unwrap_or_default();
        let left = outer.x + widest(canvas, &y_ticks) + TICK_LENGTH + LABEL + 3.0 * GAP;
        let side = match self.side {
            Side::Nothing => TICK * 1.5,
            Side::Axis(_) => widest(canvas, &side_ticks) + TICK_LENGTH + LABEL + 3.0 * GAP,
            Side::Bar { .. } => {
                // Room for most labels, so that panels side by side have frames of one width.
                let labels = widest(canvas, &side_ticks).max(canvas.text_width("0.00", TICK));
                12.0 + BAR_WIDTH + labels + TICK_LENGTH + LABEL + 3.0 * GAP
            }
        };
        let mut frame = Area { x: left, y: top, w: outer.right() - side - left, h: bottom - top };
        if self.equal {
            let unit = (frame.w as f64 / self.x.range.length()).min(frame.h as f64 / self.y.range.length());
            let (w, h) = ((unit * self.x.range.length()) as f32, (unit * self.y.range.length()) as f32);
            frame = Area { x: frame.x + (frame.w - w) / 2.0, y: frame.y + (frame.h - h) / 2.0, w, h };
        }
        let x_ticks = self.x.range.ticks((frame.w / 95.0).round().max(2.0) as usize);
        let placed = Placed { chart: self, frame, x_ticks, y_ticks, side_ticks };
        placed.draw_head(canvas, outer);
        if self.grid {
            placed.draw_grid(canvas);
        }
        placed
    }

    fn legend_height(&self, canvas: &Canvas, outer: Area) -> f32 {
        let rows = legend_rows(canvas, self.legend, outer.w).len();
        LEGEND_ROW * rows.max(self.legend_rows) as f32
    }

    fn side_axis(&self) -> Option<&Axis<'a>> {
        match &self.side {
            Side::Nothing => None,
            Side::Axis(axis) | Side::Bar { axis, .. } => Some(axis),
        }
    }
}

impl Placed<'_> {
    /// Returns where a point of the left axis stands on the page; `None` if an axis has no place for it.
    pub fn at(&self, x: f64, y: f64) -> Option<(f32, f32)> {
        self.on(&self.chart.y, x, y)
    }

    /// Returns where a point of the right axis stands.
    pub fn at_right(&self, x: f64, y: f64) -> Option<(f32, f32)> {
        self.on(self.chart.side_axis()?, x, y)
    }

    fn on(&self, axis: &Axis, x: f64, y: f64) -> Option<(f32, f32)> {
        let place = || {
            let x = self.frame.x + self.frame.w * self.chart.x.range.share(x);
            (x, self.frame.bottom() - self.frame.h * axis.range.share(y))
        };
        (self.chart.x.range.shows(x) && axis.range.shows(y)).then(place)
    }

    /// Draws frame, axes and colour bar, over the data's edges.
    pub fn finish(&self, canvas: &mut Canvas) {
        canvas.outline(self.frame, 0.9, Ink::FRAME);
        self.draw_x(canvas);
        let (frame, y) = (self.frame, &self.chart.y);
        let width = widest(canvas, &self.y_ticks);
        draw_ticks(canvas, frame, frame.x, -1.0, &self.y_ticks, &y.range.minor_ticks(), y.ink);
        let label = Style { size: LABEL, ink: y.ink, anchor: Anchor::Middle };
        let x = frame.x - TICK_LENGTH - GAP - width - GAP - LABEL / 2.0;
        canvas.text_upwards(x, frame.middle().1, y.label, label);
        let right = match self.chart.side {
            Side::Nothing => return,
            Side::Axis(_) => frame.right(),
            Side::Bar { reversed, tip, .. } => draw_bar(canvas, frame, reversed, tip),
        };
        let Some(axis) = self.chart.side_axis() else { return };
        draw_ticks(canvas, frame, right, 1.0, &self.side_ticks, &axis.range.minor_ticks(), axis.ink);
        let x = right + TICK_LENGTH + GAP + widest(canvas, &self.side_ticks) + GAP + LABEL / 2.0;
        canvas.text_upwards(x, frame.middle().1, axis.label, Style { ink: axis.ink, ..label });
    }

    fn draw_head(&self, canvas: &mut Canvas, outer: Area) {
        // Equal axes may leave the frame lower than asked for; title and legend stay with it.
        let rows = legend_rows(canvas, self.chart.legend, outer.w);
        let top = self.frame.y - 4.0 - self.chart.legend_height(canvas, outer);
        let style = Style { size: self.chart.title_size, ink: Ink::TEXT, anchor: Anchor::Middle };
        let y = top - 6.0 - self.chart.title_size / 2.0;
        canvas.text(self.frame.middle().0, y, self.chart.title, style);
        for (i, (row, width)) in rows.iter().enumerate() {
            let mut x = (self.frame.middle().0 - width / 2.0).max(outer.x);
            let y = top + LEGEND_ROW * (i as f32 + 0.5);
            for entry in *row {
                x = draw_entry(canvas, entry, x, y);
            }
        }
    }

    fn draw_grid(&self, canvas: &mut Canvas) {
        let frame = self.frame;
        for tick in &self.x_ticks {
            let x = frame.x + frame.w * tick.at;
            canvas.line(&[(x, frame.y), (x, frame.bottom())], 0.8, Ink::GRID);
        }
        for tick in &self.y_ticks {
            let y = frame.bottom() - frame.h * tick.at;
            canvas.line(&[(frame.x, y), (frame.right(), y)], 0.8, Ink::GRID);
        }
    }

    fn draw_x(&self, canvas: &mut Canvas) {
        let (frame, axis) = (self.frame, &self.chart.x);
        draw_ticks_below(canvas, frame, &self.x_ticks, &axis.range.minor_ticks(), axis.ink);
        let y = frame.bottom() + TICK_LENGTH + GAP + TICK + GAP + LABEL / 2.0;
        let style = Style { size: LABEL, ink: axis.ink, anchor: Anchor::Middle };
        canvas.text(frame.middle().0, y, axis.label, style);
    }
}

/// Draws the colour bar to the right of a frame and returns its right edge.
pub(super) fn draw_bar(canvas: &mut Canvas, frame: Area, reversed: bool, tip: bool) -> f32 {
    let bar = Area { x: frame.right() + 12.0, y: frame.y, w: BAR_WIDTH, h: frame.h };
    if tip {
        let end = Ink::new(viridis(if reversed { 0.0 } else { 1.0 }));
        let radius = BAR_WIDTH / 3f32.sqrt(); // its base is as wide as the bar
        canvas.marker((bar.middle().0, bar.y - 0.5 * radius), radius, Marker::Triangle, end, None);
    }
    canvas.shade(bar, |_, v| viridis(if reversed { v } else { 1.0 - v }));
    canvas.outline(bar, 0.9, Ink::FRAME);
    bar.right()
}

/// Draws the ticks of a horizontal axis below a frame.
pub(super) fn draw_ticks_below(canvas: &mut Canvas, frame: Area, ticks: &[Tick], minor: &[f32], ink: Ink) {
    let base = frame.bottom();
    let style = Style { size: TICK, ink, anchor: Anchor::Middle };
    for tick in ticks {
        let x = frame.x + frame.w * tick.at;
        canvas.line(&[(x, base), (x, base + TICK_LENGTH)], 0.9, Ink::FRAME);
        canvas.text(x, base + TICK_LENGTH + GAP + TICK / 2.0, &tick.label, style);
    }
    for at in minor {
        let x = frame.x + frame.w * at;
        canvas.line(&[(x, base), (x, base + 0.5 * TICK_LENGTH)], 0.7, Ink::FRAME);
    }
}

/// Draws the ticks of a vertical axis at `x`, their labels to the left (−1) or right (+1) of it.
pub(super) fn draw_ticks(
    canvas: &mut Canvas,
    frame: Area,
    x: f32,
    side: f32,
    ticks: &[Tick],
    minor: &[f32],
    ink: Ink,
) {
    let anchor = if side < 0.0 { Anchor::End } else { Anchor::Start };
    let y = |at: f32| frame.bottom() - frame.h * at;
    for tick in ticks {
        let y = y(tick.at);
        canvas.line(&[(x, y), (x + side * TICK_LENGTH, y)], 0.9, Ink::FRAME);
        canvas.text(x + side * (TICK_LENGTH + GAP), y, &tick.label, Style { size: TICK, ink, anchor });
    }
    for at in minor {
        canvas.line(&[(x, y(*at)), (x + side * 0.5 * TICK_LENGTH, y(*at))], 0.7, Ink::FRAME);
    }
}

fn widest(canvas: &Canvas, ticks: &[Tick]) -> f32 {
    ticks.iter().map(|t| canvas.text_width(&t.label, TICK)).fold(0.0, f32::max)
}

fn entry_width(canvas: &Canvas, entry: &Entry) -> f32 {
    LEGEND_SAMPLE + 6.0 + canvas.text_width(entry.label, TICK) + 18.0
}

/// Breaks the legend into rows no wider than `width`; each with its own width.
fn legend_rows<'a, 'b>(canvas: &Canvas, legend: &'b [Entry<'a>], width: f32) -> Vec<(&'b [Entry<'a>], f32)> {
    let mut rows = Vec::new();
    let (mut first, mut used) = (0, 0.0);
    for (i, entry) in legend.iter().enumerate() {
        let next = entry_width(canvas, entry);
        if i > first && used + next > width {
            rows.push((&legend[first..i], used));
            (first, used) = (i, 0.0);
        }
        used += next;
    }
    if first < legend.len() {
        rows.push((&legend[first..], used));
    }
    rows
}

/// Draws an entry of the legend and returns where the next one starts.
fn draw_entry(canvas: &mut Canvas, entry: &Entry, x: f32, y: f32) -> f32 {
    match entry.sample {
        Sample::Line => canvas.line(&[(x, y), (x + LEGEND_SAMPLE, y)], 2.2, entry.ink),
        Sample::Marker(marker) => {
            canvas.marker((x + LEGEND_SAMPLE / 2.0, y), 4.5, marker, entry.ink.with_alpha(0.9), None)
        }
    }
    let style = Style { size: TICK, ink: Ink::TEXT, anchor: Anchor::Start };
    canvas.text(x + LEGEND_SAMPLE + 6.0, y, entry.label, style);
    x + entry_width(canvas, entry)
}

//! Latents of a 2-D toy as they move over its map of −log p: as a grid of snapshots, and as an animation.

use std::path::Path;

use crate::error::{Error, Result};
use crate::plot::canvas::{Anchor, Area, Canvas, Ink, Style};
use crate::plot::chart::{LABEL, SUBTITLE, TICK, TITLE, draw_bar, draw_ticks, draw_ticks_below};
use crate::plot::file::{Frame, save_animation};
use crate::plot::heat::{Colours, HeatMap, Points};
use crate::plot::scale::{Range, Tick};

/// Snapshots in a row of the grid.
const COLUMNS: usize = 5;
/// Side of a map in the grid and in an animation, in points.
const CELL: f32 = 188.0;
const SCENE: f32 = 320.0;
/// Room beside the maps: the axis at the left, and the colour bar with its numbers at the right.
const LEFT: f32 = 62.0;
const RIGHT: f32 = 84.0;
const GAP: f32 = 8.0;
/// Pixels per point of the grid: its text reads well at full size, and the file stays small.
const SCALE: f32 = 1.5;
/// Where the colours end, in nats above the most likely place: beyond it latents are far from all data, and a longer scale would show
/// the ridges that they go to in one colour. (The reference's kernel estimates end at 20.26 nats.)
const NATS: f64 = 20.0;
/// How long a frame of an animation stays, and its last one, in milliseconds.
const STAYS: u16 = 300;
const LAST_STAYS: u16 = 2500;

/// A part of the plane, which is best a square, with the toy's −log p.
#[derive(Clone, Copy, Debug)]
pub struct Plane<'a> {
    /// x from, x to, y from, y to.
    pub extent: [f32; 4],
    /// Nodes per side.
    pub side: usize,
    /// −log p at the nodes of [`crate::plot::heat_grid`].
    pub nll: &'a [f32],
}

/// Latents after a number of steps.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Finished steps.
    pub step: u64,
    /// Where they are.
    pub latents: Vec<[f32; 2]>,
    /// Mean −log p of them, in nats.
    pub nll: f64,
}

/// One run: its name and what it passed through.
#[derive(Clone, Debug)]
pub struct Passage {
    /// Names the run.
    pub label: String,
    /// The snapshots, the earliest first.
    pub moments: Vec<Moment>,
}

/// Draws the moments of each run in rows of five, one block of rows below the other, and writes them to a PNG file in 256 colours.
///
/// # Errors
/// `Error::Data` if there is nothing to draw, a list has the wrong length or the map no finite value; `Error::Io` if the file cannot be
/// written.
pub fn snapshot_grid(path: impl AsRef<Path>, title: &str, plane: &Plane, runs: &[Passage]) -> Result<()> {
    let path = path.as_ref();
    let scene = Scene::new(path, plane, runs)?;
    let rows = |run: &Passage| run.moments.len().div_ceil(COLUMNS);
    let (caption, head) = (20.0, 32.0);
    let height = |run: &Passage| head + rows(run) as f32 * (CELL + caption);
    let columns = runs.iter().map(|run| run.moments.len()).max().unwrap_or(0).min(COLUMNS);
    let width = LEFT + columns as f32 * (CELL + GAP) - GAP + RIGHT;
    let top = 34.0;
    let mut canvas =
        Canvas::with_scale(path, width, top + runs.iter().map(height).sum::<f32>() + 52.0, SCALE)?;
    canvas.text(width / 2.0, 22.0, title, style(TITLE, Ink::TEXT));
    let ticks = scene.ticks(4);
    let mut y = top;
    for run in runs {
        canvas.text(
            LEFT + (width - LEFT - RIGHT) / 2.0,
            y + head / 2.0,
            &run.label,
            style(SUBTITLE, Ink::TEXT),
        );
        let first = y + head + caption;
        for (i, moment) in run.moments.iter().enumerate() {
            let (row, column) = (i / COLUMNS, i % COLUMNS);
            let x = LEFT + column as f32 * (CELL + GAP);
            let frame = Area { x, y: first + row as f32 * (CELL + caption), w: CELL, h: CELL };
            let words = format!("step {}: {:.2} nats", moment.step, moment.nll);
            canvas.text(frame.middle().0, frame.y - caption / 2.0, &words, style(TICK, Ink::TEXT));
            scene.map(&mut canvas, frame, moment, 1.8);
            if column == 0 {
                scene.left_axis(&mut canvas, frame, &ticks.1);
            }
            if i + COLUMNS >= run.moments.len() && std::ptr::eq(run, &runs[runs.len() - 1]) {
                scene.axis_below(&mut canvas, frame, &ticks.0);
            }
        }
        y += height(run);
        let last = Area { x: LEFT, y: first, w: width - LEFT - RIGHT, h: y - first };
        scene.bar(&mut canvas, last);
    }
    canvas.save_indexed(path)
}

/// Draws the moments of all runs side by side, a frame for each moment of the first, and writes an animation (APNG), a pixel a point.
/// A run with fewer moments stays at its last one.
///
/// # Errors
/// See [`snapshot_grid`].
pub fn snapshot_animation(
    path: impl AsRef<Path>,
    title: &str,
    plane: &Plane,
    runs: &[Passage],
) -> Result<()> {
    let path = path.as_ref();
    let scene = Scene::new(path, plane, runs)?;
    let count = runs.iter().map(|run| run.moments.len()).max().unwrap_or(0);
    let frames = (0..count).map(|i| {
        let stays = if i + 1 == count { LAST_STAYS } else { STAYS };
        Ok(Frame { picture: scene.frame(path, title, runs, i)?.picture(), stays })
    });
    save_animation(path, &frames.collect::<Result<Vec<_>>>()?)
}

/// What all maps share.
struct Scene<'a> {
    map: HeatMap<'a>,
    colours: Colours,
}

impl<'a> Scene<'a> {
    fn new(path: &Path, plane: &Plane<'a>, runs: &[Passage]) -> Result<Self> {
        if runs.is_empty() || runs.iter().any(|run| run.moments.is_empty()) {
            return Err(Error::data(path, "snapshots", "at least 1 of each run", "none"));
        }
        let Plane { extent, side, nll } = *plane;
        let map = HeatMap { title: "nll", label: "−log p(y), nats", extent, side, values: nll };
        map.check(path)?;
        Ok(Self { map, colours: map.colours(path)?.up_to(NATS) })
    }

    fn ticks(&self, wanted: usize) -> (Vec<Tick>, Vec<Tick>) {
        let [x0, x1, y0, y1] = self.map.extent.map(f64::from);
        (Range::exactly(x0, x1).ticks(wanted), Range::exactly(y0, y1).ticks(wanted))
    }

    fn map(&self, canvas: &mut Canvas, frame: Area, moment: &Moment, radius: f32) {
        self.map.shade(canvas, frame, self.colours);
        Points::latents(&moment.latents, radius).draw(canvas, frame, self.map.extent);
        canvas.outline(frame, 0.9, Ink::FRAME);
    }

    fn left_axis(&self, canvas: &mut Canvas, frame: Area, ticks: &[Tick]) {
        draw_ticks(canvas, frame, frame.x, -1.0, ticks, &[], Ink::TEXT);
        canvas.text_upwards(frame.x - LEFT + 16.0, frame.middle().1, "y₂", style(LABEL, Ink::TEXT));
    }

    fn axis_below(&self, canvas: &mut Canvas, frame: Area, ticks: &[Tick]) {
        draw_ticks_below(canvas, frame, ticks, &[], Ink::TEXT);
        canvas.text(frame.middle().0, frame.bottom() + 36.0, "y₁", style(LABEL, Ink::TEXT));
    }

    fn bar(&self, canvas: &mut Canvas, frame: Area) {
        let Colours { low, high, beyond } = self.colours;
        let right = draw_bar(canvas, frame, true, beyond);
        let ticks = Range::exactly(low, high).ticks((frame.h / 60.0).round().max(2.0) as usize);
        draw_ticks(canvas, frame, right, 1.0, &ticks, &[], Ink::TEXT);
        let x = frame.right() + RIGHT - 14.0;
        canvas.text_upwards(x, frame.middle().1, self.map.label, style(LABEL, Ink::TEXT));
    }

    /// Draws moment `i` of all runs.
    fn frame(&self, path: &Path, title: &str, runs: &[Passage], i: usize) -> Result<Canvas> {
        let (top, gap) = (84.0, 58.0);
        let width = LEFT + runs.len() as f32 * (SCENE + gap) - gap + RIGHT;
        let mut canvas = Canvas::with_scale(path, width, top + SCENE + 54.0, 1.0)?;
        canvas.text(width / 2.0, 18.0, title, style(TITLE, Ink::TEXT));
        let ticks = self.ticks(6);
        let mut frame = Area { x: LEFT, y: top, w: SCENE, h: SCENE };
        for run in runs {
            let moment = &run.moments[i.min(run.moments.len() - 1)];
            let words =
                [run.label.clone(), format!("step {}: mean −log p {:.2} nats", moment.step, moment.nll)];
            for (line, y) in words.iter().zip([44.0, 64.0]) {
                canvas.text(frame.middle().0, y, line, style(SUBTITLE, Ink::TEXT));
            }
            self.map(&mut canvas, frame, moment, 2.4);
            self.left_axis(&mut canvas, frame, &ticks.1);
            self.axis_below(&mut canvas, frame, &ticks.0);
            frame.x += SCENE + gap;
        }
        frame.x -= SCENE + gap;
        self.bar(&mut canvas, frame);
        Ok(canvas)
    }
}

fn style(size: f32, ink: Ink) -> Style {
    Style { size, ink, anchor: Anchor::Middle }
}

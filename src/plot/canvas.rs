//! A page to draw on, and the PNG file it becomes.
//!
//! Lengths are points; a point is two pixels each way, so that figures are sharp on dense screens and in print; in animations one.

use std::path::Path;

use tiny_skia::{FillRule, LineCap, LineJoin, Paint, PathBuilder, Pixmap, Stroke, Transform};

use crate::error::{Error, Result};
use crate::plot::file::Picture;
use crate::plot::text::Face;

/// Pixels per point.
const SCALE: f32 = 2.0;
/// Points per metre: the file claims 72 of them per inch, so that viewers show a point as a point.
const PER_METRE: f32 = 2834.645;
/// Largest page side in points: 256 MB of pixels at most.
const LARGEST_SIDE: f32 = 4000.0;

/// A colour with opacity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ink {
    pub rgb: [u8; 3],
    pub alpha: f32,
}

impl Ink {
    pub const TEXT: Self = Self::new([0x26, 0x26, 0x26]);
    pub const SOFT: Self = Self::new([0x59, 0x59, 0x59]);
    pub const FRAME: Self = Self::new([0x8c, 0x8c, 0x8c]);
    pub const GRID: Self = Self::new([0xe8, 0xe8, 0xe8]);
    pub const WHITE: Self = Self::new([0xff; 3]);
    pub const BLUE: Self = Self::new([0x1f, 0x6f, 0xb4]);
    pub const RED: Self = Self::new([0xd6, 0x2a, 0x28]);

    pub const fn new(rgb: [u8; 3]) -> Self {
        Self { rgb, alpha: 1.0 }
    }

    pub const fn with_alpha(self, alpha: f32) -> Self {
        Self { alpha, ..self }
    }

    fn paint(self) -> Paint<'static> {
        let [r, g, b] = self.rgb;
        let mut paint = Paint::default();
        paint.set_color_rgba8(r, g, b, (self.alpha.clamp(0.0, 1.0) * 255.0).round() as u8);
        paint
    }
}

/// A rectangle in points; y grows downwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Area {
    pub x: f32,
    pub y: f32,
    pub w: f32,
    pub h: f32,
}

impl Area {
    pub fn right(self) -> f32 {
        self.x + self.w
    }

    pub fn bottom(self) -> f32 {
        self.y + self.h
    }

    pub fn middle(self) -> (f32, f32) {
        (self.x + self.w / 2.0, self.y + self.h / 2.0)
    }
}

/// Which point of a text its position names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// How a text looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub size: f32,
    pub ink: Ink,
    pub anchor: Anchor,
}

/// The shape of a marker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Marker {
    Disc,
    Triangle,
}

/// A page.
pub(super) struct Canvas {
    pixels: Pixmap,
    face: Face,
    /// Pixels per point.
    scale: f32,
}

impl Canvas {
    /// Takes a white page of `width` × `height` points; `path` is where it will be saved, for messages.
    pub fn new(path: &Path, width: f32, height: f32) -> Result<Self> {
        Self::with_scale(path, width, height, SCALE)
    }

    /// Takes a white page of `scale` pixels per point.
    pub fn with_scale(path: &Path, width: f32, height: f32, scale: f32) -> Result<Self> {
        let fits = width > 0.0 && width <= LARGEST_SIDE && height > 0.0 && height <= LARGEST_SIDE;
        let pixels = Pixmap::new((width * scale).ceil() as u32, (height * scale).ceil() as u32);
        let Some(mut pixels) = pixels.filter(|_| fits) else {
            let expected = format!("1 to {LARGEST_SIDE} points a side");
            return Err(Error::data(path, "figure size", expected, format!("{width:.0} × {height:.0}")));
        };
        pixels.fill(tiny_skia::Color::WHITE);
        Ok(Self { pixels, face: Face::embedded()?, scale })
    }

    /// Returns the width of a line of text.
    pub fn text_width(&self, text: &str, size: f32) -> f32 {
        self.face.width(text, size)
    }

    /// Writes a line of text whose capitals are centred on y.
    pub fn text(&mut self, x: f32, y: f32, text: &str, style: Style) {
        self.place_text(text, style, Transform::from_translate(x, y));
    }

    /// Writes a line of text upwards, its capitals centred on x.
    pub fn text_upwards(&mut self, x: f32, y: f32, text: &str, style: Style) {
        self.place_text(text, style, Transform::from_rotate(-90.0).post_translate(x, y));
    }

    fn place_text(&mut self, text: &str, style: Style, place: Transform) {
        let Some(path) = self.face.outlines(text, style.size) else { return };
        let shift = match style.anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => -0.5,
            Anchor::End => -1.0,
        };
        let place = place.pre_translate(shift * self.face.width(text, style.size), 0.0);
        let place = place.post_scale(self.scale, self.scale);
        self.pixels.fill_path(&path, &style.ink.paint(), FillRule::Winding, place, None);
    }

    /// Strokes a rectangle.
    pub fn outline(&mut self, area: Area, width: f32, ink: Ink) {
        let (right, bottom) = (area.right(), area.bottom());
        let corners =
            [(area.x, area.y), (right, area.y), (right, bottom), (area.x, bottom), (area.x, area.y)];
        self.line(&corners, width, ink);
    }

    /// Strokes a line through points, with round joins: no spikes on noisy curves.
    pub fn line(&mut self, points: &[(f32, f32)], width: f32, ink: Ink) {
        let mut path = PathBuilder::new();
        for (i, (x, y)) in points.iter().enumerate() {
            if i == 0 { path.move_to(*x, *y) } else { path.line_to(*x, *y) }
        }
        let Some(path) = path.finish() else { return };
        let stroke =
            Stroke { width, line_cap: LineCap::Round, line_join: LineJoin::Round, ..Stroke::default() };
        let transform = Transform::from_scale(self.scale, self.scale);
        self.pixels.stroke_path(&path, &ink.paint(), &stroke, transform, None);
    }

    /// Draws a marker of radius `r` around a point, with a thin edge if `edge` is given.
    pub fn marker(&mut self, (x, y): (f32, f32), r: f32, marker: Marker, ink: Ink, edge: Option<Ink>) {
        let path = match marker {
            Marker::Disc => PathBuilder::from_circle(x, y, r),
            Marker::Triangle => {
                let mut path = PathBuilder::new();
                path.move_to(x, y - r);
                path.line_to(x + 0.866 * r, y + 0.5 * r);
                path.line_to(x - 0.866 * r, y + 0.5 * r);
                path.close();
                path.finish()
            }
        };
        let Some(path) = path else { return };
        let transform = Transform::from_scale(self.scale, self.scale);
        if let Some(edge) = edge {
            let stroke = Stroke { width: 0.8, line_join: LineJoin::Round, ..Stroke::default() };
            self.pixels.stroke_path(&path, &edge.paint(), &stroke, transform, None);
        }
        self.pixels.fill_path(&path, &ink.paint(), FillRule::Winding, transform, None);
    }

    /// Colours each pixel of an area by its position in it, (0, 0) top left to (1, 1) bottom right.
    pub fn shade(&mut self, area: Area, colour: impl Fn(f32, f32) -> [u8; 3]) {
        let scale = self.scale;
        let edge = |v: f32, limit: u32| ((v * scale).round().max(0.0) as u32).min(limit);
        let (width, height) = (self.pixels.width(), self.pixels.height());
        let (left, right) = (edge(area.x, width), edge(area.right(), width));
        let (top, bottom) = (edge(area.y, height), edge(area.bottom(), height));
        let pixels = self.pixels.data_mut();
        for y in top..bottom {
            for x in left..right {
                let u = (x - left) as f32 + 0.5;
                let v = (y - top) as f32 + 0.5;
                let [r, g, b] = colour(u / (right - left) as f32, v / (bottom - top) as f32);
                let at = 4 * (y as usize * width as usize + x as usize);
                pixels[at..at + 4].copy_from_slice(&[r, g, b, 0xff]);
            }
        }
    }

    /// Writes the page as PNG, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.picture().save(path)
    }

    /// Writes the page as PNG in 256 colours.
    pub fn save_indexed(&self, path: &Path) -> Result<()> {
        self.picture().save_indexed(path)
    }

    /// Returns the page's pixels.
    pub fn picture(&self) -> Picture {
        // The page is opaque, so premultiplied colours are the colours.
        let rgb = self.pixels.data().chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
        let (width, height) = (self.pixels.width() as usize, self.pixels.height() as usize);
        Picture { width, height, rgb, density: (self.scale * PER_METRE).round() as u32 }
    }
}

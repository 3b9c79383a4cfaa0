//! Text as outlines of DejaVu Sans, which the program carries, so that figures look the same everywhere.

use ab_glyph::{Font, FontRef, GlyphId, OutlineCurve};
use tiny_skia::{Path, PathBuilder};

use crate::error::{Error, Result};

/// Version 2.35, unmodified; licence and provenance in `assets/fonts/`.
const DEJAVU_SANS: &[u8] = include_bytes!("../../assets/fonts/DejaVuSans.ttf");

/// Height of capital letters over the font size: half of it centres a line on a given y.
const CAP_HEIGHT: f32 = 0.729;

/// A font that measures text and turns it into outlines.
pub(super) struct Face(FontRef<'static>);

impl Face {
    /// Reads the embedded font.
    pub fn embedded() -> Result<Self> {
        let refused = |e| Error::data("assets/fonts/DejaVuSans.ttf", "font", "a TrueType font", e);
        Ok(Self(FontRef::try_from_slice(DEJAVU_SANS).map_err(refused)?))
    }

    /// Returns the width of a line of text at a font size, in the unit of the size.
    pub fn width(&self, text: &str, size: f32) -> f32 {
        self.place(text).1 * self.scale(size)
    }

    /// Returns the outlines of a line of text; x starts at 0, y = 0 is the middle of the capitals, downwards.
    pub fn outlines(&self, text: &str, size: f32) -> Option<Path> {
        let scale = self.scale(size);
        let mut path = PathBuilder::new();
        for (glyph, x) in self.place(text).0 {
            if let Some(outline) = self.0.outline(glyph) {
                let place = |p: ab_glyph::Point| {
                    tiny_skia::Point::from_xy((x + p.x) * scale, CAP_HEIGHT / 2.0 * size - p.y * scale)
                };
                trace(&mut path, &outline.curves, place);
            }
        }
        path.finish()
    }

    fn scale(&self, size: f32) -> f32 {
        size / self.0.units_per_em().unwrap_or(2048.0)
    }

    /// Each glyph with its x, and the width of them all, in font units.
    fn place(&self, text: &str) -> (Vec<(GlyphId, f32)>, f32) {
        let mut x = 0.0;
        let mut last = None;
        let mut glyphs = Vec::new();
        for glyph in text.chars().map(|c| self.0.glyph_id(c)) {
            x += last.map_or(0.0, |last| self.0.kern_unscaled(last, glyph));
            glyphs.push((glyph, x));
            x += self.0.h_advance_unscaled(glyph);
            last = Some(glyph);
        }
        (glyphs, x)
    }
}

/// Adds curves to a path, a new contour wherever a curve does not start at the end of the one before.
fn trace(
    path: &mut PathBuilder,
    curves: &[OutlineCurve],
    place: impl Fn(ab_glyph::Point) -> tiny_skia::Point,
) {
    let mut end = None;
    for curve in curves {
        let (from, to) = match curve {
            OutlineCurve::Line(a, b) => (*a, *b),
            OutlineCurve::Quad(a, _, b) => (*a, *b),
            OutlineCurve::Cubic(a, _, _, b) => (*a, *b),
        };
        if end != Some(from) {
            let p = place(from);
            path.move_to(p.x, p.y);
        }
        let p = place(to);
        match curve {
            OutlineCurve::Line(..) => path.line_to(p.x, p.y),
            OutlineCurve::Quad(_, c, _) => {
                let c = place(*c);
                path.quad_to(c.x, c.y, p.x, p.y);
            }
            OutlineCurve::Cubic(_, c, d, _) => {
                let (c, d) = (place(*c), place(*d));
                path.cubic_to(c.x, c.y, d.x, d.y, p.x, p.y);
            }
        }
        end = Some(to);
    }
}

//! PNG files: in full colour, in 256 colours, or animated (APNG, which browsers play and other programs show the first frame of).
//!
//! A file appears whole or not at all. Figures with maps and clouds of points take a third of the bytes in 256 colours, and the frames
//! of an animation are what changed since the one before.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use png::{BitDepth, BlendOp, ColorType, Compression, EncodingError};

use crate::error::{Error, Result};

/// Bits that the 256 colours tell apart in each channel.
const BITS: usize = 5;
const BINS: usize = 1 << (3 * BITS);
/// The index that leaves a pixel of an animation as it was.
const UNCHANGED: u8 = 0;

/// Pixels, red, green and blue, row by row.
pub(super) struct Picture {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
    /// Pixels per metre.
    pub density: u32,
}

/// A frame of an animation.
pub(super) struct Frame {
    pub picture: Picture,
    /// How long it stays, in milliseconds.
    pub stays: u16,
}

impl Picture {
    /// Writes all colours.
    pub fn save(&self, path: &Path) -> Result<()> {
        replace(path, |file| {
            let mut writer = self.encoder(file, ColorType::Rgb).write_header()?;
            writer.write_image_data(&self.rgb)?;
            writer.finish()
        })
    }

    /// Writes the 255 colours that occur most, every other one as the nearest of them.
    pub fn save_indexed(&self, path: &Path) -> Result<()> {
        let palette = Palette::of([self]);
        replace(path, |file| {
            let mut encoder = self.encoder(file, ColorType::Indexed);
            encoder.set_palette(&palette.colours);
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&palette.indices(self))?;
            writer.finish()
        })
    }

    fn encoder<'a, W: Write>(&self, file: W, colour: ColorType) -> png::Encoder<'a, W> {
        let mut encoder = png::Encoder::new(file, self.width as u32, self.height as u32);
        encoder.set_color(colour);
        encoder.set_depth(BitDepth::Eight);
        if colour == ColorType::Indexed {
            // Filters predict brightness, not indices: most such files are smallest without.
            encoder.set_compression(Compression::High);
            encoder.set_filter(png::Filter::NoFilter);
        }
        let (xppu, yppu) = (self.density, self.density);
        encoder.set_pixel_dims(Some(png::PixelDimensions { xppu, yppu, unit: png::Unit::Meter }));
        encoder
    }
}

/// Writes an animation that goes on for ever, in 255 colours; all frames must have the size of the first.
pub(super) fn save_animation(path: &Path, frames: &[Frame]) -> Result<()> {
    let Some(first) = frames.first() else {
        return Err(Error::data(path, "frames", "at least 1", 0));
    };
    let palette = Palette::of(frames.iter().map(|frame| &frame.picture));
    replace(path, |file| {
        let mut encoder = first.picture.encoder(file, ColorType::Indexed);
        encoder.set_palette(&palette.colours);
        encoder.set_trns(&[0u8][..]); // of index UNCHANGED alone
        encoder.set_animated(frames.len() as u32, 0)?;
        encoder.set_blend_op(BlendOp::Over)?;
        let mut writer = encoder.write_header()?;
        let mut shown = Vec::new();
        for frame in frames {
            let indices = palette.indices(&frame.picture);
            let changed =
                |(i, index): (usize, &u8)| if shown.get(i) == Some(index) { UNCHANGED } else { *index };
            let changes: Vec<u8> = indices.iter().enumerate().map(changed).collect();
            writer.set_frame_delay(frame.stays, 1000)?;
            writer.write_image_data(&changes)?;
            shown = indices;
        }
        writer.finish()
    })
}

/// The colours that occur most, and the one that stands for each other.
struct Palette {
    /// Red, green and blue of each; [`UNCHANGED`] is no colour of a picture.
    colours: Vec<u8>,
    /// The index for each bin of colours.
    index: Vec<u8>,
}

impl Palette {
    fn of<'a>(pictures: impl IntoIterator<Item = &'a Picture>) -> Self {
        let mut sums = vec![[0u64; 4]; BINS];
        for pixel in pictures.into_iter().flat_map(|picture| picture.rgb.chunks_exact(3)) {
            let sum = &mut sums[bin(pixel)];
            sum.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += *value as u64);
            sum[3] += 1;
        }
        let mean = |[r, g, b, n]: &[u64; 4]| [r, g, b].map(|sum| ((sum + n / 2) / n) as u8);
        let mut used: Vec<usize> = (0..BINS).filter(|bin| sums[*bin][3] > 0).collect();
        used.sort_by_key(|bin| (std::cmp::Reverse(sums[*bin][3]), *bin));
        let kept: Vec<[u8; 3]> = used.iter().take(255).map(|bin| mean(&sums[*bin])).collect();
        let mut index = vec![UNCHANGED; BINS];
        for (i, bin) in used.iter().enumerate() {
            let nearest = match i < kept.len() {
                true => i,
                false => nearest(&kept, mean(&sums[*bin])),
            };
            index[*bin] = nearest as u8 + 1;
        }
        Self { colours: [[0; 3]].into_iter().chain(kept).flatten().collect(), index }
    }

    fn indices(&self, picture: &Picture) -> Vec<u8> {
        picture.rgb.chunks_exact(3).map(|pixel| self.index[bin(pixel)]).collect()
    }
}

fn bin(pixel: &[u8]) -> usize {
    pixel.iter().fold(0, |bin, value| bin << BITS | (*value as usize >> (8 - BITS)))
}

fn nearest(colours: &[[u8; 3]], wanted: [u8; 3]) -> usize {
    let square = |colour: &[u8; 3]| -> u32 {
        colour.iter().zip(wanted).map(|(a, b)| (*a as i32 - b as i32).pow(2) as u32).sum()
    };
    (0..colours.len()).min_by_key(|i| square(&colours[*i])).unwrap_or(0)
}

/// Writes to a temporary file beside `path`, then renames it, so that nobody sees half a figure.
fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<fs::File>) -> std::result::Result<(), EncodingError>,
) -> Result<()> {
    let Some(name) = path.file_name() else {
        return Err(Error::data(path, "path", "the name of a PNG file", "no file name"));
    };
    let mut part = name.to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(part);
    let written = || {
        let mut file = BufWriter::new(fs::File::create(&part)?);
        write(&mut file)?;
        file.flush()
    };
    let moved = written().map_err(Error::io(path, "write"));
    let moved = moved.and_then(|()| fs::rename(&part, path).map_err(Error::io(path, "replace")));
    if moved.is_err() {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&part);
    }
    moved
}

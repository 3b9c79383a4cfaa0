//! Colours: a perceptual map for values and a palette for curves.

use crate::plot::canvas::Ink;

/// Seventeen evenly spaced colours of viridis (van der Walt and Smith 2015, CC0), dark to light.
const VIRIDIS: [[u8; 3]; 17] = [
    [68, 1, 84],
    [72, 24, 106],
    [71, 45, 123],
    [66, 64, 134],
    [59, 82, 139],
    [51, 99, 141],
    [44, 114, 142],
    [38, 130, 142],
    [33, 145, 140],
    [31, 160, 136],
    [40, 174, 128],
    [63, 188, 115],
    [94, 201, 98],
    [132, 212, 75],
    [173, 220, 48],
    [216, 226, 25],
    [253, 231, 37],
];

/// Cells without a finite value.
pub(super) const NO_VALUE: [u8; 3] = [0xc8, 0xc8, 0xc8];

/// Colours that stay apart for colour-blind readers (Okabe and Ito 2008, darker yellow).
const PALETTE: [Ink; 6] = [
    Ink::new([0x00, 0x72, 0xb2]),
    Ink::new([0xd5, 0x5e, 0x00]),
    Ink::new([0x00, 0x9e, 0x73]),
    Ink::new([0xcc, 0x79, 0xa7]),
    Ink::new([0xb8, 0x86, 0x00]),
    Ink::new([0x56, 0xb4, 0xe9]),
];

/// Returns the colour of a share from 0 (dark) to 1 (light).
pub(super) fn viridis(share: f32) -> [u8; 3] {
    if share.is_nan() {
        return NO_VALUE;
    }
    let at = share.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f32;
    let below = (at as usize).min(VIRIDIS.len() - 2);
    let part = at - below as f32;
    std::array::from_fn(|c| {
        let (a, b) = (VIRIDIS[below][c] as f32, VIRIDIS[below + 1][c] as f32);
        (a + part * (b - a)).round() as u8
    })
}

/// Returns the colour of curve or group number `i`; after six they come again.
pub(super) fn palette(i: usize) -> Ink {
    PALETTE[i % PALETTE.len()]
}

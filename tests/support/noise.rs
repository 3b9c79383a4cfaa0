//! The noise of the flow path, computed in f64 from Philox's words.

use std::f64::consts::TAU;

use flowprior::ops::flow_path::Rows;
use flowprior::rng::Draw;

/// Returns the first `d` standard normal numbers of one sample (Box and Muller on words (0, 1) and (2, 3) of a block).
pub fn normals(draw: Draw, sample: u64, replica: u32, d: usize) -> Vec<f64> {
    let pair = |a: u32, b: u32| {
        let u = ((a >> 8) + 1) as f64 / 16_777_216.0;
        let (sin, cos) = (TAU * (b >> 8) as f64 / 16_777_216.0).sin_cos();
        let radius = (-2.0 * u.ln()).sqrt();
        [radius * cos, radius * sin]
    };
    let four = |block: usize| {
        let [a, b, c, d] = draw.words(sample, replica, block as u32);
        [pair(a, b), pair(c, d)].concat()
    };
    let mut noise: Vec<f64> = (0..d.div_ceil(4)).flat_map(four).collect();
    noise.truncate(d);
    noise
}

/// Returns the noise of all rows, (N, D).
pub fn rows_of_noise(draw: Draw, rows: Rows, d: usize) -> Vec<f64> {
    let address = |i: usize| (rows.first + (i % rows.samples) as u64, (i / rows.samples) as u32);
    (0..rows.len()).map(address).flat_map(|(sample, replica)| normals(draw, sample, replica, d)).collect()
}

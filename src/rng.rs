//! Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011), the same on every device.
//!
//! All randomness of a run is a pure function of (seed, stream, step, sample, replica, element): it needs no state, so
//! it does not depend on threads, micro-batches or shards, and a resumed run continues exactly. `sample` is the position
//! in the global batch (or the number of the latent), `replica` the copy that `flow_mul` makes of it.
//!
//! Layout of the counter: `[element / 4, sample (low), step (low), replica:12 | sample (high):10 | step (high):10]`;
//! the key is Philox of (seed, stream).

use crate::device::Arch;
use crate::device::normal::{Counters, GROUP, LANES, MULTIPLIERS, WEYL, unit};

/// Returns the four random words of `counter` under `key`: ten rounds.
#[inline(always)]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut c = counter;
    let mut k = key;
    for _ in 0..10 {
        let p0 = MULTIPLIERS[0] as u64 * c[0] as u64;
        let p1 = MULTIPLIERS[1] as u64 * c[2] as u64;
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// What random numbers are for. Streams of one seed are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Gaussian noise of the flow path.
    Noise = 1,
    /// The time t of each row.
    Time = 2,
    /// Initial weights; `sample` is the tensor.
    Init = 3,
    /// The order of a data set; `step` is the epoch.
    Order = 4,
    /// Stochastic rounding.
    Rounding = 5,
    /// Initial latents.
    Latents = 6,
    /// Noise that sampling starts from.
    Sampling = 7,
    /// Draws from a toy distribution.
    Toy = 8,
    /// A fixed random projection.
    Projection = 9,
    /// Evaluation: fresh draws, apart from those of training.
    Evaluation = 10,
    /// Labels that are dropped in training.
    LabelDrop = 11,
    /// Images that are mirrored.
    Flip = 12,
    /// Noise of rows that are stored as mean and log-variance.
    Moments = 13,
    /// Noise of a stochastic sampler; `step` is its step.
    SamplerNoise = 14,
    /// Probes of a trace.
    Probe = 15,
    /// Holes of images that are inpainted.
    Mask = 16,
    /// The same, of an evaluation.
    EvaluationMask = 17,
    /// Directions of a sliced distance.
    Slices = 24,
    /// Rows that latents are matched with.
    Targets = 25,
    /// Noise of the paths along which a divergence is taken.
    PathNoise = 26,
    /// Times on them.
    PathTime = 27,
    /// Signs that it is estimated with.
    PathProbe = 28,
}

/// The largest replica number, plus one.
pub const MAX_REPLICAS: usize = 1 << 12;

/// Addresses the random numbers of one step of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    key: [u32; 2],
    step: u64,
    counter: u64,
}

impl Draw {
    /// Opens the numbers of `stream` at `step`; steps count to 2⁴².
    pub fn new(seed: u64, stream: Stream, step: u64) -> Self {
        let words = philox([stream as u32, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
        Self { key: [words[0], words[1]], step, counter: 0 }
    }

    /// Returns the same stream for kernels that add the number at the device address `counter` to the step: what a step that is
    /// captured once and launched many times goes on by.
    pub(crate) fn counted(self, counter: u64) -> Self {
        Self { counter, ..self }
    }

    /// Returns the address of the number that kernels add to the step, 0 for none.
    pub(crate) fn added(self) -> u64 {
        self.counter
    }

    /// Returns the same stream at another step.
    pub fn at(self, step: u64) -> Self {
        Self { step, ..self }
    }

    /// Returns the key, for a kernel.
    pub fn key(self) -> [u32; 2] {
        self.key
    }

    /// Returns the step, for a kernel.
    pub fn step(self) -> u64 {
        self.step
    }

    /// Returns the counter of elements `4·block .. 4·block + 4` of one sample.
    #[inline(always)]
    pub fn counter(self, sample: u64, replica: u32, block: u32) -> [u32; 4] {
        let high =
            (replica << 20) | (((sample >> 32) as u32 & 0x3ff) << 10) | ((self.step >> 32) as u32 & 0x3ff);
        [block, sample as u32, self.step as u32, high]
    }

    /// Returns four random words.
    #[inline(always)]
    pub fn words(self, sample: u64, replica: u32, block: u32) -> [u32; 4] {
        philox(self.counter(sample, replica, block), self.key)
    }

    /// Returns a number in [0, 1), a multiple of 2⁻²⁴: element 0 of the sample.
    #[inline(always)]
    pub fn uniform(self, sample: u64, replica: u32) -> f32 {
        unit(self.words(sample, replica, 0)[0])
    }

    /// Fills `out` with uniform numbers in [0, 1).
    pub fn fill_uniform(self, out: &mut [f32], sample: u64, replica: u32) {
        for (block, four) in out.chunks_mut(4).enumerate() {
            let words = self.words(sample, replica, block as u32);
            for (y, word) in four.iter_mut().zip(words) {
                *y = unit(word);
            }
        }
    }

    /// Fills `out` with standard normal numbers (Box and Muller; largest magnitude 5.8).
    #[inline(always)]
    pub fn fill_normal(self, arch: Arch, out: &mut [f32], sample: u64, replica: u32) {
        let width = out.len();
        self.fill_normal_rows(
            arch,
            out,
            width,
            0,
            #[inline(always)]
            |_| (sample, replica),
        );
    }

    /// Fills the rows (R, width) of `out` with standard normal numbers; row i is that of `address(i)`, a pair
    /// (sample, replica), from element `4·first_block` on.
    ///
    /// Sixteen counters are evaluated together: those of one row where it is long enough, else of several rows.
    #[inline(always)]
    pub fn fill_normal_rows(
        self,
        arch: Arch,
        out: &mut [f32],
        width: usize,
        first_block: u32,
        address: impl Fn(usize) -> (u64, u32),
    ) {
        if width < GROUP {
            return self.fill_short_rows(arch, out, width, first_block, address);
        }
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            let (sample, replica) = address(row);
            let counter = |block: u32| self.counter(sample, replica, first_block + block);
            let (groups, rest) = out.as_chunks_mut::<GROUP>();
            arch.normals_from(groups, counter(0), self.key);
            if !rest.is_empty() {
                let mut last = [[0.0; GROUP]];
                arch.normals_from(&mut last, counter((groups.len() * LANES) as u32), self.key);
                rest.copy_from_slice(&last[0][..rest.len()]);
            }
        }
    }

    #[inline(always)]
    fn fill_short_rows(
        self,
        arch: Arch,
        out: &mut [f32],
        width: usize,
        first_block: u32,
        address: impl Fn(usize) -> (u64, u32),
    ) {
        let mut counters = Counters::default();
        let mut blocks: [&mut [f32]; LANES] = Default::default();
        let mut lane = 0;
        for (row, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
            let (sample, replica) = address(row);
            for (block, out) in out.chunks_mut(4).enumerate() {
                let counter = self.counter(sample, replica, first_block + block as u32);
                for (words, word) in counters.0.iter_mut().zip(counter) {
                    words[lane] = word;
                }
                blocks[lane] = out;
                lane += 1;
                if lane == LANES {
                    self.fill_blocks(arch, &mut blocks, &counters);
                    lane = 0;
                }
            }
        }
        if lane > 0 {
            self.fill_blocks(arch, &mut blocks[..lane], &counters);
        }
    }

    /// Fills `blocks`, of at most four numbers each, from their counters.
    #[inline(always)]
    fn fill_blocks(self, arch: Arch, blocks: &mut [&mut [f32]], counters: &Counters) {
        let mut values = [0.0; GROUP];
        arch.normals(&mut values, counters, self.key);
        for (block, values) in blocks.iter_mut().zip(values.as_chunks::<4>().0) {
            match block.as_mut_array() {
                Some(block) => *block = *values,
                None => block.iter_mut().zip(values).for_each(|(block, value)| *block = *value),
            }
        }
    }

    /// Calls `f(row, column, noise)` for every row of `rows` in order, with the standard normal numbers of a stretch of
    /// its `width` columns. Noise lives in 4 KiB of stack, never in memory of its own.
    #[inline(always)]
    pub fn for_each_normal_row(
        self,
        arch: Arch,
        rows: std::ops::Range<usize>,
        width: usize,
        address: impl Fn(usize) -> (u64, u32),
        mut f: impl FnMut(usize, usize, &[f32]),
    ) {
        let mut noise = [0.0f32; NORMAL_TILE];
        let tile_rows = (NORMAL_TILE / width.max(1)).max(1);
        for first in rows.clone().step_by(tile_rows) {
            let count = tile_rows.min(rows.end - first);
            if width <= NORMAL_TILE {
                let noise = &mut noise[..count * width];
                self.fill_normal_rows(
                    arch,
                    noise,
                    width,
                    0,
                    #[inline(always)]
                    |i| address(first + i),
                );
                for (i, noise) in noise.chunks_exact(width.max(1)).enumerate() {
                    f(first + i, 0, noise);
                }
                continue;
            }
            let (sample, replica) = address(first);
            for column in (0..width).step_by(NORMAL_TILE) {
                let noise = &mut noise[..NORMAL_TILE.min(width - column)];
                let (width, block) = (noise.len(), (column / 4) as u32);
                self.fill_normal_rows(
                    arch,
                    noise,
                    width,
                    block,
                    #[inline(always)]
                    |_| (sample, replica),
                );
                f(first, column, noise);
            }
        }
    }
}

/// Normal numbers held on the stack at a time, the most that [`Draw::for_each_normal_row`] hands out at once.
pub const NORMAL_TILE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Isa;

    /// The known-answer vectors published with Random123 (kat_vectors, philox4x32 10).
    #[test]
    fn philox_passes_the_published_vectors() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn normals_have_the_right_moments() {
        let draw = Draw::new(7, Stream::Noise, 3);
        let mut x = vec![0.0f32; 1 << 20];
        Isa::detect().run(
            #[inline(always)]
            |arch| draw.fill_normal(arch, &mut x, 5, 1),
        );
        let n = x.len() as f64;
        let moment = |p: i32| x.iter().map(|v| (*v as f64).powi(p)).sum::<f64>() / n;
        assert!(moment(1).abs() < 4e-3, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 6e-3, "{}", moment(2));
        assert!(moment(3).abs() < 2e-2, "{}", moment(3));
        assert!((moment(4) - 3.0).abs() < 5e-2, "{}", moment(4));
    }

    #[test]
    fn a_prefix_does_not_depend_on_the_length() {
        let draw = Draw::new(1, Stream::Noise, 0);
        let (mut long, mut short) = ([0.0; 100], [0.0; 37]);
        Isa::detect().run(
            #[inline(always)]
            |arch| draw.fill_normal(arch, &mut long, 9, 0),
        );
        Isa::detect().run(
            #[inline(always)]
            |arch| draw.fill_normal(arch, &mut short, 9, 0),
        );
        assert_eq!(long[..37], short[..]);
    }

    #[test]
    fn rows_of_any_width_equal_one_row_at_a_time() {
        let draw = Draw::new(1, Stream::Noise, 4);
        for width in [1, 2, 5, 32, 1000, 1024, 1025, 2100] {
            let mut rows = vec![0.0; 7 * width];
            let mut single = vec![0.0; width];
            let address = |i: usize| (i as u64 % 3, i as u32 / 3);
            Isa::detect().run(
                #[inline(always)]
                |arch| {
                    draw.for_each_normal_row(arch, 0..7, width, address, |row, column, noise| {
                        rows[row * width + column..][..noise.len()].copy_from_slice(noise);
                    });
                    for (i, row) in rows.chunks_exact(width).enumerate() {
                        let (sample, replica) = address(i);
                        draw.fill_normal(arch, &mut single, sample, replica);
                        assert_eq!(row, single, "row {i} of width {width}");
                    }
                },
            );
        }
    }

    #[test]
    fn every_coordinate_of_the_address_matters() {
        let base = Draw::new(1, Stream::Noise, 2).words(3, 4, 5);
        let others = [
            Draw::new(2, Stream::Noise, 2).words(3, 4, 5),
            Draw::new(1 << 32 | 1, Stream::Noise, 2).words(3, 4, 5),
            Draw::new(1, Stream::Time, 2).words(3, 4, 5),
            Draw::new(1, Stream::Noise, 1 << 33 | 2).words(3, 4, 5),
            Draw::new(1, Stream::Noise, 2).words(1 << 34 | 3, 4, 5),
            Draw::new(1, Stream::Noise, 2).words(3, 5, 5),
            Draw::new(1, Stream::Noise, 2).words(3, 4, 6),
        ];
        assert!(others.iter().all(|w| *w != base));
    }
}

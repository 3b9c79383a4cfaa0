//! Fixed position embeddings, computed in f64 (FEATURES 1.8).
//!
//! ```text
//! grid      row (i, j) of T = h·w rows, i the row and j the column of the patch:
//!           [sin(j·ω) | cos(j·ω) | sin(i·ω) | cos(i·ω)],  ω_k = 10000^(−k/(C/4)),  k < C/4
//! sequence  row p: even channels sin, odd channels cos of p·10000^(−2k/C),  k < C/2
//! ```

/// The base of the frequencies.
const PERIOD: f64 = 10_000.0;

/// Returns the embedding of h × w patches, (h·w, C) row by row; C is a multiple of four.
pub fn grid(h: usize, w: usize, c: usize) -> Vec<f32> {
    let frequencies: Vec<f64> = (0..c / 4).map(|k| PERIOD.powf(-(k as f64) / (c / 4) as f64)).collect();
    let mut out = Vec::with_capacity(h * w * c);
    for row in 0..h {
        for column in 0..w {
            for place in [column, row] {
                let phases = || frequencies.iter().map(|f| place as f64 * f);
                out.extend(phases().map(|x| x.sin() as f32));
                out.extend(phases().map(|x| x.cos() as f32));
            }
        }
    }
    out
}

/// Returns the embedding of T tokens in a row, (T, C); C is even.
pub fn sequence(tokens: usize, c: usize) -> Vec<f32> {
    let of = |p: usize, k: usize| {
        let phase = p as f64 * PERIOD.powf(-2.0 * k as f64 / c as f64);
        [phase.sin() as f32, phase.cos() as f32]
    };
    (0..tokens).flat_map(|p| (0..c / 2).flat_map(move |k| of(p, k))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_has_the_column_first_and_the_row_last() {
        let (h, w, c) = (2, 3, 8);
        let table = grid(h, w, c);
        assert_eq!(table.len(), h * w * c);
        // Patch (1, 2): ω = 1, 0.01.
        let row = &table[(w + 2) * c..(w + 3) * c];
        let expected =
            [2f64.sin(), 0.02f64.sin(), 2f64.cos(), 0.02f64.cos(), 1f64.sin(), 0.01f64.sin(), 1f64.cos()];
        for (found, expected) in row.iter().zip(expected) {
            assert!((*found as f64 - expected).abs() < 1e-7, "{row:?}");
        }
    }

    #[test]
    fn a_sequence_alternates_sine_and_cosine() {
        let table = sequence(5, 6);
        let row = &table[4 * 6..];
        let slow = 4.0 * 10_000f64.powf(-2.0 / 6.0);
        for (found, expected) in row.iter().zip([4f64.sin(), 4f64.cos(), slow.sin(), slow.cos()]) {
            assert!((*found as f64 - expected).abs() < 1e-7, "{row:?}");
        }
        assert_eq!(table[..6], [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
    }
}

//! The order of an epoch: a keyed permutation of 0..rows that is computed, not stored.
//!
//! A Feistel network permutes 0..2ᵇ, the smallest such range that holds all rows; a result outside 0..rows goes
//! through it again (cycle walking: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002), fewer than twice
//! on average. The round function is Philox under (seed, [`Stream::Order`], epoch), so the order is a pure function of
//! (seed, epoch, position), needs no memory and can be entered anywhere.

use crate::error::{Error, Result};
use crate::rng::{Draw, Stream};

/// Rounds of the network. Four hide the key where halves are wide (Luby and Rackoff, 1988).
const ROUNDS: u32 = 8;
/// Rounds over at most 2⁸ numbers, where one round has few random bits: fewer leave some orders of a handful of rows
/// measurably more likely than others (the test of five rows).
const ROUNDS_OF_FEW: u32 = 24;

/// The order in which one epoch visits the rows of a data set.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    draw: Draw,
    rows: u64,
    low_bits: u32,
    high_bits: u32,
}

impl Permutation {
    /// Prepares the order of `epoch` over `rows` rows.
    ///
    /// # Errors
    /// No rows, or more than 2⁶².
    pub fn new(seed: u64, epoch: u64, rows: u64) -> Result<Self> {
        if rows == 0 || rows > 1 << 62 {
            return Err(Error::argument("permutation", "rows", "between 1 and 2⁶² rows", rows));
        }
        let bits = u64::BITS - (rows - 1).leading_zeros();
        let high_bits = bits / 2;
        Ok(Self { draw: Draw::new(seed, Stream::Order, epoch), rows, low_bits: bits - high_bits, high_bits })
    }

    /// Returns the row at `position` (taken modulo the number of rows).
    pub fn row(&self, position: u64) -> u64 {
        let mut x = self.network(position % self.rows);
        while x >= self.rows {
            x = self.network(x);
        }
        x
    }

    /// Permutes 0..2ᵇ: even rounds change the high half by the low one, odd rounds the low half by the high one.
    fn network(&self, x: u64) -> u64 {
        let mut low = x & ((1 << self.low_bits) - 1);
        let mut high = x >> self.low_bits;
        let rounds = if self.low_bits <= 4 { ROUNDS_OF_FEW } else { ROUNDS };
        for round in 0..rounds {
            if round % 2 == 0 {
                high ^= self.round(low, round) & ((1 << self.high_bits) - 1);
            } else {
                low ^= self.round(high, round) & ((1 << self.low_bits) - 1);
            }
        }
        high << self.low_bits | low
    }

    fn round(&self, half: u64, round: u32) -> u64 {
        self.draw.words(half, 0, round)[0] as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(seed: u64, epoch: u64, rows: u64) -> Vec<u64> {
        let permutation = Permutation::new(seed, epoch, rows).unwrap();
        (0..rows).map(|p| permutation.row(p)).collect()
    }

    #[test]
    fn every_row_comes_exactly_once_per_epoch() {
        let sizes = (1..=70).chain([97, 127, 128, 129, 997, 1000, 1024, 1797, 4093, 30_522, 65_536, 65_537]);
        for rows in sizes {
            for epoch in 0..3 {
                let mut order = order(5, epoch, rows);
                order.sort_unstable();
                assert!(order.into_iter().eq(0..rows), "{rows} rows, epoch {epoch}");
            }
        }
    }

    #[test]
    fn seed_and_epoch_change_the_order_and_nothing_else_does() {
        let base = order(1, 0, 1000);
        assert_eq!(base, order(1, 0, 1000));
        for other in [order(1, 1, 1000), order(2, 0, 1000), order(1, 1 << 33, 1000)] {
            let same = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 10, "{same} of 1000 rows stay");
        }
    }

    /// Chi-square of all orders of a tiny set: 120 cells, 24,000 epochs; the 1 − 10⁻⁶ quantile of 119 degrees is 206.
    #[test]
    fn all_orders_of_five_rows_are_about_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        for epoch in 0..24_000 {
            *counts.entry(order(9, epoch, 5)).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 120);
        let chi: f64 = counts.values().map(|c| (*c as f64 - 200.0).powi(2) / 200.0).sum();
        assert!(chi < 206.0, "{chi}");
    }

    /// Where a row lands, and which row follows it, in 16 buckets each: 256 cells, quantile of 255 degrees 378.
    #[test]
    fn positions_and_neighbours_are_spread_evenly() {
        let rows = 1 << 16;
        for (seed, rows) in [(1, rows), (2, rows - 1), (3, rows + 1), (4, 50_000)] {
            let order = order(seed, 0, rows);
            let mut landed = [0u32; 256];
            let mut followed = [0u32; 256];
            for (position, pair) in order.windows(2).enumerate() {
                let bucket = |x: u64| (x * 16 / rows) as usize;
                landed[bucket(position as u64) * 16 + bucket(pair[0])] += 1;
                followed[bucket(pair[0]) * 16 + bucket(pair[1])] += 1;
            }
            for cells in [landed, followed] {
                let expected = (rows - 1) as f64 / 256.0;
                let chi: f64 = cells.iter().map(|c| (*c as f64 - expected).powi(2) / expected).sum();
                assert!(chi < 378.0, "{rows} rows: {chi}");
            }
        }
    }

    #[test]
    fn huge_sets_are_entered_anywhere() {
        let rows = (1 << 40) + 7;
        let permutation = Permutation::new(0, 0, rows).unwrap();
        let mut seen: Vec<u64> = (0..1000).map(|i| permutation.row(i * 1_099_511_627)).collect();
        assert!(seen.iter().all(|r| *r < rows));
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 1000);
    }

    #[test]
    fn an_empty_set_is_refused() {
        let message = Permutation::new(0, 0, 0).unwrap_err().to_string();
        assert_eq!(message, "permutation: `rows` has 0, expected between 1 and 2⁶² rows");
    }
}

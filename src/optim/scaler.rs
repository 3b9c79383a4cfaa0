//! Dynamic loss scaling for f16: keeps small gradients above f16's 6e-8 and big ones below its 65,504.
//!
//! The rules of PyTorch's `GradScaler`: the loss is multiplied by the scale before the backward pass; a step whose
//! gradients are not finite is skipped and the scale multiplied by `backoff`; after `interval` good steps in a row it
//! is multiplied by `growth`. One addition: the scale never falls below `min`, so that a network that is broken, not
//! merely out of range, ends the run through `train.max_skipped` and not with a scale of zero.

use serde::{Deserialize, Serialize};

/// Describes how the loss scale moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScalerConfig {
    /// The first scale.
    pub init: f64,
    /// Multiplies the scale after `interval` good steps in a row.
    pub growth: f64,
    /// Multiplies the scale after a step that was not finite.
    pub backoff: f64,
    /// Good steps in a row before the scale grows.
    pub interval: u64,
    /// The smallest scale.
    pub min: f64,
}

impl Default for ScalerConfig {
    fn default() -> Self {
        Self { init: 65536.0, growth: 2.0, backoff: 0.5, interval: 2000, min: 1.0 }
    }
}

/// Holds the scale and the number of good steps since it last moved: all the state there is, saved in checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaler {
    scale: f32,
    good_steps: u64,
}

impl Scaler {
    /// Starts at the first scale of `config`.
    pub fn new(config: &ScalerConfig) -> Self {
        Self { scale: config.init as f32, good_steps: 0 }
    }

    /// Goes on from a scale and the number of good steps since it last moved.
    pub fn at(scale: f32, good_steps: u64) -> Self {
        Self { scale, good_steps }
    }

    /// Returns the factor of the loss; gradients are divided by it.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Returns how many good steps there were in a row since the scale last moved.
    pub fn good_steps(&self) -> u64 {
        self.good_steps
    }

    /// Moves the scale after a step whose gradients were all `finite`, or were not.
    pub fn update(&mut self, config: &ScalerConfig, finite: bool) {
        if !finite {
            self.scale = (self.scale * config.backoff as f32).max(config.min as f32);
            self.good_steps = 0;
            return;
        }
        self.good_steps += 1;
        if self.good_steps < config.interval {
            return;
        }
        let grown = self.scale * config.growth as f32;
        if grown.is_finite() {
            self.scale = grown;
        }
        self.good_steps = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(interval: u64) -> ScalerConfig {
        ScalerConfig { interval, ..Default::default() }
    }

    #[test]
    fn scale_doubles_after_the_interval_and_halves_on_an_overflow() {
        let config = config(3);
        let mut scaler = Scaler::new(&config);
        let finite = [true, true, false, true, true, true, true, false, false];
        let scales: Vec<f32> = finite
            .iter()
            .map(|f| {
                scaler.update(&config, *f);
                scaler.scale()
            })
            .collect();
        let expected = [65536., 65536., 32768., 32768., 32768., 65536., 65536., 32768., 16384.];
        assert_eq!(scales, expected);
    }

    #[test]
    fn defaults_grow_after_exactly_two_thousand_good_steps() {
        let config = ScalerConfig::default();
        let mut scaler = Scaler::new(&config);
        for _ in 0..1999 {
            scaler.update(&config, true);
        }
        assert_eq!((scaler.scale(), scaler.good_steps()), (65536.0, 1999));
        scaler.update(&config, true);
        assert_eq!((scaler.scale(), scaler.good_steps()), (131072.0, 0));
    }

    #[test]
    fn scale_stays_between_its_floor_and_the_largest_f32() {
        let config = config(1);
        let mut scaler = Scaler::new(&config);
        for _ in 0..100 {
            scaler.update(&config, false);
        }
        assert_eq!(scaler.scale(), 1.0);
        for _ in 0..400 {
            scaler.update(&config, true);
        }
        assert_eq!(scaler.scale(), 2f32.powi(127));
    }

    #[test]
    fn a_scaler_written_and_read_back_goes_on_the_same() -> Result<(), serde_json::Error> {
        let config = config(5);
        let mut scaler = Scaler::new(&config);
        (0..13).for_each(|i| scaler.update(&config, i % 6 != 4));
        let mut copy: Scaler = serde_json::from_str(&serde_json::to_string(&scaler)?)?;
        assert_eq!(copy, scaler);
        for i in 0..50 {
            scaler.update(&config, i % 7 != 0);
            copy.update(&config, i % 7 != 0);
            assert_eq!(copy, scaler);
        }
        Ok(())
    }
}

//! The keys of stage 2.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::autoencoder::{AutoencoderConfig, Reconstruction};
use crate::error::{Error, Result};

/// What stage 2 moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Free latents, each a parameter of its own.
    Latents,
    /// An autoencoder, through its latents.
    Autoencoder,
}

/// Which part of the gradient reaches the latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gradient {
    /// All of it: (2/M)·w·(t·Jᵀr − r).
    Full,
    /// Without the network's Jacobian, forward passes only (the reference's `detach_pred_v`); needs weight `kl`.
    Detached,
    /// As `detached`, less a part of the noise whose mean is 0: the same expectation, several times less variance.
    Centred,
}

/// Stage 2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlignConfig {
    /// The trained prior: a run folder or one checkpoint in it.
    pub prior: Option<PathBuf>,
    /// What moves: `latents` or `autoencoder`.
    pub target: Target,
    /// How many free latents.
    pub latents: usize,
    /// Standard deviation of the first latents.
    pub init_std: f64,
    /// Which part of the gradient reaches the latents: `full`, `detached` or `centred`.
    pub gradient: Gradient,
    /// Weight of the alignment loss beside the reconstruction (with `flow.reduction` as it is).
    pub lambda: f64,
    /// First step with an alignment loss.
    pub flow_start: u64,
    /// Steps over which its weight grows from 0 to `lambda`, counted from `flow_start`. (In the reference the warm-up
    /// counts from step 0 and overrides `flow_start`.)
    pub flow_warmup: u64,
    /// Multiplies the weight by the ratio of the two losses' gradient norms at one weight of the encoder.
    pub adaptive: bool,
    /// That weight, by name; empty for the encoder's last. The reference takes the last layer norm's, `encoder.norm.weight`.
    pub adaptive_at: String,
    /// How far a reconstruction is from the data: `l2` or `l1`.
    pub reconstruction: Reconstruction,
    /// Puts a learned linear map without bias between latents and prior (the reference's `flow_target_proj`).
    pub projection: bool,
    /// Trains the prior together with the autoencoder, by the same loss: it follows the latents that follow it. Without it the
    /// prior is frozen.
    pub joint: bool,
    /// Weight of (std(latents) − 1)².
    pub std_weight: f64,
    /// Normalises latents by their batch's mean and standard deviation, held constant in the gradient.
    pub std_latents: bool,
    /// Weight of the entropy of a batch of latents, which pushes neighbours apart; 1 makes the likelihood-weighted loss KL(latents‖data), whatever
    /// `flow.reduction` (see [`crate::train::align`]). With an autoencoder times the weight of the alignment loss, as the two below.
    pub repulsion: f64,
    /// The neighbour whose distance the entropy is estimated by. Above 1 latents gather in groups of k, which nothing inside of a
    /// group pushes apart.
    pub repulsion_k: usize,
    /// Weight that repulsion starts with, to cool down to `repulsion`; 0 for one that stays the same.
    pub repulsion_start: f64,
    /// Steps over which it cools, by the same factor in each.
    pub repulsion_cooling: u64,
    /// Weight of D times the squared sliced Wasserstein-2 distance from the prior's training data.
    pub sliced_wasserstein: f64,
    /// Random directions of that distance in each step.
    pub projections: usize,
    /// Rows of those data for each latent, drawn anew in each step: more of them make its gradient less noisy.
    pub targets: usize,
    /// Weight of the velocity's divergence on the straight paths to a latent, −C(y) of the paper; needs dtype f32.
    pub divergence: f64,
    /// Lets `gradient = "detached"` go with any weight, for experiments that show what comes of it: with `uniform`, latents leave the data.
    pub unsound: bool,
    /// Uses the averaged weights of the prior rather than the last ones.
    pub use_ema: bool,
    /// The autoencoder.
    pub autoencoder: AutoencoderConfig,
}

impl Default for AlignConfig {
    fn default() -> Self {
        Self {
            prior: None,
            target: Target::Latents,
            latents: 1000,
            init_std: 1.0,
            gradient: Gradient::Full,
            lambda: 0.01,
            flow_start: 0,
            flow_warmup: 0,
            adaptive: false,
            adaptive_at: String::new(),
            reconstruction: Reconstruction::L2,
            projection: false,
            joint: false,
            std_weight: 0.0,
            std_latents: false,
            repulsion: 0.0,
            repulsion_k: 1,
            repulsion_start: 0.0,
            repulsion_cooling: 0,
            sliced_wasserstein: 0.0,
            projections: 16,
            targets: 4,
            divergence: 0.0,
            unsound: false,
            use_ema: true,
            autoencoder: AutoencoderConfig::default(),
        }
    }
}

impl AlignConfig {
    /// Returns the folder of the trained prior.
    ///
    /// # Errors
    /// `Error::Usage` when none was given.
    pub fn prior(&self) -> Result<&Path> {
        self.prior.as_deref().ok_or_else(|| {
            Error::Usage(
                "no prior to align to: give a run folder of `pretrain` with `--prior RUN`".to_owned(),
            )
        })
    }

    /// Returns the weight of the alignment loss at `step`: 0 before `flow_start`, then linearly up to `lambda`.
    pub fn weight_at(&self, step: u64) -> f64 {
        if step < self.flow_start {
            return 0.0;
        }
        let since = step - self.flow_start;
        if since >= self.flow_warmup {
            return self.lambda;
        }
        self.lambda * since as f64 / self.flow_warmup as f64
    }

    /// Says whether there is a term beside the alignment loss that matches distributions.
    pub fn matches(&self) -> bool {
        self.repulsion > 0.0 || self.sliced_wasserstein > 0.0 || self.divergence > 0.0
    }

    /// Returns the weight of repulsion at `step`: from `repulsion_start` down to `repulsion`, by the same factor in every step of
    /// `repulsion_cooling`.
    pub fn repulsion_at(&self, step: u64) -> f64 {
        if self.repulsion_start == 0.0 || step >= self.repulsion_cooling {
            return self.repulsion;
        }
        let left = 1.0 - step as f64 / self.repulsion_cooling as f64;
        self.repulsion * (self.repulsion_start / self.repulsion).powf(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repulsion_cools_by_the_same_factor_in_every_step() {
        let config =
            AlignConfig { repulsion: 1.0, repulsion_start: 16.0, repulsion_cooling: 4, ..Default::default() };
        let close = |step, expected: f64| (config.repulsion_at(step) / expected - 1.0).abs() < 1e-12;
        assert!(close(0, 16.0) && close(1, 8.0) && close(3, 2.0) && close(4, 1.0) && close(9, 1.0));
        assert_eq!(AlignConfig { repulsion: 0.5, ..Default::default() }.repulsion_at(0), 0.5);
    }

    #[test]
    fn alignment_warms_up_from_flow_start_and_never_before_it() {
        let config = AlignConfig { lambda: 0.5, flow_start: 100, flow_warmup: 10, ..Default::default() };
        let at = |step| config.weight_at(step);
        assert_eq!([at(0), at(5), at(99), at(100)], [0.0; 4]);
        assert_eq!([at(101), at(105), at(109)], [0.05, 0.25, 0.45]);
        assert_eq!([at(110), at(1_000_000)], [0.5, 0.5]);
        let sudden = AlignConfig { flow_warmup: 0, ..config };
        assert_eq!([sudden.weight_at(99), sudden.weight_at(100)], [0.0, 0.5]);
    }
}

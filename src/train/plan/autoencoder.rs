//! What an autoencoder holds in a step, block size by block size: see the parent for how it is counted.
//!
//! Of a vision transformer with N = B·(T + L) tokens in each half, both of depth L:
//!
//! ```text
//! N·C      5·L a half   h, m1, o, h between, m2 of every block, and five for what a block has beside
//! N·3·C    L a half     qkv, and its gradient
//! N·4·C    2·L a half   z and gelu(z), and a gradient
//! ```
//! `recompute` keeps h alone, and what one block at a time has.

use super::{Blocks, F32};
use crate::nn::block::MLP_RATIO;
use crate::nn::{AutoencoderConfig, Layers, VitConfig};
use crate::train::config::Config;
use crate::train::cost::{Coding, Work};

/// Returns all of them until the decoder's backward, and those that wait for the encoder's.
pub(super) fn activations(config: &Config, work: &Work) -> (Blocks, Blocks) {
    let (mut all, mut waiting) = (Blocks::new(), Blocks::new());
    let Some(Coding { samples, net }) = &work.autoencoder else { return (all, waiting) };
    let storage = config.dtype.bytes() as u64;
    let samples = (samples / work.micro_batches) as u64;
    let mut add = |bytes: u64, count: u64, kept: u64| {
        *all.entry(bytes).or_default() += count;
        *waiting.entry(bytes).or_default() += kept;
    };
    let latents = samples * net.latents() as u64;
    add(samples * net.data as u64 * F32, 1, 1); // x
    add(latents * storage, 2, 1); // y, dy
    add(latents * F32, 2, 2); // y and dy in f32
    match &net.layers {
        Layers::Mlp { hidden, .. } => {
            add(samples * net.data as u64 * storage, 3, 1); // x as stored, x̂ and dx̂
            for width in hidden {
                // z and act(z), of the encoder and of the decoder; dz
                add(samples * *width as u64 * storage, 5, 2);
            }
        }
        Layers::Vit(vit) => transformers(config, net, vit, samples, add),
    }
    (all, waiting)
}

fn transformers(
    config: &Config,
    net: &AutoencoderConfig,
    vit: &VitConfig,
    samples: u64,
    mut add: impl FnMut(u64, u64, u64),
) {
    let storage = config.dtype.bytes() as u64;
    let (c, depth, heads) = (vit.width as u64, vit.depth as u64, vit.heads as u64);
    let (cut, latents) = (samples * vit.patches().tokens() as u64, samples * net.tokens as u64);
    let n = cut + latents;
    // Of each half: kept of all blocks, and of one block that is computed.
    let [one, three, four, stats, lse] = match config.train.recompute {
        true => [depth, 0, 0, 0, 0],
        false => [5 * depth, depth, 2 * depth, 2 * depth, depth],
    };
    let again = config.train.recompute as u64;
    add(n * c * storage, 2 * one + 3 + 5 * again, one);
    add(n * 3 * c * storage, 2 * three + 1 + again, three);
    add(n * MLP_RATIO as u64 * c * storage, 2 * four + 1 + 2 * again, four);
    add(n * 2 * F32, 2 * stats + 2 * again, stats);
    add(n * heads * F32, 2 * lse + again, lse);
    add(latents * c * storage, 2, 2); // before and after the encoder's last norm
    add(cut * c * storage, 2, 0); // the decoder's
    add(cut * vit.patches().columns() as u64 * storage, 3, 1); // tokens of x; x̂, its tokens, and a gradient
}

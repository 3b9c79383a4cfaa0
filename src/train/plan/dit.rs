//! What a DiT holds in a step, block size by block size: see the parent for how it is counted.
//!
//! ```text
//! N·T·C    stage 1     7·L + 4   h, m1, o, h between, u1, m2, u2 of every block; the last h and m; two gradients
//!          recompute   L + 10    h of every block; the six others of one block, its output, the last h and m; a gradient
//!          stage 2     3·L + 3   h, o, h between; the last h; two gradients
//! N·T·3·C              L + 1     qkv, twice with qk-norm
//! N·T·4·C              2·L + 1   z and gelu(z), a gradient; L + 1 in stage 2: z alone is kept
//! ```

use crate::nn::DitConfig;
use crate::nn::block::MLP_RATIO;
use crate::train::config::Config;
use crate::train::cost::{Purpose, Work};
use crate::train::plan::{F32, micro_rows};

/// Returns the activations of the trunk, with inputs, outputs and losses.
pub(super) fn activations(config: &Config, work: &Work, net: &DitConfig) -> Vec<(u64, u64)> {
    let storage = config.dtype.bytes() as u64;
    let rows = micro_rows(work) as u64;
    let n = rows * net.tokens() as u64;
    let (d, c, depth) = (net.input.data_width() as u64, net.width as u64, net.depth as u64);
    let (heads, each) = (net.heads as u64, 1 + net.qk_norm as u64);
    let kept = if config.train.recompute { 1 } else { depth };
    let (one, three, four, stats) = match work.purpose {
        Purpose::Params if config.train.recompute => (depth + 10, each + 1, 3, 3),
        Purpose::Params => (7 * depth + 4, each * depth + 1, 2 * depth + 1, 2 * depth + 1),
        Purpose::Latents => (3 * depth + 3, each * depth + 1, depth + 1, 2 * depth + 1),
        Purpose::Detached => (4, each, 2, 1),
    };
    let kept = if work.purpose == Purpose::Detached { 1 } else { kept };
    let (image, rescaled) = ((net.cond_channels > 0) as u64, (net.cond_rescale > 0) as u64);
    let area = rows * d / net.input.channels() as u64;
    vec![
        (n * c * storage, one),
        (n * 3 * c * storage, three),
        (n * MLP_RATIO as u64 * c * storage, four),
        (n * 2 * F32, stats),                         // mean and rstd of each layer norm
        (n * heads * F32, kept),                      // log-sum-exp of each row and head
        (n * net.token_inputs() as u64 * storage, 1), // tokens as they are embedded
        (n * net.token_outputs() as u64 * storage, 1),
        (net.tokens() as u64 * c * storage, 1), // positions
        (rows * d * storage, 3),                // x_t, v and dv
        (area * net.cond_channels as u64 * storage, image + rescaled), // the condition, and its pixels
        (area * net.cond_rescale as u64 * storage, 2 * rescaled),
        (work.samples as u64 * d * F32, 3), // data, dy, the sum of dy over micro-batches
        (rows * F32, 2),                    // t, losses
    ]
}

/// Returns inputs and outputs of the layers that a token goes through.
pub(super) fn layers(net: &DitConfig) -> Vec<(usize, usize)> {
    let c = net.width;
    let block = [(c, 3 * c), (c, c), (c, MLP_RATIO * c), (MLP_RATIO * c, c)];
    block.into_iter().chain([(net.token_inputs(), c), (c, net.token_outputs())]).collect()
}

//! The keys of the velocity network.

use serde::{Deserialize, Serialize};

use crate::nn::dit::Size;

/// How the modulation path (a function of t alone in an unconditional network) is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Modulation {
    /// `nodes` where it applies (no condition), else `direct`.
    Auto,
    /// One modulation row per row of the batch: the parity form.
    Direct,
    /// Evaluated at this many Chebyshev nodes and interpolated per row.
    Nodes(usize),
    /// This many modulation rows, each shared by consecutive rows of the batch.
    Groups(usize),
}

/// Nodes that `modulation = "nodes"` means: exact to f32 rounding for the reference's network (PERFORMANCE 5).
pub const DEFAULT_NODES: usize = 16;

impl TryFrom<String> for Modulation {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (word, number) = match text.split_once('=') {
            Some((word, number)) => (word, Some(number.parse::<usize>())),
            None => (text.as_str(), None),
        };
        match (word, number) {
            ("auto", None) => Ok(Self::Auto),
            ("direct", None) => Ok(Self::Direct),
            ("nodes", None) => Ok(Self::Nodes(DEFAULT_NODES)),
            ("nodes", Some(Ok(nodes))) => Ok(Self::Nodes(nodes)),
            ("groups", Some(Ok(groups))) => Ok(Self::Groups(groups)),
            _ => Err(format!(
                "unknown modulation `{text}`, expected `auto`, `direct`, `nodes`, `nodes=R` or `groups=G`"
            )),
        }
    }
}

impl From<Modulation> for String {
    fn from(modulation: Modulation) -> Self {
        match modulation {
            Modulation::Auto => "auto".to_owned(),
            Modulation::Direct => "direct".to_owned(),
            Modulation::Nodes(nodes) => format!("nodes={nodes}"),
            Modulation::Groups(groups) => format!("groups={groups}"),
        }
    }
}

/// Which velocity network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// SimpleMLPAdaLN, on rows that are vectors (FEATURES 1.7).
    Mlp,
    /// DiT, on rows that are images or tokens (FEATURES 1.8).
    Dit,
}

/// The velocity network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Which network: `mlp` or `dit`.
    pub kind: Kind,
    /// DiT: a published size, `S`, `B`, `L` or `XL`, that decides width, depth and heads; without it, their keys do.
    pub size: Option<Size>,
    /// Width of the data, C; 0 takes it from the data, anything else must agree with them.
    pub channels: usize,
    /// Width of the hidden layers, D.
    pub width: usize,
    /// Residual blocks.
    pub depth: usize,
    /// DiT: attention heads; 0 for heads of 64 columns.
    pub heads: usize,
    /// DiT: side of a patch.
    pub patch: usize,
    /// DiT: channels (those of a condition included), height and width of a row; without it, the data set says them.
    pub image: Option<[usize; 3]>,
    /// DiT: takes a row as so many tokens in a sequence instead of an image; 0 for images.
    pub tokens: usize,
    /// DiT: classes of the labels; 0 for a network without.
    pub classes: usize,
    /// DiT: probability that a row is trained without its label, so that the network also learns to do without.
    pub label_dropout: f64,
    /// DiT: normalises queries and keys.
    pub qk_norm: bool,
    /// DiT: gives outputs twice the channels, of which the second half is not used, as in the reference's weights.
    pub learn_sigma: bool,
    /// DiT: channels of a spatial condition beside x_t: the last ones of each row of the data.
    pub cond_channels: usize,
    /// DiT: channels that a learned 1×1 convolution makes of those, as for a semantic map; 0 to take them as they are.
    pub cond_rescale: usize,
    /// DiT: learns to fill holes: beside x_t it has what is known of the image, and a mask, drawn anew for each sample.
    pub inpaint: bool,
    /// DiT: probability that nothing of a sample is known, so that the network also learns to do without.
    pub inpaint_whole: f64,
    /// MLP: width of the per-row condition (the reference's `z_channels`); 0 for none.
    pub cond: usize,
    /// MLP: normalises the output of each block instead of only its input.
    pub post_norm: bool,
    /// Multiplies t before the sinusoids. The reference feeds t as it is: 1.
    pub time_scale: f64,
    /// How the modulation path is computed: `auto`, `direct`, `nodes`, `nodes=R` or `groups=G`.
    pub modulation: Modulation,
}

impl ModelConfig {
    /// Returns the heads of a DiT.
    pub fn heads(&self) -> usize {
        if self.heads == 0 { (self.width / 64).max(1) } else { self.heads }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            kind: Kind::Mlp,
            size: None,
            channels: 0,
            width: 1024,
            depth: 6,
            heads: 0,
            patch: 2,
            image: None,
            tokens: 0,
            classes: 0,
            label_dropout: 0.1,
            qk_norm: false,
            learn_sigma: false,
            cond_channels: 0,
            cond_rescale: 0,
            inpaint: false,
            inpaint_whole: 0.1,
            cond: 0,
            post_norm: false,
            time_scale: 1.0,
            modulation: Modulation::Auto,
        }
    }
}

//! Sizes and variants of a DiT, and what they must satisfy.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ops::patchify::Patches;

/// Sizes and variants of the network.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DitConfig {
    /// What a row of data is.
    pub input: DitInput,
    /// Width C of the residual stream.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads, H.
    pub heads: usize,
    /// Classes; 0 for a network without labels.
    pub classes: usize,
    /// Gives the label table a last row for "no class".
    pub null_label: bool,
    /// Normalises queries and keys of each head.
    pub qk_norm: bool,
    /// Gives the output twice the channels; the second half is not used (FEATURES 1.8).
    pub learn_sigma: bool,
    /// Channels of a spatial condition, concatenated to those of x_t.
    pub cond_channels: usize,
    /// Channels that a learned rescaler makes of the condition's before; 0 to take them as they are.
    #[serde(default)]
    pub cond_rescale: usize,
    /// The condition is what is known of the image itself, and a mask: C + 1 channels ([`crate::ops::inpaint`]).
    #[serde(default)]
    pub inpaint: bool,
    /// Multiplies t before the embedding.
    pub time_scale: f32,
}

/// What a row of data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DitInput {
    /// An image or feature map, (channels, height, width), cut into square patches.
    Image {
        /// Channels.
        channels: usize,
        /// Height.
        height: usize,
        /// Width.
        width: usize,
        /// Side of a patch.
        patch: usize,
    },
    /// Tokens in a row, (tokens, channels): the 1-D variant.
    Tokens {
        /// How many.
        tokens: usize,
        /// Channels of each.
        channels: usize,
    },
}

impl DitInput {
    /// Returns T.
    pub fn tokens(self) -> usize {
        match self {
            Self::Image { height, width, patch, .. } => (height / patch) * (width / patch),
            Self::Tokens { tokens, .. } => tokens,
        }
    }

    /// Returns the values in a row of data.
    pub fn data_width(self) -> usize {
        match self {
            Self::Image { channels, height, width, .. } => channels * height * width,
            Self::Tokens { tokens, channels } => tokens * channels,
        }
    }

    /// Returns the channels of a pixel or token.
    pub fn channels(self) -> usize {
        match self {
            Self::Image { channels, .. } | Self::Tokens { channels, .. } => channels,
        }
    }

    /// Returns the side of a patch.
    pub fn patch(self) -> usize {
        match self {
            Self::Image { patch, .. } => patch,
            Self::Tokens { .. } => 1,
        }
    }

    /// Returns how a sample, or a token that counts as a picture of one pixel, is cut.
    pub(super) fn patches(self) -> Patches {
        match self {
            Self::Image { channels, height, width, patch } => Patches { channels, height, width, patch },
            Self::Tokens { channels, .. } => Patches { channels, height: 1, width: 1, patch: 1 },
        }
    }

    /// Returns pictures in a sample, as [`DitInput::patches`] counts them.
    pub(super) fn pictures(self) -> usize {
        match self {
            Self::Image { .. } => 1,
            Self::Tokens { tokens, .. } => tokens,
        }
    }
}

impl DitConfig {
    /// Returns T.
    pub fn tokens(&self) -> usize {
        self.input.tokens()
    }

    /// Returns the channels that are concatenated to those of x_t.
    pub fn beside(&self) -> usize {
        if self.cond_rescale > 0 { self.cond_rescale } else { self.cond_channels }
    }

    /// Returns the values that a token is embedded from.
    pub fn token_inputs(&self) -> usize {
        (self.input.channels() + self.beside()) * self.input.patch().pow(2)
    }

    /// Returns the channels that a pixel or token of the output has.
    pub fn out_channels(&self) -> usize {
        self.input.channels() * (1 + self.learn_sigma as usize)
    }

    /// Returns the values that a token gives.
    pub fn token_outputs(&self) -> usize {
        self.out_channels() * self.input.patch().pow(2)
    }

    /// Returns the rows of the label table, 0 without one.
    pub fn label_rows(&self) -> usize {
        self.classes + self.null_label as usize
    }

    /// Returns the width of a head.
    pub fn head_width(&self) -> usize {
        self.width / self.heads.max(1)
    }

    /// Checks sizes against each other.
    ///
    /// # Errors
    /// A size of zero; a side that the patch does not divide; heads that do not divide the width; an odd head; a null label
    /// without classes; a spatial condition that does not fit.
    pub fn check(&self) -> Result<()> {
        let refuse =
            |arg, expected: String, found: String| Err(Error::argument("a DiT", arg, expected, found));
        let sizes = [
            ("width", self.width),
            ("depth", self.depth),
            ("heads", self.heads),
            ("channels", self.input.channels()),
            ("patch", self.input.patch()),
        ];
        if let Some((arg, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return refuse(arg, "at least 1".into(), "0".into());
        }
        match self.input {
            DitInput::Image { height, width, patch, .. } => {
                if height % patch != 0 || width % patch != 0 || height * width == 0 {
                    let expected = format!("sides that the patch of {patch} divides");
                    return refuse("input", expected, format!("{height} × {width}"));
                }
                if !self.width.is_multiple_of(4) {
                    let expected = "a multiple of 4, for the position embedding".into();
                    return refuse("width", expected, self.width.to_string());
                }
            }
            DitInput::Tokens { tokens, .. } => {
                if tokens == 0 {
                    return refuse("tokens", "at least 1".into(), "0".into());
                }
                if self.cond_channels > 0 {
                    let found = format!("{} of them beside tokens", self.cond_channels);
                    return refuse("cond_channels", "none, or images".into(), found);
                }
            }
        }
        let known = self.input.channels() + 1;
        if self.inpaint && self.cond_channels != known {
            let expected = format!("{known} for inpainting: the channels of the image, and a mask");
            return refuse("cond_channels", expected, self.cond_channels.to_string());
        }
        if self.cond_rescale > 0 && (self.cond_channels == 0 || self.inpaint) {
            let found = if self.inpaint { "an image to inpaint" } else { "no condition" };
            return refuse("cond_rescale", "a map as the condition to rescale".into(), found.into());
        }
        if !self.width.is_multiple_of(2 * self.heads) {
            let expected = format!("heads of an even width (width {} / heads)", self.width);
            return refuse("heads", expected, format!("{} heads", self.heads));
        }
        if self.null_label && self.classes == 0 {
            return refuse("null_label", "at least one class beside it".into(), "no class".into());
        }
        if !(self.time_scale > 0.0 && self.time_scale.is_finite()) {
            return refuse("time_scale", "a positive number".into(), self.time_scale.to_string());
        }
        Ok(())
    }
}

/// The published sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Size {
    /// 12 blocks of width 384, 6 heads.
    #[serde(alias = "s")]
    S,
    /// 12 blocks of width 768, 12 heads.
    #[serde(alias = "b")]
    B,
    /// 24 blocks of width 1024, 16 heads.
    #[serde(alias = "l")]
    L,
    /// 28 blocks of width 1152, 16 heads.
    #[serde(alias = "xl")]
    Xl,
}

impl Size {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::S, Self::B, Self::L, Self::Xl];

    /// Returns (depth, width, heads).
    pub fn sizes(self) -> (usize, usize, usize) {
        match self {
            Self::S => (12, 384, 6),
            Self::B => (12, 768, 12),
            Self::L => (24, 1024, 16),
            Self::Xl => (28, 1152, 16),
        }
    }
}

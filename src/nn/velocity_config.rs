//! Sizes and variants of a velocity network, and what they mean to whoever feeds it.

use serde::{Deserialize, Serialize};

use crate::nn::dit::{DitConfig, DitInput};
use crate::nn::mlp::MlpConfig;

/// Sizes and variants of a velocity network. In JSON those of a DiT are `{"dit": {…}}`, those of an MLP stand bare, as they did before there was
/// another network.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum VelocityConfig {
    /// Those of an MLP.
    Mlp(MlpConfig),
    /// Those of a DiT.
    Dit {
        /// These.
        dit: DitConfig,
    },
}

/// What a network has to be told about each sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditioning {
    /// Nothing.
    Nothing,
    /// A vector of this width.
    Vectors(usize),
    /// A class.
    Classes {
        /// Labels are below this number.
        classes: usize,
        /// Whether there may be none, too.
        null: bool,
    },
}

/// What a network has beside each image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spatial {
    /// Nothing.
    Nothing,
    /// So many channels of its size, which the data hold behind its own.
    Given {
        /// How many.
        channels: usize,
    },
    /// What is known of the image itself, [channels, height, width], and a mask.
    Inpaint {
        /// The sizes of the image.
        image: [usize; 3],
    },
}

impl Conditioning {
    /// Returns the classes that a sample may be asked to be of, 0 without any. A vector counts as one number for each class.
    pub fn classes(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Vectors(classes) | Self::Classes { classes, .. } => classes,
        }
    }
}

impl VelocityConfig {
    /// Returns D, the values in a row of data.
    pub fn data_width(&self) -> usize {
        match self {
            Self::Mlp(config) => config.channels,
            Self::Dit { dit } => dit.input.data_width(),
        }
    }

    /// Returns what the network has to be told about each sample.
    pub fn conditioning(&self) -> Conditioning {
        match self {
            Self::Mlp(MlpConfig { cond: 0, .. }) => Conditioning::Nothing,
            Self::Mlp(config) => Conditioning::Vectors(config.cond),
            Self::Dit { dit: DitConfig { classes: 0, .. } } => Conditioning::Nothing,
            Self::Dit { dit } => Conditioning::Classes { classes: dit.classes, null: dit.null_label },
        }
    }

    /// Returns what the network has beside each image.
    pub fn spatial(&self) -> Spatial {
        match self {
            Self::Dit { dit: DitConfig { cond_channels: 0, .. } } | Self::Mlp(_) => Spatial::Nothing,
            Self::Dit { dit } => match dit.input {
                DitInput::Image { channels, height, width, .. } if dit.inpaint => {
                    Spatial::Inpaint { image: [channels, height, width] }
                }
                _ => Spatial::Given { channels: dit.cond_channels },
            },
        }
    }

    /// Returns T, the tokens that a row of data is to the network.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Mlp(_) => 1,
            Self::Dit { dit } => dit.tokens(),
        }
    }

    /// Returns what t is multiplied by before its embedding.
    pub fn time_scale(&self) -> f32 {
        match self {
            Self::Mlp(config) => config.time_scale,
            Self::Dit { dit } => dit.time_scale,
        }
    }
}

//! Networks: named parameters in one flat buffer, layers without a tape, and the velocity networks.
//!
//! Each `forward` returns its output and what its `backward` needs; `backward` takes that by value. A frozen network is
//! one for which no [`Grads`] exists.

pub mod autoencoder;
pub mod block;
pub mod dit;
pub mod linear;
pub mod mlp;
pub mod modulation_path;
pub mod params;
mod position;
mod sink;
pub mod state_dict;
pub(crate) mod strips;
pub mod velocity;
pub mod velocity_config;

pub use autoencoder::{Autoencoder, AutoencoderConfig, Layers, VitConfig};
pub use dit::{Dit, DitConfig};
pub use linear::Linear;
pub use mlp::{Mlp, MlpConfig};
pub use modulation_path::{Form, Modulations, NodeTables};
pub use params::{Grads, Init, Layout, ParamId, Params};
pub use state_dict::{Import, StateDict, TimeConvention};
pub use velocity::{Condition, VelocityNet};
pub use velocity_config::{Conditioning, Spatial, VelocityConfig};

/// What a forward keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: no backward follows.
    Nothing,
    /// What input gradients need: the network is frozen.
    Inputs,
    /// All activations.
    All,
    /// The input of each block; the backward computes the block again (`train.recompute`).
    BlockInputs,
}

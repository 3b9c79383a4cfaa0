//! Networks: named parameters in one flat buffer, layers without a tape, and the velocity network.
//!
//! Each `forward` returns its output and what its `backward` needs; `backward` takes that by value. A frozen network is
//! one for which no [`Grads`] exists.

pub mod autoencoder;
pub mod linear;
pub mod mlp;
pub mod modulation_path;
pub mod params;
mod sink;
pub mod state_dict;
pub(crate) mod strips;

pub use autoencoder::{Autoencoder, AutoencoderConfig};
pub use linear::Linear;
pub use mlp::{Keep, Mlp, MlpConfig};
pub use modulation_path::{Form, Modulations, NodeTables};
pub use params::{Grads, Init, Layout, ParamId, Params};
pub use state_dict::{StateDict, TimeConvention};

//! The configuration of a run: one structure for both stages, read from TOML in layers.
//!
//! Order of the layers: defaults < preset < file < `--set a.b=c`. Each layer may hold, beside the keys below, tables
//! `[for.pretrain.…]` and `[for.align.…]`: they repeat any part of the configuration and count only in that stage, after
//! the rest of their layer. So one preset serves both stages:
//!
//! ```toml
//! [optim]
//! kind = "adam"
//! [for.pretrain.optim]
//! lr = 1e-3
//! [for.align.optim]
//! lr = 1e-2
//! ```
//!
//! A layer that names a data source (`data.toy`, `data.path` or `data.builtin`) replaces the one of the layers before.
//! Defaults are the reference's (FEATURES 1.6; the released code where paper and code differ in effect).

mod align;
mod autoencoder;
mod layers;
mod model;
mod refused;
mod sections;
mod validate;

pub use align::{AlignConfig, Gradient, Target};
pub use autoencoder::{Activation, AutoencoderConfig, Coder, Reconstruction};
pub use layers::Sources;
pub use model::{DEFAULT_NODES, Kind, ModelConfig, Modulation};
pub use sections::{
    Builtin, Config, DataConfig, DataSource, FlowConfig, OnDevice, OptimConfig, Reduction, Stage,
    TimeSampling, Toy, TrainConfig, Weight,
};

use crate::error::{Error, Result};

impl Config {
    /// Reads and merges the layers, then validates the result.
    ///
    /// `sets` are the values of `--set`, `a.b=c`, where c is a TOML value or a bare word.
    ///
    /// # Errors
    /// `Error::Usage` that names the layer and the key: unknown keys (with the nearest known one), options of the
    /// reference that are refused (with the reason), wrong types, and everything that [`Config::validate`] finds;
    /// `Error::Io` when the file cannot be read.
    pub fn load(sources: &Sources, sets: &[String]) -> Result<Self> {
        let config = layers::load(sources, sets)?;
        config.validate()?;
        Ok(config)
    }

    /// Writes the resolved configuration as TOML that [`Config::load`] reads back to the same values.
    ///
    /// # Errors
    /// `Error::Usage` for a number that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self)
            .map_err(|e| Error::Usage(format!("cannot write the configuration as TOML: {e}")))
    }

    /// Lists the keys on which `self` and `other` differ, as `key: ours -> theirs`, for the log of a resumed run.
    ///
    /// # Errors
    /// `Error::Usage` for a number that TOML cannot hold.
    pub fn differences(&self, other: &Self) -> Result<Vec<String>> {
        let (ours, theirs) = (layers::flatten(self)?, layers::flatten(other)?);
        let mut lines = Vec::new();
        for key in ours.keys().chain(theirs.keys().filter(|k| !ours.contains_key(*k))) {
            let show = |side: &std::collections::BTreeMap<String, String>| {
                side.get(key).cloned().unwrap_or_else(|| "(none)".to_owned())
            };
            if ours.get(key) != theirs.get(key) {
                lines.push(format!("{key}: {} -> {}", show(&ours), show(&theirs)));
            }
        }
        Ok(lines)
    }
}

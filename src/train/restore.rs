//! Opens a run to look at it: its newest checkpoint (or a named one), its configuration, its task and parameters.

use std::path::Path;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::nn::Import;
use crate::train::align::{AutoencoderTask, LatentTask};
use crate::train::checkpoint::{self, Loaded};
use crate::train::config::{Config, Stage};
use crate::train::engine::Engine;
use crate::train::pretrain::Pretrain;
use crate::train::prior::{NETWORK, Prior, open_prior};
use crate::train::run::Trainee;
use crate::train::{setup, state};

/// A checkpoint with the configuration that it was trained under.
#[derive(Debug)]
pub struct Restored {
    /// The configuration.
    pub config: Config,
    /// The checkpoint.
    pub loaded: Loaded,
}

impl Restored {
    /// Opens a run folder, or one checkpoint of it.
    ///
    /// # Errors
    /// A path that is neither; a damaged checkpoint.
    pub fn open(path: &Path) -> Result<Self> {
        let Some(loaded) = checkpoint::find(path)?.loaded else {
            return Err(Error::data(path, "checkpoints", "a checkpoint", "none"));
        };
        Ok(Self { config: loaded.config()?, loaded })
    }

    /// Returns the run folder that the checkpoint lies in.
    pub fn folder(&self) -> &Path {
        let path = self.loaded.path();
        path.parent().and_then(Path::parent).unwrap_or(path)
    }

    /// Opens the configured device.
    ///
    /// # Errors
    /// A device that is not there.
    pub fn device(&self) -> Result<Device> {
        setup::device(&self.config)
    }

    /// Opens the frozen prior of a run of stage 2: the copy in its folder, or the original.
    ///
    /// # Errors
    /// A checkpoint of stage 1; a prior that is not there any more.
    pub fn prior<X: FloatX>(&self, device: &Device) -> Result<Prior<X>> {
        self.loaded.expect_stage(Stage::Align)?;
        let copy = self.folder().join(NETWORK);
        if copy.exists() {
            return Prior::read(device, &copy, Import::default());
        }
        open_prior(device, self.config.align.prior()?, self.config.align.use_ema)
    }

    /// Restores a run of stage 1.
    ///
    /// # Errors
    /// A checkpoint of stage 2, or of another storage type than X; data that cannot be opened.
    pub fn pretrain<X: FloatX>(&self, device: &Device) -> Result<(Pretrain, Engine<X>)> {
        self.loaded.expect_stage(Stage::Pretrain)?;
        let (task, engine) = Pretrain::new(&self.config, device)?;
        self.fill(task, engine)
    }

    /// Restores free latents.
    ///
    /// # Errors
    /// A checkpoint of another task; a prior that is not there.
    pub fn latents<X: FloatX>(&self, device: &Device) -> Result<(LatentTask<X>, Engine<f32>)> {
        let (task, engine) = LatentTask::new(&self.config, device, self.prior::<X>(device)?)?;
        self.fill(task, engine)
    }

    /// Restores an autoencoder.
    ///
    /// # Errors
    /// A checkpoint of another task or storage type; a prior or data that are not there.
    pub fn autoencoder<X: FloatX>(&self, device: &Device) -> Result<(AutoencoderTask<X>, Engine<X>)> {
        let (task, engine) = AutoencoderTask::new(&self.config, device, self.prior::<X>(device)?)?;
        self.fill(task, engine)
    }

    fn fill<P: FloatX, T: Trainee<P>>(&self, mut task: T, mut engine: Engine<P>) -> Result<(T, Engine<P>)> {
        self.loaded.expect_architecture(&task.architecture())?;
        state::restore(&mut engine, &self.loaded)?;
        task.recall(&self.loaded.manifest().data)?;
        Ok((task, engine))
    }
}

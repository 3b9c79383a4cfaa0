//! A frozen velocity network, as stage 2, sampling and evaluation take it from disk.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::flow::objective::Velocity;
use crate::nn::dit::{POSITION, SIZES};
use crate::nn::{Form, Import, NodeTables, Params, StateDict, TimeConvention, VelocityConfig, VelocityNet};
use crate::ops::elementwise::cast;
use crate::tensor::Tensor;
use crate::train::atomic::write_atomically;
use crate::train::config::{DataConfig, Stage};
use crate::train::features::Standardise;
use crate::train::guard::Guard;
use crate::train::run::recalled;
use crate::train::{checkpoint, state};

/// The averaged network that a finished (or stopped) `pretrain` leaves in its run folder.
pub const NETWORK: &str = "prior.safetensors";

/// A frozen prior: no gradients of it exist.
#[derive(Debug)]
pub struct Prior<X: FloatX> {
    /// The network.
    pub net: VelocityNet,
    /// Its parameters.
    pub params: Params<X>,
    /// Its modulation at the nodes, computed once; `None` where interpolation would not be exact.
    pub tables: Option<NodeTables>,
    /// How the data it was trained on were standardised, if they were.
    pub standardise: Option<Standardise>,
    /// Which data it was trained on, if that is known.
    pub data: Option<DataConfig>,
    /// Where it came from.
    pub source: PathBuf,
}

/// What a network's file says about its training data.
#[derive(Clone, Copy, Debug, Default)]
pub struct About<'a> {
    /// How they were standardised, if they were.
    pub standardise: Option<&'a Standardise>,
    /// Where they come from, if that is known.
    pub data: Option<&'a DataConfig>,
}

impl<X: FloatX> Prior<X> {
    /// Freezes a network.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn freeze(
        net: VelocityNet,
        params: Params<X>,
        standardise: Option<Standardise>,
        source: PathBuf,
    ) -> Result<Self> {
        let tables = match net.default_form() {
            Form::Nodes(_) => match Guard::check(&net, &params, net.default_form())?.0 {
                Form::Nodes(r) => net.node_tables(&params, r)?,
                _ => None,
            },
            _ => None,
        };
        Ok(Self { net, params, tables, standardise, data: None, source })
    }

    /// Reads a network from a safetensors file; `import` is needed for what the file does not say: its time convention alone, or
    /// an [`Import`].
    ///
    /// # Errors
    /// A file that is no velocity network, or one of an unknown time convention.
    pub fn read(device: &Device, path: &Path, import: impl Into<Import>) -> Result<Self> {
        Self::from_state(device, path, StateDict::read(path)?, &import.into())
    }

    /// Does the same with what was read of the file `path`.
    ///
    /// # Errors
    /// See [`Prior::read`].
    pub fn from_state(device: &Device, path: &Path, dict: StateDict, import: &Import) -> Result<Self> {
        let standardise = field(path, &dict.metadata, "standardise", "mean and std of each column")?;
        let data = field(path, &dict.metadata, "data", "a source of data")?;
        let (net, params) = VelocityNet::from_state(device, path, dict, import)?;
        Ok(Self { data, ..Self::freeze(net, params, standardise, path.to_owned())? })
    }

    /// Writes the network as a safetensors file that names its time convention, its time scale, and what shapes do not say of
    /// its sizes.
    ///
    /// # Errors
    /// A disk that is full or read-only; the old file, if any, is intact then.
    pub fn write(&self, path: &Path) -> Result<()> {
        let flat: Tensor<f32> = cast(self.params.flat())?;
        let about = About { standardise: self.standardise.as_ref(), data: self.data.as_ref() };
        write_network(path, &self.net, &flat.on_host()?, Some(about))
    }

    /// Returns the network as an objective takes it; tables serve every form but `direct`.
    pub fn velocity(&self, form: Form) -> Velocity<'_, X> {
        let tables = self.tables.as_ref().filter(|_| matches!(form, Form::Nodes(_)));
        Velocity { net: &self.net, params: &self.params, tables }
    }
}

/// Opens a trained prior: a run folder, one checkpoint of it, or a safetensors file that names its time convention.
///
/// # Errors
/// A path that is none of these; a checkpoint of stage 2; a damaged file.
pub fn open_prior<X: FloatX>(device: &Device, path: &Path, use_ema: bool) -> Result<Prior<X>> {
    if path.is_file() {
        return Prior::read(device, path, Import::default());
    }
    let latest = checkpoint::find(path)?;
    let Some(from) = latest.loaded else {
        return Err(Error::data(path, "checkpoints", "a checkpoint of `pretrain`", "none"));
    };
    from.expect_stage(Stage::Pretrain)?;
    let config = serde_json::from_value(from.manifest().architecture["velocity"].clone());
    let net = VelocityNet::new(
        config.map_err(|e| Error::data(from.path(), "architecture.velocity", "sizes of the network", e))?,
    )?;
    let mut flat = Tensor::<f32>::zeros(device, [net.layout().len()]);
    let average = state::ema_group(0);
    if use_ema && from.has(&average) {
        state::read(&mut flat, &average, net.layout(), &from)?;
    } else if from.has(state::MASTER) {
        state::read(&mut flat, state::MASTER, net.layout(), &from)?;
    } else {
        let mut stored = Tensor::<X>::zeros(device, [net.layout().len()]);
        state::read(&mut stored, state::MODEL, net.layout(), &from)?;
        flat = cast(&stored)?;
    }
    let params = Params::from_tensor(net.layout().clone(), cast(&flat)?)?;
    let standardise = recalled(&from.manifest().data, "standardise")?;
    let data = Some(from.config()?.data);
    Ok(Prior { data, ..Prior::freeze(net, params, standardise, from.path().to_owned())? })
}

/// Reads a field of a file's metadata, which is JSON; `None` where it is not there.
fn field<T: DeserializeOwned>(
    path: &Path,
    metadata: &HashMap<String, String>,
    name: &str,
    expected: &str,
) -> Result<Option<T>> {
    let read = |json: &String| serde_json::from_str(json).map_err(|e| Error::data(path, name, expected, e));
    metadata.get(name).map(read).transpose()
}

/// Writes parameters, given as a flat buffer, as a safetensors file of named f32 tensors.
///
/// # Errors
/// A disk that is full or read-only; the old file, if any, is intact then.
pub fn write_network(path: &Path, net: &VelocityNet, flat: &[f32], about: Option<About<'_>>) -> Result<()> {
    let tensor = |e: &crate::nn::params::Entry| {
        let bytes = bytemuck::cast_slice(&flat[e.range()]);
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, e.shape.dims().to_vec(), bytes)
            .map(|view| (e.name.clone(), view))
    };
    let failed = |e| Error::data(path, "tensors", "tensors that safetensors can hold", e);
    let mut tensors: Vec<_> =
        net.layout().entries().iter().map(tensor).collect::<Result<_, _>>().map_err(failed)?;
    if let VelocityNet::Dit(dit) = net {
        let shape = vec![1, dit.config().tokens(), dit.config().width];
        let bytes = bytemuck::cast_slice(dit.position());
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes);
        tensors.push((POSITION.to_owned(), view.map_err(failed)?));
    }
    let mut metadata = HashMap::from([
        ("time_convention".to_owned(), TimeConvention::DataAtOne.name().to_owned()),
        ("time_scale".to_owned(), net.config().time_scale().to_string()),
    ]);
    let mut insert = |name: &str, json: serde_json::Result<String>| {
        let json = json.map_err(|e| Error::data(path, name, "values that JSON can hold", e))?;
        metadata.insert(name.to_owned(), json);
        Ok::<_, Error>(())
    };
    if let VelocityConfig::Dit { dit } = net.config() {
        insert(SIZES, serde_json::to_string(&dit))?;
    }
    let about = about.unwrap_or_default();
    if let Some(standardise) = about.standardise {
        insert("standardise", serde_json::to_string(standardise))?;
    }
    if let Some(data) = about.data {
        insert("data", serde_json::to_string(data))?;
    }
    let mut bytes = safetensors::serialize(tensors, Some(metadata)).map_err(failed)?;
    sort_header(&mut bytes).map_err(|e| Error::data(path, "header", "a JSON object", e))?;
    write_atomically(path, &bytes)
}

/// Puts the entries of a safetensors header in the order of their names: the crate writes metadata in an order that
/// changes from one process to the next, and equal networks are to be equal files.
fn sort_header(bytes: &mut [u8]) -> serde_json::Result<()> {
    let Some((length, rest)) = bytes.split_first_chunk_mut::<8>() else { return Ok(()) };
    let header = &mut rest[..u64::from_le_bytes(*length) as usize];
    let sorted = serde_json::to_vec(&serde_json::from_slice::<serde_json::Value>(header)?)?;
    if sorted.len() <= header.len() {
        header.fill(b' ');
        header[..sorted.len()].copy_from_slice(&sorted);
    }
    Ok(())
}

//! State dicts in safetensors files: tensors under the reference's names, with all the prefixes they come with.
//!
//! The reference stores the same keys bare, under `net.` (toys), `flow_loss.net.` (stage 1), `diffloss.net.` (MAR), under
//! `model.` or `ema.` (DiT and SiT), and any of them under `module.` (DDP) or `_orig_mod.` (compile). Where a file has averaged weights,
//! under `ema.`, they are the ones that are read. A caller may name a prefix of its own, and then gets what is under it. The time
//! convention is read from the file's metadata (`time_convention`), or must be given: a network trained with noise at t = 1 gives wrong-signed, time-reversed
//! velocities under ours, with no shape error to warn of it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::str::FromStr;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::nn::dit::{Dit, DitInput};
use crate::nn::mlp::{Mlp, MlpConfig};
use crate::nn::modulation_path::EMBEDDING;
use crate::nn::params::{Layout, Params};
use crate::nn::velocity::VelocityNet;
use crate::nn::velocity_config::VelocityConfig;

/// Prefixes that are stripped, again and again until none is left.
const PREFIXES: [&str; 7] = ["module.", "_orig_mod.", "flow_loss.", "diffloss.", "net.", "model.", "ema."];
/// The prefix of averaged weights.
const AVERAGED: &str = "ema.";

/// Where the data is on the time axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeConvention {
    /// x_t = (1 − t)·noise + t·data: ours.
    DataAtOne,
    /// x_t = (1 − t)·data + t·noise: the reference's tokenizer code.
    NoiseAtOne,
}

impl TimeConvention {
    /// Returns the name stored in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::DataAtOne => "data_at_one",
            Self::NoiseAtOne => "noise_at_one",
        }
    }
}

impl FromStr for TimeConvention {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        [Self::DataAtOne, Self::NoiseAtOne].into_iter().find(|c| c.name() == s).ok_or_else(|| {
            Error::Usage(format!("unknown time convention `{s}`: expected `data_at_one` or `noise_at_one`"))
        })
    }
}

/// What is known of a file beside what it says itself, which it must not contradict.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Import {
    /// Where the data is on the time axis.
    pub convention: Option<TimeConvention>,
    /// What t is multiplied by before the embedding, where the file does not say; 1 without.
    pub time_scale: Option<f32>,
    /// Attention heads of a DiT.
    pub heads: Option<usize>,
    /// Classes of a DiT's label table; a last row beyond them is "no class".
    pub classes: Option<usize>,
    /// Height and width of a DiT's images, where the file has no position embedding of a square; 1 and T of T tokens in a row.
    pub image: Option<[usize; 2]>,
}

impl Import {
    /// Checks what was given against the sizes of the network; the time convention is checked where it is used.
    ///
    /// # Errors
    /// A size that the network does not have.
    fn expect_of(&self, path: &Path, net: &VelocityConfig) -> Result<()> {
        let none = || "none: an MLP has none".to_owned();
        let sides = |[height, width]: [usize; 2]| format!("{height} × {width}");
        let (heads, classes, image) = match net {
            VelocityConfig::Mlp(_) => (none(), none(), none()),
            VelocityConfig::Dit { dit } => {
                let image = match dit.input {
                    DitInput::Image { height, width, .. } => [height, width],
                    DitInput::Tokens { tokens, .. } => [1, tokens],
                };
                (dit.heads.to_string(), dit.classes.to_string(), sides(image))
            }
        };
        let number = |given: Option<usize>| given.map(|n| n.to_string());
        let all = [
            ("time_scale", self.time_scale.map(|s| s.to_string()), net.time_scale().to_string()),
            ("heads", number(self.heads), heads),
            ("classes", number(self.classes), classes),
            ("image", self.image.map(sides), image),
        ];
        for (field, given, own) in all {
            if let Some(given) = given.filter(|given| *given != own) {
                return Err(Error::data(path, field, format!("{given}, as given with the file"), own));
            }
        }
        Ok(())
    }
}

impl From<Option<TimeConvention>> for Import {
    fn from(convention: Option<TimeConvention>) -> Self {
        Self { convention, ..Self::default() }
    }
}

/// Named tensors, in f32.
#[derive(Clone, Debug, Default)]
pub struct StateDict {
    /// Name → (shape, values).
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// The file's own metadata.
    pub metadata: HashMap<String, String>,
}

impl StateDict {
    /// Reads a safetensors file, without its prefixes.
    ///
    /// # Errors
    /// A file that cannot be read, is no safetensors file, or holds a tensor that is neither f32, f64, bf16 nor f16.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_under(path, "")
    }

    /// Reads the tensors of a safetensors file whose names begin with `prefix`, without it and without the known ones behind it.
    ///
    /// # Errors
    /// No such name; see [`StateDict::read`].
    pub fn read_under(path: &Path, prefix: &str) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let bad = |e| Error::data(path, "header", "a safetensors file", e);
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(bad)?;
        let file = SafeTensors::deserialize(&bytes).map_err(bad)?;
        let mut tensors = BTreeMap::new();
        let under = |name: &str| name.strip_prefix(prefix).map(str::to_owned);
        let inner: Vec<_> =
            file.tensors().into_iter().filter_map(|(name, view)| Some((under(&name)?, view))).collect();
        if inner.is_empty() && !prefix.is_empty() {
            return Err(Error::data(path, "tensors", format!("names under `{prefix}`"), named(file.names())));
        }
        let averaged = inner.iter().any(|(name, _)| name.starts_with(AVERAGED));
        for (name, view) in inner.into_iter().filter(|(n, _)| !averaged || n.starts_with(AVERAGED)) {
            let values = floats(view.dtype(), view.data()).ok_or_else(|| {
                Error::data(path, &name, "f64, f32, bf16 or f16", format!("{:?}", view.dtype()))
            })?;
            let name = stripped(&name).to_owned();
            if tensors.contains_key(&name) {
                let found = "several, under different prefixes";
                return Err(Error::data(path, name, "one tensor of this name", found));
            }
            tensors.insert(name, (view.shape().to_vec(), values));
        }
        Ok(Self { tensors, metadata: header.metadata().clone().unwrap_or_default() })
    }

    /// Returns the sizes of the velocity network whose parameters these are; `time_scale` comes from the metadata or `import`, or
    /// is 1.
    ///
    /// # Errors
    /// A tensor that every such network has is missing or has the wrong number of dimensions.
    pub fn mlp_config(&self, path: &Path, import: &Import) -> Result<MlpConfig> {
        let missing = |name: &str| Error::data(path, name, "a tensor of this name", "none");
        let matrix = |name: &str| match self.tensors.get(name).map(|(shape, _)| &shape[..]) {
            Some([rows, cols]) if rows * cols > 0 => Ok((*rows, *cols)),
            Some(shape @ [_, _]) => {
                let found = format!("shape {shape:?}");
                Err(Error::data(path, name, "at least one row and column", found))
            }
            Some(shape) => Err(Error::data(path, name, "a matrix", format!("shape {shape:?}"))),
            None => Err(missing(name)),
        };
        let (width, channels) = matrix("input_proj.weight")?;
        let depth = (0..).take_while(|i| self.has_any(&format!("res_blocks.{i}."))).count();
        if depth == 0 {
            return Err(missing("res_blocks.0.in_ln.weight"));
        }
        let cond =
            if self.tensors.contains_key("cond_embed.weight") { matrix("cond_embed.weight")?.1 } else { 0 };
        let post_norm = self.tensors.contains_key("res_blocks.0.post_norm.weight");
        let time_scale = self.time_scale(path)?.or(import.time_scale).unwrap_or(1.0);
        Ok(MlpConfig { channels, width, depth, cond, post_norm, time_scale })
    }

    /// Returns what the metadata says that t is multiplied by, if anything.
    pub(crate) fn time_scale(&self, path: &Path) -> Result<Option<f32>> {
        let positive = |text: &String| {
            let number = text.parse().ok().filter(|s: &f32| s.is_finite() && *s > 0.0);
            number.ok_or_else(|| Error::data(path, "time_scale", "a positive number", text))
        };
        self.metadata.get("time_scale").map(positive).transpose()
    }

    pub(crate) fn has_any(&self, prefix: &str) -> bool {
        self.tensors.range(prefix.to_owned()..).next().is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// Returns the convention that the metadata names, if any.
    ///
    /// # Errors
    /// A name that is none.
    pub fn time_convention(&self, path: &Path) -> Result<Option<TimeConvention>> {
        let named = self.metadata.get("time_convention");
        named
            .map(|name| {
                name.parse()
                    .map_err(|_| Error::data(path, "time_convention", "data_at_one or noise_at_one", name))
            })
            .transpose()
    }

    /// Returns the convention that the metadata names, or else the one that was given.
    ///
    /// # Errors
    /// No convention, or two different ones.
    pub fn known_convention(&self, path: &Path, given: Option<TimeConvention>) -> Result<TimeConvention> {
        match (self.time_convention(path)?, given) {
            (Some(stored), Some(given)) if stored != given => {
                Err(Error::data(path, "time_convention", given.name(), stored.name()))
            }
            (Some(known), _) | (None, Some(known)) => Ok(known),
            (None, None) => {
                let expected =
                    "metadata that names it, or a convention given with the file (we refuse to guess)";
                Err(Error::not_given(path, "time_convention", expected, "neither"))
            }
        }
    }

    /// Turns weights trained with noise at t = 1 into ours. `time` is the weight that takes the sinusoidal features of t.
    ///
    /// # Errors
    /// See [`StateDict::known_convention`].
    pub(crate) fn convert_time(
        &mut self,
        path: &Path,
        given: Option<TimeConvention>,
        time: &str,
        time_scale: f32,
    ) -> Result<()> {
        if self.known_convention(path, given)? == TimeConvention::NoiseAtOne {
            reverse_time(self, time, time_scale);
        }
        Ok(())
    }

    /// Lays the values out as one flat buffer of `layout`.
    ///
    /// # Errors
    /// A parameter that is missing, has another shape, or a tensor that the layout does not know (except the
    /// `moving_avg` buffer that the reference keeps beside the network).
    pub fn to_flat(&self, layout: &Layout, path: &Path) -> Result<Vec<f32>> {
        let mut flat = vec![0.0; layout.len()];
        for entry in layout.entries() {
            let Some((shape, values)) = self.tensors.get(&entry.name) else {
                return Err(Error::data(
                    path,
                    &entry.name,
                    format!("a tensor of shape {}", entry.shape),
                    "none",
                ));
            };
            if shape[..] != *entry.shape.dims() {
                let found = format!("shape {shape:?}");
                return Err(Error::data(path, &entry.name, format!("shape {}", entry.shape), found));
            }
            flat[entry.range()].copy_from_slice(values);
        }
        let known = |name: &str| name == "moving_avg" || layout.entries().iter().any(|e| e.name == name);
        match self.tensors.keys().find(|name| !known(name)) {
            Some(name) => {
                Err(Error::data(path, name, "only tensors of this network", "a tensor it does not have"))
            }
            None => Ok(flat),
        }
    }
}

impl Mlp {
    /// Builds network and parameters from a safetensors file; `convention` is needed where the file does not name one.
    ///
    /// Weights trained with noise at t = 1 are converted exactly: v → −v in the output layer, t → 1 − t by a rotation
    /// of the sinusoidal features that goes into `time_embed.mlp.0.weight`.
    ///
    /// # Errors
    /// A file that is no such network, an unknown or contradicted time convention.
    pub fn from_safetensors<X: FloatX>(
        device: &Device,
        path: &Path,
        convention: Option<TimeConvention>,
    ) -> Result<(Self, Params<X>)> {
        Self::from_state(device, path, StateDict::read(path)?, &convention.into())
    }

    fn from_state<X: FloatX>(
        device: &Device,
        path: &Path,
        mut dict: StateDict,
        import: &Import,
    ) -> Result<(Self, Params<X>)> {
        let mlp = Mlp::new(dict.mlp_config(path, import)?)?;
        dict.convert_time(path, import.convention, "time_embed.mlp.0.weight", mlp.config().time_scale)?;
        let params = Params::from_flat(device, mlp.layout().clone(), &dict.to_flat(mlp.layout(), path)?)?;
        Ok((mlp, params))
    }
}

impl VelocityNet {
    /// Builds network and parameters from a safetensors file: a DiT if it embeds patches or tokens, else an MLP.
    ///
    /// # Errors
    /// See [`Mlp::from_safetensors`] and [`Dit::from_safetensors`].
    pub fn from_safetensors<X: FloatX>(
        device: &Device,
        path: &Path,
        import: &Import,
    ) -> Result<(Self, Params<X>)> {
        Self::from_state(device, path, StateDict::read(path)?, import)
    }

    /// Builds the same from what was read of the file `path`.
    ///
    /// # Errors
    /// See [`VelocityNet::from_safetensors`].
    pub fn from_state<X: FloatX>(
        device: &Device,
        path: &Path,
        dict: StateDict,
        import: &Import,
    ) -> Result<(Self, Params<X>)> {
        let (net, params): (Self, _) = if dict.has_any("x_embedder.") {
            let (net, params) = Dit::from_state(device, path, dict, import)?;
            (net.into(), params)
        } else if dict.has_any("input_proj.") {
            let (net, params) = Mlp::from_state(device, path, dict, import)?;
            (net.into(), params)
        } else {
            let expected = "the names of a DiT (`x_embedder.…`) or of the reference's MLP (`input_proj.…`)";
            return Err(Error::data(path, "tensors", expected, named(dict.tensors.keys())));
        };
        import.expect_of(path, &net.config())?;
        Ok((net, params))
    }
}

/// Turns v(x, t) into −v(x, 1 − t): with φ = s·ω, cos(φ(1−t)) = cos φ·cos φt + sin φ·sin φt and
/// sin(φ(1−t)) = sin φ·cos φt − cos φ·sin φt.
fn reverse_time(dict: &mut StateDict, time: &str, time_scale: f32) {
    for name in ["final_layer.linear.weight", "final_layer.linear.bias"] {
        if let Some((_, values)) = dict.tensors.get_mut(name) {
            values.iter_mut().for_each(|x| *x = -*x);
        }
    }
    let half = EMBEDDING / 2;
    if let Some((_, w)) = dict.tensors.get_mut(time) {
        for row in w.chunks_exact_mut(EMBEDDING) {
            let (cosines, sines) = row.split_at_mut(half);
            for (i, (c, s)) in cosines.iter_mut().zip(sines).enumerate() {
                let omega = (-(10_000f64.ln()) * i as f64 / half as f64).exp() as f32;
                let (sin, cos) = (time_scale as f64 * omega as f64).sin_cos();
                let (wc, ws) = (*c as f64, *s as f64);
                (*c, *s) = ((wc * cos + ws * sin) as f32, (wc * sin - ws * cos) as f32);
            }
        }
    }
}

/// Names the first tensors of a file, and counts the others.
fn named(names: impl IntoIterator<Item = impl ToString>) -> String {
    const SHOWN: usize = 4;
    let mut names: Vec<String> = names.into_iter().map(|name| format!("`{}`", name.to_string())).collect();
    names.sort();
    match names.len() {
        0 => "none".into(),
        count if count <= SHOWN => names.join(", "),
        count => format!("{} and {} more", names[..SHOWN].join(", "), count - SHOWN),
    }
}

fn stripped(name: &str) -> &str {
    let mut name = name;
    while let Some(rest) = PREFIXES.iter().find_map(|p| name.strip_prefix(p)) {
        name = rest;
    }
    name
}

/// Widens (or rounds, from f64) little-endian values to f32.
fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let two = |f: fn([u8; 2]) -> f32| bytes.chunks_exact(2).map(|b| f([b[0], b[1]])).collect();
    Some(match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F64 => {
            let eight = |b: &[u8]| b.try_into().map(f64::from_le_bytes);
            bytes.chunks_exact(8).map(|b| eight(b).map(|x| x as f32)).collect::<Result<_, _>>().ok()?
        }
        Dtype::BF16 => two(|b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => two(|b| f16::from_le_bytes(b).to_f32()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_stripped_in_any_nesting() {
        for name in ["input_proj.weight", "net.input_proj.weight", "module.flow_loss.net.input_proj.weight"] {
            assert_eq!(stripped(name), "input_proj.weight");
        }
        assert_eq!(stripped("_orig_mod.diffloss.net.res_blocks.0.mlp.2.bias"), "res_blocks.0.mlp.2.bias");
    }
}

//! A DiT from the state dict of DiT, SiT or latent flow matching: sizes from names, shapes and metadata.
//!
//! What shapes do not say has to be given, and is never guessed: the heads of a width that no published size has, and how many
//! rows of the label table are classes (the last one may be "no class"). Position embeddings are checked against ours.

use std::path::Path;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::nn::dit::Dit;
use crate::nn::dit::config::{DitConfig, DitInput, Size};
use crate::nn::params::Params;
use crate::nn::state_dict::{Import, StateDict};

/// The name of the position embedding in files, (1, T, C); it is no parameter.
pub const POSITION: &str = "pos_embed";
/// The key of a file's metadata with all sizes, as our own files have it.
pub const SIZES: &str = "dit";
/// What a position embedding may differ by: the rounding of bf16.
const ROUNDING: f32 = 4e-3;
/// The table of labels.
const TABLE: &str = "y_embedder.embedding_table.weight";

impl Dit {
    /// Builds network and parameters from a safetensors file.
    ///
    /// Weights trained with noise at t = 1 are converted exactly: v → −v in the last layer, t → 1 − t by a rotation of the
    /// sinusoidal features that goes into `t_embedder.mlp.0.weight`.
    ///
    /// # Errors
    /// A file that is no such network, sizes that are neither there nor given, an unknown or contradicted time convention.
    pub fn from_safetensors<X: FloatX>(
        device: &Device,
        path: &Path,
        import: &Import,
    ) -> Result<(Self, Params<X>)> {
        Self::from_state(device, path, StateDict::read(path)?, import)
    }

    pub(crate) fn from_state<X: FloatX>(
        device: &Device,
        path: &Path,
        mut dict: StateDict,
        import: &Import,
    ) -> Result<(Self, Params<X>)> {
        let dit = Self::new(dict.dit_config(path, import)?)
            .map_err(|e| Error::data(path, "sizes", "those of a DiT", e))?;
        dict.convert_time(path, import.convention, "t_embedder.mlp.0.weight", dit.config.time_scale)?;
        if let Some((shape, values)) = dict.tensors.remove(POSITION) {
            check_position(path, &shape, &values, &dit)?;
        }
        let params = Params::from_flat(device, dit.layout().clone(), &dict.to_flat(dit.layout(), path)?)?;
        Ok((dit, params))
    }
}

fn check_position(path: &Path, shape: &[usize], values: &[f32], dit: &Dit) -> Result<()> {
    let ours = dit.position();
    let expected = [1, dit.config.tokens(), dit.config.width];
    if shape != expected {
        return Err(Error::data(path, POSITION, format!("shape {expected:?}"), format!("shape {shape:?}")));
    }
    let furthest = values.iter().zip(ours).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    if furthest <= ROUNDING {
        return Ok(());
    }
    let expected = "the fixed sines and cosines of its grid (a learned embedding is no part of this network)";
    Err(Error::data(path, POSITION, expected, format!("values up to {furthest:.2} away from them")))
}

impl StateDict {
    /// Returns the sizes of the DiT whose parameters these are.
    ///
    /// # Errors
    /// A tensor that every such network has is missing or has the wrong number of dimensions; a size that neither the file nor
    /// `import` names.
    pub fn dit_config(&self, path: &Path, import: &Import) -> Result<DitConfig> {
        if let Some(json) = self.metadata.get(SIZES) {
            return serde_json::from_str(json).map_err(|e| Error::data(path, SIZES, "sizes of a DiT", e));
        }
        let embed =
            if self.tensors.contains_key("x_embedder.weight") { "x_embedder" } else { "x_embedder.proj" };
        let (width, inputs, patch) = match self.shape(path, &format!("{embed}.weight"))? {
            [width, inputs] => (*width, *inputs, None),
            [width, inputs, p, q] if p == q => (*width, *inputs, Some(*p)),
            other => {
                let expected = "a matrix, or a convolution of square patches";
                return Err(Error::data(
                    path,
                    format!("{embed}.weight"),
                    expected,
                    format!("shape {other:?}"),
                ));
            }
        };
        let depth = (0..).take_while(|i| self.has_any(&format!("blocks.{i}."))).count();
        let outputs = self.shape(path, "final_layer.linear.weight")?.first().copied().unwrap_or(0);
        let of_pixel = outputs / patch.unwrap_or(1).pow(2);
        // Twice the outputs: learn_sigma. Fewer: the other inputs are a spatial condition. Both at once cannot be told apart.
        if of_pixel != inputs && of_pixel != 2 * inputs && of_pixel > inputs {
            let expected =
                format!("{inputs} channels or twice as many, or sizes in the metadata (`{SIZES}`)");
            return Err(Error::data(
                path,
                "final_layer.linear.weight",
                expected,
                format!("{of_pixel} channels"),
            ));
        }
        let (channels, cond_channels) = (inputs.min(of_pixel), inputs.saturating_sub(of_pixel));
        let (classes, null_label) = self.classes(path, import)?;
        Ok(DitConfig {
            input: self.input(path, import, channels, patch)?,
            width,
            depth,
            heads: self.heads(path, import, (depth, width))?,
            classes,
            null_label,
            qk_norm: self.tensors.contains_key("blocks.0.attn.q_norm.weight"),
            learn_sigma: of_pixel == 2 * inputs,
            cond_channels,
            cond_rescale: 0,
            inpaint: false,
            time_scale: self.time_scale(path)?.or(import.time_scale).unwrap_or(1.0),
        })
    }

    fn input(&self, path: &Path, import: &Import, channels: usize, patch: Option<usize>) -> Result<DitInput> {
        let tokens = self.tensors.get(POSITION).and_then(|(shape, _)| shape.get(1)).copied();
        let unknown = |what| {
            let expected = format!("a position embedding, or {what} given with the file");
            Error::not_given(path, "image", expected, "neither")
        };
        let Some(patch) = patch else {
            let tokens = tokens.or(import.image.map(|[h, w]| h * w)).ok_or_else(|| unknown("tokens"))?;
            return Ok(DitInput::Tokens { tokens, channels });
        };
        let square = |tokens: usize| {
            let side = tokens.isqrt();
            (side * side == tokens).then_some([side * patch, side * patch])
        };
        let [height, width] =
            import.image.or(tokens.and_then(square)).ok_or_else(|| unknown("height and width"))?;
        Ok(DitInput::Image { channels, height, width, patch })
    }

    fn heads(&self, path: &Path, import: &Import, (depth, width): (usize, usize)) -> Result<usize> {
        if let Some((shape, _)) = self.tensors.get("blocks.0.attn.q_norm.weight") {
            return Ok(width / shape.iter().product::<usize>().max(1));
        }
        let of_size = |size: Size| {
            let (d, w, heads) = size.sizes();
            ((d, w) == (depth, width)).then_some(heads)
        };
        let published = || Size::ALL.into_iter().find_map(of_size);
        import.heads.or_else(published).ok_or_else(|| {
            let expected = "a number given with the file (shapes do not say it)";
            Error::not_given(path, "heads", expected, format!("none, for {depth} blocks of width {width}"))
        })
    }

    /// Returns the classes, and whether the table has a row for none.
    fn classes(&self, path: &Path, import: &Import) -> Result<(usize, bool)> {
        if !self.tensors.contains_key(TABLE) {
            return Ok((0, false));
        }
        let rows = self.shape(path, TABLE)?.first().copied().unwrap_or(0);
        match import.classes {
            Some(classes) if rows == classes + 1 => Ok((classes, true)),
            Some(classes) if rows == classes => Ok((classes, false)),
            Some(classes) => {
                let expected = format!("{classes} rows, or one more for no class");
                Err(Error::data(path, TABLE, expected, format!("{rows} rows")))
            }
            None => {
                let expected = format!(
                    "a number given with the file: are its {rows} rows all classes, or is the last \"no class\"?"
                );
                Err(Error::not_given(path, "classes", expected, "none"))
            }
        }
    }

    fn shape(&self, path: &Path, name: &str) -> Result<&[usize]> {
        match self.tensors.get(name) {
            Some((shape, values)) if !values.is_empty() => Ok(shape),
            Some((shape, _)) => Err(Error::data(path, name, "elements", format!("shape {shape:?}"))),
            None => Err(Error::data(path, name, "a tensor of this name", "none")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes_have_the_published_parameters() {
        let count = |size: Size, learn_sigma, out: usize| {
            let (depth, width, heads) = size.sizes();
            let input = DitInput::Image { channels: 4, height: 32, width: 32, patch: 2 };
            let (null_label, qk_norm, cond_channels, time_scale) = (true, false, 0, 1.0);
            let config = DitConfig {
                input,
                width,
                depth,
                heads,
                classes: 1000,
                null_label,
                qk_norm,
                learn_sigma,
                cond_channels,
                cond_rescale: 0,
                inpaint: false,
                time_scale,
            };
            assert_eq!(config.out_channels(), out);
            Dit::new(config).unwrap().layout().count()
        };
        for (size, dit, lfm) in [
            (Size::S, 32_865_056, 32_858_896),
            (Size::B, 130_315_808, 130_303_504),
            (Size::L, 457_840_672, 457_824_272),
            (Size::Xl, 674_834_720, 674_816_272),
        ] {
            assert_eq!((count(size, true, 8), count(size, false, 4)), (dit, lfm), "{size:?}");
        }
    }
}

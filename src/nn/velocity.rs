//! The velocity network of a run, an MLP or a DiT: one interface for objectives, training and sampling.
//!
//! An enum and not a trait: which network a run has is known when it starts, both have methods that are generic over the
//! storage type, and what a forward saves is a type of each. A trait would need a parameter on everything that holds a
//! network, or boxes and casts; here the one place where the two differ is this file.

use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::{DType, FloatX};
use crate::nn::Keep;
use crate::nn::dit::{self, Dit, DitConfig, DitInput};
use crate::nn::linear::Linear;
use crate::nn::mlp::{self, Mlp};
use crate::nn::modulation_path::{Form, Modulations, NodeTables};
use crate::nn::params::{Grads, Layout, ParamId, Params};
use crate::nn::velocity_config::{Conditioning, Spatial, VelocityConfig};
use crate::ops::embedding::{LabelDrop, Labels, add_rows};
use crate::ops::flow_loss::{Scale, Target, flow_loss_backward, flow_loss_forward};
use crate::ops::flow_path::Rows;
use crate::ops::linear::panel_bytes;
use crate::tensor::Tensor;

/// A velocity network: layers and layout, without parameters.
#[derive(Clone, Debug)]
pub enum VelocityNet {
    /// SimpleMLPAdaLN: a row of data is a vector.
    Mlp(Mlp),
    /// DiT: a row of data is an image or some tokens.
    Dit(Dit),
}

/// What a network is told about the samples of a batch, beside x_t and t.
#[derive(Debug)]
pub struct Condition<'a, X: FloatX> {
    /// (B, z): for an MLP with a condition.
    pub vectors: Option<&'a Tensor<X>>,
    /// (B): for a DiT with classes.
    pub labels: Option<&'a Labels>,
    /// (B, channels·H·W): for a DiT with a spatial condition.
    pub image: Option<&'a Tensor<X>>,
}

impl<X: FloatX> Default for Condition<'_, X> {
    /// Nothing.
    fn default() -> Self {
        Self { vectors: None, labels: None, image: None }
    }
}

impl<X: FloatX> Clone for Condition<'_, X> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<X: FloatX> Copy for Condition<'_, X> {}

/// What goes into a network.
#[derive(Debug)]
pub struct Input<X: FloatX> {
    /// (N, D).
    pub x_t: Tensor<X>,
    /// (N, channels·H·W): the spatial condition of a DiT that has one.
    pub image: Option<Tensor<X>>,
}

impl<X: FloatX> From<Tensor<X>> for Input<X> {
    fn from(x_t: Tensor<X>) -> Self {
        Self { x_t, image: None }
    }
}

/// What the backward of one forward needs.
#[derive(Debug)]
pub enum Saved<X: FloatX> {
    /// Of an MLP.
    Mlp(mlp::Saved<X>),
    /// Of a DiT.
    Dit(dit::Saved<X>),
}

/// A forward up to the head, the last linear layer.
#[derive(Debug)]
pub struct ToHead<X: FloatX> {
    m: Tensor<X>,
    saved: Option<Saved<X>>,
    keeps_m: bool,
}

impl<X: FloatX> ToHead<X> {
    /// Returns what the backward needs, if anything was kept.
    pub fn into_saved(self) -> Option<Saved<X>> {
        match self.saved {
            Some(saved) if self.keeps_m => Some(match saved {
                Saved::Mlp(saved) => Saved::Mlp(saved.with_head_input(self.m)),
                Saved::Dit(saved) => Saved::Dit(saved.with_head_input(self.m)),
            }),
            saved => saved,
        }
    }
}

impl VelocityNet {
    /// Lays a network out.
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub fn new(config: VelocityConfig) -> Result<Self> {
        Ok(match config {
            VelocityConfig::Mlp(config) => Self::Mlp(Mlp::new(config)?),
            VelocityConfig::Dit { dit } => Self::Dit(Dit::new(dit)?),
        })
    }

    /// Returns the sizes.
    pub fn config(&self) -> VelocityConfig {
        match self {
            Self::Mlp(net) => VelocityConfig::Mlp(*net.config()),
            Self::Dit(net) => VelocityConfig::Dit { dit: *net.config() },
        }
    }

    /// Returns D, the values in a row of data.
    pub fn data_width(&self) -> usize {
        self.config().data_width()
    }

    /// Returns T, the tokens that a row of data is to the network.
    pub fn tokens(&self) -> usize {
        self.config().tokens()
    }

    /// Returns what the network has to be told about each sample.
    pub fn conditioning(&self) -> Conditioning {
        self.config().conditioning()
    }

    /// Returns what the network has beside each image.
    pub fn spatial(&self) -> Spatial {
        self.config().spatial()
    }

    /// Returns the pixels of an image, H·W; 0 for rows that are no images.
    pub fn pixels(&self) -> usize {
        match self.config() {
            VelocityConfig::Dit { dit: DitConfig { input: DitInput::Image { height, width, .. }, .. } } => {
                height * width
            }
            _ => 0,
        }
    }

    /// Returns the parameters' names, shapes and places.
    pub fn layout(&self) -> &Arc<Layout> {
        match self {
            Self::Mlp(net) => net.layout(),
            Self::Dit(net) => net.layout(),
        }
    }

    /// Returns freshly initialised parameters: the output is exactly 0 until the head has learned.
    pub fn init<X: FloatX>(&self, device: &Device, seed: u64) -> Result<Params<X>> {
        Params::init(device, self.layout().clone(), seed)
    }

    /// Returns the form of modulation that serves this network best.
    pub fn default_form(&self) -> Form {
        match self {
            Self::Mlp(net) => net.default_form(),
            Self::Dit(_) => Form::Direct,
        }
    }

    /// Checks that the network can be evaluated in `form` on `rows` rows of data.
    ///
    /// # Errors
    /// A form that it refuses.
    pub fn check_form(&self, form: Form, rows: usize) -> Result<()> {
        match self {
            Self::Mlp(net) => net.check_form(form, rows),
            Self::Dit(net) => net.check_form(form, rows),
        }
    }

    /// Puts a label for each sample on the device; `None` is the label of no class.
    ///
    /// # Errors
    /// A network without classes, a label that it does not have, "no class" where it was not trained with that.
    pub fn labels(&self, device: &Device, labels: &[Option<u32>]) -> Result<Labels> {
        let Conditioning::Classes { classes, null } = self.conditioning() else {
            return Err(Error::Usage("labels were given, but the network has no classes".into()));
        };
        let number = |label: &Option<u32>| match label {
            Some(label) if (*label as usize) < classes => Ok(*label),
            Some(label) => Err(Error::Usage(format!(
                "class {label} was asked for, but the network has {classes} classes"
            ))),
            None if null => Ok(classes as u32),
            None => Err(Error::Usage(
                "the network has no label for \"no class\": it was trained with model.label_dropout = 0"
                    .into(),
            )),
        };
        let numbers: Vec<u32> = labels.iter().map(number).collect::<Result<_>>()?;
        Labels::new(device, &numbers, classes)
    }

    /// Evaluates the modulation path. `t: (N / share)`, a time for so many consecutive rows; labels are dropped as `drop` has it.
    ///
    /// # Errors
    /// A condition that is missing, not wanted, or of the wrong shape; a form that does not fit.
    pub fn modulations<X: FloatX>(
        &self,
        params: &Params<X>,
        form: Form,
        t: &Tensor<f32>,
        rows: Rows,
        cond: Condition<'_, X>,
        drop: Option<LabelDrop>,
    ) -> Result<Modulations<X>> {
        let unwanted = |arg| {
            Err(Error::argument("modulations", arg, "none (the network takes no such condition)", "one"))
        };
        match self {
            Self::Mlp(_) if cond.labels.is_some() => unwanted("labels"),
            Self::Dit(_) if cond.vectors.is_some() => unwanted("vectors"),
            Self::Mlp(net) => {
                let vectors = cond.vectors.map(|z| tiled(z, rows.replicas)).transpose()?;
                net.modulations(params, form, t, rows.share, vectors)
            }
            Self::Dit(net) => {
                net.modulations(params, form, t, rows, cond.labels.map(|labels| (labels, drop)))
            }
        }
    }

    /// Packs the weights that rows are multiplied by, for products by the CPU, once until the values change: pays where many products
    /// take each of them. A pair of panels for each weight stays in memory ([`VelocityNet::panel_bytes`]).
    ///
    /// # Errors
    /// Parameters of another device.
    pub fn pack<X: FloatX>(&self, params: &Params<X>) -> Result<()> {
        params.pack(self.row_weights().into_iter())
    }

    /// Returns the bytes that [`VelocityNet::pack`] takes on this machine, with weights of this storage type.
    pub fn panel_bytes(&self, dtype: DType) -> u64 {
        let layout = self.layout();
        self.row_weights().into_iter().map(|id| panel_bytes(dtype, layout.shape(id))).sum()
    }

    fn row_weights(&self) -> Vec<ParamId> {
        let weight = |layer: &Linear| layer.ids()[0];
        match self {
            Self::Mlp(net) => net.row_layers().map(weight).collect(),
            Self::Dit(net) => net.row_layers().map(weight).collect(),
        }
    }

    /// Evaluates the tables of a frozen network at r nodes, once for all steps; `None` for a network without nodes.
    ///
    /// # Errors
    /// A device that failed.
    pub fn node_tables<X: FloatX>(&self, params: &Params<X>, r: usize) -> Result<Option<NodeTables>> {
        match self {
            Self::Mlp(net) => net.node_tables(params, r).map(Some),
            Self::Dit(_) => Ok(None),
        }
    }

    /// Interpolates the tables of a frozen network for each of the `t: (N)`.
    ///
    /// # Errors
    /// A network without nodes.
    pub fn modulations_from<X: FloatX>(
        &self,
        tables: &NodeTables,
        t: &Tensor<f32>,
    ) -> Result<Modulations<X>> {
        match self {
            Self::Mlp(net) => net.modulations_from(tables, t),
            Self::Dit(_) => Err(Error::argument("modulations", "tables", "none, for a DiT", "some")),
        }
    }

    /// Bounds the error of interpolation at r nodes, relative to the range of the tables; a network without nodes has none.
    ///
    /// # Errors
    /// A device that failed.
    pub fn node_error<X: FloatX>(&self, params: &Params<X>, r: usize) -> Result<f64> {
        match self {
            Self::Mlp(net) => net.node_error(params, r),
            Self::Dit(_) => Ok(0.0),
        }
    }

    /// `x_t: (N, D)` → `v: (N, D)`, and what the backward needs.
    ///
    /// # Errors
    /// A width that is not the network's, or modulations for another number of rows.
    pub fn forward<X: FloatX>(
        &self,
        params: &Params<X>,
        input: impl Into<Input<X>>,
        modulations: Modulations<X>,
        keep: Keep,
    ) -> Result<(Tensor<X>, Option<Saved<X>>)> {
        let to_head = self.forward_to_head(params, input, modulations, keep)?;
        let v = match self {
            Self::Mlp(net) => net.head(params, &to_head.m)?,
            Self::Dit(net) => net.head(params, &to_head.m)?,
        };
        Ok((v, to_head.into_saved()))
    }

    /// `x: (N, D)`, one `t: (1)` for all rows → `v: (N, D)`: what a sampler asks for. No label is dropped.
    ///
    /// # Errors
    /// A condition that is missing, not wanted, or of other rows.
    pub fn velocity_at<X: FloatX>(
        &self,
        params: &Params<X>,
        x: Tensor<X>,
        t: &Tensor<f32>,
        cond: Condition<'_, X>,
    ) -> Result<Tensor<X>> {
        t.expect("velocity_at", "t", [1])?;
        let n = x.rows_cols().0;
        let modulations = match self.conditioning() {
            Conditioning::Nothing => {
                let rows = Rows { share: n, ..Rows::plain(n) };
                self.modulations(params, Form::Direct, t, rows, cond, None)?
            }
            _ => {
                let mut times = Tensor::zeros(x.device(), [n, 1]);
                add_rows(&mut times, t.view().part(0, [1, 1]))?;
                self.modulations(params, Form::Direct, &times.reshaped([n])?, Rows::plain(n), cond, None)?
            }
        };
        let image = cond.image.map(Tensor::duplicate).transpose()?;
        Ok(self.forward(params, Input { x_t: x, image }, modulations, Keep::Nothing)?.0)
    }

    /// `x_t: (N, D)` → what the head takes: the loss, where that is all that is wanted of v, is the head's.
    ///
    /// # Errors
    /// See [`VelocityNet::forward`].
    pub fn forward_to_head<X: FloatX>(
        &self,
        params: &Params<X>,
        input: impl Into<Input<X>>,
        modulations: Modulations<X>,
        keep: Keep,
    ) -> Result<ToHead<X>> {
        let Input { x_t, image } = input.into();
        let (m, saved) = match (self, image) {
            (Self::Mlp(_), Some(_)) => {
                return Err(Error::argument("forward", "image", "none (an MLP takes none)", "one"));
            }
            (Self::Mlp(net), None) => {
                let (m, saved) = net.forward_to_head(params, x_t, modulations, keep)?;
                (m, saved.map(Saved::Mlp))
            }
            (Self::Dit(net), image) => {
                let (m, saved) = net.forward_to_head(params, x_t, image.as_ref(), modulations, keep)?;
                (m, saved.map(Saved::Dit))
            }
        };
        Ok(ToHead { m, saved, keeps_m: matches!(keep, Keep::All | Keep::BlockInputs) })
    }

    /// Returns the row losses (N).
    ///
    /// # Errors
    /// A target of other rows.
    pub fn loss<X: FloatX>(
        &self,
        params: &Params<X>,
        to_head: &ToHead<X>,
        target: &Target<'_>,
    ) -> Result<Tensor<f32>> {
        match self {
            Self::Mlp(net) => net.output().loss(params, &to_head.m, target),
            Self::Dit(net) => flow_loss_forward(&net.head(params, &to_head.m)?, target),
        }
    }

    /// Returns the row losses (N), and `dv: (N, D)`, times `scale`.
    ///
    /// # Errors
    /// A target of other rows.
    pub fn loss_and_gradient<X: FloatX>(
        &self,
        params: &Params<X>,
        to_head: &ToHead<X>,
        target: &Target<'_>,
        scale: Scale,
    ) -> Result<(Tensor<f32>, Tensor<X>)> {
        match self {
            Self::Mlp(net) => net.output().loss_and_gradient(params, &to_head.m, target, scale),
            Self::Dit(net) => flow_loss_backward(&net.head(params, &to_head.m)?, target, scale),
        }
    }

    /// `dv: (N, D)` → `dx_t: (N, D)`, and the parameter gradients where `grads` takes them.
    ///
    /// # Errors
    /// Parameter gradients wanted of a forward that kept only what input gradients need.
    pub fn backward<X: FloatX>(
        &self,
        params: &Params<X>,
        saved: Saved<X>,
        dv: &Tensor<X>,
        grads: Option<&mut Grads>,
    ) -> Result<Tensor<X>> {
        match (self, saved) {
            (Self::Mlp(net), Saved::Mlp(saved)) => net.backward(params, saved, dv, grads),
            (Self::Dit(net), Saved::Dit(saved)) => net.backward(params, saved, dv, grads),
            _ => Err(Error::argument("backward", "saved", "what this network saved", "another's")),
        }
    }
}

impl From<Mlp> for VelocityNet {
    fn from(net: Mlp) -> Self {
        Self::Mlp(net)
    }
}

impl From<Dit> for VelocityNet {
    fn from(net: Dit) -> Self {
        Self::Dit(net)
    }
}

/// `z: (B, z)` → `(B·m, z)`, the order of `Rows`.
///
/// # Errors
/// A device that failed.
pub fn tiled<X: FloatX>(z: &Tensor<X>, m: usize) -> Result<Tensor<X>> {
    let (b, width) = z.rows_cols();
    let mut out = Tensor::uninit(z.device(), [b * m, width]);
    for copy in 0..m {
        let [mut part] = out.view_mut().parts([(copy * b * width, z.shape())]);
        part.copy_from(z.view())?;
    }
    Ok(out)
}

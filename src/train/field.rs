//! A network as samplers and likelihoods take it: one t for all rows, a class for each group of rows, and an image beside each row
//! where it has one. A network that inpaints is told that nothing is known unless something is.
//!
//! Shift, scale and gate depend on t and the class alone, so the modulation path is evaluated once for each class of a batch: a single
//! row where there is no class, or one.

use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::nn::modulation_path::Modulations;
use crate::nn::velocity::Input;
use crate::nn::{Condition, Conditioning, Form, Keep, NodeTables, Params, Spatial, VelocityNet};
use crate::ops::elementwise::cast;
use crate::ops::embedding::{Labels, add_rows};
use crate::ops::flow_path::Rows;
use crate::ops::gather::{Affine, Index, gather_forward};
use crate::ops::inpaint::given_holes;
use crate::tensor::Tensor;

/// The condition of a group of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// A class.
    Class(usize),
    /// No class: the null row of a label table, or the vector of zeros.
    Null,
}

/// A network, with conditions for the rows of a batch.
#[derive(Debug)]
pub struct Field<'a, X: FloatX> {
    net: &'a VelocityNet,
    params: &'a Params<X>,
    told: Told<X>,
    beside: Beside<X>,
    /// Takes the one t for each row of the modulation tables.
    spread: Index,
    share: usize,
}

/// Conditions as the network takes them.
#[derive(Debug)]
enum Told<X: FloatX> {
    Nothing,
    /// (G, z).
    Vectors(Tensor<X>),
    /// (N).
    Labels(Labels),
}

/// What stands beside the rows.
#[derive(Debug)]
enum Beside<X: FloatX> {
    Nothing,
    /// (N, channels·H·W).
    Given(Tensor<X>),
    /// (1, (C + 1)·H·W): the same for all rows, of which nothing is known.
    Unknown(Tensor<X>),
}

impl<'a, X: FloatX> Field<'a, X> {
    /// Takes a network for batches of `labels.len()·share` rows, `share` consecutive ones of each label. Without conditions the labels do
    /// not matter. A label table is asked once for each row, vectors once for each label. `beside: (N, channels·H·W)` is a spatial
    /// condition.
    ///
    /// # Errors
    /// A class that the network does not have, no class where it was trained to have one, a network that needs an image beside each
    /// sample, or has none; a device that failed.
    pub fn new(
        net: &'a VelocityNet,
        params: &'a Params<X>,
        labels: &[Label],
        share: usize,
        beside: Option<Tensor<X>>,
    ) -> Result<Self> {
        let device = params.flat().device();
        let beside = match (net.spatial(), beside) {
            (Spatial::Nothing, None) => Beside::Nothing,
            (Spatial::Nothing, Some(_)) => {
                return Err(Error::Usage("the network takes no spatial condition, and there is one".into()));
            }
            (_, Some(image)) => Beside::Given(image),
            (Spatial::Given { channels }, None) => {
                return Err(Error::Usage(format!(
                    "the network takes {channels} channels of a spatial condition beside each sample, and there is none"
                )));
            }
            (Spatial::Inpaint { image }, None) => {
                let [channels, height, width] = image;
                let area = height * width;
                let condition = given_holes(&vec![0.0; channels * area], image, &vec![true; area]);
                Beside::Unknown(Tensor::from_f32(device, [1, condition.len()], &condition)?)
            }
        };
        let (told, groups, share) = match net.conditioning() {
            Conditioning::Nothing => (Told::Nothing, 1, labels.len() * share),
            Conditioning::Vectors(width) => {
                let mut cond = vec![0.0; labels.len() * width];
                for (row, label) in cond.chunks_exact_mut(width).zip(labels) {
                    match label {
                        Label::Null => {}
                        Label::Class(class) => {
                            *row.get_mut(*class).ok_or_else(|| no_class(*class, width))? = 1.0;
                        }
                    }
                }
                let cond = Tensor::from_f32(device, [labels.len(), width], &cond)?;
                (Told::Vectors(cond), labels.len(), share)
            }
            Conditioning::Classes { classes, .. } => {
                let number = |label: &Label| match label {
                    Label::Null => Ok(None),
                    Label::Class(class) => {
                        u32::try_from(*class).map(Some).map_err(|_| no_class(*class, classes))
                    }
                };
                let numbers: Vec<_> = labels.iter().map(number).collect::<Result<_>>()?;
                let each: Vec<_> =
                    numbers.iter().flat_map(|label| std::iter::repeat_n(*label, share)).collect();
                (Told::Labels(net.labels(device, &each)?), each.len(), 1)
            }
        };
        Ok(Self { net, params, told, beside, spread: Index::new(device, &vec![0; groups])?, share })
    }

    /// `x: (N, D)`, `t: (1)` → `v: (N, D)`.
    ///
    /// # Errors
    /// Another number of rows or columns; a device that failed.
    pub fn velocity(&self, x: &Tensor<f32>, t: Tensor<f32>) -> Result<Tensor<X>> {
        let input = self.input(cast(x)?)?;
        Ok(self.net.forward(self.params, input, self.modulations(t)?, Keep::Nothing)?.0)
    }

    /// `x, e: (N, D)`, `t: (1)` → v and eᵀ·∂v/∂x, both (N, D).
    ///
    /// # Errors
    /// Another number of rows or columns; a device that failed.
    pub fn vjp(
        &self,
        x: &Tensor<f32>,
        t: Tensor<f32>,
        e: &Tensor<f32>,
    ) -> Result<(Tensor<f32>, Tensor<f32>)> {
        let input = self.input(cast(x)?)?;
        let (v, saved) = self.net.forward(self.params, input, self.modulations(t)?, Keep::Inputs)?;
        let saved = saved
            .ok_or_else(|| Error::argument("Field::vjp", "saved", "the activations of a forward", "none"))?;
        Ok((cast(&v)?, cast(&self.net.backward(self.params, saved, &cast(e)?, None)?)?))
    }

    /// `x_t: (N, D)`, `t: (N)` → `v: (N, D)`; all rows have the first label. `tables` interpolate the modulation of a network without
    /// conditions.
    ///
    /// # Errors
    /// Another width; a device that failed.
    pub fn velocity_at(
        &self,
        x_t: Tensor<X>,
        t: &Tensor<f32>,
        tables: Option<&NodeTables>,
    ) -> Result<Tensor<X>> {
        let (rows, device) = (Rows::plain(t.len()), t.device());
        let modulations = match (&self.told, tables) {
            (Told::Nothing, Some(tables)) => self.net.modulations_from(tables, t)?,
            (Told::Nothing, None) => self.told_by(t, rows, Condition::default())?,
            (Told::Vectors(cond), _) => {
                let index = Index::new(device, &vec![0; t.len()])?;
                let cond = gather_forward(cond, &index, Affine::IDENTITY)?;
                self.told_by(t, rows, Condition { vectors: Some(&cond), ..Condition::default() })?
            }
            (Told::Labels(labels), _) => {
                let first = labels.numbers().first().copied().unwrap_or(0);
                let labels = Labels::new(device, &vec![first; t.len()], labels.classes())?;
                self.told_by(t, rows, Condition { labels: Some(&labels), ..Condition::default() })?
            }
        };
        Ok(self.net.forward(self.params, self.input(x_t)?, modulations, Keep::Nothing)?.0)
    }

    /// Puts beside rows what the network has there.
    fn input(&self, x_t: Tensor<X>) -> Result<Input<X>> {
        let image = match &self.beside {
            Beside::Nothing => None,
            Beside::Given(image) => Some(image.duplicate()?),
            Beside::Unknown(one) => {
                let mut all = Tensor::zeros(x_t.device(), [x_t.rows_cols().0, one.len()]);
                add_rows(&mut all, one.view())?;
                Some(all)
            }
        };
        Ok(Input { x_t, image })
    }

    fn modulations(&self, t: Tensor<f32>) -> Result<Modulations<X>> {
        let groups = self.spread.numbers().len();
        let t = match groups {
            1 => t,
            _ => gather_forward::<f32, f32>(&t.reshaped([1, 1])?, &self.spread, Affine::IDENTITY)?
                .reshaped([groups])?,
        };
        let rows = Rows { share: self.share, ..Rows::plain(groups * self.share) };
        let (mut vectors, mut labels) = (None, None);
        match &self.told {
            Told::Nothing => {}
            Told::Vectors(cond) => vectors = Some(cond),
            Told::Labels(numbers) => labels = Some(numbers),
        }
        self.told_by(&t, rows, Condition { vectors, labels, image: None })
    }

    fn told_by(&self, t: &Tensor<f32>, rows: Rows, cond: Condition<'_, X>) -> Result<Modulations<X>> {
        self.net.modulations(self.params, Form::Direct, t, rows, cond, None)
    }
}

/// Says that a network does not have a class.
pub fn no_class(class: usize, classes: usize) -> Error {
    Error::Usage(format!("class {class} was asked for, but the network has {classes} classes"))
}

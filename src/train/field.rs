//! A network as samplers and likelihoods take it: one t for all rows, and a class for each group of rows.
//!
//! Shift, scale and gate depend on t and the class alone, so the modulation path is evaluated once for each class of a batch: a single
//! row where there is no class, or one.

use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::nn::mlp::Keep;
use crate::nn::modulation_path::Modulations;
use crate::nn::{Form, Mlp, NodeTables, Params};
use crate::ops::elementwise::cast;
use crate::ops::gather::{Affine, Index, gather_forward};
use crate::tensor::Tensor;

/// The condition of a group of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// A class.
    Class(usize),
    /// No class: the vector of zeros.
    Null,
}

/// A network, with conditions for the rows of a batch.
#[derive(Debug)]
pub struct Field<'a, X: FloatX> {
    net: &'a Mlp,
    params: &'a Params<X>,
    cond: Option<Tensor<X>>, // (G, z)
    /// Takes the one t for each group.
    spread: Index,
    share: usize,
}

impl<'a, X: FloatX> Field<'a, X> {
    /// Takes a network for batches of `labels.len()·share` rows, `share` consecutive ones of each label. Without conditions the labels do
    /// not matter.
    ///
    /// # Errors
    /// A class that the network does not have; a device that failed.
    pub fn new(net: &'a Mlp, params: &'a Params<X>, labels: &[Label], share: usize) -> Result<Self> {
        let (device, classes) = (params.flat().device(), net.config().cond);
        if classes == 0 {
            let (spread, share) = (Index::new(device, &[0])?, labels.len() * share);
            return Ok(Self { net, params, cond: None, spread, share });
        }
        let mut cond = vec![0.0; labels.len() * classes];
        for (row, label) in cond.chunks_exact_mut(classes).zip(labels) {
            match label {
                Label::Null => {}
                Label::Class(class) => *row.get_mut(*class).ok_or_else(|| no_class(*class, classes))? = 1.0,
            }
        }
        let cond = Some(Tensor::from_f32(device, [labels.len(), classes], &cond)?);
        Ok(Self { net, params, cond, spread: Index::new(device, &vec![0; labels.len()])?, share })
    }

    /// `x: (N, D)`, `t: (1)` → `v: (N, D)`.
    ///
    /// # Errors
    /// Another number of rows or columns; a device that failed.
    pub fn velocity(&self, x: &Tensor<f32>, t: Tensor<f32>) -> Result<Tensor<X>> {
        Ok(self.net.forward(self.params, cast(x)?, self.modulations(t)?, Keep::Nothing)?.0)
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
        let (v, saved) = self.net.forward(self.params, cast(x)?, self.modulations(t)?, Keep::Inputs)?;
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
        let cond = match &self.cond {
            Some(cond) => {
                let index = Index::new(t.device(), &vec![0; t.len()])?;
                Some(gather_forward(cond, &index, Affine::IDENTITY)?)
            }
            None => None,
        };
        let modulations = match tables {
            Some(tables) => self.net.modulations_from(tables, t)?,
            None => self.net.modulations(self.params, Form::Direct, t, 1, cond)?,
        };
        Ok(self.net.forward(self.params, x_t, modulations, Keep::Nothing)?.0)
    }

    fn modulations(&self, t: Tensor<f32>) -> Result<Modulations<X>> {
        let groups = self.cond.as_ref().map_or(1, |cond| cond.rows_cols().0);
        let t = match groups {
            1 => t,
            _ => gather_forward::<f32, f32>(&t.reshaped([1, 1])?, &self.spread, Affine::IDENTITY)?
                .reshaped([groups])?,
        };
        let cond = self.cond.as_ref().map(Tensor::duplicate).transpose()?;
        self.net.modulations(self.params, Form::Direct, &t, self.share, cond)
    }
}

/// Says that a network does not have a class.
pub fn no_class(class: usize, classes: usize) -> Error {
    Error::Usage(format!("class {class} was asked for, but the network has {classes} classes"))
}

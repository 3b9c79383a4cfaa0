//! Named parameters in one flat buffer, and their gradients in another of the same layout.
//!
//! Optimizer, clipping, averages and checkpoints each walk one buffer. Names are the reference's state-dict keys
//! (FEATURES 1.7). Every tensor starts on a cache line; the padding between them is zero and stays zero under every
//! update rule.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::float::FloatX;
use crate::ops::elementwise::{axpy, clear};
use crate::ops::linear::{Panels, Start, Weight};
use crate::rng::{Draw, Stream};
use crate::tensor::{Shape, Tensor, View, ViewMut};

/// Elements that offsets are a multiple of: a cache line of the narrowest storage type.
const ALIGN: usize = 32;

/// The place of one parameter in a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamId(usize);

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// Uniform in ±√(6/(fan_in + fan_out)) (Glorot and Bengio, 2010), of a matrix or of what [`View::matrix`] makes one.
    XavierUniform,
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
}

/// Name, shape and place of one parameter.
#[derive(Clone, Debug)]
pub struct Entry {
    /// State-dict key.
    pub name: String,
    /// Sizes; weights are (out, in).
    pub shape: Shape,
    /// First element in the flat buffer.
    pub offset: usize,
    /// Initial values.
    pub init: Init,
}

impl Entry {
    /// Returns its elements in the flat buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.shape.len()
    }

    /// Says whether weight decay acts on it: more than one dimension, and no bias (FEATURES 1.6).
    pub fn decays(&self) -> bool {
        self.shape.dims().len() > 1 && !self.name.ends_with(".bias")
    }
}

/// The parameters of a network, in order.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    entries: Vec<Entry>,
    len: usize,
}

impl Layout {
    /// Appends a parameter.
    pub fn add(&mut self, name: impl Into<String>, shape: impl Into<Shape>, init: Init) -> ParamId {
        let entry = Entry { name: name.into(), shape: shape.into(), offset: self.len, init };
        self.len = (self.len + entry.shape.len()).next_multiple_of(ALIGN);
        self.entries.push(entry);
        ParamId(self.entries.len() - 1)
    }

    /// Appends all parameters of another layout, `prefix` before their names, and returns where they lie in the flat buffer: in the
    /// order, and as far apart, as in that layout.
    pub fn append(&mut self, prefix: &str, other: &Self) -> Range<usize> {
        let start = self.len;
        for entry in &other.entries {
            self.add(format!("{prefix}{}", entry.name), entry.shape, entry.init);
        }
        start..self.len
    }

    /// Returns the parameters, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the elements of the flat buffer, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Says whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the number of parameters, without padding.
    pub fn count(&self) -> usize {
        self.entries.iter().map(|e| e.shape.len()).sum()
    }

    /// Returns the ranges that weight decay acts on.
    pub fn decayed(&self) -> Vec<Range<usize>> {
        self.entries.iter().filter(|e| e.decays()).map(Entry::range).collect()
    }

    /// Returns the initial values of every parameter, in the order of the flat buffer.
    pub fn initial_values(&self, seed: u64) -> Vec<f32> {
        let draw = Draw::new(seed, Stream::Init, 0);
        let mut values = vec![0.0; self.len()];
        for (i, entry) in self.entries().iter().enumerate() {
            let out = &mut values[entry.range()];
            match entry.init {
                Init::Zeros => {}
                Init::Ones => out.fill(1.0),
                Init::Normal(std) => {
                    crate::device::Isa::detect().run(
                        #[inline(always)]
                        |arch| draw.fill_normal(arch, out, i as u64, 0),
                    );
                    out.iter_mut().for_each(|x| *x *= std);
                }
                Init::XavierUniform => {
                    let [outputs, inputs @ ..] = entry.shape.dims() else { continue };
                    let fan = outputs + inputs.iter().product::<usize>();
                    let bound = (6.0 / fan as f64).sqrt() as f32;
                    draw.fill_uniform(out, i as u64, 0);
                    out.iter_mut().for_each(|x| *x = bound * (2.0 * *x - 1.0));
                }
            }
        }
        values
    }

    /// Returns the shape of a parameter.
    pub fn shape(&self, id: ParamId) -> Shape {
        self.place(id).1
    }

    fn place(&self, id: ParamId) -> (usize, Shape) {
        let entry = &self.entries[id.0];
        (entry.offset, entry.shape)
    }

    fn find(&self, name: &str) -> Option<ParamId> {
        self.entries.iter().position(|e| e.name == name).map(ParamId)
    }

    /// Returns the name of the first parameter for which `bad` holds of its part of `flat`.
    pub fn first_where(&self, flat: &[f32], bad: impl Fn(f32) -> bool) -> Option<&str> {
        self.entries.iter().find(|e| flat[e.range()].iter().any(|x| bad(*x))).map(|e| e.name.as_str())
    }
}

/// Parameters in storage type X.
#[derive(Debug)]
pub struct Params<X: FloatX> {
    layout: Arc<Layout>,
    flat: Tensor<X>,
    /// Weights packed for products; gone as soon as the values may change.
    panels: OnceLock<Vec<Option<Panels>>>,
}

impl<X: FloatX> Params<X> {
    /// Returns freshly initialised parameters: a pure function of layout and seed.
    ///
    /// # Errors
    /// None on the CPU; a device may fail to take the values.
    pub fn init(device: &Device, layout: Arc<Layout>, seed: u64) -> Result<Self> {
        Self::from_flat(device, layout.clone(), &layout.initial_values(seed))
    }

    /// Takes values in the order of the flat buffer, padding included.
    ///
    /// # Errors
    /// Another number of values than the layout's.
    pub fn from_flat(device: &Device, layout: Arc<Layout>, values: &[f32]) -> Result<Self> {
        let flat = Tensor::from_f32(device, [layout.len()], values)?;
        Ok(Self { layout, flat, panels: OnceLock::new() })
    }

    /// Takes a flat buffer.
    ///
    /// # Errors
    /// Another length than the layout's.
    pub fn from_tensor(layout: Arc<Layout>, flat: Tensor<X>) -> Result<Self> {
        flat.expect("Params::from_tensor", "flat", [layout.len()])?;
        Ok(Self { layout, flat, panels: OnceLock::new() })
    }

    /// Returns the layout.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Returns the flat buffer.
    pub fn flat(&self) -> &Tensor<X> {
        &self.flat
    }

    /// Returns the flat buffer, to update.
    pub fn flat_mut(&mut self) -> &mut Tensor<X> {
        self.panels = OnceLock::new();
        &mut self.flat
    }

    /// Returns one parameter.
    pub fn view(&self, id: ParamId) -> View<'_, X> {
        let (offset, shape) = self.layout.place(id);
        self.flat.view().part(offset, shape)
    }

    /// Returns a weight, with its panels if they were packed.
    pub(crate) fn weight(&self, id: ParamId) -> Weight<'_, X> {
        Weight::new(self.view(id).matrix(), self.panels.get().and_then(|panels| panels[id.0].as_ref()))
    }

    /// Packs weights for products by the CPU, once until the values change: pays where many products take each of them.
    ///
    /// # Errors
    /// Parameters of another device.
    pub(crate) fn pack(&self, weights: impl Iterator<Item = ParamId>) -> Result<()> {
        let Device::Cpu(cpu) = self.flat.device() else { return Ok(()) };
        if self.panels.get().is_some() {
            return Ok(());
        }
        let mut panels: Vec<Option<Panels>> = self.layout.entries.iter().map(|_| None).collect();
        for id in weights {
            panels[id.0] = Some(Panels::room(cpu, self.view(id).matrix())?);
        }
        let mut filled: Vec<Result<()>> = panels.iter().map(|_| Ok(())).collect();
        let work = panels.iter_mut().zip(&mut filled).enumerate();
        cpu.each(work.filter_map(|(i, (panels, filled))| Some((i, panels.as_mut()?, filled))), |work| {
            let (i, panels, filled) = work;
            *filled = panels.fill(self.view(ParamId(i)).matrix());
        });
        filled.into_iter().collect::<Result<()>>()?;
        self.panels.get_or_init(|| panels);
        Ok(())
    }

    /// Returns a parameter by its state-dict key.
    ///
    /// # Errors
    /// A name that is not in the layout.
    pub fn named(&self, name: &str) -> Result<View<'_, X>> {
        Ok(self.view(id_of(&self.layout, name)?))
    }
}

/// Gradients of parameters, in f32.
#[derive(Debug)]
pub struct Grads {
    layout: Arc<Layout>,
    flat: Tensor<f32>,
    /// Parameters whose gradient is zero, whatever is written there: see [`Grads::forget`].
    stale: Vec<bool>,
}

impl Grads {
    /// Returns zero gradients.
    pub fn zeros(device: &Device, layout: Arc<Layout>) -> Self {
        let flat = Tensor::zeros(device, [layout.len()]);
        Self { stale: vec![false; layout.entries.len()], layout, flat }
    }

    /// Sets all gradients to zero, before the first micro-batch of a step.
    ///
    /// # Errors
    /// None on a device that works.
    pub fn clear(&mut self) -> Result<()> {
        self.stale.fill(false);
        clear(&mut self.flat)
    }

    /// Does the same where that takes no writing: the first sum of a gradient then starts from zero. Until [`Grads::settle`] the flat
    /// buffer is not to be read.
    ///
    /// # Errors
    /// None on a device that works.
    pub(crate) fn forget(&mut self) -> Result<()> {
        if let Device::Cuda(_) = self.flat.device() {
            return self.clear();
        }
        self.stale.fill(true);
        Ok(())
    }

    /// Writes the zeros of gradients that were forgotten and not summed since.
    pub(crate) fn settle(&mut self) {
        for i in 0..self.stale.len() {
            if std::mem::take(&mut self.stale[i]) {
                self.zero(ParamId(i));
            }
        }
    }

    fn zero(&mut self, id: ParamId) {
        let [mut grad] = self.flat.view_mut().parts([self.layout.place(id)]);
        grad.fill_zero();
    }

    /// Returns the flat buffer.
    pub fn flat(&self) -> &Tensor<f32> {
        &self.flat
    }

    /// Returns the layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns several gradients, to accumulate into.
    pub fn views_mut<const P: usize>(&mut self, ids: [ParamId; P]) -> [ViewMut<'_, f32>; P] {
        for id in ids {
            if std::mem::take(&mut self.stale[id.0]) {
                self.zero(id);
            }
        }
        self.flat.view_mut().parts(ids.map(|id| self.layout.place(id)))
    }

    /// Returns the gradients of a weight and a bias, to sum into, and what the weight's sum starts from.
    pub(crate) fn layer_mut(&mut self, [weight, bias]: [ParamId; 2]) -> ([ViewMut<'_, f32>; 2], Start) {
        let start = start(&mut self.stale[weight.0]);
        (self.views_mut([weight, bias]), start)
    }

    /// Returns the gradient of a weight, to sum into, and what the sum starts from.
    pub(crate) fn weight_mut(&mut self, weight: ParamId) -> (ViewMut<'_, f32>, Start) {
        let start = start(&mut self.stale[weight.0]);
        let [grad] = self.views_mut([weight]);
        (grad, start)
    }

    /// Returns all gradients apart, for several threads to sum into.
    pub(crate) fn apart(&mut self) -> GradsApart<'_> {
        let places = self.layout.entries.iter().map(|entry| (entry.offset, entry.shape));
        let views = self.flat.view_mut().split(places).into_iter().map(Some).collect();
        GradsApart { views, stale: &mut self.stale }
    }

    /// Adds `values`, of the parameter's shape, to the gradient of `name`.
    ///
    /// # Errors
    /// A name that is not in the layout, or another shape.
    pub fn add_named(&mut self, name: &str, values: &Tensor<f32>) -> Result<()> {
        let id = id_of(&self.layout, name)?;
        let [mut grad] = self.views_mut([id]);
        values.expect("add_named", "values", grad.shape())?;
        axpy(grad.reborrow(), 1.0, values)
    }

    /// Adds the gradients of a layout that was appended to this one, last.
    ///
    /// # Errors
    /// A layout with more parameters than this one.
    pub(crate) fn add_appended(&mut self, other: &Self) -> Result<()> {
        let (own, theirs) = (self.layout.entries.len(), other.layout.entries.len());
        let start = own.checked_sub(theirs).zip(self.layout.len().checked_sub(other.layout.len()));
        let Some((first, offset)) = start else {
            let found = format!("{theirs} of them");
            return Err(Error::argument("add_appended", "other", format!("at most {own} parameters"), found));
        };
        for i in first..own {
            if std::mem::take(&mut self.stale[i]) {
                self.zero(ParamId(i));
            }
        }
        let [end] = self.flat.view_mut().parts([(offset, [other.layout.len()].into())]);
        axpy(end, 1.0, &other.flat)
    }

    /// Returns a gradient by its parameter's state-dict key.
    ///
    /// # Errors
    /// A name that is not in the layout.
    pub fn named(&self, name: &str) -> Result<View<'_, f32>> {
        let (offset, shape) = self.layout.place(id_of(&self.layout, name)?);
        Ok(self.flat.view().part(offset, shape))
    }
}

/// All gradients, each to be taken by whoever sums into it.
pub(crate) struct GradsApart<'a> {
    views: Vec<Option<ViewMut<'a, f32>>>,
    stale: &'a mut [bool],
}

impl<'a> GradsApart<'a> {
    /// Takes the gradient of a parameter that was not taken before, zero or what it was.
    pub(crate) fn take(&mut self, id: ParamId) -> Option<ViewMut<'a, f32>> {
        let mut view = self.views[id.0].take()?;
        if std::mem::take(&mut self.stale[id.0]) {
            view.fill_zero();
        }
        Some(view)
    }

    /// Takes the gradients of a weight and a bias, and what the weight's sum starts from.
    pub(crate) fn take_layer(
        &mut self,
        [weight, bias]: [ParamId; 2],
    ) -> ([Option<ViewMut<'a, f32>>; 2], Start) {
        let start = start(&mut self.stale[weight.0]);
        ([self.take(weight), self.take(bias)], start)
    }
}

fn start(stale: &mut bool) -> Start {
    if std::mem::take(stale) { Start::Zero } else { Start::Value }
}

fn id_of(layout: &Layout, name: &str) -> Result<ParamId> {
    layout
        .find(name)
        .ok_or_else(|| Error::argument("named", "name", "a parameter of this network", format!("`{name}`")))
}

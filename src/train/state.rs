//! Between an engine and a checkpoint: every buffer by the names of its parameters.

use std::borrow::Cow;

use serde_json::Value;

use crate::error::Result;
use crate::float::FloatX;
use crate::nn::params::Layout;
use crate::tensor::Tensor;
use crate::train::checkpoint::{Group, Loaded, TensorRef};
use crate::train::engine::Engine;

/// The group of the parameters that the network computes with.
pub const MODEL: &str = "model";
/// The group of the f32 weights, where the storage type is narrower.
pub const MASTER: &str = "master";
/// The group of first moments.
pub const FIRST: &str = "moment1";
/// The group of second moments.
pub const SECOND: &str = "moment2";

/// Returns the group of the i-th average.
pub fn ema_group(i: usize) -> String {
    format!("ema{i}")
}

/// An engine's buffers for the host to read, each with the name of its group.
pub struct Buffers<'a, P: FloatX> {
    layout: &'a Layout,
    model: Cow<'a, [P]>,
    others: Vec<(String, Cow<'a, [f32]>)>,
}

impl<'a, P: FloatX> Buffers<'a, P> {
    /// Borrows all buffers, or copies them from the device.
    ///
    /// # Errors
    /// A device that failed.
    pub fn of(engine: &'a Engine<P>) -> Result<Self> {
        let o = &engine.optimizer;
        let mut others = vec![(FIRST.to_owned(), o.m.on_host()?)];
        if let Some(master) = &o.master {
            others.push((MASTER.to_owned(), master.on_host()?));
        }
        if let Some(v) = &o.v {
            others.push((SECOND.to_owned(), v.on_host()?));
        }
        for (i, (_, ema)) in o.emas.iter().enumerate() {
            others.push((ema_group(i), ema.on_host()?));
        }
        Ok(Self { layout: o.params.layout(), model: o.params.flat().on_host()?, others })
    }

    /// Returns them as the groups of a checkpoint.
    pub fn groups(&self) -> Vec<Group<'_>> {
        let mut groups = vec![group(MODEL, self.layout, &self.model)];
        groups.extend(self.others.iter().map(|(name, flat)| group(name, self.layout, flat)));
        groups
    }
}

fn group<'a, X: FloatX>(file: &'a str, layout: &'a Layout, flat: &'a [X]) -> Group<'a> {
    let tensors =
        layout.entries().iter().map(|e| TensorRef::new(&e.name, e.shape.dims(), &flat[e.range()])).collect();
    Group { file, tensors }
}

/// Fills an engine from a checkpoint.
///
/// # Errors
/// A buffer that is missing or has another type or shape.
pub fn restore<P: FloatX>(engine: &mut Engine<P>, from: &Loaded) -> Result<()> {
    let layout = engine.optimizer.params.layout().clone();
    let o = &mut engine.optimizer;
    read(o.params.flat_mut(), MODEL, &layout, from)?;
    read(&mut o.m, FIRST, &layout, from)?;
    if let Some(master) = &mut o.master {
        read(master, MASTER, &layout, from)?;
    }
    if let Some(v) = &mut o.v {
        read(v, SECOND, &layout, from)?;
    }
    for (i, (_, ema)) in o.emas.iter_mut().enumerate() {
        read(ema, &ema_group(i), &layout, from)?;
    }
    let manifest = from.manifest();
    o.count = manifest.step - manifest.skipped.total;
    engine.step = manifest.step;
    engine.skips = manifest.skipped;
    if engine.scaler.is_some() {
        engine.scaler = manifest.scaler.clone();
    }
    Ok(())
}

/// Reads one group into a flat buffer; the padding between parameters keeps its zeros.
///
/// # Errors
/// A tensor that is missing or has another type or shape.
pub fn read<X: FloatX>(flat: &mut Tensor<X>, group: &str, layout: &Layout, from: &Loaded) -> Result<()> {
    let mut values = flat.on_host()?.into_owned();
    for entry in layout.entries() {
        from.read_into(&mut values[entry.range()], group, &entry.name, entry.shape.dims())?;
    }
    flat.view_mut().copy_from_host(&values)
}

/// Describes a network in a manifest.
pub fn architecture(kind: &str, config: Value) -> Value {
    serde_json::json!({ "kind": kind, "config": config })
}

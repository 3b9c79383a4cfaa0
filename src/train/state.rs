//! Between an engine and a checkpoint: every buffer by the names of its parameters.

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

/// The names of an engine's averages, kept alive for [`groups`].
pub fn ema_groups<P: FloatX>(engine: &Engine<P>) -> Vec<String> {
    (0..engine.optimizer.emas.len()).map(ema_group).collect()
}

/// Borrows all buffers as the groups of a checkpoint.
///
/// # Errors
/// None on the CPU.
pub fn groups<'a, P: FloatX>(engine: &'a Engine<P>, emas: &'a [String]) -> Result<Vec<Group<'a>>> {
    let o = &engine.optimizer;
    let layout = o.params.layout();
    let mut groups = vec![group(MODEL, layout, o.params.flat())?, group(FIRST, layout, &o.m)?];
    if let Some(master) = &o.master {
        groups.push(group(MASTER, layout, master)?);
    }
    if let Some(v) = &o.v {
        groups.push(group(SECOND, layout, v)?);
    }
    for (name, (_, ema)) in emas.iter().zip(&o.emas) {
        groups.push(group(name, layout, ema)?);
    }
    Ok(groups)
}

fn group<'a, X: FloatX>(file: &'a str, layout: &'a Layout, flat: &'a Tensor<X>) -> Result<Group<'a>> {
    let flat = flat.host()?;
    let tensors =
        layout.entries().iter().map(|e| TensorRef::new(&e.name, e.shape.dims(), &flat[e.range()])).collect();
    Ok(Group { file, tensors })
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
    let flat = flat.host_mut()?;
    for entry in layout.entries() {
        from.read_into(&mut flat[entry.range()], group, &entry.name, entry.shape.dims())?;
    }
    Ok(())
}

/// Describes a network in a manifest.
pub fn architecture(kind: &str, config: Value) -> Value {
    serde_json::json!({ "kind": kind, "config": config })
}

//! The engine against PyTorch's float64 numbers: README.md in this folder says what they are and how they were made.
//!
//! Everything runs through what a training run uses: networks are read from safetensors files, noise and times come from
//! our own Philox inside the kernels, steps are made by `train::engine`. Errors are relative to the range of each tensor.

#[path = "../support/engine.rs"]
mod engine;
#[path = "../support/fixture.rs"]
mod fixture;
#[path = "../support/mlp_f64.rs"]
mod mlp_f64;

mod align;
mod coder;
mod dit;
mod import;
mod network;
mod pretrain;

use std::path::{Path, PathBuf};

use flowprior::data::permutation::Permutation;
use flowprior::device::Device;
use flowprior::nn::{Form, Mlp, Params};
use flowprior::train::engine::Engine;
use flowprior::train::{Config, Sources, Stage};
use flowprior::{FloatX, Result, Tensor};

use engine::{Outputs, Tensors};
use fixture::{Fixture, assert_close};

/// What the issue asks for in f32.
const F32: f64 = 1e-5;

/// Copies the weights of a case to a file of the kind that `pretrain` writes, which names convention and time scale.
fn network_file(dir: &Path, case: &Fixture) -> PathBuf {
    let config = case.config();
    let weights = Fixture::open(&format!("weights_{}", config["weights"].as_str().unwrap()));
    let path = dir.join("network.safetensors");
    let convention = config["time_convention"].as_str().unwrap();
    let metadata = [("time_convention", convention), ("time_scale", &config["time_scale"].to_string())];
    engine::write(&path, &weights.prefixed(""), &metadata);
    path
}

/// Reads the network of a case.
fn network<X: FloatX>(device: &Device, case: &Fixture) -> Result<(Mlp, Params<X>)> {
    let dir = tempfile::tempdir().unwrap();
    Mlp::from_safetensors(device, &network_file(dir.path(), case), None)
}

/// Returns the forms of modulation that the case has: nodes only where t alone decides.
fn forms(case: &Fixture) -> Vec<Form> {
    match case.config()["cond"].as_u64() {
        Some(0) => vec![Form::Direct, Form::Nodes(16)],
        _ => vec![Form::Direct],
    }
}

/// Returns a tensor that only conditional cases have.
fn optional(case: &Fixture, name: &str) -> Vec<f64> {
    if case.names().iter().any(|n| n == name) { case.values(name) } else { Vec::new() }
}

/// Returns an integer of the case's settings.
fn integer(case: &Fixture, key: &str) -> usize {
    case.config()[key].as_u64().unwrap() as usize
}

/// Panics unless every tensor of `expected` is found within `tolerance`, and no other.
#[track_caller]
fn assert_all_close(what: &str, found: &Outputs, expected: &Tensors, tolerance: f64) {
    assert!(found.keys().eq(expected.keys()), "{what}: other tensors than PyTorch's");
    for (name, (_, values)) in expected {
        assert_close(&format!("{what}: {name}"), &found[name], values, tolerance);
    }
}

/// Loads a configuration for ten steps of a constant learning rate with the settings of a case, and `more`.
fn config(stage: Stage, case: &Fixture, kind: &str, more: &[String]) -> Result<Config> {
    let c = case.config();
    let decay = if kind == "adamw" { 0.01 } else { 0.0 };
    let mut sets = vec![
        format!("seed={}", c["seed"]),
        format!("flow.flow_mul={}", c["flow_mul"]),
        format!("model.width={}", c["width"]),
        format!("model.depth={}", c["depth"]),
        format!("optim.kind={kind}"),
        format!("optim.lr={}", c["lr"]),
        format!("optim.beta1={}", c["betas"][0]),
        format!("optim.beta2={}", c["betas"][1]),
        format!("optim.eps={}", c["eps"]),
        format!("optim.weight_decay={decay:?}"),
        "optim.schedule.kind=constant".to_owned(),
        "optim.schedule.warmup_steps=0".to_owned(),
        format!("train.steps={}", c["steps"]),
        format!("train.batch={ROWS}"),
        "optim.clip=0.0".to_owned(),
        "optim.ema=[]".to_owned(),
    ];
    sets.extend_from_slice(more);
    Config::load(&Sources { stage: Some(stage), ..Default::default() }, &sets)
}

/// Samples of every case.
const ROWS: usize = 13;

/// Writes a data set from which every batch of a run is `rows`, in this order: the run shuffles what is stored by a
/// permutation that is known, so what is stored is shuffled the other way.
fn unshuffled(dir: &Path, seed: u64, rows: &[f64], batches: usize) -> Result<String> {
    let width = rows.len() / ROWS;
    let mut stored = vec![0.0; rows.len() * batches];
    for (position, row) in order(seed, batches)?.into_iter().enumerate() {
        stored[row * width..][..width].copy_from_slice(&rows[position % ROWS * width..][..width]);
    }
    let path = dir.join("data.safetensors");
    engine::write(&path, &Tensors::from([("features".into(), (vec![ROWS * batches, width], stored))]), &[]);
    Ok(format!("data.path='{}'", path.display()))
}

/// Returns the number of the row that a run reads at each position of its first epoch.
fn order(seed: u64, batches: usize) -> Result<Vec<usize>> {
    let order = Permutation::new(seed, 0, (ROWS * batches) as u64)?;
    Ok((0..ROWS * batches).map(|position| order.row(position as u64) as usize).collect())
}

/// Starts an engine from given parameters.
fn engine_from<X: FloatX>(config: &Config, like: &Params<X>, values: &Tensors) -> Result<Engine<X>> {
    let device = like.flat().device();
    let flat = engine::flat(like.layout(), values);
    let params = Params::from_flat(device, like.layout().clone(), &flat)?;
    Engine::new(config, params, Tensor::from_f32(device, [flat.len()], &flat)?)
}

/// Returns the parameters of an engine, or any buffer of their layout, by name.
fn named(layout: &flowprior::nn::Layout, flat: &Tensor<f32>) -> Result<Outputs> {
    let tensors = engine::named(layout, flat.host()?);
    Ok(tensors.into_iter().map(|(name, (_, values))| (name, values)).collect())
}

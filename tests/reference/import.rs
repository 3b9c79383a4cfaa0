//! Networks from other people's files: name prefixes, the two time conventions, and every way a file can be wrong.

use std::path::{Path, PathBuf};

use flowprior::nn::{Form, Keep, Mlp, Params, TimeConvention};
use flowprior::{Error, Result};
use safetensors::Dtype;
use tempfile::TempDir;

use super::engine::{self, Inputs, device, pass};
use super::fixture::{self, Fixture, Tensors, assert_close};
use super::mlp_f64::{self, Modulation};

const OURS: [(&str, &str); 1] = [("time_convention", "data_at_one")];

fn weights(name: &str) -> Tensors {
    Fixture::open(&format!("weights_{name}")).prefixed("")
}

fn read(path: &Path, convention: Option<TimeConvention>) -> Result<(Mlp, Params<f32>)> {
    Mlp::from_safetensors(&device(None)?, path, convention)
}

fn written(tensors: &Tensors, metadata: &[(&str, &str)]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("network.safetensors");
    engine::write(&path, tensors, metadata);
    (dir, path)
}

#[test]
fn every_prefix_and_nesting_gives_the_same_network() -> Result<()> {
    let prefixes = [
        "",
        "net.",
        "flow_loss.net.",
        "diffloss.net.",
        "module.",
        "_orig_mod.",
        "module.net.",
        "_orig_mod.module.flow_loss.net.",
        "module._orig_mod.diffloss.net.",
        "net._orig_mod.module.",
    ];
    for name in ["plain", "cond", "post_norm"] {
        let bare = weights(name);
        let (_dir, path) = written(&bare, &OURS);
        let (net, params) = read(&path, None)?;
        let expected = engine::flat(net.layout(), &bare);
        assert_eq!(params.flat().host()?, expected, "{name}: other values than in the file");
        for prefix in prefixes {
            let renamed = bare.iter().map(|(key, tensor)| (format!("{prefix}{key}"), tensor.clone()));
            let mut renamed: Tensors = renamed.collect();
            renamed.insert("moving_avg".into(), (vec![1], vec![0.5])); // the reference keeps it beside the network
            let (_dir, path) = written(&renamed, &OURS);
            let (other, params) = read(&path, None)?;
            assert_eq!(other.config(), net.config(), "{name} under `{prefix}`");
            assert_eq!(params.flat().host()?, expected, "{name} under `{prefix}`");
        }
    }
    Ok(())
}

#[test]
fn files_of_every_float_type_are_read() -> Result<()> {
    let tensors = weights("plain");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("network.safetensors");
    let half = |x: f64| half::f16::from_f64(x);
    let brain = |x: f64| half::bf16::from_f64(x);
    for dtype in [Dtype::F64, Dtype::F16, Dtype::BF16] {
        let encode = |x: &f64| match dtype {
            Dtype::F64 => x.to_le_bytes().to_vec(),
            Dtype::F16 => half(*x).to_le_bytes().to_vec(),
            _ => brain(*x).to_le_bytes().to_vec(),
        };
        let rounded = |x: &f64| match dtype {
            Dtype::F64 => *x,
            Dtype::F16 => half(*x).to_f64(),
            _ => brain(*x).to_f64(),
        };
        let bytes = tensors.iter().map(|(name, (shape, x))| {
            (name.clone(), dtype, shape.clone(), x.iter().flat_map(encode).collect())
        });
        engine::write_bytes(&path, bytes.collect(), &OURS);
        let (net, params) = read(&path, None)?;
        let values = tensors
            .iter()
            .map(|(name, (shape, x))| (name.clone(), (shape.clone(), x.iter().map(rounded).collect())));
        assert_eq!(params.flat().host()?, engine::flat(net.layout(), &values.collect()), "{dtype:?}");
    }
    Ok(())
}

/// The file's network as it was trained, in f64.
fn theirs(name: &str, time_scale: f64) -> mlp_f64::Mlp {
    let config = Fixture::open(&format!("weights_{name}")).config();
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let config = mlp_f64::Config {
        channels: size("channels"),
        width: size("width"),
        depth: size("depth"),
        cond: size("cond"),
        post_norm: config["post_norm"].as_bool().unwrap(),
        time_scale,
    };
    mlp_f64::Mlp { config, params: weights(name) }
}

#[test]
fn weights_trained_with_noise_at_one_are_turned_round_exactly() -> Result<()> {
    for (name, time_scale) in [("plain", 1.0), ("plain", 3.0), ("post_norm", 1.0), ("cond", 1.0)] {
        let fixture = Fixture::open(&format!("network_{name}"));
        let inputs = Inputs {
            x_t: fixture.values("x_t"),
            t: fixture.values("t"),
            z: super::optional(&fixture, "z"),
            dv: fixture.values("dv"),
        };
        let reversed: Vec<f64> = inputs.t.iter().map(|t| 1.0 - t).collect();
        let oracle = theirs(name, time_scale);
        let (v, saved) = oracle.forward(&inputs.x_t, &reversed, &inputs.z, Modulation::Direct);
        let dx = oracle.backward(&saved, &inputs.dv).dx;
        let negative = |x: Vec<f64>| x.into_iter().map(|x| -x).collect::<Vec<_>>();
        let (v, dx) = (negative(v), negative(dx));

        let scale = time_scale.to_string();
        let scale = ("time_scale", scale.as_str());
        let (_a, unnamed) = written(&weights(name), &[scale]);
        let (_b, naming) = written(&weights(name), &[scale, ("time_convention", "noise_at_one")]);
        for (path, given) in [(unnamed, Some(TimeConvention::NoiseAtOne)), (naming, None)] {
            let (net, params) = read(&path, given)?;
            let found = pass(&net, &params, Form::Direct, Keep::All, &inputs)?;
            let what = format!("{name}, time scale {time_scale}");
            assert_close(&what, &found["v"], &v, super::F32);
            assert_close(&what, &found["dx"], &dx, super::F32);
        }
    }
    Ok(())
}

#[test]
fn a_convention_that_is_unknown_is_never_guessed() {
    let (_dir, unnamed) = written(&weights("plain"), &[]);
    refused(
        read(&unnamed, None),
        &unnamed,
        "time_convention: expected metadata that names it, or a convention given with the file (we refuse to guess), \
         found neither",
    );
    let (_dir, named) = written(&weights("plain"), &OURS);
    let given = Some(TimeConvention::NoiseAtOne);
    refused(read(&named, given), &named, "time_convention: expected noise_at_one, found data_at_one");
    let (_dir, strange) = written(&weights("plain"), &[("time_convention", "data_at_two")]);
    refused(
        read(&strange, None),
        &strange,
        "time_convention: expected data_at_one or noise_at_one, found data_at_two",
    );
}

/// Asserts one clear error: the file first, then exactly `rest`, and exit code 3.
#[track_caller]
fn refused<T>(result: Result<T>, path: &Path, rest: &str) {
    let Err(error) = result else { panic!("accepted, instead of: {rest}") };
    assert!(matches!(error, Error::Data { .. } | Error::NotGiven { .. }), "{error}");
    assert_eq!(error.to_string(), format!("{}: {rest}", path.display()));
    assert_eq!(error.exit_code(), 3);
}

#[test]
fn a_missing_tensor_is_named() {
    let missing = [
        ("input_proj.weight", "a tensor of this name"),
        ("input_proj.bias", "a tensor of shape [24]"),
        ("time_embed.mlp.0.weight", "a tensor of shape [24, 256]"),
        ("res_blocks.0.in_ln.weight", "a tensor of shape [24]"),
        ("res_blocks.1.in_ln.weight", "a tensor of shape [24]"),
        ("res_blocks.1.adaLN_modulation.1.bias", "a tensor of shape [72]"),
        ("final_layer.linear.weight", "a tensor of shape [5, 24]"),
    ];
    for (name, expected) in missing {
        let mut tensors = weights("plain");
        tensors.remove(name).unwrap();
        let (_dir, path) = written(&tensors, &OURS);
        refused(read(&path, None), &path, &format!("{name}: expected {expected}, found none"));
    }
    let mut tensors = weights("plain");
    tensors.retain(|name, _| !name.starts_with("res_blocks."));
    let (_dir, path) = written(&tensors, &OURS);
    refused(
        read(&path, None),
        &path,
        "res_blocks.0.in_ln.weight: expected a tensor of this name, found none",
    );
}

#[test]
fn a_tensor_of_the_wrong_shape_is_named() {
    let wrong: [(&str, &[usize], &str); 5] = [
        ("input_proj.weight", &[120], "a matrix"),
        ("input_proj.bias", &[1, 24], "shape [24]"),
        ("res_blocks.1.mlp.0.weight", &[24, 23], "shape [24, 24]"),
        ("time_embed.mlp.0.weight", &[256, 24], "shape [24, 256]"),
        ("final_layer.adaLN_modulation.1.weight", &[72, 24], "shape [48, 24]"),
    ];
    for (name, shape, expected) in wrong {
        let mut tensors = weights("plain");
        tensors.insert(name.into(), (shape.to_vec(), vec![0.5; shape.iter().product()]));
        let (_dir, path) = written(&tensors, &OURS);
        refused(read(&path, None), &path, &format!("{name}: expected {expected}, found shape {shape:?}"));
    }
    let mut tensors = weights("plain");
    tensors.insert("input_proj.weight".into(), (vec![0, 5], Vec::new()));
    let (_dir, path) = written(&tensors, &OURS);
    refused(
        read(&path, None),
        &path,
        "input_proj.weight: expected at least one row and column, found shape [0, 5]",
    );
}

#[test]
fn a_tensor_too_many_is_named() {
    let mut tensors = weights("plain");
    tensors.insert("net.res_blocks.0.mlp.1.weight".into(), (vec![24], vec![0.0; 24]));
    let (_dir, path) = written(&tensors, &OURS);
    refused(
        read(&path, None),
        &path,
        "res_blocks.0.mlp.1.weight: expected only tensors of this network, found a tensor it does not have",
    );
}

/// Two networks in one file, such as weights and their average: taking either one would be a guess.
#[test]
fn a_name_that_two_prefixes_lead_to_is_refused() {
    let mut tensors = weights("plain");
    let twin = tensors["input_proj.bias"].clone();
    tensors.insert("module.net.input_proj.bias".into(), twin);
    let (_dir, path) = written(&tensors, &OURS);
    refused(
        read(&path, None),
        &path,
        "input_proj.bias: expected one tensor of this name, found several, under different prefixes",
    );
}

#[test]
fn a_tensor_of_integers_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("network.safetensors");
    engine::write_bytes(&path, vec![("input_proj.bias".into(), Dtype::I32, vec![1], vec![0; 4])], &OURS);
    refused(read(&path, None), &path, "input_proj.bias: expected f64, f32, bf16 or f16, found I32");
}

#[test]
fn a_time_scale_that_is_none_is_refused() {
    for text in ["fast", "0", "-1", "NaN", "inf"] {
        let (_dir, path) = written(&weights("plain"), &[OURS[0], ("time_scale", text)]);
        refused(read(&path, None), &path, &format!("time_scale: expected a positive number, found {text}"));
    }
}

#[test]
fn a_file_that_is_torn_or_of_another_kind_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("network.safetensors");
    let whole = std::fs::read(fixture::path("weights_plain")).unwrap();
    for bytes in [&whole[..whole.len() - 1], &whole[..100], b"PK\x03\x04", b""] {
        std::fs::write(&path, bytes).unwrap();
        let error = read(&path, Some(TimeConvention::DataAtOne)).map(drop).unwrap_err();
        let text = error.to_string();
        let start = format!("{}: header: expected a safetensors file, found ", path.display());
        assert!(text.starts_with(&start), "{text}");
        assert_eq!(error.exit_code(), 3);
    }
    let nowhere = dir.path().join("nowhere.safetensors");
    let error = read(&nowhere, None).map(drop).unwrap_err();
    assert!(error.to_string().starts_with(&format!("{}: cannot read: ", nowhere.display())), "{error}");
    assert_eq!(error.exit_code(), 3);
}

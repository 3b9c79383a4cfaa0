//! `flowprior weights`: other people's weights become priors with the same velocity, and what is wrong with a file is said.

#[path = "support/run.rs"]
mod run;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flowprior::nn::dit::DitInput;
use flowprior::nn::{
    Condition, Conditioning, DitConfig, Import, MlpConfig, Params, TimeConvention, VelocityConfig,
    VelocityNet,
};
use flowprior::train::prior::Prior;
use flowprior::{Device, Result, Tensor};
use run::{Outcome, normals, write_rows};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

const MLP: VelocityConfig = VelocityConfig::Mlp(MlpConfig {
    channels: 2,
    width: 24,
    depth: 2,
    cond: 0,
    post_norm: true,
    time_scale: 3.0,
});
const IMAGES: DitConfig = DitConfig {
    input: DitInput::Image { channels: 1, height: 8, width: 4, patch: 2 },
    width: 16,
    depth: 2,
    heads: 2,
    classes: 3,
    null_label: true,
    qk_norm: false,
    learn_sigma: true,
    cond_channels: 0,
    cond_rescale: 0,
    inpaint: false,
    time_scale: 1.0,
};
const TOKENS: DitConfig = DitConfig {
    input: DitInput::Tokens { tokens: 6, channels: 4 },
    classes: 0,
    null_label: false,
    qk_norm: true,
    learn_sigma: false,
    ..IMAGES
};

/// Networks, with what their shapes do not say: for the command and for the library.
fn networks() -> [(VelocityConfig, &'static [&'static str], Import); 3] {
    let given = Import { convention: Some(TimeConvention::NoiseAtOne), ..Import::default() };
    [
        (MLP, &["--time-scale", "3"], Import { time_scale: Some(3.0), ..given }),
        (
            VelocityConfig::Dit { dit: IMAGES },
            &["--heads", "2", "--classes", "3", "--image", "8,4"],
            Import { heads: Some(2), classes: Some(3), image: Some([8, 4]), ..given },
        ),
        (VelocityConfig::Dit { dit: TOKENS }, &["--image", "1,6"], Import { image: Some([1, 6]), ..given }),
    ]
}

/// Tensors by name: shape and values.
type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// The state dict of a network whose every parameter matters.
fn state(config: VelocityConfig) -> Outcome<Tensors> {
    let net = VelocityNet::new(config)?;
    let mut flat = net.layout().initial_values(7);
    let mut shake = vec![0.0; flat.len()];
    normals(&mut shake, 7);
    flat.iter_mut().zip(&shake).for_each(|(w, s)| *w += 0.1 * s);
    let named = |e: &flowprior::nn::params::Entry| {
        (e.name.clone(), e.shape.dims().to_vec(), flat[e.range()].to_vec())
    };
    Ok(net.layout().entries().iter().map(named).collect())
}

/// Writes tensors as others publish them: their names, and no metadata.
fn publish(path: &Path, tensors: &Tensors) -> Outcome<PathBuf> {
    let views: std::result::Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, shape, values)| {
            TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values)).map(|view| (name, view))
        })
        .collect();
    std::fs::write(path, safetensors::serialize(views?, None)?)?;
    Ok(path.to_owned())
}

fn flowprior(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowprior"));
    // The same with and without a card.
    command.args(args).env("FLOWPRIOR_CUDA_DRIVER", "/nowhere/libcuda.so").output().unwrap()
}

fn printed(args: &[&str]) -> String {
    let output = flowprior(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `weights` on a file of the convention of latent flow matching.
fn converted(file: &Path, out: &Path, more: &[&str]) -> Value {
    let (file, out) = (file.to_str().unwrap(), out.to_str().unwrap());
    let own = ["weights", file, "--time-convention", "noise-at-1", "--out", out, "--json"];
    serde_json::from_str(&printed(&[&own[..], more].concat())).unwrap()
}

/// The velocity of three rows at one time.
fn velocity(net: &VelocityNet, params: &Params<f32>, t: f32) -> Result<Vec<f32>> {
    let device = params.flat().device();
    let mut x = vec![0.0; 3 * net.data_width()];
    normals(&mut x, 3);
    let labels = match net.conditioning() {
        Conditioning::Classes { .. } => Some(net.labels(device, &[Some(1), None, Some(2)])?),
        _ => None,
    };
    let cond = Condition { labels: labels.as_ref(), ..Condition::default() };
    let x = Tensor::from_f32(device, [3, net.data_width()], &x)?;
    net.velocity_at(params, x, &Tensor::from_f32(device, [1], &[t])?, cond)?.to_f32_vec()
}

#[test]
fn a_prior_of_published_weights_has_the_velocity_of_the_library_s_import() -> Outcome {
    let (dir, device) = (tempfile::tempdir()?, Device::cpu()?);
    for (config, given, import) in networks() {
        let file = publish(&dir.path().join("published.safetensors"), &state(config)?)?;
        let out = dir.path().join("prior.safetensors");
        let found = converted(&file, &out, given);
        let (net, params) = VelocityNet::from_safetensors::<f32>(&device, &file, &import)?;
        let (kind, sizes) = match config {
            VelocityConfig::Mlp(mlp) => ("mlp", json!(mlp)),
            VelocityConfig::Dit { dit } => ("dit", json!(dit)),
        };
        let (parameters, out_name) = (net.layout().count(), out.to_str());
        let expected = json!({
            "kind": kind, "sizes": sizes, "parameters": parameters, "time_convention": "noise_at_one", "out": out_name,
        });
        assert_eq!(found, expected);
        let prior = Prior::<f32>::read(&device, &out, Import::default())?;
        assert_eq!((prior.net.config(), net.config()), (config, config));
        assert_eq!(prior.params.flat().host()?, params.flat().host()?, "{kind}");
        // The weights as they are, at the time that theirs calls 1 − t.
        let raw = Import { convention: Some(TimeConvention::DataAtOne), ..import };
        let (raw, raw_params) = VelocityNet::from_safetensors::<f32>(&device, &file, &raw)?;
        for t in [0.0, 0.3, 1.0] {
            let v = velocity(&prior.net, &prior.params, t)?;
            assert_eq!(v, velocity(&net, &params, t)?, "{kind} at {t}");
            let theirs = velocity(&raw, &raw_params, 1.0 - t)?;
            let range = theirs.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
            assert!(v.iter().zip(&theirs).all(|(a, b)| (a + b).abs() < 1e-4 * range), "{kind} at {t}");
        }
        // Its own file says all of it.
        let again = dir.path().join("again.safetensors");
        printed(&["weights", out.to_str().unwrap(), "--out", again.to_str().unwrap()]);
        assert_eq!(std::fs::read(&again)?, std::fs::read(&out)?, "{kind}");
    }
    Ok(())
}

#[test]
fn commands_take_the_prior_as_it_is() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let made: Vec<String> = (0..)
        .zip(networks())
        .map(|(i, (config, given, _))| {
            let file = publish(&dir.path().join("published.safetensors"), &state(config)?)?;
            let prior = path(&format!("{i}.safetensors"));
            converted(&file, Path::new(&prior), given);
            Ok(prior)
        })
        .collect::<Outcome<_>>()?;
    let samples = path("samples.npy");
    for (prior, width) in made.iter().zip([2, 32, 24]) {
        let made = printed(&["sample", prior, "--count", "6", "--steps", "2", "--out", &samples, "--json"]);
        let made: Value = serde_json::from_str(&made)?;
        assert_eq!((&made["count"], &made["width"]), (&6.into(), &width.into()), "{made}");
    }
    printed(&[
        "sample",
        &made[1],
        "--class",
        "2",
        "--guidance",
        "2",
        "--count",
        "2",
        "--steps",
        "2",
        "--out",
        &samples,
    ]);
    let mut rows = vec![0.0; 2 * 16];
    normals(&mut rows, 5);
    let data = write_rows(&dir.path().join("rows"), &rows, 2, 16)?.display().to_string();
    printed(&["likelihood", &made[0], "--data", &data, "--steps", "2"]);
    let sets = ["--preset", "toy-moons", "--prior", &made[0], "--set", "align.latents=8"];
    printed(&[&["plan", "--stage", "align"], &sets[..]].concat());
    printed(&[&["align", "--steps", "2", "--quiet", "--run", &path("aligned")], &sets[..]].concat());
    Ok(())
}

#[test]
fn averages_are_taken_unless_a_prefix_is_asked_for() -> Outcome {
    let (dir, device) = (tempfile::tempdir()?, Device::cpu()?);
    let bare = state(VelocityConfig::Dit { dit: TOKENS })?;
    let under = |prefix: &str, factor: f32| -> Tensors {
        let renamed = |(name, shape, values): &(String, Vec<usize>, Vec<f32>)| {
            (format!("{prefix}{name}"), shape.clone(), values.iter().map(|x| factor * x).collect())
        };
        bare.iter().map(renamed).collect()
    };
    let all = [under("model.module.", 1.0), under("ema.", 2.0), under("generator.ema.", 3.0)].concat();
    let out = dir.path().join("prior.safetensors");
    let first = |tensors: &[Tensors], more: &[&str]| -> Outcome<f32> {
        let file = publish(&dir.path().join("published.safetensors"), &tensors.concat())?;
        converted(&file, &out, &[&["--image", "1,6"], more].concat());
        let prior = Prior::<f32>::read(&device, &out, Import::default())?;
        Ok(prior.params.named("x_embedder.bias")?.to_f32_vec()?[0])
    };
    let bias = bare.iter().find(|t| t.0 == "x_embedder.bias").ok_or("no bias")?.2[0];
    let all = [all];
    assert_eq!(first(&all, &[])?, 2.0 * bias);
    assert_eq!(first(&all, &["--prefix", "model."])?, bias);
    assert_eq!(first(&all, &["--prefix", "generator."])?, 3.0 * bias);
    Ok(())
}

#[test]
fn what_is_missing_contradicted_or_damaged_is_one_sentence() -> Outcome {
    let dir = tempfile::tempdir()?;
    let whole = state(VelocityConfig::Dit { dit: IMAGES })?;
    let published = dir.path().join("published.safetensors");
    let (file, out) = (published.to_str().ok_or("no text")?, dir.path().join("prior.safetensors"));
    let refused = |tensors: &Tensors, args: &[&str], code: i32, words: &str| -> Outcome {
        publish(&published, tensors)?;
        let output = flowprior(&[&["weights", file, "--out", out.to_str().unwrap()], args].concat());
        let message = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.contains(words), "`{words}` is not in {message}");
        assert!(output.stdout.is_empty() && !out.exists(), "{message}");
        // clap's own errors show the usage, too.
        assert!(words.starts_with("invalid value") || message.lines().count() == 1, "{message}");
        Ok(())
    };
    let all = ["--time-convention", "noise-at-1", "--heads", "2", "--classes", "3", "--image", "8,4"];
    let without = |option: &str| -> Vec<&str> {
        all.chunks(2).filter(|pair| pair[0] != option).flatten().copied().collect()
    };
    let with = |option: &'static str, value: &'static str| [&without(option)[..], &[option, value]].concat();
    let lacking = |option: &str, words: &str| refused(&whole, &without(option), 2, words);
    lacking("--time-convention", "(we refuse to guess), found neither; give it with --time-convention")?;
    lacking("--heads", "found none, for 2 blocks of width 16; give it with --heads")?;
    lacking("--classes", "is the last \"no class\"?, found none; give it with --classes")?;
    lacking("--image", "image: expected a position embedding, or height and width given with the file")?;
    let wrong = |option, value, code, words: &str| refused(&whole, &with(option, value), code, words);
    wrong("--time-convention", "noise-at-2", 2, "invalid value 'noise-at-2'")?;
    wrong("--image", "8", 2, "--image `8`: expected H,W")?;
    wrong("--time-scale", "-1", 2, "--time-scale must be a positive number")?;
    wrong("--classes", "7", 3, "expected 7 rows, or one more for no class, found 4 rows")?;
    wrong("--heads", "3", 3, "heads of an even width")?;
    wrong("--prefix", "net.", 3, "tensors: expected names under `net.`, found `blocks.0.adaLN")?;
    let mut tensors = whole.clone();
    tensors.push(("blocks.0.attn.gate".into(), vec![1], vec![0.5]));
    refused(&tensors, &all, 3, "blocks.0.attn.gate: expected only tensors of this network")?;
    let bias = tensors.iter_mut().find(|t| t.0 == "final_layer.linear.bias").ok_or("no bias")?;
    (bias.1, bias.2) = (vec![7], vec![0.5; 7]);
    refused(&tensors, &all, 3, "final_layer.linear.bias: expected shape [8], found shape [7]")?;
    let unknown: Tensors =
        whole.iter().map(|t| (format!("unet.{}", t.0), t.1.clone(), t.2.clone())).collect();
    let words = "tensors: expected the names of a DiT (`x_embedder.…`) or of the reference's MLP (`input_proj.…`), found `unet.blocks.0.";
    refused(&unknown, &all, 3, words)?;
    // An MLP has no heads; a file that says something is not contradicted.
    let mlp = state(MLP)?;
    refused(&mlp, &all[..4], 3, "heads: expected 2, as given with the file, found none: an MLP has none")?;
    let ours = dir.path().join("ours.safetensors");
    converted(&publish(&published, &whole)?, &ours, &all[2..]);
    let bytes = std::fs::read(&ours)?;
    let contradicted = |args: &[&str], words: &str| -> Outcome {
        let output =
            flowprior(&[&["weights", ours.to_str().unwrap(), "--out", out.to_str().unwrap()], args].concat());
        let message = String::from_utf8(output.stderr)?;
        assert!(output.status.code() == Some(3) && message.contains(words), "{message}");
        Ok(())
    };
    contradicted(&["--time-convention", "noise-at-1"], "expected noise_at_one, found data_at_one")?;
    contradicted(&["--heads", "4"], "heads: expected 4, as given with the file, found 2")?;
    contradicted(&["--classes", "4"], "classes: expected 4, as given with the file, found 3")?;
    contradicted(&["--image", "4,8"], "image: expected 4 × 8, as given with the file, found 8 × 4")?;
    contradicted(&["--time-scale", "1000"], "time_scale: expected 1000, as given with the file, found 1")?;
    assert_eq!(std::fs::read(&ours)?, bytes);
    Ok(())
}

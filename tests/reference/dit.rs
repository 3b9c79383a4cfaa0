//! The DiT: velocity, loss, every gradient, ten AdamW steps, with and without labels; and its weights in other people's files.

use std::path::Path;

use flowprior::flow::objective::Velocity;
use flowprior::flow::{Batch, Draws, Objective, Reduction, Times, Want, Weight};
use flowprior::nn::dit::{POSITION, SIZES};
use flowprior::nn::{
    Condition, Conditioning, Dit, Form, Grads, Import, Keep, Params, TimeConvention, VelocityConfig,
    VelocityNet,
};
use flowprior::ops::embedding::{LabelDrop, Labels};
use flowprior::ops::flow_loss::{Target, flow_loss_backward};
use flowprior::ops::flow_path::{Rows, TimeSampler, draw_times, interpolate};
use flowprior::ops::optimizer::Rounding;
use flowprior::rng::{Draw, Stream};
use flowprior::train::engine::Engine;
use flowprior::train::pretrain::Pretrain;
use flowprior::train::{Config, Stage};
use flowprior::{Device, FloatX, Result, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::json;

use super::engine::{self, Outputs, device, isas, matrix, outputs_of, wide};
use super::fixture::{Fixture, Tensors, assert_close, relative_error};
use super::{F32, ROWS, assert_all_close, config, engine_from, integer, named, optional, order};

const CASES: [&str; 5] = ["dit_plain", "dit_labels", "dit_variants", "dit_tokens", "dit_map"];

/// The settings of a case as keys of a configuration.
fn settings(case: &Fixture) -> Vec<String> {
    let c = case.config();
    let keys = ["heads", "classes", "qk_norm", "learn_sigma", "cond_channels", "cond_rescale", "time_scale"];
    // Cases from before there was a key do not have it.
    let set = keys.iter().filter(|key| !c[**key].is_null());
    let mut sets: Vec<String> = set.map(|key| format!("model.{key}={}", c[*key])).collect();
    sets.push("model.kind=dit".into());
    match c["tokens"][0].as_u64() {
        Some(tokens) => sets.push(format!("model.tokens={tokens}")),
        None => {
            sets.push(format!("model.image={}", c["image"]));
            sets.push(format!("model.patch={}", c["patch"]));
        }
    }
    let dropout = c["label_dropout"].as_f64().unwrap();
    sets.push(format!("model.label_dropout={dropout:?}"));
    sets
}

fn configured(case: &Fixture, more: &[String]) -> Result<Config> {
    config(Stage::Pretrain, case, "adamw", &[&settings(case)[..], more].concat())
}

/// Writes the weights of a case as a file whose sizes stand in its shapes and metadata, `more` of it.
fn file(dir: &Path, tensors: &Tensors, more: &[(&str, &str)]) -> std::path::PathBuf {
    let path = dir.join("dit.safetensors");
    engine::write(&path, tensors, more);
    path
}

fn import(case: &Fixture) -> Import {
    let c = case.config();
    let classes = Some(integer(case, "classes")).filter(|classes| *classes > 0);
    let image = c["image"].as_array().map(|image| [1, 2].map(|i| image[i].as_u64().unwrap() as usize));
    let tokens = c["tokens"][0].as_u64().map(|tokens| [1, tokens as usize]);
    Import {
        convention: Some(TimeConvention::DataAtOne),
        time_scale: c["time_scale"].as_f64().map(|scale| scale as f32),
        heads: Some(integer(case, "heads")),
        classes,
        image: image.or(tokens),
    }
}

fn network<X: FloatX>(device: &Device, case: &Fixture) -> Result<(VelocityNet, Params<X>)> {
    let dir = tempfile::tempdir().unwrap();
    // Shapes do not tell a spatial condition under learn_sigma or a rescaler; all other sizes of all cases are in them, or given.
    let rescaled = case.config()["cond_rescale"].as_u64().is_some_and(|channels| channels > 0);
    let sizes = (rescaled || case.config()["learn_sigma"].as_bool().unwrap()).then(|| sizes(case));
    let metadata: Vec<_> = sizes.iter().map(|sizes| (SIZES, sizes.as_str())).collect();
    let path = file(dir.path(), &case.prefixed("weight."), &metadata);
    VelocityNet::from_safetensors(device, &path, &import(case))
}

/// The sizes of a case of images, as our own files have them.
fn sizes(case: &Fixture) -> String {
    let mut c = case.config();
    let [channels, height, width] = [0, 1, 2].map(|i| c["image"][i].clone());
    c["input"] =
        json!({ "image": { "channels": channels, "height": height, "width": width, "patch": c["patch"] } });
    let known = |key: &str| {
        let others = ["input", "width", "depth", "heads", "classes", "null_label", "qk_norm", "learn_sigma"];
        others.contains(&key) || ["cond_channels", "cond_rescale", "time_scale"].contains(&key)
    };
    c.as_object_mut().unwrap().retain(|key, _| known(key));
    c.to_string()
}

/// What a batch of a case is told beside its data.
struct Told<X: FloatX> {
    labels: Option<Labels>,
    image: Option<Tensor<X>>,
}

impl<X: FloatX> Told<X> {
    fn new(device: &Device, case: &Fixture) -> Result<Self> {
        let numbers: Vec<u32> = optional(case, "labels").iter().map(|label| *label as u32).collect();
        let labels = match numbers.is_empty() {
            true => None,
            false => Some(Labels::new(device, &numbers, integer(case, "classes"))?),
        };
        let values = optional(case, "beside");
        let image = match values.is_empty() {
            true => None,
            false => Some(matrix(device, values.len() / ROWS, &values)?),
        };
        Ok(Self { labels, image })
    }

    fn condition(&self) -> Condition<'_, X> {
        Condition { vectors: None, labels: self.labels.as_ref(), image: self.image.as_ref() }
    }
}

fn objective(case: &Fixture, recompute: bool) -> Objective {
    Objective {
        samples: ROWS,
        flow_mul: integer(case, "flow_mul"),
        times: Times::Uniform,
        time_range: (0.0, 1.0),
        weight: Weight::Uniform,
        control_variate: false,
        reduction: Reduction::MeanAll,
        form: Form::Direct,
        label_dropout: case.config()["label_dropout"].as_f64().unwrap() as f32,
        recompute,
    }
}

fn check<X: FloatX>(tolerance: f64) -> Result<()> {
    for case in CASES {
        let fixture = Fixture::open(case);
        let seed = integer(&fixture, "seed") as u64;
        for isa in isas() {
            let device = device(Some(isa))?;
            let (net, params) = network::<X>(&device, &fixture)?;
            let data = matrix(&device, net.data_width(), &fixture.values("data"))?;
            let told = Told::new(&device, &fixture)?;
            let what = format!("{case}, {}, {isa:?}", X::DTYPE);
            let velocity = Velocity { net: &net, params: &params, tables: None };
            let batch = Batch { data: &data, cond: told.condition(), first: 0 };
            let draws = Draws::training(seed, 0);
            let evaluated = |recompute| -> Result<_> {
                let mut grads = Grads::zeros(&device, net.layout().clone());
                let want = Want::Params(&mut grads);
                let outcome = objective(&fixture, recompute).evaluate(velocity, batch, draws, 1.0, want)?;
                Ok((outcome.loss()?, outputs_of(&grads)?))
            };
            let (loss, grads) = evaluated(false)?;
            assert_close(&what, &[loss], &[fixture.scalar("loss")], tolerance);
            let (expected, layout) = (fixture.prefixed("grad."), net.layout());
            assert!(layout.entries().iter().map(|e| &e.name).all(|name| expected.contains_key(name)));
            assert_all_close(&what, &without_constants(&grads, &expected, tolerance), &expected, tolerance);
            assert_eq!(evaluated(true)?, (loss, grads), "{what}: computed again, it is another gradient");
            let without = objective(&fixture, false).evaluate(velocity, batch, draws, 1.0, Want::Loss)?;
            assert_eq!(without.loss()?, loss, "{what}: the loss alone is another one");
            passes(&what, velocity, &fixture, &data, told.condition(), tolerance)?;
        }
    }
    Ok(())
}

/// Says which values of a parameter are added to all keys alike. That moves all scores of a query by the same, so their gradient
/// is 0 but for rounding.
pub fn constants(case: &Tensors, name: &str) -> std::ops::Range<usize> {
    let length = case[name].1.len();
    let normed = case.keys().any(|name| name.ends_with("k_norm.bias"));
    match name {
        name if name.ends_with("attn.k_norm.bias") => 0..length,
        name if name.ends_with("attn.qkv.bias") && !normed => length / 3..2 * length / 3,
        _ => 0..0,
    }
}

/// Returns gradients in which those of constants are PyTorch's, having checked that ours are as small as rounding is.
pub fn without_constants(found: &Outputs, expected: &Tensors, tolerance: f64) -> Outputs {
    let mut found = found.clone();
    for (name, values) in &mut found {
        let near = name.replace("k_norm.bias", "k_norm.weight");
        let range = expected[&near].1.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        for i in constants(expected, name) {
            assert!(values[i].abs() <= tolerance * range, "{name}: {} of {range}", values[i]);
            values[i] = expected[name].1[i];
        }
    }
    found
}

/// Checks v and dx_t of a frozen network, which keeps only what those need.
fn passes<X: FloatX>(
    what: &str,
    velocity: Velocity<'_, X>,
    case: &Fixture,
    data: &Tensor<f32>,
    cond: Condition<'_, X>,
    tolerance: f64,
) -> Result<()> {
    let Velocity { net, params, .. } = velocity;
    let (device, seed) = (data.device(), integer(case, "seed") as u64);
    let draw = |stream| Draw::new(seed, stream, 0);
    let rows = Rows { replicas: integer(case, "flow_mul"), ..Rows::plain(ROWS) };
    let t = draw_times(device, draw(Stream::Time), rows, TimeSampler::Uniform, (0.0, 1.0))?;
    let x_t: Tensor<X> = interpolate(data, &t, draw(Stream::Noise), rows)?;
    let probability = case.config()["label_dropout"].as_f64().unwrap() as f32;
    let drop = Some(LabelDrop { probability, draw: draw(Stream::LabelDrop) });
    let modulations = net.modulations(params, Form::Direct, &t, rows, cond, drop)?;
    let image = cond.image.map(|image| flowprior::nn::velocity::tiled(image, rows.replicas)).transpose()?;
    let input = flowprior::nn::velocity::Input { x_t, image };
    let (v, saved) = net.forward(params, input, modulations, Keep::Inputs)?;
    assert_close(&format!("{what}: v"), &wide(&v.to_f32_vec()?), &case.values("v"), tolerance);
    let noise = draw(Stream::Noise);
    let target =
        Target { data, t: &t, noise, rows, weight: Weight::Uniform, control_variate: false, centred: false };
    let scale = (2.0 / v.len() as f64) as f32;
    let (_, dv) = flow_loss_backward(&v, &target, scale)?;
    let dx = net.backward(params, saved.unwrap(), &dv, None)?;
    assert_close(&format!("{what}: dx"), &wide(&dx.to_f32_vec()?), &case.values("dx"), tolerance);
    Ok(())
}

#[test]
fn velocity_loss_and_every_gradient_are_pytorchs_on_every_instruction_set() -> Result<()> {
    check::<f32>(F32)
}

#[test]
fn velocity_loss_and_every_gradient_are_pytorchs_to_the_precision_of_bf16() -> Result<()> {
    // 1e-1, not the 2e-2 of single operations: a width of 8, and norms over heads of 4 columns, average little of what each of some
    // twenty roundings adds. f16, eight times finer, stays below 8e-3: it is the rounding of storage.
    check::<bf16>(1e-1)
}

#[test]
fn velocity_loss_and_every_gradient_are_pytorchs_to_the_precision_of_f16() -> Result<()> {
    check::<f16>(8e-3)
}

fn expect_end(what: &str, case: &Fixture, curves: &[Vec<f64>; 2], engine: &Engine<f32>) -> Result<()> {
    for (name, curve) in ["losses", "grad_norms"].iter().zip(curves) {
        assert_close(&format!("{what}: {name}"), curve, &case.values(name), F32);
    }
    let params = &engine.optimizer.params;
    let mut found = named(params.layout(), params.flat())?;
    let expected = case.prefixed("param.");
    // Adam makes steps even of rounding.
    let most = integer(case, "steps") as f64 * case.config()["lr"].as_f64().unwrap();
    for (name, values) in &mut found {
        for i in constants(&expected, name) {
            assert!((values[i] - expected[name].1[i]).abs() <= most, "{what}: {name}");
            values[i] = expected[name].1[i];
        }
    }
    assert_all_close(what, &found, &expected, F32);
    Ok(())
}

#[test]
fn ten_adamw_steps_end_at_pytorchs_parameters() -> Result<()> {
    for case in CASES {
        let fixture = Fixture::open(case);
        let device = device(None)?;
        let (net, params) = network::<f32>(&device, &fixture)?;
        let config = configured(&fixture, &[])?;
        let mut engine = engine_from(&config, &params, &fixture.prefixed("weight."))?;
        let data = matrix(&device, net.data_width(), &fixture.values("data"))?;
        let told = Told::new(&device, &fixture)?;
        let mut grads = Grads::zeros(&device, net.layout().clone());
        let mut curves = [Vec::new(), Vec::new()];
        for step in 0..integer(&fixture, "steps") as u64 {
            grads.clear()?;
            let velocity = Velocity { net: &net, params: &engine.optimizer.params, tables: None };
            let batch = Batch { data: &data, cond: told.condition(), first: 0 };
            let draws = Draws::training(config.seed, step);
            let want = Want::Params(&mut grads);
            let outcome = objective(&fixture, false).evaluate(velocity, batch, draws, 1.0, want)?;
            curves[0].push(outcome.loss()?);
            curves[1].push(flowprior::ops::grad_norm::grad_norm(grads.flat(), 1.0)?);
            engine.optimizer.step(&grads, config.optim.lr as f32, 1.0, Rounding::Nearest)?;
        }
        expect_end(case, &fixture, &curves, &engine)?;
    }
    Ok(())
}

/// Writes a data set from which every batch of a run is the case's, in this order, labels included.
fn data_set(dir: &Path, case: &Fixture) -> Result<String> {
    let (rows, labels) = (case.values("data"), optional(case, "labels"));
    let (batches, width) = (integer(case, "steps"), rows.len() / ROWS);
    let order = order(integer(case, "seed") as u64, batches)?;
    let (mut stored, mut numbers) = (vec![0f32; rows.len() * batches], vec![0i64; ROWS * batches]);
    for (position, row) in order.into_iter().enumerate() {
        let own = position % ROWS;
        let values = rows[own * width..][..width].iter().map(|x| *x as f32);
        stored[row * width..][..width].iter_mut().zip(values).for_each(|(y, x)| *y = x);
        numbers[row] = labels.get(own).map_or(0, |label| *label as i64);
    }
    let path = dir.join("data.safetensors");
    let bytes = |stored: &[f32]| stored.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    let mut tensors = vec![("features".to_owned(), Dtype::F32, vec![ROWS * batches, width], bytes(&stored))];
    if !labels.is_empty() {
        let bytes = numbers.iter().flat_map(|label| label.to_le_bytes()).collect();
        tensors.push(("labels".to_owned(), Dtype::I64, vec![ROWS * batches], bytes));
    }
    engine::write_bytes(&path, tensors, &[]);
    Ok(format!("data.path='{}'", path.display()))
}

#[test]
fn ten_steps_of_a_training_run_end_at_pytorchs_parameters_whatever_its_micro_batches() -> Result<()> {
    for case in ["dit_plain", "dit_labels", "dit_tokens"] {
        let fixture = Fixture::open(case);
        let dir = tempfile::tempdir().unwrap();
        for more in ["train.micro_batches=1", "train.micro_batches=13", "train.recompute=true"] {
            let data = data_set(dir.path(), &fixture)?;
            let config = configured(&fixture, &[data, more.to_owned()])?;
            let (mut task, fresh) = Pretrain::new::<f32>(&config, &device(None)?)?;
            let like = &fresh.optimizer.params;
            let mut engine = engine_from(&config, like, &fixture.prefixed("weight."))?;
            let mut curves = [Vec::new(), Vec::new()];
            for _ in 0..integer(&fixture, "steps") {
                let report = engine.advance_and_look(&mut task)?;
                curves[0].push(report.losses.loss);
                curves[1].push(report.grad_norm);
            }
            expect_end(&format!("{case}, {more}"), &fixture, &curves, &engine)?;
        }
    }
    Ok(())
}

/// One label for each sample, as velocities under it are asked for.
fn velocity_of(net: &VelocityNet, params: &Params<f32>, t: f64, label: Option<u32>) -> Result<Vec<f64>> {
    let device = params.flat().device();
    let (d, n) = (net.data_width(), 3);
    let x: Vec<f64> = (0..n * d).map(|i| (0.37 * i as f64).sin()).collect();
    let labels =
        net.labels(device, &vec![label; n]).ok().filter(|_| net.conditioning() != Conditioning::Nothing);
    let cond = Condition { labels: labels.as_ref(), ..Condition::default() };
    let t = Tensor::from_f32(device, [1], &[t as f32])?;
    let v = net.velocity_at(params, matrix(device, d, &x)?, &t, cond)?;
    Ok(wide(&v.to_f32_vec()?))
}

#[test]
fn weights_load_under_every_prefix_and_averages_go_before() -> Result<()> {
    let fixture = Fixture::open("dit_labels");
    let bare = fixture.prefixed("weight.");
    let (net, params) = network::<f32>(&device(None)?, &fixture)?;
    let VelocityNet::Dit(dit) = &net else { panic!("not a DiT") };
    let expected = params.flat().host()?;
    for prefix in ["", "module.", "_orig_mod.", "model.", "ema.", "model._orig_mod.module.", "ema.module."] {
        let dir = tempfile::tempdir().unwrap();
        let mut renamed: Tensors =
            bare.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect();
        let position = wide(dit.position());
        renamed.insert(format!("{prefix}{POSITION}"), (vec![1, 6, 8], position));
        if prefix == "ema." {
            renamed.extend(bare.iter().map(|(name, (shape, x))| {
                (format!("model.{name}"), (shape.clone(), x.iter().map(|x| 2.0 * x).collect()))
            }));
        }
        let path = file(dir.path(), &renamed, &[]);
        let (_, params) = VelocityNet::from_safetensors::<f32>(&device(None)?, &path, &import(&fixture))?;
        assert_eq!(params.flat().host()?, expected, "under `{prefix}`");
    }
    Ok(())
}

#[test]
fn weights_trained_with_noise_at_one_give_minus_v_at_one_minus_t() -> Result<()> {
    for case in ["dit_plain", "dit_labels", "dit_tokens"] {
        let fixture = Fixture::open(case);
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), &fixture.prefixed("weight."), &[]);
        let read = |convention| {
            let import = Import { convention, ..import(&fixture) };
            VelocityNet::from_safetensors::<f32>(&device(None)?, &path, &import)
        };
        let (ours, params) = read(Some(TimeConvention::DataAtOne))?;
        let (theirs, turned) = read(Some(TimeConvention::NoiseAtOne))?;
        for t in [0.0, 0.3, 1.0] {
            let plain = velocity_of(&ours, &params, 1.0 - t, Some(1))?;
            let found = velocity_of(&theirs, &turned, t, Some(1))?;
            assert!(
                relative_error(&found, &plain.iter().map(|v| -v).collect::<Vec<_>>()) < 1e-5,
                "{case} {t}"
            );
        }
        let message = read(None).unwrap_err().to_string();
        assert!(message.contains("we refuse to guess"), "{message}");
    }
    Ok(())
}

#[test]
fn what_shapes_do_not_say_is_asked_for() -> Result<()> {
    let fixture = Fixture::open("dit_labels");
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = fixture.prefixed("weight.");
    let refused = |tensors: &Tensors, import: &Import| {
        let path = file(dir.path(), tensors, &[]);
        Dit::from_safetensors::<f32>(&device(None).unwrap(), &path, import).unwrap_err().to_string()
    };
    let whole = import(&fixture);
    let cases = [
        (Import { heads: None, ..whole }, "heads: expected a number given with the file"),
        (Import { classes: None, ..whole }, "are its 4 rows all classes, or is the last \"no class\"?"),
        (Import { classes: Some(7), ..whole }, "expected 7 rows, or one more for no class, found 4 rows"),
        (Import { image: None, ..whole }, "image: expected a position embedding, or height and width"),
        (Import { heads: Some(3), ..whole }, "heads of an even width"),
    ];
    for (import, words) in cases {
        let message = refused(&tensors, &import);
        assert!(message.contains(words), "{message}");
    }
    tensors.insert(POSITION.into(), (vec![1, 6, 8], vec![0.5; 48]));
    let message = refused(&tensors, &whole);
    assert!(message.contains("the fixed sines and cosines"), "{message}");
    tensors.insert(POSITION.into(), (vec![1, 7, 8], vec![0.5; 56]));
    let message = refused(&tensors, &whole);
    assert!(message.contains("pos_embed: expected shape [1, 6, 8], found shape [1, 7, 8]"), "{message}");
    // Its own sizes make a file complete.
    tensors.remove(POSITION);
    let VelocityConfig::Dit { dit } = network::<f32>(&device(None)?, &fixture)?.0.config() else {
        panic!("not a DiT")
    };
    let sizes = serde_json::to_string(&dit).unwrap();
    let path = file(dir.path(), &tensors, &[(SIZES, &sizes), ("time_convention", "data_at_one")]);
    let (net, _) = VelocityNet::from_safetensors::<f32>(&device(None)?, &path, &Import::default())?;
    assert_eq!(net.config(), VelocityConfig::Dit { dit });
    Ok(())
}

#[test]
fn labels_that_the_network_does_not_have_are_refused() -> Result<()> {
    let of = |case: &str| network::<f32>(&device(None)?, &Fixture::open(case));
    let (labels, plain, certain) = (of("dit_labels")?.0, of("dit_plain")?.0, of("dit_variants")?.0);
    let device = device(None)?;
    let refused = |net: &VelocityNet, label| net.labels(&device, &[label]).unwrap_err().to_string();
    assert_eq!(refused(&labels, Some(3)), "class 3 was asked for, but the network has 3 classes");
    assert_eq!(refused(&plain, Some(0)), "labels were given, but the network has no classes");
    assert!(refused(&certain, None).contains("no label for \"no class\""));
    assert!(labels.labels(&device, &[None, Some(2)]).is_ok());
    Ok(())
}

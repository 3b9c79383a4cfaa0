//! Training on the CUDA device, through the program: it follows the CPU, checkpoints move between the devices, and what is missing
//! is said.

#[path = "../support/emulator.rs"]
mod emulator;
#[path = "../support/run.rs"]
mod run;
mod transformers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flowprior::device::cuda::{Nvrtc, Source};
use flowprior::flow::objective::Velocity;
use flowprior::flow::{Batch, Draws, LatentGradient, Objective, Want};
use flowprior::nn::{Condition, Grads, Keep, Params};
use flowprior::ops::elementwise::axpy;
use flowprior::ops::flow_loss::{Target, flow_loss_backward, latent_gradient};
use flowprior::ops::flow_path::{Rows, TimeSampler, draw_times, interpolate};
use flowprior::ops::optimizer::Rounding;
use flowprior::rng::{Draw, Stream};
use flowprior::train::checkpoint;
use flowprior::train::pretrain::Pretrain;
use flowprior::{Device, FloatX, Tensor};
use half::bf16;
use run::{Kind, Outcome, assert_same, normals, random_prior, records, series, tensors};

/// A small run: launches are what costs here, not rows.
const SMALL: &[&str] = &["train.batch=32", "align.latents=32", "flow.flow_mul=1", "threads=1"];

/// Trains in `dir` on a device; panics with what it said if it does not end well.
fn train(kind: Kind, prior: &Path, dir: &Path, sets: &[&str]) -> Outcome {
    let output = program(kind, prior, dir, sets)?.output()?;
    assert!(output.status.success(), "{kind:?} {sets:?}: {}", words(&output));
    Ok(())
}

fn program(kind: Kind, prior: &Path, dir: &Path, sets: &[&str]) -> Outcome<Command> {
    let prior = (kind != Kind::Pretrain).then_some(prior);
    let config = kind.config(prior, &[SMALL, sets].concat())?;
    fs::create_dir_all(dir)?;
    let file = dir.with_extension("toml");
    fs::write(&file, config.to_toml()?)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowprior"));
    command.arg(kind.stage().name()).arg("--config").arg(file).arg("--run").arg(dir);
    command.args(["--resume", "auto", "--quiet"]);
    emulator::lend(&mut command);
    Ok(command)
}

fn words(output: &Output) -> String {
    let words = String::from_utf8_lossy(&output.stderr);
    words.lines().filter(|line| !line.starts_with("cuda-emulator: cuModuleLoadData")).collect()
}

fn losses(dir: &Path) -> Outcome<Vec<f64>> {
    Ok(series(dir, "train", "loss")?.into_iter().map(|(_, loss)| loss).collect())
}

#[test]
fn two_hundred_steps_follow_the_cpu() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    for kind in [Kind::Pretrain, Kind::Latents, Kind::Autoencoder] {
        let of = |device: &str, dtype: &str| -> Outcome<Vec<f64>> {
            let place = dir.path().join(format!("{kind:?}-{device}-{dtype}"));
            let (device, dtype) = (format!("device={device}"), format!("dtype={dtype}"));
            train(kind, &prior, &place, &[&device, &dtype, "train.steps=200"])?;
            losses(&place)
        };
        let (cpu, cuda) = (of("cpu", "f32")?, of("cuda", "f32")?);
        assert_eq!((cpu.len(), cuda.len()), (200, 200));
        let distance = |(a, b): (&f64, &f64)| (a - b).abs() / a.abs();
        let furthest = cpu.iter().zip(&cuda).map(distance).fold(0.0, f64::max);
        println!("{kind:?}, f32: at most {furthest:.1e} of the loss apart in 200 steps");
        assert!(furthest <= 2e-4, "{kind:?}: {furthest}");
        let narrow = of("cuda", "bf16")?;
        let mean = |losses: &[f64]| losses[100..].iter().sum::<f64>() / 100.0;
        let apart = (mean(&narrow) - mean(&cpu)).abs() / mean(&cpu);
        if kind == Kind::Pretrain {
            let of = |name: &str, sets: &[&str]| -> Outcome<Vec<f64>> {
                train(kind, &prior, &dir.path().join(name), sets)?;
                losses(&dir.path().join(name))
            };
            let (cpu, rounded) = (of("24", &["device=cpu"])?, of("tf32", &["device=cuda", "tf32=true"])?);
            let furthest = cpu.iter().zip(&rounded).map(distance).fold(0.0, f64::max);
            println!("{kind:?}, tf32: at most {furthest:.1e} of the loss apart in 24 steps");
            assert!(furthest > 1e-7 && furthest <= 2e-3, "tf32: {furthest}");
        }
        println!("{kind:?}, bf16: mean loss of the last 100 steps {apart:.1e} apart");
        assert!(apart <= 0.02, "{kind:?}: {apart}");
    }
    Ok(())
}

/// Evaluates the objective by the operations that it fuses, one after the other; returns the loss and the gradient of the latents.
fn plain<X: FloatX>(
    objective: &Objective,
    velocity: Velocity<'_, X>,
    data: &Tensor<f32>,
    step: u64,
    grads: Option<&mut Grads>,
) -> Outcome<(f64, Tensor<f32>)> {
    let (samples, d) = data.rows_cols();
    let rows = Rows { first: 0, samples, replicas: objective.flow_mul, share: objective.share() };
    let [noise, time] = [Stream::Noise, Stream::Time].map(|stream| Draw::new(SEED, stream, step));
    let t = draw_times(data.device(), time, rows, TimeSampler::Uniform, objective.time_range)?;
    let x_t = interpolate::<X>(data, &t, noise, rows)?;
    let (net, params) = (velocity.net, velocity.params);
    let modulations = net.modulations(params, objective.form, &t, rows, Condition::default(), None)?;
    let (v, saved) = net.forward(params, x_t, modulations, Keep::All)?;
    let target = Target {
        data,
        t: &t,
        noise,
        rows,
        weight: objective.weight.clone(),
        control_variate: false,
        centred: false,
    };
    let divisor = (rows.len() * d) as f64;
    let (losses, dv) = flow_loss_backward(&v, &target, (2.0 / divisor) as f32)?;
    let dx_t = net.backward(params, saved.ok_or("nothing was kept")?, &dv, grads)?;
    let loss = losses.to_f32_vec()?.into_iter().map(f64::from).sum::<f64>() / divisor;
    Ok((loss, latent_gradient(&dv, Some(&dx_t), &t, rows, 1.0)?))
}

const SEED: u64 = 5;
const STEPS: u64 = 40;

/// Trains a small network, then latents under it, on the objective or on its plain twin; returns the losses of both, and all that was trained.
fn trained<X: FloatX>(device: &Device, fused: bool) -> Outcome<([Vec<f64>; 2], Vec<f32>)> {
    let sets = ["data.builtin=digits", "data.standardise=true", "flow.weight=likelihood", "train.batch=32"];
    let config = Kind::Pretrain.config(None, &sets)?;
    let (task, mut engine) = Pretrain::new::<X>(&config, device)?;
    let (objective, width) = (task.objective, task.features.width());
    let shape = [objective.samples, width];
    let mut grads = Grads::zeros(device, task.net.layout().clone());
    let mut losses = [Vec::new(), Vec::new()];
    for step in 0..STEPS {
        let data =
            Tensor::from_f32(device, shape, &task.features.fresh_batch(SEED, step, shape[0])?.features)?;
        let velocity = Velocity { net: &task.net, params: &engine.optimizer.params, tables: None };
        grads.clear()?;
        losses[0].push(match fused {
            true => {
                let batch = Batch { data: &data, cond: Condition::default(), first: 0 };
                let (draws, want) = (Draws::training(SEED, step), Want::Params(&mut grads));
                objective.evaluate(velocity, batch, draws, 1.0, want)?.loss()?
            }
            false => plain(&objective, velocity, &data, step, Some(&mut grads))?.0,
        });
        engine.optimizer.step(&grads, 4e-3, 1.0, Rounding::Nearest)?;
    }
    let mut values = vec![0.0; shape[0] * width];
    normals(&mut values, SEED);
    let mut y = Tensor::from_f32(device, shape, &values)?;
    let params: &Params<X> = &engine.optimizer.params;
    for step in 0..STEPS {
        let velocity = Velocity { net: &task.net, params, tables: None };
        let (loss, dy) = match fused {
            true => {
                let batch = Batch { data: &y, cond: Condition::default(), first: 0 };
                let (draws, want) = (Draws::training(SEED, step), Want::Latents(LatentGradient::Full));
                let outcome = objective.evaluate(velocity, batch, draws, 1.0, want)?;
                (outcome.loss()?, outcome.dy.ok_or("no gradient")?)
            }
            false => plain(&objective, velocity, &y, step, None)?,
        };
        losses[1].push(loss);
        axpy(y.view_mut(), -20.0, &dy)?;
    }
    Ok((losses, [params.flat().to_f32_vec()?, y.to_f32_vec()?].concat()))
}

#[test]
fn training_on_the_fused_loss_goes_the_way_of_its_plain_twin() -> Outcome {
    let device = Device::cuda(&emulator::options())?;
    let (fused, plain) = (trained::<f32>(&device, true)?, trained::<f32>(&device, false)?);
    // Squares are added in another order; what is trained sees none of it.
    assert!(fused.1.iter().zip(&plain.1).all(|(a, b)| a.to_bits() == b.to_bits()), "trained bits differ");
    let narrow = [trained::<bf16>(&device, true)?.0, trained::<bf16>(&device, false)?.0];
    for stage in 0..2 {
        let all = fused.0[stage].iter().zip(&plain.0[stage]);
        assert!(all.clone().all(|(a, b)| (a - b).abs() <= 1e-6 * b), "stage {}: {all:?}", stage + 1);
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let ends = |losses: &[f64]| (mean(&losses[..10]), mean(&losses[30..]));
        let ((first, last), of_narrow) =
            (ends(&plain.0[stage]), narrow.each_ref().map(|n| ends(&n[stage]).1));
        println!("stage {}: {first:.4} to {last:.4}; bf16 fused, plain: {of_narrow:.4?}", stage + 1);
        assert!(last < 0.9 * first, "stage {}: {first} to {last}", stage + 1);
        assert!(of_narrow.iter().all(|loss| (loss - last).abs() <= 0.02 * last), "{of_narrow:?}, f32 {last}");
    }
    Ok(())
}

#[test]
fn a_checkpoint_moves_between_the_devices() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    for kind in [Kind::Pretrain, Kind::Latents] {
        let sets = ["train.steps=12", "train.checkpoint_every=6"];
        let place = |device: &str| dir.path().join(format!("{kind:?}-{device}"));
        for device in ["cpu", "cuda"] {
            train(kind, &prior, &place(device), &[&sets[..], &[&format!("device={device}")]].concat())?;
        }
        let whole = losses(&place("cpu"))?;
        for (first, second) in [("cpu", "cuda"), ("cuda", "cpu")] {
            // The last checkpoint is lost, and the run goes on elsewhere from the one before.
            let here = place(first);
            fs::remove_dir_all(checkpoint::folder(&here.join("checkpoints"), 12))?;
            train(kind, &prior, &here, &[&sets[..], &[&format!("device={second}")]].concat())?;
            let moved = losses(&here)?;
            assert_eq!(moved.len(), 12);
            for (step, (a, b)) in whole.iter().zip(&moved).enumerate() {
                assert!(
                    (a - b).abs() <= 1e-4 * a.abs(),
                    "{kind:?} {first} to {second}, step {step}: {a}, {b}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_captured_step_has_the_bits_of_one_launched_kernel_by_kernel() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let cases: [(Kind, &[&str]); 8] = [
        (Kind::Pretrain, &["dtype=f32", "train.micro_batches=2", "flow.time=stratified"]),
        (
            Kind::Pretrain,
            &["dtype=bf16", "optim.rounding=stochastic", "optim.clip=0.5", "train.eval_every=7"],
        ),
        (Kind::Latents, &["dtype=bf16", "flow.weight=likelihood"]),
        // Tables that kernels read: of a weight, and of the times' density.
        (
            Kind::Latents,
            &["flow.weight=likelihood", "flow.time=importance", "flow.control_variate=true", "dtype=f32"],
        ),
        (
            Kind::Pretrain,
            &["flow.weight=table", "flow.weight_table=[0.0, 2.0, 0.5, 1.0]", "flow.time=stratified"],
        ),
        // The loss scale is looked for, and grows.
        (Kind::Pretrain, &["dtype=f16", "scaler.init=1e13", "scaler.interval=5"]),
        // The weight of the alignment warms up: a step is captured again when it changes.
        (Kind::Autoencoder, &["dtype=f32", "align.flow_warmup=6", "optim.kind=lion"]),
        (Kind::Latents, &[MATCHED, &["align.repulsion_start=4", "align.repulsion_cooling=6"]].concat()),
    ];
    for (kind, sets) in cases {
        let of = |graph: &str| -> Outcome<PathBuf> {
            let place = dir.path().join(format!("{kind:?}-{}-{graph}", sets[0]));
            let sets = [sets, &["device=cuda", graph]].concat();
            train(kind, &prior, &place, &sets)?;
            Ok(place)
        };
        let (captured, launched) = (of("train.graph=true")?, of("train.graph=false")?);
        assert_same(&tensors(&captured, 24)?, &tensors(&launched, 24)?, &format!("{kind:?} {sets:?}"));
        assert_eq!(records(&captured)?, records(&launched)?, "{kind:?} {sets:?}");
    }
    Ok(())
}

/// All terms that match distributions.
const MATCHED: &[&str] =
    &["data.toy=gaussians", "align.repulsion=1", "align.sliced_wasserstein=1", "align.divergence=1"];

#[test]
fn terms_that_match_distributions_follow_the_cpu() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let of = |device: &str| -> Outcome<PathBuf> {
        let place = dir.path().join(device);
        let of_device = format!("device={device}");
        let sets = [MATCHED, &["align.latents=70", &of_device]].concat();
        train(Kind::Latents, &prior, &place, &sets)?;
        Ok(place)
    };
    let (cpu, cuda) = (of("cpu")?, of("cuda")?);
    for part in ["loss", "entropy", "sliced_w2", "divergence"] {
        let [a, b] = [series(&cpu, "train", part)?, series(&cuda, "train", part)?];
        assert_eq!(a.len(), 24, "{part}");
        let apart = a.iter().zip(&b).map(|((_, a), (_, b))| (a - b).abs()).fold(0.0, f64::max);
        let size = a.iter().map(|(_, a)| a.abs()).fold(0.0, f64::max);
        println!("{part}: at most {:.1e} of its size apart", apart / size);
        assert!(apart <= 1e-3 * size, "{part}: {a:?} {b:?}");
    }
    Ok(())
}

#[test]
fn rows_that_the_device_keeps_make_the_same_batches() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let cases: [(Kind, &str, &[&str]); 4] = [
        (Kind::Pretrain, "plain", &["data.builtin=digits"]),
        (
            Kind::Pretrain,
            "standard",
            &["data.builtin=digits", "data.standardise=true", "train.micro_batches=2"],
        ),
        (Kind::Pretrain, "labels", &["data.builtin=digits", "model.cond=10"]),
        (Kind::Autoencoder, "images", &["dtype=bf16"]),
    ];
    for (kind, name, sets) in cases {
        let of = |place: &str| -> Outcome<PathBuf> {
            let dir = dir.path().join(format!("{kind:?}-{name}-{place}"));
            train(
                kind,
                &prior,
                &dir,
                &[sets, &["device=cuda", &format!("data.on_device={place}")]].concat(),
            )?;
            Ok(dir)
        };
        let (kept, read) = (of("yes")?, of("no")?);
        assert_same(&tensors(&kept, 24)?, &tensors(&read, 24)?, name);
        assert_eq!(records(&kept)?, records(&read)?, "{name}");
    }
    for (device, why) in [("cuda", "a toy's rows are drawn for each step"), ("cpu", "the device is the CPU")]
    {
        let sets = [format!("device={device}"), "data.on_device=yes".into()];
        let place = dir.path().join(device);
        let output =
            program(Kind::Pretrain, &prior, &place, &sets.each_ref().map(String::as_str))?.output()?;
        assert_eq!(output.status.code(), Some(2), "{}", words(&output));
        assert!(words(&output).contains(why), "{}", words(&output));
    }
    Ok(())
}

#[test]
fn a_run_that_is_killed_and_resumed_ends_like_the_unbroken_one() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    for (kind, dtype) in [(Kind::Pretrain, "f16"), (Kind::Latents, "f32"), (Kind::Autoencoder, "bf16")] {
        let dtype = format!("dtype={dtype}");
        // The loss scale of f16 starts where the first steps overflow.
        let sets =
            ["device=cuda", &dtype, "train.checkpoint_every=4", "scaler.init=1e13", "scaler.interval=5"];
        let (whole, broken) =
            (dir.path().join(format!("{kind:?}-whole")), dir.path().join(format!("{kind:?}-broken")));
        train(kind, &prior, &whole, &sets)?;
        let mut kills = 0;
        while kills < 3 {
            let mut child =
                program(kind, &prior, &broken, &sets)?.stderr(std::process::Stdio::null()).spawn()?;
            let lines =
                || fs::read_to_string(broken.join("metrics.jsonl")).map_or(0, |text| text.lines().count());
            let goal = lines() + 5;
            while lines() < goal && child.try_wait()?.is_none() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            child.kill()?;
            child.wait()?;
            kills += 1;
        }
        train(kind, &prior, &broken, &sets)?;
        assert_same(&tensors(&whole, 24)?, &tensors(&broken, 24)?, &format!("{kind:?}"));
        assert_eq!(records(&whole)?, records(&broken)?, "{kind:?}");
    }
    Ok(())
}

#[test]
fn a_kernel_that_does_not_compile_is_named_with_its_line() -> Outcome {
    static SOURCE: Source = Source {
        name: "kernels/broken.cu",
        text: "#line 7 \"kernels/broken.cuh\"\nextern \"C\" __global__ void broken() { missing = 1; }\n",
        hash: 0,
    };
    let nvrtc = Nvrtc::open(emulator::options().compiler.as_deref())?;
    let options = ["--gpu-architecture=sm_80".to_owned()];
    let error = nvrtc.compile_cached(None, &SOURCE, &options).err().ok_or("it compiles")?;
    assert_eq!(error.exit_code(), 4);
    let message = error.to_string();
    assert!(message.starts_with("kernels/broken.cu does not compile"), "{message}");
    assert!(
        message.contains("kernels/broken.cuh(7): error: identifier \"missing\" is undefined"),
        "{message}"
    );
    Ok(())
}

#[test]
fn what_is_missing_is_said() -> Outcome {
    let dir = tempfile::tempdir()?;
    let cases: [(&str, &str, &[&str]); 6] = [
        (
            "FLOWPRIOR_CUDA_DRIVER",
            "/nowhere/libcuda.so",
            &["the CUDA driver cannot be opened", "/nowhere/libcuda.so"],
        ),
        (
            "FLOWPRIOR_NVRTC",
            "/nowhere/libnvrtc.so",
            &["NVRTC cannot be opened", "/nowhere/libnvrtc.so", "pip install"],
        ),
        (
            "CUDA_EMULATOR_MEMORY",
            "1M",
            &["allocating device memory", "bytes were asked for", "flowprior plan"],
        ),
        ("CUDA_EMULATOR_DRIVER", "12000", &["CUDA_ERROR_UNSUPPORTED_PTX_VERSION"]),
        ("CUDA_EMULATOR_DEVICE", "sm_75", &["is sm_75", "sm_80 or newer", "--device cpu"]),
        ("CUDA_EMULATOR_DEVICE", "sm_130", &["NVRTC 1", "cannot compile for", "(sm_130)", "install a newer"]),
    ];
    for (variable, value, parts) in cases {
        let place = dir.path().join(format!("{variable}{}", value.replace('/', "")));
        let mut command =
            program(Kind::Pretrain, Path::new(""), &place, &["device=cuda", "train.batch=65536"])?;
        let output = command.env(variable, value).output()?;
        let words = words(&output);
        assert_eq!(output.status.code(), Some(4), "{variable}: {words}");
        assert!(parts.iter().all(|part| words.contains(part)), "{variable}: {words}");
        assert!(!words.contains("panicked"), "{variable}: {words}");
    }
    let mut command = program(Kind::Pretrain, Path::new(""), &dir.path().join("third"), &["device=cuda:2"])?;
    let output = command.output()?;
    assert_eq!(output.status.code(), Some(4));
    assert!(words(&output).contains("cuda:2 was asked for; the driver has 1 device"), "{}", words(&output));
    Ok(())
}

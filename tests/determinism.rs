//! Same seed, same bits: whatever the number of threads or shards. Micro-batches see the noise of the whole batch.

#[path = "support/run.rs"]
mod run;

use std::collections::BTreeMap;
use std::path::Path;

use flowprior::device::Device;
use flowprior::flow::{Objective, Weight};
use flowprior::nn::{Form, Grads, Params};
use flowprior::ops::flow_path::{Rows, TimeSampler, draw_times, interpolate};
use flowprior::rng::{Draw, Stream};
use flowprior::tensor::Tensor;
use flowprior::train::align::{AutoencoderTask, LatentTask};
use flowprior::train::engine::{Losses, Task};
use flowprior::train::pretrain::Pretrain;
use flowprior::train::prior::Prior;
use flowprior::train::{Config, Resume};
use run::{KINDS, Kind, Outcome, assert_same, files, normals, random_prior, records, tensors, write_rows};

const THREADS: [usize; 4] = [1, 2, 3, 8];
const DTYPES: [&str; 3] = ["f32", "bf16", "f16"];

/// Enough rows and columns that every operation splits its work.
const WIDE: [&str; 5] = [
    "model.width=96",
    "train.batch=192",
    "align.latents=384",
    "align.autoencoder.hidden=[96]",
    "train.steps=20",
];

/// A weight of the user's.
const TABLE: [&str; 2] = ["flow.weight=table", "flow.weight_table=[0.0, 2.0, 0.5, 1.0]"];

/// Everything that a run leaves and that depends on numbers.
fn left_by(kind: Kind, config: &Config, dir: &Path) -> Outcome<BTreeMap<String, Vec<u8>>> {
    kind.run(config, dir, Resume::Never)?;
    let mut left = tensors(dir, config.train.steps)?;
    left.extend(files(dir, |name| !name.ends_with(".safetensors"))?);
    left.insert("records".to_owned(), serde_json::to_vec(&records(dir)?)?);
    Ok(left)
}

#[test]
fn both_stages_have_the_same_bits_for_any_number_of_threads() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("smooth.safetensors"), 2, 0.05)?;
    for kind in KINDS {
        for dtype in DTYPES {
            let mut first: Option<BTreeMap<_, _>> = None;
            for threads in THREADS {
                let own = [format!("dtype={dtype}"), format!("threads={threads}")];
                let sets: Vec<&str> = WIDE.iter().copied().chain(own.iter().map(String::as_str)).collect();
                let config = kind.config(Some(&prior), &sets)?;
                let left = left_by(kind, &config, &dir.path().join(format!("{kind:?}-{dtype}-{threads}")))?;
                assert!(left.contains_key("ema1.safetensors") && left.contains_key("moment2.safetensors"));
                match &first {
                    None => first = Some(left),
                    Some(one) => assert_same(one, &left, &format!("{kind:?} {dtype}, {threads} threads")),
                }
            }
        }
    }
    Ok(())
}

#[test]
fn weights_and_times_of_every_kind_have_the_same_bits_for_any_number_of_threads() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("smooth.safetensors"), 2, 0.05)?;
    let centred = ["align.gradient=centred", "flow.weight=kl", "flow.time=importance"];
    let table = [TABLE[0], TABLE[1], "flow.time=importance"];
    for (kind, own) in [(Kind::Latents, centred), (Kind::Latents, table), (Kind::Pretrain, table)] {
        let of = |threads: &str| -> Outcome<BTreeMap<String, Vec<u8>>> {
            let sets = [&WIDE[..], &own, &[threads]].concat();
            let place = dir.path().join(format!("{kind:?}-{}-{threads}", own[0]));
            left_by(kind, &kind.config(Some(&prior), &sets)?, &place)
        };
        let one = of("threads=1")?;
        for threads in ["threads=2", "threads=5"] {
            assert_same(&one, &of(threads)?, &format!("{kind:?} {own:?} {threads}"));
        }
    }
    Ok(())
}

#[test]
fn stochastic_rounding_has_the_same_bits_for_any_number_of_threads() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut all = Vec::new();
    for threads in ["threads=1", "threads=3"] {
        let sets = ["dtype=bf16", "optim.rounding=stochastic", "model.width=96", threads];
        let config = Kind::Pretrain.config(None, &sets)?;
        all.push(left_by(Kind::Pretrain, &config, &dir.path().join(threads))?);
    }
    assert_same(&all[0], &all[1], "stochastic rounding");
    Ok(())
}

#[test]
fn another_seed_gives_other_bits() -> Outcome {
    let dir = tempfile::tempdir()?;
    let of =
        |seed: &str| left_by(Kind::Pretrain, &Kind::Pretrain.config(None, &[seed])?, &dir.path().join(seed));
    assert_ne!(of("seed=1")?["model.safetensors"], of("seed=2")?["model.safetensors"]);
    Ok(())
}

#[test]
fn both_stages_have_the_same_bits_for_one_two_and_seven_shards() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let (rows, width) = (500, 6);
    let mut values = vec![0.0; rows * width];
    normals(&mut values, 3);
    for kind in [Kind::Pretrain, Kind::Autoencoder] {
        let mut first: Option<BTreeMap<_, _>> = None;
        for shard_rows in [500, 250, 72] {
            let name = format!("{kind:?}-{shard_rows}");
            let data = write_rows(&dir.path().join(format!("{name}-data")), &values, width, shard_rows)?;
            let shards = files(&data, |name| !name.ends_with(".safetensors"))?.len();
            assert_eq!(shards, rows.div_ceil(shard_rows));
            // 24 steps of 64 rows: three epochs, whose ends lie inside batches.
            let source = format!("data.path='{}'", data.display());
            let config = kind.config(Some(&prior), &[&source, "data.standardise=true"])?;
            let mut left = left_by(kind, &config, &dir.path().join(&name))?;
            if let Some(network) = left.get_mut("prior.safetensors") {
                // Its header names the data, which lie in another folder; the weights behind it must be the same.
                let header = u64::from_le_bytes(network[..8].try_into()?) as usize;
                network.drain(..8 + header);
            }
            match &first {
                None => first = Some(left),
                Some(one) => assert_same(one, &left, &format!("{kind:?}, {shards} shards")),
            }
        }
    }
    Ok(())
}

#[test]
fn micro_batches_see_the_rows_of_the_whole_batch_bit_for_bit() -> Outcome {
    let device = Device::cpu_with_threads(2)?;
    let (samples, d) = (48, 5);
    let mut values = vec![0.0; samples * d];
    normals(&mut values, 1);
    let (noise, time) = (Draw::new(9, Stream::Noise, 4), Draw::new(9, Stream::Time, 4));
    let density = Weight::Kl { clip: 0.98 }.density(&device, (0.0, 1.0))?;
    for (replicas, share) in [(1, 1), (3, 1), (1, 4), (3, 6)] {
        let times = samples * replicas / share;
        for sampler in [
            TimeSampler::Uniform,
            TimeSampler::Stratified { total: times, samples },
            TimeSampler::LogitNormal { mean: 0.5, std: 1.5 },
            TimeSampler::Density { density: &density, total: times, samples },
        ] {
            let rows_of = |first: usize, samples: usize| -> Outcome<(Vec<f32>, Vec<f32>)> {
                let data = &values[first * d..(first + samples) * d];
                let data = Tensor::<f32>::from_f32(&device, [samples, d], data)?;
                let rows = Rows { first: first as u64, samples, replicas, share };
                let t = draw_times(&device, time, rows, sampler, (0.0, 1.0))?;
                let x_t: Tensor<f32> = interpolate(&data, &t, noise, rows)?;
                Ok((t.to_f32_vec().unwrap(), x_t.to_f32_vec().unwrap()))
            };
            let (whole_t, whole) = rows_of(0, samples)?;
            for parts in [2, 4] {
                let micro = samples / parts;
                for part in 0..parts {
                    let (t, x_t) = rows_of(part * micro, micro)?;
                    for i in 0..micro * replicas {
                        let (replica, sample) = (i / micro, part * micro + i % micro);
                        let at = replica * samples + sample;
                        let what =
                            format!("{sampler:?}, replica {replica}, sample {sample} of {parts} parts");
                        assert_eq!(t[i / share], whole_t[at / share], "{what}");
                        assert_eq!(x_t[i * d..][..d], whole[at * d..][..d], "{what}");
                    }
                }
            }
        }
    }
    Ok(())
}

/// The losses and gradients of step 5, at parameters where each of them matters.
fn gradients(kind: Kind, config: &Config) -> Outcome<(Losses, Grads)> {
    let device = Device::cpu_with_threads(2)?;
    let prior = || Prior::<f32>::read(&device, config.align.prior()?, None);
    match kind {
        Kind::Pretrain => {
            let (task, engine) = Pretrain::new::<f32>(config, &device)?;
            shaken(task, &engine.optimizer.params)
        }
        Kind::Latents => {
            let (task, engine) = LatentTask::new(config, &device, prior()?)?;
            shaken(task, &engine.optimizer.params)
        }
        Kind::Autoencoder => {
            let (task, engine) = AutoencoderTask::new(config, &device, prior()?)?;
            shaken(task, &engine.optimizer.params)
        }
    }
}

fn shaken(mut task: impl Task<f32>, params: &Params<f32>) -> Outcome<(Losses, Grads)> {
    let mut flat = params.flat().to_f32_vec().unwrap();
    let mut shake = vec![0.0; flat.len()];
    normals(&mut shake, 5);
    flat.iter_mut().zip(shake).for_each(|(w, s)| *w += 0.05 * s);
    let device = params.flat().device();
    let params = Params::from_flat(device, params.layout().clone(), &flat)?;
    let mut grads = Grads::zeros(device, params.layout().clone());
    let losses = task.losses(&params, 5, 1.0, &mut grads)?;
    Ok((losses, grads))
}

#[test]
fn micro_batches_agree_with_the_whole_batch_in_loss_and_every_gradient() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let mut worst = 0f64;
    for kind in KINDS {
        for sets in [
            &["flow.time=uniform", "model.modulation=direct"][..],
            &["flow.time=uniform", "model.modulation=nodes"],
            &["flow.time=stratified", "model.modulation=nodes"],
            &["flow.time=logit-normal", "model.modulation=nodes"],
            &["flow.time=stratified", "model.modulation=groups=16"],
            &["flow.weight=likelihood", "flow.time=stratified"],
            &["flow.weight=likelihood", "flow.time=importance", "flow.control_variate=true"],
            &["flow.time=importance", TABLE[0], TABLE[1], "model.modulation=groups=16"],
            &["flow.time=stratified", TABLE[0], TABLE[1]],
        ] {
            let of = |micro: &str| gradients(kind, &kind.config(Some(&prior), &[sets, &[micro]].concat())?);
            let (whole, whole_grads) = of("train.micro_batches=1")?;
            assert!(whole.loss.abs() > 0.1, "{whole:?}");
            for micro in ["train.micro_batches=2", "train.micro_batches=4"] {
                let what = format!("{kind:?} {sets:?} {micro}");
                let (losses, grads) = of(micro)?;
                let error = ((losses.loss - whole.loss) / whole.loss).abs();
                assert!(error <= 1e-6, "{what}: loss {} against {}", losses.loss, whole.loss);
                for ((name, a), (_, b)) in losses.parts.iter().zip(&whole.parts) {
                    assert!((a - b).abs() <= 1e-6 * b.abs(), "{what}: {name} {a} against {b}");
                }
                for entry in whole_grads.layout().entries() {
                    let (a, b) = (
                        grads.named(&entry.name)?.to_f32_vec().unwrap(),
                        whole_grads.named(&entry.name)?.to_f32_vec().unwrap(),
                    );
                    let error = distance(&a, &b);
                    worst = worst.max(error);
                    assert!(error <= 1e-6, "{what}: gradient of {}: {error:e}", entry.name);
                }
            }
        }
    }
    println!("largest relative difference of a gradient: {worst:.1e}");
    Ok(())
}

/// ‖a − b‖ / ‖b‖.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| *a as f64 - *b as f64));
    let size = norm(&mut b.iter().map(|b| *b as f64));
    assert!(size > 0.0, "a gradient that is zero tests nothing");
    difference / size
}

#[test]
fn groups_share_one_time_among_consecutive_samples_of_each_replica() -> Outcome {
    let config =
        Kind::Pretrain.config(None, &["model.modulation=groups=16", "train.batch=64", "flow.flow_mul=2"])?;
    let (task, _) = Pretrain::new::<f32>(&config, &Device::cpu_with_threads(1)?)?;
    let objective: &Objective = &task.objective;
    assert_eq!((objective.form, objective.share()), (Form::Groups(16), 8));
    Ok(())
}

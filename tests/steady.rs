//! After the first step nothing grows: no tensor memory is taken from the system, and the process stays as large as it is.

#[path = "support/run.rs"]
mod run;

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use flowprior::Result;
use flowprior::device::{Cpu, Device};
use flowprior::train::align::{AutoencoderTask, LatentTask};
use flowprior::train::engine::Engine;
use flowprior::train::pretrain::Pretrain;
use flowprior::train::prior::Prior;
use flowprior::train::run::{Trainee, train};
use flowprior::train::signal::StopFlag;
use flowprior::train::{Config, Resume, RunDir, setup};
use flowprior::{DType, FloatX};
use half::f16;
use run::{Hooked, KINDS, Kind, Outcome, options, random_prior};

/// One test at a time: the others' memory is the process's too.
static ALONE: Mutex<()> = Mutex::new(());

fn cpu(config: &Config) -> Result<(Device, Cpu)> {
    let device = setup::device(config)?;
    let Device::Cpu(cpu) = &device else { panic!("the tests run on the CPU") };
    let cpu = cpu.clone();
    Ok((device, cpu))
}

/// Steps that include one where the guard looks at the network.
const STEPS: u64 = 105;

fn expect_no_allocation<P: FloatX, T: Trainee<P>>(
    mut task: T,
    mut engine: Engine<P>,
    cpu: &Cpu,
    what: &str,
) -> Result<()> {
    engine.advance(&mut task)?;
    let (after_first, held) = (cpu.allocations(), cpu.bytes_held());
    assert!(after_first > 5, "{what}: is it counted at all? {after_first}");
    for step in 1..STEPS {
        engine.advance(&mut task)?;
        assert_eq!(cpu.allocations(), after_first, "{what}: step {step} took memory");
    }
    assert_eq!(cpu.bytes_held(), held, "{what}");
    task.evaluate(&engine)?;
    let after_evaluation = cpu.allocations();
    for _ in 0..3 {
        engine.advance(&mut task)?;
        task.evaluate(&engine)?;
    }
    assert_eq!(cpu.allocations(), after_evaluation, "{what}: a second evaluation took memory");
    Ok(())
}

fn expect_steady<X: FloatX>(kind: Kind, config: &Config, what: &str) -> Result<()> {
    let (device, cpu) = cpu(config)?;
    let prior = || Prior::<X>::read(&device, config.align.prior()?, None);
    match kind {
        Kind::Pretrain => {
            let (task, engine) = Pretrain::new::<X>(config, &device)?;
            expect_no_allocation(task, engine, &cpu, what)
        }
        Kind::Latents => {
            let (task, engine) = LatentTask::new(config, &device, prior()?)?;
            expect_no_allocation(task, engine, &cpu, what)
        }
        Kind::Autoencoder => {
            let (task, engine) = AutoencoderTask::new(config, &device, prior()?)?;
            expect_no_allocation(task, engine, &cpu, what)
        }
    }
}

#[test]
fn no_step_after_the_first_takes_tensor_memory() -> Outcome {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    for kind in KINDS {
        for modulation in ["nodes", "direct", "groups=8"] {
            for micro in [1, 2] {
                for dtype in ["f32", "f16"] {
                    let what = format!("{kind:?} {modulation} micro={micro} {dtype}");
                    let sets = [
                        format!("model.modulation={modulation}"),
                        format!("train.micro_batches={micro}"),
                        format!("dtype={dtype}"),
                        format!("train.steps={}", STEPS + 3),
                        "model.width=16".to_owned(),
                    ];
                    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
                    let config = kind.config(Some(&prior), &sets)?;
                    match config.dtype {
                        DType::F32 => expect_steady::<f32>(kind, &config, &what)?,
                        _ => expect_steady::<f16>(kind, &config, &what)?,
                    }
                }
            }
        }
    }
    // What looks at a whole batch: normalised targets, penalties, the adaptive weight.
    let whole = ["flow.norm_target=true", "flow.unit_norm=true", "align.std_weight=0.1", "train.steps=200"];
    for kind in KINDS {
        let own = if kind == Kind::Autoencoder {
            &["align.adaptive=true", "align.std_latents=true"][..]
        } else {
            &[]
        };
        let config = kind.config(Some(&prior), &[&whole[..], own].concat())?;
        expect_steady::<f32>(kind, &config, &format!("{kind:?} {whole:?} {own:?}"))?;
    }
    Ok(())
}

/// Bytes of the process in memory.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Trains 10,000 steps, with log and checkpoints, and returns the bytes before steps 1,000 and 10,000.
fn long_run(kind: Kind, prior: &Path, dir: &Path) -> Outcome<(u64, u64)> {
    let sets = [
        "train.steps=10000",
        "train.batch=8",
        "align.latents=8",
        "model.width=8",
        "model.depth=1",
        "threads=1",
        "train.log_every=20",
        "train.checkpoint_every=900",
        "train.eval_every=500",
        "align.autoencoder.hidden=[8]",
    ];
    let config = kind.config(Some(prior), &sets)?;
    let mut seen = Vec::new();
    let before = |step| {
        if step == 1_000 || step == 9_999 {
            seen.extend(resident());
        }
    };
    let (device, _) = cpu(&config)?;
    let (run, _) = RunDir::start(dir, &Resume::Never)?;
    let options = options(dir, Resume::Never, StopFlag::default());
    let prior = || Prior::<f32>::read(&device, config.align.prior()?, None);
    match kind {
        Kind::Pretrain => {
            let (inner, mut engine) = Pretrain::new::<f32>(&config, &device)?;
            train(&config, &options, &run, None, &mut Hooked { inner, before }, &mut engine)?;
        }
        Kind::Latents => {
            let (inner, mut engine) = LatentTask::new(&config, &device, prior()?)?;
            train(&config, &options, &run, None, &mut Hooked { inner, before }, &mut engine)?;
        }
        Kind::Autoencoder => {
            let (inner, mut engine) = AutoencoderTask::new(&config, &device, prior()?)?;
            train(&config, &options, &run, None, &mut Hooked { inner, before }, &mut engine)?;
        }
    }
    Ok((seen[0], seen[1]))
}

#[test]
fn the_process_is_as_large_after_ten_thousand_steps_as_after_one_thousand() -> Outcome {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if resident().is_none() {
        println!("skipped: /proc/self/status does not tell the memory of this process");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    for kind in KINDS {
        let (early, late) = long_run(kind, &prior, &dir.path().join(format!("{kind:?}")))?;
        println!("{kind:?}: {} KiB, then {} KiB", early >> 10, late >> 10);
        assert!(late <= early + (1 << 20), "{kind:?}: grew from {early} to {late} bytes");
    }
    Ok(())
}

//! A run that is stopped or killed, at any instant, and resumed, ends bit-identical to the unbroken one.

#[path = "support/run.rs"]
mod run;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flowprior::Error;
use flowprior::rng::{Draw, Stream};
use flowprior::train::signal::StopFlag;
use flowprior::train::{Config, Resume, RunDir, checkpoint};
use run::{KINDS, Kind, Outcome, assert_same, files, options, random_prior, records, session, tensors};

/// Runs once without a stop and once with `stops`, and compares the last checkpoints, manifest included, and the logs.
fn expect_the_same_end(kind: Kind, config: &Config, dir: &Path, stops: &[u64]) -> Outcome {
    let (whole, broken) = (dir.join("whole"), dir.join("broken"));
    session(kind, config, &whole, 0)?;
    for stop in stops {
        match session(kind, config, &broken, *stop) {
            Err(Error::Stopped { step, .. }) if step == *stop => {}
            other => panic!("{kind:?}: asked to stop at {stop}, but: {other:?}"),
        }
    }
    session(kind, config, &broken, 0)?;
    expect_same_run(&whole, &broken, config.train.steps, &format!("{kind:?}, stopped at {stops:?}"))
}

fn expect_same_run(whole: &Path, broken: &Path, steps: u64, what: &str) -> Outcome {
    let last = |run: &Path| files(&checkpoint::folder(&run.join("checkpoints"), steps), |_| false);
    assert_same(&last(whole)?, &last(broken)?, what);
    let (expected, found) = (records(whole)?, records(broken)?);
    for (a, b) in expected.iter().zip(&found) {
        assert_eq!(a, b, "{what}");
    }
    assert_eq!(expected.len(), found.len(), "{what}");
    Ok(())
}

#[test]
fn a_run_that_is_stopped_and_resumed_ends_like_the_unbroken_one() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    for kind in KINDS {
        for (dtype, more) in [
            ("dtype=f32", "train.micro_batches=2"),
            ("dtype=bf16", "optim.rounding=stochastic"),
            // The scale starts where the first steps overflow, so that the state of the search is resumed too.
            ("dtype=f16", "scaler.init=1e13"),
        ] {
            let more =
                if kind == Kind::Latents && dtype == "dtype=bf16" { "optim.rounding=nearest" } else { more };
            let sets = [dtype, more, "scaler.interval=5", "train.eval_every=6", "train.checkpoint_every=10"];
            let config = kind.config(Some(&prior), &sets)?;
            let place = dir.path().join(format!("{kind:?}-{dtype}"));
            expect_the_same_end(kind, &config, &place, &[1, 2, 7, 10, 13, 23])?;
            if dtype == "dtype=f16" && kind == Kind::Pretrain {
                assert!(records(&place.join("whole"))?.iter().any(|r| r["kind"] == "skipped"));
            }
        }
    }
    Ok(())
}

#[test]
fn optimizers_of_every_kind_resume() -> Outcome {
    let dir = tempfile::tempdir()?;
    for (kind, lr) in [("adam", "1e-3"), ("sgd", "1e-2"), ("lion", "1e-4")] {
        let (kind, lr) = (format!("optim.kind={kind}"), format!("optim.lr={lr}"));
        let config = Kind::Pretrain.config(None, &[&kind, &lr])?;
        expect_the_same_end(Kind::Pretrain, &config, &dir.path().join(&kind), &[11])?;
    }
    Ok(())
}

#[test]
fn a_run_of_one_step_a_session_ends_like_the_unbroken_one() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    for kind in KINDS {
        let config = kind.config(Some(&prior), &["train.steps=9"])?;
        let (whole, broken) =
            (dir.path().join(format!("{kind:?}")), dir.path().join(format!("{kind:?}-broken")));
        kind.run(&config, &whole, Resume::Never)?;
        for step in 1..9 {
            let stop = StopFlag::default();
            stop.request();
            let error = kind.run_with(&config, &options(&broken, Resume::Auto, stop)).unwrap_err();
            assert_eq!(error.exit_code(), 75);
            assert!(error.to_string().starts_with(&format!("stopped after step {step};")), "{error}");
        }
        kind.run(&config, &broken, Resume::Auto)?;
        expect_same_run(&whole, &broken, 9, &format!("{kind:?}"))?;
        let network = |run: &Path| fs::read(run.join("prior.safetensors"));
        assert_eq!(network(&whole)?, network(&broken)?, "{kind:?}");
    }
    Ok(())
}

#[test]
fn the_form_of_modulation_that_the_guard_chose_is_resumed() -> Outcome {
    let dir = tempfile::tempdir()?;
    // Two nodes cannot interpolate: the guard takes more as soon as it looks, for the rest of the run.
    let sets = ["model.modulation=nodes=2", "train.steps=130", "train.log_every=10", "optim.lr=1e-2"];
    let config = Kind::Pretrain.config(None, &sets)?;
    expect_the_same_end(Kind::Pretrain, &config, dir.path(), &[50, 115])?;
    let last = checkpoint::load(&checkpoint::folder(&dir.path().join("broken/checkpoints"), 130))?;
    assert_ne!(last.manifest().data["modulation"], "nodes=2", "the guard did nothing: this test is too weak");
    Ok(())
}

#[test]
fn snapshots_of_a_broken_run_are_those_of_the_whole_one() -> Outcome {
    let dir = tempfile::tempdir()?;
    let prior = random_prior(&dir.path().join("prior.safetensors"), 2, 0.05)?;
    let config = Kind::Latents.config(Some(&prior), &["train.snapshots_every=5"])?;
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    session(Kind::Latents, &config, &whole, 0)?;
    assert!(matches!(session(Kind::Latents, &config, &broken, 12), Err(Error::Stopped { .. })));
    // Of a session that went further than its last checkpoint, under another step size.
    fs::copy(broken.join("snapshots/0000000.npy"), broken.join("snapshots/0000017.npy"))?;
    session(Kind::Latents, &config, &broken, 0)?;
    let [expected, found] = [whole, broken].map(|run| files(&run.join("snapshots"), |_| false));
    let (expected, found) = (expected?, found?);
    let names = [0, 5, 10, 15, 20, 24].map(|step| format!("{step:07}.npy"));
    assert!(expected.keys().eq(&names), "{:?}", expected.keys());
    assert_same(&expected, &found, "snapshots");
    assert_ne!(expected[&names[4]], expected[&names[5]], "latents do not move: this test is too weak");
    Ok(())
}

#[test]
fn a_finished_run_that_is_resumed_changes_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let run = dir.path().join("run");
    let config = Kind::Pretrain.config(None, &[])?;
    Kind::Pretrain.run(&config, &run, Resume::Never)?;
    let (before, log) = (tensors(&run, 24)?, fs::read(run.join("metrics.jsonl"))?);
    Kind::Pretrain.run(&config, &run, Resume::Auto)?;
    assert_same(&before, &tensors(&run, 24)?, "resumed after its end");
    assert_eq!(log, fs::read(run.join("metrics.jsonl"))?);
    Ok(())
}

#[test]
fn a_run_folder_is_free_as_soon_as_its_run_ends_even_while_other_processes_start() -> Outcome {
    let dir = tempfile::tempdir()?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                Command::new("true").status().unwrap();
            }
        });
        let starts = (0..300).try_for_each(|_| RunDir::start(dir.path(), &Resume::Auto).map(|_| ()));
        over.store(true, Ordering::Relaxed);
        Ok(starts?)
    })
}

// ---- The program itself, in processes that are killed.

/// A configuration for the program, and how to call it.
struct Program {
    kind: Kind,
    file: PathBuf,
    config: Config,
}

/// Steps of the runs that are killed; a checkpoint every few of them, so that many kills fall into one.
const STEPS: u64 = 2000;

impl Program {
    fn new(kind: Kind, dir: &Path, more: &[&str]) -> Outcome<Self> {
        let prior = random_prior(&dir.join("prior.safetensors"), 2, 0.05)?;
        let steps = format!("train.steps={STEPS}");
        let tiny = [
            "model.width=8",
            "model.depth=1",
            "train.batch=8",
            "align.latents=8",
            "train.checkpoint_every=20",
            "optim.ema=[0.9]",
        ];
        let sets: Vec<&str> =
            tiny.into_iter().chain(["threads=1", steps.as_str()]).chain(more.iter().copied()).collect();
        let config = kind.config((kind != Kind::Pretrain).then_some(&*prior), &sets)?;
        let file = dir.join("config.toml");
        fs::write(&file, config.to_toml()?)?;
        Ok(Self { kind, file, config })
    }

    fn start(&self, run: &Path) -> Outcome<Child> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowprior"));
        command.arg(self.kind.stage().name()).arg("--config").arg(&self.file).arg("--run").arg(run);
        command.args(["--resume", "auto", "--quiet"]).stderr(Stdio::piped()).stdout(Stdio::null());
        Ok(command.spawn()?)
    }

    fn finish(&self, run: &Path) -> Outcome {
        let (status, words) = ended(self.start(run)?)?;
        assert!(status.success(), "{status}: {words}");
        Ok(())
    }

    fn expect_like(&self, whole: &Path, run: &Path, what: &str) -> Outcome {
        expect_same_run(whole, run, self.config.train.steps, what)
    }
}

fn ended(mut child: Child) -> Outcome<(ExitStatus, String)> {
    let mut words = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut words)?;
    }
    Ok((child.wait()?, words))
}

/// About what the program takes from its start to its first step.
const START_UP: Duration = Duration::from_millis(20);

/// Where a kill found the run.
#[derive(Debug, Default)]
struct Hits {
    start_up: u32,
    saving: u32,
    stepping: u32,
}

impl Hits {
    fn count(&mut self, before: &Trace, after: &Trace) {
        match (after.unfinished.is_subset(&before.unfinished), after.newest == before.newest) {
            (false, _) => self.saving += 1,
            (true, true) => self.start_up += 1,
            _ => self.stepping += 1,
        }
    }
}

/// What shows how far a run came: its newest checkpoint, and folders of unfinished saves, by their inodes.
struct Trace {
    newest: Option<u64>,
    unfinished: BTreeSet<u64>,
}

impl Trace {
    fn of(run: &Path) -> Outcome<Self> {
        let mut unfinished = BTreeSet::new();
        for entry in fs::read_dir(run.join("checkpoints")).into_iter().flatten() {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(".tmp-") {
                unfinished.insert(entry.ino());
            }
        }
        Ok(Self { newest: newest(run)?, unfinished })
    }
}

fn newest(run: &Path) -> Outcome<Option<u64>> {
    Ok(checkpoint::list(&run.join("checkpoints"))?.last().map(|(step, _)| *step))
}

/// Kills the program at `kills` random instants, resuming it after each, through as many whole runs as that takes.
fn expect_to_survive_kills(kind: Kind, seed: u64, kills: u32) -> Outcome {
    let dir = tempfile::tempdir()?;
    let program = Program::new(kind, dir.path(), &[])?;
    let whole = dir.path().join("whole");
    let begun = Instant::now();
    program.finish(&whole)?;
    // 20 kills take about one and a half times as long as an unbroken run.
    let longest = begun.elapsed().div_f64(8.0);
    let draw = Draw::new(seed, Stream::Order, 0);
    let (mut hits, mut runs, mut killed) = (Hits::default(), 0, 0);
    let mut run = dir.path().join("run-0");
    while killed < kills {
        let before = Trace::of(&run)?;
        let mut child = program.start(&run)?;
        // Every fourth one falls into the start-up: reading, locking, restoring.
        let range = if killed % 4 == 3 { longest.min(START_UP) } else { longest };
        let until = Instant::now() + range.mul_f64(draw.uniform(killed as u64, runs) as f64);
        let mut over = false;
        while Instant::now() < until && !over {
            std::thread::sleep(Duration::from_micros(200));
            over = child.try_wait()?.is_some();
        }
        child.kill()?;
        let (status, words) = ended(child)?;
        if over {
            assert!(status.success(), "{status}: {words}");
            program.expect_like(&whole, &run, &format!("{kind:?} after {killed} kills"))?;
            runs += 1;
            run = dir.path().join(format!("run-{runs}"));
            continue;
        }
        killed += 1;
        hits.count(&before, &Trace::of(&run)?);
    }
    program.finish(&run)?;
    program.expect_like(&whole, &run, &format!("{kind:?} after {killed} kills"))?;
    println!("{kind:?}: {killed} kills in {} runs: {hits:?}, in {:?}", runs + 1, begun.elapsed());
    assert!(hits.saving + hits.stepping > 0, "all kills hit the start: {hits:?}");
    Ok(())
}

#[test]
fn pretrain_survives_twenty_kills_at_random_instants() -> Outcome {
    expect_to_survive_kills(Kind::Pretrain, 1, 20)
}

#[test]
fn align_of_latents_survives_twenty_kills_at_random_instants() -> Outcome {
    expect_to_survive_kills(Kind::Latents, 2, 20)
}

#[test]
fn align_of_an_autoencoder_survives_twenty_kills_at_random_instants() -> Outcome {
    expect_to_survive_kills(Kind::Autoencoder, 3, 20)
}

#[test]
fn a_terminated_run_saves_and_says_75_and_resumes_to_the_same_end() -> Outcome {
    use rustix::process::{Pid, Signal, kill_process};
    for kind in [Kind::Pretrain, Kind::Autoencoder] {
        let dir = tempfile::tempdir()?;
        let program = Program::new(kind, dir.path(), &["train.checkpoint_every=0"])?;
        let (whole, run) = (dir.path().join("whole"), dir.path().join("run"));
        program.finish(&whole)?;
        for signal in [Signal::TERM, Signal::INT, Signal::USR1] {
            let child = program.start(&run)?;
            let log = || fs::metadata(run.join("metrics.jsonl")).map_or(0, |m| m.len());
            let (before, begun) = (log(), Instant::now());
            while log() <= before && begun.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_micros(500));
            }
            kill_process(Pid::from_child(&child), signal)?;
            let (status, words) = ended(child)?;
            assert_eq!(status.code(), Some(75), "{kind:?} {signal:?}: {status}: {words}");
            let step = newest(&run)?.ok_or("no checkpoint")?;
            let start = format!("stopped: stopped after step {step}; continue with `--resume`");
            assert!(words.starts_with(&start) && words.trim_end().lines().count() == 1, "{words}");
            checkpoint::load(&checkpoint::folder(&run.join("checkpoints"), step))?;
        }
        program.finish(&run)?;
        program.expect_like(&whole, &run, &format!("{kind:?}"))?;
    }
    Ok(())
}

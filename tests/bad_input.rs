//! Broken input at the command line: one line that names file, field, expected and found, and an exit code.
#[path = "support/run.rs"]
mod run;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use flowprior::train::checkpoint::{self, MANIFEST};
use run::{Kind, Outcome, assert_same, normals, random_prior, records, tensors, write_rows};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flowprior");

fn flowprior(arguments: &[&str]) -> Outcome<Output> {
    // The same with and without a card.
    Ok(Command::new(PROGRAM).args(arguments).env("FLOWPRIOR_CUDA_DRIVER", "/nowhere/libcuda.so").output()?)
}

/// Runs the program, which must end with `code` and say one line that holds all of `parts`.
fn refused(arguments: &[&str], code: i32, parts: &[&str]) -> Outcome<String> {
    let output = flowprior(arguments)?;
    let what = format!("{arguments:?}\n{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    let words = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(code), "{what}");
    assert!(words.starts_with("error: ") && words.trim_end().lines().count() == 1, "{what}");
    for part in parts {
        assert!(words.contains(part), "no `{part}` in: {what}");
    }
    Ok(words)
}

/// A folder, and the words of a small run in it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Outcome<Self> {
        Ok(Self { dir: tempfile::tempdir()? })
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn prior(&self) -> Outcome<PathBuf> {
        random_prior(&self.dir.path().join("prior.safetensors"), 2, 0.05)
    }

    /// Writes the configuration of a small run and returns its path.
    fn config(&self, kind: Kind, more: &[&str]) -> Outcome<String> {
        let path = self.path(&format!("{kind:?}.toml"));
        let prior = if kind == Kind::Pretrain { None } else { Some(self.prior()?) };
        fs::write(&path, kind.config(prior.as_deref(), more)?.to_toml()?)?;
        Ok(path)
    }

    /// Trains a small prior to its end.
    fn trained(&self, name: &str, more: &[&str]) -> Outcome<String> {
        let (config, run) = (self.config(Kind::Pretrain, more)?, self.path(name));
        let output = flowprior(&["pretrain", "--quiet", "--config", &config, "--run", &run])?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(run)
    }

    fn left_nothing(&self, name: &str) {
        assert!(!Path::new(&self.path(name)).exists(), "a refused run left a folder");
    }
}

// ---- Options.

#[test]
fn an_unknown_key_is_refused_with_the_nearest_one() -> Outcome {
    let place = Place::new()?;
    let (file, run) = (place.path("my.toml"), place.path("run"));
    let set = ["pretrain", "--run", &run, "--preset", "toy-gaussians", "--set", "optim.lrr=1"];
    refused(&set, 2, &["`--set optim.lrr=1`: unknown key `optim.lrr`; did you mean `optim.lr`?"])?;
    fs::write(&file, "[model]\nwidht = 64\n")?;
    let words = format!("{file}: unknown key `model.widht`; did you mean `model.width`?");
    refused(&["align", "--run", &run, "--config", &file], 2, &[&words])?;
    fs::write(&file, "[model\n")?;
    let output = flowprior(&["pretrain", "--run", &run, "--config", &file])?;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("{file}: not valid TOML")));
    place.left_nothing("run");
    Ok(())
}

#[test]
fn every_unsound_option_of_the_reference_is_refused_by_name_and_reason() -> Outcome {
    let place = Place::new()?;
    let run = place.path("run");
    for (stage, set, parts) in [
        ("pretrain", "flow.norm_v=true", ["`flow.norm_v` is refused: ", "norm √d"]),
        (
            "pretrain",
            "flow.moving_avg_std=true",
            ["`flow.moving_avg_std` is refused: ", "`data.standardise = true`"],
        ),
        ("pretrain", "flow.seperate_fitting=true", ["`flow.seperate_fitting` is refused: ", "the same loss"]),
        ("align", "align.flow_loss_trainable=true", ["`align.flow_loss_trainable` is refused: ", "chase"]),
        (
            "pretrain",
            "flow.unit_norm=true",
            ["flow.unit_norm needs flow.norm_target = true", "silently ignores"],
        ),
        ("align", "align.gradient=detached", ["needs flow.weight = \"kl\"", "collapse"]),
        ("align", "flow.detach_pred_v=true", ["`flow.detach_pred_v`", "`align.gradient = \"detached\"`"]),
        ("align", "align.adaptive=true", ["needs align.target = \"autoencoder\"", "no reconstruction"]),
        ("align", "align.flow_adaptive_weight=true", ["`align.flow_adaptive_weight`", "`align.adaptive`"]),
        ("pretrain", "flow.reduction=none", ["flow.reduction", "unknown variant `none`"]),
    ] {
        let arguments = [stage, "--run", &run, "--preset", "toy-gaussians", "--set", set];
        let output = flowprior(&arguments)?;
        let words = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{set}: {words}");
        assert!(words.starts_with("error: ") && words.trim_end().lines().count() == 1, "{set}: {words}");
        assert!(parts.iter().all(|part| words.contains(part)), "{set}: {words}");
    }
    place.left_nothing("run");
    Ok(())
}

#[test]
fn a_bad_device_precision_or_number_is_refused() -> Outcome {
    let place = Place::new()?;
    let run = place.path("run");
    let toy = ["pretrain", "--run", &run, "--preset", "toy-gaussians"];
    for device in ["cuda", "cuda:3"] {
        let parts = ["the CUDA driver cannot be opened", "/nowhere/libcuda.so", "--device cpu"];
        refused(&[&toy[..], &["--device", device]].concat(), 4, &parts)?;
    }
    for (option, value, words) in [
        ("--device", "tpu", "device must be `auto`, `cpu` or `cuda[:n]`, but is `tpu`"),
        ("--dtype", "f64", "unknown dtype `f64`: expected `f32`, `bf16` or `f16` in `dtype`"),
        ("--steps", "0", "train.steps must be at least 1, but is 0"),
        ("--modulation", "nodez", "unknown modulation `nodez`, expected `auto`"),
        ("--set", "optim.lr=-1", "optim.lr must be greater than 0, but is -1"),
        ("--set", "train.micro_batches=3", "train.micro_batches must divide train.batch = 256, but is 3"),
        ("--threads", "100000000", "threads must be from 0 to 4096, but is 100000000"),
    ] {
        refused(&[&toy[..], &[option, value]].concat(), 2, &[words])?;
    }
    for threads in ["--threads=-1", "--threads=many", "--threads=1.5"] {
        let output = flowprior(&[&toy[..], &[threads]].concat())?;
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("--threads"), "{output:?}");
    }
    let preset = ["pretrain", "--run", &run, "--preset", "toy-gausians"];
    refused(&preset, 2, &["unknown preset `toy-gausians`; did you mean `toy-gaussians`?"])?;
    let other = ["pretrain", "--run", &run, "--preset", "reference-align"];
    refused(&other, 2, &["preset `reference-align`: is for stage `align`, but the command is `pretrain`"])?;
    refused(
        &["pretrain", "--run", &run],
        2,
        &["no data: set one of `data.toy`, `data.path` and `data.builtin`"],
    )?;
    place.left_nothing("run");
    Ok(())
}

// ---- Data.

#[test]
fn data_of_another_width_than_the_network_is_refused() -> Outcome {
    let place = Place::new()?;
    let run = place.path("run");
    let toy = ["pretrain", "--run", &run, "--preset", "toy-gaussians", "--set", "model.channels=3"];
    refused(&toy, 3, &["toy `gaussians`: width: expected 3 columns (model.channels), found 2 columns"])?;
    let data = write_rows(&place.dir.path().join("data"), &[0.5; 60], 5, 12)?;
    let path = format!("data.path='{}'", data.display());
    let arguments = [&toy[..], &["--set", &path]].concat();
    let words = format!("{}: width: expected 3 columns (model.channels), found 5 columns", data.display());
    refused(&arguments, 3, &[&words])?;

    let config = place.config(Kind::Autoencoder, &["align.autoencoder.latent=7"])?;
    let words = "prior.safetensors: width: expected 7 (align.autoencoder.latent), found a prior of width 2";
    refused(&["align", "--run", &run, "--config", &config], 3, &[words])?;
    place.left_nothing("run");
    Ok(())
}

#[test]
fn data_that_are_missing_or_damaged_are_refused_before_anything_is_written() -> Outcome {
    let place = Place::new()?;
    let run = place.path("run");
    let with = |path: &str, code: i32, parts: &[&str]| {
        let set = format!("data.path='{path}'");
        let arguments = ["pretrain", "--run", &run, "--preset", "toy-gaussians", "--set", &set];
        refused(&arguments, code, parts)
    };
    with(&place.path("nowhere"), 3, &["nowhere"])?;
    let mut values = vec![0.0; 200];
    normals(&mut values, 1);
    let data = write_rows(&place.dir.path().join("data"), &values, 2, 40)?;
    let shard = data.join("part-00001.safetensors");
    let bytes = fs::read(&shard)?;
    fs::write(&shard, &bytes[..bytes.len() - 4])?;
    let found = format!("found {} bytes", bytes.len() - 4);
    with(
        &data.display().to_string(),
        3,
        &["part-00001.safetensors: ", &format!("expected {} bytes", bytes.len()), &found],
    )?;
    fs::remove_file(&shard)?;
    with(&data.display().to_string(), 3, &["part-00001.safetensors"])?;
    place.left_nothing("run");
    Ok(())
}

#[test]
fn data_that_are_not_numbers_end_the_run_with_five() -> Outcome {
    let place = Place::new()?;
    let data = write_rows(&place.dir.path().join("data"), &[f32::NAN; 80], 2, 40)?;
    let source = format!("data.path='{}'", data.display());
    let config = place.config(Kind::Pretrain, &[&source, "train.max_skipped=4"])?;
    let run = place.path("run");
    let parts = ["step 3: the loss is not finite, the 4th step in a row", "`train.max_skipped`"];
    refused(&["pretrain", "--quiet", "--run", &run, "--config", &config], 5, &parts)?;
    let skipped = records(Path::new(&run))?.iter().filter(|r| r["kind"] == "skipped").count();
    assert_eq!(skipped, 4);
    assert!(!Path::new(&run).join("prior.safetensors").exists(), "nothing was learned");
    Ok(())
}

// ---- Checkpoints and priors.

#[test]
fn a_prior_that_is_missing_or_none_is_refused_and_leaves_nothing_behind() -> Outcome {
    let place = Place::new()?;
    let run = place.path("run");
    let align = ["align", "--run", &run, "--preset", "toy-gaussians"];
    refused(&align, 2, &["no prior to align to: give a run folder of `pretrain` with `--prior RUN`"])?;
    let with = |name: &str, words: &str| {
        let prior = place.path(name);
        refused(&[&align[..], &["--prior", &prior]].concat(), 3, &[&format!("{prior}: {words}")])
    };
    with("nowhere", "folder: expected a run, or a checkpoint of one, found nothing")?;
    fs::create_dir(place.path("empty"))?;
    with("empty", "folder: expected a run, or a checkpoint of one, found neither")?;
    fs::write(place.path("text.safetensors"), "not at all")?;
    with("text.safetensors", "header: expected a safetensors file, found ")?;
    place.left_nothing("run");
    Ok(())
}

#[test]
fn a_prior_of_the_wrong_stage_is_refused() -> Outcome {
    let place = Place::new()?;
    let (config, aligned) = (place.config(Kind::Latents, &[])?, place.path("aligned"));
    let output = flowprior(&["align", "--quiet", "--config", &config, "--run", &aligned])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run = place.path("run");
    for prior in [aligned.clone(), format!("{aligned}/checkpoints/0000024")] {
        let arguments = ["align", "--run", &run, "--preset", "toy-gaussians", "--prior", &prior];
        refused(&arguments, 3, &["0000024/checkpoint.json: stage: expected pretrain, found align"])?;
    }
    place.left_nothing("run");
    let own = ["pretrain", "--run", &aligned, "--preset", "toy-gaussians", "--resume", "auto"];
    let before = tensors(Path::new(&aligned), 24)?;
    refused(&own, 3, &["0000024/checkpoint.json: stage: expected pretrain, found align"])?;
    assert_same(&before, &tensors(Path::new(&aligned), 24)?, "a run of the other stage");
    Ok(())
}

#[test]
fn a_prior_file_must_name_its_time_convention() -> Outcome {
    let place = Place::new()?;
    let (run, prior) = (place.path("run"), place.prior()?);
    let bytes = fs::read(&prior)?;
    let renamed = |from: &str, to: &str| -> Outcome {
        let text = bytes.windows(from.len()).position(|w| w == from.as_bytes()).ok_or("not in the header")?;
        let mut changed = bytes.clone();
        changed[text..text + from.len()].copy_from_slice(to.as_bytes());
        Ok(fs::write(&prior, changed)?)
    };
    let prior = prior.display().to_string();
    let arguments = ["align", "--run", &run, "--preset", "toy-gaussians", "--prior", &prior];
    renamed("time_convention", "some_convention")?;
    refused(
        &arguments,
        3,
        &["prior.safetensors: time_convention: expected metadata that names it", "found neither"],
    )?;
    renamed("data_at_one", "data_at_two")?;
    refused(
        &arguments,
        3,
        &["prior.safetensors: time_convention: expected data_at_one or noise_at_one, found data_at_two"],
    )?;
    renamed("input_proj.bias", "input_proj.bass")?;
    refused(
        &arguments,
        3,
        &["prior.safetensors: input_proj.bias: expected a tensor of shape [32], found none"],
    )?;
    place.left_nothing("run");
    Ok(())
}

/// Changes the manifest of a checkpoint and seals it again, as another program would have written it.
fn rewrite(checkpoint: &Path, from: &str, to: &str) -> Outcome {
    let path = checkpoint.join(MANIFEST);
    let text = fs::read_to_string(&path)?;
    let (begin, middle, end) = ("{\"crc32c\":\"", "\",\"manifest\":\n", "\n}\n");
    let body = text.strip_prefix(begin).and_then(|t| t[8..].strip_prefix(middle)?.strip_suffix(end));
    let body = body.ok_or("no sealed manifest")?;
    assert!(body.contains(from), "{body}");
    let body = body.replacen(from, to, 1);
    Ok(fs::write(&path, format!("{begin}{:08x}{middle}{body}{end}", crc32c::crc32c(body.as_bytes())))?)
}

#[test]
fn a_checkpoint_of_another_time_convention_is_refused() -> Outcome {
    let place = Place::new()?;
    let trained = place.trained("trained", &[])?;
    let checkpoint = Path::new(&trained).join("checkpoints/0000024");
    rewrite(&checkpoint, "\"data_at_one\"", "\"noise_at_one\"")?;
    let words = "0000024/checkpoint.json: time_convention: expected data_at_one, found noise_at_one";
    let run = place.path("run");
    refused(&["align", "--run", &run, "--preset", "toy-gaussians", "--prior", &trained], 3, &[words])?;
    place.left_nothing("run");
    // The only checkpoint is none: the run does not silently start anew.
    refused(&["pretrain", "--run", &trained, "--resume", "auto"], 3, &[words])?;
    assert!(checkpoint.exists());
    Ok(())
}

#[test]
fn a_checkpoint_of_another_architecture_is_refused() -> Outcome {
    let place = Place::new()?;
    let trained = place.trained("trained", &[])?;
    let before = tensors(Path::new(&trained), 24)?;
    for (set, words) in [
        ("model.width=48", "architecture.velocity.width: expected 48, found 32"),
        ("model.depth=1", "architecture.velocity.depth: expected 1, found 2"),
        ("model.post_norm=true", "architecture.velocity.post_norm: expected true, found false"),
        ("model.time_scale=2", "architecture.velocity.time_scale: expected 2.0, found 1.0"),
        ("data.builtin=digits", "architecture.velocity.channels: expected 64, found 2"),
    ] {
        let config = place.config(Kind::Pretrain, &[set])?;
        let arguments = ["pretrain", "--run", &trained, "--config", &config, "--resume", "auto"];
        refused(&arguments, 3, &["0000024/checkpoint.json: ", words])?;
    }
    let narrow = place.config(Kind::Pretrain, &["dtype=bf16"])?;
    let arguments = ["pretrain", "--run", &trained, "--config", &narrow, "--resume", "auto"];
    refused(&arguments, 3, &["model.safetensors: ", "expected BF16", "found F32"])?;
    assert_same(&before, &tensors(Path::new(&trained), 24)?, "after refusals");
    Ok(())
}

#[test]
fn a_run_that_is_resumed_with_another_configuration_says_so() -> Outcome {
    let place = Place::new()?;
    let trained = place.trained("trained", &[])?;
    let config = place.config(Kind::Pretrain, &["seed=7", "train.steps=30"])?;
    let output = flowprior(&["pretrain", "--run", &trained, "--config", &config, "--resume", "auto"])?;
    let words = String::from_utf8(output.stderr)?;
    assert!(output.status.success(), "{words}");
    for change in ["seed: 42 -> 7", "train.steps: 24 -> 30"] {
        assert!(words.contains(&format!("resumed at step 24 with another {change}\n")), "{words}");
    }
    assert_eq!(words.matches("with another").count(), 2, "{words}");
    Ok(())
}

#[test]
fn a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_used() -> Outcome {
    let place = Place::new()?;
    let sets = ["train.checkpoint_every=8", "train.keep=3"];
    let (whole, broken) = (place.trained("whole", &sets)?, place.trained("broken", &sets)?);
    let file = Path::new(&broken).join("checkpoints/0000024/ema0.safetensors");
    let mut bytes = fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&file, bytes)?;
    let given = ["pretrain", "--run", &whole, "--resume", &format!("{broken}/checkpoints/0000024")];
    refused(
        &[&given[..], &["--preset", "toy-gaussians"]].concat(),
        3,
        &["ema0.safetensors: crc32c: expected ", ", found "],
    )?;

    let output = flowprior(&["pretrain", "--run", &broken, "--resume", "auto"])?;
    let words = String::from_utf8(output.stderr)?;
    assert!(output.status.success(), "{words}");
    let line = words.lines().find(|l| l.contains("set aside")).ok_or("it is not reported")?;
    assert!(
        line.contains(".broken-0000024: ") && line.contains("ema0.safetensors: crc32c: expected "),
        "{line}"
    );
    assert!(words.contains("24/24"), "{words}");
    let (whole, broken) = (Path::new(&whole), Path::new(&broken));
    assert_same(&tensors(whole, 24)?, &tensors(broken, 24)?, "from the checkpoint before");
    assert_eq!(records(whole)?, records(broken)?);
    Ok(())
}

// ---- Run folders.

#[test]
fn a_run_folder_that_is_not_empty_is_left_alone() -> Outcome {
    let place = Place::new()?;
    let trained = place.trained("trained", &[])?;
    let before = tensors(Path::new(&trained), 24)?;
    for resume in [&[][..], &["--resume", "never"]] {
        let arguments = [&["pretrain", "--preset", "toy-gaussians", "--run", &trained][..], resume].concat();
        let words = format!("run folder {trained} is not empty: continue it with `--resume auto`");
        refused(&arguments, 2, &[&words])?;
    }
    assert_same(&before, &tensors(Path::new(&trained), 24)?, "a refused start");
    let other = place.path("thesis");
    fs::create_dir(&other)?;
    fs::write(place.path("thesis/thesis.tex"), "precious")?;
    let arguments = ["pretrain", "--preset", "toy-gaussians", "--run", &other, "--resume", "auto"];
    refused(&arguments, 2, &[&format!("{other}: has files, but is not a run folder")])?;
    assert_eq!(fs::read_dir(&other)?.count(), 1);
    let missing =
        ["pretrain", "--run", &trained, "--resume", &place.path("nowhere"), "--preset", "toy-gaussians"];
    refused(&missing, 3, &["nowhere: folder: expected a run, or a checkpoint of one, found nothing"])?;
    Ok(())
}

#[test]
fn a_run_folder_in_use_by_another_process_is_refused_by_its_number() -> Outcome {
    let place = Place::new()?;
    let (config, run) = (place.config(Kind::Pretrain, &["train.steps=1000000000"])?, place.path("run"));
    let arguments = ["pretrain", "--quiet", "--config", &config, "--run", &run];
    let mut first = Command::new(PROGRAM).args(arguments).stderr(Stdio::null()).spawn()?;
    let begun = Instant::now();
    while !Path::new(&run).join("metrics.jsonl").exists() && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let words = format!("run folder {run} already in use by process {}", first.id());
    let outcome: Outcome = ["never", "auto"].into_iter().try_for_each(|resume| {
        refused(&[&arguments[..], &["--resume", resume]].concat(), 2, &[&words]).map(|_| ())
    });
    first.kill()?;
    first.wait()?;
    outcome?;
    // The lock dies with its process.
    let config = place.config(Kind::Pretrain, &[])?;
    let arguments = ["pretrain", "--quiet", "--config", &config, "--run", &run, "--resume", "auto"];
    assert!(flowprior(&arguments)?.status.success());
    Ok(())
}

#[test]
fn a_full_disk_ends_the_run_with_three_and_the_last_good_checkpoint_continues_it() -> Outcome {
    let place = Place::new()?;
    let sets = ["train.checkpoint_every=2", "train.keep=100"];
    let whole = place.trained("whole", &sets)?;
    let config = place.config(Kind::Pretrain, &sets)?;
    let (small, saved) = (place.path("small"), place.path("saved"));
    fs::create_dir(&small)?;
    let inside = |script: &str| Command::new("unshare").args(["-rm", "sh", "-c", script]).output();
    let mount = format!("mount -t tmpfs -o size=2m tmpfs '{small}'");
    match inside(&mount) {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            println!("skipped: no small disk to fill: {}", String::from_utf8_lossy(&output.stderr).trim());
            return Ok(());
        }
        Err(e) => {
            println!("skipped: no small disk to fill: `unshare`: {e}");
            return Ok(());
        }
    }
    let output = inside(&format!(
        "{mount} || exit 99; '{PROGRAM}' pretrain --quiet --config '{config}' --run '{small}/run'; code=$?; \
         cp -r '{small}/run' '{saved}' || exit 98; exit $code"
    ))?;
    let words = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(3), "{words}");
    assert!(
        words.starts_with(&format!("error: {small}/run/")) && words.trim_end().lines().count() == 1,
        "{words}"
    );
    assert!(words.contains(": cannot ") && words.contains("No space left on device"), "{words}");

    let saved = Path::new(&saved);
    let latest = checkpoint::latest(&saved.join("checkpoints"))?;
    assert!(latest.broken.is_empty());
    let step = latest.loaded.ok_or("no checkpoint is left")?.manifest().step;
    assert!((2..24).contains(&step), "the disk was full after step {step}");
    assert_same(&tensors(Path::new(&whole), step)?, &tensors(saved, step)?, "the last good checkpoint");
    assert!(
        flowprior(&["pretrain", "-q", "--run", &saved.display().to_string(), "--resume"])?.status.success()
    );
    assert_same(&tensors(Path::new(&whole), 24)?, &tensors(saved, 24)?, "after the disk had room again");
    assert_eq!(records(Path::new(&whole))?, records(saved)?);
    Ok(())
}

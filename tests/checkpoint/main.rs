//! Checkpoints under damage: kills, full disks, flipped bits, cut files, foreign networks.

mod run_folder;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use flowprior::optim::scaler::{Scaler, ScalerConfig};
use flowprior::train::checkpoint::{self, Disk, Dtype, Group, Loaded, Manifest, TensorRef};
use flowprior::train::{Skips, Stage};
use flowprior::{Error, Result};
use half::bf16;
use proptest::prelude::*;
use serde_json::json;

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

fn architecture() -> serde_json::Value {
    json!({ "network": "mlp", "channels": 2, "width": 8, "depth": 1 })
}

fn manifest(step: u64) -> Manifest {
    let mut manifest = Manifest::new(Stage::Pretrain, step, 42, architecture(), "seed = 42\n".to_owned());
    manifest.position = 256 * step;
    manifest.scaler = Some(Scaler::new(&ScalerConfig::default()));
    manifest.skipped = Skips { total: 3, in_a_row: 1 };
    manifest.data = json!({ "name": "grid", "mean": [0.1, -2.5e-7] });
    manifest
}

/// Creates a folder in memory where there is one: these tests flush thousands of files to the disk.
fn scratch() -> std::io::Result<tempfile::TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

/// Values that differ from step to step.
fn values(step: u64) -> (Vec<f32>, Vec<bf16>) {
    let weights: Vec<f32> = (0..6).map(|i| (step * 10 + i) as f32 * 0.37 - 1.0).collect();
    let copy = weights.iter().map(|x| bf16::from_f32(*x)).collect();
    (weights, copy)
}

fn save_on(disk: &Disk, dir: &Path, step: u64, keep: usize) -> Result<PathBuf> {
    let (weights, copy) = values(step);
    let groups = [
        Group {
            file: "model",
            tensors: vec![
                TensorRef::new("res_blocks.0.mlp.0.weight", &[2, 3], &copy),
                TensorRef::new("input_proj.weight", &[3, 2], &weights),
            ],
        },
        Group { file: "ema-0.999", tensors: vec![TensorRef::new("input_proj.weight", &[6], &weights)] },
    ];
    checkpoint::save_on(disk, dir, &manifest(step), &groups, keep)
}

fn save(dir: &Path, step: u64, keep: usize) -> Result<PathBuf> {
    save_on(&Disk::default(), dir, step, keep)
}

/// Checks that a checkpoint is the one of `step`, to the bit.
fn expect_step(loaded: &Loaded, step: u64) -> Result<()> {
    let (weights, copy) = values(step);
    let (mut w, mut c) = (vec![0.0f32; 6], vec![bf16::ZERO; 6]);
    loaded.read_into(&mut w, "model", "input_proj.weight", &[3, 2])?;
    loaded.read_into(&mut c, "model", "res_blocks.0.mlp.0.weight", &[2, 3])?;
    assert_eq!((w, c), (weights, copy));
    let mut found = loaded.manifest().clone();
    assert_eq!(found.files.len(), 2);
    found.files.clear();
    assert_eq!(found, manifest(step));
    Ok(())
}

fn latest_step(dir: &Path) -> Result<Option<u64>> {
    let latest = checkpoint::latest(dir)?;
    if let Some(loaded) = &latest.loaded {
        expect_step(loaded, loaded.manifest().step)?;
    }
    Ok(latest.loaded.map(|l| l.manifest().step))
}

fn names(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Returns the error of a load that must fail: of exit code 3, naming a file of the checkpoint.
fn refused(path: &Path) -> Error {
    match checkpoint::load(path) {
        Ok(_) => panic!("{} was accepted", path.display()),
        Err(e) => {
            assert_eq!(e.exit_code(), 3, "{e}");
            assert!(e.to_string().starts_with(&path.display().to_string()), "{e}");
            e
        }
    }
}

#[test]
fn a_checkpoint_loads_to_the_same_bits_and_the_safetensors_crate_reads_it() -> Outcome {
    let dir = tempfile::tempdir()?; // a real disk, with real flushes
    let path = save(dir.path(), 12, 2)?;
    assert_eq!(path, dir.path().join("0000012"));
    assert_eq!(names(&path)?, ["checkpoint.json", "ema-0.999.safetensors", "model.safetensors"]);
    let loaded = checkpoint::load(&path)?;
    expect_step(&loaded, 12)?;
    assert!(loaded.has("model") && !loaded.has("moments"));
    assert_eq!(loaded.groups().collect::<Vec<_>>(), ["ema-0.999", "model"]);
    assert_eq!(loaded.names("model")?, ["input_proj.weight", "res_blocks.0.mlp.0.weight"]);
    let bytes = fs::read(path.join("model.safetensors"))?;
    let theirs = safetensors::SafeTensors::deserialize(&bytes)?;
    let (ours, theirs) = (loaded.tensor("model", "input_proj.weight")?, theirs.tensor("input_proj.weight")?);
    assert_eq!((ours.dtype(), ours.shape(), ours.data()), (theirs.dtype(), theirs.shape(), theirs.data()));
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes)?;
    let convention = metadata.metadata().as_ref().and_then(|m| m.get("time_convention").cloned());
    assert_eq!(convention.as_deref(), Some("data_at_one"));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(path.join("checkpoint.json"))?)?;
    assert_eq!(json["manifest"]["step"], 12);
    Ok(())
}

#[test]
fn equal_states_are_equal_bytes() -> Outcome {
    let (a, b) = (scratch()?, scratch()?);
    let (a, b) = (save(a.path(), 5, 1)?, save(b.path(), 5, 1)?);
    for file in names(&a)? {
        assert_eq!(fs::read(a.join(&file))?, fs::read(b.join(&file))?, "{file}");
    }
    Ok(())
}

#[test]
fn only_the_newest_are_kept() -> Outcome {
    let dir = scratch()?;
    for step in [10, 20, 30, 10_000_000] {
        save(dir.path(), step, 2)?;
    }
    assert_eq!(names(dir.path())?, ["0000030", "10000000"]);
    save(dir.path(), 10_000_001, 1)?;
    assert_eq!(names(dir.path())?, ["10000001"]);
    Ok(())
}

#[test]
fn a_full_disk_at_any_operation_leaves_the_last_good_checkpoint() -> Outcome {
    let disk = Disk::default();
    let dir = scratch()?;
    for step in [1, 2] {
        save_on(&Disk::default(), dir.path(), step, 2)?;
    }
    save_on(&disk, dir.path(), 3, 2)?;
    let operations = disk.operations();
    // A folder; two files of create, header, tensors, sync (5 + 4); a manifest (3); sync, rename, sync; one pruned (2).
    assert_eq!(operations, 1 + 5 + 4 + 3 + 3 + 2);
    for n in 0..operations {
        let dir = scratch()?;
        for step in [1, 2] {
            save(dir.path(), step, 2)?;
        }
        let error = save_on(&Disk::full_at(n), dir.path(), 3, 2).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        let message = error.to_string();
        assert!(message.starts_with(&dir.path().display().to_string()), "{message}");
        assert!(message.contains("No space left on device"), "{message}");
        let renamed = n >= operations - 3; // the new checkpoint was complete before the failure
        assert_eq!(latest_step(dir.path())?, Some(if renamed { 3 } else { 2 }), "operation {n}");
        assert!(!dir.path().join(".tmp-0000003").exists(), "operation {n} left its temporary folder");
        save(dir.path(), 4, 2)?; // with space again, the run goes on
        assert_eq!(latest_step(dir.path())?, Some(4));
        assert!(names(dir.path())?.iter().all(|name| !name.starts_with('.')), "operation {n}");
    }
    Ok(())
}

#[test]
fn a_kill_at_any_operation_leaves_the_last_good_checkpoint() -> Outcome {
    for n in 0..18 {
        for before in [vec![], vec![2], vec![1, 2]] {
            let dir = scratch()?;
            for step in &before {
                save(dir.path(), *step, 2)?;
            }
            let died = save_on(&Disk::gone_from(n), dir.path(), 3, 2).is_err();
            let found = latest_step(dir.path())?;
            assert!(found == before.last().copied() || found == Some(3), "operation {n}: {found:?}");
            assert!(died || found == Some(3));
            save(dir.path(), 4, 2)?;
            assert_eq!(latest_step(dir.path())?, Some(4));
            assert!(names(dir.path())?.iter().all(|name| !name.starts_with('.')), "operation {n}");
        }
    }
    Ok(())
}

#[test]
fn a_step_that_is_already_saved_is_kept_and_a_broken_one_replaced() -> Outcome {
    let dir = scratch()?;
    let path = save(dir.path(), 7, 2)?;
    let disk = Disk::default();
    save_on(&disk, dir.path(), 7, 2)?;
    assert_eq!(disk.operations(), 0);
    fs::write(path.join("model.safetensors"), "damaged")?;
    save(dir.path(), 7, 2)?;
    assert_eq!(latest_step(dir.path())?, Some(7));
    assert_eq!(names(dir.path())?, ["0000007"]);
    Ok(())
}

#[test]
fn every_flipped_bit_and_every_changed_byte_is_detected() -> Outcome {
    let dir = scratch()?;
    let path = save(dir.path(), 7, 2)?;
    for name in names(&path)? {
        let file = path.join(&name);
        let good = fs::read(&file)?;
        for i in 0..good.len() {
            for flip in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[i] ^= flip;
                fs::write(&file, &bad)?;
                let error = refused(&path).to_string();
                assert!(error.starts_with(&file.display().to_string()), "byte {i} of {name}: {error}");
            }
        }
        fs::write(&file, &good)?;
    }
    checkpoint::load(&path)?; // as good as before
    Ok(())
}

#[test]
fn a_file_cut_at_any_length_padded_or_missing_is_detected() -> Outcome {
    let dir = scratch()?;
    let path = save(dir.path(), 7, 2)?;
    for name in names(&path)? {
        let file = path.join(&name);
        let good = fs::read(&file)?;
        for length in 0..good.len() {
            fs::write(&file, &good[..length])?;
            let error = refused(&path).to_string();
            if name != "checkpoint.json" {
                let words = format!("length: expected {} bytes, found {length} bytes", good.len());
                assert!(error.ends_with(&words), "{error}");
            }
        }
        fs::write(&file, [good.as_slice(), b"\0"].concat())?;
        refused(&path);
        fs::remove_file(&file)?;
        let error = refused(&path).to_string();
        assert_eq!(error, format!("{}: file: expected to be there, found missing", file.display()));
        fs::write(&file, &good)?;
    }
    Ok(())
}

/// Rewrites the manifest with a right checksum: what a foreign or newer program could have written.
fn rewrite(path: &Path, change: impl FnOnce(&mut serde_json::Value)) -> Outcome {
    let file = path.join("checkpoint.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
    change(&mut json["manifest"]);
    let body = serde_json::to_string_pretty(&json["manifest"])?;
    let sum = crc32c::crc32c(body.as_bytes());
    fs::write(&file, format!("{{\"crc32c\":\"{sum:08x}\",\"manifest\":\n{body}\n}}\n"))?;
    Ok(())
}

#[test]
fn another_format_time_convention_or_file_name_is_refused_with_both_values() -> Outcome {
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 6] = [
        (|m| m["format"] = json!(2), "format: expected 1, found 2"),
        (|m| drop(m.as_object_mut().map(|m| m.remove("format"))), "format: expected 1, found null"),
        (
            |m| m["time_convention"] = json!("noise_at_one"),
            "time_convention: expected data_at_one, found noise_at_one",
        ),
        (
            |m| m["extra"] = json!(1),
            "manifest: expected all fields of its format, found unknown field `extra`",
        ),
        (
            |m| m["files"][0]["name"] = json!("../x.safetensors"),
            "files: expected plain file names, found ../x",
        ),
        (|m| m["files"][0]["bytes"] = json!(5), "length: expected 5 bytes, found"),
    ];
    for (change, words) in cases {
        let dir = scratch()?;
        let path = save(dir.path(), 7, 2)?;
        rewrite(&path, |_| {})?;
        checkpoint::load(&path)?; // the rewriting itself is sound
        rewrite(&path, change)?;
        let error = refused(&path).to_string();
        assert!(error.contains(words), "{error}");
    }
    Ok(())
}

#[test]
fn another_architecture_or_stage_is_refused_with_both_values() -> Outcome {
    let dir = scratch()?;
    let loaded = checkpoint::load(&save(dir.path(), 7, 2)?)?;
    loaded.expect_architecture(&architecture())?;
    loaded.expect_stage(Stage::Pretrain)?;
    for (key, value, words) in [
        ("width", json!(16), "checkpoint.json: architecture.width: expected 16, found 8"),
        ("cond", json!(4), "checkpoint.json: architecture.cond: expected 4, found null"),
        ("network", json!("dit"), "checkpoint.json: architecture.network: expected \"dit\", found \"mlp\""),
    ] {
        let mut other = architecture();
        other[key] = value;
        let error = loaded.expect_architecture(&other).unwrap_err();
        assert!(error.to_string().ends_with(words), "{error}");
        assert_eq!(error.exit_code(), 3);
    }
    let error = loaded.expect_stage(Stage::Align).unwrap_err().to_string();
    assert!(error.ends_with("checkpoint.json: stage: expected align, found pretrain"), "{error}");
    Ok(())
}

#[test]
fn a_tensor_of_another_name_type_or_shape_is_refused_with_both() -> Outcome {
    let dir = scratch()?;
    let loaded = checkpoint::load(&save(dir.path(), 7, 2)?)?;
    let mut out = [0.0f32; 6];
    let name = "input_proj.weight";
    for (group, name, shape, words) in [
        ("moments", name, [3, 2], "files: expected moments.safetensors, found ema-0.999, model"),
        (
            "model",
            "cond_embed.weight",
            [3, 2],
            "cond_embed.weight: expected a tensor of this name, found none",
        ),
        ("model", name, [2, 3], "input_proj.weight: expected F32 [2, 3], found F32 [3, 2]"),
        ("model", "res_blocks.0.mlp.0.weight", [2, 3], "expected F32 [2, 3], found BF16 [2, 3]"),
    ] {
        let error = loaded.read_into(&mut out, group, name, &shape).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.exit_code(), 3);
    }
    assert!(loaded.read_into(&mut out[..5], "model", name, &[3, 2]).is_err());
    Ok(())
}

#[test]
fn tensors_that_cannot_be_saved_are_refused_before_anything_is_written() -> Outcome {
    let dir = scratch()?;
    let tensor = |name: &'static str| TensorRef::from_bytes(name, Dtype::F32, &[2], vec![0; 8]);
    let group = |tensors| Group { file: "model", tensors };
    for groups in [
        vec![group(vec![TensorRef::from_bytes("w", Dtype::F32, &[2], vec![0; 7])])],
        vec![group(vec![tensor("w"), tensor("w")])],
        vec![group(vec![tensor("w")]), group(vec![tensor("w")])],
    ] {
        let error = checkpoint::save(dir.path(), &manifest(1), &groups, 2).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }
    assert!(names(dir.path())?.is_empty());
    Ok(())
}

#[test]
fn latest_passes_over_broken_ones_and_names_them_but_never_all() -> Outcome {
    let dir = scratch()?;
    assert!(checkpoint::latest(&dir.path().join("none"))?.loaded.is_none());
    for step in [1, 2, 3] {
        save(dir.path(), step, 3)?;
    }
    fs::write(dir.path().join("0000003/model.safetensors"), "torn")?;
    fs::create_dir(dir.path().join("0000004"))?;
    fs::create_dir(dir.path().join("notes"))?;
    let latest = checkpoint::latest(dir.path())?;
    assert_eq!(latest.loaded.map(|l| l.manifest().step), Some(2));
    let broken: Vec<_> = latest.broken.iter().map(|(path, e)| format!("{} {e}", path.display())).collect();
    assert!(
        broken[0].contains("0000004/checkpoint.json: file: expected to be there, found missing"),
        "{broken:?}"
    );
    assert!(broken[1].contains("0000003/model.safetensors: length: expected "), "{broken:?}");
    for step in [1, 2] {
        fs::remove_file(dir.path().join(format!("{step:07}/checkpoint.json")))?;
    }
    let error = checkpoint::latest(dir.path()).unwrap_err().to_string();
    assert!(error.contains("0000004/checkpoint.json"), "{error}");
    Ok(())
}

const FULL_DISK: &str = "FLOWPRIOR_TEST_FULL_DISK";

/// Fills a small disk with checkpoints, in a process that `unshare` gave a mount of its own.
#[test]
#[ignore = "a helper of the test below, in a process of its own"]
fn full_disk_child() -> Outcome {
    let dir = PathBuf::from(std::env::var(FULL_DISK)?);
    let weights = vec![1.5f32; 60_000]; // 240 kB each, on 1 MB
    let one = |step| {
        let groups = [Group { file: "model", tensors: vec![TensorRef::new("w", &[60_000], &weights)] }];
        checkpoint::save(&dir, &manifest(step), &groups, 100)
    };
    let mut last = 0;
    let error = loop {
        match one(last + 1) {
            Ok(_) => last += 1,
            Err(e) => break e,
        }
        assert!(last < 10, "the disk never filled up");
    };
    assert_eq!(error.exit_code(), 3);
    let message = error.to_string();
    assert!(message.contains("model.safetensors: cannot ") && message.contains("No space left"), "{message}");
    assert!(last >= 2, "{last}");
    assert_eq!(checkpoint::latest(&dir)?.loaded.map(|l| l.manifest().step), Some(last));
    assert!(names(&dir)?.iter().all(|name| !name.starts_with('.')));
    println!("full after checkpoint {last}");
    Ok(())
}

#[test]
fn a_real_full_disk_leaves_the_last_good_checkpoint() -> Outcome {
    let dir = scratch()?;
    let mount = format!("mount -t tmpfs -o size=1m tmpfs '{}'", dir.path().display());
    let inside = |script: String| {
        Command::new("unshare").args(["-rm", "sh", "-c", &script]).env(FULL_DISK, dir.path()).output()
    };
    match inside(mount.clone()) {
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
    let test = std::env::current_exe()?;
    let child = format!("'{}' --exact full_disk_child --ignored --nocapture", test.display());
    let output = inside(format!("{mount} && {child}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("full after checkpoint"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_manifest_makes_the_reader_panic(body in "\\PC{0,80}", cut in 0usize..2000, with in "\\PC{0,8}") {
        let dir = scratch()?;
        let path = save(dir.path(), 7, 2).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let file = path.join("checkpoint.json");
        let good = fs::read_to_string(&file)?;
        let sealed = |body: &str| {
            format!("{{\"crc32c\":\"{:08x}\",\"manifest\":\n{body}\n}}\n", crc32c::crc32c(body.as_bytes()))
        };
        let begin = good.find('\n').unwrap_or(0) + 1;
        let mut changed = good[begin..good.len() - 3].to_owned();
        let cut = cut.min(changed.len());
        changed.replace_range(cut..(cut + 3).min(changed.len()), &with);
        for text in [body.clone(), sealed(&body), sealed(&changed)] {
            fs::write(&file, text)?;
            let _ = checkpoint::load(&path);
        }
    }
}

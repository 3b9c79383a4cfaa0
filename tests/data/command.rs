//! `flowprior data` as a user runs it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::{edit_manifest, fixture};

fn data(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flowprior")).arg("data").args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn import_info_and_verify_agree() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("d");
    let (input, labels) = (fixture("f4.npy"), fixture("labels.npy"));
    let import = data(&[
        "import",
        text(&input),
        "--out",
        text(&out),
        "--labels",
        text(&labels),
        "--project",
        "random:2",
        "--scale",
        "auto",
        "--centre",
        "--dtype",
        "bf16",
        "--shard-rows",
        "3",
    ]);
    assert!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
    let info = data(&["info", text(&out), "--json"]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["rows"], 4);
    assert_eq!(info["width"], 2);
    assert_eq!(info["dtype"], "bf16");
    assert_eq!(info["shards"], 2);
    assert_eq!(info["classes"], 3);
    assert_eq!(info["projection"]["input_width"], 3);
    let verify = data(&["verify", text(&out), "--json"]);
    let verify: serde_json::Value = serde_json::from_slice(&verify.stdout).unwrap();
    assert_eq!(verify["verified"], true);
    assert_eq!(verify["checksums"], 3); // two shards and the projection
    assert_eq!(verify["stats"], info["stats"]);
    let plain = data(&["verify", text(&out)]);
    assert!(String::from_utf8_lossy(&plain.stdout).contains("3 checksums"));
}

#[test]
fn bad_data_ends_with_three_and_bad_usage_with_two() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("d");
    let input = fixture("f4.npy");
    assert!(data(&["import", text(&input), "-o", text(&out)]).status.success());
    edit_manifest(&out, |m| m["rows"] = 5.into());
    let broken = data(&["verify", text(&out)]);
    assert_eq!(broken.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&broken.stderr).contains("dataset.json: rows: expected 4"));
    let again = data(&["import", text(&input), "-o", text(&out)]);
    assert_eq!(again.status.code(), Some(3));
    for arguments in [["--project", "random"], ["--scale", "big"], ["--dtype", "f8"], ["--project", "umap:2"]]
    {
        let other = folder.path().join("other");
        let mut all = vec!["import", text(&input), "-o", text(&other)];
        all.extend(arguments);
        assert_eq!(data(&all).status.code(), Some(2), "{arguments:?}");
        assert!(fs::symlink_metadata(&other).is_err());
    }
}

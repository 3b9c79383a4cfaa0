//! Stored data sets: what is written is read, and what is broken is named.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use flowprior::data::manifest::checksum;
use flowprior::data::writer::NonFinite;
use flowprior::data::{Dataset, DatasetWriter, Loader, Source, Spec};
use flowprior::{DType, FloatX};
use half::{bf16, f16};
use serde_json::json;

use crate::support::{all_rows, assert_refused, edit_manifest, fixture, labelled, table};

#[test]
fn every_storage_type_reads_back_and_views_without_a_copy() {
    fn check<X: FloatX>(folder: &Path) {
        let spec = Spec { dtype: X::DTYPE, shard_rows: Some(3), ..Spec::new(3) };
        let out = folder.join(X::DTYPE.name());
        let mut writer = DatasetWriter::create(&out, spec).unwrap();
        let values: Vec<f32> = (0..21).map(|i| (i as f32).cos() * 10.0).collect();
        values.chunks(6).for_each(|rows| writer.push(rows, None).unwrap());
        let dataset = writer.finish().unwrap();
        let rounded: Vec<f32> = values.iter().map(|x| X::from_f32(*x).to_f32()).collect();
        assert_eq!(all_rows(&dataset), rounded);
        let views: Vec<f32> = dataset
            .shards()
            .iter()
            .flat_map(|shard| shard.features::<X>().unwrap().iter().map(|x| x.to_f32()))
            .collect();
        assert_eq!(views, rounded);
        assert_eq!((dataset.rows(), dataset.dtype(), dataset.shards().len()), (7, X::DTYPE, 3));
        assert_eq!(dataset.verify().unwrap().stats, *dataset.stats().unwrap());
    }
    let folder = tempfile::tempdir().unwrap();
    check::<f32>(folder.path());
    check::<bf16>(folder.path());
    check::<f16>(folder.path());
}

#[test]
fn batches_have_the_same_bits_for_one_two_and_seven_shards() {
    let folder = tempfile::tempdir().unwrap();
    let batches = |shards: usize| -> Vec<flowprior::data::Batch> {
        let dataset = labelled(&folder.path().join(shards.to_string()), 70, 70usize.div_ceil(shards));
        assert_eq!(dataset.shards().len(), shards);
        let source = Arc::new(Source::Dataset(Arc::new(dataset)));
        let mut loader = Loader::start(source, 5, 16, 3, 2).unwrap();
        (0..12).map(|_| loader.next_batch().unwrap()).collect()
    };
    let one = batches(1);
    assert_eq!(one, batches(2));
    assert_eq!(one, batches(7));
}

#[test]
fn labels_stay_with_their_rows() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = labelled(&folder.path().join("d"), 10, 4);
    let mut labels = [0; 3];
    dataset.gather_labels(&[9, 0, 4], &mut labels).unwrap();
    assert_eq!(labels, [0, 0, 1]);
    assert_eq!(dataset.labels().unwrap().unwrap(), [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]);
    assert_eq!(dataset.classes().unwrap().classes, 3);
}

#[test]
fn lone_files_open_directly() {
    for name in ["f4.npy", "f2.npy", "fortran.npy", "version3.npy", "big-f4.npy", "features.safetensors"] {
        let dataset = Dataset::open(fixture(name)).unwrap();
        assert_eq!(all_rows(&dataset), table(), "{name}");
        assert!(dataset.stats().is_none() && !dataset.has_labels());
        assert_eq!(dataset.verify().unwrap().stats.min, -2.0);
    }
    assert_refused(
        Dataset::open(fixture("f8.npy")),
        &["f8.npy", "dtype", "f32, bf16 or f16", "data import", "f64"],
    );
    assert_refused(Dataset::open(fixture("cube.npy")), &["cube.npy", "shape", "[rows, width]", "[4, 1, 3]"]);
    assert_refused(Dataset::open(fixture("make.py")), &["make.py", "format", "npy", "23 21 2f"]);
    assert_refused(Dataset::open(fixture("absent.npy")), &["absent.npy", "cannot open"]);
}

#[test]
fn a_truncated_or_padded_shard_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("d");
    labelled(&out, 10, 4);
    let path = out.join("part-00001.safetensors");
    let whole = fs::read(&path).unwrap();
    let expected = format!("expected {} bytes", whole.len());
    for (bytes, found) in [
        (whole[..whole.len() - 1].to_vec(), whole.len() - 1),
        ([&whole[..], &[0]].concat(), whole.len() + 1),
        (whole[..5].to_vec(), 5),
    ] {
        fs::write(&path, bytes).unwrap();
        let found = format!("found {found} bytes");
        assert_refused(Dataset::open(&out), &["part-00001.safetensors", "length", &expected, &found]);
    }
    fs::write(&path, []).unwrap();
    assert_refused(Dataset::open(&out), &["part-00001.safetensors", "length", "an empty file"]);
}

#[test]
fn a_lone_file_of_the_wrong_length_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["f4.npy", "features.safetensors"] {
        let whole = fs::read(fixture(name)).unwrap();
        let path = folder.path().join(name);
        for bytes in [whole[..whole.len() - 1].to_vec(), [&whole[..], &[0]].concat()] {
            fs::write(&path, &bytes).unwrap();
            assert_refused(
                Dataset::open(&path),
                &[name, "length", "expected", &format!("found {} bytes", bytes.len())],
            );
        }
    }
}

#[test]
fn a_wrong_magic_or_header_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("d");
    labelled(&out, 4, 4);
    let path = out.join("part-00000.safetensors");
    let whole = fs::read(&path).unwrap();
    let cases: [(usize, u8, &[&str]); 3] = [
        (8, b'[', &["header", "a safetensors header"]),
        (7, 1, &["header length", "at most", "72057594037928"]),
        (0, 255, &["header", "expected"]),
    ];
    for (at, byte, parts) in cases {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        fs::write(&path, bytes).unwrap();
        assert_refused(Dataset::open(&out), &[&["part-00000.safetensors"], parts].concat());
    }
}

#[test]
fn a_manifest_that_contradicts_its_shards_is_refused() {
    type Edit = fn(&mut serde_json::Value);
    let cases: [(Edit, &[&str]); 16] = [
        (|m| m["dtype"] = json!("bf16"), &["part-00000.safetensors", "`features` dtype", "bf16", "f32"]),
        (|m| m["dtype"] = json!("f64"), &["dataset.json", "dtype", "f32, bf16 or f16", "f64"]),
        (
            |m| {
                m["width"] = json!(2);
                m["stats"]["mean_per_dim"] = json!([0.0, 0.0]);
                m["stats"]["std_per_dim"] = json!([0.0, 0.0]);
            },
            &["part-00000.safetensors", "`features` shape", "[4, 2]", "[4, 3]"],
        ),
        (|m| m["width"] = json!(4), &["dataset.json", "stats.mean_per_dim", "4 values", "3"]),
        (|m| m["rows"] = json!(11), &["dataset.json", "rows", "10", "11"]),
        (|m| m["rows"] = json!(0), &["dataset.json", "rows", "at least one row", "0 rows"]),
        (|m| m["version"] = json!(9), &["dataset.json", "version", "expected 1", "found 9"]),
        (|m| m["format"] = json!("x"), &["dataset.json", "format", "flowprior-dataset", "found x"]),
        (|m| m["typo"] = json!(1), &["dataset.json", "line 1", "unknown field `typo`"]),
        (|m| m["shape"] = json!([1, 2, 2]), &["dataset.json", "shape", "a product of 3", "[1, 2, 2]"]),
        (
            |m| m["shards"][1]["file"] = json!("part-00000.safetensors"),
            &["dataset.json", "shards[1].file", "listed once", "`part-00000.safetensors` a second time"],
        ),
        (
            |m| m["shards"][1]["file"] = json!("../part-00000.safetensors"),
            &["dataset.json", "shards[1].file", "plain name", "../part"],
        ),
        (
            |m| m["shards"][1]["file"] = json!("part-00007.safetensors"),
            &["part-00007.safetensors", "cannot open"],
        ),
        (|m| m["labels"] = json!(null), &["part-00000.safetensors", "`labels`", "none", "one"]),
        (
            |m| m["labels"]["classes"] = json!(0),
            &["dataset.json", "labels", "at least one class", "0 classes"],
        ),
        (|m| m["shards"][0]["rows"] = json!(0), &["dataset.json", "shards[0].rows", "at least 1", "found 0"]),
    ];
    for (edit, parts) in cases {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("d");
        labelled(&out, 10, 4);
        edit_manifest(&out, edit);
        assert_refused(Dataset::open(&out), parts);
    }
}

#[test]
fn a_folder_without_manifest_is_named() {
    let folder = tempfile::tempdir().unwrap();
    assert_refused(Dataset::open(folder.path()), &["dataset.json", "cannot open"]);
}

#[test]
fn labels_out_of_range_are_refused_when_the_data_set_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("d");
    labelled(&out, 10, 4);
    edit_manifest(&out, |m| m["labels"]["classes"] = json!(2));
    let parts = ["part-00000.safetensors", "`labels` row 2", "a label below 2", "found 2"];
    assert_refused(Dataset::open(&out), &parts);
}

#[test]
fn verify_finds_every_changed_byte_of_a_shard() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("d");
    labelled(&out, 10, 6);
    let path = out.join("part-00001.safetensors");
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        for flip in [0x01, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            fs::write(&path, bytes).unwrap();
            let result = Dataset::open(&out).and_then(|d| d.verify());
            assert_refused(result, &["part-00001.safetensors"]);
        }
    }
    fs::write(&path, &whole).unwrap();
    Dataset::open(&out).unwrap().verify().unwrap();
}

#[test]
fn a_checksum_mismatch_names_both_checksums() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("d");
    labelled(&out, 4, 4);
    let path = out.join("part-00000.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let good = checksum(&bytes);
    let features = bytes.len() - 4 * 4 - 4 * 3 * 4; // before the labels, which are read when it is opened
    bytes[features] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let dataset = Dataset::open(&out).unwrap();
    let (expected, found) = (format!("expected {good}"), format!("found {}", checksum(&bytes)));
    assert_refused(dataset.verify(), &["part-00000.safetensors", "checksum (CRC-32C)", &expected, &found]);
}

#[test]
fn statistics_that_do_not_match_are_found() {
    for field in ["mean", "std", "min", "max"] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("d");
        labelled(&out, 4, 4);
        edit_manifest(&out, |m| m["stats"][field] = json!(0.125));
        let dataset = Dataset::open(&out).unwrap();
        assert_refused(dataset.verify(), &["dataset.json", &format!("stats.{field}"), "found 0.125"]);
    }
}

#[test]
fn values_that_are_not_finite_are_refused_unless_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [1.0, f32::NAN, f32::INFINITY, 4.0];
    let mut writer = DatasetWriter::create(folder.path().join("a"), Spec::new(2)).unwrap();
    assert_refused(writer.push(&rows, None), &["row 0, column 1", "finite in f32", "NaN"]);
    let half = Spec { dtype: DType::F16, ..Spec::new(1) };
    let mut writer = DatasetWriter::create(folder.path().join("b"), half).unwrap();
    assert_refused(writer.push(&[1.0, 70_000.0], None), &["row 1, column 0", "finite in f16", "70000"]);
    let spec = Spec { non_finite: NonFinite::Allow, ..Spec::new(2) };
    let mut writer = DatasetWriter::create(folder.path().join("c"), spec).unwrap();
    writer.push(&rows, None).unwrap();
    let dataset = writer.finish().unwrap();
    assert_eq!(dataset.verify().unwrap().stats.non_finite, 2);
}

#[test]
fn a_writer_that_fails_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("d");
    let writer = DatasetWriter::create(&out, Spec::new(2)).unwrap();
    assert_refused(writer.finish(), &["rows", "at least one row", "none"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    labelled(&out, 4, 4);
    assert_refused(
        DatasetWriter::create(&out, Spec::new(2)).map(|_| ()),
        &["d: path", "a new folder", "exists"],
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn the_same_rows_make_the_same_files() {
    let folder = tempfile::tempdir().unwrap();
    labelled(&folder.path().join("a"), 10, 4);
    labelled(&folder.path().join("b"), 10, 4);
    for name in ["dataset.json", "part-00000.safetensors", "part-00002.safetensors"] {
        let read = |d: &str| fs::read(folder.path().join(d).join(name)).unwrap();
        assert_eq!(read("a"), read("b"), "{name}");
    }
}

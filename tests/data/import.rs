//! Import from every format, and what it refuses.

use std::fs;
use std::path::{Path, PathBuf};

use flowprior::data::import::{LabelSource, Options, Scale, Shift, import};
use flowprior::data::projection::Kind;
use flowprior::data::writer::NonFinite;
use flowprior::{DType, Result};

use crate::support::{all_rows, assert_refused, fixture, import_one, table};

fn keyed(key: &str) -> Options {
    Options { key: Some(key.to_owned()), ..Options::default() }
}

/// Writes a version 1 npy file of f32.
fn npy(path: &Path, rows: usize, width: usize, values: &[f32]) -> PathBuf {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    fs::write(path, bytes).unwrap();
    path.to_owned()
}

#[test]
fn every_format_gives_the_same_table() {
    let plain = Options::default();
    for (name, options) in [
        ("f8.npy", plain.clone()),
        ("f4.npy", plain.clone()),
        ("f2.npy", plain.clone()),
        ("big-f4.npy", plain.clone()),
        ("fortran.npy", plain.clone()),
        ("cube.npy", plain.clone()),
        ("version3.npy", plain.clone()),
        ("stored.npz", plain.clone()),
        ("packed.npz", plain.clone()),
        ("packed.npz", keyed("x")),
        ("named.safetensors", plain.clone()),
        ("features.safetensors", plain.clone()),
        ("features.safetensors", keyed("other")),
        ("tensor.pt", plain.clone()),
        ("dict.pt", plain.clone()),
        ("dict.pt", keyed("x")),
        ("strided.pt", plain.clone()),
        ("parameter.pt", plain.clone()),
        ("state.pt", keyed("weight")),
    ] {
        let (_folder, dataset) = import_one(&fixture(name), &options).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(all_rows(&dataset), table(), "{name}");
        dataset.verify().unwrap();
    }
}

#[test]
fn images_keep_their_shape_and_labels() {
    for name in ["images.idx", "images.idx.gz"] {
        let labels = LabelSource::Files(vec![fixture("labels.idx")]);
        let options = Options { labels, ..Options::default() };
        let (_folder, dataset) = import_one(&fixture(name), &options).unwrap();
        assert!(all_rows(&dataset).into_iter().eq((0..24).map(|i| i as f32)), "{name}");
        assert_eq!(dataset.image_shape(), Some([1, 2, 3]));
        assert_eq!(dataset.labels().unwrap().unwrap(), [2, 0, 1, 2]);
        assert_eq!(dataset.classes().unwrap().classes, 3);
    }
}

#[test]
fn labels_come_from_files_or_from_the_inputs() {
    for (input, labels) in [
        ("stored.npz", LabelSource::Key("y".into())),
        ("packed.npz", LabelSource::Key("y".into())),
        ("named.safetensors", LabelSource::Key("y".into())),
        ("dict.pt", LabelSource::Key("meta.y".into())),
        ("f4.npy", LabelSource::Files(vec![fixture("labels.npy")])),
    ] {
        let (_folder, dataset) =
            import_one(&fixture(input), &Options { labels, ..Options::default() }).unwrap();
        assert_eq!(dataset.labels().unwrap().unwrap(), [2, 0, 1, 2], "{input}");
    }
}

#[test]
fn inputs_follow_each_other_in_shards_of_the_asked_size() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = [fixture("f4.npy"), fixture("f8.npy"), fixture("tensor.pt")];
    let options = Options { shard_rows: Some(5), max_rows: Some(11), ..Options::default() };
    let dataset = import(&inputs, &options, &folder.path().join("d")).unwrap();
    let expected: Vec<f32> = [table(), table(), table()].concat()[..33].to_vec();
    assert_eq!(all_rows(&dataset), expected);
    let shards: Vec<usize> = dataset.shards().iter().map(|s| s.rows()).collect();
    assert_eq!(shards, [5, 5, 1]);
}

#[test]
fn centring_and_scaling_give_zero_mean_and_unit_variance() {
    let options = Options { shift: Shift::Mean, scale: Scale::UnitVariance, ..Options::default() };
    let (_folder, dataset) = import_one(&fixture("f4.npy"), &options).unwrap();
    let stats = dataset.stats().unwrap();
    assert!(stats.mean_per_dim.iter().all(|m| m.abs() < 1e-6), "{stats:?}");
    let projection = dataset.projection().unwrap().unwrap();
    assert_eq!((projection.kind, projection.shift.as_slice()), (Kind::Identity, &[0.25, 0.75, 1.25][..]));
    assert!((projection.scale as f64 - 1.0 / 1.802_775_637_7).abs() < 1e-6, "{}", projection.scale);
}

#[test]
fn the_stored_projection_reproduces_the_stored_rows() {
    for (kind, width) in [(Kind::Random, 5), (Kind::Pool, 2), (Kind::Pca, 1), (Kind::Identity, 3)] {
        let options = Options {
            projection: Some((kind, width)),
            scale: Scale::Value(2.0),
            shift: Shift::Value(0.5),
            seed: 7,
            ..Options::default()
        };
        let (_folder, dataset) = import_one(&fixture("f4.npy"), &options).unwrap();
        assert_eq!((dataset.width(), dataset.dtype()), (width, DType::F32));
        let projection = dataset.projection().unwrap().unwrap();
        let mut out = vec![0.0; 4 * width];
        projection.apply(&mut table(), &mut out).unwrap();
        assert_eq!(out, all_rows(&dataset), "{kind}");
        assert_eq!(projection.seed, (kind == Kind::Random).then_some(7));
    }
}

#[test]
fn whitened_components_have_unit_variance_and_no_correlation() {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..300)
        .flat_map(|i| [(i as f32).sin(), (i as f32).sin() * 3.0 + (i as f32 * 1.7).cos(), 40.0])
        .collect();
    let input = npy(&folder.path().join("x.npy"), 300, 3, &values);
    let options =
        Options { projection: Some((Kind::Whiten, 2)), scale: Scale::Value(5.0), ..Options::default() };
    let (_out, dataset) = import_one(&input, &options).unwrap();
    let rows = all_rows(&dataset);
    let moment = |a: usize, b: usize| rows.chunks_exact(2).map(|r| (r[a] * r[b]) as f64).sum::<f64>() / 299.0;
    assert!(
        (moment(0, 0) - 1.0).abs() < 1e-5 && (moment(1, 1) - 1.0).abs() < 1e-5 && moment(0, 1).abs() < 1e-5
    );
    let flat = Options { projection: Some((Kind::Whiten, 3)), ..Options::default() };
    let message = import_one(&input, &flat).unwrap_err().to_string();
    assert!(message.contains("whiten") && message.contains("component 2"), "{message}");
}

#[test]
fn a_changed_projection_file_is_found() {
    let options = Options { projection: Some((Kind::Random, 2)), ..Options::default() };
    let (_folder, dataset) = import_one(&fixture("f4.npy"), &options).unwrap();
    let path = dataset.path().join("projection.safetensors");
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        fs::write(&path, bytes).unwrap();
        assert_refused(dataset.verify(), &["projection.safetensors", "checksum"]);
    }
    fs::write(&path, &whole[1..]).unwrap();
    assert_refused(dataset.projection(), &["projection.safetensors", "length"]);
}

#[test]
fn nan_and_infinity_are_refused_by_row_and_column_unless_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let mut values = table();
    values[7] = f32::NAN;
    let input = npy(&folder.path().join("nan.npy"), 4, 3, &values);
    let parts = ["nan.npy", "row 2, column 1", "finite", "--allow-non-finite", "found NaN"];
    assert_refused(import_one(&input, &Options::default()), &parts);
    values[7] = f32::NEG_INFINITY;
    let input = npy(&folder.path().join("nan.npy"), 4, 3, &values);
    assert_refused(import_one(&input, &Options::default()), &["row 2, column 1", "found -inf"]);
    let options = Options { non_finite: NonFinite::Allow, ..Options::default() };
    let (_out, dataset) = import_one(&input, &options).unwrap();
    assert_eq!(dataset.stats().unwrap().non_finite, 1);
}

#[test]
fn inputs_without_rows_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let empty = npy(&folder.path().join("rows.npy"), 0, 3, &[]);
    assert_refused(
        import_one(&empty, &Options::default()),
        &["rows.npy", "rows", "at least one row", "found 0"],
    );
    let flat = npy(&folder.path().join("columns.npy"), 4, 0, &[]);
    assert_refused(
        import_one(&flat, &Options::default()),
        &["columns.npy", "width", "at least one", "found 0"],
    );
    let blank = folder.path().join("blank.npy");
    fs::write(&blank, []).unwrap();
    assert_refused(import_one(&blank, &Options::default()), &["blank.npy", "length", "an empty file"]);
    let none = Options { max_rows: Some(0), ..Options::default() };
    assert_refused(import_one(&fixture("f4.npy"), &none), &["f4.npy", "at least one row"]);
}

#[test]
fn labels_that_do_not_fit_are_refused() {
    let files =
        |name: &str| Options { labels: LabelSource::Files(vec![fixture(name)]), ..Options::default() };
    let few = Options { classes: Some(2), ..files("labels.npy") };
    let parts = ["labels.npy", "row 0", "a label below 2", "found 2"];
    assert_refused(import_one(&fixture("f4.npy"), &few), &parts);
    assert_refused(import_one(&fixture("f4.npy"), &files("f4.npy")), &["f4.npy", "dtype", "integers", "f32"]);
    let parts = ["images.idx", "shape", "[4], one label per row", "[4, 2, 3]"];
    assert_refused(import_one(&fixture("f4.npy"), &files("images.idx")), &parts);
    let two = Options { labels: LabelSource::Files(vec![]), ..Options::default() };
    assert_eq!(import_one(&fixture("f4.npy"), &two).unwrap_err().exit_code(), 2);
}

#[test]
fn inputs_of_different_widths_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = [fixture("f4.npy"), fixture("images.idx")];
    let result = import(&inputs, &Options::default(), &folder.path().join("d"));
    assert_refused(result, &["images.idx", "width", "3 values per row", "f4.npy", "found 6"]);
}

#[test]
fn a_key_must_exist_and_be_unambiguous() {
    assert_refused(
        import_one(&fixture("packed.npz"), &keyed("z")),
        &["packed.npz", "key", "`x`, `y`", "`z`"],
    );
    assert_refused(import_one(&fixture("dict.pt"), &keyed("z")), &["dict.pt", "key", "`meta.y`, `x`", "`z`"]);
    assert_refused(
        import_one(&fixture("named.safetensors"), &keyed("z")),
        &["named.safetensors", "`x`", "`z`"],
    );
    assert_refused(import_one(&fixture("f4.npy"), &keyed("z")), &["f4.npy", "key", "without a name", "`z`"]);
    let two = Options { key: Some("y".into()), ..Options::default() };
    assert_refused(
        import_one(&fixture("stored.npz"), &two),
        &["stored.npz", "`y` shape", "two dimensions", "[4]"],
    );
}

#[test]
fn types_that_are_no_numbers_are_refused() {
    let check =
        |name: &str, parts: &[&str]| assert_refused(import_one(&fixture(name), &Options::default()), parts);
    check("objects.npy", &["objects.npy", "descr", "a plain float", "|O"]);
    check("complex.npy", &["complex.npy", "descr", "a plain float", "<c8"]);
    check("make.py", &["make.py", "format", "npy, npz, safetensors", "23 21 2f"]);
}

#[test]
fn a_pickle_is_never_executed() {
    let check =
        |name: &str, parts: &[&str]| assert_refused(import_one(&fixture(name), &Options::default()), parts);
    check("evil.pt", &["evil.pt", "data.pkl", "only the globals of plain tensors", "global `posix.system`"]);
    check("legacy.pt", &["legacy.pt", "format", "a zip archive as `torch.save`", "a bare pickle"]);
}

#[test]
fn impossible_projections_are_refused() {
    let project = |kind, width| -> Result<_> {
        import_one(&fixture("f4.npy"), &Options { projection: Some((kind, width)), ..Options::default() })
    };
    for (kind, width) in [(Kind::Random, 0), (Kind::Pool, 4), (Kind::Pca, 4), (Kind::Whiten, 0)] {
        let error = project(kind, width).unwrap_err();
        assert!(error.to_string().contains("projection: `width` has"), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let flat = npy(&folder.path().join("flat.npy"), 2, 1, &[1.0, 1.0]);
    let scaled = Options { scale: Scale::UnitVariance, ..Options::default() };
    assert_refused(import_one(&flat, &scaled), &["flat.npy", "standard deviation", "more than 0", "found 0"]);
    let nan = Options { scale: Scale::Value(f32::NAN), ..Options::default() };
    assert_eq!(import_one(&flat, &nan).unwrap_err().exit_code(), 2);
}

//! Images and latents: shapes, padding, class names, mean and log-variance, scale factor, mirror images.

use std::fs;
use std::path::{Path, PathBuf};

use flowprior::data::import::{LabelSource, Maps, Options, Scale, Shift};
use flowprior::data::manifest::Latents;
use flowprior::data::source::Source;
use flowprior::data::writer::{DatasetWriter, NonFinite};
use flowprior::data::{Dataset, Spec, builtin};
use flowprior::device::{CpuOptions, Device};
use flowprior::train::config::{Config, OnDevice};
use flowprior::train::features::{Features, Staged};
use flowprior::{DType, Result};

use crate::emulator;
use crate::support::{all_rows, assert_refused, edit_manifest, fixture, import_one};

/// Writes an npy file of f32 of any shape, value i in place i, mapped by `f`.
fn npy(path: &Path, shape: &[usize], f: impl Fn(usize) -> f32) -> PathBuf {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape:?}, }}\n");
    let header = header.replace('[', "(").replace(']', ")");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend((0..shape.iter().product()).flat_map(|i| f(i).to_le_bytes()));
    fs::write(path, bytes).unwrap();
    path.to_owned()
}

#[test]
fn images_are_padded_with_their_background_before_they_are_scaled() {
    let options = Options {
        pad: Some([5, 4]),
        background: 255.0,
        shift: Shift::Value(127.5),
        scale: Scale::Value(1.0 / 127.5),
        ..Options::default()
    };
    let (_folder, dataset) = import_one(&fixture("images.idx"), &options).unwrap();
    assert_eq!((dataset.image_shape(), dataset.width()), (Some([1, 5, 4]), 20));
    let expected = |i: usize| {
        let (image, y, x) = (i / 20, i / 4 % 5, i % 4);
        // 2 × 3 pixels, one row above and two below, none before and one behind.
        let value = if (1..3).contains(&y) && x < 3 { (image * 6 + (y - 1) * 3 + x) as f32 } else { 255.0 };
        (value - 127.5) * (1.0 / 127.5)
    };
    let found = all_rows(&dataset);
    assert!(found.iter().enumerate().all(|(i, x)| (x - expected(i)).abs() < 1e-6), "{found:?}");
    let projection = dataset.projection().unwrap().unwrap();
    assert_eq!((projection.shift[0], projection.scale), (127.5, 1.0 / 127.5));
    dataset.verify().unwrap();
}

#[test]
fn flat_rows_become_images_of_the_shape_that_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let input = npy(&folder.path().join("flat.npy"), &[2, 24], |i| i as f32);
    let shaped = |shape, pad| import_one(&input, &Options { shape: Some(shape), pad, ..Options::default() });
    assert_eq!(shaped([2, 3, 4], None).unwrap().1.image_shape(), Some([2, 3, 4]));
    let (_padded, padded) = shaped([2, 3, 4], Some([3, 6])).unwrap();
    assert_eq!(all_rows(&padded)[18..24], [0.0, 12.0, 13.0, 14.0, 15.0, 0.0]);
    assert_refused(shaped([2, 3, 5], None), &["flat.npy", "expected 2 × 3 × 5 values, found 24"]);
    assert_refused(
        shaped([2, 3, 4], Some([2, 4])),
        &["expected at least 3 × 4 pixels to pad to, found 2 × 4"],
    );
    let shapeless = Options { pad: Some([9, 9]), ..Options::default() };
    assert_refused(import_one(&input, &shapeless), &["expected images, to be padded", "found [2, 24]"]);
}

#[test]
fn shares_of_the_classes_of_a_map_become_channels() {
    let folder = tempfile::tempdir().unwrap();
    let input = npy(&folder.path().join("latents.npy"), &[2, 1, 2, 3], |i| i as f32);
    // Two classes; map 0 is of class 1 in its right half, map 1 in one pixel of each square.
    let map = |name: &str, shape: &[usize], f: fn(usize) -> f32| npy(&folder.path().join(name), shape, f);
    let halves = |i: usize| match i / 24 {
        0 => (i % 6 >= 3) as u8 as f32,
        _ => ((i / 6).is_multiple_of(2) && i.is_multiple_of(2)) as u8 as f32,
    };
    let imported = |path: PathBuf, classes, more: Options| {
        import_one(&input, &Options { maps: Some(Maps { files: vec![path], classes }), ..more })
    };
    let good = map("good.npy", &[2, 4, 6], halves);
    let (_folder, dataset) = imported(good.clone(), 2, Options::default()).unwrap();
    assert_eq!((dataset.image_shape(), dataset.width()), (Some([3, 2, 3]), 18));
    let one = [0.0, 0.5, 1.0, 0.0, 0.5, 1.0];
    let rows = all_rows(&dataset);
    assert_eq!(rows[..6], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!((rows[6..12].to_vec(), &rows[12..18]), (one.map(|x| 1.0 - x).to_vec(), &one[..]));
    assert_eq!((&rows[24..30], &rows[30..36]), (&[0.75; 6][..], &[0.25; 6][..]));
    dataset.verify().unwrap();
    let wrong = |path, classes, parts: &[&str]| {
        assert_refused(imported(path, classes, Options::default()), parts);
    };
    wrong(good.clone(), 1, &["good.npy", "map 0, pixel (0, 3)", "expected a class below 1, found 1"]);
    wrong(map("few.npy", &[1, 4, 6], |_| 0.0), 2, &["expected 2 maps, one for each row, found 1"]);
    wrong(map("odd.npy", &[2, 4, 7], |_| 0.0), 2, &["a whole multiple of the image's, 2 × 3", "[2, 4, 7]"]);
    wrong(map("half.npy", &[2, 4, 6], |_| 0.5), 2, &["expected a class below 2, found 0.5"]);
    let shifted = imported(good, 2, Options { shift: Shift::Value(1.0), ..Options::default() });
    let message = shifted.err().unwrap().to_string();
    let sentence = message.contains("prepare the images, then add the maps") && !message.contains("  ");
    assert!(sentence, "{message}");
}

#[test]
fn classes_have_names() {
    let names = |names: &[&str], classes| {
        let class_names = names.iter().map(|n| (*n).to_owned()).collect();
        let labels = LabelSource::Files(vec![fixture("labels.idx")]);
        import_one(&fixture("images.idx"), &Options { class_names, classes, labels, ..Options::default() })
    };
    let (_folder, dataset) = names(&["coat", "bag", "boot"], None).unwrap();
    assert_eq!(dataset.classes().unwrap().names, ["coat", "bag", "boot"]);
    let source = Source::Dataset(std::sync::Arc::new(dataset));
    assert_eq!((source.classes(), source.class_names()[1].as_str()), (Some(3), "bag"));
    source.expect_classes(3, "model.classes", "d").unwrap();
    let refused = source.expect_classes(2, "model.classes", "d");
    assert_refused(refused, &["d: labels: expected labels below 2 (model.classes), found 3 classes"]);
    let message = names(&["coat"], Some(3)).unwrap_err().to_string();
    assert_eq!(message, "1 class names for 3 classes: give one for each");
    assert_refused(names(&["coat", "bag"], None), &["row 0", "a label below 2, found 2"]);
    let unlabelled = Options { class_names: vec!["coat".into()], ..Options::default() };
    assert!(import_one(&fixture("f4.npy"), &unlabelled).unwrap_err().to_string().contains("need labels"));
    let digits = Source::Memory(builtin::digits().unwrap());
    assert_eq!((digits.classes(), digits.image_shape()), (Some(10), Some([1, 8, 8])));
    let tokens = Source::Memory(builtin::tokens().unwrap());
    let refused = tokens.expect_classes(3, "model.cond", "tokens");
    assert_refused(refused, &["tokens: labels: expected a label for each row (model.cond > 0), found none"]);
}

/// Imports (N, 2·2, 1, 3): means −3 … 8, log-variances that depend on the row.
fn moments(folder: &Path) -> Result<(tempfile::TempDir, Dataset)> {
    let value = |i: usize| if i % 12 < 6 { i as f32 - 3.0 } else { (i / 12) as f32 - 4.0 };
    let input = npy(&folder.join("moments.npy"), &[5, 4, 1, 3], value);
    import_one(&input, &Options { moments: true, latent_scale: Some(0.5), ..Options::default() })
}

#[test]
fn rows_of_moments_are_twice_as_wide_as_their_samples() {
    let folder = tempfile::tempdir().unwrap();
    let (_out, dataset) = moments(folder.path()).unwrap();
    assert_eq!((dataset.width(), dataset.stored_width(), dataset.image_shape()), (6, 12, Some([2, 1, 3])));
    assert_eq!(dataset.latents(), Some(Latents { moments: true, scale: 0.5 }));
    let means = all_rows(&dataset);
    assert_eq!(means[..7], [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 4.5]);
    dataset.verify().unwrap();
    let reopened = Dataset::open(dataset.path()).unwrap();
    assert_eq!(reopened.manifest(), dataset.manifest());
}

#[test]
fn moments_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let of = |shape: &[usize], value: f32, options: Options| {
        let input = npy(&folder.path().join("x.npy"), shape, |i| if i == 5 { value } else { 0.0 });
        import_one(&input, &Options { moments: true, ..options })
    };
    let odd = of(&[2, 7], 0.0, Options::default());
    assert_refused(odd, &["x.npy", "an even number: as many log-variances as means, found 7"]);
    let unknown = Options { non_finite: NonFinite::Allow, ..Options::default() };
    assert_refused(of(&[2, 8], f32::NAN, unknown), &["row 0, log-variance 1", "at most 20, found NaN"]);
    assert_refused(of(&[2, 8], 21.0, Options::default()), &["row 0, log-variance 1", "at most 20, found 21"]);
    let scaled = of(&[2, 8], 0.0, Options { scale: Scale::Value(2.0), ..Options::default() });
    assert!(scaled.unwrap_err().to_string().contains("would change the variances too"));
    let none = of(&[2, 8], 0.0, Options { latent_scale: Some(0.0), ..Options::default() });
    assert!(none.unwrap_err().to_string().contains("a finite number other than 0"));
    let (_out, dataset) = of(&[2, 8], 0.0, Options { shape: Some([1, 2, 2]), ..Options::default() }).unwrap();
    assert_eq!(dataset.image_shape(), Some([1, 2, 2]));
    edit_manifest(dataset.path(), |m| m["latents"]["scale"] = 0.into());
    assert_refused(
        Dataset::open(dataset.path()),
        &["latents.scale", "a finite number other than 0, found 0"],
    );
    edit_manifest(dataset.path(), |m| m["latents"] = serde_json::json!({"scale": 1.0}));
    assert_refused(Dataset::open(dataset.path()), &["shape", "a product of 8"]);
}

#[test]
fn a_log_variance_that_was_damaged_is_found_by_verify() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("d");
    let spec = Spec { non_finite: NonFinite::Allow, ..Spec::new(2) };
    let mut writer = DatasetWriter::create(&out, spec).unwrap();
    writer.push(&[1.0, f32::NAN], None).unwrap();
    writer.finish().unwrap();
    edit_manifest(&out, |m| m["latents"] = serde_json::json!({"moments": true, "scale": 1.0}));
    assert_refused(
        Dataset::open(&out).unwrap().verify(),
        &["row 0, log-variance 0", "at most 20, found NaN"],
    );
}

fn config(path: &Path, on_device: OnDevice, flip: bool, sample_moments: bool) -> Config {
    let mut config = Config { seed: 3, ..Config::default() };
    config.train.batch = 4;
    config.data.path = Some(path.to_owned());
    (config.data.on_device, config.data.flip, config.data.sample_moments) = (on_device, flip, sample_moments);
    config
}

/// Returns the batches of some steps, in this order.
fn batches(config: &Config, device: &Device, steps: &[u64]) -> Result<Vec<Vec<f32>>> {
    let (mut features, mut staged) = (Features::open(config)?, Staged::default());
    let batch = |step: &u64| {
        features.stage(*step, device, &mut staged)?;
        staged.all()?.to_f32_vec()
    };
    steps.iter().map(batch).collect()
}

#[test]
fn a_batch_has_the_same_bits_wherever_its_rows_are_and_when_it_is_made_again() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (_out, wide) = moments(folder.path())?;
    let device = Device::cuda(&emulator::options())?;
    let narrow = |dtype| {
        let out = folder.path().join(format!("{dtype}"));
        let spec = Spec { dtype, latents: wide.latents(), shape: wide.image_shape(), ..Spec::new(12) };
        let mut writer = DatasetWriter::create(&out, spec).unwrap();
        let mut rows = vec![0.0; 60];
        wide.gather_stored(&[0, 1, 2, 3, 4], &mut rows).unwrap();
        writer.push(&rows, None).unwrap();
        writer.finish().unwrap()
    };
    for dataset in [narrow(DType::F32), narrow(DType::Bf16), narrow(DType::F16)] {
        for (flip, drawn) in [(true, true), (false, true), (true, false)] {
            let of = |on_device| config(dataset.path(), on_device, flip, drawn);
            let resident = batches(&of(OnDevice::Yes), &device, &[0, 1, 2])?;
            let staged = batches(&of(OnDevice::No), &device, &[0, 1, 2])?;
            assert_eq!(resident, staged, "{:?}", dataset.dtype());
            assert_eq!(batches(&of(OnDevice::Yes), &device, &[2, 1])?, [&resident[2][..], &resident[1]]);
            let on_cpu = |threads| {
                let cpu = Device::open("cpu", CpuOptions { threads, ..Default::default() })?;
                batches(&of(OnDevice::Auto), &cpu, &[0, 1, 2])
            };
            let (one, three) = (on_cpu(1)?, on_cpu(3)?);
            assert_eq!(one, three);
            for (a, b) in one.concat().iter().zip(resident.concat()) {
                assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0), "{a} and {b}");
                assert!(drawn || a.to_bits() == b.to_bits(), "nothing is drawn, and yet {a} and {b}");
            }
        }
    }
    Ok(())
}

#[test]
fn moments_are_drawn_anew_in_every_step_unless_means_are_asked_for() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (_out, dataset) = moments(folder.path())?;
    let cpu = Device::open("cpu", CpuOptions { threads: 1, ..Default::default() })?;
    let source = Source::Dataset(std::sync::Arc::new(dataset));
    let path = |source: &Source| match source {
        Source::Dataset(dataset) => dataset.path().to_owned(),
        _ => unreachable!(),
    };
    let of = |drawn| batches(&config(&path(&source), OnDevice::No, false, drawn), &cpu, &[0, 1]);
    let (drawn, means) = (of(true)?, of(false)?);
    for (step, (drawn, means)) in drawn.iter().zip(&means).enumerate() {
        let mut expected = vec![0.0; 24];
        source.fill(3, step as u64, 4, &mut expected, None)?;
        assert_eq!(*means, expected);
        assert!(drawn.iter().zip(means).all(|(a, b)| a != b && (a - b).abs() < 4.0));
    }
    Ok(())
}

#[test]
fn rows_without_a_shape_are_not_mirrored_and_latents_not_standardised() {
    let message = Features::open(&config(&fixture("f4.npy"), OnDevice::Auto, true, true)).err().unwrap();
    assert!(message.to_string().contains("data.flip = true mirrors images"), "{message}");
    let folder = tempfile::tempdir().unwrap();
    let (_out, dataset) = moments(folder.path()).unwrap();
    let mut config = config(dataset.path(), OnDevice::Auto, false, true);
    // What a checkpoint keeps of the scale factor brings samples back to the encoder's units.
    let kept = Features::open(&config).unwrap().standardise.unwrap();
    let mut sample = vec![0.5; 6];
    kept.invert(&mut sample);
    assert_eq!(sample, [1.0; 6]);
    config.data.standardise = true;
    assert!(Features::open(&config).err().unwrap().to_string().contains("latent scale"));
}

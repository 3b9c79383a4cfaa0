//! What a class-conditional prior has learned, judged by a classifier that never saw a sample of it.
//!
//! The digits that the program carries check the classifier in every run of the tests. The figure that matters needs a run that takes
//! half an hour, so it is made by hand (benches/experiments/fashion.md):
//!
//! ```text
//! FLOWPRIOR_FASHION_DATA=fashion FLOWPRIOR_FASHION_TEST=fashion-test FLOWPRIOR_FASHION_RUN=runs/fashion \
//!     cargo test --release --test fashion -- --ignored --nocapture
//! ```

#[path = "support/classifier.rs"]
mod classifier;

use std::path::{Path, PathBuf};
use std::process::Command;

use classifier::Classifier;
use flowprior::data::{Dataset, Source, builtin};
use flowprior::device::Device;

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

/// Classes of Fashion-MNIST.
const CLASSES: usize = 10;
/// Samples of each class that are judged.
const EACH: usize = 32;
/// What the issue asks for.
const ENOUGH: f64 = 0.85;

#[test]
fn the_classifier_learns_digits() -> Outcome {
    let digits = Source::Memory(builtin::digits()?);
    let rows = digits.rows().ok_or("the digits are stored")?;
    let ids: Vec<u64> = (0..rows).collect();
    let mut images = vec![0.0; rows as usize * 64];
    let mut labels = vec![0; rows as usize];
    digits.gather(&ids, &mut images, Some(&mut labels))?;
    let (train, test) = images.split_at(1500 * 64);
    let device = Device::cpu_with_threads(2)?;
    let net = Classifier::train(&device, train, &labels[..1500], 10, 200)?;
    let accuracy = net.accuracy(test, &labels[1500..])?;
    assert!(accuracy > 0.9, "{accuracy} of the digits that were kept back");
    Ok(())
}

#[test]
#[ignore = "needs Fashion-MNIST and a trained run: benches/experiments/fashion.md"]
fn guided_samples_are_what_was_asked_for() -> Outcome {
    let (images, labels) = images(&folder("FLOWPRIOR_FASHION_DATA")?)?;
    let (test_images, test_labels) = images_of_test()?;
    let device = Device::cpu_with_threads(2)?;
    let net = Classifier::train(&device, &images, &labels, CLASSES, 12)?;
    println!("classifier: {:.4} of the test images", net.accuracy(&test_images, &test_labels)?);
    let mut worst = 1.0f64;
    for guidance in ["1.5", "2", "3"] {
        let samples = sampled(&folder("FLOWPRIOR_FASHION_RUN")?, guidance)?;
        let asked: Vec<u32> =
            (0..samples.len() / (images.len() / labels.len())).map(|i| (i % CLASSES) as u32).collect();
        let share = net.accuracy(&samples, &asked)?;
        println!(
            "guidance {guidance}: {share:.4} of {} samples are of the class that was asked for",
            asked.len()
        );
        worst = worst.min(share);
    }
    assert!(worst >= ENOUGH, "{worst} of the guided samples are of the class that was asked for");
    Ok(())
}

/// Returns the folder that a variable names.
fn folder(variable: &str) -> std::result::Result<PathBuf, String> {
    std::env::var(variable).map(PathBuf::from).map_err(|_| format!("{variable} must name a folder"))
}

fn images_of_test() -> std::result::Result<(Vec<f32>, Vec<u32>), Box<dyn std::error::Error>> {
    images(&folder("FLOWPRIOR_FASHION_TEST")?)
}

/// Reads all images of a data set, and their labels.
fn images(path: &Path) -> std::result::Result<(Vec<f32>, Vec<u32>), Box<dyn std::error::Error>> {
    let data = Dataset::open(path)?;
    let ids: Vec<u64> = (0..data.rows()).collect();
    let mut images = vec![0.0; ids.len() * data.width()];
    data.gather(&ids, &mut images)?;
    let labels = data.labels()?.ok_or("the data set has no labels")?;
    Ok((images, labels))
}

/// Draws samples of each class in turn.
fn sampled(run: &Path, guidance: &str) -> std::result::Result<Vec<f32>, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("samples.npy");
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowprior"));
    command.arg("sample").arg(run).args([
        "--count",
        &(EACH * CLASSES).to_string(),
        "--steps",
        "25",
        "--seed",
        "5",
    ]);
    command.args(["--guidance", guidance]).arg("--out").arg(&out);
    let output = command.output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let data = Dataset::open(&out)?;
    let ids: Vec<u64> = (0..data.rows()).collect();
    let mut samples = vec![0.0; ids.len() * data.width()];
    data.gather(&ids, &mut samples)?;
    Ok(samples)
}

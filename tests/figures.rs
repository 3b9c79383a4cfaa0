//! `flowprior figures` from end to end, on runs of a moment: what it draws, what it trains again (nothing), what it refuses.

use std::collections::BTreeSet;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::SystemTime;

fn flowprior(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowprior"));
    // The same with and without a card.
    command.args(args).env("FLOWPRIOR_CUDA_DRIVER", "/nowhere/libcuda.so").output().unwrap()
}

fn printed(args: &[&str]) -> String {
    let output = flowprior(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must end with a sentence, maybe after lines of progress, and a code.
fn refused(args: &[&str], code: i32, words: &str) {
    let output = flowprior(args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: ") && last.contains(words), "{args:?}: no `{words}` in: {said}");
    assert!(!said.contains("panicked") && output.stdout.is_empty(), "{args:?}: {said}");
}

/// The folder that all tests share, with figure 3 of one toy, and what was printed.
fn shared() -> &'static (tempfile::TempDir, String) {
    static SHARED: OnceLock<(tempfile::TempDir, String)> = OnceLock::new();
    SHARED.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let printed = printed(&["figures", "3", "--quick", "--toy", "gaussians", "--out", text(dir.path())]);
        (dir, printed)
    })
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Width, height and number of different colours of a PNG, and its frames.
fn picture(path: &Path) -> (u32, u32, usize, u32) {
    let file = BufReader::new(fs::File::open(path).unwrap_or_else(|e| panic!("{path:?}: {e}")));
    let mut decoder = png::Decoder::new(file);
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().unwrap();
    let frames = reader.info().animation_control.map_or(1, |control| control.num_frames);
    let mut colours = BTreeSet::new();
    let (width, height) = (reader.info().width, reader.info().height);
    for _ in 0..frames {
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        colours.extend(pixels.chunks_exact(info.color_type.samples()).map(<[u8]>::to_vec));
    }
    (width, height, colours.len(), frames)
}

/// The files of all runs but for their figures, with the time of their last change.
fn changes(out: &Path) -> Vec<(PathBuf, SystemTime)> {
    let mut found = Vec::new();
    let mut folders = vec![out.join("runs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true if path.ends_with("figures") => {}
                true => folders.push(path),
                false => found.push((path.clone(), path.metadata().unwrap().modified().unwrap())),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn figure_3_shows_a_column_for_each_weight_and_prints_the_correlations() {
    let (dir, printed) = shared();
    let (width, height, colours, _) = picture(&dir.path().join("figures/3-gaussians.png"));
    assert_eq!((width, height), (1380, 1785));
    assert!(colours > 100, "{colours} colours");
    let row = printed.lines().find(|line| line.starts_with("| gaussians |")).expect(printed);
    let numbers: Vec<f64> = row.split('|').filter_map(|cell| cell.trim().parse().ok()).collect();
    assert_eq!(numbers.len(), 9, "{row}");
    assert!(numbers[..3].iter().all(|rho| (-1.0..=1.0).contains(rho)), "{row}");
    assert!(
        (numbers[4] - numbers[3] - numbers[5]).abs() < 2e-3,
        "ODE-free less ODE is the difference: {row}"
    );
    assert!(printed.ends_with("3-gaussians.png\n"), "{printed}");
}

#[test]
fn a_second_call_trains_nothing_again_and_draws_the_same() {
    let (dir, first) = shared();
    let before = changes(dir.path());
    assert!(before.iter().any(|(path, _)| path.ends_with("gaussians-likelihood/snapshots/0000060.npy")));
    let figure = fs::read(dir.path().join("figures/3-gaussians.png")).unwrap();
    let again = printed(&["figures", "3", "--quick", "--toy", "gaussians", "--out", text(dir.path())]);
    assert_eq!(&again, first);
    assert_eq!(changes(dir.path()), before);
    assert!(fs::read(dir.path().join("figures/3-gaussians.png")).unwrap() == figure);
}

#[test]
fn figure_6_and_animations_have_a_frame_for_each_snapshot() {
    let (dir, _) = shared();
    let out = text(dir.path());
    let files = printed(&["figures", "6", "--quick", "--toy", "gaussians", "--out", out]);
    assert_eq!(files.lines().count(), 2, "{files}");
    let (width, _, colours, frames) = picture(&dir.path().join("figures/6-gaussians.png"));
    assert!(width > 1000 && colours > 100 && frames == 1, "{width} {colours} {frames}");
    let (width, height, colours, frames) = picture(&dir.path().join("figures/6-gaussians-moving.png"));
    assert!(colours > 100, "{colours} colours");
    assert_eq!((width, height, frames), (844, 458, 4)); // steps 0, 20, 40 and 60
    let run = dir.path().join("runs/gaussians-uniform");
    printed(&["figures", "animate", "--run", text(&run)]);
    assert_eq!(picture(&run.join("figures/moving.png")).3, 4);
}

#[test]
fn figure_4_takes_its_own_run_or_another() {
    let dir = tempfile::tempdir().unwrap();
    let own = printed(&["figures", "4", "--quick", "--out", text(dir.path())]);
    assert!(own.starts_with("alignment ") && own.contains("Pearson's correlation"), "{own}");
    let figure = dir.path().join("figures/4.png");
    let (width, height, colours, _) = picture(&figure);
    assert!((width, height) == (2200, 880) && colours > 50, "{width} {height} {colours}");
    let (drawn, run) = (fs::read(&figure).unwrap(), dir.path().join("runs/digits"));
    let other = dir.path().join("other");
    let named = printed(&["figures", "4", "--run", text(&run), "--out", text(&other)]);
    assert_eq!(named.lines().next(), own.lines().next());
    assert!(fs::read(other.join("figures/4.png")).unwrap() == drawn);
    let prior = dir.path().join("runs/tokens-prior");
    refused(&["figures", "4", "--run", text(&prior), "--out", text(&other)], 3, "stage");
    refused(&["figures", "animate", "--run", text(&run)], 3, "architecture");
}

#[test]
fn what_makes_no_sense_is_refused_with_a_sentence() {
    let (dir, _) = shared();
    let out = text(dir.path());
    refused(&["figures", "7"], 2, "unknown figure `7`: expected 3, 4, 5, 6 or animate");
    refused(&["figures", "3", "--toy", "circle"], 2, "unknown toy distribution `circle`");
    refused(&["figures", "5", "--run", out], 2, "figures 5: trains its own runs; --run is for 4 and animate");
    refused(&["figures", "4", "--toy", "grid"], 2, "figures 4: shows no toys; --toy is for 3, 5 and 6");
    refused(&["figures", "animate"], 2, "name a run of 2-D latents with --run");
    // The runs of a moment are not taken for others.
    refused(&["figures", "3", "--toy", "gaussians", "--out", out], 2, "holds a run with another model.");
    // A run that kept no snapshots.
    let run = dir.path().join("runs/gaussians-prior");
    refused(&["figures", "animate", "--run", text(&run)], 3, "stage");
}

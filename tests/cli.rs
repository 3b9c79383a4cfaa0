//! The commands of a run from end to end: `demo`, `sample`, `eval`, and the figures that a run leaves.
//!
//! One quick demonstration is made for all tests: five runs of both stages, on toy and real data.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use flowprior::data::Dataset;
use flowprior::train::demo::figure_names;
use serde_json::Value;

fn flowprior(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowprior"));
    // The same with and without a card.
    command.args(args).env("FLOWPRIOR_CUDA_DRIVER", "/nowhere/libcuda.so").output().unwrap()
}

/// Runs a command that must succeed, and returns what it printed.
fn printed(args: &[&str]) -> String {
    let output = flowprior(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that prints one JSON object.
fn json(args: &[&str]) -> Value {
    let text = printed(args);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e} in {text}"))
}

/// Runs a command that must fail: its exit code and what it says.
fn failure(args: &[&str]) -> (i32, String) {
    let output = flowprior(args);
    assert!(output.stdout.is_empty(), "{args:?} printed {}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

struct Quick {
    dir: tempfile::TempDir,
    summary: String,
}

impl Quick {
    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

/// The demonstration that all tests share.
fn quick() -> &'static Quick {
    static QUICK: OnceLock<Quick> = OnceLock::new();
    QUICK.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let summary = printed(&["demo", "--quick", "--out", dir.path().to_str().unwrap()]);
        Quick { dir, summary }
    })
}

/// Width, height and number of different colours of a PNG.
fn picture(path: &Path) -> (u32, u32, usize) {
    let file = std::io::BufReader::new(fs::File::open(path).unwrap_or_else(|e| panic!("{path:?}: {e}")));
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let channels = info.color_type.samples();
    let colours: BTreeSet<&[u8]> = pixels.chunks_exact(channels).collect();
    (info.width, info.height, colours.len())
}

#[test]
fn the_demo_leaves_every_figure_it_names() {
    let quick = quick();
    assert_eq!(figure_names().count(), 7);
    for name in figure_names() {
        let (width, height, colours) = picture(&quick.dir.path().join("figures").join(name));
        assert!((400..4000).contains(&width) && (300..3000).contains(&height), "{name}: {width} x {height}");
        assert!(colours > 50, "{name} has {colours} colours");
        assert!(quick.summary.contains(name), "{name} is not in the summary:\n{}", quick.summary);
    }
}

#[test]
fn the_demo_says_whether_distances_fell_with_the_loss() {
    let summary = &quick().summary;
    for words in ["smallest possible 1.275", "uniform weight", "rank correlation", "log r_k", "All in "] {
        assert!(summary.contains(words), "`{words}` is not in\n{summary}");
    }
}

#[test]
fn every_run_fills_its_folder_of_figures() {
    let expected: [(&str, &[&str]); 5] = [
        ("toy-prior", &["samples.png", "training.png"]),
        ("toy-latents-uniform", &["alignment.png"]),
        ("toy-latents-likelihood", &["alignment.png"]),
        ("tokens-prior", &["training.png"]),
        ("digits", &["images.png", "log-rk.png", "neighbours.png", "training.png"]),
    ];
    for (run, names) in expected {
        let folder = quick().dir.path().join(run).join("figures");
        let mut found: Vec<String> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, names, "{run}");
    }
}

#[test]
fn a_run_records_its_measures_from_step_0_to_the_last() {
    let text = fs::read_to_string(quick().path("digits/metrics.jsonl")).unwrap();
    let evals: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|record| record["kind"] == "eval")
        .collect();
    let steps: Vec<u64> = evals.iter().map(|record| record["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 20, 40, 60]);
    for record in &evals {
        for key in ["reconstruction", "alignment", "log_rk"] {
            assert!(record[key].as_f64().is_some_and(f64::is_finite), "{key} in {record}");
        }
    }
}

const KEYS: [&str; 36] = [
    "stage",
    "target",
    "source",
    "step",
    "seed",
    "loss",
    "loss_stderr",
    "loss_weights",
    "loss_floor",
    "reconstruction",
    "psnr",
    "w2_bound",
    "nll",
    "nll_prior",
    "nll_stderr",
    "nll_data",
    "spearman_uniform",
    "spearman_likelihood",
    "occupancy",
    "spread",
    "log_rk",
    "log_rk_data",
    "nll_knn",
    "nll_knn_data",
    "coverage",
    "density",
    "std_ratio",
    "rank",
    "effective_rank",
    "effective_rank_data",
    "nearest_share",
    "sliced_w2",
    "w2",
    "w2_data",
    "mmd2",
    "frechet",
];

/// Evaluates a run of the demonstration: the object, which must have all keys, and the names of those that are null.
fn evaluated(run: &str) -> (Value, Vec<String>) {
    let found = json(&["eval", &quick().path(run), "--json", "--draws", "8", "--samples", "300"]);
    let object = found.as_object().unwrap();
    assert_eq!(object.len(), KEYS.len(), "{found}");
    assert!(KEYS.iter().all(|key| object.contains_key(*key)), "{found}");
    let null = object.iter().filter(|(_, v)| v.is_null()).map(|(key, _)| key.clone()).collect();
    (found, null)
}

#[test]
fn eval_of_a_toy_prior_has_everything_but_a_reconstruction() {
    let (found, null) = evaluated("toy-prior");
    assert_eq!(null, ["nll_prior", "psnr", "reconstruction"]);
    let bound = &found["w2_bound"];
    assert!(
        bound["decoder_lipschitz"].is_null() && bound["velocity_lipschitz"].as_f64() > Some(0.1),
        "{found}"
    );
    let w2 = found["w2"].as_f64().unwrap();
    assert!(
        bound["ln_bound"].as_f64().unwrap() > 2.0 * w2.ln() - 0.5,
        "the bound is below the distance: {found}"
    );
    assert_eq!(
        (&found["target"], &found["step"], &found["loss_floor"]),
        (&"prior".into(), &60.into(), &1.2749.into())
    );
    let number = |key: &str| found[key].as_f64().unwrap();
    assert!((1.27..2.5).contains(&number("loss")), "{found}");
    assert!(number("loss_stderr") < 0.003 * number("loss"), "{found}");
    assert!((number("nll_data") - 0.5155).abs() < 0.05, "{found}");
    assert!((-1.0..=1.0).contains(&number("spearman_likelihood")), "{found}");
    assert_eq!(found["occupancy"]["modes"], 5);
}

#[test]
fn eval_of_stage_2_says_null_to_what_belongs_to_a_prior() {
    let of_priors = ["loss_floor", "loss_weights", "spearman_likelihood", "spearman_uniform"];
    let (found, null) = evaluated("toy-latents-uniform");
    assert!(of_priors.iter().all(|key| null.contains(&(*key).to_owned())), "{null:?}");
    // nll_prior, psnr, reconstruction, w2_bound
    assert_eq!((null.len(), found["target"].as_str()), (8, Some("latents")), "{null:?}");
    let (found, null) = evaluated("digits");
    let of_toys = ["nll", "nll_data", "nll_stderr", "occupancy", "spread"];
    assert!(of_toys.iter().all(|key| null.contains(&(*key).to_owned())), "{null:?}");
    assert_eq!((null.len(), found["target"].as_str()), (10, Some("autoencoder")), "{null:?}");
    let number = |value: &Value| value.as_f64().unwrap();
    assert!((0.0..1.0).contains(&number(&found["reconstruction"])), "{found}");
    assert!((3.0..60.0).contains(&number(&found["psnr"])), "{found}");
    let bound = &found["w2_bound"];
    assert!(number(&bound["decoder_lipschitz"]) > 0.0 && number(&bound["velocity_error"]) > 0.0, "{found}");
    assert!(
        (number(&bound["reconstruction"]) / number(&found["reconstruction"]) - 64.0).abs() < 1e-6,
        "64 pixels"
    );
}

#[test]
fn eval_repeats_for_one_seed_and_changes_with_another() {
    let run = quick().path("toy-latents-uniform");
    let eval = |seed: &str| printed(&["eval", &run, "--json", "--seed", seed]);
    assert_eq!(eval("1"), eval("1"));
    assert_ne!(eval("1"), eval("2"));
    let text = printed(&["eval", &run]);
    assert!(text.starts_with("stage                align\n") && !text.contains("null"), "{text}");
}

/// Writes labels as an IDX file.
fn labels(path: &Path, labels: &[u8]) {
    let count = (labels.len() as u32).to_be_bytes();
    std::fs::write(path, [&[0, 0, 8, 1], &count[..], labels].concat()).unwrap();
}

#[test]
fn eval_compares_two_files_of_features_and_covers_them_by_class() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (a, b) = (path("a.npy"), path("b.npy"));
    for (out, count, seed) in [(&a, "120", "1"), (&b, "300", "2")] {
        sampled("toy-prior", Path::new(out), &["--count", count, "--seed", seed]);
    }
    let found = json(&["eval", &a, "--against", &b, "--json"]);
    assert_eq!(found.as_object().unwrap().len(), 7 + 16, "{found}");
    let null = found.as_object().unwrap().iter().filter(|(_, v)| v.is_null()).map(|(key, _)| key.as_str());
    assert_eq!(null.collect::<Vec<_>>(), ["classes"]);
    assert_eq!((&found["rows"], &found["rows_data"], &found["width"]), (&120.into(), &300.into(), &2.into()));
    assert!(found["frechet"].as_f64() < Some(0.5) && found["coverage"].as_f64() > Some(0.8), "{found}");
    let (of_a, of_b) = (path("a-labels"), path("b-labels"));
    labels(Path::new(&of_a), &[1; 120]);
    labels(Path::new(&of_b), &[[1, 3, 1].as_slice(); 100].concat());
    let compared = ["eval", &a, "--against", &b, "--labels", &of_a, &of_b];
    let found = json(&[&compared[..], &["--json"]].concat());
    let [one, three] = found["classes"].as_array().unwrap().as_slice() else { panic!("{found}") };
    assert_eq!((&one["class"], &one["queries"], &one["targets"]), (&1.into(), &120.into(), &200.into()));
    assert_eq!((&three["coverage"], &three["density"]), (&0.0.into(), &Value::Null));
    let text = printed(&compared);
    let last = "class 3              coverage 0.0000, density -, 0 points, 100 data rows\n";
    assert!(text.contains(last) && text.contains("\nfrechet "), "{text}");
}

#[test]
fn features_that_cannot_be_compared_are_refused_with_the_file_and_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (a, few, prior) = (path("a.npy"), path("few.npy"), quick().path("toy-prior"));
    sampled("toy-prior", Path::new(&a), &["--count", "40"]);
    sampled("toy-prior", Path::new(&few), &["--count", "5"]);
    let digits = path("digits.npy");
    sampled("digits", Path::new(&digits), &["--count", "10"]);
    let (short, full) = (path("short"), path("full"));
    labels(Path::new(&short), &[0; 39]);
    labels(Path::new(&full), &[0; 40]);
    let refused: [(&[&str], i32, &str); 7] = [
        (&[&a, "--against", &few], 3, "few.npy: rows: expected more than 5"),
        (&[&a, "--against", &digits], 3, "digits.npy: width: expected rows of 2"),
        (&[&a, "--against", &a, "--labels", &full], 3, "a.npy: labels: expected a label for each row"),
        (&[&a, "--against", &a, "--labels", &full, &short], 3, "[40], one label per row"),
        (&[&a, "--against", "missing.npy"], 3, "missing.npy"),
        (&[&a, "--labels", &full], 2, "--against"),
        (&[&prior, "--against", &a], 3, "toy-prior"),
    ];
    for (more, expected, words) in refused {
        let (code, text) = failure(&[&["eval"], more].concat());
        assert!(code == expected && text.contains(words), "{more:?}: {code} {text}");
    }
}

fn sampled(run: &str, out: &Path, more: &[&str]) -> Value {
    let args = ["sample", &quick().path(run), "--json", "--out", out.to_str().unwrap()];
    json(&[&args[..], more].concat())
}

fn rows(path: &Path) -> (u64, Vec<f32>) {
    let data = Dataset::open(path).unwrap();
    let mut values = vec![0.0; data.rows() as usize * data.width()];
    data.gather(&(0..data.rows()).collect::<Vec<_>>(), &mut values).unwrap();
    (data.rows(), values)
}

#[test]
fn samples_read_back_and_the_first_do_not_depend_on_their_number() {
    let dir = tempfile::tempdir().unwrap();
    let out = |name: &str| dir.path().join(name);
    let made = sampled("toy-prior", &out("many.npy"), &["--count", "300", "--steps", "8"]);
    assert_eq!((&made["what"], &made["count"], &made["width"]), (&"samples".into(), &300.into(), &2.into()));
    assert!(made["nll"].is_f64() && made["log_rk"].is_f64(), "{made}");
    assert!(picture(&PathBuf::from(made["figure"].as_str().unwrap())).2 > 50);
    sampled("toy-prior", &out("few.safetensors"), &["--count", "7", "--steps", "8"]);
    sampled("toy-prior", &out("same.npy"), &["--count", "300", "--steps", "8"]);
    sampled("toy-prior", &out("other.npy"), &["--count", "300", "--steps", "8", "--seed", "1"]);
    sampled("toy-prior/prior.safetensors", &out("file.npy"), &["--count", "300", "--steps", "8"]);
    let bytes = |name: &str| fs::read(out(name)).unwrap();
    assert_eq!(bytes("many.npy"), bytes("same.npy"));
    assert_eq!(bytes("many.npy"), bytes("file.npy"));
    assert_ne!(bytes("many.npy"), bytes("other.npy"));
    let ((count, many), (_, few)) = (rows(&out("many.npy")), rows(&out("few.safetensors")));
    assert_eq!((count, many.len()), (300, 600));
    assert_eq!(few, many[..14]);
}

#[test]
fn every_sampler_draws_and_says_what_it_cost() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("samples.npy");
    let weak = quick().path("toy-prior/prior.safetensors");
    let ways: [(&[&str], Option<u64>); 9] = [
        (&["--method", "euler", "--steps", "8"], Some(8)),
        (&["--method", "heun", "--steps", "8"], Some(15)),
        (&["--method", "rk4", "--steps", "8", "--shift", "0.5"], Some(32)),
        (&["--method", "ab2", "--grid", "0,0.1,0.3,0.6,1"], Some(5)),
        (&["--method", "dopri5", "--tolerance", "1e-3"], None),
        (&["--sde", "sigma", "--steps", "20"], Some(20)),
        (&["--sde", "flow-grpo", "--sde-scale", "0.7", "--sde-last", "tweedie", "--steps", "9"], Some(9)),
        // A prior that guides itself is itself.
        (&["--guidance", "3", "--weak", &weak, "--method", "euler", "--steps", "8"], Some(8)),
        (
            &["--guidance", "3", "--weak", &weak, "--cfg-zero", "2", "--method", "euler", "--steps", "8"],
            Some(8),
        ),
    ];
    for (more, evaluations) in ways {
        let made = sampled("toy-prior", &out, &[&["--count", "50"], more].concat());
        assert!(made["nll"].as_f64().unwrap().is_finite(), "{more:?}: {made}");
        match evaluations {
            Some(expected) => assert_eq!(made["evaluations"], expected, "{more:?}"),
            None => assert_eq!((made["evaluations"].as_u64().unwrap() - 1) % 6, 0, "{made}"),
        }
    }
}

#[test]
fn likelihoods_by_both_methods_are_near_each_other() {
    let prior = quick().path("toy-prior");
    let of = |more: &[&str]| json(&[&["likelihood", &prior, "--json", "--count", "200"], more].concat());
    let number = |found: &Value, key: &str| found[key].as_f64().unwrap();
    let exact = of(&["--steps", "24"]);
    assert_eq!(
        (&exact["count"], &exact["width"], &exact["trace"]),
        (&200.into(), &2.into(), &"exact".into())
    );
    assert_eq!(exact["evaluations"], 4 * 24);
    let bits = number(&exact, "nll") / 2.0 / std::f64::consts::LN_2;
    assert!((number(&exact, "bits_per_dim") - bits).abs() < 1e-12, "{exact}");
    let close = |found: &Value, tolerance: f64| {
        let difference = (number(found, "nll") - number(&exact, "nll")).abs();
        assert!(difference < tolerance, "{found} {exact}");
    };
    close(&of(&["--solver", "dopri5"]), 2e-3);
    close(&of(&["--trace", "hutchinson", "--steps", "24"]), 0.5);
    // A network that has hardly trained is no exact velocity of any density: what its loss is above the floor is added to the estimate.
    let free = of(&["--method", "ode-free", "--draws", "128", "--truncation", "0.95"]);
    assert_eq!(free["method"], "ode-free");
    assert!((-0.1..4.0).contains(&(number(&free, "nll") - number(&exact, "nll"))), "{free} {exact}");
    close(
        &json(&["likelihood", &quick().path("toy-prior/prior.safetensors"), "--json", "--count", "200"]),
        2e-3,
    );
    assert!(printed(&["likelihood", &prior, "--count", "20"]).contains("bits per dim"));
}

#[test]
fn samples_of_standardised_data_come_in_the_units_of_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tokens.npy");
    let made = sampled("tokens-prior", &out, &["--count", "500", "--steps", "4", "--method", "euler"]);
    assert_eq!((&made["width"], &made["figure"]), (&16.into(), &Value::Null));
    // The columns of the tokens have means up to 0.8; noise that the barely trained network moved has none.
    let (_, values) = rows(&out);
    let mean = |column: usize| values.iter().skip(column).step_by(16).sum::<f32>() / 500.0;
    let largest = (0..16).map(|column| mean(column).abs()).fold(0.0, f32::max);
    assert!(largest > 0.15, "{largest}");
}

#[test]
fn latents_and_decoded_samples_are_written_too() {
    let dir = tempfile::tempdir().unwrap();
    let made = sampled("toy-latents-uniform", &dir.path().join("latents.npy"), &[]);
    assert_eq!((&made["what"], &made["count"]), (&"latents".into(), &1000.into()));
    let made = sampled("digits", &dir.path().join("digits.npy"), &["--count", "24"]);
    assert_eq!((&made["what"], &made["count"], &made["width"]), (&"decoded".into(), &24.into(), &64.into()));
    assert!(picture(&dir.path().join("digits.png")).2 > 20);
}

#[test]
fn what_cannot_be_sampled_or_measured_is_refused_with_the_right_code() {
    let dir = tempfile::tempdir().unwrap();
    let (empty, prior) = (dir.path().to_str().unwrap(), quick().path("toy-prior"));
    let (code, text) = failure(&["eval", empty]);
    assert!(code == 3 && text.contains("a run, or a checkpoint of one"), "{code} {text}");
    let (code, text) = failure(&["sample", &prior, "--out", "samples.csv"]);
    assert!(code == 2 && text.contains("`.npy` or `.safetensors`"), "{code} {text}");
    let refused: [(&[&str], &str); 10] = [
        (&["--method", "dopri8"], "`euler`, `midpoint`, `heun`, `rk4`, `ab2`, `dopri5`"),
        (&["--steps", "0"], "at least 1 step"),
        (&["--grid", "0,0.5,0.4,1"], "0.4 follows 0.5"),
        (&["--shift", "-1"], "positive number"),
        (&["--sde", "sbmd"], "`sbdm`"),
        (&["--sde", "sbdm", "--method", "rk4"], "ask for method `euler`"),
        (&["--guidance", "2"], "trained without conditions"),
        (&["--guidance", "2", "--guidance-form", "2+w"], "`w`, `1+w`"),
        (&["--guidance", "2", "--guidance-interval", "0.5"], "takes two times"),
        (&["--guidance", "2", "--weak", &prior, "--guidance-interval", "0.5,2"], "within 0 to 1"),
    ];
    for (more, words) in refused {
        let (code, text) = failure(&[&["sample", &prior], more].concat());
        assert!(code == 2 && text.contains(words), "{more:?}: {code} {text}");
    }
    let refused: [(&[&str], i32, &str); 5] = [
        (&["--method", "sde"], 2, "`ode` or `ode-free`"),
        (&["--trace", "none"], 2, "`exact` or `hutchinson`"),
        (&["--count", "0"], 2, "0 rows"),
        (&["--truncation", "1", "--method", "ode-free"], 2, "between 0 and 1"),
        (&["--data", "missing.npy"], 3, "missing.npy"),
    ];
    for (more, expected, words) in refused {
        let (code, text) = failure(&[&["likelihood", &prior], more].concat());
        assert!(code == expected && text.contains(words), "{more:?}: {code} {text}");
    }
    let (code, text) = failure(&["sample", &prior, "--class", "3"]);
    assert!(code == 2 && text.contains("0 classes"), "{code} {text}");
    let (code, text) = failure(&["eval", &prior, "--truncation", "1"]);
    assert!(code == 2 && text.contains("--truncation"), "{code} {text}");
}

#[test]
fn a_second_demo_in_the_same_folder_trains_nothing_again() {
    let dir = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").arg(quick().dir.path()).arg(dir.path().join("demo")).status();
    assert!(copied.unwrap().success());
    let demo = dir.path().join("demo");
    let records = || fs::read_to_string(demo.join("digits/metrics.jsonl")).unwrap();
    let (before, out) = (records(), demo.to_str().unwrap());
    let summary = printed(&["demo", "--quick", "--out", out]);
    assert_eq!(records(), before);
    let lines = |text: &str| text.lines().take(10).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(&summary), lines(&quick().summary));
}

#[test]
fn holes_of_images_are_filled_beside_what_is_known_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (run, images, filled) = (path("run"), path("images.npy"), path("filled.npy"));
    let sets = "data.builtin=digits model.kind=dit model.width=16 model.depth=1 model.heads=2 model.classes=10 \
                model.inpaint=true train.batch=16";
    let sets: Vec<&str> = sets.split_whitespace().flat_map(|set| ["--set", set]).collect();
    printed(&[&["pretrain", "--quiet", "--steps", "2", "--run", &run], &sets[..]].concat());
    let sample = ["sample", &run, "--steps", "2", "--json"];
    let made = json(&[&sample[..], &["--count", "4", "--out", &images]].concat());
    assert_eq!(made["count"], 4);
    let made = json(
        &[&sample[..], &["--beside", &images, "--mask", "lower", "--seed", "3", "--out", &filled]].concat(),
    );
    assert_eq!((&made["count"], &made["width"]), (&Value::from(4), &Value::from(64)));
    assert!(Path::new(made["figure"].as_str().unwrap()).is_file());
    let ((_, images), (_, filled)) = (rows(Path::new(&images)), rows(Path::new(&filled)));
    for (image, filled) in images.chunks(64).zip(filled.chunks(64)) {
        assert_eq!(image[..32], filled[..32]);
        assert!(image[32..].iter().zip(&filled[32..]).all(|(a, b)| a != b));
    }
    let (code, message) =
        failure(&[&sample[..], &["--beside", &path("images.npy"), "--mask", "below"]].concat());
    assert!(code == 2 && message.contains("unknown mask `below`"), "{code}: {message}");
    let (code, message) = failure(&[&sample[..], &["--beside", &path("images.npy")]].concat());
    assert!(code == 2 && message.contains("--mask"), "{code}: {message}");
}

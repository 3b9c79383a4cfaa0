//! The commands that look, reckon and time: `bench step`, `plan`, `doctor`; their JSON and their exit codes.

use std::process::{Command, Output};

use flowprior::data::manifest::Classes;
use flowprior::data::writer::{DatasetWriter, Labels, Spec};
use flowprior::device::CpuOptions;
use flowprior::nn::{Params, VelocityConfig, VelocityNet};
use flowprior::train::config::{Config, Sources, Stage};
use flowprior::train::plan::Plan;
use flowprior::train::timing::{Steps, completed};
use flowprior::{Device, FloatX};
use half::{bf16, f16};
use serde_json::Value;

fn flowprior(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowprior"));
    // The same with and without a card.
    command.args(args).env("FLOWPRIOR_CUDA_DRIVER", "/nowhere/libcuda.so").output().unwrap()
}

fn json(args: &[&str]) -> Value {
    let output = flowprior(args);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e} in {text}"))
}

/// Runs a command that must fail: its exit code and what it says.
fn failure(args: &[&str]) -> (i32, String) {
    let output = flowprior(args);
    assert!(output.stdout.is_empty(), "{args:?} printed {}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// A network small enough that a step takes a millisecond.
const TINY: [&str; 6] =
    ["--set", "model.width=32", "--set", "model.depth=2", "--set", "for.pretrain.train.batch=64"];

fn bench_step(more: &[&str]) -> Value {
    json(&[&["bench", "step", "--json", "--steps", "6", "--threads", "2"], &TINY[..], more].concat())
}

#[test]
fn bench_step_prints_every_documented_key() {
    let report = bench_step(&["--preset", "toy-moons", "--dtype", "bf16", "--modulation", "groups=8"]);
    let positive = [
        "ms_median",
        "ms_min",
        "ms_p20",
        "ms_p80",
        "samples_per_s",
        "gflop_per_step",
        "gflop_per_s",
        "bytes_held",
    ];
    for key in positive {
        assert!(report[key].as_f64().is_some_and(|x| x > 0.0), "{key} in {report}");
    }
    let words = [
        ("preset", "toy-moons"),
        ("stage", "pretrain"),
        ("target", "prior"),
        ("dtype", "bf16"),
        ("modulation", "groups=8"),
        ("device", "cpu"),
    ];
    for (key, expected) in words {
        assert_eq!(report[key], expected);
    }
    let numbers =
        [("threads", 2), ("steps", 6), ("warmup", 3), ("samples_per_step", 64), ("rows_per_step", 64)];
    for (key, expected) in numbers {
        assert_eq!(report[key], expected, "{key}");
    }
    assert!(report["isa"].is_string() && report["skipped"] == 0);
    if cfg!(target_os = "linux") {
        assert!(report["peak_rss_bytes"].as_u64().unwrap() > report["bytes_held"].as_u64().unwrap());
    }
    let ms = |key: &str| report[key].as_f64().unwrap();
    assert!(ms("ms_min") <= ms("ms_p20") && ms("ms_p20") <= ms("ms_median"));
    assert!(ms("ms_median") <= ms("ms_p80"));
}

#[test]
fn reference_presets_are_timed_without_data_or_prior() {
    let prior = bench_step(&["--preset", "reference-prior", "--set", "train.batch=16"]);
    assert_eq!((&prior["rows_per_step"], &prior["modulation"]), (&64.into(), &"nodes=16".into()));
    let align = bench_step(&["--preset", "reference-align", "--modulation", "direct"]);
    // 8 samples of 64 latents, four times each: the rows of the reference's autoencoder.
    assert_eq!(align["target"], "latents");
    assert_eq!((&align["samples_per_step"], &align["rows_per_step"]), (&512.into(), &2048.into()));
}

#[test]
fn both_targets_of_stage_2_are_timed() {
    let toy = bench_step(&["--preset", "toy-grid", "--stage", "align"]);
    assert_eq!((&toy["target"], &toy["samples_per_step"]), (&"latents".into(), &1000.into()));
    let demo = ["--preset", "demo", "--stage", "align", "--dtype", "f16"];
    let autoencoder = bench_step(&demo);
    assert_eq!(
        (&autoencoder["target"], &autoencoder["samples_per_step"]),
        (&"autoencoder".into(), &256.into())
    );
    let latents = bench_step(&[&demo[..], &["--target", "latents"]].concat());
    assert_eq!((&latents["target"], &latents["samples_per_step"]), (&"latents".into(), &256.into()));
    assert!(latents["gflop_per_step"].as_f64() < autoencoder["gflop_per_step"].as_f64());
}

#[test]
fn plan_foresees_the_memory_that_two_steps_hold() {
    let cases = [
        ("reference-prior", Stage::Pretrain, "f32", "nodes", "model.post_norm=false"),
        ("reference-prior", Stage::Pretrain, "f32", "direct", "model.post_norm=true"),
        ("reference-prior", Stage::Pretrain, "bf16", "nodes", "optim.kind='sgd'"),
        ("reference-prior", Stage::Pretrain, "bf16", "groups=256", "optim.ema=[0.99, 0.999]"),
        ("reference-prior", Stage::Pretrain, "f16", "direct", "train.micro_batches=2"),
        ("reference-align", Stage::Align, "f32", "nodes", "model.post_norm=false"),
        ("reference-align", Stage::Align, "f32", "direct", "model.post_norm=true"),
        ("reference-align", Stage::Align, "bf16", "nodes", "train.micro_batches=2"),
        ("fashion", Stage::Pretrain, "f32", "direct", "model.qk_norm=true"),
        ("fashion", Stage::Pretrain, "bf16", "direct", "train.micro_batches=2"),
        ("fashion", Stage::Pretrain, "f32", "direct", "train.recompute=true"),
        ("fashion", Stage::Pretrain, "bf16", "groups=8", "model.classes=0"),
        ("reference-dit", Stage::Pretrain, "f32", "direct", "model.learn_sigma=true"),
        ("fashion", Stage::Align, "f32", "direct", "align.latents=48"),
        ("fashion", Stage::Align, "bf16", "direct", "align.latents=32"),
        ("toy-gaussians", Stage::Pretrain, "f32", "nodes", "train.batch=512"),
        ("toy-gaussians", Stage::Align, "f32", "nodes", "align.std_weight=0.1"),
        ("demo", Stage::Pretrain, "f32", "nodes", "model.depth=3"),
        ("demo", Stage::Align, "f32", "nodes", "model.depth=3"),
    ];
    let mut wrong = Vec::new();
    for (preset, stage, dtype, modulation, more) in cases {
        let sources = Sources { stage: Some(stage), preset: Some(preset.to_owned()), file: None };
        let small = match preset {
            "reference-dit" => "train.batch=4",
            "fashion" => "model.image=[1, 32, 32]",
            _ if preset.starts_with("reference") => "model.width=256",
            _ => "model.depth=4",
        };
        let sets = [
            &format!("dtype={dtype}"),
            &format!("model.modulation='{modulation}'"),
            small,
            "threads=2",
            more,
        ]
        .map(str::to_owned);
        let config = completed(Config::load(&sources, &sets).unwrap(), None);
        let (foreseen, held) = planned_and_held(&config);
        let ratio = foreseen as f64 / held as f64;
        let line = format!(
            "{preset} {} {dtype} {modulation} {more}: {foreseen} foreseen, {held} held, ratio {ratio:.3}",
            stage.name(),
        );
        println!("{line}");
        let near = if preset.ends_with("dit") || preset == "fashion" { 0.05 } else { 0.1 };
        // Small batches of an MLP go through it in strips, each with scratch memory of its own, which the plan does not list.
        let unlisted = held.saturating_sub(foreseen);
        let in_strips = !preset.contains("dit") && preset != "fashion" && unlisted < 8 << 20;
        if (ratio - 1.0).abs() > near && !in_strips {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The weights of a frozen prior, which stage 2 keeps packed where its batches are small.
#[test]
fn packed_weights_take_the_bytes_foreseen() {
    fn check<X: FloatX>(config: VelocityConfig) {
        let device = Device::open("cpu", CpuOptions { threads: 2, ..CpuOptions::default() }).unwrap();
        let Device::Cpu(cpu) = &device else { panic!("the tests run on the CPU") };
        let net = VelocityNet::new(config).unwrap();
        let params = Params::<X>::init(&device, net.layout().clone(), 1).unwrap();
        let before = cpu.bytes_held();
        net.pack(&params).unwrap();
        assert_eq!(cpu.bytes_held() - before, net.panel_bytes(X::DTYPE), "{config:?} {}", X::DTYPE);
        assert!(net.panel_bytes(X::DTYPE) > 0);
    }
    let nets = [("reference-prior", "model.width=272"), ("fashion", "model.image=[1, 32, 32]")];
    for (preset, small) in nets {
        let sources = Sources { stage: Some(Stage::Pretrain), preset: Some(preset.to_owned()), file: None };
        let config = completed(Config::load(&sources, &[small.to_owned()]).unwrap(), None);
        let net = Plan::new(&config, None).unwrap().work.net;
        check::<f32>(net);
        check::<bf16>(net);
        check::<f16>(net);
    }
}

/// Returns the bytes that a plan foresees and those that the processor's pool holds, at most, after two steps.
fn planned_and_held(config: &Config) -> (u64, u64) {
    let plan = Plan::new(config, None).unwrap();
    let mut steps = Steps::prepare(config).unwrap();
    (0..2).for_each(|_| drop(steps.advance().unwrap()));
    let Device::Cpu(cpu) = &steps.device else { panic!("the tests run on the CPU") };
    println!("{:?}", plan.memory);
    (plan.memory.total(), cpu.bytes_held())
}

/// The preset as it is, on data with labels in a folder, with few rows in a step. Most is parameters: 1 % of all is 4 % of activations, or 20 % recomputed.
#[test]
fn plan_foresees_the_peak_of_a_dit_with_and_without_recomputing() {
    let folder = tempfile::tempdir().unwrap();
    let latents = folder.path().join("latents");
    let labels = Labels::Classes(Classes { classes: 1000, names: Vec::new() });
    let spec = Spec { shape: Some([4, 32, 32]), labels, ..Spec::new(4096) };
    let mut writer = DatasetWriter::create(&latents, spec).unwrap();
    let rows: Vec<f32> = (0..8 * 4096).map(|i| (i as f32 * 0.37).sin()).collect();
    writer.push(&rows, Some(&[0, 999, 1, 998, 2, 997, 3, 996])).unwrap();
    writer.finish().unwrap();
    let data = format!("data.path='{}'", latents.display());
    for (dtype, batch) in [("f32", 2), ("bf16", 4)] {
        let held = [false, true].map(|recompute| {
            let sources = Sources { preset: Some("reference-dit".to_owned()), ..Sources::default() };
            let own = [data.clone(), format!("dtype={dtype}"), "threads=2".into()];
            let more = [format!("train.batch={batch}"), format!("train.recompute={recompute}")];
            let config = Config::load(&sources, &[&own[..], &more].concat()).unwrap();
            let (foreseen, held) = planned_and_held(&config);
            let ratio = foreseen as f64 / held as f64;
            let line =
                format!("{dtype}, recompute {recompute}: {foreseen} foreseen, {held} held, ratio {ratio:.3}");
            println!("{line}");
            assert!((ratio - 1.0).abs() < 0.01, "{line}");
            held
        });
        assert!(held[1] < held[0], "{dtype}: recomputing holds {held:?}");
    }
}

#[test]
fn plan_foresees_what_vision_transformers_hold() {
    let vit = ["kind=vit", "image=[1, 8, 8]", "patch=1", "width=128", "depth=3", "heads=4", "tokens=16"];
    let mut wrong = Vec::new();
    for (dtype, more) in [
        ("f32", "train.micro_batches=1"),
        ("bf16", "train.micro_batches=2"),
        ("f32", "train.recompute=true"),
        ("bf16", "align.projection=true"),
        ("f32", "align.joint=true"),
    ] {
        let sources =
            Sources { stage: Some(Stage::Align), preset: Some("demo".to_owned()), ..Sources::default() };
        let own = [format!("dtype={dtype}"), "threads=2".into(), "train.batch=64".into(), more.into()];
        let vit = vit.map(|set| format!("align.autoencoder.{set}"));
        let config = Config::load(&sources, &[&own[..], &vit].concat()).unwrap();
        let (foreseen, held) = planned_and_held(&completed(config, None));
        let ratio = foreseen as f64 / held as f64;
        let line = format!("{dtype} {more}: {foreseen} foreseen, {held} held, ratio {ratio:.3}");
        println!("{line}");
        if (ratio - 1.0).abs() > 0.05 {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn plan_prints_every_documented_key() {
    let plan = json(&["plan", "--preset", "reference-prior", "--gflops", "100", "--json"]);
    assert_eq!(plan["parameters"]["total"], 34_978_848);
    let groups = plan["parameters"]["groups"].as_object().unwrap();
    assert_eq!(groups.keys().collect::<Vec<_>>(), ["final_layer", "input_proj", "res_blocks", "time_embed"]);
    assert_eq!(groups.values().map(|n| n.as_u64().unwrap()).sum::<u64>(), 34_978_848);
    let flop = &plan["flop"];
    let parts = ["forward", "input_gradient", "weight_gradient", "attention", "interpolation"];
    let sum: u64 = parts.iter().map(|part| flop[part].as_u64().unwrap()).sum();
    assert_eq!(flop["per_step"], sum);
    assert_eq!(flop["total"].as_f64().unwrap(), sum as f64 * 1e6);
    assert_eq!(plan["seconds"].as_f64().unwrap(), sum as f64 * 1e6 / 1e11);
    let bytes = plan["bytes"].as_object().unwrap();
    let sum: u64 = bytes.iter().filter(|(key, _)| *key != "total").map(|(_, b)| b.as_u64().unwrap()).sum();
    assert_eq!(bytes["total"], sum);
    assert_eq!(bytes.len(), 9);
    assert_eq!(plan["data_bytes_per_step"], 512 * 32 * 4);
    assert_eq!((&plan["steps"], &plan["modulation"]), (&1_000_000.into(), &"nodes=16".into()));
}

#[test]
fn plan_counts_the_published_parameters_of_dits() {
    for (size, parameters) in [("S", 32_865_056u64), ("XL", 674_834_720)] {
        let size = format!("model.size={size}");
        let sets = ["--set", &size, "--set", "model.learn_sigma=true", "--json"];
        let plan = json(&[&["plan", "--preset", "reference-dit"], &sets[..]].concat());
        assert_eq!(plan["parameters"]["total"], parameters);
        assert!(plan["flop"]["attention"].as_u64() > Some(0));
    }
}

#[test]
fn plan_takes_the_sizes_of_a_prior_that_exists() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("prior");
    let tiny = [&["pretrain", "--preset", "toy-moons", "--steps", "2", "--quiet"], &TINY[..]].concat();
    assert!(flowprior(&[&tiny[..], &["--run", run.to_str().unwrap()]].concat()).status.success());
    let plan = json(&[
        "plan",
        "--preset",
        "toy-moons",
        "--stage",
        "align",
        "--prior",
        run.to_str().unwrap(),
        "--json",
    ]);
    let known = json(&[&["plan", "--preset", "toy-moons", "--stage", "align", "--json"], &TINY[..]].concat());
    assert_eq!(plan["parameters"], known["parameters"]);
    assert_eq!(plan["parameters"]["groups"]["latents"], 2000);
    let other = json(&["plan", "--preset", "toy-moons", "--stage", "align", "--json"]);
    assert!(plan["parameters"]["frozen"].as_u64() < other["parameters"]["frozen"].as_u64());
}

#[test]
fn doctor_says_what_was_looked_for() {
    let report = json(&["doctor", "--json"]);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(report["cpu"]["cores"].as_u64().unwrap() > 0 && report["cpu"]["isa"].is_string());
    assert_eq!(report["cuda"]["device"], Value::Null);
    assert!(report["cuda"]["error"].as_str().unwrap().contains("/nowhere/libcuda.so"));
    let libraries = report["cuda"]["libraries"].as_object().unwrap();
    let names: Vec<_> = libraries.keys().map(String::as_str).collect();
    assert_eq!(names, ["libcuda.so.1", "libnvrtc.so.12", "libnvrtc.so.13"]);
    assert_eq!(report["data"]["digits"]["rows"], 1797);
    assert_eq!(report["data"]["tokens"]["rows"], 30_522);
    assert_eq!((&report["writable"], &report["write_error"]), (&true.into(), &Value::Null));
    let text = String::from_utf8(flowprior(&["doctor"]).stdout).unwrap();
    assert!(text.contains("CUDA         none: the CUDA driver cannot be opened"), "{text}");
}

#[test]
fn bench_variance_measures_every_weight_and_way_to_draw_times() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run").display().to_string();
    let small = ["--preset", "toy-gaussians", "--threads", "1", "--steps", "30", "--quiet"];
    let table = ["--set", "flow.weight=table", "--set", "flow.weight_table=[0, 1, 2]"];
    let trained = flowprior(&[&["pretrain", "--run", &run], &small[..], &TINY, &table].concat());
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    let args = ["bench", "variance", &run, "--json", "--repeats", "8"];
    let of_latents = json(&[&args[..], &["--latents", "6", "--at", "normal", "--flow-mul", "2"]].concat());
    assert_eq!((&of_latents["of"], &of_latents["at"]), (&"latents".into(), &"normal".into()));
    let rows = of_latents["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4 * 4 * 3);
    let params = json(&[&args[..], &["--of", "params"]].concat());
    let rows_of_params = params["rows"].as_array().unwrap();
    assert_eq!((rows_of_params.len(), &params["latents"]), (4 * 4, &Value::Null));
    for row in rows.iter().chain(rows_of_params) {
        for key in ["loss", "loss_std", "deviation"] {
            assert!(row[key].as_f64().is_some_and(|x| x > 0.0), "{key} in {row}");
        }
        for key in ["signal", "noise", "weight", "time", "gradient"] {
            assert!(row.get(key).is_some(), "{key} in {row}");
        }
    }
    let text =
        String::from_utf8(flowprior(&[&args[..3], &["--repeats", "2", "--latents", "2"]].concat()).stdout)
            .unwrap();
    assert_eq!(text.lines().count(), 1 + 4 * 4 * 3, "{text}");
    for (more, words) in [
        (["--repeats", "1"], "--repeats needs at least 2"),
        (["--latents", "0"], "--latents at least 1"),
        (["--latents", "9999999"], "9999999 of width 2"),
        (["--flow-mul", "0"], "--flow-mul needs 1 to 4096"),
    ] {
        let (_, said) = failure(&[&["bench", "variance", &run], &more[..]].concat());
        assert!(said.contains(words), "{more:?}: {said}");
    }
    assert_eq!(failure(&["bench", "variance", "nowhere"]).0, 3);
}

#[test]
fn each_kind_of_mistake_has_its_exit_code() {
    let cases: [(&[&str], i32, &str); 8] = [
        (&["bench", "step", "--preset", "toy-mons"], 2, "did you mean `toy-moons`"),
        (&["bench", "step", "--preset", "toy-moons", "--steps", "0"], 2, "--steps must be at least 1"),
        (&["bench", "step", "--preset", "toy-moons", "--modulation", "shared"], 2, "unknown modulation"),
        (
            &["bench", "step", "--preset", "toy-moons", "--device", "cuda"],
            4,
            "the CUDA driver cannot be opened",
        ),
        (&["bench", "step", "--set", "data.path=missing.npy"], 3, "missing.npy"),
        (&["bench", "step", "--stage", "align", "--target", "autoencoder"], 2, "no data"),
        (&["plan", "--preset", "toy-moons", "--gflops", "0"], 2, "--gflops"),
        (&["plan", "--preset", "toy-moons", "--stage", "align", "--prior", "missing"], 3, "missing"),
    ];
    for (args, code, words) in cases {
        let (found, message) = failure(args);
        assert_eq!(found, code, "{args:?}: {message}");
        assert!(message.contains(words), "{args:?}: {message}");
    }
}

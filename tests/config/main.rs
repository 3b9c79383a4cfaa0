//! The configuration: layers, presets, refusals. Every message a user can meet is checked by its words.

mod ranges;

use std::path::PathBuf;

use flowprior::DType;
use flowprior::Error;
use flowprior::optim::schedule::ScheduleKind;
use flowprior::optim::{OptimKind, Rounding};
use flowprior::train::config::{
    Activation, Builtin, Config, DataSource, Kind, Modulation, Reduction, Sources, Stage, Target,
    TimeSampling, Toy, Weight,
};
use flowprior::train::preset;
use proptest::prelude::*;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn sets(sets: &[&str]) -> Result<Config, Error> {
    load(&Sources::default(), sets)
}

fn load(sources: &Sources, sets: &[&str]) -> Result<Config, Error> {
    Config::load(sources, &sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
}

fn of(stage: Stage, name: &str) -> Sources {
    Sources { stage: Some(stage), preset: Some(name.to_owned()), file: None }
}

/// Returns the message of a refusal, having checked that it ends the program with code 2.
fn refusal(result: Result<Config, Error>) -> String {
    match result {
        Ok(_) => "accepted".to_owned(),
        Err(e) => {
            assert_eq!(e.exit_code(), 2, "{e}");
            e.to_string()
        }
    }
}

fn file(text: &str) -> Result<(tempfile::TempDir, Sources), std::io::Error> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("run.toml");
    std::fs::write(&path, text)?;
    Ok((dir, Sources { file: Some(path), ..Default::default() }))
}

#[test]
fn defaults_are_the_reference() -> Outcome {
    let c = sets(&[])?;
    assert_eq!((c.stage, c.seed, c.device.as_str(), c.dtype), (Stage::Pretrain, 42, "auto", DType::F32));
    assert_eq!((c.model.width, c.model.depth, c.model.cond, c.model.time_scale), (1024, 6, 0, 1.0));
    assert_eq!(
        (c.optim.kind, c.optim.beta1, c.optim.beta2, c.optim.eps),
        (OptimKind::Adamw, 0.9, 0.95, 1e-8)
    );
    assert_eq!((c.optim.lr, c.optim.weight_decay, c.optim.clip), (2e-4, 0.0, 1.0));
    assert_eq!(c.optim.ema, [0.9999]);
    assert_eq!((c.optim.schedule.warmup_lr, c.optim.schedule.min_lr_ratio), (1e-5, 0.1));
    assert_eq!(
        (c.scaler.init, c.scaler.growth, c.scaler.backoff, c.scaler.interval),
        (65536.0, 2.0, 0.5, 2000)
    );
    assert_eq!(
        (c.flow.weight, c.flow.weight_clip, c.flow.reduction),
        (Weight::Uniform, 0.98, Reduction::MeanAll)
    );
    assert_eq!((c.align.latents, c.align.lambda, c.align.use_ema), (1000, 0.01, true));
    assert_eq!((c.train.max_skipped, c.train.keep), (20, 2));
    Ok(())
}

#[test]
fn each_layer_overrides_the_ones_before_it() -> Outcome {
    let (_dir, mut sources) = file("seed = 7\n[train]\nsteps = 70\nbatch = 32\n[optim]\nema = [0.5, 0.9]\n")?;
    sources.preset = Some("toy-grid".to_owned());
    let c = load(&sources, &["train.steps=3", "optim.schedule.kind=linear"])?;
    assert_eq!((c.seed, c.train.steps, c.train.batch), (7, 3, 32));
    assert_eq!((c.model.width, c.optim.lr), (128, 1e-3)); // still the preset's
    assert_eq!((c.optim.schedule.kind, c.optim.schedule.warmup_steps), (ScheduleKind::Linear, 100));
    assert_eq!(c.optim.ema, [0.5, 0.9]); // lists are replaced, not joined
    assert_eq!(c.align.latents, 1000); // still the default
    Ok(())
}

#[test]
fn set_reads_toml_values_and_bare_words() -> Outcome {
    let c = sets(&[
        "data.path=/tmp/some where/x.npy",
        "device=cuda:1",
        "dtype=bf16",
        "seed = 9",
        "optim.ema=[0.9, 0.99]",
        "optim.kind=\"lion\"",
        "optim.lr=1",
        "optim.rounding=stochastic",
        "model.post_norm=true",
        "flow.time=logit-normal",
        "flow.reduction=sum_dims_mean_rows",
        "align.autoencoder.activation=gelu",
        "align.autoencoder={ latent = 8 }",
    ])?;
    assert_eq!(c.data.source()?, DataSource::Path("/tmp/some where/x.npy".as_ref()));
    assert_eq!((c.device.as_str(), c.dtype, c.seed), ("cuda:1", DType::Bf16, 9));
    assert_eq!((c.optim.kind, c.optim.lr, c.optim.rounding), (OptimKind::Lion, 1.0, Rounding::Stochastic));
    assert_eq!((c.optim.ema, c.model.post_norm), (vec![0.9, 0.99], true));
    assert_eq!((c.flow.time, c.flow.reduction), (TimeSampling::LogitNormal, Reduction::SumDimsMeanRows));
    assert_eq!((c.align.autoencoder.activation, c.align.autoencoder.latent), (Activation::Gelu, 8));
    Ok(())
}

#[test]
fn every_preset_loads_in_its_stages_and_settles_both() -> Outcome {
    for name in preset::names() {
        for stage in [Stage::Pretrain, Stage::Align] {
            let other = if name == "reference-align" { Stage::Pretrain } else { Stage::Align };
            if name.starts_with("reference") && stage == other {
                let message = refusal(load(&of(stage, name), &[]));
                assert!(message.starts_with(&format!("preset `{name}`: is for stage")), "{message}");
                continue;
            }
            let c = load(&of(stage, name), &[]).map_err(|e| format!("{name}: {e}"))?;
            assert_eq!(c.stage, stage, "{name}");
            let asks = name.starts_with("reference") || name == "fashion";
            assert_eq!(c.data.source().is_ok(), !asks, "{name}");
        }
    }
    let prior = load(&of(Stage::Pretrain, "toy-grid"), &[])?;
    let align = load(&of(Stage::Align, "toy-grid"), &[])?;
    assert_eq!(
        (prior.data.source()?, align.data.source()?),
        (DataSource::Toy(Toy::Grid), DataSource::Toy(Toy::Grid))
    );
    assert_eq!((prior.optim.lr, prior.optim.schedule.kind), (1e-3, ScheduleKind::Cosine));
    assert_eq!((align.optim.lr, align.optim.schedule.kind), (1e-2, ScheduleKind::Constant));
    assert_eq!((align.train.steps, align.align.latents, align.flow.weight), (5000, 1000, Weight::Uniform));
    let demo = load(&of(Stage::Align, "demo"), &[])?;
    assert_eq!(
        (demo.data.source()?, demo.align.target),
        (DataSource::Builtin(Builtin::Digits), Target::Autoencoder)
    );
    Ok(())
}

#[test]
fn the_reference_presets_have_the_reference_sizes() -> Outcome {
    let c = load(&of(Stage::Pretrain, "reference-prior"), &[])?;
    assert_eq!((c.model.channels, c.model.width, c.model.depth), (32, 1024, 6));
    assert_eq!((c.train.batch * c.flow.flow_mul, c.optim.kind), (2048, OptimKind::Adamw));
    let c = load(&of(Stage::Align, "reference-align"), &[])?;
    assert_eq!(c.train.batch * c.align.autoencoder.tokens * c.flow.flow_mul, 2048);
    Ok(())
}

#[test]
fn a_published_size_decides_width_depth_and_heads() -> Outcome {
    for (size, sizes) in [("S", (384, 12, 6)), ("xl", (1152, 28, 16))] {
        let c = sets(&["model.kind=dit", &format!("model.size={size}")])?;
        assert_eq!((c.model.width, c.model.depth, c.model.heads), sizes);
        // What a run folder keeps says the same.
        let (_dir, resolved) = file(&c.to_toml()?)?;
        assert_eq!(load(&resolved, &[])?, c);
    }
    let c = load(&of(Stage::Pretrain, "fashion"), &[])?;
    assert_eq!((c.model.kind, c.model.patch, c.model.classes), (Kind::Dit, 4, 10));
    Ok(())
}

#[test]
fn a_table_for_one_stage_does_not_touch_the_other() -> Outcome {
    let (_dir, mut sources) = file("[train]\nsteps = 5\n[for.align.train]\nsteps = 6\n")?;
    for (stage, steps) in [(None, 5), (Some(Stage::Pretrain), 5), (Some(Stage::Align), 6)] {
        sources.stage = stage;
        assert_eq!(load(&sources, &[])?.train.steps, steps);
    }
    assert_eq!(load(&sources, &["for.pretrain.train.steps=8"])?.train.steps, 6);
    assert_eq!(load(&sources, &["for.align.train.steps=8"])?.train.steps, 8);
    assert_eq!(
        refusal(sets(&["for.aling.train.steps=8"])),
        "`--set for.aling.train.steps=8`: expected tables `for.pretrain` and `for.align`, found `for.aling`"
    );
    assert!(refusal(sets(&["for=3"])).ends_with("found integer"));
    Ok(())
}

#[test]
fn a_new_data_source_replaces_the_old_one_and_two_at_once_are_refused() -> Outcome {
    let c = load(&of(Stage::Pretrain, "toy-moons"), &["data.path=features", "data.prefetch=1"])?;
    assert_eq!(c.data.source()?, DataSource::Path("features".as_ref()));
    let c = load(&of(Stage::Pretrain, "toy-moons"), &["data.prefetch=1"])?;
    assert_eq!(c.data.source()?, DataSource::Toy(Toy::Moons));
    let (_dir, sources) = file("[data]\ntoy = \"grid\"\nbuiltin = \"digits\"\n")?;
    assert!(refusal(load(&sources, &[])).contains("only one of `data.toy`, `data.path` and `data.builtin`"));
    let none = sets(&[])?;
    let message = none.data.source().map(|_| ()).unwrap_err().to_string();
    assert!(message.starts_with("no data: set one of `data.toy`"), "{message}");
    Ok(())
}

#[test]
fn an_unknown_key_names_itself_its_source_and_the_nearest_key() -> Outcome {
    let cases = [
        ("optim.lrr=3", "`--set optim.lrr=3`: unknown key `optim.lrr`; did you mean `optim.lr`?"),
        ("train.lr=3", "`--set train.lr=3`: unknown key `train.lr`; did you mean `optim.lr`?"),
        ("optm.lr=3", "`--set optm.lr=3`: unknown key `optm`; did you mean `optim`?"),
        ("sed=3", "`--set sed=3`: unknown key `sed`; did you mean `seed`?"),
        (
            "optim.schedule.warm_up_steps=3",
            "`--set optim.schedule.warm_up_steps=3`: unknown key `optim.schedule.warm_up_steps`; \
             did you mean `optim.schedule.warmup_steps`?",
        ),
        (
            "align.autoencoder.qqqqqqqq=3",
            "`--set align.autoencoder.qqqqqqqq=3`: unknown key `align.autoencoder.qqqqqqqq`; \
             known here: `activation`, `depth`, `heads`, `hidden`, `image`, `kind`, `latent`, `patch`, `size`, `tokens`, `width`",
        ),
        (
            "optim.max_grad_norm=3",
            "`--set optim.max_grad_norm=3`: unknown key `optim.max_grad_norm`; here it is `optim.clip`",
        ),
        (
            "for.align.trian.steps=3",
            "`--set for.align.trian.steps=3`: unknown key `trian`; did you mean `train`?",
        ),
    ];
    for (set, expected) in cases {
        assert_eq!(refusal(sets(&[set])), expected);
    }
    let (_dir, sources) = file("[model]\nwidht = 3\n")?;
    let path = sources.file.clone().unwrap_or_default();
    let expected = format!("{}: unknown key `model.widht`; did you mean `model.width`?", path.display());
    assert_eq!(refusal(load(&sources, &[])), expected);
    Ok(())
}

#[test]
fn unsound_options_of_the_reference_are_refused_with_their_reason() {
    for (name, reason) in [
        ("norm_v", "√(2d)"),
        ("moving_avg_std", "data.standardise"),
        ("seperate_fitting", "algebraically the same"),
        ("separate_fitting", "algebraically the same"),
        ("flow_loss_trainable", "chase"),
    ] {
        for section in ["", "flow.", "align.", "model."] {
            let message = refusal(sets(&[&format!("{section}{name}=true")]));
            let start = format!("`--set {section}{name}=true`: `{section}{name}` is refused: ");
            assert!(message.starts_with(&start) && message.contains(reason), "{message}");
        }
    }
}

#[test]
fn a_value_of_the_wrong_kind_names_its_source_and_its_key() -> Outcome {
    for (set, words) in [
        ("optim.lr=fast", ["invalid type: string \"fast\", expected f64", "optim.lr"]),
        ("optim.kind=adan", ["unknown variant `adan`", "`adamw`"]),
        ("train.steps=-1", ["invalid value: integer `-1`, expected u64", "train.steps"]),
        ("train.steps=1.5", ["invalid type: floating point", "train.steps"]),
        ("dtype=f8", ["unknown dtype `f8`", "dtype"]),
        ("optim=3", ["`optim` is a section, not a value", ""]),
        ("model.modulation=nodes=x", ["unknown modulation `nodes=x`", "model.modulation"]),
        ("seed=99999999999999999999", ["invalid type: string", "seed"]),
        ("stage=sample", ["unknown variant `sample`", "stage"]),
    ] {
        let message = refusal(sets(&[set]));
        assert!(message.starts_with(&format!("`--set {set}`: ")), "{message}");
        assert!(words.iter().all(|w| message.contains(w)), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
    for set in ["", "steps", "=3", "a..b=3", ".a=3"] {
        assert!(refusal(sets(&[set])).contains("expected KEY=VALUE"), "{set}");
    }
    let (_dir, sources) = file("[model\nwidth = 3\n")?;
    assert!(refusal(load(&sources, &[])).contains("run.toml: not valid TOML: "));
    let missing = Sources { file: Some(PathBuf::from("/nowhere/x.toml")), ..Default::default() };
    let error = load(&missing, &[]).unwrap_err();
    assert_eq!((error.exit_code(), error.to_string().starts_with("/nowhere/x.toml: cannot read")), (3, true));
    let error = load(&of(Stage::Align, "toy-gird"), &[]).unwrap_err().to_string();
    assert!(error.starts_with("unknown preset `toy-gird`; did you mean `toy-grid`?"), "{error}");
    Ok(())
}

#[test]
fn every_modulation_is_written_as_it_was_read() -> Outcome {
    for (text, modulation, written) in [
        ("auto", Modulation::Auto, "auto"),
        ("direct", Modulation::Direct, "direct"),
        ("nodes", Modulation::Nodes(16), "nodes=16"),
        ("nodes=24", Modulation::Nodes(24), "nodes=24"),
        ("groups=64", Modulation::Groups(64), "groups=64"),
    ] {
        let c = sets(&[&format!("model.modulation={text}")])?;
        assert_eq!(c.model.modulation, modulation);
        assert!(c.to_toml()?.contains(&format!("modulation = \"{written}\"")));
    }
    Ok(())
}

#[test]
fn the_resolved_configuration_reads_back_to_the_same_values() -> Outcome {
    for name in preset::names() {
        for stage in [Stage::Pretrain, Stage::Align] {
            let Ok(c) = load(&of(stage, name), &["seed=123456789012345"]) else { continue };
            let (_dir, sources) = file(&c.to_toml()?)?;
            assert_eq!(load(&sources, &[])?, c, "{name}");
        }
    }
    Ok(())
}

#[test]
fn differences_name_each_key_with_both_values() -> Outcome {
    let a = load(&of(Stage::Pretrain, "toy-grid"), &[])?;
    let b =
        load(&of(Stage::Pretrain, "toy-grid"), &["train.steps=9", "data.path=x", "optim.schedule.kind=wsd"]);
    assert!(b.is_err()); // 9 steps do not hold its warm-up
    let b = load(&of(Stage::Pretrain, "toy-grid"), &["train.steps=9", "data.path=x"])?;
    let expected = ["data.toy: \"grid\" -> (none)", "train.steps: 12000 -> 9", "data.path: (none) -> \"x\""];
    assert_eq!(a.differences(&b)?, expected);
    assert_eq!(a.differences(&a)?, Vec::<String>::new());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_text_makes_the_reader_panic(key in "[a-z.]{0,12}", value in "\\PC{0,12}", text in "\\PC{0,60}") {
        let _ = sets(&[&text]);
        let _ = sets(&[&format!("{key}={value}")]);
    }
}

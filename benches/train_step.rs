//! Whole training steps by criterion, in samples/s: the reference's two stages and the toys'.
//!
//! `flowprior bench step` times the same steps and also prints GFLOP/s and memory.

#[path = "support/units.rs"]
mod units;

use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use flowprior::Result;
use flowprior::train::config::{Config, Sources, Stage};
use flowprior::train::timing::{Steps, completed};
use units::Timed;

/// Name, preset, stage and form of modulation.
const CASES: [(&str, &str, Stage, &str); 6] = [
    ("reference stage 1 direct", "reference-prior", Stage::Pretrain, "direct"),
    ("reference stage 1 nodes", "reference-prior", Stage::Pretrain, "nodes"),
    ("reference stage 2 direct", "reference-align", Stage::Align, "direct"),
    ("reference stage 2 nodes", "reference-align", Stage::Align, "nodes"),
    ("toy stage 1", "toy-gaussians", Stage::Pretrain, "nodes"),
    ("toy stage 2", "toy-gaussians", Stage::Align, "nodes"),
];

fn train_step(criterion: &mut Criterion<Timed>) {
    let mut group = criterion.benchmark_group("train_step");
    // A reference step takes up to seconds: ten samples of one step each.
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for (name, preset, stage, modulation) in CASES {
        match steps(preset, stage, modulation) {
            Ok(mut steps) => {
                group.throughput(Throughput::Elements(steps.work.counted_samples() as u64));
                group.bench_function(name, |bencher| bencher.iter(|| steps.advance()));
            }
            Err(error) => eprintln!("{name}: not timed: {error}"),
        }
    }
    group.finish();
}

fn steps(preset: &str, stage: Stage, modulation: &str) -> Result<Steps> {
    let sources = Sources { stage: Some(stage), preset: Some(preset.to_owned()), file: None };
    let config = Config::load(&sources, &[format!("model.modulation={modulation}")])?;
    Steps::prepare(&completed(config, None))
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(Timed::rated("samples/s", 1.0));
    targets = train_step
}
criterion_main!(benches);

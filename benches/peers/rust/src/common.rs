//! What the Rust peers share: their sizes, which are those of `common.py`, and how `compare.py` asks them for times.

use std::io::{BufRead, Write};
use std::time::Instant;

/// Channels of the time embedding.
pub const TIME_CHANNELS: usize = 256;

pub struct Case {
    pub channels: usize,
    pub width: usize,
    pub depth: usize,
    pub samples: usize,
    pub flow_mul: usize,
    /// Stage 2: the network is frozen and latents are learned.
    pub align: bool,
}

impl Case {
    /// Reads the case from the command line: `reference-prior`, `reference-align`, `toy-prior` or `toy-align`.
    pub fn from_arguments() -> Self {
        let name = std::env::args().nth(1).unwrap_or_default();
        let (channels, width, depth, samples, flow_mul) = match name.split_once('-') {
            Some(("reference", "prior" | "align")) => (32, 1024, 6, 512, 4),
            Some(("toy", "prior" | "align")) => (2, 128, 4, 256, 1),
            _ => {
                eprintln!("one argument, {{reference,toy}}-{{prior,align}}; found `{name}`");
                std::process::exit(2);
            }
        };
        Self { channels, width, depth, samples, flow_mul, align: name.ends_with("align") }
    }
}

/// Frequencies of the time embedding: 10000^(−i/128).
pub fn frequencies() -> Vec<f32> {
    let half = TIME_CHANNELS / 2;
    (0..half).map(|i| (-(10000f64.ln()) * i as f64 / half as f64).exp() as f32).collect()
}

/// Warms up, then times as many steps as each line of stdin says: one line of milliseconds each.
pub fn serve(mut step: impl FnMut() -> f32) {
    for _ in 0..3 {
        let loss = step();
        assert!(loss.is_finite(), "the loss is {loss}");
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let count: usize = line.ok().and_then(|line| line.trim().parse().ok()).expect("a number of steps");
        let times: Vec<String> = (0..count)
            .map(|_| {
                let start = Instant::now();
                step();
                format!("{:.4}", start.elapsed().as_secs_f64() * 1e3)
            })
            .collect();
        println!("[{}]", times.join(", "));
        std::io::stdout().flush().expect("stdout");
    }
}

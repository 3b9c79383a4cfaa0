//! Audits CUDA kernels on a machine without a GPU: compiles sources with NVRTC, reads the machine code, and compares what it
//! finds with budgets. Exits with 0 if all limits are kept, 1 if one is exceeded, 2 if there is no answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use cuda_emulator::audit::architecture::Architecture;
use cuda_emulator::audit::budget::Budgets;
use cuda_emulator::audit::table::Report;
use cuda_emulator::audit::{self, measured};
use cuda_emulator::toolchain::{self, Nvrtc, NvrtcVersion};

#[derive(Parser)]
#[command(
    about = "Audits CUDA kernels: registers, spills, occupancy, main loop, budgets. Needs no GPU.",
    version
)]
struct Arguments {
    /// CUDA C++ files, each compiled by itself
    #[arg(required = true)]
    sources: Vec<PathBuf>,
    /// Architectures, such as sm_80 or sm_90a
    #[arg(short, long, value_delimiter = ',', default_value = "sm_80,sm_90")]
    architectures: Vec<String>,
    /// NVRTC: `12.9` or `13.0` (fetched), `installed`, or the path of a library
    #[arg(long, default_value = "13.0")]
    nvrtc: String,
    /// Budget file
    #[arg(short, long)]
    budgets: Option<PathBuf>,
    /// File of counters that the emulated driver has written
    #[arg(short, long)]
    counters: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Options for NVRTC, after `--`: -Ikernels -DfloatX=float
    #[arg(last = true)]
    options: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Markdown,
    Json,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(message) => {
            eprintln!("kernel-audit: {message}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether all limits are kept.
fn run(arguments: &Arguments) -> Result<bool, String> {
    for architecture in &arguments.architectures {
        Architecture::named(architecture).map_err(text)?; // before the work
    }
    let budgets = match &arguments.budgets {
        Some(path) => Some(Budgets::parse(&read(path)?, &shown(path)).map_err(text)?),
        None => None,
    };
    let measured = match &arguments.counters {
        Some(path) => measured::parse(&read(path)?, &shown(path)).map_err(text)?,
        None => BTreeMap::new(),
    };
    let nvrtc = open(&arguments.nvrtc).map_err(text)?;
    let mut report = Report { kernels: audits(arguments, &nvrtc)?, measured, verdicts: Vec::new() };
    if let Some(budgets) = budgets {
        report.verdicts = budgets.check(&mut report.kernels, &report.measured).map_err(text)?;
    }
    match arguments.format {
        Format::Text => print!("{}", report.text().map_err(text)?),
        Format::Markdown => print!("{}", report.markdown().map_err(text)?),
        Format::Json => println!("{}", serde_json::to_string_pretty(&report).map_err(text)?),
    }
    Ok(report.passes())
}

fn audits(arguments: &Arguments, nvrtc: &Nvrtc) -> Result<Vec<audit::KernelAudit>, String> {
    let nvdisasm = toolchain::nvdisasm().map_err(text)?;
    let mut audits = Vec::new();
    for path in &arguments.sources {
        let source = read(path)?;
        for architecture in &arguments.architectures {
            let target = format!("--gpu-architecture={architecture}");
            let mut options = vec![target.as_str()];
            options.extend(audit::OPTIONS);
            options.extend(arguments.options.iter().map(String::as_str));
            let compiled = nvrtc.compile(&source, &shown(path), &options).map_err(text)?;
            audits.extend(audit::audit(&compiled, &nvdisasm).map_err(text)?);
        }
    }
    audits.sort_by(|a, b| a.resources.kernel.cmp(&b.resources.kernel)); // a kernel's architectures below each other
    Ok(audits)
}

fn open(nvrtc: &str) -> Result<Nvrtc, toolchain::Error> {
    match nvrtc {
        "12.9" => toolchain::nvrtc(NvrtcVersion::V12_9),
        "13.0" => toolchain::nvrtc(NvrtcVersion::V13_0),
        "installed" => Nvrtc::find_installed(),
        path => Nvrtc::open(Path::new(path)),
    }
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

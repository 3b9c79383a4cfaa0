//! `flowprior doctor`: what this machine has and what this build can use of it.
//!
//! With `--json` it prints one object: `version`, `cpu` with `model`, `cores`, `isa`, `caches`, `default_threads`;
//! `memory` with `total_bytes`, `available_bytes`, `huge_pages`; `cuda` with `device` (null, or `name`, `capability`, `emulated`,
//! `driver`, `nvrtc`, `cache`), `error` (why there is none), `searched` (folders) and `libraries` (name → path or null); `data` with rows, width and bytes of the built-in sets;
//! `writable`, the verdict of a test file in the current folder, and `write_error`. What the system does not tell is null.

use std::path::PathBuf;

use clap::Args;
use flowprior::Result;
use flowprior::data::builtin;
use flowprior::data::source::Memory;
use flowprior::device::survey::{self, CudaLibraries, Machine};
use flowprior::device::{CudaOptions, Queue};
use serde_json::{Value, json};

/// Arguments of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Looks around and prints what was found.
///
/// # Errors
/// Built-in data that are damaged.
pub fn run(args: DoctorArgs) -> Result<()> {
    let (machine, libraries) = (Machine::look(), CudaLibraries::look());
    let cuda = Cuda { libraries, opened: opened().map_err(|e| e.to_string()) };
    let data = [("digits", builtin::digits()?), ("tokens", builtin::tokens()?)];
    let write = survey::write_test(std::path::Path::new("."));
    let write_error = write.err().map(|e| e.to_string());
    if args.json {
        println!("{}", report(&machine, &cuda, &data, write_error));
    } else {
        print_text(&machine, &cuda, &data, write_error);
    }
    Ok(())
}

/// What there is of CUDA.
struct Cuda {
    libraries: CudaLibraries,
    /// The first device, or why it cannot be used.
    opened: Result<Card, String>,
}

/// An opened device.
struct Card {
    name: String,
    capability: (i32, i32),
    driver: (i32, i32),
    nvrtc: (i32, i32),
    cache: Option<PathBuf>,
    /// Compiled kernels in the cache.
    cached: usize,
}

fn opened() -> Result<Card> {
    let options = CudaOptions::from_env();
    let queue = Queue::open(&options)?;
    let files = options.cache.as_ref().and_then(|folder| std::fs::read_dir(folder).ok());
    Ok(Card {
        name: queue.name().to_owned(),
        capability: queue.capability(),
        driver: queue.driver_version()?,
        nvrtc: queue.nvrtc().version(),
        cached: files.map_or(0, Iterator::count),
        cache: options.cache,
    })
}

fn report(machine: &Machine, cuda: &Cuda, data: &[(&str, Memory)], write_error: Option<String>) -> Value {
    let set =
        |m: &Memory| json!({ "rows": m.rows.len() / m.width, "width": m.width, "bytes": m.rows.len() * 4 });
    let data: serde_json::Map<String, Value> =
        data.iter().map(|(name, memory)| ((*name).to_owned(), set(memory))).collect();
    let libraries: serde_json::Map<String, Value> =
        cuda.libraries.found.iter().map(|(name, path)| ((*name).to_owned(), json!(path))).collect();
    let caches: Vec<Value> =
        machine.caches.iter().map(|c| json!({ "name": c.name, "bytes": c.bytes })).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cpu": {
            "model": machine.model,
            "cores": machine.cores,
            "isa": machine.isa.name(),
            "caches": caches,
            "default_threads": machine.cores,
        },
        "memory": {
            "total_bytes": machine.memory_total,
            "available_bytes": machine.memory_available,
            "huge_pages": machine.huge_pages,
        },
        "cuda": {
            "device": cuda.opened.as_ref().ok().map(|card| json!({
                "name": card.name,
                "capability": version(card.capability),
                "emulated": super::is_emulated(&card.name),
                "driver": version(card.driver),
                "nvrtc": version(card.nvrtc),
                "cache": { "folder": card.cache, "files": card.cached },
            })),
            "error": cuda.opened.as_ref().err(),
            "searched": cuda.libraries.searched,
            "libraries": libraries,
        },
        "data": data,
        "writable": write_error.is_none(),
        "write_error": write_error,
    })
}

fn version((major, minor): (i32, i32)) -> String {
    format!("{major}.{minor}")
}

fn print_text(machine: &Machine, cuda: &Cuda, data: &[(&str, Memory)], write_error: Option<String>) {
    let gib = |bytes: Option<u64>| match bytes {
        Some(bytes) => format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
        None => "unknown".to_owned(),
    };
    let unknown = || "unknown".to_owned();
    println!("version      {}", env!("CARGO_PKG_VERSION"));
    println!("processor    {}", machine.model.clone().unwrap_or_else(unknown));
    println!("             {} cores, {} threads by default", machine.cores, machine.cores);
    println!("             kernels for {}", machine.isa.name());
    let caches: Vec<_> =
        machine.caches.iter().map(|c| format!("{} {} KiB", c.name, c.bytes / 1024)).collect();
    println!("caches       {}", if caches.is_empty() { unknown() } else { caches.join(", ") });
    println!("memory       {}, {} free", gib(machine.memory_total), gib(machine.memory_available));
    println!("huge pages   {}", machine.huge_pages.clone().unwrap_or_else(unknown));
    match &cuda.opened {
        Ok(card) => {
            let emulated = if super::is_emulated(&card.name) {
                ", emulated: its times say nothing about a GPU"
            } else {
                ""
            };
            println!("CUDA         {}, sm_{}{}{emulated}", card.name, card.capability.0, card.capability.1);
            println!("             driver for CUDA {}, NVRTC {}", version(card.driver), version(card.nvrtc));
            match &card.cache {
                Some(folder) => {
                    println!("             {} compiled kernels in {}", card.cached, folder.display())
                }
                None => println!("             no kernel cache: kernels are compiled in every run"),
            }
        }
        Err(error) => println!("CUDA         none: {}", error.replace('\n', "\n             ")),
    }
    for (name, path) in &cuda.libraries.found {
        let found = path.as_ref().map_or("not found".to_owned(), |path| path.display().to_string());
        println!("             {name:<16} {found}");
    }
    println!("             looked in {} folders (--json lists them)", cuda.libraries.searched.len());
    for (name, memory) in data {
        println!("data         {name}: {} rows of {}", memory.rows.len() / memory.width, memory.width);
    }
    match write_error {
        None => println!("write test   this folder can be written to"),
        Some(error) => println!("write test   failed: {error}"),
    }
}

//! `flowprior doctor`: what this machine has and what this build can use of it.
//!
//! With `--json` it prints one object: `version`, `cpu` with `model`, `cores`, `isa`, `caches`, `default_threads`;
//! `memory` with `total_bytes`, `available_bytes`, `huge_pages`; `cuda` with `back_end` (false: this build has none),
//! `searched` (folders) and `libraries` (name → path or null); `data` with rows, width and bytes of the built-in sets;
//! `writable`, the verdict of a test file in the current folder, and `write_error`. What the system does not tell is null.

use clap::Args;
use flowprior::Result;
use flowprior::data::builtin;
use flowprior::data::source::Memory;
use flowprior::device::survey::{self, CudaLibraries, Machine};
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
    let (machine, cuda) = (Machine::look(), CudaLibraries::look());
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

fn report(
    machine: &Machine,
    cuda: &CudaLibraries,
    data: &[(&str, Memory)],
    write_error: Option<String>,
) -> Value {
    let set =
        |m: &Memory| json!({ "rows": m.rows.len() / m.width, "width": m.width, "bytes": m.rows.len() * 4 });
    let data: serde_json::Map<String, Value> =
        data.iter().map(|(name, memory)| ((*name).to_owned(), set(memory))).collect();
    let libraries: serde_json::Map<String, Value> =
        cuda.found.iter().map(|(name, path)| ((*name).to_owned(), json!(path))).collect();
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
        "cuda": { "back_end": false, "searched": cuda.searched, "libraries": libraries },
        "data": data,
        "writable": write_error.is_none(),
        "write_error": write_error,
    })
}

fn print_text(machine: &Machine, cuda: &CudaLibraries, data: &[(&str, Memory)], write_error: Option<String>) {
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
    println!("CUDA         this build has no CUDA back end yet; everything runs on the processor");
    for (name, path) in &cuda.found {
        let found = path.as_ref().map_or("not found".to_owned(), |path| path.display().to_string());
        println!("             {name:<16} {found}");
    }
    println!("             looked in {} folders (--json lists them)", cuda.searched.len());
    for (name, memory) in data {
        println!("data         {name}: {} rows of {}", memory.rows.len() / memory.width, memory.width);
    }
    match write_error {
        None => println!("write test   this folder can be written to"),
        Some(error) => println!("write test   failed: {error}"),
    }
}

//! `flowprior demo`: both stages on toy and real data, with figures.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use flowprior::Result;
use flowprior::train::demo::{self, Demo};
use flowprior::train::log::Console;
use flowprior::train::signal::StopFlag;

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Folder of the runs and figures; an interrupted demo goes on in it [default: flowprior-demo, or
    /// flowprior-demo-quick]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Train for a moment only: seconds instead of minutes, and no figure to be proud of
    #[arg(long)]
    quick: bool,
}

/// Runs the demonstration and prints its summary.
pub fn run(args: DemoArgs) -> Result<()> {
    let begun = Instant::now();
    // Without a terminal, a line for each part is enough.
    let console = if std::io::stderr().is_terminal() { Console::Auto } else { Console::Quiet };
    let name = if args.quick { "flowprior-demo-quick" } else { "flowprior-demo" };
    let out = args.out.unwrap_or_else(|| PathBuf::from(name));
    let demo = Demo { out, quick: args.quick, console, stop: StopFlag::listen()? };
    let summary = demo::run(&demo, |line| eprintln!("{line}"))?;
    println!();
    summary.iter().for_each(|line| println!("{line}"));
    println!("All in {:.0} s.", begun.elapsed().as_secs_f64());
    Ok(())
}

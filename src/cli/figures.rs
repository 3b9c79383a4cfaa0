//! `flowprior figures`: the paper's figures, each by one command.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use flowprior::Result;
use flowprior::data::Toy;
use flowprior::train::figures::{Figure, Figures};
use flowprior::train::log::Console;
use flowprior::train::signal::StopFlag;

/// Arguments of `figures`.
#[derive(Debug, Args)]
pub struct FiguresArgs {
    /// 3, 5: maps of -log p and loss, latents and curves of toys (3 those with an exact density, 5 the others); 4: log r_k against
    /// alignment loss; 6: ten snapshots of latents, and an animation; animate: the animation of a run
    #[arg(value_name = "3|4|5|6|animate")]
    figure: String,
    /// Folder of runs and figures; what was trained in it is used again, and goes on if it was interrupted [default:
    /// flowprior-figures, or flowprior-figures-quick]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// 3, 5, 6: these toys: gaussians, grid, moons, rings, spiral, swissroll
    #[arg(long = "toy", value_name = "NAME", num_args = 1..)]
    toys: Vec<String>,
    /// 4: a finished run of `align`; animate: one of 2-D latents with train.snapshots_every
    #[arg(long, value_name = "RUN")]
    run: Option<PathBuf>,
    /// Train for a moment only: seconds instead of minutes, and no figure to be proud of
    #[arg(long)]
    quick: bool,
    /// Worker threads of the CPU, 0 for one per core; results do not depend on it
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// Draws a figure and prints what was measured and where it is.
pub fn run(args: FiguresArgs) -> Result<()> {
    let figure: Figure = args.figure.parse()?;
    let toys = args.toys.iter().map(|name| name.parse()).collect::<Result<Vec<Toy>>>()?;
    let name = if args.quick { "flowprior-figures-quick" } else { "flowprior-figures" };
    let figures = Figures {
        out: args.out.unwrap_or_else(|| PathBuf::from(name)),
        toys,
        run: args.run,
        quick: args.quick,
        threads: args.threads,
        // Without a terminal, a line for each part is enough.
        console: if std::io::stderr().is_terminal() { Console::Auto } else { Console::Quiet },
        stop: StopFlag::listen()?,
    };
    let lines = figures.draw(figure, |line| eprintln!("{line}"))?;
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

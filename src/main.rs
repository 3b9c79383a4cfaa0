//! flowprior: trains flow priors and aligns latent spaces to them. See `cli` for the commands.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main()
}

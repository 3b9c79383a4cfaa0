//! The command line; see `cli`.

mod cli;

use clap::Parser;

#[derive(Parser)]
#[command(name = "flowprior")]
struct Main {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make, describe and check data sets
    #[command(subcommand)]
    Data(cli::data::DataCommand),
}

fn main() -> std::process::ExitCode {
    let Command::Data(command) = Main::parse().command;
    match cli::data::run(command) {
        Ok(()) => 0.into(),
        Err(e) => {
            eprintln!("error: {e}");
            e.exit_code().into()
        }
    }
}

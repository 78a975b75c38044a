//! `isthmus config`: the configuration's JSON Schema, and its reference with every key, default and reason.

use std::process::ExitCode;

use clap::Subcommand;

use crate::config::reference;

/// What to print.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The commented reference: a whole configuration, every key with its default
    Reference,
    /// The JSON Schema
    Schema,
}

/// Prints it.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match args.what {
        What::Reference => print!("{}", reference::reference()),
        What::Schema => println!("{}", serde_json::to_string_pretty(&reference::schema())?),
    }
    Ok(ExitCode::SUCCESS)
}

//! `isthmus config`: the configuration's JSON Schema, its reference with every key, default and reason, and the most memory that
//! peers can make a gateway hold under it.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};

use crate::config::bound::Bound;
use crate::config::scalar::Size;
use crate::config::{Config, reference};

/// What to print.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The most memory that peers can make a gateway hold, term by term
    Bound {
        /// The configuration file
        #[arg(long, env = "ISTHMUS_CONFIG", value_name = "FILE")]
        config: PathBuf,
        /// Fail (exit code 3) where it is more than this, such as the container's limit: 512MiB, 2GiB
        #[arg(long, value_name = "SIZE", value_parser = str::parse::<Size>)]
        fits: Option<Size>,
        /// How to print it
        #[arg(short, long, visible_alias = "format", value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// The commented reference: a whole configuration, every key with its default
    Reference,
    /// The JSON Schema
    Schema,
}

/// How to print.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Output {
    /// One JSON value, sizes in bytes
    Json,
    /// For people
    Table,
}

/// Prints it.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Bound { config, fits, output } => {
            let config = match Config::load(config) {
                Ok(config) => config,
                Err(error) => {
                    eprintln!("isthmus: {error}");
                    return Ok(ExitCode::from(64));
                }
            };
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            let bound = config.bound(processors);
            match output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&bound)?),
                Output::Table => print!("{}", table(&bound)),
            }
            if fits.is_some_and(|fits| bound.bytes > fits.0) {
                return Ok(ExitCode::from(3));
            }
        }
        What::Reference => print!("{}", reference::reference()),
        What::Schema => println!("{}", serde_json::to_string_pretty(&reference::schema())?),
    }
    Ok(ExitCode::SUCCESS)
}

fn table(bound: &Bound) -> String {
    let mut out = String::new();
    for term in &bound.terms {
        let product = format!("{} × {}", term.count, shown(term.each_bytes));
        let _ = writeln!(out, "{:<30} {:>24} = {:>10}   {}", term.name, product, shown(term.bytes), term.formula);
    }
    let _ = writeln!(out, "{:<30} {:>24} = {:>10}   with {} workers", "at most", "", shown(bound.bytes), bound.workers);
    out
}

/// A size for people, rounded up: a bound must not look smaller than it is.
fn shown(bytes: u64) -> String {
    for (unit, size) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= size {
            let tenths = (u128::from(bytes) * 10).div_ceil(u128::from(size));
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

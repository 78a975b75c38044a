//! The switch: what was asked for, done, and the exit code. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use isthmus::commands::{BAD_USAGE, Cli, dispatch};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => dispatch(cli),
        Err(usage) => {
            // Help and version come this way too, and are no mistake.
            let code = if usage.use_stderr() { ExitCode::from(BAD_USAGE) } else { ExitCode::SUCCESS };
            let _ = usage.print();
            code
        }
    }
}

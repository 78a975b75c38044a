//! `isthmus policy`: rules from what was seen, the difference between two policies, expectations as a file.
//!
//! **In** policies (whole configurations or policy files), and what was seen: access logs, or a running gateway. **Out** rules for
//! review, changed answers, unmet expectations. Exit code 0; 3 when answers change or expectations are not met; 1 when it
//! could not be done; 64 when the words or files are wrong.

mod diff;
mod log;
mod seen;
mod suggest;
mod test;

use std::path::Path;
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};

use super::{ANSWER_IS_NO, BAD_USAGE, runtime};
use crate::authorise::Policy;
use crate::config::Config;
use crate::identity::Identity;

/// Suggest rules, compare policies, test them.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show which calls that were seen change their answer from one policy to another. Exit code 3 where some do
    Diff(diff::Args),
    /// Write the smallest set of rules that allows what was seen, as YAML to be reviewed
    Suggest(suggest::Args),
    /// Hold a policy against a file of expectations. Exit code 3 where some are not met
    Test(test::Args),
}

/// How to print.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Output {
    /// One JSON value, for programs.
    Json,
    /// For people.
    Text,
}

/// Something that the operator wrote is wrong.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct BadWords(anyhow::Error);

/// Does what was asked.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let done = match &args.command {
        Command::Diff(args) => diff::run(args),
        Command::Suggest(args) => suggest::run(args),
        Command::Test(args) => test::run(args),
    };
    match done {
        Err(error) if error.is::<BadWords>() => {
            eprintln!("isthmus: {error:#}");
            Ok(ExitCode::from(BAD_USAGE))
        }
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::from(ANSWER_IS_NO)),
        Err(error) => Err(error),
    }
}

/// The policy of a configuration or of a policy file, and the configuration where it is one.
fn offline(file: &Path, own: Option<&Identity>) -> anyhow::Result<(Policy, Option<Config>)> {
    Config::offline(file, own.cloned()).map_err(|error| BadWords(error.into()).into())
}

fn identity(text: &str) -> Result<Identity, String> {
    Identity::parse(text).map_err(|error| error.to_string())
}

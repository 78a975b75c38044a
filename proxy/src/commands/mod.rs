//! A person's doors: one file a subcommand. Each parses its own flags and prints its own tables; none knows another.

pub mod certs;
pub mod check;
pub mod config;
pub mod demo;
mod dial;
pub mod explain;
pub mod policy;
pub mod probe;
pub mod run;
mod runtime;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A multicluster gateway: the one door through which services in other clusters reach this one's.
#[derive(Debug, Parser)]
#[command(name = "isthmus", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make, merge, show and check certificates
    Certs(certs::Args),
    /// Check whether a gateway will work, before and after it is deployed
    Check(check::Args),
    /// Print the configuration's schema, its commented reference, or the most memory it lets peers take
    Config(config::Args),
    /// Try it: two clusters in one process, nothing configured, nothing written but a client's certificate
    Demo(demo::Args),
    /// Say what the policy decides about a call, and why: every rule, and which of its conditions fail
    Explain(explain::Args),
    /// Suggest rules from what was seen, compare policies, hold a policy against expectations
    Policy(policy::Args),
    /// Ask gateways whether they should be sent traffic, as a service mirror does
    Probe(probe::Args),
    /// Run the gateway
    Run(run::Args),
}

/// Does what was asked. 0: done; 1: it could not be done; 3: the answer is no; 64: the
/// words were wrong.
pub fn dispatch(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Certs(args) => certs::run(args, &mut std::io::stdout().lock()),
        Command::Check(args) => check::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Policy(args) => policy::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Run(args) => run::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("isthmus: {error:#}");
        ExitCode::FAILURE
    })
}

/// What was asked was answered, and the answer is no: refused, not as expected, not the same.
pub const ANSWER_IS_NO: u8 = 3;

/// Bad usage (`EX_USAGE` of sysexits).
pub const BAD_USAGE: u8 = 64;

//! `isthmus check`: will this gateway work? One screen, before it is deployed and after.
//!
//! **In** the configuration, and what peers have: the identity that mirrors expect, another cluster's bundle, the address
//! that mirrors ask. **Out** each check with √, ‼ or × and a hint that says what to do; JSON and a short form as Linkerd's
//! `check` has them. Exit code 0 unless something is ×, 64 for words that make no sense.
//!
//! Nothing is changed and nothing is left behind; a gateway that runs is asked, one that does not is judged by its files.

mod credentials;
mod network;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;

use self::report::{Category, Check};
use super::runtime::control;
use crate::config::Config;
use crate::identity::Identity;
use crate::tls::Credentials;

/// Check whether a gateway will work.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, env = "ISTHMUS_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// The identity that mirrors expect: mirror.linkerd.io/gateway-identity on the gateway's Service
    #[arg(long, value_parser = identity)]
    gateway_identity: Option<Identity>,
    /// The trust anchors of another cluster, PEM: must share one with ours. May be given several times
    #[arg(long, value_name = "FILE")]
    peer_bundle: Vec<PathBuf>,
    /// Ask the probe here too, as mirrors do: the LoadBalancer's HOST:PORT
    #[arg(long, value_name = "ADDR")]
    address: Option<String>,
    /// How to report
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// How to report.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Output {
    /// One JSON value, in the shape that Linkerd's check has
    Json,
    /// What is not in order only
    Short,
    /// Everything
    Table,
}

fn identity(text: &str) -> Result<Identity, String> {
    Identity::parse(text).map_err(|_| format!("'{text}' is no identity: expected a DNS-like name or a URI"))
}

/// Checks.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    crate::tls::install();
    let categories = control()?.block_on(categories(args));
    let colour = std::io::IsTerminal::is_terminal(&std::io::stdout());
    match args.output {
        Output::Json => println!("{:#}", report::json(&categories)),
        Output::Short => print!("{}", report::text(&categories, true, colour)),
        Output::Table => print!("{}", report::text(&categories, false, colour)),
    }
    Ok(if report::success(&categories) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All checks. Without a configuration there is nothing else to look at; without credentials nobody can be asked.
async fn categories(args: &Args) -> Vec<Category> {
    let mut first = Category::new("configuration");
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            let hint = "isthmus config reference prints every key; isthmus config schema lets an editor check it";
            first.add(Check::failed("the configuration can be used", error, hint));
            return vec![first];
        }
    };
    first.add(Check::passed(format!("the configuration can be used: {}", args.config.display())));
    let (files, credentials) = credentials::check(&config, args.gateway_identity.as_ref(), &args.peer_bundle);
    let mut categories = vec![first, files];
    categories.push(network::listeners(&config, credentials.as_ref()).await);
    categories.push(network::probes(&config, credentials.as_ref(), args.address.as_deref()).await);
    categories.push(network::upstreams(&config).await);
    categories.push(network::limits(&config));
    categories
}

/// What the credentials checks leave for the others.
#[derive(Debug)]
struct Own {
    credentials: Credentials,
    /// As they stand in their files: shown to the gateway itself, as a mirror shows its own.
    chain: Vec<u8>,
    key: Vec<u8>,
    bundle: (String, Vec<u8>),
}

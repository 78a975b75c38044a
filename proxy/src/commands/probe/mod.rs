//! `isthmus probe`: what a service mirror does, as a tool: asks gateways again and again whether they should be sent
//! traffic, and says which step failed when one should not.
//!
//! **In** targets, and what to show and trust as a mirror's proxy would. **Out** a table or JSON: once, after so many
//! probes, or kept current with `--watch` (in a pipe: one line for each change); the metrics that Linkerd's mirror shows,
//! with `--metrics-addr`. Exit code 0 when all gateways are alive, 1 when one is not, 64 for words that make no sense.

mod serve;
mod show;
mod targets;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use isthmus_probe::prober::{Mode as Travel, Settings};
use isthmus_probe::report;

use self::show::Screen;
use self::targets::{Gateways, Given};
use super::BAD_USAGE;
use super::dial::{Dialer, Secrets};
use super::runtime::{Stop, control};
use crate::addr::Name;
use crate::config::scalar::Time;
use crate::identity::Identity;

/// Ask gateways whether they should be sent traffic, as a service mirror does.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Gateways: HOST or HOST:PORT, with CLUSTER= before it where the cluster has a name. Every address of a name is
    /// asked. The port is 4181 unless given.
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<Given>,
    /// How to ask
    #[arg(long, value_enum, default_value_t = Mode::H2)]
    mode: Mode,
    /// The trust anchors, PEM
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// The certificate to show, PEM, with its issuers
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The gateway's identity, as its Service says in mirror.linkerd.io/gateway-identity
    #[arg(long, value_parser = identity)]
    identity: Option<Identity>,
    /// The name to ask for by SNI; the identity where absent
    #[arg(long, value_parser = Name::from_str)]
    server_name: Option<Name>,
    /// What is asked for
    #[arg(long, default_value = "/ready")]
    path: String,
    /// From one probe to the next; up to a tenth is added by chance
    #[arg(long, default_value = "3s", value_parser = duration)]
    period: Duration,
    /// For one probe, all steps together
    #[arg(long, default_value = "30s", value_parser = duration)]
    timeout: Duration,
    /// Failures in a row that make a gateway dead
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    failures: u32,
    /// Ask so often, then report
    #[arg(long, default_value_t = 1, conflicts_with = "watch", value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Ask until stopped, and show what is known all the while
    #[arg(long)]
    watch: bool,
    /// How to report
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Serve a mirror's metrics here (/metrics); asks until stopped
    #[arg(long, value_name = "ADDR", conflicts_with = "count")]
    metrics_addr: Option<SocketAddr>,
}

/// How to ask.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Mode {
    /// HTTP/1.1 over mutual TLS
    H1,
    /// HTTP/2 over mutual TLS, as a mirror's proxy does
    H2,
    /// HTTP/1.1 without TLS, as the kubelet and load balancers do
    Plaintext,
}

/// How to report.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(super) enum Output {
    /// An array; with --watch one line for each change
    Json,
    /// A table
    Table,
}

/// Reads an identity.
fn identity(text: &str) -> Result<Identity, String> {
    Identity::parse(text).map_err(|_| format!("'{text}' is no identity: expected a DNS-like name or a URI"))
}

/// Reads a length of time that is none.
fn duration(text: &str) -> Result<Duration, String> {
    match text.parse::<Time>()?.0 {
        Duration::ZERO => Err("must be more than nothing".to_owned()),
        time => Ok(time),
    }
}

/// Probes.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let dialer = match dialer(args) {
        Ok(dialer) => dialer,
        Err(error) => {
            eprintln!("isthmus: {error:#}");
            return Ok(ExitCode::from(BAD_USAGE));
        }
    };
    let watch = args.watch || args.metrics_addr.is_some();
    let settings = Settings {
        mode: if args.mode == Mode::H2 { Travel::Http2 } else { Travel::Http1 },
        period: args.period,
        timeout: args.timeout,
        // A verdict is asked for: whoever asks once wants to hear of the one failure.
        failure_threshold: if watch { args.failures } else { args.failures.min(args.count) },
        first_at_once: true,
    };
    control()?.block_on(async {
        let gateways = Gateways::new(dialer, &args.path, settings);
        let mut stop = Stop::new()?;
        if watch {
            let metrics = async {
                match args.metrics_addr {
                    Some(addr) => serve::metrics(addr, gateways.clone()).await,
                    None => std::future::pending().await,
                }
            };
            let mut screen = Screen::new(args.output, std::io::stdout().is_terminal(), &args.targets, settings);
            tokio::select! {
                () = gateways.follow(&args.targets) => {}
                error = metrics => return Err(error),
                shown = screen.keep_current(&gateways) => shown?,
                () = stop.signalled() => {}
            }
            screen.close(&gateways)?;
        } else {
            tokio::select! {
                () = gateways.ask(&args.targets, args.count) => {}
                () = stop.signalled() => {}
            }
            let rows = report::rows(&gateways.statuses());
            print!("{}", if args.output == Output::Json { report::json(&rows) } else { show::table(&rows) });
        }
        let statuses = gateways.statuses();
        let fine = !statuses.is_empty() && statuses.iter().all(|status| status.alive);
        Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

fn dialer(args: &Args) -> anyhow::Result<Dialer> {
    if args.mode == Mode::Plaintext {
        return Ok(Dialer::plain());
    }
    let bundle =
        args.bundle.as_ref().context("--bundle is needed: the trust anchors of the gateway (or --mode plaintext)")?;
    let Some(identity) = &args.identity else {
        bail!(
            "--identity is needed: whom to expect, as mirror.linkerd.io/gateway-identity on the gateway's Service says"
        )
    };
    let server_name = match (&args.server_name, identity) {
        (Some(name), _) => name.clone(),
        (None, Identity::Dns(name)) => name.clone(),
        (None, Identity::Uri(_)) => bail!("--server-name is needed: an identity that is a URI cannot be sent as SNI"),
    };
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()));
    let pair = match (&args.cert, &args.key) {
        (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
        _ => None,
    };
    let secrets = Secrets { bundle_name: bundle.display().to_string(), bundle: read(bundle)?, pair };
    crate::tls::install();
    Dialer::mutual(secrets, identity.clone(), server_name)
}

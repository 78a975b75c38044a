//! `isthmus run`: the gateway, from a configuration file until a signal; then the drain.
//!
//! Exit code 0 when nothing was cut, 1 when it could not start or something was cut, 64 when the configuration is wrong.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::BAD_USAGE;
use super::runtime::{Stop, control};
use crate::app::{App, Sockets, credentials};
use crate::config::Config;
use crate::config::file::File;
use crate::sources::files;
use crate::telemetry::logs;

/// Run the gateway.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file (`isthmus config reference` prints every key)
    #[arg(long, env = "ISTHMUS_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and the files it names, and exit
    #[arg(long)]
    check: bool,
    /// Listen here instead of accept.listen
    #[arg(long, env = "ISTHMUS_GATEWAY_LISTEN", value_name = "ADDR")]
    gateway_listen: Option<SocketAddr>,
    /// Listen here instead of probe.listen
    #[arg(long, env = "ISTHMUS_PROBE_LISTEN", value_name = "ADDR")]
    probe_listen: Option<SocketAddr>,
    /// Listen here instead of admin.listen
    #[arg(long, env = "ISTHMUS_ADMIN_LISTEN", value_name = "ADDR")]
    admin_listen: Option<SocketAddr>,
    /// The gateway's own address in the cluster, instead of sources.kubernetes.pod_ip
    #[arg(long, env = "ISTHMUS_POD_IP", value_name = "IP")]
    pod_ip: Option<IpAddr>,
    /// Log this instead of telemetry.log
    #[arg(long, env = "ISTHMUS_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// This pod's namespace, instead of sources.linkerd.namespace
    #[arg(long, env = "ISTHMUS_POD_NAMESPACE", value_name = "NAME")]
    pod_namespace: Option<String>,
    /// This pod's name, instead of sources.linkerd.pod
    #[arg(long, env = "ISTHMUS_POD_NAME", value_name = "NAME")]
    pod_name: Option<String>,
    /// This pod's addresses, instead of sources.linkerd.own_addresses
    #[arg(long, env = "ISTHMUS_POD_IPS", value_name = "ADDRS", value_delimiter = ',')]
    pod_ips: Vec<IpAddr>,
    /// The node's name, instead of sources.linkerd.node
    #[arg(long, env = "ISTHMUS_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
}

/// Runs until a signal.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = match configured(args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("isthmus: {error:#}");
            return Ok(ExitCode::from(BAD_USAGE));
        }
    };
    crate::tls::install();
    let (credentials, keeper) = match credentials::prepare(&config) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("isthmus: {error}");
            return Ok(ExitCode::from(BAD_USAGE));
        }
    };
    let policy_files = config.policy_files(Some(credentials.identity().clone()));
    let (policy, policy_read) = match files::load(&policy_files) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("isthmus: {error}");
            return Ok(ExitCode::from(BAD_USAGE));
        }
    };
    if args.check {
        if let Err(error) = config.check_discovery() {
            eprintln!("isthmus: {error:#}");
            return Ok(ExitCode::from(BAD_USAGE));
        }
        for warning in credentials.warnings() {
            eprintln!("warning: {warning}");
        }
        println!(
            "{}: the configuration is fine, with {} rules; the gateway would be {}",
            args.config.display(),
            policy.rules(),
            credentials.identity()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let (log, _flushed_at_the_end) = logs::start(&config.logs()).context("logging")?;
    let sockets = Sockets::bind(&config)?;
    control()?.block_on(async {
        let mut stop = Stop::new()?;
        let mut hangup = signal(SignalKind::hangup())?;
        for warning in credentials.warnings() {
            tracing::warn!(warning, "the credentials");
        }
        let mut app = App::start(&config, credentials, sockets, Some(log)).await?;
        app.keep_credentials(keeper, &config)?;
        if !app.follow_policy(&config)? {
            app.watch_policy(policy_files, Some(policy_read.digest), config.files());
        }
        tracing::info!(
            gateway = %app.addrs.gateway,
            probe = %app.addrs.probe,
            admin = %app.addrs.admin,
            identity = %app.credentials.load().identity(),
            "serving"
        );
        loop {
            tokio::select! {
                () = stop.signalled() => break,
                _ = hangup.recv() => app.reload(),
            }
        }
        let drain = &config.file.drain;
        let drained = app.drain(drain.announce.0, drain.deadline.0, stop.signalled()).await;
        tracing::info!(connections = drained.began_with, cut = drained.cut, took = ?drained.took, "drained");
        Ok(if drained.cut == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

fn configured(args: &Args) -> anyhow::Result<Config> {
    // Before the check: what the file leaves to the environment is not missing.
    Ok(Config::load_with(&args.config, |file| replace(file, args))?)
}

fn replace(file: &mut File, args: &Args) {
    file.accept.listen = args.gateway_listen.unwrap_or(file.accept.listen);
    file.probe.listen = args.probe_listen.unwrap_or(file.probe.listen);
    file.admin.listen = args.admin_listen.unwrap_or(file.admin.listen);
    file.sources.kubernetes.pod_ip = args.pod_ip.or(file.sources.kubernetes.pod_ip);
    if let Some(log) = &args.log {
        file.telemetry.log.clone_from(log);
    }
    let linkerd = &mut file.sources.linkerd;
    for (key, given) in [
        (&mut linkerd.namespace, &args.pod_namespace),
        (&mut linkerd.pod, &args.pod_name),
        (&mut linkerd.node, &args.node_name),
    ] {
        if given.is_some() {
            key.clone_from(given);
        }
    }
    if !args.pod_ips.is_empty() {
        linkerd.own_addresses.clone_from(&args.pod_ips);
    } else if let Some(ip) = args.pod_ip {
        linkerd.own_addresses.push(ip);
    }
}

//! `isthmus demo`: the main job with nothing configured. Two clusters in one process, real sockets, real TLS: east has
//! services and a gateway, west calls them in every way a peer can, and a table says what came back.
//!
//! **Out** the table, a client's certificate files in a temporary folder, and curl lines to try by hand; then it serves until
//! a signal. With `--once` it exits after the table, non-zero when a row is not what it should be.

pub mod east;
pub mod pki;
pub mod rows;
pub mod west;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use comfy_table::{Table, presets};

use self::pki::Pki;
use self::rows::Row;
use super::runtime::{Stop, control};
use crate::app::{Addrs, App, Sockets};
use crate::config::Config;
use crate::telemetry::logs;
use crate::tls::{Credentials, File as PemFile, Pem};

/// Try it.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The gateway's port (`mc-gateway`); 0 takes any
    #[arg(long, default_value_t = 4143)]
    gateway_port: u16,
    /// The probe's port (`mc-probe`)
    #[arg(long, default_value_t = 4181)]
    probe_port: u16,
    /// The admin's port
    #[arg(long, default_value_t = 4191)]
    admin_port: u16,
    /// Exit after the table; non-zero when a row is not what it should be
    #[arg(long)]
    once: bool,
    /// What the gateway logs while it runs
    #[arg(long, default_value = "warn", value_name = "FILTER")]
    log: String,
}

/// Runs the demo.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    crate::tls::install();
    let logging = logs::Settings { filter: args.log.clone(), ..logs::Settings::default() };
    let (log, _flushed_at_the_end) = logs::start(&logging).context("logging")?;
    control()?.block_on(async {
        let mut stop = Stop::new()?;
        let pki = Pki::new()?;
        let http = east::http_service().await?;
        let echo = east::tcp_echo().await?;
        let config = configuration(args, http, echo)?;
        let credentials = Credentials::from_pem(&pem(&pki), &config.credentials())?;
        let app = App::start(&config, credentials, Sockets::bind(&config)?, Some(log)).await?;

        let rows = rows::all(&pki, app.addrs).await;
        println!("{}", table(&rows));
        let wrong = rows.iter().filter(|row| !row.as_expected()).count();
        if args.once {
            app.drain(std::time::Duration::ZERO, DEADLINE, stop.signalled()).await;
            return Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        let folder = tempdir(&pki)?;
        println!("{}", by_hand(&pki, app.addrs, folder.path()));
        stop.signalled().await;
        println!("draining …");
        let drained = app.drain(std::time::Duration::ZERO, DEADLINE, stop.signalled()).await;
        println!("drained: {} connections, {} cut", drained.began_with, drained.cut);
        Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// A demo is not behind a load balancer: nobody has to notice its end before it comes.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

/// The configuration that the demo serves with: what a file would say, on loopback.
pub fn configuration(args: &Args, http: SocketAddr, echo: SocketAddr) -> anyhow::Result<Config> {
    let yaml = format!(
        r"
accept: {{ listen: '{gateway}' }}
probe: {{ listen: '{probe}' }}
admin: {{ listen: '{admin}' }}
tls: {{ chain_file: in-memory, key_file: in-memory, bundle_file: in-memory }}
detect: {{ sni_routing: true }}
authorise: {{ default: authenticated, exported_only: true }}
connect: {{ deny_loopback: false }}
sources:
  dns: {{ enabled: false }}
  services:
    - {{ name: web.demo.svc.cluster.local, port: 80, exported: true, endpoints: [{{ address: '{http}' }}] }}
    - {{ name: echo.demo.svc.cluster.local, port: 9000, exported: true, protocol: opaque, endpoints: [{{ address: '{echo}' }}] }}
    - {{ name: private.demo.svc.cluster.local, port: 80, endpoints: [{{ address: '{http}' }}] }}
",
        gateway = SocketAddr::from((Ipv4Addr::LOCALHOST, args.gateway_port)),
        probe = SocketAddr::from((Ipv4Addr::LOCALHOST, args.probe_port)),
        admin = SocketAddr::from((Ipv4Addr::LOCALHOST, args.admin_port)),
    );
    Ok(Config::parse(Path::new("demo.yaml"), &yaml)?)
}

impl Args {
    /// Any free ports, and out after the table: how tests run it.
    pub fn anywhere() -> Self {
        Self { gateway_port: 0, probe_port: 0, admin_port: 0, once: true, log: "warn".to_owned() }
    }
}

/// The gateway's credentials as files would hold them.
pub fn pem(pki: &Pki) -> Pem {
    Pem {
        chain: PemFile::new("gateway.crt", pki.gateway.chain.as_bytes()),
        key: PemFile::new("gateway.key", pki.gateway.key.as_bytes()),
        bundle: PemFile::new("bundle.crt", pki.bundle.as_bytes()),
        crls: Vec::new(),
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(["", "WHO CALLED", "WHAT", "WHAT CAME BACK", "TOOK"]);
    for row in rows {
        let fine = row.as_expected();
        let mark = if fine { "√" } else { "×" };
        let took = format!("{:.1} ms", row.took.as_secs_f64() * 1000.0);
        let back = if fine { row.back.clone() } else { format!("{} (expected: {})", row.back, row.expected) };
        table.add_row([mark, row.who, row.what, &back, &took]);
    }
    table
}

/// A folder that is gone when the demo is.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is a temporary file that stays: nothing to be done about it here.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn tempdir(pki: &Pki) -> anyhow::Result<Folder> {
    use std::fs::DirBuilder;
    use std::io::Write;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let path = std::env::temp_dir().join(format!("isthmus-demo-{:016x}", rand::random::<u64>()));
    DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("{}", path.display()))?;
    let folder = Folder(path);
    for (name, text) in
        [("bundle.crt", &pki.bundle), ("client.crt", &pki.client.chain), ("client.key", &pki.client.key)]
    {
        let path = folder.path().join(name);
        let mut file = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes()).with_context(|| format!("{}", path.display()))?;
    }
    Ok(folder)
}

fn by_hand(pki: &Pki, addrs: Addrs, folder: &Path) -> String {
    let gateway = &pki.gateway_identity;
    let folder = folder.display();
    let certificates = format!("--cacert {folder}/bundle.crt --cert {folder}/client.crt --key {folder}/client.key");
    let (port, probe_port) = (addrs.gateway.port(), addrs.probe.port());
    format!(
        "
Try it by hand (the client's certificate is in {folder} as long as this runs):

  # HTTP/1.1, then HTTP/2, to a service behind the gateway
  curl -sS --http1.1 {certificates} --connect-to ::127.0.0.1: -H 'host: web.demo.svc.cluster.local' https://{gateway}:{port}/hello
  curl -sS --http2 {certificates} --connect-to ::127.0.0.1: -H 'host: web.demo.svc.cluster.local' https://{gateway}:{port}/hello
  # a service that is not exported
  curl -sSi {certificates} --connect-to ::127.0.0.1: -H 'host: private.demo.svc.cluster.local' https://{gateway}:{port}/
  # the probe, as a remote mirror asks it
  curl -sS {certificates} --connect-to ::127.0.0.1: https://{gateway}:{probe_port}/health
  # what the gateway knows and counts
  curl -sS http://{admin}/state
  curl -sS http://{admin}/metrics

Ctrl-C ends it.",
        admin = addrs.admin,
    )
}

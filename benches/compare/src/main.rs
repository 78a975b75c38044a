//! The gateway beside its peers and beside the smallest gateway on the same libraries, in one run.
//!
//! The map: `rows` says what is asked, `gateways` starts who is asked, `engine` asks (with `client`, `backend`, `h2` and `tls` for
//! what goes over the wire), `stats` counts, `measure` brings them together, `report` and `chart` tell;
//! `budget` counts instructions instead of time. `floor` is a program of its own.
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "it measures real time, and sleeps between processes"
)]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures")]

mod backend;
mod budget;
mod chart;
mod client;
mod engine;
mod gateways;
mod h2;
mod measure;
mod pki;
mod report;
mod rows;
mod stats;
mod tls;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use crate::gateways::Kind;

/// Measures gateways side by side, on this machine, one core each for them and for this program.
#[derive(Debug, Parser)]
pub(crate) struct Flags {
    /// Rounds; each goes through all gateways.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Rows, by name, or by the beginning of names; all where absent.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Gateways; all whose program is given where absent.
    #[arg(long, value_delimiter = ',')]
    gateways: Vec<Kind>,
    /// Seconds of each window.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// One round of half a second: to see that all works.
    #[arg(long)]
    quick: bool,
    /// The core of the gateways, and the one this program runs on.
    #[arg(long, default_value_t = 0)]
    core: usize,
    #[arg(long, default_value_t = 1)]
    own_core: usize,
    /// The share of the gateway's core that others may use before a window is measured again.
    #[arg(long, default_value_t = 0.04)]
    tolerance: f64,
    /// Counts Isthmus' instructions instead, and holds them against this file.
    #[arg(long)]
    budget: Option<PathBuf>,
    /// Writes the counts into that file.
    #[arg(long, requires = "budget")]
    budget_write: bool,
    /// Where results go: `results.json`, `table.md`, `chart.svg`. Rows that are there and not measured now are kept.
    #[arg(long)]
    out: PathBuf,
    /// Where configurations are filled in and logs are written.
    #[arg(long)]
    work: PathBuf,
    /// The folder of the configurations.
    #[arg(long)]
    configs: PathBuf,
    /// Leaves out the checks that each gateway lets the right client in and nobody else.
    #[arg(long)]
    unchecked: bool,
    /// Lists the rows.
    #[arg(long)]
    list: bool,
    #[arg(long)]
    isthmus: Option<PathBuf>,
    #[arg(long)]
    floor: Option<PathBuf>,
    #[arg(long)]
    haproxy: Option<PathBuf>,
    #[arg(long)]
    nginx: Option<PathBuf>,
    #[arg(long)]
    envoy: Option<PathBuf>,
}

impl Flags {
    fn programs(&self) -> BTreeMap<Kind, PathBuf> {
        let all = [
            (Kind::Isthmus, &self.isthmus),
            (Kind::Floor, &self.floor),
            (Kind::Haproxy, &self.haproxy),
            (Kind::Nginx, &self.nginx),
            (Kind::Envoy, &self.envoy),
        ];
        let wanted = |kind: &Kind| self.gateways.is_empty() || self.gateways.contains(kind);
        all.into_iter()
            .filter_map(|(kind, path)| Some((kind, path.clone()?)))
            .filter(|(kind, _)| wanted(kind))
            .collect()
    }

    fn window(&self) -> Duration {
        if self.quick { Duration::from_millis(500) } else { Duration::from_secs_f64(self.seconds) }
    }

    fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds }
    }
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    let rows = rows::all();
    if flags.list {
        rows.iter().for_each(|row| println!("{:18} {} ({})", row.name, row.title, row.unit.word()));
        return Ok(());
    }
    let chosen: Vec<_> = rows
        .into_iter()
        .filter(|row| flags.rows.is_empty() || flags.rows.iter().any(|name| row.name.starts_with(name.as_str())))
        .collect();
    std::fs::create_dir_all(&flags.out)?;
    std::fs::create_dir_all(&flags.work)?;
    if let Some(file) = &flags.budget {
        return budget::hold(&flags, file);
    }
    let results = measure::all(&flags, &chosen)?;
    report::write(&flags.out, results)
}

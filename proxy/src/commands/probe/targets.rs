//! The gateways that are probed: every address of every name that was given, each with a prober of its own.
//!
//! **In** targets as they were written. **Out** what is known of each address. A name that cannot be resolved is a row too,
//! whose error says so, and is resolved again as time goes by.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use isthmus_probe::prober::{Prober, Settings, Target};
use isthmus_probe::status::{Reader, Status};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::commands::dial::{self, Dialer};

/// How often names are resolved again: as often as a mirror repairs its endpoints.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(60);

/// How often names are that have no address yet.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Where a gateway's probe is, unless told otherwise.
const PORT: u16 = 4181;

/// A target as it was written: `[CLUSTER=]HOST[:PORT]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Given {
    /// The cluster's name, where it has one.
    pub(super) cluster: Option<String>,
    /// Host and port, as they are resolved.
    pub(super) addr: String,
}

impl FromStr for Given {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no target: expected HOST, HOST:PORT or CLUSTER=HOST:PORT");
        let (cluster, addr) = match text.split_once('=') {
            Some((cluster, addr)) => (Some(cluster.to_owned()), addr),
            None => (None, text),
        };
        if addr.is_empty() || cluster.as_ref().is_some_and(String::is_empty) || addr.contains(['/', ' ', '@']) {
            return Err(wrong());
        }
        let bare_v6 = addr.parse::<std::net::Ipv6Addr>().is_ok();
        let has_port = !bare_v6 && !addr.ends_with(']') && addr.contains(':');
        let addr = match (bare_v6, has_port) {
            (true, _) => format!("[{addr}]:{PORT}"),
            (_, false) => format!("{addr}:{PORT}"),
            _ => addr.to_owned(),
        };
        let port =
            addr.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok())?);
        if port.is_none_or(|port| port == 0) { Err(wrong()) } else { Ok(Self { cluster, addr }) }
    }
}

impl Given {
    /// What a mirror would write as the authority: its own name for the probe service of a cluster.
    fn authority(&self) -> String {
        match (&self.cluster, self.addr.rsplit_once(':')) {
            (Some(cluster), Some((_, port))) => format!("probe-gateway-{cluster}:{port}"),
            _ => self.addr.clone(),
        }
    }

    fn name(&self) -> &str {
        self.cluster.as_deref().unwrap_or_else(|| self.addr.strip_suffix(":4181").unwrap_or(&self.addr))
    }
}

/// What is known of every address.
#[derive(Clone, Debug)]
pub(super) struct Gateways {
    dialer: Dialer,
    path: String,
    settings: Settings,
    /// By target and address.
    readers: Arc<Mutex<BTreeMap<(usize, String), Reader>>>,
}

impl Gateways {
    pub(super) fn new(dialer: Dialer, path: &str, settings: Settings) -> Self {
        Self { dialer, path: path.to_owned(), settings, readers: Arc::default() }
    }

    pub(super) fn statuses(&self) -> Vec<Status> {
        self.readers.lock().values().map(Reader::status).collect()
    }

    /// Probes every address so often.
    pub(super) async fn ask(&self, targets: &[Given], count: u32) {
        let targets = targets.iter().enumerate().map(|(index, given)| async move {
            let addrs = addresses(given).await;
            let probers = addrs.iter().filter_map(|addr| self.prober(index, given, addr, addrs.len() > 1));
            join_all(probers.map(|prober| prober.times(count))).await;
        });
        join_all(targets).await;
    }

    /// Probes every address until dropped, and follows names to new addresses.
    pub(super) async fn follow(&self, targets: &[Given]) {
        join_all(targets.iter().enumerate().map(|(index, given)| self.follow_one(index, given))).await;
    }

    async fn follow_one(&self, index: usize, given: &Given) {
        let mut running: BTreeMap<String, JoinSet<()>> = BTreeMap::new();
        loop {
            let addrs = addresses(given).await;
            let resolved = addrs.first() != Some(&given.addr);
            // Names that cannot be resolved for a while keep the addresses that they had, as a mirror's do.
            if resolved || running.is_empty() {
                running.retain(|addr, _| {
                    let stays = addrs.contains(addr);
                    if !stays {
                        self.readers.lock().remove(&(index, addr.clone()));
                    }
                    stays
                });
                for addr in &addrs {
                    if !running.contains_key(addr)
                        && let Some(prober) = self.prober(index, given, addr, addrs.len() > 1)
                    {
                        let mut task = JoinSet::new();
                        task.spawn(prober.run());
                        running.insert(addr.clone(), task);
                    }
                }
            }
            tokio::time::sleep(if resolved { RESOLVE_INTERVAL } else { RETRY_INTERVAL }).await;
        }
    }

    fn prober(&self, index: usize, given: &Given, addr: &str, several: bool) -> Option<Prober<Dialer>> {
        let ip = addr.rsplit_once(':').map_or(addr, |(ip, _)| ip);
        let cluster = if several { format!("{} {ip}", given.name()) } else { given.name().to_owned() };
        let target = Target { cluster, addr: addr.to_owned(), authority: given.authority(), path: self.path.clone() };
        match Prober::new(self.dialer.clone(), target, self.settings) {
            Ok((prober, reader)) => {
                self.readers.lock().insert((index, addr.to_owned()), reader);
                Some(prober)
            }
            Err(error) => {
                eprintln!("isthmus: {} makes no request: {error}", given.addr);
                None
            }
        }
    }
}

/// Every address, or the name itself where it has none: its prober then says why.
async fn addresses(given: &Given) -> Vec<String> {
    match dial::resolve(&given.addr).await {
        Ok(addrs) => addrs.iter().map(ToString::to_string).collect(),
        Err(_) => vec![given.addr.clone()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        for (text, want) in [
            ("gw.example", Some((None, "gw.example:4181", "gw.example:4181"))),
            ("gw.example:4191", Some((None, "gw.example:4191", "gw.example:4191"))),
            ("east=10.0.0.1", Some((Some("east"), "10.0.0.1:4181", "probe-gateway-east:4181"))),
            ("east=[::1]:80", Some((Some("east"), "[::1]:80", "probe-gateway-east:80"))),
            ("::1", Some((None, "[::1]:4181", "[::1]:4181"))),
            ("[::1]", Some((None, "[::1]:4181", "[::1]:4181"))),
            ("", None),
            ("=x", None),
            ("east=", None),
            ("gw:0", None),
            ("gw:http", None),
            (":80", None),
            ("http://gw/ready", None),
        ] {
            let given = text.parse::<Given>().ok();
            let got = given.as_ref().map(|given| (given.cluster.as_deref(), given.addr.clone(), given.authority()));
            assert_eq!(got, want.map(|(a, b, c)| (a, b.to_owned(), c.to_owned())), "{text}");
        }
    }
}

//! What `/state` shows: who the gateway is, whom it trusts, what it knows, who is connected. JSON with stable names.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use isthmus_probe::endpoint::Endpoint as Probe;
use isthmus_probe::health::Health;
use serde_json::{Value, json};

use crate::gateway::Shared;
use crate::route::State;

/// The most connections that are listed one by one.
const MAX_LISTED: usize = 200;

/// Seconds since the epoch.
fn timestamp(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The whole page.
pub(super) fn state(shared: &Shared, health: &Health, probe: &Probe) -> Value {
    let counts = probe.counts();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": health.ready().is_ok(),
        "not_ready": health.ready().err().map(|reasons| reasons.to_string()),
        "phase": format!("{:?}", shared.drain.phase()).to_lowercase(),
        "identity": identity(shared),
        "services": services(shared),
        "endpoints": endpoints(shared),
        "clients": clients(shared),
        "connections": connections(shared),
        "probes": {
            "healthy": counts.healthy,
            "not_ready": counts.not_ready,
            "not_found": counts.not_found,
            "failed": counts.failed,
            "over_limit": counts.over_limit,
            "timed_out": counts.timed_out,
        },
    })
}

fn identity(shared: &Shared) -> Value {
    let credentials = shared.credentials.load();
    let roots = credentials.roots().iter().map(|root| {
        json!({
            "subject": root.subject,
            "fingerprint": root.fingerprint,
            "not_before": timestamp(root.not_before),
            "not_after": timestamp(root.not_after),
        })
    });
    json!({
        "name": credentials.identity().as_str(),
        "server_names": credentials.server_names().iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        "not_before": timestamp(credentials.not_before()),
        "not_after": timestamp(credentials.expires()),
        "roots": roots.collect::<Vec<_>>(),
        "crls": credentials.crls().len(),
        "warnings": credentials.warnings(),
        "replaced": shared.credentials.version(),
    })
}

fn services(shared: &Shared) -> Value {
    let mut services = shared.directory.services();
    services.sort_by(|a, b| a.target().cmp(b.target()));
    let rows = services.iter().map(|service| {
        let (state, endpoints) = match &**service.state() {
            State::Known(endpoints) => ("known", endpoints.list.len()),
            State::Missing => ("missing", 0),
            State::Pending => ("pending", 0),
        };
        json!({
            "service": service.target().to_string(),
            "exported": service.exported(),
            "state": state,
            "endpoints": endpoints,
        })
    });
    rows.collect()
}

fn endpoints(shared: &Shared) -> Value {
    let rows = shared.loads.snapshot().into_iter().map(|load| {
        json!({
            "service": load.service.to_string(),
            "address": load.addr.to_string(),
            "zone": load.zone.as_deref(),
            "weight": load.weight,
            "pending": load.pending,
            "rtt_ms": load.rtt_ms,
            "ejected_by": load.ejected_by,
            "ejected_for_ms": load.ejected_for.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            "requests": load.requests,
            "failures": load.failures,
        })
    });
    rows.collect()
}

fn clients(shared: &Shared) -> Value {
    let rows = shared.census.by_identity().into_iter().map(|(identity, connections, requests)| {
        json!({ "identity": identity.as_str(), "connections": connections, "requests": requests })
    });
    rows.collect()
}

fn connections(shared: &Shared) -> Value {
    let rows = shared.census.connections(MAX_LISTED).into_iter().map(|line| {
        json!({
            "identity": line.peer.identity.as_ref().map(|identity| identity.as_str().to_owned()),
            "cluster": line.peer.cluster.as_deref(),
            "address": line.peer.addr.to_string(),
            "sni": line.peer.sni.as_ref().map(|name| name.as_str().to_owned()),
            "protocol": line.protocol.as_str(),
            "since": timestamp(line.since),
            "requests": line.requests(),
        })
    });
    rows.collect()
}

/// Reads the page when somebody asks.
pub(super) fn reader(shared: Shared, health: Arc<Health>, probe: Arc<Probe>) -> Arc<dyn Fn() -> Value + Send + Sync> {
    Arc::new(move || state(&shared, &health, &probe))
}

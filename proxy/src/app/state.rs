//! What `/state` shows: who the gateway is, whom it trusts, what it knows, who is connected. JSON with stable names.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use isthmus_probe::endpoint::Endpoint as Probe;
use isthmus_probe::health::Health;
use serde_json::{Value, json};

use crate::authorise::{self, Call};
use crate::fault::Refusal;
use crate::gateway::Shared;
use crate::route::State;
use crate::sources::Source;
use crate::sources::files::{self, Reload};
use crate::telemetry::recent::Recent;

/// The most connections that are listed one by one.
const MAX_LISTED: usize = 200;

/// Seconds since the epoch.
fn timestamp(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What the page is made of.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) shared: Shared,
    pub(super) health: Arc<Health>,
    pub(super) probe: Arc<Probe>,
    pub(super) reload: files::Status,
    pub(super) policy_reload: files::Status,
    pub(super) recent: Recent,
    pub(super) sources: Vec<Arc<dyn Source>>,
}

impl Seen {
    /// The whole page.
    pub(super) fn page(&self) -> Value {
        let Self { shared, health, probe, reload, policy_reload, recent, sources: asked } = self;
        let mut page = state(shared, health, probe);
        if let Value::Object(fields) = &mut page {
            fields.insert("reload".to_owned(), reloads(&reload.read()));
            fields.insert("policy".to_owned(), policy(shared, &policy_reload.read()));
            fields.insert("refused".to_owned(), refused(recent));
            fields.insert("sources".to_owned(), sources(asked));
        }
        page
    }
}

pub(super) fn reloads(reload: &Reload) -> Value {
    json!({
        "files": reload.files,
        "replaced": reload.replaced,
        "refused": reload.refused,
        "replaced_at": reload.replaced_at.map(timestamp),
        "good_at": reload.good_at.map(timestamp),
        "problem": reload.problem.as_ref().map(|problem| json!({
            "file": problem.wrong.file,
            "reason": problem.wrong.reason,
            "since": timestamp(problem.since),
            "seen": timestamp(problem.seen),
        })),
    })
}

/// Where services are learned of, and how old what is known is.
fn sources(asked: &[Arc<dyn Source>]) -> Value {
    let rows = asked.iter().map(|source| {
        let report = source.report();
        json!({
            "source": report.name,
            "age_seconds": report.age.map(|age| age.as_secs_f64()),
            "services": report.services,
            "failures": report.failures,
            "details": source.details(),
        })
    });
    rows.collect()
}

pub(super) fn refused(recent: &Recent) -> Value {
    let rows = recent.latest().into_iter().map(|refusal| {
        json!({
            "at": timestamp(refusal.at),
            "code": refusal.code,
            "reason": refusal.reason,
            "address": refusal.addr.to_string(),
            "identity": refusal.identity.as_ref().map(|identity| identity.as_str().to_owned()),
            "service": refusal.service.as_ref().map(ToString::to_string),
        })
    });
    rows.collect()
}

fn state(shared: &Shared, health: &Health, probe: &Probe) -> Value {
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

pub(super) fn identity(shared: &Shared) -> Value {
    let credentials = shared.credentials.load();
    let roots = credentials.roots().iter().map(|root| {
        json!({
            "subject": root.subject,
            "fingerprint": root.fingerprint,
            "not_before": timestamp(root.not_before),
            "not_after": timestamp(root.not_after),
        })
    });
    let own = credentials.has_certificate();
    json!({
        "name": credentials.identity().as_str(),
        "server_names": credentials.server_names().iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        "not_before": own.then(|| timestamp(credentials.not_before())),
        "not_after": own.then(|| timestamp(credentials.expires())),
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
            State::Failing => ("failing", 0),
            State::Missing => ("missing", 0),
            State::Pending => ("pending", 0),
            State::Refused(error) => (error.code(), 0),
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

pub(super) fn endpoints(shared: &Shared) -> Value {
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

/// The rules in force, and what they refused or would refuse, by client, service and call.
pub(super) fn policy(shared: &Shared, reload: &Reload) -> Value {
    let (observed, beyond) = shared.watchers.observations();
    let mut policy = reloads(reload);
    if let Value::Object(fields) = &mut policy {
        fields.insert("rules".to_owned(), shared.policy.load().rules().into());
        fields.insert("replaced".to_owned(), shared.policy.version().into());
        fields.insert("observed".to_owned(), json!(observed));
        fields.insert("beyond".to_owned(), beyond.into());
    }
    policy
}

/// Why a call would be let through or not, by the policy that serves.
pub(super) fn explain(shared: &Shared, call: Call, exported: Option<bool>) -> Result<Value, String> {
    let target = call.target().map_err(|error| error.to_string())?;
    let exported = exported.unwrap_or_else(|| shared.directory.exported(&target));
    let policy = shared.policy.load();
    let explanation = authorise::explain(&policy, &Call { exported, ..call }).map_err(|error| error.to_string())?;
    serde_json::to_value(explanation).map_err(|error| error.to_string())
}

/// What became of calls, and of how many nothing is known but their number.
pub(super) fn sightings(shared: &Shared) -> Value {
    let (observations, beyond) = shared.watchers.observations();
    json!({ "observations": observations, "beyond": beyond })
}

pub(super) fn clients(shared: &Shared) -> Value {
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
            "protocol": line.protocol().map(crate::record::Protocol::as_str),
            "since": timestamp(line.since),
            "requests": line.requests(),
        })
    });
    rows.collect()
}

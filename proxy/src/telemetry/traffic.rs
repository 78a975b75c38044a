//! Who spoke with whom, and what was refused, as values: what the admin page draws.
//!
//! **In** the shards of all workers. **Out** rows, summed over workers, that only ever grow: whoever looks twice takes the
//! difference. **Refuses** nothing; how many rows there can be is bounded where they are counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::histogram::Sum;
use super::labels::{Id, NONE};
use super::shard::{Numbers, Shard, TrafficKey};
use crate::fault::Fault;
use crate::record::{Protocol, Stage};

/// The traffic between one client and one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The service, or `other` beyond the limit of services that are told apart.
    pub service: String,
    /// The client's identity, empty where there is none, or `other` beyond the limit.
    pub client: String,
    /// The client's cluster, by the operator's name for it; empty where it has none.
    pub cluster: String,
    /// What was spoken, where that was known.
    pub protocol: Option<Protocol>,
    /// Requests, or connections where bytes are all that is seen.
    pub ended: u64,
    /// Those of them that failed: the service's or the gateway's fault.
    pub failed: u64,
    /// Payload bytes from the client.
    pub received: u64,
    /// Payload bytes to the client.
    pub sent: u64,
    /// Requests by the time they took: the upper bound in seconds, and how many fell under it and over the one before.
    pub seconds: Vec<(f64, u64)>,
}

/// How often something was refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    /// Where.
    pub stage: Stage,
    /// Why.
    pub code: &'static str,
    /// Whose fault.
    pub fault: Fault,
    /// How often.
    pub count: u64,
}

#[derive(Debug, Default)]
struct Total {
    ended: u64,
    failed: u64,
    received: u64,
    sent: u64,
    seconds: Sum,
}

pub(super) fn pairs(numbers: &Numbers, shards: &[Arc<Shard>]) -> Vec<Pair> {
    let mut totals = HashMap::<TrafficKey, Total>::new();
    for shard in shards {
        for (key, traffic) in shard.traffic.lock().iter() {
            let total = totals.entry(*key).or_default();
            total.ended += traffic.ended.load(Ordering::Relaxed);
            total.failed += traffic.failed.load(Ordering::Relaxed);
            total.received += traffic.received.load(Ordering::Relaxed);
            total.sent += traffic.sent.load(Ordering::Relaxed);
            total.seconds.add(&traffic.request_seconds);
        }
    }
    let (services, clients) = (numbers.services.values(), numbers.clients.values());
    let clusters = numbers.clusters.values();
    let name = |id: Id, known: Option<String>| match id {
        NONE => String::new(),
        _ => known.unwrap_or_else(|| "other".to_owned()),
    };
    let mut pairs: Vec<_> = totals
        .into_iter()
        .map(|(key, total)| Pair {
            service: name(key.service, services.get(&key.service).map(ToString::to_string)),
            client: name(key.client, clients.get(&key.client).map(|identity| identity.as_str().to_owned())),
            cluster: name(key.cluster, clusters.get(&key.cluster).map(ToString::to_string)),
            protocol: key.protocol,
            ended: total.ended,
            failed: total.failed,
            received: total.received,
            sent: total.sent,
            seconds: total.seconds.buckets(),
        })
        .collect();
    // The names break ties, so that rows do not change places while nothing happens.
    pairs.sort_by(|a, b| {
        let names = |pair: &Pair| (pair.service.clone(), pair.client.clone(), pair.protocol);
        b.ended.cmp(&a.ended).then_with(|| names(a).cmp(&names(b)))
    });
    pairs
}

pub(super) fn refusals(shards: &[Arc<Shard>]) -> Vec<Refused> {
    let mut totals = HashMap::<(Stage, Fault, &'static str), u64>::new();
    for shard in shards {
        for (key, count) in shard.refusals.lock().iter() {
            *totals.entry(*key).or_default() += count.load(Ordering::Relaxed);
        }
    }
    let row = |((stage, fault, code), count)| Refused { stage, code, fault, count };
    let mut refusals: Vec<_> = totals.into_iter().map(row).collect();
    refusals.sort_by(|a, b| b.count.cmp(&a.count).then(a.code.cmp(b.code)));
    refusals
}

#[cfg(test)]
mod tests {
    use crate::fault::Fault;
    use crate::record::{Observer, Stage};
    use crate::telemetry::metrics::{Metrics, Settings};
    use crate::telemetry::samples;

    #[test]
    fn pairs_are_summed_over_workers_and_failures_told_apart() {
        let metrics = Metrics::new(Settings::default());
        let (one, two) = (metrics.front(), metrics.front());
        one.closed(&samples::request("web.shop.serviceaccount.identity.west", "cart.ns", 200));
        two.closed(&samples::request("web.shop.serviceaccount.identity.west", "cart.ns", 503));
        two.closed(&samples::request("api.shop.serviceaccount.identity.west", "cart.ns", 404));
        two.closed(&samples::refused(Stage::Authorise, Fault::Policy, "authorise.denied"));
        let rows: Vec<_> =
            metrics.traffic().into_iter().map(|p| (p.client, p.service, p.ended, p.failed, p.sent)).collect();
        let row = |client: &str, service: &str, ended, failed| {
            (format!("{client}.shop.serviceaccount.identity.west"), service.to_owned(), ended, failed, ended * 2000)
        };
        // What was refused by the policy never became a service: it has a row, and no failure.
        assert_eq!(rows, [row("web", "cart.ns:80", 2, 1), row("api", "cart.ns:80", 1, 0), row("web", "other", 1, 0)]);
        let refusals = metrics.refusals();
        assert_eq!(refusals.iter().map(|r| (r.code, r.count)).collect::<Vec<_>>(), [("authorise.denied", 1)]);
    }
}

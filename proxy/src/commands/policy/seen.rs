//! What was seen, from wherever it was written down: a running gateway's memory, or access logs.
//!
//! **In** flags. **Out** observations (what rules are suggested from), or calls with their number (what two policies are
//! compared by). What could not be used is said on standard error: it is no part of the answer, but bears on it.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::Context;
use serde::Deserialize;

use super::log::{self, Entry, Tally};
use super::runtime::control;
use crate::admin::client;
use crate::authorise::{Asking, Became, Call, Observation, RequestFacts};

/// What a gateway shows at `/sightings`.
#[derive(Debug, Deserialize)]
struct Sightings {
    observations: Vec<Observation>,
    beyond: u64,
}

/// Kinds of call that are told apart; a log of more is not one that anybody reviews.
const MAX_KINDS: usize = 1_000_000;

/// What the gateway with this admin port has seen.
pub(super) fn by_gateway(address: &str) -> anyhow::Result<Vec<Observation>> {
    let text = control()?.block_on(client::page(address, "/sightings"))?;
    let seen: Sightings = serde_json::from_str(&text).context("the answer is none of an Isthmus of this version")?;
    if seen.beyond > 0 {
        eprintln!(
            "isthmus: {} calls found no room in the gateway's memory and are missing here; a larger authorise.observed keeps \
             more, an access log keeps all",
            seen.beyond
        );
    }
    Ok(seen.observations)
}

/// What access logs have seen, gathered by client, service and path template.
pub(super) fn in_logs(paths: &[PathBuf]) -> anyhow::Result<Vec<Observation>> {
    type Key = (String, String, Asking, Became, Option<String>, Option<String>);
    let mut seen: HashMap<Key, (u64, u64, u64)> = HashMap::new();
    let mut beyond = 0_u64;
    let tally = log::read(paths, |Entry { call, became, code, rule, at }| {
        let asking = asking(&call);
        let key = (call.client, call.service, asking, became, code, rule);
        if seen.len() >= MAX_KINDS && !seen.contains_key(&key) {
            beyond += 1;
            return;
        }
        let (count, first, last) = seen.entry(key).or_insert((0, at, at));
        (*count, *first, *last) = (*count + 1, at.min(*first), at.max(*last));
    })?;
    warn(tally, beyond);
    let one = |((client, service, asking, became, code, rule), (count, first_seen, last_seen))| Observation {
        client,
        service,
        asking,
        became,
        code,
        rule,
        count,
        first_seen,
        last_seen,
    };
    Ok(seen.into_iter().map(one).collect())
}

/// The calls in access logs, and how often each was made.
pub(super) fn calls_in_logs(paths: &[PathBuf]) -> anyhow::Result<Vec<(Call, u64)>> {
    let mut calls: HashMap<Call, u64> = HashMap::new();
    let mut beyond = 0_u64;
    let tally = log::read(paths, |Entry { call, .. }| {
        if calls.len() >= MAX_KINDS && !calls.contains_key(&call) {
            beyond += 1;
        } else {
            *calls.entry(call).or_insert(0) += 1;
        }
    })?;
    warn(tally, beyond);
    let mut calls: Vec<(Call, u64)> = calls.into_iter().collect();
    let order = |(call, _): &(Call, u64)| {
        (call.client.clone(), call.service.clone(), call.path.clone(), call.method.clone(), call.network)
    };
    calls.sort_by_cached_key(order);
    Ok(calls)
}

fn asking(call: &Call) -> Asking {
    let Some(Ok(method)) = call.method.as_deref().map(|method| http::Method::from_bytes(method.as_bytes())) else {
        return Asking::Opaque;
    };
    let headers = http::HeaderMap::new();
    let path = call.path.as_deref().unwrap_or("/");
    Asking::new(&RequestFacts { method: &method, path, query: None, headers: &headers, host: None, grpc: call.grpc })
}

fn warn(Tally { calls, other, cut }: Tally, beyond: u64) {
    if calls == 0 {
        eprintln!("isthmus: no call was found that the policy was asked about");
    }
    for (count, what) in [
        (other, "lines are none of an access log in JSON (telemetry.access_log_format) and were skipped"),
        (cut, "calls were left out, as the log holds their paths in part only"),
        (beyond, "calls were left out, as more than a million kinds of call are not told apart"),
    ] {
        if count > 0 {
            eprintln!("isthmus: {count} {what}");
        }
    }
}

//! What the page at `/` draws: everything an operator wants at a glance, and no more than a page can show.
//!
//! **In** the rooms of a running gateway. **Out** one JSON value. Lists end at a fixed length, the most lively first, and say
//! how many there are besides; `/state` and `/metrics` have the rest. Counts only ever grow: whoever asks twice takes the
//! difference, so no two onlookers disturb each other.

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::state::{self, Seen};
use crate::route::State;
use crate::telemetry::metrics::Metrics;

/// The most rows of one list. More than anybody reads, and with 19 numbers a row still some 200 KB.
const MAX_ROWS: usize = 300;

/// What the page is made of.
#[derive(Clone, Debug)]
pub(super) struct Overview {
    pub(super) seen: Seen,
    pub(super) metrics: Arc<Metrics>,
    /// `accept.max_connections`.
    pub(super) max_connections: usize,
}

impl Overview {
    /// The value.
    pub(super) fn page(&self) -> Value {
        let shared = &self.seen.shared;
        json!({
            "now": millis(SystemTime::now()),
            "version": env!("CARGO_PKG_VERSION"),
            "ready": self.seen.health.ready().is_ok(),
            "not_ready": self.seen.health.ready().err().map(|reasons| reasons.to_string()),
            "phase": format!("{:?}", shared.drain.phase()).to_lowercase(),
            "connections": { "open": shared.drain.living(), "max": self.max_connections },
            "identity": state::identity(shared),
            "reload": state::reloads(&self.seen.reload.read()),
            "policy": self.policy(),
            "sources": self.sources(),
            "services": self.services(),
            "traffic": self.traffic(),
            "clients": shortened(state::clients(shared)),
            "refusals": self.refusals(),
            "refused": state::refused(&self.seen.recent),
            "endpoints": shortened(state::endpoints(shared)),
        })
    }

    fn policy(&self) -> Value {
        let mut policy = state::policy(&self.seen.shared, &self.seen.policy_reload.read());
        if let Some(observed) = policy.get_mut("observed").map(Value::take) {
            policy["observed"] = shortened(observed);
        }
        policy
    }

    fn sources(&self) -> Value {
        let rows = self.seen.sources.iter().map(|source| {
            let report = source.report();
            json!({
                "name": report.name,
                "age": report.age.map(|age| age.as_secs_f64()),
                "services": report.services,
                "failures": report.failures,
            })
        });
        rows.collect()
    }

    fn services(&self) -> Value {
        let services = self.seen.shared.directory.services();
        let known = services.iter().filter(|service| matches!(&**service.state(), State::Known(_)));
        let (exported, total) =
            known.fold((0, 0), |(exported, total), service| (exported + u64::from(service.exported()), total + 1));
        json!({ "known": total, "exported": exported })
    }

    fn traffic(&self) -> Value {
        let pairs = self.metrics.traffic();
        let rows = pairs.iter().take(MAX_ROWS).map(|pair| {
            json!({
                "service": pair.service,
                "client": pair.client,
                "cluster": pair.cluster,
                "protocol": pair.protocol.map(|protocol| protocol.as_str()),
                "ended": pair.ended,
                "failed": pair.failed,
                "received": pair.received,
                "sent": pair.sent,
                // The bounds are the same for all and said once.
                "took": pair.seconds.iter().map(|(_, count)| count).collect::<Vec<_>>(),
            })
        });
        let rows: Vec<_> = rows.collect();
        let bounds = pairs.first().map(|pair| pair.seconds.iter().map(|(bound, _)| *bound).collect::<Vec<_>>());
        json!({ "beyond": pairs.len() - rows.len(), "bounds": bounds.unwrap_or_default(), "rows": rows })
    }

    fn refusals(&self) -> Value {
        let rows = self.metrics.refusals().into_iter().map(|refused| {
            json!({
                "stage": refused.stage.as_str(),
                "code": refused.code,
                "fault": refused.fault.as_str(),
                "count": refused.count,
            })
        });
        rows.collect()
    }
}

/// The first rows of a list, and how many there are besides.
fn shortened(list: Value) -> Value {
    let Value::Array(mut rows) = list else { return json!({ "beyond": 0, "rows": [] }) };
    let beyond = rows.len().saturating_sub(MAX_ROWS);
    rows.truncate(MAX_ROWS);
    json!({ "beyond": beyond, "rows": rows })
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_says_how_much_is_left_out() {
        let list: Value = (0..MAX_ROWS + 2).collect();
        assert_eq!(shortened(list)["beyond"], 2);
        assert_eq!(shortened(json!([1]))["rows"], json!([1]));
    }
}

//! Metrics whose values are kept elsewhere: read when somebody looks, never pushed.
//!
//! **In** whatever knows the value: the credentials, the drain, the probe endpoint, the access log. **Out** families of
//! [`Metrics`]. Whoever assembles the process connects the two, so that no room needs to know that it is counted.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isthmus_probe::endpoint::Endpoint;

use super::lines::Lines;
use super::metrics::{Kind, Metrics, Reading, float};
use crate::drain::{Phase, Watch};

/// When what we trust, and are trusted by, ends.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    /// The end of the gateway's own certificate.
    pub leaf_expires: Option<SystemTime>,
    /// The trust anchors.
    pub roots: Vec<Root>,
}

/// One trust anchor.
#[derive(Clone, Debug)]
pub struct Root {
    /// Its subject.
    pub subject: String,
    /// The SHA-256 of its certificate or key, in hexadecimal.
    pub fingerprint: String,
    /// Its end, where known.
    pub expires: Option<SystemTime>,
}

/// How it goes with files that are read again and again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reloads {
    /// How often what they hold was taken.
    pub ok: u64,
    /// How often it was refused.
    pub failed: u64,
    /// Whether something is wrong with them now.
    pub failing: bool,
    /// How long ago they were last found in order; None where nothing is read.
    pub age: Option<Duration>,
}

/// The names of the three families about one set of files.
#[derive(Clone, Copy, Debug)]
pub struct ReloadNames {
    /// Counts by `result`.
    pub total: &'static str,
    /// 1 while something is wrong.
    pub failed: &'static str,
    /// Seconds since all was in order.
    pub age: &'static str,
}

/// The names for the credentials.
pub const TLS_RELOAD: ReloadNames = ReloadNames {
    total: "isthmus_tls_reload",
    failed: "isthmus_tls_reload_failed",
    age: "isthmus_tls_reload_age_seconds",
};

/// The names for the policy.
pub const AUTHORISE_RELOAD: ReloadNames = ReloadNames {
    total: "isthmus_authorise_reload",
    failed: "isthmus_authorise_reload_failed",
    age: "isthmus_authorise_reload_age_seconds",
};

impl Metrics {
    /// Shows how it goes with files that are read again and again.
    pub fn watch_reloads(&self, names: ReloadNames, read: impl Fn() -> Reloads + Send + Sync + 'static) {
        let read = Arc::new(read);
        let (failing, age) = (Arc::clone(&read), Arc::clone(&read));
        self.read(names.total, "Changes of the files, by whether they were taken.", Kind::Counter, move || {
            let reloads = read();
            vec![reading("result", "ok", reloads.ok), reading("result", "failed", reloads.failed)]
        });
        self.read(
            names.failed,
            "Whether the files hold something that is not taken: 1 is yes.",
            Kind::Gauge,
            move || vec![Reading { labels: vec![], value: f64::from(u8::from(failing().failing)) }],
        );
        self.read(names.age, "Time since the files were last found in order.", Kind::Gauge, move || {
            let age = age().age.map(|age| Reading { labels: vec![], value: age.as_secs_f64() });
            age.into_iter().collect()
        });
    }

    /// Shows when certificates end.
    pub fn watch_certificates(&self, read: impl Fn() -> Certificates + Send + Sync + 'static) {
        let read = Arc::new(read);
        let roots = Arc::clone(&read);
        self.read(
            "isthmus_tls_leaf_expiry_timestamp_seconds",
            "When the gateway's own certificate ends, in seconds since 1970.",
            Kind::Gauge,
            move || read().leaf_expires.map(|end| Reading { labels: vec![], value: unix(end) }).into_iter().collect(),
        );
        self.read(
            "isthmus_tls_root_expiry_timestamp_seconds",
            "When each trust anchor ends, in seconds since 1970.",
            Kind::Gauge,
            move || {
                let reading = |root: Root| {
                    let labels = vec![("subject", root.subject), ("fingerprint", root.fingerprint)];
                    Some(Reading { labels, value: unix(root.expires?) })
                };
                roots().roots.into_iter().filter_map(reading).collect()
            },
        );
    }

    /// Shows the phase of the process's end.
    pub fn watch_drain(&self, watch: Watch) {
        let help = "Where the process is in its life: 0 serving, 1 announced, 2 draining, 3 cut.";
        self.read("isthmus_drain_phase", help, Kind::Gauge, move || {
            let value = match watch.phase() {
                Phase::Serving => 0.0,
                Phase::Announced => 1.0,
                Phase::Draining => 2.0,
                Phase::Cut => 3.0,
            };
            vec![Reading { labels: vec![], value }]
        });
    }

    /// Shows how many tasks live on each runtime, by its name.
    pub fn watch_tasks(&self, read: impl Fn() -> Vec<(String, usize)> + Send + Sync + 'static) {
        self.read("isthmus_process_tasks", "Tasks alive, by the runtime that runs them.", Kind::Gauge, move || {
            read().into_iter().map(|(name, tasks)| reading("runtime", &name, tasks as u64)).collect()
        });
        let help = "Panics, wherever in the process. Anything above 0 is a bug.";
        self.read("isthmus_process_panics", help, Kind::Counter, || {
            vec![Reading { labels: vec![], value: float(super::logs::panics()) }]
        });
    }

    /// Shows how probes are answered.
    pub fn watch_probe(&self, endpoint: Arc<Endpoint>) {
        self.read("isthmus_probe_answers", "Probes answered, by result.", Kind::Counter, move || {
            let counts = endpoint.counts().by_result();
            counts.map(|(result, count)| reading("result", result, count)).to_vec()
        });
    }

    /// Shows what became of the lines of the access log.
    pub fn watch_access_log(&self, lines: Lines) {
        let again = lines.clone();
        self.read("isthmus_access_log_lines", "Lines of access log written.", Kind::Counter, move || {
            vec![Reading { labels: vec![], value: float(again.counts().written) }]
        });
        self.read("isthmus_access_log_dropped", "Lines of access log lost.", Kind::Counter, move || {
            let counts = lines.counts();
            vec![reading("reason", "queue_full", counts.dropped), reading("reason", "write_failed", counts.failed)]
        });
    }
}

fn reading(label: &'static str, value: &str, count: u64) -> Reading {
    Reading { labels: vec![(label, value.to_owned())], value: float(count) }
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or_else(|before| -before.duration().as_secs_f64(), |since| since.as_secs_f64())
}

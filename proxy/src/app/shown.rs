//! What the metrics read off the assembled process: certificates, followed files, the drain, the probe, tasks.
//!
//! **In** the rooms that know the values. **Out** families of [`Metrics`], read when somebody looks.

use std::sync::Arc;
use std::time::SystemTime;

use isthmus_probe::endpoint::Endpoint as Probe;
use tokio::runtime::Handle;

use crate::gateway::Shared;
use crate::sources::files;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::watch::{Certificates, ReloadNames, Reloads, Root};

/// How it goes with files that are followed.
pub(super) fn reloads(metrics: &Metrics, names: ReloadNames, status: files::Status) {
    metrics.watch_reloads(names, move || {
        let reload = status.read();
        Reloads {
            ok: reload.replaced,
            failed: reload.refused,
            failing: reload.problem.is_some(),
            age: reload.age(SystemTime::now()),
        }
    });
}

/// What is read off the process whenever somebody looks.
pub(super) fn process(metrics: &Arc<Metrics>, shared: &Shared, probe: &Arc<Probe>, access_log: &AccessLog) {
    let credentials = Arc::clone(&shared.credentials);
    metrics.watch_certificates(move || {
        let credentials = credentials.load();
        let roots = credentials.roots().iter().map(|root| Root {
            subject: root.subject.clone(),
            fingerprint: root.fingerprint.clone(),
            expires: Some(root.not_after),
        });
        Certificates {
            leaf_expires: credentials.has_certificate().then(|| credentials.expires()),
            roots: roots.collect(),
        }
    });
    metrics.watch_drain(shared.drain.clone());
    metrics.watch_probe(Arc::clone(probe));
    metrics.watch_access_log(access_log.lines());
    let (runtimes, control) = (Arc::clone(&shared.runtimes), Handle::current().metrics());
    metrics.watch_tasks(move || {
        let workers = runtimes.tasks().into_iter().map(|(worker, tasks)| (format!("worker-{worker}"), tasks));
        workers.chain([("control".to_owned(), control.num_alive_tasks())]).collect()
    });
}

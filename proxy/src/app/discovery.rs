//! The sources of services, put in their order, and what the metrics say of them.
//!
//! **In** the configuration, and the sources that need more than it to start. **Out** all of them, first asked first. **Refuses** to
//! start where one cannot begin.

use std::sync::Arc;

use anyhow::Context;
use tokio::runtime::Handle;

use crate::config::Config;
use crate::live::Live;
use crate::route::{Claim, Directory};
use crate::sources::dns::Dns;
use crate::sources::fixed::Fixed;
use crate::sources::{Report, Source};
use crate::telemetry::metrics::{Kind, Metrics, Reading};
use crate::tls::Credentials;

/// The sources of services, in the order in which they are asked.
pub(super) fn start(
    config: &Config,
    directory: &Arc<Directory>,
    credentials: &Arc<Live<Credentials>>,
    kubernetes: Option<Arc<dyn Source>>,
) -> anyhow::Result<Vec<Arc<dyn Source>>> {
    let fixed = Fixed::new(Claim(0), config.services());
    fixed.publish(directory);
    let mut sources: Vec<Arc<dyn Source>> = vec![Arc::new(fixed)];
    sources.extend(super::linkerd::start(config, credentials, Claim(1))?);
    sources.extend(kubernetes);
    if let Some(settings) = config.dns() {
        sources.push(Arc::new(Dns::new(Claim(3), settings, Handle::current()).context("DNS (sources.dns)")?));
    }
    Ok(sources)
}

/// How old what the sources say is.
pub(super) fn show(metrics: &Metrics, sources: &[Arc<dyn Source>]) {
    let each = |sources: &[Arc<dyn Source>], read: fn(&Report) -> Option<f64>| {
        let sources = sources.to_vec();
        move || {
            let rows = sources.iter().map(|source| source.report());
            let read = |report: Report| {
                Some(Reading { labels: vec![("source", report.name.to_owned())], value: read(&report)? })
            };
            rows.filter_map(read).collect()
        }
    };
    let age = |report: &Report| report.age.map(|age| age.as_secs_f64());
    metrics.read(
        "isthmus_sources_age_seconds",
        "Since a source last heard from what it watches",
        Kind::Gauge,
        each(sources, age),
    );
    #[expect(clippy::cast_precision_loss, reason = "a count of failures is shown, not calculated with")]
    let failures = |report: &Report| Some(report.failures as f64);
    metrics.read(
        "isthmus_sources_failures",
        "Questions of a source that got no answer",
        Kind::Counter,
        each(sources, failures),
    );
    #[expect(clippy::cast_precision_loss, reason = "as above")]
    let services = |report: &Report| Some(report.services as f64);
    metrics.read(
        "isthmus_sources_services",
        "Services that a source keeps current",
        Kind::Gauge,
        each(sources, services),
    );
}

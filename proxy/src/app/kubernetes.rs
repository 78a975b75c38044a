//! Discovery from Kubernetes, started and shown, in builds that have it.
//!
//! **In** the configuration. **Out** the source, consulted by the directory, and its metrics. **Refuses** to start where the API
//! server cannot be asked at all; that it does not answer is no reason not to start.

use std::sync::Arc;

use isthmus_probe::health::Health;

use crate::balance::Zone;
use crate::config::Config;
use crate::route::Directory;
use crate::sources::Source;
use crate::telemetry::metrics::Metrics;

/// Starts to watch, where the configuration says so.
#[cfg(feature = "kubernetes")]
pub(super) fn start(
    config: &Config,
    directory: &Directory,
    health: &Arc<Health>,
    zone: Zone,
    metrics: &Metrics,
) -> anyhow::Result<Option<Arc<dyn Source>>> {
    use anyhow::Context;
    use tokio::runtime::Handle;

    use crate::route::{Catalogue, Claim};
    use crate::sources::kubernetes::Kubernetes;

    let Some(settings) = config.kubernetes() else { return Ok(None) };
    let required = config.file.sources.kubernetes.required;
    let ready = required.then(|| health.part("kubernetes", "the Kubernetes API server has not told its services yet"));
    let started = Kubernetes::start(Claim(2), settings, zone, ready, &Handle::current());
    let source = Arc::new(started.context("Kubernetes (sources.kubernetes)")?);
    directory.consult(Arc::clone(&source) as Arc<dyn Catalogue>);
    show(metrics, &source);
    Ok(Some(source))
}

/// No build without the feature has come past the configuration's check with it turned on.
#[cfg(not(feature = "kubernetes"))]
pub(super) fn start(
    _: &Config,
    _: &Directory,
    _: &Arc<Health>,
    _: Zone,
    _: &Metrics,
) -> anyhow::Result<Option<Arc<dyn Source>>> {
    Ok(None)
}

#[cfg(feature = "kubernetes")]
fn show(metrics: &Metrics, source: &Arc<crate::sources::kubernetes::Kubernetes>) {
    use crate::sources::kubernetes::Kubernetes;
    use crate::telemetry::metrics::{Kind, Reading};

    type Read = fn(&Kubernetes) -> f64;
    #[expect(clippy::cast_precision_loss, reason = "counts are shown, not calculated with")]
    let rows: [(&str, &str, Kind, Read); 3] = [
        (
            "isthmus_sources_kubernetes_exported_services",
            "Services in Kubernetes that carry the label of exported ones",
            Kind::Gauge,
            |source| source.exported_services() as f64,
        ),
        (
            "isthmus_sources_kubernetes_endpoints",
            "Endpoints in Kubernetes that are kept, whatever their condition",
            Kind::Gauge,
            |source| source.endpoints() as f64,
        ),
        (
            "isthmus_sources_kubernetes_lists",
            "Whole lists taken from the Kubernetes API server",
            Kind::Counter,
            |source| source.lists() as f64,
        ),
    ];
    for (name, about, kind, read) in rows {
        let source = Arc::clone(source);
        metrics.read(name, about, kind, move || vec![Reading { labels: Vec::new(), value: read(&source) }]);
    }
}

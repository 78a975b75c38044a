//! Spans to a collector, where the configuration asks for them and the build can: one observer more for each worker.

use std::rc::Rc;
use std::sync::Arc;

use crate::config::Config;
use crate::record::Observer;
use crate::telemetry::metrics::Metrics;

/// Makes a worker's observer that sends spans.
pub(super) type Tracer = Arc<dyn Fn() -> Rc<dyn Observer> + Send + Sync>;

/// Starts sending spans and shows what becomes of them.
#[cfg(feature = "otlp")]
pub(super) fn start(config: &Config, metrics: &Metrics) -> anyhow::Result<Option<Tracer>> {
    use crate::telemetry::metrics::{Kind, Reading};
    use crate::telemetry::traces::Traces;

    let Some(settings) = config.traces() else { return Ok(None) };
    let traces = Traces::start(&settings)
        .map_err(|error| anyhow::anyhow!("telemetry.traces.endpoint: {}: {error}", settings.endpoint))?;
    let counts = traces.counts();
    metrics.read("isthmus_traces_spans", "Spans of requests, by what became of them.", Kind::Counter, move || {
        let reading = |(result, count): (&str, u64)| {
            let value = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
            Reading { labels: vec![("result", result.to_owned())], value }
        };
        counts.read().into_iter().map(reading).collect()
    });
    Ok(Some(Arc::new(move || Rc::new(traces.clone()))))
}

/// A build without the feature `otlp` sends none; the configuration has been refused if it asks for them.
#[cfg(not(feature = "otlp"))]
#[expect(clippy::unnecessary_wraps, reason = "the same face as with the feature")]
pub(super) fn start(_: &Config, _: &Metrics) -> anyhow::Result<Option<Tracer>> {
    Ok(None)
}

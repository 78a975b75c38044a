//! Families of metrics to text.
//!
//! **In** [`Family`] values, already added up. **Out** the Prometheus text format 0.0.4, or OpenMetrics 1.0. The encoder
//! writes OpenMetrics only; the older format differs in the names of counters' families and in the last line, and is
//! made from it.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::histogram::Sum;

/// Names and values of a series' labels.
pub(super) type Labels = Vec<(&'static str, String)>;

/// One family.
#[derive(Clone, Debug)]
pub(super) struct Family {
    /// Without the suffix `_total` that counters get.
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) values: Values,
}

/// The series of a family.
#[derive(Clone, Debug)]
pub(super) enum Values {
    Counters(Vec<(Labels, u64)>),
    FloatCounters(Vec<(Labels, f64)>),
    Gauges(Vec<(Labels, f64)>),
    Histograms(Vec<(Labels, Sum)>),
    /// The same in milliseconds.
    MillisHistograms(Vec<(Labels, Sum)>),
}

/// The page of all families.
pub(super) fn page(families: Vec<Family>, openmetrics: bool) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families)));
    let mut page = String::new();
    // Writing to a string cannot fail, and the families encode without failing.
    let _ = text::encode(&mut page, &registry);
    if openmetrics { page } else { classic(&page) }
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|family| family.encode(&mut encoder))
    }
}

impl Family {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kind = match self.values {
            Values::Counters(_) | Values::FloatCounters(_) => MetricType::Counter,
            Values::Gauges(_) => MetricType::Gauge,
            Values::Histograms(_) | Values::MillisHistograms(_) => MetricType::Histogram,
        };
        let mut encoder = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        match &self.values {
            Values::Counters(series) => series.iter().try_for_each(|(labels, value)| {
                encoder.encode_family(&borrowed(labels))?.encode_counter::<NoLabelSet, _, u64>(value, None)
            }),
            Values::FloatCounters(series) => series.iter().try_for_each(|(labels, value)| {
                encoder.encode_family(&borrowed(labels))?.encode_counter::<NoLabelSet, _, f64>(value, None)
            }),
            Values::Gauges(series) => series
                .iter()
                .try_for_each(|(labels, value)| encoder.encode_family(&borrowed(labels))?.encode_gauge(value)),
            Values::Histograms(series) => series.iter().try_for_each(|(labels, sum)| {
                encoder.encode_family(&borrowed(labels))?.encode_histogram::<NoLabelSet>(
                    sum.seconds(),
                    sum.count(),
                    &sum.buckets(),
                    None,
                )
            }),
            Values::MillisHistograms(series) => series.iter().try_for_each(|(labels, sum)| {
                encoder.encode_family(&borrowed(labels))?.encode_histogram::<NoLabelSet>(
                    sum.millis(),
                    sum.count(),
                    &sum.buckets_millis(),
                    None,
                )
            }),
        }
    }
}

fn borrowed(labels: &Labels) -> Vec<(&str, &str)> {
    labels.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// OpenMetrics to the older format: a counter's family bears the suffix of its samples, and there is no end mark.
fn classic(openmetrics: &str) -> String {
    let mut page = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if line.starts_with("# HELP ") {
            help = Some(line); // its name depends on the type, which the next line tells
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            let text = help.take().and_then(|line| line.strip_prefix("# HELP ")?.split_once(' ')).map_or("", |h| h.1);
            page.extend(["# HELP ", name, suffix, " ", text, "\n# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            page.extend([line, "\n"]);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families() -> Vec<Family> {
        let labels = vec![("code", "a\"b\\c\nd".to_owned())];
        vec![
            Family { name: "x", help: "Xs.", values: Values::Counters(vec![(labels, 3), (vec![], 4)]) },
            Family { name: "y", help: "Ys.", values: Values::Gauges(vec![(vec![("a", String::new())], 1.5)]) },
            Family { name: "z", help: "Zs.", values: Values::Histograms(vec![]) },
        ]
    }

    #[test]
    fn openmetrics() {
        assert_eq!(
            page(families(), true),
            "# HELP x Xs.\n# TYPE x counter\nx_total{code=\"a\\\"b\\\\c\\nd\"} 3\nx_total{} 4\n\
             # HELP y Ys.\n# TYPE y gauge\ny{a=\"\"} 1.5\n# HELP z Zs.\n# TYPE z histogram\n# EOF\n"
        );
    }

    #[test]
    fn prometheus_text() {
        assert_eq!(
            page(families(), false),
            "# HELP x_total Xs.\n# TYPE x_total counter\nx_total{code=\"a\\\"b\\\\c\\nd\"} 3\nx_total{} 4\n\
             # HELP y Ys.\n# TYPE y gauge\ny{a=\"\"} 1.5\n# HELP z Zs.\n# TYPE z histogram\n"
        );
    }

    #[test]
    fn histograms_are_cumulative() {
        let histogram = super::super::histogram::Histogram::default();
        for micros in [50, 400, 400, 90_000_000] {
            histogram.observe(std::time::Duration::from_micros(micros));
        }
        let mut sum = Sum::default();
        sum.add(&histogram);
        let family = Family { name: "h", help: "H.", values: Values::Histograms(vec![(vec![], sum)]) };
        let page = page(vec![family], false);
        for line in ["h_count{} 4", "h_bucket{le=\"0.0001\"} 1", "h_bucket{le=\"0.0005\"} 3", "h_bucket{le=\"+Inf\"} 4"]
        {
            assert!(page.contains(line), "{line} in {page}");
        }
    }
}

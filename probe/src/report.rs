//! What probers found, for people, for programs and for Prometheus.
//!
//! **In** the [`Status`] of each gateway. **Out** a table with the columns of `linkerd multicluster gateways` and the last
//! error beside them, the same as JSON, and the metrics that Linkerd's service mirror shows, by the names it shows them.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::status::{Status, Step};

/// One gateway in a report.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The name of its cluster.
    pub cluster_name: String,
    /// Whether it should be sent traffic.
    pub alive: bool,
    /// The last latency in milliseconds.
    pub latency: Option<f64>,
    /// Half of the recent probes were at most this slow, in milliseconds.
    pub latency_p50: Option<f64>,
    /// 95 of a hundred were.
    pub latency_p95: Option<f64>,
    /// 99 of a hundred were.
    pub latency_p99: Option<f64>,
    /// Probes that succeeded.
    pub successful: u64,
    /// Failures since the last success.
    pub failures_in_row: u32,
    /// The last failure.
    pub last_error: Option<LastError>,
}

/// The last failure of a gateway.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastError {
    /// The step that failed.
    pub step: Step,
    /// What happened.
    pub message: String,
    /// How long ago.
    pub seconds_ago: u64,
}

impl Row {
    /// The row of one gateway. A dead one has no latencies.
    pub fn new(status: &Status) -> Self {
        let shown = |latency: Option<Duration>| latency.filter(|_| status.alive).map(millis);
        let latencies = &status.latencies;
        Self {
            cluster_name: status.cluster.clone(),
            alive: status.alive,
            latency: shown(latencies.last()),
            latency_p50: shown(latencies.percentile(50)),
            latency_p95: shown(latencies.percentile(95)),
            latency_p99: shown(latencies.percentile(99)),
            successful: status.successful,
            failures_in_row: status.failures_in_row,
            last_error: status.last_error.as_ref().map(|failure| LastError {
                step: failure.step,
                message: failure.message.clone(),
                seconds_ago: failure.at.elapsed().as_secs(),
            }),
        }
    }
}

/// One row per gateway, by the names of their clusters.
pub fn rows(statuses: &[Status]) -> Vec<Row> {
    let mut rows: Vec<_> = statuses.iter().map(Row::new).collect();
    rows.sort_by(|a, b| a.cluster_name.cmp(&b.cluster_name));
    rows
}

/// The table for people.
pub fn table(rows: &[Row]) -> String {
    let latency = |millis: Option<f64>| millis.map_or_else(|| "-".to_owned(), |millis| format!("{millis:.0}ms"));
    let head = ["CLUSTER", "ALIVE", "LATENCY_P50", "LATENCY_P95", "LATENCY_P99", "LAST_ERROR"].map(str::to_owned);
    let body = rows.iter().map(|row| {
        [
            printable(&row.cluster_name),
            if row.alive { "True" } else { "False" }.to_owned(),
            latency(row.latency_p50),
            latency(row.latency_p95),
            latency(row.latency_p99),
            row.last_error.as_ref().map_or_else(
                || "-".to_owned(),
                |error| printable(&format!("{}: {} ({}s ago)", error.step, error.message, error.seconds_ago)),
            ),
        ]
    });
    let lines: Vec<[String; 6]> = [head].into_iter().chain(body).collect();
    let mut widths = [0; 6];
    for line in &lines {
        widths.iter_mut().zip(line).for_each(|(width, cell)| *width = (*width).max(cell.chars().count()));
    }
    let mut table = String::new();
    for line in &lines {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        table.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        table.push('\n');
    }
    table
}

/// The rows as a JSON array.
pub fn json(rows: &[Row]) -> String {
    // Rows are strings and finite numbers, which always serialize.
    serde_json::to_string_pretty(rows).unwrap_or_default() + "\n"
}

/// The metrics of a service mirror, in the Prometheus text format.
pub fn prometheus(statuses: &[Status]) -> String {
    let mut page = String::new();
    let labelled: Vec<_> =
        statuses.iter().map(|status| (format!("target_cluster_name=\"{}\"", label(&status.cluster)), status)).collect();
    let mut family = |name: &str, help: &str, kind: &str, series: &dyn Fn(&str, &Status) -> String| {
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
        page.extend(labelled.iter().map(|(labels, status)| series(labels, status)));
    };
    family("gateway_enabled", "Whether probes are sent to the gateway.", "gauge", &|labels, _| {
        format!("gateway_enabled{{{labels}}} 1\n")
    });
    family("gateway_alive", "Whether the gateway is alive.", "gauge", &|labels, status| {
        format!("gateway_alive{{{labels}}} {}\n", u8::from(status.alive))
    });
    family("gateway_latency", "The last latency in milliseconds.", "gauge", &|labels, status| {
        status
            .latencies
            .last()
            .map(|last| format!("gateway_latency{{{labels}}} {}\n", millis(last)))
            .unwrap_or_default()
    });
    family("gateway_probe_latency_ms", "Latencies in milliseconds.", "histogram", &|labels, status| {
        let mut text = String::new();
        let mut below = 0;
        for (bound, count) in status.latencies.buckets() {
            below += count;
            let _ = writeln!(text, "gateway_probe_latency_ms_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let (count, sum) = (status.latencies.count(), millis(status.latencies.sum()));
        let _ = writeln!(text, "gateway_probe_latency_ms_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "gateway_probe_latency_ms_sum{{{labels}}} {sum}");
        let _ = writeln!(text, "gateway_probe_latency_ms_count{{{labels}}} {count}");
        text
    });
    family("gateway_probes", "Probes, by success.", "counter", &|labels, status| {
        let Status { successful, unsuccessful, .. } = status;
        format!(
            "gateway_probes{{{labels},probe_successful=\"true\"}} {successful}\n\
             gateway_probes{{{labels},probe_successful=\"false\"}} {unsuccessful}\n"
        )
    });
    page
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A label value's inside.
fn label(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// Others' words on a terminal: control characters are spelled out.
fn printable(text: &str) -> String {
    let spell = |c: char| if c.is_control() { c.escape_default().collect() } else { c.to_string() };
    text.chars().map(spell).collect()
}

#[cfg(test)]
mod tests;

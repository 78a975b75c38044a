//! From statuses to text.

use super::*;
use crate::status::Failure;

fn statuses() -> Vec<Status> {
    let mut west = Status::new("west");
    for millis in 1..=100 {
        west.note(Ok(Duration::from_millis(millis)), 1);
    }
    let mut east = Status::new("east\"");
    east.note(Ok(Duration::from_secs(60)), 1);
    let at = tokio::time::Instant::now();
    east.note(Err(Failure { step: Step::Tls, message: "bad\x1b[2Jcert".to_owned(), at }), 1);
    vec![west, east]
}

#[tokio::test(start_paused = true)]
async fn the_table() {
    let statuses = statuses();
    tokio::time::advance(Duration::from_secs(12)).await;
    assert_eq!(
        table(&rows(&statuses)),
        "CLUSTER  ALIVE  LATENCY_P50  LATENCY_P95  LATENCY_P99  LAST_ERROR\n\
         east\"    False  -            -            -            tls: bad\\u{1b}[2Jcert (12s ago)\n\
         west     True   50ms         95ms         99ms         -\n"
    );
    assert_eq!(table(&[]), "CLUSTER  ALIVE  LATENCY_P50  LATENCY_P95  LATENCY_P99  LAST_ERROR\n");
}

#[tokio::test]
async fn the_json() {
    let value: serde_json::Value = serde_json::from_str(&json(&rows(&statuses()))).expect("JSON");
    assert_eq!(value[0]["clusterName"], "east\"");
    assert_eq!(value[0]["lastError"]["step"], "tls");
    assert_eq!(value[0]["latency"], serde_json::Value::Null);
    assert_eq!((&value[1]["alive"], &value[1]["latencyP95"]), (&true.into(), &95.0.into()));
}

#[tokio::test]
async fn the_metrics() {
    let page = prometheus(&statuses());
    for line in [
        "# TYPE gateway_probe_latency_ms histogram",
        "gateway_enabled{target_cluster_name=\"west\"} 1",
        "gateway_alive{target_cluster_name=\"west\"} 1",
        "gateway_alive{target_cluster_name=\"east\\\"\"} 0",
        "gateway_latency{target_cluster_name=\"west\"} 100",
        "gateway_probe_latency_ms_bucket{target_cluster_name=\"west\",le=\"1\"} 1",
        "gateway_probe_latency_ms_bucket{target_cluster_name=\"west\",le=\"10\"} 10",
        "gateway_probe_latency_ms_bucket{target_cluster_name=\"west\",le=\"50000\"} 100",
        "gateway_probe_latency_ms_bucket{target_cluster_name=\"east\\\"\",le=\"50000\"} 0",
        "gateway_probe_latency_ms_bucket{target_cluster_name=\"east\\\"\",le=\"+Inf\"} 1",
        "gateway_probe_latency_ms_sum{target_cluster_name=\"west\"} 5050",
        "gateway_probe_latency_ms_count{target_cluster_name=\"west\"} 100",
        "gateway_probes{target_cluster_name=\"west\",probe_successful=\"true\"} 100",
        "gateway_probes{target_cluster_name=\"east\\\"\",probe_successful=\"false\"} 1",
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\nis not in\n{page}");
    }
}

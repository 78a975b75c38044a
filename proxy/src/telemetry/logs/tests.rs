//! What is logged, how much of it, and that nobody can forge a line.

use super::super::samples;
use super::*;
use crate::record::Stage;

/// Runs `work` under a subscriber that writes to a file, and gives what was written.
fn logged(settings: &Settings, work: impl FnOnce(&LogHandle)) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    let lines = Lines::start("test", Destination::File(path.clone()), 1000).expect("starts");
    let (subscriber, handle) = build(settings, lines).expect("builds");
    tracing::subscriber::with_default(subscriber, || work(&handle));
    assert!(handle.flush(Duration::from_secs(20)));
    std::fs::read_to_string(path).expect("readable")
}

#[test]
fn the_filter_changes_at_run_time() {
    let text = logged(&Settings::default(), |handle| {
        tracing::debug!("before");
        handle.set_filter("debug").expect("valid");
        assert_eq!(handle.filter(), "debug");
        tracing::debug!("between");
        for bad in ["isthmus=loud", "a=b=c", &"x,".repeat(1000)] {
            assert!(handle.set_filter(bad).is_err(), "{bad}");
        }
        assert_eq!(handle.filter(), "debug");
        handle.set_filter("error").expect("valid");
        tracing::warn!("after");
    });
    assert!(text.contains("between") && !text.contains("before") && !text.contains("after"), "{text}");
}

#[test]
fn one_event_is_one_line() {
    for format in [Format::Json, Format::Text] {
        let text = logged(&Settings { format, ..Settings::default() }, |_| {
            tracing::info!(name = %"x\nERROR forged \x1b[31m", "said\r\nthat");
        });
        assert_eq!(text.lines().count(), 1, "{text:?}");
        assert!(text.bytes().filter(|byte| *byte < b' ').count() == 1, "{text:?}");
        if format == Format::Json {
            let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(value["message"], "said\r\nthat");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_code_does_not_flood() {
    let limiter = Limiter::new(2);
    let burst = |code| (0..5).map(|_| limiter.admit(code)).collect::<Vec<_>>();
    assert_eq!(burst("tls.untrusted"), [Some(0), Some(0), None, None, None]);
    assert_eq!(burst("tls.slow"), [Some(0), Some(0), None, None, None]);
    tokio::time::advance(Duration::from_millis(1000)).await;
    assert_eq!(burst("tls.untrusted"), [Some(3), Some(0), None, None, None]);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(limiter.admit("tls.untrusted"), Some(3));
    assert_eq!(Limiter::new(0).admit("tls.untrusted"), None);
}

#[test]
fn refusals_by_fault() {
    let settings = Settings::default();
    let text = logged(&settings, |handle| {
        let refusals = Refusals::new(2);
        for _ in 0..3 {
            refusals.closed(&samples::refused(Stage::Tls, Fault::Client, "tls.plaintext"));
            refusals.closed(&samples::refused(Stage::Tls, Fault::Client, "tls.untrusted"));
            refusals.closed(&samples::refused(Stage::Balance, Fault::Upstream, "balance.empty"));
        }
        refusals.closed(&samples::request("a.b", "web.ns", 200));
        handle.set_filter("debug").expect("valid");
        refusals.closed(&samples::refused(Stage::Tls, Fault::Client, "tls.plaintext"));
    });
    assert_eq!(text.matches("balance.empty").count(), 2, "{text}");
    assert_eq!(text.matches("tls.untrusted").count(), 2, "{text}");
    assert_eq!(text.matches("tls.plaintext").count(), 1, "noise shows at debug only: {text}");
    assert!(text.contains("WARN") && text.contains("INFO") && text.contains("DEBUG"), "{text}");
    assert!(text.contains("identity=web.shop.serviceaccount.identity.west"), "{text}");
}

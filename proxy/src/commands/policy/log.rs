//! Access logs, read for what the policy decided.
//!
//! **In** lines of JSON as `telemetry` writes them (`access_log_format: json`). **Out** [`Entry`]s: one call each, and what became
//! of it. **Refuses** (skips and counts) lines of other kinds, lines about calls that the policy was never asked about, and
//! calls whose path the log has cut.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::authorise::{Became, Call, Reason};

/// One call, and what became of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) call: Call,
    pub(super) became: Became,
    pub(super) code: Option<String>,
    pub(super) rule: Option<String>,
    /// When, in seconds since the epoch.
    pub(super) at: u64,
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Tally {
    /// Calls.
    pub(super) calls: u64,
    /// Lines that are none of a JSON access log.
    pub(super) other: u64,
    /// Lines about calls whose path was cut.
    pub(super) cut: u64,
}

/// The fields that matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    time: String,
    kind: String,
    outcome: String,
    stage: String,
    code: Option<String>,
    client_addr: Option<SocketAddr>,
    client_identity: Option<String>,
    protocol: String,
    target: Option<String>,
    endpoint: Option<String>,
    rule: Option<String>,
    would_refuse: Option<String>,
    would_refuse_rule: Option<String>,
    method: Option<String>,
    path: Option<String>,
    grpc_status: Option<serde_json::Value>,
}

/// Longer lines are none that the access log writes: each of some twenty fields is cut at 2 KiB.
const MAX_LINE_BYTES: u64 = 256 << 10;

/// Reads files one after the other; `-` is standard input.
pub(super) fn read(paths: &[PathBuf], mut each: impl FnMut(Entry)) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    for path in paths {
        let opened: Box<dyn Read> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            Box::new(File::open(path).with_context(|| format!("{} cannot be opened", path.display()))?)
        };
        lines(BufReader::new(opened), &mut tally, &mut each)
            .with_context(|| format!("{} cannot be read", path.display()))?;
    }
    Ok(tally)
}

fn lines(mut from: impl BufRead, tally: &mut Tally, each: &mut impl FnMut(Entry)) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if from.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        match serde_json::from_slice::<Line>(&line) {
            Ok(read) if matches!(read.kind.as_str(), "connection" | "request") => match entry(read) {
                Ok(Some(entry)) => {
                    tally.calls += 1;
                    each(entry);
                }
                Ok(None) => {}
                Err(Cut) => tally.cut += 1,
            },
            _ if line.trim_ascii().is_empty() => {}
            _ => tally.other += 1,
        }
    }
}

/// The path stands in the log only in part.
#[derive(Debug)]
struct Cut;

fn entry(line: Line) -> Result<Option<Entry>, Cut> {
    let Some((became, code, rule)) = became(&line) else { return Ok(None) };
    let (Some(client), Some(service)) = (&line.client_identity, &line.target) else { return Ok(None) };
    // Connections that carry HTTP are judged request by request.
    if line.kind == "connection" && line.protocol != "opaque" {
        return Ok(None);
    }
    let request = line.kind == "request";
    let path = line.path.filter(|_| request);
    if path.as_ref().is_some_and(|path| path.len() >= 2048 && path.ends_with("...")) {
        return Err(Cut);
    }
    let plain = Call::of(client, service);
    let call = Call {
        network: line.client_addr.map_or(plain.network, |addr| addr.ip().to_canonical()),
        exported: code.as_deref() != Some(Reason::NotExported.code()),
        grpc: request && line.grpc_status.is_some() && line.method.as_deref() == Some("POST"),
        method: line.method.filter(|_| request),
        path,
        ..plain
    };
    let at = OffsetDateTime::parse(&line.time, &Rfc3339).map_or(0, OffsetDateTime::unix_timestamp);
    let entry = Entry { call, became, code, rule, at: u64::try_from(at).unwrap_or(0) };
    Ok(Some(entry).filter(|entry| entry.call.check().is_ok()))
}

/// What the policy said, the code of its refusal, and the rule; none where it was not asked.
fn became(line: &Line) -> Option<(Became, Option<String>, Option<String>)> {
    let admitted = || Some((Became::Admitted, None, line.rule.clone()));
    match (line.outcome.as_str(), line.stage.as_str()) {
        ("refused", "authorise") if is_denial(line.code.as_deref()) => {
            Some((Became::Refused, line.code.clone(), line.rule.clone()))
        }
        // A limit: the rules had let it through.
        ("refused", "authorise") => admitted(),
        // Before the question, or (a name that is never served) instead of it.
        ("refused", "accept" | "tls" | "detect") => None,
        ("refused", "route") | ("abandoned", _) if line.rule.is_none() && line.endpoint.is_none() => None,
        _ if is_denial(line.would_refuse.as_deref()) => {
            Some((Became::WouldRefuse, line.would_refuse.clone(), line.would_refuse_rule.clone()))
        }
        _ => admitted(),
    }
}

fn is_denial(code: Option<&str>) -> bool {
    let reasons = [Reason::AmbiguousPath, Reason::Denied, Reason::NoRoute, Reason::NoRule, Reason::NotExported];
    code.is_some_and(|code| reasons.iter().any(|reason| reason.code() == code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> (Vec<String>, Tally) {
        let (mut told, mut tally) = (Vec::new(), Tally::default());
        let mut each = |Entry { call, became, code, rule, at }: Entry| {
            let Call { client, network, service, method, path, grpc, .. } = call;
            let call = [method, path].map(|word| word.unwrap_or_else(|| "-".to_owned())).join(" ");
            let by = [code, rule].map(|word| word.unwrap_or_else(|| "-".to_owned())).join(" ");
            told.push(format!("{client} {network} {service} {call} {grpc} {became:?} {by} {at}"));
        };
        lines(text.as_bytes(), &mut tally, &mut each).expect("memory is read");
        (told, tally)
    }

    #[test]
    fn lines_become_calls() {
        let line = |rest: &str| {
            format!(
                r#"{{"time":"1970-01-01T00:01:00.000000Z","kind":"request","client_addr":"[::ffff:10.0.0.1]:5","client_identity":"a.b","target":"c:80","method":"GET","path":"/x",{rest}}}"#
            )
        };
        for (rest, want) in [
            (r#""outcome":"served","rule":"r","status":200"#, Some("GET /x false Admitted - r")),
            (
                r#""outcome":"served","would_refuse":"authorise.no_rule""#,
                Some("GET /x false WouldRefuse authorise.no_rule -"),
            ),
            (
                r#""outcome":"served","rule":"r","would_refuse":"authorise.rate_limited","would_refuse_rule":"r""#,
                Some("GET /x false Admitted - r"),
            ),
            (
                r#""outcome":"refused","stage":"authorise","code":"authorise.denied","rule":"d""#,
                Some("GET /x false Refused authorise.denied d"),
            ),
            (
                r#""outcome":"refused","stage":"authorise","code":"authorise.rate_limited","rule":"r""#,
                Some("GET /x false Admitted - r"),
            ),
            (r#""outcome":"refused","stage":"route","code":"route.not_served""#, None),
            (r#""outcome":"refused","stage":"connect","code":"connect.refused""#, Some("GET /x false Admitted - -")),
            (r#""outcome":"refused","stage":"detect","code":"detect.timeout""#, None),
            (r#""outcome":"abandoned""#, None),
            (r#""outcome":"abandoned","rule":"r""#, Some("GET /x false Admitted - r")),
        ] {
            let want: Vec<String> = want.iter().map(|want| format!("a.b 10.0.0.1 c:80 {want} 60")).collect();
            assert_eq!(all(&line(rest)).0, want, "{rest}");
        }
    }

    #[test]
    fn other_lines_are_counted_and_skipped() {
        let opaque =
            r#"{"kind":"connection","outcome":"served","client_identity":"a.b","target":"c:80","protocol":"opaque"}"#;
        let http = opaque.replace("opaque", "http/2");
        let cut = format!(
            r#"{{"kind":"request","outcome":"served","client_identity":"a.b","target":"c:80","method":"GET","path":"/{}..."}}"#,
            "x".repeat(2047)
        );
        let grpc = r#"{"kind":"request","outcome":"served","client_identity":"a.b","target":"c:80","method":"POST","path":"/a.B/C","grpc_status":0}"#;
        let nobody = r#"{"kind":"request","outcome":"served","client_identity":"no body","target":"c:80","method":"GET","path":"/"}"#;
        let text = format!("{opaque}\n{http}\n\n{cut}\nkind=request\n[]\n{nobody}\n{grpc}");
        let (told, tally) = all(&text);
        let want = ["a.b 0.0.0.0 c:80 - - false Admitted - - 0", "a.b 0.0.0.0 c:80 POST /a.B/C true Admitted - - 0"];
        assert_eq!(told, want);
        assert_eq!(tally, Tally { calls: 2, other: 2, cut: 1 });
    }
}

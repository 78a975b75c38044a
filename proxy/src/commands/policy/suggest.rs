//! `isthmus policy suggest`: rules from what was seen, as a policy file that is ready to be reviewed.
//!
//! **In** a running gateway or access logs. **Out** YAML: each rule with the calls that speak for it, and in comments what no rule
//! was written for, and why. What was refused is nobody's known wish and is left out.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::{Output, seen};
use crate::authorise::{Asking, Grouping, LeftOut, Suggestion, suggest};
use crate::tls::inspect::rfc3339;

/// Write rules that allow what was seen.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    seen: Seen,
    /// So many service accounts of a namespace that want the same become a wildcard; 0 never
    #[arg(long, default_value_t = Grouping::default().accounts, value_name = "N")]
    accounts: usize,
    /// So many paths below one path become a wildcard; 0 never
    #[arg(long, default_value_t = Grouping::default().paths, value_name = "N")]
    paths: usize,
    /// So many services of a namespace that are wanted by the same clients become a wildcard; 0 never
    #[arg(long, default_value_t = Grouping::default().services, value_name = "N")]
    services: usize,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Where what was seen is written down.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Seen {
    /// What the gateway with this admin port has seen
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// What these access logs (JSON) have seen; `-` is standard input
    #[arg(long, value_name = "FILE", num_args = 1..)]
    log: Vec<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<bool> {
    let observations = match &args.seen.admin {
        Some(address) => seen::by_gateway(address)?,
        None => seen::in_logs(&args.seen.log)?,
    };
    let Args { accounts, paths, services, .. } = *args;
    let suggestion = suggest(&observations, Grouping { accounts, paths, services });
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&suggestion)?),
        Output::Text => print!("{}", text(&suggestion)?),
    }
    Ok(true)
}

fn text(suggestion: &Suggestion) -> anyhow::Result<String> {
    let rules = &suggestion.rules;
    let mut out = String::from(
        "# Suggested by what was seen: every rule allows calls that were made, grouped where many want the same.\n\
         # Read it, strike what should not be, and name the file in authorise.files.\n",
    );
    // Writing to memory does not fail.
    let _ = writeln!(out, "rules:{}", if rules.is_empty() { " []" } else { "" });
    for suggested in rules {
        let last = rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(suggested.last_seen));
        let calls = if suggested.calls == 1 { "call" } else { "calls" };
        let _ = writeln!(out, "  # {} {calls}, the last at {last}", suggested.calls);
        for line in serde_saphyr::to_string(&[&suggested.rule])?.lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
    if !suggestion.left_out.is_empty() {
        out.push_str("\n# Left out:\n");
    }
    for LeftOut { observation, because } in &suggestion.left_out {
        let asking = match &observation.asking {
            Asking::Grpc { service, method } => format!("gRPC {service}/{method}"),
            Asking::Http { method, path } => format!("{method} {}", path.as_deref().unwrap_or("(an unreadable path)")),
            Asking::Opaque => "a connection".to_owned(),
        };
        let (count, client, service) = (observation.count, &observation.client, &observation.service);
        let line = format!("{count} × {client} -> {service}, {asking}: {because}");
        // Methods and paths are clients' words: none of them ends the comment.
        let line: String = line.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let _ = writeln!(out, "# - {line}");
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorise::{Became, Observation};
    use crate::sources::policy::{Text, Words};

    fn seen(asking: Asking, became: Became) -> Observation {
        Observation {
            client: "web.shop.serviceaccount.identity.linkerd.cluster.local".to_owned(),
            service: "api.prod.svc.cluster.local:80".to_owned(),
            asking,
            became,
            code: None,
            rule: None,
            count: 3,
            first_seen: 0,
            last_seen: 60,
        }
    }

    #[test]
    fn what_is_written_is_a_policy_file() {
        let get = |path: &str| Asking::Http { method: "GET".to_owned(), path: Some(path.to_owned()) };
        let observations = [
            seen(get("=/v1/*"), Became::WouldRefuse),
            seen(get("=/x:y"), Became::Admitted),
            seen(Asking::Grpc { service: "a.B".to_owned(), method: "C".to_owned() }, Became::Admitted),
            seen(Asking::Http { method: "EVIL\nrules".to_owned(), path: None }, Became::Refused),
        ];
        let text = text(&suggest(&observations, Grouping::default())).expect("written");
        assert!(text.contains("  # 6 calls, the last at 1970-01-01T00:01:00Z\n"), "{text}");
        assert!(text.contains("# - 3 × web.shop.serviceaccount.identity.linkerd.cluster.local -> "), "{text}");
        let file = Text { file: "suggested.yaml", text: &text };
        let words = Words::read(Text { file: "", text: "" }, &[file]).unwrap_or_else(|wrong| panic!("{wrong}\n{text}"));
        assert_eq!(words.compile(None, None).map(|policy| policy.rules()), Ok(2), "{text}");
        assert!(super::text(&suggest(&[], Grouping::default())).expect("written").ends_with("rules: []\n"));
    }
}

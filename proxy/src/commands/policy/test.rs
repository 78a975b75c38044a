//! `isthmus policy test`: an operator's expectations of a policy, for their own CI.
//!
//! **In** cases as YAML, a list or below `cases:`, and a configuration or policy file. **Out** the cases that do not come out as
//! expected, each with its line. In audit mode the answer is what enforcing would say.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use serde::{Deserialize, Serialize};

use super::{BadWords, Output, identity, offline};
use crate::authorise::{Answer, Call, Case, Expected, Surprise, check};
use crate::identity::Identity;
use crate::sources::files;
use crate::sources::policy::place::Node;
use crate::sources::policy::{self, misread};

/// Hold a policy against expectations.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The expectations: a YAML list of calls, each with `expect: allow` or `expect: deny`
    cases: PathBuf,
    /// The policy: a configuration or a policy file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The gateway's identity, where its certificate is not here
    #[arg(long, value_name = "IDENTITY", value_parser = identity)]
    identity: Option<Identity>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// One case as it is written: the call and the expectation side by side.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    client: String,
    #[serde(default)]
    network: Option<IpAddr>,
    service: String,
    /// Whether the service is exported; where it is left out, it is.
    #[serde(default)]
    exported: Option<bool>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    grpc: bool,
    expect: Expected,
    #[serde(default)]
    rule: Option<String>,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    because: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rows {
    cases: Vec<Row>,
}

/// A case that did not come out as expected.
#[derive(Debug, Serialize)]
struct Unmet {
    /// `file:line:column`.
    at: String,
    case: Case,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<Answer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invalid: Option<String>,
}

impl From<Row> for Case {
    fn from(row: Row) -> Self {
        let plain = Call::of(&row.client, &row.service);
        let call = Call {
            network: row.network.unwrap_or(plain.network),
            exported: row.exported.unwrap_or(true),
            method: row.method.or_else(|| row.grpc.then(|| "POST".to_owned())),
            path: row.path,
            host: row.host,
            headers: row.headers,
            grpc: row.grpc,
            ..plain
        };
        Self { call, expect: row.expect, rule: row.rule, code: row.code, because: row.because }
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<bool> {
    let (policy, _) = offline(&args.config, args.identity.as_ref())?;
    let (text, cases) = read(&args.cases).map_err(BadWords)?;
    let node = Node::read(&text);
    let top = if node.as_ref().is_some_and(|node| node.has("cases")) { "cases" } else { "" };
    let at = |index: usize| {
        let place = node.as_ref().map(|node| format!(":{}", node.place_of(&format!("{top}[{index}]"))));
        format!("{}{}", args.cases.display(), place.unwrap_or_default())
    };
    let unmet: Vec<Unmet> = check(&policy, &cases)
        .into_iter()
        .map(|Surprise { index, answer }| {
            let case = cases[index].clone();
            match answer {
                Ok(answer) => Unmet { at: at(index), case, answer: Some(answer), invalid: None },
                Err(error) => Unmet { at: at(index), case, answer: None, invalid: Some(error.to_string()) },
            }
        })
        .collect();
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&unmet)?),
        Output::Text => {
            unmet.iter().for_each(|unmet| println!("{}", unmet.text()));
            println!("{} of {} cases come out as expected", cases.len() - unmet.len(), cases.len());
        }
    }
    Ok(unmet.is_empty())
}

fn read(path: &Path) -> anyhow::Result<(String, Vec<Case>)> {
    let read = files::snapshot(&[path.to_owned()])?;
    let texts = policy::texts(&read.pieces)?;
    let (file, text) = texts.first().ok_or_else(|| anyhow!("{} was not read", path.display()))?;
    let map = Node::read(text).is_some_and(|node| node.has("cases"));
    let rows = if map { misread::read::<Rows>(text).map(|rows| rows.cases) } else { misread::read(text) };
    let rows: Vec<Row> = rows.map_err(|misread| {
        let place = misread.place.map_or_else(String::new, |place| format!(":{place}"));
        anyhow!("{file}{place}: {misread}")
    })?;
    if rows.is_empty() {
        return Err(anyhow!("{file}: there are no cases"));
    }
    Ok(((*text).to_owned(), rows.into_iter().map(Case::from).collect()))
}

impl Unmet {
    fn text(&self) -> String {
        let Case { expect, rule, code, because, .. } = &self.case;
        let word = match expect {
            Expected::Allow => "allow",
            Expected::Deny => "deny",
        };
        let of = |rule: &Option<String>, code: &Option<String>| {
            let rule = rule.as_ref().map(|rule| format!("rule {rule}"));
            let words: Vec<String> = rule.into_iter().chain(code.clone()).collect();
            if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
        };
        let is = match (&self.answer, &self.invalid) {
            (Some(answer), _) => {
                let allowed = answer.admitted && answer.code.is_none();
                format!("it is {}{}", if allowed { "allow" } else { "deny" }, of(&answer.rule, &answer.code))
            }
            (None, invalid) => invalid.clone().unwrap_or_default(),
        };
        let because = because.as_ref().map_or_else(String::new, |because| format!("; expected because {because}"));
        format!("{}: expected {word}{}, but {is}{because}", self.at, of(rule, code))
    }
}

//! `isthmus explain`: what the policy decides about a call, and why.
//!
//! **In** a call, and a configuration or a running gateway's admin port. **Out** the decision in a sentence, every rule that was
//! considered and which of its conditions failed. Exit code 0 when the call is admitted, 3 when it is refused, 1 when nobody can
//! say, 64 when the words or the configuration are wrong.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::ValueEnum;

use super::runtime::control;
use super::{ANSWER_IS_NO, BAD_USAGE};
use crate::admin::client;
use crate::authorise::{self, Action, Call, Considered, Explanation, Holds, Mode};
use crate::config::Config;
use crate::identity::Identity;

/// Say what the policy decides about a call.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    asked: Asked,
    /// The client's identity
    #[arg(long, value_name = "IDENTITY")]
    client: String,
    /// The service, with its port
    #[arg(long, value_name = "NAME:PORT")]
    service: String,
    /// The method of the request; GET where only a path is given. Without either it is an opaque connection
    #[arg(long)]
    method: Option<String>,
    /// The path of the request, as it is sent
    #[arg(long)]
    path: Option<String>,
    /// A header field of the request, as name=value or name:value; may be given again
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The host that the request names; the service where it is left out
    #[arg(long)]
    host: Option<String>,
    /// The address that the client comes from
    #[arg(long, value_name = "ADDRESS")]
    network: Option<IpAddr>,
    /// The request is a gRPC call: of this method, or of the one that --path names
    #[arg(long, value_name = "SERVICE/METHOD", num_args = 0..=1, default_missing_value = "")]
    grpc: Option<String>,
    /// Take the service for exported, whatever sources say
    #[arg(long)]
    exported: bool,
    /// With --config: the gateway's identity, where its certificate is not here
    #[arg(long, value_name = "IDENTITY", value_parser = identity, conflicts_with = "admin")]
    identity: Option<Identity>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Who is asked.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Asked {
    /// Ask the policy of this configuration, or of this policy file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask the gateway with this admin port
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
}

/// How to print.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Output {
    /// One JSON value, for programs.
    Json,
    /// For people.
    Text,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(['=', ':']).ok_or("write it as name=value")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn identity(text: &str) -> Result<Identity, String> {
    Identity::parse(text).map_err(|error| error.to_string())
}

/// Asks and prints.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let call = args.call();
    if let Err(error) = call.check() {
        return Ok(bad(&error.into()));
    }
    let explanation = match (&args.asked.config, &args.asked.admin) {
        (Some(file), _) => match args.of_file(file, call) {
            Ok(explanation) => explanation,
            Err(error) => return Ok(bad(&error)),
        },
        (None, admin) => {
            let address = admin.as_deref().unwrap_or_default();
            let asked = client::explain(address, &call, args.exported.then_some(true));
            let answer = control()?.block_on(asked)?;
            serde_json::from_str(&answer).context("the answer is none of an Isthmus of this version")?
        }
    };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&explanation)?),
        Output::Text => print!("{}", text(&explanation)),
    }
    Ok(if explanation.admitted { ExitCode::SUCCESS } else { ExitCode::from(ANSWER_IS_NO) })
}

fn bad(error: &anyhow::Error) -> ExitCode {
    eprintln!("isthmus: {error:#}");
    ExitCode::from(BAD_USAGE)
}

impl Args {
    fn call(&self) -> Call {
        let named = self.grpc.as_deref().filter(|call| !call.is_empty());
        let path = named.map(|call| format!("/{}", call.trim_start_matches('/')));
        let request = !self.headers.is_empty() || self.host.is_some() || self.grpc.is_some();
        let method = self.method.clone().or_else(|| self.grpc.as_ref().map(|_| "POST".to_owned()));
        let plain = Call::of(&self.client, &self.service);
        Call {
            network: self.network.unwrap_or(plain.network),
            method: method.or_else(|| request.then(|| "GET".to_owned())),
            path: self.path.clone().or(path),
            host: self.host.clone(),
            headers: self.headers.iter().cloned().collect::<BTreeMap<_, _>>(),
            grpc: self.grpc.is_some(),
            ..plain
        }
    }

    fn of_file(&self, file: &Path, call: Call) -> anyhow::Result<Explanation> {
        let (policy, config) = Config::offline(file, self.identity.clone())?;
        let target = call.target()?;
        // A policy file alone knows nothing of services: the rules are the question then.
        let exported = self.exported || config.is_none_or(|config| config.exported(&target));
        Ok(authorise::explain(&policy, &Call { exported, ..call })?)
    }
}

/// Rules of which neither client nor service fit say little: beyond these they are only counted.
const FEW: usize = 20;

fn text(explanation: &Explanation) -> String {
    let Explanation { client, network, service, code, because, path, rules, .. } = explanation;
    let mut out = format!("{because}{}\n\n", code.as_ref().map_or_else(String::new, |code| format!(" ({code})")));
    let mut line = |word: &str, value: &str| {
        // Writing to memory does not fail.
        let _ = writeln!(out, "  {word:<8} {value}");
    };
    line("client", client);
    line("network", network);
    line("service", service);
    path.iter().for_each(|path| line("path", path));
    if rules.is_empty() {
        out.push_str("\nThere are no rules.\n");
    }
    let far = |rule: &Considered| rule.conditions.iter().filter(|condition| condition.holds == Holds::No).count() > 1;
    let shown = rules.iter().enumerate().take_while(|(at, rule)| *at < FEW || !far(rule)).count();
    for rule in &rules[..shown] {
        rule_text(&mut out, rule);
    }
    if shown < rules.len() {
        let _ = writeln!(out, "\nand {} more rules that do not hold (all of them with -o json)", rules.len() - shown);
    }
    out
}

fn rule_text(out: &mut String, rule: &Considered) {
    let action = match rule.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    };
    let audit = if rule.mode == Mode::Audit { ", audit only" } else { "" };
    let _ = writeln!(out, "\n{} {} ({action}{audit}) {}", mark(rule.holds), rule.rule, rule.holds);
    if rule.conditions.is_empty() {
        out.push_str("    it sets no condition\n");
    }
    for condition in &rule.conditions {
        let _ = writeln!(out, "    {} {}: {}", mark(condition.holds), condition.field, condition.words);
    }
}

const fn mark(holds: Holds) -> &'static str {
    match holds {
        Holds::Yes => "√",
        Holds::Maybe => "?",
        Holds::No => "×",
    }
}

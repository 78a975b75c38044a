//! `isthmus policy diff`: which calls that were seen change their answer from one policy to another.
//!
//! **In** two policies and what was seen. **Out** the calls whose answer changes, the most frequent first. What the access log does
//! not hold (header fields, hosts) is taken for absent; limits have no part in it.

use std::path::PathBuf;

use comfy_table::{Table, presets};

use super::{Output, identity, offline, seen};
use crate::authorise::{Answer, Call, Change, diff};
use crate::identity::Identity;

/// Compare two policies.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The policy as it is: a configuration or a policy file
    old: PathBuf,
    /// The policy as it would be
    new: PathBuf,
    #[command(flatten)]
    against: Against,
    /// The gateway's identity, where its certificate is not here
    #[arg(long, value_name = "IDENTITY", value_parser = identity)]
    identity: Option<Identity>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Where what was seen is written down.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Against {
    /// The calls in these access logs (JSON); `-` is standard input
    #[arg(long, value_name = "FILE", num_args = 1..)]
    against: Vec<PathBuf>,
    /// The calls that the gateway with this admin port has seen, one for each path template
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<bool> {
    let own = args.identity.as_ref();
    let (old, _) = offline(&args.old, own)?;
    let (new, _) = offline(&args.new, own)?;
    let calls = match &args.against.admin {
        Some(address) => seen::by_gateway(address)?.iter().map(|seen| (seen.as_call(), seen.count)).collect(),
        None => seen::calls_in_logs(&args.against.against)?,
    };
    let (kinds, all) = (calls.len(), calls.iter().map(|(_, count)| count).sum::<u64>());
    let mut changes = diff(&old, &new, calls)?;
    // What somebody will miss comes first.
    changes.sort_by_key(|change| !is_lost(change));
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&changes)?),
        Output::Text if changes.is_empty() => println!("no answer changes ({all} calls of {kinds} kinds)"),
        Output::Text => {
            let count = |of: fn(&Change) -> bool| -> u64 {
                changes.iter().filter(|change| of(change)).map(|change| change.count).sum()
            };
            println!(
                "{}\n\n{} of {all} calls change their answer: {} that were let through would be refused, {} that were refused \
                 would be let through",
                table(&changes),
                count(|_| true),
                count(is_lost),
                count(|change| !change.before.admitted && change.after.admitted)
            );
        }
    }
    Ok(changes.is_empty())
}

fn is_lost(change: &Change) -> bool {
    change.before.admitted && !change.after.admitted
}

fn table(changes: &[Change]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["CALLS", "CLIENT", "SERVICE", "WHAT", "OLD", "NEW"]);
    for Change { call, count, before, after } in changes {
        let row = [count.to_string(), printable(&call.client), printable(&call.service), what(call)];
        table.add_row(row.into_iter().chain([answer(before), answer(after)]));
    }
    table
}

fn what(call: &Call) -> String {
    match (&call.method, &call.path) {
        (None, None) => "a connection".to_owned(),
        (method, path) => {
            printable(&format!("{} {}", method.as_deref().unwrap_or("GET"), path.as_deref().unwrap_or("/")))
        }
    }
}

fn answer(answer: &Answer) -> String {
    let by = answer.rule.as_ref().map_or_else(String::new, |rule| format!(" by {rule}"));
    match (answer.admitted, &answer.code) {
        (true, None) => format!("admitted{by}"),
        (true, Some(code)) => format!("audited: {code}{by}"),
        (false, code) => format!("refused{by}: {}", code.as_deref().unwrap_or("no reason")),
    }
}

/// Clients' words, without what would move the cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

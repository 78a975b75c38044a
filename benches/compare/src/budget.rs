//! What a request costs in instructions of the gateway's own: the same on a machine that is busy with other things.
//!
//! **In** a file of rows with their budgets. **Out** a table; an error where a count is over its budget by more than the
//! tolerance, a word where it is so far below that the budget no longer guards anything. Counted by valgrind's callgrind, between two points
//! of one process's life, on one connection whose requests are always as many at once: what the kernel does is not in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Flags;
use crate::client::Talk;
use crate::engine::{Call, Engine};
use crate::gateways::{Gateway, Kind, More, Shop};
use crate::measure::services;
use crate::pki::Pki;
use crate::rows::{self, Drive};
use crate::stats::median;

/// Rows with how many requests are under way at once, and how many are counted.
const ROWS: [(&str, usize, u64); 7] = [
    ("h2-h2", 8, 800),
    ("h2-h1", 8, 800),
    ("h1-h2", 1, 400),
    ("h1-h1", 1, 400),
    ("grpc-h2", 8, 800),
    ("echo", 1, 800),
    ("handshake", 1, 60),
];

/// What comes by the clock, such as reading certificates again, falls into one of these: the middle one counts.
const BATCHES: u64 = 5;

/// Counts, and compares.
pub(crate) fn hold(flags: &Flags, file: &Path) -> Result<()> {
    let counts = count(flags)?;
    let old = fs::read_to_string(file).unwrap_or_default();
    let budgets = read(&old)?;
    let tolerance = budgets.get("tolerance").copied().unwrap_or(0.05);
    let mut over = Vec::new();
    println!("{:12} {:>12} {:>12} {:>8}", "row", "budget", "counted", "");
    for (name, counted) in &counts {
        let Some(budget) = budgets.get(*name) else {
            println!("{name:12} {:>12} {counted:12.0}", "none");
            continue;
        };
        let off = counted / budget - 1.0;
        println!("{name:12} {budget:12.0} {counted:12.0} {:+7.1} %", off * 100.0);
        if off > tolerance {
            over.push(format!("{name}: {counted:.0} instructions, {:.1} % over its budget", off * 100.0));
        } else if off < -2.0 * tolerance {
            println!("{:12} so far below that its budget guards nothing any more: --budget-write", "");
        }
    }
    if flags.budget_write {
        return write(file, &counts, tolerance);
    }
    if !over.is_empty() {
        bail!("{}; where it is meant to be so: .ci/budget/run --budget-write", over.join("; "));
    }
    Ok(())
}

/// `name = number` by line; what else a file of settings may hold has no use here.
fn read(text: &str) -> Result<BTreeMap<String, f64>> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('['))
        .map(|line| {
            let (name, number) = line.split_once('=').with_context(|| format!("not `name = number`: {line}"))?;
            Ok((name.trim().to_owned(), number.trim().replace('_', "").parse().with_context(|| line.to_owned())?))
        })
        .collect()
}

fn write(file: &Path, counts: &[(&str, f64)], tolerance: f64) -> Result<()> {
    let mut text = format!(
        "# Instructions of the gateway's process for each request (each handshake, each exchange), the kernel's left out, with\n\
         # everything on. `.ci/budget/run` counts them and compares; `.ci/budget/run --budget-write` writes this file.\n\
         tolerance = {tolerance}\n\n[instructions]\n"
    );
    for (name, counted) in counts {
        writeln!(text, "{name} = {counted:.0}").expect("text");
    }
    fs::write(file, text).with_context(|| file.display().to_string())
}

fn count(flags: &Flags) -> Result<Vec<(&'static str, f64)>> {
    let mut engine = Engine::new((flags.core, flags.own_core))?;
    let services = services(&mut engine)?;
    let work = flags.work.canonicalize()?;
    let pki = Pki::make(&work)?;
    let dumps = work.join("callgrind");
    fs::create_dir_all(&dumps)?;
    for old in fs::read_dir(&dumps)?.flatten() {
        fs::remove_file(old.path())?;
    }
    let starter = ["valgrind", "-q", "--tool=callgrind", "--callgrind-out-file"];
    let mut starter: Vec<String> = starter.iter().map(|&word| word.to_owned()).collect();
    let last = starter.pop().unwrap_or_default();
    starter.push(format!("{last}={}", dumps.join("out").display()));
    let shop = Shop { configs: flags.configs.canonicalize()?, work, programs: flags.programs(), starter, services };
    let gateway = shop.start(Kind::Isthmus, More::default())?;
    let mut counts = Vec::new();
    let all = rows::all();
    for (name, streams, wanted) in ROWS {
        let row = all.iter().find(|row| row.name == name).with_context(|| format!("no row {name}"))?;
        let service =
            shop.services.iter().find(|service| service.name == row.service(Kind::Isthmus)).context("no service")?;
        let talk = row.talk(&service.host());
        let (target, server_name) = gateway.door(service)?;
        let config = pki.quick(talk.alpn(), false)?;
        let call = Call { target, config, name: server_name, talk: Rc::new(talk), header: Vec::new() };
        let leaving = matches!(*call.talk, Talk::Leave) && matches!(row.drive, Drive::Handshakes { .. });
        engine.meet(&call)?;
        engine.exactly(streams, if leaving { 10 } else { 200 })?;
        since_last(&gateway, &dumps)?;
        let mut batches = Vec::new();
        for _ in 0..BATCHES {
            let done = engine.exactly(streams, wanted / BATCHES)?;
            // What is done after the answer belongs to the request.
            engine.rest(Duration::from_millis(20))?;
            batches.push(since_last(&gateway, &dumps)? as f64 / done as f64);
        }
        engine.drop_clients();
        counts.push((name, median(&batches)));
    }
    Ok(counts)
}

/// The instructions since this was last asked for: callgrind writes them into a file of their own, and begins anew.
fn since_last(gateway: &Gateway, dumps: &Path) -> Result<u64> {
    let process = gateway.watch.first().context("no process")?.to_string();
    let done = Command::new("callgrind_control").args(["--dump", &process]).output().context("callgrind_control")?;
    if !done.status.success() {
        bail!("callgrind_control: {}", String::from_utf8_lossy(&done.stderr));
    }
    let mut sum = 0;
    for file in fs::read_dir(dumps)?.flatten() {
        let text = fs::read_to_string(file.path())?;
        let line = text.lines().rev().find_map(|line| line.strip_prefix("totals: "));
        sum += line.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0);
        // The one without a number is callgrind's own, for the end.
        if !text.is_empty() {
            fs::remove_file(file.path())?;
        }
    }
    Ok(sum)
}

//! Soak: mixed traffic through real gateways for as long as asked, with faults, reloads, rotations and drains; fails where
//! anything grows.
//!
//! ```text
//! cargo build --release -p isthmus && cargo run --release -p isthmus-benches --bin soak -- --minutes 30
//! ```
//!
//! Two gateways are processes of their own, behind one service each client knows two addresses of. The first lives through
//! the whole run and is what is measured. The second is drained by SIGTERM under load, again and again. Clients and services
//! are in this process. What is printed: memory, descriptors, tasks, connections and requests over time, then what the clients
//! saw. What fails the run: a slope, something left over when the clients have gone, a request lost that no fault explains.

#![allow(clippy::unwrap_used, reason = "a soak that cannot be set up says where")]

mod client;
mod measure;
mod site;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use self::client::{Clients, Seen};
use self::measure::Table;
use self::site::{Gateway, Site};

struct Args {
    minutes: f64,
    /// Requests and rounds a second, over all clients.
    rate: f64,
    isthmus: PathBuf,
}

fn args() -> Result<Args, String> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("isthmus")));
    let mut args = Args { minutes: 30.0, rate: 200.0, isthmus: beside.unwrap_or_default() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.parse::<f64>().map_err(|_| format!("{word} needs a number, not {value}"));
        match word.as_str() {
            "--minutes" => args.minutes = number()?,
            "--rate" => args.rate = number()?,
            "--isthmus" => args.isthmus = value.into(),
            _ => return Err(format!("{word}? there are --minutes N, --rate PER_SECOND, --isthmus FILE")),
        }
    }
    if !args.isthmus.is_file() {
        return Err(format!("no gateway at {}: build it, or name it with --isthmus", args.isthmus.display()));
    }
    Ok(args)
}

fn main() -> ExitCode {
    let args = match args() {
        Ok(args) => args,
        Err(problem) => {
            eprintln!("soak: {problem}");
            return ExitCode::from(64);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let problems = runtime.block_on(soak(&args));
    for problem in &problems {
        eprintln!("soak: FAILED: {problem}");
    }
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How often a client is told a fault's time has come, and the like, in a run of this length.
struct Pace {
    length: Duration,
    sample: Duration,
    hangup: Duration,
    rotate: Duration,
    drain: Duration,
}

impl Pace {
    fn of(minutes: f64) -> Self {
        let length = Duration::from_secs_f64(minutes * 60.0);
        let part = |share: f64, least: u64, most: u64| {
            length.mul_f64(share).clamp(Duration::from_secs(least), Duration::from_secs(most))
        };
        Self {
            length,
            sample: part(1.0 / 360.0, 1, 5),
            hangup: part(1.0 / 20.0, 3, 20),
            rotate: part(1.0 / 12.0, 5, 45),
            drain: part(1.0 / 10.0, 6, 60),
        }
    }
}

async fn soak(args: &Args) -> Vec<String> {
    let pace = Pace::of(args.minutes);
    let site = Arc::new(Site::build(args.isthmus.clone()).await);
    let measured = Gateway::start(&site, "measured").await;
    let mut drained = Some(Gateway::start(&site, "drained").await);
    println!(
        "{} min, {} requests and rounds a second; gateways {} (measured) and {}",
        args.minutes,
        args.rate,
        measured.gateway,
        drained.as_ref().unwrap().gateway
    );
    // What one finds who comes when nothing has happened yet: but for the pools, that is what must be left at the end.
    let before = measured.row().await;
    let clients = Clients::start(&site, [measured.gateway, drained.as_ref().unwrap().gateway], args.rate);
    let begun = Instant::now();
    let mut table = Table::new(pace.length);
    let (mut sampled, mut hung, mut rotated, mut turned) = (begun, begun, begun, begun);
    let mut events = Events::default();
    let mut problems = Vec::new();
    while begun.elapsed() < pace.length {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = Instant::now();
        if now - sampled >= pace.sample {
            sampled = now;
            table.add(now - begun, measured.row().await, &clients.seen.sum());
        }
        if now - hung >= pace.hangup {
            hung = now;
            measured.signal("HUP");
            events.reloads += 1;
        }
        if now - rotated >= pace.rotate {
            rotated = now;
            site.rotate();
            events.rotations += 1;
        }
        if now - turned >= pace.drain {
            turned = now;
            // The end of the second gateway, under load, and its successor in the same place.
            if let Some(old) = drained.take() {
                let addrs = old.addrs();
                clients.leave(old.gateway);
                if let Err(problem) = old.drain().await {
                    problems.push(problem);
                }
                let new = Gateway::start_at(&site, "drained", Some(addrs)).await;
                clients.come(new.gateway);
                drained = Some(new);
                events.drains += 1;
            }
        }
    }
    let seen = clients.stop().await;
    let left = measured.settled(&before).await;
    table.print_last(&left, &seen.sum());
    println!("\n{events:?}\n");
    seen.print();
    problems.extend(table.slopes());
    problems.extend(measure::left_over(&before, &left));
    problems.extend(losses(&seen));
    if let Err(problem) = measured.drain().await {
        problems.push(problem);
    }
    if let Some(last) = drained
        && let Err(problem) = last.drain().await
    {
        problems.push(problem);
    }
    problems
}

#[derive(Debug, Default)]
struct Events {
    reloads: u32,
    rotations: u32,
    drains: u32,
}

/// What clients of healthy services may not see.
fn losses(seen: &Seen) -> Vec<String> {
    let mut problems = Vec::new();
    for (kind, tally) in seen.kinds() {
        let (fine, failed) = (tally.fine.load(Ordering::Relaxed), tally.failed.load(Ordering::Relaxed));
        if fine == 0 {
            problems.push(format!("{kind}: nothing ever went well"));
        }
        if !tally.may_fail && failed > 0 {
            problems.push(format!("{kind}: {failed} of {} lost, such as: {}", fine + failed, tally.example()));
        }
    }
    problems
}

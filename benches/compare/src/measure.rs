//! A run: every row, in rounds that go through all gateways, so that what changes meanwhile changes for all.
//!
//! **In** flags and rows. **Out** [`Results`]: a sample for each window that nobody disturbed, or the quietest of several.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::ClientConfig;

use crate::Flags;
use crate::backend::Answer;
use crate::client::Talk;
use crate::engine::{Call, Engine, Job, Outcome};
use crate::gateways::{Gateway, Kind, More, Service, Shop, Speaks};
use crate::pki::Pki;
use crate::report::{Results, Sample};
use crate::rows::{Drive, Growth, LARGE, MESSAGE, Row, SMALL, Unit};
use crate::stats;

/// How often a disturbed window is measured again.
const AGAIN: usize = 4;
/// A core this busy has nothing left to give.
const FULL: f64 = 0.95;
/// Hosts that every gateway is told of.
const HOSTS: usize = 50;
/// The longest that opening many connections may take.
const PATIENCE: Duration = Duration::from_secs(120);

struct Run<'a> {
    flags: &'a Flags,
    shop: Shop,
    pki: Pki,
    engine: Engine,
    running: BTreeMap<Kind, Gateway>,
    /// What each gateway did per second at the most: half of it is asked for in a row.
    saturation: BTreeMap<Kind, f64>,
    /// Clients' configurations that resume, with what they remember.
    resuming: BTreeMap<Kind, Arc<ClientConfig>>,
}

/// Measures all of it.
pub(crate) fn all(flags: &Flags, rows: &[Row]) -> Result<Results> {
    let mut engine = Engine::new((flags.core, flags.own_core))?;
    let services = services(&mut engine)?;
    let work = flags.work.canonicalize()?;
    let pki = Pki::make(&work)?;
    let starter = vec!["taskset".into(), "-c".into(), flags.core.to_string()];
    let shop = Shop { configs: flags.configs.canonicalize()?, work, programs: flags.programs(), starter, services };
    let kinds: Vec<Kind> = shop.programs.keys().copied().collect();
    let mut run = Run {
        flags,
        shop,
        pki,
        engine,
        running: BTreeMap::new(),
        saturation: BTreeMap::new(),
        resuming: BTreeMap::new(),
    };
    for kind in &kinds {
        let gateway = run.shop.start(*kind, More::default())?;
        run.running.insert(*kind, gateway);
        if !flags.unchecked {
            run.check(*kind)?;
        }
    }
    let mut results = Results::default();
    for row in rows {
        for round in 0..flags.rounds() {
            // Who goes first changes from round to round.
            for at in 0..kinds.len() {
                let kind = kinds[(at + round) % kinds.len()];
                if !row.fits(kind) {
                    continue;
                }
                let sample = run.sample(row, kind).with_context(|| format!("{} with {kind}", row.name));
                match sample {
                    Ok(sample) => {
                        eprintln!("{:18} {kind:12} {sample}", row.name);
                        results.add(row, kind, sample);
                    }
                    Err(error) => {
                        eprintln!("{:18} {kind:12} failed: {error:#}", row.name);
                        results.fail(row, kind, &format!("{error:#}"));
                        run.engine.drop_clients();
                    }
                }
            }
        }
    }
    Ok(results)
}

/// Opens the backend's ports, two for each kind of answer, and names the hosts.
pub(crate) fn services(engine: &mut Engine) -> Result<Vec<Service>> {
    let mut two = |make: &dyn Fn() -> Answer| -> Result<_> { Ok([engine.serve(make())?, engine.serve(make())?]) };
    let mut named = Vec::new();
    let mut add = |name: &str, speaks, endpoints| named.push(Service { name: name.into(), speaks, endpoints });
    let (h2, h1) = (two(&|| Answer::h2(SMALL))?, two(&|| Answer::h1(SMALL))?);
    add("small-h2", Speaks::H2, h2);
    add("small-h1", Speaks::H1, h1);
    add("grpc-h2", Speaks::H2, two(&|| Answer::grpc_h2(MESSAGE))?);
    add("grpc-h1", Speaks::H1, two(&|| Answer::grpc_h1(MESSAGE))?);
    add("down-h2", Speaks::H2, two(&|| Answer::h2(LARGE))?);
    add("down-h1", Speaks::H1, two(&|| Answer::h1(LARGE))?);
    add("echo", Speaks::Bytes, two(&|| Answer::Echo)?);
    add("flood", Speaks::Bytes, two(&|| Answer::Flood)?);
    add("swallow", Speaks::Bytes, two(&|| Answer::Swallow)?);
    let requests = 6;
    for other in 0..HOSTS - requests {
        let (speaks, endpoints) = if other % 2 == 0 { (Speaks::H2, h2) } else { (Speaks::H1, h1) };
        add(&format!("other-{other}"), speaks, endpoints);
    }
    Ok(named)
}

impl Run<'_> {
    fn service(&self, name: &str) -> Result<Service> {
        self.shop
            .services
            .iter()
            .find(|service| service.name == name)
            .cloned()
            .with_context(|| format!("no service {name}"))
    }

    /// Lets the right client in, and nobody else.
    fn check(&mut self, kind: Kind) -> Result<()> {
        let clients = [
            ("a good certificate", Some(&self.pki.client), true),
            ("no certificate", None, false),
            ("a stranger's certificate", Some(&self.pki.stranger), false),
            ("an expired certificate", Some(&self.pki.expired), false),
        ];
        for (name, talk) in [("small-h1", Talk::get as fn(&str) -> Talk), ("echo", |_| Talk::Echo(SMALL))] {
            let service = self.service(name)?;
            let (target, server_name) = self.running[&kind].door(&service)?;
            for (what, leaf, welcome) in clients {
                let talk = Rc::new(talk(&service.host()));
                // The name of a service is not in the gateway's certificate: there only the client is checked.
                let config = if name == "echo" && kind == Kind::Isthmus {
                    self.pki.unverified(leaf, talk.alpn())?
                } else {
                    self.pki.careful(leaf, talk.alpn())?
                };
                let call = Call { target, config, name: server_name.clone(), talk, header: Vec::new() };
                let result = self.engine.hold(&call, 1, Duration::from_secs(10));
                self.engine.drop_clients();
                match (welcome, result) {
                    (true, Err(error)) => bail!("{kind}: {what} is refused: {error}"),
                    (false, Ok(())) => bail!("{kind}: {what} is let in"),
                    (false, Err(error)) if error.to_string().contains("too slow") => bail!("{kind}: {what}: {error}"),
                    _ => (),
                }
            }
        }
        eprintln!("{kind}: lets in a good certificate; refuses none, a stranger's and an expired one");
        Ok(())
    }

    fn call(&mut self, row: &Row, gateway: &Gateway) -> Result<Call> {
        let service = self.service(row.service(gateway.kind))?;
        let talk = row.talk(&service.host());
        let (target, mut name) = gateway.door(&service)?;
        let alpn = if row.header { Some(&b"transport.l5d.io/v1"[..]) } else { talk.alpn() };
        if row.header {
            name = crate::pki::GATEWAY.try_into()?;
        }
        let config = if row.drive == (Drive::Handshakes { resumed: true }) {
            match self.resuming.get(&gateway.kind) {
                Some(config) => config.clone(),
                None => {
                    let config = self.pki.quick(alpn, true)?;
                    self.resuming.insert(gateway.kind, config.clone());
                    config
                }
            }
        } else {
            self.pki.quick(alpn, false)?
        };
        Ok(Call { target, config, name, talk: Rc::new(talk), header: row.header(&service.host()) })
    }

    fn sample(&mut self, row: &Row, kind: Kind) -> Result<Sample> {
        let fresh = row.growth != Growth::default() || matches!(row.drive, Drive::Idle(_) | Drive::Nothing);
        if !fresh {
            let gateway = self.running.remove(&kind).context("it does not run")?;
            let sample = self.windows(row, &gateway);
            self.running.insert(kind, gateway);
            return sample;
        }
        let more = More { services: row.growth.services, rules: row.growth.rules };
        let gateway = self.shop.start(kind, more)?;
        let sample = match row.drive {
            Drive::Idle(count) => self.idle(row, &gateway, count),
            Drive::Nothing => {
                self.engine.rest(Duration::from_secs(1))?;
                Ok(Sample { figure: stats::resident(&gateway.watch)? as f64 / 1048576.0, ..Sample::default() })
            }
            _ => {
                if row.growth.connections > 0 {
                    let call = self.call(row, &gateway)?;
                    let count = if self.flags.quick { 500 } else { row.growth.connections };
                    self.engine.hold(&call, count, PATIENCE)?;
                }
                self.windows(row, &gateway)
            }
        };
        drop(gateway);
        self.engine.drop_clients();
        self.engine.rest(Duration::from_millis(100))?;
        sample
    }

    fn idle(&mut self, row: &Row, gateway: &Gateway, count: usize) -> Result<Sample> {
        let count = if self.flags.quick { 500 } else { count };
        let call = self.call(row, gateway)?;
        self.engine.rest(Duration::from_millis(500))?;
        let before = stats::resident(&gateway.watch)?;
        self.engine.hold(&call, count, PATIENCE)?;
        self.engine.rest(Duration::from_secs(3))?;
        let grown = stats::resident(&gateway.watch)?.saturating_sub(before);
        Ok(Sample { figure: grown as f64 / 1024.0 / count as f64, ..Sample::default() })
    }

    /// Measures, and again while it was disturbed; the quietest counts.
    fn windows(&mut self, row: &Row, gateway: &Gateway) -> Result<Sample> {
        let call = self.call(row, gateway)?;
        let rate = |rate| Job { rate: Some(rate), streams: 0, ..self.job(&call, gateway, 16, 0) };
        let job = match row.drive {
            Drive::Closed(connections, streams) => self.job(&call, gateway, connections, streams),
            Drive::Handshakes { .. } => self.job(&call, gateway, 16, 0),
            Drive::Open { rate: requests, storm } if storm > 0.0 => {
                let alpn = call.talk.alpn();
                let config = self.pki.quick(alpn, false)?;
                let storming = Call { config, talk: Rc::new(Talk::Leave), ..call.clone() };
                Job { storm: Some((storming, storm)), ..rate(requests) }
            }
            Drive::Open { rate: requests, .. } => rate(requests),
            Drive::Half => {
                let most = match self.saturation.get(&gateway.kind) {
                    Some(most) => *most,
                    None => {
                        let outcome = self.engine.run(&self.job(&call, gateway, 16, 16))?;
                        let most = outcome.tally.completed as f64 / outcome.seconds;
                        self.saturation.insert(gateway.kind, most);
                        most
                    }
                };
                let rate = |rate| Job { rate: Some(rate), streams: 0, ..self.job(&call, gateway, 16, 0) };
                rate(most / 2.0)
            }
            Drive::Idle(_) | Drive::Nothing => bail!("a row of memory has no window"),
        };
        let mut best: Option<Outcome> = None;
        for _ in 0..AGAIN {
            let outcome = self.engine.run(&job)?;
            let disturbed = outcome.disturbed;
            if best.as_ref().is_none_or(|best| disturbed < best.disturbed) {
                best = Some(outcome);
            }
            if disturbed <= self.flags.tolerance {
                break;
            }
        }
        let outcome = best.context("no window")?;
        if let Some(why) = &outcome.tally.failure {
            bail!("{} failures, the first: {why}", outcome.tally.failed);
        }
        let sample = self.told(row, &outcome)?;
        if matches!(row.name, "h2-h2" | "h2-h1") && row.fits(gateway.kind) {
            let most = self.saturation.entry(gateway.kind).or_insert(0.0);
            *most = if row.name == "h2-h2" || gateway.kind == Kind::Nginx { sample.rate } else { *most };
        }
        self.saturation.retain(|_, most| *most > 0.0);
        Ok(sample)
    }

    fn job(&self, call: &Call, gateway: &Gateway, connections: usize, streams: usize) -> Job {
        let streams = if matches!(*call.talk, Talk::Leave | Talk::Drink | Talk::Pour) { 0 } else { streams };
        Job {
            call: call.clone(),
            connections,
            streams,
            rate: None,
            storm: None,
            warm: self.flags.window() / 4,
            window: self.flags.window(),
            watch: gateway.watch.clone(),
        }
    }

    fn told(&self, row: &Row, outcome: &Outcome) -> Result<Sample> {
        let tally = &outcome.tally;
        let done = if matches!(row.drive, Drive::Handshakes { .. }) { tally.handshakes } else { tally.completed };
        if matches!(row.drive, Drive::Handshakes { resumed: true }) && tally.resumed * 10 < done * 9 {
            bail!("{} of {done} handshakes were resumed", tally.resumed);
        }
        if matches!(row.drive, Drive::Handshakes { resumed: false }) && tally.resumed > 0 {
            bail!("{} handshakes were resumed", tally.resumed);
        }
        let micros = outcome.gateway * 1e6;
        let p99 = tally.latency.quantile(0.99);
        let units = match row.unit {
            Unit::Mib => row.mib(done, tally.bytes_down, tally.bytes_up),
            _ => done as f64,
        };
        if units <= 0.0 {
            bail!("nothing was done");
        }
        let (busy, own) = (outcome.gateway / outcome.seconds, outcome.own / outcome.seconds);
        let open = matches!(row.drive, Drive::Half | Drive::Open { .. });
        Ok(Sample {
            figure: if row.unit == Unit::P99 { p99 } else { micros / units },
            cpu: micros / units,
            rate: units / outcome.seconds,
            p50: tally.latency.quantile(0.5),
            p99,
            p999: tally.latency.quantile(0.999),
            busy,
            own,
            disturbed: outcome.disturbed,
            loader_bound: !open && own >= FULL && busy < FULL,
            quiet: outcome.disturbed <= self.flags.tolerance,
        })
    }
}

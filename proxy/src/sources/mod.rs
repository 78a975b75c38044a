//! Where the outside truth comes from: each source watches one thing, publishes whole values, and shows their age.
//!
//! **In** files, DNS, control planes; and the demands of the [`Directory`] for services that nobody has published.
//! **Out** what the stages read: services and their endpoints here, credentials and policy likewise. **Refuses** nothing:
//! a source that cannot learn anything new keeps what it said last and lets its age show.
//!
//! Sources run on the control runtime. The order in which they are given is their rank: a service that two of them know is
//! the first one's, and an unknown service is offered to each in turn until one takes it.

pub mod dns;
pub mod files;
pub mod fixed;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
#[cfg(feature = "linkerd")]
pub mod linkerd;
pub mod policy;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::route::{Claim, Demand, Demands, Directory, Service, State};

/// Something that may know where services are.
pub trait Source: Debug + Send + Sync {
    /// Its name: a log field, a metric label, a line of the admin page.
    fn name(&self) -> &'static str;

    /// Offers a service that somebody has asked for. Taking it (`true`) means to publish an answer, now or soon, and to
    /// keep it current for as long as the service lives. Must not block.
    fn offer(&self, service: &Arc<Service>) -> bool;

    /// How it is doing.
    fn report(&self) -> Report;

    /// What more there is to show of it, for `/state`.
    fn details(&self) -> Option<serde_json::Value> {
        None
    }
}

/// How a source is doing.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The source's name.
    pub name: &'static str,
    /// Since it last heard from what it watches; `None` before the first time, zero for what cannot grow old.
    pub age: Option<Duration>,
    /// How many services it keeps current.
    pub services: usize,
    /// How often it has failed to hear from what it watches.
    pub failures: u64,
}

/// How often unused services are forgotten.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// What nobody takes is missing; any source that learns of it later outranks this.
const NOBODY: Claim = Claim(u8::MAX - 1);

/// Gives each demanded service to the first of `sources` that takes it, and forgets unused ones. Ends when the directory
/// is gone; dropping the future stops it, and it may be begun again.
pub async fn run(directory: Arc<Directory>, demands: Arc<Mutex<Demands>>, sources: Vec<Arc<dyn Source>>) {
    let mut demands = demands.lock().await;
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            demand = demands.recv() => match demand {
                Some(Demand(service)) => answer(&service, &sources),
                None => return,
            },
            _ = sweep.tick() => {
                let forgotten = directory.sweep();
                if forgotten > 0 {
                    tracing::debug!(forgotten, "services that nobody has used for a while are forgotten");
                }
            }
        }
    }
}

fn answer(service: &Arc<Service>, sources: &[Arc<dyn Source>]) {
    match sources.iter().find(|source| source.offer(service)) {
        Some(source) => tracing::debug!(target = %service.target(), source = source.name(), "service taken"),
        None => {
            tracing::debug!(target = %service.target(), "no source knows the service");
            service.publish(NOBODY, false, State::Missing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixed::Fixed;
    use super::*;
    use crate::addr::Target;
    use crate::authorise::Admitted;
    use crate::endpoint::{Endpoint, Endpoints};
    use crate::route::{Published, Settings};

    fn row(name: &str) -> Published {
        let endpoint = Endpoint::new(([10, 0, 0, 1], 80).into());
        let target = Target::parse(name, 80).expect("a target");
        Published { target, exported: true, endpoints: Arc::new(Endpoints { list: vec![endpoint] }) }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_source_that_knows_a_service_answers_for_it() {
        let settings = Settings { suffixes: vec![".".parse().expect("all")], ..Settings::default() };
        let (directory, demands) = Directory::new(settings);
        let one = Arc::new(Fixed::new(Claim(0), vec![row("web.ns")]));
        let two = Arc::new(Fixed::new(Claim(1), vec![row("web.ns"), row("db.ns")]));
        let sources: Vec<Arc<dyn Source>> = vec![one, two];
        let find = async |name: &str| {
            let target = Target::parse(name, 80).expect("a target");
            directory.resolve(&Admitted::for_tests(target)).await.map(|(service, _)| service.exported())
        };
        tokio::select! {
            () = run(Arc::clone(&directory), Arc::new(Mutex::new(demands)), sources) => panic!("runs for ever"),
            () = async {
                assert_eq!(find("web.ns").await, Ok(true));
                assert_eq!(find("db.ns").await, Ok(true));
                assert_eq!(find("nobody.ns").await, Err(crate::route::Error::UnknownService));
            } => {}
        }
    }
}

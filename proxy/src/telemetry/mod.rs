//! What happened, for those who watch: metrics, the access log, the process's own log.
//!
//! **In** events and closed records from the workers, through [`Observer`]. **Out** a page of metrics, lines of access
//! log, lines of log. **Refuses** to be in the way: every queue is bounded, what does not fit is dropped and counted, and
//! no worker waits for a scrape, a disk or another worker.
//!
//! - [`metrics`] counters, kept per worker and summed when somebody looks.
//! - [`access_log`] one line per closed record.
//! - [`recent`] the refusals of late, for `/state`.
//! - `traces` spans to an OpenTelemetry collector, in builds with the feature `otlp`.
//! - [`traffic`] who spoke with whom, as values for the admin page.
//! - [`logs`] the set-up of `tracing`, its level at run time, and the limit on lines that say the same.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use crate::record::{Event, Observer, Record};

pub mod access_log;
mod encode;
mod escape;
mod histogram;
mod labels;
pub mod lines;
mod linkerd;
pub mod logs;
pub mod metrics;
mod process;
pub mod recent;
pub mod shard;
#[cfg(feature = "otlp")]
pub mod traces;
pub mod traffic;
pub mod watch;

/// Several observers as one, told in order. One that panics is passed over, that once: counting must not end what is
/// counted, and where a record is closed while a panic unwinds, a second one would end the process.
#[derive(Clone, Debug, Default)]
pub struct Fan(Vec<Rc<dyn Observer>>);

impl Fan {
    /// Tells all of `observers`.
    pub fn new(observers: Vec<Rc<dyn Observer>>) -> Self {
        Self(observers)
    }

    fn tell(&self, tell: impl Fn(&dyn Observer)) {
        for observer in &self.0 {
            // The panic hook has said it all.
            let _ = catch_unwind(AssertUnwindSafe(|| tell(&**observer)));
        }
    }
}

impl Observer for Fan {
    fn event(&self, event: Event<'_>) {
        self.tell(|observer| observer.event(event));
    }

    fn closed(&self, record: &Record) {
        self.tell(|observer| observer.closed(record));
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Records to test with.

    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use crate::fault::Fault;
    use crate::identity::Identity;
    use crate::record::{Outcome, Peer, Protocol, Record, Request, Stage};

    pub(crate) fn peer(identity: &str) -> Arc<Peer> {
        Arc::new(Peer {
            addr: ([192, 0, 2, 7], 40123).into(),
            identity: Some(Identity::parse(identity).expect("an identity")),
            cluster: None,
            sni: Some("gateway.example".parse().expect("a name")),
        })
    }

    pub(crate) fn request(identity: &str, target: &str, status: u16) -> Record {
        let mut stages = [Duration::ZERO; 8];
        stages[Stage::Authorise as usize] = Duration::from_micros(3);
        stages[Stage::Relay as usize] = Duration::from_millis(7);
        Record {
            started: SystemTime::UNIX_EPOCH + Duration::from_micros(1_780_000_000_123_456),
            duration: Duration::from_millis(7),
            peer: peer(identity),
            protocol: Some(Protocol::Http2),
            target: Some(crate::addr::Target::parse(target, 80).expect("a target")),
            endpoint: Some(([10, 0, 0, 1], 8080).into()),
            rule: Some("shop".into()),
            bytes_received: 10,
            bytes_sent: 2000,
            stages,
            request: Some(Box::new(Request {
                method: http::Method::GET,
                path: "/cart?token=1".into(),
                status: Some(status),
                grpc_status: None,
                user_agent: Some(http::HeaderValue::from_static("curl/8")),
                traceparent: None,
                span: None,
                retries: 0,
                route: None,
            })),
            outcome: Outcome::Served,
            audit: None,
            detail: None,
        }
    }

    pub(crate) fn refused(stage: Stage, fault: Fault, code: &'static str) -> Record {
        let mut record = request("web.shop.serviceaccount.identity.west", "secret.ns:80", 403);
        record.endpoint = None;
        record.outcome = Outcome::Refused { stage, fault, code };
        record
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[derive(Debug, Default)]
    struct Counting(Cell<u32>);

    impl Observer for Counting {
        fn event(&self, _: Event<'_>) {
            self.0.set(self.0.get() + 1);
        }

        fn closed(&self, _: &Record) {
            self.0.set(self.0.get() + 100);
        }
    }

    #[test]
    fn a_fan_tells_all() {
        let observers: Vec<_> = (0..3).map(|_| Rc::new(Counting::default())).collect();
        let fan = Fan::new(observers.iter().map(|o| Rc::clone(o) as Rc<dyn Observer>).collect());
        fan.event(Event::Panicked);
        fan.closed(&samples::request("a.b", "web.ns", 200));
        assert!(observers.iter().all(|o| o.0.get() == 101));
    }

    #[derive(Debug)]
    struct Broken;

    impl Observer for Broken {
        fn event(&self, _: Event<'_>) {
            panic!("an observer's bug");
        }

        fn closed(&self, _: &Record) {
            panic!("an observer's bug");
        }
    }

    /// Closes a record when it is dropped, as a request does.
    struct Closing(Fan);

    impl Drop for Closing {
        fn drop(&mut self) {
            self.0.closed(&samples::request("a.b", "web.ns", 200));
        }
    }

    #[test]
    fn one_that_panics_keeps_nothing_from_the_others_and_does_not_end_the_process() {
        let last = Rc::new(Counting::default());
        let fan = Fan::new(vec![Rc::new(Broken), Rc::clone(&last) as Rc<dyn Observer>]);
        fan.event(Event::Panicked);
        let closing = Closing(fan);
        let unwound = catch_unwind(AssertUnwindSafe(move || {
            let _closing = closing;
            panic!("while a record is open");
        }));
        assert!(unwound.is_err());
        assert_eq!(last.0.get(), 101);
    }
}

//! Whether the process should be sent traffic: the sum of its parts, and whether it is about to leave.
//!
//! **In** each part's word (`identity`, `discovery`, `listeners`, ...): ready, or not and why; and the announcement of a
//! drain. **Out** [`Health::ready`]: yes, or the reasons why not. A part that has registered and not yet spoken is not
//! ready, so forgetting to speak keeps traffic away rather than attracting it. A drain says no at once and for good:
//! the process never comes back from it. Readers take no lock.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Serialize;

/// The health of the process.
#[derive(Debug, Default)]
pub struct Health {
    state: ArcSwap<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    draining: bool,
    /// In order of registration. `None`: ready.
    parts: Vec<(Cow<'static, str>, Option<Cow<'static, str>>)>,
}

impl Health {
    /// A health without parts: ready until one registers.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Registers a part, not ready for the given reason until it says otherwise. A name already registered means the
    /// same part again: it falls back to not ready.
    pub fn part(
        self: &Arc<Self>,
        name: impl Into<Cow<'static, str>>,
        waiting_for: impl Into<Cow<'static, str>>,
    ) -> Part {
        let part = Part { health: Arc::clone(self), name: name.into() };
        part.not_ready(waiting_for);
        part
    }

    /// From now on the answer is no.
    pub fn drain(&self) {
        self.state.rcu(|state| State { draining: true, ..State::clone(state) });
    }

    /// Whether a drain was announced.
    pub fn is_draining(&self) -> bool {
        self.state.load().draining
    }

    /// Whether the process should be sent traffic, and why not.
    pub fn ready(&self) -> Result<(), Reasons> {
        let state = self.state.load();
        let waiting = || state.parts.iter().filter_map(|(name, reason)| Some((name, reason.as_ref()?)));
        if !state.draining && waiting().next().is_none() {
            return Ok(());
        }
        let parts = waiting().map(|(name, reason)| Reason { part: name.clone(), reason: reason.clone() }).collect();
        Err(Reasons { draining: state.draining, parts })
    }

    fn set(&self, name: &str, reason: Option<&Cow<'static, str>>) {
        self.state.rcu(|state| {
            let mut state = State::clone(state);
            match state.parts.iter_mut().find(|(known, _)| **known == *name) {
                Some((_, now)) => *now = reason.cloned(),
                None => state.parts.push((name.to_owned().into(), reason.cloned())),
            }
            state
        });
    }
}

/// One part's voice in the health of the process. Dropping it leaves its last word standing.
#[derive(Debug)]
pub struct Part {
    health: Arc<Health>,
    name: Cow<'static, str>,
}

impl Part {
    /// The part can work.
    pub fn ready(&self) {
        self.health.set(&self.name, None);
    }

    /// The part cannot work, in a few words that a person understands.
    pub fn not_ready(&self, reason: impl Into<Cow<'static, str>>) {
        self.health.set(&self.name, Some(&reason.into()));
    }
}

/// Why the process is not ready.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Reasons {
    /// The process is about to leave.
    pub draining: bool,
    /// The parts that are not ready.
    pub parts: Vec<Reason>,
}

/// One part that is not ready.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Reason {
    /// The part's name.
    pub part: Cow<'static, str>,
    /// Its reason.
    pub reason: Cow<'static, str>,
}

impl fmt::Display for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if self.draining {
            f.write_str("draining")?;
            separator = "; ";
        }
        for Reason { part, reason } in &self.parts {
            write!(f, "{separator}{part}: {reason}")?;
            separator = "; ";
        }
        Ok(())
    }
}

impl std::error::Error for Reasons {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_and_no_drain_make_ready() {
        let health = Health::new();
        assert!(health.ready().is_ok());
        let identity = health.part("identity", "no certificate yet");
        let listeners = health.part("listeners", "not bound");
        let said = |health: &Health| health.ready().map_err(|reasons| reasons.to_string());
        assert_eq!(said(&health), Err("identity: no certificate yet; listeners: not bound".to_owned()));
        identity.ready();
        listeners.ready();
        assert_eq!(said(&health), Ok(()));
        identity.not_ready("expired");
        assert_eq!(said(&health), Err("identity: expired".to_owned()));
        identity.ready();
        health.drain();
        assert!(health.is_draining());
        assert_eq!(said(&health), Err("draining".to_owned()));
        identity.not_ready("expired");
        assert_eq!(said(&health), Err("draining; identity: expired".to_owned()));
    }

    #[test]
    fn a_name_registered_twice_is_one_part() {
        let health = Health::new();
        health.part("discovery", "first").ready();
        let again = health.part("discovery", "second");
        assert_eq!(health.ready().map_err(|r| r.parts.len()), Err(1));
        again.ready();
        assert!(health.ready().is_ok());
    }

    #[test]
    fn parts_speaking_at_once_lose_no_word() {
        let health = Health::new();
        let parts: Vec<_> = (0..8).map(|n| health.part(format!("part-{n}"), "starting")).collect();
        std::thread::scope(|scope| {
            for part in &parts {
                scope.spawn(move || {
                    for _ in 0..200 {
                        part.not_ready("again");
                        part.ready();
                    }
                });
            }
        });
        assert!(health.ready().is_ok());
    }
}

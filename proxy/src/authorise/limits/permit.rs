//! The right to go on: what each scope has counted for one request or connection, given back when it ends.
//!
//! **In** one scope after another, from the narrowest to the widest. **Out** a [`Permit`]. **Refuses** with [`Limited`] at the first
//! scope that is full, after taking back what the narrower ones have counted; or, where that scope is only audited,
//! writes down what would have been said and goes on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::cell::{Bounds, Left, Rate, enter};
use super::table::Pin;
use super::{Grant, Limit, Limited, Scope};

/// What is to be counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// An opaque or upgraded connection.
    Connection,
    /// A request.
    Request,
    /// A connection that has just been let in, of whatever protocol.
    Session,
}

/// How a request stands against the rate with the least left: for the `ratelimit` fields of a response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Standing {
    /// Whose count it is.
    pub scope: Scope,
    /// Requests per second.
    pub per_second: u32,
    /// Requests that may come at once.
    pub burst: u32,
    /// Requests that may come now.
    pub remaining: u32,
    /// When all of the burst may come again.
    pub full_after: Duration,
}

/// What a `concurrency` or `connections` refusal guesses as the time to try again.
const RETRY_GUESS: Duration = Duration::from_secs(1);

/// The right to go on, held while the request or connection lives. Gives back what it holds when dropped.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    epoch: Instant,
    now: u64,
    /// One for each scope that has limits.
    counted: [Option<Counted>; 6],
    standing: Option<Standing>,
    /// In audit mode: what enforcing would have said.
    pub would_refuse: Option<Limited>,
}

/// What one scope has counted.
#[derive(Debug)]
struct Counted {
    pin: Pin,
    bytes_per_second: Option<u64>,
    request: bool,
    connection: bool,
    /// To be taken back if a wider scope refuses.
    rate: Option<Rate>,
}

impl Permit {
    pub(super) fn new(epoch: Instant, now: Instant) -> Self {
        let counted = [const { None }; 6];
        Self { epoch, now: since(epoch, now), counted, standing: None, would_refuse: None }
    }

    /// When it was asked for, in nanoseconds.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// How long to pause after moving `bytes`, so that every rate is kept. Zero where nothing paces.
    pub fn pause(&self, bytes: u64, now: Instant) -> Duration {
        let now = since(self.epoch, now);
        self.counted
            .iter()
            .flatten()
            .filter_map(|counted| Some(counted.pin.cell().pause(counted.bytes_per_second?, bytes, now)))
            .max()
            .unwrap_or_default()
    }

    /// Whether [`pause`](Self::pause) can ever be other than zero.
    pub fn paces(&self) -> bool {
        self.counted.iter().flatten().any(|counted| counted.bytes_per_second.is_some())
    }

    /// How the request stands against the rate with the least left.
    pub fn standing(&self) -> Option<Standing> {
        self.standing
    }

    /// Counts in one scope. On an error, what was counted before is taken back as the permit is dropped.
    pub(super) fn count(
        &mut self,
        kind: Kind,
        scope: Scope,
        bounds: Bounds,
        pin: Pin,
        enforce: bool,
        grant: Option<&Grant>,
    ) -> Result<(), Limited> {
        let cell = pin.cell();
        let mut counted = (None, false, false);
        let mut over = None;
        if kind == Kind::Request {
            if let Some(rate) = bounds.rate {
                match cell.count(&rate, self.now) {
                    Ok(left) => {
                        counted.0 = Some(rate);
                        self.stand(scope, rate, left);
                    }
                    Err(retry_after) => over = Some((Limit::Rate, rate.per_second, retry_after)),
                }
            }
            if let Some(most) = bounds.requests {
                counted.1 = enter(&cell.requests, most);
                if !counted.1 {
                    over = over.or(Some((Limit::Concurrency, most, RETRY_GUESS)));
                }
            }
        } else if let Some(most) = bounds.connections {
            // Sessions count for the client and for all, connections for the rest: none is counted twice.
            let wide = matches!(scope, Scope::All | Scope::Client);
            if wide == (kind == Kind::Session) {
                counted.2 = enter(&cell.connections, most);
                if !counted.2 {
                    over = Some((Limit::Connections, most, RETRY_GUESS));
                }
            }
        }
        let (rate, request, connection) = counted;
        let bytes_per_second = if kind == Kind::Session { None } else { bounds.bytes_per_second };
        let place = self.counted.iter_mut().find(|place| place.is_none()).expect("there are six scopes");
        *place = Some(Counted { pin, bytes_per_second, request, connection, rate });
        let Some((limit, most, retry_after)) = over else { return Ok(()) };
        let limited = Limited { limit, scope, most, retry_after, rule: grant.map(|grant| Arc::clone(&grant.rule)) };
        if enforce {
            self.take_back();
            return Err(limited);
        }
        self.would_refuse.get_or_insert(limited);
        Ok(())
    }

    fn stand(&mut self, scope: Scope, rate: Rate, left: Left) {
        let standing = Standing {
            scope,
            per_second: rate.per_second,
            burst: rate.burst,
            remaining: left.requests,
            full_after: left.full_after,
        };
        if self.standing.is_none_or(|least| standing.remaining < least.remaining) {
            self.standing = Some(standing);
        }
    }

    fn take_back(&mut self) {
        for counted in self.counted.iter_mut().flatten() {
            if let Some(rate) = counted.rate.take() {
                counted.pin.cell().uncount(&rate);
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        for counted in self.counted.iter().flatten() {
            let cell = counted.pin.cell();
            if counted.request {
                cell.requests.fetch_sub(1, Ordering::AcqRel);
            }
            if counted.connection {
                cell.connections.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
}

/// Nanoseconds since the counting began, of which there is room for 584 years.
fn since(epoch: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch).as_nanos()).unwrap_or(u64::MAX / 2)
}

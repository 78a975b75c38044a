//! Bytes moved between two streams, both ways, until both are done.
//!
//! **In** a client's stream and an upstream's. **Out** how many bytes went each way, and why it ended. **Refuses** to go
//! on after too long a silence, or for too long at all.
//!
//! The two directions are independent: one side's end is passed on as an end (a half-close: FIN, and `close_notify` under
//! TLS) while the other direction goes on for as long as it likes. They are joined, never raced, because a race would cut
//! off the answer of a peer that says all it has to say and then listens.
//!
//! - `lane` is one direction.
//! - `pump` joins two of them with one timer.

mod lane;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use self::lane::{End, Lane};
use crate::fault::{Fault, Refusal};

/// How long a relayed connection may last.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// It ends after this long without a byte either way. One hour: dead peers are found by TCP keepalive within a minute,
    /// so this only collects what both sides have forgotten, and databases' pools rest their connections for long.
    pub idle_timeout: Option<Duration>,
    /// It ends after this long whatever happens. Off: nothing is wrong with a connection that works.
    pub total_timeout: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { idle_timeout: Some(Duration::from_secs(3600)), total_timeout: None }
    }
}

/// Bytes moved so far, readable from elsewhere while they move. Written by one relay only.
#[derive(Debug, Default)]
pub struct Counters {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Counters {
    /// Bytes from the client that the upstream has taken.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes from the upstream that the client has taken.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// How a relay ended.
#[derive(Debug)]
pub struct Ended {
    /// Bytes from the client that the upstream has taken.
    pub received: u64,
    /// Bytes from the upstream that the client has taken.
    pub sent: u64,
    /// `Ok` where both sides said that they were done.
    pub result: Result<(), Error>,
}

/// Why a relay ended before both sides were done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client's connection broke.
    #[error("the client's connection broke")]
    ClientReset(#[source] io::Error),
    /// Nothing moved for too long.
    #[error("no byte went either way for too long")]
    IdleTimeout,
    /// It lasted for as long as it may.
    #[error("the connection lasted for as long as it may")]
    TotalTimeout,
    /// The upstream's connection broke.
    #[error("the upstream's connection broke")]
    UpstreamReset(#[source] io::Error),
}

impl Refusal for Error {
    fn fault(&self) -> Fault {
        match self {
            Self::ClientReset(_) | Self::IdleTimeout => Fault::Client,
            Self::TotalTimeout => Fault::Policy,
            Self::UpstreamReset(_) => Fault::Upstream,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::ClientReset(_) => "relay.client_reset",
            Self::IdleTimeout => "relay.idle_timeout",
            Self::TotalTimeout => "relay.total_timeout",
            Self::UpstreamReset(_) => "relay.upstream_reset",
        }
    }
}

/// Moves bytes both ways until both sides are done, one of them breaks, or time is up. Then both streams are dropped.
///
/// Dropping the future drops both streams with whatever was under way.
pub async fn pump<C, U>(client: C, upstream: U, settings: &Settings, counters: &Counters) -> Ended
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut both = Both { client, upstream, up: Lane::default(), down: Lane::default(), broken: None, counters };
    let mut timer = pin!(Timer::new(settings));
    let result = poll_fn(|cx| {
        let moved = counters.received().wrapping_add(counters.sent());
        let polled = both.poll(cx);
        if polled.is_ready() {
            return polled;
        }
        let moves = counters.received().wrapping_add(counters.sent()) != moved;
        timer.as_mut().poll(cx, moves, || both.rest()).map(Err)
    })
    .await;
    Ended { received: counters.received(), sent: counters.sent(), result }
}

struct Both<'a, C, U> {
    client: C,
    upstream: U,
    up: Lane,
    down: Lane,
    /// A write that failed: its lane has ended, the other has the rest of what that side had to say.
    broken: Option<Error>,
    counters: &'a Counters,
}

impl<C, U> Both<'_, C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let up = self.up.poll(cx, &mut self.client, &mut self.upstream, &self.counters.received);
        if let Poll::Ready(end) = up {
            match end {
                End::Done => {}
                // Whoever cannot be read any more cannot be written to either: nothing is left to wait for.
                End::Read(error) => return Poll::Ready(Err(Error::ClientReset(error))),
                End::Write(error) => self.broken = Some(Error::UpstreamReset(error)),
            }
        }
        let down = self.down.poll(cx, &mut self.upstream, &mut self.client, &self.counters.sent);
        if let Poll::Ready(end) = down {
            match end {
                End::Done => {}
                End::Read(error) => return Poll::Ready(Err(Error::UpstreamReset(error))),
                End::Write(error) => self.broken = Some(Error::ClientReset(error)),
            }
        }
        if self.up.is_over() && self.down.is_over() {
            return Poll::Ready(self.broken.take().map_or(Ok(()), Err));
        }
        Poll::Pending
    }

    fn rest(&mut self) {
        self.up.rest();
        self.down.rest();
    }
}

/// Both timeouts with one timer. It never runs faster than a fraction of the idle timeout, and is not touched when bytes
/// move: a reset per read would cost more than many a read.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    tick: Option<Duration>,
    ends: Option<Instant>,
    moved: bool,
    quiet: u32,
}

/// How many ticks make the idle timeout: silence is cut off after 4 to 5 of them.
const TICKS: u32 = 4;
/// A timer that is never to fire; tokio's take about two years.
const NEVER: Duration = Duration::from_secs(86_400 * 365);

impl Timer {
    fn new(settings: &Settings) -> Self {
        let now = Instant::now();
        let mut timer = Self {
            sleep: Box::pin(tokio::time::sleep_until(now)),
            tick: settings.idle_timeout.map(|idle| (idle / TICKS).max(Duration::from_millis(1))),
            ends: settings.total_timeout.and_then(|total| now.checked_add(total)),
            moved: true,
            quiet: 0,
        };
        timer.arm(now);
        timer
    }

    fn arm(&mut self, now: Instant) {
        let next = now.checked_add(self.tick.unwrap_or(NEVER)).unwrap_or(now + NEVER);
        self.sleep.as_mut().reset(self.ends.map_or(next, |ends| ends.min(next)));
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>, moved: bool, mut on_quiet: impl FnMut()) -> Poll<Error> {
        self.moved |= moved;
        while self.sleep.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.ends.is_some_and(|ends| ends <= now) {
                return Poll::Ready(Error::TotalTimeout);
            }
            if std::mem::take(&mut self.moved) {
                self.quiet = 0;
            } else {
                self.quiet += 1;
                on_quiet();
                if self.tick.is_some() && self.quiet >= TICKS {
                    return Poll::Ready(Error::IdleTimeout);
                }
            }
            self.arm(now);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;

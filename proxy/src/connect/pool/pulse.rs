//! Whether an HTTP/2 endpoint is still there: a PING now and then, and a limit for its answer.
//!
//! **In** a connection's PINGs, and whether streams are open on it. **Out** the moment when it is given up. Without it a
//! connection whose other side has vanished is noticed by the kernel's timeouts only. (RFC 9113 §6.7.)

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// What a connection's driver and its requests tell each other.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// Streams that are open.
    pub(super) streams: Cell<usize>,
    /// It was given up: a PING was not answered.
    pub(super) lost: Cell<bool>,
}

/// How often is asked, and for how long the answer is awaited.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rhythm {
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
    /// Asks while no stream is open, too.
    pub(super) while_idle: bool,
}

/// The questions to one endpoint.
#[derive(Debug)]
pub(super) struct Watch {
    rhythm: Rhythm,
    pings: PingPong,
    clock: Pin<Box<Sleep>>,
    asked: bool,
}

impl Watch {
    pub(super) fn new(rhythm: Rhythm, pings: PingPong) -> Self {
        Self { rhythm, pings, clock: Box::pin(sleep(rhythm.interval)), asked: false }
    }

    /// Ready when the endpoint has not answered in time.
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>, pulse: &Pulse) -> Poll<()> {
        loop {
            if self.asked && self.pings.poll_pong(cx).is_ready() {
                self.asked = false;
                self.clock.as_mut().reset(Instant::now() + self.rhythm.interval);
            }
            ready!(self.clock.as_mut().poll(cx));
            if self.asked {
                pulse.lost.set(true);
                return Poll::Ready(());
            }
            let ask = self.rhythm.while_idle || pulse.streams.get() > 0;
            self.asked = ask && self.pings.send_ping(Ping::opaque()).is_ok();
            let next = if self.asked { self.rhythm.timeout } else { self.rhythm.interval };
            self.clock.as_mut().reset(Instant::now() + next);
        }
    }
}

//! An HTTP/2 stream whose client may send so many resets and control frames a second, and is read no faster than that.
//!
//! h2 ends a connection for the worst of floods (streams reset before they were accepted, resets it had to send itself,
//! CONTINUATION and empty DATA without end) but takes any number of PING, SETTINGS, PRIORITY and WINDOW_UPDATE frames and of
//! streams reset after they were accepted, each of which costs work. Here they are counted as they are read. Beyond the
//! limit the *reading* rests: an attacker's work is done at the rate that was allowed, an honest client with a bad moment
//! loses no request, and neither pays, or costs, another handshake. Within the limit nothing but counting happens.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::Settings;
use crate::record::Peer;
use crate::wire::http2_frames::Frames;

/// The longest single rest. Below `http.keepalive_timeout`, as a client that is not read cannot show that it lives.
const MAX_REST: Duration = Duration::from_secs(1);

/// Each written kibibyte explains one WINDOW_UPDATE, and each write two frames more: clients that acknowledge every few
/// kilobytes, or every message, are slow readers of nothing.
const BYTES_PER_CREDIT: usize = 1024;
const CREDITS_PER_WRITE: u32 = 2;
/// What was written is forgotten beyond this many frames: an old download explains no flood.
const MAX_CREDIT: u32 = 16 * 1024;

/// When the header block that is being read began; shared with the session's clock. (A lock, as for HTTP/1's guard: hyper
/// wants streams to be `Send`. It is touched only when a read ends within a head.)
#[derive(Clone, Debug, Default)]
pub(super) struct HeadClock(Arc<Mutex<Option<Instant>>>);

impl HeadClock {
    pub(super) fn since(&self) -> Option<Instant> {
        *self.0.lock()
    }
}

/// So many a second, with as many at once.
#[derive(Debug)]
struct Bucket {
    /// 0: no limit.
    rate: u32,
    level: u32,
    /// When `level` was last brought up to date.
    since: Instant,
}

impl Bucket {
    fn new(rate: u32) -> Self {
        Self { rate, level: 0, since: Instant::now() }
    }

    /// Takes in so many; says how long to rest. The clock is read only when a second's worth has come.
    fn add(&mut self, frames: u32) -> Duration {
        self.level = self.level.saturating_add(frames);
        if self.rate == 0 || self.level <= self.rate {
            return Duration::ZERO;
        }
        let passed = self.since.elapsed();
        let drained = u32::try_from(passed.as_micros() * u128::from(self.rate) / 1_000_000).unwrap_or(u32::MAX);
        if drained >= self.level {
            self.since += passed;
        } else {
            // By whole frames only: what is left of the time counts for the next.
            self.since += Duration::from_secs(drained.into()) / self.rate;
        }
        self.level = self.level.saturating_sub(drained);
        let over = self.level.saturating_sub(self.rate);
        Duration::from_secs_f64(f64::from(over) / f64::from(self.rate)).min(MAX_REST)
    }
}

/// The stream.
#[derive(Debug)]
pub(super) struct Metered<S> {
    stream: S,
    frames: Frames,
    resets: Bucket,
    control: Bucket,
    credit: u32,
    head: HeadClock,
    /// Of which head that clock tells, by its number.
    in_head: Option<u64>,
    rest: Option<Pin<Box<Sleep>>>,
    peer: Arc<Peer>,
    told: bool,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, settings: &Settings, peer: Arc<Peer>) -> Self {
        Self {
            stream,
            frames: Frames::default(),
            resets: Bucket::new(settings.max_resets),
            control: Bucket::new(settings.max_control_frames),
            credit: 0,
            head: HeadClock::default(),
            in_head: None,
            rest: None,
            peer,
            told: false,
        }
    }

    pub(super) fn head(&self) -> HeadClock {
        self.head.clone()
    }

    /// Counts what was read, and rests where that was too much.
    fn look(&mut self, fresh: &[u8]) {
        let counts = self.frames.feed(fresh);
        // By number: a busy client's reads may all end within some head.
        let in_head = self.frames.in_head().then(|| self.frames.begun());
        if in_head != self.in_head {
            self.in_head = in_head;
            *self.head.0.lock() = in_head.map(|_| Instant::now());
        }
        let explained = self.credit.min(counts.control);
        self.credit -= explained;
        let rest = self.resets.add(counts.resets).max(self.control.add(counts.control - explained));
        if !rest.is_zero() {
            self.slow_down(rest);
        }
    }

    #[cold]
    fn slow_down(&mut self, rest: Duration) {
        self.rest = Some(Box::pin(sleep(rest)));
        if !std::mem::replace(&mut self.told, true) {
            let client = self.peer.identity.as_ref().map(crate::identity::Identity::as_str);
            tracing::info!(
                stage = "relay",
                client,
                client_addr = %self.peer.addr,
                "a client sends more resets or control frames than http.max_resets or http.max_control_frames: it is read more slowly"
            );
        }
    }

    fn wrote(&mut self, bytes: usize) {
        let credit = u32::try_from(bytes / BYTES_PER_CREDIT).unwrap_or(MAX_CREDIT);
        self.credit = self.credit.saturating_add(credit).saturating_add(CREDITS_PER_WRITE).min(MAX_CREDIT);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(cx));
            self.rest = None;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.look(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.wrote(bytes);
        Poll::Ready(Ok(bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.wrote(bytes);
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    const RST_STREAM: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];

    /// How long it takes to read so many frames, in seconds.
    async fn takes(frame: &[u8], frames: usize, settings: &Settings, writes: usize) -> f64 {
        let (near, mut far) = duplex(4 << 20);
        let addr = ([192, 0, 2, 1], 1).into();
        let peer = Arc::new(Peer { addr, identity: None, cluster: None, sni: None });
        let mut metered = Metered::new(near, settings, peer);
        for _ in 0..writes {
            metered.write_all(&[0; 1024]).await.unwrap();
        }
        far.write_all(&[PREFACE, &frame.repeat(frames)].concat()).await.unwrap();
        let began = Instant::now();
        let mut all = vec![0; PREFACE.len()];
        metered.read_exact(&mut all).await.unwrap();
        let mut piece = vec![0; frame.len() * 100];
        for _ in 0..frames / 100 {
            metered.read_exact(&mut piece).await.unwrap();
        }
        began.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_read_at_the_rate_that_is_allowed() {
        let settings = Settings { max_resets: 500, max_control_frames: 1000, ..Settings::default() };
        let quick = takes(PING, 1000, &settings, 0).await;
        assert!(quick < 0.01, "a second's worth at once: {quick}");
        let pings = takes(PING, 5000, &settings, 0).await;
        assert!((3.5..4.5).contains(&pings), "{pings}");
        let resets = takes(RST_STREAM, 2500, &settings, 0).await;
        assert!((3.5..4.5).contains(&resets), "{resets}");
        let off = Settings { max_resets: 0, max_control_frames: 0, ..Settings::default() };
        let free = takes(PING, 100_000, &off, 0).await;
        assert!(free < 0.01, "{free}");
    }

    #[tokio::test(start_paused = true)]
    async fn little_by_little_drains_too() {
        let mut bucket = Bucket::new(1000);
        assert!(!bucket.add(1500).is_zero());
        for _ in 0..4000 {
            tokio::time::advance(Duration::from_micros(500)).await;
            bucket.add(0);
        }
        assert_eq!((bucket.level, bucket.add(1000)), (1000, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_written_explains_what_acknowledges_it() {
        let settings = Settings { max_control_frames: 1000, ..Settings::default() };
        let explained = takes(PING, 3000, &settings, 700).await;
        assert!(explained < 0.01, "700 writes of a kibibyte explain 2100 frames: {explained}");
    }
}

//! One direction of a relay.
//!
//! Bytes are read into a buffer that all relays of a worker share, and written from it at once; only what the writer does
//! not take is copied into a buffer of the lane's own, which it gives back when it is empty. So an idle connection holds
//! no buffer, a busy one whose peer keeps up holds none either, and only a slow reader costs memory: at most
//! [`MOST_BYTES`] a lane.
//!
//! A lane asks for 4 KiB at first and for 64 KiB once a read has filled that: small exchanges keep what a slow reader can
//! pile up small, bulk gets four TLS records a turn. After a silence it asks for little again.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a lane asks for at first.
const FIRST_BYTES: usize = 4 * 1024;
/// What it asks for once that was filled, and the most that it can hold.
const MOST_BYTES: usize = 64 * 1024;
/// Reads in one turn, so that a fast pair cannot starve the worker's other connections. (Tokio's own budget does not count
/// what a TLS stream has already decrypted.)
const TURN_READS: usize = 32;

thread_local! {
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; MOST_BYTES].into_boxed_slice());
}

/// How a lane ended.
#[derive(Debug)]
pub(super) enum End {
    /// The reader said that it was done, and the writer was told so.
    Done,
    /// The reader broke.
    Read(io::Error),
    /// The writer broke.
    Write(io::Error),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Moving,
    /// The reader is done: once all is written, the writer is told.
    Ending,
    Over,
}

#[derive(Debug)]
pub(super) struct Lane {
    phase: Phase,
    /// Read and not yet taken by the writer, from `at` on.
    left: Vec<u8>,
    at: usize,
    ask: usize,
    /// Something was written since the last flush.
    unflushed: bool,
}

impl Default for Lane {
    fn default() -> Self {
        Self { phase: Phase::Moving, left: Vec::new(), at: 0, ask: FIRST_BYTES, unflushed: false }
    }
}

impl Lane {
    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// There was silence for a while.
    pub(super) fn rest(&mut self) {
        self.ask = FIRST_BYTES;
    }

    /// Moves what can be moved. Pending for ever once it has ended.
    pub(super) fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        count: &AtomicU64,
    ) -> Poll<End>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.is_over() {
            return Poll::Pending;
        }
        let polled = SHARED.with(|shared| match shared.try_borrow_mut() {
            Ok(mut shared) => self.turn(cx, reader, writer, count, &mut shared),
            // A stream that relays within its own poll: it gets a buffer of its own.
            Err(_) => self.turn(cx, reader, writer, count, &mut [0; FIRST_BYTES]),
        });
        if polled.is_ready() {
            self.phase = Phase::Over;
            self.left = Vec::new();
        }
        polled
    }

    fn turn<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        count: &AtomicU64,
        buffer: &mut [u8],
    ) -> Poll<End>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.at < self.left.len() {
            let left = std::mem::take(&mut self.left);
            let written = self.write(cx, writer, &left, self.at, count);
            self.left = left;
            match written {
                Ok(at) if at < self.left.len() => {
                    self.at = at;
                    return Poll::Pending;
                }
                Ok(_) => (self.left, self.at) = (Vec::new(), 0),
                Err(error) => return Poll::Ready(End::Write(error)),
            }
        }
        for _ in 0..TURN_READS {
            if self.phase == Phase::Ending {
                return end(ready!(Pin::new(&mut *writer).poll_shutdown(cx)));
            }
            let ask = self.ask.min(buffer.len());
            let mut read = ReadBuf::new(&mut buffer[..ask]);
            match Pin::new(&mut *reader).poll_read(cx, &mut read) {
                Poll::Pending => return self.flush(cx, writer),
                Poll::Ready(Err(error)) => {
                    // What came before it broke is not lost if the writer can help it.
                    let _ = self.flush(cx, writer);
                    return Poll::Ready(End::Read(error));
                }
                Poll::Ready(Ok(())) => {}
            }
            let filled = read.filled();
            match filled.len() {
                0 => self.phase = Phase::Ending,
                len if len == ask => self.ask = MOST_BYTES,
                _ => {}
            }
            match self.write(cx, writer, filled, 0, count) {
                Ok(at) if at < filled.len() => {
                    self.left.extend_from_slice(&filled[at..]);
                    return Poll::Pending;
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(End::Write(error)),
            }
        }
        cx.waker().wake_by_ref(); // there is more, but others want their turn
        Poll::Pending
    }

    /// Writes `bytes` from `at` on, as many as are taken. Answers up to where; less than all means that the writer will wake.
    fn write<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
        bytes: &[u8],
        mut at: usize,
        count: &AtomicU64,
    ) -> io::Result<usize> {
        while at < bytes.len() {
            match Pin::new(&mut *writer).poll_write(cx, &bytes[at..]) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(taken)) => {
                    at += taken;
                    self.unflushed = true;
                    // One writer: a load and a store, where `fetch_add` would lock the bus.
                    count.store(count.load(Ordering::Relaxed) + taken as u64, Ordering::Relaxed);
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        Ok(at)
    }

    /// Nothing to read now: what lies in the writer's own buffers must not wait for more.
    fn flush<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<End> {
        if self.unflushed {
            match Pin::new(writer).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Poll::Ready(End::Write(error)),
            }
        }
        Poll::Pending
    }
}

/// A writer that is gone by the time it is told has heard it already.
fn end(shutdown: io::Result<()>) -> Poll<End> {
    Poll::Ready(match shutdown {
        Err(error) if !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected) => {
            End::Write(error)
        }
        _ => End::Done,
    })
}

//! Lines to a file or a standard stream, without ever making the writer of a line wait.
//!
//! **In** whole lines. **Out** the same lines, in order of arrival, written by a thread of their own in batches.
//! **Refuses** (drops and counts) lines that find the queue full, and lines that the file system or the reader of a
//! pipe refuses. A full disk or a broken pipe ends nothing: writing is tried again every second, a file is opened
//! afresh for it. On request a file is opened anew by its name, for the rotation of logs.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Where lines go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Destination {
    /// Appended to the file of this name, made where absent with mode 0640.
    File(PathBuf),
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
}

/// A queue of lines and the thread behind it, which ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sender: SyncSender<Message>,
    progress: Arc<Progress>,
}

/// What the thread and its clients both see.
#[derive(Debug, Default)]
struct Progress {
    queued_bytes: AtomicUsize,
    written: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    reopen: AtomicBool,
    flushes: Mutex<Vec<SyncSender<()>>>,
}

enum Message {
    Line(Vec<u8>),
    /// Something besides lines wants attention.
    Wake,
}

/// What became of the lines so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Written.
    pub written: u64,
    /// Lost because the queue was full.
    pub dropped: u64,
    /// Lost because writing failed.
    pub failed: u64,
}

impl Lines {
    /// Opens the destination and starts the thread.
    pub fn start(thread_name: &str, destination: Destination, queue_lines: usize) -> io::Result<Self> {
        Self::start_with(thread_name, queue_lines, Box::new(move || open(&destination)))
    }

    fn start_with(thread_name: &str, queue_lines: usize, mut open: Opener) -> io::Result<Self> {
        let out = open()?;
        let (sender, receiver) = mpsc::sync_channel(queue_lines.max(1));
        let progress = Arc::new(Progress::default());
        let sink = Sink { out: Some(out), open, torn: false, retry_at: None, progress: Arc::clone(&progress) };
        std::thread::Builder::new().name(thread_name.to_owned()).spawn(move || sink.run(&receiver))?;
        Ok(Self(Arc::new(Shared { sender, progress })))
    }

    /// Queues one line, which ends in a newline and holds no other. Never waits.
    pub fn write(&self, line: Vec<u8>) {
        let progress = &*self.0.progress;
        let bytes = line.len();
        let queued = progress.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if queued.saturating_add(bytes) > MAX_QUEUED_BYTES || self.0.sender.try_send(Message::Line(line)).is_err() {
            progress.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            progress.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has the destination opened anew before the next line is written.
    pub fn reopen(&self) {
        self.0.progress.reopen.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Waits until what is queued has been written, or given up; at most for `patience`. Blocks the thread: not for
    /// workers. Tells whether it is done.
    pub fn flush(&self, patience: Duration) -> bool {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.0.progress.flushes.lock().push(sender);
        self.wake();
        receiver.recv_timeout(patience).is_ok()
    }

    /// What became of the lines so far.
    pub fn counts(&self) -> Counts {
        let progress = &*self.0.progress;
        Counts {
            written: progress.written.load(Ordering::Relaxed),
            dropped: progress.dropped.load(Ordering::Relaxed),
            failed: progress.failed.load(Ordering::Relaxed),
        }
    }

    fn wake(&self) {
        // A full queue wakes the thread as well.
        let _ = self.0.sender.try_send(Message::Wake);
    }
}

/// How much may wait, in bytes: what a burst of long lines may cost in memory.
const MAX_QUEUED_BYTES: usize = 8 << 20;

/// How much is written at once, in bytes.
const BATCH_BYTES: usize = 64 << 10;

/// How long a destination that failed is left alone.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How often the thread looks up without being called, in case a call found the queue full.
const HEARTBEAT: Duration = Duration::from_millis(250);

type Opener = Box<dyn FnMut() -> io::Result<Box<dyn Write + Send>> + Send>;

/// The standard streams are written through a descriptor of their own: the standard library's buffer in front of them
/// would keep part of a failed write and bring it up again later.
fn open(destination: &Destination) -> io::Result<Box<dyn Write + Send>> {
    let file = match destination {
        Destination::File(path) => OpenOptions::new().append(true).create(true).mode(0o640).open(path)?,
        Destination::Stderr => File::from(io::stderr().as_fd().try_clone_to_owned()?),
        Destination::Stdout => File::from(io::stdout().as_fd().try_clone_to_owned()?),
    };
    Ok(Box::new(file))
}

/// The thread's side.
struct Sink {
    out: Option<Box<dyn Write + Send>>,
    open: Opener,
    /// A line was written in part: the next one must not be appended to it.
    torn: bool,
    /// The destination failed and is to be left alone until then.
    retry_at: Option<Instant>,
    progress: Arc<Progress>,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("torn", &self.torn).field("retry_at", &self.retry_at).finish_non_exhaustive()
    }
}

impl Sink {
    fn run(mut self, receiver: &Receiver<Message>) {
        let mut batch = Vec::new();
        loop {
            let first = receiver.recv_timeout(HEARTBEAT);
            let ended = matches!(first, Err(RecvTimeoutError::Disconnected));
            // Taken before the queue is emptied: what is flushed was queued before the wish for it.
            let flushes = std::mem::take(&mut *self.progress.flushes.lock());
            let mut next = first.ok();
            while let Some(message) = next {
                if let Message::Line(line) = message {
                    self.progress.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
                    batch.extend_from_slice(&line);
                }
                if batch.len() >= BATCH_BYTES {
                    self.write(&mut batch);
                }
                next = receiver.try_recv().ok();
            }
            self.write(&mut batch);
            for flush in flushes {
                let _ = flush.try_send(());
            }
            if ended {
                return;
            }
        }
    }

    /// Writes the batch, or gives it up; it is empty afterwards.
    fn write(&mut self, batch: &mut Vec<u8>) {
        if self.progress.reopen.swap(false, Ordering::Relaxed) {
            // Where the new file cannot be opened the old one is better than none.
            if let Ok(out) = (self.open)() {
                self.out = Some(out);
                self.torn = false;
                self.retry_at = None;
            }
        }
        if batch.is_empty() {
            return;
        }
        let mut done = 0;
        if self.is_open()
            && let Err(error) = self.write_all(batch, &mut done)
        {
            tracing::debug!(%error, "log lines could not be written");
            self.retry_at = Some(Instant::now() + RETRY_INTERVAL);
        }
        // A line counts as written with its last byte.
        let written = newlines(&batch[..done]);
        self.progress.written.fetch_add(written, Ordering::Relaxed);
        self.progress.failed.fetch_add(newlines(batch) - written, Ordering::Relaxed);
        batch.clear();
        batch.shrink_to(2 * BATCH_BYTES);
    }

    /// Whether there is something to write to; after a failure it is opened again, but not at once.
    fn is_open(&mut self) -> bool {
        match self.retry_at {
            None => self.out.is_some(),
            Some(at) if Instant::now() < at => false,
            Some(_) => {
                let opened = (self.open)();
                self.retry_at = opened.is_err().then(|| Instant::now() + RETRY_INTERVAL);
                self.out = opened.ok().or_else(|| self.out.take());
                self.retry_at.is_none()
            }
        }
    }

    fn write_all(&mut self, batch: &[u8], done: &mut usize) -> io::Result<()> {
        let Some(out) = &mut self.out else { return Ok(()) };
        if self.torn {
            while let Err(error) = out.write(b"\n").and_then(some) {
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            self.torn = false;
        }
        while *done < batch.len() {
            match out.write(&batch[*done..]).and_then(some) {
                Ok(bytes) => *done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.torn = *done > 0 && batch[*done - 1] != b'\n';
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// Writing nothing is a failure: trying for ever would be the alternative.
fn some(bytes: usize) -> io::Result<usize> {
    if bytes == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(bytes) }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

#[cfg(test)]
mod tests;

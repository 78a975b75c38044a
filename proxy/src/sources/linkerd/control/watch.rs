//! A stream of the control plane that is followed for ever: opened anew when it ends, hangs or has grown old.
//!
//! **In** how to open it. **Out** [`News`]: messages, with the first one after each opening marked, and losses. What was
//! learned before a loss stays true until something else is heard; that is the follower's business.
//! (Linkerd wire document §6.2, the stream guards.)

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Code, Response, Status, Streaming};

use super::{Control, Guards};

/// What came of a stream.
#[derive(Debug)]
pub enum News<T> {
    /// The stream ended or could not be opened. It is opened again after a while.
    Lost(Loss),
    /// A message.
    Message {
        /// Whether it is the first one of a stream that was opened just now.
        first: bool,
        /// The message.
        value: T,
    },
}

/// Why a stream was lost.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Loss {
    /// The gRPC status; `Ok` where the server ended the stream without complaint.
    pub code: Code,
    /// What was said of it.
    pub message: String,
    /// Whether the server said so; else something on the way failed, or it was silent for too long. UNAVAILABLE counts as
    /// on the way, whoever said it: proxies before the server say it too.
    pub by_server: bool,
}

impl Loss {
    fn new(status: &Status) -> Self {
        // What the transport makes up carries its cause along, but for what `Control` and the guards say themselves.
        let by_server = std::error::Error::source(status).is_none() && status.code() != Code::Unavailable;
        Self { code: status.code(), message: status.message().to_owned(), by_server }
    }

    /// Whether asking again in the same words cannot help (Linkerd wire document §7.3).
    pub fn is_final(&self) -> bool {
        self.by_server && matches!(self.code, Code::FailedPrecondition | Code::InvalidArgument)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

type Opening<T> = Pin<Box<dyn Future<Output = Result<Response<Streaming<T>>, Status>> + Send>>;

/// A stream that is followed.
pub struct Watch<T> {
    control: Control,
    open: Box<dyn FnMut(Control) -> Opening<T> + Send>,
    now: Now<T>,
    /// Streams in a row that brought no message.
    failures: u32,
}

enum Now<T> {
    Open { stream: Box<Streaming<T>>, first: bool, silent_since: Instant, ends: Option<Instant> },
    Opening { opening: Opening<T>, asked: Instant },
    Waiting(Instant),
}

impl<T> fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("control", &self.control).finish_non_exhaustive()
    }
}

impl<T: 'static> Watch<T> {
    /// Follows the stream that `open` asks for. Nothing happens before [`next`](Self::next).
    pub fn new<F>(control: Control, mut open: impl FnMut(Control) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<Response<Streaming<T>>, Status>> + Send + 'static,
    {
        let open = Box::new(move |control| -> Opening<T> { Box::pin(open(control)) });
        Self { control, open, now: Now::Waiting(Instant::now()), failures: 0 }
    }

    /// The next news. Cancel safe. After a loss the stream is opened again only when this is called again.
    pub async fn next(&mut self) -> News<T> {
        let guards = self.control.settings().transport.streams;
        loop {
            match &mut self.now {
                Now::Waiting(until) => {
                    sleep_until(*until).await;
                    let opening = (self.open)(self.control.clone());
                    self.now = Now::Opening { opening, asked: Instant::now() };
                }
                Now::Opening { opening, asked } => {
                    let asked = *asked;
                    match timeout_at(asked + guards.initial_timeout, opening.as_mut()).await {
                        Ok(Ok(response)) => {
                            let stream = Box::new(response.into_inner());
                            let ends =
                                guards.lifetime.map(|life| asked + life.mul_f64(1.0 - rand::random::<f64>() / 10.0));
                            self.now = Now::Open { stream, first: true, silent_since: asked, ends };
                        }
                        Ok(Err(status)) => return self.lost(&status),
                        Err(_) => return self.lost(&hung(guards)),
                    }
                }
                Now::Open { stream, first, silent_since, ends } => {
                    let patience = if *first { Some(guards.initial_timeout) } else { guards.idle_timeout };
                    let bored = patience.map(|patience| *silent_since + patience);
                    let until = [bored, *ends].into_iter().flatten().min();
                    let message = match until {
                        Some(until) => timeout_at(until, stream.message()).await.ok(),
                        None => Some(stream.message().await),
                    };
                    match message {
                        Some(Ok(Some(value))) => {
                            *silent_since = Instant::now();
                            let first = std::mem::take(first);
                            self.failures = 0;
                            self.control.heard();
                            return News::Message { first, value };
                        }
                        Some(Ok(None)) => return self.lost(&Status::ok("the server ended the stream")),
                        Some(Err(status)) => return self.lost(&status),
                        None if *first => return self.lost(&hung(guards)),
                        // Silent for long, or old: nothing is lost, the stream is made anew to be sure that it lives.
                        None => self.now = Now::Waiting(Instant::now()),
                    }
                }
            }
        }
    }

    fn lost(&mut self, status: &Status) -> News<T> {
        self.failures = self.failures.saturating_add(1);
        let wait: Duration = self.control.settings().transport.backoff.after(self.failures);
        self.now = Now::Waiting(Instant::now() + wait);
        self.control.failed();
        News::Lost(Loss::new(status))
    }
}

fn hung(guards: Guards) -> Status {
    Status::unavailable(format!("nothing was heard for {:?}", guards.initial_timeout))
}

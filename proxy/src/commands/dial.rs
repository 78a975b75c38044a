//! The way to a gateway for a prober: name, socket, handshake; and words for each of them that fails.
//!
//! **In** an address or a name with a port. **Out** a stream that is ready for HTTP. **Refuses** with the step that failed,
//! and for certificates with what they say, whom was expected, and which root signed them: what an operator would otherwise
//! need another tool for. `isthmus check` asks the same way.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use isthmus_probe::prober::{Dial, DialError, Progress};
use isthmus_probe::status::Step;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::addr::Name;
use crate::identity::Identity;
use crate::tls::caller::Caller;
use crate::tls::client::Error;
use crate::tls::explain::{Explanation, explain};
use crate::tls::verify::{Reason, Side};
use crate::tls::{self, ClientStream, Der, File, pem};

/// What is shown and trusted, PEM.
#[derive(Clone)]
pub(crate) struct Secrets {
    pub(crate) bundle_name: String,
    pub(crate) bundle: Vec<u8>,
    /// Chain and key.
    pub(crate) pair: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({})", self.bundle_name)
    }
}

/// Opens streams to gateways.
#[derive(Clone, Debug)]
pub(crate) struct Dialer(Option<Mutual>);

#[derive(Clone, Debug)]
struct Mutual {
    caller: Caller,
    expected: Identity,
    server_name: Name,
    bundle: File,
    shows: bool,
}

impl Dialer {
    /// Without TLS.
    pub(crate) fn plain() -> Self {
        Self(None)
    }

    /// With mutual TLS, towards a gateway of this identity.
    pub(crate) fn mutual(secrets: Secrets, expected: Identity, server_name: Name) -> anyhow::Result<Self> {
        let Secrets { bundle_name, bundle, pair } = secrets;
        let shown = pair.as_ref().map(|(chain, key)| (chain.as_slice(), key.as_slice()));
        let caller = Caller::new(&bundle, shown, &expected)?;
        let bundle = File::new(bundle_name, bundle);
        Ok(Self(Some(Mutual { caller, expected, server_name, bundle, shows: pair.is_some() })))
    }
}

impl Dial for Dialer {
    type Stream = Stream;

    async fn dial(&self, addr: &str, progress: &Progress) -> Result<Stream, DialError> {
        progress.enter(Step::Name);
        let addrs = resolve(addr).await?;
        progress.enter(Step::Connect);
        let socket = connect(&addrs).await?;
        let Some(mutual) = &self.0 else { return Ok(Stream::Plain(socket)) };
        progress.enter(Step::Tls);
        match mutual.caller.connect(socket, &mutual.server_name, &[]).await {
            Ok(connected) => {
                let asked = Some(Asked { progress: progress.clone(), shows: mutual.shows });
                Ok(Stream::Tls { stream: Box::new(connected.stream), asked })
            }
            Err(error) => Err(DialError { step: Step::Tls, message: mutual.explained(error) }),
        }
    }
}

/// All addresses behind `host:port`.
pub(crate) async fn resolve(addr: &str) -> Result<Vec<SocketAddr>, DialError> {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    let failed = |message| DialError { step: Step::Name, message };
    let mut addrs: Vec<SocketAddr> = match tokio::net::lookup_host(addr).await {
        Ok(addrs) => addrs.collect(),
        Err(error) => return Err(failed(format!("{host} cannot be resolved: {error}"))),
    };
    addrs.sort_unstable();
    addrs.dedup();
    if addrs.is_empty() { Err(failed(format!("{host} has no address"))) } else { Ok(addrs) }
}

async fn connect(addrs: &[SocketAddr]) -> Result<TcpStream, DialError> {
    let mut last = String::new();
    for addr in addrs {
        match TcpStream::connect(addr).await {
            Ok(socket) => {
                // A probe measures latency: it must not wait for an acknowledgement.
                let _ = socket.set_nodelay(true);
                return Ok(socket);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                last = format!("{addr} refuses the connection: nothing listens there");
            }
            Err(error) => last = format!("{addr} cannot be reached: {error}"),
        }
    }
    Err(DialError { step: Step::Connect, message: last })
}

impl Mutual {
    /// Why there is no TLS stream, for somebody who has to put it right.
    fn explained(&self, error: Error) -> String {
        match error {
            Error::Certificate { reason, presented, chain } => self.certificate(&reason, &presented, &chain),
            Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => format!(
                "the gateway closed the connection without a word: perhaps it does not serve the name '{}', or wants a \
                 PROXY header",
                self.server_name
            ),
            Error::Io(error) => format!("the connection broke during the handshake: {error}"),
            Error::Alert(alert) => format!("the gateway ended the handshake with the alert {alert}"),
            other => other.to_string(),
        }
    }

    fn certificate(&self, reason: &Reason, presented: &str, chain: &[Der]) -> String {
        let text: String = chain.iter().map(|der| pem::section("CERTIFICATE", der)).collect();
        let chain = File::new("the gateway's chain", text);
        let way = explain(&self.bundle, &chain, &[], Side::Server, None, SystemTime::now());
        match reason {
            Reason::Identity { found, .. } => {
                let names: Vec<_> = found.iter().take(4).map(|name| format!("'{name}'")).collect();
                let by = way.ok().and_then(|way| root(&way)).map(|root| format!(", signed by the trusted root {root}"));
                let (names, by) = (names.join(", "), by.unwrap_or_default());
                format!("the certificate names {names}, not '{}'{by}", self.expected)
            }
            _ => {
                let broken = way.ok().and_then(|way| broken(&way)).unwrap_or_default();
                format!("the certificate is refused: {reason} ({presented}){broken}; the bundle holds {}", self.roots())
            }
        }
    }

    fn roots(&self) -> String {
        let blocks = pem::blocks(&self.bundle.contents).unwrap_or_default();
        let roots = blocks.iter().filter_map(|block| match block {
            pem::Block::Certificate(der) => tls::inspect::certificate(der).ok(),
            _ => None,
        });
        let roots: Vec<_> = roots.map(|root| named(&root)).collect();
        roots.join(", ")
    }
}

fn named(root: &tls::inspect::Certificate) -> String {
    format!("'{}' (SHA-256 {}…)", root.subject, root.fingerprint.get(..16).unwrap_or(&root.fingerprint))
}

fn root(way: &Explanation) -> Option<String> {
    way.links.last().filter(|link| link.trusted).map(|link| named(&link.certificate))
}

/// Where the way from the leaf to a root ends, where that is above the leaf or known better than the verdict says.
fn broken(way: &Explanation) -> Option<String> {
    let link = way.links.iter().find(|link| link.problem.is_some())?;
    let problem = link.problem.as_deref()?;
    let whose = if link.certificate.subject.is_empty() { "the leaf" } else { &link.certificate.subject };
    Some(format!("; at '{whose}': {problem}"))
}

/// A stream to a gateway.
#[derive(Debug)]
pub(crate) enum Stream {
    /// TCP.
    Plain(TcpStream),
    /// TLS.
    Tls {
        /// The stream itself.
        stream: Box<ClientStream<TcpStream>>,
        /// There until the gateway has said something: its no to our certificate comes first of all, after the handshake.
        asked: Option<Asked>,
    },
}

/// A handshake whose answer is still out.
#[derive(Debug)]
pub(crate) struct Asked {
    progress: Progress,
    /// Whether a certificate was shown.
    shows: bool,
}

impl Asked {
    fn answered(self, read: &io::Result<()>, nothing: bool) {
        let message = match read {
            Ok(()) if nothing && !self.shows => {
                "the gateway wants a certificate, and none was shown (--cert, --key)".to_owned()
            }
            Ok(()) => return,
            Err(error) => match tls::alert_in(error) {
                Some(alert) if self.shows => {
                    format!("the gateway refuses the certificate that was shown, with the alert {alert}")
                }
                Some(alert) => format!("the gateway refuses a caller without a certificate, with the alert {alert}"),
                None => return,
            },
        };
        self.progress.fail(DialError { step: Step::Tls, message });
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls { stream, asked } => {
                let before = buf.filled().len();
                let read = std::task::ready!(Pin::new(stream).poll_read(cx, buf));
                if let Some(asked) = asked.take() {
                    asked.answered(&read, buf.filled().len() == before);
                }
                Poll::Ready(read)
            }
        }
    }
}

/// A write has failed: the gateway is gone, and its last words may still be there to be read.
fn last_words(stream: &mut ClientStream<TcpStream>, asked: Asked, cx: &mut Context<'_>) {
    let mut space = [0; 16];
    let mut buf = ReadBuf::new(&mut space);
    let read = match Pin::new(stream).poll_read(cx, &mut buf) {
        Poll::Ready(read) => read,
        Poll::Pending => Ok(()),
    };
    // To a broken connection an error without an alert adds nothing.
    let read = read.or_else(|error| if tls::alert_in(&error).is_some() { Err(error) } else { Ok(()) });
    asked.answered(&read, buf.filled().is_empty());
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls { stream, asked } => {
                let written = std::task::ready!(Pin::new(&mut **stream).poll_write(cx, buf));
                if written.is_err()
                    && let Some(asked) = asked.take()
                {
                    last_words(stream, asked, cx);
                }
                Poll::Ready(written)
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls { stream, asked } => {
                let flushed = std::task::ready!(Pin::new(&mut **stream).poll_flush(cx));
                if flushed.is_err()
                    && let Some(asked) = asked.take()
                {
                    last_words(stream, asked, cx);
                }
                Poll::Ready(flushed)
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

//! The server's side of a handshake.
//!
//! **In** a socket, the [`Credentials`] of the moment, [`Settings`]. **Out** an [`Accepted`] stream with the peer's
//! identity. **Refuses** without a byte what is not meant for us: plaintext, no server name, a foreign one; with an
//! alert what TLS cannot agree on or does not trust; and after the handshake, in an orderly way, clients that showed no
//! certificate or one that names nobody. This is what Linkerd's proxies do, but for the deadline over the whole, which
//! they lack. (Linkerd wire document §1.3; RFC 8446.)

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;
use rustls::PeerIncompatible;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::verifier::{AUTHORITIES, REFUSED, Refused};
use super::verify::{self, Reason};
use super::{Alpn, Chain, Credentials, Fingerprint, ServerStream, Settings, Sni, inspect};
use crate::addr::Name;
use crate::fault::{Fault, Refusal};
use crate::identity::Identity;
use crate::rewind::Rewind;
use crate::wire::{Decoded, client_hello};

/// Room for a hello of today at once, in bytes.
const FIRST_READ_BYTES: usize = 4 * 1024;

/// A handshake that is done.
#[derive(Debug)]
pub struct Accepted<S, P = Peer> {
    /// The stream inside.
    pub stream: ServerStream<S>,
    /// Who came.
    pub peer: P,
    /// The server name that was asked for.
    pub sni: Option<Name>,
    /// The protocol agreed on.
    pub alpn: Alpn,
}

/// A peer whose chain was accepted and names somebody.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Who it is.
    pub identity: Identity,
    /// What it presented, kept for [`verify::recheck`].
    pub chain: Chain,
    /// When its own certificate ends.
    pub not_after: SystemTime,
    /// The CAs that vouch for it, from its issuer to the root: the way that was verified, not what was presented.
    pub authorities: Box<[Fingerprint]>,
}

/// Shakes hands with a peer that must say who it is.
pub async fn accept<S>(stream: S, credentials: &Arc<Credentials>, settings: &Settings) -> Result<Accepted<S>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let all = async {
        let accepted = handshake(stream, credentials, settings).await?;
        let Accepted { mut stream, peer, sni, alpn } = accepted;
        let refusal = match peer {
            Shown::Peer(peer) => return Ok(Accepted { stream, peer, sni, alpn }),
            Shown::Nameless(presented) => Error::NoIdentity { presented },
            Shown::Nothing => Error::NoClientCertificate,
        };
        // Says goodbye; a peer that does not hear it is none the worse.
        let _ = stream.shutdown().await;
        Err(refusal)
    };
    tokio::time::timeout(settings.handshake_timeout, all).await.unwrap_or(Err(Error::Timeout))
}

/// Shakes hands with a peer that may say who it is. One that shows a certificate that is refused is refused all the
/// same.
pub async fn accept_anyone<S>(
    stream: S,
    credentials: &Arc<Credentials>,
    settings: &Settings,
) -> Result<Accepted<S, Option<Peer>>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let all = handshake(stream, credentials, settings);
    let accepted = tokio::time::timeout(settings.handshake_timeout, all).await.unwrap_or(Err(Error::Timeout))?;
    let Accepted { stream, peer, sni, alpn } = accepted;
    let peer = match peer {
        Shown::Peer(peer) => Some(peer),
        Shown::Nameless(_) | Shown::Nothing => None,
    };
    Ok(Accepted { stream, peer, sni, alpn })
}

/// What a peer showed.
enum Shown {
    Nameless(String),
    Nothing,
    Peer(Peer),
}

async fn handshake<S>(
    mut stream: S,
    credentials: &Arc<Credentials>,
    settings: &Settings,
) -> Result<Accepted<S, Shown>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if !credentials.has_certificate() {
        return Err(Error::NotYet);
    }
    let mut hello = BytesMut::with_capacity(FIRST_READ_BYTES.min(settings.max_hello_bytes));
    let sni = server_name(&mut stream, &mut hello, settings).await?;
    match &sni {
        Some(name) if !settings.sni.allows(name, credentials.server_names()) => {
            return Err(Error::ForeignSni { name: name.clone() });
        }
        None if settings.sni != Sni::Any => return Err(Error::NoSni),
        _ => {}
    }
    let acceptor = TlsAcceptor::from(Arc::clone(credentials.server_config(settings.alpn)));
    let hello_bytes = hello.len();
    let stream = Rewind::new(hello.freeze(), stream);
    let shake = async {
        let result = acceptor.accept(stream).await;
        (result, REFUSED.with(Cell::take), AUTHORITIES.with(Cell::take))
    };
    let shake = REFUSED.scope(Cell::new(None), AUTHORITIES.scope(Cell::default(), shake));
    let (result, refused, authorities) = shake.await;
    let stream = result.map_err(|error| Error::from_handshake(error, refused, hello_bytes))?;
    let (_, session) = stream.get_ref();
    let alpn = Alpn::agreed(session.alpn_protocol());
    let peer = session.peer_certificates().map_or(Shown::Nothing, |chain| shown(chain, authorities));
    Ok(Accepted { stream, peer, sni, alpn })
}

/// Reads until the hello is whole, and gives the name in it. What was read stays in `buffer`.
async fn server_name<S>(stream: &mut S, buffer: &mut BytesMut, settings: &Settings) -> Result<Option<Name>, Error>
where
    S: AsyncRead + Unpin,
{
    loop {
        let room = settings.max_hello_bytes.saturating_sub(buffer.len());
        match stream.take(u64::try_from(room).unwrap_or(u64::MAX)).read_buf(buffer).await {
            Ok(0) => return Err(Error::Eof { after_bytes: buffer.len() }),
            Ok(_) => {}
            Err(error) if buffer.is_empty() && error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(Error::Eof { after_bytes: 0 });
            }
            Err(error) => return Err(Error::Io(error)),
        }
        return match client_hello::decode(buffer, settings.max_hello_bytes) {
            Decoded::More => continue,
            Decoded::Done { value, .. } => Ok(value.server_name),
            Decoded::Bad(client_hello::Bad::Record) => Err(Error::Plaintext),
            Decoded::Bad(client_hello::Bad::Length) => Err(Error::HelloTooLarge),
            Decoded::Bad(reason) => Err(Error::Malformed(reason.to_string())),
        };
    }
}

/// What an accepted chain says of its holder.
fn shown(chain: &[super::Der], authorities: Box<[Fingerprint]>) -> Shown {
    let Some(leaf) = chain.first() else { return Shown::Nothing };
    match (verify::identity(leaf), inspect::certificate(leaf)) {
        (Some(identity), Ok(certificate)) => {
            Shown::Peer(Peer { identity, chain: chain.into(), not_after: certificate.not_after, authorities })
        }
        _ => Shown::Nameless(inspect::describe(leaf)),
    }
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer sent an alert: it does not like what it saw of us.
    #[error("the peer ended the handshake with the alert {0}")]
    Alert(String),
    /// No application protocol is spoken by both.
    #[error("no application protocol in common")]
    Alpn,
    /// The peer's certificate is refused.
    #[error("the client's certificate is refused: {reason} ({presented})")]
    Certificate {
        /// Why.
        reason: Reason,
        /// What the certificate says of itself.
        presented: String,
    },
    /// The peer went away.
    #[error("the peer went away during the handshake, after {after_bytes} bytes of its hello")]
    Eof {
        /// How much of a hello had come. Nothing at all is what health checks of load balancers do all day.
        after_bytes: usize,
    },
    /// The peer asked for a server name that is not ours.
    #[error("asked for the server name '{name}', which is not ours")]
    ForeignSni {
        /// The name.
        name: Name,
    },
    /// The hello is longer than allowed.
    #[error("the ClientHello is too large")]
    HelloTooLarge,
    /// No cipher suite, group or signature scheme in common.
    #[error("nothing in common: {0}")]
    Incompatible(String),
    /// The socket failed.
    #[error("the socket failed")]
    Io(#[source] io::Error),
    /// The peer breaks the protocol.
    #[error("not TLS as it should be: {0}")]
    Malformed(String),
    /// The client showed no certificate.
    #[error("the client showed no certificate")]
    NoClientCertificate,
    /// The client's certificate names nobody.
    #[error("the client's certificate names nobody ({presented})")]
    NoIdentity {
        /// What the certificate says of itself.
        presented: String,
    },
    /// The hello has no server name.
    #[error("asked for no server name")]
    NoSni,
    /// The gateway has no certificate yet.
    #[error("the gateway is waiting for its own certificate")]
    NotYet,
    /// Not TLS at all.
    #[error("not TLS")]
    Plaintext,
    /// Not done in time.
    #[error("the handshake took too long")]
    Timeout,
    /// The peer does not speak TLS 1.3.
    #[error("the peer does not speak TLS 1.3")]
    Version,
}

impl Error {
    /// Whether this is no news: a connection that was opened and closed without a byte, as health checks do.
    pub const fn is_quiet(&self) -> bool {
        matches!(self, Self::Eof { after_bytes: 0 })
    }

    /// What the refused certificate says of itself, where one was shown.
    pub fn presented(&self) -> Option<&str> {
        match self {
            Self::Certificate { presented, .. } | Self::NoIdentity { presented } => Some(presented),
            _ => None,
        }
    }

    /// Sorts what the library says.
    fn from_handshake(error: io::Error, refused: Option<Refused>, hello_bytes: usize) -> Self {
        use rustls::Error as Tls;
        if let Some(Refused { reason, presented, .. }) = refused {
            return Self::Certificate { reason, presented };
        }
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => Self::Eof { after_bytes: hello_bytes },
                _ => Self::Io(error),
            };
        };
        match tls {
            Tls::AlertReceived(alert) => Self::Alert(format!("{alert:?}")),
            Tls::InvalidCertificate(_) => Self::Certificate {
                reason: Reason::BadCertificate(tls.to_string().into()),
                presented: "not shown".into(),
            },
            Tls::NoApplicationProtocol => Self::Alpn,
            Tls::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            ) => Self::Version,
            Tls::PeerIncompatible(what) => Self::Incompatible(format!("{what:?}")),
            other => Self::Malformed(other.to_string()),
        }
    }
}

impl Refusal for Error {
    fn fault(&self) -> Fault {
        match self {
            // Our CRLs are stale or wanting: the client can do nothing about it.
            Self::Certificate { reason: Reason::CrlExpired { .. } | Reason::RevocationUnknown, .. } => Fault::Ours,
            Self::NotYet => Fault::Ours,
            _ => Fault::Client,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Alert(_) => "tls.alert",
            Self::Alpn => "tls.alpn",
            Self::Certificate { reason, .. } => reason.code(),
            Self::Eof { .. } => "tls.eof",
            Self::ForeignSni { .. } => "tls.foreign_sni",
            Self::HelloTooLarge => "tls.hello_too_large",
            Self::Incompatible(_) => "tls.incompatible",
            Self::Io(_) => "tls.io",
            Self::Malformed(_) => "tls.malformed",
            Self::NoClientCertificate => "tls.no_client_certificate",
            Self::NoIdentity { .. } => "tls.no_identity",
            Self::NoSni => "tls.no_sni",
            Self::NotYet => "tls.not_yet",
            Self::Plaintext => "tls.plaintext",
            Self::Timeout => "tls.handshake_timeout",
            Self::Version => "tls.protocol_version",
        }
    }
}

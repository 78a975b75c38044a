//! What is spoken on a connection, and who is meant by it.
//!
//! **In** a stream behind its handshake and a [`Hint`]: the ALPN protocol and server name that were agreed. **Out** a
//! [`Session`]: protocol, the way the target is named, and the stream with not a byte missing. **Refuses** a malformed
//! transport header, silence past the timeout, and bytes of no known protocol where nothing names a target.
//! A transport header is believed and never checked against the bytes behind it. (Linkerd wire document §2.)

mod error;
mod sni;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout;

use crate::addr::{Name, Target};
use crate::record::Protocol;
use crate::rewind::Rewind;
use crate::wire::preface::{Sniff, sniff};
use crate::wire::{Decoded, transport_header};

pub use self::error::Error;

/// How sessions are detected.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long the client may take to say what it wants.
    pub timeout: Duration,
    /// Whether a server name other than the gateway's own names the service of an opaque session.
    pub sni_routing: bool,
    /// The port that is meant where such a server name writes none.
    pub sni_default_port: u16,
    /// The most bytes read and kept to find out.
    pub max_buffer_bytes: usize,
}

impl Default for Settings {
    /// As long as Linkerd waits, and as much as Linkerd reads.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            sni_routing: false,
            sni_default_port: 443,
            max_buffer_bytes: transport_header::MAX_BYTES,
        }
    }
}

/// What the handshake agreed on.
#[derive(Clone, Debug)]
pub struct Hint {
    /// The protocol negotiated by ALPN.
    pub alpn: Negotiated,
    /// The server name that the client asked for.
    pub sni: Option<Name>,
    /// Whether that name is the gateway's own and so names no service.
    pub sni_is_own: bool,
}

/// The protocol negotiated by ALPN.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Negotiated {
    /// `h2`.
    H2,
    /// `http/1.1`.
    Http11,
    /// None.
    None,
    /// `transport.l5d.io/v1`.
    TransportHeader,
}

/// How the target of a session is named.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Naming {
    /// By the transport header, for the whole session.
    Header(Target),
    /// By a transport header without a name: a port of the gateway itself.
    Port(u16),
    /// By each request.
    Request,
    /// By the server name, for the whole session.
    Sni(Target),
}

/// A session whose protocol is known.
#[derive(Debug)]
pub struct Session<S> {
    /// How its target is named.
    pub naming: Naming,
    /// What is spoken.
    pub protocol: Protocol,
    /// The stream, beginning with the session's first byte.
    pub stream: Rewind<S>,
}

/// Finds out what a session is. Reads only where it must: a server that speaks first is not kept waiting.
pub async fn session<S>(mut stream: S, hint: Hint, settings: &Settings) -> Result<Session<S>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let nothing = Bytes::new();
    let (naming, protocol, read) = match hint.alpn {
        Negotiated::TransportHeader => {
            let (header, rest) = read_header(&mut stream, settings).await?;
            let (naming, protocol) = named_by(header);
            (naming, protocol, rest)
        }
        // Not a byte is awaited: the server's SETTINGS are to go out at once.
        Negotiated::H2 => (Naming::Request, Protocol::Http2, nothing),
        Negotiated::Http11 => (Naming::Request, Protocol::Http1, nothing),
        Negotiated::None => match hint.sni.filter(|_| settings.sni_routing && !hint.sni_is_own) {
            Some(name) => (Naming::Sni(sni::target(&name, settings.sni_default_port)?), Protocol::Opaque, nothing),
            None => {
                let (protocol, read) = read_preface(&mut stream, settings).await?;
                (Naming::Request, protocol, read)
            }
        },
    };
    Ok(Session { naming, protocol, stream: Rewind::new(read, stream) })
}

/// Reads a transport header, and gives the bytes of the session that came with it.
pub async fn read_header<S>(stream: &mut S, settings: &Settings) -> Result<(transport_header::Header, Bytes), Error>
where
    S: AsyncRead + Unpin,
{
    read(stream, settings, |bytes| match transport_header::decode(bytes) {
        Decoded::Bad(reason) => Err(reason.into()),
        Decoded::Done { value, consumed } => Ok(Some((value, consumed))),
        Decoded::More => match transport_header::needed_bytes(bytes) {
            Some(needed) if needed > settings.max_buffer_bytes => Err(Error::HeaderLength),
            _ => Ok(None),
        },
    })
    .await
}

async fn read_preface<S>(stream: &mut S, settings: &Settings) -> Result<(Protocol, Bytes), Error>
where
    S: AsyncRead + Unpin,
{
    read(stream, settings, |bytes| match sniff(bytes) {
        Sniff::Http1 => Ok(Some((Protocol::Http1, 0))),
        Sniff::Http2 => Ok(Some((Protocol::Http2, 0))),
        Sniff::More if bytes.len() < settings.max_buffer_bytes => Ok(None),
        Sniff::More | Sniff::Other => Err(Error::UnknownProtocol),
    })
    .await
}

/// Room for a header and the beginning of its session in one read, in bytes.
const FIRST_READ_BYTES: usize = 1024;

/// Reads until `judge` has a value or refuses, and gives the value and the bytes it did not consume.
async fn read<S, T>(
    stream: &mut S,
    settings: &Settings,
    judge: impl Fn(&[u8]) -> Result<Option<(T, usize)>, Error>,
) -> Result<(T, Bytes), Error>
where
    S: AsyncRead + Unpin,
{
    let mut buffer = BytesMut::with_capacity(FIRST_READ_BYTES);
    let reading = async {
        loop {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Err(Error::Eof { bytes: buffer.len() });
            }
            if let Some((value, consumed)) = judge(&buffer)? {
                // An empty rest of a buffer would keep the whole of it in memory for as long as the session lives.
                let all_consumed = consumed == buffer.len();
                let rest = if all_consumed { Bytes::new() } else { buffer.split_off(consumed).freeze() };
                return Ok((value, rest));
            }
        }
    };
    timeout(settings.timeout, reading).await.unwrap_or(Err(Error::Timeout))
}

fn named_by(header: transport_header::Header) -> (Naming, Protocol) {
    let protocol = match header.protocol {
        None => Protocol::Opaque,
        Some(transport_header::Protocol::Http1) => Protocol::Http1,
        Some(transport_header::Protocol::Http2) => Protocol::Http2,
    };
    let naming = match header.name {
        None => Naming::Port(header.port),
        Some(name) => Naming::Header(Target { name, port: header.port }),
    };
    (naming, protocol)
}

#[cfg(test)]
mod tests;

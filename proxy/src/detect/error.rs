//! Why a session could not be made out.

use std::io;

use crate::fault::{Fault, Refusal};
use crate::wire::transport_header;

/// Why a session could not be made out. Each is answered by closing: no protocol is known in which to say more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client left before it had said what it wants.
    #[error("the client left after {bytes} bytes, before it was known what it wants")]
    Eof {
        /// What it had sent. Port scanners and health checks send nothing: that is no event.
        bytes: usize,
    },
    /// The transport header is longer than Linkerd's can be, or than the buffer.
    #[error("the transport header is too long")]
    HeaderLength,
    /// The transport header's first bytes are others.
    #[error("the connection does not begin with the transport header that was negotiated")]
    HeaderMagic,
    /// The transport header's name is no DNS name.
    #[error("the transport header's name is no DNS name")]
    HeaderName,
    /// The transport header's port is not 1 to 65535.
    #[error("the transport header's port is not 1 to 65535")]
    HeaderPort,
    /// The transport header's protobuf is broken.
    #[error("the transport header's protobuf is malformed")]
    HeaderProto,
    /// Reading failed.
    #[error("the connection broke while its protocol was being detected")]
    Io(#[from] io::Error),
    /// The server name names no service and port.
    #[error("the server name names no service and port")]
    Sni,
    /// Nothing that could be recognised came in time.
    #[error("the client did not say in time what it wants")]
    Timeout,
    /// The bytes are no HTTP, and nothing else names a target.
    #[error("the protocol is unknown, and nothing names a target")]
    UnknownProtocol,
}

impl Error {
    /// Whether it is no event at all: a client that came and went without a byte.
    pub fn is_quiet(&self) -> bool {
        matches!(self, Self::Eof { bytes: 0 })
    }
}

impl From<transport_header::Bad> for Error {
    fn from(bad: transport_header::Bad) -> Self {
        match bad {
            transport_header::Bad::Length(_) => Self::HeaderLength,
            transport_header::Bad::Magic => Self::HeaderMagic,
            transport_header::Bad::Name(_) => Self::HeaderName,
            transport_header::Bad::Port => Self::HeaderPort,
            transport_header::Bad::Proto => Self::HeaderProto,
        }
    }
}

impl Refusal for Error {
    fn fault(&self) -> Fault {
        Fault::Client
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Eof { .. } => "detect.eof",
            Self::HeaderLength => "detect.header_length",
            Self::HeaderMagic => "detect.header_magic",
            Self::HeaderName => "detect.header_name",
            Self::HeaderPort => "detect.header_port",
            Self::HeaderProto => "detect.header_proto",
            Self::Io(_) => "detect.io",
            Self::Sni => "detect.sni",
            Self::Timeout => "detect.timeout",
            Self::UnknownProtocol => "detect.unknown_protocol",
        }
    }
}

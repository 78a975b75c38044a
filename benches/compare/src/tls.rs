//! One TLS connection of the load generator: rustls without its buffers, so that a record costs no more than its cipher.
//!
//! **In** bytes of the socket and plain bytes to send. **Out** plain bytes and bytes for the socket.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, HandshakeKind};

/// The most plain bytes in a record.
const RECORD: usize = 16_384;
/// What a record adds at the most: head, type and tag.
const OVERHEAD: usize = 5 + 1 + 16;

pub(crate) struct Session {
    tls: UnbufferedClientConnection,
    /// The beginning of a record whose end is not here yet.
    partial: Vec<u8>,
    pub(crate) established: bool,
    pub(crate) peer_closed: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("established", &self.established).finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(config: &Arc<ClientConfig>, name: &ServerName<'static>, out: &mut Vec<u8>) -> Result<Self> {
        let tls = UnbufferedClientConnection::new(config.clone(), name.clone())?;
        let mut session = Self { tls, partial: Vec::new(), established: false, peer_closed: false };
        session.advance(&mut [], out, &mut |_| ())?;
        Ok(session)
    }

    /// Puts what was left over in front of the buffer into which the socket is read; returns how much that is.
    pub(crate) fn restore(&mut self, buffer: &mut [u8]) -> usize {
        let length = self.partial.len();
        buffer[..length].copy_from_slice(&self.partial);
        self.partial = Vec::new();
        length
    }

    /// Takes what was read, the left-over in front. Hands plain bytes to `each`.
    pub(crate) fn receive(&mut self, bytes: &mut [u8], out: &mut Vec<u8>, each: &mut dyn FnMut(&[u8])) -> Result<()> {
        let done = self.advance(bytes, out, each)?;
        self.partial.extend_from_slice(&bytes[done..]);
        Ok(())
    }

    fn advance(&mut self, bytes: &mut [u8], out: &mut Vec<u8>, each: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut done = 0;
        loop {
            let UnbufferedStatus { discard, state } = self.tls.process_tls_records(&mut bytes[done..]);
            let more = match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        each(record?.payload);
                    }
                    true
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    let start = out.len();
                    out.resize(start + RECORD, 0);
                    let length = match data.encode(&mut out[start..]) {
                        Ok(length) => length,
                        Err(EncodeError::InsufficientSize(size)) => {
                            out.resize(start + size.required_size, 0);
                            data.encode(&mut out[start..])?
                        }
                        Err(error) => return Err(error).context("handshake"),
                    };
                    out.truncate(start + length);
                    true
                }
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    true
                }
                ConnectionState::WriteTraffic(_) => {
                    self.established = true;
                    false
                }
                ConnectionState::PeerClosed => {
                    self.peer_closed = true;
                    true
                }
                ConnectionState::BlockedHandshake | ConnectionState::Closed => false,
                _ => return Err(anyhow!("an unexpected state of TLS")),
            };
            done += discard;
            if !more {
                return Ok(done);
            }
        }
    }

    /// Encrypts, in records as large as they may be.
    pub(crate) fn send(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<()> {
        for chunk in data.chunks(RECORD) {
            let UnbufferedStatus { state, .. } = self.tls.process_tls_records(&mut []);
            let ConnectionState::WriteTraffic(mut traffic) = state? else {
                return Err(anyhow!("not yet, or no longer, open for writing"));
            };
            let start = out.len();
            out.resize(start + chunk.len() + OVERHEAD, 0);
            let length = traffic.encrypt(chunk, &mut out[start..])?;
            out.truncate(start + length);
        }
        Ok(())
    }

    /// Says goodbye.
    pub(crate) fn close(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let UnbufferedStatus { state, .. } = self.tls.process_tls_records(&mut []);
        if let ConnectionState::WriteTraffic(mut traffic) = state? {
            let start = out.len();
            out.resize(start + OVERHEAD + 2, 0);
            let length = traffic.queue_close_notify(&mut out[start..])?;
            out.truncate(start + length);
        }
        Ok(())
    }

    pub(crate) fn resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

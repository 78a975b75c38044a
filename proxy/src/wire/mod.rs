//! Bytes to values and back: every format that a peer can send before a library takes over.
//!
//! **In** the bytes read so far. **Out** a [`Decoded`]: the value and how many bytes it took, or that more are needed, or
//! the reason why no further byte can help. **Refuses** whatever a strict reader of the standard would. No IO, no clock,
//! no memory beyond what was handed in: these parsers read what strangers send, and each has a fuzz target.

pub mod client_cert;
pub mod client_hello;
pub mod forwarded;
pub mod forwarded_for;
pub mod http1_guard;
pub mod http2_frames;
pub mod preface;
pub mod proxy_header;
mod reader;
pub mod traceparent;
pub mod transport_header;

/// What the bytes read so far amount to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decoded<T, R> {
    /// No continuation of these bytes can become a value.
    Bad(R),
    /// A whole value.
    Done {
        /// The value.
        value: T,
        /// The bytes it took from the front; what follows belongs to the session.
        consumed: usize,
    },
    /// A beginning of something valid.
    More,
}

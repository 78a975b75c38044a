//! Who is at fault when something is refused, and how much of it may be told or tried again.
//!
//! Each stage has its own error enum; each of its errors answers these three questions. One table in
//! `gateway/refuse.rs` turns the answers into what a peer sees. A new stage error therefore cannot forget to say them.

/// Whose fault it is: decides log level, status family and whether a retry can help.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Fault {
    /// The peer sent something wrong, or nothing in time.
    Client,
    /// The gateway itself: a limit reached, a bug, a state it should not be in.
    Ours,
    /// The operator's policy said no.
    Policy,
    /// The service behind the gateway.
    Upstream,
}

impl Fault {
    /// The label that metrics and logs carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Ours => "ours",
            Self::Policy => "policy",
            Self::Upstream => "upstream",
        }
    }
}

/// What every stage error answers.
pub trait Refusal: std::error::Error {
    /// Whose fault it is.
    fn fault(&self) -> Fault;

    /// A stable dotted word, its first part the stage: `tls.untrusted`. Log field, metric label, documentation anchor.
    fn code(&self) -> &'static str;

    /// Whether it is certain that the upstream did not process the request, so that it may be sent again.
    fn retry_is_safe(&self) -> bool {
        false
    }

    /// How long the peer should wait before it asks again, where that is known.
    fn retry_after(&self) -> Option<std::time::Duration> {
        None
    }
}

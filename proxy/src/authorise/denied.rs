//! What a refusal says.
//!
//! **Out** [`Denied`]: the reason, and the rule where one decided. Always the operator's word ([`Fault::Policy`]), and
//! always said before anything went upstream. The codes are `authorise.ambiguous_path`, `authorise.denied`,
//! `authorise.no_route`, `authorise.no_rule` and `authorise.not_exported`.

use std::fmt;
use std::sync::Arc;

use crate::fault::{Fault, Refusal};

/// The policy said no.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Denied {
    /// Why.
    pub reason: Reason,
    /// The rule that said so, where one did.
    pub rule: Option<Arc<str>>,
}

/// Why something is refused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// The path can be read in more than one way, and the rules do not agree on all of them.
    AmbiguousPath,
    /// A deny rule holds.
    Denied,
    /// No rule allows it.
    NoRule,
    /// No route of the server is for it.
    NoRoute,
    /// The service is not exported.
    NotExported,
}

impl Reason {
    /// The stable word for logs and metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::AmbiguousPath => "authorise.ambiguous_path",
            Self::Denied => "authorise.denied",
            Self::NoRule => "authorise.no_rule",
            Self::NoRoute => "authorise.no_route",
            Self::NotExported => "authorise.not_exported",
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.reason, &self.rule) {
            (Reason::AmbiguousPath, Some(rule)) => write!(f, "the path has more than one reading under rule {rule}"),
            (Reason::AmbiguousPath, None) => f.write_str("the path has more than one reading"),
            (Reason::Denied, Some(rule)) => write!(f, "denied by rule {rule}"),
            (Reason::Denied, None) => f.write_str("denied"),
            (Reason::NoRule, Some(route)) => write!(f, "no authorization of {route} allows it"),
            (Reason::NoRule, None) => f.write_str("no rule allows it"),
            (Reason::NoRoute, _) => f.write_str("the server has no route for it"),
            (Reason::NotExported, _) => f.write_str("the service is not exported"),
        }
    }
}

impl std::error::Error for Denied {}

impl Refusal for Denied {
    fn fault(&self) -> Fault {
        Fault::Policy
    }

    fn code(&self) -> &'static str {
        self.reason.code()
    }
}

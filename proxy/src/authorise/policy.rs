//! The decision: pure and total.

use std::net::IpAddr;
use std::sync::Arc;

use crate::addr::Target;
use crate::identity::Identity;

use super::admitted::Admitted;
use super::denied::{Denied, Reason};
use super::settings::{DefaultAction, Settings};

/// Who is asking: the identity from the certificate, and the address it comes from.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Client {
    /// Who the certificate says it is.
    pub identity: Identity,
    /// Where it connects from.
    pub network: IpAddr,
}

/// What is known of one request.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// The method.
    pub method: &'a http::Method,
    /// The path as the client sent it; a query is ignored.
    pub path: &'a str,
    /// The header fields as the client sent them.
    pub headers: &'a http::HeaderMap,
    /// The authority (`:authority`, or `host`).
    pub host: Option<&'a str>,
    /// Whether the content type says gRPC.
    pub grpc: bool,
}

/// What was let through, and by what.
#[derive(Debug)]
pub struct Admission {
    /// The proof that `route` asks for.
    pub target: Admitted<Target>,
    /// The rule that allowed it; absent where the default did.
    pub rule: Option<Arc<str>>,
    /// In audit mode: what enforcing would have said.
    pub would_refuse: Option<Denied>,
}

/// The compiled policy: immutable, replaced whole.
#[derive(Debug)]
pub struct Policy {
    default: DefaultAction,
}

impl Policy {
    /// Compiles the operator's words.
    pub fn new(settings: &Settings) -> Self {
        Self { default: settings.default }
    }

    /// Decides about a connection whose bytes are of no concern to us.
    pub fn connection(&self, _client: &Client, target: Target, _exported: bool) -> Result<Admission, Denied> {
        match self.default {
            DefaultAction::Authenticated => {
                Ok(Admission { target: Admitted::new(target), rule: None, would_refuse: None })
            }
            DefaultAction::Deny => Err(Denied { reason: Reason::NoRule, rule: None }),
        }
    }

    /// Decides about one request.
    pub fn request(
        &self,
        client: &Client,
        target: Target,
        exported: bool,
        _facts: &RequestFacts<'_>,
    ) -> Result<Admission, Denied> {
        self.connection(client, target, exported)
    }
}

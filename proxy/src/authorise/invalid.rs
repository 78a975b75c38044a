//! What can be wrong with a policy, said so that it can be put right.
//!
//! **Out** [`InvalidPolicy`], all entries that cannot be meant, each [`Invalid`] naming the rule, the field, what was found there
//! and, where it can be told, the nearest right form. The line in a file is for whoever read the file: a field such as
//! `http.paths[0]` of the third rule is enough to find it.

use std::fmt;

/// One entry of a policy that cannot be meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Invalid {
    /// The rule, by its place in the list and its name; absent for what stands outside the rules.
    pub rule: Option<(usize, String)>,
    /// The field, such as `services[1]`, `http.paths[0]` or `limits.burst`.
    pub field: String,
    /// What stands there.
    pub found: String,
    /// What is wrong with it.
    pub wrong: Wrong,
    /// The nearest right form.
    pub nearest: Option<String>,
}

/// What can be wrong.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Wrong {
    /// A deny rule with limits.
    #[error("a deny rule lets nothing through that could be limited")]
    DenyWithLimits,
    /// Two rules of one name.
    #[error("another rule has this name already")]
    DuplicateName,
    /// A list or map that is there, but empty.
    #[error("it is there but empty: leave it out to set no condition")]
    Empty,
    /// A header field's name.
    #[error("not the name of a header field that can be asked for")]
    Header,
    /// A method.
    #[error("not a method: methods are written in capitals")]
    Method,
    /// A rule's name.
    #[error("a rule's name has 1 to 128 letters, digits, '.', '_', '-' or '/'")]
    Name,
    /// A network.
    #[error("not a network: {0}")]
    Network(&'static str),
    /// The name of a gRPC service or method.
    #[error("not the name of a gRPC service or method")]
    Grpc,
    /// A pattern of clients, services, hosts or paths.
    #[error("{0}")]
    Pattern(String),
    /// Audit where nothing could be refused.
    #[error("an allow rule without limits refuses nothing, so there is nothing to audit")]
    NothingToAudit,
    /// More pairs of services and clients than are kept.
    #[error("too many pairs of services and clients (more than a million in all): use wildcards, or fewer entries")]
    TooManyPairs,
    /// A trust domain.
    #[error("not a trust domain: a DNS name such as cluster.local")]
    TrustDomain,
    /// A limit of zero.
    #[error("a limit of zero lets nothing through: write a deny rule instead")]
    ZeroLimit,
    /// A burst without a rate.
    #[error("a burst belongs to requests_per_second, which is not set")]
    BurstWithoutRate,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((index, name)) = &self.rule {
            write!(f, "rule {name:?} (number {}), ", index + 1)?;
        }
        write!(f, "{}: {:?}: {}", self.field, self.found, self.wrong)?;
        match &self.nearest {
            Some(nearest) => write!(f, "; did you mean {nearest:?}?"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Invalid {}

/// All that is wrong with a policy: never empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InvalidPolicy(pub Vec<Invalid>);

impl fmt::Display for InvalidPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, invalid) in self.0.iter().enumerate() {
            write!(f, "{}{invalid}", if at > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for InvalidPolicy {}

//! Names and addresses: plain words that every room uses.
//!
//! **In** text from configuration, a transport header, an authority or SNI. **Out** a [`Name`] (lower case, no trailing
//! dot), a [`Target`] (name and port), a [`Suffix`]. **Refuses** what is no DNS name, with the reason.
//! (RFC 1035 §2.3.1, with the underscore that Kubernetes names use.)

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// The address of the peer as the gateway sees it: the socket's, or the PROXY header's where one is accepted.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ClientAddr(pub SocketAddr);

/// A DNS name: lower case, without a trailing dot, labels of 1 to 63 bytes of `[a-z0-9_-]`, at most 253 bytes.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name(Arc<str>);

impl Name {
    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name consists of digits and dots only, as an IPv4 address does.
    pub fn looks_like_ipv4(&self) -> bool {
        self.0.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() || text.len() > 253 {
            return Err(InvalidName::Length);
        }
        for label in text.split('.') {
            if label.is_empty() || label.len() > 63 {
                return Err(InvalidName::Label);
            }
            if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
                return Err(InvalidName::Character);
            }
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

/// Why a text is no DNS name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidName {
    /// A byte outside letters, digits, hyphen and underscore.
    #[error("a name holds only letters, digits, '-', '_' and dots")]
    Character,
    /// An empty label, or one of more than 63 bytes.
    #[error("a label of a name has 1 to 63 bytes")]
    Label,
    /// Empty, or more than 253 bytes.
    #[error("a name has 1 to 253 bytes")]
    Length,
}

/// A service that a peer asks for: name and port. This is what `detect` finds and everything after it decides by.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Target {
    /// The name, such as `web.ns.svc.cluster.local`.
    pub name: Name,
    /// The port, 1 to 65535.
    pub port: u16,
}

impl Target {
    /// Reads `name` or `name:port` (an authority, RFC 3986 §3.2), with the port to take when none is written.
    pub fn parse(authority: &str, default_port: u16) -> Result<Self, InvalidTarget> {
        if authority.starts_with('[') {
            return Err(InvalidTarget::Ipv6);
        }
        let (name, port) = match authority.rsplit_once(':') {
            None => (authority, default_port),
            Some((name, _)) if name.contains(':') => return Err(InvalidTarget::Ipv6),
            Some((name, port)) => (name, parse_port(port)?),
        };
        Ok(Self { name: name.parse()?, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

/// Digits only: `u16::from_str` would take a plus sign.
fn parse_port(text: &str) -> Result<u16, InvalidTarget> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidTarget::Port);
    }
    match text.parse() {
        Ok(0) | Err(_) => Err(InvalidTarget::Port),
        Ok(port) => Ok(port),
    }
}

/// Why an authority names no service.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidTarget {
    /// Services are named, not addressed: an IPv6 literal.
    #[error("an IPv6 literal names no service")]
    Ipv6,
    /// The name part is no DNS name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The port part is not 1 to 65535.
    #[error("a port is a number from 1 to 65535")]
    Port,
}

/// Where a server of ours is: a host and a port, as the operator writes them.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// The port, 1 to 65535.
    pub port: u16,
}

/// The host of a [`HostPort`].
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Host {
    /// An address; an IPv6 one stands in brackets. `localhost` is 127.0.0.1.
    Ip(IpAddr),
    /// A name to ask DNS for, taken as absolute whether or not it ends with a dot.
    Name(Name),
}

impl HostPort {
    /// Whether what is sent there never leaves this host: the address is loopback. A name says nothing of that kind.
    pub fn is_loopback(&self) -> bool {
        matches!(self.host, Host::Ip(ip) if ip.to_canonical().is_loopback())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => write!(f, "{}", SocketAddr::new(*ip, self.port)),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl FromStr for HostPort {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return if addr.port() == 0 { Err(InvalidTarget::Port) } else { Ok(addr.into()) };
        }
        let (host, port) = text.rsplit_once(':').ok_or(InvalidTarget::Port)?;
        let name: Name = host.parse()?;
        let host = match name.as_str() {
            "localhost" => Host::Ip(Ipv4Addr::LOCALHOST.into()),
            _ => Host::Name(name),
        };
        Ok(Self { host, port: parse_port(port)? })
    }
}

impl From<SocketAddr> for HostPort {
    fn from(addr: SocketAddr) -> Self {
        Self { host: Host::Ip(addr.ip()), port: addr.port() }
    }
}

/// A DNS suffix that ends at a label boundary: `svc.cluster.local` holds `web.ns.svc.cluster.local`, not `xsvc.cluster.local`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Suffix {
    /// Every name. Written `.`.
    All,
    /// Names below this one (and the name itself).
    Below(Name),
}

impl Suffix {
    /// Whether `name` is the suffix or lies below it.
    pub fn holds(&self, name: &Name) -> bool {
        match self {
            Self::All => true,
            Self::Below(suffix) => {
                name.as_str().strip_suffix(suffix.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
        }
    }
}

impl fmt::Display for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("."),
            Self::Below(name) => write!(f, "{name}"),
        }
    }
}

impl FromStr for Suffix {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.strip_prefix('.').unwrap_or(text) {
            "" if text == "." => Ok(Self::All),
            rest => rest.parse().map(Self::Below),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn targets() {
        for (text, want) in [
            ("Web.ns.svc.cluster.local:8080", Ok("web.ns.svc.cluster.local:8080")),
            ("web.ns.svc.cluster.local.:80", Ok("web.ns.svc.cluster.local:80")),
            ("web", Ok("web:80")),
            ("[::1]:80", Err(InvalidTarget::Ipv6)),
            ("::1", Err(InvalidTarget::Ipv6)),
            ("web:", Err(InvalidTarget::Port)),
            ("web:0", Err(InvalidTarget::Port)),
            ("web:65536", Err(InvalidTarget::Port)),
            ("web:+80", Err(InvalidTarget::Port)),
            ("user@web:80", Err(InvalidTarget::Name(InvalidName::Character))),
            ("", Err(InvalidTarget::Name(InvalidName::Length))),
            ("a..b:80", Err(InvalidTarget::Name(InvalidName::Label))),
        ] {
            let got = Target::parse(text, 80);
            assert_eq!(got.map(|target| target.to_string()), want.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn suffixes_end_at_labels() {
        let suffix: Suffix = "svc.Cluster.local.".parse().expect("a suffix");
        assert!(suffix.holds(&name("web.ns.svc.cluster.local")));
        assert!(suffix.holds(&name("svc.cluster.local")));
        assert!(!suffix.holds(&name("xsvc.cluster.local")));
        assert!(!suffix.holds(&name("svc.cluster.local.evil.example")));
        assert!(".".parse::<Suffix>().expect("all").holds(&name("anything")));
        assert!("".parse::<Suffix>().is_err());
    }
}

//! The small words of the configuration: durations, sizes, and texts that are read once and checked where they stand, so
//! that the error names line and column.
//!
//! **In** a YAML scalar. **Out** the value, and back to the same text. **Refuses** with what was found and what would be
//! right.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::addr::{HostPort, Name, Suffix, Target};
use crate::gateway::http::identify;
use crate::identity::Identity;
use crate::tls::{Fingerprint, inspect};

/// A length of time: a number and `ms`, `s`, `m`, `h` or `d`; a bare 0 is zero.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Time(pub Duration);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no duration; write a number and ms, s, m, h or d, such as 500ms or 10s");
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, unit) = text.split_at(unit_at);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        Duration::try_from_secs_f64(number * seconds).map(Self).map_err(|_| wrong())
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
            if millis >= size && millis.is_multiple_of(size) {
                return write!(f, "{}{unit}", millis / size);
            }
        }
        write!(f, "{millis}ms")
    }
}

/// A number of bytes: a number, alone or with `B`, `KiB`, `MiB` or `GiB`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Size(pub u64);

impl Size {
    /// As an in-memory size.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// As a 32-bit size, the most that HTTP/2 can say.
    pub fn bytes_u32(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no size; write a number of bytes, or one with KiB, MiB or GiB, such as 64KiB");
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let factor = match unit.trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= size && self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Reads a text by `FromStr`, at the place where it stands.
struct Text<T>(fn(&str) -> Result<T, String>, &'static str);

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text.trim()).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        (self.0)(&number.to_string()).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        (self.0)(&number.to_string()).map_err(E::custom)
    }
}

macro_rules! text_scalar {
    ($type:ty, $name:literal, $expects:literal, $pattern:literal, $parse:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Text($parse, $expects))
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": ["string", "integer"], "pattern": $pattern, "description": $expects })
            }
        }
    };
}

text_scalar!(Time, "Duration", "a duration such as 500ms, 10s, 5m, 1h or 0", r"^(0|[0-9.]+(ms|s|m|h|d))$", |text| text
    .parse());
text_scalar!(Size, "Size", "a size in bytes such as 16384, 64KiB or 1MiB", r"^[0-9]+ *(B|KiB|MiB|GiB)?$", |text| text
    .parse());

/// A DNS name.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct DnsName(pub Name);

/// A name and a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authority(pub Target);

/// A DNS suffix; `.` is every name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DnsSuffix(pub Suffix);

/// An identity: a DNS-like name, or a URI such as a SPIFFE id.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdentityText(pub Identity);

/// Where a server is: a host and a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostPortText(pub HostPort);

macro_rules! shown_by_its_inside {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

shown_by_its_inside!(Authority, DnsName, DnsSuffix, HostPortText, IdentityText);

text_scalar!(DnsName, "DnsName", "a DNS name such as web.prod.svc.cluster.local", r"^[A-Za-z0-9_.-]+$", |text| text
    .parse()
    .map(DnsName)
    .map_err(|error| format!("`{text}` is no DNS name: {error}")));
text_scalar!(
    Authority,
    "Authority",
    "a name and a port such as web.prod.svc.cluster.local:80",
    r"^[A-Za-z0-9_.-]+(:[0-9]+)?$",
    |text| Target::parse(text, 80).map(Authority).map_err(|error| format!("`{text}` is no authority: {error}"))
);
text_scalar!(
    DnsSuffix,
    "DnsSuffix",
    "a DNS suffix such as svc.cluster.local, or `.` for every name",
    r"^[A-Za-z0-9_.-]+$",
    |text| text.parse().map(DnsSuffix).map_err(|error| format!("`{text}` is no DNS suffix: {error}"))
);
text_scalar!(
    HostPortText,
    "HostPort",
    "a host and a port such as linkerd-dst-headless.linkerd.svc.cluster.local:8086",
    r"^\S+:[0-9]+$",
    |text| text.parse().map(HostPortText).map_err(|error| format!("`{text}` is no host and port: {error}"))
);
text_scalar!(
    IdentityText,
    "Identity",
    "an identity such as web.prod.serviceaccount.identity.linkerd.cluster.local or spiffe://east.example/ns/prod/sa/web",
    r"^\S+$",
    |text| Identity::parse(text).map(IdentityText).map_err(|error| format!("`{text}` is {error}"))
);

/// The name of an HTTP field that may carry the assertion.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FieldName(pub HeaderName);

impl Default for FieldName {
    fn default() -> Self {
        Self(identify::ASSERTION)
    }
}

impl FromStr for FieldName {
    type Err = String;

    /// Refuses names that mean something else on the way: they would be overwritten, or overwrite.
    fn from_str(text: &str) -> Result<Self, String> {
        let name: HeaderName = text.parse().map_err(|_| format!("`{text}` is no name of an HTTP header"))?;
        let lower = name.as_str();
        let taken = TAKEN.contains(&lower) || identify::RESERVED.contains(&lower) || lower.starts_with("l5d-");
        if taken {
            return Err(format!(
                "`{text}` has a meaning of its own; take another name, such as {}",
                identify::ASSERTION
            ));
        }
        Ok(Self(name))
    }
}

/// Fields that framing, routing, hops or gRPC need as they are.
const TAKEN: [&str; 20] = [
    "accept",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "grpc-timeout",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "traceparent",
];

/// The name of a cluster, as logs and metrics show it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClusterName(pub Arc<str>);

impl FromStr for ClusterName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte));
        if fits && (1..=63).contains(&text.len()) {
            Ok(Self(text.into()))
        } else {
            Err(format!("`{text}` is no name of a cluster; write 1 to 63 letters, digits, `-`, `_`, `.`, `/` or `:`"))
        }
    }
}

/// The name of a namespace of Kubernetes: a DNS label (RFC 1123) in lower case.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct NamespaceName(pub Arc<str>);

impl FromStr for NamespaceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let fits = text.bytes().all(|byte| plain(byte) || byte == b'-');
        let ends = [text.bytes().next(), text.bytes().next_back()].into_iter().all(|end| end.is_some_and(plain));
        if fits && ends && text.len() <= 63 {
            Ok(Self(text.into()))
        } else {
            Err(format!("`{text}` is no namespace; write 1 to 63 lower-case letters, digits and `-`"))
        }
    }
}

/// SHA-256 of a certificate, in hexadecimal digits with or without colons.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct FingerprintText(pub Fingerprint);

impl FromStr for FingerprintText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = || inspect::unhex(text)?.try_into().ok();
        digits().map(Self).ok_or_else(|| {
            format!(
                "`{text}` is no SHA-256 fingerprint; write 64 hexadecimal digits, as `isthmus certs show` prints them"
            )
        })
    }
}

impl fmt::Display for FingerprintText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

shown_by_its_inside!(ClusterName, FieldName, NamespaceName);

text_scalar!(FieldName, "FieldName", "the name of an HTTP header", r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", |text| text
    .parse());
text_scalar!(ClusterName, "ClusterName", "the name of a cluster", r"^[A-Za-z0-9_./:-]{1,63}$", |text| text.parse());
text_scalar!(
    NamespaceName,
    "NamespaceName",
    "the name of a namespace",
    r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
    |text| { text.parse() }
);
text_scalar!(
    FingerprintText,
    "Fingerprint",
    "the SHA-256 fingerprint of a certificate, 64 hexadecimal digits",
    r"^[0-9A-Fa-f:]{64,95}$",
    |text| text.parse()
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_fields_clusters_and_certificates() {
        for (text, fine) in [
            ("isthmus-client-assertion", true),
            ("X-Client-JWT", true),
            ("authorization", true),
            ("x-forwarded-for", false),
            ("L5D-anything", false),
            ("Host", false),
            ("no header", false),
            ("", false),
        ] {
            assert_eq!(text.parse::<FieldName>().is_ok(), fine, "{text}");
        }
        for (text, fine) in [("west", true), ("eu-1/west", true), ("", false), ("a b", false), ("é", false)] {
            assert_eq!(text.parse::<ClusterName>().is_ok(), fine, "{text}");
        }
        let digits = "0A:".repeat(31) + "ff";
        let fingerprint: FingerprintText = digits.parse().unwrap();
        assert_eq!(fingerprint.to_string(), "0a".repeat(31) + "ff");
        assert_eq!(fingerprint.to_string().parse::<FingerprintText>().unwrap(), fingerprint);
        assert!("0a".parse::<FingerprintText>().is_err() && "x".repeat(64).parse::<FingerprintText>().is_err());
    }

    #[test]
    fn durations_and_sizes_read_back_as_they_are_shown() {
        for (text, millis) in
            [("0", 0), ("500ms", 500), ("10s", 10_000), ("5m", 300_000), ("1.5s", 1500), ("2d", 172_800_000)]
        {
            let time: Time = text.parse().unwrap();
            assert_eq!(time.0.as_millis(), millis);
            assert_eq!(time.to_string().parse::<Time>().unwrap(), time);
        }
        for (text, bytes) in [("0", 0), ("16384", 16384), ("64KiB", 65536), ("1 MiB", 1 << 20), ("3GiB", 3 << 30)] {
            let size: Size = text.parse().unwrap();
            assert_eq!(size.0, bytes);
            assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
        }
        for bad in ["10", "s", "-1s", "1w", "1e9999s", "nan"] {
            assert!(bad.parse::<Time>().is_err(), "{bad}");
        }
        for bad in ["1KB", "-1", "", "99999999999GiB", "1.5MiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}

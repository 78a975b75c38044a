//! The operator's words for this room, as they stand in a file.
//!
//! **In** what serde reads (`authorise:` of the configuration, and policy files). **Out** [`Settings`], plain text still:
//! the meaning is found when a [`Policy`](super::Policy) is compiled from them. **Refuses** unknown fields.
//!
//! An absent list sets no condition ("any client"). A list that is there but empty is refused when the policy is
//! compiled: it is what a template leaves behind when it went wrong, and "any client" is not what its author meant.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Serialize, Serializer};

use super::served::{LinkerdSettings, Origin};

/// Who may reach what, and how much of it.
#[derive(Clone, Debug, serde::Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the policy comes from: `rules`, which is this section and its files, or `linkerd`, its policy controller. With
    /// `linkerd`, `mode`, `exported_only`, `limits*` and `observe` count as they stand here, and `default` and `rules` do not.
    pub source: Origin,
    /// The word of Linkerd's policy controller, where `source` is `linkerd`. Where the controller is stands in
    /// `sources.linkerd.policy`.
    pub linkerd: LinkerdSettings,
    /// `enforce`: refuse what the policy refuses. `audit`: let everything through, and record what would be refused.
    pub mode: Mode,
    /// What happens to what no rule allows: `deny`, or `authenticated` to let any verified identity through.
    pub default: DefaultAction,
    /// Only services that a source marks as exported can be reached, whatever the rules say.
    pub exported_only: bool,
    /// The trust domains that a `*` at the end of a client pattern stands for, such as `cluster.local`. Where none is
    /// listed, it is the trust domain of the gateway's own certificate.
    pub trust_domains: Vec<String>,
    /// Limits for all clients together.
    pub limits: LimitSettings,
    /// Limits for each client identity, over all services.
    pub limits_per_client: LimitSettings,
    /// Limits for each service, over all clients.
    pub limits_per_service: LimitSettings,
    /// How many client identities (times rules with limits per client) are counted apart. What goes beyond shares one count.
    pub limits_tracked: u32,
    /// Which decisions are remembered for `/state` and `isthmus policy suggest`.
    pub observe: Observe,
    /// How many kinds of call each worker remembers; further ones are gathered, then only counted.
    pub observed: usize,
    /// Policy files with more rules, such as `policy.d/shop.yaml`, each a YAML file that holds `rules:` and nothing else.
    /// They and this section are followed while the gateway runs, whole or not at all.
    pub files: Vec<PathBuf>,
    /// The rules, in any order: a deny rule wins over every allow rule.
    pub rules: Vec<RuleSettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            source: Origin::Rules,
            linkerd: LinkerdSettings::default(),
            mode: Mode::Enforce,
            default: DefaultAction::Deny,
            exported_only: true,
            trust_domains: Vec::new(),
            limits: LimitSettings::default(),
            limits_per_client: LimitSettings::default(),
            limits_per_service: LimitSettings::default(),
            limits_tracked: 16_384,
            observe: Observe::Refused,
            observed: 2048,
            files: Vec::new(),
            rules: Vec::new(),
        }
    }
}

/// Whether a refusal is carried out or only recorded.
#[derive(Clone, Copy, Debug, Default, serde::Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Let through, and record what would have been refused.
    Audit,
    /// Refuse.
    #[default]
    Enforce,
}

/// Which decisions are remembered.
#[derive(Clone, Copy, Debug, Default, serde::Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Observe {
    /// All of them: what `isthmus policy suggest` needs of a gateway that already enforces. Costs about half a
    /// microsecond a request.
    All,
    /// What was refused, and what audit mode would have refused.
    #[default]
    Refused,
}

/// What happens to what no rule allows.
#[derive(Clone, Copy, Debug, Default, serde::Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DefaultAction {
    /// Any verified identity is let through.
    Authenticated,
    /// It is refused.
    #[default]
    Deny,
}

/// What a rule does with what it holds for.
#[derive(Clone, Copy, Debug, serde::Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Let it through.
    Allow,
    /// Refuse it, whatever other rules allow.
    Deny,
}

/// One rule. It holds when all of its conditions hold; within one list, one entry is enough.
#[derive(Clone, Debug, serde::Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSettings {
    /// The rule's name: in logs, metrics and refusals. Unique.
    pub name: String,
    /// Client identities. A `*` stands for one whole label (or path segment of a URI), a leading `**.` for one or more
    /// labels, `/*` at the end of a URI for everything below. A `*` at the end of a DNS-like name stands for the known
    /// trust domains; `**` at the end for any. `*` alone is any verified client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<Vec<String>>,
    /// Networks that the client connects from: `10.0.0.0/8`, or `{ cidr: 10.0.0.0/8, except: [10.1.0.0/16] }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<NetworkSettings>>,
    /// Services as `name` or `name:port`. A `*` stands for one whole label, a leading `**.` for one or more, `*` alone for
    /// every service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<String>>,
    /// Conditions on HTTP requests. A rule that has them never allows an opaque connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSettings>,
    /// Conditions on gRPC calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcSettings>,
    /// `allow` or `deny`.
    pub action: Action,
    /// Limits for all that this rule lets through.
    #[serde(default, skip_serializing_if = "LimitSettings::is_empty")]
    pub limits: LimitSettings,
    /// Limits for each client identity that this rule lets through.
    #[serde(default, skip_serializing_if = "LimitSettings::is_empty")]
    pub limits_per_client: LimitSettings,
    /// `audit`: what this rule would refuse (what a deny rule holds for, what exceeds an allow rule's limits) is let
    /// through and recorded.
    #[serde(default, skip_serializing_if = "is_enforce")]
    pub mode: Mode,
}

fn is_enforce(mode: &Mode) -> bool {
    *mode == Mode::Enforce
}

/// Conditions on an HTTP request. All of them must hold.
#[derive(Clone, Debug, Default, serde::Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// Methods, in capitals: `GET`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// Paths: `=/health` that path alone, `/v1/*` everything below; `*` stands for one whole segment elsewhere. Compared
    /// after normalisation; the query is no part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// Header fields with the values that are looked for; `*` for any value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<BTreeMap<String, Vec<String>>>,
    /// Hosts of the request's authority, written as services are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
}

/// Conditions on a gRPC call.
#[derive(Clone, Debug, serde::Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GrpcSettings {
    /// The full name of the gRPC service: `acme.Payments`.
    pub service: String,
    /// Its methods: `Charge`. Absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
}

/// Limits of one scope. What is absent is not limited.
#[derive(Clone, Debug, Default, serde::Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// Requests per second, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u32>,
    /// Requests that may come at once before the average counts. Default: one second's worth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Requests under way at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_requests: Option<u32>,
    /// Connections open at the same time. In a rule and per service: opaque and upgraded ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Bytes per second, both directions together: `50MiB`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<ByteSize>,
}

impl LimitSettings {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One network, with what is taken out of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetworkSettings {
    /// `10.0.0.0/8`, `fd00::/8` or one address.
    pub cidr: String,
    /// Networks inside it that do not count.
    pub except: Vec<String>,
}

/// The longer of the two ways to write a network.
#[derive(serde::Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
struct NetworkMap {
    /// `10.0.0.0/8`, `fd00::/8` or one address.
    cidr: String,
    /// Networks inside it that do not count.
    #[serde(default)]
    except: Vec<String>,
}

impl<'de> Deserialize<'de> for NetworkSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Both;
        impl<'de> Visitor<'de> for Both {
            type Value = NetworkSettings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a network such as 10.0.0.0/8, or { cidr: ..., except: [...] }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<NetworkSettings, E> {
                Ok(NetworkSettings { cidr: text.to_owned(), except: Vec::new() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<NetworkSettings, A::Error> {
                let NetworkMap { cidr, except } = NetworkMap::deserialize(MapAccessDeserializer::new(map))?;
                Ok(NetworkSettings { cidr, except })
            }
        }
        deserializer.deserialize_any(Both)
    }
}

impl Serialize for NetworkSettings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.except.is_empty() {
            return serializer.serialize_str(&self.cidr);
        }
        NetworkMap { cidr: self.cidr.clone(), except: self.except.clone() }.serialize(serializer)
    }
}

impl JsonSchema for NetworkSettings {
    fn schema_name() -> Cow<'static, str> {
        "Network".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let map = generator.subschema_for::<NetworkMap>();
        json_schema!({ "anyOf": [{ "type": "string" }, map] })
    }
}

/// A number of bytes, written with or without a unit: `1500`, `64KiB`, `50MiB`, `1GB`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// Units and what one of them holds, the largest first of each family.
    const UNITS: [(&'static str, u64); 7] = [
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("kB", 1_000),
        ("B", 1),
    ];
}

/// The text is no number of bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a number of bytes is written as 1500, 64KiB, 50MiB or 1GB")]
pub struct InvalidByteSize;

impl FromStr for ByteSize {
    type Err = InvalidByteSize;

    fn from_str(text: &str) -> Result<Self, InvalidByteSize> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start();
        let factor = match Self::UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
            _ if unit.is_empty() => 1,
            Some((_, factor)) => *factor,
            None => return Err(InvalidByteSize),
        };
        number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).map(Self).ok_or(InvalidByteSize)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = Self::UNITS.iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        let (name, factor) = unit.unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / factor)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Both;
        impl Visitor<'_> for Both {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes such as 1500, 64KiB or 50MiB")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Both)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9]+ *([KMG]i?B|kB|B)?$" },
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_sizes() {
        for (text, want) in
            [("0", 0), ("1500", 1500), ("64KiB", 65536), ("50MiB", 52_428_800), ("1GB", 1_000_000_000), ("2 kb", 2000)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(want)), "{text}");
        }
        for bad in ["", "MiB", "-1", "1.5MiB", "1XB", "99999999999999GiB", "+1"] {
            assert_eq!(bad.parse::<ByteSize>(), Err(InvalidByteSize), "{bad}");
        }
        for text in ["0B", "1500B", "64KiB", "50MiB", "1GB", "3kB"] {
            assert_eq!(text.parse::<ByteSize>().expect("a size").to_string(), text);
        }
    }

    #[test]
    fn a_network_is_written_in_two_ways() {
        let both: Vec<NetworkSettings> =
            serde_saphyr::from_str("- 10.0.0.0/8\n- { cidr: fd00::/8, except: [fd00:1::/32] }\n")
                .expect("two networks");
        assert_eq!(both[0], NetworkSettings { cidr: "10.0.0.0/8".into(), except: vec![] });
        assert_eq!(both[1].except, ["fd00:1::/32"]);
        assert!(serde_saphyr::from_str::<NetworkSettings>("{ cidr: fd00::/8, excep: [] }").is_err());
        assert!(serde_saphyr::from_str::<NetworkSettings>("3").is_err());
    }
}

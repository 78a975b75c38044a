//! What `sources.linkerd` means: which services of a control plane are asked, and how.
//!
//! **In** the section as it was written. **Out** the settings of its connections and of the source. **Refuses** plaintext to
//! another host, limits of nothing, and the section itself in a binary that was built without it.

use super::Config;
use super::file::{Linkerd, Sources};

#[cfg(feature = "linkerd")]
use super::on;
#[cfg(feature = "linkerd")]
use crate::addr::{HostPort, Name};
#[cfg(feature = "linkerd")]
use crate::backoff::Backoff;
#[cfg(feature = "linkerd")]
use crate::endpoint::UpstreamTls;
#[cfg(feature = "linkerd")]
use crate::identity::Identity;
#[cfg(feature = "linkerd")]
use crate::sources::linkerd::{control, destination};

/// A control plane as a source of services.
#[cfg(feature = "linkerd")]
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// Where services are asked for.
    pub destination: control::Settings,
    /// Where policies for connections of bytes are asked for.
    pub policy: Option<control::Settings>,
    /// How they are asked for.
    pub settings: destination::Settings,
}

impl Config {
    /// The control plane that services are asked of, where there is one.
    #[cfg(feature = "linkerd")]
    pub fn linkerd(&self) -> Option<ControlPlane> {
        let file = &self.file.sources.linkerd;
        let identity = |name: &Option<super::scalar::DnsName>| name.as_ref().map(|name| name.0.clone());
        let service = |name: &'static str, at: &HostPort, identity: Option<Name>| control::Settings {
            name,
            at: at.clone(),
            server: identity.map(|name| UpstreamTls { identity: Identity::Dns(name.clone()), server_name: name }),
            transport: file.transport(),
        };
        let policy = file.policy.as_ref().map(|at| service("policy", &at.0, identity(&file.policy_identity)));
        file.enabled.then(|| ControlPlane {
            destination: service("destination", &file.destination.0, identity(&file.destination_identity)),
            policy,
            settings: destination::Settings {
                context: file.context(&["ns", "nodeName", "pod"]),
                workload: file.context(&["ns", "pod"]),
                exported: file.exported,
                own: file.own_addresses.clone(),
                allow_local: file.allow_local,
                max_endpoints: file.max_endpoints,
                max_branches: file.max_branches,
                negative_ttl: file.negative_ttl.0,
            },
        })
    }

    /// What is wrong with it, if anything: the key and why.
    pub(super) fn check_linkerd(&self) -> Result<(), (String, String)> {
        let file = &self.file.sources.linkerd;
        let wrong = |key: &str, message: String| Err((format!("sources.linkerd.{key}"), message));
        if !file.enabled {
            return Ok(());
        }
        if !cfg!(feature = "linkerd") {
            return wrong("enabled", "this binary was built without the feature `linkerd`".to_owned());
        }
        let policy = file.policy.as_ref().map(|at| ("policy_identity", at, &file.policy_identity));
        let destination = ("destination_identity", &file.destination, &file.destination_identity);
        for (key, at, identity) in [Some(destination), policy].into_iter().flatten() {
            if identity.is_none() && !at.0.is_loopback() {
                let message = format!("missing; {at} is not this host, and only this host is spoken to in plaintext");
                return wrong(key, message);
            }
        }
        for (key, most) in [("max_endpoints", file.max_endpoints), ("max_branches", file.max_branches)] {
            if most == 0 {
                return wrong(key, "0 would leave nothing to send traffic to".to_owned());
            }
        }
        for (key, time) in [
            ("connect_timeout", file.connect_timeout),
            ("initial_timeout", file.initial_timeout),
            ("negative_ttl", file.negative_ttl),
        ] {
            if time.0.is_zero() {
                return wrong(key, "0 would ask without end and never wait for an answer".to_owned());
            }
        }
        Ok(())
    }
}

impl Sources {
    /// Whether a service that the table does not hold counts as exported: by who is asked for it.
    pub(super) fn found_exported(&self) -> bool {
        if self.linkerd.enabled { self.linkerd.exported } else { self.dns.enabled && self.dns.exported }
    }
}

impl Linkerd {
    #[cfg(feature = "linkerd")]
    pub(super) fn transport(&self) -> control::Transport {
        control::Transport {
            connect_timeout: self.connect_timeout.0,
            keepalive_interval: on(self.keepalive_interval),
            keepalive_timeout: self.keepalive_timeout.0,
            backoff: Backoff { max: self.max_backoff.0, ..control::Transport::default().backoff },
            streams: control::Guards {
                initial_timeout: self.initial_timeout.0,
                idle_timeout: on(self.idle_timeout),
                lifetime: on(self.lifetime),
            },
        }
    }

    /// The words in which the control plane is told who asks: those of them that are known, as JSON in this order.
    pub(super) fn context(&self, words: &[&str]) -> String {
        let of = |word: &str| match word {
            "ns" => self.namespace.as_ref(),
            "nodeName" => self.node.as_ref(),
            _ => self.pod.as_ref(),
        };
        let known = words.iter().filter_map(|word| Some(format!("{}:{}", quoted(word), quoted(of(word)?))));
        let known: Vec<_> = known.collect();
        if known.is_empty() { String::new() } else { format!("{{{}}}", known.join(",")) }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(all(test, feature = "linkerd"))]
mod tests {
    use super::*;

    #[test]
    fn the_control_plane_is_told_what_is_known_of_who_asks() {
        let mut file = Linkerd::default();
        assert_eq!(file.context(&["ns", "nodeName", "pod"]), "");
        file.namespace = Some("mc".to_owned());
        file.pod = Some("gw-\"0\"".to_owned());
        assert_eq!(file.context(&["ns", "nodeName", "pod"]), r#"{"ns":"mc","pod":"gw-\"0\""}"#);
        file.node = Some("n1".to_owned());
        assert_eq!(file.context(&["ns", "nodeName", "pod"]), r#"{"ns":"mc","nodeName":"n1","pod":"gw-\"0\""}"#);
        assert_eq!(file.context(&["ns", "pod"]), r#"{"ns":"mc","pod":"gw-\"0\""}"#);
    }
}

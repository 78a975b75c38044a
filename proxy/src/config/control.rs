//! The control plane's keys, made into settings of its sources; and what is wrong with them across keys.

use super::Config;
use super::file::IdentitySource;
use crate::addr::HostPort;
use crate::authorise::Origin;
#[cfg(feature = "linkerd")]
use crate::backoff::Backoff;
use crate::endpoint::UpstreamTls;
use crate::identity::Identity;
use crate::sources::dns;
use crate::sources::files::anchors::AnchorFiles;
#[cfg(feature = "linkerd")]
use crate::sources::linkerd::{control, identity::certify, policy, spiffe as svid};

type Wrong = (String, String);

impl Config {
    /// The files of the trust anchors, for a gateway that will be `identity`.
    pub fn anchor_files(&self, identity: Identity) -> AnchorFiles {
        let tls = &self.file.tls;
        AnchorFiles {
            identity,
            bundle: self.path(&tls.bundle_file),
            crls: tls.crl_files.iter().map(|path| self.path(path)).collect(),
            settings: self.credentials(),
        }
    }

    /// How names of the control plane are asked for.
    pub fn control_dns(&self) -> dns::Settings {
        let file = &self.file.sources.dns;
        dns::Settings {
            servers: file.servers.clone(),
            timeout: file.timeout.0,
            min_ttl: file.min_ttl.0,
            max_ttl: file.max_ttl.0,
            // A control plane beside the gateway is as good as any: it must prove who it is.
            allow_local: true,
            ..dns::Settings::default()
        }
    }

    /// Whose policy is asked for, in the controller's words; empty where nobody said.
    pub fn workload(&self) -> String {
        let own = || self.file.sources.linkerd.context(&["ns", "pod"]);
        self.file.authorise.linkerd.workload.clone().unwrap_or_else(own)
    }

    pub(super) fn check_control(&self) -> Result<(), Wrong> {
        let file = &self.file;
        let linkerd = file.identity.source != IdentitySource::Files || file.authorise.source == Origin::Linkerd;
        if linkerd && cfg!(not(feature = "linkerd")) {
            let key =
                if file.identity.source == IdentitySource::Files { "authorise.source" } else { "identity.source" };
            return Err((key.to_owned(), "this build was made without Linkerd (feature `linkerd`)".to_owned()));
        }
        self.check_identity()?;
        self.check_policy()
    }

    fn check_identity(&self) -> Result<(), Wrong> {
        let wrong = |key: &str, message: &str| Err((format!("identity.{key}"), message.to_owned()));
        let identity = &self.file.identity;
        let name = identity.name.as_ref().map(|name| &name.0);
        match (identity.source, name) {
            (IdentitySource::Files, Some(_)) => {
                return wrong("name", "with files the certificate says who the gateway is; leave it out");
            }
            (IdentitySource::Files, None) => return Ok(()),
            (IdentitySource::Linkerd, Some(Identity::Dns(_))) | (IdentitySource::Spiffe, Some(Identity::Uri(_))) => {}
            (IdentitySource::Linkerd, _) => {
                let right = "ACCOUNT.NAMESPACE.serviceaccount.identity.linkerd.TRUST-DOMAIN";
                return wrong("name", &format!("the identity controller needs the gateway's name: {right}"));
            }
            (IdentitySource::Spiffe, _) => {
                return wrong(
                    "name",
                    "which SVID is the gateway's? A SPIFFE id such as spiffe://east.example/ns/mc/sa/gateway",
                );
            }
        }
        if identity.source == IdentitySource::Spiffe {
            let socket = identity.spiffe.socket.strip_prefix("unix:");
            if !socket.is_some_and(|path| path.starts_with('/') && path.trim_start_matches('/').len() > 1) {
                return wrong("spiffe.socket", "the Workload API's socket, such as unix:///run/spire/agent.sock");
            }
            if self.file.tls.server_names.is_empty() && self.file.tls.sni == super::SniRule::Own {
                let message = "a SPIFFE id is no server name, and peers ask for one: name it (`sni: any` takes all)";
                return Err(("tls.server_names".to_owned(), message.to_owned()));
            }
            return Ok(());
        }
        let linkerd = &identity.linkerd;
        let Some(address) = &linkerd.address else {
            let right = "linkerd-identity-headless.linkerd.svc.cluster.local:8080";
            return wrong("linkerd.address", &format!("missing; where the identity controller is, such as {right}"));
        };
        let server = linkerd.server.as_ref().map(|server| &server.0);
        server_of(&address.0, server).map_err(|message| ("identity.linkerd.server".to_owned(), message))?;
        if linkerd.min_refresh.0.is_zero() || linkerd.max_refresh < linkerd.min_refresh {
            return wrong("linkerd.min_refresh", "more than 0, and at most max_refresh");
        }
        Ok(())
    }

    fn check_policy(&self) -> Result<(), Wrong> {
        let authorise = &self.file.authorise;
        let wrong = |key: &str, message: String| Err((format!("authorise.{key}"), message));
        if authorise.source == Origin::Rules {
            return Ok(());
        }
        for (key, empty) in [("rules", authorise.rules.is_empty()), ("files", authorise.files.is_empty())] {
            if !empty {
                return wrong(key, "with `source: linkerd` the policy controller's word is the policy; two would contradict each other".to_owned());
            }
        }
        let linkerd = &authorise.linkerd;
        let sources = &self.file.sources.linkerd;
        let Some(address) = &sources.policy else {
            let right = "linkerd-policy.linkerd.svc.cluster.local:8090";
            let message = format!("missing; `authorise.source` asks the policy controller, such as {right}");
            return Err(("sources.linkerd.policy".to_owned(), message));
        };
        let server = sources.policy_identity.as_ref().map(|name| Identity::Dns(name.0.clone()));
        server_of(&address.0, server.as_ref())
            .map_err(|message| ("sources.linkerd.policy_identity".to_owned(), message))?;
        if self.workload().is_empty() {
            let right = r#"{"ns":"linkerd-multicluster","pod":"linkerd-gateway-0"}"#;
            return wrong(
                "linkerd.workload",
                format!("missing; whose policy to ask for, such as '{right}' (or sources.linkerd.namespace and pod)"),
            );
        }
        if linkerd.port == 0 {
            return wrong("linkerd.port", "a port is a number from 1 to 65535; the gateway's is 4143".to_owned());
        }
        for (at, net) in linkerd.cluster_networks.iter().enumerate() {
            if net.parse::<ipnet::IpNet>().is_err() {
                return wrong(
                    &format!("linkerd.cluster_networks[{at}]"),
                    format!("`{net}` is no network, such as 10.0.0.0/8"),
                );
            }
        }
        if linkerd.default.needs_cluster_networks() && linkerd.cluster_networks.is_empty() {
            return wrong(
                "linkerd.cluster_networks",
                "missing; `default: cluster-authenticated` needs to know the cluster's networks".to_owned(),
            );
        }
        Ok(())
    }
}

/// Whom to expect at an address: nobody on this host, somebody with a DNS-like name anywhere else.
fn server_of(address: &HostPort, server: Option<&Identity>) -> Result<Option<UpstreamTls>, String> {
    match server {
        None if address.is_loopback() => Ok(None),
        None => Err(format!("missing; who {address} must be. Only loopback addresses are spoken to in plaintext")),
        Some(identity @ Identity::Dns(name)) => {
            Ok(Some(UpstreamTls { identity: identity.clone(), server_name: name.clone() }))
        }
        Some(Identity::Uri(_)) => Err("a DNS-like name, which is also what the server is asked for by".to_owned()),
    }
}

#[cfg(feature = "linkerd")]
impl Config {
    /// One service of the control plane: what it is called, where it is, and who it must be.
    pub fn control(&self, name: &'static str, at: HostPort, server: Option<&Identity>) -> control::Settings {
        let server = server_of(&at, server).unwrap_or_default();
        control::Settings { name, at, server, transport: self.file.sources.linkerd.transport() }
    }

    /// The identity controller, where that is where the certificate comes from.
    pub fn certify(&self) -> Option<(control::Settings, certify::Settings)> {
        let identity = &self.file.identity;
        let linkerd = &identity.linkerd;
        let (IdentitySource::Linkerd, Some(name), Some(address)) = (identity.source, &identity.name, &linkerd.address)
        else {
            return None;
        };
        let control = self.control("identity", address.0.clone(), linkerd.server.as_ref().map(|server| &server.0));
        let settings = certify::Settings {
            name: name.0.clone(),
            token_file: self.path(&linkerd.token_file),
            timeout: linkerd.timeout.0,
            min_refresh: linkerd.min_refresh.0,
            max_refresh: linkerd.max_refresh.0,
            backoff: Backoff { max: linkerd.min_refresh.0, ..control.transport.backoff },
        };
        Some((control, settings))
    }

    /// The Workload API, where that is where the certificate comes from, and the files beside it.
    pub fn spiffe(&self) -> Option<(svid::Settings, svid::BesideFiles)> {
        let identity = &self.file.identity;
        let (IdentitySource::Spiffe, Some(name)) = (identity.source, &identity.name) else { return None };
        let settings = svid::Settings {
            socket: identity.spiffe.socket.clone(),
            name: name.0.clone(),
            timeout: identity.spiffe.timeout.0,
            backoff: self.file.sources.linkerd.transport().backoff,
            credentials: self.credentials(),
        };
        let tls = &self.file.tls;
        let bundle = Some(&tls.bundle_file).filter(|file| !file.as_os_str().is_empty()).map(|file| self.path(file));
        let crls = tls.crl_files.iter().map(|path| self.path(path)).collect();
        Some((settings, svid::BesideFiles { bundle, crls }))
    }

    /// The policy controller, where that is where the policy comes from.
    pub fn policy_control(&self) -> Option<(control::Settings, policy::Settings)> {
        let authorise = &self.file.authorise;
        let sources = &self.file.sources.linkerd;
        let (Origin::Linkerd, Some(address)) = (authorise.source, &sources.policy) else { return None };
        let server = sources.policy_identity.as_ref().map(|name| Identity::Dns(name.0.clone()));
        let settings =
            policy::Settings { workload: self.workload(), port: authorise.linkerd.port, words: authorise.clone() };
        Some((self.control("policy", address.0.clone(), server.as_ref()), settings))
    }
}

#[cfg(all(test, feature = "linkerd"))]
mod tests {
    use std::path::Path;

    use super::*;

    fn parsed(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("x.yaml"), text).map_err(|error| error.to_string())
    }

    const LINKERD: &str = "\
tls: { bundle_file: b }
identity:
  source: linkerd
  name: gw.ns.serviceaccount.identity.linkerd.cluster.local
  linkerd:
    address: linkerd-identity.linkerd.svc.cluster.local.:8080
    server: linkerd-identity.linkerd.serviceaccount.identity.linkerd.cluster.local
";

    const SPIFFE: &str = "\
tls: { server_names: [gw.example] }
identity:
  source: spiffe
  name: spiffe://east.example/gw
  spiffe: { socket: unix:///run/agent.sock }
";

    const POLICY: &str = "\
tls: { chain_file: a, key_file: b, bundle_file: c }
sources:
  linkerd: { policy: 127.0.0.1:8090, policy_identity: null }
authorise:
  source: linkerd
  linkerd:
    workload: w
";

    #[test]
    fn what_is_right_becomes_settings() {
        let config = parsed(LINKERD).expect("right");
        let (control, settings) = config.certify().expect("an identity controller");
        assert_eq!(control.at.to_string(), "linkerd-identity.linkerd.svc.cluster.local:8080");
        assert!(control.server.is_some_and(|server| server.identity.as_str().starts_with("linkerd-identity.")));
        assert_eq!(settings.name.as_str(), "gw.ns.serviceaccount.identity.linkerd.cluster.local");
        assert_eq!(config.identity(), Some(settings.name));
        assert!(config.spiffe().is_none() && config.policy_control().is_none());
        let (settings, files) = parsed(SPIFFE).expect("right").spiffe().expect("a Workload API");
        assert_eq!((settings.socket.as_str(), files), ("unix:///run/agent.sock", svid::BesideFiles::default()));
        let (control, settings) = parsed(POLICY).expect("right").policy_control().expect("a policy controller");
        assert_eq!((control.server, settings.port), (None, 4143));
        let transport = control.transport;
        assert_eq!(transport, control::Transport::default(), "the defaults of both are the same");
    }

    /// Each is one of the right ones with one thing changed: what is said, and where.
    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (right, from, to, place, says) in [
            (LINKERD, "bundle_file: b", "", "x.yaml:1:", "tls.bundle_file: missing"),
            (
                LINKERD,
                "bundle_file: b",
                "bundle_file: b, key_file: k",
                "x.yaml:1:",
                "tls.key_file: the certificate comes from",
            ),
            (
                LINKERD,
                "name: gw.ns",
                "name: spiffe://gw.ns",
                "x.yaml:4:",
                "identity.name: the identity controller needs",
            ),
            (
                LINKERD,
                "    address: linkerd-identity.linkerd.svc.cluster.local.:8080\n",
                "",
                "x.yaml:5:",
                "address: missing",
            ),
            (LINKERD, ".local.:8080", ".local", "x.yaml:6:", "is no host and port"),
            (
                LINKERD,
                "    server: linkerd-identity.linkerd.serviceaccount.identity.linkerd.cluster.local\n",
                "",
                "x.yaml:5:",
                "only loopback",
            ),
            (LINKERD, "server: linkerd", "server: spiffe://linkerd", "x.yaml:7:", "a DNS-like name"),
            (LINKERD, "  linkerd:\n", "  linkerd:\n    min_refresh: 2d\n", "x.yaml:6:", "at most max_refresh"),
            (LINKERD, "source: linkerd\n", "source: files\n", "x.yaml:", "missing"),
            (LINKERD, "source: linkerd\n", "source: lincerd\n", "x.yaml:3:", "linkerd"),
            (SPIFFE, "name: spiffe://east.example/gw", "name: gw.example", "x.yaml:4:", "which SVID"),
            (SPIFFE, "unix:///run/agent.sock", "tcp://127.0.0.1:1", "x.yaml:5:", "the Workload API's socket"),
            (SPIFFE, "unix:///run/agent.sock", "unix:run", "x.yaml:5:", "the Workload API's socket"),
            (SPIFFE, "server_names: [gw.example]", "", "x.yaml:1:", "a SPIFFE id is no server name"),
            (POLICY, "127.0.0.1:8090", "10.0.0.1:8090", "x.yaml:3:", "only loopback"),
            (POLICY, "127.0.0.1:8090", "nowhere", "x.yaml:3:", "nowhere"),
            (POLICY, "policy: 127.0.0.1:8090", "policy: null", "x.yaml:3:", "missing"),
            (POLICY, "    workload: w\n", "    port: 1\n", "x.yaml:6:", "whose policy"),
            (POLICY, "workload: w", "workload: w\n    port: 0", "x.yaml:8:", "a port is"),
            (
                POLICY,
                "workload: w",
                "workload: w\n    default: cluster-authenticated",
                "x.yaml:6:",
                "cluster_networks: missing",
            ),
            (POLICY, "workload: w", "workload: w\n    default: all-unauthenticated", "x.yaml:8:", "all-authenticated"),
            (POLICY, "workload: w", "workload: w\n    cluster_networks: [ten]", "x.yaml:8:", "`ten` is no network"),
            (
                POLICY,
                "  source: linkerd\n",
                "  source: linkerd\n  rules: [{ name: a, action: allow }]\n",
                "x.yaml:6:",
                "contradict",
            ),
        ] {
            assert!(right.contains(from), "{from}");
            let said = parsed(&right.replacen(from, to, 1)).expect_err(to).to_lowercase();
            assert!(said.starts_with(place) && said.contains(&says.to_lowercase()), "{from} -> {to}: {said}");
        }
    }
}

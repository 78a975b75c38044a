//! The operator's words, made into each room's own settings.
//!
//! **In** a configuration file, and the few words that flags and environment may change per pod. **Out** [`Config`]: the file
//! as it was meant, from which each room's `Settings` are made. **Refuses** with file, line, column, what was found and what
//! would be right; nothing is half taken.
//!
//! Configuration stands above the stages: it knows their settings, and no stage knows it.

pub mod bound;
mod check;
mod control;
pub mod file;
mod identify;
mod kubernetes;
mod limits;
pub mod linkerd;
pub mod reference;
pub mod scalar;
mod services;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use self::check::place_of;
use self::file::{AccessLogRule, ExpiredCrl, File, LogFormat, SniRule, Speaks};
use self::scalar::Time;
use crate::addr::Target;
use crate::authorise::Policy;
use crate::backoff::Backoff;
use crate::connect::{self, PoolSettings};
use crate::endpoint;
use crate::identity::Identity;
use crate::sources::dns;
use crate::sources::files::{self, credentials::CredentialFiles};
use crate::sources::policy::{self, PolicyFiles, Text, Words, misread};
use crate::telemetry::lines::Destination;
#[cfg(feature = "otlp")]
use crate::telemetry::traces;
use crate::telemetry::{access_log, logs, metrics};
use crate::{admin, balance, detect, gateway, relay, route, tls};

/// A configuration that was read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// As it was written, defaults filled in.
    pub file: File,
    /// Paths in it are relative to this.
    pub folder: PathBuf,
    /// The file itself.
    pub source: PathBuf,
    /// Its text, in which places are found.
    text: Arc<str>,
}

/// A policy that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The configuration around it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] files::Wrong),
    /// What stands in the files.
    #[error(transparent)]
    Words(#[from] policy::Problems),
}

/// A configuration that cannot be used: where, what was found, and what would be right.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Line and column, both from 1, where they are known.
    pub place: Option<(u64, u64)>,
    /// What is wrong and what would be right.
    pub message: String,
}

impl ConfigError {
    fn text(&self) -> String {
        match self.place {
            Some((line, column)) => format!("{}:{line}:{column}: {}", self.file.display(), self.message),
            None => format!("{}: {}", self.file.display(), self.message),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_with(path, |_| {})
    }

    /// Reads a file, lets what is said elsewhere (flags, the environment) replace what it says, and checks what came out.
    pub fn load_with(path: &Path, replace: impl FnOnce(&mut File)) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            file: path.to_owned(),
            place: None,
            message: format!("cannot be read: {error}"),
        })?;
        Self::parse_with(path, &text, replace)
    }

    /// Reads and checks a text that stands in `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::parse_with(path, text, |_| {})
    }

    fn parse_with(path: &Path, text: &str, replace: impl FnOnce(&mut File)) -> Result<Self, ConfigError> {
        let text_or_empty = if text.trim().is_empty() { "{}" } else { text };
        let mut file: File = misread::read(text_or_empty).map_err(|misread| ConfigError {
            file: path.to_owned(),
            place: misread.place.map(|place| (place.line, place.column)),
            message: misread.to_string(),
        })?;
        replace(&mut file);
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        let config = Self { file, folder, source: path.to_owned(), text: text.into() };
        config.check().map_err(|(key, message)| ConfigError {
            file: path.to_owned(),
            place: place_of(text_or_empty, &key),
            message: format!("{key}: {message}"),
        })?;
        Ok(config)
    }

    /// The path as this file means it.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }
}

fn on(time: Time) -> Option<Duration> {
    Some(time.0).filter(|time| !time.is_zero())
}

impl From<Speaks> for endpoint::Speaks {
    fn from(speaks: Speaks) -> Self {
        match speaks {
            Speaks::AsClient => Self::AsClient,
            Speaks::Http1 => Self::Http1,
            Speaks::Http2 => Self::Http2,
            Speaks::Opaque => Self::Opaque,
        }
    }
}

/// Each room's settings.
impl Config {
    /// `accept`
    pub fn accept(&self) -> gateway::accept::Settings {
        let accept = &self.file.accept;
        gateway::accept::Settings {
            backlog: accept.backlog.into(),
            max_connections: accept.max_connections,
            nodelay: accept.nodelay,
            keepalive: on(accept.keepalive),
            user_timeout: on(accept.user_timeout),
            proxy_networks: accept.proxy_networks.clone(),
            proxy_timeout: accept.proxy_timeout.0,
        }
    }

    /// `accept`, the shares of source networks.
    pub fn networks(&self) -> gateway::networks::Settings {
        let accept = &self.file.accept;
        gateway::networks::Settings {
            prefix_v4: accept.network_prefix_v4,
            prefix_v6: accept.network_prefix_v6,
            max_connections: accept.max_connections_per_network,
            max_unidentified: accept.max_unidentified_per_network,
        }
    }

    /// `tls`, for the gateway port.
    pub fn tls(&self) -> tls::Settings {
        let tls = &self.file.tls;
        let sni = match tls.sni {
            SniRule::Any => tls::Sni::Any,
            SniRule::Own if self.file.detect.sni_routing => {
                tls::Sni::OwnOr(self.file.route.suffixes.iter().map(|suffix| suffix.0.clone()).collect())
            }
            SniRule::Own => tls::Sni::Own,
        };
        tls::Settings {
            handshake_timeout: tls.handshake_timeout.0,
            max_hello_bytes: tls.max_hello_bytes.bytes(),
            sni,
            alpn: true,
        }
    }

    /// How credentials are read.
    pub fn credentials(&self) -> tls::credentials::Settings {
        let tls = &self.file.tls;
        tls::credentials::Settings {
            server_names: tls.server_names.iter().map(|name| name.0.clone()).collect(),
            refuse_expired_crls: tls.expired_crl == ExpiredCrl::Refuse,
            refuse_unknown_revocation: tls.require_revocation_status,
        }
    }

    /// The files of the credentials.
    pub fn credential_files(&self) -> CredentialFiles {
        let tls = &self.file.tls;
        CredentialFiles {
            chain: self.path(&tls.chain_file),
            key: self.path(&tls.key_file),
            bundle: self.path(&tls.bundle_file),
            crls: tls.crl_files.iter().map(|path| self.path(path)).collect(),
            settings: self.credentials(),
        }
    }

    /// The policy of this file and of the policy files that it names, which are read now. Only for what is not followed:
    /// who follows the files makes it of [`policy_files`](Self::policy_files).
    pub fn policy(&self, own: Option<&Identity>) -> Result<Policy, PolicyError> {
        let paths: Vec<PathBuf> =
            self.file.authorise.files.iter().map(|file| policy::beside(&self.source, file)).collect();
        let read = files::snapshot(&paths)?;
        let texts = policy::texts(&read.pieces)?;
        let files: Vec<Text<'_>> = texts.iter().map(|(file, text)| Text { file, text }).collect();
        let main = self.source.display().to_string();
        let words = Words::read(Text { file: &main, text: &self.text }, &files)?;
        Ok(words.compile(own, None)?)
    }

    /// The policy of a file without a gateway around it: a whole configuration (which is returned besides), or a policy file
    /// alone, which is judged with the defaults for all that only a configuration says. `own` is the gateway's identity where
    /// the certificate that the configuration names is not to be asked, or is not here.
    pub fn offline(path: &Path, own: Option<Identity>) -> Result<(Policy, Option<Self>), PolicyError> {
        let read = files::snapshot(&[path.to_owned()])?;
        let texts = policy::texts(&read.pieces)?;
        let (file, text) = texts.first().map_or(("", ""), |(file, text)| (file, *text));
        let text = Text { file, text };
        if text.is_policy_file() {
            return Ok((Words::read(Text { file, text: "" }, &[text])?.compile(own.as_ref(), None)?, None));
        }
        let config = Self::parse(path, text.text)?;
        let own = own.or_else(|| config.identity());
        Ok((config.policy(own.as_ref())?, Some(config)))
    }

    /// Whether a service can be reached where only exported ones can, as far as this file tells: by its table, else by what
    /// finds it.
    pub fn exported(&self, target: &Target) -> bool {
        let table = &self.file.sources.services;
        match table.iter().find(|service| service.name.0 == target.name && service.port == target.port) {
            Some(service) => service.exported,
            // A label in the cluster decides, which no file tells: the rules are then all that is left to judge by.
            None if self.file.sources.kubernetes.enabled => true,
            None => self.file.sources.found_exported(),
        }
    }

    /// The files of the policy.
    pub fn policy_files(&self, own: Option<Identity>) -> PolicyFiles {
        PolicyFiles { main: self.source.clone(), own, serving: None }
    }

    /// Who the gateway is: by this file, or by the certificate that it names, where that can be read.
    pub fn identity(&self) -> Option<Identity> {
        if let Some(name) = &self.file.identity.name {
            return Some(name.0.clone());
        }
        let text = std::fs::read(self.path(&self.file.tls.chain_file)).ok()?;
        let blocks = tls::pem::blocks(&text).ok()?;
        let leaf = blocks.into_iter().find_map(|block| match block {
            tls::pem::Block::Certificate(der) => Some(der),
            _ => None,
        })?;
        tls::inspect::certificate(&leaf).ok()?.identities.into_iter().next()
    }

    /// When files are read again.
    pub fn files(&self) -> files::Settings {
        files::Settings { interval: self.file.tls.reload_interval.0, ..files::Settings::default() }
    }

    /// `detect`
    pub fn detect(&self) -> detect::Settings {
        let detect = &self.file.detect;
        detect::Settings {
            timeout: detect.timeout.0,
            sni_routing: detect.sni_routing,
            sni_default_port: detect.sni_port,
            ..detect::Settings::default()
        }
    }

    /// `route`
    pub fn route(&self) -> route::Settings {
        let route = &self.file.route;
        route::Settings {
            suffixes: route.suffixes.iter().map(|suffix| suffix.0.clone()).collect(),
            default_port: route.default_port,
            discovery_timeout: route.discovery_timeout.0,
            max_demanded: route.max_services,
            idle_timeout: route.idle_timeout.0,
            demanded_exported: self.file.sources.found_exported(),
        }
    }

    /// `balance`
    pub fn balance(&self) -> balance::Settings {
        let balance = &self.file.balance;
        balance::Settings {
            zone: balance.zone.as_deref().map(balance::Zone::known).unwrap_or_default(),
            first_rtt: balance.first_rtt.0,
            decay: balance.decay.0,
            max_connect_failures: balance.max_connect_failures,
            max_response_failures: balance.max_response_failures,
            ejection: Backoff { min: balance.ejection_min.0, max: balance.ejection_max.0, jitter: 0.2 },
            max_ejected: balance.max_ejected,
            queue: balance.queue,
            failfast_timeout: balance.failfast_timeout.0,
            ..balance::Settings::default()
        }
    }

    /// `connect`, the sockets.
    pub fn connect(&self) -> connect::Settings {
        let connect = &self.file.connect;
        connect::Settings {
            timeout: connect.timeout.0,
            keepalive: on(connect.keepalive),
            user_timeout: on(connect.user_timeout),
            deny_loopback: connect.deny_loopback,
            ..connect::Settings::default()
        }
    }

    /// `connect`, the pools.
    pub fn pool(&self) -> PoolSettings {
        let connect = &self.file.connect;
        PoolSettings {
            dial_timeout: connect.timeout.0,
            http1_connections: connect.max_connections,
            http1_idle: connect.max_idle,
            http1_idle_timeout: connect.idle_timeout.0,
            http2_connections: connect.max_http2_connections,
            http2_streams: connect.max_streams,
            http2_window: connect.stream_window.bytes_u32(),
            http2_ping_interval: on(connect.keepalive_interval),
            http2_ping_timeout: connect.keepalive_timeout.0,
            max_age: connect.max_age.0,
            ..PoolSettings::default()
        }
    }

    /// `relay`
    pub fn relay(&self) -> relay::Settings {
        let relay = &self.file.relay;
        relay::Settings { idle_timeout: on(relay.idle_timeout), total_timeout: on(relay.total_timeout) }
    }

    /// `admin`
    pub fn admin(&self) -> admin::Settings {
        let from = if self.file.admin.remote_log_level { admin::From::Anywhere } else { admin::From::Loopback };
        admin::Settings { log_level_from: from, ..admin::Settings::default() }
    }

    /// `http`
    pub fn http(&self) -> gateway::http::Settings {
        let http = &self.file.http;
        gateway::http::Settings {
            header_timeout: http.header_timeout.0,
            max_requests: http.max_requests,
            min_body_rate: http.min_body_rate.0,
            body_window: http.body_window.0,
            stall_timeout: on(http.stall_timeout),
            max_resets: http.max_resets,
            max_control_frames: http.max_control_frames,
            idle_timeout: http.idle_timeout.0,
            max_age: on(http.max_age),
            request_timeout: on(http.request_timeout),
            max_header_bytes: http.max_header_bytes.bytes_u32(),
            max_headers: http.max_headers,
            max_streams: http.max_streams,
            stream_window_bytes: http.stream_window.bytes_u32(),
            connection_window_bytes: http.connection_window.bytes_u32(),
            max_send_buffer_bytes: http.max_send_buffer.bytes(),
            max_pending_resets: http.max_pending_resets,
            max_local_resets: http.max_local_resets,
            keepalive_interval: on(http.keepalive_interval),
            keepalive_timeout: http.keepalive_timeout.0,
            max_retries: http.max_retries,
            retry_budget: http.retry_budget,
            max_retry_body_bytes: http.max_retry_body.bytes(),
        }
    }

    /// The probe endpoint.
    pub fn probe(&self) -> isthmus_probe::endpoint::Settings {
        let probe = &self.file.probe;
        isthmus_probe::endpoint::Settings {
            path: probe.path.clone(),
            max_connections: probe.max_connections,
            ..isthmus_probe::endpoint::Settings::default()
        }
    }

    /// The process's log.
    pub fn logs(&self) -> logs::Settings {
        let telemetry = &self.file.telemetry;
        let format = match telemetry.log_format {
            LogFormat::Json => logs::Format::Json,
            LogFormat::Text => logs::Format::Text,
        };
        logs::Settings { filter: telemetry.log.clone(), format, ..logs::Settings::default() }
    }

    /// The access log.
    pub fn access_log(&self) -> access_log::Settings {
        let telemetry = &self.file.telemetry;
        let path = telemetry.access_log_file.as_ref();
        access_log::Settings {
            filter: match telemetry.access_log {
                AccessLogRule::All => access_log::Filter::All,
                AccessLogRule::Errors => access_log::Filter::Errors,
                AccessLogRule::Off => access_log::Filter::Off,
            },
            format: match telemetry.access_log_format {
                LogFormat::Json => access_log::Format::Json,
                LogFormat::Text => access_log::Format::Text,
            },
            destination: path.map_or(Destination::Stdout, |path| Destination::File(self.path(path))),
            sample: telemetry.access_log_sample,
            ..access_log::Settings::default()
        }
    }

    /// Which requests are recorded as spans, where any are.
    pub fn trace(&self) -> Option<gateway::trace::Settings> {
        let traces = &self.file.telemetry.traces;
        let settings = gateway::trace::Settings { sample: traces.sample, follow_client: traces.follow_client };
        traces.endpoint.is_some().then_some(settings)
    }

    /// Where spans go, where they go anywhere.
    #[cfg(feature = "otlp")]
    pub fn traces(&self) -> Option<traces::Settings> {
        let traces = &self.file.telemetry.traces;
        traces.endpoint.clone().map(|endpoint| traces::Settings {
            endpoint,
            service_name: traces.service_name.clone(),
            timeout: traces.timeout.0,
            queue: traces.queue,
        })
    }

    /// The bounds of metrics.
    pub fn metrics(&self) -> metrics::Settings {
        let telemetry = &self.file.telemetry;
        metrics::Settings {
            max_services: telemetry.max_services,
            max_clients: telemetry.max_clients,
            linkerd: telemetry.linkerd_metrics,
            ..metrics::Settings::default()
        }
    }

    /// DNS, where it is on.
    pub fn dns(&self) -> Option<dns::Settings> {
        let file = &self.file.sources.dns;
        let target = |srv: &file::DnsSrv| Target { name: srv.service.0.clone(), port: srv.port };
        file.enabled.then(|| dns::Settings {
            servers: file.servers.clone(),
            suffixes: self.file.route.suffixes.iter().map(|suffix| suffix.0.clone()).collect(),
            srv: file.srv.iter().map(|srv| (target(srv), srv.name.0.clone())).collect(),
            timeout: file.timeout.0.min(self.file.route.discovery_timeout.0 / 3),
            min_ttl: file.min_ttl.0,
            max_ttl: file.max_ttl.0,
            max_negative_ttl: file.negative_ttl.0,
            max_endpoints: file.max_endpoints,
            exported: file.exported,
            speaks: file.protocol.into(),
            allow_local: file.allow_local,
            ..dns::Settings::default()
        })
    }

    /// The three listeners: gateway, probe, admin.
    pub fn listeners(&self) -> [SocketAddr; 3] {
        [self.file.accept.listen, self.file.probe.listen, self.file.admin.listen]
    }
}

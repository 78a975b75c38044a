//! The table of services: the rows of `sources.services`, as what the directory publishes.
//!
//! **In** rows that have been read. **Out** services with their endpoints. **Refuses** rows that contradict themselves or
//! one another, with the key at fault.

use std::collections::HashSet;
use std::sync::Arc;

use super::file::{Service, ServiceHttp2, ServiceTls, Speaks};
use super::scalar::{Size, Time};
use super::{Config, on};
use crate::addr::Target;
use crate::endpoint::{Endpoint, Endpoints, Http2Params, Tunnel, UpstreamTls};
use crate::identity::Identity;
use crate::route::Published;

impl Config {
    /// The table of services.
    pub fn services(&self) -> Vec<Published> {
        let rows = self.file.sources.services.iter();
        rows.map(|service| {
            let alike = alike(service);
            let list = service.endpoints.iter().map(|endpoint| Endpoint {
                addr: endpoint.address,
                weight: endpoint.weight,
                zone: endpoint.zone.as_deref().map(Arc::from),
                ..alike.clone()
            });
            Published {
                target: Target { name: service.name.0.clone(), port: service.port },
                exported: service.exported,
                endpoints: Arc::new(Endpoints { list: list.collect() }),
            }
        })
        .collect()
    }

    pub(super) fn check_services(&self) -> Result<(), (String, String)> {
        let suffixes = &self.file.route.suffixes;
        let mut seen = HashSet::new();
        for (index, service) in self.file.sources.services.iter().enumerate() {
            let key = |field: &str| format!("sources.services[{index}].{field}");
            if service.port == 0 {
                return Err((key("port"), "a port is a number from 1 to 65535".to_owned()));
            }
            if !seen.insert((service.name.0.clone(), service.port)) {
                return Err((key("name"), format!("{}:{} stands in the table twice", service.name, service.port)));
            }
            if !suffixes.iter().any(|suffix| suffix.0.holds(&service.name.0)) {
                return Err((
                    key("name"),
                    format!("{} lies outside route.suffixes and could never be reached", service.name),
                ));
            }
            if let Err((field, message)) = check(service) {
                return Err((key(field), message.to_owned()));
            }
        }
        Ok(())
    }
}

/// What a row alone can have wrong.
fn check(service: &Service) -> Result<(), (&'static str, &'static str)> {
    if let Some(tls) = &service.tls
        && tls.server_name.is_none()
        && matches!(tls.identity.0, Identity::Uri(_))
    {
        return Err(("tls", "an identity that is a URI needs a server_name, as SNI holds names only"));
    }
    if service.orig_proto && service.protocol != Speaks::AsClient {
        return Err(("orig_proto", "goes with `protocol: as_client` only; with another protocol nothing is carried"));
    }
    if let Some(header) = &service.transport_header {
        if service.tls.is_none() {
            return Err(("transport_header", "needs `tls`: a transport header is agreed on by ALPN"));
        }
        if header.port == 0 {
            return Err(("transport_header.port", "a port is a number from 1 to 65535"));
        }
    }
    if let Some(http2) = &service.http2 {
        let outside = |size: Option<Size>, least, most| size.is_some_and(|size| !(least..=most).contains(&size.0));
        if outside(http2.max_frame, 16_384, 16_777_215) {
            return Err(("http2.max_frame", "a frame's limit is 16384 to 16777215 bytes (RFC 9113 §6.5.2)"));
        }
        for (key, window) in
            [("http2.stream_window", http2.stream_window), ("http2.connection_window", http2.connection_window)]
        {
            if outside(window, 16_384, MAX_WINDOW_BYTES) {
                return Err((
                    key,
                    "a window is 16KiB, below which nothing flows, to 2147483647 bytes (RFC 9113 §6.9.1)",
                ));
            }
        }
    }
    Ok(())
}

/// The largest flow-control window (RFC 9113 §6.9.1).
const MAX_WINDOW_BYTES: u64 = (1 << 31) - 1;

/// What all endpoints of a row have in common.
fn alike(service: &Service) -> Endpoint {
    let tunnel = service.transport_header.as_ref().map(|header| {
        let name = header.name.as_ref().map(|name| name.0.clone());
        Arc::new(Tunnel { port: header.port, name, opaque: header.opaque })
    });
    Endpoint {
        speaks: service.protocol.into(),
        orig_proto: service.orig_proto,
        tls: service.tls.as_ref().map(|tls| Arc::new(upstream(tls))),
        tunnel,
        authority: service.authority.as_ref().map(|authority| Arc::new(authority.0.clone())),
        http2: service.http2.as_ref().map(|http2| Arc::new(params(http2))),
        ..Endpoint::new(([0, 0, 0, 0], 0).into())
    }
}

fn upstream(tls: &ServiceTls) -> UpstreamTls {
    let name = tls.server_name.as_ref().map(|name| name.0.clone());
    let name = name.or_else(|| match &tls.identity.0 {
        Identity::Dns(name) => Some(name.clone()),
        Identity::Uri(_) => None,
    });
    let server_name = name.expect("checked: an identity without a name has a server_name");
    UpstreamTls { identity: tls.identity.0.clone(), server_name }
}

fn params(http2: &ServiceHttp2) -> Http2Params {
    let time = |time: Option<Time>| time.and_then(on);
    Http2Params {
        stream_window: http2.stream_window.map(Size::bytes_u32),
        connection_window: http2.connection_window.map(Size::bytes_u32),
        adaptive_window: http2.adaptive_window,
        ping_interval: time(http2.keepalive_interval),
        ping_timeout: time(http2.keepalive_timeout),
        ping_while_idle: http2.keepalive_while_idle,
        max_frame_size: http2.max_frame.map(Size::bytes_u32),
        max_send_buffer: http2.max_send_buffer.map(Size::bytes_u32),
        max_reset_streams: http2.max_reset_streams,
    }
}

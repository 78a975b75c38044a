//! Reads a server's policy as the controller sends it.
//!
//! **In** a message. **Out** [`Served`], and what of it could not be read: an authorization that cannot be read lets nobody
//! in, a route whose match cannot be read is in everybody's way (what it may be for, it may be for). **Refuses** a message
//! without a protocol, as it says nothing. (Linkerd wire document §7.1 and §7.4.)

use http::header::HeaderName;
use ipnet::IpNet;
use linkerd2_proxy_api::grpc_route::GrpcRouteMatch;
use linkerd2_proxy_api::http_route::{
    HostMatch, HttpRouteMatch, header_match, host_match, path_match, query_param_match,
};
use linkerd2_proxy_api::inbound::authn::{Permit, permit_mesh_tls::Clients};
use linkerd2_proxy_api::inbound::{self, Authz, GrpcRoute, HttpLocalRateLimit, HttpRoute, proxy_protocol::Kind};
use linkerd2_proxy_api::meta::{Metadata, metadata};

use crate::authorise::Served;
use crate::authorise::served::{Authorization, Host, Match, Net, Path, RateLimits, Route, Value, Who};
use crate::identity::Identity;

/// What was read.
#[derive(Clone, Debug)]
pub struct Read {
    /// The policy.
    pub served: Served,
    /// What could not be read, each a sentence that names it.
    pub problems: Vec<String>,
}

/// The message says nothing of the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the policy controller sent a policy of no protocol, or of one that is not known here")]
pub struct NoProtocol;

/// Reads a message.
pub fn server(server: &inbound::Server) -> Result<Read, NoProtocol> {
    let kind = server.protocol.as_ref().and_then(|protocol| protocol.kind.as_ref()).ok_or(NoProtocol)?;
    let name = server.labels.get("name").filter(|name| !name.is_empty()).map_or("server", String::as_str);
    let mut reader = Reader { problems: Vec::new() };
    let mut served = Served { server: name.to_owned(), ..Served::default() };
    let http = |reader: &mut Reader, routes: &[HttpRoute]| routes.iter().map(|route| reader.http(route)).collect();
    let opaque = |reader: &mut Reader| Some(reader.authorizations("the server", &server.authorizations));
    match kind {
        Kind::Detect(detect) => {
            served.opaque = opaque(&mut reader);
            served.routes = http(&mut reader, &detect.http_routes);
            served.limits = reader.limits(detect.http_local_rate_limit.as_ref());
        }
        Kind::Grpc(grpc) => served.routes = grpc.routes.iter().map(|route| reader.grpc(route)).collect(),
        Kind::Http1(http1) => {
            served.routes = http(&mut reader, &http1.routes);
            served.limits = reader.limits(http1.local_rate_limit.as_ref());
        }
        Kind::Http2(http2) => {
            served.routes = http(&mut reader, &http2.routes);
            served.limits = reader.limits(http2.local_rate_limit.as_ref());
        }
        Kind::Opaque(_) | Kind::Tls(_) => served.opaque = opaque(&mut reader),
    }
    Ok(Read { served, problems: reader.problems })
}

/// The name of a resource, as operators know it.
fn name_of(metadata: Option<&Metadata>) -> String {
    match metadata.and_then(|metadata| metadata.kind.as_ref()) {
        Some(metadata::Kind::Default(name)) => name.clone(),
        Some(metadata::Kind::Resource(resource)) if resource.section.is_empty() => resource.name.clone(),
        Some(metadata::Kind::Resource(resource)) => format!("{}.{}", resource.name, resource.section),
        None => String::new(),
    }
}

struct Reader {
    problems: Vec<String>,
}

impl Reader {
    fn wrong(&mut self, problem: String) {
        self.problems.push(problem);
    }

    fn authorizations(&mut self, of: &str, list: &[Authz]) -> Vec<Authorization> {
        list.iter().filter_map(|authz| self.authorization(of, authz)).collect()
    }

    fn authorization(&mut self, of: &str, authz: &Authz) -> Option<Authorization> {
        let mut name = name_of(authz.metadata.as_ref());
        if name.is_empty() {
            name = authz.labels.get("name").cloned().unwrap_or_else(|| "unnamed".to_owned());
        }
        let place = format!("the authorization {name} of {of}");
        let clients = match authz.authentication.as_ref().and_then(|authentication| authentication.permit.as_ref()) {
            // Every client here has shown a certificate, so those who need none are all.
            Some(Permit::Unauthenticated(_)) => vec![Who::Anyone],
            Some(Permit::MeshTls(mesh)) => match &mesh.clients {
                Some(Clients::Unauthenticated(_)) => vec![Who::Anyone],
                Some(Clients::Identities(permitted)) => {
                    let names =
                        permitted.identities.iter().filter_map(|identity| self.identity(&place, &identity.name));
                    let mut clients: Vec<Who> = names.map(Who::Exact).collect();
                    clients.extend(permitted.suffixes.iter().map(|suffix| match suffix.parts.as_slice() {
                        [] => Who::Anyone,
                        parts => Who::Suffix(parts.to_vec()),
                    }));
                    clients
                }
                None => Vec::new(),
            },
            None => Vec::new(),
        };
        if clients.is_empty() {
            self.wrong(format!("{place} names no clients that are known here"));
            return None;
        }
        let mut networks = Vec::new();
        for network in &authz.networks {
            let net = network.net.and_then(|net| IpNet::try_from(net).ok());
            let except: Result<Vec<IpNet>, _> = network.except.iter().map(|net| IpNet::try_from(*net)).collect();
            match (net, except) {
                (Some(net), Ok(except)) => networks.push(Net { net, except }),
                // Without its exceptions a network would hold for more than was meant.
                _ => self.wrong(format!("{place} has a network that cannot be read")),
            }
        }
        Some(Authorization { name, clients, networks })
    }

    fn identity(&mut self, place: &str, text: &str) -> Option<Identity> {
        let identity = Identity::parse(text);
        if let Err(error) = &identity {
            self.wrong(format!("{place} names '{text}', which is {error}"));
        }
        identity.ok()
    }

    fn http(&mut self, route: &HttpRoute) -> Route {
        let name = name_of(route.metadata.as_ref());
        let place = format!("the route {name}");
        let mut matches = Vec::new();
        for rule in &route.rules {
            if !rule.filters.is_empty() {
                self.wrong(format!("{place} has filters, which are not carried out"));
            }
            if rule.matches.is_empty() {
                matches.push(Match::default());
            }
            matches.extend(rule.matches.iter().map(|wanted| self.http_match(&place, wanted)));
        }
        let authorizations = self.authorizations(&place, &route.authorizations);
        Route { hosts: self.hosts(&place, &route.hosts, &mut matches), matches, authorizations, name }
    }

    fn grpc(&mut self, route: &GrpcRoute) -> Route {
        let name = name_of(route.metadata.as_ref());
        let place = format!("the route {name}");
        let mut matches = Vec::new();
        for rule in &route.rules {
            if !rule.filters.is_empty() {
                self.wrong(format!("{place} has filters, which are not carried out"));
            }
            if rule.matches.is_empty() {
                matches.push(Match { method: Some(http::Method::POST), ..Match::default() });
            }
            matches.extend(rule.matches.iter().map(|wanted| self.grpc_match(&place, wanted)));
        }
        let authorizations = self.authorizations(&place, &route.authorizations);
        Route { hosts: self.hosts(&place, &route.hosts, &mut matches), matches, authorizations, name }
    }

    /// A host that cannot be read makes the matches unreadable: without it the route would be for every host.
    fn hosts(&mut self, place: &str, hosts: &[HostMatch], matches: &mut [Match]) -> Vec<Host> {
        let mut read = Vec::new();
        for host in hosts {
            match &host.r#match {
                Some(host_match::Match::Exact(name)) => read.push(Host::Exact(name.to_ascii_lowercase())),
                Some(host_match::Match::Suffix(suffix)) if !suffix.reverse_labels.is_empty() => {
                    let labels: Vec<&str> = suffix.reverse_labels.iter().rev().map(String::as_str).collect();
                    read.push(Host::Below(labels.join(".").to_ascii_lowercase()));
                }
                _ => {
                    self.wrong(format!("{place} has a host that cannot be read"));
                    matches.iter_mut().for_each(|wanted| wanted.unreadable = true);
                    return Vec::new();
                }
            }
        }
        read
    }

    fn http_match(&mut self, place: &str, wanted: &HttpRouteMatch) -> Match {
        let mut read = Match::default();
        match wanted.path.as_ref().map(|path| &path.kind) {
            None => {}
            Some(Some(path_match::Kind::Exact(path))) => read.path = Path::Exact(path.clone()),
            Some(Some(path_match::Kind::Prefix(prefix))) => read.path = Path::Prefix(prefix.clone()),
            Some(Some(path_match::Kind::Regex(regex))) => match regex.parse() {
                Ok(pattern) => read.path = Path::Regex(pattern),
                Err(_) => {
                    self.unreadable(&mut read, &format!("{place} has a path expression {regex:?} that cannot be read"))
                }
            },
            Some(None) => self.unreadable(&mut read, &format!("{place} has a path of a kind that is not known here")),
        }
        self.headers(place, &wanted.headers, &mut read);
        for parameter in &wanted.query_params {
            let value = match &parameter.value {
                Some(query_param_match::Value::Exact(value)) => Some(Value::Exact(value.as_bytes().into())),
                Some(query_param_match::Value::Regex(regex)) => regex.parse().ok().map(Value::Regex),
                None => None,
            };
            match value {
                Some(value) => read.query.push((parameter.name.clone(), value)),
                None => self
                    .unreadable(&mut read, &format!("{place} has a parameter {} that cannot be read", parameter.name)),
            }
        }
        match wanted.method.clone().map(http::Method::try_from) {
            None => {}
            Some(Ok(method)) => read.method = Some(method),
            Some(Err(_)) => self.unreadable(&mut read, &format!("{place} has a method that cannot be read")),
        }
        read
    }

    fn grpc_match(&mut self, place: &str, wanted: &GrpcRouteMatch) -> Match {
        let mut read = Match { method: Some(http::Method::POST), ..Match::default() };
        let rpc = wanted.rpc.as_ref().map_or(("", ""), |rpc| (rpc.service.as_str(), rpc.method.as_str()));
        read.path = match rpc {
            ("", "") => Path::Any,
            (service, "") => Path::Prefix(format!("/{service}")),
            ("", method) => match format!("/[^/]+/{}", escaped(method)).parse() {
                Ok(pattern) => Path::Regex(pattern),
                Err(_) => {
                    self.unreadable(&mut read, &format!("{place} has a method {method:?} that cannot be read"));
                    Path::Any
                }
            },
            (service, method) => Path::Exact(format!("/{service}/{method}")),
        };
        self.headers(place, &wanted.headers, &mut read);
        read
    }

    fn headers(&mut self, place: &str, wanted: &[linkerd2_proxy_api::http_route::HeaderMatch], read: &mut Match) {
        for field in wanted {
            let value = match &field.value {
                Some(header_match::Value::Exact(value)) => Some(Value::Exact(value.as_slice().into())),
                Some(header_match::Value::Regex(regex)) => regex.parse().ok().map(Value::Regex),
                None => None,
            };
            match (HeaderName::from_bytes(field.name.as_bytes()), value) {
                (Ok(name), Some(value)) => read.headers.push((name, value)),
                _ => self.unreadable(read, &format!("{place} has a header field {:?} that cannot be read", field.name)),
            }
        }
    }

    fn unreadable(&mut self, read: &mut Match, problem: &str) {
        read.unreadable = true;
        self.wrong(problem.to_owned());
    }

    fn limits(&mut self, limit: Option<&HttpLocalRateLimit>) -> RateLimits {
        let Some(limit) = limit else { return RateLimits::default() };
        let place = format!("the rate limit {}", name_of(limit.metadata.as_ref()));
        let mut overrides = Vec::new();
        for entry in &limit.overrides {
            let identities = entry.clients.iter().flat_map(|clients| &clients.identities);
            let clients: Vec<Identity> =
                identities.filter_map(|identity| self.identity(&place, &identity.name)).collect();
            match entry.limit {
                Some(limit) if !clients.is_empty() => overrides.push((limit.requests_per_second, clients)),
                _ => self.wrong(format!("{place} has an override without a limit or without clients")),
            }
        }
        RateLimits {
            total: limit.total.map(|limit| limit.requests_per_second),
            identity: limit.identity.map(|limit| limit.requests_per_second),
            overrides,
        }
    }
}

/// A text that stands for itself in an expression.
fn escaped(text: &str) -> String {
    let special = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests;

//! Questions and answers: all that knows the resolver library.
//!
//! Addresses are asked for as A and AAAA at once. Each family's last good answer is kept, so that one family's failure does
//! not take its endpoints away while the other answers.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{self, RData, Record, RecordType};

use super::{Settings, endpoint, endpoints};
use crate::addr::{Name, Target};
use crate::endpoint::{Endpoint, Endpoints};

/// The system's DNS configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the system's DNS configuration cannot be used")]
pub struct Unusable(#[source] NetError);

/// What DNS says about a service.
#[derive(Debug)]
pub(super) enum Answer {
    /// Nothing that could be understood, in time.
    Failed,
    /// These are its endpoints; there may be none.
    Found { endpoints: Endpoints, ttl: Duration },
    /// There is no such name.
    Missing { ttl: Duration },
}

/// The last good answer of each address family (A, AAAA).
#[derive(Debug, Default)]
pub(super) struct Known([Option<Vec<IpAddr>>; 2]);

/// One lookup's outcome.
enum Looked {
    Failed,
    /// The name exists and has no such records.
    None(Duration),
    NoName(Duration),
    Records(Vec<Record>, Duration),
}

#[derive(Debug)]
pub(super) struct Resolver {
    resolver: hickory_resolver::TokioResolver,
    max_endpoints: usize,
    allow_local: bool,
}

/// What a negative answer without a SOA record counts for; [`Settings::min_ttl`] raises it. (RFC 2308 §5 would not cache it.)
const NO_TTL: Duration = Duration::ZERO;
/// SRV targets whose addresses did not come along are asked for this many at a time.
const SRV_TARGETS_AT_ONCE: usize = 16;

impl Resolver {
    pub(super) fn new(settings: &Settings) -> Result<Self, Unusable> {
        let provider = TokioRuntimeProvider::default();
        let mut builder = if settings.servers.is_empty() {
            hickory_resolver::TokioResolver::builder(provider).map_err(Unusable)?
        } else {
            let servers = settings.servers.iter().map(server).collect();
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            hickory_resolver::TokioResolver::builder_with_config(config, provider)
        };
        let options = builder.options_mut();
        options.cache_size = 0; // the services are the cache
        options.use_hosts_file = ResolveHosts::Never;
        options.timeout = settings.timeout;
        options.attempts = settings.attempts.max(1);
        options.try_tcp_on_error = true;
        let resolver = builder.build().map_err(Unusable)?;
        Ok(Self { resolver, max_endpoints: settings.max_endpoints, allow_local: settings.allow_local })
    }

    /// The endpoints of `target` by its name's addresses.
    pub(super) async fn addresses(&self, target: &Target, known: &mut Known) -> Answer {
        let Some(name) = absolute(&target.name) else { return Answer::Missing { ttl: Duration::MAX } };
        let (a, aaaa) = tokio::join!(self.look(name.clone(), RecordType::A), self.look(name.clone(), RecordType::AAAA));
        // Where one family has records, how long the other has none does not matter: few names have both, and negative
        // answers are often short-lived.
        let (mut found_ttl, mut none_ttl) = (None, Duration::MAX);
        let (mut answered, mut exists) = (false, false);
        for (looked, kept) in [a, aaaa].into_iter().zip(&mut known.0) {
            answered |= !matches!(looked, Looked::Failed);
            match looked {
                Looked::Failed => exists |= kept.as_ref().is_some_and(|addrs| !addrs.is_empty()),
                Looked::NoName(ttl) => {
                    none_ttl = none_ttl.min(ttl);
                    *kept = Some(Vec::new());
                }
                Looked::None(ttl) => {
                    exists = true;
                    none_ttl = none_ttl.min(ttl);
                    *kept = Some(Vec::new());
                }
                Looked::Records(records, ttl) => {
                    exists = true;
                    found_ttl = Some(found_ttl.map_or(ttl, |shortest: Duration| shortest.min(ttl)));
                    *kept = Some(records.iter().filter_map(|record| self.address(&record.data)).collect());
                }
            }
        }
        let ttl = found_ttl.unwrap_or(none_ttl);
        // One family alone can say what there is, but not that there is nothing.
        let addrs: Vec<_> = known.0.iter().flatten().flatten().copied().collect();
        let complete = known.0.iter().all(Option::is_some);
        if !answered || (addrs.is_empty() && !complete) {
            return Answer::Failed;
        }
        if !exists {
            return Answer::Missing { ttl };
        }
        let list = addrs.into_iter().map(|ip| endpoint(SocketAddr::new(ip, target.port), 1)).collect();
        Answer::Found { endpoints: endpoints(list, self.max_endpoints), ttl }
    }

    /// The endpoints that the SRV records of `name` list. All or nothing: a target whose address does not come makes the
    /// whole answer a failure, and what was known stays known.
    pub(super) async fn services(&self, name: &Name) -> Answer {
        let Some(name) = absolute(name) else { return Answer::Missing { ttl: Duration::MAX } };
        let lookup = match self.resolver.lookup(name, RecordType::SRV).await {
            Ok(lookup) => lookup,
            Err(error) => {
                return match negative(&error) {
                    Looked::NoName(ttl) => Answer::Missing { ttl },
                    Looked::None(ttl) => Answer::Found { endpoints: Endpoints::default(), ttl },
                    _ => Answer::Failed,
                };
            }
        };
        let mut ttl = shortest_ttl(lookup.answers());
        let mut services: Vec<&SRV> = lookup.answers().iter().filter_map(|record| srv(&record.data)).collect();
        // RFC 2782: of the priorities, the lowest that can be reached; the balancer finds out what can be reached, so the
        // others are left out. A target of `.` says that the service is decidedly not available.
        let lowest = services.iter().map(|srv| srv.priority).min().unwrap_or(0);
        services.retain(|srv| srv.priority == lowest && !srv.target.is_root());
        services.truncate(self.max_endpoints);
        let mut hosts: HashMap<&rr::Name, Vec<IpAddr>> = HashMap::new();
        for record in lookup.additionals() {
            if let Some(ip) = self.address(&record.data) {
                hosts.entry(&record.name).or_default().push(ip);
            }
        }
        let mut missing: Vec<&rr::Name> =
            services.iter().map(|srv| &srv.target).filter(|target| !hosts.contains_key(target)).collect();
        missing.sort_unstable();
        missing.dedup();
        for some in missing.chunks(SRV_TARGETS_AT_ONCE) {
            let asked = futures_util::future::join_all(some.iter().map(|host| self.host((*host).clone()))).await;
            for (host, found) in some.iter().zip(asked) {
                let Some((addrs, host_ttl)) = found else { return Answer::Failed };
                ttl = ttl.min(host_ttl);
                hosts.insert(host, addrs);
            }
        }
        let list = services.iter().flat_map(|srv| {
            let addrs = hosts.get(&srv.target).map(Vec::as_slice).unwrap_or_default();
            addrs.iter().map(|ip| weighted(srv, *ip))
        });
        Answer::Found { endpoints: endpoints(list.collect(), self.max_endpoints), ttl }
    }

    /// The addresses of an SRV target; `None` where they did not come.
    async fn host(&self, name: rr::Name) -> Option<(Vec<IpAddr>, Duration)> {
        let (a, aaaa) = tokio::join!(self.look(name.clone(), RecordType::A), self.look(name, RecordType::AAAA));
        // Without records, the SRV record's own TTL says when to look again.
        let (mut addrs, mut shortest) = (Vec::new(), Duration::MAX);
        for looked in [a, aaaa] {
            match looked {
                Looked::Failed => return None,
                Looked::NoName(_) | Looked::None(_) => {}
                Looked::Records(records, ttl) => {
                    shortest = shortest.min(ttl);
                    addrs.extend(records.iter().filter_map(|record| self.address(&record.data)));
                }
            }
        }
        Some((addrs, shortest))
    }

    async fn look(&self, name: rr::Name, kind: RecordType) -> Looked {
        match self.resolver.lookup(name, kind).await {
            Ok(lookup) => Looked::Records(lookup.answers().to_vec(), shortest_ttl(lookup.answers())),
            Err(error) => negative(&error),
        }
    }

    fn address(&self, data: &RData) -> Option<IpAddr> {
        let ip = match data {
            RData::A(a) => IpAddr::V4(a.0),
            RData::AAAA(aaaa) => IpAddr::V6(aaaa.0).to_canonical(),
            _ => return None,
        };
        let local = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_link_local(ip);
        if local && !self.allow_local {
            tracing::debug!(%ip, "an address that leads to this host or its link is left out");
        }
        (!local || self.allow_local).then_some(ip)
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn srv(data: &RData) -> Option<&SRV> {
    match data {
        RData::SRV(srv) => Some(srv),
        _ => None,
    }
}

/// RFC 2782 gives weight 0 a very small chance, not none; the balancer's 0 is none.
fn weighted(srv: &SRV, ip: IpAddr) -> Endpoint {
    endpoint(SocketAddr::new(ip, srv.port), u32::from(srv.weight).max(1))
}

fn shortest_ttl(records: &[Record]) -> Duration {
    Duration::from_secs(records.iter().map(|record| record.ttl).min().unwrap_or(0).into())
}

fn negative(error: &NetError) -> Looked {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(NoRecords { response_code, negative_ttl, .. })) => {
            let ttl = negative_ttl.map_or(NO_TTL, |ttl| Duration::from_secs(ttl.into()));
            match response_code {
                ResponseCode::NXDomain => Looked::NoName(ttl),
                ResponseCode::NoError => Looked::None(ttl),
                _ => Looked::Failed,
            }
        }
        error => {
            tracing::debug!(%error, "a DNS question was not answered");
            Looked::Failed
        }
    }
}

/// With the dot at the end, so that no search list is applied.
fn absolute(name: &Name) -> Option<rr::Name> {
    let mut name = rr::Name::from_ascii(name.as_str()).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn server(addr: &SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(addr.ip());
    for connection in &mut server.connections {
        connection.port = addr.port();
    }
    server
}

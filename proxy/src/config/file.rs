//! What the operator writes: the configuration file, key by key, with defaults and the reason for each.
//!
//! **In** YAML. **Out** a [`File`], not yet checked across keys; `mod.rs` turns it into each room's own settings.
//! **Refuses** unknown keys and values that do not read, with line and column. The first word of a key is the room it sets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{
    Authority, ClusterName, DnsName, DnsSuffix, FieldName, FingerprintText, HostPortText, IdentityText, NamespaceName,
    Size, Time,
};
use crate::authorise;

const fn millis(millis: u64) -> Time {
    Time(std::time::Duration::from_millis(millis))
}

const fn secs(secs: u64) -> Time {
    millis(secs * 1000)
}

/// Defines one section of the file: a struct whose fields all have defaults.
macro_rules! section {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

section! {
    /// The configuration of one gateway.
    File {
        /// Threads that serve connections; 0 takes one per processor the process may use.
        workers: usize = 0,
        /// Taking sockets on the gateway port.
        accept: Accept = Accept::default(),
        /// The gateway's own certificate, whom it trusts, and the handshake.
        tls: Tls = Tls::default(),
        /// Where the gateway's own certificate comes from.
        identity: Identity = Identity::default(),
        /// Finding out what a session speaks and which service it names.
        detect: Detect = Detect::default(),
        /// Which client may reach which service.
        authorise: authorise::Settings = authorise::Settings::default(),
        /// Which names are served at all.
        route: Route = Route::default(),
        /// Where services are found.
        sources: Sources = Sources::default(),
        /// Choosing among the endpoints of a service.
        balance: Balance = Balance::default(),
        /// Connections to endpoints.
        connect: Connect = Connect::default(),
        /// Bytes of opaque and upgraded connections.
        relay: Relay = Relay::default(),
        /// HTTP towards clients.
        http: Http = Http::default(),
        /// How backends, logs and metrics learn who the client is.
        identify: Identify = Identify::default(),
        /// The health endpoint that remote service mirrors ask (`mc-probe`).
        probe: Probe = Probe::default(),
        /// The operator's port. Keep it off the LoadBalancer.
        admin: Admin = Admin::default(),
        /// Logs, access log and the bounds of metrics.
        telemetry: Telemetry = Telemetry::default(),
        /// How the process ends.
        drain: Drain = Drain::default(),
    }
}

section! {
    /// Taking sockets.
    Accept {
        /// The gateway port (`mc-gateway`). An IPv6 address takes IPv4 too.
        listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 0], 4143)),
        /// Connections that the kernel queues before they are taken. At the limit of connections they wait here.
        backlog: u16 = 1024,
        /// The most connections open at once. Further ones wait in the kernel's queue.
        max_connections: usize = 20_000,
        /// The most connections of one identity, so that one client cannot take all places; 0 is no limit. Counted from the
        /// end of the handshake, before anything is read: connections that say nothing count too. Off, since a remote proxy
        /// carries everything on few connections, while a client without one may need hundreds.
        max_connections_per_identity: usize = 0,
        /// The most connections of one source network, whoever they are; 0 is no limit. Off, since behind a load balancer that
        /// translates addresses all clients come from one network. Set it where clients' own addresses arrive.
        max_connections_per_network: usize = 0,
        /// The most connections of one source network whose peers have not yet said who they are; 0 is no limit. With a round
        /// trip of 100 ms 2048 at once are 20 000 handshakes a second, more than a machine computes: honest peers notice
        /// nothing, even when all come by one address.
        max_unidentified_per_network: usize = 2048,
        /// The bits of an IPv4 address that tell source networks apart. 24 is the smallest that is routed on its own.
        network_prefix_v4: u8 = 24,
        /// The bits of an IPv6 address that tell source networks apart. Sites get 56 or 48; single addresses cost nothing.
        network_prefix_v6: u8 = 56,
        /// Sends small writes at once.
        nodelay: bool = true,
        /// Idle time before the kernel asks whether a peer lives; 0 is off. Shorter than the 350 s after which
        /// some cloud load balancers forget a connection.
        keepalive: Time = secs(10),
        /// How long sent bytes may stay unacknowledged before a peer is given up; 0 is off.
        user_timeout: Time = secs(30),
        /// Networks whose connections begin with a PROXY header (v1 or v2), such as a load balancer's. From any other
        /// network such a header is refused as what it then is: not TLS.
        #[schemars(with = "Vec<String>")]
        proxy_networks: Vec<IpNet> = Vec::new(),
        /// How long a PROXY header may take.
        proxy_timeout: Time = secs(5),
    }
}

/// Which server names a handshake may ask for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SniRule {
    /// Any name, or none: for clients that are not Linkerd.
    Any,
    /// The gateway's own names only; others are closed without a byte, as Linkerd does.
    #[default]
    Own,
}

/// What to do with a revocation list past its next update.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpiredCrl {
    /// Refuse everybody it speaks of, until there is a newer one.
    Refuse,
    /// Use it as it is, and warn.
    #[default]
    Warn,
}

section! {
    /// The gateway's own certificate, whom it trusts, and the handshake.
    Tls {
        /// The gateway's certificate and the intermediates that sign it, PEM, leaf first.
        chain_file: PathBuf = PathBuf::new(),
        /// The key of that certificate, PEM (PKCS#8 or SEC1). ECDSA P-256, as Linkerd peers accept nothing else.
        key_file: PathBuf = PathBuf::new(),
        /// The trust anchors that both clusters share, PEM, any number of them, old and new side by side.
        bundle_file: PathBuf = PathBuf::new(),
        /// Certificate revocation lists, PEM.
        crl_files: Vec<PathBuf> = Vec::new(),
        /// What to do with a revocation list past its next update.
        expired_crl: ExpiredCrl = ExpiredCrl::default(),
        /// Refuses certificates that no revocation list speaks of.
        require_revocation_status: bool = false,
        /// How often the files are read again even when nothing told of a change.
        reload_interval: Time = secs(30),
        /// Which server names a handshake may ask for.
        sni: SniRule = SniRule::default(),
        /// Names besides those in the certificate that count as the gateway's own. Needed when the certificate
        /// carries a SPIFFE id only.
        server_names: Vec<DnsName> = Vec::new(),
        /// From the connection to the end of the handshake. Sources give up after 1 s; 10 s is for slow links.
        handshake_timeout: Time = secs(10),
        /// Handshakes under way at once, per worker; further ones wait their turn. Each holds about 20 KiB, so that this
        /// many hold some 40 MiB, and a worker completes about as many in a second.
        max_handshakes: usize = 2048,
        /// How many of these may be of one source network (`accept.network_prefix_v4`, `_v6`), so that silent peers from
        /// somewhere do not hold up all others; 0 is no share. Further ones wait their turn. At a round trip of 100 ms 512 at
        /// once are five times what a processor can compute, so honest peers behind one address notice nothing.
        max_handshakes_per_network: usize = 512,
        /// The largest ClientHello. Today's are 1.5 KiB; large sets of key shares and names stay below 16 KiB.
        max_hello_bytes: Size = Size(16 * 1024),
        /// How long a peer may stay after its certificate expired while it was connected.
        expiry_grace: Time = millis(0),
        /// How long requests of a peer that lost its trust may take to finish.
        distrust_deadline: Time = secs(10),
    }
}

/// Where the gateway's own certificate comes from.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentitySource {
    /// `tls.chain_file` and `tls.key_file`.
    #[default]
    Files,
    /// Linkerd's identity controller.
    Linkerd,
    /// A SPIFFE Workload API, such as a SPIRE agent's.
    Spiffe,
}

section! {
    /// Where the gateway's own certificate comes from. Whom it trusts stands in `tls.bundle_file` and `tls.crl_files`
    /// whatever the source; with `spiffe` the bundle of its own trust domain is trusted too, and `tls.bundle_file` may be absent.
    Identity {
        /// `files`, `linkerd` or `spiffe`. With the other two the gateway starts without a certificate, is not ready, and
        /// closes every connection until it has one.
        source: IdentitySource = IdentitySource::default(),
        /// Who the gateway is to be. `linkerd`: the name of its service account,
        /// `ACCOUNT.NAMESPACE.serviceaccount.identity.linkerd.TRUST-DOMAIN`. `spiffe`: the id of the SVID to take.
        name: Option<IdentityText> = None,
        /// Linkerd's identity controller.
        linkerd: LinkerdIdentity = LinkerdIdentity::default(),
        /// The SPIFFE Workload API.
        spiffe: SpiffeIdentity = SpiffeIdentity::default(),
    }
}

section! {
    /// Linkerd's identity controller.
    LinkerdIdentity {
        /// Where it is: `linkerd-identity-headless.linkerd.svc.cluster.local:8080`.
        address: Option<HostPortText> = None,
        /// Who it must be: `linkerd-identity.linkerd.serviceaccount.identity.linkerd.TRUST-DOMAIN`. Without it the controller
        /// is spoken to in plaintext, which is accepted for loopback addresses only.
        server: Option<IdentityText> = None,
        /// The gateway's service-account token, with the audience `identity.l5d.io`. Read anew for each call.
        token_file: PathBuf = PathBuf::from("/var/run/secrets/tokens/linkerd-identity-token"),
        /// How long one call may take. The controller asks the API server about the token, which takes longer when that is busy.
        timeout: Time = secs(10),
        /// The certificate is renewed when 70 % of its life are over, but not sooner than this after the last one; failed
        /// calls are repeated after at most this.
        min_refresh: Time = secs(10),
        /// And not later than this.
        max_refresh: Time = secs(86_400),
    }
}

section! {
    /// The SPIFFE Workload API.
    SpiffeIdentity {
        /// Its socket: `unix:///run/spire/agent-sockets/spire-agent.sock`.
        socket: String = String::new(),
        /// How long connecting and the first answer may take.
        timeout: Time = secs(10),
    }
}

section! {
    /// Finding out what a session speaks and which service it names.
    Detect {
        /// How long the transport header or the first bytes of HTTP may take.
        timeout: Time = secs(10),
        /// Routes connections without ALPN to the service that SNI names. The gateway then accepts SNI below
        /// `route.suffixes` besides its own names.
        sni_routing: bool = false,
        /// The port of a service that SNI names without one. `_8443._tcp.NAME` names one.
        sni_port: u16 = 443,
    }
}

section! {
    /// Which names are served at all.
    Route {
        /// DNS suffixes below which services may be named; `.` is every name.
        suffixes: Vec<DnsSuffix> = vec![DnsSuffix("svc.cluster.local".parse().expect("a valid suffix"))],
        /// The port of an authority that names none.
        default_port: u16 = 80,
        /// How long the first request for a service may wait for discovery.
        discovery_timeout: Time = secs(3),
        /// How many services may be known by demand at once.
        max_services: usize = 4096,
        /// When a service that nobody asks for is forgotten.
        idle_timeout: Time = secs(300),
    }
}

section! {
    /// Where services are found. The table is asked first, then a Linkerd control plane, then Kubernetes, then DNS.
    Sources {
        /// Services by name and port.
        services: Vec<Service> = Vec::new(),
        /// A Linkerd control plane.
        linkerd: Linkerd = Linkerd::default(),
        /// The Kubernetes API server.
        kubernetes: Kubernetes = Kubernetes::default(),
        /// Cluster DNS.
        dns: Dns = Dns::default(),
    }
}

/// What an endpoint speaks.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Speaks {
    /// What the client speaks.
    #[default]
    AsClient,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Bytes.
    Opaque,
}

/// One service of the table.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name, such as `web.prod.svc.cluster.local`.
    pub name: DnsName,
    /// Its port.
    pub port: u16,
    /// Whether other clusters may reach it when `authorise.exported_only` is on.
    #[serde(default)]
    pub exported: bool,
    /// What its endpoints speak.
    #[serde(default)]
    pub protocol: Speaks,
    /// Carries HTTP/1 requests to its endpoints over HTTP/2, marked with `l5d-orig-proto`: for endpoints behind a Linkerd
    /// proxy, which gives them to the application as what they were. Many requests then share one connection. Goes with
    /// `protocol: as_client`; requests that leave HTTP (WebSocket, CONNECT) travel as HTTP/1 all the same.
    #[serde(default)]
    pub orig_proto: bool,
    /// Mutual TLS towards its endpoints; plain where absent.
    #[serde(default)]
    pub tls: Option<ServiceTls>,
    /// Begins connections with Linkerd's transport header: the addresses of the endpoints are then those of their proxies
    /// (`POD-IP:4143`), or of another gateway. Needs `tls`.
    #[serde(default)]
    pub transport_header: Option<ServiceHeader>,
    /// What requests name as their authority instead of what the client named: for another gateway behind this one.
    #[serde(default)]
    pub authority: Option<Authority>,
    /// How HTTP/2 is spoken with its endpoints, where that differs from `connect`.
    #[serde(default)]
    pub http2: Option<ServiceHttp2>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// Mutual TLS towards an endpoint.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceTls {
    /// Some subject alternative name of the server's certificate must equal this.
    pub identity: IdentityText,
    /// The name sent as SNI; the identity where absent, which then must be a DNS-like one.
    #[serde(default)]
    pub server_name: Option<DnsName>,
}

/// Linkerd's transport header towards an endpoint.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceHeader {
    /// The port that the workload behind the proxy listens on; or, with `name`, the port of the service.
    pub port: u16,
    /// The service that is meant, where the other end is a gateway.
    #[serde(default)]
    pub name: Option<DnsName>,
    /// Does not say what is spoken, so that the proxy takes HTTP for bytes too.
    #[serde(default)]
    pub opaque: bool,
}

/// HTTP/2 towards an endpoint. What is absent is as in `connect`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceHttp2 {
    /// What an endpoint may send on one stream before it is read.
    pub stream_window: Option<Size>,
    /// The same for a whole connection.
    pub connection_window: Option<Size>,
    /// Lets both windows grow with what the network carries.
    pub adaptive_window: bool,
    /// How often an endpoint is asked whether it lives.
    pub keepalive_interval: Option<Time>,
    /// How long the answer may take.
    pub keepalive_timeout: Option<Time>,
    /// Asks while no request is under way, too.
    pub keepalive_while_idle: bool,
    /// The largest frame that an endpoint may send: 16KiB to 16777215.
    pub max_frame: Option<Size>,
    /// What of a request's body may wait per stream for an endpoint that does not read.
    pub max_send_buffer: Option<Size>,
    /// How many streams that were reset here are remembered.
    pub max_reset_streams: Option<u32>,
}

/// One endpoint of a service.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Address and port.
    pub address: SocketAddr,
    /// Its share of the load; 0 takes no new load.
    #[serde(default = "one")]
    pub weight: u32,
    /// The zone it runs in.
    #[serde(default)]
    pub zone: Option<String>,
}

const fn one() -> u32 {
    1
}

fn host_port(text: &str) -> HostPortText {
    HostPortText(text.parse().expect("a valid host and port"))
}

fn dns_name(text: &str) -> DnsName {
    DnsName(text.parse().expect("a valid name"))
}

section! {
    /// A Linkerd control plane, or any other server of its destination API: services, their endpoints with who they are and
    /// how they are meshed, ServiceProfiles (splits, timeouts, retries) and policies for opaque traffic. Where it is on,
    /// it is asked for every name below `route.suffixes` that the table does not hold, and DNS is not.
    Linkerd {
        /// Asks it.
        enabled: bool = false,
        /// The destination service. SRV records of the name are looked for first, as its headless service has them.
        destination: HostPortText = host_port("linkerd-dst-headless.linkerd.svc.cluster.local:8086"),
        /// Who the destination service must be. `null` is plaintext, to loopback addresses only.
        destination_identity: Option<DnsName> =
            Some(dns_name("linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local")),
        /// The policy service, which says where opaque connections may go. `null` asks nobody: they then go where
        /// requests go.
        policy: Option<HostPortText> = Some(host_port("linkerd-policy.linkerd.svc.cluster.local:8090")),
        /// Who the policy service must be. `null` is plaintext, to loopback addresses only.
        policy_identity: Option<DnsName> =
            Some(dns_name("linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local")),
        /// The namespace of this pod, told to the control plane. `ISTHMUS_POD_NAMESPACE` sets it.
        namespace: Option<String> = None,
        /// The node of this pod, by which the control plane tells which endpoints are in its zone. `ISTHMUS_NODE_NAME`
        /// sets it.
        node: Option<String> = None,
        /// The name of this pod. `ISTHMUS_POD_NAME` sets it.
        pod: Option<String> = None,
        /// The addresses of this pod: endpoints there are refused, as they would lead to the gateway's own inner
        /// ports. `ISTHMUS_POD_IPS` sets them.
        own_addresses: Vec<IpAddr> = Vec::new(),
        /// Whether what is found here counts as exported when `authorise.exported_only` is on. The API cannot say, and
        /// it knows every service of the cluster: off, so that nothing is reachable because somebody forgot to forbid it.
        /// Linkerd's own gateway is as if this were on.
        exported: bool = false,
        /// Takes endpoints at loopback addresses. For trying things out.
        allow_local: bool = false,
        /// Endpoints taken of one service. Kubernetes' own limit for a whole cluster's nodes.
        max_endpoints: usize = 5000,
        /// Services that may share the traffic of one (splits and policies), each of which is followed. What goes
        /// beyond is refused. More than any rollout needs.
        max_branches: usize = 32,
        /// How long it is believed that there is no such service before it is asked again. As with DNS.
        negative_ttl: Time = secs(30),
        /// DNS, TCP and TLS to the control plane, each.
        connect_timeout: Time = secs(1),
        /// How long a connection to it may be silent before it is asked whether it lives; 0 is off.
        keepalive_interval: Time = secs(10),
        /// How long the answer to that may take.
        keepalive_timeout: Time = secs(5),
        /// How long a stream may take to its first message. As Linkerd's own proxies have it.
        initial_timeout: Time = secs(3),
        /// When a silent stream is opened anew; 0 is never. What is known stays known meanwhile. As above.
        idle_timeout: Time = secs(300),
        /// When any stream is opened anew, so that it finds new replicas; 0 is never. As above.
        lifetime: Time = secs(3600),
        /// The longest wait between two attempts at what fails. The first is 100 ms.
        max_backoff: Time = secs(10),
    }
}

section! {
    /// The Kubernetes API server: Services and EndpointSlices, watched.
    Kubernetes {
        /// Watches the API server. It needs the right to list and watch services and endpointslices, which is why it is off unless
        /// asked for; the chart asks for it and grants the right.
        enabled: bool = false,
        /// A kubeconfig to reach it by; where absent, the pod's service account.
        kubeconfig: Option<PathBuf> = None,
        /// The namespaces to watch, each by itself, so that a Role in each is right enough; all at once where empty.
        namespaces: Vec<NamespaceName> = Vec::new(),
        /// Which services are exported, as `kubectl -l` takes it. The default is the label by which Linkerd's mirrors choose
        /// what goes through a gateway; `remote-discovery`, its other value, is for networks without one.
        selector: String = "mirror.linkerd.io/exported=true".to_owned(),
        /// The cluster's domain: services are named below `svc.` and this.
        cluster_domain: DnsName = DnsName("cluster.local".parse().expect("a valid name")),
        /// Not ready until the API server has told all services once: a gateway that knows none would refuse everything, and a
        /// load balancer would rather send that to its siblings. Once they are told, what was told last serves, however long
        /// the API server is away. Turn it off where the table or DNS alone are worth being sent traffic for.
        required: bool = true,
        /// How long one watch lasts before it is begun anew; a server that has vanished without a word is noticed 5 s later. A
        /// watch that is begun anew costs the server next to nothing, one that is dead costs the gateway what has moved meanwhile.
        watch_timeout: Time = secs(60),
        /// How long the server may take to begin an answer, or to go on with a list. Its own limit is 60 s; half of that is no
        /// answer that a gateway is helped by.
        answer_timeout: Time = secs(30),
        /// How long to wait after the first failure; each further wait is twice as long. It is also the least time between two watches.
        backoff_min: Time = secs(1),
        /// The longest wait: how late a server that has come back may be noticed.
        backoff_max: Time = secs(30),
        /// Objects asked for at once. 500 is what every client of Kubernetes asks for: some megabytes, while they are read.
        page_size: u32 = 500,
        /// The gateway's own address in the cluster, by which it finds the zone that it runs in among the endpoints, where
        /// `balance.zone` says none. `ISTHMUS_POD_IP` sets it for each pod.
        pod_ip: Option<IpAddr> = None,
        /// Takes addresses that lead to this host (loopback, link-local). For trying things out.
        allow_local: bool = false,
    }
}

section! {
    /// Cluster DNS: A and AAAA with their TTL, SRV where asked for.
    Dns {
        /// Looks up services that the table does not hold, below `route.suffixes`.
        enabled: bool = true,
        /// Whether services found by DNS count as exported when `authorise.exported_only` is on. DNS cannot say.
        exported: bool = false,
        /// What their endpoints speak.
        protocol: Speaks = Speaks::default(),
        /// Headless services whose endpoints, with their own ports, are found by SRV.
        srv: Vec<DnsSrv> = Vec::new(),
        /// DNS servers; those of `/etc/resolv.conf` where empty.
        servers: Vec<SocketAddr> = Vec::new(),
        /// One query's time. It is asked twice, and a request waits for `route.discovery_timeout`: of that a third at the most
        /// is used, whatever stands here, so that a lost packet costs a request a moment and not its answer.
        timeout: Time = secs(1),
        /// The shortest time an answer is kept, whatever its TTL says.
        min_ttl: Time = secs(5),
        /// The longest: a record with a TTL of a day must not hide that a service has moved.
        max_ttl: Time = secs(60),
        /// How long a name that does not exist is remembered at the most.
        negative_ttl: Time = secs(30),
        /// Addresses taken of one answer.
        max_endpoints: usize = 1000,
        /// Takes addresses that lead to this host (loopback, link-local). For trying things out.
        allow_local: bool = false,
    }
}

/// A headless service that is found by SRV.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DnsSrv {
    /// The service's name.
    pub service: DnsName,
    /// Its port.
    pub port: u16,
    /// The name to ask for, such as `_pg._tcp.db.prod.svc.cluster.local`.
    pub name: DnsName,
}

section! {
    /// Choosing among the endpoints of a service: the cheaper of two, by latency and requests under way.
    Balance {
        /// The zone the gateway runs in; endpoints there are preferred while enough of them are ready.
        zone: Option<String> = None,
        /// The latency assumed of an endpoint that has not answered yet.
        first_rtt: Time = millis(30),
        /// After this time a measured latency counts for a third.
        decay: Time = secs(10),
        /// Failed connects in a row that eject an endpoint.
        max_connect_failures: u32 = 3,
        /// Failed responses in a row that eject an endpoint.
        max_response_failures: u32 = 5,
        /// The first ejection's length; each further one is twice as long.
        ejection_min: Time = secs(1),
        /// The longest ejection.
        ejection_max: Time = secs(60),
        /// The share of endpoints that may be ejected for their responses; above it the fault is taken to be common.
        max_ejected: f64 = 0.5,
        /// Requests that may wait for a ready endpoint, per worker and service.
        queue: usize = 1024,
        /// How long they wait; then the service fails at once until an endpoint is ready.
        failfast_timeout: Time = secs(3),
    }
}

section! {
    /// Connections to endpoints.
    Connect {
        /// Connecting, the upstream handshake included.
        timeout: Time = secs(1),
        /// Idle time before the kernel asks whether an endpoint lives; 0 is off.
        keepalive: Time = secs(10),
        /// How long sent bytes may stay unacknowledged; 0 is off.
        user_timeout: Time = secs(30),
        /// Refuses endpoints at loopback addresses, which in a pod are the gateway itself and its sidecars.
        deny_loopback: bool = false,
        /// HTTP/1.1: idle connections kept per endpoint and worker.
        max_idle: usize = 256,
        /// HTTP/1.1: how long an idle connection is kept. Below the backend's own, which else closes it first.
        idle_timeout: Time = secs(3),
        /// HTTP/1.1: connections per endpoint and worker.
        max_connections: usize = 1024,
        /// HTTP/2: streams on one connection before another is opened.
        max_streams: usize = 100,
        /// HTTP/2: connections per endpoint and worker.
        max_http2_connections: usize = 8,
        /// When a connection is replaced, so that it is verified against current certificates.
        max_age: Time = secs(3600),
        /// HTTP/2: how often an endpoint is asked whether it lives; 0 is off. gRPC servers count questions more
        /// frequent than one in five minutes as abuse; the kernel's keepalive serves instead.
        keepalive_interval: Time = millis(0),
        /// HTTP/2: how long the answer may take.
        keepalive_timeout: Time = secs(10),
        /// HTTP/2: what an endpoint may send on one stream before it is read. A connection's window is this times
        /// `max_streams`, so that clients who do not read cannot close it for the others.
        stream_window: Size = Size(256 * 1024),
    }
}

section! {
    /// Bytes of opaque and upgraded connections.
    Relay {
        /// How long a connection may be silent both ways; 0 is for ever. Databases keep idle connections for long.
        idle_timeout: Time = secs(3600),
        /// How long a connection may live; 0 is for ever.
        total_timeout: Time = millis(0),
    }
}

section! {
    /// HTTP towards clients.
    Http {
        /// How long a request's head may take from its first byte, trailers and HTTP/2's header blocks likewise.
        header_timeout: Time = secs(10),
        /// The most requests under way at once, per worker; further ones get 503. What each may hold is what bounds the memory of
        /// HTTP (`isthmus config bound`), and a worker that has this many is late for all of them.
        max_requests: usize = 16_384,
        /// Bytes a second that a request's body must bring while the gateway waits for it; 0 is off. Measured over each
        /// `http.body_window` of waiting, so slow backends and bandwidth limits do not count. 100 bytes a second is below any
        /// link that works. Not asked of gRPC and Connect, whose streams may be silent for as long as they like.
        min_body_rate: Size = Size(100),
        /// The waiting after which a body that brought too little is given up with 408. Pauses of a client that computes what
        /// it sends must fit in.
        body_window: Time = secs(30),
        /// HTTP/2: how long bytes of a response may wait for a client that takes none of that stream, which then is reset
        /// alone; 0 is for ever. Time in which the backend is silent does not count. Consumers of gRPC streams that pause
        /// longer than this with their window full need more. (A client that reads nothing at all is `accept.user_timeout`'s.)
        stall_timeout: Time = secs(300),
        /// HTTP/2: streams that a client may reset in a second (rapid reset, CVE-2023-44487); 0 is no limit. Beyond it the client
        /// is read more slowly and loses nothing. A proxy whose clients all give up at once resets as many as it sends.
        max_resets: u32 = 1000,
        /// HTTP/2: control frames (SETTINGS, PING, PRIORITY, WINDOW_UPDATE, CONTINUATION, empty DATA) that a client may send in a
        /// second; 0 is no limit. Beyond it the client is read more slowly. Frames that answer what the gateway sent do not
        /// count: two for each write and one for each KiB.
        max_control_frames: u32 = 1000,
        /// How long a connection without a request is kept.
        idle_timeout: Time = secs(600),
        /// When a connection is asked to end, so that its client spreads over new replicas; 0 is never.
        max_age: Time = millis(0),
        /// How long an endpoint may take to answer; 0 is for ever.
        request_timeout: Time = millis(0),
        /// The largest request head. Linkerd's own limit.
        max_header_bytes: Size = Size(16 * 1024),
        /// The most header fields of a request, over HTTP/2 too, where each crumb of a cookie is one.
        max_headers: usize = 100,
        /// HTTP/2: streams of one connection. A remote proxy carries a whole application on one.
        max_streams: u32 = 1024,
        /// HTTP/2: what a client may send on one stream before it is read.
        stream_window: Size = Size(256 * 1024),
        /// HTTP/2: the same for one connection.
        connection_window: Size = Size(1 << 20),
        /// HTTP/2: response bytes buffered per stream. What a client that does not read can make the gateway hold is this
        /// times `max_streams`.
        max_send_buffer: Size = Size(64 * 1024),
        /// HTTP/2: streams that may be reset before they were begun; one more ends the connection.
        max_pending_resets: usize = 20,
        /// HTTP/2: streams that may be reset for the client's own errors (CVE-2025-8671), in the life of a connection; one more
        /// ends it.
        max_local_resets: usize = 1024,
        /// HTTP/2: how often a client is asked whether it lives; 0 is off.
        keepalive_interval: Time = secs(10),
        /// HTTP/2: how long the answer may take.
        keepalive_timeout: Time = secs(3),
        /// How often a request may be sent again when it is certain that no endpoint processed it.
        max_retries: u32 = 2,
        /// Retries as a share of requests.
        retry_budget: f64 = 0.2,
        /// What is kept of a request's body where a service's profile lets it be sent again for its response; a request
        /// with more is sent once. Linkerd's own limit. Held for each such request under way; 0 keeps nothing.
        max_retry_body: Size = Size(64 * 1024),
    }
}

/// What becomes of a header that names those a request came through. In no mode does it pass as a client sent it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Forwarding {
    /// As `set`; but of a client in `identify.trusted_proxies` what it sent stays, and the gateway's word comes after it.
    Append,
    /// None is sent; what the client sent is removed.
    #[default]
    Off,
    /// Envoy's word for `off`.
    Sanitise,
    /// What the client sent is removed, and the gateway's word sent.
    Set,
}

section! {
    /// How backends, logs and metrics learn who the client is. Whatever a client itself says in these headers, and in
    /// `x-forwarded-host`, `-port`, `-proto`, `x-real-ip`, `client-cert` and `client-cert-chain`, is removed first.
    Identify {
        /// Sends `l5d-client-id` with the client's identity, as Linkerd's proxies do.
        client_id: bool = true,
        /// `x-forwarded-client-cert` in Envoy's form. Off, since nobody expects it who did not ask for it and it costs
        /// some 200 bytes a request.
        forwarded_client_cert: Forwarding = Forwarding::Off,
        /// `x-forwarded-for` with the client's address. Off, since behind most load balancers it would be a node's or
        /// the balancer's: turn it on where clients' addresses arrive (PROXY protocol, or no translation on the way).
        forwarded_for: Forwarding = Forwarding::Off,
        /// Clients that are proxies themselves, such as an ingress or another gateway: what they say of those before
        /// them is carried on in `append`, and their `Forwarded` as it is.
        trusted_proxies: Vec<IdentityText> = Vec::new(),
        /// Trust domains and the names of their clusters, for logs, metrics and the assertion.
        #[schemars(with = "BTreeMap<String, String>")]
        trust_domains: BTreeMap<DnsName, ClusterName> = BTreeMap::new(),
        /// SHA-256 fingerprints of trust anchors or issuers and the names of their clusters, for clusters that share a
        /// trust domain. They go before `trust_domains`. `isthmus certs show` prints them.
        #[schemars(with = "BTreeMap<String, String>")]
        authorities: BTreeMap<FingerprintText, ClusterName> = BTreeMap::new(),
        /// A signed statement of who the client is, for backends behind another proxy that overwrites headers.
        assertion: Assertion = Assertion::default(),
    }
}

section! {
    /// A JWT (ES256) about the client, for the service it reached. Its keys are at `/.well-known/jwks.json` of the admin
    /// and the probe port.
    Assertion {
        /// Sends it. Off, since it costs some 600 bytes a request.
        enabled: bool = false,
        /// The header that carries it.
        header: FieldName = FieldName::default(),
        /// How long it is valid. Short, since whoever has it may show it; each is used for half of this at most, so that
        /// a backend always gets one with time left.
        lifetime: Time = secs(60),
        /// Keys in PEM on P-256: the first signs, all are shown. The key of the gateway's own certificate where absent:
        /// right while all replicas have the same one.
        key_file: Option<PathBuf> = None,
    }
}

section! {
    /// The health endpoint that remote service mirrors ask (`mc-probe`).
    Probe {
        /// The probe port.
        listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 0], 4181)),
        /// A path to answer besides `/health` and `/ready`.
        path: Option<String> = None,
        /// Answers plaintext on the same port too, for the kubelet and cloud load balancers.
        plaintext: bool = false,
        /// Refuses probes without a client certificate, as Linkerd's own gateways did.
        require_client_certificate: bool = true,
        /// The authority that stands for the probe on the gateway port, for sites that can expose one port only.
        authority: Option<DnsName> = None,
        /// Probe connections served at once.
        max_connections: usize = 512,
    }
}

section! {
    /// The operator's port.
    Admin {
        /// Where it listens. It tells everything about the gateway: keep it off the LoadBalancer.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 4191)),
        /// Lets others than loopback change the log level.
        remote_log_level: bool = false,
    }
}

/// The shape of log lines.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    #[default]
    Text,
}

/// Which records the access log shows.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessLogRule {
    /// All of them.
    All,
    /// Refusals and 5xx only.
    Errors,
    /// None.
    #[default]
    Off,
}

section! {
    /// Logs, access log and the bounds of metrics.
    Telemetry {
        /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or filters such as `info,isthmus::tls=debug`.
        log: String = "info".to_owned(),
        /// The shape of log lines.
        log_format: LogFormat = LogFormat::default(),
        /// Which connections and requests the access log shows.
        access_log: AccessLogRule = AccessLogRule::default(),
        /// The shape of its lines.
        access_log_format: LogFormat = LogFormat::Json,
        /// Where it goes; standard output where absent. Reopened on SIGHUP.
        access_log_file: Option<PathBuf> = None,
        /// The share of records shown, 0.0 to 1.0. Refusals are always shown.
        access_log_sample: f64 = 1.0,
        /// A span for each request, to an OpenTelemetry collector.
        traces: Traces = Traces::default(),
        /// Services that metrics tell apart; further ones share the label `other`.
        max_services: usize = 1000,
        /// Clients that metrics tell apart; further ones share the label `other`.
        max_clients: usize = 1000,
        /// Shows what is counted once more in the families of Linkerd's proxies (`request_total`, `response_total`,
        /// `response_latency_ms`, `tcp_open_total` and others), so that dashboards for a Linkerd gateway go on working. On,
        /// since a request costs nothing for it: the sums are made when somebody looks. Turn it off where nobody reads
        /// them, and a service costs some 25 series less in the store behind.
        linkerd_metrics: bool = true,
    }
}

section! {
    /// Spans of requests over OTLP/gRPC. Builds with the cargo feature `otlp` can send them; others refuse the key.
    Traces {
        /// The collector, such as `http://otel-collector.observability:4317`. Absent: no spans, and `traceparent` goes through
        /// untouched. Plaintext: a collector beside the gateway or in its cluster.
        endpoint: Option<String> = None,
        /// The share of requests without a trace of their own that begin one, 0.0 to 1.0. One in a hundred shows what is slow
        /// and costs next to nothing.
        sample: f64 = 0.01,
        /// Whether a request that belongs to a trace is recorded if, and only if, its sender records it. Without, `sample`
        /// decides, so that clients cannot ask for more spans than you want to pay for.
        follow_client: bool = true,
        /// The name that spans are under.
        service_name: String = "isthmus".to_owned(),
        /// How long the collector may take for one batch of up to 512 spans; then they are lost and counted.
        timeout: Time = secs(5),
        /// Spans that may wait for the collector; further ones are lost and counted. About a kilobyte each.
        queue: usize = 4096,
    }
}

section! {
    /// How the process ends.
    Drain {
        /// How long it goes on serving while readiness and probe say no. Longer than a remote mirror's three
        /// failed probes (3 × 3 s and jitter) and the load balancer's own interval.
        announce: Time = secs(15),
        /// From the signal to the moment when what is left is cut. Fits Kubernetes' grace period with room to spare.
        deadline: Time = secs(55),
    }
}

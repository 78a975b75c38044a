use std::collections::HashMap;
use std::net::Ipv4Addr;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_resolver::proto::rr::{self, RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::authorise::Admitted;
use crate::route::{Directory, Error};
use crate::sources;

/// What the server answers: records, a code, or nothing at all.
#[derive(Clone, Default)]
struct Zone {
    records: HashMap<(String, RecordType), Vec<(u32, RData)>>,
    additionals: Vec<(String, RData)>,
    codes: HashMap<(String, RecordType), ResponseCode>,
    silent: bool,
    /// So many questions more are lost.
    lost: usize,
    asked: usize,
}

#[derive(Clone, Default)]
struct Server(Arc<Mutex<Zone>>);

impl Server {
    fn set(&self, name: &str, data: Vec<RData>) {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::SRV] {
            let of_kind: Vec<_> =
                data.iter().filter(|data| data.record_type() == kind).map(|d| (1, d.clone())).collect();
            self.0.lock().records.insert((name.to_owned(), kind), of_kind);
        }
    }

    fn fail(&self, name: &str, kind: RecordType, code: Option<ResponseCode>) {
        let mut zone = self.0.lock();
        match code {
            Some(code) => zone.codes.insert((name.to_owned(), kind), code),
            None => zone.codes.remove(&(name.to_owned(), kind)),
        };
    }

    /// The answer's bytes, without regard to their number.
    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let question = Message::from_vec(question).ok()?;
        let query = question.queries.first()?.clone();
        let mut zone = self.0.lock();
        zone.asked += 1;
        if zone.silent || zone.lost > 0 {
            zone.lost = zone.lost.saturating_sub(1);
            return None;
        }
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.recursion_available = true;
        answer.add_query(query.clone());
        let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        let key = (name.clone(), query.query_type());
        if let Some(code) = zone.codes.get(&key) {
            answer.metadata.response_code = *code;
        } else if let Some(records) = zone.records.get(&key) {
            answer.add_answers(
                records.iter().map(|(ttl, data)| Record::from_rdata(query.name().clone(), *ttl, data.clone())),
            );
        } else {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        if query.query_type() == RecordType::SRV {
            let additionals = zone.additionals.iter();
            answer.add_additionals(additionals.map(|(name, data)| Record::from_rdata(fqdn(name), 1, data.clone())));
        }
        if answer.answers.is_empty() {
            let soa = SOA::new(fqdn("ns.test"), fqdn("root.test"), 1, 1, 1, 1, 1);
            answer.add_authority(Record::from_rdata(fqdn("test"), 1, RData::SOA(soa)));
        }
        answer.to_vec().ok()
    }
}

fn fqdn(name: &str) -> rr::Name {
    rr::Name::from_ascii(format!("{name}.")).expect("a name")
}

fn a(last: u8) -> RData {
    RData::A(A(Ipv4Addr::new(10, 0, 0, last)))
}

fn aaaa(last: u16) -> RData {
    RData::AAAA(AAAA(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)))
}

async fn serve(server: Server) -> SocketAddr {
    // UDP and TCP on the same port; another try where somebody else has it.
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("an address")).await {
            break (udp, tcp);
        }
    };
    let addr = udp.local_addr().expect("an address");
    let over_tcp = server.clone();
    let runtime = Handle::current();
    runtime.spawn(async move {
        let mut question = [0; 4096];
        loop {
            let (len, from) = udp.recv_from(&mut question).await.expect("receives");
            let Some(mut answer) = server.answer(&question[..len]) else { continue };
            if answer.len() > 1200 {
                // Too large: truncated, which sends the client to TCP (RFC 1035 §4.2.1).
                let whole = Message::from_vec(&answer).expect("our own");
                answer = whole.truncate().to_vec().expect("a message");
            }
            udp.send_to(&answer, from).await.expect("sends");
        }
    });
    runtime.spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.expect("accepts");
            let server = over_tcp.clone();
            Handle::current().spawn(async move {
                while let Ok(len) = stream.read_u16().await {
                    let mut question = vec![0; len.into()];
                    stream.read_exact(&mut question).await.expect("reads");
                    let Some(answer) = server.answer(&question) else { continue };
                    stream.write_u16(u16::try_from(answer.len()).expect("fits")).await.expect("writes");
                    stream.write_all(&answer).await.expect("writes");
                }
            });
        }
    });
    addr
}

struct World {
    server: Server,
    directory: Arc<Directory>,
    dns: Arc<Dns>,
}

async fn world(change: impl FnOnce(&mut Settings)) -> World {
    let server = Server::default();
    let mut settings = Settings {
        servers: vec![serve(server.clone()).await],
        suffixes: vec!["svc.test".parse().expect("a suffix")],
        timeout: Duration::from_millis(200),
        attempts: 1,
        min_ttl: Duration::from_millis(50),
        max_ttl: Duration::from_millis(50),
        max_negative_ttl: Duration::from_millis(50),
        backoff: Backoff { min: Duration::from_millis(20), max: Duration::from_millis(50), jitter: 0.0 },
        ..Settings::default()
    };
    change(&mut settings);
    let dns = Arc::new(Dns::new(Claim(1), settings, Handle::current()).expect("usable"));
    let route = crate::route::Settings { suffixes: vec![Suffix::All], ..crate::route::Settings::default() };
    let (directory, demands) = Directory::new(route);
    let runner = sources::run(
        Arc::clone(&directory),
        Arc::new(tokio::sync::Mutex::new(demands)),
        vec![Arc::clone(&dns) as Arc<dyn Source>],
    );
    Handle::current().spawn(runner);
    World { server, directory, dns }
}

impl World {
    async fn find(&self, target: &str) -> Result<Arc<Service>, Error> {
        let target = Target::parse(target, 80).expect("a target");
        self.directory.resolve(&Admitted::for_tests(target)).await.map(|(service, _)| service)
    }

    async fn addrs(&self, target: &str) -> Result<Vec<String>, Error> {
        self.find(target).await.map(|service| shown(&service))
    }
}

fn shown(service: &Service) -> Vec<String> {
    let endpoints = service.known().unwrap_or_default();
    endpoints.list.iter().map(|endpoint| format!("{}*{}", endpoint.addr, endpoint.weight)).collect()
}

/// Waits until `done`, at most five seconds.
async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came true");
}

#[tokio::test]
async fn addresses_of_both_families_are_found_and_followed() {
    let world = world(|_| {}).await;
    world.server.set("web.svc.test", vec![a(2), aaaa(1), a(1)]);
    let service = world.find("web.svc.test:8080").await.expect("found");
    assert_eq!(shown(&service), ["10.0.0.1:8080*1", "10.0.0.2:8080*1", "[fd00::1]:8080*1"]);
    let before = service.known().expect("known");
    let asked = world.server.0.lock().asked;
    world.server.set("web.svc.test", vec![a(1), a(2), aaaa(1)]);
    until(|| world.server.0.lock().asked > asked + 4).await;
    assert!(Arc::ptr_eq(&before, &service.known().expect("known")), "another order is no change");
    world.server.set("web.svc.test", vec![a(3)]);
    until(|| shown(&service) == ["10.0.0.3:8080*1"]).await;
    let report = world.dns.report();
    assert_eq!((report.services, report.failures), (1, 0));
    assert!(report.age.is_some_and(|age| age < Duration::from_secs(5)));
}

#[tokio::test]
async fn names_come_and_go() {
    let world = world(|_| {}).await;
    assert_eq!(world.addrs("web.svc.test").await, Err(Error::UnknownService));
    assert_eq!(world.addrs("web.elsewhere.test").await, Err(Error::UnknownService), "not taken");
    world.server.set("web.svc.test", vec![a(1)]);
    let target = Target::parse("web.svc.test", 80).expect("a target");
    let service = world.directory.find(&Admitted::for_tests(target)).expect("there");
    until(|| shown(&service) == ["10.0.0.1:80*1"]).await;
    world.server.set("web.svc.test", vec![]);
    until(|| service.known().is_some_and(|known| known.list.is_empty())).await;
}

#[tokio::test]
async fn failures_change_nothing_that_is_known() {
    let world = world(|_| {}).await;
    world.server.set("web.svc.test", vec![a(1), aaaa(1)]);
    let service = world.find("web.svc.test").await.expect("found");
    let before = service.known().expect("known");
    for kind in [RecordType::A, RecordType::AAAA] {
        world.server.fail("web.svc.test", kind, Some(ResponseCode::ServFail));
    }
    until(|| world.dns.report().failures >= 3).await;
    assert!(Arc::ptr_eq(&before, &service.known().expect("known")));
    // One family alone recovers, with other records: the other family's stay.
    world.server.set("web.svc.test", vec![a(2)]);
    world.server.fail("web.svc.test", RecordType::A, None);
    until(|| shown(&service) == ["10.0.0.2:80*1", "[fd00::1]:80*1"]).await;
    world.server.0.lock().silent = true;
    let failures = world.dns.report().failures;
    until(|| world.dns.report().failures > failures).await;
    assert_eq!(shown(&service), ["10.0.0.2:80*1", "[fd00::1]:80*1"]);
}

/// With the defaults: a lost packet, and the question asked again, fit in what a request waits.
#[tokio::test]
async fn a_lost_packet_is_made_up_for_within_the_wait_for_discovery() {
    let (dns, patience) = (Settings::default(), crate::route::Settings::default().discovery_timeout);
    let world = world(|settings| (settings.timeout, settings.attempts) = (dns.timeout, dns.attempts)).await;
    world.server.set("web.svc.test", vec![a(1)]);
    world.server.0.lock().lost = 2;
    let begun = Instant::now();
    let found = world.addrs("web.svc.test").await;
    assert_eq!(found, Ok(vec!["10.0.0.1:80*1".to_owned()]), "after {:?} of {patience:?}", begun.elapsed());
    // And the worst of it, nobody there at all, is known as soon: the next question is asked after a short rest.
    world.server.0.lock().silent = true;
    let begun = Instant::now();
    let target = Target::parse("other.svc.test", 80).expect("a target");
    let service = world.directory.find(&Admitted::for_tests(target)).expect("pending");
    let failures = world.dns.report().failures;
    until(|| world.dns.report().failures > failures).await;
    assert!(begun.elapsed() < patience + Duration::from_millis(500), "{:?}", begun.elapsed());
    drop(service);
}

#[tokio::test]
async fn a_server_that_flaps_takes_nothing_away() {
    let world = world(|_| {}).await;
    world.server.set("web.svc.test", vec![a(1), a(2)]);
    let service = world.find("web.svc.test").await.expect("found");
    for turn in 0..8 {
        let code = [Some(ResponseCode::ServFail), Some(ResponseCode::Refused), None, None][turn % 4];
        for kind in [RecordType::A, RecordType::AAAA] {
            world.server.fail("web.svc.test", kind, code);
        }
        world.server.0.lock().silent = turn % 4 == 2;
        let asked = world.server.0.lock().asked;
        until(|| {
            assert_eq!(shown(&service), ["10.0.0.1:80*1", "10.0.0.2:80*1"], "in turn {turn}");
            world.server.0.lock().asked > asked + 4
        })
        .await;
    }
}

#[tokio::test]
async fn a_server_that_never_answers_leaves_the_service_pending() {
    let world = world(|_| {}).await;
    world.server.0.lock().silent = true;
    let target = Target::parse("web.svc.test", 80).expect("a target");
    let service = world.directory.find(&Admitted::for_tests(target)).expect("pending");
    assert_eq!(service.endpoints(Duration::from_millis(300)).await.map(drop), Err(Error::DiscoveryTimeout));
    world.server.set("web.svc.test", vec![a(1)]);
    world.server.0.lock().silent = false;
    assert!(service.endpoints(Duration::from_secs(5)).await.is_ok());
}

#[tokio::test]
async fn services_are_found_by_srv_where_told() {
    let srv = |priority, weight, port, host: &str| RData::SRV(SRV::new(priority, weight, port, fqdn(host)));
    let target = Target::parse("db.svc.test:5432", 80).expect("a target");
    let name: Name = "_pg._tcp.db.svc.test".parse().expect("a name");
    let world = world(|settings| settings.srv = vec![(target, name)]).await;
    world.server.set(
        "_pg._tcp.db.svc.test",
        vec![srv(0, 10, 5001, "a.test"), srv(0, 0, 5002, "b.test"), srv(7, 1, 5003, "backup.test")],
    );
    world.server.0.lock().additionals = vec![("a.test".into(), a(1))];
    world.server.set("b.test", vec![a(2), aaaa(2)]);
    let service = world.find("db.svc.test:5432").await.expect("found");
    assert_eq!(shown(&service), ["10.0.0.1:5001*10", "10.0.0.2:5002*1", "[fd00::2]:5002*1"]);
    // A target that cannot be resolved leaves all as it was.
    world.server.fail("b.test", RecordType::A, Some(ResponseCode::ServFail));
    world.server.set("_pg._tcp.db.svc.test", vec![srv(0, 1, 6000, "b.test")]);
    let failures = world.dns.report().failures;
    until(|| world.dns.report().failures > failures).await;
    assert_eq!(shown(&service).len(), 3);
    world.server.fail("b.test", RecordType::A, None);
    until(|| shown(&service) == ["10.0.0.2:6000*1", "[fd00::2]:6000*1"]).await;
}

#[tokio::test]
async fn large_answers_come_by_tcp_and_are_bounded() {
    let world = world(|settings| settings.max_endpoints = 900).await;
    let many = (0..1000u32).map(|n| RData::A(A(Ipv4Addr::from(0x0a00_0000 + n)))).collect();
    world.server.set("many.svc.test", many);
    let addrs = world.addrs("many.svc.test").await.expect("found");
    assert_eq!((addrs.len(), addrs[0].as_str()), (900, "10.0.0.0:80*1"));
}

#[tokio::test]
async fn addresses_that_lead_home_are_left_out() {
    let world = world(|_| {}).await;
    let home = ["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255"];
    let mut records: Vec<_> = home.iter().map(|ip| RData::A(A(ip.parse().expect("an address")))).collect();
    records.extend(["::1", "fe80::1", "::ffff:127.0.0.1"].map(|ip| RData::AAAA(AAAA(ip.parse().expect("one")))));
    records.push(a(1));
    world.server.set("web.svc.test", records);
    assert_eq!(world.addrs("web.svc.test").await, Ok(vec!["10.0.0.1:80*1".to_owned()]));
}

#[tokio::test]
async fn a_service_that_nobody_holds_is_asked_for_no_more() {
    let world = world(|_| {}).await;
    world.server.set("web.svc.test", vec![a(1)]);
    let service = world.find("web.svc.test").await.expect("found");
    assert_eq!(world.dns.report().services, 1);
    // A table of higher rank takes it over, and gives it up: the directory forgets it.
    world.directory.replace(
        Claim(0),
        vec![crate::route::Published { target: service.target().clone(), exported: true, endpoints: Arc::default() }],
    );
    world.directory.replace(Claim(0), Vec::new());
    drop(service);
    until(|| world.dns.report().services == 0).await;
}

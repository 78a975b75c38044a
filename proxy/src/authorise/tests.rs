//! The decisions by table and by property: `decisions.txt` says what is meant, `model` says it again slowly.

mod model;

use std::collections::{BTreeMap, HashMap};

use http::{HeaderMap, Method};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::addr::Target;
use crate::fault::Refusal;
use crate::identity::Identity;

/// One question, owned.
#[derive(Clone, Debug)]
struct Question {
    client: Client,
    target: Target,
    exported: bool,
    request: Option<Request>,
}

#[derive(Clone, Debug)]
struct Request {
    method: Method,
    path: String,
    headers: HeaderMap,
    host: Option<String>,
    grpc: bool,
}

impl Question {
    fn ask(&self, policy: &Policy) -> Result<Admission, Denied> {
        match &self.request {
            None => policy.connection(&self.client, self.target.clone(), self.exported),
            Some(request) => policy.request(&self.client, self.target.clone(), self.exported, &request.facts()),
        }
    }

    fn explain(&self, policy: &Policy) -> Explanation {
        let facts = self.request.as_ref().map(Request::facts);
        policy.explain(&self.client, &self.target, self.exported, facts.as_ref())
    }
}

impl Request {
    fn facts(&self) -> RequestFacts<'_> {
        RequestFacts {
            method: &self.method,
            path: &self.path,
            query: None,
            headers: &self.headers,
            host: self.host.as_deref(),
            grpc: self.grpc,
        }
    }
}

/// The words of the table for an answer.
fn in_words(answer: &Result<Admission, Denied>) -> String {
    let refusal = |denied: &Denied| {
        let code = denied.code().strip_prefix("authorise.").expect("codes begin with the stage");
        denied.rule.as_ref().map_or_else(|| code.to_owned(), |rule| format!("{code} {rule}"))
    };
    match answer {
        Ok(Admission { would_refuse: Some(denied), .. }) => format!("audit {}", refusal(denied)),
        Ok(admission) => format!("allow {}", admission.rule.as_deref().unwrap_or("-")),
        Err(denied) => refusal(denied),
    }
}

fn read_request(words: &str, target: &Target) -> Option<Request> {
    if words == "opaque" {
        return None;
    }
    let (grpc, words) = words.strip_prefix("grpc ").map_or((false, words), |rest| (true, rest));
    let (words, host) = match words.rsplit_once(" @") {
        Some((words, host)) => (words, host.to_owned()),
        None => (words, target.to_string()),
    };
    let mut parts = words.split(" [");
    let (method, path) = parts.next().and_then(|line| line.split_once(' ')).expect("method and path");
    let mut headers = HeaderMap::new();
    for field in parts {
        let (name, value) = field.strip_suffix(']').and_then(|field| field.split_once(": ")).expect("[field: value]");
        let name: http::HeaderName = name.parse().expect("a field name");
        headers.append(name, value.parse().expect("a value"));
    }
    let method = method.parse().expect("a method");
    Some(Request { method, path: path.to_owned(), headers, host: Some(host), grpc })
}

#[test]
fn decisions_of_the_table() {
    let text = include_str!("decisions.txt");
    let mut names = HashMap::new();
    let (mut section, mut yaml, mut title) = ("", String::new(), "");
    let mut policies: Vec<(&str, Settings, Policy)> = Vec::new();
    let mut rows = 0;
    let mut wrong = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        match line {
            "names" => section = "names",
            "calls" => {
                let settings: Settings =
                    if yaml.is_empty() { Settings::default() } else { serde_saphyr::from_str(&yaml).expect(title) };
                let policy = Policy::compile(&settings, None, None).unwrap_or_else(|why| panic!("{title}: {why}"));
                policies.push((title, settings, policy));
                section = "calls";
            }
            _ if line.starts_with("policy: ") => {
                (section, title) = ("policy", line);
                yaml.clear();
            }
            _ if section == "names" => {
                let (name, identity) = line.split_once(" = ").expect("name = identity");
                names.insert(name.trim(), identity);
            }
            _ if section == "policy" => {
                yaml.push_str(line);
                yaml.push('\n');
            }
            _ => {
                let cells: Vec<&str> = line.split(" | ").collect();
                let [client, network, service, request, decision, why] = cells[..] else { panic!("{line}") };
                let identity = names.get(client).copied().unwrap_or(client);
                let exported = !service.ends_with('!');
                let target = Target::parse(service.trim_end_matches('!'), 0).expect(line);
                let question = Question {
                    client: Client {
                        identity: Identity::parse(identity).expect(line),
                        network: network.parse().expect(line),
                    },
                    request: read_request(request, &target),
                    target,
                    exported,
                };
                let (title, settings, policy) = policies.last().expect("a policy comes first");
                let got = in_words(&question.ask(policy));
                let model = model::decide(settings, &question);
                if got != decision || model != decision {
                    wrong.push(format!("{title}\n  {line}\n  got {got}, the model says {model}; {why}"));
                }
                rows += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {rows}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(rows >= 250, "{rows}");
}

// Random policies and questions, from words that meet often.

const IDENTITIES: &[&str] = &[
    "web.shop.serviceaccount.identity.linkerd.cluster.local",
    "cart.shop.serviceaccount.identity.linkerd.cluster.local",
    "web.prod.serviceaccount.identity.linkerd.cluster.local",
    "web.shop.serviceaccount.identity.linkerd.west.example",
    "web.shop.serviceaccount.identity.other.west.example",
    "web.shop.serviceaccount.identity.linkerd.x.cluster.local",
    "a.web.shop.serviceaccount.identity.linkerd.cluster.local",
    "a.shop.serviceaccount.identity.m.serviceaccount.identity.linkerd.cluster.local",
    "shop.serviceaccount.identity.linkerd.cluster.local",
    "serviceaccount.identity.linkerd.cluster.local",
    "web.shop.serviceaccount.identity",
    "web.shop.serviceaccount.identity.linkerd",
    "a.serviceaccount.identity.serviceaccount.identity.serviceaccount.identity.cluster.local",
    "cluster.local",
    "a.cluster.local",
    "web.west.example",
    "a.web.west.example",
    "spiffe://west.example/ns/shop/sa/web",
    "spiffe://west.example/ns/shop",
    "spiffe://west.example/ns/shop/sa/web/x",
    "spiffe://west.example",
    "spiffe://east.example/ns/shop/sa/web",
    "https://west.example/ns/shop/sa/web",
];

const CLIENTS: &[&str] = &[
    "*",
    "web.shop.serviceaccount.identity.linkerd.cluster.local",
    "*.shop.serviceaccount.identity.linkerd.cluster.local",
    "web.*.serviceaccount.identity.linkerd.cluster.local",
    "**.shop.serviceaccount.identity.linkerd.cluster.local",
    "**.serviceaccount.identity.linkerd.cluster.local",
    "*.shop.serviceaccount.identity.*",
    "*.shop.serviceaccount.identity.linkerd.*",
    "*.shop.serviceaccount.identity.**",
    "web.**",
    "*.shop.serviceaccount.identity.*.cluster.local",
    "**.cluster.local",
    "*.cluster.local",
    "*.*.*.*.*.cluster.local",
    "*.west.example",
    "**.west.example",
    "spiffe://west.example/*",
    "spiffe://west.example/ns/*/sa/web",
    "spiffe://west.example/ns/*",
    "spiffe://west.example/ns/shop/sa/web",
];

const TARGETS: &[&str] = &[
    "pay.ns.svc.cluster.local:80",
    "pay.ns.svc.cluster.local:443",
    "cat.ns.svc.cluster.local:80",
    "a.b.ns.svc.cluster.local:80",
    "svc.cluster.local:80",
    "x:9",
];

const SERVICES: &[&str] = &[
    "*",
    "*:80",
    "pay.ns.svc.cluster.local",
    "pay.ns.svc.cluster.local:443",
    "*.ns.svc.cluster.local",
    "*.ns.svc.cluster.local:80",
    "**.svc.cluster.local",
    "*.b.*.svc.cluster.local",
    "x",
];

const PATHS: &[&str] = &["/*", "/v1/*", "=/v1/", "=/v1", "/admin/*", "=/", "=/v1/*", "=/*/x", "/v1/*/x/*", "=/a b"];

const FRAGMENTS: &[&str] = &[
    "/", "/", "/", "//", "v1", "V1", "x", "admin", "%61dmin", ".", "..", "%2e", "%2E%2e", "...", ";", ";a=b", "%3b",
    "%2f", "%5C", "\\", "%25", "%252e", "%", "%2", "%00", "%c3%a9", "%c0%af", "a b", "%20", "?", "*", "#", "é", ":",
    "%3a",
];

fn some<T: Clone + std::fmt::Debug + 'static>(of: &'static [T]) -> impl Strategy<Value = Option<Vec<T>>> {
    prop_oneof![2 => Just(None), 3 => subsequence(of, 1..=3.min(of.len())).prop_map(Some)]
}

fn texts(of: &'static [&'static str]) -> impl Strategy<Value = Option<Vec<String>>> {
    some(of).prop_map(|list| list.map(|list| list.into_iter().map(str::to_owned).collect()))
}

fn http_conditions() -> impl Strategy<Value = Option<HttpSettings>> {
    let headers = prop_oneof![
        3 => Just(None),
        1 => Just(Some(BTreeMap::from([("x-env".to_owned(), vec!["prod".to_owned()])]))),
        1 => Just(Some(BTreeMap::from([("x-env".to_owned(), vec!["*".to_owned()])]))),
    ];
    let hosts = prop_oneof![4 => Just(None), 1 => texts(&["pay.ns", "*.ns:80"])];
    let http = (texts(&["GET", "POST"]), texts(PATHS), headers, hosts)
        .prop_map(|(methods, paths, headers, hosts)| HttpSettings { methods, paths, headers, hosts });
    prop_oneof![1 => Just(None), 1 => http.prop_map(|http| Some(http).filter(|http| *http != HttpSettings::default()))]
}

fn rule() -> impl Strategy<Value = RuleSettings> {
    let grpc = prop_oneof![
        6 => Just(None),
        1 => Just(Some(GrpcSettings { service: "v1".into(), methods: Some(vec!["x".into(), "admin".into()]) })),
        1 => Just(Some(GrpcSettings { service: "v1".into(), methods: None })),
    ];
    let networks = prop_oneof![
        3 => Just(None),
        1 => Just(Some(vec![NetworkSettings { cidr: "10.0.0.0/8".into(), except: vec!["10.1.0.0/16".into()] }])),
    ];
    let words = (texts(CLIENTS), texts(SERVICES), networks, http_conditions(), grpc, any::<bool>(), 0..8_u8);
    words.prop_map(|(clients, services, networks, http, grpc, allow, audit)| {
        let action = if allow { Action::Allow } else { Action::Deny };
        let mode = if !allow && audit == 0 { Mode::Audit } else { Mode::Enforce };
        let limits = LimitSettings::default();
        let (name, limits_per_client) = (String::new(), limits.clone());
        RuleSettings { name, clients, networks, services, http, grpc, action, limits, limits_per_client, mode }
    })
}

fn settings() -> impl Strategy<Value = Settings> {
    let authenticated = prop_oneof![3 => Just(DefaultAction::Deny), 1 => Just(DefaultAction::Authenticated)];
    (proptest::collection::vec(rule(), 0..8), authenticated, any::<bool>(), 0..10_u8).prop_map(
        |(mut rules, default, exported_only, audit)| {
            for (at, rule) in rules.iter_mut().enumerate() {
                rule.name = format!("r{at}");
            }
            let mode = if audit == 0 { Mode::Audit } else { Mode::Enforce };
            let trust_domains = vec!["cluster.local".to_owned(), "west.example".to_owned()];
            Settings { mode, default, exported_only, trust_domains, rules, ..Settings::default() }
        },
    )
}

fn question() -> impl Strategy<Value = Question> {
    let path = proptest::collection::vec(select(FRAGMENTS), 0..7).prop_map(|parts| parts.concat());
    let path = prop_oneof![
        1 => path.clone(),
        4 => path.prop_map(|path| format!("/{path}")),
        3 => select(&["/v1/x", "/v1", "/v1/", "/admin/x", "/", "/a%20b"][..]).prop_map(str::to_owned),
    ];
    let method = select(vec![Method::GET, Method::POST, Method::DELETE, "get".parse().expect("a token")]);
    let fields = subsequence(vec!["prod", "dev", "PROD", "prod, dev"], 0..=2);
    let host = proptest::option::of(select(&["pay.ns", "PAY.ns:80", "cat.ns:81", "[::1]", "", "a@b"][..]));
    let request = (method, path, fields, host, any::<bool>()).prop_map(|(method, path, fields, host, grpc)| {
        let headers =
            fields.into_iter().map(|value| (http::HeaderName::from_static("x-env"), value.parse().expect("a value")));
        Request { method, path, headers: headers.collect(), host: host.map(str::to_owned), grpc }
    });
    let network = select(&["10.0.0.1", "10.1.0.1", "::ffff:10.0.0.1", "192.0.2.1", "fd00::1"][..]);
    let request = prop_oneof![1 => Just(None), 6 => request.prop_map(Some)];
    (select(IDENTITIES), network, select(TARGETS), prop_oneof![1 => Just(false), 5 => Just(true)], request).prop_map(
        |(identity, network, target, exported, request)| Question {
            client: Client {
                identity: Identity::parse(identity).expect("an identity"),
                network: network.parse().expect("an address"),
            },
            target: Target::parse(target, 0).expect("a target"),
            exported,
            request,
        },
    )
}

fn compile(settings: &Settings) -> Policy {
    Policy::compile(settings, None, None).unwrap_or_else(|why| panic!("{why}"))
}

proptest! {
    #[test]
    fn the_policy_equals_the_model(settings in settings(), questions in proptest::collection::vec(question(), 8)) {
        let policy = compile(&settings);
        for question in questions {
            let got = in_words(&question.ask(&policy));
            prop_assert_eq!(&got, &model::decide(&settings, &question), "{:?}", question);
        }
    }

    #[test]
    fn an_allow_rule_more_takes_no_admission_back(
        settings in settings(), mut rule in rule(), questions in proptest::collection::vec(question(), 8),
    ) {
        (rule.name, rule.action, rule.mode) = ("more".into(), Action::Allow, Mode::Enforce);
        let before = compile(&settings);
        let mut settings = settings;
        settings.rules.push(rule);
        let after = compile(&settings);
        for question in questions {
            prop_assert!(question.ask(&before).is_err() || question.ask(&after).is_ok(), "{:?}", question);
        }
    }

    #[test]
    fn a_deny_rule_more_gives_no_admission(
        settings in settings(), mut rule in rule(), questions in proptest::collection::vec(question(), 8),
    ) {
        (rule.name, rule.action) = ("more".into(), Action::Deny);
        let before = compile(&settings);
        let mut settings = settings;
        settings.rules.push(rule);
        let after = compile(&settings);
        for question in questions {
            prop_assert!(question.ask(&before).is_ok() || question.ask(&after).is_err(), "{:?}", question);
        }
    }

    #[test]
    fn the_order_of_rules_plays_no_part(
        (settings, shuffled) in settings().prop_flat_map(|settings| {
            let rules = Just(settings.rules.clone()).prop_shuffle();
            (Just(settings), rules)
        }),
        questions in proptest::collection::vec(question(), 8),
    ) {
        let one = compile(&settings);
        let other = compile(&Settings { rules: shuffled, ..settings });
        for question in questions {
            prop_assert_eq!(in_words(&question.ask(&one)), in_words(&question.ask(&other)));
        }
    }

    #[test]
    fn what_may_not_reach_a_service_is_never_admitted(settings in settings(), question in question()) {
        let policy = compile(&settings);
        let early = policy.may_reach(&question.client, &question.target, question.exported);
        prop_assert!(early.is_ok() || question.ask(&policy).is_err());
    }

    #[test]
    fn an_explanation_is_the_decision(settings in settings(), question in question()) {
        let policy = compile(&settings);
        let (answer, explained) = (question.ask(&policy), question.explain(&policy));
        prop_assert_eq!(explained.admitted, answer.is_ok());
        prop_assert_eq!(explained.rules.len(), settings.rules.len());
        // And what it says of each rule leads to the same.
        let deny = |rule: &Considered| rule.action == Action::Deny && rule.mode == Mode::Enforce && rule.holds != Holds::No;
        let allow = |rule: &Considered| rule.action == Action::Allow && rule.holds == Holds::Yes;
        let by_rules = !explained.rules.iter().any(deny)
            && (settings.default == DefaultAction::Authenticated || explained.rules.iter().any(allow));
        let admitted = settings.mode == Mode::Audit || by_rules && (question.exported || !settings.exported_only);
        prop_assert_eq!(explained.admitted, admitted, "{:#?}", explained);
        let json = serde_json::to_string(&explained).expect("it can be written");
        prop_assert_eq!(serde_json::from_str::<Explanation>(&json).expect("and read"), explained);
    }

    #[test]
    fn any_path_has_an_answer(path in "\\PC{0,40}", bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        for path in [path, format!("/{}", String::from_utf8_lossy(&bytes))] {
            if let Ok(reading) = Reading::new(&path) && &*reading.plain != "*" {
                // What was read is read again as itself.
                let normal = reading.normal().to_owned();
                let again = Reading::new(&normal).expect("a normal path is readable");
                prop_assert_eq!(again.normal(), &*normal);
                prop_assert_eq!(&again.plain, &normal);
            }
        }
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let settings: Settings = serde_saphyr::from_str(
        r#"
trust_domains: ["spiffe://west.example/x"]
limits: { burst: 5 }
rules:
  - { name: "a b", clients: [], action: allow }
  - { name: twice, services: ["web.*"], http: { methods: [gett, Get], paths: ["/v1"] }, action: allow }
  - { name: twice, networks: [10.0.0.1/8, nonsense, "::ffff:10.0.0.0/104"], action: deny, limits: { connections: 0 } }
  - { name: idle, http: { headers: { host: [x], "x y": [z] } }, action: allow, mode: audit }
  - { name: call, grpc: { service: "/acme.Payments/Charge", methods: ["acme.Payments/Charge"] }, action: allow }
  - { name: none, http: {}, networks: [{ cidr: 10.0.0.0/8, except: [11.0.0.0/8] }], action: allow }
"#,
    )
    .expect("it is well formed");
    let InvalidPolicy(invalid) = Policy::compile(&settings, None, None).expect_err("and means nothing");
    let said: Vec<(String, Option<&str>)> = invalid
        .iter()
        .map(|one| {
            let rule = one.rule.as_ref().map_or("-", |(_, name)| name);
            (format!("{rule} {}", one.field), one.nearest.as_deref())
        })
        .collect();
    let want = [
        ("- trust_domains[0]", Some("west.example")),
        ("- limits.burst", None),
        ("a b name", Some("a-b")),
        ("a b clients", None),
        ("twice services[0]", Some("web.svc.cluster.local")),
        ("twice http.methods[0]", Some("GET")),
        ("twice http.methods[1]", Some("GET")),
        ("twice http.paths[0]", Some("=/v1")),
        ("twice name", None),
        ("twice networks[0]", Some("10.0.0.0/8")),
        ("twice networks[1]", None),
        ("twice networks[2]", Some("10.0.0.0/8")),
        ("twice limits.connections", None),
        ("twice limits", None),
        ("idle http.headers.host", Some("hosts")),
        ("idle http.headers.x y", Some("x-y")),
        ("idle mode", None),
        ("call grpc.service", Some("acme.Payments")),
        ("call grpc.methods[0]", Some("Charge")),
        ("none networks[0].except[0]", None),
        ("none http", None),
    ];
    let want: Vec<_> = want.iter().map(|(at, nearest)| ((*at).to_owned(), *nearest)).collect();
    assert_eq!(said, want, "{}", InvalidPolicy(invalid.clone()));
    assert_eq!(
        invalid[5].to_string(),
        r#"rule "twice" (number 2), http.methods[0]: "gett": not a method: methods are written in capitals; did you mean "GET"?"#
    );
}

#[test]
fn a_star_at_the_end_is_the_gateways_own_trust_domain() {
    let settings: Settings =
        serde_saphyr::from_str("rules: [{ name: shop, clients: ['*.shop.serviceaccount.identity.*'], action: allow }]")
            .expect("well formed");
    let own = Identity::parse("gateway.isthmus.serviceaccount.identity.linkerd.west.example").expect("an identity");
    let policy = Policy::compile(&settings, Some(&own), None).expect("the trust domain is known");
    for (identity, want) in [
        ("web.shop.serviceaccount.identity.linkerd.west.example", true),
        ("web.shop.serviceaccount.identity.linkerd.cluster.local", false),
    ] {
        let client = Client { identity: Identity::parse(identity).expect("valid"), network: [10, 0, 0, 1].into() };
        let target = Target::parse("web:80", 80).expect("a target");
        assert_eq!(policy.connection(&client, target, true).is_ok(), want, "{identity}");
    }
    assert!(Policy::compile(&settings, None, None).is_err(), "no trust domain is known");
}

/// What a decision costs is the number of rules it asks, and that follows from how many speak about the client and the
/// service, not from how many there are.
#[test]
fn a_decision_asks_as_many_rules_among_ten_as_among_ten_thousand() {
    let mut asked = Vec::new();
    for size in [10, 10_000] {
        let mut settings = Settings { trust_domains: vec!["cluster.local".into()], ..Settings::default() };
        for i in 0..size {
            let (clients, services) = match i % 5 {
                0 => (Some(format!("a{i}.shop.serviceaccount.identity.linkerd.cluster.local")), None),
                1 => (Some(format!("*.n{i}.serviceaccount.identity.*")), Some("*.prod.svc.cluster.local".to_owned())),
                2 => (None, Some(format!("s{i}.prod.svc.cluster.local:80"))),
                3 => (Some(format!("spiffe://west.example/ns/n{i}/*")), Some(format!("*.n{i}.svc.cluster.local"))),
                _ => (Some("*.shop.serviceaccount.identity.**".to_owned()), Some(format!("**.d{i}.svc.cluster.local"))),
            };
            let rule: RuleSettings =
                serde_saphyr::from_str(&format!("{{ name: r{i}, action: allow }}")).expect("a rule");
            let list = |one: Option<String>| one.map(|one| vec![one]);
            settings.rules.push(RuleSettings { clients: list(clients), services: list(services), ..rule });
        }
        let policy = compile(&settings);
        let count = |identity: &str, service: &str| {
            let services = policy.compiled.services.find(&Target::parse(service, 80).expect("a target"));
            let clients = policy.compiled.clients.find(&Identity::parse(identity).expect("an identity"));
            let pairs = &policy.compiled.pairs;
            let rules = |service| clients.iter().map(move |client| pairs.get(service, client).len());
            services.iter().flat_map(rules).sum::<usize>()
        };
        asked.push([
            count("a5.shop.serviceaccount.identity.linkerd.cluster.local", "s7.prod.svc.cluster.local"),
            count("x.n6.serviceaccount.identity.linkerd.cluster.local", "s7.prod.svc.cluster.local"),
            count("spiffe://west.example/ns/n8/sa/x", "web.n8.svc.cluster.local"),
            count("web.shop.serviceaccount.identity.linkerd.cluster.local", "a.b.d9.svc.cluster.local"),
            count("nobody.example.org", "nothing.example.org"),
        ]);
    }
    assert_eq!(asked, [[2, 2, 1, 1, 0], [2, 2, 1, 1, 0]]);
}

#[test]
fn pairs_are_bounded() {
    let clients = (0..2000).map(|i| format!("c{i}.west.example")).collect();
    let services = (0..2000).map(|i| format!("s{i}")).collect();
    let settings: Settings = serde_saphyr::from_str("rules: [{ name: huge, action: allow }]").expect("well formed");
    let mut settings = settings;
    settings.rules[0].clients = Some(clients);
    settings.rules[0].services = Some(services);
    let InvalidPolicy(invalid) = Policy::compile(&settings, None, None).expect_err("too many");
    assert_eq!(invalid[0].wrong, Wrong::TooManyPairs);
}

//! Paths and rules: the compiled policy decides as the slow model does, for rules put together of the input and a path that is
//! the rest of it; and a path that reads at all reads again as itself.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::{Result, Unstructured};
use http::{HeaderMap, Method};
use isthmus::addr::Target;
use isthmus::authorise::{
    Action, Admission, Client, DefaultAction, Denied, GrpcSettings, HttpSettings, LimitSettings, Mode, NetworkSettings,
    Policy, Reading, RequestFacts, RuleSettings, Settings,
};
use isthmus::fault::Refusal;
use isthmus::identity::Identity;
use libfuzzer_sys::fuzz_target;

/// The names under which the model knows the room.
mod authorise {
    pub(crate) use isthmus::authorise::*;
}

#[path = "../../proxy/src/authorise/tests/model.rs"]
mod model;

/// What is asked, as the model takes it.
#[derive(Debug)]
struct Question {
    client: Client,
    target: Target,
    exported: bool,
    request: Option<Request>,
}

#[derive(Debug)]
struct Request {
    method: Method,
    path: String,
    headers: HeaderMap,
    host: Option<String>,
    grpc: bool,
}

const CLIENTS: [&str; 6] = [
    "*",
    "web.shop.serviceaccount.identity.linkerd.cluster.local",
    "*.shop.serviceaccount.identity.*",
    "spiffe://west.example/ns/shop/*",
    "spiffe://west.example/**",
    "**.west.example",
];
const SERVICES: [&str; 6] =
    ["*", "web.ns", "*.ns:80", "**.svc.cluster.local", "web.prod.svc.cluster.local:8080", "pay.ns"];
const PATHS: [&str; 12] = [
    "/*",
    "=/",
    "=/v1",
    "/v1/*",
    "/v1/*/x",
    "=/v1/**/end",
    "/admin/*",
    "=/a b",
    "=/a;b=c",
    "/public/*",
    "=/*/x",
    "=/é",
];
const IDENTITIES: [&str; 4] = [
    "web.shop.serviceaccount.identity.linkerd.cluster.local",
    "web.shop.serviceaccount.identity.linkerd.west.example",
    "spiffe://west.example/ns/shop/sa/web",
    "a.b.west.example",
];
const TARGETS: [&str; 4] = ["web.ns:80", "web.ns:81", "pay.ns:80", "web.prod.svc.cluster.local:8080"];

fuzz_target!(|input: &[u8]| {
    let _ = judge(&mut Unstructured::new(input));
});

fn judge(input: &mut Unstructured<'_>) -> Result<()> {
    let count = input.int_in_range(0..=5)?;
    let rules = (0..count).map(|at| rule(input, at)).collect::<Result<Vec<_>>>()?;
    let settings = Settings {
        mode: if input.ratio(1, 10)? { Mode::Audit } else { Mode::Enforce },
        default: if input.ratio(1, 4)? { DefaultAction::Authenticated } else { DefaultAction::Deny },
        exported_only: input.arbitrary()?,
        trust_domains: vec!["cluster.local".to_owned(), "west.example".to_owned()],
        rules,
        ..Settings::default()
    };
    let Ok(policy) = Policy::compile(&settings, None, None) else { return Ok(()) };
    let question = question(input)?;
    if let Some(request) = &question.request
        && let Ok(reading) = Reading::new(&request.path)
        && reading.plain != "*"
    {
        let normal = reading.normal().to_owned();
        let again = Reading::new(&normal).expect("a normal path is readable");
        assert_eq!(again.normal(), normal);
        assert_eq!(again.plain, normal);
    }
    assert_eq!(in_words(&ask(&policy, &question)), model::decide(&settings, &question), "{settings:?} {question:?}");
    Ok(())
}

fn some(input: &mut Unstructured<'_>, of: &[&str]) -> Result<Option<Vec<String>>> {
    if input.arbitrary()? {
        return Ok(None);
    }
    let count = input.int_in_range(1..=2)?;
    (0..count).map(|_| Ok((*input.choose(of)?).to_owned())).collect::<Result<Vec<_>>>().map(Some)
}

fn rule(input: &mut Unstructured<'_>, at: usize) -> Result<RuleSettings> {
    let headers = match input.int_in_range(0..=5)? {
        0 => Some(BTreeMap::from([("x-env".to_owned(), vec!["prod".to_owned()])])),
        1 => Some(BTreeMap::from([("x-env".to_owned(), vec!["*".to_owned()])])),
        _ => None,
    };
    let hosts = if input.ratio(1, 5)? { some(input, &["pay.ns", "*.ns:80"])? } else { None };
    let http = HttpSettings { methods: some(input, &["GET", "POST"])?, paths: some(input, &PATHS)?, headers, hosts };
    let grpc = input.ratio(1, 8)?.then(|| GrpcSettings { service: "v1".into(), methods: Some(vec!["x".into()]) });
    let networks = input
        .ratio(1, 4)?
        .then(|| vec![NetworkSettings { cidr: "10.0.0.0/8".into(), except: vec!["10.1.0.0/16".into()] }]);
    let action = if input.arbitrary()? { Action::Allow } else { Action::Deny };
    let audit = action == Action::Deny && input.ratio(1, 8)?;
    Ok(RuleSettings {
        name: format!("r{at}"),
        clients: some(input, &CLIENTS)?,
        networks,
        services: some(input, &SERVICES)?,
        http: Some(http).filter(|http| *http != HttpSettings::default()),
        grpc,
        action,
        limits: LimitSettings::default(),
        limits_per_client: LimitSettings::default(),
        mode: if audit { Mode::Audit } else { Mode::Enforce },
    })
}

fn question(input: &mut Unstructured<'_>) -> Result<Question> {
    let identity = Identity::parse(input.choose(&IDENTITIES)?).expect("an identity");
    let network = input.choose(&["10.0.0.1", "10.1.0.1", "::ffff:10.0.0.1", "fd00::1"])?.parse().expect("an address");
    let target = Target::parse(input.choose(&TARGETS)?, 80).expect("a target");
    let exported = input.ratio(9, 10)?;
    let request = if input.ratio(1, 8)? {
        None
    } else {
        let mut headers = HeaderMap::new();
        if input.arbitrary()? {
            headers.insert("x-env", input.choose(&["prod", "PROD", "dev", "prod, dev"])?.parse().expect("a value"));
        }
        let methods = [Method::GET, Method::POST, Method::DELETE];
        let method = input.choose(&methods)?.clone();
        let host = Some((*input.choose(&["pay.ns", "PAY.ns:80", "cat.ns:81", "[::1]", "a@b"])?).to_owned());
        let grpc = input.ratio(1, 4)?;
        // What an HTTP library lets through as a path.
        let path = String::from_utf8_lossy(input.bytes(input.len())?).into_owned();
        let path = if path.parse::<http::uri::PathAndQuery>().is_ok() { path } else { "/v1".to_owned() };
        Some(Request { method, path, headers, host, grpc })
    };
    Ok(Question { client: Client { identity, network }, target, exported, request })
}

fn ask(policy: &Policy, question: &Question) -> std::result::Result<Admission, Denied> {
    let Some(request) = &question.request else {
        return policy.connection(&question.client, question.target.clone(), question.exported);
    };
    let facts = RequestFacts {
        method: &request.method,
        path: &request.path,
        query: None,
        headers: &request.headers,
        host: request.host.as_deref(),
        grpc: request.grpc,
    };
    policy.request(&question.client, question.target.clone(), question.exported, &facts)
}

fn in_words(answer: &std::result::Result<Admission, Denied>) -> String {
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

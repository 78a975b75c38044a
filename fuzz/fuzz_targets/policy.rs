//! The policy's words: any text is refused or compiles, and what compiled answers, the same way whether it is asked or asked
//! to explain.
#![no_main]

use http::{HeaderMap, Method};
use isthmus::addr::Target;
use isthmus::authorise::{Client, Policy, RequestFacts, Settings};
use isthmus::identity::Identity;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(settings) = serde_saphyr::from_str::<Settings>(text) else { return };
    let own = Identity::parse("gateway.isthmus.serviceaccount.identity.linkerd.cluster.local").expect("an identity");
    let policy = match Policy::compile(&settings, Some(&own), None) {
        Ok(policy) => policy,
        Err(invalid) => {
            assert!(!invalid.0.is_empty() && !invalid.to_string().is_empty());
            return;
        }
    };
    let mut headers = HeaderMap::new();
    headers.insert("x-env", "prod".parse().expect("a value"));
    for identity in ["web.shop.serviceaccount.identity.linkerd.cluster.local", "spiffe://west.example/ns/shop/sa/web"] {
        let client =
            Client { identity: Identity::parse(identity).expect("an identity"), network: [10, 0, 0, 1].into() };
        for target in ["web.ns.svc.cluster.local:80", "pay.ns:8443"] {
            let target = Target::parse(target, 80).expect("a target");
            let asked = policy.connection(&client, target.clone(), true);
            assert_eq!(policy.explain(&client, &target, true, None).admitted, asked.is_ok());
            for path in ["/", "/v1/x", "/public/../admin"] {
                let facts = RequestFacts {
                    method: &Method::GET,
                    path,
                    query: None,
                    headers: &headers,
                    host: Some("pay.ns"),
                    grpc: false,
                };
                let asked = policy.request(&client, target.clone(), true, &facts);
                assert_eq!(policy.explain(&client, &target, true, Some(&facts)).admitted, asked.is_ok());
            }
        }
    }
});

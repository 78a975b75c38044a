use std::fs;
use std::time::Duration;

use super::*;
use crate::authorise::{Call, judge};
use crate::sources::files::{self, Settings, Status};

const MAIN: &str = "\
authorise:
  mode: enforce
  files: [policy.d/shop.yaml]
  rules:
    - { name: inline, services: [api], action: allow }
";

fn problems(main: &str, files: &[(&str, &str)]) -> String {
    let files: Vec<Text<'_>> = files.iter().map(|(file, text)| Text { file, text }).collect();
    let own = Identity::parse("isthmus.mc.serviceaccount.identity.linkerd.cluster.local").expect("an identity");
    let compiled = Words::read(Text { file: "main.yaml", text: main }, &files)
        .and_then(|words| words.compile(Some(&own), None).map(drop));
    compiled.err().map_or_else(String::new, |problems| problems.to_string())
}

/// What stands in a policy file, and the line that an operator reads.
#[test]
fn mistakes_are_named_with_file_line_column_field_and_the_nearest_word() {
    let rule = |body: &str| format!("rules:\n  - name: a\n{body}    action: allow\n");
    for (text, want) in [
        (rule("    servces: [x]\n"), "3:5: rules[0].servces: there is no such field; did you mean \"services\"?"),
        (rule("    client: [x]\n"), "3:5: rules[0].client: there is no such field; did you mean \"clients\"?"),
        (rule("    paths: [/x]\n"), "3:5: rules[0].paths: there is no such field; did you mean \"http.paths\"?"),
        (
            rule("    zzzzzz: 1\n"),
            "3:5: rules[0].zzzzzz: there is no such field; there are name, clients, networks, services, http, grpc, action, \
             limits, limits_per_client, mode",
        ),
        (
            "rules:\n  - name: a\n    action: alow\n".to_owned(),
            "3:13: rules[0].action: \"alow\": not one of allow, deny; did you mean \"allow\"?",
        ),
        (rule("    mode: audt\n"), "3:11: rules[0].mode: \"audt\": not one of audit, enforce; did you mean \"audit\"?"),
        ("rules:\n  - name: a\n".to_owned(), "2:5: rules[0].action: is missing"),
        (
            rule("    services: x\n"),
            "3:15: rules[0].services: \"x\": not a list (`[…]`, or lines that begin with `- `)",
        ),
        (rule("    http: [GET]\n"), "3:11: rules[0].http: a list of 1: not a map (`key: value`)"),
        (
            rule("    limits: { burst: many }\n"),
            "3:22: rules[0].limits.burst: \"many\": not a whole number from 0 to 4294967295",
        ),
        (
            rule("    limits: { bytes_per_second: 5q }\n"),
            "3:15: rules[0].limits.bytes_per_second: \"5q\": not a number of bytes such as 1500, 64KiB or 50MiB",
        ),
        (
            rule("    http: { method: [GET] }\n"),
            "3:13: rules[0].http.method: there is no such field; did you mean \"methods\"?",
        ),
        (
            rule("    networks: [{ cdr: 10.0.0.0/8 }]\n"),
            "3:18: rules[0].networks[0].cdr: there is no such field; did you mean \"cidr\"?",
        ),
        (rule("    name: b\n"), "3:5: rules[0].name: this key stands here twice"),
        (
            rule("    http: { methods: [GET, GTE] }\n"),
            "3:28: rules[0].http.methods[1]: \"GTE\": not a method: methods are written in capitals; did you mean \"GET\"?",
        ),
        (
            rule("    networks:\n      - cidr: 10.0.0.0/8\n        except: [11.0.0.0/8]\n"),
            "5:18: rules[0].networks[0].except[0]: \"11.0.0.0/8\": not a network: it does not lie inside the network it is taken \
             out of",
        ),
        (
            rule("    services: []\n"),
            "3:5: rules[0].services: \"[]\": it is there but empty: leave it out to set no condition",
        ),
        (
            rule("    http: { headers: { x.y: [] } }\n"),
            "3:24: rules[0].http.headers.x.y: \"[]\": it is there but empty: leave it out to set no condition",
        ),
        (
            rule("    limits: { requests_per_second: 0 }\n"),
            "3:36: rules[0].limits.requests_per_second: \"0\": a limit of zero lets nothing through: write a deny rule instead",
        ),
        (
            "mode: audit\nrules: []\n".to_owned(),
            "1:1: mode: stands in the main configuration file only, below `authorise`; here are `rules`",
        ),
        ("rule: []\n".to_owned(), "1:1: rule: there is no such field; did you mean \"rules\"?"),
        ("- a\n".to_owned(), "1:1: a list of 1: not a map (`key: value`)"),
        ("rules: [\n".to_owned(), "1:8: unclosed bracket '['"),
        ("{}\n".to_owned(), "1:1: rules: is missing"),
    ] {
        assert_eq!(problems("{}", &[("shop.yaml", &text)]), format!("shop.yaml:{want}"), "{text}");
    }
}

#[test]
fn mistakes_in_the_main_file_and_between_files() {
    let inline = "tls: { key_file: x }\nauthorise:\n  trust_domains: [a..b]\n  rules:\n    - { name: a, services: ['**'], action: allow }\n";
    let told = problems(inline, &[]);
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].starts_with("main.yaml:3:19: authorise.trust_domains[0]: \"a..b\": not a trust domain"), "{told}");
    assert!(lines[1].starts_with("main.yaml:5:29: authorise.rules[0].services[0]: \"**\": "), "{told}");

    let told = problems("authorise: { mode: adit }\n", &[]);
    assert_eq!(told, "main.yaml:1:20: authorise.mode: \"adit\": not one of audit, enforce; did you mean \"audit\"?");

    let one = "rules:\n  - { name: a, services: [x], action: allow }\n";
    let told = problems("{}", &[("a.yaml", one), ("b.yaml", one)]);
    let want = "b.yaml:2:13: rules[0].name: \"a\": another rule has this name already, at a.yaml:2:13";
    assert_eq!(told, want);

    let told = problems("authorise:\n  files: [a.yaml, a.yaml]\n", &[("a.yaml", one), ("a.yaml", one)]);
    assert_eq!(told, "main.yaml:2:19: authorise.files[1]: \"a.yaml\": this file is listed twice");

    let bad = "rules:\n  - { name: b, services: [x], action: alow }\n";
    let told = problems("{}", &[("a.yaml", bad), ("b.yaml", bad)]);
    assert_eq!(told.lines().map(|line| &line[..6]).collect::<Vec<_>>(), ["a.yaml", "b.yaml"], "all files are told of");
}

#[test]
fn a_policy_file_is_told_from_a_configuration() {
    for (text, want) in [
        ("rules: [{ name: a, action: allow }]", true),
        ("authorise: { rules: [{ name: a, action: allow }] }", false),
        ("tls: { sni: any }", false),
        ("- rules", false),
        ("rules: [", false),
    ] {
        assert_eq!(Text { file: "x.yaml", text }.is_policy_file(), want, "{text}");
    }
}

fn answer(policy: &Policy, service: &str) -> Option<String> {
    judge(policy, &Call::of("web.west.example", service)).expect("a call").rule
}

/// Files are taken whole or not at all; what was counted goes on being counted.
#[tokio::test]
async fn the_policy_follows_its_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("policy.d")).expect("a folder");
    fs::write(path("main.yaml"), MAIN).expect("written");
    fs::write(path("policy.d/shop.yaml"), "rules: [{ name: shop, services: [shop], action: allow }]").expect("written");
    let recipe = PolicyFiles { main: path("main.yaml"), own: None, serving: None };
    let (policy, read) = files::load(&recipe).expect("in order");
    assert_eq!(read.pieces.len(), 2);
    let live = Arc::new(Live::new(policy));
    let recipe = PolicyFiles { serving: Some(Arc::clone(&live)), ..recipe };
    let settings = Settings { interval: Duration::from_secs(3600), quiet: Duration::from_millis(20) };
    let status = Status::default();
    let mut changes = live.changes();
    let source = files::watch(recipe, Arc::clone(&live), Some(read.digest), settings, status.clone());
    assert_eq!(answer(&live.load(), "shop:80").as_deref(), Some("shop"));
    assert_eq!(answer(&live.load(), "api:80").as_deref(), Some("inline"));

    // One file of two is wrong: both stay as they were.
    let inline = MAIN.replace("inline", "renamed");
    fs::write(path("main.yaml"), &inline).expect("written");
    fs::write(path("policy.d/shop.yaml"), "rules:\n  - { name: shop, service: [shop], action: allow }")
        .expect("written");
    source.reload();
    let problem = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Some(problem) = status.read().problem
                && problem.wrong.to_string().contains("shop.yaml:2:19")
            {
                return problem;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let problem = problem.await.expect("a problem in time");
    assert!(problem.wrong.to_string().ends_with("there is no such field; did you mean \"services\"?"), "{problem:?}");
    assert_ne!(answer(&live.load(), "shop:80"), None, "what served goes on serving");

    // Both right again, and the list of files has grown.
    let more = inline.replace("[policy.d/shop.yaml]", "[policy.d/shop.yaml, more.yaml]");
    fs::write(path("more.yaml"), "rules: [{ name: more, services: [more], action: allow }]").expect("written");
    fs::write(path("policy.d/shop.yaml"), "rules: [{ name: shop2, services: [shop], action: allow }]")
        .expect("written");
    fs::write(path("main.yaml"), more).expect("written");
    let wanted = async {
        while answer(&live.load(), "more:80").is_none() || answer(&live.load(), "shop:80").as_deref() != Some("shop2") {
            changes.next().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wanted).await.expect("replaced in time");
    assert_eq!(answer(&live.load(), "api:80").as_deref(), Some("renamed"));
    let reload = status.read();
    assert_eq!((reload.files.len(), reload.problem), (3, None));
    assert!(reload.refused >= 1 && reload.replaced >= 1, "{:?}", status.read());

    // The new file is followed as the others are.
    fs::write(path("more.yaml"), "rules: [{ name: more, services: [other], action: allow }]").expect("written");
    let wanted = async {
        while answer(&live.load(), "more:80").is_some() {
            changes.next().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wanted).await.expect("replaced in time");

    // A file that is named first and written later is taken when it is there.
    fs::create_dir(path("later")).expect("a folder");
    fs::write(path("main.yaml"), MAIN.replace("policy.d/shop.yaml", "later/on.yaml")).expect("written");
    let missing = async {
        while status.read().problem.is_none_or(|problem| !problem.wrong.file.ends_with("later/on.yaml")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), missing).await.expect("missed in time");
    assert_eq!(answer(&live.load(), "api:80").as_deref(), Some("renamed"), "what served goes on serving");
    fs::write(path("later/on.yaml"), "rules: [{ name: on, services: [on], action: allow }]").expect("written");
    let wanted = async {
        while answer(&live.load(), "on:80").is_none() {
            changes.next().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wanted).await.expect("replaced in time");
    assert_eq!(answer(&live.load(), "shop:80"), None, "files that are named no more are out");
}

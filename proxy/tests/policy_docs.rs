//! `docs/policy.md`, done as it is written: its policy files are read, its commands are run, and what they print is what stands there.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use isthmus::identity::Identity;
use isthmus::sources::policy::{Text, Words};

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy.md");
    fs::read_to_string(path).expect("the page")
}

/// The fenced blocks that are marked so.
fn blocks(page: &str, mark: &str) -> Vec<String> {
    let fence = format!("```{mark}\n");
    let inside = page.split(&fence).skip(1).filter_map(|rest| rest.split("\n```").next());
    inside.map(|block| format!("{block}\n")).collect()
}

/// What a console block that runs `command` says.
fn printed(page: &str, command: &str) -> String {
    let said = |block: String| {
        let (typed, said) = block.split_once("\n").map(|(typed, said)| (typed.to_owned(), said.to_owned()))?;
        let mut said = said.as_str();
        let mut last = typed.as_str();
        while last.ends_with('\\') {
            (last, said) = said.split_once('\n')?;
        }
        typed.starts_with(&format!("$ {command}")).then(|| said.to_owned())
    };
    let mut all = blocks(page, "console").into_iter().filter_map(said);
    all.next().unwrap_or_else(|| panic!("no block runs {command}"))
}

#[test]
fn policy_files_that_are_shown_are_accepted() {
    let own =
        Identity::parse("isthmus.isthmus-system.serviceaccount.identity.linkerd.cluster.local").expect("an identity");
    let blocks = blocks(&page(), "yaml policy");
    assert_eq!(blocks.len(), 2);
    for text in blocks {
        let file = Text { file: "docs/policy.md", text: &text };
        let words = Words::read(Text { file: "", text: "" }, &[file]).and_then(|words| words.compile(Some(&own), None));
        words.unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    }
}

#[test]
fn the_walk_prints_what_it_says() {
    let page = page();
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    fs::create_dir(here.join("policy.d")).expect("a folder");
    let suggested = blocks(&page, "yaml policy").pop().expect("the suggestion");
    let (kept, rest) = suggested.split_once("- name: report-to-orders").expect("the rule to be edited");
    let edited = format!("{kept}- name: report-to-orders{}", rest.replacen("      - =/v1/orders/*\n", "", 1));
    fs::write(here.join("policy.d/orders.yaml"), edited).expect("written");
    fs::write(here.join("cases.yaml"), blocks(&page, "yaml cases").concat()).expect("written");
    let run = |args: &[&str]| {
        let output = Command::cargo_bin("isthmus").expect("the binary").current_dir(here).args(args).output();
        let output = output.expect("it runs");
        (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
    };
    let billing = "report.billing.serviceaccount.identity.linkerd.cluster.local";
    let mut explain = vec!["explain", "--config", "policy.d/orders.yaml", "--client", billing];
    explain.extend(["--service", "orders.prod.svc.cluster.local:80", "--path", "/v1/orders/1"]);
    assert_eq!(run(&explain), (printed(&page, "isthmus explain"), Some(3)));
    let test = run(&["policy", "test", "cases.yaml", "--config", "policy.d/orders.yaml"]);
    assert_eq!(test, (printed(&page, "isthmus policy test"), Some(3)));
}

//! Holds the documents to the code: examples are read as the gateway reads them, and lists are complete both ways.
//!
//! What a page says in prose nobody can check but a reader. What it lists, or shows as an example, is checked here: a code
//! without a line in `refusals.md`, a metric that no longer exists, a configuration that would be refused, a link to nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use isthmus::authorise::Policy;
use isthmus::config::Config;
use isthmus::identity::Identity;

/// The pages, from the top of the repository.
const PAGES: [&str; 12] = [
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "docs/architecture.md",
    "docs/configuration.md",
    "docs/linkerd.md",
    "docs/metrics.md",
    "docs/operate.md",
    "docs/policy.md",
    "docs/refusals.md",
    "docs/reliability.md",
    "docs/threat-model.md",
];

#[test]
fn every_configuration_that_is_shown_is_accepted() {
    let own =
        Identity::parse("isthmus.isthmus-system.serviceaccount.identity.linkerd.cluster.local").expect("an identity");
    let mut read = 0;
    for page in PAGES {
        let text = page_text(page);
        for (line, block) in blocks(&text, "yaml config") {
            let config =
                Config::parse(Path::new(page), &block).unwrap_or_else(|error| panic!("{page}:{line}: {error}"));
            let policy = Policy::compile(&config.file.authorise, Some(&own), None);
            policy.unwrap_or_else(|error| panic!("{page}:{line}: {error}"));
            read += 1;
        }
    }
    assert!(read >= 7, "only {read} examples were found");
}

/// What the README says of one configuration's memory, and its formulas, are what the program computes.
#[test]
fn the_readmes_bound_is_the_programs() {
    let page = page_text("README.md");
    let small =
        blocks(&page, "yaml config").into_iter().find(|(_, block)| block.contains("max_requests")).expect("one");
    let bound = Config::parse(Path::new("README.md"), &small.1).expect("a configuration").bound(1);
    assert!(bound.bytes < 1 << 30, "{} MiB", bound.bytes >> 20);
    let plain = page.replace('`', "");
    for term in bound.terms {
        let row = format!("| {} | {} |", term.name, term.formula);
        assert!(plain.contains(&row), "no such row in the README: {row}");
    }
}

/// Each of the fifty traps has its row, in order, and each test that a row names exists. A dash stands for what is not done yet.
#[test]
fn every_trap_of_linkerd_has_its_row_and_every_test_named_there_exists() {
    let page = page_text("docs/linkerd.md");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit())
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let numbers: Vec<usize> = rows.iter().map(|row| row[0].parse().expect("a number")).collect();
    assert_eq!(numbers, (1..=50).collect::<Vec<_>>());
    let mut code = String::new();
    for folder in ["proxy/src", "proxy/tests", "tests", "probe/src"] {
        code.push_str(&all_of(&top().join(folder)));
    }
    let mut missing = Vec::new();
    for row in rows {
        let [number, _, here, tests] = row[..] else { panic!("a row has four cells: {row:?}") };
        let named: Vec<_> = tests.split('`').skip(1).step_by(2).collect();
        assert!((here == "–" && tests == "–") || (here != "–" && !named.is_empty()), "row {number} is half done");
        missing.extend(named.into_iter().filter(|name| !is_test(&code, name)).map(|name| format!("{number}: {name}")));
    }
    assert!(missing.is_empty(), "tests that do not exist: {missing:#?}");
}

/// Whether a function of this name is marked as a test.
fn is_test(code: &str, name: &str) -> bool {
    code.match_indices(&format!("fn {name}(")).any(|(at, _)| {
        let before: Vec<&str> = code[..at].lines().rev().take(3).collect();
        before.iter().any(|line| line.contains("test]") || line.contains("test(") || line.contains("proptest!"))
    })
}

fn all_of(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).expect("a folder of the source") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            text.push_str(&all_of(&path));
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("a source file"));
        }
    }
    text
}

/// The stage words, with which codes begin.
const STAGES: [&str; 8] = ["accept", "tls", "detect", "authorise", "route", "balance", "connect", "relay"];

#[test]
fn every_refusal_is_explained() {
    let mut said = BTreeSet::new();
    for file in sources("") {
        // Those below speak of configuration keys and of files, which look alike; `refuse.rs` only repeats what others say.
        let elsewhere = ["config/", "app/", "commands/", "admin/", "telemetry/", "gateway/refuse.rs"];
        if !elsewhere.iter().any(|other| file.starts_with(other)) && !file.ends_with("tests.rs") {
            said.extend(quoted(&source(&file)).into_iter().filter(|text| is_code(text)));
        }
    }
    let page = page_text("docs/refusals.md");
    let explained: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .chain(page.split('`').filter(|text| text.starts_with("tls.upstream_")))
        .filter(|text| is_code(text))
        .map(str::to_owned)
        .collect();
    assert!(said.len() > 60, "only {} codes were found", said.len());
    assert_same(&said, &explained, "docs/refusals.md");
}

#[test]
fn every_metric_is_explained() {
    let mut counted = BTreeSet::new();
    for file in sources("").into_iter().filter(|file| !file.ends_with("tests.rs")) {
        counted.extend(quoted(&source(&file)).into_iter().filter(|text| is_metric(text)));
    }
    let page = page_text("docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let explained =
        rows.filter(|name| is_metric(name)).map(|name| name.trim_end_matches("_total").to_owned()).collect();
    assert!(counted.len() > 15, "only {} metrics were found", counted.len());
    assert_same(&counted, &explained, "docs/metrics.md");
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for page in PAGES {
        let folder = top().join(page).parent().expect("a page is in a folder").to_owned();
        for link in page_text(page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or(link);
            if !link.contains("://") && !file.is_empty() && !folder.join(file).exists() {
                broken.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "links to nothing: {broken:#?}");
}

/// Keys that a page names exist: the first word of `room.key` is a section and the second one of its keys.
#[test]
fn every_key_that_is_named_exists() {
    let reference = serde_json::to_value(Config::parse(Path::new("x"), LEAST).expect("the least").file).expect("JSON");
    let sections: BTreeSet<&str> = reference.as_object().expect("sections").keys().map(String::as_str).collect();
    let mut unknown = Vec::new();
    for page in PAGES {
        for word in page_text(page).split('`').skip(1).step_by(2) {
            let Some((section, key)) = word.trim_end_matches(": any").split_once('.') else { continue };
            let plain = key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'.');
            if !sections.contains(section) || !plain || key.ends_with("rs") {
                continue;
            }
            let pointer = format!("/{section}/{}", key.replace('.', "/"));
            let service_key = section == "tls" && key == "identity";
            if reference.pointer(&pointer).is_none() && !explained_code(word) && !service_key {
                unknown.push(format!("{page}: {word}"));
            }
        }
    }
    assert!(unknown.is_empty(), "keys that do not exist: {unknown:#?}");
}

const LEAST: &str = "tls: { chain_file: a, key_file: b, bundle_file: c }";

fn explained_code(word: &str) -> bool {
    page_text("docs/refusals.md").contains(&format!("`{word}`"))
}

// === reading ===

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page_text(page: &str) -> String {
    fs::read_to_string(top().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
}

/// The fenced blocks that are marked so, with the line they begin in.
fn blocks(text: &str, mark: &str) -> Vec<(usize, String)> {
    let fence = format!("```{mark}");
    let mut blocks: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (number, line) in text.lines().enumerate() {
        if line == fence {
            open = true;
            blocks.push((number + 1, String::new()));
        } else if line == "```" {
            open = false;
        } else if open && let Some((_, block)) = blocks.last_mut() {
            block.push_str(line);
            block.push('\n');
        }
    }
    blocks
}

/// Every source file below a folder of `proxy/src`, relative to it.
fn sources(folder: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for entry in fs::read_dir(root.join(folder)).expect("a folder of the source") {
        let path = entry.expect("an entry").path();
        let relative = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
        if path.is_dir() {
            files.extend(sources(&relative));
        } else if relative.ends_with(".rs") {
            files.push(relative);
        }
    }
    files
}

/// A source file without its inline tests.
fn source(file: &str) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file)).expect("a source file");
    let tests = ["\n#[cfg(test)]\nmod tests {", "\n#[cfg(test)]\npub(crate) mod samples {"];
    let end = tests.iter().filter_map(|tests| text.find(tests)).min().unwrap_or(text.len());
    text[..end].to_owned()
}

/// What stands between quotes outside comments.
fn quoted(text: &str) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split('"').skip(1).step_by(2)).map(str::to_owned).collect()
}

fn is_code(text: &str) -> bool {
    let Some((stage, word)) = text.split_once('.') else { return false };
    STAGES.contains(&stage)
        && !word.is_empty()
        && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn is_metric(text: &str) -> bool {
    let word = text.strip_prefix("isthmus_").unwrap_or_default();
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

fn assert_same(code: &BTreeSet<String>, page: &BTreeSet<String>, name: &str) {
    let missing: Vec<_> = code.difference(page).collect();
    let stale: Vec<_> = page.difference(code).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "{name} lacks {missing:?} and explains what is not there: {stale:?}"
    );
}

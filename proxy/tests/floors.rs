//! Holds the source of the gateway against its own plan: which room stands on which floor, and what may be named where.
//!
//! A room may name itself and the floors below it; never sideways, never up. Good intentions do not keep floors, a check
//! does: every path in `proxy/src` that begins with `crate`, `self` or `super` is resolved and held against [`FLOORS`], and
//! the names of outside crates against [`HOMES`]. What breaks is named by file, line and floor.
//!
//! The reading is by tokens: comments, strings and characters are blanked first, inline modules and `use` groups are
//! followed. Paths that a macro puts together are not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The rooms from the ground up. Those of one line stand side by side and are strangers to one another.
const FLOORS: [&[&str]; 7] = [
    &["addr", "backoff", "drain", "endpoint", "fault", "identity", "live", "mix", "record", "rewind"],
    &["wire"],
    &["authorise", "balance", "connect", "detect", "relay", "route", "tls"],
    &["admin", "gateway", "sources", "telemetry"],
    &["config"],
    &["app"],
    &["commands"],
];

/// The arrows sideways: by whom, to what, and why.
const SIDEWAYS: [(&str, &str, &str); 1] = [(
    "route",
    "authorise::Admitted",
    "only authorise can make one, so an unauthorised path to an upstream does not compile",
)];

/// Outside crates that appear in few places, so that replacing one is the work of one folder.
const HOMES: [(&[&str], &[&str]); 9] = [
    (&["rustls", "rustls_pki_types", "tokio_rustls", "webpki", "x509_parser", "rcgen"], &["tls/"]),
    (&["prometheus_client"], &["telemetry/"]),
    (&["tracing_subscriber"], &["telemetry/"]),
    (
        &["hyper", "hyper_util"],
        &[
            "gateway/http/",
            "gateway/mod.rs",
            "gateway/refuse.rs",
            "connect/",
            "admin/",
            "commands/demo/",
            "sources/linkerd/control/",
        ],
    ),
    (&["hickory_resolver"], &["sources/"]),
    (&["clap", "comfy_table"], &["commands/", "main.rs"]),
    (&["linkerd2_proxy_api", "prost", "prost_types", "spiffe", "tonic"], &["sources/linkerd/"]),
    (&["k8s_openapi", "kube"], &["sources/kubernetes/"]),
    (&["opentelemetry", "opentelemetry_otlp", "opentelemetry_sdk"], &["telemetry/"]),
];

/// Lines of code, tests aside, past which a file is asked for its second idea.
const MAX_LINES: usize = 400;

/// Files that may be longer, and why.
const LONG: [(&str, &str); 1] =
    [("config/file.rs", "one flat table of keys, defaults and their reasons: splitting it hides a key")];

#[test]
fn no_room_names_one_beside_or_above_it() {
    let mut broken = Vec::new();
    for source in sources() {
        let Some(room) = source.room() else { continue };
        let Some(own) = floor(room) else {
            broken.push(format!("{}: the room `{room}` stands on no floor; give it one in FLOORS", source.file));
            continue;
        };
        for (path, line) in &source.inner_paths {
            let Some(named) = path.first() else { continue };
            if named == room || excused(room, path) {
                continue;
            }
            let place = format!("{}:{line}: `{room}` (floor {own}) names `crate::{}`", source.file, path.join("::"));
            match floor(named) {
                None => broken.push(format!("{place}, which stands on no floor")),
                Some(other) if other > own => broken.push(format!("{place} (floor {other}): upwards")),
                Some(other) if other == own && own > 0 => broken.push(format!("{place} (floor {other}): sideways")),
                Some(_) => {}
            }
        }
    }
    assert_none("arrows that run up or sideways", &broken);
}

/// The words of the ground floor build on one another (a record holds an address), but never in a circle.
#[test]
fn the_ground_floor_has_no_circle() {
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources() {
        let Some(room) = source.room().filter(|room| floor(room) == Some(0)) else { continue };
        let named = source.inner_paths.iter().filter_map(|(path, _)| path.first());
        arrows.entry(room.to_owned()).or_default().extend(named.filter(|named| *named != room).cloned());
    }
    // Rooms that name no remaining room are taken away until none is left; what cannot be taken away is the circle.
    while let Some(done) =
        arrows.iter().find(|(_, named)| !named.iter().any(|n| arrows.contains_key(n))).map(|(r, _)| r.clone())
    {
        arrows.remove(&done);
    }
    assert!(arrows.is_empty(), "a circle on the ground floor: {arrows:?}");
}

/// What subcommands share.
const SHARED: [&str; 2] = ["dial", "runtime"];

/// Each subcommand parses its own flags and knows no other.
#[test]
fn subcommands_are_strangers() {
    let mut broken = Vec::new();
    for source in sources() {
        let ["commands", own, ..] = source.module.iter().map(String::as_str).collect::<Vec<_>>()[..] else { continue };
        for (path, line) in &source.inner_paths {
            if let [commands, other, ..] = &path[..]
                && commands == "commands"
                && other != own
                && !SHARED.contains(&other.as_str())
                && other.starts_with(|c: char| c.is_ascii_lowercase())
            {
                broken.push(format!("{}:{line}: the subcommand `{own}` names `{other}`", source.file));
            }
        }
    }
    assert_none("subcommands that know one another", &broken);
}

#[test]
fn outside_crates_stay_in_their_rooms() {
    let mut broken = Vec::new();
    for source in sources() {
        for (name, line) in &source.outer_names {
            for (crates, homes) in HOMES {
                if crates.contains(&name.as_str()) && !homes.iter().any(|home| source.file.starts_with(home)) {
                    broken.push(format!(
                        "{}:{line}: names `{name}`, which belongs to {}",
                        source.file,
                        homes.join(", ")
                    ));
                }
            }
        }
    }
    assert_none("outside crates away from home", &broken);
}

/// The probe is handed its streams: it depends on no TLS, and not on the gateway.
#[test]
fn the_probe_knows_no_tls() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../probe/Cargo.toml");
    let manifest = fs::read_to_string(manifest).expect("the probe's manifest is beside the gateway's");
    let known: Vec<_> = ["rustls", "tls", "webpki", "rcgen", "aws-lc", "isthmus."]
        .into_iter()
        .filter(|word| manifest.lines().any(|line| line.starts_with(word) || line.contains(&format!("-{word}"))))
        .collect();
    assert!(known.is_empty(), "probe/Cargo.toml names {known:?}");
}

#[test]
fn every_file_opens_with_what_it_is() {
    // A room's `tests.rs` is introduced by the room.
    let silent = sources().into_iter().filter(|source| !source.is_test() && !source.raw.starts_with("//! "));
    let silent: Vec<_> = silent.map(|source| source.file).collect();
    assert_none("files that do not open with `//!` and what they are", &silent);
}

#[test]
fn no_file_holds_two_ideas() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let lines = source.lines_of_code();
        let excused = LONG.iter().any(|(file, _)| *file == source.file);
        if lines > MAX_LINES && !excused {
            broken.push(format!(
                "{}: {lines} lines of code, tests aside; past {MAX_LINES} look for the second idea",
                source.file
            ));
        }
    }
    let main = sources().into_iter().find(|source| source.file == "main.rs").expect("there is a main.rs");
    if main.raw.lines().count() > 80 {
        broken.push("main.rs: more than 80 lines; it is the switch, read first".to_owned());
    }
    assert_none("long files", &broken);
}

#[test]
fn nothing_is_unsafe_and_the_map_exports_nothing() {
    let mut broken = Vec::new();
    for source in sources() {
        for (token, line) in &source.tokens {
            if token == "unsafe" {
                broken.push(format!("{}:{line}: unsafe", source.file));
            }
        }
        if source.file == "lib.rs" && source.tokens.iter().any(|(token, _)| token == "use") {
            broken.push("lib.rs: re-exports or imports; things are imported from where they live".to_owned());
        }
    }
    assert_none("unsafe or re-exported", &broken);
}

fn assert_none(what: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{what}:\n  {}\n", broken.join("\n  "));
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn excused(room: &str, path: &[String]) -> bool {
    SIDEWAYS.iter().any(|(from, to, _)| *from == room && *to == path.join("::"))
}

// === reading the source ===

/// A word or a sign of the source, and its line.
type Token = (String, usize);

/// One file of `proxy/src`, read.
struct Source {
    /// Relative to `proxy/src`, with `/`.
    file: String,
    /// The module it is.
    module: Vec<String>,
    raw: String,
    tokens: Vec<Token>,
    /// Paths into this crate, without the leading `crate`.
    inner_paths: Vec<(Vec<String>, usize)>,
    /// First words of all other paths.
    outer_names: Vec<Token>,
}

impl Source {
    fn read(file: String, raw: String) -> Self {
        let module = module_of(&file);
        let tokens = tokens(&blanked(&raw));
        let (inner_paths, outer_names) = Walk::new(&tokens, &module).all();
        Self { file, module, raw, tokens, inner_paths, outer_names }
    }

    /// The room: the first word of the module. The crate's two roots are in none.
    fn room(&self) -> Option<&str> {
        self.module.first().map(String::as_str)
    }

    fn is_test(&self) -> bool {
        self.file.ends_with("/tests.rs") || self.file.contains("/tests/")
    }

    /// Lines that hold code, up to an inline test module.
    fn lines_of_code(&self) -> usize {
        let lines: Vec<&str> = self.raw.lines().collect();
        let tests = lines
            .windows(2)
            .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].contains("mod ") && pair[1].ends_with('{'));
        let until = tests.map_or(usize::MAX, |at| at + 1);
        self.tokens.iter().map(|(_, line)| *line).filter(|line| *line < until).collect::<BTreeSet<_>>().len()
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the source can be read") {
            let path = entry.expect("an entry can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let file = path.strip_prefix(&root).expect("it is below the root").to_string_lossy().replace('\\', "/");
                found.push(Source::read(file, fs::read_to_string(&path).expect("a source file can be read")));
            }
        }
    }
    found.sort_by(|a, b| a.file.cmp(&b.file));
    assert!(found.len() > 50, "only {} files were found", found.len());
    found
}

/// `gateway/http/mod.rs` is `gateway::http`.
fn module_of(file: &str) -> Vec<String> {
    let file = file.trim_end_matches(".rs");
    let words = file.split('/').filter(|word| !["mod", "lib", "main"].contains(word));
    words.map(str::to_owned).collect()
}

/// The source with the insides of comments, strings and characters made blank; lines stay where they are.
fn blanked(raw: &str) -> String {
    let chars: Vec<char> = raw.chars().collect();
    let mut out = String::with_capacity(raw.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match (chars[at], chars.get(at + 1)) {
            ('/', Some('/')) => (at..chars.len()).find(|i| chars[*i] == '\n').unwrap_or(chars.len()),
            ('/', Some('*')) => {
                (at + 3..chars.len()).find(|i| chars[*i - 1] == '*' && chars[*i] == '/').unwrap_or(at) + 1
            }
            ('r', Some('"' | '#')) if !(at > 0 && is_word(chars[at - 1])) => raw_string_end(&chars, at),
            ('"', _) => quoted_end(&chars, at, '"'),
            ('\'', Some('\\')) => quoted_end(&chars, at, '\''),
            ('\'', Some(_)) if chars.get(at + 2) == Some(&'\'') => at + 3,
            _ => at,
        };
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn quoted_end(chars: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// The end of `r"…"` or `r#"…"#`; the start itself where it is a raw identifier.
fn raw_string_end(chars: &[char], start: usize) -> usize {
    let hashes = chars[start + 1..].iter().take_while(|c| **c == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return start;
    }
    let closes =
        |at: &usize| chars[*at] == '"' && chars[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
    (open + 1..chars.len()).find(closes).map_or(chars.len(), |at| at + 1 + hashes)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Words, `::`, and every other sign by itself.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let chars: Vec<char> = line.chars().collect();
        let mut at = 0;
        while at < chars.len() {
            let len = match chars[at] {
                c if c.is_whitespace() => 0,
                c if is_word(c) => chars[at..].iter().take_while(|c| is_word(**c)).count(),
                ':' if chars.get(at + 1) == Some(&':') => 2,
                _ => 1,
            };
            if len > 0 {
                tokens.push((chars[at..at + len].iter().collect(), number + 1));
            }
            at += len.max(1);
        }
    }
    tokens
}

/// Words after which a path may begin.
const KEYWORDS: [&str; 14] =
    ["as", "const", "dyn", "else", "for", "if", "impl", "in", "let", "match", "mut", "return", "use", "where"];

/// Goes through the tokens, knowing in which inline module it is.
struct Walk<'a> {
    tokens: &'a [Token],
    module: Vec<String>,
    /// How many braces are open.
    depth: usize,
    /// The depths at which inline modules began.
    inline: Vec<usize>,
    inner: Vec<(Vec<String>, usize)>,
    outer: Vec<Token>,
}

impl<'a> Walk<'a> {
    fn new(tokens: &'a [Token], module: &[String]) -> Self {
        Self { tokens, module: module.to_vec(), depth: 0, inline: Vec::new(), inner: Vec::new(), outer: Vec::new() }
    }

    fn text(&self, at: usize) -> &'a str {
        self.tokens.get(at).map_or("", |(text, _)| text)
    }

    fn all(mut self) -> (Vec<(Vec<String>, usize)>, Vec<Token>) {
        let mut at = 0;
        while at < self.tokens.len() {
            let before = if at == 0 { "" } else { self.text(at - 1) };
            match self.text(at) {
                "mod" if self.text(at + 2) == "{" => {
                    self.module.push(self.text(at + 1).to_owned());
                    self.inline.push(self.depth);
                    self.depth += 1;
                    at += 3;
                }
                "{" => {
                    self.depth += 1;
                    at += 1;
                }
                "}" => {
                    self.depth -= 1;
                    if self.inline.last() == Some(&self.depth) {
                        self.inline.pop();
                        self.module.pop();
                    }
                    at += 1;
                }
                // Before a global path stands a keyword that is no part of it: `use ::http`, `dyn ::http`.
                word if KEYWORDS.contains(&word) => at += 1,
                word if word.starts_with(is_word) && before != "." && before != "::" => at = self.path(at, &[]),
                // `::http` is global; `Vec::<T>::new` goes on with a path that was seen already.
                "::" if before != ">" && self.text(at + 1).starts_with(is_word) => at = self.path(at + 1, &[]),
                _ => at += 1,
            }
        }
        (self.inner, self.outer)
    }

    /// Reads the path that begins at a word, groups of `use` included, and returns where it ends.
    fn path(&mut self, start: usize, prefix: &[String]) -> usize {
        let line = self.tokens[start].1;
        let mut words = prefix.to_vec();
        let mut at = start;
        loop {
            words.push(self.text(at).to_owned());
            if self.text(at + 1) != "::" {
                at += 1;
                break;
            }
            let next = self.text(at + 2);
            if next == "{" {
                return self.group(at + 3, &words);
            }
            if !next.starts_with(is_word) {
                at += 2;
                break;
            }
            at += 2;
        }
        self.keep(&words, line);
        at
    }

    /// Reads what stands between the braces of a `use` group, and returns where it ends.
    fn group(&mut self, start: usize, prefix: &[String]) -> usize {
        let mut at = start;
        while at < self.tokens.len() && self.text(at) != "}" {
            match self.text(at) {
                "self" => {
                    self.keep(prefix, self.tokens[at].1);
                    at += 1;
                }
                "as" => at += 2,
                word if word.starts_with(is_word) => at = self.path(at, prefix),
                _ => at += 1,
            }
        }
        at + 1
    }

    fn keep(&mut self, words: &[String], line: usize) {
        let absolute = match words[0].as_str() {
            "crate" => words[1..].to_vec(),
            word if word == "super" || (word == "self" && words.len() > 1) => {
                let ups = words.iter().filter(|word| *word == "super").count();
                let rest = words.iter().skip_while(|word| ["self", "super"].contains(&word.as_str()));
                let base = &self.module[..self.module.len().saturating_sub(ups)];
                base.iter().chain(rest).cloned().collect()
            }
            _ => {
                if words.len() > 1 {
                    self.outer.push((words[0].clone(), line));
                }
                return;
            }
        };
        self.inner.push((absolute, line));
    }
}

#[test]
fn the_reading_finds_what_it_looks_for() {
    let text = r##"
//! crate::never in a comment
use std::io;
use crate::{admin, tls::{self, Credentials as C}};
use ::http::Request;
mod tests {
    use super::*;
    fn f() { super::super::wire::go("crate::not::here", r#"crate::nor"#, 'c', '\''); Vec::<u8>::new(); }
}
fn g<'a>(x: &'a str) { let _ = crate::app::App::start(x); hyper::body::to(x) }
"##;
    let source = Source::read("gateway/tcp.rs".to_owned(), text.to_owned());
    let mut inner: Vec<_> =
        source.inner_paths.iter().map(|(path, line)| format!("{}@{line}", path.join("::"))).collect();
    inner.sort();
    let expected =
        ["admin@4", "app::App::start@10", "gateway::tcp@7", "gateway::wire::go@8", "tls::Credentials@4", "tls@4"];
    assert_eq!(inner, expected);
    let outer: Vec<_> = source.outer_names.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(outer, ["std", "http", "hyper"]);
}

//! The operator's words about who may reach what, gathered from several files into one policy.
//!
//! **In** the main configuration file's text and those of the policy files. **Out** [`Words`], from which a [`Policy`] is
//! compiled. **Refuses** whole: a file that does not read, a rule that cannot be meant, a name given twice, each with file, line,
//! column and field. Files have no order among them: a deny rule in any of them wins over every allow rule.

use serde::{Deserialize, Serialize};

use super::misread::{self, Misread};
use super::place::{Node, Place, join};
use super::problem::{Problem, Problems};
use crate::authorise::{Invalid, Policy, RuleSettings, Settings, Wrong};
use crate::identity::Identity;

/// A file and what it holds.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// Its name, as problems show it.
    pub file: &'a str,
    /// Its contents.
    pub text: &'a str,
}

impl Text<'_> {
    /// Whether it is a policy file, and not a whole configuration: it has rules at the top.
    pub fn is_policy_file(&self) -> bool {
        Node::read(self.text).is_some_and(|node| node.has("rules"))
    }
}

/// What a policy file holds.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// Rules, beside those of other files.
    pub rules: Vec<RuleSettings>,
}

/// The one section of the main configuration file that is of interest here. What else stands there is read elsewhere.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Main {
    authorise: Settings,
}

/// Everything that was said, and by which file.
#[derive(Debug)]
pub struct Words<'a> {
    settings: Settings,
    origins: Vec<Origin<'a>>,
}

/// One file's share of the rules.
#[derive(Debug)]
struct Origin<'a> {
    text: Text<'a>,
    /// What stands before its fields: `authorise` in the main file.
    below: &'static str,
    /// The number of its first rule among all.
    first: usize,
}

const SECTION: &str = "authorise";

impl<'a> Words<'a> {
    /// Reads the main file and the policy files.
    pub fn read(main: Text<'a>, files: &[Text<'a>]) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let mut settings = Settings::default();
        match section(main.text) {
            Ok(read) => settings = read,
            Err(misread) => problems.push(Problem::misread(main.file, &misread)),
        }
        let mut origins = vec![Origin { text: main, below: SECTION, first: 0 }];
        for (at, file) in files.iter().enumerate() {
            if files[..at].iter().any(|other| other.file == file.file) {
                let field = format!("{SECTION}.files[{at}]");
                let message = format!("{field}: {:?}: this file is listed twice", file.file);
                problems.push(Problem { file: main.file.to_owned(), place: place(main.text, &field), message });
                continue;
            }
            match misread::read::<PolicyFile>(file.text) {
                Ok(read) => {
                    origins.push(Origin { text: *file, below: "", first: settings.rules.len() });
                    settings.rules.extend(read.rules);
                }
                Err(misread) => problems.push(Problem::misread(file.file, &belongs_elsewhere(misread))),
            }
        }
        if problems.is_empty() { Ok(Self { settings, origins }) } else { Err(Problems(problems)) }
    }

    /// All settings, with the rules of every file.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Compiles the policy; the counts of limits go on from the one that is `replaced`.
    pub fn compile(&self, own: Option<&Identity>, replaced: Option<&Policy>) -> Result<Policy, Problems> {
        Policy::compile(&self.settings, own, replaced)
            .map_err(|invalid| Problems(invalid.0.iter().map(|invalid| self.problem(invalid)).collect()))
    }

    fn problem(&self, invalid: &Invalid) -> Problem {
        let rule = invalid.rule.as_ref().map(|(index, _)| *index);
        let (origin, path) = self.find(rule, &invalid.field);
        let mut message = format!("{path}: {:?}: {}", invalid.found, invalid.wrong);
        if let (Wrong::DuplicateName, Some(rule)) = (&invalid.wrong, rule)
            && let Some(first) = self.settings.rules[..rule].iter().position(|other| other.name == invalid.found)
        {
            let (origin, path) = self.find(Some(first), "name");
            let other = Problem { place: place(origin.text.text, &path), ..origin.problem("") };
            message = format!("{message}, at {}", other.whereabouts());
        }
        if let Some(nearest) = &invalid.nearest {
            message = format!("{message}; did you mean {nearest:?}?");
        }
        Problem { place: place(origin.text.text, &path), ..origin.problem(&message) }
    }

    /// The file in which a field stands, and its path there.
    fn find(&self, rule: Option<usize>, field: &str) -> (&Origin<'a>, String) {
        let at = rule.unwrap_or(0);
        let origin = self.origins.iter().rfind(|origin| rule.is_some() && origin.first <= at);
        let origin = origin.unwrap_or(&self.origins[0]);
        let path = match rule {
            Some(at) => format!("rules[{}].{field}", at - origin.first),
            None => field.to_owned(),
        };
        (origin, join(origin.below, &path))
    }
}

impl Origin<'_> {
    fn problem(&self, message: &str) -> Problem {
        Problem { file: self.text.file.to_owned(), place: None, message: message.to_owned() }
    }
}

/// The section of the main file.
pub(super) fn section(main: &str) -> Result<Settings, Misread> {
    let main = if main.trim().is_empty() { "{}" } else { main };
    misread::read::<Main>(main).map(|main| main.authorise)
}

fn place(text: &str, path: &str) -> Option<Place> {
    Node::read(text).map(|node| node.place_of(path))
}

/// What decides for all rules together is said once, in the main file.
fn belongs_elsewhere(misread: Misread) -> Misread {
    let known = serde_json::to_value(Settings::default()).unwrap_or_default();
    if misread.field == "rules" || known.get(&misread.field).is_none() {
        return misread;
    }
    let message = format!("stands in the main configuration file only, below `{SECTION}`; here are `rules`");
    Misread { message, ..misread }
}

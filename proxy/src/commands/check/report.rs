//! Checks and what came of them, for people and for programs.

use std::fmt::{Display, Write as _};

use serde_json::{Value, json};

/// What came of a check.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mark {
    Failed,
    Passed,
    Warned,
}

impl Mark {
    const fn sign(self) -> &'static str {
        match self {
            Self::Failed => "×",
            Self::Passed => "√",
            Self::Warned => "‼",
        }
    }

    const fn colour(self) -> &'static str {
        match self {
            Self::Failed => "31",
            Self::Passed => "32",
            Self::Warned => "33",
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Failed => "error",
            Self::Passed => "success",
            Self::Warned => "warning",
        }
    }
}

/// One check.
#[derive(Clone, Debug)]
pub(super) struct Check {
    mark: Mark,
    what: String,
    /// What was found, where that is not what it should be.
    found: Option<String>,
    hint: Option<String>,
}

impl Check {
    pub(super) fn passed(what: impl Display) -> Self {
        Self { mark: Mark::Passed, what: what.to_string(), found: None, hint: None }
    }

    pub(super) fn warned(what: impl Display, found: impl Display, hint: impl Display) -> Self {
        Self::not_passed(Mark::Warned, &what, &found, &hint)
    }

    pub(super) fn failed(what: impl Display, found: impl Display, hint: impl Display) -> Self {
        Self::not_passed(Mark::Failed, &what, &found, &hint)
    }

    fn not_passed(mark: Mark, what: &dyn Display, found: &dyn Display, hint: &dyn Display) -> Self {
        Self { mark, what: what.to_string(), found: Some(found.to_string()), hint: Some(hint.to_string()) }
    }
}

/// Checks that belong together.
#[derive(Clone, Debug)]
pub(super) struct Category {
    name: &'static str,
    checks: Vec<Check>,
}

impl Category {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, checks: Vec::new() }
    }

    pub(super) fn add(&mut self, check: Check) {
        self.checks.push(check);
    }
}

/// Whether nothing failed. What is warned of does not count.
pub(super) fn success(categories: &[Category]) -> bool {
    worst(categories) != Mark::Failed
}

fn worst(categories: &[Category]) -> Mark {
    let marks = || categories.iter().flat_map(|category| &category.checks).map(|check| check.mark);
    match () {
        () if marks().any(|mark| mark == Mark::Failed) => Mark::Failed,
        () if marks().any(|mark| mark == Mark::Warned) => Mark::Warned,
        () => Mark::Passed,
    }
}

/// For people: everything, or what is not in order only.
pub(super) fn text(categories: &[Category], short: bool, colour: bool) -> String {
    let sign = |mark: Mark| match colour {
        true => format!("\x1b[{}m{}\x1b[0m", mark.colour(), mark.sign()),
        false => mark.sign().to_owned(),
    };
    let mut text = String::new();
    for Category { name, checks } in categories {
        let shown: Vec<&Check> = checks.iter().filter(|check| !short || check.mark != Mark::Passed).collect();
        if shown.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{name}\n{}", "-".repeat(name.chars().count()));
        for Check { mark, what, found, hint } in shown {
            let _ = writeln!(text, "{} {}", sign(*mark), printable(what));
            for line in found.iter().flat_map(|found| found.lines()) {
                let _ = writeln!(text, "    {}", printable(line));
            }
            if let Some(hint) = hint {
                let _ = writeln!(text, "    → {}", printable(hint));
            }
        }
        text.push('\n');
    }
    let _ = writeln!(text, "Status check results are {}", sign(worst(categories)));
    text
}

/// For programs, in the shape that Linkerd's check has.
pub(super) fn json(categories: &[Category]) -> Value {
    let category = |Category { name, checks }: &Category| {
        let checks = checks.iter().map(|Check { mark, what, found, hint }| {
            let mut check = json!({ "description": what, "result": mark.word() });
            for (key, text) in [("error", found), ("hint", hint)] {
                if let Some(text) = text {
                    check[key] = json!(text);
                }
            }
            check
        });
        json!({ "categoryName": name, "checks": checks.collect::<Vec<_>>() })
    };
    json!({ "success": success(categories), "categories": categories.iter().map(category).collect::<Vec<_>>() })
}

/// Others' words on a terminal: control characters are spelled out.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_forms() {
        let mut one = Category::new("one");
        one.add(Check::passed("the sky is blue"));
        one.add(Check::warned("it is dry", "clouds\x1b[2J", "take an umbrella"));
        let mut two = Category::new("two");
        two.add(Check::passed("the sun is up"));
        let categories = [one, two];
        assert_eq!(
            text(&categories, false, false),
            "one\n---\n√ the sky is blue\n‼ it is dry\n    clouds\\u{1b}[2J\n    → take an umbrella\n\n\
             two\n---\n√ the sun is up\n\nStatus check results are ‼\n"
        );
        assert_eq!(
            text(&categories, true, false),
            "one\n---\n‼ it is dry\n    clouds\\u{1b}[2J\n    → take an umbrella\n\nStatus check results are ‼\n"
        );
        let json = json(&categories);
        assert_eq!(json["success"], true);
        assert_eq!(json["categories"][0]["checks"][1]["result"], "warning");
        assert_eq!(json["categories"][0]["checks"][1]["hint"], "take an umbrella");
    }
}

//! What is known of gateways, kept current: a table on a terminal, one line for each change in a pipe.
//!
//! **In** the statuses, looked at now and then. **Out** the screen. A gateway has changed when it lives or dies, or when it
//! fails in another way than before.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use isthmus_probe::prober::Settings;
use isthmus_probe::report::{self, Row};
use serde_json::json;

use super::Output;
use super::targets::{Gateways, Given};
use crate::tls::inspect::rfc3339;

/// How often it is looked whether something has changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// What an error may take in the table, in characters; it stands below in full.
const SHORT_ERROR: usize = 48;

/// Where changes are shown.
#[derive(Debug)]
pub(super) struct Screen {
    output: Output,
    terminal: bool,
    title: String,
    /// What was said of each gateway in a pipe.
    said: BTreeMap<String, (bool, String)>,
    /// What stands on the terminal.
    drawn: String,
}

impl Screen {
    pub(super) fn new(output: Output, terminal: bool, targets: &[Given], settings: Settings) -> Self {
        let title = format!(
            "{} target{}, every {:?}; dead after {} failures in a row. Ctrl-C ends it.",
            targets.len(),
            if targets.len() == 1 { "" } else { "s" },
            settings.period,
            settings.failure_threshold
        );
        Self {
            output,
            terminal: terminal && output == Output::Table,
            title,
            said: BTreeMap::new(),
            drawn: String::new(),
        }
    }

    /// Shows until it cannot.
    pub(super) async fn keep_current(&mut self, gateways: &Gateways) -> io::Result<()> {
        loop {
            self.show(gateways)?;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Shows for the last time, and leaves the terminal as it was.
    pub(super) fn close(&mut self, gateways: &Gateways) -> io::Result<()> {
        if self.terminal {
            self.drawn.clear();
            self.show(gateways)?;
            write!(io::stdout(), "\x1b[?25h")?;
            return io::stdout().flush();
        }
        self.show(gateways)
    }

    fn show(&mut self, gateways: &Gateways) -> io::Result<()> {
        // Before its first probe a gateway counts as alive, and nobody knows anything: there is nothing to say.
        let asked = |row: &Row| row.successful > 0 || row.failures_in_row > 0;
        let rows = report::rows(&gateways.statuses());
        if self.terminal { self.draw(&rows) } else { self.tell(rows.into_iter().filter(asked).collect()) }
    }

    /// Draws over what was drawn before, where something has changed.
    fn draw(&mut self, rows: &[Row]) -> io::Result<()> {
        let page = format!("{}\n\n{}", self.title, coloured(rows));
        if page == self.drawn {
            return Ok(());
        }
        // Hide the cursor, home; each line clears what was behind it, and the end what was below.
        let mut out = String::from("\x1b[?25l\x1b[H");
        for line in page.lines() {
            let _ = write!(out, "{line}\x1b[K\r\n");
        }
        out.push_str("\x1b[J");
        if self.drawn.is_empty() {
            out.insert_str(0, "\x1b[2J");
        }
        self.drawn = page;
        let mut stdout = io::stdout().lock();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()
    }

    /// One line for each gateway that has changed.
    fn tell(&mut self, rows: Vec<Row>) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        for row in rows {
            let failing = row.failures_in_row > 0;
            let error = row.last_error.as_ref().filter(|_| failing);
            let error = error.map(|error| format!("{}: {}", error.step, error.message)).unwrap_or_default();
            let now = (row.alive, error);
            if self.said.get(&row.cluster_name) == Some(&now) {
                continue;
            }
            let at = rfc3339(SystemTime::now());
            if self.output == Output::Json {
                let line = json!({ "time": at, "gateway": row });
                writeln!(stdout, "{line}")?;
            } else {
                let word = match (row.alive, failing) {
                    (true, false) => "alive",
                    (true, true) => "failing",
                    (false, _) => "dead",
                };
                let took = row.latency.filter(|_| !failing).map(|millis| format!(" {millis:.1}ms")).unwrap_or_default();
                let error = if now.1.is_empty() { String::new() } else { format!(" {}", printable(&now.1)) };
                writeln!(stdout, "{at} {} {word}{took}{error}", printable(&row.cluster_name))?;
            }
            self.said.insert(row.cluster_name, now);
        }
        stdout.flush()
    }
}

/// The table, with long errors below it.
pub(super) fn table(rows: &[Row]) -> String {
    let short = rows.iter().cloned().map(|mut row| {
        if let Some(error) = &mut row.last_error
            && error.message.chars().count() > SHORT_ERROR
        {
            error.message = error.message.chars().take(SHORT_ERROR - 1).chain(['…']).collect();
        }
        row
    });
    let mut text = report::table(&short.collect::<Vec<_>>());
    let mut below = String::new();
    for row in rows {
        if let Some(error) = &row.last_error
            && error.message.chars().count() > SHORT_ERROR
        {
            let _ =
                writeln!(below, "\n{}, {}: {}", printable(&row.cluster_name), error.step, printable(&error.message));
        }
    }
    text.push_str(&below);
    text
}

/// The table with dead gateways in red and failing ones in yellow.
fn coloured(rows: &[Row]) -> String {
    let colour = |row: &Row| match (row.alive, row.failures_in_row) {
        (true, 0) => "",
        (true, _) => "\x1b[33m",
        (false, _) => "\x1b[31m",
    };
    let mut text = String::new();
    for (place, line) in table(rows).lines().enumerate() {
        let row = place.checked_sub(1).and_then(|place| rows.get(place));
        match (place, row.map(colour)) {
            (0, _) => drop(writeln!(text, "\x1b[1m{line}\x1b[0m")),
            (_, Some(start)) if !start.is_empty() => drop(writeln!(text, "{start}{line}\x1b[0m")),
            _ => drop(writeln!(text, "{line}")),
        }
    }
    text
}

/// Others' words on a terminal or in a line: control characters are spelled out.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

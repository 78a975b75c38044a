//! What was measured, for people (a table and a chart) and for programs (JSON).

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::chart;
use crate::gateways::Kind;
use crate::rows::{self, Growth, Row, Unit};
use crate::stats::{median, spread};

/// One window.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Sample {
    /// In the row's unit.
    pub(crate) figure: f64,
    /// Microseconds of the gateway's processor for each unit of work.
    pub(crate) cpu: f64,
    /// Units of work per second.
    pub(crate) rate: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    /// Shares of their cores that the gateway used, and loader and backend together.
    pub(crate) busy: f64,
    pub(crate) own: f64,
    /// The share of the window in which the gateway was kept from running.
    pub(crate) disturbed: f64,
    /// Whether loader and backend, not the gateway, set the pace.
    pub(crate) loader_bound: bool,
    /// Whether the window was as undisturbed as asked for.
    pub(crate) quiet: bool,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:9.2}  {:9.0}/s  p50 {:7.0} p99 {:7.0} p99.9 {:7.0} µs  busy {:3.0} % loader {:3.0} % disturbed {:4.1} %{}",
            self.figure,
            self.rate,
            self.p50,
            self.p99,
            self.p999,
            self.busy * 100.0,
            self.own * 100.0,
            self.disturbed * 100.0,
            if self.loader_bound { "  loader-bound" } else { "" },
        )
    }
}

/// One row of one gateway.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Cell {
    pub(crate) samples: Vec<Sample>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
}

impl Cell {
    fn middle(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median(&self.samples.iter().map(of).collect::<Vec<_>>())
    }

    /// The median over the rounds.
    pub(crate) fn figure(&self) -> Option<f64> {
        (!self.samples.is_empty()).then(|| self.middle(|sample| sample.figure))
    }

    fn spread(&self) -> f64 {
        spread(&self.samples.iter().map(|sample| sample.figure).collect::<Vec<_>>())
    }
}

/// All cells, by row and by gateway.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Results {
    pub(crate) rows: BTreeMap<String, BTreeMap<String, Cell>>,
}

impl Results {
    pub(crate) fn add(&mut self, row: &Row, kind: Kind, sample: Sample) {
        self.cell(row, kind).samples.push(sample);
    }

    pub(crate) fn fail(&mut self, row: &Row, kind: Kind, why: &str) {
        self.cell(row, kind).failure.get_or_insert_with(|| why.to_owned());
    }

    fn cell(&mut self, row: &Row, kind: Kind) -> &mut Cell {
        self.rows.entry(row.name.to_owned()).or_default().entry(key(kind)).or_default()
    }

    pub(crate) fn get(&self, row: &str, kind: Kind) -> Option<&Cell> {
        self.rows.get(row)?.get(&key(kind))
    }

    pub(crate) fn figure(&self, row: &str, kind: Kind) -> Option<f64> {
        self.get(row, kind)?.figure()
    }
}

fn key(kind: Kind) -> String {
    format!("{kind:?}").to_lowercase()
}

pub(crate) const KINDS: [Kind; 5] = [Kind::Isthmus, Kind::Floor, Kind::Haproxy, Kind::Nginx, Kind::Envoy];

/// CPU of Linkerd's gateway as it was measured once on other hardware beside HAProxy: µs (or KiB) of both. Its program is in
/// no registry, so its ratio to HAProxy is taken from there.
pub(crate) const LINKERD: [(&str, f64, f64); 13] = [
    ("h2-h2", 23.0, 6.63),
    ("h1-h1", 38.7, 17.4),
    ("grpc-h2", 28.2, 15.4),
    ("down-h2", 834.0, 1908.0),
    ("up-h2", 842.0, 1795.0),
    ("echo", 11.2, 11.8),
    ("opaque-down", 1231.0, 1176.0),
    ("opaque-up", 1056.0, 1073.0),
    ("handshake", 434.0, 1622.0),
    ("resumed", 227.0, 834.0),
    ("idle", 47.8, 31.5),
    ("open-2000", 253.0, 200.0),
    ("header-h2", 23.0, 6.63),
];

/// Joins with what was measured before, and writes all three files.
pub(crate) fn write(folder: &Path, results: Results) -> Result<()> {
    let path = folder.join("results.json");
    let mut all: Results = match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| path.display().to_string())?,
        Err(_) => Results::default(),
    };
    for (row, cells) in results.rows {
        all.rows.entry(row).or_default().extend(cells);
    }
    fs::write(&path, serde_json::to_string_pretty(&all)? + "\n")?;
    let table = table(&all);
    fs::write(folder.join("table.md"), &table)?;
    fs::write(folder.join("chart.svg"), chart::draw(&all))?;
    println!("{table}");
    Ok(())
}

fn number(figure: f64) -> String {
    match figure {
        large if large >= 100.0 => format!("{large:.0}"),
        middle if middle >= 10.0 => format!("{middle:.1}"),
        small => format!("{small:.2}"),
    }
}

fn told(row: &Row, cell: &Cell) -> String {
    let Some(figure) = cell.figure() else {
        return if cell.failure.is_some() { "failed".into() } else { "–".into() };
    };
    let mut text = match row.unit {
        Unit::P99 => format!(
            "{} / {} / {}",
            number(cell.middle(|sample| sample.p50)),
            number(figure),
            number(cell.middle(|sample| sample.p999))
        ),
        _ => number(figure),
    };
    if cell.samples.iter().any(|sample| sample.loader_bound) {
        text.push_str(" ᵇ");
    }
    if cell.samples.iter().any(|sample| !sample.quiet) && cell.samples.iter().any(|sample| sample.rate > 0.0) {
        text.push_str(" ᵈ");
    }
    text
}

/// The table, in Markdown.
fn table(results: &Results) -> String {
    let mut text = String::from("| row | unit |");
    KINDS.iter().for_each(|kind| write!(text, " {kind} |").expect("text"));
    text.push_str(" of floor | of best peer | spread |\n|---|---|");
    KINDS.iter().for_each(|_| text.push_str("---:|"));
    text.push_str("---:|---:|---:|\n");
    for row in rows::all() {
        if !results.rows.contains_key(row.name) {
            continue;
        }
        let unit = if row.unit == Unit::P99 { "µs p50 / p99 / p99.9" } else { row.unit.word() };
        write!(text, "| {} | {unit} |", row.title).expect("text");
        let best = KINDS.iter().filter_map(|kind| results.figure(row.name, *kind)).fold(f64::INFINITY, f64::min);
        for kind in KINDS {
            let cell = results.get(row.name, kind).map_or_else(|| "–".into(), |cell| told(&row, cell));
            let bold = results.figure(row.name, kind) == Some(best) && row.fits(Kind::Floor);
            if bold { write!(text, " **{cell}** |") } else { write!(text, " {cell} |") }.expect("text");
        }
        let ours = results.figure(row.name, Kind::Isthmus);
        let small = if row.growth != Growth::default() { Some("h2-h2") } else { row.plain() };
        let beside = match small {
            // Against itself.
            Some(small) => results.figure(small, Kind::Isthmus),
            None => results.figure(row.name, Kind::Floor),
        };
        let peer = [Kind::Haproxy, Kind::Nginx, Kind::Envoy]
            .iter()
            .filter_map(|kind| results.figure(row.name, *kind))
            .reduce(f64::min);
        let ratio = |other: Option<f64>| match (ours, other) {
            (Some(ours), Some(other)) => format!("{:.2}", ours / other),
            _ => "–".into(),
        };
        let mark = if small.is_some() { " ˢ" } else { "" };
        let widest = KINDS.iter().filter_map(|kind| results.get(row.name, *kind)).map(Cell::spread).fold(0.0, f64::max);
        writeln!(text, " {}{mark} | {} | {:.0} % |", ratio(beside), ratio(peer), widest * 100.0).expect("text");
    }
    text.push_str(
        "\nMedians over the rounds; the smallest of a row in bold. ˢ against Isthmus' own plain small row. \
         ᵇ loader and backend set the pace, not the gateway. ᵈ no window of a round was free of others' load.\n",
    );
    let linkerd: Vec<String> = LINKERD
        .iter()
        .filter_map(|(name, linkerd, haproxy)| {
            let here = results.figure(name, Kind::Haproxy).or_else(|| results.figure("h2-h2", Kind::Haproxy))?;
            let ours = results.figure(name, Kind::Isthmus)?;
            Some(format!(
                "| {name} | {} | {:.2} |",
                number(here * linkerd / haproxy),
                ours / (here * linkerd / haproxy)
            ))
        })
        .collect();
    if !linkerd.is_empty() {
        writeln!(
            text,
            "\nLinkerd's gateway, reckoned: HAProxy's figure here times the ratio of both in an earlier side-by-side run.\n\n\
             | row | Linkerd's gateway, about | Isthmus of it |\n|---|---:|---:|\n{}",
            linkerd.join("\n")
        )
        .expect("text");
    }
    text
}

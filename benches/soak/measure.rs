//! What is measured, the table of it, and whether it grows.

use std::time::Duration;

/// One look at a gateway.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Row {
    pub(crate) rss_mib: f64,
    pub(crate) fds: f64,
    pub(crate) threads: f64,
    pub(crate) tasks: f64,
    pub(crate) connections: f64,
    pub(crate) requests: f64,
    pub(crate) panics: f64,
    /// Processor seconds so far.
    pub(crate) cpu: f64,
}

impl Row {
    pub(crate) fn read(page: &str) -> Self {
        let sum = |name: &str| -> f64 {
            let of = |line: &&str| line.split(['{', ' ']).next() == Some(name);
            page.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Self {
            rss_mib: sum("process_resident_memory_bytes") / f64::from(1 << 20),
            fds: sum("process_open_fds"),
            threads: sum("process_threads"),
            tasks: sum("isthmus_process_tasks"),
            connections: sum("isthmus_accept_open_connections"),
            requests: sum("isthmus_relay_open_requests"),
            panics: sum("isthmus_process_panics_total"),
            cpu: sum("process_cpu_seconds_total"),
        }
    }

    /// The columns that must not grow: name, value, and what growth over the run is still noise, whatever the level.
    fn columns(&self) -> [(&'static str, f64, f64); 5] {
        [
            ("memory (MiB)", self.rss_mib, 6.0),
            ("descriptors", self.fds, 16.0),
            ("tasks", self.tasks, 48.0),
            ("connections", self.connections, 12.0),
            ("requests under way", self.requests, 12.0),
        ]
    }
}

/// How many lines of the table are printed.
const LINES: u32 = 30;

/// The share of the run that counts as warming up: pools, caches and the allocator's arenas fill.
const WARM_UP: f64 = 1.0 / 3.0;

/// The growth over the measured part of the run, as a share of the level, that is still noise.
const NOISE: f64 = 0.08;

pub(crate) struct Table {
    length: Duration,
    rows: Vec<(Duration, Row)>,
    printed: Duration,
}

impl Table {
    pub(crate) fn new(length: Duration) -> Self {
        println!("| at | RSS MiB | descriptors | threads | tasks | connections | requests | CPU s | done | failed |");
        println!("|---|---|---|---|---|---|---|---|---|---|");
        Self { length, rows: Vec::new(), printed: Duration::ZERO }
    }

    pub(crate) fn add(&mut self, at: Duration, row: Row, seen: &(u64, u64)) {
        self.rows.push((at, row));
        if at >= self.printed {
            self.printed = at + self.length / LINES;
            line(&format!("{:02}:{:02}", at.as_secs() / 60, at.as_secs() % 60), &row, seen);
        }
    }

    pub(crate) fn print_last(&self, row: &Row, seen: &(u64, u64)) {
        line("after", row, seen);
    }

    /// What grew once it was warm: the least-squares line over the rest of the run, and how far it climbs.
    pub(crate) fn slopes(&self) -> Vec<String> {
        let from = self.length.mul_f64(WARM_UP);
        let warm: Vec<_> = self.rows.iter().filter(|(at, _)| *at >= from).collect();
        let mut grew = Vec::new();
        if warm.len() < 8 {
            return vec![format!("only {} samples: too short a run to tell", warm.len())];
        }
        for column in 0..5 {
            let points: Vec<_> = warm.iter().map(|(at, row)| (at.as_secs_f64(), row.columns()[column].1)).collect();
            let (name, _, noise) = warm[0].1.columns()[column];
            let (slope, mean) = fit(&points);
            let climb = slope * (points[points.len() - 1].0 - points[0].0);
            println!("{name}: {mean:.1} on average, {climb:+.1} from the first third to the end");
            if climb > noise.max(mean * NOISE) {
                grew.push(format!("{name} grows: {climb:+.1} at a level of {mean:.1}"));
            }
        }
        let panics = self.rows.last().map_or(0.0, |(_, row)| row.panics);
        if panics > 0.0 {
            grew.push(format!("{panics} panics"));
        }
        grew
    }
}

fn line(at: &str, row: &Row, (fine, failed): &(u64, u64)) {
    let Row { rss_mib, fds, threads, tasks, connections, requests, cpu, .. } = row;
    println!(
        "| {at} | {rss_mib:.1} | {fds} | {threads} | {tasks} | {connections} | {requests} | {cpu:.1} | {fine} | {failed} |"
    );
}

/// Slope and mean.
fn fit(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.iter().fold(0.0, |count, _| count + 1.0);
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / count, y + point.1 / count));
    let (over, under) = points
        .iter()
        .fold((0.0, 0.0), |(over, under), point| (over + (point.0 - x) * (point.1 - y), under + (point.0 - x).powi(2)));
    (if under == 0.0 { 0.0 } else { over / under }, y)
}

/// What is still there when everybody has gone. The pool may keep its HTTP/2 connections, and the tasks that drive them.
pub(crate) fn left_over(before: &Row, after: &Row) -> Vec<String> {
    const POOLED: f64 = 24.0;
    let mut left = Vec::new();
    for (name, before, after, kept) in [
        ("connections", before.connections, after.connections, 0.0),
        ("requests", before.requests, after.requests, 0.0),
        ("descriptors", before.fds, after.fds, POOLED),
        ("tasks", before.tasks, after.tasks, 3.0 * POOLED),
        // Those that read files and names for the others come and go.
        ("threads", before.threads, after.threads, 8.0),
    ] {
        if after > before + kept {
            left.push(format!("{name}: {after} are left, {before} were there at first"));
        }
    }
    left
}

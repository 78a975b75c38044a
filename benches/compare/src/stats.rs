//! Counting: latencies, medians, and what processes cost.

use std::fs;

use anyhow::{Context, Result};

/// Latencies in buckets that are at most 1.6 % wide.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

const SUB: u32 = 6;

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; 64 << SUB], total: 0 }
    }
}

impl Histogram {
    /// Adds a latency in nanoseconds.
    pub(crate) fn add(&mut self, nanos: u64) {
        let nanos = nanos.max(1 << SUB);
        let shift = nanos.ilog2() - SUB;
        let bucket = (u64::from(shift) << SUB) + (nanos >> shift);
        if let Some(count) = usize::try_from(bucket).ok().and_then(|bucket| self.counts.get_mut(bucket)) {
            *count += 1;
            self.total += 1;
        }
    }

    /// The latency in microseconds that this share of all stays below.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                // Buckets below 2^7 are one apart; above, `shift` doublings hold 2^6 buckets each.
                let shift = (bucket >> SUB).saturating_sub(1);
                let base = bucket - (shift << SUB);
                return (((base + 1) << shift) as f64) / 1000.0;
            }
        }
        0.0
    }
}

/// What a run counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) failure: Option<String>,
    pub(crate) latency: Histogram,
    pub(crate) bytes_down: u64,
    pub(crate) bytes_up: u64,
    pub(crate) handshakes: u64,
    pub(crate) resumed: u64,
}

impl Tally {
    pub(crate) fn complete(&mut self, nanos: u64) {
        self.completed += 1;
        self.latency.add(nanos);
    }

    pub(crate) fn fail(&mut self, why: impl FnOnce() -> String) {
        self.failed += 1;
        self.failure.get_or_insert_with(why);
    }
}

/// The middle of some figures.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => figures[odd / 2],
        even => f64::midpoint(figures[even / 2 - 1], figures[even / 2]),
    }
}

/// How far the figures lie apart, as a share of their median.
pub(crate) fn spread(figures: &[f64]) -> f64 {
    let (low, high) =
        figures.iter().fold((f64::MAX, f64::MIN), |(low, high), figure| (low.min(*figure), high.max(*figure)));
    if figures.len() < 2 { 0.0 } else { (high - low) / median(figures) }
}

/// A process and its children, by number.
pub(crate) fn family(parent: u32) -> Vec<u32> {
    let mut family = vec![parent];
    let Ok(processes) = fs::read_dir("/proc") else { return family };
    for process in processes.flatten() {
        let Some(number) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(process.path().join("stat")) else { continue };
        let after = stat.rsplit(')').next().unwrap_or("");
        if after.split_whitespace().nth(1).and_then(|field| field.parse().ok()) == Some(parent) {
            family.push(number);
        }
    }
    family
}

/// Nanoseconds that processes ran, softirq on their time included, and that they were ready to run while their core ran others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Time {
    pub(crate) ran: u64,
    pub(crate) waited: u64,
}

/// Reads the time of all threads of these processes.
pub(crate) fn time(processes: &[u32]) -> Result<Time> {
    let mut sum = Time::default();
    for process in processes {
        let threads =
            fs::read_dir(format!("/proc/{process}/task")).with_context(|| format!("process {process} has ended"))?;
        for thread in threads.flatten() {
            let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let mut fields = text.split_whitespace().map(|field| field.parse::<u64>().unwrap_or(0));
            sum.ran += fields.next().unwrap_or(0);
            sum.waited += fields.next().unwrap_or(0);
        }
    }
    Ok(sum)
}

/// Resident memory of these processes, in bytes.
pub(crate) fn resident(processes: &[u32]) -> Result<u64> {
    let mut sum = 0;
    for process in processes {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
        sum += line.split_whitespace().next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0) * 1024;
    }
    Ok(sum)
}

/// Nanoseconds that the hypervisor took from a core.
pub(crate) fn stolen(core: usize) -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let name = format!("cpu{core} ");
    let line = stat.lines().find(|line| line.starts_with(&name)).with_context(|| format!("no core {core}"))?;
    Ok(line.split_whitespace().nth(8).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0) * 10_000_000)
}

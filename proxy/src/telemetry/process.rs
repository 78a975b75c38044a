//! The process itself: memory, processor time, open files, as the kernel tells.
//!
//! **In** `/proc/self`. **Out** families with the names that every Prometheus client uses, so that common dashboards
//! work. What cannot be read is left out. (proc(5).)

use std::fs;
use std::path::Path;

use super::encode::{Family, Values};

/// Clock ticks per second in `/proc/self/stat`: 100 in the interface of every Linux, whatever the kernel's own rate.
const TICKS_PER_SECOND: f64 = 100.0;

/// The families, read now.
pub(super) fn families() -> Vec<Family> {
    read(Path::new("/proc"))
}

fn read(proc: &Path) -> Vec<Family> {
    let text = |path: &str| fs::read_to_string(proc.join(path)).unwrap_or_default();
    let stat = text("self/stat");
    let status = text("self/status");
    let gauge = |name, help, value: Option<f64>| {
        value.map(|value| Family { name, help, values: Values::Gauges(vec![(vec![], value)]) })
    };
    let cpu = stat_field(&stat, 14).zip(stat_field(&stat, 15)).map(|(user, system)| Family {
        name: "process_cpu_seconds",
        help: "Processor time spent, user and system together.",
        values: Values::FloatCounters(vec![(vec![], (user + system) / TICKS_PER_SECOND)]),
    });
    let boot = word_after(&text("stat"), "btime");
    let started = stat_field(&stat, 22).zip(boot).map(|(ticks, boot)| boot + ticks / TICKS_PER_SECOND);
    let resident = word_after(&status, "VmRSS:").map(|kib| kib * 1024.0);
    let max_files = word_after(&text("self/limits"), "Max open files");
    [
        cpu,
        gauge("process_resident_memory_bytes", "Memory held in RAM.", resident),
        gauge("process_open_fds", "Open file descriptors.", count(&proc.join("self/fd"))),
        gauge("process_max_fds", "The limit on open file descriptors.", max_files),
        gauge("process_threads", "Threads.", word_after(&status, "Threads:")),
        gauge("process_start_time_seconds", "When the process started, in seconds since 1970.", started),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The field of `stat` with the number that proc(5) gives it. The second, the command's name, may hold anything, so
/// counting starts behind its closing parenthesis.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

fn word_after(text: &str, key: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

fn count(directory: &Path) -> Option<f64> {
    let entries = fs::read_dir(directory).ok()?.count();
    // Less the one that is open for counting.
    u32::try_from(entries.saturating_sub(1)).ok().map(f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_there() {
        let families = families();
        let value = |name: &str| {
            let family = families.iter().find(|family| family.name == name).expect(name);
            match &family.values {
                Values::Gauges(series) | Values::FloatCounters(series) => series[0].1,
                other => panic!("{other:?}"),
            }
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_start_time_seconds") > 1.6e9);
        assert!(value("process_cpu_seconds") >= 0.0);
        assert!(value("process_threads") >= 1.0);
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let stat = "7 (a) b) 9) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0";
        assert_eq!((stat_field(stat, 14), stat_field(stat, 15)), (Some(250.0), Some(50.0)));
        assert_eq!(stat_field("", 14), None);
    }

    #[test]
    fn nothing_readable_means_nothing_shown() {
        assert!(read(Path::new("/nowhere")).is_empty());
    }
}

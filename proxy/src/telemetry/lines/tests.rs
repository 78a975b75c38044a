//! Full queues, full disks, rotation.

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn writes_in_order_and_reopens_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    let lines = Lines::start("test", Destination::File(path.clone()), 100).expect("starts");
    lines.write(b"one\n".to_vec());
    lines.write(b"two\n".to_vec());
    assert!(lines.flush(PATIENCE));
    std::fs::rename(&path, dir.path().join("log.1")).expect("rotated");
    lines.reopen();
    lines.write(b"three\n".to_vec());
    assert!(lines.flush(PATIENCE));
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("readable");
    assert_eq!((read("log.1"), read("log")), ("one\ntwo\n".to_owned(), "three\n".to_owned()));
    assert_eq!(lines.counts(), Counts { written: 3, dropped: 0, failed: 0 });
}

#[test]
fn a_missing_directory_is_told_at_the_start() {
    assert!(Lines::start("test", Destination::File("/nowhere/at/all".into()), 1).is_err());
}

/// Takes some bytes, then fails, then takes again.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (taken, room) = &mut *self.0.lock();
        let len = bytes.len().min(*room);
        if len == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *room -= len;
        taken.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_ends_nothing() {
    let disk = Disk::default();
    disk.0.lock().1 = 6;
    let opened = disk.clone();
    let lines = Lines::start_with("test", 100, Box::new(move || Ok(Box::new(opened.clone())))).expect("starts");
    lines.write(b"one\n".to_vec());
    lines.write(b"two\n".to_vec());
    assert!(lines.flush(PATIENCE));
    assert_eq!(lines.counts(), Counts { written: 1, dropped: 0, failed: 1 });
    disk.0.lock().1 = 1000;
    let started = Instant::now();
    let mut lost = 0;
    while lines.counts().written == 1 && started.elapsed() < PATIENCE {
        lines.write(b"later\n".to_vec());
        assert!(lines.flush(PATIENCE));
        lost += 1;
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert_eq!(disk.0.lock().0, b"one\ntw\nlater\n", "the torn line is closed first");
    assert_eq!(lines.counts(), Counts { written: 2, dropped: 0, failed: lost });
}

/// Takes nothing until it is let go.
#[derive(Debug)]
struct Stuck(Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_does_not_read_costs_lines_not_time() {
    let (let_go, stuck) = mpsc::channel();
    let mut stuck = Some(Stuck(stuck));
    let open: Opener = Box::new(move || match stuck.take() {
        Some(stuck) => Ok(Box::new(stuck)),
        None => Err(io::ErrorKind::NotFound.into()),
    });
    let lines = Lines::start_with("test", 10, open).expect("starts");
    for _ in 0..100_000 {
        lines.write(b"line\n".to_vec());
    }
    assert!(lines.counts().dropped > 0);
    assert!(!lines.flush(Duration::from_millis(10)), "it is stuck");
    drop(let_go);
    assert!(lines.flush(PATIENCE));
    let counts = lines.counts();
    assert_eq!(counts.written + counts.dropped + counts.failed, 100_000);
}

#[test]
fn a_queue_is_bounded_in_bytes() {
    let (let_go, stuck) = mpsc::channel();
    let mut stuck = Some(Stuck(stuck));
    let open: Opener = Box::new(move || stuck.take().map_or(Err(io::ErrorKind::NotFound.into()), |s| Ok(Box::new(s))));
    let lines = Lines::start_with("test", 1_000_000, open).expect("starts");
    for _ in 0..20 {
        lines.write(vec![b'\n'; 1 << 20]);
    }
    assert!(lines.counts().dropped >= 10, "{:?}", lines.counts());
    drop(let_go);
    assert!(lines.flush(PATIENCE));
}

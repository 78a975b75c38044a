//! The loop: one thread that is loader and backend at once, so that no time goes into waking one for the other.
//!
//! **In** a [`Job`]: what to say to which gateway, how much of it at once or how often, for how long. **Out** an [`Outcome`]:
//! what came of it, and what the gateway's process paid.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::backend::{Answer, Server};
use crate::client::{Talk, Talker};
use crate::stats::{self, Tally, Time};
use crate::tls::Session;

/// How a connection is opened, and what it says.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) target: SocketAddr,
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
    pub(crate) talk: Rc<Talk>,
    /// Bytes that go before all others: a transport header.
    pub(crate) header: Vec<u8>,
}

/// What to do in one window.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) call: Call,
    pub(crate) connections: usize,
    /// Requests under way on each connection, where each answer is followed by the next request.
    pub(crate) streams: usize,
    /// Requests per second instead, whether answers come or not.
    pub(crate) rate: Option<f64>,
    /// Handshakes per second besides.
    pub(crate) storm: Option<(Call, f64)>,
    pub(crate) warm: Duration,
    pub(crate) window: Duration,
    /// The gateway's processes.
    pub(crate) watch: Vec<u32>,
}

/// What a window showed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    pub(crate) seconds: f64,
    /// Seconds of processor that the gateway used, and this process.
    pub(crate) gateway: f64,
    pub(crate) own: f64,
    /// The share of the window in which others or the hypervisor kept the gateway, or this process, from running.
    pub(crate) disturbed: f64,
}

#[derive(Debug)]
struct Conn {
    tcp: TcpStream,
    out: Vec<u8>,
    sent: usize,
    side: Side,
}

#[derive(Debug)]
enum Side {
    Server(Server),
    Client { session: Box<Session>, talker: Talker, call: usize, ready: bool, born: u64 },
}

/// What connections of one kind do.
#[derive(Debug)]
struct Crew {
    call: Call,
    /// Requests at once on each, begun when the handshake is done.
    streams: usize,
    /// Whether answers, or farewells, are followed by more.
    again: bool,
}

/// The loop and all of its connections.
#[derive(Debug)]
pub(crate) struct Engine {
    poll: Poll,
    listeners: Vec<(TcpListener, Rc<Answer>)>,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
    begin: Instant,
    crews: Vec<Crew>,
    /// The first crew of the window under way; those before it are held.
    base: usize,
    /// Connections of that crew whose handshake is done.
    ready: Vec<usize>,
    events: Events,
    opening: usize,
    pub(crate) tally: Tally,
    cores: (usize, usize),
}

const LISTENERS: usize = 1 << 24;

impl Engine {
    /// `cores`: the gateways' and this process's.
    pub(crate) fn new(cores: (usize, usize)) -> Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            listeners: Vec::new(),
            conns: Vec::new(),
            free: Vec::new(),
            buffer: vec![0; 512 * 1024],
            begin: Instant::now(),
            crews: Vec::new(),
            base: 0,
            events: Events::with_capacity(1024),
            ready: Vec::new(),
            opening: 0,
            tally: Tally::default(),
            cores,
        })
    }

    /// Listens, and answers so.
    pub(crate) fn serve(&mut self, answer: Answer) -> Result<SocketAddr> {
        let mut listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = listener.local_addr()?;
        self.poll.registry().register(&mut listener, Token(LISTENERS + self.listeners.len()), Interest::READABLE)?;
        self.listeners.push((listener, Rc::new(answer)));
        Ok(address)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Runs one window. Connections of clients are opened for it and dropped after it.
    pub(crate) fn run(&mut self, job: &Job) -> Result<Outcome> {
        self.base = self.crews.len();
        self.crews.push(Crew { call: job.call.clone(), streams: job.streams, again: job.rate.is_none() });
        if let Some((call, _)) = &job.storm {
            self.crews.push(Crew { call: call.clone(), streams: 0, again: false });
        }
        self.tally = Tally::default();
        let parting = matches!(*job.call.talk, Talk::Leave);
        for _ in 0..job.connections {
            self.open(self.base)?;
            while self.opening > 32 && !parting {
                self.turn(Some(Duration::from_millis(10)))?;
            }
        }
        let limit = self.now() + 20_000_000_000;
        while !parting && self.ready.len() < job.connections {
            self.turn(Some(Duration::from_millis(10)))?;
            if self.now() > limit || self.tally.failed > 0 {
                let why = self.tally.failure.clone().unwrap_or_default();
                let opened = self.ready.len();
                self.drop_from(self.base);
                bail!("{opened} of {} connections opened; {why}", job.connections);
            }
        }
        let mut pace = Pace::new(job, self.now());
        let outcome = self.timed(job, &mut pace);
        self.drop_from(self.base);
        outcome
    }

    fn timed(&mut self, job: &Job, pace: &mut Pace) -> Result<Outcome> {
        self.keep_on(job.warm, pace)?;
        self.tally = Tally::default();
        let before = Snapshot::take(self.cores, &job.watch)?;
        self.keep_on(job.window, pace)?;
        let after = Snapshot::take(self.cores, &job.watch)?;
        let mut outcome = after.since(&before);
        outcome.tally = std::mem::take(&mut self.tally);
        // What was due and has not been answered is late too, or a gateway that stands still would look quick.
        let now = self.now();
        pace.backlog.iter().for_each(|due| outcome.tally.latency.add(now.saturating_sub(*due)));
        Ok(outcome)
    }

    /// Goes on for so long.
    fn keep_on(&mut self, time: Duration, pace: &mut Pace) -> Result<()> {
        let end = self.now() + u64::try_from(time.as_nanos()).unwrap_or(0);
        loop {
            let now = self.now();
            if now >= end {
                return Ok(());
            }
            if pace.is_open() {
                self.launch_due(pace, now)?;
                // Sleeping would come back a millisecond late.
                self.turn(Some(Duration::ZERO))?;
            } else {
                self.turn(Some(Duration::from_nanos(end - now).max(Duration::from_millis(1))))?;
            }
        }
    }

    fn launch_due(&mut self, pace: &mut Pace, now: u64) -> Result<()> {
        while pace.next <= now {
            pace.backlog.push_back(pace.next);
            pace.next += pace.step;
        }
        while pace.storm_next <= now {
            pace.storm_next += pace.storm_step;
            self.open(self.base + 1)?;
        }
        while let Some(due) = pace.backlog.front().copied() {
            let Some(at) = self.idlest(&mut pace.turn) else { return Ok(()) };
            if let Some(Conn { side: Side::Client { talker, .. }, .. }) = self.conns[at].as_mut() {
                talker.launch(due);
            }
            pace.backlog.pop_front();
            self.flush(at);
        }
        Ok(())
    }

    /// The next connection in turn that has room for a request.
    fn idlest(&self, turn: &mut usize) -> Option<usize> {
        for _ in 0..self.ready.len() {
            *turn = (*turn + 1) % self.ready.len();
            let at = self.ready[*turn];
            if let Some(Conn { side: Side::Client { talker, .. }, .. }) = &self.conns[at]
                && talker.flying() < 64
            {
                return Some(at);
            }
        }
        None
    }

    /// Opens connections, lets each have one request answered, and keeps them.
    pub(crate) fn hold(&mut self, call: &Call, count: usize, limit: Duration) -> Result<()> {
        self.base = self.crews.len();
        self.crews.push(Crew { call: call.clone(), streams: 1, again: false });
        self.tally = Tally::default();
        let limit = self.now() + u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let mut opened = 0;
        while self.tally.completed < count as u64 {
            while opened < count && (opened as u64) < self.tally.completed + 32 {
                self.open(self.base)?;
                opened += 1;
            }
            self.turn(Some(Duration::from_millis(10)))?;
            if self.now() > limit || self.tally.failed > 0 {
                let why = self.tally.failure.clone().unwrap_or_else(|| "too slow".into());
                bail!("{} of {count} connections held: {why}", self.tally.completed);
            }
        }
        self.ready.clear();
        Ok(())
    }

    /// Opens one connection for [`exactly`](Self::exactly).
    pub(crate) fn meet(&mut self, call: &Call) -> Result<()> {
        self.base = self.crews.len();
        self.crews.push(Crew { call: call.clone(), streams: 0, again: false });
        self.tally = Tally::default();
        if matches!(*call.talk, Talk::Leave) {
            return Ok(());
        }
        self.open(self.base)?;
        self.until(|engine| !engine.ready.is_empty())
    }

    /// Has so many requests answered on it, `streams` at once, or so many handshakes made one after the other; returns how
    /// many it were.
    pub(crate) fn exactly(&mut self, streams: usize, count: u64) -> Result<u64> {
        self.tally = Tally::default();
        let Some(at) = self.ready.first().copied() else {
            for done in 0..count {
                self.open(self.base)?;
                self.until(|engine| engine.tally.handshakes > done)?;
            }
            return Ok(count);
        };
        let now = self.now();
        self.crews[self.base].again = true;
        if let Some(Conn { side: Side::Client { talker, .. }, .. }) = self.conns[at].as_mut() {
            (0..streams).for_each(|_| talker.launch(now));
        }
        self.flush(at);
        self.until(|engine| engine.tally.completed + streams as u64 > count)?;
        self.crews[self.base].again = false;
        self.until(|engine| {
            !matches!(&engine.conns[at], Some(Conn { side: Side::Client { talker, .. }, .. }) if talker.flying() > 0)
        })?;
        Ok(self.tally.completed)
    }

    fn until(&mut self, done: impl Fn(&Self) -> bool) -> Result<()> {
        let limit = self.now() + 60_000_000_000;
        while !done(self) {
            self.turn(Some(Duration::from_millis(10)))?;
            if self.tally.failed > 0 || self.now() > limit {
                bail!("{}", self.tally.failure.as_deref().unwrap_or("no answer for 60 s"));
            }
        }
        Ok(())
    }

    /// Answers what comes, for so long.
    pub(crate) fn rest(&mut self, time: Duration) -> Result<()> {
        self.keep_on(time, &mut Pace::none())
    }

    /// Ends all connections of clients.
    pub(crate) fn drop_clients(&mut self) {
        self.drop_from(0);
    }

    fn drop_from(&mut self, crew: usize) {
        for at in 0..self.conns.len() {
            if matches!(self.conns[at], Some(Conn { side: Side::Client { call, .. }, .. }) if call >= crew) {
                self.remove(at);
            }
        }
        self.crews.truncate(crew);
        self.ready.clear();
        self.opening = 0;
    }

    fn open(&mut self, crew: usize) -> Result<()> {
        let Call { target, config, name, talk, header } = self.crews[crew].call.clone();
        let tcp = TcpStream::connect(target).with_context(|| format!("connecting to {target}"))?;
        let mut out = Vec::new();
        let session = Box::new(Session::new(&config, &name, &mut out)?);
        let talker = Talker::new(talk, &header);
        let born = self.now();
        self.opening += 1;
        self.insert(tcp, out, Side::Client { session, talker, call: crew, ready: false, born })?;
        Ok(())
    }

    fn insert(&mut self, mut tcp: TcpStream, out: Vec<u8>, side: Side) -> Result<usize> {
        let at = self.free.pop().unwrap_or_else(|| {
            self.conns.push(None);
            self.conns.len() - 1
        });
        self.poll.registry().register(&mut tcp, Token(at), Interest::READABLE | Interest::WRITABLE)?;
        self.conns[at] = Some(Conn { tcp, out, sent: 0, side });
        Ok(at)
    }

    fn remove(&mut self, at: usize) {
        if self.conns[at].take().is_some() {
            self.free.push(at);
        }
    }

    /// Waits for events, and heeds them.
    fn turn(&mut self, timeout: Option<Duration>) -> Result<()> {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        match self.poll.poll(&mut events, timeout) {
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            other => other?,
        }
        for event in &events {
            let at = event.token().0;
            if at >= LISTENERS {
                self.accept(at - LISTENERS)?;
                continue;
            }
            if event.is_readable() || event.is_error() {
                self.readable(at, event.is_read_closed())?;
            }
            if event.is_writable() {
                self.writable(at)?;
            }
        }
        self.events = events;
        Ok(())
    }

    fn accept(&mut self, listener: usize) -> Result<()> {
        loop {
            let (tcp, answer) = match self.listeners[listener].0.accept() {
                Ok((tcp, _)) => (tcp, self.listeners[listener].1.clone()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            tcp.set_nodelay(true)?;
            let mut out = Vec::new();
            let server = Server::new(answer, &mut out);
            let at = self.insert(tcp, out, Side::Server(server))?;
            self.flush(at);
        }
    }

    fn writable(&mut self, at: usize) -> Result<()> {
        let Some(conn) = &mut self.conns[at] else { return Ok(()) };
        if let Side::Client { born, .. } = &mut conn.side
            && *born != 0
        {
            *born = 0;
            if let Ok(Some(error)) | Err(error) = conn.tcp.take_error() {
                self.lost(at, &format!("connecting: {error}"));
                return Ok(());
            }
            conn.tcp.set_nodelay(true)?;
        }
        self.flush(at);
        Ok(())
    }

    /// Reads all that is there. `closed`: the end is there too, behind what can be read.
    fn readable(&mut self, at: usize, closed: bool) -> Result<()> {
        loop {
            let now = self.now();
            let Some(conn) = &mut self.conns[at] else { return Ok(()) };
            let kept = match &mut conn.side {
                Side::Client { session, .. } => session.restore(&mut self.buffer),
                Side::Server(_) => 0,
            };
            let (read, end) = match conn.tcp.read(&mut self.buffer[kept..]) {
                Ok(0) => (0, Some(String::new())),
                Ok(read) => (read, None),
                Err(error) if error.kind() == ErrorKind::WouldBlock => (0, None),
                Err(error) => (0, Some(error.to_string())),
            };
            let drained = if closed { read == 0 } else { read < self.buffer.len() - kept };
            let bytes = &mut self.buffer[..kept + read];
            match &mut conn.side {
                Side::Server(server) => {
                    if read > 0 {
                        server.receive(bytes, &mut conn.out);
                    }
                }
                Side::Client { session, talker, call, ready, .. } => {
                    let crew = &self.crews[*call];
                    let tally = &mut self.tally;
                    let again = crew.again;
                    let result =
                        session.receive(bytes, &mut conn.out, &mut |plain| talker.receive(plain, now, again, tally));
                    if let Err(error) = result {
                        *ready = false;
                        self.lost(at, &error.to_string());
                        return Ok(());
                    }
                    if session.established && !*ready {
                        *ready = true;
                        self.opening = self.opening.saturating_sub(1);
                        tally.resumed += u64::from(session.resumed());
                        if matches!(*crew.call.talk, Talk::Leave) {
                            session.close(&mut conn.out)?;
                        } else {
                            if *call == self.base {
                                self.ready.push(at);
                            }
                            (0..crew.streams).for_each(|_| talker.launch(now));
                        }
                    }
                }
            }
            if let Some(why) = end {
                self.lost(at, &why);
                return Ok(());
            }
            self.flush(at);
            if drained {
                return Ok(());
            }
        }
    }

    /// A connection has ended: a farewell that was awaited, a gateway's own affair, or a failure.
    fn lost(&mut self, at: usize, why: &str) {
        let Some(conn) = &self.conns[at] else { return };
        if let Side::Client { call, ready, .. } = &conn.side {
            let (call, ready) = (*call, *ready);
            let crew = &self.crews[call];
            let again = crew.again;
            if matches!(*crew.call.talk, Talk::Leave) && ready {
                self.tally.handshakes += 1;
                self.remove(at);
                if again && let Err(error) = self.open(call) {
                    self.tally.fail(|| error.to_string());
                }
                return;
            }
            let why = if why.is_empty() { "closed by the gateway" } else { why };
            self.tally.fail(|| format!("connection lost: {why}"));
            self.ready.retain(|ready| *ready != at);
            self.opening = self.opening.saturating_sub(usize::from(!ready));
        }
        self.remove(at);
    }

    /// Encrypts what is to be said, and writes until the socket is full or nothing is left.
    fn flush(&mut self, at: usize) {
        if let Err(error) = self.try_flush(at) {
            self.lost(at, &error.to_string());
        }
    }

    fn try_flush(&mut self, at: usize) -> Result<()> {
        let Some(conn) = &mut self.conns[at] else { return Ok(()) };
        loop {
            // More is made only when all before it is written.
            if conn.sent == conn.out.len() {
                conn.out.clear();
                conn.sent = 0;
            }
            match &mut conn.side {
                Side::Server(server) if conn.out.is_empty() => server.pump(&mut conn.out),
                Side::Client { session, talker, ready: true, .. } if conn.sent == 0 => {
                    if talker.say.is_empty() {
                        talker.pump();
                    }
                    if !talker.say.is_empty() {
                        self.tally.bytes_up += talker.say.len() as u64;
                        session.send(&talker.say, &mut conn.out)?;
                        talker.say.clear();
                    }
                }
                _ => (),
            }
            if conn.out.is_empty() {
                return Ok(());
            }
            match conn.tcp.write(&conn.out[conn.sent..]) {
                Ok(written) => conn.sent += written,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            let parting = matches!(&conn.side, Side::Client { ready: true, call, .. }
                if matches!(*self.crews[*call].call.talk, Talk::Leave));
            if parting && conn.sent == conn.out.len() {
                let _ = conn.tcp.shutdown(Shutdown::Write);
            }
        }
    }
}

/// When the next request and the next handshake are due.
#[derive(Debug)]
struct Pace {
    next: u64,
    step: u64,
    storm_next: u64,
    storm_step: u64,
    backlog: VecDeque<u64>,
    turn: usize,
}

impl Pace {
    fn none() -> Self {
        Self { next: u64::MAX, step: 0, storm_next: u64::MAX, storm_step: 0, backlog: VecDeque::new(), turn: 0 }
    }

    fn new(job: &Job, now: u64) -> Self {
        let mut pace = Self::none();
        if let Some(rate) = job.rate {
            (pace.next, pace.step) = (now, (1e9 / rate) as u64);
        }
        if let Some((_, rate)) = &job.storm {
            (pace.storm_next, pace.storm_step) = (now, (1e9 / rate) as u64);
        }
        pace
    }

    fn is_open(&self) -> bool {
        self.next != u64::MAX || self.storm_next != u64::MAX
    }
}

#[derive(Debug)]
struct Snapshot {
    at: Instant,
    gateway: Time,
    own: Time,
    stolen: (u64, u64),
}

impl Snapshot {
    fn take(cores: (usize, usize), watch: &[u32]) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            gateway: stats::time(watch)?,
            own: stats::time(&[std::process::id()])?,
            stolen: (stats::stolen(cores.0)?, stats::stolen(cores.1)?),
        })
    }

    fn since(&self, before: &Self) -> Outcome {
        let span = (self.at - before.at).as_secs_f64();
        let seconds = |now: u64, then: u64| now.saturating_sub(then) as f64 / 1e9;
        let lost = |now: (Time, u64), then: (Time, u64)| {
            (seconds(now.0.waited, then.0.waited) + seconds(now.1, then.1)) / span
        };
        Outcome {
            tally: Tally::default(),
            seconds: span,
            gateway: seconds(self.gateway.ran, before.gateway.ran),
            own: seconds(self.own.ran, before.own.ran),
            disturbed: lost((self.gateway, self.stolen.0), (before.gateway, before.stolen.0))
                .max(lost((self.own, self.stolen.1), (before.own, before.stolen.1))),
        }
    }
}

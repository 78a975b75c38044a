//! Both sides of the gateway, in one child process: services behind it and clients in front of it.
//!
//! They speak frames and bytes, not HTTP: each sends what it has prepared and counts what comes back, so that they cost a
//! fraction of what they measure. One thread a connection, blocking.

use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::sync::{Arc, Barrier};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// What is asked, over what, and what answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Row {
    /// HTTP/2 on both sides, 128 bytes.
    H2,
    /// HTTP/2 to the gateway, HTTP/1.1 behind it.
    H2ToH1,
    /// HTTP/1.1 on both sides.
    H1,
    /// A unary gRPC call: 100 bytes each way, and trailers.
    Grpc,
}

impl Row {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::H2, Self::H2ToH1, Self::H1, Self::Grpc];

    /// Its name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::H2 => "h2",
            Self::H2ToH1 => "h2-h1",
            Self::H1 => "h1",
            Self::Grpc => "grpc",
        }
    }

    /// The service that the clients name; the service's table says what it speaks.
    pub const fn service(self) -> &'static str {
        match self {
            Self::H2ToH1 => "legacy.shop.svc.cluster.local",
            Self::H1 => "web.shop.svc.cluster.local",
            Self::H2 | Self::Grpc => "api.shop.svc.cluster.local",
        }
    }

    const fn connections(self) -> usize {
        match self {
            Self::H1 => 64,
            _ => 16,
        }
    }

    const fn answer_bytes(self) -> usize {
        match self {
            Self::Grpc => 100,
            _ => 128,
        }
    }
}

/// The environment variable that makes a bench's process the child.
pub const ROLE: &str = "ISTHMUS_BENCH_SIDES";

/// Runs the child: prints the services' addresses, reads where the gateway is, then `go N` for every batch of requests.
pub fn run(row: &str) {
    let row = Row::ALL.into_iter().find(|known| known.name() == row).unwrap();
    let addrs: Vec<String> = (0..3).map(|_| serve(row).to_string()).collect();
    println!("{}", addrs.join(" "));
    let mut lines = io::stdin().lock().lines().map(|line| line.unwrap());
    let (gateway, folder) = (lines.next().unwrap().parse().unwrap(), lines.next().unwrap());
    let config = client_config(&folder, if row == Row::H1 { b"http/1.1" } else { b"h2" });
    let start = Arc::new(Barrier::new(row.connections() + 1));
    let end = Arc::clone(&start);
    let tells: Vec<_> = (0..row.connections())
        .map(|_| {
            let (tell, told) = mpsc::channel();
            let (config, end) = (Arc::clone(&config), Arc::clone(&end));
            drop(std::thread::spawn(move || client(row, gateway, config, &told, &end)));
            tell
        })
        .collect();
    start.wait(); // all are connected
    println!("ready");
    for line in lines {
        let requests: usize = line.strip_prefix("go ").unwrap().parse().unwrap();
        for (at, tell) in tells.iter().enumerate() {
            tell.send(requests / tells.len() + usize::from(at < requests % tells.len())).unwrap();
        }
        end.wait();
        println!("done");
    }
}

fn client_config(folder: &str, alpn: &[u8]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(format!("{folder}/bundle.crt")).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let chain =
        CertificateDer::pem_file_iter(format!("{folder}/client.crt")).unwrap().map(|cert| cert.unwrap()).collect();
    let key = PrivateKeyDer::from_pem_file(format!("{folder}/client.key")).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

fn client(row: Row, gateway: SocketAddr, config: Arc<ClientConfig>, told: &mpsc::Receiver<usize>, end: &Barrier) {
    let socket = TcpStream::connect(gateway).unwrap();
    socket.set_nodelay(true).unwrap();
    let name = ServerName::try_from(super::world::GATEWAY).unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(config, name).unwrap(), socket);
    let mut batch: Box<dyn FnMut(usize)> = if row == Row::H1 {
        Box::new(move |requests| h1_client(row, &mut stream, requests))
    } else {
        let mut client = H2Client::new(row, stream);
        Box::new(move |requests| client.batch(requests))
    };
    batch(1);
    end.wait();
    for requests in told {
        batch(requests);
        end.wait();
    }
}

fn h1_client(row: Row, stream: &mut impl ReadWrite, requests: usize) {
    let request = format!("GET /item/1 HTTP/1.1\r\nhost: {}\r\nuser-agent: bench/1\r\n\r\n", row.service());
    let mut buffer = [0; 4096];
    for _ in 0..requests {
        stream.write_all(request.as_bytes()).unwrap();
        stream.flush().unwrap();
        let mut had = 0;
        loop {
            let read = stream.read(&mut buffer[had..]).unwrap();
            assert!(read > 0, "the gateway closed the connection");
            had += read;
            let Some(head) = buffer[..had].windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..had]));
            if had >= head + 4 + row.answer_bytes() {
                break;
            }
        }
    }
}

/// Requests under way at once on an HTTP/2 connection.
const STREAMS: usize = 16;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

trait ReadWrite: Read + Write {}

impl<S: Read + Write> ReadWrite for S {}

/// Frames out of a buffer, frames into another.
struct Frames<S> {
    stream: S,
    input: Vec<u8>,
    from: usize,
    to: usize,
    output: Vec<u8>,
    /// Bytes of DATA since the last WINDOW_UPDATE.
    taken: u32,
}

impl<S: ReadWrite> Frames<S> {
    fn new(stream: S) -> Self {
        Self { stream, input: vec![0; 1 << 18], from: 0, to: 0, output: Vec::with_capacity(1 << 16), taken: 0 }
    }

    fn put(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.output.extend(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
        self.output.extend([kind, flags]);
        self.output.extend(stream.to_be_bytes());
        self.output.extend(payload);
    }

    /// SETTINGS with the largest stream window, and the largest window for the connection.
    fn greet(&mut self) {
        self.put(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0, 0x10, 0]);
        self.put(WINDOW_UPDATE, 0, 0, &(0x7fff_ffff_u32 - 65_535).to_be_bytes());
    }

    fn flush(&mut self) {
        if !self.output.is_empty() {
            self.stream.write_all(&self.output).unwrap();
            self.stream.flush().unwrap();
            self.output.clear();
        }
    }

    /// The next frame's type, flags and stream; what is pending is written before waiting. None at the end.
    fn next(&mut self) -> Option<(u8, u8, u32)> {
        loop {
            let had = &self.input[self.from..self.to];
            if let Some(head) = had.get(..9) {
                let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                if had.len() >= 9 + length {
                    let (kind, flags) = (head[3], head[4]);
                    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                    let payload = self.from + 9..self.from + 9 + length;
                    self.from += 9 + length;
                    match kind {
                        SETTINGS if flags & ACK == 0 => self.put(SETTINGS, ACK, 0, &[]),
                        PING if flags & ACK == 0 => {
                            let payload = self.input[payload].to_vec();
                            self.put(PING, ACK, 0, &payload);
                        }
                        GOAWAY => return None,
                        DATA => {
                            self.taken += u32::try_from(length).unwrap();
                            if self.taken > 1 << 30 {
                                let taken = std::mem::take(&mut self.taken);
                                self.put(WINDOW_UPDATE, 0, 0, &taken.to_be_bytes());
                            }
                            return Some((kind, flags, stream));
                        }
                        HEADERS | RST_STREAM => return Some((kind, flags, stream)),
                        _ => {}
                    }
                    continue;
                }
            }
            self.flush();
            self.input.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
            match self.stream.read(&mut self.input[self.to..]) {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.to += read,
            }
        }
    }
}

/// A literal field with incremental indexing: `index` of the static table names it, or 0 and `name` does.
fn field(block: &mut Vec<u8>, index: u8, name: &str, value: &str) {
    block.push(0x40 | index);
    for text in [name, value].into_iter().skip(usize::from(index != 0)) {
        block.push(u8::try_from(text.len()).unwrap());
        block.extend(text.as_bytes());
    }
}

struct H2Client<S> {
    frames: Frames<S>,
    row: Row,
    next: u32,
}

impl<S: ReadWrite> H2Client<S> {
    fn new(row: Row, stream: S) -> Self {
        let mut frames = Frames::new(stream);
        frames.output.extend(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        frames.greet();
        Self { frames, row, next: 1 }
    }

    fn ask(&mut self) {
        let (stream, grpc) = (self.next, self.row == Row::Grpc);
        self.next += 2;
        let mut block = vec![if grpc { 0x83 } else { 0x82 }, 0x86]; // POST or GET, http
        if stream == 1 {
            field(&mut block, 1, "", self.row.service());
            field(&mut block, 4, "", if grpc { "/shop.Cart/Add" } else { "/item/1" });
            field(&mut block, 58, "", "bench/1");
            if grpc {
                field(&mut block, 31, "", "application/grpc");
                field(&mut block, 0, "te", "trailers");
            }
        } else {
            // As they stand in the dynamic table, where the last one is the first.
            block.extend((62..if grpc { 67 } else { 65 }).rev().map(|index| index | 0x80));
        }
        self.frames.put(HEADERS, END_HEADERS | if grpc { 0 } else { END_STREAM }, stream, &block);
        if grpc {
            self.frames.put(DATA, END_STREAM, stream, &[0; 100]);
        }
    }

    fn batch(&mut self, requests: usize) {
        let (mut asked, mut answered) = (0, 0);
        while answered < requests {
            while asked < requests && asked - answered < STREAMS {
                self.ask();
                asked += 1;
            }
            let (kind, flags, _) = self.frames.next().expect("the gateway closed the connection");
            assert!(kind != RST_STREAM, "the gateway reset a stream");
            answered += usize::from(flags & END_STREAM != 0);
        }
        self.frames.flush();
    }
}

/// Starts a service on a port of the kernel's choice.
fn serve(row: Row) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    drop(std::thread::spawn(move || {
        for socket in listener.incoming() {
            let socket = socket.unwrap();
            socket.set_nodelay(true).unwrap();
            drop(std::thread::spawn(move || match row {
                Row::H1 | Row::H2ToH1 => h1_service(row, socket),
                Row::H2 | Row::Grpc => h2_service(row, socket),
            }));
        }
    }));
    addr
}

fn h1_service(row: Row, mut socket: TcpStream) {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ndate: Thu, 20 Nov 2025 16:00:00 GMT\r\ncontent-length: {}\r\n\r\n",
        row.answer_bytes()
    )
    .into_bytes();
    answer.resize(answer.len() + row.answer_bytes(), b'x');
    let mut buffer = [0; 4096];
    let mut had = 0;
    loop {
        match socket.read(&mut buffer[had..]) {
            Ok(0) | Err(_) => return,
            Ok(read) => had += read,
        }
        if buffer[..had].ends_with(b"\r\n\r\n") {
            had = 0;
            if socket.write_all(&answer).is_err() {
                return;
            }
        }
    }
}

fn h2_service(row: Row, mut socket: TcpStream) {
    let mut preface = [0; 24];
    if socket.read_exact(&mut preface).is_err() {
        return;
    }
    let mut frames = Frames::new(socket);
    frames.greet();
    let body = vec![b'x'; row.answer_bytes()];
    let mut first = true;
    while let Some((_, flags, stream)) = frames.next() {
        if flags & END_STREAM == 0 {
            continue;
        }
        let mut block = vec![0x88]; // 200
        if first {
            field(&mut block, 31, "", if row == Row::Grpc { "application/grpc" } else { "text/plain" });
            field(&mut block, 33, "", "Thu, 20 Nov 2025 16:00:00 GMT");
            if row != Row::Grpc {
                field(&mut block, 28, "", &row.answer_bytes().to_string());
            }
        } else {
            block.extend(if row == Row::Grpc { [0xbf, 0xc0].as_slice() } else { &[0xbe, 0xbf, 0xc0] });
        }
        frames.put(HEADERS, END_HEADERS, stream, &block);
        let mut chunks = body.chunks(16_384).peekable();
        while let Some(chunk) = chunks.next() {
            let last = chunks.peek().is_none() && row != Row::Grpc;
            frames.put(DATA, if last { END_STREAM } else { 0 }, stream, chunk);
        }
        if row == Row::Grpc {
            let mut trailers = Vec::new();
            if first {
                field(&mut trailers, 0, "grpc-status", "0")
            } else {
                trailers.push(0xbe)
            }
            frames.put(HEADERS, END_HEADERS | END_STREAM, stream, &trailers);
        }
        first = false;
    }
}

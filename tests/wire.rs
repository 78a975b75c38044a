//! Bytes by hand: HTTP/1 as it stands on the wire, and ClientHellos that no library would send.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::soon;

/// An HTTP/1 client that hides nothing.
#[derive(Debug)]
pub struct Http1<S> {
    /// What is below.
    pub stream: S,
    read: Vec<u8>,
}

/// A response as it stood on the wire.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status line.
    pub line: String,
    /// The fields, names in lower case, in their order.
    pub fields: Vec<(String, String)>,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// What stood after the last chunk.
    pub trailers: Vec<(String, String)>,
}

impl Response {
    /// The status.
    pub fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    /// A field's value; empty where absent.
    pub fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value)
    }

    /// Whether there is such a field.
    pub fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(field, _)| field == name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Http1<S> {
    /// On any stream.
    pub fn new(stream: S) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
        soon(self.stream.flush()).await.unwrap();
    }

    /// Sends a request and reads its response. The method decides whether a body follows.
    pub async fn ask(&mut self, request: &str) -> Response {
        self.send(request).await;
        let head_only = request.starts_with("HEAD ");
        self.response(head_only).await
    }

    /// GET of a path from a service.
    pub async fn get(&mut self, host: &str, path: &str) -> Response {
        let host = crate::world::service(host);
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await
    }

    /// The next head.
    pub async fn head(&mut self) -> Response {
        let head = self.through(b"\r\n\r\n").await;
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        Response { line, fields: lines.map(field).collect(), body: Vec::new(), trailers: Vec::new() }
    }

    /// The next response, whole.
    pub async fn response(&mut self, head_only: bool) -> Response {
        let mut response = self.head().await;
        let status = response.status();
        if head_only || status < 200 || status == 204 || status == 304 {
            return response;
        }
        if response.field("transfer-encoding") == "chunked" {
            loop {
                let size = self.through(b"\r\n").await;
                let size = std::str::from_utf8(&size).unwrap().trim().to_owned();
                let size = usize::from_str_radix(&size, 16).unwrap();
                if size == 0 {
                    break;
                }
                let mut chunk = self.exactly(size + 2).await;
                chunk.truncate(size);
                response.body.extend(chunk);
            }
            loop {
                let line = self.through(b"\r\n").await;
                if line == b"\r\n" {
                    break;
                }
                response.trailers.push(field(std::str::from_utf8(&line).unwrap().trim_end()));
            }
        } else if let Ok(length) = response.field("content-length").parse() {
            response.body = self.exactly(length).await;
        } else {
            response.body = self.rest().await;
        }
        response
    }

    /// So many bytes.
    pub async fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        while self.read.len() < bytes {
            assert!(self.more().await, "the stream ended after {:?}", String::from_utf8_lossy(&self.read));
        }
        let rest = self.read.split_off(bytes);
        std::mem::replace(&mut self.read, rest)
    }

    /// Everything up to the end of the stream, however it ends.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.read)
    }

    async fn through(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|window| window == end) {
                let rest = self.read.split_off(at + end.len());
                return std::mem::replace(&mut self.read, rest);
            }
            assert!(self.more().await, "the stream ended after {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    async fn more(&mut self) -> bool {
        soon(self.stream.read_buf(&mut self.read)).await.is_ok_and(|bytes| bytes > 0)
    }
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    (name.to_ascii_lowercase(), value.trim().to_owned())
}

/// A ClientHello of the days before TLS 1.3: no `supported_versions`, AES-GCM with ECDHE.
pub fn tls12_hello(server_name: &str) -> Vec<u8> {
    let name = server_name.as_bytes();
    let mut extensions = Vec::new();
    let mut list = vec![0];
    list.extend(length16(name.len()));
    list.extend(name);
    extension(&mut extensions, 0, &prefixed(&list)); // server_name
    extension(&mut extensions, 10, &prefixed(&[0, 0x17, 0, 0x1d])); // supported_groups
    extension(&mut extensions, 11, &[1, 0]); // ec_point_formats
    extension(&mut extensions, 13, &prefixed(&[4, 3, 8, 4, 4, 1])); // signature_algorithms
    let mut body = vec![3, 3];
    body.extend([7; 32]); // random
    body.push(0); // session id
    body.extend(prefixed(&[0xc0, 0x2b, 0xc0, 0x2f])); // ECDHE with AES-128-GCM
    body.extend([1, 0]); // no compression
    body.extend(prefixed(&extensions));
    let mut message = vec![1, 0];
    message.extend(length16(body.len()));
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(length16(message.len()));
    record.extend(message);
    record
}

fn extension(out: &mut Vec<u8>, kind: u16, body: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend(prefixed(body));
}

fn prefixed(body: &[u8]) -> Vec<u8> {
    let mut out = length16(body.len()).to_vec();
    out.extend(body);
    out
}

fn length16(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap().to_be_bytes()
}

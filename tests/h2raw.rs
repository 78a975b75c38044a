//! HTTP/2 frame by frame, for what a library hides: when SETTINGS come, and how a GOAWAY comes twice. (RFC 9113 §4.)

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::soon;

/// SETTINGS.
pub const SETTINGS: u8 = 4;
/// PING.
pub const PING: u8 = 6;
/// GOAWAY.
pub const GOAWAY: u8 = 7;
/// HEADERS.
pub const HEADERS: u8 = 1;
/// DATA.
pub const DATA: u8 = 0;
/// RST_STREAM.
pub const RST_STREAM: u8 = 3;

/// A frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// A connection of frames.
#[derive(Debug)]
pub struct Frames<S>(pub S);

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    /// The client's preface and empty SETTINGS.
    pub async fn preface(&mut self) {
        soon(self.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")).await.unwrap();
        self.send(SETTINGS, 0, 0, &[]).await;
    }

    /// Sends a frame.
    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        soon(self.0.write_all(&bytes)).await.unwrap();
        soon(self.0.flush()).await.unwrap();
    }

    /// A request without body.
    pub async fn get(&mut self, stream: u32, authority: &str, path: &str) {
        let mut block = vec![0x82, 0x86]; // :method GET, :scheme http
        for (index, value) in [(4, path), (1, authority)] {
            block.push(index); // literal without indexing, name from the static table
            block.push(u8::try_from(value.len()).unwrap());
            block.extend(value.as_bytes());
        }
        self.send(HEADERS, 0x5, stream, &block).await; // END_HEADERS, END_STREAM
    }

    /// The next frame; none at the end of the stream.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        soon(self.0.read_exact(&mut head)).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        soon(self.0.read_exact(&mut payload)).await.ok()?;
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame of a type. SETTINGS and PINGs that come before it are acknowledged.
    pub async fn find(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection ended");
            if frame.kind == kind {
                return frame;
            }
            self.acknowledge(&frame).await;
        }
    }

    /// Acknowledges SETTINGS and PINGs.
    pub async fn acknowledge(&mut self, frame: &Frame) {
        match frame.kind {
            SETTINGS if frame.flags & 1 == 0 => self.send(SETTINGS, 1, 0, &[]).await,
            PING if frame.flags & 1 == 0 => self.send(PING, 1, 0, &frame.payload).await,
            _ => {}
        }
    }
}

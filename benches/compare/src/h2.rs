//! HTTP/2 frames, written and read by hand: what a load generator needs and no more.
//!
//! **In** bytes as they arrive, in any pieces. **Out** frames, with the payload of all but DATA; header blocks that are built
//! once. Nothing here decodes HPACK: a response is right when its block begins with the static entry `:status: 200`.

use std::collections::VecDeque;

/// The frame types that are looked at (RFC 9113 §6).
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
}

/// END_STREAM of DATA and HEADERS, and ACK of SETTINGS and PING: the same bit.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The largest payload that every peer takes.
pub(crate) const MAX_FRAME: usize = 16_384;

/// What a client says first.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The window this side grants to each stream: more than the largest body, so that only the gateway's own windows count.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// When the connection's window is filled up again.
pub(crate) const REFILL: u32 = 1 << 30;

/// Appends a frame's head.
pub(crate) fn head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let length = u32::try_from(length).expect("a frame is shorter than 16 MiB").to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// Appends a whole HEADERS frame.
pub(crate) fn headers(out: &mut Vec<u8>, block: &[u8], end: bool, stream: u32) {
    head(out, block.len(), kind::HEADERS, END_HEADERS | if end { END_STREAM } else { 0 }, stream);
    out.extend_from_slice(block);
}

/// Appends this side's first SETTINGS and opens the connection's window.
pub(crate) fn opening(out: &mut Vec<u8>, client: bool) {
    let mut settings = Vec::new();
    let mut set = |id: u16, value: u32| {
        settings.extend_from_slice(&id.to_be_bytes());
        settings.extend_from_slice(&value.to_be_bytes());
    };
    if client {
        set(2, 0);
    } else {
        set(3, 1024);
    }
    set(4, STREAM_WINDOW);
    head(out, settings.len(), kind::SETTINGS, 0, 0);
    out.extend_from_slice(&settings);
    window(out, 0, CONNECTION_WINDOW - 65_535);
}

/// Appends a WINDOW_UPDATE.
pub(crate) fn window(out: &mut Vec<u8>, stream: u32, by: u32) {
    head(out, 4, kind::WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&by.to_be_bytes());
}

/// A header block in its forms: the first on a connection puts its fields into the peer's table, all later ones name them by
/// their number there, as real clients and servers do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Block {
    pub(crate) first: Vec<u8>,
    pub(crate) later: Vec<u8>,
    /// For a peer that keeps no table.
    literal: Vec<u8>,
}

/// A block and whether its first form has been sent on this connection.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    block: Block,
    sent: bool,
    literal: bool,
}

impl Sent {
    pub(crate) fn new(block: Block) -> Self {
        Self { block, sent: false, literal: false }
    }

    /// Heeds the size of the table that the peer allows.
    pub(crate) fn heed(&mut self, settings: &Frame<'_>) {
        self.literal |= settings.setting(1).is_some_and(|size| size < 4096);
    }

    /// The form that is due.
    pub(crate) fn next(&mut self) -> &[u8] {
        if self.literal {
            return &self.block.literal;
        }
        if self.sent {
            return &self.block.later;
        }
        self.sent = true;
        &self.block.first
    }
}

/// One field of a block.
pub(crate) enum Field {
    /// An entry of the static table, whole.
    Static(u8),
    /// The name of a static entry, and a value.
    Named(u8, String),
    /// A name and a value.
    New(&'static str, String),
}

fn text(out: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("a short field");
    out.push(length);
    out.extend_from_slice(text.as_bytes());
}

impl Block {
    /// Builds both forms. `earlier` is how many fields other blocks of the same connection have put into the table *after*
    /// this one: they move this one's numbers up.
    pub(crate) fn new(fields: &[Field], after: u8) -> Self {
        let mut block = Self::default();
        let added = fields.iter().filter(|field| !matches!(field, Field::Static(_))).count();
        let mut number = 61 + u8::try_from(added).expect("few fields") + after;
        for field in fields {
            match field {
                Field::Static(entry) => {
                    block.first.push(0x80 | entry);
                    block.later.push(0x80 | entry);
                    block.literal.push(0x80 | entry);
                    continue;
                }
                Field::Named(entry, value) => {
                    block.first.push(0x40 | entry);
                    text(&mut block.first, value);
                    // Four bits hold numbers below 15; the rest goes into a second byte.
                    if *entry < 15 {
                        block.literal.push(*entry);
                    } else {
                        block.literal.extend_from_slice(&[15, entry - 15]);
                    }
                    text(&mut block.literal, value);
                }
                Field::New(name, value) => {
                    block.first.push(0x40);
                    text(&mut block.first, name);
                    text(&mut block.first, value);
                    block.literal.push(0);
                    text(&mut block.literal, name);
                    text(&mut block.literal, value);
                }
            }
            block.later.push(0x80 | number);
            number -= 1;
        }
        block
    }
}

/// A frame as it arrived. Of DATA only the length is told, when all of it is here.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) length: usize,
    pub(crate) payload: &'a [u8],
}

impl Frame<'_> {
    pub(crate) fn ends_stream(&self) -> bool {
        self.kind <= kind::HEADERS && self.flags & END_STREAM != 0
    }

    /// The value of a setting, where this is a SETTINGS frame that holds it.
    pub(crate) fn setting(&self, wanted: u16) -> Option<u32> {
        self.payload
            .chunks_exact(6)
            .find(|entry| entry[..2] == wanted.to_be_bytes())
            .map(|entry| u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]))
    }

    /// A WINDOW_UPDATE's number.
    pub(crate) fn increment(&self) -> i64 {
        self.payload.first_chunk::<4>().map_or(0, |bytes| i64::from(u32::from_be_bytes(*bytes) & 0x7fff_ffff))
    }
}

/// Cuts what arrives into frames.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    head: Vec<u8>,
    body: Vec<u8>,
    /// Bytes of the payload that are still to come; meaningful while the head is complete.
    left: usize,
}

impl Frames {
    /// Takes bytes, and hands on each frame that they complete.
    pub(crate) fn feed(&mut self, mut data: &[u8], mut each: impl FnMut(Frame<'_>)) {
        loop {
            if self.head.len() < 9 {
                // Most frames arrive whole: then nothing is copied.
                if self.head.is_empty() && data.len() >= 9 {
                    let length = length(data);
                    if data.len() >= 9 + length {
                        each(frame(&data[..9], length, &data[9..9 + length]));
                        data = &data[9 + length..];
                        continue;
                    }
                }
                let take = data.len().min(9 - self.head.len());
                self.head.extend_from_slice(&data[..take]);
                data = &data[take..];
                if self.head.len() < 9 {
                    return;
                }
                self.left = length(&self.head);
            }
            let take = data.len().min(self.left);
            if self.head[3] != kind::DATA {
                self.body.extend_from_slice(&data[..take]);
            }
            self.left -= take;
            data = &data[take..];
            if self.left > 0 {
                return;
            }
            each(frame(&self.head, length(&self.head), &self.body));
            self.head.clear();
            self.body.clear();
        }
    }
}

fn length(head: &[u8]) -> usize {
    usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])
}

fn frame<'a>(head: &[u8], length: usize, payload: &'a [u8]) -> Frame<'a> {
    let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
    Frame { kind: head[3], flags: head[4], stream, length, payload }
}

/// Bodies that are being sent under the peer's windows.
#[derive(Debug)]
pub(crate) struct Sending {
    /// What the peer lets this connection send.
    connection: i64,
    /// What it lets a new stream send.
    initial: i64,
    bodies: VecDeque<Body>,
    filler: Vec<u8>,
}

#[derive(Debug)]
struct Body {
    stream: u32,
    left: usize,
    window: i64,
}

impl Default for Sending {
    fn default() -> Self {
        Self { connection: 65_535, initial: 65_535, bodies: VecDeque::new(), filler: Vec::new() }
    }
}

impl Sending {
    pub(crate) fn start(&mut self, stream: u32, length: usize) {
        self.bodies.push_back(Body { stream, left: length, window: self.initial });
    }

    /// Takes the peer's SETTINGS and WINDOW_UPDATEs.
    pub(crate) fn heed(&mut self, frame: &Frame<'_>) {
        match frame.kind {
            kind::SETTINGS if frame.flags & ACK == 0 => {
                if let Some(initial) = frame.setting(4) {
                    let by = i64::from(initial) - self.initial;
                    self.initial = i64::from(initial);
                    self.bodies.iter_mut().for_each(|body| body.window += by);
                }
            }
            kind::WINDOW_UPDATE if frame.stream == 0 => self.connection += frame.increment(),
            kind::WINDOW_UPDATE => {
                if let Some(body) = self.bodies.iter_mut().find(|body| body.stream == frame.stream) {
                    body.window += frame.increment();
                }
            }
            _ => (),
        }
    }

    /// Appends DATA frames as far as windows allow, and until `out` holds `limit` bytes. A stream takes turns with the others.
    /// After the last byte of a body come `trailers`, where there are any.
    pub(crate) fn pump(&mut self, out: &mut Vec<u8>, limit: usize, mut trailers: Option<&mut Sent>) {
        if self.filler.is_empty() && !self.bodies.is_empty() {
            self.filler = vec![b'x'; MAX_FRAME];
        }
        let mut stuck = 0;
        while stuck < self.bodies.len() && out.len() < limit && self.connection > 0 {
            let Some(mut body) = self.bodies.pop_front() else { return };
            let allowed = usize::try_from(self.connection.min(body.window).max(0)).unwrap_or(0);
            let take = body.left.min(MAX_FRAME).min(allowed);
            // Small pieces of a window are left to grow, or each frame would carry less than the last.
            if take == 0 || (take < body.left && take < MAX_FRAME / 4) {
                self.bodies.push_back(body);
                stuck += 1;
                continue;
            }
            stuck = 0;
            body.left -= take;
            let taken = i64::try_from(take).unwrap_or(0);
            body.window -= taken;
            self.connection -= taken;
            let last = body.left == 0;
            head(out, take, kind::DATA, if last && trailers.is_none() { END_STREAM } else { 0 }, body.stream);
            out.extend_from_slice(&self.filler[..take]);
            if !last {
                self.bodies.push_back(body);
            } else if let Some(trailers) = &mut trailers {
                headers(out, trailers.next(), true, body.stream);
            }
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.bodies.is_empty()
    }
}

//! What stands behind the gateways: answers that were written before they were asked for.
//!
//! Each kind of answer has ports of its own, so that nothing has to be understood of a request but where it ends.

use std::rc::Rc;

use crate::h2::{self, Block, Field, Frame, Frames, Sending, Sent, kind};

/// The bytes that wait for the socket before more of a long body is made.
pub(crate) const AHEAD: usize = 128 * 1024;

/// What a port answers.
#[derive(Debug)]
pub(crate) enum Answer {
    /// HTTP/2 without TLS.
    H2 { head: Block, body: usize, trailers: Option<Block> },
    /// HTTP/1.1.
    H1 { head: Vec<u8>, body: Vec<u8> },
    /// What came.
    Echo,
    /// Bytes without end, from the first byte on that comes.
    Flood,
    /// Nothing.
    Swallow,
}

impl Answer {
    /// A plain answer of `body` bytes over HTTP/2.
    pub(crate) fn h2(body: usize) -> Self {
        let fields = [
            Field::Static(8),
            Field::Named(31, "application/octet-stream".into()),
            Field::Named(28, body.to_string()),
            Field::New("x-answer", "compare".into()),
        ];
        Self::H2 { head: Block::new(&fields, 0), body, trailers: None }
    }

    /// A gRPC answer with one message and trailers.
    pub(crate) fn grpc_h2(body: usize) -> Self {
        let head = [Field::Static(8), Field::Named(31, "application/grpc".into())];
        let trailers = [Field::New("grpc-status", "0".into())];
        Self::H2 { head: Block::new(&head, 1), body, trailers: Some(Block::new(&trailers, 0)) }
    }

    /// A plain answer over HTTP/1.1.
    pub(crate) fn h1(body: usize) -> Self {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {body}\r\nx-answer: compare\r\n\r\n"
        );
        Self::H1 { head: head.into_bytes(), body: vec![b'x'; body] }
    }

    /// A gRPC answer over HTTP/1.1: chunks and trailers.
    pub(crate) fn grpc_h1(body: usize) -> Self {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntrailer: grpc-status\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        let body = format!("{body:x}\r\n{}\r\n0\r\ngrpc-status: 0\r\n\r\n", "x".repeat(body));
        Self::H1 { head: head.into(), body: body.into_bytes() }
    }
}

/// One connection of a gateway.
#[derive(Debug)]
pub(crate) struct Server {
    answer: Rc<Answer>,
    state: State,
}

#[derive(Debug)]
enum State {
    H2(Box<H2>),
    H1(H1),
    Bytes { asked: bool },
}

#[derive(Debug)]
struct H2 {
    /// How much of the client's preface has come.
    preface: usize,
    frames: Frames,
    head: Sent,
    trailers: Option<Sent>,
    sending: Sending,
    received: u32,
}

#[derive(Debug, Default)]
struct H1 {
    /// A head, or chunks, whose end is not here yet.
    partial: Vec<u8>,
    body: Body,
    /// How much of the answers' bodies is still to be sent.
    left: usize,
}

#[derive(Debug, Default)]
enum Body {
    #[default]
    None,
    Counted(usize),
    Chunked,
}

impl Server {
    pub(crate) fn new(answer: Rc<Answer>, out: &mut Vec<u8>) -> Self {
        let state = match &*answer {
            Answer::H2 { head, trailers, .. } => {
                h2::opening(out, false);
                State::H2(Box::new(H2 {
                    preface: 0,
                    frames: Frames::default(),
                    head: Sent::new(head.clone()),
                    trailers: trailers.clone().map(Sent::new),
                    sending: Sending::default(),
                    received: 0,
                }))
            }
            Answer::H1 { .. } => State::H1(H1::default()),
            _ => State::Bytes { asked: false },
        };
        Self { answer, state }
    }

    /// Takes what came, and appends what is to be said to it.
    pub(crate) fn receive(&mut self, data: &[u8], out: &mut Vec<u8>) {
        match (&mut self.state, &*self.answer) {
            (State::H2(state), Answer::H2 { body, .. }) => state.receive(data, *body, out),
            (State::H1(state), Answer::H1 { head, body }) => state.receive(data, head, body, out),
            (State::Bytes { .. }, Answer::Echo) => out.extend_from_slice(data),
            (State::Bytes { asked }, _) => *asked = true,
            _ => (),
        }
        self.pump(out);
    }

    /// Appends more of long bodies.
    pub(crate) fn pump(&mut self, out: &mut Vec<u8>) {
        match (&mut self.state, &*self.answer) {
            (State::H2(state), _) if !state.sending.is_idle() => {
                state.sending.pump(out, AHEAD, state.trailers.as_mut());
            }
            (State::H1(state), Answer::H1 { body, .. }) if state.left > 0 && out.len() < AHEAD => {
                let at = body.len() - state.left;
                let take = state.left.min(AHEAD);
                out.extend_from_slice(&body[at..at + take]);
                state.left -= take;
            }
            (State::Bytes { asked: true }, Answer::Flood) if out.len() < AHEAD => out.resize(AHEAD, b'x'),
            _ => (),
        }
    }
}

impl H2 {
    fn receive(&mut self, mut data: &[u8], body: usize, out: &mut Vec<u8>) {
        if self.preface < h2::PREFACE.len() {
            let take = data.len().min(h2::PREFACE.len() - self.preface);
            self.preface += take;
            data = &data[take..];
        }
        let Self { frames, head, trailers, sending, received, .. } = self;
        frames.feed(data, |frame: Frame<'_>| {
            match frame.kind {
                kind::SETTINGS if frame.flags & h2::ACK == 0 => {
                    sending.heed(&frame);
                    head.heed(&frame);
                    trailers.iter_mut().for_each(|trailers| trailers.heed(&frame));
                    h2::head(out, 0, kind::SETTINGS, h2::ACK, 0);
                }
                kind::PING if frame.flags & h2::ACK == 0 => {
                    h2::head(out, 8, kind::PING, h2::ACK, 0);
                    out.extend_from_slice(frame.payload);
                }
                kind::WINDOW_UPDATE => sending.heed(&frame),
                kind::DATA => {
                    *received += u32::try_from(frame.length).unwrap_or(0);
                    if *received > h2::REFILL {
                        h2::window(out, 0, *received);
                        *received = 0;
                    }
                }
                _ => (),
            }
            if frame.ends_stream() {
                h2::headers(out, head.next(), body == 0, frame.stream);
                if body > 0 {
                    sending.start(frame.stream, body);
                    // What fits is sent at once; the rest takes turns.
                    if body <= h2::MAX_FRAME {
                        sending.pump(out, usize::MAX, trailers.as_mut());
                    }
                }
            }
        });
    }
}

/// Where `wanted` begins in `data`.
pub(crate) fn find(data: &[u8], wanted: &[u8]) -> Option<usize> {
    data.windows(wanted.len()).position(|window| window == wanted)
}

/// The number in a `content-length` of a head.
pub(crate) fn content_length(head: &[u8]) -> Option<usize> {
    let at = head.windows(16).position(|window| window.eq_ignore_ascii_case(b"\ncontent-length:"))? + 16;
    let digits = head[at..].iter().skip_while(|byte| **byte == b' ').take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0')))
}

impl H1 {
    fn receive(&mut self, data: &[u8], head: &[u8], body: &[u8], out: &mut Vec<u8>) {
        if let Body::Counted(left) = &mut self.body {
            // No client here sends a request before the last one is answered.
            *left = left.saturating_sub(data.len());
            if *left == 0 {
                self.answer(head, body, out);
            }
            return;
        }
        self.partial.extend_from_slice(data);
        if matches!(self.body, Body::None) {
            let Some(end) = find(&self.partial, b"\r\n\r\n") else { return };
            let end = end + 4;
            let chunked = find(&self.partial[..end], b"chunked").is_some();
            self.body = match content_length(&self.partial[..end]) {
                Some(length) => Body::Counted((length + end).saturating_sub(self.partial.len())),
                None if chunked => Body::Chunked,
                None => Body::Counted(0),
            };
        }
        let complete = match self.body {
            Body::Chunked => self.partial.ends_with(b"\r\n0\r\n\r\n"),
            Body::Counted(left) => left == 0,
            Body::None => false,
        };
        if complete {
            self.answer(head, body, out);
        } else if matches!(self.body, Body::Counted(_)) {
            self.partial.clear();
        }
    }

    fn answer(&mut self, head: &[u8], body: &[u8], out: &mut Vec<u8>) {
        self.partial.clear();
        self.body = Body::None;
        out.extend_from_slice(head);
        if body.len() < 4096 {
            out.extend_from_slice(body);
        } else {
            self.left = body.len();
        }
    }
}

//! A whole HTTP/1 connection through the gateway: what reaches the backend is valid, admitted, and from who it says. The
//! input is what the client sends, in lines that begin with a mark: `> ` and what is sent (with `\r`, `\n`, `\0`, `\xHH` and
//! `\\` spelled out), `| ` where a piece ends, `< ` what the backend answers next, `! ` where it hangs up instead.
#![no_main]

use isthmus::tls::Alpn;
use isthmus_fuzz::connection;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let (mut pieces, mut answers) = (vec![Vec::new()], Vec::new());
    for line in input.split(|byte| *byte == b'\n') {
        match line {
            [b'>', b' ', sent @ ..] => pieces.last_mut().expect("one at least").extend(spelled(sent)),
            [b'|', ..] => pieces.push(Vec::new()),
            [b'<', b' ', said @ ..] => answers.push(spelled(said)),
            [b'!', ..] => answers.push(Vec::new()),
            _ => {}
        }
    }
    connection(Alpn::Http11, pieces, answers);
});

fn spelled(line: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < line.len() {
        let (byte, len) = match (line[at], line.get(at + 1)) {
            (b'\\', Some(b'r')) => (b'\r', 2),
            (b'\\', Some(b'n')) => (b'\n', 2),
            (b'\\', Some(b'0')) => (0, 2),
            (b'\\', Some(b'\\')) => (b'\\', 2),
            (b'\\', Some(b'x')) => {
                let digits = line.get(at + 2..at + 4).and_then(|two| std::str::from_utf8(two).ok());
                digits.and_then(|two| u8::from_str_radix(two, 16).ok()).map_or((b'\\', 1), |byte| (byte, 4))
            }
            (byte, _) => (byte, 1),
        };
        out.push(byte);
        at += len;
    }
    out
}

//! What passes, what is refused and where, and that the cuts between chunks make no difference.

use proptest::prelude::*;

use super::*;

/// Feeds the whole at once; the offset of the first bad byte, and why.
fn verdict(bytes: &[u8], limits: Limits) -> Result<u64, (usize, Reason)> {
    let mut guard = Guard::new(limits);
    guard.feed(bytes).map(|()| guard.requests()).map_err(|bad| (bad.at, bad.reason))
}

/// The same in pieces.
fn verdict_in_pieces(bytes: &[u8], limits: Limits, cuts: &[usize]) -> Result<u64, (usize, Reason)> {
    let mut guard = Guard::new(limits);
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
    cuts.sort_unstable();
    for pair in cuts.windows(2) {
        guard.feed(&bytes[pair[0]..pair[1]]).map_err(|bad| (pair[0] + bad.at, bad.reason))?;
    }
    Ok(guard.requests())
}

fn every_way(bytes: &[u8], limits: Limits) -> Result<u64, (usize, Reason)> {
    let whole = verdict(bytes, limits);
    let each: Vec<usize> = (0..bytes.len()).collect();
    assert_eq!(verdict_in_pieces(bytes, limits, &each), whole, "byte by byte: {:?}", String::from_utf8_lossy(bytes));
    for cut in 0..bytes.len() {
        assert_eq!(verdict_in_pieces(bytes, limits, &[cut]), whole, "{cut}: {:?}", String::from_utf8_lossy(bytes));
    }
    whole
}

#[test]
fn passes() {
    for (bytes, requests) in [
        // What a Linkerd source sends, without Host.
        (&b"GET /one HTTP/1.1\r\nuser-agent: curl/7.88.1\r\naccept: */*\r\n\r\n"[..], 1),
        (b"\r\nGET / HTTP/1.0\r\n\r\n", 1),
        (b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n", 2),
        (b"GET / HTTP/1.1\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n", 2),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 1),
        (b"POST http://a/ HTTP/1.1\r\nContent-Length: 5\r\n\r\n\n\r\0\xffxGET / HTTP/1.1\r\n\r\n", 2),
        (b"POST / HTTP/1.1\r\ncontent-length:\t 007 \t\r\n\r\n1234567GET / HTTP/1.0\r\n\r\n", 2),
        (b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n", 2),
        (b"POST / HTTP/1.1\r\nContent-Length: 9223372036854775808\r\n\r\nGET", 1),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked \r\n\r\n3\r\nabc\r\nA;x=\"y\"\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n", 2),
        (b"POST / HTTP/1.1\r\ntransfer-encoding:chunked\r\n\r\n000;a\r\nx-sum: 1\r\ny:\r\n\r\nGET / HTTP/1.1\r\n\r\n", 2),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc", 1),
        (b"GET / HTTP/1.1\r\nx: \xc3\xa9\t caf\xe9\r\ny:\r\nz:   \r\n\r\n", 1),
        (b"GET / HTTP/1.1\r\nx!#$%&'*+-.^_`|~9: 1\r\n\r\n", 1),
        (b"pri * HTTP/1.1\r\n\r\n", 1),
        (b"GET / HTTP/1.1\r\nUpgrade: H2C\r\n\r\nGET / HTTP/1.1\r\n\r\n", 2),
        (b"GET / HTTP/1.0\r\nUpgrade: websocket\r\n\r\nGET / HTTP/1.1\r\n\r\n", 2),
        (b"GET / HTTP/1.1\r\nTransfer-Encodings: gzip\r\nContent-Lengt: x\r\nHosts: a\r\nHost: b\r\n\r\n", 1),
        (b"", 0),
    ] {
        assert_eq!(every_way(bytes, Limits::default()), Ok(requests), "{:?}", String::from_utf8_lossy(bytes));
    }
}

/// The bar marks the first bad byte.
#[test]
fn refuses() {
    use Reason as R;
    for (marked, reason) in [
        ("|\nGET / HTTP/1.1\r\n", R::Method),
        ("\r|\rGET / HTTP/1.1\r\n", R::LineEnd),
        ("\r\n|\r\nGET / HTTP/1.1\r\n", R::Method),
        ("| GET / HTTP/1.1\r\n", R::Method),
        ("GET|\t/ HTTP/1.1\r\n", R::Method),
        ("G|(T / HTTP/1.1\r\n", R::Method),
        ("GET | / HTTP/1.1\r\n", R::Target),
        ("GET |\r\n", R::Target),
        ("GET /|\r\n", R::Target),
        ("GET /a|#b HTTP/1.1\r\n", R::Target),
        ("GET /|\u{e9} HTTP/1.1\r\n", R::Target),
        ("GET /|\0 HTTP/1.1\r\n", R::Target),
        ("GET / | HTTP/1.1\r\n", R::Version),
        ("GET / |http/1.1\r\n", R::Version),
        ("GET / HTTP/|2.0\r\n", R::Version),
        ("GET / HTTP/1.|2\r\n", R::Version),
        ("GET / HTTP/1.1|\n", R::LineEnd),
        ("GET / HTTP/1.1| \r\n", R::LineEnd),
        ("GET / HTTP/1.1\r|\r\n", R::LineEnd),
        ("PRI * HTTP/|2.0\r\n\r\nSM\r\n\r\n", R::Http2Preface),
        ("GET / HTTP/1.1\r\n| a: b\r\n", R::Fold),
        ("GET / HTTP/1.1\r\na: b\r\n| c\r\n", R::Fold),
        ("GET / HTTP/1.1\r\na: b\r\n|\tc\r\n", R::Fold),
        ("GET / HTTP/1.1\r\na| : b\r\n", R::HeaderName),
        ("GET / HTTP/1.1\r\n|: b\r\n", R::HeaderName),
        ("GET / HTTP/1.1\r\na|\r\n", R::HeaderName),
        ("GET / HTTP/1.1\r\n|\u{e9}: b\r\n", R::HeaderName),
        ("GET / HTTP/1.1\r\na|\0: b\r\n", R::HeaderName),
        ("GET / HTTP/1.1\r\na: b|\n\r\n", R::LineEnd),
        ("GET / HTTP/1.1\r\na: b\r|c\r\n", R::LineEnd),
        ("GET / HTTP/1.1\r\na: b|\0\r\n", R::HeaderValue),
        ("GET / HTTP/1.1\r\na: b|\x7f\r\n", R::HeaderValue),
        ("GET / HTTP/1.1\r\na: 12345678|\x1b[0m\r\n", R::HeaderValue),
        ("GET / HTTP/1.1\r\na: b\r\n|\n", R::LineEnd),
        ("GET / HTTP/1.1\r\na: b\r\n\r|a", R::LineEnd),
        ("GET / HTTP/1.1\r\nHost: a\r\nhOST|: a\r\n\r\n", R::Host),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length|: 1\r\n\r\n", R::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 1|, 1\r\n\r\n", R::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 1 |1\r\n\r\n", R::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: |+1\r\n\r\n", R::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: |-1\r\n\r\n", R::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 0|x1\r\n\r\n", R::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: |\r\n\r\n", R::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 922337203685477580|9\r\n\r\n", R::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 1844674407370955161|6\r\n\r\n", R::ContentLength),
        ("POST / HTTP/1.1\r\nContent-Length: 1|\n\r\n", R::LineEnd),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding|: chunked\r\n\r\n", R::Framing),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\ncontent-length|: 1\r\n\r\n", R::Framing),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding|: chunked\r\n\r\n", R::TransferEncoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: |gzip, chunked\r\n\r\n", R::TransferEncoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked|, chunked\r\n\r\n", R::TransferEncoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked |x\r\n\r\n", R::TransferEncoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunke|\r\n\r\n", R::TransferEncoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked|x\r\n\r\n", R::TransferEncoding),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: |\x0bchunked\r\n\r\n", R::HeaderValue),
        ("POST / HTTP/1.1\r\nTransfer-Encoding:|\r\n\r\n", R::TransferEncoding),
        ("POST / HTTP/1.0\r\nTransfer-Encoding|: chunked\r\n\r\n", R::TransferEncoding),
        ("CONNECT a:1 HTTP/1.1\r\nContent-Length: 1\r\n\r|\n", R::ConnectBody),
        ("CONNECT a:1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r|\n", R::ConnectBody),
        ("GET / HTTP/1.1\r\n\r\nGET|\r", R::Method),
    ] {
        let at = marked.find('|').expect("a mark");
        let bytes = marked.replacen('|', "", 1);
        assert_eq!(every_way(bytes.as_bytes(), Limits::default()), Err((at, reason)), "{marked:?}");
    }
}

#[test]
fn refuses_in_chunked_bodies() {
    use Reason as R;
    let long_extension = format!("1;{}|x\r\n", "x".repeat(256));
    for (marked, reason) in [
        ("|\r\n", R::Chunk),
        ("|;a\r\n", R::Chunk),
        ("|-1\r\n", R::Chunk),
        ("0|x1\r\n", R::Chunk),
        ("1|_0\r\n", R::Chunk),
        ("1| \r\na", R::Chunk),
        ("1|\na", R::Chunk),
        ("1\r|a", R::Chunk),
        ("1;a|\nb\r\n", R::Chunk),
        ("1;a\r|b\r\n", R::Chunk),
        ("1;|\0\r\n", R::Chunk),
        (&long_extension, R::Chunk),
        ("0000000000000000|0\r\n", R::Chunk),
        ("1\r\na|b\r\n", R::Chunk),
        ("1\r\na|\n", R::Chunk),
        ("1\r\na\r|\r", R::Chunk),
        ("1\r\na\r\n|\r\n", R::Chunk),
        ("0\r\n| a: b\r\n", R::Fold),
        ("0\r\na| : b\r\n", R::HeaderName),
        ("0\r\na: b|\n", R::LineEnd),
        ("0\r\n|\n", R::LineEnd),
        ("0\r\nContent-Length|: 1\r\n\r\n", R::ForbiddenTrailer),
        ("0\r\nTransfer-Encoding|: chunked\r\n\r\n", R::ForbiddenTrailer),
        ("0\r\nHost|: a\r\n\r\n", R::ForbiddenTrailer),
        ("0\r\n\r\n|\0", R::Method),
    ] {
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let marked = format!("{head}{marked}");
        let at = marked.find('|').expect("a mark");
        let bytes = marked.replacen('|', "", 1);
        assert_eq!(every_way(bytes.as_bytes(), Limits::default()), Err((at, reason)), "{marked:?}");
    }
}

#[test]
fn limits_hold_to_the_byte() {
    let request = b"GET / HTTP/1.1\r\na: b\r\nc: d\r\n\r\n";
    let limits = |max_head_bytes, max_headers| Limits { max_head_bytes, max_headers };
    assert_eq!(every_way(request, limits(request.len(), 2)), Ok(1));
    let short = request.len() - 1;
    assert_eq!(every_way(request, limits(short, 2)), Err((short, Reason::HeadTooLarge)));
    assert_eq!(every_way(request, limits(5, 2)), Err((5, Reason::HeadTooLarge)));
    assert_eq!(every_way(request, limits(1000, 1)), Err((22, Reason::TooManyHeaders)));
    // Each head and each block of trailers has the whole of it.
    let twice = [&request[..], request].concat();
    assert_eq!(every_way(&twice, limits(request.len(), 2)), Ok(2));
    let trailers = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: b\r\nc: d\r\n\r\n";
    assert_eq!(every_way(trailers, limits(50, 2)), Ok(1));
    assert_eq!(every_way(trailers, limits(50, 1)), Err((56, Reason::TooManyHeaders)));
}

#[test]
fn upgrades() {
    for head in [
        "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nUpgrade: h2c, websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nUpgrade: h2\r\n\r\n",
        "GET / HTTP/1.1\r\nUpgrade: h2c\r\nUpgrade: x\r\n\r\n",
        "CONNECT web:80 HTTP/1.1\r\n\r\n",
        "CONNECT web:80 HTTP/1.0\r\nContent-Length: 0\r\n\r\n",
    ] {
        let mut guard = Guard::new(Limits::default());
        guard.feed(&head.as_bytes()[..head.len() - 1]).expect("passes");
        assert!(!guard.awaits_upgrade());
        guard.feed(b"\n").expect("passes");
        assert!(guard.awaits_upgrade(), "{head}");
        // Refused before another byte came: the connection goes on, guarded.
        assert!(guard.declined());
        assert!(!guard.awaits_upgrade());
        guard.feed(head.as_bytes()).expect("passes");
        guard.feed(b"\0\0\n").expect("passes unexamined");
        assert_eq!(guard.unexamined_bytes(), 3);
        assert!(!guard.declined(), "three bytes went through");
        guard.upgraded();
        guard.feed(b"\0anything").expect("passes");
        assert!(!guard.awaits_upgrade());
        assert_eq!(guard.requests(), 2);
    }
}

#[test]
fn a_body_before_an_upgrade_is_framed() {
    let head = "POST / HTTP/1.1\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut guard = Guard::new(Limits::default());
    guard.feed(head.as_bytes()).expect("passes");
    assert!(guard.awaits_upgrade());
    guard.feed(b"1\r\na\r\n0\r\n\r\n").expect("passes");
    assert_eq!(guard.unexamined_bytes(), 0);
    guard.feed(b"\0").expect("passes unexamined");
    assert_eq!(guard.unexamined_bytes(), 1);
    let mut guard = Guard::new(Limits::default());
    guard.feed(head.as_bytes()).expect("passes");
    assert!(guard.declined());
    guard.feed(b"1\r\na\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n").expect("passes");
    assert_eq!(guard.requests(), 2);
    assert!(guard.feed(b"\0").is_err());
}

#[test]
fn knows_where_requests_end_and_stays_failed() {
    let mut guard = Guard::new(Limits::default());
    assert!(guard.is_between_requests());
    for (bytes, between) in [(&b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n"[..], false), (b"a", false), (b"b", true)]
    {
        guard.feed(bytes).expect("passes");
        assert_eq!(guard.is_between_requests(), between);
    }
    let bad = guard.feed(b"G\0").expect_err("refused");
    assert_eq!((bad.at, bad.reason), (1, Reason::Method));
    assert_eq!(guard.feed(b"GET"), Err(Bad { reason: Reason::Method, at: 0 }));
    assert!(!guard.declined());
    assert_eq!(guard.feed(b""), Ok(()));
}

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let name = "x-[a-z0-9]{1,12}";
    let value = "[ -~\t]{0,40}";
    let headers = prop::collection::vec((name, value), 0..6);
    let chunks = prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..4);
    (headers.clone(), headers, chunks, 0u8..3).prop_map(|(headers, trailers, chunks, framing)| {
        let lines = |pairs: Vec<(String, String)>| {
            pairs.into_iter().map(|(name, value)| format!("{name}:{value}\r\n")).collect::<String>()
        };
        let mut bytes = format!("POST /a?b HTTP/1.1\r\n{}", lines(headers)).into_bytes();
        match framing {
            0 => bytes.extend(b"\r\n"),
            1 => {
                let body = chunks.concat();
                bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                bytes.extend(body);
            }
            _ => {
                bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                for chunk in chunks {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(format!("0\r\n{}\r\n", lines(trailers)).as_bytes());
            }
        }
        bytes
    })
}

proptest! {
    #[test]
    fn well_formed_requests_pass_however_cut(
        requests in prop::collection::vec(any_request(), 1..4),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let bytes = requests.concat();
        prop_assert_eq!(verdict(&bytes, Limits::default()), Ok(requests.len() as u64));
        prop_assert_eq!(verdict_in_pieces(&bytes, Limits::default(), &cuts), Ok(requests.len() as u64));
    }

    #[test]
    fn cuts_make_no_difference_to_broken_requests(
        requests in prop::collection::vec(any_request(), 1..3),
        changes in prop::collection::vec((any::<usize>(), prop::sample::select(b"\r\n\0 \t:;0aG,\x7f\xff".to_vec())), 1..4),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
        max_head_bytes in 20usize..400,
    ) {
        let mut bytes = requests.concat();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let limits = Limits { max_head_bytes, max_headers: 5 };
        let whole = verdict(&bytes, limits);
        prop_assert_eq!(verdict_in_pieces(&bytes, limits, &cuts), whole);
        // What is before the first bad byte is good by itself.
        if let Err((at, _)) = whole {
            prop_assert!(verdict(&bytes[..at], limits).is_ok());
        }
    }

    #[test]
    fn survives_anything(bytes in prop::collection::vec(any::<u8>(), 0..300), cuts in prop::collection::vec(any::<usize>(), 0..8)) {
        prop_assert_eq!(verdict_in_pieces(&bytes, Limits::default(), &cuts), verdict(&bytes, Limits::default()));
    }
}

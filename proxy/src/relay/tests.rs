use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::sleep;

use super::*;

/// A relay between two pipes; gives the outer ends.
fn between(buffer: usize, settings: Settings) -> (DuplexStream, DuplexStream, impl Future<Output = Ended>) {
    let (client, client_inner) = duplex(buffer);
    let (upstream, upstream_inner) = duplex(buffer);
    let relay = async move { pump(client_inner, upstream_inner, &settings, &Counters::default()).await };
    (client, upstream, relay)
}

/// Bytes whose place can be told: a prime period, so that no power of two hides a shift.
fn pattern() -> Vec<u8> {
    (0..8191u32 * 16).map(|n| u8::try_from((n % 8191) * 31 % 251).expect("small")).collect()
}

/// Sends `total` bytes in pieces of odd sizes.
async fn send(stream: &mut (impl AsyncWrite + Unpin), total: usize, mut size: usize) {
    let pattern = pattern();
    let mut at = 0;
    while at < total {
        let from = at % 8191;
        let len = size.min(total - at).min(pattern.len() - from);
        stream.write_all(&pattern[from..from + len]).await.expect("writes");
        at += len;
        size = size * 7 % 65_521 + 1;
    }
    stream.shutdown().await.expect("shuts down");
}

/// Reads to the end and checks every byte's place.
async fn check(stream: &mut (impl AsyncRead + Unpin), total: usize) {
    let pattern = pattern();
    let mut buffer = vec![0; 30_011];
    let mut at = 0;
    loop {
        let len = stream.read(&mut buffer).await.expect("reads");
        if len == 0 {
            break;
        }
        let from = at % 8191;
        assert!(buffer[..len] == pattern[from..from + len], "after {at} bytes");
        at += len;
    }
    assert_eq!(at, total);
}

async fn both_ways(total: usize, buffer: usize, size: usize) -> Ended {
    let (client, upstream, relay) = between(buffer, Settings::default());
    let ((mut client_read, mut client_write), (mut upstream_read, mut upstream_write)) =
        (tokio::io::split(client), tokio::io::split(upstream));
    let (ended, ..) = tokio::join!(
        relay,
        send(&mut client_write, total, size),
        send(&mut upstream_write, total, size + 1),
        check(&mut client_read, total),
        check(&mut upstream_read, total),
    );
    ended
}

#[tokio::test]
async fn a_hundred_mebibytes_both_ways() {
    const TOTAL: usize = 100 * 1024 * 1024;
    let ended = both_ways(TOTAL, 50_021, 9973).await;
    assert!(ended.result.is_ok());
    assert_eq!((ended.received, ended.sent), (TOTAL as u64, TOTAL as u64));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_sizes_both_ways(total in 0usize..300_000, buffer in 1usize..70_000, size in 1usize..70_000) {
        let total = if buffer < 64 { total % 5000 } else { total };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let ended = runtime.block_on(both_ways(total, buffer, size));
        prop_assert!(ended.result.is_ok());
        prop_assert_eq!((ended.received, ended.sent), (total as u64, total as u64));
    }
}

#[tokio::test]
async fn either_side_may_end_first_and_still_be_told() {
    for client_first in [true, false] {
        let (client, upstream, relay) = between(1024, Settings::default());
        let (mut first, mut second) = if client_first { (client, upstream) } else { (upstream, client) };
        let talk = async {
            first.write_all(b"question").await.expect("writes");
            first.shutdown().await.expect("shuts down");
            let mut question = String::new();
            second.read_to_string(&mut question).await.expect("reads to the end");
            assert_eq!(question, "question");
            second.write_all(b"a long answer").await.expect("writes");
            second.shutdown().await.expect("shuts down");
            let mut answer = String::new();
            first.read_to_string(&mut answer).await.expect("reads to the end");
            assert_eq!(answer, "a long answer");
        };
        let (ended, ()) = tokio::join!(relay, talk);
        assert!(ended.result.is_ok());
        let (from_first, from_second) = if client_first { (8, 13) } else { (13, 8) };
        assert_eq!((ended.received, ended.sent), (from_first, from_second));
    }
}

#[tokio::test]
async fn the_server_may_speak_first_and_small_words_are_flushed() {
    let (client, upstream, relay) = between(1024, Settings::default());
    // Buffered until flushed, as TLS is.
    let mut client = tokio::io::BufStream::new(client);
    let mut upstream = upstream;
    let talk = async move {
        upstream.write_all(b"220 ready\r\n").await.expect("writes");
        let mut banner = [0; 11];
        client.read_exact(&mut banner).await.expect("reads");
        client.write_all(b"QUIT\r\n").await.expect("writes");
        client.flush().await.expect("flushes");
        let mut quit = [0; 6];
        upstream.read_exact(&mut quit).await.expect("reads");
        drop((client, upstream));
    };
    let (ended, ()) = tokio::join!(relay, talk);
    assert_eq!((ended.received, ended.sent), (6, 11));
}

#[tokio::test]
async fn writers_that_buffer_are_flushed_before_waiting() {
    let (mut client, client_inner) = duplex(1024);
    let (mut upstream, upstream_inner) = duplex(1024);
    let (settings, counters) = (Settings::default(), Counters::default());
    let relay =
        pump(tokio::io::BufStream::new(client_inner), tokio::io::BufStream::new(upstream_inner), &settings, &counters);
    let talk = async move {
        client.write_all(b"ping").await.expect("writes");
        let mut word = [0; 4];
        upstream.read_exact(&mut word).await.expect("comes through without more");
        upstream.write_all(b"pong").await.expect("writes");
        client.read_exact(&mut word).await.expect("comes through without more");
        drop((client, upstream));
    };
    let (ended, ()) = tokio::join!(relay, talk);
    assert_eq!((ended.received, ended.sent), (4, 4));
}

#[tokio::test(start_paused = true)]
async fn silence_ends_it_and_every_byte_puts_that_off() {
    let settings = Settings { idle_timeout: Some(Duration::from_secs(8)), total_timeout: None };
    let (mut client, mut upstream, relay) = between(1024, settings);
    let start = Instant::now();
    let talk = async {
        for _ in 0..5 {
            sleep(Duration::from_secs(6)).await;
            upstream.write_all(b"x").await.expect("writes");
            let mut word = [0; 1];
            client.read_exact(&mut word).await.expect("reads");
        }
    };
    let (ended, ()) = tokio::join!(relay, talk);
    assert_eq!(ended.result.expect_err("cut off").code(), "relay.idle_timeout");
    let after = start.elapsed() - Duration::from_secs(30);
    assert!((Duration::from_secs(8)..=Duration::from_secs(11)).contains(&after), "{after:?}");
    assert_eq!(client.read(&mut [0; 1]).await.expect("ends"), 0, "both streams are closed");
}

#[tokio::test(start_paused = true)]
async fn half_closed_and_silent_is_silent() {
    let settings = Settings { idle_timeout: Some(Duration::from_secs(8)), total_timeout: None };
    let (mut client, _upstream, relay) = between(1024, settings);
    client.shutdown().await.expect("shuts down");
    assert_eq!(relay.await.result.expect_err("cut off").code(), "relay.idle_timeout");
}

#[tokio::test(start_paused = true)]
async fn the_total_time_ends_it_whatever_happens() {
    let settings =
        Settings { idle_timeout: Some(Duration::from_secs(60)), total_timeout: Some(Duration::from_secs(100)) };
    let (mut client, mut upstream, relay) = between(1024, settings);
    let start = Instant::now();
    let talk = async {
        loop {
            sleep(Duration::from_secs(1)).await;
            client.write_all(b"x").await.expect("writes");
            upstream.read_exact(&mut [0; 1]).await.expect("reads");
        }
    };
    let ended = tokio::select! {
        ended = relay => ended,
        () = talk => unreachable!("talks for ever"),
    };
    assert_eq!(ended.result.expect_err("cut off").code(), "relay.total_timeout");
    assert_eq!(start.elapsed(), Duration::from_secs(100));
}

#[tokio::test(start_paused = true)]
async fn without_timeouts_it_lasts() {
    let (_client, _upstream, relay) = between(1024, Settings { idle_timeout: None, total_timeout: None });
    assert!(tokio::time::timeout(Duration::from_secs(86_400 * 30), relay).await.is_err());
}

/// Breaks when read or written, after what it has to say.
struct Broken {
    says: &'static [u8],
    reads: bool,
}

impl AsyncRead for Broken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.says.is_empty() {
            buffer.put_slice(self.says);
            self.says = b"";
            return Poll::Ready(Ok(()));
        }
        if self.reads { Poll::Ready(Ok(())) } else { Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())) }
    }
}

impl AsyncWrite for Broken {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn says_which_side_broke() {
    let (settings, counters) = (Settings::default(), Counters::default());
    let (_outer, inner) = duplex(64);
    let ended = pump(Broken { says: b"", reads: false }, inner, &settings, &counters).await;
    assert_eq!(ended.result.expect_err("broken").code(), "relay.client_reset");
    let (_outer, inner) = duplex(64);
    let ended = pump(inner, Broken { says: b"", reads: false }, &settings, &counters).await;
    assert_eq!(ended.result.expect_err("broken").code(), "relay.upstream_reset");
}

#[tokio::test]
async fn what_a_side_said_before_it_stopped_listening_is_delivered() {
    let (settings, counters) = (Settings::default(), Counters::default());
    let (mut client, inner) = duplex(64);
    client.write_all(b"more than it wants to hear").await.expect("writes");
    let upstream = Broken { says: b"413 enough", reads: true };
    let mut answer = String::new();
    let (ended, read) = tokio::join!(pump(inner, upstream, &settings, &counters), client.read_to_string(&mut answer));
    read.expect("reads to the end");
    assert_eq!(answer, "413 enough");
    assert_eq!((ended.received, ended.sent), (0, 10));
    assert_eq!(ended.result.expect_err("broken").code(), "relay.upstream_reset");
}

#[test]
fn a_relays_future_stays_small() {
    let (client, upstream) = (duplex(1).0, duplex(1).0);
    let (settings, counters) = (Settings::default(), Counters::default());
    let streams = size_of::<DuplexStream>() * 2;
    let future = pump(client, upstream, &settings, &counters);
    assert!(size_of_val(&future) <= 3 * streams + 512, "{} bytes", size_of_val(&future));
}

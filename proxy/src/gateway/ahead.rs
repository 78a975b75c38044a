//! A client of bytes while it is not yet known where its bytes go: what it sends meanwhile is read ahead, within a bound, so
//! that its leaving is noticed.
//!
//! **In** a stream, and what is being waited for: discovery, an endpoint, a connection to it. **Out** the same stream, from
//! which nothing is missing. **Refuses** to go on for a client that has left, and past the end of a drain. Linkerd's gateway
//! looks at neither while it waits, and is held up in its drain by clients that have long gone. (Wire document §4.2.)

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::refuse::Refused;
use crate::drain::{Phase, Watch};
use crate::fault::Fault;
use crate::record::Stage;
use crate::rewind::Rewind;

/// What is read ahead at the most, in bytes: a TLS record. A client that sends more waits, and is not seen to leave.
const MOST_BYTES: usize = 16 * 1024;

/// Waits for `found` while looking at the client and at the drain.
pub(super) async fn watched<S, T>(
    mut stream: S,
    mut drain: Watch,
    found: impl Future<Output = Result<T, Refused>>,
) -> Result<(Rewind<S>, T), Refused>
where
    S: AsyncRead + Unpin,
{
    let mut read = BytesMut::new();
    let found = tokio::select! {
        biased;
        found = found => found?,
        () = left(&mut stream, &mut read) => {
            let detail = "the client left before its service was reached";
            return Err(Refused::new(Stage::Relay, Fault::Client, "relay.client_reset", detail));
        }
        () = drain.reached(Phase::Cut) => {
            let detail = "the drain's deadline came before the service was reached";
            return Err(Refused::new(Stage::Relay, Fault::Ours, "relay.drain_deadline", detail));
        }
    };
    Ok((Rewind::new(read.freeze(), stream), found))
}

/// Ends when the client has left: its connection broke, or it said goodbye without having said anything. One that has
/// spoken and then closes its side may well be waiting for the answer.
async fn left<S: AsyncRead + Unpin>(stream: &mut S, read: &mut BytesMut) {
    loop {
        let room = MOST_BYTES.saturating_sub(read.len());
        if room == 0 {
            break;
        }
        match stream.take(room as u64).read_buf(read).await {
            Ok(0) if !read.is_empty() => break,
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;
    use crate::drain::channel;

    async fn wait<S: AsyncRead + Unpin>(stream: S, watch: Watch) -> Result<Rewind<S>, &'static str> {
        let found = async {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            Ok(())
        };
        watched(stream, watch, found).await.map(|(stream, ())| stream).map_err(|refused| refused.code)
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_ahead_is_not_lost() {
        let (_drain, watch) = channel();
        for bytes in [0, 5, MOST_BYTES, MOST_BYTES + 7] {
            let (mut client, ours) = duplex(2 * MOST_BYTES);
            client.write_all(&vec![7; bytes]).await.expect("there is room");
            let mut stream = wait(ours, watch.clone()).await.expect("nobody left");
            client.shutdown().await.expect("open");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.expect("whole");
            assert_eq!(all, vec![7; bytes]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_without_a_word_is_not_waited_for() {
        let (_drain, watch) = channel();
        let (client, ours) = duplex(64);
        drop(client);
        assert_eq!(wait(ours, watch.clone()).await.expect_err("left"), "relay.client_reset");
        // One that spoke and closed its side gets its answer.
        let (mut client, ours) = duplex(64);
        client.write_all(b"question").await.expect("there is room");
        client.shutdown().await.expect("open");
        assert!(wait(ours, watch.clone()).await.is_ok());
    }
}

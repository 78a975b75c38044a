//! Asks the admin server of another process, for the commands that look into a running gateway.
//!
//! **In** the server's address and a question. **Out** the answer's text. **Refuses** what is not `http://host:port`, answers that are
//! too long or too late, and statuses other than 200, with what the server said.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::query::query;
use crate::authorise::Call;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The address.
    #[error("{0:?} is no address of an admin port, such as http://127.0.0.1:4191")]
    Address(String),
    /// Nobody is there.
    #[error("nobody answers at {0}")]
    Connect(String, #[source] std::io::Error),
    /// The exchange broke off.
    #[error("{0} does not answer as an admin port does")]
    Exchange(String, #[source] hyper::Error),
    /// The answer.
    #[error("the answer of {0} is longer than {limit} MiB, or broke off", limit = MAX_ANSWER_BYTES >> 20)]
    Length(String),
    /// The server says no.
    #[error("{0} says {1}: {2}")]
    Status(String, StatusCode, String),
    /// It takes too long.
    #[error("{0} took longer than {limit} s", limit = TIMEOUT.as_secs())]
    Timeout(String),
}

/// The longest answer, in bytes: what was seen of many clients, or ten thousand rules explained.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// The longest wait for a whole answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks for a page, such as `/sightings`.
pub async fn page(address: &str, page: &str) -> Result<String, AskError> {
    let base = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let base = base.strip_suffix('/').map_or_else(|| base.clone(), str::to_owned);
    let bad = || AskError::Address(address.to_owned());
    let uri: Uri = base.parse().map_err(|_| bad())?;
    let authority = uri.authority().cloned().ok_or_else(bad)?;
    let userinfo = authority.as_str().contains('@');
    if uri.scheme_str() != Some("http") || uri.path() != "/" || uri.query().is_some() || userinfo {
        return Err(bad());
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let exchange = exchange(&base, (&host, authority.port_u16().unwrap_or(4191)), authority.as_str(), page);
    let (status, text) = match tokio::time::timeout(TIMEOUT, exchange).await {
        Ok(answer) => answer?,
        Err(_) => return Err(AskError::Timeout(base)),
    };
    if status == StatusCode::OK { Ok(text) } else { Err(AskError::Status(base, status, text.trim_end().to_owned())) }
}

/// Asks why a call is let through or not; `exported` where that is not to be the gateway's own knowledge.
pub async fn explain(address: &str, call: &Call, exported: Option<bool>) -> Result<String, AskError> {
    page(address, &format!("/explain?{}", query(call, exported))).await
}

async fn exchange(base: &str, to: (&str, u16), authority: &str, page: &str) -> Result<(StatusCode, String), AskError> {
    let name = || base.to_owned();
    let stream = TcpStream::connect(to).await.map_err(|error| AskError::Connect(name(), error))?;
    let broken = |error| AskError::Exchange(name(), error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::get(page).header(header::HOST, authority).body(Empty::<Bytes>::new());
    let request = request.map_err(|_| AskError::Address(name()))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|_| AskError::Length(name()))?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(broken(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses() {
        for bad in ["https://x:1", "http://x/y", "http://a@x:1", "", "http://", "http://x?y", "http:// x"] {
            assert!(matches!(page(bad, "/").await, Err(AskError::Address(_))), "{bad}");
        }
        assert!(matches!(page("127.0.0.1:1", "/").await, Err(AskError::Connect(..))));
    }
}

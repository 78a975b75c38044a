//! Cluster east's services: an HTTP service that speaks HTTP/1.1 and HTTP/2, answers gRPC-shaped calls with trailers and
//! echoes WebSocket messages; and a TCP echo. Real sockets, plaintext, as pods behind a gateway are.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Starts the HTTP service and gives its address.
pub async fn http_service() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    let runtime = Handle::current();
    drop(runtime.clone().spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            drop(runtime.spawn(serve(socket)));
        }
    }));
    Ok(addr)
}

/// Starts the TCP echo and gives its address.
pub async fn tcp_echo() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    let runtime = Handle::current();
    drop(runtime.clone().spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            drop(runtime.spawn(async move {
                let (mut read, mut write) = socket.split();
                // Whoever breaks off in the middle has no more to say: nothing to report in a demo's echo.
                let _ = tokio::io::copy(&mut read, &mut write).await;
            }));
        }
    }));
    Ok(addr)
}

async fn serve(socket: TcpStream) {
    let server = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = server.serve_connection_with_upgrades(TokioIo::new(socket), service_fn(answer)).await {
        tracing::debug!(%error, "the demo's service lost a connection");
    }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

async fn answer(request: Request<Incoming>) -> Result<Answer, Infallible> {
    let grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    Ok(match request.uri().path() {
        "/ws" => websocket(request),
        _ if grpc => grpc_echo(request).await,
        path => plain(&format!(
            "{} {path} over {:?}, called by {}\n",
            request.method(),
            request.version(),
            request.headers().get("l5d-client-id").and_then(|value| value.to_str().ok()).unwrap_or("nobody")
        )),
    })
}

fn plain(text: &str) -> Answer {
    Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed())
}

/// Sends the request's message back and ends with `grpc-status` in the trailers.
async fn grpc_echo(request: Request<Incoming>) -> Answer {
    let message = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn websocket(mut request: Request<Incoming>) -> Answer {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        let mut response = plain("a WebSocket is spoken here\n");
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        return response;
    };
    let accept = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    drop(Handle::current().spawn(async move {
        let Ok(stream) = upgrade.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                break;
            }
        }
    }));
    let mut response = plain("");
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::try_from(accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

//! A mirror's metrics over HTTP, for the dashboards that know them.

use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::Full;
use isthmus_probe::report;
use isthmus_probe::serve::{Limits, serve};
use tokio::net::TcpListener;
use tokio::runtime::Handle;

use super::targets::Gateways;

/// Serves until dropped; gives the error that ended it.
pub(super) async fn metrics(addr: SocketAddr, gateways: Gateways) -> anyhow::Error {
    let listener =
        match TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr} (--metrics-addr)")) {
            Ok(listener) => listener,
            Err(error) => return error,
        };
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                let gateways = gateways.clone();
                drop(Handle::current().spawn(async move {
                    drop(
                        serve(socket, Limits::default(), |request| {
                            std::future::ready(answer(request.uri().path(), &gateways))
                        })
                        .await,
                    );
                }));
            }
            // Out of file descriptors, say: the next scrape may do better.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
}

fn answer(path: &str, gateways: &Gateways) -> Response<Full<Bytes>> {
    let (status, text) = match path {
        "/metrics" => (StatusCode::OK, report::prometheus(&gateways.statuses())),
        _ => (StatusCode::NOT_FOUND, "metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

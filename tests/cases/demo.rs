//! The demo's table is a test: every row must be what it should be.

use isthmus::app::{App, Sockets};
use isthmus::commands::demo::{Args, configuration, east, pem, pki::Pki, rows};
use isthmus::tls::Credentials;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_the_demo_is_as_expected() {
    isthmus::tls::install();
    let pki = Pki::new().unwrap();
    let http = east::http_service().await.unwrap();
    let echo = east::tcp_echo().await.unwrap();
    let config = configuration(&Args::anywhere(), http, echo).unwrap();
    let credentials = Credentials::from_pem(&pem(&pki), &config.credentials()).unwrap();
    let app = App::start(&config, credentials, Sockets::bind(&config).unwrap(), None).await.unwrap();
    let rows = rows::all(&pki, app.addrs).await;
    assert!(rows.len() >= 13, "{} rows", rows.len());
    for row in &rows {
        assert!(row.as_expected(), "{}, {}: {} instead of {}", row.who, row.what, row.back, row.expected);
    }
    let drained = app.drain(std::time::Duration::ZERO, std::time::Duration::from_secs(5), std::future::pending()).await;
    assert_eq!(drained.cut, 0, "{drained:?}");
}

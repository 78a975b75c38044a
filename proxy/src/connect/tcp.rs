//! One TCP connection with its options set and its time bounded.

use std::net::{IpAddr, SocketAddr};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

use super::{Error, Settings};

/// Connects to `addr`. Cancel safe: dropping the future closes the socket.
pub async fn tcp(addr: SocketAddr, settings: &Settings) -> Result<TcpStream, Error> {
    // `::ffff:127.0.0.1` is loopback too, and is dialled as what it is.
    let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
    if settings.deny_loopback && leads_home(addr.ip(), &settings.own) {
        return Err(Error::Denied);
    }
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(Error::from_io)?;
    set_options(&socket, settings).map_err(Error::from_io)?;
    match tokio::time::timeout(settings.timeout, socket.connect(addr)).await {
        Ok(connected) => connected.map_err(Error::from_io),
        Err(_) => Err(Error::Timeout),
    }
}

fn set_options(socket: &TcpSocket, settings: &Settings) -> std::io::Result<()> {
    socket.set_nodelay(settings.nodelay)?;
    let raw = SockRef::from(socket);
    if let Some(idle) = settings.keepalive {
        raw.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(idle))?;
    }
    #[cfg(target_os = "linux")]
    raw.set_tcp_user_timeout(settings.user_timeout)?;
    Ok(())
}

/// Whether a connection to `ip` ends at this host (or, for multicast and broadcast, nowhere in particular).
fn leads_home(ip: IpAddr, own: &[IpAddr]) -> bool {
    let odd = match ip {
        IpAddr::V4(ip) => ip.is_broadcast(),
        IpAddr::V6(_) => false,
    };
    odd || ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || own.iter().any(|own| own.to_canonical() == ip)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::fault::Refusal;

    fn open() -> Settings {
        Settings { deny_loopback: false, ..Settings::default() }
    }

    #[tokio::test]
    async fn connects_with_options_set() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let stream = tcp(listener.local_addr().expect("an address"), &open()).await.expect("connects");
        assert!(stream.nodelay().expect("readable"));
        assert!(SockRef::from(&stream).keepalive().expect("readable"));
        #[cfg(target_os = "linux")]
        assert_eq!(SockRef::from(&stream).tcp_user_timeout().expect("readable"), open().user_timeout);
    }

    #[tokio::test]
    async fn says_why_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("an address");
        let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{}", addr.port()).parse().expect("an address");
        for denied in [addr, mapped, ([0, 0, 0, 0], addr.port()).into()] {
            let error = tcp(denied, &Settings::default()).await.expect_err("denied");
            assert_eq!(error.code(), "connect.denied", "{denied}");
        }
        let own = Settings { own: vec!["10.1.2.3".parse().expect("an address")], ..Settings::default() };
        let error = tcp("10.1.2.3:80".parse().expect("an address"), &own).await.expect_err("denied");
        assert_eq!(error.code(), "connect.denied");
        drop(listener);
        assert_eq!(tcp(addr, &open()).await.expect_err("refused").code(), "connect.refused");
    }
}

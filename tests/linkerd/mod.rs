//! A Linkerd control plane that does what a case tells it: the server side of the proxy API, over TLS with the certificates
//! of the tests, or in plaintext on loopback.
//!
//! Each call of the gateway waits for the case: [`Rpc::called`] takes it, and the [`Call`] is answered, failed, left silent or
//! dropped, message by message. Where a case does not care, [`Rpc::answer`] answers by itself. Below the calls stands the
//! [`Door`]: connections can be refused, reset, left silent before or after TLS, and cut.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{Stream, stream};
use isthmus::identity::Identity;
use isthmus::tls::credentials::Settings as CredentialSettings;
use isthmus::tls::mint::{self, Authority, Usage, Validity};
use isthmus::tls::{self, Credentials, File, Pem, Sni, server};
use linkerd2_proxy_api::destination::destination_server::{Destination, DestinationServer};
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination, Update};
use linkerd2_proxy_api::identity::identity_server::{Identity as IdentityService, IdentityServer};
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse};
use linkerd2_proxy_api::inbound::inbound_server_policies_server::{InboundServerPolicies, InboundServerPoliciesServer};
use linkerd2_proxy_api::inbound::{PortSpec, Server};
use linkerd2_proxy_api::outbound::outbound_policies_server::{OutboundPolicies, OutboundPoliciesServer};
use linkerd2_proxy_api::outbound::{OutboundPolicy, TrafficSpec};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;
use tonic::{Request, Response, Status};

use crate::pki::{Pair, Pki, pair};
use crate::{soon, spawn};

/// Who the control plane is in these tests, whatever the service.
pub const CONTROL: &str = "linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local";

/// A control plane.
#[derive(Debug)]
pub struct Plane {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its connections.
    pub door: Arc<Door>,
    /// `Identity/Certify`
    pub certify: Rpc<CertifyRequest, CertifyResponse>,
    /// `Destination/Get`
    pub get: Rpc<GetDestination, Update>,
    /// `Destination/GetProfile`
    pub get_profile: Rpc<GetDestination, DestinationProfile>,
    /// `InboundServerPolicies/WatchPort` (and `GetPort`)
    pub watch_port: Rpc<PortSpec, Server>,
    /// `OutboundPolicies/Watch` (and `Get`)
    pub watch_outbound: Rpc<TrafficSpec, OutboundPolicy>,
}

impl Plane {
    /// In plaintext, on loopback.
    pub async fn plaintext() -> Self {
        Self::start(None).await
    }

    /// Over TLS, as [`CONTROL`].
    pub async fn tls() -> Self {
        Self::start(Some(pair(&Pki::get().east, &[CONTROL]))).await
    }

    /// Over TLS with this certificate, or in plaintext.
    pub async fn start(certificate: Option<Pair>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let door = Arc::new(Door::default());
        door.certificate(certificate);
        let plane = Self {
            addr,
            door: Arc::clone(&door),
            certify: Rpc::default(),
            get: Rpc::default(),
            get_profile: Rpc::default(),
            watch_port: Rpc::default(),
            watch_outbound: Rpc::default(),
        };
        let (sender, receiver) = unbounded_channel();
        spawn(door.run(listener, sender));
        let desk = Arc::new(Desk {
            certify: plane.certify.clone(),
            get: plane.get.clone(),
            get_profile: plane.get_profile.clone(),
            watch_port: plane.watch_port.clone(),
            watch_outbound: plane.watch_outbound.clone(),
        });
        let incoming = stream::unfold(receiver, |mut receiver| async {
            let stream: tokio::io::DuplexStream = receiver.recv().await?;
            Some((Ok::<_, std::io::Error>(stream), receiver))
        });
        let server = tonic::transport::Server::builder()
            .add_service(DestinationServer::from_arc(Arc::clone(&desk)))
            .add_service(IdentityServer::from_arc(Arc::clone(&desk)))
            .add_service(InboundServerPoliciesServer::from_arc(Arc::clone(&desk)))
            .add_service(OutboundPoliciesServer::from_arc(desk))
            .serve_with_incoming(incoming);
        spawn(server);
        plane
    }
}

/// What happens to connections.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// They are served.
    #[default]
    Serve,
    /// They are accepted, and nothing is said on them, not even TLS.
    Silent,
    /// TLS is spoken, HTTP/2 is not.
    Deaf,
    /// They are reset as soon as they are there.
    Reset,
}

/// The connections of a control plane.
#[derive(Default)]
pub struct Door {
    mode: Mutex<Mode>,
    credentials: Mutex<Option<Arc<Credentials>>>,
    open: Mutex<Vec<AbortHandle>>,
    seen: Mutex<Vec<Option<Identity>>>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("mode", &self.mode).field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Door {
    /// What happens to connections from now on.
    pub fn mode(&self, mode: Mode) {
        *self.mode.lock() = mode;
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        self.open.lock().drain(..).for_each(|connection| connection.abort());
    }

    /// Shows this certificate from now on, or speaks plaintext.
    pub fn certificate(&self, certificate: Option<Pair>) {
        *self.credentials.lock() = certificate.map(|pair| {
            let pem = Pem {
                chain: File::new("control.crt", pair.chain),
                key: File::new("control.key", pair.key),
                // All anchors, so that a wrong certificate can be shown too.
                bundle: File::new("bundle.crt", anchors()),
                crls: Vec::new(),
            };
            Arc::new(Credentials::from_pem(&pem, &CredentialSettings::default()).unwrap())
        });
    }

    /// Who has connected so far, in order: those who showed no certificate, or spoke plaintext, are nobody.
    pub fn seen(&self) -> Vec<Option<Identity>> {
        self.seen.lock().clone()
    }

    async fn run(self: Arc<Self>, listener: TcpListener, served: UnboundedSender<tokio::io::DuplexStream>) {
        while let Ok((socket, _)) = listener.accept().await {
            let connection = spawn(Arc::clone(&self).connection(socket, served.clone()));
            self.open.lock().push(connection.abort_handle());
        }
    }

    async fn connection(self: Arc<Self>, mut socket: TcpStream, served: UnboundedSender<tokio::io::DuplexStream>) {
        let (mode, credentials) = (*self.mode.lock(), self.credentials.lock().clone());
        match mode {
            Mode::Reset => return socket.set_zero_linger().unwrap(),
            Mode::Silent => return std::future::pending().await,
            Mode::Deaf | Mode::Serve => {}
        }
        let (mut outside, inside) = tokio::io::duplex(64 * 1024);
        let served = move || if mode == Mode::Deaf { std::mem::forget(inside) } else { drop(served.send(inside)) };
        let Some(credentials) = credentials else {
            self.seen.lock().push(None);
            served();
            let _ = tokio::io::copy_bidirectional(&mut socket, &mut outside).await;
            return;
        };
        let settings = tls::Settings { alpn: false, sni: Sni::Any, ..tls::Settings::default() };
        let Ok(mut accepted) = server::accept_anyone(socket, &credentials, &settings).await else { return };
        self.seen.lock().push(accepted.peer.map(|peer| peer.identity));
        served();
        let _ = tokio::io::copy_bidirectional(&mut accepted.stream, &mut outside).await;
    }
}

fn anchors() -> String {
    let Pki { anchor, next, foreign, .. } = Pki::get();
    [anchor, next, foreign].map(Authority::cert_pem).concat()
}

/// One procedure of the control plane, as the case sees it.
pub struct Rpc<Q, M>(Arc<Procedure<Q, M>>);

struct Procedure<Q, M> {
    queue: UnboundedSender<Call<Q, M>>,
    calls: tokio::sync::Mutex<UnboundedReceiver<Call<Q, M>>>,
    answer: Mutex<Option<Answer<Q, M>>>,
    /// Streams that were answered by themselves and stay open.
    kept: Mutex<Vec<UnboundedSender<Result<M, Status>>>>,
    asked: Mutex<Vec<Q>>,
}

type Answer<Q, M> = Arc<dyn Fn(&Q) -> Vec<Result<M, Status>> + Send + Sync>;

type Messages<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

impl<Q, M> Clone for Rpc<Q, M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q, M> fmt::Debug for Rpc<Q, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rpc")
    }
}

impl<Q, M> Default for Rpc<Q, M> {
    fn default() -> Self {
        let (queue, calls) = unbounded_channel();
        let calls = tokio::sync::Mutex::new(calls);
        Self(Arc::new(Procedure {
            queue,
            calls,
            answer: Mutex::default(),
            kept: Mutex::default(),
            asked: Mutex::default(),
        }))
    }
}

impl<Q: Clone + Send + 'static, M: Send + 'static> Rpc<Q, M> {
    /// Waits for the next call that is not answered by itself.
    #[track_caller]
    pub fn called(&self) -> impl Future<Output = Call<Q, M>> + '_ {
        soon(async { self.0.calls.lock().await.recv().await.unwrap() })
    }

    /// Answers calls by itself from now on: with these messages, after which the stream stays open; an error ends it.
    pub fn answer(&self, answer: impl Fn(&Q) -> Vec<Result<M, Status>> + Send + Sync + 'static) {
        *self.0.answer.lock() = Some(Arc::new(answer));
    }

    /// Leaves calls to the case again.
    pub fn by_hand(&self) {
        *self.0.answer.lock() = None;
    }

    /// Sends a message on every stream that was answered by itself.
    pub fn tell(&self, message: &M)
    where
        M: Clone,
    {
        self.0.kept.lock().retain(|stream| stream.send(Ok(message.clone())).is_ok());
    }

    /// Ends every stream that was answered by itself.
    pub fn hang_up(&self) {
        self.0.kept.lock().clear();
    }

    /// All that was asked so far.
    pub fn asked(&self) -> Vec<Q> {
        self.0.asked.lock().clone()
    }

    /// What the server does: as servers in Go do, nothing is sent before the first message, headers neither.
    async fn serve(&self, request: Request<Q>) -> Result<Messages<M>, Status> {
        let token = request.metadata().get("l5d-context").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let request = request.into_inner();
        self.0.asked.lock().push(request.clone());
        let (sender, mut receiver) = unbounded_channel();
        let answer = self.0.answer.lock().clone();
        match answer {
            Some(answer) => {
                for message in answer(&request) {
                    let _ = sender.send(message);
                }
                self.0.kept.lock().push(sender);
            }
            None => {
                let _ = self.0.queue.send(Call { request, token, messages: sender });
            }
        }
        match receiver.recv().await {
            Some(Err(status)) => Err(status),
            None => Ok(Box::pin(stream::empty())),
            Some(Ok(first)) => {
                let rest = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
                Ok(Box::pin(stream::StreamExt::chain(stream::iter([Ok(first)]), rest)))
            }
        }
    }

    async fn serve_one(&self, request: Request<Q>) -> Result<Response<M>, Status> {
        let mut messages = self.serve(request).await?;
        let first = stream::StreamExt::next(&mut messages).await;
        first.unwrap_or_else(|| Err(Status::internal("no answer"))).map(Response::new)
    }
}

/// One call of the gateway. Dropping it ends its stream.
#[derive(Debug)]
pub struct Call<Q, M> {
    /// What was asked.
    pub request: Q,
    /// The context token among the metadata, where there is one.
    pub token: Option<String>,
    messages: UnboundedSender<Result<M, Status>>,
}

impl<Q, M> Call<Q, M> {
    /// Sends a message. The stream stays open.
    pub fn send(&self, message: M) {
        let _ = self.messages.send(Ok(message));
    }

    /// Ends the stream with this status.
    pub fn fail(self, status: Status) {
        let _ = self.messages.send(Err(status));
    }

    /// Waits until the gateway has given the stream up.
    pub async fn gone(&self) {
        soon(self.messages.closed()).await;
    }
}

/// The services, all of one process.
struct Desk {
    certify: Rpc<CertifyRequest, CertifyResponse>,
    get: Rpc<GetDestination, Update>,
    get_profile: Rpc<GetDestination, DestinationProfile>,
    watch_port: Rpc<PortSpec, Server>,
    watch_outbound: Rpc<TrafficSpec, OutboundPolicy>,
}

#[tonic::async_trait]
impl IdentityService for Desk {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        self.certify.serve_one(request).await
    }
}

#[tonic::async_trait]
impl Destination for Desk {
    type GetStream = Messages<Update>;
    type GetProfileStream = Messages<DestinationProfile>;

    async fn get(&self, request: Request<GetDestination>) -> Result<Response<Messages<Update>>, Status> {
        self.get.serve(request).await.map(Response::new)
    }

    async fn get_profile(
        &self,
        request: Request<GetDestination>,
    ) -> Result<Response<Messages<DestinationProfile>>, Status> {
        self.get_profile.serve(request).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl InboundServerPolicies for Desk {
    type WatchPortStream = Messages<Server>;

    async fn get_port(&self, request: Request<PortSpec>) -> Result<Response<Server>, Status> {
        self.watch_port.serve_one(request).await
    }

    async fn watch_port(&self, request: Request<PortSpec>) -> Result<Response<Messages<Server>>, Status> {
        self.watch_port.serve(request).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl OutboundPolicies for Desk {
    type WatchStream = Messages<OutboundPolicy>;

    async fn get(&self, request: Request<TrafficSpec>) -> Result<Response<OutboundPolicy>, Status> {
        self.watch_outbound.serve_one(request).await
    }

    async fn watch(&self, request: Request<TrafficSpec>) -> Result<Response<Messages<OutboundPolicy>>, Status> {
        self.watch_outbound.serve(request).await.map(Response::new)
    }
}

/// Signs what a gateway asks for, as the identity controller does, for `lifetime`.
pub fn issue(issuer: &Authority, request: &CertifyRequest, lifetime: Duration) -> CertifyResponse {
    let validity = Validity::from_now(SystemTime::now(), lifetime);
    let leaf = mint::sign_request(issuer, &request.certificate_signing_request, validity, Usage::Both).unwrap();
    CertifyResponse {
        leaf_certificate: leaf.der.to_vec(),
        intermediate_certificates: vec![issuer.der().to_vec()],
        valid_until: Some(validity.not_after.into()),
    }
}

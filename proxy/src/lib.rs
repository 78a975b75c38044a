//! Isthmus, a multicluster gateway: the one door through which services in other clusters reach this one's.
//!
//! The life of a connection is one sentence, and each word is a room:
//! **accept → tls → detect → authorise → route → balance → connect → relay.**
//!
//! A peer in another cluster connects to the gateway port. The acceptor ([`gateway::accept`]) takes the socket, once there is
//! a permit for it, and hands it to the least loaded worker: a thread with a runtime of its own, which serves the
//! connection to its end. There `gateway/connection.rs` reads like the sentence. [`tls`] shakes hands, or closes without a byte
//! what is not meant for us, and says who the peer is: a name in a certificate that the trust anchors vouch for. [`detect`]
//! finds out what is spoken and whether the session already names its service: by a transport header, by SNI, or, as HTTP
//! does, in each request.
//!
//! From here on the words are said once for a connection of bytes (`gateway/tcp.rs`) and once per request for HTTP
//! (`gateway/http/request.rs`). [`authorise`] asks the policy whether this client may reach this service, and answers with
//! an [`Admitted`](authorise::Admitted) target, without which [`route`] does nothing; that turns it into a
//! service whose endpoints some source keeps current. [`balance`] picks the cheaper of two endpoints, [`connect`] opens a
//! connection to it or takes one from the pool, and [`relay`] moves the bytes until both sides are done.
//!
//! What happened is written into one [`record`] per connection and per request, closed once and handed to observers on the
//! side. What is refused anywhere ends up in one table, `gateway/refuse.rs`, which knows what the peer is told.
//!
//! # The rooms
//!
//! Floor by floor; a room names itself and what is below it, never what is beside it or above.
//! `tests/floors.rs` holds them to it.
//!
//! | floor | room | what it is for |
//! |---|---|---|
//! | 7 | `main.rs` | the switch: words of the command line in, exit code out |
//! | 6 | [`commands`] | a person's doors, one file a subcommand |
//! | 5 | [`app`] | builds everything, starts it, drains it; `run`, `demo` and the tests begin here |
//! | 4 | [`config`] | the operator's words, checked, as each room's own settings |
//! | 3 | [`gateway`] | leads each connection through the stages |
//! | 3 | [`admin`] | shows the process to its operator |
//! | 3 | [`telemetry`] | counts and logs what happened |
//! | 3 | [`sources`] | learn where services are, and keep what they learned current |
//! | 2 | [`tls`] | the handshake, and whom to trust |
//! | 2 | [`detect`] | what a session speaks and what it names |
//! | 2 | [`authorise`] | who may reach what, and how much of it |
//! | 2 | [`route`] | names to services |
//! | 2 | [`balance`] | services to endpoints |
//! | 2 | [`connect`] | endpoints to connections |
//! | 2 | [`relay`] | bytes both ways |
//! | 1 | [`wire`] | bytes to values and back, without IO or clock |
//! | 0 | [`addr`] [`endpoint`] [`identity`] | names, addresses, and who is who |
//! | 0 | [`fault`] [`record`] | whose fault, and what happened |
//! | 0 | [`backoff`] [`drain`] [`live`] [`mix`] [`rewind`] | waiting, ending, replacing, hashing, giving bytes back |

// Floor 0: plain words.
pub mod addr;
pub mod backoff;
pub mod drain;
pub mod endpoint;
pub mod fault;
pub mod identity;
pub mod live;
pub mod mix;
pub mod record;
pub mod rewind;

// Floor 1: bytes <-> values.
pub mod wire;

// Floor 2: the stages, strangers to one another.
pub mod authorise;
pub mod balance;
pub mod connect;
pub mod detect;
pub mod relay;
pub mod route;
pub mod tls;

// Floor 3: conduct, show, count, keep fresh.
pub mod admin;
pub mod gateway;
pub mod sources;
pub mod telemetry;

// Floors 4 to 6: the operator's words, the assembly, a person's doors.
pub mod app;
pub mod commands;
pub mod config;

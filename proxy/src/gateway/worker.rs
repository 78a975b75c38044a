//! A worker: one thread, one single-threaded runtime, its own pools, balancers and metric shard.
//!
//! **In** sockets from the acceptor. **Out** nothing; it ends when the drain has ended. A request never leaves its worker,
//! so nothing on the data path is locked or shared but snapshots. A panic that is not a connection's own would end the
//! thread: it is caught, counted, and the worker starts again with fresh pools.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::accept::Accepted;
use super::{Gateway, Shared, connection};
use crate::drain::Phase;
use crate::record::{Event, Observer};

/// Makes a worker's own observer, on the worker's thread.
pub type MakeObserver = Arc<dyn Fn(usize) -> Rc<dyn Observer> + Send + Sync>;

/// Starts a worker thread.
pub fn spawn(
    index: usize,
    shared: Shared,
    sockets: mpsc::UnboundedReceiver<Accepted>,
    observer: MakeObserver,
) -> io::Result<std::thread::JoinHandle<()>> {
    let sockets = Mutex::new(sockets);
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        loop {
            let run = AssertUnwindSafe(|| run(&shared, &mut sockets.lock(), observer(index), &tell));
            if catch_unwind(run).is_ok() {
                return;
            }
            observer(index).event(Event::Panicked);
            tracing::error!(worker = index, "a worker panicked and starts again");
        }
    })?;
    // A worker without a runtime would be the least loaded of all, and get every connection.
    told.recv().map_err(|_| io::Error::other("a worker ended before it began"))??;
    Ok(thread)
}

fn run(
    shared: &Shared,
    sockets: &mut mpsc::UnboundedReceiver<Accepted>,
    observer: Rc<dyn Observer>,
    tell: &std::sync::mpsc::Sender<io::Result<()>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(error = %error, "a worker's runtime cannot start");
            let _ = tell.send(Err(error)); // nobody listens when the worker starts again
            return;
        }
    };
    let _ = tell.send(Ok(()));
    runtime.block_on(serve(shared, sockets, observer));
}

async fn serve(shared: &Shared, sockets: &mut mpsc::UnboundedReceiver<Accepted>, observer: Rc<dyn Observer>) {
    let gateway = Gateway::new(shared, observer);
    let mut drain = shared.drain.clone();
    loop {
        tokio::select! {
            biased;
            accepted = sockets.recv() => match accepted {
                Some(accepted) => drop(tokio::task::spawn_local(connection::serve(Rc::clone(&gateway), accepted))),
                // The acceptor has ended; the connections that live on end by themselves or by the cut.
                None => break,
            },
            () = drain.reached(Phase::Cut) => break,
        }
    }
    drain.reached(Phase::Cut).await;
    // One more turn, so that connections see the cut and close their records.
    tokio::time::sleep(LAST_TURN).await;
}

/// How long cut connections get to close their records before the runtime drops them.
const LAST_TURN: std::time::Duration = std::time::Duration::from_millis(50);

//! A worker: one thread, one single-threaded runtime, its own pools, balancers and metric shard.
//!
//! **In** sockets from the acceptor. **Out** nothing; it ends when the drain has ended. A request never leaves its worker,
//! so nothing on the data path is locked or shared but snapshots. A panic that is not a connection's own would end the
//! thread, or leave it without its housekeeping: it is caught, counted, and the worker starts again with fresh pools.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::runtime::RuntimeMetrics;
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use super::accept::Accepted;
use super::{Gateway, Shared, connection};
use crate::drain::Phase;
use crate::record::{Event, Observer};

/// Makes a worker's own observer, on the worker's thread.
pub type MakeObserver = Arc<dyn Fn(usize) -> Rc<dyn Observer> + Send + Sync>;

/// The workers' runtimes, for who counts their tasks.
#[derive(Debug, Default)]
pub struct Runtimes(Mutex<BTreeMap<usize, RuntimeMetrics>>);

impl Runtimes {
    /// How many tasks live on each worker.
    pub fn tasks(&self) -> Vec<(usize, usize)> {
        self.0.lock().iter().map(|(worker, runtime)| (*worker, runtime.num_alive_tasks())).collect()
    }
}

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
            let run = AssertUnwindSafe(|| run(index, &shared, &mut sockets.lock(), observer(index), &tell));
            if catch_unwind(run).is_ok() {
                return;
            }
            // Making the observer may be what panics.
            let _ = catch_unwind(AssertUnwindSafe(|| observer(index).event(Event::Panicked)));
            tracing::error!(worker = index, "a worker panicked: its connections are lost, and it starts again");
            std::thread::park_timeout(REST);
        }
    })?;
    // A worker without a runtime would be the least loaded of all, and get every connection.
    told.recv().map_err(|_| io::Error::other("a worker ended before it began"))??;
    Ok(thread)
}

/// How long a worker that panicked rests, so that one that always does so leaves the processor to the others.
const REST: Duration = Duration::from_millis(100);

fn run(
    index: usize,
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
    shared.runtimes.0.lock().insert(index, runtime.handle().metrics());
    let _ = tell.send(Ok(()));
    runtime.block_on(serve(shared, sockets, observer));
}

async fn serve(shared: &Shared, sockets: &mut mpsc::UnboundedReceiver<Accepted>, observer: Rc<dyn Observer>) {
    let (gateway, tending) = Gateway::new(shared, observer);
    let mut tending = tending.fuse();
    let mut drain = shared.drain.clone();
    loop {
        tokio::select! {
            biased;
            // Without it the pool would go on using connections that are trusted no longer.
            Err(panicked) = &mut tending => restart(panicked),
            accepted = sockets.recv() => match accepted {
                Some(accepted) => beside(&gateway.observer, connection::serve(Rc::clone(&gateway), accepted)),
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

/// Takes the worker down with a task that it cannot do without.
fn restart(panicked: tokio::task::JoinError) {
    if let Ok(panicked) = panicked.try_into_panic() {
        resume_unwind(panicked);
    }
}

/// Runs what belongs to a connection beside it. A panic there is that task's alone, and counted.
pub(super) fn beside(observer: &Rc<dyn Observer>, future: impl Future + 'static) {
    let observer = Rc::clone(observer);
    spawn_local(async move {
        if AssertUnwindSafe(future).catch_unwind().await.is_err() {
            observer.event(Event::Panicked);
        }
    });
}

/// How long cut connections get to close their records before the runtime drops them.
const LAST_TURN: Duration = Duration::from_millis(50);

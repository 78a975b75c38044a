//! Chains of live connections, judged again: one at a time, off the data path, each chain once.
//!
//! **In** a chain, whose it is, and the credentials of now. **Out** the verdict of the very check that handshakes make.
//!
//! When the roots change, all connections ask at once. They take turns for the whole process, so that the checks never use
//! more than one core; and connections that show the same chain (a proxy has many connections and one certificate) share
//! one verdict.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::identity::Identity;
use crate::live::Live;
use crate::tls::verify::{self, Reason};
use crate::tls::{Chain, Credentials};

/// The most verdicts that are remembered; each costs a pointer to a chain that a connection holds anyway.
const MAX_REMEMBERED: usize = 16 * 1024;

/// The turns and the verdicts of the process.
#[derive(Debug)]
pub struct Rechecks {
    turn: Semaphore,
    remembered: Mutex<Remembered>,
}

#[derive(Debug, Default)]
struct Remembered {
    /// The credentials that the verdicts were made with.
    by: Option<Arc<Credentials>>,
    verdicts: HashMap<Question, (SystemTime, Result<(), Reason>)>,
}

/// A chain, and the side that showed it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Question {
    pub(super) chain: Chain,
    /// Whom the chain must name, where it is an upstream's.
    pub(super) upstream: Option<Identity>,
}

impl Default for Rechecks {
    fn default() -> Self {
        Self { turn: Semaphore::new(1), remembered: Mutex::default() }
    }
}

impl Rechecks {
    /// Judges a chain as of `at`, by the newest credentials. A verdict of another connection counts when it was made as of
    /// `since` or later; without `since` none does, and this one will not count for others.
    pub(super) async fn ask(
        &self,
        question: &Question,
        credentials: &Live<Credentials>,
        at: SystemTime,
        since: Option<SystemTime>,
    ) -> Result<(), Reason> {
        // The semaphore lives as long as we do and is never closed.
        let Ok(_turn) = self.turn.acquire().await else { return Ok(()) };
        let credentials = credentials.load_full();
        if let Some(since) = since
            && let Some(verdict) = self.remembered(question, &credentials, since)
        {
            return verdict;
        }
        let asked = (question.clone(), Arc::clone(&credentials));
        let judged = tokio::task::spawn_blocking(move || {
            let (question, credentials) = asked;
            match &question.upstream {
                None => verify::recheck(&credentials, &question.chain, at),
                Some(expected) => verify::recheck_upstream(&credentials, &question.chain, expected, at),
            }
        });
        // No verdict: the process is ending.
        let Ok(verdict) = judged.await else { return Ok(()) };
        if since.is_none() {
            return verdict;
        }
        let mut remembered = self.remembered.lock();
        if remembered.verdicts.len() >= MAX_REMEMBERED {
            remembered.verdicts.clear();
        }
        remembered.verdicts.insert(question.clone(), (at, verdict.clone()));
        verdict
    }

    fn remembered(
        &self,
        question: &Question,
        credentials: &Arc<Credentials>,
        since: SystemTime,
    ) -> Option<Result<(), Reason>> {
        let mut remembered = self.remembered.lock();
        if !remembered.by.as_ref().is_some_and(|by| Arc::ptr_eq(by, credentials)) {
            *remembered = Remembered { by: Some(Arc::clone(credentials)), verdicts: HashMap::new() };
        }
        let (at, verdict) = remembered.verdicts.get(question)?;
        (*at >= since).then(|| verdict.clone())
    }
}

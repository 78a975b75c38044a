//! The other clients: what they ask, how long it takes them in quiet and under attack, and that all of it is answered.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use isthmus_tests::peer::Peer;
use isthmus_tests::world::World;
use tokio::time::Instant;

/// For how long they ask, in quiet and under attack. The attack lasts longer where its own first round does, or where they
/// have not asked so often yet.
const ASKED_FOR: Duration = Duration::from_millis(700);
const LEAST_ASKED: usize = 20;
/// Who cannot ask so often in this time is held up.
const AT_MOST: Duration = Duration::from_secs(10);

/// How many times slower their slowest hundredth may be, and what never counts as slow. Both are generous: the machine may be
/// small and busy, and what they are to show is whether an attacker can hold others up, which takes seconds.
const SLOWER: u32 = 10;
const NEVER_SLOW: Duration = Duration::from_millis(400);

/// How often a comparison is made anew before it is believed. What failed is believed at once.
const ATTEMPTS: usize = 4;

/// What they saw.
#[derive(Default)]
pub(crate) struct Seen {
    asked: usize,
    failed: Vec<String>,
    took: Vec<Duration>,
}

impl Seen {
    fn p99(&self) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        took.get(took.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default()
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} served, p99 {:.1} ms",
            self.asked - self.failed.len(),
            self.asked,
            self.p99().as_secs_f64() * 1e3
        )
    }
}

/// Asks until told to stop: on one HTTP/2 connection, on one of HTTP/1, and on a new connection each time.
async fn ask(shop: Peer, stop: Arc<AtomicBool>, asked: Arc<AtomicUsize>) -> Seen {
    let mut seen = Seen::default();
    let h2 = shop.h2().await;
    let mut h1 = shop.h1().await;
    let mut round = 0u32;
    while !stop.load(Ordering::Relaxed) {
        for way in ["HTTP/2", "HTTP/1", "a new connection"] {
            if way == "a new connection" && !round.is_multiple_of(8) {
                continue;
            }
            let began = Instant::now();
            let status = match way {
                "HTTP/2" => h2.get("web", "/").await.status,
                "HTTP/1" => h1.get("web", "/").await.status(),
                _ => shop.h1().await.get("web", "/").await.status(),
            };
            seen.asked += 1;
            asked.store(seen.asked, Ordering::Relaxed);
            seen.took.push(began.elapsed());
            if status != 200 {
                seen.failed.push(format!("{way}: {status}"));
            }
        }
        round += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    seen
}

/// Asks on a thread of their own for as long as `meanwhile` lasts, which nothing that they do slows down.
async fn while_it_lasts(world: &World, meanwhile: impl AsyncFnOnce(Arc<AtomicUsize>)) -> Seen {
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (shop, stopped, counted) = (world.shop(), Arc::clone(&stop), Arc::clone(&asked));
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(ask(shop, stopped, counted))
    });
    meanwhile(asked).await;
    stop.store(true, Ordering::Relaxed);
    tokio::task::spawn_blocking(move || thread.join()).await.unwrap().expect("a request of the other clients hung")
}

/// Attacks with so many at once, again and again, and holds what the others see against what they saw before.
pub(crate) async fn are_served<F, Fut>(world: &World, name: &str, attackers: usize, attack: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = ()>,
{
    for attempt in 1..=ATTEMPTS {
        let enough = |asked: &AtomicUsize, began: Instant| {
            let passed = began.elapsed();
            passed >= ASKED_FOR && (asked.load(Ordering::Relaxed) >= LEAST_ASKED || passed >= AT_MOST)
        };
        let began = Instant::now();
        let quiet = while_it_lasts(world, async |asked| {
            while !enough(&asked, began) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        let began = Instant::now();
        let rounds = std::cell::Cell::new(0);
        let attacked = while_it_lasts(world, async |asked| {
            let again = || async {
                while rounds.get() < attackers || !enough(&asked, began) {
                    attack().await;
                    rounds.set(rounds.get() + 1);
                }
            };
            let mut at_once = Vec::new();
            at_once.resize_with(attackers, &again);
            join_all(at_once).await;
        })
        .await;
        let ratio = attacked.p99().as_secs_f64() / quiet.p99().as_secs_f64().max(1e-6);
        println!("{name}: quiet {quiet}; under attack ({} rounds) {attacked}; {ratio:.1} times", rounds.get());
        assert!(quiet.failed.is_empty() && attacked.failed.is_empty(), "{name}: {:?}", attacked.failed);
        assert!(quiet.asked >= LEAST_ASKED && attacked.asked >= LEAST_ASKED, "{name}: too few to tell");
        if attacked.p99() <= (quiet.p99() * SLOWER).max(NEVER_SLOW) {
            return;
        }
        assert!(attempt < ATTEMPTS, "{name}: quiet {quiet}; under attack {attacked}");
    }
}

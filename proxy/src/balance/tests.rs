use std::collections::HashMap;
use std::future::pending;

use proptest::prelude::*;

use super::*;

fn settings() -> Settings {
    Settings {
        ejection: Backoff { min: Duration::from_secs(1), max: Duration::from_secs(60), jitter: 0.0 },
        ..Settings::default()
    }
}

fn balancer(settings: Settings) -> Balancer {
    let target = Target::parse("web.ns.svc.cluster.local", 80).expect("a target");
    Balancer::new(target, settings, Arc::default())
}

fn addr(n: usize) -> SocketAddr {
    ([10, 0, 0, u8::try_from(n).expect("small")], 80).into()
}

fn endpoint(n: usize, weight: u32, zone: Option<&str>) -> Endpoint {
    Endpoint { weight, zone: zone.map(Arc::from), ..Endpoint::new(addr(n)) }
}

fn weighted(weights: &[u32]) -> Arc<Endpoints> {
    let list = weights.iter().enumerate().map(|(n, &weight)| endpoint(n, weight, None)).collect();
    Arc::new(Endpoints { list })
}

fn serve(pick: Pick) -> SocketAddr {
    pick.guard.first_byte();
    pick.guard.succeeded();
    pick.endpoint.addr
}

/// Fails every pick of `bad` until it is ejected.
fn eject(balancer: &Balancer, endpoints: &Arc<Endpoints>, bad: SocketAddr, failure: Failure) {
    // Its penalties would keep it from being picked, so its siblings are avoided.
    let avoid: Vec<_> = endpoints.list.iter().map(|endpoint| endpoint.addr).filter(|addr| *addr != bad).collect();
    for _ in 0..100 {
        let pick = balancer.pick(endpoints, &avoid).expect("an endpoint");
        if pick.endpoint.addr != bad {
            serve(pick);
        } else if pick.guard.failed(failure) {
            return;
        }
    }
    panic!("never ejected");
}

fn shares(balancer: &Balancer, endpoints: &Arc<Endpoints>, picks: usize) -> HashMap<SocketAddr, f64> {
    let mut shares = HashMap::new();
    for _ in 0..picks {
        *shares.entry(serve(balancer.pick(endpoints, &[]).expect("an endpoint"))).or_insert(0.0) += 1.0 / picks as f64;
    }
    shares
}

fn share(shares: &HashMap<SocketAddr, f64>, n: usize) -> f64 {
    shares.get(&addr(n)).copied().unwrap_or(0.0)
}

#[tokio::test(start_paused = true)]
async fn nothing_to_choose_from() {
    let balancer = balancer(settings());
    assert_eq!(balancer.pick(&weighted(&[]), &[]).map(drop), Err(Error::NoEndpoint));
    assert_eq!(balancer.pick(&weighted(&[0, 0]), &[]).map(drop), Err(Error::NoEndpoint));
}

#[tokio::test(start_paused = true)]
async fn equal_endpoints_get_equal_shares() {
    let shares = shares(&balancer(settings()), &weighted(&[1, 1, 1, 1]), 20_000);
    for n in 0..4 {
        assert!((share(&shares, n) - 0.25).abs() < 0.02, "{shares:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn weights_are_kept_without_load_and_under_load() {
    let endpoints = weighted(&[1, 3, 0, 4]);
    let want = [0.125, 0.375, 0.0, 0.5];
    let idle = shares(&balancer(settings()), &endpoints, 20_000);
    for (n, want) in want.iter().enumerate() {
        assert!((share(&idle, n) - want).abs() < 0.02, "idle: {idle:?}");
    }
    // All picks pending at once: what is held must be in proportion.
    let busy = balancer(settings());
    let held: Vec<_> = (0..4000).map(|_| busy.pick(&endpoints, &[]).expect("an endpoint")).collect();
    for (n, want) in want.iter().enumerate() {
        let count = held.iter().filter(|pick| pick.endpoint.addr == addr(n)).count();
        assert!((count as f64 / 4000.0 - want).abs() < 0.05, "held by {n}: {count}");
    }
}

#[tokio::test(start_paused = true)]
async fn pending_requests_turn_the_choice() {
    let balancer = balancer(settings());
    let endpoints = weighted(&[1, 1]);
    let held: Vec<_> = (0..100).map(|_| balancer.pick(&endpoints, &[]).expect("an endpoint")).collect();
    let first = held.iter().filter(|pick| pick.endpoint.addr == addr(0)).count();
    assert_eq!(first, 50, "with two endpoints p2c is exact");
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_gets_little_until_it_is_forgotten() {
    let balancer = balancer(settings());
    let endpoints = weighted(&[1, 1]);
    for _ in 0..20 {
        let pick = balancer.pick(&endpoints, &[]).expect("an endpoint");
        let slow = pick.endpoint.addr == addr(0);
        tokio::time::advance(Duration::from_millis(if slow { 500 } else { 5 })).await;
        serve(pick);
    }
    let early = (0..50).filter(|_| serve(balancer.pick(&endpoints, &[]).expect("an endpoint")) == addr(0)).count();
    assert_eq!(early, 0);
    tokio::time::advance(Duration::from_secs(300)).await;
    let late = (0..50).filter(|_| serve(balancer.pick(&endpoints, &[]).expect("an endpoint")) == addr(0)).count();
    assert!(late > 5, "tried again: {late}");
}

#[tokio::test(start_paused = true)]
async fn what_failed_this_request_is_avoided_where_possible() {
    let balancer = balancer(settings());
    let endpoints = weighted(&[1, 1, 1, 1]);
    for _ in 0..200 {
        let pick = balancer.pick(&endpoints, &[addr(0), addr(1), addr(2)]).expect("an endpoint");
        assert_eq!(pick.endpoint.addr, addr(3));
    }
    assert!(balancer.pick(&endpoints, &[addr(0), addr(1), addr(2), addr(3)]).is_ok(), "better than nothing");
}

#[tokio::test(start_paused = true)]
async fn an_ejected_endpoint_stays_out_then_gets_one_trial() {
    let balancer = balancer(settings());
    let endpoints = weighted(&[1, 1, 1]);
    eject(&balancer, &endpoints, addr(0), Failure::Status5xx);
    assert!(share(&shares(&balancer, &endpoints, 1000), 0) == 0.0);

    tokio::time::advance(Duration::from_secs(1)).await;
    let trial = balancer.pick(&endpoints, &[]).expect("the trial");
    assert_eq!(trial.endpoint.addr, addr(0), "the first request after the ejection is the trial");
    assert!(share(&shares(&balancer, &endpoints, 1000), 0) == 0.0, "and the only one");
    assert!(trial.guard.failed(Failure::Status5xx), "ejected again at once");

    tokio::time::advance(Duration::from_millis(1900)).await;
    assert!(share(&shares(&balancer, &endpoints, 100), 0) == 0.0, "for twice as long");
    tokio::time::advance(Duration::from_millis(100)).await;
    drop(balancer.pick(&endpoints, &[]).expect("a trial that is abandoned"));
    let trial = balancer.pick(&endpoints, &[]).expect("the next one is the trial then");
    assert_eq!(serve(trial), addr(0));
    assert_eq!(serve(balancer.pick(&endpoints, &[addr(1), addr(2)]).expect("an endpoint")), addr(0), "back");
}

#[tokio::test(start_paused = true)]
async fn one_broken_connection_is_one_failure() {
    let balancer = balancer(settings());
    let endpoints = weighted(&[1]);
    let held: Vec<_> = (0..100).map(|_| balancer.pick(&endpoints, &[]).expect("an endpoint")).collect();
    assert!(held.iter().all(|pick| !pick.guard.failed(Failure::Connect)));
    let held: Vec<_> = (0..100).map(|_| balancer.pick(&endpoints, &[]).expect("an endpoint")).collect();
    assert!(held.iter().all(|pick| !pick.guard.failed(Failure::Reset)));
}

#[tokio::test(start_paused = true)]
async fn a_late_success_does_not_bring_back_what_was_ejected_since() {
    let balancer = balancer(settings());
    let endpoints = weighted(&[1, 1, 1]);
    let late = loop {
        let pick = balancer.pick(&endpoints, &[]).expect("an endpoint");
        if pick.endpoint.addr == addr(0) {
            break pick;
        }
        serve(pick);
    };
    // It is pending, hence dearer: hold the others too so that it is picked again.
    let _held: Vec<_> =
        (0..20).map(|_| balancer.pick(&endpoints, &[addr(0)])).collect::<Result<_, _>>().expect("endpoints");
    eject(&balancer, &endpoints, addr(0), Failure::Status5xx);
    late.guard.succeeded();
    assert!((0..1000).all(|_| balancer.pick(&endpoints, &[addr(1)]).is_ok_and(|pick| pick.endpoint.addr != addr(0))));
}

#[tokio::test(start_paused = true)]
async fn response_ejections_are_ignored_once_they_hit_too_many() {
    let balancer = balancer(settings());
    let endpoints = weighted(&[1, 1, 1, 1]);
    eject(&balancer, &endpoints, addr(0), Failure::Status5xx);
    eject(&balancer, &endpoints, addr(1), Failure::Status5xx);
    let half = shares(&balancer, &endpoints, 1000);
    assert!(share(&half, 0) + share(&half, 1) == 0.0, "half may be ejected");
    eject(&balancer, &endpoints, addr(2), Failure::Status5xx);
    // Their penalties fade with time; all four are then in the choice again.
    let seen: std::collections::HashSet<_> = (0..2000)
        .map(|_| balancer.pick(&endpoints, &[]).expect("an endpoint"))
        .collect::<Vec<_>>()
        .iter()
        .map(|pick| pick.endpoint.addr)
        .collect();
    assert_eq!(seen.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_single_endpoint_is_never_ejected_for_its_responses() {
    let balancer = balancer(settings());
    let endpoints = weighted(&[1]);
    for _ in 0..100 {
        balancer.pick(&endpoints, &[]).expect("always there").guard.failed(Failure::Status5xx);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_an_address_outlives_a_change_of_the_set() {
    let balancer = balancer(settings());
    let endpoints = weighted(&[1, 1, 1]);
    eject(&balancer, &endpoints, addr(0), Failure::Connect);
    let more = weighted(&[1, 1, 1, 1]);
    assert!(share(&shares(&balancer, &more, 1000), 0) == 0.0);
    let fewer = weighted(&[1, 0]);
    assert_eq!(balancer.pick(&fewer, &[]).map(drop), Err(Error::AllEjected), "out, and its sibling is drained");
}

#[tokio::test(start_paused = true)]
async fn the_own_zone_is_kept_to_while_enough_of_it_is_ready() {
    let balancer = balancer(Settings { zone: Zone::known("a"), ..settings() });
    let list = (0..6).map(|n| endpoint(n, 1, Some(if n < 3 { "a" } else { "b" }))).collect();
    let endpoints = Arc::new(Endpoints { list });
    let near = shares(&balancer, &endpoints, 1000);
    assert!((0..3).map(|n| share(&near, n)).sum::<f64>() > 0.999);
    eject(&balancer, &endpoints, addr(0), Failure::Connect);
    let far = shares(&balancer, &endpoints, 1000);
    assert!((3..6).map(|n| share(&far, n)).sum::<f64>() > 0.3, "two of three are fewer than 70 %: {far:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_source_calls_near_is_kept_to_without_a_zone_of_that_name() {
    let balancer = balancer(settings());
    let near = |n| n < 3;
    let list = (0..6).map(|n| Endpoint { near: near(n), ..endpoint(n, 1, None) }).collect();
    let endpoints = Arc::new(Endpoints { list });
    let shares = shares(&balancer, &endpoints, 1000);
    assert!((0..3).map(|n| share(&shares, n)).sum::<f64>() > 0.999, "{shares:?}");
}

#[tokio::test(start_paused = true)]
async fn waits_for_an_endpoint_then_fails_fast_then_recovers() {
    let balancer = balancer(settings());
    let (none, some) = (weighted(&[]), weighted(&[1]));
    let wait = |endpoints: &Arc<Endpoints>| {
        let (balancer, endpoints) = (balancer.clone(), Arc::clone(endpoints));
        async move { balancer.acquire(|| Some(Arc::clone(&endpoints)), pending::<()>, &[]).await.map(drop) }
    };
    let start = Instant::now();
    let (one, two) = tokio::join!(wait(&none), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        wait(&none).await
    });
    assert_eq!((one, two), (Err(Error::FailFastWait), Err(Error::FailFastWait)));
    assert_eq!(start.elapsed(), Duration::from_secs(3), "all that wait give up together");
    assert_eq!(wait(&none).await, Err(Error::FailFast), "and who comes later is refused at once");
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    assert_eq!(wait(&some).await, Ok(()));
    assert!(!balancer.failing_fast());
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_served_when_endpoints_appear() {
    let balancer = balancer(settings());
    let current = RefCell::new(weighted(&[]));
    let changed = Notify::new();
    let waiting = balancer.acquire(|| Some(Arc::clone(&current.borrow())), || changed.notified(), &[]);
    let appearing = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        current.replace(weighted(&[1]));
        changed.notify_waiters();
    };
    let (pick, ()) = tokio::join!(waiting, appearing);
    assert_eq!(pick.expect("served").endpoint.addr, addr(0));
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_and_leaving_it_makes_room() {
    let balancer = balancer(Settings { queue: 1, ..settings() });
    let none = weighted(&[]);
    let acquire = || balancer.acquire(|| Some(Arc::clone(&none)), pending::<()>, &[]);
    {
        let mut first = Box::pin(acquire());
        tokio::select! {
            biased;
            _ = &mut first => panic!("nothing to serve it with"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(acquire().await.map(drop), Err(Error::QueueFull));
    }
    assert_eq!(acquire().await.map(drop), Err(Error::FailFastWait));
    assert_eq!(balancer.acquire(|| None, pending::<()>, &[]).await.map(drop), Err(Error::NoEndpoint));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_takes_no_connections_is_tried_every_second() {
    let balancer = balancer(settings());
    let endpoints = weighted(&[1]);
    eject(&balancer, &endpoints, addr(0), Failure::Connect);
    let mut trials = 0;
    for _ in 0..600 {
        tokio::time::advance(Duration::from_millis(100)).await;
        if let Ok(pick) = balancer.pick(&endpoints, &[]) {
            pick.guard.failed(Failure::Connect);
            trials += 1;
        }
    }
    assert!((50..=61).contains(&trials), "{trials} trials in a minute");
    // While one is on trial the others wait, and its connection serves them all.
    tokio::time::advance(Duration::from_secs(2)).await;
    let trial = balancer.pick(&endpoints, &[]).expect("the trial");
    let waiting = balancer.acquire(|| Some(Arc::clone(&endpoints)), pending::<()>, &[]);
    let (served, ()) = tokio::join!(waiting, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        trial.guard.connected();
    });
    assert!(served.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_registry_shows_and_forgets() {
    let registry = Arc::new(Registry::default());
    let target = Target::parse("web.ns.svc.cluster.local", 80).expect("a target");
    let one = Balancer::new(target.clone(), settings(), Arc::clone(&registry));
    let two = Balancer::new(target, settings(), Arc::clone(&registry));
    let endpoints = weighted(&[1, 2]);
    let held = one.pick(&endpoints, &[addr(1)]).expect("an endpoint");
    tokio::time::advance(Duration::from_millis(80)).await;
    held.guard.first_byte();
    eject(&two, &endpoints, addr(0), Failure::Connect);
    let loads = registry.snapshot();
    assert_eq!(loads.len(), 2);
    assert_eq!((loads[0].addr, loads[0].pending, loads[0].weight, loads[0].ejected_by), (addr(0), 1, 1, 1));
    assert_eq!(loads[0].ejected_for, Some(Duration::from_secs(1)));
    assert!(loads[0].failures >= 3 && loads[0].requests >= 4);
    assert_eq!(loads[1].weight, 2);
    drop((held, one, two));
    assert!(registry.snapshot().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever happens to the endpoints: while one lives, no ejected one is picked; and nothing panics or leaks.
    #[test]
    fn never_an_ejected_endpoint_while_another_lives(
        weights in proptest::collection::vec(0u32..4, 1..6),
        steps in proptest::collection::vec((0u8..6, 0u64..1500), 1..200),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(async {
            let balancer = balancer(settings());
            let endpoints = weighted(&weights);
            let mut held = Vec::new();
            for (what, millis) in steps {
                tokio::time::advance(Duration::from_millis(millis)).await;
                let phases = phases(&balancer);
                match balancer.pick(&endpoints, &[]) {
                    Err(error) => assert!(!phases.contains(&node::Phase::Live), "{error} with {phases:?}"),
                    Ok(pick) => {
                        assert!(pick.endpoint.weight > 0);
                        let live = phases.contains(&node::Phase::Live);
                        let now = pick.guard.node_phase();
                        let out = phases.iter().filter(|p| matches!(p, node::Phase::Ejected(_, node::Cause::Responses)
                            | node::Phase::OnTrial(node::Cause::Responses) | node::Phase::HalfOpen(node::Cause::Responses)));
                        let panicking = out.count() * 2 > weights.iter().filter(|w| **w > 0).count();
                        assert!(!live || panicking || !matches!(now, node::Phase::Ejected(..)), "{now:?} of {phases:?}");
                        match what {
                            0 => drop(pick),
                            1 => held.push(pick),
                            2 => { serve(pick); }
                            3 => { pick.guard.failed(Failure::Connect); }
                            4 => { pick.guard.failed(Failure::Status5xx); }
                            _ => { pick.guard.failed(Failure::Reset); held.clear(); }
                        }
                    }
                }
            }
            let pending: u32 = balancer.shared.registry.snapshot().iter().map(|load| load.pending).sum();
            assert_eq!(pending as usize, held.len());
        });
    }
}

fn phases(balancer: &Balancer) -> Vec<node::Phase> {
    balancer.shared.nodes.borrow().list.iter().filter(|node| node.weight() > 0).map(|node| node.phase.get()).collect()
}

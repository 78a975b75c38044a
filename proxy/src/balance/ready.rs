//! Who may be chosen now, and the choice.
//!
//! The set is rebuilt only when something in it changes: an endpoint comes, goes, is ejected, or its ejection ends.
//! Between two such moments a choice costs two random numbers and two reads of a load, whatever the number of endpoints.
//!
//! Endpoints of equal weight: two different ones by chance, the cheaper one wins. Endpoints of unequal weight: two drawn
//! by weight *with* replacement, the cheaper one wins. With replacement, because among two endpoints both would always be
//! drawn otherwise and the weights would say nothing; this way equal costs give shares exactly in proportion.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::time::Instant;

use super::Settings;
use super::load::Clock;
use super::node::{Cause, Node, Phase};

/// A small generator (xorshift64*, Vigna 2016): picks need speed and spread, not secrecy.
#[derive(Debug)]
pub(super) struct Chance(Cell<u64>);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(Cell::new(seed | 1)) // zero would stay zero
    }

    fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `bound`, which is not 0. (Lemire's multiplication; the bias is under 2^-32 for our bounds.)
    pub(super) fn below(&self, bound: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    fn index(&self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }
}

/// The ready set: indices into the balancer's list.
#[derive(Debug, Default)]
pub(super) struct Ready {
    /// Who is chosen from.
    chosen: Vec<usize>,
    /// All that are ready, where `chosen` is the own zone only.
    all: Vec<usize>,
    /// Running sums of the weights of `chosen`; empty where all weights are equal.
    sums: Vec<u64>,
    /// Half open: the next request is theirs.
    trials: Vec<usize>,
    /// How many have a weight, ready or not.
    eligible: usize,
    /// When the earliest ejection ends.
    expires: Option<Instant>,
    /// The own zone was known when the set was built.
    zoned: bool,
}

impl Ready {
    /// How many endpoints could be chosen if all of them were well.
    pub(super) fn eligible(&self) -> usize {
        self.eligible
    }

    /// Whether an ejection has ended since the set was built.
    pub(super) fn expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }

    /// Whether the own zone has become known since the set was built.
    pub(super) fn overtaken(&self, settings: &Settings) -> bool {
        !self.zoned && settings.zone.get().is_some()
    }

    /// When the set changes by time alone.
    pub(super) fn expires(&self) -> Option<Instant> {
        self.expires
    }

    #[cold]
    pub(super) fn rebuild(&mut self, list: &[Rc<Node>], settings: &Settings, now: Instant) {
        self.all.clear();
        self.trials.clear();
        self.expires = None;
        self.eligible = list.iter().filter(|node| node.weight() > 0).count();
        let ignored = self.panics(list, settings);
        for (index, node) in list.iter().enumerate().filter(|(_, node)| node.weight() > 0) {
            if let Phase::Ejected(until, cause) = node.phase.get()
                && until <= now
            {
                node.phase.set(Phase::HalfOpen(cause));
                node.entry.ejected_until.set(0);
            }
            match node.phase.get() {
                Phase::Live => self.all.push(index),
                Phase::Ejected(_, Cause::Responses) | Phase::OnTrial(Cause::Responses) if ignored => {
                    self.all.push(index);
                }
                Phase::Ejected(until, _) => self.expires = Some(self.expires.map_or(until, |at| at.min(until))),
                Phase::HalfOpen(_) => self.trials.push(index),
                Phase::OnTrial(_) => {}
            }
        }
        self.rescue(list, now, settings);
        self.choose_zone(list, settings);
        self.sum_weights(list);
    }

    /// Whether so many are ejected for their responses that ejecting does more harm than good.
    fn panics(&self, list: &[Rc<Node>], settings: &Settings) -> bool {
        let by_responses = |node: &Rc<Node>| {
            matches!(
                node.phase.get(),
                Phase::Ejected(_, Cause::Responses)
                    | Phase::HalfOpen(Cause::Responses)
                    | Phase::OnTrial(Cause::Responses)
            )
        };
        let out = list.iter().filter(|node| node.weight() > 0 && by_responses(node)).count();
        out as f64 > self.eligible as f64 * settings.max_ejected.clamp(0.0, 1.0)
    }

    /// Where nobody is ready and nobody on trial, the long waits of the ejected serve nobody: within the shortest wait
    /// the one that is due first is given its trial.
    fn rescue(&mut self, list: &[Rc<Node>], now: Instant, settings: &Settings) {
        let busy = list.iter().any(|node| matches!(node.phase.get(), Phase::OnTrial(_)));
        if !self.all.is_empty() || !self.trials.is_empty() || busy {
            return;
        }
        let latest = now + settings.ejection.min;
        let due = |node: &Rc<Node>| match node.phase.get() {
            Phase::Ejected(until, cause) if node.weight() > 0 => Some((until, cause)),
            _ => None,
        };
        let first = list.iter().filter_map(|node| due(node).map(|(until, cause)| (until, cause, node)));
        if let Some((until, cause, node)) = first.min_by_key(|(until, ..)| *until)
            && until > latest
        {
            node.phase.set(Phase::Ejected(latest, cause));
            node.entry.show_ejected(latest);
            self.expires = Some(latest);
        }
    }

    fn choose_zone(&mut self, list: &[Rc<Node>], settings: &Settings) {
        self.chosen.clear();
        let zone = settings.zone.get().map(|zone| &**zone);
        self.zoned = zone.is_some();
        let near = |node: &Rc<Node>| node.is_near() || zone.is_some_and(|zone| node.is_in(zone));
        let total = list.iter().filter(|node| node.weight() > 0 && near(node)).count();
        if total > 0 {
            self.chosen.extend(self.all.iter().copied().filter(|&index| near(&list[index])));
            let ready = self.chosen.len();
            let enough = ready >= settings.zone_min_endpoints.max(1)
                && ready as f64 >= total as f64 * settings.zone_min_ready.clamp(0.0, 1.0);
            if enough {
                return;
            }
            self.chosen.clear();
        }
        self.chosen.extend_from_slice(&self.all);
    }

    fn sum_weights(&mut self, list: &[Rc<Node>]) {
        self.sums.clear();
        let Some(&first) = self.chosen.first() else { return };
        let weight = list[first].weight();
        if self.chosen.iter().all(|&index| list[index].weight() == weight) {
            return;
        }
        let mut sum = 0;
        for &index in &self.chosen {
            sum += u64::from(list[index].weight());
            self.sums.push(sum);
        }
    }

    /// The endpoint for the next request, if any is ready. Those in `avoid` only where nothing else is.
    pub(super) fn choose<'a>(
        &mut self,
        list: &'a [Rc<Node>],
        chance: &Chance,
        avoid: &[SocketAddr],
        clock: &Clock,
        now: Instant,
    ) -> Option<&'a Rc<Node>> {
        if !self.trials.is_empty()
            && let Some(node) = self.try_one(list, avoid)
        {
            return Some(node);
        }
        if self.chosen.is_empty() {
            return None;
        }
        let (one, two) = self.draw(chance);
        let (one, two) = (&list[self.chosen[one]], &list[self.chosen[two]]);
        if !avoid.is_empty() {
            let usable = |node: &Rc<Node>| !avoid.contains(&node.addr());
            return match (usable(one), usable(two)) {
                (true, true) => Some(self.cheaper(one, two, chance, clock, now)),
                (true, false) => Some(one),
                (false, true) => Some(two),
                (false, false) => self.other(list, usable, chance).or(Some(one)),
            };
        }
        Some(self.cheaper(one, two, chance, clock, now))
    }

    /// Gives the request to one that waits for its trial.
    fn try_one<'a>(&mut self, list: &'a [Rc<Node>], avoid: &[SocketAddr]) -> Option<&'a Rc<Node>> {
        let alone = self.all.is_empty();
        let at = self.trials.iter().position(|&index| alone || !avoid.contains(&list[index].addr()))?;
        let node = &list[self.trials.swap_remove(at)];
        if let Phase::HalfOpen(cause) = node.phase.get() {
            node.phase.set(Phase::OnTrial(cause));
        }
        Some(node)
    }

    /// Two positions in `chosen`: different ones where weights are equal.
    fn draw(&self, chance: &Chance) -> (usize, usize) {
        let len = self.chosen.len();
        if let Some(&total) = self.sums.last() {
            let by_weight = || {
                let at = chance.below(total);
                self.sums.partition_point(|&sum| sum <= at).min(len - 1)
            };
            return (by_weight(), by_weight());
        }
        if len == 1 {
            return (0, 0);
        }
        let one = chance.index(len);
        let two = chance.index(len - 1);
        (one, if two >= one { two + 1 } else { two })
    }

    fn cheaper<'a>(
        &self,
        one: &'a Rc<Node>,
        two: &'a Rc<Node>,
        chance: &Chance,
        clock: &Clock,
        now: Instant,
    ) -> &'a Rc<Node> {
        if Rc::ptr_eq(one, two) {
            return one;
        }
        let share = |node: &Rc<Node>| match self.sums.last() {
            Some(&total) => f64::from(node.weight()) * self.chosen.len() as f64 / total as f64,
            None => 1.0,
        };
        let costs = (one.cost(clock, share(one), now), two.cost(clock, share(two), now));
        if costs.0 < costs.1 {
            one
        } else if costs.1 < costs.0 || chance.below(2) == 0 {
            two
        } else {
            one
        }
    }

    /// Any ready one that is usable, from a random place on: the rare case that both drawn ones are to be avoided.
    #[cold]
    fn other<'a>(
        &self,
        list: &'a [Rc<Node>],
        usable: impl Fn(&Rc<Node>) -> bool,
        chance: &Chance,
    ) -> Option<&'a Rc<Node>> {
        let from = chance.index(self.chosen.len());
        let near = self.chosen[from..].iter().chain(&self.chosen[..from]);
        // Beyond the own zone too: another zone is better than an endpoint that has just failed this request.
        near.chain(&self.all).map(|&index| &list[index]).find(|node| usable(node))
    }
}

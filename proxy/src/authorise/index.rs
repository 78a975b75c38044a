//! Which rules speak about a client and a service, without asking each.
//!
//! **In** patterns, numbered. **Out** for an identity or a target, the numbers of the patterns that hold, by one hash for
//! the exact ones and one walk down a trie of labels for those with wildcards; then, for each pair of them, the rules that
//! name both. The cost follows the length of the names and the number of patterns that do hold, not the number of rules.

use std::collections::HashMap;

use crate::addr::Target;
use crate::identity::Identity;
use crate::mix::Mixed;

use super::pattern::{ClientPattern, NamePattern, ServicePattern, Step, has_two_shapes, trust_domain_labels};

/// Numbers of patterns that hold. A handful, so they stand on the stack unless there are many.
#[derive(Debug, Default)]
pub(super) struct Few {
    len: usize,
    near: [u32; 16],
    far: Vec<u32>,
}

impl Few {
    fn push(&mut self, id: u32) {
        match self.near.get_mut(self.len) {
            Some(slot) => {
                *slot = id;
                self.len += 1;
            }
            None => self.far.push(id),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.near[..self.len].iter().chain(&self.far).copied()
    }
}

/// Patterns of labels or segments, walked step by step.
#[derive(Debug, Default)]
struct Trie {
    /// The first is the root.
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    literal: HashMap<Box<str>, usize>,
    any: Option<usize>,
    /// Patterns that end here.
    here: Vec<u32>,
    /// Patterns that ask for one or more steps after this one.
    below: Vec<u32>,
}

impl Trie {
    fn insert<'a>(&mut self, steps: impl IntoIterator<Item = Option<&'a str>>, deep: bool, id: u32) {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let mut at = 0;
        for step in steps {
            let next = self.nodes.len();
            let node = &mut self.nodes[at];
            at = match step {
                None => *node.any.get_or_insert(next),
                Some(literal) => *node.literal.entry(literal.into()).or_insert(next),
            };
            if at == next {
                self.nodes.push(Node::default());
            }
        }
        let node = &mut self.nodes[at];
        if deep { node.below.push(id) } else { node.here.push(id) }
    }

    /// Calls `found` for each pattern that holds. The first `literal` steps must be met literally.
    fn walk<'a>(&self, steps: impl Iterator<Item = &'a str> + Clone, literal: usize, found: &mut impl FnMut(u32)) {
        if !self.nodes.is_empty() {
            self.walk_from(0, 0, steps, literal, found);
        }
    }

    /// Recursion is bounded by the depth of the trie, which is the length of the longest pattern written.
    fn walk_from<'a>(
        &self,
        at: usize,
        depth: usize,
        mut steps: impl Iterator<Item = &'a str> + Clone,
        literal: usize,
        found: &mut impl FnMut(u32),
    ) {
        let node = &self.nodes[at];
        let Some(step) = steps.next() else {
            node.here.iter().copied().for_each(found);
            return;
        };
        if depth >= literal {
            node.below.iter().copied().for_each(&mut *found);
            if let Some(next) = node.any {
                self.walk_from(next, depth + 1, steps.clone(), literal, found);
            }
        }
        if let Some(next) = node.literal.get(step) {
            self.walk_from(*next, depth + 1, steps, literal, found);
        }
    }
}

fn texts(steps: &[Step]) -> impl Iterator<Item = Option<&str>> {
    steps.iter().map(Option::as_deref)
}

/// All patterns of clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    ids: HashMap<ClientPattern, u32>,
    any: Option<u32>,
    exact: HashMap<Identity, u32>,
    prefixes: Trie,
    /// Labels from the right.
    suffixes: Trie,
    /// The domain as the first step, then the segments.
    uris: Trie,
}

impl Clients {
    /// The number of a pattern; equal patterns have the same.
    pub(super) fn number(&mut self, pattern: &ClientPattern) -> u32 {
        let next = u32::try_from(self.ids.len()).expect("patterns are counted when compiled");
        let id = *self.ids.entry(pattern.clone()).or_insert(next);
        if id == next {
            match pattern {
                ClientPattern::Any => self.any = Some(id),
                ClientPattern::Exact(identity) => drop(self.exact.insert(identity.clone(), id)),
                ClientPattern::Prefix(labels) => self.prefixes.insert(texts(labels), true, id),
                ClientPattern::Suffix { labels, deep } => self.suffixes.insert(texts(labels), *deep, id),
                ClientPattern::Uri { domain, segments, below } => {
                    let steps = std::iter::once(Some(&**domain)).chain(texts(segments));
                    self.uris.insert(steps, *below, id);
                }
            }
        }
        id
    }

    /// The patterns that hold for a client.
    pub(super) fn find(&self, identity: &Identity) -> Few {
        let mut few = Few::default();
        self.any.into_iter().chain(self.exact.get(identity).copied()).for_each(|id| few.push(id));
        match identity {
            Identity::Dns(name) => {
                let name = name.as_str();
                let domain = trust_domain_labels(name);
                self.suffixes.walk(name.rsplit('.'), domain, &mut |id| few.push(id));
                // See `pattern::prefix_holds`: a shape that occurs twice is an account's name in disguise.
                if !self.prefixes.nodes.is_empty() && !has_two_shapes(name) {
                    self.prefixes.walk(name.split('.'), 0, &mut |id| few.push(id));
                }
            }
            Identity::Uri(uri) => {
                let authority = uri.find("://").map_or(0, |at| at + 3);
                let end = uri[authority..].find('/').map_or(uri.len(), |at| authority + at);
                let segments = uri[end..].split('/').skip(1);
                self.uris.walk(std::iter::once(&uri[..end]).chain(segments), 0, &mut |id| few.push(id));
            }
        }
        few
    }
}

/// All patterns of services.
#[derive(Debug, Default)]
pub(super) struct Services {
    ids: HashMap<ServicePattern, u32>,
    ports: Vec<Option<u16>>,
    any: Vec<u32>,
    exact: HashMap<Box<str>, Vec<u32>>,
    /// Labels from the right.
    suffixes: Trie,
}

impl Services {
    /// The number of a pattern; equal patterns have the same.
    pub(super) fn number(&mut self, pattern: &ServicePattern) -> u32 {
        let next = u32::try_from(self.ids.len()).expect("patterns are counted when compiled");
        let id = *self.ids.entry(pattern.clone()).or_insert(next);
        if id == next {
            self.ports.push(pattern.port);
            match &pattern.name {
                NamePattern::Any => self.any.push(id),
                NamePattern::Exact(name) => self.exact.entry(name.as_str().into()).or_default().push(id),
                NamePattern::Suffix { labels, deep } => self.suffixes.insert(texts(labels), *deep, id),
            }
        }
        id
    }

    /// The patterns that hold for a target.
    pub(super) fn find(&self, target: &Target) -> Few {
        let mut few = Few::default();
        let mut keep = |id: u32| {
            if self.ports[id as usize].is_none_or(|port| port == target.port) {
                few.push(id);
            }
        };
        let name = target.name.as_str();
        self.any.iter().chain(self.exact.get(name).into_iter().flatten()).copied().for_each(&mut keep);
        self.suffixes.walk(name.rsplit('.'), 0, &mut keep);
        few
    }
}

/// The rules that name a pair of patterns.
#[derive(Debug, Default)]
pub(super) struct Pairs(HashMap<u64, Vec<u32>, Mixed>);

impl Pairs {
    fn key(service: u32, client: u32) -> u64 {
        u64::from(service) << 32 | u64::from(client)
    }

    /// Rules must be added in their order.
    pub(super) fn add(&mut self, service: u32, client: u32, rule: u32) {
        let rules = self.0.entry(Self::key(service, client)).or_default();
        if rules.last() != Some(&rule) {
            rules.push(rule);
        }
    }

    /// The rules that name both, in order.
    pub(super) fn get(&self, service: u32, client: u32) -> &[u32] {
        self.0.get(&Self::key(service, client)).map_or(&[], Vec::as_slice)
    }
}

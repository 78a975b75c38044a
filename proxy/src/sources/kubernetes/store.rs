//! What the API server has said, kept as it was last heard, and what a target means by it.
//!
//! **In** Services and EndpointSlices, one by one or a whole list at once. **Out** for a target: its endpoints, or why it has
//! none. **Refuses** an ExternalName and a port that the service does not have, by those words.
//!
//! Services and slices come by different watches in no order: each is kept under the service's name whether or not the other
//! is there yet.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::model::{Condition, Endpoint, Family, Port, Service, Slice, SlicePort};
use super::names::Named;
use crate::endpoint::{self, Endpoints, Speaks};
use crate::route::{Error, State};

/// `service.namespace`, as the name in DNS begins.
pub(super) type Key = Arc<str>;

/// One list and watch at a time fills one of these: a namespace, or (with the empty name) all of them.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) services: HashMap<Key, Service>,
    pub(super) slices: Slices,
}

/// Slices by the service that they belong to.
#[derive(Debug, Default)]
pub(super) struct Slices {
    by_service: HashMap<Key, Vec<Slice>>,
    /// The service of each slice (`slice.namespace`): a slice can be given to another one.
    owners: HashMap<Box<str>, Key>,
}

/// Everything.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// By namespace; under the empty name where all are watched at once.
    scopes: HashMap<Box<str>, Tables>,
}

/// What a target means.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) exported: bool,
    pub(super) state: State,
}

/// How much is known.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Counts {
    pub(super) services: usize,
    pub(super) exported: usize,
    pub(super) slices: usize,
    pub(super) endpoints: usize,
}

impl Slices {
    /// Puts a slice to `service`, and takes it away from where it was. Answers whose endpoints have changed by it.
    pub(super) fn put(&mut self, id: &str, service: Key, slice: Slice) -> [Option<Key>; 2] {
        let moved = self.owners.get(id).filter(|owner| **owner != service).cloned();
        if moved.is_some() {
            self.remove(id);
        }
        let slices = self.by_service.entry(Arc::clone(&service)).or_default();
        match slices.iter_mut().find(|known| known.name == slice.name) {
            Some(known) if *known == slice => return [moved, None],
            Some(known) => *known = slice,
            None => {
                // Most services have one slice: room for four would cost more than what is in it.
                slices.reserve_exact(1);
                slices.push(slice);
                self.owners.insert(id.into(), Arc::clone(&service));
            }
        }
        [moved, Some(service)]
    }

    /// Takes a slice out. Answers whose it was.
    pub(super) fn remove(&mut self, id: &str) -> Option<Key> {
        let owner = self.owners.remove(id)?;
        // Names of slices may have dots, names of namespaces have none.
        let name = id.rsplit_once('.').map_or(id, |(name, _)| name);
        if let Some(slices) = self.by_service.get_mut(&owner) {
            slices.retain(|slice| *slice.name != *name);
            if slices.is_empty() {
                self.by_service.remove(&owner);
            }
        }
        Some(owner)
    }

    fn of(&self, service: &str) -> &[Slice] {
        self.by_service.get(service).map(Vec::as_slice).unwrap_or_default()
    }

    /// The zone of the endpoint that has this address.
    pub(super) fn zone_of(&self, ip: IpAddr) -> Option<Arc<str>> {
        let endpoints = self.by_service.values().flatten().flat_map(|slice| &slice.endpoints);
        endpoints.filter(|endpoint| endpoint.ip == ip).find_map(|endpoint| endpoint.zone.clone())
    }
}

impl Store {
    /// The tables of a namespace, or under the empty name of all.
    pub(super) fn scope(&mut self, scope: &str) -> &mut Tables {
        if !self.scopes.contains_key(scope) {
            self.scopes.insert(scope.into(), Tables::default());
        }
        self.scopes.get_mut(scope).expect("it has just been put there")
    }

    /// Whether the named service is exported; `None` where there is no such service.
    pub(super) fn exported(&self, named: &Named<'_>) -> Option<bool> {
        self.tables(named)?.services.get(named.service).map(|service| service.exported)
    }

    /// What the named target means; `None` where there is no such service.
    pub(super) fn find(&self, named: &Named<'_>, port: u16, own_zone: Option<&str>) -> Option<Found> {
        let tables = self.tables(named)?;
        let service = tables.services.get(named.service)?;
        let slices = tables.slices.of(named.service);
        let state = match endpoints(service, slices, named.host, port, own_zone) {
            Ok(list) => State::Known(Arc::new(Endpoints { list })),
            Err(error) => State::Refused(error),
        };
        Some(Found { exported: service.exported, state })
    }

    fn tables(&self, named: &Named<'_>) -> Option<&Tables> {
        self.scopes.get("").or_else(|| self.scopes.get(named.namespace))
    }

    pub(super) fn zone_of(&self, ip: IpAddr) -> Option<Arc<str>> {
        self.scopes.values().find_map(|tables| tables.slices.zone_of(ip))
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for tables in self.scopes.values() {
            counts.services += tables.services.len();
            counts.exported += tables.services.values().filter(|service| service.exported).count();
            counts.slices += tables.slices.owners.len();
            let slices = tables.slices.by_service.values().flatten();
            counts.endpoints += slices.map(|slice| slice.endpoints.len()).sum::<usize>();
        }
        counts
    }
}

/// An endpoint that may be taken for a target.
struct Candidate<'a> {
    endpoint: &'a Endpoint,
    port: u16,
    speaks: Speaks,
    weight: u32,
}

fn endpoints(
    service: &Service,
    slices: &[Slice],
    host: Option<&str>,
    port: u16,
    own_zone: Option<&str>,
) -> Result<Vec<endpoint::Endpoint>, Error> {
    if service.external {
        return Err(Error::ExternalName);
    }
    let declared = service.ports.iter().find(|declared| declared.number == port);
    // Clients of a headless service speak to pods, and so may name a pod's port that the service maps to another one.
    let undeclared = declared.is_none() && service.headless;
    if declared.is_none() && !(undeclared && has_port(slices, port)) {
        return Err(Error::NoSuchPort);
    }
    let mut found = Vec::new();
    for slice in slices {
        let Some(joined) = slice.ports.iter().find(|candidate| joins(candidate, declared, port)) else { continue };
        let named = |endpoint: &&Endpoint| host.is_none_or(|host| endpoint.hostname.as_deref() == Some(host));
        found.extend(slice.endpoints.iter().filter(named).map(|endpoint| Candidate {
            endpoint,
            port: joined.number.unwrap_or(port),
            speaks: declared.and_then(|declared| declared.speaks).or(joined.speaks).unwrap_or_default(),
            weight: slice.weight,
        }));
    }
    Ok(usable(of_one_family(found, service.family), own_zone))
}

fn has_port(slices: &[Slice], port: u16) -> bool {
    slices.iter().flat_map(|slice| &slice.ports).any(|candidate| candidate.number == Some(port))
}

/// Ports of slices carry the names of the service's ports, and each slice the numbers that its pods gave them.
fn joins(candidate: &SlicePort, declared: Option<&Port>, port: u16) -> bool {
    match declared {
        Some(declared) => declared.name == candidate.name,
        None => candidate.number == Some(port),
    }
}

/// A pod with two addresses stands in the slices of both families. It is one pod: of the service's first family it is taken,
/// and of the other only where nobody has an address of the first.
fn of_one_family(found: Vec<Candidate<'_>>, first: Option<Family>) -> Vec<Candidate<'_>> {
    let Some(first) = first else { return found };
    let is_first = |candidate: &Candidate<'_>| Family::of(candidate.endpoint.ip) == first;
    let usable = |candidate: &Candidate<'_>| candidate.endpoint.condition != Condition::Down;
    if found.iter().any(|candidate| is_first(candidate) && usable(candidate)) {
        found.into_iter().filter(is_first).collect()
    } else {
        found
    }
}

/// Ready endpoints take the load. Draining ones take none as long as there is a ready one, and all of it where there is none:
/// they still answer, and nobody else does.
fn usable(found: Vec<Candidate<'_>>, own_zone: Option<&str>) -> Vec<endpoint::Endpoint> {
    let any_ready = found.iter().any(|candidate| candidate.endpoint.condition == Condition::Ready);
    let by_hints = own_zone.is_some_and(|own| hinted(&found, own));
    let mut seen = HashSet::with_capacity(found.len());
    let mut list = Vec::with_capacity(found.len());
    for Candidate { endpoint, port, speaks, weight } in found {
        let weight = match endpoint.condition {
            Condition::Down => continue,
            Condition::Draining if any_ready => 0,
            Condition::Draining | Condition::Ready => weight,
        };
        let addr = SocketAddr::new(endpoint.ip, port);
        if !seen.insert(addr) {
            continue; // while a pod moves from one slice to another it may stand in both
        }
        let zone = if by_hints { hinted_zone(endpoint, own_zone) } else { endpoint.zone.clone() };
        list.push(endpoint::Endpoint { speaks, weight, zone, ..endpoint::Endpoint::new(addr) });
    }
    list
}

/// Hints count where every ready endpoint has some and some of them are meant for this zone; else, as for kube-proxy, the
/// control plane is in the middle of changing its mind, and the zones that the endpoints run in count.
fn hinted(found: &[Candidate<'_>], own: &str) -> bool {
    let mut ready = found.iter().filter(|candidate| candidate.endpoint.condition == Condition::Ready).peekable();
    ready.peek().is_some()
        && ready.clone().all(|candidate| !candidate.endpoint.hints.is_empty())
        && ready.any(|candidate| candidate.endpoint.hints.iter().any(|zone| **zone == *own))
}

fn hinted_zone(endpoint: &Endpoint, own: Option<&str>) -> Option<Arc<str>> {
    let ours = endpoint.hints.iter().find(|zone| Some(&***zone) == own);
    ours.or_else(|| endpoint.hints.first()).cloned()
}

#[cfg(test)]
mod tests;

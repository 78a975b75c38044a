//! One list and watch, for as long as the gateway runs.
//!
//! **In** kube's watcher, which lists, watches, resumes, follows bookmarks and lists again after 410. **Out** what it says,
//! into the [`World`]. **Refuses** nothing: what fails is tried again, ever more slowly, and what was known serves on.
//!
//! Two things the watcher leaves to its user. A line that does not read as an event may have been a change, and the next
//! event would move the watch past it: then everything is listed anew. And a watch that is refused with 410 (rather
//! than told 410 in an event) would be begun again from the same version for ever: likewise.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use futures_util::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::core::v1::Service as ServiceObject;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

use super::Settings;
use super::line::Line;
use super::model::{Service, Slice, Texts};
use super::store::{Key, Slices};
use super::world::World;

/// What becomes of the objects of one list and watch.
pub(super) trait Intake {
    type Object;

    /// A list begins: what it holds is kept aside until it is whole.
    fn begins(&mut self);
    fn listed(&mut self, object: &Self::Object);
    /// The list is whole, and replaces what was known.
    fn ends(&mut self);
    fn put(&mut self, object: &Self::Object);
    fn remove(&mut self, object: &Self::Object);
    /// Publishes what the objects since the last time have changed.
    fn publish(&mut self);
}

/// Changes taken at once before they are published: in a storm a service is then worked out once for many of them.
const MAX_BATCH: usize = 256;

/// Lists and watches until dropped.
pub(super) async fn follow<K, I>(api: Api<K>, settings: Arc<Settings>, line: Arc<Line>, mut intake: I)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    I: Intake<Object = K>,
{
    let config = watcher::Config {
        timeout: Some(u32::try_from(settings.watch_timeout.as_secs()).unwrap_or(u32::MAX).clamp(1, 290)),
        page_size: Some(settings.page_size),
        ..watcher::Config::default()
    };
    let mut failures = 0;
    loop {
        let mut events = watcher::watcher(api.clone(), config.clone()).boxed();
        loop {
            let event = tokio::select! {
                event = next(&mut events) => event,
                () = line.stands() => {
                    works(&line, false, &mut failures);
                    continue;
                }
            };
            let mut event = Some(event);
            let mut broken = None;
            for _ in 0..MAX_BATCH {
                match event {
                    Some(Ok(event)) => {
                        if let Some(listed) = take(&mut intake, event) {
                            works(&line, listed, &mut failures);
                        }
                    }
                    Some(Err(error)) => {
                        broken = Some(error);
                        break;
                    }
                    None => break,
                }
                event = next(&mut events).now_or_never();
            }
            intake.publish();
            if let Some(error) = broken {
                failures += 1;
                // A watch that stood only to fail has not shown that all is well.
                let _ = line.stands().now_or_never();
                failed(&line, &error);
                tokio::time::sleep(settings.backoff.after(failures)).await;
                if must_list(&error) {
                    break;
                }
            }
        }
    }
}

/// The next event. kube's own log lines are left out: each failure would be said three times, as errors, by several of its crates.
async fn next<S, K>(events: &mut S) -> watcher::Result<Event<K>>
where
    S: Stream<Item = watcher::Result<Event<K>>> + Unpin,
{
    events.next().with_subscriber(NoSubscriber::default()).await.expect("a watcher never ends")
}

/// Takes an event in. Answers whether it shows that all is well, and whether it ended a list.
fn take<I: Intake>(intake: &mut I, event: Event<I::Object>) -> Option<bool> {
    match event {
        Event::Init => intake.begins(),
        Event::InitApply(object) => intake.listed(&object),
        Event::InitDone => {
            intake.ends();
            return Some(true);
        }
        Event::Apply(object) => {
            intake.put(&object);
            return Some(false);
        }
        Event::Delete(object) => {
            intake.remove(&object);
            return Some(false);
        }
    }
    None
}

fn works(line: &Line, listed: bool, failures: &mut u32) {
    *failures = 0;
    if line.works(listed) {
        tracing::info!(watched = line.what, "the Kubernetes API server is heard again");
    }
}

fn failed(line: &Line, error: &watcher::Error) {
    let reason = explain(error);
    if line.failed(reason.clone()) {
        tracing::warn!(
            watched = line.what,
            reason,
            "the Kubernetes API server tells nothing new; what it said last serves on"
        );
    }
}

/// The error with its causes, and what to do where that is known.
fn explain(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    match status(error) {
        Some(401) => text.push_str(" (is the service account's token mounted, and does the account still exist?)"),
        Some(403) => text.push_str(
            " (the role of the gateway's service account needs list and watch on services and on endpointslices of \
             discovery.k8s.io)",
        ),
        _ => {}
    }
    text
}

/// The status that the API server said.
fn status(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

/// Whether something may have been missed that resuming would not bring back.
fn must_list(error: &watcher::Error) -> bool {
    match error {
        // The stream broke: everything before its end has been read.
        watcher::Error::WatchFailed(kube::Error::ReadEvents(_)) => false,
        // A line that is no event. Where it is JSON, kube takes it for a status without words.
        watcher::Error::WatchFailed(_) => true,
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        _ => false,
    }
}

/// What both kinds of objects need.
#[derive(Debug)]
pub(super) struct Common {
    world: Arc<World>,
    /// A namespace, or empty for all.
    scope: Box<str>,
    texts: Texts,
    touched: Vec<Key>,
    /// A whole list has come: everything may have changed.
    all: bool,
    /// None has come before.
    first: bool,
}

impl Common {
    pub(super) fn new(world: &Arc<World>, scope: &str) -> Self {
        let world = Arc::clone(world);
        Self { world, scope: scope.into(), texts: Texts::default(), touched: Vec::new(), all: false, first: true }
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.all) {
            self.touched.clear();
            if std::mem::take(&mut self.first) {
                self.world.listed_once();
            }
            self.world.publish_all();
        } else if !self.touched.is_empty() {
            self.world.publish(self.touched.drain(..));
        }
    }
}

/// Takes Services in.
#[derive(Debug)]
pub(super) struct Services {
    common: Common,
    listed: HashMap<Key, Service>,
}

impl Services {
    pub(super) fn new(common: Common) -> Self {
        Self { common, listed: HashMap::new() }
    }

    fn read(&mut self, object: &ServiceObject) -> Option<(Key, Service)> {
        let read = Service::read(object, &self.common.world.selector, &mut self.common.texts);
        Some((key(object.metadata.name.as_deref()?, object)?, read))
    }
}

impl Intake for Services {
    type Object = ServiceObject;

    fn begins(&mut self) {
        self.listed = HashMap::new();
        self.common.texts = Texts::default();
    }

    fn listed(&mut self, object: &ServiceObject) {
        if let Some((key, service)) = self.read(object) {
            self.listed.insert(key, service);
        }
    }

    fn ends(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        self.common.world.change(&self.common.scope, |tables| std::mem::replace(&mut tables.services, listed));
        self.common.all = true;
    }

    fn put(&mut self, object: &ServiceObject) {
        let Some((key, service)) = self.read(object) else { return };
        let put = Arc::clone(&key);
        let old = self.common.world.change(&self.common.scope, |tables| tables.services.insert(put, service.clone()));
        if old != Some(service) {
            self.common.touched.push(key);
        }
    }

    fn remove(&mut self, object: &ServiceObject) {
        let Some(key) = object.metadata.name.as_deref().and_then(|name| key(name, object)) else { return };
        self.common.world.change(&self.common.scope, |tables| tables.services.remove(&key));
        self.common.touched.push(key);
    }

    fn publish(&mut self) {
        self.common.publish();
    }
}

/// Takes EndpointSlices in.
#[derive(Debug)]
pub(super) struct EndpointSlices {
    common: Common,
    allow_local: bool,
    listed: Slices,
}

/// Whose endpoints a slice holds. (Kubernetes, "EndpointSlices", ownership.)
const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl EndpointSlices {
    pub(super) fn new(common: Common, allow_local: bool) -> Self {
        Self { common, allow_local, listed: Slices::default() }
    }

    /// The slice's own key, its service's, and what it says.
    fn read(&mut self, object: &EndpointSlice) -> Option<(Key, Option<Key>, Slice)> {
        let id = key(object.metadata.name.as_deref()?, object)?;
        let service = object.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        let service = service.and_then(|service| key(service, object));
        Some((id, service, Slice::read(object, self.allow_local, &mut self.common.texts)))
    }
}

impl Intake for EndpointSlices {
    type Object = EndpointSlice;

    fn begins(&mut self) {
        self.listed = Slices::default();
        self.common.texts = Texts::default();
    }

    fn listed(&mut self, object: &EndpointSlice) {
        if let Some((id, Some(service), slice)) = self.read(object) {
            self.listed.put(&id, service, slice);
        }
    }

    fn ends(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        self.common.world.change(&self.common.scope, |tables| std::mem::replace(&mut tables.slices, listed));
        self.common.world.find_own_zone();
        self.common.all = true;
    }

    fn put(&mut self, object: &EndpointSlice) {
        let Some((id, service, slice)) = self.read(object) else { return };
        self.common.world.look_for_own(&slice);
        let touched = self.common.world.change(&self.common.scope, |tables| match service {
            Some(service) => tables.slices.put(&id, service, slice),
            None => [tables.slices.remove(&id), None],
        });
        self.common.touched.extend(touched.into_iter().flatten());
    }

    fn remove(&mut self, object: &EndpointSlice) {
        let Some(id) = object.metadata.name.as_deref().and_then(|name| key(name, object)) else { return };
        let owner = self.common.world.change(&self.common.scope, |tables| tables.slices.remove(&id));
        self.common.touched.extend(owner);
    }

    fn publish(&mut self) {
        self.common.publish();
    }
}

/// `name.namespace`.
fn key(name: &str, object: &impl Resource) -> Option<Key> {
    Some(format!("{name}.{}", object.meta().namespace.as_deref()?).into())
}

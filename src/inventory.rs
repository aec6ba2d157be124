//! What a run made or promised to make, in memory and in the ledger alike. The promise
//! is on the disk before the deed.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::Context;

use crate::clock::Timestamp;
use crate::ledger::resource::{self, ResourceEvent, ResourceKey, ResourceState, Words};
use crate::ledger::{Durability, RunKey, Writer};
use crate::name::Place;
use crate::provider::{Provider, Resource, ResourceKind};

/// One thing, and how it stands.
#[derive(Clone, Debug)]
pub struct Item {
    key: ResourceKey,
    /// The thing.
    pub resource: Resource,
    /// How it stands.
    pub state: ResourceState,
}

fn words(resource: &Resource) -> Words {
    Words {
        provider: resource.provider.clone(),
        kind: resource.kind.as_str().to_owned(),
        name: resource.name.clone(),
        place: resource.place.word(),
    }
}

/// All things of a run.
#[derive(Debug)]
pub struct Inventory {
    writer: Writer,
    run: RunKey,
    items: Mutex<Vec<Item>>,
}

impl Inventory {
    /// An empty one for this run.
    pub fn new(writer: Writer, run: RunKey) -> Self {
        Self { writer, run, items: Mutex::default() }
    }

    /// What the ledger says that a run owes still; one that died, mostly. Kinds and places
    /// that only a newer isolane knows are left to that one.
    pub fn recall(writer: Writer, run: RunKey, owed: Vec<(ResourceKey, Words, ResourceState)>) -> Self {
        let items = owed.into_iter().filter_map(|(key, words, state)| {
            let (kind, place) = (ResourceKind::parse(&words.kind)?, Place::parse(&words.place)?);
            Some(Item { key, resource: Resource { provider: words.provider, kind, name: words.name, place }, state })
        });
        Self { items: Mutex::new(items.collect()), ..Self::new(writer, run) }
    }

    fn items(&self) -> std::sync::MutexGuard<'_, Vec<Item>> {
        self.items.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Promises, makes and proves everything that `place` consists of. Where a part
    /// fails, the error comes back and what is there stays owed.
    pub fn make(&self, providers: &[Box<dyn Provider>], place: Place, worker: Option<&str>) -> anyhow::Result<()> {
        let plans: Vec<(&dyn Provider, Vec<Resource>)> =
            providers.iter().map(|provider| (&**provider, provider.plan(place))).collect();
        self.promise(plans.iter().flat_map(|(_, resources)| resources.clone()).collect(), worker)?;
        for (provider, resources) in plans {
            for resource in &resources {
                provider.create(resource)?;
                self.happened(resource, ResourceEvent::Create, None);
            }
            provider.verify(place)?;
        }
        Ok(())
    }

    fn promise(&self, resources: Vec<Resource>, worker: Option<&str>) -> anyhow::Result<()> {
        let (run, worker, planned) = (self.run, worker.map(str::to_owned), resources.clone());
        let keys = self
            .writer
            .commit(Durability::Machine, move |db| {
                planned
                    .iter()
                    .map(|resource| resource::plan(db, run, worker.as_deref(), &words(resource)))
                    .collect::<Result<Vec<_>, _>>()
            })
            .context("cannot write into the ledger what is going to be made")?;
        let items = keys.into_iter().zip(resources).map(|(key, resource)| Item {
            key,
            resource,
            state: ResourceState::Planned,
        });
        self.items().extend(items);
        Ok(())
    }

    /// Notes what happened to a resource.
    pub fn happened(&self, resource: &Resource, event: ResourceEvent, error: Option<String>) {
        let mut items = self.items();
        // The newest of its name: a lane that was cleaned is made again under it.
        let Some(item) = items.iter_mut().rev().find(|item| item.resource == *resource) else { return };
        let Some(state) = item.state.next(event) else { return };
        item.state = state;
        let (key, at) = (item.key, Timestamp::now());
        self.writer.tell(move |db| resource::reached(db, key, state, error.as_deref(), at));
    }

    /// Notes that a place serves this worker from now on.
    pub fn serves(&self, place: Place, worker: &str) {
        let keys: Vec<_> =
            self.owed().iter().filter(|item| item.resource.place == place).map(|item| item.key).collect();
        let worker = worker.to_owned();
        self.writer.tell(move |db| keys.iter().try_for_each(|key| resource::serves(db, *key, &worker)));
    }

    /// What is owed still, in the order of promising.
    pub fn owed(&self) -> Vec<Item> {
        self.items()
            .iter()
            .filter(|item| !matches!(item.state, ResourceState::Removed | ResourceState::Kept))
            .cloned()
            .collect()
    }

    /// How many of each kind were made and are gone, in the whole run.
    pub fn removed(&self) -> BTreeMap<ResourceKind, usize> {
        let mut removed = BTreeMap::new();
        for item in self.items().iter().filter(|item| item.state == ResourceState::Removed) {
            *removed.entry(item.resource.kind).or_default() += 1;
        }
        removed
    }
}

//! What a run made or promised to make, in memory and in the ledger alike. The promise
//! is on the disk before the deed. The watchdog hears it as well: should the ledger be
//! lost, or its disk be full, the run goes on, and what it makes is undone all the same.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::bail;

use crate::clock::Timestamp;
use crate::fault::{self, Step};
use crate::ledger::resource::{self, Entry, IllegalStep, ResourceEvent, ResourceKey, ResourceState, Words};
use crate::ledger::{Durability, RunKey, Writer, touch};
use crate::name::Place;
use crate::provider::{Provider, Resource, ResourceKind, Rows, Site};
use crate::touch::Seen;

/// One thing, and how it stands.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its number in the ledger, where the ledger knows it.
    key: Option<ResourceKey>,
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

/// A resource that stands in the ledger. Kinds and places that only a newer isolane knows are
/// left to that one.
pub fn resource_of(words: Words) -> Option<Resource> {
    let (kind, place) = (ResourceKind::parse(&words.kind)?, Place::parse(&words.place)?);
    Some(Resource { provider: words.provider, kind, name: words.name, place })
}

/// A promise as the watchdog hears it: one line.
pub fn promise_line(resource: &Resource) -> Vec<u8> {
    let mut line = serde_json::to_vec(&words(resource)).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Reads what [`promise_line`] wrote.
pub fn promised(line: &str) -> Option<Resource> {
    resource_of(serde_json::from_str(line).ok()?)
}

/// All things of a run.
#[derive(Debug)]
pub struct Inventory {
    writer: Writer,
    run: RunKey,
    items: Mutex<Vec<Item>>,
    /// The way to the watchdog.
    watchdog: Option<Mutex<File>>,
    /// Why the ledger takes no promises any more.
    lost: OnceLock<String>,
    /// Whether some of what servers saw may be in the ledger already.
    is_recalled: bool,
    /// What became of the run's rows among the user's own.
    rows: Mutex<Rows>,
    /// One at a time reads the log of a resource.
    turns: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

impl Inventory {
    /// An empty one for this run, whose watchdog hears every promise.
    pub fn new(writer: Writer, run: RunKey, watchdog: Option<File>) -> Self {
        Self {
            writer,
            run,
            items: Mutex::default(),
            watchdog: watchdog.map(Mutex::new),
            lost: OnceLock::new(),
            is_recalled: false,
            rows: Mutex::default(),
            turns: Mutex::default(),
        }
    }

    /// What the ledger says that a run left; one that died, mostly.
    pub fn recall(writer: Writer, run: RunKey, left: Vec<Entry>) -> Self {
        let items = left.into_iter().filter_map(|entry| {
            // Who recalls what was kept wants it no more.
            let state = if entry.state == ResourceState::Kept { ResourceState::Created } else { entry.state };
            Some(Item { key: Some(entry.key), resource: resource_of(entry.words)?, state })
        });
        Self { items: Mutex::new(items.collect()), is_recalled: true, ..Self::new(writer, run, None) }
    }

    /// Adds what the run promised, as others know and the ledger does not.
    pub fn adopt(&self, promised: Vec<Resource>) {
        let mut items = self.items();
        for resource in promised {
            if items.iter().all(|item| item.resource != resource) {
                items.push(Item { key: None, resource, state: ResourceState::Planned });
            }
        }
    }

    /// Why the ledger does not know all that was made; `None` where it does.
    pub fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    fn items(&self) -> MutexGuard<'_, Vec<Item>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises, makes and proves everything that `place` consists of. Where a part
    /// fails, the error comes back and what is there stays owed.
    pub fn make(&self, providers: &[Box<dyn Provider>], place: Place, worker: Option<&str>) -> anyhow::Result<()> {
        let plans: Vec<(&dyn Provider, Vec<Resource>)> =
            providers.iter().map(|provider| (&**provider, provider.plan(place))).collect();
        self.promise(plans.iter().flat_map(|(_, resources)| resources.clone()).collect(), worker)?;
        for (provider, resources) in plans {
            for resource in &resources {
                fault::before(Step::Create)?;
                provider.create(resource)?;
                self.happened(resource, ResourceEvent::Create, None)?;
                fault::after(Step::Create)?;
            }
            provider.verify(place)?;
        }
        Ok(())
    }

    fn promise(&self, resources: Vec<Resource>, worker: Option<&str>) -> anyhow::Result<()> {
        fault::before(Step::Promise)?;
        let is_heard = self.tell_watchdog(&resources);
        let (run, worker, planned) = (self.run, worker.map(str::to_owned), resources.clone());
        let written = self.writer.commit(Durability::Machine, move |db| {
            planned
                .iter()
                .map(|resource| resource::plan(db, run, worker.as_deref(), &words(resource)))
                .collect::<Result<Vec<_>, _>>()
        });
        let keys = match written {
            Ok(keys) => keys.into_iter().map(Some).collect(),
            Err(error) if is_heard => {
                self.lost.get_or_init(|| error.to_string());
                vec![None; resources.len()]
            }
            Err(error) => bail!("cannot write into the ledger what is going to be made: {error}"),
        };
        let items = keys.into_iter().zip(resources).map(|(key, resource)| Item {
            key,
            resource,
            state: ResourceState::Planned,
        });
        self.items().extend(items);
        fault::after(Step::Promise)
    }

    /// Whether the watchdog knows now.
    fn tell_watchdog(&self, resources: &[Resource]) -> bool {
        let Some(watchdog) = &self.watchdog else { return false };
        let mut line = watchdog.lock().unwrap_or_else(PoisonError::into_inner);
        resources.iter().all(|resource| line.write_all(&promise_line(resource)).is_ok())
    }

    /// Notes what happened to a resource.
    pub fn happened(
        &self,
        resource: &Resource,
        event: ResourceEvent,
        error: Option<String>,
    ) -> Result<(), IllegalStep> {
        let mut items = self.items();
        // The newest of its name: a lane that was cleaned is made again under it.
        let Some(item) = items.iter_mut().rev().find(|item| item.resource == *resource) else { return Ok(()) };
        let state = item.state.next(event)?;
        item.state = state;
        if let Some(key) = item.key {
            let at = Timestamp::now();
            self.writer.tell(move |db| resource::reached(db, key, state, error.as_deref(), at));
        }
        Ok(())
    }

    /// Notes that something is the run's no more: it is owed no longer, and nobody removed it.
    pub fn handed_over(&self, resource: &Resource) -> Result<(), IllegalStep> {
        self.happened(resource, ResourceEvent::Remove, None)?;
        self.items().retain(|item| item.resource != *resource);
        Ok(())
    }

    /// Notes that a place serves this worker from now on.
    pub fn serves(&self, place: Place, worker: &str) {
        let keys: Vec<_> =
            self.owed().iter().filter(|item| item.resource.place == place).filter_map(|item| item.key).collect();
        let worker = worker.to_owned();
        self.writer.tell(move |db| keys.iter().try_for_each(|key| resource::serves(db, *key, &worker)));
    }

    /// Takes in what `site` saw of rows that were written in `resource`, except for what is
    /// younger than `margin`.
    pub fn harvest(&self, site: &dyn Site, resource: &Resource, margin: Duration) -> anyhow::Result<()> {
        let turn = self.turn(resource);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (run, again) = (self.run, self.is_recalled);
        site.harvest(resource, margin, &mut |seen: Seen| {
            Ok(self.writer.commit(Durability::Process, move |db| touch::enter(db, run, &seen, again))?)
        })
    }

    /// Does this to a resource while nobody reads its log.
    pub fn in_turn<T>(&self, resource: &Resource, work: impl FnOnce() -> T) -> T {
        let turn = self.turn(resource);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        work()
    }

    fn turn(&self, resource: &Resource) -> Arc<Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(resource.name.clone()).or_default())
    }

    /// Everything that is there.
    pub fn made(&self) -> Vec<Resource> {
        self.items()
            .iter()
            .filter(|item| item.state == ResourceState::Created)
            .map(|item| item.resource.clone())
            .collect()
    }

    /// Notes what became of the rows that the run had made among the user's own.
    pub fn rows_removed(&self, rows: &Rows) {
        let (run, left, is_known) = (self.run, rows.left.clone(), rows.is_known);
        self.writer.tell(move |db| touch::removed(db, run, &left, is_known));
        let mut all = self.rows();
        if !is_known {
            return;
        }
        all.is_broken |= rows.is_broken;
        all.removed += rows.removed;
        all.left.clone_from(&rows.left);
        all.changed.extend(rows.changed.iter().cloned());
    }

    /// Notes that these rows stay.
    pub fn rows_kept(&self) {
        let run = self.run;
        self.writer.tell(move |db| touch::kept(db, run));
    }

    /// What became of the run's rows among the user's own.
    pub fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
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

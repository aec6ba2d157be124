//! Sweeping: undoing what is owed. This is the one place that removes anything.

mod dead;
mod stray;

pub use dead::{Memory, Swept, living, lock_of, lock_path, sweep_dead_runs, sweep_run};
pub use stray::{Reason, Stray, Survey, apply, survey};

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::one_line;
use crate::fault::{self, Step};
use crate::inventory::{Inventory, Item};
use crate::ledger::resource::ResourceEvent;
use crate::name::Place;
use crate::provider::{Resource, Site};

/// How many places are undone at once. Dropping a database is mostly waiting for the
/// server's checkpoint, which several drops share.
const AT_ONCE: usize = 12;

/// How long to wait before each further try, in milliseconds: a server may just be starting
/// again.
const PAUSES: [u64; 5] = [100, 300, 600, 1000, 1000];

/// What a sweep came to. It goes on past every failure.
#[derive(Debug, Default)]
pub struct SweepReport {
    /// What is still there, and why.
    pub stuck: Vec<(Resource, String)>,
}

/// What a sweep is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything the run owes.
    Run,
    /// What it owes at the sites at hand.
    Sites,
    /// One place of it.
    Place(Place),
}

/// Tries a sweep again while something does not go. Undoing twice is success.
pub fn patiently(mut sweep: impl FnMut() -> SweepReport) -> SweepReport {
    let mut report = sweep();
    for pause in PAUSES {
        if report.stuck.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(pause));
        report = sweep();
    }
    report
}

/// Undoes what the run owes within `scope`: sessions end first, then things go in the
/// reverse order of their making, lanes beside each other, the template and the run's
/// own directory last.
pub fn sweep(inventory: &Inventory, sites: &[&dyn Site], scope: Scope) -> SweepReport {
    let mut places: BTreeMap<Place, Vec<Item>> = BTreeMap::new();
    for item in inventory.owed() {
        let within = match scope {
            Scope::Run => true,
            Scope::Sites => sites.iter().any(|site| site.id() == item.resource.provider),
            Scope::Place(place) => item.resource.place == place,
        };
        if within {
            places.entry(item.resource.place).or_default().push(item);
        }
    }
    let rest: Vec<_> = [Place::Template, Place::Run].into_iter().filter_map(|place| places.remove(&place)).collect();
    let mut report = undo_beside(inventory, sites, places.into_values().collect());
    for items in rest {
        report.stuck.extend(undo_beside(inventory, sites, vec![items]).stuck);
    }
    report
}

/// Leaves what the run made where it is, and takes it off from what is not the run's own. What
/// does not go is told.
pub fn leave(inventory: &Inventory, sites: &[&dyn Site]) -> Vec<String> {
    let mut told = Vec::new();
    for Item { resource, .. } in inventory.owed() {
        let Some(site) = site_of(sites, &resource) else { continue };
        // What is not seen now is not in the ledger, and that is all.
        let _ = inventory.harvest(site, &resource, Duration::ZERO);
        let why = site.let_go(&resource).err();
        told.extend(why.map(|why| format!("triggers stay on your tables, and do nothing: {}", one_line(&why))));
    }
    inventory.rows_kept();
    told
}

/// The site where this is.
fn site_of<'a>(sites: &[&'a dyn Site], resource: &Resource) -> Option<&'a dyn Site> {
    sites.iter().copied().find(|site| site.id() == resource.provider)
}

/// Undoes groups of things beside each other, each in the reverse order of its making.
fn undo_beside(inventory: &Inventory, sites: &[&dyn Site], groups: Vec<Vec<Item>>) -> SweepReport {
    let report = Mutex::new(SweepReport::default());
    beside(groups.into_iter(), |items| undo(inventory, sites, items, &report));
    report.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Does `work` on these, several at a time.
fn beside<T: Send>(these: impl ExactSizeIterator<Item = T> + Send, work: impl Fn(T) + Sync) {
    let threads = these.len().min(AT_ONCE);
    let these = Mutex::new(these);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = these.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(next) = next else { break };
                    work(next);
                }
            });
        }
    });
}

fn undo(inventory: &Inventory, sites: &[&dyn Site], items: Vec<Item>, report: &Mutex<SweepReport>) {
    for item in &items {
        // If sessions do not end, removing fails in its turn and says so.
        let _ = site_of(sites, &item.resource).map(|site| disconnect(site, &item.resource));
        // Nobody writes there any more. What is not seen now is not in the ledger, and that is all.
        let _ = site_of(sites, &item.resource).map(|site| harvest(inventory, site, &item.resource));
    }
    for item in items.into_iter().rev() {
        let resource = item.resource;
        let done = site_of(sites, &resource).map_or_else(
            || Err(anyhow::anyhow!("nothing here knows {}", resource.provider)),
            |site| remove(inventory, site, &resource),
        );
        let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
        match done {
            Ok(()) => {
                let _ = inventory.happened(&resource, ResourceEvent::Remove, None);
            }
            Err(error) => {
                let why = one_line(&error);
                // Unless somebody else has removed it meanwhile.
                if inventory.happened(&resource, ResourceEvent::Fail, Some(why.clone())).is_ok() {
                    report.stuck.push((resource, why));
                }
            }
        }
    }
}

fn disconnect(site: &dyn Site, resource: &Resource) -> anyhow::Result<()> {
    fault::before(Step::Disconnect)?;
    site.disconnect(resource)?;
    fault::after(Step::Disconnect)
}

fn harvest(inventory: &Inventory, site: &dyn Site, resource: &Resource) -> anyhow::Result<()> {
    fault::before(Step::Harvest)?;
    inventory.harvest(site, resource, Duration::ZERO)?;
    fault::after(Step::Harvest)
}

fn remove(inventory: &Inventory, site: &dyn Site, resource: &Resource) -> anyhow::Result<()> {
    if resource.knows_rows() {
        fault::before(Step::Rows)?;
        let rows = site.remove_rows(resource)?;
        inventory.rows_removed(&rows);
        fault::after(Step::Rows)?;
        rows.ensure_gone()?;
    }
    fault::before(Step::Remove)?;
    site.remove(resource)?;
    fault::after(Step::Remove)
}

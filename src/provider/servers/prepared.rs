//! The cluster that the servers of a run are copies of: the one that an earlier run has kept, or
//! where this run is going to keep its own.

use std::sync::Mutex;

use super::cache::{Cache, Place};
use super::cluster::Cluster;
use super::locked;
use super::programs::Programs;
use crate::address::Variables;
use crate::provider::Shelf;

/// What is kept is made again when this changes.
pub const FORM: &str = "1";

/// What is kept for this run, or by it.
#[derive(Debug)]
pub struct Prepared {
    cache: Cache,
    /// It is there, from before.
    found: Mutex<Option<Place>>,
    /// Where it is going to be kept, and as what.
    reserved: Mutex<Option<(Place, String)>>,
}

impl Prepared {
    /// In the cache of the user with these variables.
    pub fn new(variables: &Variables) -> Self {
        Self { cache: Cache::open(variables), found: Mutex::default(), reserved: Mutex::default() }
    }

    /// The one that an earlier run has kept.
    pub fn cluster(&self) -> Option<Cluster> {
        locked(&self.found).as_ref().map(Place::cluster)
    }

    /// Whether an earlier run has kept one.
    pub fn is_there(&self) -> bool {
        locked(&self.found).is_some()
    }

    /// Takes the one of this name, if it is a copy of what `fingerprint` says.
    pub fn find(&self, name: &str, fingerprint: &str) -> bool {
        let found = self.cache.find(name, fingerprint);
        let is_there = found.is_some();
        *locked(&self.found) = found;
        is_there
    }

    /// Takes it when another run that is making it is done; whether there is one then. Else this
    /// run is to make it, and [`keep`](Self::keep) it where that is possible.
    pub fn wait(&self, name: &str, fingerprint: &str) -> bool {
        let place = self.cache.reserve(name);
        place.is_some_and(|place| self.settle(place, fingerprint))
    }

    /// The same without waiting.
    pub fn seek(&self, name: &str, fingerprint: &str) -> Shelf {
        if self.find(name, fingerprint) {
            return Shelf::Found;
        }
        match self.cache.try_reserve(name) {
            Some(place) => {
                if self.settle(place, fingerprint) {
                    Shelf::Found
                } else {
                    Shelf::Wanted
                }
            }
            None if self.cache.is_there() => Shelf::Busy,
            None => Shelf::Wanted,
        }
    }

    /// Takes what is in a place that was reserved, if another run has made it meanwhile.
    fn settle(&self, place: Place, fingerprint: &str) -> bool {
        let is_made = place.has(fingerprint);
        if is_made {
            place.share();
            *locked(&self.found) = Some(place);
        } else {
            *locked(&self.reserved) = Some((place, fingerprint.to_owned()));
        }
        is_made
    }

    /// Keeps `cluster`, where no server is running, for later runs; `None` where no place was
    /// reserved.
    pub fn keep(&self, cluster: &Cluster) -> Option<anyhow::Result<()>> {
        let (place, fingerprint) = locked(&self.reserved).take()?;
        Some(place.keep(&self.cache, cluster, &fingerprint))
    }

    /// Leaves the place to others.
    pub fn give_up(&self) {
        locked(&self.reserved).take();
    }

    /// Lays a fresh cluster into the folder of `cluster`.
    pub fn lay_base(&self, cluster: &Cluster, programs: &Programs, locale: &str) -> anyhow::Result<()> {
        let name = Cache::name("base", &[FORM, &programs.version_text, locale]);
        let lay = |place: &Place| cluster.copy_from(&place.cluster(), programs.user.as_ref(), true);
        if let Some(place) = self.cache.find(&name, FORM) {
            return lay(&place);
        }
        let place = self.cache.reserve(&name);
        if let Some(place) = place.as_ref().filter(|place| place.has(FORM)) {
            // Somebody else was quicker.
            return lay(place);
        }
        cluster.init(programs, locale)?;
        if let Some(place) = place {
            // What cannot be kept is made again by the next run.
            let _ = place.keep(&self.cache, cluster, FORM);
        }
        Ok(())
    }
}

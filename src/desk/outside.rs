//! What a desk asks outside of its store: where items are read again that come from somewhere else,
//! and who is told of a lease before its holder is.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Desk, Granted, Reply, locked};
use crate::lease::ask::Ask;
use crate::lease::grant::Lease;
use crate::lease::refusal::Refusal;
use crate::lease::store::StoreError;

/// How long what was read from somewhere else counts as what is there.
const REFRESHED: Duration = Duration::from_millis(500);
/// Where items come from that are not only here.
pub(super) struct Spring {
    pools: BTreeSet<String>,
    read: Box<Read>,
    /// When each was read last.
    seen: Mutex<HashMap<String, Instant>>,
}

impl std::fmt::Debug for Spring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.pools.fmt(f)
    }
}

/// Who is told of leases of these pools before their holders are.
pub(super) struct Guard {
    pools: BTreeSet<String>,
    tell: Arc<Tell>,
}

/// Brings items of these pools up to date.
type Read = dyn Fn(&Desk, &[String]) + Send + Sync;
/// Tells somebody of a lease, or why not.
type Tell = dyn Fn(&Lease) -> Result<(), StoreError> + Send + Sync;

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.pools.fmt(f)
    }
}

impl Desk {
    /// Asks for items, and waits for them as long as the ask says. Who does not wait any more
    /// when they are there has not got them.
    pub async fn acquire(&self, ask: Ask) -> Result<Reply, StoreError> {
        let reply = self.acquire_fresh(ask).await?;
        self.hand_over(reply).await
    }

    async fn acquire_fresh(&self, ask: Ask) -> Result<Reply, StoreError> {
        let Some(stale) = self.not_seen_lately(&ask) else { return self.acquire_here(ask).await };
        let at_once = Ask { wait: Duration::ZERO, ..ask.clone() };
        match self.acquire_here(at_once).await? {
            Err(Refusal::Unsatisfiable { .. } | Refusal::Exhausted { .. }) => {}
            reply => return Ok(reply),
        }
        let desk = self.clone();
        let read = move || {
            if let Some(spring) = desk.shared.spring.get() {
                (spring.read)(&desk, &stale);
            }
        };
        // What could not be read is as it was, and the refusal says so.
        let _ = tokio::task::spawn_blocking(read).await;
        self.acquire_here(ask).await
    }

    /// Items of these pools come from somewhere else as well: when a request finds none, `read`
    /// brings them up to date. It may take its time.
    pub fn refresh_by(&self, pools: BTreeSet<String>, read: impl Fn(&Self, &[String]) + Send + Sync + 'static) {
        let spring = Spring { pools, read: Box::new(read), seen: Mutex::default() };
        // A desk is set up once.
        let _ = self.shared.spring.set(spring);
    }

    /// Leases of these pools are told to `tell` before their holders get them; nobody gets one where
    /// that fails. It may take its time.
    pub fn guard_by(
        &self,
        pools: BTreeSet<String>,
        tell: impl Fn(&Lease) -> Result<(), StoreError> + Send + Sync + 'static,
    ) {
        let _ = self.shared.guard.set(Guard { pools, tell: Arc::new(tell) });
    }

    /// Hands a lease over, when whoever guards it knows of it.
    async fn hand_over(&self, reply: Reply) -> Result<Reply, StoreError> {
        let Ok(Granted { lease, .. }) = &reply else { return Ok(reply) };
        let Some(guard) = self.shared.guard.get() else { return Ok(reply) };
        if !lease.items.iter().any(|held| guard.pools.contains(&*held.pool)) {
            return Ok(reply);
        }
        let (tell, told) = (Arc::clone(&guard.tell), lease.clone());
        let told = tokio::task::spawn_blocking(move || tell(&told)).await;
        match told.unwrap_or_else(|_| Err(StoreError("the guard broke off".to_owned()))) {
            Ok(()) => Ok(reply),
            Err(why) => {
                self.take_back(reply);
                Err(why)
            }
        }
    }

    /// The pools of an ask whose items come from somewhere else, and were not read just now.
    fn not_seen_lately(&self, ask: &Ask) -> Option<Vec<String>> {
        let spring = self.shared.spring.get()?;
        let mut seen = locked(&spring.seen);
        let pools = ask.wants.iter().map(|want| &want.pool).filter(|pool| spring.pools.contains(*pool));
        let stale: Vec<String> =
            pools.filter(|pool| seen.get(*pool).is_none_or(|at| at.elapsed() > REFRESHED)).cloned().collect();
        seen.extend(stale.iter().map(|pool| (pool.clone(), Instant::now())));
        (!stale.is_empty()).then_some(stale)
    }
}

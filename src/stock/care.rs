//! Resetting items after use, and retiring those that are wanted no more.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Stock;
use super::step::{End, Step};
use crate::lease::board::{BROKE_OFF, Board};
use crate::lease::definition::Definition;
use crate::lease::item::{Item, ItemKey, ItemState, MOST_FAILURES};
use crate::os::marked;
use crate::secret::mask_command;

/// How long an item is left alone after it could not be reset; longer after each time.
const REST: Duration = Duration::from_millis(500);
/// How long between two tries to write what came of it.
const BREATH: Duration = Duration::from_millis(500);

/// An item that this process has taken upon itself.
#[derive(Debug)]
pub struct Care {
    pub item: Item,
    pub definition: Definition,
    /// It is to go, and not to be reset.
    pub is_last: bool,
    /// This process, as the store calls it.
    pub owner: String,
    /// The process that did not come to the end of it.
    pub lost: Option<String>,
}

impl Care {
    fn line(&self) -> Option<&String> {
        if self.is_last { self.definition.retire.as_ref() } else { self.definition.reset.as_ref() }
    }
}

/// Items that were tried in vain: how often, and when they are tried again.
pub type Rests = HashMap<ItemKey, (u32, Instant)>;

/// Takes up to `room` items that are due, and when the next is. Who has not looked before does not
/// know when others failed, and tries at once: it may not be there for long.
pub fn begin(board: &mut Board, rests: &mut Rests, has_looked: bool, room: usize) -> (Vec<Care>, Option<Instant>) {
    let now = Instant::now();
    let mut next: Option<Instant> = None;
    let mut due = Vec::new();
    let open: Vec<_> = board.unready().map(|item| (item.key, item.state, item.failures, item.note.clone())).collect();
    rests.retain(|key, _| open.iter().any(|(open, ..)| open == key));
    for (key, state, failures, note) in open {
        if !matches!(state, ItemState::Dirty | ItemState::Retiring) {
            continue;
        }
        if failures > 0 {
            let pause = REST * 4_u32.pow(failures.min(MOST_FAILURES) - 1);
            let rest = rests.entry(key).or_insert((if has_looked { 0 } else { failures }, now));
            if rest.0 != failures {
                *rest = (failures, now + pause);
            }
            if rest.1 > now {
                next = Some(next.map_or(rest.1, |next| next.min(rest.1)));
                continue;
            }
        }
        if due.len() < room {
            due.push((key, state, note));
        }
    }
    let owner = board.owner().to_owned();
    let mut cares = Vec::new();
    for (key, state, note) in due {
        let is_last = state == ItemState::Retiring;
        let Some(item) = (if is_last { board.begin_retire(key) } else { board.begin_reset(key) }) else { continue };
        let Some(definition) = board.definition(&item.pool).cloned() else { continue };
        let lost = note.as_deref().and_then(|note| note.strip_prefix(BROKE_OFF)).map(str::to_owned);
        cares.push(Care { item, definition, is_last, owner: owner.clone(), lost });
    }
    (cares, next)
}

impl Stock {
    pub(super) async fn care(&self, care: Care) {
        let end = match care.line() {
            Some(line) => self.step_of(line, &care).await,
            None => End::Well(Vec::new()),
        };
        let (key, is_last) = (care.item.key, care.is_last);
        let failed = match end {
            End::Well(_) => Ok(None),
            End::Badly(why) => Ok(Some(why)),
            End::CalledOff => Err(()),
        };
        // The item is nobody's until this is written.
        for _ in 0..20 {
            let failed = failed.clone();
            let written = self.0.desk.ask(move |session| match failed {
                Ok(failed) if is_last => session.board.was_retired(key, failed),
                Ok(failed) => session.board.was_reset(key, failed),
                Err(()) => session.board.put_back(key),
            });
            if written.await.is_ok() {
                break;
            }
            tokio::time::sleep(BREATH).await;
        }
        if let Ok(Some(why)) = failed {
            let (what, n) = (if is_last { "retired" } else { "reset" }, care.item.failures + 1);
            let fate = if n >= MOST_FAILURES { "is in quarantine: it" } else { "is not free:" };
            let item = &care.item;
            self.note(format!("pool {}: {} {fate} could not be {what} (attempt {n}): {why}", item.pool, item.name));
        }
    }

    async fn step_of(&self, line: &str, care: &Care) -> End {
        if let Some(lost) = &care.lost {
            // Its command may have outlived it, and two at once would be one too many.
            let mark = format!("{lost}:{}", care.item.key);
            let _ = tokio::task::spawn_blocking(move || marked::kill(marked::STEP, &mark)).await;
        }
        let mut step = Step::of_item(line, &care.item.pool, &care.item.attributes);
        step.folder.clone_from(&care.definition.folder);
        step.limit = care.definition.timeout();
        step.mark = format!("{}:{}", care.owner, care.item.key);
        step.environment.extend(self.environment());
        match step.run(self.halted()).await {
            End::Badly(why) => End::Badly(self.failed(line, &why)),
            end => end,
        }
    }

    /// What commands find besides in their environment.
    pub(super) fn environment(&self) -> impl Iterator<Item = (String, String)> {
        self.0.run.iter().map(|run| ("ISOLANE_RUN_ID".to_owned(), run.clone()))
    }

    /// That a command failed, without passwords.
    pub(super) fn failed(&self, line: &str, why: &str) -> String {
        self.0.vault.mask(&format!("`{}` failed {why}", mask_command(line)))
    }
}

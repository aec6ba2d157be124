//! Items of a pool, and the states that they go through.

use std::sync::Arc;

use serde_json::Value;

use super::definition::{Definition, Usage};
use super::predicate::{Attributes, plain};

/// The number of an item within its store.
pub type ItemKey = i64;

/// After so many resets in a row that failed, an item is given to nobody any more.
pub const MOST_FAILURES: u32 = 3;

/// How an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemState {
    /// It can be had, unless all its places are taken.
    Free,
    /// Its last use ended so that it has to be reset.
    Dirty,
    /// It is being reset.
    Resetting,
    /// It could not be reset.
    Quarantined,
    /// It is wanted no more; its retire command is still to come.
    Retiring,
    /// It is gone.
    Retired,
}

impl ItemState {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Free, "free"),
        (Self::Dirty, "dirty"),
        (Self::Resetting, "resetting"),
        (Self::Quarantined, "quarantined"),
        (Self::Retiring, "retiring"),
        (Self::Retired, "retired"),
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name)
    }

    /// The state that has this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(state, _)| *state)
    }
}

/// One thing that can be leased.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Its number.
    pub key: ItemKey,
    /// Its pool.
    pub pool: Arc<str>,
    /// What it is called in its pool.
    pub name: Arc<str>,
    /// What it is like; what its holder gets.
    pub attributes: Arc<Attributes>,
    /// How it stands.
    pub state: ItemState,
    /// How many hold it.
    pub held: u32,
    /// The number of its last grant: it only grows.
    pub fence: u64,
    /// When it was used last, in the order of all uses of the store.
    pub used: u64,
    /// How many resets in a row have failed.
    pub failures: u32,
    /// One of its holders ended uncleanly: nobody gets it before it is reset.
    pub is_soiled: bool,
    /// Nobody gets it any more: it is to go when its last holder lets go.
    pub is_leaving: bool,
    /// It stands in the configuration, and goes when it does not any more.
    pub is_configured: bool,
    /// What it was made from, where a generator made it: its inputs and what that was then.
    pub origin: Option<String>,
    /// Who resets or retires it, or why it is in quarantine.
    pub note: Option<String>,
}

impl Item {
    /// A new one, which nobody has used.
    pub fn new(pool: &str, attributes: Attributes) -> Self {
        Self {
            key: 0,
            pool: pool.into(),
            name: name_of(&attributes).into(),
            attributes: Arc::new(attributes),
            state: ItemState::Free,
            held: 0,
            fence: 0,
            used: 0,
            failures: 0,
            is_soiled: false,
            is_leaving: false,
            is_configured: false,
            origin: None,
            note: None,
        }
    }

    /// The same in a pool whose items may be rows: they are called by their keys.
    pub fn of(pool: &str, attributes: Attributes, definition: &Definition) -> Self {
        let key = definition.table.as_ref().and_then(|table| attributes.get(&table.key)).map(plain);
        let item = Self::new(pool, attributes);
        Self { name: key.map_or_else(|| item.name.clone(), Into::into), ..item }
    }

    /// How many more may hold it now.
    pub fn places(&self, definition: &Definition) -> u32 {
        if self.state == ItemState::Free && !self.is_soiled && !self.is_leaving {
            definition.usage.places().saturating_sub(self.held)
        } else {
            0
        }
    }

    /// Whether it may ever be had again.
    pub fn has_future(&self) -> bool {
        let is_there = matches!(self.state, ItemState::Free | ItemState::Dirty | ItemState::Resetting);
        is_there && !self.is_leaving
    }

    /// A holder lets go; `unclean` where it did not say so itself.
    pub fn let_go(&mut self, definition: &Definition, unclean: bool) {
        self.held = self.held.saturating_sub(1);
        self.is_soiled |= definition.is_reset_after(unclean);
        self.is_leaving |= definition.usage == Usage::Consume;
        self.settle(definition);
    }

    /// It goes for good, when nobody holds it any more.
    pub fn leave(&mut self, definition: &Definition) {
        if self.state == ItemState::Resetting && !self.is_leaving {
            // What is being done is a reset: tries to retire it are counted from the beginning.
            self.failures = 0;
        }
        self.is_leaving = true;
        self.settle(definition);
    }

    /// With nobody holding it, becomes what it has to.
    pub fn settle(&mut self, definition: &Definition) {
        if self.held > 0 || matches!(self.state, ItemState::Resetting | ItemState::Retired) {
            return;
        }
        if self.is_leaving {
            if self.state != ItemState::Retiring {
                self.failures = 0;
            }
            self.state = if definition.retire.is_some() { ItemState::Retiring } else { ItemState::Retired };
        } else if self.is_soiled {
            self.is_soiled = false;
            self.state = ItemState::Dirty;
        }
    }

    /// Whether it waits for a command that its pool does not have any more.
    pub fn is_idle(&self, definition: &Definition) -> bool {
        match self.state {
            ItemState::Free => self.is_soiled && definition.reset.is_none(),
            ItemState::Dirty => definition.reset.is_none(),
            ItemState::Retiring => definition.retire.is_none(),
            ItemState::Resetting | ItemState::Quarantined | ItemState::Retired => false,
        }
    }

    /// It was reset, or that failed, which may be `why`.
    pub fn was_reset(&mut self, definition: &Definition, failed: Option<String>) {
        if self.state != ItemState::Resetting {
            return;
        }
        (self.state, self.note) = match failed {
            None => {
                self.failures = 0;
                (ItemState::Free, None)
            }
            Some(why) => {
                self.failures += 1;
                let is_last = self.failures >= MOST_FAILURES;
                (if is_last { ItemState::Quarantined } else { ItemState::Dirty }, Some(why))
            }
        };
        self.settle(definition);
    }
}

impl Item {
    /// It was retired, or that failed, which may be `why`.
    pub fn was_retired(&mut self, failed: Option<String>) {
        if self.state != ItemState::Resetting {
            return;
        }
        (self.state, self.note) = match failed {
            // Somebody has added it again meanwhile.
            None if !self.is_leaving => {
                self.failures = 0;
                (ItemState::Free, None)
            }
            None => (ItemState::Retired, None),
            Some(why) => {
                self.failures += 1;
                let is_last = self.failures >= MOST_FAILURES;
                (if is_last { ItemState::Quarantined } else { ItemState::Retiring }, Some(why))
            }
        };
    }

    /// What was done about it is not done to the end, and not by its own fault.
    pub fn put_back(&mut self, definition: &Definition, note: Option<String>) {
        if self.state == ItemState::Resetting {
            self.state = if self.is_leaving { ItemState::Retiring } else { ItemState::Dirty };
            self.note = note;
            // Where nothing has to be done for it, it is gone.
            self.settle(definition);
        }
    }
}

/// What an item with these attributes is called: by its `id`, its only attribute, or by all of
/// them.
fn name_of(attributes: &Attributes) -> String {
    let named = attributes.get("id").or_else(|| if attributes.len() == 1 { attributes.values().next() } else { None });
    named.map_or_else(|| Value::Object(attributes.clone()).to_string(), plain)
}

/// An item's attributes as somebody gives them: an object, or what then is its `id`.
pub fn attributes_of(given: Value) -> Result<Attributes, String> {
    match given {
        Value::Object(attributes) if attributes.is_empty() => Err("an item without attributes is none".to_owned()),
        Value::Object(attributes) if name_of(&attributes).trim().is_empty() => {
            Err("an item's name, its `id` or its only attribute, must not be empty".to_owned())
        }
        Value::String(id) if id.trim().is_empty() => Err("an item's name must not be empty".to_owned()),
        Value::Object(attributes) => Ok(attributes),
        Value::Array(_) | Value::Null => Err("an item is an object such as {\"id\": 1}, a text or a number".to_owned()),
        id => Ok(std::iter::once(("id".to_owned(), id)).collect()),
    }
}

/// An item as somebody writes it: a name, attributes (`id=1,tier=gold`), or a JSON object.
pub fn value_of_text(text: &str) -> Result<Value, String> {
    if text.starts_with('{') {
        return serde_json::from_str(text).map_err(|error| format!("{text} is no JSON object: {error}"));
    }
    if !text.contains('=') {
        return Ok(text.into());
    }
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').ok_or_else(|| format!("{text}: attributes are id=1,tier=gold"))?;
        let value = match serde_json::from_str::<Value>(value) {
            Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
            _ => value.into(),
        };
        Ok((name.to_owned(), value))
    };
    text.split(',').map(pair).collect::<Result<Attributes, String>>().map(Value::Object)
}

//! Where an item comes from that a generator made.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::item::Item;

/// What an item was made from, and what it keeps as long as it lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Origin {
    /// What its generator was then.
    pub from: String,
    /// The inputs that it was made with.
    pub input: Map<String, Value>,
    /// The lease of what it needs of other pools: it ends with the last item made of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs: Option<String>,
}

impl Origin {
    /// As an item has it.
    pub fn of(item: &Item) -> Option<Self> {
        item.origin.as_deref().and_then(Self::parse)
    }

    /// Reads what [`Origin::text`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// As it is kept.
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

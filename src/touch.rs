//! Touches in words: what a server saw of statements that wrote rows.

use std::sync::Arc;

use crate::name::Lane;

/// What was done to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// It was made.
    Insert,
    /// It was changed.
    Update,
    /// It was removed.
    Delete,
    /// All rows of a table were removed.
    Truncate,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Insert, Self::Update, Self::Delete, Self::Truncate];

    /// The word for it, in the ledger and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
        }
    }

    /// The one that has this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.as_str() == word)
    }

    /// How a story tells it.
    pub fn past(self) -> &'static str {
        match self {
            Self::Insert => "inserted",
            Self::Update => "updated",
            Self::Delete => "deleted",
            Self::Truncate => "truncated",
        }
    }
}

/// Who wrote, as the server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writer {
    /// Whoever has this lane: by its own login, or in its own database.
    Lane(Lane),
    /// Somebody on behalf of this lane, whose prefix is in the row.
    OnBehalfOf(Lane),
    /// Nobody of this run: its login, and what it calls itself.
    Stranger(String),
}

/// Whose place rows are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// All lanes work here.
    Shared,
    /// A lane's own database or schema.
    Lane(Lane),
    /// No lane has any business here.
    Outside,
}

impl Ground {
    /// As servers and the ledger write it down: nothing, the lane's number, or -1.
    pub fn number(self) -> Option<i32> {
        match self {
            Self::Shared => None,
            Self::Lane(lane) => i32::try_from(lane.0).ok(),
            Self::Outside => Some(-1),
        }
    }

    /// The one that was written down so.
    pub fn recall(number: Option<i32>) -> Self {
        match number.map(u32::try_from) {
            None => Self::Shared,
            Some(Ok(lane)) => Self::Lane(Lane(lane)),
            Some(Err(_)) => Self::Outside,
        }
    }
}

/// One statement, or a part of a long one, and the rows of one table that it wrote.
#[derive(Clone, Debug)]
pub struct Statement {
    /// By whom.
    pub writer: Writer,
    /// Whose place the rows are in.
    pub ground: Ground,
    /// The table: `public.orders`.
    pub kind: Arc<str>,
    /// What was done.
    pub op: Op,
    /// The rows' primary keys, as JSON objects.
    pub keys: Vec<String>,
    /// Their keys before, where an update changed them.
    pub was: Vec<String>,
    /// When, in microseconds since 1970 by the clock of this machine.
    pub at: i64,
    /// The process of the session on the server.
    pub pid: i32,
}

/// What a server saw since it was asked last.
#[derive(Debug)]
pub struct Seen {
    /// Statements in the order of their times.
    pub statements: Vec<Statement>,
    /// How far the times may be off, in microseconds: half the way to the server and back.
    pub uncertainty: i64,
}

/// What became of rows that a run had made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// The table.
    pub kind: String,
    /// The key, as JSON.
    pub key: String,
    /// Whether it must stay, because it was there before; else it could not be removed.
    pub stays: bool,
    /// Why.
    pub why: String,
}

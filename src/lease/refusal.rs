//! Why something is refused: every reason has a code, a status, an exit code and a line that
//! says what to do.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::ask::Holder;
use crate::clock::Timestamp;
use crate::error::ExitCode;

/// How many holders a refusal names.
const SHOWN: usize = 3;

/// Somebody who has what another wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Which item it has.
    pub item: String,
    /// Who.
    pub holder: Holder,
    /// The lease.
    pub lease: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when, at the latest.
    pub until: Timestamp,
}

/// A reason to refuse.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// There is no such pool.
    PoolUnknown {
        /// The name.
        pool: String,
        /// One that is there and is called much alike.
        nearest: Option<String>,
    },
    /// It will never be granted, whatever anybody releases.
    Unsatisfiable {
        /// The pool.
        pool: String,
        /// How many are wanted.
        wanted: u32,
        /// How many are like that, held or not.
        matching: usize,
        /// How many there are at all.
        total: usize,
        /// The item that comes nearest, and which conditions it does not meet.
        nearest: Option<(String, Vec<String>)>,
    },
    /// There is none left just now.
    Exhausted {
        /// The pool.
        pool: String,
        /// How many are wanted.
        wanted: u32,
        /// How many are like that, held or not.
        matching: usize,
        /// Who has them.
        obstacles: Vec<Obstacle>,
        /// How many wait for the same.
        ahead: usize,
        /// How many are not to be had for other reasons: they are being reset, say.
        unready: usize,
        /// How long was waited.
        waited: Duration,
    },
    /// The key was used for another request.
    KeyMismatch {
        /// The key.
        key: String,
    },
    /// Those who wait wait for each other.
    Deadlock {
        /// Who waits for whom for which pool, the one that is refused first.
        cycle: Vec<(Holder, String)>,
    },
    /// The lease has ended.
    Lost {
        /// Its id.
        lease: String,
        /// How: `expired`, `lost`, `revoked`, `released`.
        how: &'static str,
        /// When.
        at: Option<Timestamp>,
    },
    /// The wait was ended by somebody else: its holder's leases were revoked, or its holder died.
    WaitEnded,
    /// The number is of another grant.
    WrongFence {
        /// The lease.
        lease: String,
        /// The number that was given.
        given: u64,
    },
    /// There never was such a lease.
    LeaseUnknown {
        /// Its id.
        lease: String,
    },
    /// The pool, or the item, is held by somebody.
    InUse {
        /// What.
        what: String,
        /// By whom.
        obstacles: Vec<Obstacle>,
    },
    /// There is no such item.
    ItemUnknown {
        /// The pool.
        pool: String,
        /// Its name.
        item: String,
    },
    /// What makes the items of the pool does not make such.
    Unmakeable {
        /// The pool.
        pool: String,
        /// Why.
        why: String,
    },
    /// What makes the items of the pool failed.
    NotMade {
        /// The pool.
        pool: String,
        /// Why.
        why: String,
    },
    /// What makes the items of the pool needs items of others, and was refused them.
    Lacks {
        /// The pool.
        pool: String,
        /// How.
        refusal: Box<Self>,
    },
    /// The request makes no sense.
    Malformed(String),
}

impl Refusal {
    /// The stable word for it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::PoolUnknown { .. } => "pool-unknown",
            Self::Unsatisfiable { .. } | Self::Unmakeable { .. } => "unsatisfiable",
            Self::Exhausted { .. } => "exhausted",
            Self::KeyMismatch { .. } => "key-mismatch",
            Self::Deadlock { .. } => "lease-deadlock",
            Self::Lost { .. } | Self::WrongFence { .. } | Self::WaitEnded => "lease-lost",
            Self::LeaseUnknown { .. } => "lease-unknown",
            Self::InUse { .. } => "in-use",
            Self::ItemUnknown { .. } => "item-unknown",
            Self::NotMade { .. } => "not-made",
            Self::Lacks { refusal, .. } => refusal.code(),
            Self::Malformed(_) => "malformed-request",
        }
    }

    /// The status that HTTP has for it.
    pub fn status(&self) -> u16 {
        match self {
            Self::PoolUnknown { .. } | Self::LeaseUnknown { .. } | Self::ItemUnknown { .. } => 404,
            Self::Unsatisfiable { .. } | Self::Unmakeable { .. } => 422,
            Self::Exhausted { .. } | Self::KeyMismatch { .. } | Self::Deadlock { .. } | Self::InUse { .. } => 409,
            Self::Lost { .. } | Self::WrongFence { .. } | Self::WaitEnded => 410,
            Self::NotMade { .. } => 502,
            Self::Lacks { refusal, .. } => refusal.status(),
            Self::Malformed(_) => 400,
        }
    }

    /// Whether it may be granted later, when others have released what they hold.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Exhausted { .. } | Self::Deadlock { .. } => true,
            Self::Lacks { refusal, .. } => refusal.is_passing(),
            _ => false,
        }
    }

    /// The code that a command ends with.
    pub fn exit_code(&self) -> ExitCode {
        exit_code_of(self.code())
    }

    /// What a program may want to know of it.
    pub fn details(&self) -> Map<String, Value> {
        let details = match self {
            Self::PoolUnknown { pool, nearest } => json!({"pool": pool, "nearest": nearest}),
            Self::Unsatisfiable { pool, wanted, matching, total, nearest } => json!({
                "pool": pool, "wanted": wanted, "matching": matching, "total": total,
                "nearest": nearest.as_ref().map(|(item, missed)| json!({"item": item, "missed": missed})),
            }),
            Self::Exhausted { pool, wanted, matching, obstacles, ahead, unready, .. } => json!({
                "pool": pool, "wanted": wanted, "matching": matching, "ahead": ahead, "unready": unready,
                "holders": holders(obstacles),
            }),
            Self::InUse { obstacles, .. } => json!({"holders": holders(obstacles)}),
            Self::Deadlock { cycle } => {
                let cycle: Vec<_> =
                    cycle.iter().map(|(holder, pool)| json!({"holder": holder, "waits_for": pool})).collect();
                json!({"cycle": cycle})
            }
            Self::Lost { lease, how, at } => {
                json!({"lease": lease, "state": how, "ended_at": at.map(|at| at.to_string())})
            }
            Self::WrongFence { lease, .. } | Self::LeaseUnknown { lease } => json!({"lease": lease}),
            Self::ItemUnknown { pool, item } => json!({"pool": pool, "item": item}),
            Self::NotMade { pool, .. } | Self::Unmakeable { pool, .. } => json!({"pool": pool}),
            // Who holds what, of the pool that is needed.
            Self::Lacks { refusal, .. } => return refusal.details(),
            Self::KeyMismatch { .. } | Self::WaitEnded | Self::Malformed(_) => json!({}),
        };
        let Value::Object(details) = details else { return Map::new() };
        details
    }
}

/// The code that a command ends with whose request was refused so.
pub fn exit_code_of(code: &str) -> ExitCode {
    match code {
        "pool-unknown" | "not-made" => ExitCode::Unavailable,
        "unsatisfiable" => ExitCode::Unsatisfiable,
        "exhausted" | "lease-deadlock" | "in-use" => ExitCode::Exhausted,
        "malformed-request" => ExitCode::Usage,
        _ => ExitCode::Refused,
    }
}

fn holders(obstacles: &[Obstacle]) -> Vec<Value> {
    let shown = obstacles.iter().map(|it| {
        json!({
            "item": it.item, "lease": it.lease, "run_id": it.holder.run, "worker_id": it.holder.worker,
            "test_id": it.holder.test, "client": it.holder.client, "since": it.since.to_string(), "until": it.until.to_string(),
        })
    });
    shown.collect()
}

fn named(obstacles: &[Obstacle]) -> String {
    let mut words: Vec<_> = obstacles
        .iter()
        .take(SHOWN)
        .map(|it| format!("{} by {} since {}, until {} at the latest", it.item, it.holder, it.since, it.until))
        .collect();
    if obstacles.len() > SHOWN {
        words.push(format!("{} more", obstacles.len() - SHOWN));
    }
    words.join("; ")
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PoolUnknown { pool, nearest } => {
                write!(f, "there is no pool {pool}")?;
                match nearest {
                    Some(nearest) => write!(f, "; did you mean {nearest}?"),
                    None if pool.contains(['=', '<', '>']) => write!(f, "; a condition is given as --where '{pool}'"),
                    None => write!(f, "; [pool.{pool}] in isolane.toml or `isolane pool add {pool} …` makes it"),
                }
            }
            Self::Unsatisfiable { pool, wanted, matching, total, nearest } => {
                write!(f, "pool {pool} will never have {wanted} of these: {matching} of {total} items are like that")?;
                match nearest {
                    Some((item, missed)) if !missed.is_empty() => {
                        write!(f, "; the nearest, {item}, is not {}", missed.join(", not "))
                    }
                    _ => Ok(()),
                }
            }
            Self::Exhausted { pool, wanted, matching, obstacles, ahead, unready, waited } => {
                write!(f, "pool {pool} has not {wanted} of these left: ")?;
                write!(f, "{matching} are like that")?;
                if !obstacles.is_empty() {
                    write!(f, ", and held are {}", named(obstacles))?;
                }
                if *unready > 0 {
                    write!(f, "; {unready} are being made ready")?;
                }
                if *ahead > 0 {
                    write!(f, "; {ahead} wait ahead")?;
                }
                if waited.is_zero() { Ok(()) } else { write!(f, "; waited {:.1} s", waited.as_secs_f64()) }
            }
            Self::KeyMismatch { key } => write!(f, "the key {key} has been used for another request"),
            Self::Deadlock { cycle } => {
                let words: Vec<_> = cycle.iter().map(|(holder, pool)| format!("{holder} waits for {pool}")).collect();
                write!(f, "these wait for each other: {}; ask for all in one request", words.join(", "))
            }
            Self::Lost { lease, how, at } => {
                write!(f, "the lease {lease} is {how}")?;
                at.map_or(Ok(()), |at| write!(f, " since {at}"))
            }
            Self::WaitEnded => f.write_str("the wait was ended: all that its holder had was taken back"),
            Self::WrongFence { lease, given } => write!(f, "the lease {lease} has not the fence {given}"),
            Self::LeaseUnknown { lease } => write!(f, "there is no lease {lease}"),
            Self::InUse { what, obstacles } => write!(f, "{what} is held: {}", named(obstacles)),
            Self::ItemUnknown { pool, item } => write!(f, "pool {pool} has no item {item}"),
            Self::Unmakeable { pool, why } => write!(f, "the generator of pool {pool} makes no such item: {why}"),
            Self::NotMade { pool, why } => write!(f, "the generator of pool {pool} made none: {why}"),
            Self::Lacks { pool, refusal } => {
                write!(f, "the generator of pool {pool} made none: it needs others: {refusal}")
            }
            Self::Malformed(why) => f.write_str(why),
        }
    }
}

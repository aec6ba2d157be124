//! What may happen in a story.

use isolane::lease::ask::{Ask, Holder, Want};
use isolane::lease::definition::{Definition, ResetAfter, Usage};
use isolane::lease::predicate::{Attributes, Predicate};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::time::Duration;

/// The pools: how they are used, and what is done after.
pub const POOLS: [&str; 5] = ["plain", "many", "once", "reset", "retired"];

/// What a pool of this name is.
pub fn definition(pool: usize, ttl: u64) -> Definition {
    let command = Some("true".to_owned());
    let base = Definition { ttl: Some(ttl), ..Definition::default() };
    match pool {
        0 => base,
        1 => Definition { usage: Usage::Shared(2), reset: command, ..base },
        2 => Definition { usage: Usage::Consume, ..base },
        3 => Definition { reset: command, ..base },
        _ => Definition { reset: command.clone(), reset_after: ResetAfter::Each, retire: command, ..base },
    }
}

/// An item: which one, and what it looks like.
#[derive(Clone, Copy, Debug)]
pub struct Looks {
    pub id: u8,
    pub looks: u8,
}

impl Looks {
    pub fn attributes(self) -> Attributes {
        let tier = ["gold", "silver", "silver", "bronze"][usize::from(self.looks % 4)];
        let mut table = json!({"id": self.id, "tier": tier, "size": self.looks % 3});
        if self.looks.is_multiple_of(5) {
            table["region"] = json!("eu");
        }
        let Value::Object(table) = table else { unreachable!("an object") };
        table
    }
}

/// What somebody asks for.
#[derive(Clone, Debug)]
pub struct Request {
    pub wants: Vec<(usize, u32, u8)>,
    pub worker: u8,
    pub ttl: Option<u64>,
    pub wait: u64,
    pub key: Option<u8>,
}

fn predicate(which: u8) -> Predicate {
    let conditions = match which {
        0..=7 => json!({}),
        8 | 9 => json!({"tier": "gold"}),
        10 => json!({"size": {"ge": 1}}),
        11 => json!({"tier": {"ne": "gold"}}),
        12 => json!({"region": {"exists": false}}),
        13 | 14 => json!({"tier": ["gold", "bronze"], "size": {"lt": 2}}),
        15 => json!({"tier": "platinum"}),
        id => json!({"id": id - 16}),
    };
    Predicate::from_json(&conditions).expect("conditions")
}

/// The workers: those of a run, and people without one.
pub fn holder(worker: u8) -> Holder {
    let worker = worker % 5;
    if worker == 4 {
        return Holder { client: Some("somebody".to_owned()), ..Holder::default() };
    }
    Holder { run: Some("r1".to_owned()), worker: Some(format!("gw{worker}")), ..Holder::default() }
}

impl Request {
    pub fn ask(&self) -> Ask {
        let mut wants: Vec<Want> = Vec::new();
        for (pool, count, which) in &self.wants {
            if wants.iter().all(|want| want.pool != POOLS[*pool]) {
                wants.push(Want { pool: POOLS[*pool].to_owned(), count: *count, predicate: predicate(*which) });
            }
        }
        Ask {
            wants,
            ttl: self.ttl.map(Duration::from_millis),
            wait: Duration::from_millis(self.wait),
            key: self.key.map(|key| format!("k{key}")),
            holder: holder(self.worker),
        }
    }
}

/// One thing that happens. Numbers of leases and waiters count round what there is.
#[derive(Clone, Debug)]
pub enum Step {
    Define(usize, u64),
    Add(usize, Vec<Looks>),
    Configure(usize, Vec<Looks>),
    Retire(usize, u8),
    Remove(usize, bool),
    Acquire(Request),
    Cancel(u8),
    Renew(u8, Option<u64>, bool),
    Release(u8, Fence),
    Revoke(u8),
    Kill(u8),
    RevokeAll(u8),
    Pass(u64),
    Crash,
    BeginReset(u8),
    WasReset(u8, bool),
    WasRetired(u8),
}

#[derive(Clone, Copy, Debug)]
pub enum Fence {
    None,
    Right,
    Wrong,
}

/// Where it happens, and whether the store keeps it.
#[derive(Clone)]
pub struct Move {
    pub process: usize,
    pub fails: bool,
    pub step: Step,
}

// One line each, also where a story is printed at length.
impl std::fmt::Debug for Move {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fails = if self.fails { " fails" } else { "" };
        write!(f, "process {}{fails}: {}", self.process, format_args!("{:?}", self.step))
    }
}

impl Step {
    /// What has to happen in some story.
    pub const OUTCOMES: [&str; 14] = [
        "granted",
        "granted late",
        "exhausted",
        "exhausted late",
        "unsatisfiable",
        "unsatisfiable late",
        "pool-unknown",
        "pool-unknown late",
        "key-mismatch",
        "lease-deadlock",
        "lease-lost",
        "lease-lost late",
        "in-use",
        "not kept",
    ];
}

fn some_items() -> impl Strategy<Value = Vec<Looks>> {
    prop::collection::vec((0..4_u8, 0..20_u8).prop_map(|(id, looks)| Looks { id, looks }), 1..5)
}

fn request() -> impl Strategy<Value = Request> {
    let pool = prop_oneof![3 => Just(0), 2 => Just(3), 3 => 0..POOLS.len()];
    let want = (pool, prop_oneof![4 => Just(1_u32), 1 => 2..4_u32], 0..20_u8);
    let wants = prop_oneof![3 => prop::collection::vec(want.clone(), 1), 1 => prop::collection::vec(want, 2..4)];
    let ttl = prop_oneof![2 => Just(None), 1 => (1..5000_u64).prop_map(Some)];
    let patience = prop_oneof![1 => Just(0), 3 => 1..20_000_u64];
    let key = prop_oneof![4 => Just(None), 1 => (0..3_u8).prop_map(Some)];
    (wants, 0..5_u8, ttl, patience, key).prop_map(|(wants, worker, ttl, wait, key)| Request {
        wants,
        worker,
        ttl,
        wait,
        key,
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    let pool = || 0..POOLS.len();
    let fence = prop_oneof![2 => Just(Fence::None), 3 => Just(Fence::Right), 1 => Just(Fence::Wrong)];
    prop_oneof![
        2 => (pool(), 2..5_u64).prop_map(|(pool, ttl)| Step::Define(pool, ttl)),
        6 => (pool(), some_items()).prop_map(|(pool, items)| Step::Add(pool, items)),
        3 => (pool(), some_items()).prop_map(|(pool, items)| Step::Configure(pool, items)),
        2 => (pool(), any::<u8>()).prop_map(|(pool, n)| Step::Retire(pool, n)),
        1 => (pool(), any::<bool>()).prop_map(|(pool, when_released)| Step::Remove(pool, when_released)),
        40 => request().prop_map(Step::Acquire),
        3 => any::<u8>().prop_map(Step::Cancel),
        4 => (any::<u8>(), prop::option::of(1..5000_u64), any::<bool>()).prop_map(|(n, ttl, right)| Step::Renew(n, ttl, right)),
        12 => (any::<u8>(), fence).prop_map(|(n, fence)| Step::Release(n, fence)),
        2 => any::<u8>().prop_map(Step::Revoke),
        2 => any::<u8>().prop_map(Step::Kill),
        1 => any::<u8>().prop_map(Step::RevokeAll),
        6 => (1..3000_u64).prop_map(Step::Pass),
        1 => Just(Step::Crash),
        4 => any::<u8>().prop_map(Step::BeginReset),
        5 => (any::<u8>(), any::<bool>()).prop_map(|(n, is_good)| Step::WasReset(n, is_good)),
        3 => any::<u8>().prop_map(Step::WasRetired),
    ]
}

/// A story.
pub fn story() -> impl Strategy<Value = Vec<Move>> {
    let one = (0..2_usize, prop::bool::weighted(0.06), any_step());
    let one = one.prop_map(|(process, fails, step)| Move { process, fails, step });
    // Most pools have items from the beginning.
    let stock = prop::collection::vec(some_items(), POOLS.len()..=POOLS.len()).prop_map(|all| {
        let stock = all.into_iter().enumerate().map(|(pool, items)| Step::Configure(pool, items));
        stock.map(|step| Move { process: 0, fails: false, step }).collect::<Vec<_>>()
    });
    (stock, prop::collection::vec(one, 20..70)).prop_map(|(stock, moves)| [stock, moves].concat())
}

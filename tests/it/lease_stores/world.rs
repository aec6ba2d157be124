//! A place where leases are kept, and processes that share it.

use std::future::Future;
use std::time::Instant;

use isolane::address::Variables;
use isolane::desk::Desk;
use isolane::lease::ask::Ask;
use isolane::lease::grant::Lease;
use isolane::lease::predicate::Attributes;
use isolane::lease::refusal::Refusal;
use isolane::lease::store::Store;
use isolane::ledger::lease::LedgerStore;
use isolane::ledger::{self, Writer};
use isolane::provider::open_store;
use serde_json::{Value, json};

use crate::lab::program::PATIENCE;
use crate::lab::{Database, Lab, Program, Server, wait_until};

/// Makes two tests of each function: one over the ledger, one over a server.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_a_ledger {
            $(#[test] fn $name() { super::$name(&crate::lease_stores::world::World::on_a_ledger()); })*
        }
        mod on_a_server {
            $(#[test] fn $name() { super::$name(&crate::lease_stores::world::World::on_a_server()); })*
        }
    };
}
pub(crate) use on_both;

/// A store that nobody else uses.
pub struct World {
    lab: Lab,
    /// The database, where it is one.
    pub database: Option<Database<'static>>,
}

impl World {
    pub fn on_a_ledger() -> Self {
        Self { lab: Lab::new(), database: None }
    }

    pub fn on_a_server() -> Self {
        Self { lab: Lab::new(), database: Some(Server::shared().database("")) }
    }

    /// The store, as a process opens it.
    pub fn store(&self) -> Box<dyn Store> {
        if let Some(database) = &self.database {
            return store_at(&database.url());
        }
        let path = self.lab.ledger_path();
        let (writer, _) = Writer::start(ledger::open(&path).expect("a ledger"));
        Box::new(LedgerStore::new(writer, &path))
    }

    /// A desk of a process of its own.
    pub fn desk(&self) -> Desk {
        Desk::new(self.store(), None)
    }

    /// `isolane ARGS…` with this store.
    pub fn isolane(&self, args: &str) -> Program {
        let program = self.lab.isolane(args);
        match &self.database {
            Some(database) => program.env("ISOLANE_STORE", database.url()),
            None => program,
        }
    }

    /// Waits until the store knows of one process only.
    pub fn wait_until_alone(&self) {
        if let Some(database) = &self.database {
            aside(|| wait_until("one process is there", || present(database) == 1));
        }
    }
}

/// How many processes' locks the server knows.
pub fn present(database: &Database) -> usize {
    let locks =
        "SELECT objid::text FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid::bigint >> 16 = 26988
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    database.server.texts(&database.name, locks).len()
}

pub fn store_at(url: &str) -> Box<dyn Store> {
    open_store(url, "the test", &Variables::new(), std::path::Path::new("/")).expect("a store")
}

/// Runs something asynchronous to its end.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(work)
}

/// Does something that blocks, and may use the driver, amid what is asynchronous.
pub fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join()).expect("it ends well")
}

pub fn ask(text: &Value) -> Ask {
    Ask::from_json(text.to_string().as_bytes()).expect("an ask")
}

pub async fn acquire(desk: &Desk, text: &Value) -> Result<Lease, Refusal> {
    desk.acquire(ask(text)).await.expect("kept").map(|granted| granted.lease)
}

/// Until so many wait.
pub async fn waiting(desk: &Desk, number: usize) {
    let deadline = Instant::now() + PATIENCE;
    while desk.ask(|session| session.board.waiting().count()).await.expect("kept") < number {
        assert!(Instant::now() < deadline, "waited in vain until {number} wait");
        tokio::task::yield_now().await;
    }
}

/// Items that are called by the first numbers.
pub fn items(n: i64) -> Vec<Attributes> {
    (1..=n).map(|id| std::iter::once(("id".to_owned(), json!(id))).collect()).collect()
}

//! Leases on a PostgreSQL server, against what a suite would write itself on the same server: one
//! `UPDATE … WHERE locked_by IS NULL … RETURNING` for each item that is taken.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use isolane::address::Variables;
use isolane::desk::Desk;
use isolane::lease::ask::Ask;
use isolane::provider::open_store;

use super::lab::{Database, Server};
use super::{line, median};

const CLIENTS: usize = 20;
const ITEMS: i64 = 10_000;
const TIME: Duration = Duration::from_secs(3);
const ROUNDS: usize = 3;

/// Takes the first that seems free, as most suites do that have no tool for it.
const NAIVE: &str = "UPDATE naive SET locked_by = $1
     WHERE id = (SELECT id FROM naive WHERE locked_by IS NULL LIMIT 1) AND locked_by IS NULL RETURNING id";
/// The same, past those that others are about to take.
const SKIPPING: &str = "UPDATE naive SET locked_by = $1
     WHERE id = (SELECT id FROM naive WHERE locked_by IS NULL LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id";

pub fn postgres() {
    let server = Server::own();
    let database = server.database("");
    database.sql(&format!(
        "CREATE TABLE naive (id int PRIMARY KEY, locked_by text); CREATE INDEX ON naive (id) WHERE locked_by IS NULL;
         INSERT INTO naive SELECT generate_series(1, {ITEMS}); ANALYZE naive"
    ));
    let desk = Desk::new(
        open_store(&database.url(), "the benchmark", &Variables::new(), std::path::Path::new("/")).expect("a store"),
        None,
    );
    let items = (1..=ITEMS).map(|id| std::iter::once(("id".to_owned(), id.into())).collect()).collect();
    desk.ask_blocking(move |session| session.board.add("acct", items, None)).expect("items");
    let mut rates = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        rates[0].push(by_hand(&database, NAIVE));
        rates[1].push(by_hand(&database, SKIPPING));
        rates[2].push(leased(&desk));
    }
    let ratio = |other: usize| median(rates[2].iter().zip(&rates[other]).map(|(ours, its)| ours / its).collect());
    let ours = median(rates[2].clone());
    line(
        "20 clients, 10,000 items, pairs a second, over UPDATE",
        &format!("{:.1} ({ours:.0} over {:.0})", ratio(0), median(rates[0].clone())),
        "at least 1.5",
    );
    line(
        "the same over UPDATE with SKIP LOCKED, which keeps no line",
        &format!("{:.1} ({ours:.0} over {:.0})", ratio(1), median(rates[1].clone())),
        "none",
    );
}

/// Pairs of taking and giving back, a second, by sessions of their own.
fn by_hand(database: &Database<'_>, take: &str) -> f64 {
    let (pairs, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (pairs, is_over) = (&pairs, &is_over);
            let mut client = database.client();
            // What was taken outlives the server, as a lease does.
            client.batch_execute("SET synchronous_commit = on").expect("a setting");
            scope.spawn(move || {
                let take = client.prepare(take).expect("a statement");
                let give = client.prepare("UPDATE naive SET locked_by = NULL WHERE id = $1").expect("a statement");
                let name = format!("client {number}");
                while !is_over.load(Ordering::Relaxed) {
                    // Another was faster: again.
                    let Some(row) = client.query_opt(&take, &[&name]).expect("an answer") else { continue };
                    let id: i32 = row.get(0);
                    client.execute(&give, &[&id]).expect("given back");
                    pairs.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        std::thread::sleep(TIME);
        is_over.store(true, Ordering::Relaxed);
    });
    a_second(pairs.into_inner(), TIME)
}

/// The same through a desk.
fn leased(desk: &Desk) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ask = Ask::from_json(br#"{"pool":"acct","ttl":"60s"}"#).expect("an ask");
    let began = Instant::now();
    let pairs = runtime.block_on(async {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (desk, ask) = (desk.clone(), ask.clone());
                tokio::spawn(async move {
                    let mut pairs = 0;
                    while began.elapsed() < TIME {
                        let lease = desk.acquire(ask.clone()).await.expect("kept").expect("granted").lease;
                        let released =
                            desk.ask(move |session| session.board.release(&lease.id, Some(lease.fence))).await;
                        released.expect("kept").expect("released");
                        pairs += 1;
                    }
                    pairs
                })
            })
            .collect();
        let mut pairs = 0;
        for client in clients {
            pairs += client.await.expect("it ends");
        }
        pairs
    });
    a_second(pairs, began.elapsed())
}

fn a_second(pairs: u64, time: Duration) -> f64 {
    pairs as f64 / time.as_secs_f64()
}

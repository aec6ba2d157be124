//! What a desk does when the store fails, when those who ask go away, and when they ask twice.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use isolane::desk::Desk;
use isolane::lease::ask::{Ask, Holder};
use isolane::lease::predicate::Attributes;
use isolane::ledger::lease::LedgerStore;
use isolane::ledger::{self, Durability, Writer};
use serde_json::{Value, json};

use crate::store::{Staged, Surroundings};

struct Scene {
    desk: Desk,
    store: Staged,
    writer: Writer,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ledger.db");
        let (writer, _) = Writer::start(ledger::open(&path).expect("a ledger"));
        let surroundings = Arc::new(Surroundings::default());
        surroundings.now.store(1_000_000_000, Ordering::SeqCst);
        let store = Staged {
            inner: Arc::new(LedgerStore::new(writer.clone(), &path)),
            owner: "p".to_owned(),
            surroundings,
            is_dead: Arc::new(AtomicBool::new(false)),
            fails: Arc::new(AtomicBool::new(false)),
        };
        Self { desk: Desk::new(Box::new(store.clone()), None), store, writer, _folder: folder }
    }

    async fn add(&self, items: Vec<Value>) {
        let items = items.into_iter().map(attributes).collect();
        self.desk.ask(|session| session.board.add("acct", items, None)).await.expect("kept");
    }

    async fn held(&self) -> usize {
        self.desk.ask(|session| session.board.held().len()).await.expect("kept")
    }

    async fn release(&self, lease: &str) {
        let lease = lease.to_owned();
        let released = self.desk.ask(move |session| session.board.release(&lease, None)).await;
        released.expect("kept").expect("released");
    }

    async fn waiting(&self) -> usize {
        self.desk.ask(|session| session.board.waiting().count()).await.expect("kept")
    }

    /// Nothing is written before what comes back is dropped.
    fn pause(&self) -> std::sync::mpsc::Sender<()> {
        let (go, wait) = std::sync::mpsc::channel();
        self.writer.tell(move |_| {
            let _ = wait.recv();
            Ok(())
        });
        go
    }

    /// The next transaction that writes anything is not kept.
    fn fails(&self) {
        self.store.fails.store(true, Ordering::SeqCst);
    }
}

fn attributes(value: Value) -> Attributes {
    let Value::Object(table) = value else { panic!("an object") };
    table
}

fn ask(value: &Value) -> Ask {
    Ask::from_json(value.to_string().as_bytes()).expect("an ask")
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn a_store_that_fails_for_a_while_loses_no_place_in_the_line() {
    let scene = Scene::new();
    scene.add(vec![json!({"id": 1})]).await;
    let first = scene.desk.acquire(ask(&json!({"pool": "acct"}))).await.expect("kept").expect("granted");
    let desk = scene.desk.clone();
    let waits = tokio::spawn(async move { desk.acquire(ask(&json!({"pool": "acct", "wait": "60s"}))).await });
    while scene.waiting().await == 0 {}
    scene.fails();
    let refused = scene.desk.acquire(ask(&json!({"pool": "acct", "wait": "60s"}))).await;
    assert!(refused.expect_err("not kept").to_string().contains("full"));
    assert_eq!((scene.waiting().await, scene.held().await), (1, 1));
    scene.desk.ask(move |session| session.board.release(&first.lease.id, None)).await.expect("kept").expect("released");
    let second = waits.await.expect("it ends").expect("it still waits").expect("granted");
    assert_eq!(second.lease.fence, 2);
}

#[tokio::test]
async fn a_death_that_the_store_could_not_keep_is_kept_when_it_can() {
    let scene = Scene::new();
    scene.add(vec![json!({"id": 1})]).await;
    let clock = scene.desk.clone();
    tokio::spawn(async move { clock.keep_time().await });
    let holder = Holder { run: Some("r".to_owned()), worker: Some("gw0".to_owned()), ..Holder::default() };
    let mut wish = ask(&json!({"pool": "acct"}));
    wish.holder = holder.clone();
    scene.desk.acquire(wish).await.expect("kept").expect("granted");
    assert_eq!(scene.held().await, 1);
    let mut changes = scene.desk.changes();
    changes.mark_unchanged();
    scene.fails();
    scene.desk.holder_died(move |other| *other == holder);
    // Nobody asks for anything: it is tried again by itself.
    changes.changed().await.expect("the desk is there");
    assert_eq!(scene.held().await, 0);
}

#[tokio::test]
async fn who_waits_for_what_its_own_worker_has_waits_unless_that_is_for_the_same_test() {
    let scene = Scene::new();
    scene.add(vec![json!({"id": 1})]).await;
    let of = |test: Option<&str>| Ask {
        holder: Holder {
            run: Some("r".to_owned()),
            worker: Some("w0".to_owned()),
            test: test.map(str::to_owned),
            ..Holder::default()
        },
        ..ask(&json!({"pool": "acct", "wait": "60s"}))
    };
    for (has, wants) in [(None, None), (Some("a"), Some("b")), (None, Some("a")), (Some("a"), None)] {
        let first = scene.desk.acquire(of(has)).await.expect("kept").expect("granted");
        let mut second = pin!(scene.desk.acquire(of(wants)));
        assert!(poll(second.as_mut()).is_pending());
        assert_eq!(scene.waiting().await, 1, "{has:?} has it, {wants:?} waits");
        scene.release(&first.lease.id).await;
        let second = second.await.expect("kept").expect("granted");
        scene.release(&second.lease.id).await;
    }
    let _first = scene.desk.acquire(of(Some("a"))).await.expect("kept").expect("granted");
    let refused = scene.desk.acquire(of(Some("a"))).await.expect("kept").expect_err("it would wait for ever");
    assert_eq!(refused.code(), "lease-deadlock");
}

#[tokio::test]
async fn what_is_granted_to_one_who_has_just_left_goes_back() {
    let scene = Scene::new();
    scene.add(vec![json!({"id": 1})]).await;
    {
        let pause = scene.pause();
        let mut asks = pin!(scene.desk.acquire(ask(&json!({"pool": "acct"}))));
        assert!(poll(asks.as_mut()).is_pending());
        drop(pause);
        assert_eq!(scene.held().await, 1, "the answer has come");
    }
    assert_eq!(scene.held().await, 0, "nobody took it");
    let first = scene.desk.acquire(ask(&json!({"pool": "acct"}))).await.expect("kept").expect("granted");
    {
        let mut waits = pin!(scene.desk.acquire(ask(&json!({"pool": "acct", "wait": "60s"}))));
        assert!(poll(waits.as_mut()).is_pending());
        assert_eq!(scene.waiting().await, 1);
        assert!(poll(waits.as_mut()).is_pending(), "it waits in line");
        scene.release(&first.lease.id).await;
        assert_eq!((scene.waiting().await, scene.held().await), (0, 1));
    }
    assert_eq!(scene.held().await, 0, "nobody took it");
}

#[tokio::test]
async fn who_asks_twice_with_one_key_is_told_twice_of_one_lease() {
    let scene = Scene::new();
    scene.add(vec![json!({"id": 1})]).await;
    let first = scene.desk.acquire(ask(&json!({"pool": "acct"}))).await.expect("kept").expect("granted");
    let wish = || ask(&json!({"pool": "acct", "wait": "60s", "key": "k"}));
    let mut lost = Box::pin(scene.desk.acquire(wish()));
    assert!(poll(lost.as_mut()).is_pending());
    assert_eq!(scene.waiting().await, 1);
    // A connection that drops and comes again.
    drop(lost);
    let tasks: Vec<_> = (0..2)
        .map(|_| {
            let (desk, wish) = (scene.desk.clone(), wish());
            tokio::spawn(async move { desk.acquire(wish).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(scene.waiting().await, 1, "it keeps its one place");
    let refused = scene.desk.acquire(ask(&json!({"pool": "acct", "key": "k"}))).await.expect("kept");
    assert_eq!(refused.expect_err("it does not wait").code(), "exhausted");
    scene.desk.ask(move |session| session.board.release(&first.lease.id, None)).await.expect("kept").expect("released");
    for task in tasks {
        assert_eq!(task.await.expect("it ends").expect("kept").expect("granted").lease.fence, 2);
    }
    assert_eq!(scene.desk.acquire(wish()).await.expect("kept").expect("the same").lease.fence, 2);
}

#[tokio::test]
async fn a_full_disk_keeps_all_of_a_request_or_nothing_and_later_requests_work() {
    let scene = Scene::new();
    scene.add(vec![json!({"id": 1})]).await;
    // Another process's desk, whose work shares a transaction with that of the first.
    let other = Desk::new(Box::new(Staged { owner: "q".to_owned(), ..scene.store.clone() }), None);
    scene.store.surroundings.alive.lock().expect("no panic inside").extend(["p".to_owned(), "q".to_owned()]);
    let pages = |n: i64| {
        let change = move |db: &rusqlite::Connection| db.pragma_update(None, "max_page_count", n);
        scene.writer.commit(Durability::Process, change).expect("a limit");
    };
    pages(1);
    let (go, wait) = std::sync::mpsc::channel::<()>();
    scene.writer.tell(move |_| {
        let _ = wait.recv();
        Ok(())
    });
    let many: Vec<_> = (10..5000).map(|id| attributes(json!({"id": id, "text": "x".repeat(100)}))).collect();
    let mut big = Box::pin(scene.desk.ask(move |session| session.board.add("acct", many, None)));
    assert!(poll(big.as_mut()).is_pending());
    let mut small = Box::pin(other.acquire(ask(&json!({"pool": "acct"}))));
    assert!(poll(small.as_mut()).is_pending());
    go.send(()).expect("the writer waits");
    assert!(big.await.expect_err("there is no room").to_string().contains("full"));
    // Whether there was room for this one is the disk's affair; what was said of it is true.
    let lease = small.await.ok().map(|reply| reply.expect("granted"));
    pages(1_000_000);
    let there = other.ask(|session| session.board.held().len()).await.expect("kept");
    assert_eq!((scene.held().await, there), (usize::from(lease.is_some()), usize::from(lease.is_some())));
    if let Some(lease) = lease {
        scene
            .desk
            .ask(move |session| session.board.release(&lease.lease.id, None))
            .await
            .expect("kept")
            .expect("released");
    }
    assert_eq!(scene.desk.ask(|session| session.board.items_of("acct").count()).await.expect("kept"), 1);
    other.acquire(ask(&json!({"pool": "acct"}))).await.expect("kept").expect("granted");
    assert!(scene.desk.acquire(ask(&json!({"pool": "acct"}))).await.expect("kept").is_err());
}

#[tokio::test]
async fn wants_of_one_pool_share_what_there_is_and_are_refused_where_that_is_too_little() {
    let scene = Scene::new();
    scene.add(vec![json!({"id": 1, "tier": "gold"}), json!({"id": 2, "tier": "iron"})]).await;
    let any = json!({"pool": "acct"});
    let gold = json!({"pool": "acct", "where": {"tier": "gold"}});
    let both = scene.desk.acquire(ask(&json!({"want": [any, gold]}))).await.expect("kept").expect("granted");
    let names: Vec<&str> = both.lease.items.iter().map(|held| &*held.name).collect();
    assert_eq!(names, ["2", "1"], "each in the order of the wants");
    let three = json!({"want": [any, gold, any], "wait": "60s"});
    let refused = scene.desk.acquire(ask(&three)).await.expect("kept").expect_err("there are two");
    assert_eq!(refused.code(), "unsatisfiable");
    let golds = json!({"want": [gold, gold], "wait": "60s"});
    let refused = scene.desk.acquire(ask(&golds)).await.expect("kept").expect_err("there is one");
    assert_eq!(refused.code(), "unsatisfiable");
}

#[tokio::test]
async fn what_was_retired_is_new_when_it_is_added_in_the_same_moment() {
    let scene = Scene::new();
    scene.add(vec![json!({"id": 1})]).await;
    let added = scene.desk.ask(|session| {
        session.board.retire("acct", &["1".to_owned()]).expect("retired");
        session.board.add("acct", vec![attributes(json!({"id": 1}))], None);
        session.board.remove_pool("acct", false).expect("removed");
        session.board.add("acct", vec![attributes(json!({"id": 1}))], None);
    });
    added.await.expect("kept");
    assert!(scene.desk.acquire(ask(&json!({"pool": "acct"}))).await.expect("kept").is_ok());
    let fresh = Desk::new(Box::new(Staged { owner: "q".to_owned(), ..scene.store.clone() }), None);
    assert_eq!(fresh.ask(|session| session.board.items_of("acct").count()).await.expect("kept"), 1);
}

#[tokio::test]
async fn the_youngest_of_those_who_wait_for_each_other_is_refused_by_name() {
    let scene = Scene::new();
    scene.add(vec![json!({"id": 1}), json!({"id": 2})]).await;
    let wish = |worker: &str, id: u32, wait: &str| {
        ask(&json!({"pool": "acct", "where": {"id": id}, "wait": wait, "run": "r", "worker": worker}))
    };
    let one = scene.desk.acquire(wish("gw1", 1, "0s")).await.expect("kept").expect("granted");
    scene.desk.acquire(wish("gw2", 2, "0s")).await.expect("kept").expect("granted");
    let (desk, waits) = (scene.desk.clone(), wish("gw2", 1, "60s"));
    let waits = tokio::spawn(async move { desk.acquire(waits).await });
    while scene.waiting().await == 0 {}
    let refused = scene.desk.acquire(wish("gw1", 2, "60s")).await.expect("kept").expect_err("for ever");
    assert_eq!(refused.code(), "lease-deadlock");
    let text = refused.to_string();
    assert!(text.contains("gw1 waits for acct, gw2 waits for acct"), "{text}");
    scene.desk.ask(move |session| session.board.release(&one.lease.id, None)).await.expect("kept").expect("released");
    waits.await.expect("it ends").expect("kept").expect("the other goes on");
}

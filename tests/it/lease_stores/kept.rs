//! What is written is read as it was, and what fails is not written.

use std::sync::mpsc::channel;

use isolane::clock::Timestamp;
use isolane::lease::ask::Holder;
use isolane::lease::definition::{Definition, Generator, Guard, Need, ResetAfter, Stock, Table, Usage};
use isolane::lease::grant::{Held, Lease, LeaseState};
use isolane::lease::item::{Item, ItemState};
use isolane::lease::queue::{Waiter, WaiterState};
use isolane::lease::store::{Head, Pool, Rows, Store, StoreError, Transaction};
use serde_json::{Value, json};

use super::world::{World, ask, on_both};

on_both!(
    what_one_wrote_another_reads_as_it_was,
    what_was_changed_since_a_version_is_told_and_nothing_else,
    of_a_work_that_fails_nothing_is_kept_and_the_next_goes_on,
    works_that_come_together_see_one_another,
    time_goes_on,
);

const ODD: &str = "it's \"odd\"; \\ DROP TABLE {a,b} NULL \u{1F600} \n\t $1";

/// Does `work` in a transaction and waits.
fn done<T: Send + 'static>(
    store: &dyn Store,
    work: impl FnOnce(&mut dyn Transaction) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (value, values) = channel();
    let (kept, keeps) = channel();
    let work = move |transaction: &mut dyn Transaction| {
        value.send(work(transaction)?).expect("heard");
        Ok(())
    };
    store.submit(Box::new(work), Box::new(move |was| kept.send(was).expect("heard")));
    keeps.recv().expect("told").map(|()| values.recv().expect("a value"))
}

fn definition() -> Definition {
    let object = |value: Value| value.as_object().cloned().expect("an object");
    Definition {
        usage: Usage::Shared(3),
        ttl: Some(7),
        reset: Some(ODD.to_owned()),
        reset_after: ResetAfter::Each,
        retire: Some("retire".to_owned()),
        generator: Some(Generator {
            run: ODD.to_owned(),
            inputs: Vec::new(),
            stock: vec![Stock { input: object(json!({"b": 1, "a": [null, 1.5]})), minimum: 4 }],
            maximum: Some(9),
            needs: vec![Need { pool: "other".to_owned(), count: 2, conditions: object(json!({"tier": "gold"})) }],
            timeout: 60,
            fingerprint: "f".to_owned(),
        }),
        table: Some(Table {
            name: ODD.to_owned(),
            condition: Some("a = 'b'".to_owned()),
            key: "id".to_owned(),
            guard: Guard::Refuse,
        }),
        folder: "/somewhere".into(),
        timeout: Some(9),
        trouble: None,
        is_leaving: true,
    }
}

fn item(key: i64) -> Item {
    let attributes = json!({"z": key, "a": ODD, "deep": {"b": [true, null, 1e300]}, "empty": ""});
    Item {
        key,
        state: ItemState::Resetting,
        held: 2,
        fence: 1 << 40,
        used: 17,
        failures: 1,
        is_soiled: true,
        is_leaving: true,
        is_configured: true,
        origin: Some(ODD.to_owned()),
        note: Some(ODD.to_owned()),
        name: format!("{ODD}{key}").into(),
        ..Item::new("odd", attributes.as_object().cloned().expect("an object"))
    }
}

fn lease(id: &str, state: LeaseState) -> Lease {
    Lease {
        id: id.to_owned(),
        items: (1..3).map(|item| Held { item, pool: "odd".into(), name: format!("{ODD}{item}").into() }).collect(),
        holder: Holder {
            run: Some("r".to_owned()),
            worker: Some(ODD.to_owned()),
            test: Some("t[a,b]".to_owned()),
            lane: Some(3),
            client: None,
        },
        key: Some((ODD.to_owned(), "[]".to_owned())),
        fence: 5,
        state,
        acquired_at: Timestamp(1_700_000_000_000_001),
        expires_at: Timestamp(1_700_000_060_000_001),
        ended_at: (state != LeaseState::Held).then_some(Timestamp(1_700_000_000_500_000)),
        ttl: 60_000_000,
        is_kept: true,
    }
}

fn waiter(ticket: u64, state: WaiterState) -> Waiter {
    Waiter {
        ticket,
        ask: ask(&json!({"want": [{"pool": "odd", "where": {"a": ODD}}], "wait": "9s", "key": ODD, "worker": "w0"})),
        since: Timestamp(1),
        until: Timestamp(9_000_001),
        state,
        lease: None,
        owner: ODD.to_owned(),
    }
}

fn all() -> (Head, Rows) {
    let head = Head { version: 1, fence: 5, ticket: 2, used: 20, item: 2 };
    let rows = Rows {
        pools: vec![Pool { name: "odd".to_owned(), definition: definition(), is_removed: false }],
        new_items: vec![item(1), item(2)],
        items: Vec::new(),
        leases: vec![lease("held", LeaseState::Held), lease("over", LeaseState::Lost)],
        waiters: vec![waiter(1, WaiterState::Waiting), waiter(2, WaiterState::Gone)],
    };
    (head, rows)
}

fn what_one_wrote_another_reads_as_it_was(world: &World) {
    let (head, rows) = all();
    let its = rows.clone();
    done(&*world.store(), move |transaction| transaction.write(head, &its)).expect("kept");
    let read = done(&*world.store(), |transaction| {
        let over = transaction.lease("over")?;
        let none = transaction.lease("it's none")?;
        Ok((transaction.head()?, transaction.rows(None)?, over, none))
    });
    let (read_head, mut read, over, none) = read.expect("read");
    assert_eq!(read_head, head);
    assert_eq!(read.pools, rows.pools);
    read.new_items.sort_by_key(|item| item.key);
    assert_eq!(read.new_items, rows.new_items);
    assert_eq!(read.leases, rows.leases[..1]);
    assert_eq!(read.waiters, rows.waiters[..1]);
    assert_eq!((over.as_ref(), none), (Some(&rows.leases[1]), None));
}

fn what_was_changed_since_a_version_is_told_and_nothing_else(world: &World) {
    let store = world.store();
    let (head, rows) = all();
    let its = rows.clone();
    done(&*store, move |transaction| transaction.write(head, &its)).expect("kept");
    let mut changed = rows.new_items[1].clone();
    changed.state = ItemState::Free;
    changed.note = None;
    // It was asked for once more, for longer, and then granted.
    let later = Timestamp(19_000_001);
    let gone = Waiter { until: later, ..waiter(1, WaiterState::Granted) };
    let ended = lease("held", LeaseState::Released);
    let second = Rows {
        items: vec![changed.clone()],
        leases: vec![ended.clone()],
        waiters: vec![gone.clone()],
        ..Rows::default()
    };
    done(&*store, move |transaction| transaction.write(Head { version: 2, ..head }, &second)).expect("kept");
    let since = |version| done(&*store, move |transaction| transaction.rows(Some(version))).expect("read");
    let read = since(1);
    assert_eq!(
        (read.pools.len(), read.new_items, read.leases, read.waiters),
        (0, vec![changed], vec![ended], vec![gone])
    );
    assert!(since(2).is_empty());
    assert_eq!(since(0).new_items.len(), 2);
}

fn of_a_work_that_fails_nothing_is_kept_and_the_next_goes_on(world: &World) {
    let store = world.store();
    let (head, rows) = all();
    let its = rows.clone();
    let failed = done(&*store, move |transaction| {
        transaction.write(head, &its)?;
        // What was written before it is asked is on its way already.
        transaction.rows(None)?;
        Err::<(), _>(StoreError("on purpose".to_owned()))
    });
    assert_eq!(failed.expect_err("it fails").0, "on purpose");
    let left = done(&*store, |transaction| Ok((transaction.head()?, transaction.rows(None)?))).expect("read");
    assert_eq!(left.0, Head::default());
    assert!(left.1.is_empty());
    done(&*store, move |transaction| transaction.write(head, &rows)).expect("kept");
}

fn works_that_come_together_see_one_another(world: &World) {
    let store = world.store();
    let (kept, keeps) = channel();
    for number in 0..50_u64 {
        let work = move |transaction: &mut dyn Transaction| {
            let head = transaction.head()?;
            assert_eq!(head.version, number);
            let item = item(i64::try_from(number).expect("small"));
            let rows = Rows { new_items: vec![item], ..Rows::default() };
            transaction.write(Head { version: head.version + 1, ..head }, &rows)
        };
        let kept = kept.clone();
        store.submit(Box::new(work), Box::new(move |was| kept.send(was).expect("heard")));
    }
    drop(kept);
    assert_eq!(keeps.into_iter().flatten().count(), 50);
    let (head, rows) = done(&*store, |it| Ok((it.head()?, it.rows(None)?))).expect("read");
    assert_eq!((head.version, rows.new_items.len()), (50, 50));
}

fn time_goes_on(world: &World) {
    let store = world.store();
    let now = || done(&*store, |transaction| transaction.now()).expect("a time");
    let first = now();
    assert!(first.age(Timestamp::now()).as_secs() < 60 && Timestamp::now().age(first).as_secs() < 60);
    assert!(now() >= first);
}

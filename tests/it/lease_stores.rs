//! What every store of leases does, on a ledger's file and on a PostgreSQL server: each test runs
//! over both.

mod kept;
mod server;
mod world;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isolane::lease::refusal::Refusal;
use serde_json::json;

use crate::lab::program::wait_until;
use nix::sys::signal::Signal;
use world::{World, acquire, ask, items, on_both, run, waiting};

on_both!(
    who_waits_gets_the_item_when_it_is_released_and_who_left_does_not,
    two_processes_see_what_the_other_did,
    a_lease_ends_by_time_and_its_wait_too,
    those_who_come_first_are_served_first_whatever_process_they_wait_in,
    no_two_hold_one_item_at_a_time,
    a_process_that_dies_waits_no_more,
);

fn who_waits_gets_the_item_when_it_is_released_and_who_left_does_not(world: &World) {
    let desk = world.desk();
    run(async {
        desk.ask(|session| session.board.add("acct", items(1), None)).await.expect("kept");
        let first = acquire(&desk, &json!({"pool": "acct"})).await.expect("granted");
        let refused = acquire(&desk, &json!({"pool": "acct"})).await.expect_err("held");
        assert_eq!(refused.code(), "exhausted");
        let (leaver, waiter) = (desk.clone(), desk.clone());
        let leaver = tokio::spawn(async move { acquire(&leaver, &json!({"pool": "acct", "wait": "60s"})).await });
        waiting(&desk, 1).await;
        let waiter = tokio::spawn(async move { acquire(&waiter, &json!({"pool": "acct", "wait": "60s"})).await });
        waiting(&desk, 2).await;
        leaver.abort();
        let _ = leaver.await;
        let id = first.id.clone();
        desk.ask(move |session| session.board.release(&id, None)).await.expect("kept").expect("released");
        let second = waiter.await.expect("it ends").expect("granted");
        assert!(second.fence > first.fence);
        let id = first.id.clone();
        assert_eq!(desk.ask(move |session| session.board.release(&id, None)).await.expect("kept"), Ok(()));
        assert_eq!(desk.ask(|session| session.board.held().len()).await.expect("kept"), 1);
    });
}

fn two_processes_see_what_the_other_did(world: &World) {
    let (a, b) = (world.desk(), world.desk());
    run(async {
        a.ask(|session| session.board.add("acct", items(1), None)).await.expect("kept");
        let lease = acquire(&a, &json!({"pool": "acct"})).await.expect("granted");
        assert!(acquire(&b, &json!({"pool": "acct"})).await.is_err());
        let waiter = b.clone();
        let waiter = tokio::spawn(async move { acquire(&waiter, &json!({"pool": "acct", "wait": "60s"})).await });
        waiting(&a, 1).await;
        let id = lease.id.clone();
        a.ask(move |session| session.board.release(&id, Some(lease.fence))).await.expect("kept").expect("released");
        let second = waiter.await.expect("it ends").expect("granted");
        let id = second.id.clone();
        a.ask(move |session| session.board.revoke(&id)).await.expect("kept").expect("revoked");
        let id = second.id.clone();
        let lost = b.ask(move |session| session.board.renew(&id, None, None)).await.expect("kept");
        assert!(matches!(lost, Err(Refusal::Lost { how: "revoked", .. })), "{lost:?}");
        // One that comes later asks the store what became of a lease.
        let (late, id) = (world.desk(), lease.id.clone());
        let renewed = late.ask(move |session| {
            session.recall(&id);
            session.board.renew(&id, None, None)
        });
        let lost = renewed.await.expect("kept");
        assert!(matches!(lost, Err(Refusal::Lost { how: "released", .. })), "{lost:?}");
    });
}

fn a_lease_ends_by_time_and_its_wait_too(world: &World) {
    let desk = world.desk();
    run(async {
        let timer = desk.clone();
        tokio::spawn(async move { timer.keep_time().await });
        desk.ask(|session| session.board.add("acct", items(1), None)).await.expect("kept");
        let lease = acquire(&desk, &json!({"pool": "acct", "ttl": "50ms"})).await.expect("granted");
        let next = acquire(&desk, &json!({"pool": "acct", "wait": "60s"})).await.expect("granted");
        assert!(next.acquired_at >= lease.expires_at);
        let late = acquire(&desk, &json!({"pool": "acct", "wait": "50ms"})).await;
        assert!(matches!(late, Err(Refusal::Exhausted { waited, .. }) if waited >= Duration::from_millis(50)));
        let lost = desk.ask(move |session| session.board.renew(&lease.id, None, None)).await.expect("kept");
        assert!(matches!(lost, Err(Refusal::Lost { how: "expired", .. })), "{lost:?}");
    });
}

fn those_who_come_first_are_served_first_whatever_process_they_wait_in(world: &World) {
    const WAITERS: usize = 12;
    let desks = [world.desk(), world.desk()];
    run(async {
        desks[0].ask(|session| session.board.add("acct", items(1), None)).await.expect("kept");
        let first = acquire(&desks[0], &json!({"pool": "acct"})).await.expect("granted");
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..WAITERS {
            let (desk, served) = (desks[number % 2].clone(), Arc::clone(&served));
            tasks.push(tokio::spawn(async move {
                let lease = acquire(&desk, &json!({"pool": "acct", "wait": "60s"})).await.expect("granted");
                served.lock().expect("a list").push(number);
                desk.ask(move |session| session.board.release(&lease.id, None)).await.expect("kept").expect("released");
            }));
            waiting(&desks[0], number + 1).await;
        }
        desks[1].ask(move |session| session.board.release(&first.id, None)).await.expect("kept").expect("released");
        for task in tasks {
            task.await.expect("it ends");
        }
        assert_eq!(*served.lock().expect("a list"), (0..WAITERS).collect::<Vec<_>>());
    });
}

fn no_two_hold_one_item_at_a_time(world: &World) {
    const ITEMS: i64 = 3;
    let desks = [world.desk(), world.desk()];
    run(async {
        desks[0].ask(|session| session.board.add("acct", items(ITEMS), None)).await.expect("kept");
        let held: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
        let fences: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
        let tasks: Vec<_> = (0..8)
            .map(|number| {
                let (desk, held, fences) = (desks[number % 2].clone(), Arc::clone(&held), Arc::clone(&fences));
                tokio::spawn(async move {
                    for round in 0..10 {
                        let count = 1 + (number + round) % 2;
                        let wanted = json!({"pool": "acct", "count": count, "wait": "60s"});
                        let lease = acquire(&desk, &wanted).await.expect("granted");
                        assert_eq!(lease.items.len(), count);
                        for item in &lease.items {
                            let other = held.lock().expect("a map").insert(item.name.to_string(), lease.fence);
                            assert_eq!(other, None, "two have {}", item.name);
                            let before = fences.lock().expect("a map").insert(item.name.to_string(), lease.fence);
                            assert!(before < Some(lease.fence), "fences grow");
                        }
                        tokio::task::yield_now().await;
                        for item in &lease.items {
                            held.lock().expect("a map").remove(&*item.name);
                        }
                        let release = desk.ask(move |session| session.board.release(&lease.id, Some(lease.fence)));
                        release.await.expect("kept").expect("released");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("it ends");
        }
        assert_eq!(fences.lock().expect("a map").len(), 3);
        assert_eq!(desks[1].ask(|session| session.board.held().len()).await.expect("kept"), 0);
    });
}

fn a_process_that_dies_waits_no_more(world: &World) {
    let desk = world.desk();
    run(async {
        desk.ask(|session| session.board.add("acct", items(1), None)).await.expect("kept");
        let first = acquire(&desk, &json!({"pool": "acct"})).await.expect("granted");
        let dying = world.isolane("lease acquire acct --wait 60s").start();
        waiting(&desk, 1).await;
        let waiter = desk.clone();
        let waiter = tokio::spawn(async move { acquire(&waiter, &json!({"pool": "acct", "wait": "60s"})).await });
        waiting(&desk, 2).await;
        dying.signal(Signal::SIGKILL);
        drop(dying);
        world.wait_until_alone();
        desk.ask(move |session| session.board.release(&first.id, None)).await.expect("kept").expect("released");
        let lease = waiter.await.expect("it ends").expect("granted");
        assert_eq!(lease.holder, ask(&json!({"pool": "acct"})).holder, "the one who lives has it");
    });
    wait_until("nobody waits", || run(async { desk.ask(|it| it.board.waiting().count()).await }).ok() == Some(0));
}

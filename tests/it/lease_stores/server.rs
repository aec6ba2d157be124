//! What may happen to a server that keeps leases, and who may not keep them there.

use serde_json::json;

use super::world::{World, acquire, aside, ask, items, present, run, store_at, waiting};
use crate::lab::{Lab, Server, wait_until};
use isolane::desk::Desk;
use isolane::lease::refusal::Refusal;

#[test]
fn a_server_that_was_restarted_lost_no_lease_and_no_place_in_the_line() {
    let server = Server::own();
    let database = server.database("");
    let desks = [0, 1].map(|_| Desk::new(store_at(&database.url()), None));
    run(async {
        desks[0].ask(|session| session.board.add("acct", items(2), None)).await.expect("kept");
        let both = acquire(&desks[0], &json!({"pool": "acct", "count": 2, "ttl": "1h"})).await.expect("granted");
        let mut waiters = Vec::new();
        for number in 0..4 {
            let desk = desks[number % 2].clone();
            let wanted = json!({"pool": "acct", "wait": "60s"});
            waiters.push(tokio::spawn(async move { desk.acquire(ask(&wanted)).await }));
            waiting(&desks[0], number + 1).await;
        }
        aside(|| server.restart());
        // Both processes are known again, though nobody asks for anything.
        aside(|| wait_until("both are there", || present(&database) == 2));
        let held = desks[0].ask(|session| session.board.held()).await.expect("it is there again");
        assert_eq!(held, std::slice::from_ref(&both));
        assert_eq!(desks[1].ask(|session| session.board.waiting().count()).await.expect("kept"), 4);
        desks[0].ask(move |session| session.board.release(&both.id, None)).await.expect("kept").expect("released");
        let mut fences = Vec::new();
        for (number, waiter) in waiters.into_iter().enumerate() {
            let lease = waiter.await.expect("it ends").expect("kept").expect("granted").lease;
            fences.push(lease.fence);
            desks[number % 2].ask(move |it| it.board.release(&lease.id, None)).await.expect("kept").expect("released");
        }
        assert!(fences.is_sorted(), "first come, first served: {fences:?}");
    });
}

#[test]
fn while_the_server_is_away_those_who_ask_are_told_and_those_who_wait_go_on_waiting() {
    let server = Server::own();
    let database = server.database("");
    let desk = Desk::new(store_at(&database.url()), None);
    run(async {
        let timer = desk.clone();
        tokio::spawn(async move { timer.keep_time().await });
        desk.ask(|session| session.board.add("acct", items(1), None)).await.expect("kept");
        let first = acquire(&desk, &json!({"pool": "acct", "ttl": "1h"})).await.expect("granted");
        let waiter = desk.clone();
        let waiter = tokio::spawn(async move { acquire(&waiter, &json!({"pool": "acct", "wait": "60s"})).await });
        waiting(&desk, 1).await;
        aside(|| server.stop());
        let refused = desk.ask(|_| ()).await.expect_err("it is away");
        assert!(refused.0.contains("cannot reach the PostgreSQL server"), "{refused}");
        aside(|| server.start_again());
        desk.ask(move |session| session.board.release(&first.id, None)).await.expect("kept").expect("released");
        waiter.await.expect("it ends").expect("granted");
    });
}

#[test]
fn a_session_that_is_ended_in_the_middle_is_told_of_and_nothing_is_half_done() {
    let world = World::on_a_server();
    let (desk, other) = (world.desk(), world.desk());
    let database = world.database.as_ref().expect("a server");
    run(async {
        desk.ask(|session| session.board.add("acct", items(2), None)).await.expect("kept");
        let end = "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity
                   WHERE datname = current_database() AND state = 'idle in transaction' AND application_name = 'isolane leases'";
        let (server, name) = (database.server, database.name.clone());
        let cut = desk.ask(move |session| {
            session.board.retire("acct", &["1".to_owned()]).expect("it is there");
            assert_eq!(server.texts(&name, end), ["true"]);
        });
        let told = cut.await.expect_err("it was cut off");
        assert!(told.0.contains("ask again"), "{told}");
        for desk in [&desk, &other] {
            let left = desk.ask(|session| session.board.items_of("acct").count()).await.expect("it is there again");
            assert_eq!(left, 2);
        }
        let granted = acquire(&desk, &json!({"pool": "acct", "count": 2})).await.expect("granted");
        assert_eq!(other.ask(|session| session.board.held()).await.expect("kept"), [granted]);
    });
}

#[test]
fn who_is_taken_for_dead_and_lives_is_told_to_ask_again() {
    let world = World::on_a_server();
    let (desk, other) = (world.desk(), world.desk());
    run(async {
        desk.ask(|session| session.board.add("acct", items(1), None)).await.expect("kept");
        let first = acquire(&desk, &json!({"pool": "acct"})).await.expect("granted");
        let waiter = other.clone();
        let waiter = tokio::spawn(async move { waiter.acquire(ask(&json!({"pool": "acct", "wait": "60s"}))).await });
        waiting(&desk, 1).await;
        // As a process does that no lock of it is known of.
        let owner = desk.ask(|session| session.board.waiting().map(|it| it.owner.clone()).collect::<Vec<_>>());
        let owner = owner.await.expect("kept").remove(0);
        desk.ask(move |session| session.board.lost_process(&owner)).await.expect("kept");
        let told = waiter.await.expect("it ends").expect("kept").expect_err("its place is gone");
        assert_eq!(told.to_string(), Refusal::WaitEnded.to_string());
        desk.ask(move |session| session.board.release(&first.id, None)).await.expect("kept").expect("released");
        assert_eq!(desk.ask(|session| session.board.held().len()).await.expect("kept"), 0, "nobody has it unknowingly");
    });
}

#[test]
fn many_who_come_first_make_the_tables_once() {
    let database = Server::shared().database("");
    let url = database.url();
    std::thread::scope(|scope| {
        for number in 0..6_i64 {
            let url = &url;
            scope.spawn(move || {
                let desk = Desk::new(store_at(url), None);
                let added = desk.ask_blocking(move |it| it.board.add(&format!("pool{number}"), items(2), None));
                assert_eq!(added.expect("kept"), 2);
            });
        }
    });
    let count =
        "SELECT count(*)::text FROM isolane_leases.item UNION ALL SELECT version::text FROM isolane_leases.lease_head";
    assert_eq!(database.server.texts(&database.name, count), ["12", "6"]);
    wait_until("no session is left", || present(&database) == 0);
}

#[test]
fn time_never_goes_back_whatever_the_servers_clock_does() {
    let world = World::on_a_server();
    let desk = world.desk();
    let database = world.database.as_ref().expect("a server");
    let later = "UPDATE isolane_leases.lease_head SET now = now + 3600000000 RETURNING now::text";
    desk.ask_blocking(|session| session.board.add("acct", items(1), None)).expect("kept");
    let later = database.server.texts(&database.name, later).remove(0);
    let now = desk.ask_blocking(|session| session.board.now()).expect("kept");
    assert_eq!(now.micros().to_string(), later);
}

#[test]
fn at_a_shell_a_store_is_used_as_a_ledger_is() {
    let world = World::on_a_server();
    let database = world.database.as_ref().expect("a server");
    let lab = Lab::new();
    let with = |args: &str| lab.isolane(args).arg("--store").arg(database.url());
    with("pool add acct id=1,tier=gold id=2").run().assert_code(0).assert_says("2 added");
    let lease = with("lease acquire acct --where tier=gold --format json").run().assert_code(0).out();
    let lease: serde_json::Value = serde_json::from_str(&lease).expect("JSON");
    let id = lease[0]["lease_id"].as_str().expect("an id");
    with("lease acquire acct --where tier=gold").run().assert_code(75).assert_says("held are 1 by");
    with("lease acquire other").run().assert_code(69);
    world.isolane("lease list").run().assert_code(0).assert_shows(id);
    with(&format!("lease release {id}")).run().assert_code(0);
    with(&format!("lease renew {id}")).run().assert_code(1).assert_says("is released since");
    assert!(!lab.ledger_path().exists(), "no ledger is needed");
    let view = "SELECT concat_ws(' ', pool, item, state, length(acquired_at), length(ended_at), fence) FROM isolane_leases.leases";
    assert_eq!(database.server.texts(&database.name, view), ["acct 1 released 24 24 1"]);
    // Within a run, what a flag names is meant, and a variable is not.
    let nested = lab
        .sh("", &format!("isolane pool list --store '{0}' && ISOLANE_STORE='{0}' isolane pool list", database.url()));
    nested.run().assert_code(0).assert_shows("acct").assert_says("there is none yet");
}

#[test]
fn what_cannot_keep_leases_is_said_in_one_line() {
    let lab = Lab::new();
    let server = Server::shared();
    let list = |url: &str| lab.isolane("pool list").env("ISOLANE_STORE", url).run();
    let one_line = |outcome: crate::lab::Outcome, code: i32, part: &str| {
        assert_eq!(outcome.said().len(), 1, "{:?}", outcome.said());
        outcome.assert_code(code).assert_says(part).assert_does_not_say("s3cret");
    };
    one_line(list("sqlite:///x.db"), 2, "the variable ISOLANE_STORE takes the address of a PostgreSQL database");
    one_line(list("nonsense"), 2, "the address in the variable ISOLANE_STORE is no database address");
    one_line(list("postgresql://u:s3cret@127.0.0.1:1/x"), 69, "cannot reach the PostgreSQL server at 127.0.0.1:1");
    let database = server.database("");
    one_line(list(&database.url().replace("s3cret-of", "s3cret-no")), 69, "refuses the login");
    server.sql("postgres", "CREATE ROLE guest_of_leases LOGIN PASSWORD 's3cret-of-guest'");
    let guest = format!("postgresql://guest_of_leases:s3cret-of-guest@127.0.0.1:{}/{}", server.port(), database.name);
    one_line(list(&guest), 2, &format!("`GRANT CREATE ON DATABASE {} TO guest_of_leases`", database.name));
    list(&database.url()).assert_code(0);
    one_line(list(&guest), 2, "may not keep leases");
    // As the isolane before made them.
    database.sql(
        "ALTER TABLE isolane_leases.lease_head DROP COLUMN ahead; UPDATE isolane_leases.lease_head SET layout = 1",
    );
    list(&database.url()).assert_code(0);
    database.sql("UPDATE isolane_leases.lease_head SET layout = 99, ahead = 0 WHERE layout = 2");
    one_line(list(&database.url()), 2, "by a newer isolane (layout 99, and this one knows 2)");
    server.sql(
        "postgres",
        &format!(
            "CREATE DATABASE old_letters OWNER {} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0",
            database.login
        ),
    );
    let old = database.url().replace(&format!("/{}", database.name), "/old_letters");
    one_line(list(&old), 2, "old_letters is in SQL_ASCII, and leases need one in UTF8");
}

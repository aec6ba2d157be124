//! Putting a lane back, as its tests' workers ask for it, in databases of three sizes.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use postgres::{Client, NoTls};

use crate::figure::{Figure, median, quantile, shown, wall};
use crate::ground::{Ground, multiply};
use crate::lab::program::Running;
use crate::lab::{Lab, wait_until};

const ROUNDS: i32 = 200;
/// The tables that are written into, and that have more rows in the larger databases.
const TABLES: [&str; 4] = ["orders", "order_items", "products", "notifications"];

/// A run that goes on, and a session in its lane.
struct Lane {
    run: Running,
    socket: String,
    session: Client,
    _lab: Lab,
}

impl Lane {
    fn of(ground: &Ground, times: u32) -> Self {
        let database = ground.seeded();
        if times > 1 {
            database.sql(&multiply(&TABLES, times));
        }
        let lab = Lab::on(&database);
        let run = lab.sh("--quiet --fresh test", "env -0 >there.part; mv there.part there; exec sleep 3600").start();
        wait_until("the lane is there", || lab.path("there").exists());
        let environment = fs::read_to_string(lab.path("there")).expect("an environment");
        let variable = |name: &str| {
            let found = environment.split('\0').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            found.expect("it is set").to_owned()
        };
        let session = Client::connect(&variable("DATABASE_URL"), NoTls).expect("the lane");
        Self { run, socket: variable("ISOLANE_SOCKET"), session, _lab: lab }
    }

    /// Inserts, updates and deletes 14 rows in four tables, a statement each, as a test would.
    fn touch(&mut self, n: i32) {
        let mut sql = String::new();
        for i in 0..3 {
            let at = 1 + (n * 14 + i * 3) % 1500;
            sql += &format!(
                "INSERT INTO orders (user_id, addresse_id, code, name) VALUES (7, 7, 'new-{i}', 'an order');
                 INSERT INTO order_items (order_id, product_variant_id, code, name) VALUES ({at}, {at}, 'new-{i}', 'an item');
                 UPDATE products SET amount = amount + 1, name = 'another' WHERE id = {at};
                 DELETE FROM notifications WHERE id = {at};"
            );
        }
        sql +=
            "UPDATE orders SET status = 'done' WHERE id = 5; UPDATE notifications SET name = 'seen' WHERE id = 1600;";
        // One by one: what is sent at once would be one transaction.
        for statement in sql.split_inclusive(';') {
            self.session.batch_execute(statement).expect("it may");
        }
    }

    /// Asks for the lane as its template, as the shims do.
    fn renew(&self) {
        let body = r#"{"worker":"w0"}"#;
        let mut stream = UnixStream::connect(&self.socket).expect("the run");
        let head = format!(
            "POST /v1/renewals HTTP/1.1\r\nHost: isolane\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).expect("the run");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the run");
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    }

    fn close(self) {
        self.run.signal(Signal::SIGTERM);
        drop(self.session);
        self.run.finish().assert_code(143);
    }
}

pub fn reset(ground: &Ground) -> Vec<Figure> {
    let mut lanes = [1, 10, 100].map(|times| Lane::of(ground, times));
    let mut rounds = Vec::new();
    for n in -20..ROUNDS {
        let times = lanes.each_mut().map(|lane| {
            lane.touch(n.abs());
            wall(|| lane.renew())
        });
        if n >= 0 {
            rounds.push(times);
        }
    }
    for lane in &mut lanes {
        let left = lane.session.query_one("SELECT count(*) FROM orders WHERE code LIKE 'new-%'", &[]);
        assert_eq!(left.expect("a count").get::<_, i64>(0), 0, "nothing is left");
    }
    lanes.into_iter().for_each(Lane::close);
    let of = |which: usize| rounds.iter().map(move |times| times[which]);
    let against = |which: usize| {
        let ratio = median(rounds.iter().map(|times| times[which] / times[0]));
        format!("{ratio:.2} x ({} / {})", shown(median(of(which))), shown(median(of(0))))
    };
    vec![
        Figure::new("14 rows in 4 tables undone, p50", shown(median(of(0))), "at most 3 ms"),
        Figure::new("14 rows in 4 tables undone, p95", shown(quantile(of(0), 0.95)), "at most 10 ms"),
        Figure::new("p50 with 10 times the rows in those tables / once", against(1), "at most 1.3"),
        Figure::new("p50 with 100 times the rows in those tables / once", against(2), "at most 1.3"),
    ]
}

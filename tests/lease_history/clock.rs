//! The clock on the wall is set while a service keeps leases: they go by time that nobody can set.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::{Lab, Server, Service};

/// How far it is set, in seconds.
const DAY: i64 = 86_400;
const POOL: &str = "[pool.acct]\nitems = [{id=1}]\n";
/// A C library to load first: the wall's clock is off by what a file says just then.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    int done = syscall(SYS_clock_gettime, clock, time);
    int file = clock == CLOCK_REALTIME ? open(getenv("OFF_BY"), O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        char text[32] = {0};
        if (read(file, text, sizeof text - 1) > 0) time->tv_sec += atol(text);
        close(file);
    }
    return done;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    int done = clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return done;
}
"#;

#[test]
fn a_ledgers_leases_last_as_long_as_they_should_whatever_the_clock_is_set_to() {
    set_the_clock("");
}

#[test]
fn a_servers_leases_last_as_long_as_they_should_whatever_the_clock_of_a_service_is_set_to() {
    let database = Server::shared().database("");
    set_the_clock(&format!("--store {}", database.url()));
}

#[test]
fn a_servers_leases_last_as_long_as_they_should_whatever_its_own_clock_is_set_to() {
    let lab = Lab::new().open_to_others();
    let clock = WallClock::make(&lab);
    let server = Server::with_variables(&[("LD_PRELOAD", &clock.shim), ("OFF_BY", &clock.off)]);
    let database = server.database("");
    let store = format!("--store {}", database.url());
    let one = Service::start(&lab, &store, POOL);
    let other = one.beside(&store, "another");
    // Both have seen what time it is.
    for door in [&one, &other] {
        assert_eq!(door.ask(&door.admin, "/v1/leases", &[]).0, 200);
    }

    let held = ask(&one, "30s", "0s").expect("it is free");
    let before = server.texts("postgres", "SELECT now()::text");
    clock.set(DAY);
    let (before, now) = (&before[0], &server.texts("postgres", "SELECT now()::text")[0]);
    assert_ne!(before[..10], now[..10], "the server sees another clock");
    assert_eq!(ask(&one, "30s", "0s"), Err(409), "a day later on the wall");
    assert_eq!(ask(&other, "30s", "0s"), Err(409), "a day later on the wall");
    // Who has not seen the clock before it was set goes by what the others wrote.
    let third = one.beside(&store, "a third");
    assert_eq!(ask(&third, "30s", "0s"), Err(409), "a day later on the wall");

    set_back(&clock, &third, &other, &held);
}

/// Gives the item back at one door, takes it for a moment and sets the clock back; at the other
/// door somebody gets it soon.
fn set_back(clock: &WallClock, one: &Service<'_>, other: &Service<'_>, held: &Value) {
    let path = format!("/v1/leases/{}?fence={}", held["id"].as_str().expect("an id"), held["fence"]);
    assert_eq!(one.ask(&one.admin, &path, &["-X", "DELETE"]).0, 204);
    assert!(ask(one, "300ms", "0s").is_ok());
    clock.set(-DAY);
    let asked = Instant::now();
    let next = ask(other, "30s", "40s").expect("the other has ended");
    assert!(asked.elapsed() < Duration::from_secs(30) && next["fence"].as_u64() > held["fence"].as_u64(), "{next}");
}

/// Asks for the one item: the lease, or the status of the refusal.
fn ask(door: &Service<'_>, ttl: &str, wait: &str) -> Result<Value, u16> {
    let body = json!({"pool": "acct", "ttl": ttl, "wait": wait}).to_string();
    let (status, _, document) = door.ask(&door.admin, "/v1/leases", &["-d", &body]);
    if status == 201 { Ok(document) } else { Err(status) }
}

/// A clock that can be set for those who load it first.
struct WallClock {
    shim: PathBuf,
    off: PathBuf,
}

impl WallClock {
    fn make(lab: &Lab) -> Self {
        lab.file("shim.c", SHIM).file("off", "0");
        lab.program("cc").arg_all(["-shared", "-fPIC", "-o", "shim.so", "shim.c"]).run().assert_code(0);
        Self { shim: lab.path("shim.so"), off: lab.path("off") }
    }

    /// Sets it off by so many seconds, as a whole: half of a number is another one.
    fn set(&self, seconds: i64) {
        let new = self.off.with_extension("new");
        std::fs::write(&new, seconds.to_string()).expect("a file");
        std::fs::rename(new, &self.off).expect("the same folder");
    }
}

fn set_the_clock(options: &str) {
    let lab = Lab::new();
    let clock = WallClock::make(&lab);
    let lab = lab.with("LD_PRELOAD", &clock.shim).with("OFF_BY", &clock.off);
    let service = Service::start(&lab, options, POOL);
    let made = || service.ledger("SELECT max(made) FROM token")[0][0].parse::<i64>().expect("a time");

    let lease = ask(&service, "30s", "0s").expect("it is free");
    let before = made();
    clock.set(DAY);
    service.token("tomorrow", "");
    assert!(made() - before >= DAY * 1_000_000, "isolane sees another clock");
    let (status, _, found) =
        service.ask(&service.admin, &format!("/v1/leases/{}", lease["id"].as_str().expect("an id")), &[]);
    assert!(status == 200 && found["state"] == "held", "a day later on the wall: {found}");
    assert_eq!(ask(&service, "30s", "0s"), Err(409));

    set_back(&clock, &service, &service, &lease);
}

//! The clock on the wall is set while a service keeps leases: they go by time that nobody can set.

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

fn set_the_clock(options: &str) {
    let lab = Lab::new();
    lab.file("shim.c", SHIM).file("off", "0");
    lab.program("cc").arg_all(["-shared", "-fPIC", "-o", "shim.so", "shim.c"]).run().assert_code(0);
    let (shim, off) = (lab.path("shim.so"), lab.path("off"));
    let lab = lab.with("LD_PRELOAD", shim).with("OFF_BY", &off);
    let service = Service::start(&lab, options, POOL);
    let ask = |body: &Value| service.ask(&service.admin, "/v1/leases", &["-d", &body.to_string()]);
    let made = || service.ledger("SELECT max(made) FROM token")[0][0].parse::<i64>().expect("a time");
    // Set as a whole: half of a number is another one.
    let set = |seconds: i64| {
        lab.file("off.new", &seconds.to_string());
        std::fs::rename(lab.path("off.new"), &off).expect("the same folder");
    };

    let (status, _, lease) = ask(&json!({"pool": "acct", "ttl": "30s"}));
    assert_eq!(status, 201, "{lease}");
    let before = made();
    set(DAY);
    service.token("tomorrow", "");
    assert!(made() - before >= DAY * 1_000_000, "isolane sees another clock");
    let (status, _, found) =
        service.ask(&service.admin, &format!("/v1/leases/{}", lease["id"].as_str().expect("an id")), &[]);
    assert!(status == 200 && found["state"] == "held", "a day later on the wall: {found}");
    let (status, _, refused) = ask(&json!({"pool": "acct"}));
    assert_eq!((status, &refused["code"]), (409, &json!("exhausted")), "{refused}");

    let path = format!("/v1/leases/{}?fence={}", lease["id"].as_str().expect("an id"), lease["fence"]);
    assert_eq!(service.ask(&service.admin, &path, &["-X", "DELETE"]).0, 204);
    assert_eq!(ask(&json!({"pool": "acct", "ttl": "300ms"})).0, 201);
    set(-DAY);
    let asked = Instant::now();
    let (status, _, next) = ask(&json!({"pool": "acct", "wait": "40s"}));
    assert!(status == 201 && asked.elapsed() < Duration::from_secs(30), "{next}");
    assert!(next["fence"].as_u64() > lease["fence"].as_u64());
}

//! The driver: plays a parallel runner and all its workers, one step after the other.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use postgres::{Client, NoTls};
use serde_json::{Value, json};

use crate::plan::{Script, Setting, Step};
use crate::world::name;

/// The story of a worker, as its shim tells it.
struct Story {
    socket: UnixStream,
    /// What is on its way, and when it arrives.
    under_way: VecDeque<(Instant, String)>,
}

impl Story {
    fn begin() -> Self {
        let mut socket = connect();
        let request =
            "POST /v1/tests HTTP/1.1\r\nHost: isolane\r\nConnection: upgrade\r\nUpgrade: isolane-story\r\n\r\n";
        socket.write_all(request.as_bytes()).expect("the run listens");
        Self { socket, under_way: VecDeque::new() }
    }

    fn tell(&mut self, event: &Value, delay: Duration) {
        let before = self.under_way.back().map_or_else(Instant::now, |(at, _)| *at);
        self.under_way.push_back((before.max(Instant::now() + delay), format!("{event}\n")));
        self.deliver(false);
    }

    fn deliver(&mut self, all: bool) {
        let mut text = String::new();
        while let Some((at, _)) = self.under_way.front()
            && (all || *at <= Instant::now())
        {
            text.push_str(&self.under_way.pop_front().expect("there is one").1);
        }
        self.socket.write_all(text.as_bytes()).expect("the run listens");
    }

    fn end(mut self, waits: bool) {
        self.deliver(true);
        if waits {
            self.socket.shutdown(Shutdown::Write).expect("it is open");
            let _ = self.socket.read_to_end(&mut Vec::new());
        }
    }
}

fn connect() -> UnixStream {
    let path = std::env::var_os("ISOLANE_SOCKET").expect("it is run by isolane");
    UnixStream::connect(path).expect("the run listens")
}

fn post(path: &str, body: &Value) -> Value {
    let mut socket = connect();
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: isolane\r\nConnection: close\r\nContent-Length: {}\r\nContent-Type: application/json\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).expect("the run listens");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 20"), "{answer}");
    serde_json::from_str(body).expect("JSON")
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

struct Driver {
    setting: Setting,
    rng: Rng,
    lanes: Vec<Value>,
    clients: Vec<Client>,
    asides: Vec<Option<Client>>,
    stories: Vec<Story>,
    stranger: Client,
    errors: Vec<Option<String>>,
}

/// Plays the script in this file.
pub fn run(path: &str) {
    let script: Script = serde_json::from_slice(&fs::read(path).expect("a script")).expect("a script");
    let Script { seed, workers, setting, stranger, steps } = script;
    let mut driver = Driver {
        rng: Rng::with_seed(seed),
        lanes: Vec::new(),
        clients: Vec::new(),
        asides: Vec::new(),
        stories: Vec::new(),
        stranger: Client::connect(&stranger, NoTls).expect("the owner may connect"),
        errors: vec![None; workers],
        setting,
    };
    for worker in 0..workers {
        let bind = !driver.setting.tells_at_once;
        let lane = post("/v1/lanes", &json!({"worker": name(worker), "expect": workers + 1, "bind": bind}));
        let url = lane["environment"]["DATABASE_URL"].as_str().expect("a database");
        driver.clients.push(Client::connect(url, NoTls).expect("a worker may connect"));
        driver.asides.push(None);
        driver.stories.push(Story::begin());
        if driver.setting.tells_at_once {
            let hello = json!({"event": "hello", "worker": name(worker), "role": "worker", "lane": lane["lane"]});
            driver.stories[worker].tell(&hello, Duration::ZERO);
        }
        driver.lanes.push(lane);
    }
    for step in steps {
        driver.stories.iter_mut().for_each(|story| story.deliver(false));
        driver.take(step);
    }
    let waits = driver.setting.tells_at_once;
    for (worker, mut story) in driver.stories.into_iter().enumerate() {
        if waits {
            story.tell(&json!({"event": "goodbye", "worker": name(worker)}), Duration::ZERO);
        }
        story.end(waits);
    }
}

impl Driver {
    fn tell(&mut self, worker: usize, event: &Value) {
        let late = if self.setting.late > 0 { self.rng.u64(..self.setting.late) } else { 0 };
        self.stories[worker].tell(event, Duration::from_millis(late));
    }

    fn with_lanes(&self, worker: Option<usize>, sql: &str) -> String {
        if !sql.contains('{') {
            return sql.to_owned();
        }
        let text = |lane: &Value, what: &str| lane[what].as_str().expect("a text").to_owned();
        let mut sql =
            worker.map_or(sql.to_owned(), |worker| sql.replace("{schema}", &text(&self.lanes[worker], "schema")));
        for (n, lane) in self.lanes.iter().enumerate() {
            sql = sql.replace(&format!("{{prefix{n}}}"), &text(lane, "prefix"));
            sql = sql.replace(&format!("{{schema{n}}}"), &text(lane, "schema"));
        }
        sql
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Begin { worker, test } => {
                let event = json!({"event": "begin", "worker": name(worker), "test": test, "at": now()});
                self.tell(worker, &event);
            }
            Step::End { worker, test, failed } => {
                let at = now();
                let error = self.errors[worker].take();
                let message = failed.then(|| error.unwrap_or_else(|| "assert 1 == 2".to_owned()));
                let outcome = if failed { "failed" } else { "passed" };
                let event = json!({"event": "end", "worker": name(worker), "test": test, "outcome": outcome, "message": message, "at": at});
                self.tell(worker, &event);
            }
            Step::Fixture { worker, key, name: fixture, scope, phase } => {
                let event = json!({"event": "fixture", "worker": name(worker), "key": key, "fixture": fixture, "scope": scope, "phase": phase, "at": now()});
                self.tell(worker, &event);
            }
            Step::Sql { worker, sql } => {
                let sql = self.with_lanes(Some(worker), &sql);
                self.clients[worker].batch_execute(&sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            }
            Step::Aside { worker, sql } => {
                let url = self.lanes[worker]["environment"]["DATABASE_URL"].as_str().expect("a database");
                let connect = || Client::connect(url, NoTls).expect("a worker may connect");
                let session = self.asides[worker].get_or_insert_with(connect);
                session.batch_execute(&sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            }
            Step::Stranger { sql } => {
                let sql = self.with_lanes(None, &sql);
                self.stranger.batch_execute(&sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            }
            Step::Refused { worker, sql } => {
                let error = self.clients[worker].batch_execute(&sql).expect_err("the server refuses it");
                self.errors[worker] = Some(self.words(&error));
            }
            Step::Failure { worker, test } if self.setting.tells_at_once => {
                let at = now();
                // As pytest's shim does.
                self.stories[worker].deliver(true);
                let error = &self.errors[worker];
                post("/v1/failures", &json!({"worker": name(worker), "test": test, "error": error, "at": at}));
            }
            Step::Failure { .. } => {}
            Step::Deadlock { survivor, victim, rows } => self.deadlock(survivor, victim, &rows),
            Step::Pause => std::thread::sleep(Duration::from_millis(3)),
        }
    }

    fn deadlock(&mut self, survivor: usize, victim: usize, [first, second]: &[String; 2]) {
        let [going, ending] = self.clients.get_disjoint_mut([survivor, victim]).expect("two");
        let stranger = &mut self.stranger;
        // Who looks for deadlocks is the one that is ended.
        going.batch_execute(&format!("SET deadlock_timeout = '60s'; BEGIN; {first}")).expect("nobody is in the way");
        ending.batch_execute(&format!("SET deadlock_timeout = '5ms'; BEGIN; {second}")).expect("nobody is in the way");
        let pid: i32 = going.query_one("SELECT pg_backend_pid()", &[]).expect("a session").get(0);
        let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)";
        let error = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| going.batch_execute(second));
            while !stranger.query_one(waits, &[&pid]).expect("a session").get::<_, bool>(0) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let error = ending.batch_execute(first).expect_err("a deadlock");
            waiting.join().expect("no panic").expect("it goes on");
            error
        });
        going.batch_execute("COMMIT").expect("it has survived");
        ending.batch_execute("ROLLBACK").expect("a session");
        self.errors[victim] = Some(self.words(&error));
    }

    /// An error as a driver of some language or other prints it.
    fn words(&mut self, error: &postgres::Error) -> String {
        let db = error.as_db_error().expect("the server's");
        match self.rng.u8(..3) {
            0 => format!("{error:?}"),
            1 => format!("db error: ERROR: {}\nDETAIL: {}", db.message(), db.detail().unwrap_or_default()),
            _ => format!("(psycopg.errors.Whatever) {}\nDETAIL:  {}\n", db.message(), db.detail().unwrap_or_default()),
        }
    }
}

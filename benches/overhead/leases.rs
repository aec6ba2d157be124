//! What leases cost: programs at the run's socket, beside the statement that one would write
//! by hand, on a disk that keeps what was answered.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::lab::program::Running;
use crate::lab::{Lab, Service, wait_until};
use crate::{line, median};

const CLIENTS: usize = 20;
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;
const ITEMS: usize = 10_000;
const WAITERS: usize = 1000;

/// Bytes both ways.
trait Line: Read + Write {}
impl<T: Read + Write> Line for T {}

/// A connection that stays open, and what its requests say of who asks.
struct Door(BufReader<Box<dyn Line>>, String);

impl Door {
    fn open(socket: &Path) -> Self {
        Self::on(UnixStream::connect(socket).expect("the run listens"), String::new())
    }

    fn elsewhere(address: &str, token: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the service listens");
        stream.set_nodelay(true).expect("a setting");
        Self::on(stream, format!("Authorization: Bearer {token}\r\n"))
    }

    fn on(line: impl Line + 'static, head: String) -> Self {
        Self(BufReader::new(Box::new(line)), head)
    }

    fn send(&mut self, method: &str, path: &str, body: &str) {
        let (head, length) = (&self.1, body.len());
        let text = format!("{method} {path} HTTP/1.1\r\nHost: isolane\r\n{head}Content-Length: {length}\r\n\r\n{body}");
        self.0.get_mut().write_all(text.as_bytes()).expect("it reads");
    }

    fn answer(&mut self) -> (u16, Vec<u8>) {
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("it answers");
            let line = line.trim_end();
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest[..3].parse().expect("a status");
            } else if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().expect("a length");
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("it answers");
        (status, body)
    }

    fn call(&mut self, method: &str, path: &str, body: &str) -> Vec<u8> {
        self.send(method, path, body);
        let (status, body) = self.answer();
        assert!(status < 300, "{method} {path}: {status} {}", String::from_utf8_lossy(&body));
        body
    }

    fn json(&mut self, method: &str, path: &str, body: &str) -> Value {
        serde_json::from_slice(&self.call(method, path, body)).expect("JSON")
    }

    fn pair(&mut self, ask: &str) {
        let answer = self.call("POST", "/v1/leases", ask);
        // The id stands first in the answer, and a client that is faster than ours would not hide
        // what isolane costs.
        let id = std::str::from_utf8(&answer[7..43]).expect("a UUID");
        let path = format!("/v1/leases/{id}");
        self.call("DELETE", &path, "");
    }
}

/// A run in which nothing goes on, with a pool.
struct Idle {
    _lab: Lab,
    run: Running,
    socket: PathBuf,
}

impl Idle {
    fn with(items: usize) -> Self {
        let lab = Lab::new();
        let run =
            lab.sh("--quiet --isolation none", "echo $ISOLANE_SOCKET > part; mv part socket; exec sleep 6000").start();
        wait_until("it runs", || lab.path("socket").exists());
        let socket = PathBuf::from(lab.read("socket").trim());
        let mut door = Door::open(&socket);
        fill(&mut door, items);
        door.pair(r#"{"pool":"acct","worker":"first"}"#);
        Self { _lab: lab, run, socket }
    }

    fn round(&self) -> Round {
        let socket = &self.socket;
        round(|n| pairs(Door::open(socket), n))
    }
}

fn fill(door: &mut Door, items: usize) {
    for first in (0..items).step_by(20_000) {
        let some: Vec<Value> = (first..items.min(first + 20_000))
            .map(|id| json!({"id": id, "tier": if id % 10 == 0 { "gold" } else { "silver" }}))
            .collect();
        door.call("POST", "/v1/pools/acct/items", &Value::from(some).to_string());
    }
}

/// Seconds of CPU that a process has taken.
fn cpu_of(process: Pid) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    let (_, rest) = stat.rsplit_once(") ").expect("a name");
    let ticks = |at: usize| rest.split(' ').nth(at).and_then(|word| word.parse::<f64>().ok()).expect("a number");
    // 100 ticks a second, whatever the kernel itself counts in.
    (ticks(11) + ticks(12)) / 100.0
}

/// What client `n` does again and again.
fn pairs(mut door: Door, n: usize) -> impl FnMut() {
    let ask = json!({"pool": "acct", "worker": format!("c{n}")}).to_string();
    move || door.pair(&ask)
}

/// What clients did in a while.
struct Round {
    /// Seconds of each pair, of all clients.
    times: Vec<f64>,
    /// Pairs of each client.
    shares: Vec<usize>,
    seconds: f64,
}

impl Round {
    fn rate(&self) -> f64 {
        self.times.len() as f64 / self.seconds
    }

    fn p99(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        times[times.len() * 99 / 100]
    }

    /// What the slowest client got, of the mean.
    fn least(&self) -> f64 {
        let least = *self.shares.iter().min().expect("clients") as f64;
        least * self.shares.len() as f64 / self.times.len() as f64
    }
}

/// Lets clients lease and release as fast as they can.
fn round<W: FnMut()>(client: impl Fn(usize) -> W + Sync) -> Round {
    let (is_over, ready) = (AtomicBool::new(false), Barrier::new(CLIENTS + 1));
    let mut seconds = 0.0;
    let work = |n| {
        let mut pair = client(n);
        let mut times = Vec::new();
        ready.wait();
        while !is_over.load(Ordering::Relaxed) {
            let began = Instant::now();
            pair();
            times.push(began.elapsed().as_secs_f64());
        }
        times
    };
    let all: Vec<Vec<f64>> = std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || work(n))).collect();
        ready.wait();
        let began = Instant::now();
        std::thread::sleep(ROUND);
        is_over.store(true, Ordering::Relaxed);
        let all = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        seconds = began.elapsed().as_secs_f64();
        all
    });
    Round { shares: all.iter().map(Vec::len).collect(), times: all.concat(), seconds }
}

/// The statement that one would write by hand, as durable.
struct ByHand {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl ByHand {
    fn with(items: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("pool.db");
        let db = Self::open(&path);
        db.execute_batch("CREATE TABLE item (id INTEGER PRIMARY KEY, tier TEXT, locked_by TEXT, locked_at TEXT)")
            .and_then(|()| db.execute_batch("BEGIN"))
            .expect("a table");
        for id in 0..i64::try_from(items).expect("not as many") {
            db.execute("INSERT INTO item VALUES (?, 'silver', NULL, NULL)", [id]).expect("a row");
        }
        db.execute_batch("COMMIT").expect("kept");
        Self { _folder: folder, path }
    }

    fn open(path: &Path) -> Connection {
        let db = Connection::open(path).expect("a database");
        db.busy_timeout(Duration::from_secs(60)).expect("a setting");
        db.pragma_update(None, "journal_mode", "WAL").expect("a setting");
        db.pragma_update(None, "synchronous", "FULL").expect("a setting");
        db
    }

    fn round(&self) -> Round {
        round(|n| {
            let db = Self::open(&self.path);
            move || {
                let take = "UPDATE item SET locked_by = ?, locked_at = datetime('now')
                     WHERE id = (SELECT id FROM item WHERE locked_by IS NULL LIMIT 1) RETURNING id";
                let id: i64 = db
                    .prepare_cached(take)
                    .and_then(|mut take| take.query_row([format!("c{n}")], |row| row.get(0)))
                    .expect("an item is free");
                let give = "UPDATE item SET locked_by = NULL WHERE id = ? AND locked_by = ?";
                db.prepare_cached(give)
                    .and_then(|mut give| give.execute(rusqlite::params![id, format!("c{n}")]))
                    .expect("it is released");
            }
        })
    }
}

/// Leases through the run's socket.
pub fn leases() {
    let (few, by_hand) = (Idle::with(ITEMS), ByHand::with(ITEMS));
    let (mut ours, mut theirs, mut costs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        theirs.push(by_hand.round());
        let before = cpu_of(few.run.pid());
        let round = few.round();
        costs.push((cpu_of(few.run.pid()) - before) * 1e6 / round.times.len() as f64);
        ours.push(round);
    }
    let of = |rounds: &[Round], what: fn(&Round) -> f64| median(rounds.iter().map(what).collect());
    let ratio = median(ours.iter().zip(&theirs).map(|(ours, theirs)| ours.rate() / theirs.rate()).collect());
    line(
        "20 clients, 10,000 items: pairs of acquire and release",
        &format!("{:.0} a second ({:.0} us of CPU each)", of(&ours, Round::rate), median(costs)),
        "at least 10,000",
    );
    line("the same / UPDATE … WHERE locked_by IS NULL by hand", &format!("{ratio:.1}"), "-");
    line("the 99th of 100 pairs", &format!("{:.1} ms", of(&ours, Round::p99) * 1e3), "under 25 ms");
    let least = of(&ours, Round::least) * 100.0;
    line("the client with the fewest, of the mean", &format!("{least:.0} %"), "at least 50 %");
    million(&few);
    drop(few);
    waiters();
}

/// The same through `isolane serve`, with a token, over TCP.
pub fn served() {
    let (lab, by_hand) = (Lab::new(), ByHand::with(ITEMS));
    let service = Service::start(&lab, "--rate 1000000", "");
    let address = service.url.trim_start_matches("http://");
    fill(&mut Door::elsewhere(address, &service.admin), ITEMS);
    let (mut rates, mut ratios, mut costs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let theirs = by_hand.round().rate();
        let before = cpu_of(service.pid());
        let ours = round(|n| pairs(Door::elsewhere(address, &service.admin), n));
        costs.push((cpu_of(service.pid()) - before) * 1e6 / ours.times.len() as f64);
        rates.push(ours.rate());
        ratios.push(ours.rate() / theirs);
    }
    let (rate, cost, ratio) = (median(rates), median(costs), median(ratios));
    let told = format!("{rate:.0} a second ({cost:.0} us of CPU each), {ratio:.1} times the UPDATE");
    line("20 clients of `isolane serve` over HTTP", &told, "at least 5,000");
}

/// The same with a hundred times the items.
fn million(few: &Idle) {
    let many = Idle::with(100 * ITEMS);
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let few = few.round().rate();
        ratios.push(few / many.round().rate());
    }
    line("1,000,000 items: time of a pair / with 10,000", &format!("{:.2}", median(ratios)), "at most 1.3");
}

/// Many who wait for one item: in which order they get it, and what that costs meanwhile.
fn waiters() {
    let (limit, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most.min(16_384).max(limit), most).expect("below the highest");
    let idle = Idle::with(1);
    let mut door = Door::open(&idle.socket);
    let held = door.json("POST", "/v1/leases", r#"{"pool":"acct","worker":"holder"}"#);
    let mut all: Vec<Door> = (0..WAITERS).map(|_| Door::open(&idle.socket)).collect();
    for (n, waiter) in all.iter_mut().enumerate() {
        let ask = json!({"pool": "acct", "worker": format!("c{n}"), "wait": "600s"});
        waiter.send("POST", "/v1/leases", &ask.to_string());
    }
    let mut places = Vec::new();
    wait_until("all wait", || {
        let list = door.json("GET", "/v1/waiters", "");
        let names = list.as_array().expect("a list").iter();
        places = names.map(|it| it["worker_id"].as_str().expect("a name").to_owned()).collect();
        places.len() == WAITERS
    });
    let before = cpu_of(idle.run.pid());
    std::thread::sleep(Duration::from_secs(5));
    let cpu = cpu_of(idle.run.pid()) - before;
    let began = Instant::now();
    door.call("DELETE", &format!("/v1/leases/{}", held["id"].as_str().expect("an id")), "");
    // Who is first in the line reads first; if another were served before, this would hang.
    let mut last = held["fence"].as_u64().expect("a number");
    let mut is_in_order = true;
    for name in &places {
        let waiter = &mut all[name[1..].parse::<usize>().expect("a number")];
        let (status, body) = waiter.answer();
        let lease: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(status, 201, "{lease}");
        let fence = lease["fence"].as_u64().expect("a number");
        is_in_order &= fence == last + 1;
        last = fence;
        waiter.call("DELETE", &format!("/v1/leases/{}", lease["id"].as_str().expect("an id")), "");
    }
    let each = began.elapsed().as_secs_f64() * 1e3 / WAITERS as f64;
    let order = if is_in_order { "first come first served" } else { "out of order" };
    line("1,000 wait for one item", &format!("{order}, {each:.2} ms each"), "first come first served");
    line("CPU of the run while they wait", &format!("{:.1} ms a second", cpu * 1e3 / 5.0), "about 0");
}

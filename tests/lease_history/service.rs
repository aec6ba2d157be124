//! Histories of services: one or two of them, those who lease there themselves or in a run, and
//! the server that keeps it all are killed again and again, and come back. Who asks goes on with
//! the other service, and asks again under the same key what was not answered.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::history::History;
use crate::lab::program::{PATIENCE, Running, wait_until};
use crate::lab::{Database, Lab, Server, Service};
use crate::stores::Store;

/// How long a history goes on.
const LENGTH: Duration = Duration::from_secs(12);
/// How many lease there at a time: by themselves, and as runs of two workers.
const CLIENTS: usize = 3;
const RUNS: usize = 1;
/// How long a service is held up at most: nobody gets anything when it was at it just then.
const PAUSE: Duration = Duration::from_millis(500);
/// So much is noted before the next is killed, in bytes: some twenty notes.
const PROGRESS: u64 = 2_500;

/// What is held by somebody of whose end nobody hears is not held for long.
const POOLS: &str = "[pool.line]
items = [{id=1}]
ttl = '2s'
[pool.acct]
items = [{id=1,tier='gold'},{id=2,tier='iron'},{id=3,tier='iron'}]
ttl = '2s'
[pool.one]
items = [{id=1}]
ttl = '2s'
";

#[test]
fn two_services_are_one_whichever_is_killed() {
    let server = Server::shared();
    let database = server.database("");
    let history = History::begin();
    let mut town = Town::of_two(&history, &database);
    town.go_on(&Store::Server(&database), &[Fault::Service, Fault::Pause, Fault::Client, Fault::Run], None);
}

#[test]
fn a_server_that_is_killed_loses_nothing_that_was_answered() {
    let server = Server::own();
    let database = server.database("");
    let history = History::begin();
    let mut town = Town::of_two(&history, &database);
    let faults = [Fault::Server, Fault::Server, Fault::Service, Fault::Pause, Fault::Client, Fault::Run];
    town.go_on(&Store::Server(&database), &faults, Some(&database));
}

#[test]
fn a_service_that_is_killed_goes_on_with_its_ledger() {
    let history = History::begin();
    let service = Service::start(&history.lab, "--rate 100000", POOLS);
    let ledger = history.lab.path("service/.isolane/ledger.db");
    let mut town = Town::new(&history, vec![service]);
    town.go_on(&Store::Ledger(ledger), &[Fault::Service, Fault::Service, Fault::Client, Fault::Run], None);
}

/// What is killed; or held up for a while, and goes on as if nothing had happened meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Service,
    /// Of a service.
    Pause,
    Server,
    Client,
    Run,
}

/// One who leases.
struct Person {
    is_run: bool,
    running: Running,
}

/// Services, and those who lease there.
struct Town<'a> {
    history: &'a History,
    lab: &'a Lab,
    random: fastrand::Rng,
    services: Vec<Service<'a>>,
    /// Which of them is away for longer.
    away: Option<usize>,
    token: String,
    people: Vec<Person>,
    /// How many there have been.
    born: u64,
    killed: BTreeMap<Fault, u32>,
}

impl<'a> Town<'a> {
    /// With two services that keep their leases in this database.
    fn of_two(history: &'a History, database: &Database) -> Self {
        let options = format!("--rate 100000 --store {}", database.url());
        let first = Service::start(&history.lab, &options, POOLS);
        let second = first.beside(&options, "second");
        Self::new(history, vec![first, second])
    }

    fn new(history: &'a History, services: Vec<Service<'a>>) -> Self {
        let token = services[0].token("ci", "");
        let (lab, random) = (&history.lab, history.random.clone());
        let (people, killed) = (Vec::new(), BTreeMap::default());
        Self { history, lab, random, services, away: None, token, people, born: 0, killed }
    }

    /// Lets them lease, and kills, until it was long enough; then proves it.
    fn go_on(&mut self, store: &Store, faults: &[Fault], database: Option<&Database>) {
        let began = Instant::now();
        self.until_they_go_on();
        while began.elapsed() < LENGTH || !self.is_colourful(store, faults) {
            if began.elapsed() > LENGTH + PATIENCE {
                // What is wrong with it says more than that.
                break;
            }
            let fault = faults[self.random.usize(..faults.len())];
            match fault {
                Fault::Service => self.kill_a_service(),
                Fault::Pause => self.hold_up_a_service(),
                Fault::Server => self.kill_the_server(database.expect("one that may be killed")),
                Fault::Client => self.kill_a_person(false),
                Fault::Run => self.kill_a_person(true),
            }
            *self.killed.entry(fault).or_default() += 1;
            self.until_they_go_on();
        }
        for person in std::mem::take(&mut self.people) {
            finish(person);
        }
        let proved = self.history.prove(store);
        assert!(self.is_colourful(store, faults), "seed {}: too little happens", self.history.seed);
        println!("{} came, killed or held up were {:?}: {proved}", self.born, self.killed);
    }

    /// Whether everything has happened that is to be told of.
    fn is_colourful(&self, store: &Store, faults: &[Fault]) -> bool {
        faults.iter().all(|fault| self.killed.contains_key(fault))
            && ["released", "expired", "lost"].iter().all(|state| store.count("lease", state) > 0)
            && store.line().len() > 10
    }

    /// Waits until they have leased some more. Who ended is followed by another.
    fn until_they_go_on(&mut self) {
        let enough = self.history.noted() + PROGRESS;
        wait_until("they go on", || {
            self.follow();
            self.history.noted() > enough
        });
    }

    fn follow(&mut self) {
        for mut person in std::mem::take(&mut self.people) {
            if person.running.is_over() {
                finish(person);
            } else {
                self.people.push(person);
            }
        }
        for (is_run, wanted) in [(true, RUNS), (false, CLIENTS)] {
            let there = self.people.iter().filter(|person| person.is_run == is_run).count();
            for _ in there..wanted {
                self.settle(is_run);
            }
        }
    }

    /// Somebody new comes.
    fn settle(&mut self, is_run: bool) {
        self.born += 1;
        let name = format!("{}-{}", self.history.seed, self.born);
        let urls: Vec<_> = self.services.iter().map(|service| service.url.clone()).collect();
        let program = if is_run {
            // A run knows one service, which has to be there when it begins.
            let there: Vec<_> = (0..urls.len()).filter(|at| Some(*at) != self.away).collect();
            let url = &urls[there[self.random.usize(..there.len())]];
            self.lab.wrap(&format!("-n 2 --quiet --leases {url}"), &format!("python3 worker.py {name} socket"))
        } else {
            self.lab.program("python3").arg_all(["worker.py", &name]).arg_all(urls)
        };
        let running = program.env("ISOLANE_TOKEN", &self.token).start();
        self.people.push(Person { is_run, running });
    }

    fn kill_a_person(&mut self, is_run: bool) {
        let its: Vec<_> = (0..self.people.len()).filter(|at| self.people[*at].is_run == is_run).collect();
        let person = self.people.swap_remove(its[self.random.usize(..its.len())]);
        person.running.signal(Signal::SIGKILL);
    }

    fn kill_a_service(&mut self) {
        let at = self.random.usize(..self.services.len());
        self.services[at].kill();
        // The other one does what is asked, also when this one never comes back.
        if self.services.len() > 1 && self.random.bool() {
            self.away = Some(at);
            self.until_they_go_on();
            self.away = None;
        }
        self.services[at].start_again();
    }

    fn hold_up_a_service(&mut self) {
        let at = self.random.usize(..self.services.len());
        self.services[at].signal(Signal::SIGSTOP);
        let (enough, until) = (self.history.noted() + PROGRESS, Instant::now() + PAUSE);
        wait_until("the other one is ahead", || self.history.noted() > enough || Instant::now() > until);
        self.services[at].signal(Signal::SIGCONT);
    }

    fn kill_the_server(&mut self, database: &Database) {
        let crash = if self.random.bool() { Signal::SIGQUIT } else { Signal::SIGKILL };
        database.server.stop_by(crash);
        let with_it = self.random.bool().then(|| self.random.usize(..self.services.len()));
        if let Some(at) = with_it {
            self.services[at].kill();
        }
        database.server.start_again();
        if let Some(at) = with_it {
            self.services[at].start_again();
        }
    }
}

/// One who ended by themselves found nothing wrong.
fn finish(person: Person) {
    let ended = person.running.finish();
    assert!(!ended.err().contains("Traceback"), "{}", ended.all());
}

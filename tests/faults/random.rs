//! Deaths at random moments, which a seed repeats.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::{Signal, kill, killpg};

use crate::Wishes;
use crate::lab::Server;
use crate::scene::{Kind, Scene, Setup};

/// How many scenes there are at once.
const AT_ONCE: usize = 2;

/// Who dies.
#[derive(Clone, Copy, Debug)]
enum Death {
    Supervisor,
    Group,
    Machine,
}

/// One round.
#[derive(Debug)]
struct Round {
    number: usize,
    kind: Kind,
    workers: u32,
    death: Death,
    /// From the start to the death.
    after: Duration,
}

pub fn run(wishes: &Wishes) -> Vec<String> {
    println!("\nrandom deaths: {} rounds, seed {}", wishes.rounds, wishes.seed);
    let mut rng = Rng::with_seed(wishes.seed);
    let rounds: Vec<Round> = (0..wishes.rounds)
        .map(|number| {
            let kind = *rng.choice(Kind::ALL.as_slice()).expect("there are some");
            let workers = rng.u32(1..=8);
            let death = *rng.choice([Death::Supervisor, Death::Group, Death::Machine].as_slice()).expect("some");
            let (kind, workers) = (wishes.on.unwrap_or(kind), wishes.workers.unwrap_or(workers));
            // A run of more workers takes longer; beyond its end nothing can die.
            let longest = if kind == Kind::Sqlite { 150 } else { 400 + 100 * u64::from(workers) };
            let after = Duration::from_micros(rng.u64(0..longest * 1000));
            Round { number, kind, workers, death, after }
        })
        .collect();
    let (began, total) = (Instant::now(), rounds.len());
    let rounds = Mutex::new(rounds.into_iter());
    let failures: Mutex<Vec<String>> = Mutex::default();
    let tally: Mutex<(usize, Duration)> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let server = Server::own();
                let scene = Scene::on(&server);
                loop {
                    let next = rounds.lock().expect("no panic inside").next();
                    let Some(round) = next else { break };
                    let (died, time, wrong) = play(&scene, &round);
                    let mut tally = tally.lock().expect("no panic inside");
                    *tally = (tally.0 + usize::from(died), tally.1.max(time));
                    failures.lock().expect("no panic inside").extend(wrong);
                }
                failures.lock().expect("no panic inside").extend(scene.close());
            });
        }
    });
    let failures = failures.into_inner().expect("no panic inside");
    let (died, slowest) = tally.into_inner().expect("no panic inside");
    println!(
        "{total} rounds, {died} died before their end, {} with leftovers or foreign changes; the slowest was clean after {:.2} s; {:.0} s in all",
        failures.len(),
        slowest.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    failures
}

/// Plays a round: whether the run died before its end, how long it took until all was
/// clean, and what was wrong.
fn play(scene: &Scene, round: &Round) -> (bool, Duration, Option<String>) {
    let lab = scene.lab(round.kind);
    let run = Scene::run(&lab, round.kind, round.workers, Setup::Own, "; sleep 0.2").start();
    std::thread::sleep(round.after);
    let pid = run.pid();
    match round.death {
        // It may have ended by itself: nobody has waited for it yet, so the number is its own.
        Death::Supervisor => drop(kill(pid, Signal::SIGKILL)),
        Death::Group => drop(killpg(pid, Signal::SIGKILL)),
        Death::Machine => lab.lose_machine(),
    }
    let outcome = run.finish();
    let died = outcome.status.code().is_none();
    let mut wrong = Vec::new();
    if matches!(round.death, Death::Machine) {
        let swept = lab.isolane("sweep --apply").run();
        let (left, _) = scene.leftovers(&lab);
        if swept.status.code() != Some(0) || !left.is_empty() {
            wrong.push(swept.all());
        }
    }
    let (left, time) = scene.leftovers(&lab);
    wrong.extend(left);
    wrong.extend(Scene::next_run(&lab));
    if !died && outcome.status.code() != Some(0) {
        wrong.push("it failed by itself".to_owned());
    }
    let text = (!wrong.is_empty())
        .then(|| format!("round {} {round:?}:\n  {}\n{}", round.number, wrong.join("\n  "), outcome.all()));
    (died, time, text)
}

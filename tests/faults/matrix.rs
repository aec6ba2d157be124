//! Every fault point, every fault, every isolation.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use isolane::fault::Step;
use nix::sys::signal::{Signal, kill};

use crate::Wishes;
use crate::lab::program::Running;
use crate::lab::{Lab, Outcome, Server, is_alive};
use crate::scene::{Kind, Scene, Setup};

/// How many scenes there are at once.
const AT_ONCE: usize = 3;

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    /// SIGKILL to the supervisor.
    Kill,
    /// SIGKILL to its whole process group.
    Group,
    /// An error, as of a server.
    Error,
    /// The server is restarted.
    Restart,
    /// The server ends all of isolane's sessions.
    Cut,
    /// All processes are killed, the watchdog first; then `isolane sweep --apply`.
    Lost,
}

impl Blow {
    const ALL: [Self; 6] = [Self::Kill, Self::Group, Self::Error, Self::Restart, Self::Cut, Self::Lost];

    fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Group => "group",
            Self::Error => "error",
            Self::Restart => "restart",
            Self::Cut => "cut",
            Self::Lost => "lost",
        }
    }

    fn deed(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Group => "kill-group",
            Self::Error => "error",
            Self::Restart | Self::Cut | Self::Lost => "pause",
        }
    }

    fn is_for(self, kind: Kind) -> bool {
        !matches!(kind, Kind::Sqlite | Kind::Server) || !matches!(self, Self::Restart | Self::Cut)
    }
}

type Column = (Kind, Blow);

/// What became of one column at one point.
#[derive(Clone, Debug, Default)]
struct Cell {
    struck: usize,
    failed: usize,
    slowest: Duration,
}

/// What the run does that is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Course {
    /// A setup makes a pristine state, and two workers have a lane each.
    Plain,
    /// Lanes are filled, because others are connected to the user's database, and there is no setup.
    Filled,
    /// The pristine state is kept for later runs.
    Kept,
    /// Workers have their lanes put back.
    Renewing,
}

impl Course {
    /// The one that comes to this point.
    fn to(point: &str, kind: Kind) -> Self {
        match point.split(':').next() {
            Some("renew") => Self::Renewing,
            Some("fill") if kind == Kind::Database => Self::Filled,
            Some("keep") if kind == Kind::Database => Self::Kept,
            _ => Self::Plain,
        }
    }

    /// The run, with a fault.
    fn start(self, lab: &Lab, kind: Kind, fault: &str) -> Running {
        let run = match self {
            Self::Plain => Scene::run(lab, kind, 2, Setup::Own, ""),
            Self::Filled => Scene::run(lab, kind, 2, Setup::No, ""),
            Self::Kept => Scene::run(lab, kind, 2, Setup::Kept, ""),
            Self::Renewing => Scene::run_renewing(lab, kind),
        };
        run.env("ISOLANE_FAULT", fault).start()
    }
}

/// How often runs pass which point, where nothing strikes.
type Passes = BTreeMap<(Kind, Course), BTreeMap<String, usize>>;

/// Counts that for everything that will be struck.
fn count(points: &[String], columns: &[Column]) -> Passes {
    let server = Server::own();
    let scene = Scene::on(&server);
    let mut passes = Passes::new();
    for (kind, course) in columns.iter().flat_map(|(kind, _)| points.iter().map(|to| (*kind, Course::to(to, *kind)))) {
        passes.entry((kind, course)).or_insert_with(|| {
            let lab = scene.lab(kind);
            let _other = (course == Course::Filled).then(|| scene.database.client());
            let outcome = course.start(&lab, kind, "every:point=tell").finish();
            let told = outcome.err();
            let mut passes = BTreeMap::new();
            for point in told.lines().filter_map(|line| line.split_once("isolane: passed ")) {
                *passes.entry(point.1.to_owned()).or_default() += 1;
            }
            if course == Course::Kept {
                let left = scene.remove_templates(&lab);
                assert!(left.is_empty(), "{left:?}");
            }
            passes
        });
    }
    let wrong = scene.close();
    assert!(wrong.is_empty(), "{wrong:?}");
    passes
}

pub fn run(wishes: &Wishes) -> Vec<String> {
    let columns: Vec<Column> = Kind::ALL
        .into_iter()
        .filter(|kind| wishes.on.is_none_or(|on| on == *kind))
        .flat_map(|kind| Blow::ALL.into_iter().filter(move |blow| blow.is_for(kind)).map(move |blow| (kind, blow)))
        .collect();
    let points: Vec<String> =
        Step::ALL.iter().flat_map(|step| ["before", "after"].map(|side| format!("{}:{side}", step.name()))).collect();
    let passes = count(&points, &columns);
    let jobs: Vec<(usize, Column)> =
        (0..points.len()).flat_map(|point| columns.iter().map(move |column| (point, *column))).collect();
    let jobs = Mutex::new(jobs.into_iter());
    let cells: Mutex<BTreeMap<(usize, Column), Cell>> = Mutex::default();
    let failures: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let server = Server::own();
                let scene = Scene::on(&server);
                loop {
                    let next = jobs.lock().expect("no panic inside").next();
                    let Some((point, column)) = next else { break };
                    let (cell, wrong) = cell(&scene, &passes, &points[point], column);
                    cells.lock().expect("no panic inside").insert((point, column), cell);
                    failures.lock().expect("no panic inside").extend(wrong);
                }
                failures.lock().expect("no panic inside").extend(scene.close());
            });
        }
    });
    let cells = cells.into_inner().expect("no panic inside");
    let mut failures = failures.into_inner().expect("no panic inside");
    print(&points, &columns, &cells);
    for (index, point) in points.iter().enumerate() {
        if wishes.on.is_none() && cells.iter().all(|((point, _), cell)| *point != index || cell.struck == 0) {
            failures.push(format!("{point} was never struck: no run comes there"));
        }
    }
    failures
}

/// Strikes at a point: a supervisor that dies does so at every pass of it, other faults
/// strike at the first.
fn cell(scene: &Scene, passes: &Passes, point: &str, (kind, blow): Column) -> (Cell, Vec<String>) {
    let mut cell = Cell::default();
    let mut wrong = Vec::new();
    let course = Course::to(point, kind);
    let most = if blow == Blow::Kill { usize::MAX } else { 1 };
    let passes = passes[&(kind, course)].get(point).copied().unwrap_or(0).min(most);
    for pass in 1..=passes {
        let lab = scene.lab(kind);
        let fault = format!("{point}:{pass}={}", blow.deed());
        let _other = (course == Course::Filled).then(|| scene.database.client());
        let run = course.start(&lab, kind, &fault);
        let outcome = match strike(scene, &lab, run, blow) {
            Ok(outcome) => outcome,
            Err(why) => {
                wrong.push(format!("{} {fault}: {why}", kind.word()));
                cell.failed += 1;
                break;
            }
        };
        if !outcome.err().contains("isolane: fault ") {
            // It came there less often this time.
            if course == Course::Kept {
                wrong.extend(scene.remove_templates(&lab));
            }
            break;
        }
        cell.struck += 1;
        if (kind, blow) == (Kind::Shared, Blow::Restart) {
            // What the server had not told before it broke down, it has forgotten.
            scene.forget_rows();
        }
        let (mut left, time) = scene.leftovers(&lab);
        // What is kept outlives the run, whole.
        if course == Course::Kept {
            left.extend(scene.remove_templates(&lab));
        }
        cell.slowest = cell.slowest.max(time);
        left.extend(Scene::next_run(&lab));
        if outcome.err().contains("panicked") {
            left.push("it panicked".to_owned());
        }
        if !left.is_empty() {
            cell.failed += 1;
            wrong.push(format!("{} {fault}:\n  {}\n{}", kind.word(), left.join("\n  "), outcome.all()));
        }
    }
    (cell, wrong)
}

fn strike(scene: &Scene, lab: &Lab, run: Running, blow: Blow) -> Result<Outcome, String> {
    if blow.deed() != "pause" {
        return Ok(run.finish());
    }
    let pid = run.pid();
    let number = pid.as_raw().unsigned_abs();
    let began = Instant::now();
    loop {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')) {
            break;
        }
        if !is_alive(number) {
            // It did not come to the point.
            return Ok(run.finish());
        }
        if began.elapsed() > Duration::from_secs(60) {
            return Err("it neither stops nor ends".to_owned());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    match blow {
        Blow::Restart => scene.server.restart(),
        Blow::Cut => scene.server.sql(
            "postgres",
            &format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE usename = '{}' AND application_name LIKE 'isolane %'",
                scene.database.login
            ),
        ),
        _ => {
            lab.lose_machine();
            let outcome = run.finish();
            // A server takes its time to notice, and until then the run lives for others.
            let sessions = format!(
                "SELECT 'a session' FROM pg_stat_activity WHERE usename = '{}' AND application_name LIKE 'isolane %'",
                scene.database.login
            );
            let began = Instant::now();
            while !scene.server.texts("postgres", &sessions).is_empty() && began.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(2));
            }
            let swept = lab.isolane("sweep --apply").run();
            if swept.status.code() != Some(0) {
                return Err(swept.all());
            }
            return Ok(outcome);
        }
    }
    kill(pid, Signal::SIGCONT).map_err(|error| error.to_string())?;
    Ok(run.finish())
}

fn print(points: &[String], columns: &[Column], cells: &BTreeMap<(usize, Column), Cell>) {
    println!(
        "\nEvery point × every fault × every isolation: how often it was struck, and FAILED where anything was left"
    );
    println!("5 s later. A dash: no run comes to that point there.\n");
    let width = 10;
    print!("{:<18}", "");
    for (kind, _) in columns {
        print!("{:>width$}", kind.word());
    }
    print!("\n{:<18}", "point");
    for (_, blow) in columns {
        print!("{:>width$}", blow.word());
    }
    println!();
    for (index, point) in points.iter().enumerate() {
        print!("{point:<18}");
        for column in columns {
            let cell = cells.get(&(index, *column)).cloned().unwrap_or_default();
            let text = match (cell.struck, cell.failed) {
                (_, 1..) => "FAILED".to_owned(),
                (0, 0) => "-".to_owned(),
                (struck, 0) => format!("ok {struck}"),
            };
            print!("{text:>width$}");
        }
        println!();
    }
    let struck: usize = cells.values().map(|cell| cell.struck).sum();
    let failed: usize = cells.values().map(|cell| cell.failed).sum();
    let slowest = cells.values().map(|cell| cell.slowest).max().unwrap_or_default();
    println!(
        "\n{struck} deaths and faults, {failed} with leftovers; the slowest was clean after {:.2} s",
        slowest.as_secs_f64()
    );
}

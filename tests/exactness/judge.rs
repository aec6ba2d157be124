//! Runs a plan and compares what isolane found with what was planned.

use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::lab::{Database, Lab, Server};
use crate::plan::{COLUMNS, Met, Plan, Script, Truth};
use crate::world::BEFORE;

const TABLES: &str = "
CREATE TABLE goods (id int PRIMARY KEY, v int NOT NULL);
CREATE TABLE tags (a int, b text, v int NOT NULL, PRIMARY KEY (a, b));
CREATE TABLE codes (code text PRIMARY KEY, v int NOT NULL);
CREATE TABLE users (id bigint PRIMARY KEY, email text NOT NULL UNIQUE, v int NOT NULL);
CREATE TABLE orders (id int PRIMARY KEY, v int NOT NULL);
CREATE TABLE items (id int PRIMARY KEY, order_id int NOT NULL REFERENCES orders);
CREATE TABLE sheets (id int PRIMARY KEY, v int NOT NULL);
GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC;";

/// What came of a plan.
#[derive(Default)]
pub struct Verdict {
    /// By pattern: found, missing, too many.
    pub found: BTreeMap<String, [usize; 3]>,
    pub touches: usize,
    pub wrong: Vec<String>,
}

/// Runs `plan` on a server.
pub fn judge(server: &Server, plan: &Plan) -> Verdict {
    let database = server.database(if plan.setting.roles { "CREATEROLE" } else { "" });
    let fill = format!(
        "INSERT INTO goods SELECT n, 0 FROM generate_series(1, {BEFORE}) AS n;
         INSERT INTO tags SELECT n, 't ' || n, 0 FROM generate_series(1, {BEFORE}) AS n;
         INSERT INTO codes SELECT 'c' || n, 0 FROM generate_series(1, {BEFORE}) AS n;"
    );
    database.sql(&format!("{TABLES}{fill}"));
    let before = rows(&database);
    let lab = Lab::on(&database);
    let script = Script {
        seed: plan.seed,
        workers: plan.workers,
        setting: plan.setting.clone(),
        stranger: server.admin_url(&database.name),
        steps: plan.steps.clone(),
    };
    lab.file("script.json", &serde_json::to_string(&script).expect("JSON"));
    let options = if plan.setting.schemas { "--isolation schema --track public.*" } else { "--isolation shared" };
    let own = std::env::current_exe().expect("a program");
    let outcome = lab.run(options, [own.as_os_str(), "drive".as_ref(), "script.json".as_ref()]).run();
    let mut verdict = Verdict::default();
    if outcome.status.code() != Some(0) {
        verdict.wrong.push(outcome.all());
        if outcome.status.code() != Some(123) {
            return verdict;
        }
    }
    let found = read(&lab);
    let truth = &plan.truth;
    compare_met(&truth.met, &found.met, &mut verdict);
    compare("touches", &truth.touches, &found.touches, &mut verdict.wrong);
    compare("records", &truth.records, &found.records, &mut verdict.wrong);
    compare("leaks", &truth.leaks, &found.leaks, &mut verdict.wrong);
    if truth.tests != found.tests {
        verdict.wrong.push(format!("{} tests, and {} are in the ledger", truth.tests, found.tests));
    }
    verdict.touches = found.touches.values().sum();
    let mut client = server.admin(&database.name);
    for stranger in &plan.strangers {
        let n = client.execute(stranger.as_str(), &[]).expect("SQL");
        if n != 1 {
            verdict.wrong.push(format!("a stranger's row is not there: {stranger}"));
        }
    }
    let after = rows(&database);
    if before != after {
        let gone = before.iter().filter(|row| !after.contains(row)).map(|row| format!("gone: {row}"));
        let new = after.iter().filter(|row| !before.contains(row)).map(|row| format!("left: {row}"));
        verdict.wrong.extend(gone.chain(new).take(20));
    }
    if !verdict.wrong.is_empty() {
        verdict.wrong.push(outcome.err());
    }
    let left = server.marked(&lab.tag(), &database.name);
    if !left.is_empty() {
        verdict.wrong.push(format!("left on the server: {left:?}"));
    }
    drop(client);
    server.sql("postgres", &format!("DROP DATABASE {} WITH (FORCE)", database.name));
    verdict
}

fn rows(database: &Database<'_>) -> Vec<String> {
    let tables = ["goods", "tags", "codes", "users", "orders", "items", "sheets"];
    let each = tables.map(|table| format!("SELECT '{table} ' || t::text AS row FROM {table} AS t"));
    let sql = format!("{} ORDER BY row", each.join(" UNION ALL "));
    database.client().query(&sql, &[]).expect("SQL").iter().map(|row| row.get(0)).collect()
}

fn read(lab: &Lab) -> Truth {
    let mut truth = Truth::default();
    for row in lab.ledger(&format!("SELECT {COLUMNS} FROM collisions")) {
        let [pattern, kind, key, worker_a, test_a, op_a, worker_b, test_b, op_b, victim] =
            row.try_into().expect("ten columns");
        let met: Met = (pattern, kind, key, worker_a, test_a, op_a, worker_b, test_b, op_b, victim);
        *truth.met.entry(met).or_default() += 1;
    }
    truth.touches = counts(lab, "SELECT worker_id, test_id, kind, op, count(*) FROM touches GROUP BY 1, 2, 3, 4");
    truth.records = counts(lab, "SELECT worker_id, test_id, kind, state, count(*) FROM records GROUP BY 1, 2, 3, 4");
    truth.leaks = counts(lab, "SELECT worker_id, test_id, kind, sum(n) FROM leaks GROUP BY 1, 2, 3");
    truth.tests = lab.value("SELECT count(*) FROM tests").parse().expect("a number");
    truth
}

fn counts<const N: usize>(lab: &Lab, sql: &str) -> BTreeMap<[String; N], usize> {
    let count = |mut row: Vec<String>| {
        let n = row.pop().and_then(|n| n.parse().ok()).expect("a number");
        (row.try_into().expect("so many columns"), n)
    };
    lab.ledger(sql).into_iter().map(count).collect()
}

fn compare_met(planned: &BTreeMap<Met, usize>, found: &BTreeMap<Met, usize>, verdict: &mut Verdict) {
    for met in planned.keys().chain(found.keys().filter(|met| !planned.contains_key(*met))) {
        let [was, is] = [planned, found].map(|all| all.get(met).copied().unwrap_or(0));
        let cell = verdict.found.entry(met.0.clone()).or_default();
        cell[0] += is;
        cell[1] += was.saturating_sub(is);
        cell[2] += is.saturating_sub(was);
    }
    compare("collisions", planned, found, &mut verdict.wrong);
}

fn compare<K: Ord + Debug>(
    what: &str,
    planned: &BTreeMap<K, usize>,
    found: &BTreeMap<K, usize>,
    wrong: &mut Vec<String>,
) {
    let keys = planned.keys().chain(found.keys().filter(|key| !planned.contains_key(*key)));
    let differ = keys.filter_map(|key| {
        let [was, is] = [planned, found].map(|all| all.get(key).copied().unwrap_or(0));
        (was != is).then(|| format!("{what}: planned {was}, found {is}: {key:?}"))
    });
    wrong.extend(differ.take(12));
}

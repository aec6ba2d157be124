//! The runs that go on, as the ledger knows them and as what they hold tells of them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::ledger::live::{self, LiveRun};
use crate::name::RunId;

/// How long what was read of the ledger is good for.
const FRESH: Duration = Duration::from_millis(900);

/// The runs of a ledger, read again when that was a moment ago.
#[derive(Debug, Default)]
pub struct Runs {
    read: Option<Instant>,
    runs: Vec<LiveRun>,
}

impl Runs {
    /// The runs that go on; `holding` says what they hold, and knows of others elsewhere.
    pub async fn shown(&mut self, ledger: PathBuf, holding: &Value) -> Value {
        if self.read.is_none_or(|read| read.elapsed() > FRESH) {
            let read = tokio::task::spawn_blocking(move || live::runs(&ledger)).await;
            // What cannot be read now was read a moment ago.
            if let Ok(Ok(runs)) = read {
                self.runs = runs;
            }
            self.read = Some(Instant::now());
        }
        let mut rows: Vec<Value> = self.runs.iter().map(|run| shown(run, &holding[&run.run_id])).collect();
        let elsewhere = holding.as_object().into_iter().flatten();
        for (id, workers) in elsewhere.filter(|(id, _)| !self.runs.iter().any(|run| run.run_id == **id)) {
            let tag = RunId::parse(id).map_or_else(|| id.clone(), |id| id.tag().as_str().to_owned());
            let lane = |(worker, its): (&String, &Value)| json!({"lane": its["lane"], "worker": worker, "test": its["test"], "holds": its["n"]});
            let lanes: Value = workers.as_object().into_iter().flatten().map(lane).collect();
            rows.push(json!({"run": id, "tag": tag, "lanes": lanes, "is_elsewhere": true}));
        }
        rows.into()
    }
}

fn shown(run: &LiveRun, holding: &Value) -> Value {
    let lane = |lane: &live::LiveLane| {
        json!({
            "lane": lane.lane, "worker": lane.worker_id, "test": lane.test.as_ref().map(|(test, _)| test),
            "since": lane.test.as_ref().map(|(_, since)| since.to_string()), "holds": holding[&lane.worker_id]["n"],
        })
    };
    json!({
        "run": run.run_id, "tag": run.tag, "command": run.command, "runner": run.runner, "host": run.host,
        "since": run.started_at, "is_dead": run.is_dead, "tests": run.tests, "failed": run.failed,
        "lanes": run.lanes.iter().map(lane).collect::<Value>(),
    })
}

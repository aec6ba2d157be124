//! Reading the log: what was written since it was read last.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use postgres::{Client, IsolationLevel, Row};

use super::table::Key;
use crate::clock::Timestamp;
use crate::name::{Identifier, Lane, Tag};
use crate::touch::{Ground, Op, Seen, Statement, Writer};

/// The most keys of one statement that come at once: longer ones come in parts.
const PART: i32 = 8192;
/// How many log rows come at once, and how many bytes of keys if the largest is any guide.
const BATCH: i32 = 256;
const BYTES: i32 = 1 << 20;
/// How often the clocks are compared; the quickest answer counts.
const COMPARISONS: usize = 5;

/// How the server's clock stands to this machine's, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// What to add to the server's.
    offset: i64,
    /// Half the way to the server and back.
    uncertainty: i64,
}

impl Clock {
    /// Compares the clocks (the method of Cristian, 1989).
    fn compare(client: &mut Client) -> Result<Self, postgres::Error> {
        let ask = client.prepare("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")?;
        let mut best: Option<Self> = None;
        for _ in 0..COMPARISONS {
            let before = Timestamp::now().micros();
            let there: i64 = client.query_one(&ask, &[])?.get(0);
            let after = Timestamp::now().micros();
            let clock = Self { offset: before.midpoint(after) - there, uncertainty: (after - before) / 2 + 1 };
            if best.is_none_or(|best| clock.uncertainty < best.uncertainty) {
                best = Some(clock);
            }
        }
        Ok(best.expect("it was compared").settled())
    }

    /// Two clocks that cannot be told apart are one, mostly: the server is on this machine. What
    /// was measured is then only how long the answer took.
    fn settled(self) -> Self {
        if self.offset.abs() <= self.uncertainty { Self { offset: 0, ..self } } else { self }
    }
}

/// A watched table, as the log names it.
struct Watched {
    kind: Arc<str>,
    own_kind: Arc<str>,
    ground: Ground,
    key: Key,
}

/// Whose log it is, and what is done with what was read.
#[derive(Clone, Copy, Debug)]
pub struct Log<'a> {
    /// Its schema.
    pub schema: &'a Identifier,
    /// The run.
    pub tag: &'a Tag,
    /// The lane that everything in this database is of.
    pub lane: Option<Lane>,
}

/// Hands what is in the log to `sink` and takes it out of there, except for what is younger
/// than `margin`. What `sink` has taken and a crash brings a second time is the same again.
pub fn harvest(
    client: &mut Client,
    log: Log<'_>,
    margin: Duration,
    sink: &mut dyn FnMut(Seen) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let schema = log.schema;
    let there = "SELECT to_regclass($1 || '.log') IS NOT NULL, to_regclass($1 || '.backlog') IS NOT NULL";
    let there = client.query_one(there, &[&schema.to_string()])?;
    if !there.get::<_, bool>(0) {
        return Ok(());
    }
    // What may have to be undone stays until it is; what was undone waits in the backlog.
    let stays: bool = there.get(1);
    let source = if stays {
        format!("(SELECT * FROM {schema}.log UNION ALL SELECT * FROM {schema}.backlog)")
    } else {
        format!("{schema}.log")
    };
    let any = format!("SELECT EXISTS (SELECT FROM {source} AS source)");
    if !client.query_one(&any, &[])?.get::<_, bool>(0) {
        return Ok(());
    }
    let clock = Clock::compare(client)?;
    let watched = watched(client, schema)?;
    let mut transaction = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start()?;
    let cut = "SELECT (clock_timestamp() - make_interval(secs => $1))::text";
    let cut: String = transaction.query_one(cut, &[&margin.as_secs_f64()])?.get(0);
    let select = transaction.prepare(&format!(
        "SELECT (extract(epoch FROM at) * 1000000)::bigint AS at, pid, rel, op, who::text AS who, app, lane,
                CASE WHEN n <= {PART} THEN keys ELSE keys[part * {PART} + 1 : (part + 1) * {PART}] END AS keys,
                CASE WHEN n <= {PART} THEN was ELSE was[part * {PART} + 1 : (part + 1) * {PART}] END AS was
           FROM (SELECT *, cardinality(keys) AS n FROM {source} AS source) AS log, generate_series(0, greatest(n - 1, 0) / {PART}) AS part
          WHERE log.at < '{cut}' AND (n > 0 OR op = 'T') ORDER BY log.at, part"
    ))?;
    let largest = format!("SELECT coalesce(max(pg_column_size(keys)), 0) + 1 FROM {source} AS source");
    let batch = (BYTES / transaction.query_one(&largest, &[])?.get::<_, i32>(0)).clamp(1, BATCH);
    let portal = transaction.bind(&select, &[])?;
    loop {
        let rows = transaction.query_portal(&portal, batch)?;
        if rows.is_empty() {
            break;
        }
        let statements = rows.iter().filter_map(|row| statement(row, &log, &watched, clock)).collect();
        sink(Seen { statements, uncertainty: clock.uncertainty })?;
    }
    let was_there = format!("DELETE FROM {schema}.log WHERE at < '{cut}'");
    if stays {
        transaction.batch_execute(&format!(
            "DELETE FROM {schema}.backlog WHERE at < '{cut}';
             WITH read AS ({was_there} RETURNING *) INSERT INTO {schema}.harvested SELECT * FROM read"
        ))?;
    } else if log.lane.is_some() {
        transaction.batch_execute(&was_there)?;
    } else {
        // Which rows were made and by whom stays here: whoever cleans up may know no ledger.
        transaction.batch_execute(&format!(
            "WITH read AS ({was_there} RETURNING *) INSERT INTO {schema}.harvested SELECT * FROM read WHERE op <> 'U' OR was IS NOT NULL OR NOT starts_with(who::text, 'isolane_{}_w')",
            log.tag
        ))?;
    }
    transaction.commit()?;
    Ok(())
}

fn watched(client: &mut Client, schema: &Identifier) -> Result<HashMap<i32, Watched>, postgres::Error> {
    let sql = format!(
        "SELECT rel, kind, own_kind, lane, columns, types, form::text AS form FROM {schema}.watched WHERE is_told"
    );
    let rows = client.query(&sql, &[])?;
    let watched = rows.iter().map(|row| {
        let watched = Watched {
            kind: row.get::<_, String>("kind").into(),
            own_kind: row.get::<_, String>("own_kind").into(),
            ground: Ground::recall(row.get("lane")),
            key: Key::recall(row.get("columns"), row.get("types"), row.get("form")),
        };
        (row.get("rel"), watched)
    });
    Ok(watched.collect())
}

fn statement(row: &Row, log: &Log<'_>, watched: &HashMap<i32, Watched>, clock: Clock) -> Option<Statement> {
    let table = watched.get(&row.get("rel"))?;
    let op = match u8::try_from(row.get::<_, i8>("op")).ok()? {
        b'I' => Op::Insert,
        b'U' => Op::Update,
        b'D' => Op::Delete,
        _ => Op::Truncate,
    };
    let who: String = row.get("who");
    let app: Option<String> = row.get("app");
    let of_row: Option<i32> = row.get("lane");
    let begins = format!("isolane_{}_w", log.tag);
    let lane_in = |text: &str| {
        let digits: String = text.strip_prefix(&begins)?.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok().map(Lane)
    };
    let writer = if let Some(lane) = log.lane {
        Writer::Lane(lane)
    } else if let Some(lane) = lane_in(&who).or_else(|| lane_in(app.as_deref()?)) {
        Writer::Lane(lane)
    } else if let Some(lane) = of_row.and_then(|lane| u32::try_from(lane).ok()) {
        Writer::OnBehalfOf(Lane(lane))
    } else if let Ground::Lane(lane) = table.ground {
        // A session that says nothing is that lane's whose place it works in.
        Writer::Lane(lane)
    } else {
        let app = app.filter(|app| !app.is_empty()).map(|app| format!(" ({app})")).unwrap_or_default();
        Writer::Stranger(format!("{who}{app}"))
    };
    let keys = |name: &str| -> Vec<String> {
        let keys: Option<Vec<Option<String>>> = row.get(name);
        keys.unwrap_or_default().into_iter().flatten().map(|key| table.key.json(&key)).collect()
    };
    Some(Statement {
        writer,
        ground: log.lane.map_or(table.ground, Ground::Lane),
        kind: Arc::clone(if op == Op::Truncate { &table.own_kind } else { &table.kind }),
        op,
        keys: keys("keys"),
        was: keys("was"),
        at: row.get::<_, i64>("at") + clock.offset,
        pid: row.get("pid"),
    })
}

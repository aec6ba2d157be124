//! What pages show: pools and leases as they stand at one moment.

use std::collections::BTreeMap;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::api::{leases, pools};
use crate::lease::ask::Holder;
use crate::lease::board::Board;
use crate::lease::definition::{Definition, ResetAfter, Usage};
use crate::lease::grant::Lease;
use crate::lease::item::{Item, ItemState};
use crate::lease::predicate::{Attributes, plain};
use crate::name::RunId;
use crate::secret::mask_command;

/// How many rows a table of a page has at most.
pub const MOST_ROWS: usize = 200;
/// How much of a value is shown.
const MOST_LETTERS: usize = 400;
/// An exhaustion that is nearer than this is a warning.
const SOON: Duration = Duration::from_secs(600);

/// All that the overview shows but the runs.
pub fn overview(board: &Board) -> Value {
    let held = board.held();
    let by_hand = held.iter().filter(|lease| lease.holder.run.is_none() && lease.holder.client.is_some());
    json!({
        "pools": board.pools().map(|pool| card(board, &pool.name, &pool.definition)).collect::<Value>(),
        "by_hand": by_hand.map(|lease| lease_with_items(board, lease)).collect::<Value>(),
        "holders": holders(held.iter(), None), "queue": queue(board, None), "holding": holding(&held),
    })
}

/// All that the page of a pool shows; nothing where there is none.
pub fn pool(board: &Board, name: &str, find: &str) -> Option<Value> {
    let definition = board.definition(name)?;
    let held = board.held();
    let by_hand = held.iter().filter(|lease| {
        let is_its = lease.items.iter().any(|it| &*it.pool == name);
        is_its && lease.holder.run.is_none() && lease.holder.client.is_some()
    });
    Some(json!({
        "pool": card(board, name, definition), "items": items(board, name, definition, find),
        "by_hand": by_hand.map(|lease| lease_with_items(board, lease)).collect::<Value>(),
        "queue": queue(board, Some(name)),
    }))
}

fn card(board: &Board, name: &str, definition: &Definition) -> Value {
    const WORDS: [&str; 6] = ["free", "held", "dirty", "resetting", "quarantined", "retiring"];
    let mut counts = [0_usize; WORDS.len()];
    let (mut total, mut free) = (0_usize, 0_u32);
    for item in board.items_of(name) {
        let places = item.places(definition);
        let word = match item.state {
            ItemState::Free if places > 0 => 0,
            ItemState::Free => 1,
            ItemState::Dirty => 2,
            ItemState::Resetting => 3,
            ItemState::Quarantined => 4,
            ItemState::Retiring | ItemState::Retired => 5,
        };
        counts[word] += 1;
        total += 1;
        free = free.saturating_add(places);
    }
    let mut from = 0;
    let mut shares = Vec::new();
    for (word, n) in WORDS.iter().zip(counts).filter(|(_, n)| *n > 0) {
        // In thousandths of the bar.
        let to = from + n;
        let (left, right) = (from * 1000 / total.max(1), to * 1000 / total.max(1));
        shares.push(json!({"state": word, "n": n, "left": left, "width": right - left}));
        from = to;
    }
    let waiting = board.waiting().filter(|it| it.ask.wants.iter().any(|want| want.pool == name)).count();
    let tempo = board.pulse().of(name);
    let path = utf8_percent_encode(name, NON_ALPHANUMERIC).to_string();
    json!({
        "name": name, "path": format!("/pools/{path}"), "part": format!("pool-{path}"), "use": pools::usage(definition.usage),
        "source": pools::source(definition), "told": told(definition), "is_given": pools::source(definition) == "items",
        "command": definition.generator.as_ref().map(|its| mask_command(&its.run)),
        "ttl": span(Duration::from_secs(definition.ttl())), "total": total, "free": counts[0], "places": free, "shares": shares,
        "is_shared": matches!(definition.usage, Usage::Shared(_)), "waiting": waiting,
        "granted": tempo.granted, "returned": tempo.returned,
        "wait_median": tempo.median().map(span), "wait_longest": tempo.waits.last().copied().map(span),
        "forecast": forecast(definition, &tempo, free, total, waiting),
    })
}

/// Where items come from, and what is done with them.
fn told(definition: &Definition) -> Vec<String> {
    let mut told = Vec::new();
    if let Some(table) = &definition.table {
        let condition = table.condition.as_ref().map(|sql| format!(" where {sql}")).unwrap_or_default();
        told.push(format!("rows of {}{condition}, by {}", table.name, table.key));
    } else if let Some(generator) = &definition.generator {
        let most = generator.maximum.map(|most| format!(", {most} at most")).unwrap_or_default();
        told.push(format!("made by a generator{most}"));
        for stock in &generator.stock {
            let input =
                attributes(&stock.input).iter().map(|(name, value)| format!(" {name}={value}")).collect::<String>();
            told.push(format!("{} in stock{input}", stock.minimum));
        }
        for need in &generator.needs {
            told.push(format!("needs {} of {}", need.count, need.pool));
        }
    } else {
        told.push("given items".to_owned());
    }
    if definition.reset.is_some() {
        told.push(match definition.reset_after {
            ResetAfter::Unclean => "reset after an unclean end".to_owned(),
            ResetAfter::Each => "reset after each use".to_owned(),
        });
    }
    told
}

fn forecast(
    definition: &Definition,
    tempo: &crate::lease::pulse::Tempo,
    free: u32,
    total: usize,
    waiting: usize,
) -> Value {
    let empty_in = tempo.empty_in(free, definition.usage == Usage::Consume);
    let (word, text) = match empty_in {
        Some(left) if left.is_zero() && definition.can_make(total) => {
            ("none", "none left, made when asked for".to_owned())
        }
        Some(left) if left.is_zero() && waiting > 0 => ("empty", format!("empty now, {waiting} waiting")),
        Some(left) if left.is_zero() => ("empty", "empty now".to_owned()),
        Some(left) if left < SOON => ("soon", format!("empty in about {}", rough(left))),
        Some(left) => ("later", format!("empty in about {}", rough(left))),
        None => ("none", "not in sight".to_owned()),
    };
    json!({"word": word, "text": text})
}

fn holder(holder: &Holder) -> Value {
    let tag = holder.run.as_deref().and_then(RunId::parse).map(|id| id.tag().as_str().to_owned());
    json!({
        "run": holder.run, "tag": tag.or_else(|| holder.run.clone()), "worker": holder.worker, "test": holder.test,
        "lane": holder.lane, "client": holder.client,
    })
}

fn holders<'a>(held: impl Iterator<Item = &'a Lease>, pool: Option<&str>) -> Value {
    let (mut rows, mut n) = (Vec::new(), 0);
    for lease in held {
        for it in lease.items.iter().filter(|it| pool.is_none_or(|pool| pool == &*it.pool)) {
            n += 1;
            if rows.len() < MOST_ROWS {
                rows.push(json!({
                    "lease": lease.id, "pool": &*it.pool, "item": &*it.name, "who": holder(&lease.holder),
                    "since": lease.acquired_at.to_string(), "until": lease.expires_at.to_string(), "fence": lease.fence,
                }));
            }
        }
    }
    json!({"rows": rows, "n": n})
}

fn lease_with_items(board: &Board, lease: &Lease) -> Value {
    let item = |held: &crate::lease::grant::Held| {
        let its = board.attributes(held.item);
        json!({"pool": &*held.pool, "item": &*held.name, "attributes": its.map(|its| attributes(&its)).unwrap_or_default()})
    };
    json!({
        "lease": lease.id, "client": lease.holder.client, "items": lease.items.iter().map(item).collect::<Value>(),
        "since": lease.acquired_at.to_string(), "until": lease.expires_at.to_string(), "fence": lease.fence,
        "ttl": span(Duration::from_micros(lease.ttl)),
    })
}

fn queue(board: &Board, pool: Option<&str>) -> Value {
    let mut n = 0;
    let is_its = |want: &crate::lease::ask::Want| pool.is_none_or(|pool| want.pool == pool);
    n += board.waiting().filter(|waiter| waiter.ask.wants.iter().any(is_its)).count();
    let mut rows = leases::waiting(board, MOST_ROWS);
    if let (Some(rows), Some(pool)) = (rows.as_array_mut(), pool) {
        rows.retain(|row| row["pools"].as_array().is_some_and(|pools| pools.iter().any(|it| it == pool)));
    }
    for row in rows.as_array_mut().into_iter().flatten() {
        let run = row["run_id"].as_str().map(str::to_owned);
        let tag = run.as_deref().and_then(RunId::parse).map(|id| id.tag().as_str().to_owned());
        row["tag"] = json!(tag.or(run));
    }
    json!({"rows": rows, "n": n})
}

fn items(board: &Board, pool: &str, definition: &Definition, find: &str) -> Value {
    let words: Vec<String> = find.split_whitespace().map(str::to_lowercase).collect();
    let is_found = |item: &&Item| {
        let text = || format!("{} {}", item.name, Value::Object((*item.attributes).clone())).to_lowercase();
        words.is_empty() || words.iter().all(|word| text().contains(word.as_str()))
    };
    let state = |item: &Item| match (item.held, definition.usage) {
        (0, _) => item.state.as_str().to_owned(),
        (n, Usage::Shared(most)) => format!("held by {n} of {most}"),
        (_, _) => "held".to_owned(),
    };
    let row = |item: &Item| {
        let has = board.obstacles(item.key).into_iter().map(|it| {
            json!({"lease": it.lease, "who": holder(&it.holder), "since": it.since.to_string(), "until": it.until.to_string()})
        });
        json!({
            "item": &*item.name, "state": state(item), "word": if item.held > 0 { "held" } else { item.state.as_str() },
            "attributes": attributes(&item.attributes), "note": item.note, "holders": has.collect::<Value>(),
            "is_leaving": item.is_leaving || item.state == ItemState::Retiring,
        })
    };
    let (mut rows, mut n) = (Vec::new(), 0);
    for item in board.items_of(pool).filter(is_found) {
        n += 1;
        if rows.len() < MOST_ROWS {
            rows.push(row(item));
        }
    }
    json!({"rows": rows, "n": n})
}

fn attributes(attributes: &Attributes) -> Vec<(String, String)> {
    let cut = |text: String| match text.char_indices().nth(MOST_LETTERS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    };
    attributes.iter().map(|(name, value)| (name.clone(), cut(plain(value)))).collect()
}

/// Workers by their names: their lanes, their tests, and how much they hold.
type Workers<'a> = BTreeMap<&'a str, (Option<u32>, Option<&'a str>, usize)>;

/// What each worker of each run holds: by the run's id, then by the worker's.
fn holding(held: &[Lease]) -> Value {
    let mut runs: BTreeMap<&str, Workers<'_>> = BTreeMap::new();
    for lease in held {
        let Holder { run: Some(run), worker, test, lane, .. } = &lease.holder else { continue };
        let worker = runs.entry(run).or_default().entry(worker.as_deref().unwrap_or_default()).or_default();
        worker.0 = lane.or(worker.0);
        worker.1 = test.as_deref().or(worker.1);
        worker.2 += lease.items.len();
    }
    let workers = |workers: Workers<'_>| {
        let worker = |(name, (lane, test, n)): (&str, (Option<u32>, Option<&str>, usize))| {
            (name.to_owned(), json!({"lane": lane, "test": test, "n": n}))
        };
        workers.into_iter().map(worker).collect::<Value>()
    };
    runs.into_iter().map(|(run, its)| (run.to_owned(), workers(its))).collect()
}

/// A length of time in words: `0.2 s`, `42 s`, `3 min`, `2.5 h`.
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let short = |number: f64, unit: &str| {
        let text = format!("{number:.1}");
        format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
    };
    match time.as_secs() {
        0 if seconds < 0.05 => "0 s".to_owned(),
        0..10 => short(seconds, "s"),
        10..120 => format!("{seconds:.0} s"),
        120..3600 => short((seconds / 60.0 * 2.0).round() / 2.0, "min"),
        3600..172_800 => short(seconds / 3600.0, "h"),
        _ => short(seconds / 86400.0, "d"),
    }
}

/// The same of something that is guessed: it does not change with every look.
fn rough(time: Duration) -> String {
    let step = match time.as_secs() {
        0..60 => 10,
        60..600 => 60,
        600..7200 => 300,
        _ => 3600,
    };
    span(Duration::from_secs(time.as_secs().div_ceil(step) * step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_told_in_words() {
        for (ms, text) in [
            (0, "0 s"),
            (40, "0 s"),
            (230, "0.2 s"),
            (9_000, "9 s"),
            (42_400, "42 s"),
            (60_000, "60 s"),
            (150_000, "2.5 min"),
            (900_000, "15 min"),
            (9_000_000, "2.5 h"),
            (3_600_000 * 24 * 3, "3 d"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
        assert_eq!(rough(Duration::from_secs(61)), "2 min");
        assert_eq!(rough(Duration::from_secs(3)), "10 s");
    }

    #[test]
    fn a_pool_says_how_its_items_stand_and_who_has_them() {
        let mut board = Board::new("", None);
        let items = (1..=3).map(|id| std::iter::once(("id".to_owned(), json!(id))).collect()).collect();
        board.add("a b", items, None);
        let run = "0199a1b2-c3d4-7000-8000-3f9c2a7b10de";
        let ask = json!({"pool": "a b", "run": run, "worker": "gw0", "test": "t.py::t", "lane": 0});
        board.acquire(crate::lease::ask::Ask::from_json(ask.to_string().as_bytes()).expect("an ask"));
        let sight = overview(&board);
        let card = &sight["pools"][0];
        assert_eq!((&card["path"], &card["free"], &card["total"]), (&json!("/pools/a%20b"), &json!(2), &json!(3)));
        assert_eq!(card["shares"][1], json!({"state": "held", "n": 1, "left": 666, "width": 334}));
        assert_eq!(sight["holders"]["rows"][0]["who"]["tag"], "3f9c2a7b10de");
        assert_eq!(sight["holding"][run]["gw0"], json!({"lane": 0, "test": "t.py::t", "n": 1}));
        let page = pool(&board, "a b", "2").expect("a page");
        assert_eq!((&page["items"]["n"], &page["items"]["rows"][0]["item"]), (&json!(1), &json!("2")));
        assert!(pool(&board, "a", "").is_none());
    }
}

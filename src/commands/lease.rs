//! `isolane lease` and `isolane pool`.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Context;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use crate::cli::LeasesArgs;
use crate::cli::lease::{AcquireArgs, AddArgs, LeaseCommand, PoolCommand, RevokeArgs};
use crate::client::Client;
use crate::error::Stop;
use crate::lease::ask::{Ask, Holder, Want};
use crate::lease::item::value_of_text;
use crate::lease::predicate::Predicate;
use crate::report::{Format, Rows, say};
use crate::settings::pool::read_items;
use crate::settings::{Choices, Settings};

/// `isolane lease …`.
pub fn lease(command: LeaseCommand) -> anyhow::Result<i32> {
    match command {
        LeaseCommand::Acquire(args) => acquire(args),
        LeaseCommand::Renew { lease, fence, ttl, ledger, format } => {
            let ttl = ttl.map(|ttl| format!("{}ms", ttl.as_millis()));
            let (client, _) = client(ledger)?;
            let body = json!({"fence": fence, "ttl": ttl});
            let answer = client.call("POST", &format!("/v1/leases/{}/renew", quoted(&lease)), Some(&body))?.ok()?;
            print_lease(&answer, format.format)
        }
        LeaseCommand::Release { lease, fence, ledger } => {
            let (client, _) = client(ledger)?;
            let body = json!({"fence": fence});
            client.call("DELETE", &format!("/v1/leases/{}", quoted(&lease)), Some(&body))?.ok()?;
            Ok(0)
        }
        LeaseCommand::Revoke(args) => revoke(args),
        LeaseCommand::List { waiting, ledger, format } => {
            let client = client_to_look(ledger)?;
            let path = if waiting { "/v1/waiters" } else { "/v1/leases" };
            let found = client.call("GET", path, None)?.ok()?;
            print(&found, format.format, if waiting { "nobody waits for a lease" } else { "no lease is held" })
        }
    }
}

/// `isolane leases`: each lease that is held, with those who wait for it.
pub fn leases(ledger: LeasesArgs, format: Format) -> anyhow::Result<i32> {
    let client = client_to_look(ledger)?;
    let mut held = client.call("GET", "/v1/leases", None)?.ok()?;
    let waiters = client.call("GET", "/v1/waiters", None)?.ok()?;
    for lease in held.as_array_mut().into_iter().flatten() {
        let is_its = |waiter: &&Value| {
            let held_by = waiter["held_by"].as_array().into_iter().flatten();
            let pools = waiter["pools"].as_array().into_iter().flatten();
            held_by.map(|it| &it["item"]).any(|item| *item == lease["item"])
                && pools.into_iter().any(|pool| *pool == lease["pool"])
        };
        let names = waiters.as_array().into_iter().flatten().filter(is_its).map(|waiter| {
            let name = ["test_id", "worker_id", "client"].iter().find_map(|column| waiter[*column].as_str());
            format!("{} since {}", name.unwrap_or("somebody"), waiter["since"].as_str().unwrap_or_default())
        });
        lease["awaited_by"] = names.collect::<Vec<_>>().join(", ").into();
    }
    print(&held, format, "no lease is held")
}

fn acquire(args: AcquireArgs) -> anyhow::Result<i32> {
    let (client, settings) = client(args.ledger)?;
    let predicate = Predicate::new(args.conditions);
    let want = |pool: String| Want { pool, count: args.count, predicate: predicate.clone() };
    let ask = Ask {
        wants: args.pools.into_iter().map(want).collect(),
        ttl: args.ttl,
        wait: args.wait.unwrap_or_default(),
        key: args.key,
        holder: holder(&client, &settings),
    };
    let lease = client.call("POST", "/v1/leases", Some(&ask.to_json()))?.ok()?;
    let printed = print_lease(&lease, args.format.format);
    // Nobody knows of it who could give it back. With a key, who asks again is told.
    if let (Err(_), None, Some(id)) = (&printed, &ask.key, lease["id"].as_str()) {
        let _ = client.call("DELETE", &format!("/v1/leases/{}", quoted(id)), None);
    }
    printed
}

/// Who asks, as far as this process knows.
fn holder(client: &Client, settings: &Settings) -> Holder {
    let variable = |name: &str| settings.variables.get(name).filter(|text| !text.is_empty()).cloned();
    // pytest's own name for the running test, with its phase behind it.
    let test = variable("PYTEST_CURRENT_TEST").and_then(|text| Some(text.rsplit_once(" (")?.0.to_owned()));
    match client {
        Client::Run(_) => Holder { worker: variable("WORKER_ID"), test, ..Holder::default() },
        Client::Ledger(_) | Client::Service(_) => {
            let user = variable("USER").or_else(|| variable("LOGNAME")).unwrap_or_else(|| "somebody".to_owned());
            Holder { client: Some(format!("{user}@{}", crate::os::host())), ..Holder::default() }
        }
    }
}

/// What was granted, a row for each item; with its attributes.
fn print_lease(lease: &Value, format: Format) -> anyhow::Result<i32> {
    let names = lease["names"].as_array().cloned().unwrap_or_default();
    let items = lease["items"].as_array().cloned().unwrap_or_default();
    let row = |(name, attributes): (Value, Value)| {
        json!({
            "lease_id": lease["id"], "pool": name["pool"], "item": name["item"], "state": lease["state"],
            "acquired_at": lease["acquired_at"], "expires_at": lease["expires_at"], "fence": lease["fence"], "attributes": attributes,
        })
    };
    let rows: Value = names.into_iter().zip(items).map(row).collect();
    print(&rows, format, "")
}

fn revoke(args: RevokeArgs) -> anyhow::Result<i32> {
    let (client, _) = client(args.ledger)?;
    for lease in &args.leases {
        client.call("POST", &format!("/v1/leases/{}/revoke", quoted(lease)), None)?.ok()?;
    }
    let whose = [("run", args.run), ("worker", args.worker), ("test", args.test), ("prefix", args.prefix)];
    let query: Vec<_> =
        whose.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", quoted(&value?)))).collect();
    if !query.is_empty() {
        let answer = client.call("DELETE", &format!("/v1/leases?{}", query.join("&")), None)?.ok()?;
        say(&format!("revoked: {}", answer["revoked"]));
    }
    Ok(0)
}

/// `isolane pool …`.
pub fn pool(command: PoolCommand) -> anyhow::Result<i32> {
    match command {
        PoolCommand::Add(args) => add(args),
        PoolCommand::List { pool, ledger, format } => {
            let client = client_to_look(ledger)?;
            let Some(pool) = pool else {
                let found = client.call("GET", "/v1/pools", None)?.ok()?;
                return print(&found, format.format, "there is none yet; `isolane pool add NAME ITEM…` makes one");
            };
            let found = client.call("GET", &format!("/v1/pools/{}/items", quoted(&pool)), None)?.ok()?;
            let is_empty = found.as_array().is_some_and(Vec::is_empty);
            let nothing = if is_empty { how_to_fill(&client, &pool)? } else { String::new() };
            print(&found, format.format, &nothing)
        }
        PoolCommand::Fill { pool, count, input, ledger } => {
            let (client, _) = client(ledger)?;
            let input: Map<String, Value> = input.into_iter().map(|(name, value)| (name, value.into())).collect();
            let body = json!({"count": count, "input": input});
            let answer = client.call("POST", &format!("/v1/pools/{}/fill", quoted(&pool)), Some(&body))?.ok()?;
            say(&format!("pool {pool}: {} made", answer["made"]));
            Ok(0)
        }
        PoolCommand::Remove { pool, when_released, ledger } => {
            let (client, settings) = client(ledger)?;
            let path = format!("/v1/pools/{}?when_released={when_released}", quoted(&pool));
            client.call("DELETE", &path, None)?.ok()?;
            if settings.leases.is_none() && settings.pools.iter().any(|its| its.name == pool) {
                say(&format!(
                    "pool {pool} stands in isolane.toml and comes back with the next command; take it out there as well"
                ));
            }
            Ok(0)
        }
        PoolCommand::Retire { pool, items, ledger } => {
            let (client, _) = client(ledger)?;
            for item in items {
                client.call("DELETE", &format!("/v1/pools/{}/items/{}", quoted(&pool), quoted(&item)), None)?.ok()?;
            }
            Ok(0)
        }
    }
}

/// What is said of a pool without items.
fn how_to_fill(client: &Client, pool: &str) -> anyhow::Result<String> {
    let pools = client.call("GET", "/v1/pools", None)?.ok()?;
    let its = pools.as_array().into_iter().flatten().find(|it| it["pool"] == pool);
    let how = match its.and_then(|it| it["source"].as_str()) {
        Some("generator") => format!("`isolane pool fill {pool}` makes one"),
        Some("table") => "they are the rows of its table".to_owned(),
        _ => format!("`isolane pool add {pool} ITEM…` adds one"),
    };
    Ok(format!("pool {pool} has no item yet; {how}"))
}

fn add(args: AddArgs) -> anyhow::Result<i32> {
    let mut items: Vec<Value> =
        args.items.iter().map(|text| value_of_text(text)).collect::<Result<_, _>>().map_err(Stop::usage)?;
    for file in &args.from {
        items.extend(read_items(file).map_err(Stop::usage)?.into_iter().map(Value::Object));
    }
    let (mut body, count) = (Map::new(), items.len());
    body.insert("items".to_owned(), items.into());
    if let Some(n) = args.shared {
        body.insert("use".to_owned(), json!({"shared": n}));
    }
    if args.consume {
        body.insert("use".to_owned(), json!("consume"));
    }
    if let Some(ttl) = args.ttl {
        body.insert("ttl".to_owned(), format!("{}ms", ttl.as_millis()).into());
    }
    let (client, _) = client(args.ledger)?;
    let answer = client.call("POST", &format!("/v1/pools/{}/items", quoted(&args.pool)), Some(&body.into()))?.ok()?;
    let changed = usize::try_from(answer["added"].as_u64().unwrap_or(0)).map_or(0, |added| count.saturating_sub(added));
    let rest = if changed > 0 {
        format!(", {changed} of the same name were there and are like this now")
    } else {
        String::new()
    };
    say(&format!("pool {}: {} added{rest}", args.pool, answer["added"]));
    Ok(0)
}

/// Where requests go, and what is known of this place.
fn client(ledger: LeasesArgs) -> anyhow::Result<(Client, Settings)> {
    let (choices, config) = ledger.choices();
    let settings = settings(&choices, config.as_deref())?;
    Ok((Client::new(&settings)?, settings))
}

/// Where questions go that change nothing. A ledger that somebody names has to be there; in the
/// usual one nothing is held before the first run, and pools of the configuration can be looked at.
fn client_to_look(ledger: LeasesArgs) -> anyhow::Result<Client> {
    let (choices, config) = ledger.choices();
    let settings = settings(&choices, config.as_deref())?;
    if choices.ledger.is_none() { Client::new(&settings) } else { Client::to_look(&settings) }
}

/// What is known of this place.
pub(super) fn settings(choices: &Choices, config: Option<&Path>) -> anyhow::Result<Settings> {
    let cwd = std::env::current_dir().context("cannot tell the current directory")?;
    // A database address that cannot be used does not matter here.
    let wanted = [
        "ISOLANE_LEDGER",
        "ISOLANE_LEASES",
        "ISOLANE_TOKEN",
        "ISOLANE_SOCKET",
        "ISOLANE_STORE",
        "WORKER_ID",
        "PYTEST_CURRENT_TEST",
        "USER",
        "LOGNAME",
        "HOME",
    ];
    let fold = |more: Option<&str>| {
        // What libpq would complete an address with is wanted too.
        let is_wanted = |name: &OsString| {
            let name = name.to_str().unwrap_or_default();
            wanted.contains(&name) || name.starts_with("PG") || more == Some(name)
        };
        let variables = std::env::vars_os().filter(|(name, _)| is_wanted(name));
        Settings::fold(choices.clone(), config, variables, &cwd)
    };
    let mut settings = fold(None)?;
    // Else a database address that cannot be used does not matter here.
    if settings.pools.iter().any(|pool| pool.definition.table.is_some()) {
        settings = fold(Some("DATABASE_URL"))?;
    }
    Ok(settings)
}

fn quoted(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Prints an array of objects as rows.
pub(super) fn print(found: &Value, format: Format, nothing: &str) -> anyhow::Result<i32> {
    let objects: Vec<&Map<String, Value>> =
        found.as_array().into_iter().flatten().filter_map(Value::as_object).collect();
    let columns: Vec<String> = objects.first().map(|first| first.keys().cloned().collect()).unwrap_or_default();
    if objects.is_empty() && format == Format::Table {
        say(nothing);
        return Ok(0);
    }
    let cell = |object: &Map<String, Value>, column: &String| object.get(column).cloned().unwrap_or_default();
    let rows = objects.iter().map(|object| columns.iter().map(|column| cell(object, column)).collect()).collect();
    Rows { columns, rows }.print(format)?;
    Ok(0)
}

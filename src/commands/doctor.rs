//! `isolane doctor`: what would work here, and why not.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::address::Address;
use crate::cli::SettingsArgs;
use crate::clock::Timestamp;
use crate::error::one_line;
use crate::ledger;
use crate::mark::Owner;
use crate::name::RunId;
use crate::os::port::PortBlock;
use crate::os::process::PidFd;
use crate::provider::{Postgres, Programs, Provider, Servers, Sqlite};
use crate::report::{Format, Rows};
use crate::settings::{Isolation, Settings};

/// One thing looked at: what, whether it works, and what was seen.
type Finding = (String, bool, String);

/// Looks at everything a run needs; 1 where something would not work.
pub fn doctor(args: SettingsArgs, format: Format) -> anyhow::Result<i32> {
    let (choices, config) = args.choices();
    let settings = super::settings(choices, config.as_deref())?;
    let mut findings = vec![system(), temporary_folder(&settings), ports(), ledger_file(&settings)];
    findings.extend(databases(&settings));
    findings.extend(tools());
    let works = findings.iter().all(|(_, works, _)| *works);
    let row = |(what, works, seen): Finding| {
        vec![Value::from(what), Value::from(if works { "ok" } else { "no" }), Value::from(seen)]
    };
    let columns = ["what", "works", "seen"].map(str::to_owned).to_vec();
    Rows { columns, rows: findings.into_iter().map(row).collect() }.print(format)?;
    Ok(i32::from(!works))
}

fn finding(what: &str, result: Result<String, String>) -> Finding {
    let works = result.is_ok();
    (what.to_owned(), works, result.unwrap_or_else(|why| why))
}

fn system() -> Finding {
    let own = i32::try_from(std::process::id()).unwrap_or(1);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let held = PidFd::open(own).map(|_| format!("Linux {}", kernel.trim()));
    finding("system", held.map_err(|e| format!("Linux {} is older than 5.3 and has no pidfd ({e})", kernel.trim())))
}

fn temporary_folder(settings: &Settings) -> Finding {
    let folder = settings.variables.get("TMPDIR").cloned().unwrap_or_else(|| "/tmp".to_owned());
    let file = Path::new(&folder).join(format!("isolane-doctor-{}", std::process::id()));
    let tried = std::fs::write(&file, "#!/bin/sh\n")
        .and_then(|()| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)))
        .and_then(|()| Command::new(&file).status());
    let _ = std::fs::remove_file(&file);
    finding(
        "temporary folder",
        tried.map(|_| folder.clone()).map_err(|e| format!("cannot write and execute in {folder}: {e}")),
    )
}

fn ports() -> Finding {
    finding(
        "ports",
        PortBlock::reserve(0)
            .map(|_| "free blocks of 20 on loopback".to_owned())
            .ok_or("no block of 20 is free from 20000 to 32000".to_owned()),
    )
}

fn ledger_file(settings: &Settings) -> Finding {
    let path = &settings.ledger;
    if !path.exists() {
        return finding("ledger", Ok(format!("{} (the first run makes it)", path.display())));
    }
    let opened = ledger::open(path).map(|_| path.display().to_string());
    finding("ledger", opened.map_err(|e| format!("{}: {}", path.display(), one_line(&e))))
}

fn databases(settings: &Settings) -> Vec<Finding> {
    let mut seen = Vec::new();
    for address in settings.addresses() {
        if !seen.contains(&address) {
            seen.push(address);
        }
    }
    seen.into_iter().map(|address| finding("database", database(settings, address))).collect()
}

fn database(settings: &Settings, address: &Address) -> Result<String, String> {
    let owner = Owner { run: RunId::new(0), host: String::new(), since: Timestamp(0), worker: "w", master: None };
    let root = Path::new("/");
    let provider: anyhow::Result<Box<dyn Provider>> = match address {
        Address::Postgres(postgres) if settings.isolation == Isolation::Server => {
            Servers::open(postgres, settings, root, &owner.run.tag(), "").map(|p| Box::new(p) as _)
        }
        Address::Postgres(postgres) => {
            let settings = Settings { setup: None, ..settings.clone() };
            Postgres::open(postgres, &settings, root, &owner, String::new()).map(|p| Box::new(p) as _)
        }
        Address::Sqlite(sqlite) => {
            Sqlite::open(sqlite, root, &owner.run.tag(), String::new(), false).map(|p| Box::new(p) as _)
        }
        Address::InMemory(_) => return Ok("SQLite in memory: every process has its own already".to_owned()),
    };
    provider.map(|provider| provider.summary()).map_err(|e| one_line(&e))
}

/// Programs that some runs need; none of them missing is wrong in itself.
fn tools() -> Vec<Finding> {
    let tools: [(&str, &[&str], &str); 4] = [
        (
            "pytest",
            &["python3", "-m", "pytest", "--version"],
            "not here; `pip install pytest pytest-xdist` if you run pytest",
        ),
        (
            "pytest-xdist",
            &["python3", "-c", "import xdist; print(xdist.__version__)"],
            "not here; `pip install pytest-xdist` if you run pytest -n",
        ),
        (
            "cargo-nextest",
            &["cargo-nextest", "nextest", "--version"],
            "not here; `cargo install --locked cargo-nextest` if you run nextest",
        ),
        (
            "pg_dump",
            &["pg_dump", "--version"],
            "not here; schema isolation, and copies of a database that is in use, need it (Debian: postgresql-client)",
        ),
    ];
    let servers = Programs::find(None).map(|programs| programs.describe());
    let servers = servers.unwrap_or_else(|_| {
        "not here; --isolation server needs PostgreSQL's own programs (Debian: apt-get install postgresql)".to_owned()
    });
    tools
        .into_iter()
        .map(|(name, command, otherwise)| {
            let output =
                Command::new(command[0]).args(&command[1..]).output().ok().filter(|output| output.status.success());
            let text = output.map(|output| [output.stdout, output.stderr].concat());
            let line = text.and_then(|text| String::from_utf8_lossy(&text).lines().next().map(str::to_owned));
            finding(name, Ok(line.unwrap_or_else(|| otherwise.to_owned())))
        })
        .chain([finding("initdb", Ok(servers))])
        .collect()
}

//! `isolane sweep`: lists what dead runs left, and removes it where that is asked for.

use std::time::Duration;

use serde_json::{Value, json};

use super::settings;
use crate::address::Address;
use crate::cli::SweepArgs;
use crate::clock::Timestamp;
use crate::error::{ExitCode, one_line};
use crate::report::{Format, Rows, say};
use crate::settings::{Isolation, Settings};
use crate::sweep::{Stray, Survey, SweepReport, apply, survey};

/// Sweeps once, or again and again.
pub fn sweep(args: SweepArgs) -> anyhow::Result<i32> {
    let (older_than, is_wanted, every, format) =
        (args.older_than.unwrap_or_default(), args.apply, args.every, args.format.format);
    let (choices, config) = args.choices();
    let settings = settings(choices, config.as_deref())?;
    let Some(pause) = every else { return once(&settings, older_than, is_wanted, false, format) };
    loop {
        // A server that is away now may be there the next time.
        if let Err(error) = once(&settings, older_than, is_wanted, true, format) {
            say(&one_line(&error));
        }
        std::thread::sleep(pause);
    }
}

fn once(
    settings: &Settings,
    older_than: Duration,
    is_wanted: bool,
    is_repeated: bool,
    format: Format,
) -> anyhow::Result<i32> {
    let addresses: Vec<Address> = settings.addresses().cloned().collect();
    let host = crate::os::host();
    let found = survey(&settings.ledger, &host, &addresses, &settings.folder_of_runs(), older_than, Timestamp::now())?;
    let report = if is_wanted { Some(apply(&found, &settings.ledger, &addresses)?) } else { None };
    if !found.strays.is_empty() || format != Format::Table {
        rows(&found, report.as_ref()).print(format)?;
    }
    if !is_repeated || !found.strays.is_empty() {
        summary(settings, &found, report.as_ref());
    }
    // Where lanes have servers of their own, the one that is named need not be there.
    let is_needed = settings.isolation != Isolation::Server;
    for why in found.unreachable.iter().filter(|_| is_needed) {
        say(why);
    }
    if is_needed && !found.unreachable.is_empty() {
        return Ok(ExitCode::NotStarted as i32);
    }
    let is_left = report.is_some_and(|report| !report.stuck.is_empty());
    Ok(if is_left { ExitCode::NotRemoved as i32 } else { 0 })
}

fn rows(found: &Survey, report: Option<&SweepReport>) -> Rows {
    let columns = ["kind", "name", "provider", "run_id", "worker_id", "host", "since", "reason", "state", "error"];
    let row = |stray: &Stray| {
        let stuck = report.and_then(|report| report.stuck.iter().find(|(resource, _)| *resource == stray.resource));
        let state = match (report, stuck) {
            (None, _) => "stray",
            (Some(_), None) => "removed",
            (Some(_), Some(_)) => "stuck",
        };
        [
            json!(stray.resource.kind.as_str()),
            json!(stray.resource.name),
            json!(stray.resource.provider),
            json!(stray.run.to_string()),
            json!(stray.worker),
            json!(stray.host),
            json!(stray.since.to_string()),
            json!(stray.reason.as_str()),
            json!(state),
            stuck.map_or(Value::Null, |(_, why)| json!(why)),
        ]
        .to_vec()
    };
    Rows { columns: columns.map(str::to_owned).to_vec(), rows: found.strays.iter().map(row).collect() }
}

fn summary(settings: &Settings, found: &Survey, report: Option<&SweepReport>) {
    let things = |n: usize| if n == 1 { "1 thing".to_owned() } else { format!("{n} things") };
    let mut runs: Vec<_> = found.strays.iter().map(|stray| stray.run.to_string()).collect();
    runs.sort();
    runs.dedup();
    let of = if runs.len() == 1 { "1 dead run".to_owned() } else { format!("{} dead runs", runs.len()) };
    let all = found.strays.len();
    let mut parts = match report {
        _ if all == 0 => vec!["nothing to sweep".to_owned()],
        None => vec![format!("{} of {of} would be removed: --apply removes them", things(all))],
        Some(report) if report.stuck.is_empty() => vec![format!("{} of {of} removed", things(all))],
        Some(report) => {
            vec![
                format!("{} of {of} removed", things(all - report.stuck.len())),
                format!("{} could not be removed", things(report.stuck.len())),
            ]
        }
    };
    if found.living > 0 {
        parts.push(format!("{} of runs that live stay", things(found.living)));
    }
    if found.young > 0 {
        parts.push(format!("{} of younger runs stay", things(found.young)));
    }
    if all == 0 && settings.embedded && !settings.ledger.exists() {
        parts
            .push(format!("there is no ledger {}, and no server is named (--database-url)", settings.ledger.display()));
    }
    say(&parts.join("; "));
}

//! `isolane template`: the pristine states that are kept on a server.

use serde_json::json;

use super::settings;
use crate::address::{Address, PostgresAddress};
use crate::cli::{ServerArgs, SettingsArgs, SetupArgs};
use crate::clock::Timestamp;
use crate::error::{ExitCode, Stop, one_line};
use crate::name::RunId;
use crate::provider::{KeptTemplate, Removal, Server};
use crate::report::{Format, Rows, print, say};
use crate::supervisor;

/// `isolane template build`.
pub fn build(settings_args: SettingsArgs, setup: SetupArgs) -> anyhow::Result<i32> {
    let (common, config) = settings_args.choices();
    let settings = settings(setup.over(common), config.as_deref())?;
    let built = supervisor::build_template(settings)?;
    for notice in &built.notices {
        say(notice);
    }
    let took = if built.setup_time.is_zero() {
        "is there already".to_owned()
    } else {
        format!("setup took {:.2} s", built.setup_time.as_secs_f64())
    };
    print(&format!("{}; {took}\n", built.template))?;
    Ok(0)
}

/// `isolane template list`.
pub fn list(args: ServerArgs, format: Format) -> anyhow::Result<i32> {
    let columns = ["fingerprint", "name", "made", "used", "size", "spare", "used_by", "host", "command"];
    let mut rows = Vec::new();
    for (server, _) in servers(args)? {
        rows.extend(server.templates()?.into_iter().map(|KeptTemplate { name, mark, size, has_spare, used_by }| {
            [
                json!(mark.fingerprint),
                json!(name),
                json!(mark.made.to_string()),
                json!(mark.used.to_string()),
                json!(size),
                json!(has_spare),
                json!(used_by.join(", ")),
                json!(mark.host),
                json!(mark.command),
            ]
            .to_vec()
        }));
    }
    if rows.is_empty() && format == Format::Table {
        say("no template is kept; a run with --setup and --setup-input makes one");
        return Ok(0);
    }
    Rows { columns: columns.map(str::to_owned).to_vec(), rows }.print(format)?;
    Ok(0)
}

/// `isolane template remove`.
pub fn remove(which: &[String], is_all: bool, args: ServerArgs) -> anyhow::Result<i32> {
    let servers = servers(args)?;
    let mut all = Vec::new();
    for (index, (server, _)) in servers.iter().enumerate() {
        all.extend(server.templates()?.into_iter().map(|template| (index, template)));
    }
    let meant: Vec<_> = if is_all { (0..all.len()).collect() } else { chosen(&all, which)? };
    let mut stays = false;
    for (index, template) in meant.iter().map(|&at| &all[at]) {
        let (server, own) = &servers[*index];
        match server.remove_template(template, own) {
            Ok(Removal::Removed) => say(&format!("removed {}", template.name)),
            Ok(Removal::InUse(runs)) => {
                let runs = if runs.is_empty() { "another".to_owned() } else { runs.join(", ") };
                say(&format!("{} stays, because it is in use by the run {runs}", template.name));
                stays = true;
            }
            Err(error) => {
                say(&one_line(&error));
                stays = true;
            }
        }
    }
    if meant.is_empty() {
        say("no template is kept");
    }
    Ok(if stays { ExitCode::NotRemoved as i32 } else { 0 })
}

/// The templates that are meant by these beginnings of fingerprints, or by their names.
fn chosen(all: &[(usize, KeptTemplate)], which: &[String]) -> anyhow::Result<Vec<usize>> {
    let mut meant = Vec::new();
    for word in which {
        let fits = |template: &KeptTemplate| template.mark.fingerprint.starts_with(word) || template.name == *word;
        let found: Vec<_> = all.iter().enumerate().filter(|(_, (_, template))| fits(template)).collect();
        match found[..] {
            [] => return Err(Stop::usage(format!("no kept template is {word}; `isolane template list` lists them"))),
            [(at, _)] => meant.push(at),
            _ => {
                let names: Vec<_> = found.iter().map(|(_, (_, template))| template.name.as_str()).collect();
                return Err(Stop::usage(format!("more than one fingerprint begins with {word}: {}", names.join(", "))));
            }
        }
    }
    Ok(meant)
}

/// The servers that are named, each once, and the user's database there.
fn servers(args: ServerArgs) -> anyhow::Result<Vec<(Server, String)>> {
    let (choices, config) = args.choices();
    let settings = settings(choices, config.as_deref())?;
    // It makes nothing, so no run's name is on its sessions.
    let tag = RunId::new(Timestamp::now().millis()).tag();
    let mut servers = Vec::new();
    let mut known = Vec::new();
    for address in settings.addresses() {
        let Address::Postgres(postgres) = address else { continue };
        let place = |postgres: &PostgresAddress| (postgres.hosts().to_vec(), postgres.ports().to_vec());
        if !known.contains(&place(postgres)) {
            known.push(place(postgres));
            servers.push((Server::new(postgres, &tag)?, postgres.database().to_owned()));
        }
    }
    if servers.is_empty() {
        return Err(Stop::usage("no PostgreSQL server is named: --database-url or DATABASE_URL names one"));
    }
    Ok(servers)
}

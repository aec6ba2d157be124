//! Kept templates: the pristine state that a setup made, sealed, for later runs.
//!
//! A run builds it as its own, under its own name and mark, so that whatever dies meanwhile, the
//! run's sweep removes it. One transaction then gives it the name and the mark of a kept one:
//! there is never a half of it. Two locks go with each, by its fingerprint: who builds holds the
//! one, so that runs side by side build it once; who uses it shares the other until its end, and
//! who removes it must have that one alone. The server frees both when a session is gone.
//!
//! Beside it is a spare: a copy that a run made ahead and gave to nobody, which the next run
//! renames to be its first lane. It goes with the template.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use postgres::Client;
use postgres::error::SqlState;
use postgres_protocol::escape::escape_literal;

use super::claim::{self, HELD, NUMBER};
use super::connection::{self, Ahead, readable};
use super::identifier;
use super::server::{COMMON, Server};
use crate::clock::Timestamp;
use crate::error::one_line;
use crate::mark::template::{HEAD, TemplateMark, name_of, spare_of};
use crate::provider::{KeptTemplate, Removal, Shelf};

/// Say of an advisory lock that it is a template's: "it" for its use, "ib" for its building,
/// before the first six bytes of its fingerprint. (A run's begins with "is".)
const USE: i64 = 0x6974 << 48;
const BUILD: i64 = 0x6962 << 48;
/// How exactly the last use is known.
const MINUTE: Duration = Duration::from_secs(60);

/// All that carry such a mark. A removal that was cut off leaves a limit of -2.
const TEMPLATES: &str = "
    SELECT d.datname::text AS name, c.description AS comment, d.datallowconn AS is_open, d.datconnlimit = -2 AS is_broken,
           d.datdba AS owner,
           -- It looks at every file, and is asked for where all are listed.
           CASE WHEN $2::text[] IS NULL AND has_database_privilege(d.oid, 'CONNECT') AND d.datconnlimit <> -2 THEN pg_database_size(d.oid) END AS size,
           EXISTS (SELECT FROM pg_stat_get_activity(NULL) a WHERE a.datid = d.oid) AS has_sessions
      FROM pg_shdescription c JOIN pg_database d ON d.oid = c.objoid AND c.classoid = 'pg_database'::regclass
     WHERE starts_with(c.description, $1) AND ($2::text[] IS NULL OR d.datname = ANY ($2)) ORDER BY name";

/// What the sessions are called that hold these locks.
const APPLICATION: &str = "isolane template ";

/// One that was found.
#[derive(Debug)]
struct Found {
    name: String,
    mark: TemplateMark,
    is_open: bool,
    is_broken: bool,
    has_sessions: bool,
    owner: u32,
    size: Option<i64>,
}

impl Found {
    /// Whether it is no template, but the spare of one.
    fn is_spare(&self) -> bool {
        self.name == spare_of(&self.mark.fingerprint)
    }
}

/// Those of these names, or all.
fn find(server: &Server, names: Option<&[&str]>) -> anyhow::Result<Vec<Found>> {
    let rows = server.maintenance.with(|client| client.query(TEMPLATES, &[&HEAD, &names])).map_err(readable)?;
    let found = rows.iter().filter_map(|row| {
        let name: String = row.get("name");
        let mark = TemplateMark::parse(row.get("comment"), &name)?;
        Some(Found {
            mark,
            is_open: row.get("is_open"),
            is_broken: row.get("is_broken"),
            has_sessions: row.get("has_sessions"),
            owner: row.get("owner"),
            size: row.get("size"),
            name,
        })
    });
    Ok(found.collect())
}

fn key(class: i64, fingerprint: &str) -> i64 {
    class | i64::from_str_radix(&fingerprint[..12], 16).unwrap_or(0)
}

fn mark_sql(name: &str, mark: &TemplateMark) -> anyhow::Result<String> {
    Ok(format!("COMMENT ON DATABASE {} IS {}", identifier(name)?, escape_literal(&mark.to_string())))
}

/// A login to a session for these locks. All runs of a login have theirs in one database, because
/// a lock counts in one only.
fn login(server: &Server, otherwise: &str, tag: &str) -> impl FnOnce() -> anyhow::Result<Client> + use<> {
    let [common, otherwise] =
        [COMMON, otherwise].map(|database| server.config_of(database, &format!("{APPLICATION}{tag}")));
    move || claim::session(&common).or_else(|_| claim::session(&otherwise))
}

/// A session for these locks.
fn session(server: &Server, otherwise: &str, tag: &str) -> anyhow::Result<Client> {
    login(server, otherwise, tag)()
}

fn lock(client: &mut Client, function: &str, key: i64) -> anyhow::Result<bool> {
    claim::lock(client, function, key).map_err(|error| readable(error.into()))
}

/// The template of one run.
#[derive(Debug, Default)]
pub struct Kept {
    held: Mutex<Option<Box<Held>>>,
    /// The session that the locks will be held by.
    ahead: Mutex<Option<Ahead>>,
}

struct Held {
    session: Client,
    mark: TemplateMark,
    stage: Stage,
    /// It had been opened, and is closed again.
    was_open: bool,
    /// There was a spare, and no lane was made of it.
    has_spare: bool,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("mark", &self.mark).field("stage", &self.stage).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Looked for, and nothing is known yet.
    Sought,
    /// An earlier run made it.
    Found,
    /// This run is making it.
    Building,
    /// This run made it.
    Made,
}

/// Whose locks, and which template is meant.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub server: &'a Server,
    /// The user's own database.
    pub own: &'a str,
    pub fingerprint: &'a str,
    pub command: &'a str,
    pub host: &'a str,
    pub tag: &'a str,
}

impl Kept {
    /// Begins to log in, where a template will be looked for.
    pub fn begin(server: &Server, own: &str, tag: &str) -> Self {
        Self { ahead: Mutex::new(Some(Ahead::begin(login(server, own, tag)))), held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Option<Box<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for it, and takes the lock on it, or on building it.
    pub fn seek(&self, wanted: &Wanted<'_>) -> anyhow::Result<Shelf> {
        let Wanted { server, own, fingerprint, .. } = *wanted;
        let mut held = self.held();
        if held.is_none() {
            let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).take();
            let session = ahead.map_or_else(login(server, own, wanted.tag), Ahead::arrive)?;
            let mark = TemplateMark::new(fingerprint, wanted.host, wanted.command, Timestamp::now());
            *held = Some(Box::new(Held { session, mark, stage: Stage::Sought, was_open: false, has_spare: false }));
        }
        let Some(Held { session, mark, stage, was_open, has_spare }) = held.as_deref_mut() else {
            return Ok(Shelf::None);
        };
        // Who removes it is gone in a moment.
        if !lock(session, "pg_try_advisory_lock_shared", key(USE, fingerprint))? {
            return Ok(Shelf::Busy);
        }
        let mut found = its(server, fingerprint)?;
        let had_to_look_twice = found.is_none();
        if had_to_look_twice {
            if !lock(session, claim::LOCK, key(BUILD, fingerprint))? {
                session.batch_execute("SELECT pg_advisory_unlock_all()")?;
                return Ok(Shelf::Busy);
            }
            // Whoever built it may have come to an end between the look and the lock.
            found = its(server, fingerprint)?;
        }
        let Some((found, its_spare)) = found else {
            // What is left of a removal that was cut off can be nothing but removed.
            for broken in find(server, Some(&[&name_of(fingerprint)]))?.into_iter().filter(|found| found.is_broken) {
                server.drop_database(&broken.name)?;
            }
            *stage = Stage::Building;
            return Ok(Shelf::Wanted);
        };
        if had_to_look_twice {
            unlock_building(session, fingerprint);
        }
        if found.is_open || found.has_sessions {
            seal(server, &found.name)?;
            if let Some(who) = who_is_in(server, &found.name)? {
                bail!(
                    "{who} is connected to the kept template {}, from which no lane can be made then; end these sessions",
                    found.name
                );
            }
            *was_open = found.is_open;
        }
        (*mark, *stage, *has_spare) = (found.mark, Stage::Found, its_spare);
        let now = Timestamp::now();
        if mark.used.age(now) >= MINUTE {
            mark.used = now;
            // It waits for lanes that are being made, and is not worth waiting long for.
            let sql = format!("SET LOCAL lock_timeout = '200ms'; {}", mark_sql(&found.name, mark)?);
            let _ = server.maintenance.with(|client| client.batch_execute(&sql));
        }
        Ok(Shelf::Found)
    }

    /// The database from which lanes are made; `None` where it is the run's own.
    pub fn source(&self, wanted: impl FnOnce() -> anyhow::Result<Client>) -> anyhow::Result<Option<String>> {
        let mut held = self.held();
        let Some(held) = held.as_mut().filter(|held| matches!(held.stage, Stage::Found | Stage::Made)) else {
            return Ok(None);
        };
        // A server that was restarted has forgotten who uses it.
        if held.session.is_valid(Duration::from_secs(1)).is_err() {
            held.session = wanted()?;
            lock(&mut held.session, "pg_try_advisory_lock_shared", key(USE, &held.mark.fingerprint))?;
        }
        Ok(Some(name_of(&held.mark.fingerprint)))
    }

    /// Makes the spare, if there is one, the database `lane`, which carries `mark`.
    pub fn take_spare(&self, server: &Server, lane: &str, mark: &str) -> anyhow::Result<bool> {
        let Some(fingerprint) = self.untried_spare() else { return Ok(false) };
        let (spare, lane) = (identifier(&spare_of(&fingerprint))?, identifier(lane)?);
        // Three statements in one message are one transaction.
        let sql = format!(
            "ALTER DATABASE {spare} RENAME TO {lane}; ALTER DATABASE {lane} ALLOW_CONNECTIONS true; COMMENT ON DATABASE {lane} IS {}",
            escape_literal(mark)
        );
        // Another run may have been quicker, or an earlier try have come this far.
        Ok(server.maintenance.with(|client| client.batch_execute(&sql)).is_ok())
    }

    /// The fingerprint, for the first who asks while there is a spare.
    fn untried_spare(&self) -> Option<String> {
        let mut held = self.held();
        let held = held.as_mut().filter(|held| held.stage == Stage::Found && held.has_spare)?;
        held.has_spare = false;
        Some(held.mark.fingerprint.clone())
    }

    /// Whether the next run would be glad of a spare.
    pub fn wants_spare(&self, server: &Server) -> bool {
        let Some(fingerprint) = self.kept_fingerprint() else { return false };
        find(server, Some(&[&spare_of(&fingerprint)])).is_ok_and(|found| found.is_empty())
    }

    fn kept_fingerprint(&self) -> Option<String> {
        let held = self.held();
        let held = held.as_ref().filter(|held| matches!(held.stage, Stage::Found | Stage::Made))?;
        Some(held.mark.fingerprint.clone())
    }

    /// Makes a lane in which nobody was the spare. Where there is one already, it stays a lane.
    pub fn give_spare(&self, server: &Server, lane: &str) -> anyhow::Result<bool> {
        let Some(fingerprint) = self.kept_fingerprint() else { return Ok(false) };
        // The template's own, so that both tell the same.
        let Some((template, _)) = its(server, &fingerprint)? else { return Ok(false) };
        server.end_sessions_in(lane)?;
        let (spare, lane) = (spare_of(&fingerprint), identifier(lane)?);
        let sql = format!(
            "ALTER DATABASE {lane} ALLOW_CONNECTIONS false; ALTER DATABASE {lane} RENAME TO {}; {}",
            identifier(&spare)?,
            mark_sql(&spare, &template.mark)?
        );
        Ok(server.maintenance.with(|client| client.batch_execute(&sql)).is_ok())
    }

    /// How it stands with it, for the summary.
    pub fn describe(&self) -> Option<String> {
        let held = self.held();
        let held = held.as_ref()?;
        let name = name_of(&held.mark.fingerprint);
        let closed = if held.was_open { ", which somebody had opened" } else { "" };
        match held.stage {
            Stage::Found => Some(format!("{name}, kept since {}{closed}", held.mark.made)),
            Stage::Made => Some(format!("{name}, kept for later runs")),
            Stage::Sought | Stage::Building => None,
        }
    }

    /// Makes a kept template of the run's own, `built`, which is sealed; comes back with why not,
    /// where that does not go.
    pub fn keep(&self, server: &Server, built: &str) -> anyhow::Result<Option<String>> {
        let mut held = self.held();
        let Some(held) = held.as_mut().filter(|held| held.stage == Stage::Building) else { return Ok(None) };
        let (name, now) = (name_of(&held.mark.fingerprint), Timestamp::now());
        (held.mark.made, held.mark.used) = (now, now);
        // Two statements in one message are one transaction.
        let sql = format!(
            "ALTER DATABASE {} RENAME TO {}; {}",
            identifier(built)?,
            identifier(&name)?,
            mark_sql(&name, &held.mark)?
        );
        let renamed = server.maintenance.with(|client| client.batch_execute(&sql));
        let is_taken = renamed.as_ref().is_err_and(|e| connection::code(e) == Some(&SqlState::DUPLICATE_DATABASE));
        if is_taken {
            held.stage = Stage::Sought;
        } else {
            renamed.map_err(readable)?;
            held.stage = Stage::Made;
        }
        unlock_building(&mut held.session, &held.mark.fingerprint);
        let why = || {
            format!(
                "the pristine state was not kept: there is a database {name} already, which isolane did not mark; rename or drop it"
            )
        };
        Ok(is_taken.then(why))
    }

    /// Builds it for this run only.
    pub fn give_up(&self) {
        if let Some(held) = self.held().as_mut().filter(|held| held.stage == Stage::Building) {
            held.stage = Stage::Sought;
            unlock_building(&mut held.session, &held.mark.fingerprint);
        }
    }
}

/// Where the session is gone, so is its lock.
fn unlock_building(session: &mut Client, fingerprint: &str) {
    let _ = session.query("SELECT pg_advisory_unlock($1)", &[&key(BUILD, fingerprint)]);
}

/// Another session for the run's lock.
pub fn session_of(wanted: &Wanted<'_>) -> anyhow::Result<Client> {
    session(wanted.server, wanted.own, wanted.tag)
}

/// The whole template of this fingerprint, and whether it has a spare.
fn its(server: &Server, fingerprint: &str) -> anyhow::Result<Option<(Found, bool)>> {
    let mut found = find(server, Some(&[&name_of(fingerprint), &spare_of(fingerprint)]))?;
    found.retain(|found| !found.is_broken && found.mark.fingerprint == fingerprint);
    let (spares, templates): (Vec<_>, Vec<_>) = found.into_iter().partition(Found::is_spare);
    let has_spare = spares.iter().any(|spare| !spare.is_open);
    Ok(templates.into_iter().next().map(|template| (template, has_spare)))
}

/// Lets nobody in any more: a session in it would stop every copy.
pub fn seal(server: &Server, name: &str) -> anyhow::Result<()> {
    let sql = format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", identifier(name)?);
    server.maintenance.with(|client| client.batch_execute(&sql)).map_err(readable)?;
    server.end_sessions_in(name)
}

/// Whose sessions are in a database, which the login may not end.
fn who_is_in(server: &Server, name: &str) -> anyhow::Result<Option<String>> {
    let sql = "SELECT string_agg(DISTINCT usename, ', ') FROM pg_stat_activity WHERE datname = $1";
    Ok(server.maintenance.with(|client| client.query_one(sql, &[&name])).map_err(readable)?.get(0))
}

/// Removes those of the owner of `own` that were not used for the longest time, until no more
/// than `limit` are left; those that somebody uses stay. Comes back with what the user should know.
pub fn limit(server: &Server, user_database: &str, own: &str, limit: usize) -> anyhow::Result<Option<String>> {
    let mut all = find(server, None)?;
    let owner = all.iter().find(|found| found.name == own).map(|found| found.owner);
    all.retain(|found| Some(found.owner) == owner && !found.is_spare());
    all.sort_by_key(|found| (found.name != own, std::cmp::Reverse(found.mark.used)));
    let (mut left, mut stay) = (all.len(), Vec::new());
    while left > limit.max(1)
        && let Some(oldest) = all.pop().filter(|found| found.name != own)
    {
        match remove(server, user_database, &oldest)? {
            Removal::Removed => left -= 1,
            Removal::InUse(_) => stay.push(oldest.name),
        }
    }
    Ok((left > limit)
        .then(|| format!("{left} templates are kept, over the limit of {limit}: {} in use", stay.join(", "))))
}

/// Removes one, unless a run uses it.
fn remove(server: &Server, user_database: &str, found: &Found) -> anyhow::Result<Removal> {
    let fingerprint = &found.mark.fingerprint;
    let mut session = session(server, user_database, "remove")?;
    let is_free = lock(&mut session, claim::LOCK, key(USE, fingerprint))?;
    let mut users = users(server)?.remove(&key(USE, fingerprint)).unwrap_or_default();
    users.retain(|user| user != "remove");
    if !is_free || !users.is_empty() {
        return Ok(Removal::InUse(users));
    }
    // The look was before the lock. By name, the spare comes first.
    let now = find(server, Some(&[&found.name, &spare_of(fingerprint)]))?;
    for its in now.iter().filter(|now| now.mark.fingerprint == *fingerprint) {
        let what = if its.is_spare() { "spare" } else { "template" };
        server.drop_database(&its.name).with_context(|| format!("cannot remove the {what} {}", its.name))?;
    }
    Ok(Removal::Removed)
}

/// Who shares or holds the locks on templates, by the lock: tags of runs.
fn users(server: &Server) -> anyhow::Result<HashMap<i64, Vec<String>>> {
    let sql = format!(
        "SELECT {NUMBER} AS number, coalesce((SELECT a.application_name FROM pg_stat_activity a WHERE a.pid = locks.pid), '') AS name
           FROM (SELECT * {HELD}) AS locks WHERE (classid::bigint >> 16) = $1"
    );
    let rows = server.maintenance.with(|client| client.query(&sql, &[&(USE >> 48)])).map_err(readable)?;
    let mut users: HashMap<i64, Vec<String>> = HashMap::new();
    for row in rows {
        let name: &str = row.get("name");
        users.entry(row.get("number")).or_default().push(name.strip_prefix(APPLICATION).unwrap_or(name).to_owned());
    }
    Ok(users)
}

impl Server {
    /// All kept templates of the server.
    pub fn templates(&self) -> anyhow::Result<Vec<KeptTemplate>> {
        let mut users = users(self)?;
        let (spares, mut templates): (Vec<_>, Vec<_>) = find(self, None)?.into_iter().partition(Found::is_spare);
        let is_of = |spare: &Found, template: &Found| spare.mark.fingerprint == template.mark.fingerprint;
        // One whose template somebody dropped is there to be removed as well.
        let (spares, alone): (Vec<_>, Vec<_>) =
            spares.into_iter().partition(|spare| templates.iter().any(|template| is_of(spare, template)));
        templates.extend(alone);
        let templates = templates.into_iter().map(|found| KeptTemplate {
            has_spare: spares.iter().any(|spare| is_of(spare, &found)),
            used_by: users.remove(&key(USE, &found.mark.fingerprint)).unwrap_or_default(),
            name: found.name,
            size: found.size,
            mark: found.mark,
        });
        Ok(templates.collect())
    }

    /// Removes a kept template, unless a run uses it.
    pub fn remove_template(&self, template: &KeptTemplate, user_database: &str) -> anyhow::Result<Removal> {
        let Some(found) = find(self, Some(&[&template.name]))?.into_iter().next() else { return Ok(Removal::Removed) };
        remove(self, user_database, &found)
    }
}

/// Why a lane could not be copied, where its template is gone.
pub fn explain(error: anyhow::Error, name: &str) -> anyhow::Error {
    if connection::code(&error) == Some(&SqlState::INVALID_CATALOG_NAME) {
        return anyhow::anyhow!("the kept template {name} is gone: somebody dropped it; the next run makes it again");
    }
    let error = readable(error);
    anyhow::anyhow!("{} (the kept template {name})", one_line(&error))
}

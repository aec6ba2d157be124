//! A database for each lane: the server's own copy of the user's database, or of the
//! run's template.

use std::sync::Arc;

use anyhow::Context;
use postgres::Client;
use postgres::error::SqlState;

use super::capture::{self, shape};
use super::connection::{self, readable};
use super::dump::Programs;
use super::facts::Facts;
use super::renewal::{self, Renewals};
use super::server::Server;
use super::setting::{self, Skipped};
use super::template::{self, Kept, Wanted};
use super::watch::{Watching, no_undoing};
use super::{Names, identifier};
use crate::address::PostgresAddress;
use crate::error::one_line;
use crate::fault::{self, Step};
use crate::name::Place;
use crate::provider::{Renewal, Resource, Shelf};
use crate::recipe::Recipe;

/// Databases as lanes.
#[derive(Debug)]
pub struct Databases {
    /// The server.
    pub server: Arc<Server>,
    /// The user's own database.
    pub source: PostgresAddress,
    /// Names and marks.
    pub names: Names,
    /// Why the server cannot copy the user's database itself.
    pub dump_because: Option<String>,
    /// What the server can do.
    pub facts: Facts,
    /// Settings that lanes have to do without.
    pub skipped: Skipped,
    /// Which rows are watched.
    pub watching: Watching,
    /// The template that outlives the run.
    pub kept: Kept,
}

impl Databases {
    /// Makes a lane's database, or the template.
    pub fn create(&self, place: Place, has_setup: bool) -> anyhow::Result<()> {
        // A login takes as long as most of what follows.
        let _open = self.server.maintenance.keep_open();
        let name = self.names.of(place);
        if place == Place::Run {
            return self.create_empty(&name, place);
        }
        let is_lane = matches!(place, Place::Lane(_));
        let is_copy = place != Place::Template && self.has_template(has_setup);
        // The spare has all that a copy lacks.
        if !(is_lane && self.kept.take_spare(&self.server, &name, &self.names.mark(place))?) {
            match place {
                _ if is_copy => self.create_of_template(&name, place)?,
                // Setup builds from nothing, as on a new machine.
                Place::Template if has_setup => self.create_empty(&name, place)?,
                _ => self.create_of_source(&name, place)?,
            }
            self.dress(&name)?;
        }
        if let Some(renewals) = self.watching.renewals.as_ref().filter(|_| !self.facts.settings.is_empty()) {
            let settings = self.server.maintenance.with(|client| client.query_one(&shape::settings_of("$1"), &[&name]));
            renewals.has_settings(place, settings.map_err(readable)?.get(0));
        }
        // What is written down in a copy is written down in its template.
        if is_lane && !is_copy {
            self.watch(&name);
        } else if let Some(mend) = self.watching.renewals.as_ref().filter(|_| is_copy).and_then(Renewals::mend) {
            self.server.visit(&name)?.batch_execute(mend)?;
        }
        Ok(())
    }

    fn create_of_template(&self, name: &str, place: Place) -> anyhow::Result<()> {
        match self.kept_source()? {
            Some(kept) => self.create_copy(name, place, &kept).map_err(|error| template::explain(error, &kept)),
            None => self.create_copy(name, place, &self.names.of(Place::Template)).map_err(readable),
        }
    }

    /// A copy of the user's own database.
    fn create_of_source(&self, name: &str, place: Place) -> anyhow::Result<()> {
        if self.dump_because.is_some() || self.is_source_in_use()? {
            return self.create_by_dump(name, place);
        }
        let copied = self.create_copy(name, place, self.source.database());
        // Somebody came in between.
        let in_use = copied.as_ref().is_err_and(|e| connection::code(e) == Some(&SqlState::OBJECT_IN_USE));
        if in_use { self.create_by_dump(name, place) } else { copied.map_err(readable) }
    }

    /// Whether lanes are copies of a template of the run's own. What becomes as it was needs one:
    /// the user's own may change meanwhile.
    pub fn has_template(&self, has_setup: bool) -> bool {
        has_setup || self.dump_because.is_some() || self.watching.renewals.is_some()
    }

    /// Puts triggers on the tables of a lane or of the template.
    fn watch(&self, name: &str) {
        self.watching.begin(self.source.user(), || Ok(self.server.visit(name)?));
    }

    /// Whether lanes are to become as the template again, and the login may do that.
    fn may_undo(&self) -> anyhow::Result<bool> {
        let Some(renewals) = &self.watching.renewals else { return Ok(false) };
        let refusal = self.server.own.with(|client| Ok(renewal::refusal(client)))?;
        if let Some(why) = &refusal {
            renewals.is_impossible(no_undoing(why, self.source.user()));
        }
        Ok(refusal.is_none())
    }

    /// Makes a lane's database as the template again, or tells why it has to be copied again.
    pub fn renew(&self, place: Place, is_alone: bool) -> Renewal {
        let Some(renewals) = &self.watching.renewals else { return Renewal::default() };
        renewals.renew(&self.server, place, &self.names.of(place), is_alone)
    }

    /// Whether others are connected to the user's database now. The server would wait five
    /// seconds for them and then refuse to copy it.
    fn is_source_in_use(&self) -> anyhow::Result<bool> {
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = $1 AND coalesce(backend_type, 'client backend') = 'client backend'
                                     AND application_name NOT LIKE 'isolane run %')";
        let row = self
            .server
            .maintenance
            .with(|client| client.query_one(sql, &[&self.source.database()]))
            .map_err(readable)?;
        Ok(row.get(0))
    }

    fn create_by_dump(&self, name: &str, place: Place) -> anyhow::Result<()> {
        self.create_empty(name, place)?;
        fault::before(Step::Fill)?;
        Programs { address: &self.source, facts: &self.facts, application: self.server.application() }
            .copy_database(name)?;
        fault::after(Step::Fill)
    }

    fn create_empty(&self, name: &str, place: Place) -> anyhow::Result<()> {
        self.create_from(name, place, &format!("TEMPLATE template0 {}", self.facts.template0_options)).map_err(readable)
    }

    /// Copies file by file, as servers before 15 do, or block by block through the log. Where the
    /// server need not wait for its disk, files are quicker: eight copies at once of 60 tables
    /// (942 files, 36 MB) took 0.25 s and not 0.81 in memory, 1.4 and not 3.1 on a disk, one
    /// copy 0.08 and not 0.23. With fsync both took as long, and the removal of files that
    /// were just written three times as long: 8.9 s for a run of eight lanes, and not 5.6. Fewer
    /// copies at a time were slower on two cores: 0.32 s by four, 0.47 by two.
    fn create_copy(&self, name: &str, place: Place, source: &str) -> anyhow::Result<()> {
        let is_by_files = self.facts.version >= 150_000 && !self.facts.waits_for_disk;
        let strategy = if is_by_files { " STRATEGY FILE_COPY" } else { "" };
        self.create_from(name, place, &format!("TEMPLATE {}{strategy}", identifier(source)?))
    }

    /// From PostgreSQL 18 on, copies of files share their blocks where the file system can.
    fn create_database(&self, client: &mut Client, sql: &str) -> Result<(), postgres::Error> {
        if self.facts.version < 180_000 || client.batch_execute("SET file_copy_method = clone").is_err() {
            return client.batch_execute(sql);
        }
        let made = client.batch_execute(sql);
        // Errors of the system under the server, and of what it does not support there.
        let is_systems = |code: &SqlState| ["58", "XX", "0A"].iter().any(|class| code.code().starts_with(class));
        if !made.as_ref().is_err_and(|error| error.code().is_some_and(is_systems)) {
            return made;
        }
        client.batch_execute("SET file_copy_method = copy")?;
        client.batch_execute(sql)
    }

    /// Makes a database and marks it. That it is made is no part of any transaction; all that
    /// can be done is to mark it at once.
    fn create_from(&self, name: &str, place: Place, options: &str) -> anyhow::Result<()> {
        let owner = if self.facts.is_owner { format!(" OWNER {}", self.facts.owner) } else { String::new() };
        let sql = format!("CREATE DATABASE {}{owner} {options}", identifier(name)?);
        let made = self.server.maintenance.with(|client| self.create_database(client, &sql));
        if made.as_ref().is_err_and(|e| connection::code(e) == Some(&SqlState::DUPLICATE_DATABASE)) {
            // Half made by a try before: the name is this run's own, so it goes and comes again.
            self.server.drop_database(name)?;
            self.server.maintenance.with(|client| self.create_database(client, &sql))?;
        } else {
            made?;
        }
        fault::before(Step::Mark)?;
        let mark = format!("COMMENT ON DATABASE {} IS '{}'", identifier(name)?, self.names.mark(place));
        self.server.maintenance.with(|client| client.batch_execute(&mark))?;
        fault::after(Step::Mark)
    }

    /// Gives a database the settings and grants that a copy lacks.
    fn dress(&self, name: &str) -> anyhow::Result<()> {
        let database = identifier(name)?;
        let mut grants_sql = String::new();
        if let Some(grants) = &self.facts.grants {
            grants_sql.push_str(&format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC;"));
            for (grantee, privilege) in grants {
                grants_sql.push_str(&format!("GRANT {privilege} ON DATABASE {database} TO {grantee};"));
            }
        }
        let mut settings = Vec::new();
        for (role, setting) in &self.facts.settings {
            let of = role
                .as_ref()
                .map_or(format!("DATABASE {database}"), |role| format!("ROLE {role} IN DATABASE {database}"));
            settings.extend(setting::repeat(setting, &of)?);
        }
        let run = |sql: &str| self.server.maintenance.with(|client| client.batch_execute(sql));
        let all: String = settings.iter().map(|(_, sql)| sql.as_str()).collect();
        if grants_sql.is_empty() && all.is_empty() {
            return Ok(());
        }
        if run(&(grants_sql.clone() + &all)).is_ok() {
            return Ok(());
        }
        run(&grants_sql).map_err(readable)?;
        for (key, sql) in settings {
            if run(&sql).is_err() {
                self.skipped.add(key);
            }
        }
        Ok(())
    }

    /// Whether no session but isolane's own ever was in any of these, not even one that filled it.
    pub fn are_untouched(&self, lanes: &[Resource]) -> anyhow::Result<bool> {
        // Sessions are counted since PostgreSQL 14, and at once since 15.
        let counts_anew = self.watching.renewals.as_ref().is_some_and(Renewals::was_again);
        if self.facts.version < 150_000 || lanes.is_empty() || counts_anew {
            return Ok(false);
        }
        let names: Vec<&str> = lanes.iter().map(|lane| lane.name.as_str()).collect();
        let sql = "SELECT coalesce(sum(sessions), 0)::bigint FROM pg_stat_database WHERE datname = ANY($1)";
        let sessions = self.server.maintenance.with(|client| client.query_one(sql, &[&names])).map_err(readable)?;
        Ok(sessions.get::<_, i64>(0) <= self.server.visits())
    }

    /// Lets nobody into the template any more: a session in it would stop every copy.
    pub fn seal(&self) -> anyhow::Result<()> {
        let name = self.names.of(Place::Template);
        self.watch(&name);
        template::seal(&self.server, &name)
    }

    /// The kept template that lanes are made from; `None` where that is the run's own.
    fn kept_source(&self) -> anyhow::Result<Option<String>> {
        self.kept.source(|| template::session_of(&self.wanted("", "")))
    }

    /// Whether the next run would be glad of a copy that is ready.
    pub fn wants_spare(&self) -> bool {
        self.kept.wants_spare(&self.server)
    }

    /// Leaves a copy in which nobody was to the next run.
    pub fn give_spare(&self) -> anyhow::Result<bool> {
        let _open = self.server.maintenance.keep_open();
        self.kept.give_spare(&self.server, &self.names.of(Place::Spare))
    }

    fn wanted<'a>(&'a self, fingerprint: &'a str, command: &'a str) -> Wanted<'a> {
        Wanted {
            server: &self.server,
            own: self.source.database(),
            fingerprint,
            command,
            host: &self.names.owner.host,
            tag: self.names.tag.as_str(),
        }
    }

    /// Looks for a kept template that this recipe makes here.
    pub fn find_template(&self, recipe: &Recipe) -> anyhow::Result<Shelf> {
        let _open = self.server.maintenance.keep_open();
        let Facts { version_text, template0_options, owner, settings, grants, .. } = &self.facts;
        let may_undo = self.may_undo()?;
        let surroundings = [
            version_text.clone(),
            template0_options.clone(),
            // What the setup makes belongs to the login, and the database to the owner.
            format!("{} {owner} {}", self.source.user(), self.facts.is_owner),
            format!("{settings:?} {grants:?}"),
            format!("{} {:?} {may_undo}", capture::VERSION, self.watching.track),
        ];
        let fingerprint = recipe.fingerprint(&surroundings.each_ref().map(String::as_str));
        self.kept.seek(&self.wanted(&fingerprint, &recipe.command)).context("cannot look for a kept template")
    }

    /// Keeps the run's template for others, or makes it for this run only.
    pub fn keep_template(&self, limit: Option<u32>) -> anyhow::Result<Option<String>> {
        // A later run would not know that.
        let in_the_way = self.watching.renewals.as_ref().and_then(Renewals::impossible);
        let in_the_way = in_the_way.filter(|_| self.may_undo().unwrap_or(false));
        let unwatched = self.watching.unwatched.why().or(in_the_way);
        let Some(limit) = limit.filter(|_| unwatched.is_none()) else {
            self.kept.give_up();
            return Ok(unwatched.map(|why| format!("the pristine state was not kept: {why}")));
        };
        let why_not = self.kept.keep(&self.server, &self.names.of(Place::Template))?;
        if why_not.is_some() {
            return Ok(why_not);
        }
        let Some(own) = self.kept_source()? else { return Ok(None) };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        // Others stay longer than they should, and this one is there.
        template::limit(&self.server, self.source.database(), &own, limit)
            .or_else(|error| Ok(Some(format!("older kept templates stay: {}", one_line(&error)))))
    }
}

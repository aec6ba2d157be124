//! A PostgreSQL server for each lane, started from its programs on this machine. No server
//! needs to be there before; the user's names, roles and extensions are in each, because each
//! is a copy of one prepared cluster: the user's database, or what `--setup` made, or empty.
//!
//! Two layers are kept for later runs: a cluster as `initdb` makes it, and the prepared one
//! where it is certain that the next run would prepare the same.
//!
//! A server is in its lane's folder, found there by whoever undoes the run, and in a session
//! of its own: it must outlive its tests, and not longer than that.

mod cache;
mod cluster;
mod folders;
mod prepared;
mod programs;
mod source;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};

use super::postgres::capture::{self, shape};
use super::postgres::connection::{OWN_SETTINGS, readable};
use super::postgres::watch::Watching;
use super::{Access, NamedRow, Provider, Renewal, Resource, ResourceKind, Server, Shelf, Sink, Site};
use crate::address::{Address, LOOPBACK, LaneTarget, PostgresAddress};
use crate::error::one_line;
use crate::failure::KeyTrouble;
use crate::fault::{self, Step};
use crate::name::{Identifier, Place, Tag};
use crate::os::port::{BLOCK, PortBlock};
use crate::recipe::Recipe;
use crate::secret::Secret;
use crate::settings::Settings;
use cache::Cache;
pub use cluster::stop_below;
use cluster::{ADMIN, Cluster, NotUp, Running};
pub use folders::ServerFolders;
use prepared::{FORM, Prepared};
pub use programs::Programs;
use source::{Found, Source, session};

/// What a server on loopback without TLS wants instead of the user's own values.
const MISLEADING: [(&str, &str); 4] = [
    ("PGHOSTADDR", LOOPBACK),
    ("PGSSLMODE", "disable"),
    ("PGCHANNELBINDING", "disable"),
    ("PGREQUIREAUTH", "scram-sha-256"),
];
/// How often another port is tried.
const TRIES: u16 = 20;

/// The servers of one run.
#[derive(Debug)]
pub struct Servers {
    folders: ServerFolders,
    root: PathBuf,
    tag: Tag,
    /// Tells several databases of one run apart.
    suffix: String,
    address: PostgresAddress,
    password: Secret,
    programs: Programs,
    content: Content,
    locale: String,
    prepared: Prepared,
    needs_template: bool,
    /// Variables of the user's that would lead libpq elsewhere, or ask for TLS.
    misleading: Vec<(&'static str, &'static str)>,
    blocks: Mutex<Vec<PortBlock>>,
    running: Mutex<HashMap<Place, Running>>,
    verifier: OnceLock<String>,
    watching: Watching,
}

/// What the prepared cluster has.
#[derive(Debug)]
enum Content {
    /// What `--setup` makes.
    Setup,
    /// A copy of the user's database.
    Copy(Box<Source>),
    /// An empty database, and why, where the user named one.
    Empty(Option<String>),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Servers {
    /// Looks for programs and for the user's database. `root` is the run's directory.
    pub fn open(
        address: &PostgresAddress,
        settings: &Settings,
        root: &Path,
        tag: &Tag,
        suffix: &str,
    ) -> anyhow::Result<Self> {
        let content = if settings.setup.is_some() {
            Content::Setup
        } else if settings.embedded {
            Content::Empty(None)
        } else {
            match Source::find(address, format!("isolane run {tag}"))? {
                Found::There(source) => Content::Copy(source),
                Found::Not(why) => Content::Empty(Some(why)),
            }
        };
        let wanted = match &content {
            Content::Copy(source) => Some(source.facts.version / 10_000),
            Content::Setup | Content::Empty(_) => None,
        };
        let mut servers = Self {
            folders: ServerFolders::new(format!("{}{}{suffix}", ServerFolders::SCHEME, root.display())),
            root: root.to_owned(),
            tag: tag.clone(),
            suffix: suffix.to_owned(),
            address: address.clone(),
            password: address
                .password()
                .cloned()
                .unwrap_or_else(|| Secret::new(uuid::Uuid::new_v4().simple().to_string())),
            programs: Programs::find(wanted)?,
            content,
            locale: locale(settings),
            prepared: Prepared::new(&settings.variables),
            needs_template: true,
            misleading: MISLEADING.into_iter().filter(|(name, _)| settings.variables.contains_key(*name)).collect(),
            blocks: Mutex::default(),
            running: Mutex::default(),
            verifier: OnceLock::new(),
            watching: Watching::new(settings),
        };
        if let Some((name, fingerprint)) = servers.wanted() {
            servers.needs_template = !servers.prepared.find(&name, &fingerprint);
        }
        Ok(servers)
    }

    /// The name of the prepared cluster in the cache, and what it is a copy of; `None` where
    /// the next run may want another.
    fn wanted(&self) -> Option<(String, String)> {
        let fingerprint = match &self.content {
            Content::Setup => return None,
            Content::Copy(source) => source.fingerprint.clone()?,
            Content::Empty(_) => "empty".to_owned(),
        };
        let id = if let Content::Copy(_) = self.content { self.address.id() } else { String::new() };
        let names = [self.address.user(), self.address.database(), &id];
        let watched = self.watched();
        let parts = [&[FORM, &self.programs.version_text, &self.locale, &watched][..], &names[..]].concat();
        Some((Cache::name("prepared", &parts), fingerprint))
    }

    /// What is written down in lanes, in words: it comes with the prepared cluster.
    fn watched(&self) -> String {
        format!("{} {:?} {}", capture::VERSION, self.watching.track, self.watching.renewals.is_some())
    }

    /// Watches the rows of the user's database in the template.
    fn watch(&self, port: u16) {
        let (user, database) = (self.address.user(), self.address.database());
        self.watching.begin(user, || {
            let mut client = session(port, user, &self.password, database)?;
            client.batch_execute(OWN_SETTINGS)?;
            Ok(client)
        });
    }

    /// The server of a lane, as one that could be anywhere.
    fn server(&self, place: Place) -> anyhow::Result<Server> {
        let port = locked(&self.running).get(&place).map(|running| running.port).context("its server is gone")?;
        Server::new(&self.address.moved_to(LOOPBACK, port, &self.password), &self.tag)
    }

    fn path(&self, place: Place) -> PathBuf {
        self.root.join(format!("server-{}{}", place.word(), self.suffix))
    }

    fn cluster(&self, place: Place) -> Cluster {
        Cluster::at(self.path(place))
    }

    /// Copies what there is into the folder of `place`.
    fn lay(&self, place: Place) -> anyhow::Result<()> {
        let (cluster, user) = (self.cluster(place), self.programs.user.as_ref());
        cluster.make_folder(user)?;
        if place != Place::Template {
            return cluster.copy_from(&self.source(), user, false);
        }
        if let Some((name, fingerprint)) = self.wanted()
            && self.prepared.wait(&name, &fingerprint)
        {
            // Another run has made it meanwhile.
            return Ok(());
        }
        self.prepared.lay_base(&cluster, &self.programs, &self.locale)
    }

    /// The cluster that lanes are copies of.
    fn source(&self) -> Cluster {
        self.prepared.cluster().unwrap_or_else(|| self.cluster(Place::Template))
    }

    /// The password of the superuser that the cluster of `place` comes with.
    fn admin_password(&self) -> anyhow::Result<Secret> {
        self.source().password()
    }

    fn start(&self, place: Place) -> anyhow::Result<()> {
        let cluster = self.cluster(place);
        let slot = place.lane().map_or(0, |lane| usize::try_from(lane.0).unwrap_or(0) + 1);
        for attempt in 0..TRIES {
            let port = self.port(slot, attempt)?;
            match cluster.start(&self.programs, port) {
                Ok(running) => {
                    locked(&self.running).insert(place, running);
                    return self.open_for_user(place, port);
                }
                Err(NotUp::PortTaken) => {}
                Err(NotUp::Failed(error)) => return Err(error),
            }
        }
        bail!("others take every port before the server has it")
    }

    /// A port that no other lane of any run is given; where somebody has it all the same, one
    /// that the system calls free.
    fn port(&self, slot: usize, attempt: u16) -> anyhow::Result<u16> {
        if attempt > 0 {
            let listener = std::net::TcpListener::bind((LOOPBACK, 0)).context("no port is free")?;
            return Ok(listener.local_addr()?.port());
        }
        let (number, offset) = (slot / usize::from(BLOCK), slot % usize::from(BLOCK));
        let mut blocks = locked(&self.blocks);
        while blocks.len() <= number {
            // Far from where the lanes of this run look for theirs.
            let seed = u64::from_str_radix(self.tag.as_str(), 16).unwrap_or(0) / 2 + 300;
            blocks.push(PortBlock::reserve(seed).context("no block of free ports is left on this machine")?);
        }
        Ok(blocks[number].base() + u16::try_from(offset)?)
    }

    /// Gives the user's login its password on a server that has just come up, and makes login
    /// and database where that is the template.
    fn open_for_user(&self, place: Place, port: u16) -> anyhow::Result<()> {
        let admin = self.admin_password()?;
        let (user, database) = (self.address.user(), self.address.database());
        let quoted = |name: &str| Identifier::new(name).with_context(|| format!("{name:?} is too long a name"));
        if place == Place::Template {
            let mut client = session(port, ADMIN, &admin, ADMIN)?;
            if user != ADMIN {
                run(&mut client, &format!("CREATE ROLE {} LOGIN SUPERUSER", quoted(user)?))?;
            }
            match &self.content {
                Content::Copy(source) => {
                    drop(client);
                    fault::before(Step::Fill)?;
                    source.copy_to(&self.programs, port, &admin)?;
                    fault::after(Step::Fill)?;
                }
                Content::Setup | Content::Empty(_) if [ADMIN, "template1"].contains(&database) => {}
                Content::Setup | Content::Empty(_) => {
                    run(&mut client, &format!("CREATE DATABASE {} OWNER {}", quoted(database)?, quoted(user)?))?;
                }
            }
        }
        // Should tests or setup have dropped that database, this one stays.
        let client = session(port, ADMIN, &admin, ADMIN).or_else(|_| session(port, ADMIN, &admin, "template1"));
        let mut client = client?;
        if let Some(renewals) = self.watching.renewals.as_ref().filter(|_| place != Place::Template) {
            let settings =
                client.query_one(&shape::settings_of("$1"), &[&database]).map_err(|error| readable(error.into()))?;
            renewals.has_settings(place, settings.get(0));
        }
        self.set_passwords(&mut client, self.verifier())
    }

    /// A verifier and not the password: it stands in no log of the server.
    fn verifier(&self) -> &str {
        self.verifier.get_or_init(|| scram(&self.password))
    }

    fn set_passwords(&self, client: &mut postgres::Client, verifier: &str) -> anyhow::Result<()> {
        let user = Identifier::new(self.address.user()).context("the login's name is too long")?;
        let admin = Identifier::new(ADMIN).context("a name")?;
        run(client, &format!("ALTER ROLE {user} PASSWORD '{verifier}'; ALTER ROLE {admin} PASSWORD '{verifier}'"))
    }
}

fn scram(password: &Secret) -> String {
    postgres_protocol::password::scram_sha_256(password.reveal().as_bytes())
}

fn run(client: &mut postgres::Client, sql: &str) -> anyhow::Result<()> {
    client.batch_execute(sql).map_err(|error| readable(error.into()))
}

/// The locale of a new cluster: the user's own, where it is one of UTF-8.
fn locale(settings: &Settings) -> String {
    let variable = |name: &str| settings.variables.get(name).filter(|value| !value.is_empty());
    let own = ["LC_ALL", "LC_COLLATE", "LANG"].into_iter().find_map(variable);
    let is_utf8 = |text: &&String| {
        let encoding = text.rsplit('.').next().unwrap_or_default();
        ["utf-8", "utf8"].iter().any(|utf8| encoding.eq_ignore_ascii_case(utf8))
    };
    own.filter(is_utf8).cloned().unwrap_or_else(|| "C.UTF-8".to_owned())
}

impl Site for Servers {
    fn id(&self) -> &str {
        self.folders.id()
    }

    fn disconnect(&self, _resource: &Resource) -> anyhow::Result<()> {
        // Whoever worked in it is dead, and its log is still to be read.
        Ok(())
    }

    fn harvest(&self, resource: &Resource, margin: Duration, sink: &mut Sink<'_>) -> anyhow::Result<()> {
        if resource.kind != ResourceKind::Process || resource.place.lane().is_none() {
            return Ok(());
        }
        let database = self.address.database().to_owned();
        let its = Resource { kind: ResourceKind::Database, name: database, ..resource.clone() };
        self.server(resource.place)?.harvest(&its, margin, sink)
    }

    fn remove(&self, resource: &Resource) -> anyhow::Result<()> {
        self.folders.remove(resource)?;
        if let Some(running) = locked(&self.running).remove(&resource.place) {
            running.bury();
        }
        Ok(())
    }
}

impl Provider for Servers {
    fn summary(&self) -> String {
        let database = self.address.database();
        let what = match &self.content {
            Content::Setup if self.prepared.is_there() => "as --setup made it in an earlier run".to_owned(),
            Content::Setup => "as --setup made it".to_owned(),
            Content::Copy(_) if self.needs_template => format!("with a copy of {database}"),
            Content::Copy(_) => format!("with a copy of {database} that an earlier run had made, and that is as new"),
            Content::Empty(None) => format!("with an empty database {database}, because no database is named"),
            Content::Empty(Some(why)) => format!("with an empty database {database} ({why})"),
        };
        let unwatched =
            self.watching.unwatched.why().map(|why| format!(" (rows are not watched: {why})")).unwrap_or_default();
        format!("PostgreSQL {}, a server for each lane, {what}{unwatched}", self.programs.version_text)
    }

    fn needs_template(&self) -> bool {
        self.needs_template
    }

    fn plan(&self, place: Place) -> Vec<Resource> {
        let is_template = place == Place::Template;
        if place == Place::Run || (is_template && !self.needs_template) {
            return Vec::new();
        }
        let name = self.path(place).display().to_string();
        [ResourceKind::Directory, ResourceKind::Process]
            .map(|kind| Resource { provider: self.id().to_owned(), kind, name: name.clone(), place })
            .into()
    }

    fn create(&self, resource: &Resource) -> anyhow::Result<()> {
        let place = resource.place;
        match resource.kind {
            ResourceKind::Directory => self.lay(place),
            // The template is only there to be copied, and there is one already.
            _ if place == Place::Template && self.prepared.is_there() => Ok(()),
            _ => self.start(place),
        }
        .with_context(|| format!("cannot make the server in {}", resource.name))
    }

    fn verify(&self, _place: Place) -> anyhow::Result<()> {
        Ok(())
    }

    fn seal_template(&self) -> anyhow::Result<()> {
        if self.prepared.is_there() {
            return Ok(());
        }
        let cluster = self.cluster(Place::Template);
        let Some(running) = locked(&self.running).remove(&Place::Template) else { return Ok(()) };
        // The superuser's password becomes again what is written beside the cluster.
        let mut client = [ADMIN, "template1"]
            .iter()
            .find_map(|database| session(running.port, self.address.user(), &self.password, database).ok())
            .context("the setup has changed the login's password or its rights")?;
        self.watch(running.port);
        self.set_passwords(&mut client, &scram(&self.admin_password()?))?;
        drop(client);
        cluster.close(&running)?;
        if !matches!(self.content, Content::Setup) {
            // What cannot be kept is made again by the next run.
            let _ = self.prepared.keep(&cluster);
        }
        Ok(())
    }

    fn find_template(&self, recipe: &Recipe) -> anyhow::Result<Shelf> {
        let (user, database) = (self.address.user(), self.address.database());
        let fingerprint =
            recipe.fingerprint(&[FORM, &self.programs.version_text, &self.locale, user, database, &self.watched()]);
        let name = Cache::name("setup", &[&fingerprint]);
        Ok(self.prepared.seek(&name, &fingerprint))
    }

    fn keep_template(&self, limit: Option<u32>) -> anyhow::Result<Option<String>> {
        if limit.is_none_or(|limit| limit == 0) {
            self.prepared.give_up();
            return Ok(None);
        }
        let kept = self.prepared.keep(&self.cluster(Place::Template));
        let kept = kept.unwrap_or_else(|| bail!("neither XDG_CACHE_HOME nor HOME names a folder of this user's"));
        Ok(kept.err().map(|error| format!("the pristine state was not kept: {}", one_line(&error))))
    }

    fn rows_named(&self, place: Place, trouble: &KeyTrouble) -> anyhow::Result<Vec<NamedRow>> {
        self.server(place)?.rows_named(self.address.database(), trouble)
    }

    fn watches_rows(&self) -> bool {
        true
    }

    fn renew(&self, place: Place, is_alone: bool) -> Renewal {
        let Some(renewals) = &self.watching.renewals else { return Renewal::default() };
        match self.server(place) {
            Ok(server) => renewals.renew(&server, place, self.address.database(), is_alone),
            Err(error) => Renewal::changed(one_line(&error)),
        }
    }

    fn is_untouched(&self, _lanes: &[Resource]) -> bool {
        false
    }

    fn address(&self, address: &Address, place: Place) -> Option<String> {
        let Address::Postgres(address) = address else { return None };
        if address.id() != self.address.id() {
            return None;
        }
        let port = locked(&self.running).get(&place).map(|running| running.port);
        let login = Some((self.address.user(), &self.password));
        Some(address.with(&LaneTarget { login, port, ..LaneTarget::default() }))
    }

    fn access(&self, place: Place) -> Access {
        let port = locked(&self.running).get(&place).map_or(0, |running| running.port).to_string();
        let (user, database) = (self.address.user().to_owned(), self.address.database().to_owned());
        let password = self.password.reveal().to_owned();
        let mut variables: Vec<_> = [
            ("PGHOST", LOOPBACK.to_owned()),
            ("PGPORT", port.clone()),
            ("PGUSER", user.clone()),
            ("PGDATABASE", database.clone()),
            ("PGPASSWORD", password.clone()),
            ("PGAPPNAME", place.schema(&self.tag)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        variables.extend(self.misleading.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        variables.extend(self.address.options().map(|options| ("PGOPTIONS".to_owned(), options.to_owned())));
        let names = vec![
            ("host", LOOPBACK.to_owned()),
            ("port", port),
            ("user", user),
            ("password", password),
            ("database", database.clone()),
        ];
        Access { variables, names, schema: database }
    }
}

//! PostgreSQL: a database for each lane, a schema and a login role for each lane, or a login
//! role for each lane on the user's own schema.

mod begun;
pub(super) mod capture;
mod claim;
pub(super) mod connection;
mod database;
pub(super) mod dump;
pub(super) mod facts;
mod guard;
mod lease_store;
mod password;
mod pool_table;
pub(super) mod renewal;
mod schema;
mod server;
mod setting;
mod shared;
mod template;
pub(super) mod watch;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use postgres::{Client, Config};

use super::{Access, NamedRow, Provider, Renewal, Resource, ResourceKind, Rows, Shelf, Sink, Site};
use crate::address::{Address, LaneTarget, PostgresAddress};
use crate::error::Stop;
use crate::failure::KeyTrouble;
use crate::mark::Owner;
use crate::name::{Identifier, Place, Tag};
use crate::recipe::Recipe;
use crate::secret::Secret;
use crate::settings::{Isolation, Settings, Track};
use begun::Begun;
use capture::lookup;
use claim::Claim;
use connection::readable;
use database::Databases;
use facts::Facts;
pub use guard::Guardian;
pub use lease_store::LeaseStore;
pub use pool_table::read_rows;
use renewal::Renewals;
use schema::Schemas;
pub use server::Server;
use server::{COMMON, maintenance_databases};
use setting::Skipped;
use shared::Shared;
use template::Kept;
use watch::Watching;

/// The lanes of one PostgreSQL database.
#[derive(Debug)]
pub struct Postgres {
    server: Arc<Server>,
    address: PostgresAddress,
    names: Names,
    facts: Facts,
    separation: Separation,
    /// Why this separation, for the summary.
    reason: String,
    has_setup: bool,
    claim: Mutex<Claimed>,
    begun: Mutex<Begun>,
}

/// How far the run's claim has come.
#[derive(Default)]
enum Claimed {
    /// There is none.
    #[default]
    Not,
    /// By a session where it cannot stay.
    Passing(#[expect(dead_code, reason = "it is there to be held")] Box<Client>),
    /// By a session that can stay, and is of use until the command starts.
    Ready(Box<(Client, Config)>),
    /// Until the end.
    Held(Claim),
}

impl std::fmt::Debug for Claimed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claimed").finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Separation {
    Database(Databases),
    Schema(Schemas),
    Shared(Shared),
}

/// How this run names and marks things on the server.
#[derive(Clone, Debug)]
struct Names {
    tag: Tag,
    /// Tells several databases of one run apart.
    suffix: String,
    owner: Owner,
}

impl Names {
    fn of(&self, place: Place) -> String {
        format!("{}{}", place.schema(&self.tag), self.suffix)
    }

    /// The mark: a comment that says whose a thing is.
    fn mark(&self, place: Place) -> String {
        // Letters, digits and a few signs: nothing that could end the literal.
        self.owner.mark(place).to_string()
    }
}

fn identifier(name: &str) -> anyhow::Result<Identifier> {
    Identifier::new(name).with_context(|| {
        format!("the name {name:?} is longer than the {} bytes that PostgreSQL keeps", Identifier::MAX_BYTES)
    })
}

impl Postgres {
    /// Looks at the user's database and decides how lanes are separated. `root` is a
    /// directory of the run, for dumps.
    pub fn open(
        address: &PostgresAddress,
        settings: &Settings,
        root: &Path,
        owner: &Owner,
        suffix: String,
    ) -> anyhow::Result<Self> {
        let (has_setup, track) = (settings.setup.is_some(), &settings.track);
        let names = Names { tag: owner.run.tag(), suffix, owner: owner.clone() };
        let server = Arc::new(Server::new(address, &names.tag)?);
        let mut begun = Begun::begin(&server, address, &names.tag);
        let is_kept = has_setup && settings.inputs.is_some();
        let kept = if is_kept { Kept::begin(&server, address.database(), names.tag.as_str()) } else { Kept::default() };
        let facts = Facts::of(&server, address, settings.isolation)?;
        if facts.has_few_places {
            begun.make_do();
        }
        let databases = || Self::databases(&server, address, &facts, &names, settings, kept);
        let (separation, reason) = match settings.isolation {
            Isolation::Database => match facts.no_databases(address) {
                None => (databases(), "as asked".to_owned()),
                Some(why) => bail!(Stop::not_started(format!(
                    "{why}; `ALTER ROLE {} CREATEDB` allows it, and --isolation schema does without",
                    address.user()
                ))),
            },
            Isolation::Schema => (Self::schemas(&server, address, &facts, &names, root, track)?, "as asked".to_owned()),
            Isolation::Shared => {
                let shared = Shared::new(&server, address, &facts, &names, settings)?;
                (Separation::Shared(shared), "as asked".to_owned())
            }
            Isolation::Auto | Isolation::None | Isolation::Server => match facts.no_databases(address) {
                None => (databases(), "the login may create databases".to_owned()),
                Some(why) => (Self::schemas(&server, address, &facts, &names, root, track)?, why),
            },
        };
        let caveat = match &separation {
            Separation::Schema(schemas) => schemas.caveat(),
            Separation::Shared(shared) => shared.caveat(),
            Separation::Database(Databases { dump_because: Some(why), .. }) if !has_setup => {
                Some(format!("copied by pg_dump, because {why}"))
            }
            Separation::Database(_) => None,
        };
        let reason = caveat.map_or(reason.clone(), |caveat| format!("{reason}; {caveat}"));
        Ok(Self {
            server,
            address: address.clone(),
            names,
            facts,
            separation,
            reason,
            has_setup,
            claim: Mutex::default(),
            begun: Mutex::new(begun),
        })
    }

    fn begun(&self) -> MutexGuard<'_, Begun> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claimed(&self) -> MutexGuard<'_, Claimed> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By a session that can stay.
    fn claimed_by(&self, client: Client, config: Config) -> Claimed {
        if self.facts.has_few_places {
            Claimed::Ready(Box::new((client, config)))
        } else {
            Claimed::Held(Claim::hold(client, config, &self.names.tag))
        }
    }

    /// Moves the claim into a database of the run's own.
    fn settle(&self, database: &str) -> anyhow::Result<()> {
        let config = self.server.config_of(database, &claim::application(&self.names.tag));
        // In another database the same number is another lock, and both say the same.
        let client = claim::take(&config, &self.names.tag)?.context("somebody holds the lock of this run's tag")?;
        *self.claimed() = self.claimed_by(client, config);
        Ok(())
    }

    /// The login that a lane has of its own, with its password.
    fn lane_login(&self, place: Place) -> Option<(String, Secret)> {
        let passwords = match &self.separation {
            Separation::Schema(schemas) if schemas.has_roles() => &schemas.passwords,
            Separation::Shared(shared) if shared.has_roles() => &shared.passwords,
            Separation::Database(_) | Separation::Schema(_) | Separation::Shared(_) => return None,
        };
        Some((self.names.of(place), passwords.of(place)))
    }

    fn databases(
        server: &Arc<Server>,
        address: &PostgresAddress,
        facts: &Facts,
        names: &Names,
        settings: &Settings,
        kept: Kept,
    ) -> Separation {
        Separation::Database(Databases {
            server: Arc::clone(server),
            source: address.clone(),
            names: names.clone(),
            dump_because: facts.no_copy(address),
            facts: facts.clone(),
            skipped: Skipped::default(),
            watching: Watching::new(settings),
            kept,
        })
    }

    fn schemas(
        server: &Arc<Server>,
        address: &PostgresAddress,
        facts: &Facts,
        names: &Names,
        root: &Path,
        track: &Track,
    ) -> anyhow::Result<Separation> {
        if !facts.may_create_schemas {
            bail!(Stop::not_started(format!(
                "the role {user} may create neither databases nor schemas in {database}; `ALTER ROLE {user} CREATEDB` or `GRANT CREATE ON DATABASE {database} TO {user}` allows it",
                user = address.user(),
                database = address.database()
            )));
        }
        Ok(Separation::Schema(Schemas::new(Arc::clone(server), address, facts, names.clone(), root, track)?))
    }
}

impl Site for Postgres {
    fn id(&self) -> &str {
        self.server.id()
    }

    fn take_over(&self, dead: &Tag) -> anyhow::Result<()> {
        self.server.take_over(dead)
    }

    fn disconnect(&self, resource: &Resource) -> anyhow::Result<()> {
        if resource.place == Place::Run
            && let Claimed::Held(claim) = &*self.claimed()
        {
            // It is in the last thing that goes.
            claim.let_go();
        }
        self.server.disconnect(resource)
    }

    fn remove(&self, resource: &Resource) -> anyhow::Result<()> {
        self.server.remove(resource)
    }

    fn harvest(&self, resource: &Resource, margin: Duration, sink: &mut Sink<'_>) -> anyhow::Result<()> {
        self.server.harvest(resource, margin, sink)
    }

    fn remove_rows(&self, resource: &Resource) -> anyhow::Result<Rows> {
        self.server.remove_rows(resource)
    }

    fn let_go(&self, resource: &Resource) -> anyhow::Result<()> {
        self.server.let_go(resource)
    }
}

impl Provider for Postgres {
    fn claim(&self) -> anyhow::Result<()> {
        let config_of = |database: &str| self.server.config_of(database, &claim::application(&self.names.tag));
        let session_in = |database: &str| {
            let config = config_of(database);
            claim::take(&config, &self.names.tag).map(|client| (client, config))
        };
        let held = |(client, config): (Option<Client>, _)| match client {
            Some(client) => self.claimed_by(client, config),
            None => Claimed::Not,
        };
        let own = self.address.database();
        // Not in the database that is copied, because nobody may be connected to it then; and
        // not in template1, which is everybody's source, except for a moment.
        let ahead = self.begun().claim.take();
        let elsewhere = ahead.and_then(|ahead| {
            let client = claim::take_by(ahead.arrive().ok()?, &self.names.tag).ok()?;
            Some((client, config_of(COMMON)))
        });
        *self.claimed() = match (elsewhere, &self.separation) {
            (Some(session), _) => held(session),
            (None, Separation::Schema(_) | Separation::Shared(_)) => held(session_in(own)?),
            (None, Separation::Database(_)) => {
                let passing = maintenance_databases(&self.address).find_map(|database| session_in(database).ok());
                let (client, _) = passing.context("no database of the server can be connected to")?;
                client.map_or(Claimed::Not, |client| Claimed::Passing(Box::new(client)))
            }
        };
        Ok(())
    }

    fn make_room(&self) {
        let mut claimed = self.claimed();
        if let Claimed::Ready(session) = &mut *claimed {
            self.goes_on();
            claim::outwait(&mut session.0, self.server.application());
        }
        *claimed = match std::mem::take(&mut *claimed) {
            Claimed::Ready(session) => Claimed::Held(Claim::hold(session.0, session.1, &self.names.tag)),
            other => other,
        };
    }

    fn goes_on(&self) {
        drop(std::mem::take(&mut *self.begun()));
    }

    fn summary(&self) -> String {
        let what = match &self.separation {
            Separation::Database(_) => "a database for each lane",
            Separation::Schema(schemas) if schemas.has_roles() => "a schema and a role for each lane",
            Separation::Schema(_) => "a schema for each lane",
            Separation::Shared(shared) if shared.has_roles() => "your own schema for all lanes, a role for each",
            Separation::Shared(_) => "your own schema for all lanes",
        };
        let skipped = match &self.separation {
            Separation::Database(databases) => databases.skipped.names(),
            Separation::Shared(shared) => shared.skipped.names(),
            Separation::Schema(_) => Vec::new(),
        };
        let unwatched = match &self.separation {
            Separation::Database(databases) => databases.watching.unwatched.why(),
            Separation::Schema(schemas) => schemas.unwatched.why(),
            Separation::Shared(_) => None,
        };
        let unwatched = unwatched.map(|why| format!("; rows are not watched: {why}")).unwrap_or_default();
        let not_undone = match &self.separation {
            Separation::Database(databases) => databases.watching.renewals.as_ref().and_then(Renewals::impossible),
            _ => None,
        };
        let not_undone = not_undone.map(|why| format!("; copied again for each test: {why}")).unwrap_or_default();
        let without = if skipped.is_empty() {
            String::new()
        } else {
            format!("; without the setting {}, which the login may not repeat", skipped.join(", "))
        };
        let kept = self.kept_template().map(|kept| format!(" ({kept})")).unwrap_or_default();
        let made = if self.has_setup { format!(", as --setup made it{kept}") } else { String::new() };
        format!(
            "PostgreSQL {}, {what}{made} ({}{without}{unwatched}{not_undone})",
            self.facts.version_text, self.reason
        )
    }

    fn needs_template(&self) -> bool {
        match &self.separation {
            Separation::Database(databases) => databases.has_template(self.has_setup),
            Separation::Schema(schemas) => self.has_setup || schemas.has_source(),
            Separation::Shared(_) => false,
        }
    }

    fn plan(&self, place: Place) -> Vec<Resource> {
        let kinds: &[ResourceKind] = match &self.separation {
            Separation::Database(_) if place == Place::Run => {
                if matches!(*self.claimed(), Claimed::Passing(_)) {
                    &[ResourceKind::Database]
                } else {
                    &[]
                }
            }
            Separation::Schema(schemas) if place == Place::Run && schemas.is_watching() => &[ResourceKind::Schema],
            Separation::Schema(_) if place == Place::Run => &[],
            Separation::Shared(shared) if place == Place::Run && shared.no_capture.is_none() => &[ResourceKind::Schema],
            Separation::Shared(shared) if place.lane().is_some() && shared.has_roles() => &[ResourceKind::Role],
            Separation::Shared(_) => &[],
            Separation::Database(_) => &[ResourceKind::Database],
            // Without setup, the user's own schema is dumped as it stands: nothing is made.
            Separation::Schema(_) if place == Place::Template && !self.has_setup => &[],
            Separation::Schema(schemas) if schemas.has_roles() => &[ResourceKind::Role, ResourceKind::Schema],
            Separation::Schema(_) => &[ResourceKind::Schema],
        };
        let name = self.names.of(place);
        kinds
            .iter()
            .map(|kind| Resource { provider: self.id().to_owned(), kind: *kind, name: name.clone(), place })
            .collect()
    }

    fn create(&self, resource: &Resource) -> anyhow::Result<()> {
        let made = match &self.separation {
            Separation::Database(databases) => databases.create(resource.place, self.has_setup),
            Separation::Schema(schemas) if resource.kind == ResourceKind::Role => schemas.create_role(resource.place),
            Separation::Schema(schemas) if resource.place == Place::Run => schemas.create_log(),
            Separation::Schema(schemas) => schemas.create_schema(resource.place, self.has_setup),
            Separation::Shared(shared) if resource.kind == ResourceKind::Role => shared.create_role(resource.place),
            Separation::Shared(shared) => shared.watch(&resource.name),
        };
        let is_claims = resource.place == Place::Run && resource.kind == ResourceKind::Database;
        let made = made.and_then(|()| if is_claims { self.settle(&resource.name) } else { Ok(()) });
        made.with_context(|| format!("cannot make the {} {}", resource.kind.as_str(), resource.name))
    }

    fn verify(&self, place: Place) -> anyhow::Result<()> {
        match &self.separation {
            Separation::Database(_) => Ok(()),
            // Without setup nobody works in the template, and there is none.
            Separation::Schema(_) if place == Place::Run || self.plan(place).is_empty() => Ok(()),
            Separation::Schema(schemas) => schemas.verify(place),
            Separation::Shared(shared) => shared.verify(place),
        }
    }

    fn seal_template(&self) -> anyhow::Result<()> {
        match &self.separation {
            Separation::Database(databases) => databases.seal(),
            Separation::Schema(schemas) => schemas.dump(self.has_setup),
            Separation::Shared(_) => Ok(()),
        }
    }

    fn find_template(&self, recipe: &Recipe) -> anyhow::Result<Shelf> {
        match &self.separation {
            Separation::Database(databases) if self.has_setup => databases.find_template(recipe),
            _ => Ok(Shelf::None),
        }
    }

    fn keep_template(&self, limit: Option<u32>) -> anyhow::Result<Option<String>> {
        match &self.separation {
            Separation::Database(databases) => databases.keep_template(limit),
            _ => Ok(None),
        }
    }

    fn kept_template(&self) -> Option<String> {
        match &self.separation {
            Separation::Database(databases) => databases.kept.describe(),
            _ => None,
        }
    }

    fn wants_spare(&self) -> bool {
        matches!(&self.separation, Separation::Database(databases) if databases.wants_spare())
    }

    fn give_spare(&self) -> anyhow::Result<bool> {
        match &self.separation {
            Separation::Database(databases) => databases.give_spare(),
            _ => Ok(false),
        }
    }

    fn rows_named(&self, place: Place, trouble: &KeyTrouble) -> anyhow::Result<Vec<NamedRow>> {
        let home = self.names.of(Place::Run);
        let (database, home, lane) = match &self.separation {
            Separation::Database(_) => (self.names.of(place), capture::LANE_LOG.to_owned(), None),
            Separation::Schema(_) => {
                let lane = place.lane().and_then(|lane| i32::try_from(lane.0).ok());
                (self.address.database().to_owned(), home, lane)
            }
            Separation::Shared(_) => (self.address.database().to_owned(), home, None),
        };
        let mut client = self.server.visit(&database)?;
        let found = lookup::find(&mut client, &identifier(&home)?, lane, trouble);
        found.map_err(|error| readable(anyhow::Error::new(error)))
    }

    fn watches_rows(&self) -> bool {
        match &self.separation {
            Separation::Shared(shared) => shared.no_capture.is_none(),
            Separation::Database(_) | Separation::Schema(_) => true,
        }
    }

    fn renew(&self, place: Place, is_alone: bool) -> Renewal {
        match &self.separation {
            Separation::Database(databases) => databases.renew(place, is_alone),
            Separation::Schema(schemas) => schemas.renew(place, is_alone),
            Separation::Shared(_) => Renewal::default(),
        }
    }

    fn is_untouched(&self, lanes: &[Resource]) -> bool {
        match &self.separation {
            Separation::Database(databases) => databases.are_untouched(lanes).unwrap_or(false),
            Separation::Schema(_) | Separation::Shared(_) => false,
        }
    }

    fn address(&self, address: &Address, place: Place) -> Option<String> {
        let Address::Postgres(address) = address else { return None };
        if address.id() != self.id() {
            return None;
        }
        let name = self.names.of(place);
        let login = self.lane_login(place);
        let mut target = LaneTarget::default();
        match (&self.separation, &login) {
            (Separation::Database(_), _) => target.database = Some(&name),
            (_, Some((user, password))) => target.login = Some((user, password)),
            (Separation::Schema(_), None) => target.search_path = Some(&name),
            (Separation::Shared(_), None) => target.application = Some(&name),
        }
        Some(address.with(&target))
    }

    fn access(&self, place: Place) -> Access {
        let name = self.names.of(place);
        let mut user = self.address.user().to_owned();
        let mut password = self.address.password().map(|password| password.reveal().to_owned());
        let mut database = self.address.database().to_owned();
        let mut options = self.address.options().map(str::to_owned);
        match (&self.separation, self.lane_login(place)) {
            (Separation::Database(_), _) => database.clone_from(&name),
            (_, Some((its_user, its_password))) => {
                user = its_user;
                password = Some(its_password.reveal().to_owned());
            }
            (Separation::Schema(_), None) => {
                let own = options.map(|own| format!("{own} ")).unwrap_or_default();
                options = Some(format!("{own}-csearch_path={name}"));
            }
            (Separation::Shared(_), None) => {}
        }
        let hosts = self.address.hosts().join(",");
        let ports = self.address.ports().iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let mut variables = vec![
            ("PGHOST".to_owned(), hosts.clone()),
            ("PGPORT".to_owned(), ports.clone()),
            ("PGUSER".to_owned(), user.clone()),
            ("PGDATABASE".to_owned(), database.clone()),
            ("PGAPPNAME".to_owned(), name.clone()),
        ];
        variables.extend(password.clone().map(|password| ("PGPASSWORD".to_owned(), password)));
        variables.extend(options.map(|options| ("PGOPTIONS".to_owned(), options)));
        let mut names = vec![("host", hosts), ("port", ports), ("user", user), ("database", database)];
        names.extend(password.map(|password| ("password", password)));
        Access { variables, names, schema: name }
    }
}

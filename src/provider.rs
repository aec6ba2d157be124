//! Providers: what can make and remove resources for a lane, each in a file of its
//! own; a driver is imported there and nowhere else.

mod directory;
mod postgres;
mod servers;
mod sqlite;
mod store;

pub use directory::{Directories, read_label};
pub use postgres::{Guardian, Postgres, Server, read_rows};
pub use servers::{Programs, ServerFolders, Servers, stop_below};
pub use sqlite::{Sqlite, SqliteFiles};
pub use store::open as open_store;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use crate::address::Address;
use crate::failure::KeyTrouble;
use crate::mark::Mark;
use crate::mark::template::TemplateMark;
use crate::name::{Place, Tag};
use crate::recipe::Recipe;
use crate::touch::{Fate, Seen};

/// Something made, or about to be made, outside this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The provider's id: where it is.
    pub provider: String,
    /// What it is.
    pub kind: ResourceKind,
    /// Its name there; for files and directories the path.
    pub name: String,
    /// Whose it is.
    pub place: Place,
}

impl Resource {
    /// Whether it may be a log of rows that were written among the user's own.
    pub fn knows_rows(&self) -> bool {
        self.kind == ResourceKind::Schema && self.place == Place::Run
    }
}

/// Kinds of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is what it says")]
pub enum ResourceKind {
    Database,
    Schema,
    Role,
    File,
    Directory,
    Process,
}

impl ResourceKind {
    /// The kind that has this word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Database, Self::Schema, Self::Role, Self::File, Self::Directory, Self::Process]
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }

    /// The word for it, in the ledger and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Schema => "schema",
            Self::Role => "role",
            Self::File => "file",
            Self::Directory => "directory",
            Self::Process => "process",
        }
    }
}

/// What a provider puts into a worker's environment, besides the address itself.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Variables of the client library (`PGHOST`, …).
    pub variables: Vec<(String, String)>,
    /// The values of `{host}`, `{user}`, … in templates.
    pub names: Vec<(&'static str, String)>,
    /// The lane's schema, database or file: `ISOLANE_SCHEMA`.
    pub schema: String,
}

/// Where things are, and how they are undone. It needs no more than an address and names,
/// so it serves the dead as well. Every call may be repeated, with the same result.
pub trait Site: Debug + Send + Sync {
    /// Where this is, without a password; one word for the ledger.
    fn id(&self) -> &str;
    /// Stops whatever the dead run of this tag may still be making here.
    fn take_over(&self, _dead: &Tag) -> anyhow::Result<()> {
        Ok(())
    }
    /// Ends whatever still works in a resource, such as sessions of a dead process.
    fn disconnect(&self, resource: &Resource) -> anyhow::Result<()>;
    /// Removes it; what is not there is removed.
    fn remove(&self, resource: &Resource) -> anyhow::Result<()>;
    /// Hands over what was seen of rows written in or by `resource` since it was asked last,
    /// except for what is younger than `margin`.
    fn harvest(&self, _resource: &Resource, _margin: Duration, _sink: &mut Sink<'_>) -> anyhow::Result<()> {
        Ok(())
    }
    /// Removes the rows that `resource` knows the run to have made among the user's own.
    fn remove_rows(&self, _resource: &Resource) -> anyhow::Result<Rows> {
        Ok(Rows::default())
    }
    /// Takes `resource`, which stays, off from what is not the run's own.
    fn let_go(&self, _resource: &Resource) -> anyhow::Result<()> {
        Ok(())
    }
}

/// A row that an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRow {
    /// The table.
    pub kind: String,
    /// The primary key, as JSON.
    pub key: String,
}

/// What takes in what was seen of rows.
pub type Sink<'a> = dyn FnMut(Seen) -> anyhow::Result<()> + 'a;

/// What became of the rows that a run made among the user's own.
#[derive(Debug, Default)]
pub struct Rows {
    /// Whether the log was there that tells of them; else they were removed before.
    pub is_known: bool,
    /// Whether the server broke down meanwhile, and lost what it had not told yet.
    pub is_broken: bool,
    /// How many were removed.
    pub removed: u64,
    /// Those that were not.
    pub left: Vec<Fate>,
    /// How many of the removed others had changed meanwhile, by table.
    pub changed: Vec<(String, u64)>,
}

impl Rows {
    /// What the user should know of what was removed and what was not.
    pub fn notices(&self) -> Vec<String> {
        let plural = |n: u64| if n == 1 { "1 row".to_owned() } else { format!("{n} rows") };
        let mut notices: Vec<_> = self
            .changed
            .iter()
            .map(|(kind, n)| {
                format!(
                    "{} of {kind} that the run had made, others had changed meanwhile; they are removed",
                    plural(*n)
                )
            })
            .collect();
        if self.is_broken {
            notices.push(
                "the server broke down during the run; rows written in its last second before are not known and may stay"
                    .to_owned(),
            );
        }
        let stays: Vec<_> = self.left.iter().filter(|fate| fate.stays).collect();
        if let Some(first) = stays.first() {
            let n = u64::try_from(stays.len()).unwrap_or(0);
            notices.push(format!("{} left alone, such as {} {}: {}", plural(n), first.kind, first.key, first.why));
        }
        notices
    }

    /// An error where some could not be removed: which, and why.
    pub fn ensure_gone(&self) -> anyhow::Result<()> {
        let stuck: Vec<_> = self.left.iter().filter(|fate| !fate.stays).collect();
        let Some(first) = stuck.first() else { return Ok(()) };
        let rows = if stuck.len() == 1 { "1 row".to_owned() } else { format!("{} rows", stuck.len()) };
        anyhow::bail!("{rows} of the run stay, such as {} {}: {}", first.kind, first.key, first.why)
    }
}

/// Something that a test left running or pending in its lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// What it is: `transaction`, `prepared transaction`, `replication slot`.
    pub kind: &'static str,
    /// Which: its name, or the last statement of who had it open.
    pub name: String,
}

/// What came of making a lane as its template again.
#[derive(Clone, Debug, Default)]
pub struct Renewal {
    /// What had to be ended before.
    pub leftovers: Vec<Leftover>,
    /// Whether and why the lane has to be made again; nothing where it is as its template now.
    pub again: Option<Again>,
}

/// Why a lane has to be made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Again {
    /// For what was done in it.
    Changed(String),
    /// It always has to here, and whoever is in it is ended.
    Always,
    /// It always has to here, and whoever is in it goes on with what is made.
    InPlace,
}

impl Renewal {
    /// It has to be made again, for what was done in it.
    pub fn changed(why: impl Into<String>) -> Self {
        Self { leftovers: Vec::new(), again: Some(Again::Changed(why.into())) }
    }

    /// Adds something that a test left.
    pub fn left(&mut self, kind: &'static str, name: &str) {
        self.leftovers.push(Leftover { kind, name: name.to_owned() });
    }
}

/// A site that others may reach as well, and where marks tell whose things are.
pub trait Census: Site {
    /// Everything that carries a run's mark, under that run's name.
    fn marked(&self) -> anyhow::Result<Vec<(Resource, Mark)>>;
    /// Waits until everybody who lives has said so, where the site has just come up.
    fn settle(&self) -> anyhow::Result<()>;
    /// Those of these tags whose runs say that they live.
    fn living(&self, among: &BTreeSet<Tag>) -> anyhow::Result<BTreeSet<Tag>>;
}

/// How it stands with a pristine state that outlives its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shelf {
    /// None is kept here.
    None,
    /// Another run is making or removing it: ask again.
    Busy,
    /// It is there, and lanes are made from it.
    Found,
    /// This run is to make it, and others wait.
    Wanted,
}

/// A template that is kept on a server.
#[derive(Clone, Debug)]
pub struct KeptTemplate {
    /// The database.
    pub name: String,
    /// What it says of itself.
    pub mark: TemplateMark,
    /// Its size in bytes, where the login may ask.
    pub size: Option<i64>,
    /// Whether a copy is ready to be a run's first lane.
    pub has_spare: bool,
    /// Tags of the runs that use it.
    pub used_by: Vec<String>,
}

/// What became of a template that was to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Removed,
    /// Runs with these tags use it, and it stays.
    InUse(Vec<String>),
}

/// A source of lanes. Every call is synchronous and may be repeated after a crash, with
/// the same result.
pub trait Provider: Site {
    /// Says where things are made that the run lives, to who cannot see its lock. It holds
    /// until this process ends.
    fn claim(&self) -> anyhow::Result<()> {
        Ok(())
    }
    /// The command starts next. Where the user's login has few places on the server, those that
    /// isolane's own sessions have taken are free again when this comes back.
    fn make_room(&self) {}
    /// The start is over: what was held open to make it quick may go.
    fn goes_on(&self) {}
    /// What it is and how it separates lanes, for the summary.
    fn summary(&self) -> String;
    /// Whether lanes are made from a template of the run, which must be made first.
    fn needs_template(&self) -> bool;
    /// What `place` consists of, in the order of making.
    fn plan(&self, place: Place) -> Vec<Resource>;
    /// Makes one of them, and marks it where that is possible.
    fn create(&self, resource: &Resource) -> anyhow::Result<()>;
    /// Proves that a worker of `place` will find what it should, once all is made.
    fn verify(&self, place: Place) -> anyhow::Result<()>;
    /// Makes the template ready to be copied; nobody works in it from now on.
    fn seal_template(&self) -> anyhow::Result<()>;
    /// Looks for a template that was made by this recipe; lanes are made from it then.
    fn find_template(&self, _recipe: &Recipe) -> anyhow::Result<Shelf> {
        Ok(Shelf::None)
    }
    /// Keeps the sealed template for later runs, and no more than `limit` of them; or, without a
    /// limit, makes it for this run only. Comes back with what the user should know.
    fn keep_template(&self, _limit: Option<u32>) -> anyhow::Result<Option<String>> {
        Ok(None)
    }
    /// The kept template that lanes are made from, in words.
    fn kept_template(&self) -> Option<String> {
        None
    }
    /// Whether the next run would be glad of a copy to begin with.
    fn wants_spare(&self) -> bool {
        false
    }
    /// Leaves it, made by this run, to the next; whether it is this one's no more comes back.
    fn give_spare(&self) -> anyhow::Result<bool> {
        Ok(false)
    }
    /// The rows that the error of a test in `place` is about.
    fn rows_named(&self, _place: Place, _trouble: &KeyTrouble) -> anyhow::Result<Vec<NamedRow>> {
        Ok(Vec::new())
    }
    /// Whether rows may be watched here.
    fn watches_rows(&self) -> bool {
        false
    }
    /// Makes `place` as its template again, as far as that goes without making it again. Where
    /// nobody of the lane `is_alone` with it, whoever works in it is ended.
    fn renew(&self, _place: Place, _is_alone: bool) -> Renewal {
        Renewal::default()
    }
    /// Whether it is certain that nobody but isolane ever came to any of these lanes.
    fn is_untouched(&self, lanes: &[Resource]) -> bool;
    /// The user's `address` as a worker of `place` gets it; `None` if it is not of here.
    fn address(&self, address: &Address, place: Place) -> Option<String>;
    /// What a worker of `place` gets besides.
    fn access(&self, place: Place) -> Access;
}

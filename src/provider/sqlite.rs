//! An SQLite file for each lane: empty, or a copy of the user's file as it stands.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::{Access, Provider, Renewal, Resource, ResourceKind, Site};
use crate::address::{Address, SqliteAddress};
use crate::name::{Place, Tag};

/// The lanes of one SQLite file.
#[derive(Debug)]
pub struct Sqlite {
    files: SqliteFiles,
    source: SqliteAddress,
    /// Where lanes' files are.
    root: PathBuf,
    tag: Tag,
    /// Tells the files of several databases of one run apart.
    suffix: String,
    has_setup: bool,
    /// How lanes' files look that nobody has written into.
    pristine: Mutex<HashMap<Place, Signature>>,
}

impl Sqlite {
    /// Looks at the user's file; it may be missing, as before a first migration.
    pub fn open(
        source: &SqliteAddress,
        root: &Path,
        tag: &Tag,
        suffix: String,
        has_setup: bool,
    ) -> anyhow::Result<Self> {
        let path = source.path();
        let files = SqliteFiles::new(format!("{}{}", SqliteFiles::SCHEME, path.display()));
        let pristine = Mutex::default();
        let (root, tag) = (root.to_owned(), tag.clone());
        let sqlite = Self { files, source: source.clone(), root, tag, suffix, has_setup, pristine };
        if path.is_dir() {
            bail!("cannot read {} as an SQLite database: it is a folder", path.display());
        }
        if path.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"file:")) {
            bail!("cannot read the address of {}: give the file's path instead of a URI", path.display());
        }
        if sqlite.has_source() {
            // Found out now, not when the first worker comes.
            let check = open_source(path)
                .and_then(|db| db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)));
            if let Err(error) = check {
                bail!("cannot read {} as an SQLite database: {error}", path.display());
            }
        }
        Ok(sqlite)
    }

    fn has_source(&self) -> bool {
        fs::metadata(self.source.path()).is_ok_and(|meta| meta.is_file() && meta.len() > 0)
    }

    /// Notes that the file of this place is as it should be.
    fn is_pristine(&self, place: Place) {
        if let Some(signature) = Signature::of(&self.path(place)) {
            self.pristine.lock().unwrap_or_else(PoisonError::into_inner).insert(place, signature);
        }
    }

    /// Puts the template's content into a file that may be open: SQLite itself does it, so that
    /// connections see it as any other change.
    fn restore(&self, path: &Path) -> rusqlite::Result<()> {
        let template = if self.needs_template() {
            Connection::open_with_flags(self.path(Place::Template), OpenFlags::SQLITE_OPEN_READ_ONLY)?
        } else {
            Connection::open_in_memory()?
        };
        let mut lane = Connection::open(path)?;
        lane.busy_timeout(LOCKED)?;
        let backup = Backup::new(&template, &mut lane)?;
        let began = Instant::now();
        loop {
            match backup.step(-1)? {
                StepResult::Done => return Ok(()),
                _ if began.elapsed() > LOCKED => {
                    return Err(rusqlite::Error::SqliteFailure(
                        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
                        Some("a connection of the worker holds a lock on it".to_owned()),
                    ));
                }
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn path(&self, place: Place) -> PathBuf {
        self.root.join(format!("{}{}.db", place.schema(&self.tag), self.suffix))
    }
}

/// Opens the user's file, to read it and to leave everything as it was.
fn open_source(path: &Path) -> rusqlite::Result<Connection> {
    // Who only reads a file in WAL mode puts companions beside it and may not take them away
    // again. Where there are none, there is nothing to be written back either.
    if !companion(path, "-wal").exists() {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        if let Ok(db) = Connection::open_with_flags(path, flags) {
            return Ok(db);
        }
    }
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

/// How long a lock of the worker's is waited for.
const LOCKED: Duration = Duration::from_secs(1);

/// What tells cheaply that nobody wrote into a file: its length and time, its change counter (at
/// byte 24 of its head, <https://sqlite.org/fileformat.html>), and the length of its write-ahead log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    length: u64,
    modified: Option<SystemTime>,
    counter: [u8; 4],
    log: u64,
}

impl Signature {
    fn of(path: &Path) -> Option<Self> {
        let file = fs::File::open(path).ok()?;
        let meta = file.metadata().ok()?;
        let mut counter = [0; 4];
        // A file without a page has none.
        let _ = file.read_exact_at(&mut counter, 24);
        let log = fs::metadata(companion(path, "-wal")).map_or(0, |meta| meta.len());
        Some(Self { length: meta.len(), modified: meta.modified().ok(), counter, log })
    }
}

/// The companions that SQLite puts beside a file.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

fn companion(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Files of SQLite, whoever made them.
#[derive(Debug)]
pub struct SqliteFiles {
    id: String,
}

impl SqliteFiles {
    /// The scheme that every id begins with.
    pub const SCHEME: &'static str = "sqlite:";

    /// The files that the ledger has under this id.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into() }
    }
}

impl Site for SqliteFiles {
    fn id(&self) -> &str {
        &self.id
    }

    fn disconnect(&self, _resource: &Resource) -> anyhow::Result<()> {
        // The locks of a dead process are gone with it.
        Ok(())
    }

    fn remove(&self, resource: &Resource) -> anyhow::Result<()> {
        let path = Path::new(&resource.name);
        let files = std::iter::once(path.to_owned()).chain(COMPANIONS.map(|ending| companion(path, ending)));
        for file in files {
            match fs::remove_file(&file) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => bail!("cannot remove {}: {e}", file.display()),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Site for Sqlite {
    fn id(&self) -> &str {
        self.files.id()
    }

    fn disconnect(&self, resource: &Resource) -> anyhow::Result<()> {
        self.files.disconnect(resource)
    }

    fn remove(&self, resource: &Resource) -> anyhow::Result<()> {
        self.files.remove(resource)
    }
}

impl Provider for Sqlite {
    fn summary(&self) -> String {
        if self.has_setup {
            "SQLite, a file for each lane, as --setup made it".to_owned()
        } else if self.has_source() {
            format!("SQLite, a copy of {} for each lane", self.source.path().display())
        } else {
            "SQLite, a file for each lane".to_owned()
        }
    }

    fn needs_template(&self) -> bool {
        // One consistent copy is taken through SQLite itself, which knows of writers and
        // write-ahead logs; lanes are then plain copies of a file that nobody writes.
        self.has_setup || self.has_source()
    }

    fn plan(&self, place: Place) -> Vec<Resource> {
        if place == Place::Run {
            return Vec::new();
        }
        let name = self.path(place).display().to_string();
        vec![Resource { provider: self.id().to_owned(), kind: ResourceKind::File, name, place }]
    }

    fn create(&self, resource: &Resource) -> anyhow::Result<()> {
        let path = Path::new(&resource.name);
        self.remove(resource)?;
        // Setup builds from nothing, as on a new machine.
        if resource.place == Place::Template && !self.has_setup {
            let source = open_source(self.source.path())?;
            source.busy_timeout(Duration::from_secs(30))?;
            return source
                .backup("main", path, None::<fn(rusqlite::backup::Progress)>)
                .with_context(|| format!("cannot copy {}", self.source.path().display()));
        }
        if resource.place != Place::Template && self.needs_template() {
            let template = self.path(Place::Template);
            reflink_copy::reflink_or_copy(&template, path)
                .with_context(|| format!("cannot copy {}", template.display()))?;
        } else {
            // An empty file is an empty database; some drivers want it to be there.
            fs::write(path, "").with_context(|| format!("cannot make {}", path.display()))?;
        }
        self.is_pristine(resource.place);
        Ok(())
    }

    fn verify(&self, _place: Place) -> anyhow::Result<()> {
        Ok(())
    }

    fn renew(&self, place: Place, _is_alone: bool) -> Renewal {
        let path = self.path(place);
        let known = self.pristine.lock().unwrap_or_else(PoisonError::into_inner).get(&place).copied();
        if known.is_some() && known == Signature::of(&path) {
            return Renewal::default();
        }
        match self.restore(&path) {
            Ok(()) => {
                self.is_pristine(place);
                Renewal::default()
            }
            // A connection of the worker's holds it. Whoever has it open goes on with what is gone.
            Err(error) => Renewal::changed(format!("it cannot be put back ({error})")),
        }
    }

    fn seal_template(&self) -> anyhow::Result<()> {
        // What setup left in a write-ahead log belongs into the file that is copied.
        let path = self.path(Place::Template);
        let db = Connection::open(&path)?;
        db.busy_timeout(Duration::from_secs(5))?;
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    fn is_untouched(&self, _lanes: &[Resource]) -> bool {
        // Who only reads leaves no trace in a file.
        false
    }

    fn address(&self, address: &Address, place: Place) -> Option<String> {
        let Address::Sqlite(address) = address else { return None };
        (address.path() == self.source.path()).then(|| address.with_path(&self.path(place)))
    }

    fn access(&self, place: Place) -> Access {
        let path = self.path(place).display().to_string();
        Access { variables: Vec::new(), names: vec![("database", path.clone())], schema: path }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Variables;
    use crate::name::{Lane, RunId};

    #[test]
    fn a_lane_has_what_the_users_file_has_even_when_it_is_in_the_write_ahead_log() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let own = dir.path().join("shop.db");
        let writer = Connection::open(&own).expect("open");
        writer
            .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(n); INSERT INTO t VALUES (1), (2)")
            .expect("seed");
        let address =
            Address::parse(&format!("sqlite:///{}", own.display()), &Variables::new(), dir.path()).expect("address");
        let Address::Sqlite(source) = &address else { panic!("{address:?}") };
        let tag = RunId::new(0).tag();
        let sqlite = Sqlite::open(source, dir.path(), &tag, String::new(), false).expect("provider");
        for place in [Place::Template, Place::Lane(Lane(0))] {
            sqlite.plan(place).iter().for_each(|resource| sqlite.create(resource).expect("created"));
            if place == Place::Template {
                sqlite.seal_template().expect("sealed");
            }
        }
        let lane = sqlite.plan(Place::Lane(Lane(0))).remove(0);
        let count: i64 = Connection::open(&lane.name)
            .and_then(|db| db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)))
            .expect("count");
        assert_eq!(count, 2);
        sqlite.remove(&lane).expect("removed");
        sqlite.remove(&lane).expect("removed twice");
        assert!(own.exists() && !Path::new(&lane.name).exists());
    }
}

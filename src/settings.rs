//! Settings of a run: defaults, below the file, below the environment, below flags,
//! folded once into one plain value. Nothing reads the environment after this.

pub mod env_template;
pub mod file;
mod inputs;
mod lease_server;
pub mod pool;
mod track;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::address::{Address, SqliteAddress, Variables};
use crate::error::Stop;
use crate::secret::Secret;
use env_template::EnvTemplate;
pub use inputs::Inputs;
pub use lease_server::LeaseServer;
pub use pool::PoolSettings;
pub use track::Track;

/// What separates lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Isolation {
    /// A database for each lane where the login may create one, else a schema.
    #[default]
    Auto,
    /// A database for each lane.
    Database,
    /// A schema and a login role for each lane.
    Schema,
    /// A PostgreSQL server for each lane, started from its programs on this machine.
    Server,
    /// The user's own schema, with a login role for each lane: what tests write there is
    /// attributed, and what they made is removed.
    Shared,
    /// Nothing: names, prefix and ledger only.
    None,
}

/// How often a lane starts from the pristine state again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Fresh {
    /// Once: it is as its worker leaves it.
    Run,
    /// For each worker; one that comes after a crash finds it pristine as well.
    #[default]
    Worker,
    /// For each test: what the last one did is undone before the next begins.
    Test,
}

/// Whether what a run made is left for looking into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Keep {
    /// It is removed.
    #[default]
    Never,
    /// It is left when the command failed.
    Failed,
    /// It is left.
    Always,
}

/// What makes a run fail whose tests passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FailOn {
    /// Tests of two workers met over a row.
    Collision,
    /// A test left rows behind.
    Leak,
}

/// The wrapped tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Runner {
    /// pytest, with or without pytest-xdist.
    Pytest,
    /// cargo-nextest.
    Nextest,
    /// cargo test.
    CargoTest,
    /// Any other command.
    Plain,
}

impl Runner {
    /// The name, as it is written for `--runner` and in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pytest => "pytest",
            Self::Nextest => "nextest",
            Self::CargoTest => "cargo-test",
            Self::Plain => "plain",
        }
    }

    /// What its workers' names begin with, before a number.
    pub fn worker_word(self) -> &'static str {
        match self {
            Self::Pytest => "gw",
            Self::Nextest | Self::CargoTest => "slot",
            Self::Plain => "w",
        }
    }
}

/// How records of one kind are removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleaner {
    /// A command for `sh -c`; `{key}` stands for the record's key, quoted.
    pub run: String,
}

/// The command that makes the pristine state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// For `sh -c`.
    pub command: String,
    /// Where it runs: beside the file that names it, or where the user is.
    pub folder: PathBuf,
}

/// What one source says; what it leaves open, the one below decides.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "each is the option of its name")]
pub struct Choices {
    pub database_urls: Vec<String>,
    pub isolation: Option<Isolation>,
    pub setup: Option<Setup>,
    pub inputs: Option<Inputs>,
    pub keep_templates: Option<u32>,
    pub workers: Option<u32>,
    pub keep: Option<Keep>,
    pub fresh: Option<Fresh>,
    pub url_vars: Vec<String>,
    pub ledger: Option<PathBuf>,
    pub store: Option<String>,
    pub runner: Option<Runner>,
    pub quiet: Option<bool>,
    pub reports: Vec<PathBuf>,
    pub env: Vec<(String, EnvTemplate)>,
    pub cleaners: BTreeMap<String, Cleaner>,
    pub track: Option<Track>,
    pub fail_on: Vec<FailOn>,
    pub pools: Vec<PoolSettings>,
    pub leases: Option<String>,
}

impl Choices {
    fn over(self, lower: Self) -> Self {
        let either = |upper: Vec<String>, lower| if upper.is_empty() { lower } else { upper };
        Self {
            database_urls: either(self.database_urls, lower.database_urls),
            isolation: self.isolation.or(lower.isolation),
            // Files that another command reads say nothing of this one.
            inputs: if self.setup.is_some() { self.inputs } else { self.inputs.or(lower.inputs) },
            setup: self.setup.or(lower.setup),
            keep_templates: self.keep_templates.or(lower.keep_templates),
            workers: self.workers.or(lower.workers),
            keep: self.keep.or(lower.keep),
            fresh: self.fresh.or(lower.fresh),
            url_vars: either(self.url_vars, lower.url_vars),
            ledger: self.ledger.or(lower.ledger),
            store: self.store.or(lower.store),
            runner: self.runner.or(lower.runner),
            quiet: self.quiet.or(lower.quiet),
            reports: if self.reports.is_empty() { lower.reports } else { self.reports },
            // The later of two of one name wins.
            env: lower.env.into_iter().chain(self.env).collect(),
            cleaners: lower.cleaners.into_iter().chain(self.cleaners).collect(),
            track: self.track.or(lower.track),
            fail_on: if self.fail_on.is_empty() { lower.fail_on } else { self.fail_on },
            pools: lower.pools.into_iter().chain(self.pools).collect(),
            leases: self.leases.or(lower.leases),
        }
    }
}

/// A variable that holds addresses, and the addresses that it holds for the user.
#[derive(Clone, Debug)]
pub struct UrlVariable {
    /// Its name.
    pub name: String,
    /// The user's addresses, one or more.
    pub addresses: Vec<Address>,
    /// Its text in the user's own environment, if it is set there.
    pub own: Option<String>,
}

/// The address of a store of leases.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreAddress {
    /// The address; a password may be in it.
    pub url: String,
    /// The flag or the variable that says so.
    pub place: &'static str,
}

impl std::fmt::Debug for StoreAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.place)
    }
}

impl StoreAddress {
    /// The flag that names a store.
    pub const FLAG: &'static str = "--store";
    const VARIABLE: &'static str = "ISOLANE_STORE";
}

/// All that a run needs to know before it starts.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each is the option of its name, decided")]
pub struct Settings {
    pub isolation: Isolation,
    pub setup: Option<Setup>,
    pub inputs: Option<Inputs>,
    /// How many templates of one login are kept on a server.
    pub keep_templates: u32,
    pub workers: u32,
    pub keep: Keep,
    pub fresh: Fresh,
    pub runner: Option<Runner>,
    pub quiet: bool,
    /// Files, absolute.
    pub reports: Vec<PathBuf>,
    pub env: Vec<(String, EnvTemplate)>,
    pub cleaners: BTreeMap<String, Cleaner>,
    pub track: Track,
    pub fail_on: Vec<FailOn>,
    pub pools: Vec<PoolSettings>,
    /// Where leases are asked for, where it is not the ledger.
    pub leases: Option<LeaseServer>,
    /// The ledger's file, absolute.
    pub ledger: PathBuf,
    /// The database that keeps pools and leases in place of the ledger.
    pub store: Option<StoreAddress>,
    /// Variables with addresses; the first is the one that `{database_url}` means.
    pub url_variables: Vec<UrlVariable>,
    /// The command that removes what a run with these settings could not, as a shell takes it.
    pub sweep_command: String,
    /// Whether nobody named a database, so that lanes get the embedded default.
    pub embedded: bool,
    /// The working directory.
    pub cwd: PathBuf,
    /// The environment, as far as it is text.
    pub variables: Variables,
}

impl Settings {
    /// All addresses of the variables.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.url_variables.iter().flat_map(|variable| &variable.addresses)
    }

    /// Where directories of runs go: the user's temporary folder, unless sockets and cargo's
    /// runners cannot live there.
    pub fn folder_of_runs(&self) -> PathBuf {
        // `sun_path` of unix(7) ends at 107 bytes, and cargo splits a runner at spaces.
        // Root's servers run under another user, who must get to them.
        let for_others = self.isolation == Isolation::Server && nix::unistd::geteuid().is_root();
        let usable = |folder: &Path| {
            let fits = folder.as_os_str().len() < 70 && (!for_others || is_open_to_others(folder));
            folder.is_dir() && fits && folder.to_str().is_some_and(|text| !text.contains(char::is_whitespace))
        };
        let own = self.variables.get("TMPDIR").map(|folder| self.cwd.join(folder));
        own.filter(|folder| usable(folder)).unwrap_or_else(|| PathBuf::from("/tmp"))
    }

    /// Folds `flags` over the environment over the file at `config` (or the one found)
    /// over the defaults.
    pub fn fold(
        flags: Choices,
        config: Option<&Path>,
        environment: impl Iterator<Item = (OsString, OsString)>,
        cwd: &Path,
    ) -> anyhow::Result<Self> {
        let variables: Variables =
            environment.filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
        let file = match config {
            Some(path) => Some(cwd.join(path)),
            None => file::find(cwd),
        };
        let from_file = match &file {
            Some(path) => file::read(path).map_err(|e| Stop::usage(format!("{}: {e}", path.display())))?,
            None => Choices::default(),
        };
        let from_environment = Choices {
            ledger: variables.get("ISOLANE_LEDGER").filter(|v| !v.is_empty()).map(PathBuf::from),
            leases: variables.get("ISOLANE_LEASES").filter(|v| !v.is_empty()).cloned(),
            ..Choices::default()
        };
        let flag_urls = flags.database_urls.clone();
        let of_flag = flags.store.clone().map(|url| StoreAddress { url, place: StoreAddress::FLAG });
        let of_variable = variables.get(StoreAddress::VARIABLE).filter(|url| !url.is_empty()).cloned();
        let store = of_flag.or(of_variable.map(|url| StoreAddress { url, place: "the variable ISOLANE_STORE" }));
        let sweep_command = sweep_command(&flags, config, &variables, cwd);
        let file_urls = from_file.database_urls.clone();
        let all = flags.over(from_environment).over(from_file);
        let folder = file.as_deref().and_then(Path::parent).unwrap_or(cwd);
        let ledger = all.ledger.unwrap_or_else(|| folder.join(file::LEDGER));
        let isolation = all.isolation.unwrap_or_default();
        let server = |url: String| {
            LeaseServer::parse(&url, variables.get("ISOLANE_TOKEN"))
                .map_err(|why| Stop::usage(format!("--leases, ISOLANE_LEASES or `leases` in {}: {why}", file::NAME)))
        };
        let leases = all.leases.map(server).transpose()?;
        let (url_variables, embedded) =
            url_variables(&flag_urls, &file_urls, &all.url_vars, &variables, cwd, isolation)?;
        Ok(Self {
            isolation,
            setup: all.setup.map(|setup| Setup { folder: cwd.join(setup.folder), ..setup }),
            inputs: all.inputs.map(|inputs| Inputs { folder: cwd.join(inputs.folder), ..inputs }),
            keep_templates: all.keep_templates.unwrap_or(inputs::KEPT),
            workers: all.workers.unwrap_or(1),
            keep: all.keep.unwrap_or_default(),
            fresh: all.fresh.unwrap_or_default(),
            runner: all.runner,
            quiet: all.quiet.unwrap_or(false),
            reports: all.reports.iter().map(|report| cwd.join(report)).collect(),
            env: all.env,
            cleaners: all.cleaners,
            track: all.track.unwrap_or_default(),
            fail_on: all.fail_on,
            pools: all.pools.into_iter().map(|pool| pool.within(cwd)).collect(),
            leases,
            ledger: cwd.join(ledger),
            store,
            url_variables,
            embedded,
            sweep_command,
            cwd: cwd.to_owned(),
            variables,
        })
    }

    /// Every password that is known from addresses. One that is the name of its own login
    /// or database is no secret, and masking that word would only garble messages.
    pub fn secrets(&self) -> Vec<Secret> {
        let token = self.leases.iter().filter_map(|server| server.token.clone());
        self.url_variables
            .iter()
            .flat_map(|v| &v.addresses)
            .filter_map(|address| match address {
                Address::Postgres(postgres) => postgres
                    .password()
                    .cloned()
                    .filter(|password| ![postgres.user(), postgres.database()].contains(&password.reveal())),
                Address::Sqlite(_) | Address::InMemory(_) => None,
            })
            .chain(token)
            .collect()
    }
}

/// Whether every user of the machine may pass through this folder.
fn is_open_to_others(folder: &Path) -> bool {
    let is_open = |folder: &Path| std::fs::metadata(folder).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0);
    std::fs::canonicalize(folder).is_ok_and(|folder| folder.ancestors().all(is_open))
}

/// `isolane sweep` for what a run with these flags leaves; no password is in it.
fn sweep_command(flags: &Choices, config: Option<&Path>, variables: &Variables, cwd: &Path) -> String {
    let mut words = vec!["isolane".to_owned(), "sweep".to_owned(), "--apply".to_owned()];
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    for text in &flags.database_urls {
        if let Ok(Address::Postgres(postgres)) = Address::parse(text, variables, cwd) {
            add("--database-url", postgres.id());
        }
    }
    for name in &flags.url_vars {
        add("--url-var", name.clone());
    }
    if let Some(path) = &flags.ledger {
        add("--ledger", path.display().to_string());
    }
    if let Some(path) = config {
        add("--config", path.display().to_string());
    }
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
}

/// Which variables hold which addresses: the flag first, then the variable's own text,
/// then `DATABASE_URL`'s, then the file's, then the embedded default.
fn url_variables(
    flag: &[String],
    file: &[String],
    names: &[String],
    variables: &Variables,
    cwd: &Path,
    isolation: Isolation,
) -> anyhow::Result<(Vec<UrlVariable>, bool)> {
    let own = |name: &str| variables.get(name).filter(|text| !text.trim().is_empty());
    let parse = |text: &str, place: &str| {
        Address::parse_list(text, variables, cwd)
            .map_err(|bad| Stop::not_started(format!("the address in {place} {bad}")))
    };
    let mut all_names: Vec<&str> = names.iter().map(String::as_str).collect();
    if !all_names.contains(&"DATABASE_URL") {
        all_names.push("DATABASE_URL");
    }
    if let Some(name) = all_names.iter().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err(Stop::usage(format!("--url-var {name:?} is no name of a variable")));
    }
    let base = if !flag.is_empty() {
        Some((flag.join(","), "--database-url".to_owned()))
    } else if let Some(text) = own("DATABASE_URL") {
        Some((text.clone(), "the variable DATABASE_URL".to_owned()))
    } else if let Some((name, text)) = names.iter().find_map(|name| Some((name, own(name)?))) {
        Some((text.clone(), format!("the variable {name}")))
    } else if !file.is_empty() {
        Some((file.join(","), format!("{} (database-url)", file::NAME)))
    } else {
        None
    };
    let embedded = base.is_none();
    let base = match base {
        Some((text, place)) => parse(&text, &place)?,
        // With the names that libpq takes when it is told none.
        None if isolation == Isolation::Server => parse("postgresql://", "the environment (PGHOST, PGPORT, …)")?,
        None => vec![Address::Sqlite(SqliteAddress::embedded())],
    };
    let variables = all_names.into_iter().map(|name| {
        let addresses = match own(name) {
            // The flag names the database outright, whatever stands in the environment.
            Some(text) if flag.is_empty() => parse(text, &format!("the variable {name}"))?,
            _ => base.clone(),
        };
        Ok(UrlVariable { name: name.to_owned(), addresses, own: own(name).cloned() })
    });
    Ok((variables.collect::<anyhow::Result<_>>()?, embedded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold(flags: Choices, variables: &[(&str, &str)], file: &str) -> anyhow::Result<Settings> {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join(file::NAME), file).expect("write");
        let environment = variables.iter().map(|(k, v)| (OsString::from(k), OsString::from(v)));
        Settings::fold(flags, None, environment, dir.path())
    }

    fn addresses(settings: &Settings) -> Vec<(String, String)> {
        settings.url_variables.iter().map(|v| (v.name.clone(), format!("{:?}", v.addresses))).collect()
    }

    #[test]
    fn the_flag_wins_over_the_variable_and_the_variable_over_the_file() {
        let file = "database-url = 'postgresql://u@file/x'\nisolation = 'none'";
        let variable = ("DATABASE_URL", "postgresql://u@variable/x");
        let flags = Choices { database_urls: vec!["postgresql://u@flag/x".to_owned()], ..Choices::default() };
        let place = |flags, variables: &[_]| addresses(&fold(flags, variables, file).expect("settings"))[0].1.clone();
        assert!(place(flags, &[variable]).contains("flag"));
        assert!(place(Choices::default(), &[variable]).contains("variable"));
        assert!(place(Choices::default(), &[]).contains("file"));
        assert_eq!(fold(Choices::default(), &[], file).expect("settings").isolation, Isolation::None);
    }

    #[test]
    fn each_url_variable_has_its_own_addresses_and_falls_back_to_the_common_one() {
        let flags = Choices { url_vars: vec!["A".to_owned(), "B".to_owned()], ..Choices::default() };
        let settings =
            fold(flags, &[("A", "postgresql://u@a/x,postgresql://u@b/x"), ("DATABASE_URL", "postgresql://u@c/x")], "")
                .expect("settings");
        let found = addresses(&settings);
        assert_eq!(
            found[0],
            ("A".to_owned(), "[Postgres(postgresql://u@a:5432/x), Postgres(postgresql://u@b:5432/x)]".to_owned())
        );
        assert_eq!(found[1], ("B".to_owned(), "[Postgres(postgresql://u@c:5432/x)]".to_owned()));
        assert_eq!(found[2].0, "DATABASE_URL");
    }

    #[test]
    fn without_an_address_the_default_is_embedded() {
        assert!(fold(Choices::default(), &[("DATABASE_URL", "")], "").expect("settings").embedded);
    }

    #[test]
    fn a_bad_address_is_named_by_its_place_and_never_shown() {
        let error =
            fold(Choices::default(), &[("DATABASE_URL", "postgresql://a:topsecret@h:x/y")], "").expect_err("bad");
        let text = error.to_string();
        assert!(text.contains("the variable DATABASE_URL") && !text.contains("topsecret"), "{text}");
    }
}

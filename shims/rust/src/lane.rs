//! Who a test is, from its environment.

use std::io;

/// The place that a test runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// The run's id, a UUID.
    pub run_id: String,
    /// The worker's name: `slot0` and so on.
    pub worker_id: String,
    /// The number of the lane, from 0.
    pub lane: u32,
    /// What names of things in shared places may begin with: nobody else has it.
    pub prefix: String,
    /// The lane's schema or database, where it has one; for SQLite its file.
    pub schema: Option<String>,
    /// Where the lane's database is, if there is one.
    pub database_url: Option<String>,
}

/// The lane of this process.
///
/// ```no_run
/// let lane = isolane::lane().unwrap();
/// let email = format!("{}-alice@example.com", lane.prefix);
/// ```
pub fn lane() -> io::Result<Lane> {
    let lane = variable("ISOLANE_LANE")?;
    // The variables that the run gave addresses in, the one first that was configured first.
    let addresses = optional("ISOLANE_URL_VARIABLES").unwrap_or_default();
    let address = addresses.split(',').find_map(optional);
    Ok(Lane {
        run_id: variable("ISOLANE_RUN_ID")?,
        worker_id: worker()?,
        lane: lane.parse().map_err(|_| io::Error::other(format!("ISOLANE_LANE is no number: {lane}")))?,
        prefix: variable("ISOLANE_PREFIX")?,
        schema: optional("ISOLANE_SCHEMA"),
        database_url: address.or_else(|| optional("DATABASE_URL")),
    })
}

/// The worker's name.
pub(crate) fn worker() -> io::Result<String> {
    // Others set a variable of that name as well.
    variable("ISOLANE_SOCKET")?;
    variable("WORKER_ID")
}

/// The test that this thread is in, where the run does not know it: under nextest it does.
/// cargo test runs each test in a thread that has its name.
pub(crate) fn test() -> Option<String> {
    if optional("NEXTEST_TEST_NAME").is_some() {
        return None;
    }
    std::thread::current().name().filter(|name| *name != "main").map(str::to_owned)
}

/// A variable that every test in a run has.
pub(crate) fn variable(name: &str) -> io::Result<String> {
    optional(name).ok_or_else(|| {
        let why = format!(
            "not inside of `isolane run`: {name} is not set; start the tests as `isolane run -- cargo nextest run`"
        );
        io::Error::new(io::ErrorKind::NotFound, why)
    })
}

fn optional(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

//! isolane runs a parallel test command so that every worker has a lane of its own: a
//! name, a prefix, a database or schema, ports and a directory. A ledger knows who made
//! what; what was made is removed, exactly that and nothing else.
//!
//! # One trip: `isolane run -- pytest -n 4`
//!
//! [`cli`] reads the arguments and [`settings`] folds them over environment and file;
//! nothing reads the environment after that. [`runner`] says which tool it is. The
//! [`supervisor`] announces the run in the [`ledger`] under a lock that the kernel frees
//! if it dies ([`os::lock`]), arms the [`watchdog`], which undoes the run if that happens,
//! promises each resource on the disk before a [`provider`] makes it ([`inventory`]), opens
//! the [`api`] on a Unix socket, and starts the command in its own process group with
//! nothing but environment added. In the workers, the shims (`shims/pytest`, `shims/exec`)
//! ask for a lane before any user code runs, and report tests. The [`keeper`] gives lanes by the [`lane`] book; the [`roster`] knows
//! who is in which test. At the end, what still lives is stopped, and [`mod@sweep`] undoes
//! what the inventory owes: it is the one place that removes anything of a run.
//!
//! What a setup made can outlive its run: a [`recipe`] says what it is made from, and the server
//! keeps it (`provider/postgres/template`). It is built as the run's own and given away whole, so
//! no run owes it, and no sweep takes it: its own limit does, or `isolane template remove`. Beside
//! it a run leaves a spare, a copy for the next run to rename to its first lane.
//!
//! # A lane for each test
//!
//! With `--fresh test` a lane becomes as its template again before each test: a shim asks for it,
//! or the [`keeper`] does when a test's process has ended. In [`renewal`] the provider undoes what
//! it can (`provider/postgres/capture/undo`); what it cannot is removed and made again under the
//! same name, so that the inventory owes what it owed before.
//!
//! # Afterwards
//!
//! What is told of a run comes from the ledger, read as it stands: [`mod@report`] prints rows
//! and the summary, and [`page`] writes a run to a file, for people (HTML, one page that
//! needs nothing else), for programs (JSON) and for CI (JUnit).
//!
//! Pools and leases are looked at in [`catalogue`], the page of a service: rendered here, from one
//! look at the board ([`desk`]) and one at the ledger, and swapped in parts as they change.
//!
//! # Servers
//!
//! With `--isolation server` a lane is a PostgreSQL server (`provider/servers`): a copied folder,
//! and a process that works in it. The folder's path is all that its name in the ledger says, and
//! all that whoever undoes it needs: the process is found by its arguments, told to quit so that
//! it takes its shared memory along, and killed only then. It is in no test's process group,
//! carries no run's id, and is left out when descendants are stopped, because it must outlive
//! them.
//!
//! # Rows
//!
//! On PostgreSQL, triggers write down which session wrote which rows (`provider/postgres/capture`),
//! in a log of the run's own on the server: with the tables of each lane, or on the user's own
//! where lanes share them. The [`mod@harvest`] brings the log into the ledger, where each
//! [`touch`] finds its worker and, by time, its test. [`collision`] has the rules for two that
//! met, [`failure`] reads errors for the keys that they name, and [`story`] tells it in words, in
//! the failing test and afterwards. Rows that the run made among the user's own go as everything
//! goes, in the sweep; the server's log alone is enough for that.
//!
//! # Leases
//!
//! What cannot be made for each worker stands in pools, and [`lease`] has the rules by which one
//! holder at a time gets an item: pure, on a board in memory. The [`desk`] does what is asked in
//! serial transactions of a store, many requests in one, and answers when that is kept; the ledger
//! is one store (`ledger/lease`). Processes that share a store each have a board, and read what
//! the others changed before they change anything. A holder is a worker: when its process is gone,
//! the API says so to the desk. The [`client`] is how commands ask: over the run's socket, or in
//! their own process.
//!
//! The [`stock`] runs what pools say is to
//! be run: `reset` after use, `retire` in the end, a `generator` for what is asked for and for some
//! ahead. What is begun stands in the store under the name of the process that does it; whoever
//! looks there next after its death goes on, and first kills what that had started.
//!
//! # A service of leases
//!
//! [`mod@serve`] opens the same API to other machines: pools, leases and runs of its own ledger,
//! over TCP with or without TLS, for tokens with roles. A run with `--leases` passes on there what
//! is asked at its socket (`api/forward`, over [`remote`]), says who died, and says that it lives
//! as often as what it keeps needs it. The watchdog says it all ended where the supervisor cannot;
//! where nobody is left, time ends it.
//!
//! # Whatever dies
//!
//! Every promise is known to three: the supervisor, the ledger on the disk, and the watchdog,
//! which hears it through a pipe. On a server every thing carries a [`mark`] besides, and a
//! session of the run holds a lock there, the claim; the run's directory has a label. So the first who is left of these undoes
//! a run: the supervisor; the watchdog, when the kernel frees the run lock; the next run on
//! the ledger; `isolane sweep` from any machine, by mark and claim. All four end in the same
//! sweep. The supervisor's phases (`supervisor/phase.rs`) and the states of a resource
//! ([`ledger::resource`]) are tables with a test for every cell. [`fault`] names the points
//! before and after each step, where `tests/faults` lets it fail.
//!
//! # Rooms
//!
//! Modules are listed bottom to top, and a file uses only what stands above it in the
//! list (`tests/it/tidy.rs` checks it). Drivers stay in their provider's file, SQL about
//! isolane's own tables in the ledger, async code in `desk`, `stock`, `keeper`, `api` and `supervisor`.
//!
//! # What is deliberately absent
//!
//! No heartbeat and no pid as identity: locks and pidfds tell who lives. No name pattern
//! decides what is removed. No cleanup in `Drop`. No wrapper around the command's output,
//! except to mark lines where several copies of a plain command share it.
//!

pub mod name;
pub mod error;
pub mod fault;
pub mod secret;
pub mod clock;
pub mod mark;
pub mod os;
pub mod address;
pub mod lease;
pub mod settings;
pub mod recipe;
pub mod touch;
pub mod collision;
pub mod failure;
pub mod ledger;
pub mod provider;
pub mod runner;
pub mod story;
pub mod lane;
pub mod desk;
pub mod pools;
pub mod stock;
pub mod inventory;
pub mod sweep;
pub mod run;
pub mod harvest;
pub mod renewal;
pub mod roster;
pub mod keeper;
pub mod remote;
pub mod api;
pub mod watchdog;
pub mod supervisor;
pub mod client;
pub mod report;
pub mod page;
pub mod catalogue;
pub mod serve;
pub mod cli;
pub mod commands;

//! The command line of leases and pools.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{FormatArgs, LeasesArgs};
use crate::clock::duration;
use crate::lease::predicate::Condition;

/// `isolane lease`.
#[derive(Debug, Subcommand)]
#[expect(missing_docs, reason = "the arguments are documented where they are declared")]
pub enum LeaseCommand {
    /// Lease items of pools, all or none: nobody else gets them meanwhile
    Acquire(AcquireArgs),
    /// Keep a lease for longer
    Renew {
        /// Its id
        lease: String,
        /// The number that it was granted with: an older holder's request is refused
        #[arg(long)]
        fence: Option<u64>,
        /// For how long from now on, such as 60s [default: as long as it was granted for]
        #[arg(long, value_name = "TIME", value_parser = duration)]
        ttl: Option<Duration>,
        #[command(flatten)]
        ledger: LeasesArgs,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Give a lease back
    Release {
        /// Its id
        lease: String,
        /// The number that it was granted with: an older holder's request is refused
        #[arg(long)]
        fence: Option<u64>,
        #[command(flatten)]
        ledger: LeasesArgs,
    },
    /// Take leases away from their holders
    Revoke(RevokeArgs),
    /// List the leases that are held; with --waiting, who waits for whom
    List {
        /// Who waits, for what, and who has it
        #[arg(long)]
        waiting: bool,
        #[command(flatten)]
        ledger: LeasesArgs,
        #[command(flatten)]
        format: FormatArgs,
    },
}

/// `isolane lease acquire`.
#[derive(Debug, Args)]
#[command(after_help = "\
Within `isolane run`, the lease is the running test's worker's, and ends when that dies. Elsewhere it ends
after --ttl. A pool with a generator makes what is not there, also for who does not --wait for others.
Exit code: 75 all are held, or waited in vain; 65 no item is like that; 69 there is no such pool, or nobody answers.

Examples:
  isolane lease acquire account --where tier=gold --wait 30s
  isolane lease acquire user licence --ttl 5m --format json
  isolane lease acquire user --count 2 --where 'age>=18' --where 'region=eu,us'")]
pub struct AcquireArgs {
    /// A pool; of several, items of each
    #[arg(required = true, value_name = "POOL")]
    pub pools: Vec<String>,
    /// What they must be like: tier=gold, tier=gold,silver, tier!=gold, age>=18, email? or !email; may be repeated
    #[arg(long = "where", value_name = "CONDITION")]
    pub conditions: Vec<Condition>,
    /// How many of each pool
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub count: u32,
    /// How long the lease lives unless it is renewed, such as 60s [default: the pool's]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub ttl: Option<Duration>,
    /// How long to wait for it, such as 30s [default: not at all]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub wait: Option<Duration>,
    /// A name for this request: asked twice, it is granted once
    #[arg(long)]
    pub key: Option<String>,
    /// Where leases are.
    #[command(flatten)]
    pub ledger: LeasesArgs,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// `isolane lease revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The leases
    #[arg(required_unless_present_any = ["run", "worker", "test", "prefix"], value_name = "LEASE")]
    pub leases: Vec<String>,
    /// All of this run: its id, how that begins, or its tag
    #[arg(long)]
    pub run: Option<String>,
    /// All of this worker
    #[arg(long)]
    pub worker: Option<String>,
    /// All of this test
    #[arg(long)]
    pub test: Option<String>,
    /// All of the worker with this prefix
    #[arg(long)]
    pub prefix: Option<String>,
    /// Where leases are.
    #[command(flatten)]
    pub ledger: LeasesArgs,
}

/// `isolane pool`.
#[derive(Debug, Subcommand)]
#[expect(missing_docs, reason = "the arguments are documented where they are declared")]
pub enum PoolCommand {
    /// Add items to a pool, which is made where there is none
    Add(AddArgs),
    /// List pools, or the items of one
    List {
        /// The pool whose items are listed
        pool: Option<String>,
        #[command(flatten)]
        ledger: LeasesArgs,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Have a pool's generator make items now
    Fill {
        /// The pool
        pool: String,
        /// How many
        #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1000))]
        count: u32,
        /// An input of the generator, such as tier=gold; may be repeated [default: each its own]
        #[arg(long, value_name = "NAME=VALUE", value_parser = input)]
        input: Vec<(String, String)>,
        #[command(flatten)]
        ledger: LeasesArgs,
    },
    /// Remove a pool with all its items, unless one is held
    Remove {
        /// The pool
        pool: String,
        /// Those that are held go when they are released
        #[arg(long)]
        when_released: bool,
        #[command(flatten)]
        ledger: LeasesArgs,
    },
    /// Take items out of a pool for good; those that are held, when they are released
    Retire {
        /// The pool
        pool: String,
        /// Their names
        #[arg(required = true, value_name = "ITEM")]
        items: Vec<String>,
        #[command(flatten)]
        ledger: LeasesArgs,
    },
}

fn input(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "it takes NAME=VALUE".to_owned())
}

/// `isolane pool add`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  isolane pool add account alice bob                       items called so
  isolane pool add account id=1,tier=gold id=2,tier=silver
  isolane pool add account '{\"id\": 3, \"tier\": \"gold\"}' --shared 5
  isolane pool add account --from accounts.csv             or .json, a list of objects")]
pub struct AddArgs {
    /// The pool
    pub pool: String,
    /// Items: a name, attributes (id=1,tier=gold), or a JSON object
    #[arg(required_unless_present = "from", value_name = "ITEM")]
    pub items: Vec<String>,
    /// Items from a .json or .csv file
    #[arg(long, value_name = "FILE")]
    pub from: Vec<PathBuf>,
    /// So many may hold one item at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "consume")]
    pub shared: Option<u32>,
    /// An item can be had once
    #[arg(long)]
    pub consume: bool,
    /// How long leases live unless their holders say otherwise, such as 60s
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub ttl: Option<Duration>,
    /// Where leases are.
    #[command(flatten)]
    pub ledger: LeasesArgs,
}

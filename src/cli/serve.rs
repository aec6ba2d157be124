//! The command line of `isolane serve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{FormatArgs, LedgerArgs};
use crate::clock::duration;
use crate::ledger::token::Role;

/// `isolane serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Pools are those of [pool.NAME] in isolane.toml, and of `isolane pool add`. Clients send a token, isolane itself the
one in ISOLANE_TOKEN. Where there is no token at all, one that may do everything is made and shown.

Examples:
  isolane serve                                          on this machine
  isolane serve --new-token ci --role lease              print a new token
  isolane serve --listen 0.0.0.0:7070 --tls-cert chain.pem --tls-key key.pem
  ISOLANE_TOKEN=… isolane run --leases https://leases:7070 -- pytest -n 4")]
pub struct ServeArgs {
    /// Where to listen
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070")]
    pub listen: String,
    /// The certificate, with those that vouch for it (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Serve other machines without TLS: something before it has to see to that
    #[arg(long, conflicts_with = "tls_cert")]
    pub plain: bool,
    /// How many requests a second one token may make
    #[arg(long, value_name = "N", default_value = "20000", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// How many connections there may be at a time
    #[arg(long, value_name = "N", default_value = "4096", value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
    /// Make a token, print it once, and end
    #[arg(long, value_name = "NAME", conflicts_with_all = ["tokens", "remove_token"])]
    pub new_token: Option<String>,
    /// What it allows: read, lease (and read), or admin (and all)
    #[arg(long, default_value = "lease", requires = "new_token")]
    pub role: Role,
    /// For how long it counts, such as 30d [default: until it is removed]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "new_token")]
    pub valid_for: Option<Duration>,
    /// List the names and roles of tokens, and end
    #[arg(long, conflicts_with = "remove_token")]
    pub tokens: bool,
    /// Remove a token, and end
    #[arg(long, value_name = "NAME")]
    pub remove_token: Option<String>,
    /// The PostgreSQL database that keeps pools and leases, for several services that are one [default: $ISOLANE_STORE, else the ledger]
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    /// The PostgreSQL database with the tables whose rows are items [$DATABASE_URL]
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
    /// Where the ledger is: tokens, runs, and pools and leases where no other store is named.
    #[command(flatten)]
    pub ledger: LedgerArgs,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArgs,
}

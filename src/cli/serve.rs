//! The command line of `isolane serve`.

use clap::Args;

use super::LedgerArgs;

/// `isolane serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where to listen
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070")]
    pub listen: String,
    /// How many connections there may be at a time
    #[arg(long, value_name = "N", default_value = "4096", value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
    /// Where the ledger is.
    #[command(flatten)]
    pub ledger: LedgerArgs,
}

//! `isolane serve`.

use anyhow::Context;

use crate::cli::serve::ServeArgs;
use crate::serve::{self, Options};
use crate::settings::Settings;

/// `isolane serve`.
pub fn serve(args: ServeArgs) -> anyhow::Result<i32> {
    let (choices, config) = args.ledger.choices();
    let cwd = std::env::current_dir().context("cannot tell the current directory")?;
    // A database address that cannot be used does not matter here.
    let variables = std::env::vars_os().filter(|(name, _)| name == "ISOLANE_LEDGER");
    let settings = Settings::fold(choices, config.as_deref(), variables, &cwd)?;
    let options = Options { listen: args.listen, connections: args.connections as usize };
    serve::serve(&settings, &options)
}

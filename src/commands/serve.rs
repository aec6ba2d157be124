//! `isolane serve`.

use std::io::Write;

use super::lease::{print, settings};
use crate::cli::serve::ServeArgs;
use crate::error::{Stop, one_line};
use crate::ledger;
use crate::report::say;
use crate::serve::{self, Options, tokens};
use crate::settings::Choices;

/// `isolane serve`.
pub fn serve(args: ServeArgs) -> anyhow::Result<i32> {
    let (choices, config) = args.ledger.choices();
    let database_urls = args.database_url.into_iter().collect();
    let choices = Choices { store: args.store, database_urls, ..choices };
    let settings = settings(&choices, config.as_deref())?;
    if let Some(name) = &args.new_token {
        let token = tokens::make(&settings, name, args.role, args.valid_for)?;
        writeln!(std::io::stdout(), "{}", token.reveal())?;
        return Ok(0);
    }
    if args.tokens || args.remove_token.is_some() {
        ledger::require(&settings.ledger).map_err(|error| Stop::usage(one_line(&error)))?;
    }
    if args.tokens {
        return print(&tokens::list(&settings)?, args.format.format, "there is none; --new-token NAME makes one");
    }
    if let Some(name) = &args.remove_token {
        tokens::remove(&settings, name)?;
        say(&format!("token {name}: removed"));
        return Ok(0);
    }
    let options = Options {
        listen: args.listen,
        tls: args.tls_cert.zip(args.tls_key),
        plain: args.plain,
        connections: args.connections as usize,
        rate: args.rate,
    };
    serve::serve(&settings, &options)
}

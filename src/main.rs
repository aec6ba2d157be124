//! The program `isolane`.

use std::process::exit;

use isolane::cli::{Cli, Command, TemplateCommand};
use isolane::error::{exit_code, one_line};
use isolane::os::arguments;
use isolane::{commands, report};

fn main() {
    let command = Cli::read().command;
    // From here on, nothing reads the arguments from where others see them.
    arguments::hide_passwords();
    let done = match command {
        Command::Run(args) => commands::run(*args),
        Command::Runs { ledger, format } => commands::runs(ledger, format.format),
        Command::Query { sql, ledger, format } => commands::query(&sql, ledger, format.format),
        Command::Who(args) => commands::who(args),
        Command::Collisions(args) => commands::collisions(args),
        Command::Leaks(args) => commands::leaks(args),
        Command::Why(args) => commands::why(args),
        Command::Report(args) => commands::report(args),
        Command::Record { kind, key } => commands::record(&kind, &key),
        Command::Lease(command) => commands::lease::lease(command),
        Command::Leases { ledger, format } => commands::lease::leases(ledger, format.format),
        Command::Pool(command) => commands::lease::pool(command),
        Command::Serve(args) => commands::serve(*args),
        Command::Sweep(args) => commands::sweep(*args),
        Command::Template(TemplateCommand::Build(args)) => commands::template::build(args.settings, args.setup),
        Command::Template(TemplateCommand::List { server, format }) => commands::template::list(server, format.format),
        Command::Template(TemplateCommand::Remove { which, all, server }) => {
            commands::template::remove(&which, all, server)
        }
        Command::Doctor { settings, format } => commands::doctor(settings, format.format),
        Command::Init { force } => commands::init(force),
        Command::Watchdog { ledger, lock, run } => commands::watchdog(&ledger, &lock, &run),
        Command::Completions { shell } => commands::completions(shell),
    };
    exit(done.unwrap_or_else(|error| {
        report::say(&one_line(&error));
        exit_code(&error)
    }))
}

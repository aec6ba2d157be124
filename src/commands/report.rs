//! `isolane report`: writes a run to files.

use super::settings_of_ledger;
use crate::cli::ReportArgs;
use crate::error::{Stop, one_line};
use crate::ledger::reading::{Found, Reading};
use crate::page::{self, Report};

/// Writes the run that was asked for, or the latest one.
pub fn report(args: ReportArgs) -> anyhow::Result<i32> {
    if args.output.is_empty() {
        return Err(Stop::usage("no file is named: isolane report -o FILE.html (or .json, or .xml for JUnit)"));
    }
    let reports = args.output.iter().map(Report::new).collect::<anyhow::Result<Vec<_>>>()?;
    let (choices, config) = args.ledger.choices();
    let path = settings_of_ledger(choices, config.as_deref())?;
    let reading = Reading::open(&path).map_err(|e| Stop::usage(one_line(&e)))?;
    let which = args.run.as_deref();
    let run = match reading.find(which)? {
        Found::One(run) => run,
        Found::None => {
            let missing = which.map_or("it has no run yet".to_owned(), |which| format!("it has no run {which}"));
            return Err(Stop::usage(format!("{}: {missing}; `isolane runs` lists them", path.display())));
        }
        Found::Many(runs) => {
            let runs = runs.join(", ");
            return Err(Stop::usage(format!("more than one run begins with {}: {runs}", which.unwrap_or_default())));
        }
    };
    drop(reading);
    for report in &reports {
        page::write(&path, &run, report)?;
    }
    Ok(0)
}

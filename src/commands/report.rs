//! `isolane report`: writes a run to files.

use super::{run_meant, settings_of_ledger};
use crate::cli::ReportArgs;
use crate::error::{Stop, one_line};
use crate::ledger::reading::Reading;
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
    let run = run_meant(&reading, &path, args.run.as_deref())?;
    drop(reading);
    for report in &reports {
        page::write(&path, &run, report)?;
    }
    Ok(0)
}
